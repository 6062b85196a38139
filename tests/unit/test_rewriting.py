"""Answers for a caller without TLS: whose addresses are rewritten, to what, and what becomes of cookies."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecert.http1 import RequestParser, ResponseHead, ResponseParser, downstream_head, hide, upstream_head
from sidecert.http1.cookie_names import restore
from sidecert.rewriting import (
    caller_base,
    own_origins,
    rewrite,
    rewrite_cookie,
    rewrite_location,
    rewrite_refresh,
)

OWN = own_origins("orders.example.com", 8443, "orders.example.com", "orders.example.com:8443")
BASE = b"http://orders.test:8080"

OWN_ADDRESSES = [
    (b"https://orders.example.com:8443/next", b"/next"),
    (b"https://orders.example.com:8443/next?a=%2F&b=https://x/#f", b"/next?a=%2F&b=https://x/#f"),
    (b"HTTPS://Orders.EXAMPLE.com:8443/Next", b"/Next"),
    (b"https://orders.example.com.:8443/next", b"/next"),
    (b"https://orders.example.com:08443/next", b"/next"),
    (b"//orders.example.com:8443/next", b"/next"),
    (b"https://orders.example.com:8443", b""),
    (b"https://orders.example.com:8443?q", b"?q"),
    (b"https://orders.example.com:8443#f", b"#f"),
    (b"https://orders.example.com:8443//x", b"//x"),
    (b"https://orders.example.com:8443/caf\xe9", b"/caf\xe9"),
]

FOREIGN_ADDRESSES = [
    b"",
    b"/next",
    b"next?x=https://orders.example.com:8443/",
    b"?q",
    b"#f",
    b"https://orders.example.com/next",  # port 443: another origin
    b"https://orders.example.com:/next",
    b"https://orders.example.com:443/next",
    b"https://orders.example.com:84430/next",
    b"https://orders.example.com:008443/next",
    b"//orders.example.com/next",
    b"http://orders.example.com:8443/next",
    b"http://orders.example.com/next",
    b"ftp://orders.example.com:8443/next",
    b"https://other.example.com:8443/next",
    b"https://orders.example.com.evil.test:8443/",
    b"https://xorders.example.com:8443/",
    b"https://orders.example.com..:8443/",
    b"https://orders.example.com:8443@evil.test/",
    b"https://orders.example.com:8443%40evil.test/",
    b"https://orders.example.com:8443\\@evil.test/",
    b"https://orders.example.com:8443\t@evil.test/",
    b"https://orders.example.com:8443 @evil.test/",
    b"https://orders.example.com:8443'@evil.test/",
    b"https://user@orders.example.com:8443/next",
    b"https://orders.example.com\xe9:8443/",
    b"https:/orders.example.com:8443/",
    b"https:orders.example.com:8443/",
    b"https:///next",
    b"https://:8443/",
    b"https://[::1/",
    b"https://[1.2.3.4]:8443/",
    b"urn:x://orders.example.com:8443/",
    b"javascript://orders.example.com:8443/",
]


def request(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answered(raw_request: bytes, *lines: str) -> list[str]:
    """The header lines of an answer with `lines`, as they go to who sent the request."""
    asked = RequestParser(65536).parse(raw_request)
    head = answer(*lines)
    rewrite(head, asked, OWN)
    return sent(head)


def answer(*lines: str) -> ResponseHead:
    return ResponseParser().parse(request("HTTP/1.1 302 Found", *lines, "Content-Length: 0"), b"GET")


def sent(head: ResponseHead) -> list[str]:
    raw = downstream_head(head, caller_minor=1, keep_alive=True, body=0).decode("latin-1")
    first, *lines = raw.removesuffix("\r\n\r\n").split("\r\n")
    assert first == "HTTP/1.1 302 Found"
    assert lines.pop() == "Content-Length: 0"
    return lines


@pytest.mark.parametrize(("address", "rest"), OWN_ADDRESSES)
def test_the_upstreams_own_address_becomes_the_callers(address: bytes, rest: bytes) -> None:
    """Origin replaced, everything behind it byte for byte."""
    assert rewrite_location(address, OWN, BASE) == BASE + rest
    assert rewrite_location(b" \t" + address + b" ", OWN, BASE) == b" \t" + BASE + rest + b" "


@pytest.mark.parametrize("address", FOREIGN_ADDRESSES)
def test_an_address_elsewhere_stays(address: bytes) -> None:
    """Other hosts, ports and schemes, relative references, and what readers could understand differently."""
    for base in (BASE, b""):
        assert rewrite_location(address, OWN, base) == address
        assert rewrite_refresh(b"5; url=" + address, OWN, base) == b"5; url=" + address


@pytest.mark.parametrize(
    ("host", "port", "server_name", "host_header", "own", "foreign"),
    [
        (
            "a.test",
            443,
            "a.test",
            "a.test",
            ["a.test", "a.test:443", "a.test:"],
            ["a.test:8443", "a.test:80"],
        ),
        ("a.test", 8443, "b.test", "a.test:8443", ["a.test:8443", "b.test:8443"], ["b.test", "a.test"]),
        ("a.test", 8443, "a.test", "C.Test.", ["c.test", "c.test:443", "c.test:8443"], ["a.test"]),
        ("a.test", 8443, "a.test", "c.test:9443", ["c.test:9443", "c.test:8443"], ["a.test:9443", "c.test"]),
        (
            "127.0.0.1",
            8443,
            "a.test",
            "127.0.0.1:8443",
            ["127.0.0.1:8443", "a.test:8443"],
            ["127.0.0.2:8443"],
        ),
        ("::1", 8443, "::1", "[::1]:8443", ["[::1]:8443", "[0:0::0:1]:8443"], ["[::1]", "[::2]:8443"]),
        ("::1", 443, "::1", "[::1]", ["[::1]", "[::1]:443"], ["[::1]:8443"]),
    ],
)
def test_an_upstream_has_every_name_that_it_is_called_by(
    host: str, port: int, server_name: str, host_header: str, own: list[str], foreign: list[str]
) -> None:
    """Its address, its server name and its Host, the port of https left out or not."""
    origins = own_origins(host, port, server_name, host_header)
    for authority in own:
        assert rewrite_location(f"https://{authority}/x".encode(), origins, BASE) == BASE + b"/x"
    for authority in foreign:
        address = f"https://{authority}/x".encode()
        assert rewrite_location(address, origins, BASE) == address


def test_what_is_no_host_has_no_origin() -> None:
    """The config has checked all three before."""
    with pytest.raises(ValueError, match="no host"):
        own_origins("a.test", 8443, "a.test", ":8443")


@pytest.mark.parametrize(
    ("rest", "left"),
    [
        (b"/next?q#f", b"/next?q#f"),
        (b"", b"/"),
        (b"?q", b"/?q"),
        (b"#f", b"/#f"),
        (b"//evil.test/x", b"/.//evil.test/x"),
        (b"/\\evil.test/x", b"/./\\evil.test/x"),
        (b"/\t/evil.test/x", b"/./\t/evil.test/x"),
    ],
)
def test_without_a_host_the_own_address_becomes_a_relative_one(rest: bytes, left: bytes) -> None:
    """HTTP/1.0 without Host; what is left can never name another host."""
    assert rewrite_location(b"https://orders.example.com:8443" + rest, OWN, b"") == left


@pytest.mark.parametrize(
    ("value", "rewritten"),
    [
        ("5; url=ADDRESS/next", "5; url=BASE/next"),
        ("0;URL=ADDRESS/next", "0;URL=BASE/next"),
        (" 5 ; Url = 'ADDRESS/a?b=;c' ", " 5 ; Url = 'BASE/a?b=;c' "),
        ('5, url="ADDRESS"', '5, url="BASE"'),
        ("5;ADDRESS/next", "5;BASE/next"),
        ("1.5 ADDRESS/next", "1.5 BASE/next"),
        ("url=ADDRESS/next", "url=BASE/next"),
        ("5", "5"),
        ("", ""),
        ("5; url=/next", "5; url=/next"),
        ("5; uri=ADDRESS/next", "5; uri=ADDRESS/next"),
        ("5; url=/login?to=ADDRESS/next", "5; url=/login?to=ADDRESS/next"),
        ("5; url=https://elsewhere.test/?url=ADDRESS/", "5; url=https://elsewhere.test/?url=ADDRESS/"),
    ],
)
def test_refresh_keeps_all_but_the_origin(value: str, rewritten: str) -> None:
    """In all forms that browsers take."""
    own = "https://orders.example.com:8443"
    given_value = value.replace("ADDRESS", own).encode()
    wanted = rewritten.replace("ADDRESS", own).replace("BASE", BASE.decode()).encode()
    assert rewrite_refresh(given_value, OWN, BASE) == wanted


def test_refresh_without_a_host_is_relative_also_in_quotes() -> None:
    """The closing quote is no part of the address."""
    assert rewrite_refresh(b"5; url='https://orders.example.com:8443'", OWN, b"") == b"5; url='/'"


@pytest.mark.parametrize(
    ("raw", "base"),
    [
        (request("GET http://Orders.test/a HTTP/1.1", "Host: other.test:1"), "http://Orders.test"),
        (request("GET http://orders.test:8080/a HTTP/1.1", "Host: x"), "http://orders.test:8080"),
        (request("GET http://[::1]:8080/a HTTP/1.0"), "http://[::1]:8080"),
        (request("GET https://orders.test/a HTTP/1.1", "Host: orders.test"), "https://orders.test"),
        (request("GET https://orders.test:8443/a HTTP/1.1", "Host: x"), "https://orders.test:8443"),
        (request("GET /a HTTP/1.1", "Host: orders.test:80"), "http://orders.test:80"),
        (request("GET /a HTTP/1.1", "Host: 127.0.0.1:9001"), "http://127.0.0.1:9001"),
        (request("GET /a HTTP/1.0", "Host: Orders.Test."), "http://Orders.Test."),
        (request("GET /a HTTP/1.0"), ""),
    ],
)
def test_the_callers_address_is_the_one_it_wrote(raw: bytes, base: str) -> None:
    """From an absolute target, else from Host, as sent; none in HTTP/1.0 without Host."""
    asked = RequestParser(65536).parse(raw)
    assert caller_base(asked.scheme, asked.host, asked.port) == base.encode()
    location = "Location: https://orders.example.com:8443/next"
    assert answered(raw, location) == [f"Location: {base}/next"]


CALL = request("GET /a HTTP/1.1", "Host: orders.test")


def test_the_lines_of_an_answer_are_rewritten_in_their_place() -> None:
    """Names keep their case, other lines their bytes, and every one of several is looked at."""
    assert answered(
        CALL,
        "A:1 ",
        "LOCATION:https://orders.example.com:8443/1",
        "Set-Cookie: a=1; Secure; HttpOnly",
        "content-location:  https://orders.example.com:8443/2",
        "Location: https://elsewhere.test/",
        "Refresh: 1; url=https://orders.example.com:8443/3",
        "set-cookie: b=2",
        "Link: <https://orders.example.com:8443/4>; rel=next",
        "Set_Cookie: c; Secure",
    ) == [
        "A:1 ",
        "LOCATION:http://orders.test/1",
        "Set-Cookie: a=1; HttpOnly",
        "content-location:  http://orders.test/2",
        "Location: https://elsewhere.test/",
        "Refresh: 1; url=http://orders.test/3",
        "set-cookie: b=2",
        "Link: <https://orders.example.com:8443/4>; rel=next",
        "Set_Cookie: c; Secure",
    ]


def test_lines_that_connection_names_do_not_shift_the_others() -> None:
    """The places are those after hop-by-hop lines were dropped."""
    assert answered(
        CALL,
        "Set-Cookie: hop=1; Secure",
        "X-Hop: 1",
        "Location: https://orders.example.com:8443/1",
        "B: 2",
        "Refresh: 1; url=https://orders.example.com:8443/3",
        "Connection: x-hop, set-cookie",
    ) == ["Location: http://orders.test/1", "B: 2", "Refresh: 1; url=http://orders.test/3"]


@pytest.mark.parametrize(
    "line",
    [
        "Strict-Transport-Security: max-age=31536000; includeSubDomains",
        "strict-transport-security: max-age=0",
        'Alt-Svc: h3=":8443"; ma=86400',
        "Expect-CT: max-age=1, enforce",
        'Public-Key-Pins: pin-sha256="x"; max-age=1',
        'Public-Key-Pins-Report-Only: pin-sha256="x"; max-age=1',
    ],
)
def test_what_only_a_tls_client_may_act_on_is_left_out(line: str) -> None:
    """A caller that obeyed it would go past sidecert, or refuse to come back."""
    assert sent(answer("A: 1", line, "B: 2")) == ["A: 1", "B: 2"]


def test_an_ordinary_answer_has_nothing_special() -> None:
    """So it costs one look at an empty list."""
    lines = ["Date: x", "Server: x", "Cookie: a=1", "Content-Security-Policy: upgrade-insecure-requests"]
    head = answer(*lines)
    assert head.special == []
    assert sent(head) == lines


def test_a_request_keeps_headers_that_are_rewritten_in_answers() -> None:
    """In a request they mean nothing, so they are data."""
    lines = [
        "Location: https://orders.example.com:8443/",
        "Refresh: 1",
        "Set-Cookie: sidecert-__Host-a=1; Secure",
        "Strict-Transport-Security: max-age=1",
        "Alt-Svc: clear",
        "Upgrade-Insecure-Requests: 1",
        "Origin: http://orders.test",
        "Referer: http://orders.test/a",
    ]
    raw = upstream_head(RequestParser(65536).parse(request("GET /a HTTP/1.1", "Host: x", *lines)), b"y")
    assert raw == request("GET /a HTTP/1.1", "Host: y", *lines)


COOKIES = [
    ("a=1; Secure", "a=1"),
    ("a=1;secure;Path=/", "a=1;Path=/"),
    ("a=1; SECURE ; HttpOnly", "a=1; HttpOnly"),
    ("a=1; Secure=true; Path=/x", "a=1; Path=/x"),
    ("a=1; Secure; Path=/; Secure", "a=1; Path=/"),
    ("a=1; SameSite=None; Secure", "a=1"),
    ("a=1; samesite = none ; Max-Age=5", "a=1; Max-Age=5"),
    ("a=1; SameSite=Lax; Secure", "a=1; SameSite=Lax"),
    ("a=1; Secure; Partitioned; Priority=High", "a=1; Priority=High"),
    ("a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Secure", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
    ("Secure; Path=/", "Secure; Path=/"),
    ("Secure=1; Path=/", "Secure=1; Path=/"),
    ("a=Secure; X-Secure; Comment=Secure", "a=Secure; X-Secure; Comment=Secure"),
    ("a=1;; ;", "a=1;; ;"),
    ("", ""),
    ("__Host-s=1; Path=/; Secure", "sidecert-__Host-s=1; Path=/"),
    (" __Secure-s=1; Secure", " sidecert-__Secure-s=1"),
    ("__HOST-s=__Host-t; Secure", "sidecert-__HOST-s=__Host-t"),
    ("__Host-s", "__Host-s"),
    ("__Hosts=1", "__Hosts=1"),
    ("_Host-s=1", "_Host-s=1"),
    ("a=__Host-s=1", "a=__Host-s=1"),
    ("sidecert-s=1", "sidecert-s=1"),
    ("sidecert-__Host-s=1", "sidecert-sidecert-__Host-s=1"),
]


@pytest.mark.parametrize(("value", "rewritten"), COOKIES)
def test_a_cookie_loses_only_what_needs_tls(value: str, rewritten: str) -> None:
    """Order and bytes of the rest stay."""
    assert rewrite_cookie(value.encode(), "orders.test", plain=True) == rewritten.encode()


@pytest.mark.parametrize("value", [value for value, _ in COOKIES])
def test_a_caller_of_an_https_address_gets_its_cookies_secure(value: str) -> None:
    """It takes the answer for one that came by TLS."""
    assert rewrite_cookie(value.encode(), "orders.test", plain=False) == value.encode()
    raw = request("GET https://orders.test/ HTTP/1.1", "Host: orders.test")
    assert answered(raw, f"Set-Cookie: {value}") == [f"Set-Cookie: {value}"]


@pytest.mark.parametrize(
    ("host", "domain", "stays"),
    [
        ("orders.test", "orders.test", True),
        ("Orders.Test", ".ORDERS.test", True),
        ("api.orders.test", "orders.test", True),
        ("api.orders.test", " orders.test ", True),
        ("orders.test", "", True),
        ("orders.test", "api.orders.test", False),
        ("orders.test", "rders.test", False),
        ("orders.test", "orders.example.com", False),
        ("orders.test", "..orders.test", False),
        ("orders.test", "orders.test.", False),
        ("orders.test.", "orders.test", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.1", False),
        ("127.0.0.1", "orders.example.com", False),
        ("::ffff:127.0.0.1", "0.0.1", False),
        (None, "orders.test", False),
        (None, "", True),
    ],
)
def test_a_domain_stays_where_the_callers_host_is_in_it(host: str | None, domain: str, stays: bool) -> None:
    """Without it the cookie is for the host that was called, with a foreign one it is for nobody."""
    for plain in (True, False):
        kept = f"a=1; Domain={domain}; Path=/"
        wanted = kept if stays else "a=1; Path=/"
        assert rewrite_cookie(kept.encode(), host, plain=plain) == wanted.encode()


@pytest.mark.parametrize(
    ("value", "restored"),
    [
        ("sidecert-__Host-s=1", "__Host-s=1"),
        ("a=b; sidecert-__Secure-s=1; c", "a=b; __Secure-s=1; c"),
        ("sidecert-__host-a=1;sidecert-__SECURE-b=2", "__host-a=1;__SECURE-b=2"),
        ("sidecert-sidecert-__Host-s=1", "sidecert-__Host-s=1"),
        ("sidecert-s=1; a=sidecert-__Host-s=1", "sidecert-s=1; a=sidecert-__Host-s=1"),
        ("sidecert-__Host-s; sidecert-__Hosts=1", "sidecert-__Host-s; sidecert-__Hosts=1"),
        ("Sidecert-__Host-s=1; xsidecert-__Host-s=1", "Sidecert-__Host-s=1; xsidecert-__Host-s=1"),
        ("__Host-s=1", "__Host-s=1"),
        ("", ""),
    ],
)
def test_only_names_that_were_hidden_are_restored(value: str, restored: str) -> None:
    """In the request's Cookie lines, whose other bytes stay."""
    lines = (f"cookie:{value}", "X-Cookie: sidecert-__Host-s=1")
    head = RequestParser(65536).parse(request("GET / HTTP/1.1", "Host: x", *lines, "Connection: x-hop"))
    assert upstream_head(head, b"x") == request("GET / HTTP/1.1", "Host: x", f"cookie:{restored}", lines[1])
    assert head.headers[1] == (b"cookie", value.encode())


