"""Which route a request takes. Pure: values in, a route or a Refusal out.

All routes that match a request's host, port, path and method compete and the most specific one wins; the
order in the file plays no part. So what the routes of an exact host leave over, by port, path or
method, the routes of a wildcard around it may still take.

A lookup costs the labels of the host and the segments of the path, not the number of routes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sidecert import paths
from sidecert.config import normalise_host
from sidecert.errors import Problem, Reason, Refusal
from sidecert.routing.rules import HostRules, Rule, shown

if TYPE_CHECKING:
    from sidecert.config import Draft, RouteConfig

__all__ = ["WHY", "Candidate", "Router", "conflicts", "ties"]

_NAMED = 5  # hosts or routes that an answer names: a refusal stays short, and cheap to make
_SEARCHED = 50  # hosts that are searched for the one the caller may have meant
_CONFLICTS = 1000  # pairs that are told: one route pasted 10,000 times makes 50 million
WHY = "`sidecert why URL` tells of each route why it does not match"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What `sidecert why` says of one route: whether all its conditions hold, and why it wins or loses."""

    route: RouteConfig
    matched: bool
    reason: str
    other_host: bool = False


class Router:
    """Finds a request's route among those of a config. Never changes once built."""

    def __init__(self, routes: Sequence[RouteConfig]) -> None:
        self._rules = sorted(map(Rule, routes), key=lambda rule: rule.rank, reverse=True)
        self._by_id = {rule.route.id: rule for rule in self._rules}
        self._exact: dict[str, HostRules] = {}
        self._wild: dict[str, HostRules] = {}
        for rule in self._rules:
            (self._exact if rule.exact else self._wild).setdefault(rule.host, HostRules()).add(rule)

    def find(self, host: str, port: int, path: bytes, method: bytes) -> tuple[RouteConfig, str]:
        """The route of a request, and the host it matched, normalised.

        `host` and `port` are the caller's (no brackets), `path` is raw and has no query. Raises Refusal:
        BAD_REQUEST (also where some services read the path as one that the route does not take),
        METHOD_NOT_ALLOWED (all but the method matches) or NO_ROUTE.
        """
        parts = _segments(path)
        exact = self._exact.get(host)  # most callers write the host as the config does
        if exact is not None and (rule := exact.pick(port, parts, method, [])) is not None:
            if paths.has_readings(path):
                self._check_readings(rule, host, port, path, parts, method)
            return rule.route, host
        host = _normalised(host)
        missed: list[Rule] = []
        if (rule := self._pick(host, port, parts, method, missed)) is not None:
            if paths.has_readings(path):
                self._check_readings(rule, host, port, path, parts, method)
            return rule.route, host
        if missed:
            raise _wrong_method(missed, method)
        raise self._no_route(host, port, path, parts, method)

    def _pick(
        self, host: str, port: int, parts: list[bytes], method: bytes, missed: list[Rule]
    ) -> Rule | None:
        for rules in self._around(host):
            if (rule := rules.pick(port, parts, method, missed)) is not None:
                return rule
        return None

    def _check_readings(
        self, rule: Rule, host: str, port: int, path: bytes, parts: list[bytes], method: bytes
    ) -> None:
        """Refuse a path that, read as some services read it, is not `rule`'s: another route's, or no route's.

        Such a service would execute what `rule` is not for, under the certificate of `rule`.
        """
        if rule.pattern is None and sum(len(rules.rules) for rules in self._around(host)) == 1:
            return
        for reading in paths.other_readings(parts):
            other = self._pick(host, port, reading, method, [])
            if other is rule or (other is None and rule.takes_reading(reading)):
                continue
            raise _two_ways(
                "the path can be read in two ways that belong to different routes"
                if other
                else "the path can be read in two ways, and only one belongs to a route",
                f"{shown(path)} is for {rule.route.id}",
                f"{shown(b'/'.join(reading))} is for {other.route.id if other else 'none'}",
            )

    def _around(self, host: str) -> Iterator[HostRules]:
        """What the config has for a normalised host: itself, then the wildcards around it, longest first."""
        if (exact := self._exact.get(host)) is not None:
            yield exact
        dot = host.find(".") if self._wild else -1
        while dot >= 0:
            if (wild := self._wild.get(host[dot + 1 :])) is not None:
                yield wild
            dot = host.find(".", dot + 1)

    def _no_route(self, host: str, port: int, path: bytes, parts: list[bytes], method: bytes) -> Refusal:
        detail = f"no route takes host {shown(host)}, port {port}, path {shown(path)}"
        near = list(islice((rule for rules in self._around(host) for rule in rules.rules), _NAMED))
        if not near:
            return Refusal.of(Reason.NO_ROUTE, detail, self._hosts_in_words(host))
        objections = ((rule, rule.objection(host, port, path, parts, method)) for rule in near)
        why = "; ".join(f"{rule.route.id}: {objection[1]}" for rule, objection in objections if objection)
        return Refusal.of(Reason.NO_ROUTE, f"{detail} ({why})", WHY)

    def _hosts_in_words(self, host: str) -> str:
        count = len(self._exact) + len(self._wild)
        if count > _SEARCHED:
            return f"{count} other hosts are configured; {WHY}"
        names = sorted([*self._exact, *("*." + name for name in self._wild)])
        if count <= _NAMED:
            return f"the configured hosts are {', '.join(names)}" if names else "no route is configured"
        distance, near = min((_distance(name, host), name) for name in names)
        hint = f", the nearest is {near}" if 3 * distance <= max(len(near), len(host)) else ""
        return f"{count} other hosts are configured{hint}; {WHY}"

    def find_pinned(
        self, route_id: str, host: str | None, listener_hosts: frozenset[str], path: bytes, method: bytes
    ) -> tuple[RouteConfig, str]:
        """The route of a pinned listener, and the host to call, for a request that came to that listener.

        `host` is None where the request has none (HTTP/1.0). `listener_hosts` are the listener's own
        addresses, normalised, without port and brackets, such as {"127.0.0.1", "::1"}; `localhost` counts as
        one everywhere. No port is compared. The host that is returned is the caller's where `match.host`
        matches it, else `match.host`, or `upstream.host` where that is a wildcard. Raises Refusal as `find`
        does, or HOST_NOT_ALLOWED; KeyError for an unknown id.
        """
        rule = self._by_id[route_id]
        parts = _segments(path)
        called = _pinned_host(rule, host, listener_hosts)
        if not rule.takes_path(parts):
            detail = f"this listener belongs to route {route_id}: {rule.path_differs(path)}"
            raise Refusal.of(Reason.NO_ROUTE, detail, "call a path of that route, or another listener")
        for reading in paths.other_readings(parts) if paths.has_readings(path) else ():
            if not rule.takes_reading(reading):
                raise _two_ways(
                    f"the path can be read in two ways, and only one is for this listener's route {route_id}",
                    f"{shown(path)} is",
                    f"{shown(b'/'.join(reading))} is not",
                )
        if not rule.takes_method(method):
            raise _wrong_method([rule], method)
        return rule.route, called

    def explain(self, host: str, port: int, path: bytes, method: bytes) -> list[Candidate]:
        """Every route with why it wins or loses: the winner, other matches, then the nearest misses first.

        The arguments are those of `find`. Raises Refusal BAD_REQUEST where `find` does.
        """
        host, parts = _normalised(host), _segments(path)
        matches: list[Candidate] = []
        misses: list[tuple[int, Candidate]] = []
        winner: Rule | None = None
        for rule in self._rules:
            objection = rule.objection(host, port, path, parts, method)
            if objection is not None:
                misses.append((objection[0], Candidate(rule.route, False, objection[1], objection[0] == 0)))
            elif winner is not None:
                matches.append(Candidate(rule.route, True, rule.less_specific_than(winner)))
            else:
                winner = rule
                matches.append(Candidate(rule.route, True, "the most specific route that matches"))
        if winner is not None and paths.has_readings(path):
            self._check_readings(winner, host, port, path, parts, method)
        misses.sort(key=lambda miss: -miss[0])
        return matches + [candidate for _, candidate in misses]


