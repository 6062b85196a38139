"""One call with fakes on both sides: what is told to whom, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sidecert.errors import Refusal
from sidecert.exchange import Exchange
from sidecert.http1 import AnswerReader, RequestHead, RequestParser, ResponseParser
from sidecert.metrics import Metrics
from sidecert.outcome import Observation, Outcome
from sidecert.plane import Listener, Plane
from sidecert.upstream import NotOpened
from support.certs import Pki
from support.inside import orders


class FakeOutflow:
    """Has that many bytes left, which leave or do not."""

    def __init__(self, left: int = 0, *, moving: bool = False) -> None:
        self.left = (left, 0)
        self.moving = moving

    def patience(self) -> float:
        return 1.0 if self.moving else 0.0


class FakeCaller:
    """A downstream connection that writes down what it is told."""

    own_host = None

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.deadline = SimpleNamespace(set=self.waits.append)
        self.flow = FakeOutflow()
        self.listener = Listener("here", None, frozenset())
        self.told: list[Any] = []
        self.refused: list[Refusal] = []
        self.on_write: Callable[[], None] = lambda: None

    def peer(self) -> object:
        return None

    def own_address(self) -> object:
        return None

    def write(self, data: bytes) -> None:
        self.told.append(("write", data))
        self.on_write()

    def outflow(self, limit: float) -> FakeOutflow:
        return self.flow

    def refuse(self, refusal: Refusal, exchange: Exchange) -> None:
        self.told.append(("refuse", refusal.outcome))
        self.refused.append(refusal)

    def finish(self, *, keep_alive: bool) -> None:
        self.told.append(("finish", keep_alive))

    def cut(self) -> None:
        self.told.append("cut")

    def become_tunnel(self) -> None:
        self.told.append("tunnel")

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


class FakeConnection:
    """An upstream connection that is told everything and says nothing."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.outcome = Outcome.OK
        self.seen = Observation()
        self.note_acceptable_cas = lambda: None
        self.reusable = True
        self.answer = AnswerReader()
        self.sent = b""
        self.ended = False
        self.flow = FakeOutflow()

    def outflow(self, limit: float) -> FakeOutflow:
        return self.flow

    def begin(self, exchange: Any, method: bytes, data: bytes, upgrade: bytes | None) -> None:
        self.sent += data

    def send(self, data: bytes) -> None:
        self.sent += data

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.log.append(name)


class FakePool:
    """Hands out `ready`, or opens what `opening` gives."""

    def __init__(self, plane: Plane, log: list[str]) -> None:
        real = plane.pools["orders"]
        self.route, self.stats = real.route, real.stats
        self.log = log
        self.ready: list[FakeConnection] = []
        self.opening: Callable[[], FakeConnection] = lambda: FakeConnection(log)

    def take(self, upstream: Any) -> FakeConnection | None:
        return self.ready.pop() if self.ready else None

    async def open(self, upstream: Any, *, fresh: bool = False) -> FakeConnection:
        self.log.append("open fresh" if fresh else "open")
        connection = self.opening()
        connection.reusable = False
        return connection

    def release(self, connection: FakeConnection) -> None:
        self.log.append("release")


class Scene:
    """An exchange for `request` between fakes. Made on a running loop."""

    def __init__(self, plane: Plane, request: bytes) -> None:
        self.log: list[str] = []
        self.caller = FakeCaller()
        self.pool = FakePool(plane, self.log)
        plane.pools["orders"] = self.pool  # type: ignore[assignment]
        head: RequestHead = RequestParser(65536).parse(request)
        self.exchange = Exchange(plane, self.caller, head)

    @property
    def stats(self) -> Any:
        return self.pool.stats


Play = Callable[[bytes, Callable[[Scene], Any]], Scene]
GET = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 6\r\n\r\n"


@pytest.fixture
def play(pki: Pki, tmp_path: Path) -> Play:
    """Plays a scene, a coroutine function, on a loop of its own; at its end no call is in progress."""
    first = orders(tmp_path, pki)

    def run(request: bytes, acts: Callable[[Scene], Any]) -> Scene:
        async def main() -> Scene:
            plane = Plane(Metrics(CollectorRegistry()))
            plane.adopt(first)
            scene = Scene(plane, request)
            await acts(scene)
            for _ in range(3):
                await asyncio.sleep(0)
            return scene

        scene = asyncio.run(main())
        assert scene.stats.in_progress == 0
        return scene

    return run


def answer_head(raw: bytes, method: bytes = b"GET") -> Any:
    return ResponseParser().parse(raw, method)


FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"


