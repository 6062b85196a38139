"""All routes in short: for each the handshake that a call would make, and where it passes one without a
certificate, to see whether that means anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecert.diagnosis import probe
from sidecert.diagnosis.diagnosis import Status, Step, Trial, judge, refused, words
from sidecert.diagnosis.examination import Teller
from sidecert.diagnosis.probe import Probe
from sidecert.diagnosis.steps import OPEN
from sidecert.diagnosis.subject import Subject
from sidecert.errors import Refusal
from sidecert.outcome import Outcome

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """One route's handshake, or the rule of ours that forbids it."""

    subject: Subject
    trial: Trial | None
    without: Probe | None = None
    """The same without a certificate, where ours was taken: whether that means anything."""
    refusal: Refusal | None = None

    @property
    def accepted(self) -> bool:
        return self.trial is not None and self.trial.accepted

    @property
    def passes(self) -> bool:
        return self.trial is not None and self.trial.passes

    @property
    def open(self) -> bool:
        return self.trial is not None and self.trial.open

    @property
    def handshakes(self) -> int:
        made = (self.trial.probe if self.trial is not None else None, self.without)
        return sum(each.connected for each in made if each is not None)

    @property
    def step(self) -> Step:
        """It in one line, and what is wrong with the certificate."""
        route, trial = self.subject.upstream.route, self.trial
        where = f"{self.subject.upstream.label} as {route.credential_id}"
        if self.refusal is not None:
            return Step(route.id, Status.FAILED, f"{where}: {self.refusal.title} ({self.refusal.outcome})")
        assert trial is not None
        if trial.open:
            status = Status.WARNING if trial.passes else Status.FAILED
            return Step(route.id, status, f"{where}: {OPEN}", trial.wrong)
        if not trial.accepted:
            words = f"{where}: {trial.verdict.title} ({trial.verdict.outcome})"
            return Step(route.id, Status.FAILED, words, trial.wrong)
        if route.credential is not None and not trial.probe.seen.certificate_requested:
            return Step(route.id, Status.WARNING, f"{where}: accepted, but not asked for its certificate")
        limit = "" if trial.probe.proven else " as far as it can be seen"
        return Step(
            route.id, Status.WARNING if trial.wrong else Status.OK, f"{where}: accepted{limit}", trial.wrong
        )

    def as_json(self) -> dict[str, Any]:
        route, trial = self.subject.upstream.route, self.trial
        return {
            "route": route.id,
            "upstream": self.subject.upstream.label,
            "credential": route.credential_id,
            "accepted": self.accepted,
            "open": self.open,
            "wrong": list(trial.wrong) if trial is not None else [],
            "proven": trial is not None and trial.probe.proven,
            "requested": trial.probe.seen.certificate_requested if trial is not None else None,
            **(refused(self.refusal) if self.refusal is not None else {}),
            **(words(trial.verdict) if trial is not None else {}),
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
    upstream = subject.upstream
    credential = upstream.route.credential
    try:
        found = await probe.as_a_call(upstream)
        without = None
        if found.outcome is Outcome.OK and found.seen.certificate_requested:
            tls = upstream.route.config.upstream.tls
            without = found if credential is None else await probe.look(upstream, subject.trust, tls)
    except Refusal as refusal:
        return Attempt(subject, None, None, refusal)
    trial = judge(subject, without, found, credential)
    return Attempt(subject, trial, None if without is found else without)
