"""One call as a flow, with what it tells beside its messages: route, credential, connection and verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.hooks import Hook
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook

from sidecert.errors import Refusal
from sidecert.exchange import Caller
from sidecert.generation import Upstream
from sidecert.http1 import RequestHead
from sidecert.inspection import flows
from sidecert.inspection.stage import Stage
from sidecert.outcome import Observation, Outcome
from sidecert.upstream import UpstreamConnection

log = logging.getLogger(__name__)

_MARK: Final = ":x:"


class Record:
    """The flow of one call. `planned` is where it would go if no addon edited it."""

    def __init__(self, stage: Stage, caller: Caller, head: RequestHead, planned: Upstream | None) -> None:
        self.in_hook = False
        """A hook is under way, or people look at the flow that they have intercepted."""
        self.flow = http.HTTPFlow(stage.connections.caller(caller), flows.planned(planned), live=True)
        self.flow.request = flows.request(head, "" if planned is None else planned.host)
        self._stage = stage
        self._failure = ""
        self._response_shown = False
        if planned is not None:
            self.note_route(planned)

    async def show(self, hook: type[Hook]) -> None:
        """Fire a hook and wait for its addons and for people. Raises Killed."""
        self.in_hook = True
        if hook is HttpResponseHook:
            self._response_shown = True
        try:
            await self._stage.show(hook(self.flow), self.flow)
        finally:
            self.in_hook = False

    def note_route(self, upstream: Upstream) -> None:
        """The request belongs to this route."""
        self.flow.metadata["route"] = upstream.route.id
        self.flow.metadata["credential"] = upstream.route.credential_id

    def note_connection(self, connection: UpstreamConnection) -> None:
        """The request goes out on this connection."""
        self.flow.server_conn = self._stage.connections.upstream(connection)
        self.flow.metadata["outcome"] = Outcome.OK.value

    def note_attempt(self, upstream: Upstream | None, seen: Observation) -> None:
        """A connection could not be opened, or was refused."""
        self.flow.server_conn = flows.attempted(upstream, seen)

    def note_refusal(self, refusal: Refusal) -> None:
        """sidecert answers in the place of the upstream."""
        flow = self.flow
        self._failure = str(refusal)
        flow.metadata["outcome"] = refusal.outcome
        flow.marked = flow.marked or _MARK
        flow.comment = flow.comment or f"{refusal.title}: {refusal.detail}\n{refusal.remedy}".rstrip()

    def note_failure(self, words: str) -> None:
        """The call ends before its answer is whole; the first words said about it hold."""
        self._failure = self._failure or words

    def conclude(self) -> None:
        """Tell how the flow has ended: by `response` or by `error`, never by both."""
        flow = self.flow
        flow.live = flow.intercepted = False
        if self._failure and flow.error is None:
            flow.error = Error(self._failure)
        if self._response_shown:
            self._stage.update(flow)
        elif flow.error is not None:
            self._stage.tell(HttpErrorHook(flow))
        else:
            if flow.response is not None:
                flow.response.timestamp_end = time.time()
            self._stage.tell(HttpResponseHook(flow))


def noting(take_note: Callable[[], None]) -> None:
    """Notes are for people: where taking one fails, the call goes its way."""
    try:
        take_note()
    except Exception:
        log.exception("an error of sidecert's own in showing a flow")
