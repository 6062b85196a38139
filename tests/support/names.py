"""Names of our own: a DNS server, in a network where nothing but the test lives.

    with own_names({"a.example": ["11.0.0.1"]}, addresses=["11.0.0.1"]) as names:
        upstream = peers.recorder(host="::")       # every address of the network, of both families
        running = sidecar(route("a", Place("a.example", upstream.port), trust=..., server_name="localhost"))
        ...
        names["a.example"] = "SERVFAIL"            # from now on

Inside the block the test's own thread is in that network: sockets, threads and processes that it makes there
are too, and stay there. So upstreams, sidecar and callers are started in it with the helpers of always. The
upstreams' certificate is for localhost, so a route to another name says `server_name: localhost`.

It takes root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and Linux; elsewhere the test is skipped.
"""

from __future__ import annotations

import ipaddress
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest

Fault = Literal["SERVFAIL", "NXDOMAIN", "REFUSED", "silence"]
_CODES = {"SERVFAIL": 2, "NXDOMAIN": 3, "REFUSED": 5}
_TYPES = {1: "A", 28: "AAAA"}
_LARGEST_DATAGRAM = 512


class Turns:
    """Another answer at every look-up, and the last one from then on: a name that rebinds."""

    def __init__(self, *answers: Sequence[str] | Fault) -> None:
        self.answers = answers


Said = Sequence[str] | Fault | Turns
"""Addresses of both families, a fault, or turns of these."""


@dataclass(frozen=True)
class Place:
    """A name and a port as the upstream of a route: `route("a", Place("a.example", upstream.port), ...)`."""

    host: str
    port: int


@dataclass(frozen=True)
class Question:
    """One that the server was asked; `kind` is A or AAAA."""

    name: str
    kind: str
    over_tcp: bool


class Names:
    """The DNS server on 127.0.0.1:53 of the network it is made in. Names it does not know are NXDOMAIN.

    What it says of a name may be changed at any time; nothing that it says may be kept (TTL 0). `questions`
    holds what it was asked.
    """

    def __init__(self, said: Mapping[str, Said]) -> None:
        self.questions: list[Question] = []
        self._said = dict(said)
        self._turns: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", 53))
        self._streams = socket.create_server(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __setitem__(self, name: str, said: Said) -> None:
        with self._lock:
            self._said[name] = said
            for kind in _TYPES.values():
                self._turns.pop((name, kind), None)

    def asked(self, name: str, kind: str = "A") -> int:
        """How often it was asked for that."""
        return sum(question.name == name and question.kind == kind for question in self.questions)

    def stop(self) -> None:
        """Nobody answers from now on; asking is refused at once, as by a machine without a DNS server."""
        self._stopped.set()
        self._thread.join(5)
        self._datagrams.close()
        self._streams.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            for ready in select.select([self._datagrams, self._streams], [], [], 0.05)[0]:
                try:
                    if ready is self._datagrams:
                        asked, caller = self._datagrams.recvfrom(4096)
                        if answer := self._answer(asked, over_tcp=False):
                            self._datagrams.sendto(answer, caller)
                    else:
                        self._serve_stream()
                except OSError:
                    pass  # who asked has gone

    def _serve_stream(self) -> None:
        with self._streams.accept()[0] as stream:
            stream.settimeout(5)
            with stream.makefile("rb") as reader:
                while len(size := reader.read(2)) == 2:
                    if answer := self._answer(reader.read(int.from_bytes(size)), over_tcp=True):
                        stream.sendall(len(answer).to_bytes(2) + answer)

    def _answer(self, asked: bytes, *, over_tcp: bool) -> bytes | None:
        name, end = _read_name(asked)
        kind = _TYPES.get(int.from_bytes(asked[end : end + 2]), "other")
        question = asked[12 : end + 4]
        with self._lock:
            self.questions.append(Question(name, kind, over_tcp))
            said = self._now(name, kind)
        if said == "silence":
            return None
        addresses = [] if isinstance(said, str) else [_packed(text, kind) for text in said]
        records = [
            b"\xc0\x0c" + asked[end : end + 4] + struct.pack("!IH", 0, len(packed)) + packed
            for packed in addresses
            if packed
        ]
        code = _CODES[said] if isinstance(said, str) else 0
        whole = _head(asked, code, len(records)) + question + b"".join(records)
        if over_tcp or len(whole) <= _LARGEST_DATAGRAM:
            return whole
        return _head(asked, code, 0, cut=True) + question

    def _now(self, name: str, kind: str) -> Sequence[str] | Fault:
        said = self._said.get(name, "NXDOMAIN")
        if not isinstance(said, Turns):
            return said
        turn = self._turns.get((name, kind), 0)
        self._turns[name, kind] = turn + 1
        return said.answers[min(turn, len(said.answers) - 1)]


@contextmanager
def own_names(
    said: Mapping[str, Said],
    *,
    addresses: Sequence[str] = (),
    silent: Sequence[str] = (),
    resolver: str = "options timeout:1 attempts:1",
) -> Iterator[Names]:
    """A network and names of one's own for the length of a with block.

    Besides 127.0.0.1 and ::1 the network has `addresses`; what is sent to those in `silent` is lost. Any
    other is unreachable. They may be addresses of the internet: nothing leaves the network. `resolver` is a
    line of its resolv.conf.
    """
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed (Debian: apt-get install iproute2)")
    with ExitStack() as stack:
        _enter(stack, Path(stack.enter_context(TemporaryDirectory())), resolver)
        _ip("link", "set", "lo", "up")
        for address in addresses:
            _ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        for address in silent:
            _ip("route", "add", address, "dev", "lo")  # the machine hears itself, and it is for nobody there
        names = Names(said)
        stack.callback(names.stop)
        yield names


def _enter(stack: ExitStack, folder: Path, resolver: str) -> None:
    """Takes this thread to a network and mounts of its own, until `stack` is left."""
    kinds = {"net": os.CLONE_NEWNET, "mnt": os.CLONE_NEWNS}
    before = {kind: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in kinds}
    for descriptor in before.values():
        stack.callback(os.close, descriptor)
    folder_before = Path.cwd()

    def leave() -> None:
        os.unshare(os.CLONE_FS)  # threads made meanwhile share our view of the files, which forbids it
        for kind, flag in kinds.items():
            os.setns(before[kind], flag)
        os.chdir(folder_before)

    try:
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
    except PermissionError:
        pytest.skip("a network of one's own takes root (CAP_SYS_ADMIN)")
    stack.callback(leave)
    files = {
        "resolv.conf": f"nameserver 127.0.0.1\n{resolver}\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "nsswitch.conf": "hosts: files dns\n",
    }
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for name, text in files.items():
        written = folder / name
        written.write_text(text)
        written.chmod(0o644)
        place = Path("/etc", name)
        if place.exists():
            subprocess.run(["mount", "--bind", str(written), str(place)], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _read_name(asked: bytes) -> tuple[str, int]:
    """The name of the first question, and where it ends."""
    labels, at = [], 12
    while size := asked[at]:
        labels.append(asked[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels).lower(), at + 1


def _head(asked: bytes, code: int, records: int, *, cut: bool = False) -> bytes:
    return asked[:2] + struct.pack("!HHHHH", 0x8580 | cut << 9 | code, 1, records, 0, 0)


def _packed(text: str, kind: str) -> bytes:
    """The address as it is sent; nothing where it is of another family than was asked for."""
    address = ipaddress.ip_address(text)
    return address.packed if kind == {4: "A", 6: "AAAA"}[address.version] else b""
