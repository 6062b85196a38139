"""From a host to a socket: which addresses are tried, in which order, and what is noted."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

import sidecert.connect
from sidecert.backlog import accept_queued
from sidecert.connect import NotConnected, _interleave, _is_private, _race, _resolve, connect
from sidecert.errors import Refusal
from sidecert.outcome import Ending, Observation, Stage
from support.clients import has_ipv6
from support.peers import black_hole, closed_port

V4, V6 = socket.AF_INET, socket.AF_INET6
FACTORIES = [asyncio.new_event_loop, uvloop.new_event_loop]


@dataclass
class Place:
    """As much of an upstream as `connect` looks at."""

    host: str
    port: int
    chosen_by_caller: bool = False
    private: bool = False
    limit: float = 5.0
    route: Any = field(init=False)

    def __post_init__(self) -> None:
        timeouts = SimpleNamespace(connect=self.limit)
        config = SimpleNamespace(upstream=SimpleNamespace(timeouts=timeouts), private=self.private)
        self.route = SimpleNamespace(config=config, id="orders")


@pytest.fixture(params=FACTORIES, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    def work(main: Callable[[], Awaitable[Any]]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main())  # type: ignore[arg-type]

    return work


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: Any) -> None:
    async def resolve(host: str, port: int, chosen_through: str | None) -> list[Any]:
        return [(V6 if ":" in host_ else V4, (host_, port_)) for host_, port_ in addresses]

    monkeypatch.setattr(sidecert.connect, "_resolve", resolve)


def attempt(run: Any, place: Place) -> tuple[Observation, Any]:
    """What was seen, and the peer's address or the error."""
    seen = Observation()

    async def main() -> Any:
        try:
            with await connect(place, seen) as sock:  # type: ignore[arg-type]
                assert not sock.getblocking()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                return sock.getpeername()
        except (NotConnected, Refusal) as error:
            return error

    return seen, run(main)


def test_connects(run: Any, listening: socket.socket) -> None:
    """A socket that does not block and sends at once; the address is noted."""
    seen, peer = attempt(run, Place("127.0.0.1", listening.getsockname()[1]))
    assert peer == listening.getsockname()
    assert (seen.stage, seen.addresses) == (Stage.CONNECTING, ("127.0.0.1",))


def test_refused(run: Any) -> None:
    """Nobody listens: refused, in the system's words."""
    with closed_port() as peer:
        seen, error = attempt(run, Place(peer.host, peer.port))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending, seen.error) == (Stage.CONNECTING, Ending.REFUSED, "Connection refused")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH])
