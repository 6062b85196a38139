"""An outcome in words: its cause, what was seen on the wire, and the one next thing to do about it.

CRT, KEY and TRUSTSTORE in its commands stand for files of the reader's. Pure. A new `Outcome` needs an entry
in `_WORDS`; a test notices when it is missing. What peers really mean by their alerts is measured, see
DESIGN.md; what other tools say of each is in `known_as`.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from sidecert.evidence import evidence
from sidecert.faults import Fault, append_the_issuer, faults
from sidecert.outcome import Ending, Observation, Outcome, began_answer, is_certain
from sidecert.presented import OwnCertificate, Presented
from sidecert.words import clean, listed, moment

_HANDSHAKE_FAILURE, _BAD_CERTIFICATE, _CERTIFICATE_UNKNOWN = 40, 42, 46
_ACCESS_DENIED, _DECRYPT_ERROR, _UNRECOGNIZED_NAME = 49, 51, 112
# X509_V_ERR_* of OpenSSL, which never change their numbers.
_NOT_YET_VALID, _SELF_SIGNED_LEAF, _REVOKED, _WRONG_PURPOSE = 9, 18, 23, 26
_TOO_WEAK = (66, 67, 68)

_REFUSED = "The upstream refused the client certificate"
MAPPING = "in webMethods Integration Cloud: Settings > Client Certificate, where it is mapped to a user"
"""Where an upstream's administrators find the client certificates that it takes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome with its cause, evidence and remedy. None of them holds a secret or a byte of a request."""

    outcome: Outcome
    title: str
    cause: str
    evidence: tuple[str, ...]
    remedy: str
    certain: bool
    """False where the outcome is inferred, such as from a close that gave no reason."""


@dataclass(frozen=True, slots=True)
class Case:
    """What all words about a refusal are made of; `explain_http` has a case of its own."""

    seen: Observation
    upstream: str
    credential: str
    certificate: OwnCertificate | None
    now: float

    @property
    def sent(self) -> str:
        own = "" if self.certificate is None else f" ({self.certificate.subject})"
        return f"the certificate of the credential {self.credential}{own}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        return faults(self.seen, self.certificate, self.now)


@dataclass(frozen=True, slots=True)
class _Case(Case):
    server_name: str

    @property
    def theirs(self) -> Presented | None:
        """The upstream's own certificate, where it was looked at."""
        return next(iter(self.seen.presented), None)

    @property
    def host(self) -> str:
        return self.upstream.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> str:
        return self.upstream.rpartition(":")[2]

    @property
    def connect(self) -> str:
        """A command that shakes hands with the upstream without sidecert; it waits for its input's end."""
        where = shlex.join(("-connect", self.upstream, "-servername", self.server_name))
        return f"openssl s_client {where}"

    @property
    def look(self) -> str:
        """A command that shows what the upstream presents."""
        return f"{self.connect} -showcerts </dev/null"


_Words = tuple[str, str, str]  # title, cause, remedy


def explain(
    outcome: Outcome,
    seen: Observation,
    *,
    upstream: str,
    server_name: str,
    credential: str,
    certificate: OwnCertificate | None,
    now: float,
) -> Verdict:
    """The verdict on one attempt.

    `upstream` is `host:port`; `credential` an id or `none`; `certificate` is its certificate; `now`, in epoch
    seconds, is what validity is judged by.
    """
    case = _Case(seen, upstream, credential, certificate, now, server_name)
    # Without a certificate nothing of it can be wrong, whatever the alert says.
    misses = certificate is None and outcome.blames_our_certificate
    title, cause, remedy = (_required if misses else _WORDS[outcome])(case)
    return Verdict(outcome, title, cause, evidence(seen, certificate, now), remedy, is_certain(seen))


def _ok(case: _Case) -> _Words:
    given = "a call without a client certificate" if case.certificate is None else case.sent
    asked = f"accepted {given}" if case.seen.certificate_requested else "asked for no client certificate"
    return "The handshake succeeded", f"{case.upstream} {asked}.", ""


def _required(case: _Case) -> _Words:
    title = "The upstream requires a client certificate"
    if not case.seen.certificate_sent:
        return (
            title,
            f"{case.upstream} asked for a client certificate and went no further without one. "
            "The call brings none: its credential is `none`.",
            f"Set `credential` of the route to one that {case.upstream} accepts: the CRT and KEY file, or "
            "the PFX file, that Postman has under Settings > Certificates.",
        )
    return (
        title,
        f"{case.upstream} says that no certificate came, although credential {case.credential} holds one. "
        "OpenSSL sends none where the upstream names no signature scheme that the key can serve.",
        f"Use a certificate with an RSA (2048 bits) or EC (secp256r1) key for credential {case.credential}.",
    )


