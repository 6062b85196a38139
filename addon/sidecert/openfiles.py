"""The limit of open files, raised to what the config's own limits need."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from sidecert.errors import Problem

if TYPE_CHECKING:
    from sidecert.generation import Generation

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


def _wanted(generation: Generation) -> int:
    """Each caller's connection, as many that are told there is no room, and what the calls need upstream."""
    callers = generation.config.limits.connections
    pools = [route.upstream.pool for route in generation.config.routes]
    most = sum(pool.max_connections for pool in pools)
    return 2 * callers + min(most, callers + sum(pool.max_idle for pool in pools)) + _OTHERS
