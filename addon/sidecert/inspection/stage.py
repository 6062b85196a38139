"""Where flows are shown: mitmproxy's addons, as all inspected exchanges share them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from mitmproxy import http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.flow import Error
from mitmproxy.hooks import Hook, UpdateHook

from sidecert.inspection.flows import Connections

_LOOK_AGAIN = 0.2
"""Seconds between looks at an intercepted flow: mitmproxy's `kill` does not wake who waits for it."""


class Killed(Exception):
    """An addon or a user has killed the flow."""


class Stage:
    """The addons of one mitmproxy, and what is under way with them."""

    def __init__(self, addons: AddonManager) -> None:
        self.connections = Connections()
        self._addons = addons
        self._tasks: set[asyncio.Task[None]] = set()

    async def show(self, hook: Hook, flow: http.HTTPFlow) -> None:
        """Fire `hook`, and wait while the flow is intercepted. Raises Killed."""
        await self._addons.handle_lifecycle(hook)
        while flow.intercepted:
            try:
                async with asyncio.timeout(_LOOK_AGAIN):
                    await flow.wait_for_resume()
            except TimeoutError:
                pass
        if flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE:
            raise Killed

    def tell(self, hook: Hook) -> None:
        """Fire the last hook of a flow; nobody waits for it."""
        self.start(self._addons.handle_lifecycle(hook))

    def update(self, flow: http.HTTPFlow) -> None:
        """Let those who show the flow draw it anew."""
        self.tell(UpdateHook([flow]))

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task that is held until it has ended."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds it only weakly
        task.add_done_callback(self._tasks.discard)
        return task
