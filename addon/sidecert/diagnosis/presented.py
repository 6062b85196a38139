"""The certificates that an upstream presented, as plain facts. A hostile one may hold anything."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from sidecert.credentials import certificates
from sidecert.evidence import clean
from sidecert.tls import TlsStream

_MOST = 10
"""Certificates of a chain, and names of one of them, that are looked at."""


@dataclass(frozen=True, slots=True)
class Presented:
    """One certificate. Names hold printable characters only."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    """What its subjectAltName is for: host names and addresses."""
    not_before: float
    """Epoch seconds, as `not_after`."""
    not_after: float
    fingerprint: str
    """SHA-256, lower-case hex."""


def read_chain(stream: TlsStream) -> tuple[Presented, ...]:
    """What can be read of the chain; one that cannot be parsed ends it."""
    found: list[Presented] = []
    try:
        for certificate in stream.peer_chain()[:_MOST]:
            found.append(_read(certificate))
    except Exception:  # the parser's errors are not a closed list
        pass
    return tuple(found)


def _read(certificate: x509.Certificate) -> Presented:
    return Presented(
        subject=clean(certificates.name_of(certificate)),
        issuer=clean(certificates.issuer_of(certificate)),
        names=_names(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # it has none, or one that cannot be parsed: then it is for no name
        return ()
    wanted = [name for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    return tuple(clean(str(name.value)) for name in wanted[:_MOST])
