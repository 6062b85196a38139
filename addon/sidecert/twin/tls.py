"""TLS on memory buffers over asyncio streams.

Why not asyncio's own TLS: when a handshake fails it drops what OpenSSL had ready to send, so a refused
caller sees a bare close. A real service sends the alert, and `TlsStream.leave` keeps the connection until
the caller has read it (a close with unread input makes the kernel send a reset that destroys the alert).
"""

from __future__ import annotations

import asyncio
import ssl

from cryptography import x509

from sidecert.twin.people import People

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
PIECE = 64 * 1024
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024


def make_context(people: People, only: str | None = None) -> ssl.SSLContext:
    """The service's context: a certificate from our authority is required; `only` is "1.2" or "1.3"."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[only or "1.2"]
    context.maximum_version = VERSIONS[only or "1.3"]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(people.ca)
    context.load_cert_chain(people.service.certificate, people.service.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class TlsStream:
    """The service's end of one TLS connection. Nothing here has a timeout: the caller of it sets those."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Raises ssl.SSLError when it fails; the alert that tells the caller is then still to be sent."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                return await self._flush()

    @property
    def version(self) -> str:
        return self._tls.version() or ""

    @property
    def certificate(self) -> x509.Certificate:
        """The caller's; there is one after every handshake that succeeded."""
        return x509.load_der_x509_certificate(self._tls.getpeercert(binary_form=True) or b"")

    async def read(self) -> bytes:
        """Some bytes, or nothing once the caller has finished. Raises ssl.SSLError on a broken record."""
        while True:
            try:
                return self._tls.read(PIECE)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self._tls.write(data[start : start + PIECE])
            await self._flush()

    async def leave(self) -> None:
        """Send what is still to be sent and a close, then read and drop until the caller has closed too."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                self._say_goodbye()
                await self._flush()
                self._writer.write_eof()
                dropped = 0
                while dropped < LINGER_BYTES and (piece := await self._reader.read(PIECE)):
                    dropped += len(piece)
        except (OSError, TimeoutError):
            pass  # the caller has gone, or doesn't go: either way there is nobody to tell
        finally:
            self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()

    def _say_goodbye(self) -> None:
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # close_notify waits in the outgoing buffer, or the handshake never got that far

    async def _fill(self) -> None:
        if piece := await self._reader.read(PIECE):
            self._incoming.write(piece)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if piece := self._outgoing.read():
            self._writer.write(piece)
            await self._writer.drain()
