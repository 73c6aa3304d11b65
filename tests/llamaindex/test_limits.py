"""Limits through LlamaIndex: a used-up target is passed over, or waited for, on every face."""

from __future__ import annotations

import asyncio

import pytest

from llamaindex_fallback import FallbackLLM
from shared_core import Limits, Target
from shared_core.testing import ScriptedProvider, VirtualClock


async def alast(llm):
    return [piece async for piece in await llm.astream_complete("Hello")][-1]


FACES = {
    "complete": lambda llm: llm.complete("Hello"),
    "stream_complete": lambda llm: list(llm.stream_complete("Hello"))[-1],
    "acomplete": lambda llm: asyncio.run(llm.acomplete("Hello")),
    "astream_complete": lambda llm: asyncio.run(alast(llm)),
}


@pytest.mark.parametrize("face", list(FACES))
def test_a_used_up_target_is_passed_over_and_with_nobody_else_waited_for(face):
    clock = VirtualClock()

    def target(name, **options):
        return Target(provider=ScriptedProvider(f"from {name}", name=name, clock=clock), name=name, **options)

    llm = FallbackLLM(models=[target("a", limits={"requests_per_minute": 1}), target("b")], clock=clock)
    assert [FACES[face](llm).text for _ in range(2)] == ["from a", "from b"]
    begun = clock.monotonic()
    alone = FallbackLLM(models=[target("a")], limits=Limits(requests_per_minute=1), clock=clock)
    assert [FACES[face](alone).text for _ in range(2)] == ["from a", "from a"]
    assert clock.monotonic() - begun == pytest.approx(60)
