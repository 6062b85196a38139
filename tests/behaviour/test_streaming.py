"""Bodies of any size go through both ways, byte for byte, in flat memory, at the slower side's pace."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator

import pytest

from support.certs import Pki
from support.clients import Talker
from support.peers import Peers
from support.recorder import AnswerFunction, Exchange, head
from support.sidecar import Sidecar, StartSidecar, route

MIB = 1 << 20
TOTAL = 100 * MIB
GROWTH = 20 * MIB
# Not a power of two, so that no buffer's edge ever falls on the same place of the pattern.
PIECE = bytes(range(256)) * 255 + b"!"


def pattern(total: int) -> Iterator[bytes]:
    left = total
    while left:
        piece = PIECE[:left]
        left -= len(piece)
        yield piece


def digest(total: int) -> str:
    found = hashlib.sha256()
    for piece in pattern(total):
        found.update(piece)
    return found.hexdigest()


def with_length(exchange: Exchange) -> None:
    exchange.send(head(200, ("Content-Length", str(TOTAL))))
    for piece in pattern(TOTAL):
        exchange.send(piece)


def with_chunks(exchange: Exchange) -> None:
    exchange.send(head(200, ("Transfer-Encoding", "chunked")))
    for piece in pattern(TOTAL):
        exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    exchange.send(b"0\r\n\r\n")


def until_close(exchange: Exchange) -> None:
    exchange.send(head(200))
    for piece in pattern(TOTAL):
        exchange.send(piece)
    exchange.finish()


def count_and_hash(exchange: Exchange) -> None:
    seen = exchange.read_body()
    body = f"{seen.length} {seen.sha256}".encode()
    exchange.send(head(200, ("Content-Length", str(len(body)))) + body)


def warmed_up(running: Sidecar) -> int:
    """The resident memory after a first, small call."""
    assert running.call("POST", "http://small.test/", b"x" * 100_000).status == 200
    return running.resident()


def start(sidecar: StartSidecar, peers: Peers, pki: Pki, answer: AnswerFunction) -> Sidecar:
    upstream = peers.recorder(answer=answer)
    return sidecar(
        route("big", upstream, trust=pki.trust),
        route("small", peers.recorder(), trust=pki.trust),
    )


def sent_until_stuck(talker: Talker, data: bytes) -> int:
    """Sends `data` again and again until the other side takes no more, at most TOTAL bytes."""
    count = 0
    try:
        while count < TOTAL:
            count += talker.sock.send(data)
    except TimeoutError:
        pass
    return count


def read_body(talker: Talker, version: str) -> tuple[int, str]:
    """Length and hash of the rest of an answer, by whatever framing its head names."""
    answer = talker.read_head()
    assert answer.status == 200
    found, count = hashlib.sha256(), 0

    def take(size: int) -> None:
        nonlocal count
        while size:
            if not talker.buffer:
                talker.buffer = talker.sock.recv(min(MIB, size))
                assert talker.buffer, "cut short"
            piece = talker.read_exactly(min(size, len(talker.buffer)))
            found.update(piece)
            count += len(piece)
            size -= len(piece)

    if (length := answer.header("Content-Length")) is not None:
        take(int(length))
    elif answer.header("Transfer-Encoding") == "chunked":
        assert version == "1.1"
        while size := int(talker.read_until(b"\r\n"), 16):
            take(size)
            assert talker.read_exactly(2) == b"\r\n"
        assert talker.read_exactly(2) == b"\r\n"
    else:
        while piece := talker.buffer or talker.sock.recv(MIB):
            talker.buffer = b""
            found.update(piece)
            count += len(piece)
    return count, found.hexdigest()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("answer", [with_length, with_chunks, until_close])
def test_big_answer_comes_whole_in_flat_memory(
    answer: AnswerFunction, version: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """100 MB with Content-Length, chunked and close-delimited, to callers of HTTP/1.0 and 1.1."""
    running = start(sidecar, peers, pki, answer)
    before = warmed_up(running)
    with Talker(running.listener) as talker:
        talker.send(f"GET / HTTP/{version}\r\nHost: big.test\r\n\r\n".encode())
        assert read_body(talker, version) == (TOTAL, digest(TOTAL))
    assert running.resident(peak=True) - before < GROWTH


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_big_request_arrives_whole_in_flat_memory(
    framing: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """100 MB sent with Content-Length and chunked."""
    running = start(sidecar, peers, pki, count_and_hash)
    before = warmed_up(running)
    with Talker(running.listener) as talker:
        field = f"Content-Length: {TOTAL}" if framing == "length" else "Transfer-Encoding: chunked"
        talker.send(f"POST / HTTP/1.1\r\nHost: big.test\r\n{field}\r\n\r\n".encode())
        for piece in pattern(TOTAL):
            talker.send(piece if framing == "length" else b"%x\r\n%b\r\n" % (len(piece), piece))
        if framing == "chunks":
            talker.send(b"0\r\n\r\n")
        assert talker.read_answer().text == f"{TOTAL} {digest(TOTAL)}"
    assert running.resident(peak=True) - before < GROWTH


def test_caller_that_does_not_read_makes_the_upstream_wait(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """A caller reads nothing: the upstream gets stuck in sending, not we in storing; then all comes."""
    sent = [0]
    stuck = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.send(head(200, ("Content-Length", str(TOTAL))))
        exchange.wire.settimeout(1)
        for piece in pattern(TOTAL):
            view = memoryview(piece)
            while view:
                try:
                    view = view[exchange.wire.send(view) :]
                except TimeoutError:
                    stuck.set()
            sent[0] += len(piece)

    running = start(sidecar, peers, pki, answer)
    before = warmed_up(running)
    with Talker(running.listener) as talker:
        talker.send(b"GET / HTTP/1.1\r\nHost: big.test\r\n\r\n")
        assert stuck.wait(15)
        assert sent[0] < 30 * MIB  # what the kernels on the way hold
        assert running.resident(peak=True) - before < GROWTH
        assert read_body(talker, "1.1") == (TOTAL, digest(TOTAL))
    assert running.resident(peak=True) - before < GROWTH


def test_upstream_that_does_not_read_makes_the_caller_wait(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """An upstream reads nothing for a while: the caller gets stuck in sending; then all arrives."""
    gate = threading.Event()

    def answer(exchange: Exchange) -> None:
        assert gate.wait(30)
        count_and_hash(exchange)

    running = start(sidecar, peers, pki, answer)
    before = warmed_up(running)
    with Talker(running.listener) as talker:
        talker.send(f"POST / HTTP/1.1\r\nHost: big.test\r\nContent-Length: {TOTAL}\r\n\r\n".encode())
        talker.sock.settimeout(1)
        whole = b"".join(pattern(TOTAL))
        view = memoryview(whole)
        while view:
            try:
                view = view[talker.sock.send(view[:MIB]) :]
            except TimeoutError:
                break
        assert len(view) > 70 * MIB
        assert running.resident(peak=True) - before < GROWTH
        gate.set()
        talker.sock.settimeout(20)
        talker.send(view)
        assert talker.read_answer().text == f"{TOTAL} {digest(TOTAL)}"
    assert running.resident(peak=True) - before < GROWTH


def test_body_that_comes_while_the_upstream_is_connected_to_is_bounded(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """A caller sends at once what the upstream, which never shakes hands, could not have taken."""
    running = sidecar(
        route("slow", peers.silent(), trust=pki.trust, timeouts={"handshake": "1500ms"}),
        route("small", peers.recorder(), trust=pki.trust),
    )
    before = warmed_up(running)
    with Talker(running.listener) as talker:
        talker.send(f"POST / HTTP/1.1\r\nHost: slow.test\r\nContent-Length: {TOTAL}\r\n\r\n".encode())
        talker.sock.settimeout(0.5)
        assert sent_until_stuck(talker, b"x" * MIB) < TOTAL
        assert running.resident(peak=True) - before < GROWTH
        talker.sock.settimeout(10)
        assert talker.read_answer().header("Sidecert-Outcome") == "handshake_timeout"


def test_caller_that_asks_on_without_reading_is_made_to_wait(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Pipelined requests without end from a caller that reads no answer: we stop reading them."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(200, ("Content-Length", str(MIB))) + b"x" * MIB)

    running = start(sidecar, peers, pki, answer)
    before = warmed_up(running)
    request = b"GET / HTTP/1.1\r\nHost: big.test\r\nX-Filler: " + b"f" * 4000 + b"\r\n\r\n"
    with Talker(running.listener) as talker:
        talker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        talker.sock.settimeout(0.7)
        assert sent_until_stuck(talker, request * 16) < 30 * MIB
        assert running.resident(peak=True) - before < GROWTH


def test_pieces_of_a_slow_body_are_not_held_back(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Each piece of an answer is passed on as it comes, not when more has gathered."""
    step = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        exchange.send(head(200, ("Transfer-Encoding", "chunked")))
        for letter in b"abc":
            assert step.acquire(timeout=10)
            exchange.send(b"1\r\n%c\r\n" % letter)
        exchange.send(b"0\r\n\r\n")

    running = start(sidecar, peers, pki, answer)
    with Talker(running.listener) as talker:
        talker.send(b"GET / HTTP/1.1\r\nHost: big.test\r\n\r\n")
        talker.read_head()
        for letter in b"abc":
            step.release()
            assert talker.read_until(b"\r\n") == b"1\r\n"
            assert talker.read_until(b"\r\n") == b"%c\r\n" % letter
        assert talker.read_until(b"\r\n\r\n") == b"0\r\n\r\n"


def test_pieces_of_a_slow_request_are_not_held_back(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Each piece of a request's body reaches the upstream before the next is sent."""
    arrived: list[bytes] = []
    came = threading.Semaphore(0)

    def answer(exchange: Exchange) -> None:
        for piece in exchange.body_pieces():
            arrived.append(piece)
            came.release()
        exchange.send(head(200, ("Content-Length", "0")))

    running = start(sidecar, peers, pki, answer)
    with Talker(running.listener) as talker:
        talker.send(b"POST / HTTP/1.1\r\nHost: big.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for letter in b"abc":
            talker.send(b"1\r\n%c\r\n" % letter)
            assert came.acquire(timeout=10)
        talker.send(b"0\r\n\r\n")
        assert talker.read_answer().status == 200
    assert arrived == [b"a", b"b", b"c"]
