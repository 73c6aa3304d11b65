"""Checks that any LlamaIndex LLM works where LlamaIndex uses LLMs: engines, agents, extractors, structured answers.

LlamaIndex publishes no such suite. `check_llm` plays every scenario and tells what failed; with pytest, make each a
test of its own:

    @pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=str)
    def test_my_llm(scenario):
        scenario.run(MyLLM())

The documents are four sentences about a café, so any model of today can answer. To do without a model, point the LLM
at ``FaultServer(default=read_and_answer)``: a scripted model that answers from what it is asked, on the wires of
OpenAI, Anthropic and Gemini. A scenario's outcome is plain data, so two runs can be compared: with all vendors up, and
with one of them down.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import math
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

from llama_index.core import Document, PromptTemplate, VectorStoreIndex, get_response_synthesizer
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.base_selector import BaseSelector
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, ImageBlock, TextBlock
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.extractors import (
    DocumentContextExtractor,
    KeywordExtractor,
    PydanticProgramExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.graph_stores.types import KG_NODES_KEY, KG_RELATIONS_KEY
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.indices.property_graph import (
    DynamicLLMPathExtractor,
    SchemaLLMPathExtractor,
    SimpleLLMPathExtractor,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor import LLMRerank, StructuredLLMRerank
from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import FunctionTool, QueryEngineTool
from pydantic import BaseModel, Field

from llamaindex_fallback._scripted import UNKNOWN, read_and_answer

__all__ = ["SCENARIOS", "UNKNOWN", "LLMContractBroken", "Scenario", "check_llm", "read_and_answer"]

Play = Callable[[LLM], Any]


class LLMContractBroken(AssertionError):
    """An LLM does not work in LlamaIndex. `failures` tells the scenario's name and what came of it."""

    def __init__(self, failures: Mapping[str, Exception]) -> None:
        told = "".join(f"\n  - {name}: {type(error).__name__}: {error}" for name, error in failures.items())
        super().__init__(f"{len(failures)} of the scenarios fail:{told}")
        self.failures = dict(failures)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way in which LlamaIndex uses an LLM."""

    name: str
    what: str
    """One sentence."""
    play: Play
    """A function of the LLM, or a coroutine function; it raises `AssertionError` where the outcome is wrong."""
    is_async: bool
    tools: bool
    """Whether the LLM has to be a `FunctionCallingLLM`."""

    def run(self, llm: LLM) -> Any:
        """Play it; an async scenario in an event loop of its own. Call it outside of a running loop.

        Returns:
            What the caller of LlamaIndex would have got, as plain data.

        Raises:
            AssertionError: that is wrong.
        """
        return asyncio.run(self.arun(llm)) if self.is_async else self.play(llm)

    async def arun(self, llm: LLM) -> Any:
        """The same inside a running loop, which a scenario that is not async blocks."""
        return await cast(Awaitable[Any], self.play(llm)) if self.is_async else self.play(llm)

    def __str__(self) -> str:
        return self.name


_scenarios: dict[str, Scenario] = {}
SCENARIOS: Mapping[str, Scenario] = _scenarios
"""By name."""


def check_llm(make_llm: Callable[[], LLM], *, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Play the scenarios, each with an LLM of its own, the async ones all in one event loop.

    Call it outside of a running loop. It makes some 120 calls, so point the LLM at something that costs little.

    Args:
        make_llm: called for each scenario; it may return the same LLM every time.
        only: names of scenarios; all of `SCENARIOS` when left out. Those that need tools are left out for an LLM whose
            metadata says that it has none.

    Returns:
        The outcome of each.

    Raises:
        LLMContractBroken: naming every scenario that failed.
        KeyError: there is no scenario of that name.
    """
    outcomes: dict[str, Any] = {}
    failures: dict[str, Exception] = {}
    with asyncio.Runner() as runner:
        for name in SCENARIOS if only is None else only:
            scenario, llm = SCENARIOS[name], make_llm()
            if scenario.tools and only is None and not llm.metadata.is_function_calling_model:
                continue
            try:
                outcomes[name] = runner.run(scenario.arun(llm)) if scenario.is_async else scenario.run(llm)
            except Exception as error:  # noqa: BLE001  # whatever it raises is the finding
                failures[name] = error
    if failures:
        raise LLMContractBroken(failures)
    return outcomes


