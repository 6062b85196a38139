"""`sidecert doctor`: real handshakes with an upstream, explained, and no request."""

from __future__ import annotations

import asyncio
import json
import signal
import textwrap
from collections.abc import Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from sidecert.cli.common import (
    FINE,
    NO,
    ConfigCommand,
    config_option,
    copyable,
    fail,
    fail_config,
    find_config,
    json_option,
    look_for_config,
    meant_as_config,
    report,
)
from sidecert.errors import ConfigError, Problem
from sidecert.explain import Verdict
from sidecert.words import printable

if TYPE_CHECKING:
    from sidecert.diagnosis import Attempt, Diagnosis, Step, Subject
    from sidecert.generation import Generation

_INTERRUPTED = 130
_MARKS = {"ok": ("✓", "+", "green"), "failed": ("✗", "x", "red"), "warning": ("!", "!", "yellow")}
_NO_MARK = ("·", "-", "")


@click.command(cls=ConfigCommand)
@click.argument("what", metavar="[ROUTE | HOST:PORT]", required=False)
@click.option("--credential", metavar="ID", help="Try this credential only; `none` for no certificate.")
@config_option
@json_option
def doctor(what: str | None, credential: str | None, config: Path | None, as_json: bool) -> None:
    """Shake hands with an upstream and tell, step by step, what it asks for and whose certificate it takes.

    ROUTE tries the route's credential, and if that is refused the others. HOST:PORT tries every credential;
    it needs no config to show what is there. Without an argument all routes are tried in short. No request
    is ever sent, and no certificate is shown to an upstream that has not proven who it is. An upstream may
    let any handshake pass and judge in its answers: then the report says so, and what is wrong with the
    certificate. Exit status: 0 accepted, or open with nothing wrong; 1 refused, not reached, or open with a
    certificate that is surely wrong; 2 bad usage or config.
    """
    from sidecert.diagnosis import NoSubject

    try:
        if what is None:
            if credential is not None:
                fail("--credential needs a ROUTE or HOST:PORT to try it on")
            passes = _survey(_load(find_config(config)), config, as_json)
        else:
            passes = _examine(_subject(what, credential, config), config, as_json)
    except NoSubject as problem:
        fail(copyable(str(problem), config) + meant_as_config(what or ""))
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        raise SystemExit(_INTERRUPTED) from None
    raise SystemExit(FINE if passes else NO)


def _load(path: Path) -> Generation:
    from sidecert.generation import build

    try:
        generation = build(path, 1)
    except ConfigError as exc:
        fail_config(exc)
    return generation


def _subject(what: str, credential: str | None, config: Path | None) -> Subject:
    from sidecert.diagnosis import of_address, of_route

    path = look_for_config(config) if ":" in what else find_config(config)  # no id of a route has one
    generation = None if path is None else _load(path)
    if ":" not in what:
        assert generation is not None
        subject = of_route(generation, what, credential)
    else:
        subject = of_address(generation, what, credential)
    if generation is not None:
        report(problem for problem in generation.warnings if _concerns(problem, subject, generation))
    return subject


def _concerns(problem: Problem, subject: Subject, generation: Generation) -> bool:
    """Whether a warning is about what is examined: not about other routes, nor credentials they alone use."""
    section, _, rest = problem.path.partition(".")
    if section == "credentials":
        return rest.partition(".")[0] in {each.id for each in subject.wanted if each is not None}
    if section.startswith("routes["):
        own = None if subject.route is None else list(generation.routes).index(subject.route)
        return section == f"routes[{own}]"
    return True


def _examine(subject: Subject, config: Path | None, as_json: bool) -> bool:
    from sidecert.diagnosis import examine

    screen = _Screen(as_json, [f"as {each.id}" for each in (*subject.wanted, *subject.others) if each])
    by = f"route {subject.route}" if subject.route else "no route leads there: the defaults are used"
    screen.line(f"{subject.upstream.label} ({by})\n")
    diagnosis = screen.watch(examine(subject, screen))
    if as_json:
        click.echo(json.dumps(diagnosis.as_json(), indent=2))
    else:
        _conclude(screen, diagnosis, config)
    return diagnosis.passes


def _conclude(screen: _Screen, diagnosis: Diagnosis, config: Path | None) -> None:
    from sidecert.diagnosis import Status, Step

    status = Status.OK if diagnosis.accepted else Status.WARNING if diagnosis.passes else Status.FAILED
    told = diagnosis.refusal or diagnosis.verdict
    assert told is not None
    cause = told.cause if isinstance(told, Verdict) else told.detail
    screen.line("")
    # An open verdict is no outcome yet.
    screen.mark(Step("", status, told.title if diagnosis.open else f"{told.title} ({told.outcome})"))
    screen.line(cause, "    ")
    for each in told.evidence:
        screen.line(f"- {each}", "    ", "      ")
    screen.line(f"\n{_count(diagnosis.handshakes)} made, and no request was sent.")
    screen.last(f"Next: {copyable(diagnosis.next, config)}")


