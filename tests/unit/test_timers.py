"""A deadline passes once, when it was last told to, and not at all when cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

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


def test_works_on_a_real_loop() -> None:
    """asyncio's own timers take it."""

    async def main() -> None:
        passed = asyncio.Event()
        deadline = Deadline(asyncio.get_running_loop(), passed.set)
        deadline.set(60)
        deadline.set(0.001)
        async with asyncio.timeout(5):
            await passed.wait()

    asyncio.run(main())
