"""A route's `match`, made ready to be compared with requests, and the trees that rules are found in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecert import paths, words

if TYPE_CHECKING:
    from sidecert.config import RouteConfig

_SHOWN = 120  # characters of a caller's text that are quoted back
_REST = (paths.MANY,)


def shown(value: str | bytes) -> str:
    """A caller's text, fit for an answer and a log: no query, nothing unprintable, at most 120 characters."""
    raw = value.encode("ascii", "backslashreplace") if isinstance(value, str) else value
    return words.shown(raw[: _SHOWN + 1].partition(b"?")[0], _SHOWN)


class Rule:
    """What one route asks of a request. `host` is without the `*.` of a wildcard; `rank` sorts.

    The more specific a rule, the greater its rank: exact host, labels of a wildcard, a port, the path
    (`Pattern.rank`; no path has no literal characters), methods.
    """

    __slots__ = ("exact", "host", "methods", "pattern", "port", "rank", "readings", "route", "tail")

    def __init__(self, route: RouteConfig) -> None:
        match = route.match
        self.route = route
        self.exact = not match.host.startswith("*.")
        self.host = match.host if self.exact else match.host[2:]
        self.port = match.port
        self.methods = None if match.methods is None else frozenset(name.encode() for name in match.methods)
        self.pattern = None if match.path is None else paths.Pattern.of(match.path)
        self.readings = [] if self.pattern is None else self.pattern.readings()
        self.tail = () if self.pattern is None else self.pattern.tail
        self.rank = (
            self.exact,
            0 if self.exact else self.host.count(".") + 1,
            self.port is not None,
            (False, 0, 0) if self.pattern is None else self.pattern.rank,
            self.methods is not None,
        )

    def takes_host(self, host: str) -> bool:
        """Whether it matches a normalised host."""
        return host == self.host if self.exact else host.endswith("." + self.host)

    def takes_path(self, parts: Sequence[bytes]) -> bool:
        """Whether it matches a path, given as `paths.segments` gives it."""
        return self.pattern is None or self.pattern.matches(parts)

    def takes_reading(self, parts: Sequence[bytes]) -> bool:
        """Whether it matches one of a path's `paths.other_readings`.

        Who writes `/a%2Fb` into the config calls a service that reads `/a/b`, if it does, on purpose.
        """
        return self.takes_path(parts) or any(pattern.matches(parts) for pattern in self.readings)

    def takes_method(self, method: bytes) -> bool:
        return self.methods is None or method in self.methods

    def methods_in_words(self) -> str:
        return " or ".join(sorted(self.route.match.methods or ()))

    def path_differs(self, path: bytes) -> str:
        """That the path does not match, in words."""
        return f"the path {shown(path)} does not match {self.route.match.path}"

    def objection(
        self, host: str, port: int, path: bytes, parts: Sequence[bytes], method: bytes
    ) -> tuple[int, str] | None:
        """The first condition a request does not meet: how many it did meet, and what is wrong in words."""
        if not self.takes_host(host):
            name = self.route.match.host
            if not self.exact and host == self.host:
                return 0, f"the wildcard {name} does not match {host} itself"
            return 0, f"the host differs: {name} wanted"
        if self.port is not None and self.port != port:
            return 1, f"port {self.port} wanted, the URL has {port}"
        if not self.takes_path(parts):
            return 2, self.path_differs(path)
        if not self.takes_method(method):
            return 3, f"method {self.methods_in_words()} wanted, not {shown(method)}"
        return None

    def less_specific_than(self, other: Rule) -> str:
        """Why `other` comes first when both match, in words."""
        reasons = (
            "its host is a wildcard",
            "its wildcard has fewer labels",
            "it names no port",
            self._path_less_specific_than(other),
            "it names no methods",
        )
        pairs = zip(self.rank, other.rank, reasons, strict=True)
        why = next((text for own, its, text in pairs if own != its), "the two tie")
        return f"less specific than {other.route.id}: {why}"

    def _path_less_specific_than(self, other: Rule) -> str:
        if self.pattern is None or other.pattern is None:
            return "it names no path"
        reasons = (
            "its path has a wildcard",
            "its path has fewer literal characters before the first *",
            "its path has fewer literal characters",
        )
        pairs = zip(self.pattern.rank, other.pattern.rank, reasons, strict=True)
        return next((text for own, its, text in pairs if own != its), "")


class _Node:
    __slots__ = ("children", "ends", "opens")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.ends: list[Rule] = []  # their patterns end here, with no wildcard
        self.opens: list[Rule] = []  # their first wildcard comes next


class Tree:
    """The rules of one host and one port (or none), by the literal segments their paths begin with."""

    __slots__ = ("pathless", "root")

    def __init__(self) -> None:
        self.root = _Node()
        self.pathless: list[Rule] = []

    def add(self, rule: Rule) -> None:
        """Add a rule; more specific ones must be added first."""
        if rule.pattern is None:
            self.pathless.append(rule)
            return
        node = self.root
        for segment in rule.pattern.prefix:
            node = node.children.setdefault(segment, _Node())
        (node.opens if rule.tail else node.ends).append(rule)

    def pick(self, parts: list[bytes], method: bytes, missed: list[Rule]) -> Rule | None:
        """The most specific rule that takes the path and the method.

        Rules that only the method rules out are added to `missed`. A deeper node stands for more literal
        characters, so the rules that are met on the way down are tried on the way back.
        """
        node = self.root
        met: list[tuple[int, list[Rule]]] = []
        for depth, part in enumerate(parts, 1):
            below = node.children.get(part)
            if below is None:
                break
            node = below
            if node.opens:
                met.append((depth, node.opens))
        else:
            for rule in node.ends:
                if rule.methods is None or method in rule.methods:
                    return rule
                missed.append(rule)
        while met:
            depth, rules = met.pop()
            for rule in rules:
                if rule.tail == _REST or paths.tail_matches(rule.tail, parts, depth):
                    if rule.methods is None or method in rule.methods:
                        return rule
                    missed.append(rule)
        for rule in self.pathless:
            if rule.methods is None or method in rule.methods:
                return rule
            missed.append(rule)
        return None


class HostRules:
    """The rules of one `match.host`: all of them, the most specific first, and their trees by port."""

    __slots__ = ("rules", "trees")

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.trees: dict[int | None, Tree] = {}

    def add(self, rule: Rule) -> None:
        """Add a rule; more specific ones must be added first."""
        self.rules.append(rule)
        self.trees.setdefault(rule.port, Tree()).add(rule)

    def pick(self, port: int, parts: list[bytes], method: bytes, missed: list[Rule]) -> Rule | None:
        """The most specific rule that takes the port, the path and the method (see `Tree.pick`)."""
        tree = self.trees.get(port)
        if tree is not None and (rule := tree.pick(parts, method, missed)) is not None:
            return rule
        tree = self.trees.get(None)
        return None if tree is None else tree.pick(parts, method, missed)
