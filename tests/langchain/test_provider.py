"""`LangChainProvider`: a ready chat model as a target, called by its own hooks and left as it was."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from langchain_fallback import FallbackChatModel, LangChainProvider
from shared_core.chat.events import Finished, TextDelta, collect
from shared_core.chat.request import ChatRequest, OutputSchema, ToolSpec, assistant, system, tool, user
from shared_core.chat.request import ToolCall as Call
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers.transport import http_module
from shared_core.resilience.deadline import Guard
from shared_core.router import Router
from shared_core.routing.provider import Provider
from shared_core.testing import CANONICAL, Answer, Fault, FaultServer, SeenRequest, ToolCall
from tests.langchain.cells import CLAUDE, GPT, KEY, wrapped

GEMINI = "gemini-2.5-flash"


def google(server: FaultServer) -> BaseChatModel:
    """LangChain's Google class; where a world leaves it out, a test that needs it is skipped."""
    integration = pytest.importorskip(
        "langchain_google_genai", reason="LangChain's Google class accepts google-genai<3 only"
    )
    model: BaseChatModel = integration.ChatGoogleGenerativeAI(model=GEMINI, base_url=server.google_url, api_key=KEY)
    return model


def model_of(server: FaultServer, vendor: str) -> BaseChatModel:
    return google(server) if vendor == "google" else wrapped(server, {"openai": GPT, "anthropic": CLAUDE}[vendor])


def guard() -> Guard:
    import time

    return Guard(time.monotonic, streaming=True)


async def events_of(provider: LangChainProvider, request: ChatRequest, *, sync: bool) -> list[Any]:
    if sync:
        return list(provider.stream(request, guard()))
    return [event async for event in provider.astream(request, guard())]


@pytest.mark.parametrize("vendor", ["openai", "anthropic", "google"])
def test_it_shows_the_vendor_and_the_model(server: FaultServer, vendor: str) -> None:
    provider = LangChainProvider(model_of(server, vendor))
    assert isinstance(provider, Provider)
    assert (provider.name, provider.model) == (vendor, {"openai": GPT, "anthropic": CLAUDE, "google": GEMINI}[vendor])
    assert not provider.local
    assert provider.capabilities.tools
    assert provider.capabilities.context_window


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("vendor", ["openai", "anthropic", "google"])
async def test_a_neutral_request_is_answered_too(server: FaultServer, vendor: str, streaming: bool, sync: bool) -> None:
    """The request may come from the bare core or from LlamaIndex: then nothing of LangChain's rides along."""
    call = ToolCall("get_time", {"zone": "CET"})
    server.default = Answer("Let me see.", tool_calls=[call])
    request = ChatRequest(
        (
            system("Be kind."),
            user("What time is it?"),
            assistant([Call("call_1", "get_time", '{"zone": "UTC"}')]),
            tool("call_1", "noon", name="get_time"),
            user("And here?"),
        ),
        tools=(ToolSpec("get_time", "the time", {"type": "object", "properties": {"zone": {"type": "string"}}}),),
        streaming=streaming,
        max_tokens=99,
    )
    events = await events_of(LangChainProvider(model_of(server, vendor)), request, sync=sync)
    answer = collect(events)
    assert answer.text == "Let me see."
    assert [(c.name, c.parsed()) for c in answer.tool_calls] == [("get_time", {"zone": "CET"})]
    assert answer.usage.total_tokens > 0
    assert answer.finish_reason == "tool_calls"
    assert isinstance(events[-1], Finished)
    seen = server.requests[-1]
    assert seen.streamed is streaming
    assert seen.tools == ("get_time",)
    assert "99" in str(seen.body)


