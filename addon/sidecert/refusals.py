"""The words with which an exchange refuses a call: what happened, whether the request can have been
processed, and what to do."""

from __future__ import annotations

import time
from dataclasses import replace
from math import ceil

from sidecert.circuit import CircuitOpen
from sidecert.config import TimeoutsConfig
from sidecert.errors import Reason, Refusal
from sidecert.evidence import evidence
from sidecert.explain import Verdict, explain
from sidecert.generation import Upstream
from sidecert.outcome import Observation, Outcome, is_certain

_TIMEOUTS = frozenset((Outcome.CONNECT_TIMEOUT, Outcome.HANDSHAKE_TIMEOUT))
_NOT_SENT = "No byte of the request was sent"
_MAY_BE = "the request may have been processed"


def circuit_open(error: CircuitOpen, upstream: Upstream, *, sent_before: bool = False) -> Refusal:
    """No attempt was made, since so many have failed; tells of the last as its own call was told.

    `sent_before`: the request went out on another connection before.
    """
    # Of that call bytes may have been sent; it is not this one.
    last = _explain(replace(error.seen, request_sent=False), error.outcome, upstream)
    if error.wait:
        then = f"the first call in {error.wait:.1f} s tries again"
    else:
        then = "another call is trying just now"
    sent = f"Before this it went out on a connection that then ended: {_MAY_BE}" if sent_before else _NOT_SENT
    return Refusal.of(
        Reason.CIRCUIT_OPEN,
        f"No connection was opened for this call, since {_attempts(error.failures)} to open one to "
        f"{upstream.label} failed. {sent}. The last came to {error.outcome.value}: {last.cause}",
        f"{last.remedy} Calls try again by themselves after `Retry-After`, and at once after a reload that "
        "changes the route or its files.",
        evidence=(
            f"{_attempts(error.failures)} failed, the last of them {error.ago:.1f} s ago with "
            f"{error.outcome.value}",
            *last.evidence,
            then,
        ),
        retry_after=max(1, ceil(error.wait)),
    )


def _attempts(failures: int) -> str:
    return "the last attempt" if failures == 1 else f"the last {failures} attempts"


def handshake_failed(
    seen: Observation, outcome: Outcome, upstream: Upstream, *, sent_before: bool = False
) -> Refusal:
    """An attempt to open a connection to `upstream` failed.

    `sent_before`: the request went out on another one before.
    """
    verdict = _explain(seen, outcome, upstream)
    detail = f"{verdict.cause} {_processed(seen, outcome, sent_before)}."
    return Refusal(status_of(outcome), outcome.value, verdict.title, detail, verdict.remedy, verdict.evidence)


def _explain(seen: Observation, outcome: Outcome, upstream: Upstream) -> Verdict:
    return explain(
        outcome,
        seen,
        upstream=upstream.label,
        server_name=upstream.server_name,
        credential=upstream.route.credential_id,
        certificate=upstream.route.own,
        now=time.time(),
    )


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
    if outcome.blames_our_certificate and is_certain(seen):
        # A TLS stack gives nothing to its application before it has accepted the certificate.
        return "Bytes of the request had been sent, but were not processed: the refusal came before them"
    return f"Bytes of the request had been sent: {_MAY_BE}"


def body_stalled(timeouts: TimeoutsConfig, *, sent: bool) -> Refusal:
    """The caller stopped in the middle of the request's body."""
    return Refusal.of(
        Reason.BAD_REQUEST,
        f"The request's body stopped for {timeouts.stall:g} s before its end. {_of_a_part(sent)}.",
        "Send the body without such pauses, or raise `upstream.timeouts.stall` of the route.",
    )


def body_malformed(error: Exception, *, sent: bool) -> Refusal:
    """The request's chunks make no sense."""
    words = str(error).rstrip(".")
    return Refusal.of(
        Reason.BAD_REQUEST,
        f"The request's body is malformed: {words}. {_of_a_part(sent)}.",
        "Correct the tool that sends it, or let it send the body with a Content-Length.",
    )


