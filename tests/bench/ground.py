"""The upstream that the contenders of a series call: nginx, asking for a certificate, near or far away."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import tools
from bench.scenarios import GIB, KIB, MIB, Ground
from support.certs import Pki, private_folder, write_private
from support.peers import Peer, free_port, nginx_program, program_peer

_FILES = {"get-1k": KIB, "get-1m": MIB, "get-1g": GIB}


def certificates(folder: Path, ground: Ground) -> Pki:
    """alice's and the upstream's, with keys of the ground's kind; the CA's own is always EC."""
    pki = Pki.make(folder)
    if ground.key == "ec":
        return pki
    kind = ground.key
    return replace(
        pki,
        upstream=pki.ca.peer(key=kind).write(folder, f"upstream-{kind}"),
        alice=pki.ca.caller("alice", key=kind).write(folder, f"alice-{kind}"),
    )


@contextmanager
def upstream(folder: Path, pki: Pki, ground: Ground) -> Iterator[Peer]:
    """Answers `/`, `/new`, `/get-1k`, `/get-1m` and `/get-1g`, and takes bodies at `/post`.

    A body is read to its end before its answer begins, in memory.
    """
    with _nginx(folder, pki, ground) as near:
        if not ground.round_trip_ms:
            yield near
            return
        with _relay(near, ground.round_trip_ms) as far:
            yield far


@contextmanager
def _nginx(folder: Path, pki: Pki, ground: Ground) -> Iterator[Peer]:
    files = private_folder(folder / "files")
    for name, size in _FILES.items():
        with (files / name).open("wb") as file:
            file.truncate(size)

    def start(port: int) -> list[str]:
        config = f"""
            daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
            events {{ worker_connections 8192; }}
            http {{
                access_log off; default_type text/plain; tcp_nodelay on;
                keepalive_requests 1000000000; keepalive_timeout 3600s;
                client_max_body_size 0; client_body_buffer_size 1100m;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
                server {{
                    listen 127.0.0.1:{port} ssl backlog=4096;
                    ssl_certificate {pki.upstream.certificate}; ssl_certificate_key {pki.upstream.key};
                    ssl_protocols TLSv{ground.tls};
                    ssl_verify_client on; ssl_client_certificate {pki.trust}; ssl_verify_depth 3;
                    root {files};
                    location = / {{ return 200 "$ssl_client_verify $ssl_client_s_dn $ssl_protocol\\n"; }}
                    location = /new {{ add_header X-Request-Id $request_id; return 200 "SUCCESS\\n"; }}
                    location = /post {{
                        proxy_pass http://unix:{folder}/answer.sock:/;
                        proxy_pass_request_body off; proxy_set_header Content-Length "";
                    }}
                }}
                server {{ listen unix:{folder}/answer.sock; location / {{ return 200 "SUCCESS\\n"; }} }}
            }}
        """
        (folder / "answer.sock").unlink(missing_ok=True)
        path = write_private(folder / "nginx.conf", config.encode())
        return [nginx_program(), "-p", str(folder), "-e", "stderr", "-c", str(path)]

    with program_peer("upstream", folder, start) as peer:
        yield peer


@contextmanager
def _relay(near: Peer, round_trip_ms: int) -> Iterator[Peer]:
    port = free_port()
    process = subprocess.Popen([tools.relay(), str(port), str(near.port), str(round_trip_ms * 1000)])
    try:
        time.sleep(0.1)
        if process.poll() is not None:
            raise RuntimeError(f"the relay ended with status {process.returncode}")
        yield Peer("relay", port)
    finally:
        process.kill()
        process.wait()
