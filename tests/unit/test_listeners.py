"""Listeners on real sockets: opening, changing and closing them, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

import sidecert.listeners
import sidecert.sockets
from sidecert.config.models import ListenerConfig
from sidecert.errors import ConfigError
from sidecert.listeners import Listeners
from sidecert.plane import Listener
from support.clients import has_ipv6

FILE = Path("sidecert.yaml")
Run = Callable[[Coroutine[Any, Any, None]], None]


class _Greeter(asyncio.Protocol):
    """Sends its listener's label and route, and notes whether TCP_NODELAY is set."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are not derived from it
        sock = transport.get_extra_info("socket")
        nodelay = ""
        if sock.family != socket.AF_UNIX:
            nodelay = " nodelay" if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) else " delay"
        transport.write(f"{self.listener.label} {self.listener.route}{nodelay}".encode())
        transport.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on the one loop and on the other."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run(coroutine, loop_factory=request.param)

    return run


def _config(text: str, route: str | None = None, folder: Path | None = None) -> ListenerConfig:
    return ListenerConfig.model_validate({"bind": text, "route": route}, context={"folder": folder})


async def _change(listeners: Listeners, configs: Sequence[ListenerConfig]) -> None:
    await listeners.stop_removed(await listeners.commit(await listeners.prepare(configs, FILE)))


async def _open(*configs: ListenerConfig) -> Listeners:
    listeners = Listeners(_Greeter)
    await _change(listeners, configs)
    return listeners


async def _problems(*configs: ListenerConfig, among: Listeners | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        await (among or Listeners(_Greeter)).prepare(configs, FILE)
    return [str(problem) for problem in caught.value.problems]


async def _greeting(address: str) -> str:
    return await asyncio.to_thread(_read, _connect(address))


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(address.removeprefix("unix:"))
        return caller
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)))


def _read(caller: socket.socket) -> str:
    with caller:
        caller.settimeout(10)
        return b"".join(iter(lambda: caller.recv(100), b"")).decode()


@contextmanager
def _occupied() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


V6 = pytest.param("[::1]:0", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))


@pytest.mark.parametrize("text", ["127.0.0.1:0", V6, "localhost:0", "0.0.0.0:0"])
def test_port_0_takes_a_free_port_and_says_which(run: Run, text: str) -> None:
    """The port that was taken is the one to call; small answers leave at once (TCP_NODELAY)."""

    async def scenario() -> None:
        listeners = await _open(_config(text))
        addresses = listeners.addresses[text]
        assert len({address.rpartition(":")[2] for address in addresses}) == 1
        for address in addresses:
            assert await _greeting(address) == f"{text} None nodelay"
        assert all(port for _, port in listeners.tcp_addresses)
        await listeners.stop()

    run(scenario())


def test_unix_socket_is_for_owner_and_group_and_goes_with_the_end(run: Run, tmp_path: Path) -> None:
    """Whoever can write to it can call under our certificates."""

    async def scenario() -> None:
        listeners = await _open(_config("unix:in.sock", "orders", tmp_path))
        path = tmp_path / "in.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert listeners.addresses == {"unix:in.sock": [f"unix:{path}"]}
        assert listeners.tcp_addresses == ()
        assert await _greeting(f"unix:{path}") == "unix:in.sock orders"
        await listeners.stop()
        assert not path.exists()

    run(scenario())


