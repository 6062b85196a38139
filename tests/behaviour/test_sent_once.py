"""A request reaches the upstream once, and twice only where that is harmless; its caller is always told."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.certs import Leaf, Pki
from support.clients import Address, Answer, Caller, Talker, talking
from support.inspecting import inspecting
from support.lengths import rounds
from support.mortal import Arrival, Death, Fate, Mortal, Point, Reply, Sent, Way, mortal
from support.recorder import TlsVersion
from support.sidecar import Sidecar, StartSidecar, config, route

SAFE = {"GET", "HEAD", "OPTIONS"}
CALLERS = 8
FIN_RST: tuple[Way, ...] = ("fin", "rst")
ALL_WAYS: tuple[Way, ...] = ("fin", "rst", "notify")

NAMES = ("new", "old", "mute")
OF_CONNECTIONS: dict[Point, tuple[Way, ...]] = {
    "accept": FIN_RST,
    "hello": FIN_RST,
    "flight": FIN_RST,
    "finished": ALL_WAYS,
    "opened": ALL_WAYS,
}
ENDS_OF_CONNECTIONS = [(point, way) for point, ways in OF_CONNECTIONS.items() for way in ways]
OF_REQUESTS: dict[Point, tuple[Way, ...]] = {
    "body": ALL_WAYS,
    "before": ALL_WAYS,
    "interim": ALL_WAYS,
    "record": FIN_RST,
    "answer head": ALL_WAYS,
    "answer body": ALL_WAYS,
    "after": ALL_WAYS,
    "idle": ALL_WAYS,
}


@dataclass
class Call:
    """One exchange of the plan, and how it ended for the caller."""

    name: str
    host: str
    method: str
    minor: int
    body: bytes = field(repr=False)
    chunked: bool
    expect: bool
    keep_alive: bool
    reply: Reply = field(repr=False)
    content: bytes = field(repr=False)  # the body of `reply` without its framing
    deaths: tuple[Death | None, Death | None]
    ended: str = ""  # whole, own (an answer of sidecert's) or cut
    outcome: str = ""

    @property
    def repeatable(self) -> bool:
        return self.method in SAFE and not self.body and not self.chunked

    def head(self) -> bytes:
        fields = [f"Host: {self.host}"]
        if self.chunked:
            fields.append("Transfer-Encoding: chunked")
        elif self.body or self.method in ("POST", "PUT"):
            fields.append(f"Content-Length: {len(self.body)}")
        if self.expect:
            fields.append("Expect: 100-continue")
        if self.minor == 0 and self.keep_alive:
            fields.append("Connection: keep-alive")
        elif self.minor == 1 and not self.keep_alive:
            fields.append("Connection: close")
        line = f"{self.method} /{self.name}/path HTTP/1.{self.minor}"
        return "\r\n".join([line, *fields, "", ""]).encode()

    def framed_body(self) -> bytes:
        if not self.chunked:
            return self.body
        pieces = [self.body[at : at + 5000] for at in range(0, len(self.body), 5000)]
        return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Plan(Fate):
    """Calls and deaths drawn from one seed. Which of them meet is left to timing; the promises are not."""

    def __init__(self, seed: int, hosts: list[str], count: int) -> None:
        self._seed = seed
        draw = random.Random(seed)
        self.calls = [self._draw_call(draw, f"e{number}x", draw.choice(hosts)) for number in range(count)]
        self._by_name = {call.name: call for call in self.calls}

    def of_connection(self, number: int) -> Death | None:
        if number % 8:
            return None
        point, way = ENDS_OF_CONNECTIONS[number // 8 % len(ENDS_OF_CONNECTIONS)]
        at = random.Random(f"{self._seed} connection {number}").randrange(1, 900)
        return Death(point, way, at if number % 3 else at % 6 + 1)

    def of_next(self, connection: int, place: int) -> Death | None:
        draw = random.Random(f"{self._seed} next {connection} {place}")
        if draw.random() > 0.08:
            return None
        return Death("head", draw.choice(ALL_WAYS), draw.choice((0, 0, 1, 5, draw.randrange(1, 200))))

    def of_request(self, name: str, turn: int) -> Death | None:
        return self._by_name[name].deaths[turn - 1] if turn <= 2 else None

    def reply(self, name: str) -> Reply:
        return self._by_name[name].reply

    def _draw_call(self, draw: random.Random, name: str, host: str) -> Call:
        method = draw.choice(["GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "POST", "PUT", "DELETE"])
        minor = draw.choice([1, 1, 1, 1, 0])
        size = draw.choice([1, 30, 3000, 100_000]) if draw.random() < (0.15 if method in SAFE else 0.7) else 0
        body = (name.encode() * (size // len(name) + 1))[:size]
        chunked = minor == 1 and draw.random() < (0.5 if size else 0.05)
        reply, content = self._draw_reply(draw, name)
        return Call(
            name,
            host,
            method,
            minor,
            body,
            chunked,
            expect=bool(size) and minor == 1 and draw.random() < 0.4,
            keep_alive=draw.random() < 0.8,
            reply=reply,
            content=content,
            deaths=(self._draw_death(draw, 0.45, reply), self._draw_death(draw, 0.3, reply)),
        )

    def _draw_reply(self, draw: random.Random, name: str) -> tuple[Reply, bytes]:
        kind = draw.choice(["length", "length", "length", "chunked", "chunked", "close", "none"])
        content = name.encode() * draw.choice([1, 1, 20, 6000])
        if kind == "none":
            return Reply(b"HTTP/1.1 204 No\r\nX-Name: %b\r\n\r\n" % name.encode()), b""
        head = b"HTTP/1.1 200 OK\r\nX-Name: %b\r\n" % name.encode()
        if kind == "close":
            return Reply(head + b"\r\n", content, closes=True), content
        if kind == "length":
            return Reply(head + b"Content-Length: %d\r\n\r\n" % len(content), content), content
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        return Reply(head + b"Transfer-Encoding: chunked\r\n\r\n", framed), content

    def _draw_death(self, draw: random.Random, chance: float, reply: Reply) -> Death | None:
        if draw.random() > chance:
            return None
        point = draw.choice(list(OF_REQUESTS))
        # A close_notify within a body that ends with its connection is a whole answer to everybody.
        ways = FIN_RST if point == "answer body" and reply.closes else OF_REQUESTS[point]
        at = draw.random() * 0.004 if point == "idle" else draw.choice((0, 1, draw.randrange(30), 20_000))
        return Death(point, draw.choice(ways), at)


class Driver(threading.Thread):
    """A caller with one connection at a time, which makes its calls one after the other."""

    def __init__(self, address: Address, calls: list[Call], seed: int) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._calls = calls
        self._draw = random.Random(seed)
        self._talker: Talker | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for call in self._calls:
                if self._draw.random() < 0.3:
                    time.sleep(self._draw.random() * 0.004)  # so that calls and deaths cross in all ways
                self._make(call)
        except BaseException as error:
            error.add_note(f"in {call}")
            self.error = error
        finally:
            self._leave()

    def _make(self, call: Call) -> None:
        talker = self._talker = self._talker or Talker(self._address)
        try:
            self._talk(talker, call)
        except ConnectionResetError:
            call.ended = "cut"
            self._leave()

    def _talk(self, talker: Talker, call: Call) -> None:
        talker.send(call.head() + (b"" if call.expect else call.framed_body()))
        answer = talker.read_head()
        if call.expect and answer.status == 100:
            talker.send(call.framed_body())
        while answer.status < 200:
            answer = talker.read_head()
        talker.read_body(answer, call.method)
        call.outcome = answer.header("Sidecert-Outcome") or ""
        if call.outcome:
            assert answer.status in (502, 504) or call.outcome in ("draining", "circuit_open"), answer
            call.ended = "own"
        else:
            assert answer.header("X-Name") == call.name, f"the answer of {answer.header('X-Name')}"
            assert answer.body == (b"" if call.method == "HEAD" else call.content), "not the whole answer"
            call.ended = "whole"
        options = (answer.header("Connection") or "").lower()
        if options == "close" or (call.minor == 0 and options != "keep-alive") or not call.keep_alive:
            assert talker.closed()
            self._leave()

    def _leave(self) -> None:
        if self._talker is not None:
            self._talker.close()
            self._talker = None


def judge(call: Call, arrivals: list[Arrival], held: bool) -> bool:
    """Hold one call against what reached the upstream; true if it must have been sent again.

    `held`: no answer is passed on before it is whole.
    """
    assert len(arrivals) <= 2, f"sent {len(arrivals)} times"
    assert sum(each.executed for each in arrivals) <= (2 if call.repeatable else 1), "executed again"
    for each in arrivals:
        assert not each.executed or each.body == call.body, "another body"
    sent = arrivals[-1].sent if arrivals else Sent.NOTHING
    assert call.ended == {Sent.WHOLE: "whole", Sent.HEAD: "own" if held else "cut"}.get(sent, "own")
    if len(arrivals) == 2:
        assert may_go_again(call, arrivals[0]), "sent again against the rule"
        assert arrivals[1].place == 1, "sent again over a connection that was not fresh"
    # Where there is but one arrival, the fresh connection died before anything was sent on it.
    return bool(arrivals) and may_go_again(call, arrivals[0])


def may_go_again(call: Call, first: Arrival) -> bool:
    return call.repeatable and first.place > 1 and first.sent is Sent.NOTHING


def judge_aloud(call: Call, arrivals: list[Arrival], held: bool) -> bool:
    try:
        return judge(call, arrivals, held)
    except AssertionError as error:
        error.add_note(f"{call}\n{arrivals}")
        raise


def reuses(running: Sidecar, name: str) -> float:
    found = running.metric("sidecert_upstream_connection_reuses_total", route=name)
    assert found is not None
    return found


def start(sidecar: StartSidecar, upstream: Mortal, pki: Pki) -> Sidecar:
    return sidecar(route("orders", upstream, trust=pki.trust))


def retries(running: Sidecar, name: str = "orders") -> float:
    found = running.metric("sidecert_retries_total", route=name)
    assert found is not None
    return found


def draw_plan(count: int, kind: type[Plan] = Plan) -> Plan:
    """In continuous integration the same one for the same code, everywhere else a new one each time."""
    seed = 0 if os.environ.get("CI") else random.randrange(1 << 32)
    print(f"seed {seed}")
    return kind(seed, [f"{name}.test" for name in NAMES], count)


@contextmanager
def upstreams(plan: Plan, pki: Pki) -> Iterator[dict[str, Mortal]]:
    """Three that meet that fate, by route: of TLS 1.3, of 1.2, and of 1.3 without the tickets that would tell
    early that it takes our certificate."""
    with (
        mortal(pki.upstream, pki.trust, plan, tls="1.3") as new,
        mortal(pki.upstream, pki.trust, plan, tls="1.2") as old,
        mortal(pki.upstream, pki.trust, plan, tls="1.3", tickets=False) as mute,
    ):
        yield dict(zip(NAMES, (new, old, mute), strict=True))


def routes(found: dict[str, Mortal], pki: Pki) -> list[dict[str, Any]]:
    """Routes to them; the connections to one are few, so that calls wait for each other's."""
    most = {"new": 100, "old": 3, "mute": 100}
    return [
        route(name, upstream, trust=pki.trust, pool={"max_connections": most[name]})
        for name, upstream in found.items()
    ]


