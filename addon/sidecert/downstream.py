"""One plain HTTP connection from a caller: requests are read one at a time and answered in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import struct
from functools import lru_cache
from typing import cast

from sidecert import answers, calllog, refusals
from sidecert.callers import Callers
from sidecert.errors import Reason, Refusal
from sidecert.exchange import Exchange
from sidecert.http1 import BodyError, BodyReader, ChunkedBody, body_reader, find_head
from sidecert.openfiles import SPARE, TELLING, descriptors_left
from sidecert.outflow import Outflow, unread
from sidecert.plane import DRAIN_GRACE, Listener, Plane
from sidecert.sparing import REPEATED
from sidecert.timers import Deadline

log = logging.getLogger(__name__)

_ASKS_FOR_HEAD = re.compile(rb"(?:\r\n){0,2}HEAD ")
_NO_LINGER = struct.pack("ii", 1, 0)
_MAX_PIPELINED = 64 * 1024
"""Bytes of later requests that are read while one is under way."""
_MANY_CHUNKS = 64
_DENSE_PIECE = 16 * 1024
"""Where so many chunks of a body come at once, so many bytes are read in a turn of the loop: others have to
have their turn."""
LOOK_EVERY = 16
"""So many connections at most are made without a look at how many descriptors are left: it costs two system
calls."""
_REQUESTS_IN_TURN = 16
"""So many pipelined requests that are answered at once, likewise."""
_LINGER_BYTES = 1024 * 1024
_LINGER_SECONDS = 2.0
"""How much, and how long, is read and dropped before a connection is closed with a request half read: the
kernel would reset it otherwise, and the answer could be lost (RFC 9112 section 9.6)."""
_LINGER_BODY_SECONDS = 30.0
"""How long at most the rest of a body is dropped while it keeps coming, however large it is: wget and
Python's http.client look for an answer only when they have sent all of it."""
_FLUSH_SECONDS = 60.0
"""How long a caller may read nothing of the last of an answer once nothing else is to come."""


def accept(plane: Plane, listener: Listener) -> asyncio.Protocol:
    """The protocol of a connection that was just accepted.

    Never raises: uvloop would neither serve that connection nor accept another on the same listener.
    """
    try:
        return Downstream(plane, listener)
    except Exception as exc:
        log.error("an error of sidecert's own at a new connection", exc_info=exc)
        return _Cut()


