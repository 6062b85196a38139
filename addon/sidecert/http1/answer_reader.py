"""What comes on an upstream connection, as answers: sans-IO, one at a time (RFC 9112)."""

from __future__ import annotations

from typing import Final

from sidecert.errors import BadAnswer
from sidecert.http1.framing import BodyReader, ChunkedBody, CloseBody, body_reader, find_head
from sidecert.http1.response_head import ResponseHead, ResponseParser

SWITCHING_PROTOCOLS: Final = 101
INTERIMS: Final = 32
_MANY_CHUNKS: Final = 1024

Events = tuple[tuple[ResponseHead, ...], bytes, bool]
"""The heads that have come, a piece of the body of the last one, and whether that answer is whole."""


class AnswerReader:
    """Told of each request with `expect`, it reads the answer from what is fed.

    After `feed` has raised BadAnswer or BodyError the connection's bytes mean nothing any more.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_interims",
        "_method",
        "_parser",
        "_upgrade",
        "dense",
        "failure",
        "heard",
        "idle_timeout",
        "keep_alive",
        "rest",
        "trailers",
    )

    def __init__(self) -> None:
        self.heard = False
        """Whether anything of the answer has come."""
        self.keep_alive = False
        """Whether the upstream, as it says in the answer, takes another request after it."""
        self.idle_timeout: int | None = None
        """Seconds for which the upstream says that it keeps an idle connection, if it says so."""
        self.trailers: list[tuple[bytes, bytes]] = []
        """Those of the answer, once it is whole."""
        self.rest = b""
        """What came behind the answer, asked for by nobody."""
        self.failure: BadAnswer | None = None
        """What is wrong behind interim answers that are good: those come first."""
        self.dense = False
        """The body's last piece came in so many tiny chunks that the loop has been held for a while."""
        self._parser = ResponseParser()
        self._method = b""
        self._upgrade: bytes | None = None
        self._buffer = b""
        self._interims = 0
        self._body: BodyReader | None = None

    def expect(self, method: bytes, upgrade: bytes | None) -> None:
        """A request goes out, after the whole answer to the one before; `upgrade` is what it asks for."""
        self._method = method
        self._upgrade = upgrade
        self._interims = 0
        self.heard = False
        self.trailers = []

    def feed(self, data: bytes) -> Events:
        """Take in what came on the connection. Raises BadAnswer and BodyError."""
        self.heard = True
        if self._body is None:
            return self._read_head(data)
        body, chunks = self._body, self._body.chunks
        piece, self.rest = body.feed(data)
        self.dense = body.chunks - chunks > _MANY_CHUNKS
        return (), piece, body.done and self._is_whole(body)

    def ends_well(self) -> bool:
        """Whether the answer is whole if the upstream says here that nothing more will come."""
        return isinstance(self._body, CloseBody)

    def _read_head(self, data: bytes) -> Events:
        scanned = len(self._buffer)
        buffer = self._buffer + data if scanned else data
        heads: tuple[ResponseHead, ...] = ()
        try:
            while (end := find_head(buffer, scanned - 3 if scanned > 3 else 0)) >= 0:
                head = self._parser.parse(buffer[:end], self._method, self._upgrade)
                if head.status >= 200 or head.status == SWITCHING_PROTOCOLS:
                    return self._read_first_piece((*heads, head), head, buffer[end:])
                self._interims += 1
                if self._interims > INTERIMS:
                    raise BadAnswer(f"It sent more than {INTERIMS} interim (1xx) answers")
                heads = (*heads, head)
                buffer, scanned = buffer[end:], 0
            self._parser.check_partial(buffer, scanned)
        except BadAnswer as bad:
            if not heads:
                raise
            self.failure = bad
        self._buffer = buffer
        return heads, b"", False

    def _read_first_piece(self, heads: tuple[ResponseHead, ...], head: ResponseHead, data: bytes) -> Events:
        self._buffer = b""
        self.keep_alive = head.keep_alive
        self.idle_timeout = head.idle_timeout
        if head.status == SWITCHING_PROTOCOLS:
            return heads, data, False
        body = body_reader(head.body)
        piece, self.rest = body.feed(data)
        if body.done:
            return heads, piece, self._is_whole(body)
        self._body = body
        return heads, piece, False

    def _is_whole(self, body: BodyReader) -> bool:
        if isinstance(body, ChunkedBody):
            self.trailers = body.trailers
        self._body = None
        return True
