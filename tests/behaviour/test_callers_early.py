"""An upstream answers before it has read the request: the caller gets that answer, whatever comes then."""

from __future__ import annotations

import random
import select
import threading
import time
from collections.abc import Callable

import pytest

from support import upstreams
from support.callers import by_curl, http_client, urllib_opener, wget
from support.certs import Pki
from support.clients import Talker, call, curl
from support.peers import Peers
from support.recorder import AnswerFunction, Exchange, head
from support.sidecar import Sidecar, StartSidecar, route
from support.upstreams import Line

# More than fits into one write to the upstream.
LARGE = b"x" * 900_000
TIMES = 20  # a reset that overtakes the answer is a matter of luck


def early(status: int, end: Callable[[Exchange], None]) -> AnswerFunction:
    """Answers at the head, never reads the body, and ends the connection so."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(status, ("Content-Length", "5"), ("Connection", "close")) + b"early")
        end(exchange)

    return answer


def stay(exchange: Exchange) -> None:
    """Neither reads nor ends before the other side has."""
    poll = select.poll()
    poll.register(exchange.wire, 0)  # tells of an error or an end only, not of what there is to read
    poll.poll(20_000)
    exchange.ended = True


ENDS = {"stays": stay, "close-notify": Exchange.finish, "fin": Exchange.cut, "reset": Exchange.abort}


def post(host: str) -> bytes:
    return f"POST /missing HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("status", [413, 200])
def test_answer_that_comes_first_is_the_answer(
    status: int, end: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Also where the upstream has reset the connection by the time that more of the body is written."""
    upstream = peers.recorder(answer=early(status, ENDS[end]))
    running = sidecar(route("orders", upstream, trust=pki.trust))
    for _ in range(TIMES):
        with Talker(running.listener) as talker:
            talker.send(post("orders.test"))
            got = talker.read_answer()
            assert (got.status, got.body) == (status, b"early"), got
        got = call(running.listener, "POST", "http://orders.test/", LARGE)
        assert (got.status, got.body) == (status, b"early"), got
    # None was sent twice: a connection whose request was not read in full serves nobody else.
    assert len(upstream.requests) == upstream.connections == 2 * TIMES
    check_nothing_left(running, "orders")


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_real_servers_refusal_of_a_large_body_arrives(
    kind: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """nginx says 413 at the head, haproxy any answer of its own; curl has not sent a quarter by then."""
    extra = "client_max_body_size 1k;" if kind == "nginx" else ""
    status = 413 if kind == "nginx" else 404
    upstream = upstreams.start(kind, peers, extra=extra)
    running = sidecar(route(kind, upstream, trust=pki.trust))
    for number in range(TIMES):
        with Talker(running.listener) as talker:
            talker.send(post(f"{kind}.test"))
            assert talker.read_answer().status == status
        target = f"http://{kind}.test/missing?curl={number}"
        got = curl(target, "-H", "Expect:", proxy=running.listener, body=LARGE * 8)
        assert (got.status, got.exit_code) == (status, 0), got.message
    assert len(upstream.wait_for_arrivals("missing", 2 * TIMES)) == 2 * TIMES
    check_nothing_left(running, kind)


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_callers_that_send_all_before_they_read_get_the_refusal(
    kind: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """20 MB by wget and Python's libraries: dropped by sidecert, as the upstream does not want them."""
    extra = "client_max_body_size 1k;" if kind == "nginx" else ""
    running = sidecar(route(kind, upstreams.start(kind, peers, extra=extra), trust=pki.trust))
    line = Line(f"http://{kind}.test", running.listener)
    for caller in (http_client, urllib_opener, wget, by_curl("-H", "Expect:")):
        for _ in range(3):
            got = caller(line, "POST", "/missing", b"x" * 20_000_000)
            assert got.status == (413 if kind == "nginx" else 404), got.note


def test_answer_goes_on_while_the_request_does(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """An upstream that sends back what it reads, 6 MB: more than all buffers on the way hold."""

    def send_back(exchange: Exchange) -> None:
        exchange.send(head(200, ("Transfer-Encoding", "chunked")))
        for piece in exchange.body_pieces():
            exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n\r\n")

    body = random.randbytes(6_000_000)
    running = sidecar(route("orders", peers.recorder(answer=send_back), trust=pki.trust))
    ask = f"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Talker(running.listener) as talker:
        sending = threading.Thread(target=talker.send, args=(ask + body,))
        sending.start()
        assert talker.read_answer().body == body
        sending.join()
    check_nothing_left(running, "orders")


def test_answer_that_has_begun_waits_for_a_slow_request(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """It is no stall when the answer stands still while the request's bytes come."""

    def begin_and_wait(exchange: Exchange) -> None:
        exchange.send(head(200, ("Content-Length", "5")) + b"be")
        exchange.read_body()
        exchange.send(b"gun")

    upstream = peers.recorder(answer=begin_and_wait)
    running = sidecar(route("orders", upstream, trust=pki.trust, timeouts={"stall": "1500ms"}))
    with Talker(running.listener) as talker:
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 8\r\n\r\n")
        assert talker.read_until(b"\r\n\r\nbe").startswith(b"HTTP/1.1 200 ")
        for _ in range(8):
            time.sleep(0.3)  # 2.4 s in all: longer than a stall may take
            talker.send(b"x")
        assert talker.read_exactly(3) == b"gun"
    with Talker(running.listener) as talker:
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 8\r\n\r\nxxx")
        assert talker.read_until(b"\r\n\r\nbe").startswith(b"HTTP/1.1 200 ")
        with pytest.raises(ConnectionResetError):  # where both stand still it is one
            talker.read_exactly(3)


def check_nothing_left(running: Sidecar, route_id: str) -> None:
    """No call is under way any more, and no upstream connection is held by one."""
    for name, labels in (
        ("sidecert_requests_in_progress", {"route": route_id}),
        ("sidecert_upstream_connections", {"route": route_id, "state": "active"}),
    ):
        running.wait_for(lambda name=name, labels=labels: running.metric(name, **labels) == 0, why=name)  # type: ignore[misc]
