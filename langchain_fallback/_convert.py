"""LangChain's messages, tools and keywords as a `ChatRequest`; answers and events as LangChain's messages and chunks.

Pure functions: nothing the caller hands in is changed, kept or sent. Every LangChain message becomes exactly one
neutral message, in order, so that position `n` means the same on both sides.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from shared_core.chat.events import (
    Answer,
    ChatEvent,
    Continued,
    Finished,
    FinishReason,
    ReasoningDelta,
    Restarted,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from shared_core.chat.request import (
    Audio,
    ChatRequest,
    Constraints,
    File,
    Image,
    Message,
    Native,
    Origin,
    OutputSchema,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from shared_core.errors import InvalidRequest, UnknownOption, nearest

__all__ = [
    "CALL_OPTIONS",
    "FRAMEWORK",
    "BoundTools",
    "Chunks",
    "bound_tools",
    "from_langchain",
    "ls_provider",
    "message_of",
    "provider_of",
    "to_langchain",
    "to_request",
    "usage_metadata",
    "usage_of",
]

FRAMEWORK = "langchain"
"""What `Native.framework` says when LangChain's own objects ride along."""

# ── who is who: LangChain's names of vendors and ours ────────────────────────────────────────────────────────────────

_BLIND = frozenset({"anthropic", "bedrock", "bedrock_converse"})
"""LangChain reads these vendors' tool calls from content blocks only, and sees none beside a plain text.

We keep text plain whoever answers, so a message of theirs with tool calls goes without `model_provider`: LangChain then
reads `tool_calls`. The vendor's name stays in the `fallback` metadata.
"""
_LS_NAME = {"google": "google_genai", "google-legacy": "google_genai", "azure-openai": "azure"}
_OUR_NAME = {"google_genai": "google", "google_vertexai": "google-vertexai"}


def ls_provider(provider: str) -> str:
    """The name LangChain's block translators, tracers and middleware know a provider by: 'google' is 'google_genai'."""
    return _LS_NAME.get(provider, provider)


def provider_of(name: str) -> str:
    """Our name for what LangChain calls `name`."""
    return _OUR_NAME.get(name, name.replace("_", "-"))


# ── content in ───────────────────────────────────────────────────────────────────────────────────────────────────────

_OPAQUE = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})
_CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "input_json_delta"}
)
_MEDIA: Mapping[str, type[Image | File | Audio]] = {
    "image": Image,
    "image_url": Image,
    "input_image": Image,
    "audio": Audio,
    "input_audio": Audio,
    "file": File,
    "input_file": File,
    "document": File,
    "media": File,
}


def _unsupported(block: Any) -> InvalidRequest:
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    return InvalidRequest(f"content block of type {kind!r} means nothing outside the vendor it was made for")


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{what} is not base64: {error}") from error


def _from_url(
    kind: type[Image | File | Audio], url: str, media_type: str | None, name: str | None
) -> Image | File | Audio:
    if url.startswith("data:"):
        head, _, body = url[5:].partition(",")
        mime, _, _ = head.partition(";")
        return kind(
            data=_decoded(body, f"a data: URL of {mime or 'unknown type'}"),
            media_type=media_type or mime or None,
            name=name,
        )
    return kind(url=url, media_type=media_type, name=name)


