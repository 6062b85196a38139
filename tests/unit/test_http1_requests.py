"""Request heads: what is taken, what is refused and how, and what goes upstream."""

from __future__ import annotations

import re

import pytest

from sidecert.errors import Refusal
from sidecert.http1 import (
    CHUNKED,
    RequestHead,
    RequestParser,
    ResponseParser,
    find_head,
    malformed,
    upstream_head,
)
from support.malformed import HEADER_BYTES, REFUSED_HEADS, head_bytes


def parse(first: str | bytes, *lines: str | bytes) -> RequestHead:
    return RequestParser(HEADER_BYTES).parse(head_bytes(first, *lines))


def get(*lines: str | bytes) -> RequestHead:
    """A GET with a Host and these header lines."""
    return parse("GET /a?b=c HTTP/1.1", "Host: example.com", *lines)


def refusal(first: str | bytes, *lines: str | bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(first, *lines)
    return caught.value


def sent(head: RequestHead) -> list[bytes]:
    """The lines that go upstream."""
    raw = upstream_head(head, b"example.com:8443")
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


@pytest.mark.parametrize(("first", "lines", "status", "words"), REFUSED_HEADS)
def test_malformed_and_ambiguous_heads_are_refused_with_words(
    first: str | bytes, lines: list[str | bytes], status: int, words: str
) -> None:
    """Each is refused with its status, and the words say what is wrong and what would be right."""
    found = refusal(first, *("Host: example.com" if line == "X" else line for line in lines))
    assert found.status == status
    assert words in found.detail + found.remedy
    assert found.detail.endswith(".")
    assert found.remedy or "malformed: " in found.detail
    assert (found.outcome, found.status) in {
        ("bad_request", 400),
        ("connect_not_allowed", 403),
        ("header_too_large", 431),
        ("method_unknown", 501),
    }


def test_refusals_never_quote_a_header_value_or_a_query() -> None:
    """What may be a secret stays out of the words."""
    for found in (
        refusal("GET / HTTP/1.1", "Host: example.com", b"Authorization: hunter2\x01"),
        refusal("GET / HTTP/1.1", "Host: example.com", b"Authorization: hunter2\n"),
        refusal('GET /?token=hunter2" HTTP/1.1', "Host: example.com"),
        refusal("GET http://alice:hunter2@example.com/ HTTP/1.1", "Host: example.com"),
        refusal("GET / HTTP/1.1", "Host: alice:hunter2@example.com"),
    ):
        assert "hunter2" not in str(found) + found.detail + found.remedy


@pytest.mark.parametrize(
    ("first", "host_line", "expected"),
    [
        ("GET /a?b HTTP/1.1", "Host: example.com", ("http", "example.com", None, b"/a", b"/a?b")),
        ("GET / HTTP/1.1", "Host: example.com:8080", ("http", "example.com", 8080, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: example.com:", ("http", "example.com", None, b"/", b"/")),
        ("GET / HTTP/1.1", "Host:\texample.com.\t ", ("http", "example.com.", None, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: Example.COM", ("http", "Example.COM", None, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: my_host", ("http", "my_host", None, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: 10.1.2.3:81", ("http", "10.1.2.3", 81, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: [::1]", ("http", "::1", None, b"/", b"/")),
        ("GET / HTTP/1.1", "Host: [2001:db8::1]:81", ("http", "2001:db8::1", 81, b"/", b"/")),
        ("GET //a//b?/c HTTP/1.1", "Host: x", ("http", "x", None, b"//a//b", b"//a//b?/c")),
        ("GET /a%2Fb?%41 HTTP/1.1", "Host: x", ("http", "x", None, b"/a%2Fb", b"/a%2Fb?%41")),
        ("GET /?q={[a]|b}^`c HTTP/1.1", "Host: x", ("http", "x", None, b"/", b"/?q={[a]|b}^`c")),
        ("GET http://a.b:81/c?d HTTP/1.1", "Host: x", ("http", "a.b", 81, b"/c", b"/c?d")),
        ("GET HTTPS://a.b/c HTTP/1.1", "Host: x", ("https", "a.b", None, b"/c", b"/c")),
        ("GET http://a.b HTTP/1.1", "Host: x", ("http", "a.b", None, b"/", b"/")),
        ("GET http://a.b?c HTTP/1.1", "Host: x", ("http", "a.b", None, b"/", b"/?c")),
        ("GET http://[::1]:82/ HTTP/1.1", "Host: x", ("http", "::1", 82, b"/", b"/")),
        ("OPTIONS http://a.b HTTP/1.1", "Host: x", ("http", "a.b", None, b"*", b"*")),
        ("OPTIONS http://a.b/ HTTP/1.1", "Host: x", ("http", "a.b", None, b"/", b"/")),
        ("OPTIONS * HTTP/1.1", "Host: x", ("http", "x", None, b"*", b"*")),
    ],
)
def test_destination_is_taken_apart(first: str, host_line: str, expected: tuple[object, ...]) -> None:
    """Origin-, absolute- and asterisk-form; an absolute-form wins over Host (RFC 9112 3.2)."""
    head = parse(first, host_line)
    assert (head.scheme, head.host, head.port, head.path, head.origin_target) == expected
    assert head.target == first.split(" ")[1].encode()
    assert sent(head)[0] == b"%b %b HTTP/1.1" % (head.method, head.origin_target)


def test_http_1_0_needs_no_host_and_gets_one() -> None:
    """Without Host the listener must decide; upstream it is HTTP/1.1 with a Host first."""
    head = parse("GET /a HTTP/1.0", "A: b")
    assert (head.host, head.port, head.minor, head.keep_alive) == (None, None, 0, False)
    assert sent(head) == [b"GET /a HTTP/1.1", b"Host: example.com:8443", b"A: b"]


METHODS = """
    GET HEAD POST PUT DELETE OPTIONS PATCH TRACE PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK SEARCH REPORT
    MKACTIVITY CHECKOUT MERGE PURGE LINK UNLINK BIND REBIND UNBIND ACL SUBSCRIBE UNSUBSCRIBE NOTIFY M-SEARCH
    MKCALENDAR QUERY
"""


@pytest.mark.parametrize("method", METHODS.split())
def test_methods_of_all_kinds_are_taken(method: str) -> None:
    """WebDAV and other registered methods go through."""
    assert parse(f"{method} / HTTP/1.1", "Host: x").method == method.encode()


@pytest.mark.parametrize(
    ("lines", "body", "line"),
    [
        ([], 0, None),
        (["Content-Length: 0"], 0, b"Content-Length: 0"),
        (["Content-Length: 5"], 5, b"Content-Length: 5"),
        (["content-length:005 \t"], 5, b"content-length: 5"),
        (["Content-Length: 000"], 0, b"Content-Length: 0"),
        (["Content-Length: " + "9" * 18], 10**18 - 1, b"Content-Length: " + b"9" * 18),
        (["Transfer-Encoding: chunked"], CHUNKED, b"Transfer-Encoding: chunked"),
        (["TRANSFER-encoding: \tChunked "], CHUNKED, b"TRANSFER-encoding: chunked"),
    ],
)
def test_body_is_framed_once_and_canonically(lines: list[str], body: int, line: bytes | None) -> None:
    """The framing header stays in its place, its value written so that nobody reads it otherwise."""
    head = parse("POST / HTTP/1.1", "Host: x", *lines, "A: b")
    assert head.body == body
    assert sent(head) == [
        b"POST / HTTP/1.1",
        b"Host: example.com:8443",
        *([] if line is None else [line]),
        b"A: b",
    ]


@pytest.mark.parametrize(
    ("version", "lines", "keep_alive"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: keep-alive"], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: CLOSE"], False),
        ("1.1", ["Connection: keep-alive, close"], False),
        ("1.1", ["Connection: a,, ,close"], False),
        ("1.1", ["Connection: keep-alive", "Connection: close"], False),
        ("1.1", ["Connection: " + "a, " * 50 + "close"], False),
        ("1.1", ["Connection: closed"], True),
        ("1.1", ["Connection:"], True),
        ("1.1", ["Proxy-Connection: close"], True),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: keep-alive, close"], False),
        ("1.0", ["Proxy-Connection: keep-alive"], False),
    ],
)
def test_keep_alive_is_computed_from_connection_only(
    version: str, lines: list[str], keep_alive: bool
) -> None:
    """RFC 9112 9.3; `close` wins, Proxy-Connection means nothing."""
    head = parse(f"GET / HTTP/{version}", "Host: x", *lines)
    assert head.keep_alive is keep_alive
    assert sent(head) == [b"GET / HTTP/1.1", b"Host: example.com:8443"]


def test_hop_by_hop_headers_and_look_alikes_are_dropped() -> None:
    """What belongs to one hop, and what says who a TLS caller was, does not go upstream."""
    dropped = [
        "Connection: keep-alive, X-Hop, TE",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "Proxy-Authenticate: Basic",
        "TE: trailers",
        "x-HOP: 1",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Content_Length: 7",
        "Transfer_Encoding: chunked",
        "X-Forwarded-Client-Cert: Hash=1",
        "X-SSL-Client-Cert: x",
        "X-SSL-Client-Verify: SUCCESS",
        "X_SSL_CLIENT_S_DN: CN=bob",
        "X-Client-Cert: x",
        "X-Client-Certificate: x",
        "Client-Cert: :x:",
        "Client-Cert-Chain: :x:",
        "SSL-Client-Cert: x",
        "SSL_CLIENT_VERIFY: SUCCESS",
        "X-Forwarded-Tls-Client-Cert: x",
        "X-ARR-ClientCert: x",
        "X-Amzn-Mtls-Clientcert-Subject: CN=bob",
    ]
    kept = ["A: 1", "X-Client-Id: 7", "Cookie: a=b", "Trailer: X-Sum", "User-Agent: HttpClient", "a: 2"]
    mixed = [line for pair in zip(dropped, kept * 4, strict=True) for line in pair]
    head = get(*mixed)
    assert sent(head) == [
        b"GET /a?b=c HTTP/1.1",
        b"Host: example.com:8443",
        *(line.encode() for line in kept * 4),
    ]
    assert len(head.headers) == 1 + len(mixed)


@pytest.mark.parametrize(
    "name",
    [
        *("WL-Proxy-Client-Cert", "WL-Proxy-Client-IP", "wl_proxy_client_cert", "$WSCC", "$WSSN", "$wsis"),
        *("X-SSL-Subject", "X-SSL-Issuer", "X-SSL-Verify", "X-SSL-Serial", "X-SSL-Subject-CN", "SSL-Subject"),
        *("SSL-Subject-Dn", "SSL_ISSUER_DN", "SSL-Verify", "SSL-Serial", "X-SSL-S-DN", "X-SSL-I-DN"),
        *("X-Client-S-DN", "X-Client-I-DN", "X-Client-Verified", "X-Client-Verify", "Client-Verified"),
        *("Cf-Client-Cert-Sha256", "X-Cert-Subject", "X_CERT_DN", "X-Cert-Hash"),
        *("Cf-Cert-Verified", "Cf-Cert-Subject-DN", "X-SSL-DN", "SSL_DN", "X-SSL-User", "X-Client-CN"),
        *("Client-CN", "X-Client-Subject", "X-Client-SSL-Cert", "SSLClientCert", "X-SSLClientCert-Dn"),
        *("X-Subject-DN", "X-TLS-Subject", "X-Certificate", "X-Peer-Cert", "WL-Proxy-SSL"),
        *("SSL.Client.Verify", "x.ssl_client.cert", "Content.Length", "Transfer.Encoding"),
        *("X-Forwarded-SSL-Certificate", "CloudFront-Viewer-Cert-Subject", "CloudFront-Viewer-Cert-Pem"),
    ],
)
def test_no_name_by_which_a_proxy_tells_the_caller_goes_upstream(name: str) -> None:
    """An upstream that sits behind such a proxy elsewhere would believe our caller."""
    assert sent(get(f"{name}: CN=bob", "A: 1")) == [*sent(get()), b"A: 1"]


@pytest.mark.parametrize(
    "name",
    [
        *("X-Original-URL", "X-Rewrite-URL", "x_original_url", "X-Original-URI", "X-Forwarded-Uri"),
        *("X-Envoy-Original-Path", "x.original.url"),
    ],
)
def test_a_header_that_names_another_path_does_not_go_upstream(name: str) -> None:
    """The route, and so the certificate, was chosen by the path of the request line."""
    assert sent(get(f"{name}: /admin", "A: 1")) == [*sent(get()), b"A: 1"]


@pytest.mark.parametrize(
    "name",
    [
        *("Cert-Order", "X-Certainty", "X-SSL-Cipher", "X-Client-Version", "X-Original-Host", "Cf-Ray"),
        *("X-Client-CNonce", "X-Certificate-Number", "Certificate", "X-Remote-User", "X.Y", "WL-Proxy-X"),
    ],
)
def test_names_that_only_look_like_those_go_upstream(name: str) -> None:
    """They say nothing of who called."""
    assert sent(get(f"{name}: 1")) == [*sent(get()), f"{name}: 1".encode()]


def test_what_may_stay_keeps_its_order_case_and_bytes() -> None:
    """Blanks, duplicates, odd case, empty values and bytes beyond ASCII go through as they came."""
    lines = [
        b"b:1",
        b"A:  2 \t",
        b"a: 3",
        b"Empty:",
        b"X: caf\xe9 \xff",
        b"A: 2",
        b"x_y: 1",
        b"sidecert-outcome: z",
    ]
    raw = head_bytes("GET /a HTTP/1.1", *lines[:3], "hOsT:  example.com ", *lines[3:])
    head = RequestParser(HEADER_BYTES).parse(raw)
    assert sent(head) == [b"GET /a HTTP/1.1", *lines[:3], b"hOsT: example.com:8443", *lines[3:]]
    assert head.headers[1] == (b"A", b"2")
    assert head.headers[3] == (b"hOsT", b"example.com")
    assert sent(head) == sent(head)


def test_headers_named_by_connection_go_and_host_stays_in_place() -> None:
    """Dropping lines before and after Host moves it with them."""
    head = parse("GET / HTTP/1.1", "X-A: 1", "B: 2", "Host: x", "x-a: 3", "C: 4", "Connection: x-A")
    assert sent(head) == [b"GET / HTTP/1.1", b"B: 2", b"Host: example.com:8443", b"C: 4"]


@pytest.mark.parametrize(
    ("version", "lines", "expected", "passed_on"),
    [
        ("1.1", ["Expect: 100-continue", "Content-Length: 5"], True, True),
        ("1.1", ["expect: 100-Continue", "Transfer-Encoding: chunked"], True, True),
        ("1.1", ["Expect: 100-continue", "Content-Length: 0"], False, True),
        ("1.1", ["Expect: 100-continue"], False, True),
        ("1.1", ["Expect: something-else", "Content-Length: 5"], False, True),
        ("1.0", ["Expect: 100-continue", "Content-Length: 5"], False, False),
    ],
)
def test_expect_continue_counts_only_with_a_body_in_http_1_1(
    version: str, lines: list[str], expected: bool, passed_on: bool
) -> None:
    """RFC 9110 10.1.1; Expect goes upstream, which is who says to go on."""
    head = parse(f"POST / HTTP/{version}", "Host: x", *lines)
    assert head.expect_continue is expected
    assert any(line.lower().startswith(b"expect:") for line in sent(head)) is passed_on


@pytest.mark.parametrize(
    ("version", "lines", "upgrade"),
    [
        ("1.1", ["Upgrade: websocket", "Connection: Upgrade"], b"websocket"),
        ("1.1", ["Connection: keep-alive, upgrade", "Upgrade: a, b", "Upgrade: c/2"], b"a, b, c/2"),
        ("1.1", ["Connection: upgrade", "Upgrade: websocket", "Content-Length: 0"], b"websocket"),
        ("1.1", ["Upgrade: websocket"], None),
        ("1.1", ["Connection: upgrade"], None),
        ("1.1", ["Connection: upgrade", "Upgrade:"], None),
        ("1.1", ["Connection: upgrade", "Upgrade: websocket", "Content-Length: 5"], None),
        ("1.1", ["Connection: upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"], None),
        ("1.1", ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"], None),
        ("1.1", ["Connection: upgrade", "Upgrade: websocket, H2C"], None),
        ("1.1", ["Connection: upgrade", "Upgrade: TLS/1.0"], None),
        ("1.0", ["Connection: upgrade", "Upgrade: websocket"], None),
    ],
)
def test_upgrade_is_passed_on_only_when_asked_for_properly(
    version: str, lines: list[str], upgrade: bytes | None
) -> None:
    """Connection must name it, there must be no body, and h2c and TLS would go around the routes."""
    head = parse(f"GET / HTTP/{version}", "Host: x", *lines)
    assert head.upgrade == upgrade
    last = sent(head)[-2:]
    assert (last == [b"Connection: Upgrade", b"Upgrade: %b" % (upgrade or b"")]) is (upgrade is not None)
    assert any(b"pgrade" in line for line in sent(head)) is (upgrade is not None)


def test_a_parser_serves_heads_of_all_kinds_one_after_the_other() -> None:
    """No head leaves anything behind: bodies, upgrades and refusals do not change how the next is read."""
    parser = RequestParser(HEADER_BYTES)
    plain = head_bytes("GET /plain HTTP/1.1", "Host: x")
    for other in (
        head_bytes("POST / HTTP/1.1", "Host: x", "Content-Length: 5"),
        head_bytes("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"),
        head_bytes("GET / HTTP/1.1", "Host: x", "Connection: upgrade", "Upgrade: websocket"),
        head_bytes("GET / HTTP/1.1", "Host: x", "Proxy-Connection: close"),
        head_bytes("GET / HTTP/1.0"),
    ):
        parser.parse(other)
        assert parser.parse(plain).path == b"/plain"
    with pytest.raises(Refusal):
        parser.parse(head_bytes("BAD / HTTP/1.1", "Host: x"))
    assert parser.parse(plain).path == b"/plain"


def test_find_head_finds_the_end_wherever_the_bytes_are_cut() -> None:
    """Searching on from three bytes before the old end finds the same place as searching all at once."""
    for lead in (b"", b"\r\n", b"\r\n\r\n"):
        raw = lead + head_bytes("GET / HTTP/1.1", "Host: x")
        whole = raw + b"GET /next"
        assert find_head(whole) == len(raw)
        assert find_head(bytearray(whole)) == len(raw)
        buffer = bytearray()
        for byte in whole:
            start = max(0, len(buffer) - 3)
            buffer.append(byte)
            end = find_head(buffer, start)
            assert (end == len(raw)) is (len(buffer) >= len(raw) and start <= len(raw) - 4)
            if end >= 0:
                assert RequestParser(HEADER_BYTES).parse(bytes(buffer[:end])).host == "x"
                break


@pytest.mark.parametrize(
    "raw", [b"\r\n" * 3, b"\r\n" * 4, b"\r\n" * 3 + head_bytes("GET / HTTP/1.1", "Host: x")]
)
def test_more_than_two_empty_lines_before_a_head_are_refused(raw: bytes) -> None:
    """They can never be told from junk."""
    with pytest.raises(Refusal, match="request line is malformed"):
        RequestParser(HEADER_BYTES).parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
    ],
)
def test_what_is_not_exactly_one_head_is_refused(raw: bytes) -> None:
    """Not even a mistake of our own may make one head of two."""
    with pytest.raises(Refusal) as caught:
        RequestParser(HEADER_BYTES).parse(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x16", "TLS arrived"),
        (b"\x16\x03\x01\x02\x00\n\x00", "TLS arrived"),
        (b"GET / HTTP/1.1\n", "bare LF"),
        (b"GET / HTTP/1.1\r\nHost: x\n", "bare LF"),
        (b"GET / HTTP/1.1\rHost: x", "bare CR"),
        (b"GET /\r\n", "request line is malformed"),
        (b"EHLO me\r\n", "request line is malformed"),
        (b"\r\n\r\n\r\n", "request line is malformed"),
        (b"PRI * HTTP/2.0\r\n", "HTTP/2"),
        (b"G@T / HTTP/1.1\r\n", "method is malformed"),
        (b"\nGET / HTTP/1.1\r\n", "bare LF"),
        (b"GET / HTTP/1.1\r\n" + b"A:\r\n" * 201, "more than 200 headers"),
        (b"x" * (HEADER_BYTES + 1), "larger than 65536"),
    ],
)
def test_a_hopeless_start_is_refused_before_its_end(start: bytes, words: str) -> None:
    """A caller that speaks something else is told at once, not after a timeout."""
    with pytest.raises(Refusal) as caught:
        RequestParser(HEADER_BYTES).check_partial(bytearray(start))
    assert words in caught.value.detail
    assert caught.value.remedy


def feed_byte_by_byte(parser: RequestParser, start: bytes) -> None:
    for end in range(len(start)):
        parser.check_partial(start[: end + 1], end)


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\nx",
        b"GET / HTTP/1.1\r\nA: b\n",
        b"GET / HTTP/1.1\r\n\nx",
        b"GET / HTTP/1.1\rx",
        b"GET / HTTP/1.1\r\nA: b\r\r\nx",
        b"GET / HTTP/1.1\r\nA: b\r\n\nx",
        b"GET /\r\n",
        b"\r\n\r\nGET /\r\n",
        b"GET / HTTP/1.1\r\n" + b"A:\r\n" * 201,
    ],
)
def test_a_hopeless_start_is_refused_when_it_comes_byte_by_byte(start: bytes) -> None:
    """Each byte is looked at once and the fault is still seen, in the same words."""
    parser = RequestParser(HEADER_BYTES)
    with pytest.raises(Refusal) as whole:
        parser.check_partial(start)
    with pytest.raises(Refusal, match=re.escape(whole.value.detail)):
        feed_byte_by_byte(parser, start)


