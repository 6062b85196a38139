"""Ambiguous requests, each with what must come of it: refused, or forwarded in the one meaning it has.

Behind each stands a second request on the same connection; one that tries to smuggle holds a third, hidden in
what one of its readings takes for the body. `filled` puts the token that is looked for, and the host, in the
places of `TOKEN` and `HOST`, which are as long as what takes their place, so that all lengths stay right.
"""

from __future__ import annotations

from dataclasses import dataclass

from support.malformed import BAD_CHUNKS, REFUSED_HEADS, head_bytes

TOKEN = b"t-000000"
HOST = b"up-x.test"
OTHER_HOST = b"elsewhere.test"

HIDDEN = b"GET /smuggled-" + TOKEN + b" HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
"""Whoever sees it as a request has been smuggled to."""
SECOND = HIDDEN.replace(b"smuggled", b"second--")
"""The next request of the same caller, in the open."""
HOST_LINE = b"Host: " + HOST

Says = tuple[int | str, ...]
THROUGH: Says = ("up", "up")
"""Both requests are answered by the upstream."""
REFUSED: Says = (400,)
"""One answer of sidecert's own, and the end of the connection."""
UNFINISHED: Says = ("?",)
"""The request never ends: it is given up, unless the upstream has answered it before that."""


@dataclass(frozen=True)
class Case:
    """`says` is what the caller gets: "up" for an answer of the upstream, a status for one of our own."""

    name: str
    source: str
    wire: bytes
    says: Says = REFUSED

    @property
    def method(self) -> bytes:
        """What the answer is for; any but HEAD's has a body."""
        return b"HEAD" if self.wire.startswith(b"HEAD ") else b"GET"


def filled(wire: bytes, token: bytes, host: bytes) -> bytes:
    """`wire` with this token and host, in any case of letters."""
    assert (len(token), len(host)) == (len(TOKEN), len(HOST))
    return wire.replace(TOKEN, token).replace(HOST, host).replace(HOST.upper(), host.upper())


