"""HTTP/1.1 on one connection: h11 for the rules, with bounds on sizes and times."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import urlsplit

import h11

from sidecert.twin.tls import TlsStream


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, and seconds."""

    head_bytes: int = 64 * 1024
    body_bytes: int = 10 * 1024 * 1024
    head: float = 10.0
    body: float = 60.0
    idle: float = 75.0
    write: float = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. `path` and `query` are as they were sent; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = ""


class Refused(Exception):
    """A request that can't be read to its end; the connection closes after the answer."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description


def fault(
    status: int, description: str, headers: tuple[tuple[str, str], ...] = (), reason: str = ""
) -> Answer:
    """The service's own way to say no: the envelope that Integration Cloud puts around its messages."""
    envelope = {"integration": {"message": {"description": description, "code": -1}}}
    return Answer(status, "application/json", json.dumps(envelope).encode() + b"\n", headers, reason)


class Conversation:
    """The requests of one connection, one after the other.

    `answer` is called with each whole request; `told` with each answer before it is sent, and with its
    request unless that could not be read.
    """

    def __init__(
        self,
        stream: TlsStream,
        answer: Callable[[Request], Answer],
        told: Callable[[Request | None, Answer], None],
        limits: Limits,
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._told = told
        self._limits = limits
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._method = b""

    async def run(self) -> None:
        """Until the caller goes, a limit is met, or the connection can't be kept. Does not close it."""
        while await self._one():
            self._h11.start_next_cycle()

    async def _one(self) -> bool:
        request: Request | None = None
        try:
            request = await self._request()
            if request is None:
                return False
            answer = self._answer(request)
        except Refused as exc:
            answer = fault(exc.status, exc.description, (("Connection", "close"),))
        except h11.RemoteProtocolError as exc:
            answer = fault(exc.error_status_hint, f"malformed request: {exc}", (("Connection", "close"),))
        except TimeoutError:
            answer = fault(408, "the request did not come in time", (("Connection", "close"),))
        self._told(request, answer)
        await self._send(answer)
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def _request(self) -> Request | None:
        head = await self._head()
        if head is None:
            return None
        self._method = head.method
        headers = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
        # h11 measures only a head that is still incomplete.
        size = len(head.target) + sum(len(name) + len(value) for name, value in headers)
        if size > self._limits.head_bytes:
            raise Refused(431, f"the request head may have at most {self._limits.head_bytes} bytes")
        length = next((value for name, value in headers if name == "content-length"), "0")
        if int(length) > self._limits.body_bytes:
            raise Refused(413, f"the request body may have at most {self._limits.body_bytes} bytes")
        if self._h11.they_are_waiting_for_100_continue:
            await self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
        async with asyncio.timeout(self._limits.body):
            body = await self._body()
        path, _, query = _origin_form(head.target.decode("latin-1")).partition("?")
        return Request(head.method.decode(), path, query, headers, body)

    async def _head(self) -> h11.Request | None:
        """None when the caller has gone, or has sent nothing for too long."""
        event = self._h11.next_event()
        if event is h11.NEED_DATA and not self._h11.trailing_data[0]:
            try:
                async with asyncio.timeout(self._limits.idle):
                    self._h11.receive_data(await self._stream.read())
            except TimeoutError:
                return None
            event = self._h11.next_event()
        async with asyncio.timeout(self._limits.head):
            while event is h11.NEED_DATA:
                self._h11.receive_data(await self._stream.read())
                event = self._h11.next_event()
        return event if isinstance(event, h11.Request) else None

    async def _body(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._stream.read())
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                size += len(event.data)
                if size > self._limits.body_bytes:
                    raise Refused(413, f"the request body may have at most {self._limits.body_bytes} bytes")
            else:
                return b"".join(pieces)

    async def _send(self, answer: Answer) -> None:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
        ]
        reason = answer.reason or HTTPStatus(answer.status).phrase
        head = h11.Response(
            status_code=answer.status, headers=[*headers, *answer.headers], reason=reason.encode()
        )
        out = self._h11.send(head)
        if self._method != b"HEAD":
            out += self._h11.send(h11.Data(data=answer.body))
        await self._write(out + self._h11.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        async with asyncio.timeout(self._limits.write):
            await self._stream.write(data or b"")


def _origin_form(target: str) -> str:
    """The absolute form names the same resource as its path and query alone (RFC 9112, 3.2.2)."""
    if target.startswith("/"):
        return target
    try:
        parts = urlsplit(target)
    except ValueError as exc:
        raise Refused(400, f"malformed request: {exc}") from exc
    if not parts.netloc:
        return target  # `*`, or an authority: nothing is found there
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
