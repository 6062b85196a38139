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
        uses = f", for {listed(self.uses)}" if self.uses and "clientAuth" not in self.uses else ""
        until = moment(self.leaf.not_after)
        return f"{self.subject}, issued by {self._by}, until {until}{uses}, sent {self._sent}"

    def differs_from(self, before: OwnCertificate) -> str:
        """What tells it, the new one, from the one `before`, as far as upstreams care, the weightiest first;
        empty where nothing does."""
        told = [
            f"{what} {old}, the new one {new}"
            for what, old, new in (
                ("was issued", f"by {before._by}", f"by {self._by}"),
                ("is sent", before._sent, self._sent),
                ("is", f"for {listed(before.uses) or 'any use'}", f"for {listed(self.uses) or 'any use'}"),
                ("names", before.subject, self.subject),
            )
            if old != new
        ]
        return f"The one before {'; the one before '.join(told)}" if told else ""

    @property
    def _by(self) -> str:
        return "itself" if self.self_signed else self.leaf.issuer

    @property
    def _sent(self) -> str:
        number = len(self.intermediates)
        if not number:
            return "without intermediates"
        many = "an intermediate" if number == 1 else f"{number} intermediates"
        return f"with {many}, the last issued by {self.issuer}"