def _scenario(name: str, *, tools: bool = False) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        what = " ".join((play.__doc__ or "").split())
        _scenarios[name] = Scenario(name, what, play, inspect.iscoroutinefunction(play), tools)
        return play

    return add


# ── the world of the scenarios ───────────────────────────────────────────────────────────────────────────────────────

TEXTS = (
    "The café opens at seven. The café closes at nine.",
    "Refunds are paid within five working days.",
    "Parcels are brought by the carrier BlueKite within three days.",
)
OPENS = "When does the café open?"
SEVEN = ("seven", "7")
FIVE = ("five", "5")


class Hours(BaseModel):
    """When a place is open, on the clock."""

    opens: int = Field(description="the hour at which it opens")
    closes: int = Field(description="the hour at which it closes")


class Results(BaseModel):
    """What came out."""

    add: int = Field(description="what the addition gave")
    multiply: int = Field(description="what the multiplication gave")


class _Words(BaseEmbedding):
    """An embedding without a model: texts that share words are near each other."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [1e-3] * 256
        for word in re.findall(r"[^\W_]{4,}", text.lower()):
            counts[zlib.crc32(word.removesuffix("s")[:5].encode()) % 256] += 1.0
        length = math.hypot(*counts)
        return [count / length for count in counts]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@lru_cache(maxsize=1)
def _index() -> VectorStoreIndex:
    documents = [Document(text=text, doc_id=str(number)) for number, text in enumerate(TEXTS)]
    return VectorStoreIndex.from_documents(documents, embed_model=_Words())


def _nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=str(number)), score=0.5) for number, text in enumerate(TEXTS)]


def _text(text: object, *wanted: Sequence[str]) -> str:
    """`text`, which must say one of each group of words."""
    told = str(text)
    for words in wanted:
        assert any(word in told.lower() for word in words), f"none of {words} is in {told!r}"
    return told


def _joined(pieces: Sequence[str], whole: str) -> str:
    """What was streamed, which must be the whole."""
    assert "".join(pieces) == whole, f"streamed {''.join(pieces)!r}, and {whole!r} at the end"
    return whole


def _streamed(responses: Sequence[ChatResponse] | Sequence[CompletionResponse]) -> str:
    """The text of a stream: the pieces joined, and what every response says has come so far."""
    told = ""
    for response in responses:
        told += response.delta or ""
        so_far = response.text if isinstance(response, CompletionResponse) else response.message.content or ""
        assert so_far == told, f"a response says {so_far!r} after {told!r} has been streamed"
    return told


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


def multiply(x: int, y: int) -> int:
    """Multiply two numbers."""
    return x * y


SUMS = "Add 2 and 3, and multiply 4 and 5."


def _tools() -> list[Any]:
    return [FunctionTool.from_defaults(add), FunctionTool.from_defaults(multiply)]


# ── the faces ────────────────────────────────────────────────────────────────────────────────────────────────────────

_ASKED = f"{TEXTS[0]} {OPENS}"


def _picture() -> bytes:
    """A red square, as a PNG."""
    side = 32

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    dots = zlib.compress((b"\0" + b"\xd0\x10\x10" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", dots) + chunk(b"IEND", b"")


def _shown() -> list[ChatMessage]:
    asked = TextBlock(text="What colour is the picture? Say it in one word.")
    return [ChatMessage(role="user", blocks=[asked, ImageBlock(image=_picture(), image_mimetype="image/png")])]


@_scenario("picture")
def _seen(llm: LLM) -> Any:
    """A picture in the prompt, whole and streamed."""
    told = [llm.chat(_shown()).message.content, _streamed(list(llm.stream_chat(_shown())))]
    return [_text(one, ("red",)) for one in told]


@_scenario("picture, async")
async def _aseen(llm: LLM) -> Any:
    """The same, async."""
    told = [(await llm.achat(_shown())).message.content]
    told.append(_streamed([response async for response in await llm.astream_chat(_shown())]))
    return [_text(one, ("red",)) for one in told]


@_scenario("faces")
def _faces(llm: LLM) -> Any:
    """chat, complete, and the streams of both: each response of a stream says all that has come so far."""
    messages = [ChatMessage(role="user", content=_ASKED)]
    told = [llm.chat(messages).message.content, llm.complete(_ASKED).text]
    told += [_streamed(list(llm.stream_chat(messages))), _streamed(list(llm.stream_complete(_ASKED)))]
    return [_text(one, SEVEN) for one in told]


@_scenario("faces, async")
async def _afaces(llm: LLM) -> Any:
    """The same four, async."""
    messages = [ChatMessage(role="user", content=_ASKED)]
    told = [(await llm.achat(messages)).message.content, (await llm.acomplete(_ASKED)).text]
    told.append(_streamed([response async for response in await llm.astream_chat(messages)]))
    told.append(_streamed([response async for response in await llm.astream_complete(_ASKED)]))
    return [_text(one, SEVEN) for one in told]


# ── retrieval ────────────────────────────────────────────────────────────────────────────────────────────────────────


@_scenario("query")
def _query(llm: LLM) -> Any:
    """A query over a `VectorStoreIndex`."""
    return _text(_index().as_query_engine(llm=llm).query(OPENS), SEVEN)


@_scenario("query, async")
async def _aquery(llm: LLM) -> Any:
    """The same, async."""
    return _text(await _index().as_query_engine(llm=llm).aquery(OPENS), SEVEN)


@_scenario("query, streamed")
def _query_streamed(llm: LLM) -> Any:
    """The same, as it comes."""
    response: Any = _index().as_query_engine(llm=llm, streaming=True).query(OPENS)
    return _text("".join(response.response_gen), SEVEN)


@_scenario("query, async, streamed")
async def _aquery_streamed(llm: LLM) -> Any:
    """The same, async and as it comes."""
    response: Any = await _index().as_query_engine(llm=llm, streaming=True, use_async=True).aquery(OPENS)
    return _text("".join([piece async for piece in response.async_response_gen()]), SEVEN)


def _small() -> PromptHelper:
    """Prompts so small that not everything fits into one."""
    return PromptHelper(context_window=172, num_output=10, chunk_overlap_ratio=0.0)


def _synthesised(llm: LLM, mode: str, **options: Any) -> Any:
    return get_response_synthesizer(llm=llm, response_mode=cast(Any, mode), **options)


_TWO = "When does the café open, and how soon are refunds paid?"


@_scenario("compact")
def _compact(llm: LLM) -> Any:
    """What was retrieved in as few prompts as it takes."""
    return _text(_synthesised(llm, "compact").synthesize(_TWO, _nodes()), SEVEN, FIVE)


@_scenario("refine")
def _refine(llm: LLM) -> Any:
    """One prompt for each node: an answer that is made better step by step."""
    return _text(_synthesised(llm, "refine").synthesize(_TWO, _nodes()), SEVEN, FIVE)


@_scenario("refine, async")
async def _arefine(llm: LLM) -> Any:
    """The same, async."""
    return _text(await _synthesised(llm, "refine").asynthesize(_TWO, _nodes()), SEVEN, FIVE)


@_scenario("refine, streamed")
def _refine_streamed(llm: LLM) -> Any:
    """The same, the last step as it comes."""
    response = _synthesised(llm, "refine", streaming=True).synthesize(_TWO, _nodes())
    return _text("".join(response.response_gen), SEVEN, FIVE)


@_scenario("tree_summarize")
def _tree(llm: LLM) -> Any:
    """Summaries of summaries, in prompts too small for everything."""
    return _text(_synthesised(llm, "tree_summarize", prompt_helper=_small()).synthesize(_TWO, _nodes()), SEVEN, FIVE)


@_scenario("tree_summarize, async")
async def _atree(llm: LLM) -> Any:
    """The same, several calls at a time."""
    engine = _synthesised(llm, "tree_summarize", prompt_helper=_small(), use_async=True)
    return _text(await engine.asynthesize(_TWO, _nodes()), SEVEN, FIVE)


@_scenario("query with output_cls")
def _query_shaped(llm: LLM) -> Any:
    """A query that answers with an object."""
    response = _synthesised(llm, "compact", output_cls=Hours).synthesize(OPENS, _nodes())
    return _hours(response.response)


@_scenario("query with output_cls, async")
async def _aquery_shaped(llm: LLM) -> Any:
    """The same, async, over a tree."""
    response = await _synthesised(llm, "tree_summarize", output_cls=Hours).asynthesize(OPENS, _nodes())
    return _hours(response.response)


def _hours(value: Any) -> Any:
    """Seven to nine, as data. Nine in the evening is 21."""
    told = Hours.model_validate(value, from_attributes=True)
    assert (told.opens, told.closes % 12) == (7, 9), f"not seven to nine: {told!r}"
    return told.model_dump()


# ── chat engines ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _history(engine: Any) -> Any:
    told = [(message.role.value, message.content) for message in engine.chat_history]
    assert [role for role, _ in told] == ["user", "assistant"] * (len(told) // 2), told
    return told


def _talked(llm: LLM, mode: str) -> Any:
    engine: Any = _index().as_chat_engine(chat_mode=cast(Any, mode), llm=llm)
    _text(engine.chat(OPENS), SEVEN)
    _text("".join(engine.stream_chat("And when does it close?").response_gen), ("nine", "9"))
    return _history(engine)


async def _atalked(llm: LLM, mode: str) -> Any:
    engine: Any = _index().as_chat_engine(chat_mode=cast(Any, mode), llm=llm)
    _text(await engine.achat(OPENS), SEVEN)
    response = await engine.astream_chat("And when does it close?")
    _text("".join([piece async for piece in response.async_response_gen()]), ("nine", "9"))
    return _history(engine)


@_scenario("chat engine: context")
def _context(llm: LLM) -> Any:
    """Two turns with what was retrieved for each, the second streamed."""
    return _talked(llm, "context")


@_scenario("chat engine: context, async")
async def _acontext(llm: LLM) -> Any:
    """The same, async."""
    return await _atalked(llm, "context")


@_scenario("chat engine: condense_plus_context")
def _condense(llm: LLM) -> Any:
    """Two turns, the second condensed into a question of its own and then streamed."""
    return _talked(llm, "condense_plus_context")


@_scenario("chat engine: condense_plus_context, async")
async def _acondense(llm: LLM) -> Any:
    """The same, async."""
    return await _atalked(llm, "condense_plus_context")


@_scenario("chat engine: condense_question")
def _condense_question(llm: LLM) -> Any:
    """Two turns, each condensed into a question of its own for a query engine."""
    engine = CondenseQuestionChatEngine.from_defaults(_index().as_query_engine(llm=llm), llm=llm)
    _text(engine.chat(OPENS), SEVEN)
    _text(engine.chat("And when does it close?"), ("nine", "9"))
    return _history(engine)


# ── routers, sub-questions ───────────────────────────────────────────────────────────────────────────────────────────

_ABOUT = {"hours": "When the café opens and closes.", "money": "How refunds are paid back."}


def _engines(llm: LLM) -> list[QueryEngineTool]:
    engine = _index().as_query_engine(llm=llm, similarity_top_k=3)
    return [QueryEngineTool.from_defaults(engine, name=name, description=what) for name, what in _ABOUT.items()]


def _routed(llm: LLM, selector: BaseSelector) -> Any:
    engine = RouterQueryEngine.from_defaults(_engines(llm), llm=llm, selector=selector)
    response = engine.query("How soon are refunds paid?")
    chosen = (response.metadata or {})["selector_result"]
    assert chosen.inds == [1], f"chosen: {chosen!r}"
    return [chosen.model_dump(), _text(response, FIVE)]


@_scenario("router: LLMSingleSelector")
def _router(llm: LLM) -> Any:
    """A query engine chosen by the LLM, in words."""
    return _routed(llm, LLMSingleSelector.from_defaults(llm=llm))


@_scenario("router: PydanticSingleSelector", tools=True)
def _router_shaped(llm: LLM) -> Any:
    """The same, by a tool call."""
    return _routed(llm, PydanticSingleSelector.from_defaults(llm=cast(Any, llm)))


def _sub_questions(llm: LLM, *, use_async: bool) -> SubQuestionQueryEngine:
    return SubQuestionQueryEngine.from_defaults(
        _engines(llm),
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        response_synthesizer=get_response_synthesizer(llm=llm),
        verbose=False,
        use_async=use_async,
    )


@_scenario("sub-questions")
def _divided(llm: LLM) -> Any:
    """A question taken apart, each part asked of its own engine, the answers put together."""
    return _text(_sub_questions(llm, use_async=False).query(_TWO), SEVEN, FIVE)


@_scenario("sub-questions, async")
async def _adivided(llm: LLM) -> Any:
    """The same, the parts at the same time."""
    return _text(await _sub_questions(llm, use_async=True).aquery(_TWO), SEVEN, FIVE)


# ── agents ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _ran(agent: Any, prompt: str = SUMS) -> tuple[AgentOutput, list[Any], str]:
    """The agent's output, its tools' results in the order of their names, and the text it streamed."""
    handler = agent.run(user_msg=prompt)
    results: list[Any] = []
    streamed = ""
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            results.append((event.tool_name, event.tool_output.raw_output))
        elif isinstance(event, AgentStream):
            streamed += event.delta
    output: AgentOutput = await handler
    return output, sorted(results, key=lambda result: str(result[0])), streamed


def _summed(output: AgentOutput, results: list[Any]) -> Any:
    assert results == [("add", 5), ("multiply", 20)], f"each tool runs once: {results}"
    return [_text(output.response.content, ("5", "five"), ("20", "twenty")), results]


@_scenario("FunctionAgent", tools=True)
async def _agent(llm: LLM) -> Any:
    """Two tools, each run once, and an answer from their results; all of it streamed."""
    output, results, streamed = await _ran(FunctionAgent(llm=llm, tools=_tools()))
    assert (output.response.content or "") in streamed, f"streamed: {streamed!r}"
    return _summed(output, results)


@_scenario("FunctionAgent, whole", tools=True)
async def _agent_whole(llm: LLM) -> Any:
    """The same, not streamed."""
    output, results, _ = await _ran(FunctionAgent(llm=llm, tools=_tools(), streaming=False))
    return _summed(output, results)


@_scenario("FunctionAgent, one call at a time", tools=True)
async def _agent_in_turn(llm: LLM) -> Any:
    """The same, where parallel calls are not allowed: one in each step."""
    agent: Any = FunctionAgent(llm=llm, tools=_tools(), allow_parallel_tool_calls=False, streaming=False)
    handler = agent.run(user_msg=SUMS)
    steps = [len(event.tool_calls) async for event in handler.stream_events() if isinstance(event, AgentOutput)]
    assert steps == [1, 1, 0], f"calls in each step: {steps}"
    output: AgentOutput = await handler
    return _text(output.response.content, ("5", "five"), ("20", "twenty"))


@_scenario("FunctionAgent with output_cls", tools=True)
async def _agent_shaped(llm: LLM) -> Any:
    """An agent that ends in an object."""
    output, results, _ = await _ran(FunctionAgent(llm=llm, tools=_tools(), output_cls=Results))
    told = Results.model_validate(output.structured_response)
    assert (told.add, told.multiply) == (5, 20), f"not what the tools gave: {told!r}"
    return [*_summed(output, results), told.model_dump()]


@_scenario("AgentWorkflow", tools=True)
async def _workflow(llm: LLM) -> Any:
    """One agent hands over to another, which has the tools."""
    greeter = FunctionAgent(name="greeter", description="Greets people.", llm=llm, can_handoff_to=["calculator"])
    calculator = FunctionAgent(
        name="calculator", description="Can add and multiply.", llm=llm, tools=_tools(), can_handoff_to=["greeter"]
    )
    output, results, _ = await _ran(AgentWorkflow(agents=[greeter, calculator], root_agent="greeter"))
    handed = [result for result in results if result[0] == "handoff"]
    assert len(handed) == 1, f"handed over once: {results}"
    assert output.current_agent_name == "calculator"
    return _summed(output, [result for result in results if result[0] != "handoff"])


@_scenario("ReActAgent")
async def _react(llm: LLM) -> Any:
    """Thoughts and actions in words, streamed."""
    output, results, _ = await _ran(ReActAgent(llm=llm, tools=_tools()))
    return _summed(output, results)


@_scenario("ReActAgent, whole")
async def _react_whole(llm: LLM) -> Any:
    """The same, not streamed."""
    output, results, _ = await _ran(ReActAgent(llm=llm, tools=_tools(), streaming=False))
    return _summed(output, results)


@_scenario("predict_and_call", tools=True)
def _called(llm: LLM) -> Any:
    """The shortest way to a tool."""
    return _text(llm.predict_and_call(_tools(), user_msg="Add 2 and 3."), ("5",))


_ALLOWED = (
    ast.Module, ast.Expr, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Call, ast.keyword, ast.Constant, ast.BinOp,
    ast.Add, ast.Mult, ast.JoinedStr, ast.FormattedValue,
)  # fmt: skip
"""All that a model's code may consist of here: sums, names, calls of what it was given. No attributes, no imports."""


