"""Upstreams that mean harm: a TLS server that says anything, at any point, for as long as it is listened to.

Each act is a function of a `Wire`, one accepted connection. A handshake that an act goes through is real
(`support.known_keys`), and ends with the act's own records, in the clear or encrypted with the right keys.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from support.certs import Pki
from support.known_keys import (
    ALERT,
    CERTIFICATE,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    NEW_TICKET,
    SERVER_HELLO,
    KnownKeys,
    Seal12,
    Seal13,
    alert,
    message,
    record,
    server_context,
)
from support.peers import Peer, raw_peer
from support.recorder import TlsVersion

Stage = Literal["hello", "server hello", "flight", "finished"]
STAGES: tuple[Stage, ...] = ("hello", "server hello", "flight", "finished")
"""Where an act begins: their ClientHello is read; our ServerHello is sent; all of our first flight is sent;
their Finished is read, and nothing has been said about it."""
End = Literal["close", "reset", "silence"]
ENDS: tuple[End, ...] = ("close", "reset", "silence")

FLOOD_SECONDS = 8.0
BATCH = 64 * 1024
MEGABYTE = 1 << 20
TICKET = message(
    NEW_TICKET, struct.pack(">IIB", 7200, 1, 1) + b"\1" + struct.pack(">H", 32) + bytes(32) + b"\0\0"
)
RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random that makes a HelloRetryRequest of a ServerHello (RFC 8446 section 4.1.3)."""


class Wire:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, tls: TlsVersion, context: SSL.Context) -> None:
        self.sock = sock
        self.tls = tls
        self.keys = KnownKeys(context)
        self.hello = b""

    def reach(self, stage: Stage) -> None:
        """Shake hands as far as `stage`."""
        self.hello = self.receive()
        if stage == "hello":
            return
        flight = self.keys.take(self.hello)
        if stage == "server hello":
            self.send(flight[0])
            return
        self.send(*flight)
        if stage == "finished":
            last = self.await_finished()
            if self.tls == "1.2":
                self.send(*last)  # under TLS 1.3 it is tickets, which would be the verdict

    def await_finished(self) -> list[bytes]:
        """Read until their Finished has come; gives back what there is to say to it."""
        last: list[bytes] = []
        while not self.keys.done:
            last = self.keys.take(self.receive())
        return last

    def receive(self) -> bytes:
        """What comes next. Raises ConnectionError at the end."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("they have closed")
        return data

    def send(self, *pieces: bytes) -> None:
        self.sock.sendall(b"".join(pieces))

    def seal(self, stage: Stage) -> Seal12 | Seal13:
        """What encrypts at this stage as we would; under TLS 1.2 there is nothing before the end."""
        if self.tls == "1.2":
            return self.keys.seal12()
        if stage == "server hello":
            return self.keys.seal13(handshake=True)
        return self.keys.seal13()

    def flood(self, pieces: Iterable[bytes]) -> None:
        """Send one after the other until nobody listens any more."""
        end = time.monotonic() + FLOOD_SECONDS
        batch = bytearray()
        for piece in pieces:
            batch += piece
            if len(batch) >= BATCH:
                self.sock.sendall(batch)
                batch.clear()
                if time.monotonic() > end:
                    return

    def drain(self) -> None:
        """Read until they close, so that closing is no reset."""
        while self.sock.recv(65536):
            pass

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.drain()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Act = Callable[[Wire], None]


def forever(piece: bytes) -> Iterator[bytes]:
    whole = piece * max(1, 4096 // len(piece))
    while True:
        yield whole


def says(stage: Stage, *pieces: bytes) -> Act:
    """Sends these bytes there, and is silent."""

    def act(wire: Wire) -> None:
        wire.reach(stage)
        wire.send(*pieces)
        wire.drain()

    return act


def floods(stage: Stage, piece: bytes) -> Act:
    """Sends these bytes there again and again."""

    def act(wire: Wire) -> None:
        wire.reach(stage)
        wire.flood(forever(piece))

    return act


def says_sealed(stage: Stage, kind: int, body: bytes, *, padding: int = 0) -> Act:
    """Sends one encrypted record there, and is silent."""

    def act(wire: Wire) -> None:
        wire.reach(stage)
        wire.send(wire.seal(stage).seal(kind, body, padding))
        wire.drain()

    return act


def floods_sealed(stage: Stage, kind: int, body: bytes) -> Act:
    """Sends encrypted records there again and again, never reading what is said to them."""

    def act(wire: Wire) -> None:
        wire.reach(stage)
        wire.flood(_sealed_forever(wire.seal(stage), kind, body))

    return act


def _sealed_forever(seal: Seal12 | Seal13, kind: int, body: bytes) -> Iterator[bytes]:
    while True:
        yield seal.seal(kind, body)
        if kind == HANDSHAKE and body[0] == KEY_UPDATE and isinstance(seal, Seal13):
            seal.update()


def ends(stage: Stage, how: End) -> Act:
    """Goes as far as that, and no further."""

    def act(wire: Wire) -> None:
        wire.reach(stage)
        if how == "close":
            wire.close()
        elif how == "reset":
            wire.reset()
        else:
            wire.drain()

    return act


def drips(wire: Wire) -> None:
    """A good flight, a byte every 50 ms."""
    wire.reach("hello")
    for byte in b"".join(wire.keys.take(wire.hello)):
        wire.send(bytes((byte,)))
        time.sleep(0.05)


def truncates(keep: float) -> Act:
    """A good flight, of which only that part comes before the connection is closed."""

    def act(wire: Wire) -> None:
        wire.reach("hello")
        flight = b"".join(wire.keys.take(wire.hello))
        wire.send(flight[: int(len(flight) * keep)])
        wire.close()

    return act


def asks_again(wire: Wire) -> None:
    """HelloRetryRequest after HelloRetryRequest."""
    wire.reach("hello")
    session = wire.hello[44 : 44 + wire.hello[43]]
    extensions = bytes.fromhex("002b00020304" + "003300020018")  # TLS 1.3; a key share of secp384r1
    body = b"\3\3" + RETRY_RANDOM + bytes((len(session),)) + session + b"\x13\x02\0"
    retry = record(HANDSHAKE, message(SERVER_HELLO, body + len(extensions).to_bytes(2) + extensions))
    for _ in range(50):
        wire.send(retry)
        wire.receive()


def says_hello(compression: int) -> Act:
    """A TLS 1.2 ServerHello with this method of compression."""
    body = b"\3\3" + bytes(32) + b"\0" + b"\xc0\x2c" + bytes((compression,)) + b"\0\0"
    return says("hello", record(HANDSHAKE, message(SERVER_HELLO, body)))


def sends_certificates(wire: Wire) -> None:
    """A TLS 1.2 Certificate message of 10 MB, made by hand."""
    wire.reach("server hello")
    body = (10 * MEGABYTE).to_bytes(3) + bytes(10 * MEGABYTE)
    whole = message(CERTIFICATE, body)
    wire.flood(record(HANDSHAKE, whole[at : at + 16384]) for at in range(0, len(whole), 16384))
    wire.drain()


def renegotiates(wire: Wire) -> None:
    """A real renegotiation as soon as the one before is over, and never an answer."""
    wire.reach("finished")
    wire.keys.take(wire.receive())
    assert wire.keys.read()
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        wire.send(*wire.keys.renegotiate())
        while wire.keys.is_renegotiating:
            wire.send(*wire.keys.renegotiate(wire.receive()))


def breaks_off(wire: Wire) -> None:
    """Its Finished, and in one piece with it an alert as for a certificate that it does not like."""
    wire.reach("flight")
    last = wire.await_finished()
    wire.send(*last, wire.seal("finished").seal(ALERT, alert(49)))
    wire.close()


def speaks_first(wire: Wire) -> None:
    """An answer to nothing, before any request can have come."""
    wire.reach("finished")
    wire.send(wire.seal("finished").seal(DATA, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"))
    wire.drain()


def large_certificate(pki: Pki, size: int) -> x509.Certificate:
    """A certificate of the CA's of about `size` bytes."""
    leaf = pki.ca.peer("big.test").certificate
    comment = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.16.840.1.113730.1.13"), bytes(size))
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(leaf.public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .add_extension(comment, critical=False)
    )
    return builder.sign(pki.ca.key, hashes.SHA256())