def _unknown_ca(case: _Case) -> _Words:
    own = case.certificate
    java = "`keytool -importcert -alias NAME -file ca.pem -keystore TRUSTSTORE` where it is a Java service"
    issuer = "the CA of that certificate" if own is None else own.issuer
    remedy = f"have {issuer} added to those that {case.upstream} trusts ({MAPPING}; {java})."
    if case.seen.acceptable_cas:
        remedy = f"use a certificate from one of the CAs that {case.upstream} lists, or {remedy}"
    if own is not None and own.may_miss_an_intermediate and not case.seen.chains_to:
        remedy = f"{append_the_issuer(own)}; else {remedy}"
    cause = f"{case.upstream} does not know the CA that issued {case.sent}, or an intermediate is missing."
    return _REFUSED, _with_faults(case, cause), remedy[0].upper() + remedy[1:]


def _with_faults(case: _Case, cause: str) -> str:
    """`cause`, and what is known to be wrong with our certificate."""
    return " ".join((cause, *(f"It {fault.words}." for fault in case.faults)))


def _expired(case: _Case) -> _Words:
    own = case.certificate
    wrong = [] if own is None else [each for each in (own.leaf, *own.intermediates) if each.outside(case.now)]
    if wrong and case.faults:
        fault = case.faults[0]  # dates come first
        cause = f"{case.upstream} finds {case.sent} expired: it {fault.words}."
        return _REFUSED, cause, fault.remedy
    until = "" if own is None else f" By this machine's clock it is valid until {moment(own.leaf.not_after)}."
    return (
        _REFUSED,
        f"{case.upstream} finds {case.sent} expired, or a CA above it, or its clock is wrong.{until}",
        f"Ask those who run {case.upstream} what its clock says, and whether the CA that it has is expired. "
        f"If the certificate was renewed, put it into the files of `credentials.{case.credential}`; "
        "what a file holds: `openssl x509 -in CRT -noout -dates`.",
    )


def _revoked(case: _Case) -> _Words:
    return (
        _REFUSED,
        f"{case.upstream} says that {case.sent} is revoked.",
        f"Get a new certificate from the CA and put it into the files of `credentials.{case.credential}`.",
    )


def _unsupported(case: _Case) -> _Words:
    cause = f"{case.upstream} does not take a certificate of this kind from a caller: {case.sent}."
    if case.faults:
        cause = _with_faults(case, cause)
    else:
        cause += " Mostly its extended key usage lacks clientAuth, or its kind of key is not known there."
    return (
        _REFUSED,
        cause,
        f"Have the certificate of `credentials.{case.credential}` issued again with extendedKeyUsage = "
        "clientAuth by name (anyExtendedKeyUsage is not enough for upstreams built on OpenSSL); what it has "
        "now: `openssl x509 -in CRT -noout -ext extendedKeyUsage`.",
    )


_REASONS = {
    None: "It closed the connection without a reason, just when it had seen the certificate.",
    _HANDSHAKE_FAILURE: "It gives no reason; this is what TLS 1.2 upstreams say of any such certificate.",
    _BAD_CERTIFICATE: "It gives no reason; Go, Caddy and some Java upstreams say this whatever is wrong, "
    "and those built on OpenSSL of a certificate that is not valid yet.",
    _CERTIFICATE_UNKNOWN: "It gives no reason; Java upstreams say this whatever is wrong.",
    _ACCESS_DENIED: "The certificate is valid there, but has no access.",
    _DECRYPT_ERROR: "It could not check our signature with the certificate's key.",
}


def _rejected(case: _Case) -> _Words:
    seen = case.seen
    reason = _REASONS.get(seen.alert_received, "It gives no reason.")
    title = _REFUSED if is_certain(seen) else "The upstream probably refused the client certificate"
    cause = (
        f"{case.upstream} {'refused' if is_certain(seen) else 'most likely refused'} {case.sent}. {reason}"
    )
    first = f"{case.faults[0].remedy} Else ask" if case.faults else "Ask"
    return (
        title,
        _with_faults(case, cause),
        f"{first} those who run {case.upstream} what its log says at this time, and whether this certificate "
        f"is known there ({MAPPING}). To show them the same without sidecert: `{case.connect} -cert CRT -key "
        "KEY`.",
    )


