"""Which upstreams a new certificate is shown to, within which limits, and when it is shown again."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import sidecert.proving
from sidecert.generation import Generation
from sidecert.metrics import Metrics
from sidecert.outcome import Observation, Outcome
from sidecert.plane import Plane
from sidecert.proving import AT_ONCE, Proven, Prover
from sidecert.threads import NoThread
from sidecert.trial import MOST_UPSTREAMS
from support.certs import Files, Pki
from support.inside import generation
from support.peers import Peers
from support.recorder import TlsRecorder
from support.sidecar import Addressed, config, route

PATIENCE = 10.0

Answers = Callable[[Any], Awaitable[Outcome]]


class Place:
    """An address that nobody need listen on."""

    host = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self.port = port


class Stage:
    """A plane under a first generation, and a `Prover` for the next ones. Made inside an event loop."""

    def __init__(self, folder: Path, pki: Pki, first: Files, *routes: dict[str, Any]) -> None:
        self._folder, self._pki, self.routes = folder, pki, list(routes)
        self.plane = Plane(Metrics(CollectorRegistry()))
        self.plane.adopt(self.load(first))
        self.lock = asyncio.Lock()
        self.ending = False
        self.prover = Prover(self.plane, self.lock, self.put_in_force)

    def load(self, files: Files, number: int = 1) -> Generation:
        return generation(self._folder, config(self.routes, {"me": files.config}), number)

    async def rotate(self, files: Files) -> Proven:
        async with self.lock:
            proven = await self.prover.prove(self.load(files, self.plane.generation.number + 1))
            self.plane.adopt(proven.generation)
            self.prover.settle(proven)
        return proven

    async def put_in_force(self, new: Generation) -> bool:
        """As the reloader does it."""
        if not self.ending:
            self.plane.adopt(new)
        return not self.ending

    @property
    def subject(self) -> str:
        """Of the certificate in force."""
        return self.plane.generation.credentials["me"].subject

    def proofs(self) -> dict[str, int]:
        counts = self.plane.metrics._proofs.get("me", {})
        return {str(result): count for result, count in counts.items() if count}

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    def answer(self, monkeypatch: pytest.MonkeyPatch, answers: Answers) -> list[Any]:
        """Lets `answers` say what comes of each handshake; gives the upstreams that were tried."""
        tried: list[Any] = []

        async def shake_hands(_: Prover, upstream: Any) -> tuple[Outcome, Observation]:
            tried.append(upstream)
            return await answers(upstream), Observation(certificate_requested=True)

        monkeypatch.setattr(Prover, "_shake_hands", shake_hands)
        return tried


@pytest.fixture
def files(pki: Pki, tmp_path: Path) -> dict[str, Files]:
    """Two good credentials and one that nobody trusts."""
    return {
        "first": pki.ca.caller("first").write(tmp_path / "files"),
        "good": pki.ca.caller("good").write(tmp_path / "files"),
        "strange": pki.other_ca.caller("strange").write(tmp_path / "files"),
    }


def mine(name: str, peer: Addressed, pki: Pki, **more: Any) -> dict[str, Any]:
    return route(name, peer, trust=pki.trust, credential="me", **more)


async def accept(_: Any) -> Outcome:
    return Outcome.OK


async def refuse_new(upstream: Any) -> Outcome:
    first = "first" in upstream.route.credential.subject
    return Outcome.OK if first else Outcome.CLIENT_CERT_REJECTED


@contextmanager
def again_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(sidecert.proving, "AGAIN", seconds)
        yield


def test_refused_certificate_is_taken_by_itself_once_it_is_accepted(
    pki: Pki, files: dict[str, Files], peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown again after a while, from memory: a config that fails to load by then does not matter."""
    contexts: list[ssl.SSLContext] = []
    peer = peers.recorder(configure=contexts.append)

    async def main() -> None:
        stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", peer, pki))
        with again_after(monkeypatch, 0.05):
            proven = await stage.rotate(files["strange"])
            assert proven.held.keys() == {"me"}
            await stage.wait_for(lambda: stage.proofs()["refused"] >= 3)
            assert stage.subject == "CN=first"
            number = stage.plane.generation.number
            files["strange"].certificate.unlink()
            stage.plane.metrics.reload(False, time.time())
            contexts[0].load_verify_locations(pki.other_trust)
            await stage.wait_for(lambda: stage.subject == "CN=strange")
            await stage.wait_for(lambda: not stage.plane.metrics.held_back)
        assert stage.prover.problems == ()
        assert stage.plane.generation.number == number
        assert not stage.plane.metrics.last_load_ok
        assert stage.plane.pools["one"].route.credential is stage.plane.generation.credentials["me"]
        stage.prover.close()

    asyncio.run(main())


