"""The admin endpoint shows everybody how it is, and lets only people on this machine do more."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sidecert.admin import Admin, refusal
from sidecert.admin.status_page import Snapshot
from sidecert.config.binds import Bind
from sidecert.errors import Problem
from sidecert.metrics import Metrics
from sidecert.sockets import Unusable

LOOPBACK = Bind("127.0.0.1:0", "tcp", "127.0.0.1", 0, None)
BROKEN = Problem("sidecert.yaml", 7, "routes[0].credential", "there is no credential bob", "alice is one")


@dataclass
class Result:
    ok: bool
    problems: Sequence[Problem] = ()


class Sidecar:
    """A `Status` that does as the test says."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.set_generation(
            3, routes=[("orders", "none", False)], credentials=[], listeners=["127.0.0.1:8080"], now=1.0
        )
        self.ready = True
        self.result: Result | None = Result(True)
        self.reloads = 0
        self.failure: Exception | None = None

    async def reload(self) -> Result | None:
        self.reloads += 1
        if self.failure:
            raise self.failure
        return self.result

    def snapshot(self) -> Snapshot:
        if self.failure:
            raise self.failure
        return Snapshot("/etc/sidecert.yaml", 1.0, self.ready, {"127.0.0.1:8080": ["127.0.0.1:8080"]}, [])


@contextmanager
def running(sidecar: Sidecar, bind: Bind = LOOPBACK) -> Iterator[str]:
    """The admin endpoint on a loop and thread of its own; gives its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> tuple[Admin, str]:
        admin = Admin(sidecar)
        return admin, await admin.start(bind)

    try:
        admin, address = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        try:
            yield address
        finally:
            asyncio.run_coroutine_threadsafe(admin.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def sidecar() -> Sidecar:
    return Sidecar()


@pytest.fixture
def address(sidecar: Sidecar) -> Iterator[str]:
    with running(sidecar) as address:
        yield address


def call(
    address: str, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, str, http.client.HTTPMessage]:
    """One request as a caller makes it: status, body and headers."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


def talk(family: int, where: object, data: bytes) -> bytes:
    """Send `data` over a bare socket and read until the other side closes."""
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(where)
        sock.sendall(data)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    return received


def test_metrics_are_served_in_the_format_that_is_asked_for(address: str) -> None:
    """Text for people and old scrapers, OpenMetrics for those who ask."""
    status, text, headers = call(address, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "sidecert_config_generation 3\n" in text
    status, text, headers = call(address, "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_healthy_says_only_that_the_process_runs(sidecar: Sidecar, address: str) -> None:
    """Not ready is no reason to be killed."""
    sidecar.ready = False
    assert call(address, "/-/healthy")[:2] == (200, "healthy\n")


def test_ready_follows_the_sidecar(sidecar: Sidecar, address: str) -> None:
    """200 while it serves, 503 before and while draining."""
    assert call(address, "/-/ready")[:2] == (200, "ready\n")
    sidecar.ready = False
    assert call(address, "/-/ready")[:2] == (503, "not ready\n")


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
def test_probes_may_use_head(address: str, path: str) -> None:
    """The head of the answer to GET, and no body."""
    status, text, headers = call(address, path, "HEAD")
    assert (status, text) == (200, "")
    assert headers["Content-Length"] == str(len(call(address, path)[1]))


def test_reload_that_is_taken_over_is_200(sidecar: Sidecar, address: str) -> None:
    """With the generation that is now in force, and the warnings."""
    sidecar.result = Result(
        True, [Problem("a.yaml", None, "credentials.alice", "it expires soon", "renew", True)]
    )
    status, text, headers = call(address, "/-/reload", "POST")
    told = json.loads(text)
    assert (status, headers["Content-Type"], sidecar.reloads) == (200, "application/json", 1)
    assert (told["ok"], told["generation"]) == (True, 3)
    assert [problem["warning"] for problem in told["problems"]] == [True]


def test_reload_while_it_starts_is_503(sidecar: Sidecar, address: str) -> None:
    """There is nothing yet that could be loaded anew."""
    sidecar.result = None
    status, text, headers = call(address, "/-/reload", "POST")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "still starting" in str(text)


def test_reload_that_fails_is_422_with_every_problem(sidecar: Sidecar, address: str) -> None:
    """Each as `check` would print it, and in its parts."""
    sidecar.result = Result(False, [BROKEN, BROKEN])
    status, text, _ = call(address, "/-/reload", "POST")
    told = json.loads(text)
    assert status == 422
    assert told["ok"] is False
    assert (
        told["problems"]
        == [
            {
                "file": "sidecert.yaml",
                "line": 7,
                "path": "routes[0].credential",
                "wrong": "there is no credential bob",
                "right": "alice is one",
                "warning": False,
                "text": str(BROKEN),
            }
        ]
        * 2
    )


def test_status_page_is_html_without_anything_to_fetch(address: str) -> None:
    """Its policy allows its own style and nothing else."""
    status, text, headers = call(address, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "/etc/sidecert.yaml" in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/nothing"])
def test_every_answer_has_the_security_headers_and_names_no_software(address: str, path: str) -> None:
    """Errors as well as pages."""
    headers = call(address, path)[2]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Server" not in headers


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/-/reload", "POST"),
        ("HEAD", "/-/reload", "POST"),
        ("POST", "/", "GET"),
        ("DELETE", "/metrics", "GET"),
        ("OPTIONS", "/metrics", "GET"),
        ("POST", "/-/ready", "GET, HEAD"),
    ],
)
def test_wrong_method_is_405_and_does_nothing(
    sidecar: Sidecar, address: str, method: str, path: str, allow: str
) -> None:
    """A link or a crawler must not reload."""
    status, _, headers = call(address, path, method)
    assert (status, headers["Allow"], sidecar.reloads) == (405, allow, 0)


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//metrics", "/-/reload/x", "/%2d/reload"])
def test_unknown_path_is_404(address: str, path: str) -> None:
    """Paths are compared as they are."""
    assert call(address, path)[0] == 404


def test_query_is_not_looked_at(address: str) -> None:
    """Scrapers may add one."""
    assert call(address, "/-/healthy?a=b")[0] == 200


LOCAL = "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        (LOCAL, {"Host": "localhost:9090"}),
        (LOCAL, {"Host": "LOCALHOST"}),
        (LOCAL, {"Host": "127.0.0.1:9090"}),
        (LOCAL, {"Host": "127.0.0.2"}),
        (LOCAL, {"Host": "[::1]"}),
        (LOCAL, {"Host": "[::1]:9090"}),
        ("127.9.9.9", {"Host": "localhost"}),
        ("::1", {"Host": "localhost"}),
        ("::ffff:127.0.0.1", {"Host": "localhost"}),
        (LOCAL, {"Host": "localhost:9090", "Origin": "http://localhost:9090"}),
        (LOCAL, {"Host": "localhost", "Sec-Fetch-Site": "same-origin"}),
        (LOCAL, {"Host": "localhost", "Sec-Fetch-Site": "none"}),
    ],
)
def test_people_on_this_machine_see_all(peer: str, headers: dict[str, str]) -> None:
    """curl, a browser's address line and the page itself."""
    assert refusal(peer, headers) is None


