"""Client-side TLS contexts, and a TLS connection on memory BIOs that notes what its peer does.

OpenSSL's info callback tells every alert in both directions, whether the upstream asked for a certificate
and when a session ticket came. None of that is a return value of any call, which is why other proxies
cannot tell a refused certificate from a good one under TLS 1.3.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterable
from typing import Any, Literal, Protocol, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from sidecert.config import TlsConfig
from sidecert.credentials import Credential
from sidecert.credentials.certificates import present
from sidecert.errors import SidecertError
from sidecert.outcome import Observation, Stage
from sidecert.presented import Presented
from sidecert.words import distinguished_name

Trust = tuple[x509.Certificate, ...] | Literal["system", "insecure"]

_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_MAX_RECORD = 16384
_SCRATCH = 2 * _MAX_RECORD
_AT_ONCE = 32 * 1024
"""Bytes of ciphertext that OpenSSL is given at once. The event loop reads up to 256 KiB, and OpenSSL's buffer
for them, a third larger, would stay so for as long as the connection lives."""
_FIRST_BYTES = 16
_MOST_CAS = 1000
MOST_AGAIN = 8
"""How often an upstream may shake hands or ask for our certificate again while a call is under way: each time
costs us a signature. Apache and IIS do so once."""
_MOST_CERTIFICATES = 10
_UNUSED = _ffi.new("char *[1]")
"""Where BIO_get_mem_data may write an address that nobody looks at: only the size is wanted."""

# Alerts that are no failures: close_notify, user_canceled (JDK 17 says it before a plain close) and
# no_renegotiation.
_HARMLESS_ALERTS = frozenset((0, 90, 100))
_UNRECOGNISED_NAME = 112
_WARNING = 1

# Names are looked for in the SAN only (RFC 9525 section 6.3), and `f*.example.com` matches nothing.
_HOST_FLAGS = _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS

_CERTIFICATE_REQUEST_READ = b"SSLv3/TLS read server certificate request"
_SERVER_HELLO_READ = b"SSLv3/TLS read server hello"
_FINISHED_WRITTEN = b"SSLv3/TLS write finished"
_TICKET_READ = b"SSLv3/TLS read server session ticket"


class _Content(Protocol):
    """cffi's view of memory: a slice of it is a copy."""

    def __getitem__(self, part: slice) -> bytes: ...


class _Scratch(threading.local):
    """Where OpenSSL writes what is copied at once: to allocate it anew would cost more than the copy.

    One for each thread, since OpenSSL is called with the interpreter's lock released.
    """

    def __init__(self) -> None:
        self.address = _ffi.new("char[]", _SCRATCH)
        self.bytes = cast(_Content, _ffi.buffer(self.address))


_scratch = _Scratch()


class TlsFailure(SidecertError):
    """OpenSSL gave up on the connection. The text is its reason, such as "wrong version number"."""


