"""An upstream that takes no connection is left alone for a while: calls hear at once, and why."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from support.certs import Pki
from support.clients import Answer, Caller, Talker
from support.lengths import rounds
from support.peers import Peers, closed_port
from support.recorder import Exchange, TlsRecorder, fixed, head
from support.sidecar import Sidecar, StartSidecar, route, sidecert

URL = "http://orders.test/"
AT_ONCE = 1.0
"""Seconds, far more than an answer of our own takes, far less than what is waited for otherwise."""


def is_open(running: Sidecar, name: str = "orders") -> bool:
    return running.metric("sidecert_circuit_open", route=name) == 1


def outcome(answer: Answer) -> str | None:
    return answer.header("Sidecert-Outcome")


def at_once(running: Sidecar, count: int) -> list[tuple[Answer, float]]:
    """The answers to so many calls at the same time, and the seconds that each took; first come first."""
    got: list[tuple[Answer, float]] = []

    def one() -> None:
        began = time.monotonic()
        answer = running.get(URL)
        got.append((answer, time.monotonic() - began))

    with ThreadPoolExecutor(count) as callers:
        for each in [callers.submit(one) for _ in range(count)]:
            each.result()
    return got


def test_answer_tells_what_the_last_attempt_said(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """After five refusals: 503 at once with the words of the fifth, and no sixth handshake."""
    running = sidecar(route("orders", recorder, trust=pki.trust, credential="stranger"))
    assert running.metric("sidecert_circuit_open", route="orders") == 0
    told = [running.get(URL) for _ in range(5)]
    assert [(each.status, outcome(each)) for each in told] == [(502, "client_cert_unknown_ca")] * 5
    began = time.monotonic()
    answers = [running.call("POST", URL, b"body") for _ in range(20)]
    assert time.monotonic() - began < AT_ONCE
    assert {(each.status, outcome(each)) for each in answers} == {(503, "circuit_open")}
    assert all(1 <= int(each.header("Retry-After") or 0) <= 10 for each in answers)
    before, words = told[-1].json(), answers[0].json()
    assert words["type"] == "urn:sidecert:outcome:circuit_open"
    assert (words["route"], words["upstream"], words["credential"]) == (
        "orders",
        recorder.address,
        "stranger",
    )
    assert "the last 5 attempts" in words["detail"]
    assert "No byte of the request was sent" in words["detail"]
    cause = before["detail"].removesuffix(" No byte of the request was sent.")
    assert f"client_cert_unknown_ca: {cause}" in words["detail"]
    assert set(before["evidence"]) < set(words["evidence"])
    assert before["remedy"] in words["remedy"]
    assert (recorder.connections, recorder.requests) == (5, [])
    assert running.outcomes("orders") == {"client_cert_unknown_ca": 5}
    assert running.metric("sidecert_denied_requests_total", reason="circuit_open") == 20
    assert is_open(running)
    page = running.ask_admin("GET", "/").text
    assert "circuit open" in page
    assert "client_cert_unknown_ca" in page
    (opened,) = running.events("circuit_opened")
    assert (opened["route"], opened["outcome"], opened["failures"], opened["pause"]) == (
        "orders",
        "client_cert_unknown_ca",
        5,
        10,
    )


def test_many_calls_to_an_open_circuit_are_no_flood_of_lines(sidecar: StartSidecar, pki: Pki) -> None:
    """Of 600 calls each is answered and counted, and is in the access log; of the words there is one line a
    second, with the number of those left out. Another route's are told as before."""
    with closed_port() as nobody:
        circuit = {"failures": 1, "pause": "60s"}
        running = sidecar(
            route("orders", nobody, trust=pki.trust, circuit=circuit),
            route("other", nobody, trust=pki.trust, circuit=circuit),
            arguments=["--access-log"],
        )
        began = time.monotonic()
        with Caller(running.listener) as caller:
            assert outcome(caller.call("GET", URL)) == "connect_refused"
            for _ in range(600):
                assert outcome(caller.call("GET", URL)) == "circuit_open"
            for said in ("connect_refused", "circuit_open"):
                assert outcome(caller.call("GET", "http://other.test/")) == said
            time.sleep(1.1)  # more than the second without a line
            assert outcome(caller.call("GET", URL)) == "circuit_open"
        seconds = time.monotonic() - began
    lines = [line for line in running.events("refused") if line["outcome"] == "circuit_open"]
    assert [line["route"] for line in lines].count("other") == 1
    told = [line for line in lines if line["route"] == "orders"]
    assert 2 <= len(told) <= seconds + 1
    assert len(told) + sum(line.get("left_out", 0) for line in told) == 601
    assert len([line for line in running.records if line["logger"] == "sidecert.access"]) == 604
    assert running.metric("sidecert_denied_requests_total", reason="circuit_open") == 602
    assert len(running.events("circuit_opened")) == 2


