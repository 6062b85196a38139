"""What counts as a change of a file, and when it is told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sidecert.watch as module
from sidecert.threads import NoThread
from sidecert.watch import Look, Signatures, Watched, look, signature, watch
from support.rotation import SecretVolume, move_over


def _write(path: Path) -> None:
    path.write_text("two")  # of the same length


def _move(path: Path) -> None:
    move_over(path, b"two")


def _keep_times(path: Path) -> None:
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written in place": _write,
    "moved over": _move,
    "written and dated back": _keep_times,
    "removed": Path.unlink,
    "other rights": lambda path: path.chmod(0o400),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_way_to_change_a_file_shows(change: str, tmp_path: Path) -> None:
    """Even where size and date are the same as before."""
    path = tmp_path / "file"
    path.write_text("one")
    os.utime(path, ns=(0, 0))
    before = signature(path)
    assert signature(path) == before
    # The kernel's clock moves by a tick of some milliseconds: until then two changes look like one.
    tick = tmp_path / "tick"
    tick.touch()
    while tick.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        tick.touch()
    CHANGES[change](path)
    assert signature(path) != before


def test_a_swap_of_what_a_link_leads_through_shows(tmp_path: Path) -> None:
    """As kubelet does it: the named link itself stays."""
    volume = SecretVolume(tmp_path / "secret", {"tls.key": b"one"})
    path = volume.folder / "tls.key"
    before, link = signature(path), os.lstat(path)
    volume.swap({"tls.key": b"two"})
    assert signature(path) != before
    assert os.lstat(path) == link


def test_what_is_not_there_has_a_signature_too(tmp_path: Path) -> None:
    """Why it cannot be looked at is part of it; nothing is raised for any path."""
    missing = signature(tmp_path / "missing")
    assert missing == signature(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert signature(tmp_path / "file" / "below") != missing
    assert signature(Path("a\0b")).error is not None


def test_a_pipe_does_not_change_when_it_is_read_or_written(tmp_path: Path) -> None:
    """`-c /dev/stdin` must not be read again and again."""
    os.mkfifo(tmp_path / "pipe")
    before = signature(tmp_path / "pipe")
    os.utime(tmp_path / "pipe", ns=(5, 5))
    assert signature(tmp_path / "pipe") == before


def _states(path: Path) -> list[Signatures]:
    """Three that differ."""
    return [{path: module.Signature(None, 1, number)} for number in range(3)]


def test_a_change_counts_once_two_looks_agree() -> None:
    """What still changes is not read yet; what is as it was read is no change, whatever came in between."""
    one, two, three = _states(Path("a"))
    watched = Watched()
    watched.set_known(one)
    same, moving, settled = Look.SAME, Look.MOVING, Look.SETTLED
    said = [watched.compare(found) for found in (one, two, three, two, two)]
    assert said == [same, moving, moving, moving, settled]
    assert [watched.compare(found) for found in (one, two, one, two)] == [same, moving, same, moving]


def test_what_was_read_in_the_meantime_is_no_change() -> None:
    """A reload that somebody asked for has come first: nobody reads the same again."""
    one, two, three = _states(Path("a"))
    watched = Watched()
    watched.set_known(one)
    assert watched.compare(two) is Look.MOVING
    watched.set_known(two)
    assert watched.compare(two) is Look.SAME
    assert watched.compare(three) is Look.MOVING
    watched.set_known({Path("b"): one[Path("a")]})
    assert watched.compare(three) is Look.SAME  # a look at files that are not watched any more
    assert watched.paths == (Path("b"),)


def _at(**states: int) -> Signatures:
    return {Path(name): module.Signature(None, 1, state) for name, state in states.items()}


def test_what_never_rests_is_read_as_it_is_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """After some seconds, and every so often from then on; its path is in the log, once."""
    watched = Watched()
    watched.set_known(_at(log=0, key=0))
    said = []
    for state in range(1, 19):
        found = _at(log=state, key=0)
        said.append(watched.compare(found))
        if said[-1] is Look.SETTLED:
            watched.set_known(found)
    first = [Look.MOVING] * 5 + [Look.SETTLED]
    assert said == first + ([Look.SAME] * 5 + [Look.SETTLED]) * 2
    [told] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "log is being changed all the time" in told.getMessage()


def test_what_never_rests_holds_up_no_other_file() -> None:
    """Another file counts as soon as two looks at it agree, as ever; and what rests again does so too."""
    watched = Watched()
    watched.set_known(_at(log=0, key=0))
    for state in range(1, 7):
        last = watched.compare(_at(log=state, key=0))
    assert last is Look.SETTLED
    watched.set_known(_at(log=6, key=0))
    said = [watched.compare(_at(log=7, key=1)), watched.compare(_at(log=8, key=1))]
    assert said == [Look.MOVING, Look.SETTLED]
    watched.set_known(_at(log=8, key=1))
    said = [watched.compare(_at(log=state, key=1)) for state in (9, 9, 10)]
    assert said == [Look.SAME, Look.SETTLED, Look.MOVING]


def test_a_look_that_hangs_holds_up_nothing_and_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its thread waits for a dead file system; the loop goes on, and no second thread joins it."""
    begun, go = threading.Event(), threading.Event()
    looks = []

    def hang(paths: object) -> Signatures:
        looks.append(paths)
        begun.set()
        go.wait(20)
        return {}

    monkeypatch.setattr(module, "look", hang)
    monkeypatch.setattr(module, "PERIOD", 0.001)
    told: list[Look] = []

    async def tell(look: Look) -> None:
        told.append(look)

    async def scenario() -> None:
        watching = asyncio.create_task(watch(Watched(), tell))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for _ in range(50):  # many a period
            await asyncio.sleep(0.002)
        assert len(looks) == 1
        assert told == []
        go.set()
        while len(told) < 3:
            await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(scenario())


def test_a_fault_of_our_own_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next look comes."""
    monkeypatch.setattr(module, "PERIOD", 0.001)
    told: list[Look] = []

    async def fail(look: Look) -> None:
        told.append(look)
        raise RuntimeError("ours")

    async def scenario() -> None:
        watching = asyncio.create_task(watch(Watched(), fail))
        while len(told) < 3:
            await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(scenario())
    assert sum(record.exc_info is not None for record in caplog.records) >= 2


def test_without_threads_it_is_told_once_until_there_are_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In words, and the looks go on."""
    monkeypatch.setattr(module, "PERIOD", 0.001)
    fails = [True, True, False, True, False]
    told: list[Look] = []

    async def tell(look: Look) -> None:
        told.append(look)

    async def in_thread(name: str, work: Callable[[], Any]) -> Any:
        if fails and fails.pop(0):
            raise NoThread
        return work()

    monkeypatch.setattr(module, "in_thread", in_thread)

    async def scenario() -> None:
        watching = asyncio.create_task(watch(Watched(), tell))
        while len(told) < 3:
            await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(scenario())
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)] * 2
    assert "no further thread can be had; raise that limit" in caplog.text


def test_look_gives_each_path_its_signature(tmp_path: Path) -> None:
    """Those that are not there too."""
    (tmp_path / "a").touch()
    paths = (tmp_path / "a", tmp_path / "b")
    assert look(paths) == {path: signature(path) for path in paths}
