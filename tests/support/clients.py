"""Callers of the sidecar, as legacy tools are: curl, Python's http.client, and raw bytes on a socket.

Every wait has a timeout, so that a hang is a failure with a name.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

TIMEOUT = 20.0

Address = tuple[str, int] | str  # a string is the path of a unix socket
Headers = list[tuple[str, str]]


@dataclass
class Answer:
    """One HTTP answer as its caller saw it; `seconds` from the call to its end."""

    status: int
    headers: Headers
    body: bytes
    reason: str = ""
    seconds: float = 0.0
    trailers: Headers = field(default_factory=list)
    interim: list[int] = field(default_factory=list)  # statuses of the 1xx that came before

    def header(self, name: str) -> str | None:
        """The first value of that header, None where there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def header_values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class CurlAnswer(Answer):
    """What curl saw. `status` is 0 when no answer came; of `exit_code` 52 is empty, 18 cut short."""

    exit_code: int = 0
    message: str = ""


def url(address: Address, path: str = "/") -> str:
    """The http URL of `path` at a TCP address."""
    assert not isinstance(address, str)
    host, port = address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


def curl(
    target: str,
    *arguments: str,
    proxy: Address | None = None,
    body: bytes | None = None,
    upload: bytes | None = None,
    timeout: float = TIMEOUT,
) -> CurlAnswer:
    """Runs curl on `target`, through `proxy` when given; `arguments` go before the URL as they are.

    `proxy` as a string is a unix socket that is spoken to in place of the URL's host. `body` goes with its
    length, `upload` as a file of unknown length (`-T -`), chunked.
    """
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed (Debian: apt-get install curl)")
    with tempfile.TemporaryDirectory() as folder:
        head, content = Path(folder, "head"), Path(folder, "body")
        command = [program, "-q", "-sS", "--max-time", str(timeout), "-D", str(head), "-o", str(content)]
        command += ["-w", "%{http_code} %{time_total}", *arguments]
        match proxy:
            case str():
                command += ["--unix-socket", proxy]
            case (_, _):
                command += ["--proxy", url(proxy, "")]
            case None:
                command += ["--noproxy", "*"]
        if body is not None:
            command += ["--data-binary", "@-"]
        if upload is not None:
            command += ["-T", "-"]
        ran = subprocess.run(
            [*command, target],
            input=upload if body is None else body,
            capture_output=True,
            timeout=timeout + 10,
            check=False,
            env={"PATH": "", "LC_ALL": "C"},  # so that no proxy variable of the machine's takes part
        )
        status, _, seconds = ran.stdout.decode().rpartition("\n")[2].partition(" ")
        blocks = _head_blocks(head.read_bytes() if head.exists() else b"")
        final = blocks[-1] if blocks else (0, "", [])
        return CurlAnswer(
            status=int(status),
            reason=final[1],
            headers=final[2],
            # For HEAD curl puts the head where the body goes.
            body=content.read_bytes() if content.exists() and not {"-I", "--head"} & {*arguments} else b"",
            seconds=float(seconds),
            interim=[block[0] for block in blocks[:-1]],
            exit_code=ran.returncode,
            message=ran.stderr.decode(errors="replace").strip(),
        )


