"""A new generation: built and checked beside the old one, then swapped in. A failure keeps the old one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation, build
from sidecert.hardening import allow_open_files
from sidecert.listeners import Listeners
from sidecert.plane import Plane
from sidecert.proving import Canary
from sidecert.threads import in_thread
from sidecert.watch import Signatures, Watched, watch

_LOG = logging.getLogger("sidecert.reload")

_MAY_PASS = 2.0
"""Seconds for which a failure that nobody asked for is kept back: it may be half of a change."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload: whether the new generation is in force, and all problems, warnings too."""

    ok: bool
    problems: tuple[Problem, ...]


class Reloader:
    """Puts one generation after another in force, for all who ask: one reload at a time."""

    def __init__(self, path: Path, plane: Plane, listeners: Listeners) -> None:
        self._path = path
        self._plane = plane
        self._listeners = listeners
        self._lock = asyncio.Lock()
        self._adopting = asyncio.Lock()
        self._canary = Canary(plane, self._lock)
        self._closed = False
        self._watched = Watched()
        self._watched.set_known(plane.generation.files)
        self._watching: asyncio.Task[None] | None = None
        self._told: Sequence[Problem] = ()
        """The problems of the last failure that was told, until a reload succeeds."""
        self._untold: tuple[float, Sequence[Problem]] | None = None
        """A failure that may pass: since when (the loop's clock), and what is wrong by now."""

    async def reload(self) -> Reload:
        """Load the config file and all that it names anew. One that comes while another is under way waits.

        Raises nothing: what is wrong is logged, counted, and told in the result.
        """
        async with self._lock:
            return self._tell(await self._attempt())

    def watch(self) -> None:
        """From now on reload by ourselves when a file has changed."""
        self._watching = asyncio.get_running_loop().create_task(watch(self._watched, self._looked))

    async def close(self) -> None:
        """Let no reload change anything any more. One that has begun to comes to its end first; one that
        still reads files is not waited for: they may be on a file system that hangs."""
        self._closed = True
        self._canary.close()
        async with self._adopting:
            if self._watching is not None:
                self._watching.cancel()

    async def _looked(self, changed: bool) -> None:
        """There was a look at the files, one a second.

        Files that belong together are seldom written at once, so a failure is told only once it has lasted,
        and once only, however often the same is found again.
        """
        if changed and not self._lock.locked():  # a reload that is under way reads them anyway
            async with self._lock:
                found = await self._attempt()
                if found.ok:
                    self._tell(found)
                else:
                    since = self._untold[0] if self._untold else asyncio.get_running_loop().time()
                    self._untold = since, found.problems
        if self._untold is None:
            return
        since, problems = self._untold
        if problems == self._told:
            self._untold = None
        elif asyncio.get_running_loop().time() >= since + _MAY_PASS:
            self._tell(Reload(False, tuple(problems)))

    async def _attempt(self) -> Reload:
        """Try to put what the files hold by now in force."""
        current = self._plane.generation
        files: Signatures = {}
        try:
            # In a thread: keys and trust stores take their time, and the calls in flight have none.
            load = partial(build, self._path, current.number + 1, files=files, before=current.credentials)
            try:
                new = await in_thread("reload", load)
            finally:
                self._watched.set_known(files)
            proven = await self._canary.prove(new)
            new = proven.generation
            warnings = (*new.warnings, *_needs_restart(current, new), *allow_open_files(new))
            new = replace(new, warnings=warnings)
            await self._adopt(new, current)
            self._canary.settle(proven)
        except ConfigError as exc:
            return Reload(False, exc.problems)
        except Exception:
            _LOG.exception("a reload failed by a fault of sidecert's own")
            return Reload(False, (self._problem("sidecert itself failed", "see its log"),))
        return Reload(True, new.warnings)

    async def _adopt(self, new: Generation, current: Generation) -> None:
        """Routes change between the binding of new addresses, which may fail, and the first call there."""
        async with self._adopting:
            if self._closed:
                raise ConfigError([self._problem("the sidecar is ending", "start it again")])
            change = await self._listeners.prepare(new.config.listeners, new.path)
            try:
                self._plane.adopt(new)
                try:
                    await self._listeners.commit(change)
                except BaseException:
                    self._plane.adopt(current)
                    raise
            except BaseException:
                self._listeners.discard(change)
                raise

    def _tell(self, found: Reload) -> Reload:
        """Log and count what came of a reload."""
        self._told, self._untold = (() if found.ok else found.problems), None
        self._plane.metrics.reload(found.ok, time.time())
        log_problems(found.problems)
        current = self._plane.generation
        if found.ok:
            words = "generation %d is in force: %d routes, %d credentials"
            fields = {"event": "reloaded", "generation": current.number}
            _LOG.info(words, current.number, len(current.routes), len(current.credentials), extra=fields)
            return replace(found, problems=(*found.problems, *self._canary.problems))
        else:
            fields = {"event": "reload_failed", "generation": current.number}
            _LOG.error("the reload failed, generation %d goes on serving", current.number, extra=fields)
        return found

    def _problem(self, wrong: str, right: str) -> Problem:
        return Problem(str(self._path), None, "", wrong, right)


def log_problems(problems: Iterable[Problem]) -> None:
    """Log each problem as a line of its own, at its own level."""
    for problem in problems:
        level = logging.WARNING if problem.warning else logging.ERROR
        fields = {"event": "config_problem", "file": problem.file, "line": problem.line, "key": problem.path}
        _LOG.log(level, "%s", problem, extra=fields)


def _needs_restart(old: Generation, new: Generation) -> list[Problem]:
    if old.config.admin == new.config.admin:
        return []
    wrong = "the admin endpoint keeps the address that it was started on"
    return [Problem(str(new.path), None, "admin.bind", wrong, "restart the sidecar to move it", warning=True)]
