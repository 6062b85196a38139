"""`sidecert demo`: it shows the whole way of a call, notices what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecert.cli import children, demo

WAIT = 45.0
PORTS = (8443, 8080, 9090)


def ours(folder: Path) -> list[int]:
    """The processes whose command line names something in `folder`, as those of the demo do."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("there is no /proc to look for processes in")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended
    return found


def nothing_is_left(folder: Path) -> bool:
    return not ours(folder) and not list(folder.iterdir())


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecert", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=WAIT)


def lines_until(process: subprocess.Popen[str], start: str) -> list[str]:
    """What it prints, up to the line that starts so."""
    assert process.stdout is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith(start)):
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


def test_once_shows_every_step_and_ends_with_zero(tmp_path: Path) -> None:
    """Plain text where there is no terminal; nothing is left."""
    with running(tmp_path, "--once") as process:
        said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, said
    assert "CERTIFICATE_REQUIRED" in said
    assert "200, run by user alice, over TLSv1.3" in said
    assert "502 client_cert_unknown_ca: " in said
    assert 'sidecert_handshakes_total{route="alice",credential="alice",outcome="ok"} 1' in said
    assert "\x1b" not in said
    assert nothing_is_left(tmp_path)


def test_taken_ports_are_said_and_free_ones_used(tmp_path: Path) -> None:
    """Whoever has 8080 in use can still see the demo."""
    with ExitStack() as held:
        for port in PORTS:
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen()
            except OSError:
                pass  # somebody else has it, which will do as well
        with running(tmp_path, "--once") as process:
            said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, said
    for port in PORTS:
        assert f"Port {port} is taken" in said
        assert f"127.0.0.1:{port}" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_goes_on_serving_until_a_signal_and_its_curl_lines_work(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Copied and pasted into a shell, comments and all."""
    with running(tmp_path) as process:
        lines = lines_until(process, "Ctrl-C")
        commands = [line.strip() for line in lines if line.startswith("  curl ")]
        answers = [
            subprocess.run(["sh", "-c", command], capture_output=True, timeout=WAIT, check=False).stdout
            for command in commands
        ]
        assert json.loads(answers[0])["user"] == "alice"
        assert b"<wsdl:definitions" in answers[1]
        assert b"[ISS.0084.9001]" in answers[2]
        assert json.loads(answers[3])["user"] == "alice"
        assert b"sidecert_build_info" in answers[4]
        process.send_signal(number)
        said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, said
    assert said == "Ended.\n"
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    """The twin runs by then, the sidecar is being started."""
    with running(tmp_path, "--once") as process:
        lines_until(process, "1.")
        process.send_signal(number)
        process.communicate(timeout=WAIT)
    assert process.returncode == 128 + number
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("command", ["twin", "run"])
def test_a_process_that_ends_by_itself_is_noticed(tmp_path: Path, command: str) -> None:
    """The demo must not pretend to serve."""
    with running(tmp_path) as process:
        lines_until(process, "Ctrl-C")
        [pid] = [
            pid
            for pid in ours(tmp_path)
            if f"\0{command}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert f"Wrong: sidecert {command} ended with status -9" in said
    assert nothing_is_left(tmp_path)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For running the demo in this process, to put something wrong into it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return monkeypatch


def wrong(folder: Path) -> str:
    """What `demo --once` says when it ends with 1."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    result: Result = CliRunner().invoke(demo.demo, ["--once"])
    assert result.exit_code == 1, result.output
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert nothing_is_left(folder)
    return result.output.partition("Wrong: ")[2]


def test_a_sidecar_that_does_not_start_is_told_with_its_own_words(
    tmp_path: Path, inside: pytest.MonkeyPatch
) -> None:
    """The end of its log is what helps."""
    inside.setattr(demo, "_config", lambda *_: "version: 1\nnonsense: true\n")
    said = wrong(tmp_path)
    assert said.startswith("sidecert run ended with status 2")
    assert "nonsense" in said


def test_a_sidecar_that_never_gets_ready_is_not_waited_for_for_ever(
    tmp_path: Path, inside: pytest.MonkeyPatch
) -> None:
    """It has its time, then it is ended."""
    inside.setattr(demo.Show, "_is_ready", lambda _: False)
    inside.setattr(children, "READY_SECONDS", 2.0)
    assert wrong(tmp_path).startswith("sidecert run was not ready after 2 s")


ALICE = {"user": "alice", "tls": {"version": "TLSv1.3"}, "request": {"body": demo.ORDER}}
PROBLEM = {"title": "One two three", "detail": "One two three", "remedy": "One two three"}
UNKNOWN = {"sidecert-outcome": "client_cert_unknown_ca"}


@pytest.mark.parametrize(
    ("user", "answer", "words"),
    [
        ("alice", (200, {}, ALICE | {"user": "bob"}), "the call through the sidecar got 200"),
        ("alice", (502, {}, PROBLEM), "the call through the sidecar got 502"),
        ("alice", (200, {}, ALICE | {"request": {"body": ""}}), "the call through the sidecar got 200"),
        ("alice", (200, {}, []), "JSON was expected"),
        ("mallory", (200, {}, ALICE), "the call as mallory got 200"),
        ("mallory", (502, {"sidecert-outcome": "tls_error"}, PROBLEM), "outcome tls_error"),
        ("mallory", (502, UNKNOWN, PROBLEM | {"detail": "c"}), "explains nothing"),
        ("mallory", (502, UNKNOWN, {}), "explains nothing"),
    ],
)
def test_a_wrong_answer_is_no_success(
    tmp_path: Path, inside: pytest.MonkeyPatch, user: str, answer: tuple[int, dict[str, str], Any], words: str
) -> None:
    """Each check bites."""
    real = demo.Show._through

    def through(show: demo.Show, who: str) -> Any:
        status, headers, document = answer
        return (status, headers, json.dumps(document).encode()) if who == user else real(show, who)

    inside.setattr(demo.Show, "_through", through)
    assert words in wrong(tmp_path)


def test_a_handshake_that_was_not_counted_is_no_success(tmp_path: Path, inside: pytest.MonkeyPatch) -> None:
    """Here because the call was never made."""
    real = demo.Show._through
    inside.setattr(
        demo.Show,
        "_through",
        lambda show, who: (200, {}, json.dumps(ALICE).encode()) if who == "alice" else real(show, who),
    )
    assert "no handshake of the route alice was counted as ok" in wrong(tmp_path)


def test_a_service_that_lets_anybody_in_is_no_success(tmp_path: Path, inside: pytest.MonkeyPatch) -> None:
    """Then the call without the sidecar shows nothing."""
    inside.setattr(demo, "_call", lambda *_: (200, {}, b"{}"))
    inside.setattr(demo.Show, "_is_ready", lambda _: True)
    assert "the call without a certificate was answered, with status 200" in wrong(tmp_path)
