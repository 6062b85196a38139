"""All figures of a run, as tables and as JSON. Figures are medians, ratios are to a table's first line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.scenarios import Contender, Load, Series

Figures = dict[str, list[float]]
"""Each measure's figures, one per round or start."""

MEASURES = {
    "cpu": "CPU us/call",
    "rate": "calls/s",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "p999": "p99.9 ms",
    "busy": "its core %",
    "load_busy": "load's core %",
    "peak": "peak MiB",
    "growth": "growth MiB",
    "throughput": "MiB/s",
}
ALONE = {
    "idle": "resident MiB, idle after start",
    "after": "MiB after the first loads",
    "first_answer": "start to first answer, ms",
    "ready": "start to ready in its log, ms",
}


@dataclass
class Report:
    """What was measured: for each scenario the figures of each contender, and those of each process."""

    settings: dict[str, Any]
    words: dict[str, str] = field(default_factory=dict)
    scenarios: dict[str, dict[str, Figures]] = field(default_factory=dict)
    alone: dict[str, Figures] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    disturbances: list[float] = field(default_factory=list)
    """How much of the proxies' core was in use by others while each was measured, in per cent."""

    def add(self, series: Series, load: Load, contender: Contender, **figures: float) -> None:
        scenario = series.scenario(load)
        self.words[scenario] = _title(series, load)
        _add(self.scenarios.setdefault(scenario, {}).setdefault(contender.label, {}), figures)

    def add_alone(self, contender: Contender, **figures: float) -> None:
        _add(self.alone.setdefault(contender.label, {}), figures)

    def leave_out(self, name: str, why: str) -> None:
        self.left_out[name] = why

    def fail(self, scenario: str, contender: Contender, why: str) -> None:
        """It has no further figures in that scenario, and the run is none to rely on."""
        self.failed.append(f"{scenario}: {contender.label}: {why}")

    def value(self, scenario: str, label: str, measure: str) -> float | None:
        """The median; None where that was not measured."""
        found = self.scenarios.get(scenario, {}).get(label, {}).get(measure)
        return median(found) if found else None

    def value_alone(self, label: str, measure: str) -> float | None:
        found = self.alone.get(label, {}).get(measure)
        return median(found) if found else None

    def ratio(self, scenario: str, label: str, other: str, measure: str) -> float | None:
        """That measure of `label` as a multiple of `other`'s."""
        ours, theirs = self.value(scenario, label, measure), self.value(scenario, other, measure)
        return ours / theirs if ours is not None and theirs else None

    def as_json(self) -> dict[str, Any]:
        """All of it: medians, and each round's figures."""
        return {
            "settings": self.settings | self._disturbance(),
            "scenarios": {
                name: {
                    "words": self.words[name],
                    "contenders": {
                        label: {"medians": _medians(each), "rounds": each}
                        for label, each in contenders.items()
                    },
                }
                for name, contenders in self.scenarios.items()
            },
            "alone": {
                label: {"medians": _medians(each), "starts": each} for label, each in self.alone.items()
            },
            "left_out": self.left_out,
            "failed": self.failed,
        }

    def as_text(self) -> str:
        parts = [self._scenario(name) for name in self.scenarios]
        parts.append(_table("the processes", ALONE, self.alone, self.value_alone))
        if self.left_out:
            parts.append("left out\n" + "\n".join(f"  {name}: {why}" for name, why in self.left_out.items()))
        if self.failed:
            parts.append("FAILED\n" + "\n".join(f"  {line}" for line in self.failed))
        settings = "\n".join(
            f"  {name}: {value}" for name, value in (self.settings | self._disturbance()).items()
        )
        parts.append(f"medians; (x) is the ratio to the first line\n{settings}")
        return "\n\n".join(parts)

    def _disturbance(self) -> dict[str, str]:
        if not self.disturbances:
            return {}
        usual, most = median(self.disturbances), max(self.disturbances)
        return {"disturbance": f"others had {usual:.0f} % of the proxies' core, {most:.0f} % at the worst"}

    def _scenario(self, name: str) -> str:
        found = self.scenarios[name]
        title = f"{name}: {self.words[name]}"
        return _table(title, MEASURES, found, lambda label, measure: self.value(name, label, measure))


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of one width each, the first to the left and the others to the right."""
    widths = [max(len(line[at]) for line in lines if at < len(line)) for at in range(max(map(len, lines)))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _title(series: Series, load: Load) -> str:
    ground = series.ground
    words = [load.words]
    if series.name.startswith("tls"):
        words.append(f"TLS {ground.tls} with {ground.key.upper()} certificates")
    if ground.round_trip_ms:
        words.append(f"{ground.round_trip_ms} ms round trip to the upstream")
    return "; ".join(words)


def _table(
    title: str,
    measures: dict[str, str],
    found: dict[str, Figures],
    value: Callable[[str, str], float | None],
) -> str:
    shown = {name: words for name, words in measures.items() if any(name in each for each in found.values())}
    lines = [["", *shown.values()]]
    first = next(iter(found), "")
    for label in found:
        lines.append([f"  {label}", *_cells(label, first, shown, value)])
    return f"{title}\n{align(lines)}"


def _cells(
    label: str, first: str, measures: dict[str, str], value: Callable[[str, str], float | None]
) -> Iterator[str]:
    for measure in measures:
        figure, reference = value(label, measure), value(first, measure)
        if figure is None:
            yield "-"
        elif measure in ("cpu", "p50", "p99", "throughput"):
            ratio = f"({figure / reference:6.2f})" if reference and label != first else " " * 8
            yield f"{_digits(figure)} {ratio}"
        else:
            yield _digits(figure)


def _digits(figure: float) -> str:
    return f"{figure:.{0 if figure >= 1000 else 1 if figure >= 10 else 2}f}"


def _medians(figures: Figures) -> dict[str, float]:
    return {name: median(each) for name, each in figures.items()}


def _add(to: Figures, figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        to.setdefault(name, []).append(figure)
