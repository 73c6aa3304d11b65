"""Answers in a schema from models that have no means of their own for one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import Router
from shared_core.chat.answer_tool import ANSWER_TOOL, adelivered, delivered, with_answer_tool
from shared_core.chat.events import ChatEvent, Finished, Started, TextDelta, ToolCallDelta, collect
from shared_core.chat.request import ChatRequest, Native, OutputSchema, ToolCall, ToolSpec, assistant, user
from shared_core.chat.schema_check import SchemaCheck
from shared_core.errors import AllTargetsFailed, ErrorKind
from shared_core.routing.capabilities import Capabilities
from shared_core.testing import ScriptedProvider

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANYHOW = OutputSchema(SCHEMA, "Place", anyhow=True)
ROME = '{"city": "Rome"}'
LOOKUP = ToolSpec("lookup", "Looks a place up.")

NO_SCHEMA = Capabilities(json_schema=False)
BY_NAME = Capabilities(json_schema=False, tool_choice=frozenset({"auto", "tool"}))
UNFORCED = Capabilities(json_schema=False, tool_choice=frozenset({"auto", "none"}))
TEXT_ONLY = Capabilities(json_schema=False, json_mode=False, tools=False)


def asking(**more: object) -> ChatRequest:
    return ChatRequest((user("Where?"),), output=ANYHOW, **more)  # type: ignore[arg-type]  # a test's own keywords


def called(arguments: str = ROME, name: str = ANSWER_TOOL) -> Sequence[ChatEvent]:
    """As a vendor streams a call: the name first, then the arguments in pieces."""
    pieces = [ToolCallDelta(0, arguments=arguments[at : at + 5]) for at in range(0, len(arguments), 5)]
    return [Started(), ToolCallDelta(0, "call_1", name), *pieces, Finished("tool_calls")]


def served(script: object, able: Capabilities, request: ChatRequest) -> tuple[object, ChatRequest]:
    provider = ScriptedProvider(script, capabilities=able)  # type: ignore[arg-type]  # any step
    with Router(provider) as router:
        answer = router.invoke(request)
    return answer, provider.requests[0]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("able", [NO_SCHEMA, BY_NAME], ids=["any tool", "a tool by name"])
def test_the_arguments_of_a_forced_call_are_the_answer(able: Capabilities, streaming: bool) -> None:
    provider = ScriptedProvider(called(), capabilities=able)
    with Router(provider) as router:
        if streaming:
            with router.stream(asking()) as events:
                answer = collect(events)
        else:
            answer = router.invoke(asking())
    (asked,) = provider.requests
    assert (answer.text, answer.tool_calls, answer.finish_reason) == (ROME, (), "stop")
    assert [tool.name for tool in asked.tools] == [ANSWER_TOOL]
    assert asked.tools[0].parameters == SCHEMA
    assert asked.tool_choice == ("any" if able is NO_SCHEMA else ANSWER_TOOL)
    assert asked.output is None
    assert answer.fallback["attempts"][0]["output_by"] == "tool"


async def test_async_calls_are_told_alike() -> None:
    provider = ScriptedProvider(called(), capabilities=NO_SCHEMA)
    async with Router(provider) as router:
        assert (await router.ainvoke(asking())).text == ROME
        async with router.astream(asking()) as events:
            assert collect([event async for event in events]).text == ROME


def test_a_call_of_the_callers_tool_stays_a_call() -> None:
    answer, asked = served(called("{}", "lookup"), NO_SCHEMA, asking(tools=(LOOKUP,)))
    assert [call.name for call in answer.tool_calls] == ["lookup"]  # type: ignore[attr-defined]
    assert answer.finish_reason == "tool_calls"  # type: ignore[attr-defined]
    assert [tool.name for tool in asked.tools] == ["lookup", ANSWER_TOOL]


def test_a_choice_of_no_tools_leaves_the_answer_alone_on_offer() -> None:
    told = with_answer_tool(asking(tools=(LOOKUP,), tool_choice="none"))
    assert [tool.name for tool in told.tools] == [ANSWER_TOOL]
    assert told.tool_choice == "any"


def test_beside_tools_a_model_that_obeys_names_alone_is_asked_in_words() -> None:
    """Forcing the answer's own tool would keep it from calling the others."""
    _, asked = served(ROME, BY_NAME, asking(tools=(LOOKUP,)))
    assert [tool.name for tool in asked.tools] == ["lookup"]
    assert asked.tool_choice is None


