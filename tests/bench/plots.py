"""Plots of a report, as SVG files: who costs what, and how sidecert's cost grows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import Report
from bench.scenarios import EVERYBODY, GIB, KIB, MIB
from bench.tools import NoTool

_OURS = "sidecert"
_OUR_COLOUR, _OTHERS = "#c0392b", "#7f8c8d"
_CONNECTIONS = (1, 10, 50, 500)
_NAMES = [each.label for each in EVERYBODY]

_BUT_RED = {name: number + (number > 2) for number, name in enumerate(_NAMES)}
"""Which of the library's colours is each proxy's; its fourth is too much like ours."""

Points = list[tuple[float, float]]


def library() -> None:
    """Raises NoTool unless plots can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NoTool("matplotlib, which draws the plots, is not installed; `make bench` brings it")


def draw(report: Report, folder: Path) -> None:
    """Writes those plots to `folder` for which something was measured."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sidecert"  # or every run would name its parts anew
    folder.mkdir(parents=True, exist_ok=True)
    _costs(report, folder / "cost.svg")
    _latencies(report, folder / "latency.svg")
    _growth(report, folder / "growth.svg")


def _costs(report: Report, path: Path) -> None:
    """CPU per call of each proxy, keep-alive and with a connection per request."""
    titles = {"keep-alive-50": "keep-alive, 50 connections", "per-request-10": "a connection per request"}
    shown = {each: title for each, title in titles.items() if each in report.scenarios}
    if not shown:
        return
    figure, axes = _axes(1, len(shown), 5.5, 3.5)
    for axis, (scenario, title) in zip(axes, shown.items(), strict=True):
        found = {name: report.value(scenario, name, "cpu") for name in _NAMES}
        named = sorted((value, name) for name, value in found.items() if value is not None)
        colours = [_OUR_COLOUR if name == _OURS else _OTHERS for _, name in named]
        bars = axis.barh([name for _, name in named], [value for value, _ in named], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=title, xscale="log", xlabel="CPU per call, us")
        axis.set_xlim(left=1, right=2 * max(value for value, _ in named))
        axis.invert_yaxis()
    _save(figure, path)


def _latencies(report: Report, path: Path) -> None:
    """p50 and p99 at the same fixed rate, beside nginx."""
    series = [each for each in ("fixed", "rtt20-fixed") if f"{each}/fixed-10" in report.scenarios]
    if not series:
        return
    figure, axes = _axes(1, len(series), 5.5, 3.5)
    for axis, each in zip(axes, series, strict=True):
        for name, colour in ((_OURS, _OUR_COLOUR), ("nginx", _OTHERS)):
            for measure, style in (("p50", "-"), ("p99", "--")):
                points = _points(
                    _CONNECTIONS,
                    lambda n, name=name, measure=measure, each=each: report.value(
                        f"{each}/fixed-{n}", name, measure
                    ),
                )
                axis.plot(*_columns(points), style, marker="o", color=colour, label=f"{name} {measure}")
        title = "half of what sidecert sustains" + (", 20 ms round trip" if each != "fixed" else "")
        axis.set(title=title, xscale="log", xlabel="connections", ylabel="ms")
        axis.set_ylim(bottom=0)
        axis.legend()
    _save(figure, path)


def _growth(report: Report, path: Path) -> None:
    """CPU above, memory below: against connections, routes, credentials and the size of a body."""
    figure, axes = _axes(2, 4, 4, 3)
    _by_connections(report, axes[0], axes[4])
    _by_config(report, axes[1], axes[5], "routes", (1, 100, 10_000))
    _by_config(report, axes[2], axes[6], "credentials", (1, 100, 1000))
    _by_size(report, axes[3], axes[7])
    if any(axis.has_data() for axis in axes):
        _save(figure, path)


def _by_connections(report: Report, cpu: Any, memory: Any) -> None:
    for name in _NAMES:
        colour, width = (_OUR_COLOUR, 2.5) if name == _OURS else (f"C{_BUT_RED[name]}", 1)
        for axis, measure in ((cpu, "cpu"), (memory, "peak")):
            points = _points(
                _CONNECTIONS,
                lambda n, name=name, measure=measure: report.value(f"keep-alive-{n}", name, measure),
            )
            if points:
                axis.plot(*_columns(points), marker="o", color=colour, linewidth=width, label=name)
    cpu.set(xscale="log", yscale="log", ylabel="CPU per call, us", title="connections")
    memory.set(ylabel="most MiB resident", xlabel="connections, keep-alive")
    if cpu.has_data():
        cpu.legend(fontsize=6)
        memory.set_ylim(bottom=0)


def _by_config(report: Report, cpu: Any, memory: Any, what: str, counts: Sequence[int]) -> None:
    def label(count: float) -> str:
        return _OURS if count == 1 else f"{_OURS}, {count:.0f} {what}"

    for load, words in (("keep-alive-10", "keep-alive"), ("per-request-10", "connection per request")):
        points = _points(counts, lambda n, load=load: report.value(f"{what}/{load}", label(n), "cpu"))
        if points:
            cpu.plot(*_columns(points), marker="o", label=words)
    points = _points(counts, lambda n: report.value(f"{what}/keep-alive-10", label(n), "peak"))
    if points:
        memory.plot(*_columns(points), marker="o", color=_OUR_COLOUR)
        memory.set_ylim(bottom=0)
        cpu.set_ylim(bottom=0)
        cpu.legend(fontsize=6)
    cpu.set(xscale="log", title=what)
    memory.set(xlabel=f"{what} in the config")


def _by_size(report: Report, cpu: Any, memory: Any) -> None:
    ways = {
        "down": {KIB: "bodies/get-1k", MIB: "bodies/get-1m", GIB: "big/get-1g"},
        "up": {100 * KIB: "bodies/post-100k", GIB: "big/post-1g"},
    }
    for name, colour in ((_OURS, _OUR_COLOUR), ("nginx", _OTHERS)):
        for (way, sizes), style in zip(ways.items(), ("-", "--"), strict=True):
            for axis, measure in ((cpu, "cpu"), (memory, "growth")):
                points = _points(
                    tuple(sizes),
                    lambda n, sizes=sizes, name=name, measure=measure: report.value(
                        sizes[int(n)], name, measure
                    ),
                )
                if points:
                    axis.plot(*_columns(points), style, marker="o", color=colour, label=f"{name}, {way}")
    cpu.set(xscale="log", yscale="log", title="size of a body")
    memory.set(xscale="log", ylabel="MiB of growth", xlabel="bytes of the body")
    if cpu.has_data():
        cpu.legend(fontsize=6)
        memory.set_ylim(bottom=0, top=max(16.0, memory.get_ylim()[1]))


def _points(at: Sequence[float], value: Callable[[float], float | None]) -> Points:
    """Those that were measured."""
    return [(each, found) for each in at if (found := value(each)) is not None]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
