"""What LlamaIndex's observers see: one chain of events per call, its tokens counted once, who served, and no key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock
from llama_index.core.callbacks import CBEventType, EventPayload, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import SimpleSpan
from llama_index_instrumentation.span_handlers import SimpleSpanHandler

from shared_core import AllTargetsFailed
from shared_core.testing import Answer, Fault, ToolCall, Usage
from shared_core.testing.fault_server import cut
from tests.llamaindex.world import (
    FACES,
    KEY,
    KINDS,
    NO_RETRY,
    SECONDARY,
    STREAMED,
    Events,
    call,
    fallback_llm,
    managed,
    script_all,
)

COUNTED = Answer("It opens at seven.", usage=Usage(prompt_tokens=1234, completion_tokens=56))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("state", ["healthy", "down"])
async def test_one_call_is_one_chain_of_events(server, face, kind, state):
    """Start, in progress per response, end: whatever happened underneath, and the end names who served."""
    llm = fallback_llm(server, kind)
    if state == "down":
        script_all(server, 503)
        server.script(SECONDARY, "ok")
    debug = LlamaDebugHandler(print_trace_on_end=False)
    with Events() as events:
        responses = await call(managed(llm, debug), face)
    what = "Completion" if "complete" in face else "Chat"
    progress = [f"LLM{what}InProgressEvent"] * len(responses) if face in STREAMED else []
    assert events.names() == [f"LLM{what}StartEvent", *progress, f"LLM{what}EndEvent"]
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    end = events.seen[-1].response
    assert end is not None
    assert end.raw["target"] == llm.router.targets[0 if state == "healthy" else 1].name
    assert len({event.span_id for event in events.seen if "LLM" in type(event).__name__}) == 1


@pytest.mark.parametrize("kind", ["native", "wrapped"])
@pytest.mark.parametrize("face", FACES)
async def test_a_failure_ends_its_chain(server, face, kind):
    """The legacy callback ends with the exception, an event tells of it, and the span is dropped."""
    script_all(server, 503)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    spans = SimpleSpanHandler()
    get_dispatcher().add_span_handler(spans)
    try:
        with Events() as events, pytest.raises(AllTargetsFailed):
            await call(managed(fallback_llm(server, kind), debug), face)
    finally:
        get_dispatcher().span_handlers.remove(spans)
    ((_, end),) = debug.get_event_pairs(CBEventType.LLM)
    assert isinstance((end.payload or {})[EventPayload.EXCEPTION], AllTargetsFailed)
    assert events.names().count(f"LLM{'Completion' if 'complete' in face else 'Chat'}StartEvent") == 1
    assert not [name for name in events.names() if "End" in name]
    (told,) = [event for event in events.seen if type(event).__name__ == "ExceptionEvent"]
    assert isinstance(told.exception, AllTargetsFailed)
    assert told.span_id == events.seen[0].span_id, "in the span that began"
    ours: list[SimpleSpan] = [s for s in (*spans.dropped_spans, *spans.completed_spans) if "FallbackLLM" in s.id_]
    assert len(ours) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("face", FACES)
async def test_tokens_are_the_servers_figures_counted_once(server, face, kind):
    """To the token, by the handler everybody uses; a failed attempt adds nothing."""
    llm = fallback_llm(server, kind)
    for script in ([COUNTED], [503]):
        script_all(server, *script)
        server.script(SECONDARY, COUNTED)
        llm.router.reset()
        counter = TokenCountingHandler(tokenizer=lambda _: [])
        await call(managed(llm, counter), face)
        assert len(counter.llm_token_counts) == 1
        assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (1234, 56)


async def test_a_token_budget_is_obeyed(server):
    """The handler's own: it raises, and that is nobody's outage."""
    script_all(server, COUNTED)
    llm = managed(fallback_llm(server), TokenCountingHandler(tokenizer=lambda _: [], token_budget=1000))
    with pytest.raises(ValueError, match="budget"):
        await call(llm, "achat")
    assert server.count() == 1


async def test_a_continued_answer_is_billed_for_both_parts(server):
    """What the broken part used is in the sum, as an estimate."""
    script_all(server, cut(after_words=4))
    server.script(SECONDARY, Answer(continue_from=True, usage=Usage(prompt_tokens=100, completion_tokens=10)))
    last: Any = (await call(fallback_llm(server), "astream_chat"))[-1]
    assert last.raw["usage"]["prompt_tokens"] > 100
    assert last.raw["usage"]["estimated"]


@pytest.mark.parametrize("kind", KINDS)
async def test_no_observer_sees_a_key(server, kind):
    """Not in any event, payload or span, healthy or broken, with tools."""
    llm = fallback_llm(server, kind)
    script_all(server, Fault("status", status=500, message=f"Who sent {KEY}?"))
    server.script(SECONDARY, Answer("", tool_calls=[ToolCall("look", {"word": "x"})]))

    def look(word: str) -> str:
        """Look a word up."""
        return word

    debug = LlamaDebugHandler(print_trace_on_end=False)
    with Events() as events:
        response = await managed(llm, debug).achat_with_tools([FunctionTool.from_defaults(look)], user_msg="x")
    told = [event.model_dump_json() for event in events.seen if "LLM" in type(event).__name__]
    told += [repr(event.payload) for event in debug.get_events(CBEventType.LLM)] + [response.model_dump_json()]
    assert not [one for one in told if KEY in one or "not-a-real-key" in one]
    start = next(e for e in events.seen if type(e).__name__ == "LLMChatStartEvent")
    assert json.dumps(start.additional_kwargs), "tools are told as plain dicts"


async def test_a_rate_limiter_of_llamaindex_is_obeyed(server):
    """By the decorators, once per logical call."""

    class Limiter:
        asked = 0

        def acquire(self, num_tokens: int = 0) -> None:
            self.asked += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.asked += 1

    limiter = Limiter()
    script_all(server, 503)
    server.script(SECONDARY, "ok")
    llm = fallback_llm(server, KINDS["wrapped"](server), rate_limiter=limiter, retry=NO_RETRY)
    for face in FACES:
        await call(llm, face)
    assert limiter.asked == len(FACES)


async def test_thinking_is_streamed_where_agents_read_it(server):
    """`thinking_delta` per response, a ThinkingBlock in the message."""
    script_all(server, Answer("Seven.", reasoning="The sign says so."))
    responses: list[Any] = await call(fallback_llm(server, "anthropic then wrapped"), "astream_chat")
    thought = "".join(r.additional_kwargs.get("thinking_delta", "") for r in responses)
    assert thought == "The sign says so."
    message: ChatMessage = responses[-1].message
    thinking, text = message.blocks
    assert isinstance(thinking, ThinkingBlock)
    assert (thinking.content, text) == (thought, TextBlock(text="Seven."))
    assert thinking.additional_information, "Anthropic's signature, to be sent back to Anthropic alone"
    assert message.additional_kwargs["fallback_origin"]["provider"] == "anthropic"
