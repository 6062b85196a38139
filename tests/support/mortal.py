"""An upstream that dies when it is told to, at any byte, and counts what reached it all the same.

`Mortal` asks its `Fate` when to die. Its TLS is on memory BIOs, so that it can stop within a record. Once
dead for the other side it goes on reading in secret: a request that was sent to it is an `Arrival`, also
where it died before it would have looked.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

from support.certs import Files
from support.recorder import PATIENCE, VERSIONS, TlsVersion

Way = Literal["fin", "rst", "notify"]
Point = Literal[
    "accept", "hello", "flight", "finished", "opened",  # of a connection
    "head",  # of the next request on it, whichever that is
    "body", "before", "interim", "record", "answer head", "answer body", "after", "idle",  # of a request
]  # fmt: skip
_SECRET = 2.0  # seconds for which a dead connection is read on
_FIRST_LINE = re.compile(rb"[A-Z]+ /(\w+)")


@dataclass(frozen=True)
class Death:
    """The end of a connection by a FIN, a RST or a close_notify.

    `at` is how many bytes of what `point` names are read or sent before it; for `idle`, a time in seconds.
    They are TLS's bytes in `hello`, `flight`, `head` and `record` (where the answer's first record is cut,
    so that none of it can be read), else HTTP's.
    """

    point: Point
    way: Way = "fin"
    at: float = 0


@dataclass(frozen=True)
class Reply:
    """The answer to a request; its body is framed already. `closes`: it ends with the connection."""

    head: bytes
    body: bytes = b""
    closes: bool = False


class Fate:
    """Tells a `Mortal` when to die and what to answer; by itself, never, and the request's name."""

    patience: float | None = None
    """Seconds for which an idle connection is kept before it is reset."""

    def of_connection(self, number: int) -> Death | None:
        return None

    def of_next(self, connection: int, place: int) -> Death | None:
        """Death at the head of the request that comes next there, whichever it is."""
        return None

    def of_request(self, name: str, turn: int) -> Death | None:
        """Death on request `name`, which arrives for the time `turn`, counted from 1."""
        return None

    def reply(self, name: str) -> Reply:
        return Reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name), name.encode())


class Sent(IntEnum):
    """How much of an answer has gone out."""

    NOTHING = 0
    SOME = 1
    HEAD = 2
    WHOLE = 3


@dataclass
class Arrival:
    """A request that reached the upstream, at that place on its connection; `executed`: it was read whole."""

    name: str
    connection: int
    place: int
    when: float
    executed: bool = False
    body: bytes = field(default=b"", repr=False)
    sent: Sent = Sent.NOTHING


class _Dead(Exception):
    def __init__(self, death: Death) -> None:
        self.death = death


