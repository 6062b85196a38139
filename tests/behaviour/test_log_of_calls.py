"""Whoever reads the log finds out which call a line is about, and who made it."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from conftest import StartSidecar
from support.certs import Pki
from support.peers import Peers
from support.recorder import TlsRecorder
from support.sidecar import Sidecar, route

SECRET = "hunter2"


def _exchange(running: Sidecar, raw: bytes) -> tuple[bytes, str]:
    """The whole answer to `raw` on a connection of its own, and the address that it was sent from."""
    with socket.create_connection(running.listener, timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        own = ":".join(map(str, connection.getsockname()))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer, own


def _accesses(running: Sidecar) -> list[dict[str, Any]]:
    return [record for record in running.records if record["logger"] == "sidecert.access"]


def test_a_refused_line_says_what_was_asked_for_and_by_whom(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Under the request id of the answer, and without the query."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    raw = f"DELETE /a/b?key={SECRET} HTTP/1.1\r\nHost: nowhere.test:81\r\nConnection: close\r\n\r\n".encode()
    answer, own = _exchange(running, raw)
    (line,) = running.events("refused")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (line["outcome"], line["request_id"]) == ("no_route", told["request_id"])
    assert (line["method"], line["host"], line["path"]) == ("DELETE", "nowhere.test", "/a/b")
    assert (line["listener"], line["caller"]) == ("127.0.0.1:0", own)
    assert SECRET not in running.stderr


def test_a_refused_tunnel_names_the_host_that_was_asked_for(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """An https address given to a tool by mistake is found by the host; the answer says what to call."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    answer, own = _exchange(running, b"CONNECT orders.test:443 HTTP/1.1\r\nHost: orders.test:443\r\n\r\n")
    (line,) = running.events("refused")
    assert (line["outcome"], line["method"]) == ("connect_not_allowed", "CONNECT")
    assert (line["host"], line["caller"]) == ("orders.test:443", own)
    assert "orders.test:443" in line["cause"]
    assert (
        "Call http://orders.test instead of https://orders.test"
        in json.loads(answer.partition(b"\r\n\r\n")[2])["remedy"]
    )


def test_tls_on_a_plain_listener_is_told_as_such(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """What the tool shows for it (a wrong version number) says nothing."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    answer, _ = _exchange(running, b"\x16\x03\x01\x00\x05hello")
    (line,) = running.events("refused")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert (line["method"], line["host"], line["path"]) == ("", "", "")
    assert "http:// instead of https://" in line["remedy"]


def test_access_line_has_the_id_of_the_refusal_and_the_caller(
    sidecar: StartSidecar, peers: Peers, recorder: TlsRecorder, pki: Pki
) -> None:
    """So that the two lines of a call are found by one search; each call has an id of its own."""
    routes = [route("orders", recorder, trust=pki.trust), route("plain", peers.plain_http(), trust=pki.trust)]
    running = sidecar(*routes, arguments=["--access-log"])
    raw = "GET /a?b HTTP/1.1\r\nHost: {}.test\r\nConnection: close\r\n\r\n"
    _, own = _exchange(running, raw.format("plain").encode())
    _exchange(running, raw.format("orders").encode())
    first, second = _accesses(running)
    (refused,) = running.events("refused")
    keys = ("request_id", "method", "host", "path", "listener", "caller")
    assert [first[key] for key in keys] == [refused[key] for key in keys]
    assert (first["caller"], first["path"]) == (own, "/a")
    assert second["request_id"] != first["request_id"]


def test_access_line_of_a_caller_that_left_names_it(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Though its socket has no address any more by then."""
    running = sidecar(route("silent", peers.silent(), trust=pki.trust), arguments=["--access-log"])
    connection = socket.create_connection(running.listener, timeout=10)
    own = ":".join(map(str, connection.getsockname()))
    connection.sendall(b"GET /a HTTP/1.1\r\nHost: silent.test\r\n\r\n")
    running.wait_for(lambda: running.metric("sidecert_requests_in_progress", route="silent") == 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    running.wait_for(lambda: bool(_accesses(running)))
    (line,) = _accesses(running)
    assert (line["status"], line["caller"], line["path"]) == (499, own, "/a")


def test_the_status_page_tells_how_a_call_failed_behind_a_good_handshake(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Its handshakes alone would make the route look well."""
    recorder.answer = lambda exchange: exchange.finish()
    running = sidecar(route("orders", recorder, trust=pki.trust))
    answer, _ = _exchange(running, b"POST /a HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 0\r\n\r\n")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["outcome"] == "upstream_closed"
    assert told["evidence"]
    page = running.ask_admin("GET", "/").text
    assert "last failure" in page
    for words in ("upstream_closed", "the request may have been processed", "5xx by sidecert"):
        assert words in page