@pytest.mark.parametrize("able", [UNFORCED, TEXT_ONLY], ids=["tools that cannot be forced", "text alone"])
def test_who_cannot_be_forced_is_asked(able: Capabilities) -> None:
    """In the caller's last turn, and with the vendor's JSON mode where there is one."""
    answer, asked = served(f"Here you are:\n```json\n{ROME}\n```\nAnything else?", able, asking())
    assert answer.text == ROME  # type: ignore[attr-defined]
    assert json.dumps(SCHEMA) in asked.messages[-1].text
    assert asked.messages[-1].text.startswith("Where?")
    assert (asked.output == OutputSchema()) == able.json_mode
    assert answer.fallback["attempts"][0]["output_by"] == "words"  # type: ignore[attr-defined]


def test_after_an_assistants_turn_the_wish_is_a_turn_of_its_own() -> None:
    request = ChatRequest((user("Where?"), assistant("Rome.")), output=ANYHOW, native=Native("any", ()))
    _, asked = served(ROME, TEXT_ONLY, request)
    assert [message.role for message in asked.messages] == ["user", "assistant", "user"]
    assert asked.native is None, "the framework's own messages do not hold the wish"
    assert [message.role for message in request.messages] == ["user", "assistant"]


def test_who_has_means_of_its_own_uses_them() -> None:
    answer, asked = served(ROME, Capabilities(), asking())
    assert asked.output is ANYHOW
    assert "output_by" not in answer.fallback["attempts"][0]  # type: ignore[attr-defined]


def test_without_leave_such_a_model_is_not_asked() -> None:
    with pytest.raises(AllTargetsFailed, match="cannot answer in a JSON schema"):
        served(ROME, NO_SCHEMA, ChatRequest((user("Where?"),), output=OutputSchema(SCHEMA)))


def test_each_target_answers_in_its_own_way() -> None:
    """Also after a failure: the next one has a native schema, whatever the first was made to do."""
    first = ScriptedProvider(ErrorKind.OVERLOADED, capabilities=NO_SCHEMA, name="first")
    second = ScriptedProvider(ROME, name="second")
    with Router([first, second]) as router:
        answer = router.invoke(asking(check=SchemaCheck(SCHEMA)))
    assert answer.text == ROME
    assert first.requests[0].output is None
    assert second.requests[0].output is ANYHOW
    assert [attempt.get("output_by") for attempt in answer.fallback["attempts"]] == ["tool", None]


def test_what_does_not_fit_is_put_back_in_the_same_way() -> None:
    provider = ScriptedProvider(called('{"town": 1}'), called(), capabilities=NO_SCHEMA)
    with Router(provider) as router:
        answer = router.invoke(asking(check=SchemaCheck(SCHEMA)))
    assert answer.text == ROME
    assert [asked.tools[0].name for asked in provider.requests] == [ANSWER_TOOL] * 2
    assert len(provider.requests[1].messages) > len(provider.requests[0].messages)


# ── the object in the text ───────────────────────────────────────────────────────────────────────────────────────────

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_around = st.text(st.characters(exclude_characters="{"))


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(), _values), _around, _around, st.lists(st.integers(0, 10**6), max_size=12), st.booleans()
)
def test_the_object_is_found_wherever_the_stream_is_cut(
    value: dict[str, object], before: str, after: str, cuts: list[int], ascii_only: bool
) -> None:
    """Whatever stands around it, and nothing but it."""
    wanted = json.dumps(value, ensure_ascii=ascii_only)
    pieces = [TextDelta(piece) for piece in _cut(before + wanted + after, cuts)]
    assert collect(delivered(iter([*pieces, Finished()]), "words")).text == wanted


@settings(max_examples=100, deadline=None)
@given(_around, st.lists(st.integers(0, 10**6), max_size=5))
def test_a_text_without_an_object_is_all_there_is(text: str, cuts: list[int]) -> None:
    """A refusal in words reaches the check, and the caller, as it was."""
    pieces = [TextDelta(piece) for piece in _cut(text, cuts)]
    assert collect(delivered(iter([*pieces, Finished()]), "words")).text == text
    assert collect(delivered(iter([*pieces, Finished()]), "tool")).text == text


def test_a_whole_call_and_words_beside_it_are_the_call() -> None:
    events = [TextDelta("Let me see. "), ToolCall("c", ANSWER_TOOL, ROME), Finished("tool_calls")]
    assert collect(delivered(iter(events), "tool")).text == ROME


async def test_whoever_leaves_closes_what_is_underneath() -> None:
    closed: list[str] = []

    def words() -> Iterator[ChatEvent]:
        try:
            yield Started()
            yield Finished()
        finally:
            closed.append("sync")

    async def awords() -> AsyncIterator[ChatEvent]:
        try:
            yield Started()
            yield Finished()
        finally:
            closed.append("async")

    events = delivered(words(), "tool")
    next(events)
    events.close()
    aevents = adelivered(awords(), "tool")
    await anext(aevents)
    await aevents.aclose()
    assert closed == ["sync", "async"]
