"""The numbers on /metrics are what happened, and come back to zero when it is over."""

from __future__ import annotations

import threading

from support.certs import Pki
from support.clients import Caller, Talker, call
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, fixed, head
from support.sidecar import StartSidecar, route


def test_calls_are_counted_by_code_and_by_who_answered(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """2xx to 5xx of the upstream and 5xx of ours are told apart, each call once."""

    def by_path(exchange: Exchange) -> None:
        fixed(b"fine", int(exchange.seen.target.removeprefix("/")))(exchange)

    upstream = peers.recorder(answer=by_path)
    running = sidecar(
        route("orders", upstream, trust=pki.trust), route("gone", peers.closed_port(), trust=pki.trust)
    )
    for status in (200, 201, 302, 404, 500, 503):
        assert running.get(f"http://orders.test/{status}").status == status
    assert running.get("http://gone.test/").status == 502
    assert running.get("http://nobody.test/").status == 403

    def count(name: str, code: str, source: str) -> float | None:
        return running.metric("sidecert_requests_total", route=name, code=code, source=source)

    assert [count("orders", code, "upstream") for code in ("2xx", "3xx", "4xx", "5xx")] == [2, 1, 1, 2]
    assert [count("orders", code, "sidecert") for code in ("2xx", "3xx", "4xx", "5xx")] == [0, 0, 0, 0]
    assert count("gone", "5xx", "sidecert") == 1
    assert running.metric("sidecert_request_duration_seconds_count", route="orders") == 6
    assert running.metric("sidecert_handshake_duration_seconds_count", route="gone") == 1
    assert running.metric("sidecert_denied_requests_total", reason="no_route") == 1


def test_gauges_show_what_is_going_on_and_go_back_to_zero(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Calls in progress, connections on both sides: right while they last, zero afterwards."""
    gate = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert gate.wait(20)
        exchange.send(head(200, ("Content-Length", "0"), ("Connection", "close")))
        exchange.finish()

    upstream = peers.recorder(answer=answer)
    running = sidecar(route("orders", upstream, trust=pki.trust))

    def gauges() -> tuple[float | None, ...]:
        return (
            running.metric("sidecert_requests_in_progress", route="orders"),
            running.metric("sidecert_upstream_connections", route="orders", state="active"),
            running.metric("sidecert_upstream_connections", route="orders", state="idle"),
            running.metric("sidecert_downstream_connections", listener="127.0.0.1:0"),
        )

    assert gauges() == (0, 0, 0, 0)
    talkers = [Talker(running.listener) for _ in range(3)]
    for talker in talkers:
        talker.send(b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n")
    upstream.wait_for(lambda: len(upstream.requests) == 3)
    assert gauges() == (3, 3, 0, 3)
    talkers[0].reset()
    running.wait_for(lambda: gauges() == (2, 2, 0, 2))
    gate.set()
    for talker in talkers[1:]:
        assert talker.read_answer().status == 200
        talker.close()
    running.wait_for(lambda: gauges() == (0, 0, 0, 0))


def test_connections_are_counted_by_the_listener_they_came_to(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Each listener has its own number."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust),
        listeners=[{"bind": "127.0.0.1:0"}, {"bind": "unix:in.sock", "route": "orders"}],
    )
    with Talker(running.listeners[1]) as talker:
        talker.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert talker.read_answer().status == 200
        assert running.metric("sidecert_downstream_connections", listener="unix:in.sock") == 1
        assert running.metric("sidecert_downstream_connections", listener="127.0.0.1:0") == 0


def test_certificate_requests_of_the_upstream_are_counted(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Whether the upstream asked for a certificate, once per handshake."""
    running = sidecar(
        route("asks", peers.recorder(), trust=pki.trust),
        route("quiet", peers.recorder(verify="off"), trust=pki.trust),
    )
    for name in ("asks", "quiet", "quiet"):
        with Caller(running.listener) as caller:
            assert caller.get(f"http://{name}.test/").status == 200

    def asked(name: str) -> list[float | None]:
        return [
            running.metric("sidecert_client_cert_requests_total", route=name, requested=word)
            for word in ("yes", "no")
        ]

    assert asked("asks") == [1, 0]
    assert asked("quiet") == [0, 1]
    assert running.outcomes("quiet") == {"ok": 1}


def test_no_name_from_a_request_becomes_a_label(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Hosts, paths, methods and header values of callers are on no line of /metrics."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    for target in ("http://orders.test/needle", "http://needle.test/", "http://orders.test:1234/needle"):
        call(running.listener, "GET", target, headers={"X-Needle": "needle-of-mine"})
    assert "needle" not in running.ask_admin("GET", "/metrics").text
    assert "needle-of-mine" not in running.stderr
