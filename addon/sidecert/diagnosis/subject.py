"""What is examined: an upstream, whom it must prove to be, and the certificates to try on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecert import credentials as loading
from sidecert.config import MatchConfig, RouteConfig, UpstreamConfig, normalise_host
from sidecert.config.mistake import nearest, shown
from sidecert.credentials import Credential
from sidecert.errors import SidecertError
from sidecert.generation import Generation, Route, Upstream
from sidecert.tls import Trust, make_context

_MOST_PORT = 65535


class NoSubject(SidecertError):
    """There is nothing to examine by what the user wrote; the text says what would be right."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An upstream and what to try on it."""

    upstream: Upstream
    trust: Trust
    route: str | None
    """The route whose settings apply; None where no route leads there, and the defaults do."""
    wanted: tuple[Credential | None, ...]
    """The upstream's verdict on these is the answer: yes where it takes one. None: no certificate."""
    others: tuple[Credential, ...]
    """Tried when none of those is taken."""

    @property
    def trust_label(self) -> str:
        return str(self.upstream.route.config.upstream.trust)


def of_route(generation: Generation, id: str, credential: str | None = None) -> Subject:
    """The upstream of a route under its own credential, or the one that is named instead.

    Raises NoSubject.
    """
    route = generation.routes.get(id)
    if route is None:
        near = nearest(id, generation.routes)
        right = f"did you mean {near}?" if near else f"the routes are: {', '.join(generation.routes)}"
        raise NoSubject(f"no route is called {shown(id)}; {right} (a host needs its port: {id}:8443)")
    upstream = upstream_of(route)
    if upstream is None:
        host = route.config.match.host
        raise NoSubject(
            f"route {id} takes its host from the call ({host}); name one: sidecert doctor "
            f"{host.replace('*', 'NAME', 1)}:{route.config.upstream.port}"
        )
    trust = _trust_of(route)
    if credential is not None:
        return Subject(upstream, trust, id, (_named(generation, credential),), ())
    # A route that checks nothing may lead to anybody: it gets its own certificate, as in calls, and no other.
    others = () if trust == "insecure" else tuple(_besides(generation, route.credential))
    return Subject(upstream, trust, id, (route.credential,), others)


def of_address(generation: Generation | None, text: str, credential: str | None = None) -> Subject:
    """`HOST:PORT` under every credential there is, or the one that is named.

    The settings are those of a route that leads there, where one does. Raises NoSubject.
    """
    host, port = _parse(text)
    leading = _leading_to(generation, host, port, credential) if generation is not None else None
    route = leading or _route_to(host, port)
    trust = _trust_of(route)
    wanted: tuple[Credential | None, ...]
    if credential is not None:
        if generation is None:
            raise NoSubject("--credential names one of a config, and there is no config; name it with -c")
        wanted = (_named(generation, credential),)
    elif generation is None or trust == "insecure":
        wanted = (route.credential,)
    else:
        own = [route.credential] if route.credential else []
        wanted = (*own, *_besides(generation, route.credential)) or (None,)
    return Subject(route.upstream(host), trust, leading.id if leading else None, wanted, ())


def upstream_of(route: Route) -> Upstream | None:
    """Where a route calls; None where only a call says so."""
    host = route.config.match.host
    if route.config.upstream.host is None and host.startswith("*."):
        return None
    return route.upstream(host)


def _named(generation: Generation, id: str) -> Credential | None:
    if id == "none":
        return None
    if id in generation.credentials:
        return generation.credentials[id]
    near = nearest(id, generation.credentials)
    known = ", ".join(generation.credentials) or "the config has none"
    right = f"did you mean {near}?" if near else f"the credentials are: {known}"
    raise NoSubject(f"no credential is called {shown(id)}; {right}")


def _besides(generation: Generation, own: Credential | None) -> Iterator[Credential]:
    return (each for each in generation.credentials.values() if own is None or each.id != own.id)


def _leading_to(generation: Generation, host: str, port: int, credential: str | None) -> Route | None:
    """The route that is likeliest meant: under that credential, and to that host and no pattern."""

    def rank(route: Route) -> tuple[bool, bool]:
        return route.credential_id != credential, upstream_of(route) is None

    leading = [
        route
        for route in generation.routes.values()
        if route.config.upstream.port == port and _leads_to(route, host)
    ]
    return min(leading, key=rank, default=None)


def _leads_to(route: Route, host: str) -> bool:
    upstream = upstream_of(route)
    if upstream is not None:
        return upstream.host == host
    return host.endswith(route.config.match.host.removeprefix("*"))


def _route_to(host: str, port: int) -> Route:
    """A route of no config, with the defaults: the system's CAs, and no certificate."""
    settings = UpstreamConfig(host=host, port=port)
    config = RouteConfig(id="doctor", match=MatchConfig(host=host), upstream=settings, credential=None)
    return Route(config, None, "system", make_context(None, "system", settings.tls), ())


def _trust_of(route: Route) -> Trust:
    trust = route.config.upstream.trust
    if not isinstance(trust, Path):
        return trust
    certificates, findings = loading.load_trust(trust)
    if not certificates:  # it was there when the config was read
        raise NoSubject("; ".join(finding.wrong for finding in findings))
    return certificates


def _parse(text: str) -> tuple[str, int]:
    host, _, number = text.rpartition(":")
    try:
        if "/" in text:
            raise ValueError("a URL or a path is not taken; write HOST:PORT, such as orders.example.com:8443")
        if not number.isascii() or not number.isdigit() or not 0 < int(number) <= _MOST_PORT:
            raise ValueError("it needs a port behind its last colon, such as orders.example.com:8443")
        if ":" in host and not host.startswith("["):
            raise ValueError(f"an IPv6 address needs brackets: [{host}]:{number}")
        return normalise_host(host), int(number)
    except ValueError as error:
        raise NoSubject(f"{shown(text)} is neither a route nor HOST:PORT: {error}") from None
