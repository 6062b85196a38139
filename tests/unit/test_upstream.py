"""An upstream connection against a real peer in a thread: opened, judged once, used by one call at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecert import upstream
from sidecert.errors import BadAnswer
from sidecert.generation import Upstream
from sidecert.http1 import ResponseHead
from sidecert.metrics import RouteStats
from sidecert.outcome import Observation, Outcome
from sidecert.upstream import NotOpened, UpstreamConnection
from support.certs import Pki
from support.inside import LOOPS, LoopKind, generation, new_loop
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, chunked, cut_short, fixed, head, silence, until_close
from support.sidecar import config

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


class Taker:
    """Collects what a connection tells the exchange that uses it."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self.body = b""
        self.end: Any = None
        self.ended = asyncio.Event()

    def take_interim(self, head: ResponseHead) -> None:
        self.heads.append(head)

    def take_answer(self, head: ResponseHead, piece: bytes, done: bool) -> None:
        self.heads.append(head)
        self.take_piece(piece, done)

    def take_piece(self, piece: bytes, done: bool) -> None:
        self.body += piece
        if done:
            self._finish("whole")

    def upstream_ended(self, error: Exception | None) -> None:
        self._finish(error or "cut")

    def pause_caller(self) -> None: ...

    def resume_caller(self) -> None: ...

    def _finish(self, end: Any) -> None:
        assert self.end is None, "told twice"
        self.end = end
        self.ended.set()


class Scene:
    def __init__(self, upstream: Upstream) -> None:
        self.stats = RouteStats()
        self.ends = 0
        self.connection = UpstreamConnection(upstream, self.stats, self._count)

    def _count(self, connection: UpstreamConnection) -> None:
        self.ends += 1

    async def ask(self, method: bytes = b"GET") -> Taker:
        taker = Taker()
        self.connection.begin(taker, method, REQUEST.replace(b"GET", method), None)
        async with asyncio.timeout(10):
            await taker.ended.wait()
        return taker

    @property
    def outcomes(self) -> dict[str, dict[Outcome, int]]:
        return self.stats.handshakes


Play = Callable[..., Scene]


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest, pki: Pki, tmp_path: Path) -> Play:
    """Plays a coroutine function on a connection to `peer`; it must have ended exactly once by then."""
    kind: LoopKind = request.param

    def run(
        peer: Any, acts: Callable[[Scene], Awaitable[None]], credential: str = "alice", **upstream: object
    ) -> Scene:
        spec = {
            "id": "orders",
            "match": {"host": "orders.test"},
            "upstream": {"host": peer.host, "port": peer.port, "trust": str(pki.trust), **upstream},
            "credential": credential,
        }
        route = generation(tmp_path, config([spec], pki.credentials)).routes["orders"]

        async def main() -> Scene:
            scene = Scene(route.upstream("orders.test"))
            await acts(scene)
            scene.connection.close()
            scene.connection.leave()
            await asyncio.sleep(0)
            assert scene.ends == 1
            assert len(asyncio.all_tasks()) == 1
            return scene

        with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
            return runner.run(main())

    return run


def test_several_answers_on_one_connection(play: Play, recorder: TlsRecorder) -> None:
    """Each whole, each reusable, counted as one handshake."""

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        for answer, body in ((fixed(b"one"), b"one"), (chunked([b"t", b"wo"]), b"two")):
            recorder.answer = answer
            taker = await scene.ask()
            assert (taker.end, taker.body) == ("whole", body)
            assert scene.connection.reusable
            assert scene.connection.is_alive()
        head = await scene.ask(b"HEAD")
        assert (head.end, head.body) == ("whole", b"")

    assert play(recorder, acts).outcomes == {"alice": {Outcome.OK: 1}}


def test_answer_until_close_is_whole_with_a_close_notify_only(play: Play, recorder: TlsRecorder) -> None:
    """And never reusable."""

    def without_notify(exchange: Exchange) -> None:
        exchange.send(head(200) + b"part")
        exchange.cut()

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        recorder.answer = until_close(b"all")
        taker = await scene.ask()
        assert (taker.end, taker.body) == ("whole", b"all")
        assert not scene.connection.reusable
        assert not scene.connection.is_alive()

    async def cut(scene: Scene) -> None:
        await scene.connection.open()
        recorder.answer = without_notify
        assert (await scene.ask()).end == "cut"

    play(recorder, acts)
    play(recorder, cut)