# -- properties -----------------------------------------------------------------------------------------

blanks = st.text(" \t", max_size=2)
names = st.builds(
    lambda marks, prefix, rest: "sidecert-" * marks + prefix + rest,
    st.integers(0, 3),
    st.sampled_from(["", "__Host-", "__Secure-", "__hOST-", "__Host", "_Host-", "Secure", "sidecert", "-"]),
    st.text("ab_-$. sSecure", max_size=6).map(str.strip),
)
pieces = [*"/\\@:?#.'%é \t", "https:", "//", "8443", "443", "[::1]", "orders.example.com", "evil.test"]
junk = st.lists(st.sampled_from(pieces), max_size=5).map("".join)
addresses = st.builds(
    lambda before, scheme, host, port, after: f"{before}{scheme}{host}{port}{after}".encode("latin-1"),
    blanks,
    st.sampled_from(["https://", "HTTPS://", "//", "http://", "https:", "/", ""]),
    st.sampled_from(["orders.example.com", "ORDERS.example.com.", "evil.test", "a@orders.example.com"])
    | junk,
    st.sampled_from([":8443", ":08443", ":443", ":", ""]),
    junk,
)


@given(addresses)
@example(b"https://orders.example.com:8443@evil.test")
def test_whatever_is_rewritten_was_the_upstreams_own_address(value: bytes) -> None:
    """An independent and slower reading of RFC 3986 agrees; all else stays byte for byte."""
    rewritten = rewrite_location(value, OWN, BASE)
    if rewritten == value:
        return
    # RFC 3986 appendix B
    found = re.fullmatch(rb"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?", value.strip(b" \t"))
    assert found is not None
    assert (found[1] or b"https").lower() == b"https"
    host, _, port = found[2].strip(b" \t'").rpartition(b":")
    assert host.lower().removesuffix(b".") == b"orders.example.com"
    assert int(port) == 8443
    _, own, rest = re.split(rb"(8443)", value, maxsplit=1)
    assert own
    assert rewritten.lstrip(b" \t") == BASE + rest


