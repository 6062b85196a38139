"""Hosts: names and addresses as config and routing compare them. Pure."""

from __future__ import annotations

import ipaddress
import re

import idna

from sidecert.config.mistake import Mistake, shown

MAX_HOST = 253  # characters of a name without its trailing dot, RFC 1035 2.3.4
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # `_` is no host name by RFC 1123, yet in daily use
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_ENDS_IN_NUMBER = re.compile(r"(?:\A|\.)(?:[0-9]+|0x[0-9a-f]*)\Z")


def normalise_host(host: str) -> str:
    """`host` as routes compare it: lower-case, IDNA A-labels, no trailing dot; addresses in canonical form.

    `host` is a name, an IPv4 address or an IPv6 address with or without its brackets, without a port.
    Raises `Mistake` (a ValueError) when it is none of these.
    """
    name = (host.lower() if host.isascii() else _to_ascii(host)).removesuffix(".")
    if ":" in name or name.startswith("["):
        return _normalise_v6(host, name)
    if len(name) > MAX_HOST or not _NAME.match(name):
        raise _host_mistake(host, name)
    if _ENDS_IN_NUMBER.search(name):
        return _normalise_v4(name)
    return name


def _to_ascii(host: str) -> str:
    """The name in A-labels (RFC 5891, mapped by UTS 46); what is no label at all is judged by the caller."""
    if len(host) > MAX_HOST:
        raise Mistake("the host name is too long", f"a host name has at most {MAX_HOST} characters")
    try:
        return idna.encode(host, uts46=True, std3_rules=False).decode("ascii").lower()
    except UnicodeError:
        wrong = f"{shown(host)} is not an internationalised host name"
        raise Mistake(wrong, "write it as DNS knows it, in its xn-- form") from None


def _normalise_v6(host: str, name: str) -> str:
    """`name` is the lower-case form of `host` and holds a colon or a bracket."""
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        if "%" in bare:
            raise Mistake("an IPv6 address with a zone is not taken", "write the address without %...")
        return ipaddress.IPv6Address(bare).compressed
    except ipaddress.AddressValueError:
        raise _host_mistake(host, name) from None


def _normalise_v4(name: str) -> str:
    """A name that ends in a number is an address or nothing: resolvers read 127.1 and 0x7f.1 as 127.0.0.1."""
    try:
        return str(ipaddress.IPv4Address(name))
    except ipaddress.AddressValueError:
        wrong = f"{shown(name)} is neither a host name nor an IPv4 address"
        raise Mistake(wrong, "write a name that does not end in a number, or all four numbers") from None


def _host_mistake(host: str, name: str) -> Mistake:
    """Why `host` is no host, with the likeliest intention as the remedy; never repeats a userinfo."""
    if not name:
        return Mistake("the host is empty", "write a host name such as orders.example.com")
    if "@" in name:
        return Mistake("the host holds a user name", "write only what is behind the @")
    if "/" in name or "?" in name or "#" in name:
        return Mistake(
            f"{shown(host)} is a URL or a path", "write only the host name, such as orders.example.com"
        )
    if re.fullmatch(r"[^:]+:[0-9]+", name):
        return Mistake(
            f"{shown(host)} holds a port", "write only the host here, the port under a key of its own"
        )
    if "*" in name:
        return Mistake(f"{shown(host)} is a pattern", "write one host, without *")
    if len(name) > MAX_HOST or any(len(label) > 63 for label in name.split(".")):
        return Mistake("the host name is too long", f"at most {MAX_HOST} characters, and 63 between two dots")
    if name.count(":") > 1 or "[" in name:
        return Mistake(f"{shown(host)} is not an IPv6 address", "write one such as 2001:db8::1")
    return Mistake(f"{shown(host)} is not a host name", "letters, digits, - and _ between single dots")


def bracket(host: str) -> str:
    """`host` as it stands in a URL: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def host_port(host: str, port: int) -> str:
    """`host:port`, as it stands in a URL; `host` is without brackets."""
    return f"{bracket(host)}:{port}"


def is_address(host: str) -> bool:
    """Whether a normalised host is an IP address: no name has a colon or ends in a number."""
    return ":" in host or bool(_ENDS_IN_NUMBER.search(host))


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[^\]]*\]|[^/?#@:\[\]\\]+)(?::([0-9]{1,5}))?\Z", re.IGNORECASE)
_USUAL_PORTS = {"http": "80", "https": "443"}


def canonical_origin(text: str) -> str | None:
    """The origin that `text` is (RFC 6454), in the one spelling that may be compared; None where it is none.

    Scheme and host lower-case, IDNA A-labels, no port where it is the scheme's own: `https://app.example`.
    A name that ends in a dot is another origin to browsers, which keeps it; an address has none (WHATWG URL).
    """
    match = _ORIGIN.match(text)
    if match is None:
        return None
    scheme = match[1].lower()
    try:
        host = bracket(normalise_host(match[2]))
    except Mistake:
        return None
    if match[2].endswith(".") and not is_address(host):
        host += "."
    if match[3] is None or match[3].lstrip("0") == _USUAL_PORTS.get(scheme):
        return f"{scheme}://{host}"
    port = int(match[3])
    return f"{scheme}://{host}:{port}" if 0 < port < 65536 else None