def conflicts(routes: Sequence[RouteConfig]) -> list[tuple[RouteConfig, RouteConfig]]:
    """The pairs of routes that tie and overlap: some request matches both, and neither is more specific.

    Each pair once, in the order of `routes`; the first 1,000 pairs at most.
    """
    groups: dict[object, list[Rule]] = {}
    for rule in map(Rule, routes):
        groups.setdefault((rule.host, rule.port, rule.rank), []).append(rule)
    return list(islice((pair for group in groups.values() for pair in _overlapping(group)), _CONFLICTS))


def ties(draft: Draft) -> list[Problem]:
    """The conflicts among the routes of a config, each as a problem of the later route's `match`."""
    return [
        draft.problem(
            ("routes", draft.known_routes[second.id], "match"),
            f"matches the same requests as route {first.id!r}, and neither is more specific",
            "make one of them more specific: by host, port, path or methods",
        )
        for first, second in conflicts(draft.config.routes)
    ]


def _overlapping(rules: list[Rule]) -> Iterator[tuple[RouteConfig, RouteConfig]]:
    """The pairs among rules of one host, port and rank that overlap in path and method."""
    if len(rules) < 2:
        return
    for first, second in paths.overlaps([rule.pattern for rule in rules]):
        one, two = rules[first], rules[second]
        if one.methods is None or two.methods is None or one.methods & two.methods:
            yield one.route, two.route


