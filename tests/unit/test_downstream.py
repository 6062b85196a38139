"""A downstream connection on a transport of the test's own: what it reads, when it stops, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sidecert import downstream
from sidecert.downstream import Downstream, accept
from sidecert.metrics import Metrics
from sidecert.plane import Listener, Plane
from support.certs import Pki
from support.inside import orders

GET = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
POST_CHUNKED = b"POST / HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n"


class FakeTransport:
    """Keeps what is written and notes what it is told."""

    def __init__(self) -> None:
        self.written = b""
        self.told: list[str] = []
        self.waiting = 0
        """Bytes that the peer has not taken yet."""

    def write(self, data: bytes) -> None:
        assert not self.ended, "written to after the end"
        self.written += data

    @property
    def ended(self) -> bool:
        return bool({"close", "abort"} & {*self.told})

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 40000) if name == "peername" else self

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *arguments: object) -> None:
        self.told.append("linger")

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)


class FakeExchange:
    """Writes down what it is given; the test answers in its place."""

    def __init__(self, plane: Plane, caller: Downstream, head: Any) -> None:
        self.caller = caller
        self.head = head
        self.upstream = None
        self.body = b""
        self.done = False
        self.at_once = False
        self.told: list[str] = []

    def start(self, piece: bytes, done: bool, trailers: Any = ()) -> None:
        self.body, self.done = piece, done
        if self.at_once:
            self.answer()

    def take_body(self, piece: bytes, done: bool, trailers: Any) -> None:
        self.body += piece
        self.done = done

    def name_request(self) -> str:
        return "1"

    def refuse(self, refusal: Any) -> None:
        self.told.append(refusal.outcome)
        self.caller.refuse(refusal, self)  # type: ignore[arg-type]

    def answer(self, *, keep_alive: bool = True) -> None:
        self.caller.write(b"ANSWER")
        self.caller.finish(keep_alive=keep_alive)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.told.append(name)


class Scene:
    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.exchanges: list[FakeExchange] = []
        self.answers_at_once = False
        plane.make_exchange = self._make
        self.transport = FakeTransport()
        self.connection = accept(plane, Listener("here", None, frozenset()))
        assert isinstance(self.connection, Downstream)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def _make(self, plane: Plane, caller: Downstream, head: Any) -> FakeExchange:
        self.exchanges.append(FakeExchange(plane, caller, head))
        self.last.at_once = self.answers_at_once
        return self.exchanges[-1]

    def feed(self, data: bytes) -> None:
        assert isinstance(self.connection, Downstream)
        self.connection.data_received(data)

    @property
    def last(self) -> FakeExchange:
        return self.exchanges[-1]


Play = Callable[[Callable[[Scene], Awaitable[None]]], None]


@pytest.fixture
def play(pki: Pki, tmp_path: Path) -> Play:
    limits = {"connections": 2, "header_timeout": "50ms", "keepalive": "100ms"}
    first = orders(tmp_path, pki, limits=limits)

    def run(acts: Callable[[Scene], Awaitable[None]]) -> None:
        async def main() -> None:
            plane = Plane(Metrics(CollectorRegistry()))
            plane.adopt(first)
            scene = Scene(plane)
            await acts(scene)
            scene.connection.connection_lost(None)
            assert not plane.connections
            assert plane.metrics.listener("here").connections == 0

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def test_any_split_gives_the_same_requests(play: Play) -> None:
    """Three requests cut at every place: the same heads and bodies, one at a time."""
    wire = (
        b"POST /a HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 3\r\n\r\nabc"
        b"PUT /b HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        + GET
    )

    async def acts(scene: Scene) -> None:
        for cut in range(1, len(wire)):
            scene.exchanges.clear()
            for piece in (wire[:cut], wire[cut:]):
                scene.feed(piece)
                while scene.exchanges and scene.last.done and scene.connection._exchange is scene.last:  # type: ignore[attr-defined]
                    scene.last.answer()
            seen = [(exchange.head.path, exchange.body) for exchange in scene.exchanges]
            assert seen == [(b"/a", b"abc"), (b"/b", b"de"), (b"/", b"")], cut

    play(acts)


def test_next_request_waits_for_the_answer_before(play: Play) -> None:
    """Pipelined requests are begun one after the other."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET * 3)
        for count in (1, 2, 3):
            assert len(scene.exchanges) == count
            scene.last.answer()
        assert scene.transport.written == b"ANSWER" * 3

    play(acts)


