"""A caller that leaves, at whatever point of an exchange and in whatever way: nobody hangs, nothing is left
open, and no upstream connection that it has half used is given to anybody else."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack

import pytest

from support.certs import Pki
from support.clients import Talker
from support.leaving import LONG, WAYS, Stage, Visit, Way, check_call, leave, request, rest
from support.lengths import rounds
from support.peers import Peers
from support.sidecar import NO_CIRCUIT, Sidecar, StartSidecar, route

IN_PROGRESS = "sidecert_requests_in_progress"
CONNECTED = "sidecert_downstream_connections"
POOLED = "sidecert_upstream_connections"
BODY = 100_000


class Scene:
    """A running sidecar, an upstream that holds calls, one that cannot be reached and one that is silent."""

    def __init__(self, sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
        self.stage = Stage()
        self.upstream = peers.recorder(answer=self.stage)
        spare = {"trust": pki.trust, "circuit": NO_CIRCUIT}
        far, mute = peers.black_hole(), peers.silent()
        self.running: Sidecar = sidecar(
            route("orders", self.upstream, **spare),
            route("far", far, **spare, timeouts={"connect": "30s"}),
            route("mute", mute, **spare, timeouts={"handshake": "30s"}),
            route("far-brief", far, **spare, timeouts={"connect": "300ms"}),
            route("mute-brief", mute, **spare, timeouts={"handshake": "300ms"}),
        )
        check_call(self.running.listener, self.stage)
        self.descriptors = self.running.descriptors() - self._idle()
        self.calls = self._counted()

    def talker(self) -> Talker:
        return Talker(self.running.listener)

    def _idle(self) -> int:
        return int(self.running.metric(POOLED, route="orders", state="idle") or 0)

    def _counted(self) -> float:
        """Calls to orders that have ended."""
        return sum(
            value
            for (name, labels), value in self.running.metrics().items()
            if name == "sidecert_requests_total" and ("route", "orders") in labels
        )

    def check_quiet(self, what: object) -> None:
        """Waits until no call is under way, no caller is connected and no descriptor is left over."""
        self.running.wait_for(self._is_quiet, 10, f"something is left of: {what}")
        self.running.wait_for(
            lambda: self.running.descriptors() - self._idle() <= self.descriptors,
            10,
            f"a descriptor is left of: {what}",
        )

    def _is_quiet(self) -> bool:
        return not any(
            value
            for (name, labels), value in self.running.metrics().items()
            if name in (IN_PROGRESS, CONNECTED) or (name == POOLED and ("state", "active") in labels)
        )

    def check_calls(self, count: int, what: object) -> None:
        """So many calls to orders have been counted since the last time."""
        self.calls += count
        assert self._counted() == self.calls, what

    def check_next(self) -> int:
        self.calls += 1
        return check_call(self.running.listener, self.stage)


@pytest.fixture
def scene(sidecar: StartSidecar, peers: Peers, pki: Pki) -> Scene:
    return Scene(sidecar, peers, pki)


def _first_bytes(scene: Scene, way: Way, sent: bytes) -> None:
    """Leaves after those bytes, which are no whole head: that was no call, and gets no answer."""
    with scene.talker() as talker:
        talker.send(sent)
        leave(talker, way)
        if way == "half":
            assert rest(talker) == b""
    scene.check_quiet((way, sent))
    scene.check_calls(0, (way, sent))


def test_caller_leaves_before_its_head_is_whole(scene: Scene) -> None:
    """After no byte, after each of some, on a new connection and on one that has had an answer."""
    whole = request("echo", "never")
    for way in WAYS:
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            _first_bytes(scene, way, whole[:size])
            with scene.talker() as talker:
                talker.send(request("echo", scene.stage.token()))
                assert talker.read_answer().status == 200
                talker.send(whole[:size])
                leave(talker, way)
                if way == "half":
                    assert rest(talker) == b""
            scene.check_quiet((way, size))
            scene.check_calls(1, (way, size))
    assert not scene.stage.came("never")
    assert scene.check_next() == 1, "the first connection to the upstream has been kept all along"


def _leave_in_body(scene: Scene, way: Way, head: bytes, visit: Visit) -> None:
    with scene.talker() as talker:
        talker.send(head)
        assert visit.here.wait(10)
        leave(talker, way)
        if way == "half":
            assert rest(talker) == b"", "there is nothing to answer: the rest will never come"
    scene.check_quiet((way, head[-20:]))
    scene.check_calls(1, (way, head[-20:]))
    scene.running.wait_for(lambda: visit.cut, 10, "the upstream must not take it for whole")
    assert scene.check_next() != visit.connection


def test_caller_leaves_in_the_body(scene: Scene) -> None:
    """With some of it sent, framed by length and by chunks: the upstream sees the request cut, and its
    connection is used no more."""
    for way in WAYS:
        for size in (0, 1, BODY - 1):
            token = scene.stage.token()
            head = request("body", token, body=BODY)
            _leave_in_body(scene, way, head + b"x" * size, scene.stage.visit(token))
        for part in (b"", b"5\r\nab", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0\r\n"):
            token = scene.stage.token()
            head = request("body", token, body=0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            _leave_in_body(scene, way, head + part, scene.stage.visit(token))


def test_caller_leaves_while_its_connection_is_opened(scene: Scene) -> None:
    """While the upstream is connected to, and in the handshake. A caller that is gone gives up its place at
    once; one that half-closes reads what came of it, and one that closes counts as such until then."""
    for where in ("far", "mute"):
        for way in WAYS:
            name = where if way == "rst" else f"{where}-brief"
            with scene.talker() as talker:
                talker.send(request("echo", "never", host=name))
                scene.running.wait_for(lambda name=name: scene.running.metric(IN_PROGRESS, route=name) == 1)
                leave(talker, way)
                if way == "half":
                    assert b" 504 " in rest(talker)[:20]
            scene.check_quiet((where, way))
    assert not scene.stage.came("never")


@pytest.mark.parametrize("step", ["wait", "part"])
def test_caller_leaves_before_or_in_its_answer(step: str, scene: Scene) -> None:
    """A reset ends the call and its upstream connection at once. A half-close changes nothing: the answer is
    whole. A close looks like one until the answer is written."""
    for way in WAYS:
        token = scene.stage.token()
        visit = scene.stage.visit(token)
        with scene.talker() as talker:
            talker.send(request(step, token))  # type: ignore[arg-type]
            assert visit.here.wait(10)
            if step == "part":
                assert talker.read_head().status == 200
                assert talker.read_exactly(1) == b"t"
            leave(talker, way)
            if way == "rst":
                scene.check_quiet((step, way))
            visit.go.set()
            if way == "half":
                assert rest(talker).endswith(token[step == "part" :].encode())
        scene.check_quiet((step, way))
        scene.check_calls(1, (step, way))
        after = scene.check_next()
        if way == "rst":
            assert after != visit.connection, "half an answer waits on it"


def test_caller_leaves_between_its_pipelined_calls(scene: Scene) -> None:
    """Three are sent at once; it leaves when the first is answered and the second waits. Half-closed, it gets
    all three; reset, the third is never begun."""
    for way in WAYS:
        tokens = [scene.stage.token() for _ in range(3)]
        second = scene.stage.visit(tokens[1])
        with scene.talker() as talker:
            steps = ("echo", "wait", "echo")
            talker.send(b"".join(request(step, token) for step, token in zip(steps, tokens, strict=True)))  # type: ignore[arg-type]
            assert talker.read_answer().body == tokens[0].encode()
            assert second.here.wait(10)
            leave(talker, way)
            if way == "rst":
                scene.check_quiet(way)
            second.go.set()
            if way == "half":
                assert talker.read_answer().body == tokens[1].encode()
                assert talker.read_answer().body == tokens[2].encode()
                assert talker.closed()
        scene.check_quiet(way)
        if way == "rst":
            assert not scene.stage.came(tokens[2])
            assert check_call(scene.running.listener, scene.stage) != second.connection
        else:
            check_call(scene.running.listener, scene.stage)


def test_caller_leaves_a_tunnel_before_it_is_open(scene: Scene) -> None:
    """It half-closes right behind its request, and the upstream agrees to the tunnel only then: it ends at
    once, on both sides."""
    for early in (b"", b"early"):
        token = scene.stage.token()
        with scene.talker() as talker:
            talker.send(request("late-tunnel", token) + early)
            assert scene.stage.visit(token).here.wait(10)
            leave(talker, "half")
            scene.check_next()  # whose turns of the loop come after that in which the end is read
            scene.stage.visit(token).go.set()
            assert rest(talker).endswith(token.encode())
        scene.check_quiet("a tunnel")
        scene.check_calls(1, "a tunnel")
        scene.running.wait_for(lambda token=token: scene.stage.visit(token).cut)
        assert scene.stage.visit(token).read == early


def test_caller_leaves_an_open_tunnel_and_a_refusal(scene: Scene) -> None:
    """The upstream's side of a tunnel ends too; a caller that was refused is waited for no longer."""
    for way in WAYS:
        token = scene.stage.token()
        with scene.talker() as talker:
            talker.send(request("tunnel", token))
            assert talker.read_head().status == 101
            assert talker.read_exactly(len(token)) == token.encode()
            leave(talker, way)
            if way == "half":
                rest(talker)
        scene.check_quiet(("tunnel", way))
        scene.check_calls(1, ("tunnel", way))
        scene.running.wait_for(lambda token=token: scene.stage.visit(token).cut)
        with scene.talker() as talker:
            talker.send(b"what is this\r\n\r\n")
            assert talker.read_answer().status == 400
            leave(talker, way)
            if way == "half":
                assert rest(talker) == b""
        scene.check_quiet(("refusal", way))
        scene.check_next()


