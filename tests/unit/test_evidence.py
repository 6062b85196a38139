"""What was seen of an attempt, told in the order of the wire and in characters fit for a terminal."""

from __future__ import annotations

import pytest

from sidecert.evidence import alert_name, evidence
from sidecert.outcome import Ending, Observation, Stage
from sidecert.presented import OwnCertificate
from sidecert.words import clean
from support.own import NOW, own

ALICE = own()
WE_HAVE = "we have CN=alice, issued by CN=root, until 2027-01-16 08:00 UTC, sent without intermediates"


def told(seen: Observation, certificate: OwnCertificate | None) -> tuple[str, ...]:
    return evidence(seen, certificate, NOW)


def tls13(ending: Ending = Ending.NONE, **more: object) -> Observation:
    """A TLS 1.3 upstream that asked for a certificate and got one."""
    seen = Observation(
        stage=Stage.FINISHED_SENT,
        ending=ending,
        tls_version="TLSv1.3",
        certificate_requested=True,
        certificate_sent=True,
    )
    for name, value in more.items():
        setattr(seen, name, value)
    return seen


def test_nothing_seen_is_nothing_told() -> None:
    """No empty words."""
    assert told(Observation(), None) == ()


def test_all_is_told_in_the_order_of_the_wire() -> None:
    """Version, request, CAs, alert, then the end and what had left by then."""
    seen = tls13(Ending.EOF, acceptable_cas=("CN=other",), alert_received=48, request_sent=True)
    assert told(seen, ALICE) == (
        "our certificate comes from CN=root, which is neither in its file (only the leaf) nor one of the CAs "
        "that the upstream lists (CN=other)",
        "TLSv1.3 was agreed on",
        f"the upstream asked for a client certificate, {WE_HAVE}",
        "the CAs that the upstream accepts: CN=other",
        "of these, our certificate chains to none",
        "alert unknown_ca (48) after the handshake",
        "the upstream closed the connection after the handshake",
        "bytes of the request had been sent by then",
    )


def test_accepted_ca_that_our_certificate_chains_to_is_named() -> None:
    """And nothing is said of it where we have no certificate."""
    seen = tls13(acceptable_cas=("CN=root", "CN=other"), chains_to=("CN=other",))
    assert "of these, our certificate chains to CN=other" in told(seen, ALICE)
    seen.certificate_sent = False
    assert not any("chains to" in line for line in told(seen, None))


def test_every_alert_has_a_number_and_the_known_ones_a_name() -> None:
    """One that IANA has not named does not raise."""
    assert alert_name(116) == "certificate_required (116)"
    assert alert_name(255) == "unknown (255)"
    assert all(alert_name(number).endswith(f"({number})") for number in range(256))


def test_addresses_are_told_while_the_connection_is_what_failed() -> None:
    """Once it stands they explain nothing any more; five are enough."""
    many = tuple(f"192.0.2.{n}" for n in range(7))
    seen = Observation(stage=Stage.CONNECTING, ending=Ending.REFUSED, addresses=many, error="refused")
    assert told(seen, None) == (
        "addresses tried: 192.0.2.0; 192.0.2.1; 192.0.2.2; 192.0.2.3; 192.0.2.4 and 2 more",
        "error: refused",
    )
    assert not any("192.0.2" in line for line in told(tls13(addresses=many), ALICE))


@pytest.mark.parametrize(
    ("requested", "sent", "certificate", "line"),
    [
        (False, False, None, "the upstream did not ask for a client certificate"),
        (False, True, ALICE, "the upstream did not ask for a client certificate"),
        (True, False, None, "the upstream asked for a client certificate, we sent none"),
        (True, True, ALICE, f"the upstream asked for a client certificate, {WE_HAVE}"),
        (True, True, None, "the upstream asked for a client certificate, we have one"),
    ],
)
def test_whether_a_certificate_was_asked_for_and_there(
    requested: bool, sent: bool, certificate: OwnCertificate | None, line: str
) -> None:
    """The first thing to know about a refusal."""
    seen = tls13(certificate_requested=requested, certificate_sent=sent)
    assert line in told(seen, certificate)


