"""What the process does to itself at its start, so that nobody reads keys from its memory.

Nothing here needs a privilege, and nothing can be undone by whoever talks the process into it later.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import sys

_LOG = logging.getLogger("sidecert.hardening")
_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Write no core file, and let no other process of this user look into our memory.

    Both are needed: a core that is piped to a program (systemd-coredump) is written whatever the limit says,
    and on other systems than Linux there is only the limit.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as exc:  # a sandbox may let no limit be set
        _LOG.warning("core files cannot be forbidden: %s", exc)
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        _LOG.warning("the memory cannot be made private: error %d", ctypes.get_errno())
