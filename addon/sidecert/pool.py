"""The connections of one route: who may reuse them, how many there may be, and when they end.

A pool belongs to a route's identity (its upstream settings, trust and certificate). A connection never
leaves its pool, so it can never be used under another identity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from math import inf

from sidecert.circuit import CircuitOpen, Circuits, Try
from sidecert.errors import Reason, Refusal
from sidecert.generation import Route, Upstream
from sidecert.http_verdict import Signature
from sidecert.metrics import RouteStats
from sidecert.sparing import Sparing
from sidecert.timers import Deadline, Timers
from sidecert.upstream import UpstreamConnection

log = logging.getLogger(__name__)

MAX_AGE = 3600.0
"""Seconds after which a connection is not used again, so that changes of DNS and of the upstream's mind
about a certificate are noticed."""

_IDLE_MARGIN = 1.0


_Waiter = tuple[Upstream, bool, asyncio.Future[UpstreamConnection | None]]
"""Where to, whether only a new connection will do, and the connection, or None for a place to open one."""


class Pool:
    """All connections under one route identity, the idle ones by host, last used first."""

    def __init__(self, route: Route, stats: RouteStats, timers: Timers) -> None:
        self.route = route
        self.stats = stats
        self.refused = Sparing()
        """For the log: of its calls that are refused."""
        self._limits = route.config.upstream.pool
        self._timeouts = route.config.upstream.timeouts
        self._now = timers.now
        credential = route.credential
        self._certificate_ends = inf if credential is None else credential.valid_until
        """By the wall clock, in epoch seconds: the clock may be set forward while connections are open."""
        self._connections: set[UpstreamConnection] = set()
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self._promised = 0
        """Places given to waiters that have not opened their connection yet."""
        self._waiters: deque[_Waiter] = deque()
        self._retired = False
        self._circuits = Circuits(route.config.upstream.circuit, timers.now, self._refuse_waiters)
        stats.circuit_open = self._circuits.any_open
        self._told_unasked: Route | None = None
        """The route, of a generation, for which the log has that its upstream asks for no certificate."""
        self._told_rejected: dict[Signature, Route] = {}
        """The same for each kind of answer that refuses the certificate."""
        self._sweeper = Deadline(timers, self._sweep)
        self._sweep_due = inf

    def take(self, upstream: Upstream) -> UpstreamConnection | None:
        """An idle connection to `upstream` that is alive, or None."""
        idle = self._idle.get(upstream.host)
        while idle:
            connection = idle[-1]
            usable = (
                self._now() < connection.idle_until
                and time.time() < self._certificate_ends
                and connection.is_alive()
            )
            idle.pop()
            connection.idle_until = 0.0
            self.stats.idle -= 1
            if usable:
                self.stats.reuses += 1
                return connection
            connection.close()
        return None

    async def open(self, upstream: Upstream, *, fresh: bool = False) -> UpstreamConnection:
        """A new connection to `upstream`, or the next that becomes free where no more may be opened.

        `fresh` asks for a new one in any case: its place is waited for where the pool is full.
        Raises NotOpened with the verdict, CircuitOpen where the last attempts failed and no other is due, and
        Refusal when the pool stays full for the `connect` limit or too many wait for it.
        """
        self._circuits.check(upstream)
        self._make_room()
        limit = self._now() + self._timeouts.connect
        while self._is_full:
            given = await self._wait(upstream, fresh, limit)
            if given is None:
                self._promised -= 1
                break
            if given.is_alive():
                self.stats.reuses += 1
                return given
            given.close()
        try:
            attempt = self._circuits.begin(upstream)
        except BaseException:
            self._promise()  # the place is another's
            raise
        return await self._open(upstream, attempt)

    async def _open(self, upstream: Upstream, attempt: Try) -> UpstreamConnection:
        connection = None
        try:
            connection = UpstreamConnection(upstream, self.stats, self._ended, attempt.told)
            self._connections.add(connection)
            self.stats.connections += 1
            await connection.open()
            attempt.stood()
            connection.usable_until = self._now() + self._lifetime()
            seen = connection.seen
            connection.unasked = seen.certificate_sent and not seen.certificate_requested
        except BaseException:
            try:
                if connection is not None:
                    connection.leave()  # whatever it was, its place must not stay taken
            finally:
                attempt.left()  # nor may others wait for what comes of it
            raise
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back after a whole answer; it is kept if it may be used again."""
        now = self._now()
        if connection.unasked:
            self._notice_unasked(connection)
        if not connection.reusable or self._retired or now >= connection.usable_until:
            connection.close()
        elif self._waiters and self._hand_over(connection):
            pass
        elif self.stats.idle < self._limits.max_idle:
            self._keep_idle(connection, now)
        else:
            connection.close()

    def retire(self) -> None:
        """Close what is idle, and keep nothing any more: the config has changed what this pool is for."""
        self._retired = True
        self._sweeper.close()
        for connection in self._all_idle():
            connection.close()

    def abort(self) -> None:
        """End every connection at once."""
        self.retire()
        for connection in list(self._connections):
            connection.leave()

    # -- idle connections ------------------------------------------------------------------------------

    def _keep_idle(self, connection: UpstreamConnection, now: float) -> None:
        until = min(now + self._timeouts.idle, connection.usable_until)
        if connection.answer.idle_timeout is not None:
            # Its own limit runs from when it sent the answer: leave before it does.
            until = min(until, now + connection.answer.idle_timeout - _IDLE_MARGIN)
        connection.idle_until = until
        idle = self._idle.get(connection.upstream.host)
        if idle is None:
            self._idle[connection.upstream.host] = [connection]
        else:
            idle.append(connection)
        self.stats.idle += 1
        if until < self._sweep_due:
            self._sweep_by(until, now)

    def _sweep_by(self, when: float, now: float) -> None:
        self._sweep_due = when
        self._sweeper.set(when - now)

    def _sweep(self) -> None:
        now = self._now()
        self._sweep_due = inf
        for connection in self._all_idle():
            if connection.idle_until <= now:
                connection.close()
        self._idle = {host: idle for host, idle in self._idle.items() if idle}
        if self._idle:
            self._sweep_by(min(connection.idle_until for connection in self._all_idle()), now)

    def _all_idle(self) -> list[UpstreamConnection]:
        return [connection for idle in self._idle.values() for connection in idle]

    def _notice_unasked(self, connection: UpstreamConnection) -> None:
        """Tell once per generation that the route's credential is of no use: everything seems to work.

        Not before an answer, or the connection's end: it may still ask when it knows the path of a call.
        """
        connection.unasked = False
        route = self.route
        if self._told_unasked is route or connection.upstream.habits.asks_afterwards:
            return
        self._told_unasked = route
        log.warning(
            "the upstream did not ask for a client certificate, so none was presented",
            extra={
                "event": "certificate_not_requested",
                "route": route.id,
                "upstream": connection.upstream.label,
                "credential": route.credential_id,
                "remedy": "if it should know the caller by the certificate, check `upstream.port` of the "
                "route, and ask those who run the upstream whether it asks in the handshake, or only later "
                "for certain paths",
            },
        )

    def count_rejection(self, signature: Signature) -> bool:
        """Count an answer that refuses the certificate; whether it is a generation's first of its kind."""
        self.stats.http_cert_rejection(signature)
        first = self._told_rejected.get(signature) is not self.route
        self._told_rejected[signature] = self.route
        return first

    def _lifetime(self) -> float:
        # An expired certificate is the upstream's to judge, on a new connection each time.
        return min(MAX_AGE, self._certificate_ends - time.time())

    # -- a full pool -----------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return len(self._connections) + self._promised >= self._limits.max_connections

    def _make_room(self) -> None:
        """Idle connections to other hosts of a wildcard must not keep this one out."""
        if self._is_full and (idle := self._all_idle()):
            min(idle, key=lambda connection: connection.idle_until).close()

    async def _wait(self, upstream: Upstream, fresh: bool, until: float) -> UpstreamConnection | None:
        """A connection that was handed over, or None for the promise of a place to open one."""
        if len(self._waiters) >= self._limits.max_waiting:
            raise self._full(fresh, f"and {self._limits.max_waiting} calls wait for one already")
        turn: asyncio.Future[UpstreamConnection | None] = asyncio.get_running_loop().create_future()
        waiter = (upstream, fresh, turn)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(until):
                return await turn
        except BaseException as exc:
            self._give_up(waiter)
            if isinstance(exc, TimeoutError):
                raise self._full(fresh, f"and stayed so for {self._timeouts.connect:g} s") from exc
            raise

    def _full(self, fresh: bool, more: str) -> Refusal:
        # What asks for a new connection may have gone out on another one before.
        not_sent = "" if fresh else " No byte of the request was sent."
        return Refusal.of(
            Reason.POOL_FULL,
            f"All {self._limits.max_connections} connections of route {self.route.id!r} are in use, {more}."
            f"{not_sent}",
            "Call less at once, or raise `max_connections` or `max_waiting` of the route's `upstream.pool`.",
            retry_after=1,
        )

    def _refuse_waiters(self, host: str, error: Callable[[], CircuitOpen]) -> None:
        """The circuit has opened, or is tried by one: nobody waits to make an attempt at that host."""
        for waiter in [each for each in self._waiters if each[0].host == host]:
            self._waiters.remove(waiter)
            if not waiter[2].done():
                waiter[2].set_exception(error())

    def _give_up(self, waiter: _Waiter) -> None:
        turn = waiter[2]
        if not turn.done() or turn.cancelled():
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        elif turn.exception() is not None:
            pass  # nothing was given
        elif (connection := turn.result()) is not None:
            self.release(connection)
        else:
            self._promised -= 1
            self._promise()

    def _hand_over(self, connection: UpstreamConnection) -> bool:
        """Give it to who waits longest; False where nobody waits."""
        while self._waiters:
            upstream, fresh, turn = self._waiters[0]
            if turn.done():
                self._waiters.popleft()  # its caller has left
            elif (
                not fresh
                and upstream.host == connection.upstream.host
                and time.time() < self._certificate_ends
            ):
                self._waiters.popleft()
                turn.set_result(connection)
                return True
            else:
                connection.close()  # its place is what the waiter needs
                return True
        return False

    def _promise(self) -> None:
        """Give the place that has become free to who waits longest."""
        while self._waiters and not self._is_full:
            _, _, turn = self._waiters.popleft()
            if not turn.done():
                self._promised += 1
                turn.set_result(None)

    def _ended(self, connection: UpstreamConnection) -> None:
        self._connections.discard(connection)
        if connection.unasked:
            self._notice_unasked(connection)
        self.stats.connections -= 1
        if connection.idle_until:
            connection.idle_until = 0.0
            self.stats.idle -= 1
            self._idle[connection.upstream.host].remove(connection)
        self._promise()
