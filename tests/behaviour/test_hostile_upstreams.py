"""A hostile upstream hangs no caller, neither grows nor holds the process, and comes to one outcome."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from sidecert.evidence import alert_name
from sidecert.tls import MOST_AGAIN
from support.certs import Authority, Pki
from support.clients import Answer
from support.hostile import (
    MEGABYTE,
    STAGES,
    TICKET,
    End,
    HostilePeer,
    Stage,
    Villain,
    Wire,
    asks_again,
    breaks_off,
    drips,
    ends,
    floods,
    floods_sealed,
    hostile,
    large_certificate,
    renegotiates,
    says,
    says_hello,
    says_sealed,
    sends_certificates,
    speaks_first,
    truncates,
)
from support.known_keys import (
    ALERT,
    CHANGE_CIPHER,
    DATA,
    HANDSHAKE,
    HELLO_REQUEST,
    KEY_UPDATE,
    SERVER_HELLO,
    alert,
    message,
    record,
)
from support.lengths import rounds
from support.peers import nginx
from support.recorder import TlsVersion
from support.sidecar import NO_CIRCUIT, Sidecar, config, route, running
from support.spoilt_flights import VERSIONS

HANDSHAKE_SECONDS = 0.6
RESPONSE_SECONDS = 1.2
PATIENT_SECONDS = 5.0
TIMEOUTS = {"connect": "600ms", "response": "1200ms", "stall": "1200ms"}
GROWTH = 6 * MEGABYTE
HONEST_SECONDS = 1.0
"""An honest upstream's answer takes some 10 ms; the machine may be busy, but a held loop takes longer."""

TLS_ERROR = frozenset(("tls_error",))
TIMED_OUT = frozenset(("handshake_timeout",))
ENDED = frozenset(("closed_in_handshake",))
REJECTED = frozenset(("client_cert_rejected",))
OK = frozenset(("ok",))
UNDECIDED = frozenset(("undecided",))

UPDATE = message(KEY_UPDATE, b"\0")
UPDATE_BOTH = message(KEY_UPDATE, b"\1")
AGAIN = message(HELLO_REQUEST, b"")
HALF = b"\x16\3\3"


def _random(size: int) -> bytes:
    """Always the same, so that what comes of them is too."""
    return random.Random(size).randbytes(size)


def _of_the_end(stage: Stage, how: End, tls: TlsVersion) -> frozenset[str]:
    """What it means to go no further."""
    over = stage == "finished" and tls == "1.2"
    if over:
        return OK
    if how == "silence":
        # Under TLS 1.3 silence after the handshake is a server's that sends no tickets: the call goes out.
        return TIMED_OUT if stage != "finished" and (stage, tls) != ("flight", "1.3") else UNDECIDED
    return REJECTED if stage in ("flight", "finished") else ENDED


def _ten_megabytes(pki: Pki) -> tuple[x509.Certificate, ...]:
    return (large_certificate(pki, 60_000),) * 170


def _of_one_name(pki: Pki) -> tuple[x509.Certificate, ...]:
    return tuple(Authority("same").certificate for _ in range(150))


