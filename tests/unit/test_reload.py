"""The order in which a reload does things, and what it does when one of them fails."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sidecert import reload as module
from sidecert.config import Config
from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation
from sidecert.reload import Reload, Reloader
from sidecert.routing import Router
from sidecert.threads import NoThread
from sidecert.watch import Look, Signature

PATH = Path("sidecert.yaml")
WRONG = Problem("sidecert.yaml", 3, "colour", "unknown key", "leave it out")


@dataclass
class _Stand:
    """Stands in for plane, metrics and listeners, and notes what it was asked for."""

    generation: Generation
    done: list[str] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)

    @property
    def metrics(self) -> _Stand:
        return self

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise self.fails[what]

    def adopt(self, generation: Generation) -> None:
        self._do(f"adopt {generation.number}")
        self.generation = generation

    def reload(self, ok: bool, now: float) -> None:
        self._do("ok" if ok else "failed")

    async def prepare(self, _: object, file: Path) -> str:
        self._do("prepare")
        return "the change"

    def discard(self, change: str) -> None:
        assert change == "the change"
        self._do("discard")

    async def commit(self, change: str) -> str:
        assert change == "the change"
        self._do("commit")
        return "what is gone"

    async def stop_removed(self, removed: str) -> None:
        assert removed == "what is gone"
        self.done.append("stop")


def _generation(number: int) -> Generation:
    return Generation(number, PATH, Config(version=1, routes=()), {}, {}, Router(()), (), {})


def _reloader(stand: _Stand) -> Reloader:
    return Reloader(PATH, stand, stand)  # type: ignore[arg-type]


@pytest.fixture
def stand() -> _Stand:
    """In generation 1."""
    return _Stand(_generation(1))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Generation]], None]:
    """Sets what the next loads give."""

    def set_build(make: Callable[[int], Generation]) -> None:
        monkeypatch.setattr(module, "build", lambda path, number, files, before: make(number))

    set_build(_generation)
    return set_build


class _Slow:
    """Loads that wait in their thread until they may go on."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.loads = 0

    def load(self, number: int) -> Generation:
        self.loads += 1
        self.begun.release()
        assert self.go.wait(20)
        return _generation(number)

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@pytest.fixture
def slow(build: Any) -> Iterator[_Slow]:
    """The loads are slow ones."""
    slow = _Slow()
    build(slow.load)
    yield slow
    slow.go.set()


def _reload(stand: _Stand) -> Reload:
    return asyncio.run(_reloader(stand).reload())


def test_addresses_are_bound_before_the_routes_change_and_served_after(stand: _Stand, build: Any) -> None:
    """What may fail comes first; and nobody is served at a new address by the old routes."""
    assert _reload(stand) == Reload(True, ())
    assert stand.done == ["prepare", "adopt 2", "commit", "stop", "ok"]


