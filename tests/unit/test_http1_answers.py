"""Heads of answers: what is passed on, what is not, and how it is framed for the caller."""

from __future__ import annotations

import pytest

from sidecert.errors import BadAnswer
from sidecert.http1 import CHUNKED, UNTIL_CLOSE, ResponseHead, ResponseParser, downstream_head
from support.malformed import BAD_HEADS, head_bytes


def parse(
    first: str | bytes, *lines: str | bytes, method: bytes = b"GET", upgrade: bytes | None = None
) -> ResponseHead:
    return ResponseParser().parse(head_bytes(first, *lines), method, upgrade)


def sent(
    head: ResponseHead, *, caller_minor: int = 1, keep_alive: bool = True, body: int | None = None
) -> list[bytes]:
    """The lines that go downstream."""
    framing = head.body if body is None else body
    raw = downstream_head(head, caller_minor=caller_minor, keep_alive=keep_alive, body=framing)
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


@pytest.mark.parametrize(("first", "lines", "words"), BAD_HEADS)
def test_malformed_and_ambiguous_answers_are_bad(
    first: str | bytes, lines: list[str | bytes], words: str
) -> None:
    """None of them is passed on, and the words say what is wrong."""
    with pytest.raises(BadAnswer) as caught:
        parse(first, *lines)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("method", "first", "lines", "body", "keep_alive"),
    [
        (b"GET", "HTTP/1.1 200 OK", ["Content-Length: 5"], 5, True),
        (b"GET", "HTTP/1.1 200 OK", ["Content-Length: 0"], 0, True),
        (b"GET", "HTTP/1.1 200 OK", ["Transfer-Encoding: Chunked "], CHUNKED, True),
        (b"GET", "HTTP/1.1 200 OK", [], UNTIL_CLOSE, False),
        (b"GET", "HTTP/1.1 200 OK", ["Connection: keep-alive"], UNTIL_CLOSE, False),
        (b"GET", "HTTP/1.1 200 OK", ["Content-Length: 5", "Connection: close"], 5, False),
        (b"GET", "HTTP/1.1 200 OK", ["Content-Length: 5", "Connection: keep-alive, Close"], 5, False),
        (b"GET", "HTTP/1.0 200 OK", ["Content-Length: 5"], 5, False),
        (b"GET", "HTTP/1.0 200 OK", ["Content-Length: 5", "Connection: Keep-Alive"], 5, True),
        (b"GET", "HTTP/1.0 200 OK", ["Connection: Keep-Alive"], UNTIL_CLOSE, False),
        (b"HEAD", "HTTP/1.1 200 OK", ["Content-Length: 5"], 0, True),
        (b"HEAD", "HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], 0, True),
        (b"HEAD", "HTTP/1.1 200 OK", [], 0, True),
        (b"GET", "HTTP/1.1 204 No Content", [], 0, True),
        (b"GET", "HTTP/1.1 204 No Content", ["Content-Length: 0"], 0, True),
        (b"GET", "HTTP/1.1 204 No Content", ["Content-Length: 5"], 0, False),
        (b"GET", "HTTP/1.1 204 No Content", ["Transfer-Encoding: chunked"], 0, False),
        (b"GET", "HTTP/1.1 304 Not Modified", ["Content-Length: 5"], 0, True),
        (b"GET", "HTTP/1.1 304 Not Modified", ["Transfer-Encoding: chunked"], 0, False),
        (b"GET", "HTTP/1.1 100 Continue", [], 0, True),
        (b"GET", "HTTP/1.1 100 Continue", ["Content-Length: 0"], 0, True),
        (b"GET", "HTTP/1.1 103 Early Hints", ["Link: </a>"], 0, True),
        (b"POST", "HTTP/1.1 205 Reset Content", ["Content-Length: 0"], 0, True),
    ],
)
def test_body_and_reuse_of_the_upstream_connection(
    method: bytes, first: str, lines: list[str], body: int, keep_alive: bool
) -> None:
    """RFC 9112 6.3; where bytes may follow that nobody expects, the connection is not used again."""
    head = parse(first, *lines, method=method)
    assert (head.body, head.keep_alive) == (body, keep_alive)


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ("HTTP/1.1 200 OK", b"HTTP/1.1 200 OK"),
        ("HTTP/1.0 200 Fine by me", b"HTTP/1.1 200 Fine by me"),
        ("HTTP/1.1 404", b"HTTP/1.1 404 Not Found"),
        ("HTTP/1.1 404 ", b"HTTP/1.1 404 Not Found"),
        ("HTTP/1.1 299", b"HTTP/1.1 299 Unknown"),
        (b"HTTP/1.1 200 O\x01\x1bK\x7f", b"HTTP/1.1 200 O  K"),
        (b"HTTP/1.1 200 caf\xe9", b"HTTP/1.1 200 caf\xe9"),
        ("HTTP/1.1 200 " + "long " * 20 + "reason", b"HTTP/1.1 200 " + b"long " * 20 + b"reason"),
    ],
)
def test_status_line_is_http_1_1_with_a_sane_reason(first: str | bytes, line: bytes) -> None:
    """A missing reason gets the usual words, control characters become blanks."""
    head = parse(first, "Content-Length: 0")
    assert sent(head) == [line, b"Content-Length: 0"]
    assert head.reason == line[13:]


