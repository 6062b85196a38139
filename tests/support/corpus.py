"""Valid requests and answers, one of each kind, for tests that send them in many ways."""

from __future__ import annotations

from support.wire import Ask, Chunk, Reply, Rewritten, until_close, with_chunks, with_length

HOST = b"Host: orders.test"
BYTES = bytes(range(256))
LOOKS_LIKE_HTTP = b"\r\n\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: orders.test\r\n\r\n"
CHUNKS = [Chunk(b"abc"), Chunk(b"\r\n0\r\n\r\n", b"%X"), Chunk(b"x" * 26, b'%04x;a;b=c;d="e\\";\t"')]
OBS_TEXT = bytes(range(128, 256))

ASKS: dict[str, Ask] = {
    "plain": Ask(),
    "head": Ask(b"HEAD"),
    "query": Ask(target=b"/a%20b/;c=d/?e=/f?&g=%C3%A9{}[]|^`"),
    "empty-segments": Ask(target=b"//a//"),
    "absolute": Ask(target=b"http://orders.test/a?b", lines=(b"Host: elsewhere.test",)),
    "absolute-without-path": Ask(target=b"HTTP://ORDERS.test:8080?b"),
    "absolute-https": Ask(target=b"https://orders.test/"),
    "asterisk": Ask(b"OPTIONS", b"*"),
    "absolute-asterisk": Ask(b"OPTIONS", b"http://orders.test"),
    "odd-method": Ask(b"M-SEARCH", lines=(b"hOST:\torders.test \t",)),
    "1.0": Ask(minor=0),
    "1.0-keep-alive": Ask(minor=0, lines=(HOST, b"Connection: Keep-Alive", b"Expect: 100-continue")),
    "1.0-absolute-without-host": Ask(target=b"http://orders.test/", lines=(), minor=0),
    "1.0-body": Ask(b"POST", minor=0, body=with_length(b"hello")),
    "close": Ask(lines=(HOST, b"Connection: x-hop, Close", b"X-Hop: 1", b"x-hop:2")),
    "odd-values": Ask(
        lines=(b"Empty:", b"Blank: \t ", HOST, b"A:  1 \t", b"a:1", b"A: " + OBS_TEXT, b"B:\x09\xff\x09!~")
    ),
    "hop-by-hop": Ask(
        lines=(
            *(
                b"TE: trailers",
                b"Keep-Alive: timeout=5",
                b"A: 1",
                b"Proxy-Connection: close",
                b"Trailer: X-Sum",
            ),
            *(b"connection: a-b,, ,keep-alive", b"A-B: 1", HOST, b"Connection:", b"Proxy-Authorization: x"),
            *(b"Content_Length: 7", b"Upgrade: h2c", b"Z: 1", b"X-SSL-Client-Cert: x", b"Cookie: a=b"),
        )
    ),
    "upgrade": Ask(lines=(HOST, b"Upgrade: websocket", b"Connection: keep-alive, Upgrade", b"A: 1")),
    "length": Ask(b"POST", body=with_length(BYTES), framing_at=0),
    "length-zero": Ask(b"POST", body=with_length(b"")),
    "length-with-zeros": Ask(b"PUT", body=with_length(LOOKS_LIKE_HTTP, b"content-length:00%d \t")),
    "body-of-a-get": Ask(body=with_length(b"{}")),
    "expect": Ask(b"POST", lines=(HOST, b"Expect: 100-continue"), body=with_length(b"hello")),
    "chunks": Ask(b"POST", body=with_chunks(CHUNKS)),
    "no-chunk": Ask(b"POST", body=with_chunks([])),
    "chunks-and-trailers": Ask(
        b"POST",
        body=with_chunks(
            CHUNKS,
            [b"X-Sum: 1", b"x-sum:\t2 ", b"Empty:", b"Host: x", b"Content-Length: 3", b"Z: " + OBS_TEXT],
            b"transfer-encoding:\tCHUNKED ",
            b"000;last",
        ),
    ),
}

