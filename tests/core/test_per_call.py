"""What can be said about routing with a call, in the core and in both wrappers: complexity, strategy, chain, limits."""

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
    TextDelta,
    ToolSpec,
    UnknownOption,
    user,
)
from shared_core.chat.per_call import CALL_OPTIONS, CallOptions, ExplainOptions, saying
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
    model, llm, router = FallbackChatModel(models=fleet()), FallbackLLM(models=fleet()), Router(fleet())

    async def aliased(response):
        return (await response).message.content

    async def text(answer):
        return (await answer).text

    async def read(events):
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])

    return {
        "invoke": lambda **kw: router.invoke("Hello", **kw).text,
        "messages": lambda **kw: router.invoke([user("Hello")], **kw).text,
        "request": lambda **kw: router.invoke(ChatRequest((user("Hello"),)), **kw).text,
        "events": lambda **kw: "".join(e.text for e in router.stream("Hello", **kw) if isinstance(e, TextDelta)),
        "plan": lambda **kw: f"from {router.explain('Hello', **kw).targets[0]}",
        "answer": lambda **kw: text(router.ainvoke("Hello", **kw)),
        "aevents": lambda **kw: read(router.astream("Hello", **kw)),
        "bind": lambda **kw: model.bind(**kw).invoke("Hello").content,
        "call": lambda **kw: model.invoke("Hello", **kw).content,
        "stream": lambda **kw: "".join(str(c.content) for c in model.stream("Hello", **kw)),
        "chat": lambda **kw: llm.chat(messages, **kw).message.content,
        "stream_chat": lambda **kw: list(llm.stream_chat(messages, **kw))[-1].message.content,
        "complete": lambda **kw: llm.complete("Hello", **kw).text,
        "achat": lambda **kw: aliased(llm.achat(messages, **kw)),
        "ainvoke": lambda **kw: model.ainvoke("Hello", **kw),
    }


OURS = ["invoke", "messages", "request", "events", "plan", "answer", "aevents"]


@pytest.mark.parametrize(
    "way", [*OURS, "bind", "call", "stream", "chat", "stream_chat", "complete", "achat", "ainvoke"]
)
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


@pytest.mark.parametrize("way", ["call", "chat", "invoke", "request", "events", "plan"])
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
        ({"tags": 5}, InvalidRequest, "tags takes a text or several, not 5"),
        ({"stop": [5]}, InvalidRequest, "stop takes a text or several"),
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


def test_a_call_in_the_core_takes_the_words_that_the_wrappers_take():
    from langchain_fallback._convert import CALL_OPTIONS as LANGCHAINS
    from llamaindex_fallback._request import CALL_OPTIONS as LLAMAINDEXES

    shared = LANGCHAINS & LLAMAINDEXES
    assert shared - CALL_OPTIONS == {"response_format", "strict", "validate"}, "shapes are told in a framework's words"
    assert set(CallOptions.__annotations__) == CALL_OPTIONS - {"strategy", "cache"}, "which the faces name themselves"
    assert set(ExplainOptions.__annotations__) == CALL_OPTIONS - {"strategy"}


@pytest.mark.parametrize("face", ["invoke", "stream"])
def test_whose_call_it_is_and_how_long_it_may_take_reach_the_ledger_and_the_deadline(face):
    from shared_core.testing import VirtualClock

    provider = ScriptedProvider("yes")
    with Router([Target(provider=provider, name="a")], clock=VirtualClock()) as router:
        answer = getattr(router, face)("Hello", user="ann", tags="nightly", timeout=7, max_tokens=9, chain="low-cost")
        list(answer) if face == "stream" else None
        entry = list(router.ledger.entries())[-1]
        assert (entry.user, entry.tags, entry.chain) == ("ann", ("nightly",), "low-cost")
        journal = router.last
        assert journal.deadline - journal.started == 7
        assert journal.request.max_tokens == 9
        assert journal.request.streaming is (face == "stream")


def test_what_is_said_with_a_call_goes_before_what_its_request_says_and_limits_add_up():
    request = ChatRequest(
        (user("Hello"),), chain="low-cost", user="ann", timeout_s=5, constraints={"deny": ["a"], "max_price": 3}
    )
    tool = ToolSpec("look")
    said = saying(request, {"chain": "local-first", "user": None, "timeout": 9, "tools": [tool], "tool_choice": "look"})
    assert (said.chain, said.user, said.timeout_s, said.tools) == ("local-first", "ann", 9, (tool,))
    assert said.constraints == request.constraints
    told = saying(request, {"constraints": {"deny": ["b"]}, "max_price": 9, "local_only": True}).constraints
    assert told == Constraints(local_only=True, deny=["a", "b"], max_price=3), "nothing said with a call lifts a limit"
    assert saying(request, {"chain": None, "max_price": None}) is request
    assert saying(request, {"tools": []}).tools == ()
    for wrong in ({"streaming": True}, {"messages": ()}, {"native": None}, {"continues": True}, {"service_tier": "x"}):
        with pytest.raises(UnknownOption, match=next(iter(wrong))):
            saying(request, wrong)
    for tools in (5, [{"name": "look"}]):
        with pytest.raises(InvalidRequest, match="tools takes ToolSpecs"):
            saying(request, {"tools": tools})


def test_a_request_that_is_refused_because_of_an_option_leaves_nothing_behind():
    provider = ScriptedProvider("never asked")
    with Router([Target(provider=provider, name="a")]) as router:
        for wrong, error in (({"chian": "low-cost"}, UnknownOption), ({"timeout": -1}, InvalidRequest)):
            with pytest.raises(error):
                router.invoke("Hello", **wrong)
            with pytest.raises(error):
                router.stream("Hello", **wrong)
        assert provider.calls == 0
        assert router.last is None
        assert not list(router.ledger.entries())
