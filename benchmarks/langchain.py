"""`FallbackChatModel` beside LangChain's own `with_fallbacks`, over the same instant models, in the same process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from benchmarks.measure import Row, per_call_us, ratio, row
from langchain_fallback import FallbackChatModel
from shared_core import BreakerConfig, RetryPolicy

__all__ = ["measure"]


CHUNKS = 200
"""Pieces of text in a streamed answer."""


def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return "sunny"


class Instant(BaseChatModel):
    """Answers at once, or fails at once."""

    down: bool = False

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        """As integrations do: converted once, bound."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

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

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if self.down:
            raise ConnectionError("down")
        for _ in range(CHUNKS - 1):
            yield ChatGenerationChunk(message=AIMessageChunk(content="word "))
        yield ChatGenerationChunk(message=AIMessageChunk(content="word", chunk_position="last"))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


def measure(rounds: int, number: int) -> list[Row]:
    """Healthy and on a failover, sync and async."""
    # The circuit would spare us the dead model after five calls; here every call is made to meet it.
    always: dict[str, Any] = {
        "retry": RetryPolicy(total=0),
        "breaker": BreakerConfig(consecutive_failures=10**9, minimum_calls=10**9),
    }
    pairs = {
        "healthy": ([Instant(), Instant(down=True)], Instant().with_fallbacks([Instant(down=True)])),
        "on a failover": ([Instant(down=True), Instant()], Instant(down=True).with_fallbacks([Instant()])),
    }
    rows = []
    runner = asyncio.Runner()
    n = max(10, number // 20)
    streams = max(2, number // 200)

    async def many(model: Any) -> None:
        for _ in range(n):
            await model.ainvoke("Hello")

    async def amany_chunks(model: Any) -> None:
        for _ in range(streams):
            async for _chunk in model.astream("Hello"):
                pass

    def many_chunks(model: Any) -> None:
        for _ in range(streams):
            for _chunk in model.stream("Hello"):
                pass

    for name, (models, theirs_) in pairs.items():
        ours: Any = FallbackChatModel(models=models, **always)
        theirs: Any = theirs_
        for bound in (False, True):
            if bound:
                name += ", tools bound"  # the same pair, asked with tools
                ours, theirs = ours.bind_tools([get_weather]), theirs.bind_tools([get_weather])
            mine, other = per_call_us(
                partial(ours.invoke, "Hello"), partial(theirs.invoke, "Hello"), rounds=rounds, number=number // 5
            )
            rows.append(_row(f"FallbackChatModel.invoke, {name}", mine, other))

            asked = _running(runner, many, ours), _running(runner, many, theirs)
            mine, other = per_call_us(*asked, rounds=rounds, number=1)
            rows.append(_row(f"FallbackChatModel.ainvoke, {name}", [x / n for x in mine], [x / n for x in other]))

            mine, other = per_call_us(partial(many_chunks, ours), partial(many_chunks, theirs), rounds=rounds, number=1)
            per = streams * CHUNKS
            rows.append(
                _row(f"a chunk of FallbackChatModel.stream, {name}", [x / per for x in mine], [x / per for x in other])
            )

            asked = _running(runner, amany_chunks, ours), _running(runner, amany_chunks, theirs)
            mine, other = per_call_us(*asked, rounds=rounds, number=1)
            rows.append(
                _row(f"a chunk of FallbackChatModel.astream, {name}", [x / per for x in mine], [x / per for x in other])
            )
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
