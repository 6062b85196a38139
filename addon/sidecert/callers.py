"""Who may call on a listener: by the caller's address, and by the web page that made its browser call. Pure.

A listener presents somebody's certificate to whoever reaches it. So it says who that may be, and a page that
a browser shows is nobody: any page on the web can make the browser of somebody inside send it a request.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from sidecert.config import ListenerConfig
from sidecert.config.callers import ANY_ORIGIN, LOOPBACK, Network
from sidecert.errors import Reason, Refusal
from sidecert.memo import Memo
from sidecert.words import shown

_SHOWN_ORIGIN = 200  # characters
_SHOWN_LIST = 12


@dataclass(frozen=True, slots=True)
class Callers:
    """The rules of one listener. `allow` is None on unix sockets, whose file has a mode."""

    label: str
    allow: tuple[Network, ...] | None = None
    origins: frozenset[str] = frozenset()
    gone: bool = False
    """The listener has been removed: what comes in on its connections is served by no rules any more."""
    _known: Memo[str, bool] = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(cls, config: ListenerConfig) -> Callers:
        """Those of a configured listener. One that is bound to loopback takes loopback callers, unless told:
        there are ways in from outside (net.ipv4.conf.*.route_localnet), and names that lead elsewhere."""
        allow = None if config.bind.kind == "unix" else config.allow or LOOPBACK
        return cls(config.bind.label, allow, config.origins)

    def check_address(self, peer: object) -> None:
        """Raises Refusal where the caller with that socket address may not call."""
        if self.allow is None:
            return
        host = str(peer[0]) if isinstance(peer, tuple) else ""
        allowed = self._known.get(host)
        if allowed is None:
            allowed = self._allows(host)
            self._known.keep(host, allowed, len(host))
        if not allowed:
            raise Refusal.of(
                Reason.CALLER_NOT_ALLOWED,
                f"The caller's address, {_spelt(host)}, is none of those that may call on {self.label}.",
                f"If it may call, add it to `allow` of the listener {self.label}: "
                f"`allow: [{_listed(*map(_network, self.allow), _spelt(host))}]`.",
            )

    def _allows(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self.allow or ())

    def check_page(self, page: str) -> None:
        """Raises Refusal for a request that may come from a page elsewhere; `page` is that of its head."""
        if self.origins == ANY_ORIGIN or page in self.origins:
            return
        if page:
            name = shown(page, _SHOWN_ORIGIN)
            detail = f"A web page of the origin {name} had this request sent, and it may not call here."
            remedy = (
                f"If that page may call, add its origin to `origins` of the listener {self.label}: "
                f"`origins: [{_listed(*sorted(self.origins), name)}]`."
            )
        else:
            detail = (
                "A web page of another origin had a browser send this request, as its Sec-Fetch-Site says; "
                "which origin, it does not say."
            )
            remedy = f"If such pages may call, write `origins: any` at the listener {self.label}."
        raise Refusal.of(
            Reason.CALLER_NOT_ALLOWED, detail, f"{remedy} A tool sends neither Origin nor Sec-Fetch-Site."
        )


LOOPBACK_ONLY = Callers("this listener", LOOPBACK)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as rules are written: without its zone, IPv4 as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _listed(*values: str) -> str:
    """All of them, so that whoever copies the list shuts nobody out; of a long one its end."""
    return ", ".join(values if len(values) <= _SHOWN_LIST else ("...", *values[-2:]))


def _network(network: Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


def _spelt(host: str) -> str:
    return str(_address(host) or "unknown")
