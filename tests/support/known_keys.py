"""The server's end of a TLS connection whose keys are known.

OpenSSL on memory BIOs shakes hands as it should; records of our making can be put among its own, encrypted
as its own are.

TLS 1.2 with ECDHE and AES-GCM, and TLS 1.3 with AES-GCM.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from support.certs import Files
from support.recorder import TlsVersion

CHANGE_CIPHER, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
"""Types of records."""
HELLO_REQUEST, SERVER_HELLO, NEW_TICKET, ENCRYPTED_EXTENSIONS = 0, 2, 4, 8
CERTIFICATE, CERTIFICATE_REQUEST, FINISHED, KEY_UPDATE = 11, 13, 20, 24
"""Types of handshake messages."""
MOST = 1 << 14

_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


def record(kind: int, body: bytes, version: int = 0x0303, length: int | None = None) -> bytes:
    """A record in the clear; `length` is what its head claims."""
    size = len(body) if length is None else length
    return bytes((kind,)) + version.to_bytes(2) + size.to_bytes(2) + body


def message(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A handshake message; `length` is what its head claims."""
    return bytes((kind,)) + (len(body) if length is None else length).to_bytes(3) + body


def alert(number: int, level: int = 2) -> bytes:
    """The body of an alert."""
    return bytes((level, number))


def records(data: bytes) -> Iterator[bytes]:
    """The whole records in `data`, with their heads, and the rest as a last piece."""
    at = 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5])
        yield data[at:end]
        at = end


class Seal13:
    """Encrypts and decrypts records under a TLS 1.3 traffic secret (RFC 8446 section 5.2)."""

    def __init__(self, secret: bytes) -> None:
        self._hash: hashes.HashAlgorithm = hashes.SHA256() if len(secret) == 32 else hashes.SHA384()
        self._secret = secret
        self._renew()

    def _renew(self) -> None:
        self._key = AESGCM(self._expand(b"key", 16 if len(self._secret) == 32 else 32))
        self._iv = self._expand(b"iv", 12)
        self._number = 0

    def _expand(self, label: bytes, length: int) -> bytes:
        info = length.to_bytes(2) + bytes((6 + len(label),)) + b"tls13 " + label + b"\0"
        return HKDFExpand(self._hash, length, info).derive(self._secret)

    def update(self) -> None:
        """Go on to the next keys, as behind a KeyUpdate."""
        self._secret = self._expand(b"traffic upd", len(self._secret))
        self._renew()

    def seal(self, kind: int, body: bytes, padding: int = 0) -> bytes:
        """A record that says so; its plaintext may be of any size."""
        plain = body + bytes((kind,)) + bytes(padding)
        head = record(DATA, b"", length=len(plain) + 16)
        return head + self._key.encrypt(self._nonce(), plain, head)

    def open(self, sealed: bytes) -> tuple[int, bytes]:
        """The type and the body of a record."""
        plain = self._key.decrypt(self._nonce(), sealed[5:], sealed[:5]).rstrip(b"\0")
        return plain[-1], plain[:-1]

    def _nonce(self) -> bytes:
        number, self._number = self._number, self._number + 1
        return (int.from_bytes(self._iv) ^ number).to_bytes(12)


class Seal12:
    """Encrypts records from a TLS 1.2 server with ECDHE-*-AES256-GCM-SHA384 (RFC 5288)."""

    def __init__(self, master: bytes, server_random: bytes, client_random: bytes, number: int) -> None:
        seed = b"key expansion" + server_random + client_random
        block, last = b"", seed
        while len(block) < 72:
            last = hmac.digest(master, last, "sha384")
            block += hmac.digest(master, last + seed, "sha384")
        self._key = AESGCM(block[32:64])
        self._salt = block[68:72]
        self._number = number

    def seal(self, kind: int, body: bytes, padding: int = 0) -> bytes:
        """A record that says so. There is no padding in this version."""
        number, self._number = self._number.to_bytes(8), self._number + 1
        associated = number + record(kind, b"", length=len(body))
        sealed = self._key.encrypt(self._salt + number, body, associated)
        return record(kind, number + sealed)


def server_context(
    files: Files, tls: TlsVersion, *, asks: bool = True, takes: tuple[x509.Certificate, ...] = ()
) -> SSL.Context:
    """The context of a `KnownKeys`; where it asks for a certificate it takes any, and names `takes`."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[tls])
    context.set_max_proto_version(_VERSIONS[tls])
    context.set_cipher_list(b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384")
    context.set_tls13_ciphersuites(b"TLS_AES_256_GCM_SHA384")
    context.set_options(SSL.OP_NO_TICKET if tls == "1.2" else 0)
    context.use_certificate_chain_file(str(files.certificate))
    context.use_privatekey_file(str(files.key))
    if asks:
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        for each in takes:
            context.add_client_ca(each)
    context.set_keylog_callback(lambda connection, line: connection.get_app_data().note_key(line))
    return context


class KnownKeys:
    """One server's end. Feed what comes to `take`; what it gives back are the records to send."""

    def __init__(self, context: SSL.Context) -> None:
        self.done = False
        """It has read the other end's Finished and taken its certificate."""
        self._keys: dict[str, bytes] = {}
        self._connection = SSL.Connection(context, None)
        self._connection.set_app_data(self)
        self._connection.set_accept_state()

    def note_key(self, line: bytes) -> None:
        label, _, secret = line.decode().split()
        self._keys[label] = bytes.fromhex(secret)

    def take(self, data: bytes) -> list[bytes]:
        """Take what the other end sent; gives back what there is to send. Raises SSL.Error."""
        if data:
            self._connection.bio_write(data)
        if not self.done:
            try:
                self._connection.do_handshake()
                self.done = True
            except SSL.WantReadError:
                pass
        return list(records(self._output()))

    def renegotiate(self, data: bytes = b"") -> list[bytes]:
        """Begin a renegotiation, or take what came in it; gives back what there is to send."""
        if data:
            self._connection.bio_write(data)
            self.read()
        else:
            self._connection.renegotiate()
            self._connection.do_handshake()
        return list(records(self._output()))

    @property
    def is_renegotiating(self) -> bool:
        return self._connection.renegotiate_pending()

    def read(self) -> bytes:
        """The data that has come."""
        pieces = []
        try:
            while True:
                pieces.append(self._connection.recv(65536))
        except (SSL.WantReadError, SSL.ZeroReturnError):
            return b"".join(pieces)

    def write(self, data: bytes) -> list[bytes]:
        """The records that carry `data`."""
        self._connection.sendall(data)
        return list(records(self._output()))

    def seal13(self, *, handshake: bool = False) -> Seal13:
        """What encrypts as this end does: from its ServerHello on, or (the same way) from its Finished on."""
        return Seal13(
            self._keys["SERVER_HANDSHAKE_TRAFFIC_SECRET" if handshake else "SERVER_TRAFFIC_SECRET_0"]
        )

    def seal12(self, number: int = 1) -> Seal12:
        """What encrypts as this end does, from its record `number` on: its Finished is the first, 0."""
        connection = self._connection
        return Seal12(
            self._keys["CLIENT_RANDOM"], connection.server_random(), connection.client_random(), number
        )

    def _output(self) -> bytes:
        pieces = []
        try:
            while True:
                pieces.append(self._connection.bio_read(1 << 20))
        except SSL.WantReadError:
            return b"".join(pieces)
