"""The admin endpoint: metrics, health, reload and the status page, on an address of its own.

Whoever reaches it may read the metrics and the health. All else is for people on this machine: a loopback
peer, and a Host and an origin that no web page elsewhere can have (DNS rebinding, cross-site requests).

On Tornado's HTTP server without its web framework, which has nothing that these five pages need.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import NamedTuple, Protocol

from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine

from sidecert.admin import status_page
from sidecert.admin.server import BoundedServer
from sidecert.admin.status_page import Snapshot
from sidecert.config import Bind
from sidecert.errors import Problem
from sidecert.metrics import Metrics
from sidecert.sockets import SocketFile, listen, resolve, spell

_log = logging.getLogger(__name__)

_FOR_ALL = frozenset(("/metrics", "/-/healthy", "/-/ready"))
_MAX_HEADER = 16 * 1024
_MAX_BODY = 4 * 1024
_IDLE_TIMEOUT = 60.0  # longer than the usual scrape intervals, so that a scraper keeps its connection
_BODY_TIMEOUT = 5.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src '{status_page.STYLE_HASH}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ReloadResult(Protocol):
    """What came of a reload: whether it was taken over, and all problems, warnings too."""

    @property
    def ok(self) -> bool: ...
    @property
    def problems(self) -> Sequence[Problem]: ...


class Status(Protocol):
    """What the admin pages need to know of the sidecar."""

    @property
    def metrics(self) -> Metrics: ...
    @property
    def ready(self) -> bool:
        """True from when it is loaded and listening until it drains."""

    async def reload(self) -> ReloadResult | None:
        """Load the config anew; None while it starts. Raises nothing for a config that is wrong."""

    def snapshot(self) -> Snapshot:
        """The facts of the status page, as they are now."""


class _Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


class Admin:
    """Serves `status` on one address."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._server = BoundedServer(
            self._on_request,
            idle_connection_timeout=_IDLE_TIMEOUT,
            body_timeout=_BODY_TIMEOUT,
            max_header_size=_MAX_HEADER,
            max_body_size=_MAX_BODY,
        )
        self._socket_file: SocketFile | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pages: dict[str, dict[str, Callable[[HTTPServerRequest], Awaitable[_Answer]]]] = {
            "/": {"GET": self._page},
            "/metrics": {"GET": self._metrics},
            "/-/healthy": {"GET": self._healthy, "HEAD": self._healthy},
            "/-/ready": {"GET": self._ready, "HEAD": self._ready},
            "/-/reload": {"POST": self._reload},
        }

    async def start(self, bind: Bind) -> str:
        """Serve on `bind`; return its address, with the port that was taken.

        Raises Unusable when the address cannot be had.
        """
        sockets = listen(bind, await resolve(bind))
        if bind.path is not None:
            self._socket_file = SocketFile(bind.path)
        self._server.add_sockets(sockets)
        return spell(sockets[0])

    async def stop(self) -> None:
        """Close the address and all connections. A reload that is under way goes on unheard."""
        self._server.stop()
        if self._socket_file is not None:
            self._socket_file.remove()
        await self._server.close_all_connections()

    def _on_request(self, request: HTTPServerRequest) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(request))
        self._tasks.add(task)  # the loop itself holds it only weakly
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: HTTPServerRequest) -> None:
        try:
            answer = await self._answer(request)
        except Exception:
            _log.exception("the admin page %s %s failed", request.method, request.path)
            answer = _Answer(500, b"internal error, see the log\n")
        headers = HTTPHeaders({"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))})
        headers.update({**_HEADERS, **answer.headers})
        start = ResponseStartLine("HTTP/1.1", answer.status, HTTPStatus(answer.status).phrase)
        assert request.connection is not None
        body = None if request.method == "HEAD" else answer.body
        request.connection.write_headers(start, headers, body)
        request.connection.finish()

    async def _answer(self, request: HTTPServerRequest) -> _Answer:
        if request.path not in _FOR_ALL:
            peer = "127.0.0.1" if self._socket_file is not None else request.remote_ip
            if why := refusal(peer, request.headers):
                return _Answer(403, f"{why}\n".encode())
        methods = self._pages.get(request.path)
        if methods is None:
            return _Answer(404, b"no such page\n")
        page = methods.get(request.method or "")
        if page is None:
            return _Answer(405, b"method not allowed\n", headers={"Allow": ", ".join(methods)})
        return await page(request)

    async def _page(self, _: HTTPServerRequest) -> _Answer:
        page = status_page.render(self._status.snapshot(), self._status.metrics, time.time())
        return _Answer(200, page, "text/html; charset=utf-8")

    async def _metrics(self, request: HTTPServerRequest) -> _Answer:
        pieces, content_type = self._status.metrics.pieces(request.headers.get("Accept", ""))
        body = []
        for piece in pieces:
            body.append(piece)
            await asyncio.sleep(0)  # let the calls pass
        return _Answer(200, b"".join(body), content_type)

    async def _healthy(self, _: HTTPServerRequest) -> _Answer:
        return _Answer(200, b"healthy\n")

    async def _ready(self, _: HTTPServerRequest) -> _Answer:
        return _Answer(200, b"ready\n") if self._status.ready else _Answer(503, b"not ready\n")

    async def _reload(self, _: HTTPServerRequest) -> _Answer:
        result = await self._status.reload()
        if result is None:
            return _Answer(503, b"the sidecar is still starting\n", headers={"Retry-After": "1"})
        told = {
            "ok": result.ok,
            "generation": self._status.metrics.generation,
            "problems": [{**asdict(problem), "text": str(problem)} for problem in result.problems],
        }
        body = json.dumps(told, indent=2).encode("ascii") + b"\n"
        return _Answer(200 if result.ok else 422, body, "application/json")


def refusal(peer: str | None, headers: Mapping[str, str]) -> str | None:
    """Why a caller at the IP address `peer` may see only what is for all; None where it may see all."""
    if not _is_loopback(peer or ""):
        return "only callers on this machine's loopback may see this"
    host = headers.get("Host", "").lower()
    name, _, _ = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if name != "localhost" and not _is_loopback(name.removeprefix("[").removesuffix("]")):
        return "the Host must be localhost or a loopback address"
    origin = headers.get("Origin")
    if origin is not None and origin.lower() != f"http://{host}":
        return "pages of another origin may not do this"
    if headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
        return "pages of another site may not do this"
    return None


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
