"""What the log says of a call: a line where sidecert answers it itself, an access line where asked for."""

from __future__ import annotations

import itertools
import logging
import os
import time
from typing import Any

from sidecert.config import host_port
from sidecert.errors import Refusal
from sidecert.explain_http import AnswerVerdict, explain_answer
from sidecert.generation import Upstream
from sidecert.http1 import SHOWN_HOST, SHOWN_PATH, RequestHead, asked
from sidecert.http_verdict import Signature, StartOfAnswer
from sidecert.outcome import Observation

_LOG = logging.getLogger("sidecert.calls")
_ACCESS = logging.getLogger("sidecert.access")
_UNUSUAL = 500
"""From this status on a refusal is a matter for whoever runs the sidecar, not only for the caller."""

_run = os.urandom(4).hex()
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Names a call in the log and in the answer: unique to this process and its number in it."""
    return f"{_run}-{next(_numbers)}"


Call = dict[str, str]
"""A call in the fields of a log line: its id, what was asked for (never the query), by whom and where."""


def call(head: RequestHead, request_id: str, listener: str, peer: object) -> Call:
    """A call whose head was read; `peer` is the caller's address as its socket names it."""
    method, host, path = head.method.decode("latin-1"), head.host or "", head.path.decode("latin-1")
    return _fields(request_id, listener, peer, method, host[:SHOWN_HOST], path[:SHOWN_PATH])


def unread_call(raw: bytes, request_id: str, listener: str, peer: object) -> Call:
    """One whose head, or what has come of it, is `raw` and cannot be used."""
    return _fields(request_id, listener, peer, *asked(raw))


def _fields(request_id: str, listener: str, peer: object, method: str, host: str, path: str) -> Call:
    caller = host_port(peer[0], peer[1]) if isinstance(peer, tuple) else "unix"
    return {
        "request_id": request_id,
        "method": method,
        "host": host,
        "path": path,
        "listener": listener,
        "caller": caller,
    }


def refused(refusal: Refusal, call: Call, upstream: Upstream | None, *, left_out: int = 0) -> None:
    """The words of the answer, under the same id. `left_out` others like it came before it without a line."""
    level = logging.WARNING if refusal.status >= _UNUSUAL else logging.INFO
    _LOG.log(
        level,
        refusal.title,
        extra={
            "event": "refused",
            **call,
            "outcome": refusal.outcome,
            "status": refusal.status,
            **_place(upstream),
            "cause": refusal.detail,
            "evidence": list(refusal.evidence),
            "remedy": refusal.remedy,
            **({"left_out": left_out} if left_out else {}),
        },
    )


def rejected(
    signature: Signature,
    answer: StartOfAnswer,
    seen: Observation,
    request_id: str,
    upstream: Upstream,
    *,
    first: bool,
) -> AnswerVerdict:
    """An answer of the upstream that refuses the client certificate, and is passed on as it is.

    Returns the words. Loud only where it is the `first` of its kind on the route since the config was loaded:
    a caller may go on to call for hours.
    """
    verdict = explain_answer(
        signature,
        seen,
        status=answer.status,
        server=answer.server,
        upstream=upstream.label,
        credential=upstream.route.credential_id,
        certificate=upstream.route.own,
        now=time.time(),
    )
    _LOG.log(
        logging.WARNING if first else logging.INFO,
        verdict.title,
        extra={
            "event": "http_cert_rejection",
            "request_id": request_id,
            "signature": signature.value,
            "status": answer.status,
            **_place(upstream),
            "cause": verdict.cause,
            "evidence": list(verdict.evidence),
            "remedy": verdict.remedy,
        },
    )
    return verdict


def cut(call: Call, upstream: Upstream | None, error: Exception | None) -> None:
    """An answer that had begun and could not be completed."""
    _LOG.warning(
        "an answer was cut short",
        extra={"event": "cut", **call, **_place(upstream), "cause": str(error or "")},
    )


def access(call: Call, status: int, source: str, seconds: float, upstream: Upstream | None) -> None:
    """The call as it ended."""
    _ACCESS.info(
        "call",
        extra={
            **call,
            "status": status,
            "source": source,
            "seconds": round(seconds, 6),
            **_place(upstream),
        },
    )


def _place(upstream: Upstream | None) -> dict[str, Any]:
    if upstream is None:
        return {}
    return {
        "route": upstream.route.id,
        "upstream": upstream.label,
        "credential": upstream.route.credential_id,
    }
