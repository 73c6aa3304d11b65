"""LangChain's messages as neutral ones and back: every dialect of content its integrations speak.

Pure functions: nothing the caller hands in is changed or kept. Every LangChain message becomes exactly one neutral
message, in order, so that position `n` means the same on both sides.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import unquote_to_bytes

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

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
from shared_core.history import citations, opaque_kind, told

__all__ = [
    "BLIND",
    "CALL_DATA",
    "CITING",
    "GEMINI_SIGNATURES",
    "ORIGIN",
    "SPOKEN",
    "THOUGHTFUL",
    "THOUGHTS",
    "Family",
    "ai_message",
    "from_langchain",
    "ls_provider",
    "neutral",
    "provider_of",
    "to_langchain",
]

# ── who is who: LangChain's names of vendors and ours ────────────────────────────────────────────────────────────────

BLIND = frozenset({"anthropic", "bedrock", "bedrock_converse"})
"""LangChain reads these vendors' tool calls from content blocks only, and sees none beside a plain text.

An answer of theirs with tool calls is made of blocks, as their own integrations give it. Where its text was begun by
another vendor, as plain strings, it goes without `model_provider`: LangChain then reads `tool_calls`. The vendor's name
stays in the `fallback` metadata.
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

THOUGHTFUL = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})
"""Types of the blocks that hold a model's thinking."""
_TEXTS: Mapping[str, str] = {
    "text": "text", "input_text": "text", "output_text": "text", "text-plain": "text", "refusal": "refusal",
}  # fmt: skip
_CALLS = frozenset({"tool_use", "tool_call", "function_call"})
_TOLD_ELSEWHERE = frozenset(
    {"tool_call_chunk", "invalid_tool_call", "input_json_delta", "function_call_signature", "cachePoint"}
)
"""Pieces of calls that `tool_calls` and `invalid_tool_calls` hold whole, and marks that are no content."""
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
    "video": File,
    "text-plain": File,
}
SPOKEN = frozenset({*_TEXTS, *_TOLD_ELSEWHERE, *_CALLS}) - {"text-plain"}
"""Types of the blocks that are no more than text, or stand elsewhere in the message."""


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
        mime, _, flags = head.partition(";")
        plain = "base64" not in flags.split(";") and mime.startswith("text/")
        data = unquote_to_bytes(body) if plain else _decoded(body, f"a data: URL of {mime or 'unknown type'}")
        return kind(data=data, media_type=media_type or mime or None, name=name)
    return kind(url=url, media_type=media_type, name=name)


def _media(block: Mapping[str, Any]) -> Image | File | Audio | Text:
    """An image, audio, video or file block of LangChain v0, v1, OpenAI, Anthropic or Gemini shape."""
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
    if block_type == "video":
        mime = mime or "video/mp4"
    if inner_type == "text":
        return Text(str(inner.get("data") or inner.get("text") or ""))
    if inner_type == "content":  # Anthropic's document made of blocks
        said = inner.get("content") or ""
        return Text(said if isinstance(said, str) else "\n\n".join(str(b.get("text") or "") for b in said))
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
        data = {k: v for k, v in block.items() if k in ("id", "encrypted_content", "signature")}
        return Reasoning(str(block.get("reasoning") or ""), {**data, **(block.get("extras") or {})})
    text = block.get("thinking") or block.get("reasoning") or block.get("text") or ""
    if not text and isinstance(summary := block.get("summary"), Sequence):
        text = "".join(str(s.get("text", "")) for s in summary if isinstance(s, Mapping))
    data = {key: value for key, value in block.items() if key not in ("index", "thinking")}
    return Reasoning(text if isinstance(text, str) else "", data)


def _call(block: Mapping[str, Any]) -> ToolCall:
    """A call in a content block: Anthropic's `tool_use`, LangChain's `tool_call`, OpenAI's `function_call`."""
    if block["type"] == "function_call":
        arguments = block.get("arguments")
        call_id = block.get("call_id") or block.get("id")
    else:
        arguments = block.get("input") if block["type"] == "tool_use" else block.get("args")
        call_id = block.get("id")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(str(call_id or ""), str(block.get("name") or ""), arguments)


def _source(citation: Any) -> dict[str, Any] | None:
    """Where a citation of any vendor points to: its address and title."""
    if isinstance(citation, str):
        return {"url": citation}
    if not isinstance(citation, Mapping):
        return None
    inner = citation.get("url_citation") or citation.get("web") or citation.get("value") or citation
    if not isinstance(inner, Mapping):
        return None
    url = inner.get("url") or inner.get("uri")
    title = inner.get("title") or inner.get("document_title") or inner.get("filename")
    found = {"url": url, "title": title}
    return {k: v for k, v in found.items() if isinstance(v, str) and v} or None


