"""From a host and a port to a connected socket, noting what happened on the way.

Addresses are tried as RFC 8305 has it (happy eyeballs): families take turns, and the next address starts
when the one before has failed or has not answered for a quarter of a second.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from concurrent.futures import Future
from functools import partial
from typing import Any

from sidecert.errors import Reason, Refusal, SidecertError
from sidecert.generation import Upstream
from sidecert.outcome import Ending, Observation, Stage
from sidecert.threads import NoThread, start_thread

_STAGGER = 0.25

_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class NotConnected(SidecertError):
    """There is no connection; the observation says how far it came and why it ended."""


async def connect(upstream: Upstream, seen: Observation) -> socket.socket:
    """A connected, non-blocking socket to `upstream`, within its `connect` time limit.

    Raises NotConnected, and Refusal where a caller chose a host that has a private address, or where too many
    names are being looked up.
    """
    limit = upstream.route.config.upstream.timeouts.connect
    try:
        async with asyncio.timeout(limit):
            chosen_through = upstream.route.id if upstream.chosen_by_caller else None
            addresses = await _resolve(upstream.host, upstream.port, chosen_through)
            if upstream.chosen_by_caller and not upstream.route.config.private:
                _refuse_private(upstream, addresses)
            seen.stage = Stage.CONNECTING
            seen.addresses = tuple(sockaddr[0] for _, sockaddr in addresses)
            return await _race(_interleave(addresses))
    except TimeoutError as exc:
        seen.ending, seen.timeout = Ending.TIMEOUT, limit
        raise NotConnected from exc
    except ConnectionRefusedError as exc:
        seen.ending, seen.error = Ending.REFUSED, _words(exc)
        raise NotConnected from exc
    except (ConnectionResetError, BrokenPipeError) as exc:
        # The kernel says these only of a connection that stood: it was ended before we looked.
        seen.ending, seen.error = Ending.RESET, _words(exc)
        raise NotConnected from exc
    except OSError as exc:
        seen.ending, seen.error = Ending.FAILED, _words(exc)
        if not isinstance(exc, socket.gaierror) and exc.errno in _OURS:
            seen.ours, seen.stage = True, Stage.CONNECTING  # no name server is to blame either
        raise NotConnected from exc


_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
"""What says that this machine lacks something: the last of them that no port is left to call from."""


def _words(error: OSError) -> str:
    """The system's own words: those of asyncio name the address as well, which is told elsewhere."""
    if error.errno is None or isinstance(error, socket.gaierror):  # whose numbers are of another kind
        return error.strerror or str(error)
    return os.strerror(error.errno)


_Found = list[tuple[Any, ...]]
_MOST_CHOSEN = 32  # look-ups of names that callers choose, of each route they choose them through
_MOST_CONFIGURED = 256  # of names in the config, each of which takes one at most
_under_way: dict[tuple[str, int], tuple[Future[_Found], str | None]] = {}


async def _look_up(host: str, port: int, chosen_through: str | None) -> _Found:
    """What getaddrinfo finds, asked once for all who want to know at the same time.

    It blocks its thread until the name servers are given up, long after the call's limit. uvloop has so few
    threads for it that two dead names would stall every route, and an executor's would hold up the end of
    the process.
    """
    if _is_literal(host):
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]  # asks nobody
    key = (host, port)
    asked, _ = _under_way.get(key, (None, None))
    if asked is None:
        _refuse_without_room(chosen_through)
        try:
            asked = start_thread("look-up", partial(_ask, host, port))
        except NoThread as exc:
            raise _no_room("No thread can be had to look the name up.") from exc
        _under_way[key] = asked, chosen_through
        asked.add_done_callback(lambda _: _under_way.pop(key, None))
    # Shielded: it goes on for the others when one of them leaves.
    return await asyncio.shield(asyncio.wrap_future(asked))


def _refuse_without_room(chosen_through: str | None) -> None:
    """Callers that choose names which hang take no room from other routes, nor from names in the config."""
    count = sum(through == chosen_through for _, through in tuple(_under_way.values()))
    if chosen_through is None and count >= _MOST_CONFIGURED:
        raise _no_room(f"The look-ups of {count} names of the config have no answer yet.")
    if chosen_through is not None and count >= _MOST_CHOSEN:
        raise _no_room(
            f"The look-ups of {count} names that callers chose through route {chosen_through} have no answer "
            "yet."
        )


def _no_room(wrong: str) -> Refusal:
    right = "Call again after a while; if names hang often, find out what the name servers lack."
    return Refusal.of(Reason.OVERLOADED, wrong, right, retry_after=1)


def _ask(host: str, port: int) -> _Found:
    try:
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except socket.gaierror as exc:
        raise _lack_of_descriptors() or exc from None


def _lack_of_descriptors() -> OSError | None:
    """The error of whoever wants one now. getaddrinfo, which needs some, says that there is no such name."""
    try:
        socket.socket().close()
    except OSError as exc:
        return exc
    return None


async def _resolve(host: str, port: int, chosen_through: str | None) -> list[_Address]:
    """`chosen_through` is the route through which a caller chose the host; None for one in the config."""
    try:
        found = await _look_up(host, port, chosen_through)
    except UnicodeError as exc:
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from exc
    unique = dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found)
    return [(socket.AddressFamily(family), sockaddr) for family, sockaddr in unique]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _interleave(addresses: list[_Address]) -> list[_Address]:
    """The resolver's order, but families in turn, so that one dead family costs one stagger."""
    if not addresses:
        return []
    first_family = addresses[0][0]
    ours = [address for address in addresses if address[0] == first_family]
    others = [address for address in addresses if address[0] != first_family]
    turns: list[_Address] = []
    while ours or others:
        turns += [family.pop(0) for family in (ours, others) if family]
    return turns


async def _race(addresses: list[_Address]) -> socket.socket:
    waiting = list(addresses)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: OSError = OSError("the host has no address")
    winner: socket.socket | None = None
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_attempt(waiting.pop(0))))
            done, attempts = await asyncio.wait(
                attempts, timeout=_STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    winner = attempt.result()
                    attempts |= done - {attempt}
                    return winner
                if not isinstance(error, OSError):
                    raise error
                failure = error
        raise failure
    finally:
        try:
            await _abandon(attempts)
        except BaseException:
            if winner is not None:
                winner.close()  # we have to leave as well, and nobody else knows of it
            raise


async def _attempt(address: _Address) -> socket.socket:
    family, sockaddr = address
    connection = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(connection, sockaddr)
    except BaseException:
        connection.close()
        raise
    return connection


async def _abandon(attempts: set[asyncio.Task[socket.socket]]) -> None:
    """End the attempts that lost; one may have connected in the same moment, or be about to."""
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


def _refuse_private(upstream: Upstream, addresses: list[_Address]) -> None:
    for _, sockaddr in addresses:
        if _is_private(sockaddr[0]):
            raise Refusal.of(
                Reason.PRIVATE_ADDRESS,
                f"{upstream.host} was taken from the request through a wildcard, and it resolves to an "
                "address that is loopback, link-local or private.",
                f"If that is meant, set `private: true` on route {upstream.route.id!r}, or write the host "
                "into the config.",
            )


def _is_private(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    if isinstance(address, ipaddress.IPv6Address) and (address not in _GLOBAL_V6 or address in _DOCUMENTS):
        return True  # what IANA has given to nobody may be routed to somewhere inside
    return not address.is_global or address.is_multicast


_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_DOCUMENTS = ipaddress.ip_network("3fff::/20")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
