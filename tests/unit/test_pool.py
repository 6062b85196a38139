"""The pool's book-keeping with connections that do what the test says."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import sidecert.pool
from sidecert.circuit import CircuitOpen
from sidecert.config import CircuitConfig
from sidecert.errors import Refusal
from sidecert.generation import Habits
from sidecert.metrics import RouteStats
from sidecert.outcome import Observation, Outcome
from sidecert.pool import MAX_AGE, Pool
from sidecert.timers import Timers
from sidecert.upstream import NotOpened


class FakeConnection:
    """As much of an upstream connection as the pool sees."""

    made: ClassVar[list[FakeConnection]] = []
    failing = False
    next_seen = Observation()

    def __init__(
        self,
        upstream: Any,
        stats: Any,
        on_end: Callable[[Any], None],
        on_verdict: Callable[[Observation, Outcome], None],
    ) -> None:
        self.upstream = upstream
        self.on_end = on_end
        self.on_verdict = on_verdict
        self.idle_until = self.usable_until = 0.0
        self.answer = SimpleNamespace(idle_timeout=None)
        self.reusable = True
        self.alive = True
        self.ended = False
        self.unasked = False
        self.seen = self.next_seen
        self.made.append(self)

    async def open(self) -> None:
        await asyncio.sleep(0)
        if self.failing:
            self.on_verdict(self.seen, Outcome.CONNECT_REFUSED)
            self.end()
            raise NotOpened(self.seen, Outcome.CONNECT_REFUSED)
        self.on_verdict(self.seen, Outcome.OK)

    def is_alive(self) -> bool:
        return self.alive and not self.ended

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_end(self)

    close = leave = end


ROUTE = SimpleNamespace(id="orders", credential_id="alice")
A = SimpleNamespace(host="a", label="a:1", habits=Habits(), route=ROUTE, chosen_by_caller=True)
B = SimpleNamespace(host="b", label="b:1", habits=Habits(), route=ROUTE, chosen_by_caller=True)


def make_pool(
    *,
    max_idle: int = 8,
    max_connections: int = 8,
    max_waiting: int = 8,
    failures: int = 0,
    pause: float = 0.05,
    connect: float = 0.05,
    idle: float = 60,
    ends: float = 1e9,
) -> Any:
    """A pool for a route with these settings, whose certificate ends in `ends` seconds."""
    upstream = SimpleNamespace(
        timeouts=SimpleNamespace(connect=connect, idle=idle),
        pool=SimpleNamespace(max_idle=max_idle, max_connections=max_connections, max_waiting=max_waiting),
        circuit=CircuitConfig(failures=failures, pause=f"{pause * 1000:g}ms"),
    )
    credential = SimpleNamespace(valid_until=time.time() + ends)
    route = SimpleNamespace(config=SimpleNamespace(upstream=upstream), credential=credential, id="orders")
    timers = Timers(asyncio.get_running_loop())
    return Pool(route, RouteStats(), timers)  # type: ignore[arg-type]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Plays a coroutine function; afterwards the fakes are forgotten."""
    monkeypatch.setattr(FakeConnection, "made", [])
    monkeypatch.setattr(sidecert.pool, "UpstreamConnection", FakeConnection)

    def run(main: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(main())  # type: ignore[arg-type]

    return run


Play = Callable[[Callable[[], Awaitable[None]]], None]


def numbers(pool: Any) -> tuple[int, int]:
    return pool.stats.active, pool.stats.idle


def test_last_used_first(play: Play) -> None:
    """Of two idle connections the one given back last is taken."""

    async def main() -> None:
        pool = make_pool()
        first, second = await pool.open(A), await pool.open(A)
        pool.release(second)
        pool.release(first)
        assert numbers(pool) == (0, 2)
        assert [pool.take(A), pool.take(A), pool.take(A)] == [first, second, None]
        assert numbers(pool) == (2, 0)
        assert pool.stats.reuses == 2

    play(main)


def test_connection_to_one_host_is_not_given_for_another(play: Play) -> None:
    """Hosts of a wildcard share the route, not the connections."""

    async def main() -> None:
        pool = make_pool()
        pool.release(await pool.open(A))
        assert pool.take(B) is None
        assert pool.take(A) is not None

    play(main)


@pytest.mark.parametrize("trouble", ["dead", "idle-too-long"])
def test_connection_that_is_no_good_is_closed_instead_of_given(trouble: str, play: Play) -> None:
    """Its end has come, or it was idle for long and the sweep has not come yet."""

    async def main() -> None:
        pool = make_pool()
        good, bad = await pool.open(A), await pool.open(A)
        pool.release(good)
        pool.release(bad)
        if trouble == "dead":
            bad.alive = False
        else:
            bad.idle_until = time.monotonic() - 1
        assert pool.take(A) is good
        assert bad.ended
        assert numbers(pool) == (1, 0)

    play(main)


def test_connection_is_not_kept_beyond_its_age(play: Play) -> None:
    """However long it may be idle."""

    async def main() -> None:
        pool = make_pool(idle=60)
        connection = await pool.open(A)
        connection.usable_until = time.monotonic() + 7
        pool.release(connection)
        assert connection.idle_until == connection.usable_until

    play(main)


def test_connection_that_ends_while_idle_is_forgotten(play: Play) -> None:
    """Its place and its number go."""

    async def main() -> None:
        pool = make_pool()
        connection = await pool.open(A)
        pool.release(connection)
        connection.end()
        assert numbers(pool) == (0, 0)
        assert pool.take(A) is None

    play(main)


@pytest.mark.parametrize("why", ["not-reusable", "retired", "beyond-max-idle", "too-old"])
def test_connection_that_must_not_be_kept_is_closed(why: str, play: Play) -> None:
    """After the answer: not reusable, of a route that was changed, one too many, or past its age."""

    async def main() -> None:
        pool = make_pool(max_idle=0 if why == "beyond-max-idle" else 8)
        connection = await pool.open(A)
        if why == "not-reusable":
            connection.reusable = False
        if why == "retired":
            pool.retire()
        if why == "too-old":
            connection.usable_until = time.monotonic() - 1
        pool.release(connection)
        assert connection.ended
        assert numbers(pool) == (0, 0)

    play(main)


def test_age_is_that_of_the_certificate_at_most(play: Play) -> None:
    """An hour, or less where the certificate ends before."""

    async def main() -> None:
        now = asyncio.get_running_loop().time()
        assert (await make_pool().open(A)).usable_until - now == pytest.approx(MAX_AGE, abs=5)
        assert (await make_pool(ends=30).open(A)).usable_until - now == pytest.approx(30, abs=5)
        pool = make_pool(ends=-30)
        connection = await pool.open(A)
        pool.release(connection)
        assert connection.ended

    play(main)


def test_clock_that_is_set_forward_ends_connections_with_their_certificate(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle ones, and those that would go from call to call; the event loop's clock does not tell."""

    async def main() -> None:
        pool = make_pool(ends=30, max_connections=2)
        idle, busy = await pool.open(A), await pool.open(A)
        pool.release(idle)
        ahead = time.time() + 31
        monkeypatch.setattr(time, "time", lambda: ahead)
        assert pool.take(A) is None
        assert idle.ended
        third = await pool.open(A)
        waiting = asyncio.create_task(pool.open(A))
        await asyncio.sleep(0)
        pool.release(busy)
        assert busy.ended
        assert await waiting not in (idle, busy, third)

    play(main)


def test_idle_connections_are_swept(play: Play) -> None:
    """Each when its own time has come."""

    async def main() -> None:
        pool = make_pool(idle=0.03)
        for connection in [await pool.open(A) for _ in range(3)]:
            pool.release(connection)
        async with asyncio.timeout(5):
            while pool.stats.idle:
                await asyncio.sleep(0.005)
        assert all(connection.ended for connection in FakeConnection.made)
        pool.release(await pool.open(A))
        async with asyncio.timeout(5):
            while pool.stats.idle:
                await asyncio.sleep(0.005)

    play(main)


def test_upstreams_own_idle_limit_is_undercut(play: Play) -> None:
    """A second less than it says, never more than our own."""

    async def main() -> None:
        pool = make_pool(idle=60)
        connection = await pool.open(A)
        connection.answer.idle_timeout = 5
        pool.release(connection)
        now = asyncio.get_running_loop().time()
        assert connection.idle_until - now == pytest.approx(4, abs=0.5)

    play(main)


def test_full_pool_hands_over_in_turn(play: Play) -> None:
    """Who waits longest gets what is given back, before anybody who comes later."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=5)
        only = await pool.open(A)
        waiting = [asyncio.ensure_future(pool.open(A)) for _ in range(3)]
        await asyncio.sleep(0)
        order = []
        for each in waiting:
            pool.release(only)
            assert pool.take(A) is None  # it is promised already
            order.append(await each)
        assert order == [only] * 3
        assert len(FakeConnection.made) == 1
        assert numbers(pool) == (1, 0)

    play(main)


def test_place_that_becomes_free_is_promised_once(play: Play) -> None:
    """A connection ends: one of those who wait opens another, and the limit holds."""

    async def main() -> None:
        pool = make_pool(max_connections=2, connect=5)
        first, _ = await pool.open(A), await pool.open(A)
        waiting = [asyncio.ensure_future(pool.open(A)) for _ in range(2)]
        await asyncio.sleep(0)
        first.end()
        late = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0.01)
        assert [each.done() for each in (*waiting, late)] == [True, False, False]
        assert sum(not each.ended for each in FakeConnection.made) == 2
        for each in (*waiting[1:], late):
            each.cancel()
        await asyncio.sleep(0)
        assert (len(pool._waiters), pool._promised) == (0, 0)

    play(main)


def test_connection_to_another_host_makes_room(play: Play) -> None:
    """An idle connection to one host does not keep a call to another out of a full pool."""

    async def main() -> None:
        pool = make_pool(max_connections=1)
        idle = await pool.open(A)
        pool.release(idle)
        assert (await pool.open(B)).upstream is B
        assert idle.ended

    play(main)


def test_connection_given_back_for_another_host_becomes_a_place(play: Play) -> None:
    """Who waits for another host cannot use it, and gets its place instead."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=5)
        only = await pool.open(A)
        waiting = asyncio.ensure_future(pool.open(B))
        await asyncio.sleep(0)
        pool.release(only)
        assert (await waiting).upstream is B
        assert only.ended
        assert numbers(pool) == (1, 0)

    play(main)


def test_who_needs_a_new_connection_is_not_given_a_used_one(play: Play) -> None:
    """A call that is sent again waits for a place in a full pool; what is given back makes room for it."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=5)
        used = await pool.open(A)
        again = asyncio.ensure_future(pool.open(A, fresh=True))
        other = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0)
        pool.release(used)
        new = await again
        assert new is not used
        assert used.ended
        pool.release(new)
        assert await other is new
        assert numbers(pool) == (1, 0)

    play(main)


def test_pool_that_stays_full_refuses(play: Play) -> None:
    """After `connect` seconds, in words, and the next one in line is not forgotten."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=0.02)
        only = await pool.open(A)
        with pytest.raises(Refusal) as refused:
            await pool.open(A)
        assert (refused.value.outcome, refused.value.retry_after) == ("pool_full", 1)
        assert not pool._waiters
        pool.release(only)
        assert pool.take(A) is only

    play(main)


def test_one_that_leaves_in_the_moment_of_its_turn_passes_it_on(play: Play) -> None:
    """Cancelled after it was handed a connection or a place: the next in line gets it."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=5)
        for free in ("release", "end"):
            only = await pool.open(A)
            leaving, staying = (asyncio.ensure_future(pool.open(A)) for _ in range(2))
            await asyncio.sleep(0)
            pool.release(only) if free == "release" else only.end()
            leaving.cancel()
            async with asyncio.timeout(1):
                got = await staying
            assert pool._promised == 0
            got.end()
        assert numbers(pool) == (0, 0)

    play(main)


def test_failed_attempt_frees_its_place(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the one who waits for it makes an attempt of its own."""

    async def main() -> None:
        monkeypatch.setattr(FakeConnection, "failing", True)
        pool = make_pool(max_connections=1, connect=5)
        results = await asyncio.gather(*(pool.open(A) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [NotOpened] * 3
        assert numbers(pool) == (0, 0)
        assert not pool._connections

    play(main)


def test_connection_that_died_on_its_way_to_who_waited_is_replaced(play: Play) -> None:
    """Handed over, then ended before it was used: another is opened instead."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=5)
        only = await pool.open(A)
        waiting = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0)
        pool.release(only)
        only.end()
        got = await waiting
        assert got is not only
        assert got.is_alive()

    play(main)


def test_abort_ends_everything(play: Play) -> None:
    """Idle or in use."""

    async def main() -> None:
        pool = make_pool()
        idle, used = await pool.open(A), await pool.open(A)
        pool.release(idle)
        pool.abort()
        assert (idle.ended, used.ended) == (True, True)
        assert numbers(pool) == (0, 0)

    play(main)


def test_upstream_that_asks_when_it_knows_the_path_is_not_one_that_never_asks(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked before the answer, or on another connection before."""
    monkeypatch.setattr(FakeConnection, "next_seen", Observation(certificate_sent=True))

    async def main() -> None:
        pool = make_pool()
        connection = await pool.open(A)
        connection.unasked = False  # what the connection does then
        pool.release(connection)
        knows = SimpleNamespace(host="a", label="a:1", habits=Habits(asks_afterwards=True))
        pool.release(await pool.open(knows))

    play(main)
    assert caplog.records == []


def test_upstream_that_asks_for_no_certificate_is_told_once_per_generation(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the route has a credential, however many connections are opened; once there is an answer."""
    told = caplog.records

    async def main() -> None:
        pool = make_pool()
        pool.route.credential_id = "alice"
        for sent, requested, records in (
            (False, False, 0),
            (True, True, 0),
            (True, False, 1),
            (True, False, 1),
        ):
            seen = Observation(certificate_sent=sent, certificate_requested=requested)
            monkeypatch.setattr(FakeConnection, "next_seen", seen)
            before = len(told)
            connection = await pool.open(A)
            assert len(told) == before
            pool.release(connection)
            assert len(told) == records
        pool.route = copy.copy(pool.route)
        connection = await pool.open(A)
        connection.end()
        assert len(told) == 2

    play(main)
    assert {(record.event, record.route, record.credential) for record in told} == {  # type: ignore[attr-defined]
        ("certificate_not_requested", "orders", "alice")
    }


def test_more_than_max_waiting_are_refused_at_once(play: Play) -> None:
    """And those in line still have their turn."""

    async def main() -> None:
        pool = make_pool(max_connections=1, max_waiting=2, connect=5)
        only = await pool.open(A)
        waiting = [asyncio.ensure_future(pool.open(A)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await pool.open(A)
        assert (refused.value.outcome, refused.value.retry_after) == ("pool_full", 1)
        assert "2 calls wait" in refused.value.detail
        pool.release(only)
        for each in waiting:
            pool.release(await each)
        assert numbers(pool) == (0, 1)

    play(main)


def test_time_in_line_is_bounded_as_a_whole(play: Play) -> None:
    """Who is given a connection that ends on its way, and waits again, does not wait twice as long."""

    async def main() -> None:
        pool = make_pool(max_connections=1, connect=0.2)
        began = asyncio.get_running_loop().time()
        only = await pool.open(A)
        waiting = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0.15)
        pool.release(only)
        only.alive = False
        pool._promised += 1  # another call has taken its place
        with pytest.raises(Refusal):
            await waiting
        assert asyncio.get_running_loop().time() - began < 0.3

    play(main)


def test_all_that_wait_are_answered_when_the_circuit_opens(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for another host of the wildcard stay in line, and get the place."""

    async def main() -> None:
        pool = make_pool(max_connections=1, failures=2, connect=5)
        only = await pool.open(B)
        waiting = [asyncio.ensure_future(pool.open(A)) for _ in range(4)]
        other = asyncio.ensure_future(pool.open(B))
        await asyncio.sleep(0)
        monkeypatch.setattr(FakeConnection, "failing", True)
        only.end()
        async with asyncio.timeout(1):
            results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in results] == [NotOpened, NotOpened, CircuitOpen, CircuitOpen]
        with pytest.raises(NotOpened):
            await other
        with pytest.raises(CircuitOpen):
            await pool.open(A)
        assert (numbers(pool), pool._promised, len(pool._waiters)) == ((0, 0), 0, 0)

    play(main)


def test_place_of_one_that_must_not_try_goes_to_the_next(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The circuit has opened between the promise of a place and its use."""

    async def main() -> None:
        pool = make_pool(max_connections=2, failures=1, connect=5)
        first, second = await pool.open(B), await pool.open(B)
        stopped, going = asyncio.ensure_future(pool.open(A)), asyncio.ensure_future(pool.open(B))
        await asyncio.sleep(0)
        first.end()  # the place is promised to the first in line, who has not woken up yet
        pool._circuits.begin(A).told(Observation(), Outcome.CONNECT_REFUSED)
        async with asyncio.timeout(1):
            with pytest.raises(CircuitOpen):
                await stopped
            assert (await going).upstream is B
        second.end()
        assert (numbers(pool), pool._promised) == ((1, 0), 0)

    play(main)


def test_one_that_tries_and_is_given_up_does_not_hold_the_others_up(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled, or broken before there is a connection: the next call tries."""

    async def main() -> None:
        pool = make_pool(failures=1, pause=0.01)
        monkeypatch.setattr(FakeConnection, "failing", True)
        with pytest.raises(NotOpened):
            await pool.open(A)
        assert pool.stats.circuit_open()
        await asyncio.sleep(0.02)
        monkeypatch.setattr(FakeConnection, "failing", False)
        trying = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0)
        with pytest.raises(CircuitOpen):
            await pool.open(A)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        with monkeypatch.context() as patch:
            patch.setattr(sidecert.pool, "UpstreamConnection", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await pool.open(A)
        assert pool.stats.circuit_open()
        connection = await pool.open(A)
        assert not pool.stats.circuit_open()
        connection.end()
        assert numbers(pool) == (0, 0)

    play(main)


def test_idle_connection_is_used_while_the_circuit_is_open(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands is as good as before."""

    async def main() -> None:
        pool = make_pool(failures=1)
        idle, broken = await pool.open(A), await pool.open(A)
        pool.release(idle)
        broken.end()
        pool.take(A)
        monkeypatch.setattr(FakeConnection, "failing", True)
        with pytest.raises(NotOpened):
            await pool.open(A)
        pool.release(idle)
        assert pool.take(A) is idle

    play(main)


def test_all_that_wait_are_answered_when_one_tries(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first in line has the place and tries; the others need not wait for their turn to hear of it."""

    async def main() -> None:
        pool = make_pool(max_connections=1, failures=1, pause=0.01, connect=5)
        pool._circuits.begin(A).told(Observation(), Outcome.CONNECT_REFUSED)
        await asyncio.sleep(0.02)
        only = await pool.open(B)
        trying, *others = [asyncio.ensure_future(pool.open(A)) for _ in range(3)]
        await asyncio.sleep(0)
        only.end()
        results = await asyncio.gather(*others, return_exceptions=True)
        assert [type(each) for each in results] == [CircuitOpen, CircuitOpen]
        assert (await trying).upstream is A
        assert (numbers(pool), pool._promised) == ((1, 0), 0)

    play(main)


def test_one_that_leaves_in_the_moment_of_its_refusal_has_left(play: Play) -> None:
    """Cancelled after the circuit has opened for it, before it has woken up."""

    async def main() -> None:
        pool = make_pool(max_connections=1, failures=1, connect=5)
        only = await pool.open(B)
        leaving = asyncio.ensure_future(pool.open(A))
        await asyncio.sleep(0)
        pool._circuits.begin(A).told(Observation(), Outcome.CONNECT_REFUSED)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        only.end()
        assert (numbers(pool), pool._promised, len(pool._waiters)) == ((0, 0), 0, 0)

    play(main)
