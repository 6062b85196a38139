"""A line of the log says who called whom: short, printable, and without what may be a secret."""

from __future__ import annotations

import pytest

from sidecert import calllog
from sidecert.http1 import RequestParser, asked

NOTHING = ("", "", "")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"CONNECT orders.test:443 HTTP/1.1\r\nHost: other.test\r\n\r\n", ("CONNECT", "orders.test:443", "")),
        (b"CONNECT me:secret@orders.test:443 HTTP/1.1\r\n\r\n", ("CONNECT", "orders.test:443", "")),
        (b"GET /a?secret HTTP/1.1\r\nX: y\r\nhOST:  orders.test \r\n\r\n", ("GET", "orders.test", "/a")),
        (b"GET /a#secret HTTP/1.1\r\nHost: me:secret@orders.test\r\n\r\n", ("GET", "orders.test", "/a")),
        (b"GET http://orders.test:81/a/@b HTTP/9\r\n\r\n", ("GET", "b", "")),
        (b"GET http://me:se/cret@orders.test/a HTTP/1.1\r\n\r\n", ("GET", "orders.test", "")),
        (b"GET http://me:se?cret@orders.test/a HTTP/1.1\r\n\r\n", ("GET", "orders.test", "")),
        (b"\r\nPOST http://orders.test/a/b?c HTTP/1.1\r\n\r\n", ("POST", "orders.test", "/a/b")),
        (b"GET a HTTP/1.1\r\nHost: orders.test\r\n\r\n", ("GET", "orders.test", "")),
        (b"GET /\x1b[31m\xff HTTP/1.1\r\n\r\n", ("GET", "", "/\\x1b[31m\\xff")),
        (b"GET /a HTTP", NOTHING),
        (b"GET\r\n\r\n", NOTHING),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01 /a\r\n", NOTHING),
        (b"", NOTHING),
    ],
)
def test_a_head_that_cannot_be_read_is_told_as_far_as_it_can_be_made_out(
    raw: bytes, told: tuple[str, str, str]
) -> None:
    """Neither its query nor a user's name and password, however they are misplaced."""
    assert asked(raw) == told
    assert "secret" not in str(asked(raw))


def test_what_a_caller_sends_makes_no_long_lines() -> None:
    """Each part is cut, whether the head could be read or not."""
    raw = b"GET /%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"a" * 5000, b"b." * 2000)
    for told in (asked(raw), asked(raw.replace(b"GET", b"G" * 5000))):
        assert sum(map(len, told)) < 600
    head = RequestParser(64 * 1024).parse(b"GET /%b HTTP/1.1\r\nHost: orders.test\r\n\r\n" % (b"a" * 5000))
    assert len(calllog.call(head, "1", "here", None)["path"]) == 200


@pytest.mark.parametrize(
    ("peer", "caller"),
    [(("127.0.0.1", 4711), "127.0.0.1:4711"), (("::1", 4711, 0, 0), "[::1]:4711"), ("", "unix")],
)
def test_the_callers_address_is_named(peer: object, caller: str) -> None:
    """A caller of a unix socket has none."""
    assert calllog.unread_call(b"", "1", "here", peer)["caller"] == caller
