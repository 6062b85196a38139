"""Heads and connections as mitmproxy knows them. Copies for people and addons to look at, nothing more."""

from __future__ import annotations

import asyncio
import time
from typing import cast
from weakref import WeakKeyDictionary

from mitmproxy import certs, connection, http

from sidecert.exchange import Caller
from sidecert.generation import Upstream
from sidecert.http1 import RequestHead, ResponseHead
from sidecert.outcome import Observation
from sidecert.upstream import UpstreamConnection

_NO_ADDRESS = ("unix", 0)
"""A unix socket's ends have no address, and mitmproxy's files want one."""


def request(head: RequestHead, fallback_host: str) -> http.Request:
    """The request as the caller sent it, its body still to come."""
    return http.Request(
        host=head.host or fallback_host,
        port=head.port or (443 if head.scheme == "https" else 80),
        method=head.method,
        scheme=head.scheme.encode(),
        authority=b"",
        path=head.origin_target,
        http_version=b"HTTP/1.%d" % head.minor,
        headers=tuple(head.headers),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def answer(head: ResponseHead) -> http.Response:
    """The answer as the upstream sent it, its body still to come."""
    return http.Response(
        http_version=b"HTTP/1.%d" % head.minor,
        status_code=head.status,
        reason=head.reason,
        headers=tuple(head.headers),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def planned(upstream: Upstream | None) -> connection.Server:
    """The connection that a call would use, while there is none."""
    if upstream is None:
        return connection.Server(address=None)
    return connection.Server(address=(upstream.host, upstream.port), tls=True, sni=upstream.server_name)


def attempted(upstream: Upstream | None, seen: Observation) -> connection.Server:
    """The connection that could not be opened, as far as it came."""
    server = planned(upstream)
    server.tls_version = cast("connection.TlsVersion | None", seen.tls_version or None)
    if upstream is not None and len(seen.addresses) == 1:
        server.peername = (seen.addresses[0], upstream.port)
    return server


class Connections:
    """One mitmproxy object for each connection, shared by all flows on it."""

    def __init__(self) -> None:
        self._callers: WeakKeyDictionary[Caller, connection.Client] = WeakKeyDictionary()
        self._upstreams: WeakKeyDictionary[UpstreamConnection, connection.Server] = WeakKeyDictionary()

    def caller(self, caller: Caller) -> connection.Client:
        """The downstream connection. Its proxy mode is a stock one, so that saved flows open anywhere."""
        client = self._callers.get(caller)
        if client is None:
            client = self._callers[caller] = connection.Client(
                peername=_address(caller.peer()), sockname=_address(caller.own_address())
            )
        return client

    def upstream(self, used: UpstreamConnection) -> connection.Server:
        """The upstream connection, which is open."""
        server = self._upstreams.get(used)
        if server is None:
            server = self._upstreams[used] = _server(used)
        return server


def _server(used: UpstreamConnection) -> connection.Server:
    upstream, peer = used.upstream, used.peer()
    clock = time.time() - asyncio.get_running_loop().time()
    server = planned(upstream)
    server.peername = _address(peer.address)
    server.sockname = _address(peer.own_address)
    server.timestamp_start = clock + peer.began
    server.timestamp_tcp_setup = clock + peer.connected
    server.timestamp_tls_setup = clock + peer.established
    server.tls_version = cast(connection.TlsVersion, used.seen.tls_version)
    server.cipher = peer.cipher
    server.certificate_list = [certs.Cert(each) for each in peer.chain]
    return server


def _address(name: object) -> connection.Address:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else _NO_ADDRESS
