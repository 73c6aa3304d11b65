"""Answers in a shape, over every wire: valid whoever gives them, shown their mistake once, never blank in a stream."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.base import SelectorPromptTemplate
from llama_index.core.selectors import PydanticSingleSelector
from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider, StructuredOutputFailed
from llamaindex_fallback.structured import _steps
from shared_core import AllTargetsFailed, ErrorKind, InvalidOutput, Router
from shared_core.chat.request import ChatRequest, OutputSchema, user
from shared_core.testing import Answer, ScriptedProvider, SeenRequest, ToolCall
from shared_core.testing.fault_server import cut
from tests.llamaindex.world import (
    KINDS,
    PRIMARY,
    SECONDARY,
    Events,
    WordHash,
    claude,
    fallback_llm,
    managed,
    names_of,
    native,
    script_all,
    wrapped,
)


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str
    laughs: int = Field(ge=0, default=0)


TOLD = Joke(setup="Why?", punchline="Because.", laughs=3)
BAD = {"setup": "Why?", "punchline": "Because.", "laughs": -1}
PROMPT = PromptTemplate("Tell a joke about {topic}.")
FACES = ("structured_predict", "astructured_predict", "stream_structured_predict", "astream_structured_predict")


def says(*values: Any) -> Callable[[SeenRequest], Answer]:
    """Answers `values` one after another, the last for ever: through the tool it is offered, else as text."""
    left = list(values)

    def model(request: SeenRequest) -> Answer:
        value = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(value, Answer):
            return value
        value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        if request.tools:
            return Answer("", tool_calls=[ToolCall(request.tools[0], value)])
        return Answer(value if isinstance(value, str) else json.dumps(value))

    return model


async def predicted(llm: Any, face: str, cls: Any = Joke, prompt: Any = PROMPT, **options: Any) -> list[Any]:
    """Every object of one prediction; of a whole one there is one."""
    answer = getattr(llm, face)(cls, prompt, **{"topic": "cats", **options})
    if not face.startswith("a"):
        return list(answer) if "stream" in face else [answer]
    answer = await answer
    return [one async for one in answer] if "stream" in face else [answer]


def how(request: SeenRequest) -> str:
    """How the model was asked: by schema, by a forced tool call, or in words."""
    body = request.body
    config = body.get("generationConfig", {})
    schema = body.get("response_format", {}).get("type") == "json_schema" or "output_config" in body
    if schema or "responseJsonSchema" in config:
        return "schema"
    choice = body.get("tool_choice") or body.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
    return "words" if choice in (None, "auto", "AUTO") else "tool"


LESSER: dict[str, Callable[[Any], list[Any]]] = {
    "tools alone": lambda server: [
        native(server, PRIMARY, capabilities={"json_schema": False}), native(server, SECONDARY)
    ],
    "text alone": lambda server: [
        native(server, PRIMARY, capabilities={"json_schema": False, "tools": False}), native(server, SECONDARY)
    ],
    "wrapped by tool": lambda server: [wrapped(server, "gpt-3.5-turbo"), native(server, SECONDARY)],
    "wrapped by tool then claude": lambda server: [
        wrapped(server, PRIMARY, pydantic_program_mode=PydanticProgramMode.FUNCTION), claude(server)
    ],
}  # fmt: skip
WAYS = dict.fromkeys(KINDS, ("schema", "schema")) | {
    "tools alone": ("tool", "schema"),
    "text alone": ("words", "schema"),
    "wrapped by tool": ("tool", "schema"),
    "wrapped by tool then claude": ("tool", "schema"),
}


def llm_of(server: Any, kind: str, **options: Any) -> FallbackLLM:
    return fallback_llm(server, kind if kind in KINDS else LESSER[kind](server), **options)


def both_say(server: Any, llm: FallbackLLM, first: Any, second: Any) -> None:
    one, two = (target.model.split(":")[-1] for target in llm.router.targets)
    server.script(one, [first])
    server.script(two, [second])


# ── every face, every way ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("state", ["healthy", "down"])
async def test_it_fills_the_model_whoever_answers(server, kind, face, state):
    """By the schema of the target that serves where all have one, by a forced tool call else, and in words at last."""
    llm = llm_of(server, kind)
    both_say(server, llm, says(TOLD) if state == "healthy" else 503, says(TOLD))
    objects = await predicted(llm, face)
    assert objects[-1] == TOLD
    assert type(objects[-1]) is Joke
    assert [how(r) for r in server.requests] == list(WAYS[kind][: len(server.requests)])
    assert len(server.requests) == (1 if state == "healthy" else 2)
    assert all(r.streamed == ("stream" in face) for r in server.requests)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("face", FACES)
async def test_a_wrong_answer_is_shown_its_mistake_once(server, kind, face):
    """The same target is asked again with what is wrong; a right answer then is nobody's outage."""
    llm = llm_of(server, kind)
    both_say(server, llm, says(BAD, TOLD), 503)
    assert (await predicted(llm, face))[-1] == TOLD
    first, again = server.requests
    assert first.model == again.model
    assert "laughs: Input should be greater than or equal to 0" in json.dumps(again.body)
    assert llm.router.health()[names_of(llm)[0]].available


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("face", FACES)
async def test_a_second_wrong_answer_goes_to_the_next_target(server, kind, face):
    """Two chances, then somebody else; the caller sees one object, a valid one."""
    llm = llm_of(server, kind)
    both_say(server, llm, says(BAD), says(TOLD))
    objects = await predicted(llm, face)
    assert objects[-1] == TOLD
    assert not any(getattr(one, "laughs", 0) == -1 for one in objects), "nothing invalid is ever shown"
    assert len(server.requests) == 3
    attempts = llm.router.last.metadata()["attempts"]
    assert [(a["target"], a.get("error_kind"), a.get("reask")) for a in attempts] == [
        (names_of(llm)[0], "invalid_output", None),
        (names_of(llm)[0], "invalid_output", True),
        (names_of(llm)[1], None, None),
    ]


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone", "text alone"])
@pytest.mark.parametrize("face", FACES)
async def test_when_nobody_gets_it_right_it_is_a_value_error(server, kind, face):
    """What LlamaIndex's own raises is one too; every answer is kept, and the targets are well."""
    llm = llm_of(server, kind)
    script_all(server, says(BAD))
    with pytest.raises(ValueError, match="laughs") as caught:
        await predicted(llm, face)
    error = caught.value
    assert isinstance(error, StructuredOutputFailed)
    assert isinstance(error, AllTargetsFailed)
    assert [type(e) for e in error.errors] == [InvalidOutput] * 4
    assert isinstance(error.__cause__, InvalidOutput)
    assert not error.is_retryable
    assert error.response is None
    assert error.fallback["attempts"][0]["error_kind"] == "invalid_output"
    assert all(h.available for h in llm.router.health())