def _survey(generation: Generation, config: Path | None, as_json: bool) -> bool:
    from sidecert.diagnosis import NoSubject, survey, upstream_of
    from sidecert.diagnosis import of_route as subject_of

    report(generation.warnings)
    open_ended = [id for id, route in generation.routes.items() if upstream_of(route) is None]
    subjects = [subject_of(generation, id) for id in generation.routes if id not in open_ended]
    if not subjects:
        raise NoSubject(
            "every route takes its host from the call; name one: sidecert doctor HOST:PORT"
            if open_ended
            else "the config has no route; name an upstream: sidecert doctor HOST:PORT"
        )
    screen = _Screen(as_json, list(generation.routes))
    attempts = screen.watch(survey(subjects, screen))
    passes = all(each.passes for each in attempts)
    handshakes = sum(each.handshakes for each in attempts)
    next = copyable(_after_survey(attempts), config)
    if as_json:
        routes = [each.as_json() for each in attempts]
        document = {
            "accepted": all(each.accepted for each in attempts),
            "routes": routes,
            "not_tried": open_ended,
        }
        click.echo(json.dumps({**document, "next": next, "handshakes": handshakes}, indent=2))
        return passes
    for id in open_ended:
        host = generation.routes[id].config.match.host
        text = f"not tried: its host comes from the call ({host}); sidecert doctor HOST:PORT"
        screen.note(id, copyable(text, config))
    screen.line(f"\n{_count(handshakes)} made, and no request was sent.")
    screen.last(f"Next: {next}")
    return passes


def _after_survey(attempts: list[Attempt]) -> str:
    bad = next((each for each in attempts if not each.passes), None)
    if bad is None and any(each.open for each in attempts):
        return "Make the calls: upstreams that let any handshake pass refuse a certificate in their answers."
    if bad is None:
        return "Nothing: make the calls. `sidecert doctor ROUTE` tells more of one."
    return f"sidecert doctor {bad.subject.route}"


def _count(handshakes: int) -> str:
    return "1 handshake was" if handshakes == 1 else f"{handshakes} handshakes were"


async def _interruptible[T](work: Coroutine[Any, Any, T]) -> T:
    """Do the work; Ctrl-C cancels it at once.

    asyncio.run's own handler does not wake a loop that is about to wait: it would be heard only when
    something else happens.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    return await work


class _Screen:
    """Steps as they are found, and on a terminal what is being done; with --json only the latter."""

    def __init__(self, as_json: bool, names: list[str]) -> None:
        self._silent = as_json
        self._console = Console(highlight=False, soft_wrap=True, stderr=as_json)
        self._ascii = self._console.options.ascii_only
        self._moves = self._console.is_terminal and not self._console.is_dumb_terminal
        spinner = "line" if self._ascii else "dots"
        self._status = self._console.status("", spinner=spinner) if self._moves else None
        self._width = min(24, max(9, *map(len, names), 0))

    def watch[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, with the spinner turning. The cursor comes back whatever happens."""
        with self._status or nullcontext():
            try:
                return asyncio.run(_interruptible(work))
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None

    def doing(self, what: str) -> None:
        if self._status is not None:
            self._status.update(Text(self._fit(f"{what} ...")))

    def found(self, step: Step) -> None:
        if not self._silent:
            self.mark(step)
            for detail in step.details:
                self.line(detail, " " * (self._width + 6))

    def note(self, name: str, text: str) -> None:
        from sidecert.diagnosis import Status, Step

        self.found(Step(name, Status.INFO, text))

    def mark(self, step: Step) -> None:
        """The line of a step; one without a name is not in the column."""
        fancy, plain, style = _MARKS.get(step.status, _NO_MARK)
        name = f"{step.name:<{self._width}}  " if step.name else ""
        lines = self._wrap(f"{name}{step.text}", " " * 4, " " * (4 + len(name)))
        margin = "  " if step.name else ""
        first = lines[0][4:]
        self._console.print(Text.assemble(margin, (plain if self._ascii else fancy, style), " ", first))
        for line in lines[1:]:
            self._console.print(Text(line))

    def line(self, text: str, first: str = "", rest: str | None = None) -> None:
        """A line, or two where it begins with an empty one; indented by `first`, and its folds by `rest`."""
        if self._silent:
            return
        for part in text.split("\n"):
            for line in self._wrap(part, first, first if rest is None else rest):
                self._console.print(Text(line))

    def last(self, text: str) -> None:
        """A line that may hold commands: the terminal folds it, so that they are copied whole."""
        self._console.print(Text(self._fit(text)))

    def _wrap(self, text: str, first: str, rest: str) -> list[str]:
        """Lines for a terminal of this width; elsewhere one line, which tools like better."""
        text = self._fit(text)
        if not self._console.is_terminal:
            return [first + text]
        wrapper = textwrap.TextWrapper(
            max(self._console.width, len(rest) + 20),
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return wrapper.wrap(text) or [""]

    def _fit(self, text: str) -> str:
        """What the terminal can print: neither control characters nor letters that it does not have."""
        encoding = self._console.encoding
        return printable(text).encode(encoding, "backslashreplace").decode(encoding)
