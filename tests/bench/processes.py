"""What the kernel tells of a proxy's processes, and on which core things run. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cores:
    """The core of the proxies, and the one that load and upstream share; the same where there is only one."""

    proxy: int
    load: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(proxy=cores[-1], load=cores[0])

    @property
    def shared(self) -> bool:
        return self.proxy == self.load


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started within runs on that core for good, this thread until the end of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and its descendants have used so far, ended children included.

    The kernel counts it in ticks of 10 ms here, so a figure wants seconds of load.
    """
    used = 0
    for each in _tree(pid):
        used += sum(int(field) for field in _stat(each)[11:15])  # utime, stime, and those of ended children
    return used / _TICKS


def resident(pid: int) -> int:
    """Resident bytes of a process and its descendants; what they share is counted for each."""
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in _tree(pid)) * _PAGE


def _tree(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except OSError:
                pass  # it ended in the meantime
    found = [pid]
    for each in found:
        found += parents.get(each, ())
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold blanks: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