def test_after_the_pause_one_call_tries_and_the_others_are_answered(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Twenty calls, one handshake: nineteen hear at once that one is trying."""
    running = sidecar(
        route(
            "orders",
            peers.silent(),
            trust=pki.trust,
            timeouts={"handshake": "700ms"},
            circuit={"failures": 1, "pause": "2s"},
        )
    )
    assert outcome(running.get(URL)) == "handshake_timeout"
    assert outcome(running.get(URL)) == "circuit_open"
    time.sleep(2.05)  # the pause
    got = at_once(running, 20)
    assert Counter(outcome(answer) for answer, _ in got) == {"circuit_open": 19, "handshake_timeout": 1}
    assert outcome(got[-1][0]) == "handshake_timeout"
    assert max(seconds for answer, seconds in got[:-1]) < 0.65
    assert "another call is trying just now" in got[0][0].json()["evidence"]
    assert got[0][0].header("Retry-After") == "1"
    assert running.outcomes("orders") == {"handshake_timeout": 2}
    assert len(running.events("circuit_opened")) == 1
    assert running.events("circuit_closed") == []


def test_upstream_that_is_back_is_called_again(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The first call after the pause goes through, and closes the circuit for all."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust, circuit={"failures": 2, "pause": "2s"}),
    )
    recorder.shut = True
    assert [running.get(URL).status for _ in range(3)] == [502, 502, 503]
    recorder.shut = False
    answer = running.get(URL)
    assert outcome(answer) == "circuit_open"
    assert recorder.connections == 2
    running.wait_for(lambda: running.get(URL).status == 200)
    assert not is_open(running)
    assert {answer.status for answer, _ in at_once(running, 20)} == {200}
    assert len(running.events("circuit_opened")) == len(running.events("circuit_closed")) == 1
    assert set(running.outcomes("orders")) == {"ok", "closed_in_handshake"}


def test_connection_that_stands_is_used_while_it_is_open(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Calls that find an idle connection go through; those that would need a new one hear at once."""
    release = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.read_body()
        if exchange.seen.target == "/held":
            assert release.wait(20)
        exchange.send(head(200, ("Content-Length", "2")) + b"ok")

    upstream = peers.recorder(answer=answer)
    running = sidecar(
        route("orders", upstream, trust=pki.trust, circuit={"failures": 1, "pause": "60s"}),
    )
    with Talker(running.listener) as held:
        held.send(b"GET /held HTTP/1.1\r\nHost: orders.test\r\n\r\n")
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        upstream.shut = True
        assert [outcome(running.get(URL)) for _ in range(2)] == ["closed_in_handshake", "circuit_open"]
        release.set()
        assert held.read_answer().status == 200
    assert [running.get(URL).status for _ in range(10)] == [200] * 10
    assert is_open(running)
    assert {seen.connection for seen in upstream.requests} == {1}


def test_calls_in_line_are_answered_when_it_opens(sidecar: StartSidecar, peers: Peers, pki: Pki) -> None:
    """One place and ten calls: when its attempt fails, nine do not wait for the `connect` limit."""
    running = sidecar(
        route(
            "orders",
            peers.silent(),
            trust=pki.trust,
            timeouts={"connect": "20s", "handshake": "500ms"},
            pool={"max_connections": 1, "max_idle": 1},
            circuit={"failures": 1, "pause": "60s"},
        )
    )
    got = at_once(running, 10)
    assert Counter(outcome(answer) for answer, _ in got) == {"handshake_timeout": 1, "circuit_open": 9}
    assert max(seconds for _, seconds in got) < 5
    assert running.metric("sidecert_requests_in_progress", route="orders") == 0


def test_call_that_tries_and_leaves_does_not_keep_it_open(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """Its caller goes in the middle of the handshake: the next call tries, without another pause."""
    running = sidecar(
        route(
            "orders",
            peers.silent(),
            trust=pki.trust,
            timeouts={"handshake": "1s"},
            circuit={"failures": 1, "pause": "100ms"},
        )
    )
    assert outcome(running.get(URL)) == "handshake_timeout"
    time.sleep(0.15)  # the pause
    for number in range(1, 4):
        with Talker(running.listener) as leaving:
            leaving.send(b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n")
            running.wait_for(lambda: is_trying(running), 0.8)
            assert outcome(running.get(URL)) == "circuit_open"
            leaving.reset()
            running.wait_for(lambda: not is_trying(running), 0.8)
        assert running.outcomes("orders") == {"handshake_timeout": 1, "undecided": number}
    assert outcome(running.get(URL)) == "handshake_timeout"


def is_trying(running: Sidecar) -> bool:
    return running.metric("sidecert_upstream_connections", route="orders", state="active") == 1


@pytest.mark.parametrize("changed", [False, True])
def test_reload_begins_anew_only_where_it_changes_the_route(
    changed: bool, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A better certificate is tried at once; a route that stays keeps its circuit. The doctor asks none."""
    circuit = {"failures": 2, "pause": "60s"}
    bad = route("orders", recorder, trust=pki.trust, credential="stranger", circuit=circuit)
    good = route("orders", recorder, trust=pki.trust, circuit=circuit)
    other = route("other", recorder, trust=pki.trust)
    running = sidecar(bad)
    assert [running.get(URL).status for _ in range(3)] == [502, 502, 503]
    whole = yaml.safe_load(running.path.read_text())
    running.rewrite({**whole, "routes": [good if changed else bad, other]})
    assert running.ask_admin("POST", "/-/reload").status == 200
    assert is_open(running) is not changed
    if not changed:  # the doctor looks all the same
        before = recorder.connections
        looked = sidecert("doctor", "orders", "-c", str(running.path), "--json")
        assert (looked.returncode, recorder.connections > before) == (1, True)
        assert "client_cert_unknown_ca" in looked.stdout
    before = recorder.connections
    assert running.get(URL).status == (200 if changed else 503)
    assert running.get("http://other.test/").status == 200
    assert recorder.connections == before + (2 if changed else 1)


@pytest.mark.long_form(seconds=600)
def test_nothing_is_sent_twice_across_a_circuit_that_opens_and_closes(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """An upstream goes and comes back under load: no POST arrives twice, and each with a 200 once."""
    upstream = peers.recorder(answer=fixed())
    running = sidecar(
        route("orders", upstream, trust=pki.trust, circuit={"failures": 2, "pause": "20ms"}),
    )
    stop = threading.Event()
    fates: list[tuple[str, int, str | None]] = []

    def call(number: int) -> None:
        with Caller(running.listener) as caller:
            turn = 0
            while not stop.is_set():
                turn += 1
                name = f"/{number}-{turn}"
                answer = caller.call("POST", f"http://orders.test{name}", b"once")
                fates.append((name, answer.status, outcome(answer)))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for each in callers:
        each.start()
    try:
        for _ in range(rounds(8, 300)):
            upstream.shut = True
            upstream.drop_connections()
            running.wait_for(lambda: is_open(running))
            upstream.shut = False
            running.wait_for(lambda: not is_open(running))
    finally:
        stop.set()
        for each in callers:
            each.join(20)
    arrived = Counter(seen.target for seen in upstream.requests)
    assert set(arrived.values()) == {1}
    for name, status, said in fates:
        assert arrived[name] == 1 or status != 200, name
        assert arrived[name] == 0 or said != "circuit_open", name
    counted = Counter(said or "answered" for _, _, said in fates)
    print(f"{len(fates)} calls, {len(arrived)} arrived, each once: {dict(counted)}")
    assert counted["circuit_open"]
    assert counted["answered"]
