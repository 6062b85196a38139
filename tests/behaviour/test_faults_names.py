"""Names that change, fail, come late or have dead addresses, told by a DNS server of our own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from support.certs import Pki
from support.names import Fault, Names, Place, own_names
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, fixed
from support.sidecar import Sidecar, StartSidecar, route

NAME = "orders.example"
ONE, TWO = "11.0.0.1", "11.0.0.2"
SIX = "2a02:ffff::1"
SILENT = [f"11.0.1.{number}" for number in range(1, 4)]
SILENT_SIX = "2a02:ffff:1::1"
STAGGER = 0.25  # seconds that an address has before the next one is tried as well
SLACK = 2.0  # seconds that a busy machine may add

Start = Callable[..., tuple[Sidecar, TlsRecorder]]


def _where(exchange: Exchange) -> None:
    """Answers with the address at which the call arrived."""
    address = exchange.wire.getsockname()[0].removeprefix("::ffff:")
    fixed(address.encode())(exchange)


@pytest.fixture
def start(sidecar: StartSidecar, peers: Peers, pki: Pki) -> Start:
    """A sidecar with a route to NAME, and another to a literal address; to be started within own_names."""

    def make(**upstream: Any) -> tuple[Sidecar, TlsRecorder]:
        recorder = peers.recorder(host="::", answer=_where)
        named = Place(NAME, recorder.port)
        literal = Place("127.0.0.1", recorder.port)
        options = {"trust": pki.trust, "server_name": "localhost"}
        running = sidecar(
            route("orders", named, **options, **upstream), route("literal", literal, trust=pki.trust)
        )
        return running, recorder

    return make


def test_new_connections_go_where_the_name_leads_now(start: Start) -> None:
    """A name that moves takes its calls along with the next connection: 20 moves, none failed."""
    with own_names({NAME: [ONE]}, addresses=[ONE, TWO]) as names:
        running, recorder = start()
        for turn in range(20):
            names[NAME] = [(ONE, TWO)[turn % 2]]
            recorder.drop_connections()
            answer = running.get("http://orders.test/")
            assert (answer.status, answer.text) == (200, (ONE, TWO)[turn % 2])
        assert names.asked(NAME) >= 20


@pytest.mark.parametrize("fault", ["SERVFAIL", "NXDOMAIN", "REFUSED", "silence", "gone"])
def test_failing_name_harms_only_new_connections_to_it(start: Start, fault: Fault | str) -> None:
    """While a name fails: a pooled connection goes on, other routes are served, a new one has a true answer.
    When it is back, so are the calls, at once."""
    with own_names({NAME: [ONE]}, addresses=[ONE]) as names:
        running, recorder = start(timeouts={"connect": "1500ms"})
        assert running.get("http://orders.test/").text == ONE
        _fail(names, fault)
        for _ in range(10):
            assert running.get("http://orders.test/").text == ONE
        recorder.drop_connections()
        running.wait_for(
            lambda: not running.metric("sidecert_upstream_connections", route="orders", state="idle")
        )
        began = time.monotonic()
        answer = running.get("http://orders.test/")
        assert (answer.status, answer.json()["outcome"]) in [(502, "dns_failed"), (504, "connect_timeout")]
        assert time.monotonic() - began < 1.5 + SLACK
        assert running.get("http://literal.test/").status == 200
        if fault != "gone":
            names[NAME] = [ONE]
            assert running.get("http://orders.test/").text == ONE


def _fail(names: Names, fault: Fault | str) -> None:
    if fault == "gone":
        names.stop()
    else:
        names[NAME] = fault  # type: ignore[assignment]


def test_first_addresses_that_are_silent_cost_a_quarter_of_a_second_each(start: Start) -> None:
    """Happy eyeballs: nobody waits for a dead address until the kernel gives it up."""
    with own_names({NAME: [*SILENT, ONE]}, addresses=[ONE], silent=SILENT):
        running, recorder = start()
        for _ in range(3):
            began = time.monotonic()
            assert running.get("http://orders.test/").text == ONE
            assert time.monotonic() - began < STAGGER * len(SILENT) + SLACK
            recorder.drop_connections()
        assert running.outcomes("orders") == {"ok": 3}


@pytest.mark.parametrize("dead", ["refusing", "silent"])
def test_dead_ipv6_costs_one_stagger_at_most(start: Start, dead: str) -> None:
    """The resolver puts IPv6 first; where it is dead, IPv4 has its turn within a quarter of a second."""
    address = SIX if dead == "refusing" else SILENT_SIX
    here = [ONE, SIX] if dead == "refusing" else [ONE]
    with own_names({NAME: [ONE, address]}, addresses=[*here, "2a02:ffff::9"], silent=[SILENT_SIX]):
        running, _ = start()
        if dead == "refusing":
            subprocess.run(["ip", "-6", "address", "del", f"{SIX}/128", "dev", "lo"], check=True)
        began = time.monotonic()
        assert running.get("http://orders.test/").text == ONE
        assert time.monotonic() - began < STAGGER + SLACK
        assert running.outcomes("orders") == {"ok": 1}


def test_name_with_nothing_but_ipv6_is_reached(start: Start) -> None:
    """An upstream that has no IPv4 address is called as any other."""
    with own_names({NAME: [SIX]}, addresses=[SIX]):
        running, _ = start()
        assert running.get("http://orders.test/").text == SIX


def test_hundred_addresses_of_which_one_lives(start: Start) -> None:
    """The answer needs TCP, and 99 of the addresses are unreachable: the one that lives is found."""
    dead = [f"11.0.2.{number}" for number in range(1, 100)]
    with own_names({NAME: [*dead, ONE]}, addresses=[ONE]) as names:
        running, _ = start()
        assert running.get("http://orders.test/").text == ONE
        assert any(question.over_tcp for question in names.questions)
        assert running.outcomes("orders") == {"ok": 1}