CITING = frozenset({"citations", "grounding_metadata"})
"""In `response_metadata`: where sources stand that are not in the content."""


def _sources(message: AIMessage) -> Reasoning | None:
    """What the answer cites, from its blocks and its metadata."""
    if type(message.content) is str and not (message.response_metadata.keys() & CITING):
        return None
    found: list[Any] = []
    if isinstance(message.content, list):
        for block in message.content:
            if isinstance(block, dict):
                found += block.get("annotations") or ()
                found += block.get("citations") or ()
    metadata = message.response_metadata
    if metadata:
        cited = metadata.get("citations")
        found += cited if isinstance(cited, (list, tuple)) else ()
        if isinstance(grounding := metadata.get("grounding_metadata"), Mapping):
            found += grounding.get("grounding_chunks") or grounding.get("groundingChunks") or ()
    if not found:
        return None
    named = citations([source for one in found if (source := _source(one)) is not None])
    return None if named is None else Reasoning("", named)


def _parts(
    content: str | list[str | dict[str, Any]], *, role: Role, known_calls: frozenset[str] = frozenset()
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
        yield from _block_parts(block, role, known_calls)


def _block_parts(block: Mapping[str, Any], role: Role, known_calls: frozenset[str]) -> Iterator[Part]:
    match block.get("type"):
        case str(kind) if kind in _TEXTS and (kind != "text-plain" or "text" in block):
            if text := block.get(_TEXTS[kind]):
                yield Text(text)
            extras = block.get("extras")
            if isinstance(extras, Mapping) and "signature" in extras:  # Gemini signs texts too
                yield Reasoning("", {"thought_signature": extras["signature"]})
        case str(kind) if kind in _MEDIA:
            yield _media(block)
            if isinstance(context := block.get("context"), str) and context:
                yield Text(context)
        case str(kind) if kind in THOUGHTFUL:
            yield _reasoning(block)
        case str(kind) if kind in _CALLS:
            call = _call(block)
            if role != "assistant" or call.id not in known_calls:
                yield call
        case str(kind) if kind in _TOLD_ELSEWHERE:
            return
        case "tool_result":
            inner = tuple(_parts(block.get("content") or "", role="tool"))
            yield ToolResult(str(block.get("tool_use_id") or ""), inner, is_error=bool(block.get("is_error")))
        case "search_result":
            said = "\n".join(str(b.get("text") or "") for b in block.get("content") or () if isinstance(b, Mapping))
            yield Text(f"\n[{block.get('title') or 'search result'}: {block.get('source') or ''}]\n{said}\n")
        case "non_standard" if isinstance(block.get("value"), Mapping):
            yield from _block_parts(block["value"], role, known_calls)
        case None if block.keys() & {"text", "cachePoint"}:
            if text := block.get("text"):
                yield Text(text)
        case _ if role == "assistant":
            # What a vendor's own server tools left in its answer is state of that vendor, like its thinking.
            yield Reasoning("", {k: v for k, v in block.items() if k != "index"})
        case _ if role == "tool":
            # What a tool returned is data: it can always be told.
            try:
                yield Text(json.dumps(block, ensure_ascii=False))
            except (TypeError, ValueError):
                raise _unsupported(block) from None
        case _:
            raise _unsupported(block)


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
GEMINI_SIGNATURES = "__gemini_function_call_thought_signatures__"
"""In `additional_kwargs`: where langchain-google-genai keeps the signatures of tool calls, by their ids."""
CALL_DATA = "fallback_tool_call_data"
"""In `additional_kwargs`: opaque vendor state of tool calls, by their ids."""
THOUGHTS = "fallback_thoughts"
"""In `additional_kwargs`: thinking that came after plain text, with its opaque vendor state."""
ORIGIN = "fallback_origin"
"""In `response_metadata` of answers with opaque state: who may be shown it again."""


def _calls_of(message: AIMessage) -> list[ToolCall]:
    extra = message.additional_kwargs
    calls: list[ToolCall] = []
    if not extra and type(message.content) is str:  # nothing but the calls themselves
        calls = [
            ToolCall(c.get("id") or "", c["name"], json.dumps(c["args"], ensure_ascii=False))
            for c in message.tool_calls
        ]
    elif message.tool_calls:
        data = extra.get(CALL_DATA) or {}
        signatures: Any = extra.get(GEMINI_SIGNATURES) or {}
        unkeyed = _unkeyed_signatures(message)
        for place, call in enumerate(message.tool_calls):
            key = call.get("id") or ""
            signature = signatures.get(key) or unkeyed.get(place)
            own = data.get(key) or ({"thought_signature": _as_text(signature)} if signature else {})
            calls.append(ToolCall(key, call["name"], json.dumps(call["args"], ensure_ascii=False), own))
    elif not message.invalid_tool_calls and isinstance(old := extra.get("function_call"), Mapping):
        name = str(old.get("name") or "")  # before there were tools; its result names it
        calls.append(ToolCall(name, name, str(old.get("arguments") or "{}")))
    # A call whose arguments were no JSON is still a call that was made: the result that follows belongs to it.
    calls += [
        ToolCall(c.get("id") or "", c.get("name") or "", c.get("args") or "{}") for c in message.invalid_tool_calls
    ]
    return calls


def _unkeyed_signatures(message: AIMessage) -> Mapping[int, Any]:
    """Signatures that older versions of langchain-google-genai kept as content blocks, by the place of their call."""
    if not isinstance(message.content, list):
        return {}
    found = [b for b in message.content if isinstance(b, dict) and b.get("type") == "function_call_signature"]
    return {b.get("index", place): b.get("signature") for place, b in enumerate(found)}


def _as_text(signature: Any) -> Any:
    return base64.b64encode(signature).decode("ascii") if isinstance(signature, bytes) else signature


def _kept_apart(extra: Mapping[str, Any], *, silent: bool) -> Iterator[Part]:
    """What integrations keep in `additional_kwargs` instead of in the content."""
    thought = extra.get("reasoning")
    if isinstance(thought, Mapping) and thought:  # the Responses API in LangChain's oldest form
        yield _reasoning({**thought, "type": "reasoning"})
    details = extra.get("reasoning_details")
    said = extra.get("reasoning_content")
    if isinstance(details, list) and details:
        yield Reasoning(said if isinstance(said, str) else "", {"reasoning_details": details})
    elif isinstance(said, str) and said:
        yield Reasoning(said, {"reasoning_content": said})
    for block in extra.get("tool_outputs") or ():
        if isinstance(block, Mapping):
            yield Reasoning("", dict(block))
    if not silent:
        return
    audio = extra.get("audio")
    for spoken in (extra.get("refusal"), audio.get("transcript") if isinstance(audio, Mapping) else None):
        if isinstance(spoken, str) and spoken:
            yield Text(spoken)


def _assistant(message: AIMessage) -> Message:
    content = message.content
    extra = message.additional_kwargs
    calls = _calls_of(message)
    parts: list[Part] = []
    if type(content) is not str or content:
        known = frozenset(call.id for call in calls) if calls else _NONE
        parts.extend(_parts(content, role="assistant", known_calls=known))
    if extra:
        silent = not any(isinstance(part, Text) for part in parts)
        if late := extra.get(THOUGHTS):
            parts.extend(Reasoning(thought["text"], thought["data"]) for thought in late)
        else:
            parts[:0] = _kept_apart(extra, silent=silent)
    if (sources := _sources(message)) is not None:
        parts.append(sources)
    # A call that stands in the content and nowhere else goes where all calls go: to the end.
    alone = [part for part in parts if isinstance(part, ToolCall)]
    if alone:
        parts = [part for part in parts if not isinstance(part, ToolCall)]
    parts += [*alone, *calls]
    origin = None
    metadata = message.response_metadata
    if (exact := metadata.get(ORIGIN)) is not None:
        return Message("assistant", tuple(parts), message.name, Origin(**exact), _cache_hint(message))
    provider = metadata.get("model_provider") or (metadata.get("fallback") or {}).get("provider")
    if provider:
        origin = Origin(provider_of(str(provider)), str(metadata.get("model_name") or metadata.get("model") or ""))
    return Message("assistant", tuple(parts), message.name, origin, _cache_hint(message))


def neutral(message: BaseMessage) -> Message:
    content = cast("str | list[str | dict[str, Any]]", message.content)
    if isinstance(message, AIMessage):
        return _assistant(message)
    if isinstance(message, ToolMessage):
        result = ToolResult(
            message.tool_call_id, tuple(_parts(content, role="tool")), message.name, message.status == "error"
        )
        return Message("tool", (result,), cache_hint=_cache_hint(message))
    role: Role
    name = message.name
    if name is None and isinstance(older := message.additional_kwargs.get("name"), str):
        name = older  # where ChatOpenAI looks for it too
    if isinstance(message, HumanMessage):
        role = "user"
    elif isinstance(message, SystemMessage):
        role = "system"
    elif isinstance(message, FunctionMessage):
        return Message("tool", (ToolResult(message.name, tuple(_parts(content, role="tool")), message.name),))
    elif isinstance(message, ChatMessage):
        # A role of somebody's own is a speaker: vendors know no other roles, but who spoke can be told.
        role = _CHAT_ROLES.get(message.role, "user")
        if message.role not in _CHAT_ROLES:
            name = name or message.role
    else:
        raise InvalidRequest(f"a message of {type(message).__name__} cannot be sent to a model")
    if type(content) is str:
        hinted = "cache_control" in message.additional_kwargs
        return Message(role, (Text(content),) if content else (), name, None, hinted)
    return Message(role, tuple(_parts(content, role=role)), name, None, _cache_hint(message))


def from_langchain(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The neutral form of `messages`, one for one.

    Raises:
        InvalidRequest: a message or a content block that no other vendor could be told about.
    """
    return tuple(neutral(message) for message in messages)


# ── content out ──────────────────────────────────────────────────────────────────────────────────────────────────────

Family = Literal["openai", "responses", "anthropic", "google"]
"""Integrations whose own forms we know; 'responses' is ChatOpenAI over the Responses API."""


def _standard_block(part: Image | File | Audio) -> dict[str, Any]:
    """LangChain's own form, which every integration is meant to understand."""
    video = isinstance(part, File) and (part.media_type or "").startswith("video/")
    kind = "image" if isinstance(part, Image) else "audio" if isinstance(part, Audio) else "video" if video else "file"
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


def _openai_block(part: Image | File | Audio, *, responses: bool) -> dict[str, Any]:
    if part.file_id is not None:
        if responses and isinstance(part, Image):
            return {"type": "input_image", "file_id": part.file_id, "detail": part.detail or "auto"}
        return {"type": "file", "file": {"file_id": part.file_id}}
    url = part.url or f"data:{part.media_type};base64,{part.base64}"
    if isinstance(part, Image):
        detail = part.detail or ("auto" if responses else None)
        return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}
    if isinstance(part, Audio):
        form = "mp3" if "mp" in (part.media_type or "") else "wav"
        return {"type": "input_audio", "input_audio": {"data": part.base64, "format": form}}
    if part.url is not None:
        return {"type": "input_file", "file_url": part.url}
    return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": url}}


def _anthropic_block(part: Image | File | Audio) -> dict[str, Any]:
    source: dict[str, Any]
    if part.file_id is not None:
        source = {"type": "file", "file_id": part.file_id}
    elif part.url is not None:
        source = {"type": "url", "url": part.url}
    elif part.data is not None and (part.media_type or "").startswith("text/"):
        source = {"type": "text", "media_type": "text/plain", "data": part.data.decode("utf-8", "replace")}
    else:
        source = {"type": "base64", "media_type": part.media_type, "data": part.base64}
    if isinstance(part, Image):
        return {"type": "image", "source": source}
    return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}


