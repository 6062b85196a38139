"""Whatever of our own code raises: the call is refused or cut, nobody hangs, and nothing goes out unasked.

Every function of the data plane is made to raise, one at a time, in each kind of call that reaches it. The
calls are real ones, over real sockets and TLS, on both event loops.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import itertools
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import sidecert.answers
import sidecert.attempt
import sidecert.callers
import sidecert.circuit
import sidecert.connect
import sidecert.downstream
import sidecert.exchange
import sidecert.refusals
import sidecert.upstream
from sidecert.attempt import Attempt
from sidecert.callers import LOOPBACK_ONLY, Callers
from sidecert.circuit import CircuitOpen, Circuits, Try
from sidecert.downstream import Downstream
from sidecert.exchange import Exchange
from sidecert.http1 import AnswerReader, RequestParser, ResponseParser, answer_reader, request_head
from sidecert.metrics import RouteStats
from sidecert.plane import Plane
from sidecert.pool import Pool
from sidecert.sparing import Sparing
from sidecert.timers import Deadline, Timers
from sidecert.tls import TlsStream
from sidecert.upstream import UpstreamConnection
from support.certs import Pki
from support.clients import Answer, Talker
from support.inside import LOOPS, Inside, LoopKind, running_inside
from support.peers import Peers
from support.recorder import Exchange as Asked
from support.recorder import TlsRecorder, head
from support.sidecar import Addressed, config, route

HANG = 2.0  # seconds in which a caller must have been told
BIG = 8 << 20
TRIES = 5  # chances for a place that the run of a call that was looked at came through by its timing
TINY = 5000  # chunks; what comes of them at last is more than is read in a turn of the loop
TINY_CHUNKS = b"1\r\nt\r\n" * TINY + b"0\r\n\r\n"
TURNED_AWAY = (
    b"<html>\r\n<head><title>400 No required SSL certificate was sent</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n</body>\r\n</html>\r\n"
)
CLASSES: tuple[type, ...] = (
    Downstream,
    Exchange,
    UpstreamConnection,
    Attempt,
    Pool,
    Circuits,
    Try,
    AnswerReader,
    TlsStream,
    Deadline,
    Timers,
)
OTHERS: tuple[tuple[Any, str], ...] = (
    (Callers, "check_address"),
    (Callers, "check_page"),
    (Callers, "_allows"),
    (Sparing, "left_out"),
    (sidecert.callers, "_address"),
    (Plane, "find"),
    (Plane, "forget"),
    (RequestParser, "parse"),
    (RequestParser, "check_partial"),
    (ResponseParser, "parse"),
    (ResponseParser, "check_partial"),
    (RouteStats, "handshake"),
    (RouteStats, "request"),
    (RouteStats, "cert_requested"),
    (sidecert.answers, "render"),
    (sidecert.connect, "_resolve"),
    (sidecert.connect, "_race"),
    (sidecert.connect, "_attempt"),
    (sidecert.connect, "_abandon"),
    (sidecert.downstream, "body_reader"),
    (sidecert.downstream, "find_head"),
    (sidecert.exchange, "downstream_head"),
    (sidecert.exchange, "encode_chunk"),
    (sidecert.refusals, "explain"),
    (CircuitOpen, "__init__"),
    (sidecert.exchange, "last_chunk"),
    (sidecert.exchange, "upstream_head"),
    (sidecert.circuit._Circuit, "error"),
    (sidecert.refusals, "circuit_open"),
    (sidecert.refusals, "draining"),
    (request_head, "page_elsewhere"),
    (answer_reader, "body_reader"),
    (answer_reader, "find_head"),
    (sidecert.upstream, "connect"),
    (sidecert.attempt, "decide"),
)
# What everything else falls back to when it has failed: these raise once, not for ever.
LAST_RESORTS = {
    "Downstream._reset",
    "Downstream.cut",
    "Downstream._fault",
    "Exchange.fault",
    "UpstreamConnection._fault",
}
# These hold nothing but a guard, with nobody behind them to fall back to. What they call is made to raise.
GUARDS = {
    "Deadline.look",
    "Timers._fire",
    "Downstream._deadline_passed",
    "Downstream._go_on",
    "Downstream.connection_lost",
    "Downstream.connection_made",
    "Downstream.drain",
    "Downstream.expire",
    "Downstream.pause_writing",
    "Downstream.resume_writing",
    "Exchange.upstream_ended",
    "UpstreamConnection._held_long_enough",
    "UpstreamConnection._tell_end",
    "UpstreamConnection.connection_lost",
    "UpstreamConnection.connection_made",
    "UpstreamConnection._breathed",
    "UpstreamConnection._flush",
    "UpstreamConnection.data_received",
    "UpstreamConnection.eof_received",
    "UpstreamConnection.pause_writing",
    "UpstreamConnection.resume_writing",
}
# These note that something has ended or is free again. Callers are told all the same; the numbers are wrong.
BOOKKEEPING = {
    "Downstream._leave_exchange",
    "Exchange._end",
    "Exchange._let_go",
    "Exchange.caller_left",
    "Plane.forget",
    "Pool._ended",
    "UpstreamConnection._close_transport",
    "UpstreamConnection._end",
    "UpstreamConnection.close",
    "UpstreamConnection.is_alive",
    "UpstreamConnection.leave",
}
# The loop calls these, so what is thrown in their place goes to it. From all the others it must get nothing.
ENTRIES = {
    "Downstream.data_received",
    "Downstream.eof_received",
    "Exchange._opening_ended",
}
# No call here comes through these.
NO_CALL = {
    # a reload, the end, a pinned listener, or who looks on
    *(
        "Circuits.__init__",
        "Pool.__init__",
        "Timers.__init__",
        "Pool.abort",
        "Pool.retire",
        "Downstream.abort",
        "Downstream.own_address",
    ),
    *("Circuits.any_open", "UpstreamConnection.peer", "TlsStream.peer_chain", "TlsStream.cipher"),
    *("TlsStream.presented", "TlsStream.check_result"),
    # taken from the pool when it is made, so that what is put in their place later is not called
    *("Pool._sweep", "Pool._refuse_waiters"),
    # only an upstream that shakes hands again, or asks for no certificate
    *("Attempt._log", "Attempt._tell_asks_afterwards", "Pool._notice_unasked", "TlsStream._begin_again"),
    *("TlsStream.send_unsent", "UpstreamConnection._send_unsent"),
    # only where a write meets a reset
    "UpstreamConnection._read_what_is_left",
}
# Reached in some runs of a call and not in others, so that all the tries may be in vain.
SOMETIMES = {
    # by the tick that a deadline falls in: most are moved without a new one
    "Deadline._wait",
    "Timers.add",
    "Timers.remove",
}


class Boom(Exception):
    """What is thrown in."""


@dataclass(frozen=True)
class Place:
    """A function that can be made to raise."""

    owner: Any
    name: str

    def __str__(self) -> str:
        return f"{self.owner.__name__.rpartition('.')[2]}.{self.name}"

    @contextmanager
    def wrapped(self, enter: Callable[[], None]) -> Iterator[None]:
        """Calls `enter` before each call of the function, or in its place where it raises."""
        original = inspect.getattr_static(self.owner, self.name)
        setattr(self.owner, self.name, _wrap(original, enter))
        try:
            yield
        finally:
            setattr(self.owner, self.name, original)


def _wrap(original: Any, enter: Callable[[], None]) -> Any:
    if isinstance(original, property):
        return property(_wrap(original.fget, enter))
    if inspect.iscoroutinefunction(original):

        async def later(*arguments: Any, **named: Any) -> Any:
            enter()
            return await original(*arguments, **named)

        return later

    def now(*arguments: Any, **named: Any) -> Any:
        enter()
        return original(*arguments, **named)

    return now


def places() -> list[Place]:
    """Every function that is part of carrying a call."""
    found = [
        Place(owner, name)
        for owner in CLASSES
        for name, value in vars(owner).items()
        if isinstance(value, (FunctionType, property))
    ]
    found += [Place(owner, name) for owner, name in OTHERS]
    return [place for place in found if str(place) not in GUARDS]


# -- the upstream ------------------------------------------------------------------------------------------


def by_path(asked: Asked) -> None:
    """What the upstream does about each path."""
    seen = asked.seen
    match seen.target.partition("?")[0]:
        case "/big":
            asked.send(head(200, ("Content-Length", str(BIG))))
            for _ in range(BIG >> 16):
                asked.send(b"s" * 65536)
        case "/chunked":
            asked.send(head(200, ("Transfer-Encoding", "chunked")) + b"3\r\nabc\r\n")
            GATE.wait(5)
            asked.send(b"3\r\ndef\r\n0\r\nX-Sum: 6\r\n\r\n")
        case "/tiny-chunks":
            asked.send(head(200, ("Transfer-Encoding", "chunked")))
            GATE.wait(5)
            asked.send(TINY_CHUNKS[:9000])
            SECOND_GATE.wait(5)
            asked.send(TINY_CHUNKS[9000:])
        case "/turned-away":
            told = head(400, ("Content-Type", "text/html"), ("Content-Length", str(len(TURNED_AWAY))))
            asked.send(told + TURNED_AWAY[:60])
            GATE.wait(5)
            asked.send(TURNED_AWAY[60:])
        case "/until-close":
            asked.send(head(200) + b"abcdef")
            asked.finish()
        case "/hints":
            answer = head(200, ("Content-Length", "6")) + b"abcdef"
            asked.send(head(103, ("Link", "</a>")) + answer[:10])
            GATE.wait(5)
            asked.send(answer[10:])
        case "/cut":
            asked.send(head(200, ("Content-Length", "1000")) + b"abc")
            asked.cut()
        case "/dies-when-reused":
            if any(r.connection == seen.connection for r in RECORDED[-1].requests if r is not seen):
                asked.cut()
            else:
                asked.send(head(200, ("Content-Length", "6")) + b"abcdef")
        case "/junk":
            asked.send(b"what is this\r\n\r\n")
        case "/silence":
            asked.wire.recv(1)
            asked.ended = True
        case "/socket":
            asked.send(head(101, ("Upgrade", "websocket"), ("Connection", "Upgrade")))
            while data := asked.wire.recv(65536):
                asked.send(data)
            asked.ended = True
        case "/held":
            GATE.wait(5)
            asked.send(head(200, ("Content-Length", "6")) + b"abcdef")
        case "/slow-to-read":
            GATE.wait(5)
            asked.read_body()
            asked.send(head(200, ("Content-Length", "6")) + b"abcdef")
        case _:
            asked.read_body()
            asked.send(head(200, ("Content-Length", "6")) + b"abcdef")


RECORDED: list[TlsRecorder] = []
GATE, SECOND_GATE = threading.Event(), threading.Event()
NUMBERS = itertools.count()  # so that every request can be told from every other


# -- the calls ---------------------------------------------------------------------------------------------


class CutAtAccept(Exception):
    """The sidecar has reset the connection before the caller could say anything."""


@dataclass
class Stage:
    """Where one call is made. `over` is whether the fault has come; `ends` how each request ended."""

    inside: Inside
    on_arm: Callable[[], None]
    over: Callable[[], bool]
    ends: list[str] = field(default_factory=list)
    talkers: list[Talker] = field(default_factory=list)

    def talker(self) -> Talker:
        try:
            talker = Talker(self.inside.address, HANG)
        except (ConnectionResetError, BrokenPipeError):
            self.ends.append("cut")
            raise CutAtAccept from None
        self.talkers.append(talker)
        return talker

    def arm(self) -> None:
        """Lets the fault come from now on; not while a connection from before is still being accepted."""
        plane = self.inside.plane
        self.inside.wait_for(lambda: len(plane.connections) + len(plane.leaving) == len(self.talkers))
        self.on_arm()

    @contextmanager
    def draining(self, limit: float) -> Iterator[None]:
        """The end of the sidecar comes, and has come; its loop goes on."""
        drain = asyncio.run_coroutine_threadsafe(self.inside.plane.drain(limit), self.inside.loop)
        yield
        drain.result(HANG + limit)

    def wait_until_asked(self, route: str = "good") -> None:
        """Waits until the first request is on its way, on a connection that the upstream has accepted."""
        pool = self.inside.pool(route)
        self.inside.wait_for(
            lambda: pool.stats.active == 1 and all(c.outcome is not None for c in pool._connections)
        )

    def wait_unless_broken(self, route: str, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds; in vain where the fault came first, and then not for long."""
        stats = self.inside.stats(route)
        try:
            self.inside.wait_for(lambda: condition() or (self.over() and not stats.in_progress), 1)
        except AssertionError:
            if not self.over():
                raise

    def wait_until_answer_begins(self) -> None:
        """Waits until the first piece of the answer has come from the upstream, or the fault."""
        opened = self.inside.pool("good")._connections
        self.wait_unless_broken("good", lambda: any(c.answer.heard for c in opened))

    def request(self, target: str, *fields: str, method: str = "GET", route: str = "good") -> bytes:
        lines = [f"{method} {target}?{next(NUMBERS)} HTTP/1.1", f"Host: {route}.test", *fields]
        return "\r\n".join([*lines, "", ""]).encode()

    def read(self, talker: Talker, body: bytes = b"abcdef") -> Answer | None:
        """One answer, which must be the upstream's whole one, or one of ours, or be cut; None when cut."""
        try:
            answer = talker.read_answer()
        except (EOFError, ConnectionError):
            self.ends.append("cut")
            return None
        except TimeoutError:
            raise AssertionError("the caller was left hanging") from None
        ours = answer.header("Sidecert-Outcome")
        if ours is None:
            assert answer.status == 101 or answer.body == body, "a wrong body, with a clean end"
        self.ends.append(ours or "whole")
        return answer

    def send(self, talker: Talker, data: bytes) -> None:
        """Sends, unless the call has been refused or cut already."""
        try:
            talker.send(data)
        except OSError:
            pass

    def shutdown_write(self, talker: Talker) -> None:
        try:
            talker.shutdown_write()
        except OSError:
            pass

    def drop_end(self, talker: Talker) -> None:
        """Reads until the connection ends, however it ends."""
        try:
            talker.read_until_close()
        except ConnectionError:
            pass
        except TimeoutError:
            raise AssertionError("the connection was left open") from None


