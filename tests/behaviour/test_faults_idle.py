"""Very many callers that do little or nothing: held or told 503 as the limits say, no burden to the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from support.certs import Pki
from support.clients import Caller, Talker
from support.lengths import LONG, rounds
from support.masses import Mass, One, open_files
from support.peers import Peers
from support.recorder import Exchange, head
from support.sidecar import Sidecar, StartSidecar, route

GET = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHo"
CONNECTED = "sidecert_downstream_connections"
DENIED = "sidecert_denied_requests_total"
IN_PROGRESS = "sidecert_requests_in_progress"
POOLED = "sidecert_upstream_connections"
MIB = 1 << 20
KIB = 1 << 10
AT_ONCE = 2.0
"""Seconds in which a caller must have been answered, whoever else is there: on a machine that is busy."""


@pytest.fixture
def many_files() -> Iterator[None]:
    with open_files(rounds(1_500, 11_500)):
        yield


def connected(running: Sidecar) -> float:
    return running.metric(CONNECTED, listener="127.0.0.1:0") or 0


def own_descriptors(running: Sidecar) -> int:
    """Without its idle connections to the upstream."""
    return running.descriptors() - int(running.metric(POOLED, route="orders", state="idle") or 0)


def check_call(running: Sidecar, host: str = "orders") -> float:
    """A new caller is served at once; gives the seconds."""
    began = time.monotonic()
    assert running.get(f"http://{host}.test/").status == 200
    taken = time.monotonic() - began
    assert taken < AT_ONCE
    return taken


def each(some: list[One], step: int) -> tuple[list[One], list[One]]:
    """Every `step`th of them, and the others."""
    return some[::step], [one for number, one in enumerate(some) if number % step]


@pytest.mark.long_form(seconds=300)
def test_idle_callers_are_held_cheaply_and_closed_in_the_end(
    many_files: None, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """1,000, in the long form 10,000: silent ones, some that sent half a head, some that have had an answer.
    Each costs less than 6 KiB, the next caller is served at once, and `keepalive` and `header_timeout` end
    them all. That gives back the descriptors; and the next as many cost no memory that was not there."""
    count, limit = rounds(1_000, 10_000), rounds(3, 20)
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust, pool={"max_connections": 4, "max_waiting": 1000}),
        limits={"connections": count + 100, "keepalive": f"{limit}s", "header_timeout": f"{limit}s"},
    )
    check_call(running)
    running.wait_for(lambda: connected(running) == 0)
    memory, descriptors = running.resident(), own_descriptors(running)
    with Mass(running.listener, count) as mass:
        running.wait_for(lambda: connected(running) == count)
        costs = (running.resident() - memory) / count
        asked, others = each(mass.all, 20)
        halves, silent = each(others, 10)
        mass.send(GET, asked)
        mass.send(HALF, halves)
        mass.watch(lambda: all(one.size for one in asked))
        taken = check_call(running)
        assert connected(running) == count
        mass.watch(lambda: mass.still_open() == 0, 2 * limit + 10)
        assert {one.status for one in asked} == {200}
        assert {one.status for one in halves} == {400}
        assert {one.size for one in silent} == {0}
    running.wait_for(lambda: connected(running) == 0)
    running.wait_for(lambda: own_descriptors(running) <= descriptors)
    after = running.resident()
    print(
        f"{count} idle: {costs:.0f} bytes each; {(after - memory) / MIB:.1f} MiB kept; a call {taken:.4f} s"
    )
    assert costs < 6 * KIB
    for again in range(2):
        with Mass(running.listener, count) as mass:
            mass.send(HALF, mass.all[::10])
            running.wait_for(lambda: connected(running) == count)
            check_call(running)
            if again:
                mass.reset()
        running.wait_for(lambda: connected(running) == 0)
        running.wait_for(lambda: own_descriptors(running) <= descriptors)
    print(f"after two times as many: {(running.resident() - after) / MIB:.1f} MiB more")
    assert running.resident() - after < 4 * MIB


@pytest.mark.long_form(seconds=300)
def test_callers_beyond_the_limit_are_all_told_at_once(
    many_files: None, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """900 where there is room for 100, in the long form 9,000 beyond the default of 1,000; silent ones, then
    ones that ask. All read 503, those who were there go on being served, at most as many again are kept
    until they have read it, and a place that is free is used at once."""
    room, more = rounds(100, 1_000), rounds(900, 9_000)
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust, pool={"max_connections": 4}),
        **({} if LONG else {"limits": {"connections": room}}),
    )
    check_call(running)
    running.wait_for(lambda: connected(running) == 0)
    memory, descriptors = running.resident(), own_descriptors(running)
    with Mass(running.listener, room) as held:
        running.wait_for(lambda: connected(running) == room)
        for data in (b"", GET):
            denied = running.metric(DENIED, reason="overloaded") or 0
            with Mass(running.listener, more) as mass:
                mass.send(data)
                began = time.monotonic()
                with Talker(running.listener) as talker:
                    assert talker.read_answer().status == 503
                taken = time.monotonic() - began
                assert connected(running) <= 2 * room + 10
                held.send(GET, held.all[:50])
                mass.watch(lambda: mass.still_open() == 0)
                assert {one.status for one in mass.all} == {503}
            held.watch(lambda: all(one.size for one in held.all[:50]))
            assert {one.status for one in held.all[:50]} == {200}
            running.wait_for(lambda: connected(running) == room)
            assert running.metric(DENIED, reason="overloaded") == denied + more + 1
            print(f"{more} told; the last of them after {taken:.3f} s")
        assert held.still_open() == room
        held.all[-1].sock.close()
        running.wait_for(lambda: connected(running) == room - 1)
        check_call(running)
    running.wait_for(lambda: connected(running) == 0)
    running.wait_for(lambda: own_descriptors(running) <= descriptors)
    grown = running.resident() - memory
    print(f"{grown / MIB:.1f} MiB kept")
    assert grown < 25 * MIB


# -- those who drip ----------------------------------------------------------------------------------------


def test_dripping_callers_are_cut_and_delay_nobody(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """300 send a byte of a head now and then, and are told 400 after `header_timeout`. 100 begin a body
    and stop: 400 after `stall`. 100 drip theirs to its end: they are waited for, which holds connections of
    their route only. All the while others are served at once, and nothing grows."""
    size = 30

    def count(exchange: Exchange) -> None:
        try:
            exchange.read_body()
        except EOFError:
            exchange.ended = True
            return
        exchange.send(head(200, ("Content-Length", "0")))

    slow = peers.recorder(answer=count)
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust),
        route("slow", slow, trust=pki.trust, timeouts={"stall": "1500ms"}),
        limits={"header_timeout": "1s"},
    )
    post = b"POST / HTTP/1.1\r\nHost: slow.test\r\nContent-Length: %d\r\n\r\n" % size
    check_call(running)
    memory = running.resident()
    with (
        open_files(1_000),
        Caller(running.listener) as kept,
        Mass(running.listener, 300) as heads,
        Mass(running.listener, 200) as bodies,
    ):
        stopping, dripping = each(bodies.all, 2)
        bodies.send(post + b"x")
        slow.wait_for(lambda: len(slow.requests) == len(bodies.all))
        heads.send(b"GET / HTTP/1.1\r\nX: ")
        waits = []
        for _ in range(size - 1):
            bodies.send(b"x", dripping)
            heads.send(b"x", [one for one in heads.all if one.end == "open" and not one.size])
            began = time.monotonic()
            assert kept.call("GET", "http://orders.test/").status == 200
            waits.append(time.monotonic() - began)
            heads.look()
            bodies.look()
            time.sleep(0.05)  # the callers' pace is what is tested
        waits.append(check_call(running))
        grown = running.resident(peak=True) - memory
        heads.watch(lambda: heads.still_open() == 0)
        bodies.watch(lambda: all(one.size for one in bodies.all))
        assert {one.status for one in heads.all} == {400}
        assert {one.status for one in stopping} == {400}
        assert {one.status for one in dripping} == {200}
    print(
        f"others: {sorted(waits)[len(waits) // 2]:.4f} s, at most {max(waits):.3f} s; {grown / MIB:.1f} MiB"
    )
    assert max(waits) < AT_ONCE
    assert grown < 40 * MIB
    running.wait_for(lambda: connected(running) == 0)
    assert running.metric(IN_PROGRESS, route="slow") == 0
    assert running.metric(POOLED, route="slow", state="active") == 0
