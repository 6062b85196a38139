"""What is asked of whom: series of loads, each with its upstream and its contenders."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from support.certs import KeyKind
from support.peers import TlsVersion

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@dataclass(frozen=True)
class Ground:
    """The upstream that is called: its TLS version, the kind of the certificates' keys, and how far it is."""

    tls: TlsVersion = "1.3"
    key: KeyKind = "ec"
    round_trip_ms: int = 0


@dataclass(frozen=True)
class Variant:
    """How a proxy differs from its plain form. Not every proxy knows each."""

    routes: int = 1
    credentials: int = 1
    access_log: bool = False
    inspecting: bool = False  # a mitmproxy addon looks at every flow
    scraped: bool = False  # somebody reads the metrics page five times a second

    @property
    def words(self) -> str:
        found = [f"{self.routes} routes"] if self.routes > 1 else []
        found += [f"{self.credentials} credentials"] if self.credentials > 1 else []
        found += ["access log"] if self.access_log else []
        found += ["inspecting"] if self.inspecting else []
        found += ["scraped"] if self.scraped else []
        return ", ".join(found)


@dataclass(frozen=True)
class Contender:
    """A proxy in one form; its label names it in every table."""

    proxy: str
    variant: Variant = Variant()

    @property
    def label(self) -> str:
        return ", ".join(filter(None, (self.proxy, self.variant.words)))


@dataclass(frozen=True)
class Load:
    """One kind of calls. `size` is what a call moves up or down, told where it is the point of the load."""

    name: str
    words: str
    connections: int
    per_request: bool = False  # a connection for each call
    new_heads: bool = False  # no head is like another, of the requests nor of the answers
    fixed: bool = False  # at half the rate that sidecert sustains, and each call at its time
    path: str = "/"
    body: int = 0
    size: int = 0
    calls: int | None = None  # that many, instead of as many as can be made


@dataclass(frozen=True)
class Series:
    """Loads on the same processes, one after the other; others are compared with the first contender."""

    name: str
    loads: tuple[Load, ...]
    contenders: tuple[Contender, ...]
    ground: Ground = Ground()

    def scenario(self, load: Load) -> str:
        """The load's name, with the series' before it unless that is the plain one."""
        return load.name if self.name == "plain" else f"{self.name}/{load.name}"


def _keep_alive(connections: int) -> Load:
    plural = "s" if connections > 1 else ""
    return Load(f"keep-alive-{connections}", f"keep-alive, {connections} connection{plural}", connections)


def _per_request(connections: int) -> Load:
    words = f"a connection per request, {connections} at once"
    return Load(f"per-request-{connections}", words, connections, per_request=True)


def _fixed(connections: int) -> Load:
    words = f"half of what sidecert sustains, over {connections} connections"
    return Load(f"fixed-{connections}", words, connections, fixed=True)


def _down(size: int, name: str, **more: int) -> Load:
    return Load(f"get-{name}", f"GET of {name.upper()}iB", 1, path=f"/get-{name}", size=size, **more)


def _up(size: int, name: str, **more: int) -> Load:
    return Load(f"post-{name}", f"POST of {name.upper()}iB", 1, path="/post", body=size, size=size, **more)


_BOTH = (_keep_alive(10), _per_request(10))
_FIXED = tuple(_fixed(connections) for connections in (10, 50, 500))

EVERYBODY = tuple(
    Contender(name)
    for name in ("nginx", "sidecert", "haproxy", "envoy", "caddy", "stunnel", "nginx-unpooled", "mitmdump")
)
_PASSING_ON = tuple(each for each in EVERYBODY if each.proxy not in ("mitmdump", "nginx-unpooled"))
_NGINX, _SIDECERT = Contender("nginx"), Contender("sidecert")


def _sidecert(**variant: int) -> Contender:
    return Contender("sidecert", Variant(**variant))


SERIES = (
    Series(
        "plain",
        (
            *map(_keep_alive, (1, 10, 50, 500)),
            *map(_per_request, (1, 10, 50)),
            replace(
                _keep_alive(10),
                name="new-heads-10",
                words="keep-alive, 10 connections, every head a new one",
                new_heads=True,
            ),
        ),
        EVERYBODY,
    ),
    Series("bodies", (_down(KIB, "1k"), _up(100 * KIB, "100k"), _down(MIB, "1m")), EVERYBODY),
    Series("big", (_down(GIB, "1g", calls=1), _up(GIB, "1g", calls=1)), _PASSING_ON),
    Series("tls1.2-ec", _BOTH, EVERYBODY, Ground("1.2", "ec")),
    Series("tls1.2-rsa", _BOTH, EVERYBODY, Ground("1.2", "rsa")),
    Series("tls1.3-rsa", _BOTH, EVERYBODY, Ground("1.3", "rsa")),
    Series("rtt20", (_keep_alive(50), _per_request(10)), EVERYBODY, Ground(round_trip_ms=20)),
    Series("rtt100", (_keep_alive(50), _per_request(10)), EVERYBODY, Ground(round_trip_ms=100)),
    Series("routes", _BOTH, (_SIDECERT, _sidecert(routes=100), _sidecert(routes=10_000))),
    Series("credentials", _BOTH, (_SIDECERT, _sidecert(credentials=100), _sidecert(credentials=1000))),
    Series(
        "access-log",
        _BOTH,
        (_NGINX, Contender("nginx", Variant(access_log=True)), _SIDECERT, _sidecert(access_log=True)),
    ),
    Series(
        "inspecting",
        _BOTH,
        (Contender("mitmdump", Variant(inspecting=True)), _sidecert(inspecting=True), _SIDECERT),
    ),
    Series("fixed", _FIXED, (_NGINX, _SIDECERT)),
    Series("rtt20-fixed", _FIXED, (_NGINX, _SIDECERT), Ground(round_trip_ms=20)),
    Series("scraped", (_fixed(50),), (_SIDECERT, _sidecert(scraped=True))),
)

QUICK = ("keep-alive-50", "per-request-10")
"""The scenarios of `make bench` without arguments."""


def scenarios() -> Iterator[tuple[str, Series, Load]]:
    """All of them, in the order in which they run."""
    for series in SERIES:
        for load in series.loads:
            yield series.scenario(load), series, load


def chosen(patterns: Sequence[str], proxies: Sequence[str] = ()) -> list[Series]:
    """The series with only those loads whose scenario matches a pattern, and only those proxies, if told."""
    found = []
    for series in SERIES:
        loads = tuple(
            load
            for load in series.loads
            if any(fnmatch.fnmatch(series.scenario(load), each) for each in patterns)
        )
        contenders = tuple(each for each in series.contenders if not proxies or each.proxy in proxies)
        if loads and contenders:
            found.append(replace(series, loads=loads, contenders=contenders))
    return found
