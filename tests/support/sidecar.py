"""The sidecar as its users run it: `sidecert run -c FILE` as a process, on free ports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml
from prometheus_client.parser import text_string_to_metric_families

from support.certs import private_folder
from support.clients import Address, Answer, call

PROGRAM = str(Path(sys.executable).with_name("sidecert"))
READY = 20.0  # seconds until the sidecar must be ready
END = 40.0  # seconds until it must have ended; more than the longest drain

NO_CIRCUIT = {"failures": 0}
"""The upstream setting `circuit` of a route that is to try each time, however often it fails."""

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Addressed(Protocol):
    """Anything with an address, a peer for one."""

    host: str
    port: int


class StartFailed(AssertionError):
    """The sidecar ended, or was not ready in time."""

    def __init__(self, why: str, sidecar: Sidecar) -> None:
        super().__init__(f"{why}:\n{sidecar.stderr}")
        self.status = sidecar.process.poll()
        self.stderr = sidecar.stderr


def route(
    name: str,
    peer: Addressed,
    *,
    trust: Path | str,
    credential: str = "alice",
    host: str | None = None,
    match: Mapping[str, object] | None = None,
    **upstream: object,
) -> dict[str, Any]:
    """One route of a config to `peer`: calls for `host` (default NAME.test), checked against `trust`.

    `match` adds to the match, `upstream` to the upstream: `timeouts={"connect": "200ms"}`.
    """
    return {
        "id": name,
        "match": {"host": host or f"{name}.test", **(match or {})},
        "upstream": {"host": peer.host, "port": peer.port, "trust": str(trust), **upstream},
        "credential": credential,
    }


class StartSidecar(Protocol):
    """Starts a sidecar with these routes and waits until it is ready (the fixture `sidecar`).

    `credentials` are alice, bob and stranger unless told; `rest` are further keys at the config's top.
    """

    def __call__(
        self,
        *routes: Mapping[str, Any],
        credentials: Mapping[str, Mapping[str, Any]] | None = None,
        listeners: Sequence[Mapping[str, Any]] = ({"bind": "127.0.0.1:0"},),
        arguments: Sequence[str] = (),
        **rest: object,
    ) -> Sidecar: ...


class Sidecar:
    """A running sidecar. `addresses` maps each bind string to the real address, "admin" to the admin's."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any] | str, *arguments: str, under: Sequence[str] = ()
    ) -> None:
        """`under` is a command that runs another one: a profiler."""
        private_folder(folder)
        self.path = folder / "sidecert.yaml"
        self.rewrite(config)
        self._log = folder / "stderr.log"
        self._begin_log()
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*under, PROGRAM, "run", "-c", str(self.path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd=folder,
            )

    def rewrite(self, config: Mapping[str, Any] | str) -> None:
        """Writes the config file anew; which the sidecar notices within 2 s, or when it is told."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False)
        self.path.write_text(text)

    def wait_ready(self, timeout: float = READY) -> None:
        """Waits for the record `ready`; raises StartFailed when the process ends first or is too slow."""
        self.wait_for(lambda: bool(self.events("ready")), timeout, "the sidecar was not ready in time")
        for record in self.events("listening"):
            self.addresses[record["listener"]] = _address(record["address"])

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0, why: str = "") -> None:
        """Waits until `condition` holds while the process runs; for what only its log or metrics tell."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None and not condition():
                raise StartFailed(f"the sidecar ended with status {self.process.returncode}", self)
            if time.monotonic() > deadline:
                raise StartFailed(why or "what was waited for did not come", self)
            time.sleep(0.01)

    @property
    def listener(self) -> Address:
        """The address of the first listener."""
        return self.listeners[0]

    @property
    def listeners(self) -> list[Address]:
        """The addresses of all listeners in the config's order, also where several share a bind string."""
        self._read_on()
        return list(self._listening)

    def _begin_log(self) -> None:
        """Nothing has been read of it yet."""
        self._listened_to = 0  # bytes of the log
        self._listening: list[Address] = []
        self._stopped = False
        self.addresses: dict[str, Address] = {}

    def _read_on(self) -> None:
        """What the log has more about listeners than at the last look: it may be long."""
        with self._log.open("rb") as log:
            log.seek(self._listened_to)
            lines = log.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._listened_to += len(lines)
        for line in lines.splitlines():
            if b'"listening"' in line:
                record = _record(line.decode(errors="replace"))
                if record.get("event") == "listening" and record["listener"] != "admin":
                    self._listening.append(_address(record["address"]))

    @property
    def admin(self) -> Address:
        return self.addresses["admin"]

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log so far; a line that is no JSON object comes as {"message": line}."""
        return [_record(line) for line in self.stderr.splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log records of that `event`."""
        return [record for record in self.records if record.get("event") == name]

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
    ) -> Answer:
        """One call through the first listener; an absolute http URL as a forward proxy's client does."""
        return call(self.listener, method, target, body, headers, timeout)

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.call("GET", target, headers=headers)

    def ask_admin(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return call(self.admin, method, path, headers=headers)

    def metrics(self) -> Series:
        """Every series of /metrics by its name and labels."""
        answer = self.ask_admin("GET", "/metrics")
        assert answer.status == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float | None:
        """That one series' value, None when there is no such series."""
        return self.metrics().get((name, frozenset(labels.items())))

    def outcomes(self, route: str) -> dict[str, float]:
        """The handshakes of a route by outcome, those that are not 0."""
        found: dict[str, float] = {}
        for (name, labels), value in self.metrics().items():
            named = dict(labels)
            if name == "sidecert_handshakes_total" and named["route"] == route and value:
                found[named["outcome"]] = found.get(named["outcome"], 0) + value
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def resident(self, *, peak: bool = False) -> int:
        """Its resident memory in bytes, now or at its highest."""
        name = "VmHWM" if peak else "VmRSS"
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} for process {self.process.pid}")

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        try:
            return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())
        except PermissionError:  # it lets only root look; one is the connection that asks
            return int(self.metric("process_open_fds") or 0) - 1

    def stop(self, expect: int = 0) -> None:
        """SIGTERM, the end, the right exit status, and no traceback in the log."""
        self._stopped = True
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the sidecar did not end within {END} s of SIGTERM") from None
        assert self.process.returncode == expect, f"exit status {self.process.returncode}, not {expect}"
        assert "Traceback (most recent call last)" not in self.stderr

    def kill(self) -> None:
        """Ends it at once; nothing is checked."""
        self._stopped = True
        self.process.kill()
        self.process.wait()

    def stop_unless_stopped(self) -> None:
        if not self._stopped:
            self.stop()


