"""Notices when a file has changed: what each looked like before it was read, and a look at all once a second.

A look asks the file system for each path, through its links, in a thread: a network file system that hangs
holds up nothing but the looks. Polling sees kubelet's swap of `..data`, a rename and a write in place alike,
on every file system, and where the system's inotify instances have run out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from sidecert.threads import in_thread

_LOG = logging.getLogger("sidecert.watch")

PERIOD = 1.0
"""Seconds between two looks. A change counts with the second look that finds it so."""


class Signature(NamedTuple):
    """What tells one state of a file from another without reading it. `error` is why there is no more."""

    error: int | None = None
    device: int = 0
    inode: int = 0
    size: int = 0
    modified: int = 0
    changed: int = 0


type Signatures = dict[Path, Signature]


def signature(path: Path) -> Signature:
    """How `path`, or what it leads to, looks now. Raises nothing."""
    try:
        found = os.stat(path)
    except OSError as exc:
        return Signature(exc.errno or -1)
    except ValueError:  # a NUL in the path
        return Signature(-1)
    if not stat.S_ISREG(found.st_mode):
        return Signature(None, found.st_dev, found.st_ino)  # a pipe's times change as it is read
    return Signature(None, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def look(paths: Iterable[Path]) -> Signatures:
    """How all of them look now."""
    return {path: signature(path) for path in paths}


class Look(Enum):
    """What a look at the files found."""

    SAME = auto()
    """All is as it was read."""
    MOVING = auto()
    """Something has changed, and was not yet so a look ago: it may be half of a change."""
    SETTLED = auto()
    """Something has changed, and is as it was a look ago: there is something new to read."""


class Watched:
    """Compares what is there with what was read, look by look."""

    def __init__(self) -> None:
        self._known: Signatures = {}
        self._last: Signatures | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self._known)

    def set_known(self, read: Signatures) -> None:
        """These have been read, when they looked like this; from now on they are what is watched."""
        self._known = dict(read)
        self._last = None

    def compare(self, found: Signatures) -> Look:
        """What is to be said of the files, which look like `found` now."""
        if found.keys() != self._known.keys() or found == self._known:
            self._last = None  # of other files than are watched by now; or all is as it was read
            return Look.SAME
        settled = found == self._last
        self._last = found
        return Look.SETTLED if settled else Look.MOVING


async def watch(watched: Watched, on_look: Callable[[Look], Awaitable[None]]) -> None:
    """Look every `PERIOD`, for ever; `on_look` is told each time what was found."""
    while True:
        await asyncio.sleep(PERIOD)
        try:
            paths = watched.paths
            found = await in_thread("watch", lambda paths=paths: look(paths))  # type: ignore[misc]
            await on_look(watched.compare(found))
        except Exception:
            _LOG.exception("a look at the files failed by a fault of sidecert's own")
