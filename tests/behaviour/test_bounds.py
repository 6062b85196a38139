"""However much, however slowly and however often the other side sends: it costs no more than its bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.certs import Pki
from support.clients import Talker
from support.lengths import rounds
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, after_interim, fixed, head, raw
from support.sidecar import Sidecar, StartSidecar, route

MIB = 1 << 20
GET = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n"
POOLED = "sidecert_upstream_connections"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: orders.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

# What frames a body and is no part of it: what is fine, and what is too much by one.
EXTENSION = b"1;" + b"e" * 1023 + b"\r\nx\r\n"
OVERHEAD: dict[str, tuple[bytes, bytes]] = {
    "extensions": (EXTENSION * 16 + b"0\r\n\r\n", EXTENSION * 16 + b"0;a\r\n\r\n"),
    "trailer-bytes": (
        b"0\r\n" + (b"A: " + b"b" * 1019 + b"\r\n") * 16 + b"\r\n",
        b"0\r\n" + (b"A: " + b"b" * 1019 + b"\r\n") * 16 + b"A:\r\n\r\n",
    ),
    "trailer-lines": (b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"0\r\n" + b"A: b\r\n" * 201 + b"\r\n"),
    "size-digits": (b"0" * 14 + b"1\r\nx\r\n0\r\n\r\n", b"0" * 15 + b"1\r\nx\r\n0\r\n\r\n"),
}


def flood(sending: Talker, piece: bytes = b"x" * MIB, at_most: int = 200 * MIB) -> int:
    """Sends until the other side takes no more for half a second; how much it took."""
    sending.sock.settimeout(0.5)
    count = 0
    try:
        while count < at_most:
            count += sending.sock.send(piece)
    except TimeoutError:
        pass
    sending.sock.settimeout(10)
    return count


def test_overhead_of_a_request_body_is_bounded(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """All that is allowed goes through; one more is refused, and the upstream sees no whole request."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    whole: list[int] = []

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        whole.append(exchange.seen.connection)
        exchange.send(head(200, ("Content-Length", "0")))

    recorder.answer = answer
    for number, (what, (fine, much)) in enumerate(OVERHEAD.items(), start=1):
        with Talker(running.listener) as talker:
            talker.send(POST + fine)
            assert talker.read_answer().status == 200, what
            talker.send(POST + much)
            got = talker.read_answer()
            assert (got.status, got.header("Sidecert-Outcome")) == (400, "bad_request"), what
            assert len(whole) == number, what


