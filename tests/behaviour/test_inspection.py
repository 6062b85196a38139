"""Calls as mitmproxy's flows: seen, saved, edited, answered, killed and held, with their certificate."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.certs import Pki
from support.clients import Caller, Talker, call
from support.inspecting import NextLayer, Proxyserver, Tool, inspecting, install
from support.peers import Peers
from support.recorder import (
    Exchange,
    TlsRecorder,
    after_interim,
    chunked,
    cut_short,
    echo,
    fixed,
    gated,
    head,
    raw,
    stream,
    until_close,
)
from support.sidecar import config, route

Inspect = Callable[..., Tool]
BIG = 3 * 1024 * 1024
ALL_HOOKS = ["requestheaders", "request", "responseheaders", "response"]


@pytest.fixture
def inspect(tmp_path: Path, pki: Pki, recorder: TlsRecorder) -> Iterator[Inspect]:
    """Starts a tool with two routes to the recorder, `orders` as alice and `bills` as bob."""
    with ExitStack() as stack:

        def start(addons: str = "", *options: str, tool: str = "mitmdump", **upstream: object) -> Tool:
            routes = [
                route("orders", recorder, trust=pki.trust, **upstream),
                route("bills", recorder, trust=pki.trust, credential="bob"),
            ]
            whole = config(routes, pki.credentials)
            running: AbstractContextManager[Tool] = inspecting(
                tmp_path / "tool", whole, addons, *options, tool=tool
            )
            return stack.enter_context(running)

        yield start


# -- what is seen --------------------------------------------------------------------------------------


def test_a_call_is_a_flow_and_goes_on_as_it_came(inspect: Inspect, recorder: TlsRecorder) -> None:
    """All four hooks in order; head and body reach the upstream as without anybody looking."""
    tool = inspect()
    fields = b"X-One: 1\r\nContent-Length: 4\r\n\r\n"
    with Talker(tool.listener) as caller:
        caller.send(b"POST http://orders.test/a?b=c HTTP/1.1\r\nhOst: orders.test\r\n" + fields + b"body")
        answer = caller.read_answer("POST")
    assert answer.status == 200
    seen = recorder.requests[0]
    assert (seen.subject, seen.body) == ("alice", b"body")
    assert seen.raw_head == (
        b"POST /a?b=c HTTP/1.1\r\nhOst: %b\r\nX-One: 1\r\nContent-Length: 4\r\n\r\n"
        % recorder.address.encode()
    )
    assert tool.hooks("/a?b=c") == ALL_HOOKS
    note = tool.wait_for_note("response", "/a?b=c")
    assert note["request"] == 4
    assert note["answer"] == [200, len(answer.body)]
    assert note["meta"] == {"route": "orders", "credential": "alice", "outcome": "ok"}


def test_a_saved_flow_opens_in_a_stock_mitmproxy(
    inspect: Inspect, recorder: TlsRecorder, tmp_path: Path
) -> None:
    """A mitmdump without our script and without our package reads it, with what there is to tell."""
    tool = inspect()
    call(tool.listener, "POST", "http://orders.test/kept", b"content")
    [flow] = tool.stop()
    assert flow.request.pretty_url == "http://orders.test/kept"
    assert flow.request.content == b"content"
    assert flow.server_conn.address == ("127.0.0.1", recorder.port)
    assert flow.server_conn.peername == ("127.0.0.1", recorder.port)
    assert flow.server_conn.tls_version == "TLSv1.3"
    assert flow.server_conn.cipher
    assert flow.server_conn.certificate_list
    assert flow.server_conn.timestamp_start <= flow.server_conn.timestamp_tcp_setup
    assert flow.server_conn.timestamp_tcp_setup <= flow.server_conn.timestamp_tls_setup
    assert flow.client_conn.peername[0] == "127.0.0.1"
    assert flow.client_conn.sockname == tool.listener
    read = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['sidecert'] = None; "
            "from mitmproxy.tools.main import mitmdump; mitmdump()",
            *("--set", f"confdir={tmp_path / 'stock'}", "-n", "-r", str(tool.saved)),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "POST http://orders.test/kept" in read.stdout
    assert "200" in read.stdout


def test_mitmweb_lists_a_call(inspect: Inspect) -> None:
    """It is in /flows while it runs, with the verdict of the one that failed."""
    tool = inspect(tool="mitmweb")
    assert call(tool.listener, "GET", "http://orders.test/seen").status == 200
    assert call(tool.listener, "GET", "http://nobody.test/lost").status == 403
    [good, bad] = tool.wait_for(lambda: len(found := tool.flows()) == 2 and found)
    assert (good["request"]["path"], good["response"]["status_code"]) == ("/seen", 200)
    assert good["server_conn"]["tls_version"] == "TLSv1.3"
    assert bad["error"]["msg"].startswith("no_route: ")
    assert bad["marked"] == "❌"
    assert bad["comment"].startswith("No route matches this request: ")


def test_a_refused_certificate_is_the_flows_error(tmp_path: Path, pki: Pki, peers: Peers) -> None:
    """The verdict as error, mark, comment and metadata; the caller gets the same answer as ever."""
    peer = peers.haproxy(tls="1.3")
    whole = config([route("orders", peer, trust=pki.trust, credential="stranger")], pki.credentials)
    with inspecting(tmp_path / "tool", whole) as tool:
        answer = call(tool.listener, "GET", "http://orders.test/refused")
        assert (answer.status, answer.json()["outcome"]) == (502, "client_cert_unknown_ca")
        tool.wait_for_note("error", "/refused")
        assert tool.hooks("/refused") == ["requestheaders", "request", "error"]
        [flow] = tool.stop()
        assert flow.error.msg.startswith("client_cert_unknown_ca: ")
        assert flow.metadata["outcome"] == "client_cert_unknown_ca"
        assert flow.marked
        assert answer.json()["remedy"] in flow.comment
        assert flow.response is None
        assert flow.server_conn.tls_version == "TLSv1.3"


def test_routes_keep_their_identity_on_one_connection(inspect: Inspect, recorder: TlsRecorder) -> None:
    """Two routes to one address, in turns on a keep-alive connection, each under its own certificate."""
    tool = inspect()
    with Caller(tool.listener) as caller:
        for host in ("orders", "bills", "orders", "bills"):
            assert caller.get(f"http://{host}.test/{host}").status == 200
    assert [seen.subject for seen in recorder.requests] == ["alice", "bob", "alice", "bob"]
    assert len({seen.connection for seen in recorder.requests}) == 2
    flows = tool.stop()
    assert [flow.metadata["credential"] for flow in flows] == ["alice", "bob", "alice", "bob"]
    assert len({flow.client_conn.id for flow in flows}) == 1
    assert len({flow.server_conn.id for flow in flows}) == 2


# -- edits ---------------------------------------------------------------------------------------------

EDITS_REQUEST = """
def request(flow):
    flow.request.method = "PUT"
    flow.request.path = "/new?x=1"
    flow.request.headers["X-Added"] = "yes"
    flow.request.content = b"another body"
