"""`LangChainProvider`: a ready chat model as a target, called by its own hooks and left as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from langchain_fallback import FallbackChatModel, LangChainProvider
from shared_core.chat.events import Finished, TextDelta, collect
from shared_core.chat.request import ChatRequest, ToolSpec, assistant, system, tool, user
from shared_core.chat.request import ToolCall as Call
from shared_core.errors import AllTargetsFailed, ErrorKind, ProviderError
from shared_core.resilience.deadline import Guard
from shared_core.router import Router
from shared_core.routing.provider import Provider
from shared_core.testing import CANONICAL, Answer, FaultServer, ToolCall
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


def test_a_connection_pool_of_a_dead_loop_is_no_outage(server: FaultServer) -> None:
    """LangChain's OpenAI class keeps sockets across event loops; a second loop finds them dead, and nobody is down."""
    model = FallbackChatModel(models=[ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=KEY)], max_retries=0)
    assert asyncio.run(model.ainvoke("hi")).text == CANONICAL
    try:
        assert asyncio.run(model.ainvoke("hi")).text == CANONICAL
    except RuntimeError as error:
        assert "hint: stay in one event loop" in str(error)  # noqa: PT017 - this or an answer; an outage would be wrong
    except AllTargetsFailed as error:
        raise AssertionError("a closed loop was taken for an outage") from error


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