@pytest.mark.parametrize("vendor", ["openai", "anthropic", "google"])
async def test_exactly_one_request_leaves_however_many_retries_the_model_has(server: FaultServer, vendor: str) -> None:
    server.default = 500
    model = model_of(server, vendor)
    for sync in (True, False):
        for streaming in (True, False):
            server.clear()
            with pytest.raises(ProviderError) as caught:
                await events_of(LangChainProvider(model), ChatRequest((user("hi"),), streaming=streaming), sync=sync)
            assert server.count() == 1
            assert caught.value.status == 500
            assert caught.value.__cause__ is not None
    assert getattr(model, "max_retries", None) != 0, "the caller's model keeps its own settings"


class Scripted(BaseChatModel):
    """A chat model of somebody's own, without a vendor."""

    error: Any = None
    chunks: tuple[str, ...] = ("a", "b")
    _calls: list[str] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self._calls.append("generate")
        if self.error is not None:
            raise self.error
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.chunks)))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._calls.append("stream")
        if self.error is not None:
            raise self.error
        for text in self.chunks:
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._calls.append("astream")
        if self.error is not None:
            raise self.error
        for text in self.chunks:
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))


@pytest.mark.parametrize("sync", [True, False])
async def test_a_model_whose_streaming_is_disabled_is_not_streamed(sync: bool) -> None:
    model = Scripted(disable_streaming=True)
    events = await events_of(LangChainProvider(model), ChatRequest((user("hi"),), streaming=True), sync=sync)
    assert collect(events).text == "ab"
    assert model._calls == ["generate"]


@pytest.mark.parametrize("sync", [True, False])
async def test_the_models_own_rate_limiter_is_asked_once_per_attempt(sync: bool) -> None:
    class Limiter(BaseRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

    limiter = Limiter()
    provider = LangChainProvider(Scripted(rate_limiter=limiter))
    await events_of(provider, ChatRequest((user("hi"),)), sync=sync)
    assert limiter.asked == 1


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("no"), ErrorKind.CONNECT),
        (TimeoutError("slow"), ErrorKind.TIMEOUT),
        (RuntimeError("our gateway answered nonsense"), ErrorKind.UNKNOWN),
        (ValueError("No generations found in stream."), ErrorKind.MALFORMED),
    ],
)
async def test_a_failure_in_words_of_its_own_is_a_failure_of_the_target(
    error: Exception, kind: ErrorKind, streaming: bool, sync: bool
) -> None:
    with pytest.raises(ProviderError) as caught:
        await events_of(
            LangChainProvider(Scripted(error=error)), ChatRequest((user("hi"),), streaming=streaming), sync=sync
        )
    assert caught.value.kind is kind
    assert str(error) in str(caught.value)
    assert type(caught.value.__cause__) is type(error)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(
    "bug", [TypeError("x"), AttributeError("x"), KeyError("x"), RuntimeError("Event loop is closed")]
)
async def test_a_bug_surfaces_as_the_bug_it_is(bug: Exception, sync: bool) -> None:
    model = FallbackChatModel(models=[Scripted(error=bug), FakeListChatModel(responses=["never"])])
    with pytest.raises(type(bug)) as caught:
        if sync:
            model.invoke("hi")
        else:
            await model.ainvoke("hi")
    assert caught.value is bug


async def _asked(model: BaseChatModel, streamed: bool) -> str:
    if streamed:
        return "".join([chunk.text async for chunk in model.astream("hi")])
    return (await model.ainvoke("hi")).text


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda server: ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=KEY),
        lambda server: ChatAnthropic(model=CLAUDE, base_url=server.anthropic_url, api_key=KEY),
    ],
    ids=["openai", "anthropic"],
)
def test_every_event_loop_has_connections_of_its_own(server: FaultServer, build: Any, streamed: bool) -> None:
    """LangChain shares sockets between event loops: a later loop finds dead ones in the pool, and a call fails."""
    asyncio.run(_asked(build(server), streamed))  # LangChain's own pool holds a socket of a closed loop now
    model = FallbackChatModel(models=[build(server), FakeListChatModel(responses=["never"])], max_retries=0)
    before = server.count()
    for _ in range(3):
        assert asyncio.run(_asked(model, streamed)) == CANONICAL
    assert server.count() == before + 3


