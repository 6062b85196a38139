"""The log: one JSON object a line on stderr, or short lines for people where stderr is a terminal.

Whoever logs gives a sentence and, through `extra`, the facts in it as fields. The sentence stands on its
own: under mitmdump it is all that is shown, since there mitmproxy's own handlers print it. Control
characters come out escaped, so that no caller can forge a line. Only our own mistakes carry a traceback.

Calls matter more than lines: a full disk, or a pipe whose reader has gone or does not read, costs lines,
which are counted and told as soon as there is room, and holds up no call. A file on a network file system
that hangs, or a terminal that takes half a line, can: the system has no write to a file that does not wait.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from sidecert.threads import NoThread, start_thread
from sidecert.words import printable

_LOG = logging.getLogger("sidecert.logs")

LEVELS = ("debug", "info", "warning", "error")

_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


def setup(level: str, stream: TextIO | None = None) -> None:
    """Send the log to `stream` (stderr). `level` is one of LEVELS and holds for sidecert's own lines;
    from anybody else only warnings and errors get through."""
    # Where stderr is closed, its number must not fall to a connection.
    handler = _handler(stream or sys.stderr or open(os.devnull, "w"))  # noqa: SIM115
    ours = logging.getLogger("sidecert")
    ours.setLevel(level.upper())
    ours.propagate = False  # mitmproxy turns each record of the root logger into an event of its own
    root = logging.getLogger()
    root.setLevel(max(logging.WARNING, ours.level))
    for logger in (ours, root):
        logger.handlers[:] = [handler]
    # A log that cannot be written any more (the reader has gone) must not end up in the log.
    logging.raiseExceptions = False


def _handler(stream: TextIO) -> logging.Handler:
    try:
        stream.fileno()
    except OSError:  # it is none of the system's, and nobody has to read it
        handler: logging.Handler = logging.StreamHandler(stream)
    else:
        handler = _Unhurried(stream)
    handler.setFormatter(_Lines() if stream.isatty() else _Json())
    return handler


_MOST_WAITING = 1024 * 1024
"""Bytes of lines that wait for a reader; what comes beyond that is lost."""
_AT_ONCE = select.PIPE_BUF
"""Bytes for which a pipe has room where poll says that it has any (pipe(7)), so that the write returns."""
_FAREWELL = 1.0
"""Seconds that the end of the process waits for the lines that are left."""


@dataclass(slots=True)
class _Line:
    rest: bytes
    """What is still to be written."""
    size: int
    lines: int = 1
    """How many are lost with it: one that tells of lost ones stands for all of them."""


class _Unhurried(logging.Handler):
    """Writes to a file of the system, and leaves the waiting for room to a thread, which lives only as long
    as there is something to wait for.

    Lines stand in a queue. One at a time writes them: whoever logs, or the thread while there is one. The
    descriptor is not made non-blocking: whoever shares it would find it so too.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        stream.flush()
        self._stream = stream  # whose descriptor lives as long as it does
        self._file = stream.fileno()
        self._room = select.poll()
        self._room.register(self._file, select.POLLOUT)
        self._changed = threading.Condition()  # not the handler's lock, which `shutdown` holds at the end
        self._queue: deque[_Line] = deque()
        self._size = 0
        self._lost = 0
        self._torn = False
        """Whether the file ends within a line."""
        self._has_thread = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._format(record)
            with self._changed:
                self._add(line)
                if self._has_thread:
                    return
            self._write(wait=False)
            with self._changed:
                if self._queue:
                    start_thread("log", self._wait_and_write)
                    self._has_thread = True
        except NoThread:
            pass  # the line stays in the queue, and the next one tries
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for the lines that are left, but not for long: the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._has_thread, _FAREWELL)

    def _format(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _add(self, line: bytes) -> None:
        if self._queue and self._size + len(line) > _MOST_WAITING:
            self._lost += 1
            return
        if self._torn and not self._queue:
            line = b"\n" + line
        self._queue.append(_Line(line, len(line)))
        self._size += len(line)

    def _wait_and_write(self) -> None:
        try:
            self._write(wait=True)
        except Exception:
            self._end_thread()

    def _write(self, *, wait: bool) -> None:
        """Write the queue; without `wait` only what there is room for."""
        while (line := self._next()) is not None:
            try:
                if not self._room.poll(None if wait else 0):
                    return
                written = line.rest[: os.write(self._file, line.rest[:_AT_ONCE])]
            except BlockingIOError:  # somebody made the file non-blocking, and took the room
                if not wait:
                    return
                time.sleep(0.01)
            except (
                OSError
            ):  # the disk is full, or the reader has gone; the next line finds out if it still is
                self._lose_queue()
                return
            else:
                line.rest = line.rest[len(written) :]
                self._torn = not written.endswith(b"\n")

    def _next(self) -> _Line | None:
        """The line to be written; None where all is written, and the thread ends."""
        with self._changed:
            if self._queue and not self._queue[0].rest:
                self._size -= self._queue.popleft().size
            if self._lost and not self._queue:
                notice = self._format(_loss(self._lost))
                self._queue.append(_Line(notice, len(notice), self._lost))
                self._size, self._lost = len(notice), 0
            if self._queue:
                return self._queue[0]
            self._end_thread()
            return None

    def _lose_queue(self) -> None:
        with self._changed:
            self._lost += sum(line.lines for line in self._queue)
            self._queue.clear()
            self._size = 0
            self._end_thread()

    def _end_thread(self) -> None:
        with self._changed:
            self._has_thread = False
            self._changed.notify_all()


def _loss(lines: int) -> logging.LogRecord:
    text, fields = "%s lines of the log could not be written", {"event": "log_lost", "lines": lines}
    return _LOG.makeRecord(_LOG.name, logging.WARNING, "", 0, text, (lines,), None, None, fields)


class _Json(JsonFormatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, the fields of `extra`, and `traceback`."""

    def __init__(self) -> None:
        super().__init__(["time", "levelname", "name", "message"], rename_fields=_NAMES)

    def format(self, record: logging.LogRecord) -> str:
        record.time = _timestamp(record)
        return super().format(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        log_data["level"] = log_data["level"].lower()
        return log_data


_NAMES = {"levelname": "level", "name": "logger", "exc_info": "traceback"}


class _Lines(logging.Formatter):
    """`15:04:05 warning  the message  key=value`, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        if colour := _COLOURS.get(record.levelno):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {level}  {printable(record.getMessage())}"
        if record.name == "sidecert.access":  # a sentence holds its facts; an access line is only facts
            line += "".join(f" {key}={printable(str(value))}" for key, value in _extra(record).items())
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n    {printable(part)}" for part in traceback.splitlines())
        return line


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in RESERVED_ATTRS}


def _timestamp(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