def _google_block(part: Image | File | Audio) -> dict[str, Any]:
    if part.data is not None:
        return {"type": "media", "data": part.data, "mime_type": part.media_type}
    handle = part.file_id or part.url or ""
    if handle.startswith("files/"):
        handle = f"https://generativelanguage.googleapis.com/v1beta/{handle}"
    if part.file_id is None and not handle.startswith(("gs://", "https://generativelanguage.googleapis.com/")):
        return _standard_block(part)  # the integration fetches it
    return {"type": "media", "file_uri": handle, **({"mime_type": part.media_type} if part.media_type else {})}


def _block(part: Image | File | Audio, family: Family | None) -> dict[str, Any]:
    if family == "openai" or family == "responses":
        return _openai_block(part, responses=family == "responses")
    if family == "anthropic":
        return _anthropic_block(part)
    return _google_block(part) if family == "google" else _standard_block(part)


def _opaque_block(part: Reasoning, family: Family | None) -> dict[str, Any] | None:
    """A thought of the model that is about to read it, as its integration keeps it."""
    data = dict(part.data)
    kind = opaque_kind(data)
    if kind == "citations":
        (links,) = told(data) or (Text(""),)
        return {"type": "text", "text": links.text} if isinstance(links, Text) and links.text else None
    if kind != "thought":
        if family == "google" and isinstance(extras := data.get("extras"), Mapping):
            # What its v1 blocks say of how code ended, langchain-google-genai cannot read back.
            data["extras"] = {k: v for k, v in extras.items() if k != "outcome"}
        return data
    if family == "responses":
        summary = data.pop("summary", None)
        if summary is None:
            summary = [{"type": "summary_text", "text": part.text}] if part.text else []
        return {**data, "type": "reasoning", "summary": summary}
    signature = data.get("signature") or data.get("thought_signature")
    if family in ("anthropic", "google") and signature:
        return {"type": "thinking", "thinking": part.text or data.get("thinking") or "", "signature": signature}
    if data.get("type") == "redacted_thinking" or (family == "anthropic" and "data" in data):
        redacted = {"type": "redacted_thinking", "data": data["data"]}
        return redacted if family is not None else {"type": "non_standard", "value": redacted}
    if family == "anthropic":
        return None  # unsigned, it would be refused
    return {"type": "reasoning", "reasoning": part.text, "extras": data}


