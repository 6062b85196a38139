"""What a credential's files may look like, and what is said of each that is wrong."""

from __future__ import annotations

import base64
import datetime
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from sidecert.config import CredentialConfig, SecretSource
from sidecert.credentials import Credential, Finding, load, load_trust
from support.certs import DAY, HOUR, Authority, Leaf, expired, make_key, not_yet_valid, write_private

PASS = "correct horse"
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl command is not installed")


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def inner(ca: Authority) -> Authority:
    return ca.intermediate("inner").intermediate("innermost")


@pytest.fixture(scope="module")
def alice(ca: Authority) -> Leaf:
    return ca.caller("alice", key="rsa")


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def load_pem(
    folder: Path,
    certificate: bytes,
    key: bytes,
    passphrase: SecretSource | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Credential | None, list[Finding]]:
    config = CredentialConfig(
        certificate=write_private(folder / "alice.crt", certificate),
        key=write_private(folder / "alice.key", key),
        passphrase=passphrase,
    )
    return load("alice", config, environ or {}, time.time())


def load_p12(
    folder: Path, store: bytes, passphrase: str | None = PASS
) -> tuple[Credential | None, list[Finding]]:
    source = None if passphrase is None else SecretSource(env="PASS")
    config = CredentialConfig(pkcs12=write_private(folder / "alice.p12", store), passphrase=source)
    return load("alice", config, {"PASS": passphrase or ""}, time.time())


def openssl(*args: str | Path, stdin: bytes | None = None) -> bytes:
    assert OPENSSL
    return subprocess.run(
        [OPENSSL, *map(str, args)], input=stdin, check=True, capture_output=True, timeout=60
    ).stdout


def is_fine(outcome: tuple[Credential | None, list[Finding]], leaf: Leaf) -> bool:
    """Loaded as `leaf`, nothing found."""
    credential, findings = outcome
    assert findings == []
    assert credential is not None
    return credential.certificate == leaf.certificate


def the_only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_credential_tells_what_the_metrics_and_the_pool_need(ca: Authority, tmp_path: Path) -> None:
    """Fingerprint, serial, validity and subject are the leaf's."""
    leaf = ca.caller("alice")
    credential, findings = load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem())
    assert findings == []
    assert credential is not None
    assert credential.id == "alice"
    assert credential.fingerprint == leaf.certificate.fingerprint(hashes.SHA256()).hex()
    assert int(credential.serial, 16) == leaf.certificate.serial_number
    assert len(credential.serial) % 2 == 0
    assert credential.not_before == leaf.certificate.not_valid_before_utc.timestamp()
    assert credential.not_after == leaf.certificate.not_valid_after_utc.timestamp()
    assert credential.subject == "CN=alice"
    assert credential.chain == ()
    assert "key" not in repr(credential).replace("key_", "")


@pytest.mark.parametrize("kind", ["ec", "rsa", "ed25519"])
@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
@pytest.mark.parametrize("passphrase", [None, PASS])
def test_pem_keys_load_in_each_form(ca: Authority, tmp_path: Path, kind, form, passphrase) -> None:
    """PKCS#8, PKCS#1 and SEC1, in clear, encrypted, and encrypted in the older Proc-Type way."""
    if kind == "ed25519" and form == "traditional":
        pytest.skip("Ed25519 has no older form")
    leaf = ca.caller("alice", key=kind)
    source = SecretSource(env="PASS") if passphrase else None
    key = leaf.key_pem(passphrase, form)
    if form == "traditional" and passphrase:
        assert b"Proc-Type: 4,ENCRYPTED" in key
    assert is_fine(load_pem(tmp_path, leaf.certificate_pem(), key, source, {"PASS": PASS}), leaf)


def test_ed448_key_loads(ca: Authority, tmp_path: Path) -> None:
    """TLS has a signature scheme for it, so it is taken."""
    key = ed448.Ed448PrivateKey.generate()
    certificate = certify(ca, key)
    credential, findings = load_pem(tmp_path, pem(certificate), clear(key))
    assert findings == []
    assert credential is not None


@needs_openssl
@pytest.mark.parametrize(
    "command",
    [
        "rsa -traditional -des3 -passout pass:{p}",
        "rsa -traditional -aes128 -passout pass:{p}",
        "pkcs8 -topk8 -scrypt -passout pass:{p}",
        "pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout pass:{p}",
        "pkcs8 -topk8 -v1 PBE-SHA1-RC2-40 -provider legacy -provider default -passout pass:{p}",
    ],
)
def test_keys_encrypted_by_the_openssl_command_load(alice: Leaf, tmp_path: Path, command: str) -> None:
    """Old ciphers too, as far as they are read at all."""
    words = [word.format(p=PASS) for word in command.split()]
    key = openssl(*words, stdin=alice.key_pem())
    source = SecretSource(env="PASS")
    assert is_fine(load_pem(tmp_path, alice.certificate_pem(), key, source, {"PASS": PASS}), alice)


@needs_openssl
def test_key_with_a_cipher_that_is_not_read_comes_with_the_command_that_converts_it(
    alice: Leaf, tmp_path: Path
) -> None:
    """Single DES is gone; the command that is named makes a file that loads."""
    key = openssl(
        "rsa", "-traditional", "-des", "-passout", f"pass:{PASS}",
        "-provider", "legacy", "-provider", "default", stdin=alice.key_pem(),
    )  # fmt: skip
    source, environ = SecretSource(env="PASS"), {"PASS": PASS}
    credential, findings = load_pem(tmp_path, alice.certificate_pem(), key, source, environ)
    assert credential is None
    finding = the_only(findings)
    assert "old cipher" in finding.wrong
    command = finding.right.split("`")[1]
    new = tmp_path / "new.key"
    words = command.replace("NEW.key", str(new)).split()[1:]
    openssl(*words, "-passin", f"pass:{PASS}", "-passout", f"pass:{PASS}")
    assert is_fine(load_pem(tmp_path, alice.certificate_pem(), new.read_bytes(), source, environ), alice)


