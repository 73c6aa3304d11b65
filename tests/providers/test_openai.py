"""What the OpenAI provider sends and how it reads what comes back, at the wire: sync and async, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.chat.events import Finished, ReasoningDelta, Started, TextDelta, collect
from shared_core.chat.request import (
    Audio,
    ChatRequest,
    File,
    Image,
    OutputSchema,
    Text,
    ToolCall,
    ToolSpec,
    assistant,
    system,
    tool,
    user,
)
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers import build
from shared_core.providers.compatible import ROWS
from shared_core.providers.openai import OpenAIProvider, _ThinkTags
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target
from shared_core.testing import Answer, FaultServer, Usage
from shared_core.testing import ToolCall as Called
from tests.providers.wire import COLOURS, Colour, ask, call, fail

KEY = "sk-test-not-a-real-key-000"
LOOKUP = ToolSpec("lookup", "Find it.", {"type": "object", "properties": {"q": {"type": "string"}}})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SHAPES = [pytest.param(False, id="whole"), pytest.param(True, id="stream")]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def at(server: FaultServer, spec: str = "openai:gpt-4o", step: Any = "ok", **options: Any) -> OpenAIProvider:
    server.clear()
    made = build(Target(spec, base_url=server.openai_url, api_key=KEY, **options))
    assert isinstance(made, OpenAIProvider)
    server.script(made.model, step)
    return made


def sent(server: FaultServer, provider: Any, request: ChatRequest) -> dict[str, Any]:
    call(provider, request)
    return dict(server.requests[-1].body)


def test_it_is_a_provider() -> None:
    assert isinstance(build(Target("openai:gpt-4o", api_key=KEY)), Provider)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("streaming", SHAPES)
def test_an_answer_arrives_with_usage_reason_and_ids(server: FaultServer, colour: Colour, streaming: bool) -> None:
    usage = Usage(prompt_tokens=100, completion_tokens=50, cached_tokens=30, reasoning_tokens=20)
    provider = at(server, step=Answer("Hello there", usage=usage))
    events = call(provider, ask(streaming=streaming), colour)
    assert isinstance(events[0], Started)
    answer = collect(events)
    assert answer.text == "Hello there"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (100, 50)
    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens) == (30, 20)
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "stop")
    assert answer.response_id is not None
    assert answer.model == "gpt-4o"
    assert str(answer.extra["request_id"]).startswith("req_")
    assert "x-ratelimit-remaining-requests" in answer.extra["rate_limits"]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("streaming", SHAPES)
def test_parallel_tool_calls_arrive_whole_under_the_callers_names(
    server: FaultServer, colour: Colour, streaming: bool
) -> None:
    """A name that the vendor's charset does not allow travels under another and comes back as it was."""
    dotted = ToolSpec("crm.find:one", "Find one.")
    provider = at(server)
    wire_name = provider._wire_name("crm.find:one")
    assert wire_name != "crm.find:one"
    server.script("gpt-4o", Answer("", tool_calls=[Called("lookup", {"q": "é"}), Called(wire_name, {"id": 7})]))
    answer = collect(call(provider, ask(streaming=streaming, tools=(LOOKUP, dotted)), colour))
    assert [(c.name, c.parsed()) for c in answer.tool_calls] == [("lookup", {"q": "é"}), ("crm.find:one", {"id": 7})]
    assert answer.finish_reason == "tool_calls"
    assert len({c.id for c in answer.tool_calls}) == 2


@pytest.mark.parametrize("streaming", SHAPES)
def test_thoughts_are_kept_apart_from_the_text(server: FaultServer, streaming: bool) -> None:
    provider = at(server, "deepseek:deepseek-reasoner", Answer("42", reasoning="Let me think."))
    answer = collect(call(provider, ask(streaming=streaming)))
    assert (answer.text, answer.reasoning[0].text) == ("42", "Let me think.")


