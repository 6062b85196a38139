"""An answer that refuses the client certificate is counted and explained, and goes through as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.certs import Pki, expired
from support.clients import call
from support.front_peers import apache, plain_service
from support.inspecting import inspecting
from support.peers import Peers
from support.recorder import Exchange, TlsVersion, head
from support.sidecar import Sidecar, StartSidecar, config, route

TLS: list[TlsVersion] = ["1.2", "1.3"]
FORBIDDEN = (
    b"<html><head><title>403.16 - Forbidden: Client certificate is ill-formed or is not trusted by the Web "
    b"server.</title></head><body><h2>403.16 - Forbidden: ...</h2></body></html>"
)


def rejections(running: Sidecar, route: str) -> dict[str, float]:
    """Signatures and their counts, those that are not 0."""
    return {
        dict(labels)["signature"]: value
        for (name, labels), value in running.metrics().items()
        if name == "sidecert_http_cert_rejections_total" and value and dict(labels)["route"] == route
    }


def told(running: Sidecar, route: str) -> list[dict[str, Any]]:
    return [record for record in running.events("http_cert_rejection") if record["route"] == route]


@pytest.mark.parametrize("tls", TLS)
def test_nginx_that_refuses_the_certificate_is_counted_and_explained(
    tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """None, one of another CA, an expired one; a good one counts nothing. The handshakes are all `ok`."""
    upstream = peers.nginx(tls=tls)
    late = pki.ca.caller("late", **expired()).write(pki.folder / "late", "late")
    names = {"none": "nginx_400_required", "stranger": "nginx_400", "late": "nginx_400", "alice": None}
    running = sidecar(
        *(route(name, upstream, trust=pki.trust, credential=name) for name in names),
        credentials={**pki.credentials, "late": late.config},
    )
    for name, signature in names.items():
        answer = running.get(f"http://{name}.test/")
        assert answer.header("Sidecert-Outcome") is None
        assert running.outcomes(name) == {"ok": 1}
        if signature is None:
            assert answer.status == 200
            assert rejections(running, name) == {}
            assert told(running, name) == []
            continue
        assert answer.status == 400
        assert "SSL certificate" in answer.text
        assert "</html>" in answer.text
        assert rejections(running, name) == {signature: 1}
        assert running.metric("sidecert_requests_total", route=name, code="4xx", source="upstream") == 1
        (record,) = told(running, name)
        assert (record["signature"], record["status"], record["level"]) == (signature, 400, "warning")
        assert record["credential"] == name
        assert record["upstream"] == upstream.address
        assert record["request_id"]
        assert upstream.address in record["cause"]
        assert record["remedy"]
        assert "the upstream answered 400 (Server: nginx" in record["evidence"][-1]
        asked = "the upstream asked for a client certificate"
        assert any(line.startswith(asked) for line in record["evidence"])
        wrong = {"stranger": "comes from CN=sidecert other root, ", "late": "expired on "}
        first = f"our certificate {wrong[name]}" if name in wrong else "TLSv1"
        assert record["evidence"][0].startswith(first)


def test_only_the_first_of_its_kind_is_a_warning(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """A caller that goes on calling does not flood the warnings; each call has its line and id.

    After a reload it is one again: somebody may have put another certificate there, and wants to know.
    """
    running = sidecar(route("orders", peers.nginx(), trust=pki.trust, credential="stranger"))
    for _ in range(3):
        assert running.get("http://orders.test/").status == 400
    records = told(running, "orders")
    assert [record["level"] for record in records] == ["warning", "info", "info"]
    assert len({record["request_id"] for record in records}) == 3
    assert rejections(running, "orders") == {"nginx_400": 3}
    running.ask_admin("POST", "/-/reload")
    assert running.get("http://orders.test/").status == 400
    assert told(running, "orders")[-1]["level"] == "warning"
    assert rejections(running, "orders") == {"nginx_400": 4}


@pytest.mark.parametrize("tls", TLS)
def test_apache_is_counted_only_where_its_403_names_the_certificate(
    tls: TlsVersion, sidecar: StartSidecar, tmp_path: Path, pki: Pki
) -> None:
    """Per location it asks after the handshake. A bare 403 may be about anything, and counts nothing."""
    location = """
        <Location /optional>
            SSLVerifyClient optional
            Require ssl-verify-client
        </Location>
        <Location /required>
            SSLVerifyClient require
        </Location>
    """
    with (
        plain_service() as behind,
        apache(
            tmp_path / "apache", pki.upstream, pki.trust, behind, tls=tls, verify="off", extra=location
        ) as upstream,
    ):
        names = ("none", "alice")
        running = sidecar(*(route(name, upstream, trust=pki.trust, credential=name) for name in names))
        _check_apache(running, tls)


def _check_apache(running: Sidecar, tls: TlsVersion) -> None:
    bare = running.get("http://none.test/optional")
    assert bare.status == 403
    # A route without a credential does not offer that authentication, and a renegotiation needs no offer.
    named = "Reason: Cannot perform Post-Handshake Authentication." in bare.text
    assert named is (tls == "1.3")
    assert rejections(running, "none") == ({"apache_403": 1} if tls == "1.3" else {})
    assert running.get("http://alice.test/required").status == 200
    assert rejections(running, "alice") == {}


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_answer_in_pieces_is_recognised_and_arrives_byte_for_byte(
    framing: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Cut in the middle of its words, in each framing that an answer can have."""
    pieces = [FORBIDDEN[:20], FORBIDDEN[20:40], FORBIDDEN[40:]]
    fields = {
        "length": ("Content-Length", str(len(FORBIDDEN))),
        "chunked": ("Transfer-Encoding", "chunked"),
        "close": ("Connection", "close"),
    }

    def answer(exchange: Exchange) -> None:
        exchange.send(head(403, ("Content-Type", "text/html"), fields[framing]))
        for piece in pieces:
            exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
        if framing == "chunked":
            exchange.send(b"0\r\n\r\n")
        exchange.finish()

    running = sidecar(route("orders", peers.recorder(answer=answer), trust=pki.trust))
    got = running.get("http://orders.test/")
    assert (got.status, got.body) == (403, FORBIDDEN)
    assert rejections(running, "orders") == {"iis_403_16": 1}
    (record,) = told(running, "orders")
    assert "trusted roots" in record["cause"]


def test_answer_that_merely_mentions_a_certificate_is_not_counted(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Nor is one to HEAD, which has no words, nor one that fails for other reasons."""
    body = b'{"error": "No required SSL certificate was sent along with the form"}'

    def answer(exchange: Exchange) -> None:
        exchange.send(head(400, ("Content-Length", str(len(body)))))
        if exchange.seen.method != "HEAD":
            exchange.send(body)
        exchange.finish()

    running = sidecar(route("orders", peers.recorder(answer=answer), trust=pki.trust))
    assert running.get("http://orders.test/").body == body
    assert running.call("HEAD", "http://orders.test/").status == 400
    assert rejections(running, "orders") == {}
    assert told(running, "orders") == []


def test_answer_that_is_looked_at_as_a_flow_is_recognised_too(peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """Inside mitmdump as without it: counted, in the log, and passed on."""
    whole = config([route("orders", peers.nginx(), trust=pki.trust, credential="stranger")], pki.credentials)
    with inspecting(tmp_path / "tool", whole) as tool:
        answer = call(tool.listener, "GET", "http://orders.test/refused")
        assert answer.status == 400
        assert "The SSL certificate error" in answer.text
        assert tool.hooks("/refused")[-1] == "response"
        tool.wait_for(lambda: "refuses the client certificate" in tool.output)
