"""What a conversation may hold by each target's rules, what `metadata` tells, whose an answer's opaque parts are."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.tools import FunctionTool

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider, _mould
from llamaindex_fallback._convert import stamped
from llamaindex_fallback._reader import Reader
from shared_core import AllTargetsFailed, Capabilities, Target
from shared_core.testing import Answer, ScriptedProvider, ToolCall
from tests.llamaindex.test_provider import Canned, canned, says
from tests.llamaindex.world import (
    CLAUDE,
    PRIMARY,
    SECONDARY,
    call,
    claude,
    fallback_llm,
    fallback_of,
    gemini,
    native,
    script_all,
    wrapped,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
PDF = b"%PDF-1.4 nothing more"
WAV = b"RIFF\x24\0\0\0WAVEfmt "
FILM = VideoBlock(video=b"\0\0\0\x18ftypmp42", video_mimetype="video/mp4")
POINT = CachePoint(cache_control=CacheControl(type="ephemeral"))
BLOCKS: dict[str, Any] = {
    "image": ImageBlock(image=PNG),
    "document": DocumentBlock(data=PDF, title="a.pdf"),
    "audio": AudioBlock(audio=WAV, format="wav"),
    "video": FILM,
    "cache point": POINT,
    "thinking": ThinkingBlock(content="hm", additional_information={"signature": "foreign"}),
}
TARGETS: dict[str, Any] = {
    "openai": lambda server: native(server, PRIMARY),
    "wrapped openai": lambda server: wrapped(server, PRIMARY),
    "anthropic": claude,
    "google": gemini,
}
TAKES = {
    "openai": {"image", "document", "cache point", "thinking"},
    "wrapped openai": {"image", "document", "audio", "cache point", "thinking"},
    "anthropic": {"image", "document", "cache point", "thinking"},
    "google": {"image", "document", "audio", "video", "cache point", "thinking"},
}


def conversation(name: str) -> list[ChatMessage]:
    block = BLOCKS[name]
    if name == "thinking":
        answer = ChatMessage(role="assistant", blocks=[block, TextBlock(text="Hello.")])
        return [ChatMessage(content="Hi."), answer, ChatMessage(content="Again.")]
    return [ChatMessage(blocks=[TextBlock(text="What is this?"), block])]


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("target", TARGETS)
async def test_a_target_takes_what_it_can_and_says_what_it_cannot(server, target, name):
    """Incapable, with the reason, and never an error of the integration's; the caller's messages stay as they were."""
    llm = fallback_llm(server, [TARGETS[target](server)])
    asked = conversation(name)
    before = copy.deepcopy(asked)
    for face in ("chat", "achat"):
        if name in TAKES[target]:
            answer = getattr(llm, face)(asked)
            answer = await answer if face == "achat" else answer
            assert answer.message.content
        else:
            with pytest.raises(AllTargetsFailed, match=r"cannot take|takes no") as caught:
                answer = getattr(llm, face)(asked)
                await answer
            assert not caught.value.is_retryable
    assert asked == before
    told = json.dumps(server.requests[-1].body) if server.requests else ""
    assert "foreign" not in told, "another's signature"
    assert bool(server.requests) == (name in TAKES[target])


@pytest.mark.parametrize("name", BLOCKS)
async def test_who_cannot_is_passed_over(server, name):
    """The one that can answers, and nobody is taken to be sick."""
    llm = fallback_llm(server, [native(server, PRIMARY), wrapped(server, SECONDARY), gemini(server)])
    first = next(t for t, kind in zip(llm.router.targets, ("openai", "wrapped openai", "google"), strict=True)
                 if name in TAKES[kind])  # fmt: skip
    assert fallback_of(await llm.achat(conversation(name)))["target"] == first.name
    assert all(h.available for h in llm.router.health())


def test_a_film_that_nobody_takes_is_told_with_every_reason(server):
    """No raise of ours before anybody was looked at."""
    llm = fallback_llm(server, [native(server, PRIMARY), claude(server)])
    with pytest.raises(AllTargetsFailed) as caught:
        llm.chat([ChatMessage(blocks=[FILM])])
    assert server.count() == 0
    for target in llm.router.targets:
        assert target.name in str(caught.value)
    assert "video" in str(caught.value)


@pytest.mark.parametrize("vendor", ["google_llm", "openai_llm", "anthropic_llm"])
def test_media_reach_a_wrapped_llm_with_their_type(vendor):
    """LlamaIndex's OpenAI sends `data:None` for a picture without one."""
    theirs = canned(vendor=vendor)
    picture = ImageBlock(image=PNG)
    asked = ChatMessage(blocks=[TextBlock(text="?"), picture])
    picture.image_mimetype = None
    FallbackLLM([theirs]).chat([asked])
    ((messages, _),) = theirs.asked
    assert messages[0].blocks[1].image_mimetype == "image/png"
    assert picture.image_mimetype is None


