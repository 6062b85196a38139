"""An upstream that is killed under load and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

from support.certs import Pki
from support.clients import Caller
from support.peers import Peer, Peers, nginx_program
from support.sidecar import StartSidecar, route

CALLERS = 4
ROUNDS = 5
DOWN = {"upstream_closed", "connect_refused", "closed_in_handshake", "circuit_open", "client_cert_rejected"}
"""What may be said of an upstream that has just been killed. The last only as probable: under TLS 1.3 a kill
between our certificate and the first byte of an answer looks like a refusal without an alert."""


def _kill(peer: Peer) -> None:
    assert peer.log is not None
    os.kill(int(peer.log.with_name("nginx.pid").read_text()), signal.SIGKILL)


def _start_again(peer: Peer) -> subprocess.Popen[bytes]:
    assert peer.log is not None
    folder: Path = peer.log.parent
    command = [nginx_program(), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_upstream_killed_under_load_costs_only_the_calls_of_that_time(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """nginx is killed and started again 5 times while 4 callers post without a pause: each call has a true
    answer, other upstreams' calls all succeed, none arrives twice, and when it is back calls
    succeed again by themselves."""
    upstream = peers.nginx()
    running = sidecar(
        route("orders", upstream, trust=pki.trust, circuit={"failures": 5, "pause": "200ms"}),
        route("other", peers.recorder(), trust=pki.trust),
    )
    done, said, paths = threading.Event(), Counter[str](), []
    troubles: list[BaseException] = []

    def load(number: int) -> None:
        try:
            with Caller(running.listener) as caller:
                count = 0
                while not done.is_set():
                    path = f"/{number}-{count}"
                    answer = caller.call("POST", f"http://orders.test{path}", b"x")
                    said[str(answer.status) if answer.status == 200 else answer.json()["outcome"]] += 1
                    if answer.status == 200:
                        paths.append(path)
                    count += 1
                    if count % 20 == 0:
                        assert caller.call("GET", "http://other.test/").status == 200
        except BaseException as exc:
            troubles.append(exc)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    process: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(ROUNDS):
            reached = said["200"] + 50
            running.wait_for(lambda reached=reached: said["200"] >= reached)
            _kill(upstream)
            failed = said.total() - said["200"] + 5
            running.wait_for(lambda failed=failed: said.total() - said["200"] >= failed)
            if process is not None:
                process.wait(5)
            process = _start_again(upstream)
            reached, began = said["200"] + 1, time.monotonic()
            running.wait_for(lambda reached=reached: said["200"] >= reached)
            assert time.monotonic() - began < 3, "it tries again by itself as soon as the pause is over"
    finally:
        done.set()
        for thread in threads:
            thread.join()
        arrived = Counter(arrival.target for arrival in upstream.arrivals())
        if process is not None:
            process.kill()
            process.wait()
    assert not troubles
    assert set(said) <= {"200", *DOWN}
    assert max(arrived.values()) == 1
    unlogged = len(set(paths) - arrived.keys())
    assert unlogged <= CALLERS * ROUNDS, "what nginx had answered and not yet logged when it was killed"
