"""Certificate + key + chain from the files that the config names, checked before anybody calls with them.

`load` and `load_trust` never raise for what is in a file: each thing that is wrong is a `Finding`, which
names the file and what would be right, and all findings of a credential come at once. No finding ever
holds a secret.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL, crypto

from sidecert.config import CredentialConfig, SecretError, SecretSource
from sidecert.credentials import certificates, keyfiles
from sidecert.credentials.certificates import describe_key, listing, name_of
from sidecert.credentials.chain import Chain, build_chain, doubts, find_leaf, likely_leaf, own_certificate
from sidecert.credentials.filekinds import Role, Unusable
from sidecert.credentials.findings import Finding, Findings
from sidecert.credentials.keyfiles import Known, Opened, Passphrase
from sidecert.presented import OwnCertificate

_OPEN_TO_OTHERS = 0o006


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its chain and private key, which have been shown to belong together."""

    id: str
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """The intermediates to send, from the certificate's issuer upwards."""
    key: PrivateKeyTypes = field(repr=False)
    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    serial: str
    """Lower-case hex, whole bytes."""
    not_before: float
    """Epoch seconds, as `not_after`."""
    not_after: float
    subject: str
    """RFC 4514, printable characters only."""
    own: OwnCertificate
    """It in words, for those who were refused with it."""
    opened: Opened = field(repr=False, compare=False)
    """The key's file as it was opened."""

    @property
    def presented(self) -> tuple[str, ...]:
        """The fingerprints of all certificates that are sent, in their order."""
        return (self.fingerprint, *fingerprints(self.chain))

    @property
    def valid_until(self) -> float:
        """When the first of the certificates that are sent expires, in epoch seconds."""
        return min((self.not_after, *(each.not_after for each in self.own.intermediates)))


