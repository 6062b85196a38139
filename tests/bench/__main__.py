"""`make bench`: every proxy under every load in turn, round after round, then one table."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from bench import load
from bench.load import HOST, SCENARIOS, BadLoad, NoWrk, Scenario
from bench.processes import Cores, cpu_seconds, pinned, resident
from bench.proxies import PROXIES, UPSTREAM_SETTINGS, Place, Proxy, check
from bench.report import Report, machine
from support.certs import Pki
from support.clients import call
from support.peers import nginx as upstream_nginx

_STARTS = 3
_MIB = 1024 * 1024


def measure(folder: Path, names: Sequence[str], rounds: int, seconds: int, starts: int) -> Report:
    """Everything: starts one after the other, then all proxies together, each loaded in turn."""
    cores = Cores.of_this_machine()
    settings = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine() + (", ONE CORE FOR ALL" if cores.shared else ""),
        "rounds": rounds,
        "seconds": seconds,
        "mitmproxy": version("mitmproxy"),
        "python": sys.version.split()[0],
    }
    report = Report(names, [scenario.name for scenario in SCENARIOS], settings)
    pki = Pki.make(folder / "pki")
    with ExitStack() as stack:
        # The harness, wrk and the upstream share one core: what is started inherits it.
        stack.enter_context(pinned(cores.load))
        upstream = stack.enter_context(
            upstream_nginx(folder / "upstream", pki.upstream, pki.trust, tls="1.3", extra=UPSTREAM_SETTINGS)
        )
        place = Place(folder, pki, upstream, cores)
        for _ in range(starts - 1):
            for name in names:
                with PROXIES[name](place) as proxy:
                    _note_start(report, name, proxy)
        running = {name: stack.enter_context(PROXIES[name](place)) for name in names}
        for name, proxy in running.items():
            _note_start(report, name, proxy)
        _say("warming up")
        for scenario in SCENARIOS:
            for proxy in running.values():
                load.run(folder, proxy.address, scenario, 1)
        for number in range(rounds):
            _say(f"round {number + 1} of {rounds}")
            for scenario in SCENARIOS:
                for name, proxy in running.items():
                    _load(report, folder, name, proxy, scenario, seconds)
        for name, proxy in running.items():
            report.add_alone(name, after=resident(proxy.pid) / _MIB)
    return report


def _note_start(report: Report, name: str, proxy: Proxy) -> None:
    _say(f"started {name}")
    report.add_alone(name, first_answer=proxy.first_answer * 1e3, idle=resident(proxy.pid) / _MIB)
    if proxy.ready is not None:
        report.add_alone(name, ready=proxy.ready * 1e3)


def _load(report: Report, folder: Path, name: str, proxy: Proxy, scenario: Scenario, seconds: int) -> None:
    before = cpu_seconds(proxy.pid)
    seen = load.run(folder, proxy.address, scenario, seconds)
    used = cpu_seconds(proxy.pid) - before
    answer = call(proxy.address, "GET", "/", headers={"Host": HOST})
    check(proxy.address, answer.status, answer.body)
    report.add_loaded(
        name,
        scenario.name,
        cpu=used / seen.requests * 1e6,
        rate=seen.requests / seen.duration,
        p50=seen.p50 * 1e3,
        p99=seen.p99 * 1e3,
    )


def _say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=4, help="of load, per proxy, scenario and round")
    parser.add_argument("--starts", type=int, default=_STARTS, help="of each proxy, for the time they take")
    parser.add_argument("--only", default=",".join(PROXIES), help="proxies, the one to compare with first")
    parser.add_argument("--json", action="store_true", help="print the table as JSON, with every round")
    asked = parser.parse_args(arguments)
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in PROXIES]:
        parser.error(f"no such proxy: {', '.join(unknown)}; there are {', '.join(PROXIES)}")
    os.environ.pop("PYTHONPATH", None)  # ours, no concern of the proxies
    printed = io.StringIO()  # what the peers print at their end is of interest only where something failed
    try:
        load.program()
        with tempfile.TemporaryDirectory(prefix="sidecert-bench-") as folder, redirect_stdout(printed):
            report = measure(Path(folder), names, asked.rounds, asked.seconds, asked.starts)
    except (NoWrk, pytest.skip.Exception) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 2
    except BaseException as exc:
        print(printed.getvalue()[-5000:], file=sys.stderr)
        if isinstance(exc, BadLoad):
            print(f"bench: calls failed, so there are no figures: {exc}", file=sys.stderr)
            return 1
        raise
    print(json.dumps(report.as_json(), indent=2) if asked.json else report.as_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
