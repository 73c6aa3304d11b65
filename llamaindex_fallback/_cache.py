"""What the router's cache needs to know of LlamaIndex's objects: everything that can change an answer, by value."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms.llm import LLM

from shared_core.chat.request import Native

__all__ = ["native_form", "says_all", "settings_of"]

_BOOKS = frozenset({"fallback", "prompt_tokens", "completion_tokens", "total_tokens"})
"""What answers carry for those who look at them; it is not sent again."""


def native_form(native: Native) -> Any:
    """A call's messages as plain values."""
    return [_message(message) for message in native.messages]


def _message(message: ChatMessage) -> Any:
    more = message.additional_kwargs
    kept = {name: value for name, value in more.items() if name not in _BOOKS} if more else None
    return (str(message.role.value), [_block(block) for block in message.blocks], kept)


def _block(block: Any) -> Any:
    return ("text", block.text) if type(block) is TextBlock else (type(block).__name__, block)


_OF_THE_CALLER = frozenset(
    {
        "callback_manager", "system_prompt", "messages_to_prompt", "completion_to_prompt", "output_parser",
        "pydantic_program_mode", "query_wrapper_prompt", "rate_limiter", "timeout", "max_retries", "reuse_client",
        "verbose", "request_timeout", "http_client", "async_http_client", "keep_alive",
    }
)  # fmt: skip
"""Settings that say how it is called and who watches, and those that are applied before a request is made."""


def settings_of(llm: LLM) -> Any:
    """The settings of `llm` that can change its answers, keys included (the cache keeps digests only).

    A setting that cannot be told by value makes the cache leave the LLM alone.
    """
    kind = type(llm)
    told = {
        name: getattr(llm, name, None)
        for name, about in kind.model_fields.items()
        if name not in _OF_THE_CALLER and not about.exclude
    }
    if _completes(llm):
        # It writes its prompt by itself. A function of LlamaIndex's own is known by its name, no other.
        by = llm.messages_to_prompt
        module = str(getattr(by, "__module__", ""))
        told["prompt"] = f"{module}.{getattr(by, '__qualname__', '')}" if module.startswith("llama_index.") else by
    return [kind.__module__, kind.__qualname__, told]


def _completes(llm: LLM) -> bool:
    try:
        return not llm.metadata.is_chat_model
    except Exception:  # noqa: BLE001  # somebody else's property; who does not say is asked by chat
        return False


def says_all(response: Any) -> bool:
    """Whether text, thinking and tool calls are all that a wrapped LLM's response holds."""
    if not isinstance(response, ChatResponse) or response.logprobs:
        return False
    message = response.message
    more = set(message.additional_kwargs) - _BOOKS - {"tool_calls"}
    return not more and all(isinstance(block, (TextBlock, ThinkingBlock, ToolCallBlock)) for block in message.blocks)