"""


def test_an_edited_request_is_sent(inspect: Inspect, recorder: TlsRecorder) -> None:
    """Method, path, headers and content, framed anew; the connection is kept."""
    tool = inspect(EDITS_REQUEST)
    with Caller(tool.listener) as caller:
        for body in (b"old", [b"chunk"]):
            assert caller.call("POST", "http://orders.test/old", body).status == 200
    for seen in recorder.requests:
        assert (seen.method, seen.target, seen.body) == ("PUT", "/new?x=1", b"another body")
        assert seen.header("X-Added") == "yes"
        assert seen.header_values("Content-Length") == ["12"]
        assert seen.header("Transfer-Encoding") is None
        assert seen.subject == "alice"


DROPS_CONNECTION = """
def request(flow):
    flow.request.headers.pop("Connection", None)
    flow.request.headers["X-Tag"] = "1"
"""


def test_an_edit_of_one_call_is_no_other_calls(inspect: Inspect) -> None:
    """Whether a connection is kept is its caller's word, also where edits make its head another's."""
    tool = inspect(DROPS_CONNECTION)
    target = "http://orders.test/same"
    for _ in range(3):
        with Caller(tool.listener) as closing, Caller(tool.listener) as staying:
            assert (
                closing.call("GET", target, headers={"Connection": "close"}).header("Connection") == "close"
            )
            assert staying.call("GET", target).header("Connection") is None
            assert staying.call("GET", target, headers={"X-Tag": "1"}).status == 200


def test_an_edit_of_the_host_is_routed_anew(inspect: Inspect, recorder: TlsRecorder) -> None:
    """To another route: under that one's certificate. To no route: refused, and nothing goes out."""
    tool = inspect(
        """
        def requestheaders(flow):
            flow.request.host = flow.request.query["to"]
        """
    )
    with Talker(tool.listener) as caller:
        for form in ("http://orders.test/x?to=%s", "/x?to=%s"):
            for to, status in (("bills.test", 200), ("evil.test", 403)):
                caller.send(f"GET {form % to} HTTP/1.1\r\nHost: orders.test\r\n\r\n".encode())
                assert caller.read_answer().status == status
    assert [seen.subject for seen in recorder.requests] == ["bob", "bob"]
    assert {flow.metadata["route"] for flow in tool.stop() if flow.error is None} == {"bills"}