def test_connection_whose_answer_the_caller_could_not_take_at_once_is_given_back_reading(play: Play) -> None:
    """The last piece overfills the caller's buffer: the connection must not go back to the pool paused."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.caller.on_write = scene.exchange.pause_answer
        scene.exchange.take_answer(answer_head(FINE), b"abc", True)

    scene = play(GET, acts)
    assert scene.log == ["pause_reading", "resume_reading", "release"]
    assert scene.caller.told[-1] == ("finish", True)


def test_body_that_waited_for_a_connection_is_sent_with_the_head(play: Play) -> None:
    """What came while the connection was being opened goes out first, then the rest."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        scene.pool.opening = lambda: connection
        scene.exchange.start(b"ab", False)
        scene.exchange.take_body(b"cd", False, [])
        await asyncio.sleep(0.01)
        scene.exchange.take_body(b"ef", True, [])
        assert connection.sent.endswith(b"\r\n\r\nabcdef")
        assert connection.sent.count(b"POST / HTTP/1.1\r\n") == 1
        scene.exchange.take_answer(answer_head(FINE), b"abc", True)

    assert play(POST, acts).log == ["open", "resume_reading", "release"]


def test_connection_that_became_free_meanwhile_is_used(play: Play) -> None:
    """Between the first look and the opening: nothing is opened, and a full pool need not close it."""

    async def acts(scene: Scene) -> None:
        scene.exchange.start(b"", True)
        scene.pool.ready = [FakeConnection(scene.log)]
        await asyncio.sleep(0.01)
        scene.exchange.take_answer(answer_head(FINE), b"abc", True)

    scene = play(GET, acts)
    assert [each for each in scene.log if each != "resume_reading"] == ["release"]


def test_call_is_repeated_on_a_new_connection_only(play: Play) -> None:
    """Another idle one could be as dead as the first."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.upstream_ended(None)
        await asyncio.sleep(0.01)
        scene.exchange.caller_left()

    assert play(GET, acts).log == ["open fresh", "leave"]


def test_connection_that_ends_before_anything_was_written_is_replaced_once(play: Play) -> None:
    """Whatever the method is: the upstream cannot have seen any of it. A second such end is told."""
    made: list[FakeConnection] = []

    def ending(scene: Scene, often: int) -> FakeConnection:
        connection = FakeConnection(scene.log)
        connection.ended = len(made) < often
        made.append(connection)
        return connection

    async def acts(scene: Scene) -> None:
        scene.pool.opening = lambda: ending(scene, 1)
        scene.exchange.start(b"abcdef", True)
        await asyncio.sleep(0.01)
        assert [connection.sent.endswith(b"abcdef") for connection in made] == [False, True]
        scene.exchange.take_answer(answer_head(FINE), b"abc", True)

    scene = play(POST, acts)
    assert scene.log == ["open", "open fresh", "resume_reading", "release"]
    assert scene.pool.stats.retries == 0


def test_answer_says_that_nothing_was_sent_where_no_connection_took_it(play: Play) -> None:
    """Both connections had ended before the first byte: the caller may send the request again."""

    async def acts(scene: Scene) -> None:
        ended = FakeConnection(scene.log)
        ended.ended = True
        scene.pool.opening = lambda: ended
        scene.exchange.start(b"abcdef", True)
        await asyncio.sleep(0.01)
        scene.exchange.upstream_ended(None)

    (refusal,) = play(POST, acts).caller.refused
    assert refusal.outcome == "upstream_closed"
    assert "No byte of the request was sent" in refusal.detail


def test_answer_says_that_the_first_attempt_may_have_been_processed(play: Play) -> None:
    """A GET went out on a connection that then ended, and no new one can be opened."""

    async def acts(scene: Scene) -> None:
        def fail() -> FakeConnection:
            raise NotOpened(Observation(), Outcome.CONNECT_REFUSED)

        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.pool.opening = fail
        scene.exchange.upstream_ended(None)
        await asyncio.sleep(0.01)

    (refusal,) = play(GET, acts).caller.refused
    assert refusal.outcome == "connect_refused"
    assert "the request may have been processed" in refusal.detail


@pytest.mark.parametrize("sent", [True, False])
def test_answer_to_an_error_of_our_own_says_whether_the_request_was_sent(sent: bool, play: Play) -> None:
    """The connection had been found, or not yet."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)] if sent else []
        scene.exchange.start(b"abcdef", True)
        scene.exchange.fault(ValueError("ours"))

    (refusal,) = play(POST, acts).caller.refused
    assert ("may have been processed" in refusal.detail, "No byte of" in refusal.detail) == (sent, not sent)