def fresh(stage: Stage) -> None:
    """A call on a new connection, both sides."""
    stage.arm()
    talker = stage.talker()
    stage.send(talker, stage.request("/fresh"))
    stage.read(talker)


def reused(stage: Stage) -> None:
    """A second call on the same connections."""
    talker = stage.talker()
    stage.send(talker, stage.request("/first"))
    stage.read(talker)
    stage.arm()
    stage.send(talker, stage.request("/second"))
    stage.read(talker)


def pipelined(stage: Stage) -> None:
    """Three requests in one packet."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, b"".join(stage.request("/pipelined") for _ in range(3)))
    for _ in range(3):
        if stage.read(talker) is None:
            break


def second_of_pipelined(stage: Stage) -> None:
    """The fault comes while the second request waits behind the first."""
    GATE.clear()
    talker = stage.talker()
    stage.send(talker, stage.request("/held") + stage.request("/pipelined"))
    stage.wait_until_asked()
    stage.arm()
    GATE.set()
    if stage.read(talker) is not None:
        stage.read(talker)


def posted(stage: Stage) -> None:
    """A body that comes after its head."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/posted", "Content-Length: 6", method="POST") + b"abc")
    stage.inside.wait_for(lambda: stage.inside.stats("good").in_progress == 1 or stage.over())
    stage.send(talker, b"def")
    stage.read(talker)


