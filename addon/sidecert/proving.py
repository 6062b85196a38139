"""A new certificate is proven: shown to the upstreams before calls depend on it.

At a reload, each credential whose certificates have changed is presented to the upstreams that it was in use
for. Where one refuses it, and not the one before as well, the credential keeps the one before as long as that
is valid; also where an upstream lets both pass, but something surely speaks against the new one (`trial`).
All else of the new generation takes effect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sidecert.credentials import Credential
from sidecert.errors import Problem, Refusal
from sidecert.generation import Generation, Route, Upstream, with_credentials
from sidecert.metrics import Proof
from sidecert.outcome import Observation, Outcome
from sidecert.plane import Plane
from sidecert.threads import NoThread, in_thread
from sidecert.trial import Shown, Trial, trials_of
from sidecert.upstream import NotOpened, UpstreamConnection
from sidecert.words import moment

log = logging.getLogger(__name__)

LIMIT = 10.0
"""Seconds that all proofs of a reload may take; what is not known by then is unproven."""
AT_ONCE = 16
AGAIN = 300.0
"""Seconds after which a certificate that was refused is shown once more."""

_SOONEST = 0.05  # seconds; the wall clock may run a little behind the event loop's


@dataclass(frozen=True, slots=True)
class Held:
    """A credential whose newer certificate was refused."""

    wanted: Credential
    until: float
    """When the one before expires, in epoch seconds."""
    problem: Problem


_News = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Proven:
    """What may be put in force, and the credentials in it that keep the certificate before."""

    generation: Generation
    held: Mapping[str, Held]
    news: Sequence[_News]
    """What the log is to say once it is in force."""


class Prover:
    """Proves the certificates of each new generation, and later again those that were refused.

    `lock` is held from the proof of a generation until it is in force; `put_in_force` does that, and gives
    False where the sidecar is ending.
    """

    def __init__(
        self, plane: Plane, lock: asyncio.Lock, put_in_force: Callable[[Generation], Awaitable[bool]]
    ) -> None:
        self._plane = plane
        self._lock = lock
        self._put_in_force = put_in_force
        self._held: Mapping[str, Held] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def problems(self) -> tuple[Problem, ...]:
        """A warning for each credential that is held back; the log has them."""
        return tuple(held.problem for held in self._held.values())

    async def prove(self, new: Generation, *, again: bool = False) -> Proven:
        """`new`, with the certificates before where the new ones are refused. Needs the lock.

        Only finds out and counts: whether it comes into force is not known yet.
        """
        news: list[_News] = []
        changed = _changed(self._plane.generation, new, news)
        if not changed:
            return Proven(new, {}, news)
        before = await _exchanged(new, changed)
        trials = {id: trials_of(id, new, before) for id in changed}
        await self._try_all(trial for each in trials.values() for trial in each)
        held = {}
        for id, each in trials.items():
            for trial in each:
                self._plane.metrics.proof(id, trial.result)
            against = next((trial for trial in each if trial.holds_back), None)
            if against is None:
                news.append(partial(_tell_taken, id, each))
            else:
                held[id] = _hold_back(against, changed[id], new)
                level = logging.INFO if again else logging.WARNING
                news.append(partial(_tell_held_back, level, against, held[id]))
        kept = {id: changed[id] for id in held}
        return Proven(await _exchanged(new, kept) if kept else new, held, news)

    def settle(self, proven: Proven) -> None:
        """`proven` is in force: tell what is."""
        for tell in proven.news:
            tell()
        self._held = proven.held
        self._plane.metrics.held_back = {
            id: f"{held.problem.wrong}. {held.problem.right}" for id, held in proven.held.items()
        }
        self._set_timer()

    def close(self) -> None:
        """Show nothing again any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    # -- one handshake ---------------------------------------------------------------------------------

    async def _try_all(self, trials: Iterable[Trial]) -> None:
        try:
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
                for trial in trials:
                    group.create_task(self._try(trial))
        except TimeoutError:
            pass  # those that have not ended stay as they are

    async def _try(self, trial: Trial) -> None:
        """Fills in what came of `trial`; an error of our own proves nothing."""
        try:
            async with self._room:
                trial.shown = Shown(trial.new, *await self._shake_hands(trial.new))
                if trial.in_doubt:
                    trial.before = Shown(trial.old, *await self._shake_hands(trial.old))
        except Exception as exc:
            log.error("an error of sidecert's own while a certificate was proven", exc_info=exc)

    async def _shake_hands(self, upstream: Upstream) -> tuple[Outcome, Observation]:
        """Open a connection as for a call, with its wait for a verdict that comes late, and close it."""
        stats = self._plane.metrics.route(upstream.route.id)
        connection = UpstreamConnection(upstream, stats, lambda _: None)
        try:
            await connection.open()
        except NotOpened as exc:
            return exc.outcome, exc.seen
        except Refusal:  # no thread can be had to look the name up
            return Outcome.UNDECIDED, connection.seen
        if connection.seen.certificate_requested:
            connection.note_acceptable_cas()
        if connection.outcome is None:
            connection.leave()  # it says nothing before it has a request
        else:
            connection.close()
        return connection.outcome or Outcome.UNDECIDED, connection.seen

    # -- once more -------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held and not self._closed:
            left = min(held.until for held in self._held.values()) - time.time()
            wait = max(min(AGAIN, left), _SOONEST)
            self._timer = asyncio.get_running_loop().call_later(wait, self._start_again)

    def _start_again(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self._again())

    async def _again(self) -> None:
        """Show what was refused once more; what has no valid one before it is taken as it is."""
        async with self._lock:
            if self._timer is not None:
                return  # a reload has come in between
            try:
                current = self._plane.generation
                wanted = {id: held.wanted for id, held in self._held.items()}
                proven = await self.prove(await _exchanged(current, wanted), again=True)
                changed = proven.held.keys() != self._held.keys()
                if changed and not await self._put_in_force(proven.generation):
                    return
                self.settle(proven)
            except NoThread as exc:
                log.warning("a certificate that was refused is not tried again for now: %s", exc)
                self._set_timer()
            except Exception as exc:
                log.error("an error of sidecert's own while a certificate was proven again", exc_info=exc)
                self._set_timer()


