"""An upstream that asks for a certificate only once it knows the path of a call: Apache, per `<Location>`.

Under TLS 1.3 by post-handshake authentication, under TLS 1.2 by renegotiation. The call works, and a refusal
is as good as one in the handshake: counted, logged and answered with the same outcome.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.asking_peers import asks_in_the_body
from support.certs import Pki, expired
from support.clients import Caller, Talker
from support.front_peers import Behind, apache, plain_service
from support.peers import Peer, find_program, free_port
from support.recorder import TlsVersion
from support.sidecar import Sidecar, StartSidecar, route

TLS: list[TlsVersion] = ["1.2", "1.3"]
LOCATIONS = """
    <Location /required>
        SSLVerifyClient require
    </Location>
    <Location /optional>
        SSLVerifyClient optional
    </Location>
    <Location /large>
        SSLVerifyClient require
        SSLRenegBufferSize 1048576
    </Location>
"""
HOW = {"1.2": "renegotiation", "1.3": "post-handshake authentication"}
REFUSED = {
    "1.2": {
        "none": ("client_cert_required", "handshake_failure (40)"),
        "stranger": ("client_cert_unknown_ca", "unknown_ca (48)"),
        "late": ("client_cert_expired", "certificate_expired (45)"),
        "lost": ("client_cert_revoked", "certificate_revoked (44)"),
    },
    "1.3": {
        "stranger": ("client_cert_unknown_ca", "unknown_ca (48)"),
        "late": ("client_cert_expired", "certificate_expired (45)"),
        "lost": ("client_cert_revoked", "certificate_revoked (44)"),
    },
}


@contextmanager
def asking(folder: Path, pki: Pki, tls: TlsVersion, crl: Path | None = None) -> Iterator[tuple[Peer, Behind]]:
    with (
        plain_service() as behind,
        apache(
            folder / "apache",
            pki.upstream,
            pki.trust,
            behind,
            tls=tls,
            verify="off",
            extra=LOCATIONS,
            crl=crl,
        ) as upstream,
    ):
        yield upstream, behind


def cert_requests(running: Sidecar, name: str) -> dict[str, float | None]:
    return {
        requested: running.metric("sidecert_client_cert_requests_total", route=name, requested=requested)
        for requested in ("no", "yes")
    }


def durations(running: Sidecar, name: str) -> float | None:
    return running.metric("sidecert_handshake_duration_seconds_count", route=name)


@pytest.mark.parametrize("tls", TLS)
def test_calls_work_where_apache_asks_for_certain_paths_only(
    tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """Whatever the method and the body, on one connection."""
    calls: list[tuple[str, str, bytes | None]] = [
        ("GET", "/required", None),
        ("HEAD", "/required", None),
        ("POST", "/required", b"small"),
        ("POST", "/large", b"l" * 300_000),
        ("GET", "/optional", None),
        ("GET", "/required", None),
        ("GET", "/", None),
    ]
    with asking(tmp_path, pki, tls) as (upstream, _):
        running = sidecar(route("orders", upstream, trust=pki.trust))
        with Caller(running.listener) as caller:
            for method, path, body in calls:
                answer = caller.call(method, f"http://orders.test{path}", body)
                assert answer.status == 200
                assert answer.text == ("" if method == "HEAD" else "fine\n")
        # One for the connection, in which it asked for nothing, and one for each time that it asked.
        requests = cert_requests(running, "orders")
        assert requests["no"] == 1
        again = requests["yes"]
        assert again in (1, 2)  # under TLS 1.2 it forgets after a path where it need not ask
        assert running.outcomes("orders") == {"ok": 1 + again}
        assert durations(running, "orders") == 1 + again
        assert running.metric("sidecert_upstream_connection_reuses_total", route="orders") == len(calls) - 1
        (record,) = running.events("certificate_requested_afterwards")
        assert any(HOW[tls] in line for line in record["evidence"])
        assert running.events("certificate_not_requested") == []


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refusal_is_answered_and_counted_as_one_in_the_handshake(
    method: str, tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """None, another CA's, an expired and a revoked certificate; nothing of the request is executed."""
    late = pki.ca.caller("late", **expired()).write(pki.folder / "late", "late")
    leaf = pki.ca.caller("lost")
    lost = leaf.write(pki.folder / "lost", "lost")
    crl = tmp_path / "crl.pem"
    crl.write_bytes(pki.ca.crl(leaf))
    credentials = {**pki.credentials, "late": late.config, "lost": lost.config}
    with asking(tmp_path, pki, tls, crl) as (upstream, behind):
        running = sidecar(
            *(route(name, upstream, trust=pki.trust, credential=name) for name in REFUSED[tls]),
            credentials=credentials,
        )
        body = b"b" * 50_000 if method == "POST" else None
        for name, (outcome, alert) in REFUSED[tls].items():
            answer = running.call(method, f"http://{name}.test/required", body)
            check_refusal(running, answer.json(), name, outcome, alert, HOW[tls])
            assert answer.header("Sidecert-Outcome") == outcome
        assert behind.connections == 0