def test_open_files_are_allowed_once_the_generation_is_in_force(
    stand: _Stand, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload that fails changes no limit of the process."""

    def allow(generation: Generation) -> list[Problem]:
        stand.done.append(f"allow {generation.number}")
        return [warning]

    warning = Problem("sidecert.yaml", None, "limits.connections", "too few", "more", warning=True)
    monkeypatch.setattr(module.openfiles, "allow", allow)
    assert _reload(stand) == Reload(True, (warning,))
    assert stand.done == ["prepare", "adopt 2", "commit", "stop", "allow 2", "ok"]
    stand.done.clear()
    stand.fails["commit"] = ConfigError([WRONG])
    assert _reload(stand) == Reload(False, (WRONG,))
    assert "allow 3" not in stand.done


def test_a_config_that_is_wrong_changes_nothing(stand: _Stand, build: Any) -> None:
    """Not even for a moment."""

    def fail(_: int) -> Generation:
        raise ConfigError([WRONG])

    build(fail)
    assert _reload(stand) == Reload(False, (WRONG,))
    assert stand.done == ["failed"]
    assert stand.generation.number == 1


def test_an_address_that_cannot_be_had_changes_nothing(stand: _Stand, build: Any) -> None:
    """The routes stay the old ones."""
    stand.fails["prepare"] = ConfigError([WRONG])
    assert _reload(stand) == Reload(False, (WRONG,))
    assert stand.done == ["prepare", "failed"]


def test_a_fault_of_our_own_keeps_the_old_generation(
    stand: _Stand, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, and the caller is told; new addresses are given back."""
    stand.fails["adopt 2"] = RuntimeError("ours")
    with caplog.at_level(logging.ERROR, "sidecert.reload"):
        result = _reload(stand)
    assert not result.ok
    assert stand.done == ["prepare", "adopt 2", "discard", "failed"]
    assert any(record.exc_info for record in caplog.records)


def test_a_failed_reload_takes_no_number(stand: _Stand, build: Any) -> None:
    """The next good one is generation 2."""
    stand.fails["prepare"] = ConfigError([WRONG])
    _reload(stand)
    stand.fails.clear()
    _reload(stand)
    assert stand.generation.number == 2


def test_every_problem_is_logged_once_at_its_level(
    stand: _Stand, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With its place as fields."""
    warning = Problem("sidecert.yaml", 5, "credentials.alice", "expired", "renew it", warning=True)

    def fail(_: int) -> Generation:
        raise ConfigError([WRONG, warning])

    build(fail)
    with caplog.at_level(logging.INFO, "sidecert.reload"):
        _reload(stand)
    told = [record for record in caplog.records if vars(record).get("event") == "config_problem"]
    assert [(record.levelname, record.getMessage()) for record in told] == [
        ("ERROR", str(WRONG)),
        ("WARNING", str(warning)),
    ]
    assert [vars(record)["line"] for record in told] == [3, 5]


def test_those_who_come_during_a_reload_share_the_next_one(stand: _Stand, slow: _Slow) -> None:
    """It begins once that has ended, and from what it has put in force: a file may have changed since it was
    read. However many come, no more than one waits."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        first = asyncio.create_task(reloader.reload())
        await slow.wait_begun()
        others = [asyncio.create_task(reloader.reload()) for _ in range(20)]
        waiting = {reloader.request() for _ in range(20)}
        await asyncio.sleep(0)
        assert len(waiting) == 1
        others.pop().cancel()  # which is nothing to the others
        slow.go.set()
        assert [found.ok for found in await asyncio.gather(first, *others)] == [True] * 20
        assert (await reloader.reload()).ok

    asyncio.run(scenario())
    assert slow.loads == 3
    assert [what for what in stand.done if what.startswith("adopt")] == ["adopt 2", "adopt 3", "adopt 4"]


def test_a_reload_that_ends_during_the_drain_opens_nothing(stand: _Stand, slow: _Slow) -> None:
    """The listeners are closed by then, and would be opened again."""

    async def scenario() -> Reload:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await slow.wait_begun()
        closing = asyncio.create_task(reloader.close())
        await asyncio.sleep(0)
        slow.go.set()
        await closing
        return await reloading

    assert not asyncio.run(scenario()).ok
    assert stand.done == ["failed"]


def test_the_end_waits_for_no_look_up(stand: _Stand, build: Any) -> None:
    """Nor for a proof: only for a change that has begun. What was bound by then is given back."""

    async def scenario() -> None:
        looking, found = asyncio.Event(), asyncio.Event()

        async def prepare(_: object, file: Path) -> str:
            looking.set()
            await found.wait()
            return "the change"

        stand.prepare = prepare  # type: ignore[method-assign]
        reloader = _reloader(stand)
        reloading = reloader.request()
        await looking.wait()
        async with asyncio.timeout(5):
            await reloader.close()
        assert not reloading.done()
        found.set()
        assert not (await reloading).ok

    asyncio.run(scenario())
    assert stand.done == ["discard", "failed"]


def test_the_end_waits_for_a_change_that_has_begun(stand: _Stand, build: Any) -> None:
    """The listeners are closed after it; else some would be left open."""

    async def scenario() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def commit(change: str) -> str:
            begun.set()
            await go.wait()
            return "what is gone"

        stand.commit = commit  # type: ignore[method-assign]
        reloader = _reloader(stand)
        reloading = reloader.request()
        await begun.wait()
        closing = asyncio.create_task(reloader.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        await closing
        assert "stop" in stand.done
        assert (await reloading).ok

    asyncio.run(scenario())


def test_a_load_that_hangs_stops_no_other_generation(stand: _Stand, slow: _Slow) -> None:
    """A certificate that has expired meanwhile is exchanged all the same, by a new proof, until the end."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloading = reloader.request()
        await slow.wait_begun()
        async with asyncio.timeout(5), reloader._deciding:
            assert await reloader._put_in_force(_generation(1))
        await reloader.close()
        assert not await reloader._put_in_force(_generation(1))
        slow.go.set()
        await reloading

    asyncio.run(scenario())
    assert stand.done == ["adopt 1", "failed"]


def test_listeners_that_fail_after_all_bring_the_old_routes_back(stand: _Stand, build: Any) -> None:
    """No half of a generation stays in force, and what was bound is given back."""
    stand.fails["commit"] = OSError("no room")
    assert not _reload(stand).ok
    assert stand.done == ["prepare", "adopt 2", "commit", "adopt 1", "discard", "failed"]
    assert stand.generation.number == 1


def test_a_load_that_hangs_does_not_hold_up_the_end(stand: _Stand, slow: _Slow) -> None:
    """Its files may be on a file system that is gone."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await slow.wait_begun()
        async with asyncio.timeout(5):
            await reloader.close()
        assert not reloading.done()
        slow.go.set()
        assert not (await reloading).ok

    asyncio.run(scenario())
    assert stand.done == ["failed"]


def _wrong(colour: str) -> Callable[[int], Generation]:
    def fail(_: int) -> Generation:
        raise ConfigError([Problem("sidecert.yaml", 3, colour, "unknown key", "leave it out")])

    return fail


def test_a_failure_that_passes_is_not_told(
    stand: _Stand, build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch came between the two halves of a change, and then read the whole."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        build(_wrong("blue"))
        await reloader._looked(Look.SETTLED)
        await reloader._looked(Look.SAME)
        assert stand.done == []
        build(_generation)
        await reloader._looked(Look.SETTLED)
        await reloader._looked(Look.SAME)

    asyncio.run(scenario())
    assert stand.done == ["prepare", "adopt 2", "commit", "stop", "ok"]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_failure_that_lasts_is_told_once_until_it_is_another(
    stand: _Stand, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the watch meets it; whoever asks is told each time."""
    monkeypatch.setattr(module, "_MAY_PASS", 0.0)

    async def scenario() -> None:
        reloader = _reloader(stand)
        build(_wrong("blue"))
        for _ in range(3):
            await reloader._looked(Look.SETTLED)
            await reloader._looked(Look.SAME)
        assert stand.done == ["failed"]
        build(_wrong("green"))
        await reloader._looked(Look.SETTLED)
        assert stand.done == ["failed"] * 2
        await reloader.reload()
        await reloader.reload()
        assert stand.done == ["failed"] * 4
        await reloader._looked(Look.SETTLED)
        assert stand.done == ["failed"] * 4
        build(_generation)
        await reloader._looked(Look.SETTLED)
        build(_wrong("green"))
        await reloader._looked(Look.SETTLED)

    asyncio.run(scenario())
    assert stand.done[4:] == ["prepare", "adopt 2", "commit", "stop", "ok", "failed"]


def test_a_look_during_a_reload_begins_no_other(stand: _Stand, slow: _Slow) -> None:
    """That one reads what has changed."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await slow.wait_begun()
        await reloader._looked(Look.SETTLED)
        slow.go.set()
        await reloading

    asyncio.run(scenario())
    assert [what for what in stand.done if what.startswith("adopt")] == ["adopt 2"]


def test_a_failure_is_not_told_while_the_files_move(
    stand: _Stand, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repair has been seen, and is read with the next look, however long it has lasted."""
    monkeypatch.setattr(module, "_MAY_PASS", 0.0)
    build(_wrong("blue"))

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloader._untold = -1e9, Reload(False, (WRONG,))
        await reloader._looked(Look.MOVING)
        assert stand.done == []
        build(_generation)
        await reloader._looked(Look.SETTLED)

    asyncio.run(scenario())
    assert stand.done == ["prepare", "adopt 2", "commit", "stop", "ok"]


FAULTS: dict[str, tuple[str, Exception]] = {
    "an address": ("prepare", ConfigError([WRONG])),
    "what is open": ("commit", OSError("too many open files")),
    "our own": ("adopt 2", RuntimeError("ours")),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("asked", [True, False])
def test_what_fails_outside_the_files_is_tried_again_by_itself_and_told_once(
    asked: bool,
    fault: str,
    stand: _Stand,
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No file will change for it: the port of another program becomes free, say."""
    monkeypatch.setattr(module, "_AGAIN", 0.0)
    monkeypatch.setattr(module, "_MAY_PASS", 0.0)
    step, error = FAULTS[fault]
    stand.fails[step] = error

    async def scenario() -> None:
        reloader = _reloader(stand)
        if asked:
            await reloader.reload()
        else:
            await reloader._looked(Look.SETTLED)
        for _ in range(5):
            await reloader._looked(Look.SAME)
        await reloader._looked(Look.MOVING)
        assert stand.done.count(step) == 6
        assert stand.done.count("failed") == 1
        assert len([record for record in caplog.records if record.exc_info]) == (fault != "an address")
        stand.fails.clear()
        await reloader._looked(Look.SAME)
        assert stand.generation.number == 2
        del stand.done[:]
        await reloader._looked(Look.SAME)
        assert stand.done == []

    asyncio.run(scenario())


def test_what_is_wrong_in_the_files_is_not_read_again_and_again(
    stand: _Stand, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only another file can mend it, and keys take time to open."""
    monkeypatch.setattr(module, "_AGAIN", 0.0)
    build(_wrong("blue"))

    async def scenario() -> None:
        reloader = _reloader(stand)
        await reloader.reload()
        build(_generation)
        await reloader._looked(Look.SAME)

    asyncio.run(scenario())
    assert stand.done == ["failed"]


def test_without_a_thread_the_files_are_watched_on(
    stand: _Stand, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was read: what is known of them stays, and it is tried again."""
    monkeypatch.setattr(module, "_AGAIN", 0.0)
    stand.generation.files[PATH] = Signature(None, 1, 2)

    async def no_thread(*_: object) -> Any:
        raise NoThread

    async def scenario() -> None:
        reloader = _reloader(stand)
        with monkeypatch.context() as patch:
            patch.setattr(module, "in_thread", no_thread)
            found = await reloader.reload()
        assert [problem.wrong for problem in found.problems] == ["no further thread can be had"]
        assert found.fault is None
        assert reloader._watched.paths == (PATH,)
        await reloader._looked(Look.SAME)

    asyncio.run(scenario())
    assert stand.generation.number == 2
