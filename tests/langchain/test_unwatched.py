"""`invoke` when nobody watches goes a shorter way: the same answer, and never when somebody does."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda

from langchain_fallback import FallbackChatModel
from shared_core import AllTargetsFailed
from shared_core.testing import Answer, FaultServer
from tests.langchain.cells import GPT, native


class Long(Exception):
    """LangChain's own way was taken."""


@pytest.fixture(params=["invoke", "ainvoke"])
def ask(request, monkeypatch):
    """Both faces: calls the model, or says which way it went."""

    async def call(model: Any, given: Any = "Hello", /, **kw: Any) -> Any:
        return model.invoke(given, **kw) if request.param == "invoke" else await model.ainvoke(given, **kw)

    return call


@pytest.fixture
def marked(monkeypatch):
    """Makes LangChain's own way raise `Long`."""

    def sync(*args: Any, **kw: Any) -> Any:
        raise Long

    async def asynchronous(*args: Any, **kw: Any) -> Any:
        raise Long

    monkeypatch.setattr(BaseChatModel, "invoke", sync)
    monkeypatch.setattr(BaseChatModel, "ainvoke", asynchronous)


def fake(**fields: Any) -> FallbackChatModel:
    return FallbackChatModel(models=[FakeListChatModel(responses=["hello"])], **fields)


async def test_both_ways_give_the_same_message(ask):
    with FaultServer(default=Answer("hello")) as server:
        model = FallbackChatModel(models=[native(server, GPT)])
        short = await ask(model)
        long = await ask(model, config={"callbacks": [BaseCallbackHandler()]})
    assert isinstance(short, AIMessage)
    for message in (short, long):
        assert message.id is not None
        assert message.id.startswith("lc_run--")
        assert message.id.endswith("-0")
    same = ("model_name", "finish_reason", "model_provider")
    assert (short.content, short.usage_metadata) == (long.content, long.usage_metadata)
    assert short.response_metadata.keys() == long.response_metadata.keys()
    assert [short.response_metadata[k] for k in same] == [long.response_metadata[k] for k in same]
    assert short.response_metadata["fallback"].keys() == long.response_metadata["fallback"].keys()


async def test_a_plain_call_goes_the_short_way_alone_and_in_a_chain(ask, marked):
    model = fake()
    assert (await ask(model)).content == "hello"
    assert (await ask(model, [HumanMessage("Hi")], stop=["x"])).content == "hello"
    chain = ChatPromptTemplate.from_template("{q}") | model | StrOutputParser()
    assert await ask(chain, {"q": "Hi"}) == "hello"


@pytest.mark.parametrize(
    ("fields", "call"),
    [
        ({"callbacks": [BaseCallbackHandler()]}, {}),
        ({"verbose": True}, {}),
        ({"cache": InMemoryCache()}, {}),
        ({"cache": False}, {}),
        ({"rate_limiter": InMemoryRateLimiter(requests_per_second=1000)}, {}),
        ({"output_version": "v1"}, {}),
        ({"streaming": True}, {}),
        ({}, {"config": {"callbacks": [BaseCallbackHandler()]}}),
        ({}, {"config": {"run_id": "0190f0f0-0000-7000-8000-000000000000"}}),
        ({}, {"stream": False}),
        ({}, {"given": [HumanMessage([{"type": "text", "text": "Hi"}])]}),
    ],
    ids=lambda v: "+".join(v) or "-",
)
async def test_whoever_would_see_it_or_change_it_is_not_gone_round(ask, marked, fields, call):
    call = dict(call)
    with pytest.raises(Long):
        await ask(fake(**fields), call.pop("given", "Hello"), **call)


async def test_a_global_cache_or_a_usage_callback_in_the_context_is_not_gone_round(ask, marked):
    set_llm_cache(InMemoryCache())
    try:
        with pytest.raises(Long):
            await ask(fake())
    finally:
        set_llm_cache(None)
    with get_usage_metadata_callback(), pytest.raises(Long):
        await ask(fake())


async def test_handlers_of_an_outer_chain_are_not_gone_round(ask, marked):
    outer = RunnableLambda(lambda _: "Hello") | fake()
    with pytest.raises(Long):
        await ask(outer, 1, config={"callbacks": [BaseCallbackHandler()]})


async def test_a_subclass_with_its_own_generate_is_not_gone_round(ask, marked):
    class Mine(FallbackChatModel):
        def _generate(self, *args: Any, **kw: Any) -> Any:
            return super()._generate(*args, **kw)

    with pytest.raises(Long):
        await ask(Mine(models=[FakeListChatModel(responses=["hello"])]))


async def test_failures_come_through_the_short_way_as_they_are(ask):
    with FaultServer(default=404) as server, pytest.raises(AllTargetsFailed, match="not_found"):
        await ask(FallbackChatModel(models=[native(server, GPT)]))


async def test_a_message_the_wrapped_model_hands_out_twice_is_never_changed(ask):
    kept = AIMessage("hello")

    class Same(FakeListChatModel):
        def _generate(self, *args: Any, **kw: Any) -> Any:
            result = super()._generate(*args, **kw)
            result.generations[0].message = kept
            return result

        async def _agenerate(self, *args: Any, **kw: Any) -> Any:
            return self._generate(*args, **kw)

    model = FallbackChatModel(models=[Same(responses=["hello"])])
    first, second = await ask(model), await ask(model)
    assert kept.response_metadata == {}
    assert kept.id is None
    assert first.id != second.id