def posted_like_a_request(stage: Stage) -> None:
    """A body that reads like a request: it must never become one."""
    talker = stage.talker()
    stage.arm()
    inner = stage.request("/smuggled", method="POST")
    stage.send(talker, stage.request("/posted", f"Content-Length: {len(inner)}", method="POST") + inner)
    stage.read(talker)


def posted_chunked(stage: Stage) -> None:
    """A chunked body with a trailer, half of it on an established connection."""
    talker = stage.talker()
    stage.send(
        talker, stage.request("/posted", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n"
    )
    stage.wait_until_asked()
    stage.arm()
    stage.send(talker, b"3\r\ndef\r\n0\r\nX-Sum: 6\r\n\r\n")
    stage.read(talker)


def answered_chunked(stage: Stage) -> None:
    """A chunked answer with a trailer, in two pieces."""
    GATE.clear()
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/chunked"))
    stage.wait_until_answer_begins()
    GATE.set()
    stage.read(talker)


def posted_in_tiny_chunks(stage: Stage) -> None:
    """A body in so many chunks that it is read bit by bit."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/posted", "Transfer-Encoding: chunked", method="POST"))
    stage.wait_unless_broken("good", lambda: stage.inside.stats("good").in_progress == 1)
    stage.send(talker, TINY_CHUNKS[:9000])
    stage.wait_unless_broken("good", lambda: any(c._dense for c in stage.inside.plane.connections))
    stage.send(talker, TINY_CHUNKS[9000:])
    stage.read(talker)


def answered_in_tiny_chunks(stage: Stage) -> None:
    """An answer in so many chunks that it is read bit by bit."""
    GATE.clear()
    SECOND_GATE.clear()
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/tiny-chunks"))
    stage.wait_until_answer_begins()
    GATE.set()
    opened = stage.inside.pool("good")._connections
    stage.wait_unless_broken("good", lambda: any(c.answer.dense for c in opened))
    SECOND_GATE.set()
    stage.read(talker, b"t" * TINY)


def turned_away(stage: Stage) -> None:
    """An answer that refuses the certificate, in two pieces."""
    GATE.clear()
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/turned-away"))
    stage.wait_until_answer_begins()
    GATE.set()
    stage.read(talker, TURNED_AWAY)


def answered_until_close(stage: Stage) -> None:
    """A close-delimited answer."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/until-close"))
    stage.read(talker)