@pytest.mark.parametrize("face", FACES)
async def test_an_outage_of_all_is_no_wrong_answer(server, face):
    """It is told as what it is, and may be tried again."""
    script_all(server, 503)
    with pytest.raises(AllTargetsFailed) as caught:
        await predicted(fallback_llm(server), face)
    assert not isinstance(caught.value, StructuredOutputFailed)
    assert caught.value.is_retryable
    assert caught.value.response is not None
    assert len(caught.value.errors) == 2


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone"])
@pytest.mark.parametrize("face", FACES)
async def test_a_refusal_is_no_object(server, kind, face):
    """It is not asked for again, since it is an answer; but nobody gets a blank object for one."""
    refused = Answer("I cannot joke about that.", finish="content_filter")
    script_all(server, refused)
    with pytest.raises(StructuredOutputFailed, match="refused: I cannot joke"):
        await predicted(fallback_llm(server, LESSER[kind](server) if kind in LESSER else kind), face)
    assert len(server.requests) == 1


async def test_an_answer_cut_off_at_its_limit_goes_to_the_next_target(server):
    """The same target would run into the same limit. One that is whole all the same is taken."""
    llm = fallback_llm(server)
    both_say(server, llm, Answer('{"setup": "Wh', finish="length"), says(TOLD))
    assert (await predicted(llm, "astructured_predict"))[-1] == TOLD
    assert len(server.requests) == 2
    assert "cut off" in llm.router.last.metadata()["attempts"][0]["error"]
    llm.router.reset()
    script_all(server, Answer(TOLD.model_dump_json(), finish="length"))
    assert (await predicted(llm, "astructured_predict"))[-1] == TOLD
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone", "wrapped by tool"])
@pytest.mark.parametrize("face", FACES[2:])
async def test_a_stream_that_breaks_shows_nothing_of_it(server, kind, face):
    """The next target answers from the start: half an object cannot be continued."""
    llm = llm_of(server, kind)
    both_say(server, llm, cut(after_words=2, answer=says(TOLD)), says(TOLD))
    objects = await predicted(llm, face)
    assert objects[-1] == TOLD
    assert len(server.requests) == 2


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Line(BaseModel):
    """One line."""

    text: str


