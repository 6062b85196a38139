"""What the commands share: finding the config, and telling people what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
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
    fail(
        f"no config file: neither -c nor SIDECERT_CONFIG names one, and there is none at{looked}\n"
        "write one there, or name it: sidecert run -c FILE"
    )


def report(problems: Iterable[Problem], *, err: bool = True) -> None:
    """Print each problem on a line of its own, warnings marked as such; to stderr unless `err` is false."""
    for problem in problems:
        click.echo(("warning: " if problem.warning else "") + printable(str(problem)), err=err)


def fail_config(error: ConfigError) -> NoReturn:
    """Print every problem to stderr and exit with 2."""
    report(error.problems)
    raise SystemExit(BAD_CONFIG)


def fail(words: str, status: int = BAD_CONFIG) -> NoReturn:
    """Say on stderr what is wrong and exit."""
    click.echo(f"sidecert: {words}", err=True)
    raise SystemExit(status)
