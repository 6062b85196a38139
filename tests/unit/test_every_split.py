"""Every request and answer, cut at every place and byte by byte: the same comes of it as of the whole."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sidecert.downstream import Downstream
from sidecert.errors import BadAnswer
from sidecert.generation import Generation
from sidecert.http1 import BodyError
from sidecert.metrics import Metrics, RouteStats
from sidecert.outcome import Ending, Outcome
from sidecert.plane import Listener, Plane
from sidecert.upstream import UpstreamConnection, _State
from support.certs import Pki
from support.corpus import ASKS, REPLIES
from support.inside import orders
from support.malformed import BAD_CHUNKS, BAD_HEADS, REFUSED_HEADS, head_bytes
from support.wire import Ask, at_line_ends, bytewise, cut

SMALL = 5000  # what is bigger is malformed by its size only, and cut in few places
NEXT = Ask().wire
POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def splits(data: bytes) -> Iterator[list[bytes]]:
    """In two at every place, at all line ends, and byte by byte."""
    if len(data) > SMALL:
        yield from (cut(data, [at]) for at in range(1, len(data), len(data) // 7))
        return
    yield from (cut(data, [at]) for at in range(1, len(data)))
    yield at_line_ends(data)
    yield bytewise(data)


@pytest.fixture
def first(pki: Pki, tmp_path: Path) -> Generation:
    return orders(tmp_path, pki)


def play(acts: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await acts()

    asyncio.run(main())


# -- requests, as a downstream connection reads them ------------------------------------------------------


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else ("127.0.0.1", 40000)

    def fileno(self) -> int:
        return -1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Exchange:
    """Writes down its request, and answers when that is whole."""

    def __init__(self, plane: Plane, caller: Downstream, head: Any) -> None:
        self.caller = caller
        self.head = head
        self.upstream = None
        self.body = b""
        self.done = False
        self.trailers: Any = []

    def start(self, piece: bytes, done: bool, trailers: Any = ()) -> None:
        self.take_body(piece, done, trailers)

    def take_body(self, piece: bytes, done: bool, trailers: Any) -> None:
        assert not self.done
        self.body += piece
        if done:
            self.done = True
            self.trailers = list(trailers)
            self.caller.write(b"ANSWER")
            self.caller.finish(keep_alive=self.head.keep_alive)

    def refuse(self, refusal: Any) -> None:
        self.caller.refuse(refusal, self)  # type: ignore[arg-type]

    def name_request(self) -> str:
        return "1"

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None

    @property
    def seen(self) -> tuple[object, ...]:
        head = self.head
        return head.method, head.target, head.lines, head.keep_alive, self.body, self.done, self.trailers


Requests = tuple[list[Exchange], bytes]


@pytest.fixture
def read(first: Generation, caplog: pytest.LogCaptureFixture) -> Callable[[list[bytes]], Requests]:
    """The requests in these pieces, and what was written."""
    caplog.set_level(logging.ERROR)  # thousands of refusals

    @cache  # made on the loop
    def plane() -> Plane:
        made = Plane(Metrics(CollectorRegistry()))
        made.adopt(first)
        return made

    def feed(pieces: list[bytes]) -> Requests:
        exchanges: list[Exchange] = []

        def make(*arguments: Any) -> Exchange:
            exchanges.append(Exchange(*arguments))
            return exchanges[-1]

        plane().make_exchange = make  # type: ignore[assignment]
        connection = Downstream(plane(), Listener("here", None, frozenset()))
        transport = Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        return exchanges, transport.written

    return feed


Read = Callable[[list[bytes]], Requests]


def test_valid_requests(read: Read) -> None:
    """The same heads, bodies and trailers, and the next request behind them."""

    async def acts() -> None:
        for name, ask in ASKS.items():
            wire = ask.wire + (NEXT if ask.keep_alive else b"")
            exchanges, written = read([wire])
            whole = [exchange.seen for exchange in exchanges]
            assert len(whole) == 1 + ask.keep_alive
            assert exchanges[0].body == ask.body.data
            assert all(exchange.done for exchange in exchanges)
            assert written == b"ANSWER" * len(whole)
            for pieces in splits(wire):
                exchanges, written = read(pieces)
                assert [exchange.seen for exchange in exchanges] == whole, (name, pieces)
                assert written == b"ANSWER" * len(whole), (name, pieces)

    play(acts)


def refusal(written: bytes) -> tuple[bytes, bytes]:
    """(status, outcome) of the only answer there is."""
    [status] = re.findall(rb"^HTTP/1.1 (\d{3}) ", written)
    [outcome] = re.findall(rb"Sidecert-Outcome: (\w+)\r\n", written)
    return status, outcome


def test_malformed_heads_of_requests(read: Read) -> None:
    """The same status and reason, and no exchange begins; what follows is not looked at."""

    async def acts() -> None:
        for first, lines, status, _ in REFUSED_HEADS:
            wire = head_bytes(first, *("Host: orders.test" if line == "X" else line for line in lines)) + NEXT
            whole = refusal(read([wire])[1])
            assert whole[0] == b"%d" % status
            for pieces in splits(wire):
                exchanges, written = read(pieces)
                assert exchanges == [], pieces
                assert refusal(written) == whole, pieces

    play(acts)


def test_malformed_bodies_of_requests(read: Read) -> None:
    """400, and the request is never whole."""

    async def acts() -> None:
        for wire in BAD_CHUNKS:
            for pieces in ([POST + wire], *splits(POST + wire)):
                exchanges, written = read(pieces)
                assert [exchange.done for exchange in exchanges] == [False], pieces
                assert refusal(written) == (b"400", b"bad_request"), pieces

    play(acts)


# -- answers, as an upstream connection reads them --------------------------------------------------------


class Tls:
    """Has nothing to say."""

    closed = partial = False
    failure = None
    again = 0
    unsent = b""

    def send(self, data: bytes) -> bytes:
        return b""


class Taker:
    """Writes down what an exchange is told."""

    def __init__(self) -> None:
        self.heads: list[object] = []
        self.body = b""
        self.end: object = None

    def take_interim(self, head: Any) -> None:
        self.heads.append((head.status, head.lines))

    def take_answer(self, head: Any, piece: bytes, done: bool) -> None:
        self.heads.append((head.status, head.lines, head.body, head.keep_alive))
        self.take_piece(piece, done)

    def take_piece(self, piece: bytes, done: bool) -> None:
        assert self.end is None
        self.body += piece
        self.end = "whole" if done else None

    def upstream_ended(self, error: Exception | None) -> None:
        assert self.end is None
        self.end = error or "cut"


Answered = tuple[Taker, UpstreamConnection]


@pytest.fixture
def hear(first: Generation) -> Callable[..., Answered]:
    """What comes of an answer in these pieces, then of a clean end if it `ends`."""

    def feed(pieces: list[bytes], method: bytes = b"GET", *, ends: bool = False) -> Answered:
        route = first.routes["orders"]
        connection = UpstreamConnection(route.upstream("orders.test"), RouteStats(), lambda _: None)
        connection._tls = Tls()  # type: ignore[assignment]
        connection._state = _State.OPEN
        connection._attempt.outcome = Outcome.OK
        taker = Taker()
        connection.begin(taker, method, b"", None)
        for piece in pieces:
            connection._take(piece)
        if ends:
            connection._end(Ending.CLOSE_NOTIFY)
        return taker, connection

    return feed


def test_valid_answers(hear: Callable[..., Answered]) -> None:
    """The same heads, bodies and trailers, and the connection can be used again, or not."""

    async def acts() -> None:
        for name, (method, reply) in REPLIES.items():
            wire = reply.wire(method, b"upstream.test:8443")
            closes = reply.body.kind == "close"

            def result(pieces: list[bytes]) -> tuple[object, ...]:
                taker, connection = hear(pieces, method, ends=closes)  # noqa: B023
                return taker.heads, taker.body, taker.end, connection.answer.trailers, connection.reusable

            whole = result([wire])
            assert whole[2] == "whole"
            assert whole[1] == (reply.body.data if reply.has_body(method) else b"")
            for pieces in splits(wire):
                assert result(pieces) == whole, (name, pieces)

    play(acts)


def test_malformed_heads_of_answers(hear: Callable[..., Answered]) -> None:
    """Bad, and nothing of it is passed on."""

    async def acts() -> None:
        for first, lines, _ in BAD_HEADS:
            wire = head_bytes(first, *lines) + b"hello"
            for pieces in ([wire], *splits(wire)):
                taker, connection = hear(pieces)
                assert isinstance(taker.end, BadAnswer), pieces
                assert (taker.heads, taker.body, connection.reusable) == ([], b"", False), pieces

    play(acts)


def test_malformed_bodies_of_answers(hear: Callable[..., Answered]) -> None:
    """An error, never an end, and the connection is not used again."""

    async def acts() -> None:
        for wire in BAD_CHUNKS:
            for pieces in ([CHUNKED + wire], *splits(CHUNKED + wire)):
                taker, connection = hear(pieces)
                assert isinstance(taker.end, BodyError), pieces
                assert not connection.reusable, pieces

    play(acts)
