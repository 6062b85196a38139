"""Certificates as plain facts: those that an upstream presented, and our own. All names are printable."""

from __future__ import annotations

from dataclasses import dataclass

from sidecert.words import listed, moment


@dataclass(frozen=True, slots=True)
class Presented:
    """One certificate."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    """What its subjectAltName is for: host names and addresses."""
    not_before: float
    """Epoch seconds, as `not_after`."""
    not_after: float
    fingerprint: str
    """SHA-256, lower-case hex."""

    def outside(self, now: float) -> str:
        """How `now` is outside of its dates: "expired on ..."; empty where it is valid."""
        if now > self.not_after:
            return f"expired on {moment(self.not_after)}"
        return f"is not valid before {moment(self.not_before)}" if now < self.not_before else ""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """The certificate of a credential, and what is sent behind it."""

    credential: str
    """Its id in the config."""
    leaf: Presented
    intermediates: tuple[Presented, ...] = ()
    """From the leaf's issuer upwards."""
    self_signed: bool = False
    holds_root: bool = False
    """Its file leads up to a root, so that nothing is missing in between."""
    uses: tuple[str, ...] = ()
    """Its extendedKeyUsage, such as clientAuth; empty where it has none, and is for anything."""

    @property
    def subject(self) -> str:
        return self.leaf.subject

    @property
    def issuer(self) -> str:
        """Who issued the last certificate that is sent."""
        return (self.leaf, *self.intermediates)[-1].issuer

    @property
    def may_miss_an_intermediate(self) -> bool:
        return not self.self_signed and not self.holds_root

    @property
    def held(self) -> str:
        """What its file holds besides the key."""
        number = len(self.intermediates)
        if not number:
            return "only the leaf"
        return f"the leaf and {'one intermediate' if number == 1 else f'{number} intermediates'}"

    def describe(self) -> str:
        """It in one line."""
        number = len(self.intermediates)
        sent = "without intermediates"
        if number:
            last = f" the last issued by {self.issuer}"
            sent = f"with {'an intermediate,' if number == 1 else f'{number} intermediates,'}{last}"
        by = "itself" if self.self_signed else self.leaf.issuer
        uses = f", for {listed(self.uses)}" if self.uses and "clientAuth" not in self.uses else ""
        return f"{self.subject}, issued by {by}, until {moment(self.leaf.not_after)}{uses}, sent {sent}"
