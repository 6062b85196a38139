"""What somebody else wrote, on a line of ours."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from sidecert.words import distinguished_name, masked, moment, printable, shown


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


def test_dates_have_one_form() -> None:
    """To the minute, in UTC and said so."""
    assert moment(1609459259.9) == "2021-01-01 00:00 UTC"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9), max_size=4))
def test_names_of_certificates_are_written_as_rfc_4514_has_them(values: list[str]) -> None:
    """The same as cryptography writes, whichever library the name was read with."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, value) for value in values])
    assert distinguished_name([[("O", value)] for value in values]) == name.rfc4514_string()
