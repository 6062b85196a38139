"""The limit of open files: raised as far as the system lets us, and in words where it does not."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from sidecert import openfiles
from sidecert.config import Config
from sidecert.generation import Generation
from sidecert.routing import Router

NEEDED = 2 * 1000 + 256
"""By a config of the default 1000 callers, without routes."""


class Limits:
    """Stands in for the system's limits, which a test cannot give back once they are lowered."""

    def __init__(self, soft: int, hard: int, refusal: Exception | None = None) -> None:
        self.now = (soft, hard)
        self.refusal = refusal

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.now = limits


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (256, 4096, NEEDED),
        (256, resource.RLIM_INFINITY, NEEDED),
        (NEEDED + 1, NEEDED + 1, NEEDED + 1),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_limit_becomes_what_is_needed_and_never_less(
    soft: int, hard: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard one stays as it is."""
    limits = _allow(monkeypatch, Limits(soft, hard), told=[])
    assert limits.now == (then, hard)


def test_hard_limit_that_is_too_low_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be had is taken."""
    wrong = f"1000 callers need up to {NEEDED} open files, and the system allows 512"
    assert _allow(monkeypatch, Limits(256, 512), told=[wrong]).now == (512, 512)


@pytest.mark.parametrize("refusal", [ValueError("not allowed"), PermissionError(1, "not allowed")])
def test_system_that_lets_no_limit_be_set_is_told(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox, say: sidecert goes on with what it has."""
    wrong = f"1000 callers need up to {NEEDED} open files, and the system allows 256 ({refusal})"
    assert _allow(monkeypatch, Limits(256, 4096, refusal), told=[wrong]).now == (256, 4096)


def _allow(monkeypatch: pytest.MonkeyPatch, limits: Limits, *, told: list[str]) -> Limits:
    monkeypatch.setattr(openfiles.resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(openfiles.resource, "setrlimit", limits.setrlimit)
    generation = Generation(1, Path("c.yaml"), Config(version=1, routes=()), {}, {}, Router(()), (), {})
    problems = openfiles.allow(generation)
    assert [(problem.wrong, problem.warning) for problem in problems] == [(wrong, True) for wrong in told]
    return limits