# -- at random ---------------------------------------------------------------------------------------------

AT_ONCE = 25


def _some_call(scene: Scene, draw: random.Random) -> tuple[bytes, int]:
    """What a caller sends, and how many bytes of answers it reads, before it leaves."""
    token = scene.stage.token()
    kind = draw.choice(("head", "body", "echo", "long", "far", "mute", "piped", "tunnel", "bad"))
    if kind == "head":
        whole = request("echo", token)
        return whole[: draw.randrange(len(whole))], 0
    if kind == "body":
        return request("echo", token, body=BODY) + b"x" * draw.choice((0, 1, 1000, BODY - 1)), 0
    if kind in ("far", "mute"):
        return request("echo", token, host=f"{kind}-brief"), 0
    if kind == "piped":
        return request("echo", token) + request("long", token) * draw.randint(1, 3), draw.randrange(LONG)
    if kind == "bad":
        return b"\x00" * draw.randint(1, 100_000), 0
    step = "tunnel" if kind == "tunnel" else "long" if kind == "long" else "echo"
    return request(step, token), draw.choice((0, 0, 1, 40)) if step != "long" else draw.randrange(LONG)  # type: ignore[arg-type]


def _one_batch(scene: Scene, draw: random.Random) -> None:
    with ExitStack() as stack:
        talkers = []
        for _ in range(AT_ONCE):
            talker = stack.enter_context(scene.talker())
            sent, wanted = _some_call(scene, draw)
            talker.send(sent)
            talkers.append((talker, wanted, draw.choice(WAYS)))
        for talker, wanted, way in talkers:
            try:
                if wanted:
                    talker.read_exactly(wanted)
                leave(talker, way)
            except (EOFError, OSError):
                pass  # it has been refused, or had less to read than it thought
        for talker, _, way in talkers:
            if way == "half":
                rest(talker)


