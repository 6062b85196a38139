"""A new generation: built and checked beside the old one, then swapped in. A failure keeps the old one."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sidecert import openfiles
from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation, build
from sidecert.listeners import Change, Listeners
from sidecert.plane import Plane
from sidecert.proving import Prover
from sidecert.threads import NoThread, in_thread
from sidecert.watch import Look, Signatures, Watched, watch

_LOG = logging.getLogger("sidecert.reload")

_MAY_PASS = 2.0
"""Seconds for which a failure that nobody asked for is kept back: it may be half of a change."""
_AGAIN = 10.0
"""Seconds after which a reload is tried again that has failed for another reason than what the files hold."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload: whether the new generation is in force, and all problems, warnings too."""

    ok: bool
    problems: tuple[Problem, ...]
    fault: Exception | None = field(default=None, compare=False)
    """An error of our own that it failed by."""


class Reloader:
    """Puts one generation after another in force, for whoever asks, for a changed file, and for a proof that
    was made again.

    One reload is under way at a time, and at most one waits for it, on behalf of all who have come meanwhile.
    """

    def __init__(self, path: Path, plane: Plane, listeners: Listeners) -> None:
        self._path = path
        self._plane = plane
        self._listeners = listeners
        self._turn = asyncio.Lock()
        """Of the reload that is under way, whose load may hang."""
        self._deciding = asyncio.Lock()
        """From the proof of a generation until it is in force: it was proven against the one before."""
        self._adopting = asyncio.Lock()
        """While it takes the place of the one before: the end waits for no more than that."""
        self._prover = Prover(plane, self._deciding, self._put_in_force)
        self._closed = False
        self._waiting: asyncio.Task[Reload] | None = None
        """The reload that has not begun to read anything."""
        self._under_way: asyncio.Task[Reload] | None = None
        """Held here, since the loop itself holds it only weakly."""
        self._watched = Watched()
        self._watched.set_known(plane.generation.files)
        self._watching: asyncio.Task[None] | None = None
        self._again_at = math.inf
        """When to try once more what has failed for a reason outside the files, by the loop's clock."""
        self._told: Sequence[Problem] = ()
        """The problems of the last failure that was told, until a reload succeeds."""
        self._untold: tuple[float, Reload] | None = None
        """A failure that may pass: since when (the loop's clock), and what is wrong by now."""

    async def reload(self) -> Reload:
        """Load the config file and all that it names anew. Raises nothing: what is wrong is logged, counted,
        and told in the result."""
        return await asyncio.shield(self.request())  # others may wait for the same one

    def request(self) -> asyncio.Task[Reload]:
        """As `reload`, for those who need not wait for it."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(self._reload())
        return self._waiting

    def watch(self) -> None:
        """From now on reload by ourselves when a file has changed."""
        self._watching = asyncio.get_running_loop().create_task(watch(self._watched, self._looked))

    async def close(self) -> None:
        """Let no reload change anything any more. One that is just changing it comes to its end first; none
        that reads files, looks up names or proves a certificate is waited for."""
        self._closed = True
        self._prover.close()
        async with self._adopting:
            if self._watching is not None:
                self._watching.cancel()

    async def _reload(self) -> Reload:
        async with self._turn:
            # Whoever comes from now on may have changed a file that has been read by then.
            self._under_way, self._waiting = self._waiting, None
            found = await self._attempt()
            self._tell(found)
            return replace(found, problems=(*found.problems, *self._prover.problems)) if found.ok else found

    async def _looked(self, look: Look) -> None:
        """There was a look at the files, one a second.

        Files that belong together are seldom written at once, so a failure is told only once it has lasted
        and nothing moves any more, and once only, however often the same is found again.
        """
        now = asyncio.get_running_loop().time()
        due = look is Look.SETTLED or (look is Look.SAME and now >= self._again_at)
        if due and not self._turn.locked():  # a reload that is under way reads them anyway
            async with self._turn:
                before = self._plane.generation
                found = await self._attempt()
                if found.ok:
                    self._tell(found, quietly=_is_same(before, self._plane.generation))
                else:
                    now = asyncio.get_running_loop().time()
                    self._untold = (self._untold[0] if self._untold else now), found
        if self._untold is None or look is Look.MOVING:
            return
        since, failed = self._untold
        if failed.problems == self._told:
            self._untold = None
        elif now >= since + _MAY_PASS:
            self._tell(failed)

    async def _attempt(self) -> Reload:
        """Try to put what the files hold by now in force."""
        self._again_at = math.inf
        try:
            try:
                new = await self._load()
            except ConfigError as exc:  # which only a change of the files can mend
                return Reload(False, exc.problems)
            async with self._deciding:
                return Reload(True, await self._change_to(new))
        except ConfigError as exc:
            found = Reload(False, exc.problems)
        except NoThread as exc:
            found = Reload(False, (self._problem(exc.wrong, exc.right),))
        except Exception as exc:
            wrong = self._problem("sidecert itself failed", "see its log")
            found = Reload(False, (wrong,), exc)
        self._again_at = asyncio.get_running_loop().time() + _AGAIN
        return found

    async def _load(self) -> Generation:
        files: Signatures = {}
        # In a thread: keys and trust stores take their time, and the calls in flight have none.
        current = self._plane.generation
        load = partial(build, self._path, current.number + 1, files=files, before=current.credentials)
        try:
            return await in_thread("reload", load)
        finally:
            if files:  # else nothing was read: no thread could be had
                self._watched.set_known(files)

    async def _change_to(self, new: Generation) -> tuple[Problem, ...]:
        """Put `new` in force, as far as it is proven; gives the warnings. Needs `_deciding`.

        Routes change between the binding of new addresses, which may fail, and the first call there.
        """
        if self._closed:
            raise ConfigError([self._ending()])
        current = self._plane.generation
        proven = await self._prover.prove(new)
        new = proven.generation
        change = await self._listeners.prepare(new.config.listeners, new.path)
        try:
            if not await self._put_in_force(new, change):
                raise ConfigError([self._ending()])
        except BaseException:
            self._listeners.discard(change)
            raise
        self._prover.settle(proven)
        return (*new.warnings, *_needs_restart(current, new), *openfiles.allow(new))

    async def _put_in_force(self, new: Generation, change: Change | None = None) -> bool:
        """Let calls go by `new`, at the listeners of `change`; without it they stay as they are.

        False where the sidecar is ending. Then, and after any error, everything is as it was.
        """
        async with self._adopting:
            if self._closed:
                return False
            current = self._plane.generation
            self._plane.adopt(new)
            if change is not None:
                try:
                    removed = await self._listeners.commit(change)
                except BaseException:
                    self._plane.adopt(current)
                    raise
                await self._listeners.stop_removed(removed)
            return True

    def _tell(self, found: Reload, *, quietly: bool = False) -> None:
        """Log and count what came of a reload; `quietly` one that changed nothing, if nothing was wrong."""
        quietly = quietly and not self._told
        self._told, self._untold = (() if found.ok else found.problems), None
        self._plane.metrics.reload(found.ok, time.time())
        if found.fault is not None:
            _LOG.error("a reload failed by a fault of sidecert's own", exc_info=found.fault)
        if not quietly:
            log_problems(found.problems)
        current = self._plane.generation
        if found.ok:
            counts = f"routes: {len(current.routes)}, credentials: {len(current.credentials)}"
            fields = {"event": "reloaded", "generation": current.number}
            level = logging.DEBUG if quietly else logging.INFO
            _LOG.log(level, "generation %d is in force (%s)", current.number, counts, extra=fields)
        else:
            fields = {"event": "reload_failed", "generation": current.number}
            _LOG.error("the reload failed, generation %d goes on serving", current.number, extra=fields)

    def _ending(self) -> Problem:
        return self._problem("the sidecar is ending", "start it again")

    def _problem(self, wrong: str, right: str) -> Problem:
        return Problem(str(self._path), None, "", wrong, right)


def log_problems(problems: Iterable[Problem]) -> None:
    """Log each problem as a line of its own, at its own level."""
    for problem in problems:
        level = logging.WARNING if problem.warning else logging.ERROR
        fields = {"event": "config_problem", "file": problem.file, "line": problem.line, "key": problem.path}
        _LOG.log(level, "%s", problem, extra=fields)


def _is_same(old: Generation, new: Generation) -> bool:
    """Whether a file was only written anew, with what it held before."""
    return old.config == new.config and all(
        route.identity == new.routes[id].identity for id, route in old.routes.items()
    )


def _needs_restart(old: Generation, new: Generation) -> list[Problem]:
    if old.config.admin == new.config.admin:
        return []
    wrong = "the admin endpoint keeps the address that it was started on"
    return [Problem(str(new.path), None, "admin.bind", wrong, "restart the sidecar to move it", warning=True)]
