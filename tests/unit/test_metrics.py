"""The metrics page is the table of the interface: these names, types and labels, and no others."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import sidecert.metrics.stats
from sidecert.errors import Reason
from sidecert.http_verdict import Signature
from sidecert.metrics import NO_CREDENTIAL, OPENMETRICS, TEXT, ZEROED_ROUTES, Metrics, Proof
from sidecert.metrics.stats import BUCKETS, RouteStats
from sidecert.outcome import Outcome

# The table of the interface, "Metrics".
TABLE = {
    "sidecert_handshakes_total": ("counter", {"route", "credential", "outcome"}),
    "sidecert_handshake_duration_seconds": ("histogram", {"route"}),
    "sidecert_client_cert_requests_total": ("counter", {"route", "requested"}),
    "sidecert_http_cert_rejections_total": ("counter", {"route", "signature"}),
    "sidecert_requests_total": ("counter", {"route", "code", "source"}),
    "sidecert_request_duration_seconds": ("histogram", {"route"}),
    "sidecert_requests_in_progress": ("gauge", {"route"}),
    "sidecert_denied_requests_total": ("counter", {"reason"}),
    "sidecert_retries_total": ("counter", {"route"}),
    "sidecert_upstream_connections": ("gauge", {"route", "state"}),
    "sidecert_upstream_connection_reuses_total": ("counter", {"route"}),
    "sidecert_circuit_open": ("gauge", {"route"}),
    "sidecert_downstream_connections": ("gauge", {"listener"}),
    "sidecert_credential_not_after_timestamp_seconds": ("gauge", {"credential"}),
    "sidecert_credential_not_before_timestamp_seconds": ("gauge", {"credential"}),
    "sidecert_credential_info": ("gauge", {"credential", "fingerprint", "serial"}),
    "sidecert_credential_held_back": ("gauge", {"credential"}),
    "sidecert_credential_proofs_total": ("counter", {"credential", "result"}),
    "sidecert_config_reloads_total": ("counter", {"result"}),
    "sidecert_config_last_reload_successful": ("gauge", set()),
    "sidecert_config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "sidecert_config_generation": ("gauge", set()),
    "sidecert_route_insecure": ("gauge", {"route"}),
    "sidecert_build_info": ("gauge", {"version", "python", "mitmproxy", "openssl"}),
}

ALICE = ("alice", 1000.0, 2000.5, "ab" * 32, "1f")
BOB = ("bob", 1.0, 2.0, "cd" * 32, "2e")
ORDERS = ("orders", "alice", False)
OPEN = ("open", NO_CREDENTIAL, True)


def configure(
    metrics: Metrics,
    routes: Iterable[tuple[str, str, bool]] = (ORDERS, OPEN),
    credentials: Iterable[tuple[str, float, float, str, str]] = (ALICE,),
    listeners: Iterable[str] = ("127.0.0.1:8080",),
) -> None:
    metrics.set_generation(
        metrics.generation + 1, routes=routes, credentials=credentials, listeners=listeners, now=5000.25
    )


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(CollectorRegistry())
    configure(metrics)
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    """The page as prometheus_client's parser reads it; counters under their full name."""
    page = metrics.render("")[0].decode()
    named = {}
    for family in parse_text(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in named
        named[name] = family
    return named


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of one series, or None when it is not there."""
    samples = itertools.chain.from_iterable(family.samples for family in families(metrics).values())
    found = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    assert len(found) <= 1
    return found[0] if found else None


def test_page_has_each_name_type_and_label_of_the_interface(metrics: Metrics) -> None:
    """Nothing is missing, nothing is named otherwise, and nothing else says sidecert_."""
    metrics.route("orders").http_cert_rejection(Signature.NGINX_400)
    found = families(metrics)
    assert {name for name in found if name.startswith("sidecert_")} == TABLE.keys()
    for name, (kind, labels) in TABLE.items():
        assert found[name].type == kind, name
        assert found[name].documentation, name
        assert found[name].samples, name
        for sample in found[name].samples:
            assert sample.labels.keys() - {"le"} == labels, name


def test_every_outcome_is_there_at_zero_for_every_route(metrics: Metrics) -> None:
    """An alert on a rate needs the series before its first event; a new Outcome comes here by itself."""
    samples = families(metrics)["sidecert_handshakes_total"].samples
    found = {(s.labels["route"], s.labels["credential"], s.labels["outcome"]): s.value for s in samples}
    pairs = (("orders", "alice"), ("open", "none"))
    assert found == {(route, credential, str(o)): 0 for (route, credential) in pairs for o in Outcome}


def test_every_signature_is_there_at_zero_for_every_route(metrics: Metrics) -> None:
    """As with outcomes, and each route has its own counts."""
    for route in ("orders", "open", "orders"):
        metrics.route(route).http_cert_rejection(Signature.NGINX_400)
    samples = families(metrics)["sidecert_http_cert_rejections_total"].samples
    found = {(s.labels["route"], s.labels["signature"]): s.value for s in samples}
    expected = {(route, str(signature)): 0 for route in ("orders", "open") for signature in Signature}
    assert found == expected | {("orders", "nginx_400"): 2, ("open", "nginx_400"): 1}


def test_process_and_platform_metrics_are_there(metrics: Metrics) -> None:
    """As every Prometheus client library has them."""
    assert families(metrics).keys() >= {"process_cpu_seconds_total", "process_open_fds", "python_info"}


def test_denied_reasons_are_those_of_4xx_and_503(metrics: Metrics) -> None:
    """The list is closed: another word counts nowhere and makes no series."""
    metrics.denied("no_route")
    metrics.denied("overloaded")
    metrics.denied(Reason.UPSTREAM_CLOSED.word)
    metrics.denied("made_up")
    samples = families(metrics)["sidecert_denied_requests_total"].samples
    assert {s.labels["reason"]: s.value for s in samples if s.value} == {"no_route": 1, "overloaded": 1}
    assert {s.labels["reason"] for s in samples} == {
        "bad_request",
        "no_route",
        "method_not_allowed",
        "host_not_allowed",
        "caller_not_allowed",
        "private_address",
        "connect_not_allowed",
        "header_too_large",
        "overloaded",
        "pool_full",
        "circuit_open",
        "draining",
    }


@pytest.mark.parametrize("credential", ["alice", NO_CREDENTIAL])
def test_handshakes_are_counted_by_credential_and_outcome(metrics: Metrics, credential: str) -> None:
    """Each attempt once, in the counter and in the histogram, with a certificate and without."""
    route = "orders" if credential == "alice" else "open"
    stats = metrics.route(route)
    stats.handshake(credential, Outcome.OK, 0.004)
    stats.handshake(credential, Outcome.OK, 0.004)
    stats.handshake(credential, Outcome.CLIENT_CERT_UNKNOWN_CA, 7.5)

    def count(outcome: str) -> float | None:
        labels = {"route": route, "credential": credential, "outcome": outcome}
        return value(metrics, "sidecert_handshakes_total", **labels)

    assert (count("ok"), count("client_cert_unknown_ca"), count("undecided")) == (2, 1, 0)
    assert value(metrics, "sidecert_handshake_duration_seconds_count", route=route) == 3
    assert value(metrics, "sidecert_handshake_duration_seconds_sum", route=route) == pytest.approx(7.508)
    assert stats.outcomes() == {Outcome.OK: 2, Outcome.CLIENT_CERT_UNKNOWN_CA: 1}


def test_buckets_are_cumulative_and_their_bounds_belong_to_them(metrics: Metrics) -> None:
    """As Prometheus defines `le`; the last bucket holds what is slower than all bounds."""
    stats = metrics.route("orders")
    for seconds in (0.0, 0.001, 0.0011, 60.0, 61.0):
        stats.request(200, True, seconds)
    samples = families(metrics)["sidecert_request_duration_seconds"].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.labels["route"] == "orders" and "le" in s.labels}
    assert [float(le) for le in buckets] == [*BUCKETS, float("inf")]
    assert [buckets[le] for le in ("0.001", "0.0025", "30.0", "60.0", "+Inf")] == [2, 3, 3, 4, 5]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "2xx"),
        (204, "2xx"),
        (302, "3xx"),
        (404, "4xx"),
        (502, "5xx"),
        (101, "2xx"),
        (999, "5xx"),
        (600, "5xx"),
        (99, "5xx"),
        (0, "5xx"),
        (-1, "5xx"),
        (100_000, "5xx"),
    ],
)
def test_any_status_falls_into_one_of_four_codes(metrics: Metrics, status: int, code: str) -> None:
    """An upstream cannot make a label by inventing a status."""
    metrics.route("orders").request(status, True, 0.01)
    metrics.route("open").request(status, False, 0.01)
    samples = families(metrics)["sidecert_requests_total"].samples
    counted = {tuple(s.labels[n] for n in ("route", "code", "source")) for s in samples if s.value}
    assert counted == {("orders", code, "upstream"), ("open", code, "sidecert")}
    assert {s.labels["code"] for s in samples} == {"2xx", "3xx", "4xx", "5xx"}


def test_plain_numbers_of_the_data_plane_are_read_at_the_scrape(metrics: Metrics) -> None:
    """What it adds and takes away shows as it stands at that moment."""
    stats = metrics.route("orders")
    stats.in_progress += 3
    stats.in_progress -= 1
    stats.idle, stats.connections, stats.retries, stats.reuses = 4, 9, 6, 7
    stats.cert_requested(True)
    stats.cert_requested(True)
    stats.cert_requested(False)
    metrics.listener("127.0.0.1:8080").connections += 9
    orders = {"route": "orders"}
    assert value(metrics, "sidecert_requests_in_progress", **orders) == 2
    assert value(metrics, "sidecert_upstream_connections", **orders, state="idle") == 4
    assert value(metrics, "sidecert_upstream_connections", **orders, state="active") == 5
    assert value(metrics, "sidecert_retries_total", **orders) == 6
    assert value(metrics, "sidecert_upstream_connection_reuses_total", **orders) == 7
    assert value(metrics, "sidecert_client_cert_requests_total", **orders, requested="yes") == 2
    assert value(metrics, "sidecert_client_cert_requests_total", **orders, requested="no") == 1
    assert value(metrics, "sidecert_downstream_connections", listener="127.0.0.1:8080") == 9


def test_facts_of_the_generation_are_shown(metrics: Metrics) -> None:
    """Validity, fingerprint, insecure routes, the generation and what the process is made of."""
    assert value(metrics, "sidecert_credential_not_before_timestamp_seconds", credential="alice") == 1000
    assert value(metrics, "sidecert_credential_not_after_timestamp_seconds", credential="alice") == 2000.5
    info = {"credential": "alice", "fingerprint": "ab" * 32, "serial": "1f"}
    assert value(metrics, "sidecert_credential_info", **info) == 1
    assert value(metrics, "sidecert_route_insecure", route="orders") == 0
    assert value(metrics, "sidecert_route_insecure", route="open") == 1
    assert value(metrics, "sidecert_config_generation") == 1
    (build,) = families(metrics)["sidecert_build_info"].samples
    assert build.labels["openssl"].startswith("OpenSSL ")
    assert build.labels["mitmproxy"].startswith("12.")


def test_proofs_are_counted_by_what_came_of_them(metrics: Metrics) -> None:
    """Each result is there at 0; those of a credential that is gone do not come back with it."""
    name = "sidecert_credential_proofs_total"
    assert [value(metrics, name, credential="alice", result=each) for each in Proof] == [0, 0, 0]
    metrics.proof("alice", Proof.REFUSED)
    metrics.proof("alice", Proof.REFUSED)
    metrics.proof("alice", Proof.UNPROVEN)
    assert [value(metrics, name, credential="alice", result=each) for each in Proof] == [0, 2, 1]
    configure(metrics, credentials=[BOB])
    assert value(metrics, name, credential="alice", result="refused") is None
    configure(metrics)
    assert value(metrics, name, credential="alice", result="refused") == 0


def test_credential_that_is_held_back_is_marked(metrics: Metrics) -> None:
    """1 for it, 0 for the others."""
    configure(metrics, credentials=[ALICE, BOB])
    metrics.held_back = {"bob": "refused"}
    assert value(metrics, "sidecert_credential_held_back", credential="alice") == 0
    assert value(metrics, "sidecert_credential_held_back", credential="bob") == 1


def test_another_certificate_is_no_load_of_the_config(metrics: Metrics) -> None:
    """The same number again leaves alone what is told of the last load, which may have failed."""
    metrics.reload(False, 6000)
    metrics.set_generation(metrics.generation, routes=[], credentials=[BOB], listeners=[], now=7000)
    assert value(metrics, "sidecert_config_last_reload_successful") == 0
    assert value(metrics, "sidecert_config_last_reload_success_timestamp_seconds") == 5000.25
    info = {"credential": "bob", "fingerprint": "cd" * 32, "serial": "2e"}
    assert value(metrics, "sidecert_credential_info", **info) == 1


def test_removed_ids_have_no_series_and_do_not_come_back(metrics: Metrics) -> None:
    """Even when a call of the old generation is still counting on the old numbers."""
    late = metrics.route("orders")
    late.handshake("alice", Outcome.OK, 0.1)
    metrics.listener("127.0.0.1:8080").connections += 1
    configure(metrics, [("new", "bob", False)], [BOB], ["127.0.0.1:9001"])
    late.handshake("alice", Outcome.OK, 0.1)
    late.request(200, True, 0.1)
    metrics.route("orders").request(200, True, 0.1)
    page = metrics.render("")[0].decode()
    assert "orders" not in page
    assert "alice" not in page
    assert "127.0.0.1:8080" not in page
    assert 'route="new",credential="bob",outcome="ok"} 0' in page
    assert 'listener="127.0.0.1:9001"} 0' in page


def test_numbers_of_what_stays_go_on(metrics: Metrics) -> None:
    """A reload must not look like a restart; the object that the data plane holds stays the same."""
    stats = metrics.route("orders")
    stats.request(200, True, 0.1)
    configure(metrics, [ORDERS, ("new", "alice", False)])
    stats.request(200, True, 0.1)
    assert metrics.route("orders") is stats
    assert value(metrics, "sidecert_requests_total", route="orders", code="2xx", source="upstream") == 2


def test_route_that_changes_its_credential_keeps_the_history_of_both(metrics: Metrics) -> None:
    """As long as both credentials are configured; one that is gone takes its series along."""
    stats = metrics.route("orders")
    stats.handshake("alice", Outcome.OK, 0.1)
    series = {"route": "orders", "outcome": "ok"}
    configure(metrics, [("orders", "bob", False)], [ALICE, BOB])
    assert value(metrics, "sidecert_handshakes_total", **series, credential="alice") == 1
    assert value(metrics, "sidecert_handshakes_total", **series, credential="bob") == 0
    configure(metrics, [("orders", "bob", False)], [BOB])
    stats.handshake("alice", Outcome.OK, 0.1)
    assert value(metrics, "sidecert_handshakes_total", **series, credential="alice") is None
    assert value(metrics, "sidecert_handshakes_total", **series, credential="bob") == 0


def test_numbers_may_be_bound_before_the_generation_is_in_force(metrics: Metrics) -> None:
    """They are shown once it is, and nothing that was counted in between is lost."""
    stats = metrics.route("next")
    stats.retries += 1
    assert value(metrics, "sidecert_retries_total", route="next") is None
    configure(metrics, [("next", "alice", False)])
    assert value(metrics, "sidecert_retries_total", route="next") == 1


def test_routes_beyond_two_hundred_appear_with_their_first_use(metrics: Metrics) -> None:
    """Ten thousand routes do not make a million series; what is used or insecure is seen all the same."""
    configure(metrics, [(f"r{n}", "alice", n == 250) for n in range(300)])
    metrics.route("r299").handshake("alice", Outcome.OK, 0.1)
    metrics.route("r298").in_progress += 1
    found = families(metrics)
    shown = {sample.labels["route"] for sample in found["sidecert_requests_total"].samples}
    assert shown == {f"r{n}" for n in range(ZEROED_ROUTES)} | {"r298", "r299"}
    metrics.route("r299").http_cert_rejection(Signature.IIS_403_7)
    samples = families(metrics)["sidecert_http_cert_rejections_total"].samples
    rejections = [s for s in samples if s.labels["route"] in ("r298", "r299")]
    assert [(s.labels["signature"], s.value) for s in rejections] == [("iis_403_7", 1)]
    handshakes = [s for s in found["sidecert_handshakes_total"].samples if s.labels["route"] == "r299"]
    assert [(s.labels["outcome"], s.value) for s in handshakes] == [("ok", 1)]
    assert value(metrics, "sidecert_route_insecure", route="r250") == 1
    assert value(metrics, "sidecert_route_insecure", route="r251") is None


def test_reloads_are_counted_and_the_last_one_tells(metrics: Metrics) -> None:
    """The first load is no reload, yet it is a success; a failure leaves the time of the last success."""

    def state() -> list[float | None]:
        return [
            value(metrics, "sidecert_config_reloads_total", result="ok"),
            value(metrics, "sidecert_config_reloads_total", result="failed"),
            value(metrics, "sidecert_config_last_reload_successful"),
            value(metrics, "sidecert_config_last_reload_success_timestamp_seconds"),
        ]

    assert state() == [0, 0, 1, 5000.25]
    metrics.reload(False, 6000.0)
    assert state() == [0, 1, 0, 5000.25]
    metrics.reload(True, 7000.0)
    assert state() == [1, 1, 1, 7000]


def test_before_any_config_is_loaded_the_page_says_so() -> None:
    """A scrape may come early; it finds generation 0 and no success."""
    metrics = Metrics(CollectorRegistry())
    assert value(metrics, "sidecert_config_generation") == 0
    assert value(metrics, "sidecert_config_last_reload_successful") == 0


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5", TEXT),
    ],
)
def test_accept_chooses_the_format(metrics: Metrics, accept: str, content_type: str) -> None:
    """OpenMetrics goes only to those who ask for it, as Prometheus does."""
    page, found = metrics.render(accept)
    assert found == content_type
    assert page.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


def test_openmetrics_page_is_read_by_a_strict_parser(metrics: Metrics) -> None:
    """Families, suffixes, bounds and the end mark are as that format wants them."""
    stats = metrics.route("orders")
    stats.request(200, True, 0.1)
    stats.handshake("alice", Outcome.OK, 0.1)
    stats.http_cert_rejection(Signature.NGINX_400)
    page = metrics.render("application/openmetrics-text")[0].decode()
    found = {family.name: family for family in parse_openmetrics(page)}
    assert {name.removesuffix("_total") for name in TABLE} <= found.keys()
    assert found["sidecert_requests"].type == "counter"


def test_labels_are_escaped(metrics: Metrics) -> None:
    """A unix listener's label is a path, which may hold anything."""
    label = 'unix:/run/a"b\\c\nd'
    configure(metrics, listeners=[label])
    (sample,) = families(metrics)["sidecert_downstream_connections"].samples
    assert sample.labels == {"listener": label}


def test_pieces_are_short_and_may_see_changes_in_between(metrics: Metrics) -> None:
    """Calls go on between two pieces: a new outcome, a signature or a reload must not break the page."""
    configure(metrics, [(f"r{n}", "alice", False) for n in range(ZEROED_ROUTES)])
    pieces, _ = metrics.pieces("")
    page = []
    for number, piece in enumerate(pieces):
        page.append(piece)
        stats = metrics.route(f"r{number}")
        stats.handshake(f"new{number}", Outcome.OK, 0.1)
        stats.http_cert_rejection(Signature.NGINX_400)
        if number == 20:
            configure(metrics)
    assert max(piece.count(b"\n") for piece in page) < 300
    assert {family.name for family in parse_text(b"".join(page).decode())} >= {"sidecert_build_info"}


def test_counting_a_request_leaves_nothing_behind() -> None:
    """The hot path only adds to numbers that are there: a hundred thousand calls take no memory."""
    stats = RouteStats()
    for _ in range(2):  # the first round may fill what Python keeps for itself
        tracemalloc.start()
        for _ in range(100_000):
            stats.request(200, True, 0.003)
            stats.handshake("alice", Outcome.OK, 0.003)
        # Threads that other tests have left may take memory meanwhile.
        own = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, sidecert.metrics.stats.__file__)]
        )
        tracemalloc.stop()
    assert sum(trace.size for trace in own.traces) < 2000
    assert not hasattr(stats, "__dict__")


def test_registries_share_nothing() -> None:
    """Two in one process, as in tests, do not see each other's numbers."""
    one, other = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    configure(one)
    configure(other)
    one.route("orders").retries += 1
    assert value(other, "sidecert_retries_total", route="orders") == 0
