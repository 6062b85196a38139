"""What is made of the handshakes of an examination: steps, the answer and the one next thing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecert.diagnosis import Diagnosis, Status, Step, Subject, examination, examine, of_route, steps
from sidecert.diagnosis.probe import Probe
from sidecert.errors import Reason, Refusal
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.presented import Presented
from support.certs import Pki
from support.inside import generation
from support.peers import Peer
from support.sidecar import config, route

NOW = 1_800_000_000.0
DAY = 86400.0


class Quiet:
    """Listens to what is told while an examination goes on."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.work: list[str] = []

    def doing(self, what: str) -> None:
        self.work.append(what)

    def found(self, step: Step) -> None:
        self.steps.append(step)


@pytest.fixture
def subject(pki: Pki, tmp_path: Path) -> Subject:
    """A route to nowhere, whose handshakes are those of a test."""
    loaded = generation(
        tmp_path, config([route("orders", Peer("none", 8443), trust=pki.trust)], pki.credentials)
    )
    return of_route(loaded, "orders")


def certificate(*, starts: float = -DAY, ends: float = DAY) -> Presented:
    return Presented("CN=up", "CN=ca", ("up.test",), NOW + starts, NOW + ends, "00")


def probe(**seen: Any) -> Probe:
    """A handshake with a TLS 1.3 upstream that asks for a certificate and accepts, unless told otherwise."""
    facts: dict[str, Any] = {
        "stage": Stage.PROVEN,
        "addresses": ("127.0.0.1",),
        "tls_version": "TLSv1.3",
        "certificate_requested": True,
    } | seen
    observed = Observation(**facts)
    return Probe(observed, decide(observed), "127.0.0.1", 0.001, 0.002, "AES", (certificate(),), 0, "ok")


def refused(alert: int, **seen: Any) -> Probe:
    return probe(**{"stage": Stage.FINISHED_SENT, "ending": Ending.TLS, "alert_received": alert} | seen)


NO_TLS13 = refused(70, stage=Stage.HELLO_SENT, tls_version="", certificate_requested=False)


def run(
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    looks: Mapping[str, Probe | Refusal],
    shown: Mapping[str, Probe],
) -> tuple[Diagnosis, list[str]]:
    """An examination in which the handshakes go as told; also the credentials that were shown."""
    tried: list[str] = []

    async def look(upstream: Any, trust: Any, tls: Any) -> Probe:
        assert tls.min == tls.max
        found = looks[tls.min]
        if isinstance(found, Refusal):
            raise found
        return found

    async def present(upstream: Any, trust: Any, tls: Any, credential: Any) -> Probe:
        tried.append(credential.id)
        return shown[credential.id]

    monkeypatch.setattr(examination.probe, "look", look)
    monkeypatch.setattr(examination.probe, "present", present)
    quiet = Quiet()
    diagnosis = asyncio.run(examine(subject, quiet, lambda: NOW))
    assert quiet.steps == diagnosis.steps
    return diagnosis, tried


def step(diagnosis: Diagnosis, name: str) -> Step:
    (found,) = [each for each in diagnosis.steps if each.name == name]
    return found


DEMANDS = {"1.3": refused(116), "1.2": refused(40, tls_version="TLSv1.2")}


