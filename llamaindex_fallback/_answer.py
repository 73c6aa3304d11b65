"""The router's answers and events as LlamaIndex's responses: `message` and `text` cumulative, `delta` what is new."""

from __future__ import annotations

import copy
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

from llamaindex_fallback import _mould as mould
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

METADATA: Final = "fallback"
"""The key of our metadata in a response's `additional_kwargs` and `raw`."""


def chat_response(answer: Answer, *, delta: str | None = None) -> ChatResponse:
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
    kwargs: dict[str, Any] = {METADATA: dict(answer.fallback)}
    if usage:
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            kwargs[key] = usage[key]
    native = None if answer.native is None else _native(answer)
    return mould.response(_message(answer, native), delta, raw, native.logprobs if native else None, kwargs)


def completion_response(response: ChatResponse) -> CompletionResponse:
    """The same as a completion."""
    return mould.completion(
        response.message.content or "", response.delta, response.raw, response.logprobs, response.additional_kwargs
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

    __slots__ = ("_events", "_text", "_thought")

    def __init__(self) -> None:
        self._events: list[ChatEvent] = []
        self._text = ""
        self._thought = ""

    def feed(self, event: ChatEvent) -> ChatResponse | None:
        """The response for one event; None where a reader of LlamaIndex's streams has nothing to see."""
        self._events.append(event)
        kind = type(event)
        if kind is TextDelta:
            piece: str = event.text  # type: ignore[union-attr]  # `kind` says which it is
            self._text = text = self._text + piece
            return mould.text_response(text, piece, self._thought, {})
        match event:
            case ReasoningDelta() if event.text:
                self._thought += event.text
                return mould.text_response(self._text, "", self._thought, {"thinking_delta": event.text})
            case Restarted():
                self._text = self._thought = ""
                self._events = [event]
                return mould.text_response("", "", "", {METADATA: {"restarted": event.target}})
            case Finished():
                # The same text as for a whole answer, so that streamed and whole end alike.
                return chat_response(collect(self._events), delta="")
            case _:
                return None


def _native(answer: Answer) -> ChatResponse | None:
    """A wrapped LLM's own response, if it is the whole answer and not only the end of one that another began."""
    theirs = answer.native
    if not isinstance(theirs, ChatResponse):
        return None
    said = "".join(block.text for block in theirs.message.blocks if isinstance(block, TextBlock))
    return theirs if said == answer.text else None


def _message(answer: Answer, native: ChatResponse | None) -> ChatMessage:
    calls = answer.tool_calls
    blocks: list[ContentBlock] = [
        ThinkingBlock(content=thought.text or None, additional_information=dict(thought.data))
        for thought in answer.reasoning
    ]
    if answer.text or not calls:
        blocks.append(mould.text_block(answer.text))
    kwargs: dict[str, Any] = {}
    if native is not None:
        known = (TextBlock, ThinkingBlock, ToolCallBlock)
        blocks += [block.model_copy(deep=True) for block in native.message.blocks if not isinstance(block, known)]
        theirs = native.message.additional_kwargs
        kwargs = copy.deepcopy({k: v for k, v in theirs.items() if k != "tool_calls"}) if theirs else {}
    for call in calls:
        arguments = arguments_dict(call.arguments)
        blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments))
    if calls:
        # Where older parts of LlamaIndex look, in OpenAI's form.
        kwargs["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    if (calls or answer.reasoning) and answer.origin is not None:
        kwargs[STAMP] = stamp_of(answer.origin, calls)
    return mould.message(MessageRole.ASSISTANT, blocks, kwargs)
