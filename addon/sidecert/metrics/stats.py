"""The plain numbers that the data plane adds to, one object per route and listener; see `metrics`.

Bound once, so that recording needs no look-up, no lock and no label: the whole of a request costs 0.2 us.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from sidecert.http_verdict import Signature
from sidecert.outcome import Outcome

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: a pooled call next door takes 1 ms, the default `response` timeout is 60 s."""

CODES = ("2xx", "3xx", "4xx", "5xx")

# By status // 100: a 101 is a success, and what is no status of HTTP is an error.
_CODE_OF_HUNDRED = (3, 0, 0, 1, 2, 3)


class Histogram:
    """Counts of durations per bucket (one per bound of `BUCKETS`, one beyond), and their sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Proof(StrEnum):
    """What came of showing a new certificate to an upstream, before calls are made with it."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """And the one before is not refused there."""
    UNPROVEN = "unproven"
    """All else: the upstream cannot be reached, asks for no certificate, refuses both, or lets the handshake
    pass although something surely speaks against the certificate."""


class Failure(NamedTuple):
    """A call of a route that came to nothing, in words, cut to be kept; `at` is in epoch seconds."""

    at: float
    outcome: str
    cause: str
    remedy: str


_KEPT = 400  # characters of a cause or a remedy


class RouteStats:
    """The numbers of one route. They go on as long as the route's id is configured.

    `in_progress`, `retries`, `reuses`, `connections` (all that are open) and `idle` (those of them that wait
    for a call) are added to and taken from by the data plane.
    """

    __slots__ = (
        "cert_requests",
        "circuit_open",
        "codes",
        "connections",
        "durations",
        "handshake_durations",
        "handshakes",
        "http_rejections",
        "idle",
        "in_progress",
        "last_failure",
        "retries",
        "reuses",
    )

    def __init__(self) -> None:
        self.in_progress = 0
        self.retries = 0
        self.reuses = 0
        self.connections = 0
        self.idle = 0
        self.codes = [0] * (2 * len(CODES))
        """Per code: from sidecert, then the same from the upstream."""
        self.durations = Histogram()
        self.handshakes: dict[str, dict[Outcome, int]] = {}
        """Per credential, each with the outcomes that have come."""
        self.handshake_durations = Histogram()
        self.cert_requests = [0, 0]
        """Handshakes in which the upstream did not ask for a certificate, and in which it did."""
        self.http_rejections: dict[Signature, int] = {}
        """The signatures that have come."""

        self.circuit_open: Callable[[], bool] = lambda: False
        """Asked at the scrape: whether calls to an upstream of the route are answered at once, since the last
        attempts failed. The route's pool sets it."""
        self.last_failure: Failure | None = None
        """For the status page."""

    @property
    def active(self) -> int:
        """Open connections that carry a call, or are being opened for one."""
        return self.connections - self.idle

    def request(self, status: int, from_upstream: bool, seconds: float) -> None:
        """Count a call that was answered with `status`, by the upstream or by sidecert, after `seconds`."""
        hundred = status // 100
        code = _CODE_OF_HUNDRED[hundred] if 0 <= hundred <= 5 else 3
        self.codes[code + 4 if from_upstream else code] += 1
        durations = self.durations  # not `observe`: its call would be a third of the cost
        durations.counts[bisect_left(BUCKETS, seconds)] += 1
        durations.sum += seconds

    def handshake(self, credential: str, outcome: Outcome, seconds: float) -> None:
        """Count an attempt to open an upstream connection, whatever came of it. Once per attempt."""
        counts = self.handshakes.setdefault(credential, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        self.handshake_durations.observe(seconds)

    def failed(self, outcome: str, cause: str, remedy: str) -> None:
        """Keep the words of a call that failed, in the place of those before."""
        self.last_failure = Failure(time.time(), outcome, cause[:_KEPT], remedy[:_KEPT])

    def cert_requested(self, requested: bool) -> None:
        """Count a handshake by whether the upstream asked for a certificate."""
        self.cert_requests[requested] += 1

    def http_cert_rejection(self, signature: Signature) -> None:
        """Count an HTTP answer that refuses the certificate."""
        self.http_rejections[signature] = self.http_rejections.get(signature, 0) + 1

    def outcomes(self) -> dict[Outcome, int]:
        """Attempts per outcome, whatever the credential; outcomes that never came are left out."""
        totals: dict[Outcome, int] = {}
        for counts in self.handshakes.values():
            for outcome, count in counts.items():
                totals[outcome] = totals.get(outcome, 0) + count
        return totals

    def used(self) -> bool:
        """Whether anything has happened on the route."""
        return bool(self.in_progress or self.connections or self.handshakes or any(self.codes))


class ListenerStats:
    """The downstream connections that are open on one listener."""

    __slots__ = ("connections",)

    def __init__(self) -> None:
        self.connections = 0