@pytest.mark.parametrize("reset", [False, True])
def test_answer_that_is_cut_is_told_once(reset: bool, play: Play, recorder: TlsRecorder) -> None:
    """FIN or RST in the middle of a body."""
    recorder.answer = cut_short(reset=reset)

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        taker = await scene.ask()
        assert taker.end == "cut"
        assert not scene.connection.reusable

    play(recorder, acts)


def test_answer_before_a_reset_is_taken_though_the_reset_was_noticed_by_writing(
    play: Play, recorder: TlsRecorder
) -> None:
    """The answer waits unread in the kernel when more of the request meets a connection that is gone."""
    gone = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.send(head(413, ("Content-Length", "5")) + b"early")
        exchange.abort()
        gone.set()

    recorder.answer = answer

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        taker = Taker()
        scene.connection.begin(taker, b"POST", POST, None)
        await asyncio.sleep(0)  # lets uvloop write
        assert gone.wait(10)  # holding up the loop, so that it reads nothing before it writes
        scene.connection.send(b"more")
        async with asyncio.timeout(10):
            await taker.ended.wait()
        assert (taker.end, taker.body) == ("whole", b"early")
        # On a busy machine the answer may have been read before the reset was noticed.
        assert not (scene.connection.reusable and scene.connection.is_alive())

    play(recorder, acts)


def test_bad_answer_is_told_as_one(play: Play, recorder: TlsRecorder) -> None:
    """With the parser's words, and the connection is over."""
    recorder.answer = lambda exchange: exchange.send(b"nonsense\r\n\r\n")

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        taker = await scene.ask()
        assert isinstance(taker.end, BadAnswer)
        assert not scene.connection.is_alive()

    play(recorder, acts)


def test_bytes_that_nobody_asked_for_end_the_connection(play: Play, recorder: TlsRecorder) -> None:
    """Behind an answer, in the same record: not reusable."""
    recorder.answer = lambda exchange: exchange.send(head(200, ("Content-Length", "1")) + b"aEXTRA")

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        taker = await scene.ask()
        assert (taker.end, taker.body) == ("whole", b"a")
        assert not scene.connection.reusable

    play(recorder, acts)


def test_request_on_a_connection_that_has_just_ended_is_told_at_once(
    play: Play, recorder: TlsRecorder
) -> None:
    """It ends between its opening and its first use: the call must not wait for a time limit."""

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        scene.connection.close()
        async with asyncio.timeout(1):
            assert (await scene.ask()).end == "cut"

    play(recorder, acts)


def test_connection_that_was_just_reset_can_still_be_described(play: Play, recorder: TlsRecorder) -> None:
    """Its socket has no address of the other side any more; what else is known is told."""

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        assert scene.connection.peer().address == (recorder.host, recorder.port)
        came = threading.Event()

        def reset(exchange: Exchange) -> None:
            exchange.abort()
            came.set()

        recorder.answer = reset
        scene.connection.begin(Taker(), b"GET", REQUEST, None)
        assert came.wait(10)  # while the loop stands still, so that it has not heard of it
        peer = scene.connection.peer()
        assert peer.address is None
        assert peer.chain

    play(recorder, acts)


def test_connection_that_was_dropped_is_seen_without_reading(play: Play, recorder: TlsRecorder) -> None:
    """`is_alive` asks the kernel, not the event loop, which has had no turn yet."""

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        recorder.answer = fixed(b"x")
        await scene.ask()
        assert scene.connection.is_alive()
        recorder.drop_connections()  # no await: the loop cannot have noticed
        assert not scene.connection.is_alive()

    play(recorder, acts)


class Wordless:
    """A TLS stream in which no record holds data, as key updates are."""

    closed = False
    news = True
    failure = None
    again = 0
    unsent = b""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen

    def receive(self, data: bytes) -> bytes:
        return b""

    def take_output(self) -> bytes:
        return b""


