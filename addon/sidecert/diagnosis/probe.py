"""One handshake with an upstream, for its own sake: what was seen of it, and no byte of a request.

The rules are those of `upstream`: under TLS 1.3 the verdict on a certificate comes after our part of the
handshake, as a ticket, a byte or an alert. A diagnosis only has more patience to wait for it.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import NoReturn

from OpenSSL import SSL

from sidecert.config import TlsConfig
from sidecert.connect import NotConnected, connect
from sidecert.credentials import Credential
from sidecert.generation import Upstream
from sidecert.outcome import Ending, Observation, Outcome, Stage, decide
from sidecert.presented import Presented
from sidecert.tls import TlsFailure, TlsStream, Trust, make_context

PATIENCE = 2.0
"""Seconds at least to wait for a TLS 1.3 upstream's word on a certificate."""
_READ = 16384
_MOST_BYTES = 1 << 20
"""Of a handshake. The largest that OpenSSL takes is a fraction of it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one handshake."""

    seen: Observation
    outcome: Outcome
    """`ok` also where the upstream said nothing within our patience: see `proven`."""
    address: str
    """The address that was connected to, empty where none was."""
    connect_seconds: float
    handshake_seconds: float
    cipher: str
    chain: tuple[Presented, ...]
    """What the upstream presented, its own certificate first. Known only where it was not refused."""
    check_code: int
    """OpenSSL's judgement of that chain (X509_V_ERR_*, 0: fine), also where nobody insisted on it."""
    check_text: str

    @property
    def proven(self) -> bool:
        """The upstream has accepted us, and said so."""
        return self.seen.stage is Stage.PROVEN

    @property
    def connected(self) -> bool:
        return self.seen.stage >= Stage.HELLO_SENT

    @property
    def agreed(self) -> bool:
        """Version and parameters were agreed on; whatever went wrong afterwards is about our certificate."""
        asked = self.seen.certificate_requested
        return self.seen.stage >= Stage.FINISHED_SENT and (asked or self.outcome is Outcome.OK)


async def look(upstream: Upstream, trust: Trust, tls: TlsConfig) -> Probe:
    """A handshake that goes on whoever the upstream is. It presents nothing, and so gives nothing away."""
    context = make_context(None, trust, tls)
    context.set_verify(SSL.VERIFY_NONE)  # OpenSSL still checks, and tells what it found
    return await _Handshake(upstream, context, None).run()


async def present(upstream: Upstream, trust: Trust, tls: TlsConfig, credential: Credential) -> Probe:
    """A handshake as a call makes it: only an upstream that `trust` vouches for sees the certificate."""
    context = make_context(credential, trust, tls)
    return await _Handshake(upstream, context, credential).run()


async def as_a_call(upstream: Upstream) -> Probe:
    """The very handshake that a call of the route makes."""
    return await _Handshake(upstream, upstream.route.context, upstream.route.credential).run()


class _Over(Exception):
    """The connection has ended; the observation says how."""


class _Handshake:
    def __init__(self, upstream: Upstream, context: SSL.Context, credential: Credential | None) -> None:
        self._upstream = upstream
        self._context = context
        self._credential = credential
        self._seen = Observation(certificate_sent=credential is not None)
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._received = 0
        self._socket: socket.socket
        self._stream: TlsStream

    async def run(self) -> Probe:
        """Raises Refusal for an address that the route's rules forbid to call."""
        try:
            self._socket = await connect(self._upstream, self._seen)
        except NotConnected:
            return self._report("", self._loop.time(), None)
        with self._socket:
            connected = self._loop.time()
            address = _address_of(self._socket)
            self._stream = TlsStream(self._context, self._upstream.server_name, self._seen)
            try:
                await self._shake()
                self._socket.send(self._stream.close())
            except (_Over, OSError):
                pass
            if self._seen.certificate_requested:
                self._stream.note_acceptable_cas(self._credential)
            return self._report(address, connected, self._stream)

    async def _shake(self) -> None:
        limit = self._upstream.route.config.upstream.timeouts.handshake
        began = self._loop.time()
        try:
            async with asyncio.timeout(limit):
                await self._say(self._stream.start())
                while not self._stream.established:
                    await self._read()
        except TimeoutError:
            self._seen.ending, self._seen.timeout = Ending.TIMEOUT, limit
            raise _Over from None
        patience = max(PATIENCE, min(4 * (self._loop.time() - began), limit))
        try:
            async with asyncio.timeout(patience):
                while self._seen.stage is not Stage.PROVEN:
                    await self._read()
        except TimeoutError:
            pass  # it sends no tickets, and waits for a request: it may well have accepted us

    async def _read(self) -> None:
        seen, stream = self._seen, self._stream
        try:
            data = await self._loop.sock_recv(self._socket, _READ)
        except OSError as exc:
            self._end(Ending.RESET, exc.strerror or str(exc))
        if not data:
            self._end(Ending.EOF)
        self._received += len(data)
        if self._received > _MOST_BYTES:
            self._end(Ending.TLS, "the upstream's handshake has no end")
        try:
            plain = stream.receive(data)
        except TlsFailure as exc:
            await self._say(stream.take_output())  # our alert
            self._end(Ending.TLS, str(exc))
        await self._say(stream.take_output())
        if stream.established and (plain or stream.ticket or not seen.verdict_comes_late):
            seen.stage = Stage.PROVEN
        elif stream.failure is not None:
            self._end(Ending.TLS, str(stream.failure))
        elif stream.closed:
            self._end(Ending.CLOSE_NOTIFY)

    def _end(self, ending: Ending, error: str = "") -> NoReturn:
        self._seen.ending, self._seen.error = ending, error
        raise _Over

    async def _say(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError:
            pass  # what the upstream said before it left is still to be read, and reading tells of the end

    def _report(self, address: str, connected: float, stream: TlsStream | None) -> Probe:
        seen = self._seen
        unheard = seen.stage is Stage.FINISHED_SENT and seen.ending is Ending.NONE
        code, text = stream.check_result() if stream is not None else (0, "")
        return Probe(
            seen=seen,
            outcome=Outcome.OK if unheard else decide(seen),
            address=address,
            connect_seconds=connected - self._started,
            handshake_seconds=self._loop.time() - connected,
            cipher=(stream.cipher if stream is not None else None) or "",
            chain=stream.presented() if stream is not None else (),
            check_code=code,
            check_text=text,
        )


def _address_of(connection: socket.socket) -> str:
    try:
        return str(connection.getpeername()[0])
    except OSError:  # it has been reset already
        return ""
