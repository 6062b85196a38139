"""Text that somebody else chose (a caller, an upstream, a certificate, a file), fit for a line of ours. Pure.

Such text may not forge a line of a log or an answer, nor drive the terminal of whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

_MOST_NAMES = 5
_LONGEST_NAME = 200  # characters


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


def clean(text: str) -> str:
    """Names and words of the other side, fit for a log and a terminal."""
    return shown(masked(text), _LONGEST_NAME)


def listed(names: Sequence[str]) -> str:
    """`names`, made clean, in one line; the first five of them."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "; ".join(map(clean, names[:_MOST_NAMES])) + more


def moment(seconds: float) -> str:
    """A time of the epoch as all dates are told to people: `2021-01-01 00:00 UTC`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def distinguished_name(parts: Sequence[Iterable[tuple[str, str]]]) -> str:
    """A name of a certificate after RFC 4514, the most specific part first: `CN=alice,O=Example`.

    `parts` are its RDNs in the order of the certificate, each of (short name of the type, value) pairs.
    """
    return ",".join("+".join(f"{kind}={_escaped(value)}" for kind, value in part) for part in reversed(parts))


def _escaped(value: str) -> str:
    """RFC 4514 section 2.4."""
    plain = re.sub(r'[\\",+;<>]', r"\\\g<0>", value).replace("\0", "\\00")
    if plain.startswith(("#", " ")):
        plain = "\\" + plain
    return plain[:-1] + "\\ " if plain.endswith(" ") and len(value) > 1 else plain
