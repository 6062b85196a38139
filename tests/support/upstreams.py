"""Three real upstreams that answer alike: nginx, haproxy and Python's ssl, each in its own framing.

A request's path says what is asked: see `SHAPES` of test_callers. What nginx and haproxy cannot say by
themselves (a chunked answer, one that ends with the connection) they pass on from a recorder behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.certs import Pki
from support.clients import Address, url
from support.peers import HAPROXY_PAGE, Arrival, Peer, Peers
from support.recorder import Exchange, TlsRecorder, chunked, fixed, until_close
from support.sidecar import Sidecar, config, route, running

PIECES = [b"one,", b"two,", b"x" * 70_000, b"end"]
WHOLE = b"".join(PIECES)
KINDS = ("nginx", "haproxy", "python")

_NGINX = """
    location ~ ^/small {{ return 200 "$ssl_client_s_dn $request_method $request_uri\\n"; }}
    location ~ ^/missing {{ return 404 "nothing here"; }}
    location ~ ^/empty {{ return 204; }}
    location ~ ^/redirect {{ return 302 /small?$args; }}
    location ~ ^/until-close {{
        proxy_pass https://{behind}; proxy_set_header Host $http_host;
        proxy_http_version 1.1; chunked_transfer_encoding off;
    }}
    location ~ ^/ {{
        proxy_pass https://{behind}; proxy_set_header Host $http_host; proxy_http_version 1.1;
    }}
"""
_HAPROXY = """
    http-request return {page} if {{ path /small }}
    http-request return status 404 content-type text/plain string "nothing here" if {{ path /missing }}
    http-request return status 204 if {{ path /empty }}
    http-request redirect code 302 location https://%[req.hdr(host)]/small?%[query] if {{ path /redirect }}
"""


def answer(exchange: Exchange) -> None:
    """What its path asks for."""
    seen = exchange.read_body()
    path, _, query = seen.target.partition("?")
    if path == "/small":
        respond = fixed(f"{seen.subject} {seen.method} {seen.target}\n".encode())
    elif path == "/missing":
        respond = fixed(b"nothing here", 404)
    elif path == "/empty":
        exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        return
    elif path == "/redirect":
        respond = fixed(b"", 302, ("Location", f"https://{seen.header('Host')}/small?{query}"))
    elif path == "/chunked":
        respond = chunked(PIECES)
    elif path == "/until-close":
        respond = until_close(WHOLE)
    else:
        respond = fixed(f"{seen.length} {seen.sha256}".encode())
    respond(exchange)


@dataclass
class Upstream:
    """One of the three. `arrivals` are the requests that it has noted so far."""

    kind: str
    host: str
    port: int
    arrivals: Callable[[], list[Arrival]]

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def wait_for_arrivals(self, part: str, count: int) -> list[Arrival]:
        """Those whose target holds `part`, once there are `count` of them, or more."""
        deadline = time.monotonic() + 10
        while len(found := [each for each in self.arrivals() if part in each.target]) < count:
            assert time.monotonic() < deadline, f"{self.kind} has seen {found} of {part}, not {count}"
            time.sleep(0.01)
        return found


def start(kind: str, peers: Peers, *, extra: str = "") -> Upstream:
    """Starts that kind; `extra` goes into nginx's or haproxy's config."""
    if kind == "python":
        recorder = peers.recorder(answer=answer)
        return Upstream(kind, recorder.host, recorder.port, lambda: _noted(recorder))
    behind = peers.recorder(answer=answer, verify="off")
    peer: Peer
    if kind == "nginx":
        peer = peers.nginx(extra=extra + _NGINX.format(behind=behind.address))
    else:
        peer = peers.haproxy(rules=extra + _HAPROXY.format(page=HAPROXY_PAGE), behind=behind)
    return Upstream(kind, peer.host, peer.port, peer.arrivals)


def _noted(recorder: TlsRecorder) -> list[Arrival]:
    return [
        Arrival(seen.subject, seen.method, seen.target, seen.header("Host") or "", 0, seen.connection)
        for seen in list(recorder.requests)
    ]


@dataclass(frozen=True)
class Line:
    """How a caller reaches the sidecar: what its URLs begin with, and a proxy or a unix socket's path."""

    base: str
    proxy: Address | None = None


@dataclass
class Scene:
    """One sidecar before all three: an open listener, a unix one and a pinned one for each kind.

    The routes take calls for nginx.test, haproxy.test and python.test.
    """

    sidecar: Sidecar
    upstreams: dict[str, Upstream]

    @property
    def listener(self) -> Address:
        return self.sidecar.listener

    def line(self, way: str, kind: str) -> Line:
        """By `way`: "proxy", "unix", or "direct" to the pinned listener."""
        tcp, unix, *pinned = self.sidecar.listeners
        if way == "direct":
            return Line(url(pinned[KINDS.index(kind)], ""))
        return Line(f"http://{kind}.test", tcp if way == "proxy" else unix)


@contextmanager
def scene(folder: Path, pki: Pki) -> Iterator[Scene]:
    """A running `Scene` for the length of a with block."""
    with ExitStack() as stack:
        peers = Peers(folder / "peers", stack, pki.upstream, pki.trust)
        started = {kind: start(kind, peers) for kind in KINDS}
        routes = [route(kind, started[kind], trust=pki.trust) for kind in KINDS]
        listeners = [{"bind": "127.0.0.1:0"}, {"bind": "unix:in.sock"}]
        listeners += [{"bind": f"127.0.0.{2 + n}:0", "route": kind} for n, kind in enumerate(KINDS)]
        whole = config(routes, pki.credentials, listeners=listeners)
        yield Scene(stack.enter_context(running(folder / "sidecar", whole)), started)
