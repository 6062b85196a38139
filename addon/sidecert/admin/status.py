"""The facts of the status page, in words, from the generation in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidecert.admin.status_page import RouteRow, Snapshot
from sidecert.config import host_port
from sidecert.config.models import MatchConfig
from sidecert.generation import Generation, Route


def snapshot(
    generation: Generation, listeners: Mapping[str, Sequence[str]], started: float, ready: bool
) -> Snapshot:
    """`listeners` are addresses by label, `started` is in epoch seconds."""
    routes = [_row(route) for route in generation.routes.values()]
    return Snapshot(str(generation.path), started, ready, listeners, routes)


def spell_match(match: MatchConfig) -> str:
    """What a route takes, on one line: `GET,POST orders.test:80/rest/**`."""
    methods = ",".join(sorted(match.methods)) + " " if match.methods else ""
    port = f":{match.port}" if match.port else ""
    return f"{methods}{match.host}{port}{match.path or ''}"


def spell_upstream(route: Route) -> str:
    """Where a route calls: `orders.test:8443`; a host that callers choose stays the pattern."""
    settings = route.config.upstream
    host = settings.host or route.config.match.host
    return host_port(host, settings.port)


def _row(route: Route) -> RouteRow:
    insecure = route.config.upstream.trust == "insecure"
    return RouteRow(
        route.id, spell_match(route.config.match), spell_upstream(route), route.credential_id, insecure
    )