@pytest.mark.parametrize(
    "edit",
    [
        'flow.request.headers["X"] = "a\\r\\nHost: evil.test"',
        'flow.request.path = "/a HTTP/1.1\\r\\nX: y"',
        'flow.request.path = "/a b"',
        'flow.request.path = "/a/../b"',
        'flow.request.method = "CONNECT"',
        'flow.request.method = "HEAD"',
        'flow.request.method = "GE T"',
        "flow.request.content = None",
        "flow.request.stream = lambda data: data",
    ],
)
def test_an_edit_that_cannot_be_sent_is_refused(inspect: Inspect, recorder: TlsRecorder, edit: str) -> None:
    """Nothing goes upstream, and the flow says why."""
    tool = inspect(
        f"def requestheaders(flow):\n    flow.request.raw_content = b''\n\ndef request(flow):\n    {edit}\n"
    )
    answer = call(tool.listener, "GET", "http://orders.test/")
    assert answer.status in (400, 403, 501, 502)
    assert answer.header("Sidecert-Outcome")
    flow = tool.wait_for(lambda: [note for note in tool.notes if note["hook"] == "error"])[0]
    assert flow["error"].startswith(answer.header("Sidecert-Outcome"))
    assert recorder.connections == 0


def test_an_edit_cannot_take_the_certificate_away(inspect: Inspect, recorder: TlsRecorder) -> None:
    """What addons write into a flow's connections and metadata decides nothing."""
    tool = inspect(
        """
        from mitmproxy.connection import Server
        def request(flow):
            flow.server_conn = Server(address=("127.0.0.1", 1))
            flow.metadata["credential"] = "bob"
            flow.metadata["route"] = "bills"
        """
    )
    assert call(tool.listener, "GET", "http://orders.test/").status == 200
    assert [seen.subject for seen in recorder.requests] == ["alice"]


EDITS_ANSWER = """
def response(flow):
    flow.response.status_code = 201
    flow.response.headers["X-Added"] = "yes"
    flow.response.content = b"edited"
"""


