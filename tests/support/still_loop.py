"""An event loop without sockets or waiting: time stands still until a test lets it pass, in no time."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

MOST_TURNS = 2000
"""Of the loop, without anything new from outside; what still has work then will have it for ever."""

type Connect = Callable[[asyncio.Protocol, Any], asyncio.BaseTransport]


class StillLoop(asyncio.AbstractEventLoop):
    """What the data plane needs of a loop. `connect` makes the transport of each connection."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.errors: list[dict[str, Any]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.connect: Connect
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0

    # -- for the test ----------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def turn(self) -> None:
        """Once round: what is ready now, not what becomes so."""
        while self._timers and (self._timers[0][0] <= self.now or self._timers[0][2].cancelled()):
            self._ready.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def settle(self) -> None:
        """Until there is nothing to do at this time."""
        for _ in range(MOST_TURNS):
            self.turn()
            if not self._ready:
                return
        raise AssertionError(f"the loop goes round without end: {self._ready[0]!r}")

    def let_pass(self, seconds: float) -> None:
        until = self.now + seconds
        self.settle()
        while self._timers and self._timers[0][0] <= until:
            self.now = max(self.now, self._timers[0][0])
            self.settle()
        self.now = until

    @property
    def unfinished(self) -> list[asyncio.Task[Any]]:
        self.tasks = [task for task in self.tasks if not task.done()]
        return self.tasks

    # -- for the product -------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, **kwargs)
        self.tasks.append(task)
        return task

    async def create_connection(self, factory: Any, *, sock: Any) -> Any:  # type: ignore[override]
        protocol = factory()
        transport = self.connect(protocol, sock)
        protocol.connection_made(transport)
        await asyncio.sleep(0)  # real ones take a turn of the loop
        return transport, protocol
