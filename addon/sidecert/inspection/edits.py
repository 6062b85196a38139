"""What addons made of a message, as a head that has passed every check again.

An edited message is written out and read anew by the parsers that read what comes off the wire. So an edit
can do what a caller or an upstream could do, and no more: it is routed, checked and framed like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from mitmproxy import http

from sidecert.config import bracket
from sidecert.errors import BadAnswer, Reason, Refusal
from sidecert.http1 import CHUNKED, UNTIL_CLOSE, RequestHead, RequestParser, ResponseHead, ResponseParser
from sidecert.inspection.body import Body

Field = tuple[bytes, bytes]
Essence = tuple[object, ...]

_FRAMING = (b"content-length", b"transfer-encoding")
_EDITED = "an addon of mitmproxy has edited the request"


def of_request(request: http.Request) -> Essence:
    """All of a request's head that an addon can change and we send. Equal: nothing was edited."""
    data = request.data
    return data.method, data.scheme, data.host, data.port, data.path, data.headers.fields


def of_answer(response: http.Response) -> Essence:
    """The same of an answer."""
    data = response.data
    return data.status_code, data.reason, data.headers.fields


def trailers_of(message: http.Message) -> list[Field]:
    """The trailers as they are now."""
    return [] if message.trailers is None else list(message.trailers.fields)


def not_served(why: str) -> Refusal:
    """The refusal for what an addon made of a message and cannot be sent."""
    return Refusal.of(
        Reason.INTERNAL,
        f"What an addon of mitmproxy made of this call cannot be sent: {why}.",
        "Correct the addon, or run without it.",
    )


def request_to_send(
    request: http.Request, shown: Essence, head: RequestHead, received: Body | None, header_bytes: int
) -> RequestHead:
    """The head to send: `head` itself where nothing was edited, or a new one. Raises Refusal.

    `shown` is what the addons were given, `received` the body that was; None for one that is streamed.
    """
    if _body_is_kept(request, received) and of_request(request) == shown:
        return head
    data, content = request.data, request.raw_content
    fields = [field for field in data.headers.fields if field[0].lower() not in _FRAMING]
    if content is None:
        fields += _framing(head.body)
    elif request.trailers:
        fields += _framing(CHUNKED)
    elif content or head.body or "content-length" in data.headers:
        fields += _framing(len(content))
    try:
        target = data.path
        moved = (data.scheme, data.host, data.port) != shown[1:4]
        if moved or head.target[:1] not in (b"/", b"*"):
            target = b"%b://%b:%d%b" % (data.scheme, _host(data.host), data.port, data.path)
        # The method as mitmproxy shows it: in capitals.
        raw = _write(b"%b %b HTTP/1.%d" % (request.method.encode(), target, head.minor), fields)
        edited = copy(RequestParser(header_bytes).parse(raw))  # other calls may share what was read
    except ValueError as exc:
        raise not_served(str(exc)) from exc
    except Refusal as refusal:
        refusal.evidence += (_EDITED,)
        raise
    if edited.method != head.method and b"HEAD" in (edited.method, head.method):
        raise not_served("HEAD became another method, or another HEAD: the caller could not tell the end")
    edited.keep_alive = head.keep_alive  # that was said by the caller, of its own connection
    return edited


def answer_to_send(
    response: http.Response, shown: Essence, head: ResponseHead, received: Body | None, asked: RequestHead
) -> ResponseHead:
    """The head to pass on: `head` itself where nothing was edited, or a new one. Raises Refusal.

    Where the new head can have no body, its `body` is 0, whatever content the answer has.
    """
    if _body_is_kept(response, received) and of_answer(response) == shown:
        return head
    content = response.raw_content
    body = CHUNKED if response.trailers else 0 if content is None else len(content)
    edited = _answer(response, head.body if content is None else body, asked)
    if (edited.status < 200) != (head.status < 200):
        raise not_served(f"the status {edited.status} in the place of {head.status}")
    return edited


def made_answer(response: http.Response, asked: RequestHead) -> ResponseHead:
    """The head of an answer that an addon has made. Raises Refusal."""
    made = _answer(response, len(response.raw_content or b""), asked)
    if made.status < 200:
        raise not_served(f"the status {made.status}, which ends no call")
    return made


def _answer(response: http.Response, body: int, asked: RequestHead) -> ResponseHead:
    data = response.data
    fields = list(data.headers.fields)
    if asked.method != b"HEAD" and data.status_code not in (101, 204, 304):
        fields = [field for field in fields if field[0].lower() not in _FRAMING] + _framing(body)
    try:
        raw = _write(b"HTTP/1.1 %d %b" % (data.status_code, data.reason), fields)
        return ResponseParser().parse(raw, asked.method, asked.upgrade)
    except (ValueError, BadAnswer) as exc:
        raise not_served(str(exc)) from exc


def _body_is_kept(message: http.Message, received: Body | None) -> bool:
    """Whether the body is as it came. Raises Refusal for a change that cannot be made."""
    content = message.raw_content
    if received is None:
        if content is not None or callable(message.stream):
            raise not_served("the body of a message that is streamed was changed")
        return True
    if content is None:
        raise not_served("the body was taken away; an empty one is b''")
    return content == received.content and trailers_of(message) == received.trailers


def _framing(body: int) -> list[Field]:
    if body == CHUNKED:
        return [(b"Transfer-Encoding", b"chunked")]
    return [] if body == UNTIL_CLOSE else [(b"Content-Length", b"%d" % body)]


def _host(host: str) -> bytes:
    name = host if host.isascii() else host.encode("idna").decode("ascii")
    return bracket(name).encode("ascii")


def _write(first: bytes, fields: Iterable[Field]) -> bytes:
    """A head as it goes over the wire; ValueError when a part of it holds a line break."""
    lines = [first, *(b"%b: %b" % field for field in fields)]
    if any(b"\r" in line or b"\n" in line for line in lines):
        raise ValueError("a line break in a header or in the first line")
    return b"\r\n".join([*lines, b"", b""])
