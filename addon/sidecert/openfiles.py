"""How many files may be open: as many as the config's limits need, and the last are not for callers."""

from __future__ import annotations

import resource
from math import inf
from typing import TYPE_CHECKING

from sidecert.errors import Problem

if TYPE_CHECKING:
    import asyncio

    from sidecert.generation import Generation

SPARE = 64
"""Descriptors that callers cannot take: for upstream connections, the admin, files to be loaded, and
those who are being told that there is no room."""

TELLING = 32
"""How many of the spare ones those may keep until they have read it; the rest are told and closed at once."""

_OTHERS = 256
"""Descriptors beside those of calls: listeners, admin connections, look-ups, files that are being read."""


def allow(generation: Generation) -> list[Problem]:
    """Let the process open what `generation` needs; gives a warning where the system lets it not.

    The limit is never lowered: what is open under it stays open.
    """
    wanted = _wanted(generation)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return []
    had = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    why = ""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (had, hard))
    except (OSError, ValueError) as exc:  # a sandbox, or a system with a limit beside the hard one
        had, why = soft, f" ({exc})"
    if had >= wanted:
        return []
    callers = generation.config.limits.connections
    wrong = f"{callers} callers need up to {wanted} open files, and the system allows {had}{why}"
    right = "raise its limit (`ulimit -Hn`, LimitNOFILE=, `--ulimit nofile=`), or lower this one"
    return [Problem(str(generation.path), None, "limits.connections", wrong, right, warning=True)]


def descriptors_left(transport: asyncio.BaseTransport) -> float:
    """How many descriptors at least can still be had after that of a connection that was just accepted.

    The kernel gives the lowest number that is free. Where none is left, uvloop resets all who wait in the
    backlog, and nothing can be connected to, loaded or listened on.
    """
    connection = transport.get_extra_info("socket")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connection is None or limit == resource.RLIM_INFINITY:
        return inf
    number: int = connection.fileno()
    return max(0, limit - number - 1)


def _wanted(generation: Generation) -> int:
    """Each caller's connection, as many that are told there is no room, and what the calls need upstream."""
    callers = generation.config.limits.connections
    pools = [route.upstream.pool for route in generation.config.routes]
    most = sum(pool.max_connections for pool in pools)
    return 2 * callers + min(most, callers + sum(pool.max_idle for pool in pools)) + _OTHERS