class Poem(BaseModel):
    """A poem."""

    title: str
    lines: list[Line]
    author: str | None = None


POEM = Poem(title="Cats", lines=[Line(text="a"), Line(text="b"), Line(text="c")], author="me")


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("face", FACES[2:])
async def test_a_streamed_object_grows_and_is_never_blank(server, kind, face):
    """Member by member, lists item by item, however it was asked for; the last one is whole."""
    llm = llm_of(server, kind)
    script_all(server, says(POEM))
    server.script("gpt-3.5-turbo", [says(POEM)])
    objects = await predicted(llm, face, Poem)
    assert objects[0].title == "Cats"
    sizes = [len(getattr(one, "lines", None) or []) for one in objects]
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, 1, 2, 3}
    assert objects[-1] == POEM


members = st.dictionaries(
    st.text(min_size=1, max_size=4), st.integers() | st.lists(st.integers(), max_size=4), max_size=5
)


@given(members)
@settings(max_examples=60)
def test_steps_grow_to_the_whole(whole):
    """Each holds what the one before it held, none is empty, and none is all of it."""
    steps = list(_steps(whole))
    for one in steps:
        assert one
        assert one != whole
        for name, value in one.items():
            kept = whole[name]
            assert value == (kept[: len(value)] if isinstance(kept, list) else kept)
    sizes = [sum(len(v) if isinstance(v, list) else 1 for v in one.values()) for one in steps]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", ["native", "wrapped", "text alone"])
@pytest.mark.parametrize("face", FACES[2:])
async def test_unchecked_streams_come_as_they_are_written(server, kind, face):
    """`validate=False` is LlamaIndex's own way: live, and taken as it comes. Blank ones are left out all the same."""
    llm = llm_of(server, kind)
    script_all(server, Answer(json.dumps(BAD), every_s=0.002))
    objects = await predicted(llm, face, llm_kwargs={"validate": False})
    assert len(objects) > 2
    assert all(one.setup is not None for one in objects)
    assert objects[-1].laughs == -1
    assert not isinstance(objects[-1], Joke)
    assert len(server.requests) == 1


async def test_unchecked_streams_of_nothing_are_an_error(server):
    """Not a blank object."""
    script_all(server, Answer("No."))
    with pytest.raises(StructuredOutputFailed):
        await predicted(fallback_llm(server), "astream_structured_predict", llm_kwargs={"validate": False})


# ── classes, prompts, options ────────────────────────────────────────────────────────────────────────────────────────


class Kind(enum.Enum):
    """Kinds."""

    PUN = "pun"
    DRY = "dry"


class Node(BaseModel):
    """Refers to itself."""

    name: str
    children: list[Node] = Field(default_factory=list)


class Rich(BaseModel):
    """Everything that a class may hold."""

    kind: Kind
    told_at: dt.date
    poem: Poem
    tree: Node
    scores: dict[str, float]
    either: int | str
    perhaps: Joke | None = None
    nothing: None = None


FULL = Rich(
    kind=Kind.DRY,
    told_at=dt.date(2026, 1, 2),
    poem=POEM,
    tree=Node(name="a", children=[Node(name="b")]),
    scores={"x": 0.5},
    either="e",
)


@pytest.mark.parametrize("kind", ["native", "wrapped", "anthropic then wrapped", "google then native", "tools alone"])
@pytest.mark.parametrize("face", ["structured_predict", "astream_structured_predict"])
async def test_any_class_is_filled(server, kind, face):
    """Nested, recursive, optional, enums, dates, dictionaries and unions."""
    script_all(server, says(FULL))
    assert (await predicted(llm_of(server, kind), face, Rich))[-1] == FULL


T = TypeVar("T")


class Boxed(BaseModel, Generic[T]):
    """Its name has brackets in it, which no vendor takes."""

    value: T


