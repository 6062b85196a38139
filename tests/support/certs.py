"""Certificates made fresh for a test run, good ones and each kind of trouble that a peer can meet.

`Authority` issues leafs and intermediates; a leaf writes itself as the files that a config names. Nothing
is checked in and nothing outlives the run.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KeyKind = Literal["ec", "rsa", "rsa-1024", "rsa-4096", "ed25519"]
KeyForm = Literal["pkcs8", "traditional"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def make_key(kind: KeyKind = "ec") -> PrivateKey:
    """A new private key; EC P-256 unless told, since it is made in no time."""
    match kind:
        case "ec":
            return ec.generate_private_key(ec.SECP256R1())
        case "rsa":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "rsa-1024":
            return rsa.generate_private_key(public_exponent=65537, key_size=1024)
        case "rsa-4096":
            return rsa.generate_private_key(public_exponent=65537, key_size=4096)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()


def write_private(path: Path, data: bytes) -> Path:
    """Writes `data` to `path`, readable by its owner only from the first byte on."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return path


def private_folder(path: Path) -> Path:
    """Makes `path`, open to its owner only."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


@dataclass(frozen=True)
class Files:
    """A leaf on disk: `certificate` holds the leaf and its intermediates, `key` its private key, as PEM."""

    certificate: Path
    key: Path

    @property
    def config(self) -> dict[str, str]:
        """These files as one of a config's `credentials`."""
        return {"certificate": str(self.certificate), "key": str(self.key)}


@dataclass(frozen=True)
class Leaf:
    """An issued certificate with its key and the intermediates that lead to its root, nearest first."""

    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def common_name(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER form, lower-case hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def certificate_pem(self, *, chain: bool = True) -> bytes:
        """The leaf first, then its intermediates unless `chain` is false."""
        certificates = (self.certificate, *(self.chain if chain else ()))
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)

    def key_pem(self, passphrase: str | None = None, form: KeyForm = "pkcs8") -> bytes:
        """The key as PKCS#8, or in its older form (PKCS#1 or SEC1; encrypted: with a Proc-Type line)."""
        formats = {
            "pkcs8": serialization.PrivateFormat.PKCS8,
            "traditional": serialization.PrivateFormat.TraditionalOpenSSL,
        }
        return self.key.private_bytes(serialization.Encoding.PEM, formats[form], _encryption(passphrase))

    def pkcs12(self, passphrase: str | None = None, *, old: bool = False) -> bytes:
        """A PKCS#12 file of leaf, key and intermediates; `old`: with 3DES and SHA-1, as once made."""
        encryption = _encryption(passphrase)
        if old:
            assert passphrase is not None
            encryption = (
                serialization.PrivateFormat.PKCS12.encryption_builder()
                .key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
                .hmac_hash(hashes.SHA1())
                .build(passphrase.encode())
            )
        return pkcs12.serialize_key_and_certificates(
            self.common_name.encode(), self.key, self.certificate, self.chain or None, encryption
        )

    def write(
        self,
        folder: Path,
        name: str | None = None,
        *,
        passphrase: str | None = None,
        form: KeyForm = "pkcs8",
        chain: bool = True,
    ) -> Files:
        """Writes NAME.crt and NAME.key into `folder`, made private; NAME defaults to the common name.

        Without `chain` the intermediates are missing.
        """
        private_folder(folder)
        stem = name or self.common_name
        return Files(
            write_private(folder / f"{stem}.crt", self.certificate_pem(chain=chain)),
            write_private(folder / f"{stem}.key", self.key_pem(passphrase, form)),
        )