def test_an_http_client_that_the_caller_brought_stays_in_use(server: FaultServer) -> None:
    seen: list[str] = []

    http = http_module(openai)

    async def note(request: Any) -> None:
        seen.append(request.url.path)

    async def ask() -> str:
        async with http.AsyncClient(event_hooks={"request": [note]}) as mine:
            model = ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=KEY, http_async_client=mine)
            return await _asked(FallbackChatModel(models=[model]), False)

    assert asyncio.run(ask()) == CANONICAL
    assert len(seen) == 1


def test_what_a_model_refuses_before_sending_makes_it_incapable_not_sick(server: FaultServer) -> None:
    audio = HumanMessage([{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}])
    claude = ChatAnthropic(model=CLAUDE, base_url=server.anthropic_url, api_key=KEY, profile={})
    model = FallbackChatModel(models=[claude, FakeListChatModel(responses=["I heard it."])])
    message = model.invoke([audio])
    assert message.text == "I heard it."
    first = message.response_metadata["fallback"]["attempts"][0]
    assert first["error_kind"] == "incapable"
    assert server.count() == 0
    assert str(model.router.health()[f"anthropic:{CLAUDE}"].circuit) != "open"


@pytest.mark.parametrize("vendor", ["openai", "google"])
def test_anthropics_cache_marks_and_thinking_do_not_reach_others(server: FaultServer, vendor: str) -> None:
    history: list[BaseMessage] = [
        HumanMessage([{"type": "text", "text": "long prefix", "cache_control": {"type": "ephemeral"}}]),
        AIMessage(
            [{"type": "thinking", "thinking": "secret thought", "signature": "SIG"}, {"type": "text", "text": "Yes."}],
            response_metadata={"model_provider": "anthropic", "model_name": CLAUDE},
        ),
        HumanMessage("Go on.", additional_kwargs={"cache_control": {"type": "ephemeral"}}),
    ]
    FallbackChatModel(models=[model_of(server, vendor)]).invoke(history)
    sent = str(server.requests[-1].body)
    assert "long prefix" in sent
    assert "Yes." in sent
    for foreign in ("cache_control", "secret thought", "SIG"):
        assert foreign not in sent
    FallbackChatModel(models=[model_of(server, "anthropic")]).invoke(history)
    sent = str(server.requests[-1].body)
    assert "cache_control" in sent
    assert "SIG" in sent, "what Anthropic wrote goes back to Anthropic"


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("fault", "kind"), [("content-policy", ErrorKind.POLICY), ("empty-choices", ErrorKind.MALFORMED)]
)
async def test_an_empty_message_of_geminis_class_is_told_as_what_it_was(
    server: FaultServer, fault: str, kind: ErrorKind, streaming: bool, sync: bool
) -> None:
    """Its class makes one of a blocked prompt, which nobody else is asked, and one of no candidate at all."""
    server.script(GEMINI, fault)
    with pytest.raises(ProviderError) as caught:
        await events_of(
            LangChainProvider(google(server)), ChatRequest((user("Hello"),), streaming=streaming), sync=sync
        )
    assert caught.value.kind is kind


def test_truncated_streams_are_not_taken_for_answers(server: FaultServer) -> None:
    server.default = "missing-terminal"
    for vendor in ("openai", "anthropic"):
        events = []
        with pytest.raises(ProviderError) as caught:
            events.extend(
                LangChainProvider(model_of(server, vendor)).stream(ChatRequest((user("hi"),), streaming=True), guard())
            )
        assert caught.value.kind is ErrorKind.STREAM_CUT


def test_closing_the_stream_closes_the_models_own() -> None:
    closed = []

    class Long(Scripted):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            try:
                while True:
                    yield ChatGenerationChunk(message=AIMessageChunk(content="x"))
            finally:
                closed.append(True)

    events = LangChainProvider(Long()).stream(ChatRequest((user("hi"),), streaming=True), guard())
    assert any(isinstance(next(events), TextDelta) for _ in range(3))
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert closed == [True]


