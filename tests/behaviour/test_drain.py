"""The end: SIGTERM and SIGINT let calls end, take what is queued, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import StartSidecar
from support.certs import Pki
from support.clients import Caller, Talker, connect
from support.recorder import Exchange, TlsRecorder, gated, head, silence
from support.sidecar import END, PROGRAM, Sidecar, route

GET = b"GET http://one.test/ HTTP/1.1\r\nHost: one.test\r\n\r\n"
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])


def _drain(sidecar: Sidecar, number: signal.Signals = signal.SIGTERM) -> None:
    """The signal, and wait until its listeners are closed."""
    sidecar.signal(number)
    sidecar.wait_for(lambda: bool(sidecar.events("stopped")))


@BOTH
def test_a_call_in_flight_ends_before_the_process(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, number: signal.Signals
) -> None:
    """Meanwhile it is not ready and takes no connection; then the exit status is 0."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"last")
    running = sidecar(route("one", recorder, trust=pki.trust))
    with Caller(running.listener) as caller:
        caller.connection.request("GET", "http://one.test/")
        response = caller.connection.getresponse()
        assert response.read(5) == b"first"
        _drain(running, number)
        assert running.ask_admin("GET", "/-/ready").status == 503
        assert running.ask_admin("GET", "/-/healthy").status == 200
        with pytest.raises(ConnectionRefusedError):
            connect(running.listener)
        gate.set()
        assert response.read() == b"last"
    assert running.process.wait(END) == 0


