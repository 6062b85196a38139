"""All routes in short: for each the one handshake that a call would make."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecert.diagnosis import probe
from sidecert.diagnosis.diagnosis import Status, Step, refused, verdict_on, words
from sidecert.diagnosis.examination import Teller
from sidecert.diagnosis.probe import Probe
from sidecert.diagnosis.subject import Subject
from sidecert.errors import Refusal
from sidecert.explain import Verdict
from sidecert.outcome import Outcome

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """One route's handshake, or the rule of ours that forbids it."""

    subject: Subject
    found: Probe | None
    verdict: Verdict | None
    refusal: Refusal | None = None

    @property
    def accepted(self) -> bool:
        return self.found is not None and self.found.outcome is Outcome.OK

    @property
    def handshakes(self) -> int:
        return int(self.found is not None and self.found.connected)

    @property
    def step(self) -> Step:
        """It in one line."""
        route = self.subject.upstream.route
        where = f"{self.subject.upstream.label} as {route.credential_id}"
        if self.refusal is not None:
            return Step(route.id, Status.FAILED, f"{where}: {self.refusal.title} ({self.refusal.outcome})")
        assert self.found is not None
        assert self.verdict is not None
        if not self.accepted:
            return Step(route.id, Status.FAILED, f"{where}: {self.verdict.title} ({self.verdict.outcome})")
        if route.credential is not None and not self.found.seen.certificate_requested:
            return Step(route.id, Status.WARNING, f"{where}: accepted, but not asked for its certificate")
        limit = "" if self.found.proven else " as far as it can be seen"
        return Step(route.id, Status.OK, f"{where}: accepted{limit}")

    def as_json(self) -> dict[str, Any]:
        route, seen = self.subject.upstream.route, self.found.seen if self.found is not None else None
        return {
            "route": route.id,
            "upstream": self.subject.upstream.label,
            "credential": route.credential_id,
            "accepted": self.accepted,
            "proven": self.found is not None and self.found.proven,
            "requested": seen.certificate_requested if seen is not None else None,
            **(refused(self.refusal) if self.refusal is not None else {}),
            **(words(self.verdict) if self.verdict is not None else {}),
        }


async def survey(subjects: Sequence[Subject], teller: Teller) -> list[Attempt]:
    """An attempt for each: side by side, but one at a time with any one upstream.

    They are told in the order of the subjects, each as soon as those before it are done.
    """
    done: dict[int, Attempt] = {}
    places: dict[str, list[int]] = {}
    for number, subject in enumerate(subjects):
        places.setdefault(subject.upstream.label, []).append(number)
    room = asyncio.Semaphore(_AT_ONCE)
    told = 0

    async def call_each(numbers: list[int]) -> None:
        nonlocal told
        async with room:
            for number in numbers:
                done[number] = await _attempt(subjects[number])
                while told in done:
                    teller.found(done[told].step)
                    told += 1
                teller.doing(f"routes done: {len(done)} of {len(subjects)}")

    teller.doing(f"routes done: 0 of {len(subjects)}")
    async with asyncio.TaskGroup() as group:
        for numbers in places.values():
            group.create_task(call_each(numbers))
    return [done[number] for number in range(len(subjects))]


async def _attempt(subject: Subject) -> Attempt:
    try:
        found = await probe.as_a_call(subject.upstream)
    except Refusal as refusal:
        return Attempt(subject, None, None, refusal)
    credential = subject.upstream.route.credential
    return Attempt(subject, found, verdict_on(subject, found.outcome, found.seen, credential))
