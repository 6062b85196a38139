"""Hosts as config and routing compare them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.config import bracket, host_port, normalise_host


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("Orders.Example.COM.", "orders.example.com"),
        ("localhost", "localhost"),
        ("orders_svc.internal", "orders_svc.internal"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("\uff4frders\u3002example\uff0ecom", "orders.example.com"),
        ("straße.example", "xn--strae-oqa.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("\uff11\uff10.0.0.1", "10.0.0.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_spellings_of_one_host_become_one(host: str, normal: str) -> None:
    """Lower-case, no trailing dot, A-labels, canonical addresses."""
    assert normalise_host(host) == normal


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "..", "a..b", ".a", "a..", "-a.example", "a-.example", "a b", " a", "a\n", "a\0", "a\t"),
        *("*", "*.a", "a/b", "a?b", "a#b", "u@h", "a:80", "https://a", "a%41", "a,b", 'a"', "a;b", "a\\b"),
        *("127.1", "1.5", "0x7f.1", "2130706433", "010.0.0.1", "256.0.0.1", "1.2.3.4.5", "a.1", "a.0x1"),
        *("[::1", "::1]", "[::1]x", ":::", "[]", "[10.0.0.1]", "fe80::1%eth0", "[fe80::1%25eth0]", "::g"),
        *(
            "a" * 64,
            "a." * 127 + "a",
            "ü" * 300,
            "xn--" + "a" * 70,
            "\u202ea.example",
            "℀.example",
            "\uff0a.example",
        ),
        *("\ud800", "\uff11.5", "a\u200d.example"),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    """Also what a resolver would quietly take for an address."""
    with pytest.raises(ValueError, match=r".+; .+"):
        normalise_host(host)


def test_a_user_name_in_a_host_is_not_repeated() -> None:
    """It may come with a password."""
    with pytest.raises(ValueError, match="user name") as caught:
        normalise_host("alice:hunter2@orders.example.com")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=80) | st.from_regex(r"\A[a-zäöüß0-9_.:\[\]-]{1,40}\Z"))
def test_a_normal_form_is_its_own(host: str) -> None:
    """Whatever is accepted is plain, short ASCII and stays as it is when normalised again."""
    try:
        normal = normalise_host(host)
    except ValueError:
        return
    assert normal.isascii()
    assert normal == normal.lower()
    assert not set(normal) & set(" /@?#*%[]\\\r\n\0")
    assert len(normal) <= 253
    assert normalise_host(normal) == normal


@pytest.mark.parametrize(
    ("host", "written"),
    [("orders.example.com", "orders.example.com"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")],
)
def test_only_an_ipv6_address_is_written_in_brackets(host: str, written: str) -> None:
    """As in a URL, where the colon before the port has to stand out."""
    assert bracket(host) == written
    assert host_port(host, 8443) == f"{written}:8443"
