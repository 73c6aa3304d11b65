"""Answers and events as LangChain's messages and chunks, with metadata and usage exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from langchain_fallback._convert.messages import BLIND, CALL_DATA, ORIGIN, ai_message, ls_provider
from langchain_fallback._convert.mould import copied, text_chunk
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
    Origin,
    ToolCall,
)
from shared_core.errors import InvalidRequest

__all__ = [
    "Chunks",
    "message_of",
    "usage_metadata",
    "usage_of",
]


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
    origin: Origin | None,
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
    if origin is not None:
        out[ORIGIN] = {"provider": origin.provider, "model": origin.model, "endpoint": origin.endpoint}
    return out


def _agrees(native: Any, text: str, calls: int) -> bool:
    """Whether a wrapped model's own message says what the answer says: not when another target continued it."""
    return (
        isinstance(native, AIMessage)
        and len(native.tool_calls) + len(native.invalid_tool_calls) == calls
        and native.text == text
    )


OriginOf = Callable[[str | None], Origin | None]
"""The origin of the target of that name."""


def _nobody(target: str | None) -> Origin | None:
    return None


def message_of(answer: Answer, origin_of: OriginOf = _nobody) -> AIMessage:
    """The answer as LangChain's message: the wrapped model's own where there is one, with our metadata added.

    `origin_of` tells who wrote it, exactly: what is opaque in it goes back there and nowhere else.
    """
    opaque = any(r.data for r in answer.reasoning) or any(c.data for c in answer.tool_calls)
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
        origin=origin_of(answer.target) if opaque else None,
    )
    if native is not None:
        # A copy: fakes and caches hand out the same message twice.
        own: AIMessage = copied(
            native, response_metadata=metadata, usage_metadata=_usage(native, answer.usage, metadata)
        )
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
    elif answer.tool_calls and metadata.get("model_provider") in BLIND:
        del metadata["model_provider"]
    return ai_message(
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

    __slots__ = ("_blocks", "_calls", "_index", "_kind", "_opaque", "_origin_of", "_text")

    def __init__(self, origin_of: OriginOf = _nobody) -> None:
        self._origin_of = origin_of
        self._opaque = False
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
                return text_chunk(event.text)
            return self._blocky({"type": "text", "text": event.text})
        if isinstance(event, ReasoningDelta):
            self._blocks = True
            block: dict[str, Any] = {"type": "reasoning", "reasoning": event.text}
            if event.data:
                self._opaque = True
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
        self._opaque = self._opaque or bool(call.data)
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
            additional_kwargs={CALL_DATA: {call.id: dict(call.data)}} if call.data else {},
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
            origin=self._origin_of(event.target) if self._opaque else None,
        )
        if self._blocks:
            metadata["output_version"] = "v1"
        else:
            metadata.pop("output_version", None)  # a wrapped model's; our content is a string
            if self._calls and metadata.get("model_provider") in BLIND:
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
