"""The metrics page: every name, type and label (the table "Metrics" of the interface), and its lines.

prometheus_client's encoder takes 5.8 us a sample, which is 85 ms for 200 routes on the thread that serves
the calls. This one takes 0.4 us a sample and gives its lines one by one, so that calls come in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from sidecert.http_verdict import Signature
from sidecert.metrics.stats import BUCKETS, CODES, Histogram, Proof, RouteStats
from sidecert.outcome import Outcome

_BOUNDS = (*map(repr, BUCKETS), "+Inf")


class RouteLabels(NamedTuple):
    """One configured route; `credential` is an id or "none"."""

    route: str
    credential: str
    insecure: bool


class CredentialLabels(NamedTuple):
    """One configured credential: its validity in seconds since the epoch, the other two in hex."""

    credential: str
    not_before: float
    not_after: float
    fingerprint: str
    serial: str


class ShownRoute(NamedTuple):
    """A route that has series. Where `zeroed` is false, outcomes and signatures that never came have none."""

    route: str
    stats: RouteStats
    handshakes: Mapping[str, Mapping[Outcome, int]]
    zeroed: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What one scrape shows."""

    shown: Sequence[ShownRoute]
    routes: Sequence[RouteLabels]
    credentials: Sequence[CredentialLabels]
    held_back: Mapping[str, str]
    """Why, by credential."""
    proofs: Mapping[str, Mapping[Proof, int]]
    """Per credential; those never shown to an upstream are left out."""
    connections: Mapping[str, int]
    """Per listener."""
    denied: Mapping[str, int]
    reloads: Mapping[str, int]
    last_load_ok: bool
    last_load_time: float
    generation: int
    build: Mapping[str, str]

    def lines(self, openmetrics: bool) -> Iterator[str]:
        """Each line with its newline, without OpenMetrics' end mark."""
        for name, kind, words, route_samples in _ROUTE_FAMILIES:
            yield _head(name, kind, words, openmetrics)
            for route in self.shown:
                yield from route_samples(name, _label("route", route.route), route)
        for name, kind, words, samples in _OTHER_FAMILIES:
            yield _head(name, kind, words, openmetrics)
            for labels, value in samples(self):
                yield f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n"


def _head(name: str, kind: str, words: str, openmetrics: bool) -> str:
    if openmetrics and kind == "counter":
        name = name.removesuffix("_total")  # there a family is named without the suffix of its samples
    return f"# HELP {name} {words}\n# TYPE {name} {kind}\n"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'


def _labels(**values: str) -> str:
    return ",".join(_label(name, value) for name, value in values.items())


# Writes one family's samples for one route. The label of the route comes ready made.
type _RouteSamples = Callable[[str, str, ShownRoute], Iterator[str]]
# Gives one family's samples: labels as written, and value.
type _Samples = Callable[[Page], Iterable[tuple[str, float]]]


def _handshakes(name: str, label: str, route: ShownRoute) -> Iterator[str]:
    for id_, counts in list(route.handshakes.items()):
        credential = _label("credential", id_)
        for outcome in Outcome:
            count = counts.get(outcome, 0)
            if count or route.zeroed:
                yield f'{name}{{{label},{credential},outcome="{outcome}"}} {count}\n'


def _histogram(pick: Callable[[RouteStats], Histogram]) -> _RouteSamples:
    def samples(name: str, label: str, route: ShownRoute) -> Iterator[str]:
        histogram = pick(route.stats)
        totals, seconds = list(accumulate(histogram.counts)), histogram.sum  # both of one moment
        for bound, total in zip(_BOUNDS, totals, strict=True):
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}\n'
        yield f"{name}_sum{{{label}}} {seconds}\n"
        yield f"{name}_count{{{label}}} {totals[-1]}\n"

    return samples


def _number(pick: Callable[[RouteStats], int]) -> _RouteSamples:
    def samples(name: str, label: str, route: ShownRoute) -> Iterator[str]:
        yield f"{name}{{{label}}} {pick(route.stats)}\n"

    return samples


def _cert_requests(name: str, label: str, route: ShownRoute) -> Iterator[str]:
    for requested, count in zip(("no", "yes"), route.stats.cert_requests, strict=True):
        yield f'{name}{{{label},requested="{requested}"}} {count}\n'


def _http_rejections(name: str, label: str, route: ShownRoute) -> Iterator[str]:
    counts = route.stats.http_rejections
    for signature in Signature:
        count = counts.get(signature, 0)
        if count or route.zeroed:
            yield f'{name}{{{label},signature="{signature}"}} {count}\n'


def _requests(name: str, label: str, route: ShownRoute) -> Iterator[str]:
    for place, count in enumerate(route.stats.codes):
        source = "upstream" if place >= len(CODES) else "sidecert"
        yield f'{name}{{{label},code="{CODES[place % len(CODES)]}",source="{source}"}} {count}\n'


def _upstream_connections(name: str, label: str, route: ShownRoute) -> Iterator[str]:
    yield f'{name}{{{label},state="idle"}} {route.stats.idle}\n'
    yield f'{name}{{{label},state="active"}} {route.stats.active}\n'


def _insecure(page: Page) -> Iterator[tuple[str, float]]:
    shown = {route.route for route in page.shown}
    for route in page.routes:
        if route.insecure or route.route in shown:
            yield _label("route", route.route), int(route.insecure)