def test_a_film_reaches_a_wrapped_llm_that_takes_it():
    """As the block that it was."""
    theirs = canned(vendor="google_llm")
    FallbackLLM([theirs]).chat([ChatMessage(blocks=[FILM])])
    assert theirs.asked[0][0][0].blocks[0].video == FILM.video


@pytest.mark.parametrize(("vendor", "kinds"), [
    ("openai_llm", ["TextBlock", "TextBlock"]), ("anthropic_llm", ["CitableBlock"]),
])  # fmt: skip
def test_citable_content_is_told_in_words_where_nobody_cites(vendor, kinds):
    """LlamaIndex's OpenAI refuses the block; Anthropic's cites it."""
    theirs = canned(vendor=vendor)
    block = CitableBlock(title="T", source="s", content=[TextBlock(text="body")])
    FallbackLLM([theirs]).chat([ChatMessage(blocks=[block])])
    assert [type(b).__name__ for b in theirs.asked[0][0][0].blocks] == kinds


def test_a_cache_point_reaches_anthropics_integration_on_every_way():
    """As it was written, and through a conversation that had to be put in order."""
    theirs = canned(vendor="anthropic_llm")
    llm = FallbackLLM([theirs])
    asked = ChatMessage(blocks=[TextBlock(text="a" * 50), POINT])
    llm.chat([asked])
    foreign = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="c", tool_name="f", tool_kwargs="{}")])
    llm.chat([asked, foreign, ChatMessage(role="tool", content="1", additional_kwargs={"tool_call_id": "c"})])
    for messages, _ in theirs.asked:
        assert any(isinstance(b, CachePoint) for b in messages[0].blocks)


# ── calls that travel ────────────────────────────────────────────────────────────────────────────────────────────────


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


TOOL = FunctionTool.from_defaults(add)


