"""What a TLS server sends, spoilt in any way, for an upstream connection that has no socket.

A script of bytes says how, so that hypothesis and atheris can both write it.

The server's end is a real OpenSSL whose keys are known. In half of the scripts its records are opened, spoilt
inside and sealed again, since nothing else gets behind the check of a record.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from OpenSSL import SSL
from OpenSSL._util import lib as openssl

from sidecert.evidence import evidence
from sidecert.explain import explain
from sidecert.generation import Upstream
from sidecert.http1 import ResponseHead
from sidecert.metrics import RouteStats
from sidecert.outcome import Ending, Outcome, Stage, decide
from sidecert.upstream import UpstreamConnection
from support.certs import Pki
from support.inside import generation
from support.known_keys import (
    ALERT,
    CHANGE_CIPHER,
    DATA,
    FINISHED,
    HANDSHAKE,
    HELLO_REQUEST,
    KEY_UPDATE,
    NEW_TICKET,
    KnownKeys,
    Seal13,
    alert,
    message,
    record,
    server_context,
)
from support.recorder import TlsVersion
from support.sidecar import config, route

REQUEST = b"GET /secret-path HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = bytes(range(256)) * 80
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
MOST_SENT = 256 * 1024
TURNS = 12
VERSIONS: tuple[TlsVersion, ...] = ("1.2", "1.3")
CREDENTIALS = ("alice", "stranger", "none")


class Script:
    """Bytes read as numbers and pieces; zeros where they have run out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.piece(size).ljust(size, b"\0"))

    def piece(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece


@dataclass
class Unit:
    """A record: as it is on the wire, or, where `inner` tells its type, what is to be sealed."""

    body: bytes
    inner: int | None = None


class Reopened:
    """Opens the records of a TLS 1.3 server, and seals what becomes of them."""

    def __init__(self, keys: KnownKeys) -> None:
        self._keys = keys
        self._reads: Seal13 | None = None
        self._writes: Seal13 | None = None
        self._wrote_finished = False

    def open(self, unit: bytes) -> Unit:
        if unit[0] != DATA:
            return Unit(unit)
        if self._reads is None:
            self._reads = self._keys.seal13(handshake=True)
            self._writes = self._keys.seal13(handshake=True)
        kind, body = self._reads.open(unit)
        if kind == HANDSHAKE and body[0] == FINISHED:
            self._reads = self._keys.seal13()
        return Unit(body, kind)

    def seal(self, unit: Unit) -> bytes:
        if unit.inner is None:
            return unit.body
        if self._writes is None:
            return record(unit.inner, unit.body[: 1 << 14])
        sealed = self._writes.seal(unit.inner, unit.body[:40000])
        kind = unit.body[0] if unit.inner == HANDSHAKE and unit.body else None
        if kind == FINISHED and not self._wrote_finished:
            self._wrote_finished = True
            self._writes = self._keys.seal13()
        elif kind == KEY_UPDATE and self._wrote_finished:
            self._writes.update()
        return sealed


def spoil(script: Script, units: list[Unit]) -> Ending | None:
    """Change `units` as the script says; gives back an end of the connection, if there is to be one."""
    kind = script.number() % 11
    at, offset, amount, value = (script.number() for _ in range(4))
    if kind == 0:
        units.insert(at % (len(units) + 1), _forged(script, amount, value))
        return None
    if kind == 1:
        # Not abandoned or timed out here: those come from us, and are tried at the end.
        return Ending.EOF if value & 1 else Ending.RESET
    if not units:
        return None
    at %= len(units)
    unit = units[at]
    if kind == 2:
        del units[at]
    elif kind == 3:
        units[at:at] = [unit] * (amount % 70)
    elif kind == 4:
        other = value % len(units)
        units[at], units[other] = units[other], unit
    elif kind == 5:
        del units[at:]
    else:
        units[at] = Unit(_edit(script, kind, unit, offset | value << 8, amount), unit.inner)
    return None


def _edit(script: Script, kind: int, unit: Unit, offset: int, amount: int) -> bytes:
    body = unit.body
    where = offset % (len(body) + 1)
    if kind == 6:
        changed = bytes(a ^ b for a, b in zip(body[where : where + 2], script.piece(2), strict=False))
        body = body[:where] + changed + body[where + len(changed) :]
    elif kind == 7:
        body = body[:where] + script.piece(amount % 8) + body[where:]
    elif kind == 8:
        body = body[:where] + body[where + amount :]
    elif kind == 9:
        body = body[:where]
    else:
        body = body[:where] + bytes(amount * 300) + body[where:]
    return _mended(body, unit.inner is None) if script.number() & 1 else body


def _mended(body: bytes, has_head: bool) -> bytes:
    """With lengths that are right again, so that the change is found further inside."""
    head, inner = (body[:5], body[5:]) if has_head else (b"", body)
    if has_head and len(head) < 5:
        return body
    if (not has_head or head[0] == HANDSHAKE) and len(inner) >= 4:
        inner = message(inner[0], inner[4:])
    return (head[:3] + min(len(inner), 65535).to_bytes(2) if has_head else b"") + inner


def _forged(script: Script, amount: int, value: int) -> Unit:
    kind, body = (
        (ALERT, alert(value, 1 + amount % 2)),
        (HANDSHAKE, message(HELLO_REQUEST, b"")),
        (HANDSHAKE, message(KEY_UPDATE, bytes((value % 3,)))),
        (HANDSHAKE, message(NEW_TICKET, script.piece(amount % 40))),
        (HANDSHAKE, message(value, script.piece(amount % 40), amount << 4)),
        (CHANGE_CIPHER, b"\1"),
        (DATA, script.piece(amount % 20)),
        (value, script.piece(amount % 20)),
    )[script.number() % 8]
    return Unit(body, kind) if script.number() & 1 else Unit(record(kind, body))


class Transport(asyncio.Transport):
    """Keeps what is written; nothing is said back."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.ends = 0
        self._waiting = b""

    def write(self, data: Any) -> None:
        self.sent += len(data)
        self._waiting += data

    def take(self) -> bytes:
        waiting, self._waiting = self._waiting, b""
        return waiting

    def close(self) -> None:
        self.ends += 1

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class NoSocket:
    """What a connection asks of its socket."""

    def __init__(self, like: socket.socket) -> None:
        self.fileno = like.fileno

    def detach(self) -> int:
        return -1

    def recv(self, size: int) -> bytes:
        raise BlockingIOError


class Taker:
    """Who has called: it collects the answer."""

    def __init__(self) -> None:
        self.body = b""
        self.statuses: list[int] = []
        self.ends: list[str] = []

    def take_interim(self, head: ResponseHead) -> None:
        self.statuses.append(head.status)

    def take_answer(self, head: ResponseHead, piece: bytes, done: bool) -> None:
        self.statuses.append(head.status)
        self.take_piece(piece, done)

    def take_piece(self, piece: bytes, done: bool) -> None:
        self.body += piece
        if done:
            self.ends.append("whole")

    def upstream_ended(self, error: Exception | None) -> None:
        self.ends.append("cut")

    def pause_caller(self) -> None: ...

    def resume_caller(self) -> None: ...


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Spoilt:
    """Plays scripts. `play` raises AssertionError where the connection broke a promise."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        self._near, self._far = socket.socketpair()
        self._errors = _Errors()
        logging.getLogger("sidecert").addHandler(self._errors)
        self._loop = asyncio.new_event_loop()
        self._contexts = {
            (tls, asks): server_context(pki.upstream, tls, asks=asks, takes=(pki.ca.certificate,))
            for tls in VERSIONS
            for asks in (False, True)
        }
        self._upstreams = self._make_upstreams(folder, pki)

    def _make_upstreams(self, folder: Path, pki: Pki) -> dict[tuple[str, bool], Upstream]:
        class Nowhere:
            host, port = "127.0.0.1", 1

        routes = {
            (credential, trusted): route(
                f"{credential}-{trusted}".lower(),
                Nowhere,
                trust=pki.trust if trusted else pki.other_trust,
                credential=credential,
            )
            for credential in CREDENTIALS
            for trusted in (False, True)
        }
        made = generation(folder, config([*routes.values()], pki.credentials)).routes
        return {key: made[spec["id"]].upstream("127.0.0.1") for key, spec in routes.items()}

    def close(self) -> None:
        logging.getLogger("sidecert").removeHandler(self._errors)
        self._loop.close()
        self._near.close()
        self._far.close()

    def play(self, data: bytes) -> Outcome:
        """One connection against one script; the outcome it came to."""
        return self._loop.run_until_complete(self._play(Script(data)))

    async def _play(self, script: Script) -> Outcome:
        choice = script.number()
        tls, asks = VERSIONS[choice & 1], bool(choice & 2)
        upstream = self._upstreams[CREDENTIALS[(choice >> 2 & 3) % 3], choice & 0xF0 != 0xF0]
        one = _One(self._near, upstream, KnownKeys(self._contexts[tls, asks]), tls, asks)
        if choice & 16:
            one.reopened = Reopened(one.server)
        self._errors.records.clear()
        one.play(script)
        await asyncio.sleep(0)
        assert not self._errors.records, self._errors.records[0].getMessage()
        return one.judge()


class _One:
    """One connection."""

    def __init__(
        self, near: socket.socket, upstream: Upstream, server: KnownKeys, tls: TlsVersion, asks: bool
    ) -> None:
        self.server = server
        self.reopened: Reopened | None = None
        self._tls, self._asks = tls, asks
        self._stats = RouteStats()
        self._ends = 0
        self._upstream = upstream
        self._transport = Transport()
        self._taker = Taker()
        self._answered = self._begun = False
        self._connection = UpstreamConnection(upstream, self._stats, self._count)
        self._connection.seen.stage = Stage.CONNECTING
        self._connection._socket = NoSocket(near)  # type: ignore[assignment]

    def _count(self, connection: UpstreamConnection) -> None:
        self._ends += 1

    def play(self, script: Script) -> None:
        connection = self._connection
        connection.connection_made(self._transport)
        for turn in range(TURNS):
            units = self._turn()
            ending = self._spoil(script, units) if turn < 6 else None
            for piece in self._pieces(units, script.number() if turn < 6 else 0):
                if connection.ended:
                    break
                connection.data_received(piece)
                _check_nothing_left_in_openssl()
                self._begin()
            if ending is not None:
                self._lose(ending)
            if connection.ended:
                break
            if not units and script.number() & 1 and connection._hold is not None:
                connection._held_long_enough()
                self._begin()
        self._finish(script.number())
        _check_nothing_left_in_openssl()

    def _turn(self) -> list[Unit]:
        """What the server has to say to what has come."""
        try:
            said = self.server.take(self._transport.take())
            if self.server.done and not self._answered and self.server.read():
                self._answered = True
                said += self.server.write(ANSWER)
        except SSL.Error:
            said = []  # it has been made to see nonsense: it falls silent
        if self.reopened is None or self._tls == "1.2":
            return [Unit(each) for each in said]
        try:
            return [self.reopened.open(each) for each in said]
        except InvalidTag:
            return []

    def _spoil(self, script: Script, units: list[Unit]) -> Ending | None:
        for _ in range(script.number() % 4):
            if script.over:
                return None
            if ending := spoil(script, units):
                return ending
        return None

    def _pieces(self, units: list[Unit], choice: int) -> list[bytes]:
        """The wire, cut as `choice` says: nowhere, at the records, or anywhere."""
        reopened = self.reopened or Reopened(self.server)
        wires = [reopened.seal(unit) for unit in units]
        if choice & 1:
            return [wire for wire in wires if wire]
        wire = b"".join(wires)
        step = max(1, choice * len(wire) >> 8) if choice else len(wire)
        return [wire[at : at + step] for at in range(0, len(wire), step)] if wire else []

    def _begin(self) -> None:
        connection = self._connection
        if not self._begun and connection._opened.done() and not connection.ended:
            self._begun = True
            connection.begin(self._taker, b"GET", REQUEST, None)
            _check_nothing_left_in_openssl()

    def _lose(self, ending: Ending) -> None:
        if ending is Ending.EOF:
            self._connection.eof_received()
            self._connection.connection_lost(None)
        else:
            self._connection.connection_lost(ConnectionResetError("Connection reset by peer"))

    def _finish(self, choice: int) -> None:
        connection = self._connection
        if choice % 4 == 0:
            self._lose(Ending.EOF)
        elif choice % 4 == 1:
            self._lose(Ending.RESET)
        elif choice % 4 == 2:
            connection.leave()
        else:
            connection.seen.timeout = 5.0
            connection._end(Ending.TIMEOUT)
        connection.connection_lost(None)  # as transports say in any case

    def judge(self) -> Outcome:
        """Whether all that is promised was kept."""
        connection = self._connection
        assert connection.ended
        assert self._ends == 1
        assert self._transport.ends == 1
        counts = self._stats.outcomes()
        assert sum(counts.values()) == 1
        outcome = connection.outcome
        assert outcome is not None
        assert counts == {outcome: 1}
        assert self._transport.sent <= MOST_SENT
        self._judge_ok(outcome)
        self._judge_answer(outcome)
        self._judge_words(outcome)
        return outcome

    def _judge_ok(self, outcome: Outcome) -> None:
        if outcome is not Outcome.OK:
            return
        connection = self._connection
        assert connection._tls.established
        assert connection.seen.verify_code == 0
        if self.reopened is None and (self._asks or self._tls == "1.2"):
            assert self.server.done, "ok, though the server has not taken the certificate"

    def _judge_answer(self, outcome: Outcome) -> None:
        taker = self._taker
        assert len(taker.ends) <= 1
        if taker.statuses:
            assert outcome is Outcome.OK
        if self.reopened is None:  # else the server may say what it likes
            assert taker.statuses in ([], [200])
            assert BODY.startswith(taker.body)
            assert taker.ends != ["whole"] or taker.body == BODY

    def _judge_words(self, outcome: Outcome) -> None:
        seen = self._connection.seen
        assert decide(seen) is outcome
        assert len(seen.first_bytes) <= 16
        credential = self._upstream.route.credential
        certificate = None if credential is None else credential.own
        now = time.time()
        said = explain(
            outcome,
            seen,
            upstream=self._upstream.label,
            server_name=self._upstream.server_name,
            credential=self._upstream.route.credential_id,
            certificate=certificate,
            now=now,
        )
        for text in (said.title, said.cause, said.remedy, *evidence(seen, certificate, now)):
            assert text.isprintable()
            assert len(text) < 3000
            assert "secret-path" not in text


def _check_nothing_left_in_openssl() -> None:
    """An error that stays in OpenSSL's queue would be told of the next connection that is read from."""
    assert openssl.ERR_peek_error() == 0
