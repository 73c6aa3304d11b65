"""The cache behind LangChain's and LlamaIndex's interfaces, over real SDKs: bound, passed, shown, and with agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.instrumentation.dispatcher import instrument_tags
from pydantic import BaseModel, SecretStr

from langchain_fallback import FallbackChatModel
from langchain_fallback._cache import says_all
from llamaindex_fallback import FallbackLLM
from shared_core import ResponseCache, Router, Target
from shared_core.testing import Answer, Fault, FaultServer, ToolCall

try:
    from llama_index.llms.openai import OpenAI as LlamaOpenAI
except ModuleNotFoundError:  # the newest SDKs leave LlamaIndex's classes for them out
    LlamaOpenAI = None

GPT, CLAUDE, KEY = "gpt-4.1-mini", "claude-sonnet-4-5", "sk-test"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def native(server: FaultServer, **options: Any) -> Target:
    return Target(f"openai:{GPT}", base_url=server.openai_url, api_key=KEY, **options)


def chat_openai(server: FaultServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=SecretStr(KEY), **options)


def chat_anthropic(server: FaultServer) -> ChatAnthropic:
    return ChatAnthropic(
        model_name=CLAUDE, base_url=server.anthropic_url, api_key=SecretStr(KEY), timeout=None, stop=None
    )


LANGCHAIN = {"native": native, "ChatOpenAI": chat_openai, "ChatAnthropic": chat_anthropic}


@pytest.fixture(params=list(LANGCHAIN))
def one(request, server):
    """A target of each kind."""
    return LANGCHAIN[request.param](server)


def status(message: Any) -> str:
    return message.response_metadata["fallback"]["cache"]


class TestLangChain:
    @pytest.mark.parametrize("second", ["invoke", "ainvoke", "stream", "astream"])
    @pytest.mark.parametrize("first", ["invoke", "stream"])
    def test_every_face_is_served(self, server, one, first, second):
        """Native and ready models; the wire sees one request."""
        model = FallbackChatModel(models=[one], router_options={"cache": True})

        def ask(face: str) -> Any:
            if face == "invoke":
                return model.invoke("When?")
            if face == "ainvoke":
                return asyncio.run(model.ainvoke("When?"))
            chunks = []
            if face == "stream":
                chunks = list(model.stream("When?"))
            else:

                async def main() -> None:
                    chunks.extend([chunk async for chunk in model.astream("When?")])

                asyncio.run(main())
            whole = chunks[0]
            for chunk in chunks[1:]:
                whole += chunk
            return whole

        before, after = ask(first), ask(second)
        assert (status(before), status(after)) == ("miss", "hit")
        assert after.text == before.text
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert after.usage_metadata[name] == before.usage_metadata[name]
        assert after.response_metadata["fallback"]["cost_usd"] == 0.0
        assert after.response_metadata["model_name"] == before.response_metadata["model_name"]
        assert len(server.requests) == 1
        assert model.router.cache.stats().hits == 1

    def test_it_is_given_as_the_routers(self, server):
        """A cache of ours is the router's; LangChain's own words for its own are LangChain's."""
        ours = FallbackChatModel(models=[native(server)], cache=ResponseCache(ttl_s=60))
        assert ours.cache is None
        assert ours.router.cache.ttl_s == 60
        mapped = FallbackChatModel(models=[native(server)], cache={"ttl_s": 5})
        assert mapped.router.cache.ttl_s == 5
        theirs = FallbackChatModel(models=[native(server)], cache=False)
        assert theirs.cache is False
        assert theirs.router.cache is None

    def test_it_is_bound_or_passed_per_call(self, server, one):
        """`bind(cache=…)`, and as a keyword of the call."""
        model = FallbackChatModel(models=[one], router_options={"cache": True})
        assert status(model.invoke("Hi")) == "miss"
        assert status(model.bind(cache=False).invoke("Hi")) == "off"
        assert status(model.bind(cache="refresh").invoke("Hi")) == "refresh"
        assert status(model.invoke("Hi", cache=False)) == "off"
        assert status(model.invoke("Hi", cache=True)) == "hit"
        assert len(server.requests) == 4

    def test_langchains_own_cache_is_left_alone(self, server):
        """Global or the model's own, it works as it did, in front of ours."""
        own = FallbackChatModel(models=[native(server)], cache=InMemoryCache(), router_options={"cache": True})
        first, second = own.invoke("Hi"), own.invoke("Hi")
        assert (status(first), status(second)) == ("miss", "miss")  # the very answer, from LangChain's cache
        assert own.router.cache.stats().hits == 0
        set_llm_cache(InMemoryCache())
        try:
            shared = FallbackChatModel(models=[native(server)])
            shared.invoke("Ho")
            shared.invoke("Ho")
        finally:
            set_llm_cache(None)
        assert len(server.requests) == 2

    def test_settings_of_a_ready_model_are_part_of_the_key(self, server):
        """Also when they are changed later; another model's, another temperature's answer is not served."""
        cache = ResponseCache()
        seen = []
        wrapped = chat_openai(server)
        for inner in (wrapped, chat_openai(server, temperature=0.5), chat_openai(server, reasoning_effort="low")):
            model = FallbackChatModel(models=[inner], router_options={"cache": cache})
            seen += [status(model.invoke("Hi")), status(model.invoke("Hi"))]
        assert seen == ["miss", "hit"] * 3
        model = FallbackChatModel(models=[wrapped], router_options={"cache": cache})
        assert status(model.invoke("Hi")) == "hit"
        wrapped.temperature = 1.0
        assert status(model.invoke("Hi")) == "miss"

    def test_a_model_that_cannot_be_told_by_value_is_not_cached(self):
        """An iterator of answers says something else each time."""
        fake = GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two")]))
        model = FallbackChatModel(models=[fake], router_options={"cache": True})
        assert [model.invoke("Hi").text for _ in range(2)] == ["one", "two"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.invoke([SystemMessage("Be brief"), HumanMessage("Hi")]),
            lambda m: m.invoke([HumanMessage("Hi", name="ann")]),
            lambda m: m.invoke([HumanMessage([{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}])]),
            lambda m: m.invoke("Hi", temperature=0.1),
            lambda m: m.invoke("Hi", stop=["x"]),
            lambda m: m.invoke("Hi", max_tokens=500),
            lambda m: m.bind_tools([lookup]).invoke("Hi"),
            lambda m: m.bind(openai={"service_tier": "flex"}, extra={"anthropic": {"top_k": 5}}).invoke("Hi"),
        ],
        ids=["system", "name", "blocks", "temperature", "stop", "max_tokens", "tools", "vendor"],
    )
    def test_another_call_is_another_answer(self, server, one, change):
        """Whatever of LangChain's ways to say it was used."""
        model = FallbackChatModel(models=[native(server, name="n"), one], router_options={"cache": True})
        model.invoke("Hi")
        assert status(change(model)) == "miss"
        assert status(change(model)) == "hit"

    def test_ids_that_langchain_mints_do_not_make_another_conversation(self, server, one):
        """Each run gives its messages new ones; a vendor's own are kept apart."""
        model = FallbackChatModel(models=[one], router_options={"cache": True})
        talk = lambda **ids: [HumanMessage("Hi", id=ids.get("a")), AIMessage("Ho", id=ids.get("b")), HumanMessage("?")]  # noqa: E731  # said once, used often
        assert status(model.invoke(talk())) == "miss"
        minted = talk(a="5f0c8f5e-7d5b-4a55-9c37-3d0f6a3f3d11", b="run--5f0c8f5e-7d5b-4a55-9c37-3d0f6a3f3d11-0")
        assert status(model.invoke(minted)) == "hit"

    def test_structured_output_is_checked_and_served(self, server, one):
        """The object is parsed again from what was kept."""

        class City(BaseModel):
            """A city."""

            name: str

        server.script(
            "*",
            lambda r: (
                Answer("", tool_calls=[ToolCall("City", {"name": "Nîmes"})])
                if r.body.get("tools")
                else '{"name": "Nîmes"}'
            ),
        )
        cached = {"cache": {"tool_calls": True}}
        model = FallbackChatModel(models=[one], router_options=cached).with_structured_output(City)
        assert [model.invoke("Which?") for _ in range(3)] == [City(name="Nîmes")] * 3
        assert len(server.requests) == 1

    @pytest.mark.parametrize("face", ["invoke", "astream"])
    def test_an_agent_that_does_the_same_again_asks_nobody(self, server, one, face):
        """Tools are called again, with what the model said the first time."""
        called = []

        @tool
        def look(city: str) -> str:
            """Look it up."""
            called.append(city)
            return f"{city}: sunny"

        def play(request: Any) -> Any:
            done = "sunny" in str(request.body)
            return "It is sunny." if done else Answer("", tool_calls=[ToolCall("look", {"city": "Nîmes"})])

        server.script("*", play)
        model = FallbackChatModel(models=[one], router_options={"cache": {"tool_calls": True}})

        async def run() -> str:
            agent = create_agent(model, [look])
            given = {"messages": [HumanMessage("How is Nîmes?")]}
            if face == "invoke":
                return agent.invoke(given)["messages"][-1].text
            states = [s async for s in agent.astream(given, stream_mode="values")]
            return states[-1]["messages"][-1].text

        assert [asyncio.run(run()) for _ in range(3)] == ["It is sunny."] * 3
        assert called == ["Nîmes"] * 3
        assert len(server.requests) == 2
        assert model.router.cache.stats().hits == 4

    def test_a_stand_in_is_served_while_the_outage_lasts(self, server):
        """Over two vendors; the dead one gets one packet."""
        server.script(GPT, Fault("status", status=401))
        model = FallbackChatModel(
            models=[native(server), Target(f"anthropic:{CLAUDE}", base_url=server.anthropic_url, api_key=KEY)],
            router_options={"cache": True},
        )
        said = [model.invoke("Hi") for _ in range(4)]
        assert [status(m) for m in said] == ["miss", "hit", "hit", "hit"]
        assert {m.response_metadata["model_provider"] for m in said} == {"anthropic"}
        assert (server.count(GPT), server.count(CLAUDE)) == (1, 1)

    def test_a_default_answer_is_a_message(self, server):
        """Marked in its metadata."""
        server.script("*", Fault("status", status=401))
        options = {"default_answer": lambda request, error: "Please call us."}
        model = FallbackChatModel(models=[native(server)], router_options=options)
        message = model.invoke("Hi")
        assert (message.text, status(message)) == ("Please call us.", "default")
        assert "".join(chunk.text for chunk in model.stream("Hi")) == "Please call us."

    def test_an_old_answer_stands_in_when_nobody_answers(self, server):
        """Marked, with its age."""
        model = FallbackChatModel(
            models=[native(server)], cache={"ttl_s": 0.001, "stale_if_error_s": 60}, retry={"total": 0}
        )
        first = model.invoke("Hi")
        server.script("*", Fault("status", status=500))
        time.sleep(0.005)
        old = model.invoke("Hi")
        assert (old.text, status(old)) == (first.text, "stale")
        assert old.response_metadata["fallback"]["usage_cached"] is True

    @pytest.mark.parametrize("face", ["invoke", "ainvoke", "stream", "astream"])
    def test_users_are_kept_apart_where_they_are_tenants(self, server, one, face):
        """By the user of the run's metadata; who says nobody is not cached."""
        model = FallbackChatModel(models=[one], cache=ResponseCache(tenant=lambda request: request.user))

        def ask(user: str | None) -> str:
            config = {"metadata": {} if user is None else {"user": user}}
            if face in ("invoke", "stream"):
                chunks = [model.invoke("Hi", config)] if face == "invoke" else list(model.stream("Hi", config))
            else:

                async def main() -> list[Any]:
                    if face == "ainvoke":
                        return [await model.ainvoke("Hi", config)]
                    return [chunk async for chunk in model.astream("Hi", config)]

                chunks = asyncio.run(main())
            (told,) = [c.response_metadata["fallback"]["cache"] for c in chunks if "fallback" in c.response_metadata]
            return told

        assert [ask(u) for u in ("ann", "bob", "ann", "bob", None)] == ["miss", "miss", "hit", "hit", "uncacheable"]
        assert len(server.requests) == 3

    @pytest.mark.parametrize("face", ["stream", "astream"])
    def test_a_replayed_stream_keeps_the_pace(self, server, one, face):
        """In pieces of the size that was chosen, so many seconds apart."""
        server.script("*", Answer("Hello there, all of you."))
        model = FallbackChatModel(models=[one], cache={"pace": 0.01, "chunk": 6})
        model.invoke("Hi")

        async def main() -> list[tuple[float, str]]:
            return [(time.monotonic(), chunk.text) async for chunk in model.astream("Hi") if chunk.text]

        if face == "stream":
            came = [(time.monotonic(), chunk.text) for chunk in model.stream("Hi") if chunk.text]
        else:
            came = asyncio.run(main())
        assert [text for _, text in came] == ["Hello ", "there,", " all o", "f you."]
        assert came[-1][0] - came[0][0] >= 0.025
        assert len(server.requests) == 1

    def test_what_a_message_says_beside_its_text_keeps_it_out(self):
        """It would be lost when it is built again."""
        assert says_all(AIMessage("x"))
        assert says_all(AIMessage([{"type": "text", "text": "x"}, {"type": "thinking", "thinking": "y"}]))
        assert not says_all(AIMessage([{"type": "text", "text": "x", "citations": [1]}]))
        assert not says_all(AIMessage([{"type": "web_search_tool_result", "content": []}]))
        assert not says_all(AIMessage("x", additional_kwargs={"audio": {"data": "…"}}))
        assert not says_all("x")


