"""What the kernel tells of a process and its descendants, and on which core things run. Linux only."""

from __future__ import annotations

import os
import time
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

    To the nanosecond: the kernel has a clock for each process, which adds up its threads, ended ones too.
    Only ended children are counted in ticks of 10 ms.
    """
    used = 0.0
    for each in _tree(pid):
        used += time.clock_gettime((~each << 3) | 2)  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)
        used += sum(int(field) for field in _stat(each)[13:15]) / _TICKS
    return used


def core_seconds(core: int) -> float:
    """How long that core has been busy since the machine's start, whoever kept it so."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, interrupts, soft, stolen, *_ = map(int, fields)
            return (user + nice + system + interrupts + soft + stolen) / _TICKS
    raise RuntimeError(f"/proc/stat has no core {core}")


def resident(pid: int) -> int:
    """Resident bytes of a process and its descendants; what they share is counted for each."""
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in _tree(pid)) * _PAGE


def forget_peak(pid: int) -> None:
    """Lets `peak` begin anew; where that is not allowed it goes on from the process's start."""
    for each in _tree(pid):
        try:
            Path(f"/proc/{each}/clear_refs").write_text("5")
        except OSError:
            pass


def peak(pid: int) -> int:
    """The most resident bytes since `forget_peak`."""
    found = 0
    for each in _tree(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                found += int(line.split()[1]) * 1024
    return found


def machine() -> str:
    """What kind of machine this is, in a few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else os.uname().machine}, Linux {os.uname().release}"


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
