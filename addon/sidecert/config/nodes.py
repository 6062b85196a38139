"""The tree that a config file is read into: plain dicts and lists that know their lines."""

from __future__ import annotations

import re
from typing import Any

from sidecert.config.mistake import shown

KeyPath = tuple[str | int, ...]
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\Z")


class MappingNode(dict[str, Any]):
    """A YAML mapping; `line` is where it begins, `lines` where each of its keys stands."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}

    def has(self, part: str | int) -> bool:
        return part in self


class ListNode(list[Any]):
    """A YAML list; `line` is where it begins, `lines` where each of its entries does."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []

    def has(self, part: str | int) -> bool:
        return isinstance(part, int) and 0 <= part < len(self)


def render(path: KeyPath) -> str:
    """A key path in words: `routes[2].match.host`.

    Inside a passphrase only its known keys are named: some write the secret there, as a key by mistake.
    """
    text = ""
    for index, part in enumerate(path):
        secret = "passphrase" in path[:index] or (path[0] == "credentials" and index > 2)
        if secret and part not in ("env", "file"):
            break
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.match(part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text