@tool
def lookup(city: str) -> str:
    """Look it up."""
    return city


def llama_openai(server: FaultServer, **options: Any) -> Any:
    if LlamaOpenAI is None:
        pytest.skip("LlamaIndex's class for OpenAI is not installed beside the newest SDK")
    return LlamaOpenAI(model=GPT, api_base=server.openai_url, api_key=KEY, **options)


@pytest.fixture(params=["native", "wrapped"])
def other(request, server):
    """A target of each kind."""
    return native(server) if request.param == "native" else llama_openai(server)


def facts(response: Any) -> Any:
    return response.additional_kwargs["fallback"]


class TestLlamaIndex:
    @pytest.mark.parametrize("second", ["chat", "achat", "stream_chat", "astream_chat", "complete"])
    def test_every_face_is_served(self, server, other, second):
        """Native targets and ready LLMs; the wire sees one request."""
        llm = FallbackLLM(models=[other], cache=True)
        messages = [ChatMessage(role=MessageRole.USER, content="When?")]

        def ask(face: str) -> Any:
            if face == "chat":
                return llm.chat(messages)
            if face == "complete":
                return llm.complete("When?")
            if face == "achat":
                return asyncio.run(llm.achat(messages))
            if face == "stream_chat":
                return list(llm.stream_chat(messages))[-1]

            async def main() -> Any:
                return [r async for r in await llm.astream_chat(messages)][-1]

            return asyncio.run(main())

        before, after = ask("chat"), ask(second)
        assert (facts(before)["cache"], facts(after)["cache"]) == ("miss", "hit")
        assert (after.text if second == "complete" else after.message.content) == before.message.content
        assert after.raw["usage"] == before.raw["usage"]
        assert len(server.requests) == 1

    def test_it_is_passed_per_call(self, server, other):
        """As a keyword of every face."""
        llm = FallbackLLM(models=[other], cache=True)
        used = [facts(llm.complete("Hi", cache=use))["cache"] for use in (None, False, "refresh", True)]
        assert used == ["miss", "off", "refresh", "hit"]

    def test_users_are_kept_apart_where_they_are_tenants(self, server, other):
        """By the user that the tags around a call name."""
        llm = FallbackLLM(models=[other], cache={"tenant": lambda request: request.user})

        def ask(user: str | None) -> str:
            with instrument_tags({} if user is None else {"user": user}):
                return facts(llm.complete("Hi"))["cache"]

        assert [ask(u) for u in ("ann", "bob", "ann", "bob", None)] == ["miss", "miss", "hit", "hit", "uncacheable"]
        assert len(server.requests) == 3

    @pytest.mark.parametrize("kept", [True, False])
    def test_the_last_resorts_are_answers(self, server, other, kept):
        """An old answer if there is one, else the user's own; marked, whole and streamed."""
        llm = FallbackLLM(
            models=[other], cache={"ttl_s": 0.001, "stale_if_error_s": 60}, retry={"total": 0},
            default_answer=lambda request, error: "Please call us.",
        )  # fmt: skip
        said = llm.complete("Hi").text if kept else "Please call us."
        server.script("*", Fault("status", status=500))
        time.sleep(0.005)
        for answer in (llm.complete("Hi"), list(llm.stream_complete("Hi"))[-1]):
            assert (answer.text, facts(answer)["cache"]) == (said, "stale" if kept else "default")

    def test_settings_of_a_ready_llm_are_part_of_the_key(self, server):
        """And so is what is asked."""
        cache = ResponseCache()
        seen = []
        for inner in (llama_openai(server), llama_openai(server, temperature=0.7)):
            llm = FallbackLLM(models=[inner], cache=cache)
            seen += [facts(llm.complete(text))["cache"] for text in ("Hi", "Hi", "Ho")]
        assert seen == ["miss", "hit", "miss"] * 2

    @pytest.mark.parametrize("streaming", [False, True])
    def test_an_agent_that_does_the_same_again_asks_nobody(self, server, other, streaming):
        """Tools are called again, with what the model said the first time."""
        called = []

        def look(city: str) -> str:
            """Look it up."""
            called.append(city)
            return f"{city}: sunny"

        def play(request: Any) -> Any:
            done = "sunny" in str(request.body)
            return "It is sunny." if done else Answer("", tool_calls=[ToolCall("look", {"city": "Nîmes"})])

        server.script("*", play)
        llm = FallbackLLM(models=[other], cache={"tool_calls": True})

        async def run() -> str:
            agent = FunctionAgent(tools=[look], llm=llm, streaming=streaming)
            return str(await agent.run("How is Nîmes?"))

        assert [asyncio.run(run()) for _ in range(3)] == ["It is sunny."] * 3
        assert called == ["Nîmes"] * 3
        assert len(server.requests) == 2


