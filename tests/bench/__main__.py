"""`make bench`: who costs what, in one table. See the package's docstring for how it is put together."""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import goals, plots, tools
from bench.measure import Length, measure
from bench.processes import Cores, machine
from bench.proxies import NEVER_HAD, PROXIES
from bench.report import Report
from bench.scenarios import QUICK, chosen, scenarios

_OPEN_FILES = 20_000  # 500 connections on both sides, and more than one proxy's limit by default


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(f"{name:32} {load.words}" for name, _, load in scenarios()))
        return 0
    proxies = asked.proxies.split(",") if asked.proxies else []
    if unknown := [name for name in proxies if name not in PROXIES]:
        parser.error(f"no such proxy: {', '.join(unknown)}; there are {', '.join(PROXIES)}")
    series = chosen(["*"] if asked.all else asked.only.split(",") if asked.only else QUICK, proxies)
    if not series:
        parser.error(f"no scenario is named {asked.only}; see --list")
    try:
        tools.wrk()
        tools.caller()
        if asked.plot:
            plots.library()
    except tools.NoTool as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 2
    os.environ.pop("PYTHONPATH", None)  # ours, no concern of the proxies
    _raise_open_files()
    report = Report(_settings(asked.rounds, asked.seconds), left_out=dict(NEVER_HAD))
    printed = io.StringIO()  # what the peers print at their end is of interest only where something failed
    try:
        with tempfile.TemporaryDirectory(prefix="sidecert-bench-") as folder, redirect_stdout(printed):
            measure(Path(folder), series, Length(asked.rounds, asked.seconds, asked.starts - 1), report)
    finally:
        if report.failed or sys.exc_info()[0]:
            print(printed.getvalue()[-5000:], file=sys.stderr)
    if asked.json:
        print(json.dumps({**report.as_json(), "goals": goals.told(report)}, indent=2))
    else:
        print(f"{report.as_text()}\n\n{goals.as_text(report)}")
    if asked.plot:
        plots.draw(report, asked.plot)
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every scenario; takes up to 40 minutes")
    which.add_argument("--only", metavar="NAMES", help="these scenarios, with commas; * stands for anything")
    which.add_argument("--list", action="store_true", help="the names of all scenarios")
    parser.add_argument("--proxies", metavar="NAMES", help=f"only these, of {', '.join(PROXIES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of load, per proxy, scenario and round")
    parser.add_argument("--starts", type=int, default=3, help="of each proxy, for the time they take")
    parser.add_argument("--json", action="store_true", help="print JSON, with every round")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="also draw plots, as SVG files there")
    return parser


def _settings(rounds: int, seconds: int) -> dict[str, str]:
    cores = Cores.of_this_machine()
    apart = f"the proxy on core {cores.proxy}, load and upstream on core {cores.load}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "cores": "ONE FOR ALL: the load takes from the proxies" if cores.shared else apart,
        "length": f"{rounds} rounds of {seconds} s each, after warming up",
        "versions": f"sidecert {version('sidecert')}, mitmproxy {version('mitmproxy')}, "
        f"Python {sys.version.split()[0]}",
    }


def _raise_open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


if __name__ == "__main__":
    raise SystemExit(main())
