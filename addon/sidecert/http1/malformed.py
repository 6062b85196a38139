"""What is wrong with a head that cannot be used, in words. Off the hot path: only bad heads come here.

Header values are never quoted (they may be secrets), nor is the query of a request.
"""

from __future__ import annotations

import re
from typing import Final

from sidecert import words
from sidecert.errors import BadAnswer, Reason, Refusal
from sidecert.http1.hopbyhop import is_token

HEADER_LINES: Final = 200
TOO_MANY_IN_ANSWER: Final = f"The answer has more than {HEADER_LINES} headers."

_LONE_CR_OR_LF: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TLS: Final = (
    "TLS arrived where plain HTTP is spoken.",
    "Call this listener with http:// instead of https://; sidecert itself makes the TLS connection.",
)
NOT_AN_ANSWER: Final = "The answer does not begin with an HTTP/1 status line; is this an HTTP/1.1 service?"
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/]*)(.*)", re.DOTALL)
_HOST: Final = re.compile(rb"\nhost:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LOOKED_AT: Final = 8192  # bytes
_SHOWN_METHOD: Final = 40
SHOWN_HOST: Final = 255
SHOWN_PATH: Final = 200
"""Characters that the log has of each."""
_MINOR: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_BAD_METHOD: Final = "The request method is malformed."
_METHOD_HINT: Final = "Methods are upper-case words such as GET, POST, PUT, PATCH, DELETE, HEAD or OPTIONS."
_REQUEST_LINE_HINT: Final = "Send `METHOD target HTTP/1.1` with single spaces, as in `GET /path HTTP/1.1`."


def bad_request(wrong: str, right: str = "") -> Refusal:
    """The 400 for a malformed request."""
    return Refusal.of(Reason.BAD_REQUEST, wrong, right)


def too_large(wrong: str, right: str) -> Refusal:
    """The 431 for a head over a cap."""
    return Refusal.of(Reason.HEADER_TOO_LARGE, wrong, right)


def too_many_headers() -> Refusal:
    """The 431 for a request with more than HEADER_LINES headers."""
    return too_large(f"The request has more than {HEADER_LINES} headers.", "Send fewer headers.")


def shown(text: bytes) -> str:
    """`text` for an error message: short, ASCII, quoted."""
    return f"'{words.shown(text, 40)}'"


def request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """(method, target, minor version) of a request line; raises Refusal. Only this exact form is taken."""
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[0] or not parts[1]:
        raise bad_request("The request line is malformed.", _REQUEST_LINE_HINT)
    method, target, version = parts
    minor = _MINOR.get(version)
    if minor is None:
        if version == b"HTTP/2.0":
            raise bad_request("HTTP/2 is not spoken here.", "Let the caller use HTTP/1.1.")
        raise bad_request(f"The version {shown(version)} is not served.", "Use HTTP/1.1 or HTTP/1.0.")
    if not method.isalpha() and method != b"M-SEARCH":  # the parser skips a lone CR or LF before a method
        raise unknown_method(method) if is_token(method) else bad_request(_BAD_METHOD, _METHOD_HINT)
    return method, target, minor


def _request_line_problem(line: bytes) -> Refusal | None:
    try:
        request_line(line)
    except Refusal as refusal:
        return refusal
    return None


def unknown_method(method: bytes) -> Refusal:
    """The 501 for a method that the parser does not know."""
    return Refusal.of(Reason.METHOD_UNKNOWN, f"The method {shown(method)} is not known.", _METHOD_HINT)


def early_problem(start: bytes | bytearray, scanned: int) -> Refusal | None:
    """What is wrong with the start of a request head already; None when it may still become good.

    The first `scanned` bytes of it were looked at before, and are not looked at again.
    """
    if start.startswith(b"\x16"):  # a TLS handshake record
        return bad_request(*_TLS)
    problem = _early_line_end_problem(start, scanned)
    if problem is not None:
        return bad_request(*problem)
    if start.find(b"\n", scanned) < 0:
        return None
    begin = 0 if start[:1] != b"\r" else 4 if start.startswith(b"\r\n\r\n") else 2  # as skip_empty_lines
    if start.count(b"\n", begin) > HEADER_LINES + 1:
        return too_many_headers()
    end = start.find(b"\n", begin)
    return _request_line_problem(bytes(start[begin : end - 1])) if end >= scanned else None


def request_problem(raw: bytes) -> Refusal | None:
    """What breaks the syntax of this request head, or None."""
    if raw.startswith(b"\x16"):
        return bad_request(*_TLS)
    lines = raw[:-4].split(b"\r\n")
    problem = _line_end_problem(raw, 0, len(raw))
    if problem is None:
        refusal = _request_line_problem(lines[0])
        if refusal is not None:
            return refusal
        problem = _header_lines_problem(lines)
    return None if problem is None else bad_request(*problem)


def asked(raw: bytes) -> tuple[str, str, str]:
    """(method, host, path) of a head that cannot be used, as far as they can be made out; else empty.

    For the log: short, and neither a query nor user information.
    """
    line, line_end, rest = raw[:_LOOKED_AT].lstrip(b"\r\n").partition(b"\n")
    method, _, target = line.partition(b" ")
    if not line_end or not is_token(method) or not target:
        return "", "", ""
    named = _HOST.search(b"\n" + rest)
    target = target.split(b" ")[0]
    host, path = named[1] if named is not None else b"", target.partition(b"?")[0].partition(b"#")[0]
    if method == b"CONNECT":
        host, path = path, b""
    elif not path.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(path)
        host, path = (absolute[1], absolute[2]) if absolute is not None else (host, b"")
        if b"@" in target:
            path = b""  # a password may hold a slash
            host = target.rpartition(b"@")[2].partition(b"/")[0].partition(b"?")[0]
    host = host.rpartition(b"@")[2].strip()
    return words.shown(method, _SHOWN_METHOD), words.shown(host, SHOWN_HOST), words.shown(path, SHOWN_PATH)


def answer_problem(raw: bytes) -> BadAnswer | None:
    """What breaks the syntax of this answer's head, or None."""
    problem = _line_end_problem(raw, 0, len(raw)) or _header_lines_problem(raw[:-4].split(b"\r\n"))
    return None if problem is None else BadAnswer(" ".join(problem))


def early_answer_problem(start: bytes | bytearray, scanned: int) -> BadAnswer | None:
    """What is wrong with the start of an answer's head already; `scanned` as in `early_problem`."""
    if start[:9] not in (b"HTTP/1.1 "[: len(start)], b"HTTP/1.0 "[: len(start)]):
        return BadAnswer(NOT_AN_ANSWER)
    problem = _early_line_end_problem(start, scanned)
    if problem is not None:
        return BadAnswer(" ".join(problem))
    if start.find(b"\n", scanned) >= 0 and start.count(b"\n") > HEADER_LINES + 1:
        return BadAnswer(TOO_MANY_IN_ANSWER)
    return None


def skip_empty_lines(raw: bytes) -> bytes:
    """`raw` without the two empty lines that may precede a request (RFC 9112 2.2 asks to bear with one)."""
    return raw.removeprefix(b"\r\n").removeprefix(b"\r\n")


def _early_line_end_problem(start: bytes | bytearray, scanned: int) -> tuple[str, str] | None:
    """A CR or LF that stands alone in what is new. Pieces may end anywhere, also between the two."""
    begin = scanned - 1 if start[scanned - 1 : scanned] == b"\r" else scanned
    end = len(start) - 1 if start.endswith(b"\r") else len(start)
    lines = start.count(b"\r\n", begin, end)
    if start.count(b"\r", begin, end) == lines == start.count(b"\n", begin, end):
        return None
    return _line_end_problem(start, begin, end)


def _line_end_problem(raw: bytes | bytearray, begin: int, end: int) -> tuple[str, str] | None:
    match = _LONE_CR_OR_LF.search(raw, begin, end)
    if match is None:
        return None
    name = "LF" if match[0] == b"\n" else "CR"
    line = raw.count(b"\n", 0, match.start()) + 1
    return f"Line {line} of the head holds a bare {name}.", "End every line with CRLF."


def _header_lines_problem(lines: list[bytes]) -> tuple[str, str] | None:
    for number, line in enumerate(lines[1:], start=1):
        problem = _header_problem(line)
        if problem is not None:
            return f"Header line {number} {problem[0]}", problem[1]
    return None


def _header_problem(line: bytes) -> tuple[str, str] | None:
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return "begins with a blank (a folded header).", "Put each header on one line."
    if not colon:
        return "has no colon.", "Send `Name: value`."
    if not name:
        return "has no name.", "Send `Name: value`."
    if name != name.rstrip(b" \t"):
        return "has a blank before its colon.", "Send `Name: value`, with the colon right after the name."
    if not is_token(name):
        return "has a name with characters that names may not have.", "Use letters, digits and `-`."
    if _CONTROL.search(value):
        return f"({shown(name)}) has a control character in its value.", "Leave it out or encode it."
    return None