@pytest.mark.parametrize(
    ("stage", "version", "when"),
    [
        (Stage.RESOLVING, "", "while its name was looked up"),
        (Stage.CONNECTING, "", "while connecting"),
        (Stage.HELLO_SENT, "", "in answer to our first message"),
        (Stage.HELLO_RECEIVED, "", "in the handshake"),
        (Stage.FINISHED_SENT, "", "in the handshake, after our part of it"),
        (Stage.FINISHED_SENT, "TLSv1.3", "after the handshake"),
        (Stage.PROVEN, "TLSv1.2", "after the handshake"),
    ],
)
@pytest.mark.parametrize(
    ("ending", "line"),
    [
        (Ending.EOF, "the upstream closed the connection {}, without an alert"),
        (Ending.CLOSE_NOTIFY, "the upstream closed the connection {}, without an alert"),
        (Ending.RESET, "the upstream reset the connection {}, without an alert"),
        (Ending.TIMEOUT, "nothing for 1.5 s {}"),
        (Ending.ABANDONED, "we left {}"),
    ],
)
def test_each_end_is_told_with_its_moment(
    stage: Stage, version: str, when: str, ending: Ending, line: str
) -> None:
    """How it ended, and how far it had come."""
    seen = Observation(stage=stage, tls_version=version, ending=ending, timeout=1.5)
    if (stage, ending) == (Stage.HELLO_SENT, Ending.ABANDONED):
        when = "before any answer to our first message"
    assert line.format(when) in told(seen, None)


def test_end_behind_the_first_message_of_an_answer_is_in_the_handshake() -> None:
    """OpenSSL tells of a ServerHello only when the next message comes; its record was seen all the same."""
    seen = Observation(stage=Stage.HELLO_SENT, ending=Ending.RESET, first_bytes=b"\x16\x03\x03")
    assert told(seen, None) == ("the upstream reset the connection in the handshake, without an alert",)
    seen.ending = Ending.ABANDONED
    assert told(seen, None) == ("we left in the handshake",)


def test_openssl_and_the_system_are_quoted_apart() -> None:
    """An error of the network is none of OpenSSL's; beside the check of a certificate neither is told."""
    assert "OpenSSL says: no shared cipher" in told(tls13(Ending.TLS, error="no shared cipher"), ALICE)
    assert "error: no route to host" in told(tls13(Ending.FAILED, error="no route to host"), ALICE)
    checked = tls13(Ending.TLS, error="certificate verify failed", verify_code=20, verify_text="no issuer")
    lines = told(checked, ALICE)
    assert "check of the upstream's certificate: no issuer (code 20)" in lines
    assert not any("OpenSSL says" in line for line in lines)


def test_our_own_alert_is_told_as_ours() -> None:
    """So that nobody looks for it in the upstream's rules."""
    assert "we sent the alert unknown_ca (48)" in told(tls13(alert_sent=48), ALICE)


def test_first_bytes_are_told_only_where_they_are_no_tls() -> None:
    """Escaped: they come from whoever listens there."""
    seen = Observation(stage=Stage.HELLO_SENT, first_bytes=b"HTTP/1.1\x1b[31m\r\n")
    assert told(seen, None) == (r"the upstream's first bytes: 'HTTP/1.1\x1b[31m\r\n'",)
    assert told(Observation(stage=Stage.HELLO_SENT, first_bytes=b"\x16\x03\x03\x00\x01"), None) == ()


def test_sent_request_is_no_evidence_once_the_upstream_has_accepted() -> None:
    """Then it was sent to whom it was meant for."""
    seen = tls13(Ending.EOF, request_sent=True)
    assert "bytes of the request had been sent by then" in told(seen, ALICE)
    seen.stage = Stage.PROVEN
    assert "bytes of the request had been sent by then" not in told(seen, ALICE)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("O=Grüße, CN=ok", "O=Grüße, CN=ok"),
        ("a\nb\x1b[31m\u202e\x00", "a?b?[31m??"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_names_of_the_other_side_are_made_printable_and_short(text: str, cleaned: str) -> None:
    """No line end, terminal escape or bidi mark; 200 characters at most."""
    assert clean(text) == cleaned


def test_names_in_the_lists_are_cleaned_too() -> None:
    """The CAs are whatever the upstream says they are."""
    lines = told(tls13(acceptable_cas=("CN=\x1b[2J",)), ALICE)
    assert "the CAs that the upstream accepts: CN=?[2J" in lines


def test_upstream_is_not_said_to_ask_for_nothing_before_it_could() -> None:
    """Under TLS 1.2 the request comes after the upstream's certificate, where we may have stopped."""
    words = "the upstream did not ask for a client certificate"
    stopped = Observation(stage=Stage.HELLO_RECEIVED, tls_version="TLSv1.2", verify_code=20)
    assert words not in told(stopped, ALICE)
    stopped.tls_version = "TLSv1.3"
    assert words in told(stopped, ALICE)
    done = Observation(stage=Stage.FINISHED_SENT, tls_version="TLSv1.2", ending=Ending.EOF)
    assert words in told(done, ALICE)


def test_refusal_under_tls_1_2_comes_inside_the_handshake() -> None:
    """Our part is over then, the upstream's is not."""
    refused = Observation(
        stage=Stage.FINISHED_SENT, tls_version="TLSv1.2", certificate_requested=True, alert_received=48
    )
    assert "alert unknown_ca (48) in the handshake, after our part of it" in told(refused, ALICE)
