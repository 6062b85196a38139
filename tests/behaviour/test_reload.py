"""Reloads: by SIGHUP and by the admin endpoint; the new config whole, or the old one as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import StartSidecar
from support.certs import Files, Pki
from support.clients import Answer, Caller, call, connect
from support.peers import Peers
from support.recorder import TlsRecorder, fixed, gated
from support.sidecar import Sidecar, config, route


def _config(sidecar: Sidecar) -> dict[str, Any]:
    found = yaml.safe_load(sidecar.path.read_text())
    assert isinstance(found, dict)
    return found


def _reload(sidecar: Sidecar) -> Answer:
    return sidecar.ask_admin("POST", "/-/reload")


def _copy(files: Files, folder: Path) -> Files:
    """Over what is there by the same names."""
    copied = Files(folder / "me.certificate", folder / "me.key")
    shutil.copy(files.certificate, copied.certificate)
    shutil.copy(files.key, copied.key)
    return copied


def _hang_up(sidecar: Sidecar, event: str) -> None:
    """SIGHUP, and wait until the log says what came of it."""
    before = len(sidecar.events(event))
    sidecar.signal(signal.SIGHUP)
    sidecar.wait_for(lambda: len(sidecar.events(event)) > before)


def test_sighup_puts_a_new_route_in_force(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """The next call goes by it, and the generation counts up."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    assert running.get("http://two.test/").status == 403
    text = _config(running)
    text["routes"].append(route("two", recorder, trust=pki.trust, credential="bob"))
    running.rewrite(text)
    _hang_up(running, "reloaded")
    assert running.get("http://two.test/").status == 200
    assert recorder.requests[0].subject == "bob"
    assert running.metric("sidecert_config_generation") == 2
    assert running.metric("sidecert_config_reloads_total", result="ok") == 1
    assert running.metric("sidecert_config_last_reload_successful") == 1