def ask(first: bytes, lines: list[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n" + body


def post(*lines: bytes, body: bytes = b"", first: bytes = b"") -> bytes:
    """A request with a Host and these lines, and the second one behind it."""
    return ask(first or b"POST /" + TOKEN + b" HTTP/1.1", [HOST_LINE, *lines], body) + SECOND


def get(*lines: bytes, body: bytes = b"") -> bytes:
    return post(*lines, body=body, first=b"GET /" + TOKEN + b" HTTP/1.1")


def first(line: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    """A request with this request line."""
    return post(*lines, body=body, first=line)


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def chunked(body: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"%x\r\n%b\r\n%b" % (len(body), body, last)


CL_TE = b"0\r\n\r\n" + HIDDEN
"""By its length a body; by its chunks an empty one, and the hidden request."""
TE_CL = chunked(b"x=1\r\n\r\n" + HIDDEN)
"""By its chunks a body; by the length of its first line that line only."""
FIRST_LINE = b"Content-Length: %d" % (TE_CL.index(b"\r\n") + 2)
CHUNKED = b"Transfer-Encoding: chunked"
KETTLE = "PortSwigger, HTTP Desync Attacks (2019)"
GARDEN = "http-garden (2023-2025)"
FUNKY = "Funky chunks (2025)"
ENDGAME = "PortSwigger, HTTP/1.1 must die (2025)"
BROWSER = "PortSwigger, Browser-Powered Desync (2022)"
RFC = "RFC 9112"

# Spellings of Transfer-Encoding that one reader takes for chunked and another does not.
CODINGS: list[tuple[str, str, bytes]] = [
    ("plain", KETTLE, CHUNKED),
    ("upper-case", KETTLE, b"TRANSFER-ENCODING: CHUNKED"),
    ("mixed-case", KETTLE, b"Transfer-Encoding: chUnkEd"),
    ("no-blank", KETTLE, b"Transfer-Encoding:chunked"),
    ("tab", KETTLE, b"Transfer-Encoding:\tchunked"),
    ("tabs-behind", KETTLE, b"Transfer-Encoding: chunked\t\t"),
    ("blank-before-colon", "CVE-2019-16869 (Netty), CVE-2021-22959 (llhttp)", b"Transfer-Encoding : chunked"),
    ("tab-before-colon", KETTLE, b"Transfer-Encoding\t: chunked"),
    ("vertical-tab", KETTLE, b"Transfer-Encoding:\x0bchunked"),
    ("blank-vertical-tab", "CVE-2019-18277 (haproxy)", b"Transfer-Encoding: \x0bchunked"),
    ("form-feed", KETTLE, b"Transfer-Encoding: \x0cchunked"),
    ("nul-before", GARDEN, b"Transfer-Encoding: \x00chunked"),
    ("nul-behind", GARDEN, b"Transfer-Encoding: chunked\x00"),
    ("nul-in-name", GARDEN, b"Transfer-Encoding\x00: chunked"),
    ("delete-behind", KETTLE, b"Transfer-Encoding: chunked\x7f"),
    ("high-blank", KETTLE, b"Transfer-Encoding: \xa0chunked"),
    ("high-byte-behind", KETTLE, b"Transfer-Encoding: chunked\xff"),
    ("next-line-behind", GARDEN, b"Transfer-Encoding: chunked\x85"),
    ("high-byte-in-name", KETTLE, b"Transfer-Encoding\x82: chunked"),
    ("utf8-look-alike", KETTLE, "Transf\u0435r-Encoding: chunked".encode()),
    ("bare-cr-before-value", GARDEN, b"Transfer-Encoding: \rchunked"),
    ("bare-cr-behind", "CVE-2023-30589 (llhttp)", b"Transfer-Encoding: chunked\r"),
    ("bare-cr-before-name", "CVE-2023-30589 (llhttp)", b"X: y\rTransfer-Encoding: chunked"),
    ("bare-lf-before-name", "CVE-2022-32214 (llhttp)", b"X: y\nTransfer-Encoding: chunked"),
    ("lf-behind", "CVE-2022-35256 (llhttp)", b"Transfer-Encoding: chunked\nX: y"),
    ("folded-value", "CVE-2022-32215 (llhttp)", b"Transfer-Encoding:\r\n chunked"),
    ("folded-by-tab", KETTLE, b"Transfer-Encoding:\r\n\tchunked"),
    ("folded-by-lf", KETTLE, b"Transfer-Encoding:\n chunked"),
    ("folded-behind", KETTLE, b"Transfer-Encoding: chunked\r\n , identity"),
    ("folded-name", KETTLE, b"X: y\r\n Transfer-Encoding: chunked"),
    ("name-and-fold", KETTLE, b"Transfer-Encoding\r\n : chunked"),
    ("first-line-blank", KETTLE, b" Transfer-Encoding: chunked"),
    ("prefix", KETTLE, b"Transfer-Encoding: xchunked"),
    ("x-chunked", KETTLE, b"Transfer-Encoding: x-chunked"),
    ("cut-short", KETTLE, b"Transfer-Encoding: chunk"),
    ("longer", GARDEN, b"Transfer-Encoding: chunkedd"),
    ("double-quoted", KETTLE, b'Transfer-Encoding: "chunked"'),
    ("single-quoted", KETTLE, b"Transfer-Encoding: 'chunked'"),
    ("mime-word", KETTLE, b"Transfer-Encoding: =?iso-8859-1?B?Y2h1bmtlZA==?="),
    ("comment", GARDEN, b"Transfer-Encoding: (x) chunked"),
    ("parameter", "CVE-2022-32213 (llhttp)", b"Transfer-Encoding: chunked;q=1"),
    ("parameter-apart", GARDEN, b"Transfer-Encoding: chunked ; x=y"),
    ("two-colons", KETTLE, b"Transfer-Encoding:: chunked"),
    ("empty", KETTLE, b"Transfer-Encoding:"),
    ("comma-only", GARDEN, b"Transfer-Encoding: ,"),
    ("comma-behind", "CVE-2022-32213 (llhttp)", b"Transfer-Encoding: chunked,"),
    ("comma-before", GARDEN, b"Transfer-Encoding: ,chunked"),
    ("identity", KETTLE, b"Transfer-Encoding: identity"),
    ("identity-first", KETTLE, b"Transfer-Encoding: identity, chunked"),
    ("identity-last", "CVE-2022-32213 (llhttp)", b"Transfer-Encoding: chunked, identity"),
    ("gzip-first", RFC, b"Transfer-Encoding: gzip, chunked"),
    ("gzip-last", RFC, b"Transfer-Encoding: chunked, gzip"),
    ("twice-in-a-list", RFC, b"Transfer-Encoding: chunked, chunked"),
    ("cow-first", KETTLE, b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked"),
    ("cow-last", KETTLE, b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow"),
    ("empty-first", KETTLE, b"Transfer-Encoding:\r\nTransfer-Encoding: chunked"),
    ("two-lines", RFC, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
]

PLAIN_CODINGS = ("plain", "upper-case", "mixed-case", "no-blank", "tab")
"""Those of them that can be read in one way only."""

# Headers that are no Transfer-Encoding. Those that an upstream could take for it must not arrive.
LOOK_ALIKES: list[tuple[str, str, bytes]] = [
    ("underscore", "CGI's names", b"Transfer_Encoding: chunked"),
    ("dot", "PHP's names", b"Transfer.Encoding: chunked"),
    ("te", RFC, b"TE: chunked"),
    ("content-encoding", KETTLE, b"Content-Encoding: chunked"),
    ("misspelt", KETTLE, b"Trasnfer-Encoding: chunked"),
    ("prefixed", KETTLE, b"X-Transfer-Encoding: chunked"),
    ("percent", KETTLE, b"Transfer%2dEncoding: chunked"),
    ("in-a-value", KETTLE, b"X: Transfer-Encoding: chunked"),
    ("in-a-path-like-value", GARDEN, b"X: \\r\\nTransfer-Encoding: chunked"),
]

_FIVE = b"hello"
# Spellings of the length 5; each is followed by five bytes.
LENGTHS: list[tuple[str, str, list[bytes], Says]] = [
    ("zeros", RFC, [b"Content-Length: 00005"], THROUGH),
    ("blanks", RFC, [b"Content-Length:  \t5 \t"], THROUGH),
    ("lower-case", RFC, [b"content-length:5"], THROUGH),
    ("plus", GARDEN, [b"Content-Length: +5"], REFUSED),
    ("minus", GARDEN, [b"Content-Length: -5"], REFUSED),
    ("minus-zero", GARDEN, [b"Content-Length: -0"], REFUSED),
    ("hex", GARDEN, [b"Content-Length: 0x5"], REFUSED),
    ("octal", GARDEN, [b"Content-Length: 0o5"], REFUSED),
    ("underscore", "Python's int()", [b"Content-Length: 0_5"], REFUSED),
    ("list-of-equals", RFC, [b"Content-Length: 5, 5"], REFUSED),
    ("list-of-others", RFC, [b"Content-Length: 5, 6"], REFUSED),
    ("list-with-zero", GARDEN, [b"Content-Length: 0,5"], REFUSED),
    ("comma-behind", GARDEN, [b"Content-Length: 5,"], REFUSED),
    ("comma-before", GARDEN, [b"Content-Length: ,5"], REFUSED),
    ("blank-inside", "CVE-2018-7159 (Node)", [b"Content-Length: 0 5"], REFUSED),
    ("semicolon", GARDEN, [b"Content-Length: 5;"], REFUSED),
    ("fraction", GARDEN, [b"Content-Length: 5.0"], REFUSED),
    ("exponent", GARDEN, [b"Content-Length: 5e0"], REFUSED),
    ("quoted", GARDEN, [b'Content-Length: "5"'], REFUSED),
    ("letters-behind", GARDEN, [b"Content-Length: 5x"], REFUSED),
    ("empty", RFC, [b"Content-Length:"], REFUSED),
    ("blank", RFC, [b"Content-Length: "], REFUSED),
    ("vertical-tab", GARDEN, [b"Content-Length: \x0b5"], REFUSED),
    ("nul-behind", GARDEN, [b"Content-Length: 5\x00"], REFUSED),
    ("high-blank", GARDEN, [b"Content-Length: 5\xa0"], REFUSED),
    ("arabic-digit", "Unicode's isdigit", ["Content-Length: \u0665".encode()], REFUSED),
    ("superscript", "Unicode's isdigit", [b"Content-Length: \xb5"], REFUSED),
    ("blank-before-colon", "CVE-2019-16869 (Netty)", [b"Content-Length : 5"], REFUSED),
    ("tab-before-colon", GARDEN, [b"Content-Length\t: 5"], REFUSED),
    ("nul-before-colon", GARDEN, [b"Content-Length\x00: 5"], REFUSED),
    ("bare-cr-before-colon", "CVE-2023-30589 (llhttp)", [b"Content-Length\r: 5"], REFUSED),
    ("no-colon", GARDEN, [b"Content-Length 5"], REFUSED),
    ("folded", RFC, [b"Content-Length:\r\n 5"], REFUSED),
    ("fold-continues", RFC, [b"Content-Length: 0\r\n 5"], REFUSED),
    ("first-line-blank", "CVE-2024-27982 (Node)", [b" Content-Length: 5"], REFUSED),
    ("behind-bare-cr", "CVE-2023-30589 (llhttp)", [b"X: y\r\rContent-Length: 5"], REFUSED),
    ("behind-bare-lf", GARDEN, [b"X: y\nContent-Length: 5"], REFUSED),
    ("twice-equal", RFC, [b"Content-Length: 5", b"Content-Length: 5"], REFUSED),
    ("twice-smaller-last", RFC, [b"Content-Length: 5", b"Content-Length: 0"], REFUSED),
    ("twice-bigger-last", RFC, [b"Content-Length: 0", b"content-length: 5"], REFUSED),
    ("twice-one-empty", "CVE-2021-40346 (haproxy)", [b"Content-Length:", b"Content-Length: 5"], REFUSED),
    ("wraps-64", GARDEN, [b"Content-Length: 18446744073709551621"], REFUSED),
    ("wraps-63", GARDEN, [b"Content-Length: 9223372036854775808"], REFUSED),
    ("wraps-32", GARDEN, [b"Content-Length: 4294967301"], UNFINISHED),
    ("thousand-zeros", GARDEN, [b"Content-Length: " + b"0" * 1000 + b"5"], REFUSED),
]
# They frame nothing, so the request has no body.
NO_LENGTHS: list[tuple[str, str, list[bytes]]] = [
    ("underscore", "CGI's names", [b"Content_Length: %d" % len(SECOND)]),
    ("dot", "PHP's names", [b"Content.Length: %d" % len(SECOND)]),
    ("prefixed", KETTLE, [b"X-Content-Length: %d" % len(SECOND)]),
    ("long-name", "CVE-2021-40346 (haproxy)", [b"Content-Length0" + b"a" * 255 + b": %d" % len(SECOND)]),
    ("underscore-and-zero", "CGI's names", [b"Content-Length: 0", b"Content_Length: %d" % len(SECOND)]),
]

_C = [CHUNKED]


def _chunks(name: str, source: str, body: bytes, says: Says = REFUSED) -> Case:
    return Case(f"chunks: {name}", source, post(*_C, body=body), says)


_IN_CHUNK = b"%x" % len(CL_TE)
CHUNKS: list[Case] = [
    _chunks("plain", RFC, chunked(HIDDEN), THROUGH),
    _chunks("empty", RFC, b"0\r\n\r\n", THROUGH),
    _chunks("zeros-before", GARDEN, b"000005\r\nhello\r\n000\r\n\r\n", THROUGH),
    _chunks("upper-case", RFC, b"A\r\nhellohello\r\n0\r\n\r\n", THROUGH),
    _chunks("extension", RFC, b'5;a=b;c="\\"d";e\r\nhello\r\n0;f\r\n\r\n', THROUGH),
    _chunks("looks-like-the-end", RFC, chunked(CL_TE), THROUGH),
    _chunks("ext-term-lf", FUNKY, b"2;\nxx\r\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("ext-term-cr", FUNKY, b"2;\rxx\r\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("ext-term-cr-in-value", FUNKY, b"2;a=\rxx\r\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("ext-term-lf-quoted", FUNKY, b'2;a="\nxx\r\n"\r\n' + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("ext-crlf-quoted", FUNKY, b'2;a="\r\nxx\r\n0\r\n\r\n' + HIDDEN + b'"\r\n0\r\n\r\n'),
    _chunks("ext-empty", ENDGAME, b"5;\r\nhello\r\n0\r\n\r\n"),
    _chunks("ext-nul", FUNKY, b"5;a\x00\r\nhello\r\n0\r\n\r\n"),
    _chunks("ext-without-semicolon", "CVE-2021-22960 (llhttp)", b"5 a\r\nhello\r\n0\r\n\r\n"),
    _chunks("ext-bare-lf-ends", "CVE-2025-22871 (Go)", b"5;a\nhello\r\n0\r\n\r\n"),
    _chunks("spill", FUNKY, b"5\r\nhelloXX2\r\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("spill-one", FUNKY, b"5\r\nhelloX\r\n0\r\n\r\n"),
    _chunks("one-two", FUNKY, b"5\r\nhello\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("two-one", FUNKY, b"5\nhello\r\n" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("zero-two", FUNKY, b"5\r\nhello" + _IN_CHUNK + b"\r\n" + CL_TE + b"\r\n0\r\n\r\n"),
    _chunks("cr-cr", FUNKY, b"5\r\nhello\r\r0\r\n\r\n"),
    _chunks("cr-x", "llhttp, CR and any byte", b"5\r\nhello\rX0\r\n\r\n"),
    _chunks("lf-cr", FUNKY, b"5\r\nhello\n\r0\r\n\r\n"),
    _chunks("all-lf", GARDEN, b"5\nhello\n0\n\n"),
    _chunks("all-cr", GARDEN, b"5\rhello\r0\r\r"),
    _chunks("last-lf", GARDEN, b"5\r\nhello\r\n0\n\r\n"),
    _chunks("end-lf", GARDEN, b"5\r\nhello\r\n0\r\n\n"),
    _chunks("end-cr", GARDEN, b"5\r\nhello\r\n0\r\n\r\r\n"),
    _chunks("size-0x", "CVE-2022-24761 (Waitress)", b"0x5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-0x-end", GARDEN, b"0x0\r\n\r\n" + HIDDEN),
    _chunks("size-plus", GARDEN, b"+5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-minus", GARDEN, b"-5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-minus-zero", GARDEN, b"-0\r\n\r\n" + HIDDEN),
    _chunks("size-underscore", "Python's int()", b"0_5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-wraps-64", "CVE-2013-2028 (nginx)", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-wraps-32", "CVE-2015-3183 (Apache)", b"100000005\r\nhello\r\n0\r\n\r\n", UNFINISHED),
    _chunks("size-all-ones", GARDEN, b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-negative-63", "CVE-2013-2028 (nginx)", b"8000000000000000\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-empty", GARDEN, b"\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-blank-before", GARDEN, b" 5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-blank-behind", GARDEN, b"5 \r\nhello\r\n0\r\n\r\n"),
    _chunks("size-tab", GARDEN, b"5\t\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-vertical-tab", GARDEN, b"5\x0b\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-nul", GARDEN, b"5\x00\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-h", GARDEN, b"5h\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-comma", GARDEN, b"5,5\r\nhello\r\n0\r\n\r\n"),
    _chunks("size-quoted", GARDEN, b'"5"\r\nhello\r\n0\r\n\r\n'),
    _chunks("size-colon", GARDEN, b"5:\r\nhello\r\n0\r\n\r\n"),
    _chunks("no-last", RFC, b"5\r\nhello\r\n"),
    _chunks("no-crlf-after-last", KETTLE, b"5\r\nhello\r\n0\r\n"),
    _chunks(
        "trailers-frame", GARDEN, b"0\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n", THROUGH
    ),
    _chunks("trailer-length-and-body", GARDEN, b"0\r\nContent-Length: 0\r\n\r\n", THROUGH),
    _chunks("trailer-host", "trailer merging (2025)", b"0\r\nHost: " + OTHER_HOST + b"\r\n\r\n", THROUGH),
    _chunks("trailer-underscore", GARDEN, b"0\r\nContent_Length: 99\r\nX: y\r\n\r\n", THROUGH),
    _chunks("trailer-connection", "trailer merging (2025)", b"0\r\nConnection: close\r\n\r\n", THROUGH),
    _chunks("trailer-is-a-request", KETTLE, b"0\r\nX: y\r\n" + HIDDEN),
    _chunks("trailer-without-name", GARDEN, b"0\r\n: y\r\n\r\n" + HIDDEN),
    _chunks("trailer-blank-before-colon", GARDEN, b"0\r\nContent-Length : 9\r\n\r\n"),
    _chunks("trailer-folded", GARDEN, b"0\r\nX: y\r\n Content-Length: 9\r\n\r\n"),
    _chunks("trailer-bare-lf", GARDEN, b"0\r\nX: y\n\r\n" + HIDDEN),
    _chunks("trailer-lf-lf", GARDEN, b"0\r\nX: y\n\n" + HIDDEN),
    _chunks("trailer-bare-cr", GARDEN, b"0\r\nX: y\r\rContent-Length: 9\r\n\r\n"),
    _chunks("trailer-nul", GARDEN, b"0\r\nX: \x00\r\n\r\n"),
]

_WEBSOCKET = [b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 777"]
_H2C = [b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings"]
_EXPECT = b"Expect: 100-continue"
_H = length(HIDDEN)
METHODS = (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"PATCH", b"TRACE", b"PROPFIND", b"M-SEARCH")

BODIES: list[Case] = [
    *(
        Case(
            f"body of {name.decode()}",
            "CL.0: " + BROWSER,
            first(name + b" /" + TOKEN + b" HTTP/1.1", _H, body=HIDDEN),
            THROUGH,
        )
        for name in METHODS
    ),
    Case("chunks of GET", "TE.0: Bugcrowd, 2024", get(CHUNKED, body=chunked(HIDDEN)), THROUGH),
    Case("POST without length", RFC, post(), THROUGH),
    Case("CRLF behind the body", "Netscape's POST", post(length(_FIVE), body=_FIVE + b"\r\n"), THROUGH),
    Case("body is the second request", KETTLE, post(length(SECOND)), ("up",)),
    Case("expect", "0.CL: " + ENDGAME, post(_EXPECT, _H, body=HIDDEN), THROUGH),
    Case("expect, GET", "0.CL: " + ENDGAME, get(_EXPECT, _H, body=HIDDEN), THROUGH),
    Case("expect, chunks", ENDGAME, post(_EXPECT, CHUNKED, body=chunked(HIDDEN)), THROUGH),
    Case("expect, no body", ENDGAME, get(_EXPECT), THROUGH),
    Case("expect, upper-case", ENDGAME, post(b"EXPECT: 100-CONTINUE", _H, body=HIDDEN), THROUGH),
    Case("expect, twice", ENDGAME, post(_EXPECT, _EXPECT, _H, body=HIDDEN), THROUGH),
    Case("expect, y before", "0.CL: " + ENDGAME, post(b"Expect: y 100-continue", _H, body=HIDDEN), THROUGH),
    Case("expect, other", ENDGAME, post(b"Expect: something", _H, body=HIDDEN), THROUGH),
    Case("expect, blank before colon", ENDGAME, post(b"Expect : 100-continue", _H, body=HIDDEN)),
    Case("expect, folded", ENDGAME, post(b"Expect:\r\n 100-continue", _H, body=HIDDEN)),
    Case("expect, named by Connection", ENDGAME, post(_EXPECT, b"Connection: Expect", _H, body=HIDDEN)),
    Case("websocket with a body", "h11, Varnish", post(*_WEBSOCKET, _H, body=HIDDEN), THROUGH),
    Case("websocket with chunks", "httptools", get(*_WEBSOCKET, CHUNKED, body=chunked(HIDDEN)), THROUGH),
    Case("websocket of a wrong version", "websocket-smuggle (2019)", get(*_WEBSOCKET), THROUGH),
    Case("h2c", "h2csmuggler (2020)", get(*_H2C), THROUGH),
    Case("h2c with a body", "h2csmuggler (2020)", post(*_H2C, _H, body=HIDDEN), THROUGH),
    Case("h2c, not nominated", "h2csmuggler (2020)", get(*_H2C[:2], b"Connection: Upgrade"), THROUGH),
    Case("upgrade to TLS", "RFC 2817", get(b"Upgrade: TLS/1.0", b"Connection: Upgrade"), THROUGH),
    Case("Connection: close, chunks", RFC, post(b"Connection: close", CHUNKED, body=CL_TE), ("up",)),
    Case("Connection: close, more behind", RFC, get(b"Connection: close"), ("up",)),
    Case("Connection: keep-alive, close", RFC, get(b"Connection: keep-alive, close"), ("up",)),
    Case("Proxy-Connection: close", RFC, get(b"Proxy-Connection: close"), THROUGH),
    *(
        Case(
            f"Connection: {name.decode()}",
            "hop-by-hop abuse (2019)",
            post(b"Connection: " + name, *lines, body=body),
        )
        for name, lines, body in (
            (b"Content-Length", [_H], HIDDEN),
            (b"close, content-length", [_H], HIDDEN),
            (b"Transfer-Encoding", [CHUNKED], CL_TE),
            (b"Host", [], b""),
            (b"Cookie", [], b""),
            (b"Authorization", [], b""),
            (b"Content-Type", [], b""),
            (b"Content Length", [_H], HIDDEN),
            (b"Content-Length;x", [_H], HIDDEN),
            (b'"Content-Length"', [_H], HIDDEN),
        )
    ),
    Case("Connection: Content_Length", "CGI's names", get(b"Connection: Content_Length"), THROUGH),
    Case(
        "Connection: X-Forwarded-For", "hop-by-hop abuse (2019)", get(b"Connection: X-Forwarded-For"), THROUGH
    ),
]

_OLD = b"POST /" + TOKEN + b" HTTP/1.0"
_KEEP = b"Connection: keep-alive"
OLD: list[Case] = [
    Case("1.0, chunks", "RFC 9112 6.1", first(_OLD, CHUNKED, body=CL_TE)),
    Case("1.0, chunks, kept", "RFC 9112 6.1", first(_OLD, CHUNKED, _KEEP, body=CL_TE)),
    Case("1.0, both", "RFC 9112 6.1", first(_OLD, CHUNKED, length(CL_TE), _KEEP, body=CL_TE)),
    Case("1.0, length", RFC, first(_OLD, _H, body=HIDDEN), ("up",)),
    Case("1.0, length, kept", RFC, first(_OLD, _H, _KEEP, body=HIDDEN), THROUGH),
    Case("1.0, no length", "RFC 1945", first(_OLD), ("up",)),
    Case("1.0, expect", "RFC 9110 10.1.1", first(_OLD, _EXPECT, _H, _KEEP, body=HIDDEN), THROUGH),
    Case("1.0, websocket", RFC, first(b"GET /" + TOKEN + b" HTTP/1.0", *_WEBSOCKET), ("up",)),
]


def _line(name: str, source: str, line: bytes, says: Says = REFUSED) -> Case:
    return Case(f"request line: {name}", source, first(line), says)


_PATH = b"/" + TOKEN
LINES: list[Case] = [
    _line("0.9", "RFC 1945", b"GET " + _PATH),
    Case("request line: 0.9 with CRLF only", "RFC 1945", b"GET " + _PATH + b"\r\n" + SECOND),
    _line("HTTP/01.1", GARDEN, b"GET " + _PATH + b" HTTP/01.1"),
    _line("HTTP/1.01", GARDEN, b"GET " + _PATH + b" HTTP/1.01"),
    _line("HTTP/1,1", GARDEN, b"GET " + _PATH + b" HTTP/1,1"),
    _line("HTTP/1", GARDEN, b"GET " + _PATH + b" HTTP/1"),
    _line("HTTP /1.1", GARDEN, b"GET " + _PATH + b" HTTP /1.1"),
    _line("HTTP/1.10", GARDEN, b"GET " + _PATH + b" HTTP/1.10"),
    _line("HTTP/3", GARDEN, b"GET " + _PATH + b" HTTP/3.0"),
    _line("tab behind", GARDEN, b"GET " + _PATH + b" HTTP/1.1\t"),
    _line("nul behind", GARDEN, b"GET " + _PATH + b" HTTP/1.1\x00"),
    _line("tab for blanks", GARDEN, b"GET\t" + _PATH + b"\tHTTP/1.1"),
    _line("vertical tab", GARDEN, b"GET " + _PATH + b"\x0bHTTP/1.1"),
    _line("high blank", GARDEN, b"GET\xa0" + _PATH + b" HTTP/1.1"),
    _line("two versions", GARDEN, b"GET " + _PATH + b" HTTP/1.1 HTTP/1.1"),
    _line("request inside", KETTLE, b"GET " + _PATH + b" HTTP/1.1\rX: " + HIDDEN[:30]),
    _line("lower-case method", GARDEN, b"get " + _PATH + b" HTTP/1.1", (501,)),
    _line("unknown method", GARDEN, b"SMUGGLE " + _PATH + b" HTTP/1.1", (501,)),
    _line("nul in method", GARDEN, b"G\x00ET " + _PATH + b" HTTP/1.1"),
    _line("quoted method", GARDEN, b'"GET" ' + _PATH + b" HTTP/1.1"),
    _line("bare cr in target", GARDEN, b"GET " + _PATH + b"\r HTTP/1.1"),
    _line("bare lf in target", GARDEN, b"GET " + _PATH + b"\nX: HTTP/1.1"),
    _line("delete in target", GARDEN, b"GET " + _PATH + b"\x7f HTTP/1.1"),
    _line(
        "encoded CRLF in target",
        "nginx $uri, CRLF injection",
        b"GET " + _PATH + b"%0d%0aX:%20y HTTP/1.1",
        THROUGH,
    ),
    _line("encoded nul in target", GARDEN, b"GET " + _PATH + b"?%00 HTTP/1.1", THROUGH),
    Case("one empty line before", RFC, b"\r\n" + get(), THROUGH),
    Case("two empty lines before", RFC, b"\r\n\r\n" + get(), THROUGH),
    Case("three empty lines before", GARDEN, b"\r\n\r\n\r\n" + get()),
    Case("bare lf before", GARDEN, b"\n" + get()),
    Case("bare cr before", GARDEN, b"\r" + get()),
    Case("nul before", GARDEN, b"\x00" + get()),
    Case("byte order mark before", GARDEN, b"\xef\xbb\xbf" + get()),
    Case("head ends with lf lf", GARDEN, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\n\n" + HIDDEN),
    Case(
        "head ends with cr lf lf", GARDEN, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n\n" + HIDDEN
    ),
    Case(
        "head ends with lf cr lf", GARDEN, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\n\r\n" + HIDDEN
    ),
    Case("head ends with cr cr", GARDEN, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\r" + HIDDEN),
    Case(
        "head ends with crlf cr cr lf", GARDEN, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n\r\r\n"
    ),
    Case("head never ends", RFC, b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\nX: y", ()),
    Case(
        "blank line with a blank",
        GARDEN,
        b"GET " + _PATH + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n \r\n" + HIDDEN,
    ),
    Case("nul line", GARDEN, get(b"\x00")),
    Case("nul in a value", GARDEN, get(b"X: a\x00b")),
    Case("nul in a name", GARDEN, get(b"X\x00Y: a")),
    Case("bare cr in a value", "CVE-2023-30589 (llhttp)", get(b"X: a\rY: b")),
    Case("bare lf in a value", GARDEN, get(b"X: a\nY: b")),
    Case("a whole request behind bare cr", KETTLE, get(b"X: a\r" + HIDDEN.replace(b"\r\n", b"\r"))),
    Case("a whole request behind bare lf", KETTLE, get(b"X: a\n" + HIDDEN.replace(b"\r\n", b"\n"))),
    Case("a line without colon", GARDEN, get(b"X")),
    Case("a name with a bracket", GARDEN, get(b"X[]: y")),
    Case("a name of a quote", GARDEN, get(b'"X": y')),
    Case("a folded value", RFC, get(b"X: y", b" z")),
    Case("vertical tab in a value", GARDEN, get(b"X: \x0by")),
    Case("high bytes in a value", RFC, get(b"X: \x80\x8a\x8d\xff"), THROUGH),
]


def _host(name: str, source: str, lines: list[bytes], says: Says = REFUSED, target: bytes = _PATH) -> Case:
    return Case(f"host: {name}", source, ask(b"GET " + target + b" HTTP/1.1", lines) + SECOND, says)


_ABSOLUTE = b"http://" + HOST + _PATH
HOSTS: list[Case] = [
    _host(
        "absolute-form and other Host",
        "PortSwigger, Host header",
        [b"Host: " + OTHER_HOST],
        THROUGH,
        _ABSOLUTE,
    ),
    _host("absolute-form and no Host", RFC, [], REFUSED, _ABSOLUTE),
    _host("absolute-form and empty Host", RFC, [b"Host:"], REFUSED, _ABSOLUTE),
    _host("absolute-form, two Hosts", RFC, [HOST_LINE, HOST_LINE], REFUSED, _ABSOLUTE),
    _host(
        "absolute-form elsewhere", "PortSwigger", [HOST_LINE], (403, "up"), b"http://" + OTHER_HOST + _PATH
    ),
    _host("absolute-form, upper-case", RFC, [HOST_LINE], THROUGH, b"HTTP://" + HOST.upper() + _PATH),
    _host("absolute-form with a port", RFC, [HOST_LINE], THROUGH, b"http://" + HOST + b":80" + _PATH),
    _host(
        "absolute-form with userinfo", "Orange Tsai (2017)", [HOST_LINE], REFUSED, b"http://a@" + HOST + _PATH
    ),
    _host(
        "absolute-form, backslash",
        "Orange Tsai (2017)",
        [HOST_LINE],
        REFUSED,
        b"http://" + HOST + b"\\@x" + _PATH,
    ),
    _host(
        "absolute-form, fragment",
        "Orange Tsai (2017)",
        [HOST_LINE],
        REFUSED,
        b"http://" + HOST + b"#@x" + _PATH,
    ),
    _host(
        "absolute-form, two ports", "Orange Tsai (2017)", [HOST_LINE], REFUSED, b"http://" + HOST + b":80:81/"
    ),
    _host("absolute-form, no authority", GARDEN, [HOST_LINE], REFUSED, b"http:///" + TOKEN),
    _host("absolute-form, one slash", GARDEN, [HOST_LINE], REFUSED, b"http:/" + HOST + _PATH),
    _host("absolute-form of another scheme", GARDEN, [HOST_LINE], REFUSED, b"gopher://" + HOST + _PATH),
    _host(
        "target without slash", "PortSwigger (2015), @host", [HOST_LINE], REFUSED, b"@" + OTHER_HOST + _PATH
    ),
    _host("target is a name", GARDEN, [HOST_LINE], REFUSED, OTHER_HOST + _PATH),
    _host("target is *", RFC, [HOST_LINE], REFUSED, b"*"),
    _host("none", RFC, []),
    _host("two", RFC, [HOST_LINE, b"Host: " + OTHER_HOST]),
    _host("two, other first", RFC, [b"Host: " + OTHER_HOST, HOST_LINE]),
    _host("two equal", RFC, [HOST_LINE, HOST_LINE.lower()]),
    _host("folded", "PortSwigger, Host header", [HOST_LINE, b" Host: " + OTHER_HOST]),
    _host("first line folded", "PortSwigger, Host header", [b" Host: " + OTHER_HOST, HOST_LINE]),
    _host("blank before colon", "PortSwigger, Host header", [b"Host : " + OTHER_HOST, HOST_LINE]),
    _host("look-alike", "CGI's names", [HOST_LINE, b"Ho_st: x", b"X-Host: y"], THROUGH),
    _host("behind bare cr", GARDEN, [HOST_LINE, b"X: y\rHost: " + OTHER_HOST]),
    _host("list", GARDEN, [HOST_LINE + b", " + OTHER_HOST]),
    _host("two names", GARDEN, [HOST_LINE + b" " + OTHER_HOST]),
    _host("userinfo", GARDEN, [b"Host: " + OTHER_HOST + b"@" + HOST]),
    _host("userinfo behind", GARDEN, [HOST_LINE + b"@" + OTHER_HOST]),
    _host("port with letters", "PortSwigger, Host header", [HOST_LINE + b":80x"]),
    _host("port with userinfo", "PortSwigger, Host header", [HOST_LINE + b":@" + OTHER_HOST]),
    _host("port too big", GARDEN, [HOST_LINE + b":99999"]),
    _host("port empty", RFC, [HOST_LINE + b":"], THROUGH),
    _host("path", GARDEN, [HOST_LINE + b"/x"]),
    _host("query", GARDEN, [HOST_LINE + b"?x"]),
    _host("fragment", GARDEN, [HOST_LINE + b"#x"]),
    _host("nul", GARDEN, [HOST_LINE + b"\x00." + OTHER_HOST]),
    _host("high byte", GARDEN, [HOST_LINE + b"\xff"]),
    _host("percent", GARDEN, [HOST_LINE.replace(b"up", b"%75p")]),
    _host("bracket", GARDEN, [b"Host: [" + HOST + b"]"]),
    _host("upper-case", RFC, [b"hOST:" + HOST.upper()], THROUGH),
    _host(
        "another name in headers", "PortSwigger", [HOST_LINE, b"X-Original-URL: /smuggled-" + TOKEN], THROUGH
    ),
]


def _codings() -> list[Case]:
    cases = []
    for name, source, line in CODINGS:
        cases.append(Case(f"CL.TE: {name}", source, post(length(CL_TE), line, body=CL_TE)))
        cases.append(Case(f"TE.CL: {name}", source, post(line, FIRST_LINE, body=TE_CL)))
    # Nothing but an odd coding: one reader takes chunks, another no body at all.
    for name, source, line in CODINGS:
        says = THROUGH if name in PLAIN_CODINGS else REFUSED
        cases.append(Case(f"TE.0: {name}", source, post(line, body=TE_CL), says))
    for name, source, line in LOOK_ALIKES:
        cases.append(Case(f"no coding: {name}", source, post(length(CL_TE), line, body=CL_TE), THROUGH))
    return cases


def _lengths() -> list[Case]:
    cases = [
        Case(f"length: {name}", source, post(*lines, body=_FIVE), says)
        for name, source, lines, says in LENGTHS
    ]
    return cases + [
        Case(f"no length: {name}", source, post(*lines), THROUGH) for name, source, lines in NO_LENGTHS
    ]


REQUESTS: list[Case] = [*_codings(), *_lengths(), *CHUNKS, *BODIES, *OLD, *LINES, *HOSTS]


def _known_refusals() -> list[Case]:
    """What `support.malformed` has, with a request behind it that must not be taken for the next one."""
    cases = []
    for number, (line, lines, status, _) in enumerate(REFUSED_HEADS):
        wire = head_bytes(line, *(HOST_LINE if each == "X" else each for each in lines)) + HIDDEN
        cases.append(Case(f"malformed head {number}", "support.malformed", wire, (status,)))
    for number, body in enumerate(BAD_CHUNKS):
        cases.append(_chunks(f"malformed {number}", "support.malformed", body + b"\r\n" + HIDDEN))
    return cases


KNOWN: list[Case] = _known_refusals()
