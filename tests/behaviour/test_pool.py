"""Which upstream connections are kept, used again, waited for and given up; what is sent again."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.certs import Pki
from support.clients import Answer, Caller, Talker, call
from support.peers import Peers
from support.recorder import AnswerFunction, Exchange, TlsRecorder, echo, fixed, head
from support.sidecar import Sidecar, StartSidecar, route

Start = Callable[..., tuple[Sidecar, TlsRecorder]]


@pytest.fixture
def start(sidecar: StartSidecar, peers: Peers, pki: Pki) -> Start:
    """Starts a sidecar with one route, `orders`, whose upstream settings are the keyword arguments."""

    def begin(answer: AnswerFunction = echo, **upstream: object) -> tuple[Sidecar, TlsRecorder]:
        peer = peers.recorder(answer=answer)
        return sidecar(route("orders", peer, trust=pki.trust, **upstream)), peer

    return begin


def connections(running: Sidecar, state: str) -> float | None:
    return running.metric("sidecert_upstream_connections", route="orders", state=state)


def reuses(running: Sidecar) -> float | None:
    return running.metric("sidecert_upstream_connection_reuses_total", route="orders")


class Gate:
    """An answer that waits until `open` is set, and says how many wait."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        exchange.read_body()
        assert self.open.wait(20)
        exchange.send(head(200, ("Content-Length", "2")) + b"ok")


@contextmanager
def at_once(running: Sidecar, count: int, path: str = "/") -> Iterator[list[Answer]]:
    """`count` calls at the same time; their answers are in the list once the block has ended."""
    answers: list[Answer] = []
    with ThreadPoolExecutor(count) as callers:
        waiting = [
            callers.submit(call, running.listener, "GET", f"http://orders.test{path}") for _ in range(count)
        ]
        yield answers
        answers += [each.result() for each in waiting]


def test_the_connection_used_last_is_used_first(start: Start) -> None:
    """Three connections are open; single calls all go over the one that was used last."""
    gate = Gate()
    running, upstream = start(gate)
    with at_once(running, 3):
        upstream.wait_for(lambda: len(upstream.requests) == 3)
        gate.open.set()
    assert connections(running, "idle") == 3
    before = len(upstream.requests)
    for _ in range(5):
        running.get("http://orders.test/")
    assert len({seen.connection for seen in upstream.requests[before:]}) == 1
    assert reuses(running) == 5
    assert upstream.connections == 3


def test_no_more_than_max_idle_are_kept(start: Start) -> None:
    """Of five connections two are kept; the others are closed in good order."""
    gate = Gate()
    running, upstream = start(gate, pool={"max_idle": 2})
    with at_once(running, 5):
        upstream.wait_for(lambda: len(upstream.requests) == 5)
        assert connections(running, "active") == 5
        gate.open.set()
    assert connections(running, "idle") == 2
    assert connections(running, "active") == 0


def test_full_pool_makes_callers_wait_for_their_turn(start: Start) -> None:
    """Ten calls at once through two connections: all are answered, over two connections."""
    running, upstream = start(echo, pool={"max_connections": 2})
    with at_once(running, 10) as answers:
        pass
    assert [answer.status for answer in answers] == [200] * 10
    assert upstream.connections == 2


def test_pool_that_stays_full_refuses_with_503(start: Start) -> None:
    """Nobody's turn comes within `connect`: 503 `pool_full` with Retry-After; nothing was sent for it."""
    gate = Gate()
    running, upstream = start(gate, pool={"max_connections": 1}, timeouts={"connect": "200ms"})
    with at_once(running, 1):
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        refused = running.call("POST", "http://orders.test/", b"body")
        gate.open.set()
    assert (refused.status, refused.header("Sidecert-Outcome")) == (503, "pool_full")
    assert refused.header("Retry-After") == "1"
    assert running.metric("sidecert_denied_requests_total", reason="pool_full") == 1
    assert len(upstream.requests) == 1
    assert running.outcomes("orders") == {"ok": 1}
    assert running.get("http://orders.test/").status == 200


