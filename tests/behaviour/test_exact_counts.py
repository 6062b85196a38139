"""Two thousand connections at once, each with a fate known beforehand: the counters say exactly that."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from support.certs import Pki
from support.clients import Address
from support.fates import Fate, FatePeer, Fates, alert, fates
from support.peers import Peers
from support.sidecar import NO_CIRCUIT, Addressed, Series, StartSidecar, route

AT_ONCE = 250
PATIENT = {"connect": "40s", "handshake": "40s", "response": "40s"}
IMPATIENT = {**PATIENT, "handshake": "1s"}


@dataclass(frozen=True)
class Lot:
    """So many calls of one fate, on a route of their own, and what each comes to."""

    count: int
    fate: Fate | None
    outcome: str
    status: int = 502
    asked: bool = False
    """Whether the attempt comes so far that it is known that a certificate was asked for."""
    credential: str = "alice"
    trusted: bool = True
    timeouts: dict[str, str] = field(default_factory=lambda: PATIENT)
    least_seconds: float = 0.0
    """Every attempt lasts longer than this, a bound of the histogram's buckets."""


LOTS = {
    "taken-12": Lot(250, Fate(tls="1.2"), "ok", 200, asked=True),
    "taken-13": Lot(250, Fate(tls="1.3"), "ok", 200, asked=True),
    "taken-late": Lot(100, Fate(tls="1.3", tickets=False), "ok", 200, asked=True, least_seconds=0.1),
    "stranger-12": Lot(120, Fate(tls="1.2"), "client_cert_unknown_ca", asked=True, credential="stranger"),
    "stranger-13": Lot(120, Fate(tls="1.3"), "client_cert_unknown_ca", asked=True, credential="stranger"),
    "none-12": Lot(100, Fate(tls="1.2"), "client_cert_required", asked=True, credential="none"),
    "none-13": Lot(100, Fate(tls="1.3"), "client_cert_required", asked=True, credential="none"),
    "untrusted": Lot(100, Fate(), "server_untrusted", trusted=False),
    "closed-port": Lot(100, None, "connect_refused"),
    "closes-at-accept": Lot(80, Fate("close", "accept"), "closed_in_handshake"),
    "resets-at-accept": Lot(80, Fate("reset", "accept"), "closed_in_handshake"),
    "closes-after-hello": Lot(80, Fate("close", "hello"), "closed_in_handshake"),
    "resets-after-hello": Lot(80, Fate("reset", "hello"), "closed_in_handshake"),
    "resets-after-server-hello": Lot(80, Fate("reset", "server hello"), "closed_in_handshake"),
    "closes-after-finished": Lot(80, Fate("close", "finished"), "client_cert_rejected", asked=True),
    "resets-after-finished": Lot(80, Fate("reset", "finished"), "client_cert_rejected", asked=True),
    "refused-hello": Lot(80, Fate(alert(40), "hello"), "no_shared_parameters"),
    "silent": Lot(
        60, Fate("silence", "hello"), "handshake_timeout", 504, timeouts=IMPATIENT, least_seconds=0.5
    ),
    "left": Lot(60, Fate("silence", "hello"), "undecided", 499),
}


@pytest.fixture
def fated_peers(pki: Pki) -> Iterator[Fates]:
    with fates(pki.upstream, pki.trust) as running:
        yield running


def test_two_thousand_fates_are_counted_exactly(
    sidecar: StartSidecar, peers: Peers, fated_peers: Fates, pki: Pki
) -> None:
    """Outcomes, durations, requests for a certificate, answers: one each, and nothing of another route."""
    assert sum(lot.count for lot in LOTS.values()) == 2000
    upstreams: dict[str, Addressed] = {
        name: peers.closed_port() if lot.fate is None else fated_peers.listen(lot.fate)
        for name, lot in LOTS.items()
    }
    running = sidecar(
        *(
            route(
                name,
                upstreams[name],
                trust=pki.trust if lot.trusted else pki.other_trust,
                credential=lot.credential,
                timeouts=lot.timeouts,
                circuit=NO_CIRCUIT,
            )
            for name, lot in LOTS.items()
        )
    )
    leavers = upstreams["left"]
    assert isinstance(leavers, FatePeer)
    statuses = asyncio.run(call_all(running.listener, lambda: leavers.connections == LOTS["left"].count))
    assert statuses == Counter(
        {(name, lot.status): lot.count for name, lot in LOTS.items() if lot.outcome != "undecided"}
    )
    gone = {"route": "left", "state": "active"}
    running.wait_for(lambda: running.metric("sidecert_upstream_connections", **gone) == 0)
    series = running.metrics()
    for name, lot in LOTS.items():
        check(series, name, lot)


def check(series: Series, name: str, lot: Lot) -> None:
    def of_route(metric: str) -> dict[tuple[str, ...], float]:
        """The values that are not 0, by the labels other than the route, in the order of their names."""
        found = {}
        for (each, labels), value in series.items():
            named = dict(labels)
            if each == metric and named.pop("route", None) == name and value:
                found[tuple(named[key] for key in sorted(named))] = value
        return found

    assert of_route("sidecert_handshakes_total") == {(lot.credential, lot.outcome): lot.count}, name
    durations = {
        float(bound): value
        for (bound,), value in of_route("sidecert_handshake_duration_seconds_bucket").items()
    }
    assert of_route("sidecert_handshake_duration_seconds_count") == {(): lot.count}, name
    assert durations[float("inf")] == lot.count
    assert durations.get(lot.least_seconds, 0) == 0, (name, durations)
    requested = {("yes",): lot.count} if lot.asked else {}
    assert of_route("sidecert_client_cert_requests_total") == requested, name
    source = "upstream" if lot.status == 200 else "sidecert"
    code = f"{lot.status // 100}xx"
    assert of_route("sidecert_requests_total") == {(code, source): lot.count}, name
    for metric in (
        "sidecert_requests_in_progress",
        "sidecert_upstream_connections",
        "sidecert_upstream_connection_reuses_total",
        "sidecert_retries_total",
    ):
        assert of_route(metric) == {}, (name, metric)


async def call_all(address: Address, all_wait: Callable[[], bool]) -> Counter[tuple[str, int]]:
    """Every call in a random order; the leavers leave when `all_wait`. Gives the statuses by route."""
    assert not isinstance(address, str)
    host, port = address
    statuses: Counter[tuple[str, int]] = Counter()
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET / HTTP/1.1\r\nHost: {name}.test\r\nConnection: close\r\n\r\n".encode())
        return reader, writer

    async def call(name: str) -> None:
        async with room:
            reader, writer = await ask(name)
            answer = await reader.read()
            writer.close()
            statuses[name, int(answer.split(b" ", 2)[1])] += 1

    async def leave_all() -> None:
        asked = [await ask("left") for _ in range(LOTS["left"].count)]
        while not all_wait():
            await asyncio.sleep(0.01)
        for _, writer in asked:
            # With a mere FIN a caller may still be waiting for its answer.
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    names = [name for name, lot in LOTS.items() for _ in range(lot.count) if name != "left"]
    random.shuffle(names)
    work: list[Any] = [call(name) for name in names]
    async with asyncio.timeout(50):
        await asyncio.gather(leave_all(), *work)
    return statuses