def interim(stage: Stage) -> None:
    """A 103 with a part of the answer's head, and the rest later."""
    GATE.clear()
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/hints"))
    stage.wait_until_answer_begins()
    GATE.set()
    stage.read(talker)


def cut_answer(stage: Stage) -> None:
    """The upstream breaks off in the middle of its answer."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/cut"))
    stage.read(talker)


def repeated(stage: Stage) -> None:
    """The upstream ends a reused connection instead of answering: a GET is sent once more."""
    talker = stage.talker()
    stage.send(talker, stage.request("/dies-when-reused"))
    stage.read(talker)
    stage.arm()
    stage.send(talker, stage.request("/dies-when-reused"))
    stage.read(talker)


def junk(stage: Stage) -> None:
    """An answer that is none."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/junk"))
    stage.read(talker)


def silent(stage: Stage) -> None:
    """An upstream that does not answer in time."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/silence", route="impatient"))
    stage.read(talker)


def slow_reader(stage: Stage) -> None:
    """The caller does not read for a while: we stop reading from the upstream, and go on later."""
    talker = stage.talker()
    talker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    stage.arm()
    stage.send(talker, stage.request("/big"))
    stage.wait_unless_broken("good", lambda: any(c._write_paused for c in stage.inside.plane.connections))
    stage.read(talker, b"s" * BIG)


def slow_upstream(stage: Stage) -> None:
    """The upstream does not read for a while: we stop reading from the caller, and go on later."""
    GATE.clear()
    talker = stage.talker()
    stage.send(talker, stage.request("/slow-to-read", f"Content-Length: {BIG}", method="POST"))
    stage.wait_until_asked()
    stage.arm()
    sender = threading.Thread(target=stage.send, args=(talker, b"p" * BIG), daemon=True)
    sender.start()
    stage.wait_unless_broken("good", lambda: any(c._reading_paused for c in stage.inside.plane.connections))
    GATE.set()
    stage.read(talker)
    talker.reset()
    sender.join(5)
    assert not sender.is_alive()


def half_closed(stage: Stage) -> None:
    """A caller that says it sends no more, and waits for its answer."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/half-closed"))
    stage.shutdown_write(talker)
    stage.read(talker)
    stage.drop_end(talker)