@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}', '{"x": 1', ""], ids=["dict", "text", "cut", "empty"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_call_in_any_form_survives_any_leg(server, target, arguments):
    """OpenAI's integration writes text, others dicts, a cut stream half of one; every wire gets an object."""
    block = ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs=arguments)
    asked = [
        ChatMessage(content="1+1?"),
        ChatMessage(role="assistant", blocks=[block]),
        ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "call_1", "name": "add"}),
    ]
    before = copy.deepcopy(asked)
    llm = fallback_llm(server, [TARGETS[target](server)])
    assert llm.chat(asked, tools=[TOOL]).message.content
    assert asked == before
    body = server.requests[0].body
    sent: list[Any] = []
    for message in body.get("messages") or body["contents"]:
        sent += [json.loads(c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
        parts = message.get("parts") or message.get("content") or ()
        for part in parts if isinstance(parts, list) else ():
            sent += [part["input"]] if part.get("type") == "tool_use" else []
            sent += [part["functionCall"].get("args", {})] if "functionCall" in part else []
    assert sent == [{"x": 1} if arguments else {}]


def test_an_own_call_without_its_answer_is_answered_before_it_is_sent(server):
    """A crash between call and result, in a conversation that this very LLM wrote."""
    llm = fallback_llm(server, [wrapped(server, PRIMARY)])
    script_all(server, Answer("", tool_calls=[ToolCall("add", {"x": 1})]), "ok")
    opening = ChatMessage(content="1+1?")
    called = llm.chat([opening], tools=[TOOL]).message
    llm.chat([opening, called, ChatMessage(content="Well?")], tools=[TOOL])
    assert [m["role"] for m in server.requests[-1].body["messages"]] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_model_of_a_call_is_who_wrote_it(server, target):
    """`model=` names another; what is opaque in its answer is that model's, and goes back to no other."""
    other = {"anthropic": "claude-opus-4-6", "google": "gemini-2.5-pro"}.get(target, "gpt-4o")
    server.script(other, [Answer("", tool_calls=[ToolCall("add", {"x": 1})])])
    script_all(server, Answer("", tool_calls=[ToolCall("add", {"x": 1})]))
    llm = fallback_llm(server, [TARGETS[target](server)])
    asked = [ChatMessage(content="1+1?")]
    origin, _ = stamped(llm.chat(asked, tools=[TOOL], model=other).message)
    assert origin is not None
    assert origin.model == other
    own, _ = stamped(llm.chat(asked, tools=[TOOL]).message)
    assert own == llm.router.providers[0].origin
    streamed = list(llm.stream_chat(asked, tools=[TOOL], model=other))[-1].message
    assert stamped(streamed)[0] == origin


class Named(Canned):
    """Can be asked for another model."""

    model: str = "canned"


@pytest.mark.parametrize(("model", "kept"), [(None, True), ("canned", True), ("other", False)])
def test_thinking_of_one_model_is_not_for_another_of_the_same_llm(model, kept):
    """Signatures are a model's, also where `model=` names the reader."""
    theirs = Named(said=[says("ok")], vendor="anthropic_llm")
    llm = FallbackLLM([theirs])
    stamp = {"provider": "llamaindex/anthropic", "model": "canned"}
    thought = ChatMessage(
        role="assistant",
        blocks=[ThinkingBlock(content="hm", additional_information={"signature": "s"}), TextBlock(text="a")],
        additional_kwargs={"fallback_origin": stamp},
    )
    llm.chat([ChatMessage(content="1?"), thought, ChatMessage(content="2?")], model=model)
    ((messages, _),) = theirs.asked
    assert any(isinstance(block, ThinkingBlock) for message in messages for block in message.blocks) == kept


def test_the_model_of_a_call_goes_to_its_vendor_alone(server):
    """The next target of another vendor keeps its own, and its answers are its own."""
    script_all(server, Answer("", tool_calls=[ToolCall("add", {"x": 1})]))
    server.script("gpt-4o", [503])
    llm = fallback_llm(server, [native(server, PRIMARY), claude(server)])
    origin, _ = stamped(llm.chat([ChatMessage(content="1+1?")], tools=[TOOL], model="gpt-4o").message)
    assert origin == llm.router.providers[1].origin
    assert [r.model for r in server.requests] == ["gpt-4o", CLAUDE]


async def test_one_call_at_a_time_is_one_in_streams_too(server):
    """LlamaIndex's own validation does not look at streams."""
    both = [ToolCall("add", {"x": 1}), ToolCall("add", {"x": 2})]
    script_all(server, Answer("", tool_calls=both))
    for kind in ("native", "wrapped"):
        llm = fallback_llm(server, kind)
        last = [r async for r in await llm.astream_chat_with_tools([TOOL], user_msg="?")][-1]
        assert len(llm.get_tool_calls_from_response(last)) == 1


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def able(name: str, **what: Any) -> Target:
    return Target(provider=ScriptedProvider(*["x"] * 9, model=name, capabilities=Capabilities(**what)))


def test_metadata_may_be_of_the_best():
    """Then agents take a chain whose last resort has no tools, which is passed over for them."""
    chain = [
        able("big", context_window=100_000, max_output=4_000),
        able("small", context_window=4_000, max_output=500, tools=False),
    ]
    honest, hopeful = FallbackLLM(chain).metadata, FallbackLLM(chain, metadata_of="best").metadata
    assert (honest.context_window, honest.num_output, honest.is_function_calling_model) == (4_000, 500, False)
    assert (hopeful.context_window, hopeful.num_output, hopeful.is_function_calling_model) == (100_000, 4_000, True)
    excluded = fallback_of(FallbackLLM(chain, metadata_of="best").chat([ChatMessage(content="x")], tools=[TOOL]))
    assert excluded["excluded"] == [{"target": "scripted:small", "reason": "cannot call tools"}]


def test_metadata_of_nobody_else():
    """A typo is told where it is built."""
    with pytest.raises(ValueError, match="all"):
        FallbackLLM([ScriptedProvider()], metadata_of="some")


def test_events_follow_settings_that_change():
    """What is told of an LLM is what it is now."""
    llm = FallbackLLM([able("m", context_window=8_000)])
    assert llm.to_payload()["num_output"] == -1
    llm.max_tokens = 300
    assert llm.to_payload()["num_output"] == llm.metadata.num_output == 300
    llm.metadata.num_output = 7
    assert llm.metadata.num_output == 300, "what is handed out is the reader's own"


class Shy:
    """Metadata that its server would have to tell."""

    up = False

    @property
    def metadata(self) -> LLMMetadata:
        if not self.up:
            raise ConnectionError("no server at sk-not-a-real-key-0123456789abcdef")
        return LLMMetadata(context_window=1234, num_output=99, is_chat_model=True, is_function_calling_model=True)


def test_an_llm_that_cannot_say_what_it_can_take_is_no_reason_to_fail():
    """Some ask their server; while it is down, nothing is known, and later it is."""
    base = type(canned())
    kind = type("ShyLLM", (base,), {"metadata": Shy.metadata, "model": "shy", "up": False, "__annotations__": {
        "model": str, "up": bool,
    }})  # fmt: skip
    theirs = kind(said=[says("ok")])
    provider = LlamaIndexProvider(theirs)
    assert provider.model == "shy"
    assert provider.capabilities.context_window is None
    theirs.up = True
    assert provider.capabilities.context_window == 1234


def test_a_limit_of_a_call_wins_over_the_wrapped_llms_own(server):
    """LlamaIndex's OpenAI lets its own setting win."""
    llm = fallback_llm(server, [wrapped(server, PRIMARY, max_tokens=500)])
    llm.complete("hi", max_tokens=50)
    llm.complete("hi")
    sent = [r.body.get("max_tokens") or r.body.get("max_completion_tokens") for r in server.requests]
    assert sent == [50, 500]


# ── made without validation ──────────────────────────────────────────────────────────────────────────────────────────

MADE = {
    "text response": (
        _mould._poured_text_response("ab", "b", "hm", {"k": 1}),
        _mould._valid_text_response("ab", "b", "hm", {"k": 1}),
    ),
    "message": (
        _mould._poured_message(MessageRole.ASSISTANT, [TextBlock(text="a")], {"k": 1}),
        ChatMessage(role="assistant", blocks=[TextBlock(text="a")], additional_kwargs={"k": 1}),
    ),
    "completion": (
        _mould._poured_completion("a", "b", {"r": 1}, None, {}), _mould._valid_completion("a", "b", {"r": 1}, None, {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_is_poured_is_as_good_as_validated(name):
    """Equal, copied, dumped, revived, changed, and sharing nothing with the next."""
    poured, valid = MADE[name]
    assert poured == valid
    assert poured.model_dump() == valid.model_dump()
    assert type(poured).model_validate_json(poured.model_dump_json()) == valid
    copied = poured.model_copy(deep=True)
    copied.additional_kwargs["new"] = 1
    assert poured == valid
    assert repr(poured) == repr(valid)


def test_this_llamaindex_lets_itself_be_poured():
    """Otherwise the slow way is used, and nobody is told."""
    assert _mould.text_response is _mould._poured_text_response


async def test_no_two_responses_of_a_stream_share_anything(server):
    """A reader may write into one."""
    responses = await call(fallback_llm(server), "astream_chat")
    for response in responses:
        assert isinstance(response, ChatResponse)
        response.message.blocks.append(TextBlock(text="x"))
        response.message.additional_kwargs["x"] = response.additional_kwargs["x"] = 1
    assert all(len(r.message.blocks) == 2 for r in responses)  # type: ignore[union-attr]  # checked above


def test_chunks_of_an_sdk_are_read_by_their_own_fields():
    """OpenAI's chunk objects, with what LlamaIndex hands over of them."""
    chunks = pytest.importorskip("openai.types.chat").ChatCompletionChunk
    made = [
        chunks.model_validate({
            "id": "r1", "model": "m-1", "created": 1, "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}],
        })
        for text, reason in [("a", None), ("b", None), ("", "stop")]
    ]  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    made.append(made[0].model_copy(update={"choices": [], "usage": usage}))
    reader = Reader({})
    events: list[Any] = []
    for text, delta, raw in zip(("a", "ab", "ab", "ab"), ("a", "b", "", ""), made, strict=True):
        events += reader.feed(says(text, delta=delta, raw=raw))
    end = [*events, *reader.finish()][-1]
    assert (end.reason, end.response_id, end.model, end.usage.total_tokens) == ("stop", "r1", "m-1", 5)