def _media(block: Mapping[str, Any]) -> Image | File | Audio | Text:
    """An image, audio or file block of LangChain v0, v1, OpenAI, Anthropic or Gemini shape."""
    block_type = block["type"]
    kind = _MEDIA[block_type]
    inner: Any = block.get(block_type) if isinstance(block.get(block_type), (Mapping, str)) else None
    if inner is None:
        inner = block.get("source") if isinstance(block.get("source"), Mapping) else block
    if isinstance(inner, str):
        inner = {"url": inner}
    inner_type = inner.get("source_type") or (inner.get("type") if inner is not block else None)
    mime: str | None = block.get("mime_type") or inner.get("mime_type") or inner.get("media_type")
    extras = block.get("extras") if isinstance(block.get("extras"), Mapping) else {}
    name = (
        block.get("filename")
        or inner.get("filename")
        or block.get("title")
        or block.get("name")
        or (extras or {}).get("filename")
    )
    if block_type == "media" and mime:
        kind = Image if mime.startswith("image/") else Audio if mime.startswith("audio/") else File
    if inner_type == "text":
        return Text(str(inner.get("data") or inner.get("text") or ""))
    if inner.get("format") and not mime:  # OpenAI's input_audio
        mime = f"audio/{inner['format']}"
    detail = {"detail": inner.get("detail") or block.get("detail")} if kind is Image else {}
    data = inner.get("base64") or inner.get("data") or inner.get("file_data") or inner.get("image_data")
    url = inner.get("url") or inner.get("file_uri") or inner.get("image_url") or inner.get("file_url")
    file_id = inner.get("file_id") or (inner.get("id") if inner_type in ("id", "file") else None)
    if isinstance(data, bytes):
        return kind(data=data, media_type=mime, name=name, **detail)
    if isinstance(data, str) and data.startswith("data:"):
        url, data = data, None
    if isinstance(data, str) and data:
        return kind(data=_decoded(data, f"{block_type} data"), media_type=mime, name=name, **detail)
    if isinstance(url, str) and url:
        media = _from_url(kind, url, mime, name)
        if detail.get("detail") and isinstance(media, Image):
            return Image(
                data=media.data, url=media.url, media_type=media.media_type, name=media.name, detail=detail["detail"]
            )
        return media
    if file_id:
        return kind(file_id=str(file_id), media_type=mime, name=name, **detail)
    raise InvalidRequest(f"content block of type {block_type!r} has neither data, URL nor file id")


def _reasoning(block: Mapping[str, Any]) -> Reasoning:
    """A thinking block of any vendor: its text, and the whole of what only its origin understands."""
    if block["type"] == "reasoning" and ("reasoning" in block or "extras" in block):  # LangChain v1, ours included
        return Reasoning(str(block.get("reasoning") or ""), dict(block.get("extras") or {}))
    text = block.get("thinking") or block.get("reasoning") or block.get("text") or ""
    if not text and isinstance(summary := block.get("summary"), Sequence):
        text = "".join(str(s.get("text", "")) for s in summary if isinstance(s, Mapping))
    data = {key: value for key, value in block.items() if key not in ("index", "thinking")}
    return Reasoning(text if isinstance(text, str) else "", data)


def _parts(
    content: str | list[str | dict[str, Any]], *, assistant: bool, known_calls: frozenset[str]
) -> Iterator[Part]:
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for block in content:
        if isinstance(block, str):
            if block:
                yield Text(block)
            continue
        match block.get("type"):
            case "text" | "input_text" | "output_text" | "text-plain":
                if text := block.get("text"):
                    yield Text(text)
            case "refusal":
                if text := block.get("refusal"):
                    yield Text(text)
            case kind if kind in _MEDIA:
                yield _media(block)
            case kind if kind in _OPAQUE:
                if assistant:
                    yield _reasoning(block)
            case kind if kind in _CALLS:
                if assistant and kind in ("tool_use", "tool_call") and block.get("id") not in known_calls:
                    arguments = block.get("input") if kind == "tool_use" else block.get("args")
                    yield ToolCall(
                        str(block.get("id") or ""), str(block.get("name") or ""), json.dumps(arguments or {})
                    )
            case "tool_result":
                inner = block.get("content") or ""
                yield ToolResult(
                    str(block.get("tool_use_id") or ""),
                    tuple(_parts(inner, assistant=False, known_calls=frozenset())),
                    is_error=bool(block.get("is_error")),
                )
            case None if "cachePoint" in block or "text" in block:
                if text := block.get("text"):
                    yield Text(text)
            case _:
                if not assistant:
                    raise _unsupported(block)
                # What a vendor's own server tools left in its answer is state of that vendor, like its thinking.
                yield Reasoning("", dict(block))


def _cache_hint(message: BaseMessage) -> bool:
    if isinstance(message.content, list):
        return any(isinstance(b, dict) and ("cache_control" in b or "cachePoint" in b) for b in message.content)
    return "cache_control" in message.additional_kwargs


