"""The twin as a process: real handshakes with curl, openssl and http.client, in both TLS versions."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecert.twin.http import Limits
from support.clients import CurlAnswer, curl

REST = "/integration/rest/external/integration/run/development/demo/orders"
SOAP = "/integration/soap/external/integration/run/development/demo/orders"
WAIT = 20.0
MIB = 1024 * 1024


@dataclass
class Running:
    """A twin that listens, what it announced, and its process."""

    process: subprocess.Popen[bytes]
    told: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return str(self.told["url"])

    @property
    def port(self) -> int:
        return int(self.told["port"])

    def files(self, user: str) -> tuple[str, str]:
        [found] = [each for each in self.told["users"] if each["name"] == user]
        return found["certificate"], found["key"]

    def curl(self, user: str | None, path: str, *arguments: str, body: bytes | None = None) -> CurlAnswer:
        identity: list[str] = []
        if user:
            certificate, key = self.files(user)
            identity = ["--cert", certificate, "--key", key]
        return curl(self.url + path, "--cacert", self.told["ca"], *identity, *arguments, body=body)

    def context(self, user: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.told["ca"])
        if user:
            context.load_cert_chain(*self.files(user))
        return context

    def connection(self, user: str | None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, timeout=WAIT, context=self.context(user))

    def socket(self, user: str) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        return self.context(user).wrap_socket(plain, server_hostname="localhost")

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def twin(folder: Path, *arguments: str) -> Iterator[Running]:
    log = folder / "twin.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecert", "twin", "--bind", "127.0.0.1:0", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Running(process, json.loads(line), log)
    finally:
        process.terminate()
        assert process.wait(WAIT) == 0
        process.stdout.close()


@pytest.fixture(scope="module", params=["1.2", "1.3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A twin that speaks one version of TLS only."""
    with twin(tmp_path_factory.mktemp("twin"), "--tls", request.param) as running:
        yield running


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with twin(tmp_path_factory.mktemp("twin")) as running:
        yield running


def exchange(conversation: ssl.SSLSocket, data: bytes) -> bytes:
    """Send, read until the twin closes, and close."""
    with conversation:
        conversation.sendall(data)
        pieces = []
        while piece := conversation.recv(65536):
            pieces.append(piece)
        return b"".join(pieces)


def post(connection: http.client.HTTPSConnection, body: bytes) -> http.client.HTTPResponse:
    try:
        connection.request("POST", REST, body)
        return connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_mapped_certificate_runs_the_integration_as_its_user(either: Running, user: str) -> None:
    """Over the version of TLS that was asked for."""
    answer = either.curl(user, REST + "?a=b", body=b'{"order": 1}')
    assert answer.status == 200, answer.message
    assert answer.json()["user"] == user
    assert answer.json()["tls"]["version"] == f"TLSv{either.told['tls'][0]}"
    assert answer.json()["request"]["body"] == '{"order": 1}'
    assert answer.json()["request"]["query"] == "a=b"


def test_an_unmapped_certificate_is_refused_by_http(either: Running) -> None:
    """TLS is content with it, the service is not."""
    answer = either.curl("carol", REST)
    assert (answer.status, answer.reason) == (401, "[ISS.0084.9001] Invalid credentials")


ALERTS = {
    None: {"1.2": "handshake failure", "1.3": "certificate required"},
    "erin": {"1.2": "certificate expired", "1.3": "certificate expired"},
    "mallory": {"1.2": "unknown ca", "1.3": "unknown ca"},
    "frank": {"1.2": "unsupported certificate", "1.3": "unsupported certificate"},
}


@pytest.mark.parametrize("user", ALERTS)
def test_a_certificate_that_tls_refuses_gets_its_alert(either: Running, user: str | None) -> None:
    """Ten times out of ten: an alert that a reset destroys now and then would make every test of the
    sidecar's verdicts doubtful. The calls send a body, which is what provokes the reset."""
    words = ALERTS[user][either.told["tls"][0]]
    for _ in range(10):
        with pytest.raises(ssl.SSLError, match=words.replace(" ", "[_ ]")):
            post(either.connection(user), b"x" * 300_000)