async def test_the_three_vendors_take_over_from_each_other(server: FaultServer) -> None:
    models = {vendor: model_of(server, vendor) for vendor in ("openai", "anthropic", "google")}
    for first, primary in models.items():
        order = [primary, *(m for name, m in models.items() if name != first)]
        server.default = "ok"
        down = {"openai": GPT, "anthropic": CLAUDE, "google": GEMINI}[first]
        server.script(down, 503)
        model = FallbackChatModel(models=order, max_retries=0)
        assert model.invoke("hi").text == CANONICAL
        assert (await model.ainvoke("hi")).text == CANONICAL
        assert "".join(c.text for c in model.stream("hi")) == CANONICAL
        assert "".join([c.text async for c in model.astream("hi")]) == CANONICAL
        server.script(down, "ok")


def test_a_router_of_the_bare_core_may_use_a_langchain_model() -> None:
    with Router([LangChainProvider(FakeListChatModel(responses=["hello"]))]) as router:
        assert router.invoke("hi").text == "hello"


# ── each integration in its own dialect ──────────────────────────────────────────────────────────────────────────────

BYTES = b"%PDF-1.4 nothing much"
DATA = base64.b64encode(BYTES).decode()
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
FORMS = {
    "a picture, Anthropic's way": PICTURE,
    "a picture, OpenAI's way": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
    "a picture, Gemini's way": {"type": "media", "mime_type": "image/png", "data": DATA},
    "a picture, LangChain's way": {"type": "image", "base64": DATA, "mime_type": "image/png"},
    "a document, Anthropic's way": {**PICTURE, "type": "document"},
    "a document, OpenAI's way": {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"},
    },
    "a document, Gemini's way": {"type": "media", "mime_type": "application/pdf", "data": DATA},
}
KNOWN = {
    "openai": {"text", "image_url", "file"},
    "anthropic": {"text", "image", "document"},
    "google": {"text", "inlineData"},
}
"""The kinds of part that each vendor's wire has."""


