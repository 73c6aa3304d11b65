"""The published checks: a good LLM passes them, and what is wrong with a bad one is found and named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.mock import MockLLM

from llamaindex_fallback import FallbackLLM
from llamaindex_fallback.testing import SCENARIOS, UNKNOWN, LLMContractBroken, check_llm, read_and_answer
from shared_core.testing import FaultServer
from tests.llamaindex.world import PRIMARY, claude, gemini, native, wrapped

TOOLS = {name for name, scenario in SCENARIOS.items() if scenario.tools}


@pytest.fixture(scope="module")
def reading() -> Iterator[FaultServer]:
    with FaultServer(default=read_and_answer) as running:
        yield running


@pytest.mark.parametrize("make", [native, claude, gemini, wrapped], ids=lambda make: make.__name__)
def test_a_good_llm_passes(reading, make):
    """Ours over each vendor, and LlamaIndex's own OpenAI: with the same outcomes."""
    llm = make(reading, PRIMARY) if make in (native, wrapped) else make(reading)
    if make is not wrapped:
        llm = FallbackLLM([llm])
    outcomes = check_llm(lambda: llm)
    assert list(outcomes) == list(SCENARIOS)
    assert outcomes["query"] == "The café opens at seven."
    assert outcomes["FunctionAgent"] == ["The results: add gave 5, multiply gave 20.", [("add", 5), ("multiply", 20)]]
    assert outcomes["structured_predict, streamed"] == {"opens": 7, "closes": 9}


def test_an_llm_without_tools_is_not_asked_for_any(reading):
    """Its agent is the one that writes its calls in words."""
    target = native(reading, PRIMARY, capabilities={"tools": False})
    outcomes = check_llm(lambda: FallbackLLM([target]))
    assert SCENARIOS.keys() - outcomes.keys() == TOOLS
    assert "ReActAgent" in outcomes


class Forgetful(FallbackLLM):
    """Sends the last message alone."""

    def _request(self, messages: Sequence[ChatMessage], *args: Any, **options: Any) -> Any:
        return super()._request(messages[-1:], *args, **options)


class Clipped(FallbackLLM):
    """Loses the last piece of a stream."""

    def _streamed(self, request: Any) -> Any:
        responses = list(super()._streamed(request))
        yield from responses[: max(1, len(responses) // 2)]


class Stuttering(FallbackLLM):
    """Hands over what is new, and not what has come so far."""

    def _streamed(self, request: Any) -> Any:
        for response in super()._streamed(request):
            yield ChatResponse(message=ChatMessage(role="assistant", content=response.delta), delta=response.delta)


BROKEN = {
    Forgetful: {"FunctionAgent", "ReActAgent", "chat engine: context", "AgentWorkflow"},
    Clipped: {"faces", "query, streamed", "chat engine: context", "structured_predict, streamed", "refine, streamed"},
    Stuttering: {"faces"},
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_bad_one_is_found_out(reading, broken):
    """By the scenarios that suffer from it, each with its reason; the others pass."""
    made = [native(reading, PRIMARY)]
    with pytest.raises(LLMContractBroken) as caught:
        check_llm(lambda: broken(made))
    assert caught.value.failures.keys() >= BROKEN[broken]
    assert caught.value.failures.keys() != SCENARIOS.keys()
    assert all(name in str(caught.value) for name in BROKEN[broken])


def test_an_llm_that_only_repeats_fails_nearly_everything():
    """LlamaIndex's own mock, which says what it was told."""
    with pytest.raises(LLMContractBroken) as caught:
        check_llm(MockLLM, only=["structured_predict", "router: LLMSingleSelector", "KeywordExtractor"])
    assert {"structured_predict", "router: LLMSingleSelector"} <= caught.value.failures.keys()


def test_what_was_not_in_the_request_is_not_known(reading):
    """The scripted model has no knowledge of its own."""
    llm = FallbackLLM([native(reading, PRIMARY)])
    assert llm.complete("When does the café open?").text == UNKNOWN
    assert llm.complete("The café opens at six. When does the café open?").text == "The café opens at six."
    llm.close()


def test_the_checks_are_imported_by_who_wants_them():
    """LlamaIndex's agents and engines take seconds to import."""
    told = "import sys, llamaindex_fallback; print('llamaindex_fallback.testing' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
