"""Each way in which an attempt ends has one outcome: in answer, metric and log, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.certs import Pki, expired
from support.clients import Answer, Caller, Talker
from support.fates import Fate, fates
from support.peers import Peers
from support.recorder import TlsRecorder, TlsVersion
from support.sidecar import NO_CIRCUIT, Addressed, Sidecar, StartSidecar, route
from support.truth import IN_TIME

TLS: list[TlsVersion] = ["1.2", "1.3"]
SHORT = {"connect": "300ms", "handshake": "300ms", "response": "2s"}


def check_outcome(
    running: Sidecar, answer: Answer, outcome: str, *, credential: str = "alice", route: str = "orders"
) -> Any:
    """That outcome is in header, body, metric and log, each exactly once; gives back the body's fields."""
    status = 504 if outcome.endswith("_timeout") else 502
    assert (answer.status, answer.header("Sidecert-Outcome")) == (status, outcome)
    fields = answer.json()
    assert answer.header("Content-Type") == "application/problem+json"
    assert (fields["outcome"], fields["status"]) == (outcome, status)
    assert (fields["route"], fields["credential"]) == (route, credential)
    assert fields["detail"]
    assert fields["remedy"]
    assert fields["evidence"]
    assert running.outcomes(route) == {outcome: 1}
    named = running.metric("sidecert_handshakes_total", route=route, credential=credential, outcome=outcome)
    assert named == 1
    assert running.metric("sidecert_requests_total", route=route, code="5xx", source="sidecert") == 1
    assert running.metric("sidecert_requests_in_progress", route=route) == 0
    assert running.metric("sidecert_upstream_connections", route=route, state="active") == 0
    told = [
        record
        for record in running.records
        if (record.get("outcome"), record.get("route")) == (outcome, route)
    ]
    assert len(told) == 1
    assert told[0]["request_id"] == fields["request_id"]
    return fields


