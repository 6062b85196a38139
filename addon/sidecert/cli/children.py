"""Processes of ours that never outlive us, each with its log in a file; used by `sidecert demo`."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

READY_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.05
TAIL_LINES = 10


class ChildError(Exception):
    """A process ended by itself, or was not ready in time; the text has the end of its log."""


class Ended(Exception):
    """A signal asked for the end."""


class Child:
    """`sidecert COMMAND ARGUMENTS...` as a process. It writes into files: a full pipe would stop it."""

    def __init__(self, command: str, arguments: tuple[str, ...], folder: Path) -> None:
        self._command = command
        self._out = folder / f"{command}.out"
        self._log = folder / f"{command}.log"
        self._deadline = time.monotonic() + READY_SECONDS
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sidecert", command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                process_group=0,  # Ctrl-C is for us to take: the processes are ended in order, and once
            )

    def first_line(self) -> str:
        """The first line it has printed, or nothing when that has not come yet."""
        line, end, _ = self._out.read_text().partition("\n")
        return line if end else ""

    def check(self) -> None:
        """Raises ChildError when the process has ended."""
        if (status := self._process.poll()) is not None:
            raise ChildError(f"sidecert {self._command} ended with status {status}{self._tail()}")

    def check_in_time(self) -> None:
        """Raises ChildError when it has ended, or has had the time to become ready."""
        self.check()
        if time.monotonic() > self._deadline:
            seconds = f"{READY_SECONDS:.0f} s"
            raise ChildError(f"sidecert {self._command} was not ready after {seconds}{self._tail()}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "".join(f"\n{line}" for line in lines)


class Children:
    """A context with a private folder, in which processes are started; at its end all of it is gone.

    Meanwhile signals only leave a note, to be looked at between the steps (`check_signals`): so none can
    come between the start of a process and the note that it must be ended.
    """

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._before: dict[int, Any] = {}
        self.signal = 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        self.folder = Path(tempfile.mkdtemp(prefix="sidecert-demo-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, command: str, *arguments: str) -> Child:
        child = Child(command, arguments, self.folder)
        self._children.append(child)
        return child

    def check_signals(self) -> None:
        """Raises Ended when a signal came."""
        if self.signal:
            raise Ended

    def wait(self, child: Child) -> None:
        """A short while, for `child` to become ready. Raises Ended or ChildError when it won't."""
        self.check_signals()
        child.check_in_time()
        time.sleep(POLL_SECONDS)

    def watch(self) -> None:
        """Until a signal comes. Raises ChildError when one of the processes ends by itself."""
        while not self.signal:
            for child in self._children:
                child.check()
            time.sleep(POLL_SECONDS)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