@pytest.mark.parametrize(
    ("peer", "headers", "word"),
    [
        ("10.0.0.5", {"Host": "localhost"}, "loopback"),
        ("::ffff:10.0.0.5", {"Host": "localhost"}, "loopback"),
        ("fe80::1%eth0", {"Host": "localhost"}, "loopback"),
        ("0.0.0.0", {"Host": "localhost"}, "loopback"),
        (None, {"Host": "localhost"}, "loopback"),
        ("10.0.0.5", {"Host": "localhost", "X-Forwarded-For": "127.0.0.1"}, "loopback"),
        (LOCAL, {}, "Host"),
        (LOCAL, {"Host": ""}, "Host"),
        (LOCAL, {"Host": "evil.example"}, "Host"),
        (LOCAL, {"Host": "evil.example:9090"}, "Host"),
        (LOCAL, {"Host": "localhost.evil.example"}, "Host"),
        (LOCAL, {"Host": "127.0.0.1.evil.example"}, "Host"),
        (LOCAL, {"Host": "10.0.0.5:9090"}, "Host"),
        (LOCAL, {"Host": "localhost", "Origin": "https://evil.example"}, "origin"),
        (LOCAL, {"Host": "localhost", "Origin": "null"}, "origin"),
        (LOCAL, {"Host": "localhost:9090", "Origin": "http://localhost:3000"}, "origin"),
        (LOCAL, {"Host": "localhost:9090", "Origin": "http://localhost:9090.evil.example"}, "origin"),
        (LOCAL, {"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, "site"),
        (LOCAL, {"Host": "localhost", "Sec-Fetch-Site": "same-site"}, "site"),
    ],
)
def test_others_do_not(peer: str | None, headers: dict[str, str], word: str) -> None:
    """Callers from elsewhere, rebound names, pages of other origins."""
    assert word in (refusal(peer, headers) or "")


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/-/reload"), ("GET", "/nothing")])
def test_pages_elsewhere_are_refused_before_anything_happens(
    sidecar: Sidecar, address: str, headers: dict[str, str], method: str, path: str
) -> None:
    """The rule is asked on each page that is not for all, also on those that are not there."""
    assert call(address, path, method, headers)[0] == 403
    assert sidecar.reloads == 0


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready"])
def test_metrics_and_probes_are_for_all(address: str, path: str) -> None:
    """A scraper in the cluster comes with the pod's name as Host."""
    assert call(address, path, headers={"Host": "pod-1.example:9090"})[0] == 200


def test_http_1_0_without_host_gets_no_more_than_the_metrics(sidecar: Sidecar, address: str) -> None:
    """No Host is no loopback Host."""
    host, port = address.split(":")
    where = (host, int(port))
    assert b" 403 " in talk(socket.AF_INET, where, b"POST /-/reload HTTP/1.0\r\n\r\n")
    assert b" 200 OK\r\n" in talk(socket.AF_INET, where, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert sidecar.reloads == 0


def test_caller_from_another_address_gets_only_what_is_for_all(sidecar: Sidecar) -> None:
    """Over a real socket: this machine's own outer address is not its loopback."""
    outer = _outer_address()
    if outer is None:
        pytest.skip("this machine has no address besides its loopback")
    with running(sidecar, Bind(f"{outer}:0", "tcp", outer, 0, None)) as address:
        assert call(address, "/-/ready")[0] == 200
        assert call(address, "/", headers={"Host": "localhost"})[0] == 403
        assert call(address, "/-/reload", "POST", headers={"Host": "localhost"})[0] == 403
    assert sidecar.reloads == 0


def _outer_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing: it only makes the kernel choose
        except OSError:
            return None
        found = str(sock.getsockname()[0])
    return None if found.startswith("127.") else found


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/-/reload")])
def test_failure_of_our_own_is_logged_and_told_without_details(
    sidecar: Sidecar, address: str, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    """500 in a word for the caller, the traceback for the log, and the next call is served."""
    sidecar.failure = RuntimeError("inner words")
    with caplog.at_level(logging.ERROR, "sidecert.admin"):
        status, text, _ = call(address, path, method)
    assert (status, text) == (500, "internal error, see the log\n")
    assert "inner words" in caplog.text
    assert call(address, "/-/healthy")[0] == 200


def test_large_bodies_and_heads_are_not_taken(sidecar: Sidecar, address: str) -> None:
    """There is nothing to send here."""
    host, port = address.split(":")
    head = b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    assert b" 400 " in talk(socket.AF_INET, (host, int(port)), head)
    big = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000
    assert b" 200 " not in talk(socket.AF_INET, (host, int(port)), big)
    assert sidecar.reloads == 0


def test_connection_is_kept_for_the_next_scrape(address: str) -> None:
    """Three requests on one connection."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        for path in ("/metrics", "/nothing", "/-/ready"):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert not response.will_close
    finally:
        connection.close()


def unix(path: Path) -> Bind:
    return Bind(f"unix:{path}", "unix", "", 0, path)


def test_unix_socket_counts_as_loopback_and_is_not_for_everybody(sidecar: Sidecar, tmp_path: Path) -> None:
    """Who may open the file may reload; the file goes away at the end."""
    path = tmp_path / "admin.sock"
    with running(sidecar, unix(path)) as address:
        assert address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        request = b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert b" 200 OK\r\n" in talk(socket.AF_UNIX, str(path), request)
    assert sidecar.reloads == 1
    assert not path.exists()


def test_stale_unix_socket_is_replaced(sidecar: Sidecar, tmp_path: Path) -> None:
    """A process that was killed leaves its file behind."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with running(sidecar, unix(path)):
        answer = talk(socket.AF_UNIX, str(path), b"GET /-/ready HTTP/1.0\r\n\r\n")
    assert answer.split(b" ")[1] == b"200"


def test_unix_socket_of_a_living_process_and_other_files_are_left_alone(
    sidecar: Sidecar, tmp_path: Path
) -> None:
    """Neither is ours to remove."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Unusable, match="listens"), running(sidecar, unix(path)):
            pass
    precious = tmp_path / "precious"
    precious.write_text("data")
    with pytest.raises(Unusable, match="no socket"), running(sidecar, unix(precious)):
        pass
    assert precious.read_text() == "data"


def test_address_that_is_taken_is_told(sidecar: Sidecar, address: str) -> None:
    """For the caller of `start` to tell."""
    port = int(address.split(":")[1])
    with (
        pytest.raises(Unusable, match="in use"),
        running(sidecar, Bind(address, "tcp", "127.0.0.1", port, None)),
    ):
        pass


def test_stop_closes_the_connections_that_wait(sidecar: Sidecar) -> None:
    """A scraper that keeps its connection does not hold up the end."""
    with running(sidecar) as address:
        host, port = address.split(":")
        waiting = socket.create_connection((host, int(port)), timeout=10)
        waiting.sendall(b"GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")
    assert waiting.recv(1) == b""
    waiting.close()
