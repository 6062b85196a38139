"""Where a message body ends, sans-IO (RFC 9112 6 and 7).

A framing is one int: n >= 0 is a Content-Length, `CHUNKED` and `UNTIL_CLOSE` are the others. Chunk framing is
read here rather than by httptools, because httptools hides the sizes (their digits must be capped), has no
pause at the end of a body and costs a call per CRLFCRLF inside the data; the tests hold it against httptools.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sidecert.http1.hopbyhop import forwardable_trailers

CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2

LAST_CHUNK: Final = b"0\r\n\r\n"

LENGTH_DIGITS: Final = 18  # below 2^63, so that no upstream's integer overflows
SIZE_DIGITS: Final = 15  # of one chunk, in hex: below 2^60
EXTENSION_BYTES: Final = 16 * 1024  # of all chunk extensions of one body
TRAILER_BYTES: Final = 16 * 1024
TRAILER_LINES: Final = 200

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SIZE_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]+)((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"(?:[\t !#-\[\]-~]|\\[\t -~])*"))?)*)'
)
# The start of a size line: tells junk at once, instead of waiting for a line end that may never come.
_SIZE_START: Final = re.compile(rb"[0-9A-Fa-f]+(?:;[\t -~]*)?\r?")
_EXTENSION_PART: Final = re.compile(rb"[\t -~]*\r?")
_TRAILER: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*)")

_BAD_SIZE: Final = (
    "A chunk-size line is malformed.",
    "It is a hexadecimal number and CRLF, with no space around it.",
)


def find_head(buffer: bytes | bytearray, start: int = 0) -> int:
    """Index just past the CRLFCRLF that ends the first head, or -1.

    `start` is where the search goes on when more bytes have come: 3 before the old end, or 0. Up to two empty
    lines before a head are skipped.
    """
    if start == 0 and buffer.startswith(b"\r\n"):
        start = 4 if buffer.startswith(b"\r\n\r\n") else 2
    end = buffer.find(b"\r\n\r\n", start)
    return end + 4 if end >= 0 else -1


class BodyError(ValueError):
    """A body, or the headers that frame it, is malformed or over a cap; `right` says what would be right."""

    def __init__(self, wrong: str, right: str = "") -> None:
        super().__init__(f"{wrong} {right}".rstrip())
        self.wrong = wrong
        self.right = right


def framing(lengths: list[bytes], codings: list[bytes], minor: int, without: int) -> int:
    """The framing that all Content-Length and all Transfer-Encoding values call for; `without` any, that.

    Raises BodyError for everything that two readers could understand differently (RFC 9112 6.1, 6.3).
    """
    if codings:
        if lengths:
            raise BodyError(
                "Both Content-Length and Transfer-Encoding frame the body.", "Send exactly one of the two."
            )
        if minor == 0:
            raise BodyError("HTTP/1.0 has no Transfer-Encoding.", "Send a Content-Length, or use HTTP/1.1.")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BodyError(
                "The Transfer-Encoding is not exactly `chunked`.",
                "Send `Transfer-Encoding: chunked`, once, with no other coding beside it.",
            )
        return CHUNKED
    if not lengths:
        return without
    length = lengths[0]
    if len(lengths) > 1:
        raise BodyError("There is more than one Content-Length.", "Send exactly one.")
    if not length.isdigit() or len(length) > LENGTH_DIGITS:
        raise BodyError(
            "The Content-Length is not a plain decimal number.",
            f"Send the body's size in bytes, digits only, {LENGTH_DIGITS} at most.",
        )
    return int(length)


class LengthBody:
    """A body of exactly `length` bytes."""

    __slots__ = ("_left", "done")
    chunks = 0

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(a piece of the body, bytes beyond its end)."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data, b""
        end = self._left
        self._left = 0
        self.done = True
        return (data, b"") if left == 0 else (data[:end], data[end:])


class CloseBody:
    """A body that ends with the connection: the end of file is the verdict of whoever reads it."""

    __slots__ = ("done",)
    chunks = 0

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(data, nothing): every byte is body."""
        return data, b""


