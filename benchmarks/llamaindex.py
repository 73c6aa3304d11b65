"""`FallbackLLM` beside the LLM it wraps, called directly: what ours adds to LlamaIndex's own, in the same process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index_instrumentation import get_dispatcher

from benchmarks.core import Instant
from benchmarks.measure import Row, per_call_us, row
from llamaindex_fallback import FallbackLLM
from shared_core import BreakerConfig, RetryPolicy, Router

__all__ = ["measure"]

CHUNKS = 200
"""Pieces of text in a streamed answer."""

_ASKED = [ChatMessage(role=MessageRole.USER, content="Hello")]
_chat = cast("Callable[[Any], Any]", llm_chat_callback())


def _said(text: str, delta: str | None = None) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)


class InstantLLM(FunctionCallingLLM):
    """Answers at once, or fails at once."""

    down: bool = False

    @property
    def metadata(self) -> LLMMetadata:
        """Calls tools."""
        return LLMMetadata(model_name="instant", is_chat_model=True, is_function_calling_model=True)

    def _fail(self) -> None:
        if self.down:
            raise ConnectionError("down")

    @_chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """'ok'."""
        self._fail()
        return _said("ok")

    @_chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """'ok'."""
        self._fail()
        return _said("ok")

    @_chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """Many words."""
        self._fail()
        text = ""
        for _ in range(CHUNKS):
            text += "word "
            yield _said(text, "word ")

    @_chat
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """Many words."""

        async def words() -> AsyncGenerator[ChatResponse, None]:
            self._fail()
            text = ""
            for _ in range(CHUNKS):
                text += "word "
                yield _said(text, "word ")

        return words()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """Not measured."""
        raise NotImplementedError("only chat is measured")

    acomplete = stream_complete = astream_complete = complete

    def _prepare_chat_with_tools(self, tools: Sequence[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError("no tools are measured")


class Listening(BaseEventHandler):
    """An observer that does nothing with what it hears."""

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name for it."""
        return "Listening"

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Nothing."""


def measure(rounds: int, number: int) -> list[Row]:
    """What a call and a chunk cost beyond the wrapped LLM's own; with native targets, beyond the same LLM's.

    With an observer, both make LlamaIndex's spans and events; without one, ours does not.
    """
    rows = _measure(rounds, number, "")
    dispatcher, observer = get_dispatcher(), Listening()
    dispatcher.add_event_handler(observer)
    try:
        return rows + _measure(rounds, number, ", both observed")
    finally:
        dispatcher.event_handlers.remove(observer)


def _measure(rounds: int, number: int, observed: str) -> list[Row]:
    # The circuit would spare us the dead LLM after five calls; here every call is made to meet it.
    always: dict[str, Any] = {
        "retry": RetryPolicy(total=0),
        "breaker": BreakerConfig(consecutive_failures=10**9, minimum_calls=10**9),
    }
    alone = InstantLLM()
    ours = {
        "around the same LLM": FallbackLLM([InstantLLM(), InstantLLM()], **always),
        "around it, on a failover": FallbackLLM([InstantLLM(down=True), InstantLLM()], **always),
        "over a native target": FallbackLLM(router=Router([Instant()], **always)),
    }
    streaming = {**ours, "over a native target": FallbackLLM(router=Router([Instant(chunks=CHUNKS)], **always))}
    runner = asyncio.Runner()
    n = max(10, number // 20)
    streams = max(2, number // 200)

    async def many(llm: Any) -> None:
        for _ in range(n):
            await llm.achat(_ASKED)

    async def amany_chunks(llm: Any) -> None:
        for _ in range(streams):
            async for _response in await llm.astream_chat(_ASKED):
                pass

    def many_chunks(llm: Any) -> None:
        for _ in range(streams):
            for _response in llm.stream_chat(_ASKED):
                pass

    def running(calls: Callable[[Any], Any], llm: Any) -> Callable[[], None]:
        return lambda: runner.run(calls(llm))

    rows = []
    for kind, llm in ours.items():
        promised = "failover" not in kind and not observed
        name = f"{kind}{observed}"
        mine, theirs = per_call_us(
            partial(llm.chat, _ASKED), partial(alone.chat, _ASKED), rounds=rounds, number=number // 5
        )
        rows.append(_row(f"FallbackLLM.chat adds, {name}", mine, theirs, 1, 60 if promised else None))
        mine, theirs = per_call_us(running(many, llm), running(many, alone), rounds=rounds, number=1)
        rows.append(_row(f"FallbackLLM.achat adds, {name}", mine, theirs, n, None))
        per, llm = streams * CHUNKS, streaming[kind]
        mine, theirs = per_call_us(partial(many_chunks, llm), partial(many_chunks, alone), rounds=rounds, number=1)
        rows.append(
            _row(f"a chunk of FallbackLLM.stream_chat adds, {name}", mine, theirs, per, 5 if promised else None)
        )
        mine, theirs = per_call_us(running(amany_chunks, llm), running(amany_chunks, alone), rounds=rounds, number=1)
        rows.append(_row(f"a chunk of FallbackLLM.astream_chat adds, {name}", mine, theirs, per, None))
    runner.close()
    return rows


def _row(name: str, ours: list[float], theirs: list[float], per: int, at_most: float | None) -> Row:
    """Ours beyond theirs, in microseconds, as the median of the rounds' own differences; `per` calls or chunks each."""
    return row(
        name,
        "us",
        statistics.median((a - b) / per for a, b in zip(ours, theirs, strict=True)),
        peer="the LLM called directly, all of it",
        peer_value=statistics.median(theirs) / per,
        at_most=at_most,
    )
