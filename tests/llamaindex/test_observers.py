"""LlamaIndex's spans, events and traces are made where somebody listens, and not where nobody does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import callbacks
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span_handlers import SimpleSpanHandler

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider
from shared_core.testing import ScriptedProvider
from tests.llamaindex.world import FACES, NO_RETRY, Events, call


def answering(cls: type[FallbackLLM] = FallbackLLM) -> FallbackLLM:
    return cls([ScriptedProvider("Hello.")], retry=NO_RETRY)


@contextmanager
def by_event(name: str) -> Iterator[Callable[[], int]]:
    dispatcher, handler = get_dispatcher(name), Events()
    dispatcher.add_event_handler(handler)
    try:
        yield lambda: len(handler.seen)
    finally:
        dispatcher.event_handlers.remove(handler)


@contextmanager
def by_span(name: str) -> Iterator[Callable[[], int]]:
    dispatcher, handler = get_dispatcher(name), SimpleSpanHandler()
    dispatcher.add_span_handler(handler)
    try:
        yield lambda: len(handler.completed_spans)
    finally:
        dispatcher.span_handlers.remove(handler)


WAYS = {
    "events, at the root": (by_event, "root"),
    "events, where they are sent": (by_event, callbacks.__name__),
    "spans, at the root": (by_span, "root"),
    "spans, where they are opened": (by_span, FallbackLLM.__module__),
}
"""How and at which dispatcher an observer may hear of a call."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("face", FACES)
async def test_an_observer_that_comes_later_hears_of_the_next_call(face, way):
    """Whatever it listens by; after it has gone, nothing is made for it."""
    listen, name = WAYS[way]
    llm = answering()
    await call(llm, face)
    with listen(name) as heard:
        await call(llm, face)
        assert heard()
        so_far = heard()
    await call(llm, face)
    assert heard() == so_far


class Derived(FallbackLLM):
    """A user's own, in a module of its own; its methods are those it has inherited."""


@pytest.mark.parametrize("face", FACES)
async def test_the_spans_of_a_derived_class_are_heard_where_they_are_opened(face):
    with by_span(FallbackLLM.__module__) as heard:
        await call(answering(Derived), face)
        assert heard()


@pytest.mark.parametrize("face", FACES)
async def test_a_callback_handler_hears_of_every_call(face):
    llm, debug = answering(), LlamaDebugHandler(print_trace_on_end=False)
    await call(llm, face)
    llm.callback_manager = CallbackManager([debug])
    await call(llm, face)
    llm.callback_manager.remove_handler(debug)
    await call(llm, face)
    assert len(debug.get_llm_inputs_outputs()) == 1


class Telling(CallbackManager):
    """A manager that counts the traces it is asked to begin."""

    traces = 0

    def start_trace(self, trace_id: str | None = None) -> None:
        self.traces += 1
        super().start_trace(trace_id)


@pytest.mark.parametrize("face", FACES)
async def test_a_manager_of_another_class_is_asked_whoever_listens(face):
    """It may do more than hand events on."""
    llm = answering()
    llm.callback_manager = Telling()
    await call(llm, face)
    assert llm.callback_manager.traces == 1


@pytest.mark.parametrize("face", FACES)
async def test_where_nobody_listens_nothing_is_made(face, monkeypatch):
    """The long way would fail here."""

    class Broken(FallbackLLM):
        def to_payload(self) -> dict[str, Any]:
            raise AssertionError("nobody has asked for it")

    monkeypatch.setattr(CallbackManager, "start_trace", None)
    assert await call(answering(Broken), face)


@pytest.mark.parametrize("face", FACES)
async def test_a_rate_limiter_is_asked_once_either_way(face):
    class Counting(TokenBucketRateLimiter):
        asked: int = 0

        def acquire(self, num_tokens: int = 0) -> None:
            self.asked += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.asked += 1

    for handlers in ([], [LlamaDebugHandler(print_trace_on_end=False)]):
        limiter = Counting(requests_per_minute=1000)
        llm = answering()
        llm.rate_limiter, llm.callback_manager = limiter, CallbackManager(handlers)
        await call(llm, face)
        assert limiter.asked == 1


def test_a_face_is_what_it_was_for_whoever_looks_at_it():
    """Its name, its parameters, and whether it must be awaited."""
    assert list(inspect.signature(FallbackLLM.chat).parameters) == ["self", "messages", "kwargs"]
    assert FallbackLLM.chat.__name__ == "chat"
    assert (FallbackLLM.chat.__doc__ or "").startswith("A whole answer.")
    for face in FACES:
        assert inspect.iscoroutinefunction(getattr(FallbackLLM, face)) == face.startswith("a"), face


@pytest.mark.parametrize("face", FACES)
async def test_a_router_in_a_router_tells_of_one_call(face):
    """The inner one is asked without its events, like any wrapped LLM."""
    inner = answering()
    llm = FallbackLLM([LlamaIndexProvider(inner)], retry=NO_RETRY)
    with by_event("root") as heard:
        await call(llm, face)
        outer = heard()
    with by_event("root") as heard:
        await call(answering(), face)
        assert heard() == outer


def test_arguments_by_name_and_none_at_all_go_llamaindexs_way():
    llm = answering()
    assert llm.chat(messages=[ChatMessage(content="Hi")]).message.content == "Hello."
    assert llm.complete(prompt="Hi").text == "Hello."
    with pytest.raises(ValueError, match="No prompt provided"):
        llm.complete()
