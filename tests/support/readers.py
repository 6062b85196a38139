"""Readers of HTTP/1 that do not share a line with sidecert: a strict one of our own, h11, and httptools.

`requests_in` is the strictest reading of what a caller sends, and of what an upstream must get.
`answers_in` reads what a caller got three times over, and fails where two of the readings differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import h11
import httptools

Ended = Literal["close", "reset"]

_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"([A-Z]+(?:-[A-Z]+)?) ([!-~]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t -~\x80-\xff]*")
_FIELD = re.compile(rb"(" + _NAME + rb"):[\t ]*([\t -~\x80-\xff]*?)[\t ]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + _NAME + rb"(?:=(?:" + _NAME + rb'|"[^\r\n]*"))?)*')
_PLAIN_SIZE = re.compile(rb"(0|[1-9a-f][0-9a-f]*)")
_AS_DASH = bytes.maketrans(b"_.", b"--")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Unclear(ValueError):
    """Not readable in one way."""


class Short(Exception):
    """It may go on well; it ends too early."""


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    minor: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def framed(self) -> bool:
        """Whether it may have a body."""
        return self.values(b"content-length") not in ([], [b"0"]) or bool(self.values(b"transfer-encoding"))


@dataclass(frozen=True)
class Reply:
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def value(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key.lower() == name), None)


def requests_in(data: bytes) -> tuple[list[Request], Exception | None]:
    """The requests in `data` as the strictest reader has them, and what stopped it before the end."""
    found: list[Request] = []
    try:
        while data:
            request, data = _request(data)
            found.append(request)
    except (Unclear, Short) as stop:
        return found, stop
    return found, None


def methods_in(data: bytes) -> list[bytes]:
    """What the answers to `data` are answers to: the requests of `requests_in`, and what stopped that."""
    methods: list[bytes] = []
    try:
        while data:
            request, data = _request(data)
            methods.append(request.method)
    except (Unclear, Short):
        pass
    return [*methods, b"HEAD" if re.match(rb"(?:\r\n){0,2}HEAD ", data) else b"GET"]


def canonical(data: bytes) -> list[Request]:
    """The requests that an upstream got; fails where one is not framed and addressed in the plainest way."""
    found: list[Request] = []
    while data:
        before = data
        try:
            request, data = _request(data, plain=True)
        except (Unclear, Short) as stop:
            raise AssertionError(f"{stop!r} in {before!r}") from stop
        _check_plain(request)
        found.append(request)
    return found


def canonical_so_far(data: bytes) -> tuple[list[Request], bytes]:
    """As `canonical`, of an upstream that did not get all: gives back the last one's part, too."""
    found: list[Request] = []
    while data:
        try:
            request, rest = _request(data, plain=True)
        except Short:
            break
        except Unclear as stop:
            raise AssertionError(f"{stop!r} in {data!r}") from stop
        _check_plain(request)
        found.append(request)
        data = rest
    return found, data


def check_head(head: bytes) -> Request:
    """Of a request that was given up half-way: its head at least can be read in one way only."""
    first, fields, _ = _head(head, _REQUEST_LINE)
    _framing(fields, 1)
    request = Request(first[1], first[2], int(first[3]), tuple(fields), b"")
    _check_plain(request)
    return request


def _check_plain(request: Request) -> None:
    lower = [name.lower().translate(_AS_DASH) for name, _ in request.fields]
    assert lower.count(b"host") == 1, request
    assert lower.count(b"content-length") + lower.count(b"transfer-encoding") <= 1, request
    assert not {b"te", b"http2-settings", b"keep-alive"}.intersection(lower), request
    assert request.minor == 1, request
    for value in request.values(b"content-length"):
        assert re.fullmatch(rb"0|[1-9][0-9]*", value), request
    for value in request.values(b"transfer-encoding"):
        assert value == b"chunked", request


def answers_in(data: bytes, methods: Sequence[bytes], ended: Ended) -> list[Reply]:
    """The whole final answers in `data`, to requests of these methods, as three readers see them alike.

    Nothing may be left over, unless the connection was cut: then the last one may be a part.
    """
    mine = _all(_strictly, data, methods, ended)
    for reader in (_by_h11, _by_httptools):
        theirs = _all(reader, data, methods, ended)
        assert [(each.status, each.body) for each in theirs] == [(each.status, each.body) for each in mine], (
            f"{reader.__name__} reads {data!r} as {theirs}, not as {mine}"
        )
    return mine


def replies_in(data: bytes, methods: Sequence[bytes], ended: Ended) -> list[Reply]:
    """As `answers_in`, by the strictest of the readers alone, which is quick."""
    return _all(_strictly, data, methods, ended)


def _all(reader: object, data: bytes, methods: Sequence[bytes], ended: Ended) -> list[Reply]:
    found: list[Reply] = []
    for method in methods:
        if not data:
            break
        try:
            reply, data = reader(data, method, ended)  # type: ignore[operator]
        except Short:
            assert ended == "reset", f"{reader}: an answer ends too early, and the connection well: {data!r}"
            return found
        found.append(reply)
    assert not data, f"{reader}: more than was asked for: {data!r}"
    return found


def chunked_body(data: bytes) -> bytes:
    """What these chunks carry."""
    return _chunks(data)[0]