def _untrusted(case: _Case) -> _Words:
    title = "The upstream's certificate is not trusted"
    name_file = "Name a PEM file in `upstream.trust` of the route that holds"
    match case.seen.verify_code:
        case code if code == _SELF_SIGNED_LEAF:
            cause = f"The certificate of {case.upstream} is self-signed."
            remedy = f"{name_file} this very certificate, once you have checked it: `{case.look}`."
        case code if code == _REVOKED:
            cause = f"The certificate of {case.upstream} is revoked."
            remedy = f"Those who run {case.upstream} must install a new certificate."
        case code if code == _WRONG_PURPOSE:
            cause = f"The certificate of {case.upstream} is not meant for a TLS server."
            remedy = f"Those who run {case.upstream} must install one with extendedKeyUsage = serverAuth."
        case code if code in _TOO_WEAK:
            cause = f"A key or signature in the certificate chain of {case.upstream} is too weak for OpenSSL."
            remedy = f"Those who run {case.upstream} must install one of RSA 2048 bits or more, with SHA-256."
        case _:
            last = case.seen.presented[-1:]
            ca = last[0].issuer if last else "the CA of the upstream's certificate"
            issued = f" ({last[0].subject} is issued by {ca})" if last else ""
            cause = (
                f"No CA of the route's trust issued the certificate of {case.upstream}{issued}, or the "
                "upstream does not send its intermediates."
            )
            remedy = (
                f"{name_file} {ca}; see the upstream's chain: `{case.look}`. Where a Java tool trusts it: "
                "`keytool -exportcert -rfc -alias NAME -keystore TRUSTSTORE > ca.pem`."
            )
    return title, cause, remedy


def _server_expired(case: _Case) -> _Words:
    outside = [each for each in case.seen.presented if each.outside(case.now)]
    which = f"the certificate of {case.upstream}, or one of its chain,"
    if outside:
        which = f"{outside[0].subject} {outside[0].outside(case.now)}:"
        which += (
            f" the certificate of {case.upstream}"
            if outside[0] is case.theirs
            else f" a CA of {case.upstream}"
        )
    if case.seen.verify_code == _NOT_YET_VALID:
        return (
            "The upstream's certificate is not valid yet",
            f"By this machine's clock {which} is too new.",
            "Check the clock of this machine.",
        )
    look = "" if outside else f" Its dates: `{case.connect} </dev/null | openssl x509 -noout -dates`."
    return (
        "The upstream's certificate is expired",
        f"By this machine's clock {which} is past its end.",
        f"Those who run {case.upstream} must renew it; check the clock of this machine as well.{look}",
    )


def _name_mismatch(case: _Case) -> _Words:
    title = "The upstream's certificate is for another name"
    cause = f"The certificate of {case.upstream} does not name {case.server_name} in its subjectAltName"
    if case.theirs is None:
        return (
            title,
            f"{cause}.",
            "Set `upstream.server_name` of the route to a name in the certificate, if it is the right "
            f"upstream: `{case.connect} </dev/null | openssl x509 -noout -ext subjectAltName`.",
        )
    if not case.theirs.names:
        return (
            title,
            f"{cause}, which has no name at all. Its subject ({case.theirs.subject}) does not count.",
            f"Those who run {case.upstream} must have it issued again with its name in the subjectAltName.",
        )
    return (
        title,
        f"{cause}, but {listed(case.theirs.names)}.",
        "Check that it is the right upstream (`upstream.host` and `upstream.port` of the route). If it is, "
        f"set `upstream.server_name` to a name that it has: {listed(case.theirs.names)}.",
    )


def _protocol_mismatch(case: _Case) -> _Words:
    return (
        "The upstream speaks no TLS version that the route allows",
        f"{case.upstream} and the route have no TLS version in common.",
        "Allow both in `upstream.tls` of the route ({min: 1.2, max: 1.3}); if it does already, the upstream "
        f"must learn TLS 1.2: `{case.connect} -tls1_2 </dev/null` fails too.",
    )


def _no_shared_parameters(case: _Case) -> _Words:
    return (
        "The upstream and sidecert share no TLS parameters",
        f"{case.upstream} and OpenSSL's default security level have no cipher suite, group or signature "
        "scheme in common. Some upstreams say this too of a server name they do not know.",
        f"Those who run {case.upstream} must allow an ECDHE suite with AES-GCM; check `upstream.server_name` "
        f"({case.server_name}) as well.",
    )


def _not_tls(case: _Case) -> _Words:
    spoken = "something that is not TLS"
    for start, name in (
        (b"HTTP/", "plain HTTP"),
        (b"<", "plain HTTP"),
        (b"SSH-", "SSH"),
        (b"220", "SMTP or FTP"),
    ):
        if case.seen.first_bytes.startswith(start):
            spoken = name
            break
    return (
        "The upstream does not speak TLS",
        f"{case.upstream} answered with {spoken}.",
        "Set `upstream.port` of the route to the port where the upstream takes TLS with client certificates "
        "(mostly 8443).",
    )


def _closed(case: _Case) -> _Words:
    first = not began_answer(case.seen)
    return (
        "The upstream closed the connection in the handshake",
        f"{case.upstream} closed the connection {'at once' if first else 'in mid-handshake'} and gave no "
        "reason. It may be a proxy or firewall in between, a load balancer with nothing behind it, or a "
        "server name that it does not know.",
        f"Check `upstream.host`, `upstream.port` and `upstream.server_name` ({case.server_name}) of the "
        f"route; see whether it closes without sidecert too: `{case.look}`; then ask those who run it.",
    )


