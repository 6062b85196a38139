"""A config file's text, or in words why there is none."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MAX_BYTES = 32 * 1024 * 1024
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class Unreadable(Exception):
    """There is no way to read on. `line` counts from 1."""

    def __init__(self, line: int | None, wrong: str, right: str) -> None:
        super().__init__(wrong)
        self.line = line
        self.wrong = wrong
        self.right = right


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; raises `Unreadable`."""
    return _decode(_read(path))


def _read(path: Path) -> bytes:
    """The file's bytes. A pipe is read too (`-c /dev/stdin`); a device could be endless."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise Unreadable(None, "this is a directory", "name the config file, such as sidecert.yaml in it")
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise Unreadable(None, "this is not a file", "name the config file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Unreadable(None, "there is no such file", "name the config file with -c FILE") from None
    except PermissionError:
        raise Unreadable(None, "the file may not be read", "let this user read it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its name is not a path"
        raise Unreadable(None, f"the file cannot be read: {reason}", "name a readable file") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(None, "the file is too large", f"a config has at most {MAX_BYTES >> 20} MiB")
    return data


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable(1, "the file is in UTF-16", "save it as UTF-8")
    if b"\0" in data:
        raise Unreadable(
            data.count(b"\n", 0, data.index(b"\0")) + 1, "this is a binary file", "name a YAML file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, "the text is not UTF-8 here", "save the file as UTF-8") from None
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise Unreadable(line, f"there is a control character (U+{ord(bad[0]):04X})", "remove it")
    return text
