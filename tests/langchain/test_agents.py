"""`create_agent` with a `FallbackChatModel` in place of its model: the same end, whatever breaks on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from shared_core.errors import AllTargetsFailed, StreamBroken
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import cut_tool
from tests.langchain.agent_script import (
    BROKEN,
    CLAUDE,
    DONE,
    DOWN,
    FACES,
    GPT,
    HALF_CALL,
    MIXTURES,
    OVERLOADED,
    SAID,
    SILENT,
    STATES,
    WELL,
    Tools,
    World,
    agent_of,
    check_pairs,
    check_wire,
    final,
    like_an_agent,
    make,
    named,
    run,
    streamed,
    task,
)

pytestmark = pytest.mark.usefixtures("without_certificates")


GOOGLE = pytest.mark.skipif(len(MIXTURES) < 5, reason="the newest SDKs leave LangChain's Google class out")


class Report(BaseModel):
    """What came of it."""

    title: str
    temperature: int


REPORT = Report(title="sunny all day, they say", temperature=7)


CELLS = [
    (mixture, state, FACES[(i + j) % len(FACES)])
    for i, mixture in enumerate(MIXTURES)
    for j, state in enumerate(STATES)
]
"""Every mixture in every state; the faces take turns, so that each mixture and each state meets all of them."""


@pytest.mark.parametrize(("mixture", "state", "face"), CELLS, ids=named)
async def test_an_agent_does_its_task_whatever_breaks(server: FaultServer, mixture: str, state: str, face: str) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    agent = agent_of(world.model, tools.functions(), system_prompt="Be quick.")
    out = final(face, await run(agent, face, task(), **streamed(face)))
    assert tools.times == DONE, "each tool once per call, whatever broke"
    assert out["messages"][-1].text == SAID
    assert [type(m).__name__ for m in out["messages"]] == [
        "HumanMessage", "AIMessage", "ToolMessage", "ToolMessage", "AIMessage", "ToolMessage", "AIMessage",
    ]  # fmt: skip
    check_pairs(out["messages"])
    check_wire(server)
    assert (server.count(world.backup) > 0) is (state != "well")


# ── structured answers ───────────────────────────────────────────────────────────────────────────────────────────────

FORMATS = {"ToolStrategy": ToolStrategy(Report), "ProviderStrategy": ProviderStrategy(Report), "bare schema": Report}


FORMS = [
    (form, MIXTURES[(i + j) % len(MIXTURES)], state, FACES[(i + j) % len(FACES)])
    for i, form in enumerate(FORMATS)
    for j, state in enumerate(STATES)
]
"""Every form in every state; mixtures and faces take turns."""


@pytest.mark.parametrize(("form", "mixture", "state", "face"), FORMS, ids=named)
async def test_an_agent_fills_in_its_schema_whatever_breaks(
    server: FaultServer, form: str, mixture: str, state: str, face: str
) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    agent = agent_of(world.model, tools.functions(), response_format=FORMATS[form])
    out = final(face, await run(agent, face, task(), **streamed(face)))
    assert out["structured_response"] == REPORT
    assert tools.times == DONE
    check_pairs(out["messages"])
    check_wire(server)


@pytest.mark.parametrize("state", [WELL, DOWN])
@pytest.mark.parametrize("mixture", ["gpt, gemini", "gemini, claude"])
async def test_a_bare_schema_beside_tools_reaches_a_gemini_that_cannot_do_both_natively(
    server: FaultServer, mixture: str, state: str
) -> None:
    """`create_agent` goes by the profile: it must not promise for all what Gemini 2.5 takes only without tools."""
    world, tools = World(server, mixture, state), Tools()
    agent = agent_of(world.model, tools.functions(), response_format=Report)
    out = await agent.ainvoke(task())
    assert out["structured_response"] == REPORT
    assert {seen.model for seen in server.requests if seen.status == 200} == {
        world.primary if state == WELL else world.backup
    }


def as_strict_as_gemini(seen: SeenRequest) -> Any:
    """The script, but Gemini 2.5 refuses to answer in JSON beside tools, as its API does."""
    config = seen.body.get("generationConfig") or {}
    if seen.wire == "google" and seen.body.get("tools") and config.get("responseMimeType") == "application/json":
        said = "Function calling with a response mime type: 'application/json' is unsupported"
        return Fault("bad-request", message=said)
    return like_an_agent(seen)


@GOOGLE
@pytest.mark.parametrize("form", ["ProviderStrategy", "bare schema"])
async def test_a_ready_gemini_that_refuses_a_schema_beside_tools_does_not_end_the_call_for_the_others(
    server: FaultServer, form: str
) -> None:
    world, tools = World(server, "ChatGoogle, claude", script=as_strict_as_gemini), Tools()
    agent = agent_of(world.model, tools.functions(), response_format=FORMATS[form])
    assert (await agent.ainvoke(task()))["structured_response"] == REPORT
    assert tools.times == DONE


SEARCHES = {
    "anthropic": {"type": "web_search_20250305", "name": "web_search"},
    "google": {"google_search": {}},
}


@pytest.mark.parametrize(("home", "mixture"), [
    ("anthropic", "ChatOpenAI, ChatAnthropic"), ("anthropic", "gpt, ChatAnthropic"),
    pytest.param("anthropic", "ChatGoogle, ChatAnthropic", marks=GOOGLE),
    pytest.param("google", "ChatAnthropic, ChatGoogle", marks=GOOGLE),
    pytest.param("google", "ChatOpenAI, ChatGoogle", marks=GOOGLE),
], ids=named)  # fmt: skip
async def test_a_tool_of_a_vendors_servers_goes_to_that_vendor_and_to_nobody_else(
    server: FaultServer, home: str, mixture: str
) -> None:
    world, tools = World(server, mixture), Tools()
    agent = agent_of(world.model, [*tools.functions(), SEARCHES[home]])
    assert (await agent.ainvoke(task()))["messages"][-1].text == SAID
    assert {seen.wire for seen in server.requests} == {home}
    server.script(world.backup, 503)
    with pytest.raises(AllTargetsFailed):
        agent.invoke(task())
    assert {seen.wire for seen in server.requests} == {home}


async def test_a_tool_without_arguments_beside_a_schema_reaches_ChatOpenAI(server: FaultServer) -> None:
    world, ran = World(server, "ChatOpenAI, ChatAnthropic"), []

    def now() -> str:
        """Get the time."""
        ran.append("now")
        return "noon"

    agent = agent_of(world.model, [now], response_format=ProviderStrategy(Report))
    assert agent.invoke(task("now()"))["structured_response"] == REPORT
    assert ran == ["now"]
    assert {seen.model for seen in server.requests} == {GPT}
    assert server.requests[0].body["tools"][0]["function"]["strict"] is True, (
        "its SDK refuses any other beside a schema"
    )


@pytest.mark.parametrize("face", ["invoke", "astream"])
async def test_a_structured_answer_that_does_not_fit_is_asked_for_again_as_with_any_model(
    server: FaultServer, face: str
) -> None:
    """`ToolStrategy` tells the model what was wrong; the second answer comes from another vendor."""
    wrong = Answer("", tool_calls=[ToolCall("Report", {"title": "no figure", "temperature": "warm"})])
    world = World(server, "claude, gpt", face=face)
    server.script(world.primary, [wrong, 503])
    agent = agent_of(world.model, [], response_format=ToolStrategy(Report))
    out = final(face, await run(agent, face, task("How warm is it?"), **streamed(face)))
    assert out["structured_response"] == REPORT
    assert "temperature" in str(server.requests[-1].body["messages"])
    check_wire(server)


# ── nothing to notice ────────────────────────────────────────────────────────────────────────────────────────────────


def squashed(items: Sequence[Any]) -> list[Any]:
    """`items` with repeats in a row made one: how many chunks a text comes in is nobody's business."""
    return [item for item, before in zip(items, [None, *items], strict=False) if item != before]


