"""A TLS connection on memory BIOs against Python's ssl: what goes in comes out whole, however it is cut."""

from __future__ import annotations

import os
import ssl
import time
import warnings
from collections.abc import Callable

import pytest
from OpenSSL import crypto

from sidecert import credentials
from sidecert.config import CredentialConfig, TlsConfig
from sidecert.outcome import Observation
from sidecert.tls import TlsFailure, TlsStream, make_context
from support.certs import Pki
from support.known_keys import KnownKeys, server_context

RECORD = 16384
SIZES = (1, RECORD - 1, RECORD, RECORD + 1, 5 * RECORD, 300_001)


class Peer:
    """The other end: it demands a client certificate."""

    def __init__(self, pki: Pki, version: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.upstream.certificate, pki.upstream.key)
        context.load_verify_locations(pki.trust)
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def read(self) -> bytes:
        """All that has come."""
        pieces = []
        try:
            while piece := self.tls.read(1 << 20):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def connected(pki: Pki, request: pytest.FixtureRequest) -> tuple[TlsStream, Peer]:
    """A stream and its peer after their handshake, with nothing left in between."""
    config = CredentialConfig(certificate=pki.alice.certificate, key=pki.alice.key)
    alice, _ = credentials.load("alice", config, {}, time.time())
    trust, _ = credentials.load_trust(pki.trust, time.time())
    stream = TlsStream(make_context(alice, trust, TlsConfig()), "localhost", Observation())
    peer = Peer(pki, request.param)
    peer.incoming.write(stream.start())
    for _ in range(3):
        try:
            peer.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        if data := peer.outgoing.read():
            assert stream.receive(data) == b""
        peer.incoming.write(stream.take_output())
    assert stream.established
    return stream, peer


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_arrives_whole(connected: tuple[TlsStream, Peer], size: int) -> None:
    """Also when it needs many records."""
    stream, peer = connected
    sent = os.urandom(size)
    peer.incoming.write(stream.send(sent))
    assert peer.read() == sent
    assert stream.take_output() == b""


@pytest.mark.parametrize("size", SIZES)
def test_what_comes_in_one_piece_is_read_whole(connected: tuple[TlsStream, Peer], size: int) -> None:
    """One call takes in all records that a piece holds."""
    stream, peer = connected
    sent = os.urandom(size)
    peer.tls.write(sent)
    assert stream.receive(peer.outgoing.read()) == sent


@pytest.mark.parametrize("step", [1, 7, 16000])
def test_what_comes_in_small_pieces_is_read_whole(connected: tuple[TlsStream, Peer], step: int) -> None:
    """Records are cut anywhere, in their heads too."""
    stream, peer = connected
    sent = os.urandom(2 * RECORD + 10)
    for piece in (b"a", sent):
        peer.tls.write(piece)
    data = peer.outgoing.read()
    read = b"".join(stream.receive(data[at : at + step]) for at in range(0, len(data), step))
    assert read == b"a" + sent
    assert not stream.closed


def test_an_end_behind_the_last_data_is_seen_with_it(connected: tuple[TlsStream, Peer]) -> None:
    """close_notify in the piece that the data came in; nobody would ask again."""
    stream, peer = connected
    peer.tls.write(b"the last words")
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    assert stream.receive(peer.outgoing.read()) == b"the last words"
    assert stream.closed


def _changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("spoil", [_changed, lambda data: b"HTTP/1.1 400 Bad\r\n\r\n"])
def test_what_is_no_record_of_the_peer_is_a_failure(
    connected: tuple[TlsStream, Peer], spoil: Callable[[bytes], bytes]
) -> None:
    """A record that was changed on its way, and what is no record at all."""
    stream, peer = connected
    peer.tls.write(b"words")
    data = peer.outgoing.read()
    with pytest.raises(TlsFailure):
        stream.receive(spoil(data))


def test_a_list_of_very_many_cas_is_cut(pki: Pki) -> None:
    """16,000 names fit into a request for a certificate; each that is written out costs time in the loop."""
    context = server_context(pki.upstream, "1.3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_client_ca_list([crypto.X509().get_subject()] * 16_000)
    trust, _ = credentials.load_trust(pki.trust, time.time())
    stream = TlsStream(make_context(None, trust, TlsConfig()), "localhost", Observation())
    stream.receive(b"".join(KnownKeys(context).take(stream.start())))
    stream.note_acceptable_cas(None)
    assert len(stream.seen.acceptable_cas) == 1000
