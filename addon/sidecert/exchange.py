"""One request on its way: route, credential, connection, answer; or an answer of our own that says why.

Driven by callbacks from both connections, so that a call over a pooled connection costs no task. A task
exists only while a connection is being opened.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Protocol

from sidecert import calllog, refusals
from sidecert.circuit import CircuitOpen
from sidecert.config import TimeoutsConfig
from sidecert.errors import BadAnswer, Refusal
from sidecert.generation import Upstream
from sidecert.http1 import (
    CHUNKED,
    SWITCHING_PROTOCOLS,
    UNTIL_CLOSE,
    BodyError,
    RequestHead,
    ResponseHead,
    downstream_head,
    encode_chunk,
    last_chunk,
    upstream_head,
)
from sidecert.http_verdict import STATUSES, StartOfAnswer
from sidecert.outcome import Observation, Outcome
from sidecert.outflow import Outflow
from sidecert.plane import Listener, Plane
from sidecert.pool import Pool
from sidecert.rewriting import rewrite
from sidecert.sparing import REPEATED
from sidecert.timers import Deadline
from sidecert.upstream import NotOpened, UpstreamConnection

log = logging.getLogger(__name__)

_SAFE_TO_REPEAT = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_MAX_WAITING_BODY = 64 * 1024
"""Bytes of a request's body that may wait here while a connection is opened."""

_MUCH_LEFT = 64 * 1024
"""Bytes of a request's body that a slow upstream may still have to read after we have written the last."""

CALLER_LEFT = 499
"""Counted for a call whose caller left before an answer began, as nginx does."""


_CUT = "Look into the upstream's log, and into ours for `cut`."


