"""The log's two forms, and what may not come through."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from sidecert import logs


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Gives the process its loggers back."""
    before = {name: logging.getLogger(name) for name in (None, "sidecert")}
    kept = {name: (list(each.handlers), each.level, each.propagate) for name, each in before.items()}
    raise_exceptions = logging.raiseExceptions
    yield
    for name, (handlers, level, propagate) in kept.items():
        before[name].handlers[:], before[name].propagate = handlers, propagate
        before[name].setLevel(level)
    logging.raiseExceptions = raise_exceptions


def _record(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_line_is_one_json_object_with_the_fields_of_extra() -> None:
    """Who collects logs reads fields, not sentences."""
    stream = io.StringIO()
    logs.setup("info", stream)
    logging.getLogger("sidecert.some").info("%s routes", 2, extra={"event": "loaded", "routes": 2})
    record = _record(stream)
    time = record.pop("time")
    assert isinstance(time, str)
    assert time.endswith("Z")
    assert record == {
        "level": "info",
        "logger": "sidecert.some",
        "message": "2 routes",
        "event": "loaded",
        "routes": 2,
    }


@pytest.mark.parametrize("stream", [io.StringIO(), _Terminal()], ids=["json", "terminal"])
@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2J", "\x7f", "\x9b31m", "\u2028", "\u202e"])
def test_control_characters_come_out_escaped(stream: io.StringIO, evil: str) -> None:
    """Nobody who gets a string into the log can forge a line or drive the reader's terminal."""
    logs.setup("info", stream)
    begin = len(stream.getvalue())
    logging.getLogger("sidecert.access").info("before%safter", evil, extra={"path": f"/{evil}"})
    written = stream.getvalue()[begin:]
    assert written.endswith("\n")
    assert len(written.splitlines()) == 1
    assert evil.strip("\n") == "" or evil not in written.removesuffix("\n")


def test_a_terminal_gets_short_lines() -> None:
    """People read the sentence, not JSON."""
    stream = _Terminal()
    logs.setup("info", stream)
    logging.getLogger("sidecert").info("listening on %s", "127.0.0.1:1", extra={"event": "listening"})
    assert stream.getvalue().endswith(" info  listening on 127.0.0.1:1\n")


def test_an_access_line_on_a_terminal_shows_its_facts() -> None:
    """An access line has its facts in fields only."""
    stream = _Terminal()
    logs.setup("info", stream)
    logging.getLogger("sidecert.access").info("GET", extra={"route": "orders", "status": 200})
    assert stream.getvalue().endswith(" info  GET route=orders status=200\n")


def test_a_traceback_is_a_field() -> None:
    """A bug of ours stays one line for a collector."""
    stream = io.StringIO()
    logs.setup("info", stream)
    try:
        raise RuntimeError("ours")
    except RuntimeError:
        logging.getLogger("sidecert").exception("failed")
    record = _record(stream)
    assert "RuntimeError: ours" in str(record["traceback"])
    assert record["level"] == "error"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_holds_for_our_own_lines(level: str, seen: list[str]) -> None:
    """`--log-level` decides what is written."""
    stream = io.StringIO()
    logs.setup(level, stream)
    for each in logs.LEVELS:
        logging.getLogger("sidecert.x").log(logging.getLevelNamesMapping()[each.upper()], "-")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == seen


def test_others_are_heard_from_warning_on() -> None:
    """mitmproxy's chatter stays out, even where ours is wanted."""
    stream = io.StringIO()
    logs.setup("debug", stream)
    logging.getLogger("mitmproxy.proxy").info("noise")
    logging.getLogger("mitmproxy.proxy").warning("matters")
    assert _record(stream)["message"] == "matters"


def test_a_log_whose_reader_has_gone_disturbs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """`sidecert run 2>&1 | head` must go on serving."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    logs.setup("info", Gone())
    logging.getLogger("sidecert").info("unheard")
    assert capsys.readouterr().err == ""


class Pipe:
    """A log that goes to a pipe."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._stream = open(write, "w")  # noqa: SIM115
        logs.setup("info", self._stream)
        (self._handler,) = logging.getLogger("sidecert").handlers

    def say(self, words: str) -> None:
        logging.getLogger("sidecert").info(words)

    def fill(self) -> int:
        """Lines until more than a pipe takes were logged."""
        for number in range(40):
            self.say(f"{number} " + "x" * 4000)
        return 40

    def text(self) -> bytes:
        """What comes until nothing comes any more, and the log has nothing left."""
        came = b""
        deadline = time.monotonic() + 10
        while True:
            try:
                came += os.read(self._read, 1 << 20)
            except BlockingIOError:
                if (
                    not getattr(self._handler, "_has_thread", False)
                    and not select.select([self._read], [], [], 0)[0]
                ):
                    return came
                assert time.monotonic() < deadline
                time.sleep(0.005)

    def close(self) -> None:
        self._stream.close()
        os.close(self._read)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.text()
    made.close()


def messages(text: bytes) -> list[str]:
    return [json.loads(line)["message"] for line in text.splitlines()]


def test_log_goes_on_after_a_moment_without_threads(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines stay until a thread can be had, or there is room without one."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        count = pipe.fill()
    first = pipe.text()
    pipe.say("last")
    whole = messages(first + pipe.text())
    assert len(whole) == count + 1
    assert [each.split()[0] for each in whole] == [*map(str, range(count)), "last"]


def test_fault_in_the_thread_does_not_silence_the_log(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and the next line begins another."""
    failed = threading.Event()

    def fail(self: logs._Unhurried, *, wait: bool) -> None:
        if wait:
            failed.set()
            raise ZeroDivisionError
        write(self, wait=wait)

    write = logs._Unhurried._write
    with monkeypatch.context() as patch:
        patch.setattr(logs._Unhurried, "_write", fail)
        count = pipe.fill()
        assert failed.wait(10)
    first = pipe.text()
    pipe.say("last")
    assert len(messages(first + pipe.text())) == count + 1


class Disk:
    """Takes so many bytes more, and says then that it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 20
        self._write = os.write
        monkeypatch.setattr(logs.os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        taken = self._write(file, data[: self.room])
        self.room -= taken
        return taken


def test_half_a_line_is_not_glued_to_the_next(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes a part of a line; what comes after it, and the number of those lost, are whole."""
    disk = Disk(monkeypatch)
    pipe.say("whole")
    disk.room = 10
    pipe.say("cut")
    pipe.say("lost")
    disk.room = 1  # the end of the half line, and nothing of the next
    pipe.say("lost too")
    disk.room = 1 << 20
    pipe.say("back")
    lines = pipe.text().splitlines()
    assert len(lines[1]) == 10
    assert messages(b"\n".join([lines[0], *lines[2:]])) == [
        "whole",
        "back",
        "3 lines of the log could not be written",
    ]


def test_number_of_lost_lines_is_kept_until_it_is_written(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that tells it may be lost as well."""
    disk = Disk(monkeypatch)
    disk.room = 0
    pipe.say("lost")
    pipe.say("lost")
    disk.room = len(
        '{"time": "2026-11-23T00:00:00.000Z", "level": "info", "logger": "sidecert", "message": ""}\n'
    )
    pipe.say("")  # and no byte of what is to be told
    assert messages(pipe.text()) == [""]
    disk.room = 1 << 20
    pipe.say("back")
    assert messages(pipe.text()) == ["back", "2 lines of the log could not be written"]
