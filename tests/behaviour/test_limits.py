"""Every wait and every number has its limit, and what happens at the limit is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from support.certs import Pki
from support.clients import Talker
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, head, silence, whole_or_cut
from support.sidecar import StartSidecar, route

REQUEST = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"


@contextmanager
def within(least: float, most: float) -> Iterator[None]:
    """The block takes at least and at most so many seconds."""
    began = time.monotonic()
    yield
    taken = time.monotonic() - began
    assert least <= taken <= most, f"{taken:.2f} s"


def test_connections_beyond_the_limit_are_refused_and_told(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The third of two connections gets 503 `overloaded` at once, those open go on, and room made is used."""
    running = sidecar(route("orders", recorder, trust=pki.trust), limits={"connections": 2})
    with ExitStack() as stack:
        first, second = (stack.enter_context(Talker(running.listener)) for _ in range(2))
        for talker in (first, second):
            talker.send(REQUEST)
            assert talker.read_answer().status == 200
        with Talker(running.listener) as third:
            answer = third.read_answer()  # before it has asked
            assert (answer.status, answer.header("Sidecert-Outcome")) == (503, "overloaded")
            assert answer.header("Retry-After") == "1"
            third.shutdown_write()
            assert third.closed()
        first.send(REQUEST)
        assert first.read_answer().status == 200
        second.close()
        connections = "sidecert_downstream_connections"
        running.wait_for(lambda: running.metric(connections, listener="127.0.0.1:0") == 1)
        fourth = stack.enter_context(Talker(running.listener))
        fourth.send(REQUEST)
        assert fourth.read_answer().status == 200
    assert running.metric("sidecert_denied_requests_total", reason="overloaded") == 1


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: orders.test\r\n"])
def test_header_that_stops_half_way_is_refused(
    start: bytes, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """`header_timeout` after its first byte: 400, also where single bytes go on coming."""
    limits = {"header_timeout": "300ms"}
    running = sidecar(route("orders", recorder, trust=pki.trust), limits=limits)
    with Talker(running.listener) as talker, within(0.2, 3):
        talker.send(start)
        answer = talker.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (400, "bad_request")
        assert "0.3 s" in answer.json()["detail"]
    with Talker(running.listener) as talker, within(0.2, 3):
        stop = threading.Event()

        def drip() -> None:
            try:
                talker.send(b"GET / HTTP/1.1\r\nX: ")
                while not stop.wait(0.03):
                    talker.send(b"x")
            except OSError:
                pass

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        assert talker.read_answer().status == 400
        stop.set()
        dripping.join(5)
    assert recorder.connections == 0


def test_idle_connection_is_closed_after_keepalive(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A caller that asks nothing, before or after a first request: closed with no answer."""
    running = sidecar(route("orders", recorder, trust=pki.trust), limits={"keepalive": "300ms"})
    for data in (b"", REQUEST):
        with Talker(running.listener) as talker, within(0.2, 3):
            if data:
                talker.send(data)
                assert talker.read_answer().status == 200
            assert talker.closed()
    assert running.metric("sidecert_downstream_connections", listener="127.0.0.1:0") == 0


def test_body_that_stops_is_refused_and_never_a_whole_one(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """`stall` with no byte of the body: 400, and the upstream sees the request cut."""
    ends: list[str] = []
    upstream = peers.recorder(answer=whole_or_cut(ends))
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"stall": "300ms"}))
    with Talker(running.listener) as talker, within(0.2, 3):
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 10\r\n\r\nabc")
        got = talker.read_answer()
        assert (got.status, got.header("Sidecert-Outcome")) == (400, "bad_request")
        talker.shutdown_write()
        assert talker.closed()
    running.wait_for(lambda: ends == ["cut"])


def test_upstream_that_does_not_answer_in_time_is_504(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """`response` after the request: 504 `response_timeout`; its connection is not used again."""
    upstream = peers.recorder(answer=silence)
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"response": "300ms"}))
    with Talker(running.listener) as talker:
        for number in (1, 2):
            with within(0.2, 3):
                talker.send(REQUEST)
                got = talker.read_answer()
            assert (got.status, got.header("Sidecert-Outcome")) == (504, "response_timeout")
            assert upstream.connections == number
    assert running.outcomes("orders") == {"ok": 2}


def test_time_for_the_answer_runs_from_the_end_of_the_request(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A body that takes longer than `response`, without a pause of `stall`, is no failure."""
    timeouts = {"response": "400ms", "stall": "2s"}
    running = sidecar(route("orders", recorder, trust=pki.trust, timeouts=timeouts))
    with Talker(running.listener) as talker, within(0.7, 5):
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 8\r\n\r\n")
        recorder.wait_for(lambda: bool(recorder.requests))
        for letter in b"slowness":
            time.sleep(0.1)  # the caller's pace is what is tested
            talker.send(bytes([letter]))
        assert talker.read_answer().json()["body"] == "slowness"


def test_upstream_that_stops_reading_is_told_apart_from_a_slow_caller(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """The upstream takes no more of the body for `stall`: 504, not a 400 that blames the caller."""
    gate = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert gate.wait(20)
        exchange.ended = True

    upstream = peers.recorder(answer=answer)
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"stall": "500ms"}))
    with Talker(running.listener) as talker:
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 100000000\r\n\r\n")

        def send() -> None:
            try:
                talker.send(b"x" * 100_000_000)
            except OSError:
                pass

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        got = talker.read_answer()
        assert (got.status, got.header("Sidecert-Outcome")) == (504, "response_timeout")
        gate.set()
        talker.reset()
        sending.join(10)
    assert not sending.is_alive()


def test_answer_that_stops_is_cut(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """`stall` with no byte of the answer's body: the caller's connection is cut, in every framing."""
    gate = threading.Event()
    frames = [[("Content-Length", "10")], [("Transfer-Encoding", "chunked")], []]
    number = iter(range(10))

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, *frames[next(number)]) + b"3\r\nabc\r\n")
        gate.wait(10)
        exchange.ended = True

    upstream = peers.recorder(answer=answer)
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"stall": "300ms"}))
    for version in (b"1.1", b"1.1", b"1.0"):
        with Talker(running.listener) as talker, within(0.2, 3):
            talker.send(REQUEST.replace(b"1.1", version))
            assert talker.read_head().status == 200
            # Nothing but a reset tells that a close-delimited body is not whole.
            with pytest.raises(ConnectionResetError if version == b"1.0" else (EOFError, ConnectionError)):
                talker.read_exactly(1000)
    gate.set()
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_caller_that_never_reads_is_cut_in_the_end(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """A caller that takes no byte for `stall`: it does not hold an upstream connection for ever."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", "100000000")))
        try:
            for _ in range(1600):
                exchange.send(b"x" * 65536)
        except OSError:
            pass
        exchange.ended = True

    upstream = peers.recorder(answer=answer)
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"stall": "500ms"}))
    with Talker(running.listener) as talker:
        talker.send(REQUEST)
        upstream.wait_for(lambda: bool(upstream.requests))
        active = "sidecert_upstream_connections"
        running.wait_for(lambda: running.metric(active, route="orders", state="active") == 0, 10)
        with pytest.raises((EOFError, ConnectionResetError)):
            talker.read_exactly(100_000_000)
