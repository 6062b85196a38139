"""Requests and answers as bytes, and what must become of them at the other end.

What `sidecert` has to change is written down here a second time, after RFC 9110 and 9112 and the promises of
its own documentation, and on purpose without a look at its code: the tests hold the one against the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise

OWS = b" \t"
Trailer = tuple[bytes, bytes]

# RFC 9110 7.6.1, and what a proxy takes for itself.
OF_ONE_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings"),
    *(b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"),
}
FRAMING = {b"content-length", b"transfer-encoding"}
# A CGI-like upstream reads `_` as `-`, and `.` perhaps.
AS_DASH = bytes.maketrans(b"_.", b"--")
IMITATED = OF_ONE_HOP | FRAMING | {b"host", b"expect"}
NOT_OF_A_CALLER = {  # they say who called by TLS, or name another path than the one that was routed
    *(b"x-ssl-client-cert", b"x_ssl_client_s_dn", b"x-forwarded-client-cert", b"client-cert", b"ssl-verify"),
    *(b"x-original-url", b"x-rewrite-url"),
}
ABOUT_TLS = {
    *(b"strict-transport-security", b"alt-svc", b"expect-ct", b"public-key-pins"),
    b"public-key-pins-report-only",
}
# RFC 9110 6.5.1.
NOT_BEHIND_A_BODY = {
    *(b"host", b"expect", b"range", b"cache-control", b"max-forwards", b"pragma", b"authorization"),
    *(b"cookie", b"set-cookie", b"content-type", b"content-encoding", b"content-range", b"trailer"),
    *(b"location", b"retry-after", b"vary", b"www-authenticate", b"sidecert-outcome"),
}


@dataclass(frozen=True)
class Body:
    """`lines` frame it in a head, `wire` is what is sent of it, `data` what is meant by that."""

    kind: str = "none"  # none, length, chunked, close
    lines: tuple[bytes, ...] = ()
    wire: bytes = b""
    data: bytes = b""
    trailers: tuple[Trailer, ...] = ()

    def __repr__(self) -> str:
        wire = self.wire if len(self.wire) < 500 else self.wire[:300] + b"..." + self.wire[-100:]
        return f"Body({self.kind!r}, {self.lines!r}, {wire!r})"


def with_length(data: bytes, line: bytes = b"Content-Length: %d") -> Body:
    return Body("length", (line % len(data),), data, data)


@dataclass(frozen=True)
class Chunk:
    """One chunk as it is written: `size` is its first line, made of the data's length."""

    data: bytes
    size: bytes = b"%x"


def with_chunks(
    chunks: Iterable[Chunk],
    trailers: Sequence[bytes] = (),
    line: bytes = b"Transfer-Encoding: chunked",
    last: bytes = b"0",
) -> Body:
    """Each chunk, the `last` one, and these trailer lines."""
    kept = list(chunks)
    wire = b"".join(chunk.size % len(chunk.data) + b"\r\n" + chunk.data + b"\r\n" for chunk in kept)
    wire += last + b"\r\n" + b"".join(trailer + b"\r\n" for trailer in trailers) + b"\r\n"
    pairs = tuple((name_of(trailer), value_of(trailer)) for trailer in trailers)
    return Body("chunked", (line,), wire, b"".join(chunk.data for chunk in kept), pairs)


def until_close(data: bytes) -> Body:
    return Body("close", (), data, data)


NO_BODY = Body()


