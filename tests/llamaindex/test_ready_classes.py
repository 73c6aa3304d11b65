"""LlamaIndex's own classes for OpenAI, Claude and Gemini as targets: what they send, what is read, and what they leave.

Each class is one that a user would pass in. Where a world leaves a class out, its tests are skipped, by name.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider
from llamaindex_fallback.testing import add, multiply
from shared_core import AllTargetsFailed, Target
from shared_core.testing import Answer, Fault, FaultServer, ToolCall, Usage
from tests.llamaindex.world import (
    CLAUDE,
    GEMINI,
    KEY,
    NO_RETRY,
    PRIMARY,
    call,
    fallback_of,
    text_of,
    wrapped,
    wrapped_claude,
    wrapped_gemini,
)
from tests.timing import timed

MODELS = {"openai": PRIMARY, "anthropic": CLAUDE, "google": GEMINI}
VENDORS = list(MODELS)
CHAT = ("chat", "achat", "stream_chat", "astream_chat")
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
PDF = b"%PDF-1.4 nothing more"
TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(multiply)]


def theirs(server: FaultServer, vendor: str, model: str | None = None, **options: Any) -> Any:
    """The vendor's class, as a user would make it."""
    make: Callable[..., Any] = {"openai": wrapped, "anthropic": wrapped_claude, "google": wrapped_gemini}[vendor]
    return make(server, model or MODELS[vendor], **options)


@pytest.fixture
def asked(server):
    """An LLM over one class, and all that it sent."""
    made: list[FallbackLLM] = []

    def make(vendor: str, model: str | None = None, *more: Any, **options: Any) -> FallbackLLM:
        made.append(FallbackLLM([theirs(server, vendor, model, **options), *more], retry=NO_RETRY))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def sent(server: FaultServer) -> Any:
    return server.requests[-1].body


def of_its_config(body: Mapping[str, Any], name: str) -> Any:
    return (body.get("generationConfig") or {}).get(name)


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TOLD: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]] = {
    "openai": lambda b: (b.get("temperature"), b.get("max_tokens"), b.get("top_p"), b.get("stop"), b.get("seed")),
    "anthropic": lambda b: (b.get("temperature"), b.get("max_tokens"), b.get("top_p"), b.get("stop_sequences"), None),
    "google": lambda b: (
        of_its_config(b, "temperature"), of_its_config(b, "maxOutputTokens"), of_its_config(b, "topP"),
        of_its_config(b, "stopSequences"), of_its_config(b, "seed"),
    ),
}  # fmt: skip
"""How temperature, longest answer, top_p, stop sequences and seed stand on each wire."""


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize(
    ("vendor", "model", "told"),
    [
        ("openai", "gpt-4.1-mini", (0.4, 50, None, ["END"], 7)),
        ("anthropic", CLAUDE, (0.4, 50, None, ["END"], None)),
        ("google", GEMINI, (0.4, 50, None, ["END"], 7)),
    ],
)
async def test_options_stand_where_the_vendor_reads_them(server, asked, face, vendor, model, told):
    """LlamaIndex's Claude would hand `stop` to an SDK that has never heard of it; its Gemini drops them all."""
    llm = asked(vendor, model)
    await call(llm, face, temperature=0.4, max_tokens=50, stop=["END"], seed=7)
    assert TOLD[vendor](sent(server)) == told


@pytest.mark.parametrize("model", ["claude-mythos-1", "claude-opus-4-9", "claude-opus-5-5"])
def test_a_claude_that_takes_no_temperature_is_told_none(server, asked, model):
    """Also if it is newer than the class, which knows such models by name and sends its own setting to all others."""
    server.script(model, "ok")
    llm = asked("anthropic", model, temperature=0.3)
    llm.complete("hi", temperature=0.4, top_p=0.5)
    assert not {"temperature", "top_p"} & sent(server).keys()