# -- ours --------------------------------------------------------------------------------------------------


def _head(
    data: bytes, first_line: re.Pattern[bytes]
) -> tuple[re.Match[bytes], list[tuple[bytes, bytes]], bytes]:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise Short(data)
    first, *lines = head.split(b"\r\n")
    matched = first_line.fullmatch(first)
    if matched is None:
        raise Unclear(first)
    fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Unclear(line)
        fields.append((field[1], field[2]))
    return matched, fields, rest


def _framing(fields: list[tuple[bytes, bytes]], minor: int) -> int | Literal["chunked"] | None:
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if not lengths and not codings:
        return None
    if len(lengths) + len(codings) > 1 or (codings and not minor):
        raise Unclear(lengths, codings)
    if codings:
        if codings[0].lower() != b"chunked":
            raise Unclear(codings)
        return "chunked"
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise Unclear(lengths)
    return int(lengths[0])


def _exactly(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise Short(data)
    return data[:size], data[size:]


def _chunks(data: bytes, size_line: re.Pattern[bytes] = _SIZE) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, data = _line(data)
        size = size_line.fullmatch(line)
        if size is None:
            raise Unclear(line)
        if not int(size[1], 16):
            break
        piece, data = _exactly(data, int(size[1], 16))
        end, data = _exactly(data, 2)
        if end != b"\r\n":
            raise Unclear(end)
        body += piece
    while True:
        line, data = _line(data)
        if not line:
            return body, data
        if _FIELD.fullmatch(line) is None:
            raise Unclear(line)


def _line(data: bytes) -> tuple[bytes, bytes]:
    line, end, rest = data.partition(b"\r\n")
    if re.search(rb"[\r\n]", line.removesuffix(b"\r") if not end else line):
        raise Unclear(line)
    if not end:
        raise Short(data)
    return line, rest


def _request(data: bytes, *, plain: bool = False) -> tuple[Request, bytes]:
    if not plain:
        data = data.removeprefix(b"\r\n").removeprefix(b"\r\n")
    first, fields, rest = _head(data, _REQUEST_LINE)
    minor = int(first[3])
    framing = _framing(fields, minor)
    if framing == "chunked":
        body, rest = _chunks(rest, _PLAIN_SIZE if plain else _SIZE)
    else:
        body, rest = _exactly(rest, framing or 0)
    return Request(first[1], first[2], minor, tuple(fields), body), rest


def _strictly(data: bytes, method: bytes, ended: Ended) -> tuple[Reply, bytes]:
    first, fields, rest = _head(data, _STATUS_LINE)
    status = int(first[1])
    if 100 <= status < 200:
        return _strictly(rest, method, ended)
    framing = _framing(fields, 1)
    if method == b"HEAD" or status in (204, 304):
        body = b""
    elif framing == "chunked":
        body, rest = _chunks(rest)
    elif framing is None:
        if ended == "reset":
            raise Short(data)
        body, rest = rest, b""
    else:
        body, rest = _exactly(rest, framing)
    return Reply(status, tuple(fields), body), rest


# -- others ------------------------------------------------------------------------------------------------


def _by_h11(data: bytes, method: bytes, ended: Ended) -> tuple[Reply, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"Host", b"x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    told_of_end = False
    reply, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            if told_of_end:
                raise Short(data) from error
            raise AssertionError(f"h11 does not take {data!r}: {error}") from error
        if event is h11.NEED_DATA:
            if ended == "reset" or told_of_end:
                raise Short(data)
            told_of_end = True
            connection.receive_data(b"")
        elif isinstance(event, h11.Response):
            reply = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert reply is not None
            rest = b"" if told_of_end else connection.trailing_data[0]
            return Reply(reply.status_code, tuple(reply.headers), body), rest
        elif isinstance(event, h11.ConnectionClosed):
            raise Short(data)


class _Listener:
    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.head_at = self.end_at = 0
        self.at = 0

    def on_headers_complete(self) -> None:
        self.head_at = self.at

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.end_at = self.at


def _by_httptools(data: bytes, method: bytes, ended: Ended) -> tuple[Reply, bytes]:
    listener = _Listener()
    head_end = data.find(b"\r\n\r\n") + 4
    pieces = [data[:head_end], *(data[at : at + 1] for at in range(head_end, len(data)))]
    for piece in pieces:
        listener.at += len(piece)
        try:
            listener.parser.feed_data(piece)
        except httptools.HttpParserError as error:
            raise AssertionError(f"httptools does not take {data!r}: {error}") from error
        status = listener.parser.get_status_code() if listener.head_at else 0
        if status and (method == b"HEAD" and status >= 200):
            return Reply(status, (), b""), data[listener.head_at :]
        if listener.end_at:
            rest = data[listener.end_at :]
            return (
                (Reply(status, (), listener.body), rest)
                if status >= 200
                else _by_httptools(rest, method, ended)
            )
    if listener.head_at and ended == "close" and not _is_framed(data[: listener.head_at]):
        return Reply(listener.parser.get_status_code(), (), listener.body), b""
    raise Short(data)


def _is_framed(head: bytes) -> bool:
    return re.search(rb"\r\n(content-length|transfer-encoding):", head, re.IGNORECASE) is not None