def test_later_requests_are_not_read_without_end(play: Play) -> None:
    """Beyond 64 KiB of requests that wait, reading stops until there is an answer."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET)
        for _ in range(2000):
            if "pause_reading" in scene.transport.told:
                break
            scene.feed(GET)
        assert "pause_reading" in scene.transport.told
        while scene.connection._exchange is not None:  # type: ignore[attr-defined]
            scene.last.answer()
        assert scene.transport.told.count("resume_reading") == 1

    play(acts)


def test_caller_that_does_not_read_its_answers_is_not_read_either(play: Play) -> None:
    """Nothing under way, but the last answer not taken: what comes is bounded, and goes on later."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET)
        scene.connection.pause_writing()
        assert scene.last.told == ["pause_answer"]
        scene.last.answer()
        fed = 0
        while "pause_reading" not in scene.transport.told:
            scene.feed(GET)
            fed += len(GET)
            assert fed < 200_000
        assert len(scene.exchanges) == 1
        scene.connection.resume_writing()
        assert scene.transport.told[-1] == "resume_reading"
        assert len(scene.exchanges) == 2

    play(acts)


def test_body_that_nobody_wants_is_dropped_while_it_comes(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An early answer: our side is closed, the body is read and dropped, for so long at most."""
    monkeypatch.setattr(downstream, "_LINGER_BODY_SECONDS", 0.5)

    async def acts(scene: Scene) -> None:
        scene.feed(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 900000000\r\n\r\n")
        scene.last.answer(keep_alive=False)
        assert scene.transport.told == ["write_eof"]
        scene.connection.pause_writing()  # what was written need not be read for this
        for _ in range(100):
            scene.feed(b"x" * 65536)
        assert scene.transport.told == ["write_eof"]

        def feed_on() -> bool:
            scene.feed(b"x")
            return scene.transport.ended

        await until(feed_on)
        assert scene.transport.told[-1] == "close"
        assert len(scene.exchanges) == 1

    play(acts)


def test_body_that_stops_coming_is_not_waited_for(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an early answer the connection ends soon where nothing more is sent."""
    monkeypatch.setattr(downstream, "_LINGER_SECONDS", 0.02)

    async def acts(scene: Scene) -> None:
        scene.feed(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 900000000\r\n\r\n")
        scene.last.answer(keep_alive=False)
        scene.feed(b"x")
        await until(lambda: scene.transport.ended)
        assert scene.transport.told[-1] == "close"

    play(acts)


def test_what_follows_a_malformed_request_is_dropped_for_a_while(play: Play) -> None:
    """Nobody knows where it ends: up to a MiB is read and dropped, then the connection ends."""

    async def acts(scene: Scene) -> None:
        scene.feed(b"nonsense\r\n\r\n")
        assert scene.transport.told == ["write_eof"]
        for _ in range(18):
            scene.feed(b"x" * 65536)
        assert scene.transport.told[-1] == "close"
        assert not scene.exchanges

    play(acts)


def test_time_to_read_the_last_answer_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that still sends is left after a while; one that does not take what was written is cut."""
    monkeypatch.setattr(downstream, "_LINGER_SECONDS", 0.02)
    monkeypatch.setattr(downstream, "_FLUSH_SECONDS", 0.02)

    async def acts(scene: Scene) -> None:
        scene.feed(b"nonsense\r\n\r\n")
        scene.feed(b"more")
        scene.transport.waiting = 10
        await until(lambda: "abort" in scene.transport.told)
        assert [word for word in scene.transport.told if word in ("write_eof", "close", "abort")] == [
            "write_eof",
            "close",
            "abort",
        ]

    play(acts)


def test_connection_without_a_request_is_closed_silently(play: Play) -> None:
    """After `keepalive`."""

    async def acts(scene: Scene) -> None:
        await until(lambda: scene.transport.ended)
        assert scene.transport.written == b""

    play(acts)


def test_half_a_header_is_answered(play: Play) -> None:
    """After `header_timeout` from its first byte, whatever comes meanwhile."""

    async def acts(scene: Scene) -> None:
        scene.feed(b"GET / HT")
        await until(lambda: bool(scene.transport.written))
        assert scene.transport.written.startswith(b"HTTP/1.1 400 ")
        assert not scene.exchanges

    play(acts)


def test_half_closed_connection_ends_after_its_answer(play: Play) -> None:
    """The answer first; a half-closed connection with half a body is left at once."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET)
        assert scene.connection.eof_received() is True  # type: ignore[func-returns-value]
        assert not scene.transport.ended
        scene.last.answer()
        assert scene.transport.told[-1] == "close"

    async def half(scene: Scene) -> None:
        scene.feed(b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 9\r\n\r\nabc")
        scene.connection.eof_received()
        assert scene.last.told == ["caller_left"]
        assert scene.transport.told[-1] == "close"

    play(acts)
    play(half)


def test_cut_is_a_reset(play: Play) -> None:
    """Without it the end of a close-delimited answer would look like any other."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET)
        scene.last.caller.cut()
        assert scene.transport.told == ["linger", "abort"]
        assert scene.last.told == ["caller_left"]

    play(acts)


def test_drain_closes_what_is_idle_and_lets_the_rest_end(play: Play) -> None:
    """In use: after its answer. Idle: soon, unless a request still comes."""

    async def acts(scene: Scene) -> None:
        scene.feed(GET)
        scene.plane.draining = True
        scene.connection.drain()  # type: ignore[attr-defined]
        assert not scene.transport.ended
        assert not scene.connection.asks_more()  # type: ignore[attr-defined]
        scene.last.answer(keep_alive=False)
        assert scene.transport.told[-1] == "close"

    async def idle(scene: Scene) -> None:
        scene.feed(GET)
        scene.last.answer()
        scene.plane.draining = True
        scene.connection.drain()  # type: ignore[attr-defined]
        assert not scene.transport.ended
        await until(lambda: "close" in scene.transport.told)

    async def pipelined(scene: Scene) -> None:
        scene.feed(GET + GET)
        scene.plane.draining = True
        scene.connection.drain()  # type: ignore[attr-defined]
        assert scene.connection.asks_more()  # type: ignore[attr-defined]
        scene.last.answer()
        assert len(scene.exchanges) == 2
        assert not scene.connection.asks_more()  # type: ignore[attr-defined]

    async def expired(scene: Scene) -> None:
        scene.feed(GET + GET)
        scene.plane.expired = True
        scene.connection.expire()  # type: ignore[attr-defined]
        assert scene.last.told == ["expire"]
        assert not scene.connection.asks_more()  # type: ignore[attr-defined]

    for each in (acts, idle, pipelined, expired):
        play(each)


def test_connection_that_cannot_be_made_is_cut_and_never_raises(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop would never accept on that listener again."""

    async def acts(scene: Scene) -> None:
        monkeypatch.setattr(downstream, "Deadline", None)
        protocol = accept(scene.plane, Listener("here", None, frozenset()))
        transport = FakeTransport()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        assert transport.ended
        monkeypatch.undo()

    play(acts)


def test_body_in_tiny_chunks_takes_turns_with_others(play: Play) -> None:
    """It is read in slices, one each time the loop has been round, in its order and to its end."""
    count = 60_000
    wire = b"1\r\na\r\n" * count

    async def acts(scene: Scene) -> None:
        scene.feed(POST_CHUNKED)
        scene.feed(wire[:3000])
        begun = len(scene.last.body)
        scene.feed(wire[3000:] + b"0\r\n\r\n" + GET)
        assert begun < len(scene.last.body) < begun + 3000  # a slice of it, and the rest is put off
        first, turns = scene.last, 0
        while not first.done:
            await asyncio.sleep(0)
            turns += 1
        assert first.body == b"a" * count
        assert turns > 10
        first.answer()
        assert len(scene.exchanges) == 2  # what came behind the body is the next request

    play(acts)


def test_body_in_tiny_chunks_is_read_to_its_end_where_the_caller_sends_no_more(play: Play) -> None:
    """A half-closed connection: what was put off still counts."""
    wire = b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"

    async def acts(scene: Scene) -> None:
        scene.feed(POST_CHUNKED)
        scene.feed(wire[:3000])
        scene.feed(wire[3000:])
        assert not scene.last.done
        assert scene.connection.eof_received()  # type: ignore[attr-defined]
        assert scene.last.done
        assert scene.last.body == b"a" * 20_000

    play(acts)


def test_pipelined_requests_that_are_answered_at_once_take_turns_with_others(play: Play) -> None:
    """A few of them each time that the loop has been round; all in the end."""

    async def acts(scene: Scene) -> None:
        scene.answers_at_once = True
        scene.feed(GET * 100)
        assert 0 < len(scene.exchanges) < 50
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(scene.exchanges) == 100

    play(acts)
