"""Programs and libraries that legacy tools are made of, all called in one way: `CALLERS[name](line, ...)`.

A `Line` says how the sidecar is reached: as an HTTP proxy, in the upstream's place, or by a unix socket.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from support.clients import TIMEOUT, Address, call, curl, url
from support.upstreams import Line

_NODE_SCRIPT = Path(__file__).with_name("node_caller.js")
# So that no proxy variable and no settings of the machine's take part.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/nonexistent"}


@dataclass(frozen=True)
class Got:
    """What a caller had of its call. `exit_code` is 0 where the program is content, or is none."""

    status: int
    body: bytes
    exit_code: int = 0
    note: str = ""


Call = Callable[[Line, str, str, bytes | None], Got]  # line, method, path, body


def program(name: str, package: str) -> str:
    """The path of a program, or the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return path


def run(*command: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> Any:
    """Runs a program to its end, which must come in time; output and errors are bytes."""
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT + 10,
        check=False,
        env={**_ENVIRONMENT, **(environment or {})},
    )


def by_curl(*arguments: str) -> Call:
    """curl with `arguments`, following redirects."""

    def call_it(line: Line, method: str, path: str, body: bytes | None) -> Got:
        how = ["-I"] if method == "HEAD" else [] if method in ("GET", "POST") else ["-X", method]
        got = curl(line.base + path, "-L", *how, *arguments, proxy=line.proxy, body=body)
        return Got(got.status, got.body, got.exit_code, got.message)

    return call_it


def wget(line: Line, method: str, path: str, body: bytes | None) -> Got:
    """wget, which follows redirects by itself."""
    assert not isinstance(line.proxy, str)
    with tempfile.TemporaryDirectory() as folder:
        page, form = Path(folder, "page"), Path(folder, "form")
        command = ["-nv", "-S", "--no-config", "--no-hsts", "--tries=1", f"--timeout={TIMEOUT:g}"]
        command += ["--content-on-error", "-O", str(page)]
        if line.proxy is None:
            command += ["--no-proxy"]
        if method == "HEAD":
            command += ["--spider"]
        elif body is not None:
            form.write_bytes(body)
            command += [f"--post-file={form}"]
        proxy = {} if line.proxy is None else {"http_proxy": url(line.proxy, "/")}
        ran = run(program("wget", "wget"), *command, line.base + path, environment=proxy)
        statuses = re.findall(rb"^ *HTTP/1\.[01] (\d{3})", ran.stderr, re.MULTILINE)
        return Got(
            int(statuses[-1]) if statuses else 0,
            page.read_bytes() if page.exists() else b"",
            ran.returncode,
            ran.stderr.decode(errors="replace"),
        )


def http_client(line: Line, method: str, path: str, body: bytes | None) -> Got:
    """Python's http.client; redirects by hand, as those do who use it."""
    at = line.base + path
    for _ in range(5):
        address = line.proxy or _address(line.base)
        answer = call(address, method, at if line.proxy else at.removeprefix(line.base), body)
        location = answer.header("Location")
        if location is None:
            return Got(answer.status, answer.body)
        at = urljoin(at, location)
    raise AssertionError(f"redirected without end, to {at} at last")


def urllib_opener(line: Line, method: str, path: str, body: bytes | None) -> Got:
    """Python's urllib, which follows redirects by itself and sends `Connection: close`."""
    assert not isinstance(line.proxy, str)
    proxies = {} if line.proxy is None else {"http": url(line.proxy, "")}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    request = urllib.request.Request(line.base + path, data=body, method=method)
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            return Got(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Got(error.code, error.read())


def node(line: Line, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs node_caller.js: `calls` one after another by one keep-alive agent; bodies are bytes."""
    assert not isinstance(line.proxy, str)
    plan = {
        "base": line.base,
        "proxy": None if line.proxy is None else url(line.proxy),
        "calls": [_without_bytes(each) for each in calls],
    }
    ran = run(program("node", "nodejs"), str(_NODE_SCRIPT), stdin=json.dumps(plan).encode())
    assert ran.returncode == 0, ran.stderr.decode()
    answers: list[dict[str, Any]] = json.loads(ran.stdout)
    return [{**answer, "body": base64.b64decode(answer["body"])} for answer in answers]


def by_node(*, chunked: bool) -> Call:
    """Node's http; a body goes with its length or chunked."""

    def call_it(line: Line, method: str, path: str, body: bytes | None) -> Got:
        [got] = node(
            line, [{"method": method, "path": path, "body": body, "chunked": chunked, "follow": True}]
        )
        assert got["complete"]
        return Got(got["status"], got["body"])

    return call_it


def _without_bytes(call: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in call.items() if key != "body"}
    body = call.get("body")
    return kept if body is None else {**kept, "body": base64.b64encode(body).decode()}


def _address(base: str) -> Address:
    host, _, port = base.removeprefix("http://").rpartition(":")
    return host, int(port)
