"""Work that may block, or hang for good, in a thread of its own, which does not hold up the process's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future


class NoThread(Exception):
    """The user, the container or the machine has as many threads as it may have."""

    wrong = "no further thread can be had"
    right = "raise that limit (`ulimit -u`, TasksMax=, `--pids-limit`), or end what else runs under it"

    def __init__(self) -> None:
        super().__init__(f"{self.wrong}; {self.right}")


def start_thread[T](name: str, work: Callable[[], T]) -> Future[T]:
    """Begin `work`; what it gives or raises can be waited for, but not cancelled. Raises NoThread."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # else whoever gives up waiting would cancel it for all others

    def run() -> None:
        try:
            result = work()
        except BaseException as exc:
            done.set_exception(exc)
        else:
            done.set_result(result)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as exc:
        raise NoThread from exc
    return done


async def in_thread[T](name: str, work: Callable[[], T]) -> T:
    """What `work` gives. One that is cancelled leaves the thread to itself. Raises NoThread."""
    return await asyncio.wrap_future(start_thread(name, work))
