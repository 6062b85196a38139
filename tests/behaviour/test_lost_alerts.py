"""TLS 1.3: a refused certificate is told as one every time, and the upstream has seen no byte of the request.

Under TLS 1.3 the upstream looks at the certificate when our side of the handshake is over. A request that
was sent by then makes the upstream's close a reset, which can take its alert with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.certs import Pki, write_private
from support.fates import Fate, fates
from support.front_peers import apache, plain_service, stunnel
from support.java_peers import JavaKind, java_peers
from support.lengths import rounds
from support.peers import Peers
from support.sidecar import NO_CIRCUIT, Addressed, StartSidecar, route

BODY = b"p" * 300_000
AT_ONCE = 4
SERVERS = ("haproxy", "openssl", "python", "no tickets", "stunnel", "apache", "java socket", "java https")
SAYS_NO_MORE_THAN_REFUSED = ("java socket", "java https")
_REQUEST_READ = re.compile(r"<<< TLS 1\.3, InnerContent[^\n]*\n\s+17\b")  # as `s_server -msg` prints data


@dataclass(frozen=True)
class Refuser:
    """A server that demands alice's or bob's certificate; `seen` counts the requests it began to read."""

    peer: Addressed
    seen: Callable[[], int]


@pytest.fixture
def refuser(request: pytest.FixtureRequest, peers: Peers, pki: Pki, tmp_path: Path) -> Iterator[Refuser]:
    with ExitStack() as stack:
        yield start(request.param, peers, pki, tmp_path, stack)


def start(name: str, peers: Peers, pki: Pki, folder: Path, stack: ExitStack) -> Refuser:
    if name == "haproxy":
        haproxy = peers.haproxy(tls="1.3")
        return Refuser(haproxy, lambda: len(haproxy.arrivals()))
    if name == "openssl":
        openssl = peers.openssl(tls="1.3", arguments=("-msg",))
        return Refuser(openssl, lambda: len(_REQUEST_READ.findall(openssl.output)))
    if name == "python":
        recorder = peers.recorder(tls="1.3")
        return Refuser(recorder, lambda: len(recorder.requests))
    if name == "no tickets":
        peer = stack.enter_context(fates(pki.upstream, pki.trust)).listen(Fate(tls="1.3", tickets=False))
        return Refuser(peer, lambda: peer.requests)
    if name.startswith("java"):
        kind: JavaKind = "socket" if name == "java socket" else "https"
        crl = write_private(folder / "crl.pem", pki.ca.crl())
        java = stack.enter_context(
            java_peers(folder / "java", pki.trust, crl, [(kind, pki.ca.peer())], tls="1.3")
        )
        return Refuser(java.peers[0], lambda: java.requests(kind))
    behind = stack.enter_context(plain_service())
    front = {"stunnel": stunnel, "apache": apache}[name]
    front_peer = stack.enter_context(front(folder / name, pki.upstream, pki.trust, behind, tls="1.3"))
    return Refuser(front_peer, lambda: behind.connections)


@pytest.mark.long_form(seconds=600)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("refuser", SERVERS, indirect=True)
def test_refusal_is_told_every_time_and_nothing_of_the_request_is_sent(
    refuser: Refuser, method: str, request: pytest.FixtureRequest, sidecar: StartSidecar, pki: Pki
) -> None:
    """A certificate of another CA, and none, again and again and several at once."""
    name = request.node.callspec.params["refuser"]
    running = sidecar(
        *(
            route(who, refuser.peer, trust=pki.trust, credential=who, circuit=NO_CIRCUIT)
            for who in ("stranger", "none", "alice")
        )
    )
    body = BODY if method == "POST" else None

    def once(who: str) -> tuple[str, str | None, bool]:
        answer = running.call(method, f"http://{who}.test/", body)
        return who, answer.header("Sidecert-Outcome"), b"No byte of the request was sent." in answer.body

    calls = ["stranger", "none"] * rounds(10, 200)
    with ThreadPoolExecutor(AT_ONCE) as callers:
        told = Counter(callers.map(once, calls))
    print(f"truth of {len(calls)} refused {method} at {name}: {told}")
    refused = "client_cert_rejected" if name in SAYS_NO_MORE_THAN_REFUSED else "client_cert_unknown_ca"
    half = len(calls) // 2
    assert told == {
        ("stranger", refused, True): half,
        ("none", "client_cert_required", True): half,
    }
    assert running.outcomes("stranger") == {refused: half}
    assert running.outcomes("none") == {"client_cert_required": half}
    assert refuser.seen() == 0
    # And one that is taken is seen: the zero above was not blindness.
    assert running.get("http://alice.test/").status == 200
    running.wait_for(lambda: refuser.seen() == 1, why="the request that was taken was not seen")


def test_slow_refusal_is_waited_for(sidecar: StartSidecar, pki: Pki) -> None:
    """An upstream that needs half a second to refuse: nothing of the request is sent before it does."""
    with fates(pki.upstream, pki.trust) as peers:
        upstream = peers.listen(Fate(tls="1.3", slow=0.5))
        running = sidecar(
            route("orders", upstream, trust=pki.trust, credential="stranger", circuit=NO_CIRCUIT)
        )
        answer = running.call("POST", "http://orders.test/", BODY)
    assert answer.header("Sidecert-Outcome") == "client_cert_unknown_ca"
    assert "No byte of the request was sent." in answer.json()["detail"]


def test_refusal_after_the_longest_wait_still_excludes_that_the_request_was_processed(
    sidecar: StartSidecar, pki: Pki
) -> None:
    """The request has gone out by then, but to an upstream that had not accepted the certificate."""
    with fates(pki.upstream, pki.trust) as peers:
        upstream = peers.listen(Fate(tls="1.3", slow=1.5))
        running = sidecar(
            route("orders", upstream, trust=pki.trust, credential="stranger", circuit=NO_CIRCUIT)
        )
        answer = running.call("POST", "http://orders.test/", BODY)
    fields = answer.json()
    assert fields["outcome"] == "client_cert_unknown_ca"
    assert "were not processed: the refusal came before them" in fields["detail"]
    assert "bytes of the request had been sent by then" in fields["evidence"]
    assert running.outcomes("orders") == {"client_cert_unknown_ca": 1}
    assert upstream.requests == 0