@needs_openssl
def test_ec_key_with_its_parameters_before_it_loads(tmp_path: Path, ca: Authority) -> None:
    """`openssl ecparam -genkey` puts a block of parameters first."""
    text = openssl("ecparam", "-name", "prime256v1", "-genkey")
    assert b"EC PARAMETERS" in text
    key = serialization.load_pem_private_key(text, None)
    credential, findings = load_pem(tmp_path, pem(certify(ca, key)), text)
    assert findings == []
    assert credential is not None


def test_passphrase_comes_from_a_file(alice: Leaf, tmp_path: Path) -> None:
    """`{file: PATH}`, with its trailing newline trimmed."""
    source = SecretSource(file=write_private(tmp_path / "pass", f"{PASS}\n".encode()))
    assert is_fine(load_pem(tmp_path, alice.certificate_pem(), alice.key_pem(PASS), source), alice)


def test_passphrase_that_is_not_needed_is_fine(alice: Leaf, tmp_path: Path) -> None:
    """For keys in clear and for stores that have none."""
    source, environ = SecretSource(env="PASS"), {"PASS": PASS}
    assert is_fine(load_pem(tmp_path, alice.certificate_pem(), alice.key_pem(), source, environ), alice)
    assert is_fine(load_p12(tmp_path, alice.pkcs12(), PASS), alice)


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
def test_missing_wrong_and_empty_passphrases_are_told_apart(alice: Leaf, tmp_path: Path, form) -> None:
    """Each has its own words, and none of them holds a passphrase."""
    source = SecretSource(env="PASS")

    def wrong(given: SecretSource | None, environ: dict[str, str]) -> Finding:
        key = alice.key_pem(PASS, form)
        credential, findings = load_pem(tmp_path, alice.certificate_pem(), key, given, environ)
        assert credential is None
        return the_only(findings)

    assert "no passphrase is given" in wrong(None, {}).wrong
    assert wrong(source, {"PASS": ""}).key == "passphrase"
    mistaken = wrong(source, {"PASS": "hunter2"})
    assert "cannot be decrypted with the given passphrase" in mistaken.wrong
    assert "openssl pkey -in" in mistaken.right
    assert "hunter2" not in str(mistaken)
    unset = wrong(source, {})
    assert unset.key == "passphrase"
    assert not unset.warning


def test_unset_passphrase_does_not_hide_what_else_is_wrong(ca: Authority, tmp_path: Path) -> None:
    """The certificate is judged all the same."""
    leaf = ca.caller("alice", **expired())
    _, findings = load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem(PASS), SecretSource(env="NOT_SET"))
    assert [(f.key, f.warning) for f in findings] == [("passphrase", False), ("certificate", True)]
    assert "expired on" in findings[1].wrong


def test_pkcs12_store_loads_with_its_chain(inner: Authority, tmp_path: Path) -> None:
    """A store's certificates have no order of their own: none is found wanting."""
    leaf = inner.caller("alice")
    outcome = load_p12(tmp_path, leaf.pkcs12(PASS))
    assert is_fine(outcome, leaf)
    assert outcome[0] is not None
    assert outcome[0].chain == leaf.chain
    assert is_fine(load_p12(tmp_path, leaf.pkcs12(PASS, old=True)), leaf)
    assert is_fine(load_p12(tmp_path, leaf.pkcs12(), None), leaf)


def legacy_store(leaf: Leaf, folder: Path) -> bytes:
    """The kind with RC2-40 and 3DES that the openssl of before version 3 and old Windows made."""
    made = leaf.write(folder / "legacy")
    out = folder / "legacy.p12"
    openssl(
        "pkcs12", "-export", "-legacy", "-in", made.certificate, "-inkey", made.key, "-out", out,
        "-passout", f"pass:{PASS}",
    )  # fmt: skip
    return out.read_bytes()


@needs_openssl
def test_old_pkcs12_store_with_rc2_loads(alice: Leaf, tmp_path: Path) -> None:
    """OpenSSL 3 refuses it by default; it is loaded here."""
    assert is_fine(load_p12(tmp_path, legacy_store(alice, tmp_path)), alice)