def test_a_conversation_is_put_into_the_vendors_words(server: FaultServer) -> None:
    provider = at(server)
    request = ChatRequest(
        (
            system("Be brief."),
            user([Text("See"), Image(data=b"\x89PNG....", detail="low"), File(data=b"%PDF-1", name="a.pdf")]),
            assistant([ToolCall("call_1", "lookup", '{"q": 1}')]),
            tool("call_1", "found"),
        ),
        tools=(LOOKUP,),
        tool_choice="any",
        parallel_tool_calls=False,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stop=("END",),
        seed=3,
        user="u1",
        output=OutputSchema(SCHEMA, "num ber", True),
    )
    body = sent(server, provider, request)
    first, second, third, fourth = body["messages"]
    assert first == {"role": "system", "content": "Be brief."}
    assert [p["type"] for p in second["content"]] == ["text", "image_url", "file"]
    assert second["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert second["content"][1]["image_url"]["detail"] == "low"
    assert second["content"][2]["file"]["filename"] == "a.pdf"
    assert third["tool_calls"][0]["function"] == {"name": "lookup", "arguments": '{"q": 1}'}
    assert (fourth["role"], fourth["tool_call_id"], fourth["content"]) == ("tool", "call_1", "found")
    assert body["tool_choice"] == "required"
    assert body["parallel_tool_calls"] is False
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert (body["temperature"], body["top_p"], body["stop"], body["seed"], body["user"]) == (
        0.5,
        0.9,
        ["END"],
        3,
        "u1",
    )
    assert body["response_format"]["json_schema"] == {"name": "num_ber", "schema": SCHEMA, "strict": True}
    assert "stream" not in body


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("lookup", {"type": "function", "function": {"name": "lookup"}}),
    ],
)
def test_tool_choices_are_translated(server: FaultServer, choice: str, wire: Any) -> None:
    assert sent(server, at(server), ask(tools=(LOOKUP,), tool_choice=choice))["tool_choice"] == wire


def test_any_json_object_is_json_mode(server: FaultServer) -> None:
    assert sent(server, at(server), ask(output=OutputSchema()))["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("model", "role", "sampling"),
    [
        ("gpt-4o", "system", True),
        ("gpt-5-mini", "developer", False),
        ("o3", "developer", False),
        ("gpt-5.1", "developer", True),
    ],
)
def test_models_that_refuse_sampling_are_spared_it(server: FaultServer, model: str, role: str, sampling: bool) -> None:
    provider = at(server, f"openai:{model}")
    body = sent(server, provider, ChatRequest((system("s"), user("u")), temperature=0.3, top_p=0.5))
    assert body["messages"][0]["role"] == role
    assert ("temperature" in body) is sampling
    assert ("top_p" in body) is sampling


def test_a_reasoning_effort_makes_a_hybrid_model_refuse_sampling(server: FaultServer) -> None:
    request = ask(temperature=0.3, extra={"openai": {"reasoning_effort": "high"}})
    body = sent(server, at(server, "openai:gpt-5.1"), request)
    assert body["reasoning_effort"] == "high"
    assert "temperature" not in body


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("streaming", SHAPES)
def test_a_stop_sequence_that_the_model_refuses_is_watched_for_on_this_side(
    server: FaultServer, colour: Colour, streaming: bool
) -> None:
    provider = at(server, "openai:gpt-5-mini", Answer("One two three STOP HERE four five"))
    answer = collect(call(provider, ask(streaming=streaming, stop=("STOP HERE",)), colour))
    assert (answer.text, answer.finish_reason) == ("One two three ", "stop")
    assert "stop" not in server.requests[-1].body


def test_more_stop_sequences_than_the_vendor_takes_all_count(server: FaultServer) -> None:
    provider = at(server, step=Answer("a b c d E f"))
    answer = collect(call(provider, ask(stop=("1", "2", "3", "4", "E"))))
    assert answer.text == "a b c d "
    assert server.requests[-1].body["stop"] == ["1", "2", "3", "4"]