def test_an_edited_answer_is_passed_on(inspect: Inspect, recorder: TlsRecorder) -> None:
    """Status, headers and content, framed anew, whatever the upstream's framing; the connection is kept."""
    tool = inspect(EDITS_ANSWER)
    with Caller(tool.listener) as caller:
        for answer in (
            fixed(b"longer than that"),
            chunked([b"a", b"b"], [("X-T", "1")]),
            until_close(b"end"),
        ):
            recorder.answer = answer
            got = caller.get("http://orders.test/")
            assert (got.status, got.body, got.header("X-Added")) == (201, b"edited", "yes")
        recorder.answer = fixed(b"not sent to HEAD")
        got = caller.call("HEAD", "http://orders.test/")
        assert (got.status, got.body) == (201, b"")
        assert caller.get("http://orders.test/").body == b"edited"


@pytest.mark.parametrize(
    "edit",
    [
        "flow.response.status_code = 100",
        "flow.response.status_code = 101",
        "flow.response.status_code = 999",
        'flow.response.headers["X"] = "a\\r\\n\\r\\nHTTP/1.1 200 OK"',
        "flow.response.reason = 'a\\r\\nb: c'",
        "flow.response.content = None",
        "flow.response = None",
    ],
)
def test_an_edited_answer_that_cannot_be_passed_on_is_refused(
    inspect: Inspect, recorder: TlsRecorder, edit: str
) -> None:
    """A clear 502 in its place, and the next call works."""
    tool = inspect(f"def response(flow):\n    if flow.request.path == '/bad':\n        {edit}\n")
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/bad HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        answer = caller.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "internal_error")
    assert call(tool.listener, "GET", "http://orders.test/good").status == 200
    assert "an error of sidecert's own" not in tool.output


