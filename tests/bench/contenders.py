"""A contender as a running process that has answered its first call as the upstream answers alice."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from bench.load import HOST
from bench.processes import Cores, pinned
from bench.proxies import PROXIES, NotToBeHad, Place
from bench.scenarios import Contender
from support.certs import Pki, private_folder
from support.clients import call
from support.peers import Peer, free_port

_FIRST_ANSWER = 120.0  # seconds until a proxy must have answered; 10,000 routes take their time
_SCRAPES = 0.2  # seconds between two looks at the metrics page

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Running:
    """A contender that serves. Times in seconds from its start; `ready` where it tells."""

    pid: int
    port: int
    admin_port: int  # of the metrics page, where there is one
    first_answer: float
    ready: float | None

    def check(self) -> None:
        """Raises unless it is the upstream that answers, and under alice's certificate."""
        answer = call(("127.0.0.1", self.port), "GET", "/", headers={"Host": HOST})
        _check(answer.status, answer.body)


class Crashed(Exception):
    """It ended, or gave no right answer in time."""


@contextmanager
def running(folder: Path, contender: Contender, pki: Pki, upstream: Peer, cores: Cores) -> Iterator[Running]:
    """Started anew on the proxies' core. Raises NotToBeHad or Crashed."""
    own = private_folder(folder / f"{contender.proxy}-{next(_numbers)}")
    place = Place(own, free_port(), free_port(), pki, upstream, contender.variant)
    try:
        command = PROXIES[contender.proxy](place)
    except pytest.skip.Exception as exc:  # how the tests' own look-up of programs says it
        raise NotToBeHad(str(exc)) from exc
    with _process(place, command, cores) as ready:
        yield ready


@contextmanager
def _process(place: Place, command: list[str], cores: Cores) -> Iterator[Running]:
    folder, port = place.folder, place.port
    log = folder / "output.log"
    # Some keep certificates or settings in their user's folders.
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    with log.open("wb") as output, pinned(cores.proxy):
        begun, begun_clock = time.monotonic(), time.time()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environment
        )
    try:
        first_answer = _wait_for_answer(process, port, begun)
        at = _ready_at(log)
        yield Running(
            process.pid, port, place.admin_port, first_answer, None if at is None else at - begun_clock
        )
    except BaseException:
        print(f"--- {' '.join(command)} printed:\n{log.read_text(errors='replace')[-5000:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, begun: float) -> float:
    """Seconds from `begun` to the first answer, which must be the upstream's to alice."""
    while (passed := time.monotonic() - begun) < _FIRST_ANSWER:
        if process.poll() is not None:
            raise Crashed(f"it ended with status {process.returncode}")
        try:
            answer = call(("127.0.0.1", port), "GET", "/", headers={"Host": HOST})
        except ConnectionRefusedError:
            time.sleep(0.002)
            continue
        passed = time.monotonic() - begun
        _check(answer.status, answer.body)
        return passed
    raise Crashed(f"it gave no answer within {_FIRST_ANSWER:.0f} s")


def _check(status: int, body: bytes) -> None:
    if status != 200 or not body.startswith(b"SUCCESS CN=alice "):
        raise Crashed(f"that is not the upstream's answer to alice: {status} {body[:500]!r}")


def _ready_at(log: Path) -> float | None:
    """The time of the record that says so, in a log of sidecert's; None in any other."""
    for line in log.read_text(errors="replace").splitlines():
        if '"ready"' in line:
            record = json.loads(line)
            if record.get("event") == "ready":
                return datetime.fromisoformat(record["time"]).timestamp()
    return None


@contextmanager
def scraped(contender: Running) -> Iterator[None]:
    """Somebody reads its metrics page again and again, from the load's core."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(_SCRAPES):
            connection = http.client.HTTPConnection("127.0.0.1", contender.admin_port, timeout=20)
            try:
                connection.request("GET", "/metrics")
                connection.getresponse().read()
            except OSError:
                return
            finally:
                connection.close()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
