"""A YAML parser's complaint in the words of what the user most likely meant."""

from __future__ import annotations

import re

from sidecert.config.mistake import shown
from sidecert.config.textfile import Unreadable

_V6_BIND = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]")

_MISFIT = "this line does not fit in with those above"
_COLUMNS = "begin all keys of one mapping in one column, and each - of one list"
# what the parser says; whether the place where it began is meant; what is wrong; what would be right
_COMPLAINTS = (
    ("quoted scalar found unexpected", True, "a quote that opens here is not closed", "close it"),
    ("unknown escape", False, "there is an unknown \\ escape in double quotes", "use single quotes"),
    ("flow sequence", True, "a [ that opens here is not closed, or a comma is missing", "close it with ]"),
    ("flow mapping", True, "a { that opens here is not closed, or a comma is missing", "close it with }"),
    (
        "mapping values are not allowed",
        False,
        "there is a colon where none can be",
        'put a value that holds ": " in quotes, and begin the keys of one mapping in one column',
    ),
    ("did not find expected key", False, _MISFIT, _COLUMNS),
    ("expected '-' indicator", False, _MISFIT, _COLUMNS),
    ("expected <block end>", False, _MISFIT, _COLUMNS),
    (
        "expected ':'",
        True,
        "this line is no key with a value",
        'write "key: value", with a space after the colon',
    ),
    ("tag", False, "a value that begins with ! is a YAML tag", "put it in quotes"),
    ("incompatible YAML", False, "this YAML version is not known", "remove the %YAML line"),
)


def complaint(said: str, text: str, line: int, column: int, opened: int) -> Unreadable:
    """What is wrong at `line` and `column` (from 0) of `text`, where the parser `said` so.

    `opened` is the line on which that began. The text is never repeated, it may hold a secret.
    """
    lines = text.split("\n")
    here = lines[line] if line < len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return Unreadable(line + 1, "this line is indented with a tab", "indent with spaces")
    if "an alias" in said:
        return Unreadable(line + 1, "a value that begins with * is a YAML alias", 'put it in quotes: "*..."')
    if _V6_BIND.search(here):
        wrong = "a value that begins with [ is a YAML list"
        return Unreadable(line + 1, wrong, 'put an address in brackets in quotes: "[::1]:8080"')
    if "cannot start any token" in said:
        wrong = f"a value cannot begin with {shown(here[column : column + 1])}"
        return Unreadable(line + 1, wrong, "put it in quotes")
    for sign, back, wrong, right in _COMPLAINTS:
        if sign in said:
            return Unreadable((opened if back else line) + 1, wrong, right)
    right = "look at the quotes, colons and brackets of this line and the one above"
    return Unreadable(line + 1, "this is not YAML here", right)