async def _executed(code: str) -> str:
    """Run code that only calculates and prints, and return what it printed."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            return f"Not run: {type(node).__name__} is not allowed here. Only call the functions and print."
    printed: list[str] = []
    names = {"add": add, "multiply": multiply, "str": str}
    names["print"] = lambda *told: printed.append(" ".join(map(str, told)))
    try:
        exec(compile(tree, "answer", "exec"), {"__builtins__": {}, **names})  # of the kinds above alone
    except Exception as error:  # noqa: BLE001  # the model is told, as by an interpreter
        return f"{type(error).__name__}: {error}"
    return "\n".join(printed)


async def _coded(llm: LLM, *, streaming: bool) -> Any:
    agent = CodeActAgent(code_execute_fn=_executed, llm=llm, tools=[add, multiply], streaming=streaming)
    output, results, streamed = await _ran(agent)
    assert results, "no code was run"
    assert not streaming or (output.response.content or "") in streamed, f"streamed: {streamed!r}"
    return _text(output.response.content, ("5", "five"), ("20", "twenty"))


@_scenario("CodeActAgent")
async def _code(llm: LLM) -> Any:
    """Code in words, run where it can only calculate, and an answer from what it printed; streamed."""
    return await _coded(llm, streaming=True)


@_scenario("CodeActAgent, whole")
async def _code_whole(llm: LLM) -> Any:
    """The same, not streamed."""
    return await _coded(llm, streaming=False)


# ── structured answers ───────────────────────────────────────────────────────────────────────────────────────────────


def _prompt() -> PromptTemplate:
    """One for each scenario: LlamaIndex's programs leave their output parser in the prompt they are given."""
    return PromptTemplate("{text} When does it open, and when does it close?")


