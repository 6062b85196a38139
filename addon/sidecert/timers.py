"""A deadline that is cheap to move: it is set for every request and almost never passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_NEVER = float("inf")


class Deadline:
    """Calls `callback` once the time last given to `set` has passed, unless it was set anew or cleared.

    Moving it later only stores a number: the timer underneath finds out when it fires, and waits on.
    """

    __slots__ = ("_armed", "_callback", "_handle", "_loop", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._when = _NEVER
        self._handle: asyncio.Handle | None = None
        self._armed = _NEVER
        """When the handle fires. Not asked of the handle: uvloop's knows no time when it is due at once."""

    def set(self, seconds: float) -> None:
        """Let it pass in `seconds` from now, whatever was set before."""
        self._when = when = self._loop.time() + seconds
        if self._handle is not None:
            if self._armed <= when:
                return
            self._handle.cancel()
        self._arm()

    def _arm(self) -> None:
        self._armed = self._when
        self._handle = self._loop.call_at(self._when, self._fire)

    def set_no_later(self, seconds: float) -> None:
        """Let it pass in `seconds` from now, unless it passes before that anyway."""
        if self._loop.time() + seconds < self._when:
            self.set(seconds)

    def clear(self) -> None:
        """Let it never pass."""
        self._when = _NEVER

    def close(self) -> None:
        """Let it never pass, and free the timer."""
        self._when = _NEVER
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        if self._when == _NEVER:
            return
        if self._when > self._loop.time():
            self._arm()
            return
        self._when = _NEVER
        self._callback()
