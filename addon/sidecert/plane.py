"""What all connections share: the generation that new calls go by, the pools, and the numbers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sidecert.callers import LOOPBACK_ONLY, Callers
from sidecert.config import RouteConfig
from sidecert.errors import Reason, Refusal
from sidecert.generation import Generation, Upstream
from sidecert.http1 import RequestHead, RequestParser
from sidecert.memo import Memo
from sidecert.metrics import Metrics
from sidecert.pool import Pool
from sidecert.sparing import Sparing
from sidecert.timers import Timers
from sidecert.words import shown

if TYPE_CHECKING:
    from sidecert.exchange import Caller, Exchange

_LOG = logging.getLogger("sidecert.plane")

DRAIN_GRACE = 1.0
"""Seconds that a drain waits for a request on a connection that has none under way: a caller that keeps its
connection may be about to send one, and learns from the answer that it is to close."""

_LAST_WORDS = 1.0
"""Seconds, or a quarter of the limit, that are left at its end for callers to read that it has come."""


@dataclass(slots=True, eq=False)
class Listener:
    """An address that callers connect to. `route` is set where it is pinned, and a reload may change it;
    `hosts` are its own names (normalised, no port), which a caller of a pinned listener may send as Host.
    `callers` are another object after a reload that changes who may call."""

    label: str
    route: str | None
    hosts: frozenset[str]
    callers: Callers = LOOPBACK_ONLY
    refused: Sparing = field(default_factory=Sparing)
    """For the log: anybody can connect, as often as they like."""


class CallerConnection(Protocol):
    """What the plane needs of a downstream connection."""

    def drain(self) -> None: ...
    def expire(self) -> None: ...
    def abort(self) -> None: ...


class Plane:
    """Shared by all downstream connections and exchanges of the process."""

    def __init__(self, metrics: Metrics, *, access_log: bool = False) -> None:
        self.metrics = metrics
        self.access_log = access_log
        self.timers = Timers(asyncio.get_running_loop())
        self.make_exchange: Callable[[Plane, Caller, RequestHead], Exchange] | None = None
        """Set where somebody looks at the traffic: makes exchanges that show themselves as flows."""
        self.generation: Generation
        self.parser: RequestParser
        self.pools: dict[str, Pool] = {}
        self.connections: set[CallerConnection] = set()
        self.leaving: set[CallerConnection] = set()
        """Those that were refused for want of room, or for their address, until they have read why."""
        self.descriptors_for = 0
        """So many more connections will find descriptors, without a look at how many are left."""
        self.draining = False
        """Connections are to end with the calls that they carry."""
        self.expired = False
        """The time for that is over."""
        self._found = Memo[tuple[object, ...], tuple[Pool, Upstream]]()
        """Where calls lead in the generation that is in force."""
        self._emptied: Callable[[], None] | None = None

    def adopt(self, generation: Generation) -> None:
        """Let new calls go by `generation`. Pools of what it did not change stay as they are."""
        kept = {
            route.id: self.pools[route.id]
            for route in generation.routes.values()
            if route.id in self.pools and self.pools[route.id].route.identity == route.identity
        }
        pools = {
            route.id: kept.get(route.id) or Pool(route, self.metrics.route(route.id), self.timers)
            for route in generation.routes.values()
        }
        self._tell_metrics(generation)
        for id, pool in kept.items():
            generation.routes[id].take_habits(pool.route)
            pool.route = generation.routes[id]
        retired = {id: pool for id, pool in self.pools.items() if id not in kept}
        self.pools = pools
        self.generation = generation
        self.parser = RequestParser(generation.config.limits.header_bytes)
        self._found = Memo()
        for pool in retired.values():
            pool.retire()

    def _tell_metrics(self, generation: Generation) -> None:
        self.metrics.set_generation(
            generation.number,
            routes=[
                (route.id, route.credential_id, route.config.upstream.trust == "insecure")
                for route in generation.routes.values()
            ],
            credentials=[
                (each.id, each.not_before, each.not_after, each.fingerprint, each.serial)
                for each in generation.credentials.values()
            ],
            listeners=[listener.bind.label for listener in generation.config.listeners],
            now=time.time(),
        )

    def find(self, head: RequestHead, listener: Listener, own_host: str | None) -> tuple[Pool, Upstream]:
        """The pool and the upstream that a request belongs to. Raises Refusal.

        `own_host` is the address that the caller's connection came in on, which is a name of a pinned
        listener as well: one that is bound to 0.0.0.0 has no other.
        """
        place = (
            listener,
            listener.route,
            own_host,
            head.scheme,
            head.host,
            head.port,
            head.path,
            head.method,
            head.other_methods,
        )
        found = self._found.get(place)
        if found is None:
            found = self._find(head, listener, own_host)
            self._found.keep(place, found, len(head.path) + sum(map(len, head.other_methods)))
        return found

    def _find(self, head: RequestHead, listener: Listener, own_host: str | None) -> tuple[Pool, Upstream]:
        route, host = self._route(head, listener, own_host, head.method)
        for method in head.other_methods:
            try:
                allowed = self._route(head, listener, own_host, method)[0] is route
            except Refusal:
                allowed = False
            if not allowed:
                raise Refusal.of(
                    Reason.METHOD_NOT_ALLOWED,
                    f"A header asks for {shown(method, 40)} in the place of {shown(head.method, 40)}, and "
                    f"a call with that method does not belong to route {route.id}.",
                    "Leave out X-HTTP-Method-Override and the like, or add the method to the route.",
                )
        pool = self.pools[route.id]
        return pool, pool.route.upstream(host)

    def _route(
        self, head: RequestHead, listener: Listener, own_host: str | None, method: bytes
    ) -> tuple[RouteConfig, str]:
        router = self.generation.router
        if listener.route is not None:
            if listener.route not in self.pools:
                raise Refusal.of(
                    Reason.NO_ROUTE, f"Route {listener.route!r}, which this listener led to, is gone."
                )
            hosts = listener.hosts if own_host is None else listener.hosts | {own_host}
            return router.find_pinned(listener.route, head.host, hosts, head.path, method)
        if head.host is None:
            raise Refusal.of(
                Reason.BAD_REQUEST,
                "An HTTP/1.0 request without Host does not say whom it is for.",
                "Send a Host header, or call a listener that is pinned to a route.",
            )
        port = head.port if head.port is not None else (443 if head.scheme == "https" else 80)
        return router.find(head.host, port, head.path, method)

    # -- the end of connections ------------------------------------------------------------------------

    def forget(self, connection: CallerConnection) -> None:
        """A downstream connection has ended."""
        self.connections.discard(connection)
        self.leaving.discard(connection)
        if self._emptied is not None and not self.connections and not self.leaving:
            self._emptied()

    async def drain(self, limit: float) -> int:
        """Let calls in flight end and close what is idle, within `limit` seconds.

        Callers whose answer has not begun shortly before that are told so. Gives the number of connections
        that had not ended by then.
        """
        self.draining = True
        emptied = asyncio.Event()
        self._emptied = emptied.set
        for connection in list(self.connections):
            connection.drain()
        last = min(_LAST_WORDS, limit / 4)
        if await self._has_emptied(emptied, limit - last):
            return 0
        self.expired = True
        late = list(self.connections)
        for connection in late:
            connection.expire()
        await self._has_emptied(emptied, last)
        return len(late)

    async def _has_emptied(self, emptied: asyncio.Event, limit: float) -> bool:
        """Whether all downstream connections have ended within `limit` seconds."""
        if not self.connections and not self.leaving:
            return True
        try:
            async with asyncio.timeout(limit):
                await emptied.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End everything at once. What fails keeps nothing else from its end."""
        all_of_it: list[CallerConnection | Pool] = [*self.connections, *self.leaving, *self.pools.values()]
        for each in all_of_it:
            try:
                each.abort()
            except Exception:
                _LOG.exception("an error of sidecert's own while everything was ended")