def test_overhead_of_an_answer_body_is_bounded(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """All that is allowed goes through; one more is refused, or the caller's connection is cut."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    for what, (fine, much) in OVERHEAD.items():
        with Talker(running.listener) as talker:
            recorder.answer = raw(CHUNKED + fine)
            talker.send(GET)
            assert talker.read_answer().status == 200, what
            recorder.answer = raw(CHUNKED + much)
            talker.send(GET)
            try:
                assert talker.read_answer().header("Sidecert-Outcome") == "upstream_bad_answer", what
            except (EOFError, ConnectionResetError):
                pass  # it came in more than one piece
        running.wait_for(lambda: running.metric(POOLED, route="orders", state="idle") == 0)


def test_number_of_interim_answers_is_bounded(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """32 come through, more are no answer."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    for count, status in ((32, 200), (33, 502)):
        recorder.answer = fixed(b"fine")
        for _ in range(count):
            recorder.answer = after_interim(103, ("Link", "</a>"), then=recorder.answer)
        with Talker(running.listener) as talker:
            talker.send(GET)
            got = talker.read_answer()
            assert (got.status, got.interim) == (status, [103] * 32)


@pytest.mark.parametrize("piece", [b"HTTP/1.1 103 Early\r\n\r\n", b"x"], ids=["interims", "head"])
def test_answer_that_drips_without_end_is_given_up(
    piece: bytes, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """1xx answers, or a head's bytes, that come too fast for a pause: `response` holds for all of them."""
    stop = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        if piece == b"x":
            exchange.send(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            exchange.send(piece)
            if stop.wait(0.05):
                break
        exchange.ended = True

    running = sidecar(
        route("orders", peers.recorder(answer=answer), trust=pki.trust, timeouts={"response": "400ms"})
    )
    with Talker(running.listener) as talker:
        talker.send(GET)
        got = talker.read_answer()
        assert (got.status, got.header("Sidecert-Outcome")) == (504, "response_timeout")
        assert got.seconds < 5  # it would drip for ten
        stop.set()
        talker.shutdown_write()
        assert talker.closed()


def test_half_a_header_after_an_answer_has_its_limit_too(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """`header_timeout`, not the `keepalive` of a connection that is quiet; pipelined or on its own."""
    limits = {"header_timeout": "300ms", "keepalive": "30s"}
    running = sidecar(route("orders", recorder, trust=pki.trust), limits=limits)
    for pieces in ([GET, b"GET / HT"], [GET + b"GET / HTTP/1.1\r\nHost: "]):
        with Talker(running.listener) as talker:
            talker.send(pieces[0])
            assert talker.read_answer().status == 200
            for piece in pieces[1:]:
                talker.send(piece)
            got = talker.read_answer()
            assert (got.status, got.header("Connection")) == (400, "close")
            assert got.seconds < 10
    assert len(recorder.requests) == 2


def test_caller_that_goes_on_after_a_refusal_is_left_in_the_end(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """It gets its answer, some time to read it, and is then cut off although it never stops sending."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    with Talker(running.listener) as talker:
        talker.send(b"what is this\r\n\r\n")
        assert talker.read_answer().status == 400
        stop = threading.Event()
        ended = threading.Event()

        def drip() -> None:
            try:
                while not stop.wait(0.05):
                    talker.send(b"x")
            except OSError:
                ended.set()

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        came_to_an_end = ended.wait(8)
        stop.set()
        dripping.join(5)
    assert came_to_an_end
    running.wait_for(lambda: running.metric("sidecert_downstream_connections", listener="127.0.0.1:0") == 0)


# -- tunnels -----------------------------------------------------------------------------------------------


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """Set when the test ends, so that an upstream that waits for it does, too."""
    event = threading.Event()
    yield event
    event.set()


def tunnel_to(peers: Peers, sidecar: StartSidecar, pki: Pki, answer: object, **timeouts: str) -> Sidecar:
    return sidecar(route("orders", peers.recorder(answer=answer), trust=pki.trust, timeouts=timeouts))


SWITCH = head(101, ("Upgrade", "websocket"), ("Connection", "Upgrade"))


def test_tunnel_without_a_byte_is_cut(
    sidecar: StartSidecar, peers: Peers, pki: Pki, let_go: threading.Event
) -> None:
    """`stall` holds for a tunnel as for any body."""

    def answer(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        let_go.wait(20)
        exchange.ended = True

    running = tunnel_to(peers, sidecar, pki, answer, stall="300ms")
    with Talker(running.listener) as talker:
        talker.send(UPGRADE)
        assert talker.read_head().status == 101
        assert talker.closed()
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_tunnel_costs_no_more_than_its_bound(
    sidecar: StartSidecar, peers: Peers, pki: Pki, let_go: threading.Event
) -> None:
    """Neither a caller that reads nothing nor an upstream that reads nothing makes us store what is sent."""
    stuck = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        exchange.wire.settimeout(0.5)
        try:
            for _ in range(200):
                exchange.wire.sendall(b"x" * MIB)
        except TimeoutError:
            stuck.set()
        let_go.wait(20)
        exchange.ended = True

    running = tunnel_to(peers, sidecar, pki, answer)
    with Talker(running.listener) as talker:
        talker.send(UPGRADE)
        before = running.resident()
        assert stuck.wait(15)
        assert flood(talker) < 100 * MIB
        assert running.resident(peak=True) - before < 10 * MIB
        let_go.set()


# -- many at once ------------------------------------------------------------------------------------------

MANY = rounds(60, 200)


def test_many_half_headers_cost_no_more_than_they_may_be_long(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Each of 60 callers sends nearly 64 KiB of a header and stops."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    assert running.get("http://orders.test/").status == 200
    before = running.resident()
    with ExitStack() as stack:
        for _ in range(MANY):
            talker = stack.enter_context(Talker(running.listener))
            talker.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 65_000)
        running.wait_for(
            lambda: running.metric("sidecert_downstream_connections", listener="127.0.0.1:0") == MANY
        )
        assert running.resident(peak=True) - before < MANY * 64 * 1024 + 8 * MIB
        assert running.get("http://orders.test/").status == 200


@pytest.mark.long_form(seconds=300)
def test_many_callers_that_read_nothing_cost_their_bound(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """60 answers of 20 MB, in the long form 200, of which none is read: less than 600 KiB each."""
    stuck = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.wire.settimeout(1)
        try:
            exchange.send(head(200, ("Content-Length", str(20 * MIB))))
            for _ in range(20):
                exchange.send(b"x" * MIB)
        except OSError:
            stuck.release()
        exchange.ended = True

    running = sidecar(
        route("orders", peers.recorder(answer=answer), trust=pki.trust),
        route("small", peers.recorder(), trust=pki.trust),
    )
    assert running.get("http://small.test/").status == 200
    before = running.resident()
    with ExitStack() as stack:
        for _ in range(MANY):
            talker = stack.enter_context(Talker(running.listener))
            talker.send(GET)
        for _ in range(MANY):
            assert stuck.acquire(timeout=20)
        check_cost(running, before, 600, peak=True)
        answer = running.get("http://small.test/")
        assert (answer.status, answer.seconds < 2) == (200, True)


def check_cost(running: Sidecar, before: int, most: int, *, peak: bool = False) -> None:
    """Each of them has cost at most so many KiB."""
    each = (running.resident(peak=peak) - before) / MANY / 1024
    print(f"{MANY} of them: {each:.0f} KiB each")
    assert each < most


def upload_all(stack: ExitStack, running: Sidecar) -> None:
    """Begins that many bodies of 20 MB and goes on until the sidecar takes no more of any."""
    talkers = [stack.enter_context(Talker(running.listener)) for _ in range(MANY)]
    for talker in talkers:
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 20000000\r\n\r\n")
        talker.sock.setblocking(False)
    piece = b"x" * 65536
    still = 0
    while still < 3:  # rounds in which nobody took anything
        moved = 0
        for talker in talkers:
            try:
                moved += talker.sock.send(piece)
            except BlockingIOError:
                pass
        still = 0 if moved else still + 1
        assert running.get("http://small.test/").status == 200


@pytest.mark.long_form(seconds=300)
def test_many_uploads_that_nobody_reads_cost_their_bound(
    sidecar: StartSidecar, peers: Peers, pki: Pki, let_go: threading.Event
) -> None:
    """60 bodies of 20 MB, in the long form 200, to an upstream that reads none of them."""

    def answer(exchange: Exchange) -> None:
        let_go.wait(30)
        exchange.ended = True

    running = sidecar(
        route("orders", peers.recorder(answer=answer), trust=pki.trust),
        route("small", peers.recorder(), trust=pki.trust),
    )
    assert running.get("http://small.test/").status == 200
    before = running.resident()
    with ExitStack() as stack:
        upload_all(stack, running)
        check_cost(running, before, 1024, peak=True)


@pytest.mark.long_form(seconds=300)
def test_many_uploads_that_wait_for_a_connection_cost_their_bound(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """60 bodies of 20 MB, in the long form 200, to an upstream that cannot be reached: 64 KiB of each, and
    what came with that."""
    running = sidecar(
        route("orders", peers.black_hole(), trust=pki.trust, timeouts={"connect": "60s"}),
        route("small", peers.recorder(), trust=pki.trust),
    )
    assert running.get("http://small.test/").status == 200
    before = running.resident()
    with ExitStack() as stack:
        upload_all(stack, running)
        check_cost(running, before, 256)
