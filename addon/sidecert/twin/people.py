"""The authority, the users and their certificates.

Everything is made anew at each start and written into one private folder: `ca.crt`, `twin.crt` and
`twin.key` (the service's own), and a certificate and a key for each user.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
NAMES = ("localhost", "127.0.0.1", "::1")
"""What the service's certificate is always made out to."""


@dataclass(frozen=True, slots=True)
class User:
    """A holder of a certificate, and what the service makes of it.

    `treatment` is `mapped`, `unmapped`, `expired`, `unknown_ca` or `wrong_usage`; `expect` says in words
    what a call with this certificate gets.
    """

    name: str
    treatment: str
    expect: str


USERS = (
    User("alice", "mapped", "runs integrations as alice"),
    User("bob", "mapped", "runs integrations as bob"),
    User("carol", "unmapped", "good certificate that no user has: HTTP 401"),
    User("erin", "expired", "expired yesterday: TLS alert certificate_expired"),
    User("mallory", "unknown_ca", "issued by an authority of her own: TLS alert unknown_ca"),
    User("frank", "wrong_usage", "made for TLS services only: TLS alert unsupported_certificate"),
)


@dataclass(frozen=True, slots=True)
class Files:
    """Where a certificate and its key lie, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class People:
    """What `make` has written, and which certificate belongs to which user.

    `mapping` goes from a certificate's SHA-256 fingerprint (hex of its DER) to a user's name. Integration
    Cloud looks for the very certificate that was stored for a user, so a second certificate with the same
    subject is nobody's.
    """

    folder: Path
    ca: Path
    service: Files
    users: dict[str, Files]
    mapping: dict[str, str]


class Authority:
    """A certificate authority with a fresh P-256 key."""

    def __init__(self, name: str) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = _name(name)
        usage = x509.KeyUsage(
            key_cert_sign=True, crl_sign=True,
            digital_signature=False, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.certificate = (
            _builder(self.subject, self.subject, self.key.public_key(), now - 90 * DAY, now + 90 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(
        self,
        name: str,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        names: Iterable[str] = (),
        until: datetime.timedelta = 30 * DAY,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A certificate for `name` that ends `until` from now (negative: it has expired), and its key."""
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_name(name), self.subject, key.public_key(), now - 60 * DAY, now + until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        alternatives = [_alternative(each) for each in names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key


def make(folder: Path, names: Iterable[str] = ()) -> People:
    """Make the authority, the service's certificate and the users' into `folder`, which must be there.

    The service's certificate is good for `NAMES` and for `names` (hosts or addresses). Keys are written
    with mode 0600. Raises OSError, FileExistsError where a file is there already.
    """
    ours = Authority("Integration twin CA")
    theirs = Authority("Mallory's own CA")
    ca = folder / "ca.crt"
    _write(ca, ours.certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    every_name = dict.fromkeys((*NAMES, *names))
    service = _store(folder, "twin", *ours.issue("localhost", ExtendedKeyUsageOID.SERVER_AUTH, every_name))
    users: dict[str, Files] = {}
    mapping: dict[str, str] = {}
    for user in USERS:
        certificate, key = (theirs if user.treatment == "unknown_ca" else ours).issue(
            user.name,
            usage=ExtendedKeyUsageOID.SERVER_AUTH
            if user.treatment == "wrong_usage"
            else ExtendedKeyUsageOID.CLIENT_AUTH,
            until=-DAY if user.treatment == "expired" else 30 * DAY,
        )
        users[user.name] = _store(folder, user.name, certificate, key)
        if user.treatment == "mapped":
            mapping[certificate.fingerprint(hashes.SHA256()).hex()] = user.name
    return People(folder, ca, service, users, mapping)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Integration twin"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    since: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _store(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Files:
    files = Files(folder / f"{name}.crt", folder / f"{name}.key")
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(files.key, secret, 0o600)
    return files


def _write(path: Path, content: bytes, mode: int) -> None:
    # Exclusive, and with its mode from the start: a key is never readable by others, not even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
