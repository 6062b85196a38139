"""Bodies: where they end, however the bytes are cut, and what is malformed or over a cap."""

from __future__ import annotations

import pytest

from sidecert.http1 import (
    CHUNKED,
    UNTIL_CLOSE,
    BodyError,
    ChunkedBody,
    body_reader,
    encode_chunk,
    framing,
    last_chunk,
)
from sidecert.http1.framing import LAST_CHUNK
from support.malformed import BAD_CHUNKS


def read(kind: int, wire: bytes, size: int | None = None) -> tuple[bytes, bytes, bool]:
    """(body, rest, done) of `wire` fed in pieces of `size` bytes, or whole."""
    reader = body_reader(kind)
    body = rest = b""
    step = size or max(len(wire), 1)
    for at in range(0, len(wire), step):
        if reader.done:
            return body, rest + wire[at:], True
        piece, rest = reader.feed(wire[at : at + step])
        body += piece
    return body, rest, reader.done


NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_BODIES = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"005\r\nhello\r\n000\r\n\r\n", b"hello"),
    (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    (b"4\r\n\r\n\r\n\r\n4\r\n0\r\n\r\r\n0\r\n\r\n", b"\r\n\r\n0\r\n\r"),
    (b'5;a;b=c;d="e \\" f"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
    (b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nY: \t2 \r\n\r\n", b"hello"),
    (encode_chunk(b"x" * 70_000) + LAST_CHUNK, b"x" * 70_000),
    (b"".join(encode_chunk(bytes([byte])) for byte in range(256)) + LAST_CHUNK, bytes(range(256))),
]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, None])
@pytest.mark.parametrize("rest", [b"", NEXT, b"0\r\n\r\n"])
@pytest.mark.parametrize(("wire", "body"), CHUNKED_BODIES)
def test_chunked_bodies_read_the_same_however_they_are_cut(
    wire: bytes, body: bytes, rest: bytes, size: int | None
) -> None:
    """Byte by byte and whole; what follows the body comes back untouched."""
    assert read(CHUNKED, wire + rest, size) == (body, rest, True)


@pytest.mark.parametrize("size", [1, 3, None])
@pytest.mark.parametrize(
    ("length", "wire", "expected"),
    [
        (0, NEXT, (b"", NEXT, True)),
        (5, b"hello", (b"hello", b"", True)),
        (5, b"hello" + NEXT, (b"hello", NEXT, True)),
        (6, b"hello", (b"hello", b"", False)),
    ],
)
def test_length_bodies_end_at_their_length(
    length: int, wire: bytes, expected: tuple[bytes, bytes, bool], size: int | None
) -> None:
    """Exactly Content-Length bytes; fewer are not done."""
    assert read(length, wire, size) == expected


def test_a_close_delimited_body_takes_everything() -> None:
    """Its end is the end of the connection, which only its reader sees."""
    assert read(UNTIL_CLOSE, b"hello" + NEXT, 3) == (b"hello" + NEXT, b"", False)


@pytest.mark.parametrize("framing", [0, 5, CHUNKED])
def test_a_finished_body_gives_everything_back(framing: int) -> None:
    """After the end, bytes belong to the next message."""
    reader = body_reader(framing)
    reader.feed({0: b"", 5: b"hello", CHUNKED: LAST_CHUNK}[framing])
    assert reader.done
    assert reader.feed(NEXT) == (b"", NEXT)


def test_cut_short_bodies_are_never_done() -> None:
    """No prefix of a chunked body counts as its end."""
    for wire, _ in CHUNKED_BODIES[:7]:
        for end in range(len(wire)):
            assert not read(CHUNKED, wire[:end])[2]


@pytest.mark.parametrize("size", [1, None])
@pytest.mark.parametrize("wire", BAD_CHUNKS)
def test_malformed_chunks_and_trailers_are_errors(wire: bytes, size: int | None) -> None:
    """Strict wherever two readers could see different ends, with words."""
    with pytest.raises(BodyError) as caught:
        read(CHUNKED, wire, size)
    assert caught.value.wrong.endswith(".")
    assert caught.value.right.endswith(".")


@pytest.mark.parametrize("start", [b"zz", b"\n", b"5\n", b"5 ", b"GET / HTTP/1.1", b"5;\x00", b"5\r5"])
def test_a_hopeless_chunk_size_is_an_error_before_its_line_ends(start: bytes) -> None:
    """Nobody waits for a line end that may never come."""
    with pytest.raises(BodyError):
        ChunkedBody().feed(start)


