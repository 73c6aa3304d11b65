"""LlamaIndex's messages as neutral ones, and neutral messages as LlamaIndex's. Nothing is ever mutated."""

from __future__ import annotations

import base64
import copy
import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import IOBase
from pathlib import Path
from typing import Any, Final

from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms.utils import parse_partial_json

from shared_core.chat.request import (
    Audio,
    File,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from shared_core.errors import InvalidRequest

FRAMEWORK: Final = "llamaindex"
"""The name under which LlamaIndex's own messages ride along in a request."""

STAMP: Final = "fallback_origin"
"""The key in a message's `additional_kwargs` that says who wrote it, so that opaque blocks go back to nobody else."""

_ROLES: Final[Mapping[MessageRole, Role]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}

# ── messages, theirs to ours ─────────────────────────────────────────────────────────────────────────────────────────


def to_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """LlamaIndex's messages as neutral ones; LlamaIndex's are only read."""
    return tuple(_to_message(message) for message in messages)


def _to_message(message: ChatMessage) -> Message:
    role = _ROLES[message.role]
    kwargs = message.additional_kwargs
    blocks = message.blocks
    if len(blocks) == 1 and type(block := blocks[0]) is TextBlock and not kwargs and role != "tool":
        return Message(role, (Text(block.text),) if block.text else ())  # what most messages are
    hint = "cache_control" in kwargs or any(isinstance(block, CachePoint) for block in message.blocks)
    name = kwargs.get("name") if isinstance(kwargs.get("name"), str) else None
    parts = tuple(part for block in message.blocks for part in parts_of(block))
    if role == "tool":
        result = ToolResult(str(kwargs.get("tool_call_id") or ""), parts, name, kwargs.get("is_error") is True)
        return Message("tool", (result,), cache_hint=hint)
    if role != "assistant":
        return Message(role, parts, name=name, cache_hint=hint)
    if not any(isinstance(block, ToolCallBlock) for block in message.blocks):
        parts += tuple(ToolCall(id_, tool, arguments) for id_, tool, arguments in legacy_calls(message))
    origin, opaque = stamped(message)
    if opaque:
        parts = tuple(_with_opaque(part, opaque) for part in parts)
    return Message("assistant", parts, origin=origin, cache_hint=hint)


def stamped(message: ChatMessage) -> tuple[Origin | None, Mapping[str, Any]]:
    """Who wrote an assistant message, and the opaque state of its tool calls by their id; (None, {}) when unknown."""
    stamp = message.additional_kwargs.get(STAMP)
    if not isinstance(stamp, Mapping) or not isinstance(stamp.get("provider"), str):
        return None, {}
    return Origin(stamp["provider"], stamp.get("model") or "", stamp.get("endpoint")), stamp.get("calls") or {}


def stamp_of(origin: Origin, calls: Iterable[ToolCall] = ()) -> dict[str, Any]:
    """What `stamped` reads back: plain JSON types, so that chat stores keep it."""
    stamp: dict[str, Any] = {"provider": origin.provider, "model": origin.model}
    if origin.endpoint is not None:
        stamp["endpoint"] = origin.endpoint
    opaque = {call.id: dict(call.data) for call in calls if call.data}
    return stamp | ({"calls": opaque} if opaque else {})


def _with_opaque(part: Part, opaque: Mapping[str, Any]) -> Part:
    if isinstance(part, ToolCall) and isinstance(opaque.get(part.id), Mapping):
        return ToolCall(part.id, part.name, part.arguments, dict(opaque[part.id]))
    return part


def parts_of(block: ContentBlock) -> Iterator[Part]:
    """What one block says. Bytes are decoded and files are read here; nothing is fetched.

    Raises:
        InvalidRequest: a block without content, a file that cannot be read, a kind that nobody knows.
    """
    match block:
        case TextBlock():
            if block.text:
                yield Text(block.text)
        case ImageBlock():
            data, url = _content(block.image, block.path, block.url)
            yield Image(data, url, media_type=block.image_mimetype, detail=block.detail)
        case AudioBlock():
            data, url = _content(block.audio, block.path, block.url)
            yield Audio(data, url, media_type=mimetypes.guess_type(f"x.{block.format}")[0] if block.format else None)
        case VideoBlock():
            data, url = _content(block.video, block.path, block.url)
            yield File(data, url, media_type=block.video_mimetype or "video/mp4")
        case DocumentBlock():
            data, url = _content(block.data, block.path, block.url)
            kind = block.document_mimetype
            if data is not None and kind is not None and kind.startswith("text/"):
                yield Text(f"{block.title}\n\n{data.decode('utf-8', 'replace')}")  # every target can read it so
            else:
                yield File(data, url, media_type=kind, name=block.title)
        case ThinkingBlock():
            yield Reasoning(block.content or "", copy.deepcopy(block.additional_information))
        case ToolCallBlock():
            yield ToolCall(block.tool_call_id or "", block.tool_name, arguments_text(block.tool_kwargs))
        case CitableBlock():
            yield Text(f"{block.title} ({block.source})")
            for inner in block.content:
                yield from parts_of(inner)
        case CitationBlock():
            yield from parts_of(block.cited_content)
        case CachePoint():
            return
        case _:
            raise InvalidRequest(f"a {type(block).__name__} cannot be sent: no target takes it through this wrapper")


def _content(data: Any, path: Any, url: Any) -> tuple[bytes | None, str | None]:
    """(bytes, None) or (None, url). LlamaIndex keeps bytes as base64; a stream is read and left where it stood."""
    if isinstance(data, IOBase):
        at = data.tell()
        data.seek(0)
        raw = data.read()
        data.seek(at)
        return raw.encode() if isinstance(raw, str) else raw, None
    if data:
        return base64.b64decode(data), None
    if path:
        try:
            return Path(path).read_bytes(), None
        except OSError as error:
            raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    if url:
        return None, str(url)
    raise InvalidRequest("an image, audio, video or document block needs its data, a path or a url")


def arguments_text(arguments: Any) -> str:
    """Tool arguments as JSON text. LlamaIndex has them as a dict, or as a string that a cut stream left unfinished."""
    if not isinstance(arguments, str):
        return json.dumps(arguments or {}, ensure_ascii=False, default=str)
    if not arguments.strip():
        return "{}"
    try:
        json.loads(arguments)
    except json.JSONDecodeError:
        try:
            return json.dumps(parse_partial_json(arguments), ensure_ascii=False)
        except (ValueError, IndexError):
            return arguments  # told to the model as it is, further down
    return arguments


def arguments_dict(arguments: Any) -> dict[str, Any]:
    """Tool arguments as a dict; empty when they are no JSON object even after repair."""
    try:
        value = json.loads(arguments_text(arguments))
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def legacy_calls(message: ChatMessage) -> Iterator[tuple[str, str, str]]:
    """(id, name, arguments) of the calls in `additional_kwargs`, where older integrations and tests keep them.

    They come as OpenAI's dicts or objects, as Anthropic's dicts, or as LlamaIndex's `ToolSelection`s.
    """
    for call in message.additional_kwargs.get("tool_calls") or ():
        function = peek(call, "function")
        if function is not None:
            yield peek(call, "id") or "", peek(function, "name") or "", arguments_text(peek(function, "arguments"))
        elif peek(call, "tool_name"):
            yield peek(call, "tool_id") or "", peek(call, "tool_name"), arguments_text(peek(call, "tool_kwargs"))
        elif peek(call, "name"):
            yield peek(call, "id") or "", peek(call, "name"), arguments_text(peek(call, "input"))


def peek(thing: Any, key: str) -> Any:
    """`thing[key]` of a mapping, `thing.key` of an object, None where there is neither."""
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)


