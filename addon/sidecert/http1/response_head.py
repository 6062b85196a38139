"""Heads of answers, sans-IO: read strictly, rewritten for the caller (RFC 9110, RFC 9112).

As in `request_head`, httptools judges the syntax and the lines are read here once. What cannot be passed on
without doubt is a `BadAnswer`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sidecert.errors import BadAnswer
from sidecert.http1.framing import CHUNKED, UNTIL_CLOSE, BodyError, framing
from sidecert.http1.hopbyhop import (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    EXPECT,
    HOST,
    IDENTITY,
    KEEP_ALIVE,
    KINDS,
    LOCATION,
    OTHER_METHOD,
    OTHER_PATH,
    OWS,
    PAGE,
    REFRESH,
    SET_COOKIE,
    TRANSFER_ENCODING,
    UPGRADE,
    connection_options,
    drop_named,
    named_headers,
    pairs,
    split_list,
    upgrade_lines,
)
from sidecert.http1.malformed import (
    HEADER_LINES,
    NOT_AN_ANSWER,
    TOO_MANY_IN_ANSWER,
    answer_problem,
    early_answer_problem,
)
from sidecert.memo import Memo

HEAD_BYTES: Final = 256 * 1024

_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*(\d{1,9})\b", re.IGNORECASE)
_PHRASES: Final = {int(status): status.phrase.encode() for status in HTTPStatus}
_NO_CONTROLS: Final = bytes(byte if byte >= 32 and byte != 127 else 32 for byte in range(256))
_ONLY_IN_REQUESTS: Final = (
    AUTHORIZATION,
    IDENTITY,
    HOST,
    EXPECT,
    COOKIE,
    OTHER_PATH,
    OTHER_METHOD,
    PAGE,
)  # mean nothing in an answer
_SPECIAL: Final = (LOCATION, SET_COOKIE, REFRESH)
# Some CDNs name these in Connection. Harmless: sidecert frames what it sends itself.
_NAMED_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class ResponseHead:
    """An answer's head that has passed every check, and what is passed on of it.

    `body` is its framing, 0 for every answer that cannot have a body. `idle_timeout` is the `timeout` of
    Keep-Alive in seconds, if told. `lines` is what goes downstream: the status line, then header lines whose
    values may be rewritten in place before `downstream_head`; `framing_at` is the place of Content-Length or
    Transfer-Encoding in it, 0 for none. `special` has (place, kind) of those lines that depend on how the
    caller came, see `rewriting`. What concerns TLS only (Strict-Transport-Security and kin) is left out.
    One without such lines is never changed once it is read: answers with the same head share it.
    """

    __slots__ = (
        "_received",
        "_rendered",
        "body",
        "framing_at",
        "idle_timeout",
        "keep_alive",
        "lines",
        "minor",
        "reason",
        "special",
        "status",
        "upgrade",
    )

    _received: list[bytes]
    _rendered: bytes
    status: int
    reason: bytes
    minor: int
    body: int
    keep_alive: bool
    upgrade: bytes | None
    idle_timeout: int | None
    lines: list[bytes]
    framing_at: int
    special: list[tuple[int, int]]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers as received, hop-by-hop ones too, values without blanks around; made at each call."""
        return pairs(self._received)


_known: Final = Memo[bytes, ResponseHead]()