def caller_leaves(stage: Stage) -> None:
    """A caller that goes while the upstream is thinking."""
    talker = stage.talker()
    stage.send(talker, stage.request("/silence"))
    stage.wait_until_asked()
    stage.arm()
    talker.reset()


def tunnel(stage: Stage) -> None:
    """An upgraded connection, used both ways and then ended."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/socket", "Upgrade: websocket", "Connection: Upgrade"))
    answer = stage.read(talker)
    if answer is None or answer.status != 101:
        return
    try:
        stage.send(talker, b"ping")
        assert talker.read_exactly(4) == b"ping"
    except (EOFError, ConnectionError):
        return
    except TimeoutError:
        raise AssertionError("the tunnel was left hanging") from None
    stage.shutdown_write(talker)
    stage.drop_end(talker)


def malformed(stage: Stage) -> None:
    """A request that is none."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, b"what is this\r\n\r\n")
    stage.read(talker)
    stage.drop_end(talker)


def malformed_body(stage: Stage) -> None:
    """A body that breaks its framing half way."""
    talker = stage.talker()
    stage.send(
        talker, stage.request("/posted", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n"
    )
    stage.wait_until_asked()
    stage.arm()
    stage.send(talker, b"zzz\r\n")
    stage.read(talker)


def header_too_slow(stage: Stage) -> None:
    """A header that stops half way."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, b"GET / HTTP/1.1\r\nHost:")
    stage.read(talker)
    stage.drop_end(talker)


def unrouted(stage: Stage) -> None:
    """A host that no route has."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/", route="nobody"))
    stage.read(talker)


def refused_certificate(stage: Stage) -> None:
    """The upstream turns the route's certificate away."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/", route="refused"))
    stage.read(talker)


def no_connection(stage: Stage) -> None:
    """Nobody listens."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/", route="closed"))
    stage.read(talker)


def no_handshake(stage: Stage) -> None:
    """The upstream takes the connection and says nothing."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/", route="mute"))
    stage.read(talker)


def without_ticket(stage: Stage) -> None:
    """A TLS 1.3 upstream that never says whether it has accepted us, until it answers."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/", route="ticketless"))
    stage.read(talker)


def full_pool(stage: Stage) -> None:
    """Three calls and one connection: two wait for their turn."""
    first, second, third = stage.talker(), stage.talker(), stage.talker()
    stage.arm()
    for talker in (first, second, third):
        stage.send(talker, stage.request("/one-by-one", route="narrow"))
    for talker in (first, second, third):
        stage.read(talker)


def full_pool_for_long(stage: Stage) -> None:
    """The only connection stays in use."""
    first, second = stage.talker(), stage.talker()
    first.send(stage.request("/silence", route="narrow-and-brief"))
    stage.wait_until_asked("narrow-and-brief")
    stage.arm()
    second.send(stage.request("/waits", route="narrow-and-brief"))
    stage.read(second)
    first.reset()


def left_alone(stage: Stage) -> None:
    """Nobody listens: the second call is answered at once, and a later one tries again."""
    talkers = [stage.talker() for _ in range(3)]
    stage.arm()
    for talker in talkers[:2]:
        stage.send(talker, stage.request("/", route="alone"))
        stage.read(talker)
    circuits = stage.inside.pool("alone")._circuits._circuits
    now = stage.inside.loop.time
    stage.inside.wait_for(lambda: all(each.until is None or each.until < now() for each in circuits.values()))
    stage.send(talkers[2], stage.request("/", route="alone"))
    stage.read(talkers[2])


