"""The words with which an exchange refuses a call: what happened, whether the request can have been
processed, and what to do."""

from __future__ import annotations

import time

from sidecert.config import TimeoutsConfig
from sidecert.errors import Reason, Refusal
from sidecert.explain import explain
from sidecert.generation import Upstream
from sidecert.outcome import Observation, Outcome, is_certain

_TIMEOUTS = frozenset((Outcome.CONNECT_TIMEOUT, Outcome.HANDSHAKE_TIMEOUT))
_NOT_SENT = "No byte of the request was sent"
_MAY_BE = "the request may have been processed"


def handshake_failed(
    seen: Observation, outcome: Outcome, upstream: Upstream, *, sent_before: bool = False
) -> Refusal:
    """An attempt to open a connection to `upstream` failed.

    `sent_before`: the request went out on another one before.
    """
    credential = upstream.route.credential
    verdict = explain(
        outcome,
        seen,
        upstream=upstream.label,
        server_name=upstream.server_name,
        credential=upstream.route.credential_id,
        certificate=None if credential is None else credential.own,
        now=time.time(),
    )
    detail = f"{verdict.cause} {_processed(seen, outcome, sent_before)}."
    return Refusal(status_of(outcome), outcome.value, verdict.title, detail, verdict.remedy, verdict.evidence)


def status_of(outcome: Outcome) -> int:
    """The status of an answer that tells of a failed attempt."""
    return 504 if outcome in _TIMEOUTS else 502


def _processed(seen: Observation, outcome: Outcome, sent_before: bool) -> str:
    """Whether the request can have been processed, although the attempt came to nothing."""
    if sent_before:
        return f"Before this attempt it went out on a connection that then ended: {_MAY_BE}"
    if not seen.request_sent:
        return _NOT_SENT
    if seen.afterwards:
        return f"It had the request, or its beginning, when it asked for that: {_MAY_BE}"
    if outcome.startswith("client_cert_") and is_certain(seen):
        # A TLS stack gives nothing to its application before it has accepted the certificate.
        return "Bytes of the request had been sent, but were not processed: the refusal came before them"
    return f"Bytes of the request had been sent: {_MAY_BE}"


def body_stalled(timeouts: TimeoutsConfig, *, sent: bool) -> Refusal:
    """The caller stopped in the middle of the request's body."""
    return Refusal.of(
        Reason.BAD_REQUEST,
        f"the request's body stopped for {timeouts.stall:g} s before its end; {_of_a_part(sent)}",
        "send the body without such pauses, or raise upstream.timeouts.stall of the route",
    )


def body_malformed(error: Exception, *, sent: bool) -> Refusal:
    """The request's chunks make no sense."""
    return Refusal.of(Reason.BAD_REQUEST, f"the request's body is malformed: {error}; {_of_a_part(sent)}")


def _of_a_part(sent: bool) -> str:
    if not sent:
        return _NOT_SENT.lower()
    return f"its beginning had been sent: {_MAY_BE}"


def upstream_silent(timeouts: TimeoutsConfig) -> Refusal:
    """The whole request went out, and no answer came."""
    return _timed_out(f"took the request and sent no answer within {timeouts.response:g} s")


def upstream_stuck(timeouts: TimeoutsConfig) -> Refusal:
    """The upstream does not read the rest of the request's body."""
    return _timed_out(f"stopped reading the request for {timeouts.stall:g} s")


def _timed_out(what: str) -> Refusal:
    return Refusal.of(
        Reason.RESPONSE_TIMEOUT,
        f"the upstream {what}; it may have processed it",
        "find out why the upstream is slow, or raise upstream.timeouts of the route",
    )


def upstream_closed(*, sent: bool) -> Refusal:
    """The connection ended between the request and its answer, or just before the request."""
    if not sent:
        return Refusal.of(
            Reason.UPSTREAM_CLOSED,
            f"the upstream closed the connection as soon as it stood; {_NOT_SENT.lower()}",
            "look into the upstream's log; the request can safely be sent again",
        )
    return Refusal.of(
        Reason.UPSTREAM_CLOSED,
        "the upstream closed the connection after the request was sent and before any answer; it may have "
        "processed the request",
        "look into the upstream's log; send the request again only if it may be done twice",
    )


def bad_answer(error: Exception) -> Refusal:
    """The answer is malformed or ambiguous."""
    return Refusal.of(
        Reason.UPSTREAM_BAD_ANSWER,
        f"the upstream's answer cannot be passed on: {error}",
        "tell who runs the upstream; the request may have been processed",
    )


def internal(*, sent: bool) -> Refusal:
    """Our own fault."""
    return Refusal.of(
        Reason.INTERNAL,
        f"an error of sidecert's own; the log has the details; {_MAY_BE if sent else _NOT_SENT.lower()}",
        "report it, with the log",
    )