def test_a_good_call_is_ok(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """An accepted certificate: `ok`, once per connection and not per call, and no header of ours."""
    for tls in TLS:
        upstream = peers.recorder(tls=tls)
        running = sidecar(route("orders", upstream, trust=pki.trust))
        for _ in range(3):
            answer = running.get("http://orders.test/")
            assert answer.status == 200
            assert answer.header("Sidecert-Outcome") is None
        assert running.outcomes("orders") == {"ok": 1}
        assert running.metric("sidecert_client_cert_requests_total", route="orders", requested="yes") == 1
        assert running.metric("sidecert_requests_total", route="orders", code="2xx", source="upstream") == 3


REFUSED = {
    "none": "client_cert_required",
    "stranger": "client_cert_unknown_ca",
    "late": "client_cert_expired",
}


@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("peer", ["recorder", "haproxy", "openssl"])
def test_refused_certificate_is_told_at_once(
    peer: str, tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """No certificate, one of another CA, an expired one: the alert's outcome within a second of it."""
    upstream = getattr(peers, peer)(tls=tls)
    late = pki.ca.caller("late", **expired()).write(pki.folder / "late", "late")
    running = sidecar(
        *(route(name, upstream, trust=pki.trust, credential=name) for name in REFUSED),
        credentials={**pki.credentials, "late": late.config},
    )
    for count, (name, outcome) in enumerate(REFUSED.items(), start=1):
        began = time.monotonic()
        answer = running.get(f"http://{name}.test/")
        now = time.monotonic()
        if isinstance(upstream, TlsRecorder):
            upstream.wait_for(lambda want=count: len(upstream.failed_at) >= want)
            began = upstream.failed_at[-1]  # the others do not tell when they refused
        assert now - began < IN_TIME
        fields = check_outcome(running, answer, outcome, credential=name, route=name)
        assert "alert" in " ".join(fields["evidence"])
    if isinstance(upstream, TlsRecorder):
        assert upstream.requests == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_upstream_that_refuses_the_certificate_never_sees_a_byte_of_the_request(
    method: str, sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """TLS 1.3: the request waits for the verdict, and what waits is not sent, however big it is."""
    upstream = peers.recorder(tls="1.3")
    running = sidecar(route("orders", upstream, trust=pki.trust, credential="stranger"))
    body = b"p" * 300_000 if method == "POST" else None
    answer = running.call(method, "http://orders.test/", body)
    check_outcome(running, answer, "client_cert_unknown_ca", credential="stranger")
    upstream.wait_for(lambda: bool(upstream.failures))
    assert upstream.handshakes == 0
    assert upstream.requests == []


def other_ca(peers: Peers, pki: Pki) -> Addressed:
    return peers.recorder(files=pki.other_ca.peer().write(pki.folder / "other", "other"))


def expired_peer(peers: Peers, pki: Pki) -> Addressed:
    return peers.recorder(files=pki.ca.peer(**expired()).write(pki.folder / "expired", "expired"))


def misnamed(peers: Peers, pki: Pki) -> Addressed:
    return peers.recorder(files=pki.ca.peer("elsewhere.test").write(pki.folder / "elsewhere", "elsewhere"))


FAILING: dict[str, tuple[Callable[[Peers, Pki], Addressed], str]] = {
    "untrusted": (other_ca, "server_untrusted"),
    "expired": (expired_peer, "server_expired"),
    "misnamed": (misnamed, "server_name_mismatch"),
    "closed-port": (lambda peers, _: peers.closed_port(), "connect_refused"),
    "black-hole": (lambda peers, _: peers.black_hole(), "connect_timeout"),
    "silent": (lambda peers, _: peers.silent(), "handshake_timeout"),
    "plain-http": (lambda peers, _: peers.plain_http(), "not_tls"),
    "ssh": (lambda peers, _: peers.banner(), "not_tls"),
    "closes-at-accept": (lambda peers, _: peers.closes_at_accept(), "closed_in_handshake"),
    "closes-after-hello": (lambda peers, _: peers.closes_after_hello(), "closed_in_handshake"),
}


SILENT = ("black-hole", "silent")
EVIDENCE = {
    "untrusted": ("the upstream's certificate: CN=localhost, issued by CN=sidecert other root, from ",),
    "expired": ("the upstream's certificate: CN=localhost, issued by CN=sidecert test root, from ",),
    "misnamed": (", for elsewhere.test",),
    "closed-port": ("error: Connection refused",),
}


def test_upstream_that_cannot_be_used_has_one_outcome(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Wrong certificates, no listener, no answer, not TLS, closed: one outcome each, and nothing was sent."""
    upstreams = {name: make(peers, pki) for name, (make, _) in FAILING.items()}
    running = sidecar(
        *(
            # the others must not be told of a busy machine
            route(name, peer, trust=pki.trust, **({"timeouts": SHORT} if name in SILENT else {}))
            for name, peer in upstreams.items()
        )
    )
    for name, (_, outcome) in FAILING.items():
        fields = check_outcome(running, running.get(f"http://{name}.test/"), outcome, route=name)
        for words in EVIDENCE.get(name, ()):
            assert any(words in line for line in fields["evidence"]), fields["evidence"]
        upstream = upstreams[name]
        if isinstance(upstream, TlsRecorder):
            assert upstream.requests == []


def test_upstream_that_resets_at_once_has_one_outcome(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """The RST may come before we have seen that the connection stood, or after: each time the same."""
    running = sidecar(route("orders", peers.resets_at_accept(), trust=pki.trust, circuit=NO_CIRCUIT))
    answers = [running.get("http://orders.test/") for _ in range(30)]
    assert {answer.header("Sidecert-Outcome") for answer in answers} == {"closed_in_handshake"}
    assert running.outcomes("orders") == {"closed_in_handshake": 30}


def test_name_that_does_not_resolve_is_dns_failed(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """An upstream host that nobody knows."""
    spec = route("orders", peers.closed_port(), trust=pki.trust, timeouts=SHORT)
    spec["upstream"]["host"] = "no-such-host.invalid"
    running = sidecar(spec)
    check_outcome(running, running.get("http://orders.test/"), "dns_failed")


def test_versions_that_do_not_meet_are_a_protocol_mismatch(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """A route that insists on TLS 1.3 and an upstream that has only 1.2."""
    upstream = peers.recorder(tls="1.2")
    running = sidecar(route("orders", upstream, trust=pki.trust, tls={"min": "1.3", "max": "1.3"}))
    check_outcome(running, running.get("http://orders.test/"), "protocol_mismatch")


def test_caller_that_leaves_before_the_verdict_leaves_it_undecided(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """The attempt is counted all the same, once."""
    running = sidecar(route("orders", peers.silent(), trust=pki.trust))

    def active() -> float | None:
        return running.metric("sidecert_upstream_connections", route="orders", state="active")

    with Talker(running.listener) as talker:
        talker.send(b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        running.wait_for(lambda: active() == 1)
        talker.reset()
    running.wait_for(lambda: active() == 0, 3)
    assert running.outcomes("orders") == {"undecided": 1}
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_refusal_is_given_again_to_each_call(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Nothing of a refused attempt is kept: each call on the same connection has an attempt of its own."""
    running = sidecar(route("orders", peers.recorder(), trust=pki.trust, credential="stranger"))
    with Caller(running.listener) as caller:
        for _ in range(3):
            assert caller.get("http://orders.test/").header("Sidecert-Outcome") == "client_cert_unknown_ca"
    assert running.outcomes("orders") == {"client_cert_unknown_ca": 3}


@pytest.mark.parametrize("tickets", [False, "with the answer"])
def test_upstream_that_waits_for_a_request_is_waited_for_once(
    tickets: Any, sidecar: StartSidecar, pki: Pki
) -> None:
    """No tickets, or late ones: the answer makes it `ok`, and the next connection is held much shorter."""
    with fates(pki.upstream, pki.trust) as peers:
        upstream = peers.listen(Fate(tls="1.3", tickets=tickets))
        running = sidecar(route("orders", upstream, trust=pki.trust))
        first, second, third = (running.get("http://orders.test/") for _ in range(3))
        assert upstream.connections == 3
    assert {first.status, second.status, third.status} == {200}
    assert first.seconds >= 1.0
    assert max(second.seconds, third.seconds) < 1.0
    assert running.outcomes("orders") == {"ok": 3}


def test_answer_is_plain_text_for_those_who_want_it(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """Accept: text/plain gives the same facts as lines."""
    running = sidecar(route("orders", peers.closed_port(), trust=pki.trust))
    answer = running.get("http://orders.test/", {"Accept": "text/plain"})
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert "outcome: connect_refused" in answer.text


def test_no_secret_is_told_with_a_failure(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Neither the passphrase nor a line of the key nor the request's body is in the answer or the log."""
    leaf = pki.other_ca.caller("secretive")
    files = leaf.write(tmp_path / "secretive", passphrase="open sesame")
    (tmp_path / "pass").write_text("open sesame")
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust, credential="secretive"),
        credentials={"secretive": {**files.config, "passphrase": {"file": str(tmp_path / "pass")}}},
    )
    answer = running.call("POST", "http://orders.test/?token=12345", b"the body's secret")
    check_outcome(running, answer, "client_cert_unknown_ca", credential="secretive")
    key = files.key.read_text().splitlines()[2]
    for text in (answer.text, running.stderr):
        for secret in ("open sesame", "12345", "the body's secret", key):
            assert secret not in text


def test_refusal_tells_what_is_wrong_with_our_certificate(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """haproxy lists its CA: an expired certificate, and a leaf whose intermediate is not in the file."""
    folder = pki.folder / "faulty"
    short = pki.ca.intermediate("middle").caller("short").write(folder, "short", chain=False)
    late = pki.ca.caller("late", **expired()).write(folder, "late")
    upstream = peers.haproxy()
    running = sidecar(
        *(route(name, upstream, trust=pki.trust, credential=name) for name in ("short", "late")),
        credentials={"short": short.config, "late": late.config},
    )
    answer = running.get("http://short.test/")
    fields = check_outcome(running, answer, "client_cert_unknown_ca", credential="short", route="short")
    assert fields["evidence"][0].startswith("our certificate comes from CN=middle, which is neither in its ")
    assert fields["remedy"].startswith("Append the certificate of its issuer CN=middle to the file of ")
    answer = running.get("http://late.test/")
    fields = check_outcome(running, answer, "client_cert_expired", credential="late", route="late")
    assert fields["evidence"][0].startswith("our certificate expired on ")
    assert "it expired on " in fields["detail"]