REPLIES: dict[str, tuple[bytes, Reply]] = {
    "empty": (b"GET", Reply(body=with_length(b""))),
    "length": (b"GET", Reply(404, b"Not quite \xe9", body=with_length(BYTES, b"content-length: 0%d\t"))),
    "no-reason": (b"GET", Reply(299, b"", body=with_length(LOOKS_LIKE_HTTP))),
    "usual-reason": (b"POST", Reply(201, b"", body=with_length(b"made"))),
    "chunks": (b"GET", Reply(body=with_chunks(CHUNKS), framing_at=0)),
    "no-chunk": (b"GET", Reply(body=with_chunks([], last=b"000"))),
    "trailers": (
        b"GET",
        Reply(
            lines=(b"Trailer: X-Sum",),
            body=with_chunks(
                CHUNKS, [b"X-Sum: 1", b"Set-Cookie: a=b", b"x:\t2 ", b"Y:"], b"Transfer-Encoding:chunked"
            ),
        ),
    ),
    "until-close": (b"GET", Reply(body=until_close(BYTES), ends=True)),
    "until-close-empty": (b"GET", Reply(body=until_close(b""), ends=True)),
    "close": (b"GET", Reply(lines=(b"Connection: close",), body=with_length(b"last"), ends=True)),
    "1.0": (b"GET", Reply(minor=0, body=with_length(b"old"), ends=True)),
    "1.0-until-close": (b"GET", Reply(minor=0, body=until_close(b"old"), ends=True)),
    "1.0-keep-alive": (b"GET", Reply(minor=0, lines=(b"Connection: keep-alive",), body=with_length(b"old"))),
    "head": (b"HEAD", Reply(body=with_length(BYTES))),
    "head-chunks": (b"HEAD", Reply(body=with_chunks(CHUNKS))),
    "head-nothing": (b"HEAD", Reply(body=until_close(b""))),
    "204": (b"GET", Reply(204, b"No Content")),
    "304": (b"GET", Reply(304, b"Not Modified", lines=(b'ETag: "a"',), body=with_length(BYTES))),
    "205": (b"POST", Reply(205, b"Reset Content", body=with_length(b""))),
    "interims": (
        b"POST",
        Reply(
            interims=(
                (100, ()),
                (102, (b"X: \xff",)),
                (103, (b"Link: </a>", b"Alt-Svc: h3", b"Connection: x-hop", b"X-Hop: 1")),
            ),
            body=with_chunks(CHUNKS),
        ),
    ),
    "odd-values": (
        b"GET",
        Reply(
            lines=(b"Empty:", b"Blank: \t ", b"A:  1 \t", b"a:1", b"A: " + OBS_TEXT, b"B:\x09\xff\x09!~"),
            body=with_length(b"odd"),
            framing_at=3,
        ),
    ),
    "hop-by-hop": (
        b"GET",
        Reply(
            lines=(
                *(b"Keep-Alive: timeout=60", b"A: 1", b"Connection: keep-alive, x-hop", b"X-HOP: 1"),
                *(b"Proxy-Authenticate: Basic", b"Upgrade: h2", b"TE: x", b"Sidecert-Outcome: ok"),
                *(b"Transfer_Encoding: chunked", b"Strict-Transport-Security: max-age=1", b"Z: 1"),
            ),
            body=with_length(b"hop"),
        ),
    ),
    "rewritten": (
        b"GET",
        Reply(
            302,
            lines=(
                Rewritten(b"Location:https://%OWN%/a?b", b"Location:%BASE%/a?b", b"Location:%BASE%/a?b"),
                Rewritten(
                    b"Set-Cookie: __Host-s=1; Secure; Path=/",
                    b"Set-Cookie: sidecert-__Host-s=1; Path=/",
                    b"Set-Cookie: __Host-s=1; Secure; Path=/",
                ),
            ),
            body=with_length(b"moved"),
        ),
    ),
}