@needs_openssl
def test_old_pkcs12_store_comes_with_a_conversion_where_it_is_not_read(alice: Leaf, tmp_path: Path) -> None:
    """Without the legacy provider the command is named, and what it makes loads."""
    store = write_private(tmp_path / "old.p12", legacy_store(alice, tmp_path))
    code = (
        "import sys, pathlib; from sidecert.config import CredentialConfig, "
        "SecretSource; from sidecert.credentials import load\n"
        f"c = CredentialConfig(pkcs12=pathlib.Path({str(store)!r}), passphrase=SecretSource(env='P'))\n"
        f"credential, findings = load('a', c, {{'P': {PASS!r}}}, 0.0)\n"
        "assert credential is None\nprint(findings[0].wrong, findings[0].right)"
    )
    environ = {**os.environ, "CRYPTOGRAPHY_OPENSSL_NO_LEGACY": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    command = said.split("`")[1]
    assert command.startswith("openssl pkcs12 -legacy -in")
    new = tmp_path / "new.pem"
    words = command.replace("NEW.pem", str(new)).split()[1:]
    openssl(*words, "-passin", f"pass:{PASS}", "-passout", f"pass:{PASS}")
    config = CredentialConfig(certificate=new, key=new, passphrase=SecretSource(env="PASS"))
    assert is_fine(load("alice", config, {"PASS": PASS}, time.time()), alice)


def test_pkcs12_passphrases_are_told_apart(alice: Leaf, tmp_path: Path) -> None:
    """None given and a wrong one; the passphrase is in neither message."""
    credential, findings = load_p12(tmp_path, alice.pkcs12(PASS), None)
    assert credential is None
    assert "without a passphrase" in the_only(findings).wrong
    credential, findings = load_p12(tmp_path, alice.pkcs12(PASS), "hunter2")
    assert credential is None
    assert "with the given passphrase" in the_only(findings).wrong
    assert "hunter2" not in str(findings)


def test_pkcs12_store_without_a_key_or_a_certificate_is_an_error(alice: Leaf, tmp_path: Path) -> None:
    """It names what is missing and the command that puts both in."""
    lock = serialization.BestAvailableEncryption(PASS.encode())
    only_certificate = pkcs12.serialize_key_and_certificates(None, None, alice.certificate, None, lock)
    only_key = pkcs12.serialize_key_and_certificates(None, alice.key, None, None, lock)
    for store, missing in ((only_certificate, "no private key"), (only_key, "no certificate")):
        credential, findings = load_p12(tmp_path, store)
        assert credential is None
        finding = the_only(findings)
        assert missing in finding.wrong
        assert "openssl pkcs12 -export" in finding.right


@pytest.mark.skipif(shutil.which("keytool") is None, reason="the keytool command is not installed")
def test_pkcs12_store_with_two_keys_is_a_warning(tmp_path: Path) -> None:
    """Which of two callers calls must never be a matter of luck."""
    store = tmp_path / "two.p12"
    for alias in ("first", "second"):
        subprocess.run(
            ["keytool", "-genkeypair", "-keystore", str(store), "-storetype", "PKCS12", "-storepass", PASS,
             "-alias", alias, "-dname", f"CN={alias}", "-keyalg", "EC"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    credential, findings = load_p12(tmp_path, store.read_bytes())
    assert credential is not None
    assert any("holds 2 private keys" in finding.wrong and finding.warning for finding in findings)


def test_certificate_and_key_may_be_in_one_file(alice: Leaf, tmp_path: Path) -> None:
    """In either order."""
    for both in (alice.certificate_pem() + alice.key_pem(), alice.key_pem() + alice.certificate_pem()):
        file = write_private(tmp_path / "both.pem", both)
        assert is_fine(load("alice", CredentialConfig(certificate=file, key=file), {}, time.time()), alice)


@pytest.mark.parametrize(
    "mangle",
    [
        pytest.param(
            lambda text: "Bag Attributes\n  friendlyName: alice\n" + text + "\nend\n", id="text-around"
        ),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="crlf"),
        pytest.param(lambda text: text.replace("\n", "\r"), id="cr"),
        pytest.param(lambda text: "".join("    " + line for line in text.splitlines(True)), id="indented"),
        pytest.param(lambda text: text.replace("\n", "\n\n"), id="blank-lines"),
        pytest.param(lambda text: text.replace("-----\n-----", "----------"), id="run-together"),
        pytest.param(lambda text: text.rstrip(), id="no-last-newline"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_pem_survives_what_editors_do_to_it(
    inner: Authority, tmp_path: Path, mangle: Callable[[str], str], encoding: str
) -> None:
    """Text around it, CRLF, indentation, byte order marks."""
    leaf = inner.caller("alice")
    certificate = mangle(leaf.certificate_pem().decode()).encode(encoding)
    for key in (leaf.key_pem(), leaf.key_pem(PASS, "traditional")):
        mangled = (
            key if b"Proc-Type" in key and "\n\n" in mangle("\n") else mangle(key.decode()).encode(encoding)
        )
        source = SecretSource(env="PASS")
        assert is_fine(load_pem(tmp_path, certificate, mangled, source, {"PASS": PASS}), leaf)


def test_chain_goes_on_the_wire_without_its_root(ca: Authority, inner: Authority, tmp_path: Path) -> None:
    """Intermediates in order; the root is harmless in the file and needed by nobody."""
    leaf = inner.caller("alice")
    outcome = load_pem(tmp_path, leaf.certificate_pem() + ca.pem, leaf.key_pem())
    assert is_fine(outcome, leaf)
    assert outcome[0] is not None
    assert outcome[0].chain == leaf.chain
    assert len(leaf.chain) == 2


def test_chain_out_of_order_is_put_in_order_with_a_warning(
    ca: Authority, inner: Authority, tmp_path: Path
) -> None:
    """The leaf is the one that the key belongs to, wherever it stands."""
    leaf = inner.caller("alice")
    near, far = leaf.chain
    for order in (
        (near, far, leaf.certificate),
        (leaf.certificate, far, near),
        (ca.certificate, far, near, leaf.certificate),
    ):
        credential, findings = load_pem(tmp_path, pem(*order), leaf.key_pem())
        assert credential is not None
        assert credential.certificate == leaf.certificate
        assert credential.chain == (near, far)
        finding = the_only(findings)
        assert finding.warning
        assert "out of order" in finding.wrong
        assert "CN=alice; CN=innermost; CN=inner" in finding.right


def test_gap_in_the_chain_is_a_warning_that_names_the_missing_certificate(
    inner: Authority, tmp_path: Path
) -> None:
    """What is beyond the gap goes along: the upstream may hold the missing one."""
    leaf = inner.caller("alice")
    far = leaf.chain[-1]
    credential, findings = load_pem(tmp_path, pem(leaf.certificate, far), leaf.key_pem())
    assert credential is not None
    assert credential.chain == (far,)
    finding = the_only(findings)
    assert finding.warning
    assert "gap" in finding.wrong
    assert "CN=innermost" in finding.right


def test_certificates_that_are_no_part_of_the_chain_are_left_out_with_a_warning(
    ca: Authority, alice: Leaf, tmp_path: Path
) -> None:
    """Another's leaf, or another's CA behind a chain that is whole."""
    bob = ca.caller("bob")
    other = Authority("another root")
    for file in (
        pem(alice.certificate, bob.certificate),
        pem(alice.certificate, ca.certificate, other.certificate),
    ):
        credential, findings = load_pem(tmp_path, file, alice.key_pem())
        assert credential is not None
        assert credential.chain == ()
        finding = the_only(findings)
        assert finding.warning
        assert "no part of the chain" in finding.wrong


def test_renewed_certificate_wins_over_the_expired_one_for_the_same_key(
    ca: Authority, tmp_path: Path
) -> None:
    """Both in one file, the old one first."""
    old = ca.caller("alice", **expired())
    new = certify(ca, old.key)
    credential, findings = load_pem(tmp_path, pem(old.certificate, new), old.key_pem())
    assert credential is not None
    assert credential.certificate == new
    assert all("expired" not in finding.wrong for finding in findings)


def test_key_of_another_certificate_is_an_error_that_describes_both(
    ca: Authority, alice: Leaf, tmp_path: Path
) -> None:
    """Their kinds and public keys, and the commands that show them."""
    credential, findings = load_pem(tmp_path, alice.certificate_pem(), ca.caller("bob").key_pem())
    assert credential is None
    finding = the_only(findings)
    assert (finding.key, finding.warning) == ("key", False)
    assert "RSA, 2048 bits" in finding.wrong
    assert "EC, secp256r1" in finding.wrong
    assert f"openssl x509 -in {tmp_path / 'alice.crt'} -noout -pubkey" in finding.right


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (expired(), "expired on 20"),
        (not_yet_valid(), "is not valid before 20"),
        ({"usages": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "lacks clientAuth"),
    ],
)
def test_what_the_upstream_judges_is_a_warning(ca: Authority, tmp_path: Path, trouble, words: str) -> None:
    """The credential loads, and the other routes serve."""
    leaf = ca.caller("alice", **trouble)
    for outcome in (
        load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem()),
        load_p12(tmp_path, leaf.pkcs12(PASS)),
    ):
        credential, findings = outcome
        assert credential is not None
        finding = the_only(findings)
        assert finding.warning
        assert words in finding.wrong
        assert "CN=alice" in finding.wrong
        assert finding.right


@pytest.mark.parametrize("usages", [(), (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)])
def test_no_extended_key_usage_and_any_are_fine(ca: Authority, tmp_path: Path, usages) -> None:
    """Neither rules client authentication out (RFC 5280 4.2.1.12)."""
    leaf = ca.caller("alice", usages=usages)
    assert is_fine(load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem()), leaf)


def test_key_usage_without_signing_is_a_warning(ca: Authority, tmp_path: Path) -> None:
    """A key that may only encipher signs no handshake."""
    key = make_key()
    usage = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    credential, findings = load_pem(tmp_path, pem(certify(ca, key, usage)), clear(key))
    assert credential is not None
    assert "lacks digitalSignature" in the_only(findings).wrong


def test_expired_intermediate_is_a_warning(ca: Authority, tmp_path: Path) -> None:
    """It is named, since the leaf itself is fine."""
    key, inner_key = make_key(), make_key()
    inner = certify(ca, inner_key, x509.BasicConstraints(True, None), name="inner", ends=-HOUR)
    leaf = certify(ca, key, signer=inner_key, issuer="inner")
    credential, findings = load_pem(tmp_path, pem(leaf, inner), clear(key))
    assert credential is not None
    assert credential.chain == (inner,)
    assert "the intermediate CN=inner expired on" in the_only(findings).wrong


def test_ca_certificate_as_leaf_is_a_warning(ca: Authority, tmp_path: Path) -> None:
    """`openssl req -x509` makes such; many upstreams refuse them."""
    credential, findings = load_pem(tmp_path, ca.pem, clear(ca.key))
    assert credential is not None
    finding = the_only(findings)
    assert finding.warning
    assert "is a CA certificate" in finding.wrong


def test_key_that_others_can_read_is_a_warning(alice: Leaf, tmp_path: Path) -> None:
    """Links are followed, as Kubernetes mounts secrets through them; with `fsGroup` the group may read."""
    certificate = write_private(tmp_path / "alice.crt", alice.certificate_pem())
    certificate.chmod(0o644)
    real = write_private(tmp_path / "real.key", alice.key_pem())
    real.chmod(0o644)
    link = tmp_path / "link.key"
    link.symlink_to(real)
    store = write_private(tmp_path / "alice.p12", alice.pkcs12(PASS))
    store.chmod(0o640)
    secret = write_private(tmp_path / "pass", PASS.encode())
    secret.chmod(0o602)
    credential, findings = load("a", CredentialConfig(certificate=certificate, key=link), {}, time.time())
    assert credential is not None
    finding = the_only(findings)
    assert (finding.key, finding.warning) == ("key", True)
    assert f"{link} may be read" in finding.wrong
    assert "0644" in finding.wrong
    assert "chmod 600" in finding.right
    assert "defaultMode: 0400" in finding.right
    config = CredentialConfig(pkcs12=store, passphrase=SecretSource(file=secret))
    credential, findings = load("a", config, {}, time.time())
    assert credential is not None
    assert [(finding.key, finding.warning) for finding in findings] == [("passphrase", True)]


def test_key_too_small_for_openssl_is_an_error_at_load(ca: Authority, tmp_path: Path) -> None:
    """Not at the first call."""
    leaf = ca.caller("alice", key="rsa-1024")
    credential, findings = load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem())
    assert credential is None
    finding = the_only(findings)
    assert not finding.warning
    assert "too small (RSA, 1024 bits" in finding.wrong
    assert "2048" in finding.right


def _rsa(*exponents: int) -> rsa.RSAPrivateNumbers:
    """A key of two Mersenne primes, which are known."""
    p, q = (2**each - 1 for each in exponents)
    e = next(e for e in range(65537, 70000, 2) if math.gcd(e, (p - 1) * (q - 1)) == 1)
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)