def test_unix_socket_of_a_dead_process_is_taken_over(run: Run, tmp_path: Path) -> None:
    """A sidecar that was killed leaves its file behind, and the next one starts all the same."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "in.sock"))
        listeners = await _open(_config("unix:in.sock", None, tmp_path))
        assert await _greeting(f"unix:{tmp_path / 'in.sock'}") == "unix:in.sock None"
        await listeners.stop()

    run(scenario())


def test_unix_socket_of_a_successor_is_left_alone(run: Run, tmp_path: Path) -> None:
    """Only the file that we have made is ours to remove."""

    async def scenario() -> None:
        listeners = await _open(_config("unix:in.sock", None, tmp_path))
        path = tmp_path / "in.sock"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            await listeners.stop()
            assert path.exists()

    run(scenario())


def test_unix_socket_that_somebody_answers_on_is_a_problem(tmp_path: Path) -> None:
    """Two processes on one path would each believe to have it."""
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert asyncio.run(_problems(_config("unix:in.sock", None, tmp_path))) == [
            f"sidecert.yaml: listeners[0].bind: another program listens on {path}; "
            "end that program, or choose another path"
        ]
        assert path.exists()


def test_a_file_in_the_way_of_a_unix_socket_is_a_problem(tmp_path: Path) -> None:
    """Whatever is no socket was not left by us."""
    (tmp_path / "in.sock").write_text("precious")
    (problem,) = asyncio.run(_problems(_config("unix:in.sock", None, tmp_path)))
    assert "is there already and is no socket" in problem
    assert (tmp_path / "in.sock").read_text() == "precious"


def test_a_unix_socket_in_a_missing_folder_is_a_problem(tmp_path: Path) -> None:
    """The message names the folder."""
    (problem,) = asyncio.run(_problems(_config("unix:gone/in.sock", None, tmp_path)))
    assert f"the folder {tmp_path / 'gone'} is not there; make it" in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_unix_socket_in_a_locked_folder_is_a_problem(tmp_path: Path) -> None:
    """The message names the folder."""
    tmp_path.chmod(0o500)
    (problem,) = asyncio.run(_problems(_config("unix:in.sock", None, tmp_path)))
    assert f"this user may not make a socket in {tmp_path}" in problem


def test_an_address_in_use_is_a_problem() -> None:
    """The message says what would be right."""
    with _occupied() as port:
        assert asyncio.run(_problems(_config(f"127.0.0.1:{port}"))) == [
            f"sidecert.yaml: listeners[0].bind: 127.0.0.1:{port} is in use by another program; "
            "end that program, or choose another port (0 takes a free one)"
        ]


def test_an_address_of_another_machine_is_a_problem() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    assert asyncio.run(_problems(_config("192.0.2.1:0"))) == [
        "sidecert.yaml: listeners[0].bind: this machine has no address 192.0.2.1; "
        "give one that it has; 127.0.0.1 is always there"
    ]


def test_all_problems_come_at_once_and_nothing_stays_open(run: Run, tmp_path: Path) -> None:
    """One broken address does not hide another, and the good ones are given back."""

    async def scenario() -> None:
        with _occupied() as port:
            good = [_config("127.0.0.1:0"), _config("unix:in.sock", None, tmp_path)]
            bad = [_config(f"127.0.0.1:{port}"), _config("unix:gone/in.sock", None, tmp_path)]
            listeners = await _open(good[0])
            await listeners.stop()  # uvloop keeps a descriptor in reserve from its first listener on
            before = set(os.listdir("/proc/self/fd"))
            problems = await _problems(good[0], bad[0], good[1], bad[1], among=listeners)
            assert [problem.split(": ")[1] for problem in problems] == [
                "listeners[1].bind",
                "listeners[3].bind",
            ]
            async with asyncio.timeout(10):  # uvloop closes a handle in its next round
                while set(os.listdir("/proc/self/fd")) != before:
                    await asyncio.sleep(0)
            assert not (tmp_path / "in.sock").exists()
            assert not listeners.is_open

    run(scenario())


def test_queued_connections_are_answered_before_the_end(run: Run, tmp_path: Path) -> None:
    """Closing a listening socket resets what the kernel has queued: it is accepted first."""

    async def scenario() -> None:
        listeners = await _open(_config("127.0.0.1:0", "tcp"), _config("unix:in.sock", "unix", tmp_path))
        (tcp,) = listeners.addresses["127.0.0.1:0"]
        # No await until `stop`: the loop has no chance to accept any of these on its own.
        callers = [_connect(address) for address in (tcp, f"unix:{tmp_path / 'in.sock'}") for _ in range(50)]
        await listeners.stop()
        greetings = [await asyncio.to_thread(_read, caller) for caller in callers]
        assert greetings == ["127.0.0.1:0 tcp nodelay"] * 50 + ["unix:in.sock unix"] * 50
        with pytest.raises(ConnectionRefusedError):
            _connect(tcp)

    run(scenario())


def test_a_change_leaves_what_it_keeps_alone(run: Run) -> None:
    """A reload opens what is new and closes what is gone; the rest does not miss a connection."""

    async def scenario() -> None:
        kept, removed, added = _config("127.0.0.1:0"), _config("localhost:0"), _config("127.0.0.2:0")
        listeners = await _open(kept, removed)
        before = listeners.addresses
        await _change(listeners, [kept, added])
        after = listeners.addresses
        assert after["127.0.0.1:0"] == before["127.0.0.1:0"]
        assert list(after) == ["127.0.0.1:0", "127.0.0.2:0"]
        assert await _greeting(after["127.0.0.2:0"][0]) == "127.0.0.2:0 None nodelay"
        with pytest.raises(ConnectionRefusedError):
            _connect(before["localhost:0"][0])
        await listeners.stop()

    run(scenario())


def test_a_change_that_fails_leaves_everything_as_it_was(run: Run) -> None:
    """The old listeners go on, and none of the new ones is open."""

    async def scenario() -> None:
        listeners = await _open(_config("127.0.0.1:0"))
        before = listeners.addresses
        with _occupied() as port:
            await _problems(_config("127.0.0.2:0"), _config(f"127.0.0.1:{port}"), among=listeners)
        assert listeners.addresses == before
        assert await _greeting(before["127.0.0.1:0"][0]) == "127.0.0.1:0 None nodelay"
        await listeners.stop()

    run(scenario())


def test_swapping_overlapping_addresses_needs_a_restart(run: Run) -> None:
    """New addresses are opened before old ones are closed, so these two can never meet."""

    async def scenario() -> None:
        with _occupied() as port:
            pass
        listeners = await _open(_config(f"127.0.0.1:{port}"))
        (problem,) = await _problems(_config(f"0.0.0.0:{port}"), among=listeners)
        assert problem.endswith(
            f"0.0.0.0:{port} overlaps with 127.0.0.1:{port}, on which this sidecar still listens; "
            "restart the sidecar to swap one for the other"
        )
        await listeners.stop()

    run(scenario())


def test_a_kept_listener_can_be_pinned_to_another_route(run: Run) -> None:
    """The address stays open while its route changes."""

    async def scenario() -> None:
        listeners = await _open(_config("127.0.0.1:0", "one"))
        await _change(listeners, [_config("127.0.0.1:0", "two")])
        (address,) = listeners.addresses["127.0.0.1:0"]
        assert await _greeting(address) == "127.0.0.1:0 two nodelay"
        await listeners.stop()

    run(scenario())


def test_listeners_can_be_opened_again(run: Run) -> None:
    """mitmweb can switch the mode off and on."""

    async def scenario() -> None:
        listeners = await _open(_config("127.0.0.1:0"))
        await listeners.stop()
        assert not listeners.is_open
        await _change(listeners, [_config("127.0.0.1:0")])
        assert await _greeting(listeners.addresses["127.0.0.1:0"][0]) == "127.0.0.1:0 None nodelay"
        await listeners.stop()

    run(scenario())


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("127.0.0.1:0", {"127.0.0.1"}),
        ("localhost:0", {"localhost", "127.0.0.1"}),
        ("0.0.0.0:0", {"0.0.0.0", "127.0.0.1", "::1"}),
    ],
)
def test_a_listener_knows_its_own_names(text: str, hosts: set[str]) -> None:
    """Callers of a pinned listener may use these as Host."""
    seen: list[Listener] = []

    def note(listener: Listener) -> asyncio.Protocol:
        seen.append(listener)
        return _Greeter(listener)

    async def scenario() -> None:
        listeners = Listeners(note)
        await _change(listeners, [_config(text)])
        await _greeting(listeners.addresses[text][0])
        await listeners.stop()

    asyncio.run(scenario())
    assert hosts <= seen[0].hosts


def test_a_change_that_fails_at_the_very_end_leaves_everything_as_it_was(run: Run, tmp_path: Path) -> None:
    """Even where the system refuses to serve what it has let us bind: nothing of the change stays."""

    before: dict[str, list[str]] = {}

    class Broken:
        async def start_serving(self) -> None:
            # The callers of what is kept are at the new routes by now.
            assert await _greeting(before["127.0.0.1:0"][0]) == "127.0.0.1:0 two nodelay"
            raise OSError("no room")

        def close(self) -> None:
            pass

    async def scenario() -> None:
        kept, removed = _config("127.0.0.1:0", "one"), _config("localhost:0")
        listeners = await _open(kept, removed)
        before.update(listeners.addresses)
        new = [_config("127.0.0.1:0", "two"), _config("127.0.0.2:0"), _config("unix:in.sock", None, tmp_path)]
        change = await listeners.prepare(new, FILE)
        change.opened["unix:in.sock"].servers.append(cast(asyncio.Server, Broken()))
        with pytest.raises(OSError, match="no room"):
            await listeners.commit(change)
        listeners.discard(change)
        assert listeners.addresses == before
        assert await _greeting(before["127.0.0.1:0"][0]) == "127.0.0.1:0 one nodelay"
        assert not (tmp_path / "in.sock").exists()
        await listeners.stop()

    run(scenario())


def test_a_failure_to_stop_the_old_ones_leaves_the_new_ones_open(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is in force by then: it is logged, and each of the others is closed all the same."""

    async def scenario() -> None:
        listeners = await _open(_config("127.0.0.1:0"), _config("localhost:0"))
        before = listeners.addresses
        accept_queued, calls = sidecert.listeners.accept_queued, 0

        def fail_once(sock: socket.socket) -> Iterator[socket.socket]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("ours")
            return accept_queued(sock)

        monkeypatch.setattr(sidecert.listeners, "accept_queued", fail_once)
        await _change(listeners, [_config("127.0.0.2:0")])
        assert list(listeners.addresses) == ["127.0.0.2:0"]
        assert await _greeting(listeners.addresses["127.0.0.2:0"][0]) == "127.0.0.2:0 None nodelay"
        with pytest.raises(ConnectionRefusedError):
            _connect(before["localhost:0"][0])
        await listeners.stop()

    run(scenario())
    assert sum(record.exc_info is not None for record in caplog.records) == 1


def test_names_are_looked_up_at_the_same_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name servers that are dead cost the time of one name, not of each."""
    together = threading.Barrier(3)

    def meet(*_: object, **__: object) -> Any:
        together.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "at last")

    monkeypatch.setattr(sidecert.sockets.socket, "getaddrinfo", meet)

    async def scenario() -> None:
        problems = await _problems(*(_config(f"{name}.test:0") for name in ("one", "two", "three")))
        assert len(problems) == 3
        assert all("is not an address of this machine" in problem for problem in problems)

    run(scenario())


def test_a_name_that_hangs_holds_up_no_calls(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up beside the loop, and given up after a while."""
    go = threading.Event()

    def hang(*_: object, **__: object) -> Any:
        go.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    monkeypatch.setattr(sidecert.sockets.socket, "getaddrinfo", hang)
    monkeypatch.setattr(sidecert.sockets, "_RESOLVE", 0.2)

    async def scenario() -> None:
        preparing = asyncio.create_task(_problems(_config("some.test:0")))
        turns = 0
        while not preparing.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert turns > 5
        assert "the name some.test could not be looked up within 0.2 s" in preparing.result()[0]

    run(scenario())
    go.set()
