"""Calls by wrk, or by caller.c where wrk cannot make them, and what their caller saw."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench import tools
from bench.scenarios import Load

HOST = "bench.test"

# wrk's own report rounds its figures; this one comes out as JSON behind it.
_REPORT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\\n{"requests": %d, "micros": %d, "p50": %f, "p99": %f, "p999": %f, "bad": %d, "broken": %d}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        latency:percentile(99.9), errors.status,
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


class BadLoad(Exception):
    """Calls failed: a proxy that fails fast is not fast, so there are no figures."""


@dataclass(frozen=True)
class Seen:
    """What the caller saw of one run; times in seconds."""

    requests: int
    duration: float
    p50: float
    p99: float
    p999: float

    @property
    def rate(self) -> float:
        return self.requests / self.duration


def run(folder: Path, port: int, load: Load, seconds: int, rate: float | None = None) -> Seen:
    """`load` for `seconds`, at `rate` calls a second if told. Raises BadLoad unless all end with 2xx."""
    ours = load.per_request or load.calls is not None or rate is not None
    command = _caller(port, load, seconds, rate) if ours else _wrk(folder, port, load, seconds)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=True)
    seen = json.loads(ran.stdout.splitlines()[-1])
    if seen["bad"] or seen["broken"] or not seen["requests"]:
        raise BadLoad(
            f"{seen['bad']} answers were not 2xx, {seen['broken']} calls had none, of {seen['requests']}"
        )
    times = {name: seen[name] / 1e6 for name in ("p50", "p99", "p999")}
    return Seen(seen["requests"], seen["micros"] / 1e6, **times)


def _wrk(folder: Path, port: int, load: Load, seconds: int) -> list[str]:
    script = folder / f"{load.name}.lua"
    body = f'wrk.method = "POST"\nwrk.body = string.rep("x", {load.body})\n' if load.body else ""
    script.write_text(_REPORT + body + (_NEW_EACH_TIME if load.new_heads else ""))
    command = [tools.wrk(), "-t", "1", "-c", str(load.connections), "-d", f"{seconds}s", "-s", str(script)]
    return [*command, "--timeout", "20s", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}{load.path}"]


def _caller(port: int, load: Load, seconds: int, rate: float | None) -> list[str]:
    command = [tools.caller(), "-c", str(load.connections), "-h", HOST, "-p", load.path, "-b", str(load.body)]
    command += ["-C"] if load.per_request else []
    command += ["-d", str(seconds)] if load.calls is None else ["-n", str(load.calls)]
    command += [] if rate is None else ["-r", f"{rate:.3f}"]
    return [*command, str(port)]
