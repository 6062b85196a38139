"""Checks one part of a config against its model: known keys, nothing empty, nothing missing, every value."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from sidecert.config.fields import Model
from sidecert.config.mistake import Mistake, kind, nearest
from sidecert.config.models import Config
from sidecert.config.nodes import KeyPath, ListNode, MappingNode
from sidecert.config.source import Source
from sidecert.errors import Problem

_Part = TypeVar("_Part", bound=Model)

_ROUTE = "{id: orders, match: {host: orders.example.com}, credential: alice}"
# What to write for a key that is missing, empty or of the wrong shape.
EXAMPLES = {
    "version": "version: 1",
    "listeners": "listeners: and a list, such as - bind: 127.0.0.1:8080",
    "bind": "bind: 127.0.0.1:8080",
    "route": "route: and the id of a route",
    "allow": "allow: [10.0.0.0/8, 192.168.1.7], or any",
    "origins": "origins: [https://app.example], or any",
    "mode": 'mode: "0660"',
    "admin": "admin: {bind: 127.0.0.1:9090}",
    "credentials": "credentials: {alice: {certificate: alice.crt, key: alice.key}}",
    "certificate": "certificate: FILE",
    "key": "key: FILE, the same file if it holds both",
    "pkcs12": "pkcs12: FILE",
    "passphrase": "passphrase: {env: NAME} or {file: PATH}",
    "env": "env: NAME",
    "file": "file: PATH",
    "routes": f"routes: and a list, such as - {_ROUTE}",
    "id": "id: and a name for the route, such as orders",
    "match": "match: {host: orders.example.com}",
    "host": "host: orders.example.com",
    "port": "port: and a number",
    "path": "path: /rest/**",
    "methods": "methods: [GET, POST]",
    "upstream": "upstream: {host: orders.example.com, port: 8443}",
    "tls": "tls: {min: 1.2, max: 1.3}",
    "timeouts": "timeouts: {connect: 5s}",
    "pool": "pool: {max_idle: 32}",
    "circuit": "circuit: {failures: 5}, or {failures: 0} to switch it off",
    "credential": "credential: and the id of one, or none to call without a certificate",
    "limits": "limits: {connections: 1000}",
    "drain": "drain: 30s",
}
_NOTHING = (None, "")
_ENOUGH = 1000
# What other tools call our keys.
_SYNONYMS = {
    "address": "bind",
    "ca": "trust",
    "cafile": "trust",
    "clients": "limits",
    "hostname": "host",
    "listen": "bind",
    "name": "id",
    "p12": "pkcs12",
    "password": "passphrase",
    "pfx": "pkcs12",
    "sni": "server_name",
    "verify": "trust",
}


class Checker:
    """Collects the problems of one file, part by part."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.problems: list[Problem] = list(source.problems)
        self._errors = 0
        self._parts: dict[tuple[type[Model], int], Any] = {}
        """What came of each node that was checked; an alias stands for the same one as its anchor."""

    def add(self, path: KeyPath, wrong: str, right: str, warning: bool = False) -> None:
        self.problems.append(self.source.problem(path, wrong, right, warning))
        self._errors += not warning

    @property
    def _is_full(self) -> bool:
        """More is wrong than anybody is told (`errors.telling`): to look further would only take time."""
        return self._errors >= _ENOUGH

    def add_mistake(self, path: KeyPath, mistake: Mistake) -> None:
        self.add((*path, *mistake.at), mistake.wrong, mistake.right)

    def part(self, model: type[_Part], raw: object, path: KeyPath) -> _Part | None:
        """The model of one part, or None after noting everything that is wrong with it, once."""
        known = (model, id(raw))
        if isinstance(raw, MappingNode) and known in self._parts:
            found: _Part | None = self._parts[known]
            return found
        found = self._parts[known] = None if self._is_full else self._check(model, raw, path)
        return found

    def _check(self, model: type[_Part], raw: object, path: KeyPath) -> _Part | None:
        before = len(self.problems)
        plain = self._plain(model, raw, path)
        if plain is None:
            return None
        part = None
        try:
            part = model.model_validate(plain, context={"folder": self.folder})
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                self._add_error(path, each)
        return part if len(self.problems) == before else None

    def _add_error(self, path: KeyPath, error: Any) -> None:
        if error["type"] == "missing":
            return  # noted with the keys, in better words
        mistake = error.get("ctx", {}).get("error")
        if not isinstance(mistake, Mistake):
            mistake = Mistake(error["msg"], "")
        self.add_mistake((*path, *error["loc"]), mistake)

    def _plain(self, model: type[Model], raw: object, path: KeyPath) -> dict[str, Any] | None:
        """What can be given to the model: known keys, each with a value, in mappings where it wants them."""
        if not self.is_mapping(raw, path):
            return None
        plain = {}
        for key, value in self.keys(model, raw, path).items():
            inner = _inner(model)[key]
            converted = self._plain(inner, value, (*path, key)) if inner else value
            if converted is not None:
                plain[key] = converted
        return plain

    def is_mapping(self, raw: object, path: KeyPath) -> bool:
        if isinstance(raw, MappingNode):
            return True
        key = path[-1] if path else ""
        if key == "passphrase":
            right = "put it into the environment or a file, and write {env: NAME} or {file: PATH}"
            self.add(path, "a passphrase is never written here", right)
        else:
            example = _example(path)
            glued = isinstance(raw, str) and raw.partition(":")[0] in EXAMPLES
            colon = ", with a space after each colon" if glued else ""
            self.add(path, f"this is {kind(raw)}, not keys with values", f"write {example}{colon}")
        return False

    def is_list(self, raw: object, path: KeyPath) -> bool:
        if not isinstance(raw, ListNode):
            self.add(path, f"this is {kind(raw)}, not a list", f"write {_example(path)}")
        return isinstance(raw, ListNode)

    def keys(self, model: type[Model], raw: object, path: KeyPath) -> dict[str, Any]:
        """The keys of a mapping that the model knows, where they have a value; notes the others."""
        assert isinstance(raw, MappingNode)
        fields = model.model_fields
        meant = {self._unknown(model, key, path) for key in raw if key not in fields and not self._is_full}
        for key in fields:
            if key in raw:
                if raw[key] in _NOTHING:
                    self.empty((*path, key), optional=not fields[key].is_required())
            elif fields[key].is_required() and key not in meant:
                self.add((*path, key), "missing key", f"write {EXAMPLES[key]}")
        return {key: raw[key] for key in fields if raw.get(key, "") not in _NOTHING}

    def empty(self, path: KeyPath, optional: bool = False) -> None:
        """Note a key with nothing behind it: YAML reads that as null, which is never meant here."""
        leave = ", or leave the key out" if optional else ""
        self.add(path, "there is no value", f"write {_example(path)}{leave}")

    def _unknown(self, model: type[Model], key: str, path: KeyPath) -> str | None:
        """Note an unknown key; the known one that was probably meant, if any."""
        known = model.model_fields
        synonym = _SYNONYMS.get(key.lower())
        meant = synonym if synonym in known else nearest(key, known)
        if path[-1:] == ("passphrase",):
            right = f"write {_example(path)}"
        elif meant:
            right = f"did you mean {meant}?"
        elif key in _places():
            right = f"it belongs under {' or '.join(_places()[key])}"
        else:
            right = f"the keys here are {', '.join(known)}"
        self.add((*path, key), "unknown key", right)
        return meant