def _credential_info(page: Page) -> Iterator[tuple[str, float]]:
    for one in page.credentials:
        yield _labels(credential=one.credential, fingerprint=one.fingerprint, serial=one.serial), 1


def _proofs(page: Page) -> Iterator[tuple[str, float]]:
    for one in page.credentials:
        counts = page.proofs.get(one.credential, {})
        for result in Proof:
            yield _labels(credential=one.credential, result=result), counts.get(result, 0)


_ROUTE_FAMILIES: tuple[tuple[str, str, str, _RouteSamples], ...] = (
    (
        "sidecert_handshakes_total",
        "counter",
        "Attempts to open an upstream connection, for a call or to prove a new certificate, and what the "
        "upstream began on an open one (a renegotiation, or a certificate asked for after the handshake), by "
        "what came of them.",
        _handshakes,
    ),
    (
        "sidecert_handshake_duration_seconds",
        "histogram",
        "From the start of what sidecert_handshakes_total counts, with the name look-up, to its outcome.",
        _histogram(lambda stats: stats.handshake_durations),
    ),
    (
        "sidecert_client_cert_requests_total",
        "counter",
        "Handshakes by whether the upstream asked for a client certificate.",
        _cert_requests,
    ),
    (
        "sidecert_http_cert_rejections_total",
        "counter",
        "HTTP answers of the upstream that refuse the client certificate.",
        _http_rejections,
    ),
    (
        "sidecert_requests_total",
        "counter",
        "Calls by status code and by who answered; 499 counts where the caller left before.",
        _requests,
    ),
    (
        "sidecert_request_duration_seconds",
        "histogram",
        "From the head of a call to the end of its answer.",
        _histogram(lambda stats: stats.durations),
    ),
    (
        "sidecert_requests_in_progress",
        "gauge",
        "Calls that are being served.",
        _number(lambda stats: stats.in_progress),
    ),
    (
        "sidecert_retries_total",
        "counter",
        "Times that a call was sent again on another connection.",
        _number(lambda stats: stats.retries),
    ),
    (
        "sidecert_upstream_connections",
        "gauge",
        "Open connections to the upstream.",
        _upstream_connections,
    ),
    (
        "sidecert_upstream_connection_reuses_total",
        "counter",
        "Times that a call was sent on a pooled connection.",
        _number(lambda stats: stats.reuses),
    ),
    (
        "sidecert_circuit_open",
        "gauge",
        "1 when the last attempts to reach an upstream of the route failed, and calls are answered at once.",
        _number(lambda stats: int(stats.circuit_open())),
    ),
)

_OTHER_FAMILIES: tuple[tuple[str, str, str, _Samples], ...] = (
    (
        "sidecert_denied_requests_total",
        "counter",
        "Calls that sidecert refused without asking an upstream.",
        lambda page: ((_label("reason", reason), count) for reason, count in page.denied.items()),
    ),
    (
        "sidecert_downstream_connections",
        "gauge",
        "Open connections of callers.",
        lambda page: ((_label("listener", label), count) for label, count in page.connections.items()),
    ),
    (
        "sidecert_credential_not_after_timestamp_seconds",
        "gauge",
        "When the credential's certificate expires, since the epoch.",
        lambda page: ((_label("credential", one.credential), one.not_after) for one in page.credentials),
    ),
    (
        "sidecert_credential_not_before_timestamp_seconds",
        "gauge",
        "When the credential's certificate becomes valid, since the epoch.",
        lambda page: ((_label("credential", one.credential), one.not_before) for one in page.credentials),
    ),
    (
        "sidecert_credential_info",
        "gauge",
        "The credential's certificate: its SHA-256 and serial number.",
        _credential_info,
    ),
    (
        "sidecert_credential_held_back",
        "gauge",
        "1 while a newer certificate of the credential is held back, and the one before is in force.",
        lambda page: (
            (_label("credential", one.credential), int(one.credential in page.held_back))
            for one in page.credentials
        ),
    ),
    (
        "sidecert_credential_proofs_total",
        "counter",
        "Upstreams that a new certificate was shown to before calls were made with it, by what came of it.",
        _proofs,
    ),
    (
        "sidecert_config_reloads_total",
        "counter",
        "Reloads that were asked for, by whether the config was taken over.",
        lambda page: ((_label("result", result), count) for result, count in page.reloads.items()),
    ),
    (
        "sidecert_config_last_reload_successful",
        "gauge",
        "1 when the config that was read last was taken over.",
        lambda page: [("", int(page.last_load_ok))],
    ),
    (
        "sidecert_config_last_reload_success_timestamp_seconds",
        "gauge",
        "When a config was taken over last, since the epoch.",
        lambda page: [("", page.last_load_time)],
    ),
    (
        "sidecert_config_generation",
        "gauge",
        "The number of the config that is in force.",
        lambda page: [("", page.generation)],
    ),
    (
        "sidecert_route_insecure",
        "gauge",
        "1 when the route's upstream is not verified (trust: insecure).",
        _insecure,
    ),
    (
        "sidecert_build_info",
        "gauge",
        "The versions that make up this process.",
        lambda page: [(_labels(**page.build), 1)],
    ),
)
