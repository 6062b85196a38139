"""WebSockets of a real library reach a real service, by itself and behind nginx and haproxy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidProxyStatus, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect
from websockets.typing import Subprotocol

from support import clients
from support.certs import Pki
from support.peers import Peers
from support.sidecar import Sidecar, StartSidecar, route
from support.websocket_peer import WebSocketPeer, shut, websocket_echo

FRONTS = ["none", "nginx", "haproxy"]
WAYS = ["direct", "host", "unix"]
_NGINX = """
    location ~ ^/ {{
        proxy_pass https://{address}; proxy_http_version 1.1; proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
    }}
"""


@dataclass
class Chat:
    """A sidecar with the route `chat`, and the service at its end; `address` is what the route leads to."""

    sidecar: Sidecar
    service: WebSocketPeer
    address: str

    def open(self, way: str, path: str = "/echo") -> AbstractContextManager[ClientConnection]:
        """A WebSocket to the service: by the pinned listener's address, by name, or by unix socket."""
        options: dict[str, Any] = {"open_timeout": 20, "close_timeout": 20, "max_size": None}
        options["subprotocols"] = [Subprotocol("v2.echo")]
        open_listener, pinned, unix = self.sidecar.listeners
        if way == "direct":
            return connect("ws" + clients.url(pinned, path).removeprefix("http"), proxy=None, **options)
        if way == "host":
            sock = clients.connect(open_listener)
            return connect(f"ws://chat.test{path}", sock=sock, proxy=None, **options)
        assert isinstance(unix, str)
        return unix_connect(unix, f"ws://chat.test{path}", **options)


@pytest.fixture(params=FRONTS)
def chat(request: pytest.FixtureRequest, sidecar: StartSidecar, peers: Peers, pki: Pki) -> Iterator[Chat]:
    """One after another with the service itself, nginx and haproxy as the upstream."""
    front = request.param
    with ExitStack() as stack:
        service = stack.enter_context(websocket_echo(pki.upstream, pki.trust, verify=front == "none"))
        upstream = {
            "none": lambda: service,
            "nginx": lambda: peers.nginx(extra=_NGINX.format(address=service.address)),
            "haproxy": lambda: peers.haproxy(behind=service),
        }[front]()
        listeners = [
            {"bind": "127.0.0.1:0"},
            {"bind": "127.0.0.2:0", "route": "chat"},
            {"bind": "unix:chat.sock"},
        ]
        running = sidecar(route("chat", upstream, trust=pki.trust), listeners=listeners)
        yield Chat(running, service, upstream.address)
        running.wait_for(lambda: running.metric("sidecert_requests_in_progress", route="chat") == 0)
        assert running.metric("sidecert_upstream_connections", route="chat", state="active") == 0


def test_messages_of_all_kinds_come_back(chat: Chat) -> None:
    """Text, binary, empty, in fragments, 3 MiB at once, pings from both sides; the Host is the upstream's."""
    large = bytes(range(256)) * 4096 * 3
    for count, way in enumerate(WAYS, 1):
        with chat.open(way, "/echo?a=%20b") as socket:
            assert socket.subprotocol == "v2.echo"
            for message in ("hello", "grüße ☃", "", b"", b"\x00\xff\r\n\r\n", large, "x" * 100_000):
                socket.send(message)
                assert socket.recv(20) == message
            socket.send([b"in ", b"three ", b"pieces"])
            assert socket.recv(20) == b"in three pieces"
            assert socket.ping(b"\x01are you there").wait(20)
            socket.send("ping me")
            assert socket.recv(20) == "ponged"
        session = chat.service.wait_for_end(count)
        assert (session.path, session.host, session.code) == ("/echo?a=%20b", chat.address, 1000)
        # Behind nginx and haproxy the service has no certificate to look at; they demanded it.
        assert session.subject == ("alice" if chat.address == chat.service.address else None)
    assert chat.sidecar.outcomes("chat") == {"ok": len(WAYS)}


def test_close_codes_go_both_ways(chat: Chat) -> None:
    """The caller's code and reason reach the service, the service's reach the caller."""
    with chat.open("direct") as socket:
        socket.close(4000, "had enough")
    session = chat.service.wait_for_end(1)
    assert (session.code, session.reason) == (4000, "had enough")

    with chat.open("host") as socket:
        socket.send("close 4001 closing time")
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(20)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "closing time")


def test_ends_without_a_close_frame_go_both_ways(chat: Chat) -> None:
    """An end of either side's connection ends the other's, and nobody makes up a close frame."""
    with chat.open("direct") as socket:
        socket.send("once")
        assert socket.recv(20) == "once"
        shut(socket.socket)
    assert chat.service.wait_for_end(1).code == 1006

    with chat.open("host") as socket:
        socket.send("drop")
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(20)
    assert caught.value.rcvd is None


def test_refused_upgrade_is_an_ordinary_answer(chat: Chat) -> None:
    """The service's status, headers and body reach the caller's library; a plain GET gets its 426."""
    for status in (200, 403, 426, 503):
        with pytest.raises(InvalidStatus) as caught, chat.open("direct", f"/refuse/{status}"):
            pass
        response = caught.value.response
        assert (response.status_code, response.body) == (status, b"not here\n")
        assert response.headers["X-Why"] == "closed today"
    plain = chat.sidecar.get("http://chat.test/echo")
    assert plain.status == 426
    assert chat.service.sessions == []


@pytest.mark.parametrize("chat", ["none"], indirect=True)
def test_many_sockets_talk_at_once(chat: Chat) -> None:
    """Thirty, each of which gets its own messages back, with ordinary calls refused beside them."""
    wrong: list[object] = []
    together = threading.Barrier(30)

    def talk(number: int) -> None:
        try:
            with chat.open(["direct", "host", "unix"][number % 3]) as socket:
                together.wait(20)
                for turn in range(20):
                    socket.send(f"{number} {turn}")
                    assert socket.recv(20) == f"{number} {turn}"
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert wrong == []
    assert len({session.subject for session in chat.service.sessions}) == 1
    chat.service.wait_for_end(30)


@pytest.mark.parametrize("chat", ["none"], indirect=True)
def test_proxy_setting_of_a_websocket_library_is_answered_clearly(chat: Chat) -> None:
    """Such libraries ask a proxy for a tunnel, also for ws://: that is refused, with 403."""
    listener = chat.sidecar.listener
    with (
        pytest.raises(InvalidProxyStatus) as caught,
        connect("ws://chat.test/echo", proxy=clients.url(listener), open_timeout=20),
    ):
        pass
    assert caught.value.response.status_code == 403
    assert caught.value.response.headers["Sidecert-Outcome"] == "connect_not_allowed"
    assert chat.service.sessions == []
