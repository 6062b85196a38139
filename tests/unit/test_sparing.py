"""One line a second for each reason, and the number of those left out."""

from __future__ import annotations

import pytest

from sidecert import sparing
from sidecert.sparing import REPEATED, Sparing


def test_one_line_a_second_for_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason does not use up another's line, and what was left out is told once."""
    now = 1000.0
    monkeypatch.setattr(sparing, "monotonic", lambda: now)
    lines = Sparing()
    assert [lines.left_out("pool_full") for _ in range(4)] == [0, None, None, None]
    assert [lines.left_out("overloaded") for _ in range(2)] == [0, None]
    now += 0.99
    assert lines.left_out("pool_full") is None
    now += 0.02
    assert [lines.left_out("pool_full") for _ in range(2)] == [4, None]
    assert lines.left_out("overloaded") == 1
    now += 5
    assert lines.left_out("overloaded") == 0


def test_what_repeats_itself() -> None:
    """Only reasons that hold for any call, whatever it is."""
    assert {"circuit_open", "pool_full", "overloaded"} == REPEATED
