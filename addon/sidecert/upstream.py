"""One mutual-TLS connection to an upstream: opened, observed, judged once, used by one exchange at a time."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, cast

from cryptography import x509

from sidecert.attempt import Attempt
from sidecert.connect import NotConnected, connect
from sidecert.errors import BadAnswer, Refusal, SidecertError
from sidecert.generation import Upstream
from sidecert.http1 import SWITCHING_PROTOCOLS, AnswerReader, BodyError, ResponseHead
from sidecert.metrics import RouteStats
from sidecert.outcome import Ending, Observation, Outcome, Stage
from sidecert.outflow import Outflow
from sidecert.tls import MOST_AGAIN, TlsFailure, TlsStream

log = logging.getLogger(__name__)

_MAX_WORDLESS = 64 * 1024
_FLUSH_SECONDS = 60.0
"""How long an upstream may read nothing of the last that was sent on a connection that we have closed."""
_READ_AT_ONCE = 64 * 1024


class NotOpened(SidecertError):
    """The attempt to open a connection failed; its observation has become an outcome."""

    def __init__(self, seen: Observation, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.seen = seen
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Peer:
    """Both ends of an open connection, for people to look at. Times are the event loop's.

    Addresses are as the socket names them; None where the upstream has just reset the connection.
    """

    address: object
    own_address: object
    began: float
    connected: float
    established: float
    cipher: str | None
    chain: list[x509.Certificate]


class AnswerTaker(Protocol):
    """What a connection tells the exchange that uses it."""

    def take_interim(self, head: ResponseHead) -> None: ...
    def take_answer(self, head: ResponseHead, piece: bytes, done: bool) -> None: ...
    def take_piece(self, piece: bytes, done: bool) -> None: ...
    def upstream_ended(self, error: Exception | None) -> None: ...
    def pause_caller(self) -> None: ...
    def resume_caller(self) -> None: ...


class _State(Enum):
    OPENING = "opening"
    OPEN = "open"
    ENDED = "ended"


class UpstreamConnection(asyncio.Protocol):
    """Made and opened by a pool; nobody else makes one.

    `on_end` is called once when the connection has ended, whatever ended it; `on_verdict` once with what came
    of the attempt to open it, which may be some time after it was opened.
    """

    def __init__(
        self,
        upstream: Upstream,
        stats: RouteStats,
        on_end: Callable[[UpstreamConnection], None],
        on_verdict: Callable[[Observation, Outcome], None] | None = None,
    ) -> None:
        self.upstream = upstream
        self.unasked = False
        """The upstream was not interested in our certificate, and nobody has been told so yet."""
        self.idle_until = 0.0
        """Loop time until which the pool keeps it; 0 while it is in use."""
        self.usable_until = 0.0
        """Loop time after which the pool gives it to nobody any more."""
        self.reusable = False
        """After an answer: whether another exchange may use the connection."""
        self.answer = AnswerReader()
        """The answer to the request that was begun last, as far as it has come."""
        self._stats = stats
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        sends = upstream.route.credential is not None
        self._attempt = Attempt(upstream, stats, Observation(certificate_sent=sends), on_verdict)
        """To open it, or the last that the upstream has begun on it since."""
        self._hello_sent = 0.0
        self._established = 0.0
        self._state = _State.OPENING
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._hold: asyncio.TimerHandle | None = None
        self._tls: TlsStream
        self._socket: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._look: Callable[[int], list[tuple[int, int]]]
        """What there is to read, or an end of the connection; does not wait when called with 0."""
        self._lost = False
        """Whether the transport has ended, so that nothing can be written any more."""
        self._reading_paused = False
        self._writing_paused = False
        self._wordless = 0
        """Bytes since the last data: tickets are few, a flood of key updates would hold the loop."""
        self._exchange: AnswerTaker | None = None
        self._tunnel = False

    # -- opening ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and shake hands. Raises NotOpened, or Refusal for an address that may not be called."""
        try:
            self._socket = await connect(self.upstream, self._attempt.seen)
            try:
                await self._loop.create_connection(lambda: self, sock=self._socket)
            except BaseException:
                self._disown_socket()
                raise
            limit = self.upstream.route.config.upstream.timeouts.handshake
            try:
                async with asyncio.timeout(limit):
                    await self._opened
            except TimeoutError as exc:
                self._attempt.seen.timeout = limit
                raise self._end(Ending.TIMEOUT) from exc
        except NotConnected as exc:
            raise self._end(self._attempt.seen.ending) from exc
        except Refusal:
            # Our own rules forbade the attempt, so there is nothing to count.
            self._attempt.outcome = Outcome.UNDECIDED
            self._end(Ending.ABANDONED)
            raise
        except BaseException:
            self._end(Ending.ABANDONED)
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = cast(asyncio.Transport, transport)
        try:
            poll = select.poll()
            poll.register(cast(socket.socket, self._socket), select.POLLIN)
            self._look = poll.poll
            route = self.upstream.route
            self._tls = TlsStream(route.context, self.upstream.server_name, self.seen)
            self._hello_sent = self._loop.time()
            self._write(self._tls.start())
        except Exception as exc:
            self._fault(exc)

    def _advance(self, plain: bytes) -> None:
        """See whether the upstream has accepted us, as far as it ever says so."""
        attempt, stream = self._attempt, self._tls
        if not stream.established:
            return
        heard = bool(plain) or stream.ticket
        if attempt.seen.afterwards:
            if attempt.seen.stage is Stage.PROVEN or (attempt.seen.tls_version == "TLSv1.3" and heard):
                self._accepted()
            return
        if not self._established:
            self._established = self._loop.time()
        if heard or not attempt.seen.verdict_comes_late:
            if attempt.seen.verdict_comes_late:
                self.upstream.habits.waits_for_us = self._state is not _State.OPENING
            self._accepted()
            self._open()
        elif self._hold is None:
            wait = attempt.hold(self._established - self._hello_sent)
            self._hold = self._loop.call_later(wait, self._held_long_enough)

    def _accepted(self) -> None:
        self._attempt.prove(self._tls)
        if self._attempt.seen.certificate_requested:
            self.unasked = False

    def _held_long_enough(self) -> None:
        try:
            self._open()
        except Exception as exc:
            self._fault(exc)

    def _open(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
        if self._state is _State.OPENING:
            self._state = _State.OPEN
            if not self._opened.done():
                self._opened.set_result(None)

    @property
    def seen(self) -> Observation:
        """What was seen of the handshake that opened it, or of what the upstream has begun on it since."""
        return self._attempt.seen

    @property
    def outcome(self) -> Outcome | None:
        """What came of that handshake; None until the verdict."""
        return self._attempt.outcome

    def note_acceptable_cas(self) -> None:
        """Put the CAs that the upstream listed, when it asked for a certificate, into `seen`: for words."""
        self._tls.note_acceptable_cas(self.upstream.route.credential)

    @property
    def ended(self) -> bool:
        """Whether nothing goes out on it any more."""
        return self._state is _State.ENDED

    def peer(self) -> Peer:
        """What there is to tell about an open connection."""
        assert self._socket is not None
        return Peer(
            address=_told(self._socket.getpeername),
            own_address=_told(self._socket.getsockname),
            began=self._started,
            connected=self._hello_sent,
            established=self._established,
            cipher=self._tls.cipher,
            chain=self._tls.peer_chain(),
        )

    # -- one exchange ----------------------------------------------------------------------------------

    def begin(self, exchange: AnswerTaker, method: bytes, data: bytes, upgrade: bytes | None) -> None:
        """Send the first bytes of a request; the answer goes to `exchange`."""
        self.reusable = False
        self.answer.expect(method, upgrade)
        if self._state is _State.ENDED:
            exchange.upstream_ended(None)  # between its opening and now
            return
        self._exchange = exchange
        self._tls.again = 0
        if self._attempt.outcome is None:
            self._attempt.seen.request_sent = True
        self.send(data)

    def send(self, data: bytes) -> None:
        """Send more of the request."""
        if self._state is _State.ENDED:
            return
        try:
            data = self._tls.send(data)
        except TlsFailure as exc:
            self._end(Ending.TLS, str(exc))
            return
        if data:
            assert self._transport is not None
            self._transport.write(data)
        elif self._tls.unsent and self._exchange is not None:
            self._exchange.pause_caller()  # until the upstream's handshake is over

    def _send_unsent(self) -> None:
        try:
            self._write(self._tls.send_unsent())
        except TlsFailure as exc:
            self._end(Ending.TLS, str(exc))
            return
        if not self._tls.unsent and not self._writing_paused and self._exchange is not None:
            self._exchange.resume_caller()

    def pause_reading(self) -> None:
        """Let the upstream wait: the caller does not keep up."""
        if self._state is not _State.ENDED and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self._state is not _State.ENDED and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def leave(self) -> None:
        """The exchange ends without an answer (or the rest of one): so does the connection."""
        self._exchange = None
        self._end(Ending.ABANDONED)

    def close(self) -> None:
        """End a connection in good order, once what was written has gone out."""
        try:
            if self._state is not _State.ENDED:
                self._write(self._tls.close())
                assert self._transport is not None
                if self._transport.get_write_buffer_size():
                    self._flush(self.outflow(_FLUSH_SECONDS))
            self._end(Ending.NONE)
        except Exception as exc:
            self._fault(exc)

    def _flush(self, rest: Outflow) -> None:
        """End a closed connection whose upstream reads nothing any more."""
        try:
            if wait := rest.patience():
                self._loop.call_later(wait, self._flush, rest)
                return
        except Exception as exc:
            log.error("an error of sidecert's own at a closed upstream connection", exc_info=exc)
        if not self._lost:
            assert self._transport is not None
            self._transport.abort()

    def outflow(self, limit: float) -> Outflow:
        """What of the requests is still to leave."""
        assert self._transport is not None
        return Outflow(self._transport, limit)

    def _write(self, data: bytes) -> None:
        if data:
            assert self._transport is not None
            self._transport.write(data)

    def is_alive(self) -> bool:
        """Whether an idle connection can be used: neither ended nor anything to read on it.

        An end that the kernel has seen but the event loop has not yet read shows up here.
        """
        return self._state is _State.OPEN and not self._look(0)

    # -- what the transport tells ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            stream = self._tls
            try:
                plain = stream.receive(data)
            except TlsFailure as exc:
                self._write(stream.take_output())  # our alert
                self._notice_again()
                if self._attempt.outcome is None:
                    self._advance(b"")  # the upstream's proof may have come before the failure, in one piece
                self._end(Ending.TLS, str(exc))
                return
            if stream.news or not plain or self._attempt.outcome is None:
                self._note_news(plain, len(data))
            if plain:
                self._wordless = 0
                self._take(plain)
            if stream.failure is not None:
                self._end(Ending.TLS, str(stream.failure))
            elif stream.closed:
                self._end(Ending.CLOSE_NOTIFY)
        except Exception as exc:
            self._fault(exc)

    def _note_news(self, plain: bytes, size: int) -> None:
        """Something other than data has come, in `size` bytes: a part of the handshake, a ticket, an alert.

        Or the first data of all, which proves that the upstream has accepted us.
        """
        stream = self._tls
        self._write(stream.take_output())
        # What ends the handshake does not count: it may bring all of a long chain.
        established = self._established
        if self._notice_again():
            plain = b""  # whatever it is, it was sent before our certificate came
        if self._attempt.outcome is None:
            self._advance(plain)
        elif self._exchange is None and self._tls.partial:
            self._end(Ending.NONE)  # the beginning of what nobody asked for
            return
        if established and not plain:
            self._wordless += size
            if self._wordless > _MAX_WORDLESS:
                self._end(Ending.TLS, "the upstream sends TLS messages without any data")
            elif stream.again > MOST_AGAIN:
                self._end(Ending.TLS, "the upstream shakes hands again and again")
        if stream.unsent:
            self._send_unsent()

    def _notice_again(self) -> bool:
        """See whether the upstream has begun a handshake anew, or asked for a certificate after it."""
        seen = self._tls.seen
        if seen is self._attempt.seen:
            return False
        if self._attempt.outcome is None:
            self._accepted()  # it would not go on with us otherwise
            self._open()
        seen.request_sent = self._exchange is not None
        self._attempt = Attempt(self.upstream, self._stats, seen)
        self._wordless = 0
        return True

    def eof_received(self) -> None:
        try:
            self._end(Ending.EOF)
        except Exception as exc:
            self._fault(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        try:
            try:
                if exc is not None:
                    self._read_what_is_left()
            finally:
                self._disown_socket()
            self._end(Ending.EOF if exc is None else Ending.RESET, "" if exc is None else str(exc))
        except Exception as error:
            self._fault(error)

    def _read_what_is_left(self) -> None:
        """Take what had come before the connection was found to be reset.

        An upstream that answers before it has read a request's body, and closes, resets the connection. Where
        we notice by writing, the event loop gives up although the answer is still to be read.
        """
        assert self._socket is not None
        try:
            while self._state is not _State.ENDED and not self._reading_paused:
                data = self._socket.recv(_READ_AT_ONCE)
                if not data:
                    return
                self.data_received(data)
        except OSError:
            pass  # nothing left
        except Exception as exc:
            self._fault(exc)

    def _disown_socket(self) -> None:
        """Keep Python from closing a descriptor that the transport has closed already.

        uvloop makes the socket its own only once `create_connection` returns. A transport that ends before
        that closes the descriptor, and the socket would close the same number again later: by then it may be
        another connection's. asyncio's transport closes the socket itself, after `connection_lost`.
        """
        if self._socket is not None:
            self._loop.call_soon(self._socket.detach)

    def pause_writing(self) -> None:
        self._writing_paused = True
        try:
            if self._exchange is not None:
                self._exchange.pause_caller()
        except Exception as exc:
            self._fault(exc)

    def resume_writing(self) -> None:
        self._writing_paused = False
        try:
            if self._exchange is not None and not self._tls.unsent:
                self._exchange.resume_caller()
        except Exception as exc:
            self._fault(exc)

    # -- the answer ------------------------------------------------------------------------------------

    def _take(self, plain: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nobody asked for anything: a late answer, or a complaint. It must never reach another call.
            self._end(Ending.NONE)
            return
        try:
            if self._tunnel:
                exchange.take_piece(plain, False)
                return
            heads, piece, done = self.answer.feed(plain)
            if done:
                self._free()
            elif self.answer.dense:
                self._take_a_breath()
            if heads:
                self._tell(exchange, heads, piece, done)
                if self.answer.failure is not None:
                    raise self.answer.failure
            elif piece or done:
                exchange.take_piece(piece, done)
        except (BadAnswer, BodyError) as exc:
            self._end(Ending.NONE, cause=exc)
        except Exception:
            self._exchange = exchange  # so that it is told, also where it has taken a whole answer
            raise

    def _take_a_breath(self) -> None:
        """Read on when the loop has been round: others have to have their turn."""
        assert self._transport is not None
        if not self._reading_paused:
            self._transport.pause_reading()
            self._loop.call_soon(self._breathed)

    def _breathed(self) -> None:
        try:
            if not self._reading_paused and self._state is not _State.ENDED and self._transport is not None:
                self._transport.resume_reading()
        except Exception as exc:
            self._fault(exc)

    def _tell(self, exchange: AnswerTaker, heads: tuple[ResponseHead, ...], piece: bytes, done: bool) -> None:
        for head in heads:
            if head.status >= 200 or head.status == SWITCHING_PROTOCOLS:
                self._tunnel = head.status == SWITCHING_PROTOCOLS
                exchange.take_answer(head, piece, done)
            else:
                exchange.take_interim(head)

    def _free(self) -> None:
        """The answer is whole. What came behind it was asked for by nobody."""
        self._exchange = None
        answer, stream = self.answer, self._tls
        self.reusable = (
            answer.keep_alive
            and not answer.rest
            and not stream.partial
            and not stream.closed
            and stream.failure is None
            and not self._writing_paused
            and not stream.unsent
            and not self._lost
            and self._state is _State.OPEN
        )

    # -- the end ---------------------------------------------------------------------------------------

    def _end(self, ending: Ending, error: str = "", *, cause: Exception | None = None) -> Exception:
        """The one way out. `cause` is what was wrong with the answer, or with us.

        Gives what is to be told to who waits for the connection to open.
        """
        attempt = self._attempt
        if self._state is _State.ENDED:
            return NotOpened(attempt.seen, attempt.outcome or Outcome.UNDECIDED)
        self._state = _State.ENDED
        self.reusable = False
        if self._hold is not None:
            self._hold.cancel()
        try:
            stream = self._tls if self._hello_sent else None
            attempt.end(stream, ending, error, idle=self._exchange is None)
        except Exception as exc:
            log.error("an error of sidecert's own at the end of an upstream connection", exc_info=exc)
            cause = exc
        exchange, self._exchange = self._exchange, None
        failure = cause or NotOpened(attempt.seen, attempt.outcome or Outcome.UNDECIDED)
        if not self._opened.done():
            self._opened.set_exception(failure)
            self._opened.exception()  # it may be that nobody waits any more
        try:
            self._close_transport(ending)
        finally:
            try:
                self._on_end(self)
            finally:
                self._tell_end(exchange, ending, cause)
        return failure

    def _close_transport(self, ending: Ending) -> None:
        if self._transport is None:
            return  # before that the event loop closes the socket
        if ending is Ending.ABANDONED:
            self._transport.abort()
        else:
            self._transport.close()

    def _tell_end(self, exchange: AnswerTaker | None, ending: Ending, cause: Exception | None) -> None:
        if exchange is not None:
            if ending is Ending.CLOSE_NOTIFY and (self._tunnel or self.answer.ends_well()):
                exchange.take_piece(b"", True)
            else:
                exchange.upstream_ended(cause)

    def _fault(self, exc: Exception) -> None:
        """Our own code failed: nothing more goes in or out on this connection."""
        log.error("an error of sidecert's own on an upstream connection", exc_info=exc)
        # The attempt is nobody's fault but ours: its outcome stays open.
        self._end(Ending.ABANDONED, "an error of sidecert's own", cause=exc)


def _told(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except OSError:
        return None
