"""The addon in mitmproxy's own tools does what `sidecert run` does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.certs import Pki
from support.clients import Address, Talker, call
from support.peers import free_port
from support.recorder import TlsRecorder, silence
from support.sidecar import config, route

SCRIPT = Path(__file__).resolve().parents[2] / "addon" / "sidecert" / "script.py"
TOOLS = {
    "mitmdump": [],
    "mitmweb": ["--no-web-open-browser", "--set", "web_port=0"],
}
EACH = pytest.mark.parametrize("tool", list(TOOLS))


class Host:
    """A mitmproxy tool with our script; `arguments` come after the usual ones."""

    def __init__(
        self, tool: str, folder: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = folder / f"{tool}.log"
        command = [
            str(Path(sys.executable).with_name(tool)),
            *TOOLS[tool],
            "--set",
            f"confdir={folder / 'mitm'}",
        ]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, words: str, count: int = 1) -> None:
        """Waits until it has said `words` that often."""
        deadline = time.monotonic() + 20
        while self.output.count(words) < count:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, f"it never said {words!r}:\n{self.output}"
            time.sleep(0.01)

    @property
    def listener(self) -> Address:
        """The address of the listener that was opened last."""
        host, port = re.findall(r"\] listening on ([0-9.]+):(\d+)", self.output)[-1]
        return host, int(port)


@contextmanager
def _host(tool: str, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Host]:
    host = Host(tool, folder, *arguments, env=env)
    try:
        yield host
    finally:
        print(host.output)
        host.process.kill()
        host.process.wait()


@pytest.fixture
def path(tmp_path: Path, recorder: TlsRecorder, pki: Pki) -> Path:
    """A config that can be used."""
    return _write(tmp_path, config([route("orders", recorder, trust=pki.trust)], pki.credentials))


def _write(folder: Path, content: Mapping[str, Any]) -> Path:
    path = folder / "sidecert.yaml"
    path.write_text(yaml.safe_dump(dict(content)))
    return path


def _options(path: Path, script: Path = SCRIPT) -> list[str]:
    return ["-n", "-s", str(script), "--set", f"sidecert={path}"]


@EACH
def test_it_serves_and_ends_as_run_does(tool: str, tmp_path: Path, path: Path, recorder: TlsRecorder) -> None:
    """The same call under the same certificate, and exit status 0 on SIGTERM."""
    with _host(tool, tmp_path, *_options(path)) as host:
        host.wait_for("ready, generation 1")
        assert call(host.listener, "GET", "http://orders.test/a").status == 200
        assert recorder.requests[0].subject == "alice"
        host.process.terminate()
        assert host.process.wait(20) == 0
        assert "Traceback" not in host.output


@EACH
def test_without_n_it_ends_with_the_hint(tool: str, tmp_path: Path, path: Path) -> None:
    """Nothing may listen that the config does not name, and mitmproxy has opened a port by then."""
    arguments = [*_options(path)[1:], "--listen-host", "127.0.0.1", "--listen-port", str(free_port())]
    with _host(tool, tmp_path, *arguments) as host:
        assert host.process.wait(20) != 0
        assert "start it with -n" in host.output
        assert "Traceback" not in host.output
        assert "ready" not in host.output


@EACH
def test_it_never_serves_a_broken_config(tool: str, tmp_path: Path, path: Path) -> None:
    """Every problem is logged, and the process ends."""
    content = yaml.safe_load(path.read_text())
    content["routes"][0]["credential"] = "nobody"
    content["colour"] = "blue"
    with _host(tool, tmp_path, *_options(_write(tmp_path, content))) as host:
        assert host.process.wait(20) != 0
        assert host.output.count("routes[0].credential: ") == 1
        assert host.output.count("colour: ") == 1
        assert "listening on" not in host.output
        assert "Traceback" not in host.output


@EACH
def test_it_never_serves_without_a_config(tool: str, tmp_path: Path) -> None:
    """It says which option names it."""
    with _host(tool, tmp_path, "-n", "-s", str(SCRIPT)) as host:
        assert host.process.wait(20) != 0
        assert "--set sidecert=FILE" in host.output
        assert "Traceback" not in host.output


@EACH
def test_an_address_that_cannot_be_had_ends_it(tool: str, tmp_path: Path, path: Path) -> None:
    """As for a broken config."""
    content = yaml.safe_load(path.read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        content["listeners"] = [{"bind": address}]
        with _host(tool, tmp_path, *_options(_write(tmp_path, content))) as host:
            assert host.process.wait(20) != 0
            assert f"{address} is in use" in host.output
            assert "Traceback" not in host.output


@EACH
def test_sighup_reloads(tool: str, tmp_path: Path, path: Path, recorder: TlsRecorder, pki: Pki) -> None:
    """A route that was added serves."""
    with _host(tool, tmp_path, *_options(path)) as host:
        host.wait_for("ready, generation 1")
        content = yaml.safe_load(path.read_text())
        content["routes"].append(route("two", recorder, trust=pki.trust, credential="bob"))
        _write(tmp_path, content)
        host.process.send_signal(signal.SIGHUP)
        host.wait_for("generation 2 is in force")
        assert call(host.listener, "GET", "http://two.test/").status == 200


def test_a_second_signal_ends_mitmdump_at_once(tmp_path: Path, path: Path, recorder: TlsRecorder) -> None:
    """The first lets calls end; the second does not wait for them."""
    recorder.answer = silence
    with _host("mitmdump", tmp_path, *_options(path)) as host:
        host.wait_for("ready, generation 1")
        with Talker(host.listener) as talker:
            talker.send(b"GET http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\n\r\n")
            recorder.wait_for(lambda: len(recorder.requests) == 1)
            host.process.terminate()
            host.wait_for("stopped listening")
            host.process.terminate()
            assert host.process.wait(10) == 128 + signal.SIGTERM
        assert "Traceback" not in host.output


def test_a_script_that_changes_is_loaded_again(tmp_path: Path, path: Path, recorder: TlsRecorder) -> None:
    """mitmproxy watches its scripts: the old sidecar ends, then a new one opens the same addresses."""
    script = tmp_path / "script.py"
    script.write_bytes(SCRIPT.read_bytes())
    listener, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    content = yaml.safe_load(path.read_text())
    _write(tmp_path, {**content, "listeners": [{"bind": listener}], "admin": {"bind": admin}})
    with _host("mitmdump", tmp_path, *_options(path, script)) as host:
        host.wait_for("ready, generation 1")
        assert call(host.listener, "GET", "http://orders.test/").status == 200
        os.utime(script, (time.time() + 10, time.time() + 10))
        host.wait_for("ready, generation 1", 2)
        assert call(host.listener, "GET", "http://orders.test/").status == 200
        host.process.terminate()
        assert host.process.wait(20) == 0
        assert "Traceback" not in host.output


def test_our_module_names_do_not_shadow_other_peoples(tmp_path: Path, path: Path) -> None:
    """mitmproxy leaves a script's folder on the search path, where ours has a `config` and a `tls`."""
    probe = tmp_path / "probe.py"
    probe.write_text("import logging, sys\ndef running():\n    logging.info('path %s', sys.path)\n")
    with _host("mitmdump", tmp_path, *_options(path), "-s", str(probe)) as host:
        host.wait_for("ready, generation 1")
        host.wait_for("] path [")
        (search_path,) = re.findall(r"\] path (\[.*\])", host.output)
        assert str(SCRIPT.parent) not in search_path