async def _exchanged(generation: Generation, others: Mapping[str, Credential]) -> Generation:
    # In a thread: trust stores take their time, and the calls in flight have none.
    return await in_thread("proving", partial(with_credentials, generation, others))


def _changed(old: Generation, new: Generation, news: list[_News]) -> dict[str, Credential]:
    """The credentials to prove, as they were: those that are to go on with other certificates."""
    changed = {}
    for id, credential in new.credentials.items():
        before = old.credentials.get(id)
        if before is None or before.presented == credential.presented or not new.config.credentials[id].prove:
            continue
        if time.time() >= before.valid_until:  # nothing is worse than an expired one, which nobody takes
            why = "the certificate before has expired"
            news.append(partial(_tell_unproven, logging.INFO, id, [why]))
        elif not _leads_where_it_did(id, old, new):
            why = "routes that use it are new, or lead elsewhere than before"
            news.append(partial(_tell_unproven, logging.INFO, id, [why]))
        else:
            changed[id] = before
    return changed


def _leads_where_it_did(id: str, old: Generation, new: Generation) -> bool:
    """Whether each route with credential `id` leads where it did under the certificate before: no other place
    may ever see that one, since no config has sent it there."""
    return all(
        (known := old.routes.get(route.id)) is not None
        and known.credential_id == id
        and _place(known) == _place(route)
        for route in new.routes.values()
        if route.credential_id == id
    )


def _place(route: Route) -> object:
    """Where a route leads, and who must be there."""
    to = route.config.upstream
    whom = (to.host, to.port, to.server_name, to.host_header, to.trust, to.tls)
    return (route.config.match.host, route.config.private, whom)


def _tell_taken(id: str, trials: list[Trial]) -> None:
    unproven = [f"{each.new.label}: {each.why_unproven}" for each in trials if each.result is Proof.UNPROVEN]
    if unproven:
        _tell_unproven(logging.WARNING, id, unproven)
    elif trials:
        fields = {"event": "credential_proven", "credential": id, "upstreams": len(trials)}
        log.info("the new certificate of credential %s is accepted, and taken", id, extra=fields)
    else:
        _tell_unproven(logging.INFO, id, ["no upstream that it was used for has its host in the config"])


def _tell_unproven(level: int, id: str, why: list[str]) -> None:
    fields = {"event": "credential_unproven", "credential": id, "unproven": why}
    log.log(level, "the new certificate of credential %s is taken without a proof", id, extra=fields)


def _tell_held_back(level: int, trial: Trial, held: Held) -> None:
    assert trial.shown is not None
    log.log(
        level,
        "the new certificate of credential %s is held back: the one before stays in force, "
        "but a restart takes the new one",
        held.wanted.id,
        extra={
            "event": "credential_held_back",
            "credential": held.wanted.id,
            "route": trial.new.route.id,
            "upstream": trial.new.label,
            "outcome": trial.shown.outcome,
            "before": trial.before.outcome if trial.before is not None else "not known in time",
            "cause": trial.why_held_back,
            "evidence": trial.evidence,
            "remedy": trial.remedy,
            "in_force_until": moment(held.until),
        },
    )


def _hold_back(trial: Trial, before: Credential, new: Generation) -> Held:
    wanted = new.credentials[before.id]
    wrong = (
        f"the new certificate is held back, since {trial.why_held_back}. The one before stays in force, "
        f"until {moment(before.valid_until)} at most; a restart before then takes the new one"
    )
    return Held(
        wanted,
        before.valid_until,
        Problem(str(new.path), None, f"credentials.{wanted.id}", wrong, trial.remedy, warning=True),
    )
