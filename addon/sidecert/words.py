"""Text that somebody else chose (a caller, an upstream, a certificate, a file), fit for a line of ours. Pure.

Such text may not forge a line of a log or an answer, nor drive the terminal of whoever reads it.
"""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    """`text` with what cannot be printed written as `\\x1b` or `\\u202e`; in bytes, all that is not ASCII."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def masked(text: str) -> str:
    """`text` with a ? for each character that cannot be printed: for names, which an escape would alter."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shown(text: str | bytes, most: int) -> str:
    """`text` made printable; `...` stands for what goes beyond `most` characters."""
    plain = printable(text[: most + 1])  # escapes only make it longer
    return plain if len(plain) <= most else plain[:most] + "..."