@EACH
def test_without_sidecert_installed_it_says_what_to_do(tool: str, tmp_path: Path) -> None:
    """A mitmproxy of another Python environment finds the script, but not the package."""
    (tmp_path / "sidecert").mkdir()
    (tmp_path / "sidecert" / "__init__.py").write_text("")  # hides the one that is installed
    with _host(tool, tmp_path, "-n", "-s", str(SCRIPT), env={"PYTHONPATH": str(tmp_path)}) as host:
        assert host.process.wait(20) != 0
        assert "sidecert cannot be imported" in host.output
        assert "install it into the Python environment of this mitmproxy" in host.output
        assert "Traceback" not in host.output


def test_the_config_file_cannot_be_moved_while_it_runs(tmp_path: Path, path: Path) -> None:
    """A change of the option would else be taken and do nothing."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import logging\nfrom mitmproxy import ctx, exceptions\n"
        "def done():\n"
        "    try:\n        ctx.options.update(sidecert='other.yaml')\n"
        "    except exceptions.OptionsError as exc:\n        logging.info('refused: %s', exc)\n"
    )
    with _host("mitmdump", tmp_path, "-s", str(probe), *_options(path)) as host:
        host.wait_for("ready, generation 1")
        host.process.terminate()
        assert host.process.wait(20) == 0
        assert "refused: a running sidecert cannot move to another config file" in host.output


def test_the_console_tells_problems_where_they_stay(tmp_path: Path) -> None:
    """It prints errors of the start on its own screen, which vanishes with it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [str(Path(sys.executable).with_name("mitmproxy")), *_options(tmp_path / "missing.yaml")]
    env = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    with subprocess.Popen(
        [*command, "--set", f"confdir={tmp_path / 'mitm'}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 65536):
                output += piece
        except OSError:  # Linux tells the end of a terminal so
            pass
        os.close(ours)
        assert process.wait(20) == 1
    leave_screen = b"\x1b[?1049l"
    assert str(tmp_path / "missing.yaml").encode() in output.rpartition(leave_screen)[2]