class ResponseParser:
    """Reads the heads of answers."""

    __slots__ = ()

    def check_partial(self, buffer: bytes | bytearray, start: int = 0) -> None:
        """Raises BadAnswer when `buffer`, which holds no head's end yet, can never become a good head.

        `start` is how much of it was checked before, so that a head that comes byte by byte stays cheap.
        """
        if len(buffer) > HEAD_BYTES:
            raise BadAnswer(f"The answer's header is larger than {HEAD_BYTES} bytes.")
        problem = early_answer_problem(buffer, start)
        if problem is not None:
            raise problem

    def parse(self, raw: bytes, method: bytes, upgrade: bytes | None = None) -> ResponseHead:
        """The head that `raw` is, CRLFCRLF included, as an answer to `method`; raises BadAnswer.

        `upgrade` is what the request asked for (`RequestHead.upgrade`): without it a 101 is refused.
        """
        if upgrade is not None or method == b"HEAD":
            return self._read(raw, method, upgrade)
        head = _known.get(raw)
        if head is None:
            head = self._read(raw, method, upgrade)
            if not head.special:  # else it is rewritten, for one caller
                _known.keep(raw, head, len(raw))
        return head

    def _read(self, raw: bytes, method: bytes, upgrade: bytes | None) -> ResponseHead:
        if len(raw) > HEAD_BYTES:
            raise BadAnswer(f"The answer's header is larger than {HEAD_BYTES} bytes.")
        if raw.find(b"\r\n\r\n") != len(raw) - 4:
            raise BadAnswer(NOT_AN_ANSWER)
        if upgrade is None and raw[9:12] == b"101":
            raise BadAnswer("The answer switches protocols (101), which the request did not ask for.")
        try:
            HttpResponseParser(None).feed_data(raw)
        except HttpParserUpgrade:
            pass
        except HttpParserError as error:
            raise _why_bad(raw, method, error) from None
        return _read_answer(raw, method, upgrade)


def _why_bad(raw: bytes, method: bytes, error: HttpParserError) -> BadAnswer:
    problem = answer_problem(raw)
    if problem is not None:
        return problem
    try:
        _read_answer(raw, method, None)
    except BadAnswer as bad:
        return bad
    return BadAnswer(f"The answer's head is malformed: {error}.")


def _status_line(line: bytes) -> tuple[int, bytes, int, bytes]:
    """(status, cleaned reason, minor version, the line to pass on); raises BadAnswer."""
    version, digits, reason = line[:9], line[9:12], line[13:]
    if version not in (b"HTTP/1.1 ", b"HTTP/1.0 "):
        raise BadAnswer(NOT_AN_ANSWER)
    if not digits.isdigit() or len(digits) != 3 or line[12:13] not in (b"", b" "):
        raise BadAnswer("The answer's status line is malformed; it is `HTTP/1.1 SP 3 digits SP reason`.")
    status = int(digits)
    if not 100 <= status <= 599:
        raise BadAnswer(f"The answer's status {status} does not exist; it goes from 100 to 599.")
    minor = version[7] - 48
    if status < 200 and minor == 0:
        raise BadAnswer(f"The answer is an interim one ({status}) in HTTP/1.0, which has none.")
    reason = reason.translate(_NO_CONTROLS).strip() or _PHRASES.get(status, b"Unknown")
    return status, reason, minor, b"HTTP/1.1 %d %b" % (status, reason)


_status_line_memo = lru_cache(maxsize=256)(_status_line)  # nearly all answers share a few status lines


