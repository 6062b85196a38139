"""One handshake for its own sake: bounded whatever the upstream does, and nothing is left of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecert.config import TlsConfig
from sidecert.diagnosis import Subject, of_route, probe
from sidecert.outcome import Ending, Outcome, Stage
from support.certs import Pki
from support.inside import generation
from support.peers import Peers, raw_peer
from support.sidecar import Addressed, config, route

BOTH = TlsConfig(min="1.2", max="1.3")


@pytest.fixture
def subject_of(pki: Pki, tmp_path: Path) -> Callable[..., Subject]:
    """What a route to a peer is to an examination; `upstream` is more of its settings."""

    def make(peer: Addressed, **upstream: object) -> Subject:
        whole = config([route("orders", peer, trust=pki.trust, **upstream)], pki.credentials)
        return of_route(generation(tmp_path, whole), "orders")

    return make


def look(subject: Subject) -> probe.Probe:
    return asyncio.run(probe.look(subject.upstream, subject.trust, BOTH))


def present(subject: Subject) -> probe.Probe:
    (credential,) = subject.wanted
    assert credential is not None
    return asyncio.run(probe.present(subject.upstream, subject.trust, BOTH, credential))


def test_a_look_sees_all_and_presents_nothing(
    subject_of: Callable[..., Subject], peers: Peers, pki: Pki
) -> None:
    """Also where the chain is bad: the finding is kept, and the handshake goes on."""
    good = look(subject_of(peers.haproxy()))
    assert (good.outcome, good.check_code, good.agreed, good.proven) == (
        *(Outcome.CLIENT_CERT_REQUIRED, 0, True, False),
    )
    assert good.address == "127.0.0.1"
    assert good.cipher == "TLS_AES_256_GCM_SHA384"
    assert [each.subject for each in good.chain] == ["CN=localhost"]
    assert good.chain[0].names == ("localhost", "127.0.0.1", "::1")
    files = pki.other_ca.peer("elsewhere.test").write(pki.folder / "both-wrong", "upstream")
    bad = look(subject_of(peers.recorder(files=files, verify="off")))
    assert (bad.outcome, bad.check_code, bad.proven) == (Outcome.OK, 20, True)
    assert bad.chain[0].names == ("elsewhere.test",)


def test_a_certificate_is_presented_only_behind_a_good_chain(
    subject_of: Callable[..., Subject], peers: Peers, pki: Pki
) -> None:
    """The same upstream as above ends the handshake before our certificate goes out."""
    assert present(subject_of(peers.recorder())).proven
    files = pki.other_ca.peer().write(pki.folder / "untrusted", "upstream")
    upstream = peers.recorder(files=files, verify="optional")
    refused = present(subject_of(upstream))
    assert (refused.outcome, refused.seen.stage) == (Outcome.SERVER_UNTRUSTED, Stage.HELLO_RECEIVED)
    upstream.wait_for(lambda: bool(upstream.failures))
    assert upstream.handshakes == 0


def test_handshake_without_end_is_cut(
    subject_of: Callable[..., Subject], peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and time are bounded by bytes too, since an upstream that never pauses lets no clock tick."""
    monkeypatch.setattr(probe, "_MOST_BYTES", 100)
    cut = look(subject_of(peers.recorder()))
    assert (cut.outcome, cut.seen.error) == (Outcome.TLS_ERROR, "the upstream's handshake has no end")


def test_upstream_that_leaves_while_we_speak_is_read_to_its_end(subject_of: Callable[..., Subject]) -> None:
    """A fatal alert and a reset right behind it: the alert is what counts."""

    def alert_and_go(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"\x15\x03\x03\x00\x02\x02\x70")

    with raw_peer("unknown name", alert_and_go) as peer:
        found = look(subject_of(peer))
    assert found.seen.alert_received == 112
    assert not found.agreed


def test_patience_has_an_end(
    subject_of: Callable[..., Subject], peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ticket it is accepted as far as it can be seen, and not proven."""
    monkeypatch.setattr(probe, "PATIENCE", 0.2)

    def no_tickets(context: object) -> None:
        context.num_tickets = 0  # type: ignore[attr-defined]

    found = present(subject_of(peers.recorder(tls="1.3", configure=no_tickets)))
    assert (found.outcome, found.proven) == (Outcome.OK, False)
    assert found.seen.ending is Ending.NONE


def test_interrupted_handshake_leaves_no_connection(subject_of: Callable[..., Subject]) -> None:
    """Ctrl-C cancels it in the middle: the upstream sees the end of it."""
    arrived, ended = threading.Event(), threading.Event()

    def wait_for_the_end(sock: socket.socket) -> None:
        sock.recv(65536)
        arrived.set()
        if not sock.recv(65536):
            ended.set()

    async def interrupt(subject: Subject) -> None:
        task = asyncio.create_task(probe.look(subject.upstream, subject.trust, BOTH))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert await asyncio.to_thread(ended.wait, 10)

    with raw_peer("silent", wait_for_the_end) as peer:
        asyncio.run(interrupt(subject_of(peer, timeouts={"handshake": "60s"})))
