"""Only who may call gets a call made, by address, web page and socket mode; and only to a route."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.certs import Pki
from support.clients import Answer, Talker, call
from support.names import Turns, own_names
from support.peers import Peers
from support.recorder import TlsRecorder
from support.sidecar import Sidecar, StartSidecar, config, route

REQUEST = b"GET /a HTTP/1.1\r\nHost: orders.test\r\n\r\n"
DENIED = "sidecert_denied_requests_total"
NEAR, FAR, NEAR_6, FAR_6 = "10.77.0.2", "172.20.0.2", "fd77::2", "fd99::2"
OURS, OURS_6 = "10.77.0.1", "fd77::1"


class From(Talker):
    """A caller whose connection comes from the address `source`."""

    def __init__(self, source: str, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, 10, source_address=(source, 0))
        self.buffer = b""

    def get(self) -> Answer:
        self.send(REQUEST)
        return self.read_answer()


def ask(source: str, address: tuple[str, int]) -> Answer:
    with From(source, address) as caller:
        return caller.get()


def is_refused(answer: Answer, reason: str = "caller_not_allowed") -> bool:
    return (answer.status, answer.header("Sidecert-Outcome")) == (403, reason)


def reload(running: Sidecar, spec: Mapping[str, Any]) -> None:
    """The sidecar goes by `spec` when this returns."""
    running.rewrite(spec)
    answer = running.ask_admin("POST", "/-/reload")
    assert answer.status == 200, answer.text


@contextmanager
def nobody_comes(*addresses: tuple[str, int]) -> Iterator[None]:
    """Listens there for the length of the block, and is never connected to."""
    with ExitStack() as stack:
        traps = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            traps.append(stack.enter_context(socket.create_server(address, family=family)))
        yield
        for trap in traps:
            trap.setblocking(False)
            with pytest.raises(BlockingIOError):
                trap.accept()


def test_only_allowed_addresses_may_call(peers: Peers, pki: Pki, sidecar: StartSidecar) -> None:
    """Of both families; others get 403 with their address, are counted, and nothing is sent for them."""
    with own_names({}, addresses=[NEAR, FAR, NEAR_6, FAR_6, OURS, OURS_6]):
        recorder = peers.recorder()
        running = sidecar(
            route("orders", recorder, trust=pki.trust),
            listeners=[
                {"bind": "0.0.0.0:8080", "allow": ["10.77.0.0/16"]},
                {"bind": "[::]:8080", "allow": ["fd77::/16"]},
                {"bind": "0.0.0.0:8081", "allow": "any"},
                {"bind": "127.0.0.1:8082", "allow": ["127.0.0.9"]},
            ],
        )
        assert ask(NEAR, (OURS, 8080)).status == 200
        assert ask(NEAR_6, (OURS_6, 8080)).status == 200
        assert ask(FAR, (OURS, 8081)).status == 200
        assert ask("127.0.0.9", ("127.0.0.1", 8082)).status == 200
        assert len(recorder.requests) == 4
        strangers = [
            *((FAR, (OURS, 8080)), (FAR_6, (OURS_6, 8080))),
            *(("127.0.0.1", ("127.0.0.1", 8080)), ("127.0.0.1", ("127.0.0.1", 8082))),
            (NEAR, ("127.0.0.1", 8082)),
        ]
        for source, address in strangers:
            with From(source, address) as stranger:
                answer = stranger.get()
                assert is_refused(answer), (source, address)
                assert source in answer.json()["detail"]
                assert f", {source}]" in answer.json()["remedy"]
                assert stranger.closed()
        assert len(recorder.requests) == 4
        assert running.metric(DENIED, reason="caller_not_allowed") == len(strangers)
        told = running.events("refused")
        assert {each["listener"] for each in told} == {"0.0.0.0:8080", "[::]:8080", "127.0.0.1:8082"}
        assert {each["level"] for each in told} == {"info"}  # as each call that is refused for what it is


def test_loopback_listener_takes_loopback_callers_only(peers: Peers, pki: Pki, sidecar: StartSidecar) -> None:
    """Without `allow` too: a neighbour whose packets the kernel lets through to 127.0.0.1 is refused."""
    with own_names({}, addresses=[NEAR]):
        recorder = peers.recorder()
        running = sidecar(route("orders", recorder, trust=pki.trust))
        assert isinstance(running.listener, tuple)
        assert ask("127.0.0.1", running.listener).status == 200
        assert is_refused(ask(NEAR, running.listener))
        assert len(recorder.requests) == 1


def test_a_flood_of_strangers_takes_no_room_and_fills_no_log(
    peers: Peers, pki: Pki, sidecar: StartSidecar
) -> None:
    """500 connections, 60 of them open at once: each counted, few lines, and who may call is served."""
    with own_names({}, addresses=[NEAR, FAR, OURS]), ExitStack() as stack:
        recorder = peers.recorder()
        running = sidecar(
            route("orders", recorder, trust=pki.trust),
            listeners=[{"bind": "0.0.0.0:8080", "allow": [NEAR]}],
            limits={"connections": 60},
        )
        for _ in range(440):
            with closing(socket.create_connection((OURS, 8080), 10, source_address=(FAR, 0))) as stranger:
                assert stranger.recv(1)
        for _ in range(60):
            stack.enter_context(From(FAR, (OURS, 8080)))
        with From(NEAR, (OURS, 8080)) as caller:
            assert caller.get().status == 200
        running.wait_for(lambda: running.metric(DENIED, reason="caller_not_allowed") == 500)
        lines = running.events("refused")
        assert 1 <= len(lines) <= 20
        assert ask(NEAR, (OURS, 8080)).status == 200


def test_a_reload_of_who_may_call_holds_for_open_connections(
    peers: Peers, pki: Pki, sidecar: StartSidecar
) -> None:
    """From their next request on; the listener is not opened anew, and no connection is cut before."""
    with own_names({}, addresses=[NEAR, FAR, OURS]):
        recorder = peers.recorder()
        orders = route("orders", recorder, trust=pki.trust)

        def spec(*allow: str, **more: object) -> dict[str, Any]:
            listener = {"bind": "0.0.0.0:8080", "allow": list(allow), **more}
            return config([orders], pki.credentials, listeners=[listener])

        running = sidecar(orders, listeners=[{"bind": "0.0.0.0:8080", "allow": [NEAR, FAR]}])
        with From(NEAR, (OURS, 8080)) as near, From(FAR, (OURS, 8080)) as far:
            assert near.get().status == far.get().status == 200
            reload(running, spec(NEAR))
            assert near.get().status == 200
            assert is_refused(far.get())
            assert far.closed()
            assert is_refused(ask(FAR, (OURS, 8080)))
            reload(running, spec(NEAR, FAR, origins=["https://app.example"]))
            assert near.get().status == ask(FAR, (OURS, 8080)).status == 200
        assert len(running.events("listening")) == 2  # the admin's and the one


FOREIGN: list[tuple[str, ...]] = [
    ("Origin: http://evil.test",),
    ("Origin: null",),
    ("Origin:",),
    ("Origin: https://orders.test",),
    ("Origin: http://orders.test:81",),
    ("Origin: http://orders.test", "Origin: http://orders.test"),
    ("oRiGiN: http://evil.test", "Sec-Fetch-Site: same-origin"),
    ("Origin: http://orders.test.evil.test",),
    ("Origin: http://orders.test, http://evil.test",),
    ("Origin: https://app.example/",),
    ("Origin: https://app.example.evil.test",),
    ("Origin: https://app.example.",),
    ("Origin: https://app.example", "Origin: https://evil.test"),
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("SEC-fetch-SITE: Cross-Site",),
    ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"),
    ("Sec-Fetch-Site: whatever",),
    ("Connection: origin", "Origin: http://evil.test"),
    (
        *("Origin: http://evil.test", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    ),
]
PASSED: list[tuple[str, ...]] = [
    (),
    ("Origin: http://orders.test",),
    ("Origin: http://ORDERS.test:80", "Sec-Fetch-Site: same-origin"),
    ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"),
    ("Origin: https://app.example", "Sec-Fetch-Site: cross-site"),
    ("Origin: https://app.example:443",),
    ("Referer: http://evil.test/page", "X-Origin: http://evil.test"),
]


def asked(target: str, *fields: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: orders.test", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def test_requests_of_pages_elsewhere_are_refused(
    recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """As proxies are asked and directly; the request's own origin and allowed ones pass; `any` takes all."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust),
        listeners=[
            {"bind": "127.0.0.1:0", "origins": ["https://APP.example"]},
            {"bind": "unix:open.sock", "origins": "any"},
        ],
    )
    closed, anyone = running.listeners
    targets = ("/a", "http://orders.test/a")
    for fields in FOREIGN:
        for target in targets:
            with Talker(closed) as page:
                page.send(asked(target, *fields))
                answer = page.read_answer()
                assert is_refused(answer), fields
                assert not answer.header_values("Access-Control-Allow-Origin")
    refused = len(FOREIGN) * len(targets)
    assert recorder.requests == []
    assert running.metric(DENIED, reason="caller_not_allowed") == refused
    for fields in PASSED:
        for target in targets:
            with Talker(closed) as tool:
                tool.send(asked(target, *fields))
                assert tool.read_answer().status == 200, fields
    for fields in FOREIGN:
        with Talker(anyone) as page:
            page.send(asked("/a", *fields))
            assert page.read_answer().status == 200, fields
    with Talker(closed) as preflight:
        preflight.send(asked("/a", "Origin: http://evil.test", method="OPTIONS"))
        assert is_refused(preflight.read_answer())