@pytest.mark.parametrize("where", ["caller", "connection"])
def test_no_body_goes_out_without_its_head(where: str, play: Play) -> None:
    """An error of ours just before the head is sent, and more of the body before the loop tells of it: an
    upstream would read it as a request."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        scene.pool.opening = lambda: connection

        def fail(*_: object) -> None:
            asyncio.get_running_loop().call_soon(scene.exchange.take_body, b"def", True, [])
            raise ValueError("ours")

        if where == "caller":
            scene.caller.resume_reading = fail  # type: ignore[method-assign]
        else:
            connection.begin = fail  # type: ignore[method-assign]
        scene.exchange.start(b"abc", False)
        await asyncio.sleep(0.01)
        assert connection.sent == b""

    scene = play(POST, acts)
    assert ("refuse", "internal_error") in scene.caller.told
    assert scene.log == ["open", "leave"]


def test_refusal_of_the_certificate_is_no_reason_to_open_again(play: Play) -> None:
    """Where it came just after the hold had ended: the verdict is told, not asked for once more."""

    async def acts(scene: Scene) -> None:
        refused = FakeConnection(scene.log)
        refused.ended, refused.outcome = True, Outcome.CLIENT_CERT_REJECTED
        scene.pool.opening = lambda: refused
        scene.exchange.start(b"abcdef", True)
        await asyncio.sleep(0.01)
        scene.exchange.upstream_ended(None)

    scene = play(POST, acts)
    assert scene.log == ["open"]
    assert ("refuse", "client_cert_rejected") in scene.caller.told


def test_call_is_repeated_once_and_then_refused(play: Play) -> None:
    """A GET on a reused connection that ends is opened for again; when that ends too, the caller is told."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.exchange.upstream_ended(None)
        await asyncio.sleep(0.01)
        scene.exchange.upstream_ended(None)

    scene = play(GET, acts)
    assert scene.log == ["open fresh"]
    assert scene.caller.told == ["resume", ("refuse", "upstream_closed")]
    assert scene.stats.retries == 1


@pytest.mark.parametrize("what", ["post", "heard", "fresh"])
def test_call_is_not_repeated(what: str, play: Play) -> None:
    """A POST, a call of whose answer something came, and one on a fresh connection: told at once."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        connection.reusable = what != "fresh"
        connection.answer.heard = what == "heard"
        scene.pool.ready = [connection]
        scene.exchange.start(b"abcdef" if what == "post" else b"", True)
        scene.exchange.upstream_ended(None)

    scene = play(POST if what == "post" else GET, acts)
    assert scene.log == []
    assert scene.caller.told == [("refuse", "upstream_closed")]


def test_early_answer_gives_the_connection_up(play: Play) -> None:
    """The answer is whole and the request is not: neither connection is used again."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"ab", False)
        scene.exchange.take_answer(answer_head(FINE, b"POST"), b"abc", True)
        scene.exchange.take_body(b"cdef", True, [])

    scene = play(POST, acts)
    assert scene.log == ["leave"]
    assert scene.caller.told[-1] == ("finish", False)


def test_answer_waits_for_a_caller_that_still_reads(play: Play) -> None:
    """When the deadline passes while bytes leave for the caller, the call goes on; else it is cut."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.caller.flow = FakeOutflow(500_000, moving=True)
        scene.caller.on_write = scene.exchange.pause_answer
        scene.exchange.take_answer(answer_head(FINE), b"a", False)
        scene.exchange.timed_out()
        assert scene.caller.waits[-2:] == [1.0, 1.0]
        assert "cut" not in scene.caller.told
        scene.caller.flow.moving = False
        scene.exchange.timed_out()

    assert play(GET, acts).caller.told[-1] == "cut"


def test_answer_that_stops_is_not_excused_by_a_caller_that_has_caught_up(play: Play) -> None:
    """What was seen of the caller while it was slow counts no more once all is on its way to it."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.caller.flow = FakeOutflow(500_000, moving=True)
        scene.exchange.take_answer(answer_head(FINE), b"a", False)
        scene.exchange.pause_answer()
        scene.exchange.resume_answer()
        scene.exchange.timed_out()

    assert play(GET, acts).caller.told[-1] == "cut"


BIG_POST = b"POST / HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 1000000\r\n\r\n"


