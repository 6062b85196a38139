"""What is said of each outcome: a cause, what was seen, and what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.evidence import alert_name
from sidecert.explain import Verdict, explain
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.presented import OwnCertificate
from support.own import DAY, NOW, fact, own

UPSTREAM = "api.example.com:8443"
ALICE = own(fact("CN=alice,O=Example"))


def verdict(
    seen: Observation, outcome: Outcome | None = None, certificate: OwnCertificate | None = None
) -> Verdict:
    """Of what `decide` makes of `seen` unless told; alice calls where a certificate is there."""
    return explain(
        outcome or decide(seen),
        seen,
        upstream=UPSTREAM,
        server_name="api.example.com",
        credential="alice" if seen.certificate_sent else "none",
        certificate=(certificate or ALICE) if seen.certificate_sent else None,
        now=NOW,
    )


def refused(alert: int | None = None, **more: object) -> Observation:
    """A TLS 1.3 upstream that asked for a certificate, got alice's and went away."""
    seen = Observation(
        stage=Stage.FINISHED_SENT,
        ending=Ending.EOF,
        tls_version="TLSv1.3",
        certificate_requested=True,
        certificate_sent=True,
        alert_received=alert,
    )
    for name, value in more.items():
        setattr(seen, name, value)
    return seen


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("certificate_sent", [True, False])
def test_every_outcome_has_its_words(outcome: Outcome, certificate_sent: bool) -> None:
    """Title and cause, and a remedy for all that is not ok; a new outcome without them fails here."""
    said = verdict(Observation(certificate_sent=certificate_sent, timeout=5.0), outcome)
    assert said.outcome is outcome
    assert said.title
    assert not said.title.endswith(".")
    assert said.cause.endswith(".")
    assert (said.remedy == "") == (outcome is Outcome.OK)
    assert outcome is Outcome.OK or said.remedy.endswith(".")
    assert UPSTREAM.split(":", maxsplit=1)[0] in said.cause


@pytest.mark.parametrize(
    ("alert", "name"),
    [
        (40, "handshake_failure (40)"),
        (42, "bad_certificate (42)"),
        (43, "unsupported_certificate (43)"),
        (44, "certificate_revoked (44)"),
        (45, "certificate_expired (45)"),
        (46, "certificate_unknown (46)"),
        (48, "unknown_ca (48)"),
        (49, "access_denied (49)"),
        (51, "decrypt_error (51)"),
        (70, "protocol_version (70)"),
        (71, "insufficient_security (71)"),
        (112, "unrecognized_name (112)"),
        (116, "certificate_required (116)"),
        (120, "no_application_protocol (120)"),
        (255, "unknown (255)"),
    ],
)
def test_alert_is_told_with_name_number_and_moment(alert: int, name: str) -> None:
    """Under TLS 1.3 it comes after the handshake, else in it."""
    assert alert_name(alert) == name
    assert f"alert {name} after the handshake" in verdict(refused(alert)).evidence
    earlier = verdict(refused(alert, tls_version=""))
    assert f"alert {name} in the handshake, after our part of it" in earlier.evidence
    first = verdict(Observation(stage=Stage.HELLO_SENT, ending=Ending.EOF, alert_received=alert))
    assert f"alert {name} in answer to our first message" in first.evidence


def test_refusal_names_the_certificate_and_where_it_is_mapped() -> None:
    """Which credential it was, and what the upstream's administrators have to look at."""
    said = verdict(refused(48))
    assert said.title == "The upstream refused the client certificate"
    assert "credential alice (CN=alice,O=Example)" in said.cause
    assert "Settings > Client Certificate" in said.remedy
    assert any("we have CN=alice,O=Example, issued by CN=root, until" in line for line in said.evidence)
    assert said.certain


def test_cas_that_the_upstream_accepts_are_the_first_thing_to_look_at() -> None:
    """At most five of them are listed, control characters made harmless."""
    names = ("CN=one\x1b[31m", *(f"CN={n}" for n in range(2, 8)))
    said = verdict(refused(48, acceptable_cas=names))
    line = next(line for line in said.evidence if "accepts" in line)
    assert line.endswith("CN=one?[31m; CN=2; CN=3; CN=4; CN=5 and 2 more")
    assert "one of the CAs" in said.remedy


def test_close_without_an_alert_is_a_guess_and_says_so() -> None:
    """Only the state of the handshake speaks for a refused certificate."""
    said = verdict(refused())
    assert said.outcome is Outcome.CLIENT_CERT_REJECTED
    assert not said.certain
    assert "probably" in said.title
    assert "most likely" in said.cause
    assert "the upstream closed the connection after the handshake, without an alert" in said.evidence