VILLAINS = {
    "random-bytes": Villain(says("hello", b"\x80" + _random(4000)), frozenset(("not_tls",))),
    "random-record": Villain(says("hello", HALF + b"\x10\0" + _random(5000)), TLS_ERROR),
    "random-after-server-hello": Villain(says("server hello", _random(4000)), TLS_ERROR),
    "random-after-flight": Villain(says("flight", _random(4000)), TLS_ERROR),
    "random-after-finished": Villain(says("finished", _random(4000)), TLS_ERROR),
    "garbage-record-after-finished": Villain(says("finished", record(DATA, _random(200))), TLS_ERROR),
    "large-record": Villain(says("hello", HALF + b"\x48\0" + bytes(18432)), TLS_ERROR),
    "larger-record": Villain(says("hello", HALF + b"\x48\1" + bytes(18433)), TLS_ERROR),
    "largest-record": Villain(floods("hello", HALF + b"\xff\xff" + bytes(65535)), TLS_ERROR),
    "record-that-never-ends": Villain(says("hello", HALF + b"\x3f\0" + b"\2"), TIMED_OUT),
    "large-record-sealed": Villain(says_sealed("finished", DATA, bytes(16385)), TLS_ERROR),
    "nothing-but-padding": Villain(says_sealed("finished", 0, b"", padding=16000), TLS_ERROR),
    "compressed": Villain(says_hello(1), TLS_ERROR, tls="1.2"),
    "long-hello": Villain(
        floods("hello", record(HANDSHAKE, message(SERVER_HELLO, bytes(16000), (1 << 24) - 1))), TLS_ERROR
    ),
    "empty-records": Villain(floods("hello", record(HANDSHAKE, b"")), TLS_ERROR),
    "empty-records-sealed": Villain(floods_sealed("finished", DATA, b""), TLS_ERROR),
    "change-cipher": Villain(floods("server hello", record(CHANGE_CIPHER, b"\1")), TLS_ERROR),
    "warnings": Villain(floods("hello", record(ALERT, alert(112, 1))), TLS_ERROR),
    "warnings-1.2": Villain(floods("server hello", record(ALERT, alert(112, 1))), TLS_ERROR, tls="1.2"),
    "warnings-sealed-1.2": Villain(
        floods_sealed("finished", ALERT, alert(112, 1)), OK, tls="1.2", after=True
    ),
    "hello-requests": Villain(floods("hello", record(HANDSHAKE, AGAIN)), TIMED_OUT | TLS_ERROR, tls="1.2"),
    "hello-requests-in-records": Villain(
        floods("server hello", record(HANDSHAKE, AGAIN * 4000)), TIMED_OUT | TLS_ERROR, tls="1.2"
    ),
    "hello-requests-sealed": Villain(floods_sealed("finished", HANDSHAKE, AGAIN), OK, tls="1.2", after=True),
    "renegotiations-asked": Villain(renegotiates, OK, tls="1.2", after=True),
    "renegotiations-unasked": Villain(renegotiates, OK, tls="1.2", asks=False, after=True),
    "key-updates": Villain(floods_sealed("finished", HANDSHAKE, UPDATE), TLS_ERROR),
    "key-updates-for-both": Villain(floods_sealed("finished", HANDSHAKE, UPDATE_BOTH), TLS_ERROR),
    "key-updates-unasked": Villain(floods_sealed("finished", HANDSHAKE, UPDATE), OK, asks=False, after=True),
    "tickets": Villain(floods_sealed("finished", HANDSHAKE, TICKET), OK, after=True),
    "tickets-in-records": Villain(floods_sealed("finished", HANDSHAKE, TICKET * 200), OK, after=True),
    "drips": Villain(drips, TIMED_OUT),
    "drips-1.2": Villain(drips, TIMED_OUT, tls="1.2"),
    "asks-again": Villain(asks_again, TLS_ERROR),
    "breaks-off": Villain(breaks_off, OK, tls="1.2", after=True),
    "speaks-first": Villain(speaks_first, OK, after=True),
    "certificate-by-hand": Villain(sends_certificates, TLS_ERROR, tls="1.2"),
    "certificates": Villain(ends("flight", "silence"), TLS_ERROR, chain=_ten_megabytes, slow=True),
    "certificates-1.2": Villain(
        ends("flight", "silence"), TLS_ERROR, tls="1.2", chain=_ten_megabytes, slow=True
    ),
    "certificates-of-one-name": Villain(
        ends("finished", "close"),
        REJECTED,
        chain=_of_one_name,
    ),
    **{
        f"{how}-after-{stage.replace(' ', '-')}-{tls}": Villain(
            ends(stage, how), _of_the_end(stage, how, tls), tls
        )
        for tls in ("1.2", "1.3")
        for stage in ("hello", "server hello", "flight", "finished")
        for how in ("close", "reset", "silence")
    },
    **{
        f"cut-at-{keep}-{tls}": Villain(truncates(keep), ENDED, tls)
        for tls in VERSIONS
        for keep in (0.01, 0.1, 0.5, 0.9)
    },
}


