"""An upstream on Python's ssl that writes down what it saw and answers as it is told.

`TlsRecorder` hands each request to its `answer`, a function of one `Exchange`; the ready-made ones below
cover the usual shapes, and a test may write its own from `read_body`, `send`, `finish` and `abort`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from support.certs import Files

TlsVersion = Literal["1.2", "1.3"]
Headers = list[tuple[str, str]]

PATIENCE = 30.0  # seconds for any one read or write, so that no thread outlives its test for long
KEPT = 1 << 20  # bytes of a body that are kept; the rest is counted and hashed only
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass
class Seen:
    """One request as it arrived. `subject` is the caller's certificate's common name, None without one."""

    raw_head: bytes
    method: str
    target: str
    version: str
    headers: Headers
    subject: str | None
    connection: int  # counts the peer's connections from 1
    tls: str
    server_name: str | None
    fingerprint: str | None = None  # of the certificate that `subject` is in, SHA-256 of its DER form
    chain: int = 0  # certificates that came in the handshake
    resumed: bool = False  # the connection goes on with a TLS session of an earlier one
    body: bytes = b""  # its first KEPT bytes
    length: int = 0
    sha256: str = ""
    trailers: Headers = field(default_factory=list)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def header_values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Exchange:
    """One request and what is done about it; the connection is kept unless `finish` or `abort` is called."""

    def __init__(self, seen: Seen, wire: ssl.SSLSocket, reader: BinaryIO) -> None:
        self.seen = seen
        self.wire = wire
        self.ended = False
        self._reader = reader
        self._read = False

    def read_body(self, *, proceed: bool = True) -> Seen:
        """Reads the request's body to its end, after a 100 where the caller asked for one."""
        if self._read:
            return self.seen
        self._read = True
        if proceed and (self.seen.header("Expect") or "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        digest = hashlib.sha256()
        for piece in self.body_pieces():
            digest.update(piece)
            self.seen.length += len(piece)
            self.seen.body += piece[: KEPT - len(self.seen.body)]
        self.seen.sha256 = digest.hexdigest()
        return self.seen

    def body_pieces(self) -> Iterator[bytes]:
        """The body as it comes, in pieces of at most 64 KiB; raises EOFError when it is cut short."""
        if (self.seen.header("Transfer-Encoding") or "").lower() == "chunked":
            while size := int(self._line().partition(b";")[0], 16):
                yield from self._exactly(size)
                self._line()
            while line := self._line().strip():
                self.seen.trailers.append(_field(line))
        elif length := self.seen.header("Content-Length"):
            yield from self._exactly(int(length))

    def read_raw_body(self) -> bytes:
        """The body to its end, byte for byte as it came, with chunk sizes and trailers; small ones only."""
        self._read = True
        if (self.seen.header("Transfer-Encoding") or "").lower() != "chunked":
            return b"".join(self._exactly(int(self.seen.header("Content-Length") or 0)))
        lines = [self._line()]
        while size := int(lines[-1].partition(b";")[0], 16):
            lines += [*self._exactly(size + 2), self._line()]
        while lines[-1] != b"\r\n":
            lines.append(self._line())
        return b"".join(lines)

    def send(self, data: bytes) -> None:
        self.wire.sendall(data)

    def finish(self) -> None:
        """Ends the connection cleanly, with a close_notify."""
        self.ended = True
        try:
            self.wire.settimeout(1)  # the other side need not answer our close_notify
            self.wire.unwrap().close()
        except (OSError, ValueError):
            self.wire.close()

    def cut(self) -> None:
        """Ends the connection with a bare FIN: for TLS a truncation."""
        self.ended = True
        socket.socket.shutdown(self.wire, socket.SHUT_RDWR)

    def abort(self) -> None:
        """Ends the connection with a RST."""
        self.ended = True
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._reader.close()  # it holds the descriptor too; the last one to close sends the RST
        self.wire.close()

    def _line(self) -> bytes:
        line = self._reader.readline(65536)
        if not line.endswith(b"\n"):
            raise EOFError("the request ended in the middle of a line")
        return line

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._reader.read(min(size, 65536))
            if not piece:
                raise EOFError(f"the request's body ended {size} bytes early")
            size -= len(piece)
            yield piece


AnswerFunction = Callable[[Exchange], None]


def head(status: int = 200, *fields: tuple[str, str], reason: str = "Whatever") -> bytes:
    """A head with these fields and nothing else."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def echo(exchange: Exchange) -> None:
    """200 and a JSON object of what was seen; without a body to HEAD."""
    seen = exchange.read_body()
    body = json.dumps(
        {
            "method": seen.method,
            "target": seen.target,
            "headers": seen.headers,
            "subject": seen.subject,
            "length": seen.length,
            "sha256": seen.sha256,
            "body": seen.body[:65536].decode("latin-1"),
            "connection": seen.connection,
        }
    ).encode()
    fields = ("Content-Type", "application/json"), ("Content-Length", str(len(body)))
    exchange.send(head(200, *fields) + (b"" if seen.method == "HEAD" else body))


def fixed(body: bytes = b"fine", status: int = 200, *fields: tuple[str, str]) -> AnswerFunction:
    """That body with its Content-Length."""

    def answer(exchange: Exchange) -> None:
        seen = exchange.read_body()
        content = b"" if seen.method == "HEAD" else body
        exchange.send(head(status, *fields, ("Content-Length", str(len(body)))) + content)

    return answer


def chunked(pieces: Iterable[bytes], trailers: Headers | None = None) -> AnswerFunction:
    """Each piece as one chunk, then the trailers."""
    kept = list(pieces)

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Transfer-Encoding", "chunked")))
        for piece in kept:
            exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n")
        exchange.send("".join(f"{name}: {value}\r\n" for name, value in trailers or []).encode() + b"\r\n")

    return answer


def until_close(body: bytes) -> AnswerFunction:
    """A body that ends where the connection ends, with a close_notify."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200) + body)
        exchange.finish()

    return answer


def stream(total: int, piece: bytes = b"s" * 65536) -> AnswerFunction:
    """`total` bytes of `piece` again and again, with Content-Length."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", str(total))))
        left = total
        while left:
            size = min(left, len(piece))
            exchange.send(piece[:size])
            left -= size

    return answer


def gated(gate: threading.Event, *pieces: bytes) -> AnswerFunction:
    """The head and the first piece at once, each further piece when `gate` has been set anew."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", str(sum(map(len, pieces))))) + pieces[0])
        for piece in pieces[1:]:
            assert gate.wait(PATIENCE)
            gate.clear()
            exchange.send(piece)

    return answer