def test_others_are_tried_only_when_the_own_one_is_refused(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each handshake under a wrong certificate is one that a gateway may count."""
    good = probe(certificate_sent=True)
    diagnosis, tried = run(subject, monkeypatch, DEMANDS, {"alice": good})
    assert (diagnosis.accepted, diagnosis.required, tried, diagnosis.handshakes) == (True, True, ["alice"], 3)
    bad = refused(48, certificate_sent=True)
    diagnosis, tried = run(subject, monkeypatch, DEMANDS, {"alice": bad, "bob": bad, "stranger": good})
    assert tried == ["alice", "bob", "stranger"]
    assert not diagnosis.accepted
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.outcome is Outcome.CLIENT_CERT_UNKNOWN_CA
    assert diagnosis.next.startswith(
        "127.0.0.1:8443 accepts stranger: set `credential: stranger` on route orders"
    )


@pytest.mark.parametrize(
    "gone",
    [
        Observation(stage=Stage.CONNECTING, ending=Ending.REFUSED),
        Observation(stage=Stage.HELLO_SENT, ending=Ending.TIMEOUT, timeout=5.0),
        Observation(stage=Stage.HELLO_SENT, ending=Ending.RESET),
    ],
)
def test_nothing_more_is_tried_when_the_upstream_answers_no_longer(
    gone: Observation, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have locked us out; that is the answer then."""
    lost = replace(probe(), seen=gone, outcome=decide(gone))
    diagnosis, tried = run(subject, monkeypatch, DEMANDS, {"alice": lost})
    assert tried == ["alice"]
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.outcome is decide(gone)
    diagnosis, tried = run(
        subject, monkeypatch, DEMANDS, {"alice": refused(48, certificate_sent=True), "bob": lost}
    )
    assert tried == ["alice", "bob"]
    assert diagnosis.verdict is not None
    assert diagnosis.verdict.outcome is Outcome.CLIENT_CERT_UNKNOWN_CA


def test_upstream_that_is_not_proven_sees_no_certificate(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever OpenSSL has against its chain."""
    for code in (10, 18, 20, 62, 64, 26):
        looks = {"1.3": replace(refused(116), check_code=code, check_text="bad"), "1.2": NO_TLS13}
        diagnosis, tried = run(subject, monkeypatch, looks, {})
        assert tried == []
        assert diagnosis.verdict is not None
        assert diagnosis.verdict.outcome.startswith("server_")
        assert step(diagnosis, "its chain").status is Status.FAILED
        assert step(diagnosis, "as any").status is Status.WARNING
        assert diagnosis.next == diagnosis.verdict.remedy


def test_a_route_that_checks_nothing_is_not_told_about_the_chain(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding is the setting itself."""
    looks = {"1.3": replace(refused(116), check_code=20), "1.2": NO_TLS13}
    careless = replace(subject, trust="insecure", others=())
    diagnosis, tried = run(careless, monkeypatch, looks, {"alice": probe(certificate_sent=True)})
    assert (diagnosis.accepted, tried) == (True, ["alice"])
    assert step(diagnosis, "its chain").text == "not checked: the route's trust is `insecure`"
    assert diagnosis.as_json()["trusted"] is None


def test_versions_that_differ_in_what_they_ask_for_are_told(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some gateways ask under TLS 1.2 only. A call gets the newer version, so that one counts."""
    looks = {
        "1.3": probe(certificate_requested=False),
        "1.2": refused(40, tls_version="TLSv1.2"),
    }
    diagnosis, tried = run(subject, monkeypatch, looks, {})
    assert (diagnosis.accepted, tried, diagnosis.required) == (True, [], None)
    asks = step(diagnosis, "it asks")
    assert (asks.status, asks.details[0]) == (Status.WARNING, "under TLS 1.2 it does ask for one")
    looks = {"1.3": refused(116), "1.2": probe(certificate_requested=False, tls_version="TLSv1.2")}
    diagnosis, _ = run(subject, monkeypatch, looks, {"alice": probe(certificate_sent=True)})
    assert step(diagnosis, "it asks").details == ("under TLS 1.2 it does not ask for one",)


def test_of_several_failures_the_one_that_says_most_is_the_answer(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No TLS 1.3, and with TLS 1.2 no shared cipher: that is what calls get."""
    no_cipher = refused(40, stage=Stage.HELLO_SENT, tls_version="", certificate_requested=False)
    for first, second in ((NO_TLS13, no_cipher), (no_cipher, NO_TLS13)):
        diagnosis, _ = run(subject, monkeypatch, {"1.3": first, "1.2": second}, {})
        assert diagnosis.verdict is not None
        assert diagnosis.verdict.outcome is Outcome.NO_SHARED_PARAMETERS
        assert {each.status for each in diagnosis.steps if each.name.startswith("TLS")} == {Status.FAILED}


def test_handshake_without_a_certificate_that_comes_to_nothing_is_no_refusal(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence is told as silence, and the credential is tried."""
    silent = probe(stage=Stage.FINISHED_SENT, ending=Ending.TIMEOUT, timeout=5.0, tls_version="TLSv1.2")
    diagnosis, tried = run(
        subject, monkeypatch, {"1.3": NO_TLS13, "1.2": silent}, {"alice": probe(certificate_sent=True)}
    )
    assert (diagnosis.accepted, diagnosis.required, tried) == (True, None, ["alice"])
    assert step(diagnosis, "without").text.startswith(
        "a handshake without one came to nothing: nothing for 5 s"
    )
    waits = replace(probe(stage=Stage.FINISHED_SENT), outcome=Outcome.OK)
    diagnosis, _ = run(
        subject, monkeypatch, {"1.3": waits, "1.2": NO_TLS13}, {"alice": probe(certificate_sent=True)}
    )
    assert diagnosis.required is None
    assert step(diagnosis, "without").text.startswith("it said nothing within 2 s to a handshake without one")


def test_address_that_our_rules_forbid_is_the_answer(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As calls have it: the refusal, and what would allow it."""
    refusal = Refusal.of(Reason.PRIVATE_ADDRESS, "it is private", "set `private: true`")
    diagnosis, _ = run(subject, monkeypatch, {"1.3": refusal}, {})
    assert not diagnosis.accepted
    told = diagnosis.as_json()
    assert (told["outcome"], told["cause"], told["next"]) == (
        *("private_address", "it is private", "set `private: true`"),
    )


@pytest.mark.parametrize(
    ("starts", "ends", "status", "words"),
    [
        (-DAY, DAY, Status.OK, "within the dates of its chain"),
        (DAY, 2 * DAY, Status.WARNING, "which is before 2027-01-16 08:00 UTC"),
        (-2 * DAY, -DAY, Status.WARNING, "which is after 2027-01-14 08:00 UTC"),
    ],
)
def test_clock_is_compared_with_the_dates_of_the_chain(
    starts: float, ends: float, status: Status, words: str, subject: Subject
) -> None:
    """All that a handshake tells of the time."""
    diagnosis = Diagnosis(subject, base=replace(probe(), chain=(certificate(starts=starts, ends=ends),)))
    told = steps.clock(diagnosis, NOW)
    assert told.status is status
    assert told.text.startswith("2027-01-15 08:00 UTC by this machine, ")
    assert words in told.text


def test_clock_of_the_upstream_is_doubted_where_it_finds_a_valid_certificate_expired(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two is wrong."""
    diagnosis, _ = run(
        replace(subject, others=()), monkeypatch, DEMANDS, {"alice": refused(45, certificate_sent=True)}
    )
    own = subject.wanted[0]
    assert own is not None
    chain = (replace(certificate(), not_before=0.0, not_after=own.not_after + DAY),)
    diagnosis.base = replace(probe(), chain=chain)
    told = steps.clock(diagnosis, own.not_after - DAY)
    assert told.status is Status.WARNING
    assert "by which alice is valid until" in told.text
    assert steps.clock(diagnosis, own.not_after + DAY / 2).status is Status.OK


def test_no_step_holds_what_cannot_be_printed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of CAs come from the upstream."""
    hostile = ("CN=\x1b[31mred\n✓ as alice  accepted", "C" * 9999)
    looks = {"1.3": refused(116, acceptable_cas=hostile), "1.2": NO_TLS13}
    diagnosis, _ = run(subject, monkeypatch, looks, {"alice": probe(certificate_sent=True)})
    for each in diagnosis.steps:
        for text in (each.name, each.text, *each.details):
            assert text.isprintable()
            assert len(text) < 1000
