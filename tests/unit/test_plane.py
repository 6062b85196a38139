"""Which pool a request gets, which pools a reload keeps, and how everything ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sidecert.errors import Refusal
from sidecert.generation import Generation
from sidecert.http1 import RequestHead, RequestParser, upstream_head
from sidecert.metrics import Metrics
from sidecert.plane import Listener, Plane
from sidecert.pool import Pool
from support.certs import Pki
from support.inside import generation
from support.sidecar import config

OPEN = Listener("127.0.0.1:8080", None, frozenset())
PINNED = Listener("127.0.0.1:9001", "orders", frozenset({"127.0.0.1"}))

Load = Callable[..., Generation]


def spec(name: str, host: str, *, upstream: dict[str, Any] | None = None, **match: object) -> dict[str, Any]:
    """A route to up.test, or to `upstream`."""
    return {
        "id": name,
        "match": {"host": host, **match},
        "upstream": {"host": "up.test", **(upstream or {})},
        "credential": "alice",
    }


def head(target: str = "/", host: str | None = "orders.test", method: str = "GET", *more: str) -> RequestHead:
    """A request as it comes in; HTTP/1.0 where it has no Host."""
    lines = (
        [f"{method} {target} HTTP/1.0"] if host is None else [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    )
    return RequestParser(65536).parse("\r\n".join([*lines, *more, "", ""]).encode())


@pytest.fixture
def load(pki: Pki, tmp_path: Path) -> Load:
    """Generations, numbered from 1; keywords are keys at the config's top."""
    count = 0

    def make(*routes: dict[str, Any], **rest: Any) -> Generation:
        nonlocal count
        count += 1
        credentials = rest.pop("credentials", pki.credentials)
        return generation(tmp_path / f"g{count}", config(routes, credentials, **rest), count)

    return make


def play(main: Callable[[Plane], Awaitable[None]]) -> None:
    """Runs a test on a loop, with a plane of its own."""

    async def run() -> None:
        plane = Plane(Metrics(CollectorRegistry()))
        await main(plane)

    asyncio.run(run())


def find_in(
    found: Generation, *requests: tuple[RequestHead, Listener], own_host: str | None = None
) -> list[Any]:
    """For each request the route and the host it leads to, or the refusal's outcome."""
    results: list[Any] = []

    async def main(plane: Plane) -> None:
        plane.adopt(found)
        for request, listener in requests:
            try:
                pool, upstream = plane.find(request, listener, own_host)
            except Refusal as refusal:
                results.append(refusal.outcome)
            else:
                assert upstream.route is pool.route
                results.append((pool.route.id, upstream.host))

    play(main)
    return results


def test_request_gets_the_pool_of_its_route(load: Load) -> None:
    """Found by Host, or by an absolute target, which wins; none for a host that nobody configured."""
    found = load(spec("orders", "orders.test"), spec("stock", "stock.test"))
    assert find_in(
        found,
        (head(), OPEN),
        (head(host="STOCK.test."), OPEN),
        (head("http://stock.test/x", host="orders.test"), OPEN),
        (head(host="other.test"), OPEN),
    ) == [("orders", "up.test"), ("stock", "up.test"), ("stock", "up.test"), "no_route"]


def test_port_is_the_callers_or_its_schemes(load: Load) -> None:
    """80, 443 for an absolute https target, never the listener's own."""
    found = load(
        spec("plain", "orders.test", port=80),
        spec("tls", "orders.test", port=443),
        spec("own", "orders.test", port=8080),
    )
    routes = find_in(
        found,
        (head(), OPEN),
        (head("http://orders.test/"), OPEN),
        (head("https://orders.test/"), OPEN),
        (head("https://orders.test:80/"), OPEN),
        (head(host="orders.test:443"), OPEN),
        (head(host="orders.test:8080"), OPEN),
        (head(host="orders.test:81"), OPEN),
    )
    assert [each if isinstance(each, str) else each[0] for each in routes] == [
        *("plain", "plain", "tls", "plain", "tls", "own"),
        "no_route",
    ]


