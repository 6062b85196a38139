"""`sidecert why`: the route and the credential that a URL gets, and why not the others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from sidecert.cli.common import NO, ConfigCommand, config_option, fail, fail_config, find_config, json_option
from sidecert.config import (
    Bind,
    Config,
    ListenerConfig,
    RouteConfig,
    bracket,
    host_port,
    normalise_host,
    read,
)
from sidecert.config.values import method as check_method
from sidecert.errors import ConfigError, Refusal
from sidecert.routing import WHY, Candidate, Router, ties
from sidecert.words import printable

_LISTED = 20  # routes that are printed for people; --json has them all
_FOLDED = 5  # routes for other hosts that are listed one by one where none came closer
_SCHEMES = {"http": 80, "https": 443}
_SENT_AS_IS = "/%!$&'()*+,;=:@~\\[]^`{|}\"<>"  # what callers put on the wire unescaped, rightly or not


@dataclass(frozen=True, slots=True)
class _Call:
    """What a caller that is given the URL would ask for. `path` is raw, without the query."""

    method: str
    scheme: str
    host: str
    port: int
    path: bytes

    @property
    def url(self) -> str:
        port = "" if self.port == _SCHEMES[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{bracket(self.host)}{port}{self.path.decode()}"


@dataclass(frozen=True, slots=True)
class _Answer:
    """`listener` is set when the URL is one of our own listeners, `route` or `refusal` always."""

    call: _Call
    listener: ListenerConfig | None
    route: RouteConfig | None
    host: str
    refusal: Refusal | None
    others: tuple[Candidate, ...]


@click.command(cls=ConfigCommand)
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", default="GET", show_default=True)
@config_option
@json_option
def why(url: str, method: str, config: Path | None, as_json: bool) -> None:
    """Tell which route and credential a call of URL gets, and why not the others.

    URL is what the tool calls, such as http://orders.example.com/rest/1. Nothing is called, and no key is
    read. Exit status: 0 there is a route, 1 there is none, 2 the URL or the config is wrong.
    """
    try:
        call = _parse(url, check_method(method))
    except ValueError as error:
        fail(str(error))
    loaded = _load(find_config(config))
    answer = _decide(loaded, call)
    instead = _instead(loaded, call)
    told = (
        json.dumps(_as_json(answer, instead), indent=2) if as_json else _escaped(_in_words(answer, instead))
    )
    click.echo(told)
    if answer.refusal is not None:
        raise SystemExit(NO)


def _parse(url: str, method: str) -> _Call:
    """The call that a URL stands for; ValueError in words. A query is dropped at once, never shown."""
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("the URL holds a blank or a control character; write it as %XX")
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("this is not a URL; write one such as http://orders.example.com/rest/1") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"a {parts.scheme} URL is not called; write an http:// one")
    if "@" in parts.netloc:
        raise ValueError("the URL holds a user name; write it without, as the request line has it")
    host = normalise_host(parts.hostname or "")
    path = quote(parts.path or "/", safe=_SENT_AS_IS, errors="surrogateescape")
    return _Call(method, parts.scheme, host, _SCHEMES[parts.scheme] if port is None else port, path.encode())


def _load(path: Path) -> Config:
    """The config of a file, without the files it names. Errors end the command with 2."""
    draft = read(path)
    problems = sorted([*draft.problems, *ties(draft)], key=lambda problem: problem.line or 0)
    if any(not problem.warning for problem in problems):
        fail_config(ConfigError(problems))
    return draft.config


def _decide(config: Config, call: _Call) -> _Answer:
    router = Router(config.routes)
    listener = _own_listener(config, call)
    method = call.method.encode()
    others: tuple[Candidate, ...] = ()
    try:
        if listener is not None and listener.route is not None:
            others = _pinned_away(config.routes, listener)
            own = frozenset({call.host})
            route, host = router.find_pinned(listener.route, call.host, own, call.path, method)
        else:
            others = tuple(router.explain(call.host, call.port, call.path, method))
            route, host = router.find(call.host, call.port, call.path, method)
    except Refusal as refusal:
        return _Answer(call, listener, None, call.host, refusal, others)
    return _Answer(
        call, listener, route, host, None, tuple(each for each in others if each.route is not route)
    )


def _own_listener(config: Config, call: _Call) -> ListenerConfig | None:
    """The listener whose address the URL is: a tool that cannot use a proxy calls it directly."""
    address = Bind("", "tcp", call.host, call.port)
    return next((each for each in config.listeners if address.overlaps(each.bind)), None)


def _pinned_away(routes: Sequence[RouteConfig], listener: ListenerConfig) -> tuple[Candidate, ...]:
    reason = f"listener {listener.bind.label} is pinned to {listener.route}"
    return tuple(Candidate(each, False, reason) for each in routes if each.id != listener.route)


def _upstream(route: RouteConfig, matched: str) -> dict[str, str]:
    """Where a call goes and who must be there, as the data plane resolves it."""
    settings = route.upstream
    host = settings.host or matched
    return {
        "upstream": host_port(host, settings.port),
        "server_name": settings.server_name or host,
        "trust": str(settings.trust),
    }


def _remedy(answer: _Answer, refusal: Refusal) -> str:
    listener = answer.listener
    if listener is not None and listener.route is None:
        return (
            f"{listener.bind.label} is sidecert's own listener: give the URL that is called through it, "
            "or the host that the tool sends in Host"
        )
    return refusal.remedy.removesuffix(WHY).rstrip("; ") or "see below what each route wants"


def _instead(config: Config, call: _Call) -> str | None:
    """What to call in the place of an https URL, which no tool can call through sidecert."""
    if call.scheme != "https":
        return None
    listener = _own_listener(config, call)
    if listener is not None:
        return (
            f"{listener.bind.label} speaks plain HTTP: a tool that calls it with https:// is refused "
            f"(400 bad_request); call {replace(call, scheme='http').url}"
        )
    plain = replace(call, scheme="http", port=80) if call.port == 443 else replace(call, scheme="http")
    if _decide(config, plain).refusal is not None:
        plain = replace(plain, port=call.port)
    tunnel = host_port(call.host, call.port)
    return (
        f"a tool that calls https:// through a proxy asks for a tunnel (CONNECT {tunnel}), which "
        f"sidecert refuses (403 connect_not_allowed); call {plain.url} instead"
    )


def _as_json(answer: _Answer, instead: str | None) -> dict[str, Any]:
    route, refusal = answer.route, answer.refusal
    return {
        "method": answer.call.method,
        "url": answer.call.url,
        "listener": answer.listener.bind.label if answer.listener else None,
        "route": route.id if route else None,
        "credential": (route.credential or "none") if route else None,
        **(_upstream(route, answer.host) if route else dict.fromkeys(("upstream", "server_name", "trust"))),
        "instead": instead,
        "refusal": _refusal_as_json(answer, refusal) if refusal else None,
        "others": [
            {"route": each.route.id, "matched": each.matched, "reason": each.reason} for each in answer.others
        ],
    }


def _refusal_as_json(answer: _Answer, refusal: Refusal) -> dict[str, Any]:
    return {
        "status": refusal.status,
        "outcome": refusal.outcome,
        "detail": refusal.detail,
        "remedy": _remedy(answer, refusal),
    }


def _in_words(answer: _Answer, instead: str | None) -> list[str]:
    lines = [f"{answer.call.method} {answer.call.url}"]
    if answer.listener is not None and answer.listener.route is not None:
        lines.append(f"  listener     {answer.listener.bind.label}, pinned to {answer.listener.route}")
    if answer.route is not None:
        facts = _upstream(answer.route, answer.host)
        lines.append(f"  route        {answer.route.id}")
        lines.append(f"  credential   {answer.route.credential or 'none: no certificate is sent'}")
        lines += [f"  {key.replace('_', ' '):<12} {value}" for key, value in facts.items()]
    if answer.refusal is not None:
        refusal = answer.refusal
        lines.append(f"  no route     {refusal.status} {refusal.outcome}: {refusal.detail}")
        lines.append(f"  remedy       {_remedy(answer, refusal)}")
    if instead is not None:
        lines.append(f"  but          {instead}")
    if answer.others:
        lines += ["", "not:", *_others(answer)]
    return lines


def _others(answer: _Answer) -> list[str]:
    """Why the other routes do not take the call. Those for other hosts say nothing each by itself."""
    listed = [each for each in answer.others if not each.other_host]
    elsewhere = [each for each in answer.others if each.other_host]
    if len(elsewhere) <= (_FOLDED if not listed and answer.route is None else 1):
        listed, elsewhere = [*listed, *elsewhere], []
    shown = listed[:_LISTED]
    width = max((len(each.route.id) for each in shown), default=0)
    lines = [f"  {each.route.id:<{width}}  {each.reason}" for each in shown]
    if len(listed) > _LISTED:
        lines.append(f"  and {len(listed) - _LISTED} more; --json lists them all")
    if elsewhere:
        lines.append(
            f"  {len(elsewhere)} {'other ' if listed or answer.route else ''}routes are for other hosts"
        )
    return lines


def _escaped(lines: Sequence[str]) -> str:
    """Lines in which nothing but their ends is a control character."""
    return "\n".join(map(printable, lines))
