"""The truth table: what each trouble with each server came to, as tests saw it and addon/TRUTH_TABLE.md says.

A test notes each cell with `saw`. The page is made of the cells of a whole run; a run that saw only some of
them (a program is missing) can still compare those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from support.clients import Answer
from support.recorder import TlsVersion
from support.sidecar import Series, Sidecar

PAGE = Path(__file__).parents[2] / "addon" / "TRUTH_TABLE.md"
LEFT_OUT = "left_out_of_the_truth_table"
"""The name of that plugin."""
WRITE = os.environ.get("SIDECERT_WRITE_TRUTH_TABLE") == "1"

IN_TIME = 1.0 + 1.0
"""Seconds from the upstream's verdict to the answer: the one that is promised, and one in which a busy
machine may let us wait."""

_VERSIONS: tuple[TlsVersion, ...] = ("1.2", "1.3")
_HEAD = """# What each handshake comes to

Written by `make truth-table` from what the tests saw of real servers; a test fails where a run sees anything
else. A cell has the outcome that was counted, logged and answered, and how the upstream told it: its alert,
OpenSSL's code for its certificate, a close without an alert, or an HTTP answer, which goes through unchanged.
Where two outcomes are told apart, the first is the handshake's and the second the answer's.
"""


def told(evidence: list[str]) -> str:
    """How the upstream said it, in few words that are the same in every run."""
    lines = "\n".join(evidence)
    if found := re.search(r"alert (\w+) \(\d+\)", lines.replace("we sent the alert", "")):
        return f"alert {found[1]}"
    if found := re.search(r"\(code \d+\)", lines):
        return found[0].strip("()")
    for words, short in (
        ("first bytes", "its first bytes"),
        ("without an alert", "closes, no alert"),
        ("nothing for", "silence"),
        ("OpenSSL says", "its first message"),
        ("we left", "silence"),
    ):
        if words in lines:
            return short
    return "no connection"


class LeftOut:
    """A pytest plugin: the tests that did not run to a good end, so that nothing is made of what they saw."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.nodes.update(item.nodeid for item in items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.nodes.add(report.nodeid)


@dataclass
class TruthTable:
    """Cells by section, row (a server or a condition) and TLS version."""

    cells: dict[tuple[str, str, TlsVersion], str] = field(default_factory=dict)

    def saw(self, section: str, row: str, tls: TlsVersion, outcome: str, how: str) -> None:
        """Notes one cell; `outcome` may be two, separated by a comma."""
        words = ", ".join(f"`{each}`" for each in outcome.split(", "))
        self.cells[section, row, tls] = f"{words}: {how}"

    def page(self) -> str:
        """The page, of whole rows only."""
        pieces = [_HEAD]
        for section in dict.fromkeys(section for section, _, _ in self.cells):
            pieces.append(f"\n## {section}\n\n| | TLS 1.2 | TLS 1.3 |\n|---|---|---|\n")
            for row in dict.fromkeys(row for each, row, _ in self.cells if each == section):
                both = [self.cells.get((section, row, tls), "") for tls in _VERSIONS]
                pieces.append(f"| {row} | {both[0]} | {both[1]} |\n")
        return "".join(pieces)

    @classmethod
    def committed(cls) -> TruthTable:
        """What the page says."""
        table = cls()
        section = ""
        for line in PAGE.read_text().splitlines():
            if line.startswith("## "):
                section = line.removeprefix("## ")
            elif line.startswith("| ") and not line.startswith("| |"):
                row, *both = line.strip("| ").split(" | ")
                for tls, cell in zip(_VERSIONS, both, strict=True):
                    table.cells[section, row, tls] = cell
        return table


@dataclass(frozen=True)
class Cell:
    """One call on a route of its own, and what became of it."""

    running: Sidecar
    route: str
    answer: Answer
    late: float = 0.0
    """Seconds that the upstream's verdict may take: the limit that must pass."""

    @property
    def how(self) -> str:
        """How the upstream told it, in few words that are the same in every run."""
        if self.answer.header("Sidecert-Outcome") is None:
            return f"HTTP {self.answer.status}"
        return told(self.answer.json().get("evidence", []))

    def check(self, outcome: str, how: str, *, answer: str | None = None, attempts: int = 1) -> Any:
        """All places say `outcome`, once; `answer` is the answer's own where it differs. Gives its fields."""
        name = self.route
        assert self.outcomes() == {outcome: attempts}, name
        assert self.metric("sidecert_handshake_duration_seconds_count") == attempts
        assert self.metric("sidecert_requests_in_progress") == 0
        in_log = {
            record["outcome"]: record
            for record in self.running.records
            if record.get("route") == name and record.get("outcome") is not None
        }
        word = answer or outcome
        if word == "ok":
            assert self.answer.header("Sidecert-Outcome") is None, name
            assert in_log == {}, name
            assert self.how == how, name
            return None
        assert self.answer.seconds < self.late + IN_TIME, name
        fields = self.answer.json()
        assert (self.answer.header("Sidecert-Outcome"), fields["outcome"]) == (word, word), fields
        assert self.answer.status == (504 if word.endswith("_timeout") else 502)
        # An attempt without a verdict is logged beside the answer to its call, which says something else.
        assert in_log.keys() == ({word, outcome} if outcome == "undecided" else {word})
        assert (fields["route"], fields["request_id"]) == (name, in_log[word]["request_id"])
        assert fields["detail"]
        assert fields["remedy"]
        if answer is None:
            assert in_log[word]["evidence"] == fields["evidence"]
            assert self.how == how, fields
            assert "No byte of the request was sent." in fields["detail"]
        return fields

    def metric(self, name: str, **labels: str) -> float | None:
        """That series of the route, as it was after the call."""
        return self.series.get((name, frozenset({"route": self.route, **labels}.items())))

    def outcomes(self) -> dict[str, float]:
        """The route's handshakes by outcome, those that are not 0, whatever the credential."""
        found = {}
        for (name, labels), value in self.series.items():
            named = dict(labels)
            if name == "sidecert_handshakes_total" and named["route"] == self.route and value:
                found[named["outcome"]] = value
        return found

    @cached_property
    def series(self) -> Series:
        """All metrics, read once, after the call."""
        return self.running.metrics()


def calls(
    running: Sidecar, names: Iterable[str], late: Mapping[str, float] | None = None
) -> Iterator[tuple[str, Cell]]:
    """A GET on each of these routes; `late` has the seconds that a verdict may take."""
    for name in names:
        yield name, Cell(running, name, running.get(f"http://{name}.test/"), (late or {}).get(name, 0.0))
