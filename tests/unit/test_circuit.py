"""The circuit's rules: when it opens, who tries, and that it is never stuck."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from sidecert import circuit
from sidecert.circuit import CircuitOpen, Circuits, Try
from sidecert.config import CircuitConfig
from sidecert.outcome import Ending, Observation, Outcome, Stage
from support.lengths import rounds

FAILED = [outcome for outcome in Outcome if outcome not in (Outcome.OK, Outcome.UNDECIDED)]
PAUSE = 10.0


def place(host: str = "a", *, chosen: bool = False) -> Any:
    route = SimpleNamespace(id="orders", credential_id="alice")
    return SimpleNamespace(host=host, label=f"{host}:8443", route=route, chosen_by_caller=chosen)


A, B = place("a"), place("b")


class Clock:
    """The time, which goes on when it is told to; and the hosts that calls must not wait for."""

    def __init__(self, failures: int = 3) -> None:
        self.now = 1000.0
        self.shut: list[str] = []
        config = CircuitConfig.model_validate({"failures": failures, "pause": "10s"})
        self.circuits = Circuits(config, lambda: self.now, self.shutting)

    def shutting(self, host: str, error: Callable[[], CircuitOpen]) -> None:
        self.shut.append(host)
        assert error() is not error()

    def fail(self, upstream: Any = A, outcome: Outcome = Outcome.CONNECT_REFUSED) -> None:
        self.circuits.begin(upstream).told(Observation(error=outcome), outcome)

    def opened(self, upstream: Any = A) -> None:
        for _ in range(3):
            self.fail(upstream)

    def refusal(self, upstream: Any = A) -> CircuitOpen:
        with pytest.raises(CircuitOpen) as raised:
            self.circuits.begin(upstream)
        return raised.value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("outcome", FAILED)
def test_opens_after_so_many_failures_in_a_row_and_tells_the_last(clock: Clock, outcome: Outcome) -> None:
    """Each outcome but `ok` and `undecided` is a failure; calls hear of the last and of how long to wait."""
    clock.fail()
    clock.fail()
    assert not clock.circuits.any_open()
    clock.fail(outcome=outcome)
    assert clock.circuits.any_open()
    assert clock.shut == ["a"]
    clock.now += 4
    error = clock.refusal()
    assert (error.outcome, error.seen.error, error.failures) == (outcome, outcome, 3)
    assert (error.ago, error.wait) == (4, 6)


def test_success_in_between_begins_the_count_anew(clock: Clock) -> None:
    """In a row means in a row; what is undecided is neither."""
    for _ in range(10):
        clock.fail()
        clock.fail()
        clock.circuits.begin(A).told(Observation(), Outcome.UNDECIDED)
        clock.circuits.begin(A).told(Observation(), Outcome.OK)
    assert not clock.circuits.any_open()


def test_what_this_machine_lacks_says_nothing_of_the_upstream(clock: Clock) -> None:
    """No descriptor, no port: it neither opens nor closes a circuit, nor keeps the next call from trying."""
    ours = Observation(ours=True)
    for _ in range(10):
        clock.circuits.begin(A).told(ours, Outcome.CONNECT_FAILED)
    assert not clock.circuits.any_open()
    clock.opened()
    clock.now += PAUSE
    for _ in range(3):
        clock.circuits.begin(A).told(ours, Outcome.CONNECT_FAILED)
    assert clock.circuits.any_open()
    clock.fail()
    assert clock.refusal().failures == 4


def test_never_opens_where_the_config_says_so() -> None:
    """`failures: 0`."""
    clock = Clock(failures=0)
    for _ in range(100):
        clock.fail()
    assert not clock.circuits.any_open()


def test_each_host_has_its_own(clock: Clock) -> None:
    """One that fails says nothing of another one of the same wildcard."""
    clock.opened(A)
    clock.refusal(A)
    clock.circuits.begin(B).told(Observation(), Outcome.OK)
    clock.refusal(A)


def test_failures_at_the_same_time_count_each(clock: Clock) -> None:
    """Those that come when it is open already prolong nothing."""
    attempts = [clock.circuits.begin(A) for _ in range(5)]
    for attempt in attempts[:3]:
        attempt.told(Observation(), Outcome.CONNECT_REFUSED)
    clock.now += 5
    for attempt in attempts[3:]:
        attempt.told(Observation(), Outcome.HANDSHAKE_TIMEOUT)
    error = clock.refusal()
    assert (error.outcome, error.failures, error.wait) == (Outcome.CONNECT_REFUSED, 3, 5)


def test_after_the_pause_one_tries_and_a_failure_opens_it_for_another(clock: Clock) -> None:
    """The others hear at once that one is trying."""
    clock.opened()
    for number in range(4, 8):
        clock.now += PAUSE
        trying = clock.circuits.begin(A)
        assert clock.refusal().wait == 0
        clock.now += 1
        trying.told(Observation(), Outcome.CLIENT_CERT_UNKNOWN_CA)
        error = clock.refusal()
        assert (error.outcome, error.failures, error.wait) == (
            Outcome.CLIENT_CERT_UNKNOWN_CA,
            number,
            PAUSE,
        )


def test_success_of_the_one_that_tries_closes_it(clock: Clock) -> None:
    """And the count begins anew."""
    clock.opened()
    clock.now += PAUSE
    clock.circuits.begin(A).told(Observation(), Outcome.OK)
    assert not clock.circuits.any_open()
    clock.fail()
    clock.fail()
    clock.circuits.begin(A)


def test_close_that_a_request_may_have_brought_about_opens_nothing(clock: Clock) -> None:
    """Or one caller, whose calls an upstream drops for their path, could shut all others out. A refusal in
    words is one, whenever it came."""
    for _ in range(9):
        closed = Observation(stage=Stage.FINISHED_SENT, ending=Ending.EOF, request_sent=True)
        clock.circuits.begin(A).told(closed, Outcome.CLIENT_CERT_REJECTED)
    assert not clock.circuits.any_open()
    for _ in range(3):
        alert = Observation(
            stage=Stage.FINISHED_SENT, ending=Ending.TLS, alert_received=48, request_sent=True
        )
        clock.circuits.begin(A).told(alert, Outcome.CLIENT_CERT_UNKNOWN_CA)
    assert clock.circuits.any_open()


@pytest.mark.parametrize("how", [lambda t: t.left(), lambda t: t.told(Observation(), Outcome.UNDECIDED)])
def test_one_that_gives_up_leaves_the_trying_to_the_next(clock: Clock, how: Callable[[Try], None]) -> None:
    """At once, without another pause."""
    clock.opened()
    clock.now += PAUSE
    how(clock.circuits.begin(A))
    clock.circuits.begin(A)
    clock.refusal()


def test_connection_that_stands_without_a_verdict_lets_the_others_try(clock: Clock) -> None:
    """An upstream that says nothing until it answers holds nobody up; its next failure opens the circuit."""
    clock.opened()
    clock.now += PAUSE
    first = clock.circuits.begin(A)
    first.stood()
    assert not clock.circuits.any_open()
    second, third = clock.circuits.begin(A), clock.circuits.begin(A)
    second.told(Observation(), Outcome.CLIENT_CERT_REJECTED)
    assert clock.refusal().failures == 4
    third.told(Observation(), Outcome.OK)  # however late, it is proof
    assert not clock.circuits.any_open()
    first.left()
    clock.fail()
    clock.circuits.begin(A)


def test_hosts_that_are_remembered_are_bounded(clock: Clock) -> None:
    """Names that callers make up push each other out, those that failed the longest ago first."""
    for number in range(3000):
        clock.fail(place(f"h{number}", chosen=True))
    assert len(clock.circuits._circuits) == circuit.MOST_HOSTS
    assert next(iter(clock.circuits._circuits)) == f"h{3000 - circuit.MOST_HOSTS}"


def test_name_that_a_caller_mistyped_is_not_told_as_open_for_ever(clock: Clock) -> None:
    """A host that the config names is."""
    wrong = place("mistyped", chosen=True)
    clock.opened(wrong)
    clock.now += PAUSE + circuit.FORGOTTEN - 1
    assert clock.circuits.any_open()
    clock.now += 1
    assert not clock.circuits.any_open()
    assert clock.circuits._circuits, "to ask changes nothing"
    clock.circuits.check(wrong)
    assert not clock.circuits._circuits
    clock.opened(wrong)
    clock.now += PAUSE + circuit.FORGOTTEN
    clock.fail(wrong)
    assert not clock.circuits.any_open(), "the count begins anew"
    clock.opened(A)
    clock.now += 1e9
    assert clock.circuits.any_open()


def test_log_has_one_line_when_it_opens_and_one_when_it_closes(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """However many attempts fail in between."""
    caplog.set_level(logging.INFO)
    clock.opened()
    for _ in range(3):
        clock.now += PAUSE
        clock.fail()
    clock.now += PAUSE
    clock.circuits.begin(A).told(Observation(), Outcome.OK)
    clock.circuits.begin(A).told(Observation(), Outcome.OK)
    told = [(record.event, record.upstream) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [("circuit_opened", "a:8443"), ("circuit_closed", "a:8443")]
    assert (caplog.records[0].outcome, caplog.records[0].failures) == ("connect_refused", 3)  # type: ignore[attr-defined]


class AnyOrder(RuleBasedStateMachine):
    """Calls that begin, and verdicts that come, are late or never come, in any order."""

    tries = Bundle("tries")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.in_row = 0
        self.opened_at: float | None = None
        self.trying: Try | None = None

    def refused(self) -> bool:
        """What the rules say of a call that comes now."""
        if self.opened_at is None:
            return False
        return self.trying is not None or self.clock.now < self.opened_at + PAUSE

    @rule(target=tries)
    @precondition(lambda self: not self.refused())
    def begin(self) -> Try:
        attempt = self.clock.circuits.begin(A)
        if self.opened_at is not None:
            self.trying = attempt
        return attempt

    @rule()
    @precondition(lambda self: self.refused())
    def is_refused(self) -> None:
        error = self.clock.refusal()
        assert self.opened_at is not None
        assert error.failures >= 3
        assert error.wait == max(0.0, self.opened_at + PAUSE - self.clock.now)

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(attempt=consumes(tries))
    def succeed(self, attempt: Try) -> None:
        attempt.told(Observation(), Outcome.OK)
        attempt.stood()
        self.in_row, self.opened_at, self.trying = 0, None, None

    @rule(attempt=consumes(tries), outcome=st.sampled_from(FAILED))
    def fail(self, attempt: Try, outcome: Outcome) -> None:
        attempt.told(Observation(), outcome)
        attempt.left()
        if self.opened_at is None or self.trying is attempt:
            self.in_row += 1
            self.trying = None
            if self.in_row >= 3:
                self.opened_at = self.clock.now

    @rule(attempt=consumes(tries), undecided=st.booleans())
    def leave(self, attempt: Try, undecided: bool) -> None:
        if undecided:
            attempt.told(Observation(), Outcome.UNDECIDED)
        attempt.left()
        if self.trying is attempt:
            self.trying = None

    @rule(attempt=tries)
    def stand(self, attempt: Try) -> None:
        attempt.stood()
        if self.trying is attempt:
            self.opened_at = self.trying = None

    @invariant()
    def says_what_the_rules_say(self) -> None:
        assert self.clock.circuits.any_open() is (self.opened_at is not None)

    @invariant()
    def is_never_stuck(self) -> None:
        """Once nobody is trying, the end of the pause is all that there is to wait for."""
        if self.trying is None:
            now, self.clock.now = self.clock.now, self.clock.now + PAUSE
            self.clock.circuits.check(A)
            self.clock.now = now


TestAnyOrder = pytest.mark.long_form(seconds=300)(AnyOrder.TestCase)
TestAnyOrder.settings = settings(max_examples=rounds(100, 5000), stateful_step_count=40, deadline=None)
