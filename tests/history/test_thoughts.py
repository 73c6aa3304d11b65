"""Thoughts that a vendor wants back: where they are taken from an answer, and where they are put into a request."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from langchain_fallback import FallbackChatModel, LangChainProvider
from langchain_fallback._convert import Chunks, from_langchain, message_of
from shared_core.chat.events import ChatEvent, collect
from shared_core.chat.request import (
    ChatRequest,
    Message,
    Origin,
    Part,
    Reasoning,
    Text,
    ToolCall,
    assistant,
    tool,
    user,
)
from shared_core.routing.target import Target
from shared_core.testing import Answer, FaultServer
from shared_core.testing import ToolCall as Called
from tests.history.origins import FORMS, KEY, SIGNATURE, Call, Said
from tests.history.targets import provider, request_of

DEEPSEEK = "deepseek:deepseek-reasoner"
OPENROUTER = "openrouter:anthropic/claude-sonnet-4.5"


def chunk(delta: dict[str, Any], finish: str | None = None) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return ChatCompletionChunk.model_validate(body)


def whole(message: dict[str, Any], finish: str = "stop") -> ChatCompletion:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return ChatCompletion.model_validate(body)


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(spec: str, answer: ChatCompletion | list[ChatCompletionChunk]) -> list[ChatEvent]:
    """The events of one answer, through the provider's own reader."""
    fold = provider(spec)._fold(ChatRequest((user("?"),), streaming=isinstance(answer, list)))
    if isinstance(answer, list):
        return [e for c in answer for e in fold.feed(c)] + list(fold.end({}))
    return list(fold.whole(answer, {}))


def body(spec: str, *messages: Message, **fields: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = provider(spec)._arguments(ChatRequest(messages, **fields))["messages"]
    return sent


def streamed_message(events: list[ChatEvent], origin: Origin) -> AIMessage:
    """As `FallbackChatModel.stream` gives it, chunk by chunk, and LangChain joins it."""
    chunks = Chunks(lambda _: origin)
    out = [c.message for e in events if (c := _fed(chunks, e)) is not None]
    joined: Any = out[0]
    for more in out[1:]:
        joined += more
    assert isinstance(joined, AIMessage)
    return joined


def _fed(chunks: Chunks, event: ChatEvent) -> Any:
    from shared_core.chat.events import ToolCallDelta

    if isinstance(event, ToolCallDelta):  # the router puts calls together
        return chunks.feed(ToolCall(event.id or "", event.name or "", event.arguments or "{}", event.data))
    return chunks.feed(event)


# ── DeepSeek, Moonshot ───────────────────────────────────────────────────────────────────────────────────────────────

THINKING_ANSWERS: dict[str, ChatCompletion | list[ChatCompletionChunk]] = {
    "whole": whole({"content": "", "reasoning_content": "I need f.", "tool_calls": [CALL]}, "tool_calls"),
    "streamed": [
        chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
        chunk({"reasoning_content": "I need"}),
        chunk({"reasoning_content": " f."}),
        chunk({"tool_calls": [{"index": 0, **CALL}]}),
        chunk({}, "tool_calls"),
    ],
}


@pytest.mark.parametrize("spec", [DEEPSEEK, "moonshot:kimi-k2-thinking"])
@pytest.mark.parametrize("how", THINKING_ANSWERS)
def test_a_thought_before_a_call_goes_back_with_the_call(spec: str, how: str) -> None:
    events = read(spec, THINKING_ANSWERS[how])
    answer = collect(events)
    assert [(r.text, r.data) for r in answer.reasoning] == [("I need f.", {"reasoning_content": "I need f."})]
    origin = provider(spec).origin
    for message in (message_of(answer, lambda _: origin), streamed_message(events, origin)):
        (turn,) = from_langchain([message])
        sent = body(spec, user("?"), turn, tool("call_1", "r"))
        assert sent[1]["reasoning_content"] == "I need f."
        assert sent[1]["tool_calls"][0]["id"] == "call_1"
        other = body("deepseek:deepseek-v4-pro", user("?"), turn, tool("call_1", "r"))
        assert other[1]["reasoning_content"] == "", "another model's, and yet the field has to be there"


def test_thoughts_go_back_within_tool_loops_only() -> None:
    """DeepSeek leaves out the others itself; sending them costs tokens and nothing else."""
    mine = provider(DEEPSEEK).origin

    def thought(text: str) -> Reasoning:
        return Reasoning(text, {"reasoning_content": text})

    sent = body(
        DEEPSEEK, user("hi"), assistant([thought("a greeting"), Text("Hello!")], origin=mine), user("weather?"),
        assistant([thought("call it"), ToolCall("c", "f")], origin=mine), tool("c", "4"),
        assistant([thought("now I know"), Text("4 °C")], origin=mine), user("thanks"),
        assistant([thought("polite"), Text("Welcome.")], origin=mine), user("bye"),
    )  # fmt: skip
    assert [m.get("reasoning_content") for m in sent if m["role"] == "assistant"] == [
        None, "call it", "now I know", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "extra", "stands_in"),
    [
        (DEEPSEEK, {}, ""),
        ("deepseek:deepseek-chat", {}, None),
        ("deepseek:deepseek-chat", {"thinking": {"type": "enabled"}}, ""),
        ("deepseek:deepseek-v4-flash", {"thinking": {"type": "disabled"}}, None),
        ("moonshot:kimi-k2.6", {}, " "),
        ("moonshot:kimi-k2-0905-preview", {}, None),
        ("groq:llama-4", {}, None),
    ],
)
def test_a_tool_loop_of_another_model_gets_a_stand_in_where_the_vendor_insists(
    spec: str, extra: dict[str, Any], stands_in: str | None
) -> None:
    """'Missing reasoning_content field in the assistant message': the vendor refuses the whole request otherwise."""
    vendor = spec.partition(":")[0]
    foreign = assistant([ToolCall("c", "f")], origin=Origin("openai", "gpt"))
    sent = body(spec, user("?"), foreign, tool("c", "r"), extra={vendor: extra})
    assert sent[1].get("reasoning_content") == stands_in


