"""For whom a call was made and under which tags: from the call, from LangChain's config, from LlamaIndex's tags."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index_instrumentation.dispatcher import instrument_tags

from langchain_fallback import FallbackChatModel
from langchain_fallback.errors import ModelBudgetExceeded
from llamaindex_fallback import FallbackLLM
from shared_core import Budget, BudgetExceeded, Price, Router, Target
from shared_core.testing import ScriptedProvider

CONFIG: Any = {"metadata": {"user": "ann"}, "tags": ["batch"]}


def router(**options: Any) -> Router:
    return Router(Target(provider=ScriptedProvider("hi there"), price=Price(1, 2)), **options)


def told(of: Router) -> list[tuple[str | None, tuple[str, ...]]]:
    return [(entry.user, entry.tags) for entry in of.ledger.entries()]


async def _drained(stream: Any) -> None:
    async for _ in stream:
        pass


LANGCHAIN = {
    "invoke": lambda m: m.invoke("x", CONFIG),
    "watched": lambda m: m.invoke("x", {**CONFIG, "callbacks": [BaseCallbackHandler()]}),
    "ainvoke": lambda m: asyncio.run(m.ainvoke("x", CONFIG)),
    "stream": lambda m: list(m.stream("x", CONFIG)),
    "astream": lambda m: asyncio.run(_drained(m.astream("x", CONFIG))),
    "batch": lambda m: m.batch(["x"], CONFIG),
    "bound": lambda m: m.with_config(CONFIG).invoke("x"),
    "chain": lambda m: (ChatPromptTemplate.from_messages([("user", "{x}")]) | m).invoke({"x": "y"}, CONFIG),
    "keywords": lambda m: m.invoke("x", user="ann", tags=["batch"]),
    "one tag": lambda m: m.invoke("x", user="ann", tags="batch"),
    "keywords, watched": lambda m: m.invoke("x", {"callbacks": [BaseCallbackHandler()]}, user="ann", tags=["batch"]),
    "keywords, streamed": lambda m: list(m.stream("x", user="ann", tags=["batch"])),
}


@pytest.mark.parametrize("way", LANGCHAIN)
def test_langchains_config_and_keywords_say_whose_call_it_is(way: str) -> None:
    with router() as kept:
        LANGCHAIN[way](FallbackChatModel(router=kept))
        assert told(kept) == [("ann", ("batch",))]


def test_the_call_goes_before_the_config_and_tags_add_up() -> None:
    with router() as kept:
        model = FallbackChatModel(router=kept)
        model.invoke("x", CONFIG, user="bob", tags=["own"])
        model.invoke("x", {"metadata": {"user_id": 7}})
        FallbackChatModel(router=kept, tags=["model's"]).invoke("x", CONFIG)
        assert [(who, set(tags)) for who, tags in told(kept)] == [
            ("bob", {"own", "batch"}),
            ("7", set()),
            ("ann", {"batch", "model's"}),
        ]


def test_llamaindexes_tags_and_keywords_say_whose_call_it_is() -> None:
    with router() as kept:
        llm = FallbackLLM(router=kept)
        with instrument_tags({"user": "ann", "tags": ["batch"]}):
            llm.complete("x")
            llm.chat([ChatMessage(role="user", content="x")])
            list(llm.stream_complete("x"))
            asyncio.run(llm.achat([ChatMessage(role="user", content="x")]))
        llm.chat([ChatMessage(role="user", content="x")], user="ann", tags=["batch"])
        assert told(kept) == [("ann", ("batch",))] * 5
        with instrument_tags({"user_id": "zoe", "team": "search", "_inner": "x", "span": object()}):
            llm.complete("x", tags="own")
        llm.complete("x")
        assert told(kept)[5:] == [("zoe", ("own", "team:search")), (None, ())]


def test_a_budget_of_a_user_holds_through_both_wrappers_and_is_caught_as_what_it_is() -> None:
    with router(budgets=[Budget("0.0004", scope="user", of="ann")]) as kept:
        model, llm = FallbackChatModel(router=kept, max_tokens=300), FallbackLLM(router=kept, max_tokens=300)
        assert model.invoke("x").content == "hi there"
        with pytest.raises(BudgetExceeded) as caught:
            model.invoke("x", CONFIG)
        assert isinstance(caught.value, ModelBudgetExceeded)
        assert (caught.value.of, caught.value.budget.of) == ("ann", "ann")
        assert caught.value.resets_at is not None
        with pytest.raises(BudgetExceeded), instrument_tags({"user": "ann"}):
            llm.complete("x")
        assert str(llm.complete("x")) == "hi there"


def test_budgets_and_a_ledgers_path_travel_with_both_models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    options: Any = {"ledger": str(tmp_path / "costs.db"), "budgets": [Budget("1.5", "day", timezone="Europe/Berlin")]}
    model = FallbackChatModel(models=["openai:gpt-5-mini"], **options)
    llm = FallbackLLM(models=["openai:gpt-5-mini"], **options)
    again = FallbackLLM.from_dict(llm.to_dict())
    for one in (model, pickle.loads(pickle.dumps(model))):
        assert one.router.budget_status()[0].limit_usd == 1.5
        one.router.close()
    for other in (llm, again, pickle.loads(pickle.dumps(llm))):
        assert other.router.budget_status()[0].budget.tz.key == "Europe/Berlin"
        other.router.close()
