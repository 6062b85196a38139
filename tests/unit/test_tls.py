"""Whom a context trusts, by which name, and what it refuses to present; against Python's ssl in memory."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from sidecert.config import CredentialConfig, TlsConfig
from sidecert.credentials import Credential, load, load_trust
from sidecert.credentials.keyfiles import Opened, Store
from sidecert.outcome import Observation, Stage
from sidecert.tls import TlsFailure, TlsStream, make_context
from support.certs import CLIENT_AUTH, Authority, Files, Leaf, Pki, expired, make_key
from support.own import own

BOTH = TlsConfig(min="1.2", max="1.3")


def credential(files: Files) -> Credential:

    config = CredentialConfig(certificate=files.certificate, key=files.key, pkcs12=None, passphrase=None)
    loaded, findings = load("alice", config, {}, 0.0)
    assert loaded is not None, findings
    return loaded


def shake(
    files: Files,
    trust: Any,
    server_name: str,
    *,
    presented: Credential | None = None,
    asks: Path | None = None,
    tls: TlsConfig = BOTH,
    version: ssl.TLSVersion | None = None,
) -> tuple[Observation, str]:
    """What was seen of a handshake with a peer that has these files, and the reason of its failure or ""."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    if asks is not None:
        context.load_verify_locations(asks)
        context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = context.wrap_bio(incoming, outgoing, server_side=True)
    seen = Observation()
    stream = TlsStream(make_context(presented, trust, tls), server_name, seen)
    incoming.write(stream.start())
    for _ in range(6):
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            pass
        try:
            if data := outgoing.read():
                stream.receive(data)
        except TlsFailure as failure:
            return seen, str(failure)
        incoming.write(stream.take_output())
    return seen, ""


def trusting(pki: Pki) -> tuple[x509.Certificate, ...]:
    certificates, _ = load_trust(pki.trust, 0.0)
    return tuple(certificates)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "::1"])
def test_name_in_the_certificate_is_accepted(name: str, pki: Pki) -> None:
    """Host names in any case, and addresses."""
    seen, reason = shake(pki.upstream, trusting(pki), name)
    assert (reason, seen.verify_code) == ("", 0)
    assert seen.stage is Stage.FINISHED_SENT


@pytest.mark.parametrize(
    ("name", "code"), [("other.test", 62), ("local", 62), ("127.0.0.2", 64), ("::2", 64)]
)
def test_other_name_is_refused(name: str, code: int, pki: Pki) -> None:
    """With OpenSSL's code for host names (62) and addresses (64)."""
    seen, reason = shake(pki.upstream, trusting(pki), name)
    assert reason == "certificate verify failed"
    assert seen.verify_code == code
    assert seen.verify_text


def test_wildcard_stands_for_one_whole_label(pki: Pki, tmp_path: Path) -> None:
    """`*.wild.test` is a.wild.test, neither wild.test nor a.b.wild.test; `f*.wild.test` is nothing."""
    wild = pki.ca.peer("*.wild.test", "f*.part.test").write(tmp_path, "wild")
    assert shake(wild, trusting(pki), "a.wild.test")[1] == ""
    for name in ("wild.test", "a.b.wild.test", "foo.part.test"):
        assert shake(wild, trusting(pki), name)[0].verify_code == 62


def test_common_name_is_no_name(pki: Pki, tmp_path: Path) -> None:
    """A certificate whose CN is right and that has no SAN is refused (RFC 9525 6.3)."""
    files = pki.ca.issue("cn.test").write(tmp_path, "cn")
    seen, _ = shake(files, trusting(pki), "cn.test")
    assert seen.verify_code == 62


def test_authority_that_is_not_trusted_is_refused(pki: Pki, tmp_path: Path) -> None:
    """Another CA's certificate: 20; an expired one: 10; a self-signed one: 18."""
    other = pki.other_ca.peer().write(tmp_path, "other")
    assert shake(other, trusting(pki), "localhost")[0].verify_code == 20
    late = pki.ca.peer(**expired()).write(tmp_path, "late")
    assert shake(late, trusting(pki), "localhost")[0].verify_code == 10
    alone = self_signed("localhost").write(tmp_path, "alone")
    assert shake(alone, trusting(pki), "localhost")[0].verify_code == 18


def self_signed(host: str) -> Leaf:
    key = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    issued = Authority("unused").issue(host, hosts=(host,)).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issued.not_valid_before_utc)
        .not_valid_after(issued.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    )
    return Leaf(builder.sign(key, hashes.SHA256()), key)


def test_pinned_certificate_is_trusted_without_its_authority(pki: Pki, tmp_path: Path) -> None:
    """A trust file with the upstream's own certificate: issued or self-signed, and no other then."""
    leaf = pki.other_ca.peer()
    assert shake(leaf.write(tmp_path, "pinned"), (leaf.certificate,), "localhost")[1] == ""
    alone = self_signed("localhost")
    assert shake(alone.write(tmp_path, "alone"), (alone.certificate,), "localhost")[1] == ""
    assert shake(pki.upstream, (leaf.certificate,), "localhost")[0].verify_code == 20


def test_insecure_accepts_any_certificate(pki: Pki, tmp_path: Path) -> None:
    """And nothing but `insecure` does."""
    files = pki.other_ca.peer("elsewhere.test", **expired()).write(tmp_path, "bad")
    assert shake(files, "insecure", "localhost")[1] == ""


