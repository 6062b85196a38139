"""Exchanges that show themselves to mitmproxy's addons: flows that can be held, edited, answered and killed.

    request -> requestheaders, its body, request -> forwarded as ever -> answer -> responseheaders, its body,
    response -> passed on as ever;   whatever ends the call otherwise -> error

Installed only where an addon wants flows; `sidecert run` has none and pays for none of this.

What nobody edited goes on as it came. What was edited is written out and parsed again (`edits`). A body over
1 MiB, an event stream and what follows a 101 pass through as they come, and the flow has no
content for them. For such a request the hook `request` still comes before anything is sent (mitmproxy: after
its body), so that a block, or an edit of the head, holds for large requests too.

An exception in an addon is mitmproxy's: it logs it and goes on with the flow as the addon left it. So do we:
that flow still passes all checks, and goes only where a route leads, with that route's certificate. An error
of our own refuses the call.
"""

from __future__ import annotations

from functools import partial

from mitmproxy.addonmanager import AddonManager, traverse

from sidecert.inspection.exchange import InspectedExchange
from sidecert.inspection.stage import Stage
from sidecert.plane import Plane

_HOOKS = ("requestheaders", "request", "responseheaders", "response", "error")


def install(plane: Plane, addons: AddonManager) -> None:
    """Let the exchanges of `plane` show themselves, if any addon looks at flows."""
    if any(callable(getattr(addon, hook, None)) for addon in traverse(addons.chain) for hook in _HOOKS):
        plane.make_exchange = partial(InspectedExchange, Stage(addons))
