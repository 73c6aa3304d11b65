"""Every middleware of `langchain.agents` that looks at its model, with a `FallbackChatModel` for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    dynamic_prompt,
    wrap_model_call,
)
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.exceptions import ContextOverflowError, ModelError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import SecretStr

from shared_core.errors import AllTargetsFailed
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest
from shared_core.testing.fault_server import Usage
from tests.langchain.agent_script import (
    BROKEN,
    CLAUDE,
    DONE,
    DOWN,
    FACES,
    GPT,
    MIXTURES,
    OVERLOADED,
    SAID,
    STATES,
    WELL,
    Tools,
    World,
    agent_of,
    check_pairs,
    check_wire,
    final,
    like_an_agent,
    named,
    run,
    streamed,
    task,
)

pytestmark = pytest.mark.usefixtures("without_certificates")

MARK = {"cache_control": {"type": "ephemeral"}}
WHOLE = ("invoke", "ainvoke")
SUMMARY = "Here is a summary of the conversation to date:"


# ── summaries ────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = [HumanMessage("Well. " * 1000), AIMessage("I see. " * 1000), HumanMessage("What next?")]


def summed_up(out: dict[str, Any]) -> bool:
    return any(m.text.startswith(SUMMARY) for m in out["messages"])


@pytest.mark.parametrize(
    ("state", "face"), [(WELL, "invoke"), (DOWN, "ainvoke"), (BROKEN, "stream"), (OVERLOADED, "astream")]
)
@pytest.mark.parametrize("trigger", [("fraction", 0.5), ("tokens", 500)], ids=named)
async def test_a_long_conversation_is_summed_up_by_the_model_itself(
    server: FaultServer, trigger: Any, state: str, face: str
) -> None:
    """'fraction' goes by the profile, which is what every target can take."""
    world = World(server, "gpt, claude", state, face)
    assert world.model.profile is not None
    assert world.model.profile["max_input_tokens"] == 200_000, "the smallest window of all targets"
    world.model.profile["max_input_tokens"] = 1000
    summaries = SummarizationMiddleware(world.model, trigger=trigger, keep=("messages", 1))
    out = await run(agent_of(world.model, middleware=[summaries]), face, {"messages": LONG}, **streamed(face))
    last = out if "stream" not in face else [value for mode, value in out if mode == "values"][-1]
    assert summed_up(last)
    assert "What next?" in last["messages"][-1].text


@pytest.mark.parametrize("mixture", ["gpt, claude", "ChatAnthropic, ChatOpenAI"])
async def test_the_tokens_a_vendor_reported_count_for_a_summary(server: FaultServer, mixture: str) -> None:
    reported = Usage(prompt_tokens=5000, completion_tokens=10)
    world = World(server, mixture, script=lambda seen: Answer(like_an_agent(seen).text, usage=reported))
    summaries = SummarizationMiddleware(world.model, trigger=("tokens", 4000), keep=("messages", 1))
    agent = agent_of(world.model, middleware=[summaries], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    assert not summed_up(await agent.ainvoke(task("Hello."), config))
    assert summed_up(await agent.ainvoke(task("What next?"), config))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mixture", ["gpt, claude", "claude, gpt", "ChatAnthropic, ChatOpenAI", "ChatOpenAI, gemini"])
async def test_a_conversation_too_long_for_everybody_is_a_context_overflow_to_langchain(
    server: FaultServer, mixture: str, face: str
) -> None:
    world = World(server, mixture, face=face)
    for name in (world.primary, world.backup):
        server.script(name, "context-overflow")
    with pytest.raises(ContextOverflowError) as caught:
        await run(agent_of(world.model), face, task("Hello."), **streamed(face))
    assert isinstance(caught.value, AllTargetsFailed)
    assert not caught.value.is_retryable


@pytest.mark.parametrize("face", WHOLE)
@pytest.mark.parametrize("mixture", ["gpt, claude", "ChatAnthropic, ChatOpenAI"])
async def test_a_summary_that_overflows_every_target_is_tried_again_with_less(
    server: FaultServer, mixture: str, face: str
) -> None:
    def small(seen: SeenRequest) -> Any:
        return Fault("context-overflow") if len(str(seen.body)) > 12_000 else like_an_agent(seen)

    world = World(server, mixture, face=face, script=small)
    summaries = SummarizationMiddleware(
        world.model, trigger=("messages", 3), keep=("messages", 1), trim_tokens_to_summarize=None
    )
    out = await run(agent_of(world.model, middleware=[summaries]), face, {"messages": LONG})
    assert summed_up(out)
    assert "middle of conversation omitted" in str([seen.body for seen in server.requests])


# ── limits, retries, fallbacks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("face", WHOLE)
async def test_a_limit_of_model_calls_counts_calls_and_not_attempts(server: FaultServer, face: str) -> None:
    world, tools = World(server, "gpt, claude", DOWN, face), Tools()
    agent = agent_of(world.model, tools.functions(), middleware=[ModelCallLimitMiddleware(run_limit=2)])
    out = await run(agent, face, task())
    assert "limit" in out["messages"][-1].text
    assert (server.count(GPT), server.count(CLAUDE)) == (2, 2)
    assert tools.times == DONE


@pytest.mark.parametrize("face", WHOLE)
@pytest.mark.parametrize(
    ("first", "second", "retryable"),
    [(401, 401, False), (403, 404, False), (400, 400, False), (503, 503, True), (401, 503, True)],
)
async def test_a_retry_around_the_model_goes_by_what_the_error_says(
    server: FaultServer, face: str, first: int, second: int, retryable: bool
) -> None:
    world = World(server, "gpt, claude", face=face)
    server.script(world.primary, first)
    server.script(world.backup, second)
    calls: list[int] = []

    @wrap_model_call
    def counted(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        calls.append(1)
        return handler(request)

    @wrap_model_call
    async def acounted(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        calls.append(1)
        return await handler(request)

    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, on_failure="error")
    agent = agent_of(world.model, middleware=[retry, acounted if face == "ainvoke" else counted])
    with pytest.raises(AllTargetsFailed) as caught:
        await run(agent, face, task("Hello."))
    assert isinstance(caught.value, ModelError)
    assert caught.value.is_retryable is retryable
    assert len(calls) == (3 if retryable else 1)


@pytest.mark.parametrize("face", WHOLE)
async def test_a_retry_after_an_outage_of_everybody_gets_the_answer(server: FaultServer, face: str) -> None:
    world, tools = World(server, "gpt, claude", face=face), Tools()
    server.script(world.primary, [503, like_an_agent, 503, like_an_agent])
    server.script(world.backup, 503)
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0)
    out = await run(agent_of(world.model, tools.functions(), middleware=[retry]), face, task())
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("place", ["first", "fallback"])
async def test_it_is_the_first_or_the_fallback_of_a_fallback_middleware(
    server: FaultServer, place: str, face: str
) -> None:
    world, tools = World(server, "claude, gpt", DOWN, face), Tools()
    with FaultServer(default=like_an_agent) as other:
        plain = ChatOpenAI(model="gpt-4.1", base_url=other.openai_url, api_key=SecretStr("k"), max_retries=0)
        if place == "first":
            server.script(world.backup, 503)
            agent = agent_of(world.model, tools.functions(), middleware=[ModelFallbackMiddleware(plain)])
        else:
            other.script("gpt-4.1", 503)
            agent = agent_of(plain, tools.functions(), middleware=[ModelFallbackMiddleware(world.model)])
        out = final(face, await run(agent, face, task(), **streamed(face)))
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_pairs(out["messages"])
    check_wire(server)


@pytest.mark.parametrize("face", WHOLE)
async def test_models_may_be_swapped_at_every_call(server: FaultServer, face: str) -> None:
    """A plain model, ours, and ours again over other targets take turns within one task."""
    world, tools = World(server, "gpt, claude", DOWN, face), Tools()
    world2 = World(server, "ChatAnthropic, ChatOpenAI", WELL, face)
    server.script(GPT, 503)
    models = [world.model, world2.model, world.model]

    @wrap_model_call
    def swapped(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        return handler(request.override(model=models.pop(0)))

    @wrap_model_call
    async def aswapped(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        return await handler(request.override(model=models.pop(0)))

    first = ChatOpenAI(model="never-asked", base_url=server.refused_url(), api_key=SecretStr("k"))
    swap = aswapped if face == "ainvoke" else swapped
    out = await run(agent_of(first, tools.functions(), middleware=[swap]), face, task())
    assert out["messages"][-1].text == SAID
    assert not models
    check_wire(server)


# ── Anthropic's cache marks ──────────────────────────────────────────────────────────────────────────────────────────


def marked(server: FaultServer) -> dict[str, bool]:
    """Which wires saw a cache mark."""
    seen: dict[str, bool] = {}
    for request in server.requests:
        seen[request.wire] = seen.get(request.wire, False) or "cache_control" in json.dumps(request.body)
    return seen


CLAUDES = ["claude, gpt", "gpt, claude", "ChatAnthropic, ChatOpenAI", "ChatOpenAI, ChatAnthropic", "gemini, claude"]


@pytest.mark.filterwarnings("ignore:AnthropicPromptCachingMiddleware caching middleware only supports")
@pytest.mark.parametrize("mixture", CLAUDES)
@pytest.mark.parametrize(("state", "face"), [(WELL, "invoke"), (DOWN, "ainvoke")])
async def test_the_prompt_caching_middleware_does_no_harm(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    caching = AnthropicPromptCachingMiddleware()
    agent = agent_of(world.model, tools.functions(), system_prompt="Be quick.", middleware=[caching])
    assert (await run(agent, face, task()))["messages"][-1].text == SAID
    assert tools.times == DONE
    check_wire(server)


@pytest.mark.parametrize("mixture", CLAUDES)
@pytest.mark.parametrize(("state", "face"), [(WELL, "ainvoke"), (DOWN, "stream")])
async def test_cache_marks_in_settings_prompt_messages_and_tools_reach_Anthropic_and_nobody_else(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    """As the caching middleware sets them, when the model is swapped for ours after it has run."""
    world, tools = World(server, mixture, state, face), Tools()
    functions = [StructuredTool.from_function(f, extras=MARK) for f in tools.functions()]

    @wrap_model_call
    def settings(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        return handler(request.override(model_settings=MARK))

    @wrap_model_call
    async def asettings(request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        return await handler(request.override(model_settings=MARK))

    prompt = SystemMessage([{"type": "text", "text": "Be quick.", **MARK}])
    question = HumanMessage([{"type": "text", "text": task()["messages"][0].text, **MARK}])
    middleware = [asettings if face.startswith("a") else settings]
    agent = agent_of(world.model, functions, system_prompt=prompt, middleware=middleware)
    out = final(face, await run(agent, face, {"messages": [question]}, **streamed(face)))
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_wire(server)
    assert all(value is (wire == "anthropic") for wire, value in marked(server).items())


@pytest.mark.filterwarnings("ignore:AnthropicPromptCachingMiddleware caching middleware only supports")
@pytest.mark.parametrize("order", ["caching outside", "fallback outside"])
@pytest.mark.parametrize("face", WHOLE)
async def test_it_takes_over_from_a_ChatAnthropic_whose_prompt_was_marked(
    server: FaultServer, order: str, face: str
) -> None:
    world, tools = World(server, "gpt, ChatAnthropic", face=face), Tools()
    first = ChatAnthropic(
        model_name="claude-haiku-4-5", base_url=server.anthropic_url, api_key=SecretStr("k"), timeout=None, stop=None,
        max_retries=0,
    )  # fmt: skip
    server.script("claude-haiku-4-5", [like_an_agent, 529])
    middleware = [AnthropicPromptCachingMiddleware(), ModelFallbackMiddleware(world.model)]
    if order == "fallback outside":
        middleware.reverse()
    agent = agent_of(first, tools.functions(), system_prompt="Be quick.", middleware=middleware)
    out = await run(agent, face, task())
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_wire(server)


# ── middleware that asks the model itself, and all the others ────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mixture", "state", "face"), [
    (MIXTURES[i % len(MIXTURES)], state, FACES[i % len(FACES)]) for i, state in enumerate(STATES)
], ids=named)  # fmt: skip
async def test_a_tower_of_middleware_stands_whatever_breaks(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    world, tools = World(server, mixture, state, face), Tools()

    @dynamic_prompt
    def prompt(request: ModelRequest[Any]) -> str:
        return f"There are {len(request.messages)} messages."

    edits = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=100_000)], token_count_method="model")
    tower = [
        prompt,
        TodoListMiddleware(),
        PIIMiddleware("email"),
        edits,
        ModelCallLimitMiddleware(run_limit=9),
        ToolCallLimitMiddleware(run_limit=9),
        ToolRetryMiddleware(max_retries=1, initial_delay=0.0),
        ModelRetryMiddleware(max_retries=1, initial_delay=0.0),
        SummarizationMiddleware(world.model, trigger=("fraction", 0.9)),
    ]
    agent = agent_of(world.model, tools.functions(), middleware=tower)
    out = final(face, await run(agent, face, task(), **streamed(face)))
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_pairs(out["messages"])
    check_wire(server)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("state", "face"), [(WELL, "ainvoke"), (DOWN, "invoke")])
async def test_the_model_selects_the_tools(server: FaultServer, mixture: str, state: str, face: str) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    select = LLMToolSelectorMiddleware(max_tools=1)
    agent = agent_of(world.model, tools.functions(), middleware=[select])
    out = await run(agent, face, task("get_weather(Bern)"))
    assert out["messages"][-1].text == "All of it is done for you: Bern is sunny."
    assert {seen.tools for seen in server.requests} == {("ToolSelectionResponse",), ("get_weather",)}


@pytest.mark.parametrize(("state", "face"), [(WELL, "invoke"), (DOWN, "ainvoke")])
async def test_the_model_stands_in_for_a_tool(server: FaultServer, state: str, face: str) -> None:
    world, tools = World(server, "gpt, claude", state, face), Tools()
    emulate = LLMToolEmulator(tools=["send_mail"], model=world.model)
    out = await run(agent_of(world.model, tools.functions(), middleware=[emulate]), face, task())
    assert "You are emulating a tool call" in out["messages"][-1].text
    assert "send_mail(Ann)" not in tools.ran


@pytest.mark.parametrize("face", FACES)
async def test_what_is_private_reaches_no_vendor(server: FaultServer, face: str) -> None:
    world = World(server, "gpt, claude", DOWN, face)
    agent = agent_of(world.model, middleware=[PIIMiddleware("email", apply_to_output=True)])
    out = await run(agent, face, task("Write to ann@example.org for me."), **streamed(face))
    assert out
    assert all("ann@" not in str(seen.body) for seen in server.requests)


@pytest.mark.parametrize("decision", ["approve", "reject", "edit"])
@pytest.mark.parametrize("face", FACES)
async def test_a_person_approves_under_another_vendor(server: FaultServer, face: str, decision: str) -> None:
    world, tools = World(server, "claude, gpt", face=face), Tools()
    ask = HumanInTheLoopMiddleware(interrupt_on={"send_mail": True})
    agent = agent_of(world.model, tools.functions(), middleware=[ask], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    await run(agent, face, task(), config, **streamed(face))
    assert sorted(tools.ran) == ["get_weather(Bern)", "get_weather(Oslo)"]
    server.script(world.primary, 503)
    said: dict[str, Any] = {"type": decision}
    if decision == "edit":
        said["edited_action"] = {"name": "send_mail", "args": {"to": "Bob"}}
    resume: Any = Command(resume={"decisions": [said]})
    messages = final(face, await run(agent, face, resume, config, **streamed(face)))["messages"]
    mailed = {"approve": ["send_mail(Ann)"], "reject": [], "edit": ["send_mail(Bob)"]}[decision]
    assert [ran for ran in tools.ran if ran.startswith("send")] == mailed
    assert messages[-1].response_metadata["model_name"] == GPT
    check_pairs(messages)
    check_wire(server)
