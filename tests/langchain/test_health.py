"""Health checks and events through LangChain: over native targets and over ready chat models, at the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

from langchain_fallback import FallbackChatModel
from shared_core import CircuitState, HealthStatus, TargetRecovered
from shared_core.testing import FaultServer
from tests.langchain.cells import MIXTURES, models_of, names_of


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_every_target_is_tested_by_its_list_or_by_one_token(
    server: FaultServer, mixture: str, colour: str
) -> None:
    model = FallbackChatModel(models=models_of(server, mixture))
    async with model.router:
        if colour == "sync":
            tests = await asyncio.to_thread(model.router.test_targets)
        else:
            tests = await model.router.atest_targets()
        ways = ["models" if make.__name__ == "native" else "call" for make, _ in MIXTURES[mixture]]
        assert [(test.ok, test.how) for test in tests] == [(True, way) for way in ways], str(tests)
        calls = [seen.body for seen in server.requests if "/models" not in seen.path]
        assert len(server.requests) == 2
        assert len(calls) == ways.count("call")
        assert all((body or {}).get("max_tokens") or (body or {}).get("max_completion_tokens") for body in calls)
        assert {t.status for t in model.router.health()} == {HealthStatus.HEALTHY}


@pytest.mark.parametrize("mixture", MIXTURES)
async def test_a_healed_primary_is_found_by_a_test_and_gets_its_calls_back(server: FaultServer, mixture: str) -> None:
    primary, backup = names_of(mixture)
    seen: list[Any] = []
    options = {"retry": {"same_target": 0}, "on_event": {TargetRecovered: seen.append}}
    model = FallbackChatModel(models=models_of(server, mixture), **options)
    async with model.router:
        server.script(primary, [500] * 5 + ["ok"])
        for _ in range(5):
            await model.ainvoke("Hello")
        name = model.router.targets[0].name
        assert model.router.health()[name].circuit is CircuitState.OPEN
        before = server.count(backup)
        assert await model.router.atest_target(name)
        assert await model.router.atest_target(name)
        assert model.router.health()[name].circuit is CircuitState.CLOSED
        await model.ainvoke("Hello")
        assert server.count(backup) == before
        await asyncio.to_thread(model.router.flush_events)
        assert [event.target for event in seen] == [name]


def test_health_checks_are_an_option_of_the_model_like_any_other() -> None:
    model = FallbackChatModel(models=[FakeListChatModel(responses=["ok"])], health_check={"interval_s": 60})
    with model.router as router:
        assert model.invoke("Hello").text == "ok"
        assert router.test_target(router.targets[0].name, how="call")
        assert router.options["health_check"] == {"interval_s": 60}