def test_claude_is_told_one_of_temperature_and_top_p(server, asked):
    """It takes no two, and the class would send its own temperature beside."""
    asked("anthropic").complete("hi", top_p=0.5)
    assert TOLD["anthropic"](sent(server))[:3] == (None, 1024, 0.5)
    asked("anthropic").complete("hi", temperature=1.7)
    assert sent(server)["temperature"] == 1.0


@pytest.mark.parametrize("face", CHAT)
async def test_an_openai_model_that_thinks_is_told_neither_and_stopped_here(server, asked, face):
    """gpt-5 refuses temperature, top_p and stop sequences: where an answer is to end is seen to on this side."""
    server.script(PRIMARY, Answer("One two END three four.", usage=Usage(completion_tokens=9)))
    responses = await call(asked("openai"), face, temperature=0.2, top_p=0.5, stop="END")
    assert text_of(responses[-1]) == "One two "
    assert responses[-1].raw["usage"]["completion_tokens"] == 9
    assert not {"stop", "top_p"} & sent(server).keys()
    assert sent(server).get("temperature") in (None, 1.0)


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_said_to_one_vendor_arrives(server, asked, vendor):
    """`extra`, also what the class's SDK has no keyword for."""
    extra = {"openai": {"service_tier": "flex"}, "anthropic": {"top_k": 5, "beta_thing": 1}, "google": {"top_k": 5}}
    asked(vendor).complete("hi", extra=extra)
    body = sent(server)
    match vendor:
        case "openai":
            assert body["service_tier"] == "flex"
        case "anthropic":
            assert (body["top_k"], body["beta_thing"]) == (5, 1)
        case _:
            assert of_its_config(body, "topK") == 5


@pytest.mark.parametrize("model", ["claude-mythos-1", "claude-new-9"])
def test_a_claude_that_the_class_does_not_know_can_do_what_claudes_can(server, asked, model):
    """Its `metadata` raises for names that are not on its list."""
    server.script(model, Answer("", tool_calls=[ToolCall("add", {"x": 1, "y": 2})]))
    llm = asked("anthropic", model)
    with pytest.raises(ValueError, match="Unknown model"):
        _ = llm.router.providers[0].llm.metadata
    assert llm.metadata.is_function_calling_model
    response = llm.chat_with_tools(TOOLS, user_msg="Add 1 and 2.", tool_required=True)
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"x": 1, "y": 2}


# ── retries, connections, loops ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_who_retries_is_the_routers_to_say(server, asked, vendor, face):
    """One request, whatever the class is set to; and the user's own is not changed."""
    given = theirs(server, vendor, max_retries=3)
    server.script(MODELS[vendor], 503)
    llm = FallbackLLM([given], retry=NO_RETRY)
    with pytest.raises(AllTargetsFailed):
        await call(llm, face)
    assert server.count(MODELS[vendor]) == 1
    assert given.max_retries == 3
    await llm.aclose()


@pytest.mark.parametrize("face", ["achat", "astream_chat"])
async def test_a_dead_gemini_is_given_up_at_once(server, face, monkeypatch):
    """Google's SDK would try a refused connection once more, and sleep up to ten seconds before."""
    llm = FallbackLLM([theirs_at(server.refused_url("google")), native_openai(server)], retry=NO_RETRY)
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float, *rest: Any) -> Any:
        slept.append(delay)
        return await sleep(0)

    monkeypatch.setattr("google.genai._api_client.asyncio.sleep", noted)
    responses = await call(llm, face)
    assert not [delay for delay in slept if delay >= 1]
    assert fallback_of(responses[-1])["attempts"][0]["error_kind"] == "connect"
    await llm.aclose()


def theirs_at(url: str) -> Any:
    integration = pytest.importorskip("llama_index.llms.google_genai")
    return integration.GoogleGenAI(
        model=GEMINI, api_key="k", http_options={"base_url": url}, max_tokens=100, context_window=10_000
    )


def native_openai(server: FaultServer) -> Any:
    return Target(f"openai:{PRIMARY}", name="spare", base_url=server.openai_url, api_key="k")