def check_refusal(
    running: Sidecar, told: dict[str, Any], name: str, outcome: str, alert: str, how: str
) -> None:
    assert (told["status"], told["outcome"]) == (502, outcome)
    asked = f"the upstream asked for a client certificate after the handshake ({how}), once"
    assert any(line.startswith(asked) for line in told["evidence"])
    assert any(line.startswith(f"alert {alert}") for line in told["evidence"])
    assert "the request may have been processed" in told["detail"]
    assert "not processed" not in told["detail"]
    assert running.outcomes(name) == {"ok": 1, outcome: 1}
    assert cert_requests(running, name) == {"no": 1, "yes": 1}
    assert durations(running, name) == 2
    assert running.metric("sidecert_retries_total", route=name) == 0
    assert running.metric("sidecert_upstream_connections", route=name, state="idle") == 0
    (record,) = [record for record in running.events("refused") if record["route"] == name]
    assert record["outcome"] == outcome
    assert record["evidence"] == told["evidence"]


@pytest.mark.parametrize("tls", TLS)
def test_refusal_on_a_pooled_connection_is_not_sent_again(
    tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """A safe call on a connection that was used before: its end is a verdict, and no reason to try again."""
    with asking(tmp_path, pki, tls) as (upstream, behind):
        running = sidecar(route("orders", upstream, trust=pki.trust, credential="stranger"))
        assert running.get("http://orders.test/").status == 200
        for count in (1, 2):
            answer = running.get("http://orders.test/required")
            assert answer.json()["outcome"] == "client_cert_unknown_ca"
            assert running.outcomes("orders") == {"ok": count, "client_cert_unknown_ca": count}
        assert running.metric("sidecert_retries_total", route="orders") == 0
        assert behind.connections == 1


@pytest.mark.parametrize("tls", TLS)
def test_apache_says_413_of_a_body_that_its_buffer_does_not_hold(
    tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """It must have read all of a body before it can ask: 128 KiB unless SSLRenegBufferSize says more."""
    with asking(tmp_path, pki, tls) as (upstream, behind):
        running = sidecar(route("orders", upstream, trust=pki.trust))
        answer = running.call("POST", "http://orders.test/required", b"l" * 300_000)
        assert answer.status == 413
        assert answer.header("Sidecert-Outcome") is None
        assert running.outcomes("orders") == {"ok": 1}
        assert behind.connections == 0
        assert running.call("POST", "http://orders.test/required", b"s" * 100_000).status == 200


def test_without_a_credential_apache_cannot_ask_under_tls_1_3(
    sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """Nothing is offered that could not be kept; its 403 says so, and goes through."""
    with asking(tmp_path, pki, "1.3") as (upstream, behind):
        running = sidecar(route("orders", upstream, trust=pki.trust, credential="none"))
        answer = running.get("http://orders.test/required")
        assert answer.status == 403
        assert "Cannot perform Post-Handshake Authentication" in answer.text
        assert running.outcomes("orders") == {"ok": 1}
        assert behind.connections == 0


@pytest.mark.parametrize("tls", TLS)
def test_body_goes_on_where_the_upstream_asks_in_the_midst_of_it(
    tls: TlsVersion, sidecar: StartSidecar, pki: Pki
) -> None:
    """In a renegotiation nothing can be sent: the rest waits, and nothing of it is lost or doubled."""
    body = os.urandom(3_000_000)
    with asks_in_the_body(pki, tls, after=50_000) as upstream:
        running = sidecar(route("orders", upstream.peer, trust=pki.trust))
        head = b"POST /x HTTP/1.1\r\nHost: orders.test\r\nContent-Length: %d\r\n\r\n" % len(body)
        with Talker(running.listener) as talker:
            talker.send(head + body[:100_000])
            assert upstream.asked.wait(10)
            sender = threading.Thread(target=talker.send, args=(body[100_000:],))
            sender.start()
            sender.join(0.3)  # more than the caller's part of the way holds, while the upstream does not read
            assert running.resident() < 200_000_000
            upstream.go.set()
            answer = talker.read_answer("POST")
            sender.join(10)
        assert (answer.status, answer.text) == (200, "fine\n")
        (request,) = upstream.requests
        assert request.partition(b"\r\n\r\n")[2] == body
        assert upstream.subjects == ["alice"]
        assert running.outcomes("orders") == {"ok": 2}
        assert cert_requests(running, "orders") == {"no": 1, "yes": 1}
        assert running.get("http://orders.test/").status == 200
        assert running.metric("sidecert_upstream_connection_reuses_total", route="orders") == 1


@pytest.mark.parametrize("tls", TLS)
def test_refusal_in_the_midst_of_a_body_is_told_too(tls: TlsVersion, sidecar: StartSidecar, pki: Pki) -> None:
    """The upstream has a part of the body, and its verdict comes before its answer could."""
    with asks_in_the_body(pki, tls, after=50_000) as upstream:
        upstream.go.set()
        running = sidecar(route("orders", upstream.peer, trust=pki.trust, credential="stranger"))
        answer = running.call("POST", "http://orders.test/x", b"b" * 300_000)
        assert answer.json()["outcome"] == "client_cert_unknown_ca"
        assert "may have been processed" in answer.json()["detail"]
        assert running.outcomes("orders") == {"ok": 1, "client_cert_unknown_ca": 1}
        assert upstream.requests == []


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("credential", ["alice", "stranger"])
def test_openssl_that_asks_on_an_idle_connection_is_counted_too(
    credential: str, tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """Nobody waits for its verdict: it is counted and logged, and a connection that was refused is gone."""
    port = free_port()
    server = subprocess.Popen(
        [
            *(find_program("openssl", "openssl"), "s_server", "-accept", f"127.0.0.1:{port}"),
            *("-cert", str(pki.upstream.certificate), "-key", str(pki.upstream.key)),
            *(
                "-CAfile",
                str(pki.trust),
                "-verify_return_error",
                "-no_ticket",
                "-no_cache",
                f"-tls{tls.replace('.', '_')}",
            ),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        lines = iter(server.stdout.readline, b"")
        assert any(line.startswith(b"ACCEPT") for line in lines)
        running = sidecar(route("orders", Peer("s_server", port), trust=pki.trust, credential=credential))
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(running.get, "http://orders.test/")
            assert any(line.startswith(b"GET / HTTP") for line in lines)
            server.stdin.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n.\n")
            server.stdin.flush()
            assert calling.result().status == 200
        assert running.outcomes("orders") == {"ok": 1}
        server.stdin.write(b"R\n" if tls == "1.2" else b"c\n")
        server.stdin.flush()
        refused = credential == "stranger"
        counts = {"ok": 1, "client_cert_unknown_ca": 1} if refused else {"ok": 2}
        running.wait_for(lambda: running.outcomes("orders") == counts)
        assert cert_requests(running, "orders") == {"no": 1, "yes": 1}
        idle = running.metric("sidecert_upstream_connections", route="orders", state="idle")
        assert idle == (0 if refused else 1)
        assert len(running.events("refused_idle")) == refused
    finally:
        server.kill()
        server.communicate()
