"""What single tools do in their own way: uploads of curl, ab's HTTP/1.0 load, Node's keep-alive agent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import upstreams
from support.callers import node, program, run
from support.certs import Pki
from support.clients import curl, url
from support.recorder import TlsRecorder
from support.sidecar import StartSidecar, route
from support.upstreams import KINDS, WHOLE, Scene

BIG = bytes(range(256)) * 8192  # 2 MiB: from 1 MiB on curl asks with Expect


@pytest.fixture(scope="module")
def scene(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Made once, since each call tells itself apart by its query."""
    with upstreams.scene(tmp_path_factory.mktemp("tools"), pki) as made:
        yield made


def counted(body: bytes) -> bytes:
    """What every upstream says of an upload: its length and hash."""
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


# -- curl --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["proxy", "direct", "unix"])
def test_curl_waits_for_a_100_before_a_big_body(way: str, kind: str, scene: Scene) -> None:
    """curl asks with Expect by itself; the 100 is the upstream's, and comes long before curl gives up."""
    line = scene.line(way, kind)
    mark = f"big-{way}"
    got = curl(f"{line.base}/upload?{mark}", "--expect100-timeout", "15", proxy=line.proxy, body=BIG)
    assert (got.status, got.body, got.interim) == (200, counted(BIG), [100]), got.message
    assert got.seconds < 10
    [arrival] = scene.upstreams[kind].wait_for_arrivals(mark, 1)
    assert (arrival.subject, arrival.method) == ("alice", "POST")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_curl_uploads_what_it_reads_from_a_pipe(method: str, kind: str, scene: Scene) -> None:
    """`-T -`: chunked, of a length that curl does not know."""
    line = scene.line("proxy", kind)
    mark = f"pipe-{method}"
    got = curl(f"{line.base}/upload?{mark}", "-X", method, proxy=line.proxy, upload=BIG)
    assert (got.status, got.body, got.exit_code) == (200, counted(BIG), 0), got.message
    [arrival] = scene.upstreams[kind].wait_for_arrivals(mark, 1)
    assert arrival.method == method


def test_curls_offer_of_http_2_is_kept_from_the_upstream(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """`--http2` asks for an upgrade to h2c, which would lead past the routes; the call stays 1.1."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    for body in (None, BIG):
        got = curl("http://orders.test/", "--http2", proxy=running.listener, body=body)
        assert (got.status, got.json()["length"]) == (200, len(body or b"")), got.message
    for seen in recorder.requests:
        named = [seen.header(name) for name in ("Upgrade", "Connection", "HTTP2-Settings")]
        assert (seen.version, named) == ("HTTP/1.1", [None, None, None])


def test_wget_keeps_its_connection_to_the_proxy(scene: Scene) -> None:
    """Three URLs one after another; wget says that it uses its connection again."""
    line = scene.line("proxy", "nginx")
    assert not isinstance(line.proxy, str)
    assert line.proxy is not None
    command = [program("wget", "wget"), "-v", "--no-config", "--no-hsts", "--tries=1", "-O", "/dev/null"]
    targets = [f"{line.base}/{path}?wget-kept" for path in ("small", "chunked", "small")]
    ran = run(*command, *targets, environment={"http_proxy": url(line.proxy)})
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stderr.count(b"Reusing existing connection") == 2, ran.stderr.decode()
    assert len(scene.upstreams["nginx"].wait_for_arrivals("wget-kept", 3)) == 3


def test_curl_is_told_why_it_gets_no_tunnel(scene: Scene) -> None:
    """An https URL with the sidecar as its proxy: CONNECT is refused, with the reason and what to do."""
    got = curl("https://nginx.test/small", proxy=scene.listener)
    assert got.exit_code == 56
    assert "403" in got.message
    assert got.header("Sidecert-Outcome") == "connect_not_allowed"


# -- ab ----------------------------------------------------------------------------------------------------


def ab(*arguments: str) -> dict[str, str]:
    """Runs ab and gives back the lines of its report."""
    ran = run(program("ab", "apache2-utils"), "-q", "-s", "20", *arguments)
    assert ran.returncode == 0, ran.stderr.decode()
    return dict(re.findall(r"^([^:\n]+): +(.*?)(?: \[.*)?$", ran.stdout.decode(), re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["proxy", "direct"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "closed"])
def test_ab_gets_every_answer(keep: bool, way: str, kind: str, scene: Scene) -> None:
    """300 calls of HTTP/1.0 on 10 connections: none fails, -k keeps them, few lead upstream."""
    line = scene.line(way, kind)
    mark = f"ab-{way}-{keep}"
    through = []
    if line.proxy is not None:
        assert not isinstance(line.proxy, str)
        through = ["-X", "{}:{}".format(*line.proxy)]
    report = ab("-n", "300", "-c", "10", *(["-k"] if keep else []), *through, f"{line.base}/small?{mark}")
    assert (report["Complete requests"], report["Failed requests"]) == ("300", "0"), report
    assert "Non-2xx responses" not in report
    assert report.get("Keep-Alive requests") == ("300" if keep else None)
    arrivals = scene.upstreams[kind].wait_for_arrivals(mark, 300)
    assert len(arrivals) == 300
    assert {each.subject for each in arrivals} == {"alice"}
    assert len({each.connection for each in arrivals}) <= 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/chunked", "/until-close"])
def test_ab_gets_answers_of_unknown_length_whole(path: str, kind: str, scene: Scene) -> None:
    """To HTTP/1.0 they end with the connection, also when the caller asked to keep it."""
    line = scene.line("direct", kind)
    report = ab("-n", "50", "-c", "5", "-k", f"{line.base}{path}")
    assert (report["Complete requests"], report["Failed requests"]) == ("50", "0"), report
    assert report["Keep-Alive requests"] == "0"
    assert report["HTML transferred"] == f"{50 * len(WHOLE)} bytes"


@pytest.mark.parametrize("kind", KINDS)
def test_ab_posts_on_kept_connections(kind: str, scene: Scene, tmp_path: Path) -> None:
    """Bodies of 100 kB over connections that ab keeps."""
    form = tmp_path / "form"
    form.write_bytes(BIG[:100_000])
    line = scene.line("direct", kind)
    report = ab("-n", "60", "-c", "6", "-k", "-p", str(form), f"{line.base}/upload?ab-form")
    assert (report["Complete requests"], report["Failed requests"]) == ("60", "0"), report
    assert report["HTML transferred"] == f"{60 * len(counted(BIG[:100_000]))} bytes"


# -- Node --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["proxy", "direct"])
def test_nodes_agent_keeps_its_connection(way: str, kind: str, scene: Scene) -> None:
    """Answers of every framing, uploads with a length and chunked, all over one kept connection."""
    calls = [
        {"method": "GET", "path": "/small"},
        {"method": "POST", "path": "/upload", "body": BIG[:300_000]},
        {"method": "GET", "path": "/chunked"},
        {"method": "PUT", "path": "/upload", "body": BIG, "chunked": True},
        {"method": "HEAD", "path": "/small"},
        {"method": "GET", "path": "/until-close"},
        {"method": "GET", "path": "/missing"},
        {"method": "DELETE", "path": "/empty"},
        {"method": "GET", "path": "/small"},
    ]
    answers = node(scene.line(way, kind), calls)
    assert [each["status"] for each in answers] == [200] * 6 + [404, 204, 200]
    assert [each["reused"] for each in answers] == [False] + [True] * 8
    assert all(each["complete"] for each in answers)
    bodies = [each["body"] for each in answers]
    assert bodies[1:6] == [counted(BIG[:300_000]), WHOLE, counted(BIG), b"", WHOLE]
