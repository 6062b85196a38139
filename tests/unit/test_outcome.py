"""The rule that turns what was seen of an attempt into one outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.outcome import Ending, Observation, Outcome, Stage, decide, is_certain, is_not_tls

HELLO = b"\x16\x03\x03\x00z\x02\x00\x00v\x03\x03"


def seen(stage: Stage, ending: Ending = Ending.TLS, **more: object) -> Observation:
    return Observation(stage=stage, ending=ending, **more)  # type: ignore[arg-type]


def refused(alert: int, *, sent: bool = True, asked: bool = True) -> Observation:
    return seen(
        Stage.FINISHED_SENT,
        alert_received=alert,
        certificate_requested=asked,
        certificate_sent=sent,
        first_bytes=HELLO,
    )


@pytest.mark.parametrize(
    ("observation", "outcome"),
    [
        (seen(Stage.PROVEN, Ending.NONE), Outcome.OK),
        (seen(Stage.PROVEN, Ending.RESET), Outcome.OK),
        (seen(Stage.RESOLVING, Ending.FAILED), Outcome.DNS_FAILED),
        (seen(Stage.RESOLVING, Ending.TIMEOUT), Outcome.DNS_FAILED),
        (seen(Stage.RESOLVING, Ending.ABANDONED), Outcome.UNDECIDED),
        (seen(Stage.CONNECTING, Ending.REFUSED), Outcome.CONNECT_REFUSED),
        (seen(Stage.CONNECTING, Ending.TIMEOUT), Outcome.CONNECT_TIMEOUT),
        (seen(Stage.CONNECTING, Ending.FAILED), Outcome.CONNECT_FAILED),
        (seen(Stage.CONNECTING, Ending.RESET), Outcome.CLOSED_IN_HANDSHAKE),
        (seen(Stage.CONNECTING, Ending.ABANDONED), Outcome.UNDECIDED),
        (seen(Stage.HELLO_SENT, Ending.TIMEOUT), Outcome.HANDSHAKE_TIMEOUT),
        (seen(Stage.HELLO_SENT, Ending.EOF), Outcome.CLOSED_IN_HANDSHAKE),
        (seen(Stage.HELLO_SENT, Ending.RESET), Outcome.CLOSED_IN_HANDSHAKE),
        (seen(Stage.HELLO_SENT, Ending.ABANDONED), Outcome.UNDECIDED),
        (seen(Stage.HELLO_RECEIVED, Ending.EOF, first_bytes=HELLO), Outcome.CLOSED_IN_HANDSHAKE),
        (seen(Stage.HELLO_SENT, first_bytes=b"HTTP/1.1 400 Bad"), Outcome.NOT_TLS),
        (seen(Stage.HELLO_SENT, Ending.EOF, first_bytes=b"SSH-2.0-OpenSSH"), Outcome.NOT_TLS),
        (seen(Stage.HELLO_SENT, Ending.TIMEOUT, first_bytes=b"220 smtp"), Outcome.NOT_TLS),
        (seen(Stage.HELLO_SENT, error="unsupported protocol", first_bytes=HELLO), Outcome.PROTOCOL_MISMATCH),
        (
            seen(Stage.HELLO_RECEIVED, error="dh key too small", first_bytes=HELLO),
            Outcome.NO_SHARED_PARAMETERS,
        ),
        (seen(Stage.HELLO_RECEIVED, error="bad signature", first_bytes=HELLO), Outcome.TLS_ERROR),
        (seen(Stage.HELLO_RECEIVED, verify_code=20), Outcome.SERVER_UNTRUSTED),
        (seen(Stage.HELLO_RECEIVED, verify_code=18), Outcome.SERVER_UNTRUSTED),
        (seen(Stage.HELLO_RECEIVED, verify_code=10), Outcome.SERVER_EXPIRED),
        (seen(Stage.HELLO_RECEIVED, verify_code=62), Outcome.SERVER_NAME_MISMATCH),
        (seen(Stage.HELLO_RECEIVED, verify_code=64), Outcome.SERVER_NAME_MISMATCH),
        (refused(116, sent=False), Outcome.CLIENT_CERT_REQUIRED),
        (refused(40, sent=False), Outcome.CLIENT_CERT_REQUIRED),
        (refused(42, sent=False), Outcome.CLIENT_CERT_REQUIRED),
        (refused(40), Outcome.CLIENT_CERT_REJECTED),
        (refused(40, asked=False), Outcome.NO_SHARED_PARAMETERS),
        (refused(42, asked=False), Outcome.TLS_ERROR),
        (refused(49, asked=False), Outcome.TLS_ERROR),
        (refused(42), Outcome.CLIENT_CERT_REJECTED),
        (refused(43), Outcome.CLIENT_CERT_UNSUPPORTED),
        (refused(44), Outcome.CLIENT_CERT_REVOKED),
        (refused(45), Outcome.CLIENT_CERT_EXPIRED),
        (refused(46), Outcome.CLIENT_CERT_REJECTED),
        (refused(48), Outcome.CLIENT_CERT_UNKNOWN_CA),
        (refused(70), Outcome.PROTOCOL_MISMATCH),
        (refused(71), Outcome.NO_SHARED_PARAMETERS),
        (refused(80), Outcome.TLS_ERROR),
    ],
)
def test_each_end_of_an_attempt_has_its_outcome(observation: Observation, outcome: Outcome) -> None:
    """The truth table, cell by cell."""
    assert decide(observation) is outcome


@pytest.mark.parametrize("ending", [Ending.EOF, Ending.CLOSE_NOTIFY, Ending.RESET])
def test_a_close_after_the_certificate_was_asked_for_is_a_probable_refusal(ending: Ending) -> None:
    """Java's HttpsServer closes without an alert: inferred, and said to be inferred."""
    with_certificate = seen(Stage.FINISHED_SENT, ending, certificate_requested=True, certificate_sent=True)
    without = seen(Stage.FINISHED_SENT, ending, certificate_requested=True)

    assert decide(with_certificate) is Outcome.CLIENT_CERT_REJECTED
    assert decide(without) is Outcome.CLIENT_CERT_REQUIRED
    assert not is_certain(with_certificate)
    assert is_certain(refused(48))