@dataclass(frozen=True)
class Villain:
    """One kind of hostile upstream, and the outcomes that are true of it."""

    act: Act
    outcomes: frozenset[str]
    tls: TlsVersion = "1.3"
    asks: bool = True
    chain: Callable[[Pki], tuple[x509.Certificate, ...]] = lambda _: ()
    """What it presents behind its own certificate."""
    slow: bool = False
    """It needs time itself for what it does, on a busy machine more than the others are given."""
    after: bool = False
    """It takes the certificate and does its harm then: the call may last as long as `response` says."""


@dataclass
class HostilePeer(Peer):
    """A listening villain. `connections` counts those that came."""

    connections: int = 0


@contextmanager
def hostile(pki: Pki, villains: dict[str, Villain]) -> Iterator[dict[str, HostilePeer]]:
    """A listening peer for each of them."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_listening(pki, name, villains[name])) for name in villains}


@contextmanager
def _listening(pki: Pki, name: str, villain: Villain) -> Iterator[HostilePeer]:
    context = server_context(pki.upstream, villain.tls, asks=villain.asks)
    for each in villain.chain(pki):
        context.add_extra_chain_cert(each)
    peer = HostilePeer(name, 0)
    counting = threading.Lock()

    def serve(sock: socket.socket) -> None:
        with counting:
            peer.connections += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            villain.act(Wire(sock, villain.tls, context))
        except SSL.Error:
            pass  # they have given up, and said so

    with raw_peer(name, serve) as listening:
        peer.port = listening.port
        yield peer
