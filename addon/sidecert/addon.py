"""The mitmproxy addon: from the option `sidecert` to a serving sidecar, and to its end.

The same under mitmdump, mitmweb, mitmproxy and `sidecert run`. mitmproxy calls `running` and `done` and
awaits what they return, but calls them without waiting when a script is loaded or changed later: so both
are plain functions that start a task.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from sidecert import inspection, mode, openfiles
from sidecert.admin import Admin
from sidecert.admin.status import snapshot
from sidecert.admin.status_page import Snapshot
from sidecert.downstream import accept
from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation, build
from sidecert.hardening import keep_memory_private
from sidecert.listeners import Listeners
from sidecert.metrics import Metrics
from sidecert.plane import Plane
from sidecert.reload import Reload, Reloader, log_problems
from sidecert.sockets import Unusable
from sidecert.words import printable

_LOG = logging.getLogger("sidecert")
_FAILED = 1
_BAD_CONFIG = 2
_ENDED_BY_SIGNAL = 128
"""Added to the signal's number, as shells do."""

_ending: set[asyncio.Task[None]] = set()
"""Where mitmproxy loads the script anew: the sidecar before, which the next one must wait for."""


class Sidecert:
    """One sidecar. Give it a first generation, or let it load the config that the option names."""

    name = "sidecert"

    def __init__(self, first: Generation | None = None, *, access_log: bool = False) -> None:
        self._first = first
        self._started = time.time()
        self._serving = False
        self._hung_up = False
        self._done = False
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.metrics = Metrics()
        self._plane = Plane(self.metrics, access_log=access_log)
        self._listeners = Listeners(partial(accept, self._plane))
        self._admin = Admin(self)
        self._reloader: Reloader | None = None
        self._refused: tuple[Problem, ...] = ()

    # -- mitmproxy's lifecycle -------------------------------------------------------------------------

    def load(self, loader: Loader) -> None:
        loader.add_option("sidecert", str, "", "The config file of sidecert.")
        self._handle(signal.SIGHUP, self._hang_up)  # from the start: by default it ends the process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))  # `sidecert run` has kept it waiting

    def configure(self, updated: set[str]) -> None:
        if "sidecert" in updated and self._reloader is not None:
            raise exceptions.OptionsError("a running sidecert cannot move to another config file")

    def running(self) -> asyncio.Task[None]:
        self._starting = self._start_task(self._start())
        return self._starting

    def done(self) -> asyncio.Task[None]:
        self._done = True
        ending = self._start_task(self._end())
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        return ending

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """What mitmproxy itself would open, a replay say, would go past the routes, with no certificate."""
        data.server.error = "sidecert is the only one to open connections here"

    # -- what the mode's instance asks -----------------------------------------------------------------

    @property
    def is_listening(self) -> bool:
        return self._listeners.is_open

    @property
    def listen_addrs(self) -> tuple[tuple[str, int], ...]:
        return self._listeners.tcp_addresses

    async def listen(self) -> None:
        """Open the configured listeners, unless they are open. Raises ConfigError."""
        if not self._listeners.is_open:
            generation = self._plane.generation
            change = await self._listeners.prepare(generation.config.listeners, generation.path)
            try:
                await self._listeners.commit(change)
            except BaseException:
                self._listeners.discard(change)
                raise

    async def stop_listening(self) -> None:
        await self._listeners.stop()

    # -- what the admin endpoint asks (admin.Status) ---------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._serving and self._listeners.is_open

    async def reload(self) -> Reload | None:
        return None if self._reloader is None else await self._reloader.reload()

    def snapshot(self) -> Snapshot:
        return snapshot(self._plane.generation, self._listeners.addresses, self._started, self.ready)

    # -- start and end ---------------------------------------------------------------------------------

    def _start_task[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds it only weakly
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        if _ending and not self._done:
            await asyncio.wait(_ending)
        try:
            if ctx.options.server and ctx.options.mode != [mode.SPEC]:
                raise ConfigError([_own_listener_of_mitmproxy()])
            inspection.install(self._plane, ctx.master.addons)
            if self._done:  # before it had begun
                return
            await self._open(self._first or _load())
            ctx.options.update(mode=[mode.SPEC], server=True)
            # Waits for the update that the options have begun; the instance finds the listeners open.
            proxyserver: Proxyserver = ctx.master.addons.get("proxyserver")
            await proxyserver.setup_servers()
        except ConfigError as exc:
            self._refused = exc.problems
            log_problems(exc.problems)
            return await self._give_up(_BAD_CONFIG)
        except Exception:
            _LOG.exception("the sidecar cannot start by a fault of its own")
            return await self._give_up(_FAILED)
        self._serving = True
        if self._reloader is not None:
            self._reloader.watch()
        if self._hung_up:
            self._hang_up()
        _LOG.info("ready, generation %d", self._plane.generation.number, extra={"event": "ready"})

    async def _open(self, first: Generation) -> None:
        """Open admin and listeners. Raises ConfigError with all that cannot be opened."""
        self._plane.adopt(first)
        log_problems((*first.warnings, *openfiles.allow(first)))
        problems: list[Problem] = []
        try:
            address = await self._admin.start(first.config.admin.bind)
            fields = {"event": "listening", "listener": "admin", "address": address}
            _LOG.info("admin endpoint on %s", address, extra=fields)
        except Unusable as exc:
            problems.append(Problem(str(first.path), None, "admin.bind", exc.wrong, exc.right))
        try:
            await self.listen()
        except ConfigError as exc:
            problems.extend(exc.problems)
        if problems:
            raise ConfigError(problems)
        self._reloader = Reloader(first.path, self._plane, self._listeners)

    async def _give_up(self, status: int) -> None:
        await self._close()
        # While mitmproxy's tools start, they end for any error that was logged, with status 1, and repeat
        # it where the console has hidden it. Otherwise that is left to us.
        check = ctx.master.addons.get("errorcheck")
        if check is None or check.logger not in logging.getLogger().handlers:
            raise SystemExit(status)

    def _repeat_problems(self) -> None:
        """mitmproxy's console has told them on a screen that is gone by now."""
        check = ctx.master.addons.get("errorcheck")
        if check is not None and check.repeat_errors_on_stderr:
            for problem in self._refused:
                print(printable(str(problem)), file=sys.stderr)

    def _hang_up(self) -> None:
        """SIGHUP: reload, or do so as soon as the start is over."""
        self._hung_up = not self._serving
        if self._serving and self._reloader is not None:
            self._reloader.request()

    async def _end(self) -> None:
        if self._starting is not None:
            await asyncio.wait((self._starting,))  # half a start cannot be ended
        if self._reloader is None:
            self._repeat_problems()
            return
        self._serving = False
        if ctx.master.should_exit.is_set():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handle(number, partial(self._end_at_once, number))
        limit = self._plane.generation.config.drain
        _LOG.info("ending, calls in flight have %g s", limit, extra={"event": "draining"})
        until = time.monotonic() + limit
        try:
            with _whatever_fails():
                await self._reloader.close()
            with _whatever_fails():
                await self._listeners.stop()
            with _whatever_fails():
                if late := await self._plane.drain(max(0.0, until - time.monotonic())):
                    words = "%d connections were cut or refused: their calls did not end in time"
                    _LOG.warning(words, late, extra={"event": "drained_late"})
        finally:
            await self._close()
        _LOG.info("ended", extra={"event": "ended"})

    async def _close(self) -> None:
        with _whatever_fails():
            await self._listeners.stop()
        with _whatever_fails():
            self._plane.close()
        with _whatever_fails():
            await self._admin.stop()

    def _end_at_once(self, number: signal.Signals) -> None:
        _LOG.warning(
            "%s again: ending at once, %d connections are cut",
            number.name,
            len(self._plane.connections),
            extra={"event": "ended_at_once"},
        )
        self._plane.close()
        raise SystemExit(_ENDED_BY_SIGNAL + number)

    def _handle(self, number: signal.Signals, callback: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(number, callback)


@contextmanager
def _whatever_fails() -> Iterator[None]:
    """Of the end: the steps that follow are taken all the same."""
    try:
        yield
    except Exception:
        _LOG.exception("a fault of sidecert's own at the end")


def _load() -> Generation:
    """The first generation, where `sidecert run` has not loaded it. Raises ConfigError."""
    keep_memory_private()
    return build(_config_file(), 1)


def _config_file() -> Path:
    if not ctx.options.sidecert:
        wrong, right = "no config file is named", "give it: --set sidecert=FILE"
        raise ConfigError([Problem("mitmproxy option sidecert", None, "", wrong, right)])
    return Path(ctx.options.sidecert).expanduser().absolute()


def _own_listener_of_mitmproxy() -> Problem:
    wrong = "mitmproxy itself listens, on an address that sidecert's config does not name"
    return Problem(
        "mitmproxy option server", None, "", wrong, "start it with -n; sidecert opens its own listeners"
    )
