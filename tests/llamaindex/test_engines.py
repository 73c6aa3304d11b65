"""LlamaIndex as people use it, over a FallbackLLM whose primary is well, down, or breaks in the middle."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context

from llamaindex_fallback import FallbackLLM
from shared_core import AllTargetsFailed
from shared_core.testing import CANONICAL, Answer, SeenRequest, ToolCall
from shared_core.testing.fault_server import cut, cut_tool
from tests.llamaindex.world import (
    KINDS,
    PRIMARY,
    SECONDARY,
    WordHash,
    claude,
    fallback_llm,
    fallback_of,
    gemini,
    native,
    script_all,
    wrapped,
)

DOCUMENTS = [
    Document(text="The café opens at seven and closes at nine."),
    Document(text="Refunds are paid within five working days."),
    Document(text="The cat stays until ten."),
]
STATES = ("healthy", "down", "cut")
EACH = list(itertools.product(KINDS, STATES))


@pytest.fixture(scope="module")
def index():
    return VectorStoreIndex.from_documents(DOCUMENTS, embed_model=WordHash())


def canonical(request: SeenRequest) -> Answer:
    """The whole text, or the rest of it where the conversation ends in its beginning."""
    return Answer(CANONICAL, continue_from=request.said != CANONICAL)


def broken(server, state: str, answer: Any = canonical) -> None:
    """The primary in that state; the second model says `answer` whole, or goes on with it."""
    faults: dict[str, Any] = {"healthy": answer, "down": 503, "cut": cut(after_words=4, answer=answer)}
    script_all(server, faults[state])
    server.script(SECONDARY, answer)


# ── retrieval ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "state"), EACH)
async def test_a_query_engine_answers_in_all_three_ways(server, index, kind, state):
    """query, streaming query and aquery: the same text."""
    llm = fallback_llm(server, kind)
    broken(server, state)
    assert index.as_query_engine(llm=llm, similarity_top_k=3).query("When does it open?").response == CANONICAL
    llm.router.reset()
    assert (await index.as_query_engine(llm=llm, similarity_top_k=3).aquery("When does it open?")).response == CANONICAL
    llm.router.reset()
    streamed = index.as_query_engine(llm=llm, streaming=True).query("When does it open?")
    assert "".join(streamed.response_gen) == CANONICAL
    llm.router.reset()
    streamed = await index.as_query_engine(llm=llm, streaming=True, use_async=True).aquery("When does it open?")
    assert "".join([piece async for piece in streamed.async_response_gen()]) == CANONICAL
    asked = json.dumps(server.requests[0].body, ensure_ascii=False)
    assert "The café opens at seven" in asked, "what was retrieved is in the prompt"


@pytest.mark.parametrize("mode", ["refine", "compact", "tree_summarize", "simple_summarize", "accumulate"])
@pytest.mark.parametrize("state", ["healthy", "down"])
def test_every_response_mode_works(server, index, mode, state):
    """Packing prompts needs honest metadata."""
    llm = fallback_llm(server)
    broken(server, state, Answer("At seven."))
    told = str(index.as_query_engine(llm=llm, response_mode=mode).query("When does it open?"))
    assert "At seven." in told


@pytest.mark.parametrize("mode", ["context", "condense_question", "condense_plus_context", "simple"])
@pytest.mark.parametrize(("kind", "state"), [("native", s) for s in STATES] + [("wrapped", "down"), ("wrapped", "cut")])
async def test_a_chat_engine_keeps_its_conversation(server, index, mode, kind, state):
    """Sync, streamed and async; the second turn knows the first."""
    llm = fallback_llm(server, kind)
    broken(server, state)
    chat = index.as_chat_engine(chat_mode=mode, llm=llm)
    assert str(chat.chat("When does it open?")) == CANONICAL
    llm.router.reset()
    assert "".join(chat.stream_chat("And when does it close?").response_gen) == CANONICAL
    llm.router.reset()
    assert str(await chat.achat("And the cat?")) == CANONICAL
    assert [m.role.value for m in chat.chat_history] == ["user", "assistant"] * 3
    assert CANONICAL in json.dumps(server.requests[-1].body, ensure_ascii=False)


def test_a_memory_that_counts_tokens_takes_our_messages(server):
    """Its budget comes from our metadata."""
    llm = fallback_llm(server)
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    memory.put(llm.chat([ChatMessage(content="hi")]).message)
    assert memory.get()[0].content == CANONICAL
    assert memory.token_limit > 1000


def test_an_outage_of_all_reaches_the_caller_of_a_query(server, index):
    """Not an empty answer."""
    script_all(server, 503)
    with pytest.raises(AllTargetsFailed):
        index.as_query_engine(llm=fallback_llm(server)).query("When does it open?")


# ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


def mul(x: int, y: int) -> int:
    """Multiply two numbers."""
    return x * y


def thinking(*calls: ToolCall, then: str = CANONICAL) -> Any:
    """A model that calls its tools and, once it has been told their results, answers."""

    def answer(request: SeenRequest) -> Answer:
        told = json.dumps(request.body)
        done = any(word in told for word in ('"role": "tool"', "tool_result", "functionResponse", "function_response"))
        return Answer(then, continue_from=True) if done else Answer("", tool_calls=calls)

    return answer


BOTH = (ToolCall("add", {"x": 2, "y": 3}), ToolCall("mul", {"x": 2, "y": 3}))


async def ran(agent: Any, prompt: str = "2+3 and 2*3?") -> tuple[Any, list[ToolCallResult], str]:
    """The agent's output, the tool calls that were made, and the text as it was streamed."""
    handler = agent.run(user_msg=prompt)
    results, streamed = [], ""
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            results.append(event)
        elif isinstance(event, AgentStream):
            streamed += event.delta
    return await handler, results, streamed