def _last(objects: Sequence[Any]) -> Any:
    assert objects, "nothing was streamed"
    return _hours(objects[-1])


@_scenario("structured_predict")
def _predicted(llm: LLM) -> Any:
    """An object."""
    return _hours(llm.structured_predict(Hours, _prompt(), text=TEXTS[0]))


@_scenario("structured_predict, async")
async def _apredicted(llm: LLM) -> Any:
    """The same, async."""
    return _hours(await llm.astructured_predict(Hours, _prompt(), text=TEXTS[0]))


@_scenario("structured_predict, streamed")
def _predicted_streamed(llm: LLM) -> Any:
    """An object that grows; the last one is whole."""
    return _last(list(llm.stream_structured_predict(Hours, _prompt(), text=TEXTS[0])))


@_scenario("structured_predict, async, streamed")
async def _apredicted_streamed(llm: LLM) -> Any:
    """The same, async."""
    objects = await llm.astream_structured_predict(Hours, _prompt(), text=TEXTS[0])
    return _last([one async for one in objects])


@_scenario("as_structured_llm, async, streamed")
async def _astructured(llm: LLM) -> Any:
    """An LLM that always answers with an object, which grows."""
    message = ChatMessage(role="user", content=f"{TEXTS[0]} When does it open and close?")
    return _last([one.raw async for one in await llm.as_structured_llm(Hours).astream_chat([message])])