def test_what_may_stay_keeps_its_order_case_and_bytes() -> None:
    """Hop-by-hop headers and Sidecert-Outcome go, everything else comes back as it was."""
    kept = [
        b"b:1",
        b"A:  2 \t",
        b"Set-Cookie: a=1",
        b"set-cookie: b=2",
        b"X: \xff",
        b"Trailer: X-Sum",
        b"Host: odd",
    ]
    head = parse(
        "HTTP/1.1 200 OK",
        *kept[:4],
        "content-LENGTH: 05",
        "Connection: keep-alive, X-Hop, Content-Length",
        "x-hop: 1",
        "Keep-Alive: timeout=5, max=10",
        "Proxy-Authenticate: Basic",
        "Proxy-Connection: close",
        "TE: x",
        "Upgrade: h2,h2c",
        "Content_Length: 7",
        "Transfer_Encoding: chunked",
        "Sidecert-Outcome: ok",
        *kept[4:],
    )
    assert sent(head) == [b"HTTP/1.1 200 OK", *kept[:4], b"content-LENGTH: 5", *kept[4:]]
    assert (head.idle_timeout, head.keep_alive, head.body) == (5, True, 5)
    assert (b"Sidecert-Outcome", b"ok") in head.headers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("timeout=5", 5),
        ("max=1, Timeout = 20", 20),
        ("max=5", None),
        ("timeout=", None),
        ("xtimeout=5", None),
    ],
)
def test_the_upstream_s_idle_timeout_is_read(value: str, seconds: int | None) -> None:
    """Keep-Alive tells how long the upstream keeps an idle connection."""
    assert parse("HTTP/1.1 200 OK", "Content-Length: 0", f"Keep-Alive: {value}").idle_timeout == seconds


CLOSE, KEEP = b"Connection: close", b"Connection: keep-alive"
LENGTH, CODING = b"Content-Length: 5", b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("lines", "caller_minor", "keep_alive", "body", "expected"),
    [
        ([LENGTH, b"A: b"], 1, True, 5, [LENGTH, b"A: b"]),
        ([LENGTH, b"A: b"], 1, False, 5, [LENGTH, b"A: b", CLOSE]),
        ([LENGTH, b"A: b"], 0, True, 5, [LENGTH, b"A: b", KEEP]),
        ([LENGTH, b"A: b"], 0, False, 5, [LENGTH, b"A: b", CLOSE]),
        ([CODING, b"A: b"], 1, True, CHUNKED, [CODING, b"A: b"]),
        ([CODING, b"A: b"], 0, False, UNTIL_CLOSE, [b"A: b", CLOSE]),
        ([CODING, b"A: b"], 0, True, UNTIL_CLOSE, [b"A: b", CLOSE]),
        ([b"A: b"], 1, True, CHUNKED, [b"A: b", CODING]),
        ([b"A: b"], 0, False, UNTIL_CLOSE, [b"A: b", CLOSE]),
        ([CODING, b"A: b"], 1, True, 7, [b"Content-Length: 7", b"A: b"]),
        ([LENGTH, b"A: b"], 1, True, CHUNKED, [CODING, b"A: b"]),
        ([b"A: b"], 1, True, 0, [b"A: b", b"Content-Length: 0"]),
    ],
)
def test_answer_is_framed_for_its_caller(
    lines: list[bytes], caller_minor: int, keep_alive: bool, body: int, expected: list[bytes]
) -> None:
    """Framing towards the caller, and Connection as that caller needs it."""
    head = parse("HTTP/1.1 200 OK", *lines)
    assert sent(head, caller_minor=caller_minor, keep_alive=keep_alive, body=body)[1:] == expected


def test_a_chunked_answer_never_goes_to_an_http_1_0_caller() -> None:
    """It could not read it."""
    with pytest.raises(ValueError, match=r"HTTP/1\.0"):
        sent(parse("HTTP/1.1 200 OK", CODING), caller_minor=0)


