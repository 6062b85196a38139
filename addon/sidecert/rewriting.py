"""What an upstream tells a TLS client, made right for a caller who speaks plain HTTP through sidecert.

- `Location`, `Content-Location` and `Refresh` that name the upstream's own origin get the address the caller
  itself called instead. Only the own origin: an address elsewhere, another route's upstream too, stays as it
  is byte for byte, and so does a relative one. The path stays: sidecert maps none, so where several routes
  share a host, the next call finds its route as any other does. Nothing is followed.
- `Set-Cookie` loses what would keep the caller from storing the cookie or sending it back: `Secure`,
  `SameSite=None` and `Partitioned` (which need Secure), a `Domain` that the caller's host is not in, and the
  name prefixes of `http1.cookie_names`.
- `Strict-Transport-Security`, `Alt-Svc` and their kin are left out while the head is read (`http1.hopbyhop`).

A caller that asks for an https:// address as it would ask a proxy takes the answer for one that came by TLS:
its addresses stay https and its cookies secure.

Left alone on purpose: `Link` and other headers with addresses, addresses in bodies, and in requests `Origin`
and `Referer`, which name the address that the caller sees. `Upgrade-Insecure-Requests` stays too: it asks the
upstream for what it gives anyway.
"""

from __future__ import annotations

import re
from typing import Final

from sidecert.config.hosts import bracket, is_address, normalise_host
from sidecert.http1 import LOCATION, OWS, REFRESH, RequestHead, ResponseHead, hide

Origin = tuple[str, int]
"""Host (normalised) and port of an https address."""

_HTTPS: Final = 443
# What begins an address: nothing that a lenient reader could find another host in. `https://a:8443@b/` is
# none of a's, nor is `https://a\@b/` to everybody.
_ADDRESS: Final = re.compile(
    rb"(?:https:)?//(\[[0-9a-f:.]++\]|[a-z0-9._-]++)(?::([0-9]{0,5}))?(?=[/?#]|[\"']?[ \t]*+\Z)",
    re.IGNORECASE,
)
_AUTHORITY: Final = re.compile(r"(\[.+\]|[^:]+)(?::([0-9]*))?")
_BLANKS: Final = re.compile(rb"[ \t]*+")
# What comes before the address in Refresh: `5; url="`, and what browsers take for it (HTML 4.2.5.3).
_BEFORE_URL: Final = re.compile(
    rb"[ \t]*+[0-9.]*+[ \t]*+(?:[;,][ \t]*+)?(?:url[ \t]*+=[ \t]*+)?[\"']?", re.IGNORECASE
)
_NEEDS_SECURE: Final = (b"secure", b"partitioned")


def own_origins(host: str, port: int, server_name: str, host_header: str) -> frozenset[Origin]:
    """The https origins that an upstream may call its own: under each name that sidecert calls it by.

    `host_header` is `host[:port]`. An upstream builds its addresses from that, or from its host and the port
    that it listens on. Raises ValueError when one of them is no host.
    """
    named = _AUTHORITY.fullmatch(host_header)
    if named is None:
        raise ValueError(f"{host_header!r} is no host")
    name = normalise_host(named[1])
    hosts = {normalise_host(host), normalise_host(server_name), name}
    return frozenset({*((each, port) for each in hosts), (name, int(named[2] or _HTTPS))})


def rewrite(answer: ResponseHead, request: RequestHead, own: frozenset[Origin]) -> None:
    """Make `answer` right for who sent `request`, in place; `own` are the origins of the upstream.

    For answers with `special` lines only; the others need none of this.
    """
    base = caller_base(request.scheme, request.host, request.port)
    plain = request.scheme == "http"
    for at, kind in answer.special:
        name, _, value = answer.lines[at].partition(b":")
        if kind == LOCATION:
            value = rewrite_location(value, own, base)
        elif kind == REFRESH:
            value = rewrite_refresh(value, own, base)
        else:
            value = rewrite_cookie(value, request.host, plain=plain)
        answer.lines[at] = b"%b:%b" % (name, value)


def caller_base(scheme: str, host: str | None, port: int | None) -> bytes:
    """`http://host[:port]` as the caller wrote it; empty where it named no host (HTTP/1.0 without Host)."""
    if host is None:
        return b""
    return f"{scheme}://{bracket(host)}{'' if port is None else f':{port}'}".encode()


def rewrite_location(value: bytes, own: frozenset[Origin], base: bytes) -> bytes:
    """The value of Location or Content-Location for a caller whose addresses begin with `base`.

    Without a `base` an own address becomes a relative one: only the path is left.
    """
    return _rewrite_from(_BLANKS, value, own, base)


def rewrite_refresh(value: bytes, own: frozenset[Origin], base: bytes) -> bytes:
    """The same for Refresh, `seconds; url=address`."""
    return _rewrite_from(_BEFORE_URL, value, own, base)


def _rewrite_from(before: re.Pattern[bytes], value: bytes, own: frozenset[Origin], base: bytes) -> bytes:
    start = before.match(value)
    assert start is not None  # both patterns match nothing, too
    found = _ADDRESS.match(value, start.end())
    if found is None or _origin(found[1], found[2]) not in own:
        return value
    rest = value[found.end() :]
    return start[0] + (base + rest if base else _relative(rest))


def _origin(host: bytes, port: bytes | None) -> Origin | None:
    try:
        return normalise_host(host.decode()), int(port or _HTTPS)
    except ValueError:
        return None


def _relative(rest: bytes) -> bytes:
    """An address without its origin: `rest` is a path, a query, a fragment, or nothing."""
    if rest[:1] != b"/":
        return b"/" + rest
    # `//b/` would be a host; browsers read `\` as `/` and skip tabs (RFC 3986 4.2, WHATWG URL 4.4)
    return b"/." + rest if rest[1:2] in (b"/", b"\\", b"\t") else rest


def rewrite_cookie(value: bytes, host: str | None, *, plain: bool) -> bytes:
    """The value of Set-Cookie for a caller that called `host` (as sent), if `plain` by an http:// address.

    What stays keeps its place and bytes.
    """
    pair, *attributes = value.split(b";")
    kept = [hide(pair) if plain else pair]
    for attribute in attributes:
        name, _, setting = attribute.partition(b"=")
        name, setting = name.strip(OWS).lower(), setting.strip(OWS).lower()
        if name == b"domain" and not _covers(setting, host):
            continue
        if plain and (name in _NEEDS_SECURE or (name == b"samesite" and setting == b"none")):
            continue
        kept.append(attribute)
    return b";".join(kept)


def _covers(domain: bytes, host: str | None) -> bool:
    """Whether a user agent takes a cookie with this Domain from `host` (RFC 6265 5.1.3, 5.2.3)."""
    domain = domain.removeprefix(b".")
    if not domain:
        return True  # is as good as no Domain
    if host is None:
        return False
    own = host.lower().encode()
    return own == domain or (own.endswith(b"." + domain) and not is_address(host))
