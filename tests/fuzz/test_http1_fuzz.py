"""Whatever bytes come, HTTP/1 is read without surprise: an error of ours, or one meaning for all."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser
from hypothesis import example, given
from hypothesis import strategies as st

from sidecert.errors import BadAnswer, Refusal
from sidecert.http1 import (
    CHUNKED,
    UNTIL_CLOSE,
    BodyError,
    ChunkedBody,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
    body_reader,
    downstream_head,
    encode_chunk,
    find_head,
    upstream_head,
)
from sidecert.http1.framing import LAST_CHUNK
from sidecert.http1.hopbyhop import KEEP, KINDS, OUTCOME

REQUESTS = RequestParser(16 * 1024)
ANSWERS = ResponseParser()

NAMES = st.sampled_from(
    b"Host Content-Length Transfer-Encoding Connection Upgrade Expect TE Keep-Alive Content_Length A x-b "
    b"Cookie Accept Trailer X-SSL-Client-Cert Sidecert-Outcome Proxy-Connection hOST content-length".split()
)
VALUES = st.sampled_from(
    [
        *b"a example.com example.com:8080 [::1]:81 5 005 0 chunked gzip close keep-alive upgrade".split(),
        *b"websocket x-b host trailers timeout=5 100-continue a,b chunked,chunked +5 h2c a@b".split(),
        b"9" * 20,
        b"",
        b"close, x-b",
        b"identity, chunked",
        b" a ",
        b"\xe9",
        b"a\tb",
    ]
)
ODD_LINES = st.tuples(
    NAMES, st.sampled_from([b":", b": ", b":\t", b" :", b""]), VALUES, st.sampled_from([b"", b" "])
)
GOOD_LINES = st.sampled_from(
    [
        (b"Connection: ", b"close, X-B"),
        (b"Connection: ", b"Upgrade"),
        (b"connection:", b"keep-alive"),
        (b"Upgrade: ", b"websocket"),
        (b"X-B: ", b"1"),
        (b"x-b:", b"  2\t"),
        (b"Expect: ", b"100-continue"),
        (b"Keep-Alive: ", b"timeout=5"),
        (b"Content_Length: ", b"7"),
        (b"X-SSL-Client-Cert: ", b"x"),
        (b"Sidecert-Outcome: ", b"ok"),
        (b"TE: ", b"trailers"),
        (b"A: ", b"\xe9"),
        (b"A:", b""),
    ]
)
FRAMINGS = st.sampled_from(
    [
        [],
        [],
        [(b"Content-Length: ", b"5")],
        [(b"content-length:", b" 007 ")],
        [(b"Content-Length: ", b"0")],
        [(b"Transfer-Encoding: ", b"chunked")],
        [(b"transfer-encoding:", b"CHUNKED ")],
    ]
)
GOOD = st.lists(GOOD_LINES, max_size=6)
ODD = st.lists(st.one_of(GOOD_LINES, GOOD_LINES, ODD_LINES), max_size=6)
HOSTS = st.sampled_from([[(b"Host: ", b"h")], [(b"hOST:", b" h:81 ")], [(b"Host: ", b"[::1]")]])


def in_order(
    *parts: st.SearchStrategy[list[tuple[bytes, ...]]],
) -> st.SearchStrategy[list[tuple[bytes, ...]]]:
    return st.tuples(*parts).map(lambda lists: [line for lines in lists for line in lines])


REQUEST_LINES = st.tuples(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"M-SEARCH"]),
    st.sampled_from([b" / ", b" /a?b ", b" //x ", b" http://h/ ", b" https://h:1?x ", b" /%41 "]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]),
)
ODD_REQUEST_LINES = st.tuples(
    st.sampled_from([b"GET", b"OPTIONS", b"CONNECT", b"FOO"]),
    st.sampled_from([b" ", b"  "]),
    st.sampled_from([b"/", b"*", b"http://h/", b"h:1", b"/%4", b"http://u@h/", b"http:///"]),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.2", b""]),
)
STATUS_LINES = st.tuples(
    st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2.0 "]),
    st.sampled_from([b"200", b"204", b"304", b"100", b"101", b"103", b"500", b"000", b"999", b"20"]),
    st.sampled_from([b" OK", b"", b" ", b" \x01", b" caf\xe9"]),
)
METHODS = st.sampled_from([b"GET", b"HEAD", b"POST"])


def joined(first: tuple[bytes, ...], lines: list[tuple[bytes, ...]]) -> bytes:
    return b"\r\n".join([b"".join(first), *(b"".join(line) for line in lines)]) + b"\r\n\r\n"


def mutated(heads: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Heads with a few bytes put in, left out or doubled."""
    bits = st.sampled_from(
        [b"", b"\r", b"\n", b"\r\n", b" ", b":", b"\x00", b"\t", b",", b"\xff", b"a", b"\r\n\r\n"]
    )
    edits = st.lists(st.tuples(st.integers(0, 400), bits, st.integers(0, 2)), max_size=3)

    def edit(head: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
        for at, bit, skip in changes:
            head = head[: at % len(head)] + bit + head[at % len(head) + skip :] if head else bit
        return head

    return st.builds(edit, heads, edits)


GOOD_REQUESTS = st.builds(joined, REQUEST_LINES, in_order(GOOD, HOSTS, GOOD, FRAMINGS, GOOD))
REQUEST_HEADS = st.one_of(
    GOOD_REQUESTS,
    st.builds(joined, REQUEST_LINES, in_order(ODD, HOSTS, FRAMINGS, ODD)),
    st.builds(joined, ODD_REQUEST_LINES, in_order(GOOD, HOSTS)),
)
ANSWER_HEADS = st.builds(joined, STATUS_LINES, st.one_of(in_order(GOOD, FRAMINGS, GOOD), ODD))


def read_request(raw: bytes) -> RequestHead | None:
    """The head, or None when it is refused: nothing else may happen."""
    try:
        return REQUESTS.parse(raw)
    except Refusal:
        return None


def read_answer(raw: bytes, method: bytes, upgrade: bytes | None) -> ResponseHead | None:
    try:
        return ANSWERS.parse(raw, method, upgrade)
    except BadAnswer:
        return None


def forwarded(head: RequestHead | ResponseHead) -> list[tuple[bytes, bytes]]:
    """The headers that go on as they are: no special name, nor one that Connection lists."""
    named = {b"host"}
    for name, value in head.headers:
        if name.lower() == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    return [pair for pair in head.headers if KINDS[pair[0]] == KEEP and pair[0].lower() not in named]


class Seen:
    """What llhttp sees in the same bytes."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.messages = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def check_request(raw: bytes) -> None:
    head = read_request(raw)
    if head is None:
        return
    seen = Seen()
    try:
        HttpRequestParser(seen).feed_data(raw)
    except HttpParserUpgrade:
        pass
    assert head.headers == seen.headers
    built = upstream_head(head, b"up.example:8443")
    assert find_head(built) == len(built)
    again = REQUESTS.parse(built)
    assert (again.method, again.body, again.upgrade) == (head.method, head.body, head.upgrade)
    assert (again.path, again.origin_target) == (head.path, head.origin_target)
    assert (again.host, again.port, again.minor, again.keep_alive) == ("up.example", 8443, 1, True)
    assert forwarded(again) == forwarded(head)
    assert upstream_head(again, b"up.example:8443") == built
    framing = [
        name.lower() for name, _ in again.headers if name.lower() in (b"content-length", b"transfer-encoding")
    ]
    assert len(framing) <= 1
    assert (head.body == CHUNKED) is (framing == [b"transfer-encoding"])
    check_request_with_h11(built, again)


def check_request_with_h11(built: bytes, head: RequestHead) -> None:
    """A strict parser of another family finds the same request, and the same framing of its body."""
    if any(byte >= 0x80 for byte in built):
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(built)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.origin_target)
    lengths = [value for name, value in event.headers if name == b"content-length"]
    codings = [value for name, value in event.headers if name == b"transfer-encoding"]
    assert (lengths, codings) == {
        CHUNKED: ([], [b"chunked"]),
        0: (lengths if lengths == [b"0"] else [], []),
    }.get(head.body, ([b"%d" % head.body], []))


def check_answer(raw: bytes, method: bytes, upgrade: bytes | None, caller_minor: int) -> None:
    head = read_answer(raw, method, upgrade)
    if head is None:
        return
    seen = Seen()
    try:
        HttpResponseParser(seen).feed_data(raw)
    except HttpParserUpgrade:
        pass
    assert head.headers == seen.headers
    body = head.body
    if body < 0:
        body = CHUNKED if caller_minor else UNTIL_CLOSE
    built = downstream_head(head, caller_minor=caller_minor, keep_alive=head.keep_alive, body=body)
    assert find_head(built) == len(built)
    again = ANSWERS.parse(built, method, upgrade)
    assert (again.status, again.body, again.upgrade, again.minor) == (head.status, body, head.upgrade, 1)
    assert again.reason == head.reason
    assert forwarded(again) == forwarded(head)
    assert not any(KINDS[name] == OUTCOME for name, _ in again.headers)
    if head.status >= 200:
        assert again.keep_alive is (head.keep_alive and body != UNTIL_CLOSE)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_our_errors(raw: bytes) -> None:
    """As requests, as answers, as their starts."""
    check_request(raw)
    check_answer(raw, b"GET", None, 1)
    with suppress(Refusal):
        REQUESTS.check_partial(raw)
    with suppress(BadAnswer):
        ANSWERS.check_partial(raw)


@given(REQUEST_HEADS)
def test_what_is_taken_of_a_request_means_the_same_upstream(raw: bytes) -> None:
    """Read by us, by llhttp and by h11; passed on and read again."""
    check_request(raw)


@given(mutated(REQUEST_HEADS))
@example(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n\r\n")
@example(b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
def test_mutated_requests_are_refused_or_mean_one_thing(raw: bytes) -> None:
    """A byte too many or too few never makes two meanings."""
    check_request(raw)


@given(ANSWER_HEADS, METHODS, st.sampled_from([None, b"websocket"]), st.integers(0, 1))
def test_what_is_taken_of_an_answer_means_the_same_downstream(
    raw: bytes, method: bytes, upgrade: bytes | None, minor: int
) -> None:
    """Status, reason, framing and headers arrive as they were meant."""
    check_answer(raw, method, upgrade, minor)


@given(mutated(ANSWER_HEADS), METHODS, st.sampled_from([None, b"websocket"]), st.integers(0, 1))
def test_mutated_answers_are_bad_or_mean_one_thing(
    raw: bytes, method: bytes, upgrade: bytes | None, minor: int
) -> None:
    """A byte too many or too few never makes two meanings."""
    check_answer(raw, method, upgrade, minor)


@given(GOOD_REQUESTS)
def test_the_early_check_never_refuses_what_the_whole_head_passes(raw: bytes) -> None:
    """No start of a good head is hopeless."""
    if read_request(raw) is None:
        return
    for end in range(len(raw) - 1):
        REQUESTS.check_partial(raw[:end])


CHUNKS = st.sampled_from(
    [
        *[
            b"1\r\na\r\n",
            b"5\r\nhello\r\n",
            b"4\r\n\r\n\r\n\r\n",
            b"A\r\n0123456789\r\n",
            b"5\r\n0\r\n\r\n\r\n",
        ],
        *[b"1;a=b\r\nx\r\n", b'1;a="b;c";d\r\nx\r\n', b"001\r\na\r\n"],
    ]
)
ODD_BITS = st.sampled_from(
    [
        *[
            b"0\r\n",
            b"A: b\r\n",
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b";",
            b"F",
            b"5",
            b"a",
            b"\x00",
            b"-",
            b"1\r\na",
            b"1;",
        ],
        *[b"0x1\r\na\r\n", b"1 \r\na\r\n", b"1;a\nb\r\nx\r\n", b"1\nx\n"],
    ]
)
ENDS = st.sampled_from(
    [
        b"0\r\n\r\n",
        b"000\r\n\r\n",
        b"0;a\r\n\r\n",
        b"0\r\nA: b\r\nC:d \r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\n",
        b"",
    ]
)
NEXT = st.sampled_from([b"", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
WIRES = st.builds(
    lambda bits, end, rest: b"".join(bits) + end + rest,
    st.one_of(st.lists(CHUNKS, max_size=8), st.lists(st.one_of(CHUNKS, ODD_BITS), max_size=8)),
    ENDS,
    NEXT,
)


def decode(wire: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool, list[tuple[bytes, bytes]]] | None:
    """(body, rest, done, trailers) of `wire` fed in pieces, or None when it is malformed."""
    reader = ChunkedBody()
    body = b""
    at = 0
    try:
        for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
            piece, rest = reader.feed(wire[at:cut])
            body += piece
            at = cut
            if reader.done:
                return body, rest + wire[at:], True, reader.trailers
    except BodyError:
        return None
    return body, b"", False, reader.trailers


@given(WIRES, st.lists(st.integers(0, 200), max_size=8))
def test_chunked_bodies_are_read_as_llhttp_reads_them(wire: bytes, cuts: list[int]) -> None:
    """Never taken where llhttp objects, never another body, trailer or end; the same in any pieces."""
    whole = decode(wire, [])
    assert decode(wire, cuts) == whole
    assert decode(wire, list(range(len(wire)))) == whole
    if whole is None or not whole[2]:
        return
    body, rest, _, trailers = whole
    seen = Seen()
    parser = HttpRequestParser(seen)
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(wire[: len(wire) - len(rest)])
    assert seen.body == body
    assert seen.messages == 1
    assert seen.headers[1:] == trailers


@given(
    st.lists(st.binary(max_size=40), max_size=10),
    st.binary(max_size=20),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_encoded_chunks_are_decoded_to_the_same(pieces: list[bytes], rest: bytes, cuts: list[int]) -> None:
    """Any data, any cuts, anything behind it."""
    wire = b"".join(map(encode_chunk, pieces)) + LAST_CHUNK
    assert decode(wire + rest, cuts) == (b"".join(pieces), rest, True, [])


MESSAGES = st.lists(
    st.one_of(
        st.just((b"Accept: x", [b""])),
        st.just((b"Connection: upgrade\r\nUpgrade: h2c", [b""])),
        st.tuples(st.just(b"Content-Length: %d"), st.lists(st.binary(max_size=30), min_size=1, max_size=1)),
        st.tuples(st.just(b"Transfer-Encoding: chunked"), st.lists(st.binary(max_size=30), max_size=4)),
        st.just((b"Upgrade: x\r\nConnection: upgrade\r\nContent-Length: %d", [b"GET /z HTTP/1.1\r\n\r\n"])),
    ),
    max_size=7,
)


def read_pipeline(wire: bytes, cuts: list[int]) -> list[bytes]:
    """The bodies of the requests in `wire`, which comes in pieces; the target of each says its number."""
    bodies: list[bytes] = []
    buffer = b""
    reader = None
    at = 0
    for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        buffer += wire[at:cut]
        at = cut
        while True:
            if reader is None:
                end = find_head(buffer)
                if end < 0:
                    break
                head = REQUESTS.parse(buffer[:end])
                assert head.target == b"/%d" % len(bodies)
                buffer = buffer[end:]
                reader = body_reader(head.body)
                bodies.append(b"")
            piece, buffer = reader.feed(buffer)
            bodies[-1] += piece
            if not reader.done:
                assert buffer == b""
                break
            reader = None
    assert reader is None
    assert buffer == b""
    return bodies


@given(MESSAGES, st.lists(st.integers(0, 2000), max_size=12))
def test_pipelined_requests_are_told_apart_however_they_are_cut(
    messages: list[tuple[bytes, list[bytes]]], cuts: list[int]
) -> None:
    """Each body ends where it says, whatever it looks like, and the next request begins there."""
    wire = b""
    for number, (framing, pieces) in enumerate(messages):
        body = b"".join(pieces)
        chunked = framing.endswith(b"chunked")
        line = framing % len(body) if b"%d" in framing else framing
        wire += b"POST /%d HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % (number, line)
        wire += b"".join(map(encode_chunk, pieces)) + LAST_CHUNK if chunked else body
    bodies = [b"".join(pieces) for _, pieces in messages]
    assert read_pipeline(wire, cuts) == bodies
    assert read_pipeline(wire, list(range(len(wire)))) == bodies


@given(st.binary(max_size=60))
def test_random_chunk_bytes_raise_nothing_but_body_errors(wire: bytes) -> None:
    """And llhttp takes whatever was taken."""
    decoded = decode(wire, [])
    if decoded is None or not decoded[2]:
        return
    parser = HttpRequestParser(Seen())
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(wire[: len(wire) - len(decoded[1])])


def test_the_reference_objects_where_it_should() -> None:
    """llhttp is the judge above, so it must be one."""
    with pytest.raises(HttpParserError):
        HttpRequestParser(Seen()).feed_data(b"GET / HTTP/1.1\r\nA : b\r\n\r\n")