def test_connections_in_the_backlog_are_served(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """The kernel has accepted them for us, so their callers count on an answer."""
    path = tmp_path / "in.sock"
    running = sidecar(
        route("one", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0"}, {"bind": f"unix:{path}"}]
    )
    running.signal(signal.SIGSTOP)
    talkers = [Talker(address) for address in (running.listener, str(path)) for _ in range(20)]
    for talker in talkers:
        talker.send(GET)
    running.signal(signal.SIGTERM)
    running.signal(signal.SIGCONT)
    assert [talker.read_answer().status for talker in talkers] == [200] * 40
    assert all(talker.closed() for talker in talkers)
    for talker in talkers:
        talker.close()
    assert running.process.wait(END) == 0


def test_idle_connections_do_not_hold_the_end_up(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """They are closed, well before the limit of 30 s."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    with Caller(running.listener) as caller:
        assert caller.get("http://one.test/").status == 200
        running.signal(signal.SIGTERM)
        assert running.process.wait(10) == 0


def test_what_does_not_end_in_time_is_cut(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """`drain` is the limit; a body that was cut short never looks whole, and the log says it."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"never")
    running = sidecar(route("one", recorder, trust=pki.trust), drain="300ms")
    with Talker(running.listener) as talker:
        talker.send(GET)
        assert talker.read_head().header("Content-Length") == "10"
        assert talker.read_exactly(5) == b"first"
        running.signal(signal.SIGTERM)
        assert talker.closed()
    assert running.process.wait(10) == 0
    gate.set()
    assert any("1 connection" in record["message"] for record in running.events("drained_late"))


def test_a_tunnel_goes_on_until_the_limit_and_is_cut(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """It has no end of its own that could be waited for; its upstream sees the end as well."""
    ended = threading.Event()

    def echo(exchange: Exchange) -> None:
        exchange.send(head(101, ("Upgrade", "echo"), ("Connection", "Upgrade")))
        try:
            while data := exchange.wire.recv(100):
                exchange.send(data)
        except OSError:
            pass
        exchange.ended = True
        ended.set()

    recorder.answer = echo
    running = sidecar(route("one", recorder, trust=pki.trust), drain="1s")
    with Talker(running.listener) as talker:
        talker.send(GET[:-2] + b"Upgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        assert talker.read_head().status == 101
        _drain(running)
        talker.send(b"still here")
        assert talker.read_exactly(10) == b"still here"
        assert not ended.is_set()
        assert talker.closed()
    assert ended.wait(10)
    assert running.process.wait(10) == 0
    assert any("1 connection" in record["message"] for record in running.events("drained_late"))


@BOTH
def test_a_second_signal_ends_at_once(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path, number: signal.Signals
) -> None:
    """With the status that shells give to that signal, and no traceback."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"never")
    path = tmp_path / "in.sock"
    running = sidecar(
        route("one", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0"}, {"bind": f"unix:{path}"}]
    )
    with Talker(running.listener) as talker:
        talker.send(GET)
        talker.read_until(b"first")
        _drain(running)
        running.signal(number)
        assert running.process.wait(10) == 128 + number
        assert talker.closed()
    gate.set()
    running.stop(expect=128 + number)
    assert len(running.events("ended_at_once")) == 1
    assert not path.exists()


def test_an_idle_sidecar_ends_at_the_first_signal(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Nothing to wait for, nothing to say but that it ended."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    running.stop()
    assert {record["level"] for record in running.records} == {"info"}


def test_who_has_no_answer_yet_is_told_at_the_limit(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Sent or not, waiting for a place in the pool, with half a head: each reads 503, and what was done."""
    recorder.answer = silence
    pool = {"max_connections": 1}
    running = sidecar(
        route("one", recorder, trust=pki.trust, pool=pool, timeouts={"connect": "30s"}), drain="2s"
    )
    with (
        Talker(running.listener) as sent,
        Talker(running.listener) as queued,
        Talker(running.listener) as half,
    ):
        sent.send(GET)
        recorder.wait_for(lambda: len(recorder.requests) == 1)
        queued.send(GET)
        half.send(GET[:-2])
        running.wait_for(lambda: running.metric("sidecert_requests_in_progress", route="one") == 2)
        running.signal(signal.SIGTERM)
        for talker, processed in ((sent, True), (queued, False), (half, False)):
            answer = talker.read_answer()
            assert (answer.status, answer.header("Sidecert-Outcome")) == (503, "draining")
            assert answer.header("Retry-After") == "1"
            assert answer.header("Connection") == "close"
            detail = json.loads(answer.body)["detail"]
            assert ("may have been processed" in detail) is processed
            assert ("No byte of the request was sent" in detail) is not processed
            assert talker.closed()
    assert running.process.wait(10) == 0
    assert len(recorder.requests) == 1


def test_who_waits_for_a_place_is_served_when_one_becomes_free(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Also when that is only during the drain; both answers say that the connection ends."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"last")
    running = sidecar(route("one", recorder, trust=pki.trust, pool={"max_connections": 1}))
    with Talker(running.listener) as first, Talker(running.listener) as queued:
        first.send(GET)
        first.read_until(b"first")
        queued.send(GET)
        running.wait_for(lambda: running.metric("sidecert_requests_in_progress", route="one") == 2)
        _drain(running)
        gate.set()
        first.read_until(b"last")
        answer = queued.read_head()
        assert (answer.status, answer.header("Connection")) == (200, "close")
        gate.set()
        assert queued.read_until(b"last") == b"firstlast"
    assert running.process.wait(END) == 0


def test_all_of_a_pipeline_is_answered(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """What came behind a call that is under way is served too; only the last answer says `close`."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"last")
    running = sidecar(route("one", recorder, trust=pki.trust))
    with Talker(running.listener) as talker:
        talker.send(GET * 3)
        recorder.wait_for(lambda: len(recorder.requests) == 1)
        _drain(running)
        closes = []
        for _ in range(3):
            gate.set()
            answer = talker.read_answer()
            closes.append(answer.header("Connection"))
            assert answer.body == b"firstlast"
        assert closes == [None, None, "close"]
        assert talker.closed()
    assert running.process.wait(END) == 0


def test_a_signal_before_it_is_ready_is_a_clean_end(tmp_path: Path, pki: Pki) -> None:
    """Nobody was served, so nothing failed: a key that cannot be read yet does not hold the end up."""
    key = tmp_path / "key"
    os.mkfifo(key)
    alice = {"certificate": str(pki.credentials["alice"]["certificate"]), "key": str(key)}
    config = {"version": 1, "credentials": {"alice": alice}, "routes": []}
    path = tmp_path / "sidecert.yaml"
    path.write_text(json.dumps(config))
    with subprocess.Popen([PROGRAM, "run", "-c", str(path)], stderr=subprocess.PIPE, text=True) as process:
        try:
            # Nothing is to be read: to open the other end waits until the sidecar reads.
            writer = os.open(key, os.O_WRONLY)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            os.close(writer)
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_reload_that_hangs_does_not_hold_the_end_up(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """A file system that hangs, say: the drain does not wait for it, nor does the process's end."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    key = tmp_path / "key"
    os.mkfifo(key)
    running.rewrite(running.path.read_text().replace(str(pki.credentials["bob"]["key"]), str(key)))
    running.signal(signal.SIGHUP)
    writer = os.open(key, os.O_WRONLY)  # waits until the sidecar reads
    assert running.get("http://one.test/").status == 200
    running.signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    os.close(writer)
