"""An upstream that does to each connection what it was told beforehand, at the point of the handshake it was
told: closes, resets, falls silent, sends an alert or any bytes; or serves it.

One event loop in a thread, so that thousands of connections cost little. Each fate has a port of its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.certs import Files
from support.peers import Peer
from support.recorder import VERSIONS, TlsVersion

Point = Literal["accept", "hello", "server hello", "finished", "request"]
Deed = Literal["close", "reset", "silence", "goodbye", "answer"]

PATIENCE = 60.0
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine"


def alert(number: int, *, warning: bool = False) -> bytes:
    """A TLS alert, fatal or a warning, unencrypted: as it may come before the handshake's keys are made."""
    return bytes((21, 3, 3, 0, 2, 1 if warning else 2, number))


GOODBYE = alert(0, warning=True)
"""A close_notify."""


@dataclass(frozen=True)
class Fate:
    """What happens to a connection. Bytes are sent, then it is closed; goodbye is an encrypted close_notify.

    `at` is the point: accepted, their ClientHello read, our ServerHello sent, their Finished read (and
    nothing said about it), their request read. `asks`: whether a certificate is demanded.
    """

    does: Deed | bytes = "answer"
    at: Point = "request"
    tls: TlsVersion | None = None
    asks: bool = True
    tickets: bool | Literal["with the answer"] = True
    slow: float = 0.0
    """Seconds that it takes to refuse a certificate, as one that asks somebody else does."""


class FatePeer(Peer):
    """A listener of one fate. `connections` counts them, `requests` those of which a byte was read."""

    connections = 0
    requests = 0


class Fates:
    """Made by `fates`. `listen` opens a port for a fate."""

    def __init__(self, files: Files, trust: Path) -> None:
        self._files, self._trust = files, trust
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: list[socket.socket] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def listen(self, fate: Fate) -> FatePeer:
        """A new port where that happens to each connection."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listening.setblocking(False)
        self._listening.append(listening)
        peer = FatePeer(str(fate), listening.getsockname()[1])
        context = self._context(fate)
        asyncio.run_coroutine_threadsafe(self._start(listening, fate, context, peer), self._loop).result(10)
        return peer

    def stop(self) -> None:
        async def end() -> None:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        for listening in self._listening:
            listening.close()

    def _context(self, fate: Fate) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key)
        if fate.asks:
            context.load_verify_locations(self._trust)
            context.verify_mode = ssl.CERT_REQUIRED
        if fate.tls is not None:
            context.minimum_version = context.maximum_version = VERSIONS[fate.tls]
        if not fate.tickets:
            context.num_tickets = 0
        return context

    async def _start(
        self, listening: socket.socket, fate: Fate, context: ssl.SSLContext, peer: FatePeer
    ) -> None:
        self._keep(self._accept(listening, fate, context, peer))

    def _keep(self, work: object) -> None:
        task = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(
        self, listening: socket.socket, fate: Fate, context: ssl.SSLContext, peer: FatePeer
    ) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(listening)
            peer.connections += 1
            self._keep(self._serve(_Connection(sock, self._loop), fate, context, peer))

    async def _serve(
        self, connection: _Connection, fate: Fate, context: ssl.SSLContext, peer: FatePeer
    ) -> None:
        with connection.sock, suppress(OSError, EOFError):
            async with asyncio.timeout(PATIENCE):
                if fate.at == "accept":
                    await connection.do(fate.does)
                    return
                if await connection.shake_hands(context, fate):
                    await connection.serve(fate, peer)


class _Connection:
    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._loop = loop
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject

    async def do(self, deed: Deed | bytes) -> None:
        """Anything but serving it."""
        if deed == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if isinstance(deed, bytes):
            await self._loop.sock_sendall(self.sock, deed)
        if deed != "silence":
            self.sock.shutdown(socket.SHUT_WR)
        # What came must have been read, or closing would be a reset.
        while await self._loop.sock_recv(self.sock, 65536):
            pass

    async def shake_hands(self, context: ssl.SSLContext, fate: Fate) -> bool:
        """False where the connection has met its fate, or the handshake failed by itself."""
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            self._incoming.write(await self._receive())
            if fate.at == "hello":
                await self.do(fate.does)
                return False
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                await asyncio.sleep(fate.slow)
                await self._flush()
                await self.do("close")
                return False
            if fate.at == "server hello":
                flight = self._outgoing.read()
                await self._loop.sock_sendall(self.sock, flight[: 5 + int.from_bytes(flight[3:5])])
                await self.do(fate.does)
                return False
            await self._flush()
        if fate.tickets == "with the answer":
            return True
        if fate.at == "finished":
            if fate.does == "goodbye":
                self._say_goodbye()
                await self._flush()
            await self.do("close" if fate.does == "goodbye" else fate.does)
            return False
        await self._flush()
        return True

    async def serve(self, fate: Fate, peer: FatePeer) -> None:
        """Reads one request and does what is to be done about it."""
        head = await self._read()
        peer.requests += 1
        while b"\r\n\r\n" not in head:
            head += await self._read()
        head, _, body = head.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = (int(found[1]) if found else 0) - len(body)
        while left > 0:
            left -= len(await self._read())
        if fate.does != "answer":
            await self.do(fate.does)
            return
        self._tls.write(ANSWER)
        self._say_goodbye()
        await self._flush()
        await self.do("close")

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()

    async def _read(self) -> bytes:
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._incoming.write(await self._receive())

    async def _receive(self) -> bytes:
        data = await self._loop.sock_recv(self.sock, 65536)
        if not data:
            raise EOFError
        return data

    async def _flush(self) -> None:
        await self._loop.sock_sendall(self.sock, self._outgoing.read())


@contextmanager
def fates(files: Files, trust: Path) -> Iterator[Fates]:
    """A `Fates` for the length of a with block."""
    running = Fates(files, trust)
    try:
        yield running
    finally:
        running.stop()
