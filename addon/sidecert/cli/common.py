"""What the commands share: finding the config, and telling people what is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from sidecert.errors import ConfigError, Problem
from sidecert.words import printable

FINE = 0
NO = 1
"""The command ran, and the answer is no."""
BAD_CONFIG = 2
"""Bad usage or config."""

_PLACES = (Path("sidecert.yaml"), Path("/etc/sidecert/sidecert.yaml"))


class ConfigCommand(click.Command):
    """A command with `-c`: a config that is named without it is told apart from other arguments too many."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_extra_args = True  # to see them

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            few = "argument" if len(ctx.args) == 1 else "arguments"
            ctx.fail(f"Got unexpected extra {few} ({' '.join(ctx.args)}).{meant_as_config(ctx.args[0])}")
        return ctx.args


def meant_as_config(argument: str) -> str:
    """A hint, with a blank before it, where an argument looks like a config file; else empty."""
    if argument.endswith((".yaml", ".yml")):
        return f" Did you mean -c {shlex.quote(argument)}?"
    return ""


def copyable(words: str, config: Path | None) -> str:
    """`words` with the `-c FILE` that was given in each command of ours, so that it works when copied."""
    if config is None:
        return words
    named = f" -c {shlex.quote(str(config))}"
    return re.sub(r"\bsidecert (?:check|doctor|why|run)\b(?! -c)", lambda found: found[0] + named, words)


def config_option[F: Callable[..., Any]](command: F) -> F:
    """`-c`/`--config`, handed to the command as `config: Path | None`; give it to `find_config`."""
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The config file (else $SIDECERT_CONFIG, ./sidecert.yaml, /etc/sidecert/sidecert.yaml).",
    )(command)


def json_option[F: Callable[..., Any]](command: F) -> F:
    """`--json`, handed to the command as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")(command)


def look_for_config(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The config file to use, absolute; None where there is none, for a command that can do without.

    A file that was named, by `-c` or SIDECERT_CONFIG, is never passed over for another.
    """
    named = given or Path(environ.get("SIDECERT_CONFIG") or "")
    if named != Path(""):
        return named.absolute()
    return next((place.absolute() for place in _PLACES if place.exists()), None)


def find_config(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The config file to use, as `look_for_config`. Where there is none, says so and exits with 2."""
    found = look_for_config(given, environ)
    if found is not None:
        return found
    looked = "".join(f"\n  {place.absolute()}" for place in _PLACES)
    context = click.get_current_context(silent=True)
    command = context.info_name if context is not None else "run"
    fail(
        f"no config file: neither -c nor SIDECERT_CONFIG names one, and there is none at{looked}\n"
        "write one there (config/example.yaml of the project shows every key), or name it: "
        f"sidecert {command} -c FILE"
    )


def report(problems: Iterable[Problem], *, err: bool = True) -> None:
    """Print each problem on a line of its own, warnings marked as such; to stderr unless `err` is false."""
    for problem in problems:
        click.echo(("warning: " if problem.warning else "") + printable(str(problem)), err=err)


def fail_config(error: ConfigError) -> NoReturn:
    """Print every problem to stderr (with --json, as an object to stdout) and exit with 2."""
    if _wants_json():
        _fail_as_json("the config cannot be used", [asdict(problem) for problem in error.problems])
    else:
        report(error.problems)
    raise SystemExit(BAD_CONFIG)


def fail(words: str, status: int = BAD_CONFIG) -> NoReturn:
    """Say on stderr (with --json, in an object on stdout) what is wrong and exit."""
    if _wants_json():
        _fail_as_json(words, [])
    else:
        click.echo(f"sidecert: {words}", err=True)
    raise SystemExit(status)


def _wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.params.get("as_json"))


def _fail_as_json(error: str, problems: list[dict[str, Any]]) -> None:
    click.echo(json.dumps({"ok": False, "error": error, "problems": problems}, indent=2))
