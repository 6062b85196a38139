"""Files change under a running sidecar: it notices by itself, and no call is lost, however often."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import StartSidecar
from support.certs import Leaf, Pki, write_private
from support.clients import call, connect
from support.lengths import rounds
from support.peers import Peers
from support.recorder import TlsRecorder
from support.rotation import Load, SecretVolume, move_over, pem
from support.sidecar import Sidecar, route


def _reloads(sidecar: Sidecar, event: str = "reloaded") -> int:
    """How many the log tells; without reading all of it as JSON again and again."""
    return sidecar.stderr.count(f'"{event}"')


class _Noticing:
    """Waits, at the end of a with block, until the sidecar has told of a reload that nobody asked for."""

    def __init__(self, sidecar: Sidecar, event: str = "reloaded") -> None:
        self._sidecar, self._event = sidecar, event

    def __enter__(self) -> None:
        self._before = _reloads(self._sidecar, self._event)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._sidecar.wait_for(lambda: _reloads(self._sidecar, self._event) > self._before, 15)


def _caller(sidecar: Sidecar, recorder: TlsRecorder) -> str | None:
    """Who calls, as the upstream sees it."""
    assert sidecar.get("http://one.test/").status == 200
    return recorder.requests[-1].subject


def _config(sidecar: Sidecar) -> dict[str, Any]:
    found = yaml.safe_load(sidecar.path.read_text())
    assert isinstance(found, dict)
    return found


def _pair(folder: Path, leaf: Leaf) -> dict[str, Path]:
    files = leaf.write(folder, "me")
    return {"certificate": files.certificate, "key": files.key}


@pytest.fixture
def files(pki: Pki, tmp_path: Path) -> dict[str, Path]:
    """A certificate and key that a test may change; first alice's."""
    return _pair(tmp_path / "mine", pki.ca.caller("first"))


@pytest.fixture
def running(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, files: dict[str, Path]) -> Sidecar:
    """A sidecar with one route, which calls with `files`."""
    return sidecar(
        route("one", recorder, trust=pki.trust, credential="me"),
        credentials={"me": {name: str(path) for name, path in files.items()}},
    )


