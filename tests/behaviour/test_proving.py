"""A new certificate is proven by real handshakes before calls are made with it; calls go on all the while."""

from __future__ import annotations

import datetime
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.certs import DAY, Authority, Leaf, Pki, write_private
from support.clients import Answer, Caller
from support.lengths import rounds
from support.peers import Peer, Peers, TlsVersion
from support.recorder import TlsRecorder
from support.sidecar import Sidecar, StartSidecar, route

HELD = "sidecert_credential_held_back"


class Rotating:
    """A running sidecar whose credential `me` lies in files that are put in place anew."""

    def __init__(self, start: StartSidecar, folder: Path, first: Leaf, *routes: Any, **rest: Any) -> None:
        self.folder = folder
        files = first.write(folder, "me")
        self.sidecar: Sidecar = start(*routes, credentials={"me": {**files.config, **rest}})

    def rotate(self, leaf: Leaf, expect: int = 200) -> Answer:
        leaf.write(self.folder, "me")
        return self.reload(expect)

    def reload(self, expect: int = 200) -> Answer:
        answer = self.sidecar.ask_admin("POST", "/-/reload")
        assert answer.status == expect, answer.text
        return answer

    def change(self, change: Callable[[dict[str, Any]], object]) -> Answer:
        """Reloads a config that `change` has changed."""
        found = yaml.safe_load(self.sidecar.path.read_text())
        change(found)
        self.sidecar.rewrite(found)
        return self.reload()

    def proofs(self) -> dict[str, float]:
        """By result, those that are not 0."""
        return {
            dict(labels)["result"]: value
            for (name, labels), value in self.sidecar.metrics().items()
            if name == "sidecert_credential_proofs_total" and value
        }

    @property
    def held_back(self) -> float | None:
        return self.sidecar.metric(HELD, credential="me")

    def in_force(self, leaf: Leaf) -> bool:
        """Whether the metrics describe this certificate."""
        labels = {"fingerprint": leaf.fingerprint, "serial": _serial(leaf)}
        until = self.sidecar.metric("sidecert_credential_not_after_timestamp_seconds", credential="me")
        told = until == leaf.certificate.not_valid_after_utc.timestamp()
        return told and self.sidecar.metric("sidecert_credential_info", credential="me", **labels) == 1


def _serial(leaf: Leaf) -> str:
    digits = f"{leaf.certificate.serial_number:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


