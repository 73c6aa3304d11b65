"""LangGraph programs of one's own with a `FallbackChatModel` in their nodes: each token once, each message once."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.func import task as step
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import RetryPolicy, Send
from pydantic import BaseModel

from shared_core.testing import FaultServer
from tests.langchain.agent_script import (
    DONE,
    DOWN,
    FACES,
    GPT,
    MIXTURES,
    SAID,
    STATES,
    WELL,
    Tools,
    World,
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

TURNS = [(MIXTURES[i % len(MIXTURES)], state, FACES[(i + 1) % len(FACES)]) for i, state in enumerate(STATES)]
"""Every state once; mixtures and faces take turns."""
STREAMS = [(mixture, state, "astream" if "a" in face else "stream") for mixture, state, face in TURNS]


def loop(world: World, tools: Tools) -> Any:
    """The graph of every tutorial: a model node, a tool node, and an edge that asks whether there are calls."""
    bound = world.model.bind_tools(tools.functions())

    def model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"])]}

    async def amodel(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", amodel if world.face.startswith("a") else model)
    graph.add_node("tools", ToolNode(tools.functions()))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph


@pytest.mark.parametrize(("mixture", "state", "face"), TURNS, ids=named)
async def test_a_loop_of_a_model_and_a_tool_node_comes_to_its_end(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    out = final(face, await run(loop(world, tools).compile(), face, task(), **streamed(face)))
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    check_pairs(out["messages"])
    check_wire(server)


class Answers(TypedDict):
    """What parallel branches add to."""

    answers: Annotated[list[BaseMessage], operator.add]


def tokens_of(out: list[Any]) -> dict[str, str]:
    """What the stream showed under each message's id."""
    shown: dict[str, str] = {}
    for mode, value in out:
        if mode == "messages":
            shown[value[0].id] = shown.get(value[0].id, "") + value[0].text
    return shown