def test_kubelets_swap_is_noticed(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Only the link `..data` is exchanged, far from the paths that the config names."""
    volume = SecretVolume(tmp_path / "secret", pem(pki.ca.caller("first")))
    running = sidecar(
        route("one", recorder, trust=pki.trust, credential="me"), credentials={"me": volume.config}
    )
    assert _caller(running, recorder) == "first"
    with _Noticing(running):
        volume.swap(pem(pki.ca.caller("second")))
    assert _caller(running, recorder) == "second"
    assert running.metric("sidecert_config_reloads_total", result="ok") == 1
    assert running.metric("sidecert_config_reloads_total", result="failed") == 0


def test_files_written_in_place_are_read_when_they_are_whole(
    running: Sidecar, recorder: TlsRecorder, pki: Pki, files: dict[str, Path]
) -> None:
    """Emptied first, then written piece by piece over more than two looks: nobody is told of the halves."""
    second = pki.ca.caller("second")
    with _Noticing(running):
        for path, content in (
            (files["key"], second.key_pem()),
            (files["certificate"], second.certificate_pem()),
        ):
            with open(path, "wb", buffering=0) as file:
                step = len(content) // 4
                for start in range(0, len(content), step):
                    file.write(content[start : start + step])
                    time.sleep(0.25)  # it is the slowness that is tested
    assert _caller(running, recorder) == "second"
    assert running.events("reload_failed") == []
    assert running.events("config_problem") == []
    assert running.metric("sidecert_config_reloads_total", result="failed") == 0


def test_trust_and_passphrase_and_store_are_watched_too(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Every file that the config names, wherever in it."""
    store, word, trust = tmp_path / "me.p12", tmp_path / "word", tmp_path / "trust.pem"
    write_private(store, pki.ca.caller("first").pkcs12("one"))
    write_private(word, b"one\n")
    shutil.copy(pki.trust, trust)
    running = sidecar(
        route("one", recorder, trust=trust, credential="me"),
        credentials={"me": {"pkcs12": str(store), "passphrase": {"file": str(word)}}},
    )
    with _Noticing(running):
        move_over(word, b"two\n")
        move_over(store, pki.ca.caller("second").pkcs12("two"))
    assert _caller(running, recorder) == "second"
    with _Noticing(running):
        move_over(trust, pki.other_trust.read_bytes())
    answer = running.get("http://one.test/")
    assert (answer.status, answer.header("Sidecert-Outcome")) == (502, "server_untrusted")


def test_a_bad_file_is_kept_out_and_told_once(
    running: Sidecar, recorder: TlsRecorder, pki: Pki, files: dict[str, Path]
) -> None:
    """The old certificate serves on, with one problem in the log and one failure counted, however long it
    stays; what was right before is taken over again."""
    good = files["certificate"].read_bytes()
    with _Noticing(running, "reload_failed"):
        move_over(files["certificate"], pki.ca.caller("second").certificate_pem())
    assert running.metric("sidecert_config_last_reload_successful") == 0
    time.sleep(1.2)  # there is a look, and nothing to wait for: that nothing comes of it is what is tested
    assert len(running.events("reload_failed")) == 1
    [problem] = running.events("config_problem")
    assert problem["key"] == "credentials.me.key"
    assert running.metric("sidecert_config_reloads_total", result="failed") == 1
    assert _caller(running, recorder) == "first"
    with _Noticing(running):
        move_over(files["certificate"], good)
    assert running.metric("sidecert_config_last_reload_successful") == 1
    assert running.metric("sidecert_config_reloads_total", result="failed") == 1
    assert _caller(running, recorder) == "first"
    assert recorder.connections == 1  # the idle connection has outlived all of it


def test_a_file_that_never_rests_keeps_no_other_from_being_read(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, files: dict[str, Path], tmp_path: Path
) -> None:
    """Somebody writes the trust file all the time; the certificate is renewed all the same."""
    busy = tmp_path / "busy.pem"
    shutil.copy(pki.trust, busy)
    mine = {name: str(path) for name, path in files.items()}
    running = sidecar(route("one", recorder, trust=busy, credential="me"), credentials={"me": mine})
    stop = threading.Event()

    def write_on() -> None:
        for count in itertools.count():
            if stop.wait(0.2):
                return
            os.utime(busy, ns=(count, count))  # its content stays whole: that it changes is what counts

    writer = threading.Thread(target=write_on, daemon=True)
    writer.start()
    try:
        running.wait_for(lambda: bool(running.events("file_restless")), 15)
        second = pki.ca.caller("second")
        move_over(files["key"], second.key_pem())
        move_over(files["certificate"], second.certificate_pem())
        running.wait_for(lambda: _caller(running, recorder) == "second", 15)
    finally:
        stop.set()
        writer.join()
    assert [each["file"] for each in running.events("file_restless")] == [str(busy)]
    assert len(running.events("reloaded")) == 1, "told of what changed nothing"


def test_files_that_come_after_the_config_that_names_them_are_nobodys_trouble(
    running: Sidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """They are watched although they are not there, and a failure that passes is not told."""
    late = tmp_path / "late"
    text = _config(running)
    text["credentials"]["me"] = {"certificate": str(late / "me.crt"), "key": str(late / "me.key")}
    with _Noticing(running):
        running.rewrite(text)
        time.sleep(2.4)  # long enough to be tried without them, and too short to be told of it
        _pair(late, pki.ca.caller("second"))
    assert _caller(running, recorder) == "second"
    assert running.metric("sidecert_config_reloads_total", result="failed") == 0
    assert running.events("config_problem") == []


@pytest.mark.long_form(seconds=300)
def test_listeners_come_and_go_under_load(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """The calls at a listener that stays never fail, also where it is pinned to another route each time;
    those at the one that comes and goes are answered whenever they could connect."""
    path = str(tmp_path / "in.sock")
    pinned, extra = {"bind": "127.0.0.2:0"}, {"bind": f"unix:{path}"}
    one, odd, even = (route(name, recorder, trust=pki.trust) for name in ("one", "odd", "even"))
    running = sidecar(one, odd, listeners=[{"bind": "127.0.0.1:0"}, {**pinned, "route": "odd"}])
    plain = _config(running)
    both = {**plain, "routes": [one, even]}
    both["listeners"] = [plain["listeners"][0], {**pinned, "route": "even"}, extra]
    at_pinned = running.addresses["127.0.0.2:0"]
    stop = threading.Event()
    answered, lost = [], []

    def come_and_go() -> None:
        while not stop.is_set():
            try:
                connect(path).close()
                answered.append(call(path, "GET", "http://one.test/unix").status)
            except (FileNotFoundError, ConnectionRefusedError):
                continue  # it is closed at this time, and says so before a call is on its way
            except Exception as exc:
                lost.append(repr(exc))

    visitor = threading.Thread(target=come_and_go, daemon=True)
    with (
        Load(running.listener, "one.test", keep_alive=1, one_by_one=1) as load,
        Load(at_pinned, "127.0.0.2", keep_alive=1, one_by_one=1) as load_pinned,
    ):
        visitor.start()
        for _ in range(rounds(10, 200)):
            for config in (both, plain):
                running.rewrite(config)
                assert running.ask_admin("POST", "/-/reload").status == 200
                seen = len(answered)
                if config is both:
                    running.wait_for(lambda seen=seen: len(answered) > seen)  # type: ignore[misc]
                load.wait_for_more(4)
        stop.set()
        visitor.join(20)
        load_pinned.wait_for_more(4)
    assert load.failed + load_pinned.failed == []
    assert lost == []
    assert set(answered) == {200}


class _Rotation:
    """A new certificate in the place of the one before, `1`, `2`, ... by name, in each of several ways."""

    def __init__(self, running: Sidecar, volume: SecretVolume, pki: Pki) -> None:
        self.running, self.volume, self.pki = running, volume, pki
        self.written = self.in_force = 0
        self.good = running.path.read_bytes()

    def by_post(self) -> None:
        self._write()
        self._post(200)

    def by_signal(self) -> None:
        self._write()
        before = _reloads(self.running)
        self.running.signal(signal.SIGHUP)
        self.running.wait_for(lambda: _reloads(self.running) > before)
        self.in_force = self.written

    def by_itself(self) -> None:
        with _Noticing(self.running):
            self._write()
        self.in_force = self.written

    def with_nothing_new(self) -> None:
        self._post(200)

    def with_a_bad_config(self) -> None:
        move_over(self.running.path, self.good + b"colour: blue\n")
        self._post(422)
        move_over(self.running.path, self.good)
        self._post(200)

    def with_another_config(self) -> None:
        """Each time other settings for the route, so that its connections are closed."""
        text = yaml.safe_load(self.good)
        rotated = next(each for each in text["routes"] if each["id"] == "one")
        rotated["upstream"]["timeouts"] = {"response": f"{20 + self.written % 7}s"}
        self.good = yaml.safe_dump(text).encode()
        move_over(self.running.path, self.good)
        self.by_post()

    def _write(self) -> None:
        self.written += 1
        self.volume.swap(pem(self.pki.ca.caller(str(self.written))))

    def _post(self, status: int) -> None:
        written = self.written
        answer = self.running.ask_admin("POST", "/-/reload")
        assert answer.status == status, answer.text
        if status == 200:
            self.in_force = written


@pytest.mark.long_form(seconds=1200)
def test_no_call_is_lost_however_often_certificates_rotate(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Under load, with reloads of every kind: each call is answered, reaches its upstream once, under a
    certificate that was in force in its time; other routes keep their connections; nothing piles up."""
    rotated, steady = peers.recorder(), peers.recorder()
    volume = SecretVolume(tmp_path / "secret", pem(pki.ca.caller("0")))
    running = sidecar(
        route("one", rotated, trust=pki.trust, credential="me"),
        route("two", steady, trust=pki.trust, credential="alice"),
        credentials={"me": volume.config, **pki.credentials},
    )
    turn = _Rotation(running, volume, pki)
    ways: list[Callable[[], None]] = [
        turn.by_post,
        turn.by_signal,
        turn.with_nothing_new,
        turn.by_post,
        turn.with_a_bad_config,
        turn.by_signal,
        turn.with_another_config,
    ]
    count = rounds(50, 1000)
    sizes = []
    with (
        Load(running.listener, "one.test", lambda: (turn.in_force, turn.written)) as load,
        Load(running.listener, "two.test", keep_alive=1, one_by_one=1) as other,
    ):
        for number in range(count):
            if number == count // 5:
                sizes.append((running.resident(), running.descriptors()))
            (turn.by_itself if number % 25 == 10 else ways[number % len(ways)])()
            load.wait_for_more(4)
        other.wait_for_more(4)
        sizes.append((running.resident(), running.descriptors()))

    assert load.failed == []
    assert other.failed == []
    seen = Counter(request.target for request in rotated.requests)
    assert seen == Counter(made.name for made in load.made)  # each once
    assert Counter(request.target for request in steady.requests) == Counter(made.name for made in other.made)
    assert {request.subject for request in steady.requests} == {"alice"}
    subjects = {request.target: int(request.subject or -1) for request in rotated.requests}
    strangers = [made for made in load.made if not made.before <= subjects[made.name] <= made.after]
    assert strangers == []
    assert steady.connections <= 2  # as many as calls at once
    assert len(set(subjects.values())) > count // 2  # the load did see the rotations
    (memory, descriptors), (memory_after, descriptors_after) = sizes
    print(
        f"{count} rounds, {turn.written} certificates, {len(load.made) + len(other.made)} calls, 0 lost; "
        f"memory {memory / 1e6:.1f}, then {memory_after / 1e6:.1f} MB; "
        f"open files {descriptors}, then {descriptors_after}"
    )
    assert memory_after - memory < 10e6
    assert descriptors_after <= descriptors + 12  # what the callers have open differs from moment to moment