def test_no_certificate_configured_and_none_sent_are_told_apart() -> None:
    """`credential: none`, and a key that the upstream takes no signature of."""
    none = verdict(refused(116, certificate_sent=False))
    assert none.outcome is Outcome.CLIENT_CERT_REQUIRED
    assert "its credential is `none`" in none.cause
    assert "Set `credential` of the route" in none.remedy
    assert "the upstream asked for a client certificate, we sent none" in none.evidence
    kept_back = verdict(refused(116))
    assert "although credential alice holds one" in kept_back.cause
    assert "RSA" in kept_back.remedy


def test_without_a_certificate_no_alert_is_blamed_on_one() -> None:
    """Some upstreams say unknown_ca or bad_certificate where none came."""
    for outcome in (
        Outcome.CLIENT_CERT_UNKNOWN_CA,
        Outcome.CLIENT_CERT_REJECTED,
        Outcome.CLIENT_CERT_EXPIRED,
    ):
        said = verdict(refused(42, certificate_sent=False), outcome)
        assert said.outcome is outcome
        assert said.title == "The upstream requires a client certificate"


@pytest.mark.parametrize(
    ("code", "text", "outcome", "remedy"),
    [
        (20, "unable to get local issuer certificate", Outcome.SERVER_UNTRUSTED, "`upstream.trust`"),
        (18, "self-signed certificate", Outcome.SERVER_UNTRUSTED, "`upstream.trust`"),
        (23, "certificate revoked", Outcome.SERVER_UNTRUSTED, "new certificate"),
        (26, "unsuitable certificate purpose", Outcome.SERVER_UNTRUSTED, "serverAuth"),
        (66, "EE certificate key too weak", Outcome.SERVER_UNTRUSTED, "RSA 2048"),
        (10, "certificate has expired", Outcome.SERVER_EXPIRED, "renew"),
        (9, "certificate is not yet valid", Outcome.SERVER_EXPIRED, "clock"),
        (62, "hostname mismatch", Outcome.SERVER_NAME_MISMATCH, "`upstream.server_name`"),
        (64, "IP address mismatch", Outcome.SERVER_NAME_MISMATCH, "`upstream.server_name`"),
    ],
)
def test_what_is_wrong_with_the_upstreams_certificate(
    code: int, text: str, outcome: Outcome, remedy: str
) -> None:
    """OpenSSL's words and code are evidence; nobody is told to switch verification off."""
    seen = Observation(stage=Stage.HELLO_RECEIVED, ending=Ending.TLS, error="certificate verify failed")
    seen.verify_code, seen.verify_text, seen.alert_sent = code, text, 48
    said = verdict(seen)
    assert said.outcome is outcome
    assert f"check of the upstream's certificate: {text} (code {code})" in said.evidence
    assert "we sent the alert unknown_ca (48)" in said.evidence
    assert remedy in said.remedy
    assert "insecure" not in said.remedy


@pytest.mark.parametrize(
    ("first", "spoken"),
    [(b"HTTP/1.1 400 Bad", "plain HTTP"), (b"SSH-2.0-OpenSSH_9", "SSH"), (b"\0\1\2", "not TLS")],
)
def test_what_is_spoken_instead_of_tls_is_named(first: bytes, spoken: str) -> None:
    """With its first bytes, and the port as the thing to change."""
    seen = Observation(
        stage=Stage.HELLO_SENT, ending=Ending.TLS, error="wrong version number", first_bytes=first
    )
    said = verdict(seen)
    assert said.outcome is Outcome.NOT_TLS
    assert spoken in said.cause
    assert any(repr(first)[1:] in line for line in said.evidence)
    assert "OpenSSL says: wrong version number" in said.evidence
    assert "`upstream.port`" in said.remedy


