"""A peer that reads slowly but steadily is waited for, however long it takes; one that stops is not.

The steady ones read at such a pace that the kernel's buffers, which hold megabytes, would take far longer
than `stall` to have room again, while each `stall` sees many times what a kernel acknowledges at once.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecert import downstream
from support.certs import Pki
from support.clients import Talker
from support.inside import LOOPS, LoopKind, running_inside
from support.peers import Peers
from support.recorder import Exchange, head
from support.sidecar import Sidecar, StartSidecar, config, route

MIB = 1 << 20
BIG = 32 * MIB
REQUEST = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
UPGRADE = REQUEST.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
SWITCH = head(101, ("Upgrade", "websocket"), ("Connection", "Upgrade"))
POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: %d\r\n\r\n"
STALL = 2.0
STEADY = 1.5 * STALL
"""Seconds of slow reading, after which the rest is read at once."""
PACE = {"tcp": 250_000, "unix": 60_000}  # bytes a second; a unix socket holds only some 200 kB
KINDS = ["tcp", "unix"]


def read_slowly(receive: Callable[[int], bytes], pace: int, seconds: float = STEADY) -> int:
    """Reads at that pace for so long; how much it was. Raises EOFError where it ends."""
    began, count = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while count < passed * pace:
            piece = receive(4096)
            if not piece:
                raise EOFError(f"it ended after {count} bytes")
            count += len(piece)
        time.sleep(0.01)  # the pace is what is tested
    return count


def read_all(receive: Callable[[int], bytes]) -> int:
    count = 0
    while piece := receive(MIB):
        count += len(piece)
    return count


def send_until_cut(send: Callable[[bytes], object], total: int = 400 * MIB) -> None:
    try:
        for _ in range(total // 65536):
            send(b"x" * 65536)
    except OSError:
        pass


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """Set when the test ends, so that an upstream that waits for it does, too."""
    event = threading.Event()
    yield event
    event.set()


class Scene:
    """A sidecar with a short `stall`, listening on TCP and on a unix socket, before one upstream."""

    def __init__(self, sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
        self._start = sidecar
        self._peers = peers
        self._pki = pki
        self.running: Sidecar

    def start(self, answer: Callable[[Exchange], None], **timeouts: str) -> None:
        timeouts = {"stall": f"{STALL:g}s", **timeouts}
        listeners = [{"bind": "127.0.0.1:0"}, {"bind": "unix:in.sock"}]
        spec = route("orders", self._peers.recorder(answer=answer), trust=self._pki.trust, timeouts=timeouts)
        self.running = self._start(spec, listeners=listeners)

    def talker(self, kind: str = "tcp") -> Talker:
        return Talker(self.running.listeners[KINDS.index(kind)])

    def seconds_until_cut(self) -> float:
        """From now until no call is in progress any more."""
        began = time.monotonic()
        in_progress = "sidecert_requests_in_progress"
        self.running.wait_for(lambda: self.running.metric(in_progress, route="orders") == 0, 20)
        return time.monotonic() - began


@pytest.fixture
def scene(sidecar: StartSidecar, peers: Peers, pki: Pki) -> Scene:
    return Scene(sidecar, peers, pki)


def big_answer(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(head(200, ("Content-Length", str(BIG)), ("Connection", "close")))
    send_until_cut(exchange.send, BIG)
    exchange.ended = True


# -- steady peers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_answer_reaches_a_slow_caller_whole(kind: str, scene: Scene) -> None:
    """However long it takes to read."""
    scene.start(big_answer)
    with scene.talker(kind) as talker:
        talker.send(REQUEST.replace(b"1.1", b"1.0"))
        assert talker.read_head().status == 200
        slowly = read_slowly(talker.sock.recv, PACE[kind])
        assert len(talker.buffer) + slowly + read_all(talker.sock.recv) == BIG


@pytest.mark.parametrize("size", [BIG, MIB])
def test_body_reaches_a_slow_upstream_whole(size: int, scene: Scene) -> None:
    """One that fills every buffer, and one that is written at once and then waits in the kernel, where the
    time for the answer would run out before the upstream has the request."""
    found: list[int] = []

    def answer(exchange: Exchange) -> None:
        count = read_slowly(exchange._reader.read1, 200_000)  # type: ignore[attr-defined]
        while count < size:
            count += len(exchange._reader.read1(MIB))  # type: ignore[attr-defined]
        found.append(count)
        exchange.send(head(200, ("Content-Length", "0")))

    scene.start(answer, response="1s")
    with scene.talker() as talker:
        talker.send(POST % size)
        with in_background(lambda: talker.send(b"x" * size)):
            assert talker.read_answer().status == 200
    assert found == [size]


@pytest.mark.parametrize("kind", KINDS)
def test_tunnel_waits_for_a_slow_caller(kind: str, scene: Scene) -> None:
    """As an answer does."""

    def answer(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        send_until_cut(exchange.send, BIG)
        exchange.finish()

    scene.start(answer)
    with scene.talker(kind) as talker:
        talker.send(UPGRADE)
        assert talker.read_head().status == 101
        slowly = read_slowly(talker.sock.recv, PACE[kind])
        assert len(talker.buffer) + slowly + read_all(talker.sock.recv) == BIG


def test_tunnel_waits_for_a_slow_upstream(scene: Scene) -> None:
    """As a request's body does; its last bytes arrive although the caller has left by then."""
    found: list[int] = []

    def answer(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        slowly = read_slowly(exchange.wire.recv, PACE["tcp"])
        found.append(slowly + read_all(exchange.wire.recv))
        exchange.ended = True

    scene.start(answer)
    with scene.talker() as talker:
        talker.send(UPGRADE)
        assert talker.read_head().status == 101
        talker.send(b"x" * BIG)
        talker.shutdown_write()
        assert talker.closed()
    scene.running.wait_for(lambda: found == [BIG])


def hold_all(connection: Any) -> None:
    """Let what is written to it wait in our memory, not in the kernel."""
    transport = connection._transport
    transport.set_write_buffer_limits(high=4 * MIB)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)


