"""LlamaIndex's messages as neutral ones: every block, every role, nothing mutated."""

from __future__ import annotations

import copy
import io
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool

from llamaindex_fallback._convert import from_messages, stamp_of, to_messages
from llamaindex_fallback._request import to_request
from shared_core import Audio, File, Image, InvalidRequest, Origin, Reasoning, Text, ToolCall, ToolResult, ToolSpec

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
CAT = "https://example.com/cat.png"
PDF = b"%PDF-1.4 nothing more"
ASSISTANT = {"role": "assistant"}


def parts_of(*blocks, **fields):
    (message,) = to_messages([ChatMessage(blocks=list(blocks), **fields)])
    return message.parts


def test_roles_and_system_prompts_keep_their_place():
    """Eight roles of theirs, four of ours."""
    roles = ["system", "developer", "user", "assistant", "chatbot", "model", "tool", "function"]
    told = to_messages([ChatMessage(role=role, content="x") for role in roles])
    assert [m.role for m in told] == ["system", "system", "user", "assistant", "assistant", "assistant", "tool", "tool"]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (TextBlock(text="hi"), Text("hi")),
        (ImageBlock(image=PNG, detail="low"), Image(PNG, media_type="image/png", detail="low")),
        (ImageBlock(image=io.BytesIO(PNG), image_mimetype="image/png"), Image(PNG, media_type="image/png")),
        (ImageBlock(url=CAT), Image(url=CAT, media_type="image/png")),
        (AudioBlock(audio=b"RIFF....WAVEfmt ", format="wav"), Audio(b"RIFF....WAVEfmt ", media_type="audio/x-wav")),
        (AudioBlock(audio=b"ID3 song", format="mp3"), Audio(b"ID3 song", media_type="audio/mpeg")),
        (DocumentBlock(data=PDF, title="a.pdf"), File(PDF, media_type="application/pdf", name="a.pdf")),
        (ThinkingBlock(content="hm", additional_information={"signature": "s"}), Reasoning("hm", {"signature": "s"})),
        (ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs={"x": 1}), ToolCall("c1", "f", '{"x": 1}')),
        (ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs='{"x":1}'), ToolCall("c1", "f", '{"x":1}')),
        (ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs='{"x": "a"'), ToolCall("c1", "f", '{"x": "a"}')),
        (ToolCallBlock(tool_name="f", tool_kwargs=""), ToolCall("", "f", "{}")),
    ],
)
def test_a_block_becomes_its_part(block, part):
    """Partial and dict arguments read alike; media are bytes or URLs, never downloaded."""
    assert parts_of(block, **ASSISTANT) == (part,)


def test_a_callers_stream_stays_where_it_stands():
    """Reading it for one attempt leaves it as it was for the next, and for the caller."""
    picture = io.BytesIO(PNG)
    block = ImageBlock(image=picture, image_mimetype="image/png")
    picture.seek(3)
    assert parts_of(block) == (Image(PNG, media_type="image/png"),)
    assert picture.tell() == 3


def test_files_are_read_from_disk(tmp_path):
    """A path is read when the request is made; one that is not there is told."""
    (tmp_path / "a.png").write_bytes(PNG)
    (image,) = parts_of(ImageBlock(path=tmp_path / "a.png"))
    assert image == Image(PNG, media_type="image/png")
    with pytest.raises(InvalidRequest, match=r"b\.pdf"):
        parts_of(DocumentBlock(path=str(tmp_path / "b.pdf")))


def test_text_documents_are_told_in_words():
    """Every target can read them so."""
    assert parts_of(DocumentBlock(data=b"# Notes", document_mimetype="text/markdown", title="n.md")) == (
        Text("n.md\n\n# Notes"),
    )


def test_a_film_is_a_file_of_its_kind():
    """Whether a target takes it is its own matter."""
    data = b"....ftypmp42"
    assert parts_of(VideoBlock(video=data, video_mimetype="video/mp4")) == (File(data, media_type="video/mp4"),)
    (back,) = from_messages(to_messages([ChatMessage(blocks=[VideoBlock(video=data, video_mimetype="video/mp4")])]))
    assert isinstance(back.blocks[0], VideoBlock)


def test_empty_texts_and_cache_points_are_no_parts():
    """A cache point marks its message."""
    point = CachePoint(cache_control=CacheControl(type="ephemeral"))
    (message,) = to_messages([ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text=""), point])])
    assert message.parts == (Text("a"),)
    assert message.cache_hint


def test_citable_content_is_told_with_its_source():
    """Title and source, then the content."""
    block = CitableBlock(title="T", source="s", content=[TextBlock(text="body")])
    assert parts_of(block) == (Text("T (s)"), Text("body"))


def test_tool_results_find_their_call():
    """The id is where LlamaIndex's agents put it."""
    message = ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": "c1", "name": "f"})
    assert to_messages([message])[0].parts == (ToolResult("c1", (Text("42"),), "f"),)