def test_a_failed_reload_keeps_the_old_generation(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """It goes on serving and stays ready; every problem is logged once, and counted as one failure."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    text = _config(running)
    text["routes"][0]["credential"] = "nobody"
    text["credentials"]["bob"]["key"] = "missing.key"
    running.rewrite(text)
    _hang_up(running, "reload_failed")
    assert running.get("http://one.test/").status == 200
    assert running.ask_admin("GET", "/-/ready").status == 200
    assert running.metric("sidecert_config_generation") == 1
    assert running.metric("sidecert_config_reloads_total", result="failed") == 1
    assert running.metric("sidecert_config_last_reload_successful") == 0
    keys = [record["key"] for record in running.events("config_problem")]
    assert sorted(keys) == ["credentials.bob.key", "routes[0].credential"]
    assert all(record["line"] for record in running.events("config_problem"))


def test_the_admin_endpoint_reloads_and_tells_every_problem(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """200 where it was taken over, 422 where not; once it is right again, it is taken over."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    good = _config(running)
    running.rewrite({**good, "colour": "blue", "shape": "round"})
    answer = _reload(running)
    assert answer.status == 422
    assert {problem["path"] for problem in answer.json()["problems"]} == {"colour", "shape"}
    running.rewrite(good)
    answer = _reload(running)
    assert (answer.status, answer.json()["ok"], answer.json()["generation"]) == (200, True, 2)


def test_config_with_countless_problems_is_told_in_brief(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """5 kB of YAML with aliases: neither the answer nor the log has tens of thousands of them."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    unknown = ", ".join(f"a{number}: 1" for number in range(300))
    running.rewrite(f"version: 1\nx: &u {{{unknown}}}\nroutes:\n" + "- {match: *u}\n" * 200)
    problems = _reload(running).json()["problems"]
    assert len(problems) == len(running.events("config_problem")) == 201
    assert "more problems" in problems[-1]["text"]
    assert running.get("http://one.test/").status == 200


def test_a_rotated_certificate_is_used_after_a_reload(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """The same path with another file: no connection made under the old one serves a new call."""
    files = _copy(pki.alice, tmp_path)
    running = sidecar(
        route("one", recorder, trust=pki.trust, credential="me"), credentials={"me": files.config}
    )
    assert running.get("http://one.test/").status == 200
    _copy(pki.bob, tmp_path)
    assert _reload(running).status == 200
    assert running.get("http://one.test/").status == 200
    assert [seen.subject for seen in recorder.requests] == ["alice", "bob"]


def test_half_a_rotation_changes_nothing(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """A certificate that came before its key does not match it: the old pair goes on."""
    files = _copy(pki.alice, tmp_path)
    running = sidecar(
        route("one", recorder, trust=pki.trust, credential="me"), credentials={"me": files.config}
    )
    shutil.copy(pki.bob.certificate, files.certificate)
    assert _reload(running).status == 422
    assert running.get("http://one.test/").status == 200
    assert recorder.requests[0].subject == "alice"


def test_a_call_in_flight_survives_a_reload(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """Even of a route that the reload removes."""
    gate = threading.Event()
    recorder.answer = gated(gate, b"first", b"last")
    running = sidecar(route("one", recorder, trust=pki.trust), route("two", recorder, trust=pki.trust))
    with Caller(running.listener) as caller:
        caller.connection.request("GET", "http://one.test/")
        response = caller.connection.getresponse()
        assert response.read(5) == b"first"
        text = _config(running)
        del text["routes"][0]
        running.rewrite(text)
        assert _reload(running).status == 200
        gate.set()
        assert response.read() == b"last"
    recorder.answer = fixed()
    assert running.get("http://one.test/").status == 403


def test_connections_of_an_unchanged_route_stay(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A reload closes the idle connections of what it changed, and no others."""
    running = sidecar(route("one", recorder, trust=pki.trust), route("two", recorder, trust=pki.trust))
    for host in ("one", "two"):
        assert running.get(f"http://{host}.test/").status == 200
    text = _config(running)
    text["routes"][1]["upstream"]["timeouts"] = {"response": "7s"}
    running.rewrite(text)
    assert _reload(running).status == 200
    for host in ("one", "two"):
        assert running.get(f"http://{host}.test/").status == 200
    first, second, again, anew = [seen.connection for seen in recorder.requests]
    assert again == first
    assert anew not in (first, second)


def test_listeners_come_and_go_with_a_reload(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """New ones open, removed ones close, and what stays does not miss a call: its connections live on."""
    path = tmp_path / "in.sock"
    running = sidecar(
        route("one", recorder, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0"}, {"bind": "127.0.0.2:0"}]
    )
    removed = running.addresses["127.0.0.2:0"]
    with Caller(running.listener) as caller:
        assert caller.get("http://one.test/").status == 200
        text = _config(running)
        text["listeners"] = [{"bind": "127.0.0.1:0"}, {"bind": f"unix:{path}"}]
        running.rewrite(text)
        assert _reload(running).status == 200
        assert caller.get("http://one.test/").status == 200
    assert running.get("http://one.test/").status == 200
    assert call(str(path), "GET", "http://one.test/").status == 200
    with pytest.raises(ConnectionRefusedError):
        connect(removed)


def test_connection_of_a_removed_listener_is_served_by_no_rules_of_the_past(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Nor where the address comes back with other rules; what was under way is answered."""
    listeners = [{"bind": "127.0.0.1:0"}, {"bind": "127.0.0.2:0", "route": "one", "allow": ["127.0.0.0/8"]}]
    running = sidecar(route("one", recorder, trust=pki.trust), listeners=listeners)
    gate = threading.Event()
    with Caller(running.addresses["127.0.0.2:0"]) as idle, Caller(running.addresses["127.0.0.2:0"]) as busy:
        assert idle.get("/").status == 200
        recorder.answer = gated(gate, b"first", b"last")
        busy.connection.request("GET", "/")
        response = busy.connection.getresponse()
        assert response.read(5) == b"first"
        text = _config(running)
        running.rewrite({**text, "listeners": listeners[:1]})
        assert _reload(running).status == 200
        gate.set()
        assert response.read() == b"last"
        recorder.answer = fixed()
        running.rewrite(text)
        assert _reload(running).status == 200
        for caller in (idle, busy):
            refused = caller.get("/")
            assert refused.status == 403
            assert "has been removed" in refused.json()["detail"]
    assert len(recorder.requests) == 2


def test_config_that_becomes_a_pipe_holds_no_reload_up(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """It would be read for ever; once it is a file again, it is read."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    text = running.path.read_text()
    running.path.unlink()
    os.mkfifo(running.path)
    answer = _reload(running)
    assert answer.status == 422
    assert "named pipe" in answer.json()["problems"][0]["wrong"]
    assert running.get("http://one.test/").status == 200
    running.path.unlink()
    running.path.write_text(text)
    assert _reload(running).status == 200


def test_config_that_is_gone_is_asked_back(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """Not by the words for a start, where another name may have been meant: calls go on without it."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    text = running.path.read_text()
    running.path.unlink()
    answer = _reload(running)
    assert answer.status == 422
    (problem,) = answer.json()["problems"]
    assert problem["wrong"] == "the config file is gone"
    assert "put it back" in problem["right"]
    assert running.get("http://one.test/").status == 200
    running.path.write_text(text)
    assert _reload(running).status == 200


def test_a_unix_socket_whose_file_was_removed_is_bound_again(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """By a reload, whatever else changed; who was connected stays a caller of the same listener."""
    path = tmp_path / "in.sock"
    running = sidecar(route("one", recorder, trust=pki.trust), listeners=[{"bind": f"unix:{path}"}])
    with Caller(str(path)) as caller:
        assert caller.get("http://one.test/").status == 200
        path.unlink()
        text = _config(running)
        text["listeners"][0]["mode"] = "0600"
        running.rewrite(text)
        assert _reload(running).status == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert call(str(path), "GET", "http://one.test/").status == 200
        assert caller.get("http://one.test/").status == 200
    running.stop()
    assert not path.exists()


def test_a_unix_socket_that_another_program_has_taken_fails_the_reload(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Its file is left alone, and who was connected is served on."""
    path = tmp_path / "in.sock"
    running = sidecar(route("one", recorder, trust=pki.trust), listeners=[{"bind": f"unix:{path}"}])
    with Caller(str(path)) as caller, socket.socket(socket.AF_UNIX) as other:
        assert caller.get("http://one.test/").status == 200
        path.unlink()
        other.bind(str(path))
        other.listen()
        answer = _reload(running)
        assert answer.status == 422
        assert "another program listens" in answer.json()["problems"][0]["wrong"]
        assert caller.get("http://one.test/").status == 200
        assert path.exists()


def test_an_address_that_cannot_be_had_fails_the_whole_reload(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, peers: Peers
) -> None:
    """No half of a config is ever in force: the new route is not either."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    text = _config(running)
    text["listeners"].append({"bind": recorder.address})
    text["routes"].append(route("two", recorder, trust=pki.trust))
    running.rewrite(text)
    answer = _reload(running)
    assert answer.status == 422
    assert [problem["path"] for problem in answer.json()["problems"]] == ["listeners[1].bind"]
    assert running.get("http://one.test/").status == 200
    assert running.get("http://two.test/").status == 403


def test_an_address_that_becomes_free_is_taken_by_itself(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """And with it the certificate that was rotated at that time: no file will change once more for it."""
    files = pki.ca.caller("first").write(tmp_path, "me")
    running = sidecar(
        route("one", recorder, trust=pki.trust, credential="me"), credentials={"me": files.config}
    )
    with socket.create_server(("127.0.0.3", 0)) as taken:
        text = _config(running)
        text["listeners"].append({"bind": f"127.0.0.3:{taken.getsockname()[1]}"})
        running.rewrite(text)
        pki.ca.caller("second").write(tmp_path, "me")
        assert _reload(running).status == 422
    running.wait_for(lambda: running.metric("sidecert_config_generation") == 2, 20)
    assert running.get("http://one.test/").status == 200
    assert recorder.requests[-1].subject == "second"
    assert running.metric("sidecert_config_reloads_total", result="failed") == 1


def test_a_kept_connection_follows_its_listeners_new_pin(
    sidecar: StartSidecar, peers: Peers, pki: Pki
) -> None:
    """A pin that a reload moves holds for the next call on a connection that is open, too."""
    first, second = peers.recorder(answer=fixed(b"first")), peers.recorder(answer=fixed(b"second"))
    running = sidecar(
        route("one", first, trust=pki.trust), listeners=[{"bind": "127.0.0.1:0", "route": "one"}]
    )
    with Caller(running.listener) as caller:
        assert caller.get("/").body == b"first"
        text = _config(running)
        text["listeners"][0]["route"] = "two"
        text["routes"] = [route("two", second, trust=pki.trust, credential="bob")]
        running.rewrite(text)
        assert _reload(running).status == 200
        assert caller.get("/").body == b"second"


def test_a_kept_connection_may_name_the_address_that_it_called_once_its_listener_is_pinned(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """A listener on all addresses takes each of them as its own name: also on a connection made before."""
    everywhere: dict[str, Any] = {"bind": "0.0.0.0:0", "allow": ["127.0.0.0/8"]}
    running = sidecar(route("one", recorder, trust=pki.trust), listeners=[everywhere])
    _, port = running.listener
    with Caller(("127.0.0.2", port)) as caller:
        assert caller.get("http://one.test/").status == 200
        text = _config(running)
        text["listeners"] = [{**everywhere, "route": "one"}]
        running.rewrite(text)
        assert _reload(running).status == 200
        assert caller.get("/").status == 200
        assert len(running.events("listening")) == 2  # the admin's and the one: it was kept


def test_moving_the_admin_endpoint_needs_a_restart(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The rest is taken over, with a warning that says so."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    running.rewrite({**_config(running), "admin": {"bind": "127.0.0.2:0"}})
    answer = _reload(running)
    assert answer.status == 200
    (problem,) = answer.json()["problems"]
    assert (problem["path"], problem["warning"]) == ("admin.bind", True)
    assert "restart" in problem["right"]


def test_many_reloads_at_once_all_count(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki) -> None:
    """Those that come while another is under way share the next one, calls go on meanwhile, and
    nothing is left over: no file, no thread."""
    running = sidecar(route("one", recorder, trust=pki.trust))
    _reload(running)
    before = running.descriptors()
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(_reload(running))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert running.get("http://one.test/").status == 200
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200] * 20
    assert 3 <= (running.metric("sidecert_config_generation") or 0) <= 22
    assert running.descriptors() <= before + 4  # the two connections of the call, and of the scrapes


def test_no_secret_is_logged_for_a_config_that_fails(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """A wrong passphrase is said to be wrong, not repeated."""
    files = pki.ca.caller("carol").write(tmp_path, passphrase="right-horse")
    (tmp_path / "pass").write_text("wrong-battery\n")
    running = sidecar(route("one", recorder, trust=pki.trust))
    text = _config(running)
    text["credentials"]["carol"] = {**files.config, "passphrase": {"file": str(tmp_path / "pass")}}
    running.rewrite(text)
    answer = _reload(running)
    assert answer.status == 422
    for said in (running.stderr, json.dumps(answer.json())):
        assert "carol" in said
        assert "battery" not in said
        assert "horse" not in said


def test_sighup_during_the_start_ends_nothing_and_is_made_up_for(
    recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """From the first moment that the kernel keeps it for us; the reload comes as soon as it is ready."""
    starting = Sidecar(tmp_path / "early", config([route("one", recorder, trust=pki.trust)], pki.credentials))
    try:
        starting.wait_for(lambda: _keeps_sighup(starting.process.pid))
        while not starting.events("ready"):
            starting.signal(signal.SIGHUP)
            assert starting.process.poll() is None, starting.stderr
            time.sleep(0.01)
        starting.wait_ready()
        starting.wait_for(lambda: bool(starting.events("reloaded")))
        assert starting.get("http://one.test/").status == 200
        starting.stop()
    finally:
        starting.kill()


def _keeps_sighup(pid: int) -> bool:
    """Whether the process has blocked the signal for the time of its imports (bit 0 is signal 1)."""
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(int(mask, 16) & 1)
