"""What the Anthropic provider sends and how it reads what comes back: sync and async, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.chat.events import Started, TextDelta, collect
from shared_core.chat.request import (
    ChatRequest,
    File,
    Image,
    Message,
    OutputSchema,
    Reasoning,
    Text,
    ToolCall,
    ToolSpec,
    assistant,
    system,
    tool,
    user,
)
from shared_core.errors import ErrorKind
from shared_core.providers import build
from shared_core.providers.anthropic import AnthropicProvider, _Fold
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target
from shared_core.testing import Answer, FaultServer, Usage
from shared_core.testing import ToolCall as Called
from tests.providers.wire import COLOURS, Colour, ask, call, fail

KEY = "sk-test-not-a-real-key-000"
LOOKUP = ToolSpec("lookup", "Find it.", {"type": "object", "properties": {"q": {"type": "string"}}})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SHAPES = [pytest.param(False, id="whole"), pytest.param(True, id="stream")]
CURRENT, PREFILLING, EARLIER = "claude-opus-4-6", "claude-haiku-4-5", "claude-3-5-haiku-x"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def at(server: FaultServer, model: str = CURRENT, step: Any = "ok", **options: Any) -> AnthropicProvider:
    server.clear()
    made = build(Target(f"anthropic:{model}", base_url=server.anthropic_url, api_key=KEY, **options))
    assert isinstance(made, AnthropicProvider)
    server.script(model, step)
    return made


def sent(server: FaultServer, provider: Any, request: ChatRequest) -> dict[str, Any]:
    call(provider, request)
    return dict(server.requests[-1].body)


def test_it_is_a_provider() -> None:
    assert isinstance(build(Target("claude:x", api_key=KEY)), Provider)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("streaming", SHAPES)
def test_an_answer_arrives_with_usage_reason_and_ids(server: FaultServer, colour: Colour, streaming: bool) -> None:
    """Input counts include what was read from and written to the cache, as everywhere in this package."""
    usage = Usage(prompt_tokens=100, completion_tokens=50, cached_tokens=30, cache_write_tokens=10, reasoning_tokens=20)
    answer = collect(call(at(server, step=Answer("Hello there", usage=usage)), ask(streaming=streaming), colour))
    assert answer.text == "Hello there"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (100, 50)
    assert (answer.usage.cached_tokens, answer.usage.cache_write_tokens) == (30, 10)
    assert (answer.finish_reason, answer.raw_finish_reason, answer.model) == ("stop", "end_turn", CURRENT)
    assert str(answer.response_id).startswith("msg_")
    assert str(answer.extra["request_id"]).startswith("req_")


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("streaming", SHAPES)
def test_tool_calls_arrive_whole(server: FaultServer, colour: Colour, streaming: bool) -> None:
    calls = [Called("lookup", {"q": "é"}), Called("lookup", {})]
    answer = collect(
        call(at(server, step=Answer("", tool_calls=calls)), ask(streaming=streaming, tools=(LOOKUP,)), colour)
    )
    assert [c.parsed() for c in answer.tool_calls] == [{"q": "é"}, {}]
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize("streaming", SHAPES)
def test_a_thought_comes_with_its_signature_and_goes_back_to_its_author_only(
    server: FaultServer, streaming: bool
) -> None:
    provider = at(server, step=Answer("42", reasoning="Let me think."))
    answer = collect(call(provider, ask(streaming=streaming)))
    (thought,) = answer.reasoning
    assert thought.text == "Let me think."
    assert thought.data["type"] == "thinking"
    assert thought.data["thinking"] == "Let me think."
    assert thought.data["signature"]
    turn = Message("assistant", (thought, Text("42")), origin=provider.origin)
    body = sent(server, provider, ChatRequest((user("?"), turn, user("And?"))))
    assert body["messages"][1]["content"][0] == dict(thought.data)
    other = at(server, PREFILLING)
    body = sent(server, other, ChatRequest((user("?"), turn, user("And?"))))
    assert "thinking" not in str(body)


def test_a_conversation_is_put_into_the_vendors_words(server: FaultServer) -> None:
    request = ChatRequest(
        (
            system("Be brief."),
            user([Text("See"), Image(data=b"\x89PNG...."), File(data=b"%PDF-1", name="a.pdf")]),
            assistant([Text("Looking."), ToolCall("call.1", "lookup", '{"q": 1}')]),
            tool("call.1", "not found", is_error=True),
            Message("user", (Text("So?"),), cache_hint=True),
        ),
        tools=(LOOKUP,),
        tool_choice="any",
        parallel_tool_calls=False,
        max_tokens=9,
        temperature=1.7,
        stop=("END", "\n"),
        user="u1",
    )
    body = sent(server, at(server), request)
    assert body["system"] == [{"type": "text", "text": "Be brief."}]
    first, second, third = body["messages"]
    assert [b["type"] for b in first["content"]] == ["text", "image", "document"]
    assert first["content"][1]["source"]["media_type"] == "image/png"
    assert first["content"][2]["title"] == "a.pdf"
    called = second["content"][1]
    assert (called["type"], called["input"]) == ("tool_use", {"q": 1})
    result = third["content"][0]
    assert (result["type"], result["tool_use_id"], result["is_error"]) == ("tool_result", called["id"], True)
    assert third["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert (body["max_tokens"], body["temperature"], body["stop_sequences"]) == (9, 1.0, ["END"])
    assert body["metadata"] == {"user_id": "u1"}


@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-sonnet-5-5", "claude-fable-5", "claude-mythos-preview"])
def test_models_that_sample_as_they_like_are_told_nothing_about_it(server: FaultServer, model: str) -> None:
    """They refuse the request otherwise, and a temperature may be meant for another target of the chain."""
    body = sent(server, at(server, model), ask(temperature=0.2, top_p=0.5))
    assert not {"temperature", "top_p"} & body.keys()


@pytest.mark.parametrize(
    ("choice", "wire"),
    [("auto", {"type": "auto"}), ("none", {"type": "none"}), ("lookup", {"type": "tool", "name": "lookup"})],
)
def test_tool_choices_are_translated(server: FaultServer, choice: str, wire: Any) -> None:
    assert sent(server, at(server), ask(tools=(LOOKUP,), tool_choice=choice))["tool_choice"] == wire


def test_tools_of_the_history_are_declared_even_when_none_is_offered(server: FaultServer) -> None:
    turns = (user("?"), assistant([ToolCall("a", "gone", "{}")]), tool("a", "x"))
    body = sent(server, at(server), ChatRequest(turns))
    assert [t["name"] for t in body["tools"]] == ["gone"]
    assert body["tool_choice"] == {"type": "none"}


def test_a_limit_is_always_sent_and_never_beyond_the_model(server: FaultServer) -> None:
    assert sent(server, at(server, PREFILLING), ask(streaming=True))["max_tokens"] == 64_000
    assert sent(server, at(server, PREFILLING), ask())["max_tokens"] == 21_333
    assert sent(server, at(server, PREFILLING), ask(max_tokens=100_000))["max_tokens"] == 64_000
    assert sent(server, at(server, "claude-of-tomorrow"), ask())["max_tokens"] == 8_192


def test_a_schema_is_native_where_the_model_has_it(server: FaultServer) -> None:
    body = sent(server, at(server), ask(output=OutputSchema(SCHEMA)))
    assert body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {**SCHEMA, "additionalProperties": False},
    }
    assert "tools" not in body


@pytest.mark.parametrize("streaming", SHAPES)
def test_a_schema_is_a_forced_tool_where_it_has_not(server: FaultServer, streaming: bool) -> None:
    step = Answer("", tool_calls=[Called("answer_in_schema", {"n": 3})])
    provider = at(server, EARLIER, step)
    answer = collect(call(provider, ask(streaming=streaming, output=OutputSchema(SCHEMA))))
    assert answer.text.replace(" ", "") == '{"n":3}'
    assert (answer.tool_calls, answer.finish_reason) == ((), "stop")
    assert server.requests[-1].body["tool_choice"] == {"type": "tool", "name": "answer_in_schema"}


def test_thinking_is_given_room_and_loses_what_it_forbids(server: FaultServer) -> None:
    extra = {"anthropic": {"thinking": {"type": "enabled", "budget_tokens": 5000}}}
    request = ask(max_tokens=100, temperature=0.2, tools=(LOOKUP,), tool_choice="any", extra=extra)
    body = sent(server, at(server), request)
    assert body["max_tokens"] > 5000
    assert "temperature" not in body
    assert body["tool_choice"] == {"type": "auto"}


def test_thinking_is_left_out_inside_another_vendors_tool_turn(server: FaultServer) -> None:
    extra = {"anthropic": {"thinking": {"type": "adaptive"}}}
    turns = (user("?"), assistant([ToolCall("a", "lookup", "{}")]), tool("a", "x"))
    assert "thinking" not in sent(server, at(server), ChatRequest(turns, tools=(LOOKUP,), extra=extra))


@pytest.mark.parametrize(("model", "continuation"), [(PREFILLING, "prefill"), (CURRENT, "instructed")])
def test_only_models_that_take_a_prefill_are_given_one(server: FaultServer, model: str, continuation: str) -> None:
    provider = at(server, model)
    assert provider.capabilities.continuation == continuation
    body = sent(server, provider, ChatRequest((user("Tell"), assistant("Once upon ")), continues=True))
    last = body["messages"][-1]
    if continuation == "prefill":
        assert last == {"role": "assistant", "content": "Once upon"}
    else:
        assert last["role"] == "user"


def test_a_rejected_prefill_says_so_by_its_code(server: FaultServer) -> None:
    error = fail(
        at(server, PREFILLING, "reject-prefill"), ChatRequest((user("Tell"), assistant("Once")), continues=True)
    )
    assert (error.kind, error.code) == (ErrorKind.BAD_REQUEST, "prefill_rejected")


def reader(stripped: str) -> _Fold:
    return _Fold({}, answer_tool=None, stripped=stripped)


def delta(text: str) -> Any:
    part = SimpleNamespace(type="text_delta", text=text)
    return SimpleNamespace(type="content_block_delta", index=0, delta=part)


@given(st.text(alphabet="ab \n", max_size=12), st.text(alphabet="ab \n", max_size=12), st.lists(st.integers(1, 3)))
def test_blanks_that_were_cut_off_the_prefill_are_not_said_twice(before: str, after: str, sizes: list[int]) -> None:
    """The API refuses a prefill that ends in blanks; a model that then begins with them joins exactly."""
    whole = before + "|" + after
    begun = before
    said = whole[len(begun.rstrip()) :]
    stripped = begun[len(begun.rstrip()) :]
    fold = reader(stripped)
    out, at_char = "", 0
    for size in [*sizes, len(said) + 1]:
        piece = said[at_char : at_char + size]
        at_char += size
        if piece:
            out += "".join(e.text for e in fold.feed(delta(piece)) if isinstance(e, TextDelta))
    assert begun + out == whole


@pytest.mark.parametrize(
    ("stripped", "said", "out"), [(" ", "world", "world"), ("\n\n", "The", "The"), ("", " x", " x")]
)
def test_a_model_that_does_not_repeat_the_blanks_loses_nothing(stripped: str, said: str, out: str) -> None:
    fold = reader(stripped)
    assert "".join(e.text for e in fold.feed(delta(said)) if isinstance(e, TextDelta)) == out


@pytest.mark.parametrize("streaming", SHAPES)
def test_an_empty_answer_is_one_after_tool_results_only(server: FaultServer, streaming: bool) -> None:
    turns = (user("?"), assistant([ToolCall("a", "lookup", "{}")]), tool("a", "x"))
    answer = collect(call(at(server, step="empty-choices"), ChatRequest(turns, streaming=streaming)))
    assert (answer.text, answer.finish_reason) == ("", "stop")
    assert fail(at(server, step="empty-choices"), ask(streaming=streaming)).kind is ErrorKind.MALFORMED


@pytest.mark.parametrize("streaming", SHAPES)
def test_a_refusal_says_so(server: FaultServer, streaming: bool) -> None:
    assert collect(call(at(server, step="content-filter"), ask(streaming=streaming))).finish_reason == "refusal"


def test_vendor_options_pass_through_by_name_or_into_the_body(server: FaultServer) -> None:
    provider = at(server, params={"top_k": 1}, headers={"anthropic-beta": "x"})
    body = sent(server, provider, ask(extra={"anthropic": {"top_k": 5, "new_thing": {"a": 1}}}))
    assert (body["top_k"], body["new_thing"]) == (5, {"a": 1})
    assert server.requests[-1].headers["anthropic-beta"] == "x"


def test_the_first_event_is_the_envelope(server: FaultServer) -> None:
    first = call(at(server), ask(streaming=True))[0]
    assert isinstance(first, Started)
    assert first.model == CURRENT


def test_a_foreign_thought_is_never_sent(server: FaultServer) -> None:
    turn = Message("assistant", (Reasoning("hm", {"type": "thinking", "signature": "foreign"}), Text("x")))
    assert "foreign" not in str(sent(server, at(server), ChatRequest((user("?"), turn, user("!")))))
