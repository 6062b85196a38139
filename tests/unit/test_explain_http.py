"""What is said of an answer that refuses the client certificate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecert.explain_http import NONE_CAME, AnswerVerdict, explain_answer
from sidecert.http_verdict import Signature
from sidecert.outcome import Observation, Stage
from sidecert.presented import OwnCertificate
from support.own import DAY, NOW, fact, own

UPSTREAM = "api.example.com:8443"
ALICE = own()


def verdict(
    signature: Signature,
    *,
    asked: bool = True,
    certificate: OwnCertificate | None = ALICE,
    server: str = "nginx",
    **more: Any,
) -> AnswerVerdict:
    """Of an answer over a connection whose upstream `asked` for a certificate."""
    seen = Observation(
        stage=Stage.PROVEN,
        tls_version="TLSv1.3",
        certificate_requested=asked,
        certificate_sent=certificate is not None,
        **more,
    )
    return explain_answer(
        signature,
        seen,
        status=400,
        server=server,
        upstream=UPSTREAM,
        credential="none" if certificate is None else "alice",
        certificate=certificate,
        now=NOW,
    )


@pytest.mark.parametrize("signature", Signature)
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("certificate", [ALICE, None], ids=["alice", "none"])
def test_every_signature_has_its_words(
    signature: Signature, asked: bool, certificate: OwnCertificate | None
) -> None:
    """Cause, evidence and remedy; a new signature without them fails here."""
    said = verdict(signature, asked=asked, certificate=certificate)
    assert said.signature is signature
    assert said.title
    assert said.cause.endswith(".")
    assert said.remedy.endswith(".")
    assert UPSTREAM in said.cause
    assert said.evidence[-1].startswith("the upstream answered 400 (Server: nginx): ")
    assert "TLSv1.3 was agreed on" in said.evidence


@pytest.mark.parametrize("signature", Signature)
def test_without_a_certificate_the_remedy_is_to_send_one(signature: Signature) -> None:
    """Whatever the upstream calls it, nothing can be wrong with a certificate that is not there."""
    said = verdict(signature, certificate=None)
    assert "its credential is `none`" in said.cause
    assert "Set `credential` of the route" in said.remedy
    assert said.evidence[-1] == verdict(signature).evidence[-1]


def test_certificate_that_was_not_asked_for_is_told_from_one_that_was() -> None:
    """The first is a matter of name and port, the second of the key or of what ends TLS in between."""
    not_asked = verdict(Signature.NGINX_400_REQUIRED, asked=False)
    assert "did not ask for one in the handshake" in not_asked.cause
    assert "`upstream.server_name`" in not_asked.remedy
    asked = verdict(Signature.NGINX_400_REQUIRED)
    assert "It did ask in the handshake" in asked.cause
    assert f"`curl -v --cert CRT --key KEY https://{UPSTREAM}/`" in asked.remedy


@pytest.mark.parametrize("signature", [each for each in Signature if each not in NONE_CAME])
def test_certificate_that_was_not_asked_for_is_hardly_the_one_that_is_refused(signature: Signature) -> None:
    """A gateway passes on what the service behind it says of the gateway's own certificate."""
    assert "a service behind it" in verdict(signature, asked=False).cause
    assert "a service behind it" not in verdict(signature).cause


def test_refusal_names_the_certificate_and_where_it_is_mapped() -> None:
    """As for a refusal in the handshake."""
    said = verdict(Signature.NGINX_400)
    assert "credential alice (CN=alice)" in said.cause
    assert "Settings > Client Certificate" in said.remedy


@given(server=st.text(max_size=300))
def test_whatever_the_upstream_calls_itself_can_be_logged(server: str) -> None:
    """Its Server header is its own to choose."""
    for line in verdict(Signature.IIS_403_16, server=server).evidence:
        assert line.isprintable()
        assert len(line) < 500


@pytest.mark.parametrize("signature", [Signature.NGINX_400, Signature.IIS_403_16, Signature.IIS_403_17])
def test_what_is_wrong_with_our_certificate_is_told(signature: Signature) -> None:
    """The upstream does not say; the dates say it themselves."""
    said = verdict(signature, certificate=own(fact(ends=-DAY)))
    assert "t expired on 2027-01-14 08:00 UTC." in said.cause
    assert said.evidence[0] == "our certificate expired on 2027-01-14 08:00 UTC"
    assert said.remedy.startswith("Put the renewed certificate into the files of `credentials.alice`")


def test_missing_intermediate_is_to_be_appended_first() -> None:
    """By what the upstream listed when it asked."""
    said = verdict(Signature.NGINX_400, acceptable_cas=("CN=partnerca",))
    assert said.evidence[0].startswith("our certificate comes from CN=root, which is neither in its file ")
    assert said.remedy.startswith("Append the certificate of its issuer CN=root to the file of ")