def test_body_waits_for_an_upstream_that_still_reads(play: Play) -> None:
    """When the deadline passes while bytes leave for the upstream, the call goes on; when none do: 504."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        connection.flow = FakeOutflow(500_000, moving=True)
        scene.pool.ready = [connection]
        scene.exchange.start(b"", False)
        scene.exchange.pause_caller()
        scene.exchange.timed_out()
        assert scene.caller.waits[-1] == 1.0
        connection.flow.moving = False
        scene.exchange.timed_out()

    [refusal] = play(BIG_POST, acts).caller.refused
    assert (refusal.status, refusal.outcome) == (504, "response_timeout")
    assert "stopped reading the request" in refusal.detail


def test_time_for_the_answer_runs_from_when_the_upstream_has_the_body(play: Play) -> None:
    """Much of a body that we have written whole may still be on its way: that is no time of the answer's."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        scene.pool.ready = [connection]
        scene.exchange.start(b"", False)
        connection.flow = FakeOutflow(500_000, moving=True)
        scene.exchange.take_body(b"x" * 1_000_000, True, [])
        scene.exchange.timed_out()
        assert scene.caller.waits[-2:] == [1.0, 1.0]
        connection.flow = FakeOutflow(0)
        scene.exchange._to_upstream = connection.flow  # type: ignore[assignment]
        scene.exchange.timed_out()
        assert scene.caller.waits[-1] == 60.0
        assert not scene.caller.refused
        scene.exchange.timed_out()

    [refusal] = play(BIG_POST, acts).caller.refused
    assert (refusal.status, refusal.outcome) == (504, "response_timeout")


def test_upstream_that_stops_in_the_last_of_a_body_is_refused(play: Play) -> None:
    """Bytes are left, and none of them leaves."""

    async def acts(scene: Scene) -> None:
        connection = FakeConnection(scene.log)
        scene.pool.ready = [connection]
        scene.exchange.start(b"", False)
        connection.flow = FakeOutflow(500_000)
        scene.exchange.take_body(b"x" * 1_000_000, True, [])
        scene.exchange.timed_out()

    [refusal] = play(BIG_POST, acts).caller.refused
    assert (refusal.status, refusal.outcome) == (504, "response_timeout")


def test_caller_that_leaves_takes_the_connection_with_it(play: Play) -> None:
    """Nobody else may get what is left of the answer; telling it twice changes nothing."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.exchange.caller_left()
        scene.exchange.caller_left()
        scene.exchange.timed_out()

    scene = play(GET, acts)
    assert scene.log == ["leave"]
    assert scene.caller.told == []


def test_caller_that_leaves_while_a_connection_is_opened_ends_the_attempt(play: Play) -> None:
    """The task that opens is cancelled, and leaves nothing behind."""

    async def acts(scene: Scene) -> None:
        ended = asyncio.Event()

        async def never(upstream: Any, *, fresh: bool) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        scene.pool.open = never  # type: ignore[method-assign]
        scene.exchange.start(b"", True)
        await asyncio.sleep(0)
        scene.exchange.caller_left()
        async with asyncio.timeout(1):
            await ended.wait()
        assert len(asyncio.all_tasks()) <= 2

    assert play(GET, acts).caller.told == []


def test_failed_attempt_is_explained(play: Play) -> None:
    """The outcome of the attempt is the outcome of the answer."""

    async def acts(scene: Scene) -> None:
        async def fail(upstream: Any, *, fresh: bool) -> Any:
            raise NotOpened(Observation(), Outcome.DNS_FAILED)

        scene.pool.open = fail  # type: ignore[method-assign]
        scene.exchange.start(b"", True)
        await asyncio.sleep(0.01)

    assert play(GET, acts).caller.told == [("refuse", "dns_failed")]


def test_failure_after_the_answer_began_is_a_cut(play: Play) -> None:
    """No second head, no clean end."""

    async def acts(scene: Scene) -> None:
        scene.pool.ready = [FakeConnection(scene.log)]
        scene.exchange.start(b"", True)
        scene.exchange.take_answer(answer_head(FINE), b"a", False)
        scene.exchange.upstream_ended(None)

    scene = play(GET, acts)
    assert [each for each in scene.caller.told if each[0] != "write"] == ["cut"]


def test_interim_answer_is_kept_from_a_caller_that_does_not_know_it(play: Play) -> None:
    """HTTP/1.0 has no 1xx."""
    for version, count in ((b"1.1", 1), (b"1.0", 0)):

        async def acts(scene: Scene) -> None:
            scene.pool.ready = [FakeConnection(scene.log)]
            scene.exchange.start(b"", True)
            scene.exchange.take_interim(answer_head(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"))
            scene.exchange.caller_left()

        assert len(play(GET.replace(b"1.1", version), acts).caller.told) == count
