"""Spoilt TLS flights, and the rule that makes an outcome of what was seen, under whatever comes to it.

The long form of the first test is `make fuzz`, which is guided by the code that a script reaches.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecert.evidence import evidence
from sidecert.explain import explain
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.presented import OwnCertificate
from support.certs import Pki
from support.kept import kept
from support.lengths import rounds
from support.own import NOW, fact, own
from support.spoilt_flights import CREDENTIALS, VERSIONS, Spoilt

LONGEST = 4000  # characters of a line


@pytest.fixture(scope="module")
def spoilt(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoilt]:
    playing = Spoilt(tmp_path_factory.mktemp("spoilt"), pki)
    yield playing
    playing.close()


@pytest.mark.long_form(seconds=900)
@given(st.binary(min_size=1, max_size=150))
@settings(max_examples=rounds(400, 40_000))
def test_no_flight_breaks_a_promise(spoilt: Spoilt, script: bytes) -> None:
    """One outcome, one end, no error of our own, nothing left in OpenSSL, `ok` only with proof, and never a
    byte of an answer that the upstream has not sent."""
    spoilt.play(script)


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("tls", VERSIONS)
@pytest.mark.parametrize("reopened", [False, True])
def test_flight_that_is_not_spoilt_is_ok(spoilt: Spoilt, tls: str, asks: bool, reopened: bool) -> None:
    """Or the test above would prove nothing; with no certificate to show, it is refused."""
    choice = (tls == "1.3") | asks << 1 | reopened << 4
    for number, credential in enumerate(CREDENTIALS):
        refused = asks and credential == "none"
        expected = Outcome.CLIENT_CERT_REQUIRED if refused else Outcome.OK
        assert spoilt.play(bytes((choice | number << 2,))) is expected
    assert spoilt.play(bytes((choice | 0xF0,))) is Outcome.SERVER_UNTRUSTED


OBSERVATIONS = st.builds(
    Observation,
    stage=st.sampled_from(Stage),
    ending=st.sampled_from(Ending),
    error=st.text(max_size=600) | st.binary(max_size=40).map(repr),
    addresses=st.lists(st.ip_addresses().map(str), max_size=9).map(tuple),
    tls_version=st.sampled_from(["", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "unknown"]),
    certificate_requested=st.booleans(),
    certificate_sent=st.booleans(),
    acceptable_cas=st.lists(st.text(max_size=300), max_size=30).map(tuple),
    chains_to=st.lists(st.text(max_size=300), max_size=9).map(tuple),
    alert_received=st.none() | st.integers(0, 255),
    alert_sent=st.none() | st.integers(0, 255),
    verify_code=st.just(0) | st.integers(-1, 300),
    verify_text=st.text(max_size=300),
    first_bytes=st.binary(max_size=16),
    request_sent=st.booleans(),
    timeout=st.floats(0, 1e6),
)


@given(
    OBSERVATIONS,
    st.none() | st.text(min_size=1, max_size=100).filter(str.isprintable).map(lambda name: own(fact(name))),
)
@example(Observation(stage=Stage.FINISHED_SENT, ending=Ending.NONE), None)
@settings(max_examples=rounds(400, 40_000))
def test_whatever_was_seen_has_one_outcome_in_printable_words(
    seen: Observation, certificate: OwnCertificate | None
) -> None:
    """Also what never comes together: the rule and its words are total, and short whatever they quote."""
    before = repr(seen)
    outcome = decide(seen)
    assert outcome in Outcome
    assert (outcome is Outcome.OK) == (seen.stage is Stage.PROVEN)
    lines = evidence(seen, certificate, NOW)
    for each in Outcome:  # the words must hold whatever was decided
        said = explain(
            each,
            seen,
            upstream="host.test:8443",
            server_name="host.test",
            credential="none" if certificate is None else "alice",
            certificate=certificate,
            now=NOW,
        )
        assert said.title
        assert said.cause
        assert bool(said.remedy) == (each is not Outcome.OK)
        assert said.evidence == lines
        for text in (said.title, said.cause, said.remedy, *lines):
            assert text.isprintable()
            assert len(text) <= LONGEST
    assert repr(seen) == before, "to judge is not to change"


def test_kept_flights_break_no_promise(spoilt: Spoilt) -> None:
    """What `make fuzz` has reached, it reaches here too."""
    for script in kept("tls"):
        spoilt.play(script)