_CHAT_ROLES: Mapping[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_NONE: frozenset[str] = frozenset()
_GEMINI_SIGNATURES = "__gemini_function_call_thought_signatures__"
_CALL_DATA = "fallback_tool_call_data"


def _assistant(message: AIMessage) -> Message:
    content = message.content
    calls: list[ToolCall] = []
    if message.tool_calls or message.invalid_tool_calls:
        data = message.additional_kwargs.get(_CALL_DATA) or {}
        signatures = message.additional_kwargs.get(_GEMINI_SIGNATURES) or {}
        for call in message.tool_calls:
            key = call.get("id") or ""
            own = data.get(key) or ({"thought_signature": signatures[key]} if key in signatures else {})
            calls.append(ToolCall(key, call["name"], json.dumps(call["args"], ensure_ascii=False), own))
        # A call whose arguments were no JSON is still a call that was made: the result that follows belongs to it.
        calls += [
            ToolCall(c.get("id") or "", c.get("name") or "", c.get("args") or "{}") for c in message.invalid_tool_calls
        ]
    parts: list[Part] = []
    if type(content) is not str or content:
        known = frozenset(call.id for call in calls) if calls else _NONE
        parts.extend(_parts(content, assistant=True, known_calls=known))
    thoughts = message.additional_kwargs.get("reasoning_content")
    if isinstance(thoughts, str) and thoughts:
        parts.insert(0, Reasoning(thoughts, {"reasoning_content": thoughts}))
    parts.extend(calls)
    origin = None
    metadata = message.response_metadata
    provider = metadata.get("model_provider") or (metadata.get("fallback") or {}).get("provider")
    if provider:
        origin = Origin(provider_of(str(provider)), str(metadata.get("model_name") or ""))
    return Message("assistant", tuple(parts), message.name, origin, _cache_hint(message))


def _neutral(message: BaseMessage) -> Message:
    content = cast("str | list[str | dict[str, Any]]", message.content)
    if isinstance(message, AIMessage):
        return _assistant(message)
    if isinstance(message, ToolMessage):
        inner = tuple(_parts(content, assistant=False, known_calls=_NONE))
        result = ToolResult(message.tool_call_id, inner, message.name, message.status == "error")
        return Message("tool", (result,), cache_hint=_cache_hint(message))
    role: Role
    if isinstance(message, HumanMessage):
        role = "user"
    elif isinstance(message, SystemMessage):
        role = "system"
    elif isinstance(message, FunctionMessage):
        inner = tuple(_parts(content, assistant=False, known_calls=_NONE))
        return Message("tool", (ToolResult(message.name, inner, message.name),))
    elif isinstance(message, ChatMessage) and message.role in _CHAT_ROLES:
        role = _CHAT_ROLES[message.role]
    else:
        kind = f"role {message.role!r}" if isinstance(message, ChatMessage) else type(message).__name__
        raise InvalidRequest(f"a message of {kind} cannot be sent to a model")
    if type(content) is str:
        return Message(
            role, (Text(content),) if content else (), message.name, None, "cache_control" in message.additional_kwargs
        )
    parts = tuple(_parts(content, assistant=role == "assistant", known_calls=_NONE))
    return Message(role, parts, message.name, None, _cache_hint(message))


def from_langchain(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The neutral form of `messages`, one for one.

    Raises:
        InvalidRequest: a message or a content block that no other vendor could be told about.
    """
    return tuple(_neutral(message) for message in messages)


# ── content out ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _block(part: Image | File | Audio) -> dict[str, Any]:
    kind = "image" if isinstance(part, Image) else "audio" if isinstance(part, Audio) else "file"
    block: dict[str, Any] = {"type": kind}
    if part.data is not None:
        block["base64"] = part.base64
    elif part.url is not None:
        block["url"] = part.url
    else:
        block["file_id"] = part.file_id
    if part.media_type:
        block["mime_type"] = part.media_type
    if part.name:
        block["filename"] = part.name
    return block


def _content(parts: Sequence[Part]) -> str | list[str | dict[str, Any]]:
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    blocks: list[str | dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, (Image, File, Audio)):
            blocks.append(_block(part))
    return blocks


def to_langchain(messages: Sequence[Message], origin: Origin | None = None) -> list[BaseMessage]:
    """LangChain's form of neutral messages, for a target of `origin`: thinking of other origins stays behind."""
    out: list[BaseMessage] = []
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        rest = [part for part in message.parts if not isinstance(part, ToolResult)]
        out.extend(
            ToolMessage(
                content=_content(result.content),
                tool_call_id=result.call_id,
                name=result.name,
                status="error" if result.is_error else "success",
            )
            for result in results
        )
        if results and not rest:
            continue
        if message.role == "assistant":
            out.append(_assistant_out(message, origin))
        elif message.role == "system":
            out.append(SystemMessage(content=_content(rest), name=message.name))
        else:
            out.append(HumanMessage(content=_content(rest), name=message.name))
    return out


def _assistant_out(message: Message, origin: Origin | None) -> AIMessage:
    own = origin is not None and message.origin is not None and message.origin.provider == origin.provider
    thoughts = [part for part in message.parts if isinstance(part, Reasoning)] if own else []
    spoken = [part for part in message.parts if not isinstance(part, (Reasoning, ToolCall))]
    content = _content(spoken)
    metadata: dict[str, Any] = {}
    if thoughts:
        texts: list[Any] = (
            [{"type": "text", "text": content}] if isinstance(content, str) and content else list(content)
        )
        content = [{"type": "reasoning", "reasoning": t.text, "extras": dict(t.data)} for t in thoughts] + texts
        metadata["output_version"] = "v1"
    if message.origin is not None:
        metadata["model_provider"] = ls_provider(message.origin.provider)
    return _ai_message(AIMessage, content, message.tool_calls, name=message.name, response_metadata=metadata)


def _ai_message(cls: type[AIMessage], content: Any, calls: Sequence[ToolCall], **fields: Any) -> AIMessage:
    """An assistant message with its tool calls; what is not a JSON object becomes an invalid call, never an error."""
    if not calls:
        return cls(content=content, **fields)
    good, bad, data = [], [], {}
    for call in calls:
        try:
            good.append(tool_call(id=call.id, name=call.name, args=call.parsed()))
        except InvalidRequest as error:
            bad.append(invalid_tool_call(id=call.id, name=call.name, args=call.arguments, error=str(error)))
        if call.data:
            data[call.id] = dict(call.data)
    if data:
        fields["additional_kwargs"] = {**fields.get("additional_kwargs", {}), _CALL_DATA: data}
    return cls(content=content, tool_calls=good, invalid_tool_calls=bad, **fields)


# ── usage and metadata ───────────────────────────────────────────────────────────────────────────────────────────────


def usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """LangChain's form of `usage`, details included where they are not zero; None when nothing was counted."""
    if usage is None or not usage.total_tokens:
        return None
    out = UsageMetadata(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=usage.total_tokens
    )
    if usage.cached_tokens or usage.cache_write_tokens:
        details = InputTokenDetails(cache_read=usage.cached_tokens)
        if usage.cache_write_tokens:
            details["cache_creation"] = usage.cache_write_tokens
        out["input_token_details"] = details
    if usage.reasoning_tokens:
        out["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return out


def usage_of(metadata: UsageMetadata | None) -> Usage | None:
    """Our form of LangChain's usage."""
    if metadata is None:
        return None
    inputs: Mapping[str, Any] = metadata.get("input_token_details") or {}
    outputs: Mapping[str, Any] = metadata.get("output_token_details") or {}
    # ChatAnthropic reports cache writes by lifetime, and then leaves `cache_creation` at zero.
    by_lifetime = int(inputs.get("ephemeral_5m_input_tokens") or 0) + int(inputs.get("ephemeral_1h_input_tokens") or 0)
    return Usage(
        metadata["input_tokens"],
        metadata["output_tokens"],
        cached_tokens=int(inputs.get("cache_read") or 0),
        cache_write_tokens=int(inputs.get("cache_creation") or 0) or by_lifetime,
        reasoning_tokens=int(outputs.get("reasoning") or 0),
    )


def _usage(native: AIMessage | None, usage: Usage | None, metadata: dict[str, Any]) -> UsageMetadata | None:
    """What the answer used. A wrapped model's own figures, with all their details, where they are the whole of it."""
    own = native.usage_metadata if native is not None else None
    if own is not None and (usage is None or own["total_tokens"] == usage.total_tokens):
        return own
    if usage is not None and usage.estimated and usage.total_tokens:
        metadata["usage_estimated"] = True  # nobody reported all of it; some of it is our own count
    return usage_metadata(usage)


def _metadata(
    *,
    model: str | None,
    provider: str | None,
    reason: FinishReason,
    raw_reason: str | None,
    response_id: str | None,
    extra: Mapping[str, Any],
    fallback: Mapping[str, Any],
    native: AIMessage | None,
) -> dict[str, Any]:
    """`response_metadata`, once per answer: the vendor's facts under the names LangChain's own integrations use."""
    out: dict[str, Any] = dict(native.response_metadata) if native is not None else dict(extra)
    if model:
        out.setdefault("model_name", model)
    if provider:
        out.setdefault("model_provider", ls_provider(provider))
    if not ("finish_reason" in out or "stop_reason" in out):
        out["finish_reason"] = raw_reason or reason
        if provider == "anthropic":
            out["stop_reason"] = raw_reason or reason
    if response_id:
        out.setdefault("id", response_id)
    if fallback:
        out["fallback"] = dict(fallback)
    return out


def _agrees(native: Any, text: str, calls: int) -> bool:
    """Whether a wrapped model's own message says what the answer says: not when another target continued it."""
    return (
        isinstance(native, AIMessage)
        and len(native.tool_calls) + len(native.invalid_tool_calls) == calls
        and native.text == text
    )


def message_of(answer: Answer) -> AIMessage:
    """The answer as LangChain's message: the wrapped model's own where there is one, with our metadata added."""
    native = answer.native if _agrees(answer.native, answer.text, len(answer.tool_calls)) else None
    metadata = _metadata(
        model=answer.model,
        provider=answer.provider,
        reason=answer.finish_reason,
        raw_reason=answer.raw_finish_reason,
        response_id=answer.response_id,
        extra=answer.extra,
        fallback=answer.fallback,
        native=native,
    )
    if native is not None:
        # A copy: fakes and caches hand out the same message twice.
        update: dict[str, Any] = {
            "response_metadata": metadata,
            "usage_metadata": _usage(native, answer.usage, metadata),
        }
        own: AIMessage = native.model_copy(update=update)
        return own
    content: Any = answer.text
    if answer.reasoning:
        content = [
            {"type": "reasoning", "reasoning": r.text, **({"extras": dict(r.data)} if r.data else {})}
            for r in answer.reasoning
        ]
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_call", "id": c.id, "name": c.name, "args": _arguments(c)}
            for c in answer.tool_calls
            if _arguments(c) is not None
        ]
        metadata["output_version"] = "v1"
    elif answer.tool_calls and metadata.get("model_provider") in _BLIND:
        del metadata["model_provider"]
    return _ai_message(
        AIMessage,
        content,
        answer.tool_calls,
        response_metadata=metadata,
        usage_metadata=_usage(None, answer.usage, metadata),
    )


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    try:
        return call.parsed()
    except InvalidRequest:
        return None


class Chunks:
    """Turns the router's events of one answer into LangChain's chunks.

    Text goes out as plain strings. Once the model has thought aloud, content is LangChain v1 blocks for the rest of the
    answer (and every chunk says so), since strings and blocks do not merge into either. Metadata and usage are on the
    last chunk and nowhere else: LangChain joins strings and adds numbers when it merges chunks.
    """

    __slots__ = ("_blocks", "_calls", "_index", "_kind", "_text")

    def __init__(self) -> None:
        self._blocks = False
        self._index = -1
        self._kind = ""
        self._calls = 0
        self._text: list[str] = []

    def feed(self, event: ChatEvent) -> ChatGenerationChunk | None:
        """The chunk for one event, if the event has anything to show."""
        if isinstance(event, TextDelta):
            self._text.append(event.text)
            if not self._blocks:
                return ChatGenerationChunk(message=AIMessageChunk(content=event.text), text=event.text)
            return self._blocky({"type": "text", "text": event.text})
        if isinstance(event, ReasoningDelta):
            self._blocks = True
            block: dict[str, Any] = {"type": "reasoning", "reasoning": event.text}
            if event.data:
                block["extras"] = dict(event.data)
            chunk = self._blocky(block)
            if event.data:  # the block is complete; what comes next is another
                self._kind = ""
            return chunk
        if isinstance(event, ToolCall):
            return self._tool_call(event)
        if isinstance(event, Finished):
            return self._last(event)
        if isinstance(event, Restarted):
            # What was shown cannot be taken back from here; whoever reads chunk by chunk can clear its screen.
            mark = {"target": event.target, "discard": len("".join(self._text))}
            self._text.clear()
            return ChatGenerationChunk(
                message=AIMessageChunk(
                    content=[] if self._blocks else "", response_metadata={"fallback_restarted": mark}
                )
            )
        if isinstance(event, (Started, Continued)):
            return None
        if isinstance(event, ToolCallDelta):
            raise TypeError("the router delivers whole tool calls; a fragment is a bug of ours")
        raise TypeError(f"unknown event {event!r}")

    def _blocky(self, block: dict[str, Any]) -> ChatGenerationChunk:
        if block["type"] != self._kind:
            self._kind = block["type"]
            self._index += 1
        block["index"] = self._index
        return ChatGenerationChunk(message=AIMessageChunk(content=[block], response_metadata={"output_version": "v1"}))

    def _tool_call(self, call: ToolCall) -> ChatGenerationChunk:
        index = self._calls
        self._calls += 1
        content: Any = ""
        metadata: dict[str, Any] = {}
        if self._blocks:
            self._kind = ""
            self._index += 1
            index = self._index
            content = [
                {"type": "tool_call_chunk", "id": call.id, "name": call.name, "args": call.arguments, "index": index}
            ]
            metadata["output_version"] = "v1"
        message = AIMessageChunk(
            content=content,
            tool_call_chunks=[tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=index)],
            additional_kwargs={_CALL_DATA: {call.id: dict(call.data)}} if call.data else {},
            response_metadata=metadata,
        )
        return ChatGenerationChunk(message=message)

    def _last(self, event: Finished) -> ChatGenerationChunk:
        native = event.native if _agrees(event.native, "".join(self._text), self._calls) else None
        metadata = _metadata(
            model=event.model,
            provider=event.provider,
            reason=event.reason,
            raw_reason=event.raw_reason,
            response_id=event.response_id,
            extra=event.extra,
            fallback=event.fallback,
            native=native,
        )
        if self._blocks:
            metadata["output_version"] = "v1"
        else:
            metadata.pop("output_version", None)  # a wrapped model's; our content is a string
            if self._calls and metadata.get("model_provider") in _BLIND:
                del metadata["model_provider"]
        message = AIMessageChunk(
            content=[] if self._blocks else "",
            response_metadata=metadata,
            additional_kwargs=_extras(native) if native is not None else {},
            usage_metadata=_usage(native, event.usage, metadata),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _extras(native: AIMessage) -> dict[str, Any]:
    # Tool calls and thinking have gone out already; the rest (a parsed answer, a refusal, audio) comes here.
    return {
        k: v
        for k, v in native.additional_kwargs.items()
        if k not in ("tool_calls", "function_call", "reasoning_content")
    }


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class BoundTools(list[dict[str, Any]]):
    """Tools in OpenAI's form, as bound to a model. The list never changes, so what is compiled from it can be kept."""

    __slots__ = ("compiled", "specs")

    specs: tuple[ToolSpec, ...] | None
    compiled: dict[Any, Any]

    def __init__(self, tools: Sequence[dict[str, Any]]) -> None:
        super().__init__(tools)
        self.specs = None
        self.compiled = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundTools, (list(self),)


def bound_tools(tools: Sequence[Any], *, strict: bool | None = None) -> BoundTools:
    """`tools` (functions, models, `BaseTool`s, schemas of any dialect) in the form every target is compiled from."""
    return BoundTools([_openai_form(one, strict) for one in tools])


def _openai_form(tool: Any, strict: bool | None = None) -> dict[str, Any]:
    return cast("dict[str, Any]", tool) if _server_side(tool) else convert_to_openai_tool(tool, strict=strict)


def _server_side(tool: Any) -> bool:
    """Whether `tool` is a vendor's own (web search, code execution): a dict that describes no function of ours."""
    if not isinstance(tool, Mapping) or not tool.keys().isdisjoint({"function", "parameters", "input_schema"}):
        return False
    if "properties" in tool or tool.get("type", "function") in ("function", "object"):
        return tool.keys().isdisjoint({"name", "title", "type"})  # Gemini's: {"google_search": {}}
    return True


def _spec(tool: Mapping[str, Any], strict: bool | None) -> ToolSpec | None:
    """A `ToolSpec`, or None for a tool that lives on one vendor's servers."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return None
    fields: dict[str, Any] = {}
    if parameters := function.get("parameters"):
        fields["parameters"] = parameters
    chosen = function.get("strict")
    return ToolSpec(
        function["name"], function.get("description") or "", strict=strict if chosen is None else chosen, **fields
    )


def _specs(tools: Sequence[Any], strict: bool | None) -> tuple[tuple[ToolSpec, ...], bool]:
    """The tools everyone can be told about, and whether there are others."""
    if isinstance(tools, BoundTools) and tools.specs is not None and strict is None:
        return tools.specs, len(tools.specs) != len(tools)
    converted = tools if isinstance(tools, BoundTools) else [_openai_form(tool) for tool in tools]
    specs = tuple(spec for tool in converted if (spec := _spec(tool, strict)) is not None)
    if isinstance(tools, BoundTools) and strict is None:
        tools.specs = specs
    return specs, len(specs) != len(converted)


def neutral_choice(choice: Any) -> str | None:
    """`tool_choice` in any dialect as 'auto', 'any', 'none', a tool's name, or None.

    Raises:
        InvalidRequest: a form that no other vendor could be told about.
    """
    match choice:
        case None | False | "":
            return None
        case True | "any" | "required":
            return "any"
        case str():
            return choice
        case {"type": "function", "function": {"name": str(name)}} | {"type": "tool" | "function", "name": str(name)}:
            return name
        case {"type": "any" | "required"}:
            return "any"
        case {"type": "auto" | "none" as kind}:
            return str(kind)
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise InvalidRequest(
                f"tool_choice {choice!r} is none of 'auto', 'any', 'none', a tool's name and their dict forms"
            )


def output_schema(response_format: Any, strict: bool | None = None) -> OutputSchema | None:
    """`response_format` in OpenAI's form, or a schema of any kind, as what the answer must look like.

    Raises:
        InvalidRequest: a form nobody knows, or a broken schema.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputSchema(strict=strict)
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema, **rest}}:
            return OutputSchema(schema, str(rest.get("name") or "answer"), _flag(rest.get("strict"), strict))
        case {"type": "json_schema", "schema": Mapping() as schema, **rest}:
            return OutputSchema(schema, str(rest.get("name") or "answer"), _flag(rest.get("strict"), strict))
        case _:
            try:
                schema = dict(convert_to_json_schema(response_format))
            except (TypeError, ValueError) as error:
                raise InvalidRequest(
                    f"response_format is neither a schema nor a form that OpenAI takes: {error}"
                ) from error
            name = str(schema.get("title") or "answer")
            return OutputSchema(schema, "".join(c if c.isalnum() or c in "_-" else "_" for c in name)[:64], strict)