@pytest.mark.parametrize("face", ["stream_chat", "astream_chat"])
@pytest.mark.parametrize("vendor", VENDORS)
async def test_walking_away_hangs_up(server, asked, vendor, face):
    """Nobody pays for what nobody reads."""
    server.script(MODELS[vendor], Answer("word " * 5_000, every_s=0.002))
    llm = asked(vendor)
    answer = getattr(llm, face)([ChatMessage(content="hi")])
    if face == "stream_chat":
        next(answer)
        answer.close()
    else:
        answer = await answer
        await anext(answer)
        await answer.aclose()
    await asyncio.to_thread(server.wait_idle)
    assert server.requests[-1].outcome == "client-closed"


@pytest.mark.parametrize("vendor", VENDORS)
def test_closing_leaves_the_users_own_llm_as_it_was(server, vendor):
    """Its connections are shared for sync calls; they stay open."""
    given = theirs(server, vendor, max_retries=3)
    llm = FallbackLLM([given], retry=NO_RETRY)
    llm.complete("hi")
    asyncio.run(call(llm, "achat"))
    llm.close()
    del llm
    gc.collect()
    assert given.complete("hi").text


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_used_llm_is_served_in_any_loop(server, vendor):
    """The user asked it in a loop that has ended before it was passed in, and keeps on asking it beside."""
    given = theirs(server, vendor)
    asyncio.run(given.achat([ChatMessage(content="hi")]))
    llm = FallbackLLM([given, native_openai(server)], retry=NO_RETRY)
    for face in ("achat", "astream_chat", "achat"):
        responses = asyncio.run(call(llm, face))
        assert fallback_of(responses[-1])["target"] == f"{vendor}:{MODELS[vendor]}"
        assert len(fallback_of(responses[-1])["attempts"]) == 1
    llm.close()


# ── tools and schemas ────────────────────────────────────────────────────────────────────────────────────────────────

FORCED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "openai": lambda b: b.get("tool_choice"),
    "anthropic": lambda b: {k: v for k, v in b["tool_choice"].items() if k != "disable_parallel_tool_use"},
    "google": lambda b: b["toolConfig"]["functionCallingConfig"],
}


@pytest.mark.parametrize(
    ("vendor", "choice", "told"),
    [
        ("openai", "add", {"type": "function", "function": {"name": "add"}}),
        ("openai", "any", "required"),
        ("anthropic", "add", {"type": "tool", "name": "add"}),
        ("anthropic", "any", {"type": "any"}),
        ("anthropic", "none", {"type": "none"}),
        ("google", "add", {"mode": "ANY", "allowedFunctionNames": ["add"]}),
        ("google", "any", {"mode": "ANY"}),
        ("google", "none", {"mode": "NONE"}),
    ],
)
def test_a_forced_choice_is_told_in_the_vendors_words(server, asked, vendor, choice, told):
    """LlamaIndex's Claude knows 'any' alone."""
    answer = Answer("fine") if choice == "none" else Answer("", tool_calls=[ToolCall("add", {"x": 1, "y": 2})])
    server.script(MODELS[vendor], answer)
    asked(vendor).chat_with_tools(TOOLS, user_msg="Add 1 and 2.", tool_choice=choice)
    assert FORCED[vendor](sent(server)) == told


def test_gemini_is_told_all_of_a_tool(server, asked):
    """The class would leave out the first line of a description, and what Gemini's older form of a schema has not."""
    parameters = {"type": "object", "properties": {"x": {"type": "integer", "multipleOf": 2}}, "required": ["x"]}
    spec = {"type": "function", "function": {"name": "f", "description": "First.\nSecond.", "parameters": parameters}}
    asked("google").chat([ChatMessage(content="hi")], tools=[spec])
    (told,) = sent(server)["tools"][0]["functionDeclarations"]
    assert told["description"] == "First.\nSecond."
    assert told["parameters_json_schema"] == parameters


class Shape(BaseModel):
    """What is wanted."""

    name: str


