"""It needs nothing: any user, no capability, nowhere to write; and its keys stay in its memory.

Each with the real process and a real call. What needs root to be arranged is skipped for others.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from conftest import StartSidecar
from support.certs import Pki
from support.clients import Talker, call
from support.inspecting import inspecting
from support.recorder import TlsRecorder, gated
from support.sidecar import END, PROGRAM, Sidecar, config, route

NOBODY = 54321  # a user without an entry anywhere
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange it")


class Confined(Sidecar):
    """`sidecert run` behind a command that takes something away from it; its log comes on our own file."""

    def __init__(
        self,
        folder: Path,
        whole: Mapping[str, object],
        *before: str,
        home: str | None = None,
        **options: object,
    ) -> None:
        folder.mkdir(mode=0o755)
        self.path = folder / "sidecert.yaml"
        self.rewrite(whole)
        self._log = folder.parent / f"{folder.name}.log"
        self._begin_log()
        environment = {"PATH": os.environ["PATH"], **({} if home is None else {"HOME": home})}
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*before, PROGRAM, "run", "-c", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment,
                **{"cwd": "/", **options},  # type: ignore[call-overload]
            )


@pytest.fixture
def open_folder(tmp_path: Path, pki: Pki) -> Iterator[Path]:
    """A folder that every user reaches, with alice's files owned by NOBODY."""
    folder = Path("/var/tmp") / f"sidecert-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        for name, file in pki.credentials["alice"].items():
            shutil.copy(file, folder / name)
            os.chown(folder / name, NOBODY, NOBODY)
        shutil.copy(pki.trust, folder / "trust")
        (folder / "trust").chmod(0o644)
        yield folder
    finally:
        shutil.rmtree(folder)


def _confined(folder: Path, peer: TlsRecorder, *before: str, **options: object) -> Confined:
    alice = {name: str(folder / name) for name in ("certificate", "key")}
    whole = config([route("one", peer, trust=folder / "trust")], {"alice": alice}, drain="2s")
    return Confined(folder / "run", whole, *before, **options)  # type: ignore[arg-type]


def _serves(sidecar: Sidecar, peer: TlsRecorder) -> None:
    sidecar.wait_ready()
    assert sidecar.get("http://one.test/").status == 200
    assert peer.requests[-1].subject == "alice"


def _opening(folder: Path) -> str:
    """Shell commands that make this Python environment reachable for all, in a mount namespace.

    It may lie in a home that is closed to others: there a folder takes its place that holds nothing else.
    """
    commands = []
    for number, wanted in enumerate((Path(sys.base_prefix), Path(__file__).parents[2])):
        closed = [parent for parent in wanted.parents if not parent.stat().st_mode & 0o001]
        if closed:
            top, aside = closed[-1], folder / f"aside-{number}"
            commands += [
                f"mkdir -p {aside} && mount --bind {top} {aside} && mount -t tmpfs -o mode=755 none {top} &&",
                f"mkdir -p {wanted} && mount --bind {aside / wanted.relative_to(top)} {wanted} &&",
            ]
    return " ".join(commands)


def _has(sidecar: Sidecar, event: str) -> bool:
    return bool(sidecar.events(event))


