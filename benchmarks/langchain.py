"""`FallbackChatModel` beside LangChain's own `with_fallbacks`, over the same instant models, in the same process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from benchmarks.measure import Row, per_call_us, ratio, row
from langchain_fallback import FallbackChatModel
from shared_core import BreakerConfig, RetryPolicy

__all__ = ["measure"]


class Instant(BaseChatModel):
    """Answers at once, or fails at once."""

    down: bool = False

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.down:
            raise ConnectionError("down")
        return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)


def measure(rounds: int, number: int) -> list[Row]:
    """Healthy and on a failover, sync and async."""
    # The circuit would spare us the dead model after five calls; here every call is made to meet it.
    always: dict[str, Any] = {
        "retry": RetryPolicy(total=0),
        "breaker": BreakerConfig(consecutive_failures=10**9, minimum_calls=10**9),
    }
    pairs = {
        "healthy": (
            FallbackChatModel(models=[Instant(), Instant(down=True)], **always),
            Instant().with_fallbacks([Instant(down=True)]),
        ),
        "on a failover": (
            FallbackChatModel(models=[Instant(down=True), Instant()], **always),
            Instant(down=True).with_fallbacks([Instant()]),
        ),
    }
    rows = []
    runner = asyncio.Runner()
    n = max(10, number // 20)

    async def many(model: Any) -> None:
        for _ in range(n):
            await model.ainvoke("Hello")

    for name, (ours, theirs) in pairs.items():
        mine, other = per_call_us(
            partial(ours.invoke, "Hello"), partial(theirs.invoke, "Hello"), rounds=rounds, number=number // 5
        )
        rows.append(_row(f"FallbackChatModel.invoke, {name}", mine, other))

        mine, other = per_call_us(_running(runner, many, ours), _running(runner, many, theirs), rounds=rounds, number=1)
        rows.append(_row(f"FallbackChatModel.ainvoke, {name}", [x / n for x in mine], [x / n for x in other]))
    runner.close()
    return rows


def _running(
    runner: asyncio.Runner, many: Callable[[Any], Coroutine[Any, Any, None]], model: Any
) -> Callable[[], None]:
    return lambda: runner.run(many(model))


def _row(name: str, ours: list[float], theirs: list[float]) -> Row:
    return row(
        name,
        "us",
        statistics.median(ours),
        peer="LangChain with_fallbacks",
        peer_value=statistics.median(theirs),
        ratio=ratio(ours, theirs),
        ratio_at_most=1.0,
    )