@pytest.mark.parametrize("form", ["key", "pkcs12", "der"])
def test_rsa_key_that_would_hold_up_calls_is_an_error_at_once(alice: Leaf, tmp_path: Path, form: str) -> None:
    """Nothing else of the process runs while its primes are tested: 46 s for these 14,112 bits."""
    key = _rsa(9689, 4423).private_key(unsafe_skip_rsa_key_validation=True)
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    began = time.process_time()
    if form == "pkcs12":
        path = tmp_path / "alice.p12"
        write_private(path, pkcs12.serialize_key_and_certificates(b"a", key, None, None, clear))
        _, findings = load("alice", CredentialConfig(pkcs12=path), {}, time.time())
    else:
        encoding = serialization.Encoding.DER if form == "der" else serialization.Encoding.PEM
        _, findings = load_pem(tmp_path, alice.certificate_pem(), key.private_bytes(encoding, pkcs8, clear))
    assert time.process_time() - began < 5
    [finding] = findings
    words = "in DER" if form == "der" else "too large"
    assert words in finding.wrong
    assert not finding.warning


@pytest.mark.parametrize("clear", [True, False])
def test_rsa_key_that_only_a_store_is_slow_to_open_is_asked_for_as_pem(
    alice: Leaf, tmp_path: Path, clear: bool
) -> None:
    """A store tests the primes of a key, PEM does not: 5,420 bits are too many for the one only."""
    key = _rsa(3217, 2203).private_key(unsafe_skip_rsa_key_validation=True)
    encryption = (
        serialization.NoEncryption() if clear else serialization.BestAvailableEncryption(PASS.encode())
    )
    path = tmp_path / "alice.p12"
    write_private(path, pkcs12.serialize_key_and_certificates(b"a", key, None, None, encryption))
    _, findings = load("alice", CredentialConfig(pkcs12=path), {}, time.time())
    finding = the_only(findings)
    assert "too large for a PKCS#12 store (more than RSA of 4096 bits)" in finding.wrong
    assert f"`openssl pkcs12 -in {path} -out NEW.pem`" in finding.right
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, pkcs8, none)
    _, findings = load_pem(tmp_path, alice.certificate_pem(), pem)
    assert "too large" not in the_only(findings).wrong


