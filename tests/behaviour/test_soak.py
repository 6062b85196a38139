"""Calls of every kind without end: neither memory nor open files grow."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import tools
from support.certs import Pki
from support.clients import url
from support.lengths import rounds
from support.peers import Peers
from support.sidecar import NO_CIRCUIT, Sidecar, StartSidecar, config, route

HERE = "127.0.0.1:0"
MOST_GROWTH = 5_000_000
AT_ONCE = 16
IDLE = 8
"""Connections that a pool keeps, so that there are as many open files after each run."""

# One thread: each call another one, in turn. What is rare here costs a handshake each time.
_SCRIPT = """
number, counts = 0, {}  -- global, or `get` would not see them
local body = string.rep("0123456789", 400)
request = function()
    number = number + 1
    local path, headers = "/call?number=" .. number, {["Host"] = "good.test"}
    local kind = number % 100
    if kind == 1 then headers["Host"] = "refused.test"
    elseif kind == 2 then headers["Host"] = "closed.test"
    elseif kind == 3 then headers["Host"] = "unknown.test"
    elseif kind == 4 then path = "/missing?number=" .. number
    elseif kind == 5 then headers["X-Long"] = string.rep("x", number % 3000)
    elseif kind % 5 == 0 then headers["Connection"] = "close"
    elseif kind % 5 == 1 then return wrk.format("POST", path, headers, body)
    elseif kind % 5 == 2 then path = "/always-the-same"
    end
    return wrk.format("GET", path, headers)
end
response = function(status)
    local name = tostring(status)
    counts[name] = (counts[name] or 0) + 1
end
local threads = {}
setup = function(thread)
    table.insert(threads, thread)
end
done = function(summary)
    local errors = summary.errors
    io.write(string.format('\\n{"broken": %d', errors.connect + errors.read + errors.write + errors.timeout))
    for status, count in pairs(threads[1]:get("counts")) do
        io.write(string.format(', "%s": %d', status, count))
    end
    io.write("}\\n")
end
"""


@pytest.fixture
def wrk() -> str:
    try:
        return tools.wrk()
    except tools.NoTool as missing:
        pytest.skip(str(missing))


@pytest.mark.long_form(seconds=1500)
def test_neither_memory_nor_open_files_grow(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path, wrk: str
) -> None:
    """Kept connections and new ones, bodies, refused certificates, dead upstreams, unknown hosts; reloads."""
    pool = {"max_idle": IDLE}
    good = peers.nginx(extra="location = /missing { return 404; }")
    routes = [
        route("good", good, trust=pki.trust, pool=pool),
        route("refused", peers.haproxy(), trust=pki.trust, credential="stranger", circuit=NO_CIRCUIT),
        route("closed", peers.closed_port(), trust=pki.trust, circuit=NO_CIRCUIT),
    ]
    running = sidecar(*routes)
    script = tmp_path / "calls.lua"
    script.write_text(_SCRIPT)
    calls, warm, seconds = rounds(10_000, 1_000_000), rounds(4_000, 150_000), rounds(1, 10)
    statuses: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    turn = 0
    while statuses.total() < calls:
        turn += 1
        load = subprocess.Popen(
            [wrk, "-t1", f"-c{AT_ONCE}", f"-d{seconds}s", "-s", str(script), url(running.listener)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            _reload_under_load(running, routes, turn)
            output, _ = load.communicate(timeout=seconds + 30)
        finally:
            load.kill()
        statuses.update(json.loads(output.splitlines()[-1]))
        running.wait_for(lambda: running.metric("sidecert_downstream_connections", listener=HERE) == 0)
        if statuses.total() >= warm:
            sizes.append((running.resident(), running.descriptors()))

    assert statuses.keys() == {"200", "403", "404", "502", "broken"}, statuses
    assert statuses["broken"] == 0
    assert statuses["200"] > 0.95 * statuses.total()
    growth = max(memory for memory, _ in sizes) - sizes[0][0]
    files = [files for _, files in sizes]
    megabytes = " ".join(f"{memory / 1e6:.1f}" for memory, _ in sizes)
    print(
        f"{statuses.total()} calls, {dict(statuses)}, {turn} reloads; memory {megabytes} MB; "
        f"open files {min(files)} to {max(files)}"
    )
    assert len(sizes) > 1
    assert growth < MOST_GROWTH
    assert max(files) - min(files) <= 2


def _reload_under_load(running: Sidecar, routes: list[dict[str, Any]], turn: int) -> None:
    """Once calls flow: with a change that makes each pool anew, or with none."""
    begun = _answered(running)
    running.wait_for(lambda: _answered(running) > begun + 50)
    if turn % 3 == 0:
        timeouts = {"stall": f"{50 + turn % 10}s"}
        changed = [{**each, "upstream": {**each["upstream"], "timeouts": timeouts}} for each in routes]
        running.rewrite(config(changed, _credentials(running)))
    before = running.metric("sidecert_config_generation") or 0
    running.ask_admin("POST", "/-/reload")
    running.wait_for(lambda: (running.metric("sidecert_config_generation") or 0) > before)


def _answered(running: Sidecar) -> float:
    return sum(value for (name, _), value in running.metrics().items() if name == "sidecert_requests_total")


def _credentials(running: Sidecar) -> dict[str, Any]:
    written = yaml.safe_load(running.path.read_text())
    found: dict[str, Any] = written["credentials"]
    return found