def test_intermediates_are_presented(pki: Pki, tmp_path: Path) -> None:
    """A credential's chain goes along, so an upstream that knows only the root accepts it."""
    files = pki.ca.intermediate().caller("deep").write(tmp_path, "deep")
    version = ssl.TLSVersion.TLSv1_2  # where the verdict is part of the handshake
    seen, reason = shake(
        pki.upstream, trusting(pki), "localhost", presented=credential(files), asks=pki.trust, version=version
    )
    assert reason == ""
    assert seen.certificate_requested


def test_what_the_peer_does_is_noted(pki: Pki) -> None:
    """Version, whether a certificate was asked for, and the alert that refuses it."""
    for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        seen, reason = shake(
            pki.upstream,
            trusting(pki),
            "localhost",
            presented=credential(pki.stranger),
            asks=pki.trust,
            version=version,
        )
        assert reason
        assert (seen.tls_version, seen.certificate_requested, seen.alert_received) == (name, True, 48)
    seen, _ = shake(pki.upstream, trusting(pki), "localhost")
    assert not seen.certificate_requested
    assert seen.alert_received is None


def test_versions_that_do_not_meet(pki: Pki) -> None:
    """A route that wants TLS 1.3 only, and a peer that has 1.2 only."""
    only = TlsConfig(min="1.3", max="1.3")
    seen, reason = shake(pki.upstream, trusting(pki), "localhost", tls=only, version=ssl.TLSVersion.TLSv1_2)
    assert reason
    assert seen.alert_received == 70 or "protocol" in reason


def test_error_while_watching_is_raised_and_not_taken_for_a_verdict(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback from OpenSSL cannot raise through C: the next `receive` does."""

    def fail(self: TlsStream, state: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TlsStream, "_on_state", fail)
    with pytest.raises(ZeroDivisionError):
        shake(pki.upstream, trusting(pki), "localhost")


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken"),
    [
        ("1.2", "1.3", {"1.2", "1.3"}),
        ("1.2", "1.2", {"1.2"}),
        ("1.3", "1.3", {"1.3"}),
    ],
)
def test_versions_of_the_route_are_all_that_is_spoken(
    lowest: Any, highest: Any, spoken: set[str], pki: Pki
) -> None:
    """Both bounds hold, against a peer of either version."""
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    tls = TlsConfig(min=lowest, max=highest)
    agreed = set()
    for name, version in versions.items():
        seen, reason = shake(pki.upstream, trusting(pki), "localhost", tls=tls, version=version)
        if not reason:
            assert seen.tls_version == f"TLSv{name}"
            agreed.add(name)
    assert agreed == spoken


def made_of(leaf: Leaf, key: Any = None) -> Credential:
    """A credential that nobody has checked."""
    return Credential(
        id="alice",
        certificate=leaf.certificate,
        chain=(),
        key=key or leaf.key,
        fingerprint="",
        serial="",
        not_before=0.0,
        not_after=0.0,
        subject="",
        own=own(),
        opened=Opened(b"", Store(None, (), 0)),
    )


def test_key_that_is_too_small_is_refused_with_openssls_reason(pki: Pki) -> None:
    """The words are OpenSSL's, and hold nothing of the key."""
    with pytest.raises(TlsFailure) as error:
        make_context(made_of(pki.ca.caller("alice", key="rsa-1024")), "system", BOTH)
    assert str(error.value) == "ee key too small"


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_key_of_another_certificate_is_refused(key: Any, pki: Pki) -> None:
    """At load, never at the first call."""
    with pytest.raises(TlsFailure, match=r"key values mismatch|no certificate assigned"):
        make_context(made_of(pki.ca.caller("alice"), make_key(key)), "system", BOTH)


def test_system_trust_does_not_hold_what_the_system_does_not_trust(pki: Pki) -> None:
    """Nothing is trusted beside it; 19 and 20 are OpenSSL's codes for an unknown authority."""
    seen, reason = shake(pki.upstream, "system", "localhost")
    assert reason == "certificate verify failed"
    assert seen.verify_code in (19, 20)


def test_pinned_certificate_must_still_be_for_the_name_and_not_expired(pki: Pki, tmp_path: Path) -> None:
    """Pinning says who is trusted, not what for."""
    leaf = pki.other_ca.peer("pinned.test")
    files = leaf.write(tmp_path, "pinned")
    assert shake(files, (leaf.certificate,), "pinned.test")[1] == ""
    assert shake(files, (leaf.certificate,), "other.test")[0].verify_code == 62
    late = pki.other_ca.peer("pinned.test", **expired())
    assert shake(late.write(tmp_path, "late"), (late.certificate,), "pinned.test")[0].verify_code == 10


def test_certificate_of_a_caller_is_no_upstreams(pki: Pki) -> None:
    """Issued by a CA that is trusted, but for clientAuth alone: 26."""
    leaf = pki.ca.issue("localhost", hosts=("localhost",), usages=(CLIENT_AUTH,))
    files = leaf.write(pki.folder / "caller-as-upstream")
    assert shake(files, trusting(pki), "localhost")[0].verify_code == 26


@pytest.mark.parametrize(("name", "sent"), [("localhost", True), ("127.0.0.1", False), ("::1", False)])
def test_names_are_sent_and_addresses_are_not(name: str, sent: bool, pki: Pki) -> None:
    """RFC 6066 section 3: no address in SNI."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.upstream.certificate, pki.upstream.key)
    context.sni_callback = lambda _, name, __: names.append(name)
    incoming = ssl.MemoryBIO()
    peer = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(TlsStream(make_context(None, trusting(pki), BOTH), name, Observation()).start())
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    assert names == [name if sent else None]
