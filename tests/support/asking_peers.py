"""Upstreams that ask for a certificate on an open connection, at a moment that a test chooses."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from support.certs import Pki
from support.peers import Peer, raw_peer
from support.recorder import TlsVersion

_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine\n"


@dataclass
class Asking:
    """`requests` are as they came, head and body; `subjects` whose certificate was there at the answer."""

    peer: Peer
    requests: list[bytes] = field(default_factory=list)
    subjects: list[str | None] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    """Set once it has asked; it reads on when `go` is set."""
    go: threading.Event = field(default_factory=threading.Event)


@contextmanager
def asks_in_the_body(pki: Pki, tls: TlsVersion, after: int) -> Iterator[Asking]:
    """Asks when `after` bytes of a request have come, and reads the rest of it only when it may.

    By renegotiation under TLS 1.2, which pyOpenSSL can and Python's ssl cannot.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[tls])
    context.set_max_proto_version(_VERSIONS[tls])
    context.use_certificate_chain_file(str(pki.upstream.certificate))
    context.use_privatekey_file(str(pki.upstream.key))
    context.load_verify_locations(str(pki.trust))
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)

    def ask(wire: SSL.Connection) -> None:
        lib.SSL_set_verify(wire._ssl, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, ffi.NULL)
        if tls == "1.3":
            assert lib.SSL_verify_client_post_handshake(wire._ssl) == 1
        else:
            assert wire.renegotiate()
        wire.do_handshake()
        asking.asked.set()
        assert asking.go.wait(20)

    def serve(sock: socket.socket) -> None:
        sock.settimeout(None)
        wire = SSL.Connection(context, sock)
        wire.set_accept_state()
        try:
            wire.do_handshake()
            while True:
                _serve_one(wire, asking, after, ask)
        except SSL.Error:
            return

    with raw_peer("asks in the body", serve) as peer:
        asking = Asking(peer)
        try:
            yield asking
        finally:
            asking.go.set()


def _serve_one(
    wire: SSL.Connection, asking: Asking, after: int, ask: Callable[[SSL.Connection], None]
) -> None:
    came, to_ask = b"", True
    while True:
        came += wire.recv(16384)
        if to_ask and len(came) >= after:
            to_ask = False
            ask(wire)
        head, end, body = came.partition(b"\r\n\r\n")
        if not end:
            continue
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) >= length:
            break
    if not to_ask:
        _read_certificate(wire)
    asking.requests.append(came)
    certificate = wire.get_peer_certificate()
    asking.subjects.append(None if certificate is None else certificate.get_subject().CN)
    wire.sendall(_ANSWER)


def _read_certificate(wire: SSL.Connection) -> None:
    """As Apache does it: to peek at no bytes takes the handshake to its end, where that has not come yet."""
    wire.setblocking(False)  # a peek that blocks goes on to wait for data behind the handshake
    while wire.get_peer_certificate() is None:
        done = lib.SSL_peek(wire._ssl, ffi.new("char[1]"), 0)
        if wire.get_peer_certificate() is None:
            try:
                wire._raise_ssl_error(wire._ssl, done)
            except SSL.WantReadError:
                select.select([wire], [], [], 20)
    wire.setblocking(True)
