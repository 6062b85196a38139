"""From a host to a socket: which addresses are tried, in which order, and what is noted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

import sidecert.connect
from sidecert.connect import NotConnected, _interleave, _is_private, connect
from sidecert.errors import Refusal
from sidecert.outcome import Ending, Observation, Stage
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
        yield sock


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: Any) -> None:
    async def resolve(host: str, port: int) -> list[Any]:
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
    assert (seen.stage, seen.ending) == (Stage.CONNECTING, Ending.REFUSED)
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

    async def never(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(sidecert.connect, "_resolve", never)
    seen, error = attempt(run, Place("slow.test", 1, limit=0.05))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending) == (Stage.RESOLVING, Ending.TIMEOUT)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".test"])
def test_name_that_does_not_resolve(run: Any, host: str) -> None:
    """Unknown, or no name at all: ended while resolving."""
    seen, error = attempt(run, Place(host, 1))
    assert isinstance(error, NotConnected)
    assert (seen.stage, seen.ending) == (Stage.RESOLVING, Ending.FAILED)
    assert seen.error


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


def test_cancelled_attempt_leaves_no_socket(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller leaves while we connect: the socket is closed, no task is left."""
    made: list[socket.socket] = []
    original = socket.socket

    def make(*arguments: Any, **named: Any) -> socket.socket:
        made.append(original(*arguments, **named))
        return made[-1]

    async def main() -> None:
        task = asyncio.ensure_future(connect(Place(peer.host, peer.port), Observation()))  # type: ignore[arg-type]
        while not made:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait((task,))
        assert len(asyncio.all_tasks()) == 1

    with black_hole() as peer:
        monkeypatch.setattr(sidecert.connect.socket, "socket", make)
        run(main)
        monkeypatch.undo()
    assert [sock.fileno() for sock in made] == [-1] * len(made)


def test_families_take_turns() -> None:
    """RFC 8305: the resolver's first family first, then one of each; none is lost."""
    six = [(V6, (f"::{n}", 1, 0, 0)) for n in range(3)]
    four = [(V4, (f"10.0.0.{n}", 1)) for n in range(2)]
    assert _interleave([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]
    assert _interleave([*four, *six]) == [four[0], six[0], four[1], six[1], six[2]]
    assert _interleave([]) == []


PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
    *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::"),
]
PUBLIC = ["8.8.8.8", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_address(address: str) -> None:
    """Loopback, link-local, private, shared, multicast, also wrapped into IPv6."""
    assert _is_private(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address(address: str) -> None:
    """Addresses of the open network, also wrapped into IPv6."""
    assert not _is_private(address)


def test_host_chosen_by_a_caller_may_not_be_private(
    run: Any, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One private address among public ones is enough to refuse; nothing is connected to."""
    port = listening.getsockname()[1]
    resolve_to(monkeypatch, ("8.8.8.8", port), ("127.0.0.1", port))
    _, error = attempt(run, Place("chosen.test", port, chosen_by_caller=True))
    assert isinstance(error, Refusal)
    assert error.outcome == "private_address"
    resolve_to(monkeypatch, ("127.0.0.1", port))
    _, peer = attempt(run, Place("chosen.test", port, chosen_by_caller=True, private=True))
    assert peer == listening.getsockname()
    _, peer = attempt(run, Place("written.test", port))
    assert peer == listening.getsockname()