def _content(
    parts: Sequence[Part], family: Family | None = None, *, marked: bool = False
) -> str | list[str | dict[str, Any]]:
    """`parts` as content. `marked`: a prefix worth caching ends here."""
    if not marked and all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    blocks: list[str | dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, (Image, File, Audio)):
            blocks.append(_block(part, family))
        elif isinstance(part, Reasoning) and (block := _opaque_block(part, family)) is not None:
            blocks.append(block)
    if marked and blocks:
        last = blocks[-1]
        if isinstance(last, dict) and "thinking" not in last["type"]:  # thoughts take no mark
            last["cache_control"] = {"type": "ephemeral"}
    return blocks


def _result_out(result: ToolResult, family: Family | None, *, marked: bool) -> ToolMessage:
    content = _content(result.content, family, marked=marked)
    if family == "google" and isinstance(content, str):
        # Left alone, the class would read "42" as a number, and forget that a result is an error.
        content = json.dumps({"error" if result.is_error else "output": content}, ensure_ascii=False)
    return ToolMessage(
        content=content,
        tool_call_id=result.call_id,
        name=result.name,
        status="error" if result.is_error else "success",
    )


def to_langchain(
    messages: Sequence[Message], origin: Origin | None = None, family: Family | None = None
) -> list[BaseMessage]:
    """LangChain's form of neutral messages, for a target of `origin`: thinking of other origins stays behind.

    With a `family`, in the words of that integration; else in LangChain's own.
    """
    out: list[BaseMessage] = []
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        rest = [part for part in message.parts if not isinstance(part, ToolResult)]
        marked = message.cache_hint and family == "anthropic"
        out.extend(
            _result_out(result, family, marked=marked and not rest and result is results[-1]) for result in results
        )
        if results and not rest:
            continue
        if message.role == "assistant":
            out.append(_assistant_out(message, origin, family, marked=marked))
        elif message.role == "system":
            out.append(SystemMessage(content=_content(rest, family, marked=marked), name=message.name))
        else:
            out.append(HumanMessage(content=_content(rest, family, marked=marked), name=message.name))
    return out


