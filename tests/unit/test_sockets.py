"""Sockets that listen: what they are set to, what they are called, and the words where there are none."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import sidecert.sockets
from sidecert.backlog import accept_queued
from sidecert.config import Bind
from sidecert.config.binds import bind
from sidecert.sockets import SocketFile, Unusable, listen, resolve, spell
from support.clients import has_ipv6


@contextmanager
def listening(text: str, folder: Path | None = None) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        where = bind(text, folder)
        sockets = listen(where, asyncio.run(resolve(where)))
        for sock in sockets:
            stack.enter_context(sock)
        yield sockets


def refused(where: Bind) -> Unusable:
    with pytest.raises(Unusable) as error:
        listen(where, asyncio.run(resolve(where)))
    return error.value


def take(sock: socket.socket, count: int, stack: ExitStack) -> list[socket.socket]:
    """What was queued; the kernel may queue a connection a moment after its caller has it."""
    taken: list[socket.socket] = []
    while len(taken) < count and select.select([sock], [], [], 5)[0]:
        taken += map(stack.enter_context, accept_queued(sock))
    return taken


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, str]) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in addresses]

    monkeypatch.setattr(sidecert.sockets.socket, "getaddrinfo", getaddrinfo)


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


def test_tcp_socket_is_known_for_tcp_and_never_blocks() -> None:
    """Without the protocol in it asyncio sets no TCP_NODELAY on what it accepts."""
    with listening("127.0.0.1:0") as [sock]:
        assert sock.proto == socket.IPPROTO_TCP
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_address_is_spelt_as_people_write_it(tmp_path: Path) -> None:
    """With the port that was taken for 0."""
    with listening("127.0.0.1:0") as [sock]:
        assert spell(sock) == f"127.0.0.1:{sock.getsockname()[1]}"
        assert not spell(sock).endswith(":0")
    with listening("unix:in.sock", tmp_path) as [sock]:
        assert spell(sock) == f"unix:{tmp_path}/in.sock"


@needs_ipv6
def test_ipv6_address_is_spelt_in_brackets_and_takes_no_ipv4() -> None:
    """So that [::] and 0.0.0.0 can be listened on side by side."""
    with listening("[::1]:0") as [sock]:
        assert spell(sock) == f"[::1]:{sock.getsockname()[1]}"
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@needs_ipv6
def test_host_with_two_addresses_listens_on_one_port_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost:0` has one port, whichever family a caller prefers."""
    resolve_to(monkeypatch, (socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
    with listening("localhost:0") as sockets:
        assert [sock.family for sock in sockets] == [socket.AF_INET6, socket.AF_INET]
        assert len({sock.getsockname()[1] for sock in sockets}) == 1


@pytest.mark.parametrize("first", [True, False])
def test_family_that_the_machine_has_not_is_passed_over(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` names ::1 also where there is no IPv6."""
    addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "192.0.2.1")]
    resolve_to(monkeypatch, *(addresses[::-1] if first else addresses))
    with listening("localhost:0") as [sock]:
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getsockname()[1]


def test_nothing_stays_open_when_the_second_address_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the port of the first would be lost until the process ends."""
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
        error = refused(bind(f"localhost:{port}", None))
        assert error.errno == errno.EADDRINUSE
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    ("number", "wrong", "right"),
    [
        (errno.EADDRINUSE, "127.0.0.1:80 is in use by another program", "0 takes a free one"),
        (errno.EACCES, "this user may not listen on port 80", "NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, "this machine has no address 127.0.0.1", "one that it has"),
        (errno.EAFNOSUPPORT, "this machine has no IPv6", "IPv4"),
        (errno.EMFILE, f"127.0.0.1:80 cannot be opened: {os.strerror(errno.EMFILE)}", "another"),
    ],
    ids=["in use", "port below 1024", "not ours", "no IPv6", "other"],
)
def test_each_failure_of_tcp_has_its_words(
    number: int, wrong: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong, what would be right, and the number for whoever decides by it."""

    def fail(family: int, address: tuple[str, int]) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sidecert.sockets, "_bind_tcp", fail)
    error = refused(bind("127.0.0.1:80", None))
    assert (error.wrong, error.errno) == (wrong, number)
    assert right in error.right


def test_name_that_is_no_address_has_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own words help nobody."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(sidecert.sockets.socket, "getaddrinfo", fail)
    error = refused(bind("nowhere.test:80", None))
    assert error.wrong == "nowhere.test is not an address of this machine"
    assert "127.0.0.1" in error.right


def test_address_in_use_is_told(tmp_path: Path) -> None:
    """By the system itself, for both kinds."""
    for text in ("127.0.0.1:0", "unix:in.sock"):
        with listening(text, tmp_path) as [sock]:
            again = spell(sock) if sock.family == socket.AF_INET else text
            assert refused(bind(again, tmp_path)).errno == errno.EADDRINUSE


def test_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    """Whoever may write to it calls under our certificates; the umask has no say."""
    before = os.umask(0)
    try:
        with listening("unix:in.sock", tmp_path):
            assert stat.S_IMODE((tmp_path / "in.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_unix_socket_whose_owner_is_gone_is_replaced(tmp_path: Path) -> None:
    """It was killed, and left the file behind."""
    with listening("unix:in.sock", tmp_path):
        pass
    assert (tmp_path / "in.sock").is_socket()
    with listening("unix:in.sock", tmp_path), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / "in.sock"))


def test_unix_socket_with_a_full_queue_still_has_an_owner(tmp_path: Path) -> None:
    """Its file stays."""
    path = tmp_path / "in.sock"
    with ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(path))
        owner.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(str(path))
        error = refused(bind("unix:in.sock", tmp_path))
        assert error.wrong == f"another program listens on {path}"
        assert path.is_socket()


def test_what_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """A file or a link in the way was not left by us."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        error = refused(bind(f"unix:{name}", tmp_path))
        assert error.wrong == f"{tmp_path / name} is there already and is no socket"
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_path_of_a_unix_socket_has_to_be_possible(tmp_path: Path) -> None:
    """A folder that is not there, one that is a file, and more bytes than the system takes."""
    (tmp_path / "file").write_text("")
    assert f"the folder {tmp_path}/nowhere is not there" in refused(bind("unix:nowhere/s", tmp_path)).wrong
    assert "the folder" in refused(bind("unix:file/s", tmp_path)).wrong
    long = Bind(label="unix:x", kind="unix", host="", port=0, path=tmp_path / ("x" * 200))
    error = refused(long)
    assert "too long for a unix socket" in error.wrong
    assert "107 bytes" in error.right


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_folder_that_may_not_be_written_to_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the path of the socket: it is the folder that has to change."""

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sidecert.sockets, "_remove_stale", fail)
    error = refused(bind("unix:in.sock", tmp_path))
    assert error.wrong == f"this user may not make a socket in {tmp_path}"


def test_failure_says_what_is_wrong_and_what_is_right() -> None:
    """As one line too."""
    assert str(Unusable("the port is taken", "choose another")) == "the port is taken; choose another"


@pytest.mark.parametrize("text", ["127.0.0.1:0", "unix:in.sock"])
def test_queued_connections_are_taken_until_there_are_none(text: str, tmp_path: Path) -> None:
    """Each once, and none of them blocks; closing the listening socket would reset them."""
    with listening(text, tmp_path) as [sock], ExitStack() as stack:
        callers = [stack.enter_context(socket.socket(sock.family)) for _ in range(3)]
        for caller in callers:
            caller.connect(sock.getsockname())
        accepted = take(sock, 3, stack)
        assert [each.getblocking() for each in accepted] == [False] * 3
        for each in accepted:
            each.sendall(b"hello")
        assert [caller.recv(5) for caller in callers] == [b"hello"] * 3
        assert list(accept_queued(sock)) == []


def test_queue_of_a_closed_socket_is_empty() -> None:
    """The end of a listener may come twice."""
    with listening("127.0.0.1:0") as [sock]:
        sock.close()
        assert list(accept_queued(sock)) == []


def test_many_may_wait_in_the_queue() -> None:
    """A burst of callers is not refused while the event loop is busy."""
    with listening("127.0.0.1:0") as [sock], ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(sock.getsockname(), timeout=5))
        assert len(take(sock, 100, stack)) == 100


def test_file_of_a_unix_socket_is_removed_only_while_it_is_ours(tmp_path: Path) -> None:
    """Another program may have put its own in the place; one that is gone already is no fault."""
    path = tmp_path / "in.sock"
    with listening(f"unix:{path}"):
        ours = SocketFile(path)
        path.rename(tmp_path / "moved.sock")
        with listening(f"unix:{path}"):
            ours.remove()
            assert path.exists()
            theirs = SocketFile(path)
            theirs.remove()
            assert not path.exists()
            theirs.remove()
