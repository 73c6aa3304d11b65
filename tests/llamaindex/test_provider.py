"""Ready LLMs as targets: one request per call, nobody's messages touched, cut streams found out, bugs let through."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider
from llamaindex_fallback._reader import Reader
from llamaindex_fallback._request import to_request
from shared_core import (
    Answer,
    ConfigurationError,
    ErrorKind,
    Finished,
    Message,
    Origin,
    Reasoning,
    Router,
    Text,
    ToolCall,
    ToolCallDelta,
    Usage,
    assistant,
    collect,
    tool,
    user,
)
from shared_core.errors import ProviderError
from shared_core.routing.provider import Provider
from shared_core.testing import Answer as Says
from shared_core.testing import Broken, ScriptedProvider, check_provider
from shared_core.testing import ToolCall as Asks
from tests.llamaindex.world import (
    KEY,
    PRIMARY,
    SECONDARY,
    Events,
    call,
    fallback_llm,
    fallback_of,
    native,
    text_of,
    wrapped,
)
from tests.timing import timed


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


TOOL = FunctionTool.from_defaults(add)
CALL = ToolCallBlock(tool_call_id="c", tool_name="add", tool_kwargs='{"x": 1}')


class Slow(CustomLLM):
    """The usual user's own LLM: sync methods only."""

    delay_s: float = 0.05

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="slow", context_window=2000, num_output=100)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        time.sleep(self.delay_s)
        return CompletionResponse(text="done")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def gen() -> Any:
            for i in range(3):
                time.sleep(self.delay_s)
                yield CompletionResponse(text="x" * (i + 1), delta="x")

        return gen()


class Canned(FunctionCallingLLM):
    """Says what it was given, response by response; keeps what it was asked."""

    said: list[Any] = []  # noqa: RUF012  # a pydantic field: copied per instance
    asked: list[Any] = []  # noqa: RUF012  # the same
    vendor: str = "canned_llm"

    def class_name(self) -> str:  # type: ignore[override]  # each instance another vendor
        return self.vendor

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="canned", is_function_calling_model=True, is_chat_model=True)

    def _next(self, messages: Any, kwargs: Any) -> list[ChatResponse]:
        self.asked.append((copy.deepcopy(messages), kwargs))
        for message in messages:  # what bad integrations do
            message.additional_kwargs["scribbled"] = True
            for block in message.blocks:
                if isinstance(block, TextBlock):
                    block.text += " scribble"
            message.blocks.append(TextBlock(text="scribble"))
        return self.said

    def chat(self, messages: Any, **kwargs: Any) -> Any:
        return self._next(messages, kwargs)[-1]

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        yield from self._next(messages, kwargs)

    async def achat(self, messages: Any, **kwargs: Any) -> Any:
        return self.chat(messages, **kwargs)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def gen() -> Any:
            for one in self._next(messages, kwargs):
                yield one

        return gen()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    stream_complete = acomplete = astream_complete = complete  # type: ignore[assignment]  # never asked

    def _prepare_chat_with_tools(
        self,
        tools: Any,
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> Any:
        return {"messages": chat_history, "tools": [t.metadata.to_openai_tool() for t in tools]}


def canned(*said: Any, **fields: Any) -> Canned:
    responses = [one if isinstance(one, ChatResponse) else says(*one) for one in said]
    return Canned(said=responses or [says("ok", raw={"finish_reason": "stop"})], **fields)


def says(text: str = "", *blocks: Any, delta: str | None = None, raw: Any = None, **kwargs: Any) -> ChatResponse:
    message = ChatMessage(role="assistant", blocks=[*([TextBlock(text=text)] if text else []), *blocks])
    return ChatResponse(message=message, delta=delta, raw=raw, additional_kwargs=kwargs)


CHUNKS = [says("a", delta="a"), says("ab", delta="b", raw={"finish_reason": "stop"})]


# ── the contract of providers ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("of", ["openai", "sync only", "canned"])
def test_it_keeps_the_contract_of_providers(server, of):
    """The same check that native providers pass: whole, streamed, sync, async, walked away from, closed twice."""
    each = {"openai": wrapped(server, PRIMARY), "sync only": Slow(delay_s=0.0), "canned": canned(*CHUNKS)}
    check_provider(LlamaIndexProvider(each[of]))


def test_it_is_a_provider_and_wraps_llms_only():
    """The protocol is met; anything else is told what is wrong."""
    assert isinstance(LlamaIndexProvider(MockLLM()), Provider)
    with pytest.raises(ConfigurationError, match="LlamaIndex LLM"):
        LlamaIndexProvider("gpt-5")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize("face", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_an_integrations_own_retries_are_off(server, face):
    """LlamaIndex's OpenAI would send twelve requests for one failing call; here one, and the user's LLM stays as is."""
    server.script(PRIMARY, [500])
    theirs = wrapped(server, PRIMARY, max_retries=3)
    theirs._get_client()  # built before we came, with retries of its own
    llm = fallback_llm(server, [theirs, native(server, SECONDARY)])
    await call(llm, face)
    assert server.count(PRIMARY) == 1
    assert theirs.max_retries == 3
    assert theirs._get_client().max_retries == 3
    theirs._get_client().close()


@pytest.mark.parametrize("face", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_callers_messages_are_never_touched(face):
    """Whatever an integration scribbles on, it is not theirs."""
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(blocks=[TextBlock(text="Look:"), ImageBlock(image=b"\x89PNG....")]),
        ChatMessage(role="assistant", blocks=[CALL]),
        ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "c"}),
    ]
    before = copy.deepcopy(messages)
    llm = fallback_llm(None, [canned()])  # type: ignore[arg-type]  # nothing goes over the wire
    answer = getattr(llm, face)(messages)
    answer = await answer if face.startswith("a") else answer
    if face == "stream_chat":
        list(answer)
    elif face == "astream_chat":
        assert [r async for r in answer]
    assert messages == before


