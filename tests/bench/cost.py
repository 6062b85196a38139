"""`make check-cost`: what a call costs in instructions and system calls, compared with the committed figures.

A clock tells little on a machine that does other things too; these counts come out the same each time, to
half a percent. The sidecar runs under valgrind's callgrind, which counts all that the process executes
outside the kernel, and then under strace, which counts what its main thread asks of the kernel. One caller
makes one call after the other, all of them over one pooled connection to nginx.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend

from bench.load import HOST
from bench.proxies import UPSTREAM_NAME
from support.certs import Pki
from support.clients import Address
from support.peers import Peer
from support.peers import nginx as upstream_nginx
from support.sidecar import Sidecar, config, route

_UPSTREAM_SETTINGS = (
    "keepalive_requests 1000000000; keepalive_timeout 3600s; error_log stderr error;"
    ' location /new { add_header X-Request-Id $request_id; return 200 "SUCCESS\\n"; }'
)
"""Of the nginx that is called: it keeps its connections, and gives `/new` no head twice."""

COMMITTED = Path(__file__).with_name("cost.json")
GROWTH = 0.05
"""By how much of the committed figure one may exceed it."""
INSTRUCTIONS = "instructions"
SYSTEM_CALLS = "system calls"

_WARM_UP = 200
_CALLS = 1000
_START = 120.0  # seconds until the sidecar must be ready, which takes longer under these programs


@dataclass(frozen=True)
class Scenario:
    """What the caller does; with `new_each_time` no head is like another."""

    name: str
    keep_alive: bool
    new_each_time: bool = False


SCENARIOS = (
    Scenario("keep-alive", True),
    Scenario("connection per request", False),
    Scenario("keep-alive, every head a new one", True, new_each_time=True),
)


class NotMeasured(Exception):
    """A program is missing, or something went otherwise than it should."""


@dataclass
class Figures:
    """Per call, by scenario; and for people which system calls they were."""

    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    asked: dict[str, Counter[str]] = field(default_factory=dict)


# -- the calls -----------------------------------------------------------------------------------------


class _Caller:
    """Its numbers go on from scenario to scenario, so that no head comes again where none should."""

    def __init__(self, address: Address) -> None:
        assert not isinstance(address, str)
        self._address = address
        self._number = 0

    def make(self, scenario: Scenario, calls: int) -> None:
        """So many calls, each answered before the next."""
        if not scenario.keep_alive:
            for _ in range(calls):
                with socket.create_connection(self._address) as connection:
                    self._call(connection, "/", "Connection: close\r\n")
                    if connection.recv(1):
                        raise NotMeasured("more came than one answer")
            return
        with socket.create_connection(self._address) as connection:
            for _ in range(calls):
                self._number += 1
                self._call(connection, f"/new?number={self._number}" if scenario.new_each_time else "/")

    def _call(self, connection: socket.socket, target: str, more: str = "") -> None:
        head = f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: cost\r\nAccept: */*\r\n{more}\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536)  # nginx writes it at once, so it comes in one piece
        if not answer.startswith(b"HTTP/1.1 200 ") or b"\r\n\r\nSUCCESS" not in answer:
            raise NotMeasured(f"a call was answered with {answer[:200]!r}")


# -- the counts ----------------------------------------------------------------------------------------


@contextmanager
def _sidecar(folder: Path, pki: Pki, upstream: Peer, *under: str) -> Iterator[Sidecar]:
    settings = config(
        [route("bench", upstream, trust=pki.trust, host=HOST, server_name=UPSTREAM_NAME)], pki.credentials
    )
    sidecar = Sidecar(folder, settings, under=[*under, sys.executable])
    try:
        sidecar.wait_ready(_START)
        yield sidecar
    except BaseException:
        print(f"--- sidecert run printed:\n{sidecar.stderr}")
        raise
    finally:
        sidecar.kill()


def _count_instructions(figures: Figures, folder: Path, profiles: Path, pki: Pki, upstream: Peer) -> None:
    out = f"--callgrind-out-file={profiles}/callgrind.out"
    tool = (_program("valgrind"), "--tool=callgrind", "--instr-atstart=no", out)
    with _sidecar(folder, pki, upstream, *tool) as sidecar:

        def control(*command: str) -> None:
            vgdb = [_program("vgdb"), f"--pid={sidecar.process.pid}", *command]
            subprocess.run(vgdb, check=True, capture_output=True, timeout=60)

        caller = _Caller(sidecar.listener)
        control("instrumentation", "on")
        for number, scenario in enumerate(SCENARIOS, start=1):
            caller.make(scenario, _WARM_UP)
            control("zero")
            caller.make(scenario, _CALLS)
            control("dump", scenario.name.replace(" ", "_"))
            written = (profiles / f"callgrind.out.{number}").read_text()
            total = re.search(r"^summary: (\d+)", written, re.MULTILINE)
            if total is None:
                raise NotMeasured("callgrind has told no sum")
            figures.counts.setdefault(scenario.name, {})[INSTRUCTIONS] = round(int(total[1]) / _CALLS)


def _count_system_calls(figures: Figures, folder: Path, pki: Pki, upstream: Peer) -> None:
    trace = folder.with_suffix(".trace")
    with _sidecar(folder, pki, upstream, _program("strace"), "-f", "-o", str(trace)) as sidecar:
        main = trace.read_bytes().split(maxsplit=1)[0].decode()
        try:
            caller = _Caller(sidecar.listener)
            for scenario in SCENARIOS:
                caller.make(scenario, _WARM_UP)
                begin = trace.stat().st_size
                caller.make(scenario, _CALLS)
                lines = trace.read_bytes()[begin:].decode(errors="replace")
                asked = Counter(re.findall(rf"^{main} +(\w+)\(", lines, re.MULTILINE))
                figures.asked[scenario.name] = asked
                figures.counts.setdefault(scenario.name, {})[SYSTEM_CALLS] = round(asked.total() / _CALLS, 2)
        finally:
            os.kill(int(main), signal.SIGKILL)  # strace does not pass a signal on


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotMeasured(f"{name} is not installed (Debian: apt-get install valgrind strace)")
    return path


def measure(folder: Path, profiles: Path) -> Figures:
    """All figures. Raises NotMeasured."""
    figures = Figures()
    pki = Pki.make(folder / "pki")
    # The order of sets and dictionaries' collisions must be the same each time.
    os.environ["PYTHONHASHSEED"] = "0"
    with upstream_nginx(
        folder / "upstream", pki.upstream, pki.trust, tls="1.3", extra=_UPSTREAM_SETTINGS
    ) as upstream:
        _say("counting system calls")
        _count_system_calls(figures, folder / "strace", pki, upstream)
        _say("counting instructions")
        _count_instructions(figures, folder / "callgrind", profiles, pki, upstream)
    return figures


# -- the comparison ------------------------------------------------------------------------------------


def made_with() -> dict[str, str]:
    """What the figures depend on, apart from our own code."""
    return {
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        "uvloop": version("uvloop"),
        "machine": platform.machine(),
    }


def compare(found: Figures, committed: dict[str, Any]) -> tuple[str, bool]:
    """The table, and whether a figure has grown too much."""
    lines, grown = [], False
    for name, counts in found.counts.items():
        lines.append(name)
        for what, count in counts.items():
            before = committed["per call"][name][what]
            change = count / before - 1
            too_much = change > GROWTH
            grown = grown or too_much
            lines.append(f"  {what:13} {count:>10,}  was {before:>10,}  {change:+7.1%}{' GROWN' * too_much}")
        names = ", ".join(f"{number / _CALLS:.2g} {each}" for each, number in _most(found.asked[name]))
        lines.append(f"  {'':13} {names}")
    if (now := made_with()) != (then := committed["made with"]):
        lines.append(f"the committed figures were made with {then}, these with {now}")
    return "\n".join(lines), grown


def _most(asked: Counter[str]) -> list[tuple[str, int]]:
    return [(name, number) for name, number in asked.most_common() if number >= _CALLS / 20]


def _say(words: str) -> None:
    print(f"cost: {words}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make check-cost", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"make these the figures in {COMMITTED.name}")
    parser.add_argument("--profiles", type=Path, help="a folder for what callgrind_annotate reads")
    asked = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="sidecert-cost-") as folder, redirect_stdout(sys.stderr):
            profiles = asked.profiles or Path(folder, "profiles")
            profiles.mkdir(exist_ok=True)
            found = measure(Path(folder), profiles)
    except NotMeasured as exc:
        _say(str(exc))
        return 2
    table, grown = compare(found, json.loads(COMMITTED.read_text()))
    print(table)
    if asked.write:
        COMMITTED.write_text(
            json.dumps({"made with": made_with(), "per call": found.counts}, indent=2) + "\n"
        )
        return 0
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
