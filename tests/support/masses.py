"""Very many callers at once, on one thread: plain sockets that are opened, sent to and watched together."""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import pytest

from support.clients import TIMEOUT, Address, connect

End = Literal["open", "fin", "rst"]
_KEPT = 4096  # bytes of what each is sent
_OWN = 200  # descriptors of the tests' process itself


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """Lets this process, and what it starts, open that many more files; skips where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OWN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"the system allows {hard} open files, and this needs {wanted} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(eq=False)
class One:
    """A caller of a `Mass`: how much it was sent, the beginning of that, and how its connection ended."""

    sock: socket.socket
    got: bytes = field(default=b"", repr=False)
    size: int = 0
    end: End = "open"

    @property
    def status(self) -> int:
        """Of the first answer; 0 where none came."""
        return int(self.got[9:12]) if self.got.startswith(b"HTTP/1.1 ") else 0


class Mass:
    """That many connections to `address`, closed at the end of a with block.

    What they are sent is read in `watch` only.
    """

    def __init__(self, address: Address, count: int, receive_buffer: int | None = None) -> None:
        self._poll = select.epoll()
        self._by_number: dict[int, One] = {}
        self.all: list[One] = []
        with ExitStack() as stack:
            stack.callback(self.close)
            for _ in range(count):
                self._add(address, receive_buffer)
            stack.pop_all()

    def _add(self, address: Address, receive_buffer: int | None) -> None:
        sock = connect(address)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        one = One(sock)
        self.all.append(one)
        self._by_number[sock.fileno()] = one
        self._poll.register(sock, select.EPOLLIN)

    def send(self, data: bytes, to: Iterable[One] | None = None) -> int:
        """Sends it to all, or to those; gives how many could be sent all of it."""
        return sum(self._send(one, data) for one in (self.all if to is None else to))

    def _send(self, one: One, data: bytes) -> bool:
        try:
            return one.sock.send(data) == len(data)
        except OSError:  # it has ended, or takes no more just now
            return False

    def watch(self, until: Callable[[], bool], timeout: float = TIMEOUT, why: str = "") -> None:
        """Reads what comes until the condition holds, which is looked at every 50 ms."""
        deadline = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < deadline, why or f"what was waited for did not come: {self.ends()}"
            for number, _ in self._poll.poll(0.05, 1024):
                self._read(self._by_number[number])

    def look(self) -> None:
        """Reads what has come by now."""
        while ready := self._poll.poll(0, 1024):
            for number, _ in ready:
                self._read(self._by_number[number])

    def _read(self, one: One) -> None:
        try:
            piece = one.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            one.end = "rst"
        else:
            one.size += len(piece)
            one.got += piece[: _KEPT - len(one.got)]
            if piece:
                return
            one.end = "fin"
        self._poll.unregister(one.sock)

    def ends(self) -> Counter[tuple[int, End]]:
        """How many there are of each first status (0 where nothing came) and end."""
        return Counter((one.status, one.end) for one in self.all)

    def still_open(self) -> int:
        return sum(one.end == "open" for one in self.all)

    def reset(self) -> None:
        """Ends all with a RST."""
        for one in self.all:
            one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        for one in self.all:
            one.sock.close()
        self._poll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
