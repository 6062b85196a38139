"""Ambiguous answers of an upstream, each with what its caller must get.

Behind nearly each stands a second answer, which nobody asked for: it must never be somebody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from support.malformed import BAD_CHUNKS, BAD_HEADS, head_bytes
from support.readers import chunked_body
from support.smuggling import (
    CHUNKED,
    CHUNKS,
    CODINGS,
    GARDEN,
    LENGTHS,
    LOOK_ALIKES,
    NO_LENGTHS,
    PLAIN_CODINGS,
    RFC,
    SECOND,
    THROUGH,
    UNFINISHED,
    length,
)

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned"
BAD = None
"""502, or an answer that is cut short: nothing of it can be taken for the whole of an answer."""
End = Literal["open", "close", "cut"]


@dataclass(frozen=True)
class AnswerCase:
    """`body` is what the caller must get of it. `end` is what the upstream does behind it: keep the
    connection open, close it (with a close_notify), or cut it."""

    name: str
    source: str
    wire: bytes
    body: bytes | None = BAD
    end: End = "open"
    method: bytes = b"GET"
    kept: bool = False
    """Whether another call may have the connection."""


def answer(*lines: bytes, body: bytes = b"", first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n" + body


CL_TE = b"0\r\n\r\n" + POISON
TE_CL = b"%x\r\n%b\r\n0\r\n\r\n" % (len(POISON), POISON)
_FIVE = b"hello"
_L5 = b"Content-Length: 5"


def _framed() -> list[AnswerCase]:
    cases = []
    for name, source, line in CODINGS:
        cases.append(AnswerCase(f"CL.TE: {name}", source, answer(length(CL_TE), line, body=CL_TE)))
        cases.append(AnswerCase(f"TE.CL: {name}", source, answer(line, _L5, body=TE_CL)))
        # Blanks behind a value mean nothing; httptools is stricter with tabs there in requests.
        body = POISON if name in (*PLAIN_CODINGS, "tabs-behind") else BAD
        wire = answer(line, body=TE_CL)
        cases.append(AnswerCase(f"TE alone: {name}", source, wire, body, kept=body is not BAD))
    for name, source, line in LOOK_ALIKES:
        wire = answer(length(CL_TE), line, body=CL_TE)
        cases.append(AnswerCase(f"no coding: {name}", source, wire, CL_TE, kept=True))
    for name, source, lines, says in LENGTHS:
        body = _FIVE if says == THROUGH else BAD
        end: End = "close" if says == UNFINISHED else "open"
        cases.append(AnswerCase(f"length: {name}", source, answer(*lines, body=_FIVE + POISON), body, end))
    for name, source, lines in NO_LENGTHS:
        if lines[0] == b"Content-Length: 0":
            cases.append(AnswerCase(f"no length: {name}", source, answer(*lines, body=POISON), b""))
        else:
            wire = answer(*lines, body=_FIVE + POISON)
            cases.append(AnswerCase(f"no length: {name}", source, wire, _FIVE + POISON, "close"))
    return cases


def _in_chunks() -> list[AnswerCase]:
    cases = []
    for case in CHUNKS:
        body = case.wire.partition(b"\r\n\r\n")[2].removesuffix(SECOND)
        right = chunked_body(body) if case.says == THROUGH else BAD
        end: End = "close" if case.says == UNFINISHED else "open"
        cases.append(AnswerCase(case.name, case.source, answer(CHUNKED, body=body + POISON), right, end))
    return cases


_OLD = b"HTTP/1.0 200 OK"
_KEEP = b"Connection: keep-alive"
OTHERS: list[AnswerCase] = [
    AnswerCase("body of HEAD", RFC, answer(_L5, body=_FIVE), b"", method=b"HEAD"),
    AnswerCase("answer as body of HEAD", RFC, answer(length(POISON), body=POISON), b"", method=b"HEAD"),
    AnswerCase("chunks of HEAD", RFC, answer(CHUNKED, body=TE_CL), b"", method=b"HEAD"),
    AnswerCase("HEAD without body", RFC, answer(_L5), b"", method=b"HEAD", kept=True),
    AnswerCase("HEAD with both", RFC, answer(_L5, CHUNKED), BAD, method=b"HEAD"),
    AnswerCase("204 with a body", RFC, answer(_L5, body=_FIVE, first=b"HTTP/1.1 204 No"), b""),
    AnswerCase("204 with a length only", RFC, answer(_L5, first=b"HTTP/1.1 204 No"), b""),
    AnswerCase("204 with chunks", RFC, answer(CHUNKED, body=TE_CL, first=b"HTTP/1.1 204 No"), b""),
    AnswerCase("204 and another", RFC, answer(body=POISON, first=b"HTTP/1.1 204 No"), b""),
    AnswerCase("304 with a body", RFC, answer(_L5, body=_FIVE, first=b"HTTP/1.1 304 No"), b""),
    AnswerCase("304 with chunks", RFC, answer(CHUNKED, body=TE_CL, first=b"HTTP/1.1 304 No"), b""),
    AnswerCase("304 and another", RFC, answer(body=POISON, first=b"HTTP/1.1 304 No"), b""),
    AnswerCase(
        "205 with a body", RFC, answer(_L5, body=_FIVE, first=b"HTTP/1.1 205 Reset"), _FIVE, kept=True
    ),
    AnswerCase(
        "length 0 and another", "response queue poisoning", answer(b"Content-Length: 0", body=POISON), b""
    ),
    AnswerCase("length and CRLF", GARDEN, answer(_L5, body=_FIVE + b"\r\n"), _FIVE),
    AnswerCase("length and one byte", GARDEN, answer(_L5, body=_FIVE + b"x"), _FIVE),
    AnswerCase("length and another", "response queue poisoning", answer(_L5, body=_FIVE + POISON), _FIVE),
    AnswerCase("length and 100", GARDEN, answer(_L5, body=_FIVE + b"HTTP/1.1 100 C\r\n\r\n"), _FIVE),
    AnswerCase("two lines of status", GARDEN, answer(b"HTTP/1.1 200 OK", _L5, body=_FIVE)),
    AnswerCase("no framing, closed", RFC, answer(body=_FIVE + POISON), _FIVE + POISON, "close"),
    AnswerCase("no framing, cut", "RFC 9112 9.8", answer(body=_FIVE + POISON), BAD, "cut"),
    AnswerCase("no framing, kept alive", RFC, answer(_KEEP, body=_FIVE + POISON), _FIVE + POISON, "close"),
    AnswerCase("length too long, closed", RFC, answer(b"Content-Length: 6", body=_FIVE), BAD, "close"),
    AnswerCase("length too long, cut", RFC, answer(b"Content-Length: 6", body=_FIVE), BAD, "cut"),
    AnswerCase("chunks without end, closed", RFC, answer(CHUNKED, body=b"5\r\nhello\r\n"), BAD, "close"),
    AnswerCase("chunks without last CRLF", RFC, answer(CHUNKED, body=b"5\r\nhello\r\n0\r\n"), BAD, "close"),
    AnswerCase("head without end", RFC, b"HTTP/1.1 200 OK\r\n" + _L5 + b"\r\n", BAD, "close"),
    AnswerCase("1.0, chunks", "RFC 9112 6.1", answer(CHUNKED, body=TE_CL, first=_OLD), BAD, "close"),
    AnswerCase("1.0, kept, another", RFC, answer(_KEEP, _L5, body=_FIVE + POISON, first=_OLD), _FIVE),
    AnswerCase("1.0, not kept", RFC, answer(_L5, body=_FIVE, first=_OLD), _FIVE),
    AnswerCase("Connection: close", RFC, answer(b"Connection: close", _L5, body=_FIVE), _FIVE),
    AnswerCase(
        "Connection: close, another", RFC, answer(b"Connection: close", _L5, body=_FIVE + POISON), _FIVE
    ),
    AnswerCase(
        "Connection: Content-Length",
        GARDEN,
        answer(b"Connection: Content-Length", _L5, body=_FIVE),
        _FIVE,
        kept=True,
    ),
    AnswerCase(
        "Connection: Transfer-Encoding",
        GARDEN,
        answer(b"Connection: Transfer-Encoding", CHUNKED, body=TE_CL),
        POISON,
        kept=True,
    ),
    AnswerCase(
        "100 and the answer", RFC, b"HTTP/1.1 100 C\r\n\r\n" + answer(_L5, body=_FIVE), _FIVE, kept=True
    ),
    AnswerCase("100 with a body", GARDEN, answer(_L5, body=_FIVE + POISON, first=b"HTTP/1.1 100 C")),
    AnswerCase("103 with chunks", GARDEN, answer(CHUNKED, body=TE_CL, first=b"HTTP/1.1 103 H")),
    AnswerCase("33 interim answers", GARDEN, b"HTTP/1.1 100 C\r\n\r\n" * 33 + answer(_L5, body=_FIVE)),
    AnswerCase(
        "101 unasked",
        "websocket-smuggle (2019)",
        answer(b"Upgrade: websocket", b"Connection: Upgrade", first=b"HTTP/1.1 101 S"),
    ),
    AnswerCase(
        "status 199", GARDEN, answer(first=b"HTTP/1.1 199 X") + answer(_L5, body=_FIVE), _FIVE, kept=True
    ),
    AnswerCase("a header with CR", "response splitting", answer(b"X: y\rContent-Length: 0", _L5, body=_FIVE)),
    AnswerCase("a header with LF", "response splitting", answer(b"X: y\nContent-Length: 0", _L5, body=_FIVE)),
    AnswerCase(
        "a reason with LF", "response splitting", answer(_L5, body=_FIVE, first=b"HTTP/1.1 200 O\nX: y")
    ),
    AnswerCase(
        "a reason with NUL",
        "response splitting",
        answer(_L5, body=_FIVE, first=b"HTTP/1.1 200 O\x00"),
        _FIVE,
        kept=True,
    ),
    AnswerCase("ends with LF LF", GARDEN, b"HTTP/1.1 200 OK\r\n" + _L5 + b"\n\n" + _FIVE),
    AnswerCase("HTTP/0.9", "RFC 1945", b"<p>hello</p>", BAD, "close"),
    AnswerCase("the request, echoed", "TRACE", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
]


def _known() -> list[AnswerCase]:
    """What `support.malformed` has, with another answer behind it."""
    cases = []
    for number, (line, lines, _) in enumerate(BAD_HEADS):
        wire = head_bytes(line, *lines) + POISON
        cases.append(AnswerCase(f"malformed head {number}", "support.malformed", wire))
    for number, body in enumerate(BAD_CHUNKS):
        wire = answer(CHUNKED, body=body + b"\r\n" + POISON)
        cases.append(AnswerCase(f"malformed chunks {number}", "support.malformed", wire))
    return cases


ANSWERS: list[AnswerCase] = [*_framed(), *_in_chunks(), *OTHERS, *_known()]