def make_context(credential: Credential | None, trust: Trust, tls: TlsConfig) -> SSL.Context:
    """A context that presents `credential` (or none) and trusts `trust`.

    Raises TlsFailure with OpenSSL's reason when it takes no part in the credential (a key too small for
    its security level, a key that belongs to another certificate).
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(_VERSIONS[tls.min])
    context.set_max_proto_version(_VERSIONS[tls.max])
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle pooled connection need not keep 34 kB of record buffers.
    context.set_mode(_lib.SSL_MODE_RELEASE_BUFFERS)
    context.set_info_callback(_on_info)
    try:
        _trust(context, trust)
        if credential is not None:
            context.use_certificate(credential.certificate)
            for intermediate in credential.chain:
                context.add_extra_chain_cert(intermediate)
            context.use_privatekey(cast(Any, credential.key))
            context.check_privatekey()
            # Some ask for a certificate only once they know the path: TLS 1.3 has it that this is offered.
            _lib.SSL_CTX_set_post_handshake_auth(context._context, 1)
            _lib.SSL_CTX_set_cert_cb(context._context, _on_certificate_wanted, _ffi.NULL)
    except SSL.Error as exc:
        raise TlsFailure(_reason(exc)) from exc
    return context


def _trust(context: SSL.Context, trust: Trust) -> None:
    if trust == "insecure":
        context.set_verify(SSL.VERIFY_NONE)
        return
    context.set_verify(SSL.VERIFY_PEER)
    if trust == "system":
        context.set_default_verify_paths()
        return
    store = context.get_cert_store()
    assert store is not None
    # So that a file with the upstream's own certificate, issued by a CA that is not in it, pins it.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for certificate in trust:
        store.add_cert(crypto.X509.from_cryptography(certificate))


class TlsStream:
    """One TLS connection to an upstream: bytes in, bytes out, and everything seen goes into `seen`.

    Feed what the transport receives to `receive`; send what `take_output` returns. For one thread only.
    """

    __slots__ = (
        "_blind",
        "_connection",
        "_incoming",
        "_outgoing",
        "_scratch",
        "_ssl",
        "again",
        "closed",
        "established",
        "failure",
        "news",
        "partial",
        "seen",
        "ticket",
        "unsent",
    )

    def __init__(self, context: SSL.Context, server_name: str, seen: Observation) -> None:
        self.seen = seen
        """The handshake under way, or the last one. Another object once the upstream has begun one anew, or
        asked for a certificate when it was over."""
        self.again = 0
        """How often it has done so; whoever uses the stream may begin to count anew."""
        self.unsent = b""
        """What must wait for a handshake to end before it can be sent: see `send_unsent`."""
        self.established = False
        """The handshake is over for our side (which under TLS 1.3 proves nothing about our certificate)."""
        self.closed = False
        """The upstream has said close_notify: what came before is whole."""
        self.ticket = False
        """A session ticket has come: a TLS 1.3 upstream sends one only after it has accepted us."""
        self.failure: TlsFailure | None = None
        """Why nothing more can come, where data came before: that is whole and good."""
        self.news = False
        """Something other than data has come since output was last taken: output may be waiting."""
        self.partial = False
        """What came last ends within a record: more is on its way, as far as can be seen."""
        self._blind: Exception | None = None
        """An error of our own while we watched: no verdict can be built on what was seen."""
        self._connection = connection = SSL.Connection(context, None)
        # Per request pyOpenSSL's own recv, send and BIO calls cost three times what these do in OpenSSL.
        self._ssl = connection._ssl
        self._incoming = connection._into_ssl
        self._outgoing = connection._from_ssl
        self._scratch = _scratch.address, _scratch.bytes
        connection.set_app_data(self)
        connection.set_connect_state()
        _name(connection, server_name)

    def start(self) -> bytes:
        """The ClientHello."""
        self.seen.stage = Stage.HELLO_SENT
        self._handshake()
        return self.take_output()

    def receive(self, data: bytes) -> bytes:
        """Take in ciphertext, give back the plaintext in it. Raises TlsFailure.

        Output may be waiting afterwards, even after a failure (an alert): see `take_output`.
        """
        if not self.established and len(self.seen.first_bytes) < _FIRST_BYTES:
            self.seen.first_bytes += data[: _FIRST_BYTES - len(self.seen.first_bytes)]
        if len(data) <= _AT_ONCE:
            return self._receive(data, len(data))
        pieces = []
        start_of_all = _ffi.from_buffer(data)
        for start in range(0, len(data), _AT_ONCE):
            try:
                pieces.append(self._receive(start_of_all + start, min(_AT_ONCE, len(data) - start)))
            except TlsFailure as exc:
                if not any(pieces):
                    raise
                self.failure = exc  # what came before is whole and good
            if self.failure is not None or self.closed:
                break
        return b"".join(pieces)

    def _receive(self, data: Any, size: int) -> bytes:
        if _lib.BIO_write(self._incoming, data, size) != size:
            raise TlsFailure("OpenSSL has no memory for what came")
        plain = self._read() if self.established or self._handshake() else b""
        if self._blind is not None:
            raise self._blind
        return plain

    def send(self, data: bytes) -> bytes:
        """Encrypt `data`, and give back what must go to the transport. Raises TlsFailure.

        While the upstream shakes hands anew nothing can be sent: `data` then waits in `unsent`.
        """
        if self.unsent:
            self.unsent += data
            return b""
        if len(data) <= _MAX_RECORD:
            self._write(data)
        else:
            for start in range(0, len(data), _MAX_RECORD):
                # A record at a time, since pyOpenSSL lets a write end after the first one.
                if not self._write(data[start : start + _MAX_RECORD]):
                    self.unsent = data[start:]
                    break
        return self.take_output()

    def send_unsent(self) -> bytes:
        """As `send` for what had to wait, and may have to wait on."""
        data, self.unsent = self.unsent, b""
        return self.send(data)

    def _write(self, record: bytes) -> bool:
        """False where `record` is all in `unsent` now."""
        if not record:
            return True
        done = _lib.SSL_write(self._ssl, record, len(record))
        if done <= 0:
            try:
                self._connection._raise_ssl_error(self._ssl, done)
            except SSL.WantReadError:
                self.unsent = record  # OpenSSL has taken nothing of it
                return False
            except SSL.Error as exc:
                raise self._failure(exc) from exc
        return True

    def take_output(self) -> bytes:
        """Bytes that OpenSSL wants sent: handshake messages, alerts, key updates, records."""
        self.news = False
        address, content = self._scratch
        size = _lib.BIO_read(self._outgoing, address, _SCRATCH)
        if size < _SCRATCH:
            return content[:size] if size > 0 else b""
        output = [content[:]]
        while (size := _lib.BIO_read(self._outgoing, address, _SCRATCH)) > 0:
            output.append(content[:size])
        return b"".join(output)

    def close(self) -> bytes:
        """Say close_notify; gives back what must still be sent."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            pass  # it was not established, or has failed: there is nobody to say goodbye to
        return self.take_output()

    def note_acceptable_cas(self, credential: Credential | None) -> None:
        """Put the names of the CAs that the upstream listed into `seen`, and whether `credential`'s chain
        leads to one of them."""
        # A hostile list holds 16,000: to write them all out would hold the event loop.
        names = self._connection.get_client_ca_list()[:_MOST_CAS]
        self.seen.acceptable_cas = tuple(_render_name(name.get_components()) for name in names)
        if names and credential is not None:
            ours = (credential.certificate, *credential.chain)
            # OpenSSL's comparison: the same name may be encoded in several ways.
            issuers = [crypto.X509.from_cryptography(each).get_issuer() for each in ours]
            self.seen.chains_to = tuple(_render_name(n.get_components()) for n in names if n in issuers)

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher in use."""
        return self._connection.get_cipher_name()

    def check_result(self) -> tuple[int, str]:
        """How the check of the upstream's certificate ended, also where nobody insists on it.

        OpenSSL's X509_V_ERR_* and its words; 0 where it is fine, or there was nothing to check.
        """
        code = _lib.SSL_get_verify_result(self._ssl)
        return code, _ffi.string(_lib.X509_verify_cert_error_string(code)).decode()

    def peer_chain(self) -> list[x509.Certificate]:
        """The certificates that the upstream presented, its own first."""
        return self._connection.get_peer_cert_chain(as_cryptography=True) or []

    def presented(self) -> tuple[Presented, ...]:
        """The same as plain facts; a hostile one may hold anything, and what cannot be parsed ends it."""
        found: list[Presented] = []
        try:
            for certificate in self.peer_chain()[:_MOST_CERTIFICATES]:
                found.append(present(certificate))
        except Exception:  # the parser's errors are not a closed list
            pass
        return tuple(found)

    def _handshake(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.ZeroReturnError:
            self.closed = True  # a close_notify in mid-handshake: no error of TLS, but an end of it
            return False
        except SSL.Error as exc:
            raise self._failure(exc) from exc
        self.established = True
        self.seen.stage = max(self.seen.stage, Stage.FINISHED_SENT)
        return True

    def _read(self) -> bytes:
        pieces = []
        retried = False
        self.partial = False
        address, content = self._scratch
        while True:
            size = _lib.SSL_read(self._ssl, address, _MAX_RECORD)
            if size > 0:
                pieces.append(content[:size])
                # A read takes a whole record. Asking for one more where nothing is left would cost an
                # exception per answer.
                if not _lib.BIO_get_mem_data(self._incoming, _UNUSED):
                    break
                continue
            try:
                self._connection._raise_ssl_error(self._ssl, size)
            except SSL.WantReadError:
                # Behind data, or without any news, these were the first bytes of a record.
                self.partial = bool(pieces) or not self.news
                break
            except SSL.ZeroReturnError:
                self.closed = True
                break
            except SSL.SysCallError as exc:
                # JDK 17 sends user_canceled before close_notify; OpenSSL then says so once. Read again.
                if retried:
                    self.failure = TlsFailure(str(exc.args[-1]))
                    break
                retried = True
            except SSL.Error as exc:
                self.failure = self._failure(exc)
                break
        if self.failure is not None and not pieces:
            raise self.failure
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _failure(self, exc: SSL.Error) -> TlsFailure:
        if self._blind is not None:
            raise self._blind
        if self.again > MOST_AGAIN:
            return TlsFailure("the upstream shakes hands again and again")
        reason = _reason(exc)
        if reason == "certificate verify failed":
            self.seen.verify_code, self.seen.verify_text = self.check_result()
            self.seen.presented = self.presented()
        return TlsFailure(reason)

    def _on_alert(self, received: bool, level: int, alert: int) -> None:
        if alert in _HARMLESS_ALERTS or (alert == _UNRECOGNISED_NAME and level == _WARNING):
            return
        seen = self.seen
        if not received:
            seen.alert_sent = alert
        elif seen.alert_received is None:
            seen.alert_received = alert

    def _on_state(self, state: bytes) -> None:
        seen = self.seen
        if state == _SERVER_HELLO_READ:
            seen.stage = max(seen.stage, Stage.HELLO_RECEIVED)
            seen.tls_version = self._connection.get_protocol_version_name()
        elif state == _CERTIFICATE_REQUEST_READ:
            if self.established and seen.tls_version == "TLSv1.3":
                self._begin_again(Stage.FINISHED_SENT)  # OpenSSL answers it in the same call
            self.seen.certificate_requested = True
        elif state == _FINISHED_WRITTEN:
            seen.stage = max(seen.stage, Stage.FINISHED_SENT)
        elif state == _TICKET_READ:
            self.ticket = True

    def _on_start(self) -> None:
        if self.established:
            self._begin_again(Stage.HELLO_SENT)

    def _on_done(self) -> None:
        if self.seen.afterwards:
            self.seen.stage = Stage.PROVEN  # a renegotiation: its end is the upstream's Finished

    def _begin_again(self, stage: Stage) -> None:
        self.again += 1
        before = self.seen
        if before.afterwards and before.stage is not Stage.PROVEN:
            return  # it asks once more before its verdict
        self.ticket = False
        self.seen = Observation(
            stage=stage,
            tls_version=before.tls_version,
            certificate_sent=before.certificate_sent,
            afterwards=True,
        )


def _on_info(connection: SSL.Connection, where: int, ret: int) -> None:
    # An exception here would be printed by cffi and lost: `receive` raises it instead.
    stream: TlsStream | None = connection.get_app_data()
    if stream is None:
        return
    try:
        stream.news = True
        if where & SSL.SSL_CB_ALERT:
            stream._on_alert(bool(where & SSL.SSL_CB_READ), ret >> 8, ret & 0xFF)
        elif where & SSL.SSL_CB_LOOP:
            stream._on_state(connection.get_state_string())
        elif where & SSL.SSL_CB_HANDSHAKE_START:
            stream._on_start()
        elif where & SSL.SSL_CB_HANDSHAKE_DONE:
            stream._on_done()
    except Exception as exc:
        stream._blind = exc


@_ffi.callback("int (*)(SSL *, void *)")  # type: ignore[untyped-decorator]
def _on_certificate_wanted(ssl: object, _: object) -> int:
    """Before we sign: many requests may come in one piece, and would be answered before it has been read."""
    stream: TlsStream = SSL.Connection._reverse_mapping[ssl].get_app_data()
    return int(stream.again <= MOST_AGAIN)  # an error here would count as 0, which ends the handshake


def _name(connection: SSL.Connection, server_name: str) -> None:
    param = _lib.SSL_get0_param(connection._ssl)
    _lib.X509_VERIFY_PARAM_set_hostflags(param, _HOST_FLAGS)
    try:
        address = ipaddress.ip_address(server_name)
    except ValueError:
        name = server_name.encode("ascii")
        connection.set_tlsext_host_name(name)
        done = _lib.X509_VERIFY_PARAM_set1_host(param, name, len(name))
    else:
        # RFC 6066 section 3: no address in SNI.
        done = _lib.X509_VERIFY_PARAM_set1_ip(param, address.packed, len(address.packed))
    if done != 1:
        raise TlsFailure(f"OpenSSL does not take {server_name!r} as a name to check")


def _reason(exc: SSL.Error) -> str:
    entries: Iterable[tuple[str, str, str]] = (
        exc.args[0] if exc.args and isinstance(exc.args[0], list) else ()
    )
    reasons = [entry[2] for entry in entries if entry[2]]
    if entries and not reasons:
        return "an error that has no name"  # such as an alert with a number that nobody has registered
    return reasons[0] if reasons else (str(exc) or type(exc).__name__)


def _render_name(components: list[tuple[bytes, bytes]]) -> str:
    return distinguished_name(
        [[(kind.decode("utf-8", "replace"), value.decode("utf-8", "replace"))] for kind, value in components]
    )
