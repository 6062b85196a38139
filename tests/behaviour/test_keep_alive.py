"""Where one message ends and the next begins: kept connections, all framings, no answer to the wrong call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.certs import Pki
from support.clients import Answer, Caller, Talker, curl
from support.peers import Peers
from support.recorder import (
    AnswerFunction,
    Exchange,
    TlsRecorder,
    after_interim,
    chunked,
    closing_after,
    cut_short,
    echo,
    fixed,
    head,
    raw,
    until_close,
    whole_or_cut,
)
from support.sidecar import Sidecar, StartSidecar, route

Start = Callable[[AnswerFunction], tuple[Sidecar, TlsRecorder]]
HEAD_END = b"\r\n\r\n"


@pytest.fixture
def start(sidecar: StartSidecar, peers: Peers, pki: Pki) -> Start:
    """Starts a sidecar with one route, `orders`, to a recorder that answers so."""

    def begin(answer: AnswerFunction) -> tuple[Sidecar, TlsRecorder]:
        upstream = peers.recorder(answer=answer)
        return sidecar(route("orders", upstream, trust=pki.trust)), upstream

    return begin


def request(path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: orders.test", *fields, "", ""]).encode()


# -- kept connections --------------------------------------------------------------------------------------


def test_both_sides_keep_their_connections(start: Start) -> None:
    """Fifty calls on one connection take one connection to the upstream."""
    running, upstream = start(echo)
    with Caller(running.listener) as caller:
        for number in range(50):
            assert caller.get(f"http://orders.test/{number}").json()["target"] == f"/{number}"
    assert upstream.connections == 1
    assert len(upstream.requests) == 50


def test_upstreams_close_does_not_close_the_callers_connection(start: Start) -> None:
    """`Connection: close` of the upstream ends its connection only; the next call takes another."""
    running, upstream = start(closing_after(2, fixed(b"fine"), announced=True))
    with Talker(running.listener) as talker:
        for _ in range(6):
            talker.send(request())
            answer = talker.read_answer()
            assert answer.status == 200
            assert answer.header("Connection") is None
    assert upstream.connections == 3


def test_callers_close_does_not_close_the_upstreams_connection(start: Start) -> None:
    """`Connection: close` of a caller is kept from the upstream, whose connection serves the next caller."""
    running, upstream = start(echo)
    for _ in range(4):
        with Talker(running.listener) as talker:
            talker.send(request("/", "Connection: close"))
            answer = talker.read_answer()
            assert answer.header("Connection") == "close"
            assert talker.closed()
    assert upstream.connections == 1
    assert {seen.header("Connection") for seen in upstream.requests} == {None}


def test_http_1_0_caller_keeps_its_connection_only_when_it_asks(start: Start) -> None:
    """HTTP/1.0: closed after the answer, unless `Connection: keep-alive` was sent."""
    running, _ = start(fixed(b"fine"))
    with Talker(running.listener) as talker:
        for _ in range(2):
            talker.send(request("/", "Connection: keep-alive", version="1.0"))
            answer = talker.read_answer()
            assert answer.header("Connection") == "keep-alive"
        talker.send(request(version="1.0"))
        assert talker.read_answer().body == b"fine"
        assert talker.closed()


def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    """Requests with and without bodies in one packet, and byte by byte, each answered in its turn."""
    running, upstream = start(echo)
    posts = [
        request(f"/{n}", "Content-Length: 3", method="POST") + b"abc"
        if n % 3 == 1
        else request(f"/{n}", "Transfer-Encoding: chunked", method="PUT") + b"2\r\nde\r\n0\r\n\r\n"
        if n % 3 == 2
        else request(f"/{n}")
        for n in range(9)
    ]
    for send in (Talker.send, Talker.send_bytewise):
        with Talker(running.listener) as talker:
            send(talker, b"".join(posts))
            answers = [talker.read_answer().json() for _ in posts]
        assert [answer["target"] for answer in answers] == [f"/{n}" for n in range(9)]
        assert [answer["length"] for answer in answers] == [0, 3, 2] * 3
    assert len(upstream.requests) == 18


# -- framings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "answer",
    [fixed(b"body"), chunked([b"bo", b"dy"]), until_close(b"body")],
    ids=["length", "chunked", "until-close"],
)
def test_answer_of_any_framing_reaches_callers_of_both_versions(
    answer: AnswerFunction, version: str, start: Start
) -> None:
    """The body is whole, and a caller of HTTP/1.0 never sees a chunk."""
    running, _ = start(answer)
    with Talker(running.listener) as talker:
        talker.send(request(version=version))
        got = talker.read_answer()
        assert (got.status, got.body) == (200, b"body")
        if version == "1.0":
            assert got.header("Transfer-Encoding") is None
            assert talker.closed()
        else:
            talker.send(request())
            assert talker.read_answer().body == b"body"


@pytest.mark.parametrize("name", ["curl1.0", "curl1.1", "http.client"])
def test_legacy_tools_understand_every_framing(name: str, start: Start) -> None:
    """curl as 1.0 and 1.1 and Python's http.client, one after another, through the forward proxy."""
    running, upstream = start(fixed())
    for answer in (fixed(b"body"), chunked([b"bo", b"dy"]), until_close(b"body")):
        upstream.answer = answer
        got: Answer
        if name == "http.client":
            got = running.get("http://orders.test/")
        else:
            got = curl("http://orders.test/", f"--http{name.removeprefix('curl')}", proxy=running.listener)
        assert (got.status, got.body) == (200, b"body")


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("DELETE", 204)]
)
def test_answers_without_a_body_leave_the_connection_usable(method: str, status: int, start: Start) -> None:
    """HEAD, 204 and 304 have no body whatever their headers say; the next answer is read from its start."""

    def answer(exchange: Exchange) -> None:
        if exchange.seen.target == "/next":
            fixed(b"next")(exchange)
        else:
            fields = [] if status == 204 else [("Content-Length", "1234"), ("ETag", '"x"')]
            exchange.send(head(status, *fields))

    running, upstream = start(answer)
    with Talker(running.listener) as talker:
        talker.send(request(method=method) + request("/next"))
        got = talker.read_answer(method)
        assert got.status == status
        assert got.header("Content-Length") == (None if status == 204 else "1234")
        assert talker.read_answer().body == b"next"
    assert upstream.connections == 1