def whole_or_cut(ends: list[str]) -> AnswerFunction:
    """Writes down whether each request's body comes to its end, and answers none."""

    def answer(exchange: Exchange) -> None:
        try:
            exchange.read_body()
            ends.append("whole")
        except (EOFError, OSError):
            ends.append("cut")
        exchange.ended = True

    return answer


def silence(exchange: Exchange) -> None:
    """Reads the request and never answers; ends when the caller does, or the peer is stopped."""
    exchange.read_body()
    exchange.wire.recv(1)
    exchange.ended = True


def cut_short(sent: bytes = b"half", promised: int = 1000, *, reset: bool = False) -> AnswerFunction:
    """Promises more than it sends, then ends the connection with a FIN, or a RST."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", str(promised))) + sent)
        if reset:
            exchange.abort()
        else:
            exchange.cut()

    return answer


def raw(data: bytes, *, finish: bool = False) -> AnswerFunction:
    """Those bytes, whatever they are."""

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(data)
        if finish:
            exchange.finish()

    return answer


def closing_after(exchanges: int, then: AnswerFunction = echo, *, announced: bool = False) -> AnswerFunction:
    """`then`; after that many exchanges the connection ends, with `Connection: close` if announced."""
    counts: dict[int, int] = {}

    def answer(exchange: Exchange) -> None:
        number = counts[exchange.seen.connection] = counts.get(exchange.seen.connection, 0) + 1
        if number < exchanges:
            then(exchange)
            return
        if announced:
            exchange.read_body()
            exchange.send(head(200, ("Content-Length", "4"), ("Connection", "close")) + b"last")
        else:
            then(exchange)
        exchange.finish()

    return answer


def after_interim(status: int, *fields: tuple[str, str], then: AnswerFunction = echo) -> AnswerFunction:
    """A 1xx head, then what `then` answers."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(status, *fields))
        then(exchange)

    return answer


