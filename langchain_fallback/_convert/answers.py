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

from langchain_fallback._convert.messages import BLIND, CALL_DATA, ORIGIN, THOUGHTS, ai_message, ls_provider
from langchain_fallback._convert.mould import block_chunk, copied, text_chunk
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
from shared_core.routing.execution import Execution

try:  # private to LangChain, and the only way to tell a tracer who served: a run's metadata is fixed when it starts
    from langchain_core.utils._gateway import GATEWAY_METADATA_RESPONSE_KEY as _SERVED
except ImportError:
    _SERVED = ""

__all__ = [
    "RESTARTED",
    "Chunks",
    "Served",
    "attribution",
    "mended",
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
    if metadata is None or (metadata["output_tokens"] and not metadata["input_tokens"]):
        # No prompt has no tokens: the model's class missed them (ChatAnthropic does, in streams whose last event does
        # not repeat them), and half a bill is not a reported one.
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


Served = Callable[[Answer | Finished], tuple[str, str] | None]
"""LangChain's name of the vendor and the model that served, where a tracer would otherwise name others; else None."""
RESTARTED = "fallback_restarted"
"""What a restart is marked with: a key of `response_metadata` in chunks, a type of block in content-block events."""


def _nobody(target: str | None) -> Origin | None:
    return None


def _unknown(answer: Answer | Finished) -> tuple[str, str] | None:
    return None


def attribution(served: tuple[str, str] | None) -> dict[str, Any] | None:
    """`generation_info` that makes LangSmith's run name the vendor and model that served. LangChain keeps it there."""
    if served is None or not _SERVED:
        return None
    provider, model = served
    return {_SERVED: {"provider": provider, "model": model}}


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
    provider = metadata.get("model_provider")
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
    elif answer.tool_calls and provider in BLIND:
        content = [{"type": "text", "text": answer.text}] if answer.text else []
        content += [_tool_use(c, given) for c in answer.tool_calls if (given := _arguments(c)) is not None]
    return ai_message(
        AIMessage,
        content,
        answer.tool_calls,
        additional_kwargs=_refusal(answer.finish_reason, provider, answer.text),
        response_metadata=metadata,
        usage_metadata=_usage(None, answer.usage, metadata),
    )


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    try:
        return call.parsed()
    except InvalidRequest:
        return None


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _refusal(reason: FinishReason, provider: str | None, text: str) -> dict[str, Any]:
    """A refusal where readers of ChatOpenAI's answers look for it; it is the text as well."""
    return {"refusal": text} if reason == "refusal" and provider == "openai" and text else {}


def mended(message: AIMessage) -> AIMessage:
    """A message that was merged of chunks, without what its restarts discarded."""
    marks = message.response_metadata.get(RESTARTED)
    if not marks:
        return message
    gone = sum(mark["discard"] for mark in marks)
    content = message.content
    if isinstance(content, str):
        content = content[gone:]
    else:
        kept: list[str | dict[Any, Any]] = []
        for block in content:
            if gone <= 0:
                kept.append(block)
            elif isinstance(block, dict) and block.get("type") == "text":
                gone -= len(block.get("text") or "")  # a restart begins a block of its own
        content = kept
    metadata = {k: v for k, v in message.response_metadata.items() if k != RESTARTED}
    whole: AIMessage = copied(message, content=content, response_metadata=metadata)
    return whole


class Chunks:
    """Turns the router's events of one answer into LangChain's chunks.

    Content is of one kind from the first chunk to the last, since strings and blocks do not merge into either:

    - plain strings, for most answers. Thinking that comes after the first text then goes beside the content, into
      `additional_kwargs`, where LangChain's own integrations of such vendors have it;
    - blocks of text and `tool_use`, as ChatAnthropic gives them, where tools were offered to a vendor whose tool calls
      LangChain reads from blocks only (`BLIND`);
    - LangChain v1 blocks, where the model thinks aloud first, or where they are asked for.

    Metadata and usage are on the last chunk and nowhere else: LangChain joins strings and adds numbers when it merges.

    Args:
        origin_of: who may be shown again what is opaque in an answer of a target.
        journal: of the request; tells who is speaking.
        tools: whether tools are offered.
        blocks: whether content is to be LangChain v1 blocks, whatever comes.
        protocol: whether the chunks become content-block events, which are of v1 blocks. They are not merged but
            replaced block by block, so that a restart can take back what it discards.
        served_by: what tracers are told about the target that served, see `Served`.
    """

    __slots__ = (
        "_blocks",
        "_calls",
        "_index",
        "_journal",
        "_kind",
        "_opaque",
        "_origin_of",
        "_plain",
        "_protocol",
        "_served_by",
        "_started",
        "_text",
        "_thoughts",
        "_tools",
    )

    def __init__(
        self,
        origin_of: OriginOf = _nobody,
        *,
        journal: Execution | None = None,
        tools: bool = False,
        blocks: bool = False,
        protocol: bool = False,
        served_by: Served = _unknown,
    ) -> None:
        self._origin_of = origin_of
        self._journal = journal
        self._tools = tools
        self._protocol = protocol
        self._served_by = served_by
        self._opaque = False
        self._plain: bool | None = None  # not known before the first content
        self._blocks = blocks or protocol
        """Whether content is LangChain v1 blocks, and says so."""
        self._started = False
        self._index = -1
        self._kind = ""
        self._calls = 0
        self._text: list[str] = []
        self._thoughts: list[str] = []

    def feed(self, event: ChatEvent) -> ChatGenerationChunk | None:
        """The chunk for one event, if the event has anything to show."""
        if isinstance(event, TextDelta):
            self._text.append(event.text)
            if self._plain is None:
                self._begin()
            if self._plain:
                return text_chunk(event.text)
            return self._blocky({"type": "text", "text": event.text})
        if isinstance(event, ReasoningDelta):
            return self._thought(event)
        if isinstance(event, ToolCall):
            return self._tool_call(event)
        if isinstance(event, Finished):
            return self._last(event)
        if isinstance(event, Restarted):
            return self._restarted(event)
        if isinstance(event, (Started, Continued)):
            return None
        if isinstance(event, ToolCallDelta):
            raise TypeError("the router delivers whole tool calls; a fragment is a bug of ours")
        raise TypeError(f"unknown event {event!r}")

    def _speaker(self) -> str | None:
        """LangChain's name for the vendor that is speaking."""
        attempts = self._journal.attempts if self._journal is not None else ()
        return ls_provider(attempts[-1].provider) if attempts else None

    def _begin(self, *, thinking: bool = False) -> None:
        """The first content is here: from now on all of it is of one kind."""
        self._plain = not (thinking or self._blocks or (self._tools and self._speaker() in BLIND))

    def _said(self) -> dict[str, Any]:
        """The metadata of a chunk of blocks."""
        if not self._blocks:
            return {}
        metadata: dict[str, Any] = {"output_version": "v1"}
        if self._protocol and not self._started and self._journal is not None and self._journal.attempts:
            # Becomes the metadata of `message-start`. The last chunk's replaces it: events are not merged.
            attempt = self._journal.attempts[-1]
            metadata |= {"model_provider": ls_provider(attempt.provider), "model_name": attempt.model}
        self._started = True
        return metadata

    def _blocky(self, block: dict[str, Any]) -> ChatGenerationChunk:
        if block["type"] != self._kind:
            self._kind = block["type"]
            self._index += 1
        block["index"] = self._index
        return block_chunk(block, self._said())

    def _thought(self, event: ReasoningDelta) -> ChatGenerationChunk:
        if self._plain is None:
            self._begin(thinking=True)
        self._opaque = self._opaque or bool(event.data)
        if self._plain:
            self._thoughts.append(event.text)
            beside: dict[str, Any] = {"reasoning_content": event.text} if event.text else {}
            if event.data:
                beside[THOUGHTS] = [{"text": "".join(self._thoughts), "data": dict(event.data)}]
                self._thoughts.clear()
            return ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs=beside))
        self._blocks = True
        block: dict[str, Any] = {"type": "reasoning", "reasoning": event.text}
        if event.data:
            block["extras"] = dict(event.data)
        chunk = self._blocky(block)
        if event.data:  # the block is complete; what comes next is another
            self._kind = ""
        return chunk

    def _restarted(self, event: Restarted) -> ChatGenerationChunk:
        # What was shown cannot be taken back from here; whoever reads chunk by chunk can clear its screen.
        mark = {"target": event.target, "discard": len("".join(self._text))}
        self._text.clear()
        self._kind = ""
        if not self._protocol:
            return ChatGenerationChunk(
                message=AIMessageChunk(
                    # A list, because merging appends lists and joins everything else.
                    content="" if self._plain else [],
                    response_metadata={RESTARTED: [mark]},
                )
            )
        # Block by block the old text gives way to a kind that no message is made of: the events show that it is gone
        # and the message has only the new text. The start of the last block is what a reader sees at once.
        content: list[str | dict[Any, Any]] = [
            {"type": "fallback_discarded", "index": index} for index in range(self._index + 1)
        ]
        self._index += 1
        content.append({"type": RESTARTED, "index": self._index, **mark})
        return ChatGenerationChunk(message=AIMessageChunk(content=content, response_metadata=self._said()))

    def _tool_call(self, call: ToolCall) -> ChatGenerationChunk:
        if self._plain is None:
            self._begin()
        index = self._calls
        self._calls += 1
        self._opaque = self._opaque or bool(call.data)
        content: Any = ""
        metadata: dict[str, Any] = {}
        if not self._plain:
            self._kind = ""
            self._index += 1
            index = self._index
            speaker = self._speaker()
            if not self._blocks and speaker in BLIND:
                arguments = _arguments(call)
                content = [] if arguments is None else [_tool_use(call, arguments) | {"index": index}]
                metadata = {"model_provider": speaker}  # or nobody could tell what the block of this chunk is
            else:
                self._blocks = True
                content = [
                    {
                        "type": "tool_call_chunk",
                        "id": call.id,
                        "name": call.name,
                        "args": call.arguments,
                        "index": index,
                    }
                ]
                metadata = self._said()
        message = AIMessageChunk(
            content=content,
            tool_call_chunks=[tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=index)],
            additional_kwargs={CALL_DATA: {call.id: dict(call.data)}} if call.data else {},
            response_metadata=metadata,
        )
        return ChatGenerationChunk(message=message)

    def _last(self, event: Finished) -> ChatGenerationChunk:
        text = "".join(self._text)
        native = event.native if _agrees(event.native, text, self._calls) else None
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
        provider = metadata.get("model_provider")
        if self._blocks:
            metadata["output_version"] = "v1"
        else:
            metadata.pop("output_version", None)  # a wrapped model's; our content is not
            if self._plain and self._calls and provider in BLIND:
                del metadata["model_provider"]  # begun by another vendor; see `BLIND`
        message = AIMessageChunk(
            content=[] if self._blocks or self._plain is False else "",
            response_metadata=metadata,
            additional_kwargs=_extras(native) if native is not None else _refusal(event.reason, provider, text),
            usage_metadata=_usage(native, event.usage, metadata),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info=attribution(self._served_by(event)))


def _extras(native: AIMessage) -> dict[str, Any]:
    # Tool calls and thinking have gone out already; the rest (a parsed answer, a refusal, audio) comes here.
    return {
        k: v
        for k, v in native.additional_kwargs.items()
        if k not in ("tool_calls", "function_call", "reasoning_content")
    }