def test_trailers_go_both_ways(start: Start) -> None:
    """Trailers of a chunked request reach the upstream, those of a chunked answer reach the caller."""
    running, upstream = start(chunked([b"abc"], [("X-Sum", "3")]))
    with Talker(running.listener) as talker:
        body = b"3\r\nabc\r\n0\r\nX-Check: 7\r\n\r\n"
        talker.send(request("/", "TE: trailers", "Transfer-Encoding: chunked", method="POST") + body)
        got = talker.read_answer()
    assert (got.body, got.trailers) == (b"abc", [("X-Sum", "3")])
    assert upstream.requests[0].trailers == [("X-Check", "7")]


# -- interim answers, Expect, early answers ----------------------------------------------------------------


def test_expect_100_continue_is_answered_by_the_upstream(start: Start, tmp_path: Path) -> None:
    """curl waits for the 100, gets the upstream's, and sends its body."""
    running, upstream = start(echo)
    got = curl(
        "http://orders.test/",
        *("-H", "Expect: 100-continue", "--expect100-timeout", "15"),
        proxy=running.listener,
        body=b"b" * 200_000,
    )
    assert got.status == 200
    assert got.interim == [100]
    assert got.seconds < 5
    assert upstream.requests[0].length == 200_000
    assert upstream.requests[0].header("Expect") == "100-continue"


def test_refusal_comes_instead_of_a_100(start: Start) -> None:
    """An upstream that refuses at once: curl never sends the body, and gets the answer."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(413, ("Content-Length", "4"), ("Connection", "close")) + b"huge")
        exchange.finish()

    running, _ = start(answer)
    got = curl(
        "http://orders.test/",
        *("-H", "Expect: 100-continue", "--expect100-timeout", "15"),
        proxy=running.listener,
        body=b"b" * 200_000,
    )
    assert (got.status, got.body) == (413, b"huge")
    assert got.seconds < 5


def test_interim_answers_are_passed_on_to_those_who_know_them(start: Start) -> None:
    """103 reaches a caller of HTTP/1.1, and is left out for one of HTTP/1.0."""
    running, _ = start(after_interim(103, ("Link", "</style.css>"), then=fixed(b"fine")))
    with Talker(running.listener) as talker:
        talker.send(request())
        got = talker.read_answer()
        assert (got.interim, got.body) == ([103], b"fine")
        talker.send(request(version="1.0"))
        got = talker.read_answer()
        assert (got.interim, got.body) == ([], b"fine")


def test_early_answer_reaches_a_caller_that_is_still_sending(start: Start) -> None:
    """An answer that does not wait for the body: the caller can read it, and then the connection ends."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(403, ("Content-Length", "2")) + b"no")
        exchange.ended = True

    running, upstream = start(answer)
    with Talker(running.listener) as talker:
        talker.send(request("/", "Content-Length: 100000000", method="POST") + b"x" * 100_000)
        got = talker.read_answer()
        assert (got.status, got.body) == (403, b"no")
        assert got.header("Connection") == "close"
        assert talker.closed()
    assert len(upstream.requests) == 1
    running.wait_for(
        lambda: running.metric("sidecert_upstream_connections", route="orders", state="active") == 0
    )
    assert running.metric("sidecert_upstream_connections", route="orders", state="idle") == 0


