"""The log's two forms, and what may not come through."""

from __future__ import annotations

import io
import json
import logging
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