@pytest.mark.parametrize(
    ("seen", "outcome", "evidence", "remedy"),
    [
        (
            Observation(stage=Stage.RESOLVING, ending=Ending.FAILED, error="Name or service not known"),
            Outcome.DNS_FAILED,
            "error: Name or service not known",
            "getent hosts api.example.com",
        ),
        (
            Observation(stage=Stage.RESOLVING, ending=Ending.TIMEOUT, timeout=5.0),
            Outcome.DNS_FAILED,
            "nothing for 5 s while its name was looked up",
            "`upstream.host`",
        ),
        (
            Observation(
                stage=Stage.CONNECTING,
                ending=Ending.REFUSED,
                error="Connection refused",
                addresses=("::1", "127.0.0.1"),
            ),
            Outcome.CONNECT_REFUSED,
            "addresses tried: ::1; 127.0.0.1",
            "`upstream.port`",
        ),
        (
            Observation(stage=Stage.CONNECTING, ending=Ending.TIMEOUT, timeout=0.5),
            Outcome.CONNECT_TIMEOUT,
            "nothing for 0.5 s while connecting",
            "`upstream.timeouts.connect`",
        ),
        (
            Observation(stage=Stage.CONNECTING, ending=Ending.FAILED, error="No route to host"),
            Outcome.CONNECT_FAILED,
            "error: No route to host",
            "network",
        ),
        (
            Observation(stage=Stage.HELLO_SENT, ending=Ending.TIMEOUT, timeout=5.0),
            Outcome.HANDSHAKE_TIMEOUT,
            "nothing for 5 s in answer to our first message",
            "`upstream.timeouts.handshake`",
        ),
        (
            Observation(stage=Stage.HELLO_SENT, ending=Ending.RESET),
            Outcome.CLOSED_IN_HANDSHAKE,
            "the upstream reset the connection in answer to our first message, without an alert",
            "`upstream.server_name`",
        ),
        (
            Observation(stage=Stage.HELLO_SENT, ending=Ending.EOF, alert_received=70),
            Outcome.PROTOCOL_MISMATCH,
            "alert protocol_version (70) in answer to our first message",
            "`upstream.tls`",
        ),
        (
            Observation(stage=Stage.HELLO_SENT, ending=Ending.EOF, alert_received=40),
            Outcome.NO_SHARED_PARAMETERS,
            "alert handshake_failure (40) in answer to our first message",
            "ECDHE",
        ),
        (
            Observation(stage=Stage.HELLO_SENT, ending=Ending.EOF, alert_received=112),
            Outcome.TLS_ERROR,
            "alert unrecognized_name (112) in answer to our first message",
            "`upstream.server_name`",
        ),
        (
            Observation(stage=Stage.HELLO_RECEIVED, ending=Ending.TLS, error="bad record mac"),
            Outcome.TLS_ERROR,
            "OpenSSL says: bad record mac",
            "openssl s_client -connect api.example.com:8443 -servername api.example.com",
        ),
        (
            Observation(stage=Stage.HELLO_RECEIVED, ending=Ending.ABANDONED),
            Outcome.UNDECIDED,
            "we left in the handshake",
            "again",
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Outcome) else "",
)
def test_failures_that_no_certificate_has_a_part_in(
    seen: Observation, outcome: Outcome, evidence: str, remedy: str
) -> None:
    """Each with the system's or the wire's own words and the config key to look at."""
    said = verdict(seen)
    assert said.outcome is outcome
    assert evidence in said.evidence
    assert remedy in said.remedy
    assert said.certain


@pytest.mark.parametrize(
    ("outcome", "command"),
    [
        (
            Outcome.CLIENT_CERT_UNKNOWN_CA,
            "`keytool -importcert -alias NAME -file ca.pem -keystore TRUSTSTORE`",
        ),
        (Outcome.CLIENT_CERT_EXPIRED, "`openssl x509 -in CRT -noout -dates`"),
        (
            Outcome.CLIENT_CERT_REJECTED,
            f"`openssl s_client -connect {UPSTREAM} -servername api.example.com -cert CRT -key KEY`",
        ),
        (
            Outcome.SERVER_UNTRUSTED,
            f"`openssl s_client -connect {UPSTREAM} -servername api.example.com -showcerts </dev/null`",
        ),
        (Outcome.CONNECT_REFUSED, "`nc -vz api.example.com 8443`"),
        (Outcome.DNS_FAILED, "`getent hosts api.example.com`"),
    ],
)
def test_remedy_has_a_command_to_copy(outcome: Outcome, command: str) -> None:
    """With the upstream's host and port in it, so that it can be tried at once."""
    assert command in verdict(refused(), outcome).remedy


def test_request_that_may_have_been_read_is_mentioned() -> None:
    """So that nobody takes a refused call for one that did nothing."""
    line = "bytes of the request had been sent by then"
    assert line in verdict(refused(request_sent=True)).evidence
    assert line not in verdict(refused()).evidence


@given(
    seen=st.builds(
        Observation,
        stage=st.sampled_from(Stage),
        ending=st.sampled_from(Ending),
        error=st.text(max_size=20),
        addresses=st.lists(st.just("127.0.0.1"), max_size=9).map(tuple),
        tls_version=st.sampled_from(["", "TLSv1.2", "TLSv1.3"]),
        certificate_requested=st.booleans(),
        certificate_sent=st.booleans(),
        acceptable_cas=st.lists(st.text(max_size=300), max_size=9).map(tuple),
        alert_received=st.none() | st.integers(0, 255),
        alert_sent=st.none() | st.integers(0, 255),
        verify_code=st.integers(0, 100),
        verify_text=st.text(max_size=20),
        first_bytes=st.binary(max_size=16),
        request_sent=st.booleans(),
        timeout=st.floats(0, 100),
    )
)
def test_whatever_was_seen_can_be_told_in_printable_words(seen: Observation) -> None:
    """No combination raises, and nothing of the other side reaches a log or terminal unescaped."""
    said = verdict(seen)
    assert said.title
    assert said.cause
    for text in (said.title, said.cause, said.remedy, *said.evidence):
        assert text.isprintable()


def test_expired_certificate_of_ours_is_told_with_its_date() -> None:
    """First and plainly; a renewed one is the remedy."""
    said = verdict(refused(45), certificate=own(fact(ends=-DAY)))
    assert said.cause.endswith("expired: it expired on 2027-01-14 08:00 UTC.")
    assert said.evidence[0] == "our certificate expired on 2027-01-14 08:00 UTC"
    assert said.remedy.startswith("Put the renewed certificate into the files of `credentials.alice`")


def test_certificate_within_its_dates_is_not_the_one_that_expired() -> None:
    """Then it is one above it, or the upstream's clock; an expired intermediate of ours is named."""
    said = verdict(refused(45))
    assert "or a CA above it, or its clock is wrong" in said.cause
    assert "valid until 2027-01-16 08:00 UTC" in said.cause
    middle = verdict(refused(45), certificate=own(fact(), fact("CN=interca", ends=-DAY)))
    assert "the intermediate CN=interca, which expired on 2027-01-14 08:00 UTC" in middle.cause


@pytest.mark.parametrize("alert", [None, 40, 42, 43, 46, 48])
def test_what_is_wrong_with_our_certificate_is_told_where_the_upstream_gives_no_reason(
    alert: int | None,
) -> None:
    """Java and Go say the same of everything; we know better."""
    said = verdict(refused(alert), certificate=own(fact(ends=-DAY), uses=["serverAuth"]))
    assert "It expired on 2027-01-14 08:00 UTC." in said.cause
    assert "extendedKeyUsage is serverAuth" in said.cause
    assert said.evidence[0] == "our certificate expired on 2027-01-14 08:00 UTC"


def test_missing_intermediate_is_to_be_appended_first() -> None:
    """The upstream lists its root, and only the leaf is in our file."""
    short = own(fact(issuer="CN=interca"))
    said = verdict(refused(48, acceptable_cas=("CN=partnerca",)), certificate=short)
    assert said.remedy.startswith(
        "Append the certificate of its issuer CN=interca to the file of `credentials.alice` (it holds only "
        "the leaf), if that is an intermediate CA; else use a certificate from one of the CAs that "
    )
    assert said.evidence[0].startswith("our certificate comes from CN=interca, which is neither in its file ")
    complete = own(fact(issuer="CN=otherca"), holds_root=True)
    foreign = verdict(refused(48, acceptable_cas=("CN=partnerca",)), certificate=complete)
    assert foreign.remedy.startswith("Use a certificate from one of the CAs that ")


def their(code: int, text: str, **facts: object) -> Verdict:
    """Of an upstream whose certificate has these facts, and is not taken."""
    seen = Observation(stage=Stage.HELLO_RECEIVED, ending=Ending.TLS, verify_code=code, verify_text=text)
    seen.presented = (fact("CN=api", "CN=serverca", **facts),)  # type: ignore[arg-type]
    return verdict(seen)


def test_names_dates_and_issuer_of_the_upstreams_certificate_are_told() -> None:
    """In the place of a command that shows them."""
    named = their(62, "hostname mismatch", names=["a.test", "b.test"])
    assert "does not name api.example.com in its subjectAltName, but a.test; b.test." in named.cause
    assert named.remedy.endswith("set `upstream.server_name` to a name that it has: a.test; b.test.")
    assert "has no name at all" in their(62, "hostname mismatch").cause
    late = their(10, "certificate has expired", ends=-DAY)
    assert "CN=api expired on 2027-01-14 08:00 UTC" in late.cause
    early = their(9, "certificate is not yet valid", starts=DAY)
    assert "CN=api is not valid before 2027-01-16 08:00 UTC" in early.cause
    foreign = their(20, "unable to get local issuer certificate")
    assert "CN=api is issued by CN=serverca" in foreign.cause
    assert "of the route that holds CN=serverca" in foreign.remedy
    line = "the upstream's certificate: CN=api, issued by CN=serverca, from "
    for said in (named, late, early, foreign):
        assert any(each.startswith(line) for each in said.evidence)
        assert "openssl x509" not in said.remedy
