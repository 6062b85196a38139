"""`sidecert check`: everything that `run` would load, and every problem with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sidecert.cli.common import (
    BAD_CONFIG,
    FINE,
    ConfigCommand,
    config_option,
    find_config,
    json_option,
    report,
)
from sidecert.errors import ConfigError, Problem
from sidecert.words import moment, printable

if TYPE_CHECKING:
    from sidecert.generation import Generation


@click.command(cls=ConfigCommand)
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Load the config and every file it names, as a start does, and report all problems. Nothing is opened or
    called: whether a running sidecar holds a newer certificate back, its status page tells.

    Exit status 0 when it can be used (there may be warnings), else 2.
    """
    from sidecert.generation import build

    path = find_config(config)
    generation: Generation | None = None
    problems: tuple[Problem, ...]
    try:
        generation = build(path, 1)
        problems = (*generation.warnings, *_socket_folders(generation))
    except ConfigError as exc:
        problems = exc.problems
    if as_json:
        click.echo(json.dumps(_as_json(path, generation, problems), indent=2))
    else:
        report(problems, err=False)
        click.echo(_summary(path, generation, problems))
    raise SystemExit(BAD_CONFIG if generation is None else FINE)


def _socket_folders(generation: Generation) -> Iterator[Problem]:
    """Of unix sockets, what a start would stumble over by now; it may well be made before that."""
    from sidecert.sockets import folder_trouble

    config = generation.config
    binds = {f"listeners[{number}].bind": each.bind for number, each in enumerate(config.listeners)}
    for key, bind in {**binds, "admin.bind": config.admin.bind}.items():
        trouble = None if bind.path is None else folder_trouble(bind.path)
        if trouble is not None:
            yield Problem(str(generation.path), None, key, trouble.wrong, trouble.right, warning=True)


def _as_json(path: Path, generation: Generation | None, problems: tuple[Problem, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": str(path),
        "ok": generation is not None,
        "problems": [asdict(problem) for problem in problems],
    }
    if generation is not None:
        found["listeners"] = [listener.bind.label for listener in generation.config.listeners]
        found["admin"] = generation.config.admin.bind.label
        found["routes"] = {route.id: route.credential_id for route in generation.routes.values()}
        found["credentials"] = {
            each.id: {
                "subject": each.subject,
                "fingerprint": each.fingerprint,
                "not_after": datetime.fromtimestamp(each.not_after, UTC).date().isoformat(),
            }
            for each in generation.credentials.values()
        }
    return found


def _summary(path: Path, generation: Generation | None, problems: tuple[Problem, ...]) -> str:
    warnings = sum(problem.warning for problem in problems)
    if generation is None:
        return f"{_count(len(problems) - warnings, 'error')}, {_count(warnings, 'warning')}"
    from sidecert.admin.status import spell_match, spell_upstream

    lines = [f"{path}: fine" + (f", with {_count(warnings, 'warning')}" if warnings else "")]
    for listener in generation.config.listeners:
        pinned = f" (pinned to {listener.route})" if listener.route else ""
        lines.append(f"  listener    {listener.bind.label}{pinned}")
    lines.append(f"  admin       {generation.config.admin.bind.label}")
    for credential in generation.credentials.values():
        lines.append(
            f"  credential  {credential.id}: {credential.subject}, until {moment(credential.not_after)}"
        )
    for route in generation.routes.values():
        match = spell_match(route.config.match)
        lines.append(f"  route       {route.id}: {match} -> {spell_upstream(route)} as {route.credential_id}")
    return "\n".join(printable(line) for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