@_scenario("as_structured_llm")
def _structured(llm: LLM) -> Any:
    """An LLM that always answers with an object."""
    message = ChatMessage(role="user", content=f"{TEXTS[0]} When does it open and close?")
    return _hours(llm.as_structured_llm(Hours).chat([message]).raw)


# ── pipelines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _nodes_of_documents() -> list[TextNode]:
    source = NodeRelationship.SOURCE
    return [
        TextNode(text=text, id_=str(number), relationships={source: RelatedNodeInfo(node_id=f"document {number}")})
        for number, text in enumerate(TEXTS)
    ]


async def _extracted(extractor: Any, key: str) -> Any:
    nodes = _nodes_of_documents()
    told = [facts[key] for facts in await extractor.aextract(nodes)]
    assert [bool(one) for one in told] == [True] * len(TEXTS), f"something for every node: {told}"
    return told


@_scenario("TitleExtractor")
async def _titles(llm: LLM) -> Any:
    """A title for each document, from titles of its parts."""
    return await _extracted(TitleExtractor(llm=llm, show_progress=False), "document_title")


@_scenario("KeywordExtractor")
async def _keywords(llm: LLM) -> Any:
    """Keywords, separated by commas."""
    told = await _extracted(KeywordExtractor(llm=llm, keywords=3, show_progress=False), "excerpt_keywords")
    assert all("," in one for one in told), told
    return told


