"""Any bytes from a caller or from an upstream, in any pieces, and what must hold whatever they are.

The real data plane from `Downstream` to `UpstreamConnection`, on wires of the test's own: no sockets, no TLS,
and a clock that a script lets pass. A script is bytes, so that hypothesis and atheris can both write it: how
many steps, the steps, then what comes over the wire.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from sidecert import outflow, upstream
from sidecert.connect import NotConnected
from sidecert.downstream import Downstream, accept
from sidecert.exchange import Exchange
from sidecert.http1 import AnswerReader
from sidecert.http1.answer_reader import Events
from sidecert.metrics import Metrics
from sidecert.outcome import Ending, Observation, Stage
from sidecert.plane import Listener, Plane
from sidecert.tls import TlsFailure
from support import readers
from support.certs import Pki
from support.corpus import ASKS, REPLIES
from support.inside import generation, leftovers
from support.malformed import BAD_CHUNKS, BAD_HEADS, REFUSED_HEADS, head_bytes
from support.sidecar import config, route
from support.smuggled_answers import ANSWERS
from support.smuggling import REQUESTS
from support.still_loop import StillLoop

A_DAY = 86_400.0  # many pipelined calls, each of which waits for its answer in vain, take hours
SIZES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 300, 1000, 4000, 20_000, 70_000)
FULL = 100_000  # bytes that wait in a transport whose peer does not read
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
CHUNKY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
BREAKS = (ConnectionResetError("Connection reset by peer"), None)
CALLS = (
    b"GET /a HTTP/1.1\r\nHost: orders.test\r\n\r\n",
    b"HEAD /a HTTP/1.1\r\nHost: orders.test\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /a HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /a HTTP/1.0\r\nHost: orders.test\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: orders.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 9000\r\n\r\nab",
    b"GET /a HTTP/1.1\r\nHost: orders.test\r\n\r\n" * 3,
    b"GET /a HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 2\r\n\r\nab",
)

SCRIPTS = (
    b"\0",
    b"\5\x00\x00\x00\x20\x20",
    b"\7\x10\x13\x20\x30\x90\x40\x88",
    b"\3\xf0\x04\x0a",
)
"""Beginnings: in one piece, in a few, with time in between, and with the end of a connection used twice."""


class Wire:
    """A transport, and as the socket below it. `came` waits to be read; what is written is in `written`."""

    def __init__(self, loop: StillLoop, protocol: Any) -> None:
        self.written = bytearray()
        self.came: deque[bytes | None] = deque()
        """None for the end of what comes."""
        self.reset = self.lost = self.closing = False
        self._loop, self._protocol = loop, protocol
        self._full = self._paused = self._eof = False

    # -- its peer --------------------------------------------------------------------------------------

    def come(self, data: bytes | None) -> None:
        self.came.append(data)
        self.pump()

    def pump(self) -> None:
        while self.came and not self._paused and not self.closing:
            data = self.came.popleft()
            if data is not None:
                self._give(data)
            elif not self._protocol.eof_received():
                self.close()

    def _give(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def fill(self, full: bool) -> None:
        """The peer reads nothing, or all."""
        if full is self._full or self.lost:
            return
        self._full = full
        (self._protocol.pause_writing if full else self._protocol.resume_writing)()
        if self.closing and not full:
            self._loop.call_soon(self.lose, None)

    def lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self._protocol.connection_lost(error)

    # -- its owner -------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        assert not self._eof, "written to after the end"
        assert not self.closing or self.lost or self.reset, "written to after it was closed"
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self._full:
                self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        self.closing = self.reset = True
        self._loop.call_soon(self.lose, None)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self.pump)

    def get_write_buffer_size(self) -> int:
        return FULL if self._full and not self.lost else 0

    def get_extra_info(self, name: str) -> Any:
        return None if self.lost else self if name == "socket" else ("127.0.0.1", 1)

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None: ...


class Plain:
    """In the place of a TlsStream: what comes is what was said, all in `established` from the first."""

    ticket = closed = news = partial = False
    failure: TlsFailure | None = None
    cipher = None
    again = 0
    unsent = b""

    def __init__(self, _: object, __: object, seen: Observation) -> None:
        self.seen = seen
        self.established = True
        seen.stage = Stage.FINISHED_SENT
        seen.tls_version, seen.certificate_requested = "TLSv1.3", True

    def start(self) -> bytes:
        return b""

    def receive(self, data: bytes) -> bytes:
        if data == TICKET:
            self.ticket = self.news = True
            return b""
        if data == CLOSE_NOTIFY:
            self.closed = self.news = True
            return b""
        if data == ALERT:
            raise TlsFailure("an alert")
        return data

    def send(self, data: bytes) -> bytes:
        return data

    def take_output(self) -> bytes:
        self.news = False
        return b""

    close = send_unsent = start

    def note_acceptable_cas(self, _: object) -> None: ...

    def peer_chain(self) -> list[Any]:
        return []


WORDS = TICKET, CLOSE_NOTIFY, ALERT = b"\0ticket", b"\0close", b"\0alert"


class Far:
    """The socket that a connection is opened on, and the upstream at its other end."""

    def __init__(self, near: socket.socket) -> None:
        self._near = near
        self.wire: Wire
        self.connection: upstream.UpstreamConnection
        self.plain = bytearray()
        """What was sent to it as HTTP, before it switched protocols."""
        self.answered = 0
        self.spoilt_at: int | None = None
        """How much it had got when something came from it that nobody asked for, or that means nothing."""

    def fileno(self) -> int:
        return self._near.fileno()

    def recv(self, _: int) -> bytes:
        if not self.wire.came:
            raise BlockingIOError
        return self.wire.came.popleft() or b""

    def detach(self) -> int:
        return -1

    def getpeername(self) -> Any:
        return ("127.0.0.1", 1)

    getsockname = getpeername


class Reader(AnswerReader):
    """Remembers that it could not read on."""

    __slots__ = ("lost",)

    def feed(self, data: bytes) -> Events:
        assert not getattr(self, "lost", False), "what came behind nonsense was read"
        self.lost = True
        events = super().feed(data)
        self.lost = False
        return events


class UpstreamWire(Wire):
    """Tells what goes to it as HTTP from what goes through it."""

    far: Far

    def _give(self, data: bytes) -> None:
        connection = self.far.connection
        idle = connection._exchange is None and data not in WORDS
        super()._give(data)
        if idle or getattr(connection.answer, "lost", False):
            assert connection.ended, "a connection stays open on which nonsense has come"
        if self.far.spoilt_at is None and (idle or connection.answer.rest):
            self.far.spoilt_at = len(self.far.plain)

    def write(self, data: bytes) -> None:
        super().write(data)
        if not self.far.connection._tunnel:
            self.far.plain += data


class SpoiltWires:
    """Plays scripts, one after the other."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        self._near, self._other = socket.socketpair()
        self._errors = _Errors()
        log = logging.getLogger("sidecert")
        log.addHandler(self._errors)
        self._level, self._propagates = log.level, log.propagate
        log.setLevel(logging.ERROR)  # what is refused is told, in many lines

        class Nowhere:
            host, port = "127.0.0.1", 1

        routes = [
            route(
                name, Nowhere, trust=pki.trust, pool={"max_connections": 2, "max_waiting": 1, "max_idle": 1}
            )
            for name in ("orders", "up-x")
        ]
        limits = {"connections": 3, "header_bytes": "2KiB", "header_timeout": "2s", "keepalive": "9s"}
        self._generation = generation(folder, config(routes, pki.credentials, limits=limits))
        self._listener = Listener("here", None, frozenset())
        self._playing: _Play
        self._patches = ExitStack()
        for module, name, instead in (
            (outflow, "monotonic", lambda: self._playing.loop.now),
            (outflow, "_ask_kernel", _ask_kernel),
            (upstream, "TlsStream", Plain),
            (upstream, "AnswerReader", Reader),
            (upstream, "connect", self._connect),
        ):
            self._patches.enter_context(patch.object(module, name, instead))

    async def _connect(self, to: Any, seen: Observation) -> Far:
        return await self._playing.connect(to, seen)

    def close(self) -> None:
        self._patches.close()
        log = logging.getLogger("sidecert")
        log.removeHandler(self._errors)
        log.setLevel(self._level)
        self._near.close()
        self._other.close()

    @staticmethod
    def requests() -> Iterator[bytes]:
        """What callers send, to begin with."""
        yield from (ask.wire for ask in ASKS.values())
        yield from (case.wire for case in REQUESTS)
        for first, lines, *_ in REFUSED_HEADS:
            wire = head_bytes(first, *("Host: orders.test" if line == "X" else line for line in lines))
            if len(wire) < 3000:
                yield wire
        yield from (CALLS[3].partition(b"3\r\n")[0] + wire for wire in BAD_CHUNKS)
        yield CALLS[0] + CALLS[1].replace(b"Host", b"Ho st")

    @staticmethod
    def answers() -> Iterator[bytes]:
        """What upstreams send, to begin with."""
        yield from (reply.wire(method, b"orders.test") for method, reply in REPLIES.values())
        yield from (case.wire for case in ANSWERS)
        yield from (wire for first, lines, _ in BAD_HEADS if len(wire := head_bytes(first, *lines)) < 3000)
        yield SWITCH + b"through"

    def play_downstream(self, data: bytes) -> str:
        """Whatever a caller sends; the upstream answers well."""
        return self._play(data, spoils_answers=False)

    def play_upstream(self, data: bytes) -> str:
        """Whatever an upstream answers; the first byte chooses how its callers call."""
        return self._play(data, spoils_answers=True)

    def _play(self, data: bytes, *, spoils_answers: bool) -> str:
        self._errors.found.clear()
        loop = StillLoop()
        for each in self._generation.routes.values():
            for habits in each._habits.values():  # learned in the script before
                habits.waits_for_us = habits.asks_afterwards = False
        with loop.running():
            self._playing = playing = _Play(
                loop, self._generation, self._listener, self._near, spoils_answers=spoils_answers
            )
            playing.run(data)
        assert not self._errors.found, self._errors.found[0]
        return playing.judge()