def test_curl_names_the_alert(either: Running) -> None:
    """What a user at a shell sees."""
    answer = either.curl("mallory", REST)
    assert answer.exit_code in (35, 56)
    assert "alert unknown ca" in answer.message


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_openssl_s_client_sees_the_same(either: Running, user: str) -> None:
    """A second TLS stack's opinion."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed (Debian: apt-get install openssl)")
    certificate, key = either.files(user)
    command = [program, "s_client", "-connect", f"localhost:{either.port}", "-CAfile", either.told["ca"]]
    command += ["-cert", certificate, "-key", key, "-verify_return_error", "-ign_eof", "-quiet"]
    request = f"GET {REST} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    ran = subprocess.run(command, input=request, capture_output=True, timeout=WAIT, check=False)
    if user == "alice":
        assert b'"user": "alice"' in ran.stdout
    else:
        assert b"HTTP/" not in ran.stdout
        assert b"alert unknown ca" in ran.stderr


def test_another_version_of_tls_is_refused(either: Running) -> None:
    """With alert protocol_version."""
    [only] = either.told["tls"]
    other = ["--tls-max", "1.2"] if only == "1.3" else ["--tlsv1.3"]
    answer = either.curl("alice", REST, *other)
    assert answer.exit_code == 35
    assert "protocol version" in answer.message


def test_without_tls_option_both_versions_are_spoken(both: Running) -> None:
    """The highest that the caller has wins."""
    versions = [
        both.curl("alice", REST, *more).json()["tls"]["version"] for more in ([], ["--tls-max", "1.2"])
    ]
    assert versions == ["TLSv1.3", "TLSv1.2"]


def test_connections_are_kept_and_requests_answered_in_order(both: Running) -> None:
    """One connection, bodies of both framings, and HEAD in between."""
    connection = both.connection("bob")
    for number in range(3):
        connection.request("POST", f"{REST}?n={number}", iter([b"a", b"b"]), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        response = connection.getresponse()
        echo = json.loads(response.read())["request"]
        assert (echo["query"], echo["body"], echo["headers"]["transfer-encoding"]) == (
            f"n={number}",
            "ab",
            "chunked",
        )
        first = connection.sock
        connection.request("HEAD", REST)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 0
        assert connection.sock is first
    connection.close()


def test_pipelined_requests_are_all_answered(both: Running) -> None:
    """Though hardly anybody sends them."""
    one = f"GET {REST}?n=%d HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
    data = (one % (1, "") + one % (2, "Connection: close\r\n")).encode()
    answers = exchange(both.socket("alice"), data)
    assert re.findall(rb'"query": "n=(\d)"', answers) == [b"1", b"2"]


def test_an_absolute_target_is_answered_like_its_path(both: Running) -> None:
    """RFC 9112 3.2.2."""
    request = f"GET https://localhost{REST}?a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(both.socket("alice"), request.encode())
    assert f'"path": "{REST}", "query": "a"'.encode() in answer


@pytest.mark.parametrize(
    "arguments", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]]
)
def test_a_body_over_the_limit_gets_413(either: Running, arguments: list[str]) -> None:
    """The answer arrives although the caller is still sending; at the limit all is well."""
    cap = Limits().body_bytes
    assert either.curl("alice", REST, *arguments, body=b"x" * (cap + 1)).status == 413
    answer = either.curl("alice", REST, *arguments, body=b"x" * cap)
    assert answer.status == 200, answer.message
    assert answer.json()["request"]["body_bytes"] == cap


def test_a_caller_that_waits_for_100_gets_it(both: Running) -> None:
    """And none where the body would be refused."""
    small = both.curl("alice", REST, "-H", "Expect: 100-continue", "--expect100-timeout", "15", body=b"x")
    assert (small.interim, small.status) == ([100], 200)
    large = both.curl("alice", REST, "-H", "Expect: 100-continue", "--expect100-timeout", "15",
                      body=b"x" * (11 * MIB))  # fmt: skip
    assert (large.interim, large.status) == ([], 413)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET http://[x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_malformed_requests_are_refused_and_the_connection_closed(
    both: Running, request_bytes: bytes, status: int
) -> None:
    """In the service's own envelope."""
    answer = exchange(both.socket("alice"), request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b'{"integration": {"message": {"description": "' in answer


def test_soap_runs_as_the_user_and_its_wsdl_names_this_port(both: Running) -> None:
    """The way a SOAP tool goes: the WSDL first, then its address."""
    wsdl = both.curl("bob", SOAP + "?wsdl")
    assert wsdl.header("content-type") == "text/xml; charset=utf-8"
    assert f'location="{both.url}{SOAP}"' in wsdl.text
    for namespace, kind in (
        ("http://schemas.xmlsoap.org/soap/envelope/", "text/xml"),
        ("http://www.w3.org/2003/05/soap-envelope", "application/soap+xml"),
    ):
        message = f'<e:Envelope xmlns:e="{namespace}"><e:Body><order>4711</order></e:Body></e:Envelope>'
        answer = both.curl("bob", SOAP, "-H", f"Content-Type: {kind}", body=message.encode())
        assert answer.status == 200
        assert (answer.header("content-type") or "").startswith(kind)
        assert "<tns:user>bob</tns:user>" in answer.text
        assert ">4711</order>" in answer.text


def test_the_log_tells_refusals_and_answers_without_queries(tmp_path: Path) -> None:
    """A line each, as JSON where stderr is no terminal."""
    with twin(tmp_path) as running:
        running.curl("alice", REST + "?secret=1")
        running.curl("erin", REST)
    refused, answered = (
        [each for each in running.events() if each["event"] == event]
        for event in ("handshake_refused", "answered")
    )
    assert [(each["user"], each["status"], each["path"]) for each in answered] == [("alice", 200, REST)]
    assert ["certificate has expired" in each["reason"] for each in refused] == [True]
    assert "secret" not in running.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_the_keys_are_gone(tmp_path: Path, number: signal.Signals) -> None:
    """Also while a connection is open; with status 0."""
    with twin(tmp_path) as running:
        folder = Path(running.told["folder"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        open_connection = running.socket("alice")
        running.process.send_signal(number)
        assert running.process.wait(WAIT) == 0
        assert not folder.exists()
        open_connection.close()


def test_a_folder_of_ones_own_is_emptied_again(tmp_path: Path) -> None:
    """It stays when it was there before, else it goes."""
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir(mode=0o700)
    for folder in (there, new):
        with twin(tmp_path, "--dir", str(folder)) as running:
            assert Path(running.files("alice")[1]).parent == folder
    assert list(there.iterdir()) == []
    assert not new.exists()


def refusal(*arguments: str) -> str:
    """What it says when it does not start."""
    ran = subprocess.run(
        [sys.executable, "-m", "sidecert", "twin", *arguments],
        capture_output=True, timeout=WAIT, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    return ran.stderr


def test_a_taken_port_is_said_clearly(both: Running) -> None:
    """With what to do."""
    said = refusal("--bind", f"127.0.0.1:{both.port}")
    assert f"127.0.0.1:{both.port} is taken" in said
    assert "--bind 127.0.0.1:0" in said


@pytest.mark.parametrize(
    "bind", ["8443", "localhost", ":8443", "a:b", "a:99999", "[::1:8443", "a:-1", "a: 1"]
)
def test_a_bind_that_is_none_is_bad_usage(bind: str) -> None:
    """Status 2."""
    assert "is not HOST:PORT" in refusal("--bind", bind)


def test_a_folder_that_would_lose_files_or_leak_keys_is_refused(tmp_path: Path) -> None:
    """It is emptied at the end, and holds private keys."""
    (tmp_path / "mine").write_text("kept")
    assert "is not empty" in refusal("--bind", "127.0.0.1:0", "--dir", str(tmp_path))
    assert (tmp_path / "mine").read_text() == "kept"
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "chmod 700" in refusal("--bind", "127.0.0.1:0", "--dir", str(shared))
    assert "cannot use the folder" in refusal("--bind", "127.0.0.1:0", "--dir", str(tmp_path / "a" / "b"))


def test_for_people_it_prints_a_curl_line_that_works(tmp_path: Path) -> None:
    """Copied and pasted into a shell."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecert", "twin", "--bind", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline()]
        while not lines[-1].startswith("Ctrl-C"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        [line] = [each for each in lines if each.startswith("  curl ")]
        ran = subprocess.run(
            ["sh", "-c", f"{line.strip()} -sS"], capture_output=True, timeout=WAIT, check=False
        )
        assert json.loads(ran.stdout)["user"] == "alice"
        for user in ("alice", "bob", "carol", "erin", "mallory", "frank"):
            assert any(each.startswith(f"{user} ") for each in lines)
    finally:
        process.terminate()
        assert process.wait(WAIT) == 0
        process.stdout.close()


def test_a_caller_that_says_nothing_holds_up_nobody(both: Running) -> None:
    """Neither before the handshake nor after it."""
    silent = [socket.create_connection(("127.0.0.1", both.port), timeout=WAIT) for _ in range(20)]
    shaken = both.socket("alice")
    started = time.monotonic()
    assert both.curl("bob", REST).status == 200
    assert time.monotonic() - started < 5
    for each in (*silent, shaken):
        each.close()
