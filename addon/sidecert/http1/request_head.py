"""Request heads, sans-IO: read strictly, rewritten for the upstream (RFC 9110, RFC 9112).

httptools (llhttp) judges the syntax of a head; its lines are then read here once, and what is passed on is
the same lines minus what belongs to one hop. What two readers could understand differently is refused.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from sidecert.errors import Refusal
from sidecert.http1.cookie_names import restore
from sidecert.http1.framing import BodyError, framing
from sidecert.http1.hopbyhop import (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    END_TO_END,
    EXPECT,
    HOST,
    KINDS,
    OTHER_METHOD,
    OUTCOME,
    OWS,
    PAGE,
    TRANSFER_ENCODING,
    UPGRADE,
    connection_options,
    drop_named,
    is_token,
    may_upgrade,
    named_headers,
    pairs,
    upgrade_lines,
)
from sidecert.http1.malformed import (
    HEADER_LINES,
    bad_request,
    early_problem,
    request_line,
    request_problem,
    shown,
    skip_empty_lines,
    too_large,
    too_many_headers,
    unknown_method,
)
from sidecert.http1.pages import page_elsewhere
from sidecert.http1.request_target import read_authority, read_target
from sidecert.memo import Memo


class RequestHead:
    """A request head that has passed every check, and what is passed on of it.

    `body` is its framing. `host` and `port` are as sent (absolute-form wins over Host; IPv6 without brackets;
    None only in HTTP/1.0 without Host). `path` is raw, without the query. `other_methods` are those that
    headers name, which some services execute in the place of `method`. `page` is the origin of a web page
    elsewhere that may have had it sent (`pages`), None for what a tool sends. `binds` is whether it says who
    calls for the rest of the upstream connection too. `lines` is what goes upstream: the request line, then
    header lines; `host_at` is Host's place in it, 0 for none.

    Never changed once it is read: calls with the same head share it.
    """

    __slots__ = (
        "_received",
        "_rendered",
        "binds",
        "body",
        "expect_continue",
        "host",
        "host_at",
        "keep_alive",
        "lines",
        "method",
        "minor",
        "origin_target",
        "other_methods",
        "page",
        "path",
        "port",
        "scheme",
        "target",
        "upgrade",
    )

    _received: list[bytes]
    _rendered: tuple[bytes, bytes]
    method: bytes
    target: bytes
    minor: int
    body: int
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes | None
    scheme: str
    host: str | None
    port: int | None
    path: bytes
    page: str | None
    binds: bool
    other_methods: tuple[bytes, ...]
    origin_target: bytes
    lines: list[bytes]
    host_at: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers as received, hop-by-hop ones too, values without blanks around; made at each call."""
        return pairs(self._received)


# Microsoft's schemes: an upstream takes whatever comes later on the connection for the same caller's
# (RFC 4559 section 6; CVE-2015-3143 and CVE-2016-0755 in curl).
_FOR_THE_CONNECTION: Final = frozenset((b"ntlm", b"negotiate", b"nego2", b"kerberos"))

_known: Final = Memo[bytes, RequestHead]()


class RequestParser:
    """Reads request heads of at most `header_bytes` bytes, the final CRLFCRLF included."""

    __slots__ = ("_header_bytes",)

    def __init__(self, header_bytes: int) -> None:
        self._header_bytes = header_bytes

    def check_partial(self, buffer: bytes | bytearray, start: int = 0) -> None:
        """Raises Refusal when `buffer`, which holds no head's end yet, can never become a good head.

        `start` is how much of it was checked before, so that a head that comes byte by byte stays cheap.
        """
        if len(buffer) > self._header_bytes:
            raise self._too_large()
        problem = early_problem(buffer, start)
        if problem is not None:
            raise problem

    def parse(self, raw: bytes) -> RequestHead:
        """The head that `raw` is, CRLFCRLF included; raises Refusal (400, 403 for CONNECT, 431, 501)."""
        if len(raw) > self._header_bytes:
            raise self._too_large()
        head = _known.get(raw)
        if head is None:
            head = self._read(raw)
            _known.keep(raw, head, len(raw))
        return head

    def _read(self, raw: bytes) -> RequestHead:
        if raw[:2] == b"\r\n":
            raw = skip_empty_lines(raw)
        if raw.find(b"\r\n\r\n") != len(raw) - 4:
            problem = request_problem(raw)
            raise problem or bad_request("The request head has no end.", "End it with an empty line.")
        try:
            # A new parser costs 0.2 us; an old one would have to be told where every kind of body ends.
            HttpRequestParser(None).feed_data(raw)
        except HttpParserUpgrade:
            pass
        except HttpParserError as error:
            raise _why_refused(raw, error) from None
        return _read_request(raw)

    def _too_large(self) -> Refusal:
        return too_large(
            f"The request's header is larger than {self._header_bytes} bytes.",
            "Send fewer or shorter headers, or raise limits.header_bytes.",
        )


def _why_refused(raw: bytes, error: HttpParserError) -> Refusal:
    """The words for what the parser did not take, from the most basic fault to the parser's own message."""
    problem = request_problem(raw)
    if problem is not None:
        return problem
    if isinstance(error, HttpParserInvalidMethodError) or "Invalid method" in str(error):
        return unknown_method(raw.partition(b" ")[0])
    try:
        _read_request(raw)
    except Refusal as refusal:
        return refusal
    return bad_request(f"The request head is malformed: {error}.")