def agent_of(llm: FallbackLLM, **options: Any) -> FunctionAgent:
    return FunctionAgent(llm=llm, tools=[FunctionTool.from_defaults(add), FunctionTool.from_defaults(mul)], **options)


AGENT_STATES = [
    *itertools.product([True, False], ["healthy", "down", "down after the calls"]),
    *itertools.product([True], ["cut in a call", "cut in the answer"]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("streaming", "state"), AGENT_STATES)
async def test_a_function_agent_runs_its_tools_once(server, kind, state, streaming):
    """Parallel calls, whole or not at all, on any vendor; the conversation goes on with another."""
    llm = fallback_llm(server, kind)
    model = thinking(*BOTH)
    primary: dict[str, list[Any]] = {
        "healthy": [model],
        "down": [503],
        "down after the calls": [model, 503],
        "cut in a call": [cut_tool(answer=model)],
        "cut in the answer": [model, cut(after_words=4, answer=model)],
    }
    script_all(server, *primary[state])
    server.script(SECONDARY, model)
    output, results, streamed = await ran(agent_of(llm, streaming=streaming))
    assert output.response.content == CANONICAL
    assert sorted((r.tool_name, r.tool_output.raw_output) for r in results) == [("add", 5), ("mul", 6)]  # side by side
    assert not streaming or streamed == CANONICAL
    first = llm.router.targets[0].name
    assert output.raw["fallback"]["target"] == (first if state == "healthy" else llm.router.targets[1].name)


VENDORS: dict[str, Any] = {
    "openai": lambda server: native(server, PRIMARY),
    "anthropic": claude,
    "google": gemini,
    "wrapped": lambda server: wrapped(server, PRIMARY),
}


MOVES = [pair for pair in itertools.permutations(VENDORS, 2) if set(pair) != {"openai", "wrapped"}]
"""The two of them are one model behind one script."""


@pytest.mark.parametrize(("begins", "goes_on"), MOVES)
async def test_a_tool_conversation_moves_from_any_vendor_to_any(server, begins, goes_on):
    """Calls made by one, results read by the other."""
    model = thinking(*BOTH)
    script_all(server, model, 503)
    server.script(VENDORS[goes_on](server).model.split(":")[-1], model)
    llm = fallback_llm(server, [VENDORS[begins](server), VENDORS[goes_on](server)])
    output, results, _ = await ran(agent_of(llm))
    assert output.response.content == CANONICAL
    assert len(results) == 2
    await llm.aclose()


async def test_a_workflow_hands_over_between_agents(server):
    """Two agents, one LLM, the primary down."""
    llm = fallback_llm(server)
    script_all(server, 503)
    handed = {"to_agent": "calculator", "reason": "sums"}

    def model(request: SeenRequest) -> Answer:
        said = json.dumps(request.body)
        if "handoff" in request.tools and "calculator" in said and '"name": "handoff", "arguments"' not in said:
            return Answer("", tool_calls=[ToolCall("handoff", handed)])
        if "add" in request.tools and '"name": "add", "arg' not in said:
            return Answer("", tool_calls=BOTH[:1])
        return Answer("5")

    server.script(SECONDARY, model)
    tools: list[Any] = [FunctionTool.from_defaults(add)]
    greeter = FunctionAgent(name="greeter", description="Greets.", llm=llm, tools=[], can_handoff_to=["calculator"])
    calculator = FunctionAgent(name="calculator", description="Adds.", llm=llm, tools=tools, can_handoff_to=["greeter"])
    output, results, _ = await ran(AgentWorkflow(agents=[greeter, calculator], root_agent="greeter"), "2+3?")
    assert output.current_agent_name == "calculator"
    assert [(r.tool_name, r.tool_output.raw_output) for r in results[1:]] == [("add", 5)]
    assert results[0].tool_name == "handoff"


async def test_a_react_agent_needs_no_tool_calling(server):
    """It reads its tools from text, over targets that have none."""
    llm = fallback_llm(server, [native(server, SECONDARY, capabilities={"tools": False})])
    act = 'Thought: I need to add.\nAction: add\nAction Input: {"x": 2, "y": 3}'
    server.script(SECONDARY, [Answer(act), Answer("Thought: I can answer.\nAnswer: 5")])
    output, results, _ = await ran(ReActAgent(llm=llm, tools=[FunctionTool.from_defaults(add)]), "2+3?")
    assert output.response.content == "5"
    assert len(results) == 1


async def test_an_agents_context_survives_json(server):
    """Checkpoints of workflows hold our messages."""
    llm = fallback_llm(server)
    script_all(server, thinking(*BOTH))
    agent: Any = agent_of(llm)
    context = Context(agent)
    await agent.run(user_msg="2+3 and 2*3?", ctx=context)
    revived = Context.from_dict(agent, json.loads(json.dumps(context.to_dict())))
    llm.router.force_open(llm.router.targets[0].name)
    output = await agent.run(user_msg="Again?", ctx=revived)
    assert output.response.content


def test_predict_and_call(server):
    """The shortest way to a tool."""
    llm = fallback_llm(server)
    script_all(server, 503)
    server.script(SECONDARY, thinking(BOTH[0]))
    assert llm.predict_and_call([FunctionTool.from_defaults(add)], user_msg="2+3?").response == "5"


async def test_one_call_at_a_time_is_one(server):
    """Vendors that cannot be told so may make two; the caller sees one, as blocks and in the legacy place."""
    llm = fallback_llm(server)
    script_all(server, thinking(*BOTH))
    tools = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(mul)]
    for response in (
        llm.chat_with_tools(tools, user_msg="?"),
        await llm.achat_with_tools(tools, user_msg="?"),
    ):
        assert len(llm.get_tool_calls_from_response(response)) == 1
        assert len(response.message.additional_kwargs["tool_calls"]) == 1
    several = llm.chat_with_tools(tools, user_msg="?", allow_parallel_tool_calls=True)
    assert len(llm.get_tool_calls_from_response(several)) == 2


