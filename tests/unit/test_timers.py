"""A deadline passes once, when it was last told to, and not at all when cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from sidecert.timers import Deadline


class FakeHandle:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self._when = when
        self.callback = callback
        self.cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Time that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[FakeHandle] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeHandle:
        self.made += 1
        self.handles.append(FakeHandle(when, callback))
        return self.handles[-1]

    def go(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.handles if not each.cancelled and each.when() <= end]:
            first = min(due, key=FakeHandle.when)
            self.handles.remove(first)
            self.now = max(self.now, first.when())
            first.callback()
        self.now = end


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def passed(loop: FakeLoop) -> list[float]:
    return []


@pytest.fixture
def deadline(loop: FakeLoop, passed: list[float]) -> Deadline:
    return Deadline(loop, lambda: passed.append(loop.now))  # type: ignore[arg-type]


def test_passes_once(loop: FakeLoop, deadline: Deadline, passed: list[float]) -> None:
    """At its time, and not again."""
    deadline.set(5)
    loop.go(4.9)
    assert passed == []
    loop.go(100)
    assert passed == [1005.0]


def test_may_be_moved_either_way(loop: FakeLoop, deadline: Deadline, passed: list[float]) -> None:
    """Later and earlier: the last word counts."""
    deadline.set(5)
    loop.go(4)
    deadline.set(5)
    loop.go(4.9)
    assert passed == []
    deadline.set(1)
    loop.go(1)
    assert passed == [1009.9]
    deadline.set(60)
    deadline.set(2)
    loop.go(2)
    assert passed == [1009.9, 1011.9]
    loop.go(100)
    assert len(passed) == 2


def test_moving_it_later_makes_no_new_timer(loop: FakeLoop, deadline: Deadline) -> None:
    """A thousand requests cost one timer."""
    for _ in range(1000):
        deadline.set(5)
        loop.now += 0.001
    assert loop.made == 1


def test_no_later_moves_it_earlier_only(loop: FakeLoop, deadline: Deadline, passed: list[float]) -> None:
    """What passes before that anyway stays as it is."""
    deadline.set_no_later(5)
    deadline.set_no_later(10)
    loop.go(5)
    assert passed == [1005.0]
    deadline.set(10)
    deadline.set_no_later(3)
    loop.go(3)
    assert passed == [1005.0, 1008.0]


@pytest.mark.parametrize("end", ["clear", "close"])
def test_never_passes_once_it_was_cleared(
    end: str, loop: FakeLoop, deadline: Deadline, passed: list[float]
) -> None:
    """Cleared or closed; it may be set anew after either."""
    deadline.set(5)
    getattr(deadline, end)()
    loop.go(100)
    assert passed == []
    deadline.set(5)
    loop.go(5)
    assert len(passed) == 1


def test_may_be_set_from_its_own_callback(loop: FakeLoop) -> None:
    """As the pool does, to sweep again."""
    times: list[float] = []

    def again() -> None:
        times.append(loop.now)
        if len(times) < 3:
            deadline.set(2)

    deadline = Deadline(loop, again)  # type: ignore[arg-type]
    deadline.set(1)
    loop.go(100)
    assert times == [1001.0, 1003.0, 1005.0]


def test_close_leaves_no_timer_in_the_loop(loop: FakeLoop, deadline: Deadline) -> None:
    """A closed connection's deadline holds nothing alive."""
    deadline.set(5)
    deadline.close()
    assert all(handle.cancelled for handle in loop.handles)


def test_waits_on_when_its_timer_fires_before_it_was_moved_to(
    loop: FakeLoop, deadline: Deadline, passed: list[float]
) -> None:
    """One more timer then, not one for each time that it was moved."""
    deadline.set(5)
    for _ in range(4):
        loop.go(1)
        deadline.set(5)
    loop.go(1)
    assert (passed, loop.made) == ([], 2)
    loop.go(4)
    assert (passed, loop.made) == ([1009.0], 2)