def _handshake_timeout(case: _Case) -> _Words:
    return (
        "The upstream did not finish the handshake in time",
        f"{case.upstream} took the connection, but the handshake was not over after {case.seen.timeout:g} s: "
        "it is overloaded, or waits for something other than TLS.",
        "Check that `upstream.port` of the route is a TLS port; if it is just slow, raise "
        "`upstream.timeouts.handshake`.",
    )


def _connect_refused(case: _Case) -> _Words:
    return (
        "The upstream refused the connection",
        f"Nothing listens at {case.upstream}, or a firewall refuses the connection.",
        "Check that the upstream runs, and `upstream.host` and `upstream.port` of the route (in a "
        f"container, localhost is the container): `nc -vz {shlex.quote(case.host)} {case.port}` where "
        "sidecert runs.",
    )


def _connect_timeout(case: _Case) -> _Words:
    return (
        "The upstream could not be reached in time",
        f"No connection to {case.upstream} within {case.seen.timeout:g} s: mostly a firewall that drops it.",
        f"Have the way from here to {case.upstream} opened: sidecert connects directly, and not through the "
        "proxy that Postman or `https_proxy` may use. If it is just slow, raise `upstream.timeouts.connect` "
        "of the route.",
    )


def _dns_failed(case: _Case) -> _Words:
    late = case.seen.ending is Ending.TIMEOUT
    cause = f"no answer came within {case.seen.timeout:g} s" if late else "there is no such name"
    return (
        "The upstream's name could not be looked up",
        f"The name {case.host} gave no address here: {cause}, or name resolution does not work.",
        f"Check `upstream.host` of the route; then `getent hosts {shlex.quote(case.host)}` where sidecert "
        "runs. A name that only a proxy of yours can look up does not work here.",
    )


_OUT_OF_FILES = frozenset(os.strerror(number) for number in (errno.EMFILE, errno.ENFILE))


def _connect_failed(case: _Case) -> _Words:
    words = f": {clean(case.seen.error)}" if case.seen.error else ""
    remedy = f"Check this machine's network and its route to {case.host}."
    if case.seen.error in _OUT_OF_FILES:
        remedy = (
            "Every file and socket that this process or machine may have open is in use: raise the limit "
            "(`ulimit -n`, LimitNOFILE=), or lower `limits.connections` and `pool.max_connections`."
        )
    return "The upstream could not be reached", f"The connection to {case.upstream} failed{words}.", remedy


def _tls_error(case: _Case) -> _Words:
    if case.seen.alert_received == _UNRECOGNIZED_NAME:
        return (
            "The upstream does not know the server name",
            f"{case.upstream} has nothing for the name {case.server_name}.",
            "Set `upstream.server_name` of the route to a name that the upstream serves.",
        )
    return (
        "The TLS handshake failed",
        f"{case.upstream} and OpenSSL did not come to terms; the evidence has their words.",
        f"See whether it fails without sidecert too: `{case.look}`; then ask those who run {case.upstream}.",
    )


def _undecided(case: _Case) -> _Words:
    return (
        "The call ended before the upstream's verdict",
        f"The caller or sidecert left before {case.upstream} had accepted or refused.",
        "Call again and wait for the answer.",
    )


_WORDS: dict[Outcome, Callable[[_Case], _Words]] = {
    Outcome.OK: _ok,
    Outcome.CLIENT_CERT_REQUIRED: _required,
    Outcome.CLIENT_CERT_UNKNOWN_CA: _unknown_ca,
    Outcome.CLIENT_CERT_EXPIRED: _expired,
    Outcome.CLIENT_CERT_REVOKED: _revoked,
    Outcome.CLIENT_CERT_UNSUPPORTED: _unsupported,
    Outcome.CLIENT_CERT_REJECTED: _rejected,
    Outcome.SERVER_UNTRUSTED: _untrusted,
    Outcome.SERVER_EXPIRED: _server_expired,
    Outcome.SERVER_NAME_MISMATCH: _name_mismatch,
    Outcome.PROTOCOL_MISMATCH: _protocol_mismatch,
    Outcome.NO_SHARED_PARAMETERS: _no_shared_parameters,
    Outcome.NOT_TLS: _not_tls,
    Outcome.CLOSED_IN_HANDSHAKE: _closed,
    Outcome.HANDSHAKE_TIMEOUT: _handshake_timeout,
    Outcome.CONNECT_REFUSED: _connect_refused,
    Outcome.CONNECT_TIMEOUT: _connect_timeout,
    Outcome.DNS_FAILED: _dns_failed,
    Outcome.CONNECT_FAILED: _connect_failed,
    Outcome.TLS_ERROR: _tls_error,
    Outcome.UNDECIDED: _undecided,
}
