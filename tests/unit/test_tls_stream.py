"""A TLS connection on memory BIOs against a real peer: what goes in comes out whole, however it is cut."""

from __future__ import annotations

import os
import ssl
import time
import warnings
from collections.abc import Callable

import pytest
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

from sidecert import credentials
from sidecert.config import CredentialConfig, TlsConfig
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.tls import MOST_AGAIN, TlsFailure, TlsStream, make_context
from support.certs import Files, Pki
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


class Asking:
    """The other end, which asks for a certificate once the connection stands; pyOpenSSL, since ssl cannot."""

    def __init__(self, pki: Pki, version: int) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_certificate_chain_file(str(pki.upstream.certificate))
        context.use_privatekey_file(str(pki.upstream.key))
        context.load_verify_locations(str(pki.trust))
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        self.tls = SSL.Connection(context, None)
        self.tls.set_accept_state()
        self._version = version

    def ask(self) -> None:
        demand = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        lib.SSL_set_verify(self.tls._ssl, demand, ffi.NULL)
        if self._version == SSL.TLS1_3_VERSION:
            assert lib.SSL_verify_client_post_handshake(self.tls._ssl) == 1
        else:
            assert self.tls.renegotiate()
        self.tls.do_handshake()

    def take(self, data: bytes) -> bytes:
        """What is in `data`; an alert, where something is wrong with it, is left to be taken by `output`."""
        if data:
            self.tls.bio_write(data)
        pieces = []
        try:
            while True:
                pieces.append(self.tls.recv(1 << 20))
        except SSL.Error:
            pass
        return b"".join(pieces)

    def output(self) -> bytes:
        try:
            return self.tls.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""


def exchange(stream: TlsStream, peer: Asking, data: bytes) -> bytes:
    """Carries `data`, and what comes of it, to and fro until both are silent; what the peer has read."""
    read = b""
    while data:
        read += peer.take(data)
        if answer := peer.output():
            assert stream.receive(answer) == b""
        data = stream.take_output() + stream.send_unsent()
    return read


def stand(pki: Pki, version: int, files: Files) -> tuple[TlsStream, Asking]:
    config = CredentialConfig(certificate=files.certificate, key=files.key)
    credential, _ = credentials.load("alice", config, {}, time.time())
    trust, _ = credentials.load_trust(pki.trust, time.time())
    seen = Observation(certificate_sent=True)
    stream = TlsStream(make_context(credential, trust, TlsConfig()), "localhost", seen)
    peer = Asking(pki, version)
    exchange(stream, peer, stream.start())
    assert stream.established
    assert not seen.certificate_requested
    return stream, peer


LATER = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])


@LATER
def test_certificate_is_presented_when_it_is_asked_for_later(pki: Pki, version: int) -> None:
    """What is seen of it is told apart from the first handshake, which stays as it was."""
    stream, peer = stand(pki, version, pki.alice)
    first = stream.seen
    peer.ask()
    assert stream.receive(peer.output()) == b""
    exchange(stream, peer, stream.take_output())
    subject = peer.tls.get_peer_certificate()
    assert subject is not None
    assert subject.get_subject().CN == "alice"
    assert not first.certificate_requested
    assert stream.seen is not first
    assert (stream.seen.afterwards, stream.seen.certificate_requested) == (True, True)
    assert stream.seen.tls_version == first.tls_version
    # Under TLS 1.3 the end of it cannot be seen.
    assert (stream.seen.stage is Stage.PROVEN) == (version == SSL.TLS1_2_VERSION)


@LATER
def test_refusal_of_a_certificate_that_was_asked_for_later_is_seen(pki: Pki, version: int) -> None:
    """Its alert belongs to what was asked later, and decides it."""
    stream, peer = stand(pki, version, pki.stranger)
    first = stream.seen
    peer.ask()
    stream.receive(peer.output())
    with pytest.raises(TlsFailure):
        exchange(stream, peer, stream.take_output())
    assert first.alert_received is None
    assert stream.seen.alert_received == 48
    stream.seen.ending = Ending.TLS
    assert decide(stream.seen) is Outcome.CLIENT_CERT_UNKNOWN_CA


@pytest.mark.parametrize("pieces", [(10, 20), (RECORD, RECORD, 5), (3 * RECORD + 1, 1, 2 * RECORD)])
def test_what_is_sent_in_a_renegotiation_waits_for_its_end(pki: Pki, pieces: tuple[int, ...]) -> None:
    """Nothing is lost or doubled, and the order stays."""
    stream, peer = stand(pki, SSL.TLS1_2_VERSION, pki.alice)
    peer.ask()
    stream.receive(peer.output())
    hello = stream.take_output()
    sent = [os.urandom(size) for size in pieces]
    for piece in sent:
        assert stream.send(piece) == b""
    assert stream.unsent == b"".join(sent)
    assert stream.send_unsent() == b""
    assert exchange(stream, peer, hello) == b"".join(sent)
    assert stream.unsent == b""
    assert peer.take(stream.send(b"and on")) == b"and on"


def test_upstream_that_asks_again_and_again_gets_few_signatures(pki: Pki) -> None:
    """Requests that come in one piece would all be answered before anybody could look."""
    stream, peer = stand(pki, SSL.TLS1_3_VERSION, pki.alice)
    for _ in range(MOST_AGAIN + 1):  # the one more shows that it is too much
        peer.ask()
        assert stream.receive(peer.output()) == b""
        peer.take(stream.take_output())
    peer.ask()
    with pytest.raises(TlsFailure, match="again and again"):
        stream.receive(peer.output())
    assert stream.seen.alert_sent == 80
    assert len(stream.take_output()) < 100  # an alert, and no certificate


def test_first_bytes_of_a_further_record_are_noticed(connected: tuple[TlsStream, Peer]) -> None:
    """They have come, though nothing can be read of them: whoever sent them has more to say."""
    stream, peer = connected
    peer.tls.write(b"one")
    first = peer.outgoing.read()
    peer.tls.write(b"two")
    second = peer.outgoing.read()
    assert stream.receive(first) == b"one"
    assert not stream.partial
    for size in (3, 10):  # less than a record's header, and more
        assert stream.receive(second[:size]) == b""
        assert stream.partial
        assert stream.receive(second[size:]) == b"two"
        assert not stream.partial
        peer.tls.write(b"one")
        first = peer.outgoing.read()
        peer.tls.write(b"two")
        second = peer.outgoing.read()
        assert stream.receive(first + second[:size]) == b"one"
        assert stream.partial
        assert stream.receive(second[size:]) == b"two"
        peer.tls.write(b"two")
        second = peer.outgoing.read()
