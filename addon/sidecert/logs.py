"""The log: one JSON object a line on stderr, or short lines for people where stderr is a terminal.

Whoever logs gives a sentence and, through `extra`, the facts in it as fields. The sentence stands on its
own: under mitmdump it is all that is shown, since there mitmproxy's own handlers print it. Control
characters come out escaped, so that no caller can forge a line. Only our own mistakes carry a traceback.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from sidecert.words import printable

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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines() if stream.isatty() else _Json())
    return handler


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
