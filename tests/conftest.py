"""Fixtures: certificates once per run, peers and sidecars per test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from support.certs import Pki
from support.lengths import LONG
from support.peers import Peers
from support.recorder import TlsRecorder
from support.sidecar import Sidecar, StartSidecar, config, running
from support.truth import LEFT_OUT, LeftOut, TruthTable

# Hypothesis's own limit per example would be a timed test; pytest's timeout bounds a test as a whole. In
# continuous integration the examples are the same for the same code, so that it judges the change and not
# the luck of the draw; everywhere else each run looks at new ones.
settings.register_profile("sidecert", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sidecert")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftOut(), LEFT_OUT)


class EachByItself(LoadScopeScheduling):
    """Of several test processes, whichever is free takes the next test. But one must see all cells of the
    truth table, and only one demo at a time looks for free ports. (xdist's own groups get lost with pytest
    9.)"""

    def _split_scope(self, nodeid: str) -> str:
        together = ("/test_truth_table_", "/test_demo")
        return next((name for name in together if name in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> EachByItself:
    return EachByItself(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long forms the time that they say they need."""
    for item in items:
        marker = item.get_closest_marker("long_form")
        if LONG and marker is not None:
            item.add_marker(pytest.mark.timeout(marker.kwargs["seconds"]))


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A CA made for this run, another one, and everybody's files."""
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def truth_table() -> TruthTable:
    """What this run sees of each server and trouble."""
    return TruthTable()


@pytest.fixture
def peers(pki: Pki, tmp_path: Path) -> Iterator[Peers]:
    """Starts real upstream peers, which end with the test: `peers.nginx(tls="1.3")`."""
    with ExitStack() as stack:
        yield Peers(tmp_path / "peers", stack, pki.upstream, pki.trust)


@pytest.fixture
def recorder(peers: Peers) -> TlsRecorder:
    """An upstream on Python's ssl that demands a certificate, writes down what it sees and echoes it."""
    return peers.recorder()


@pytest.fixture
def sidecar(pki: Pki, tmp_path: Path) -> Iterator[StartSidecar]:
    """Starts the real sidecar, which is stopped and checked with the test's end."""
    with ExitStack() as stack:
        count = 0

        def start(
            *routes: Mapping[str, Any],
            credentials: Mapping[str, Mapping[str, Any]] | None = None,
            listeners: Sequence[Mapping[str, Any]] = ({"bind": "127.0.0.1:0"},),
            arguments: Sequence[str] = (),
            **rest: object,
        ) -> Sidecar:
            nonlocal count
            count += 1
            whole = config(
                routes, pki.credentials if credentials is None else credentials, listeners=listeners, **rest
            )
            return stack.enter_context(running(tmp_path / f"sidecar-{count}", whole, *arguments))

        yield start