def test_rsa_key_of_the_most_bits_of_a_store_is_loaded(ca: Authority, tmp_path: Path) -> None:
    """Encrypted, which makes it larger."""
    leaf = ca.caller("alice", key="rsa-4096")
    config = CredentialConfig(
        pkcs12=write_private(tmp_path / "alice.p12", leaf.pkcs12(PASS)), passphrase=SecretSource(env="PASS")
    )
    credential, findings = load("alice", config, {"PASS": PASS}, time.time())
    assert credential is not None
    assert not findings


def test_rsa_key_whose_numbers_do_not_fit_is_an_error(ca: Authority, tmp_path: Path) -> None:
    """Its public half is the certificate's, and what it signs is not: found at load."""
    leaf = ca.caller("alice", key="rsa")
    assert isinstance(leaf.key, rsa.RSAPrivateKey)
    right = leaf.key.private_numbers()
    wrong = rsa.RSAPrivateNumbers(
        right.p, right.q, right.d - 2, right.dmp1 - 2, right.dmq1, right.iqmp, right.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem_key = wrong.private_bytes(serialization.Encoding.PEM, pkcs8, clear)
    credential, findings = load_pem(tmp_path, leaf.certificate_pem(), pem_key)
    assert credential is None
    assert "holds a private key that is damaged" in the_only(findings).wrong


@pytest.mark.parametrize("form", ["key", "pkcs12"])
def test_file_that_has_not_changed_is_not_opened_again(alice: Leaf, tmp_path: Path, form: str) -> None:
    """Opening takes long, and calls wait; another passphrase, or other bytes, are another thing."""
    if form == "pkcs12":
        path = write_private(tmp_path / "alice.p12", alice.pkcs12(PASS))
        config = CredentialConfig(pkcs12=path, passphrase=SecretSource(env="PASS"))
    else:
        config = CredentialConfig(
            certificate=write_private(tmp_path / "alice.crt", alice.certificate_pem()),
            key=write_private(path := tmp_path / "alice.key", alice.key_pem(PASS)),
            passphrase=SecretSource(env="PASS"),
        )
    first, _ = load("alice", config, {"PASS": PASS}, time.time())
    assert first is not None
    known = {first.opened.mark: first.opened}
    again, _ = load("alice", config, {"PASS": PASS}, time.time(), known)
    assert again is not None
    assert again.key is first.key
    none, findings = load("alice", config, {"PASS": "wrong"}, time.time(), known)
    assert none is None
    assert "passphrase" in the_only(findings).wrong
    path.write_bytes(alice.pkcs12(PASS) if form == "pkcs12" else alice.key_pem(PASS))  # a new salt
    anew, _ = load("alice", config, {"PASS": PASS}, time.time(), known)
    assert anew is not None
    assert anew.key is not first.key


def test_intermediate_with_a_small_key_is_an_error_at_load(ca: Authority, tmp_path: Path) -> None:
    """OpenSSL would refuse it in each handshake, and tell nobody before."""
    key, weak = make_key(), make_key("rsa-1024")
    inner = certify(ca, weak, x509.BasicConstraints(True, None), name="weak")
    leaf = certify(ca, key, signer=weak, issuer="weak")
    credential, findings = load_pem(tmp_path, pem(leaf, inner), clear(key))
    assert credential is None
    finding = the_only(findings)
    assert not finding.warning
    assert "CN=weak: its key is too small" in finding.wrong


@needs_openssl
def test_intermediate_signed_with_sha1_is_an_error_at_load(ca: Authority, tmp_path: Path) -> None:
    """As one with a small key is."""
    inner_key, key = make_key("rsa"), make_key()
    folder = tmp_path / "ca"
    root, root_key = ca.write(folder), write_private(folder / "ca.key", clear(ca.key))
    request = openssl(
        "req", "-new", "-key", write_private(folder / "sha1.key", clear(inner_key)), "-subj", "/CN=sha1"
    )
    inner = openssl("x509", "-req", "-sha1", "-CA", root, "-CAkey", root_key, "-days", "2", stdin=request)
    leaf = certify(ca, key, signer=inner_key, issuer="sha1")
    credential, findings = load_pem(tmp_path, pem(leaf) + inner, clear(key))
    assert credential is None
    finding = the_only(findings)
    assert "CN=sha1: its signature's digest" in finding.wrong
    assert "SHA-256" in finding.right


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ec.generate_private_key(ec.SECP256K1()), "EC, secp256k1"),
        (dsa.generate_private_key(2048), "DSA"),
        (x25519.X25519PrivateKey.generate(), "X25519"),
    ],
    ids=["secp256k1", "dsa", "x25519"],
)
def test_key_of_a_kind_that_tls_cannot_use_is_an_error(alice: Leaf, tmp_path: Path, key, words: str) -> None:
    """OpenSSL would load it and then send no certificate, without a word."""
    credential, findings = load_pem(tmp_path, alice.certificate_pem(), clear(key))
    assert credential is None
    finding = the_only(findings)
    assert (finding.key, finding.warning) == ("key", False)
    assert words in finding.wrong


