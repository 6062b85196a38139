"""Certificates as values: which one a key belongs to, how they chain, and what an upstream may dislike.

Pure: no file is read here, and nothing is refused. What is said of a certificate names it by its subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecert.presented import OwnCertificate, Presented
from sidecert.words import clean, distinguished_name, moment, printable

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

_USES = {
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
}
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Chain:
    """The certificates of one file, put in order."""

    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    """From the leaf's issuer upwards, without the root."""
    root: x509.Certificate | None
    """The self-signed end of the chain where the file holds it. Nobody needs it on the wire."""
    strangers: tuple[x509.Certificate, ...]
    """Certificates that no step of the chain leads to."""
    in_order: bool
    """Whether the file had them in this order."""

    @property
    def top(self) -> x509.Certificate:
        """The last certificate of the chain that the file holds, root aside."""
        return self.intermediates[-1] if self.intermediates else self.leaf

    @property
    def has_gap(self) -> bool:
        """Whether there are CA certificates that a missing one may lead to."""
        if self.root is not None or is_self_signed(self.leaf):
            return False
        return any(map(is_ca, self.strangers))

    @property
    def to_send(self) -> tuple[x509.Certificate, ...]:
        """What goes on the wire behind the leaf.

        Where the chain has a gap, the CAs beyond it go along: the upstream may hold the missing one.
        Another leaf is never sent.
        """
        if not self.has_gap:
            return self.intermediates
        return self.intermediates + tuple(c for c in self.strangers if is_ca(c) and not is_self_signed(c))


def build_chain(leaf: x509.Certificate, given: Sequence[x509.Certificate], now: float) -> Chain:
    """Put `given`, the leaf among them, in order behind `leaf`. Links are checked by signature."""
    rest = [certificate for certificate in dict.fromkeys(given) if certificate != leaf]
    linked = [leaf]
    while not is_self_signed(linked[-1]):
        issuers = [certificate for certificate in rest if _issued(certificate, linked[-1])]
        if not issuers:
            break
        # A CA that was renewed or cross-signed is there twice: the valid one that needs no further step.
        issuers.sort(key=lambda c: (not is_valid_at(c, now), not is_self_signed(c)))
        linked.append(issuers[0])
        rest = [c for c in rest if c not in issuers]
    root = linked.pop() if len(linked) > 1 and is_self_signed(linked[-1]) else None
    order = [*linked, root] if root else linked
    in_order = [c for c in dict.fromkeys(given) if c in order] == order
    return Chain(leaf, tuple(linked[1:]), root, tuple(rest), in_order)


def find_leaf(given: Sequence[x509.Certificate], key_id: str, now: float) -> x509.Certificate | None:
    """The certificate for the key whose `public_key_id` is `key_id`; the best of several for one key."""
    matching = [certificate for certificate in given if certificate_key_id(certificate) == key_id]
    return max(matching, key=lambda c: (is_valid_at(c, now), c.not_valid_after_utc), default=None)


def likely_leaf(given: Sequence[x509.Certificate]) -> x509.Certificate:
    """The certificate that is meant as the leaf, told without the key."""
    return next((certificate for certificate in given if not is_ca(certificate)), given[0])


def public_key_id(key: PublicKeyTypes) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) in hex; it says nothing about the private one."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def certificate_key_id(certificate: x509.Certificate) -> str | None:
    """`public_key_id` of the certificate's key; None for a kind of key that cannot be read."""
    return _or_none(lambda: public_key_id(certificate.public_key()))


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
    key, key_id = _or_none(certificate.public_key), certificate_key_id(certificate)
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
    names = _or_none(lambda: certificate.extensions.get_extension_for_class(extension).value)
    wanted = [name for name in names or () if isinstance(name, x509.DNSName | x509.IPAddress)]
    return tuple(clean(str(name.value)) for name in wanted[:_MOST_NAMES])


def own(chain: Chain, credential: str) -> OwnCertificate:
    """What is sent, and what its file holds, as plain facts."""
    uses = _or_none(lambda: chain.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    return OwnCertificate(
        credential=credential,
        leaf=present(chain.leaf),
        intermediates=tuple(map(present, chain.to_send)),
        self_signed=is_self_signed(chain.leaf),
        holds_root=chain.root is not None,
        uses=tuple(_USES.get(use, use.dotted_string) for use in uses or ()),
    )


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
        _or_none(lambda: certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    )


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate is signed with its own key."""
    return _issued(certificate, certificate)


def check_readable(certificate: x509.Certificate) -> None:
    """Raise (anything) where a part that is used here cannot be parsed: cryptography parses late."""
    name_of(certificate), issuer_of(certificate), is_valid_at(certificate, 0.0)


def doubts(chain: Chain, now: float) -> Iterator[tuple[str, str]]:
    """What an upstream may dislike about `chain`, each as (what is wrong, what would be right)."""
    name = name_of(chain.leaf)
    for wrong, right in _doubts_of_leaf(chain.leaf, now):
        yield f"{name} {wrong}", right
    for certificate in chain.intermediates:
        if not is_valid_at(certificate, now):
            yield (
                f"the intermediate {name_of(certificate)} {_when(certificate, now)}",
                "put the renewed one in",
            )
    if chain.has_gap:
        missing = issuer_of(chain.top)
        yield (
            f"the chain has a gap: {listing(map(name_of, chain.strangers))} does not lead on from "
            f"{name_of(chain.top)}, which {missing} issued",
            f"put the certificate of {missing} in",
        )
    elif chain.strangers:
        yield (
            f"{listing(map(name_of, chain.strangers))} is no part of the chain of {name}, and is not sent",
            "take it out, or put the right intermediates in",
        )


def _doubts_of_leaf(leaf: x509.Certificate, now: float) -> Iterator[tuple[str, str]]:
    if now > leaf.not_valid_after_utc.timestamp():
        yield _when(leaf, now), "put the renewed certificate here"
    elif not is_valid_at(leaf, now):
        yield _when(leaf, now), "check this machine's clock, or wait until then"
    if is_ca(leaf):
        yield "is a CA certificate, which many upstreams refuse from a caller", "use one with CA:FALSE"
    uses = _or_none(lambda: leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if uses and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses):
        yield (
            "is not meant for client authentication: its extended key usage lacks clientAuth",
            "have it issued with extendedKeyUsage = clientAuth",
        )
    bits = _or_none(lambda: leaf.extensions.get_extension_for_class(x509.KeyUsage).value)
    if bits and not (bits.digital_signature or bits.key_agreement):
        yield (
            "is not meant for signing: its key usage lacks digitalSignature",
            "have it issued with keyUsage = digitalSignature",
        )


def listing(names: Iterable[str], most: int = 3) -> str:
    """`names` in one line, the first `most` of them."""
    given = list(names)
    more = f" and {len(given) - most} more" if len(given) > most else ""
    return "; ".join(given[:most]) + more


def _when(certificate: x509.Certificate, now: float) -> str:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    late = now > end.timestamp()
    return f"{'expired on' if late else 'is not valid before'} {moment((end if late else start).timestamp())}"


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # names, key kind, hash or signature do not fit; or one of them is unknown
        return False
    return True


def _or_none[T](read: Callable[[], T]) -> T | None:
    """None where a certificate lacks what is read, or has it in a form that cannot be parsed."""
    try:
        return read()
    except Exception:  # the parser's errors are not a closed list
        return None
