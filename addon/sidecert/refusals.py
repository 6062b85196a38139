"""The words with which an exchange refuses a call: what happened, whether the request can have been
processed, and what to do."""

from __future__ import annotations

from sidecert.config import TimeoutsConfig
from sidecert.errors import Reason, Refusal
from sidecert.explain import explain
from sidecert.generation import Upstream
from sidecert.outcome import Observation, Outcome

_TIMEOUTS = frozenset((Outcome.CONNECT_TIMEOUT, Outcome.HANDSHAKE_TIMEOUT))


def handshake_failed(seen: Observation, outcome: Outcome, upstream: Upstream) -> Refusal:
    """An attempt to open a connection to `upstream` failed, so nothing of the request was processed."""
    credential = upstream.route.credential
    verdict = explain(
        outcome,
        seen,
        upstream=upstream.label,
        server_name=upstream.server_name,
        credential=upstream.route.credential_id,
        certificate=None if credential is None else credential.subject,
    )
    status = 504 if outcome in _TIMEOUTS else 502
    return Refusal(status, outcome.value, verdict.title, verdict.cause, verdict.remedy, verdict.evidence)


def body_stalled(timeouts: TimeoutsConfig) -> Refusal:
    """The caller stopped in the middle of the request's body."""
    return Refusal.of(
        Reason.BAD_REQUEST,
        f"the request's body stopped for {timeouts.stall:g} s before its end",
        "send the body without such pauses, or raise upstream.timeouts.stall of the route",
    )


def body_malformed(error: Exception) -> Refusal:
    """The request's chunks make no sense."""
    return Refusal.of(Reason.BAD_REQUEST, f"the request's body is malformed: {error}")


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


def upstream_closed() -> Refusal:
    """The connection ended between the request and its answer."""
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


def internal() -> Refusal:
    """Our own fault."""
    return Refusal.of(
        Reason.INTERNAL, "an error of sidecert's own; the log has the details", "report it, with the log"
    )
