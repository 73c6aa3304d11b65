"""A vendor that sends faster than anybody reads: its stream never lets go of the event loop by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared_core import ChatRequest, Router, StreamBroken, TextDelta, Timeouts
from shared_core.resilience.deadline import Guard
from shared_core.testing import ScriptedProvider

ENOUGH = 2_000_000


class Flood(ScriptedProvider):
    """Has the next event ready whenever it is asked."""

    def __init__(self) -> None:
        super().__init__("flood")
        self.sent = 0

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[TextDelta]:
        while self.sent < ENOUGH:
            self.sent += 1
            yield TextDelta("x")


async def test_a_deadline_ends_a_stream_whose_next_event_is_always_there():
    flood = Flood()
    with pytest.raises(StreamBroken) as caught:
        async with Router([flood], timeouts=Timeouts(total=0.05)) as router:
            async for _ in router.astream("Hi"):
                pass
    assert flood.sent < ENOUGH
    assert set(caught.value.partial) == {"x"}


async def test_other_tasks_have_their_turn_beside_it():
    flood, turns = Flood(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    async with Router([flood]) as router:
        async for _ in router.astream("Hi"):
            if flood.sent >= 1000:
                break
    beside.cancel()
    assert turns >= 10