@pytest.mark.parametrize("size", [1, 1000, None])
def test_chunk_extensions_are_capped_over_the_whole_body(size: int | None) -> None:
    """16 KiB of them are fine, one byte more is not, in one line or many."""
    line = b"1;" + b"e" * 1023 + b"\r\nx\r\n"
    assert read(CHUNKED, line * 16 + LAST_CHUNK, size) == (b"x" * 16, b"", True)
    for wire in (line * 16 + b"0;a\r\n\r\n", b"1;" + b"e" * 16384 + b"\r\nx\r\n", b"1;" + b"e" * 16384):
        with pytest.raises(BodyError, match="extensions"):
            read(CHUNKED, wire, size)


def test_extension_that_comes_byte_by_byte_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte once cost a look at all of the extension before it."""
    looked_at = 0

    class Counting:
        def fullmatch(self, start: bytes, at: int = 0) -> object:
            nonlocal looked_at
            looked_at += len(start) - at
            return True

    for pattern in ("_SIZE_START", "_EXTENSION_PART"):
        monkeypatch.setattr(framing, pattern, Counting())
    wire = b"1;a=" + b"e" * 5000
    body = ChunkedBody()
    for at in range(len(wire)):
        body.feed(wire[at : at + 1])
    assert len(wire) <= looked_at < 3 * len(wire)


@pytest.mark.parametrize("wire", [b"1;" + b"e" * 50 + b"\0", b"1;a\rb", b"1;e\n", b"1;\xff", b"1;a\r\r\n"])
def test_bad_extension_is_an_error_when_it_comes_byte_by_byte(wire: bytes) -> None:
    """At the very byte that is wrong, or at the line's end."""
    with pytest.raises(BodyError, match="chunk-size line"):
        read(CHUNKED, wire + b"a", 1)


@pytest.mark.parametrize("size", [1, 1000, None])
def test_trailers_are_capped(size: int | None) -> None:
    """16 KiB and 200 lines are fine, more is not."""
    line = b"A: " + b"b" * 1019 + b"\r\n"
    assert read(CHUNKED, b"0\r\n" + line * 16 + b"\r\n", size)[2]
    assert read(CHUNKED, b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n", size)[2]
    for wire in (line * 16 + b"A:\r\n\r\n", b"A: b\r\n" * 201 + b"\r\n", b"A: " + b"b" * 16384):
        with pytest.raises(BodyError, match="trailers"):
            read(CHUNKED, b"0\r\n" + wire, size)


@pytest.mark.parametrize("size", [1, None])
def test_trailers_are_decoded_in_order(size: int | None) -> None:
    """Names and bytes as sent, blanks around values gone."""
    reader = ChunkedBody()
    wire = b"0\r\nX-Sum: 1\r\nx-sum:\t2 \r\nEmpty:\r\nY: caf\xe9\r\n\r\n"
    for at in range(0, len(wire), size or len(wire)):
        reader.feed(wire[at : at + (size or len(wire))])
    assert reader.done
    assert reader.trailers == [(b"X-Sum", b"1"), (b"x-sum", b"2"), (b"Empty", b""), (b"Y", b"caf\xe9")]


def test_only_trailers_that_may_come_after_a_body_are_passed_on() -> None:
    """Nothing that frames, routes or authenticates can be slipped in behind the body (RFC 9110 6.5.1)."""
    refused = [
        b"Content-Length",
        b"Transfer-Encoding",
        b"transfer_encoding",
        b"Host",
        b"Connection",
        b"TE",
        b"Upgrade",
        b"Trailer",
        b"Authorization",
        b"Cookie",
        b"Set-Cookie",
        b"Content-Type",
        b"Content_Type",
        b"X-SSL-Client-Cert",
        b"Sidecert-Outcome",
        b"Expect",
    ]
    trailers = [(name, b"x") for name in refused]
    assert last_chunk(trailers) == last_chunk([]) == LAST_CHUNK
    assert last_chunk([*trailers, (b"X-Sum", b"1"), (b"y", b"")]) == b"0\r\nX-Sum: 1\r\ny: \r\n\r\n"


def test_encoded_chunks_decode_to_the_same() -> None:
    """No data is no chunk: an empty one would end the body."""
    assert encode_chunk(b"") == b""
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert read(CHUNKED, encode_chunk(b"a") + encode_chunk(b"") + encode_chunk(b"b") + LAST_CHUNK)[0] == b"ab"


def test_a_big_chunk_is_passed_on_without_a_copy() -> None:
    """The bulk of a big chunk comes back as the very object that was fed."""
    reader = ChunkedBody()
    reader.feed(b"fffff\r\n")
    data = b"x" * 65536
    assert reader.feed(data)[0] is data