def fingerprints(certificates: Sequence[x509.Certificate]) -> tuple[str, ...]:
    """SHA-256 of each, lower-case hex."""
    return tuple(certificate.fingerprint(hashes.SHA256()).hex() for certificate in certificates)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where a certificate and its key come from, each as the config key and its file."""

    role: Role
    file: Path
    key_role: Role
    key_file: Path


def load(
    id: str, config: CredentialConfig, environ: Mapping[str, str], now: float, known: Known | None = None
) -> tuple[Credential | None, list[Finding]]:
    """The credential `id`, and everything that is wrong with it. It is None where a finding is an error.

    `now` is in epoch seconds; `environ` is where `{env: NAME}` passphrases are looked up; `known` are files
    that were opened before.
    """
    found = Findings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cryptography dislikes about a file and still takes
        passphrase = _resolve(config.passphrase, environ, found)
        if config.pkcs12 is not None:
            pair = _Pair("pkcs12", config.pkcs12, "pkcs12", config.pkcs12)
            opened = _load_store(config.pkcs12, passphrase, known or {}, found)
            given: Sequence[x509.Certificate] = opened.store.certificates if opened else ()
        else:
            assert config.certificate is not None
            assert config.key is not None
            pair = _Pair("certificate", config.certificate, "key", config.key)
            read = found.collect("certificate", lambda: keyfiles.read_certificates(pair.file, "certificate"))
            given = read[0] if read else ()
            opened = found.collect("key", lambda: keyfiles.read_key(pair.key_file, passphrase, known or {}))
        _check_mode(pair.key_role, pair.key_file, found)
        credential = _assemble(id, pair, given, opened, now, found) if given else None
    return (None if found.are_fatal else credential), list(found)


def load_trust(path: Path, now: float | None = None) -> tuple[tuple[x509.Certificate, ...], list[Finding]]:
    """The certificates of the PEM file `path`, none where a finding is an error; `now` in epoch seconds."""
    now = time.time() if now is None else now
    found = Findings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = found.collect("trust", lambda: keyfiles.read_certificates(path, "trust"))
        if read is None:
            return (), list(found)
        given, has_key = read
        if has_key:
            found.warn(
                "trust", f"{path} holds a private key, which has no use here", "take the key out of it"
            )
        past = [
            name_of(certificate) for certificate in given if not certificates.is_valid_at(certificate, now)
        ]
    if past:
        wrong = f"{path} holds certificates that are expired or not yet valid: {listing(past)}"
        found.warn(
            "trust", wrong, "put the renewed ones in: an upstream's certificate under these is refused"
        )
    return tuple(given), list(found)


def _resolve(source: SecretSource | None, environ: Mapping[str, str], found: Findings) -> Passphrase:
    if source is None:
        return Passphrase(None)
    if source.file is not None:
        _check_mode("passphrase", source.file, found)
    try:
        return Passphrase(source.resolve(environ).encode())
    except SecretError as problem:
        found.append(Finding("passphrase", problem.wrong, problem.right))
    except UnicodeEncodeError:
        found.append(Finding("passphrase", "the passphrase is not text in UTF-8", "give it in UTF-8"))
    return Passphrase(None, is_known=False)


def _check_mode(key: str, path: Path, found: Findings) -> None:
    """Warn where others may read or write a secret. Links are followed: what counts is where they lead."""
    if os.name != "posix":
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError):
        return  # reading it says what is wrong
    if mode & _OPEN_TO_OTHERS:
        found.warn(
            key,
            f"{path} may be read or changed by others (mode {mode:04o})",
            f"`chmod 600 {shlex.quote(str(path))}`; in Kubernetes `defaultMode: 0400` on the secret's volume",
        )


def _load_store(path: Path, passphrase: Passphrase, known: Known, found: Findings) -> Opened | None:
    opened = found.collect("pkcs12", lambda: keyfiles.read_pkcs12(path, passphrase, known))
    if opened is None:
        return None
    store = opened.store
    missing = [
        word for word, held in (("private key", store.key), ("certificate", store.certificates)) if not held
    ]
    if missing:
        right = (
            f"`openssl pkcs12 -export -inkey KEY -in CERTIFICATES -out {shlex.quote(str(path))}` puts both in"
        )
        found.append(Finding("pkcs12", f"{path} holds no {' and no '.join(missing)}", right))
    if store.keys > 1:
        wrong = f"{path} holds {store.keys} private keys, of which only one is used"
        found.warn("pkcs12", wrong, "keep one in it, so that there is no doubt who calls")
    return opened


def _assemble(
    id: str,
    pair: _Pair,
    given: Sequence[x509.Certificate],
    opened: Opened | None,
    now: float,
    found: Findings,
) -> Credential | None:
    key = opened.store.key if opened else None
    leaf = found.collect(pair.key_role, lambda: _find_leaf(pair, given, key, now)) if key else None
    chain = build_chain(leaf or likely_leaf(given), given, now)
    for wrong, right in doubts(chain, now):
        found.warn(pair.role, f"{pair.file}: {wrong}", right)
    if pair.role == "certificate" and not chain.in_order:
        order = listing(map(name_of, (chain.leaf, *chain.intermediates)), most=9)
        wrong = f"{pair.file} has its certificates out of order; they are sent in order all the same"
        found.warn(pair.role, wrong, f"the order is: {order}")
    if leaf is None or key is None or opened is None:
        return None
    found.collect(pair.key_role, lambda: _check_signature(pair.key_file, leaf, key))
    found.collect(pair.role, lambda: _check_with_openssl(pair.file, chain, key))
    return Credential(
        id=id,
        certificate=leaf,
        chain=chain.to_send,
        key=key,
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        serial=certificates.serial_of(leaf),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        subject=name_of(leaf),
        own=own_certificate(chain, id),
        opened=opened,
    )


def _find_leaf(
    pair: _Pair, given: Sequence[x509.Certificate], key: PrivateKeyTypes, now: float
) -> x509.Certificate:
    if not certificates.is_usable_kind(key):
        raise keyfiles.unsupported(pair.key_file, describe_key(key))
    key_id = certificates.public_key_id(key.public_key())
    leaf = find_leaf(given, key_id, now)
    if leaf is not None:
        return leaf
    likely = likely_leaf(given)
    file, key_file = shlex.quote(str(pair.file)), shlex.quote(str(pair.key_file))
    right = "name the key that the certificate was made for"
    if pair.role != "pkcs12":
        commands = f"`openssl x509 -in {file} -noout -pubkey` and `openssl pkey -in {key_file} -pubout`"
        right += f"; the same comes out of {commands} then"
    raise Unusable(
        f"the private key in {pair.key_file} ({describe_key(key)}, public key SHA-256 {key_id[:16]}...) "
        f"does not belong to the certificate in {pair.file} "
        f"({name_of(likely)}: {certificates.describe_key_of(likely)})",
        right,
    )


def _check_signature(path: Path, leaf: x509.Certificate, key: PrivateKeyTypes) -> None:
    """Let an RSA key sign something: its numbers were not looked into when it was loaded."""
    public = leaf.public_key()
    if not isinstance(key, rsa.RSAPrivateKey) or not isinstance(public, rsa.RSAPublicKey):
        return
    try:
        signed = key.sign(b"sidecert", padding.PKCS1v15(), hashes.SHA256())
        public.verify(signed, b"sidecert", padding.PKCS1v15(), hashes.SHA256())
    except Exception:  # the libraries name no closed list of errors
        raise keyfiles.damaged(path) from None


def _check_with_openssl(path: Path, chain: Chain, key: PrivateKeyTypes) -> None:
    """Try what `tls` will do. OpenSSL judges the intermediates in the handshake only: do it now."""
    try:
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(chain.leaf)
        context.use_privatekey(cast(Any, key))
        context.check_privatekey()
    except (SSL.Error, crypto.Error, TypeError, ValueError) as refusal:
        raise _refused(path, chain.leaf, _reason(refusal)) from None
    for certificate in chain.to_send:
        try:
            SSL.Context(SSL.TLS_METHOD).use_certificate(certificate)
        except crypto.Error as refusal:  # cryptography is less strict
            raise _refused(path, certificate, _reason(refusal)) from None
        except SSL.Error as refusal:
            reason = _reason(refusal)
            if "too" in reason:  # too small, too weak; a key kind is the upstream's affair
                raise _refused(path, certificate, reason) from None


def _reason(refusal: Exception) -> str:
    entries = refusal.args[0] if refusal.args and isinstance(refusal.args[0], list) else ()
    return next((entry[2] for entry in entries if entry[2]), "this kind of key is not taken")


def _refused(path: Path, certificate: x509.Certificate, reason: str) -> Unusable:
    if "md too weak" in reason:
        what, right = "its signature's digest (such as SHA-1) is too weak", "with SHA-256 or better"
    elif "key too small" in reason:
        what = f"its key is too small ({certificates.describe_key_of(certificate)})"
        right = "for a key of RSA 2048 bits or EC secp256r1 or more"
    else:
        what, right = f"it says: {reason}", "as RSA or EC"
    return Unusable(
        f"{path}: OpenSSL does not take {name_of(certificate)}: {what}", f"have it issued again {right}"
    )