def der(leaf: Leaf) -> bytes:
    return leaf.certificate.public_bytes(serialization.Encoding.DER)


def key_der(leaf: Leaf) -> bytes:
    return leaf.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(leaf: Leaf, encoding: serialization.Encoding = serialization.Encoding.PEM) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(leaf.certificate.subject)
    return builder.sign(leaf.key, hashes.SHA256()).public_bytes(encoding)


def bag(leaf: Leaf, encoding: serialization.Encoding) -> bytes:
    return pkcs7.serialize_certificates([leaf.certificate], encoding)


def public(leaf: Leaf) -> bytes:
    return leaf.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def openssh(leaf: Leaf) -> bytes:
    return leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
JKS = b"\xfe\xed\xfe\xed\0\0\0\2\0\0\0\0"


@pytest.mark.parametrize(
    ("make", "what", "right"),
    [
        (der, "a certificate in DER", "`openssl x509 -inform DER -in {f} -out {o}`"),
        (Leaf.key_pem, "a private key", "one for `key`"),
        (key_der, "a private key in DER", "one for `key`"),
        (openssh, "a private key in OpenSSH's own form", "one for `key`"),
        (request, "a certificate request (CSR)", "send the request to the CA"),
        (lambda leaf: request(leaf, DER), "a certificate request (CSR)", "send the request to the CA"),
        (lambda leaf: bag(leaf, PEM), "a PKCS#7 file", "`openssl pkcs7 -in {f} -print_certs -out {o}`"),
        (lambda leaf: bag(leaf, DER), "a PKCS#7 file", "`openssl pkcs7 -inform DER -in {f} -print_certs"),
        (lambda leaf: leaf.pkcs12(PASS), "a PKCS#12 store", "`pkcs12: {f}`"),
        (lambda leaf: JKS, "a Java key store", "`keytool -importkeystore -srckeystore {f}"),
        (public, "a public key", "the certificate that the CA made for this public key"),
        (lambda leaf: b"hello", "text without a PEM block", "-----BEGIN CERTIFICATE-----"),
        (lambda leaf: b"\0\1\2", "binary data", "-----BEGIN CERTIFICATE-----"),
        (lambda leaf: der(leaf)[:-9], "cut short", "copy it again"),
        (lambda leaf: leaf.certificate_pem()[:-9], "cut short", "-----END line"),
        (lambda leaf: leaf.certificate_pem()[:300], "cut short", "-----END line"),
        (lambda leaf: leaf.certificate_pem().replace(b"\nMII", b"\nMIQ"), "damaged", "copy it again"),
        (lambda leaf: leaf.certificate_pem().replace(b"\n", b"\\n"), "without its line breaks", "sed"),
        (lambda leaf: b"\n \n", "is empty", "-----BEGIN CERTIFICATE-----"),
        (lambda leaf: b"", "is empty", "-----BEGIN CERTIFICATE-----"),
        (lambda leaf: leaf.certificate_pem() + bytes(1 << 20), "larger than 1 MiB", "PEM file"),
    ],
)  # fmt: skip
def test_what_is_no_certificate_is_named_with_what_would_be_right(
    alice: Leaf, tmp_path: Path, make: Callable[[Leaf], bytes], what: str, right: str
) -> None:
    """What the file is, and the command that makes a certificate of it where there is one."""
    credential, findings = load_pem(tmp_path, make(alice), alice.key_pem())
    assert credential is None
    finding = the_only(findings)
    file = tmp_path / "alice.crt"
    assert (finding.key, finding.warning) == ("certificate", False)
    assert str(file) in finding.wrong
    assert what in finding.wrong
    assert right.format(f=file, o=tmp_path / "alice.pem") in finding.right


@pytest.mark.parametrize(
    ("make", "what", "right"),
    [
        (Leaf.certificate_pem, "a certificate", "one for `certificate`"),
        (der, "a certificate in DER", "one for `certificate`"),
        (key_der, "a private key in DER", "`openssl pkey -inform DER -in {f} -out {o}`"),
        (openssh, "a private key in OpenSSH's own form", "ssh-keygen -p -m PKCS8"),
        (request, "a certificate request (CSR)", "the private key that the request was made with"),
        (lambda leaf: bag(leaf, PEM), "a PKCS#7 file (certificates, no key)", "private key"),
        (lambda leaf: leaf.pkcs12(PASS), "a PKCS#12 store", "`pkcs12: {f}`"),
        (lambda leaf: JKS, "a Java key store", "`keytool -importkeystore"),
        (public, "a public key", "private key that belongs to it"),
        (lambda leaf: b"ssh-ed25519 AAAA alice", "a public key", "private key that belongs to it"),
        (lambda leaf: leaf.key_pem() + make_pem_key(), "holds 2 private keys", "only the certificate's own"),
        (lambda leaf: leaf.key_pem()[:200], "cut short", "-----END line"),
        (lambda leaf: leaf.key_pem().replace(b"\nMII", b"\nMIQ"), "damaged", "openssl pkey -in {f} -check"),
        (lambda leaf: b"", "is empty", "-----BEGIN PRIVATE KEY-----"),
    ],
)
def test_what_is_no_private_key_is_named_with_what_would_be_right(
    alice: Leaf, tmp_path: Path, make: Callable[[Leaf], bytes], what: str, right: str
) -> None:
    """What the file is, and the command that makes a key of it where there is one."""
    credential, findings = load_pem(tmp_path, alice.certificate_pem(), make(alice))
    assert credential is None
    finding = the_only(findings)
    file = tmp_path / "alice.key"
    assert (finding.key, finding.warning) == ("key", False)
    assert str(file) in finding.wrong
    assert what in finding.wrong
    assert right.format(f=file, o=tmp_path / "alice.pem") in finding.right