SHAPED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "openai": lambda b: b["response_format"]["json_schema"]["schema"],
    "anthropic": lambda b: b["output_config"]["format"]["schema"],
    "google": lambda b: b["generationConfig"]["responseJsonSchema"],
}


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_schema_is_asked_for_by_the_vendors_own_means(server, asked, vendor, face):
    """No tool is forced where the model has a JSON schema of its own."""
    server.script(MODELS[vendor], Answer('{"name": "Ann"}'))
    responses = await call(asked(vendor), face, response_format=Shape)
    assert text_of(responses[-1]) == '{"name": "Ann"}'
    assert SHAPED[vendor](sent(server))["properties"]["name"]["type"] == "string"
    assert "tools" not in sent(server)


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize(("vendor", "model"), [("anthropic", "claude-3-haiku-20240307"), ("anthropic", CLAUDE)])
async def test_an_older_claude_answers_by_a_tool(server, asked, vendor, model, face):
    """And any Claude where the wanted object has no schema at all."""
    server.script(model, lambda seen: Answer("", tool_calls=[ToolCall(seen.body["tools"][0]["name"], {"name": "Ann"})]))
    wanted = Shape if model != CLAUDE else {"type": "json_object"}
    responses = await call(asked(vendor, model), face, response_format=wanted)
    assert text_of(responses[-1]) == '{"name": "Ann"}'
    assert sent(server)["tool_choice"]["type"] == "tool"


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def conversation() -> list[ChatMessage]:
    """All that a history may hold: pictures, documents, a thought, a call and its result, all of another vendor's."""
    thought = ThinkingBlock(content="Foreign thought.", additional_information={"signature": "foreign"})
    asked_for = ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs={"x": 1, "y": 2})
    return [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(
            role="user",
            blocks=[
                TextBlock(text="Look:"),
                ImageBlock(image=PNG, image_mimetype="image/png"),
                DocumentBlock(data=PDF, title="a.pdf", document_mimetype="application/pdf"),
            ],
        ),
        ChatMessage(role="assistant", blocks=[thought, TextBlock(text="I add."), asked_for]),
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "call_1"}),
        ChatMessage(role="user", content="And now?"),
        ChatMessage(role="user", content="Well?", additional_kwargs={"cache_control": {"type": "ephemeral"}}),
    ]


def plain_talk() -> list[ChatMessage]:
    """Nothing that is any vendor's own, so it is handed over as it is; with neighbours that some class joins."""
    return [conversation()[0], *conversation()[1:2], *conversation()[4:]]


@pytest.mark.parametrize("told", [plain_talk, conversation], ids=lambda made: made.__name__)
@pytest.mark.parametrize("tools", [False, True], ids=["without tools", "with tools"])
@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_no_message_of_the_callers_is_ever_changed(server, asked, vendor, face, tools, told):
    """LlamaIndex's classes merge neighbours, add cache marks and join text in the messages that they are given."""
    server.script(MODELS[vendor], Answer("Fine.", reasoning="" if vendor == "openai" else "Hm."))
    messages = told()
    before, blocks = copy.deepcopy(messages), [id(block) for message in messages for block in message.blocks]
    llm = asked(vendor, **({"cache_idx": -1} if vendor == "anthropic" else {}))
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "auto"} if tools else {}
    for _ in range(2):
        answer = getattr(llm, face)(messages, **options)
        answer = await answer if face.startswith("a") else answer
        answer = [one async for one in answer] if face == "astream_chat" else answer
        last = list(answer)[-1] if face == "stream_chat" else answer[-1] if face == "astream_chat" else answer
        assert messages == before
        assert [id(block) for message in messages for block in message.blocks] == blocks
        messages.append(last.message)  # what it said goes back, and is no more changed than the rest
        messages.append(ChatMessage(role="user", content="Go on."))
        before = copy.deepcopy(messages)
        blocks = [id(block) for message in messages for block in message.blocks]


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_another_vendor_began_goes_on(server, asked, vendor):
    """The call, its result and the media are there, the foreign thought is not; the journal says what was changed."""
    llm = asked(vendor)
    response = llm.chat(conversation())
    told = str(sent(server))
    assert "Foreign thought" not in told
    assert "foreign" not in told
    assert base64.b64encode(PNG).decode() in told.replace("-", "+").replace("_", "/")
    assert base64.b64encode(PDF).decode() in told.replace("-", "+").replace("_", "/")
    assert "add" in told
    assert "'3'" in told
    (attempt,) = fallback_of(response)["attempts"]
    assert any("reasoning" in note or "thought" in note for note in attempt["history"]), attempt


