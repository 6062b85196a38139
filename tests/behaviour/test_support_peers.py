"""The peers that every other behaviour test leans on do what their names say."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from support.certs import Files, Pki
from support.clients import CurlAnswer, Talker, curl
from support.peers import Peers
from support.recorder import (
    AnswerFunction,
    TlsRecorder,
    TlsVersion,
    after_interim,
    chunked,
    closing_after,
    cut_short,
    fixed,
    gated,
    stream,
    until_close,
)

MUTUAL = ["nginx", "openssl", "haproxy", "recorder"]
TLS: list[TlsVersion] = ["1.2", "1.3"]


def ask(address: str, trust: Path, files: Files | None, *arguments: str) -> CurlAnswer:
    """curl itself, without a sidecar, with that certificate."""
    identity = ["--cert", str(files.certificate), "--key", str(files.key)] if files else []
    return curl(f"https://{address}/who", "--cacert", str(trust), *identity, *arguments)


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("name", MUTUAL)
def test_peer_takes_its_cas_certificate_and_refuses_none_and_others(
    name: str, tls: TlsVersion, peers: Peers, pki: Pki
) -> None:
    """Each real server serves alice and turns away callers with no certificate or a foreign one."""
    peer = getattr(peers, name)(tls=tls)
    served = ask(peer.address, pki.trust, pki.alice)
    assert served.status == 200, served.message
    if name != "openssl":  # whose page does not name the caller
        assert "alice" in served.text
    for files in (None, pki.stranger):
        refused = ask(peer.address, pki.trust, files)
        assert refused.status == (400 if name == "nginx" else 0), refused.text


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("name", MUTUAL)
def test_peer_speaks_only_its_own_version(name: str, tls: TlsVersion, peers: Peers, pki: Pki) -> None:
    """A caller that insists on the other TLS version gets nowhere."""
    peer = getattr(peers, name)(tls=tls)
    other = {"1.2": ["--tlsv1.3"], "1.3": ["--tlsv1.2", "--tls-max", "1.2"]}[tls]
    assert ask(peer.address, pki.trust, pki.alice, *other).exit_code == 35


def test_recorder_writes_down_what_it_saw(recorder: TlsRecorder, pki: Pki) -> None:
    """Method, target, headers, body and the caller's name arrive as they were sent."""
    answer = ask(
        recorder.address, pki.trust, pki.bob, "-X", "PUT", "-H", "X-One: 1", "--data-binary", "hello"
    )
    [seen] = recorder.requests
    assert (seen.method, seen.target, seen.subject, seen.body) == ("PUT", "/who", "bob", b"hello")
    assert seen.header("x-one") == "1"
    assert answer.json()["length"] == 5
    assert (recorder.connections, recorder.handshakes) == (1, 1)


def test_recorder_reads_a_chunked_body(recorder: TlsRecorder, pki: Pki) -> None:
    """The body is the data without its framing."""
    ask(recorder.address, pki.trust, pki.bob, "-H", "Transfer-Encoding: chunked", "--data-binary", "hello")
    assert recorder.requests[0].body == b"hello"


@pytest.mark.parametrize(
    ("answer", "body", "exit_code"),
    [
        (fixed(b"abc"), b"abc", 0),
        (chunked([b"ab", b"c"], [("X-Sum", "1")]), b"abc", 0),
        (until_close(b"abc"), b"abc", 0),
        (stream(200_000, b"0123456789"), b"0123456789" * 20_000, 0),
        (after_interim(103, ("Link", "</a>"), then=fixed(b"abc")), b"abc", 0),
        (cut_short(b"ab"), b"ab", 18),
        (closing_after(1, fixed(b"abc")), b"abc", 0),
    ],
    ids=["fixed", "chunked", "until-close", "stream", "interim", "cut-short", "closing"],
)
def test_recorder_answers_as_it_is_told(
    answer: AnswerFunction, body: bytes, exit_code: int, recorder: TlsRecorder, pki: Pki
) -> None:
    """Each ready-made answer reaches curl in its shape; the one cut short as curl's error 18 or 56."""
    recorder.answer = answer
    got = ask(recorder.address, pki.trust, pki.alice)
    assert got.body == body
    assert got.exit_code == exit_code or (exit_code, got.exit_code) == (18, 56)


def test_gated_answer_waits_for_its_gate(recorder: TlsRecorder, pki: Pki) -> None:
    """The second piece comes only once the gate has been opened."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"second")
    context = ssl.create_default_context(cafile=str(pki.trust))
    context.load_cert_chain(pki.alice.certificate, pki.alice.key)
    with (
        socket.create_connection((recorder.host, recorder.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wire,
        wire.makefile("rb") as reader,
    ):
        wire.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while reader.readline().strip():
            pass
        assert reader.read(5) == b"first"
        assert not gate.is_set()
        gate.set()
        assert reader.read(6) == b"second"


def test_faulty_peers_fail_in_their_own_way(peers: Peers) -> None:
    """Refused, never connected, closed, reset, or talking something that is not TLS."""
    with pytest.raises(ConnectionRefusedError):
        Talker(("127.0.0.1", peers.closed_port().port))
    with pytest.raises(TimeoutError):
        Talker(("127.0.0.1", peers.black_hole().port), timeout=0.3)
    with Talker(("127.0.0.1", peers.closes_at_accept().port)) as talker:
        assert talker.read_until_close() == b""
    with Talker(("127.0.0.1", peers.closes_after_hello().port)) as talker:
        talker.send(b"\x16\x03\x01")
        assert talker.closed()
    with (
        pytest.raises(ConnectionResetError),  # which a connect that returns late tells already
        Talker(("127.0.0.1", peers.resets_at_accept().port)) as talker,
    ):
        talker.read_until_close()
    with Talker(("127.0.0.1", peers.plain_http().port)) as talker:
        talker.send(b"\x16\x03\x01")
        assert talker.read_answer().status == 400
    with Talker(("127.0.0.1", peers.banner().port)) as talker:
        assert talker.read_until(b"\n").startswith(b"SSH-")
    with Talker(("127.0.0.1", peers.silent().port), timeout=0.2) as talker:
        talker.send(b"\x16\x03\x01")
        with pytest.raises(TimeoutError):
            talker.closed()