class _Cut(asyncio.Protocol):
    """Ends a connection that nobody can serve."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


class Downstream(asyncio.Protocol):
    """Made by `accept` for each accepted connection."""

    # The first state of every connection; only what changes costs anything.
    _own_host: str | None = None
    _buffer = b""
    _scanned = 0
    """Bytes of the buffer that are known to hold no head's end."""
    _exchange: Exchange | None = None
    _reader: BodyReader | None = None
    _tunnel = False
    _head_awaited = False
    _served = False
    _in_turn = False
    _reading_paused = False
    _dense = False
    """The body comes in tiny chunks."""
    _later = b""
    """Of such a body, what waits for the next turn of the loop."""
    _write_paused = False
    _rest: Outflow | None = None
    """Of the last answer, while the deadline is for the caller to read it."""
    _closing = False
    _lingering = -1
    """Bytes dropped since the answer that ends the connection; -1 before that."""
    _body_until = 0.0
    """Loop time until which the rest of a body is dropped; 0 where none is on its way."""
    _eof = False
    _checked_by: Callers | None = None
    """The rules by which the caller's address was allowed last."""

    def __init__(self, plane: Plane, listener: Listener) -> None:
        self.listener = listener
        self.deadline = Deadline(plane.timers, self._deadline_passed)
        self._plane = plane
        self._parser = plane.parser
        self._limits = plane.generation.config.limits
        self._stats = plane.metrics.listener(listener.label)
        self._transport: asyncio.Transport

    # -- what the transport tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = cast(asyncio.Transport, transport)
        self._stats.connections += 1
        try:
            refusal = self._unwelcome()
            if refusal is not None:
                self._refuse_connection(refusal)
                return
            self._plane.connections.add(self)
            self.deadline.set(self._patience())
        except Exception as exc:
            self._fault(exc)

    def data_received(self, data: bytes) -> None:
        try:
            exchange = self._exchange
            if exchange is None:
                if self._lingering >= 0:
                    self._drop(len(data))
                    return
                self._buffer = self._buffer + data if self._buffer else data
                self._next()
            elif self._tunnel:
                exchange.take_body(data, False, [])
            elif self._reader is not None:
                self._read_body(exchange, self._reader, data)
            else:
                self._buffer += data
            if len(self._buffer) > _MAX_PIPELINED and (self._exchange is not None or self._write_paused):
                self.pause_reading()  # nobody looks at these bytes for a while
        except Exception as exc:
            self._fault(exc)

    def eof_received(self) -> bool:
        """The caller sends no more; it may still read. True keeps our direction open."""
        try:
            return self._take_eof()
        except Exception as exc:
            self._fault(exc)
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._stats.connections -= 1
        try:
            try:
                self._leave_exchange()
                self.deadline.close()
            finally:
                self._plane.forget(self)
        except Exception as error:
            log.error("an error of sidecert's own after a downstream connection", exc_info=error)

    def _leave_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.caller_left()

    def pause_writing(self) -> None:
        self._write_paused = True
        try:
            if self._exchange is not None:
                self._exchange.pause_answer()
        except Exception as exc:
            self._fault(exc)

    def resume_writing(self) -> None:
        self._write_paused = False
        try:
            if self._exchange is not None:
                self._exchange.resume_answer()
            else:
                self.resume_reading()
                self._next()
        except Exception as exc:
            self._fault(exc)

    # -- who may call ----------------------------------------------------------------------------------

    def _unwelcome(self) -> Refusal | None:
        """Why a new connection is not served. Who may not call at all takes no room from those who may."""
        try:
            self._check_caller()
        except Refusal as refusal:
            return refusal
        limit = self._limits.connections
        if len(self._plane.connections) >= limit:
            wrong = f"All {limit} connections that `limits.connections` allows are in use."
            right = "Call less at once, or raise `limits.connections`."
        elif self._lacks_descriptors():
            wrong = "Nearly all files and sockets that this process may have open are in use."
            right = "Call less at once, or raise the limit (`ulimit -n`, `LimitNOFILE` of systemd)."
        else:
            return None
        return Refusal.of(Reason.OVERLOADED, wrong, right, retry_after=1)

    def _lacks_descriptors(self) -> bool:
        """Whether hardly one is left; not looked at for each connection where the limit is far."""
        plane = self._plane
        if plane.descriptors_for:
            plane.descriptors_for -= 1
            return False
        left = descriptors_left(self._transport) - SPARE
        # Each caller may need another one upstream; and others open files as well.
        plane.descriptors_for = int(min(LOOK_EVERY, max(0, left / 4)))
        return left < 0

    def _check_caller(self) -> None:
        """Raises Refusal where the caller's address may not call; a reload may have changed that."""
        callers = self.listener.callers
        if callers.gone and self._served:
            raise Refusal.of(
                Reason.NO_ROUTE,
                f"The listener {callers.label}, which this connection was made to, has been removed.",
                "Call on a listener that the config has.",
            )
        callers.check_address(self.peer())
        self._checked_by = callers

    # -- requests --------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin the requests that wait in the buffer, one after the other."""
        if self._in_turn:
            return  # we are called from within the loop below, which goes on by itself
        self._in_turn = True
        try:
            begun = 0
            while self._buffer and self._exchange is None and not self._closing and not self._write_paused:
                if begun == _REQUESTS_IN_TURN:
                    asyncio.get_running_loop().call_soon(self._next)
                    break
                begun += 1
                if not self._begin():
                    break
        except Exception as exc:
            self._fault(exc)  # here: our caller may be the exchange before, which has no part in it
        finally:
            self._in_turn = False

    def _begin(self) -> bool:
        """Begin the next request; False where its head has not come in full."""
        end = find_head(self._buffer, self._scanned - 3 if self._scanned > 3 else 0)
        try:
            if end < 0:
                self._parser.check_partial(self._buffer, self._scanned)
                self._scanned = len(self._buffer)
                if self._eof:
                    self._close()  # the rest of it will never come
                else:
                    self._wait_for_head()
                return False
            self._scanned = 0
            if self.listener.callers is not self._checked_by:
                self._check_caller()
            head = self._parser.parse(self._buffer[:end])
            if head.page is not None:
                self.listener.callers.check_page(head.page)
        except Refusal as refusal:
            self._refuse_unread(refusal)
            return False
        self._served = True
        self._head_awaited = False
        self.deadline.clear()
        make_exchange = self._plane.make_exchange or Exchange
        self._exchange = exchange = make_exchange(self._plane, self, head)
        if head.body == 0:
            self._buffer = self._buffer[end:]
            exchange.start(b"", True)
            return True
        rest, self._buffer = self._buffer[end:], b""
        self._reader = reader = body_reader(head.body)
        piece = self._feed(reader, rest)
        if piece is not None:
            exchange.start(piece, self._reader is None, _trailers(reader))
            if self._eof and self._reader is not None:  # nor will the rest of this body
                self._leave_exchange()
                self._close()
        return True

    def _wait_for_head(self) -> None:
        if not self._head_awaited:
            self._head_awaited = True
            self.deadline.set(self._limits.header_timeout)

    def _read_body(self, exchange: Exchange, reader: BodyReader, data: bytes) -> None:
        if self._later:
            self._later += data
            return
        if self._dense and len(data) > _DENSE_PIECE:
            self._keep_for_later(data[_DENSE_PIECE:])
            data = data[:_DENSE_PIECE]
        chunks = reader.chunks
        piece = self._feed(reader, data)
        self._dense = reader.chunks - chunks > _MANY_CHUNKS
        if piece is not None:
            exchange.take_body(piece, self._reader is None, _trailers(reader))

    def _keep_for_later(self, data: bytes) -> None:
        self._later = data
        if not self._reading_paused:
            self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """The loop has been round: read on where we were."""
        try:
            data, self._later = self._later, b""
            if not data or self._closing:
                return
            if not self._reading_paused:
                self._transport.resume_reading()
        except Exception as exc:
            self._fault(exc)
            return
        self.data_received(data)

    def _feed(self, reader: BodyReader, data: bytes) -> bytes | None:
        """The part of the body in `data`; None where the body is malformed, which has been answered."""
        try:
            piece, rest = reader.feed(data)
        except BodyError as exc:
            assert self._exchange is not None
            self._exchange.refuse(refusals.body_malformed(exc, sent=self._exchange.sent))
            return None
        if reader.done:
            self._reader = None
            self._buffer = rest
        return piece

    def _take_eof(self) -> bool:
        while self._later:
            self._go_on()
        self._eof = True
        if self._exchange is not None and self._reader is None and not self._tunnel:
            return True  # a half-closed connection, as HTTP/1.0 tools leave it: the answer is still wanted
        self._leave_exchange()
        if self._buffer and self._write_paused:
            return True
        self._close()
        return True

    # -- what the exchange wants -----------------------------------------------------------------------

    def peer(self) -> object:
        """The caller's address, as the socket names it."""
        return self._transport.get_extra_info("peername")

    def own_address(self) -> object:
        """The address that it called, likewise."""
        return self._transport.get_extra_info("sockname")

    @property
    def own_host(self) -> str | None:
        """The address that the caller called, where the listener is pinned, which a reload may change."""
        if self._own_host is None and self.listener.route is not None:
            self._own_host = _own_host(self.own_address())
        return self._own_host

    def asks_more(self) -> bool:
        """Whether a drain must go on with this connection: bytes of a next request have come already."""
        return not self._plane.expired and (bool(self._buffer) or unread(self._transport) > 0)

    def write(self, data: bytes) -> None:
        """Send part of the answer."""
        if not self._closing:
            self._transport.write(data)

    def outflow(self, limit: float) -> Outflow:
        """What of the answer is still to leave."""
        return Outflow(self._transport, limit)

    def become_tunnel(self) -> None:
        """From now on all bytes are passed on as they come, both ways."""
        self._tunnel = True
        early, self._buffer = self._buffer, b""
        self.resume_reading()
        if early and self._exchange is not None:
            self._exchange.take_body(early, False, [])
        if self._eof and self._exchange is not None:
            self._leave_exchange()  # the caller had sent all before: its end is that of the tunnel too
            self._close()

    def refuse(self, refusal: Refusal, exchange: Exchange) -> None:
        """Answer with `refusal` in the place of the upstream, and end the exchange."""
        head = exchange.head
        keep_alive = (
            head.keep_alive
            and self._reader is None
            and (not self._plane.draining or self.asks_more())
            and refusal.outcome != Reason.INTERNAL.word  # who knows where the request ends
        )
        upstream = exchange.upstream
        accept = next((value for name, value in head.headers if name.lower() == b"accept"), b"")
        self.write(
            answers.render(
                refusal,
                accept=accept,
                route=None if upstream is None else upstream.route.id,
                upstream=None if upstream is None else upstream.label,
                credential=None if upstream is None else upstream.route.credential_id,
                request_id=exchange.name_request(),
                keep_alive=keep_alive,
                caller_minor=head.minor,
                head_only=head.method == b"HEAD",
            )
        )
        self.finish(keep_alive=keep_alive)

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is whole: on to the next request, or to the end of the connection."""
        self._exchange = None
        if not keep_alive or (self._eof and not self._buffer):
            self._end_after_answer()
            return
        self.resume_reading()
        self._rest = self.outflow(self._limits.keepalive) if self._write_paused else None
        self.deadline.set(self._patience())
        if self._buffer:
            self._next()

    def cut(self) -> None:
        """End the connection so that the caller sees the answer as broken off."""
        self._reset()
        self._leave_exchange()

    def _reset(self) -> None:
        """End with a RST: to a caller that reads until the end, a FIN says that the answer is whole."""
        self._closing = True
        try:
            connection = self._transport.get_extra_info("socket")
            if connection is not None:  # else it has ended already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        finally:
            self._transport.abort()

    def pause_reading(self) -> None:
        if not self._reading_paused and not self._closing:
            self._reading_paused = True
            if not self._later:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self._closing:
            self._reading_paused = False
            if not self._later:
                self._transport.resume_reading()

    # -- the end ---------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """Seconds to wait for the next request."""
        keepalive = self._limits.keepalive
        return min(DRAIN_GRACE, keepalive) if self._plane.draining else keepalive

    def drain(self) -> None:
        """End with what is under way; where that is nothing, do not wait for long."""
        try:
            if self._exchange is None and not self._buffer and self._lingering < 0 and not self._closing:
                self.deadline.set(self._patience())
        except Exception as exc:
            self._fault(exc)

    def expire(self) -> None:
        """The drain's time is over: tell the caller, if an answer can be told from the one before."""
        try:
            if self._closing or self._lingering >= 0:
                return  # what is left is for the caller to read the last answer
            if self._exchange is not None:
                self._exchange.expire()
            elif self._buffer:
                self._refuse_unread(refusals.draining(sent=False))
            else:
                self._close()
        except Exception as exc:
            self._fault(exc)

    def abort(self) -> None:
        """End at once, with whatever is under way."""
        try:
            self.cut()
        except Exception as exc:  # it is cut all the same
            log.error("an error of sidecert's own while a downstream connection was cut", exc_info=exc)

    def _refuse_connection(self, refusal: Refusal) -> None:
        leaving = self._plane.leaving
        crowded = (
            len(leaving) >= self._limits.connections or descriptors_left(self._transport) < SPARE - TELLING
        )
        leaving.add(self)
        self._tell_unread(refusal)
        if crowded:
            self._close()  # so many are reading theirs that this one gets no time for it
        else:
            self._end_after_answer()

    def _refuse_unread(self, refusal: Refusal) -> None:
        """Answer a request that could not be read, or was not, and end the connection."""
        self._tell_unread(refusal)
        self._end_after_answer()

    def _tell_unread(self, refusal: Refusal) -> None:
        request_id = calllog.new_request_id()
        self._plane.metrics.denied(refusal.outcome)
        left_out: int | None = 0
        if self._checked_by is None or refusal.outcome in REPEATED:
            left_out = self.listener.refused.left_out(refusal.outcome)
        if left_out is not None:
            call = calllog.unread_call(self._buffer, request_id, self.listener.label, self.peer())
            calllog.refused(refusal, call, None, left_out=left_out)
        self._transport.write(
            answers.render(
                refusal,
                accept=b"",
                route=None,
                upstream=None,
                credential=None,
                request_id=request_id,
                keep_alive=False,
                caller_minor=1,
                head_only=_ASKS_FOR_HEAD.match(self._buffer) is not None,
            )
        )

    def _end_after_answer(self) -> None:
        """Close once the caller can have read the answer."""
        read = self._reader is None and not self._buffer and self._served
        if self._eof or (read and not (self._plane.draining and unread(self._transport))):
            self._close()
            return
        if self._reader is not None:
            self._body_until = asyncio.get_running_loop().time() + _LINGER_BODY_SECONDS
        self._reader = None
        self._buffer = b""
        self._lingering = 0
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()
        self._rest = self.outflow(_LINGER_SECONDS)
        self.deadline.set(_LINGER_SECONDS)

    def _drop(self, size: int) -> None:
        self._lingering += size
        if self._body_until > asyncio.get_running_loop().time():
            self.deadline.set(_LINGER_SECONDS)
        elif self._lingering > _LINGER_BYTES:
            self._close()

    def _close(self) -> None:
        """Close after what was written has gone out; not waiting for ever."""
        self._closing = True
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._rest = self.outflow(_FLUSH_SECONDS)
            self.deadline.set(_FLUSH_SECONDS)

    def _deadline_passed(self) -> None:
        try:
            if self._exchange is not None and not self._closing:
                self._exchange.timed_out()
            elif self._rest is not None and (wait := self._rest.patience()):
                self.deadline.set(wait)
            elif self._closing:
                self._reset()
            elif self._buffer and self._lingering < 0 and not self._write_paused:
                limit = self._limits.header_timeout
                self._refuse_unread(
                    Refusal.of(
                        Reason.BAD_REQUEST,
                        f"The request's header did not come whole within {limit:g} s.",
                        "Send it at once, with an empty line at its end, or raise `limits.header_timeout`.",
                    )
                )
            elif self._is_unread():
                self.deadline.set(DRAIN_GRACE)
            else:
                self._close()
        except Exception as exc:
            self._fault(exc)

    def _is_unread(self) -> bool:
        """The next request has come to the socket just now: closing would reset it."""
        waits = self._reading_paused or self._lingering >= 0 or self._eof
        return not waits and unread(self._transport) > 0

    def _fault(self, exc: Exception) -> None:
        """Our own code failed: the call is refused, or the connection cut."""
        try:
            if self._exchange is None:
                raise exc
            self._exchange.fault(exc)
        except Exception as again:
            log.error("an error of sidecert's own on a downstream connection", exc_info=again)
            self._reset()


def _own_host(own: object) -> str | None:
    # A unix socket has none.
    return _plain(own[0]) if isinstance(own, tuple) else None


@lru_cache(maxsize=64)
def _plain(host: str) -> str:
    """An address as routes name it: without its zone, IPv4 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _trailers(reader: BodyReader) -> list[tuple[bytes, bytes]]:
    return reader.trailers if isinstance(reader, ChunkedBody) else []
