"""Header names that sidecert must not simply pass on, and what becomes of each (RFC 9110 7.6.1).

Most of them belong to one hop. The last ones make sense only to a caller that speaks TLS to the upstream.

Every header line is looked up once, by its name as it was sent: `KINDS[name]`. Most names are `KEEP` (0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from sidecert.http1.identity_headers import tells_who_called
from sidecert.memo import Memo

KEEP: Final = 0  # passed on: same place, case and bytes
DROP: Final = 1  # belongs to one hop only, or imitates a header that does
HOST: Final = 2
CONTENT_LENGTH: Final = 3
TRANSFER_ENCODING: Final = 4
CONNECTION: Final = 5
UPGRADE: Final = 6
EXPECT: Final = 7
KEEP_ALIVE: Final = 8
IDENTITY: Final = 9  # says who the TLS caller was: only sidecert's own certificate may say that
COOKIE: Final = 10
OTHER_PATH: Final = 11  # names another path than the one that was routed
OTHER_METHOD: Final = 12  # names another method; passed on where that one may be called too
PAGE: Final = 13  # Origin, Sec-Fetch-Site: a browser says which page had it send the request; passed on
AUTHORIZATION: Final = 14  # passed on; some schemes say who calls for the whole connection
# The kinds from here on concern answers only. In requests they mean nothing and are passed on.
OUTCOME: Final = 15  # Sidecert-Outcome, which marks sidecert's own answers only
LOCATION: Final = 16  # Location, Content-Location: an address, which may be the upstream's own
REFRESH: Final = 17
SET_COOKIE: Final = 18
TLS_ONLY: Final = 19  # dropped: says how to reach the upstream by TLS, which the caller does not do

_NAMED: Final = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"keep-alive": KEEP_ALIVE,
    b"proxy-connection": DROP,
    b"proxy-authenticate": DROP,
    b"proxy-authentication-info": DROP,
    b"proxy-authorization": DROP,
    b"te": DROP,
    b"http2-settings": DROP,
    b"sidecert-outcome": OUTCOME,
}

# Unlike those above these frame nothing, so what looks like one of them (Set_Cookie) is passed on as it is.
_ABOUT_THE_CALLER: Final = {
    b"authorization": AUTHORIZATION,
    b"cookie": COOKIE,
    b"origin": PAGE,
    b"sec-fetch-site": PAGE,
    b"location": LOCATION,
    b"content-location": LOCATION,
    b"refresh": REFRESH,
    b"set-cookie": SET_COOKIE,
    b"strict-transport-security": TLS_ONLY,  # would turn the caller's http:// into https://, past sidecert
    b"alt-svc": TLS_ONLY,  # offers the upstream's other ports and HTTP/3: past sidecert, with no certificate
    b"expect-ct": TLS_ONLY,  # says what to demand of a certificate that the caller never sees,
    b"public-key-pins": TLS_ONLY,  # and so do these two
    b"public-key-pins-report-only": TLS_ONLY,
}

# Some frameworks and proxies take this path for that of the request line. A call that was routed by one path
# would be executed as another, with a certificate that is not for it.
_OTHER_PATH: Final = frozenset(
    {
        b"x-original-url",  # IIS URL Rewrite; Symfony and Zend behind it
        b"x-original-uri",  # ingress-nginx, and the example of nginx for `auth_request`
        b"x-rewrite-url",  # ISAPI_Rewrite; Symfony and Zend behind it
        b"x-forwarded-uri",  # Traefik and Caddy, for `forwardAuth`
        b"x-envoy-original-path",  # Envoy, where it has rewritten the path
    }
)
# Frameworks execute a POST as the method that these name, past the `methods` of a route. OData callers need
# them (MERGE, DELETE), and without them the call would do something else: so they are checked, not dropped.
_OTHER_METHOD: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})

# Options that Connection may hold without naming a header to drop beyond those that are dropped anyway.
_OPTIONS: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"})

# What a request may not declare hop-by-hop: without these it asks for something else, or as somebody else.
END_TO_END: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"authorization",
        b"cookie",
        b"expect",
        b"range",
    }
)

# RFC 9110 6.5.1: no framing, routing, authentication, modifiers or content fields after the body. All names
# that are not `KEEP` come on top of these.
_NOT_IN_TRAILERS: Final = END_TO_END.union(
    _ABOUT_THE_CALLER,
    (
        b"cache-control",
        b"max-forwards",
        b"pragma",
        b"proxy-status",
        b"retry-after",
        b"trailer",
        b"vary",
        b"www-authenticate",
    ),
)

_NEVER_UPGRADE: Final = (b"h2", b"http", b"tls")

OWS: Final = b" \t"  # optional white space around a value
_AS_DASH: Final = bytes.maketrans(b"_.", b"--")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _kind(name: bytes) -> int:
    lower = name.lower()
    kind = _NAMED.get(lower) or _ABOUT_THE_CALLER.get(lower)
    if kind is not None:
        return kind
    plain = lower.translate(_AS_DASH)
    if plain in _NAMED:
        return DROP  # CGI-like upstreams read Content_Length as Content-Length
    if tells_who_called(plain):
        return IDENTITY
    if plain in _OTHER_PATH:
        return OTHER_PATH
    if plain in _OTHER_METHOD:
        return OTHER_METHOD
    return KEEP


class _Kinds(Memo[bytes, int]):
    """So that a name costs one look-up."""

    __slots__ = ()

    def __missing__(self, name: bytes) -> int:
        kind = _kind(name)
        self.keep(name, kind, len(name))
        return kind


KINDS: Final = _Kinds()


def split_list(value: bytes) -> frozenset[bytes]:
    """The members of a comma-separated list, lower-case, empty ones left out."""
    return frozenset(token.strip(OWS) for token in value.lower().split(b",")) - {b""}


_split_memo = lru_cache(maxsize=256)(split_list)


def connection_options(values: list[bytes]) -> frozenset[bytes]:
    """What the values of all Connection headers list, lower-case."""
    value = values[0] if len(values) == 1 else b",".join(values)
    return _split_memo(value) if len(value) <= 64 else split_list(value)


def named_headers(options: frozenset[bytes]) -> frozenset[bytes]:
    """The header names (lower-case) that Connection lists, beyond its own well-known options."""
    return options - _OPTIONS


def pairs(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """(name, value without blanks around it) of each header line."""
    split = (line.partition(b":") for line in lines)
    return [(name, value.strip(OWS)) for name, _, value in split]


def is_token(text: bytes) -> bool:
    """Whether `text` is a token as of RFC 9110 5.6.2."""
    return _TOKEN.fullmatch(text) is not None


def drop_named(lines: list[bytes], names: frozenset[bytes], at: int) -> int:
    """Drops the header lines with these lower-case `names`, in place; returns where the line at `at` is then.

    `lines[0]` is the start line and `at` the place of a line that is never dropped, or 0 for none.
    """
    kept = [lines[0]]
    place = 0
    for index, line in enumerate(lines[1:], start=1):
        if index == at:
            place = len(kept)
        elif line[: line.find(b":")].lower() in names:
            continue
        kept.append(line)
    lines[:] = kept
    return place


def may_upgrade(protocols: bytes) -> bool:
    """Whether an Upgrade to these protocols, at least one, may be passed on; h2c and TLS may not.

    Both would carry requests past the routes, inside a tunnel that was opened with a route's certificate.
    """
    names = split_list(protocols)
    return bool(names) and not any(name.startswith(_NEVER_UPGRADE) for name in names)


def upgrade_lines(protocol: bytes) -> bytes:
    """The last lines of a head that asks for, or grants, a switch to `protocol`."""
    return b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol


def forwardable_trailers(trailers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those trailers that may be passed on after a body (RFC 9110 6.5.1)."""
    return [
        (name, value)
        for name, value in trailers
        if KINDS[name] == KEEP and name.lower().translate(_AS_DASH) not in _NOT_IN_TRAILERS
    ]
