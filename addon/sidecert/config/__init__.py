"""The config file: YAML in, frozen models out, with every problem at once.

textfile -> source (YAML) -> checker (one part) -> reader (all parts, and what they say of each other)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecert.config.binds import Bind
from sidecert.config.hosts import bracket, host_port, normalise_host
from sidecert.config.models import (
    AdminConfig,
    CircuitConfig,
    Config,
    CredentialConfig,
    LimitsConfig,
    ListenerConfig,
    MatchConfig,
    PoolConfig,
    RouteConfig,
    TimeoutsConfig,
    TlsConfig,
    UpstreamConfig,
)
from sidecert.config.nodes import KeyPath
from sidecert.config.reader import Reader
from sidecert.config.schema import schema
from sidecert.config.secrets import SecretError, SecretSource
from sidecert.config.source import Source, load
from sidecert.errors import Problem

__all__ = [
    "AdminConfig",
    "Bind",
    "CircuitConfig",
    "Config",
    "CredentialConfig",
    "Draft",
    "LimitsConfig",
    "ListenerConfig",
    "MatchConfig",
    "PoolConfig",
    "RouteConfig",
    "SecretError",
    "SecretSource",
    "TimeoutsConfig",
    "TlsConfig",
    "UpstreamConfig",
    "bracket",
    "host_port",
    "normalise_host",
    "read",
    "schema",
]


@dataclass(frozen=True)
class Draft:
    """What a file holds. `config` has the parts that are right; the ids of the other routes are known too."""

    path: Path
    problems: list[Problem]
    config: Config
    known_routes: Mapping[str, int]
    """Where in the list each id stands."""
    source: Source

    def problem(self, path: KeyPath, wrong: str, right: str, warning: bool = False) -> Problem:
        """A problem located in this file."""
        return self.source.problem(path, wrong, right, warning)


def read(path: Path) -> Draft:
    """The config in a file. Nothing is raised for what a user can get wrong: see `Draft.problems`."""
    source = load(path)
    if not source.usable:
        return Draft(path, source.problems, Config(version=1, routes=()), {}, source)
    # not resolved: a mounted secret is rotated by swapping a symlink above the file
    reader = Reader(source, path.absolute().parent)
    config = reader.read()
    return Draft(path, reader.problems(), config, reader.known("routes"), source)
