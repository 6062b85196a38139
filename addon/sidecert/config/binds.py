"""The address of a listener: a TCP host and port, or a unix socket. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidecert.config.hosts import is_address, normalise_host
from sidecert.config.mistake import Mistake, shown
from sidecert.config.values import MAX_PORT, file_path, text

MAX_SOCKET_PATH = 107  # bytes of sun_path on Linux, without its NUL


@dataclass(frozen=True, slots=True)
class Bind:
    """An address to listen on. `label` is how it was written; `path` is set when `kind` is "unix"."""

    label: str
    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost may be anywhere."""
        if self.kind == "unix" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def overlaps(self, other: Bind) -> bool:
        """Whether the two cannot be open at once. Port 0 takes a free port each time."""
        if self.kind != other.kind:
            return False
        if self.kind == "unix":
            return self.path == other.path
        if self.port != other.port or not self.port:
            return False
        return any(_same_socket(mine, theirs) for mine in _hosts(self.host) for theirs in _hosts(other.host))


def _hosts(host: str) -> tuple[str, ...]:
    return ("127.0.0.1", "::1") if host == "localhost" else (host,)


def _same_socket(one: str, two: str) -> bool:
    """Whether two hosts need the same socket on one port; `0.0.0.0` and `::` take all of their family."""
    if one == two:
        return True
    wild = {one, two} & {"0.0.0.0", "::"}
    same_family = is_address(one) and is_address(two) and (":" in one) == (":" in two)
    return bool(wild) and same_family


def bind(value: object, folder: Path | None) -> Bind:
    """`HOST:PORT`, `[V6]:PORT` or `unix:PATH`, relative to `folder`."""
    if isinstance(value, Bind):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        raise Mistake(f"{value} has no host", f"write 127.0.0.1:{value}")
    written = text(value)
    if written.startswith("unix:"):
        return _unix_bind(written, folder)
    if "://" in written:
        raise Mistake(f"{shown(written)} is a URL", "write HOST:PORT, such as 127.0.0.1:8080")
    host, colon, number = written.rpartition(":")
    if not colon or written.endswith("]"):
        raise Mistake(f"{shown(written)} has no port", _bind_right(written))
    if not re.fullmatch(r"[0-9]{1,5}", number) or int(number) > MAX_PORT:
        raise Mistake(
            f"{shown(number)} is not a port", f"write a number from 0 to {MAX_PORT} after the last colon"
        )
    if host in ("", "*"):
        right = f"write 127.0.0.1:{number}, or 0.0.0.0:{number} to be open to the network"
        raise Mistake(f"{shown(written)} has no host", right)
    if ":" in host and not host.startswith("["):
        raise Mistake(f"{shown(written)} is an IPv6 address without brackets", f'write "[{host}]:{number}"')
    return Bind(written, "tcp", normalise_host(host), int(number))


def _bind_right(written: str) -> str:
    if written.startswith(("/", ".")):
        return f"write unix:{written} for a socket file" if len(written) < 60 else "write unix:PATH"
    return "write HOST:PORT, such as 127.0.0.1:8080"


def _unix_bind(written: str, folder: Path | None) -> Bind:
    place = written.removeprefix("unix:")
    if not place:
        raise Mistake("there is no path after unix:", "write one such as unix:/run/sidecert/in.sock")
    path = file_path(place, folder)
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH:
        wrong = f"the socket's path is {length} bytes long"
        raise Mistake(wrong, f"the system takes at most {MAX_SOCKET_PATH}, counted from /")
    return Bind(written, "unix", path=path)
