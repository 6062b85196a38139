"""What is counted, for which configured ids. `stats` has the numbers, `exposition` the names and lines.

The registry is passed in; prometheus_client's process and platform collectors live in it. Gauges that can
be computed are computed at the scrape. Everything here runs on one thread, the event loop's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

from OpenSSL import SSL
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from sidecert.errors import Reason
from sidecert.media_types import quality
from sidecert.metrics.exposition import CredentialLabels, Page, RouteLabels, ShownRoute
from sidecert.metrics.stats import ListenerStats, Proof, RouteStats

__all__ = [
    "NO_CREDENTIAL",
    "CredentialLabels",
    "ListenerStats",
    "Metrics",
    "Proof",
    "RouteLabels",
    "RouteStats",
]

NO_CREDENTIAL = "none"
"""The credential label of a route that sends no certificate on purpose."""

ZEROED_ROUTES = 200
"""So many routes of a config have all their series from the start, the others from their first use."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_DENIED = tuple(reason.word for reason in Reason if 400 <= reason.status < 500 or reason.status == 503)
_LINES_PER_PIECE = 250


class Metrics:
    """All that is counted in this process; `registry` gets prometheus_client's own collectors."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.generation = 0
        self.routes: tuple[RouteLabels, ...] = ()
        self.credentials: tuple[CredentialLabels, ...] = ()
        self.held_back: Mapping[str, str] = {}
        """Why, by the ids of the credentials whose newer certificate is not in force."""
        self._proofs: dict[str, dict[Proof, int]] = {}
        self.build = _build()
        self._route_stats: dict[str, RouteStats] = {}
        self._listener_stats: dict[str, ListenerStats] = {}
        self._listeners: tuple[str, ...] = ()
        self._denied = dict.fromkeys(_DENIED, 0)
        self._reloads = {"ok": 0, "failed": 0}
        self.last_load_ok = False
        self._last_load_time = 0.0
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

    def route(self, route: str) -> RouteStats:
        """The numbers of a route, to be bound once; shown as soon as, and as long as, it is configured."""
        stats = self._route_stats.get(route)
        if stats is None:
            stats = self._route_stats[route] = RouteStats()
        return stats

    def listener(self, label: str) -> ListenerStats:
        """The numbers of a listener, to be bound once; shown as long as it is configured."""
        stats = self._listener_stats.get(label)
        if stats is None:
            stats = self._listener_stats[label] = ListenerStats()
        return stats

    def denied(self, reason: str) -> None:
        """Count a refusal with 4xx or 503 by its `Reason`'s word; any other word is left to its route."""
        if reason in self._denied:
            self._denied[reason] += 1

    def proof(self, credential: str, result: Proof) -> None:
        """Count what came of showing a credential's new certificate to an upstream."""
        counts = self._proofs.setdefault(credential, dict.fromkeys(Proof, 0))
        counts[result] += 1

    def set_generation(
        self,
        number: int,
        *,
        routes: Iterable[tuple[str, str, bool]],
        credentials: Iterable[tuple[str, float, float, str, str]],
        listeners: Iterable[str],
        now: float,
    ) -> None:
        """A generation is in force since `now` (epoch seconds): its ids have series, no others have.

        The same number again: one of its credentials has another certificate, and nothing was loaded.
        The tuples are those of `RouteLabels` and `CredentialLabels`. Who still holds the numbers of a
        removed route may go on adding to them; nobody sees them any more.
        """
        if number != self.generation:
            self.last_load_ok, self._last_load_time = True, now
        self.generation = number
        self.routes = tuple(RouteLabels(*route) for route in routes)
        self.credentials = tuple(CredentialLabels(*credential) for credential in credentials)
        self._listeners = tuple(dict.fromkeys(listeners))
        self._listener_stats = {label: self.listener(label) for label in self._listeners}
        self._route_stats = {route.route: self.route(route.route) for route in self.routes}
        known = self._credential_ids()
        for stats in self._route_stats.values():
            stats.handshakes = {id_: counts for id_, counts in stats.handshakes.items() if id_ in known}
        self._proofs = {id_: counts for id_, counts in self._proofs.items() if id_ in known}

    def reload(self, ok: bool, now: float) -> None:
        """Count a reload that was asked for by whether it was taken over; `now` in epoch seconds."""
        self._reloads["ok" if ok else "failed"] += 1
        self.last_load_ok = ok
        if ok:
            self._last_load_time = now

    def render(self, accept: str) -> tuple[bytes, str]:
        """The whole page and its content type: OpenMetrics where `accept` likes it better, else text."""
        pieces, content_type = self.pieces(accept)
        return b"".join(pieces), content_type

    def pieces(self, accept: str) -> tuple[Iterator[bytes], str]:
        """As `render`, in pieces of about 0.1 ms each, so that calls can be served in between."""
        openmetrics = quality(accept, "application/openmetrics-text") > quality(accept, "text/plain")
        return self._pieces(openmetrics), OPENMETRICS if openmetrics else TEXT

    def _pieces(self, openmetrics: bool) -> Iterator[bytes]:
        lines = self._page().lines(openmetrics)
        while piece := "".join(islice(lines, _LINES_PER_PIECE)):
            yield piece.encode()
        # The registry's part comes last: in OpenMetrics it ends with the end mark of the whole page.
        write: Callable[[CollectorRegistry], bytes] = generate_openmetrics if openmetrics else generate_latest
        yield write(self.registry)

    def _page(self) -> Page:
        return Page(
            shown=self._shown(),
            routes=self.routes,
            credentials=self.credentials,
            held_back=self.held_back,
            proofs=self._proofs,
            connections={label: self._listener_stats[label].connections for label in self._listeners},
            denied=self._denied,
            reloads=self._reloads,
            last_load_ok=self.last_load_ok,
            last_load_time=self._last_load_time,
            generation=self.generation,
            build=self.build,
        )

    def _shown(self) -> list[ShownRoute]:
        known = self._credential_ids()
        shown = []
        for place, (route, credential, _) in enumerate(self.routes):
            stats = self._route_stats[route]
            zeroed = place < ZEROED_ROUTES
            if zeroed or stats.used():
                handshakes = stats.handshakes
                if credential not in handshakes or not known.issuperset(handshakes):
                    # A late attempt of a replaced generation may have named a credential that is gone.
                    kept = {id_: counts for id_, counts in handshakes.items() if id_ in known}
                    handshakes = {credential: {}, **kept}
                shown.append(ShownRoute(route, stats, handshakes, zeroed))
        return shown

    def _credential_ids(self) -> set[str]:
        return {NO_CREDENTIAL, *(credential.credential for credential in self.credentials)}


def _build() -> dict[str, str]:
    return {
        "version": _version("sidecert"),
        "python": platform.python_version(),
        "mitmproxy": _version("mitmproxy"),
        "openssl": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from its source tree, as `mitmdump -s` may do
        return "unknown"