def carry_out(plan: Plan, address: Address, found: dict[str, Mortal], driver: type[Driver] = Driver) -> None:
    """Make all the plan's calls, several at a time, and wait until everything that reached an upstream has
    been counted."""
    began = time.monotonic()
    drivers = [driver(address, plan.calls[at::CALLERS], at) for at in range(CALLERS)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    for driver in drivers:
        if driver.error is not None:
            raise driver.error
    for upstream in found.values():
        upstream.wait_quiet()
    ended = Counter(call.outcome or call.ended for call in plan.calls)
    print(f"{len(plan.calls)} exchanges in {time.monotonic() - began:.1f} s ended as {dict(ended)}")


def judge_all(plan: Plan, name: str, upstream: Mortal, *, held: bool = False) -> int:
    """How many of the calls to route `name` must have been sent again."""
    assert upstream.unknown == 0
    calls = [call for call in plan.calls if call.host == f"{name}.test"]
    return sum(judge_aloud(call, upstream.arrivals.get(call.name, []), held) for call in calls)


def check_counters(running: Sidecar, name: str, upstream: Mortal, again: int) -> int:
    """Holds them against what the upstream saw; gives how many requests it cannot have seen."""
    reused = sum(each.place > 1 for arrivals in upstream.arrivals.values() for each in arrivals)
    unseen = int(reuses(running, name)) - reused
    # A RST can destroy a request of which nobody then knows, but no more than one.
    assert 0 <= unseen <= upstream.blind
    assert again <= retries(running, name) <= again + unseen
    assert sum(running.outcomes(name).values()) == upstream.connections
    assert running.metric("sidecert_requests_in_progress", route=name) == 0
    return unseen


@pytest.mark.long_form(seconds=900)
def test_no_death_of_an_upstream_makes_a_call_happen_twice(sidecar: StartSidecar, pki: Pki) -> None:
    """Calls of all kinds to upstreams that die at every point in every way: each is sent as often as it may
    be, each caller is told the truth, and the counters agree with what the upstreams saw."""
    plan = draw_plan(rounds(1_000, 10_000))
    deaths: Counter[tuple[Point, Way]] = Counter()
    with upstreams(plan, pki) as found:
        running = sidecar(*routes(found, pki))
        carry_out(plan, running.listener, found)
        for name, upstream in found.items():
            again = judge_all(plan, name, upstream)
            unseen = check_counters(running, name, upstream, again)
            print(f"{name}: {upstream.connections} connections, {again} sent again, {unseen} lost unseen")
            deaths.update(upstream.deaths)
    for (point, way), number in sorted(deaths.items()):
        print(f"{point}, {way}: {number}")
    of_requests = {(point, way) for point, ways in OF_REQUESTS.items() for way in ways}
    assert set(deaths) == {*ENDS_OF_CONNECTIONS, *of_requests, *(("head", way) for way in ALL_WAYS)}


@pytest.mark.long_form(seconds=900)
def test_nor_does_it_when_somebody_looks(pki: Pki, tmp_path: Path) -> None:
    """The same with each call as a flow; an answer is passed on when it is whole, so that none is cut."""
    plan = draw_plan(rounds(300, 3_000))
    with upstreams(plan, pki) as found:
        with inspecting(tmp_path / "tool", config(routes(found, pki), pki.credentials)) as tool:
            carry_out(plan, tool.listener, found)
            assert "Traceback (most recent call last)" not in tool.output
        for name, upstream in found.items():
            judge_all(plan, name, upstream, held=True)


class Rotator(threading.Thread):
    """Reloads every 50 ms until it is stopped, after writing the next of `leafs` if there are any."""

    def __init__(self, running: Sidecar, folder: Path, leafs: list[Leaf]) -> None:
        super().__init__(daemon=True)
        self._running, self._folder, self._leafs = running, folder, leafs
        self._stop = threading.Event()
        self.reloads = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop.wait(0.05):
                if self._leafs:
                    self._leafs[self.reloads % len(self._leafs)].write(self._folder, "me")
                assert self._running.ask_admin("POST", "/-/reload").status == 200
                self.reloads += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self.join()
        if self.error is not None:
            raise self.error


@pytest.mark.long_form(seconds=900)
@pytest.mark.parametrize("rotates", [False, True], ids=["reloads", "rotations"])
def test_nor_does_it_while_the_config_is_reloaded(
    rotates: bool, sidecar: StartSidecar, pki: Pki, tmp_path: Path
) -> None:
    """The same with a reload every 50 ms, of what is as it was or has another certificate: a call is sent as
    often as without, and the counters are as exact."""
    # Each rotation makes the upstream without tickets a stranger, for which the first calls wait a second.
    plan = draw_plan(rounds(80 if rotates else 300, 1_000 if rotates else 5_000))
    leafs = [pki.ca.caller("me") for _ in range(3)]
    files = leafs[0].write(tmp_path / "me", "me")
    with upstreams(plan, pki) as found:
        # Not proven first: these upstreams let every eighth connection die, and we count them all.
        running = sidecar(
            *(each | {"credential": "me"} for each in routes(found, pki)),
            credentials={"me": {**files.config, "prove": False}},
        )
        rotator = Rotator(running, tmp_path / "me", leafs if rotates else [])
        rotator.start()
        carry_out(plan, running.listener, found)
        rotator.stop()
        for name, upstream in found.items():
            check_counters(running, name, upstream, judge_all(plan, name, upstream))
        print(f"{rotator.reloads} reloads")
        assert rotator.reloads > 5


class Failing(Plan):
    """Four connections in a row end before they are open, four do not; and all the other deaths."""

    def of_connection(self, number: int) -> Death | None:
        return Death("accept", "rst" if number % 2 else "fin") if number % 8 < 4 else None


@pytest.mark.long_form(seconds=900)
def test_nor_does_it_while_circuits_open_and_close(sidecar: StartSidecar, pki: Pki) -> None:
    """Upstreams that fail again and again: what an open circuit answers was not sent, nor is a GET that meets
    one on its second try, and the counters tell each that was."""
    plan = draw_plan(rounds(400, 5_000), Failing)
    with upstreams(plan, pki) as found:
        fast = {"failures": 2, "pause": "10ms"}
        running = sidecar(
            *(each | {"upstream": each["upstream"] | {"circuit": fast}} for each in routes(found, pki))
        )
        carry_out(plan, running.listener, found)
        for name, upstream in found.items():
            again = judge_all(plan, name, upstream)
            reused = sum(each.place > 1 for arrivals in upstream.arrivals.values() for each in arrivals)
            unseen = int(reuses(running, name)) - reused
            assert 0 <= unseen <= upstream.blind
            assert again <= retries(running, name) <= again + unseen
            assert sum(running.outcomes(name).values()) == upstream.connections
    answered = [call for call in plan.calls if call.outcome == "circuit_open"]
    assert answered
    arrived = sum(bool(found[call.host.removesuffix(".test")].arrivals.get(call.name)) for call in answered)
    print(f"{len(answered)} calls met an open circuit, {arrived} of them on their second try")


class LeftDriver(Driver):
    """Its sidecar may go: a call to which not one byte came back then ends as `never`."""

    def _make(self, call: Call) -> None:
        try:
            super()._make(call)
        except (ConnectionRefusedError, BrokenPipeError, EOFError):
            if self._talker is not None and self._talker.buffer:
                raise  # half an answer
            call.ended = "never"
            self._leave()


@pytest.mark.long_form(seconds=900)
def test_nor_does_it_when_the_sidecar_drains(sidecar: StartSidecar, pki: Pki) -> None:
    """SIGTERM in the middle of it: what comes too late was never sent, the rest as often as it may be."""
    late = again = 0
    for _ in range(rounds(1, 10)):
        plan = draw_plan(rounds(300, 500))
        with upstreams(plan, pki) as found:
            running = sidecar(*routes(found, pki))

            def end(plan: Plan = plan, running: Sidecar = running) -> None:
                running.wait_for(lambda: sum(bool(call.ended) for call in plan.calls) > len(plan.calls) / 3)
                running.signal(signal.SIGTERM)

            with ThreadPoolExecutor(1) as other:
                ending = other.submit(end)
                carry_out(plan, running.listener, found, LeftDriver)
                ending.result()
            assert running.process.wait(40) == 0
            for name, upstream in found.items():
                upstream.wait_quiet()
                assert upstream.unknown == 0
                for call in plan.calls:
                    arrivals = upstream.arrivals.get(call.name, [])
                    if call.host != f"{name}.test":
                        continue
                    if call.ended == "never" or (call.ended == "cut" and not arrivals):
                        assert not arrivals, call
                        late += 1
                    else:
                        again += judge_aloud(call, arrivals, False)
    print(f"{late} calls came too late, {again} were sent again")
    assert late > 0


class FirstOpened(Fate):
    """The first connections end together with the handshake, before any request can have been written."""

    def __init__(self, often: int) -> None:
        self._often = often

    def of_connection(self, number: int) -> Death | None:
        return Death("opened", "notify") if number <= self._often else None


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_of_which_nothing_was_written_goes_out_on_another_connection(
    method: str, tls: TlsVersion, sidecar: StartSidecar, pki: Pki
) -> None:
    """A connection that ends as soon as it is open: whatever the method is, the caller notices nothing."""
    with mortal(pki.upstream, pki.trust, FirstOpened(1), tls=tls) as upstream:
        running = start(sidecar, upstream, pki)
        answer = running.call(method, "http://orders.test/call", b"body" if method == "POST" else None)
        assert (answer.status, answer.body) == (200, b"call")
        [arrival] = upstream.arrivals["call"]
        assert arrival.executed
        assert upstream.connections == 2
        assert running.outcomes("orders") == {"ok": 2}
        assert retries(running) == 0  # it was sent once


def test_connections_are_not_opened_for_one_request_without_end(sidecar: StartSidecar, pki: Pki) -> None:
    """Two connections that end at once are enough: 502, and the answer says that nothing was sent."""
    with mortal(pki.upstream, pki.trust, FirstOpened(100), tls="1.3") as upstream:
        running = start(sidecar, upstream, pki)
        answer = running.call("POST", "http://orders.test/call", b"body")
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_closed")
        assert "No byte of the request was sent" in answer.text
        assert upstream.connections == 2
        assert not upstream.arrivals


class Crossing(Fate):
    """Every connection ends when the head of its second request is on its way, or partly read."""

    def __init__(self, way: Way, at: int) -> None:
        self._death = Death("head", way, at)

    def of_next(self, connection: int, place: int) -> Death | None:
        return self._death if place == 2 else None


@pytest.mark.parametrize("at", [0, 1, 50])
@pytest.mark.parametrize("way", ALL_WAYS)
def test_end_that_crosses_a_request_is_hidden_only_where_that_is_safe(
    way: Way, at: int, sidecar: StartSidecar, pki: Pki
) -> None:
    """GET goes out once more, on a fresh connection; of a POST the caller is told that it may have been
    processed, as nobody can know."""
    with mortal(pki.upstream, pki.trust, Crossing(way, at)) as upstream:
        running = start(sidecar, upstream, pki)
        with Caller(running.listener) as caller:
            for name in ("first", "second"):
                assert caller.get(f"http://orders.test/{name}").body == name.encode()
            answer = caller.call("POST", "http://orders.test/third", b"body")
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_closed")
        assert "the request may have been processed" in answer.text
        upstream.wait_quiet()
        places = {name: [each.place for each in found] for name, found in upstream.arrivals.items()}
        assert places == {"first": [1], "second": [2, 1], "third": [2]}
        assert retries(running) == 1


@pytest.mark.parametrize("point", ["interim", "answer head"])
def test_request_is_not_sent_again_once_anything_was_said_to_it(
    point: Point, sidecar: StartSidecar, pki: Pki
) -> None:
    """A 103, or one byte of a head, on a reused connection that then ends: 502 for a GET too."""

    class Speaking(Fate):
        def of_request(self, name: str, turn: int) -> Death | None:
            return Death(point, "fin") if name == "second" else None

    with mortal(pki.upstream, pki.trust, Speaking()) as upstream:
        running = start(sidecar, upstream, pki)
        assert running.get("http://orders.test/first").status == 200
        with talking(running.listener, b"GET /second HTTP/1.1\r\nHost: orders.test\r\n\r\n") as talker:
            answer = talker.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_closed")
        assert answer.interim == ([103] if point == "interim" else [])
        [arrival] = upstream.arrivals["second"]
        assert arrival.place == 2
        assert retries(running) == 0


# -- the upstream's own limit ------------------------------------------------------------------------------


class Impatient(Fate):
    """Says for how many seconds it keeps an idle connection, and resets it then."""

    def __init__(self, says: int) -> None:
        self.patience = float(says)
        self._says = says

    def reply(self, name: str) -> Reply:
        fields = b"Keep-Alive: timeout=%d\r\nContent-Length: %d" % (self._says, len(name))
        return Reply(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n%b\r\n\r\n" % fields, name.encode())


def test_connection_is_left_before_the_upstream_resets_it(sidecar: StartSidecar, pki: Pki) -> None:
    """POSTs, which would never be sent again, at all distances around `Keep-Alive: timeout=2`: none fails,
    and no connection is used later than a second after its last answer, nor lives to see its reset."""
    pauses = [0.2, 1.2, 1.5, 1.9, 1.98, 2.0, 2.02, 2.2]
    with mortal(pki.upstream, pki.trust, Impatient(2)) as upstream:
        # a route for each pause: with one pool for all, each call would find another's fresh connection
        running = sidecar(*(route(f"r{number}", upstream, trust=pki.trust) for number in range(len(pauses))))

        def call(number: int) -> list[Answer]:
            answers = []
            with Caller(running.listener) as caller:
                for name in (f"a{number}", f"b{number}", f"c{number}"):
                    answers.append(caller.call("POST", f"http://r{number}.test/{name}", b"body"))
                    time.sleep(pauses[number])
            return answers

        with ThreadPoolExecutor(len(pauses)) as callers:
            for number, answers in enumerate(callers.map(call, range(len(pauses)))):
                names = [f"a{number}", f"b{number}", f"c{number}"]
                assert [(each.status, each.text) for each in answers] == [(200, name) for name in names]
                connections = {each.connection for name in names for each in upstream.arrivals[name]}
                assert len(connections) == (1 if pauses[number] < 1 else 3), pauses[number]
        assert not upstream.deaths


@pytest.mark.parametrize("says", [0, 1])
def test_connection_for_which_there_is_no_margin_is_not_kept(
    says: int, sidecar: StartSidecar, pki: Pki
) -> None:
    """`Keep-Alive: timeout=1` or 0: each call takes a connection of its own."""
    with mortal(pki.upstream, pki.trust, Impatient(says)) as upstream:
        running = start(sidecar, upstream, pki)
        with Caller(running.listener) as caller:
            for number in range(1, 6):
                assert caller.call("POST", f"http://orders.test/e{number}", b"body").status == 200
                assert upstream.connections == number
        running.wait_for(
            lambda: running.metric("sidecert_upstream_connections", route="orders", state="idle") == 0
        )