class Caller(Protocol):
    """What an exchange needs of the downstream connection that it answers."""

    listener: Listener
    deadline: Deadline
    """When it passes, it calls the exchange's `timed_out`."""

    @property
    def own_host(self) -> str | None: ...
    def peer(self) -> object: ...
    def own_address(self) -> object: ...
    def asks_more(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def outflow(self, limit: float) -> Outflow: ...
    def become_tunnel(self) -> None: ...
    def refuse(self, refusal: Refusal, exchange: Exchange) -> None: ...
    def finish(self, *, keep_alive: bool) -> None: ...
    def cut(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Exchange:
    """Made by a downstream connection for each request; ends with one `finish` or one `cut` of it."""

    # The first state of every call; only what changes costs anything (which slots would not give).
    upstream: Upstream | None = None
    request_id = ""
    """Set where an answer or a log line names it."""
    sent = False
    """Bytes of the request were given to an upstream connection: it may have been processed."""
    _pool: Pool | None = None
    _connection: UpstreamConnection | None = None
    _opening: asyncio.Task[None] | None = None
    _waiting = b""
    """What of the request waits for a connection."""
    _asked_whole = False
    _answer_begun = False
    _answer_framing = 0
    _keep_alive = False
    _reused = False
    _retried = False
    _start_of_answer: StartOfAnswer | None = None
    """Of an answer that may turn out to refuse the certificate."""
    _tunnel = False
    _to_caller: Outflow | None = None
    """Of an answer, while the caller does not keep up with it."""
    _to_upstream: Outflow | None = None
    """Of the request's body, while the upstream does not keep up with it."""
    _ended = False
    _status = 0

    def __init__(self, plane: Plane, caller: Caller, head: RequestHead) -> None:
        self.head = head
        self._plane = plane
        self._caller = caller
        self._started = perf_counter()

    # -- the request, from the downstream connection ---------------------------------------------------

    def start(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Begin, with the part of the body that came with the head; `trailers` if that was all of it."""
        try:
            self._pool, self.upstream = self._plane.find(
                self.head, self._caller.listener, self._caller.own_host
            )
        except Refusal as refusal:
            self._asked_whole = done
            self.refuse(refusal)
            return
        self._pool.stats.in_progress += 1
        self._asked_whole = done
        body = self._frame(piece, done, trailers)
        connection = self._pool.take(self.upstream)
        if connection is None:
            self._waiting = body
            self._open()
        else:
            self._connection = connection
            self._send(connection, body)

    def take_body(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]]) -> None:
        """More of the request's body."""
        self._asked_whole = done
        if self._ended:
            return
        body = piece if self._tunnel else self._frame(piece, done, trailers)
        if self._connection is not None:
            self._connection.send(body)
            self._wait_for_answer()
        else:
            self._waiting += body
            if len(self._waiting) > _MAX_WAITING_BODY:
                self._caller.pause_reading()

    def caller_left(self) -> None:
        """The caller's connection has ended: nobody waits for the answer."""
        if not self._ended:
            try:
                if self._answer_begun:
                    self._end(self._status, from_upstream=True)
                else:
                    self._end(CALLER_LEFT)
            finally:
                if self._tunnel and self._connection is not None:
                    connection, self._connection = self._connection, None
                    connection.close()  # the caller's last bytes are still to arrive
                self._let_go()

    def timed_out(self) -> None:
        """The deadline that was set last has passed."""
        if self._ended:
            return
        timeouts = self._route_timeouts()
        wait = max(
            0.0 if self._to_caller is None else self._to_caller.patience(),
            0.0 if self._to_upstream is None else self._to_upstream.patience(),
        )
        if wait:
            self._caller.deadline.set(wait)
        elif self._tunnel or self._answer_begun:
            self._fail(None)
        elif self._asked_whole and self._to_upstream is not None and not any(self._to_upstream.left):
            self._to_upstream = None  # only now the upstream has the whole request
            self._caller.deadline.set(timeouts.response)
        elif self._asked_whole:
            self.refuse(refusals.upstream_silent(*self._upstream_seen(self._connection)))
        elif self._to_upstream is not None:
            self.refuse(refusals.upstream_stuck(*self._upstream_seen(self._connection)))
        else:
            self.refuse(refusals.body_stalled(timeouts, sent=self.sent))

    def expire(self) -> None:
        """The sidecar ends now: an answer that has not begun never will."""
        self.refuse(refusals.draining(sent=self.sent))

    def pause_answer(self) -> None:
        """The caller does not keep up with the answer."""
        if self._connection is not None:
            self._connection.pause_reading()
            if self._answer_begun:
                self._to_caller = self._caller.outflow(self._route_timeouts().stall)
                self._caller.deadline.set(self._to_caller.patience())

    def resume_answer(self) -> None:
        self._to_caller = None
        if self._connection is not None:
            self._connection.resume_reading()
            if self._answer_begun:
                self._caller.deadline.set(self._route_timeouts().stall)

    # -- to the upstream -------------------------------------------------------------------------------

    def _frame(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]] | None = None) -> bytes:
        if self.head.body != CHUNKED:
            return piece
        framed = encode_chunk(piece)
        return framed + last_chunk(trailers or ()) if done else framed

    def _open(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open_and_send())
        self._opening.add_done_callback(self._opening_ended)

    async def _open_and_send(self) -> None:
        assert self._pool is not None
        assert self.upstream is not None
        try:
            # One may have become free since this task was made; a call is repeated on a new one only.
            idle = None if self._retried else self._pool.take(self.upstream)
            self._connection = idle or await self._pool.open(self.upstream, fresh=self._retried)
            if self._connection.ended and self._connection.outcome is Outcome.OK:
                # It ended as soon as it was open. No byte of the request was written, whatever its method.
                self._connection = None
                self._connection = await self._pool.open(self.upstream, fresh=True)
            self._opening = None
            body, self._waiting = self._waiting, b""
            self._caller.resume_reading()
            self._send(self._connection, body)
        except NotOpened as failure:
            self.refuse(self._explain(failure.seen, failure.outcome))
        except CircuitOpen as verdict:
            self.refuse(refusals.circuit_open(verdict, self.upstream, sent_before=self._retried))
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception as exc:
            # At once: until the loop tells of this task's end, more of the body may come, and it would go
            # out on the connection without the head, to be read there as a request.
            self.fault(exc)

    def _opening_ended(self, opening: asyncio.Task[None]) -> None:
        if not opening.cancelled() and (error := opening.exception()) is not None:
            self.fault(error)

    def _send(self, connection: UpstreamConnection, body: bytes) -> None:
        assert self.upstream is not None
        self._reused = connection.reusable
        self.sent = self.sent or not connection.ended
        head = upstream_head(self.head, self.upstream.host_header)
        connection.begin(self, self.head.method, head + body if body else head, self.head.upgrade)
        self._wait_for_answer()

    def _wait_for_answer(self) -> None:
        if self._ended:
            return
        timeouts = self._route_timeouts()
        # While bytes of the request go through, an answer that has begun may wait for them.
        silent = self._asked_whole and not self._answer_begun
        if silent and not 0 <= self.head.body <= _MUCH_LEFT:
            self._watch_what_is_left()
        if self._to_upstream is not None:
            self._caller.deadline.set(self._to_upstream.patience())
        else:
            self._caller.deadline.set(timeouts.response if silent else timeouts.stall)

    def _watch_what_is_left(self) -> None:
        """The request has been written, but much of it may still wait for the upstream to read it."""
        if self._to_upstream is None and self._connection is not None:
            outflow = self._connection.outflow(self._route_timeouts().stall)
            if sum(outflow.left) > _MUCH_LEFT:
                self._to_upstream = outflow

    def pause_caller(self) -> None:
        """The upstream does not keep up with the request's body."""
        if self._connection is not None:
            self._to_upstream = self._connection.outflow(self._route_timeouts().stall)
        self._caller.pause_reading()

    def resume_caller(self) -> None:
        self._to_upstream = None
        self._caller.resume_reading()
        self._wait_for_answer()

    # -- the answer, from the upstream connection ------------------------------------------------------

    def take_interim(self, head: ResponseHead) -> None:
        """A 1xx answer, which an HTTP/1.0 caller would not understand."""
        if self.head.minor >= 1:
            self._caller.write(downstream_head(head, caller_minor=1, keep_alive=True, body=0))

    def take_answer(self, head: ResponseHead, piece: bytes, done: bool) -> None:
        """The answer's head, with the part of its body that came along."""
        try:
            self._status = head.status
            framing = head.body
            if framing < 0 and head.status != SWITCHING_PROTOCOLS:
                framing = CHUNKED if self.head.minor >= 1 else UNTIL_CLOSE
            self._answer_framing = framing
            self._keep_alive = keep_alive = (
                self._asked_whole
                and self.head.keep_alive
                and framing != UNTIL_CLOSE
                and (not self._plane.draining or self._caller.asks_more())
            )
            if head.special and self.upstream is not None:
                rewrite(head, self.head, self.upstream.own_origins)
            data = downstream_head(head, caller_minor=self.head.minor, keep_alive=keep_alive, body=framing)
            self._answer_begun = True
            if head.status in STATUSES:
                self._start_of_answer = StartOfAnswer(head.status, head.headers)
                self._look_at_answer(self._start_of_answer, piece, done)
            if not done:
                self._caller.deadline.set(self._route_timeouts().stall)
            self._caller.write(data + (self._frame_answer(piece, done) if framing == CHUNKED else piece))
            if done:
                self._answered()
                return
            if head.status == SWITCHING_PROTOCOLS:
                self._tunnel = True
                self._keep_alive = False
                self._caller.become_tunnel()
        except Exception as exc:
            self.fault(exc)

    def take_piece(self, piece: bytes, done: bool) -> None:
        """More of the answer's body."""
        try:
            if self._start_of_answer is not None:
                self._look_at_answer(self._start_of_answer, piece, done)
            framed = self._frame_answer(piece, done)
            if not done:
                self._caller.deadline.set(self._route_timeouts().stall)
            if framed:
                self._caller.write(framed)
            if done:
                self._answered()
        except Exception as exc:
            self.fault(exc)

    def _look_at_answer(self, start: StartOfAnswer, piece: bytes, done: bool) -> None:
        """Count and log an answer that refuses the client certificate; it is passed on as it is."""
        if not start.add(piece, done):
            return
        self._start_of_answer = None
        signature = start.recognise()
        if signature is not None:
            assert self._connection is not None
            assert self._pool is not None
            first = self._pool.count_rejection(signature)
            self._connection.note_acceptable_cas()
            seen, upstream = self._connection.seen, self._connection.upstream
            told = calllog.rejected(signature, start, seen, self.name_request(), upstream, first=first)
            self._pool.stats.failed(signature, told.cause, told.remedy)

    def _frame_answer(self, piece: bytes, done: bool) -> bytes:
        if self._answer_framing != CHUNKED:
            return piece
        framed = encode_chunk(piece)
        if not done:
            return framed
        assert self._connection is not None
        return framed + last_chunk(self._connection.answer.trailers)

    def _answered(self) -> None:
        connection = self._connection
        assert connection is not None
        assert self._pool is not None
        if self.head.binds:
            connection.reusable = False  # the next caller's call would be taken for this one's
        if self._asked_whole:
            connection.resume_reading()  # paused, it would never see the answer to another call
            self._pool.release(connection)
        else:
            connection.leave()  # the rest of the request was never sent: nobody may use what is left
        self._connection = None
        self._end(self._status, from_upstream=True)
        self._caller.finish(keep_alive=self._keep_alive)

    def upstream_ended(self, error: Exception | None) -> None:
        """The connection ended before the answer did; `error` is what was wrong with the answer or us."""
        try:
            self._take_end(error)
        except Exception as exc:
            self.fault(exc)

    def _take_end(self, error: Exception | None) -> None:
        if self._ended and error is None:
            return  # it was we who closed it
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._answer_begun:
            if error is None and connection.outcome is not Outcome.OK and connection.outcome is not None:
                error = self._explain(connection.seen, connection.outcome)
            self._fail(error)
        elif isinstance(error, (BadAnswer, BodyError)):
            self.refuse(refusals.bad_answer(*self._upstream_seen(connection), error))
        elif error is not None:
            self.fault(error)
        elif connection.outcome is not Outcome.OK:
            assert connection.outcome is not None
            self.refuse(self._explain(connection.seen, connection.outcome))
        elif self._may_send_again(connection.answer.heard):
            self._retried = True
            assert self._pool is not None
            self._pool.stats.retries += 1
            self._open()
        else:
            self.refuse(refusals.upstream_closed(*self._upstream_seen(connection), sent=self.sent))

    def _may_send_again(self, heard: bool) -> bool:
        """RFC 9110 section 9.2.2, and no more than that: a safe request, without a body, on a connection
        that was idle before, so that its end most likely crossed the request."""
        return (
            self._reused
            and not self._retried
            and not heard
            and self.head.method in _SAFE_TO_REPEAT
            and self.head.body == 0
        )

    # -- the end ---------------------------------------------------------------------------------------

    def _route_timeouts(self) -> TimeoutsConfig:
        assert self._pool is not None
        return self._pool.route.config.upstream.timeouts

    def refuse(self, refusal: Refusal) -> None:
        """Answer the call ourselves; where an answer has begun, cut the connection instead."""
        if self._ended:
            return
        if self._answer_begun:
            self._fail(refusal)
            return
        self._plane.metrics.denied(refusal.outcome)
        if self._pool is not None:
            self._pool.stats.failed(refusal.outcome, refusal.detail, refusal.remedy)
        self._log_refused(refusal)
        self._end(refusal.status)
        self._let_go()
        self._caller.refuse(refusal, self)

    def _fail(self, error: Exception | None) -> None:
        """An answer that cannot be completed must not look complete."""
        if self._ended:
            return
        if self._pool is not None:
            self._pool.stats.failed("cut", f"An answer was cut short: {error or 'it stopped too long'}", _CUT)
        calllog.cut(self._call(), self.upstream, error)
        self._end(self._status, from_upstream=True)
        self._let_go()
        self._caller.cut()

    def fault(self, exc: BaseException) -> None:
        """Our own code failed: the call is refused or cut, and never sent again."""
        log.error("an error of sidecert's own in an exchange", exc_info=exc)
        try:
            if not self._ended:
                self.refuse(refusals.internal(sent=self.sent))
                return
            self._let_go()
        except Exception as again:
            log.error("an error of sidecert's own while an exchange was refused", exc_info=again)
        self._caller.cut()

    def _end(self, status: int, *, from_upstream: bool = False) -> None:
        """Count the call, once."""
        self._ended = True
        seconds = perf_counter() - self._started
        if self._pool is not None:
            self._pool.stats.in_progress -= 1
            self._pool.stats.request(status, from_upstream, seconds)
        if self._plane.access_log:
            source = "upstream" if from_upstream else "sidecert"
            calllog.access(self._call(), status, source, seconds, self.upstream)

    def _let_go(self) -> None:
        """Leave the upstream: its connection can serve nobody else now."""
        opening, self._opening = self._opening, None
        if opening is not None and opening is not asyncio.current_task():
            opening.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()

    def name_request(self) -> str:
        """An id for the log and the answer, made when first wanted."""
        if not self.request_id:
            self.request_id = calllog.new_request_id()
        return self.request_id

    def _call(self) -> calllog.Call:
        """Who called whom, for the log."""
        caller = self._caller
        return calllog.call(self.head, self.name_request(), caller.listener.label, caller.peer())

    def _log_refused(self, refusal: Refusal) -> None:
        left_out: int | None = 0
        if self._pool is not None and refusal.outcome in REPEATED:
            left_out = self._pool.refused.left_out(refusal.outcome)
        if left_out is not None:
            calllog.refused(refusal, self._call(), self.upstream, left_out=left_out)

    def _upstream_seen(self, connection: UpstreamConnection | None) -> tuple[Upstream, Observation | None]:
        """Whom the call went to, and what was seen of its connection."""
        assert self.upstream is not None
        return self.upstream, None if connection is None else connection.seen

    def _explain(self, seen: Observation, outcome: Outcome) -> Refusal:
        """The refusal for an attempt that failed."""
        assert self.upstream is not None
        return refusals.handshake_failed(seen, outcome, self.upstream, sent_before=self._retried)
