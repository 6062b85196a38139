"""Real TLS servers that stand in front of a plain HTTP service, as stunnel and Apache mostly do.

The service behind them counts what reaches it, so a test can tell that nothing of a request did.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.certs import Files, private_folder, write_private
from support.peers import Peer, Verify, find_program, program_peer, raw_peer
from support.recorder import TlsVersion

_APACHE_MODULES = Path("/usr/lib/apache2/modules")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nfine\n"


@dataclass
class Behind:
    """The plain service. `connections` counts those on which at least a byte came."""

    peer: Peer
    connections: int = 0


@contextmanager
def plain_service() -> Iterator[Behind]:
    """Answers each request, whatever it is, with 200 and `fine`."""

    def serve(sock: socket.socket) -> None:
        with sock.makefile("rb") as reader:
            new = True
            while line := reader.readline():
                if new:
                    behind.connections += 1
                    new = False
                length = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    line = reader.readline()
                reader.read(length)
                sock.sendall(_ANSWER)

    with raw_peer("plain service", serve) as peer:
        behind = Behind(peer)
        yield behind


@contextmanager
def stunnel(
    folder: Path, files: Files, trust: Path, behind: Behind, *, tls: TlsVersion, crl: Path | None = None
) -> Iterator[Peer]:
    """stunnel with verifyChain, which demands a certificate."""
    program = find_program("stunnel4", "stunnel4")

    def start(port: int) -> list[str]:
        config = f"""
foreground = yes
pid =
debug = info
[tls]
accept = 127.0.0.1:{port}
connect = {behind.peer.address}
cert = {files.certificate}
key = {files.key}
CAfile = {trust}
verifyChain = yes
sslVersionMin = TLSv{tls}
sslVersionMax = TLSv{tls}
{f"CRLfile = {crl}" if crl else ""}
"""
        private_folder(folder)
        return [program, str(write_private(folder / "stunnel.conf", config.encode()))]

    with program_peer("stunnel", folder, start) as peer:
        yield peer


@contextmanager
def apache(
    folder: Path,
    files: Files,
    trust: Path,
    behind: Behind,
    *,
    tls: TlsVersion | None = None,
    verify: Verify = "on",
    crl: Path | None = None,
    extra: str = "",
) -> Iterator[Peer]:
    """Apache with mod_ssl, asking for a certificate in the handshake; `extra` goes into its virtual host."""
    program = find_program("apache2", "apache2")
    if not (_APACHE_MODULES / "mod_ssl.so").exists():
        pytest.skip(f"no mod_ssl in {_APACHE_MODULES} (Debian: apt-get install apache2)")
    modules = "\n".join(
        f"LoadModule {name}_module {_APACHE_MODULES}/mod_{name}.so"
        for name in ("mpm_event", "authz_core", "ssl", "proxy", "proxy_http")
    )
    asks = {"on": "require", "optional": "optional", "off": "none"}[verify]
    revoked = f"SSLCARevocationFile {crl}\nSSLCARevocationCheck leaf" if crl else ""

    def start(port: int) -> list[str]:
        config = f"""
ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ErrorLog /dev/stderr
LogLevel info
{modules}
{"User www-data" if os.geteuid() == 0 else ""}
Listen 127.0.0.1:{port}
<VirtualHost 127.0.0.1:{port}>
    SSLEngine on
    SSLProtocol {f"-all +TLSv{tls}" if tls else "-all +TLSv1.2 +TLSv1.3"}
    SSLCertificateFile {files.certificate}
    SSLCertificateKeyFile {files.key}
    SSLCACertificateFile {trust}
    SSLVerifyClient {asks}
    SSLVerifyDepth 3
    {revoked}
    ProxyPass / http://{behind.peer.address}/
    {extra}
</VirtualHost>
"""
        private_folder(folder)
        # -X: one process, which ends with us whatever happens.
        return [program, "-X", "-f", str(write_private(folder / "apache.conf", config.encode()))]

    with program_peer("apache", folder, start) as peer:
        yield peer