class Mortal:
    """A mutual-TLS upstream on a free loopback port, a thread for each connection.

    `arrivals` holds what came, by the request's name: the first segment of its path. `deaths` counts by
    point and way; `blind` is the number of those that may have destroyed a request unseen, by a RST.
    """

    def __init__(
        self, files: Files, trust: Path, fate: Fate, *, tls: TlsVersion | None = None, tickets: bool = True
    ) -> None:
        self.fate = fate
        self.arrivals: dict[str, list[Arrival]] = {}
        self.deaths: Counter[tuple[Point, Way]] = Counter()
        self.blind = 0
        self.unknown = 0
        """Arrivals of which too little came to tell the name."""
        self.connections = 0
        self.lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._open: dict[_Connection, threading.Thread] = {}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(files.certificate, files.key)
        self.context.load_verify_locations(trust)
        self.context.verify_mode = ssl.CERT_REQUIRED
        if not tickets:
            self.context.num_tickets = 0
        if tls is not None:
            self.context.minimum_version = self.context.maximum_version = VERSIONS[tls]
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host, self.port = self._listening.getsockname()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def wait_quiet(self) -> None:
        """Waits until what is dead has been read to its end, so that everything has been counted."""
        deadline = time.monotonic() + PATIENCE
        while any(each.dead for each in list(self._open)):
            assert time.monotonic() < deadline, "a dead connection is still being read"
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends everything; raises what went wrong here."""
        socket.socket.shutdown(self._listening, socket.SHUT_RDWR)
        self._accepting.join(PATIENCE)
        self._listening.close()
        for connection, thread in list(self._open.items()):
            connection.interrupt()
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            connection = _Connection(self, sock, self.connections)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self._open[connection] = thread
            thread.start()

    def _run(self, connection: _Connection) -> None:
        try:
            connection.run()
        except BaseException as error:
            self._errors.append(error)
        finally:
            del self._open[connection]


class _Connection:
    def __init__(self, mortal: Mortal, sock: socket.socket, number: int) -> None:
        self.dead = False
        self._died = 0.0
        self._mortal = mortal
        self._fate = mortal.fate
        self._sock = sock
        self._number = number
        self._place = 1  # of the request that comes next, or is being served
        self._current: Arrival | None = None
        self._plain = b""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = mortal.context.wrap_bio(self._in, self._out, server_side=True)
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        try:
            death = self._fate.of_connection(self._number)
            self._die_at("accept", death)
            self._shake_hands(death)
            while self._serve_one():
                pass
        except _Dead as exc:
            self.dead = True
            self._die(exc.death)
        except (OSError, EOFError):
            pass  # the other side went, or we are being stopped
        finally:
            self._sock.close()

    def interrupt(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # -- living ----------------------------------------------------------------------------------------

    def _shake_hands(self, death: Death | None) -> None:
        if death is not None and death.point == "hello":
            self._sock.recv(int(death.at))
            raise _Dead(death)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if death is not None and death.point == "flight" and self._out.pending:
                    self._sock.sendall(self._out.read()[: int(death.at)])
                    raise _Dead(death) from None
                self._push()
                self._pull()
        if death is not None and death.point == "finished":
            self._out.read()
        self._die_at("finished", death)
        self._die_at("opened", death)  # its tickets go out together with its end
        self._push()

    def _serve_one(self) -> bool:
        patience = self._fate.patience if self._place > 1 else None
        if not select.select([self._sock], [], [], patience)[0]:
            raise _Dead(Death("idle", "rst"))
        death = self._fate.of_next(self._number, self._place)
        if death is not None and not self._plain:
            if not self._sock.recv(1, socket.MSG_PEEK):
                return False
            if death.at:
                self._in.write(self._sock.recv(int(death.at)))
            raise _Dead(death)
        while b"\r\n\r\n" not in self._plain:
            self._more()
        head, _, self._plain = self._plain.partition(b"\r\n\r\n")
        self._current = arrival = self._note(head)
        death = self._fate.of_request(arrival.name, len(self._mortal.arrivals[arrival.name]))
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        interim = death is not None and death.point == "interim"
        if interim or b"expect" in fields:
            self._send(b"HTTP/1.1 %s\r\n\r\n" % (b"100 Continue" if b"expect" in fields else b"103 Early"))
            arrival.sent = Sent.SOME
        self._die_at("interim", death)
        self._read_body(arrival, fields, death)
        arrival.executed = True
        self._die_at("body", death)  # of a request without one
        self._die_at("before", death)
        self._answer(arrival, head.startswith(b"HEAD "), death)
        self._current = None
        self._place += 1
        if death is not None and death.point == "idle":
            time.sleep(death.at)
            raise _Dead(death)
        self._die_at("after", death)
        return True

    def _read_body(self, arrival: Arrival, fields: dict[bytes, bytes], death: Death | None) -> None:
        limit = int(death.at) if death is not None and death.point == "body" else None
        if b"transfer-encoding" in fields:
            while size := int(self._line(), 16):
                self._take(arrival, size, limit, death)
                self._line()
            self._line()
        else:
            self._take(arrival, int(fields.get(b"content-length", 0)), limit, death)

    def _take(self, arrival: Arrival, size: int, limit: int | None, death: Death | None) -> None:
        while size:
            if not self._plain:
                self._more()
            piece, self._plain = self._plain[:size], self._plain[size:]
            arrival.body += piece
            size -= len(piece)
            if limit is not None and len(arrival.body) > limit:
                assert death is not None
                raise _Dead(death)

    def _line(self) -> bytes:
        while b"\r\n" not in self._plain:
            self._more()
        line, _, self._plain = self._plain.partition(b"\r\n")
        return line

    def _answer(self, arrival: Arrival, head_only: bool, death: Death | None) -> None:
        reply = self._fate.reply(arrival.name)
        head, body = reply.head, b"" if head_only else reply.body
        point = None if death is None else death.point
        if death is not None and point in ("record", "answer head", "answer body"):
            at = int(death.at)
            if point == "record":
                self._tls.write(head + body)
                self._sock.sendall(self._out.read()[: min(at, len(head))])
            elif point == "answer head" or not body:
                arrival.sent = Sent.SOME
                self._send(head[: at % (len(head) - 1) + 1])
            else:
                arrival.sent = Sent.HEAD
                self._send(head + body[: at % len(body)])
            raise _Dead(death)
        # Told first: the caller may have its answer, and ask us about it, before the next line runs.
        arrival.sent = Sent.WHOLE
        self._send(head + body)
        if reply.closes and not head_only:
            self._current = None
            raise _Dead(Death("after", "notify"))

    def _note(self, head: bytes) -> Arrival:
        found = _FIRST_LINE.match(head)
        assert found, head
        when = self._died or time.monotonic()
        arrival = Arrival(found[1].decode(), self._number, self._place, when)
        with self._mortal.lock:
            arrivals = self._mortal.arrivals.setdefault(arrival.name, [])
            arrivals.append(arrival)
            arrivals.sort(key=lambda each: each.when)  # secret reading tells late
        return arrival

    def _send(self, data: bytes) -> None:
        self._tls.write(data)
        self._push()

    def _push(self) -> None:
        if self._out.pending:
            self._sock.sendall(self._out.read())

    def _pull(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise EOFError
        self._in.write(data)

    def _more(self) -> None:
        while True:
            try:
                data = self._tls.read(65536)
                break
            except ssl.SSLWantReadError:
                self._push()
                self._pull()
        if not data:
            raise EOFError
        self._plain += data

    # -- dying -----------------------------------------------------------------------------------------

    def _die_at(self, point: Point, death: Death | None) -> None:
        if death is not None and death.point == point:
            raise _Dead(death)

    def _die(self, death: Death) -> None:
        self._died = time.monotonic()
        with self._mortal.lock:
            self._mortal.deaths[death.point, death.way] += 1
        try:
            if death.way == "rst":
                self._push()
                self._read_secretly(0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._sock.close()
                if self._current is None and self._place > 1 and not self._plain:
                    with self._mortal.lock:
                        self._mortal.blind += 1
            else:
                if death.way == "notify":
                    self._say_goodbye()
                self._push()
                self._sock.shutdown(socket.SHUT_WR)
                self._read_secretly(_SECRET)
        except OSError:
            pass  # the other side went first
        if self._plain and self._current is None:
            if _FIRST_LINE.match(self._plain):
                self._note(self._plain)
            else:
                self._mortal.unknown += 1

    def _say_goodbye(self) -> None:
        self._decrypt()
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it waits for the other side's

    def _read_secretly(self, seconds: float) -> None:
        """All that comes within that time, or has come if it is 0."""
        deadline = time.monotonic() + seconds
        while select.select([self._sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                data = self._sock.recv(65536)
            except OSError:
                break
            if not data:
                break
            self._in.write(data)
        self._decrypt()

    def _decrypt(self) -> None:
        try:
            while data := self._tls.read(65536):
                self._plain += data
        except (ssl.SSLError, ValueError):
            pass  # that was all, or there never was a handshake


@contextmanager
def mortal(
    files: Files, trust: Path, fate: Fate, *, tls: TlsVersion | None = None, tickets: bool = True
) -> Iterator[Mortal]:
    """A `Mortal` for the length of a with block."""
    upstream = Mortal(files, trust, fate, tls=tls, tickets=tickets)
    try:
        yield upstream
    finally:
        upstream.stop()