def test_tls_messages_without_data_are_bounded(play: Play, recorder: TlsRecorder) -> None:
    """64 KiB of them end the connection: they would hold the event loop for nothing."""
    recorder.answer = silence

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        taker = Taker()
        scene.connection.begin(taker, b"GET", REQUEST, None)
        scene.connection._tls = Wordless(scene.connection.seen)  # type: ignore[assignment]
        for _ in range(32):
            scene.connection.data_received(b"k" * 1024)
        assert taker.end is None
        for _ in range(33):
            scene.connection.data_received(b"k" * 1024)
        assert taker.end == "cut"

    play(recorder, acts)


def test_time_to_take_the_last_of_a_closed_connection_is_bounded(
    play: Play, recorder: TlsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream that reads nothing any more does not keep what was sent in our memory."""
    monkeypatch.setattr(upstream, "_FLUSH_SECONDS", 0.05)
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        left.wait(10)
        exchange.ended = True

    recorder.answer = answer

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        scene.connection.begin(Taker(), b"GET", REQUEST, None)
        scene.connection.send(b"x" * 20_000_000)
        wire = scene.connection._socket
        assert wire is not None
        scene.connection.close()
        async with asyncio.timeout(5):
            while wire.fileno() >= 0:
                await asyncio.sleep(0.005)
        left.set()

    play(recorder, acts)


def test_upstream_may_take_its_time_for_the_last_of_a_closed_connection(
    play: Play, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it goes on reading, all of it arrives."""
    monkeypatch.setattr(upstream, "_FLUSH_SECONDS", 1.0)
    size = 20_000_000
    found: list[int] = []

    def answer(exchange: Exchange) -> None:
        exchange.ended = True
        count = 0
        while piece := exchange.wire.recv(20_000):
            count += len(piece)
            if count < 750_000:
                time.sleep(0.05)  # its pace is what is tested
        found.append(count)

    # Under TLS 1.3 a ticket that is still to be read would make a RST of our close.
    recorder = peers.recorder(answer=answer, tls="1.2")

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        scene.connection.begin(Taker(), b"GET", REQUEST, None)
        scene.connection.send(b"x" * size)
        scene.connection.close()
        async with asyncio.timeout(15):
            while not found:
                await asyncio.sleep(0.005)
        assert found == [size]

    play(recorder, acts)


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_refused_certificate_is_decided_while_opening(tls: Any, play: Play, peers: Peers) -> None:
    """Under both versions `open` raises with the outcome, and nothing was sent."""
    upstream = peers.recorder(tls=tls)

    async def acts(scene: Scene) -> None:
        with pytest.raises(NotOpened) as failure:
            await scene.connection.open()
        assert failure.value.outcome is Outcome.CLIENT_CERT_UNKNOWN_CA
        assert failure.value.seen.alert_received == 48

    scene = play(upstream, acts, credential="stranger")
    assert scene.outcomes == {"stranger": {Outcome.CLIENT_CERT_UNKNOWN_CA: 1}}
    assert not upstream.requests


def test_verdict_that_comes_with_the_answer_is_ok(play: Play, peers: Peers) -> None:
    """No ticket: the connection is used before it is decided, and the first byte back decides it."""

    async def acts(scene: Scene) -> None:
        await scene.connection.open()
        assert scene.connection.outcome is None
        taker = await scene.ask()
        assert taker.end == "whole"
        assert scene.connection.outcome is Outcome.OK

    upstream = peers.recorder(tls="1.3", configure=lambda context: setattr(context, "num_tickets", 0))
    assert play(upstream, acts).outcomes == {"alice": {Outcome.OK: 1}}


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.05])
def test_cancelled_opening_is_undecided_and_closed(moment: float, play: Play, peers: Peers) -> None:
    """The caller leaves while we connect or shake hands: counted once, nothing left open."""

    async def acts(scene: Scene) -> None:
        task = asyncio.ensure_future(scene.connection.open())
        await asyncio.sleep(moment)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    assert play(peers.silent(), acts).outcomes == {"alice": {Outcome.UNDECIDED: 1}}


def test_peer_that_speaks_first_is_no_tls(play: Play, peers: Peers) -> None:
    """A banner that is there before our first byte, again and again: no descriptor is closed twice."""
    peer = peers.banner()

    async def acts(scene: Scene) -> None:
        with pytest.raises(NotOpened) as failure:
            await scene.connection.open()
        assert failure.value.outcome is Outcome.NOT_TLS

    for _ in range(20):
        play(peer, acts)
