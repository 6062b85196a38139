"""The bench runs and tells all its figures. What they are is no matter of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
NEEDS_TOOLS = pytest.mark.skipif(
    not (shutil.which("wrk") and shutil.which("cc")),
    reason="wrk or a C compiler is not installed (Debian: apt-get install wrk build-essential)",
)
SHORT = ("--rounds", "1", "--seconds", "1", "--starts", "1", "--json")


@NEEDS_TOOLS
def test_bench_measures_sidecert_beside_nginx() -> None:
    """A second of each load: every figure is above zero, for both, with goals and what is left out."""
    report = measured("--only", "keep-alive-50,per-request-10", "--proxies", "nginx,sidecert")
    for scenario in ("keep-alive-50", "per-request-10"):
        for name in ("nginx", "sidecert"):
            figures = report["scenarios"][scenario]["contenders"][name]["medians"]
            assert set(figures) == {"cpu", "rate", "p50", "p99", "p999", "busy", "load_busy", "peak"}
            assert all(figure > 0 for figure in figures.values())
    for name in ("nginx", "sidecert"):
        assert report["alone"][name]["medians"]["idle"] > 1
        assert report["alone"][name]["medians"]["first_answer"] > 0
    results = {goal["goal"]: goal for goal in report["goals"]}
    ready = results["ms from start to ready"]
    assert ready["figure"] == report["alone"]["sidecert"]["medians"]["ready"]
    assert ready["result"] == ("reached" if ready["figure"] <= ready["limit"] else "missed")
    assert "ghostunnel" in report["left_out"]
    assert results["CPU per call beside envoy, keep-alive"]["result"] == "not measured"


@NEEDS_TOOLS
def test_bench_makes_calls_at_a_fixed_rate_to_an_upstream_far_away() -> None:
    """Behind a round trip of 20 ms no call takes less."""
    report = measured("--only", "rtt20-fixed/fixed-10", "--proxies", "nginx")
    figures = report["scenarios"]["rtt20-fixed/fixed-10"]["contenders"]["nginx"]["medians"]
    assert figures["p50"] >= 20
    assert 0 < figures["rate"] <= 10 / 0.020  # half of what ten connections can at the most, but never more


def test_bench_without_wrk_says_how_to_get_it() -> None:
    """On a machine without wrk it ends with 2 and the package's name, and starts nothing."""
    ran = bench(path="")
    assert ran.returncode == 2
    assert "apt-get install wrk" in ran.stderr


def measured(*arguments: str) -> dict[str, Any]:
    ran = bench(*arguments, *SHORT)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def bench(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    if path is not None:
        environ["PATH"] = path
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