@pytest.mark.parametrize(
    ("method", "first", "lines", "expected"),
    [
        (b"HEAD", "HTTP/1.1 200 OK", [LENGTH, b"A: b"], [LENGTH, b"A: b"]),
        (b"HEAD", "HTTP/1.1 200 OK", [CODING, b"A: b"], [b"A: b"]),
        (b"HEAD", "HTTP/1.1 200 OK", [b"A: b"], [b"A: b"]),
        (b"GET", "HTTP/1.1 304 Not Modified", [LENGTH, b"A: b"], [LENGTH, b"A: b"]),
        (b"GET", "HTTP/1.1 304 Not Modified", [CODING, b"A: b"], [b"A: b"]),
        (b"GET", "HTTP/1.1 204 No Content", [LENGTH, b"A: b"], [b"A: b"]),
        (b"HEAD", "HTTP/1.1 204 No Content", [LENGTH, b"A: b"], [b"A: b"]),
        (b"GET", "HTTP/1.1 204 No Content", [b"A: b"], [b"A: b"]),
        (b"GET", "HTTP/1.1 100 Continue", [b"Content-Length: 0"], []),
        (b"GET", "HTTP/1.1 103 Early Hints", [b"Link: </a>"], [b"Link: </a>"]),
    ],
)
def test_answers_without_a_body_get_no_framing(
    method: bytes, first: str, lines: list[bytes], expected: list[bytes]
) -> None:
    """HEAD and 304 keep the Content-Length that they tell of, 204 and 1xx have none (RFC 9110 8.6)."""
    head = parse(first, *lines, method=method)
    assert head.body == 0
    assert sent(head)[1:] == expected


def test_dropping_named_headers_keeps_the_place_of_the_framing() -> None:
    """What Connection names may stand before the framing line."""
    head = parse("HTTP/1.1 200 OK", "X-A: 1", "B: 2", CODING, "C: 3", "Connection: x-a")
    assert sent(head, caller_minor=0, body=UNTIL_CLOSE) == [b"HTTP/1.1 200 OK", b"B: 2", b"C: 3", CLOSE]


def test_a_header_value_may_be_rewritten_before_it_goes_downstream() -> None:
    """`lines` is where a later step changes a Location in place."""
    head = parse("HTTP/1.1 302 Found", "Location: https://a:8443/x", "Content-Length: 0")
    head.lines[1] = b"Location: http://a/x"
    assert sent(head) == [b"HTTP/1.1 302 Found", b"Location: http://a/x", b"Content-Length: 0"]


def test_a_switch_of_protocols_that_was_asked_for_goes_through() -> None:
    """101 with one of the protocols that the request offered."""
    lines = ["Upgrade: WebSocket", "Connection: upgrade", "Sec-WebSocket-Accept: x"]
    head = parse("HTTP/1.1 101 Switching Protocols", *lines, upgrade=b"websocket, other")
    assert (head.status, head.body, head.upgrade) == (101, 0, b"WebSocket")
    assert sent(head) == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Sec-WebSocket-Accept: x",
        b"Connection: Upgrade",
        b"Upgrade: WebSocket",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Upgrade: websocket"],
        ["Connection: upgrade"],
        ["Connection: upgrade", "Upgrade: h2c"],
        ["Connection: upgrade", "Upgrade: websocket, h2c"],
        ["Connection: upgrade", "Upgrade:"],
        ["Connection: upgrade", "Upgrade: websocket", "Content-Length: 5"],
    ],
)
def test_a_switch_to_something_else_is_bad(lines: list[str]) -> None:
    """101 must name, properly, a protocol that the request offered (RFC 9110 7.8)."""
    with pytest.raises(BadAnswer):
        parse("HTTP/1.1 101 Switching Protocols", *lines, upgrade=b"websocket")


def test_an_ordinary_answer_to_an_upgrade_request_has_no_upgrade() -> None:
    """The upstream may ignore the offer."""
    head = parse("HTTP/1.1 200 OK", LENGTH, "Upgrade: websocket", "Connection: upgrade", upgrade=b"websocket")
    assert (head.upgrade, head.body) == (None, 5)
    assert sent(head) == [b"HTTP/1.1 200 OK", LENGTH]


@pytest.mark.parametrize(
    "start",
    [
        b"SSH-2.0-x\r\n",
        b"\x15\x03\x01",
        b"220 mail",
        b"HTTP/2",
        b"HTTP/1.1 200 OK\n",
        b"h",
        b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 201,
        b"HTTP/1.1 200 OK\r\nA:\r\r",
    ],
)
def test_a_hopeless_start_is_bad_before_its_end(start: bytes) -> None:
    """An upstream that speaks something else is known at once, in whatever pieces it comes."""
    with pytest.raises(BadAnswer):
        ResponseParser().check_partial(bytearray(start))
    with pytest.raises(BadAnswer):
        _feed_byte_by_byte(start)


def _feed_byte_by_byte(start: bytes) -> None:
    for end in range(len(start)):
        ResponseParser().check_partial(start[: end + 1], end)


def test_no_prefix_of_a_good_head_is_bad_early() -> None:
    """The early check never speaks before it can know; only the size is left then."""
    raw = head_bytes("HTTP/1.1 200 OK", "A: b", "Content-Length: 5")
    for end in range(len(raw)):
        ResponseParser().check_partial(raw[:end])
    with pytest.raises(BadAnswer, match="larger than"):
        ResponseParser().check_partial(raw[:-4] + b"x" * 256 * 1024)
