"""The flow of a run: series by series, round by round, each contender in turn under the same load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import load as calls
from bench import processes
from bench.contenders import Crashed, Running, running, scraped
from bench.ground import certificates, upstream
from bench.load import BadLoad, Seen
from bench.processes import Cores, pinned
from bench.proxies import NotToBeHad
from bench.report import Report
from bench.scenarios import MIB, Contender, Load, Series
from support.certs import Pki, private_folder
from support.peers import Peer

_CALIBRATED = "sidecert"
"""Whose rate the fixed rate is a half of."""


@dataclass(frozen=True)
class Length:
    """How long to measure: rounds, seconds of load in each, and starts for the time they take only."""

    rounds: int
    seconds: int
    starts: int


def measure(folder: Path, series: Sequence[Series], length: Length, report: Report) -> None:
    """Adds to `report` what all of `series` show."""
    cores = Cores.of_this_machine()
    # The harness, the callers and the upstream share one core: what is started inherits it.
    with pinned(cores.load):
        for number, each in enumerate(series):
            _say(f"series {each.name}, {number + 1} of {len(series)}")
            place = private_folder(folder / each.name)
            pki = certificates(place / "pki", each.ground)
            with ExitStack() as stack:
                peer = stack.enter_context(upstream(private_folder(place / "upstream"), pki, each.ground))
                if number == 0:
                    _starts(place, each, pki, peer, cores, length.starts, report)
                served = _start_all(stack, place, each, pki, peer, cores, report)
                _Run(place, each, served, cores, length, report).all()


def _starts(
    folder: Path, series: Series, pki: Pki, peer: Peer, cores: Cores, count: int, report: Report
) -> None:
    """Starts for the time that they take only."""
    for _ in range(count):
        for contender in series.contenders:
            try:
                with running(folder, contender, pki, peer, cores) as ready:
                    _note_start(report, contender, ready)
            except (NotToBeHad, Crashed):
                pass  # it is told where it is to serve


def _start_all(
    stack: ExitStack, folder: Path, series: Series, pki: Pki, peer: Peer, cores: Cores, report: Report
) -> dict[Contender, Running]:
    served: dict[Contender, Running] = {}
    for contender in series.contenders:
        try:
            ready = stack.enter_context(running(folder, contender, pki, peer, cores))
        except NotToBeHad as exc:
            report.leave_out(contender.proxy, str(exc))
            continue
        except Crashed as exc:
            report.fail(series.name, contender, str(exc))
            continue
        served[contender] = ready
        if not series.ground.round_trip_ms:
            _note_start(report, contender, ready)
    return served


def _note_start(report: Report, contender: Contender, ready: Running) -> None:
    report.add_alone(
        contender, first_answer=ready.first_answer * 1e3, idle=processes.resident(ready.pid) / MIB
    )
    if ready.ready is not None:
        report.add_alone(contender, ready=ready.ready * 1e3)


@dataclass
class _Run:
    """All loads of one series on the contenders that serve."""

    folder: Path
    series: Series
    served: dict[Contender, Running]
    cores: Cores
    length: Length
    report: Report
    rates: dict[str, float] = field(default_factory=dict)
    out: set[tuple[str, Contender]] = field(default_factory=set)  # who has failed in which scenario

    def all(self) -> None:
        for load in self.series.loads:
            if load.fixed:
                self._calibrate(load)
            for contender in self.served:
                self._try(load, contender, warming_up=True)
        for number in range(self.length.rounds):
            _say(f"{self.series.name}: round {number + 1} of {self.length.rounds}")
            for load in self.series.loads:
                for contender in self.served:
                    self._try(load, contender)
        for contender, ready in self.served.items():
            if self.report.value_alone(contender.label, "after") is None:
                self.report.add_alone(contender, after=processes.resident(ready.pid) / MIB)

    def _calibrate(self, load: Load) -> None:
        """Half of what sidecert sustains, or whoever is there in its place."""
        order = sorted(self.served, key=lambda each: each.proxy != _CALIBRATED)
        freely = replace(load, fixed=False)
        calls.run(self.folder, self.served[order[0]].port, freely, 1)
        seen = calls.run(self.folder, self.served[order[0]].port, freely, self.length.seconds)
        self.rates[load.name] = seen.rate / 2

    def _try(self, load: Load, contender: Contender, *, warming_up: bool = False) -> None:
        scenario = self.series.scenario(load)
        if (scenario, contender) in self.out:
            return
        try:
            if warming_up:
                self._warm_up(load, contender)
            else:
                self._measure(load, contender)
        except (BadLoad, Crashed, OSError, subprocess.SubprocessError) as exc:
            _say(f"{scenario}: {contender.label}: {exc}")
            self.report.fail(scenario, contender, str(exc))
            self.out.add((scenario, contender))

    def _warm_up(self, load: Load, contender: Contender) -> None:
        """Unmeasured, but for memory: what the load makes a process take, it takes the first time."""
        ready = self.served[contender]
        before = processes.resident(ready.pid)
        processes.forget_peak(ready.pid)
        self._calls(load, contender, 1)
        highest = processes.peak(ready.pid)
        self.report.add(self.series, load, contender, peak=highest / MIB)
        if load.size:
            self.report.add(self.series, load, contender, growth=max(0, highest - before) / MIB)

    def _measure(self, load: Load, contender: Contender) -> None:
        ready, cores = self.served[contender], self.cores
        whole, busy = processes.core_seconds(cores.proxy), processes.core_seconds(cores.load)
        before = processes.cpu_seconds(ready.pid)
        seen = self._calls(load, contender, self.length.seconds)
        used = processes.cpu_seconds(ready.pid) - before
        whole, busy = processes.core_seconds(cores.proxy) - whole, processes.core_seconds(cores.load) - busy
        ready.check()
        figures = {
            "cpu": used / seen.requests * 1e6,
            "rate": seen.rate,
            "p50": seen.p50 * 1e3,
            "p99": seen.p99 * 1e3,
            "p999": seen.p999 * 1e3,
            "busy": used / seen.duration * 100,
            "load_busy": min(100.0, busy / seen.duration * 100),
        }
        if load.size:
            figures["throughput"] = seen.rate * load.size / MIB
        self.report.add(self.series, load, contender, **figures)
        self.report.disturbances.append(max(0.0, (whole - used) / seen.duration * 100))

    def _calls(self, load: Load, contender: Contender, seconds: int) -> Seen:
        ready = self.served[contender]
        with scraped(ready) if contender.variant.scraped else nullcontext():
            return calls.run(self.folder, ready.port, load, seconds, self.rates.get(load.name))


def _say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr)
