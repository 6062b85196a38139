"""The answers that sidecert makes itself: a `Refusal` written as problem+json (RFC 9457) or as text.

The fields and the header `Sidecert-Outcome` are those of the interface ("Answers"). The JSON is ASCII. The
text escapes what is not printable, so that no name from a certificate or a request can forge a line.
"""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus

from sidecert.errors import Refusal
from sidecert.media_types import quality
from sidecert.words import printable

_MAX_EVIDENCE = 20
_MAX_WORDS = 1000
"""Characters of the detail, the remedy or one piece of evidence: a list of CAs can be endless."""


def render(
    refusal: Refusal,
    *,
    accept: bytes,
    route: str | None,
    upstream: str | None,
    credential: str | None,
    request_id: str,
    keep_alive: bool,
    caller_minor: int,
    head_only: bool,
) -> bytes:
    """The whole HTTP/1.1 answer, head and body.

    `accept` is the caller's Accept header (empty when there is none), `caller_minor` the minor version of
    its HTTP/1.x; `head_only` leaves the body out, as the answer to HEAD must be. What is None or empty is
    left out.
    """
    fields = _fields(refusal, route, upstream, credential, request_id)
    if _prefers_text(accept.decode("latin-1")):
        content_type, body = "text/plain; charset=utf-8", _text(fields)
    else:
        content_type, body = "application/problem+json", json.dumps(fields).encode("ascii") + b"\n"
    head = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        f"Sidecert-Outcome: {refusal.outcome}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
    ]
    if refusal.retry_after is not None:
        head.append(f"Retry-After: {refusal.retry_after}")
    if not keep_alive:
        head.append("Connection: close")
    elif caller_minor == 0:
        head.append("Connection: keep-alive")  # HTTP/1.0 closes unless it is told (RFC 9112, 9.3)
    return "\r\n".join([*head, "", ""]).encode("ascii") + (b"" if head_only else body)


def _fields(
    refusal: Refusal, route: str | None, upstream: str | None, credential: str | None, request_id: str
) -> dict[str, str | int | list[str]]:
    evidence = [_cut(piece) for piece in refusal.evidence[:_MAX_EVIDENCE]]
    if len(refusal.evidence) > _MAX_EVIDENCE:
        evidence.append(f"and {len(refusal.evidence) - _MAX_EVIDENCE} more")
    fields: dict[str, str | int | list[str] | None] = {
        "type": f"urn:sidecert:outcome:{refusal.outcome}",
        "title": refusal.title,
        "status": refusal.status,
        "outcome": refusal.outcome,
        "route": route,
        "upstream": upstream,
        "credential": credential,
        "detail": _cut(refusal.detail),
        "evidence": evidence,
        "remedy": _cut(refusal.remedy) or None,
        "request_id": request_id or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _cut(words: str) -> str:
    return words if len(words) <= _MAX_WORDS else words[: _MAX_WORDS - 3] + "..."


def _prefers_text(accept: str) -> bool:
    as_json = max(quality(accept, "application/problem+json"), quality(accept, "application/json"))
    return quality(accept, "text/plain") > as_json


def _text(fields: dict[str, str | int | list[str]]) -> bytes:
    lines = []
    for name, value in fields.items():
        if isinstance(value, list):
            lines += [f"{name}: {printable(piece)}" for piece in value]
        else:
            lines.append(f"{name}: {printable(str(value))}")
    return ("\n".join(lines) + "\n").encode()
