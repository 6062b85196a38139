"""A request or an answer that could be read in two ways is refused, or passed on in the one it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.both_ends import Cut, whole
from support.certs import Pki
from support.clients import Address, Talker
from support.lengths import rounds
from support.peers import Peer, Peers
from support.readers import Ended, Reply, answers_in, canonical, check_head, methods_in, requests_in
from support.recorder import Exchange, head
from support.sidecar import config, route, running
from support.smuggled_answers import ANSWERS, BAD, AnswerCase
from support.smuggling import KNOWN, REQUESTS, SECOND, UNFINISHED, Case, filled
from support.wire import at_line_ends

PATIENCE = 20.0
HOSTS = {"nginx": b"up-a.test", "haproxy": b"up-b.test", "python": b"up-c.test"}
INNOCENT = SECOND.replace(b"second--", b"innocent")
CASES = [*REQUESTS, *KNOWN]


class RawBytes:
    """What the recorder got, byte for byte, by its connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.whole: list[tuple[int, str, bytes]] = []
        """(connection, target, all bytes) of each request that has come in full."""
        self.begun: list[tuple[str, bytes]] = []
        """(target, head) of each request whose head has come."""

    def answer(self, exchange: Exchange) -> None:
        """Its target and its connection, once it has come in full."""
        seen = exchange.seen
        with self._lock:
            self.begun.append((seen.target, seen.raw_head))
        if (seen.header("Expect") or "").lower() == "100-continue":
            exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = exchange.read_raw_body()
        with self._lock:
            self.whole.append((seen.connection, seen.target, seen.raw_head + body))
        if seen.target.startswith("/answer-"):
            self._answer_badly(exchange, ANSWERS[int(seen.target.rpartition("-")[2])])
            return
        content = seen.target.encode()
        fields = ("Content-Length", str(len(content))), ("X-Target", seen.target)
        exchange.send(head(200, *fields) + (b"" if seen.method == "HEAD" else content))

    @staticmethod
    def _answer_badly(exchange: Exchange, case: AnswerCase) -> None:
        exchange.send(case.wire)
        if case.end == "close":
            exchange.finish()
        elif case.end == "cut":
            exchange.cut()

    def take(self) -> list[tuple[int, str, bytes]]:
        """All that has come since the last `take`."""
        with self._lock:
            taken, self.whole = self.whole, []
            self.begun = []
        return taken

    def of(self, mark: str) -> list[tuple[int, str, bytes]]:
        with self._lock:
            return [each for each in self.whole if mark in each[1]]


@dataclass
class Played:
    """One case as its caller saw it. `innocent` is what somebody else was answered right afterwards."""

    case: Case
    token: bytes
    replies: list[Reply]
    innocent: Reply

    @property
    def ups(self) -> list[Reply]:
        """The answers that came from the upstream."""
        return [reply for reply in self.replies if reply.value(b"sidecert-outcome") is None]


@dataclass
class Stage:
    """One sidecar before nginx, haproxy and a recorder; its second listener is a unix socket."""

    listeners: list[Address]
    raw: RawBytes
    programs: dict[str, Peer]

    def targets(self, kind: str, token: bytes, count: int) -> list[str]:
        """The targets that have arrived there, once there are `count` of this play's innocent ones."""
        if kind == "python":
            return [target for _, target, _ in self.raw.of(token.decode())]
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = [arrival.target for arrival in self.programs[kind].arrivals()]
            seen = [target for target in seen if token.decode() in target]
            if sum(target.startswith("/innocent") for target in seen) == count:
                return seen
            assert time.monotonic() < deadline, f"{kind} has not logged all of {count} innocent calls"
            time.sleep(0.01)


def send(address: Address, wire: bytes, cut: Cut = whole) -> tuple[bytes, Ended]:
    """Sends it, says that nothing more will come, and gives what came back and how that ended."""
    data = b""
    with Talker(address, PATIENCE) as talker:
        try:
            for piece in cut(wire):
                talker.send(piece)
            talker.shutdown_write()
        except OSError:
            pass  # refused, and closed, before all of it was sent
        try:
            while piece := talker.sock.recv(65536):
                data += piece
        except ConnectionResetError:
            return data, "reset"
    return data, "close"


def play(stage: Stage, kind: str, letter: bytes, listener: int, cut: Cut) -> list[Played]:
    """Each case, and behind each an innocent call on a connection of its own."""
    tcp, host = stage.listeners[0], HOSTS[kind]
    address = stage.listeners[listener]
    played = []
    for number, case in enumerate(CASES):
        token = b"%b-%06d" % (letter, number)
        data, ended = send(address, filled(case.wire, token, host), cut)
        replies = answers_in(data, (case.method, b"GET", b"GET"), ended)
        data, ended = send(tcp, filled(INNOCENT, token, host))
        [innocent] = answers_in(data, (b"GET",), ended)
        played.append(Played(case, token, replies, innocent))
    return played


