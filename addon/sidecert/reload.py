"""A new generation: built and checked beside the old one, then swapped in. A failure keeps the old one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation, build
from sidecert.listeners import Listeners
from sidecert.plane import Plane

_LOG = logging.getLogger("sidecert.reload")


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload: whether the new generation is in force, and all problems, warnings too."""

    ok: bool
    problems: tuple[Problem, ...]


class Reloader:
    """Puts one generation after another in force, for all who ask: one `reload` at a time."""

    def __init__(self, path: Path, plane: Plane, listeners: Listeners) -> None:
        self._path = path
        self._plane = plane
        self._listeners = listeners
        self._lock = asyncio.Lock()
        self._closed = False

    async def reload(self) -> Reload:
        """Load the config file and all that it names anew. One that comes while another is under way waits.

        Raises nothing: what is wrong is logged, counted, and told in the result.
        """
        async with self._lock:
            current = self._plane.generation
            try:
                # In a thread: keys and trust stores take their time, and the calls in flight have none.
                new = await asyncio.to_thread(build, self._path, current.number + 1)
                if self._closed:
                    raise ConfigError([self._problem("the sidecar is ending", "start it again")])
                new = replace(new, warnings=(*new.warnings, *_needs_restart(current, new)))
                await self._adopt(new)
            except ConfigError as exc:
                return self._failed(exc.problems, current)
            except Exception:
                _LOG.exception("a reload failed by a fault of sidecert's own")
                return self._failed([self._problem("sidecert itself failed", "see its log")], current)
        self._plane.metrics.reload(True, time.time())
        log_problems(new.warnings)
        words = "generation %d is in force: %d routes, %d credentials"
        fields = {"event": "reloaded", "generation": new.number}
        _LOG.info(words, new.number, len(new.routes), len(new.credentials), extra=fields)
        return Reload(True, new.warnings)

    async def close(self) -> None:
        """Let no reload change anything any more; one that is under way comes to its end first."""
        self._closed = True
        async with self._lock:
            pass

    async def _adopt(self, new: Generation) -> None:
        """Routes change between the binding of new addresses, which may fail, and the first call there."""
        change = self._listeners.prepare(new.config.listeners, new.path)
        try:
            self._plane.adopt(new)
        except BaseException:
            self._listeners.discard(change)
            raise
        await self._listeners.commit(change)

    def _failed(self, problems: Sequence[Problem], current: Generation) -> Reload:
        self._plane.metrics.reload(False, time.time())
        log_problems(problems)
        fields = {"event": "reload_failed", "generation": current.number}
        _LOG.error("the reload failed, generation %d goes on serving", current.number, extra=fields)
        return Reload(False, tuple(problems))

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
