"""The data plane inside the test's own process, on a loop in a thread, so that a test can reach into it.

What a user sees is tested on the real process (`support.sidecar`). This is for what only the inside tells:
what happens when a callback of ours raises, and whether anything is left behind afterwards.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import uvloop
import yaml
from prometheus_client import CollectorRegistry

from sidecert.downstream import accept
from sidecert.generation import Generation, build
from sidecert.metrics import Metrics, RouteStats
from sidecert.plane import Listener, Plane
from sidecert.pool import Pool
from support.certs import Pki, private_folder, write_private
from support.sidecar import config

LoopKind = Literal["uvloop", "asyncio"]
LOOPS: tuple[LoopKind, ...] = ("uvloop", "asyncio")
PATIENCE = 10.0

_FACTORIES: dict[LoopKind, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def new_loop(kind: LoopKind) -> asyncio.AbstractEventLoop:
    return _FACTORIES[kind]()


def generation(folder: Path, config: Mapping[str, Any], number: int = 1) -> Generation:
    """The generation that a config (as `support.sidecar.config` makes it) leads to."""
    private_folder(folder)
    path = write_private(folder / "sidecert.yaml", yaml.safe_dump(dict(config)).encode())
    return build(path, number, {})


def orders(folder: Path, pki: Pki, **rest: object) -> Generation:
    """Of one route, `orders`, whose upstream nobody connects to; `rest` are further keys of the config."""
    route = {
        "id": "orders",
        "match": {"host": "orders.test"},
        "upstream": {"host": "127.0.0.1", "trust": str(pki.trust)},
        "credential": "alice",
    }
    return generation(folder, config([route], pki.credentials, **rest))


def leftovers(plane: Plane) -> dict[str, Any]:
    """What calls have left behind in `plane`, by what it is."""
    found: dict[str, Any] = {
        "downstream connections": len(plane.connections),
        "refused connections": len(plane.leaving),
    }
    for name, pool in plane.pools.items():
        idle = [connection for each in pool._idle.values() for connection in each]
        found[f"{name} in progress"] = pool.stats.in_progress
        found[f"{name} active"] = pool.stats.active
        found[f"{name} idle beyond those there are"] = pool.stats.idle - len(idle)
        found[f"{name} not idle"] = len(pool._connections) - len(idle)
        found[f"{name} promised"] = pool._promised
        found[f"{name} waiting"] = len(pool._waiters)
    return {name: value for name, value in found.items() if value}


class Inside:
    """A running data plane. `errors` holds what reached the loop's exception handler."""

    def __init__(self, first: Generation, kind: LoopKind) -> None:
        self.plane: Plane
        self.loop: asyncio.AbstractEventLoop
        self.address: tuple[str, int]
        self.listener: Listener
        self.errors: list[dict[str, Any]] = []
        self._first = first
        self.kind: LoopKind = kind
        self._ready = threading.Event()
        self._stopping: asyncio.Event
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        if self._broken is not None:
            raise self._broken

    def pool(self, route: str) -> Pool:
        return self.plane.pools[route]

    def stats(self, route: str) -> RouteStats:
        return self.plane.metrics.route(route)

    def ask(self, question: Callable[[], Any]) -> Any:
        """`question()`, asked on the loop's thread."""

        async def answer() -> Any:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(PATIENCE)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 5.0, why: str = "") -> None:
        """Waits until `condition`, asked on the loop's thread, holds."""
        deadline = time.monotonic() + timeout
        while not self.ask(condition):
            assert time.monotonic() < deadline, why or "what was waited for did not come"
            time.sleep(0.002)

    def leftovers(self) -> dict[str, Any]:
        """What calls have left behind, by what it is; nothing when all have ended in good order."""
        tasks = [repr(task) for task in asyncio.all_tasks(self.loop) if not self._is_ours(task)]
        return leftovers(self.plane) | ({"tasks": tasks} if tasks else {})

    def check_nothing_left(self, timeout: float = 3.0) -> None:
        """Waits until every call has ended in good order."""
        deadline = time.monotonic() + timeout
        while left := self.ask(self.leftovers):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.002)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive(), "the loop did not end"

    def _is_ours(self, task: asyncio.Task[Any]) -> bool:
        return getattr(task.get_coro(), "__name__", "") in ("_main", "answer")

    def _work(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: new_loop(self.kind)) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._broken = error
            self._ready.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._stopping = asyncio.Event()
        self.plane = Plane(Metrics(CollectorRegistry()))
        self.plane.adopt(self._first)
        self.listener = Listener("127.0.0.1:0", None, frozenset())
        server = await self.loop.create_server(lambda: accept(self.plane, self.listener), "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()[:2]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        self.plane.close()
        # transports close in the loop's next turns
        for _ in range(3):
            await asyncio.sleep(0)


@contextmanager
def running_inside(folder: Path, config: Mapping[str, Any], kind: LoopKind = "uvloop") -> Iterator[Inside]:
    """A data plane for the length of a with block."""
    inside = Inside(generation(folder, config), kind)
    try:
        yield inside
    finally:
        inside.stop()
