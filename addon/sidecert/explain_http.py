"""An answer that refuses the client certificate, in words: as `explain` does it for a failed handshake.

Pure. A new `Signature` needs an entry in `_WORDS`; a test notices when it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecert.evidence import evidence
from sidecert.explain import MAPPING, Case
from sidecert.http_verdict import Signature
from sidecert.outcome import Observation
from sidecert.presented import OwnCertificate
from sidecert.words import clean

_Words = tuple[str, str, str]  # what the answer says, cause, remedy


@dataclass(frozen=True, slots=True)
class AnswerVerdict:
    """What an answer that refuses the certificate means. None of it holds a byte of a request."""

    signature: Signature
    title: str
    cause: str
    evidence: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class _Case(Case):
    @property
    def ask(self) -> str:
        return f"Ask those who run {self.upstream} what its log says at this time"

    @property
    def try_it(self) -> str:
        """A command that makes such a call without sidecert."""
        return f"curl -v --cert CRT --key KEY https://{self.upstream}/"


def explain_answer(
    signature: Signature,
    seen: Observation,
    *,
    status: int,
    server: str,
    upstream: str,
    credential: str,
    certificate: OwnCertificate | None,
    now: float,
) -> AnswerVerdict:
    """The verdict on an answer with `status` from `upstream`, over the connection that `seen` describes.

    `server` is its Server header; `credential` an id or `none`; `certificate` is its certificate; `now`, in
    epoch seconds, is what validity is judged by.
    """
    case = _Case(seen, upstream, credential, certificate, now)
    said, cause, remedy = _WORDS[signature](case)
    if certificate is None:  # without a certificate nothing of it can be wrong
        _, cause, remedy = _none_came(said)(case)
    elif not seen.certificate_requested and signature not in NONE_CAME:
        cause, remedy = _another(case)
    by = f" (Server: {clean(server)})" if server else ""
    seen_by_us = (*evidence(seen, certificate, now), f"the upstream answered {status}{by}: {said}")
    return AnswerVerdict(
        signature, "The upstream's answer refuses the client certificate", cause, seen_by_us, remedy
    )


def _none_came(said: str, not_asked: str = "") -> Callable[[_Case], _Words]:
    """`not_asked` is the remedy where the handshake went without a certificate for a known reason."""

    def words(case: _Case) -> _Words:
        cause = f"{case.upstream} wants a client certificate for this call and has seen none."
        if case.certificate is None:
            return (
                said,
                f"{cause} The route sends none: its credential is `none`.",
                f"Set `credential` of the route to one that {case.upstream} accepts.",
            )
        if not case.seen.certificate_requested:
            return (
                said,
                f"{cause} It did not ask for one in the handshake, so that {case.sent} was not sent.",
                not_asked
                or "Check `upstream.port`, `upstream.server_name` and `upstream.host_header` of the route: "
                "many upstreams ask for certificates under one name or port only. If they are right, "
                "something in front of the upstream ends TLS and does not ask: compare "
                f"`{case.try_it}`, then ask those who run it.",
            )
        return (
            said,
            f"{cause} It did ask in the handshake, where we have {case.sent} for it: its key may be of a "
            "kind that the upstream takes no signature of, or something in front of the upstream ends TLS "
            "and does not pass the certificate on.",
            f"See whether it is refused without sidecert too: `{case.try_it}`; then ask those who run "
            f"{case.upstream}, and any load balancer or CDN in front of it.",
        )

    return words


def _another(case: _Case) -> tuple[str, str]:
    return (
        f"{case.upstream} did not ask for a client certificate in the handshake, so it can mean {case.sent} "
        "only if it asked later. More likely it passes on what a service behind it says of another "
        "certificate: its own.",
        f"{case.ask}, and which certificate is meant.",
    )


def _refused(said: str, why: str = "") -> Callable[[_Case], _Words]:
    def words(case: _Case) -> _Words:
        cause = f"{case.upstream} let the handshake pass and then refused {case.sent}."
        ask = f"{case.ask}, and whether this certificate and its CA are known there ({MAPPING})."
        if case.faults:
            wrong = (f"It {fault.words}." for fault in case.faults)
            return (
                said,
                " ".join((cause, why, *wrong) if why else (cause, *wrong)),
                (f"{case.faults[0].remedy} Else: {ask}"),
            )
        return (
            said,
            f"{cause} {why or _NOT_TOLD}",
            f"{ask} Who issued it, for what and until when: "
            "`openssl x509 -in CRT -noout -subject -issuer -dates -ext extendedKeyUsage`.",
        )

    return words


_NOT_TOLD = (
    "It does not tell callers why: its CA is not known there, an intermediate is missing, or it is expired, "
    "revoked or not meant for callers (extendedKeyUsage clientAuth)."
)


def _expired(said: str) -> Callable[[_Case], _Words]:
    def words(case: _Case) -> _Words:
        cause = f"{case.upstream} finds {case.sent} expired or not yet valid"
        if case.faults:
            return said, f"{cause}: it {case.faults[0].words}.", case.faults[0].remedy
        return (
            said,
            f"{cause}, or its clock is wrong.",
            f"Put the renewed certificate into the files of `credentials.{case.credential}`.",
        )

    return words


def _no_user(said: str) -> Callable[[_Case], _Words]:
    def words(case: _Case) -> _Words:
        return (
            said,
            f"{case.upstream} trusts {case.sent}, but knows no user that it belongs to.",
            f"Have it mapped to a user there ({MAPPING}; in Tomcat's realms the user's name is the "
            "certificate's subject, as `openssl x509 -in CRT -noout -subject -nameopt RFC2253` writes it).",
        )

    return words


def _no_access(said: str) -> Callable[[_Case], _Words]:
    def words(case: _Case) -> _Words:
        return (
            said,
            f"{case.upstream} knows {case.sent}, but the account that it is mapped to there has no access.",
            f"Those who run {case.upstream} must map it to an account that may make this call, or give that "
            "account access (in IIS: iisClientCertificateMappingAuthentication).",
        )

    return words


def _after_the_handshake(case: _Case) -> _Words:
    return (
        "Reason: Cannot perform Post-Handshake Authentication.",
        f"Behind {case.upstream} an Apache asks for a client certificate for some paths only, after the "
        "handshake, and its caller did not offer that. sidecert does: something in between ends TLS, so that "
        f"{case.sent} did not get through.",
        f"Ask those who run {case.upstream} what is in front of that Apache: it must pass TLS through, or "
        "check the certificate itself.",
    )


_WORDS: dict[Signature, Callable[[_Case], _Words]] = {
    Signature.NGINX_400: _refused("The SSL certificate error"),
    Signature.NGINX_400_REQUIRED: _none_came("No required SSL certificate was sent"),
    Signature.IIS_403_7: _none_came(
        "403.7 - Forbidden: SSL client certificate is required.",
        "IIS asks after the handshake unless it is told otherwise, and sidecert lets it. Where it does not "
        "do so under TLS 1.3, set `upstream.tls: {max: 1.2}` of the route, so that it can renegotiate; or "
        "have it ask in the handshake: `netsh http add sslcert ... clientcertnegotiation=enable` there.",
    ),
    Signature.IIS_403_12: _no_access("403.12 - Forbidden: Mapper denied access."),
    Signature.IIS_403_13: _refused(
        "403.13 - Forbidden: Client certificate has been revoked on the Web server.",
        "It is revoked, or the upstream could not reach the list or service of its CA that would tell.",
    ),
    Signature.IIS_403_16: _refused(
        "403.16 - Forbidden: Client certificate is ill-formed or is not trusted by the Web server.",
        "The CA that issued it is not among the trusted roots there, an intermediate is missing, or those "
        "trusted roots hold a certificate that is no root (then Windows trusts no caller at all).",
    ),
    Signature.IIS_403_17: _expired("403.17 - Forbidden: Client certificate has expired or is not yet valid."),
    Signature.APACHE_403: _after_the_handshake,
    Signature.KONG_401: _refused("TLS certificate failed verification"),
    Signature.KONG_401_REQUIRED: _none_came("No required TLS certificate was sent"),
    Signature.TOMCAT_401: _no_user("Cannot authenticate with the provided credentials"),
    Signature.TOMCAT_401_REQUIRED: _none_came("No client certificate chain in this request"),
    Signature.TYK_403: _refused(
        "Certificate with SHA256 ... not allowed", "Its fingerprint is not among those that this API allows."
    ),
    Signature.TYK_403_REQUIRED: _none_came("Client TLS certificate is required"),
    Signature.HTTP_495: _refused("status 495, in nginx's numbers an SSL certificate error"),
    Signature.HTTP_496: _none_came("status 496, in nginx's numbers no SSL certificate"),
}

NONE_CAME = frozenset(
    (
        Signature.NGINX_400_REQUIRED,
        Signature.IIS_403_7,
        Signature.APACHE_403,
        Signature.KONG_401_REQUIRED,
        Signature.TOMCAT_401_REQUIRED,
        Signature.TYK_403_REQUIRED,
        Signature.HTTP_496,
    )
)
"""Those that say that there was no certificate, not that it was a bad one."""
