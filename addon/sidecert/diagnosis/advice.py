"""The one next thing to do. Pure."""

from __future__ import annotations

from sidecert.diagnosis.diagnosis import Diagnosis, Trial
from sidecert.outcome import Outcome


def next_thing(diagnosis: Diagnosis) -> str:
    """One sentence or two: what to do now, whether the answer is yes or no."""
    if diagnosis.refusal is not None:
        return diagnosis.refusal.remedy
    assert diagnosis.verdict is not None
    subject, taken = diagnosis.subject, diagnosis.taken
    label = subject.upstream.label
    if diagnosis.open:
        return diagnosis.verdict.remedy
    if diagnosis.accepted:
        return _after_a_yes(diagnosis)
    if taken is not None and taken.credential is not None:
        others = ", ".join(trial.id for trial in diagnosis.trials if trial.accepted)
        return (
            f"{label} accepts {others}: set `credential: {taken.id}` on route {subject.route} if its calls "
            f"may be made as that. Otherwise: {_uncapitalised(diagnosis.verdict.remedy)}"
        )
    if diagnosis.verdict.outcome is Outcome.CLIENT_CERT_REQUIRED and not any(subject.wanted):
        known = subject.others or diagnosis.trials
        if subject.route is None or not known:
            return (
                "Put your certificate and its key under `credentials` of a config, then: sidecert doctor "
                f"{label} --credential ID."
            )
    return diagnosis.verdict.remedy


def _after_a_yes(diagnosis: Diagnosis) -> str:
    subject, taken = diagnosis.subject, diagnosis.taken
    label = subject.upstream.label
    if not diagnosis.asked and any(subject.wanted):
        return (
            f"Make a call. If it is refused, ask those who run {label} on which port they take client "
            "certificates (mostly 8443)."
        )
    if taken is not None and taken.credential is not None and not _is_routes_own(diagnosis, taken):
        place = f"route {subject.route}" if subject.route else f"a route to {label}"
        return f"Set `credential: {taken.id}` on {place}."
    return "Nothing: make the call. If it fails, its answer and sidecert's log say why."


def _uncapitalised(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _is_routes_own(diagnosis: Diagnosis, taken: Trial) -> bool:
    return diagnosis.subject.route is not None and (
        taken.id == diagnosis.subject.upstream.route.credential_id
    )
