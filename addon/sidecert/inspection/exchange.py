"""An exchange that shows itself as a flow; see the package's docstring for the order of things."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mitmproxy import http
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from sidecert.config import TimeoutsConfig
from sidecert.errors import BadAnswer, Reason, Refusal
from sidecert.exchange import CALLER_LEFT, Caller, Exchange
from sidecert.generation import Upstream
from sidecert.http1 import SWITCHING_PROTOCOLS, RequestHead, ResponseHead, downstream_head
from sidecert.inspection import edits, flows
from sidecert.inspection.body import MOST_COLLECTED, Body
from sidecert.inspection.record import Record, noting
from sidecert.inspection.stage import Killed, Stage
from sidecert.outcome import Observation, Outcome
from sidecert.plane import Plane
from sidecert.upstream import UpstreamConnection

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class InspectedExchange(Exchange):
    """Made in the place of an `Exchange` where an addon looks at flows.

    What comes from either side is held back here, shown by a task, and then handed to `Exchange` as if it had
    come just then.
    """

    def __init__(self, stage: Stage, plane: Plane, caller: Caller, head: RequestHead) -> None:
        super().__init__(plane, caller, head)
        self._stage = stage
        self._planned = self._plan()
        self._record = Record(stage, caller, head, self._planned)
        self._flow = self._record.flow
        self._shown_request = edits.of_request(self._flow.request)
        self._showing: asyncio.Task[None] | None = None
        self._asked = Body()
        self._forwarded = False
        """The request goes upstream; what comes of it is not held back any more."""
        self._continued = False
        self._answer_head: ResponseHead | None = None
        self._answer = Body()
        self._passing_on = False
        """The answer goes to the caller, likewise."""

    # -- the request -----------------------------------------------------------------------------------

    def start(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]] | None = None) -> None:
        self._asked.add(piece, done, trailers or [])
        self._show(self._show_request)

    def take_body(self, piece: bytes, done: bool, trailers: list[tuple[bytes, bytes]]) -> None:
        if self._forwarded or self._ended:
            super().take_body(piece, done, trailers)
            return
        self._asked.add(piece, done, trailers)
        if self._asked.is_large:
            self._caller.pause_reading()
        elif not done:
            self._caller.deadline.set(self._route_timeouts().stall)

    async def _show_request(self) -> None:
        flow, body = self._flow, self._asked
        await self._fire(HttpRequestHeadersHook)
        if await self._collect_request():
            flow.request.raw_content = bytes(body.content)
            flow.request.trailers = http.Headers(body.trailers) if body.trailers else None
            flow.request.timestamp_end = time.time()
        else:
            flow.request.stream = flow.request.stream or True
            self._caller.pause_reading()
        await self._fire(HttpRequestHook)
        if flow.response is not None:
            await self._answer_from_addon(flow.response)
        else:
            self._forward(None if flow.request.stream else body)

    async def _collect_request(self) -> bool:
        """Wait for the request's body. False where it is not to be held back, or will not come."""
        if self._flow.request.stream or self.head.body > MOST_COLLECTED:
            return False
        if not self._asked.done:
            self._caller.deadline.set(self._route_timeouts().stall)
            if self.head.expect_continue and not self._asked.content:
                # The caller keeps it back until it is asked for (RFC 9110 section 10.1.1).
                if self._flow.response is not None:
                    return False
                self._continued = True
                self._caller.write(_CONTINUE)
        return await self._asked.collect()

    def _forward(self, received: Body | None) -> None:
        """Send the request on; `received` is its body, None where it is streamed."""
        request, body = self._flow.request, self._asked
        header_bytes = self._plane.generation.config.limits.header_bytes
        self.head = edits.request_to_send(request, self._shown_request, self.head, received, header_bytes)
        self._forwarded = True
        # First: the upstream may want the caller to wait before `start` is over.
        self._caller.resume_reading()
        if request.raw_content is None:
            super().start(bytes(body.content), body.done, body.trailers)
        else:
            super().start(request.raw_content, True, edits.trailers_of(request))
        body.content.clear()
        if (upstream := self.upstream) is not None:
            noting(lambda: self._record.note_route(upstream))

    async def _answer_from_addon(self, response: http.Response) -> None:
        """Answer with what an addon has made. Nothing goes upstream."""
        response.timestamp_start = time.time()
        await self._fire(HttpResponseHeadersHook)
        response.timestamp_end = time.time()
        await self._fire(HttpResponseHook)
        response = self._response()
        head = edits.made_answer(response, self.head)
        goes_on = not self._plane.draining or self._caller.asks_more()
        keep_alive = self.head.keep_alive and self._asked.done and goes_on
        data = downstream_head(head, caller_minor=self.head.minor, keep_alive=keep_alive, body=head.body)
        self._caller.write(data + (response.raw_content or b"" if head.body else b""))
        self._end(head.status)
        self._caller.finish(keep_alive=keep_alive)

    # -- the answer ------------------------------------------------------------------------------------

    def take_interim(self, head: ResponseHead) -> None:
        if not (self._continued and head.status == 100):  # the caller has had that from us
            super().take_interim(head)

    def take_answer(self, head: ResponseHead, piece: bytes, done: bool) -> None:
        try:
            self._answer_head = head
            self._flow.response = flows.answer(head)
            self._hold_answer(piece, done)
            self._show(self._show_answer)
        except Exception as exc:
            self.fault(exc)

    def take_piece(self, piece: bytes, done: bool) -> None:
        if self._passing_on:
            super().take_piece(piece, done)
            return
        try:
            self._hold_answer(piece, done)
        except Exception as exc:
            self.fault(exc)

    def _hold_answer(self, piece: bytes, done: bool) -> None:
        assert self._connection is not None
        self._answer.add(piece, done, self._connection.answer.trailers if done else [])
        if self._answer.is_large:
            self._connection.pause_reading()
        elif not done:
            self._caller.deadline.set(self._route_timeouts().stall)

    async def _show_answer(self) -> None:
        head, body = self._answer_head, self._answer
        assert head is not None
        shown = edits.of_answer(self._response())
        await self._fire(HttpResponseHeadersHook)
        collected = await self._collect_answer(head)
        response = self._response()
        if collected:
            response.raw_content = bytes(body.content)
            response.trailers = http.Headers(body.trailers) if body.trailers else None
        else:
            response.stream = response.stream or True
        if collected or head.status == SWITCHING_PROTOCOLS:
            response.timestamp_end = time.time()
            await self._fire(HttpResponseHook)
        self._pass_on(head, shown, body if collected else None)

    async def _collect_answer(self, head: ResponseHead) -> bool:
        """Wait for the answer's body. False where it is not to be held back."""
        response = self._response()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.stream or head.status == SWITCHING_PROTOCOLS or kind == "text/event-stream":
            return False
        if not self._answer.done:
            self._caller.deadline.set(self._route_timeouts().stall)
        return head.body <= MOST_COLLECTED and await self._answer.collect()

    def _pass_on(self, head: ResponseHead, shown: edits.Essence, received: Body | None) -> None:
        response, connection = self._response(), self._connection
        assert connection is not None
        new = edits.answer_to_send(response, shown, head, received, self.head)
        content = bytes(self._answer.content) if response.raw_content is None else response.raw_content
        if received is not None:
            connection.answer.trailers = edits.trailers_of(response)
            content = content if new.body else b""
        self._answer.content.clear()
        self._passing_on = True
        # First: the caller may want the upstream to wait before `take_answer` is over.
        connection.resume_reading()
        super().take_answer(new, content, self._answer.done)

    # -- the end ---------------------------------------------------------------------------------------

    def upstream_ended(self, error: Exception | None) -> None:
        if error is None and self._answer_head is not None and not self._answer_begun:
            # Not to be taken for a connection that ended before any answer: that may be tried again.
            error = BadAnswer("it ended before it was whole")
        super().upstream_ended(error)

    def timed_out(self) -> None:
        if self._record.in_hook or (self._forwarded and self._connection is None):
            return  # people think as long as they like; opening a connection has limits of its own
        if self._answer_head is not None and not self._answer_begun:
            limit = self._route_timeouts().stall
            self.refuse(
                Refusal.of(
                    Reason.RESPONSE_TIMEOUT,
                    f"The upstream's answer stopped for {limit:g} s before its end.",
                    "Find out why the upstream is slow, or raise `upstream.timeouts.stall` of the route.",
                )
            )
        else:
            super().timed_out()

    def caller_left(self) -> None:
        self._record.note_failure("the caller left before its answer was whole")
        super().caller_left()

    def refuse(self, refusal: Refusal) -> None:
        if not self._ended:
            noting(lambda: self._record.note_refusal(refusal))
        super().refuse(refusal)

    def _fail(self, error: Exception | None) -> None:
        if not self._tunnel:
            self._record.note_failure(f"the answer was cut short{f': {error}' if error else ''}")
        super()._fail(error)

    def _end(self, status: int, *, from_upstream: bool = False) -> None:
        super()._end(status, from_upstream=from_upstream)
        if self._showing is not None and self._showing is not asyncio.current_task():
            self._showing.cancel()
        noting(self._record.conclude)

    # -- showing ---------------------------------------------------------------------------------------

    def _show(self, work: Callable[[], Awaitable[None]]) -> None:
        self._showing = self._stage.start(self._guarded(work))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Killed:
            if not self._ended:
                self._end(CALLER_LEFT)
            self._let_go()
            self._caller.cut()
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception as exc:
            self.fault(exc)

    async def _fire(
        self,
        hook: type[HttpRequestHeadersHook | HttpRequestHook | HttpResponseHeadersHook | HttpResponseHook],
    ) -> None:
        await self._record.show(hook)
        if self._ended:
            raise asyncio.CancelledError  # an addon has swallowed the one that told it so

    def _response(self) -> http.Response:
        if self._flow.response is None:
            raise edits.not_served("the answer was taken away")
        return self._flow.response

    def _plan(self) -> Upstream | None:
        """Where the request would go if no addon edited it, for those who look at it before it goes."""
        try:
            return self._plane.find(self.head, self._caller.listener, self._caller.own_host)[1]
        except Refusal:
            return None

    def _route_timeouts(self) -> TimeoutsConfig:
        if self._pool is not None:
            return super()._route_timeouts()
        return TimeoutsConfig() if self._planned is None else self._planned.route.config.upstream.timeouts

    def _send(self, connection: UpstreamConnection, body: bytes) -> None:
        super()._send(connection, body)
        noting(lambda: self._record.note_connection(connection))

    def _explain(self, seen: Observation, outcome: Outcome) -> Refusal:
        noting(lambda: self._record.note_attempt(self.upstream, seen))
        return super()._explain(seen, outcome)
