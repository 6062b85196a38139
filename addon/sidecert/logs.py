"""The log: one JSON object a line on stderr, or short lines for people where stderr is a terminal.

Whoever logs gives a sentence and, through `extra`, the facts in it as fields. The sentence stands on its
own: under mitmdump it is all that is shown, since there mitmproxy's own handlers print it. Control
characters come out escaped, so that no caller can forge a line. Only our own mistakes carry a traceback.

Calls matter more than lines: a full disk, a reader that has gone or one that does not read costs lines, which
are counted and told as soon as there is room, and never holds up the event loop.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

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
_ALWAYS_FITS = select.PIPE_BUF
"""Bytes for which there is room wherever poll says that there is any (pipe(7))."""
_FAREWELL = 1.0
"""Seconds that the end of the process waits for the lines that are left."""


class _Unhurried(logging.Handler):
    """Writes to a file of the system, and leaves the waiting to a thread, which lives only as long as there
    is something to wait for.

    The descriptor is not made non-blocking: whoever shares it would find it so too.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        stream.flush()
        self._stream = stream  # whose descriptor lives as long as it does
        self._file = stream.fileno()
        self._room = select.poll()
        self._room.register(self._file, select.POLLOUT)
        self._changed = threading.Condition()  # not the handler's lock, which `shutdown` holds at the end
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
            with self._changed:
                if self._thread is None:
                    self._write_or_wait(line)
                else:
                    self._wait(line)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for the lines that are left, but not for long: the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, _FAREWELL)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _write_or_wait(self, line: bytes) -> None:
        told = self._lost
        rest = self._told_loss() + line
        try:
            while rest and self._room.poll(0) and (written := self._write(rest)):
                rest = rest[written:]
        except OSError:
            self._lost += 1  # and what was to be told of those before remains to be told
            return
        self._lost -= told
        if rest:
            self._wait(rest)
            self._thread = threading.Thread(target=self._write_waiting, name="log", daemon=True)
            self._thread.start()

    def _wait(self, line: bytes) -> None:
        if self._waiting and self._size + len(line) > _MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(line)
        self._size += len(line)

    def _write_waiting(self) -> None:
        while (line := self._next_waiting()) is not None:
            try:
                while line:
                    self._room.poll()
                    line = line[self._write(line) :]
            except OSError:  # the reader has gone; the next line finds out whether there is another
                with self._changed:
                    self._lost += 1 + len(self._waiting)
                    self._waiting.clear()
                    self._size = 0

    def _next_waiting(self) -> bytes | None:
        """The line that is to be written next; None where there is none, and the thread ends."""
        with self._changed:
            if not self._waiting:
                self._thread = None
                self._changed.notify_all()
                return None
            line = self._waiting.popleft()
            self._size -= len(line)
            if not self._waiting:
                line += self._told_loss()
                self._lost = 0
            return line

    def _write(self, data: bytes) -> int:
        """How much was written; nothing where somebody made the file non-blocking and took the room."""
        try:
            return os.write(self._file, data[:_ALWAYS_FITS])
        except BlockingIOError:
            if threading.current_thread() is self._thread:
                time.sleep(0.01)
            return 0

    def _told_loss(self) -> bytes:
        if not self._lost:
            return b""
        text, fields = "%s lines of the log could not be written", {"event": "log_lost", "lines": self._lost}
        record = _LOG.makeRecord(_LOG.name, logging.WARNING, "", 0, text, (self._lost,), None, None, fields)
        return self._line(record)


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
