"""What the twin answers to a request of a given user."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from sidecert.twin.http import Answer, Request
from sidecert.twin.service import Caller, answer

REST = "/integration/rest/external/integration/run/development/demo/orders"
SOAP = "/integration/soap/external/integration/run/development/demo/orders"
ALICE = Caller("alice", "alice", "ab" * 32, "TLSv1.3")
CAROL = Caller(None, "<carol>", "cd" * 32, "TLSv1.3")


def ask(
    path: str, method: str = "GET", caller: Caller = ALICE, query: str = "", body: bytes = b"", **headers: str
) -> Answer:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return answer(Request(method, path, query, named, body), caller, 8443)


def document(result: Answer) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.body)
    return value


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_an_integration_runs_as_the_user_and_echoes_the_request(method: str) -> None:
    """Enough of an echo to see what a proxy between did to the request."""
    result = ask(
        REST,
        method,
        query="a=%2F&b",
        body="h\u00e9".encode(),
        host="x",
        content_type="text/plain",
        cookie="secret",
    )
    told = document(result)
    assert result.status == 200
    assert (told["user"], told["stage"], told["project"], told["integration"]) == (
        "alice",
        "development",
        "demo",
        "orders",
    )
    assert told["request"] == {
        "method": method,
        "path": REST,
        "query": "a=%2F&b",
        "headers": {"host": "x", "content-type": "text/plain"},
        "body_bytes": 3,
        "body_sha256": hashlib.sha256("h\u00e9".encode()).hexdigest(),
        "body": "h\u00e9",
    }


def test_a_body_that_is_no_text_comes_back_as_base64() -> None:
    """JSON can't hold it otherwise."""
    echo = document(ask(REST, "POST", body=b"\xff\x00"))["request"]
    assert base64.b64decode(echo["body_base64"]) == b"\xff\x00"
    assert "body" not in echo


def test_an_unmapped_certificate_gets_integration_servers_401() -> None:
    """The reason and the words by which it can be recognised."""
    result = ask(REST, caller=CAROL)
    assert (result.status, result.reason) == (401, "[ISS.0084.9001] Invalid credentials")
    assert ("WWW-Authenticate", 'Basic realm="webMethods"') in result.headers
    message = document(result)["integration"]["message"]
    assert message["code"] == -1
    assert "Access Denied" in message["description"]


def test_an_unmapped_certificate_gets_no_wsdl() -> None:
    """It is as private as the integration."""
    assert ask(SOAP, query="wsdl", caller=CAROL).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        REST + "/",
        REST + "/more",
        REST.removesuffix("/orders"),
        "/integration/rest/external/integration/run/../demo/orders",
        "/integration/rest/external/integration/run/%2e%2e/demo/orders",
        "/integration/rest/external/integration/run//demo/orders",
        "/Integration/rest/external/integration/run/development/demo/orders",
        "*",
    ],
)
def test_unknown_paths_get_the_services_404(path: str) -> None:
    """In the envelope that its messages come in."""
    result = ask(path)
    assert result.status == 404
    assert path in document(result)["integration"]["message"]["description"]


def test_an_encoded_segment_is_decoded_once() -> None:
    """As a service does it."""
    told = document(ask("/integration/rest/external/integration/run/development/demo/%6Frders"))
    assert told["integration"] == "orders"


@pytest.mark.parametrize(("path", "method"), [(REST, "TRACE"), (SOAP, "PUT"), (SOAP, "GET"), ("/", "POST")])
def test_a_method_that_does_nothing_here_gets_405_and_those_that_do(path: str, method: str) -> None:
    """RFC 9110 15.5.6: with Allow."""
    result = ask(path, method)
    assert result.status == 405
    allowed = dict(result.headers)["Allow"]
    assert method not in allowed.split(", ")
    assert ("GET" if path in (REST, "/") else "POST") in allowed


def test_the_page_tells_who_one_is_and_escapes_it() -> None:
    """A certificate can hold any name."""
    assert b"alice (user alice)" in ask("/").body
    page = ask("/", caller=CAROL)
    assert page.status == 200
    assert b"&lt;carol&gt;" in page.body
    assert b"mapped to nobody" in page.body


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("mydomain.example:8443", "https://mydomain.example:8443"),
        ("mydomain.example", "https://mydomain.example:8443"),
        ("[::1]:9443", "https://[::1]:9443"),
        ("[::1]", "https://[::1]:8443"),
        ('x"><y', "https://localhost:8443"),
    ],
)
def test_a_wsdl_names_the_address_that_was_called(host: str, address: str) -> None:
    """With the port, always; and never anything but a host."""
    wsdl = ask(SOAP, query="WSDL", host=host).body.decode()
    assert wsdl.count(f'location="{address}{SOAP}"') == 2