# ── messages, ours to theirs ─────────────────────────────────────────────────────────────────────────────────────────


def from_messages(messages: Iterable[Message]) -> list[ChatMessage]:
    """Neutral messages as LlamaIndex's, for an integration that a target wraps. Fresh objects: it may mutate them."""
    return [theirs for message in messages for theirs in _from_message(message)]


def _from_message(message: Message) -> Iterator[ChatMessage]:
    said = [part for part in message.parts if not isinstance(part, ToolResult)]
    for part in message.parts:
        if isinstance(part, ToolResult):
            kwargs: dict[str, Any] = {"tool_call_id": part.call_id} | ({"name": part.name} if part.name else {})
            yield ChatMessage(role=MessageRole.TOOL, blocks=_blocks(part.content), additional_kwargs=kwargs)
    if said or not message.parts:
        kwargs = {"name": message.name} if message.name else {}
        blocks = _blocks(said)
        if message.cache_hint:
            blocks.append(CachePoint(cache_control=CacheControl(type="ephemeral")))
        yield ChatMessage(role=MessageRole(message.role), blocks=blocks, additional_kwargs=kwargs)


def _blocks(parts: Iterable[Part]) -> list[ContentBlock]:
    return [block for block in map(block_of, parts) if block is not None]


def block_of(part: Part) -> ContentBlock | None:
    """One part as LlamaIndex's block, fresh; None for a tool's result, which is a message of its own."""
    match part:
        case Text():
            return TextBlock(text=part.text)
        case Image():
            return ImageBlock(image=part.data, url=part.url, image_mimetype=part.media_type, detail=part.detail)
        case Audio():
            kind = (part.media_type or "audio/wav").partition("/")[2]
            return AudioBlock(audio=part.data, url=part.url, format={"mpeg": "mp3", "x-wav": "wav"}.get(kind, kind))
        case File() if (part.media_type or "").startswith("video/"):
            return VideoBlock(video=part.data, url=part.url, video_mimetype=part.media_type)
        case File():
            return DocumentBlock(data=part.data, url=part.url, document_mimetype=part.media_type, title=part.name)
        case Reasoning():
            return ThinkingBlock(content=part.text or None, additional_information=copy.deepcopy(dict(part.data)))
        case ToolCall():
            return ToolCallBlock(tool_call_id=part.id, tool_name=part.name, tool_kwargs=arguments_dict(part.arguments))
        case ToolResult():
            return None  # a message of its own