@dataclass(frozen=True)
class Ask:
    """One request. `lines` are its header lines without the framing, which is put in at `framing_at`."""

    method: bytes = b"GET"
    target: bytes = b"/"
    lines: tuple[bytes, ...] = (b"Host: orders.test",)
    body: Body = NO_BODY
    minor: int = 1
    framing_at: int = 99

    @property
    def wire(self) -> bytes:
        first = b"%b %b HTTP/1.%d" % (self.method, self.target, self.minor)
        return _head(first, self._all_lines) + self.body.wire

    @property
    def _all_lines(self) -> list[bytes]:
        return _put_in(self.lines, self.body.lines, self.framing_at)

    @property
    def options(self) -> set[bytes]:
        return _options(self.lines)

    @property
    def keep_alive(self) -> bool:
        """RFC 9112 9.3."""
        return b"close" not in self.options and (self.minor == 1 or b"keep-alive" in self.options)

    @property
    def base(self) -> bytes:
        """What the addresses of this caller begin with; empty where it named no host."""
        if not self.target.startswith(b"/"):
            found = re.match(rb"(?i)(https?)://([^/?]+)", self.target)
            if found is not None:
                return found[1].lower() + b"://" + found[2].removesuffix(b":")
        host = next((value_of(line) for line in self.lines if name_of(line).lower() == b"host"), b"")
        return b"http://" + host.removesuffix(b":") if host else b""

    def head_upstream(self, address: bytes) -> bytes:
        """The head that must arrive at an upstream with this address."""
        named = self.options - {b"close", b"keep-alive"}
        lines: list[bytes] = []
        for line in self._all_lines:
            name = name_of(line)
            lower = name.lower()
            if lower == b"host":
                lines.append(name + b": " + address)
            elif lower in FRAMING:
                lines.append(canonical(line))
            elif lower in OF_ONE_HOP | named | NOT_OF_A_CALLER or imitates(lower):
                continue
            elif lower == b"expect" and self.minor == 0:
                continue  # RFC 9110 10.1.1
            elif lower == b"cookie":
                lines.append(line.replace(b"sidecert-__", b"__"))
            else:
                lines.append(line)
        if not any(name_of(line).lower() == b"host" for line in self.lines):
            lines.insert(0, b"Host: " + address)
        wanted = b", ".join(value_of(line) for line in self.lines if name_of(line).lower() == b"upgrade")
        if wanted == b"websocket" and b"upgrade" in named and self.minor and not self.body.wire:
            lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
        return _head(b"%b %b HTTP/1.1" % (self.method, self._origin_form), lines)

    @property
    def _origin_form(self) -> bytes:
        found = re.fullmatch(rb"(?i)https?://[^/?]+(.*)", self.target)
        if found is None:
            return self.target
        if not found[1] and self.method == b"OPTIONS":
            return b"*"
        return found[1] if found[1].startswith(b"/") else b"/" + found[1]


@dataclass(frozen=True)
class Rewritten:
    """A line of an answer that depends on how the caller came: `came` in which `%OWN%` is the upstream's
    address, and what it must be for callers by http and by https, where `%BASE%` is the caller's address."""

    came: bytes
    plain: bytes
    secure: bytes


@dataclass(frozen=True)
class Reply:
    """One answer: `interims` are (status, lines) before it. `ends` closes the connection after it."""

    status: int = 200
    reason: bytes = b"OK"
    lines: tuple[bytes | Rewritten, ...] = ()
    body: Body = NO_BODY
    minor: int = 1
    interims: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    framing_at: int = 99
    ends: bool = False

    def has_body(self, method: bytes) -> bool:
        return method != b"HEAD" and self.status not in (204, 304)

    def wire(self, method: bytes, address: bytes) -> bytes:
        """The bytes that an upstream with this address answers a `method` request with."""
        before = b"".join(_head(b"HTTP/1.1 %d Wait" % status, lines) for status, lines in self.interims)
        lines = [
            line.came.replace(b"%OWN%", address) if isinstance(line, Rewritten) else line
            for line in self.lines
        ]
        first = b"HTTP/1.%d %d" % (self.minor, self.status) + (b" " + self.reason if self.reason else b"")
        head = _head(first, _put_in(lines, self.body.lines, self.framing_at))
        return before + head + (self.body.wire if self.has_body(method) else b"")

    def framing_downstream(self, ask: Ask) -> str:
        """How the body must come to the caller."""
        if not self.has_body(ask.method):
            return "none"
        if self.body.kind == "length":
            return "length"
        return "chunked" if ask.minor == 1 else "close"  # HTTP/1.0 has no chunks

    def keeps_caller(self, ask: Ask) -> bool:
        return ask.keep_alive and self.framing_downstream(ask) != "close"

    def interims_downstream(self, ask: Ask) -> bytes:
        """1xx heads for the caller; HTTP/1.0 knows none."""
        if ask.minor == 0:
            return b""
        return b"".join(
            _head(b"HTTP/1.1 %d Wait" % status, _kept_of_answer(lines)) for status, lines in self.interims
        )

    def head_downstream(self, ask: Ask) -> bytes:
        """The head that must arrive at the caller."""
        framing = self.framing_downstream(ask)
        base = ask.base
        lines: list[bytes] = []
        for line in _put_in(self.lines, self.body.lines, self.framing_at):
            if isinstance(line, Rewritten):
                right = line.secure if base.startswith(b"https") else line.plain
                lines.append(right.replace(b"%BASE%", base))
            else:
                lines.append(line)
        kept = _kept_of_answer(lines)
        stays = framing == self.body.kind
        if framing == "none":  # told all the same of what a GET would bring, RFC 9110 8.6
            stays = self.body.kind == "length" and self.status != 204
        kept = [
            canonical(line) if name_of(line).lower() in FRAMING else line
            for line in kept
            if stays or name_of(line).lower() not in FRAMING
        ]
        if framing == "chunked" and not stays:
            kept.append(b"Transfer-Encoding: chunked")
        if not self.keeps_caller(ask):
            kept.append(b"Connection: close")
        elif ask.minor == 0:
            kept.append(b"Connection: keep-alive")
        reason = self.reason or (
            HTTPStatus(self.status).phrase.encode() if self.status in _KNOWN else b"Unknown"
        )
        return _head(b"HTTP/1.1 %d %b" % (self.status, reason), kept)