def test_names_are_in_letters_that_every_vendor_takes(server):
    """Generic classes are called 'Boxed[int]'."""
    script_all(server, says({"value": 3}))
    for way in ("tools alone", "native"):
        assert llm_of(server, way).structured_predict(Boxed[int], PROMPT, topic="x").value == 3
    assert server.requests[0].tools == ("answer_in_schema",)
    assert server.requests[1].body["response_format"]["json_schema"]["name"] == "Boxed_int"


TEMPLATES = {
    "plain": PROMPT,
    "chat": ChatPromptTemplate(
        [ChatMessage(role="system", content="Be brief."), ChatMessage(content="About {topic}.")]
    ),
    "rich": RichPromptTemplate("{% chat role='user' %}About {{ topic }}.{% endchat %}"),
    "selector": SelectorPromptTemplate(PROMPT, [(lambda llm: llm.metadata.is_chat_model, PromptTemplate("{topic}!"))]),
    "partial": PromptTemplate("{a} about {topic}.").partial_format(a="Joke"),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("way", ["native", "text alone"])
def test_any_prompt_template_is_taken_and_left_alone(server, name, way):
    """LlamaIndex's own text program writes its parser into the prompt it is given."""
    prompt = TEMPLATES[name]
    script_all(server, says(TOLD))
    llm = llm_of(server, way, system_prompt="You are kind.")
    assert llm.structured_predict(Joke, prompt, topic="cats") == TOLD
    assert prompt.output_parser is None
    told = json.dumps(server.requests[0].body)
    assert "cats" in told
    assert "You are kind." in told


def test_braces_in_a_conversation_are_no_variables(server):
    """JSON in what is asked about stays as it is."""
    script_all(server, says(TOLD))
    said = 'Read {"setup": "{x}"} and {{y}}.'
    fallback_llm(server).as_structured_llm(Joke).chat([ChatMessage(content=said)])
    assert server.requests[0].prompt == said


def test_options_reach_the_wire_and_are_not_changed(server):
    """`llm_kwargs` are keywords of a call; what LlamaIndex's programs decide for themselves is decided here too."""
    script_all(server, says(TOLD))
    options = {
        "temperature": 0.1,
        "tools": [FunctionTool.from_defaults(add)],
        "tool_choice": "auto",
        "max_tokens": 77,
        "extra": {"openai": {"service_tier": "x"}},
    }
    before = dict(options)
    llm = fallback_llm(server, [native(server, SECONDARY)])
    assert llm.structured_predict(Joke, PROMPT, llm_kwargs=options, topic="cats") == TOLD
    body = server.requests[0].body
    assert (body["temperature"], body["service_tier"]) == (0.1, "x")
    assert "tools" not in body
    assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert options == before


@pytest.mark.parametrize(("mode", "way"), [("default", "schema"), ("function", "tool"), ("llm", "words")])
def test_llamaindexs_own_setting_chooses_the_way(server, mode, way):
    """`pydantic_program_mode`."""
    script_all(server, says(TOLD))
    llm = fallback_llm(server, [native(server, SECONDARY)], pydantic_program_mode=mode)
    assert llm.structured_predict(Joke, PROMPT, topic="cats") == TOLD
    assert how(server.requests[0]) == way


def test_a_fence_or_words_around_it_are_no_mistake(server):
    """Models that were only asked put some."""
    script_all(server, Answer(f"Sure!\n```json\n{TOLD.model_dump_json()}\n```"))
    assert llm_of(server, "text alone").structured_predict(Joke, PROMPT, topic="x") == TOLD
    assert len(server.requests) == 1


def test_strict_is_passed_on(server):
    """For schemas that OpenAI takes so; nobody is forced to it."""
    script_all(server, says(TOLD))
    llm = fallback_llm(server, [native(server, SECONDARY)])
    llm.structured_predict(Joke, PROMPT, llm_kwargs={"strict": True}, topic="x")
    llm.structured_predict(Joke, PROMPT, topic="x")
    sent = [r.body["response_format"]["json_schema"] for r in server.requests]
    assert [one.get("strict") for one in sent] == [True, None]


# ── who uses it ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["native", "wrapped", "anthropic then wrapped", "tools alone"])
async def test_a_structured_llm_answers_in_all_its_ways(server, kind):
    """chat, achat, complete, acomplete, streams."""
    structured = llm_of(server, kind).as_structured_llm(Joke)
    script_all(server, says(TOLD))
    asked = [ChatMessage(content="cats")]
    assert structured.chat(asked).raw == TOLD
    assert (await structured.achat(asked)).raw == TOLD
    assert structured.complete("cats").raw == TOLD
    assert (await structured.acomplete("cats")).raw == TOLD
    assert list(structured.stream_chat(asked))[-1].raw == TOLD
    assert [r async for r in await structured.astream_chat(asked)][-1].raw == TOLD


STRUCTURED = {
    "chat": lambda llm, asked: [llm.chat(asked)],
    "stream_chat": lambda llm, asked: list(llm.stream_chat(asked)),
    "complete": lambda llm, asked: [llm.complete(asked[0].content)],
}


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone"])
@pytest.mark.parametrize("face", STRUCTURED)
async def test_a_structured_llm_is_told_of_once_and_tells_who_served(server, kind, face):
    """One chain of events with the server's tokens; LlamaIndex's own sends a second, and counts again."""
    llm = llm_of(server, kind)
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    structured = llm.as_structured_llm(Joke)
    llm.callback_manager = structured.callback_manager = CallbackManager([counter])
    both_say(server, llm, 503, says(TOLD))
    with Events() as events:
        *_, last = STRUCTURED[face](structured, [ChatMessage(content="cats")])
    starts = [event for event in events.names() if event in ("LLMChatStartEvent", "LLMCompletionStartEvent")]
    assert starts == ["LLMChatStartEvent"]
    (counted,) = counter.llm_token_counts
    assert counted.total_token_count == last.additional_kwargs["total_tokens"]
    assert last.additional_kwargs["fallback"]["target"] == llm.router.targets[1].name
    llm.callback_manager = CallbackManager()


def test_a_structured_llm_with_observers_of_its_own_is_llamaindexs(server):
    """They hear of its calls by LlamaIndex's own class."""
    script_all(server, says(TOLD))
    debug = LlamaDebugHandler(print_trace_on_end=False)
    structured = fallback_llm(server).as_structured_llm(Joke, callback_manager=CallbackManager([debug]))
    assert structured.chat([ChatMessage(content="cats")]).raw == TOLD
    assert len(debug.get_llm_inputs_outputs()) == 1


@pytest.fixture(scope="module")
def index():
    documents = [Document(text="The café opens at seven."), Document(text="The cat stays until ten.")]
    return VectorStoreIndex.from_documents(documents, embed_model=WordHash())


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone", "text alone"])
async def test_a_query_may_answer_in_a_model(server, index, mode, kind):
    """output_cls of a query engine, the primary wrong twice."""
    llm = llm_of(server, kind)
    both_say(server, llm, says(BAD), says(TOLD))
    engine = index.as_query_engine(llm=llm, output_cls=Joke, response_mode=mode)
    assert engine.query("A joke?").response == TOLD
    llm.router.reset()
    assert (await engine.aquery("A joke?")).response == TOLD


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@pytest.mark.parametrize("kind", ["native", "wrapped", "anthropic then wrapped", "google then native", "tools alone"])
@pytest.mark.parametrize("first", ["healthy", "wrong", "down"])
async def test_an_agent_may_answer_in_a_model(server, kind, first):
    """Its tools first, then its last words in the shape."""

    def model(value: Any) -> Callable[[SeenRequest], Answer]:
        def answer(request: SeenRequest) -> Answer:
            told = json.dumps(request.body)
            if "add" not in request.tools:
                return says(value)(request)
            done = any(word in told for word in ('"role": "tool"', "tool_result", "functionResponse"))
            return Answer("5") if done else Answer("", tool_calls=[ToolCall("add", {"x": 2, "y": 3})])

        return answer

    llm = llm_of(server, kind)
    both_say(server, llm, {"healthy": model(TOLD), "wrong": model(BAD), "down": 503}[first], model(TOLD))
    output = await FunctionAgent(tools=[add], llm=llm, output_cls=Joke).run(user_msg="2+3, as a joke?")
    assert output.get_pydantic_model(Joke) == TOLD


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone"])
async def test_llamaindexs_own_programs_get_valid_calls(server, kind):
    """A forced call is checked by its tool's own model: programs, selectors and `predict_and_call` all force one."""
    llm = llm_of(server, kind)
    calls = [Answer("I would rather not."), Answer("", tool_calls=[ToolCall("Joke", BAD)])]
    both_say(server, llm, says(*calls), says(TOLD))
    program = FunctionCallingProgram.from_defaults(Joke, prompt=PROMPT, llm=llm)
    assert program(topic="cats") == TOLD
    assert len(server.requests) == 3
    llm.router.reset()
    assert (await program.acall(topic="cats")) == TOLD


def test_a_selector_selects(server):
    """Routers over query engines live on it."""
    llm = fallback_llm(server)
    script_all(server, 503)
    server.script(SECONDARY, [says({"index": 2, "reason": "r"})])
    chosen = PydanticSingleSelector.from_defaults(llm=llm).select(
        [ToolMetadata("one", "a"), ToolMetadata("two", "b")], "Which?"
    )
    assert chosen.ind == 1


def test_what_is_not_forced_is_not_checked(server):
    """An agent's own loop tells the model what its tools say."""
    script_all(server, Answer("", tool_calls=[ToolCall("add", {"x": "no"})]))
    llm = fallback_llm(server)
    tool = FunctionTool.from_defaults(add)
    assert llm.chat_with_tools([tool], user_msg="?").message.blocks[0].tool_kwargs == {"x": "no"}
    with pytest.raises(StructuredOutputFailed, match="add: "):
        llm.chat_with_tools([tool], user_msg="?", tool_required=True)


def test_arguments_that_were_preset_are_not_asked_for(server):
    """A tool's `partial_params` are not the model's to give."""
    tool = FunctionTool.from_defaults(add, partial_params={"y": 40})
    script_all(server, Answer("", tool_calls=[ToolCall("add", {"x": 2})]))
    assert fallback_llm(server).predict_and_call([tool], user_msg="?", tool_required=True).response == "42"


def test_a_text_program_still_works(server):
    """LlamaIndex's own, over plain chat."""
    script_all(server, says(TOLD))
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=Joke, prompt=PromptTemplate("{topic}"), llm=fallback_llm(server)
    )
    assert program(topic="cats") == TOLD