def _read_answer(raw: bytes, method: bytes, asked: bytes | None) -> ResponseHead:
    """Reads a head whose syntax is right. Long, because it runs for every answer and calls cost time."""
    lines = raw.split(b"\r\n")
    if len(lines) > HEADER_LINES + 3:
        raise BadAnswer(TOO_MANY_IN_ANSWER)
    head = ResponseHead()
    first = lines[0]
    status, head.reason, minor, first = (_status_line_memo if len(first) <= 64 else _status_line)(first)
    head.status = status
    head.minor = minor
    del lines[0], lines[-2:]
    head._received = lines
    head.lines = kept = [first]
    keep = kept.append
    head._rendered = b""
    head.framing_at = 0
    head.idle_timeout = None
    head.special = special = []
    bodyless = method == b"HEAD" or status == 304 or status == 204 or status < 200
    keeps_length = not bodyless or (status >= 200 and status != 204)  # RFC 9110 8.6
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    upgrade: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        kind = KINDS[name]
        if not kind:
            keep(line)
        elif kind == CONTENT_LENGTH:
            length = value.strip(OWS)
            lengths.append(length)
            if keeps_length:
                head.framing_at = len(kept)
                keep(b"%b: %b" % (name, length.lstrip(b"0") or b"0"))
        elif kind == TRANSFER_ENCODING:
            codings.append(value.strip(OWS))
            if not bodyless:
                head.framing_at = len(kept)
                keep(name + b": chunked")
        elif kind == CONNECTION:
            options.append(value)
        elif kind == KEEP_ALIVE:
            timeout = _TIMEOUT.search(value)
            head.idle_timeout = int(timeout[1]) if timeout is not None else None
        elif kind == UPGRADE:
            upgrade.append(value.strip(OWS))
        elif kind in _SPECIAL:
            special.append((len(kept), kind))
            keep(line)
        elif kind in _ONLY_IN_REQUESTS:
            keep(line)
    try:
        head.body = framing(lengths, codings, minor, 0 if bodyless else UNTIL_CLOSE)
    except BodyError as error:
        raise BadAnswer(str(error)) from None
    tokens = connection_options(options) if options else frozenset()
    head.keep_alive = (minor == 1 or b"keep-alive" in tokens) and b"close" not in tokens
    if head.body == UNTIL_CLOSE:
        head.keep_alive = False
    if tokens and (names := named_headers(tokens) - _NAMED_FRAMING):
        head.framing_at = drop_named(kept, names, head.framing_at)
        if special:
            kinds = (KINDS[line[: line.find(b":")]] for line in kept[1:])
            head.special = [(at, kind) for at, kind in enumerate(kinds, start=1) if kind in _SPECIAL]
    if bodyless and head.body:
        _ignore_announced_body(head, method)
    head.upgrade = _granted(upgrade, tokens, asked) if status == 101 else None
    return head


def _ignore_announced_body(head: ResponseHead, method: bytes) -> None:
    """The answer can have no body but frames one: right for HEAD and in part for 304 (RFC 9110 8.6, 9.3.2).

    Elsewhere bytes may follow that would be taken for the next answer, so the connection is not used again.
    """
    if head.status < 200:
        raise BadAnswer(f"The interim answer ({head.status}) announces a body, which it cannot have.")
    if method != b"HEAD" and (head.status == 204 or head.body == CHUNKED):
        head.keep_alive = False
    head.body = 0


def _granted(upgrade: list[bytes], tokens: frozenset[bytes], asked: bytes | None) -> bytes:
    """The protocol that a 101 switches to; raises BadAnswer unless it is one that was asked for."""
    protocol = b", ".join(upgrade)
    names = split_list(protocol)
    if b"upgrade" not in tokens or not names or not names <= split_list(asked or b""):
        raise BadAnswer("The answer switches protocols (101), but not to one that the request asked for.")
    return protocol


def downstream_head(head: ResponseHead, *, caller_minor: int, keep_alive: bool, body: int) -> bytes:
    """What goes downstream: status line, what may stay, framing as `body` says, Connection for the caller.

    Pass `head.body` as `body` unless the body is framed anew; an answer without a body must get `head.body`.
    """
    if body == CHUNKED and caller_minor == 0:
        raise ValueError("an HTTP/1.0 caller cannot read a chunked body")
    as_it_is = keep_alive and caller_minor and body == head.body != UNTIL_CLOSE
    if as_it_is and head._rendered:
        return head._rendered
    lines = head.lines.copy()
    if body != head.body:
        at = head.framing_at or len(lines)
        lines[at : at + 1] = _framing_line(body)
    if head.status < 200:
        lines.append(b"\r\n" if head.upgrade is None else upgrade_lines(head.upgrade))
    elif not keep_alive or body == UNTIL_CLOSE:
        lines.append(b"Connection: close\r\n\r\n")
    elif caller_minor == 0:
        lines.append(b"Connection: keep-alive\r\n\r\n")
    else:
        lines.append(b"\r\n")
    rendered = b"\r\n".join(lines)
    if as_it_is:
        head._rendered = rendered
    return rendered


def _framing_line(body: int) -> list[bytes]:
    if body == CHUNKED:
        return [b"Transfer-Encoding: chunked"]
    return [] if body == UNTIL_CLOSE else [b"Content-Length: %d" % body]
