"""Bad input gets a clear answer that can be read, and has no effect upstream."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import sidecert.connect
from support.certs import Pki
from support.clients import Talker, call
from support.inside import running_inside
from support.peers import Peers
from support.recorder import TlsRecorder, whole_or_cut
from support.sidecar import Sidecar, StartSidecar, config, route

HOST = b"Host: orders.test\r\n"

MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "no-http": (b"what is this\r\n\r\n", 400, "bad_request"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n", 400, "bad_request"),
    "http2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
    "version": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "no-host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two-hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "bad_request"),
    "no-host-in-1.0": (b"GET / HTTP/1.0\r\n\r\n", 400, "bad_request"),
    "bare-lf": (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400, "bad_request"),
    "fold": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400, "bad_request"),
    "space-before-colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", 400, "bad_request"),
    "nul": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", 400, "bad_request"),
    "two-spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "two-lengths": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        400,
        "bad_request",
    ),
    "length-and-chunks": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "signed-length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na", 400, "bad_request"),
    "other-coding": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "chunks-in-1.0": (
        b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "userinfo": (b"GET http://me:secret@orders.test/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "backslash": (b"GET /a\\b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "fragment": (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "connection-names-host": (
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close, Host\r\n\r\n",
        400,
        "bad_request",
    ),
    "unknown-method": (b"FETCH / HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method_unknown"),
    "large-header": (
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        431,
        "header_too_large",
    ),
    "large-target": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, "header_too_large"),
    "many-headers": (
        b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 500 + b"\r\n",
        431,
        "header_too_large",
    ),
    "connect": (
        b"CONNECT orders.test:443 HTTP/1.1\r\nHost: orders.test:443\r\n\r\n",
        403,
        "connect_not_allowed",
    ),
}

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "dots": (b"GET /a/../b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "encoded-dots": (b"GET /a/%2e%2e/b HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "no-route": (b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", 403, "no_route"),
    "other-port": (b"GET / HTTP/1.1\r\nHost: ported.test\r\n\r\n", 403, "no_route"),
    "own-address": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 403, "no_route"),
    "other-method": (b"DELETE / HTTP/1.1\r\nHost: read.test\r\n\r\n", 403, "method_not_allowed"),
}


def start(sidecar: StartSidecar, upstream: TlsRecorder, pki: Pki, **rest: object) -> Sidecar:
    return sidecar(
        route("orders", upstream, trust=pki.trust),
        route("read", upstream, trust=pki.trust, match={"methods": ["GET"]}),
        route("ported", upstream, trust=pki.trust, match={"port": 8080}),
        **rest,
    )


@pytest.mark.parametrize("pace", ["at-once", "bytewise"])
def test_malformed_request_is_answered_and_never_forwarded(
    pace: str, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Each kind gets its status and reason, then the end; the upstream is not even connected to."""
    running = start(sidecar, recorder, pki)
    counts: dict[str, int] = {}
    for name, (data, status, reason) in MALFORMED.items():
        if pace == "bytewise" and len(data) > 10_000:
            continue
        with Talker(running.listener) as talker:
            if pace == "bytewise":
                try:
                    talker.send_bytewise(data)
                except OSError:
                    pass  # refused before the last byte, which is as good
            else:
                talker.send(data + b"GET /smuggled HTTP/1.1\r\nHost: orders.test\r\n\r\n")
            answer = talker.read_answer()
            assert (answer.status, answer.header("Sidecert-Outcome")) == (status, reason), name
            assert answer.json()["detail"], name
            assert answer.header("Connection") == "close", name
            talker.shutdown_write()
            assert talker.closed(), name
        counts[reason] = counts.get(reason, 0) + 1
    assert recorder.connections == 0
    counts.pop("method_unknown", None)  # a 501 is counted nowhere: it is neither 4xx nor 503
    for reason, count in counts.items():
        assert running.metric("sidecert_denied_requests_total", reason=reason) == count
    assert "secret" not in running.stderr
    assert running.get("http://orders.test/").status == 200


@pytest.mark.parametrize("case", REFUSED)
def test_request_that_no_route_may_take_is_refused_and_the_connection_kept(
    case: str, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The reason, and no effect upstream; the next request on that connection is served."""
    data, status, reason = REFUSED[case]
    running = start(sidecar, recorder, pki)
    with Talker(running.listener) as talker:
        talker.send(data + b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        answer = talker.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (status, reason)
        assert talker.read_answer().status == 200
    assert len(recorder.requests) == 1
    assert running.metric("sidecert_denied_requests_total", reason=reason) == 1


def test_body_of_a_refused_request_is_not_taken_for_the_next_one(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A refused POST whose body reads like a request: it is dropped, not served."""
    running = start(sidecar, recorder, pki)
    inner = b"GET /smuggled HTTP/1.1\r\nHost: orders.test\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: %d\r\n\r\n" % len(inner)
    for pieces in ([head + inner], [head, inner], [head + inner[:5], inner[5:]]):
        with Talker(running.listener) as talker:
            for piece in pieces:
                talker.send(piece)
            assert talker.read_answer().status == 403
            talker.shutdown_write()
            assert talker.read_until_close() == b""
    assert recorder.requests == []


@pytest.mark.parametrize(
    "rest",
    [b"zzz\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"0x3\r\nabc\r\n", b"3;" + b"e" * 20_000 + b"\r\nabc\r\n"],
)
def test_malformed_chunk_is_refused_and_ends_the_upstreams_request(
    rest: bytes, sidecar: StartSidecar, pki: Pki, peers: Peers
) -> None:
    """A body that breaks its framing half way: 400, and the upstream sees it cut, never whole."""
    ends: list[str] = []
    upstream = peers.recorder(answer=whole_or_cut(ends))
    running = start(sidecar, upstream, pki)
    with Talker(running.listener) as talker:
        talker.send(b"POST / HTTP/1.1\r\nHost: orders.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        talker.send(rest)
        answered = talker.read_answer()
        assert (answered.status, answered.header("Sidecert-Outcome")) == (400, "bad_request")
        talker.shutdown_write()
        assert talker.closed()
    running.wait_for(lambda: ends == ["cut"])
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_answer_to_a_refused_upload_can_be_read(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A caller that sends 900 kB to a host without a route reads its 403: no reset destroys it."""
    running = start(sidecar, recorder, pki)
    for _ in range(10):
        with Talker(running.listener) as talker:
            talker.send(b"POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: 900000\r\n\r\n")
            talker.send(b"x" * 900_000)
            assert talker.read_answer().status == 403
    assert recorder.connections == 0


@pytest.mark.parametrize("private", [False, True])
def test_host_chosen_through_a_wildcard_must_not_be_private(
    private: bool, peers: Peers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's host that resolves to loopback: 403 and no connection, unless the route says `private`."""

    async def resolve(host: str, port: int, chosen_through: str | None) -> list[Any]:
        return [(socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(sidecert.connect, "_resolve", resolve)
    upstream = peers.recorder(files=pki.ca.peer("inner.wild.test").write(pki.folder / "inner", "inner"))
    wild = {
        "id": "wild",
        "match": {"host": "*.wild.test"},
        "upstream": {"port": upstream.port, "trust": str(pki.trust)},
        "credential": "alice",
        "private": private,
    }
    with running_inside(tmp_path, config([wild], pki.credentials)) as inside:
        answer = call(inside.address, "GET", "http://inner.wild.test/")
        inside.check_nothing_left()
    if private:
        assert answer.status == 200
    else:
        assert (answer.status, answer.header("Sidecert-Outcome")) == (403, "private_address")
        assert upstream.connections == 0
