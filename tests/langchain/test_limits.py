"""Limits through LangChain: a used-up target is passed over, or waited for, on every face."""

from __future__ import annotations

import asyncio

import pytest

from langchain_fallback import FallbackChatModel
from shared_core import Limits, Target
from shared_core.testing import ScriptedProvider, VirtualClock

FACES = {
    "invoke": lambda model: model.invoke("Hello"),
    "stream": lambda model: sum_of(model.stream("Hello")),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("Hello")),
    "astream": lambda model: asyncio.run(asum_of(model)),
}


def sum_of(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


async def asum_of(model):
    return sum_of([chunk async for chunk in model.astream("Hello")])


@pytest.mark.parametrize("face", list(FACES))
def test_a_used_up_target_is_passed_over_and_with_nobody_else_waited_for(face):
    clock = VirtualClock()

    def target(name, **options):
        return Target(provider=ScriptedProvider(f"from {name}", name=name, clock=clock), name=name, **options)

    model = FallbackChatModel(models=[target("a", limits={"requests_per_minute": 1}), target("b")], clock=clock)
    assert [FACES[face](model).content for _ in range(2)] == ["from a", "from b"]
    alone = FallbackChatModel(models=[target("a")], limits=Limits(requests_per_minute=1), clock=clock)
    waited = [FACES[face](alone).response_metadata["fallback"].get("waited_s", 0) for _ in range(2)]
    assert waited == [0, 60]