@pytest.mark.parametrize("loop", LOOPS)
def test_caller_may_take_its_time_for_the_last_of_an_answer(
    loop: LoopKind, peers: Peers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upstream is done with it, and its connection is to be closed: what we still hold is not dropped."""
    monkeypatch.setattr(downstream, "_FLUSH_SECONDS", 1.0)
    size = MIB

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", str(size))) + b"x" * size)

    spec = route("orders", peers.recorder(answer=answer), trust=pki.trust)
    with (
        running_inside(tmp_path / "inside", config([spec], pki.credentials), loop) as inside,
        Talker(inside.address) as talker,
    ):
        talker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        inside.wait_for(lambda: len(inside.plane.connections) == 1)
        inside.ask(lambda: hold_all(next(iter(inside.plane.connections))))
        talker.send(REQUEST.replace(b"1.1", b"1.0"))
        assert talker.read_head().status == 200
        inside.wait_for(lambda: inside.stats("orders").in_progress == 0)
        slowly = read_slowly(talker.sock.recv, 150_000)
        assert len(talker.buffer) + slowly + read_all(talker.sock.recv) == size


# -- those that stop ---------------------------------------------------------------------------------------


def check_cut(seconds: float, stall: float) -> None:
    # It has last moved a step of the kernel's before it was seen to read last.
    assert stall / 2 < seconds < stall + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_head", [REQUEST, UPGRADE], ids=["answer", "tunnel"])
def test_caller_that_stops_reading_is_cut(request_head: bytes, kind: str, scene: Scene) -> None:
    """Within `stall` and a second of the last byte it has read, in an answer and in a tunnel."""

    def answer(exchange: Exchange) -> None:
        exchange.send(SWITCH if request_head is UPGRADE else head(200, ("Content-Length", str(400 * MIB))))
        send_until_cut(exchange.send)
        exchange.ended = True

    scene.start(answer, stall="1s")
    with scene.talker(kind) as talker:
        talker.send(request_head)
        talker.read_head()
        read_slowly(talker.sock.recv, 1_000_000, 1.5)
        check_cut(scene.seconds_until_cut(), 1.0)
        try:
            assert read_all(talker.sock.recv) < 300 * MIB
            assert kind == "unix"  # there is no RST on those
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("request_head", [POST % (400 * MIB), UPGRADE], ids=["body", "tunnel"])
def test_upstream_that_stops_reading_is_left(
    request_head: bytes, scene: Scene, let_go: threading.Event
) -> None:
    """Within `stall` and a second of the last byte it has read, in a body and in a tunnel."""
    stopped = threading.Event()

    def answer(exchange: Exchange) -> None:
        if request_head is UPGRADE:
            exchange.send(SWITCH)
        read_slowly(exchange.wire.recv, 1_000_000, 1.5)
        stopped.set()
        let_go.wait(20)
        exchange.ended = True

    scene.start(answer, stall="1s")
    with scene.talker() as talker:
        talker.send(request_head)
        if request_head is UPGRADE:
            talker.read_head()
        with in_background(lambda: send_until_cut(talker.send)):
            assert stopped.wait(20)
            check_cut(scene.seconds_until_cut(), 1.0)
            if request_head is not UPGRADE:
                assert talker.read_answer().status == 504
            talker.reset()


def test_upstream_that_stops_in_the_last_of_a_body_is_left(scene: Scene, let_go: threading.Event) -> None:
    """All is written, much of it is still in the kernel, and none of that leaves: 504."""
    stopped = threading.Event()

    def answer(exchange: Exchange) -> None:
        stopped.set()
        let_go.wait(20)
        exchange.ended = True

    scene.start(answer, stall="1s", response="1s")
    with scene.talker() as talker:
        talker.send(POST % MIB + b"x" * MIB)
        assert stopped.wait(20)
        check_cut(scene.seconds_until_cut(), 1.0)
        assert talker.read_answer().status == 504
