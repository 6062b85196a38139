"""What came of one handshake with an upstream: a closed list, and the pure rule that decides.

The wire is watched by `connect`, `tls`, `attempt` and `upstream`, which fill in an `Observation`. Nothing
else may name an outcome: metrics, log, answer and explanation all say what `decide` said, once per handshake.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from sidecert.presented import Presented


class Outcome(StrEnum):
    """The closed list. A new member needs an explanation too; a test notices when it is missing."""

    OK = "ok"
    CLIENT_CERT_REQUIRED = "client_cert_required"
    CLIENT_CERT_UNKNOWN_CA = "client_cert_unknown_ca"
    CLIENT_CERT_EXPIRED = "client_cert_expired"
    CLIENT_CERT_REVOKED = "client_cert_revoked"
    CLIENT_CERT_UNSUPPORTED = "client_cert_unsupported"
    CLIENT_CERT_REJECTED = "client_cert_rejected"
    SERVER_UNTRUSTED = "server_untrusted"
    SERVER_EXPIRED = "server_expired"
    SERVER_NAME_MISMATCH = "server_name_mismatch"
    PROTOCOL_MISMATCH = "protocol_mismatch"
    NO_SHARED_PARAMETERS = "no_shared_parameters"
    NOT_TLS = "not_tls"
    CLOSED_IN_HANDSHAKE = "closed_in_handshake"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_ERROR = "tls_error"
    UNDECIDED = "undecided"

    @property
    def blames_our_certificate(self) -> bool:
        """The upstream refused the certificate that we presented, or that we presented none."""
        return self.startswith("client_cert_")


class Stage(IntEnum):
    """How far an attempt came. Each stage includes the ones before it."""

    RESOLVING = 0
    CONNECTING = 1
    HELLO_SENT = 2
    """TCP stands and our ClientHello is on its way."""
    HELLO_RECEIVED = 3
    FINISHED_SENT = 4
    """Our certificate (or our lack of one) and our Finished are on their way."""
    PROVEN = 5
    """The upstream has accepted: its Finished under TLS 1.2; a ticket or a byte under TLS 1.3 where it
    asked for a certificate."""


class Ending(StrEnum):
    """How an attempt ended, as far as the transport tells."""

    NONE = "none"
    EOF = "eof"
    CLOSE_NOTIFY = "close_notify"
    RESET = "reset"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    FAILED = "failed"
    """Another error of the network; `error` says which."""
    TLS = "tls"
    """OpenSSL gave up; `error` says why."""
    ABANDONED = "abandoned"
    """We left: the call ended before the verdict."""


@dataclass(slots=True)
class Observation:
    """What was seen of one attempt. Filled in as it happens; read by `decide` and `explain`."""

    stage: Stage = Stage.RESOLVING
    ending: Ending = Ending.NONE
    error: str = ""
    """OpenSSL's reason or the operating system's words."""
    ours: bool = False
    """The error is this machine's, and says nothing of the upstream: it had no descriptor, port or memory."""
    addresses: tuple[str, ...] = ()
    """The addresses that were tried, in order."""
    tls_version: str = ""
    certificate_requested: bool = False
    certificate_sent: bool = False
    """The route has a certificate to send, which is sent where the upstream asks for one."""
    acceptable_cas: tuple[str, ...] = ()
    """Names of the CAs that the upstream says it accepts; empty where it names none."""
    chains_to: tuple[str, ...] = ()
    """Those of `acceptable_cas` that issued our certificate or one of the chain we hold behind it."""
    alert_received: int | None = None
    """The first fatal TLS alert from the upstream."""
    alert_sent: int | None = None
    verify_code: int = 0
    """OpenSSL's X509_V_ERR_* for the upstream's certificate, 0 when it is fine or was not looked at."""
    verify_text: str = ""
    afterwards: bool = False
    """On a connection that was open already: the upstream began a handshake anew (TLS 1.2) or asked for a
    certificate (TLS 1.3), mostly because of a request's path."""
    presented: tuple[Presented, ...] = ()
    """The upstream's certificates, its own first, where `verify_code` says that one is wrong."""
    first_bytes: bytes = b""
    """At most 16 bytes, the first that the upstream sent: tells HTTP or SSH from TLS."""
    request_sent: bool = False
    """Bytes of a request were written before the verdict."""
    timeout: float = 0.0
    """Seconds of the limit that passed, where `ending` is TIMEOUT."""

    @property
    def verdict_comes_late(self) -> bool:
        """The upstream judges our certificate only after our side of the handshake is over."""
        return self.tls_version == "TLSv1.3" and self.certificate_requested