@timed
async def test_sync_only_llms_are_asked_in_a_thread():
    """LlamaIndex's CustomLLM would block the loop; ours ticks on."""
    llm = fallback_llm(None, [Slow()])  # type: ignore[arg-type]  # nothing goes over the wire
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    assert text_of((await call(llm, "achat"))[-1]) == "done"
    assert "".join(r.delta or "" for r in await call(llm, "astream_chat")) == "xxx"
    ticker.cancel()
    assert ticks > 10


@timed
def test_a_slow_llm_is_walked_away_from():
    """Sync calls cannot be interrupted; the caller does not wait for them."""
    llm = FallbackLLM([Slow(delay_s=10.0), canned(says("quick"))], timeouts={"attempt": 0.05}, retry={"total": 0})
    began = time.monotonic()
    assert llm.complete("hi").text == "quick"
    assert time.monotonic() - began < 9.0


def test_an_llms_own_rate_limiter_is_obeyed(server):
    """The decorator that we do without would have done it."""

    class Limiter:
        asked = 0

        def acquire(self, num_tokens: int = 0) -> None:
            self.asked += 1

    limiter = Limiter()
    fallback_llm(server, [wrapped(server, PRIMARY, rate_limiter=limiter)]).complete("hi")
    assert limiter.asked == 1


async def test_a_bug_in_an_integration_surfaces():
    """A broken install must not look like an outage, or the fallback is paid for ever after."""

    class Broken(Canned):
        def _next(self, messages: Any, kwargs: Any) -> list[ChatResponse]:
            raise TypeError("Cannot instantiate typing.Union")

    llm = fallback_llm(None, [Broken(), canned()])  # type: ignore[arg-type]  # nothing goes over the wire
    for face in ("chat", "achat", "stream_chat", "astream_chat"):
        with pytest.raises(TypeError, match="Union"):
            await call(llm, face)