# ── a shape of any chat call ─────────────────────────────────────────────────────────────────────────────────────────

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "title": "Count"}
FORMATS = {
    "openai": {"type": "json_schema", "json_schema": {"name": "Count", "schema": SCHEMA}},
    "bare": SCHEMA,
    "class": type("Count", (BaseModel,), {"__annotations__": {"n": int}}),
}


@pytest.mark.parametrize("form", FORMATS)
async def test_a_chat_may_ask_for_a_shape(server, form):
    """`response_format` of a call, checked against its schema."""
    llm = fallback_llm(server)
    both_say(server, llm, says({"n": "one"}), says({"n": 1}))
    asked = [ChatMessage(content="How many?")]
    assert llm.chat(asked, response_format=FORMATS[form]).message.content == '{"n": 1}'
    llm.router.reset()
    streamed = [r async for r in await llm.astream_chat(asked, response_format=FORMATS[form])]
    assert "".join(r.delta for r in streamed) == '{"n": 1}'
    assert llm.chat(asked, response_format=FORMATS[form], validate=False).message.content == '{"n": "one"}'


def test_any_json_object_may_be_asked_for(server):
    """OpenAI's older form."""
    script_all(server, says("no", {"a": 1}))
    llm = fallback_llm(server)
    assert (
        llm.chat([ChatMessage(content="JSON?")], response_format={"type": "json_object"}).message.content == '{"a": 1}'
    )
    with pytest.raises(ValueError, match="response_format"):
        llm.chat([ChatMessage(content="JSON?")], response_format="yes")


