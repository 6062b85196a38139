"""What was seen of an attempt to open an upstream connection, in words that fit a log and a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from sidecert.faults import faults
from sidecert.outcome import Ending, Observation, Stage, began_answer, is_not_tls
from sidecert.presented import OwnCertificate
from sidecert.words import clean, listed, moment

_TLS13 = "TLSv1.3"
_MOST_CERTIFICATES = 3

# IANA's registry of TLS alerts, as far as TLS 1.2 and 1.3 use it.
_ALERTS = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    41: "no_certificate",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}
_CLOSES = {
    Ending.EOF: "closed the connection",
    Ending.CLOSE_NOTIFY: "closed the connection",
    Ending.RESET: "reset the connection",
}


def alert_name(number: int) -> str:
    """The registered name and the number of a TLS alert: "unknown_ca (48)"."""
    return f"{_ALERTS.get(number, 'unknown')} ({number})"


def evidence(seen: Observation, certificate: OwnCertificate | None, now: float) -> tuple[str, ...]:
    """What was seen, in the order of the wire, behind what speaks against our `certificate`.

    `now` is in epoch seconds, to judge validity by.
    """
    return tuple(
        (
            *(f"our certificate {fault.words}" for fault in faults(seen, certificate, now)),
            *_of_the_handshake(seen, certificate),
            *_of_the_end(seen),
        )
    )


def _of_the_handshake(seen: Observation, certificate: OwnCertificate | None) -> Iterator[str]:
    if seen.addresses and seen.stage is Stage.CONNECTING:
        yield f"addresses tried: {listed(seen.addresses)}"
    if seen.tls_version:
        yield f"{seen.tls_version} was agreed on"
    if seen.certificate_requested:
        have = "one" if certificate is None else certificate.describe()
        answer = f"we have {have}" if seen.certificate_sent else "we sent none"
        yield f"the upstream asked for a client certificate{_afterwards(seen)}, {answer}"
    elif seen.afterwards:
        yield "the upstream began another handshake on the open connection"
    elif seen.tls_version and (seen.tls_version == _TLS13 or seen.stage >= Stage.FINISHED_SENT):
        # Under TLS 1.2 the request comes after the upstream's certificate, which may be where we stopped.
        yield "the upstream did not ask for a client certificate"
    if seen.acceptable_cas:
        yield f"the CAs that the upstream accepts: {listed(seen.acceptable_cas)}"
        if seen.certificate_sent:
            yield f"of these, our certificate chains to {listed(seen.chains_to) or 'none'}"
    if seen.alert_received is not None:
        yield f"alert {alert_name(seen.alert_received)} {_when(seen)}"
    if seen.verify_code:
        yield f"check of the upstream's certificate: {clean(seen.verify_text)} (code {seen.verify_code})"
    for number, each in enumerate(seen.presented[:_MOST_CERTIFICATES]):
        names = f", for {listed(each.names)}" if each.names else ""
        which = "behind it" if number else "the upstream's certificate"
        dates = f"from {moment(each.not_before)} until {moment(each.not_after)}"
        yield f"{which}: {each.subject}, issued by {each.issuer}, {dates}{names}"
    if seen.alert_sent is not None:
        yield f"we sent the alert {alert_name(seen.alert_sent)}"
    if is_not_tls(seen.first_bytes):
        yield f"the upstream's first bytes: {ascii(seen.first_bytes)[1:]}"


def _of_the_end(seen: Observation) -> Iterator[str]:
    if seen.ending in _CLOSES:
        told = "" if seen.alert_received is not None else ", without an alert"
        yield f"the upstream {_CLOSES[seen.ending]} {_when(seen)}{told}"
    elif seen.ending is Ending.TIMEOUT:
        yield f"nothing for {seen.timeout:g} s {_when(seen)}"
    elif seen.ending is Ending.ABANDONED:
        before_all = seen.stage is Stage.HELLO_SENT and not began_answer(seen)
        yield "we left before any answer to our first message" if before_all else f"we left {_when(seen)}"
    if seen.error and not seen.verify_code:
        yield f"{'OpenSSL says' if seen.ending is Ending.TLS else 'error'}: {clean(seen.error)}"
    if seen.request_sent and seen.stage is not Stage.PROVEN:
        yield "bytes of the request had been sent by then"


def _afterwards(seen: Observation) -> str:
    if not seen.afterwards:
        return ""
    how = "post-handshake authentication" if seen.tls_version == _TLS13 else "renegotiation"
    because = ", once it knew the request's path" if seen.request_sent else ""
    return f" after the handshake ({how}){because}"


def _when(seen: Observation) -> str:
    if seen.afterwards:
        return "after that" if seen.certificate_requested else "in the other handshake"
    if seen.stage is Stage.FINISHED_SENT and seen.tls_version != _TLS13:
        return "in the handshake, after our part of it"  # before TLS 1.3 the upstream's part comes last
    return {
        Stage.RESOLVING: "while its name was looked up",
        Stage.CONNECTING: "while connecting",
        Stage.HELLO_SENT: "in the handshake" if began_answer(seen) else "in answer to our first message",
        Stage.HELLO_RECEIVED: "in the handshake",
    }.get(seen.stage, "after the handshake")