# RFC 8446 section 6.2 and RFC 5246 section 7.2.2; what peers really send is in DESIGN.md.
_CERTIFICATE_ALERTS = {
    42: Outcome.CLIENT_CERT_REJECTED,  # bad_certificate: Go and Java say this for everything
    43: Outcome.CLIENT_CERT_UNSUPPORTED,
    44: Outcome.CLIENT_CERT_REVOKED,
    45: Outcome.CLIENT_CERT_EXPIRED,
    46: Outcome.CLIENT_CERT_REJECTED,  # certificate_unknown
    48: Outcome.CLIENT_CERT_UNKNOWN_CA,
    49: Outcome.CLIENT_CERT_REJECTED,  # access_denied
    51: Outcome.CLIENT_CERT_REJECTED,  # decrypt_error: our signature was not accepted
    116: Outcome.CLIENT_CERT_REQUIRED,
}
_HANDSHAKE_FAILURE = 40
_OTHER_ALERTS = {
    _HANDSHAKE_FAILURE: Outcome.NO_SHARED_PARAMETERS,
    70: Outcome.PROTOCOL_MISMATCH,
    71: Outcome.NO_SHARED_PARAMETERS,  # insufficient_security
}
_VERIFY_CODES = {
    9: Outcome.SERVER_EXPIRED,  # not yet valid: the same remedy, a clock or a renewal
    10: Outcome.SERVER_EXPIRED,
    62: Outcome.SERVER_NAME_MISMATCH,
    63: Outcome.SERVER_NAME_MISMATCH,
    64: Outcome.SERVER_NAME_MISMATCH,
}
_PROTOCOL_ERRORS = (
    "unsupported protocol",
    "no protocols available",
    "wrong ssl version",
    "inappropriate fallback",
)
_PARAMETER_ERRORS = (
    "no shared",
    "no ciphers available",
    "wrong cipher",
    "dh key too small",
    "ee key too small",
)
_NO_CONNECTION = {
    Ending.REFUSED: Outcome.CONNECT_REFUSED,
    Ending.TIMEOUT: Outcome.CONNECT_TIMEOUT,
    Ending.ABANDONED: Outcome.UNDECIDED,
    Ending.RESET: Outcome.CLOSED_IN_HANDSHAKE,  # it stood, for less time than it takes to look
}
_CLOSES = frozenset((Ending.EOF, Ending.CLOSE_NOTIFY, Ending.RESET))
_TLS_RECORD_TYPES = frozenset((20, 21, 22, 23))
_HANDSHAKE_RECORD = bytes((22,))


def decide(seen: Observation) -> Outcome:
    """The outcome of the attempt that `seen` describes."""
    if seen.stage is Stage.PROVEN:
        return Outcome.OK
    if seen.stage is Stage.RESOLVING:
        return Outcome.UNDECIDED if seen.ending is Ending.ABANDONED else Outcome.DNS_FAILED
    if seen.stage is Stage.CONNECTING:
        return _NO_CONNECTION.get(seen.ending, Outcome.CONNECT_FAILED)
    if seen.verify_code:
        return _VERIFY_CODES.get(seen.verify_code, Outcome.SERVER_UNTRUSTED)
    if seen.alert_received is not None:
        return _decide_by_alert(seen, seen.alert_received)
    if seen.ending is Ending.ABANDONED:
        return Outcome.UNDECIDED
    if is_not_tls(seen.first_bytes):
        return Outcome.NOT_TLS
    if seen.ending is Ending.TIMEOUT:
        return Outcome.HANDSHAKE_TIMEOUT
    if seen.ending is Ending.TLS:
        return _decide_by_error(seen)
    if seen.ending in _CLOSES:
        return _decide_by_close(seen)
    return Outcome.TLS_ERROR


def is_not_tls(first_bytes: bytes) -> bool:
    """Whether an answer to a ClientHello that begins so cannot be TLS (record type, then version 3.x)."""
    if not first_bytes:
        return False
    return first_bytes[0] not in _TLS_RECORD_TYPES or (len(first_bytes) > 1 and first_bytes[1] != 3)


def began_answer(seen: Observation) -> bool:
    """Whether the upstream began its handshake. OpenSSL tells of a message only when the next one comes."""
    return seen.stage >= Stage.HELLO_RECEIVED or seen.first_bytes[:1] == _HANDSHAKE_RECORD


def is_certain(seen: Observation) -> bool:
    """False where the outcome is inferred from a close that gave no reason."""
    return not (
        seen.stage is Stage.FINISHED_SENT
        and seen.alert_received is None
        and not seen.verify_code
        and seen.ending in _CLOSES
    )


def _decide_by_alert(seen: Observation, alert: int) -> Outcome:
    asked = seen.certificate_requested
    if not asked:
        # Whatever it is about, it is not about a certificate of ours: access_denied may be a firewall's.
        return _OTHER_ALERTS.get(alert, Outcome.TLS_ERROR)
    if alert in _CERTIFICATE_ALERTS:
        outcome = _CERTIFICATE_ALERTS[alert]
    elif alert == _HANDSHAKE_FAILURE:
        # "No shared parameters" is said before the upstream asks for a certificate; after it did, this
        # is how a TLS 1.2 upstream says that it does not like the certificate, or the lack of one.
        outcome = Outcome.CLIENT_CERT_REJECTED
    else:
        return _OTHER_ALERTS.get(alert, Outcome.TLS_ERROR)
    if not seen.certificate_sent:
        return Outcome.CLIENT_CERT_REQUIRED
    return outcome


def _decide_by_error(seen: Observation) -> Outcome:
    error = seen.error.lower()
    if any(words in error for words in _PROTOCOL_ERRORS):
        return Outcome.PROTOCOL_MISMATCH
    if any(words in error for words in _PARAMETER_ERRORS):
        return Outcome.NO_SHARED_PARAMETERS
    return Outcome.TLS_ERROR


def _decide_by_close(seen: Observation) -> Outcome:
    if seen.stage is not Stage.FINISHED_SENT or not seen.certificate_requested:
        return Outcome.CLOSED_IN_HANDSHAKE
    return Outcome.CLIENT_CERT_REJECTED if seen.certificate_sent else Outcome.CLIENT_CERT_REQUIRED