def _pinned_host(rule: Rule, host: str | None, listener_hosts: frozenset[str]) -> str:
    """The host that a call to a pinned listener means. A page that rebinds DNS fails here."""
    match, upstream = rule.route.match.host, rule.route.upstream.host
    if host is not None:
        if host == match:
            return host
        host = _normalised(host)
        if rule.takes_host(host):
            return host
        if host not in ("localhost", upstream) and host not in listener_hosts:
            allowed = dict.fromkeys([match, upstream or match, *sorted(listener_hosts)[:_NAMED], "localhost"])
            detail = f"this listener belongs to route {rule.route.id} and does not answer for {shown(host)}"
            raise Refusal.of(Reason.HOST_NOT_ALLOWED, detail, f"use one of {', '.join(allowed)}")
    if rule.exact:
        return match
    if upstream is None:
        detail = f"the request does not say which of the hosts of {match} it wants"
        raise Refusal.of(Reason.HOST_NOT_ALLOWED, detail, "name one in Host, or set upstream.host")
    return upstream


def _segments(path: bytes) -> list[bytes]:
    try:
        return paths.segments(path)
    except ValueError as error:
        detail = f"{error}: {shown(path)}"
        raise Refusal.of(Reason.BAD_REQUEST, detail, "send a path without that") from error


def _two_ways(wrong: str, sent: str, read: str) -> Refusal:
    return Refusal.of(
        Reason.BAD_REQUEST,
        f"{wrong}: {sent}, but some services read it as another path, and {read}",
        "send the path without //, %2F, ; and %3B, as the service is to read it, or let match.path take both",
    )


def _normalised(host: str) -> str:
    try:
        return normalise_host(host)
    except ValueError as error:
        detail = f"{shown(host) or 'an empty text'} is not a host"
        raise Refusal.of(Reason.BAD_REQUEST, detail, "send a host name or an address") from error


def _wrong_method(missed: Sequence[Rule], method: bytes) -> Refusal:
    taken = "; ".join(f"{rule.route.id} takes {rule.methods_in_words()}" for rule in missed[:_NAMED])
    detail = f"{shown(method)} is for no route here ({taken})"
    return Refusal.of(Reason.METHOD_NOT_ALLOWED, detail, "use one of these methods, or add it to the route")


def _distance(name: str, host: str) -> int:
    """How many characters must be put in, left out or changed to make one name of the other."""
    before = list(range(len(host) + 1))
    for row, letter in enumerate(name, 1):
        now = [row]
        for column, other in enumerate(host, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != other)))
        before = now
    return before[-1]
