"""The status page tells at a glance how the sidecar is, and shows whatever it holds as text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from prometheus_client import CollectorRegistry

from sidecert.admin.status_page import MAX_ROWS, RouteRow, Snapshot, render
from sidecert.http_verdict import Signature
from sidecert.metrics import Metrics
from sidecert.outcome import Outcome

DAY = 86400.0
NOW = 1_800_000_000.0


class _Reader(HTMLParser):
    """Collects the tags, attributes and visible text; fails on a page whose tags do not match up."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "style", "onclick")]
        if tag not in ("meta",):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + " "


def page(
    metrics: Metrics | None = None,
    routes: tuple[RouteRow, ...] = (),
    expiry: dict[str, float] | None = None,
    ready: bool = True,
    config_file: str = "/etc/sidecert/sidecert.yaml",
    label: str = "127.0.0.1:8080",
    started: float = NOW - 2 * DAY - 3 * 3600,
) -> _Reader:
    metrics = metrics or Metrics(CollectorRegistry())
    metrics.set_generation(
        7,
        routes=[(route.id, route.credential, route.insecure) for route in routes],
        credentials=[(id_, NOW - DAY, at, "ab" * 32, "1f") for id_, at in (expiry or {}).items()],
        listeners=[label],
        now=NOW,
    )
    snapshot = Snapshot(config_file, started, ready, {label: ["127.0.0.1:41234"]}, routes)
    return _Reader(render(snapshot, metrics, NOW))


ORDERS = RouteRow("orders", "shop.example /orders/**", "shop.example:8443", "alice")


def test_page_tells_version_generation_config_uptime_listeners_and_state() -> None:
    """What one asks first when something is wrong."""
    text = page().text
    for words in (
        "7",
        "/etc/sidecert/sidecert.yaml",
        "2 d 3 h",
        "127.0.0.1:8080",
        "127.0.0.1:41234",
        " ready ",
    ):
        assert words in text
    assert "not ready" in page(ready=False).text


def test_page_shows_routes_with_their_numbers() -> None:
    """Match, upstream, credential, what came of the handshakes, and the numbers of calls and connections."""
    metrics = Metrics(CollectorRegistry())
    stats = metrics.route("orders")
    stats.handshake("alice", Outcome.OK, 0.1)
    stats.handshake("alice", Outcome.CLIENT_CERT_EXPIRED, 0.1)
    stats.request(200, True, 0.1)
    stats.connections = 5
    row = RouteRow("orders", ORDERS.match, ORDERS.upstream, "alice", True)
    text = page(metrics, (row,), {"alice": NOW + DAY}).text
    for words in (
        *("orders", "shop.example /orders/**", "shop.example:8443", "alice", "not verified"),
        *("ok  1", "client_cert_expired  1", "5  active"),
    ):
        assert words in text


def test_answers_that_refuse_the_certificate_have_a_place_of_their_own() -> None:
    """nginx lets the handshake pass: they are no handshakes, and without them the route would look well."""
    metrics = Metrics(CollectorRegistry())
    stats = metrics.route("orders")
    stats.handshake("alice", Outcome.OK, 0.1)
    stats.request(400, True, 0.1)
    stats.http_cert_rejection(Signature.NGINX_400)
    text = " ".join(page(metrics, (ORDERS,), {"alice": NOW + DAY}).text.split())
    assert "Handshakes Calls Refused in answers Connections" in text
    assert "ok 1 1 nginx_400 1" in text


def test_calls_that_failed_after_a_good_handshake_are_seen() -> None:
    """By who answered them, with the last failure in words."""
    metrics = Metrics(CollectorRegistry())
    stats = metrics.route("orders")
    stats.handshake("alice", Outcome.OK, 0.1)
    stats.request(504, False, 60.0)
    stats.request(504, False, 60.0)
    stats.request(500, True, 0.1)
    stats.failed("upstream_closed", "It closed.", "Ask.")
    stats.failed("response_timeout", "It was <slow>" + "w" * 5000, "Wait.")
    text = " ".join(page(metrics, (ORDERS,), {"alice": NOW + DAY}).text.split())
    assert "3 5xx by sidecert 2 5xx by upstream 1" in text
    assert "UTC: response_timeout It was <slow>w" in text
    assert "What to do: Wait." in text
    assert "upstream_closed" not in text
    assert len(text) < 2000
    assert "last failure" not in page(routes=(ORDERS,)).text


