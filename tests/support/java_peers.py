"""Java's own TLS servers, which webMethods Integration Server and its kin are made of: java/MutualTls.java.

A JVM takes a second or two to start and serves any number of connections: start one for many tests.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.certs import Leaf, private_folder, write_private
from support.peers import Peer, find_program
from support.recorder import TlsVersion

JavaKind = Literal["socket", "https"]

SOURCE = Path(__file__).with_name("java") / "MutualTls.java"
START = 30.0
_PASSWORD = "changeit"


@dataclass
class JavaPeers:
    """One JVM's listeners, in the order in which they were asked for."""

    peers: list[Peer]
    log: Path

    def requests(self, kind: JavaKind) -> int:
        """How many requests of that kind of server began to arrive."""
        return self.log.read_text(errors="replace").splitlines().count(f"request {kind}")


@contextmanager
def java_peers(
    folder: Path, trust: Path, crl: Path, listeners: Sequence[tuple[JavaKind, Leaf]], *, tls: TlsVersion
) -> Iterator[JavaPeers]:
    """A JVM with those listeners, each a kind of server and the certificate that it shows.

    `socket` is an SSLServerSocket, `https` a com.sun.net.httpserver.HttpsServer; both demand a certificate of
    `trust` that is not on `crl`, and answer 200.
    """
    find_program("javac", "default-jdk-headless")
    program = find_program("java", "default-jdk-headless")
    private_folder(folder)
    stores = [
        f"{kind}={write_private(folder / f'{place}.p12', leaf.pkcs12(_PASSWORD))}"
        for place, (kind, leaf) in enumerate(listeners)
    ]
    log = folder / "output.log"
    # Compiling at a low level and one thread for garbage: it starts faster, and is done soon.
    command = [program, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", str(SOURCE)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, tls, str(trust), str(crl), _PASSWORD, *stores],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        ports = _wait_for_ports(process, log, len(listeners))
        names = {"socket": "Java SSLServerSocket", "https": "Java HttpsServer"}
        peers = [Peer(names[kind], port, log) for (kind, _), port in zip(listeners, ports, strict=True)]
        yield JavaPeers(peers, log)
    finally:
        process.kill()
        process.wait()
        print(f"--- java printed:\n{log.read_text(errors='replace')}")


def _wait_for_ports(process: subprocess.Popen[bytes], log: Path, count: int) -> list[int]:
    deadline = time.monotonic() + START
    while True:
        lines = log.read_text(errors="replace").splitlines(keepends=True)
        ports = [int(line.split()[1]) for line in lines if line.startswith("listening ") and line[-1] == "\n"]
        if len(ports) == count:
            return ports
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"java did not start (status {process.poll()}):\n{''.join(lines)}")
        time.sleep(0.02)
