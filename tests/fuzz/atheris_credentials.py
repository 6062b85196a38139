"""PEM and PKCS#12 files with anything in them; the first byte says which file it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sidecert.credentials", "sidecert.tls"]):
    from support.spoilt_files import SpoiltFiles

from driving import drive


def make(folder: Path) -> tuple[Iterable[bytes], Callable[[bytes], str]]:
    files = SpoiltFiles(folder)
    return files.files, files.play_file


def may_keep(data: bytes) -> bool:
    """No file with a key is committed: certificates only, and trust."""
    return data[:1] in (b"\0", b"\3") and b"PRIVATE" not in data


if __name__ == "__main__":
    drive(make, longest=6000, may_keep=may_keep)