BEGIN_AGAIN = {"hello-requests-sealed", "renegotiations-asked", "renegotiations-unasked"}


@dataclass
class Scene:
    """A sidecar whose routes lead to villains, each to its own, and one to an upstream that is honest."""

    sidecar: Sidecar
    villains: dict[str, Villain]
    peers: dict[str, HostilePeer]

    def call(self, name: str) -> tuple[Answer, float]:
        """The answer to a call of that route, and the seconds it took."""
        began = time.monotonic()
        answer = self.sidecar.get(f"http://{name}.test/")
        return answer, time.monotonic() - began

    def call_honest(self) -> float:
        answer, seconds = self.call("honest")
        assert answer.status == 200
        return seconds

    def limit(self, name: str) -> float:
        """Seconds within which a call of that villain must be answered."""
        villain = self.villains[name]
        # Where it takes the certificate, or may have, the call goes out and waits for its answer.
        waits = villain.after or villain.outcomes <= OK | UNDECIDED
        handshake = PATIENT_SECONDS if villain.slow else HANDSHAKE_SECONDS
        return 1.0 + handshake + (RESPONSE_SECONDS if waits else 0.0)


@contextmanager
def scene(pki: Pki, folder: Path, all_villains: dict[str, Villain]) -> Iterator[Scene]:
    with hostile(pki, all_villains) as peers, nginx(folder / "honest", pki.upstream, pki.trust) as honest:
        every = {**peers, "honest": honest}
        routes = [
            route(
                _id(name),
                peer,
                trust=pki.trust,
                host=f"{name}.test",
                circuit=NO_CIRCUIT,
                timeouts=_timeouts(all_villains.get(name)),
            )
            for name, peer in every.items()
        ]
        with running(folder / "sidecar", config(routes, pki.credentials)) as sidecar:
            yield Scene(sidecar, all_villains, peers)


def _timeouts(villain: Villain | None) -> dict[str, str]:
    seconds = PATIENT_SECONDS if villain is None or villain.slow else HANDSHAKE_SECONDS
    return {**TIMEOUTS, "handshake": f"{seconds * 1000:.0f}ms"}


def _id(name: str) -> str:
    return name.replace(".", "-")


@pytest.fixture(scope="module")
def stage(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(pki, tmp_path_factory.mktemp("hostile"), VILLAINS) as ready:
        yield ready


@pytest.mark.parametrize("name", VILLAINS)
def test_each_comes_to_one_outcome_while_others_are_served(stage: Scene, name: str) -> None:
    """Two calls at once: each attempt is counted once, as what it is, and both are answered in time; calls to
    another upstream are answered meanwhile as if nothing were."""
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(stage.call, name) for _ in range(2)]
        slowest = stage.call_honest()  # one at least, however soon the others are done
        while not all(call.done() for call in calls):
            slowest = max(slowest, stage.call_honest())
    for call in calls:
        answer, seconds = call.result()
        assert answer.status in (502, 504)
        assert seconds < stage.limit(name)
    assert slowest < HONEST_SECONDS
    peer = stage.peers[name]
    counts = stage.sidecar.outcomes(_id(name))
    if name in BEGIN_AGAIN:
        # What they begin on an open connection has outcomes of its own, and is not begun for ever.
        assert counts.keys() <= OK | TLS_ERROR | UNDECIDED
        assert 2 <= peer.connections <= counts["ok"]
        assert sum(counts.values()) <= peer.connections * (1 + MOST_AGAIN + 1)
        return
    assert set(counts) <= stage.villains[name].outcomes
    # A call of which nothing was sent, since its connection ended at once, is tried once more.
    assert 2 <= sum(counts.values()) <= (4 if stage.villains[name].after else 2)
    stage.sidecar.wait_for(lambda: peer.connections == sum(counts.values()))


