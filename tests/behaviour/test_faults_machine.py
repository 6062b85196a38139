"""A machine that runs out of something, or changes under a running sidecar."""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecert.downstream import LOOK_EVERY
from sidecert.openfiles import SPARE
from support.certs import Pki
from support.clients import Caller, Talker
from support.masses import Mass, open_files
from support.peers import Peers
from support.recorder import gated, silence
from support.sidecar import Sidecar, StartSidecar, route

GET = b"GET / HTTP/1.1\r\nHost: orders.test\r\n\r\n"
MARGIN = 40  # descriptors: fewer than those that are kept from callers
DENIED = "sidecert_denied_requests_total"
CONNECTED = "sidecert_downstream_connections"
STARVED = 2.0  # seconds without a descriptor


def _cpu(running: Sidecar) -> float:
    """Seconds of CPU that the process has used."""
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _limit_descriptors(running: Sidecar, count: int) -> None:
    _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (count, hard))


def test_without_descriptors_calls_go_on_and_callers_are_told(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """While descriptors are short: who is served goes on, 30 others get 503, nothing spins and the log is no
    flood. With none left at all a call that needs a connection gets an answer. Then all are served again."""
    gate = threading.Event()
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust),
        route("other", peers.recorder(), trust=pki.trust, circuit={"failures": 0}),
        route("slow", peers.recorder(answer=gated(gate, b"begun", b"ended")), trust=pki.trust),
    )
    with ExitStack() as stack:
        kept = stack.enter_context(Caller(running.listener))
        assert kept.call("GET", "http://orders.test/").status == 200
        slow = stack.enter_context(Talker(running.listener))
        slow.send(GET.replace(b"orders", b"slow"))
        slow.read_until(b"begun")

        _limit_descriptors(running, running.descriptors() + MARGIN)
        for _ in range(LOOK_EVERY):  # until somebody looks how many are left
            running.get("http://orders.test/")
        others = [stack.enter_context(Talker(running.listener)) for _ in range(30)]
        for talker in others:
            talker.send(GET)
        for talker in others:
            answer = talker.read_answer()
            assert (answer.status, answer.json()["outcome"]) == (503, "overloaded")
            assert answer.header("Retry-After") == "1"
            talker.close()
        assert kept.call("GET", "http://orders.test/").status == 200

        _limit_descriptors(running, running.descriptors())
        records = len(running.records)
        waiting = [stack.enter_context(Talker(running.listener)) for _ in range(40)]
        used, began = _cpu(running), time.monotonic()
        while time.monotonic() - began < STARVED:
            assert kept.call("GET", "http://orders.test/").status == 200
            time.sleep(0.05)
        starved = _cpu(running) - used
        refused = kept.call("GET", "http://other.test/")
        assert (refused.status, refused.json()["outcome"]) == (502, "connect_failed")
        assert "LimitNOFILE" in refused.json()["remedy"]
        assert starved < 0.5 * STARVED
        assert len(running.records) - records < 10

        _limit_descriptors(running, 1000)
        gate.set()
        assert slow.read_exactly(5) == b"ended"
        for talker in waiting:
            talker.close()
        for _ in range(10):
            assert running.get("http://orders.test/").status == 200
        assert kept.call("GET", "http://other.test/").status == 200


def test_refused_callers_leave_descriptors_for_the_rest(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """300 callers come where there is room for some 36, ask and stay. Those are served; each of the rest is
    told 503. Who is given time to read that takes one of half of the spare descriptors: a call can still
    open its connection. When they have gone, callers are served again."""
    callers, room = 300, 36
    running = sidecar(
        route("orders", peers.recorder(), trust=pki.trust, pool={"max_connections": 8}),
        route("other", peers.recorder(), trust=pki.trust),
        limits={"keepalive": "30s"},
    )
    with open_files(callers), Caller(running.listener) as kept:
        assert kept.call("GET", "http://orders.test/").status == 200
        _limit_descriptors(running, running.descriptors() + room + SPARE)
        with Mass(running.listener, callers) as mass:
            mass.send(GET)
            assert kept.call("GET", "http://other.test/").status == 200, "a connection of its own"
            mass.watch(lambda: all(one.size or one.end != "open" for one in mass.all))
            served = [one for one in mass.all if one.status == 200]
            assert all(one.end == "open" for one in served)
            assert room - 10 <= len(served) <= room + 10, "some numbers below are free, or taken meanwhile"
            told = [one for one in mass.all if one.status == 503]
            assert len(told) + len(served) == callers
            assert running.metric(DENIED, reason="overloaded") == len(told)
            mass.watch(lambda: all(one.end != "open" for one in told))
            running.wait_for(lambda: running.metric(CONNECTED, listener="127.0.0.1:0") == len(served) + 1)
            assert kept.call("GET", "http://orders.test/").status == 200
        running.wait_for(lambda: running.metric(CONNECTED, listener="127.0.0.1:0") == 1)
        for _ in range(3):
            assert running.get("http://orders.test/").status == 200


def test_lack_of_descriptors_is_held_against_no_upstream(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """With none left 12 calls to routes that are fine fail, by address and by name. No circuit has opened:
    once there are some again, the first call to each goes through."""
    recorder = peers.recorder()
    by_name = route("named", recorder, trust=pki.trust, circuit={"failures": 1, "pause": "60s"})
    by_name["upstream"]["host"] = "localhost"
    running = sidecar(
        route("orders", recorder, trust=pki.trust, circuit={"failures": 1, "pause": "60s"}), by_name
    )
    with Caller(running.listener) as kept:
        assert kept.call("GET", "http://none.test/").status == 403
        _limit_descriptors(running, running.descriptors())
        for name in ("orders", "named") * 6:
            answer = kept.call("GET", f"http://{name}.test/")
            assert (answer.status, answer.json()["outcome"]) == (502, "connect_failed")
            assert "LimitNOFILE" in answer.json()["remedy"]
        _limit_descriptors(running, 1000)
        for name in ("orders", "named"):
            assert kept.call("GET", f"http://{name}.test/").status == 200
    assert running.events("circuit_opened") == []


def _clock(folder: Path, offset: str) -> None:
    """What libfaketime reads anew at each look at the clock."""
    (folder / "clock").write_text(f"{offset}\n")


def test_steps_of_the_clock_fail_no_call(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock steps by half a minute and by a day, forward and back, 8 times under load: each call is
    answered, over the connections that there are, and a time limit is as long as ever."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
    _clock(tmp_path, "+0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / "clock"))
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    recorder = peers.recorder()
    running = sidecar(
        route("orders", recorder, trust=pki.trust),
        route("silent", peers.recorder(answer=silence), trust=pki.trust, timeouts={"response": "500ms"}),
    )
    monkeypatch.undo()
    done = threading.Event()
    statuses: list[int] = []

    def load() -> None:
        with Caller(running.listener) as caller:
            while not done.is_set():
                statuses.append(caller.call("GET", "http://orders.test/").status)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for offset in ("+30", "-30", "+0", "+1d", "+0", "-30m", "+2d", "+0"):
            _clock(tmp_path, offset)
            reached = len(statuses) + 50
            running.wait_for(lambda reached=reached: len(statuses) >= reached or not thread.is_alive())
            began = time.monotonic()
            assert running.get("http://silent.test/").status == 504
            assert 0.4 < time.monotonic() - began < 3
    finally:
        done.set()
        thread.join()
    assert set(statuses) == {200}
    assert len(statuses) >= 400
    assert recorder.connections <= 2
    assert any(
        not record["time"].startswith(time.strftime("%Y-%m-%d", time.gmtime())) for record in running.records
    )