# -- ends --------------------------------------------------------------------------------------------------


def test_half_closed_caller_gets_its_answer(start: Start) -> None:
    """A caller that shuts down its sending side after the request, as old tools do."""
    gate = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert gate.wait(10)
        fixed(b"fine")(exchange)

    running, upstream = start(answer)
    with Talker(running.listener) as talker:
        talker.send(request() + request("/second"))
        talker.shutdown_write()
        upstream.wait_for(lambda: bool(upstream.requests))
        gate.set()
        assert talker.read_answer().body == b"fine"
        assert talker.read_answer().body == b"fine"
        assert talker.closed()


def test_body_that_the_caller_cuts_short_is_never_a_whole_one(start: Start) -> None:
    """A caller that leaves in the middle of its body: the upstream sees it cut."""
    ends: list[str] = []
    running, upstream = start(whole_or_cut(ends))
    for fields, body in (
        (["Content-Length: 10"], b"abc"),
        (["Transfer-Encoding: chunked"], b"3\r\nabc\r\n"),
        (["Transfer-Encoding: chunked"], b"3\r\nabc\r\n0\r\n"),
    ):
        for leave in (Talker.shutdown_write, Talker.reset):
            before = len(upstream.requests)
            with Talker(running.listener) as talker:
                talker.send(request("/", *fields, method="POST") + body)
                upstream.wait_for(lambda before=before: len(upstream.requests) > before)  # type: ignore[misc]
                leave(talker)
                upstream.wait_for(lambda before=before: len(ends) > before)  # type: ignore[misc]
    assert ends == ["cut"] * 6
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def chunks_without_end(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(head(200, ("Transfer-Encoding", "chunked")) + b"4\r\nhalf\r\n")
    exchange.finish()


def close_without_notify(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(head(200) + b"half")
    exchange.cut()


def chunk_that_is_none(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(head(200, ("Transfer-Encoding", "chunked")) + b"4\r\nhalf\r\nwhat\r\n")


def length_and_notify(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.send(head(200, ("Content-Length", "1000")) + b"half")
    exchange.finish()


CUT = {
    "length-fin": cut_short(),
    "length-rst": cut_short(reset=True),
    "length-notify": length_and_notify,
    "chunked-notify": chunks_without_end,
    "chunked-junk": chunk_that_is_none,
    "until-close-fin": close_without_notify,
}


def test_answer_that_was_cut_short_never_ends_cleanly(start: Start) -> None:
    """The caller sees a body shorter than promised, or a reset: never an end that looks right."""
    running, upstream = start(echo)
    for name, answer in CUT.items():
        upstream.answer = answer
        for version in ("1.0", "1.1"):
            with Talker(running.listener) as talker:
                talker.send(request(version=version))
                try:
                    got = talker.read_answer()
                except (EOFError, ConnectionResetError):
                    pass
                else:
                    assert got.status == 502, f"{name} looks whole: {got}"
        got = curl("http://orders.test/", proxy=running.listener)
        assert got.exit_code in (18, 52, 56) or got.status == 502, f"{name} looks whole to curl"
    assert running.metric("sidecert_upstream_connections", route="orders", state="idle") == 0
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


@pytest.mark.parametrize("garbage", [b"garbage", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"])
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_behind_an_answer_never_reach_the_next_call(
    garbage: bytes, at_once: bool, start: Start
) -> None:
    """What an upstream sends unasked, with the answer or later, ends that connection; nobody sees it."""
    said = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        own = b"own" + str(exchange.seen.connection).encode()
        data = head(200, ("Content-Length", str(len(own)))) + own
        if at_once:
            exchange.send(data + garbage)
        else:
            exchange.send(data)
            exchange.send(garbage)
        said.set()

    running, upstream = start(answer)
    with Caller(running.listener) as caller:
        for number in range(1, 5):
            said.clear()
            assert caller.get("http://orders.test/").body == f"own{number}".encode()
            assert said.wait(10)
            running.wait_for(
                lambda: running.metric("sidecert_upstream_connections", route="orders", state="idle") == 0
            )
    assert upstream.connections == 4


JUNK = {
    "ssh": b"SSH-2.0-x\r\n\r\n",
    "lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length-and-chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
    "unasked-101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "http2": b"HTTP/2 200\r\n\r\n",
    "interims": b"HTTP/1.1 103 Early\r\n\r\n" * 40,
    "endless": b"X" * 300_000,
}


def test_answer_that_is_none_is_a_bad_answer(start: Start) -> None:
    """Malformed and ambiguous answers: 502 `upstream_bad_answer`, and that connection is not used again."""
    running, upstream = start(echo)
    for number, (name, junk) in enumerate(JUNK.items(), 1):
        upstream.answer = raw(junk)
        with Talker(running.listener) as talker:
            talker.send(request())
            answer = talker.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_bad_answer"), name
        assert running.metric("sidecert_upstream_connections", route="orders", state="idle") == 0
        assert upstream.connections == number
    upstream.answer = fixed(b"fine")
    assert running.get("http://orders.test/").body == b"fine"


# -- tunnels -----------------------------------------------------------------------------------------------


def switching(exchange: Exchange) -> None:
    """101, then everything back as it came, until the caller ends; then a farewell and a clean end."""
    exchange.send(head(101, ("Upgrade", "websocket"), ("Connection", "Upgrade")) + b"hello ")
    while data := exchange.wire.recv(65536):
        exchange.send(data)
        if data.endswith(b"bye"):
            exchange.finish()
            return
    exchange.ended = True


UPGRADE = request("/chat", "Upgrade: websocket", "Connection: Upgrade")


def test_upgraded_connection_is_a_tunnel_both_ways(start: Start) -> None:
    """After a 101 all bytes go through as they are, those that came with the 101 too."""
    running, upstream = start(switching)
    with Talker(running.listener) as talker:
        talker.send(UPGRADE)
        answer = talker.read_answer()
        assert answer.status == 101
        assert (answer.header("Upgrade"), answer.header("Connection")) == ("websocket", "Upgrade")
        assert talker.read_exactly(6) == b"hello "
        for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 300_000):
            talker.send(data)
            assert talker.read_exactly(len(data)) == data
        talker.send(b"bye")
        assert talker.read_until_close() == b"bye"
    assert len(upstream.requests) == 1
    assert running.metric("sidecert_upstream_connections", route="orders", state="active") == 0
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_last_bytes_of_a_caller_that_ends_its_tunnel_arrive(start: Start) -> None:
    """What was sent just before the caller closed reaches the upstream, followed by a clean end."""
    got: list[bytes] = []
    gate, done = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.send(head(101, ("Upgrade", "websocket"), ("Connection", "Upgrade")))
        assert gate.wait(10)
        try:
            while data := exchange.wire.recv(65536):
                got.append(data)
        finally:
            exchange.ended = True
            done.set()

    running, _ = start(answer)
    with Talker(running.listener) as talker:
        talker.send(UPGRADE)
        assert talker.read_answer().status == 101
        talker.sock.settimeout(0.3)
        sent = 0
        try:
            while True:  # until every buffer on the way is full
                sent += talker.sock.send(b"l" * 65536)
        except TimeoutError:
            pass
    gate.set()
    assert done.wait(10)
    assert sum(map(len, got)) == sent


def test_upgrade_that_is_declined_is_an_ordinary_call(start: Start) -> None:
    """An upstream that answers 200 instead: the connection goes on as before."""
    running, upstream = start(fixed(b"no"))
    with Talker(running.listener) as talker:
        talker.send(UPGRADE)
        assert talker.read_answer().body == b"no"
        talker.send(request())
        assert talker.read_answer().body == b"no"
    assert upstream.connections == 1