@given(junk.map(lambda rest: f"https://orders.example.com:8443/{rest}".encode("latin-1")))
def test_a_relative_address_never_leaves_the_host(value: bytes) -> None:
    """As browsers read it: tabs are skipped and `\\` is `/`."""
    relative = rewrite_location(value, OWN, b"")
    read = relative.replace(b"\t", b"").replace(b"\\", b"/")
    assert read.startswith(b"/")
    assert not read.startswith(b"//")


@given(st.binary(max_size=40), st.sampled_from([BASE, b""]))
def test_arbitrary_values_of_all_kinds_stay(value: bytes, base: bytes) -> None:
    """What has no address of the upstream in it is not touched, whatever it is."""
    assert rewrite_location(value, OWN, base) == value
    assert rewrite_refresh(value, OWN, base) == value
    assert restore(value) == value


@given(names, blanks, st.text("ab=\"' /,", max_size=8))
def test_hidden_names_come_back_as_they_were(name: str, before: str, content: str) -> None:
    """Also such as an upstream gives in the hidden form itself."""
    pair = f"{before}{name}={content}".encode()
    hidden = hide(pair)
    assert restore(hidden) == pair
    assert restore(b"a=b;" + hidden + b"; c=d") == b"a=b;" + pair + b"; c=d"
    assert not re.match(rb"(?i)\s*__(host|secure)-", hidden)


