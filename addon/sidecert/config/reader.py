"""Reads the sections of a config: each part on its own, then what the parts say of each other.

The second is checked from the values as written, so that a part with one problem does not hide another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sidecert.config.binds import Bind, bind
from sidecert.config.callers import troubles
from sidecert.config.checker import Checker
from sidecert.config.mistake import Mistake, nearest, shown
from sidecert.config.models import (
    AdminConfig,
    Config,
    CredentialConfig,
    LimitsConfig,
    ListenerConfig,
    RouteConfig,
)
from sidecert.config.nodes import KeyPath, ListNode, MappingNode, render
from sidecert.config.source import Source
from sidecert.config.values import drain, is_name, name
from sidecert.errors import Problem

_NAMES_SHOWN = 8  # known ids that a message lists
_GUESSES = 50  # unknown ids for which the nearest known one is looked for: each can take milliseconds


class Reader:
    """Reads one file, once."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._checker = Checker(source, folder)
        self._sections = self._checker.keys(Config, source.root, ())
        self._known: dict[str, dict[str, int]] = {"credentials": {}, "routes": {}}
        self._usable: dict[str, list[str]] = {}
        self._guesses = 0

    def read(self) -> Config:
        """All parts that are right."""
        self._version()
        self._know()
        parts: dict[str, Any] = {
            "listeners": self._listeners(),
            "admin": self._section(AdminConfig, "admin"),
            "credentials": self._credentials(),
            "routes": self._routes(),
            "limits": self._section(LimitsConfig, "limits"),
            "drain": self._drain(),
        }
        self._overlaps()
        return Config(version=1, **{key: part for key, part in parts.items() if part is not None})

    def problems(self) -> list[Problem]:
        """Errors and warnings, in the order of the file."""
        return sorted(self._checker.problems, key=lambda problem: problem.line or 0)

    def known(self, section: str) -> dict[str, int]:
        """The ids in `credentials` or `routes`, those of broken parts too, each with its index."""
        return self._known[section]

    def _version(self) -> None:
        version = self._sections.get("version")
        if version is not None and (isinstance(version, bool) or version != 1):
            right = "write version: 1" + (", without quotes" if version == "1" else "")
            self._checker.add(("version",), "this is not a version that this sidecert reads", right)

    def _know(self) -> None:
        credentials = self._sections.get("credentials")
        if isinstance(credentials, MappingNode):
            self._known["credentials"] = {each: index for index, each in enumerate(credentials)}
        for (_, index), raw in self._entries("routes"):
            each = _word(raw, "id")
            if each is None:
                continue
            first = self._known["routes"].setdefault(each, index)
            if first != index:
                line = self._line("routes", first, "id")
                wrong = f"{shown(each)} is the id of routes[{first}] too, on line {line}"
                self._checker.add(("routes", index, "id"), wrong, "give each route an id of its own")

    def _line(self, *path: str | int) -> int | None:
        return self._source.line(*path)

    def _section(self, model: type[AdminConfig] | type[LimitsConfig], key: str) -> Any:
        return self._checker.part(model, self._sections[key], (key,)) if key in self._sections else None

    def _drain(self) -> float | None:
        try:
            return drain(self._sections["drain"]) if "drain" in self._sections else None
        except Mistake as mistake:
            self._checker.add_mistake(("drain",), mistake)
            return None

    def _entries(self, section: str) -> list[tuple[tuple[str, int], Any]]:
        """The entries of a list that are something, each with its path."""
        raw = self._sections.get(section)
        if not isinstance(raw, ListNode):
            return []
        return [((section, index), entry) for index, entry in enumerate(raw) if entry is not None]

    def _list(self, section: str, wrong: str, right: str, warning: bool = False) -> None:
        """Note what is wrong with a list as such."""
        raw = self._sections.get(section)
        if raw is None or not self._checker.is_list(raw, (section,)):
            return
        if not raw:
            self._checker.add((section,), wrong, right, warning)
        for index, entry in enumerate(raw):
            if entry is None:
                self._checker.empty((section, index))

    # Listeners

    def _listeners(self) -> tuple[ListenerConfig, ...] | None:
        if "listeners" not in self._sections:
            return None
        right = "leave the key out to have one on 127.0.0.1:8080"
        self._list("listeners", "the list is empty, so nothing could call", right)
        listeners = []
        for path, raw in self._entries("listeners"):
            listeners.append(self._checker.part(ListenerConfig, raw, path))
            self._pin((*path, "route"), _word(raw, "route"))
        return tuple(listener for listener in listeners if listener)

    def _pin(self, path: KeyPath, wanted: str | None) -> None:
        """A pinned listener's route must exist and have one host to call."""
        if wanted is None or not self._refers(path, "routes", wanted):
            return
        index = self._known["routes"][wanted]
        route = self._sections["routes"][index]
        host = _word(_value(route, "match"), "host")
        if host and host.startswith("*") and _word(_value(route, "upstream"), "host") is None:
            wrong = f"route {shown(wanted)} is for {shown(host)}, which does not say which host to call"
            self._checker.add(path, wrong, f"give routes[{index}] an upstream.host, or pin another route")

    def _overlaps(self) -> None:
        """No two addresses may need one socket, and each listener says who may call."""
        seen: dict[tuple[str, object], list[tuple[KeyPath, Bind]]] = {}
        for path, address in self._binds():
            others = seen.setdefault((address.kind, address.port or address.path), [])
            # A listener's bind is its label in the metrics: port 0 twice would be two under one name.
            clash = next(
                (
                    (where, other)
                    for where, other in others
                    if address.overlaps(other) or (where[0] == path[0] and address.label == other.label)
                ),
                None,
            )
            if clash:
                verb = "is taken by" if address.host == clash[1].host else "overlaps with"
                wrong = f"{shown(address.label)} {verb} {self._whose(*clash)}"
                self._checker.add(path, wrong, "use another port or path")
            others.append((path, address))
            if path[0] == "listeners" and len(path) == 3:
                raw = self._sections["listeners"][path[1]]
                for each in troubles(address, raw.get("allow"), "mode" in raw):
                    self._checker.add((*path[:2], each.key), each.wrong, each.right, each.warning)

    def _whose(self, path: KeyPath, address: Bind) -> str:
        if path[0] in self._source.root:
            return f"{render(path)}, {address.label} on line {self._line(*path)}"
        return f"{render(path)}, {address.label} by default"

    def _binds(self) -> Iterator[tuple[KeyPath, Bind]]:
        """The addresses that can be read, those of broken parts too."""
        admin = self._sections.get("admin")
        raws: list[tuple[KeyPath, Any]] = [(("admin", "bind"), _value(admin, "bind") or AdminConfig().bind)]
        raws += [((*path, "bind"), _value(raw, "bind")) for path, raw in self._entries("listeners")]
        if "listeners" not in self._sections:
            raws += [(("listeners",), listener.bind) for listener in Config(version=1, routes=()).listeners]
        for path, raw in raws:
            try:
                yield path, bind(raw, self._folder)
            except Mistake:
                continue  # noted with its part

    # Credentials

    def _credentials(self) -> dict[str, CredentialConfig]:
        raw = self._sections.get("credentials")
        if raw is None or not self._checker.is_mapping(raw, ("credentials",)):
            return {}
        found = {each: self._credential(each, value) for each, value in raw.items()}
        return {each: credential for each, credential in found.items() if credential}

    def _credential(self, each: str, raw: object) -> CredentialConfig | None:
        path = ("credentials", each)
        before = len(self._checker.problems)
        try:
            if name(each).lower() == "none":
                raise Mistake("none is the word for no certificate", "give the credential another id")
        except Mistake as mistake:
            self._checker.add_mistake(path, mistake)
        if raw is None:
            self._checker.empty(path)
            return None
        credential = self._checker.part(CredentialConfig, raw, path)
        if isinstance(raw, MappingNode):
            self._one_form(path, raw)
        return credential if len(self._checker.problems) == before else None

    def _one_form(self, path: KeyPath, raw: MappingNode) -> None:
        """A credential is certificate + key, or pkcs12; the place of a secret is env or file."""
        has = [key for key in ("certificate", "key") if key in raw]
        lacks = [key for key in ("certificate", "key") if key not in raw]
        meant = {
            nearest(key, CredentialConfig.model_fields) for key in raw
        }  # misspelt keys are noted already
        if "pkcs12" in raw and has:
            wrong = f"pkcs12 is here together with {' and '.join(has)}"
            self._checker.add((*path, "pkcs12"), wrong, "keep either pkcs12, or certificate and key")
        elif not has and "pkcs12" not in meant and not meant.intersection(lacks):
            self._checker.add(path, "there is no certificate", "write certificate and key, or pkcs12")
        elif has and lacks and lacks[0] not in meant:
            right = f"write {lacks[0]}: FILE, the same file if it holds both"
            self._checker.add((*path, lacks[0]), "missing key", right)
        secret = raw.get("passphrase")
        if isinstance(secret, MappingNode) and set(secret) in ({"env", "file"}, set()):
            wrong = "both env and file are here" if secret else "neither env nor file is here"
            self._checker.add((*path, "passphrase"), wrong, "write {env: NAME} or {file: PATH}")

    # Routes

    def _routes(self) -> tuple[RouteConfig, ...]:
        right = "add a route, or leave it so to refuse all"
        self._list("routes", "the list is empty, so every call is refused", right, warning=True)
        routes = []
        for path, raw in self._entries("routes"):
            route = self._checker.part(RouteConfig, raw, path)
            if route and self._known["routes"][route.id] == path[1]:
                routes.append(route)
            wanted = _word(raw, "credential")
            if wanted is not None and wanted != "none":
                self._refers((*path, "credential"), "credentials", wanted)
            if _word(_value(raw, "upstream"), "trust") == "insecure":
                wrong = (
                    "NOT VERIFIED: whoever sits between can pose as the upstream, read and change every call"
                )
                right = "name the CA's file or write system; insecure is for a lab only"
                self._checker.add((*path, "upstream", "trust"), wrong, right, warning=True)
        return tuple(routes)

    def _refers(self, path: KeyPath, section: str, wanted: str) -> bool:
        """Whether a named part exists; notes it if not, unless the whole section cannot be read."""
        known = self._known[section]
        if wanted in known:
            return True
        if not is_name(wanted):
            return False  # noted with its part
        raw = self._sections.get(section)
        if raw is not None and not isinstance(raw, MappingNode | ListNode):
            return False
        names = self._names_to_use(section)
        self._guesses += 1
        near = nearest(wanted, names) if self._guesses <= _GUESSES else None
        if near:
            right = f"did you mean {near}?"
        elif names and names != ["none"]:
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            right = f"the {section} are {', '.join(names[:_NAMES_SHOWN])}{more}"
        else:
            right = f"there are no {section} here yet"
        self._checker.add(path, f"there is no {section[:-1]} {shown(wanted)}", right)
        return False

    def _names_to_use(self, section: str) -> list[str]:
        """What may be written where a part is referred to; bad names of parts are problems of their own."""
        names = self._usable.get(section)
        if names is None:
            names = self._usable[section] = [each for each in self._known[section] if is_name(each)]
            if section == "credentials":
                names.append("none")
        return names


def _value(raw: object, key: str) -> Any:
    return raw.get(key) if isinstance(raw, MappingNode) else None


def _word(raw: object, key: str) -> str | None:
    """A value as the text it was written as; None where there is none."""
    value = _value(raw, key)
    return (
        str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None
    )
