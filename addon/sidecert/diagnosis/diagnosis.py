"""What an examination found out: its steps for people, and the facts behind them for scripts."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sidecert.config import TlsConfig
from sidecert.credentials import Credential
from sidecert.diagnosis.probe import Probe
from sidecert.diagnosis.subject import Subject
from sidecert.errors import Refusal
from sidecert.evidence import evidence
from sidecert.explain import Verdict, explain
from sidecert.faults import Fault, faults
from sidecert.outcome import Observation, Outcome, Stage, decide
from sidecert.presented import Presented
from sidecert.words import clean

VERSIONS = ("1.3", "1.2")
_SERVER_SIDE = (Outcome.SERVER_UNTRUSTED, Outcome.SERVER_EXPIRED, Outcome.SERVER_NAME_MISMATCH)


class Status(StrEnum):
    OK = "ok"
    FAILED = "failed"
    WARNING = "warning"
    INFO = "info"
    """Good to know, neither good nor bad."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a report, and what belongs to it. Printable characters only."""

    name: str
    status: Status
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """A credential that was shown to the upstream (None: that none was), and what came of it."""

    credential: Credential | None
    probe: Probe
    verdict: Verdict
    open: bool = False
    """The handshake passes as it does without a certificate, so that it says nothing of this one: the
    upstream's verdict comes in HTTP."""
    faults: tuple[Fault, ...] = ()
    """What surely speaks against the certificate, whatever the upstream says."""

    @property
    def id(self) -> str:
        return "none" if self.credential is None else self.credential.id

    @property
    def accepted(self) -> bool:
        return self.probe.outcome is Outcome.OK and not self.open

    @property
    def passes(self) -> bool:
        """Accepted, or nothing is known that an upstream with an open verdict could refuse it for."""
        return self.accepted or (self.open and not self.faults)

    @property
    def answered(self) -> bool:
        """Whether the upstream has said what it thinks of the credential."""
        return self.accepted or self.probe.outcome.blames_our_certificate

    @property
    def wrong(self) -> tuple[str, ...]:
        """The faults in words."""
        return tuple(f"it {fault.words}" for fault in self.faults)