@given(names, names)
def test_two_cookies_never_get_one_name(first: str, second: str) -> None:
    """Hiding keeps different names different."""
    assert (hide(f"{first}=".encode()) == hide(f"{second}=".encode())) == (first == second)


attributes = st.builds(
    lambda before, attribute, after: before + attribute + after,
    blanks,
    st.sampled_from(
        [
            *("Secure", "secure=x", "Partitioned", "SameSite=None", "SameSite=Strict", "HttpOnly", "Path=/a"),
            *("Domain=orders.test", "Domain=test", "Domain=evil.test", "Max-Age=1", "Secured", "X=Secure"),
        ]
    )
    | st.text("abS=-", max_size=5),
    blanks,
)


@given(names, st.lists(attributes, max_size=6))
def test_a_cookie_keeps_the_order_and_bytes_of_what_stays(name: str, parts: list[str]) -> None:
    """What is dropped is a foreign Domain or needs TLS, and a second pass finds nothing more to drop."""
    value = ";".join([f"{name}=v", *parts]).encode()
    rewritten = rewrite_cookie(value, "orders.test", plain=True)
    pair, *kept = rewritten.split(b";")
    left = iter(kept)
    upcoming = next(left, None)
    for part in parts:
        if upcoming == part.encode():
            upcoming = next(left, None)
        else:
            assert re.fullmatch(r"(?i)\s*(secure(=.*)?|partitioned|samesite=none|domain=evil\.test)\s*", part)
    assert upcoming is None
    assert pair == hide(f"{name}=v".encode())
    assert rewrite_cookie(rewritten, "orders.test", plain=True).split(b";")[1:] == kept
