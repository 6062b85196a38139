"""A log that cannot be written costs lines, never calls."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.certs import Pki, private_folder
from support.clients import Address, Caller
from support.peers import Peers, free_port
from support.sidecar import PROGRAM, config, route

CALLS = 2_000
MOST = 1.3 * 1024 * 1024  # bytes of lines that are kept, and what fits into a pipe
LINE = 300  # bytes that a line of the access log has at least


@contextmanager
def _logging_to(
    log: int, peers: Peers, pki: Pki, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Address]]:
    """A sidecar that logs each call to that descriptor, once it takes calls."""
    address = "127.0.0.1", free_port()
    whole = config(
        [route("orders", peers.recorder(), trust=pki.trust)],
        pki.credentials,
        listeners=[{"bind": f"127.0.0.1:{address[1]}"}],
    )
    path = private_folder(folder / "own") / "sidecert.yaml"
    path.write_text(yaml.safe_dump(whole))
    process = subprocess.Popen(
        [PROGRAM, "run", "-c", str(path), "--access-log"], stdin=subprocess.DEVNULL, stderr=log
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                with Caller(address) as caller:
                    caller.call("GET", "http://orders.test/")
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()


def _call(address: Address, count: int = CALLS) -> float:
    """How long so many calls took, all of which must be answered."""
    with Caller(address) as caller:
        began = time.monotonic()
        for number in range(count):
            assert caller.call("GET", f"http://orders.test/{'x' * LINE}{number}").status == 200
        return time.monotonic() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    assert process.wait(15) == 0


@pytest.mark.parametrize("where", ["full disk", "reader gone"])
def test_log_that_cannot_be_written_fails_no_call(where: str, peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """2,000 calls with a line each, all answered; then an end with status 0."""
    if where == "full disk":
        log = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, log = os.pipe()
        os.close(reading)
    with _logging_to(log, peers, pki, tmp_path) as (process, address):
        os.close(log)
        _call(address)
        _end(process)


def test_reader_that_does_not_read_holds_up_no_call(peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """4,000 calls against a full pipe, all answered. Once somebody reads, each line is there or was counted
    as lost, none is mixed with another, and no more were kept than may be."""
    reading, log = os.pipe()
    with _logging_to(log, peers, pki, tmp_path) as (process, address), os.fdopen(reading, "rb") as reader:
        os.close(log)
        _call(address, 2 * CALLS)
        process.terminate()
        records: list[dict[str, Any]] = [json.loads(line) for line in reader]
        assert process.wait(15) == 0
    calls = [record for record in records if record["logger"] == "sidecert.access"]
    lost = sum(record["lines"] for record in records if record.get("event") == "log_lost")
    assert lost > 0
    assert 0 <= len(records) - 1 + lost - (2 * CALLS + 1) < 20, "some of the lines are of other things"
    assert sum(len(json.dumps(record)) for record in calls) < MOST


def test_end_does_not_wait_long_for_a_reader(peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """With a log that nobody will ever read SIGTERM still ends the process, with status 0."""
    reading, log = os.pipe()
    try:
        with _logging_to(log, peers, pki, tmp_path) as (process, address):
            os.close(log)
            _call(address, CALLS // 4)
            began = time.monotonic()
            _end(process)
            assert time.monotonic() - began < 5
    finally:
        os.close(reading)
