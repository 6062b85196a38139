"""Raw callers before real servers: half-closed, pipelined, of every method, or malformed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from sidecert.config.values import METHODS
from support import upstreams
from support.certs import Pki
from support.clients import Address, Talker, talking
from support.malformed import BAD_CHUNKS, REFUSED_HEADS, head_bytes
from support.peers import Peers
from support.sidecar import StartSidecar, route
from support.upstreams import KINDS, WHOLE, Scene, Upstream

MIB = 1 << 20


@pytest.fixture(scope="module")
def scene(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Made once, since each call tells itself apart by its query."""
    with upstreams.scene(tmp_path_factory.mktemp("wire"), pki) as made:
        yield made


def request(kind: str, path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", f"Host: {kind}.test", *fields, "", ""]
    return "\r\n".join(lines).encode()


def counted(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


# -- half-closed callers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_half_closed_caller_is_answered_whole(version: str, kind: str, scene: Scene) -> None:
    """As `printf ... | nc -N` does: the end of sending follows the request at once."""
    body = b"b" * 300_000
    upload = request(kind, "/upload", f"Content-Length: {len(body)}", method="POST", version=version) + body
    for data, content in (
        (request(kind, "/chunked", version=version), WHOLE),
        (request(kind, "/until-close", version=version), WHOLE),
        (upload, counted(body)),
    ):
        with talking(scene.listener, data) as talker:
            talker.shutdown_write()
            answer = talker.read_answer()
            assert (answer.status, answer.body) == (200, content)
            assert talker.closed()


# -- pipelining --------------------------------------------------------------------------------------------

Asked = tuple[bytes, str, int, bytes | None]  # request, method, status, body (None: the small page)


def mixed(kind: str, number: int) -> Asked:
    """The one of ten kinds of request that comes at that place."""
    body = b"%d" % number * 3000
    length = f"Content-Length: {len(body)}"
    chunks = b"5\r\nhello\r\n%x;a=b\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(body), body)
    query = f"?pipe-{number}"
    return [
        (request(kind, f"/small{query}"), "GET", 200, None),
        (request(kind, f"/upload{query}", length, method="POST") + body, "POST", 200, counted(body)),
        (request(kind, f"/chunked{query}"), "GET", 200, WHOLE),
        (request(kind, f"/small{query}", method="HEAD"), "HEAD", 200, b""),
        (
            request(kind, f"/upload{query}", "Transfer-Encoding: chunked", method="PUT") + chunks,
            "PUT",
            200,
            counted(b"hello" + body),
        ),
        (request(kind, f"/missing{query}"), "GET", 404, b"nothing here"),
        (request(kind, f"/until-close{query}"), "GET", 200, WHOLE),
        (request(kind, f"/empty{query}", method="DELETE"), "DELETE", 204, b""),
        (b"\r\n" + request(kind, f"/upload{query}", "Content-Length: 0", method="PATCH"), "PATCH", 200, None),
        (request(kind, f"http://{kind}.test/small{query}"), "GET", 200, None),
    ][number % 10]


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [list(KINDS)], ids=[*KINDS, "all"])
def test_fifty_requests_in_one_write_are_answered_in_order(kinds: list[str], scene: Scene) -> None:
    """Of ten kinds, to one upstream, and to three by turns; each answer is its own request's."""
    asked = [mixed(kinds[number % len(kinds)], number) for number in range(50)]
    with Talker(scene.listener) as talker:
        talker.send(b"".join(data for data, _, _, _ in asked))
        for number, (_, method, status, content) in enumerate(asked):
            answer = talker.read_answer(method)
            assert answer.status == status, number
            if content is not None:
                assert answer.body == content, number
            elif method == "PATCH":
                assert answer.body == counted(b""), number
            else:
                assert b"alice GET" in answer.body, number
        talker.shutdown_write()
        assert talker.closed()


# -- kept connections --------------------------------------------------------------------------------------


def kept_small(listener: Address, kind: str, mark: str, count: int) -> None:
    """That many calls on one connection, none of which is told to end it."""
    with Talker(listener) as talker:
        for _ in range(count):
            talker.send(request(kind, f"/small?{mark}"))
            answer = talker.read_answer()
            assert (answer.status, answer.header("Connection")) == (200, None)


def connections(upstream: Upstream, mark: str, count: int) -> list[int]:
    return [each.connection for each in upstream.wait_for_arrivals(mark, count)]


@pytest.mark.parametrize(
    ("kind", "extra", "each_takes"),
    [("nginx", "keepalive_requests 3;", 3), ("haproxy", "option httpclose", 1)],
    ids=["nginx", "haproxy"],
)
def test_servers_connection_close_is_kept_from_the_caller(
    kind: str, extra: str, each_takes: int, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """nginx ends its connections after 3 calls, haproxy after each: the caller's goes on."""
    upstream = upstreams.start(kind, peers, extra=extra)
    running = sidecar(route(kind, upstream, trust=pki.trust))
    kept_small(running.listener, kind, "kept", 12)
    used = connections(upstream, "kept", 12)
    assert len(used) == 12
    assert [used.count(each) for each in dict.fromkeys(used)] == [each_takes] * (12 // each_takes)
    assert running.outcomes(kind) == {"ok": 12 / each_takes}


@pytest.mark.parametrize("kind", KINDS)
def test_callers_connection_close_is_kept_from_the_server(
    kind: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Callers that end their connections, of either version, share one to the upstream."""
    upstream = upstreams.start(kind, peers)
    running = sidecar(route(kind, upstream, trust=pki.trust))
    for data in (
        request(kind, "/small?close", "Connection: close"),
        request(kind, "/small?close", version="1.0"),
        request(kind, "/small?close", "Connection: close", version="1.0"),
        request(kind, "/small?close", "Connection: X-Own, close", "X-Own: 1"),
    ):
        with talking(running.listener, data) as talker:
            assert talker.read_answer().status == 200
            assert talker.closed()
    assert len(set(connections(upstream, "close", 4))) == 1


# -- methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["haproxy", "python"])
def test_every_known_method_goes_through(kind: str, scene: Scene) -> None:
    """All that the parser knows, CONNECT aside, without a body and with one, on one connection."""
    methods = sorted(METHODS)
    assert {"GET", "PROPFIND", "MKCOL", "REPORT", "PURGE", "M-SEARCH", "TRACE", "QUERY"} <= METHODS
    with Talker(scene.listener) as talker:
        for method in methods:
            for body in (b"", b"<body/>"):
                fields = [f"Content-Length: {len(body)}"] if body else []
                talker.send(request(kind, f"/upload?method-{method}-", *fields, method=method) + body)
                answer = talker.read_answer(method)
                assert answer.status == 200, method
                if method != "HEAD":
                    assert answer.body == counted(body), method
    for method in methods:
        arrivals = scene.upstreams[kind].wait_for_arrivals(f"?method-{method}-", 2)
        assert [(each.subject, each.method) for each in arrivals] == [("alice", method)] * 2


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_connect_is_refused(version: str, scene: Scene) -> None:
    """With a reason, and an end; what comes behind it is no request."""
    before = scene.sidecar.metric("sidecert_denied_requests_total", reason="connect_not_allowed") or 0
    data = f"CONNECT nginx.test:443 HTTP/{version}\r\nHost: nginx.test:443\r\n\r\n".encode()
    with talking(scene.listener, data + request("nginx", "/small?tunnelled")) as talker:
        answer = talker.read_answer()
        assert (answer.status, answer.header("Sidecert-Outcome")) == (403, "connect_not_allowed")
        talker.shutdown_write()
        assert talker.closed()
    after = scene.sidecar.metric("sidecert_denied_requests_total", reason="connect_not_allowed")
    assert after == before + 1
    assert not [each for each in scene.upstreams["nginx"].arrivals() if "tunnelled" in each.target]


# -- malformed and ambiguous -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_nothing_of_a_refused_request_reaches_a_server(
    kind: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Each is answered though its caller goes on sending for 1 MiB, then the end; the server logs nothing."""
    upstream = upstreams.start(kind, peers)
    running = sidecar(route("example", upstream, trust=pki.trust, host="example.com"))
    host = "Host: example.com"
    smuggled = head_bytes("GET /small?smuggled HTTP/1.1", host)
    more = smuggled * (MIB // len(smuggled))
    cases = [
        (head_bytes(first, *(host if line == "X" else line for line in lines)), status)
        for first, lines, status, _ in REFUSED_HEADS
    ]
    post = head_bytes("POST /small?chunks HTTP/1.1", host, "Transfer-Encoding: chunked")
    cases += [(post + chunk, 400) for chunk in BAD_CHUNKS]
    for data, status in cases:
        with Talker(running.listener) as talker:
            talker.send(data)
            talker.send(more)
            answer = talker.read_answer()
            assert (answer.status, answer.header("Connection")) == (status, "close"), data[:200]
            assert answer.header("Sidecert-Outcome"), data[:200]
            talker.shutdown_write()
            assert talker.closed(), data[:200]
    with talking(running.listener, head_bytes("GET /small?good HTTP/1.1", host)) as talker:
        assert talker.read_answer().status == 200
    upstream.wait_for_arrivals("good", 1)
    assert [each.target for each in upstream.arrivals()] == ["/small?good"]
    assert running.outcomes("example") == {"ok": 1}
