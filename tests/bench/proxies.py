"""The proxies, each adding alice's certificate and checking the same upstream, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.load import HOST
from bench.processes import Cores, pinned
from support.certs import Pki, private_folder, write_private
from support.clients import Address, call
from support.peers import Peer, free_port, nginx_program
from support.sidecar import Sidecar, config, route

_FIRST_ANSWER = 30.0  # seconds until a proxy must have answered
UPSTREAM_NAME = "localhost"
UPSTREAM_SETTINGS = (
    "keepalive_requests 1000000000; keepalive_timeout 3600s; error_log stderr error;"
    ' location /new { add_header X-Request-Id $request_id; return 200 "SUCCESS\\n"; }'
)
"""Of the nginx that they call: it keeps its connections, and gives `/new` no head twice."""


@dataclass(frozen=True)
class Place:
    """Where the proxies run: a folder of their own, the certificates, the upstream and the cores."""

    folder: Path
    pki: Pki
    upstream: Peer
    cores: Cores


@dataclass(frozen=True)
class Proxy:
    """A proxy that has answered its first call. Times in seconds from its start; `ready` where it tells."""

    pid: int
    address: Address
    first_answer: float
    ready: float | None = None


Start = Callable[[Place], AbstractContextManager[Proxy]]


@contextmanager
def sidecert(place: Place) -> Iterator[Proxy]:
    """`sidecert run` with one route, its defaults otherwise."""
    address = ("127.0.0.1", free_port())
    routes = [route("bench", place.upstream, trust=place.pki.trust, host=HOST, server_name=UPSTREAM_NAME)]
    listeners = [{"bind": f"{address[0]}:{address[1]}"}]
    begun, begun_clock = time.monotonic(), time.time()
    with pinned(place.cores.proxy):
        running = Sidecar(
            place.folder / "sidecert", config(routes, place.pki.credentials, listeners=listeners)
        )
    try:
        first_answer = _wait_for_answer(running.process, address, begun)
        running.wait_ready()
        ready = datetime.fromisoformat(running.events("ready")[0]["time"]).timestamp() - begun_clock
        yield Proxy(running.process.pid, address, first_answer, ready)
        running.stop()
    finally:
        running.kill()


@contextmanager
def nginx(place: Place) -> Iterator[Proxy]:
    """nginx as one process with a pool of upstream connections that it keeps for ever."""
    folder, pki = private_folder(place.folder / "nginx"), place.pki
    address = ("127.0.0.1", free_port())
    text = f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
            scgi_temp_path {folder}/scgi;
            upstream pool {{ server {place.upstream.address}; keepalive 64; keepalive_requests 1000000000; }}
            server {{
                listen {address[0]}:{address[1]};
                keepalive_requests 1000000000;
                location / {{
                    proxy_pass https://pool;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Host {place.upstream.address};
                    proxy_ssl_certificate {pki.alice.certificate};
                    proxy_ssl_certificate_key {pki.alice.key};
                    proxy_ssl_trusted_certificate {pki.trust};
                    proxy_ssl_verify on;
                    proxy_ssl_name {UPSTREAM_NAME};
                    proxy_ssl_server_name on;
                    proxy_ssl_protocols TLSv1.2 TLSv1.3;
                }}
            }}
        }}
    """
    path = write_private(folder / "nginx.conf", text.encode())
    command = [nginx_program(), "-p", str(folder), "-e", "stderr", "-c", str(path)]
    with _running(place, folder, address, command) as proxy:
        yield proxy


@contextmanager
def mitmdump(place: Place) -> Iterator[Proxy]:
    """Stock mitmdump in reverse mode; quiet, since a line per call would cost it more."""
    folder, pki = private_folder(place.folder / "mitmdump"), place.pki
    address = ("127.0.0.1", free_port())
    both = write_private(
        folder / "alice.pem", pki.alice.key.read_bytes() + pki.alice.certificate.read_bytes()
    )
    command = [
        *(str(Path(sys.executable).with_name("mitmdump")), "-q"),
        *("--mode", f"reverse:https://{place.upstream.address}"),
        *("--listen-host", address[0], "--listen-port", str(address[1])),
        *("--set", f"confdir={folder}"),
        *("--set", f"client_certs={both}"),
        *("--set", f"ssl_verify_upstream_trusted_ca={pki.trust}"),
    ]
    with _running(place, folder, address, command) as proxy:
        yield proxy


PROXIES: dict[str, Start] = {"nginx": nginx, "sidecert": sidecert, "mitmdump": mitmdump}
"""By name; the first is the one that the others are compared with."""


@contextmanager
def _running(place: Place, folder: Path, address: tuple[str, int], command: Sequence[str]) -> Iterator[Proxy]:
    log = folder / "output.log"
    with log.open("wb") as output, pinned(place.cores.proxy):
        begun = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=os.environ
        )
    try:
        yield Proxy(process.pid, address, _wait_for_answer(process, address, begun))
    except BaseException:
        print(f"--- {command[0]} printed:\n{log.read_text(errors='replace')}")
        raise
    finally:
        process.terminate()
        process.wait(30)


def _wait_for_answer(process: subprocess.Popen[bytes], address: Address, begun: float) -> float:
    """Seconds from `begun` to the first answer, which must be the upstream's to alice."""
    while (passed := time.monotonic() - begun) < _FIRST_ANSWER:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        try:
            answer = call(address, "GET", "/", headers={"Host": HOST})
        except ConnectionRefusedError:
            time.sleep(0.002)
            continue
        passed = time.monotonic() - begun
        check(address, answer.status, answer.body)
        return passed
    raise RuntimeError(f"{process.args!r} gave no answer within {_FIRST_ANSWER} s")


def check(address: Address, status: int, body: bytes) -> None:
    """Raises unless it was the upstream that answered, and under alice's certificate."""
    if status != 200 or not body.startswith(b"SUCCESS CN=alice "):
        raise RuntimeError(f"not the upstream's answer from {address}: {status} {body[:500]!r}")
