"""However the bytes of a request or an answer are cut on their way, the same comes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.both_ends import BothEnds, Call, Cut, Raw, both_ends, whole
from support.certs import Pki
from support.corpus import ASKS, REPLIES
from support.malformed import BAD_CHUNKS, BAD_HEADS, REFUSED_HEADS, head_bytes
from support.wire import Ask, Reply, at_line_ends, bytewise, with_length

MANY = 10_000
FINE = Reply(body=with_length(b"fine"))
REASONS = {400: "bad_request", 403: "connect_not_allowed", 431: "header_too_large", 501: "method_unknown"}
POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def apart(data: bytes) -> list[bytes]:
    """Byte by byte; what is big, in pieces of an odd size."""
    if len(data) <= MANY:
        return bytewise(data)
    return [data[at : at + 997] for at in range(0, len(data), 997)]


CUTS = [pytest.param(cut, id=cut.__name__) for cut in (whole, at_line_ends, apart)]


@pytest.fixture(scope="module")
def ends(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothEnds]:
    with both_ends(pki, tmp_path_factory.mktemp("ends")) as ends:
        yield ends


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ASKS)
def test_valid_request_arrives_the_same(ends: BothEnds, name: str, cut: Cut) -> None:
    """Alone, and with another one behind it."""
    ends.check([Call(ASKS[name], FINE), Call(Ask(), FINE)], cut, listener=2)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("name", REPLIES)
def test_valid_answer_arrives_the_same(ends: BothEnds, name: str, minor: int, cut: Cut) -> None:
    """To callers of HTTP/1.0 and 1.1, with another call behind it where that can be."""
    method, reply = REPLIES[name]
    lines = (b"Host: orders.test", b"Connection: keep-alive")
    ends.check([Call(Ask(method, lines=lines, minor=minor), reply, cut), Call(Ask(), FINE)])


@pytest.mark.parametrize("cut", CUTS)
def test_malformed_head_of_a_request_is_refused_the_same(ends: BothEnds, cut: Cut) -> None:
    """The same status and reason, and not a byte goes upstream."""
    ends.tell()
    before = ends.upstream.connections, len(ends.upstream.requests)
    for first, lines, status, _ in REFUSED_HEADS:
        data = head_bytes(first, *("Host: orders.test" if line == "X" else line for line in lines))
        with ends.talker(2) as talker:
            ends.send(talker, cut(data))
            answer = talker.read_answer()
            found = answer.status, answer.header("Sidecert-Outcome")
            assert found == (status, REASONS[status]), data[:300]
            talker.shutdown_write()
            assert talker.closed(), data[:300]
    assert (ends.upstream.connections, len(ends.upstream.requests)) == before


@pytest.mark.parametrize("cut", CUTS)
def test_malformed_body_of_a_request_is_refused_the_same(ends: BothEnds, cut: Cut) -> None:
    """400, and never does an upstream see the whole of a request."""
    ends.tell()
    for wire in BAD_CHUNKS:
        with ends.talker(2) as talker:
            ends.send(talker, cut(POST + wire))
            answer = talker.read_answer()
            assert (answer.status, answer.header("Sidecert-Outcome")) == (400, "bad_request"), wire
            talker.shutdown_write()
            assert talker.closed(), wire
    assert ends.arrived == []


@pytest.mark.parametrize("cut", CUTS)
def test_malformed_head_of_an_answer_is_502_the_same(ends: BothEnds, cut: Cut) -> None:
    """`upstream_bad_answer`, on a connection that goes on."""
    with ends.talker() as talker:
        for first, lines, _ in BAD_HEADS:
            data = head_bytes(first, *lines)
            ends.tell(Raw(data + b"hello", cut))
            talker.send(Ask().wire)
            answer = talker.read_answer()
            found = answer.status, answer.header("Sidecert-Outcome")
            assert found == (502, "upstream_bad_answer"), data[:300]
            assert len(ends.arrived) == 1


@pytest.mark.parametrize("cut", CUTS)
def test_malformed_body_of_an_answer_is_never_a_whole_one(ends: BothEnds, cut: Cut) -> None:
    """502 where nothing of the answer has gone out yet, else a cut connection."""
    seen: set[str] = set()
    for wire in BAD_CHUNKS:
        ends.tell(Raw(CHUNKED + wire, cut))
        with ends.talker() as talker:
            talker.send(Ask().wire)
            try:
                answer = talker.read_answer()
            except (EOFError, ConnectionResetError):
                seen.add("cut")
            else:
                assert answer.header("Sidecert-Outcome") == "upstream_bad_answer", wire
                seen.add("refused")
        assert len(ends.arrived) == 1
    assert seen == {"refused"} if cut is whole else seen <= {"refused", "cut"}