# ── wrapped LLMs as targets of schemas ───────────────────────────────────────────────────────────────────────────────


class Plain(CustomLLM):
    """Text in, text out."""

    said: str = TOLD.model_dump_json()
    heard: list[str] = []  # noqa: RUF012  # a pydantic field: copied per instance

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="plain", context_window=2000, num_output=100)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.heard.append(prompt)
        return CompletionResponse(text=self.said)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield CompletionResponse(text=self.said, delta=self.said)


@pytest.mark.parametrize("face", FACES)
async def test_an_llm_that_takes_text_alone_is_asked_in_words(server, face):
    """And the others of its chain by schema: each as well as it can."""
    plain = Plain()
    llm = fallback_llm(server, [native(server, PRIMARY), plain])
    script_all(server, 503)
    assert (await predicted(llm, face))[-1] == TOLD
    assert how(server.requests[0]) == "schema"
    assert "stream" in face or '"punchline"' in plain.heard[0]


def test_a_router_may_ask_a_wrapped_llm_for_a_schema(server):
    """No FallbackLLM in sight: the answer is text, however it was got."""
    request = ChatRequest((user("A joke?"),), output=OutputSchema(Joke.model_json_schema(), "Joke"))
    script_all(server, says(TOLD))
    server.script("gpt-3.5-turbo", [says(TOLD)])
    for llm in (wrapped(server, PRIMARY), wrapped(server, "gpt-3.5-turbo"), Plain()):
        for streaming in (False, True):
            answer = Router([LlamaIndexProvider(llm)]).invoke(request.replace(streaming=streaming))
            assert Joke.model_validate_json(answer.text) == TOLD
            assert answer.tool_calls == ()
            assert answer.finish_reason == "stop"