def _stay(scene: Scene, done: threading.Event, troubles: list[BaseException], made: list[int]) -> None:
    try:
        while not done.is_set():
            made.append(
                check_call(scene.running.listener, scene.stage, "long" if len(made) % 5 == 0 else "echo")
            )
    except BaseException as exc:
        troubles.append(exc)


@pytest.mark.long_form(seconds=600)
def test_callers_that_leave_at_random_harm_nobody_who_stays(scene: Scene) -> None:
    """300 in the short form, 10,000 in the long one, 25 at a time: each call of those who stay gets its own
    answer, and in the end nothing is left."""
    draw = random.Random(5)
    done, troubles, made = threading.Event(), list[BaseException](), list[int]()
    _one_batch(scene, draw)
    before = scene.running.resident()
    staying = threading.Thread(target=_stay, args=(scene, done, troubles, made))
    staying.start()
    try:
        for _ in range(rounds(12, 400)):
            _one_batch(scene, draw)
            assert not troubles
    finally:
        done.set()
        staying.join()
    assert not troubles
    assert len(made) > 10
    scene.check_quiet("the callers at random")
    scene.check_next()
    grown = scene.running.resident() - before
    print(f"{len(made)} calls of those who stayed; resident memory grew by {grown / 1e6:.1f} MB")
    assert grown < 40e6
