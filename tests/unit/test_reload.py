"""The order in which a reload does things, and what it does when one of them fails."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
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

    async def commit(self, change: str) -> None:
        assert change == "the change"
        self._do("commit")


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


def _reload(stand: _Stand) -> Reload:
    return asyncio.run(_reloader(stand).reload())


def test_addresses_are_bound_before_the_routes_change_and_served_after(stand: _Stand, build: Any) -> None:
    """What may fail comes first; and nobody is served at a new address by the old routes."""
    assert _reload(stand) == Reload(True, ())
    assert stand.done == ["prepare", "adopt 2", "commit", "ok"]


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


def test_reloads_wait_for_each_other(stand: _Stand, build: Any) -> None:
    """Each starts from what the one before has put in force."""

    async def scenario() -> None:
        reloader = _reloader(stand)
        await asyncio.gather(*(reloader.reload() for _ in range(3)))

    asyncio.run(scenario())
    assert [what for what in stand.done if what.startswith("adopt")] == ["adopt 2", "adopt 3", "adopt 4"]


def test_a_reload_that_ends_during_the_drain_opens_nothing(stand: _Stand, build: Any) -> None:
    """The listeners are closed by then, and would be opened again."""
    begun, go = threading.Event(), threading.Event()

    def wait(number: int) -> Generation:
        begun.set()
        assert go.wait(10)
        return _generation(number)

    build(wait)

    async def scenario() -> Reload:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await asyncio.to_thread(begun.wait, 10)
        closing = asyncio.create_task(reloader.close())
        await asyncio.sleep(0)
        go.set()
        await closing
        return await reloading

    result = asyncio.run(scenario())
    assert not result.ok
    assert stand.done == ["failed"]


def test_listeners_that_fail_after_all_bring_the_old_routes_back(stand: _Stand, build: Any) -> None:
    """No half of a generation stays in force, and what was bound is given back."""
    stand.fails["commit"] = OSError("no room")
    assert not _reload(stand).ok
    assert stand.done == ["prepare", "adopt 2", "commit", "adopt 1", "discard", "failed"]
    assert stand.generation.number == 1


def test_a_load_that_hangs_does_not_hold_up_the_end(stand: _Stand, build: Any) -> None:
    """Its files may be on a file system that is gone."""
    begun, go = threading.Event(), threading.Event()

    def hang(number: int) -> Generation:
        begun.set()
        go.wait(20)
        return _generation(number)

    build(hang)

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await asyncio.to_thread(begun.wait, 10)
        async with asyncio.timeout(5):
            await reloader.close()
        assert not reloading.done()
        go.set()
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
        await reloader._looked(True)
        await reloader._looked(False)
        assert stand.done == []
        build(_generation)
        await reloader._looked(True)
        await reloader._looked(False)

    asyncio.run(scenario())
    assert stand.done == ["prepare", "adopt 2", "commit", "ok"]
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
            await reloader._looked(True)
            await reloader._looked(False)
        assert stand.done == ["failed"]
        build(_wrong("green"))
        await reloader._looked(True)
        assert stand.done == ["failed"] * 2
        await reloader.reload()
        await reloader.reload()
        assert stand.done == ["failed"] * 4
        await reloader._looked(True)
        assert stand.done == ["failed"] * 4
        build(_generation)
        await reloader._looked(True)
        build(_wrong("green"))
        await reloader._looked(True)

    asyncio.run(scenario())
    assert stand.done[4:] == ["prepare", "adopt 2", "commit", "ok", "failed"]


def test_a_look_during_a_reload_begins_no_other(stand: _Stand, build: Any) -> None:
    """That one reads what has changed."""
    begun, go = threading.Event(), threading.Event()

    def wait(number: int) -> Generation:
        begun.set()
        assert go.wait(10)
        return _generation(number)

    build(wait)

    async def scenario() -> None:
        reloader = _reloader(stand)
        reloading = asyncio.create_task(reloader.reload())
        await asyncio.to_thread(begun.wait, 10)
        await reloader._looked(True)
        go.set()
        await reloading

    asyncio.run(scenario())
    assert [what for what in stand.done if what.startswith("adopt")] == ["adopt 2"]
