"""Whatever is done in whatever order: every call arrives under the identity that its route had when it began.

Hypothesis draws the steps: calls of all kinds, rotations, reloads, listeners that come and go, connections
that die. They are made with a real process and a real upstream, which gives session tickets and would resume.
"""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.certs import Leaf, Pki
from support.clients import Address, Answer, Talker
from support.lengths import rounds
from support.recorder import Exchange, Seen, echo, fixed, tls_recorder
from support.sidecar import config, route, running

SLOTS = ("s0", "s1", "s2")
HOSTS = {"plain": "a.test", "path": "a.test", "method": "a.test", "named": "b.test", "old": "c.test"}
MATCHES: dict[str, dict[str, object]] = {"path": {"path": "/p/**"}, "method": {"methods": ["POST"]}}
UPSTREAMS: dict[str, dict[str, object]] = {
    "named": {"server_name": "localhost"},
    "old": {"tls": {"max": "1.2"}},
}
ROUTES = (*HOSTS, "pinned")
MAIN, PINNED, PASSING = range(3)
CREDENTIALS = (*SLOTS, "none")
KINDS = ("plain", "plain", "close", "cut", "die")

Identity = str | None
names = st.sampled_from(ROUTES)
kinds = st.sampled_from(KINDS)
methods = st.sampled_from(("GET", "POST"))


@dataclass
class Made:
    """A call, and what may come of it."""

    name: str
    method: str
    kind: str
    token: str
    allowed: frozenset[Identity] = frozenset()
    arrivals: list[Seen] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    answered: bool = False

    @property
    def target(self) -> str:
        return f"{'/p' if self.name == 'path' else ''}/{self.kind}?{self.token}"

    def head(self, length: int = 0) -> bytes:
        host = HOSTS.get(self.name, "localhost")
        sized = f"Content-Length: {length}\r\n" if self.method == "POST" else ""
        return f"{self.method} {self.target} HTTP/1.1\r\nHost: {host}\r\n{sized}\r\n".encode()