class TlsRecorder:
    """A threaded TLS server on a free port of `host`. `answer` may be changed while it runs.

    `trust` is the CA of callers' certificates; `verify` off asks for none, optional takes both.
    `requests` holds what was seen, `connections` and `handshakes` count, `failures` has the text of each
    handshake that failed, `failed_at` its time. An error in an `answer` fails the test when the
    recorder is stopped.
    """

    name = "python"

    def __init__(
        self,
        files: Files,
        trust: Path,
        *,
        tls: TlsVersion | None = None,
        verify: Literal["on", "optional", "off"] = "on",
        answer: AnswerFunction = echo,
        configure: Callable[[ssl.SSLContext], None] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.answer = answer
        self.shut = False
        """Whether new connections are closed as soon as they come; those that stand go on."""
        self.requests: list[Seen] = []
        self.failures: list[str] = []
        self.failed_at: list[float] = []
        self.connections = 0
        self.handshakes = 0
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._open: set[ssl.SSLSocket | socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._context = self._make_context(files, trust, tls, verify)
        if configure is not None:
            configure(self._context)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server(
            (host, 0), family=family, backlog=128, dualstack_ipv6=host == "::"
        )
        self.host, self.port = self._listening.getsockname()[:2]
        self._stopped = False
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Waits until `condition` holds; it is looked at whenever the recorder has seen something."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"{condition} never came true"

    def drop_connections(self) -> None:
        """Ends every open connection with a FIN."""
        with self._changed:
            for wire in list(self._open):
                _shut(wire)

    def stop(self) -> None:
        """Ends everything; raises what an `answer` raised."""
        self._stopped = True
        _shut(self._listening)
        self._listening.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]

    def _make_context(self, files: Files, trust: Path, tls: TlsVersion | None, verify: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        if verify != "off":
            context.load_verify_locations(trust)
        context.verify_mode = {
            "on": ssl.CERT_REQUIRED,
            "optional": ssl.CERT_OPTIONAL,
            "off": ssl.CERT_NONE,
        }[verify]
        if tls is not None:
            context.minimum_version = context.maximum_version = VERSIONS[tls]
        context.sni_callback = _note_server_name
        return context

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _note(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                self._open.add(plain)
                self._changed.notify_all()
            if self._stopped:
                plain.close()
                return
            if self.shut:
                with self._changed:
                    self._open.discard(plain)
                plain.close()
                continue
            self._start(self._serve, plain, number)

    def _serve(self, plain: socket.socket, number: int) -> None:
        plain.settimeout(PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            wire = self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=True)
        except (OSError, ValueError) as error:
            text, now = str(error), time.monotonic()
            self._note(lambda: self.failed_at.append(now))
            self._note(lambda: self.failures.append(text))
            with self._changed:
                self._open.discard(plain)
            plain.close()
            return
        with self._changed:
            self.handshakes += 1
            self._open.discard(plain)
            self._open.add(wire)
            self._changed.notify_all()
        try:
            with wire, wire.makefile("rb") as reader:
                while self._one(wire, reader, number):
                    pass
        except (OSError, EOFError):
            pass  # the other side went, or we are being stopped
        except BaseException as error:
            self._errors.append(error)
        finally:
            with self._changed:
                self._open.discard(wire)
                self._changed.notify_all()

    def _one(self, wire: ssl.SSLSocket, reader: BinaryIO, number: int) -> bool:
        lines = []
        while (line := reader.readline(1 << 20)).strip():
            lines.append(line)
        if not line or not lines:
            return False
        method, target, version = lines[0].decode("latin-1").split()
        seen = Seen(
            raw_head=b"".join(lines) + line,
            method=method,
            target=target,
            version=version,
            headers=[_field(each) for each in lines[1:]],
            subject=_common_name(wire),
            connection=number,
            tls=wire.version() or "",
            server_name=getattr(wire, "asked_server_name", None),
            fingerprint=_fingerprint(wire),
            chain=_chain_length(wire),
            resumed=bool(wire.session_reused),
        )
        self._note(lambda: self.requests.append(seen))
        exchange = Exchange(seen, wire, reader)
        self.answer(exchange)
        self._note(lambda: None)
        return not exchange.ended


@contextmanager
def tls_recorder(files: Files, trust: Path, **options: object) -> Iterator[TlsRecorder]:
    """A `TlsRecorder` for the length of a with block."""
    recorder = TlsRecorder(files, trust, **options)  # type: ignore[arg-type]
    try:
        yield recorder
    finally:
        recorder.stop()


def _note_server_name(wire: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
    wire.asked_server_name = name  # type: ignore[union-attr]


def _common_name(wire: ssl.SSLSocket) -> str | None:
    for group in (wire.getpeercert() or {}).get("subject", ()):
        for pair in group:
            if pair[0] == "commonName":
                return str(pair[1])
    return None


def _fingerprint(wire: ssl.SSLSocket) -> str | None:
    certificate = wire.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else None


def _chain_length(wire: ssl.SSLSocket) -> int:
    # Private before Python 3.13. Where there is no certificate it holds a None.
    return sum(each is not None for each in wire._sslobj.get_unverified_chain() or ())  # type: ignore[attr-defined]


def _shut(sock: socket.socket) -> None:
    # Not SSLSocket.shutdown: that would take TLS away from under the thread which is using it.
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


def _field(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode("latin-1").partition(":")
    return name, value.strip()
