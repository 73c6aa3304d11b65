"""What can be said about routing with a call, in both wrappers: complexity, strategy, chain, constraints."""

from __future__ import annotations

import re

import pytest

from shared_core import (
    ChatRequest,
    ConfigurationError,
    Constraints,
    InvalidRequest,
    Price,
    Router,
    Target,
    UnknownOption,
    user,
)
from shared_core.testing import ScriptedProvider


def target(name: str, tier: str | None, price: Price | None, **options: object) -> Target:
    return Target(provider=ScriptedProvider(f"from {name}", name=name), name=name, tier=tier, price=price, **options)  # type: ignore[arg-type]


def fleet() -> list[Target]:
    return [
        target("best", "best", Price(9, 9)),
        target("plain", None, Price(3, 3)),
        target("standard", "standard", Price(2, 2)),
        target("fast and dear", "fast", Price(5, 5)),
        target("fast", "fast", Price(1, 1)),
        target("fast, price unknown", "fast", None),
    ]


def askers():
    """How a call is made, by the name of the way: each returns the text of the answer."""
    from llama_index.core.llms import ChatMessage

    from langchain_fallback import FallbackChatModel
    from llamaindex_fallback import FallbackLLM

    messages = [ChatMessage(role="user", content="Hello")]
    model, llm = FallbackChatModel(models=fleet()), FallbackLLM(models=fleet())

    async def aliased(response):
        return (await response).message.content

    return {
        "bind": lambda **kw: model.bind(**kw).invoke("Hello").content,
        "call": lambda **kw: model.invoke("Hello", **kw).content,
        "stream": lambda **kw: "".join(str(c.content) for c in model.stream("Hello", **kw)),
        "chat": lambda **kw: llm.chat(messages, **kw).message.content,
        "stream_chat": lambda **kw: list(llm.stream_chat(messages, **kw))[-1].message.content,
        "complete": lambda **kw: llm.complete("Hello", **kw).text,
        "achat": lambda **kw: aliased(llm.achat(messages, **kw)),
        "ainvoke": lambda **kw: model.ainvoke("Hello", **kw),
    }


@pytest.mark.parametrize("way", ["bind", "call", "stream", "chat", "stream_chat", "complete", "achat", "ainvoke"])
async def test_everything_about_routing_can_be_said_with_a_call(way):
    ask = askers()[way]
    for said, who in (
        ({}, "best"),
        ({"complexity": "simple"}, "fast"),
        ({"complexity": "auto"}, "fast"),
        ({"strategy": "cost"}, "fast"),
        ({"strategy": lambda request, views: list(views)[::-1]}, "fast, price unknown"),
        ({"chain": "low-cost"}, "fast"),
        ({"max_price": 2.5}, "standard"),
        ({"deny": ["best", "plain"]}, "standard"),
        ({"allow": ["fast"]}, "fast"),
        ({"constraints": {"allow": ["plain", "standard"]}}, "plain"),
        ({"constraints": Constraints(allow=["plain", "standard"]), "max_price": 2}, "standard"),
    ):
        answer = ask(**said)
        if not isinstance(answer, str):
            answer = await answer
        assert getattr(answer, "content", answer) == f"from {who}", said


@pytest.mark.parametrize("way", ["call", "chat"])
def test_what_is_wrong_in_a_call_is_told_and_nothing_is_sent(way):
    ask = askers()[way]
    for said, error, says in (
        ({"complexity": "simpel"}, InvalidRequest, "Did you mean 'simple'"),
        ({"strategy": "chepest"}, ConfigurationError, "unknown strategy"),
        ({"chain": "low-cots"}, InvalidRequest, "Did you mean 'low-cost'"),
        ({"constraints": {"denny": ["a"]}}, UnknownOption, "Did you mean 'deny'"),
        ({"constraints": "local"}, InvalidRequest, "must be Constraints"),
        ({"deny": "best"}, InvalidRequest, "collection of names"),
        ({"max_price": -1}, InvalidRequest, "max_price"),
        ({"max_prise": 1}, UnknownOption, "max_price"),
    ):
        with pytest.raises(error, match=says):
            ask(**said)


@pytest.mark.parametrize("way", ["bind", "call", "stream", "chat", "stream_chat", "complete"])
def test_local_only_fails_closed_in_both_wrappers(way):
    from shared_core import AllTargetsFailed

    with pytest.raises(AllTargetsFailed, match="local only"):
        askers()[way](local_only=True)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"chain": 5}, "no chain is named 5. Valid: "),
        ({"chain": ["low-cost"]}, "no chain is named"),
        ({"timeout_s": "30"}, "timeout_s must be a positive number of seconds, not '30'"),
        ({"timeout_s": True}, "not True"),
        ({"max_tokens": "9"}, "max_tokens must be a whole number, at least 1, not '9'"),
        ({"max_tokens": 1.5}, "not 1.5"),
        ({"temperature": "hot"}, "temperature must be between 0 and 2, not 'hot'"),
        ({"constraints": {"local_only": "no"}}, "local_only must be True or False, not 'no'"),
        ({"constraints": {"allow": 5}}, "allow takes a collection of names, not 5"),
        ({"constraints": {"deny": [5]}}, "deny takes a collection of names, not"),
        ({"constraints": {"deny": None}}, "deny takes a collection of names, not None"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_in_words_and_nothing_is_sent(option, says):
    provider = ScriptedProvider("never asked")
    with Router([Target(provider=provider, name="a")]) as router:
        with pytest.raises(InvalidRequest, match=re.escape(says)):
            router.invoke(ChatRequest((user("Hello"),), **option))
        assert provider.calls == 0
