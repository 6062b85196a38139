"""Where a request wants to go: its target and Host, taken apart and checked (RFC 9112 3.2, RFC 9110 7.2)."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

from sidecert.errors import Reason, Refusal
from sidecert.http1.malformed import bad_request, shown

# RFC 3986, and then what legacy tools leave bare though they should not: it can be read in one way only.
_IN_TARGET: Final = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?%" + b"[]{}|^`"
)
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)", re.DOTALL)
_LABEL: Final = rb"[A-Za-z0-9_-]{1,63}"
_AUTHORITY: Final = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|(" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?))(?::([0-9]{0,5}))?"
)
Parts = tuple[str, bytes | None, bytes, bytes]  # a plain tuple: one is made per request

_HOST_HINT: Final = "Send the host's name or address, with `:port` if it has one, and nothing else."


def read_target(method: bytes, target: bytes) -> Parts:
    """(scheme, authority or None, raw path, origin-form) of a target.

    Without an authority Host decides. Raises Refusal when the target has not the form that fits the method.
    """
    odd = target.translate(None, _IN_TARGET)
    if odd:
        raise bad_request(
            f"The target holds the character {shown(odd[:1])} at byte {target.index(odd[:1])}.",
            f"Percent-encode it: `%{odd[0]:02X}`." if odd[:1] != b"#" else "Leave the fragment out.",
        )
    if 0x25 in target and (bad := _BAD_PERCENT.search(target)) is not None:
        raise bad_request(
            f"The target holds a `%` without two hexadecimal digits at byte {bad.start()}.", "Write `%25`."
        )
    if method == b"CONNECT":
        raise _connect(target)
    if target.startswith(b"/"):
        return ("http", None, target.partition(b"?")[0], target)
    if target == b"*":
        if method != b"OPTIONS":
            raise bad_request("The target `*` is for OPTIONS only.", "Send a path that begins with `/`.")
        return ("http", None, b"*", b"*")
    return _absolute(method, target)


def _connect(target: bytes) -> Refusal:
    host_port = _AUTHORITY.fullmatch(target)
    if host_port is None or not host_port[3]:
        return bad_request("The target of CONNECT is not `host:port`.", "Send `CONNECT host:port HTTP/1.1`.")
    plain = shown(target.removesuffix(b":443"))[1:-1]
    return Refusal.of(
        Reason.CONNECT_NOT_ALLOWED,
        f"The caller asked for a tunnel (CONNECT) to {shown(target)}, as tools do for an https:// address. "
        "Inside a tunnel no certificate could be added.",
        f"Call http://{plain} instead of https://{plain}, with sidecert as the proxy for http (`http_proxy`, "
        "not `https_proxy`); sidecert makes the TLS connection.",
    )


def _absolute(method: bytes, target: bytes) -> Parts:
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise bad_request(
            "The target is neither a path nor a URL.", "Send `/path`, or `http://host/path` as to a proxy."
        )
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if scheme not in (b"http", b"https"):
        raise bad_request(f"The target's scheme {shown(scheme)} is not served.", "Use http.")
    if rest.startswith(b"/"):
        origin = rest
    elif not rest and method == b"OPTIONS":
        origin = b"*"  # RFC 9112 3.2.4
    else:
        origin = b"/" + rest
    return (scheme.decode(), authority, origin.partition(b"?")[0], origin)


@lru_cache(maxsize=256)
def read_authority(authority: bytes) -> tuple[str, int | None]:
    """(host as sent, without IPv6 brackets; port or None) of `host[:port]`; raises Refusal."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or len(authority) > 261:  # 253 + dot + colon + port, or an address
        raise bad_request(*_authority_problem(authority))
    v6, name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        raise bad_request(f"The port {port} does not exist.", "Ports go from 1 to 65535.")
    if v6 is None:
        return name.decode(), port
    try:
        ipaddress.IPv6Address(v6.decode())
    except ValueError:
        raise bad_request("The host in brackets is not an IPv6 address.", _HOST_HINT) from None
    return v6.decode(), port


def _authority_problem(authority: bytes) -> tuple[str, str]:
    if not authority:
        return "The host is empty.", _HOST_HINT
    if b"@" in authority:
        return (
            "The host holds user information before an `@`.",
            "Leave it out; send credentials in an Authorization header.",
        )
    if not authority.isascii():
        return "The host holds characters outside ASCII.", "Write the name in its `xn--` form."
    if b"," in authority or b" " in authority:
        return "The host holds more than one name.", _HOST_HINT
    return f"The host {shown(authority)} is not a valid name or address.", _HOST_HINT
