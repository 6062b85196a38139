"""The listening socket of the service, and its connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from sidecert.twin import service
from sidecert.twin.http import Answer, Conversation, Limits, Request
from sidecert.twin.people import People
from sidecert.twin.service import Caller
from sidecert.twin.tls import TlsStream, make_context

CONNECTIONS = 256
HANDSHAKE_SECONDS = 10.0

Report = Callable[[str, Mapping[str, object]], None]
"""Told of everything that happens, in a sentence and as facts (`event` names its kind)."""


class Twin:
    """The service: `start`, then `close`."""

    def __init__(
        self, people: People, report: Report, *, tls: str | None = None, limits: Limits | None = None
    ) -> None:
        self._people = people
        self._report = report
        self._context = make_context(people, tls)
        self._limits = limits or Limits()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port, which matters where 0 was asked for. Raises OSError."""
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, address = (
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )[0]
        # With its protocol named, or asyncio would not switch Nagle's algorithm off.
        sock = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            self._server = await asyncio.start_server(self._accept, sock=sock, backlog=CONNECTIONS)
        except OSError:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        return self._port

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        stream = TlsStream(reader, writer, self._context)
        try:
            await self._serve(stream)
        except (OSError, TimeoutError, ssl.SSLError) as exc:
            reason = str(exc) or type(exc).__name__
            self._report(f"lost a connection: {reason}", {"event": "connection_lost", "reason": reason})
        finally:
            stream.abort()
            self._connections.discard(task)

    async def _serve(self, stream: TlsStream) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await stream.handshake()
        except ssl.SSLError as exc:
            reason = _why(exc)
            self._report(f"refused a handshake: {reason}", {"event": "handshake_refused", "reason": reason})
            await stream.leave()
            return
        caller = self._caller(stream)

        def answer(request: Request) -> Answer:
            return service.answer(request, caller, self._port)

        def told(request: Request | None, result: Answer) -> None:
            facts: dict[str, object] = {"event": "answered", "status": result.status, "user": caller.user}
            facts["certificate"] = caller.subject
            asked = "a malformed request"
            if request is not None:
                facts |= {"method": request.method, "path": request.path}
                asked = f"{request.method} {request.path}"
            self._report(f"{result.status} to {caller.user or 'nobody'}: {asked}", facts)

        await Conversation(stream, answer, told, self._limits).run()
        await stream.leave()

    def _caller(self, stream: TlsStream) -> Caller:
        certificate = stream.certificate
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        subject = str(common_names[0].value) if common_names else certificate.subject.rfc4514_string()
        return Caller(self._people.mapping.get(fingerprint), subject, fingerprint, stream.version)


def _why(exc: ssl.SSLError) -> str:
    """OpenSSL's words, without the line of C that they come from."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the caller's certificate: {exc.verify_message}"
    return (exc.reason or str(exc)).replace("_", " ").lower()
