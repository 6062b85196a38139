"""Too many calls, or upstreams that keep them: those who are in, and the other routes, do not suffer."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from support.certs import Pki
from support.clients import Address, Caller, Talker, connect
from support.lengths import rounds
from support.peers import Peers
from support.recorder import Exchange, fixed, head, silence
from support.sidecar import Sidecar, StartSidecar, route

HELD_AT_MOST = 256 + 100  # max_connections and max_waiting of a route
FULL_PACE = 2.0
"""Seconds that no call to a good upstream may take: those to the dead ones are held for longer."""


class Callers:
    """Many of them on one thread: each sends one call, and what it is answered is noted when it comes."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.heads: dict[socket.socket, bytes] = {}
        self.waiting: set[socket.socket] = set()

    def call(self, address: Address, host: str, count: int) -> None:
        for _ in range(count):
            sock = connect(address)
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
            self.heads[sock] = b""
            self.waiting.add(sock)

    def read(self, seconds: float) -> None:
        """Takes what has come, or comes within so many seconds."""
        for key, _ in self._selector.select(seconds):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                data = b""
            self.heads[sock] += data
            if not data:
                self._selector.unregister(sock)
                self.waiting.discard(sock)
                sock.close()

    def read_all(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while self.waiting:
            assert time.monotonic() < deadline, f"{len(self.waiting)} callers were left hanging"
            self.read(0.1)

    def outcomes(self) -> Counter[str]:
        """By the header Sidecert-Outcome; each answer with 503 must say when to come again."""
        found: Counter[str] = Counter()
        for data in self.heads.values():
            top = data.partition(b"\r\n\r\n")[0].decode()
            assert " 503 " not in top or "\r\nRetry-After: " in top
            found[top.partition("Sidecert-Outcome: ")[2].partition("\r\n")[0] or top[:12]] += 1
        return found

    def close(self) -> None:
        for sock in self.heads:
            sock.close()
        self._selector.close()


@contextmanager
def gathered() -> Iterator[Callers]:
    callers = Callers()
    try:
        yield callers
    finally:
        callers.close()


def call_in_turn(running: Sidecar, host: str, count: int) -> list[float]:
    """The seconds that each call took; all must be answered by the upstream."""
    taken = []
    with Caller(running.listener) as caller:
        for _ in range(count):
            began = time.monotonic()
            answer = caller.get(f"http://{host}/")
            taken.append(time.monotonic() - began)
            assert answer.status == 200
    return sorted(taken)


def test_other_routes_answer_at_full_pace_while_upstreams_are_dead(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """One cannot be reached, one never shakes hands, one never answers; 300 callers at each, all at once."""
    slow = {"connect": "3s", "handshake": "3s", "response": "3s"}
    good = peers.recorder(answer=fixed())
    running = sidecar(
        route("good", good, trust=pki.trust),
        route("fresh", good, trust=pki.trust, pool={"max_idle": 0}),
        route("unreachable", peers.black_hole(), trust=pki.trust, timeouts=slow),
        route("mute", peers.silent(), trust=pki.trust, timeouts=slow),
        route("hanging", peers.recorder(answer=silence), trust=pki.trust, timeouts=slow),
    )
    before = call_in_turn(running, "good.test", 100)
    dead = ("unreachable", "mute", "hanging")
    with gathered() as callers:
        for name in dead:
            callers.call(running.listener, f"{name}.test", 300)
        held: dict[str, float | None] = {}

        def all_held() -> bool:
            held.update(in_progress(running, dead))
            return all(held.values())

        running.wait_for(all_held)
        during = call_in_turn(running, "good.test", 300) + call_in_turn(running, "fresh.test", 30)
        callers.read_all(20)
        said = callers.outcomes()
    during.sort()
    print(f"good: {before[50]:.4f} s before; {during[165]:.4f} s, at most {during[-1]:.4f} s during")
    print(f"held {held}; {dict(said)}")
    assert during[-1] < FULL_PACE
    timeouts = {"connect_timeout", "handshake_timeout", "response_timeout"}
    assert said.keys() <= timeouts | {"circuit_open", "pool_full"}
    assert all(said[each] for each in (*timeouts, "circuit_open"))
    assert not any(in_progress(running, dead).values())
    assert call_in_turn(running, "good.test", 100)[-1] < FULL_PACE


def in_progress(running: Sidecar, names: Sequence[str]) -> dict[str, float | None]:
    return {name: running.metric("sidecert_requests_in_progress", route=name) for name in names}


@pytest.mark.parametrize("kind", ["unreachable", "mute", "hanging"])
def test_dead_upstream_keeps_a_bounded_number_of_callers(
    kind: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Of 500 callers 256 have a place and 100 wait for one; 144 hear at once that there is no room."""
    slow = {"connect": "4s", "handshake": "4s", "response": "4s"}
    upstream = {
        "unreachable": peers.black_hole,
        "mute": peers.silent,
        "hanging": lambda: peers.recorder(answer=silence),
    }[kind]()
    running = sidecar(
        route("dead", upstream, trust=pki.trust, timeouts=slow),
        route("good", peers.recorder(answer=fixed()), trust=pki.trust),
    )
    began = time.monotonic()
    with gathered() as callers:
        callers.call(running.listener, "dead.test", 500)
        while len(callers.waiting) > HELD_AT_MOST:
            callers.read(0.1)
            assert time.monotonic() - began < 3.5
        assert Counter(callers.outcomes()) == {"pool_full": 500 - HELD_AT_MOST, "": HELD_AT_MOST}
        assert running.metric("sidecert_requests_in_progress", route="dead") == HELD_AT_MOST
        assert call_in_turn(running, "good.test", 100)[-1] < FULL_PACE
        callers.read_all(20)
        print(f"{dict(callers.outcomes())}, all within {time.monotonic() - began:.1f} s")
    assert running.metric("sidecert_requests_in_progress", route="dead") == 0


def test_flood_beyond_the_limit_does_not_harm_those_who_are_in(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Each connection too many is told 503 with Retry-After, and no call of those who are in is lost."""
    release = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        if exchange.seen.target == "/long":
            assert release.wait(60)
        exchange.send(head(200, ("Content-Length", "2")) + b"ok")

    upstream = peers.recorder(answer=answer)
    running = sidecar(route("orders", upstream, trust=pki.trust), limits={"connections": 60})
    refused = rounds(400, 20_000)
    with ExitStack() as stack:
        busy = [stack.enter_context(Talker(running.listener)) for _ in range(30)]
        for each in busy:
            each.send(b"GET /long HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        upstream.wait_for(lambda: len(upstream.requests) == 30)
        calling = [stack.enter_context(Caller(running.listener)) for _ in range(30)]
        assert {each.get("http://orders.test/").status for each in calling} == {200}
        answered = 30
        while refused:
            size = min(50, refused)
            refused -= size
            with gathered() as callers:
                callers.call(running.listener, "orders.test", size)
                for each in calling:
                    assert each.get("http://orders.test/").status == 200
                    answered += 1
                callers.read_all(10)
                assert callers.outcomes() == {"overloaded": size}
        release.set()
        assert {each.read_answer().status for each in busy} == {200}
    counted = running.metric("sidecert_requests_total", route="orders", code="2xx", source="upstream")
    assert counted == 30 + answered
    print(f"{answered} calls of those in, all answered")