@pytest.mark.parametrize("face", CHAT)
async def test_a_claude_that_thinks_gets_its_own_thoughts_back(server, asked, face):
    """With their signature, and before the call that they led to."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    first = Answer("", reasoning="I must add.", tool_calls=[ToolCall("add", {"x": 1, "y": 2})])
    server.script(CLAUDE, [first, Answer("3.")])
    llm = asked("anthropic", thinking_dict=thinking, max_tokens=4096)
    answer = (await call(llm, face, tools=TOOLS))[-1]
    (thought, asked_for) = answer.message.blocks
    assert (thought.content, asked_for.tool_name) == ("I must add.", "add")
    talk = [
        ChatMessage(content="Add 1 and 2."),
        answer.message,
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": asked_for.tool_call_id}),
    ]
    llm.chat(talk, tools=TOOLS)
    back = sent(server)["messages"][1]["content"]
    assert [block["type"] for block in back] == ["thinking", "tool_use"]
    assert back[0]["signature"] == thought.additional_information["signature"]
    assert sent(server)["thinking"] == thinking


def test_a_claude_that_thinks_goes_without_where_another_began_the_turn(server, asked):
    """Anthropic refuses a turn that begins without a thought, of a model that is told to think."""
    llm = asked("anthropic", thinking_dict={"type": "enabled", "budget_tokens": 1024}, max_tokens=4096)
    llm.chat(conversation()[:4], tools=TOOLS)
    assert "thinking" not in sent(server)
    llm.chat(conversation(), tools=TOOLS)
    assert sent(server)["thinking"]["type"] == "enabled"


def test_tools_of_the_history_are_declared_to_claude_even_when_none_is_offered(server, asked):
    """It refuses calls of tools that nobody declares."""
    asked("anthropic").chat(conversation())
    assert [tool["name"] for tool in sent(server)["tools"]] == ["add"]
    assert sent(server)["tool_choice"] == {"type": "none"}


GEMINI_3 = "gemini-3-flash"


def parts_of(body: Mapping[str, Any]) -> list[Any]:
    return [part for content in body["contents"] for part in content["parts"]]


@pytest.mark.parametrize("face", CHAT)
async def test_gemini_gets_the_signatures_of_its_calls_back(server, asked, face, monkeypatch):
    """It refuses a tool loop without; and as we hand them out they are JSON, so that chat stores keep them too."""
    llm = asked("google", GEMINI_3)
    signed = base64.b64encode(b"\xff signed").decode()
    thought = {"text": "I must add.", "thought": True, "thoughtSignature": base64.b64encode(b"\xfe hm").decode()}
    adding = {"functionCall": {"name": "add", "args": {"x": 1, "y": 2}}, "thoughtSignature": signed}
    again = {"functionCall": {"name": "add", "args": {"x": 3, "y": 4}}}
    with monkeypatch.context() as patch:
        says_instead(patch, [thought], [adding, again], finish="STOP")
        answer = (await call(llm, face, tools=TOOLS))[-1]
    stored = ChatMessage.model_validate_json(answer.message.model_dump_json())
    asked_for = [block for block in stored.blocks if isinstance(block, ToolCallBlock)]
    assert len({block.tool_call_id for block in asked_for}) == 2
    results = [
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": block.tool_call_id})
        for block in asked_for
    ]
    server.script(GEMINI_3, "ok")
    llm.chat([ChatMessage(content="Add twice."), stored, *results], tools=TOOLS)
    back = [
        (p.get("thought"), p.get("thoughtSignature")) for p in parts_of(sent(server)) if "functionResponse" not in p
    ]
    assert back == [
        (None, None),
        (True, base64.urlsafe_b64encode(b"\xfe hm").decode()),
        (None, base64.urlsafe_b64encode(b"\xff signed").decode()),
        (None, None),
    ]


def says_instead(patch: pytest.MonkeyPatch, *chunks: Any, finish: str, usage: Any = None) -> None:
    """Google's SDK hands over these parts, chunk by chunk or at once, and asks nobody."""
    types = pytest.importorskip("google.genai.types")

    def response(parts: Any, *, last: bool) -> Any:
        content = {"role": "model", "parts": parts} if parts else {"role": "model"}
        candidate = {"content": content, **({"finishReason": finish} if last else {})}
        told = {"candidates": [candidate], **({"usageMetadata": usage} if last and usage else {})}
        return types.GenerateContentResponse.model_validate(told)

    streamed = [response(parts, last=parts is chunks[-1]) for parts in chunks]
    whole = response([part for parts in chunks for part in parts], last=True)

    async def answered(self: Any, **_: Any) -> Any:
        return whole

    async def answering(self: Any, **_: Any) -> Any:
        async def each() -> Any:
            for chunk in streamed:
                yield chunk

        return each()

    patch.setattr("google.genai.models.Models.generate_content", lambda self, **_: whole)
    patch.setattr("google.genai.models.Models.generate_content_stream", lambda self, **_: iter(streamed))
    patch.setattr("google.genai.models.AsyncModels.generate_content", answered)
    patch.setattr("google.genai.models.AsyncModels.generate_content_stream", answering)


