"""What surely speaks against our certificate, as far as it can be told without the upstream's word. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sidecert.outcome import Observation, Stage
from sidecert.presented import OwnCertificate
from sidecert.words import listed


class Fault(NamedTuple):
    """One thing that is wrong with it."""

    words: str
    """To stand behind "it" or "our certificate"."""
    remedy: str


def faults(seen: Observation, own: OwnCertificate | None, now: float) -> tuple[Fault, ...]:
    """The decisive first; none where the upstream has not seen our certificate.

    `now` is in epoch seconds. What an upstream that lists its CAs takes is known; one that lists none may
    trust any.
    """
    if own is None or not seen.certificate_requested or seen.stage < Stage.FINISHED_SENT:
        return ()
    found = [*_of_dates(own, now)]
    if own.uses and not {"clientAuth", "anyExtendedKeyUsage"} & set(own.uses):
        words = f"is not for callers: its extendedKeyUsage is {listed(own.uses)}, without clientAuth"
        remedy = f"Have the certificate of `credentials.{own.credential}` issued again with extendedKeyUsage"
        found.append(Fault(words, f"{remedy} = clientAuth."))
    if seen.acceptable_cas and not seen.chains_to:
        found.append(_of_another_ca(own, seen.acceptable_cas))
    return tuple(found)


def _of_dates(own: OwnCertificate, now: float) -> Iterator[Fault]:
    if wrong := own.leaf.outside(now):
        late = f"Put the renewed certificate into the files of `credentials.{own.credential}`."
        early = "Check the clock of this machine, or wait until then."
        yield Fault(wrong, late if now > own.leaf.not_after else early)
    for each in own.intermediates:
        if wrong := each.outside(now):
            yield Fault(
                f"is sent with the intermediate {each.subject}, which {wrong}",
                f"Put the renewed certificate of {each.subject} into the file of "
                f"`credentials.{own.credential}`.",
            )


def _of_another_ca(own: OwnCertificate, acceptable: tuple[str, ...]) -> Fault:
    among = f"the CAs that the upstream lists ({listed(acceptable)})"
    remedy = "a certificate from one of the CAs that the upstream lists, or have its own CA added there"
    if own.self_signed:
        return Fault(f"is self-signed, and not itself one of {among}", f"Use {remedy}.")
    if own.holds_root:
        return Fault(f"leads to {own.issuer}, which is not one of {among}", f"Use {remedy}.")
    words = f"comes from {own.issuer}, which is neither in its file ({own.held}) nor one of {among}"
    return Fault(words, f"{append_the_issuer(own)}; else use {remedy}.")


def append_the_issuer(own: OwnCertificate) -> str:
    """The remedy for an intermediate that is not sent: without it nobody finds the way to the root."""
    return (
        f"Append the certificate of its issuer {own.issuer} to the file of `credentials.{own.credential}` "
        f"(it holds {own.held}), if that is an intermediate CA"
    )
