"""A deadline passes once, within a tick of when it was last told to, and not at all when cleared."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from itertools import pairwise

import pytest
import uvloop

from sidecert.timers import TICK, Deadline, Timers


class FakeHandle:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

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

    def call_at(self, when: float, callback: Callable[[float], None], tick: float) -> FakeHandle:
        self.made += 1
        self.handles.append(FakeHandle(when, lambda: callback(tick)))
        return self.handles[-1]

    def go(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.handles if not each.cancelled and each.when <= end]:
            first = min(due, key=lambda handle: handle.when)
            self.handles.remove(first)
            self.now = max(self.now, first.when)
            first.callback()
        self.now = end

    @property
    def waiting(self) -> int:
        return sum(not handle.cancelled for handle in self.handles)


class Scene:
    """Deadlines on one fake loop, and when they passed."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.timers = Timers(self.loop)  # type: ignore[arg-type]
        self.passed: list[float] = []

    def deadline(self) -> Deadline:
        return Deadline(self.timers, lambda: self.passed.append(self.loop.now))

    def check(self, *due: float) -> None:
        """So many have passed by now: each when it was due or at most a tick later."""
        assert len(self.passed) == len(due)
        for when, at in zip(due, self.passed, strict=True):
            assert when <= at <= when + TICK + 1e-6


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_passes_once(scene: Scene) -> None:
    """At its time, and not again."""
    scene.deadline().set(5)
    scene.loop.go(4.99)
    scene.check()
    scene.loop.go(100)
    scene.check(1005)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, TICK, 0.35, 1, 7.77, 75])
def test_never_passes_early_and_at_most_a_tick_late(scene: Scene, seconds: float) -> None:
    """Wherever in a tick it begins."""
    for _ in range(11):
        due = scene.loop.now + seconds
        scene.passed.clear()
        scene.deadline().set(seconds)
        scene.loop.go(seconds + TICK)
        scene.check(due)
        scene.loop.go(0.013)


def test_may_be_moved_either_way(scene: Scene) -> None:
    """Later and earlier: the last word counts."""
    deadline = scene.deadline()
    deadline.set(5)
    scene.loop.go(4)
    deadline.set(5)
    scene.loop.go(4.99)
    scene.check()
    deadline.set(1)
    scene.loop.go(1 + TICK)
    scene.check(1009.99)
    now = scene.loop.now
    deadline.set(60)
    deadline.set(2)
    scene.loop.go(100)
    scene.check(1009.99, now + 2)


def test_moving_it_later_makes_no_new_timer(scene: Scene) -> None:
    """A thousand requests cost one timer."""
    deadline = scene.deadline()
    for _ in range(1000):
        deadline.set(5)
        scene.loop.now += 0.001
    assert scene.loop.made == 1


def test_deadlines_of_one_tick_share_a_timer(scene: Scene) -> None:
    """A thousand connections cost a few, which are gone when their time has come."""
    deadlines = [scene.deadline() for _ in range(1000)]
    for deadline in deadlines:
        deadline.set(75)
        scene.loop.now += TICK / 500
    assert scene.loop.made <= 3
    for deadline in deadlines:
        deadline.close()
    scene.loop.go(75)
    assert scene.loop.made <= 3
    assert scene.loop.waiting == 0


def test_callers_that_come_one_after_the_other_share_a_timer(scene: Scene) -> None:
    """A hundred connections within a tick, each closed before the next is made."""
    for _ in range(100):
        deadline = scene.deadline()
        deadline.set(75)
        deadline.close()
        scene.loop.now += TICK / 200
    assert scene.loop.made <= 2


@pytest.mark.parametrize("end", ["clear", "close"])
def test_never_passes_once_it_was_cleared(end: str, scene: Scene) -> None:
    """Cleared or closed. It may be set anew once cleared; what was closed never passes again."""
    deadline = scene.deadline()
    deadline.set(5)
    getattr(deadline, end)()
    scene.loop.go(100)
    scene.check()
    deadline.set(5)
    scene.loop.go(5 + TICK)
    scene.check(*([1105] if end == "clear" else []))