# ── what it can take ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_capabilities_are_what_the_llm_says_of_itself(server):
    """Tools only for function-calling LLMs; -1 output is unknown."""
    openai = LlamaIndexProvider(wrapped(server, PRIMARY)).capabilities
    assert openai.tools
    assert {"auto", "any", "none", "tool"} == openai.tool_choice
    assert (openai.context_window, openai.max_output) == (400_000, None)
    slow = LlamaIndexProvider(Slow()).capabilities
    assert not slow.tools
    assert (slow.context_window, slow.max_output) == (2000, 100)


def test_an_llm_without_tools_is_passed_over_for_tools(server):
    """Incapable is not sick: the next one is asked, and the plan says why."""
    llm = fallback_llm(server, [Slow(), native(server, SECONDARY)])
    server.script(SECONDARY, [Says("", tool_calls=[Asks("add", {"x": 1})])])
    response = llm.chat_with_tools([TOOL], user_msg="1+1?")
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"x": 1}
    assert fallback_of(response)["excluded"][0]["reason"] == "cannot call tools"
    assert not llm.metadata.is_function_calling_model


def test_names_are_kept_apart(server):
    """The same model twice, once wrapped and once wrapped again."""
    llm = fallback_llm(server, [wrapped(server, PRIMARY), wrapped(server, PRIMARY)])
    assert [t.name for t in llm.router.targets] == [f"openai:{PRIMARY}", f"openai:{PRIMARY}#2"]


def test_a_ready_llm_takes_a_targets_settings(server):
    """A mapping gives it a name, a price and whatever else a target has."""
    llm = fallback_llm(server, [{"llm": wrapped(server, PRIMARY), "name": "mine", "price": {"input": 1, "output": 1}}])
    response = llm.complete("hi")
    assert fallback_of(response)["target"] == "mine"
    assert fallback_of(response)["cost_usd"] == pytest.approx(response.additional_kwargs["total_tokens"] / 1e6)


def test_it_serves_a_bare_router_too():
    """No LlamaIndex on the caller's side."""
    answer = Router([LlamaIndexProvider(canned())]).invoke("hi")
    assert isinstance(answer, Answer)
    assert answer.text == "ok"


def test_it_travels_without_its_key(server):
    """Pickled as class and settings; the key stays here."""
    data = pickle.dumps(LlamaIndexProvider(wrapped(server, PRIMARY)))
    assert KEY.encode() not in data


# ── what it is sent ──────────────────────────────────────────────────────────────────────────────────────────────────

MINE = Origin("llamaindex/anthropic", "canned")
SIGNED: list[Any] = [Reasoning("hm", {"signature": "s"}), ToolCall("c1", "add", '{"x": 1}')]


@pytest.mark.parametrize(("origin", "kept"), [(MINE, True), (Origin("anthropic", "canned"), False), (None, False)])
def test_thinking_goes_back_to_who_thought_it(origin, kept):
    """Signatures of another origin are left out, calls and results stay."""
    theirs = canned(vendor="anthropic_llm")
    history = (user("1+1?"), Message("assistant", tuple(SIGNED), origin=origin), tool("c1", "2", name="add"))
    Router([LlamaIndexProvider(theirs)]).invoke(history)
    ((messages, _),) = theirs.asked
    kinds = [type(block).__name__ for message in messages for block in message.blocks]
    assert kinds == ["TextBlock", *(["ThinkingBlock"] if kept else []), "ToolCallBlock", "TextBlock"]
    assert messages[1].blocks[-1].tool_kwargs == {"x": 1}, "a dict: not every integration takes a string"