def test_a_close_by_an_upstream_that_never_asked_is_no_refusal() -> None:
    """Without a CertificateRequest our certificate cannot have been the reason."""
    assert decide(seen(Stage.FINISHED_SENT, Ending.EOF)) is Outcome.CLOSED_IN_HANDSHAKE


def test_what_was_wrong_with_the_upstream_wins_over_how_it_took_our_alert() -> None:
    """We refused first; an alert that crosses ours changes nothing."""
    observation = seen(Stage.HELLO_RECEIVED, verify_code=62, alert_received=80, alert_sent=42)
    assert decide(observation) is Outcome.SERVER_NAME_MISMATCH


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (b"", False),
        (HELLO, False),
        (b"\x15\x03\x01\x00\x02", False),
        (b"\x16", False),
        (b"\x16\x02", True),
        (b"S", True),
    ],
)
def test_tls_is_told_from_other_protocols_by_its_first_bytes(first: bytes, verdict: bool) -> None:
    """A record type, then version 3.x: RFC 8446 section 5.1."""
    assert is_not_tls(first) is verdict


@given(
    st.builds(
        Observation,
        stage=st.sampled_from(Stage),
        ending=st.sampled_from(Ending),
        error=st.text(max_size=20),
        certificate_requested=st.booleans(),
        certificate_sent=st.booleans(),
        alert_received=st.none() | st.integers(0, 255),
        verify_code=st.integers(0, 100),
        first_bytes=st.binary(max_size=16),
    )
)
def test_every_observation_has_an_outcome_and_ok_needs_proof(observation: Observation) -> None:
    """The rule is total, only the upstream's own proof is `ok`, and no certificate is refused unasked."""
    outcome = decide(observation)
    assert (outcome is Outcome.OK) == (observation.stage is Stage.PROVEN)
    assert observation.certificate_requested or not outcome.startswith("client_cert_")