class Sharing(RuleBasedStateMachine):
    pki: ClassVar[Pki]
    leafs: ClassVar[list[Leaf]]
    totals: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.gates: dict[str, threading.Event] = {}
        self.upstream = self.stack.enter_context(
            tls_recorder(self.pki.upstream, self.pki.trust, verify="optional", answer=self.answer)
        )
        self.slots: dict[str, Leaf] = {}
        self.files = {name: self.write(name, self.leafs[at]) for at, name in enumerate(SLOTS)}
        self.chosen = {name: CREDENTIALS[at % len(CREDENTIALS)] for at, name in enumerate(ROUTES)}
        self.may_be = {name: frozenset({self.identity(name)}) for name in ROUTES}
        self.passing = True
        self.made: dict[str, Made] = {}
        self.read = 0
        self.places: Counter[int] = Counter()
        self.cuts = 0
        self.held: list[tuple[Made, Talker]] = []
        self.half: list[tuple[Made, Talker, bytes]] = []
        self.kept: dict[int, Talker] = {}
        self.tokens = itertools.count()
        self.sidecar = self.stack.enter_context(running(self.folder / "sidecar", self.config()))
        self.addresses: list[Address] = self.sidecar.listeners

    # -- what there is ---------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        routes = [
            route(
                name,
                self.upstream,
                trust=self.pki.trust,
                credential=self.chosen[name],
                host=HOSTS.get(name),
                match=MATCHES.get(name),
                pool={"max_connections": 8},
                **UPSTREAMS.get(name, {}),
            )
            for name in ROUTES
        ]
        listeners: list[dict[str, object]] = [
            {"bind": "127.0.0.1:0"},
            {"bind": f"unix:{self.folder}/pinned.sock", "route": "pinned"},
        ]
        if self.passing:
            listeners.append({"bind": f"unix:{self.folder}/passing.sock"})
        return config(routes, self.files, listeners=listeners, limits={"header_timeout": "60s"})

    def write(self, slot: str, leaf: Leaf) -> dict[str, str]:
        self.slots[slot] = leaf
        return leaf.write(self.folder / "callers", slot).config

    def identity(self, name: str) -> Identity:
        chosen = self.chosen[name]
        return None if chosen == "none" else self.slots[chosen].fingerprint

    def answer(self, exchange: Exchange) -> None:
        """The upstream's: as the call's path says."""
        path, _, token = exchange.seen.target.partition("?")
        kind = path.rpartition("/")[2]
        exchange.read_body()
        if kind == "held":
            assert self.gates[token].wait(30)
        if kind == "die" and sum(each.target.endswith("?" + token) for each in self.upstream.requests) == 1:
            exchange.cut()
        elif kind == "close":
            fixed(b"bye", 200, ("Connection", "close"))(exchange)
            exchange.finish()
        else:
            echo(exchange)
            if kind == "cut":
                exchange.cut()

    # -- what is done ----------------------------------------------------------------------------------

    def make(self, name: str, method: str, kind: str) -> Made:
        if name in ("plain", "method"):  # these two differ in nothing else
            method = "POST" if name == "method" else "GET"
        call = Made(name, method, kind, f"t{next(self.tokens)}", self.may_be[name])
        self.made[call.token] = call
        self.gates[call.token] = threading.Event()
        self.cuts += kind == "cut"
        self.totals["calls"] += 1
        return call

    def at(self, name: str, passing: bool = False) -> int:
        if name == "pinned":
            return PINNED
        return PASSING if passing and self.passing else MAIN

    def check_answer(self, call: Made, answer: Answer) -> None:
        """Nothing but the upstream's end may stand between a call and its answer."""
        outcome = answer.header("Sidecert-Outcome")
        if answer.status == 200:
            assert outcome is None
            call.answered = True
            return
        assert (answer.status, outcome) == (502, "upstream_closed"), (call, answer)
        assert call.kind == "die" or (call.method == "POST" and self.cuts), call

    def talk(self, call: Made, talker: Talker) -> bool:
        """Make the call there; whether the connection can be used on."""
        talker.send(call.head())
        answer = talker.read_answer(call.method)
        self.check_answer(call, answer)
        return (answer.header("Connection") or "").lower() != "close"

    def reload(self) -> None:
        self.sidecar.rewrite(self.config())
        assert self.sidecar.ask_admin("POST", "/-/reload").status == 200
        self.totals["reloads"] += 1

    def settle(self) -> None:
        """What is in the files is in force, and nothing else."""
        self.may_be = {name: frozenset({self.identity(name)}) for name in ROUTES}

    @rule(name=names, method=methods, kind=kinds, passing=st.booleans())
    def call_on_a_kept_connection(self, name: str, method: str, kind: str, passing: bool) -> None:
        at = self.at(name, passing)
        call = self.make(name, method, kind)
        talker = self.kept.pop(at, None) or Talker(self.addresses[at])
        if self.talk(call, talker):
            self.kept[at] = talker
        else:
            talker.close()

    @rule(name=names, method=methods, kind=kinds, passing=st.booleans())
    def call_on_a_new_connection(self, name: str, method: str, kind: str, passing: bool) -> None:
        call = self.make(name, method, kind)
        with Talker(self.addresses[self.at(name, passing)]) as talker:
            self.talk(call, talker)

    @rule(several=st.lists(st.tuples(st.sampled_from(tuple(HOSTS)), methods), min_size=2, max_size=8))
    def call_pipelined(self, several: list[tuple[str, str]]) -> None:
        calls = [self.make(name, method, "plain") for name, method in several]
        with Talker(self.addresses[MAIN]) as talker:
            talker.send(b"".join(call.head() for call in calls))
            for call in calls:
                self.check_answer(call, talker.read_answer(call.method))

    @rule(
        several=st.lists(st.tuples(names, methods, kinds), min_size=3, max_size=10),
        change=st.none() | st.tuples(names, st.sampled_from(CREDENTIALS)),
    )
    def call_at_once(self, several: list[tuple[str, str, str]], change: tuple[str, str] | None) -> None:
        """Perhaps with a reload in the middle, for which both identities are right."""
        before = self.may_be
        if change is not None:
            self.chosen[change[0]] = change[1]
            self.may_be = {name: each | {self.identity(name)} for name, each in before.items()}
        calls = [self.make(*each) for each in several]

        def work(call: Made) -> None:
            with Talker(self.addresses[self.at(call.name)]) as talker:
                self.talk(call, talker)

        with ThreadPoolExecutor(len(calls)) as callers:
            working = [callers.submit(work, call) for call in calls]
            if change is not None:
                self.reload()
            for each in working:
                each.result()
        if change is not None:
            self.settle()

    @rule(changes=st.dictionaries(names, st.sampled_from(CREDENTIALS), min_size=1))
    def change_credentials(self, changes: dict[str, str]) -> None:
        self.chosen.update(changes)
        self.reload()
        self.settle()

    @rule(slot=st.sampled_from(SLOTS), number=st.integers(0, 5), told=st.booleans())
    def rotate(self, slot: str, number: int, told: bool) -> None:
        """New files; somebody tells sidecert of them, or it is left to notice."""
        self.write(slot, self.leafs[number])
        self.may_be = {name: each | {self.identity(name)} for name, each in self.may_be.items()}
        self.totals["rotations"] += 1
        if told:
            self.reload()
            self.settle()

    @rule()
    def swap_two(self) -> None:
        one, other = self.slots["s0"], self.slots["s1"]
        self.write("s0", other)
        self.write("s1", one)
        self.totals["rotations"] += 2
        self.reload()
        self.settle()

    @rule()
    def stop_or_start_a_listener(self) -> None:
        self.passing = not self.passing
        if (kept := self.kept.pop(PASSING, None)) is not None:
            kept.close()
        self.reload()
        self.settle()

    @precondition(lambda self: not self.held and not self.half)
    @rule()
    def kill_idle_connections(self) -> None:
        self.upstream.drop_connections()
        self.cuts += 1

    @precondition(lambda self: len(self.held) < 3)
    @rule(name=names, passing=st.booleans())
    def hold(self, name: str, passing: bool) -> None:
        """A call whose answer does not come yet."""
        call = self.make(name, "GET", "held")
        talker = Talker(self.addresses[self.at(name, passing)])
        talker.send(call.head())
        self.held.append((call, talker))
        self.arrive(call)

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        call, talker = self.held.pop(0)
        self.gates[call.token].set()
        with talker:
            answer = talker.read_answer(call.method)
        assert answer.status == 200
        self.check_answer(call, answer)

    @precondition(lambda self: self.held)
    @rule()
    def leave(self) -> None:
        call, talker = self.held.pop()
        talker.reset()
        self.gates[call.token].set()

    @precondition(lambda self: len(self.half) < 3)
    @rule(name=names, at=st.integers(1, 20), passing=st.booleans())
    def begin_a_head(self, name: str, at: int, passing: bool) -> None:
        call = self.make(name, "GET", "plain")
        talker = Talker(self.addresses[self.at(name, passing)])
        talker.send(call.head()[:at])
        self.half.append((call, talker, call.head()[at:]))

    @precondition(lambda self: len(self.half) < 3)
    @rule(name=names, passing=st.booleans())
    def begin_a_body(self, name: str, passing: bool) -> None:
        call = self.make("method" if name == "plain" else name, "POST", "plain")
        talker = Talker(self.addresses[self.at(name, passing)])
        talker.send(call.head(length=6) + b"abc")
        self.half.append((call, talker, b"def"))
        self.arrive(call)

    @precondition(lambda self: self.half)
    @rule(first=st.booleans())
    def end_what_was_begun(self, first: bool) -> None:
        call, talker, rest = self.half.pop(0 if first else -1)
        if not call.arrivals:
            call.allowed = self.may_be[call.name]  # it begins only now
        with talker:
            talker.send(rest)
            self.check_answer(call, talker.read_answer(call.method))

    # -- what must hold --------------------------------------------------------------------------------

    def arrive(self, call: Made) -> None:
        self.upstream.wait_for(
            lambda: any(each.target == call.target for each in self.upstream.requests[self.read :])
        )
        self.every_call_arrived_as_its_route_says()

    @invariant()
    def every_call_arrived_as_its_route_says(self) -> None:
        requests = self.upstream.requests
        while self.read < len(requests):
            seen = requests[self.read]
            self.read += 1
            self.places[seen.connection] += 1
            self.totals["requests"] += 1
            call = self.made[seen.target.partition("?")[2]]
            assert seen.target == call.target
            assert seen.fingerprint in call.allowed, f"{call} arrived as {seen.subject}"
            assert not seen.resumed
            assert seen.server_name == ("localhost" if call.name == "named" else None)
            assert seen.tls == ("TLSv1.2" if call.name == "old" else "TLSv1.3")
            call.arrivals.append(seen)
            call.places.append(self.places[seen.connection])
            if len(call.arrivals) > 1:
                self.may_have_been_sent_again(call)

    def may_have_been_sent_again(self, call: Made) -> None:
        assert len(call.arrivals) == 2, call
        assert (call.method, call.kind) == ("GET", "die"), call
        assert call.places[0] > 1, f"sent again from a fresh connection: {call}"
        assert call.places[1] == 1, f"sent again over a used connection: {call}"
        self.totals["sent again"] += 1

    def teardown(self) -> None:
        failed = sys.exc_info()[0] is not None  # or Hypothesis has given the example up
        with self.stack:
            for talker in self.kept.values():
                talker.close()
            if not failed:
                self.drain()
            for _, talker, *_ in [*self.held, *self.half]:
                talker.close()
            for gate in self.gates.values():
                gate.set()
        self.totals["examples"] += 1

    def drain(self) -> None:
        """The end, in the middle of what is held and half sent: all of it is answered, as who it began."""
        sent_again = sum(len(call.arrivals) - 1 for call in self.made.values() if call.arrivals)
        retried = sum(
            value for (name, _), value in self.sidecar.metrics().items() if name == "sidecert_retries_total"
        )
        assert sent_again <= retried
        assert retried == sent_again or self.cuts  # a connection that was cut may have swallowed the first
        self.sidecar.signal(signal.SIGTERM)
        self.sidecar.wait_for(lambda: bool(self.sidecar.events("draining")))
        while self.held:
            self.release()
        while self.half:
            self.end_what_was_begun(first=True)
        self.sidecar.process.wait(40)  # a second signal would end it at once
        self.sidecar.stop()
        self.every_call_arrived_as_its_route_says()
        for call in self.made.values():
            if call.answered:
                assert len(call.arrivals) == 1 or call.kind == "die", call
                assert call.arrivals, call


@pytest.mark.long_form(seconds=1500)
def test_every_call_arrives_under_its_routes_identity(pki: Pki) -> None:
    """Random steps: no call arrives as anybody else, and none arrives twice but where DESIGN says so."""
    Sharing.pki = pki
    Sharing.leafs = [pki.ca.caller(f"caller {number}") for number in range(6)]
    Sharing.totals = Counter()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Sharing,
        settings=settings(
            max_examples=rounds(4, 60),
            stateful_step_count=rounds(40, 150),
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(Sharing.totals))
    assert Sharing.totals["calls"] > 50
    assert Sharing.totals["reloads"] > 10