def test_an_own_conversation_is_handed_over_as_it_was_written():
    """Signatures in additional_kwargs and odd blocks come back to the LLM that wrote them, and to nobody else."""
    call = ToolCallBlock(tool_call_id="c", tool_name="add", tool_kwargs={"x": 1})
    said = says("", ThinkingBlock(content="hm", additional_information={"signature": "s"}), call)
    said.message.additional_kwargs["thought_signatures"] = ["abc"]
    first, second = canned(said, vendor="genai"), canned(vendor="openai_llm")
    llm = FallbackLLM([first, second])
    opening = ChatMessage(role="user", content="1+1?")
    answer = llm.chat([opening], tools=[TOOL]).message
    conversation = [opening, answer, ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "c"})]
    first.said[:] = [says("2")]
    llm.chat(conversation)
    back = first.asked[-1][0][1]
    assert back.additional_kwargs == {"thought_signatures": ["abc"]}
    assert [type(b).__name__ for b in back.blocks] == ["ThinkingBlock", "ToolCallBlock"]
    llm.router.force_open("google:canned")
    llm.chat(conversation)
    told = second.asked[-1][0][1]
    assert told.additional_kwargs == {}
    assert [type(b).__name__ for b in told.blocks] == ["ToolCallBlock"]


@pytest.mark.parametrize(("vendor", "kept"), [("openai_llm", 1), ("anthropic_llm", 2)])
def test_what_an_integration_refuses_is_left_out(vendor, kept):
    """LlamaIndex's OpenAI raises on a cache point; Google's stumbles over empty texts; Anthropic's caches."""
    point = CachePoint(cache_control=CacheControl(type="ephemeral"))
    theirs = canned(vendor=vendor)
    FallbackLLM([theirs]).chat([ChatMessage(blocks=[TextBlock(text="a"), point, TextBlock(text="")])])
    assert len(theirs.asked[0][0][0].blocks) == kept


