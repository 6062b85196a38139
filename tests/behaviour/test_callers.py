"""Real callers get what real upstreams answer, whatever the framing on either side."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest

from support import upstreams
from support.callers import Call, by_curl, by_node, http_client, urllib_opener, wget
from support.certs import Pki
from support.upstreams import KINDS, WHOLE, Scene

UPLOAD = bytes(range(256)) * 1172  # 300 kB
MISSING_PAGE = 8  # wget's exit code for any answer that is an error

# Of each shape: method, path, status, and what the body must hold (for the small page: the method).
SHAPES: dict[str, tuple[str, str, int, bytes]] = {
    "small": ("GET", "/small", 200, b"GET"),
    "upload": ("POST", "/upload", 200, f"{len(UPLOAD)} {hashlib.sha256(UPLOAD).hexdigest()}".encode()),
    "head": ("HEAD", "/small", 200, b""),
    "missing": ("GET", "/missing", 404, b"nothing here"),
    "empty": ("GET", "/empty", 204, b""),
    "chunked": ("GET", "/chunked", 200, WHOLE),
    "until-close": ("GET", "/until-close", 200, WHOLE),
    "redirect": ("GET", "/redirect", 200, b"GET"),
}

CALLERS: dict[str, tuple[str, Call]] = {
    "curl-1.0-proxy": ("proxy", by_curl("--http1.0")),
    "curl-1.1-proxy": ("proxy", by_curl("--http1.1")),
    "curl-1.0-direct": ("direct", by_curl("--http1.0")),
    "curl-1.1-direct": ("direct", by_curl("--http1.1")),
    "curl-unix-socket": ("unix", by_curl()),
    "wget-proxy": ("proxy", wget),
    "wget-direct": ("direct", wget),
    "http.client-proxy": ("proxy", http_client),
    "http.client-direct": ("direct", http_client),
    "urllib-proxy": ("proxy", urllib_opener),
    "node-proxy": ("proxy", by_node(chunked=True)),
    "node-direct": ("direct", by_node(chunked=False)),
}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def scene(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Made once, since each call tells itself apart by its query."""
    with upstreams.scene(tmp_path_factory.mktemp("callers"), pki) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLERS)
def test_caller_and_upstream_see_the_same_call(name: str, kind: str, scene: Scene) -> None:
    """Status and body at the caller; identity, method, target and Host at the upstream, for each shape."""
    way, call = CALLERS[name]
    upstream = scene.upstreams[kind]
    for shape, (method, path, status, content) in SHAPES.items():
        mark = f"n={next(_numbers)}&of={shape}"
        got = call(scene.line(way, kind), method, f"{path}?{mark}", UPLOAD if method == "POST" else None)
        assert got.status == status, f"{shape}: {got}"
        content_with = MISSING_PAGE if call is wget and status == 404 else 0
        assert got.exit_code == content_with, f"{shape}: {got.note}"
        if path in ("/small", "/redirect") and method != "HEAD":
            assert b"alice GET" in got.body, f"{shape}: {got}"
        else:
            assert got.body == content, shape
        paths = [path, "/small"] if shape == "redirect" else [path]
        arrivals = upstream.wait_for_arrivals(mark, len(paths))
        assert [(each.subject, each.method, each.target, each.host) for each in arrivals] == [
            ("alice", method, f"{each}?{mark}", upstream.address) for each in paths
        ], shape
