"""A running sidecar with a recording upstream behind it: what is sent at one end must arrive at the other."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from support.certs import Pki
from support.clients import Address, Talker
from support.recorder import Exchange, TlsRecorder, tls_recorder
from support.sidecar import config, route, running
from support.wire import Ask, Reply, read_chunks, trailers_passed_on

PATIENCE = 10.0
ONE_WRITE = 16 * 1024
"""What arrives at once. Nothing may be sent later on a connection that its last request ends: a reset for it
could destroy the answer (RFC 9112 9.6)."""

Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


@dataclass(frozen=True)
class Call:
    """A request, its answer, and how the answer's bytes are cut into writes."""

    ask: Ask
    reply: Reply
    cut: Cut = whole

    def __repr__(self) -> str:
        return f"Call({self.ask!r},\n    {self.reply!r},\n    {self.cut!r})"


@dataclass(frozen=True)
class Raw:
    """Bytes to answer with, whatever they are; the connection ends with them."""

    data: bytes
    cut: Cut = whole


@dataclass
class Arrived:
    """A request as the upstream got it."""

    head: bytes
    body: bytes
    subject: str | None


class BothEnds:
    """Of the listeners, 0 is on TCP, 1 and 2 are unix sockets; 1 is pinned to the one route there is."""

    def __init__(self, listeners: Sequence[Address], upstream: TlsRecorder) -> None:
        self.upstream = upstream
        self.address = upstream.address.encode()
        self._listeners = listeners
        self._script: deque[Call | Raw] = deque()
        self._arrived: list[Arrived] = []
        self._changed = threading.Condition()
        self._gone = 0
        """Upstream connections up to this number belong to calls that have failed."""
        upstream.answer = self._answer

    def _answer(self, exchange: Exchange) -> None:
        body = exchange.read_raw_body()
        seen = exchange.seen
        with self._changed:
            if seen.connection <= self._gone:
                exchange.abort()
                return
            self._arrived.append(Arrived(seen.raw_head, body, seen.subject))
            told = self._script.popleft() if self._script else None
        if told is None:
            exchange.abort()  # nobody should have asked; whoever counts the requests will tell
            return
        raw = isinstance(told, Raw)
        data = told.data if raw else told.reply.wire(seen.method.encode(), self.address)
        for piece in told.cut(data):
            exchange.send(piece)
        if raw or told.reply.ends:
            exchange.finish()

    def tell(self, *answers: Call | Raw) -> None:
        """What to answer next."""
        with self._changed:
            self._arrived = []
            self._script = deque(answers)

    @property
    def arrived(self) -> list[Arrived]:
        """What has arrived, as a whole, since `tell`."""
        with self._changed:
            return list(self._arrived)

    def talker(self, listener: int = 0) -> Talker:
        return Talker(self._listeners[listener], PATIENCE)

    def send(self, talker: Talker, pieces: Sequence[bytes]) -> None:
        """Sends the pieces. On a unix socket each waits until the one before has been read."""
        for piece in pieces:
            talker.send(piece)
            while talker.sock.family == socket.AF_UNIX and len(pieces) > 1 and _unread(talker.sock):
                os.sched_yield()

    def check(self, calls: Sequence[Call], cut_asks: Cut = whole, listener: int = 0) -> None:
        """Sends the requests, one behind the other on one connection, and compares both ends."""
        try:
            self._check(calls, cut_asks, listener)
        except BaseException:
            # What is still on its way must not be taken for a part of the next calls.
            with self._changed:
                self._gone = self.upstream.connections
            self.upstream.drop_connections()
            raise

    def _check(self, calls: Sequence[Call], cut_asks: Cut, listener: int) -> None:
        self.tell(*calls)
        served = _served(calls)
        with self.talker(listener) as talker:
            pieces = cut_asks(b"".join(call.ask.wire for call in served))
            beyond = b"".join(call.ask.wire for call in calls[len(served) :])
            if len(pieces[-1] + beyond) < ONE_WRITE:
                pieces[-1] += beyond
            self.send(talker, pieces)
            for call in served:
                check_answer(talker, call)
            if served[-1].reply.keeps_caller(served[-1].ask):
                talker.shutdown_write()
            assert talker.read_until_close() == b""
        arrived = self.arrived
        assert len(arrived) == len(served)
        for got, call in zip(arrived, served, strict=True):
            assert got.subject == "alice"
            assert got.head == call.ask.head_upstream(self.address)
            check_body(got.body, call.ask)


def _unread(sock: socket.socket) -> int:
    """How much of what was sent on a unix socket the other side has not read."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _served(calls: Sequence[Call]) -> list[Call]:
    """Nothing that comes behind the last request of a connection is looked at (RFC 9112 9.6)."""
    served: list[Call] = []
    for call in calls:
        served.append(call)
        if not call.reply.keeps_caller(call.ask):
            break
    return served


def check_body(got: bytes, ask: Ask) -> None:
    """The request's body has come as it was meant."""
    if ask.body.kind != "chunked":
        assert got == ask.body.data
        return
    stream = BytesIO(got)
    data, trailers = read_chunks(stream.readline, stream.read)
    assert data == ask.body.data
    assert trailers == trailers_passed_on(ask.body.trailers)


def check_answer(talker: Talker, call: Call) -> None:
    """The next answer is this one."""
    ask, reply = call.ask, call.reply
    for expected in (reply.interims_downstream(ask), reply.head_downstream(ask)):
        got = talker.read_until(b"\r\n\r\n") if expected else b""
        while got.count(b"\r\n\r\n") < expected.count(b"\r\n\r\n"):
            got += talker.read_until(b"\r\n\r\n")
        assert got == expected
    framing = reply.framing_downstream(ask)
    if framing == "length":
        assert talker.read_exactly(len(reply.body.data)) == reply.body.data
    elif framing == "chunked":
        data, trailers = read_chunks(lambda: talker.read_until(b"\r\n"), talker.read_exactly)
        assert data == reply.body.data
        assert trailers == trailers_passed_on(reply.body.trailers)
    elif framing == "close":
        assert talker.read_until_close() == reply.body.data


@contextmanager
def both_ends(pki: Pki, folder: Path) -> Iterator[BothEnds]:
    """Both ends for the length of a with block."""
    with tls_recorder(pki.upstream, pki.trust) as upstream:
        listeners = (
            {"bind": "127.0.0.1:0", "origins": "any"},
            {"bind": "unix:pinned.sock", "route": "orders", "origins": "any"},
            {"bind": "unix:plain.sock", "origins": "any"},
        )
        spec = config([route("orders", upstream, trust=pki.trust)], pki.credentials, listeners=listeners)
        with running(folder, spec) as sidecar:
            yield BothEnds(sidecar.listeners, upstream)
