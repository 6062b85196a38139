"""What a caller is told of a call that came to nothing: the status, and whether it can have done anything."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sidecert import refusals
from sidecert.circuit import CircuitOpen
from sidecert.config import TimeoutsConfig
from sidecert.errors import BadAnswer, Reason, Refusal
from sidecert.outcome import Ending, Observation, Outcome, Stage
from support.own import fact, own

TIMEOUTS = TimeoutsConfig(response=7.0, stall=2.5)
FAILED = [outcome for outcome in Outcome if outcome is not Outcome.OK]


def upstream(credential: str | None = "alice") -> Any:
    """As much of an upstream as the words need."""
    presents = None if credential is None else own(fact(f"CN={credential}"))
    config = SimpleNamespace(upstream=SimpleNamespace(timeouts=TIMEOUTS))
    route = SimpleNamespace(own=presents, credential_id=credential or "none", config=config)
    return SimpleNamespace(label="api.test:8443", host="api.test", server_name="tls.test", route=route)


UPSTREAM = upstream()
SEEN = Observation(
    stage=Stage.PROVEN, tls_version="TLSv1.3", certificate_requested=True, certificate_sent=True
)
MAY_HAVE_BEEN_PROCESSED = {
    "silent": refusals.upstream_silent(UPSTREAM, SEEN),
    "stuck": refusals.upstream_stuck(UPSTREAM, SEEN),
    "closed": refusals.upstream_closed(UPSTREAM, SEEN, sent=True),
    "malformed": refusals.bad_answer(UPSTREAM, SEEN, BadAnswer("it has two lengths")),
    "body stalled": refusals.body_stalled(TIMEOUTS, sent=True),
    "body malformed": refusals.body_malformed(ValueError("a chunk has no length"), sent=True),
    "internal": refusals.internal(sent=True),
}
NOT_SENT = {
    "closed": refusals.upstream_closed(UPSTREAM, SEEN, sent=False),
    "body stalled": refusals.body_stalled(TIMEOUTS, sent=False),
    "body malformed": refusals.body_malformed(ValueError("a chunk has no length"), sent=False),
    "internal": refusals.internal(sent=False),
}


def words(refusal: Refusal) -> str:
    return " ".join((refusal.detail, refusal.remedy, *refusal.evidence))


@pytest.mark.parametrize("outcome", FAILED)
def test_failed_handshake_has_its_outcome_as_word_and_a_gateways_status(outcome: Outcome) -> None:
    """504 where a limit on connecting or on the handshake passed, 502 for all else; never a retry-after."""
    refusal = refusals.handshake_failed(Observation(timeout=5.0), outcome, upstream())
    late = outcome in (Outcome.CONNECT_TIMEOUT, Outcome.HANDSHAKE_TIMEOUT)
    assert refusal.status == (504 if late else 502)
    assert refusal.outcome == outcome.value
    assert refusal.title
    assert refusal.detail
    assert refusal.remedy
    assert refusal.retry_after is None


@pytest.mark.parametrize("outcome", FAILED)
def test_failed_handshake_never_suggests_that_the_request_was_processed(outcome: Outcome) -> None:
    """There was no connection for it."""
    refusal = refusals.handshake_failed(Observation(timeout=5.0), outcome, upstream())
    assert "processed" not in words(refusal)
    assert "No byte of the request was sent." in refusal.detail
    assert "bytes of the request" not in words(refusal)


def late(alert: int | None) -> Observation:
    """A TLS 1.3 upstream without tickets: the request is on its way when the end comes."""
    return Observation(
        stage=Stage.FINISHED_SENT,
        ending=Ending.EOF,
        tls_version="TLSv1.3",
        certificate_requested=True,
        certificate_sent=True,
        alert_received=alert,
        request_sent=True,
    )


def test_refusal_by_an_alert_excludes_that_bytes_which_had_left_were_processed() -> None:
    """The upstream had not accepted the certificate when they came."""
    refusal = refusals.handshake_failed(late(48), Outcome.CLIENT_CERT_UNKNOWN_CA, upstream())
    assert "bytes of the request had been sent by then" in refusal.evidence
    assert "were not processed" in refusal.detail


@pytest.mark.parametrize(
    ("alert", "outcome"),
    [(None, Outcome.CLIENT_CERT_REJECTED), (80, Outcome.TLS_ERROR), (None, Outcome.UNDECIDED)],
)
def test_end_without_a_sure_refusal_may_follow_the_processing(alert: int | None, outcome: Outcome) -> None:
    """A close with no alert, an error of the upstream's own: it had the request by then."""
    refusal = refusals.handshake_failed(late(alert), outcome, upstream())
    assert "the request may have been processed" in refusal.detail


