"""What a browser says of the page that had it send a request."""

from __future__ import annotations

import pytest

from sidecert.config.hosts import canonical_origin
from sidecert.http1 import RequestParser
from support.malformed import HEADER_BYTES, head_bytes


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://App.Example.", "https://app.example."),
        ("https://app.example..", None),
        ("https://127.0.0.1.", "https://127.0.0.1"),
        ("https://app.example:443", "https://app.example"),
        ("https://app.example:0443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:80", "https://app.example:80"),
        ("https://app.example:08443", "https://app.example:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://[2001:DB8:0::1]", "http://[2001:db8::1]"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", None),
        ("", None),
        ("https://", None),
        ("app.example", None),
        ("//app.example", None),
        ("https://app.example/", None),
        ("https://app.example/path", None),
        ("https://app.example?", None),
        ("https://app.example#", None),
        ("https://user@app.example", None),
        ("https://app.example\\@evil.test", None),
        ("https://app.example:", None),
        ("https://app.example:0", None),
        ("https://app.example:65536", None),
        ("https://app.example:x", None),
        ("https://127.1", None),
        ("https://::1", None),
        ("https://[::1%25eth0]", None),
        ("https://app.example https://evil.test", None),
        ("https://app.example, https://evil.test", None),
        (" https://app.example", None),
        ("https://app.example\n", None),
    ],
)
def test_an_origin_has_one_spelling(written: str, origin: str | None) -> None:
    """It is its own canonical form, and anything more or less than an origin has none."""
    assert canonical_origin(written) == origin
    if origin is not None:
        assert canonical_origin(origin) == origin


def page(*lines: str, target: str = "/", host: str | None = "app.example") -> str | None:
    """What a GET's head says of its page."""
    named = [] if host is None else [f"Host: {host}"]
    version = "1.0" if host is None else "1.1"
    return RequestParser(HEADER_BYTES).parse(head_bytes(f"GET {target} HTTP/{version}", *named, *lines)).page


def test_a_tool_has_no_page() -> None:
    """It sends neither header."""
    assert page() is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("app.example", "http://app.example"),
        ("app.example", "http://app.example:80"),
        ("app.example:80", "http://app.example"),
        ("App.Example", "HTTP://APP.EXAMPLE"),
        ("app.example.", "http://App.Example."),
        ("app.example:8080", "http://app.example:8080"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080"),
        ("xn--bcher-kva.example", "http://xn--bcher-kva.example"),
    ],
)
def test_a_page_of_the_place_that_is_called_is_none_from_elsewhere(host: str, origin: str) -> None:
    """Whatever way it is spelt."""
    assert page(f"Origin: {origin}", host=host) is None


@pytest.mark.parametrize(
    ("host", "origin", "told"),
    [
        ("app.example", "https://app.example", "https://app.example"),
        ("app.example", "http://app.example:8080", "http://app.example:8080"),
        ("app.example:8080", "http://app.example", "http://app.example"),
        ("app.example", "HTTPS://Evil.Test:443", "https://evil.test"),
        ("app.example", "http://app.example.evil.test", "http://app.example.evil.test"),
        ("127.0.0.1", "http://localhost", "http://localhost"),
        ("app.example", "http://app.example.", "http://app.example."),
        ("app.example.", "http://app.example", "http://app.example"),
        ("app.example", "null", "null"),
        ("app.example", "", ""),
        ("app.example", "http://app.example/", "http://app.example/"),
        (None, "http://app.example", "http://app.example"),
    ],
)
def test_any_other_page_is_from_elsewhere(host: str | None, origin: str, told: str) -> None:
    """Scheme, host and port all count; what is no origin is told as it was sent."""
    assert page(f"Origin: {origin}", host=host) == told


def test_of_several_origins_none_counts() -> None:
    """No browser sends two, so nobody knows which to believe; nor one that lists two."""
    own = "http://app.example"
    assert page(f"Origin: {own}", f"Origin: {own}") == f"{own}, {own}"
    assert page(f"Origin: {own}", "Origin: https://evil.test") == f"{own}, https://evil.test"
    assert page(f"Origin: {own} https://evil.test") == f"{own} https://evil.test"


@pytest.mark.parametrize(
    ("site", "told"),
    [
        ("none", None),
        ("same-origin", None),
        ("Same-Origin", None),
        ("same-site", ""),
        ("cross-site", ""),
        ("CROSS-SITE", ""),
        ("", ""),
        ("same-origin, cross-site", ""),
        ("anything", ""),
    ],
)
def test_sec_fetch_site_tells_of_a_page_where_origin_does_not(site: str, told: str | None) -> None:
    """Plain GETs come without Origin; which page it was, is not told then."""
    assert page(f"Sec-Fetch-Site: {site}") == told


def test_either_header_is_enough() -> None:
    """And the worse of two of a kind."""
    own = "Origin: http://app.example"
    assert page(own, "Sec-Fetch-Site: cross-site") == "http://app.example"
    assert page("Origin: https://evil.test", "Sec-Fetch-Site: same-origin") == "https://evil.test"
    assert page("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site") == ""


def test_the_target_is_the_place_that_is_called_where_it_is_absolute() -> None:
    """As a forward proxy's client sends it; Host must not say otherwise."""
    absolute = "http://app.example/a"
    assert page("Origin: http://app.example", target=absolute) is None
    assert page("Origin: http://evil.test", target=absolute) == "http://evil.test"
    assert page("Origin: http://app.example", target="https://app.example/a") == "http://app.example"
    assert page("Origin: https://app.example", target="https://app.example/a") is None
    assert (
        page("Origin: http://app.example:8080", target="http://app.example:8080/", host="app.example:8080")
        is None
    )