@pytest.mark.parametrize(
    ("make", "what", "right"),
    [
        (Leaf.certificate_pem, "a certificate", "`certificate: {f}`"),
        (Leaf.key_pem, "a private key", "`key: {f}`"),
        (der, "a certificate in DER", "PKCS#12 store"),
        (lambda leaf: JKS, "a Java key store", "-deststoretype PKCS12` and name"),
        (lambda leaf: bag(leaf, DER), "a PKCS#7 file", "PKCS#12 store"),
        (lambda leaf: leaf.pkcs12(PASS)[:-5], "cut short", "copy it again"),
        (lambda leaf: b"", "is empty", "PKCS#12 store"),
    ],
)
def test_what_is_no_pkcs12_store_is_named_with_what_would_be_right(
    alice: Leaf, tmp_path: Path, make: Callable[[Leaf], bytes], what: str, right: str
) -> None:
    """What the file is, and what to write instead."""
    credential, findings = load_p12(tmp_path, make(alice))
    assert credential is None
    finding = the_only(findings)
    file = tmp_path / "alice.p12"
    assert (finding.key, finding.warning) == ("pkcs12", False)
    assert str(file) in finding.wrong
    assert what in finding.wrong
    assert right.format(f=file) in finding.right


@needs_openssl
@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (der, "-inform DER"),
        (lambda leaf: bag(leaf, PEM), "pkcs7"),
        (lambda leaf: bag(leaf, DER), "pkcs7"),
        (lambda leaf: openssl("x509", "-trustout", stdin=leaf.certificate_pem()), "x509"),
        (lambda leaf: leaf.certificate_pem().replace(b"\n", b"\\n"), "sed"),
    ],
    ids=["der", "pkcs7", "pkcs7-der", "trusted", "one-line"],
)
def test_conversions_that_are_named_work(
    alice: Leaf, tmp_path: Path, make: Callable[[Leaf], bytes], fix: str
) -> None:
    """Run as they are written, they make a file that loads."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    _, findings = load_pem(folder, make(alice), alice.key_pem())
    command = the_only(findings).right
    command = (
        command[command.index("`sed") + 1 : command.rindex("`")] if fix == "sed" else command.split("`")[1]
    )
    assert fix in command
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
    assert is_fine(load_pem(folder, (folder / "alice.pem").read_bytes(), alice.key_pem()), alice)


def test_problems_of_certificate_and_key_come_together(tmp_path: Path) -> None:
    """One never hides the other."""
    config = CredentialConfig(certificate=tmp_path / "no.crt", key=tmp_path / "no.key")
    credential, findings = load("alice", config, {}, time.time())
    assert credential is None
    assert [(f.key, f.warning) for f in findings] == [("certificate", False), ("key", False)]
    assert all("does not exist" in finding.wrong for finding in findings)


def test_paths_that_are_no_readable_file_are_errors(alice: Leaf, tmp_path: Path) -> None:
    """A folder, a dangling link, a named pipe (which must not hang), a path with a NUL, a file for others."""
    key = write_private(tmp_path / "alice.key", alice.key_pem())
    pipe, dangling = tmp_path / "pipe", tmp_path / "dangling"
    os.mkfifo(pipe)
    dangling.symlink_to(tmp_path / "nowhere")
    cases = {
        tmp_path: "is a directory",
        dangling: "is a link to a file that is not there",
        pipe: "is not a regular file",
        tmp_path / "a\0b": "cannot be read",
        key / "x": "cannot be read",
    }
    for path, words in cases.items():
        credential, findings = load("alice", CredentialConfig(certificate=path, key=key), {}, time.time())
        assert credential is None
        assert words in the_only(findings).wrong


def test_file_that_may_not_be_read_is_an_error(
    alice: Leaf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is a matter of permissions."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    config = CredentialConfig(pkcs12=write_private(tmp_path / "alice.p12", alice.pkcs12(PASS)))
    monkeypatch.setattr("sidecert.credentials.keyfiles.os.open", refuse)
    credential, findings = load("alice", config, {}, time.time())
    assert credential is None
    assert "may not be read by this user" in the_only(findings).wrong


def test_trust_takes_every_certificate_of_the_file(ca: Authority, alice: Leaf, tmp_path: Path) -> None:
    """CAs and, for pinning, an upstream's own certificate."""
    file = write_private(tmp_path / "ca.pem", b"# ours\n" + ca.pem + alice.certificate_pem())
    assert load_trust(file) == ((ca.certificate, alice.certificate), [])


@pytest.mark.parametrize(
    ("make", "what", "right"),
    [
        (der, "a certificate in DER", "openssl x509 -inform DER -in {f} -out {o}"),
        (lambda leaf: bag(leaf, DER), "a PKCS#7 file", "openssl pkcs7"),
        (lambda leaf: leaf.pkcs12(PASS), "a PKCS#12 store", "openssl pkcs12 -in {f} -nokeys"),
        (lambda leaf: JKS, "a Java key store", "keytool -list -rfc -keystore {f} > {o}"),
        (Leaf.key_pem, "a private key", "CA certificates to trust"),
        (lambda leaf: b"", "is empty", "CA certificates to trust"),
        (
            lambda leaf: leaf.certificate_pem() + leaf.certificate_pem()[:99],
            "number 2 (CERTIFICATE)",
            "END line",
        ),
    ],
)
def test_trust_of_a_wrong_kind_is_an_error(
    alice: Leaf, tmp_path: Path, make: Callable[[Leaf], bytes], what: str, right: str
) -> None:
    """What the file is, and the command that converts it."""
    file = write_private(tmp_path / "ca.crt", make(alice))
    trusted, findings = load_trust(file)
    assert trusted == ()
    finding = the_only(findings)
    assert (finding.key, finding.warning) == ("trust", False)
    assert what in finding.wrong
    assert right.format(f=file, o=tmp_path / "ca.pem") in finding.right


