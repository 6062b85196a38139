"""What was worked out is kept when it comes for the second time, and within bounds."""

from __future__ import annotations

import pytest

from sidecert.errors import Refusal
from sidecert.http1 import RequestParser, ResponseParser
from sidecert.memo import Memo

REQUEST = b"GET /a HTTP/1.1\r\nHost: orders.test\r\nX-One: 1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Two: 2\r\n\r\n"


def test_value_is_kept_when_it_is_worked_out_for_the_second_time() -> None:
    """What comes once only takes no room."""
    memo = Memo[str, int]()
    memo.keep("a", 1, 1)
    assert memo.get("a") is None
    memo.keep("a", 1, 1)
    assert memo["a"] == 1


def test_memo_is_bounded_whatever_comes() -> None:
    """Neither many keys nor large ones make it grow without end."""
    memo = Memo[bytes, int]()
    for number in range(10_000):
        for _ in range(2):
            memo.keep(b"%d" % number, number, 8)
    assert 0 < len(memo) <= 256
    assert len(memo._once) <= 256
    for _ in range(3):
        memo.keep(b"large", 1, 1 << 20)
    assert b"large" not in memo


def test_request_that_came_before_is_not_read_again() -> None:
    """The third time the same head is given, and a parser with a smaller limit still refuses it."""
    first, second, third = (RequestParser(65536).parse(REQUEST) for _ in range(3))
    assert first is not second is third
    with pytest.raises(Refusal, match="larger than 20 bytes"):
        RequestParser(20).parse(REQUEST)


def test_answers_that_are_rewritten_for_a_caller_are_never_shared() -> None:
    """Another caller's address would stand in them."""
    raw = ANSWER.replace(b"X-Two: 2", b"Location: https://orders.test:8443/b")
    heads = [ResponseParser().parse(raw, b"GET") for _ in range(4)]
    assert len({id(head) for head in heads}) == 4


def test_answer_to_head_is_not_taken_for_one_with_a_body() -> None:
    """The same bytes mean another body there."""
    for _ in range(3):
        assert ResponseParser().parse(ANSWER, b"GET").body == 2
        assert ResponseParser().parse(ANSWER, b"HEAD").body == 0
