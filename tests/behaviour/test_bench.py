"""The bench runs and tells all its figures. What they are is no matter of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed (Debian: apt-get install wrk)")
def test_bench_measures_sidecert_beside_nginx() -> None:
    """A second of each load: every figure is there and above zero, for both proxies."""
    ran = bench("--only", "nginx,sidecert", "--rounds", "1", "--seconds", "1", "--starts", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    for name in ("nginx", "sidecert"):
        for scenario in report["scenarios"]:
            figures = report["loaded"][name][scenario]
            assert set(figures) == {"cpu", "rate", "p50", "p99"}
            assert all(figure > 0 for each in figures.values() for figure in each)
        assert report["alone"][name]["idle"][0] > 1
        assert report["alone"][name]["first_answer"][0] > 0
    assert report["alone"]["sidecert"]["ready"][0] > 0


def test_bench_without_wrk_says_how_to_get_it() -> None:
    """On a machine without wrk it ends with 2 and the package's name, and starts nothing."""
    ran = bench(path="")
    assert ran.returncode == 2
    assert "apt-get install wrk" in ran.stderr


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