def test_vendor_options_pass_through_by_name_or_into_the_body(server: FaultServer) -> None:
    provider = at(server, params={"service_tier": "flex", "top_k": 1}, headers={"X-Team": "a"}, query={"v": "2"})
    body = sent(
        server, provider, ask(extra={"openai": {"top_k": 5, "logit_bias": {"1": 2}}, "anthropic": {"top_k": 9}})
    )
    assert (body["service_tier"], body["top_k"], body["logit_bias"]) == ("flex", 5, {"1": 2})
    assert server.requests[-1].headers["x-team"] == "a"
    assert "v=2" in server.requests[-1].path


def test_the_requests_model_replaces_the_targets(server: FaultServer) -> None:
    server.script("gpt-4.1", "ok")
    assert sent(server, at(server), ask(model="gpt-4.1"))["model"] == "gpt-4.1"


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_streams_with_its_own_dialect(server: FaultServer, name: str) -> None:
    row = ROWS[name]
    provider = at(server, f"{name}:some-model")
    request = ask(
        streaming=True, max_tokens=99, seed=1, user="u", tools=(LOOKUP,) if row.tools else (), parallel_tool_calls=True
    )
    body = sent(server, provider, request)
    assert ("stream_options" in body) is row.stream_usage
    assert ("user" in body) is row.user
    assert row.seed is None or body[row.seed] == 1
    assert ("parallel_tool_calls" in body) is (row.parallel_tool_calls and row.tools)
    assert provider.capabilities.tools is row.tools
    assert provider.origin.provider == name


@pytest.mark.parametrize(
    ("name", "last", "more"),
    [
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("mistral", {"prefix": True}, {}),
        ("moonshot", {"partial": True}, {}),
        ("llama-server", {}, {}),
    ],
)
def test_an_unfinished_answer_is_given_to_whoever_can_go_on_with_it(
    server: FaultServer, name: str, last: dict[str, Any], more: dict[str, Any]
) -> None:
    provider = at(server, f"{name}:m")
    assert provider.capabilities.continuation == "prefill"
    body = sent(server, provider, ChatRequest((user("Tell"), assistant("Once upon")), continues=True))
    assert body["messages"][-1] == {"role": "assistant", "content": "Once upon", **last}
    assert {k: body[k] for k in more} == more


