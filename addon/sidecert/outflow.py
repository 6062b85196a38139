"""What waits in the kernel on either side of a connection: whether what was written to it still leaves."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from time import monotonic

_LOOK_EVERY = 1.0
"""Seconds between two looks at an `Outflow`, or a quarter of its limit: by that much it may be late."""


class Outflow:
    """Whether what was written to `transport` still leaves, however slowly its peer reads.

    A transport says nothing between "full" and "nearly empty", and the kernel takes more only when a third of
    its own buffer is free, which may be megabytes: a steady reader can take minutes for that. Each look costs
    a system call, so it is for deadlines that pass, not for every write.
    """

    __slots__ = ("_limit", "_moved", "_transport", "left")

    def __init__(self, transport: asyncio.WriteTransport, limit: float) -> None:
        self._transport = transport
        self._limit = limit
        self._moved = monotonic()
        self.left = self._measure()
        """Bytes that wait in the transport, and in the kernel for the peer's acknowledgement, at the last
        look. A peer's kernel acknowledges in steps: 64 KiB and more on the loopback, a sixteenth of its
        buffer elsewhere."""

    def patience(self) -> float:
        """Seconds until it should be looked at again; 0 where nothing is left, or has left for `limit`
        seconds."""
        now, left = monotonic(), self._measure()
        if left != self.left:
            self.left, self._moved = left, now
        if not any(left):
            return 0.0
        return max(0.0, min(self._moved + self._limit - now, self._limit / 4, _LOOK_EVERY))

    def _measure(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_size(), _queued(self._transport)


def unread(transport: asyncio.BaseTransport) -> int:
    """Bytes that have come from the peer and wait in the kernel; 0 where it does not tell."""
    return _ask_kernel(transport, termios.FIONREAD)


def _queued(transport: asyncio.WriteTransport) -> int:
    """What the kernel holds of what was written, in bytes; of a unix socket with its own overhead."""
    return _ask_kernel(transport, termios.TIOCOUTQ)


def _ask_kernel(transport: asyncio.BaseTransport, what: int) -> int:
    connection = transport.get_extra_info("socket")
    try:
        found = fcntl.ioctl(connection.fileno(), what, bytes(4))
    except (AttributeError, OSError, ValueError):
        return 0  # it has ended, or this system does not tell
    return int.from_bytes(found, sys.byteorder)
