"""Who may call on a listener, as the config has it: addresses, origins, the mode of a socket. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from sidecert.config.binds import Bind
from sidecert.config.hosts import canonical_origin, host_port
from sidecert.config.mistake import Mistake, kind, shown
from sidecert.config.values import text

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY: Final = "any"
LOOPBACK: Final[tuple[Network, ...]] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv6Network("::1/128"),
)
EVERYWHERE: Final[tuple[Network, ...]] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
"""What `allow: any` stands for."""
ANY_ORIGIN: Final = frozenset({ANY})
"""What `origins: any` stands for; no origin is spelt like that."""
DEFAULT_MODE: Final = 0o660
"""Whoever may write to a unix socket may call under our certificates: its owner and group, no others."""

_MODE: Final = re.compile(r"0[0-7]{3}\Z")
_LOOSE_MODE: Final = re.compile(r"(?:0o|0)?([0-7]{3})\Z")
_MAY_WRITE: Final = 0o222
_ADDRESS: Final = "write an address such as 192.168.1.7, or a network such as 10.0.0.0/8"
_MODES: Final = 'write "0600", "0660" or "0666"'
_ORIGIN: Final = "write one such as https://app.example"


class Trouble(NamedTuple):
    """What is wrong with a key of a listener, and what would be right."""

    key: str
    wrong: str
    right: str
    warning: bool = False


def listed(value: object, key: str, example: str) -> object:
    """The list behind a key that takes `any` in its place, not yet looked at one by one."""
    if value == "*":
        raise Mistake(f"{shown(value)} is not a list", f"write {key}: [{example}], or {key}: any for all")
    if isinstance(value, str):
        raise Mistake(f"{shown(value)} is a text, not a list", f"write {key}: [{value}], or {key}: any")
    if not isinstance(value, list | tuple | frozenset):
        raise Mistake(f"this is {kind(value)}, not a list", f"write {key}: [{example}], or {key}: any")
    return value


def networks(value: object, each: Callable[[object], tuple[Network, ...]]) -> tuple[Network, ...]:
    """The networks whose callers are allowed; `any` is all there are."""
    if value == ANY:
        return EVERYWHERE
    found = each(listed(value, "allow", "10.0.0.0/8"))
    if not found:
        raise Mistake("the list is empty, so nobody could call", "write allow: [10.0.0.0/8], or allow: any")
    return found


def network(value: object) -> Network:
    """An address or a network, IPv4 or IPv6."""
    if isinstance(value, Network):
        return value
    written = text(value)
    if written == ANY:
        raise Mistake("any is no address", "write allow: any, without a list")
    if "%" in written:
        raise Mistake(f"{shown(written)} has a zone, which says nothing of a caller", "write it without %...")
    host, slash, length = written.partition("/")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise Mistake(f"{shown(written)} is neither an address nor a network", _ADDRESS) from None
    if slash and not (re.fullmatch(r"[0-9]{1,3}", length) and int(length) <= address.max_prefixlen):
        wrong = f"{shown(length)} is not the length of a network's prefix"
        raise Mistake(wrong, f"write a number from 0 to {address.max_prefixlen} after the /")
    bits = int(length) if slash else address.max_prefixlen
    found = ipaddress.ip_network(f"{host}/{bits}", strict=False)
    if isinstance(address, ipaddress.IPv6Address) and (inner := address.ipv4_mapped) and bits >= 96:
        plain = ipaddress.ip_network(f"{inner}/{bits - 96}", strict=False)
        raise Mistake(f"{shown(written)} is an IPv4 address in the form of IPv6", f"write {_spelt(plain)}")
    if found.network_address != address:
        wrong = f"{shown(written)} has bits beyond its /{bits}"
        raise Mistake(wrong, f"write {found} for the network, or {address} for that address alone")
    return found


def _spelt(found: Network) -> str:
    return str(found.network_address if found.num_addresses == 1 else found)


def origins(value: object, each: Callable[[object], frozenset[str]]) -> frozenset[str]:
    """The origins whose pages are allowed; `any` switches the rule off."""
    if value == ANY:
        return ANY_ORIGIN
    return each(listed(value, "origins", "https://app.example"))


def origin(value: object) -> str:
    """A browser origin, as `canonical_origin` spells it."""
    written = text(value)
    if written == ANY:
        raise Mistake("any is no origin", "write origins: any, without a list")
    if written == "null":
        wrong = "null is what every sandboxed page and every local file calls itself"
        raise Mistake(wrong, "name the origin that the page is served from")
    found = canonical_origin(written)
    if found is not None:
        return found
    scheme, mark, rest = written.partition("://")
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not mark and canonical_origin(f"https://{written}"):
        raise Mistake(f"{shown(written)} has no scheme", f"write https://{written}, or http://{written}")
    if place != rest and canonical_origin(f"{scheme}://{place}"):
        wrong = f"{shown(written)} is more than an origin: it has no path and no / at its end"
        raise Mistake(wrong, f"write {scheme}://{place}")
    raise Mistake(f"{shown(written)} is not an origin", _ORIGIN)


def mode(value: object) -> int:
    """The permissions of a socket file, from octal digits with a leading 0: `0660`."""
    if isinstance(value, str) and _MODE.match(value):
        found = int(value, 8)
        if not found & _MAY_WRITE:
            raise Mistake(f"with {value} nobody could call", 'write "0660", or "0600" for its owner alone')
        return found
    if isinstance(value, str | int) and not isinstance(value, bool):
        right = _MODES
        if loose := _LOOSE_MODE.match(str(value)):
            right = f'write "0{loose[1]}"'
        raise Mistake(f"{shown(value)} is not a mode in octal digits that begin with 0", right)
    raise Mistake(f"this is {kind(value)}, not a mode", _MODES)


def _may_take_loopback(allow: list[object]) -> bool:
    """False only where all of it can be read."""
    try:
        found = [network(each) for each in allow]
    except Mistake:
        return True
    return not found or any(
        each.overlaps(own) for each in found for own in LOOPBACK if each.version == own.version
    )


def troubles(address: Bind, allow: object, has_mode: bool) -> Iterator[Trouble]:
    """What is wrong with who may call on `address`; `allow` is as written, None where it is left out."""
    label = shown(address.label)
    if address.kind == "unix":
        if allow is not None:
            right = "leave allow out, and say with mode who may open the socket"
            yield Trouble("allow", "callers on a unix socket have no address", right)
        return
    if has_mode:
        right = "leave mode out, and say with allow which addresses may call"
        yield Trouble("mode", f"{label} is not a unix socket, and has no mode", right)
    if address.loopback:
        if isinstance(allow, list) and not _may_take_loopback(allow):
            own = "::1" if ":" in address.host else "127.0.0.1"
            wrong = f"callers on {label} have loopback addresses, and allow names none: nobody could call"
            yield Trouble("allow", wrong, f"add {own}, or leave allow out", warning=True)
        return
    if allow is None:
        narrow = host_port("127.0.0.1", address.port)
        right = (
            "name your callers, as in allow: [10.0.0.0/8, 192.168.1.7], or write allow: any; or bind "
            f"{narrow}, for this machine alone"
        )
        yield Trouble("allow", f"{label} is open to the network, and nothing says who may call", right)
    elif allow == ANY or (isinstance(allow, list) and any(str(each).endswith("/0") for each in allow)):
        wrong = f"{label} is open to the network: whoever reaches it can call with these certificates"
        right = "name the addresses that call, unless something else keeps others out"
        yield Trouble("allow", wrong, right, warning=True)