@pytest.mark.parametrize(("credential", "told"), [("alice", True), ("none", False)])
def test_upstream_that_asks_for_no_certificate_is_marked(credential: str, told: bool) -> None:
    """Where there is one to show: the route is likely to lead to the wrong port."""
    for requested in (True, False):
        metrics = Metrics(CollectorRegistry())
        stats = metrics.route("orders")
        stats.handshake(credential, Outcome.OK, 0.1)
        stats.cert_requested(requested)
        text = page(metrics, (RouteRow("orders", "m", "u", credential),), {"alice": NOW + DAY}).text
        assert "ok" in text
        assert ("did not ask for a certificate" in text) is (told and not requested)


def test_upstream_that_is_not_tried_is_marked() -> None:
    """As long as its circuit is open."""
    metrics = Metrics(CollectorRegistry())
    assert "circuit open" not in page(metrics, (ORDERS,)).text
    metrics.route("orders").circuit_open = lambda: True
    assert "circuit open" in page(metrics, (ORDERS,)).text


def test_route_that_was_never_called_says_so() -> None:
    """An empty cell would look like a fault."""
    assert "none yet" in page(routes=(ORDERS,)).text


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (100 * DAY, "100 days"),
        (29.5 * DAY, "29 days"),
        (1.5 * DAY, "1 day "),
        (0.5 * DAY, "0 days"),
        (0.0, "expired"),
        (-DAY, "expired"),
    ],
)
def test_page_shows_the_days_that_a_credential_has_left(left: float, words: str) -> None:
    """Whole days, rounded down: better early than late."""
    assert words in page(expiry={"alice": NOW + left}).text


def test_credential_that_expires_first_comes_first() -> None:
    """The one to look at is on top."""
    text = page(expiry={"later": NOW + 90 * DAY, "sooner": NOW + DAY}).text
    assert text.index("sooner") < text.index("later")


def test_credential_that_is_held_back_comes_first_with_the_reason() -> None:
    """Even before one that expires sooner."""
    metrics = Metrics(CollectorRegistry())
    metrics.held_back = {"later": "shop.example:8443 refuses <it>"}
    text = page(metrics, expiry={"sooner": NOW + DAY, "later": NOW + 90 * DAY}).text
    assert text.index("later") < text.index("shop.example:8443 refuses <it>") < text.index("sooner")
    assert "newer one held back" in text


def test_page_fetches_and_runs_nothing() -> None:
    """No script, no image, no attribute that loads; the one link leads to the metrics."""
    found = page(routes=(ORDERS,), expiry={"alice": NOW})
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(found.tags)
    assert found.links == ["/metrics"]


def test_whatever_the_values_hold_is_text() -> None:
    """Names from files and certificates cannot become markup."""
    evil = "<script>alert(1)</script>\"'&<b>"
    row = RouteRow(evil, evil, evil, evil, True)
    found = page(routes=(row,), expiry={evil: NOW}, config_file=evil, label=evil)
    plain = page(routes=(RouteRow("r", "m", "u", "c", True),), expiry={"c": NOW})
    assert found.tags == plain.tags
    assert found.text.count(evil) == 7


def test_thousands_of_routes_make_no_endless_page() -> None:
    """The rest is counted, and in the metrics."""
    rows = tuple(RouteRow(f"r{n}", "m", "u", "none") for n in range(MAX_ROWS + 50))
    found = page(routes=rows)
    assert "and 50 more" in found.text
    assert found.text.count(" none yet") == MAX_ROWS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_uptime_is_told_in_two_units(seconds: float, words: str) -> None:
    """A clock that was set back does not make it negative."""
    assert words in page(started=NOW - seconds).text


def test_page_says_that_the_config_on_disk_is_not_in_force() -> None:
    """A failed reload keeps the old generation; nobody who looks may take it for the new one."""
    metrics = Metrics(CollectorRegistry())
    assert "reload failed" not in page(metrics).text
    metrics.reload(False, NOW)
    failed = _Reader(render(Snapshot("/etc/s.yaml", NOW, True, {}, ()), metrics, NOW))
    assert "The last reload failed." in failed.text
