"""LangChain's messages and keywords as a neutral request, and back."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel

from langchain_fallback._convert import (
    Chunks,
    bound_tools,
    from_langchain,
    message_of,
    neutral_choice,
    output_schema,
    to_langchain,
    to_request,
    usage_of,
)
from shared_core.chat.events import Answer, Finished, ReasoningDelta, TextDelta, Usage, events_of
from shared_core.chat.request import (
    Audio,
    Constraints,
    File,
    Image,
    Message,
    Origin,
    OutputSchema,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)
from shared_core.errors import InvalidRequest, UnknownOption

PNG = b"\x89PNG\r\n"
B64 = base64.b64encode(PNG).decode()


def request_of(messages: list[BaseMessage], /, **kwargs: Any) -> Any:
    stop = kwargs.pop("stop", None)
    return to_request(messages, stop, kwargs, {}, streaming=False, providers=frozenset({"openai", "anthropic"}))


BLOCKS: list[tuple[Any, Any]] = [
    ("plain", Text("plain")),
    ({"type": "text", "text": "a"}, Text("a")),
    (
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        Image(url="https://x/y.png", detail="low"),
    ),
    ({"type": "image_url", "image_url": "https://x/y.png"}, Image(url="https://x/y.png")),
    (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}},
        Image(data=PNG, media_type="image/png"),
    ),
    ({"type": "image", "base64": B64, "mime_type": "image/png"}, Image(data=PNG, media_type="image/png")),
    ({"type": "image", "url": "https://x/y.png"}, Image(url="https://x/y.png")),
    ({"type": "image", "file_id": "file-1"}, Image(file_id="file-1")),
    (
        {"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"},
        Image(data=PNG, media_type="image/png"),
    ),
    ({"type": "image", "source_type": "url", "url": "https://x/y.png"}, Image(url="https://x/y.png")),
    ({"type": "image", "source_type": "id", "id": "file-1"}, Image(file_id="file-1")),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        Image(data=PNG, media_type="image/png"),
    ),
    ({"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}, Image(url="https://x/y.png")),
    ({"type": "image", "source": {"type": "file", "file_id": "file-1"}}, Image(file_id="file-1")),
    ({"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}}, Audio(data=PNG, media_type="audio/wav")),
    ({"type": "audio", "base64": B64, "mime_type": "audio/wav"}, Audio(data=PNG, media_type="audio/wav")),
    ({"type": "file", "base64": B64, "mime_type": "application/pdf"}, File(data=PNG, media_type="application/pdf")),
    (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{B64}"}},
        File(data=PNG, media_type="application/pdf", name="a.pdf"),
    ),
    ({"type": "file", "file": {"file_id": "file-1"}}, File(file_id="file-1")),
    (
        {"type": "document", "title": "T", "source": {"type": "base64", "media_type": "application/pdf", "data": B64}},
        File(data=PNG, media_type="application/pdf", name="T"),
    ),
    ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}, Text("words")),
    ({"type": "media", "mime_type": "audio/mp3", "data": B64}, Audio(data=PNG, media_type="audio/mp3")),
    (
        {"type": "media", "mime_type": "image/png", "file_uri": "gs://b/o"},
        Image(url="gs://b/o", media_type="image/png"),
    ),
]


@pytest.mark.parametrize(("block", "part"), BLOCKS)
def test_every_dialect_of_content_is_understood(block: Any, part: Any) -> None:
    (message,) = from_langchain([HumanMessage([block])])
    assert message.parts == (part,)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "executable_code", "code": "1"},
        {"type": "image"},
        {"type": "hologram"},
        {"no": "type"},
    ],
)
def test_a_block_nobody_else_could_read_is_refused_by_name(block: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="content block"):
        from_langchain([HumanMessage([block])])


def test_every_kind_of_message_has_its_role() -> None:
    messages = [
        SystemMessage("s"),
        HumanMessage("u", name="Ann"),
        AIMessage("a"),
        ChatMessage("d", role="developer"),
        ChatMessage("h", role="human"),
        FunctionMessage("r", name="f"),
        ToolMessage("t", tool_call_id="1", name="f", status="error"),
    ]
    neutral = from_langchain(messages)
    assert [m.role for m in neutral] == ["system", "user", "assistant", "system", "user", "tool", "tool"]
    assert neutral[1].name == "Ann"
    assert neutral[6].parts == (ToolResult("1", (Text("t"),), "f", True),)
    (critic,) = from_langchain([ChatMessage("x", role="critic")])
    assert (critic.role, critic.name) == ("user", "critic"), "no vendor knows the role, but who spoke can be told"
    with pytest.raises(InvalidRequest, match="RemoveMessage"):
        from_langchain([RemoveMessage("id")])


def test_an_assistant_turn_keeps_its_calls_once_and_its_origin() -> None:
    message = AIMessage(
        [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "é"}}],
        tool_calls=[{"id": "1", "name": "f", "args": {"x": "é"}}],
        invalid_tool_calls=[{"id": "2", "name": "g", "args": "{oops", "error": "no JSON"}],
        response_metadata={"model_provider": "google_genai", "model_name": "gemini-x"},
    )
    (neutral,) = from_langchain([message])
    assert neutral.text == "Let me see."
    assert neutral.tool_calls == (ToolCall("1", "f", '{"x": "é"}'), ToolCall("2", "g", "{oops"))
    assert neutral.origin == Origin("google", "gemini-x")


@pytest.mark.parametrize(
    ("block", "text", "key"),
    [
        ({"type": "thinking", "thinking": "hm", "signature": "S"}, "hm", "signature"),
        ({"type": "redacted_thinking", "data": "D"}, "", "data"),
        ({"type": "reasoning", "reasoning": "hm", "extras": {"signature": "S"}}, "hm", "signature"),
        ({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}, "hm", "id"),
    ],
)
def test_thinking_is_kept_with_what_only_its_author_understands(block: dict[str, Any], text: str, key: str) -> None:
    (neutral,) = from_langchain([AIMessage([block, {"type": "text", "text": "x"}])])
    thought, said = neutral.parts
    assert isinstance(thought, Reasoning)
    assert thought.text == text
    assert key in thought.data
    assert said == Text("x")


def test_cache_marks_become_a_hint() -> None:
    marked = HumanMessage([{"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}])
    assert [m.cache_hint for m in from_langchain([marked, HumanMessage("short")])] == [True, False]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None), (False, None), ("", None), (True, "any"), ("any", "any"), ("required", "any"), ("auto", "auto"),
        ("none", "none"), ("f", "f"), ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"type": "tool", "name": "f"}, "f"), ({"type": "any"}, "any"), ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
    ],
)  # fmt: skip
def test_tool_choice_is_one_thing_in_many_words(given: Any, meant: str | None) -> None:
    assert neutral_choice(given) == meant


def test_a_tool_choice_in_no_known_words_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="allowed_tools"):
        neutral_choice({"type": "allowed_tools"})


class Shape(BaseModel):
    """A shape."""

    x: int


def test_response_format_takes_every_form() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    assert output_schema(None) is None
    assert output_schema({"type": "text"}) is None
    assert output_schema({"type": "json_object"}) == OutputSchema()
    named = {"type": "json_schema", "json_schema": {"name": "N", "schema": schema, "strict": True}}
    assert output_schema(named) == OutputSchema(schema, "N", True)
    assert output_schema(Shape).name == "Shape"  # type: ignore[union-attr]  # not None: it is a schema
    with pytest.raises(InvalidRequest, match="response_format"):
        output_schema(42)


def test_every_keyword_of_a_call_lands_where_it_belongs() -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    request = request_of(
        [HumanMessage("hi")], stop=["END"], temperature=0.5, max_completion_tokens=7, top_p=0.9, seed=3, timeout=4.0,
        model="m", tools=bound_tools([add]), tool_choice="any", parallel_tool_calls=False, chain="low-cost", tags=["t"],
        user="u", constraints={"local_only": True}, openai={"service_tier": "flex"}, extra={"anthropic": {"top_k": 5}},
        response_format={"type": "json_object"}, stream=True,
    )  # fmt: skip
    assert (request.stop, request.temperature, request.max_tokens, request.top_p) == (("END",), 0.5, 7, 0.9)
    assert (request.seed, request.timeout_s, request.model, request.chain) == (3, 4.0, "m", "low-cost")
    assert (request.user, request.tags, request.parallel_tool_calls, request.tool_choice) == ("u", ("t",), False, "any")
    assert request.tools[0].name == "add"
    assert request.constraints == Constraints(local_only=True)
    assert request.extra == {"openai": {"service_tier": "flex"}, "anthropic": {"top_k": 5}}
    assert request.output == OutputSchema()
    assert request.native is None, "nobody here speaks LangChain"


@pytest.mark.parametrize(
    ("wrong", "right"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("tool", "tools")]
)
def test_an_unknown_keyword_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UnknownOption, match=f"'{right}'"):
        request_of([HumanMessage("hi")], **{wrong: 1})


def test_an_unknown_keyword_says_how_to_reach_one_vendor() -> None:
    with pytest.raises(UnknownOption, match=r"anthropic=\{'brilliance': …\}"):
        request_of([HumanMessage("hi")], brilliance={})
    with pytest.raises(UnknownOption, match="local_only"):
        request_of([HumanMessage("hi")], constraints={"local": True})


texts = st.text(min_size=0, max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts, lambda v: st.lists(v, max_size=2), max_leaves=3
)
arguments = st.dictionaries(st.text("abc", min_size=1, max_size=2), json_values, max_size=2)
humans = st.builds(lambda t: HumanMessage(t), texts) | st.builds(
    lambda t: HumanMessage([{"type": "text", "text": t}, {"type": "image", "base64": B64, "mime_type": "image/png"}]),
    texts,
)
assistants = st.builds(
    lambda t, calls: AIMessage(t, tool_calls=[{"id": str(i), "name": "f", "args": a} for i, a in enumerate(calls)]),
    texts,
    st.lists(arguments, max_size=2),
)
histories = st.lists(st.one_of(humans, assistants, st.builds(SystemMessage, texts)), min_size=1, max_size=6)


@given(histories)
def test_conversion_never_changes_a_message_and_goes_there_and_back(history: list[BaseMessage]) -> None:
    before = copy.deepcopy(history)
    neutral = from_langchain(history)
    assert history == before
    assert len(neutral) == len(history)
    assert from_langchain(to_langchain(neutral)) == neutral


def test_thinking_of_another_vendor_stays_behind() -> None:
    thought = Reasoning("hm", {"signature": "S"})
    message = Message("assistant", (thought, Text("x")), origin=Origin("anthropic", "claude"))
    (own,) = to_langchain([message], Origin("anthropic", "claude"))
    (foreign,) = to_langchain([message], Origin("openai", "gpt"))
    assert [b["type"] for b in own.content_blocks] == ["reasoning", "text"]
    assert foreign.content == "x"


THOUGHTFUL = Answer(
    "Seven.",
    (ToolCall("1", "f", '{"x": 1}'),),
    (Reasoning("hm", {"signature": "S"}),),
    usage=Usage(9, 5, 2, 0, 3),
    model="claude-x",
    provider="anthropic",
    fallback={"target": "t"},
)


def streamed(answer: Answer) -> AIMessage:
    chunks = Chunks()
    out = [chunk.message for event in events_of(answer) if (chunk := chunks.feed(event)) is not None]
    whole: Any = out[0]
    for chunk in out[1:]:
        whole += chunk
    return whole  # type: ignore[no-any-return]  # the sum of chunks is a chunk


@pytest.mark.parametrize("make", [message_of, streamed])
def test_an_answer_with_thinking_reads_the_same_whole_and_streamed(make: Any) -> None:
    message = make(THOUGHTFUL)
    blocks = [{k: v for k, v in block.items() if k != "index"} for block in message.content_blocks]
    assert blocks == [
        {"type": "reasoning", "reasoning": "hm", "extras": {"signature": "S"}},
        {"type": "text", "text": "Seven."},
        {"type": "tool_call", "id": "1", "name": "f", "args": {"x": 1}},
    ]
    assert message.text == "Seven."
    assert message.response_metadata["model_provider"] == "anthropic"
    assert message.usage_metadata == {
        "input_tokens": 9, "output_tokens": 5, "total_tokens": 14,
        "input_token_details": {"cache_read": 2}, "output_token_details": {"reasoning": 3},
    }  # fmt: skip
    (again,) = from_langchain([message])
    assert again.parts == (Reasoning("hm", {"signature": "S"}), Text("Seven."), ToolCall("1", "f", '{"x": 1}'))
    assert again.origin == Origin("anthropic", "claude-x")


def test_a_call_with_broken_arguments_is_an_invalid_call_and_no_error() -> None:
    message = message_of(Answer(tool_calls=(ToolCall("1", "f", "{oops"),)))
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["args"] == "{oops"


def test_opaque_state_of_a_tool_call_survives_the_round_trip() -> None:
    answer = Answer(
        tool_calls=(ToolCall("1", "f", "{}", {"thought_signature": "S"}),), provider="google", model="gemini"
    )
    for message in (message_of(answer), streamed(answer)):
        json.dumps(message.additional_kwargs)
        (again,) = from_langchain([message])
        assert again.tool_calls[0].data == {"thought_signature": "S"}


def test_our_own_count_of_tokens_is_marked_as_such() -> None:
    message = message_of(Answer("x", usage=Usage(1, 1, estimated=True)))
    assert message.usage_metadata is not None
    assert message.response_metadata["usage_estimated"] is True
    assert message_of(Answer("x")).usage_metadata is None


def test_text_that_began_plain_stays_plain_and_later_thinking_goes_beside_it() -> None:
    events = [TextDelta("a"), ReasoningDelta("h"), ReasoningDelta("m", {"signature": "S"}), TextDelta("b"), Finished()]
    chunks = Chunks(lambda _: Origin("anthropic", "claude-x"))
    whole: Any = None
    for event in events:
        chunk = chunks.feed(event)
        assert chunk is not None
        whole = chunk.message if whole is None else whole + chunk.message
    assert whole.content == "ab"
    assert whole.additional_kwargs["reasoning_content"] == "hm"
    (again,) = from_langchain([whole])
    assert again.parts == (Text("ab"), Reasoning("hm", {"signature": "S"}))
    assert again.origin == Origin("anthropic", "claude-x")


def test_an_answer_that_begins_with_thinking_is_blocks_from_end_to_end() -> None:
    chunks = Chunks()
    assert chunks.feed(ReasoningDelta("hm")).message.content == [{"type": "reasoning", "reasoning": "hm", "index": 0}]  # type: ignore[union-attr]
    assert chunks.feed(TextDelta("b")).message.content == [{"type": "text", "text": "b", "index": 1}]  # type: ignore[union-attr]
    assert chunks.feed(Finished()).message.content == []  # type: ignore[union-attr]


def test_half_a_count_is_no_reported_one() -> None:
    """Input of 0 tokens means that the model's class missed it: a bill of nothing for the prompt would be believed."""
    assert usage_of({"input_tokens": 0, "output_tokens": 50, "total_tokens": 50}) is None
    assert usage_of({"input_tokens": 3, "output_tokens": 0, "total_tokens": 3}) == Usage(3, 0)
    assert usage_of({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}) == Usage(0, 0)
