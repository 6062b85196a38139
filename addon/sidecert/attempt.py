"""One handshake with an upstream, from its beginning to its outcome: decided, counted and logged once.

A connection begins with one. The upstream may begin further ones on it: a renegotiation (TLS 1.2), or a
request for a certificate after the handshake (TLS 1.3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sidecert.evidence import evidence
from sidecert.generation import Upstream
from sidecert.metrics import RouteStats
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.tls import TlsStream

log = logging.getLogger(__name__)

_HOLD = 1.0
"""Seconds to wait for a TLS 1.3 upstream's verdict on our certificate, which mostly is a ticket: a busy one
may take its time to refuse."""
_HOLD_KNOWN = 0.15
"""The same where the upstream is known to say nothing before it has a request, and its silence has to do."""


class Attempt:
    """What was seen of one handshake (`seen`) and what came of it (`outcome`, None until the verdict)."""

    def __init__(
        self,
        upstream: Upstream,
        stats: RouteStats,
        seen: Observation,
        on_verdict: Callable[[Observation, Outcome], None] | None = None,
    ) -> None:
        self.seen = seen
        self.outcome: Outcome | None = None
        self._upstream = upstream
        self._stats = stats
        self._on_verdict = on_verdict
        self._now = asyncio.get_running_loop().time
        self._began = self._now()

    def hold(self, taken: float) -> float:
        """Seconds to wait for such a verdict before a request goes out, after a handshake of so many."""
        least = _HOLD_KNOWN if self._upstream.habits.waits_for_us else _HOLD
        limit = self._upstream.route.config.upstream.timeouts.handshake
        # Well before the handshake's limit, which would make a timeout of an upstream without tickets.
        return min(max(least, 2 * taken), (limit - taken) / 2)

    def prove(self, stream: TlsStream) -> None:
        """The upstream has accepted us, and has shown it."""
        self.seen.stage = Stage.PROVEN
        self.settle(stream)

    def end(self, stream: TlsStream | None, ending: Ending, error: str, *, idle: bool) -> None:
        """The connection has ended; `idle` if no call waited for anything on it."""
        if self.outcome is None:
            # An idle connection may end at any time, which says nothing about our certificate.
            unheard = self.seen.afterwards and idle and ending is not Ending.TLS
            self.seen.ending = Ending.ABANDONED if unheard else ending
            self.seen.error = error or self.seen.error
            self.settle(stream, idle=idle)

    def settle(self, stream: TlsStream | None, *, idle: bool = False) -> Outcome:
        """Decide the outcome, once, and count it. `stream` is None where there was no TLS yet."""
        if self.outcome is None:
            seen = self.seen
            self.outcome = outcome = decide(seen)
            self._stats.handshake(self._upstream.route.credential_id, outcome, self._now() - self._began)
            if seen.stage >= Stage.FINISHED_SENT:
                self._stats.cert_requested(seen.certificate_requested)
            if outcome is not Outcome.OK and seen.certificate_requested and stream is not None:
                stream.note_acceptable_cas(self._upstream.route.credential)
            if self._on_verdict is not None:
                self._on_verdict(seen, outcome)
            # Every other failure is logged with the answer to its call.
            if outcome is Outcome.UNDECIDED:
                self._log("undecided", "the call ended before the upstream's verdict")
            elif outcome is not Outcome.OK and seen.afterwards and idle:
                self._log("refused_idle", "a handshake failed that the upstream began on an idle connection")
            elif seen.afterwards and seen.certificate_requested:
                self._tell_asks_afterwards()
        return self.outcome

    def _tell_asks_afterwards(self) -> None:
        habits = self._upstream.habits
        if not habits.asks_afterwards:
            habits.asks_afterwards = True
            self._log(
                "certificate_requested_afterwards",
                "the upstream asked for a client certificate after the handshake, as for certain paths only",
            )

    def _log(self, event: str, message: str) -> None:
        route = self._upstream.route
        assert self.outcome is not None
        log.info(
            message,
            extra={
                "event": event,
                "outcome": self.outcome.value,
                "route": route.id,
                "upstream": self._upstream.label,
                "credential": route.credential_id,
                "evidence": evidence(self.seen, route.own, time.time()),
            },
        )