@pytest.mark.long_form(seconds=900)
def test_none_of_them_makes_the_process_grow(pki: Pki, tmp_path: Path) -> None:
    """Nor keeps a descriptor, however often they come."""
    with scene(pki, tmp_path, VILLAINS) as ready, ThreadPoolExecutor(12) as pool:
        sidecar = ready.sidecar

        def play(times: int) -> None:
            for answer, _ in pool.map(ready.call, [*ready.villains] * times):
                assert answer.status in (502, 504)

        play(4)  # its memory finds its level
        before, descriptors = sidecar.resident(), sidecar.descriptors()
        play(rounds(4, 60))
        assert sidecar.resident() - before < GROWTH
        sidecar.wait_for(lambda: sidecar.descriptors() <= descriptors, why="descriptors were kept")


# Of an upstream that has asked for a certificate; what else they may mean is in the tests of `outcome`.
REFUSALS = {
    40: "client_cert_rejected",
    42: "client_cert_rejected",
    43: "client_cert_unsupported",
    44: "client_cert_revoked",
    45: "client_cert_expired",
    46: "client_cert_rejected",
    48: "client_cert_unknown_ca",
    49: "client_cert_rejected",
    51: "client_cert_rejected",
    116: "client_cert_required",
}
NEVER_REFUSALS = {70: "protocol_mismatch", 71: "no_shared_parameters"}
HARMLESS = (0, 90, 100)
NUMBERS = rounds(
    sorted({*REFUSALS, *NEVER_REFUSALS, *HARMLESS, 10, 20, 47, 50, 80, 112, 120, 5, 255}), range(256)
)
KEYED = (("1.3", "server hello"), ("1.3", "flight"), ("1.3", "finished"), ("1.2", "finished"))
"""Where both ends encrypt, so that an alert in the clear is a forgery."""


class Alerts:
    """The act of one who sends an alert and closes; the next one each time."""

    def __init__(self, at: Stage, sealed: bool) -> None:
        self._at, self._sealed = at, sealed
        self.next = b""

    def __call__(self, wire: Wire) -> None:
        wire.reach(self._at)
        body = self.next
        wire.send(wire.seal(self._at).seal(ALERT, body) if self._sealed else record(ALERT, body))
        wire.close()


@pytest.mark.long_form(seconds=900)
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_any_alert_at_any_point_is_told_as_what_it_is(pki: Pki, tmp_path: Path, sealed: bool) -> None:
    """Fatal ones and warnings; one in the clear where both ends encrypt is nobody's."""
    points = [(tls, at) for tls in VERSIONS for at in STAGES if not sealed or (tls, at) in KEYED]
    acts = {f"{tls}-{at.replace(' ', '-')}": (tls, at, Alerts(at, sealed)) for tls, at in points}
    all_villains = {name: Villain(act, frozenset(), tls) for name, (tls, _, act) in acts.items()}
    with scene(pki, tmp_path, all_villains) as ready:
        for name, (tls, at, act) in acts.items():
            count = 0
            for level, number in ((level, number) for level in (1, 2) for number in NUMBERS):
                act.next = alert(number, level)
                answer, seconds = ready.call(name)
                count += 1
                assert seconds < ready.limit(name)
                _judge_alert(answer, tls, at, sealed, level, number)
            outcomes = ready.sidecar.outcomes(_id(name))
            assert sum(outcomes.values()) == ready.peers[name].connections >= count


def _judge_alert(answer: Answer, tls: str, at: str, sealed: bool, level: int, number: int) -> None:
    assert answer.status == 502
    told = json.loads(answer.body)
    outcome = told["outcome"]
    if (tls, at) == ("1.2", "finished"):
        assert outcome == "upstream_closed"  # the handshake was ok
    elif not sealed and (tls, at) in KEYED:
        assert outcome == "tls_error"
    elif level == 2 and number not in HARMLESS:
        assert any(line.startswith(f"alert {alert_name(number)}") for line in told["evidence"])
        asked = at in ("flight", "finished")
        expected = {**NEVER_REFUSALS, **REFUSALS} if asked else {**NEVER_REFUSALS, 40: "no_shared_parameters"}
        assert outcome == expected.get(number, "tls_error"), (tls, at, number)