def test_langchains_own_deepseek_class_leaves_thoughts_that_are_found(server: FaultServer) -> None:
    """`additional_kwargs["reasoning_content"]`, with the vendor's name on the message."""
    turn = FORMS["deepseek"](Said("", "call it", (Call("c"),)))
    (message,) = from_langchain([turn])
    assert body(DEEPSEEK, user("?"), message, tool("c", "r"))[1]["reasoning_content"] == "call it"


# ── OpenRouter ───────────────────────────────────────────────────────────────────────────────────────────────────────

DETAILS = [
    {"type": "reasoning.text", "text": "I need f.", "signature": "SIG", "format": "anthropic-claude-v1", "index": 0},
    {"type": "reasoning.encrypted", "data": "OPAQUE", "id": "rs_1", "index": 1},
]
RELAYED: dict[str, ChatCompletion | list[ChatCompletionChunk]] = {
    "whole": whole({"content": "So.", "reasoning": "I need f.", "reasoning_details": DETAILS}),
    "streamed": [
        chunk({"role": "assistant", "content": "", "reasoning": "I need",
               "reasoning_details": [{"type": "reasoning.text", "text": "I need", "index": 0}]}),
        chunk({"reasoning": " f.", "reasoning_details": [{"type": "reasoning.text", "text": " f.", "index": 0}]}),
        chunk({"reasoning_details": [{"type": "reasoning.text", "signature": "SIG", "format": "anthropic-claude-v1",
                                      "text": None, "index": 0}]}),
        chunk({"reasoning_details": [DETAILS[1]]}),
        chunk({"content": "So."}),
        chunk({}, "stop"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("how", RELAYED)
def test_reasoning_details_are_put_together_and_go_back_to_the_same_model(how: str) -> None:
    events = read(OPENROUTER, RELAYED[how])
    answer = collect(events)
    assert answer.text == "So."
    assert answer.reasoning[-1].data == {"reasoning_details": DETAILS}
    origin = provider(OPENROUTER).origin
    for message in (message_of(answer, lambda _: origin), streamed_message(events, origin)):
        (turn,) = from_langchain([message])
        assert body(OPENROUTER, user("?"), turn, user("!"))[1] == {
            "role": "assistant", "content": "So.", "reasoning_details": DETAILS,
        }  # fmt: skip
        assert "reasoning_details" not in body("openrouter:meta-llama/llama-4", user("?"), turn, user("!"))[1]


def test_sources_that_openai_names_are_kept() -> None:
    cited = {
        "type": "url_citation",
        "url_citation": {"url": "https://a/b", "title": "A", "start_index": 0, "end_index": 1},
    }
    for answer in (
        whole({"content": "So.", "annotations": [cited]}),
        [chunk({"content": "So."}), chunk({"annotations": [cited]}, "stop")],
    ):
        message = message_of(collect(read("openai:gpt-5-mini", answer)))
        (turn,) = from_langchain([message])
        assert "https://a/b" in str(body("mistral:mistral-large-latest", user("?"), turn, user("!")))


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────────


def thinking(server: FaultServer, **more: Any) -> ChatAnthropic:
    settings: dict[str, Any] = {
        "model": "claude-sonnet-4-5", "base_url": server.anthropic_url, "api_key": KEY, "max_tokens": 4000,
        "thinking": {"type": "enabled", "budget_tokens": 2000}, **more,
    }  # fmt: skip
    return ChatAnthropic(**settings)


LOOP = [
    HumanMessage("?"),
    FORMS["openai"](Said("", None, (Call("c"),))),
    ToolMessage("r", tool_call_id="c"),
]


def test_a_model_that_thinks_goes_on_with_another_models_tool_loop_without_thinking(server: FaultServer) -> None:
    """Anthropic refuses a tool turn that does not begin with a thought. The model itself keeps its settings."""
    claude = thinking(server)
    FallbackChatModel(models=[claude]).invoke(LOOP)
    sent = server.requests[-1].body
    assert "thinking" not in sent
    assert [t["name"] for t in sent["tools"]] == ["weather"]
    assert sent["tool_choice"] == {"type": "none"}
    assert claude.thinking == {"type": "enabled", "budget_tokens": 2000}
    FallbackChatModel(models=[claude]).invoke([HumanMessage("?")])
    assert server.requests[-1].body["thinking"]["type"] == "enabled"


def test_a_tool_loop_of_its_own_goes_on_thinking(server: FaultServer) -> None:
    server.default = Answer("", reasoning="hm", tool_calls=[Called("weather", {"city": "Oslo"})])
    model = FallbackChatModel(models=[thinking(server)])
    for first in (model.invoke("?"), _joined(model.stream("?"))):
        (call,) = first.tool_calls
        model.invoke([HumanMessage("?"), first, ToolMessage("r", tool_call_id=call["id"])])
        sent = server.requests[-1].body
        assert sent["thinking"]["type"] == "enabled"
        block = sent["messages"][1]["content"][0]
        assert (block["type"], block["thinking"]) == ("thinking", "hm")
        assert block["signature"]


def _joined(chunks: Any) -> Any:
    joined: Any = None
    for one in chunks:
        joined = one if joined is None else joined + one
    return joined


def test_a_native_prefill_does_not_think(server: FaultServer) -> None:
    """The answer that is gone on with begins with no thought."""
    target = Target(
        "anthropic:claude-3-7-sonnet-latest", base_url=server.anthropic_url, api_key=KEY,
        params={"thinking": {"type": "enabled", "budget_tokens": 2000}},
    )  # fmt: skip
    from shared_core.providers import build

    request = ChatRequest((user("Tell"), assistant("Once upon")), continues=True, max_tokens=4000)
    call = build(target)._arguments(request)  # type: ignore[attr-defined]  # what it would send
    assert call["messages"][-1]["role"] == "assistant"
    assert "thinking" not in call


@pytest.mark.parametrize(
    "data",
    [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
        {"type": "thinking", "signature": SIGNATURE},
        {"signature": SIGNATURE},
    ],
)
def test_a_signed_thought_is_a_whole_block_however_it_was_kept(data: dict[str, Any]) -> None:
    """LangChain's class and ours keep the text in different places."""
    spec = "anthropic:claude-sonnet-4-5"
    turn = assistant([Reasoning("hm", data), Text("x")], origin=provider(spec).origin)
    assert body(spec, user("?"), turn, user("!"))[1]["content"][0] == {
        "type": "thinking", "thinking": "hm", "signature": SIGNATURE,
    }  # fmt: skip


# ── Gemini ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["thought_signature", "signature"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_geminis_signature_of_a_text_stands_on_the_text(place: str, key: str) -> None:
    """A whole answer has it in front, a streamed one behind: it came with the text's last piece.

    LangChain's own class gives it the shorter name.
    """
    spec = "google:gemini-3-pro"
    signed = Reasoning("", {key: SIGNATURE})
    parts: list[Part] = [signed, Text("x")] if place == "before" else [Text("x"), signed]
    call = provider(spec)._arguments(
        ChatRequest((user("?"), assistant(parts, origin=provider(spec).origin), user("!")))
    )
    [part] = call["contents"][1].parts
    assert part.text == "x"
    assert part.thought_signature == b"signed by its vendor"


def test_a_wrapped_gemini_is_told_results_as_text_and_errors_as_errors() -> None:
    """Left alone, the class would read "42" as a number, and an error as a success."""
    integration = pytest.importorskip(
        "langchain_google_genai", reason="LangChain's Google class accepts google-genai<3 only"
    )
    model = integration.ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key=KEY)
    history = [
        HumanMessage("?"),
        FORMS["openai"](Said("", None, (Call("a", args={"n": 1}), Call("b", args={"n": 2})))),
        ToolMessage("no such city", tool_call_id="b", status="error"),
        ToolMessage("42", tool_call_id="a"),
    ]
    call = LangChainProvider(model)._call(request_of(history))
    contents = model._prepare_request(call.messages, **call.kwargs)["contents"]
    assert [p.function_response.response for p in contents[-1].parts] == [{"output": "42"}, {"error": "no such city"}]
