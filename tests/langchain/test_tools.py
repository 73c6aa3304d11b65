"""Tools and structured output: bound once, understood by every target, answered across vendors."""

from __future__ import annotations

import copy
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_fallback import FallbackChatModel
from shared_core.errors import ConfigurationError, InvalidRequest, UnknownOption
from shared_core.testing import Answer, FaultServer, ToolCall
from shared_core.testing.fault_server import cut_tool
from tests.langchain.cells import MIXTURES, like_a_model, models_of, names_of
from tests.langchain.test_faces import FACES, chunks_of, faces_and_mixtures, merged


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return f"{city}: sunny for {days} day(s)"


@tool
def get_time(zone: str) -> str:
    """Get the time in a zone."""
    return f"noon in {zone}"


TWO_CALLS = Answer("", tool_calls=[ToolCall("get_weather", {"city": "Bern"}), ToolCall("get_time", {"zone": "CET"})])


@faces_and_mixtures()
async def test_tool_calls_arrive_whole_from_whoever_answers(server: FaultServer, mixture: str, face: str) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, 503)
    server.script(backup, TWO_CALLS)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0).bind_tools([get_weather, get_time])
    chunks = await chunks_of(model, face)
    message = merged(chunks)
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [
        ("get_weather", {"city": "Bern"}),
        ("get_time", {"zone": "CET"}),
    ]
    assert len({c["id"] for c in message.tool_calls}) == 2
    assert [b["type"] for b in message.content_blocks if b["type"] == "tool_call"] == ["tool_call"] * 2
    fragments = [part for chunk in chunks for part in getattr(chunk, "tool_call_chunks", [])]
    assert len({part["index"] for part in fragments}) == len(fragments), "each call comes whole, under its own index"


@faces_and_mixtures("stream", "astream")
async def test_a_stream_cut_inside_a_tool_call_never_delivers_half_of_it(
    server: FaultServer, mixture: str, face: str
) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, cut_tool(answer=TWO_CALLS))
    server.script(backup, TWO_CALLS)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0).bind_tools([get_weather, get_time])
    message = merged(await chunks_of(model, face))
    assert [c["name"] for c in message.tool_calls] == ["get_weather", "get_time"]
    assert message.invalid_tool_calls == []


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mixture", MIXTURES)
async def test_a_tool_conversation_goes_on_at_another_vendor(server: FaultServer, mixture: str, face: str) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, [TWO_CALLS, 503])
    server.script(backup, "ok")
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0).bind_tools([get_weather, get_time])
    history: list[BaseMessage] = [HumanMessage("What is the weather in Bern, and what time is it?")]
    asked = merged(await chunks_of(model, face, history))
    assert asked.response_metadata["fallback"]["target"].endswith(primary)
    tools: dict[str, Any] = {"get_weather": get_weather, "get_time": get_time}
    history += [asked, *(tools[call["name"]].invoke(call) for call in asked.tool_calls)]
    before = copy.deepcopy(history)
    answer = merged(await chunks_of(model, face, history))
    assert answer.response_metadata["fallback"]["target"].endswith(backup)
    assert answer.text
    assert history == before, "the caller's messages are never changed"
    sent = str(server.requests[-1].body)
    assert "Bern: sunny for 1 day(s)" in sent
    assert "noon in CET" in sent
    assert server.requests[-1].status == 200, "the vendor's own rules about tool turns are kept"


@pytest.mark.parametrize(
    "choice",
    ["any", "required", "auto", "none", "get_time", True, {"type": "function", "function": {"name": "get_time"}}],
)
@pytest.mark.parametrize("mixture", MIXTURES)
async def test_every_form_of_tool_choice_reaches_both_vendors(server: FaultServer, mixture: str, choice: Any) -> None:
    server.default = Answer("", tool_calls=[ToolCall("get_time", {"zone": "CET"})])
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    bound = model.bind_tools([get_weather, get_time], tool_choice=choice, parallel_tool_calls=False)
    assert isinstance(bound, RunnableBinding)
    server.script(names_of(mixture)[0], [Answer("x"), 503])
    bound.invoke("Hello")
    bound.invoke("Hello")
    name = "get_time" if choice == "get_time" or isinstance(choice, dict) else None
    kind = {"required": "any", True: "any"}.get(choice if isinstance(choice, (str, bool)) else "", choice)
    for seen in server.requests:
        sent = seen.body.get("tool_choice")
        if seen.wire == "openai":
            expected: Any = (
                {"any": "required"}.get(kind, kind)
                if name is None
                else {"type": "function", "function": {"name": name}}
            )
            assert sent == expected
            assert seen.body["parallel_tool_calls"] is False
        elif kind != "none" or sent is not None:
            assert sent["type"] == ("tool" if name else kind)
            assert sent.get("name") == name


def test_tools_are_compiled_once_per_target_and_not_per_call(server: FaultServer) -> None:
    models = models_of(server, "ChatOpenAI, ChatAnthropic")
    compiled = []
    original = type(models[0]).bind_tools

    class Counting(type(models[0])):  # type: ignore[misc]  # a class made to count
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            compiled.append(1)
            return original(self, tools, **kwargs)

    models[0].__class__ = Counting
    bound = FallbackChatModel(models=models).bind_tools([get_weather])
    for _ in range(3):
        bound.invoke("Hello")
    assert len(compiled) == 1


