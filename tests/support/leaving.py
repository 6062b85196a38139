"""Callers that leave in the middle of an exchange, at any point of it, and the upstream that this needs.

The upstream answers each request with the last segment of its path, so that an answer which goes to somebody
else is seen; what it does before that is the first segment (`Step`). It holds a call where a test wants to
leave, and tells when the call is there.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Literal

from support.clients import Address, Talker
from support.recorder import PATIENCE, Exchange, head

Step = Literal["echo", "wait", "body", "part", "tunnel", "late-tunnel", "long"]
Way = Literal["half", "fin", "rst"]
"""How a caller leaves: it sends no more and reads on; it closes; it resets."""
WAYS: tuple[Way, ...] = ("half", "fin", "rst")
LONG = 300_000


@dataclass
class Visit:
    """A call at the upstream: `here` once it is where it is held, `go` lets it on."""

    here: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    connection: int = 0
    read: bytes = b""
    """What came through a tunnel."""
    cut: bool = False
    """Its connection ended before all of it could be read and answered."""


class Stage:
    """What a `TlsRecorder` answers, and who has come."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._visits: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def token(self) -> str:
        """A word that no other call has."""
        return f"t{next(self._numbers)}"

    def visit(self, token: str) -> Visit:
        with self._lock:
            return self._visits.setdefault(token, Visit())

    def came(self, token: str) -> bool:
        """Whether a call of that name has reached the upstream."""
        return self.visit(token).connection > 0

    def __call__(self, exchange: Exchange) -> None:
        _, step, token = exchange.seen.target.split("/")
        visit = self.visit(token)
        visit.connection = exchange.seen.connection
        try:
            self._play(step, token.encode(), visit, exchange)
        except (OSError, EOFError):
            visit.cut = True
            exchange.ended = True

    def _play(self, step: str, token: bytes, visit: Visit, exchange: Exchange) -> None:
        if step == "body":
            visit.here.set()
        exchange.read_body()
        if step in ("wait", "late-tunnel"):
            visit.here.set()
            assert visit.go.wait(PATIENCE)
        if step.endswith("tunnel"):
            exchange.send(head(101, ("Upgrade", "x"), ("Connection", "Upgrade")) + token)
            while piece := exchange.wire.recv(4096):
                visit.read += piece
            raise EOFError
        body = token if step != "long" else token.ljust(LONG)
        exchange.send(head(200, ("Content-Length", str(len(body)))) + (b"" if step == "part" else body))
        if step == "part":
            exchange.send(body[:1])
            visit.here.set()
            assert visit.go.wait(PATIENCE)
            exchange.send(body[1:])


def request(step: Step, token: str, *, host: str = "orders", body: int | None = None) -> bytes:
    """A head, with the length of its body where it has one."""
    method, fields = ("GET", "") if body is None else ("POST", f"Content-Length: {body}\r\n")
    if step.endswith("tunnel"):
        fields = "Upgrade: x\r\nConnection: Upgrade\r\n"
    return f"{method} /{step}/{token} HTTP/1.1\r\nHost: {host}.test\r\n{fields}\r\n".encode()


def leave(talker: Talker, way: Way) -> None:
    if way == "half":
        talker.shutdown_write()
    elif way == "fin":
        talker.close()
    else:
        talker.reset()


def rest(talker: Talker) -> bytes:
    """What comes until the end, whichever end."""
    try:
        return talker.read_until_close()
    except ConnectionResetError:
        return talker.buffer


def check_call(address: Address, stage: Stage, step: Step = "echo") -> int:
    """A call that stays gets its own answer; gives the number of its upstream connection."""
    token = stage.token()
    with Talker(address) as talker:
        talker.send(request(step, token))
        answer = talker.read_answer()
    assert (answer.status, answer.body.split()) == (200, [token.encode()])
    return stage.visit(token).connection