_V1_ALONE = frozenset({"server_tool_call", "server_tool_result", "web_search_call", "web_search_result"})


def _assistant_out(message: Message, origin: Origin | None, family: Family | None, *, marked: bool) -> AIMessage:
    own = origin is not None and message.origin is not None and message.origin.provider == origin.provider
    said: list[Part] = [
        p for p in message.parts if not isinstance(p, ToolCall) and (own or not isinstance(p, Reasoning))
    ]
    if family == "anthropic" and any(isinstance(p, Reasoning) and p.data.get("type") in _V1_ALONE for p in said):
        family = None  # its integration reads such blocks among others of their kind
    content = _content(said, family, marked=marked)
    metadata: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    if own and message.origin is not None:
        metadata["model_provider"] = ls_provider(message.origin.provider)
        if family is None and any(isinstance(p, Reasoning) for p in said):
            metadata["output_version"] = "v1"
        if family == "google" and (signed := {c.id: s for c in message.tool_calls if (s := _signature(c))}):
            fields["additional_kwargs"] = {GEMINI_SIGNATURES: signed}
    return ai_message(AIMessage, content, message.tool_calls, name=message.name, response_metadata=metadata, **fields)


def _signature(call: ToolCall) -> Any:
    return call.data.get("thought_signature") or call.data.get("signature")


def ai_message(cls: type[AIMessage], content: Any, calls: Sequence[ToolCall], **fields: Any) -> AIMessage:
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
        fields["additional_kwargs"] = {**fields.get("additional_kwargs", {}), CALL_DATA: data}
    return cls(content=content, tool_calls=good, invalid_tool_calls=bad, **fields)
