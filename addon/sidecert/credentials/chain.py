"""Certificates in their order: which one a key belongs to, who issued it, and what an upstream may dislike.

Pure: no file is read here, and nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecert.credentials.certificates import (
    certificate_key_id,
    is_ca,
    is_self_signed,
    is_valid_at,
    issued,
    issuer_of,
    listing,
    name_of,
    or_none,
    present,
)
from sidecert.presented import OwnCertificate
from sidecert.words import moment

_USES = {
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
}


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
        issuers = [certificate for certificate in rest if issued(certificate, linked[-1])]
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
    uses = or_none(lambda: leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if uses and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses):
        yield (
            "is not meant for client authentication: its extended key usage lacks clientAuth",
            "have it issued with extendedKeyUsage = clientAuth",
        )
    bits = or_none(lambda: leaf.extensions.get_extension_for_class(x509.KeyUsage).value)
    if bits and not (bits.digital_signature or bits.key_agreement):
        yield (
            "is not meant for signing: its key usage lacks digitalSignature",
            "have it issued with keyUsage = digitalSignature",
        )


def _when(certificate: x509.Certificate, now: float) -> str:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    late = now > end.timestamp()
    return f"{'expired on' if late else 'is not valid before'} {moment((end if late else start).timestamp())}"


def own_certificate(chain: Chain, credential: str) -> OwnCertificate:
    """What is sent, and what its file holds, as plain facts."""
    uses = or_none(lambda: chain.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    return OwnCertificate(
        credential=credential,
        leaf=present(chain.leaf),
        intermediates=tuple(map(present, chain.to_send)),
        self_signed=is_self_signed(chain.leaf),
        holds_root=chain.root is not None,
        uses=tuple(_USES.get(use, use.dotted_string) for use in uses or ()),
    )
