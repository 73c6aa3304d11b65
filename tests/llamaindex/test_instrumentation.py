"""What observers see of engines and agents when nobody answers, and of wrapped LLMs that tell of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span_handlers import SimpleSpanHandler

from llamaindex_fallback import FallbackLLM, testing
from llamaindex_fallback.provider import INNER_TAG
from llamaindex_fallback.testing import SCENARIOS, read_and_answer
from shared_core import AllTargetsFailed
from shared_core.testing import FaultServer
from tests.llamaindex.scenarios import MIXES, MODELS, PAIRS, Cell
from tests.llamaindex.world import FACES, NO_RETRY, Events, native

FAILING = {
    "query": "predict",
    "query, async": "apredict",
    "query, streamed": "stream",
    "query, async, streamed": "astream",
    "query with output_cls": "structured_predict",
    "chat engine: context": "chat",
    "FunctionAgent": "astream_chat_with_tools",
    "FunctionAgent, whole": "achat_with_tools",
    "structured_predict, streamed": "stream_structured_predict",
    "structured_predict, async, streamed": "astream_structured_predict",
    "router: PydanticSingleSelector": "predict_and_call",
}
"""Scenarios by the way in which LlamaIndex calls the LLM in them."""


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[FaultServer]:
    with FaultServer(default=503) as running:
        yield running


@contextmanager
def observed(llm: FallbackLLM) -> Iterator[tuple[Events, LlamaDebugHandler, SimpleSpanHandler]]:
    """Everything that LlamaIndex tells its observers."""
    debug, spans, theirs = LlamaDebugHandler(print_trace_on_end=False), SimpleSpanHandler(), Settings.callback_manager
    llm.callback_manager = Settings.callback_manager = CallbackManager([debug])
    testing._index.cache_clear()  # an index keeps the manager of the time when it was made
    get_dispatcher().add_span_handler(spans)
    try:
        with Events() as events:
            yield events, debug, spans
    finally:
        get_dispatcher().span_handlers.remove(spans)
        Settings.callback_manager = theirs
        testing._index.cache_clear()


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize(("pair", "mix"), zip(PAIRS, [*MIXES, *MIXES], strict=False), ids=str)
async def test_when_nobody_answers_each_call_ends_in_its_error(stage, pair, mix, name):
    """No end without an answer; the error in the legacy event, in the span that is dropped, and to streams' readers."""
    cell = Cell(*pair, mix, "answers 503")
    llm = cell.llm(stage)
    stage.clear()
    with observed(llm) as (events, debug, spans):
        with pytest.raises(Exception) as caught:  # an agent's workflow may put the error into one of its own
            await SCENARIOS[name].arun(llm)
        await llm.aclose()
    assert "none of the 2 targets" in str(caught.value).lower() or isinstance(caught.value, AllTargetsFailed)
    served = Counter(seen.model for seen in stage.requests)
    calls = served[MODELS[cell.primary]]
    assert served == dict.fromkeys((MODELS[cell.primary], MODELS[cell.fallback]), calls)
    told = Counter(events.names())
    assert (
        sum(count for event, count in told.items() if event.endswith(("ChatStartEvent", "CompletionStartEvent")))
        == calls
    )
    assert not [event for event in told if event.endswith(("ChatEndEvent", "CompletionEndEvent", "InProgressEvent"))]
    pairs = debug.get_event_pairs(CBEventType.LLM)
    errors = [pair[-1].payload[EventPayload.EXCEPTION] for pair in pairs]
    assert len(errors) == calls
    assert all(isinstance(error, AllTargetsFailed) for error in errors)
    ours = [span for span in (*spans.dropped_spans, *spans.completed_spans) if span.id_.startswith("FallbackLLM.")]
    assert [span for span in ours if "chat" in span.id_ or "complete" in span.id_], "a span for the call"
    assert events.count("ExceptionEvent") == calls
    names = {span.id_.partition("-")[0] for span in (*spans.dropped_spans, *spans.completed_spans)}
    asked = {name.partition(".")[0] for name in names if name.partition(".")[2] in FACES} - {"ContextChatEngine"}
    assert asked == {"FallbackLLM"}, "what is wrapped tells nothing of itself"


class Talkative(CustomLLM):
    """Its `chat` calls its `complete`, which is decorated: LlamaIndex tells of it however it is called."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="talkative", context_window=8_000, num_output=200)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=testing.TEXTS[0], raw={"usage": {"prompt_tokens": 40, "completion_tokens": 8}})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def responses() -> Iterator[CompletionResponse]:
            yield self.complete(prompt).model_copy(update={"delta": testing.TEXTS[0]})

        return responses()


@pytest.mark.parametrize("name", ["query", "query, async", "query, streamed", "query, async, streamed", "refine"])
async def test_what_an_llm_tells_of_itself_is_marked(stage, name):
    """Whoever counts events without the mark counts each call once."""
    llm = FallbackLLM([native(stage, MODELS["openai"]), Talkative()], retry=NO_RETRY)
    with observed(llm) as (events, debug, _):
        await SCENARIOS["query" if name == "refine" else name].arun(llm)
        if name == "refine":
            await SCENARIOS["query"].arun(llm)
    calls = 2 if name == "refine" else 1
    ends = [e for e in events.seen if type(e).__name__ in ("LLMChatEndEvent", "LLMCompletionEndEvent")]
    inner = [event for event in ends if INNER_TAG in event.tags]
    outer = [event for event in ends if INNER_TAG not in event.tags]
    assert len(outer) == calls
    assert inner, "it told of itself"
    assert all(event.tags[INNER_TAG].endswith("talkative") for event in inner)
    assert sum(event.response.raw["usage"]["prompt_tokens"] for event in outer) == 40 * calls
    assert len(debug.get_event_pairs(CBEventType.LLM)) == calls
    await llm.aclose()


@pytest.mark.parametrize("mix", MIXES)
async def test_one_span_per_call_within_the_span_of_its_engine(mix):
    """Traces have one node for the LLM, under what asked for it."""
    with FaultServer(default=read_and_answer) as running:
        cell = Cell("openai", "anthropic", mix, "answers 503")
        running.script(MODELS["openai"], 503)
        llm = cell.llm(running)
        with observed(llm) as (_, _, spans):
            await SCENARIOS["query, async"].arun(llm)
        await llm.aclose()
    by_id = {span.id_: span for span in spans.completed_spans}
    calls = [span for span in by_id.values() if span.id_.startswith("FallbackLLM.") and "chat" in span.id_]
    assert len(calls) == 1
    parents, span = [], calls[0]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        parents.append(span.id_.partition("-")[0])
    assert "FallbackLLM.apredict" in parents
    assert parents[-1].startswith("RetrieverQueryEngine")
