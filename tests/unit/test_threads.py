"""Work in a thread of its own: what comes of it, and that nobody has to wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from sidecert.threads import NoThread, in_thread


def test_what_it_gives_or_raises_comes_back() -> None:
    """Done in another thread than the loop's."""

    async def scenario() -> None:
        assert await in_thread("other", lambda: threading.current_thread().name) == "other"
        with pytest.raises(ZeroDivisionError):
            await in_thread("other", lambda: 1 // 0)

    asyncio.run(scenario())


def test_a_thread_that_cannot_be_had_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's RuntimeError would look like a fault of ours."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(NoThread, match=r"no further thread .*ulimit -u"):
        asyncio.run(in_thread("other", lambda: None))


def test_one_that_hangs_can_be_left_alone() -> None:
    """Cancelled, it holds up neither the loop nor its end, and what it gives later goes nowhere."""
    go = threading.Event()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread("hanging", lambda: go.wait(20))

    asyncio.run(scenario())
    [hanging] = [thread for thread in threading.enumerate() if thread.name == "hanging"]
    go.set()
    hanging.join(10)
    assert not hanging.is_alive()


def test_one_that_hangs_does_not_hold_up_the_process() -> None:
    """An executor's thread would be waited for."""
    code = (
        "import asyncio, threading\n"
        "from sidecert.threads import in_thread\n"
        "async def main():\n"
        "    asyncio.create_task(in_thread('hanging', threading.Event().wait))\n"
        "    await asyncio.sleep(0.05)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=20, check=False)
    assert ran.returncode == 0