class ChunkedBody:
    """A chunked body: decodes the data, checks every framing byte, keeps the trailers.

    After `feed` has raised BodyError the connection's bytes mean nothing any more: cut it.
    """

    __slots__ = (
        "_extensions",
        "_in_trailers",
        "_left",
        "_line_end_due",
        "_tail",
        "_trailer_bytes",
        "chunks",
        "done",
        "trailers",
    )

    def __init__(self) -> None:
        self.done = False
        self.chunks = 0
        """So many have begun: each costs as much as kilobytes of data."""
        self.trailers: list[tuple[bytes, bytes]] = []
        self._left = 0  # data bytes of this chunk still to come
        self._line_end_due = False  # the CRLF after a chunk's data is still to come
        self._in_trailers = False
        self._tail = b""  # an unfinished line
        self._extensions = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(decoded piece, bytes beyond the body's end); raises BodyError."""
        if len(data) < self._left:  # the bulk of a big chunk: nothing to look at, nothing to copy
            self._left -= len(data)
            return data, b""
        if self.done:
            return b"", data
        looked_at = 0  # a line that comes byte by byte is not looked at from its beginning for each of them
        if self._tail:
            looked_at = len(self._tail) - 1  # it may end in CR
            data = self._tail + data
            self._tail = b""
        pieces: list[bytes] = []
        at = 0
        while not self._in_trailers:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                if self._left:
                    break
            if self._line_end_due:
                line_end = data[at : at + 2]
                if line_end != b"\r\n":
                    if line_end not in (b"", b"\r"):
                        raise BodyError(
                            "A chunk is longer than its size says.", "CRLF follows the data of each chunk."
                        )
                    self._tail = line_end
                    break
                at += 2
                self._line_end_due = False
            end = data.find(b"\r\n", max(at, looked_at))
            if end < 0:
                self._keep_size_start(data[at:], looked_at)
                break
            self._left = self._size(data[at:end])
            self.chunks += 1
            at = end + 2
            self._in_trailers = not self._left
            self._line_end_due = not self._in_trailers
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return body, (self._read_trailers(data, at, looked_at) if self._in_trailers else b"")

    def _size(self, line: bytes) -> int:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise BodyError(*_BAD_SIZE)
        digits, extension = match.groups()
        self._check_size(len(digits), len(extension))
        self._extensions += len(extension)
        return int(digits, 16)

    def _keep_size_start(self, start: bytes, looked_at: int) -> None:
        if not start:
            return
        semicolon = start.find(b";", 0, SIZE_DIGITS + 1)
        if 0 <= semicolon < looked_at:
            well = _EXTENSION_PART.fullmatch(start, looked_at)
        else:
            well = _SIZE_START.fullmatch(start)
        if well is None:
            raise BodyError(*_BAD_SIZE)
        length = len(start) - start.endswith(b"\r")
        digits = semicolon if semicolon >= 0 else length
        self._check_size(digits, length - digits)
        self._tail = start

    def _check_size(self, digits: int, extension: int) -> None:
        if digits > SIZE_DIGITS:
            raise BodyError(
                "A chunk size has too many digits.", f"Send {SIZE_DIGITS} hexadecimal digits at most."
            )
        if self._extensions + extension > EXTENSION_BYTES:
            raise BodyError("The chunk extensions are too large.", f"Send {EXTENSION_BYTES} bytes at most.")

    def _read_trailers(self, data: bytes, at: int, looked_at: int) -> bytes:
        """Reads trailer lines from `data[at:]`; what follows the empty line is returned."""
        while (end := data.find(b"\r\n", max(at, looked_at))) != at:
            if end < 0:
                self._tail = data[at:]
                if self._tail != b"\r":
                    self._check_trailers(len(self._tail))
                return b""
            self._check_trailers(end + 2 - at)
            match = _TRAILER.fullmatch(data, at, end)
            if match is None:
                raise BodyError("A trailer line is malformed.", "It is `Name: value` on one line of its own.")
            self.trailers.append((match[1], match[2].rstrip(b" \t")))
            self._trailer_bytes += end + 2 - at
            at = end + 2
        self.done = True
        return data[at + 2 :]

    def _check_trailers(self, size: int) -> None:
        lines = len(self.trailers) + (size > 0)
        if self._trailer_bytes + size > TRAILER_BYTES or lines > TRAILER_LINES:
            raise BodyError(
                "The trailers are too large.", f"Send {TRAILER_BYTES} bytes in {TRAILER_LINES} lines at most."
            )


BodyReader = LengthBody | ChunkedBody | CloseBody


def body_reader(framing: int) -> BodyReader:
    """The reader for a body of this framing."""
    if framing == CHUNKED:
        return ChunkedBody()
    if framing == UNTIL_CLOSE:
        return CloseBody()
    return LengthBody(framing)


def encode_chunk(data: bytes) -> bytes:
    """`data` as one chunk; nothing for no data, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The end of a chunked body, with those trailers that may be passed on."""
    lines = [b"%b: %b\r\n" % trailer for trailer in forwardable_trailers(trailers)]
    return b"0\r\n%b\r\n" % b"".join(lines) if lines else LAST_CHUNK