def test_a_model_that_cannot_bind_tools_is_passed_over(server: FaultServer) -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    _, backup = models_of(server, "ChatOpenAI, ChatAnthropic")
    server.default = like_a_model
    model = FallbackChatModel(models=[FakeListChatModel(responses=["no tools here"]), backup])
    message = model.bind_tools([get_weather]).invoke("What is the weather?")
    assert [c["name"] for c in message.tool_calls] == ["get_weather"]
    assert model.invoke("Hello").text == "no tools here"


def test_a_server_side_tool_goes_to_ready_models_only(server: FaultServer) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}
    both = FallbackChatModel(models=models_of(server, "native OpenAI, ChatAnthropic"))
    message = both.bind_tools([search]).invoke("Hello")
    assert message.response_metadata["fallback"]["target"] == "anthropic:claude-sonnet-4-5"
    assert server.requests[-1].body["tools"][0]["type"] == "web_search_20250305"
    with pytest.raises(InvalidRequest, match="vendor's servers"):
        FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic")).bind_tools([search]).invoke("Hi")


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="the question")
    punchline: str


class JokeDict(TypedDict):
    """A joke."""

    setup: str
    punchline: str


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
@pytest.mark.parametrize("state", ["well", "down"])
@pytest.mark.parametrize("mixture", MIXTURES)
async def test_structured_output_has_the_same_shape_with_the_primary_up_and_down(
    server: FaultServer, mixture: str, state: str, method: Any
) -> None:
    server.default = like_a_model
    if state == "down":
        server.script(names_of(mixture)[0], 503)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    question = "Tell a joke, as JSON."
    for schema, kind in ((Joke, Joke), (JokeDict, dict), (Joke.model_json_schema(), dict)):
        structured = model.with_structured_output(schema, method=method)
        for answer in (structured.invoke(question), await structured.ainvoke(question)):
            assert isinstance(answer, kind)
            assert set(dict(answer)) == {"setup", "punchline"}
        *_, last = structured.stream(question)
        assert isinstance(last, kind)
    both = model.with_structured_output(Joke, method=method, include_raw=True).invoke(question)
    assert isinstance(both["raw"], AIMessage)
    assert isinstance(both["parsed"], Joke)
    assert both["parsing_error"] is None


def test_an_answer_that_does_not_fit_is_reported_not_raised_with_include_raw(server: FaultServer) -> None:
    server.default = Answer('{"setup": 1}')
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    both = model.with_structured_output(Joke, method="json_schema", include_raw=True).invoke("Tell a joke.")
    assert both["parsed"] is None
    assert both["parsing_error"] is not None


def test_structured_output_refuses_options_it_does_not_know(server: FaultServer) -> None:
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    with pytest.raises(UnknownOption, match="include_raw"):
        model.with_structured_output(Joke, include_row=True)
    with pytest.raises(ConfigurationError, match="json_mode"):
        model.with_structured_output(Joke, method="json")  # type: ignore[arg-type]


def test_tool_results_that_failed_say_so_to_every_vendor(server: FaultServer) -> None:
    history = [
        HumanMessage("weather?"),
        AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Bern"}, "id": "call_1"}]),
        ToolMessage("no such city", tool_call_id="call_1", status="error"),
    ]
    for mixture in MIXTURES:
        FallbackChatModel(models=models_of(server, mixture)).bind_tools([get_weather]).invoke(history)
        sent = server.requests[-1]
        if sent.wire == "anthropic":
            assert "'is_error': True" in str(sent.body)
        assert "no such city" in str(sent.body)


def test_what_only_helps_a_vendor_find_tools_keeps_nobody_out(server: FaultServer) -> None:
    """Without it the others are told of all tools, which is what a search among them would come to."""
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    for mixture in MIXTURES:
        model = FallbackChatModel(models=models_of(server, mixture), max_retries=0).bind_tools([get_weather, search])
        for state in ("ok", 503):
            primary, backup = names_of(mixture)
            server.script(primary, state)
            server.script(backup, "ok")
            model.invoke("Hello")
            sent = server.requests[-1]
            names = [t.get("name") or t["function"]["name"] for t in sent.body["tools"]]
            assert names[0] == "get_weather"
            assert ("tool_search_tool_regex" in names) == (sent.wire == "anthropic" and "ChatAnthropic" in mixture)


def test_what_a_tool_says_to_claude_alone_reaches_claude(server: FaultServer) -> None:
    @tool(extras={"cache_control": {"type": "ephemeral"}})
    def get_tides(place: str) -> str:
        """Get the tides."""
        return "high"

    model = FallbackChatModel(models=models_of(server, "ChatAnthropic, ChatOpenAI"), max_retries=0)
    bound = model.bind_tools([get_tides])
    bound.invoke("Hello")
    assert server.requests[-1].body["tools"][0]["cache_control"] == {"type": "ephemeral"}
    server.script(names_of("ChatAnthropic, ChatOpenAI")[0], 503)
    bound.invoke("Hello")
    assert "cache_control" not in str(server.requests[-1].body)
