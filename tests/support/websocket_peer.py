"""A WebSocket echo service over TLS, on the `websockets` library, as an upstream."""

from __future__ import annotations

import http
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from support.certs import Files
from support.peers import Peer

PATIENCE = 20.0


@dataclass
class Session:
    """One WebSocket as the service saw it. The code is 1006 where no close frame came."""

    subject: str | None  # the common name of the caller's certificate
    path: str
    host: str
    code: int | None = None
    reason: str = ""


@dataclass
class WebSocketPeer(Peer):
    """`sessions` are those that have been opened; each is complete once it is in `ended`."""

    sessions: list[Session] = field(default_factory=list)
    ended: list[Session] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_end(self, count: int = 1) -> Session:
        """The session that ended as the `count`th."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ended) >= count, PATIENCE), self.sessions
            return self.ended[count - 1]


@contextmanager
def websocket_echo(files: Files, trust: Path, *, verify: bool = True) -> Iterator[WebSocketPeer]:
    """Sends back each message in its own kind. Some texts ask for something else:

    `ping me` for a ping, whose pong it tells of; `close CODE REASON`; `drop` for an end without a close.
    `/refuse/STATUS` is refused with that status.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    if verify:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trust)

    subjects: dict[ServerConnection, str | None] = {}

    def begin(connection: ServerConnection, request: Request) -> Response | None:
        # Here and not in `talk`: by then a quick caller may have ended the connection.
        subjects[connection] = _common_name(connection)
        if not request.path.startswith("/refuse/"):
            return None
        response = connection.respond(http.HTTPStatus(int(request.path.rpartition("/")[2])), "not here\n")
        response.headers["X-Why"] = "closed today"
        return response

    def talk(connection: ServerConnection) -> None:
        assert connection.request is not None
        session = Session(subjects[connection], connection.request.path, connection.request.headers["Host"])
        peer.sessions.append(session)
        try:
            for message in connection:
                _reply(connection, message)
        except ConnectionClosed:
            pass
        session.code, session.reason = connection.close_code, connection.close_reason or ""
        with peer.changed:
            peer.ended.append(session)
            peer.changed.notify_all()

    server = serve(
        talk,
        "127.0.0.1",
        0,
        ssl=context,
        process_request=begin,
        subprotocols=[Subprotocol("v2.echo")],
        max_size=None,
    )
    peer = WebSocketPeer("websocket", server.socket.getsockname()[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        thread.join(PATIENCE)


def shut(sock: socket.socket) -> None:
    """Ends a connection with a FIN while its library is reading from it."""
    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's own, which takes TLS away first


def _reply(connection: ServerConnection, message: str | bytes) -> None:
    if message == "ping me":
        connection.send("ponged" if connection.ping(b"\x00there?").wait(PATIENCE) else "no pong")
    elif message == "drop":
        shut(connection.socket)
    elif isinstance(message, str) and message.startswith("close "):
        _, code, reason = message.split(" ", 2)
        connection.close(int(code), reason)
    else:
        connection.send(message)


def _common_name(connection: ServerConnection) -> str | None:
    assert isinstance(connection.socket, ssl.SSLSocket)
    for group in (connection.socket.getpeercert() or {}).get("subject", ()):
        for pair in group:
            if pair[0] == "commonName":
                return str(pair[1])
    return None
