"""One table of all figures, or the same as JSON. Figures are medians, and ratios are to the first proxy."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Figures = dict[str, list[float]]
"""Each measure's figures, one per round or start."""

LOADED = {
    "cpu": "CPU us/request",
    "rate": "requests/s",
    "p50": "p50 ms",
    "p99": "p99 ms",
}
ALONE = {
    "idle": "resident MiB, idle after start",
    "after": "resident MiB, after the load",
    "first_answer": "start to first answer, ms",
    "ready": "start to ready in the log, ms",
}


@dataclass
class Report:
    """What was measured: per proxy the figures of each scenario, and those of the process."""

    proxies: Sequence[str]
    scenarios: Sequence[str]
    settings: dict[str, Any]
    loaded: dict[str, dict[str, Figures]] = field(default_factory=dict)
    alone: dict[str, Figures] = field(default_factory=dict)

    def add_loaded(self, proxy: str, scenario: str, **figures: float) -> None:
        _add(self.loaded.setdefault(proxy, {}).setdefault(scenario, {}), figures)

    def add_alone(self, proxy: str, **figures: float) -> None:
        _add(self.alone.setdefault(proxy, {}), figures)

    def as_json(self) -> dict[str, Any]:
        """All of it, with each round's figures."""
        return asdict(self)

    def as_text(self) -> str:
        """The table: a line per measure, a column per proxy, ratios beside the figures."""
        lines = [["", *self.proxies]]
        for scenario in self.scenarios:
            lines += [
                [scenario],
                *self._lines(LOADED, [self.loaded[name][scenario] for name in self.proxies]),
            ]
        lines += [["the process"], *self._lines(ALONE, [self.alone[name] for name in self.proxies])]
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{_align(lines)}\n\nmedians; (x) is the ratio to {self.proxies[0]}; {settings}"

    def _lines(self, measures: dict[str, str], figures: Sequence[Figures]) -> Iterator[list[str]]:
        for measure, words in measures.items():
            medians = [median(each[measure]) if measure in each else None for each in figures]
            cells = [_cell(each, medians[0], number > 0) for number, each in enumerate(medians)]
            yield [f"  {words}", *cells]


def machine() -> str:
    """What kind of machine this is, in a few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} x {model}"


def _add(to: Figures, figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        to.setdefault(name, []).append(figure)


def _cell(figure: float | None, first: float | None, with_ratio: bool) -> str:
    if figure is None:
        return "-"
    digits = 0 if figure >= 1000 else 1 if figure >= 10 else 2
    ratio = f" ({figure / first:6.2f}x)" if with_ratio and first else ""
    return f"{figure:.{digits}f}{ratio or ' ' * 10 * with_ratio}"


def _align(lines: Sequence[Sequence[str]]) -> str:
    columns = max(map(len, lines))
    widths = [max(len(line[at]) for line in lines if at < len(line)) for at in range(columns)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )
