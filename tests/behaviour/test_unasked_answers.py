"""What an upstream says unasked reaches no call, as soon as any byte of it has come."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from support.certs import Pki
from support.clients import Caller
from support.peers import Peer
from support.sidecar import StartSidecar, route

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
UNASKED = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked"
PATIENCE = 10.0


class Wire:
    """A TLS connection of which single records can be had, to be sent in parts."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._until(self._tls.do_handshake)
        sock.sendall(self._outgoing.read())

    def record(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def read_request(self) -> None:
        """Raises EOFError where the other side has ended the connection."""
        request = b""
        while b"\r\n\r\n" not in request:
            request += self._until(lambda: self._tls.read(65536))

    def _until(self, step: Callable[[], bytes | None]) -> bytes:
        while True:
            try:
                return step() or b""
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError from None
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                raise EOFError from None


@contextmanager
def talkative(pki: Pki, early: int, goes_on: threading.Event) -> Iterator[Peer]:
    """Answers each request, with `early` bytes of a record of a second answer; the rest after `goes_on`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.upstream.certificate, pki.upstream.key)
    context.load_verify_locations(pki.trust)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE)
            try:
                wire = Wire(context, sock)
                wire.read_request()
                answer, unasked = wire.record(ANSWER), wire.record(UNASKED)
                sock.sendall(answer + unasked[:early])
                goes_on.wait(PATIENCE)
                sock.sendall(unasked[early:])
                wire.read_request()
                sock.sendall(wire.record(ANSWER))
            except (OSError, EOFError):
                pass  # the sidecar has ended it, as it should

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield Peer("talkative", listening.getsockname()[1])
        goes_on.set()
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("early", [1, 3, 5, 10, 40])
def test_beginning_of_an_unasked_answer_ends_the_connection(
    sidecar: StartSidecar, pki: Pki, early: int
) -> None:
    """Also where it is less than a TLS record, of which nothing can be read yet."""
    goes_on = threading.Event()
    with talkative(pki, early, goes_on) as peer:
        running = sidecar(route("orders", peer, trust=pki.trust))
        for _ in range(2):
            with Caller(running.listener) as caller:
                assert caller.get("http://orders.test/").body == b"first"
        assert running.metric("sidecert_upstream_connection_reuses_total", route="orders") == 0
        goes_on.set()
        with Caller(running.listener) as caller:
            assert caller.get("http://orders.test/").body == b"first"
