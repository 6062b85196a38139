"""What the process does to itself at its start: nobody reads keys from its memory, and it may open enough.

Nothing here needs a privilege, and nothing can be undone by whoever talks the process into it later.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import sys
from typing import TYPE_CHECKING

from sidecert.errors import Problem

if TYPE_CHECKING:
    from sidecert.generation import Generation

_LOG = logging.getLogger("sidecert.hardening")
_PR_SET_DUMPABLE = 4
_OTHER_FILES = 256
"""Descriptors beside those of calls: listeners, admin connections, look-ups, files that are being read."""


def keep_memory_private() -> None:
    """Write no core file, and let no other process of this user look into our memory.

    Both are needed: a core that is piped to a program (systemd-coredump) is written whatever the limit says,
    and on other systems than Linux there is only the limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        _LOG.warning("the memory cannot be made private: error %d", ctypes.get_errno())


def allow_open_files(generation: Generation) -> list[Problem]:
    """Raise the limit of open files to what the config's own limits need, as far as the system lets us."""
    limits = generation.config.limits
    wanted = _wanted(generation)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return []
    had = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (had, hard))
    if had >= wanted:
        return []
    wrong = f"{limits.connections} callers need up to {wanted} open files, and the system allows {had}"
    right = "raise its limit (`ulimit -Hn`, LimitNOFILE=, `--ulimit nofile=`), or lower this one"
    return [Problem(str(generation.path), None, "limits.connections", wrong, right, warning=True)]


def _wanted(generation: Generation) -> int:
    """Each caller's connection, as many that are told there is no room, and what the calls need upstream."""
    callers = generation.config.limits.connections
    pools = [route.upstream.pool for route in generation.config.routes]
    most = sum(pool.max_connections for pool in pools)
    return 2 * callers + min(most, callers + sum(pool.max_idle for pool in pools)) + _OTHER_FILES
