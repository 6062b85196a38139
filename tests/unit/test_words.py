"""What somebody else wrote, on a line of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.words import masked, printable, shown


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Zoë /rest?a=b\\", "Zoë /rest?a=b\\"),
        ("\r\n\t\x00\x1b[31m\x7f\x9b", r"\r\n\t\x00\x1b[31m\x7f\x9b"),
        ("\u2028\u202e\ufeff\udc80\U000e0001", r"\u2028\u202e\ufeff\udc80\U000e0001"),
        (b"/caf\xc3\xa9\r\n", r"/caf\xc3\xa9\r\n"),
        ("", ""),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str | bytes, plain: str) -> None:
    """Controls, line breaks, marks that turn text around, lone surrogates; in bytes all beyond ASCII."""
    assert printable(text) == plain


@given(st.text() | st.binary())
def test_everything_becomes_printable(text: str | bytes) -> None:
    """No text gets a line break or an escape sequence through; bytes come out as ASCII."""
    assert printable(text).isprintable()
    assert printable(text).isascii() or isinstance(text, str)


@given(st.text())
def test_masked_text_keeps_its_length_and_what_can_be_printed(text: str) -> None:
    """A name stays recognisable, and adds no character of its own but ?."""
    assert masked(text).isprintable()
    assert len(masked(text)) == len(text)
    assert all(
        own == its or (own == "?" and not its.isprintable())
        for own, its in zip(masked(text), text, strict=True)
    )


@given(st.text() | st.binary(), st.integers(0, 12))
def test_shown_text_stays_short(text: str | bytes, most: int) -> None:
    """Whole where it fits, else its beginning, as it prints, and three dots."""
    plain = printable(text)
    assert shown(text, most) == (plain if len(plain) <= most else plain[:most] + "...")