_KNOWN = {int(status) for status in HTTPStatus}


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0]


def value_of(line: bytes) -> bytes:
    return line.partition(b":")[2].strip(OWS)


def imitates(lower: bytes) -> bool:
    """Whether it is another spelling of a header that frames or routes."""
    return lower not in IMITATED and lower.translate(AS_DASH) in IMITATED


def canonical(line: bytes) -> bytes:
    """A framing line as nobody can misread it."""
    name, value = name_of(line), value_of(line)
    return name + b": " + (b"%d" % int(value) if name.lower() == b"content-length" else value.lower())


def trailers_passed_on(trailers: Iterable[Trailer]) -> list[Trailer]:
    """RFC 9110 6.5.1: no framing, routing, authentication or content fields behind a body."""
    never = OF_ONE_HOP | FRAMING | NOT_BEHIND_A_BODY | ABOUT_TLS | NOT_OF_A_CALLER
    return [(name, value) for name, value in trailers if name.lower().translate(AS_DASH) not in never]


def read_chunks(read_line: Callable[[], bytes], read: Callable[[int], bytes]) -> tuple[bytes, list[Trailer]]:
    """(data, trailers) of a chunked body that is written in the plainest way; anything else fails."""
    pieces: list[bytes] = []
    while True:
        line = read_line()
        found = re.fullmatch(rb"(0|[1-9a-f][0-9a-f]*)\r\n", line)
        assert found is not None, f"a chunk begins with {line!r}"
        size = int(found[1], 16)
        if not size:
            break
        pieces.append(read(size))
        end = read(2)
        assert end == b"\r\n", f"a chunk ends with {end!r}"
    trailers: list[Trailer] = []
    while (line := read_line()) != b"\r\n":
        name, colon, value = line.removesuffix(b"\r\n").partition(b": ")
        assert colon
        trailers.append((name, value))
    return b"".join(pieces), trailers


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    inner = sorted({place for place in places if 0 < place < len(data)})
    edges = [0, *inner, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def bytewise(data: bytes) -> list[bytes]:
    return cut(data, range(len(data)))


def at_line_ends(data: bytes) -> list[bytes]:
    """Cut before and after each CR and LF."""
    places = [at for at, byte in enumerate(data) if byte in b"\r\n"]
    return cut(data, [*places, *(at + 1 for at in places)])


def _head(first: bytes, lines: Iterable[bytes]) -> bytes:
    return b"\r\n".join([first, *lines]) + b"\r\n\r\n"


def _put_in[Line](lines: Sequence[Line], more: Iterable[Line], at: int) -> list[Line]:
    return [*lines[:at], *more, *lines[at:]]


def _options(lines: Iterable[bytes]) -> set[bytes]:
    """What all Connection headers list."""
    values = [value_of(line) for line in lines if name_of(line).lower() == b"connection"]
    return {token.strip(OWS).lower() for token in b",".join(values).split(b",")} - {b""}


def _kept_of_answer(lines: Sequence[bytes]) -> list[bytes]:
    named = _options(lines) - FRAMING
    gone = OF_ONE_HOP | ABOUT_TLS | named | {b"sidecert-outcome", b"sidecert_outcome"}
    return [
        line for line in lines if name_of(line).lower() not in gone and not imitates(name_of(line).lower())
    ]