def _read_request(raw: bytes) -> RequestHead:
    """Reads a head whose syntax is right. Long, because it runs for every request and calls cost time."""
    lines = raw.split(b"\r\n")
    if len(lines) > HEADER_LINES + 3:
        raise too_many_headers()
    first = lines[0]
    del lines[0], lines[-2:]
    head = RequestHead()
    head._received = lines
    head.method, head.target, head.minor = method, target, minor = request_line(first)
    head.scheme, authority, head.path, head.origin_target = read_target(method, target)
    if authority is not None or not minor:
        first = b"%b %b HTTP/1.1" % (method, head.origin_target)
    head.lines = kept = [first]
    head._rendered = (b"", b"")
    keep = kept.append
    head.host_at = 0
    head.other_methods = ()
    head.page = None
    head.binds = False
    host = None
    lengths: list[bytes] = []
    codings: list[bytes] = []
    expect = False
    options: list[bytes] = []
    upgrade: list[bytes] = []
    page: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, _, value = line.partition(b":")
        kind = KINDS[name]
        if not kind or kind >= OUTCOME:
            keep(line)
        elif kind == HOST:
            if host is not None:
                raise bad_request("The request has more than one Host header.", "Send exactly one.")
            host = value.strip(OWS)
            head.host_at = len(kept)
            keep(line)
        elif kind == CONNECTION:
            options.append(value)
        elif kind == COOKIE:
            keep(name + b":" + restore(value))
        elif kind == CONTENT_LENGTH:
            length = value.strip(OWS)
            lengths.append(length)
            keep(b"%b: %b" % (name, length.lstrip(b"0") or b"0"))
        elif kind == TRANSFER_ENCODING:
            codings.append(value.strip(OWS))
            keep(name + b": chunked")
        elif kind == UPGRADE:
            upgrade.append(value.strip(OWS))
        elif kind == EXPECT and minor:  # RFC 9110 10.1.1: HTTP/1.0 has none, and what goes upstream is 1.1
            expect = value.strip(OWS).lower() == b"100-continue"
            keep(line)
        elif kind == OTHER_METHOD:
            head.other_methods += (value.strip(OWS).upper(),)
            keep(line)
        elif kind == AUTHORIZATION:
            head.binds = head.binds or (value.split(None, 1) or [b""])[0].lower() in _FOR_THE_CONNECTION
            keep(line)
        elif kind == PAGE:
            page.append((name, value.strip(OWS)))
            keep(line)
    head.body = 0
    if lengths or codings:
        try:
            head.body = framing(lengths, codings, minor, 0)
        except BodyError as error:
            raise bad_request(error.wrong, error.right) from None
    if host is not None and authority is None:
        head.host, head.port = read_authority(host)
    else:
        _set_host(head, authority, host)
    if page:
        head.page = page_elsewhere(page, head.scheme, head.host, head.port)
    head.expect_continue = expect and head.body != 0
    head.keep_alive = minor == 1
    head.upgrade = None
    if options:
        _set_connection(head, connection_options(options), upgrade)
    return head


def _set_host(head: RequestHead, authority: bytes | None, host: bytes | None) -> None:
    head.host = head.port = None
    if host is not None:
        head.host, head.port = read_authority(host)
    elif head.minor:
        raise bad_request("The request has no Host header.", "Send `Host: name` or `Host: name:port`.")
    if authority is not None:
        head.host, head.port = read_authority(authority)


def _set_connection(head: RequestHead, options: frozenset[bytes], upgrade: list[bytes]) -> None:
    head.keep_alive = b"close" not in options and (head.minor == 1 or b"keep-alive" in options)
    if upgrade and head.minor and head.body == 0 and b"upgrade" in options:
        wanted = b", ".join(upgrade)
        head.upgrade = wanted if may_upgrade(wanted) else None
    names = named_headers(options)
    if names:
        for name in sorted(names):
            if name in END_TO_END:
                raise bad_request(
                    f"Connection names {shown(name)}, which is not for one hop only.", "Leave it out."
                )
            if not is_token(name):
                raise bad_request(
                    "Connection is not a list of names.", "Send `Connection: close` or keep-alive."
                )
        head.host_at = drop_named(head.lines, names, head.host_at)


def upstream_head(head: RequestHead, host_header: bytes) -> bytes:
    """What goes upstream: request line, Host as `host_header` in its old place, what may stay, framing.

    `Expect: 100-continue` stays, so that it is the upstream that says to go on; its 100 is passed back.
    """
    rendered_for, rendered = head._rendered
    if rendered_for == host_header:
        return rendered
    lines = head.lines.copy()
    at = head.host_at
    if at:
        lines[at] = b"%b: %b" % (lines[at][:4], host_header)
    else:
        lines.insert(1, b"Host: " + host_header)
    lines.append(b"\r\n" if head.upgrade is None else upgrade_lines(head.upgrade))
    rendered = b"\r\n".join(lines)
    head._rendered = (host_header, rendered)
    return rendered