def test_a_schema_beside_tools_is_one_more_tool(server):
    """A wrapped LLM without schemas of its own must call one: the caller's or the answer's."""
    llm = fallback_llm(server, [wrapped(server, "gpt-3.5-turbo")])
    tool = FunctionTool.from_defaults(add)
    asked: dict[str, Any] = {"tools": [tool], "response_format": Joke}
    server.script("gpt-3.5-turbo", [Answer("", tool_calls=[ToolCall("add", {"x": 1, "y": 2})]), says_through("Joke")])
    called = llm.chat([ChatMessage(content="?")], **asked)
    assert [c.tool_name for c in llm.get_tool_calls_from_response(called)] == ["add"]
    answered = llm.chat([ChatMessage(content="?")], **asked)
    assert answered.message.content == TOLD.model_dump_json()
    assert llm.get_tool_calls_from_response(answered, error_on_no_tool_call=False) == []
    assert server.requests[0].tools == ("add", "Joke")
    assert server.requests[0].body["tool_choice"] == "required"


def says_through(name: str) -> Answer:
    return Answer("", tool_calls=[ToolCall(name, TOLD.model_dump_json())])


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["native", "wrapped", "tools alone"])
@pytest.mark.parametrize("face", FACES)
async def test_events_are_those_of_any_llm(server, kind, face):
    """One prediction around one chat, whatever happened underneath; plain data that can be written down."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = managed(llm_of(server, kind), debug)
    both_say(server, llm, says(BAD), says(TOLD))
    with Events() as events:
        objects = await predicted(llm, face)
    names = [name for name in events.names() if "InProgress" not in name]
    assert names == [
        "LLMStructuredPredictStartEvent",
        "LLMChatStartEvent",
        "LLMChatEndEvent",
        "LLMStructuredPredictEndEvent",
    ]
    assert events.count("LLMStructuredPredictInProgressEvent") == (len(objects) if "stream" in face else 0)
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    (start,) = [e for e in events.seen if type(e).__name__ == "LLMChatStartEvent"]
    assert json.loads(json.dumps(start.additional_kwargs))


async def test_usage_of_wrong_answers_is_told_and_billed(server):
    """They were paid for."""
    llm = fallback_llm(server, [native(server, SECONDARY, price={"input": 1, "output": 1})])
    script_all(server, says(BAD, TOLD))
    await predicted(llm, "astructured_predict")
    attempts = llm.router.last.metadata()["attempts"]
    assert all(a["cost_usd"] for a in attempts)
    assert len(attempts) == 2


def test_many_loops_in_a_row(server):
    """An `asyncio.run` per prediction: no spurious failover."""
    for kind in ("native", "wrapped"):
        llm = fallback_llm(server, kind)
        script_all(server, says(TOLD))
        for _ in range(4):
            assert asyncio.run(predicted(llm, "astructured_predict")) == [TOLD]
            assert not llm.router.last.used_fallback


def test_a_bug_in_a_validator_is_nobodys_outage():
    """It surfaces as it is."""
    from pydantic import field_validator

    class Buggy(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        FallbackLLM([ScriptedProvider('{"n": 1}')]).structured_predict(Buggy, PROMPT, topic="x")


def test_the_kind_of_error_is_known(server):
    """By name, in metadata and errors alike."""
    script_all(server, says(BAD))
    with pytest.raises(StructuredOutputFailed) as caught:
        fallback_llm(server).structured_predict(Joke, PROMPT, topic="x")
    assert {e.kind for e in caught.value.errors} == {ErrorKind.INVALID_OUTPUT}
    assert json.loads(caught.value.errors[0].answer.text) == BAD
