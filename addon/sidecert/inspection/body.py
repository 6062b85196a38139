"""A body that is held back until it is whole, or too large for that."""

from __future__ import annotations

import asyncio

MOST_COLLECTED = 1024 * 1024
"""Bytes of a body that are held back to be shown; a larger one is not shown."""


class Body:
    """What has come of a body. `pieces` join to it once it is `done`."""

    __slots__ = ("_enough", "content", "done", "trailers")

    def __init__(self) -> None:
        self.content = bytearray()
        self.done = False
        self.trailers: list[tuple[bytes, bytes]] = []
        self._enough = asyncio.Event()

    def add(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]]) -> None:
        """Take in what has come."""
        self.content += piece
        self.done = done
        self.trailers = trailers
        if done or self.is_large:
            self._enough.set()

    @property
    def is_large(self) -> bool:
        """More has come than is held back."""
        return len(self.content) > MOST_COLLECTED

    async def collect(self) -> bool:
        """Wait until it is whole (True) or large (False)."""
        await self._enough.wait()
        return not self.is_large