def test_dangling_calls_are_answered_before_they_are_sent(server):
    """A crash between call and result leaves a history that OpenAI refuses."""
    asked = ChatMessage(role="assistant", blocks=[CALL])
    conversation = [ChatMessage(content="1+1?"), asked, ChatMessage(content="Well?")]
    fallback_llm(server, [wrapped(server, PRIMARY)]).chat(conversation)
    sent = server.requests[0].body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "user"]
    assert sent[2]["content"] == "Error: tool call was cancelled"


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (None, "auto"),
        ("any", "required"),
        ("add", {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tools_are_prepared_by_the_integration(server, choice, wire):
    """In its vendor's own words, at the moment of the call."""
    server.script(PRIMARY, [Says("", tool_calls=[Asks("add", {"x": 1})])])
    request = to_request([ChatMessage(content="1+1?")], streaming=False, tools=[TOOL], tool_choice=choice)
    answer = Router([LlamaIndexProvider(wrapped(server, PRIMARY))]).invoke(request)
    assert [(c.name, c.parsed()) for c in answer.tool_calls] == [("add", {"x": 1})]
    body = server.requests[0].body
    assert body["tool_choice"] == wire
    function = body["tools"][0]["function"]
    assert (function["name"], set(function["parameters"]["properties"])) == ("add", {"x", "y"})


def test_only_options_that_were_set_are_passed_on():
    """The LLM's own settings stand otherwise."""
    theirs = canned()
    llm = FallbackLLM([theirs], temperature=0.0)
    llm.chat([ChatMessage(content="x")], max_tokens=5, stop=["a"], extra={"canned": {"special": 1}})
    llm.chat([ChatMessage(content="x")])
    assert [asked[1] for asked in theirs.asked] == [
        {"temperature": 0.0, "max_tokens": 5, "stop": ["a"], "special": 1},
        {"temperature": 0.0},
    ]


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(*responses: ChatResponse) -> Answer:
    reader = Reader({})
    events = [event for response in responses for event in reader.feed(response)]
    return collect([*events, *reader.finish()])


def openai_chunk(reason: str | None) -> dict[str, Any]:
    return {"id": "r1", "model": "m-1", "choices": [{"finish_reason": reason}]}


@pytest.mark.parametrize(
    "ending",
    [
        openai_chunk("stop"),
        {"delta": {"stop_reason": "end_turn"}},
        {"finish_reason": "STOP", "content": {}},
        {"done": True, "done_reason": "stop"},
        None,
    ],
    ids=["openai", "anthropic", "google", "ollama", "nobody tells"],
)
def test_a_stream_with_its_end_is_whole(ending):
    """Every vendor's word for the end; where nobody tells, an end is an end."""
    answer = read(says("a", delta="a", raw=ending and {**ending, "choices": None}), says("ab", delta="b", raw=ending))
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize(
    "chunks",
    [
        [openai_chunk(None), openai_chunk(None)],
        [{"message": {"stop_reason": None}}, {"delta": {"text": "b"}}],
        [{"finish_reason": None}, {"finish_reason": None}],
        [],
    ],
    ids=["openai", "anthropic", "google", "nothing at all"],
)
def test_a_stream_without_its_end_is_broken(chunks):
    """LlamaIndex reports a truncated stream as a good one."""
    with pytest.raises(ProviderError) as caught:
        read(*(says("a", delta="a", raw=chunk) for chunk in chunks))
    assert caught.value.kind is ErrorKind.STREAM_CUT


def test_a_growing_tool_call_is_a_sign_of_life():
    """Long arguments are not taken for silence, and are told once, whole; the reason says that there are calls."""
    grown = ["", '{"x"', '{"x": 1', '{"x": 1', '{"x": 1}']
    blocks = [ToolCallBlock(tool_call_id="c", tool_name="add", tool_kwargs=text) for text in grown]
    reader = Reader({})
    events = [list(reader.feed(says("", block, raw=openai_chunk("stop")))) for block in blocks]
    assert [sum(isinstance(e, ToolCallDelta) for e in each) for each in events] == [1, 1, 1, 0, 1]
    answer = collect([*(event for each in events for event in each), *reader.finish()])
    assert answer.tool_calls == (ToolCall("c", "add", '{"x": 1}'),)
    assert answer.finish_reason == "tool_calls"


def test_half_a_tool_call_is_none():
    """Its arguments are no JSON, so the attempt has failed, and nobody runs a tool on half an argument."""
    half = ToolCallBlock(tool_call_id="c", tool_name="f", tool_kwargs='{"x": 1')
    with pytest.raises(ProviderError) as caught:
        read(says("", half, raw=openai_chunk("length")))
    assert caught.value.kind is ErrorKind.MALFORMED


def test_deltas_are_found_where_an_integration_gives_none():
    """The cumulative text tells what is new."""
    answer = read(says("a"), says("ab"), says("ab", ThinkingBlock(content="hm")), says("abc"))
    assert (answer.text, answer.reasoning) == ("abc", (Reasoning("hm"),))


def test_thinking_comes_as_it_is_thought():
    """Streamed pieces, and the signature at the end."""
    block = ThinkingBlock(content="hm so", additional_information={"signature": "s"})
    answer = read(says(thinking_delta="hm"), says(thinking_delta=" so"), says("a", block, delta="a"))
    assert answer.reasoning == (Reasoning("hm so", {"signature": "s"}),)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}, Usage(5, 2)),
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {"reasoning_tokens": 2},
                }
            },
            Usage(5, 4, 3, 0, 2),
        ),
        (
            {"usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 10}},
            Usage(15, 2, 10),
        ),
        (
            {"usage_metadata": {"prompt_token_count": 5, "candidates_token_count": 2, "thoughts_token_count": 3}},
            Usage(5, 5, 0, 0, 3),
        ),
        ({}, Usage()),
    ],
    ids=["openai", "openai with details", "anthropic", "google", "nobody"],
)
def test_usage_is_read_in_every_vendors_words(raw, usage):
    """Cached tokens are part of the input, thoughts are part of the output."""
    assert read(says("a", delta="a", raw=raw)).usage == usage


def test_usage_in_two_parts_is_one():
    """Anthropic tells the input at the start and the output at the end."""
    start = {"message": {"usage": {"input_tokens": 9, "output_tokens": 1}, "stop_reason": None}}
    end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}
    assert read(says("a", delta="a", raw=start), says("ab", delta="b", raw=end)).usage == Usage(9, 20)