@pytest.fixture(scope="module")
def stage(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("smuggling")
    raw = RawBytes()
    with ExitStack() as stack:
        peers = Peers(folder / "peers", stack, pki.upstream, pki.trust)
        programs = {"nginx": peers.nginx(), "haproxy": peers.haproxy()}
        upstreams = {**programs, "python": peers.recorder(answer=raw.answer)}
        routes = [
            route(kind, each, trust=pki.trust, host=HOSTS[kind].decode()) for kind, each in upstreams.items()
        ]
        listeners = [{"bind": "127.0.0.1:0"}, {"bind": "unix:in.sock"}]
        whole_config = config(routes, pki.credentials, listeners=listeners)
        sidecar = stack.enter_context(running(folder / "sidecar", whole_config))
        yield Stage(sidecar.listeners, raw, programs)


def check_said(one: Played) -> None:
    """The caller gets as many answers as the case says, each to its own request; so does who comes next."""
    own = b"/innocent-" + one.token
    assert one.innocent.status == 200
    assert own in one.innocent.body
    said = tuple("up" if reply in one.ups else reply.status for reply in one.replies)
    if one.case.says == UNFINISHED:
        assert said in ((), ("up",)), said
    else:
        assert said == one.case.says, said
    expected = [b"/" + one.token, b"/second---" + one.token]
    for reply, target in zip(one.replies, expected, strict=False):
        if reply in one.ups and reply.status == 200 and one.case.method != b"HEAD":
            assert target in reply.body, reply


def check_arrived(one: Played, targets: list[str]) -> None:
    """The upstream has seen what the caller got its answers to, in order, and never what was hidden."""
    seen = [target.partition(one.token.decode())[0] for target in targets if one.token.decode() in target]
    assert seen.count("/innocent-") == 1, seen
    assert not any("smuggled" in target for target in seen), seen
    seen.remove("/innocent-")
    if one.case.says == UNFINISHED:
        assert seen in ([], ["/"]), seen
        return
    first_is_through = bool(one.case.says) and one.case.says[0] == "up"
    expected = (["/"] if first_is_through else []) + ["/second---"]
    expected = expected[: len(one.ups)]
    # haproxy logs what it refuses itself (a name of 270 bytes) without its target
    refused = {place for place, reply in zip(expected, one.ups, strict=True) if reply.status == 400}
    assert [each for each in expected if each not in refused or each in seen] == seen, (expected, seen)


@pytest.mark.parametrize(
    ("kind", "letter", "listener", "cut"),
    [
        pytest.param("nginx", b"n", 0, whole, id="nginx"),
        pytest.param("haproxy", b"h", 0, whole, id="haproxy"),
        pytest.param("python", b"p", 0, whole, id="recorder"),
        pytest.param("python", b"q", 1, at_line_ends, id="recorder-in-pieces"),
    ],
)
def test_no_request_is_read_in_two_ways(
    stage: Stage, kind: str, letter: bytes, listener: int, cut: Cut
) -> None:
    """Refused, or forwarded with all that it means; the hidden request never arrives, and no answer goes
    to another call."""
    played = play(stage, kind, letter, listener, cut)
    targets = stage.targets(kind, letter + b"-", len(CASES))
    wrong: dict[str, str] = {}
    for one in played:
        near = [target for target in targets if one.token.decode() in target]
        try:
            check_said(one)
            check_arrived(one, near)
        except AssertionError as error:
            wrong[one.case.name] = str(error)
    assert not wrong


def test_what_arrives_is_framed_in_the_plainest_way(stage: Stage) -> None:
    """One framing header at most, and canonical; chunks without extensions; nothing behind its end."""
    before = len(stage.raw.whole)
    played = play(stage, "python", b"r", 0, whole)
    arrived = stage.raw.whole[before:]
    assert len(arrived) >= len(played)
    for _, target, data in arrived:
        [request] = canonical(data)
        assert request.target == target.encode()
    for _, raw_head in stage.raw.begun:
        check_head(raw_head)


def test_next_call_goes_over_the_same_connection(stage: Stage) -> None:
    """So that what a case leaves behind would meet the innocent call: the tests here can fail."""
    played = play(stage, "python", b"s", 0, whole)
    same = 0
    for one in played:
        if one.case.says == ("up", "up"):
            connections = {connection for connection, _, _ in stage.raw.of(one.token.decode())}
            assert len(connections) == 1, one.case.name
            same += 1
    assert same > 50


@pytest.mark.parametrize("minor", [0, 1])
def test_no_answer_is_read_in_two_ways(stage: Stage, minor: int) -> None:
    """It is 502, or cut, or has one body for every reader; what stands behind it is nobody's answer."""
    tcp, host = stage.listeners[0], HOSTS["python"]
    wrong: dict[str, str] = {}
    for number, case in enumerate(ANSWERS):
        token = b"%d-%06d" % (minor, number)
        asked = b"%b /answer-%b HTTP/1.%d\r\nHost: %b\r\n" % (case.method, token, minor, host)
        wire = asked + b"Connection: keep-alive\r\n\r\n" + filled(SECOND, token, host)
        data, ended = send(tcp, wire)
        innocent, innocent_ended = send(tcp, filled(INNOCENT, token, host))
        try:
            replies = answers_in(data, (case.method, b"GET"), ended)
            check_answer(case, replies, ended, token)
            [own] = answers_in(innocent, (b"GET",), innocent_ended)
            assert own.body == b"/innocent-" + token
            check_connections(stage, case, token.decode())
        except AssertionError as error:
            wrong[case.name] = str(error)
    assert not wrong


def check_answer(case: AnswerCase, replies: list[Reply], ended: Ended, token: bytes) -> None:
    """The caller has the one body of the case, or 502, or less than an answer; then the next call's own."""
    first, rest = replies[:1], replies[1:]
    if case.body is not BAD:
        assert [reply.body for reply in first] == [case.body]
        assert first[0].value(b"sidecert-outcome") is None
    elif first:
        assert (first[0].status, first[0].value(b"sidecert-outcome")) in BAD_OUTCOMES, first
    else:
        assert ended == "reset"  # a FIN would be the end of an answer
    assert [reply.body for reply in rest] in ([b"/second---" + token], [])
    if rest == []:
        assert ended == "reset" or first[0].value(b"connection") == b"close", replies


def check_connections(stage: Stage, case: AnswerCase, token: str) -> None:
    """What has brought an ambiguous answer, or more than one, is not used again."""
    connections = {target: number for number, target, _ in stage.raw.of(token)}
    later = {number for target, number in connections.items() if not target.startswith("/answer")}
    assert (connections[f"/answer-{token}"] in later) == case.kept, connections


BAD_OUTCOMES = ((502, b"upstream_bad_answer"), (502, b"upstream_closed"))


WIRES = [case.wire for case in CASES if len(case.wire) < 2000]
FRAGMENTS = sorted(
    {line + b"\r\n" for wire in WIRES for line in wire.split(b"\r\n") if len(line) < 300}
    | {b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b":", b";", b"0\r\n\r\n", b"\r\n\r\n", SECOND}
)
FUZZ_TOKEN = b"f-%06d"


@st.composite
def mixtures(draw: st.DrawFn) -> bytes:
    """Cases one behind the other, lines of others put into them, and pieces taken out."""
    wire = b"".join(draw(st.lists(st.sampled_from(WIRES), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(wire)))
        near = [place for place in (wire.find(b"\n", at) + 1, wire.rfind(b"\n", 0, at) + 1) if place > 0]
        at = draw(st.sampled_from([at, *near]))
        taken = draw(st.sampled_from([0, 0, 0, 1, 2, 20]))
        wire = wire[:at] + draw(st.sampled_from([b"", *FRAGMENTS])) + wire[at + taken :]
    return wire


@pytest.mark.long_form(seconds=1800)
def test_no_mixture_of_them_is_read_in_two_ways(stage: Stage) -> None:
    """What arrives is what the strictest reader finds in what was sent, from its beginning and in order; each
    of it is answered once, and whoever calls next gets the own answer."""
    host = HOSTS["python"]
    count = through = 0

    @settings(max_examples=rounds(300, 20_000), database=None, suppress_health_check=list(HealthCheck))
    @given(mixtures())
    @example(SECOND + SECOND)
    @example(SECOND + SECOND[:-2] + b"Transfer-Encoding: chunked\r\n\r\n")
    @example(SECOND + SECOND[:-2])
    @example(SECOND + SECOND.replace(b"GET", b"HEAD").replace(b"Host", b"ost") + SECOND)
    @example(SECOND + b"\r\n" + SECOND.replace(b"GET", b"HEAD").replace(b"Host", b"Ho st"))
    def mixed(wire: bytes) -> None:
        nonlocal count, through
        count += 1
        token = FUZZ_TOKEN % count
        stage.raw.take()
        wire = filled(wire, token, host)
        data, ended = send(stage.listeners[0], wire)
        innocent, innocent_ended = send(stage.listeners[0], filled(INNOCENT, token, host))
        [own] = answers_in(innocent, (b"GET",), innocent_ended)
        assert own.body == b"/innocent-" + token
        arrived = stage.raw.take()
        assert arrived.pop()[1] == f"/innocent-{token.decode()}"
        strictly, _ = requests_in(wire)
        sent = [(each.method, origin_form(each.target), each.body) for each in strictly]
        got = [(each.method, each.target, each.body) for _, _, raw in arrived for each in canonical(raw)]
        assert len(got) == len(arrived)
        places = iter(sent)
        assert all(each in places for each in got), (sent, got)
        through += len(got)
        replies = answers_in(data, methods_in(wire), ended)
        ups = [reply for reply in replies if reply.value(b"sidecert-outcome") is None]
        assert len(ups) == len(got), (ups, got)
        assert [reply.value(b"x-target") for reply in ups] == [target for _, target, _ in got]

    mixed()
    print(f"{count} mixtures, {through} requests arrived")
    assert through > count // 10


def origin_form(target: bytes) -> bytes:
    """The path and query of an absolute target; others as they are."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or target.startswith(b"/") or scheme.lower() not in (b"http", b"https"):
        return target
    return b"/" + rest.partition(b"/")[2]
