"""The router's answers and events as LlamaIndex's responses: `message` and `text` cumulative, `delta` what is new."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llamaindex_fallback._convert import STAMP, arguments_dict, stamp_of
from shared_core.chat.events import (
    Answer,
    ChatEvent,
    Finished,
    ReasoningDelta,
    Restarted,
    TextDelta,
    Usage,
    collect,
)
from shared_core.chat.request import Origin

METADATA: Final = "fallback"
"""The key of our metadata in a response's `additional_kwargs` and `raw`."""

OriginOf = Callable[[str], Origin | None]
"""The origin of a target's opaque blocks, by the target's name."""


def chat_response(answer: Answer, origin_of: OriginOf, *, delta: str | None = None) -> ChatResponse:
    """A whole answer, or the last response of a stream."""
    usage = usage_dict(answer.usage)
    raw = {
        "id": answer.response_id,
        "model": answer.model,
        "provider": answer.provider,
        "target": answer.target,
        "finish_reason": answer.finish_reason,
        "usage": usage,
        METADATA: dict(answer.fallback),
    }
    counts = {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")} if usage else {}
    native = _native(answer)
    return ChatResponse(
        message=_message(answer, native, origin_of),
        delta=delta,
        raw=raw,
        logprobs=native.logprobs if native else None,
        additional_kwargs={**counts, METADATA: dict(answer.fallback)},
    )


def completion_response(response: ChatResponse) -> CompletionResponse:
    """The same as a completion."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def usage_dict(usage: Usage) -> dict[str, Any] | None:
    """Tokens where `TokenCountingHandler` reads them, in OpenAI's words; None when nobody knows."""
    if not usage.total_tokens:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "estimated": usage.estimated,
    }


class Chunks:
    """Folds a stream's events into LlamaIndex's cumulative responses."""

    def __init__(self, origin_of: OriginOf) -> None:
        self._origin_of = origin_of
        self._events: list[ChatEvent] = []
        self._text = ""
        self._thought = ""

    def feed(self, event: ChatEvent) -> ChatResponse | None:
        """The response for one event; None where a reader of LlamaIndex's streams has nothing to see."""
        self._events.append(event)
        match event:
            case TextDelta():
                self._text += event.text
                return self._chunk(event.text, {})
            case ReasoningDelta() if event.text:
                self._thought += event.text
                return self._chunk("", {"thinking_delta": event.text})
            case Restarted():
                self._text = self._thought = ""
                self._events = [event]
                return self._chunk("", {METADATA: {"restarted": event.target}})
            case Finished():
                # The same text as for a whole answer, so that streamed and whole end alike.
                return chat_response(collect(self._events), self._origin_of, delta="")
            case _:
                return None

    def _chunk(self, delta: str, kwargs: dict[str, Any]) -> ChatResponse:
        blocks: list[ContentBlock] = [TextBlock(text=self._text)]
        if self._thought:
            blocks.insert(0, ThinkingBlock(content=self._thought))
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        return ChatResponse(message=message, delta=delta, additional_kwargs=kwargs)


def _native(answer: Answer) -> ChatResponse | None:
    """A wrapped LLM's own response, if it is the whole answer and not only the end of one that another began."""
    theirs = answer.native
    if not isinstance(theirs, ChatResponse):
        return None
    said = "".join(block.text for block in theirs.message.blocks if isinstance(block, TextBlock))
    return theirs if said == answer.text else None


def _message(answer: Answer, native: ChatResponse | None, origin_of: OriginOf) -> ChatMessage:
    blocks: list[ContentBlock] = [
        ThinkingBlock(content=thought.text or None, additional_information=dict(thought.data))
        for thought in answer.reasoning
    ]
    if answer.text or not answer.tool_calls:
        blocks.append(TextBlock(text=answer.text))
    kwargs: dict[str, Any] = {}
    if native is not None:
        known = (TextBlock, ThinkingBlock, ToolCallBlock)
        blocks += [block.model_copy(deep=True) for block in native.message.blocks if not isinstance(block, known)]
        kwargs = copy.deepcopy({k: v for k, v in native.message.additional_kwargs.items() if k != "tool_calls"})
    for call in answer.tool_calls:
        arguments = arguments_dict(call.arguments)
        blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments))
    if answer.tool_calls:
        # Where older parts of LlamaIndex look, in OpenAI's form.
        kwargs["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    if answer.reasoning or answer.tool_calls:
        origin = origin_of(answer.target or "")
        if origin is not None:
            kwargs[STAMP] = stamp_of(origin, answer.tool_calls)
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kwargs)


def first_call_only(response: ChatResponse) -> ChatResponse:
    """`response` with its first tool call alone, for a caller who asked for one at a time."""
    message = response.message
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) < 2:
        return response
    blocks = [block for block in message.blocks if not isinstance(block, ToolCallBlock)] + calls[:1]
    legacy = message.additional_kwargs.get("tool_calls")
    kwargs = {**message.additional_kwargs, **({"tool_calls": legacy[:1]} if isinstance(legacy, list) else {})}
    kept = ChatMessage(role=message.role, blocks=blocks, additional_kwargs=kwargs)
    return response.model_copy(update={"message": kept})
