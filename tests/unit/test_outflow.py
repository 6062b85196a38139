"""What was written to a connection: whether it still leaves."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import sidecert.outflow
from sidecert.outflow import Outflow


class FullTransport:
    """What there is to know of a transport whose socket and buffer are full."""

    def __init__(self, wire: socket.socket, buffered: int) -> None:
        self.wire = wire
        self.buffered = buffered

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str) -> Any:
        return self.wire if name == "socket" else None


@contextmanager
def connected(kind: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    if kind == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def fill(wire: socket.socket) -> None:
    """Writes until the kernel takes no more, and its peer's takes no more either."""
    while True:
        try:
            while True:
                wire.send(b"x" * 65536)
        except BlockingIOError:
            if not select.select([], [wire], [], 0.2)[1]:
                return


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that passes for an `Outflow`."""
    clock = Clock()
    monkeypatch.setattr(sidecert.outflow, "monotonic", clock)
    return clock


@pytest.mark.parametrize(("kind", "step"), [("tcp", 110_000), ("unix", 45_000)])
def test_peer_that_reads_a_part_is_waited_for_and_one_that_stops_is_not(
    kind: str, step: int, clock: Clock
) -> None:
    """Its kernel's word is enough, long before the socket can be written to again."""
    with connected(kind) as (ours, theirs):
        fill(ours)
        outflow = Outflow(FullTransport(ours, 1000), 60)  # type: ignore[arg-type]
        assert 0 < outflow.patience() <= 1
        for _ in range(2):
            clock.now += 59.5
            before = outflow.left
            theirs.recv(step, socket.MSG_WAITALL)
            for _ in range(100):  # until the peer's kernel has said so
                assert outflow.patience() > 0
                if outflow.left != before:
                    break
                select.select([], [], [], 0.02)
            assert outflow.left < before
            assert not select.select([], [ours], [], 0)[1]
        clock.now += 59.5
        assert 0 < outflow.patience() <= 0.5
        clock.now += 1
        assert outflow.patience() == 0


def test_transport_that_empties_is_waited_for(clock: Clock) -> None:
    """Also where the kernel does not tell what it holds; and nothing is waited for once all has left."""
    transport = FullTransport(None, 1000)  # type: ignore[arg-type]
    outflow = Outflow(transport, 2)  # type: ignore[arg-type]
    clock.now += 3
    transport.buffered = 500
    assert outflow.patience() == 0.5
    clock.now += 1
    assert outflow.patience() == 0.5
    clock.now += 1
    assert outflow.patience() == 0
    transport.buffered = 0
    assert outflow.patience() == 0