class UnixHTTPConnection(http.client.HTTPConnection):
    """http.client on a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, self.timeout or TIMEOUT)


class Caller:
    """One keep-alive connection of Python's http.client.

    `call` gives the URL to http.client as it is: an absolute URL is sent as a forward proxy's client does.
    """

    def __init__(self, address: Address, timeout: float = TIMEOUT) -> None:
        self.connection: http.client.HTTPConnection = (
            UnixHTTPConnection(address, timeout)
            if isinstance(address, str)
            else http.client.HTTPConnection(*address, timeout=timeout)
        )

    def call(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Sends one request and reads its whole answer; a body that is no bytes is sent chunked."""
        began = time.monotonic()
        self.connection.request(method, target, body=body, headers=dict(headers or {}))
        response = self.connection.getresponse()
        content = response.read()
        return Answer(
            response.status, response.getheaders(), content, response.reason, time.monotonic() - began
        )

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.call("GET", target, headers=headers)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def call(
    address: Address,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Answer:
    """One request on a connection of its own, by http.client."""
    with Caller(address, timeout) as caller:
        return caller.call(method, target, body, headers)


def connect(address: Address, timeout: float = TIMEOUT) -> socket.socket:
    """A connected socket, TCP or unix; `timeout` holds for everything that is done with it."""
    if not isinstance(address, str):
        return socket.create_connection(address, timeout)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class Talker:
    """Raw bytes to the sidecar and back, with just enough HTTP to find where an answer ends."""

    def __init__(self, address: Address, timeout: float = TIMEOUT) -> None:
        self.sock = connect(address, timeout)
        self.buffer = b""  # what came and has not been asked for

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_bytewise(self, data: bytes) -> None:
        """One byte at a time, each in a packet of its own as far as the kernel lets us."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for value in data:
            self.sock.sendall(bytes([value]))

    def shutdown_write(self) -> None:
        """Half-closes: the other side reads an end, we go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def read_until_close(self) -> bytes:
        """Everything up to the end of the connection; a reset raises ConnectionResetError."""
        data, self.buffer = self.buffer, b""
        pieces = [data]
        while piece := self.sock.recv(65536):
            pieces.append(piece)
        return b"".join(pieces)

    def read_exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`."""
        while mark not in self.buffer:
            self._more()
        end = self.buffer.index(mark) + len(mark)
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        return data

    def read_head(self) -> Answer:
        """The next head, 1xx too, with no body."""
        [(status, reason, headers)] = _head_blocks(self.read_until(b"\r\n\r\n"))
        return Answer(status, headers, b"", reason)

    def read_answer(self, method: str = "GET") -> Answer:
        """The next whole answer to a `method` request, after any 1xx."""
        began = time.monotonic()
        interim: list[int] = []
        answer = self.read_head()
        while answer.status < 200 and answer.status != 101:
            interim.append(answer.status)
            answer = self.read_head()
        answer.interim = interim
        self.read_body(answer, method)
        answer.seconds = time.monotonic() - began
        return answer

    def read_body(self, answer: Answer, method: str = "GET") -> None:
        """The body and trailers of the `answer` whose head was read last."""
        length = answer.header("Content-Length")
        if method == "HEAD" or answer.status in (101, 204, 304):
            pass
        elif (answer.header("Transfer-Encoding") or "").lower() == "chunked":
            answer.body, answer.trailers = self._read_chunked()
        elif length is not None:
            answer.body = self.read_exactly(int(length))
        else:
            answer.body = self.read_until_close()

    def closed(self) -> bool:
        """Waits for the other side; true when it closes or resets before it sends anything more."""
        if self.buffer:
            return False
        try:
            self.buffer = self.sock.recv(65536)
        except ConnectionResetError:
            return True
        return not self.buffer

    def reset(self) -> None:
        """Closes with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def _more(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise EOFError(f"the connection ended after {self.buffer[:200]!r}")
        self.buffer += piece

    def _read_chunked(self) -> tuple[bytes, Headers]:
        pieces = []
        while size := int(self.read_until(b"\r\n").partition(b";")[0], 16):
            pieces.append(self.read_exactly(size))
            assert self.read_exactly(2) == b"\r\n"
        lines = []
        while (line := self.read_until(b"\r\n")) != b"\r\n":
            lines.append(line)
        return b"".join(pieces), _fields(b"".join(lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def has_ipv6() -> bool:
    """Whether this machine has the loopback address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def talk(address: Address, data: bytes, timeout: float = TIMEOUT) -> bytes:
    """Sends `data` and gives back everything until the other side closes."""
    with Talker(address, timeout) as talker:
        talker.send(data)
        return talker.read_until_close()


@contextmanager
def talking(address: Address, data: bytes, timeout: float = TIMEOUT) -> Iterator[Talker]:
    """A connection on which `data` has been sent."""
    with Talker(address, timeout) as talker:
        talker.send(data)
        yield talker


def _head_blocks(data: bytes) -> list[tuple[int, str, Headers]]:
    """(status, reason, headers) of each head in `data`; heads end with an empty line."""
    blocks = []
    for block in data.split(b"\r\n\r\n"):
        line, _, rest = block.partition(b"\r\n")
        if line:
            _, _, tail = line.decode("latin-1").partition(" ")
            status, _, reason = tail.partition(" ")
            blocks.append((int(status), reason, _fields(rest)))
    return blocks


def _fields(data: bytes) -> Headers:
    fields = []
    for line in data.decode("latin-1").split("\r\n"):
        if line:
            name, _, value = line.partition(":")
            fields.append((name, value.strip()))
    return fields