@pytest.mark.parametrize(("mixture", "state", "face"), STREAMS, ids=named)
async def test_parallel_branches_stream_each_token_once_under_one_id_each(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    world = World(server, mixture, state, face)
    graph = StateGraph(Answers)
    for name in ("north", "south", "west"):

        def branch(given: Answers, name: str = name) -> dict[str, Any]:
            return {"answers": [world.model.invoke(f"Go {name}.")]}

        async def abranch(given: Answers, name: str = name) -> dict[str, Any]:
            return {"answers": [await world.model.ainvoke(f"Go {name}.")]}

        node: Any = abranch if face == "astream" else branch
        graph.add_node(name, node)
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    out = await run(graph.compile(), face, {"answers": []}, stream_mode=["messages", "values"])
    answers = out[-1][1]["answers"]
    assert {a.text for a in answers} == {f"You said to me that 'Go {n}.', no more." for n in ("north", "south", "west")}
    assert tokens_of(out) == {a.id: a.text for a in answers}
    nodes = [(value[0].id, value[1]["langgraph_node"]) for mode, value in out if mode == "messages"]
    assert len(set(nodes)) == 3, "one id per branch"


@pytest.mark.parametrize("face", FACES)
async def test_sends_that_share_a_model_each_get_their_own_answer(server: FaultServer, face: str) -> None:
    world = World(server, "gpt, claude", DOWN, face)

    def one(given: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [world.model.invoke(given["question"])]}

    async def aone(given: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [await world.model.ainvoke(given["question"])]}

    graph = StateGraph(Answers)
    node: Any = aone if face.startswith("a") else one
    graph.add_node("one", node)
    graph.add_conditional_edges(START, lambda _: [Send("one", {"question": f"Number {n}."}) for n in range(6)])
    out = await run(graph.compile(), face, {"answers": []}, **streamed(face))
    answers = out["answers"] if "stream" not in face else out[-1][1]["answers"]
    assert [a.text for a in answers] == [f"You said to me that 'Number {n}.', no more." for n in range(6)]
    assert len({a.id for a in answers}) == 6
    if "stream" in face:
        assert tokens_of(out) == {a.id: a.text for a in answers}


@pytest.mark.parametrize(("mixture", "state", "face"), STREAMS, ids=named)
async def test_a_subgraph_streams_under_its_own_name(server: FaultServer, mixture: str, state: str, face: str) -> None:
    world, tools = World(server, mixture, state, face), Tools()
    outer = StateGraph(MessagesState)
    outer.add_node("inner", loop(world, tools).compile())
    outer.add_edge(START, "inner")
    given = task()
    out = await run(outer.compile(), face, given, stream_mode=["values", "messages"], subgraphs=True)
    spaces = {space[0].partition(":")[0] for space, mode, _ in out if mode == "messages" and space}
    assert spaces == {"inner"}
    state_ = final(face, [(mode, value) for space, mode, value in out if mode == "messages" or not space])
    assert state_["messages"][-1].text == SAID
    assert tools.times == DONE


@pytest.mark.parametrize("face", ["invoke", "ainvoke"])
async def test_tasks_of_the_functional_api_run_side_by_side_across_an_outage(server: FaultServer, face: str) -> None:
    world = World(server, "claude, gpt", DOWN, face)

    @step
    def ask(question: str) -> str:
        return world.model.invoke(question).text

    @step
    async def aask(question: str) -> str:
        return (await world.model.ainvoke(question)).text

    @entrypoint(checkpointer=InMemorySaver())
    def flow(questions: list[str]) -> list[str]:
        return [future.result() for future in [ask(q) for q in questions]]

    @entrypoint(checkpointer=InMemorySaver())
    async def aflow(questions: list[str]) -> list[str]:
        return [await future for future in [aask(q) for q in questions]]

    config = {"configurable": {"thread_id": "1"}}
    out = await run(aflow if face == "ainvoke" else flow, face, ["One.", "Two.", "Three."], config)
    assert out == [f"You said to me that '{n}.', no more." for n in ("One", "Two", "Three")]


@pytest.mark.parametrize("face", FACES)
async def test_a_node_with_a_retry_policy_sees_one_error_and_then_the_answer(server: FaultServer, face: str) -> None:
    """LangGraph retries what our error says: it is no bug, no wrong value."""
    world, tools = World(server, "gpt, claude", face=face), Tools()
    server.script(world.primary, [503, like_an_agent])
    server.script(world.backup, 503)
    graph = loop(world, tools)
    graph.nodes["model"].retry_policy = RetryPolicy(max_attempts=2, initial_interval=0.0, jitter=False)
    out = final(face, await run(graph.compile(), face, task(), **streamed(face)))
    assert out["messages"][-1].text == SAID
    assert tools.times == DONE
    assert (server.count(GPT), server.count(world.backup)) == (4, 1)


class Report(BaseModel):
    """What came of it."""

    title: str
    temperature: int


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize(("mixture", "state", "face"), TURNS, ids=named)
async def test_the_prebuilt_react_agent_takes_the_model_and_fills_in_a_schema(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    prebuilt: Any = pytest.importorskip("langgraph.prebuilt", reason="LangGraph has dropped its prebuilt agents")
    world, tools = World(server, mixture, state, face), Tools()
    agent = prebuilt.create_react_agent(world.model, tools.functions(), prompt="Be quick.", response_format=Report)
    out = await run(agent, face, task(), stream_mode="values")
    values = out if "stream" in face else [out]
    last = values[-1] if isinstance(values[-1], dict) else out
    assert last["messages"][-1].text == SAID
    assert last["structured_response"] == Report(title="sunny all day, they say", temperature=7)
    assert tools.times == DONE
    check_pairs(last["messages"])


@pytest.mark.parametrize("mixture", MIXTURES)
async def test_messages_are_the_same_after_a_trip_through_a_checkpoint(server: FaultServer, mixture: str) -> None:
    world, tools = World(server, mixture, WELL, "ainvoke"), Tools()
    graph = loop(world, tools).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    out = await graph.ainvoke(task(), config)
    again = graph.get_state(config).values["messages"]
    assert again == out["messages"]
    assert again[-1].response_metadata["fallback"]["target"].endswith(world.primary)
    assert all(isinstance(m, AIMessage | HumanMessage) or m.type == "tool" for m in again)