class Authority:
    """A root CA, or an intermediate when it was made by `intermediate`."""

    def __init__(
        self,
        name: str = "sidecert test root",
        *,
        parent: Authority | None = None,
        ends: datetime.timedelta = 365 * DAY,
    ) -> None:
        self.key = make_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._parent = parent
        issuer, issuer_key = (parent.name, parent.key) if parent else (self.name, self.key)
        now = _now()
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(_issued_by(issuer_key), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """The certificates between this authority's leafs and the root, nearest first; none for a root."""
        return () if self._parent is None else (self.certificate, *self._parent.intermediates)

    def intermediate(self, name: str = "sidecert test intermediate") -> Authority:
        return Authority(name, parent=self)

    def write(self, folder: Path, name: str = "ca") -> Path:
        """Writes NAME.pem into `folder`, which becomes private."""
        return write_private(private_folder(folder) / f"{name}.pem", self.pem)

    def crl(self, *revoked: Leaf) -> bytes:
        """This authority's list of revoked certificates, as PEM."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - HOUR)
            .next_update(now + 30 * DAY)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(_issued_by(self.key), critical=False)
        )
        for leaf in revoked:
            entry = x509.RevokedCertificateBuilder(leaf.certificate.serial_number, now - HOUR)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def caller(self, name: str = "alice", **trouble: object) -> Leaf:
        """A certificate for one who calls (clientAuth); `trouble` as for `issue`."""
        return self.issue(name, **{"usages": (CLIENT_AUTH,), **trouble})  # type: ignore[arg-type]

    def peer(self, *names: str, **trouble: object) -> Leaf:
        """A certificate for one who is called (serverAuth), valid for `names`; loopback's unless told."""
        hosts = names or LOOPBACK_NAMES
        return self.issue(hosts[0], **{"hosts": hosts, "usages": (SERVER_AUTH,), **trouble})  # type: ignore[arg-type]

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = (),
        usages: Sequence[x509.ObjectIdentifier] = (),
        starts: datetime.timedelta = -HOUR,
        ends: datetime.timedelta = 30 * DAY,
        key: KeyKind | PrivateKey = "ec",
    ) -> Leaf:
        """A leaf named `name`; `hosts` go into the SAN, `usages` into the EKU (neither when empty).

        `starts` and `ends` count from now: `ends=-HOUR, starts=-DAY` is expired, `starts=DAY` not yet valid.
        `key` is the kind of key to make, or one that is there, as in a renewal.
        """
        private = make_key(key) if isinstance(key, str) else key
        now = _now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.name)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(_issued_by(self.key), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return Leaf(builder.sign(self.key, hashes.SHA256()), private, self.intermediates)


@dataclass(frozen=True)
class Pki:
    """A run's certificates, on disk in `folder`. `ca` signed all of them but stranger's (`other_ca`)."""

    folder: Path
    ca: Authority
    other_ca: Authority
    trust: Path  # `ca`'s certificate
    other_trust: Path
    upstream: Files  # for localhost, 127.0.0.1 and ::1
    alice: Files
    bob: Files
    stranger: Files

    @classmethod
    def make(cls, folder: Path) -> Pki:
        private_folder(folder)
        ca, other_ca = Authority("sidecert test root"), Authority("sidecert other root")
        return cls(
            folder=folder,
            ca=ca,
            other_ca=other_ca,
            trust=ca.write(folder, "ca"),
            other_trust=other_ca.write(folder, "other-ca"),
            upstream=ca.peer().write(folder, "upstream"),
            alice=ca.caller("alice").write(folder),
            bob=ca.caller("bob").write(folder),
            stranger=other_ca.caller("stranger").write(folder),
        )

    @property
    def credentials(self) -> dict[str, dict[str, str]]:
        """alice, bob and stranger as a config's `credentials`."""
        callers = {"alice": self.alice, "bob": self.bob, "stranger": self.stranger}
        return {name: files.config for name, files in callers.items()}


def expired(**more: object) -> dict[str, object]:
    """What makes an issued leaf expired an hour ago: `ca.caller("alice", **expired())`."""
    return {"starts": -30 * DAY, "ends": -HOUR, **more}


def not_yet_valid(**more: object) -> dict[str, object]:
    """What makes an issued leaf valid from tomorrow on."""
    return {"starts": DAY, "ends": 30 * DAY, **more}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _encryption(passphrase: str | None) -> serialization.KeySerializationEncryption:
    if passphrase is None:
        return serialization.NoEncryption()
    return serialization.BestAvailableEncryption(passphrase.encode())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issued_by(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
