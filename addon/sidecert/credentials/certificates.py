"""What one certificate says: its names, its key, its time, and who issued it.

Pure: no file is read here, and nothing is refused. What is said of a certificate names it by its subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sidecert.presented import Presented
from sidecert.words import clean, distinguished_name, printable

# TLS has signature schemes for these and no others (RFC 8446 4.2.3, RFC 8734). With another curve OpenSSL
# loads the key and then sends no certificate, without a word; seen with secp256k1, secp224r1 and DSA.
_CURVES = frozenset(
    ("secp256r1", "secp384r1", "secp521r1", "brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1")
)

# As OpenSSL has them, in whose words an upstream's list of CAs comes; RFC 4514 knows no short name for them.
_KINDS = {
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.SURNAME: "SN",
    NameOID.GIVEN_NAME: "GN",
    NameOID.TITLE: "title",
}

_MOST_NAMES = 10


def public_key_id(key: PublicKeyTypes) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) in hex; it says nothing about the private one."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def certificate_key_id(certificate: x509.Certificate) -> str | None:
    """`public_key_id` of the certificate's key; None for a kind of key that cannot be read."""
    return or_none(lambda: public_key_id(certificate.public_key()))


def describe_key(key: object) -> str:
    """The kind and size of a public or private key, such as "RSA, 2048 bits" or "EC, secp256r1"."""
    match key:
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            return f"RSA, {key.key_size} bits"
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey():
            return f"EC, {key.curve.name}"
        case dsa.DSAPublicKey() | dsa.DSAPrivateKey():
            return "DSA"
        case ed25519.Ed25519PublicKey() | ed25519.Ed25519PrivateKey():
            return "Ed25519"
        case ed448.Ed448PublicKey() | ed448.Ed448PrivateKey():
            return "Ed448"
        case _:
            return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")


def describe_key_of(certificate: x509.Certificate) -> str:
    """The kind and size of the certificate's key, and the start of its `public_key_id`."""
    key, key_id = or_none(certificate.public_key), certificate_key_id(certificate)
    return (
        f"{describe_key(key)}, public key SHA-256 {key_id[:16]}..." if key_id else "a key of an unknown kind"
    )


def is_usable_kind(key: object) -> bool:
    """Whether TLS 1.2 or 1.3 can sign with a key of this kind."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.curve.name in _CURVES
    return isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)


def name_of(certificate: x509.Certificate) -> str:
    """The subject after RFC 4514 in printable characters; the serial number where the subject is empty."""
    return _written(certificate.subject) or f"serial {serial_of(certificate)}"


def issuer_of(certificate: x509.Certificate) -> str:
    """The issuer's name, as `name_of` has the subject's."""
    return _written(certificate.issuer) or "an issuer without a name"


def _written(name: x509.Name) -> str:
    return printable(
        distinguished_name([[(_kind(each), _value(each)) for each in part] for part in name.rdns])
    )


def _kind(attribute: x509.NameAttribute[str | bytes]) -> str:
    return _KINDS.get(attribute.oid, attribute.rfc4514_attribute_name)


def _value(attribute: x509.NameAttribute[str | bytes]) -> str:
    value = attribute.value
    return value if isinstance(value, str) else f"#{value.hex()}"


def present(certificate: x509.Certificate) -> Presented:
    """It as plain facts. Raises (anything) where a part cannot be parsed."""
    return Presented(
        subject=clean(name_of(certificate)),
        issuer=clean(issuer_of(certificate)),
        names=_san(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _san(certificate: x509.Certificate) -> tuple[str, ...]:
    extension = x509.SubjectAlternativeName
    names = or_none(lambda: certificate.extensions.get_extension_for_class(extension).value)
    wanted = [name for name in names or () if isinstance(name, x509.DNSName | x509.IPAddress)]
    return tuple(clean(str(name.value)) for name in wanted[:_MOST_NAMES])


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number in lower-case hex, whole bytes."""
    digits = f"{abs(certificate.serial_number):x}"
    return ("-" if certificate.serial_number < 0 else "") + digits.zfill(len(digits) + len(digits) % 2)


def is_valid_at(certificate: x509.Certificate, now: float) -> bool:
    """Whether `now` (epoch seconds) is within the certificate's validity, ends included."""
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return before.timestamp() <= now <= after.timestamp()


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether the certificate says that it is a CA's."""
    return bool(
        or_none(lambda: certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    )


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate is signed with its own key."""
    return issued(certificate, certificate)


def check_readable(certificate: x509.Certificate) -> None:
    """Raise (anything) where a part that is used here cannot be parsed: cryptography parses late."""
    name_of(certificate), issuer_of(certificate), is_valid_at(certificate, 0.0)


def listing(names: Iterable[str], most: int = 3) -> str:
    """`names` in one line, the first `most` of them."""
    given = list(names)
    more = f" and {len(given) - most} more" if len(given) > most else ""
    return "; ".join(given[:most]) + more


def issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether `certificate` is signed with the key of `issuer`, under its name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # names, key kind, hash or signature do not fit; or one of them is unknown
        return False
    return True


def or_none[T](read: Callable[[], T]) -> T | None:
    """None where a certificate lacks what is read, or has it in a form that cannot be parsed."""
    try:
        return read()
    except Exception:  # the parser's errors are not a closed list
        return None
