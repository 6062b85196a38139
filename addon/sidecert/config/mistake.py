"""What is wrong with a value and what would be right, and the few words all such messages share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from types import NoneType

from sidecert.words import printable

_SHOWN = 60  # characters of a user's value that a message repeats


class Mistake(ValueError):
    """A value that cannot be used: `wrong` says what is wrong with it, `right` what would be right.

    `at` leads from the value to the part of it that is meant, when that is not the whole.
    """

    def __init__(self, wrong: str, right: str, at: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{wrong}; {right}" if right else wrong)
        self.wrong = wrong
        self.right = right
        self.at = at


def shown(value: object) -> str:
    """A user's value in a message: in quotes, control characters escaped, cut when long."""
    text = str(value)
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    escaped = cut.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def kind(value: object) -> str:
    """What a YAML value is, in words that do not repeat it."""
    if isinstance(value, bool):
        return str(value).lower()
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a number", NoneType: "nothing"}
    return next((name for of, name in names.items() if isinstance(value, of)), "something else")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` probably means: a slip of the finger, the case, or a shortening."""
    by_lower = {each.lower().replace("-", "_"): each for each in known}
    lower = word.lower().replace("-", "_")
    close = get_close_matches(lower, by_lower, n=1, cutoff=0.65)
    if close:
        return by_lower[close[0]]
    if len(lower) < 3:
        return None
    starts = [each for key, each in by_lower.items() if key.startswith(lower) or lower.startswith(key)]
    return starts[0] if len(starts) == 1 else None