def test_both_wrappers_may_share_one_router_and_its_cache(server):
    """What one has asked the other is served: a native target answers the same request to both."""
    router = Router([native(server)], cache=True)
    message = FallbackChatModel(router=router).invoke("When?")
    response = FallbackLLM(router=router).complete("When?")
    assert (status(message), facts(response)["cache"]) == ("miss", "hit")
    assert response.text == message.text
    assert len(server.requests) == 1


def test_a_hundred_calls_at_once_are_one_request_on_the_wire(server):
    """Over a real socket, through both wrappers at the same time."""
    server.script("*", Answer("Hello there, you all.", delay_s=0.2))
    router = Router([native(server)], cache=True)
    model, llm = FallbackChatModel(router=router), FallbackLLM(router=router)

    async def main() -> list[str]:
        asked = [model.ainvoke("Hi") for _ in range(50)]
        completed = [llm.acomplete("Hi") for _ in range(50)]
        return [m.text for m in await asyncio.gather(*asked, *completed)]

    assert set(asyncio.run(main())) == {"Hello there, you all."}
    assert len(server.requests) == 1


class TestWrittenDown:
    def test_a_langchain_model_is_dumped_with_its_cache(self, server):
        """As options; what was kept stays here."""
        from langchain_core.load import dumpd, load

        model = FallbackChatModel(models=["ollama:x"], cache=ResponseCache(ttl_s=60, tenant=lambda request: "t"))
        again = load(dumpd(model), allowed_objects=[FallbackChatModel], valid_namespaces=["langchain_fallback"])
        assert (again.router.cache.ttl_s, again.router.cache.tenant) == (60, None)

    def test_a_llamaindex_llm_is_told_with_its_cache(self, tmp_path):
        """The same file, by its path."""
        llm = FallbackLLM(models=["ollama:x"], cache=ResponseCache(path=tmp_path / "c.db", max_items=5))
        again = FallbackLLM.from_dict(llm.to_dict())
        assert again.router.cache.options == {"path": str(tmp_path / "c.db"), "max_items": 5}
