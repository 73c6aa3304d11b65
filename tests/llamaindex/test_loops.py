"""Event loops that end, and event loops that already run: neither is a vendor's outage."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from llamaindex_fallback import FallbackLLM
from llamaindex_fallback.testing import SCENARIOS
from shared_core.testing import FaultServer
from tests.llamaindex.scenarios import MIXES, MODELS, PAIRS, Cell, Model

AGENTS = [SCENARIOS[name] for name in ("FunctionAgent", "FunctionAgent, whole", "AgentWorkflow", "ReActAgent")]
BUILT = [
    Cell("openai", fallback, mix, fault)
    for fallback, mix in (("anthropic", "native"), ("anthropic", "wrapped"), ("google", "wrapped"))
    for fault in ("answers 503", "cut in the middle")
]
GIVEN = [Cell(*pair, mix, "well") for pair, mix in zip(PAIRS, [*MIXES, *MIXES], strict=False)]
GIVEN.append(Cell("google", "openai", "wrapped", "well"))


@pytest.fixture(scope="module")
def stage() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def built(cell: Cell, server: FaultServer) -> tuple[FallbackLLM, Model]:
    model = Model()
    cell.script(server, model)
    server.clear()
    return cell.llm(server), model


def nobody_fell_over(cell: Cell, llm: FallbackLLM, server: FaultServer, model: Model) -> None:
    """The primary failed as often as it was told to, and not once for a loop that is closed."""
    failed = server.count(MODELS[cell.primary]) if cell.fault != "well" else 0
    assert server.count(MODELS[cell.fallback]) == (model.answered if failed else 0)
    assert failed in (0, model.answered)
    errors = [error for health in llm.router.health() for error in [health.last_error] if error is not None]
    assert not [error for error in errors if "loop" in str(error).lower()]


@pytest.mark.parametrize("cell", BUILT + GIVEN, ids=str)
def test_each_agent_in_a_loop_of_its_own(stage, cell):
    """One `asyncio.run` after another, over one LLM: every agent twice."""
    llm, model = built(cell, stage)
    try:
        for scenario in [*AGENTS, *AGENTS]:
            scenario.run(llm)
        nobody_fell_over(cell, llm, stage, model)
    finally:
        llm.close()


@pytest.mark.parametrize("mix", ["native", "wrapped"])
async def test_inside_a_running_loop(stage, mix):
    """As in a notebook: what is not async, called where a loop already runs."""
    cell = Cell("openai", "anthropic", mix, "answers 503")
    llm, model = built(cell, stage)
    try:
        for scenario in SCENARIOS.values():
            if not scenario.is_async:
                scenario.run(llm)
        nobody_fell_over(cell, llm, stage, model)
    finally:
        await llm.aclose()


@pytest.mark.parametrize("mix", ["native", "wrapped"])
def test_loops_beside_each_other(stage, mix):
    """Three threads, each with a loop of its own, share one LLM."""
    cell = Cell("openai", "anthropic", mix, "well")
    llm, model = built(cell, stage)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for name in ("FunctionAgent", "query, async, streamed", "structured_predict, async"):
                SCENARIOS[name].run(llm)
        except BaseException as error:  # what a thread raises would be lost
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert not failures
        nobody_fell_over(cell, llm, stage, model)
    finally:
        llm.close()


@pytest.mark.parametrize("mix", ["native", "wrapped"])
def test_loops_that_ended_leave_nothing_behind(stage, mix):
    """Twenty loops, and no more open connections than the last of them needs."""
    llm, _ = built(Cell("openai", "anthropic", mix, "well"), stage)
    scenario = SCENARIOS["query, async"]
    before = stage.open_connections
    for _ in range(20):
        scenario.run(llm)
    gc.collect()
    stage.wait_for(lambda server: server.open_connections - before <= 2)
    llm.close()


def test_a_stream_left_half_read_by_a_loop_that_ends(stage):
    """Its connection is closed, and the next loop is served as if nothing had been."""
    cell = Cell("openai", "anthropic", "native", "well")
    llm, model = built(cell, stage)

    async def leave() -> str:
        async for response in await llm.astream_complete("The café opens at seven. When does the café open?"):
            return response.text
        return ""

    for _ in range(3):
        assert asyncio.run(leave())
    stage.wait_idle()
    SCENARIOS["FunctionAgent"].run(llm)
    nobody_fell_over(cell, llm, stage, model)
    llm.close()
