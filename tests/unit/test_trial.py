"""What a new certificate and the one before, each shown to one upstream, prove about the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecert.metrics import Proof
from sidecert.outcome import Observation, Outcome, Stage
from sidecert.trial import Shown, Trial
from support.certs import Pki
from support.inside import generation
from support.sidecar import config

OK, UNDECIDED, REFUSED = Outcome.OK, Outcome.UNDECIDED, Outcome.CLIENT_CERT_UNKNOWN_CA


def seen(*lists: str, chains_to: tuple[str, ...] = (), asked: bool = True) -> Observation:
    return Observation(
        stage=Stage.PROVEN,
        certificate_requested=asked,
        certificate_sent=True,
        acceptable_cas=lists,
        chains_to=chains_to,
    )


LISTED, UNLISTED, NO_LIST = seen("CN=ca", chains_to=("CN=ca",)), seen("CN=ca"), seen()
NOT_ASKED = seen(asked=False)
What = tuple[Outcome, Observation] | None


@pytest.fixture(scope="module")
def trial(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Of the new certificate alice and the one before it, bob."""
    folder: Path = tmp_path_factory.mktemp("trial")
    routes = [
        {"id": name, "match": {"host": "a.test"}, "credential": name, "upstream": {"port": port}}
        for name, port in (("alice", 1), ("bob", 2))
    ]
    routes[1]["match"] = {"host": "b.test"}
    found = generation(folder, config(routes, {"alice": pki.alice.config, "bob": pki.bob.config})).routes
    return Trial(found["alice"].upstream("a.test"), found["bob"].upstream("b.test"))


@pytest.mark.parametrize(
    ("new", "old", "result", "held", "why"),
    [
        (None, None, Proof.UNPROVEN, False, "not tried in time"),
        ((OK, LISTED), None, Proof.ACCEPTED, False, None),
        ((OK, NO_LIST), None, Proof.ACCEPTED, False, None),
        ((OK, NOT_ASKED), None, Proof.UNPROVEN, False, "it asks for no certificate in the handshake"),
        ((UNDECIDED, LISTED), None, Proof.UNPROVEN, False, "undecided"),
        ((Outcome.CONNECT_REFUSED, Observation()), None, Proof.UNPROVEN, False, "connect_refused"),
        ((REFUSED, NO_LIST), (OK, NO_LIST), Proof.REFUSED, True, None),
        ((REFUSED, NO_LIST), (UNDECIDED, NO_LIST), Proof.REFUSED, True, None),
        ((REFUSED, NO_LIST), None, Proof.REFUSED, True, None),
        (
            (REFUSED, NO_LIST),
            (Outcome.CLIENT_CERT_EXPIRED, NO_LIST),
            Proof.UNPROVEN,
            False,
            "client_cert_unknown_ca, and client_cert_expired with the one before",
        ),
        ((OK, UNLISTED), (OK, LISTED), Proof.UNPROVEN, True, None),
        ((UNDECIDED, UNLISTED), (UNDECIDED, LISTED), Proof.UNPROVEN, True, None),
        ((OK, UNLISTED), (OK, UNLISTED), Proof.UNPROVEN, False, "it lets the handshake pass, but the cert"),
        ((UNDECIDED, UNLISTED), (OK, LISTED), Proof.UNPROVEN, False, "undecided, but the certificate comes"),
        (
            (OK, UNLISTED),
            (REFUSED, LISTED),
            Proof.UNPROVEN,
            False,
            "it lets the handshake pass, but the cert",
        ),
        ((OK, UNLISTED), (OK, NOT_ASKED), Proof.UNPROVEN, False, "it lets the handshake pass, but the cert"),
        ((OK, UNLISTED), None, Proof.UNPROVEN, False, "it lets the handshake pass, but the cert"),
    ],
)
def test_new_certificate_is_held_back_only_where_the_one_before_does_better(
    trial: Trial, new: What, old: What, result: Proof, held: bool, why: str | None
) -> None:
    """A refusal counts unless the one before is refused too; what speaks against it by itself, only where the
    one before is seen to do better in the same handshake."""
    trial.shown = Shown(trial.new, *new) if new else None
    trial.before = Shown(trial.old, *old) if old else None
    assert trial.result is result
    assert trial.holds_back == held
    if why:
        assert trial.why_unproven.startswith(why)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ((OK, NO_LIST), "a.test:1 refuses it (client_cert_unknown_ca) and does not refuse the one before"),
        ((Outcome.CONNECT_TIMEOUT, NO_LIST), "could not be compared with the one before (connect_timeout)"),
        (None, "could not be compared with the one before (not known in time)"),
    ],
)
def test_what_could_not_be_compared_is_told_as_such(trial: Trial, old: What, words: str) -> None:
    """Nobody is told that the one before works where that was not seen."""
    trial.shown = Shown(trial.new, REFUSED, NO_LIST)
    trial.before = Shown(trial.old, *old) if old else None
    assert words in trial.why_held_back
    assert ("does not refuse" in trial.why_held_back) == (old == (OK, NO_LIST))