def test_owner_of_a_closed_deadline_is_freed_at_once(scene: Scene) -> None:
    """Not only by the garbage collection: many connections may end at once, and as many come after them."""

    class Owner:
        def __init__(self) -> None:
            self.deadline = Deadline(scene.timers, self.passed)

        def passed(self) -> None:
            raise AssertionError

    gc.disable()
    try:
        owner = Owner()
        owner.deadline.set(5)
        known = weakref.ref(owner)
        owner.deadline.close()
        del owner
        assert known() is None
    finally:
        gc.enable()


def test_may_be_set_from_its_own_callback(scene: Scene) -> None:
    """As the pool does, to sweep again."""
    times: list[float] = []

    def again() -> None:
        times.append(scene.loop.now)
        if len(times) < 3:
            deadline.set(2)

    deadline = Deadline(scene.timers, again)
    deadline.set(1)
    scene.loop.go(100)
    assert len(times) == 3
    assert [round(later - earlier) for earlier, later in pairwise(times)] == [2, 2]


@pytest.mark.parametrize("what", ["close", "clear", "set"])
def test_deadline_of_the_same_tick_may_be_touched_by_a_callback(scene: Scene, what: str) -> None:
    """The end of one connection ends another whose time has come as well."""
    both: list[Deadline] = []
    passed: list[int] = []

    def touch(own: int) -> None:
        passed.append(own)
        other = both[1 - own]
        if what == "set":
            other.set(10)
        else:
            getattr(other, what)()

    both += [Deadline(scene.timers, lambda: touch(0)), Deadline(scene.timers, lambda: touch(1))]
    for deadline in both:
        deadline.set(5)
    scene.loop.go(5 + TICK)
    assert len(passed) == 1
    scene.loop.go(10 + TICK)
    # the second time it is the other one's turn, which sets the first one again
    assert len(passed) == (2 if what == "set" else 1)
    for deadline in both:
        deadline.close()
    scene.loop.go(100)
    assert scene.loop.waiting == 0


def test_may_be_closed_again(scene: Scene) -> None:
    """And leaves no timer for ever."""
    deadline = scene.deadline()
    deadline.set(75)
    deadline.close()
    deadline.close()
    scene.loop.go(75)
    scene.check()
    assert scene.loop.waiting == 0


def test_waits_on_when_its_tick_comes_before_it_was_moved_to(scene: Scene) -> None:
    """One more timer then, not one for each time that it was moved."""
    deadline = scene.deadline()
    deadline.set(5)
    for _ in range(4):
        scene.loop.go(1)
        deadline.set(5)
    scene.loop.go(1 + TICK)
    assert (scene.passed, scene.loop.made) == ([], 2)
    scene.loop.go(4)
    scene.check(1009)
    assert scene.loop.made == 2


def test_one_that_was_moved_earlier_passes_once(scene: Scene) -> None:
    """Not again when its former time has come."""
    deadline = scene.deadline()
    deadline.set(60)
    deadline.set(2)
    scene.loop.go(100)
    scene.check(1002)
    assert scene.loop.waiting == 0


def test_callback_that_raises_leaves_the_others_alone(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others of that tick pass all the same."""

    def fail() -> None:
        raise ZeroDivisionError

    for deadline in (scene.deadline(), Deadline(scene.timers, fail), scene.deadline()):
        deadline.set(1)
    scene.loop.go(1 + TICK)
    scene.check(1001, 1001)
    assert "ZeroDivisionError" in caplog.text
    scene.loop.go(100)
    assert caplog.text.count("Traceback") == 1


REAL = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("factory", REAL, ids=["asyncio", "uvloop"])
def test_passes_on_a_real_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Once, and not before its time, wherever it was moved; also one that was due at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = Timers(loop)
        passed: list[float] = []
        event = asyncio.Event()

        def note() -> None:
            passed.append(loop.time())
            event.set()

        deadline, moved = Deadline(timers, note), Deadline(timers, lambda: passed.append(0))
        for soon in (0.0, 0.0001):
            moved.set(soon)
            moved.set(60)
        deadline.set(0.005)
        deadline.set(60)
        due = loop.time() + 0.02
        deadline.set(0.02)
        async with asyncio.timeout(5):
            await event.wait()
        assert len(passed) == 1
        assert passed[0] >= due - 0.002  # libuv counts in milliseconds
        moved.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