def test_trust_with_a_private_key_or_an_expired_certificate_is_a_warning(
    ca: Authority, tmp_path: Path
) -> None:
    """Both are named, and the rest is trusted."""
    old = ca.caller("old", **expired())
    file = write_private(tmp_path / "ca.pem", ca.pem + old.certificate_pem() + old.key_pem())
    trusted, findings = load_trust(file)
    assert trusted == (ca.certificate, old.certificate)
    assert all(finding.warning for finding in findings)
    assert any("holds a private key" in finding.wrong for finding in findings)
    assert any("CN=old" in finding.wrong for finding in findings)


def test_subject_with_control_characters_is_shown_without_them(ca: Authority, tmp_path: Path) -> None:
    """Names from certificates go into logs and onto terminals."""
    key = make_key()
    certificate = certify(ca, key, name="al\x1b[31mice\nforged")
    credential, findings = load_pem(tmp_path, pem(certificate), clear(key))
    assert findings == []
    assert credential is not None
    assert credential.subject.isprintable()
    assert "\\x1b[31m" in credential.subject


def test_loaded_credential_shakes_hands(inner: Authority, tmp_path: Path) -> None:
    """What is loaded is what an upstream gets: leaf and chain."""
    leaf = inner.caller("alice")
    credential, _ = load_pem(tmp_path, leaf.certificate_pem(), leaf.key_pem())
    assert credential is not None
    ours = SSL.Context(SSL.TLS_METHOD)
    ours.use_certificate(credential.certificate)
    for intermediate in credential.chain:
        ours.add_extra_chain_cert(intermediate)
    ours.use_privatekey(credential.key)  # type: ignore[arg-type]
    peer = inner.peer()
    theirs = SSL.Context(SSL.TLS_METHOD)
    theirs.use_certificate(peer.certificate)
    theirs.use_privatekey(peer.key)
    theirs.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    one, other = SSL.Connection(ours, None), SSL.Connection(theirs, None)
    one.set_connect_state()
    other.set_accept_state()
    for _ in range(4):
        for sender, receiver in ((one, other), (other, one)):
            try:
                sender.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                receiver.bio_write(sender.bio_read(65536))
            except SSL.WantReadError:
                pass
    assert other.get_peer_certificate(as_cryptography=True) == leaf.certificate
    # OpenSSL counts the leaf in on the connecting side only.
    assert other.get_peer_cert_chain(as_cryptography=True) == list(leaf.chain)


QUICK = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(data=st.data())
def test_no_file_whatever_is_in_it_makes_loading_raise(
    data: st.DataObject, alice: Leaf, tmp_path: Path
) -> None:
    """Random bytes, cut and altered files: always a finding or a credential, never both and never neither."""
    whole = [
        alice.certificate_pem(), alice.key_pem(), alice.key_pem(PASS, "traditional"), der(alice),
        key_der(alice), request(alice), bag(alice, DER), openssh(alice),
    ]  # fmt: skip
    cut = st.sampled_from(whole).flatmap(lambda b: st.integers(0, len(b)).map(lambda n: b[:n]))
    altered = st.tuples(st.sampled_from(whole), st.integers(0, 5000), st.binary(max_size=4)).map(
        lambda t: t[0][: t[1] % len(t[0])] + t[2] + t[0][t[1] % len(t[0]) + len(t[2]) :]
    )
    labels = st.sampled_from([b"CERTIFICATE", b"PRIVATE KEY", b"RSA PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"])
    armoured = st.tuples(labels, st.binary(max_size=80)).map(
        lambda t: b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (t[0], t[1], t[0])
    )
    anything = st.one_of(st.binary(max_size=200), cut, altered, armoured, st.sampled_from(whole))
    certificate, key = data.draw(anything), data.draw(anything)
    outcomes = [
        load_pem(tmp_path, certificate, key, SecretSource(env="PASS"), {"PASS": PASS}),
        load_p12(tmp_path, certificate),
    ]
    for credential, findings in outcomes:
        assert (credential is None) == any(not finding.warning for finding in findings)
        assert all(finding.wrong and finding.right and PASS not in str(finding) for finding in findings)
    trusted, findings = load_trust(tmp_path / "alice.crt")
    assert (trusted == ()) == any(not finding.warning for finding in findings)


@QUICK
@given(length=st.integers(0, 3000))
def test_cut_pkcs12_store_never_makes_loading_raise(length: int, ca: Authority, tmp_path: Path) -> None:
    """At whatever byte it ends."""
    store = ca.caller("alice").pkcs12(PASS, old=True)
    credential, findings = load_p12(tmp_path, store[: min(length, len(store) - 1)])
    assert credential is None
    assert not the_only(findings).warning


def clear(key) -> bytes:
    """A private key of any kind as PKCS#8 in clear."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_pem_key() -> bytes:
    return clear(make_key())


def certify(
    ca: Authority, key, *extensions: x509.ExtensionType, name="alice", signer=None, issuer=None, ends=30 * DAY
):
    """A certificate for `key` with just these `extensions`, from `ca` or from `signer` named `issuer`."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]) if issuer else ca.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ends)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer or ca.key, hashes.SHA256())


def test_certificate_that_only_openssl_finds_malformed_is_a_finding(ca: Authority, tmp_path: Path) -> None:
    """cryptography reads more than OpenSSL takes: a key of an unknown kind with anything for its curve."""
    leaf = ca.caller("alice")

    def spoil(certificate: x509.Certificate) -> bytes:
        der = certificate.public_bytes(serialization.Encoding.DER)
        spoilt = der.replace(bytes.fromhex("2a8648ce3d02010608"), bytes.fromhex("2a8648cc2d00423608"))
        assert spoilt != der
        return b"".join(
            (
                b"-----BEGIN CERTIFICATE-----\n",
                base64.encodebytes(spoilt),
                b"-----END CERTIFICATE-----\n",
            )
        )

    for chain in (spoil(leaf.certificate), pem(leaf.certificate) + spoil(ca.certificate)):
        credential, findings = load_pem(tmp_path, chain, leaf.key_pem())
        assert credential is None
        assert "damaged" in the_only(findings).wrong
    trusted, findings = load_trust(write_private(tmp_path / "ca.pem", spoil(ca.certificate)))
    assert trusted == ()
    assert "damaged" in the_only(findings).wrong