def test_pieces_that_end_in_a_cr_cost_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CR may be half of a CRLF. It once cost a search over all that had come, at each piece."""
    monkeypatch.setattr(malformed, "_LONE_CR_OR_LF", None)
    for first, check in (
        (b"GET / HTTP/1.1\r", RequestParser(HEADER_BYTES).check_partial),
        (b"HTTP/1.1 200 OK\r", ResponseParser().check_partial),
    ):
        start, scanned = first, 0
        for _ in range(200):
            check(start, scanned)
            start, scanned = start + b"\nA: b\r", len(start)


def test_no_prefix_of_a_good_head_is_refused_early() -> None:
    """The early check never speaks before it can know."""
    parser = RequestParser(HEADER_BYTES)
    raw = b"\r\n\r\n" + head_bytes("POST /a HTTP/1.1", "Host: x", b"A: \xe9", "Content-Length: 5")
    for end in range(len(raw)):
        parser.check_partial(raw[:end])
        parser.check_partial(raw[:end], max(0, end - 1))


def test_the_caps_hold_exactly() -> None:
    """200 header lines and `header_bytes` bytes are fine, one more is not."""
    assert len(parse("GET / HTTP/1.1", "Host: x", *["A: b"] * 199).headers) == 200
    raw = head_bytes("GET / HTTP/1.1", "Host: x")
    assert RequestParser(len(raw)).parse(raw).host == "x"
    with pytest.raises(Refusal, match="header_too_large"):
        RequestParser(len(raw) - 1).parse(raw)