@contextmanager
def running(folder: Path, config: Mapping[str, Any] | str, *arguments: str) -> Iterator[Sidecar]:
    """A ready sidecar for the length of a with block; at its end it is stopped and its log checked.

    Its log is printed, so pytest shows it beside a failure.
    """
    sidecar = Sidecar(folder, config, *arguments)
    try:
        sidecar.wait_ready()
        yield sidecar
        sidecar.stop_unless_stopped()
    finally:
        sidecar.kill()
        print(f"--- sidecert run printed:\n{sidecar.stderr}")


def config(
    routes: Sequence[Mapping[str, Any]],
    credentials: Mapping[str, Mapping[str, Any]],
    *,
    listeners: Sequence[Mapping[str, Any]] = ({"bind": "127.0.0.1:0"},),
    **rest: object,
) -> dict[str, Any]:
    """A whole config on free ports; `rest` are further keys at its top."""
    return {
        "version": 1,
        "listeners": [dict(each) for each in listeners],
        "admin": {"bind": "127.0.0.1:0"},
        "credentials": {name: dict(each) for name, each in credentials.items()},
        "routes": [dict(each) for each in routes],
        **rest,
    }


def sidecert(
    *arguments: str, cwd: Path | None = None, timeout: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Runs any command to its end: `sidecert("check", "-c", path)`."""
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd
    )


def _record(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {"message": line}
    return found if isinstance(found, dict) else {"message": line}


def _address(text: str) -> Address:
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
