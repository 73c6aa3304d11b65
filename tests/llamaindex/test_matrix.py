"""Everything that LlamaIndex does with an LLM, over every way to build ours, in every state of the world.

A test is a scenario of `llamaindex_fallback.testing` in a cell of the matrix (`scenarios.py`). To pass, its caller must
have got exactly what LlamaIndex's own OpenAI class gets from a vendor in good health, and behind the scenes:

* the server's log shows that the primary was asked for every call and failed as it was told to, and that nobody was
  asked without need;
* LlamaIndex's observers saw one chain of events per call, start to end, on the dispatcher and as legacy callbacks, and
  the end names who served;
* its `TokenCountingHandler` counted what the server says was used, to the token.

Run here is a quarter of the matrix, in which every pair of vendors meets every fault, and every mix of native and
wrapped meets every pair and every fault. ``LLAMAINDEX_MATRIX=full`` runs all of it; so does
``make evidence ARGS="llamaindex_matrix"``, which writes docs/evidence/llamaindex_matrix.json.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler

from llamaindex_fallback import FallbackLLM, testing
from llamaindex_fallback.testing import SCENARIOS, Scenario, read_and_answer
from shared_core.testing import FaultServer, SeenRequest
from tests.llamaindex.scenarios import FAULTS, MIXES, MODELS, PAIRS, Cell, Model, covering_cells, every_cell
from tests.llamaindex.world import SECONDARY, Events, native, wrapped

FULL = os.environ.get("LLAMAINDEX_MATRIX") == "full"
CELLS = list(every_cell() if FULL else covering_cells())

UNSERVED: Mapping[tuple[str, str], str] = {}
"""By a part of the cell's name and the scenario's: why nobody can serve it. There is nothing of the kind."""


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[FaultServer]:
    """One server for the matrix, and one LLM for each cell."""
    theirs = Settings.callback_manager
    Settings.callback_manager = OBSERVED
    testing._index.cache_clear()  # an index keeps the manager of the time when it was made
    with FaultServer() as running:
        yield running
        Settings.callback_manager = theirs
        testing._index.cache_clear()
        for llm in LLMS.values():
            await llm.aclose()
        LLMS.clear()


OBSERVED = CallbackManager([])
"""Engines give theirs to the LLM they are given, so all that is observed is observed through this one."""
LLMS: dict[Cell, FallbackLLM] = {}
EXPECTED: dict[str, Any] = {}
"""By scenario: what the caller gets when all is well."""


async def expected(server: FaultServer, scenario: Scenario) -> Any:
    """What LlamaIndex's own OpenAI gets; where it is left out, one native target alone."""
    if scenario.name not in EXPECTED:
        server.script(SECONDARY, read_and_answer)
        try:
            alone = wrapped(server, SECONDARY)
        except pytest.skip.Exception:
            alone = FallbackLLM([native(server, SECONDARY)])
        EXPECTED[scenario.name] = await scenario.arun(alone)
        # Not until all is idle: an LLM that was walked away from in the cell before may still be asking the silent one.
        await asyncio.to_thread(server.wait_for, lambda s: all(r.outcome != "pending" for r in _of(s, SECONDARY)))
        server.clear()
    return EXPECTED[scenario.name]


def _of(server: FaultServer, model: str) -> list[SeenRequest]:
    return [seen for seen in server.requests if seen.model == model]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
async def test_the_matrix(stage, cell, scenario, request):
    """The caller notices nothing; the observers see one chain of events per call, and the server's own figures."""
    for (part, name), reason in UNSERVED.items():
        if part in str(cell) and name == scenario.name:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    wanted = await expected(stage, scenario)
    if cell not in LLMS:
        LLMS[cell] = cell.llm(stage)
    llm, model = LLMS[cell], Model()
    cell.script(stage, model)
    stage.clear()
    llm.router.reset()
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler(tokenizer=lambda _: [])
    llm.callback_manager = OBSERVED
    OBSERVED.set_handlers([debug, counter])
    with Events() as events:
        assert await scenario.arun(llm) == wanted
    asked_the_right_ones(cell, stage, model)
    twice = told_once(cell, llm, model, events)
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.LLM)] == [2] * (model.answered + twice)
    counted = Counter((one.prompt_token_count, one.completion_token_count) for one in counter.llm_token_counts)
    assert counted.total() == model.answered + twice
    if cell.fault != "cut in the middle":
        assert (counted - Counter(model.used)).total() == twice
    else:  # the broken part was paid for too, as far as anybody can know
        assert counter.total_llm_token_count >= sum(map(sum, model.used))


def asked_the_right_ones(cell: Cell, server: FaultServer, model: Model) -> None:
    """Who is well answers, and a primary that fails is asked for every call, and fails."""
    asked = Counter((seen.model, seen.step == "answer") for seen in server.requests)
    first, second = MODELS[cell.primary], MODELS[cell.fallback]
    if cell.fault == "well":
        assert asked == {(first, True): model.answered}
    elif cell.fault == "says nothing":  # on a busy machine it may be given up before it has read the request
        assert asked[second, True] == model.answered
        assert asked.keys() <= {(first, False), (second, True)}
    else:
        assert asked == {(first, False): model.answered, (second, True): model.answered}
    assert model.answered


def told_once(cell: Cell, llm: FallbackLLM, model: Model, events: Events) -> int:
    """One start and one end for each call, in its own span, all progress between them; the end tells who served.

    Returns how many calls LlamaIndex itself tells of once more: `as_structured_llm` is an LLM that asks ours, and sends
    events (without any usage) of its own, whatever LLM it is made of.
    """
    chains: dict[str, list[Any]] = {}
    for event in events.seen:
        if type(event).__name__.startswith(("LLMChat", "LLMCompletion")):
            chains.setdefault(event.span_id, []).append(event)
    outer = [span for span in chains if span.startswith("StructuredLLM.")]
    for span in outer:
        del chains[span]
    assert len(chains) == model.answered
    for chain in chains.values():
        kinds = [type(event).__name__.removeprefix("LLMChat").removeprefix("LLMCompletion") for event in chain]
        assert kinds == ["StartEvent", *["InProgressEvent"] * (len(kinds) - 2), "EndEvent"]
        serving = llm.router.targets[0 if cell.fault == "well" else 1].name
        assert chain[-1].response.additional_kwargs["fallback"]["target"] == serving
    if cell.fault != "cut in the middle":  # what observers of the dispatcher add up
        told = [chain[-1].response.raw["usage"] for chain in chains.values()]
        assert Counter((one["prompt_tokens"], one["completion_tokens"]) for one in told) == Counter(model.used)
    assert not events.count("ExceptionEvent")
    return len(outer)


def test_every_part_of_the_matrix_stands_in_the_quarter_that_runs_here():
    """Each pair with each fault, each mix with each pair and each fault; and nothing that is not in the whole."""
    cells = list(covering_cells())
    assert {(c.primary, c.fallback, c.fault) for c in cells} == {(*pair, fault) for pair in PAIRS for fault in FAULTS}
    assert {(c.mix, c.primary, c.fallback) for c in cells} == {(mix, *pair) for mix in MIXES for pair in PAIRS}
    assert {(c.mix, c.fault) for c in cells} == {(mix, fault) for mix in MIXES for fault in FAULTS}
    full = list(every_cell())
    assert set(cells) < set(full)
    assert len({str(c) for c in full}) == len(full)