def test_refusal_is_told_in_the_log_as_a_warning_once(
    pki: Pki,
    files: dict[str, Files],
    recorder: TlsRecorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is tried again later by itself, and is refused again, is no news."""

    def told() -> list[logging.LogRecord]:
        return [each for each in caplog.records if vars(each).get("event") == "credential_held_back"]

    async def main() -> None:
        stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", recorder, pki))
        with again_after(monkeypatch, 0.05), caplog.at_level(logging.INFO, "sidecert.proving"):
            await stage.rotate(files["strange"])
            await stage.wait_for(lambda: len(told()) >= 3)
        stage.prover.close()

    asyncio.run(main())
    assert [each.levelname for each in told()][:3] == ["WARNING", "INFO", "INFO"]


def test_the_same_upstream_is_asked_once_and_others_each(
    pki: Pki, files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host, port, server name, trust and TLS settings tell them apart; not paths, limits and the like."""

    async def main() -> None:
        here, there = Place(1), Place(2)
        stage = Stage(
            tmp_path / "stage",
            pki,
            files["first"],
            mine("one", here, pki),
            mine("same", here, pki, timeouts={"response": "7s"}, pool={"max_idle": 3}),
            mine("port", there, pki),
            mine("name", here, pki, server_name="other.test"),
            mine("tls", here, pki, tls={"min": "1.3"}),
            route("trust", here, trust=pki.other_trust, credential="me"),
            route("none", here, trust=pki.trust, credential="none"),
            mine("wild", here, pki, host="*.wild.test"),
        )
        wild = mine("asked", here, pki, host="*.asked.test")
        del wild["upstream"]["host"]
        stage.routes.append(wild)
        stage.plane.adopt(stage.load(files["first"]))
        tried = stage.answer(monkeypatch, accept)
        await stage.rotate(files["good"])
        assert {each.route.id for each in tried} == {"one", "port", "name", "tls", "trust"}
        assert stage.proofs() == {"accepted": 5}
        assert stage.subject == "CN=good"

    asyncio.run(main())


def test_proofs_are_few_at_once_and_bounded(
    pki: Pki, files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of routes make no storm of handshakes."""

    async def main() -> None:
        routes = [mine(f"r{number}", Place(number), pki) for number in range(1, 2 * MOST_UPSTREAMS)]
        stage = Stage(tmp_path / "stage", pki, files["first"], *routes)
        now = most = 0

        async def slowly(_: Any) -> Outcome:
            nonlocal now, most
            now += 1
            most = max(most, now)
            for _ in range(5):
                await asyncio.sleep(0)
            now -= 1
            return Outcome.OK

        tried = stage.answer(monkeypatch, slowly)
        await stage.rotate(files["good"])
        assert [each.port for each in tried] == [*range(1, MOST_UPSTREAMS + 1)]
        assert most == AT_ONCE

    asyncio.run(main())


def test_what_is_not_known_in_time_is_unproven(
    pki: Pki, files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All proofs have one limit; what was known by then counts."""

    async def main() -> None:
        stage = Stage(
            tmp_path / "stage", pki, files["first"], mine("slow", Place(1), pki), mine("quick", Place(2), pki)
        )

        async def hang(upstream: Any) -> Outcome:
            if upstream.port == 1:
                await asyncio.Event().wait()
            return await refuse_new(upstream)

        stage.answer(monkeypatch, hang)
        monkeypatch.setattr(sidecert.proving, "LIMIT", 0.1)
        async with asyncio.timeout(PATIENCE):
            proven = await stage.rotate(files["good"])
        assert stage.proofs() == {"unproven": 1, "refused": 1}
        assert proven.held.keys() == {"me"}
        stage.prover.close()

    asyncio.run(main())


def test_nothing_is_put_in_force_once_the_sidecar_ends(
    pki: Pki, files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what is being shown again in that moment, and nothing is shown after that."""

    async def main() -> None:
        stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", Place(1), pki))
        asked, go = asyncio.Event(), asyncio.Event()

        async def wait(upstream: Any) -> Outcome:
            asked.set()
            await go.wait()
            return Outcome.OK

        stage.answer(monkeypatch, refuse_new)
        with again_after(monkeypatch, 0.02):
            await stage.rotate(files["good"])
            tried = stage.answer(monkeypatch, wait)
            await asked.wait()
            stage.ending = True
            stage.prover.close()
            go.set()
            async with stage.lock:
                assert stage.subject == "CN=first"
            await asyncio.sleep(0.1)  # five times as long as it takes to be tried again
        assert len(tried) == 1

    asyncio.run(main())


def test_refusal_counts_unless_the_one_before_is_seen_refused(
    pki: Pki, files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before may meet any other trouble in its turn: what is known to work less well is not taken."""

    async def main() -> None:
        for old, held in (
            (Outcome.OK, True),
            (Outcome.CONNECT_TIMEOUT, True),
            (Outcome.UNDECIDED, True),
            (Outcome.CLIENT_CERT_REVOKED, False),
        ):
            stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", Place(1), pki))

            async def answer(upstream: Any, old: Outcome = old) -> Outcome:
                new = await refuse_new(upstream)
                return old if new is Outcome.OK else new

            stage.answer(monkeypatch, answer)
            proven = await stage.rotate(files["good"])
            assert bool(proven.held) == held, old
            assert stage.subject == ("CN=first" if held else "CN=good")
            for each in proven.held.values():
                told = f"could not be compared with the one before ({old})" in each.problem.wrong
                assert told == (old is not Outcome.OK)
            stage.prover.close()

    asyncio.run(main())


def test_error_of_our_own_proves_nothing(
    pki: Pki,
    files: dict[str, Files],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, the other upstreams are asked, and the reload goes on."""

    async def main() -> None:
        stage = Stage(
            tmp_path / "stage", pki, files["first"], mine("one", Place(1), pki), mine("two", Place(2), pki)
        )

        async def fail(upstream: Any) -> Outcome:
            if upstream.port == 1:
                raise RuntimeError("ours")
            return Outcome.OK

        stage.answer(monkeypatch, fail)
        await stage.rotate(files["good"])
        assert stage.proofs() == {"unproven": 1, "accepted": 1}
        assert stage.subject == "CN=good"

    asyncio.run(main())
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("error", [RuntimeError("ours"), NoThread()], ids=["ours", "no-thread"])
def test_error_when_it_is_tried_again_ends_no_trying(
    error: Exception,
    pki: Pki,
    files: dict[str, Files],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The old certificate goes on, and the next time it may work. Only a fault of our own has a traceback."""

    async def main() -> None:
        stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", Place(1), pki))
        stage.answer(monkeypatch, refuse_new)
        with again_after(monkeypatch, 0.02):
            await stage.rotate(files["good"])
            adopt, tries = Plane.adopt, 0

            def fail_once(plane: Plane, new: Generation) -> None:
                nonlocal tries
                tries += 1
                if tries == 1:
                    raise error
                adopt(plane, new)

            monkeypatch.setattr(Plane, "adopt", fail_once)
            stage.answer(monkeypatch, accept)
            await stage.wait_for(lambda: stage.subject == "CN=good")
        assert tries == 2
        assert any(record.exc_info for record in caplog.records) == isinstance(error, RuntimeError)
        stage.prover.close()

    asyncio.run(main())


def test_proofs_leave_no_connection_and_count_in_no_pool(
    pki: Pki, files: dict[str, Files], recorder: TlsRecorder, tmp_path: Path
) -> None:
    """Each is a handshake of its route and credential, and then the end of the connection."""

    async def main() -> None:
        stage = Stage(tmp_path / "stage", pki, files["first"], mine("one", recorder, pki))
        await stage.rotate(files["strange"])
        await stage.rotate(files["good"])
        stats = stage.plane.metrics.route("one")
        assert (stats.connections, stats.idle) == (0, 0)
        # One that is refused, with the one before it; one that is good.
        assert stats.handshakes["me"] == {Outcome.CLIENT_CERT_UNKNOWN_CA: 1, Outcome.OK: 2}
        await asyncio.to_thread(recorder.wait_for, lambda: not recorder._open)
        stage.prover.close()

    asyncio.run(main())
    assert recorder.requests == []