def test_failure_of_a_second_attempt_tells_of_the_first() -> None:
    """A GET went out on an idle connection that ended, and no new one could be opened."""
    refusal = refusals.handshake_failed(
        Observation(timeout=5.0), Outcome.CONNECT_REFUSED, upstream(), sent_before=True
    )
    assert "the request may have been processed" in refusal.detail
    assert "No byte" not in refusal.detail


def test_failed_handshake_names_upstream_credential_and_certificate() -> None:
    """What the caller's operator must look at."""
    seen = Observation(stage=Stage.FINISHED_SENT, certificate_requested=True, certificate_sent=True)
    said = words(refusals.handshake_failed(seen, Outcome.CLIENT_CERT_UNKNOWN_CA, upstream()))
    assert "api.test:8443" in said
    assert "credential alice (CN=alice)" in said
    mismatch = refusals.handshake_failed(seen, Outcome.SERVER_NAME_MISMATCH, upstream())
    assert "tls.test" in mismatch.detail


def test_failed_handshake_without_a_credential_blames_no_certificate() -> None:
    """A route whose credential is `none`."""
    seen = Observation(stage=Stage.FINISHED_SENT, certificate_requested=True)
    refusal = refusals.handshake_failed(seen, Outcome.CLIENT_CERT_REQUIRED, upstream(None))
    assert "its credential is `none`" in refusal.detail


@pytest.mark.parametrize("name", MAY_HAVE_BEEN_PROCESSED)
def test_end_after_the_request_was_sent_says_that_it_may_have_been_processed(name: str) -> None:
    """Nobody may repeat such a call without a thought."""
    said = words(MAY_HAVE_BEEN_PROCESSED[name])
    assert "may have processed" in said or "may have been processed" in said


@pytest.mark.parametrize("name", NOT_SENT)
def test_end_before_the_request_was_sent_says_so(name: str) -> None:
    """Such a call can be repeated without a thought."""
    assert "No byte of the request was sent" in NOT_SENT[name].detail
    assert "processed" not in words(NOT_SENT[name])


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (MAY_HAVE_BEEN_PROCESSED["silent"], Reason.RESPONSE_TIMEOUT),
        (MAY_HAVE_BEEN_PROCESSED["stuck"], Reason.RESPONSE_TIMEOUT),
        (MAY_HAVE_BEEN_PROCESSED["closed"], Reason.UPSTREAM_CLOSED),
        (MAY_HAVE_BEEN_PROCESSED["malformed"], Reason.UPSTREAM_BAD_ANSWER),
        (MAY_HAVE_BEEN_PROCESSED["body stalled"], Reason.BAD_REQUEST),
        (MAY_HAVE_BEEN_PROCESSED["body malformed"], Reason.BAD_REQUEST),
        (MAY_HAVE_BEEN_PROCESSED["internal"], Reason.INTERNAL),
    ],
    ids=["silent", "stuck", "closed", "malformed", "body stalled", "body malformed", "internal"],
)
def test_each_refusal_has_the_status_and_word_of_its_reason(refusal: Refusal, reason: Reason) -> None:
    """As the interface lists them."""
    assert (refusal.status, refusal.outcome, refusal.title) == (reason.status, reason.word, reason.title)
    assert refusal.detail