MODES = ["updates", "messages", "values", "tasks", "debug", "custom"]


def told(mode: str, value: Any) -> Any:
    """What a consumer of this stream mode goes by."""
    match mode:
        case "messages":
            return mode, value[1]["langgraph_node"], type(value[0]).__name__.removesuffix("Chunk")
        case "updates":
            return mode, {node: [plain(m) for m in update["messages"]] for node, update in value.items()}
        case "values":
            return mode, [plain(m) for m in value["messages"]]
        case _:
            return mode, value.get("type"), (value.get("payload") or value).get("name")


def plain(message: BaseMessage) -> Any:
    """A message without ids and metadata."""
    calls = [(call["name"], call["args"]) for call in getattr(message, "tool_calls", ())]
    return type(message).__name__, message.text, calls


async def seen_from_outside(model: Any, face: str) -> dict[str, Any]:
    """Everything an agent program can see of a run: every stream mode at once, and the events of `astream_events`."""
    agent = agent_of(model, Tools().functions(), system_prompt="Be quick.")
    given = task("get_weather(Bern) then get_weather(Oslo) then send_mail(Ann)")  # side by side, tools race
    out = await run(agent, face, given, stream_mode=MODES)
    events = [event async for event in agent.astream_events(given, version="v2")]
    return {
        "modes": squashed([told(mode, value) for mode, value in out]),
        "events": squashed([(e["event"], e["name"].replace(type(model).__name__, "the model")) for e in events]),
        "tokens": "".join(e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream"),
        "ends": [plain(e["data"]["output"]) for e in events if e["event"] == "on_chat_model_end"],
    }


@pytest.mark.parametrize(("mixture", "state", "face"), [
    ("gpt, claude", WELL, "stream"), ("gpt, claude", DOWN, "astream"), ("gpt, claude", OVERLOADED, "stream"),
    ("ChatAnthropic, ChatOpenAI", BROKEN, "astream"), ("gemini, gpt", HALF_CALL, "stream"),
    ("gpt, claude", SILENT, "astream"),
], ids=named)  # fmt: skip
async def test_every_stream_tells_what_it_would_tell_of_a_plain_ChatOpenAI(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    world = World(server, mixture, state, face)
    with FaultServer(default=like_an_agent) as healthy:
        expected = await seen_from_outside(make(healthy, "ChatOpenAI"), face)
    assert await seen_from_outside(world.model, face) == expected


@pytest.mark.parametrize(("mixture", "state"), [(m, s) for m, s in zip(MIXTURES, STATES[1:], strict=False)], ids=named)
@pytest.mark.filterwarnings("ignore:The v3 streaming protocol:Warning")
async def test_the_events_of_version_3_hold_each_message_once(server: FaultServer, mixture: str, state: str) -> None:
    steps = ["Let me do step 1 for you.", "Let me do step 2 for you.", SAID]
    world, tools = World(server, mixture, state, "stream"), Tools()
    agent = agent_of(world.model, tools.functions())
    stream = agent.stream_events(task(), version="v3")
    assert ["".join(message.text) for message in stream.messages] == steps
    assert stream.output["messages"][-1].text == SAID
    assert tools.times == DONE
    world.model.router.reset()
    astream = await agent.astream_events(task(), version="v3")
    assert ["".join([piece async for piece in message.text]) async for message in astream.messages] == steps
    assert set(tools.times.values()) == {2}


# ── when it cannot be helped ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mixture", MIXTURES[:3])
async def test_no_tool_ever_sees_half_a_call(server: FaultServer, mixture: str, face: str) -> None:
    world, tools = World(server, mixture, face=face), Tools()
    half = cut_tool(answer=like_an_agent) if "stream" in face else Fault("truncated-json", answer=like_an_agent)
    for name in (world.primary, world.backup):
        server.script(name, half)
    with pytest.raises((StreamBroken, AllTargetsFailed)):
        await run(agent_of(world.model, tools.functions()), face, task(), **streamed(face))
    assert not tools.ran


@pytest.mark.parametrize("face", FACES)
async def test_after_an_outage_of_everybody_the_checkpoint_goes_on_and_no_tool_runs_twice(
    server: FaultServer, face: str
) -> None:
    world, tools = World(server, "gpt, claude", face=face), Tools()
    server.script(world.primary, [like_an_agent, 503])
    server.script(world.backup, 503)
    agent = agent_of(world.model, tools.functions(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(AllTargetsFailed):
        await run(agent, face, task(), config, **streamed(face))
    assert sorted(tools.ran) == ["get_weather(Bern)", "get_weather(Oslo)"]
    (failed,) = agent.get_state(config).tasks
    assert "all 2 target(s) failed" in str(failed.error), "what the checkpoint keeps says why"
    server.script(world.primary, like_an_agent)
    world.model.router.reset()
    out = await agent.ainvoke(None, config)
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_pairs(out["messages"])


async def test_a_cancelled_agent_frees_the_connection_and_goes_on_from_its_checkpoint(server: FaultServer) -> None:
    world, tools = World(server, "gpt, claude", script=lambda seen: replace(like_an_agent(seen), every_s=0.01)), Tools()
    agent = agent_of(world.model, tools.functions(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    began = asyncio.Event()

    async def reader() -> None:
        async for _ in agent.astream(task(), config, stream_mode="messages"):
            began.set()

    reading = asyncio.create_task(reader())
    await began.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.to_thread(server.wait_idle)
    assert [seen.outcome for seen in server.requests] == ["client-closed"], "and nobody else was asked"
    assert world.model.router.health()[f"openai:{GPT}"].consecutive_failures == 0
    out = await agent.ainvoke(None, config)
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def thinking(seen: SeenRequest) -> Answer:
    """Thinks aloud before it answers, in words of its own."""
    return replace(like_an_agent(seen), reasoning=f"As {seen.wire} I hold that this is right.")


@pytest.mark.parametrize("thinks", [False, True], ids=["", "thinking"])
@pytest.mark.parametrize(("mixture", "face"), list(zip(MIXTURES, [*FACES, "invoke"], strict=False)), ids=named)
async def test_a_conversation_changes_vendors_at_every_step(
    server: FaultServer, mixture: str, face: str, thinks: bool
) -> None:
    world, tools = World(server, mixture, face=face, script=thinking if thinks else None), Tools()
    world.flip_flop()
    agent = agent_of(world.model, tools.functions(), checkpointer=InMemorySaver())
    config, messages = {"configurable": {"thread_id": "1"}}, []
    for _ in range(3):
        world.model.router.reset()  # every other call fails, and that is not to open the circuit
        messages = final(face, await run(agent, face, task(), config, **streamed(face)))["messages"]
    assert [m.text for m in messages if isinstance(m, AIMessage)][2::3] == [SAID] * 3
    assert tools.times == Counter(dict.fromkeys(DONE, 3))
    served = [m.response_metadata["model_name"] for m in messages if isinstance(m, AIMessage)]
    assert all(a != b for a, b in pairwise(served)), served
    check_pairs(messages)
    check_wire(server)
    for seen in server.requests:
        others = {"openai", "anthropic", "google"} - {seen.wire}
        assert not any(f"As {other} I hold" in str(seen.body) for other in others), "thoughts stay home"


async def test_a_batch_of_agents_runs_each_tool_once_per_conversation(server: FaultServer) -> None:
    world, tools = World(server, "gpt, claude", DOWN), Tools()
    agent = agent_of(world.model, tools.functions())
    out = [*agent.batch([task()] * 4), *await agent.abatch([task()] * 4)]
    assert {state["messages"][-1].text for state in out} == {SAID}
    assert tools.times == Counter(dict.fromkeys(DONE, 8))


# ── agents within agents, and people ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("state", "face"), list(zip(STATES, [*FACES, *FACES], strict=False)), ids=named)
async def test_an_agent_is_a_tool_of_another(server: FaultServer, state: str, face: str) -> None:
    world, tools = World(server, "gpt, claude", state, face), Tools()
    inner = agent_of(world.model, tools.functions(), name="inner")

    @tool
    async def ask_helper(what: str) -> str:
        """Hand a task to the helper."""
        answer: str = (await inner.ainvoke(task("get_weather(Bern)")))["messages"][-1].text
        return answer

    @tool
    def ask_helper_now(what: str) -> str:
        """Hand a task to the helper."""
        answer: str = inner.invoke(task("get_weather(Bern)"))["messages"][-1].text
        return answer

    helper = ask_helper if face.startswith("a") else ask_helper_now
    outer = agent_of(world.model, [helper], name="outer")
    messages = final(face, await run(outer, face, task(f"{helper.name}(it)"), **streamed(face)))["messages"]
    assert messages[-1].text == "All of it is done for you: All of it is done for you: Bern is sunny.."
    assert tools.ran == ["get_weather(Bern)"]
    check_pairs(messages)
    check_wire(server)


@pytest.mark.parametrize("face", FACES)
async def test_a_person_is_asked_under_one_vendor_and_answers_under_another(server: FaultServer, face: str) -> None:
    world, tools = World(server, "claude, gpt", face=face), Tools()

    def confirm(question: str) -> str:
        """Ask a person."""
        answer = interrupt(question)
        tools.ran.append(f"confirm({question})")
        return f"a person said {answer}"

    agent = agent_of(world.model, [*tools.functions(), confirm], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    given = task("get_weather(Bern) then confirm(sure) then send_mail(Ann)")
    await run(agent, face, given, config, **streamed(face))
    assert agent.get_state(config).next == ("tools",)
    server.script(world.primary, 503)
    messages = final(face, await run(agent, face, Command(resume="yes"), config, **streamed(face)))["messages"]
    assert messages[-1].text == "All of it is done for you: Bern is sunny, a person said yes, sent to Ann."
    assert tools.ran == ["get_weather(Bern)", "confirm(sure)", "send_mail(Ann)"]
    served = [m.response_metadata["model_name"] for m in messages if isinstance(m, AIMessage)]
    assert served == [CLAUDE, CLAUDE, GPT, GPT]
    check_pairs(messages)
    check_wire(server)