def parts_of(seen: SeenRequest) -> list[Any]:
    turns = seen.body.get("messages") or seen.body["contents"]
    return [part for turn in turns for part in (turn.get("parts") or turn["content"]) if isinstance(part, dict)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vendor", ["openai", "anthropic", "google"])
def test_media_in_any_vendors_form_reach_every_vendor(server: FaultServer, vendor: str, form: str) -> None:
    block = copy.deepcopy(FORMS[form])
    if "document" in form and block["type"] == "document":
        block["source"]["media_type"] = "application/pdf"
    message = HumanMessage([{"type": "text", "text": "Look."}, block])
    before = copy.deepcopy(message)
    assert FallbackChatModel(models=[model_of(server, vendor)], max_retries=0).invoke([message]).text == CANONICAL
    assert message == before, "the caller's messages stay as they are"
    parts = parts_of(server.requests[-1])
    assert DATA in str(parts)
    assert {kind for part in parts for kind in (part.get("type"), *part) if kind in set().union(*KNOWN.values())} <= {
        *KNOWN[vendor]
    } | ({"source", "text"} if vendor == "anthropic" else set())


def test_a_tool_given_as_a_dict_reaches_the_next_target_whole(server: FaultServer) -> None:
    """ChatGoogleGenerativeAI takes the schema apart where it lies."""
    parameters = {"type": "object", "title": "Nothing", "properties": {}}
    tool_ = {"type": "function", "function": {"name": "ping", "description": "Ping.", "parameters": parameters}}
    before = copy.deepcopy(tool_)
    server.script(GEMINI, 503)
    model = FallbackChatModel(models=[google(server), wrapped(server, CLAUDE)], max_retries=0)
    model.bind_tools([tool_]).invoke("hi")
    assert tool_ == before
    assert server.requests[-1].body["tools"][0]["input_schema"]["type"] == "object"


def test_what_a_tool_returned_beside_text_follows_as_the_users(server: FaultServer) -> None:
    """Chat Completions takes nothing but text in a tool's result. Responses takes all of it, and gets it."""
    history = [
        HumanMessage("Show me."),
        AIMessage("", tool_calls=[{"name": "shot", "args": {}, "id": "call_1", "type": "tool_call"}]),
        ToolMessage([{"type": "text", "text": "Here."}, FORMS["a picture, LangChain's way"]], tool_call_id="call_1"),
    ]
    before = copy.deepcopy(history)
    FallbackChatModel(models=[wrapped(server, GPT)], max_retries=0).invoke(history)
    assert history == before
    *_, result, followed = server.requests[-1].body["messages"]
    assert result["role"] == "tool"
    assert DATA not in str(result)
    assert followed["role"] == "user"
    assert DATA in str(followed)


@pytest.mark.parametrize("vendor", ["openai", "google"])
def test_tool_turns_in_anthropics_form_are_told_in_the_others(server: FaultServer, vendor: str) -> None:
    history: list[BaseMessage] = [
        HumanMessage("What time is it?"),
        AIMessage([{"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {"zone": "UTC"}}]),
        HumanMessage(
            [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "noon"}]}]
        ),
    ]
    FallbackChatModel(models=[model_of(server, vendor)], max_retries=0).invoke(history)
    sent = server.requests[-1].body
    assert "noon" in str(sent)
    assert "tool_use" not in str(sent)
    assert "tool_result" not in str(sent)
    assert "clock" in str(sent)


# ── JSON from Claude ─────────────────────────────────────────────────────────────────────────────────────────────────

OTHER = ToolSpec("other", "another", {"type": "object"})
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def in_json(seen: SeenRequest) -> Answer:
    """Calls the tool it is forced to call; otherwise says it."""
    forced = seen.tools and (seen.body.get("tool_choice") or {}).get("type") in ("tool", "any")
    if forced:
        return Answer("", tool_calls=[ToolCall(seen.tools[-1], {"n": 7})], chunk="char")
    return Answer('{"n": 7}')


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "tools", [(), (ToolSpec("other", "another", {"type": "object"}),)], ids=["alone", "with tools"]
)
async def test_claude_answers_in_json_by_a_tool_and_nobody_sees_the_tool(
    server: FaultServer, tools: tuple[ToolSpec, ...], streaming: bool, sync: bool
) -> None:
    server.default = in_json
    request = ChatRequest((user("Count."),), tools=tools, output=OutputSchema(), streaming=streaming)
    answer = collect(await events_of(LangChainProvider(model_of(server, "anthropic")), request, sync=sync))
    assert json.loads(answer.text) == {"n": 7}
    assert answer.tool_calls == ()
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.native.text == answer.text
    assert answer.native.tool_calls == []
    assert server.requests[-1].body["tool_choice"]["type"] == ("any" if tools else "tool")


@pytest.mark.parametrize("streaming", [True, False])
async def test_other_tools_are_called_as_ever_beside_it(server: FaultServer, streaming: bool) -> None:
    server.default = Answer("", tool_calls=[ToolCall("other", {"a": 1})])
    request = ChatRequest((user("Count."),), tools=(OTHER,), output=OutputSchema(), streaming=streaming)
    answer = collect(await events_of(LangChainProvider(model_of(server, "anthropic")), request, sync=True))
    assert [(call.name, call.parsed()) for call in answer.tool_calls] == [("other", {"a": 1})]
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("model", "by_tool"), [("claude-sonnet-4-5", False), ("claude-3-5-haiku-latest", True)], ids=["new", "old"]
)
async def test_a_schema_is_held_to_by_the_api_or_else_by_a_tool(server: FaultServer, model: str, by_tool: bool) -> None:
    server.default = in_json
    provider = LangChainProvider(ChatAnthropic(model=model, base_url=server.anthropic_url, api_key=KEY))
    assert provider.capabilities.json_schema
    request = ChatRequest((user("Count."),), output=OutputSchema(SHAPE))
    assert json.loads(collect(await events_of(provider, request, sync=True)).text) == {"n": 7}
    body = server.requests[-1].body
    assert ("output_config" in body) is not by_tool
    assert (body.get("tools") or [{}])[-1].get("input_schema") == (SHAPE if by_tool else None)


