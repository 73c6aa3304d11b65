"""Health checks through LlamaIndex: over native targets and over ready LLMs, at the wire."""

from __future__ import annotations

import asyncio

import pytest

from shared_core import CircuitState, HealthStatus
from shared_core.testing import FaultServer
from tests.llamaindex import world


@pytest.mark.parametrize("kind", ["native", "wrapped"])
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_every_target_is_tested_by_its_list_or_by_one_call(server: FaultServer, kind: str, colour: str) -> None:
    llm = world.fallback_llm(server, kind)
    router = llm.router
    router.reset()
    tests = await (asyncio.to_thread(router.test_targets) if colour == "sync" else router.atest_targets())
    way = "models" if kind == "native" else "call"
    assert [(test.ok, test.how) for test in tests] == [(True, way)] * len(tests), str(tests)
    assert len(server.requests) == len(tests)
    assert {target.status for target in router.health()} == {HealthStatus.HEALTHY}


@pytest.mark.parametrize("kind", ["native", "wrapped"])
async def test_a_dead_target_is_told_from_a_healthy_one(server: FaultServer, kind: str) -> None:
    llm = world.fallback_llm(server, kind)
    router = llm.router
    router.reset()
    primary = router.targets[0].name
    server.script("*", 500)
    world.script_all(server, 500)
    test = await router.atest_target(primary, how="call")
    assert (test.ok, test.kind, test.circuit) == (False, "transient", CircuitState.CLOSED)
    assert (await router.atest_target(primary, how="call")).how == "call"
    router.reset()
