"""Who may call: by the address of the caller, and by the web page behind a browser's request."""

from __future__ import annotations

import ipaddress

import pytest

from sidecert.callers import LOOPBACK_ONLY, Callers
from sidecert.config.callers import ANY_ORIGIN, EVERYWHERE
from sidecert.errors import Refusal


def allowing(*networks: str) -> Callers:
    return Callers("0.0.0.0:80", tuple(ipaddress.ip_network(each) for each in networks))


def lets_in(callers: Callers, peer: object) -> bool:
    try:
        callers.check_address(peer)
    except Refusal as refusal:
        told = refusal
    else:
        return True
    assert (told.outcome, told.status) == ("caller_not_allowed", 403)
    return False


@pytest.mark.parametrize(
    ("networks", "peer", "allowed"),
    [
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["10.0.0.0/8"], "9.255.255.255", False),
        (["192.168.1.7"], "192.168.1.7", True),
        (["192.168.1.7"], "192.168.1.8", False),
        (["192.168.1.7", "10.0.0.0/8"], "10.1.2.3", True),
        # a dual-stack socket names IPv4 callers like this
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:11.1.2.3", False),
        (["10.0.0.0/8"], "::ffff:a01:203", True),
        (["::/0"], "::ffff:10.1.2.3", False),
        (["::/0"], "10.1.2.3", False),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["2001:db8::/32"], "2001:db8:ffff::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["fe80::1"], "fe80::1%3", True),
        (["fe80::1"], "fe80::2%3", False),
        (["10.0.0.0/8"], "", False),
        (["10.0.0.0/8"], "10.1.2", False),
    ],
)
def test_an_address_is_let_in_by_the_networks_alone(networks: list[str], peer: str, allowed: bool) -> None:
    """IPv4 in the form of IPv6 counts as IPv4, and a zone says nothing; asked again, it is the same."""
    callers = allowing(*networks)
    port = (peer, 50000, 0, 0) if ":" in peer else (peer, 50000)
    assert [lets_in(callers, port) for _ in range(4)] == [allowed] * 4


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("128.0.0.1", 1), False),
        (("::2", 1, 0, 0), False),
        ("", False),  # a unix socket's peer
        (None, False),  # gone already
    ],
)
def test_loopback_callers_are_the_default(peer: object, allowed: bool) -> None:
    """Whoever has no address is none of them."""
    assert lets_in(LOOPBACK_ONLY, peer) is allowed


@pytest.mark.parametrize("peer", [("10.1.2.3", 1), ("2001:db8::1", 1, 0, 0), ("::ffff:10.1.2.3", 1, 0, 0)])
def test_any_is_every_address(peer: object) -> None:
    """Both families."""
    assert lets_in(Callers("0.0.0.0:80", EVERYWHERE), peer)


def test_a_unix_socket_asks_for_no_address() -> None:
    """Its file's mode says who may call."""
    assert lets_in(Callers("unix:/run/in.sock"), "")


def test_a_stranger_is_told_what_to_write() -> None:
    """The address as a rule would have it, beside those that may call already."""
    for peer, written in (("::ffff:10.1.2.3", "10.1.2.3"), ("fe80::1%eth0", "fe80::1"), ("", "unknown")):
        with pytest.raises(Refusal) as caught:
            allowing("192.0.2.0/24").check_address((peer, 1))
        assert f"The caller's address, {written}, is none" in caught.value.detail
        assert f"`allow: [192.0.2.0/24, {written}]`" in caught.value.remedy


def test_rules_are_alike_whatever_they_have_been_asked() -> None:
    """A reload that changes nothing must not seem to change who may call."""
    one, other = allowing("10.0.0.0/8"), allowing("10.0.0.0/8")
    lets_in(one, ("10.1.2.3", 1))
    assert one == other
    assert one != allowing("10.0.0.0/9")


@pytest.mark.parametrize(
    ("origins", "page", "allowed"),
    [
        (frozenset(), "https://app.example", False),
        (frozenset(), "", False),
        (frozenset({"https://app.example"}), "https://app.example", True),
        (frozenset({"https://app.example"}), "http://app.example", False),
        (frozenset({"https://app.example"}), "https://app.example:8443", False),
        (frozenset({"https://app.example"}), "https://app.example.evil.test", False),
        (frozenset({"https://app.example"}), "https://app.example.", False),
        (frozenset({"https://app.example"}), "null", False),
        (frozenset({"https://app.example"}), "", False),
        (ANY_ORIGIN, "https://app.example", True),
        (ANY_ORIGIN, "null", True),
        (ANY_ORIGIN, "", True),
    ],
)
def test_a_page_may_call_where_its_origin_is_named(origins: frozenset[str], page: str, allowed: bool) -> None:
    """All of the origin counts, and a page that is not told is none that was named."""
    callers = Callers("127.0.0.1:80", origins=origins)
    if allowed:
        callers.check_page(page)
        return
    with pytest.raises(Refusal) as caught:
        callers.check_page(page)
    assert (caught.value.outcome, caught.value.status) == ("caller_not_allowed", 403)
    assert (page or "Sec-Fetch-Site") in caught.value.detail


def test_a_long_origin_is_shown_in_part() -> None:
    """It is the caller's own text."""
    with pytest.raises(Refusal) as caught:
        LOOPBACK_ONLY.check_page("https://" + "a" * 60000)
    assert len(caught.value.detail) < 500
