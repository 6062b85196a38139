"""Our own certificate as facts, for tests of what is said of it: alice's, valid at `NOW`, unless told."""

from __future__ import annotations

from collections.abc import Sequence

from sidecert.presented import OwnCertificate, Presented

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
DAY = 86_400.0


def fact(
    subject: str = "CN=alice",
    issuer: str = "CN=root",
    names: Sequence[str] = (),
    starts: float = -DAY,
    ends: float = DAY,
) -> Presented:
    """A certificate that is valid from `starts` until `ends`, in seconds from `NOW`."""
    return Presented(subject, issuer, tuple(names), NOW + starts, NOW + ends, "ab" * 32)


def own(
    leaf: Presented | None = None,
    *intermediates: Presented,
    self_signed: bool = False,
    holds_root: bool = False,
    uses: Sequence[str] = ("clientAuth",),
) -> OwnCertificate:
    """What the credential alice sends."""
    return OwnCertificate("alice", leaf or fact(), intermediates, self_signed, holds_root, tuple(uses))