def test_moving_it_earlier_takes_the_later_timer_back(
    loop: FakeLoop, deadline: Deadline, passed: list[float]
) -> None:
    """There is one timer at a time."""
    deadline.set(60)
    deadline.set(2)
    assert [handle.cancelled for handle in loop.handles] == [True, False]
    loop.go(100)
    assert passed == [1002.0]


def test_cleared_timer_is_used_again(loop: FakeLoop, deadline: Deadline, passed: list[float]) -> None:
    """Between two requests a connection clears its deadline and soon sets it anew."""
    deadline.set(5)
    deadline.clear()
    loop.go(1)
    deadline.set(5)
    assert loop.made == 1
    loop.go(4.5)
    assert passed == []
    loop.go(1)
    assert passed == [1006.0]


def test_no_later_counts_anew_once_it_has_passed_or_was_cleared(
    loop: FakeLoop, deadline: Deadline, passed: list[float]
) -> None:
    """What no longer holds bounds nothing."""
    deadline.set_no_later(1)
    loop.go(1)
    deadline.set_no_later(5)
    loop.go(5)
    deadline.set(1)
    deadline.clear()
    deadline.set_no_later(5)
    loop.go(5)
    assert passed == [1001.0, 1006.0, 1011.0]


def test_callback_that_raises_leaves_it_passed(loop: FakeLoop) -> None:
    """It is not called again, and can be set anew."""
    calls: list[float] = []

    def fail() -> None:
        calls.append(loop.now)
        raise ZeroDivisionError

    deadline = Deadline(loop, fail)  # type: ignore[arg-type]
    deadline.set(1)
    with pytest.raises(ZeroDivisionError):
        loop.go(1)
    loop.go(100)
    assert calls == [1001.0]
    deadline.set(1)
    with pytest.raises(ZeroDivisionError):
        loop.go(1)


def test_closing_twice_is_harmless(loop: FakeLoop, deadline: Deadline) -> None:
    """Also where it was never set."""
    deadline.close()
    deadline.set(1)
    deadline.close()
    deadline.close()
    loop.go(2)
    assert loop.made == 1


REAL = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("factory", REAL, ids=["asyncio", "uvloop"])
def test_passes_on_a_real_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Moved later, then earlier: once, and not before its time."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        passed: list[float] = []
        event = asyncio.Event()

        def note() -> None:
            passed.append(loop.time())
            event.set()

        deadline = Deadline(loop, note)
        deadline.set(0.005)
        deadline.set(60)
        due = loop.time() + 0.02
        deadline.set(0.02)
        async with asyncio.timeout(5):
            await event.wait()
        assert len(passed) == 1
        assert passed[0] >= due - 0.002  # libuv counts in milliseconds

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("factory", REAL, ids=["asyncio", "uvloop"])
def test_waits_on_a_real_loop_when_moved_later(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The timer underneath fires first, and waits on."""

    async def main() -> None:
        passed: list[str] = []
        first, second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(name: str, event: asyncio.Event) -> None:
            passed.append(name)
            event.set()

        moved = Deadline(loop, lambda: note("moved", second))
        other = Deadline(loop, lambda: note("other", first))
        moved.set(0.001)
        moved.set(0.05)
        other.set(0.02)
        async with asyncio.timeout(5):
            await first.wait()
            await second.wait()
        assert passed == ["other", "moved"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("factory", REAL, ids=["asyncio", "uvloop"])
def test_may_be_moved_when_it_is_due_at_once(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A drain of 0 s, or what rounds to 0 ms: uvloop makes no timer of these, but calls soon."""

    async def main() -> None:
        passed: list[str] = []
        deadline = Deadline(asyncio.get_running_loop(), lambda: passed.append("passed"))
        for soon in (0.0, 0.0001):
            deadline.set(soon)
            deadline.set(60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert passed == []
        deadline.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
