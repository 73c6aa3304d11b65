"""What the router's cache needs to know of LangChain's objects: everything that can change an answer, by value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from shared_core.chat.request import Native

__all__ = ["native_form", "says_all", "settings_of"]

_NO_PART = frozenset(
    {
        "timeout", "tags", "user", "chain", "constraints", "cache", "validate", "complexity", "strategy", "local_only",
        "allow", "deny", "max_price", "require", "hedge", "extra", "stream", "stream_usage", "stream_options",
        "ls_structured_output_format", "structured_output_format",
    }
)  # fmt: skip
"""Options of a call that say who is asked, for how long and for whom, or how it is traced. `extra` is in the request
itself."""
_MINTED = re.compile(r"^(?:run-|lc_)|^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
"""Ids that LangChain and LangGraph give to messages, anew in every run. A vendor's own are part of what is sent."""
_READ_AGAIN = ("model_provider", "model_name", "output_version", "id", "fallback_origin")
"""What integrations read of an earlier answer's `response_metadata` when they send it again."""


def native_form(native: Native) -> Any:
    """A call's messages and options as plain values; what LangChain adds for its own books is left out."""
    options = {name: value for name, value in native.options.items() if name not in _NO_PART and value is not None}
    return [[_message(message) for message in native.messages], options]


def _message(message: BaseMessage) -> Any:
    metadata = message.response_metadata
    told: dict[str, Any] = {
        "type": message.type,
        "content": message.content if isinstance(message.content, str) else [_said(b) for b in message.content],
        "name": message.name,
        "id": None if message.id is None or _MINTED.search(message.id) else message.id,
        "more": {k: v for k, v in message.additional_kwargs.items() if v is not None and k != "fallback"},
        "metadata": {name: metadata[name] for name in _READ_AGAIN if name in metadata} if metadata else None,
    }
    if isinstance(message, AIMessage):
        told["calls"] = [message.tool_calls, message.invalid_tool_calls]
    for name in ("tool_call_id", "status", "role"):
        if (value := getattr(message, name, None)) is not None:
            told[name] = value
    return told


def _said(block: Any) -> Any:
    """A block of content. What is None in it is as if left out: so is it in a message that was built from our cache."""
    return {k: v for k, v in block.items() if v is not None} if isinstance(block, Mapping) else block


_OF_THE_CALLER = frozenset(
    {
        "name", "cache", "verbose", "callbacks", "tags", "metadata", "rate_limiter", "custom_get_token_ids", "profile",
        "disable_streaming", "streaming", "stream_usage", "stream_chunk_timeout", "request_timeout", "timeout",
        "default_request_timeout", "max_retries", "http_client", "http_async_client", "client", "async_client",
        "root_client", "root_async_client", "http_socket_options", "client_kwargs", "async_client_kwargs",
        "sync_client_kwargs", "client_options", "credentials", "i", "sleep",
    }
)  # fmt: skip
"""Fields of chat models that say how it is called and who watches, not what is answered."""


def settings_of(model: BaseChatModel) -> Any:
    """The settings of `model` that can change its answers, keys included (the cache keeps digests only).

    A setting that cannot be told by value, such as an iterator of answers, makes the cache leave the model alone.
    """
    kind = type(model)
    told = {
        name: _key(getattr(model, name, None))
        for name, about in kind.model_fields.items()
        if name not in _OF_THE_CALLER and not about.exclude
    }
    return [kind.__module__, kind.__qualname__, told, dict(model.model_extra or {})]


def _key(value: Any) -> Any:
    """A key may be a function that fetches one; which account that is, is told by its name."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__code__") else value


_SAID = frozenset({"text", "reasoning", "thinking", "tool_use", "tool_call", "redacted_thinking"})
_KNOWN = frozenset({"refusal", "tool_calls", "function_call", "reasoning_content"})


def says_all(message: Any) -> bool:
    """Whether text, thinking and tool calls are all that a wrapped model's message holds: not citations, sound, or
    what its server's tools found, which would be lost when it is built again from those."""
    if not isinstance(message, AIMessage) or not _KNOWN.issuperset(message.additional_kwargs):
        return False
    if isinstance(message.content, str):
        return True
    return all(isinstance(block, str) or _plain(block) for block in message.content)


def _plain(block: Mapping[Any, Any]) -> bool:
    return block.get("type") in _SAID and not (block.get("annotations") or block.get("citations"))