def test_a_call_of_another_vendors_gets_googles_stand_in(server, asked):
    """Gemini 3 takes a running tool loop that another model began only so."""
    server.script(GEMINI_3, "ok")
    asked("google", GEMINI_3).chat(conversation()[:4], tools=TOOLS)
    (part,) = [part for part in parts_of(sent(server)) if "functionCall" in part]
    assert base64.b64decode(part["thoughtSignature"]) == b"skip_thought_signature_validator"


# ── answers and their ends ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_usage_is_the_servers_own(server, asked, vendor, face):
    """To the token, whole and streamed."""
    server.script(MODELS[vendor], Answer("Seven.", usage=Usage(prompt_tokens=123, completion_tokens=45)))
    responses = await call(asked(vendor), face)
    usage = responses[-1].raw["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (123, 45)


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_an_answer_cut_by_its_length_is_an_answer(server, asked, vendor, face):
    """LlamaIndex's Gemini class raises in its place, and throws away what was paid for."""
    server.script(MODELS[vendor], Answer("One two three four five six."))
    responses = await call(asked(vendor), face, max_tokens=3)
    assert text_of(responses[-1]).split() == ["One", "two", "three"]
    assert responses[-1].raw["finish_reason"] == "length"
    assert responses[-1].raw["usage"]["completion_tokens"]


KINDS = {
    401: "auth", 404: "not_found", 429: "throttled", 500: "transient", 503: "overloaded", "billing": "billing",
    "context-overflow": "context_overflow", "content-policy": "policy", "too-large": "too_large",
    "region": "forbidden", "empty-choices": "malformed", "overloaded": "overloaded",
}  # fmt: skip


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_errors_are_what_they_are_with_native_targets(server, vendor, face):
    """The same kind of failure, so the same thing follows, whichever way the vendor is asked."""
    ready = FallbackLLM([theirs(server, vendor)], retry=NO_RETRY, breaker={"consecutive_failures": 1000})
    spec = {"provider": vendor, "model": MODELS[vendor], "api_key": "k", "base_url": getattr(server, f"{vendor}_url")}
    native = FallbackLLM([spec], retry=NO_RETRY, breaker={"consecutive_failures": 1000})
    differ = {}
    for fault in KINDS:
        step = Fault(fault) if isinstance(fault, str) else fault
        found = []
        for llm in (native, ready):
            server.script(MODELS[vendor], step)
            llm.router.reset()
            with pytest.raises(AllTargetsFailed) as caught:
                await call(llm, face)
            found.append(str(caught.value.exceptions[-1].kind))
        if found[0] != found[1]:
            differ[fault] = found
    assert not differ
    await ready.aclose()
    await native.aclose()


@pytest.mark.parametrize("face", ["stream_chat", "astream_chat"])
async def test_a_gemini_stream_that_ends_in_a_chunk_without_text_is_whole(server, face, monkeypatch):
    """LlamaIndex's class skips such a chunk, and it may hold the finish reason and the usage."""
    usage = {"promptTokenCount": 12, "candidatesTokenCount": 4, "totalTokenCount": 16}
    given = theirs(server, "google")
    says_instead(monkeypatch, [{"text": "It is seven."}], [], finish="STOP", usage=usage)
    llm = FallbackLLM([given], retry=NO_RETRY)
    responses = await call(llm, face)
    assert text_of(responses[-1]) == "It is seven."
    assert len(fallback_of(responses[-1])["attempts"]) == 1
    assert responses[-1].raw["usage"]["total_tokens"] == 16
    await llm.aclose()


# ── media by address ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("face", CHAT)
@pytest.mark.parametrize("vendor", VENDORS)
@timed
async def test_what_a_class_fetches_itself_does_not_block_the_loop(server, asked, vendor, face, monkeypatch):
    """Claude's and Gemini's classes fetch a picture where they stand; OpenAI fetches it itself."""
    fetched: list[str] = []

    def slowly(self: ImageBlock, as_base64: bool = False) -> Any:
        import io

        fetched.append(str(self.url))
        if self.url is not None:
            time.sleep(0.05)
            return io.BytesIO(PNG)
        data = self.image or b""
        return io.BytesIO(data if as_base64 else base64.b64decode(data))

    monkeypatch.setattr(ImageBlock, "resolve_image", slowly)
    block = ImageBlock(url="https://pictures.example/a.png", image_mimetype="image/png")
    message = ChatMessage(blocks=[TextBlock(text="What is it?"), block])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    llm = asked(vendor)
    answer = getattr(llm, face)([message])
    answer = await answer if face.startswith("a") else answer
    if "stream" in face:
        answer = [one async for one in answer] if face.startswith("a") else list(answer)
    ticker.cancel()
    if vendor == "openai":
        assert "https://pictures.example/a.png" in str(sent(server))
        return
    assert base64.b64encode(PNG).decode() in str(sent(server)).replace("-", "+").replace("_", "/")
    assert str(message.blocks[1].url) == "https://pictures.example/a.png"
    if face.startswith("a"):
        assert ticks >= 2


def test_a_picture_that_cannot_be_had_is_no_outage(server, asked, monkeypatch):
    """The next target is asked, which may fetch it itself."""

    def gone(self: ImageBlock, as_base64: bool = False) -> Any:
        raise OSError("no such host")

    monkeypatch.setattr(ImageBlock, "resolve_image", gone)
    block = ImageBlock(url="https://pictures.example/a.png", image_mimetype="image/png")
    llm = asked("anthropic", None, native_openai(server))
    response = llm.chat([ChatMessage(blocks=[TextBlock(text="What is it?"), block])])
    first, second = fallback_of(response)["attempts"]
    assert (first["error_kind"], second["outcome"]) == ("incapable", "answered")


@pytest.mark.parametrize("vendor", VENDORS)
def test_it_is_revived_with_its_settings_and_its_address(server, asked, vendor, monkeypatch):
    """Building LlamaIndex's Gemini class anew would ask Google's own address for what it was told once."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "k")
    server.script(MODELS[vendor], "ok")
    data = pickle.dumps(asked(vendor, max_tokens=77))
    assert KEY.encode() not in data
    llm = pickle.loads(data)
    assert llm.complete("hi").text
    assert 77 in (*TOLD[vendor](sent(server)), sent(server).get("max_completion_tokens"))
    llm.close()


def test_the_provider_says_whom_it_wraps(server):
    """Vendor and model as prices and constraints know them."""
    for vendor in VENDORS:
        provider = LlamaIndexProvider(theirs(server, vendor))
        assert (provider.name, provider.model) == (vendor, MODELS[vendor])
