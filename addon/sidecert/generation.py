"""A loaded config with its credentials, contexts and routes: built whole or not at all, never changed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from OpenSSL import SSL

from sidecert import config as configs
from sidecert import credentials as loading
from sidecert import routing
from sidecert.config import Config, Draft, RouteConfig, bracket, host_port
from sidecert.credentials import Credential, fingerprints
from sidecert.errors import ConfigError, Problem, telling
from sidecert.presented import OwnCertificate
from sidecert.rewriting import Origin, own_origins
from sidecert.tls import TlsFailure, Trust, make_context
from sidecert.watch import Signature, Signatures, signature

_MOST_CHOSEN_HOSTS = 1024


@dataclass(slots=True)
class Habits:
    """What was learned of an upstream from its connections."""

    waits_for_us: bool = False
    """Under TLS 1.3 it said nothing of its own when it had taken a certificate: it sends no session tickets,
    or, as those built on BoringSSL do, only along with an answer."""
    asks_afterwards: bool = False
    """It has asked for a certificate on an open connection."""


@dataclass(frozen=True, slots=True, eq=False)
class Upstream:
    """One place that a route calls: where it is, and who it must prove to be."""

    route: Route
    host: str
    port: int
    server_name: str
    """Sent as SNI and looked for in the upstream's certificate."""
    host_header: bytes
    own_origins: frozenset[Origin]
    """Whatever it calls its own origin: addresses there come back as the caller's (`rewriting`)."""
    chosen_by_caller: bool
    """The host came from a request, through a wildcard: it may not be a private address."""
    habits: Habits

    @property
    def label(self) -> str:
        """`host:port`, as people write it."""
        return host_port(self.host, self.port)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A configured route, ready to be called under."""

    config: RouteConfig
    credential: Credential | None
    trust: Trust
    context: SSL.Context
    identity: tuple[object, ...]
    """Equal where a connection made under one route may be used under the other: everything that decides
    whom a connection leads to and whose certificate it carries."""
    _upstreams: dict[str, Upstream] = field(default_factory=dict)
    _habits: dict[str, Habits] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def credential_id(self) -> str:
        """The credential's id, `none` where the route has none on purpose."""
        return "none" if self.credential is None else self.credential.id

    @property
    def own(self) -> OwnCertificate | None:
        """The certificate that it presents, as words need it; None where it presents none."""
        return None if self.credential is None else self.credential.own

    def upstream(self, matched_host: str) -> Upstream:
        """The upstream for a call to `matched_host` (as `routing` normalised it)."""
        upstream = self._upstreams.get(matched_host)
        if upstream is None:
            if len(self._upstreams) >= _MOST_CHOSEN_HOSTS:
                self._upstreams.clear()
                self._habits.clear()
            upstream = self._upstreams[matched_host] = self._make_upstream(matched_host)
        return upstream

    def take_habits(self, before: Route) -> None:
        """Go on with what was learned under `before`, a route of the same identity."""
        self._habits.update(before._habits)

    def _make_upstream(self, matched_host: str) -> Upstream:
        settings = self.config.upstream
        host = settings.host or matched_host
        server_name = settings.server_name or host
        host_header = settings.host_header or _host_header(host, settings.port)
        return Upstream(
            route=self,
            host=host,
            port=settings.port,
            server_name=server_name,
            host_header=host_header.encode("ascii"),
            own_origins=own_origins(host, settings.port, server_name, host_header),
            chosen_by_caller=settings.host is None and self.config.match.host.startswith("*."),
            habits=self._habits.setdefault(matched_host, Habits()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Everything that one load of the config gave."""

    number: int
    path: Path
    config: Config
    credentials: dict[str, Credential]
    routes: dict[str, Route]
    router: routing.Router
    warnings: tuple[Problem, ...]
    files: Signatures
    """How each file looked before it was read."""


def with_credentials(generation: Generation, others: Mapping[str, Credential]) -> Generation:
    """`generation` with `others` in the place of those of its credentials that have the same ids.

    Raises TlsFailure where OpenSSL does not take one of them, which a credential that was in use never is.
    """
    contexts: dict[tuple[object, ...], SSL.Context] = {}
    routes = {
        id: _make_route(route.config, others[route.credential_id], route.trust, contexts)
        if route.credential_id in others
        else route
        for id, route in generation.routes.items()
    }
    kept = {id: others.get(id, credential) for id, credential in generation.credentials.items()}
    return replace(generation, credentials=kept, routes=routes)


def build(
    path: Path,
    number: int,
    environ: Mapping[str, str] = os.environ,
    now: float | None = None,
    *,
    files: Signatures | None = None,
    before: Mapping[str, Credential] | None = None,
) -> Generation:
    """Load `path` and all files that it names.

    Raises ConfigError with every problem, errors and warnings, when there is an error among them.
    `now` is in seconds since the epoch, to judge validity by. `files` is filled with how each file looked
    before it was read, also those that are not there, and also where this raises. `before` are the
    credentials in force: what their files held is not opened again.
    """
    files = {} if files is None else files
    files[path] = signature(path)
    if before is not None:
        _check_is_still_there(path, files[path])
    draft = configs.read(path)
    now = time.time() if now is None else now
    builder = _Builder(draft, environ, now, files, before or {})
    credentials = builder.load_credentials()
    routes = builder.make_routes(credentials)
    problems = sorted([*builder.problems, *routing.ties(draft)], key=lambda problem: problem.line or 0)
    if any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    router = routing.Router(draft.config.routes)
    return Generation(number, path, draft.config, credentials, routes, router, telling(problems), files)


def _check_is_still_there(path: Path, looks: Signature) -> None:
    """Raises ConfigError where the config file that was loaded once is none any more."""
    if path.is_fifo():  # at the start it may be one: `-c <(...)`
        wrong, right = "this is a named pipe by now, which may never be written", "put the config file back"
    elif looks.error == errno.ENOENT:
        wrong = "the config file is gone"
        right = "put it back: what it held goes on being served, but a restart would find nothing"
    else:
        return
    raise ConfigError([Problem(str(path), None, "", wrong, right)])


class _Builder:
    def __init__(
        self,
        draft: Draft,
        environ: Mapping[str, str],
        now: float,
        files: Signatures,
        before: Mapping[str, Credential],
    ) -> None:
        self.draft = draft
        self.problems = list(draft.problems)
        self._environ = environ
        self._now = now
        self._files = files
        self._known = {each.opened.mark: each.opened for each in before.values()}
        self._trusts: dict[Path, tuple[x509.Certificate, ...] | None] = {}
        self._contexts: dict[tuple[object, ...], SSL.Context] = {}

    def load_credentials(self) -> dict[str, Credential]:
        loaded = {}
        for id, settings in self.draft.config.credentials.items():
            self._note(*settings.files)
            credential, findings = loading.load(id, settings, self._environ, self._now, self._known)
            for finding in findings:
                self._add(("credentials", id, finding.key), finding.wrong, finding.right, finding.warning)
            if credential is not None:
                self._known.setdefault(credential.opened.mark, credential.opened)
                loaded[id] = credential
        return loaded

    def make_routes(self, credentials: Mapping[str, Credential]) -> dict[str, Route]:
        routes = {}
        for settings in self.draft.config.routes:
            trust = self._load_trust(settings)
            credential = credentials.get(settings.credential) if settings.credential else None
            if trust is None or (settings.credential and credential is None):
                continue  # the problem is on the list already
            try:
                routes[settings.id] = _make_route(settings, credential, trust, self._contexts)
            except TlsFailure as exc:
                self._add(
                    (*self._route_path(settings), "credential"),
                    f"OpenSSL does not take credential {settings.credential!r} ({exc})",
                    "use a certificate and key that a TLS library of today accepts",
                )
        return routes

    def _load_trust(self, settings: RouteConfig) -> Trust | None:
        trust = settings.upstream.trust
        if not isinstance(trust, Path):
            return trust
        if trust not in self._trusts:
            self._note(trust)
            certificates, findings = loading.load_trust(trust, self._now)
            path = (*self._route_path(settings), "upstream", "trust")
            for finding in findings:
                self._add(path, finding.wrong, finding.right, finding.warning)
            self._trusts[trust] = certificates or None
        return self._trusts[trust]

    def _route_path(self, settings: RouteConfig) -> tuple[str | int, ...]:
        return ("routes", self.draft.known_routes[settings.id])

    def _note(self, *paths: Path) -> None:
        for path in paths:
            self._files.setdefault(path, signature(path))

    def _add(self, path: tuple[str | int, ...], wrong: str, right: str, warning: bool = False) -> None:
        self.problems.append(self.draft.problem(path, wrong, right, warning))


def _make_route(
    settings: RouteConfig,
    credential: Credential | None,
    trust: Trust,
    contexts: dict[tuple[object, ...], SSL.Context],
) -> Route:
    """Routes with the same credential, trust and TLS settings share one of `contexts`. Raises TlsFailure."""
    presented = () if credential is None else credential.presented
    trusted = trust if isinstance(trust, str) else fingerprints(trust)
    key = (presented, trusted, settings.upstream.tls)
    context = contexts.get(key)
    if context is None:
        context = contexts[key] = make_context(credential, trust, settings.upstream.tls)
    place = (settings.id, settings.match.host, settings.private, settings.upstream)
    # The credential's id too: its connections are counted and explained under it.
    identity = (place, settings.credential, presented, trusted)
    return Route(settings, credential, trust, context, identity)


def _host_header(host: str, port: int) -> str:
    """What a client of `https://host:port/` sends as Host (RFC 9110 section 7.2)."""
    return bracket(host) if port == 443 else host_port(host, port)
