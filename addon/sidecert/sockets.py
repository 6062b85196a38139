"""Listening sockets: opened from a `bind` of the config, with words for each way in which that fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from pathlib import Path

from sidecert.config import Bind, host_port
from sidecert.config.callers import DEFAULT_MODE
from sidecert.threads import NoThread, in_thread

_LOG = logging.getLogger("sidecert.sockets")

BACKLOG = 4096
"""Connections that the kernel may queue, as far as net.core.somaxconn lets it."""

Addresses = list[tuple[int, str]]
"""The address families and addresses of one `bind`."""

_RESOLVE = 5.0
"""Seconds for the look-up of a listener's host name."""


class Unusable(Exception):
    """An address that cannot be listened on: `wrong` says why, `right` what to do; `errno` where known."""

    def __init__(self, wrong: str, right: str, errno: int | None = None) -> None:
        super().__init__(f"{wrong}; {right}")
        self.wrong = wrong
        self.right = right
        self.errno = errno


async def resolve(bind: Bind) -> Addresses:
    """What `listen` needs to know, looked up without holding up the loop; nothing for a unix socket.

    Raises Unusable.
    """
    if bind.path is not None:
        return []
    try:
        async with asyncio.timeout(_RESOLVE):
            return await in_thread("look-up", lambda: _resolve(bind))
    except TimeoutError:
        wrong = f"the name {bind.host} could not be looked up within {_RESOLVE:g} s"
        raise Unusable(wrong, "give an IP address, such as 127.0.0.1") from None
    except NoThread as exc:
        raise Unusable(exc.wrong, exc.right) from exc
    except OSError as exc:
        raise _unusable_tcp(bind, exc) from exc


def listen(bind: Bind, addresses: Addresses, mode: int = DEFAULT_MODE) -> list[socket.socket]:
    """Non-blocking sockets that listen on `bind`: one, or one for each address that `resolve` gave.

    Port 0 takes a free one, the same for all. `mode` is that of a unix socket's file. Raises Unusable; then
    nothing is left open.
    """
    return [_listen_unix(bind.path, mode)] if bind.path is not None else _listen_tcp(bind, addresses)


class SocketFile:
    """The file of a unix socket that has just been bound. Only our own is ever removed: the path may be
    another program's by then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = _inode(path)

    @property
    def is_ours(self) -> bool:
        """Whether what is at the path is still what was bound: else nobody can connect any more."""
        return _inode(self.path) == self._inode

    def set_mode(self, mode: int) -> None:
        """Change who may open the file, if it is still ours. Raises OSError."""
        if self.is_ours:
            os.chmod(self.path, mode)

    def remove(self) -> None:
        """Remove the file, if it is still there and ours. A failure is logged."""
        try:
            if self.is_ours:
                self.path.unlink(missing_ok=True)
        except OSError as exc:
            _LOG.warning("%s could not be removed: %s", self.path, exc.strerror)


def folder_trouble(path: Path) -> Unusable | None:
    """Why no unix socket could be made at `path` now, as far as its folder alone can tell; opens nothing."""
    if not path.parent.is_dir():
        return _unusable_unix(path, OSError(errno.ENOENT, ""))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return _unusable_unix(path, OSError(errno.EACCES, ""))
    return None


def spell(sock: socket.socket) -> str:
    """The address of a listening socket: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/in.sock`."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    return host_port(name[0], name[1])


def _listen_tcp(bind: Bind, addresses: Addresses) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    port = bind.port
    failure: OSError | None = None
    try:
        for family, host in addresses:
            try:
                sockets.append(_bind_tcp(family, (host, port)))
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failure = exc  # `localhost` may have an address of a family that this machine has not
            port = sockets[0].getsockname()[1] if sockets else port
        if failure is not None and not sockets:
            raise failure
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise _unusable_tcp(bind, exc) from exc
    return sockets


def _resolve(bind: Bind) -> Addresses:
    found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found))


def _bind_tcp(family: int, address: tuple[str, int]) -> socket.socket:
    # Without IPPROTO_TCP asyncio does not know it for TCP, and sets no TCP_NODELAY on what it accepts.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 go together
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _unusable_tcp(bind: Bind, exc: OSError) -> Unusable:
    label, port = bind.label, bind.port
    if isinstance(exc, socket.gaierror):
        return Unusable(
            f"{bind.host} is not an address of this machine", "give an IP address, such as 127.0.0.1"
        )
    wrong, right = {
        errno.EADDRINUSE: (
            f"{label} is in use by another program",
            "end that program, or choose another port (0 takes a free one)",
        ),
        errno.EACCES: (
            f"this user may not listen on port {port}",
            "choose a port above 1023, or grant the capability NET_BIND_SERVICE",
        ),
        errno.EADDRNOTAVAIL: (
            f"this machine has no address {bind.host}",
            "give one that it has; 127.0.0.1 is always there",
        ),
        errno.EAFNOSUPPORT: ("this machine has no IPv6", "give an IPv4 address"),
    }.get(exc.errno or 0, (f"{label} cannot be opened: {exc.strerror or exc}", "choose another address"))
    return Unusable(wrong, right, exc.errno)


def _listen_unix(path: Path, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.setblocking(False)
        sock.bind(os.fspath(path))
        os.chmod(path, mode)  # in time: nobody can connect before `listen`
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _unusable_unix(path, exc) from exc
    except Unusable:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket's file whose owner is gone: one that was killed leaves it behind."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Unusable(f"{path} is there already and is no socket", "choose another path, or remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # EAGAIN: there is somebody, with a full queue
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    except BlockingIOError:
        pass
    raise Unusable(
        f"another program listens on {path}", "end that program, or choose another path", errno.EADDRINUSE
    )


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and number of what is at `path` itself; None where that cannot be told."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unusable_unix(path: Path, exc: OSError) -> Unusable:
    if exc.errno is None:  # Python has looked for itself, and gives no number
        wrong, right = f"{path} is too long for a unix socket", "choose a path of at most 107 bytes"
    elif exc.errno in (errno.ENOENT, errno.ENOTDIR):
        wrong, right = f"the folder {path.parent} is not there", "make it, or choose another path"
    elif exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        wrong, right = (
            f"this user may not make a socket in {path.parent}",
            "choose a folder that it may write to",
        )
    else:
        wrong, right = f"{path} cannot be opened: {exc.strerror}", "choose another path"
    return Unusable(wrong, right, exc.errno)