def waits_in_vain(stage: Stage) -> None:
    """The only place goes to an attempt that fails: who waits for it is told so too."""
    first, second = stage.talker(), stage.talker()
    stage.arm()
    stage.send(first, stage.request("/", route="alone-and-narrow"))
    stats = stage.inside.stats("alone-and-narrow")
    stage.inside.wait_for(lambda: stats.connections == 1 or stage.over())
    stage.send(second, stage.request("/", route="alone-and-narrow"))
    for talker in (first, second):
        stage.read(talker)


def nobody_here() -> Callers:
    """The rules of a listener that takes no call of ours; anew, so that it does not know the caller yet."""
    return Callers("127.0.0.1:0", (ipaddress.ip_network("10.0.0.0/8"),))


def stranger(stage: Stage) -> None:
    """A caller whose address may not call."""
    stage.inside.listener.callers = nobody_here()
    stage.arm()
    talker = stage.talker()
    stage.send(talker, stage.request("/stranger"))
    stage.read(talker)
    stage.drop_end(talker)


def no_longer_allowed(stage: Stage) -> None:
    """A reload has taken the caller's address out of `allow`, between two calls on one connection."""
    talker = stage.talker()
    stage.send(talker, stage.request("/first"))
    stage.read(talker)
    stage.arm()
    stage.inside.listener.callers = nobody_here()
    stage.send(talker, stage.request("/second"))
    stage.read(talker)
    stage.drop_end(talker)


def page(stage: Stage) -> None:
    """A web page of another origin has a browser call."""
    talker = stage.talker()
    stage.arm()
    stage.send(talker, stage.request("/page", "Origin: https://elsewhere.test"))
    stage.read(talker)
    stage.drop_end(talker)


def drained(stage: Stage) -> None:
    """A drain, with one call under way and one connection that has none."""
    GATE.clear()
    busy, idle = stage.talker(), stage.talker()
    stage.send(busy, stage.request("/held"))
    stage.wait_until_asked()
    stage.arm()
    with stage.draining(2):
        stage.drop_end(idle)
        GATE.set()
        stage.read(busy)
        stage.drop_end(busy)


def drained_in_vain(stage: Stage) -> None:
    """The limit of a drain, with a call whose answer has not begun, a tunnel, and half a request."""
    silent, socket, half = stage.talker(), stage.talker(), stage.talker()
    stage.send(socket, stage.request("/socket", "Upgrade: websocket", "Connection: Upgrade"))
    stage.read(socket)
    stage.send(silent, stage.request("/silence"))
    opened = stage.inside.pool("good")._connections
    stage.inside.wait_for(lambda: len(opened) == 2 and all(c.outcome is not None for c in opened))
    stage.send(half, b"GET / HTTP/1.1\r\nHost:")
    stage.inside.wait_for(lambda: any(c._buffer for c in stage.inside.plane.connections))
    stage.arm()
    with stage.draining(0.02):
        stage.read(half)
        stage.read(silent)
        stage.drop_end(socket)


def swept(stage: Stage) -> None:
    """A connection that has been idle for long enough."""
    talker = stage.talker()
    stage.send(talker, stage.request("/swept", route="forgetful"))
    stage.read(talker)
    stage.arm()
    try:
        stage.inside.wait_for(lambda: not stage.inside.stats("forgetful").idle, 0.3)
    except AssertionError:
        if not stage.over():
            raise
        # it stays for as long as the fault does
    stage.send(talker, stage.request("/swept", route="forgetful"))
    stage.read(talker)


CALLS: dict[Callable[[Stage], None], set[str]] = {
    fresh: set(),
    reused: set(),
    pipelined: set(),
    second_of_pipelined: set(),
    posted: set(),
    posted_like_a_request: set(),
    posted_chunked: set(),
    answered_chunked: set(),
    posted_in_tiny_chunks: set(),
    answered_in_tiny_chunks: set(),
    turned_away: set(),
    answered_until_close: set(),
    interim: set(),
    cut_answer: {"cut"},
    repeated: set(),
    junk: {"upstream_bad_answer"},
    silent: {"response_timeout"},
    slow_reader: set(),
    slow_upstream: set(),
    half_closed: set(),
    caller_leaves: set(),
    tunnel: set(),
    malformed: {"bad_request"},
    malformed_body: {"bad_request"},
    header_too_slow: {"bad_request"},
    unrouted: {"no_route"},
    refused_certificate: {"client_cert_unknown_ca"},
    no_connection: {"connect_refused"},
    no_handshake: {"handshake_timeout"},
    without_ticket: set(),
    full_pool: {"whole", "pool_full"},
    full_pool_for_long: {"pool_full"},
    left_alone: {"connect_refused", "circuit_open"},
    waits_in_vain: {"handshake_timeout", "circuit_open", "pool_full"},
    swept: set(),
    stranger: {"caller_not_allowed"},
    no_longer_allowed: {"caller_not_allowed"},
    page: {"caller_not_allowed"},
    drained: set(),
    drained_in_vain: {"draining", "bad_request"},
}


