"""Load from wrk, and what it saw."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.clients import Address, url

HOST = "bench.test"

# wrk's own report rounds its figures; this one comes out as JSON behind it.
_REPORT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\\n{"requests": %d, "micros": %d, "p50": %f, "p99": %f, "bad": %d, "broken": %d}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
"""

# Every request another one. Shared work is no matter of course: no real caller repeats itself like wrk does.
_NEW_EACH_TIME = """
local number = 0
request = function()
    number = number + 1
    return wrk.format("GET", "/new?number=" .. number)
end
"""


class NoWrk(Exception):
    """wrk is not installed."""


class BadLoad(Exception):
    """Calls failed: a proxy that fails fast is not fast, so there are no figures."""


@dataclass(frozen=True)
class Scenario:
    """One kind of load. Without `keep_alive` the caller asks for the end of each connection.

    With `new_each_time` no head is like another, of the requests nor of the answers.
    """

    name: str
    connections: int
    keep_alive: bool
    new_each_time: bool = False


SCENARIOS = (
    Scenario("keep-alive, 10 connections", 10, True),
    Scenario("connection per request, 10 at once", 10, False),
    Scenario("keep-alive, 10 connections, every head a new one", 10, True, new_each_time=True),
)


@dataclass(frozen=True)
class Seen:
    """What the caller saw of one run; times in seconds."""

    requests: int
    duration: float
    p50: float
    p99: float


def program() -> str:
    """Where wrk is. Raises NoWrk."""
    path = shutil.which("wrk")
    if path is None:
        raise NoWrk(
            "wrk, which makes the load, is not installed (Debian: apt-get install wrk; "
            "elsewhere see https://github.com/wg/wrk)"
        )
    return path


def run(folder: Path, address: Address, scenario: Scenario, seconds: int) -> Seen:
    """Load on `address` for `seconds`. Raises BadLoad unless every call was answered, and with a 2xx."""
    script = folder / "report.lua"
    script.write_text(_REPORT + (_NEW_EACH_TIME if scenario.new_each_time else ""))
    command = [program(), "-t", "1", "-c", str(scenario.connections), "-d", f"{seconds}s", "-s", str(script)]
    command += ["-H", f"Host: {HOST}", *(() if scenario.keep_alive else ("-H", "Connection: close"))]
    ran = subprocess.run(
        [*command, url(address)], capture_output=True, text=True, timeout=seconds + 30, check=True
    )
    report = json.loads(ran.stdout.splitlines()[-1])
    if report["bad"] or report["broken"] or not report["requests"]:
        raise BadLoad(f"{scenario.name} at {url(address)}: {report}")
    return Seen(report["requests"], report["micros"] / 1e6, report["p50"] / 1e6, report["p99"] / 1e6)
