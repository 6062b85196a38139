"""`sidecert run`: what it opens, what it says, and what it does when it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import StartSidecar
from support.certs import Pki
from support.clients import call
from support.peers import Peers
from support.recorder import TlsRecorder
from support.sidecar import PROGRAM, Sidecar, StartFailed, config, route


def _listening(pid: int) -> set[tuple[str, int]]:
    """The TCP addresses that a process listens on, as the kernel tells."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                host, _, port = fields[1].partition(":")
                found.add((".".join(str(byte) for byte in reversed(bytes.fromhex(host[:8]))), int(port, 16)))
    return found


def test_a_call_goes_out_under_the_routes_certificate(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The main job, through the real process."""
    running = sidecar(route("orders", recorder, trust=pki.trust))
    assert running.get("http://orders.test/a?b=c").status == 200
    (seen,) = recorder.requests
    assert (seen.subject, seen.target) == ("alice", "/a?b=c")


def test_ready_is_said_last(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """Who waits for it can call at once, and ask the admin endpoint."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust),
        listeners=[{"bind": "127.0.0.1:0"}, {"bind": "127.0.0.2:0", "route": "orders"}],
    )
    events = [record["event"] for record in running.records if "event" in record]
    assert sorted(events[:3]) == ["listening"] * 3
    assert events[3] == "ready"
    assert running.ask_admin("GET", "/-/ready").status == 200


def test_nothing_listens_that_the_config_does_not_name(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """mitmproxy's own default is *:8080."""
    running = sidecar(route("orders", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0"}])
    assert _listening(running.process.pid) == {running.listener, running.admin}


def test_a_unix_socket_serves(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path) -> None:
    """For its owner and group only; the file goes with the process."""
    path = tmp_path / "in.sock"
    running = sidecar(route("orders", recorder, trust=pki.trust), listeners=[{"bind": f"unix:{path}"}])
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert call(str(path), "GET", "http://orders.test/").status == 200
    running.stop()
    assert not path.exists()


def test_a_pinned_listener_needs_no_host(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """Its own address as the URL's host is enough."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0", "route": "orders"}]
    )
    assert running.get("/a").status == 200
    assert recorder.requests[0].target == "/a"


def test_every_address_that_cannot_be_had_is_named(pki: Pki, peers: Peers, sidecar: StartSidecar) -> None:
    """Listeners and admin, all at once, with status 2 and nothing left open."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        taken, admin = (f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second))
        with pytest.raises(StartFailed) as failed:
            sidecar(
                route("orders", peers.closed_port(), trust=pki.trust),
                listeners=[
                    {"bind": taken},
                    {"bind": "127.0.0.1:0"},
                    {"bind": "192.0.2.1:80", "allow": "any"},
                ],
                admin={"bind": admin},
            )
    assert failed.value.status == 2
    for words in (f"{taken} is in use", f"{admin} is in use", "no address 192.0.2.1"):
        assert failed.value.stderr.count(words) == 1, words
    assert "Traceback" not in failed.value.stderr
    assert '"ready"' not in failed.value.stderr


def test_calls_are_logged_only_where_asked_for(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """One line for each, never with a query."""
    for arguments, lines in (((), 0), (("--access-log",), 1)):
        running = sidecar(route("orders", recorder, trust=pki.trust), arguments=arguments)
        assert running.get("http://orders.test/a?token=s3cret").status == 200
        running.stop()
        access = [record for record in running.records if record.get("logger") == "sidecert.access"]
        assert len(access) == lines
        assert "s3cret" not in running.stderr


def test_the_log_level_is_heeded(tmp_path: Path, recorder: TlsRecorder, pki: Pki) -> None:
    """At `warning` a good start says nothing at all."""
    path = tmp_path / "in.sock"
    text = config(
        [route("orders", recorder, trust=pki.trust)], pki.credentials, listeners=[{"bind": f"unix:{path}"}]
    )
    running = Sidecar(tmp_path / "quiet", text, "--log-level", "warning")
    try:
        running.wait_for(path.exists)
        assert call(str(path), "GET", "http://orders.test/").status == 200
        running.stop()
        assert running.stderr == ""
    finally:
        running.kill()


def test_a_log_that_nobody_reads_any_more_does_not_stop_it(
    tmp_path: Path, recorder: TlsRecorder, pki: Pki, sidecar: StartSidecar
) -> None:
    """`sidecert run 2>&1 | head -3`, and the head has gone."""
    path = tmp_path / "in.sock"
    first = sidecar(route("orders", recorder, trust=pki.trust), listeners=[{"bind": f"unix:{path}"}])
    first.stop()
    with subprocess.Popen([PROGRAM, "run", "-c", str(first.path)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b'"ready"' not in process.stderr.readline():
            pass
        process.stderr.close()
        try:
            process.send_signal(signal.SIGHUP)  # it reloads, and would say so
            assert call(str(path), "GET", "http://orders.test/").status == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_it_serves_with_no_stderr_at_all(tmp_path: Path, recorder: TlsRecorder, pki: Pki) -> None:
    """Some supervisors close it. Its number must not fall to a connection, for others write to it."""
    path, file = tmp_path / "in.sock", tmp_path / "sidecert.yaml"
    text = config(
        [route("orders", recorder, trust=pki.trust)], pki.credentials, listeners=[{"bind": f"unix:{path}"}]
    )
    file.write_text(json.dumps(text))
    with subprocess.Popen(["sh", "-c", f"exec {PROGRAM} run -c {file} 2>&-"]) as process:
        try:
            deadline = time.monotonic() + 20
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert call(str(path), "GET", "http://orders.test/").status == 200
            assert os.readlink(f"/proc/{process.pid}/fd/2") == "/dev/null"
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_every_line_of_the_log_is_json(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """No library's warning and no print gets between."""
    running = sidecar(route("orders", recorder, trust=pki.trust), arguments=("--log-level", "debug"))
    assert running.get("http://orders.test/").status == 200
    running.stop()
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in running.records)


def test_a_fault_of_our_own_at_the_start_ends_it(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """mitmproxy would log it and go on with nothing open; the traceback is a field of a JSON line."""
    stopped = sidecar(route("orders", recorder, trust=pki.trust))
    stopped.stop()
    code = (
        "import sidecert.addon as addon\n"
        "def fail(*_): raise RuntimeError('ours')\n"
        "addon.Admin.start = fail\n"
        "from sidecert.cli import main\n"
        f"main(['run', '-c', {str(stopped.path)!r}])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert ran.returncode == 1
    records = [json.loads(line) for line in ran.stderr.splitlines()]
    assert any("RuntimeError: ours" in record.get("traceback", "") for record in records)
