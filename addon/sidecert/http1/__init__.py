"""HTTP/1.0 and 1.1, sans-IO: heads, bodies and what of them goes on to the next hop (RFC 9110, RFC 9112).

    raw bytes -> find_head -> RequestParser / ResponseParser -> head -> upstream_head / downstream_head
                                                 head.body -> body_reader -> pieces of the body

Everything that two readers could understand differently is refused: requests as `Refusal`, answers as
`BadAnswer`, bodies as `BodyError`.
"""

from __future__ import annotations

from sidecert.http1.answer_reader import SWITCHING_PROTOCOLS, AnswerReader
from sidecert.http1.cookie_names import hide
from sidecert.http1.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    BodyError,
    BodyReader,
    ChunkedBody,
    body_reader,
    encode_chunk,
    find_head,
    last_chunk,
)
from sidecert.http1.hopbyhop import LOCATION, OWS, REFRESH
from sidecert.http1.malformed import SHOWN_HOST, SHOWN_PATH, asked
from sidecert.http1.request_head import RequestHead, RequestParser, upstream_head
from sidecert.http1.response_head import ResponseHead, ResponseParser, downstream_head

__all__ = [
    "CHUNKED",
    "LOCATION",
    "OWS",
    "REFRESH",
    "SHOWN_HOST",
    "SHOWN_PATH",
    "SWITCHING_PROTOCOLS",
    "UNTIL_CLOSE",
    "AnswerReader",
    "BodyError",
    "BodyReader",
    "ChunkedBody",
    "RequestHead",
    "RequestParser",
    "ResponseHead",
    "ResponseParser",
    "asked",
    "body_reader",
    "downstream_head",
    "encode_chunk",
    "find_head",
    "hide",
    "last_chunk",
    "upstream_head",
]
