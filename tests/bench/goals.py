"""What sidecert is to reach, as ratios within one run; and whether it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.proxies import NEVER_HAD
from bench.report import Report, align

NOT_MEASURED = "not measured"

_OURS = "sidecert"
_ALIKE = {"keep-alive-50": "keep-alive", "per-request-10": "a connection per request"}


@dataclass(frozen=True)
class Goal:
    """A figure and its limit: at most, or at least. `figure` is None where it was not measured."""

    words: str
    limit: float
    figure: Callable[[Report], float | None]
    at_least: bool = False
    unmeasured: str = NOT_MEASURED

    def told(self, report: Report) -> dict[str, Any]:
        figure = self.figure(report)
        found: dict[str, Any] = {
            "goal": self.words,
            "limit": self.limit,
            "at_least": self.at_least,
            "figure": figure,
        }
        if figure is None:
            return {**found, "result": self.unmeasured}
        reached = figure >= self.limit if self.at_least else figure <= self.limit
        return {**found, "result": "reached" if reached else "missed"}


def _ratio(scenario: str, other: str, measure: str, label: str = _OURS) -> Callable[[Report], float | None]:
    return lambda report: report.ratio(scenario, label, other, measure)


def _value(scenario: str, measure: str) -> Callable[[Report], float | None]:
    return lambda report: report.value(scenario, _OURS, measure)


def _alone(measure: str) -> Callable[[Report], float | None]:
    return lambda report: report.value_alone(_OURS, measure)


def _beside(other: str, limit: float, scenarios: Sequence[str] = tuple(_ALIKE)) -> list[Goal]:
    return [
        Goal(f"CPU per call beside {other}, {_ALIKE[each]}", limit, _ratio(each, other, "cpu"))
        for each in scenarios
    ]


def _fixed() -> list[Goal]:
    goals = []
    for series, far in (("fixed", ""), ("rtt20-fixed", ", 20 ms round trip")):
        for connections in (10, 50, 500):
            scenario, words = (
                f"{series}/fixed-{connections}",
                f"beside nginx at a fixed rate, {connections} conn{far}",
            )
            goals.append(Goal(f"p50 {words}", 1.05, _ratio(scenario, "nginx", "p50")))
            goals.append(Goal(f"p99 {words}", 1.5, _ratio(scenario, "nginx", "p99")))
    return goals


def _big() -> list[Goal]:
    goals = []
    for load, way in (("big/get-1g", "down"), ("big/post-1g", "up")):
        throughput = _ratio(load, "nginx", "throughput")
        goals.append(Goal(f"throughput of 1 GiB {way} beside nginx", 0.8, throughput, at_least=True))
        goals.append(Goal(f"MiB of growth by 1 GiB {way}", 16, _value(load, "growth")))
    return goals


GOALS: tuple[Goal, ...] = (
    *_beside("envoy", 1.1),
    *_beside("caddy", 1.0),
    *_beside("stunnel", 1 / 6, ("per-request-10",)),
    Goal(
        "CPU per call beside ghostunnel, a connection per request",
        1 / 8,
        _ratio("per-request-10", "ghostunnel", "cpu"),
        unmeasured=NEVER_HAD["ghostunnel"],
    ),
    *_beside("mitmdump", 1 / 25),
    *(
        Goal(
            f"CPU per call with flows for an addon, beside mitmdump, {words}",
            1 / 7,
            _ratio(f"inspecting/{load}", "mitmdump, inspecting", "cpu", "sidecert, inspecting"),
        )
        for load, words in (("keep-alive-10", "keep-alive"), ("per-request-10", "a connection per request"))
    ),
    *_fixed(),
    *_big(),
    *(
        Goal(
            f"CPU per call with 10,000 routes beside one, {words}",
            1.05,
            _ratio(f"routes/{load}", _OURS, "cpu", "sidecert, 10000 routes"),
        )
        for load, words in (("keep-alive-10", "keep-alive"), ("per-request-10", "a connection per request"))
    ),
    Goal(
        "p99 with the metrics page read five times a second, beside unread",
        1.1,
        _ratio("scraped/fixed-50", _OURS, "p99", "sidecert, scraped"),
    ),
    Goal("MiB resident, idle", 80, _alone("idle")),
    Goal("ms from start to ready", 600, _alone("ready")),
)


def told(report: Report) -> list[dict[str, Any]]:
    """Each goal with its figure and what came of it."""
    return [goal.told(report) for goal in GOALS]


def as_text(report: Report) -> str:
    """The same as a table."""
    lines, unmeasured = [["goals", "limit", "figure", "result"]], 0
    for each in told(report):
        if each["result"] == NOT_MEASURED:
            unmeasured += 1
            continue
        sign = ">=" if each["at_least"] else "<="
        figure = "-" if each["figure"] is None else f"{each['figure']:.3g}"
        lines.append([f"  {each['goal']}", f"{sign} {each['limit']:.3g}", figure, each["result"]])
    return align(lines) + (f"\n  and {unmeasured} of what was not measured" if unmeasured else "")