@dataclass(slots=True)
class Diagnosis:
    """Filled in by an examination, in the order of the fields."""

    subject: Subject
    steps: list[Step] = field(default_factory=list)
    handshakes: int = 0
    """How many were made; an upstream may count those that it refused."""
    refusal: Refusal | None = None
    """Our own rules forbid the address."""
    looks: dict[str, Probe] = field(default_factory=dict)
    """For each TLS version a handshake that presented nothing and insisted on nothing."""
    base: Probe | None = None
    """The one of `looks` whose version a call would get; None where there is none that works."""
    trials: list[Trial] = field(default_factory=list)
    verdict: Verdict | None = None
    """The answer, for the handshake that a call would make."""
    decided_by: Trial | None = None
    """Whose verdict that is, where the handshake came so far."""
    next: str = ""

    @property
    def accepted(self) -> bool:
        return self.verdict is not None and self.verdict.outcome is Outcome.OK and not self.open

    @property
    def open(self) -> bool:
        """See `Trial.open`."""
        return self.decided_by is not None and self.decided_by.open

    @property
    def passes(self) -> bool:
        """Whether there is nothing to mend before a call."""
        return self.accepted or (self.decided_by is not None and self.decided_by.passes)

    @property
    def asked(self) -> bool:
        return self.base is not None and self.base.seen.certificate_requested

    @property
    def required(self) -> bool | None:
        """Whether the upstream refuses a handshake without a certificate; None where it did not say."""
        if self.base is None or not self.asked:
            return None
        if self.base.proven:
            return False
        return True if self.base.outcome.blames_our_certificate else None

    @property
    def taken(self) -> Trial | None:
        """The first of the trials that the upstream accepted, or against which nothing is known."""
        return next((trial for trial in self.trials if trial.passes), None)

    def explain(self, probe: Probe, credential: Credential | None) -> Verdict:
        """The verdict on one handshake, in the words that calls get too."""
        return verdict_on(self.subject, probe.outcome, probe.seen, credential)

    def distrust(self, probe: Probe) -> Verdict | None:
        """What a call would say of the upstream's own certificate; None where it is trusted, or unchecked."""
        if not probe.check_code or self.subject.trust == "insecure":
            return None
        seen = Observation(
            stage=Stage.HELLO_RECEIVED,
            tls_version=probe.seen.tls_version,
            certificate_requested=probe.seen.certificate_requested,
            verify_code=probe.check_code,
            verify_text=probe.check_text,
            presented=probe.chain,
        )
        return verdict_on(self.subject, decide(seen), seen, None)

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts."""
        subject, base = self.subject, self.base
        asks = base.seen if base is not None else None
        return {
            "upstream": subject.upstream.label,
            "route": subject.route,
            "server_name": subject.upstream.server_name,
            "trust": subject.trust_label,
            "accepted": self.accepted,
            "open": self.open,
            "wrong": list(self.decided_by.wrong) if self.decided_by is not None else [],
            **(refused(self.refusal) if self.refusal is not None else {}),
            **(words(self.verdict) if self.verdict is not None else {}),
            "next": self.next,
            "handshakes": self.handshakes,
            "addresses": list(next(iter(self.looks.values())).seen.addresses if self.looks else ()),
            "tls": [_version(version, probe) for version, probe in self.looks.items()],
            "chain": [_certificate(each) for each in base.chain] if base is not None else [],
            "trusted": self._trusted(),
            "certificate": {
                "requested": asks.certificate_requested if asks is not None else None,
                "required": self.required,
                "acceptable_cas": [clean(name) for name in asks.acceptable_cas] if asks is not None else [],
            },
            "credentials": [_trial(trial) for trial in self.trials],
            "steps": [asdict(step) for step in self.steps],
        }

    def _trusted(self) -> bool | None:
        if self.base is None or self.subject.trust == "insecure":
            return None
        return self.verdict is None or self.verdict.outcome not in _SERVER_SIDE


def verdict_on(
    subject: Subject, outcome: Outcome, seen: Observation, credential: Credential | None
) -> Verdict:
    """A handshake with the subject in the words that calls get too."""
    return explain(
        outcome,
        seen,
        upstream=subject.upstream.label,
        server_name=subject.upstream.server_name,
        credential="none" if credential is None else credential.id,
        certificate=None if credential is None else credential.own,
        now=time.time(),
    )


def judge(subject: Subject, without: Probe | None, found: Probe, credential: Credential | None) -> Trial:
    """What `found` says of `credential`, where a handshake `without` a certificate came to that.

    Where that one passes too, acceptance proves nothing, unless the upstream said of ours only that it is
    fine.
    """
    own, now = None if credential is None else credential.own, time.time()
    wrong = faults(found.seen, own, now)
    proves_nothing = (
        without is not None
        and without.outcome is Outcome.OK
        and found.outcome is Outcome.OK
        and found.seen.certificate_requested
        and (without.proven or not found.proven)
    )
    if not proves_nothing:
        return Trial(
            credential, found, verdict_on(subject, found.outcome, found.seen, credential), False, wrong
        )
    label = subject.upstream.label
    of = "a call without one" if credential is None else f"{credential.id} ({credential.subject})"
    said = " ".join(f"It {fault.words}." for fault in wrong)
    call = (
        "Make a call and look at the status of its answer: 400, 401 or 403 may be this upstream's verdict on "
        "the certificate, in its own words."
    )
    verdict = Verdict(
        Outcome.OK,
        "The handshake passes without a certificate" if credential is None else _OPEN,
        f"{label} asks for a certificate, but lets any handshake pass: its verdict on {of} comes in HTTP, in "
        f"the answer to a call (nginx: 400).{' ' if said else ''}{said}",
        evidence(found.seen, own, now),
        wrong[0].remedy if wrong else call,
        certain=False,
    )
    return Trial(credential, found, verdict, True, wrong)


_OPEN = "The handshake passes, as it does without a certificate"


def allows(tls: TlsConfig, version: str) -> bool:
    return tls.min <= version <= tls.max


def iso(moment: float) -> str:
    """Epoch seconds as ISO 8601 in UTC; a certificate may hold any year that there is."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def words(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome.value,
        "title": verdict.title,
        "cause": verdict.cause,
        "evidence": list(verdict.evidence),
        "remedy": verdict.remedy,
        "certain": verdict.certain,
    }


def refused(refusal: Refusal) -> dict[str, Any]:
    told = {"outcome": refusal.outcome, "title": refusal.title, "cause": refusal.detail}
    return told | {"evidence": list(refusal.evidence), "remedy": refusal.remedy, "certain": True}


def _version(version: str, probe: Probe) -> dict[str, Any]:
    return {
        "version": version,
        "agreed": probe.agreed,
        "outcome": probe.outcome.value,
        "cipher": probe.cipher or None,
        "address": probe.address or None,
        "connect_seconds": round(probe.connect_seconds, 6),
        "handshake_seconds": round(probe.handshake_seconds, 6),
    }


def _certificate(each: Presented) -> dict[str, Any]:
    return asdict(each) | {
        "names": list(each.names),
        "not_before": iso(each.not_before),
        "not_after": iso(each.not_after),
    }


def _trial(trial: Trial) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": trial.id, "accepted": trial.accepted, "proven": trial.probe.proven}
    shown |= {"open": trial.open, "wrong": list(trial.wrong)}
    return shown | {"chains_to": [clean(name) for name in trial.probe.seen.chains_to]} | words(trial.verdict)
