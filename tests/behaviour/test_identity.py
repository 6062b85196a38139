"""A route never borrows another's credential, trust or server name, whatever was open before."""

from __future__ import annotations

import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sidecert.connect
from support.certs import Pki
from support.clients import Caller, Talker, call
from support.inside import LOOPS, LoopKind, running_inside
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, TlsVersion
from support.sidecar import Sidecar, StartSidecar, config, route

ROUTES = {"one": "alice", "two": "bob", "three": "none"}
SUBJECTS = {"one": "alice", "two": "bob", "three": None}


def same_place(sidecar: StartSidecar, upstream: TlsRecorder, pki: Pki, **more: object) -> Sidecar:
    """Three routes to one host:port, with alice's certificate, with bob's, and with none."""
    return sidecar(
        *(
            route(name, upstream, trust=pki.trust, credential=credential, **more)
            for name, credential in ROUTES.items()
        )
    )


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_route_never_borrows_another_credential_on_one_connection(
    tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """150 calls in random order on one keep-alive connection: each arrives under its route's certificate."""
    upstream = peers.recorder(tls=tls, verify="optional")
    running = same_place(sidecar, upstream, pki)
    order = random.Random(8443).choices(list(ROUTES), k=150)
    with Caller(running.listener) as caller:
        for number, name in enumerate(order):
            answer = caller.get(f"http://{name}.test/{number}")
            assert answer.status == 200
            assert answer.json()["subject"] == SUBJECTS[name]
    # One connection for each identity was enough, so the pool was at work.
    assert upstream.connections == 3
    assert running.metric("sidecert_upstream_connection_reuses_total", route="one") == order.count("one") - 1


def test_route_never_borrows_another_credential_when_many_call_at_once(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Ten callers mix the routes at random through small pools: the upstream always saw the route's."""
    upstream = peers.recorder(verify="optional")
    running = same_place(sidecar, upstream, pki, pool={"max_idle": 2, "max_connections": 3})

    def work(seed: int) -> int:
        dice = random.Random(seed)
        with Caller(running.listener) as caller:
            for number in range(40):
                name = dice.choice(list(ROUTES))
                body = b"x" * dice.choice([0, 10, 40_000])
                answer = caller.call("POST", f"http://{name}.test/{name}/{seed}/{number}", body)
                assert answer.status == 200
                seen = answer.json()
                assert (seen["subject"], seen["length"]) == (SUBJECTS[name], len(body))
        return 40

    with ThreadPoolExecutor(10) as callers:
        assert sum(callers.map(work, range(10))) == 400
    for seen in upstream.requests:
        assert seen.subject == SUBJECTS[seen.target.split("/")[1]]
    by_connection: dict[int, set[str | None]] = {}
    for seen in upstream.requests:
        by_connection.setdefault(seen.connection, set()).add(seen.subject)
    assert all(len(subjects) == 1 for subjects in by_connection.values())


def test_pipelined_requests_of_different_routes_keep_their_own_credentials(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Requests for three routes in one packet: each answer names the certificate of its own route."""
    upstream = peers.recorder(verify="optional")
    running = same_place(sidecar, upstream, pki)
    order = ["one", "two", "three", "two", "one", "three"] * 3
    with Talker(running.listener) as talker:
        talker.send(b"".join(f"GET / HTTP/1.1\r\nHost: {name}.test\r\n\r\n".encode() for name in order))
        assert [talker.read_answer().json()["subject"] for _ in order] == [SUBJECTS[name] for name in order]


def test_route_never_borrows_a_connection_that_another_trust_would_have_refused(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """The same upstream is trusted by one route and not by the other: the second never gets through."""
    upstream = peers.recorder()
    running = sidecar(
        route("right", upstream, trust=pki.trust), route("wrong", upstream, trust=pki.other_trust)
    )
    with Caller(running.listener) as caller:
        for _ in range(5):
            assert caller.get("http://right.test/").status == 200
            refused = caller.get("http://wrong.test/")
            assert refused.status == 502
            assert refused.header("Sidecert-Outcome") == "server_untrusted"
    assert {seen.header("Host") for seen in upstream.requests} == {upstream.address}
    assert len(upstream.requests) == 5


def test_route_never_borrows_a_connection_with_another_server_name(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Routes that differ in the server name only: each connection carries its own, the wrong one fails."""
    upstream = peers.recorder()
    running = sidecar(
        route("plain", upstream, trust=pki.trust),
        route("named", upstream, trust=pki.trust, server_name="localhost"),
        route("misnamed", upstream, trust=pki.trust, server_name="other.test"),
    )
    with Caller(running.listener) as caller:
        for _ in range(4):
            assert caller.get("http://plain.test/plain").status == 200
            assert caller.get("http://named.test/named").status == 200
            assert caller.get("http://misnamed.test/").header("Sidecert-Outcome") == "server_name_mismatch"
    names = {(seen.target, seen.server_name) for seen in upstream.requests}
    assert names == {("/plain", None), ("/named", "localhost")}


@pytest.mark.parametrize("kind", LOOPS)
def test_connections_to_hosts_of_a_wildcard_are_never_mixed_up(
    kind: LoopKind, peers: Peers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One route, many hosts: a call goes to the host that it named, over no other host's connection."""

    async def resolve(host: str, port: int, chosen_through: str | None) -> list[Any]:
        return [(socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(sidecert.connect, "_resolve", resolve)
    files = pki.ca.peer("a.wild.test", "b.wild.test").write(pki.folder / "wild", "wild")
    upstream = peers.recorder(files=files)
    wild = {
        "id": "wild",
        "match": {"host": "*.wild.test"},
        "upstream": {"port": upstream.port, "trust": str(pki.trust)},
        "credential": "alice",
        "private": True,
    }
    order = random.Random(1).choices(["a", "b"], k=30)
    with (
        running_inside(tmp_path, config([wild], pki.credentials), kind) as inside,
        Caller(inside.address) as caller,
    ):
        assert {caller.get(f"http://{name}.wild.test/{name}").status for name in order} == {200}
    for seen in upstream.requests:
        name = seen.target.removeprefix("/")
        assert seen.server_name == f"{name}.wild.test"
        assert seen.header("Host") == f"{name}.wild.test:{upstream.port}"
    assert len({(seen.connection, seen.server_name) for seen in upstream.requests}) == 2


def test_answers_never_reach_another_caller(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Callers that leave in the middle of an answer, beside others: nobody gets a byte of somebody else's."""

    def named(exchange: Exchange) -> None:
        seen = exchange.read_body()
        body = seen.target.encode() * 20_000
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    upstream = peers.recorder(answer=named)
    running = sidecar(route("orders", upstream, trust=pki.trust))
    stop = threading.Event()

    def leave() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with Talker(running.listener) as talker:
                talker.send(f"GET /left/{number} HTTP/1.1\r\nHost: orders.test\r\n\r\n".encode())
                talker.read_until(b"\r\n\r\n")
                talker.reset()

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    try:
        for number in range(60):
            answer = call(running.listener, "GET", f"http://orders.test/kept/{number}")
            assert answer.body == f"/kept/{number}".encode() * 20_000
    finally:
        stop.set()
        leaving.join(10)
    assert not leaving.is_alive()