class _Errors(logging.Handler):
    """All that our own code did wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


def _ask_kernel(transport: Any, what: int) -> int:
    """What comes and has not been read waits in the kernel; what is written never does."""
    if transport.lost or what == outflow.termios.TIOCOUTQ:
        return 0
    return sum(len(piece or b"") for piece in transport.came)


_METRICS = Metrics(CollectorRegistry())


class _Call:
    """A caller's connection, with all that went over it."""

    def __init__(self, loop: StillLoop, plane: Plane, listener: Listener) -> None:
        self.connection = accept(plane, listener)
        assert isinstance(self.connection, Downstream)
        self.wire = Wire(loop, self.connection)
        self.said = bytearray()
        self.methods: list[bytes] = []
        self.left = False
        """The caller went away, so what it got may be a part."""
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]


class _Play:
    """One script."""

    def __init__(
        self, loop: StillLoop, first: Any, listener: Listener, near: socket.socket, *, spoils_answers: bool
    ) -> None:
        self.loop = self._loop = loop
        self._listener, self._near = listener, near
        self._spoils_answers = spoils_answers
        loop.connect = self._connected
        self._plane = Plane(_METRICS)
        self._plane.adopt(first)
        self._plane.make_exchange = self._make
        self._calls: list[_Call] = []
        self._fars: list[Far] = []
        self._begun: Counter[tuple[bytes, bool]] = Counter()
        """The requests that were taken, by method and whether they have a body."""
        self._switched = False
        self._silent = self._refuses = self._slow = False
        self._asks = b""

    def _make(self, plane: Plane, caller: Any, head: Any) -> Exchange:
        self._calls[-1].methods.append(head.method)
        self._begun[head.method, head.body != 0] += 1
        return Exchange(plane, caller, head)

    # -- the upstream ----------------------------------------------------------------------------------

    async def connect(self, _: Any, seen: Observation) -> Far:
        seen.stage = Stage.CONNECTING
        if self._refuses:
            seen.ending = Ending.REFUSED
            raise NotConnected
        return Far(self._near)

    def _connected(self, protocol: Any, far: Far) -> Wire:
        far.wire = wire = UpstreamWire(self._loop, protocol)
        wire.far, far.connection = far, protocol
        self._fars.append(far)
        self._loop.call_soon(self._stand, far)
        return wire

    def _stand(self, far: Far) -> None:
        far.connection._look = lambda _: list(far.wire.came)  # type: ignore[assignment,return-value]
        if not self._slow:
            far.wire.come(TICKET)

    def _answer(self) -> None:
        """Answer well what has come whole, in the order in which it came."""
        for far in self._fars:
            found, _ = readers.requests_in(bytes(far.plain))
            for request in found[far.answered :]:
                far.answered += 1
                asks = request.values(b"upgrade") == [b"websocket"]
                body = SWITCH if asks else CHUNKY if len(request.target) & 1 else GOOD
                if request.method == b"HEAD":
                    body = GOOD.removesuffix(b"good")
                far.wire.come(body)

    # -- the script ------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        if self._spoils_answers:
            self._asks = CALLS[data[0] % len(CALLS)] if data else CALLS[0]
            data = data[1:]
        count = data[0] % 32 if data else 0
        steps, rest = data[1 : 1 + count], data[1 + count :]
        self._call()
        for step in steps:
            rest = self._step(step & 15, step >> 4, rest)
        while rest:
            rest = self._step(0, 15, rest)
        self._loop.settle()
        self._go_on()
        self._loop.let_pass(A_DAY)

    def _call(self) -> None:
        self._calls.append(_Call(self._loop, self._plane, self._listener))
        if self._asks:
            self._say(self._asks)

    def _say(self, data: bytes) -> None:
        call = self._calls[-1]
        if not call.wire.closing:
            call.said += data
            call.wire.come(data)

    def _step(self, kind: int, amount: int, rest: bytes) -> bytes:
        call = self._calls[-1]
        far = self._fars[-1] if self._fars else None
        if kind <= 4:
            size = SIZES[amount]
            self._feed(rest[:size])
            if kind < 4:
                self._go_on()
            return rest[size:]
        if kind == 5:
            call.wire.fill(not amount & 1)
        elif kind == 6 and far is not None:
            far.wire.fill(not amount & 1)
        elif kind == 7:
            call.wire.come(None)
        elif kind == 8:
            self._loop.let_pass(0.05 * (1 << amount if amount < 12 else amount))
        elif kind == 9:
            self._silent = bool(amount & 1)
            self._slow = bool(amount & 2)
            self._refuses = bool(amount & 4)
        elif kind == 10 and far is not None:
            self._break(far.wire, amount)
        elif kind == 11:
            self._plane.draining = True
            self._calls[-1].connection.drain()  # type: ignore[attr-defined]
            if amount & 1:
                self._plane.expired = True
                self._calls[-1].connection.expire()  # type: ignore[attr-defined]
        elif kind == 12:
            self._loop.turn()
        elif kind == 13:
            self._loop.settle()
            self._go_on()
        elif kind == 14:
            call.left = True
            call.wire.lose(BREAKS[amount & 1])
        elif call.wire.closing and len(self._calls) < 4:
            self._call()
        return rest

    def _break(self, wire: Wire, how: int) -> None:
        if how % 4 == 0:
            wire.come(None)
        elif how % 4 == 1:
            wire.lose(BREAKS[0])
        else:
            wire.come(CLOSE_NOTIFY if how % 4 == 2 else ALERT)

    def _feed(self, data: bytes) -> None:
        if not self._spoils_answers:
            self._say(data)
            return
        self._loop.settle()
        call = self._calls[-1]
        if call.wire.closing and len(self._calls) < 4:
            self._call()
            self._loop.settle()
        elif not call.wire.closing and call.connection._exchange is None:  # type: ignore[attr-defined]
            self._say(self._asks)
            self._loop.settle()
        if self._fars and data:
            self._fars[-1].wire.come(data)

    def _go_on(self) -> None:
        self._loop.settle()
        while not self._spoils_answers and not self._silent:
            before = sum(far.answered for far in self._fars)
            self._answer()
            self._loop.settle()
            if before == sum(far.answered for far in self._fars):
                return

    # -- the judge -------------------------------------------------------------------------------------

    def judge(self) -> str:
        """Whether all that is promised was kept. Time enough has passed for everything to end by itself."""
        assert not self._loop.errors, self._loop.errors
        assert not self._loop.unfinished, self._loop.unfinished
        left = leftovers(self._plane)
        assert not left, left
        idle = [id for id, pool in self._plane.pools.items() if pool._connections]
        assert not idle, idle
        assert not self._plane.leaving
        assert not self._plane.timers._waiting, "a deadline was left behind"
        assert not _METRICS.listener("here").connections
        for call in self._calls:
            assert call.wire.lost, "the call hangs"
        for far in self._fars:
            assert far.wire.closing, "a connection is forgotten"
            assert far.spoilt_at is None or far.spoilt_at == len(far.plain), "a spoilt connection was used"
        self._switched = any(far.connection._tunnel for far in self._fars)
        self._judge_requests()
        return self._judge_answers()

    def _judge_requests(self) -> None:
        """Each is one that its caller sent, and none is sent twice unless it is safe to."""
        whole: Counter[tuple[bytes, bytes]] = Counter()
        sent: Counter[tuple[bytes, bool]] = Counter()
        for far in self._fars:
            requests, part = readers.canonical_so_far(bytes(far.plain))
            whole.update((request.method, request.body) for request in requests)
            sent.update((request.method, request.framed) for request in requests)
            if part:
                given_up = readers.check_head(part)
                sent[given_up.method, given_up.framed] += 1
        for (method, framed), count in sent.items():
            most = 2 if method in (b"GET", b"HEAD", b"OPTIONS") and not framed else 1
            assert count <= most * self._begun[method, framed], (method, framed, count)
        if self._switched or self._spoils_answers:
            return
        said = Counter(
            (each.method, each.body)
            for call in self._calls
            for each in readers.requests_in(bytes(call.said))[0]
        )
        assert whole.keys() <= said.keys(), (whole, said)

    def _judge_answers(self) -> str:
        """One for each request at most, and one that says itself where it ends, or is cut."""
        statuses: list[str] = []
        for call in self._calls:
            data = bytes(call.wire.written)
            if self._switched:
                continue
            ended: readers.Ended = "reset" if call.wire.reset or call.left else "close"
            statuses += [str(reply.status) for reply in _replies(call, data, ended)]
        return " ".join(statuses[:3]) or ("tunnel" if self._switched else "nothing")


def _replies(call: _Call, data: bytes, ended: readers.Ended) -> list[readers.Reply]:
    """What could not be read is answered last, with a body unless it began as HEAD does."""
    try:
        return readers.replies_in(data, [*call.methods, b"GET"], ended)
    except AssertionError:
        if b"HEAD " not in call.said:
            raise
        return readers.replies_in(data, [*call.methods, b"HEAD"], ended)