@contextmanager
def calls_going_on(running: Sidecar, host: str = "one.test") -> Iterator[list[Answer]]:
    """Three callers that call again and again; at the end, each call must have been answered with 200."""
    answers: list[Answer] = []
    stop = threading.Event()
    going = threading.Semaphore(0)
    trouble: list[BaseException] = []

    def go_on() -> None:
        try:
            with Caller(running.listener) as caller:
                while not stop.is_set():
                    answers.append(caller.get(f"http://{host}/"))
                    going.release()
        except BaseException as error:
            trouble.append(error)
            going.release()

    threads = [threading.Thread(target=go_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        going.acquire()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not trouble
    assert {answer.status for answer in answers} == {200}


def held_problem(answer: Answer) -> dict[str, Any]:
    """The one warning that tells of a certificate that is held back."""
    (problem,) = [each for each in answer.json()["problems"] if "held back" in each["wrong"]]
    assert problem["warning"]
    assert problem["path"] == "credentials.me"
    assert problem["right"]
    return dict(problem)


def upstream(kind: str, tls: TlsVersion, peers: Peers) -> Peer | TlsRecorder:
    return peers.haproxy(tls=tls) if kind == "haproxy" else peers.recorder(tls=tls)


def seen_by(peer: Peer | TlsRecorder) -> set[str | None]:
    """The subjects of all callers that the upstream has seen."""
    if isinstance(peer, TlsRecorder):
        return {each.subject for each in peer.requests}
    return {each.subject for each in peer.arrivals()}


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("kind", ["python", "haproxy"])
def test_certificate_that_is_refused_is_held_back_and_a_good_one_taken(
    kind: str, tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Calls go on under the one before without a failure; log, metrics, status page and reload tell why."""
    peer = upstream(kind, tls, peers)
    first, strange, good = pki.ca.caller("first"), pki.other_ca.caller("strange"), pki.ca.caller("good")
    one = Rotating(sidecar, tmp_path / "me", first, route("one", peer, trust=pki.trust, credential="me"))
    running = one.sidecar
    assert one.proofs() == {}  # nothing is proven at the start
    with calls_going_on(running) as answers:
        problem = held_problem(one.rotate(strange))
        assert f"{peer.address} refuses it (client_cert_" in problem["wrong"]
        assert one.held_back == 1
        assert one.proofs() == {"refused": 1}
        assert one.in_force(first)
        assert running.metric("sidecert_config_generation") == 2
        (told,) = running.events("credential_held_back")
        assert (told["route"], told["upstream"], told["credential"]) == ("one", peer.address, "me")
        assert told["outcome"] == "client_cert_unknown_ca"
        assert told["evidence"]
        assert told["remedy"]
        assert told["in_force_until"]
        page = running.ask_admin("GET", "/").text
        assert "newer one held back" in page
        enough = len(answers) + 20
        running.wait_for(lambda: len(answers) >= enough)
        assert running.outcomes("one").keys() == {"ok", "client_cert_unknown_ca"}
        assert one.rotate(good).json()["problems"] == []
        assert one.held_back == 0
        assert one.proofs() == {"refused": 1, "accepted": 1}
        assert one.in_force(good)
        assert running.events("credential_proven")
        enough = len(answers) + 20
        running.wait_for(lambda: len(answers) >= enough)
    assert seen_by(peer) == {"first", "good"}  # never strange, nor anything else
    assert running.outcomes("one")["client_cert_unknown_ca"] == 1  # the proof, and no call


@pytest.mark.long_form(seconds=300)
def test_no_call_is_lost_however_often_good_and_refused_certificates_take_turns(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Under load, with both TLS versions: calls go out under the last certificate that was accepted."""
    old, new = peers.recorder(tls="1.2"), peers.recorder(tls="1.3")
    routes = [route(name, peer, trust=pki.trust, credential="me") for name, peer in (("a", old), ("b", new))]
    one = Rotating(sidecar, tmp_path / "me", pki.ca.caller("good0"), *routes)
    many = rounds(4, 200)
    with calls_going_on(one.sidecar, "a.test") as a, calls_going_on(one.sidecar, "b.test") as b:
        for number in range(1, many + 1):
            held_problem(one.rotate(pki.other_ca.caller(f"strange{number}")))
            one.rotate(pki.ca.caller(f"good{number}"))
            assert one.held_back == 0
            for host, peer in (("a", old), ("b", new)):
                before = len(peer.requests)
                assert one.sidecar.get(f"http://{host}.test/after/{number}").status == 200
                (ours,) = [each for each in peer.requests[before:] if each.target == f"/after/{number}"]
                assert ours.subject == f"good{number}"
    calls = len(a) + len(b)
    print(f"{many} refused and {many} good certificates, {calls} calls, none lost")
    expected = {f"good{number}" for number in range(many + 1)}
    assert seen_by(old) | seen_by(new) <= expected
    assert one.proofs() == {"refused": 2 * many, "accepted": 2 * many}


def test_all_else_of_the_reload_takes_effect(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Other routes, and other settings of the routes with the credential that is held back."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    strange.write(one.folder, "me")

    def change(found: dict[str, Any]) -> None:
        found["routes"][0]["upstream"]["timeouts"] = {"response": "7s"}
        found["credentials"]["bob"] = pki.bob.config
        found["routes"].append(route("two", recorder, trust=pki.trust, credential="bob"))

    held_problem(one.change(change))
    for host in ("one.test", "two.test"):
        assert one.sidecar.get(f"http://{host}/").status == 200
    assert [each.subject for each in recorder.requests] == ["first", "bob"]
    assert one.sidecar.metric("sidecert_config_generation") == 2


@pytest.mark.parametrize("change", ["a route leads elsewhere", "a route is new"])
def test_certificate_before_is_never_shown_where_no_config_has_sent_it(
    sidecar: StartSidecar, recorder: TlsRecorder, peers: Peers, pki: Pki, tmp_path: Path, change: str
) -> None:
    """The new config has the new certificate for that place, and the old one did not have the place: it gets
    the new one or nothing, although it refuses that and would take the one before."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    one = Rotating(sidecar, tmp_path / "me", first, route("one", recorder, trust=pki.trust, credential="me"))
    other = peers.recorder()
    there = route("two", other, trust=pki.trust, credential="me")
    strange.write(one.folder, "me")
    if change == "a route is new":
        answer = one.change(lambda found: found["routes"].append(there))
    else:
        answer = one.change(lambda found: found.update(routes=[there | {"id": "one"}]))
    assert answer.status == 200
    assert one.sidecar.get("http://two.test/").json()["outcome"] == "client_cert_unknown_ca"
    assert one.in_force(strange)
    assert one.held_back == 0
    assert other.requests == []


def test_connections_of_a_credential_that_is_held_back_stay(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Nothing has changed for its routes."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    assert one.sidecar.get("http://one.test/").status == 200
    held_problem(one.rotate(strange))
    assert one.sidecar.get("http://one.test/").status == 200
    before, after = (each.connection for each in recorder.requests)
    assert before == after


def test_each_reload_tries_again(sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """Here the upstream learns to trust the new issuer in between."""
    both = write_private(tmp_path / "both.pem", pki.trust.read_bytes())
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    contexts: list[Any] = []
    peer = peers.recorder(trust=both, configure=contexts.append)
    one = Rotating(sidecar, tmp_path / "me", first, route("one", peer, trust=pki.trust, credential="me"))
    held_problem(one.rotate(strange))
    held_problem(one.reload())
    assert one.proofs() == {"refused": 2}
    contexts[0].load_verify_locations(pki.other_trust)
    assert one.reload().json()["problems"] == []
    assert one.proofs() == {"refused": 2, "accepted": 1}
    assert one.in_force(strange)
    assert one.sidecar.get("http://one.test/").status == 200
    assert seen_by(peer) == {"strange"}


def test_file_that_goes_back_to_the_certificate_in_force_is_not_held_back(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """There is nothing to prove, and nothing is tried again."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    held_problem(one.rotate(strange))
    assert one.rotate(first).json()["problems"] == []
    assert one.held_back == 0
    assert one.proofs() == {"refused": 1}


@pytest.mark.parametrize("trouble", ["unreachable", "silent", "asks-for-none", "sends-no-ticket"])
def test_certificate_that_cannot_be_proven_is_taken(
    trouble: str, sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Not reached, no answer in time, no question for a certificate, no verdict: `unproven`, and logged."""

    def no_tickets(context: Any) -> None:
        context.num_tickets = 0

    peer = {
        "unreachable": peers.closed_port,
        "silent": peers.silent,
        "asks-for-none": lambda: peers.recorder(verify="off"),
        "sends-no-ticket": lambda: peers.recorder(tls="1.3", configure=no_tickets),
    }[trouble]()
    words = {
        "unreachable": "connect_refused",
        "silent": "handshake_timeout",
        "asks-for-none": "it asks for no certificate in the handshake",
        "sends-no-ticket": "undecided",
    }[trouble]
    first, good = pki.ca.caller("first"), pki.ca.caller("good")
    settings = route("one", peer, trust=pki.trust, credential="me", timeouts={"handshake": "700ms"})
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    assert one.rotate(good).json()["problems"] == []
    assert one.proofs() == {"unproven": 1}
    assert one.in_force(good)
    (told,) = one.sidecar.events("credential_unproven")
    assert told["unproven"] == [f"{peer.address}: {words}"]


def test_route_that_never_worked_keeps_no_certificate_from_the_others(
    sidecar: StartSidecar, recorder: TlsRecorder, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """Its upstream refuses the certificate before as well: that proves nothing about the new one."""
    never = peers.recorder(trust=pki.other_trust)
    first, good = pki.ca.caller("first"), pki.ca.caller("good")
    one = Rotating(
        sidecar,
        tmp_path / "me",
        first,
        route("never", never, trust=pki.trust, credential="me"),
        route("one", recorder, trust=pki.trust, credential="me"),
    )
    assert one.rotate(good).json()["problems"] == []
    assert one.proofs() == {"unproven": 1, "accepted": 1}
    assert one.in_force(good)
    (told,) = one.sidecar.events("credential_unproven")
    assert told["unproven"] == [
        f"{never.address}: client_cert_unknown_ca, and client_cert_unknown_ca with the one before"
    ]


def test_one_upstream_that_refuses_is_enough(
    sidecar: StartSidecar, recorder: TlsRecorder, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """The credential is one: all of its routes keep the certificate before; another credential does not."""
    lenient = peers.recorder(verify="on", trust=_both(pki, tmp_path))
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    one = Rotating(
        sidecar,
        tmp_path / "me",
        first,
        route("lenient", lenient, trust=pki.trust, credential="me"),
        route("one", recorder, trust=pki.trust, credential="me"),
    )
    problem = held_problem(one.rotate(strange))
    assert recorder.address in problem["wrong"]
    for host in ("lenient", "one"):
        assert one.sidecar.get(f"http://{host}.test/").status == 200
    assert seen_by(lenient) | seen_by(recorder) == {"first"}
    assert one.proofs() == {"accepted": 1, "refused": 1}


def _both(pki: Pki, folder: Path) -> Path:
    return write_private(folder / "both.pem", pki.trust.read_bytes() + pki.other_trust.read_bytes())


def test_new_certificate_is_taken_the_moment_the_one_before_expires(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """By itself: an expired certificate is worse than a refused one. Here its chain does."""
    kept, strange = pki.ca.caller("kept"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", kept, settings)
    running = one.sidecar
    seconds = 3
    while True:
        between = Authority("soon over", parent=pki.ca, ends=datetime.timedelta(seconds=seconds))
        brief, until = between.caller("brief"), between.certificate.not_valid_after_utc
        if one.rotate(brief).json()["problems"] == [] and one.in_force(brief):
            held = [each for each in one.rotate(strange).json()["problems"] if "held back" in each["wrong"]]
            if held:
                break
        seconds *= 2  # the machine is too busy for so brief a life
        assert seconds < 60
        one.rotate(kept)
    assert running.get("http://one.test/").status == 200
    running.wait_for(lambda: one.held_back == 0, seconds + 5)
    assert time.time() >= until.timestamp()
    assert one.in_force(strange)
    assert running.get("http://one.test/").header("Sidecert-Outcome") == "client_cert_unknown_ca"
    assert running.events("credential_unproven")[-1]["unproven"] == ["the certificate before has expired"]
    assert running.metric("sidecert_config_last_reload_successful") == 1


def test_prove_false_takes_the_new_certificate_at_once(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """Without a handshake, whoever may refuse it."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings, prove=False)
    assert one.rotate(strange).json()["problems"] == []
    assert one.in_force(strange)
    assert one.proofs() == {}
    assert recorder.connections == 0


def test_upstreams_that_only_callers_name_are_not_proven_nor_those_of_new_routes(
    sidecar: StartSidecar, recorder: TlsRecorder, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """A wildcard's host is not known, and a new route has no calls that could be lost."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    wild = route("wild", recorder, trust=pki.trust, credential="me", host="*.wild.test")
    del wild["upstream"]["host"]
    one = Rotating(sidecar, tmp_path / "me", first, wild)
    strange.write(one.folder, "me")
    new = route("new", recorder, trust=pki.trust, credential="me")
    assert one.change(lambda found: found["routes"].append(new)).json()["problems"] == []
    assert one.in_force(strange)
    assert one.proofs() == {}
    assert recorder.connections == 0


@pytest.mark.parametrize(
    ("wrong", "tls"),
    [("another CA", "1.2"), ("another CA", "1.3"), ("not valid yet", "1.3"), ("not for callers", "1.2")],
)
def test_certificate_that_nginx_lets_pass_and_then_refuses_is_held_back(
    wrong: str, tls: TlsVersion, sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """nginx takes any certificate in the handshake. What can be told without it counts: the CAs that it
    lists, the dates, what the certificate is for; nothing of this speaks against the one before."""
    first = pki.ca.caller("first")
    bad, words = {
        "another CA": (lambda: pki.other_ca.caller("bad"), "nor one of the CAs that the upstream lists"),
        "not valid yet": (lambda: pki.ca.caller("bad", starts=DAY), "is not valid before"),
        "not for callers": (lambda: pki.ca.peer("bad"), "its extendedKeyUsage is serverAuth"),
    }[wrong]
    peer = peers.nginx(tls=tls)
    one = Rotating(sidecar, tmp_path / "me", first, route("one", peer, trust=pki.trust, credential="me"))
    problem = held_problem(one.rotate(bad()))
    assert words in problem["wrong"]
    assert "lets both pass in the handshake" in problem["wrong"]
    assert one.proofs() == {"unproven": 1}  # nobody has refused it
    assert one.held_back == 1
    (told,) = one.sidecar.events("credential_held_back")
    assert words in told["cause"]
    assert words in told["evidence"][0]
    assert one.sidecar.get("http://one.test/").status == 200
    good = pki.ca.caller("good")
    assert one.rotate(good).json()["problems"] == []
    assert one.proofs() == {"unproven": 1, "accepted": 1}
    assert one.in_force(good)


def test_certificate_is_taken_where_the_upstream_lists_the_ca_of_neither(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """A list need not be whole, or the route has never worked: that is told, and holds nothing back."""
    first, good = pki.ca.caller("first"), pki.ca.caller("good")
    peer = peers.nginx(trust=pki.other_trust)
    one = Rotating(sidecar, tmp_path / "me", first, route("one", peer, trust=pki.trust, credential="me"))
    assert one.rotate(good).json()["problems"] == []
    assert one.proofs() == {"unproven": 1}
    assert one.in_force(good)
    (told,) = one.sidecar.events("credential_unproven")
    (why,) = told["unproven"]
    assert why.startswith(f"{peer.address}: it lets the handshake pass, but the certificate comes from CN=")
    assert "nor one of the CAs that the upstream lists" in why


def test_whoever_hears_of_a_certificate_held_back_hears_of_the_restart_and_of_what_differs(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """A restart takes the files as they are; the issuers are what one looks at first."""
    first, strange = pki.ca.caller("first"), pki.other_ca.caller("strange")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    problem = held_problem(one.rotate(strange))
    (told,) = one.sidecar.events("credential_held_back")
    page = one.sidecar.ask_admin("GET", "/").text
    restart, issuers = (
        "restart",
        "The one before was issued by CN=sidecert test root, the new one by",
    )
    assert restart in problem["wrong"]
    assert restart in told["message"]
    assert restart in page
    assert problem["right"].startswith(f"{issuers} CN=sidecert other root")
    assert told["remedy"] == problem["right"]
    assert issuers in page
    files = yaml.safe_load(one.sidecar.path.read_text())["credentials"]["me"]
    again = sidecar(settings, credentials={"me": files})  # so it does
    assert again.get("http://one.test/").header("Sidecert-Outcome") == "client_cert_unknown_ca"


@pytest.mark.parametrize("kind", ["refused", "accepted"])
def test_nothing_is_told_of_a_certificate_that_does_not_come_into_force(
    kind: str, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """It is proven, and then the reload fails at the address of a listener: neither log, gauge nor status
    page speak of what has not happened. Once it does, they do."""
    first = pki.ca.caller("first")
    new = pki.other_ca.caller("new") if kind == "refused" else pki.ca.caller("new")
    settings = route("one", recorder, trust=pki.trust, credential="me")
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    good = one.sidecar.path.read_text()
    taken = yaml.safe_load(good)
    taken["listeners"].append({"bind": recorder.address})
    one.sidecar.rewrite(taken)
    problems = one.rotate(new, expect=422).json()["problems"]
    assert [each["path"] for each in problems] == ["listeners[1].bind"]
    assert one.proofs() == {kind: 1}
    assert one.held_back == 0
    assert one.in_force(first)
    assert "newer one held back" not in one.sidecar.ask_admin("GET", "/").text
    events = ("credential_held_back", "credential_proven", "credential_unproven")
    assert not [told for event in events for told in one.sidecar.events(event)]
    one.sidecar.rewrite(good)
    one.reload()
    expected = "credential_held_back" if kind == "refused" else "credential_proven"
    assert [len(one.sidecar.events(event)) for event in events] == [int(each == expected) for each in events]


def test_end_of_the_sidecar_does_not_wait_for_proofs(
    sidecar: StartSidecar, peers: Peers, pki: Pki, tmp_path: Path
) -> None:
    """SIGTERM while an upstream lets a proof wait: the drain begins at once."""
    silent = peers.silent()
    first, good = pki.ca.caller("first"), pki.ca.caller("good")
    settings = route("one", silent, trust=pki.trust, credential="me", timeouts={"handshake": "60s"})
    one = Rotating(sidecar, tmp_path / "me", first, settings)
    good.write(one.folder, "me")
    one.sidecar.signal(signal.SIGHUP)
    one.sidecar.wait_for(lambda: _is_connected(one.sidecar, silent))
    began = time.monotonic()
    one.sidecar.stop()
    assert time.monotonic() - began < 8  # the limit of all proofs is 10 s


def _is_connected(running: Sidecar, peer: Peer | TlsRecorder) -> bool:
    """Whether there is an established connection to `peer`, by the kernel's table."""
    port = f":{peer.port:04X}"
    rows = [
        line.split() for line in Path(f"/proc/{running.process.pid}/net/tcp").read_text().splitlines()[1:]
    ]
    return any(row[2].endswith(port) and row[3] == "01" for row in rows)