def test_a_reload_of_origins_holds_for_open_connections(
    recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """The same head, which is remembered, is judged by the rules of now."""
    orders = route("orders", recorder, trust=pki.trust)
    running = sidecar(orders, listeners=[{"bind": "127.0.0.1:0", "origins": ["https://app.example"]}])
    with Talker(running.listener) as page:
        for _ in range(3):
            page.send(asked("/a", "Origin: https://app.example"))
            assert page.read_answer().status == 200
        reload(running, config([orders], pki.credentials))
        page.send(asked("/a", "Origin: https://app.example"))
        assert is_refused(page.read_answer())


def test_a_unix_socket_has_the_mode_of_the_config(
    recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """0660 by default; a reload changes it in place, and the socket stays the same."""
    orders = route("orders", recorder, trust=pki.trust)
    running = sidecar(orders, listeners=[{"bind": "unix:a.sock"}, {"bind": "unix:b.sock", "mode": "0600"}])
    first, second = (Path(str(address)) for address in running.listeners)

    def modes() -> list[str]:
        return [oct(stat.S_IMODE(path.stat().st_mode)) for path in (first, second)]

    assert modes() == ["0o660", "0o600"]
    before = first.stat().st_ino
    changed = [{"bind": "unix:a.sock", "mode": "0666"}, {"bind": "unix:b.sock"}]
    reload(running, config([orders], pki.credentials, listeners=changed))
    assert modes() == ["0o666", "0o660"]
    assert first.stat().st_ino == before
    assert call(str(first), "GET", "http://orders.test/").status == 200


def test_a_failed_reload_leaves_the_mode(recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar) -> None:
    """Another listener that cannot be opened keeps the whole old config in force."""
    orders = route("orders", recorder, trust=pki.trust)
    running = sidecar(orders, listeners=[{"bind": "unix:a.sock"}])
    changed = [{"bind": "unix:a.sock", "mode": "0666"}, {"bind": "unix:gone/b.sock"}]
    running.rewrite(config([orders], pki.credentials, listeners=changed))
    assert running.ask_admin("POST", "/-/reload").status == 422
    assert oct(stat.S_IMODE(Path(str(running.listener)).stat().st_mode)) == "0o660"


def test_an_open_listener_without_allow_is_not_served(
    tmp_path: Path, pki: Pki, recorder: TlsRecorder
) -> None:
    """`check` says what to write; a sidecar that runs keeps its config."""
    spec = config([route("orders", recorder, trust=pki.trust)], pki.credentials)
    sidecar = Sidecar(tmp_path / "wide", {**spec, "listeners": [{"bind": "0.0.0.0:0"}]})
    try:
        assert sidecar.process.wait(20) == 2
    finally:
        sidecar.kill()
    assert "allow: [10.0.0.0/8, 192.168.1.7], or write allow: any" in sidecar.stderr
    assert not sidecar.events("listening")


IDENTITY = [
    *("X-Forwarded-Client-Cert", "x-FORWARDED-client-CERT", "X_Forwarded_Client_Cert", "X-SSL-Client-Cert"),
    *("X-SSL-Client-S-DN", "SSL_CLIENT_VERIFY", "Ssl-Client-Subject-Dn", "Client-Cert", "Client-Cert-Chain"),
    *("X-Client-Cert", "X-Client-Verify", "X-ARR-ClientCert", "WL-Proxy-Client-Cert", "$WSCC"),
    *("X-Amzn-Mtls-Clientcert", "X-Amzn-Mtls-Clientcert-Leaf", "X-Forwarded-Tls-Client-Cert"),
    *("Cf-Client-Cert-Sha256", "Proxy-Authorization", "proxy_authorization"),
]


def test_what_a_caller_says_of_its_identity_never_reaches_the_upstream(
    recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """Twice and in any case, in the header and as a trailer, also where Connection names it."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    for field in IDENTITY:
        lines = (f"{field}: CN=mallory", f"{field.swapcase()}:CN=mallory", "A: 1")
        chunked = asked("/b", *lines, "Transfer-Encoding: chunked", f"Trailer: {field}", method="POST")
        body = f"3\r\nabc\r\n0\r\n{field}: CN=mallory\r\nX-Sum: 6\r\n\r\n".encode()
        named = asked("/c", *lines, f"Connection: {field}, A")
        with Talker(running.listener) as caller:
            for request in (asked("/a", *lines), chunked + body, named):
                caller.send(request)
                assert caller.read_answer().status == 200, field
        seen = recorder.requests[-3:]
        assert [each.target for each in seen] == ["/a", "/b", "/c"]
        for each in seen:
            assert each.subject == "alice"
            assert "mallory" not in str([*each.headers, *each.trailers]), (field, each.target)
        assert seen[0].header("A") == "1"
        assert seen[1].trailers == [("X-Sum", "6")]


def test_it_is_no_open_proxy(recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar) -> None:
    """Whatever place a request names that is no route's: 403, and no connection is made anywhere."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", f"0x7f.1:{port}", f"127.1:{port}")
    requests = [b"CONNECT orders.test:443 HTTP/1.1\r\nHost: orders.test\r\n\r\n"]
    for place in places:
        requests += [
            f"GET http://{place}/ HTTP/1.1\r\nHost: orders.test\r\n\r\n".encode(),
            f"GET https://{place}/ HTTP/1.1\r\nHost: orders.test\r\n\r\n".encode(),
            f"GET / HTTP/1.1\r\nHost: {place}\r\n\r\n".encode(),
            f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode(),
        ]
    with nobody_comes(("127.0.0.1", port), ("::1", port)):
        for request in requests:
            with Talker(running.listener) as caller:
                caller.send(request)
                answer = caller.read_answer()
                outcome = answer.header("Sidecert-Outcome")
                assert (answer.status, outcome) in {
                    (403, "no_route"),
                    (403, "connect_not_allowed"),
                    (400, "bad_request"),
                }, request
                if b"0x7f" not in request and b"127.1" not in request:
                    assert answer.status == 403, request
    assert recorder.connections == 0


def test_a_page_that_rebinds_its_name_to_a_pinned_listener_is_refused(
    recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """To the browser the page and the listener are one origin then; the Host tells."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0", "route": "orders"}]
    )
    port = running.listener[1]
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1.evil.test"):
        page = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        for headers in ({"Host": host}, page):
            assert is_refused(running.get("/a", headers), "host_not_allowed")
    assert recorder.connections == 0
    assert running.get("/a").status == 200


PUBLIC, LAN, METADATA = "11.0.0.1", "10.7.7.7", "169.254.169.254"
PUBLIC_6, LAN_6 = "2600::1", "fd00::7"
REBOUND: list[tuple[str, ...]] = [
    *(("127.0.0.1",), (LAN,), (METADATA,), ("::1",), (LAN_6,)),
    *((PUBLIC, LAN), (LAN, PUBLIC), (PUBLIC, "127.0.0.1", METADATA), (PUBLIC, LAN_6), (PUBLIC_6, LAN)),
]


def test_a_name_that_rebinds_leads_only_to_the_address_that_was_checked(
    peers: Peers, pki: Pki, sidecar: StartSidecar
) -> None:
    """A public address first, private ones next: one look-up per connection, and none to a private one."""
    names = {f"r{n}.wild.test": Turns([PUBLIC], later) for n, later in enumerate(REBOUND)}
    with own_names(names, addresses=[PUBLIC, PUBLIC_6, LAN, LAN_6, METADATA]) as server:
        recorder = peers.recorder(host=PUBLIC)
        wild = {
            "id": "wild",
            "match": {"host": "*.wild.test"},
            "upstream": {
                "port": recorder.port,
                "trust": str(pki.trust),
                "server_name": "localhost",
                "pool": {"max_idle": 0},
            },
            "credential": "alice",
        }
        running = sidecar(wild)
        traps = [(address, recorder.port) for address in ("127.0.0.1", "::1", LAN, LAN_6, METADATA, PUBLIC_6)]
        with nobody_comes(*traps):
            for count, name in enumerate(names, start=1):
                assert running.get(f"http://{name}/a").status == 200
                assert recorder.connections == count
                assert server.asked(name) == 1
                for _ in range(2):
                    assert is_refused(running.get(f"http://{name}/b"), "private_address"), name
                assert recorder.connections == count
        assert running.metric(DENIED, reason="private_address") == 2 * len(names)
        assert {each.target for each in recorder.requests} == {"/a"}