def _example(path: KeyPath) -> str:
    match path:
        case ("credentials", _):
            return "{certificate: FILE, key: FILE} or {pkcs12: FILE}"
        case ("routes", int()):
            return _ROUTE
        case ("listeners", int()):
            return "- bind: 127.0.0.1:8080"
    key = str(path[-1]) if path else ""
    return EXAMPLES.get(key, f"{key}: and a value")


@cache
def _inner(model: type[Model]) -> dict[str, type[Model] | None]:
    """The model of each field that holds one."""
    found: dict[str, type[Model] | None] = {}
    for name, field in model.model_fields.items():
        types = (field.annotation, *get_args(field.annotation))
        found[name] = next((t for t in types if isinstance(t, type) and issubclass(t, Model)), None)
    return found


@cache
def _places() -> dict[str, list[str]]:
    """For each key the places where it may stand, in words."""
    places: dict[str, list[str]] = {}

    def visit(model: type[Model], place: str) -> None:
        for key, field in model.model_fields.items():
            if place:
                places.setdefault(key, []).append(place)
            inner = _inner(model)[key] or _entry(field.annotation)
            if inner:
                below = {"credentials": "a credential", "routes": "a route", "listeners": "a listener"}
                visit(inner, below.get(key, key))

    visit(Config, "")
    return places


def _entry(annotation: Any) -> type[Model] | None:
    """The model of the entries of a list or mapping."""
    types = (t for t in get_args(annotation) if isinstance(t, type))
    return next((t for t in types if issubclass(t, Model)), None)