def test_limit_that_passed_is_named_with_its_seconds() -> None:
    """`response` for an upstream that is silent, `stall` for a body that stops on either side."""
    assert "within 7 s" in MAY_HAVE_BEEN_PROCESSED["silent"].detail
    assert "for 2.5 s" in MAY_HAVE_BEEN_PROCESSED["stuck"].detail
    assert "for 2.5 s" in MAY_HAVE_BEEN_PROCESSED["body stalled"].detail


def test_cause_is_passed_on_in_its_own_words() -> None:
    """What the parser found, on either side."""
    assert "it has two lengths" in MAY_HAVE_BEEN_PROCESSED["malformed"].detail
    assert "a chunk has no length" in MAY_HAVE_BEEN_PROCESSED["body malformed"].detail


@pytest.mark.parametrize("refusal", [*MAY_HAVE_BEEN_PROCESSED.values(), *NOT_SENT.values()])
def test_words_are_sentences(refusal: Refusal) -> None:
    """They are read beside those of the outcomes."""
    for text in (refusal.detail, refusal.remedy):
        assert text.endswith(".")
        assert not text.endswith("..")
        assert text[0].isupper() or text.startswith("api.test:8443 ")


def test_a_late_answer_names_the_upstream_the_setting_and_what_was_seen() -> None:
    """The full key, so that it can be searched for in the config's reference."""
    refusal = refusals.upstream_silent(UPSTREAM, SEEN)
    assert "api.test:8443" in refusal.detail
    assert "`upstream.timeouts.response`" in refusal.remedy
    assert "TLSv1.3 was agreed on" in refusal.evidence
    assert refusal.evidence[-1] == "no byte of an answer came for 7 s"
    assert "`upstream.timeouts.stall`" in refusals.upstream_stuck(UPSTREAM, None).remedy
    assert refusals.upstream_stuck(UPSTREAM, None).evidence


@pytest.mark.parametrize("outcome", FAILED)
def test_open_circuit_tells_the_last_verdict_as_its_own_call_was_told(outcome: Outcome) -> None:
    """Cause, evidence and remedy of the last attempt, and that nothing of this call was sent."""
    seen = late(48)  # with a part of the request sent, of the call that made the attempt
    told = refusals.handshake_failed(replace(seen, request_sent=False), outcome, UPSTREAM)
    refusal = refusals.circuit_open(CircuitOpen(seen, outcome, 7, 2.04, 7.96), UPSTREAM)
    assert (refusal.status, refusal.outcome, refusal.retry_after) == (503, "circuit_open", 8)
    assert f"{outcome}: {told.detail.partition(' No byte')[0]}" in refusal.detail
    assert "the last 7 attempts" in refusal.detail
    assert "No byte of the request was sent." in refusal.detail
    assert "bytes of the request" not in " ".join(refusal.evidence)
    assert refusal.remedy.startswith(told.remedy)
    assert f"the last 7 attempts failed, the last of them 2.0 s ago with {outcome}" in refusal.evidence
    assert refusal.evidence[-1] == "the first call in 8.0 s tries again"


def test_open_circuit_that_is_tried_says_so() -> None:
    """By the next second it is mostly decided."""
    error = CircuitOpen(Observation(), Outcome.CONNECT_REFUSED, 1, 10, 0)
    refusal = refusals.circuit_open(error, UPSTREAM)
    assert refusal.retry_after == 1
    assert refusal.evidence[-1] == "another call is trying just now"
    assert "the last attempt to open one" in refusal.detail


def test_open_circuit_for_a_call_that_went_out_before_says_so() -> None:
    """It was to be sent again, and its first connection had ended."""
    error = CircuitOpen(Observation(), Outcome.CONNECT_REFUSED, 5, 1, 9)
    refusal = refusals.circuit_open(error, UPSTREAM, sent_before=True)
    assert "may have been processed" in refusal.detail
    assert "No byte" not in refusal.detail