def test_preparing_tools_leaves_the_history_alone(server):
    """LlamaIndex's OpenAI appends to the caller's own list."""
    history = [ChatMessage(content="Hello")]
    fallback_llm(server).chat_with_tools([FunctionTool.from_defaults(add)], user_msg="2+3?", chat_history=history)
    assert len(history) == 1


# ── loops and journals ───────────────────────────────────────────────────────────────────────────────────────────────


PROMPT = PromptTemplate("Tell a joke about {topic}.")


def test_agents_in_loops_of_their_own(server):
    """One `asyncio.run` per agent: nobody fails over for it."""
    llm = fallback_llm(server, "wrapped")
    script_all(server, thinking(*BOTH))
    for _ in range(3):
        output, _, _ = asyncio.run(ran(agent_of(llm)))
        assert not output.raw["fallback"]["used_fallback"]


def test_who_served_is_told_in_every_response(server):
    """Also through predict's plain text, by the router's journal."""
    llm = fallback_llm(server)
    script_all(server, 503)
    server.script(SECONDARY, "ok")
    assert llm.predict(PROMPT, topic="cats") == CANONICAL
    assert llm.router.last is not None
    assert llm.router.last.metadata()["target"] == f"openai:{SECONDARY}"
    assert fallback_of(llm.complete("x"))["used_fallback"]