def test_place_that_was_found_often_is_forgotten_by_a_reload(load: Load) -> None:
    """Also where only the pinned listener has changed, after the generation has come into force."""
    names = spec("orders", "orders.test"), spec("stock", "orders.test", path="/s/**")
    listener = Listener("here", "orders", frozenset({"127.0.0.1"}))

    async def main(plane: Plane) -> None:
        def leads() -> list[tuple[str, str]]:
            asked = (head("/s/1"), OPEN), (head("/s/1", host="127.0.0.1"), listener)
            found = [plane.find(request, where, None) for request, where in asked for _ in range(4)]
            return sorted({(pool.route.id, upstream.host) for pool, upstream in found})

        plane.adopt(load(*names))
        assert leads() == [("orders", "up.test"), ("stock", "up.test")]
        plane.adopt(load(*names, spec("new", "orders.test", upstream={"host": "new.test"}, path="/s/1")))
        assert leads() == [("new", "new.test"), ("orders", "up.test")]
        listener.route = "stock"
        assert leads() == [("new", "new.test"), ("stock", "up.test")]

    play(main)


def test_request_without_host_needs_a_pinned_listener(load: Load) -> None:
    """HTTP/1.0 only; elsewhere nobody knows whom it is for."""
    found = load(spec("orders", "orders.test"))
    assert find_in(found, (head(host=None), OPEN), (head(host=None), PINNED)) == [
        "bad_request",
        ("orders", "up.test"),
    ]


def test_pinned_listener_leads_to_its_route_alone(load: Load) -> None:
    """By its own address, its match or its upstream's host; not to another route's host."""
    found = load(spec("orders", "orders.test", port=80), spec("stock", "stock.test"))
    assert (
        find_in(
            found,
            (head(host="127.0.0.1:9001"), PINNED),
            (head(host="localhost"), PINNED),
            (head(host="orders.test:1234"), PINNED),
            (head(host="up.test"), PINNED),
            (head(host="stock.test"), PINNED),
            (head(host="10.0.0.1"), PINNED),
        )
        == [("orders", "up.test")] * 4 + ["host_not_allowed"] * 2
    )


def test_pinned_listener_answers_for_the_address_that_was_called(load: Load) -> None:
    """One that is bound to 0.0.0.0 has no other name; others gain nothing by it."""
    anywhere = Listener("0.0.0.0:9001", "orders", frozenset())
    requests = ((head(host="192.0.2.7:9001"), anywhere), (head(host="192.0.2.8"), anywhere))
    found = load(spec("orders", "orders.test"))
    assert find_in(found, *requests, own_host="192.0.2.7") == [("orders", "up.test"), "host_not_allowed"]
    assert find_in(found, *requests) == ["host_not_allowed"] * 2
    assert find_in(found, (head(host="192.0.2.7"), OPEN), own_host="192.0.2.7") == ["no_route"]


def test_pinned_listener_keeps_to_path_and_methods_of_its_route(load: Load) -> None:
    """Its port alone says nothing about what may be called."""
    found = load(spec("orders", "orders.test", path="/rest/**", methods=["GET"]))
    assert find_in(
        found,
        (head("/rest/a"), PINNED),
        (head("/other"), PINNED),
        (head("/rest/a", method="DELETE"), PINNED),
    ) == [("orders", "up.test"), "no_route", "method_not_allowed"]


@pytest.mark.parametrize("listener", [OPEN, PINNED])
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "x_http_method", "X-Method-Override"])
def test_no_header_names_a_method_that_the_route_does_not_take(
    load: Load, listener: Listener, name: str
) -> None:
    """A framework upstream would execute a POST as that; what the route takes may be named."""
    found = load(
        spec("orders", "orders.test", path="/rest/**", methods=["POST", "PUT"]),
        spec("all", "orders.test"),
    )
    post = ("/rest/a", "orders.test", "POST")
    assert find_in(
        found,
        (head(*post, f"{name}: DELETE"), listener),
        (head(*post, f"{name}:  delete "), listener),
        (head(*post, f"{name}: PUT", f"{name}: DELETE"), listener),
        (head(*post, f"{name}: put"), listener),
    ) == ["method_not_allowed"] * 3 + [("orders", "up.test")]


def test_header_may_name_any_method_where_the_route_takes_any(load: Load) -> None:
    """OData callers say MERGE or DELETE so: without the header their POST would do something else."""
    merge = head("/", "orders.test", "POST", "X-HTTP-Method: MERGE")
    assert find_in(load(spec("orders", "orders.test")), (merge, OPEN)) == [("orders", "up.test")]
    assert upstream_head(merge, b"up.test").count(b"X-HTTP-Method: MERGE\r\n") == 1