def test_what_this_machine_lacks_is_told_from_what_the_network_says(
    number: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor, or a port to call from; an upstream that is not reached is something else."""

    async def end(address: Any) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sidecert.connect, "_attempt", end)
    seen, failure = attempt(run, Place("127.0.0.1", 1))
    assert isinstance(failure, NotConnected)
    assert (seen.ending, seen.error) == (Ending.FAILED, os.strerror(number))
    assert seen.ours is (number != errno.EHOSTUNREACH)


@pytest.mark.parametrize("lacking", [False, True])
def test_lookup_without_descriptors_is_no_missing_name(
    lacking: bool, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """getaddrinfo says in both cases that there is no such name."""

    def find(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find)
    if lacking:
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        monkeypatch.setattr(sidecert.connect, "_lack_of_descriptors", lambda: error)
    seen, failure = attempt(run, Place("orders.test", 1))
    assert isinstance(failure, NotConnected)
    assert seen.ours is lacking
    assert seen.stage is (Stage.CONNECTING if lacking else Stage.RESOLVING)
    assert seen.error == (os.strerror(errno.EMFILE) if lacking else "Name or service not known")


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError])
def test_connection_that_was_ended_before_we_looked_is_a_reset(
    error: type[OSError], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so of a connection that stood; one that did not is refused or fails."""

    async def end(address: Any) -> socket.socket:
        raise error("ended")

    monkeypatch.setattr(sidecert.connect, "_attempt", end)
    seen, failure = attempt(run, Place("127.0.0.1", 1))
    assert isinstance(failure, NotConnected)
    assert (seen.stage, seen.ending) == (Stage.CONNECTING, Ending.RESET)
    assert seen.error


def test_timeout(run: Any) -> None:
    """No answer within `connect`: timed out, and not much later."""
    with black_hole() as peer:
        began = time.monotonic()
        seen, error = attempt(run, Place(peer.host, peer.port, limit=0.2))
        assert 0.15 < time.monotonic() - began < 2
    assert isinstance(error, NotConnected)
    assert (seen.ending, seen.timeout) == (Ending.TIMEOUT, 0.2)


def test_slow_name_server_is_a_timeout_while_resolving(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` covers the look-up too."""

    async def never(host: str, port: int, chosen_through: str | None) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(sidecert.connect, "_resolve", never)
    seen, error = attempt(run, Place("slow.test", 1, limit=0.05))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending) == (Stage.RESOLVING, Ending.TIMEOUT)


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> list[str]:
    """Lets `answer` stand in for the name servers; the hosts that they are asked for."""
    asked: list[str] = []
    original = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        return [each for address in answer(host) for each in original(address, port, **more)]

    monkeypatch.setattr(sidecert.connect.socket, "getaddrinfo", getaddrinfo)
    return asked


def unknown(host: str) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_name_that_does_not_resolve(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended while resolving, in the resolver's words."""
    answer_with(monkeypatch, unknown)
    seen, error = attempt(run, Place("unknown.test", 1))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending) == (Stage.RESOLVING, Ending.FAILED)
    assert seen.error == "Name or service not known"
    assert seen.addresses == ()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
def test_what_is_no_name_does_not_resolve(run: Any, host: str) -> None:
    """An empty or too long label: not an error of our own."""
    seen, error = attempt(run, Place(host, 1))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending, seen.error) == (Stage.RESOLVING, Ending.FAILED, "not a host name")


def test_name_without_an_address_does_not_connect(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that answers with nothing."""
    answer_with(monkeypatch, lambda host: [])
    seen, error = attempt(run, Place("empty.test", 1))
    assert isinstance(error, NotConnected)
    assert (seen.ending, seen.error) == (Ending.FAILED, "the host has no address")


def test_address_is_used_as_it_is(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread is spent on what no name server is asked for."""
    monkeypatch.setattr(sidecert.connect, "start_thread", None)
    _, peer = attempt(run, Place("127.0.0.1", listening.getsockname()[1]))
    assert peer == listening.getsockname()


def test_same_address_twice_is_tried_once(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name servers and hosts files repeat themselves."""
    answer_with(monkeypatch, lambda host: ["127.0.0.1", "127.0.0.1"])
    seen, _ = attempt(run, Place("twice.test", listening.getsockname()[1]))
    assert seen.addresses == ("127.0.0.1",)


def test_name_is_asked_for_once_by_all_who_want_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who leaves early takes it from nobody else."""
    may_answer = threading.Event()

    def answer(host: str) -> list[str]:
        assert may_answer.wait(10)
        return ["192.0.2.1"]

    asked = answer_with(monkeypatch, answer)

    async def main() -> None:
        tasks = [asyncio.ensure_future(_resolve("slow.test", 1, None)) for _ in range(3)]
        while not asked:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        may_answer.set()
        found = await asyncio.gather(*tasks[1:])
        assert found == [[(V4, ("192.0.2.1", 1))]] * 2
        assert asked == ["slow.test"]
        await _resolve("slow.test", 1, None)
        assert asked == ["slow.test"] * 2  # nothing is kept

    run(main)


def test_name_that_hangs_holds_up_no_other(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten dead names: the eleventh is answered while they hang."""
    may_answer = threading.Event()

    def answer(host: str) -> list[str]:
        assert host == "good.test" or may_answer.wait(10)
        return ["192.0.2.1"]

    answer_with(monkeypatch, answer)

    async def main() -> None:
        hanging = [asyncio.ensure_future(_resolve(f"dead{n}.test", 1, None)) for n in range(10)]
        try:
            async with asyncio.timeout(5):
                assert await _resolve("good.test", 1, None) == [(V4, ("192.0.2.1", 1))]
            assert not any(each.done() for each in hanging)
        finally:
            may_answer.set()
            await asyncio.gather(*hanging)

    run(main)


def test_number_of_names_that_hang_is_bounded(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers choose hosts through wildcards: not how many threads there are, nor whom else they stop."""
    may_answer = threading.Event()

    def answer(host: str) -> list[str]:
        assert host == "good.test" or may_answer.wait(10)
        return ["192.0.2.1"]

    answer_with(monkeypatch, answer)
    monkeypatch.setattr(sidecert.connect, "_MOST_CHOSEN", 3)
    good = [(V4, ("192.0.2.1", 1))]

    async def main() -> None:
        hanging = [asyncio.ensure_future(_resolve(f"dead{n}.test", 1, "wild")) for n in range(3)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(Refusal) as caught:
                await _resolve("more.test", 1, "wild")
            assert (caught.value.outcome, caught.value.status) == ("overloaded", 503)
            assert "3 names that callers chose through route wild" in caught.value.detail
            assert caught.value.retry_after == 1
            hanging.append(asyncio.ensure_future(_resolve("dead0.test", 1, "wild")))  # asks for no more
            assert await _resolve("good.test", 1, "wild-too") == good
            assert await _resolve("good.test", 1, None) == good
        finally:
            may_answer.set()
            await asyncio.gather(*hanging)
        assert await _resolve("more.test", 1, "wild") == good

    run(main)


def test_names_of_the_config_that_hang_are_bounded_too(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At far more than have ever been dead at once, and in words of their own."""
    may_answer = threading.Event()

    def answer(host: str) -> list[str]:
        assert may_answer.wait(10)
        return ["192.0.2.1"]

    answer_with(monkeypatch, answer)
    monkeypatch.setattr(sidecert.connect, "_MOST_CONFIGURED", 2)

    async def main() -> None:
        hanging = [asyncio.ensure_future(_resolve(f"dead{n}.test", 1, None)) for n in range(2)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(Refusal, match="look-ups of 2 names of the config"):
                await _resolve("more.test", 1, None)
        finally:
            may_answer.set()
            await asyncio.gather(*hanging)

    run(main)


def test_only_hosts_that_a_caller_chose_count_as_such(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` says through which route; a host in the config was chosen by nobody."""
    chosen: list[str | None] = []

    async def resolve(host: str, port: int, chosen_through: str | None) -> list[Any]:
        chosen.append(chosen_through)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(sidecert.connect, "_resolve", resolve)
    attempt(run, Place("a.test", 1))
    attempt(run, Place("a.test", 1, chosen_by_caller=True))
    assert chosen == [None, "orders"]


def test_failed_look_up_is_not_remembered(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server is back: so is the upstream."""
    answers = [[], ["192.0.2.1"]]
    answer_with(monkeypatch, lambda host: answers.pop(0) or unknown(host))

    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await _resolve("flaky.test", 1, None)
        assert await _resolve("flaky.test", 1, None) == [(V4, ("192.0.2.1", 1))]

    run(main)


def test_next_address_is_tried_when_one_is_refused(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead address in front costs nothing."""
    with closed_port() as dead:
        resolve_to(monkeypatch, ("127.0.0.1", dead.port), listening.getsockname())
        began = time.monotonic()
        seen, peer = attempt(run, Place("two.test", 0))
    assert peer == listening.getsockname()
    assert time.monotonic() - began < 1
    assert len(seen.addresses) == 2


def test_next_address_is_tried_beside_one_that_does_not_answer(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent address in front costs a quarter of a second, not the whole limit."""
    with black_hole() as mute:
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), listening.getsockname())
        began = time.monotonic()
        _, peer = attempt(run, Place("two.test", 0))
        assert 0.2 < time.monotonic() - began < 2
    assert peer == listening.getsockname()


def test_all_addresses_dead(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one is tried, at once after the one before has failed; the last failure is what is told."""
    with closed_port() as one, closed_port() as two:
        resolve_to(monkeypatch, ("127.0.0.1", one.port), ("127.0.0.2", one.port), ("127.0.0.1", two.port))
        began = time.monotonic()
        seen, error = attempt(run, Place("three.test", 0))
        assert time.monotonic() - began < 2
    assert isinstance(error, NotConnected)
    assert (seen.ending, seen.addresses) == (Ending.REFUSED, ("127.0.0.1", "127.0.0.2", "127.0.0.1"))


def test_limit_is_for_all_addresses_together(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused one among silent ones changes nothing: there may still be an answer."""
    with black_hole() as mute, closed_port() as dead:
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", dead.port), ("127.0.0.1", mute.port))
        seen, error = attempt(run, Place("three.test", 0, limit=0.4))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending, seen.timeout) == (Stage.CONNECTING, Ending.TIMEOUT, 0.4)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize(("alive", "order"), [(V4, (V6, V4)), (V6, (V4, V6)), (V6, (V6, V4)), (V4, (V4, V6))])
def test_either_family_is_enough(alive: int, order: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the resolver names first, and whichever of the two is dead."""
    loopback = {V4: "127.0.0.1", V6: "::1"}
    with socket.create_server((loopback[alive], 0), family=alive) as sock:  # type: ignore[arg-type]
        port = sock.getsockname()[1]
        resolve_to(monkeypatch, *((loopback[family], port) for family in order))
        seen, peer = attempt(run, Place("both.test", port))
    assert peer[:2] == (loopback[alive], port)
    assert seen.addresses == tuple(loopback[family] for family in order)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """The sockets that are made for connecting; at the end all are closed."""
    made: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if len(arguments) == 3 and not named:  # the event loop makes its own in other ways
                made.append(self)

    monkeypatch.setattr(sidecert.connect.socket, "socket", Noted)
    yield made
    monkeypatch.undo()
    assert [sock.fileno() for sock in made] == [-1] * len(made)


@pytest.mark.parametrize("addresses", [1, 2])
def test_cancelled_attempt_leaves_no_socket(
    addresses: int, run: Any, monkeypatch: pytest.MonkeyPatch, made: list[socket.socket]
) -> None:
    """The caller leaves while we connect: every socket is closed, no task is left."""
    monkeypatch.setattr(sidecert.connect, "_STAGGER", 0.001)

    async def main() -> None:
        task = asyncio.ensure_future(connect(Place("silent.test", 0), Observation()))  # type: ignore[arg-type]
        while len(made) < addresses:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        assert len(asyncio.all_tasks()) == 1

    with black_hole() as peer:
        resolve_to(monkeypatch, *[("127.0.0.1", peer.port)] * addresses)
        run(main)
    assert len(made) == addresses


def test_limit_that_passes_leaves_no_socket(
    run: Any, monkeypatch: pytest.MonkeyPatch, made: list[socket.socket]
) -> None:
    """Neither does a refusal beside it."""
    monkeypatch.setattr(sidecert.connect, "_STAGGER", 0.001)
    with black_hole() as mute, closed_port() as dead:
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", dead.port))
        attempt(run, Place("silent.test", 0, limit=0.1))
    assert len(made) == 2


def test_attempts_that_lost_leave_no_socket(
    run: Any, monkeypatch: pytest.MonkeyPatch, made: list[socket.socket], listening: socket.socket
) -> None:
    """One silent, one that answers: only the socket that is given back is open."""
    monkeypatch.setattr(sidecert.connect, "_STAGGER", 0.001)

    async def main() -> None:
        with await connect(Place("two.test", 0), Observation()) as sock:  # type: ignore[arg-type]
            assert [each.fileno() for each in made] == [-1, sock.fileno()]
            assert len(asyncio.all_tasks()) == 1

    with black_hole() as mute:
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), listening.getsockname())
        run(main)


def test_of_two_that_connect_in_one_moment_one_is_closed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is lost, neither is open for nothing."""
    monkeypatch.setattr(sidecert.connect, "_STAGGER", 0.0)
    sockets: list[socket.socket] = []

    async def main() -> None:
        both = asyncio.Event()

        async def connected(address: Any) -> socket.socket:
            sockets.append(socket.socket())
            if len(sockets) == 2:
                both.set()
            await both.wait()
            return sockets[address]

        monkeypatch.setattr(sidecert.connect, "_attempt", connected)
        with await _race([0, 1]) as won:  # type: ignore[list-item]
            assert sorted(sock.fileno() for sock in sockets) == [-1, won.fileno()]

    run(main)


def test_caller_that_leaves_while_the_losers_end_leaves_no_socket(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket that has won goes to nobody then."""
    monkeypatch.setattr(sidecert.connect, "_STAGGER", 0.0)
    won = socket.socket()

    async def main() -> None:
        loses, may_end = asyncio.Event(), asyncio.Event()

        async def connected(address: Any) -> socket.socket:
            if address == "quick":
                await asyncio.sleep(0.001)
                return won
            try:
                await may_end.wait()
            finally:
                loses.set()
                await asyncio.sleep(0.01)
            raise OSError

        monkeypatch.setattr(sidecert.connect, "_attempt", connected)
        race = asyncio.ensure_future(_race(["slow", "quick"]))  # type: ignore[list-item]
        await loses.wait()
        race.cancel()
        await asyncio.wait((race,))
        assert race.cancelled()

    try:
        run(main)
        assert won.fileno() == -1
    finally:
        won.close()


def test_error_of_our_own_is_no_failure_of_the_network(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised as what it is, and blamed on nobody."""

    async def broken(address: Any) -> socket.socket:
        raise ZeroDivisionError

    monkeypatch.setattr(sidecert.connect, "_attempt", broken)
    with pytest.raises(ZeroDivisionError):
        run(lambda: _race([1, 2]))  # type: ignore[list-item]


def test_families_take_turns() -> None:
    """RFC 8305: the resolver's first family first, then one of each; none is lost."""
    six = [(V6, (f"::{n}", 1, 0, 0)) for n in range(3)]
    four = [(V4, (f"10.0.0.{n}", 1)) for n in range(2)]
    assert _interleave([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]
    assert _interleave([*four, *six]) == [four[0], six[0], four[1], six[1], six[2]]
    assert _interleave([]) == []


PRIVATE = {
    "unspecified": "0.0.0.0 0.1.2.3 ::",
    "loopback": "127.0.0.0 127.0.0.1 127.255.255.255 ::1",
    "private": "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255 fc00:: fdff::1",
    "link-local": "169.254.0.0 169.254.169.254 169.254.255.255 fe80:: fe80::1%eth0 febf::1",
    "site-local": "fec0::1 feff::1",
    "shared by a provider's customers": "100.64.0.0 100.127.255.255",
    "multicast": "224.0.0.1 239.255.255.250 232.1.1.1 ff02::1 ff05::2 ff0e::1",
    "reserved": "192.0.0.1 240.0.0.1 255.255.255.255 100::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1",
    "benchmarks": "198.18.0.1 198.19.255.255",
    "IPv4-mapped": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 ::ffff:224.0.0.1",
    "IPv4-compatible": "::127.0.0.1 ::10.0.0.1",
    "NAT64": "64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::0.0.0.0",
    "NAT64 inside a network": "64:ff9b:1::8.8.8.8 64:ff9b:1::10.0.0.1",
    "6to4": "2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101:: 2002:a9fe:a9fe:: 2002:e000:1::",
    "Teredo": "2001:: 2001::1 2001:0:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2",
}
PUBLIC = {
    "IPv4": "8.8.8.8 1.1.1.1 223.255.255.255",
    "beside private ranges": "9.255.255.255 11.0.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0",
    "beside loopback and link-local": "126.255.255.255 128.0.0.1 169.253.255.255 169.255.0.0",
    "beside shared": "100.63.255.255 100.128.0.0",
    "IPv6": "2606:4700::1 2a00:1450:4001::1 2001:4860:4860::8888",
    "wrapped": "::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::",
}


@pytest.mark.parametrize("addresses", PRIVATE.values(), ids=PRIVATE)
def test_private_address(addresses: str) -> None:
    """Loopback, link-local, private, shared, multicast, unusable; also wrapped into IPv6."""
    assert [address for address in addresses.split() if not _is_private(address)] == []


@pytest.mark.parametrize("addresses", PUBLIC.values(), ids=PUBLIC)
def test_public_address(addresses: str) -> None:
    """Addresses of the open network, also wrapped into IPv6, up to the edges of the others."""
    assert [address for address in addresses.split() if _is_private(address)] == []


def test_host_chosen_by_a_caller_may_not_be_private(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One private address among public ones is enough to refuse; nothing is connected to."""
    port = listening.getsockname()[1]
    resolve_to(monkeypatch, ("8.8.8.8", port), ("127.0.0.1", port))
    _, error = attempt(run, Place("chosen.test", port, chosen_by_caller=True))
    assert isinstance(error, Refusal)
    assert error.outcome == "private_address"
    assert "orders" in error.remedy
    assert "127.0.0.1" not in f"{error.detail} {error.remedy}"  # callers learn no addresses
    assert list(accept_queued(listening)) == []
    resolve_to(monkeypatch, ("127.0.0.1", port))
    _, peer = attempt(run, Place("chosen.test", port, chosen_by_caller=True, private=True))
    assert peer == listening.getsockname()
    _, peer = attempt(run, Place("written.test", port))
    assert peer == listening.getsockname()
