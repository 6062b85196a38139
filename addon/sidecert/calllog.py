"""What the log says of a call: a line where sidecert answers it itself, an access line where asked for."""

from __future__ import annotations

import itertools
import logging
import os
from typing import Any

from sidecert.errors import Refusal
from sidecert.explain_http import explain_answer
from sidecert.generation import Upstream
from sidecert.http1 import RequestHead
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


def refused(refusal: Refusal, request_id: str, listener: str, upstream: Upstream | None) -> None:
    """The words of the answer, under the same id."""
    level = logging.WARNING if refusal.status >= _UNUSUAL else logging.INFO
    _LOG.log(
        level,
        refusal.title,
        extra={
            "event": "refused",
            "request_id": request_id,
            "outcome": refusal.outcome,
            "status": refusal.status,
            "listener": listener,
            **_place(upstream),
            "cause": refusal.detail,
            "evidence": list(refusal.evidence),
            "remedy": refusal.remedy,
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
) -> None:
    """An answer of the upstream that refuses the client certificate, and is passed on as it is.

    Loud only where it is the `first` of its kind on the route since the config was loaded: a caller may go on
    to call for hours.
    """
    credential = upstream.route.credential
    verdict = explain_answer(
        signature,
        seen,
        status=answer.status,
        server=answer.server,
        upstream=upstream.label,
        credential=upstream.route.credential_id,
        certificate=None if credential is None else credential.subject,
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


def cut(request_id: str, upstream: Upstream | None, error: Exception | None) -> None:
    """An answer that had begun and could not be completed."""
    _LOG.warning(
        "an answer was cut short",
        extra={"event": "cut", "request_id": request_id, **_place(upstream), "cause": str(error or "")},
    )


def access(
    head: RequestHead, status: int, source: str, seconds: float, listener: str, upstream: Upstream | None
) -> None:
    """The call as it ended; never its query."""
    _ACCESS.info(
        "call",
        extra={
            "method": head.method.decode("latin-1"),
            "host": head.host,
            "path": head.path.decode("latin-1"),
            "status": status,
            "source": source,
            "seconds": round(seconds, 6),
            "listener": listener,
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