@pytest.mark.parametrize(
    "legacy",
    [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        SimpleNamespace(id="c1", type="function", function=SimpleNamespace(name="f", arguments='{"x": 1}')),
        {"id": "c1", "type": "tool_use", "name": "f", "input": {"x": 1}},
        ToolSelection(tool_id="c1", tool_name="f", tool_kwargs={"x": 1}),
    ],
    ids=["openai dict", "openai object", "anthropic dict", "ToolSelection"],
)
def test_legacy_tool_calls_are_read_where_there_are_no_blocks(legacy):
    """Four forms in additional_kwargs, one call; with blocks beside them they are not read twice."""
    kwargs = {"tool_calls": [legacy]}
    assert parts_of(**ASSISTANT, additional_kwargs=kwargs) == (ToolCall("c1", "f", '{"x": 1}'),)
    block = ToolCallBlock(tool_call_id="c2", tool_name="g")
    assert parts_of(block, **ASSISTANT, additional_kwargs=kwargs) == (ToolCall("c2", "g", "{}"),)


def test_who_wrote_a_message_is_remembered_through_json():
    """Origin and the opaque state of calls survive a chat store."""
    origin = Origin("google", "gemini-2.5-flash", "https://example.com")
    call = ToolCall("c1", "f", "{}", {"thought_signature": "abc"})
    message = ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="c1", tool_name="f")],
        additional_kwargs={"fallback_origin": stamp_of(origin, [call])},
    )
    revived = ChatMessage.model_validate_json(message.model_dump_json())
    (told,) = to_messages([revived])
    assert told.origin == origin
    assert told.parts == (call,)


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


@pytest.mark.parametrize("form", ["tool", "dict", "spec"])
def test_tools_come_as_tools_dicts_or_specs(form):
    """All read alike."""
    tool = FunctionTool.from_defaults(add)
    spec = tool.metadata.to_openai_tool()["function"]
    given = {"tool": tool, "dict": {"type": "function", "function": spec}}.get(form)
    given = given or ToolSpec(spec["name"], spec["description"], spec["parameters"])
    (read,) = to_request([ChatMessage(content="x")], streaming=False, tools=[given]).tools
    assert read.name == "add"
    assert "Add two numbers." in read.description
    assert read.parameters["required"] == ["x"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, "auto"),
        ({"tool_choice": "required"}, "any"),
        ({"tool_choice": "any"}, "any"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "add"),
        ({"tool_choice": {"type": "tool", "name": "add"}}, "add"),
        ({"tool_choice": "add"}, "add"),
        ({"tool_required": True}, "any"),
        ({"tool_required": True, "tool_choice": "add"}, "add"),
    ],
)
def test_forced_choices_have_one_word_each(given, read):
    """OpenAI's, Anthropic's and LlamaIndex's words."""
    tools = [FunctionTool.from_defaults(add)]
    assert to_request([ChatMessage(content="x")], streaming=False, tools=tools, **given).tool_choice == read


def test_without_tools_there_is_no_choice():
    """FunctionAgent passes its options even when it has no tools."""
    options = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "tool_required": True}
    request = to_request([ChatMessage(content="x")], streaming=False, **options)
    assert (request.tools, request.tool_choice, request.parallel_tool_calls) == ((), None, None)


# ── any conversation ─────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(max_size=12)
arguments = st.one_of(st.dictionaries(texts, st.integers() | texts, max_size=2), texts, st.just('{"a": [1, {"b'))
blocks = st.one_of(
    st.builds(TextBlock, text=texts),
    st.builds(ThinkingBlock, content=texts, additional_information=st.dictionaries(texts, texts, max_size=1)),
    st.builds(ToolCallBlock, tool_call_id=st.none() | texts, tool_name=st.just("f"), tool_kwargs=arguments),
    st.builds(ImageBlock, image=st.just(PNG)),
    st.builds(DocumentBlock, data=st.just(PDF)),
    st.just(CachePoint(cache_control=CacheControl(type="ephemeral"))),
)
messages = st.builds(
    ChatMessage,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    blocks=st.lists(blocks, max_size=3),
    additional_kwargs=st.dictionaries(st.sampled_from(["tool_call_id", "name", "x"]), texts, max_size=2),
)


@given(st.lists(messages, max_size=4))
def test_any_conversation_is_read_and_never_touched(conversation):
    """Whatever is in it, the caller's messages are the same afterwards, and calls carry JSON where that can be."""
    before = copy.deepcopy(conversation)
    told = to_messages(conversation)
    assert conversation == before
    assert len(told) == len(conversation)
    for message in told:
        for part in message.parts:
            if isinstance(part, ToolCall) and part.arguments.startswith("{"):
                json.loads(part.arguments)


@given(st.lists(messages, max_size=4))
def test_going_to_llamaindex_and_back_changes_nothing_neutral(conversation):
    """What a wrapped LLM is told says what the request said."""
    told = to_messages(conversation)
    again = to_messages(from_messages(told))

    def said(messages):
        return [(p.text if isinstance(p, Text) else type(p).__name__) for m in messages for p in m.parts]

    assert said(again) == said(told)
