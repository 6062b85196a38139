"""Inspected calls leave nothing behind, however they end, and each flow is told its end once.

On both event loops, without the eager tasks that mitmproxy's own tools use.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from support.certs import Pki
from support.clients import Caller, Talker
from support.inside import LOOPS, LoopKind, running_inside
from support.inspecting import Hook, InspectedExchange, Stage
from support.recorder import TlsRecorder, echo, stream
from support.sidecar import config, route

BIG = 5_000_000
GET = b"GET http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\n\r\n"
POST = b"POST http://orders.test/ HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 10\r\n\r\n012"


class SlowAddons:
    """In the place of mitmproxy's addons: counts the hooks, and takes a moment for each."""

    def __init__(self) -> None:
        self.hooks: Counter[str] = Counter()

    async def handle_lifecycle(self, hook: Hook) -> None:
        self.hooks[hook.name] += 1
        await asyncio.sleep(0.002)

    def all_told(self) -> bool:
        """Every flow that has begun has ended once."""
        return self.hooks["requestheaders"] == self.hooks["response"] + self.hooks["error"]


@pytest.mark.parametrize("kind", LOOPS)
def test_inspected_calls_leave_nothing_behind(
    kind: LoopKind, tmp_path: Path, pki: Pki, recorder: TlsRecorder
) -> None:
    """Whole calls, pipelined ones, large ones, and callers that leave at any moment."""
    addons = SlowAddons()
    whole = config([route("orders", recorder, trust=pki.trust)], pki.credentials)
    with running_inside(tmp_path, whole, kind) as inside:
        inside.plane.make_exchange = partial(InspectedExchange, Stage(addons))
        with Caller(inside.address) as caller:
            for size in (0, 1, 70_000, BIG):
                assert caller.call("POST", "http://orders.test/", b"b" * size).json()["length"] == size
        with Talker(inside.address) as talker:
            talker.send(GET * 50)
            assert {talker.read_answer().status for _ in range(50)} == {200}
        for answer, request in ((echo, POST), (stream(BIG), GET)):
            recorder.answer = answer
            for turn in range(40):
                talker = Talker(inside.address)
                talker.send(request)
                time.sleep(turn / 2000)  # to leave at another moment each time
                if request is POST and turn % 2:
                    talker.send(b"3456789")
                talker.reset()
        with Caller(inside.address) as caller:
            assert len(caller.get("http://orders.test/").body) == BIG
        inside.check_nothing_left()
        inside.wait_for(addons.all_told, why=f"{addons.hooks}")
        assert inside.errors == []