async def test_a_claude_that_thinks_is_asked_in_words(server: FaultServer) -> None:
    """The API refuses to force a tool on a model that thinks."""
    server.default = in_json
    thinking = ChatAnthropic(
        model=CLAUDE, base_url=server.anthropic_url, api_key=KEY, max_tokens=4000,
        thinking={"type": "enabled", "budget_tokens": 2000},
    )  # fmt: skip
    request = ChatRequest((user("Count."),), output=OutputSchema())
    assert collect(await events_of(LangChainProvider(thinking), request, sync=True)).text == '{"n": 7}'
    body = server.requests[-1].body
    assert "tools" not in body
    assert "JSON" in str(body["system"])


# ── failures that ChatOpenAI reports in the middle of an answer ──────────────────────────────────────────────────────


def responses_api(body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> ChatOpenAI:
    """ChatOpenAI over the Responses API, which answers 200 with `body`, or streams it where it is a list of events."""
    http = http_module(openai)
    if isinstance(body, Mapping):
        content, kind = json.dumps(body), "application/json"
    else:
        content, kind = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in body), "text/event-stream"
    transport = http.MockTransport(lambda request: http.Response(200, text=content, headers={"content-type": kind}))
    return ChatOpenAI(
        model="gpt-5-mini", api_key=KEY, use_responses_api=True,
        http_client=http.Client(transport=transport), http_async_client=http.AsyncClient(transport=transport),
    )  # fmt: skip


RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-mini", "output": [], "tools": [],
    "parallel_tool_calls": True, "tool_choice": "auto", "status": "in_progress", "error": None,
}  # fmt: skip


def failed(code: str, message: str) -> dict[str, Any]:
    return {**RESPONSE, "status": "failed", "error": {"code": code, "message": message}}


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("server_error", "The model failed: try again.", ErrorKind.TRANSIENT),
        ("rate_limit_exceeded", "Slow down.", ErrorKind.THROTTLED),
        ("insufficient_quota", "You have no money.", ErrorKind.BILLING),
    ],
)
async def test_a_failed_response_means_what_its_code_means(
    code: str, message: str, kind: ErrorKind, sync: bool
) -> None:
    """ChatOpenAI raises a bare `ValueError` for it, as for what it cannot send; only the latter is incapacity."""
    created = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
    bodies: list[Any] = [
        failed(code, message),
        [created, {"type": "response.failed", "sequence_number": 1, "response": failed(code, message)}],
        [created, {"type": "error", "sequence_number": 1, "code": code, "message": message, "param": None}],
    ]
    for body in bodies:
        request = ChatRequest((user("hi"),), streaming=isinstance(body, list))
        with pytest.raises(ProviderError) as caught:
            await events_of(LangChainProvider(responses_api(body)), request, sync=sync)
        assert caught.value.kind is kind
        assert caught.value.code == code
        assert message in str(caught.value)
        assert type(caught.value.__cause__) is ValueError


@pytest.mark.parametrize("sync", [True, False])
async def test_a_stream_over_the_responses_api_is_read(sync: bool) -> None:
    said = {"type": "output_text", "text": "Hello.", "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [said]}
    tokens = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 1}}
    done = {**RESPONSE, "status": "completed", "output": [item], "usage": tokens | details}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.output_text.delta", **at, "delta": "Hel", "logprobs": []},
        {"type": "response.output_text.delta", **at, "delta": "lo.", "logprobs": []},
        {"type": "response.completed", "response": done},
    ]
    model = responses_api([{**event, "sequence_number": number} for number, event in enumerate(events)])
    request = ChatRequest((user("hi"),), streaming=True)
    answer = collect(await events_of(LangChainProvider(model), request, sync=sync))
    assert answer.text == "Hello."
    assert answer.usage is not None
    assert (answer.usage.total_tokens, answer.usage.reasoning_tokens) == (5, 1)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("sync", [True, False])