def test_trailers_pass_both_ways(inspect: Inspect, recorder: TlsRecorder) -> None:
    """They are shown, and they arrive, edited or not."""
    recorder.answer = chunked([b"answer"], [("X-Back", "2")])
    tool = inspect(
        """
        def request(flow):
            assert flow.request.trailers["X-There"] == "1"
            if flow.request.path == "/edited":
                flow.request.trailers["X-There"] = "3"
        def response(flow):
            assert flow.response.trailers["X-Back"] == "2"
            if flow.request.path == "/edited":
                flow.response.trailers["X-Back"] = "4"
        """
    )
    with Talker(tool.listener) as caller:
        for path, there, back in (("/as-sent", "1", "2"), ("/edited", "3", "4")):
            caller.send(f"POST http://orders.test{path} HTTP/1.1\r\nHost: orders.test\r\n".encode())
            caller.send(b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-There: 1\r\n\r\n")
            answer = caller.read_answer("POST")
            assert (answer.body, answer.trailers) == (b"answer", [("X-Back", back)])
            assert (recorder.requests[-1].body, recorder.requests[-1].trailers) == (
                b"body",
                [("X-There", there)],
            )
    assert "Addon error" not in tool.output


def test_an_addons_exception_leaves_the_call_to_all_checks(inspect: Inspect, recorder: TlsRecorder) -> None:
    """mitmproxy logs it and goes on; the call goes out as the flow then is, under its certificate."""
    tool = inspect(
        """
        def request(flow):
            flow.request.headers["X-Half"] = "done"
            raise RuntimeError("planted")
        """
    )
    assert call(tool.listener, "GET", "http://orders.test/").status == 200
    assert "Addon error: planted" in tool.output
    [seen] = recorder.requests
    assert (seen.subject, seen.header("X-Half")) == ("alice", "done")


# -- answered, killed, held ------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_addon_can_answer(inspect: Inspect, recorder: TlsRecorder, hook: str, method: str) -> None:
    """Nothing goes upstream; the same connection goes on."""
    tool = inspect(
        f"""
        from mitmproxy import http
        def {hook}(flow):
            if flow.request.path == "/mine":
                flow.response = http.Response.make(418, b"from an addon", {{"X-Mine": "1"}})
        """
    )
    with Caller(tool.listener) as caller:
        answer = caller.call(method, "http://orders.test/mine", b"content" if method == "POST" else None)
        assert (answer.status, answer.header("X-Mine")) == (418, "1")
        assert answer.body == (b"" if method == "HEAD" else b"from an addon")
        assert tool.hooks("/mine") == ALL_HOOKS
        assert recorder.connections == 0
        assert caller.get("http://orders.test/other").status == 200
    assert [seen.target for seen in recorder.requests] == ["/other"]


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_a_killed_request_is_cut_and_nothing_is_sent(
    inspect: Inspect, recorder: TlsRecorder, hook: str
) -> None:
    """The caller sees the connection end; the flow says who did it."""
    tool = inspect(f"def {hook}(flow):\n    flow.kill()\n")
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/killed HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        assert caller.closed()
    assert tool.wait_for_note("error", "/killed")["error"] == "Connection killed."
    assert recorder.connections == 0


@pytest.mark.parametrize("hook", ["responseheaders", "response"])
def test_a_killed_answer_is_cut(inspect: Inspect, hook: str) -> None:
    """Not a byte of it reaches the caller."""
    tool = inspect(f"def {hook}(flow):\n    flow.kill()\n")
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/killed HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        assert caller.closed()
    [flow] = tool.stop()
    assert flow.error.msg == "Connection killed."


@pytest.mark.parametrize("end", ["resume", "kill", "leave"])
def test_an_intercepted_request_waits_for_its_user(inspect: Inspect, recorder: TlsRecorder, end: str) -> None:
    """No deadline runs; it goes on when resumed, and ends when killed or when the caller leaves."""
    timeouts = {"response": "100ms", "stall": "100ms", "connect": "100ms"}
    tool = inspect("", "--set", "intercept=~q ~u held", tool="mitmweb", timeouts=timeouts)
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/held HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        [held] = tool.wait_for(lambda: [flow for flow in tool.flows() if flow["intercepted"]])
        caller.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            caller.sock.recv(1)
        caller.sock.settimeout(20)
        assert recorder.connections == 0
        if end == "leave":
            caller.reset()
        else:
            tool.web("POST", f"/flows/{held['id']}/{end}")
        if end == "resume":
            assert caller.read_answer().status == 200
            assert tool.hooks("/held") == ALL_HOOKS
            return
        if end == "kill":
            assert caller.closed()
    note = tool.wait_for_note("error", "/held")
    assert note["error"] == (
        "Connection killed." if end == "kill" else "the caller left before its answer was whole"
    )
    [flow] = tool.flows()
    assert not flow["intercepted"]
    assert recorder.connections == 0


def test_an_intercepted_answer_waits_for_its_user(inspect: Inspect) -> None:
    """And then arrives."""
    timeouts = {"response": "200ms", "stall": "200ms"}
    tool = inspect("", "--set", "intercept=~s ~u held", tool="mitmweb", timeouts=timeouts)
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/held HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        [held] = tool.wait_for(lambda: [flow for flow in tool.flows() if flow["intercepted"]])
        caller.sock.settimeout(0.6)
        with pytest.raises(TimeoutError):
            caller.sock.recv(1)
        caller.sock.settimeout(20)
        tool.web("POST", f"/flows/{held['id']}/resume")
        assert caller.read_answer().status == 200


def test_a_replay_goes_past_no_route(inspect: Inspect, recorder: TlsRecorder, peers: Peers) -> None:
    """mitmproxy's own replay would call in clear, with no certificate: it is stopped before it connects."""
    tool = inspect(tool="mitmweb")
    assert call(tool.listener, "GET", f"http://orders.test:{recorder.port}/again").status == 200
    [flow] = tool.flows()
    tool.web("POST", f"/flows/{flow['id']}/replay")
    [flow] = tool.wait_for(lambda: [each for each in tool.flows() if each.get("error")])
    assert "sidecert is the only one to open connections here" in flow["error"]["msg"]
    assert len(recorder.requests) == 1
    assert call(tool.listener, "GET", "http://orders.test/next").status == 200


# -- bodies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["length", "chunked"])
def test_large_bodies_stream_both_ways(inspect: Inspect, recorder: TlsRecorder, form: str) -> None:
    """3 MB arrive whole both ways; the flow has the heads, and no content."""
    tool = inspect()
    body = bytes(range(256)) * (BIG // 256)
    pieces = [body[at : at + 65536] for at in range(0, BIG, 65536)]
    recorder.answer = stream(BIG, b"s" * 65536) if form == "length" else chunked(pieces)
    with Caller(tool.listener) as caller:
        answer = caller.call("POST", "http://orders.test/big", body if form == "length" else pieces)
        assert len(answer.body) == BIG
        recorder.answer = echo
        assert caller.get("http://orders.test/after").status == 200
    seen = recorder.requests[0]
    assert (seen.length, seen.sha256) == (BIG, hashlib.sha256(body).hexdigest())
    assert tool.wait_for_note("response", "/big")["answer"] == [200, None]
    assert tool.hooks("/big") == ALL_HOOKS
    flow = tool.stop()[0]
    assert flow.request.raw_content is None


def test_a_large_request_can_still_be_edited_and_killed(inspect: Inspect, recorder: TlsRecorder) -> None:
    """Its head, since the hook `request` comes before anything is sent; its content cannot be."""
    tool = inspect(
        """
        def request(flow):
            flow.request.headers["X-Added"] = "yes"
            if flow.request.path == "/killed":
                flow.kill()
            if flow.request.path == "/content":
                flow.request.content = b"short"
        """
    )
    body = b"b" * BIG
    assert call(tool.listener, "POST", "http://orders.test/edited", body).status == 200
    assert (recorder.requests[0].length, recorder.requests[0].header("X-Added")) == (BIG, "yes")
    with Talker(tool.listener) as caller:
        caller.send(b"POST http://orders.test/killed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BIG)
        assert caller.closed()
    with Talker(tool.listener) as caller:
        caller.send(
            b"POST http://orders.test/content HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BIG
        )
        assert caller.read_answer("POST").header("Sidecert-Outcome") == "internal_error"
    assert len(recorder.requests) == 1


def test_a_large_body_waits_for_a_slow_reader(inspect: Inspect, recorder: TlsRecorder) -> None:
    """An answer that the caller does not read is not taken into memory."""
    size = 64 * 1024 * 1024
    sent = 0
    stuck = threading.Event()

    def answer(exchange: Exchange) -> None:
        nonlocal sent
        exchange.read_body()
        exchange.send(head(200, ("Content-Length", str(size))))
        exchange.wire.settimeout(2)
        try:
            while sent < size:
                exchange.send(b"s" * 65536)
                sent += 65536
        except TimeoutError:
            stuck.set()
            exchange.ended = True

    recorder.answer = answer
    tool = inspect()
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        assert stuck.wait(20)
    assert sent < size // 2


def test_an_event_stream_passes_as_it_comes(inspect: Inspect, recorder: TlsRecorder) -> None:
    """Each event arrives before the next is sent; the hook `response` comes with the end."""
    gate = threading.Event()
    pieces = [b"data: 1\n\n", b"data: 2\n\n"]

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(
            head(200, ("Content-Type", "text/event-stream; charset=utf-8"), ("Content-Length", "18"))
        )
        for piece in pieces:
            exchange.send(piece)
            assert gate.wait(20)
            gate.clear()

    recorder.answer = answer
    tool = inspect()
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/events HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        caller.read_head()
        assert caller.read_exactly(9) == pieces[0]
        assert tool.hooks("/events") == ALL_HOOKS[:3]
        gate.set()
        assert caller.read_exactly(9) == pieces[1]
        gate.set()
    tool.wait_for_note("response", "/events")


def test_an_upgrade_becomes_a_tunnel(inspect: Inspect, recorder: TlsRecorder) -> None:
    """After a 101 bytes pass both ways as they come."""

    def answer(exchange: Exchange) -> None:
        exchange.send(head(101, ("Connection", "Upgrade"), ("Upgrade", "echo")))
        for _ in range(2):
            exchange.send(exchange.wire.recv(100).upper())
        exchange.finish()

    recorder.answer = answer
    tool = inspect("def response(flow):\n    flow.response.headers['X-Added'] = 'yes'\n")
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/ws HTTP/1.1\r\nHost: orders.test\r\n")
        caller.send(b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        switched = caller.read_head()
        assert (switched.status, switched.header("X-Added")) == (101, "yes")
        for word in (b"one", b"two"):
            caller.send(word)
            assert caller.read_exactly(3) == word.upper()
        assert caller.closed()
    assert tool.hooks("/ws") == ALL_HOOKS
    [flow] = tool.stop()
    assert flow.error is None


def test_a_body_that_waits_to_be_asked_for_is_asked_for(inspect: Inspect, recorder: TlsRecorder) -> None:
    """One 100 reaches the caller, although the body is held back and the upstream sends a 100 too."""
    tool = inspect()
    with Talker(tool.listener) as caller:
        caller.send(b"POST http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\n")
        caller.send(b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert caller.read_head().status == 100
        caller.send(b"body")
        answer = caller.read_answer("POST")
    assert (answer.status, answer.interim) == (200, [])
    assert recorder.requests[0].body == b"body"


def test_interim_answers_pass(inspect: Inspect, recorder: TlsRecorder) -> None:
    """As they come, unseen by addons."""
    recorder.answer = after_interim(103, ("Link", "</a>"))
    tool = inspect()
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        answer = caller.read_answer()
    assert (answer.status, answer.interim) == (200, [103])


# -- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
def test_a_truncated_answer_is_refused_and_not_asked_for_again(
    inspect: Inspect, recorder: TlsRecorder, reset: bool
) -> None:
    """While it is held back nothing has been answered: a clear 502, also on a reused connection."""
    tool = inspect()
    with Caller(tool.listener) as caller:
        assert caller.get("http://orders.test/warm").status == 200
        recorder.answer = cut_short(reset=reset)
        answer = caller.get("http://orders.test/cut")
        assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_bad_answer")
    assert [seen.target for seen in recorder.requests] == ["/warm", "/cut"]
    assert tool.wait_for_note("error", "/cut")["error"].startswith("upstream_bad_answer: ")


def test_a_malformed_answer_is_refused(inspect: Inspect, recorder: TlsRecorder) -> None:
    """As without anybody looking."""
    recorder.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", finish=True)
    tool = inspect()
    answer = call(tool.listener, "GET", "http://orders.test/bad")
    assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "upstream_bad_answer")
    assert tool.hooks("/bad") == ["requestheaders", "request", "error"]


def test_an_answer_that_stops_is_refused(inspect: Inspect, recorder: TlsRecorder) -> None:
    """The limit between its bytes holds while it is held back."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"never")
    tool = inspect(timeouts={"stall": "300ms"})
    answer = call(tool.listener, "GET", "http://orders.test/stops")
    assert (answer.status, answer.header("Sidecert-Outcome")) == (504, "response_timeout")
    assert tool.wait_for_note("error", "/stops")["answer"] == [200, None]
    gate.set()


def test_a_body_that_stops_is_refused(inspect: Inspect, recorder: TlsRecorder) -> None:
    """A caller that does not go on is told, and nothing has gone upstream."""
    tool = inspect(timeouts={"stall": "300ms"})
    with Talker(tool.listener) as caller:
        caller.send(
            b"POST http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 9\r\n\r\npart"
        )
        answer = caller.read_answer("POST")
    assert answer.header("Sidecert-Outcome") in ("bad_request", "request_timeout")
    assert recorder.connections == 0


def test_a_caller_that_leaves_is_the_flows_error(inspect: Inspect, recorder: TlsRecorder) -> None:
    """And the upstream is let go."""
    arrived = threading.Event()
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        arrived.set()
        exchange.ended = True
        try:
            exchange.wire.recv(1)
        except OSError:
            pass
        left.set()

    recorder.answer = answer
    tool = inspect()
    with Talker(tool.listener) as caller:
        caller.send(b"GET http://orders.test/left HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        assert arrived.wait(20)
        caller.reset()
    note = tool.wait_for_note("error", "/left")
    assert note["error"] == "the caller left before its answer was whole"
    assert left.wait(20)


# -- our own faults ------------------------------------------------------------------------------------

BEFORE = [
    "stage.Stage.show",
    "record.Record.show",
    "exchange.InspectedExchange._collect_request",
    "exchange.InspectedExchange._fire",
    "exchange.InspectedExchange._forward",
    "edits.of_request",
    "edits.request_to_send",
    "flows.request",
    "flows.planned",
    "body.Body.add",
    "body.Body.collect",
]
AFTER = [
    "edits.of_answer",
    "edits.answer_to_send",
    "flows.answer",
    "exchange.InspectedExchange._hold_answer",
    "exchange.InspectedExchange._show_answer",
    "exchange.InspectedExchange._collect_answer",
    "exchange.InspectedExchange._pass_on",
]
NOTES = [
    "flows._server",
    "record.Record.note_connection",
    "record.Record.conclude",
    "stage.Stage.tell",
    "stage.Stage.update",
]


def _planted(name: str) -> str:
    module, _, rest = name.partition(".")
    holder, _, attribute = f"module.{rest}".rpartition(".")
    return f"""
        import sidecert.inspection.{module} as module
        def planted(*arguments, **named):
            raise RuntimeError("planted")
        {holder}.{attribute} = planted
        """


@pytest.mark.parametrize("name", BEFORE)
def test_a_fault_of_ours_before_a_request_is_sent_refuses_it(
    inspect: Inspect, recorder: TlsRecorder, name: str
) -> None:
    """Or cuts it; nothing goes upstream, and nobody hangs."""
    tool = inspect(_planted(name))
    with Talker(tool.listener) as caller:
        caller.send(b"POST http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 1\r\n\r\nb")
        if not caller.closed():
            assert caller.read_answer("POST").header("Sidecert-Outcome") == "internal_error"
    assert recorder.connections == 0
    assert "planted" in tool.output


@pytest.mark.parametrize("name", AFTER)
def test_a_fault_of_ours_before_an_answer_is_passed_on_refuses_it(
    inspect: Inspect, recorder: TlsRecorder, name: str
) -> None:
    """The request is sent once."""
    tool = inspect(_planted(name))
    answer = call(tool.listener, "GET", "http://orders.test/")
    assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "internal_error")
    assert len(recorder.requests) == 1
    assert "planted" in tool.output


@pytest.mark.parametrize("name", NOTES)
def test_a_fault_of_ours_in_taking_notes_stops_no_call(
    inspect: Inspect, recorder: TlsRecorder, name: str
) -> None:
    """It is logged; the call is answered as ever, also where it is refused."""
    tool = inspect(_planted(name))
    with Caller(tool.listener) as caller:
        assert caller.get("http://orders.test/").status == 200
        assert caller.get("http://nobody.test/").status == 403
    assert [seen.subject for seen in recorder.requests] == ["alice"]
    assert "planted" in tool.output


def test_without_an_addon_that_looks_nothing_is_built() -> None:
    """The addons of `sidecert run` leave exchanges as they are; one that looks changes that."""
    plane, chain = SimpleNamespace(make_exchange=None), [Proxyserver(), NextLayer()]
    install(plane, SimpleNamespace(chain=chain))
    assert plane.make_exchange is None
    install(plane, SimpleNamespace(chain=[*chain, SimpleNamespace(error=lambda flow: None)]))
    assert plane.make_exchange is not None