def _flag(value: object, default: bool | None) -> bool | None:
    return value if isinstance(value, bool) else default


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────────

CALL_OPTIONS = frozenset(
    {
        "stop", "temperature", "max_tokens", "max_completion_tokens", "max_output_tokens", "top_p", "seed", "timeout",
        "model", "tools", "tool_choice", "parallel_tool_calls", "response_format", "strict", "chain", "tags", "user",
        "constraints", "extra",
    }
)  # fmt: skip
"""What `invoke`, `stream` and `bind` accept beside the messages."""
_FRAMEWORK_NOISE = frozenset({"stream", "ls_structured_output_format", "structured_output_format"})


def _first(kwargs: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if kwargs.get(name) is not None:
            return kwargs[name]
    return None


def _constraints(value: Any) -> Constraints:
    if value is None:
        return Constraints()
    if isinstance(value, Constraints):
        return value
    try:
        return Constraints(**value)
    except TypeError as error:
        names = list(Constraints.__dataclass_fields__)
        wrong = next((key for key in value if key not in names), "") if isinstance(value, Mapping) else str(value)
        raise UnknownOption(f"Constraints has no option {wrong!r}. {nearest(wrong, names)}") from error


def to_request(
    messages: Sequence[BaseMessage],
    stop: Sequence[str] | None,
    kwargs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    streaming: bool,
    providers: frozenset[str],
    foreign: frozenset[str] = frozenset(),
    wrapped: bool = False,
) -> ChatRequest:
    """One call as a `ChatRequest`. LangChain's own objects ride along in `native`, for targets that speak them.

    Args:
        messages: the conversation; never changed.
        stop: stop sequences of this call.
        kwargs: what the caller bound or passed.
        defaults: `temperature`, `max_tokens`, `stop` and `timeout` of the model, where the call says nothing.
        streaming: which call to make on the wire.
        providers: names that may key vendor options: ``openai={"service_tier": "flex"}``.
        foreign: names of the targets that do not speak LangChain.
        wrapped: whether some target does.

    Raises:
        InvalidRequest: the request is impossible for every target.
        UnknownOption: a keyword that nobody knows; names the nearest.
    """
    extra: dict[str, Any] = {}
    if kwargs:
        extra.update(kwargs.get("extra") or {})
        for key, value in kwargs.items():
            if key in CALL_OPTIONS or key in _FRAMEWORK_NOISE:
                continue
            if key in providers and isinstance(value, Mapping):
                extra[key] = {**extra.get(key, {}), **value}
                continue
            example = f"{min(providers, default='openai')}={{{key!r}: …}}"
            raise UnknownOption(
                f"a call has no option {key!r}. {nearest(key, CALL_OPTIONS)}\n"
                f"hint: what only one vendor understands is given under the vendor's name: {example}"
            )
    only_wrapped = False  # something in this call means nothing to targets that do not speak LangChain
    try:
        neutral = from_langchain(messages)
    except InvalidRequest:
        if not wrapped:
            raise
        neutral, only_wrapped = _readable(messages), True
    get = kwargs.get
    specs: tuple[ToolSpec, ...] = ()
    choice = None
    if tools := get("tools"):
        specs, server_side = _specs(tools, get("strict"))
        if server_side and not wrapped:
            raise InvalidRequest(
                "a tool that runs on one vendor's servers needs a target of that vendor's own LangChain class"
            )
        only_wrapped = only_wrapped or server_side
        choice = neutral_choice(get("tool_choice"))
    constraints = _constraints(get("constraints"))
    if only_wrapped:
        constraints = Constraints(
            local_only=constraints.local_only,
            allow=constraints.allow,
            deny=constraints.deny | foreign,
            max_price=constraints.max_price,
            require=constraints.require,
        )
    max_tokens = _first(kwargs, "max_tokens", "max_completion_tokens", "max_output_tokens")
    temperature, timeout = get("temperature"), get("timeout")
    stops = stop if stop is not None else get("stop")
    if isinstance(stops, str):
        stops = [stops]
    return ChatRequest(
        messages=neutral,
        tools=specs,
        tool_choice=choice,
        parallel_tool_calls=get("parallel_tool_calls"),
        output=output_schema(get("response_format"), get("strict")) if "response_format" in kwargs else None,
        max_tokens=defaults.get("max_tokens") if max_tokens is None else max_tokens,
        temperature=defaults.get("temperature") if temperature is None else temperature,
        top_p=defaults.get("top_p") if get("top_p") is None else get("top_p"),
        stop=tuple(stops) if stops is not None else defaults.get("stop") or (),
        seed=defaults.get("seed") if get("seed") is None else get("seed"),
        streaming=streaming,
        model=get("model"),
        chain=get("chain"),
        constraints=constraints,
        timeout_s=defaults.get("timeout") if timeout is None else timeout,
        user=get("user"),
        tags=tuple(get("tags") or ()),
        extra=extra,
        native=Native(FRAMEWORK, messages, kwargs) if wrapped else None,
    )


def _readable(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """What can be said about messages that only a wrapped model understands: enough to estimate and to log."""
    out = []
    for message in messages:
        try:
            out.append(_neutral(message))
        except InvalidRequest:
            out.append(Message("assistant" if isinstance(message, AIMessage) else "user", (Text(message.text),)))
    return tuple(out)
