"""The bench's own caller: what it counts, and that a stall is charged to all calls that had to wait."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest

from bench.load import BadLoad, run
from bench.scenarios import Load
from support.peers import raw_peer

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None,
    reason="a C compiler is not installed (Debian: apt-get install build-essential)",
)
FIXED = Load("fixed-1", "one connection at a fixed rate", 1, fixed=True)
STALL = 0.75


def test_a_stall_is_charged_to_every_call_that_was_due_meanwhile(tmp_path: Path) -> None:
    """One answer of a hundred comes late, by most of the time: so most of the calls were late."""
    with raw_peer("stalls once", lambda sock: answer(sock, stall_at=2)) as peer:
        seen = run(tmp_path, peer.port, FIXED, 1, rate=100.0)
    assert seen.requests == 100
    assert seen.p99 > 0.8 * STALL
    assert seen.p50 > 0.1  # were the clock started when a call is sent, it would be a fraction of that


def test_an_answer_that_is_no_2xx_spoils_the_run(tmp_path: Path) -> None:
    """A proxy that fails fast gets no figures."""
    with (
        raw_peer("fails", lambda sock: answer(sock, status="502 Bad Gateway")) as peer,
        pytest.raises(BadLoad, match="10 answers were not 2xx"),
    ):
        run(tmp_path, peer.port, Load("ten", "ten calls", 2, per_request=True, calls=10), 1)


def test_an_answer_that_is_cut_short_spoils_the_run(tmp_path: Path) -> None:
    """Bytes that are missing at the end of an answer are no answer."""
    with (
        raw_peer("cuts", lambda sock: answer(sock, length=5, body=b"ab")) as peer,
        pytest.raises(BadLoad, match="3 calls had none"),
    ):
        run(tmp_path, peer.port, Load("three", "three calls", 1, per_request=True, calls=3), 1)


def answer(
    sock: socket.socket,
    *,
    status: str = "200 OK",
    length: int = 2,
    body: bytes = b"ok",
    stall_at: int | None = None,
) -> None:
    """Answers the calls on a connection; the one of that number late. After a short body it closes."""
    number = 0
    while sock.recv(65536):
        number += 1
        if number == stall_at:
            time.sleep(STALL)
        sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body)
        if len(body) < length:
            return
