"""Work that may block, or hang for good, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


async def in_thread[T](name: str, work: Callable[[], T]) -> T:
    """What `work` gives, done in a thread of its own, which does not hold up the end of the process.

    One that is cancelled leaves the thread to itself.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.done() else set_it())
        except RuntimeError:  # the loop has been closed in the meantime
            pass

    def run() -> None:
        try:
            result = work()
        except BaseException as exc:
            error = exc  # the name `exc` is gone once the block has ended
            tell(lambda: done.set_exception(error))
        else:
            tell(lambda: done.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
