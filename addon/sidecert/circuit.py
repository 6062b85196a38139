"""Which upstreams of a route are not tried again yet, since so many attempts in a row have failed.

Each upstream host has a circuit of its own. It is closed while attempts are made as calls need them. It
opens for `pause` seconds after `failures` failed ones in a row; then one call tries, and what comes of it
closes the circuit or keeps it open for another pause. Nothing is tried but by a call, and only opening a
connection asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from sidecert.config import CircuitConfig
from sidecert.errors import SidecertError
from sidecert.generation import Upstream
from sidecert.outcome import Observation, Outcome, is_certain

log = logging.getLogger(__name__)

MOST_HOSTS = 1024
"""Hosts of a wildcard that are remembered; the one that failed the longest ago is forgotten first."""

FORGOTTEN = 600.0
"""Seconds after the pause in which nobody has asked for a host that a caller chose: it may be a mistyped
name, which would be told as an open circuit for ever."""


class CircuitOpen(SidecertError):
    """No attempt is made: the last `failures` have failed, the last of them as `seen` and `outcome` say.

    `ago` is when, and `wait` how long until a call may try, both in seconds; 0 where one is trying just now.
    """

    def __init__(self, seen: Observation, outcome: Outcome, failures: int, ago: float, wait: float) -> None:
        super().__init__(outcome.value)
        self.seen = seen
        self.outcome = outcome
        self.failures = failures
        self.ago = ago
        self.wait = wait


class _Circuit:
    """What is known of one host whose last attempt failed."""

    __slots__ = ("at", "chosen", "failures", "outcome", "seen", "trying", "until")

    def __init__(self, chosen: bool) -> None:
        self.chosen = chosen
        """Callers choose the host."""
        self.failures = 0
        """In a row."""
        self.seen: Observation
        self.outcome: Outcome
        self.at = 0.0
        """When the last came."""
        self.until: float | None = None
        """Until when nobody tries; None while it is closed."""
        self.trying: Try | None = None
        """Whose verdict all others wait for."""

    def is_forgotten(self, now: float) -> bool:
        if not self.chosen or self.until is None or self.trying is not None:
            return False
        return now >= self.until + FORGOTTEN

    def error(self, now: float) -> CircuitOpen:
        wait = 0.0 if self.until is None else max(0.0, self.until - now)
        return CircuitOpen(self.seen, self.outcome, self.failures, now - self.at, wait)


class Try:
    """One attempt to open a connection, which tells its circuit what came of it."""

    __slots__ = ("_circuits", "_upstream")

    def __init__(self, circuits: Circuits, upstream: Upstream) -> None:
        self._circuits = circuits
        self._upstream = upstream

    def told(self, seen: Observation, outcome: Outcome) -> None:
        """The verdict, which may also come some time after the connection is in use."""
        by_call = seen.request_sent and not is_certain(
            seen
        )  # it may have been the request that it closed for
        if outcome is Outcome.UNDECIDED or seen.ours or by_call:
            self.left()
        elif outcome is Outcome.OK:
            self._circuits.succeeded(self._upstream)
        else:
            self._circuits.failed(self, self._upstream, seen, outcome)

    def stood(self) -> None:
        """The connection is given to its call; its upstream may be silent on our certificate so far."""
        self._circuits.stood(self, self._upstream)

    def left(self) -> None:
        """It came to nothing that could be judged: the next call may try."""
        self._circuits.left(self, self._upstream)


OnShut = Callable[[str, Callable[[], CircuitOpen]], None]


class Circuits:
    """Those of one pool, by host. `on_shut` is told of a host that calls must not wait for any more, and
    given what makes the error for each of them."""

    def __init__(self, settings: CircuitConfig, now: Callable[[], float], on_shut: OnShut) -> None:
        self._failures = settings.failures
        self._pause = settings.pause
        self._now = now
        self._on_shut = on_shut
        self._circuits: dict[str, _Circuit] = {}

    def check(self, upstream: Upstream) -> None:
        """Raises CircuitOpen where an attempt must not be made now."""
        circuit, now = self._circuits.get(upstream.host), self._now()
        if circuit is None or circuit.until is None:
            return
        if circuit.is_forgotten(now):
            del self._circuits[upstream.host]
        elif circuit.trying is not None or now < circuit.until:
            raise circuit.error(now)

    def begin(self, upstream: Upstream) -> Try:
        """An attempt is made. Raises CircuitOpen, as `check` does."""
        self.check(upstream)
        attempt = Try(self, upstream)
        circuit = self._circuits.get(upstream.host)
        if circuit is not None and circuit.until is not None:
            circuit.trying = attempt
            self._on_shut(upstream.host, partial(circuit.error, self._now()))
        return attempt

    def any_open(self) -> bool:
        """Whether the last attempts at one of the hosts failed, and none has succeeded since."""
        now = self._now()
        open_ones = (each for each in self._circuits.values() if each.until is not None)
        return not all(each.is_forgotten(now) for each in open_ones)

    # -- what a Try tells ------------------------------------------------------------------------------

    def succeeded(self, upstream: Upstream) -> None:
        """An attempt was accepted, whenever it was begun."""
        circuit = self._circuits.pop(upstream.host, None)
        if circuit is not None and circuit.until is not None:
            _log_closed(upstream)

    def failed(self, attempt: Try, upstream: Upstream, seen: Observation, outcome: Outcome) -> None:
        """An attempt failed; one that was begun before the circuit opened says nothing new."""
        if not self._failures:
            return
        now = self._now()
        circuit = self._circuits.pop(upstream.host, None)
        if circuit is None or circuit.is_forgotten(now):
            circuit = _Circuit(upstream.chosen_by_caller)
        if len(self._circuits) >= MOST_HOSTS:
            del self._circuits[next(iter(self._circuits))]
        self._circuits[upstream.host] = circuit  # at the end, as the one that failed last
        was_open = circuit.until is not None
        if was_open and circuit.trying is not attempt:
            return
        circuit.trying = None
        circuit.failures += 1
        circuit.seen, circuit.outcome, circuit.at = seen, outcome, now
        if circuit.failures >= self._failures:
            circuit.until = circuit.at + self._pause
            if not was_open:
                _log_opened(upstream, circuit, self._pause)
            self._on_shut(upstream.host, partial(circuit.error, now))

    def stood(self, attempt: Try, upstream: Upstream) -> None:
        """The one that tries has a connection. All may try again; the next failure opens the circuit anew."""
        circuit = self._circuits.get(upstream.host)
        if circuit is not None and circuit.trying is attempt:
            circuit.trying = circuit.until = None
            _log_closed(upstream)

    def left(self, attempt: Try, upstream: Upstream) -> None:
        """The one that tries gives up, and leaves the trying to the next call."""
        circuit = self._circuits.get(upstream.host)
        if circuit is not None and circuit.trying is attempt:
            circuit.trying = None


def _log_opened(upstream: Upstream, circuit: _Circuit, pause: float) -> None:
    log.warning(
        "the circuit has opened: calls that need a new connection are answered at once",
        extra={
            "event": "circuit_opened",
            **_place(upstream),
            "outcome": circuit.outcome.value,
            "failures": circuit.failures,
            "pause": pause,
        },
    )


def _log_closed(upstream: Upstream) -> None:
    log.info(
        "the circuit has closed: the upstream takes connections again",
        extra={"event": "circuit_closed", **_place(upstream)},
    )


def _place(upstream: Upstream) -> dict[str, str]:
    route = upstream.route
    return {"route": route.id, "upstream": upstream.label, "credential": route.credential_id}