# These wait for something each time: only what no quick call comes through is made to raise in them.
SLOW = {
    swept,
    left_alone,
    waits_in_vain,
    without_ticket,
    silent,
    no_handshake,
    full_pool_for_long,
    slow_reader,
}


@dataclass
class World:
    """The data plane, and every upstream that the calls need."""

    inside: Inside
    upstream: TlsRecorder
    restart: Callable[[], Inside]
    _closed: list[UpstreamConnection] = field(default_factory=list)

    def perform(
        self, call: Callable[[Stage], None], arm: Callable[[], None], over: Callable[[], bool] = lambda: False
    ) -> Stage:
        """Makes the call; everything that was opened for it is closed again."""
        stage = Stage(self.inside, arm, over)
        try:
            call(stage)
        except CutAtAccept:
            pass  # noted among the ends
        finally:
            GATE.set()
            SECOND_GATE.set()
            for talker in stage.talkers:
                talker.close()
        return stage

    def play(self, call: Callable[[Stage], None], arm: Callable[[], None], over: Callable[[], bool]) -> Stage:
        """Makes the call from the state that it names: with no connection that a call before it has left.

        What comes after the caller has been told belongs to the call too: it lasts until `over`, or until
        nothing of it is left.
        """
        self.inside.ask(self._forget_drain_and_callers)
        self.inside.ask(self._close_idle)
        self.inside.wait_for(self._no_connections, why="idle connections did not end")
        stage = self.perform(call, arm, over)
        self.inside.wait_for(lambda: over() or not self.inside.leftovers(), why="the call did not end")
        return stage

    def _forget_drain_and_callers(self) -> None:
        plane = self.inside.plane
        plane.draining = plane.expired = False
        plane._emptied = None
        self.inside.listener.refused = Sparing()
        # anew, so that it does not know the caller yet
        self.inside.listener.callers = Callers(LOOPBACK_ONLY.label, LOOPBACK_ONLY.allow)

    def _close_idle(self) -> None:
        for pool in self.inside.plane.pools.values():
            pool._circuits._circuits.clear()
            pool.refused = Sparing()
            for connection in pool._all_idle():
                self._closed.append(connection)
                connection.close()
            pool._sweep()  # so that it does not look out for any of them either

    def _no_connections(self) -> bool:
        """Whether the loop has told of the last one's end: nothing of it may come into the next call."""
        self._closed = [connection for connection in self._closed if not connection._lost]
        return not self._closed and not any(pool._connections for pool in self.inside.plane.pools.values())

    def begin_anew(self) -> None:
        self.inside.stop()
        self.inside = self.restart()

    def check_unharmed(self) -> None:
        """The next call, on a new connection, works, and nothing is left of the ones before."""
        self.inside.ask(self._forget_drain_and_callers)
        stage = self.perform(fresh, lambda: None)
        assert stage.ends == ["whole"]
        self.inside.check_nothing_left()

    def loose(self) -> list[str]:
        """Where the loop has met with what was thrown in, since it was asked last."""
        met = [str(each["message"]) for each in self.inside.errors if isinstance(each.get("exception"), Boom)]
        self.inside.errors.clear()
        return met

    def check_upstream(self) -> None:
        """What the upstream has seen: each request as often as allowed, never without a certificate."""
        seen = self.upstream.requests
        assert {each.subject for each in seen} == {"alice"}
        for target, count in Counter(each.target for each in seen).items():
            assert not target.startswith("/smuggled")
            assert count <= 1 + target.startswith("/dies-when-reused"), f"{target} came {count} times"