def test_pinned_listener_whose_route_is_gone_refuses(load: Load) -> None:
    """Between a reload that removes the route and the end of its listener."""
    gone = Listener("127.0.0.1:9001", "gone", frozenset())
    assert find_in(load(spec("orders", "orders.test")), (head(), gone)) == ["no_route"]


def test_wildcard_leads_to_the_host_that_was_called(load: Load) -> None:
    """Normalised, so that one host has one set of connections."""
    wild = spec("orders", "*.wild.test")
    del wild["upstream"]["host"]
    assert find_in(load(wild), (head(host="A.Wild.test."), OPEN), (head(host="wild.test"), OPEN)) == [
        ("orders", "a.wild.test"),
        "no_route",
    ]


def retired_by(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the routes whose pools are retired from now on."""
    retired: list[str] = []
    original = Pool.retire

    def retire(pool: Pool) -> None:
        retired.append(pool.route.id)
        original(pool)

    monkeypatch.setattr(Pool, "retire", retire)
    return retired


def test_adopting_keeps_the_pools_of_what_did_not_change(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their connections go on; the pool follows the new route, whose path may be another."""
    one = load(spec("orders", "orders.test"), spec("stock", "stock.test"))
    two = load(spec("stock", "stock.test"), spec("orders", "orders.test", path="/new/**"), drain="5s")

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        before = dict(plane.pools)
        retired = retired_by(plane, monkeypatch)
        plane.adopt(two)
        assert plane.generation is two
        assert plane.pools == before
        assert [pool.route for pool in plane.pools.values()] == list(two.routes.values())
        assert retired == []
        with pytest.raises(Refusal):
            plane.find(head("/old"), OPEN, None)
        assert plane.find(head("/new/a"), OPEN, None)[0] is before["orders"]

    play(main)


def test_adopting_retires_the_pools_of_what_changed_or_is_gone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed route begins with an empty pool, and one that comes back does too."""
    one = load(spec("orders", "orders.test"), spec("stock", "stock.test"))
    two = load(spec("orders", "orders.test", upstream={"port": 9443}), spec("more", "more.test"))
    three = load(spec("orders", "orders.test", upstream={"port": 9443}), spec("stock", "stock.test"))

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        before = dict(plane.pools)
        retired = retired_by(plane, monkeypatch)
        plane.adopt(two)
        assert sorted(retired) == ["orders", "stock"]
        assert set(plane.pools) == {"orders", "more"}
        assert plane.pools["orders"] is not before["orders"]
        plane.adopt(three)
        assert sorted(retired) == ["more", "orders", "stock"]
        assert plane.pools["stock"] is not before["stock"]

    play(main)


def test_adopting_keeps_what_was_learned_of_unchanged_upstreams(load: Load) -> None:
    """A reload that does not concern an upstream costs its next calls no waiting."""
    one = load(spec("orders", "orders.test"), spec("stock", "stock.test"))
    other = {"port": 9443}
    two = load(spec("orders", "orders.test", path="/new/**"), spec("stock", "stock.test", upstream=other))

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        for name in ("orders", "stock"):
            plane.pools[name].route.upstream(f"{name}.test").habits.waits_for_us = True
        plane.adopt(two)
        assert plane.pools["orders"].route.upstream("orders.test").habits.waits_for_us
        assert not plane.pools["stock"].route.upstream("stock.test").habits.waits_for_us

    play(main)


def test_adopting_what_cannot_be_counted_changes_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own on the way leaves the old routes with their pools."""
    one, two = load(spec("orders", "orders.test")), load(spec("stock", "stock.test"))

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        before = dict(plane.pools)
        monkeypatch.setattr(plane.metrics, "set_generation", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            plane.adopt(two)
        assert (plane.generation, plane.pools) == (one, before)
        assert plane.find(head("/"), OPEN, None)[0] is before["orders"]

    play(main)


def test_adopting_another_certificate_retires_the_pool(
    load: Load, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when only the files changed and the config did not: no call goes under the old one."""
    renewed = pki.ca.caller("alice").write(pki.folder / "renewed-for-plane").config
    one = load(spec("orders", "orders.test"))
    two = load(spec("orders", "orders.test"), credentials={**pki.credentials, "alice": renewed})

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        retired = retired_by(plane, monkeypatch)
        plane.adopt(two)
        assert retired == ["orders"]
        credential = plane.pools["orders"].route.credential
        assert credential is not None
        assert credential.fingerprint == two.credentials["alice"].fingerprint

    play(main)


def series(plane: Plane) -> dict[tuple[str, str], float]:
    """What the metrics say now, by name and route."""
    page = plane.metrics.render("")[0].decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, sample.labels.get("route", "")): sample.value for sample in samples}


def test_pools_of_a_generation_share_the_numbers_of_its_metrics(load: Load) -> None:
    """A new pool of a route goes on counting where the old one ended."""
    one = load(spec("orders", "orders.test"))
    two = load(spec("orders", "orders.test", upstream={"port": 9443}))

    async def main(plane: Plane) -> None:
        plane.adopt(one)
        plane.pools["orders"].stats.retries += 1
        plane.adopt(two)
        assert plane.pools["orders"].stats is plane.metrics.route("orders")
        assert plane.pools["orders"].stats.retries == 1
        assert series(plane)["sidecert_config_generation", ""] == 2

    play(main)


def test_insecure_route_is_told_to_the_metrics(load: Load) -> None:
    """Nobody should find that out by reading the config alone."""
    found = load(spec("orders", "orders.test", upstream={"trust": "insecure"}), spec("stock", "stock.test"))

    async def main(plane: Plane) -> None:
        plane.adopt(found)
        shown = series(plane)
        assert shown["sidecert_route_insecure", "orders"] == 1
        assert shown["sidecert_route_insecure", "stock"] == 0

    play(main)


class Caller:
    """A caller's connection that ends when the test says so; `busy` is what it still has to do at a drain."""

    def __init__(self, plane: Plane, *, busy: bool = False) -> None:
        self.plane = plane
        self.busy = busy
        self.drained = 0
        self.expired = False
        self.aborted = False
        plane.connections.add(self)

    def drain(self) -> None:
        self.drained += 1
        if not self.busy:
            self.plane.forget(self)

    def expire(self) -> None:
        assert self.plane.expired
        self.expired = True

    def abort(self) -> None:
        self.aborted = True
        self.plane.forget(self)


def test_drain_with_nothing_open_is_over_at_once() -> None:
    """And says that it is draining from then on."""

    async def main(plane: Plane) -> None:
        assert not plane.draining
        assert await plane.drain(60) == 0
        assert plane.draining

    play(main)


def test_drain_asks_every_connection_once_and_ends_with_the_last() -> None:
    """Idle ones end by themselves; the busy one is waited for."""

    async def main(plane: Plane) -> None:
        idle, busy = Caller(plane), Caller(plane, busy=True)
        draining = asyncio.ensure_future(plane.drain(60))
        while not busy.drained:
            await asyncio.sleep(0)
        assert idle.drained == busy.drained == 1
        assert plane.connections == {busy}
        assert not draining.done()
        plane.forget(busy)
        assert await draining == 0
        assert not busy.expired

    play(main)


def test_drain_that_takes_too_long_says_so() -> None:
    """Whoever is left is told so; nothing is aborted by it."""

    async def main(plane: Plane) -> None:
        busy = Caller(plane, busy=True)
        assert await plane.drain(0.01) == 1
        assert busy.expired
        assert not busy.aborted
        assert plane.connections == {busy}

    play(main)


def test_close_aborts_every_connection_and_pool(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are only told why they were refused, too."""
    found = load(spec("orders", "orders.test"), spec("stock", "stock.test"))
    aborted: list[str] = []
    monkeypatch.setattr(Pool, "abort", lambda pool: aborted.append(pool.route.id))

    async def main(plane: Plane) -> None:
        plane.adopt(found)
        callers = [Caller(plane, busy=True) for _ in range(3)]
        plane.connections.discard(callers[2])
        plane.leaving.add(callers[2])
        plane.close()
        assert all(caller.aborted for caller in callers)
        assert not plane.connections
        assert not plane.leaving
        assert sorted(aborted) == ["orders", "stock"]

    play(main)