def test_place_of_a_failed_attempt_goes_to_the_next_in_line(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Attempts that are refused free their place: five calls through one place are all told why."""
    upstream = peers.recorder()
    running = sidecar(
        route(
            "orders",
            upstream,
            trust=pki.trust,
            credential="stranger",
            pool={"max_connections": 1, "max_idle": 1},
        )
    )
    with at_once(running, 5) as answers:
        pass
    assert {answer.header("Sidecert-Outcome") for answer in answers} == {"client_cert_unknown_ca"}
    assert running.outcomes("orders") == {"client_cert_unknown_ca": 5}


def test_place_of_a_caller_that_left_goes_to_the_next_in_line(start: Start) -> None:
    """A caller that leaves while it waits, and one that leaves while it is served, hold nobody up."""
    gate = Gate()
    running, upstream = start(gate, pool={"max_connections": 1})
    request = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
    with Talker(running.listener) as served, Talker(running.listener) as waiting:
        served.send(request)
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        waiting.send(request)
        in_progress = "sidecert_requests_in_progress"
        running.wait_for(lambda: running.metric(in_progress, route="orders") == 2)
        waiting.reset()
        running.wait_for(lambda: running.metric(in_progress, route="orders") == 1)
        served.reset()
        running.wait_for(lambda: running.metric(in_progress, route="orders") == 0)
    gate.open.set()
    assert running.get("http://orders.test/").status == 200
    assert len(upstream.requests) == 2


def test_connection_that_is_idle_for_long_is_closed(start: Start) -> None:
    """After `idle` the upstream sees the end of the connection; the next call opens another."""
    running, _ = start(echo, timeouts={"idle": "100ms"})
    assert running.get("http://orders.test/").status == 200
    running.wait_for(lambda: connections(running, "idle") == 0, 5)
    assert running.get("http://orders.test/").json()["connection"] == 2
    assert reuses(running) == 0


def test_upstreams_own_limit_for_idle_connections_is_kept(start: Start) -> None:
    """`Keep-Alive: timeout=1` of the upstream counts, with a margin, before our own `idle`."""
    running, _ = start(fixed(b"fine", 200, ("Keep-Alive", "timeout=1"), ("Connection", "keep-alive")))
    assert running.get("http://orders.test/").status == 200
    running.wait_for(lambda: connections(running, "idle") == 0, 5)


def test_connection_that_the_upstream_closed_is_not_used_again(start: Start) -> None:
    """The upstream ends idle connections: the next POST goes over a new one and is sent once."""
    running, upstream = start(echo)
    for number in range(1, 6):
        answer = running.call("POST", "http://orders.test/", b"once")
        assert answer.json()["connection"] == number
        upstream.drop_connections()
        running.wait_for(lambda: connections(running, "idle") == 0)
    assert len(upstream.requests) == 5
    assert running.metric("sidecert_retries_total", route="orders") == 0


def die_on_reuse(exchange: Exchange) -> None:
    """The first request of a connection is answered, the second ends it with no byte of an answer."""
    seen = exchange.read_body()
    number = served[seen.connection] = served.get(seen.connection, 0) + 1
    if number == 1:
        fixed(b"fine")(exchange)
    else:
        exchange.cut()


served: dict[int, int] = {}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_safe_request_that_crosses_the_upstreams_close_is_sent_once_more(method: str, start: Start) -> None:
    """A reused connection ends before any byte of an answer: GET, HEAD and OPTIONS go out a second time."""
    served.clear()
    running, upstream = start(die_on_reuse)
    with Caller(running.listener) as caller:
        for number in (1, 2):
            assert caller.call(method, f"http://orders.test/{number}").status == 200
    assert [seen.target for seen in upstream.requests] == ["/1", "/2", "/2"]
    assert [seen.connection for seen in upstream.requests] == [1, 1, 2]
    assert running.metric("sidecert_retries_total", route="orders") == 1


@pytest.mark.parametrize(
    ("method", "body"), [("POST", b"x"), ("POST", b""), ("PUT", b"x"), ("DELETE", None), ("GET", b"x")]
)
def test_other_request_is_never_sent_twice(method: str, body: bytes | None, start: Start) -> None:
    """Anything that might be done twice, or has a body: 502 `upstream_closed`, and one request upstream."""
    served.clear()
    running, upstream = start(die_on_reuse)
    with Caller(running.listener) as caller:
        assert caller.call(method, "http://orders.test/1", body).status == 200
        answer = caller.call(method, "http://orders.test/2", body)
    assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_closed")
    assert [seen.target for seen in upstream.requests] == ["/1", "/2"]
    assert running.metric("sidecert_retries_total", route="orders") == 0


def test_request_on_a_new_connection_is_never_sent_twice(start: Start) -> None:
    """An upstream that always dies without an answer gets a GET once, and a reused one at most twice."""
    running, upstream = start(lambda exchange: exchange.cut())
    answer = running.get("http://orders.test/")
    assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_closed")
    assert len(upstream.requests) == 1
    upstream.answer = fixed(b"fine")
    assert running.get("http://orders.test/").status == 200
    upstream.answer = lambda exchange: exchange.cut()
    assert running.get("http://orders.test/").header("Sidecert-Outcome") == "upstream_closed"
    assert len(upstream.requests) == 4


def test_request_is_not_sent_again_once_a_byte_of_its_answer_came(start: Start) -> None:
    """Half a head, then the end: 502, not a second try."""

    def half(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 20")
        exchange.cut()

    running, upstream = start(fixed(b"fine"))
    assert running.get("http://orders.test/").status == 200
    upstream.answer = half
    answer = running.get("http://orders.test/")
    assert answer.status == 502
    assert len(upstream.requests) == 2
    assert running.metric("sidecert_retries_total", route="orders") == 0


def test_connection_never_outlives_its_certificate(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """A certificate that ends in seconds: its connection is not used after that, whatever `idle` says."""
    files = pki.ca.caller("lasting").write(tmp_path, "brief")
    upstream = peers.recorder()
    running = sidecar(
        route("orders", upstream, trust=pki.trust, credential="brief"),
        credentials={"brief": {**files.config, "prove": False}},
    )
    with Caller(running.listener) as caller:
        for seconds in (3, 6, 12):
            # Made now, not before the start, which takes its time on a busy machine.
            leaf = pki.ca.caller("brief", ends=datetime.timedelta(seconds=seconds))
            leaf.write(tmp_path, "brief")
            assert running.ask_admin("POST", "/-/reload").status == 200
            if caller.get("http://orders.test/").status == 200:
                break
        assert upstream.requests[-1].subject == "brief"
        connection = upstream.requests[-1].connection
        outcome = None

        def refused() -> bool:
            nonlocal outcome
            outcome = caller.get("http://orders.test/").header("Sidecert-Outcome")
            return outcome is not None

        running.wait_for(refused, 20)
    assert outcome == "client_cert_expired"
    assert datetime.datetime.now(datetime.UTC) >= leaf.certificate.not_valid_after_utc
    assert {each.connection for each in upstream.requests} == {connection}
    assert upstream.connections > connection