@pytest.fixture
def world(
    request: pytest.FixtureRequest, peers: Peers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    kind: LoopKind = request.param
    monkeypatch.setattr(sidecert.downstream, "DRAIN_GRACE", 0.05)
    logging.getLogger("sidecert").setLevel(logging.CRITICAL + 1)
    # One ticket, which is the proof: a second one might come before a call is looked at, or after that.
    upstream = peers.recorder(
        verify="optional", answer=by_path, configure=lambda c: setattr(c, "num_tickets", 1)
    )
    strict = peers.recorder()
    ticketless = peers.recorder(tls="1.3", answer=by_path, configure=lambda c: setattr(c, "num_tickets", 0))
    RECORDED.append(upstream)
    patient = {"connect": "1500ms", "handshake": "1500ms", "response": "1500ms", "stall": "1500ms"}
    one = {"max_connections": 1, "max_idle": 1}
    brittle = {"failures": 1, "pause": "30ms"}

    def to(name: str, peer: Addressed, **more: object) -> dict[str, Any]:
        return route(name, peer, trust=pki.trust, **{"timeouts": patient, **more})  # type: ignore[arg-type]

    routes = [
        to("good", upstream),
        to("refused", strict, credential="stranger"),
        to("closed", peers.closed_port()),
        to("mute", peers.silent(), timeouts={**patient, "handshake": "60ms"}),
        to("narrow", upstream, pool=one),
        to("narrow-and-brief", upstream, pool=one, timeouts={**patient, "connect": "60ms"}),
        to("ticketless", ticketless),
        to("impatient", upstream, timeouts={**patient, "response": "60ms"}),
        to("forgetful", upstream, timeouts={**patient, "idle": "30ms"}),
        to("alone", peers.closed_port(), circuit=brittle),
        to(
            "alone-and-narrow",
            peers.silent(),
            timeouts={**patient, "handshake": "60ms"},
            pool=one,
            circuit=brittle,
        ),
    ]
    whole = config(routes, pki.credentials, limits={"header_timeout": "100ms"})
    try:
        with ExitStack() as stack:

            def start() -> Inside:
                return stack.enter_context(running_inside(tmp_path / "inside", whole, kind))

            yield World(start(), upstream, start)
    finally:
        RECORDED.pop()
        logging.getLogger("sidecert").setLevel(logging.NOTSET)


def reached(world: World, call: Callable[[Stage], None]) -> tuple[list[Place], list[str]]:
    """The places that an undisturbed call comes through once it is armed, and how it ends."""
    counts: dict[Place, int] = {}
    armed = False

    def arm() -> None:
        nonlocal armed
        armed = True

    def count(place: Place) -> Callable[[], None]:
        def enter() -> None:
            if armed:
                counts[place] = counts.get(place, 0) + 1

        return enter

    with ExitStack() as stack:
        for place in places():
            stack.enter_context(place.wrapped(count(place)))
        stage = world.play(call, arm, lambda: False)
        natural = CALLS[call] or {"whole"}
        if call is not caller_leaves:
            assert stage.ends
            assert stage.ends[-1] in natural, stage.ends
        assert set(stage.ends) <= natural | {"whole"}, stage.ends
    return list(counts), stage.ends


# Where the closing of a transport itself is made to fail, it is left to the end of the loop.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("world", LOOPS, indirect=True)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_no_exception_of_ours_hangs_a_caller_or_sends_anything_unasked(
    call: Callable[[Stage], None], world: World
) -> None:
    """Each function on the way of this call raises in turn: the caller is told or cut, all is put away.

    Each raises once, and under uvloop, which `sidecert run` uses, also each time.
    """
    natural = CALLS[call] | {"whole", "cut", "internal_error"}
    failures = []
    found, usual_ends = reached(world, call)
    # What one run reached by chance (a session ticket that came late, say) need not be reached again.
    steady = set(found) & set(reached(world, call)[0]) & set(reached(world, call)[0])
    if call in SLOW:
        usual, _ = reached(world, fresh)
        found = [place for place in found if place not in usual]
    for place in found:
        for always in (
            (False,) if world.inside.kind == "asyncio" or str(place) in LAST_RESORTS else (False, True)
        ):
            armed = [False]
            raised = [0]

            def enter(armed: list[bool] = armed, raised: list[int] = raised, always: bool = always) -> None:
                if armed[0] and (always or not raised[0]):
                    raised[0] += 1
                    raise Boom

            def arm(armed: list[bool] = armed) -> None:
                armed[0] = True

            def over(raised: list[int] = raised) -> bool:
                return raised[0] > 0

            world.loose()
            try:
                with place.wrapped(enter):
                    for _ in range(TRIES):
                        armed[0] = False
                        stage = world.play(call, arm, over)
                        if raised[0]:
                            break
                    armed[0] = False
                    assert raised[0] or place not in steady or str(place) in SOMETIMES, (
                        "was not reached again"
                    )
                    assert set(stage.ends) <= natural, stage.ends
                    # whoever was cut is not told anything more
                    assert len(stage.ends) == len(usual_ends) or stage.ends[-1:] == ["cut"], stage.ends
                if str(place) in BOOKKEEPING:
                    world.begin_anew()
                world.check_unharmed()
                world.check_upstream()
                if str(place) not in ENTRIES:
                    assert not world.loose(), "came back to the loop"
            except AssertionError as error:
                mode = "always" if always else "once"
                failures.append(f"{place} {mode}: {(str(error) or repr(error)).splitlines()[0][:300]}")
                world.begin_anew()
    assert not failures, "\n" + "\n".join(failures)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("world", LOOPS[:1], indirect=True)
def test_each_place_is_reached_by_a_call(world: World) -> None:
    """What is listed is made to raise; what no call comes through is named with its reason."""
    found = {str(place) for call in CALLS for place in reached(world, call)[0]}
    missed = {str(place) for place in places()} - found
    left_out = NO_CALL | LAST_RESORTS | SOMETIMES
    assert sorted(missed - left_out) == []