async def test_wrapped_streams_ask_for_their_usage(server):
    """LlamaIndex's OpenAI does not by itself, and would be billed by estimate."""
    for face in ("stream_chat", "astream_chat"):
        last = (await call(fallback_llm(server, "wrapped"), face))[-1]
        assert last.raw is not None
        assert not last.raw["usage"]["estimated"]


def test_the_llms_own_response_rides_along():
    """Blocks that we have no word for reach the caller of an unbroken answer."""
    image = ImageBlock(image=b"\x89PNG....", image_mimetype="image/png")
    llm = FallbackLLM([canned(says("Here:", image))])
    drawn = llm.chat([ChatMessage(content="draw")]).message.blocks
    assert [type(block).__name__ for block in drawn] == ["TextBlock", "ImageBlock"]


def test_a_message_of_calls_holds_nothing_but_calls():
    """An empty text beside a call makes Google's integration send the call twice; what is left is plain data."""
    message = FallbackLLM([canned(says("", CALL))]).chat([ChatMessage(content="x")], tools=[TOOL]).message
    assert message.blocks == [ToolCallBlock(tool_call_id="c", tool_name="add", tool_kwargs={"x": 1})]
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    assert message.additional_kwargs == {
        "tool_calls": [call],
        "fallback_origin": {"provider": "llamaindex/canned", "model": "canned"},
    }


def test_of_a_continued_answer_only_the_words_are_the_last_llms():
    """Its own response is only the end of the answer, so nothing else of it is taken for the whole."""
    tail = says(" a time.", ImageBlock(image=b"\x89PNG...."), delta=" a time.", raw={"finish_reason": "stop"})
    tail.message.additional_kwargs["mine"] = True
    began = ScriptedProvider(Broken("Once upon"))
    last = list(FallbackLLM([began, canned(tail)], retry={"total": 0}).stream_chat([ChatMessage(content="x")]))[-1]
    assert last.message.blocks == [TextBlock(text="Once upon a time.")]
    assert last.message.additional_kwargs == {}


async def test_inner_events_are_left_out_or_marked(server):
    """One chain per call with OpenAI's class; what a CustomLLM sends on its own carries our tag."""
    llm = fallback_llm(server, "wrapped")
    with Events() as events:
        for face in ("chat", "achat", "stream_chat", "astream_chat"):
            await call(llm, face)
    assert events.count("LLMChatStartEvent") == events.count("LLMChatEndEvent") == 4
    with Events() as events:
        await call(FallbackLLM([Slow(delay_s=0.0)]), "chat")
    ours = [e for e in events.seen if "LLM" in type(e).__name__ and "llm_fallback_inner" not in e.tags]
    assert [type(e).__name__ for e in ours] == ["LLMChatStartEvent", "LLMChatEndEvent"]


async def test_threads_and_loops_may_share_a_provider(server):
    """A copy per event loop, one for all threads."""
    llm = fallback_llm(server, "wrapped")
    failures: list[BaseException] = []

    def work():
        try:
            asyncio.run(call(llm, "achat"))
            llm.complete("hi")
        except BaseException as error:  # told below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failures == []
    assert server.count(SECONDARY) == 0


def test_another_model_may_be_named_per_call(server):
    """`model=` replaces the primary's; an LLM without such a setting is incapable of it."""
    server.script("gpt-5", "ok")
    llm = fallback_llm(server, [wrapped(server, PRIMARY)])
    llm.complete("hi", model="gpt-5")
    assert [r.model for r in server.requests] == ["gpt-5"]


def test_answers_of_several_blocks_keep_their_text():
    """LlamaIndex joins text blocks with a line break; we deliver what was said."""
    two = says("a", TextBlock(text="b"))
    assert collect(Reader({}).whole(two)).text == "ab"
    assert FallbackLLM([canned(two)]).chat([ChatMessage(content="x")]).message.blocks[0] == TextBlock(text="ab")


def test_the_last_event_is_finished():
    """Whole or streamed."""
    assert isinstance(list(Reader({}).whole(says("a")))[-1], Finished)
    assert assistant("a").parts == (Text("a"),)