@_scenario("QuestionsAnsweredExtractor")
async def _questions(llm: LLM) -> Any:
    """Questions that a text answers."""
    extractor = QuestionsAnsweredExtractor(llm=llm, questions=1, show_progress=False)
    told = await _extracted(extractor, "questions_this_excerpt_can_answer")
    assert all("?" in one for one in told), told
    return told


@_scenario("SummaryExtractor")
async def _summaries(llm: LLM) -> Any:
    """A summary of each text."""
    return await _extracted(SummaryExtractor(llm=llm, show_progress=False), "section_summary")


@_scenario("DocumentContextExtractor")
async def _situated(llm: LLM) -> Any:
    """Where each text stands in its document."""
    store = SimpleDocumentStore()
    store.add_documents([Document(text="\n".join(TEXTS), id_=f"document {number}") for number in range(len(TEXTS))])
    extractor = DocumentContextExtractor(docstore=store, llm=llm, show_progress=False)
    return await _extracted(extractor, "context")


@_scenario("PydanticProgramExtractor", tools=True)
async def _programmed(llm: LLM) -> Any:
    """An object for a text, as its metadata."""
    program: Any = get_program_for_llm(Hours, PromptTemplate("{input}"), llm)
    extractor: Any = PydanticProgramExtractor(program=program, show_progress=False)
    (told,) = await extractor.aextract(_nodes_of_documents()[:1])
    return _hours(told)


