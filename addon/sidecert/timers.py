"""Deadlines that are cheap to make and to move: every connection has one, and almost none ever passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds by which a deadline may pass late; never early."""

_AHEAD = 10.0
"""A deadline is looked at no later than so many seconds from when it was set. So the many that are moved
from far away to a little less far stay with the tick that they have."""


class Timers:
    """The deadlines of one event loop. Those that are due within the same tick share a timer of the loop."""

    __slots__ = ("_loop", "_waiting", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time
        self._loop = loop
        self._waiting: dict[float, set[Deadline]] = {}

    def add(self, deadline: Deadline, when: float) -> float:
        """Have `deadline` looked at in the tick that follows loop time `when`; gives that tick's own time."""
        tick = (when // TICK + 1) * TICK
        waiting = self._waiting.get(tick)
        if waiting is None:
            waiting = self._waiting[tick] = set()
            self._loop.call_at(tick, self._fire, tick)
        waiting.add(deadline)
        return tick

    def remove(self, deadline: Deadline, tick: float) -> None:
        """Have it looked at in `tick` no more.

        The tick stays where it was the last: a caller that comes alone, again and again, finds it there.
        """
        waiting = self._waiting.get(tick)
        if waiting is not None:  # else that tick has come, and looks at its deadlines just now
            waiting.discard(deadline)

    def _fire(self, tick: float) -> None:
        for deadline in self._waiting.pop(tick):
            try:
                deadline.look(tick)
            except Exception as exc:
                log.error("an error of sidecert's own at a deadline", exc_info=exc)


def _nothing() -> None:
    """What a closed deadline calls."""


class Deadline:
    """Calls `callback` once the time last given to `set` has passed, unless it was set anew or cleared.

    Moving it later only stores a number: the tick that it waits for finds out, and has it wait on.
    """

    __slots__ = ("_callback", "_now", "_tick", "_timers", "_when")

    def __init__(self, timers: Timers, callback: Callable[[], None]) -> None:
        self._timers = timers
        self._callback = callback
        self._now = timers.now
        self._when = inf
        self._tick = inf
        """Loop time at which it is looked at; infinite for never."""

    def set(self, seconds: float) -> None:
        """Let it pass in `seconds` from now, whatever was set before."""
        now = self._now()
        self._when = when = now + seconds
        if when < self._tick:
            self._wait(when if seconds < _AHEAD else now + _AHEAD)

    def clear(self) -> None:
        """Let it never pass."""
        self._when = inf

    def close(self) -> None:
        """Let it never pass again, and be forgotten by the loop. Its callback goes too, whose owner would
        otherwise wait for the garbage collection: thousands of connections, where so many end at once."""
        self._when = inf
        self._callback = _nothing
        if self._tick != inf:
            self._timers.remove(self, self._tick)
            self._tick = inf

    def look(self, tick: float) -> None:
        """Pass, if it is time; called when `tick` has come."""
        if self._tick != tick:
            return  # another deadline of that tick has moved or closed this one
        self._tick = inf
        if self._when == inf:
            return
        now = self._now()
        if self._when > now:
            self._wait(min(self._when, now + _AHEAD))
            return
        self._when = inf
        self._callback()

    def _wait(self, when: float) -> None:
        if self._tick != inf:
            self._timers.remove(self, self._tick)
        self._tick = self._timers.add(self, when)