async def test_an_error_in_place_of_choices_is_no_incapacity(server: FaultServer, sync: bool) -> None:
    """Some compatible servers answer 200 with an error inside."""
    error = {"code": "server_error", "message": "Out of GPUs."}
    server.default = Fault("status", status=200, body={"id": "x", "object": "chat.completion", "error": error})
    with pytest.raises(ProviderError) as caught:
        await events_of(LangChainProvider(wrapped(server, GPT)), ChatRequest((user("hi"),)), sync=sync)
    assert caught.value.kind is ErrorKind.TRANSIENT
    assert "Out of GPUs." in str(caught.value)


# ── how to sample and where to stop ──────────────────────────────────────────────────────────────────────────────────


def ready(server: FaultServer, model: str, **options: Any) -> BaseChatModel:
    if model.startswith("claude"):
        return ChatAnthropic(model=model, base_url=server.anthropic_url, api_key=KEY, **options)
    return ChatOpenAI(model=model, base_url=server.openai_url, api_key=KEY, **options)


@pytest.mark.parametrize(
    ("model", "options", "sent"),
    [
        ("gpt-4.1", {}, {"temperature": 1.5, "top_p": 0.5}),
        ("gpt-5-mini", {}, {}),
        ("gpt-5.1", {}, {"temperature": 1.5, "top_p": 0.5}),
        ("gpt-5.1", {"reasoning_effort": "high"}, {}),
        ("claude-sonnet-4-5", {}, {"temperature": 1.0}),
        ("claude-opus-4-7", {}, {}),
        ("claude-sonnet-5-5", {}, {}),
        ("some-model-of-mine", {}, {"temperature": 1.5, "top_p": 0.5}),
    ],
)
def test_a_temperature_for_all_is_not_told_to_who_would_refuse_it(
    server: FaultServer, model: str, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    """It is an option of the whole model, so that every target can be asked."""
    chat = FallbackChatModel(models=[ready(server, model, **options)], temperature=1.5, top_p=0.5, max_retries=0)
    assert chat.invoke("hi").text == CANONICAL
    body = server.requests[-1].body
    assert {name: body[name] for name in ("temperature", "top_p") if name in body} == sent


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_stop_sequence_holds_where_the_model_takes_none(
    server: FaultServer, streaming: bool, sync: bool
) -> None:
    """OpenAI's thinking models refuse them, and the Responses API has none: the answer is cut on this side."""
    before, _, _ = CANONICAL.partition("try the")
    server.default = Answer(CANONICAL, chunk="char")
    request = ChatRequest((user("hi"),), stop=("never said", "try the"), streaming=streaming, seed=3)
    answer = collect(await events_of(LangChainProvider(ready(server, "gpt-5-mini")), request, sync=sync))
    assert answer.text == before
    assert answer.native.text == before
    assert answer.finish_reason == "stop"
    assert answer.usage is not None, "what was said after it is paid for all the same"
    assert "stop" not in server.requests[-1].body
    told = collect(await events_of(LangChainProvider(ready(server, "gpt-4.1")), request, sync=sync))
    assert told.text == before
    assert server.requests[-1].body["stop"] == ["never said", "try the"]


async def test_a_stop_sequence_that_never_comes_takes_nothing_away(server: FaultServer) -> None:
    request = ChatRequest((user("hi"),), stop=(CANONICAL[-3:] + "!",), streaming=True)
    events = await events_of(LangChainProvider(ready(server, "gpt-5-mini")), request, sync=True)
    assert collect(events).text == CANONICAL


async def test_the_responses_api_is_told_neither_where_to_stop_nor_a_seed() -> None:
    said = {"type": "output_text", "text": "One. Two.", "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [said]}
    model = responses_api({**RESPONSE, "status": "completed", "output": [item]})
    request = ChatRequest((user("hi"),), stop=(" Two",), seed=3)
    assert collect(await events_of(LangChainProvider(model), request, sync=True)).text == "One."