async def _pathed(extractor: Any) -> Any:
    """The relations of the first text's graph."""
    (node,) = await extractor.acall(_nodes_of_documents()[:1])
    names = {entity.id: entity.name for entity in node.metadata[KG_NODES_KEY]}
    told = [(names[r.source_id], r.label, names[r.target_id]) for r in node.metadata[KG_RELATIONS_KEY]]
    assert told, "no path was found"
    _text(told, ("caf",))
    return told


@_scenario("SimpleLLMPathExtractor")
async def _simple_paths(llm: LLM) -> Any:
    """A graph of what a text says, in words."""
    return await _pathed(SimpleLLMPathExtractor(llm=llm, raise_on_error=True))


@_scenario("DynamicLLMPathExtractor")
async def _dynamic_paths(llm: LLM) -> Any:
    """The same with types that the LLM thinks of, in words that are JSON."""
    return await _pathed(DynamicLLMPathExtractor(llm=llm))


@_scenario("SchemaLLMPathExtractor")
async def _schema_paths(llm: LLM) -> Any:
    """The same with types that are given, as an object."""
    extractor = SchemaLLMPathExtractor(
        llm=llm,
        possible_entities=cast(Any, Literal["THING"]),
        possible_relations=cast(Any, Literal["OPENS_AT", "CLOSES_AT"]),
        kg_validation_schema=[("THING", "OPENS_AT", "THING"), ("THING", "CLOSES_AT", "THING")],
        raise_on_error=True,
    )
    return await _pathed(extractor)


def _ranked(nodes: Sequence[NodeWithScore]) -> Any:
    assert nodes, "no node is left"
    _text(nodes[0].node.get_content(), FIVE)
    return [(node.node.node_id, node.score) for node in nodes]


@_scenario("LLMRerank")
def _rerank(llm: LLM) -> Any:
    """Nodes put in order by the LLM."""
    query = QueryBundle("How soon are refunds paid?")
    return _ranked(LLMRerank(llm=llm, top_n=2).postprocess_nodes(_nodes(), query))


@_scenario("LLMRerank, async")
async def _arerank(llm: LLM) -> Any:
    """The same in batches, async."""
    query = QueryBundle("How soon are refunds paid?")
    reranker = LLMRerank(llm=llm, top_n=2, choice_batch_size=2)
    return _ranked(await reranker.apostprocess_nodes(_nodes(), query))


@_scenario("StructuredLLMRerank")
def _rerank_shaped(llm: LLM) -> Any:
    """The same, by an object."""
    query = QueryBundle("How soon are refunds paid?")
    return _ranked(StructuredLLMRerank(llm=llm, top_n=2).postprocess_nodes(_nodes(), query))


@_scenario("RankGPTRerank")
def _rank_gpt(llm: LLM) -> Any:
    """Nodes put in order in one long conversation."""
    query = QueryBundle("How soon are refunds paid?")
    return _ranked(RankGPTRerank(llm=llm, top_n=2).postprocess_nodes(_nodes(), query))
