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

from sidecert.threads import NoThread, in_thread

_LOG = logging.getLogger("sidecert.watch")

PERIOD = 1.0
"""Seconds between two looks. A change counts with the second look that finds it so."""
_PATIENCE = 5
"""Looks. What has not rested for so many is read as it is, and again after as many, and keeps nothing else
waiting: somebody writes it all the time."""


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
        self._unread = 0
        """Looks in a row that found something else than was read."""
        self._restless: set[Path] = set()
        """What has been read as it was, not having rested, and has not rested since."""
        self._told: set[Path] = set()

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self._known)

    def set_known(self, read: Signatures) -> None:
        """These have been read, when they looked like this; from now on they are what is watched."""
        self._known = dict(read)
        self._last = None
        self._unread = 0
        self._told &= read.keys()

    def compare(self, found: Signatures) -> Look:
        """What is to be said of the files, which look like `found` now."""
        if found.keys() != self._known.keys() or found == self._known:
            # Of other files than are watched by now; or all is as it was read.
            self._last, self._unread = None, 0
            self._restless.clear()
            return Look.SAME
        before = self._known if self._last is None else self._last
        self._last = found
        self._unread += 1
        moving = {path for path, state in found.items() if state != before[path]}
        self._restless &= moving
        if self._unread > _PATIENCE:
            self._tell(moving - self._restless)
            self._restless |= moving
            return Look.SETTLED
        if moving - self._restless:
            return Look.MOVING
        rests = any(found[path] != self._known[path] for path in found.keys() - moving)
        return Look.SETTLED if rests else Look.SAME

    def _tell(self, paths: Iterable[Path]) -> None:
        for path in set(paths) - self._told:
            self._told.add(path)
            fields = {"event": "file_restless", "file": str(path)}
            _LOG.warning(
                "%s is being changed all the time, and is read as it is every %g s",
                path,
                _PATIENCE * PERIOD,
                extra=fields,
            )


async def watch(watched: Watched, on_look: Callable[[Look], Awaitable[None]]) -> None:
    """Look every `PERIOD`, for ever; `on_look` is told each time what was found."""
    told = False
    while True:
        await asyncio.sleep(PERIOD)
        try:
            paths = watched.paths
            found = await in_thread("watch", lambda paths=paths: look(paths))  # type: ignore[misc]
            told = False
            await on_look(watched.compare(found))
        except NoThread as exc:
            if not told:
                _LOG.warning("no look at the files for now: %s", exc, extra={"event": "unwatched"})
            told = True
        except Exception:
            _LOG.exception("a look at the files failed by a fault of sidecert's own")