def test_another_vendors_environment_is_not_told_to_compatible_ones(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    call(at(server, "groq:m"), ask())
    assert not [v for v in server.requests[-1].headers.values() if "secret" in v]
    call(at(server, "openai:m"), ask())
    assert server.requests[-1].headers["openai-organization"] == "org-secret"


def test_what_cannot_be_sent_makes_the_target_incapable_before_anything_is_sent(server: FaultServer) -> None:
    provider = at(server)
    request = ChatRequest((user([Text("hear"), Audio(url="https://a.example/b.wav")]),))
    assert fail(provider, request).kind is ErrorKind.INCAPABLE
    assert server.count() == 0


@pytest.mark.parametrize("streaming", SHAPES)
def test_an_answer_that_the_filter_stopped_says_so(server: FaultServer, streaming: bool) -> None:
    assert collect(call(at(server, step="content-filter"), ask(streaming=streaming))).finish_reason == "content_filter"


def test_a_key_that_was_refused_names_its_variable(server: FaultServer) -> None:
    assert fail(at(server, "groq:m", "key-invalid"), ask()).hint == "check `GROQ_API_KEY` or api_key="


# ── reading, without a wire ──────────────────────────────────────────────────────────────────────────────────────────


def chunk(reason: str | None = None, **delta: Any) -> Any:
    return SimpleNamespace(
        id="c1", model="m", choices=[SimpleNamespace(index=0, delta=SimpleNamespace(**delta), finish_reason=reason)]
    )


def fold(chunks: Sequence[Any], **fields: Any) -> list[Any]:
    reader = OpenAIProvider(Target("openai:m", **fields))._fold(ask(streaming=True))
    events: list[Any] = []
    for one in chunks:
        events += reader.feed(one)
    return [*events, *reader.end({})]


def fragment(index: int | None, call_id: str | None, name: str | None, arguments: Any) -> Any:
    return SimpleNamespace(index=index, id=call_id, function=SimpleNamespace(name=name, arguments=arguments))


@pytest.mark.parametrize("indices", [(0, 0, 1, 1), (0, 0, 0, 0), (None, None, None, None)])
def test_parallel_calls_are_told_apart_whatever_index_the_vendor_gives_them(indices: tuple[int | None, ...]) -> None:
    a, b, c, d = indices
    answer = collect(
        fold(
            [
                chunk(tool_calls=[fragment(a, "x", "f", "")]),
                chunk(tool_calls=[fragment(b, None, None, '{"a":1}')]),
                chunk(tool_calls=[fragment(c, "y", "g", "")]),
                chunk(tool_calls=[fragment(d, None, None, '{"b":2}')]),
                chunk("tool_calls"),
            ]
            if indices != (0, 0, 0, 0)
            else [
                chunk(tool_calls=[fragment(0, "x", "f", '{"a":1}')]),
                chunk(tool_calls=[fragment(0, "y", "g", '{"b":2}')]),
                chunk("tool_calls"),
            ]
        )
    )
    assert [(c.id, c.name, c.arguments) for c in answer.tool_calls] == [("x", "f", '{"a":1}'), ("y", "g", '{"b":2}')]


def test_a_stop_after_a_tool_call_is_a_tool_call() -> None:
    answer = collect(fold([chunk(tool_calls=[fragment(0, "x", "f", {"a": 1})]), chunk("stop")]))
    assert (answer.finish_reason, answer.raw_finish_reason) == ("tool_calls", "stop")
    assert json.loads(answer.tool_calls[0].arguments) == {"a": 1}


def test_a_refusal_is_text_and_a_reason() -> None:
    answer = collect(fold([chunk(refusal="I cannot."), chunk("stop")]))
    assert (answer.text, answer.finish_reason) == ("I cannot.", "refusal")


def test_a_vendors_failure_in_the_middle_is_an_error_and_not_an_end() -> None:
    bad = chunk("error")
    bad.choices[0].error = {"code": 502, "message": "Provider returned error"}
    with pytest.raises(ProviderError) as caught:
        fold([chunk(content="Once"), bad])
    assert (caught.value.kind, caught.value.status, caught.value.after_output) == (ErrorKind.TRANSIENT, 502, True)


@given(st.text(max_size=30), st.text(max_size=30), st.lists(st.integers(1, 4), max_size=30))
def test_think_tags_are_split_out_however_the_text_is_cut(thought: str, text: str, sizes: list[int]) -> None:
    thought, text = thought.replace("<", ""), text.replace("<", "").lstrip()
    whole = f"<think>{thought}</think>\n\n{text}"
    pieces, at = [], 0
    for size in [*sizes, len(whole)]:
        pieces.append(whole[at : at + size])
        at += size
    tags = _ThinkTags()
    events = [e for p in pieces if p for e in tags.feed(p)] + list(tags.flush())
    assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == thought
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == text
    assert all(e.text for e in events)  # type: ignore[union-attr]  # only deltas come out


@given(st.text(max_size=40), st.integers(1, 5))
def test_text_without_tags_is_left_alone(text: str, size: int) -> None:
    if text.lstrip().startswith("<think>"):
        return
    tags = _ThinkTags()
    events = [e for i in range(0, len(text), size) for e in tags.feed(text[i : i + size])] + list(tags.flush())
    assert "".join(e.text for e in events) == text  # type: ignore[union-attr]


def test_the_stream_ends_with_its_only_finished(server: FaultServer) -> None:
    events = call(at(server), ask(streaming=True))
    assert [type(e) for e in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    assert all(e.text for e in events if isinstance(e, TextDelta))
