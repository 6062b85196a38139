"""Tornado's HTTP server with a bound on its connections, so that nobody's scraping can use up descriptors."""

from __future__ import annotations

from typing import Any, cast

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream

MOST_CONNECTIONS = 64


class BoundedServer(HTTPServer):
    """Where one connection more than allowed comes, the one that has asked nothing for longest is closed.

    So those who hold connections open, or never finish a request, cannot keep a probe out.
    """

    def initialize(self, *arguments: Any, **named: Any) -> None:
        super().initialize(*arguments, **named)
        self._open: dict[IOStream, None] = {}
        """Those that asked last are last."""

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        while len(self._open) >= MOST_CONNECTIONS:
            longest = next(iter(self._open))
            del self._open[longest]
            longest.close()
        self._open[stream] = None
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        stream = cast(HTTP1ServerConnection, server_conn).stream
        if stream in self._open:
            del self._open[stream]
            self._open[stream] = None  # at the end
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        self._open.pop(cast(HTTP1ServerConnection, server_conn).stream, None)
        super().on_close(server_conn)
