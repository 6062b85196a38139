"""Which of many lines alike the log gets: so that no flood of calls becomes one of lines, and fills a disk.

What is left out is counted in the metrics all the same, and each call is in the access log.
"""

from __future__ import annotations

from time import monotonic

from sidecert.errors import Reason

REPEATED = frozenset(reason.word for reason in (Reason.CIRCUIT_OPEN, Reason.POOL_FULL, Reason.OVERLOADED))
"""Reasons that hold for one call after the other, with the same words, as fast as they come."""

_PAUSE = 1.0


class Sparing:
    """Lets one line a second pass for each reason: those of a route, or of a listener's strangers."""

    def __init__(self) -> None:
        self._left_out: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def left_out(self, reason: str) -> int | None:
        """How many were left out before this one; None where it is left out too."""
        now = monotonic()
        if now < self._until.get(reason, 0.0):
            self._left_out[reason] = self._left_out.get(reason, 0) + 1
            return None
        self._until[reason] = now + _PAUSE
        return self._left_out.pop(reason, 0)
