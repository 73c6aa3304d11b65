"""What a caller's type checker must see. Checked by `make check`, never run: an ignore here is an assertion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from shared_core import (
    AllTargetsFailed,
    Answer,
    BreakerConfig,
    ChatEvent,
    ChatRequest,
    ErrorKind,
    Message,
    Plan,
    Provider,
    ProviderError,
    RetryPolicy,
    Router,
    Target,
    TextDelta,
    Timeouts,
    Usage,
    user,
)
from shared_core.testing import ScriptedProvider, VirtualClock


def router() -> Router:
    """Everything a router takes, in every form it takes it."""
    Router("openai:gpt-5-mini", timeouts={"total": 5.0}, retry={"total": 1}, breaker={"open_s": 1.0})
    Router([Target("openai:gpt-5-mini", price={"input": "0.25"}), {"spec": "ollama:qwen3"}, ScriptedProvider("ok")])
    Router(["openai:gpt-5-mini"], on_stream_break="retry")  # type: ignore[arg-type]
    Target("openai:gpt-5-mini", "second")  # type: ignore[call-arg]
    return Router(
        ["openai:gpt-5-mini", "llamacpp:tiny"],
        retry=RetryPolicy(total=1),
        timeouts=Timeouts(first_token=10),
        breaker=BreakerConfig(consecutive_failures=3),
        clock=VirtualClock(),
    )


def whole(r: Router) -> str:
    """What comes of a whole answer."""
    answer = r.invoke(ChatRequest((user("Hello"),)))
    assert_type(answer, Answer)
    assert_type(answer.usage, Usage)
    assert_type(answer.message, Message)
    assert_type(answer.fallback, Mapping[str, Any])
    assert_type(r.explain("Hello"), Plan)
    r.explain("Hello", chain="low-cost", cache=False)
    r.invoke("Hello", strategy="cost", chain="low-cost", user="ann", tags=["night"], timeout=3, max_price=2.5)
    r.invoke("Hello", chian="low-cost")  # type: ignore[call-arg]
    r.invoke("Hello", timeout="soon")  # type: ignore[arg-type]
    return answer.text


def streamed(r: Router) -> str:
    """What comes of a streamed one."""
    text = ""
    with r.stream("Hello") as stream:
        for event in stream:
            assert_type(event, ChatEvent)
            if isinstance(event, TextDelta):
                text += event.text
    return text


async def awaited(r: Router) -> str:
    """The same, async."""
    assert_type(await r.ainvoke("Hello"), Answer)
    async with r.astream("Hello") as stream:
        async for event in stream:
            assert_type(event, ChatEvent)
    return ""


def failed(r: Router) -> list[ErrorKind]:
    """What there is to know about a failure."""
    try:
        r.invoke("Hello")
    except AllTargetsFailed as error:
        return [e.kind for e in error.errors if isinstance(e, ProviderError)]
    return []


def scripted() -> Provider:
    """The fake keeps the contract it stands in for."""
    return ScriptedProvider("ok", ErrorKind.OVERLOADED)
