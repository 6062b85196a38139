"""A new certificate beside the one before, each shown to one upstream: what that proves, in words. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice

from sidecert.explain import explain
from sidecert.faults import Fault, faults
from sidecert.generation import Generation, Route, Upstream
from sidecert.metrics import Proof
from sidecert.outcome import Observation, Outcome

MOST_UPSTREAMS = 32
"""Of one credential: the first in the order of the config."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What came of a handshake with `upstream`, under the certificate of its route."""

    upstream: Upstream
    outcome: Outcome
    seen: Observation
    at: float = field(default_factory=time.time)

    @property
    def refused(self) -> bool:
        return self.outcome.blames_our_certificate

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What surely speaks against the certificate, whatever the upstream says of it. nginx, for one, takes
        any in the handshake, and refuses it in its answers."""
        return faults(self.seen, self.upstream.route.own, self.at)


@dataclass(slots=True, eq=False)
class Trial:
    """A certificate at one upstream, and what came of it."""

    new: Upstream
    old: Upstream
    """The same place, with the certificate before."""
    shown: Shown | None = None
    """What came of the new one, once it is known."""
    before: Shown | None = None
    """What came of the one before, where that had to be known and was in time."""

    @property
    def in_doubt(self) -> bool:
        """The one before must be shown as well: only where that does better is the new one to blame."""
        return self.shown is not None and (self.shown.refused or bool(self.shown.faults))

    @property
    def result(self) -> Proof:
        if self.shown is None:
            return Proof.UNPROVEN
        if self.shown.refused:
            # A route that never worked must not keep a certificate from all the others.
            never = self.before is not None and self.before.refused
            return Proof.UNPROVEN if never else Proof.REFUSED
        proven = self.shown.outcome is Outcome.OK and self.shown.seen.certificate_requested
        return Proof.ACCEPTED if proven and not self.shown.faults else Proof.UNPROVEN

    @property
    def holds_back(self) -> bool:
        """The upstream refuses the new one and not the one before; or it lets both pass, and something speaks
        against the new one that does not speak against the one before."""
        if self.shown is None or self.shown.refused:
            return self.result is Proof.REFUSED
        return (
            self.before is not None
            and self.before.outcome is self.shown.outcome
            and self.before.seen.certificate_requested  # else there is nothing to compare with
            and bool(self.shown.faults)
            and not self.before.faults
        )

    @property
    def why_unproven(self) -> str:
        if self.shown is None:
            return "not tried in time"
        if self.before is not None and self.shown.refused:
            return f"{self.shown.outcome}, and {self.before.outcome} with the one before"
        passed = self.shown.outcome is Outcome.OK
        if self.shown.faults:
            what = "it lets the handshake pass" if passed else self.shown.outcome
            return f"{what}, but the certificate {self.shown.faults[0].words}"
        return "it asks for no certificate in the handshake" if passed else self.shown.outcome

    @property
    def why_held_back(self) -> str:
        """To stand behind "since"."""
        label = self.new.label
        assert self.shown is not None
        if not self.shown.refused:
            return (
                f"it {self.shown.faults[0].words}, and nothing speaks against the one before: {label} lets "
                "both pass in the handshake, but may refuse the new one in its answers, as nginx does"
            )
        if self.before is not None and self.before.outcome is Outcome.OK:
            compared = "does not refuse the one before"
        else:
            known = self.before.outcome if self.before is not None else "not known in time"
            compared = f"it could not be compared with the one before ({known})"
        return f"{label} refuses it ({self.shown.outcome}) and {compared}"

    @property
    def evidence(self) -> tuple[str, ...]:
        return self._explained[0]

    @property
    def remedy(self) -> str:
        """What tells the two certificates apart, and what to do."""
        new, old = self.new.route.own, self.old.route.own
        differs = new.differs_from(old) if new is not None and old is not None else ""
        assert self.shown is not None
        right = self._explained[1] if self.shown.refused else self.shown.faults[0].remedy
        return f"{differs}. {right}" if differs else right

    @property
    def _explained(self) -> tuple[tuple[str, ...], str]:
        assert self.shown is not None
        verdict = explain(
            self.shown.outcome,
            self.shown.seen,
            upstream=self.new.label,
            server_name=self.new.server_name,
            credential=self.new.route.credential_id,
            certificate=self.new.route.own,
            now=self.shown.at,
        )
        return verdict.evidence, verdict.remedy


def trials_of(id: str, new: Generation, before: Generation) -> list[Trial]:
    """The distinct upstreams that credential `id` goes on being used for, as far as the config names them."""
    found: dict[object, Trial] = {}
    for route in new.routes.values():
        host = _written_host(route)
        if route.credential_id != id or host is None:
            continue
        upstream = route.upstream(host)
        settings = route.config.upstream
        place = (upstream.host, upstream.port, upstream.server_name, settings.trust, settings.tls)
        found.setdefault(place, Trial(upstream, before.routes[route.id].upstream(host)))
    return list(islice(found.values(), MOST_UPSTREAMS))


def _written_host(route: Route) -> str | None:
    """A host to ask the route's upstream for; None where only callers name one."""
    matched = route.config.match.host
    return route.config.upstream.host if matched.startswith("*.") else matched
