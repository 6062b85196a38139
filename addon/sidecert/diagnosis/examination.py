"""The steps of an examination in their order, one handshake after the other. No request is ever sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sidecert.config import TlsConfig
from sidecert.credentials import Credential
from sidecert.diagnosis import probe, steps
from sidecert.diagnosis.advice import next_thing
from sidecert.diagnosis.diagnosis import VERSIONS, Diagnosis, Step, Trial, allows, judge
from sidecert.diagnosis.probe import Probe
from sidecert.diagnosis.subject import Subject
from sidecert.errors import Refusal
from sidecert.outcome import Outcome


class Teller(Protocol):
    """Whoever wants to know while it goes on."""

    def doing(self, what: str) -> None: ...
    def found(self, step: Step) -> None: ...


async def examine(subject: Subject, teller: Teller, clock: Callable[[], float] = time.time) -> Diagnosis:
    """Everything that can be known of an upstream without a request, and its verdict on the credentials.

    First it looks, presenting nothing. Only an upstream that has proven who it is sees a certificate.
    """
    examination = _Examination(subject, teller, clock)
    await examination.run()
    return examination.diagnosis


class _Examination:
    def __init__(self, subject: Subject, teller: Teller, clock: Callable[[], float]) -> None:
        self.diagnosis = Diagnosis(subject)
        self._teller = teller
        self._clock = clock
        self._upstream = subject.upstream
        self._tls = subject.upstream.route.config.upstream.tls

    async def run(self) -> None:
        diagnosis = self.diagnosis
        try:
            reached = await self._look()
        except Refusal as refusal:
            diagnosis.refusal = refusal
        else:
            if reached:
                await self._judge()
                self._add(steps.clock(diagnosis, self._clock()))
        diagnosis.next = next_thing(diagnosis)

    async def _look(self) -> bool:
        """A handshake for each version; whether the upstream was reached at all."""
        diagnosis = self.diagnosis
        for number in VERSIONS:
            self._teller.doing(f"TLS {number} with {self._upstream.label}")
            found = await probe.look(
                self._upstream, diagnosis.subject.trust, TlsConfig(min=number, max=number)
            )
            self._count(found)
            diagnosis.looks[number] = found
            if len(diagnosis.looks) == 1:
                self._add(steps.name_lookup(diagnosis, found))
                if found.seen.addresses:
                    self._add(steps.connection(diagnosis, found))
            if not found.connected or found.outcome is Outcome.NOT_TLS:
                break  # the other version would fare no better
        working = [
            found for number, found in diagnosis.looks.items() if found.agreed and allows(self._tls, number)
        ]
        diagnosis.base = working[0] if working else None  # the newest, as calls get it
        for number, found in diagnosis.looks.items():
            if found.connected:
                self._add(steps.version(diagnosis, number, found))
        if diagnosis.base is None:
            tried = [found for number, found in diagnosis.looks.items() if allows(self._tls, number)]
            diagnosis.verdict = diagnosis.explain(max(tried or diagnosis.looks.values(), key=_telling), None)
        return any(found.connected for found in diagnosis.looks.values())

    async def _judge(self) -> None:
        """What the upstream is, and what it thinks of us; where a version works."""
        diagnosis, base = self.diagnosis, self.diagnosis.base
        if base is None:
            return
        distrust = diagnosis.distrust(base)
        self._add(steps.upstream_certificate(diagnosis, base, distrust, self._clock()))
        for step in steps.request(diagnosis, base):
            self._add(step)
        if distrust is not None:
            diagnosis.verdict = distrust
        elif diagnosis.asked and any((*diagnosis.subject.wanted, *diagnosis.subject.others)):
            await self._try_all(base)
            return
        else:
            trial = judge(diagnosis.subject, base, base, None)
            diagnosis.decided_by, diagnosis.verdict = trial, trial.verdict
        reason = steps.not_tried(diagnosis, distrust is not None)
        if reason is not None:
            self._add(reason)

    async def _try_all(self, base: Probe) -> None:
        diagnosis = self.diagnosis
        await self._try_each(diagnosis.subject.wanted, base)
        diagnosis.decided_by = decisive = diagnosis.taken or diagnosis.trials[0]
        diagnosis.verdict = decisive.verdict
        if diagnosis.taken is None and diagnosis.trials[-1].answered:
            await self._try_each(diagnosis.subject.others, base)

    async def _try_each(self, credentials: Iterable[Credential | None], base: Probe) -> None:
        """Until the upstream gives no answer any more: some lock out who tries too often.

        One that lets any handshake pass has still said nothing of the next one, which may have no faults.
        """
        for each in credentials:
            trial = await self._try(each, base)
            if not trial.answered and not trial.open:
                break

    async def _try(self, credential: Credential | None, base: Probe) -> Trial:
        """One credential, or none, which the base has tried."""
        diagnosis = self.diagnosis
        if credential is None:
            found = base
        else:
            self._teller.doing(f"{self._upstream.label} as {credential.id}")
            found = await probe.present(self._upstream, diagnosis.subject.trust, self._tls, credential)
            self._count(found)
        trial = judge(diagnosis.subject, base, found, credential)
        diagnosis.trials.append(trial)
        if credential is not None:
            self._add(steps.trial(trial))
        return trial

    def _count(self, found: Probe) -> None:
        self.diagnosis.handshakes += found.connected

    def _add(self, step: Step) -> None:
        self.diagnosis.steps.append(step)
        self._teller.found(step)


def _telling(found: Probe) -> tuple[int, bool]:
    """Which of several failures says most: the one that came further, then any but a wrong version."""
    return found.seen.stage, found.outcome is not Outcome.PROTOCOL_MISMATCH