def _needs(command: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed (Debian: apt-get install util-linux)")


@ROOT
def test_any_user_without_a_home_a_folder_or_a_capability(open_folder: Path, recorder: TlsRecorder) -> None:
    """The numbers of the process are in the metrics all the same, though nobody may look into it."""
    _needs("setpriv")
    none = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    opened = ["unshare", "--mount", "sh", "-c", f'{_opening(open_folder)} exec "$@"', "sh"]
    before = [*opened, *none, *user]
    probed = subprocess.run([*before, PROGRAM, "--help"], capture_output=True, text=True, check=False)
    if probed.returncode:
        pytest.skip(f"another user cannot run this Python environment: {probed.stderr.strip()}")
    sidecar = _confined(open_folder, recorder, *before)
    try:
        _serves(sidecar, recorder)
        status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}" in status
        assert "CapBnd:\t0000000000000000" in status
        for name in ("process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"):
            assert sidecar.metric(name)
        for secret in ("mem", "environ"):  # the same user's, and closed to it
            ran = subprocess.run(
                ["cat", f"/proc/{sidecar.process.pid}/{secret}"],
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Permission denied" in ran.stderr
        sidecar.stop()
    finally:
        sidecar.kill()


@ROOT
def test_no_capability_and_no_writable_file_system(open_folder: Path, recorder: TlsRecorder) -> None:
    """All that is mounted is read-only; root is left without its powers."""
    _needs("unshare")
    _needs("setpriv")
    read_only = 'mount -o remount,bind,ro / && exec "$@"'
    confined = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", f"--reuid={os.geteuid()}"]
    before = ["unshare", "--mount", "sh", "-c", read_only, "sh", *confined]
    probe = ["unshare", "--mount", "sh", "-c", read_only, "sh", "touch", str(open_folder / "probe")]
    probed = subprocess.run(probe, capture_output=True, text=True, check=False)
    if "Read-only file system" not in probed.stderr:
        pytest.skip(f"this machine gives no read-only file system: {probed.stderr.strip()}")
    for name in ("certificate", "key"):
        os.chown(open_folder / name, 0, 0)
    sidecar = _confined(open_folder, recorder, *before, home=str(open_folder))
    try:
        _serves(sidecar, recorder)
        sidecar.stop()
    finally:
        sidecar.kill()


def test_nothing_is_written_anywhere(pki: Pki, tmp_path: Path, recorder: TlsRecorder) -> None:
    """Not in the home, where mitmproxy would make a CA of its own, nor beside the config or in the folder."""
    home = tmp_path / "home"
    home.mkdir()
    whole = config([route("one", recorder, trust=pki.trust)], pki.credentials)
    sidecar = Confined(tmp_path / "run", whole, home=str(home), cwd=home)
    try:
        _serves(sidecar, recorder)
        regular = [
            os.readlink(file)
            for file in Path(f"/proc/{sidecar.process.pid}/fd").iterdir()
            if os.access(file, os.R_OK) and file.is_file()
        ]
        sidecar.stop()
    finally:
        sidecar.kill()
    assert regular == [str(sidecar._log)]
    assert list(home.iterdir()) == []
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["sidecert.yaml"]


def _core_files() -> int:
    """The largest that this machine allows."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == 0:
        pytest.skip("this machine allows no core files")
    return hard


def _leaves_no_core(pid: int) -> None:
    limits = Path(f"/proc/{pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]


@LINUX
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV], ids=["abort", "segv"])
def test_no_core_file_is_left(
    pki: Pki, tmp_path: Path, recorder: TlsRecorder, number: signal.Signals
) -> None:
    """Where cores are allowed and a folder is there for them."""
    hard = _core_files()
    whole = config([route("one", recorder, trust=pki.trust)], pki.credentials)
    sidecar = Confined(
        tmp_path / "run",
        whole,
        cwd=tmp_path / "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )
    try:
        _serves(sidecar, recorder)
        _leaves_no_core(sidecar.process.pid)
        sidecar.signal(number)
        assert sidecar.process.wait(10) == -number
    finally:
        sidecar.kill()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["sidecert.yaml"]


@LINUX
def test_nor_any_by_the_tools_of_mitmproxy(
    pki: Pki, tmp_path: Path, recorder: TlsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The addon sees to it. Nor is anything left in the home: mitmproxy's own CA goes where it is told to."""
    hard = _core_files()
    before = resource.getrlimit(resource.RLIMIT_CORE)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    whole = config([route("one", recorder, trust=pki.trust)], pki.credentials)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # which the tool inherits
    try:
        with inspecting(tmp_path / "tool", whole) as tool:
            assert call(tool.listener, "GET", "http://one.test/").status == 200
            _leaves_no_core(tool.process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert list(home.iterdir()) == []


def test_open_files_are_raised_to_what_the_limits_need(
    pki: Pki, tmp_path: Path, recorder: TlsRecorder
) -> None:
    """Containers start with 1024; where the system allows no more than that, it is told."""
    whole = config([route("one", recorder, trust=pki.trust)], pki.credentials)
    for hard in (resource.getrlimit(resource.RLIMIT_NOFILE)[1], 512):
        sidecar = Confined(
            tmp_path / f"run-{hard}",
            whole,
            preexec_fn=lambda hard=hard: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
        )
        try:
            _serves(sidecar, recorder)
            told = [record["key"] for record in sidecar.events("config_problem")]
            assert sidecar.metric("process_max_fds") == min(hard, 2512)
            assert told == (["limits.connections"] if hard == 512 else [])
            sidecar.stop()
        finally:
            sidecar.kill()


def test_a_key_that_others_can_read_is_told_at_start_and_at_a_reload(
    sidecar: StartSidecar, pki: Pki, tmp_path: Path, recorder: TlsRecorder
) -> None:
    """`check` tells it as well; with group access, as Kubernetes gives it with `fsGroup`, all is well."""
    mine = {name: tmp_path / name for name in ("certificate", "key")}
    for name, copy in mine.items():
        shutil.copy(pki.credentials["alice"][name], copy)
    mine["key"].chmod(0o440)
    credentials = {"alice": {name: str(copy) for name, copy in mine.items()}}
    running = sidecar(route("one", recorder, trust=pki.trust), credentials=credentials)
    assert not running.events("config_problem")
    mine["key"].chmod(0o444)
    assert running.ask_admin("POST", "/-/reload").status == 200
    assert running.events("config_problem")[0]["key"] == "credentials.alice.key"
    checked = subprocess.run(
        [PROGRAM, "check", "-c", str(running.path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0
    assert "may be read or changed by others (mode 0444)" in checked.stdout + checked.stderr
    again = sidecar(route("one", recorder, trust=pki.trust), credentials=credentials)
    assert again.events("config_problem")[0]["key"] == "credentials.alice.key"


def test_a_flood_at_the_admin_address_hurts_nobody(
    sidecar: StartSidecar, pki: Pki, recorder: TlsRecorder
) -> None:
    """At most 64 of its connections stay open, those that asked last; calls and probes go on."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    assert running.get("http://one.test/").status == 200
    before = running.descriptors()
    assert not isinstance(running.admin, str)
    with ExitStack() as stack:
        for number in range(400):
            flood = stack.enter_context(socket.create_connection(running.admin, 10))
            flood.sendall(b"GET /metrics HTTP/1.1\r\n")  # and never the rest
            if number % 100 == 0:
                assert running.get("http://one.test/").status == 200
                assert running.ask_admin("GET", "/-/ready").status == 200
        assert running.ask_admin("GET", "/-/ready").status == 200
        assert running.descriptors() <= before + 64 + 4


@LINUX
@ROOT
def test_it_works_as_the_first_process(tmp_path: Path, pki: Pki, recorder: TlsRecorder) -> None:
    """PID 1 hears only the signals that it handles: SIGHUP reloads, SIGTERM and SIGINT drain. No zombies."""
    _needs("unshare")
    probed = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    if probed.returncode:
        pytest.skip("this machine gives no process namespaces")
    whole = config([route("one", recorder, trust=pki.trust)], pki.credentials, drain="5s")
    for number in (signal.SIGTERM, signal.SIGINT):
        first = Confined(tmp_path / number.name, whole, "unshare", "--pid", "--fork", "--mount-proc")
        try:
            first.wait_ready()
            [pid] = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
            status = Path(f"/proc/{pid}/status").read_text()
            assert "NSpid:\t" + pid + "\t1\n" in status
            gate = threading.Event()
            recorder.answer = gated(gate, b"first", b"last")
            with Talker(first.listener) as talker:
                talker.send(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
                talker.read_until(b"first")
                os.kill(int(pid), signal.SIGHUP)
                first.wait_for(partial(_has, first, "reloaded"))
                assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
                os.kill(int(pid), number)
                first.wait_for(partial(_has, first, "stopped"))
                gate.set()
                assert talker.read_exactly(4) == b"last"
            assert first.process.wait(END) == 0
        finally:
            first.kill()