def _of_a_part(sent: bool) -> str:
    return f"Its beginning had been sent: {_MAY_BE}" if sent else _NOT_SENT


def upstream_silent(upstream: Upstream, seen: Observation | None) -> Refusal:
    """The whole request went out, and no answer came; `seen` is its connection."""
    limit = upstream.route.config.upstream.timeouts.response
    return _timed_out(
        f"{upstream.label} took the request and sent no answer within {limit:g} s; {_MAY_BE}.",
        "`upstream.timeouts.response`",
        _seen(upstream, seen, "the whole request was sent", f"no byte of an answer came for {limit:g} s"),
    )


def upstream_stuck(upstream: Upstream, seen: Observation | None) -> Refusal:
    """The upstream does not read the rest of the request's body."""
    limit = upstream.route.config.upstream.timeouts.stall
    return _timed_out(
        f"{upstream.label} stopped reading the request for {limit:g} s; {_MAY_BE}.",
        "`upstream.timeouts.stall`",
        _seen(
            upstream, seen, "part of the request was sent", f"nothing more of it was taken for {limit:g} s"
        ),
    )


def _timed_out(detail: str, setting: str, evidence: tuple[str, ...]) -> Refusal:
    remedy = f"Find out why the upstream is slow, or raise {setting} of the route."
    return Refusal.of(Reason.RESPONSE_TIMEOUT, detail, remedy, evidence=evidence)


def upstream_closed(upstream: Upstream, seen: Observation | None, *, sent: bool) -> Refusal:
    """The connection ended between the request and its answer, or just before the request."""
    if not sent:
        return Refusal.of(
            Reason.UPSTREAM_CLOSED,
            f"{upstream.label} closed the connection as soon as it stood. {_NOT_SENT}.",
            "Look into the upstream's log. The request can safely be sent again.",
            evidence=_seen(upstream, seen, "it ended before the request could be sent"),
        )
    return Refusal.of(
        Reason.UPSTREAM_CLOSED,
        f"{upstream.label} closed the connection after the request was sent and before an answer; {_MAY_BE}.",
        "Look into the upstream's log. Send the request again only if it may be done twice.",
        evidence=_seen(
            upstream, seen, "the request was sent", "the connection ended before a byte of an answer"
        ),
    )


def bad_answer(upstream: Upstream, seen: Observation | None, error: Exception) -> Refusal:
    """The answer is malformed or ambiguous."""
    words = str(error).rstrip(".")
    return Refusal.of(
        Reason.UPSTREAM_BAD_ANSWER,
        f"The answer of {upstream.label} cannot be passed on: {words}.",
        f"Tell those who run {upstream.host}; {_MAY_BE}.",
        evidence=_seen(upstream, seen, "the request was sent"),
    )


def draining(*, sent: bool) -> Refusal:
    """The sidecar ends, and the call's answer has not begun."""
    processed = f"Bytes of the request had been sent: {_MAY_BE}" if sent else _NOT_SENT
    return Refusal.of(
        Reason.DRAINING,
        f"The sidecar was told to end, and the time for calls in flight is over. {processed}.",
        "Send the request again only if it may be done twice." if sent else "Send the request again.",
        retry_after=1,
    )


def internal(*, sent: bool) -> Refusal:
    """Our own fault."""
    processed = f"Bytes of the request had been sent: {_MAY_BE}" if sent else _NOT_SENT
    return Refusal.of(
        Reason.INTERNAL,
        f"An error of sidecert's own; the log has the details. {processed}.",
        "Report it, with the lines of the log that have the same `request_id`.",
    )


def _seen(upstream: Upstream, seen: Observation | None, *then: str) -> tuple[str, ...]:
    """What was seen of the handshake, where the connection is known, and what came then."""
    before = () if seen is None else evidence(seen, upstream.route.own, time.time())
    return (*before, *then)
