"""`text_response` and its kin: LlamaIndex's values made of parts that are known to be right, without validating them.

LlamaIndex's messages, blocks and responses are pydantic models, and a stream makes three of them for each piece of
text. Here they are poured from a mould made of a real instance, whatever fields this version of LlamaIndex gives it;
should that ever not work, the validated way is used.
"""

from __future__ import annotations

import copy
from typing import Any, Final, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from pydantic import BaseModel

__all__ = ["completion", "message", "response", "text_block", "text_response"]

M = TypeVar("M", bound=BaseModel)

_new = object.__new__
_set = object.__setattr__


def _poured(cls: type[M], state: dict[str, Any], given: set[str]) -> M:
    """An instance of `cls` that holds `state`, of which the caller `given` some. Nothing is validated."""
    instance = _new(cls)
    _set(instance, "__dict__", state)
    _set(instance, "__pydantic_fields_set__", given)
    _set(instance, "__pydantic_extra__", None)
    _set(instance, "__pydantic_private__", None)
    return instance


def _mould(instance: BaseModel) -> dict[str, Any]:
    if instance.__pydantic_extra__ is not None or instance.__pydantic_private__ is not None:
        raise TypeError(f"a {type(instance).__name__} has more than its fields")
    return dict(instance.__dict__)


_ROLE: Final = MessageRole.ASSISTANT

try:
    _TEXT = _mould(TextBlock(text=""))
    _MESSAGE = _mould(ChatMessage(role=_ROLE, blocks=[]))
    _RESPONSE = _mould(ChatResponse(message=ChatMessage()))
    _COMPLETION = _mould(CompletionResponse(text=""))
except TypeError:
    _TEXT = _MESSAGE = _RESPONSE = _COMPLETION = {}


def _poured_block(text: str) -> TextBlock:
    return _poured(TextBlock, {**_TEXT, "text": text}, {"text"})


def _poured_message(role: MessageRole, blocks: list[ContentBlock], kwargs: dict[str, Any]) -> ChatMessage:
    state = {**_MESSAGE, "role": role, "blocks": blocks, "additional_kwargs": kwargs}
    return _poured(ChatMessage, state, {"role", "blocks", "additional_kwargs"})


def _poured_response(
    message: ChatMessage, delta: str | None, raw: Any, logprobs: Any, kwargs: dict[str, Any]
) -> ChatResponse:
    state = {**_RESPONSE, "message": message, "raw": raw, "delta": delta, "logprobs": logprobs}
    state["additional_kwargs"] = kwargs
    return _poured(ChatResponse, state, {"message", "raw", "delta", "logprobs", "additional_kwargs"})


def _poured_completion(
    text: str, delta: str | None, raw: Any, logprobs: Any, kwargs: dict[str, Any]
) -> CompletionResponse:
    state = {**_COMPLETION, "text": text, "raw": raw, "delta": delta, "logprobs": logprobs}
    state["additional_kwargs"] = kwargs
    return _poured(CompletionResponse, state, {"text", "raw", "delta", "logprobs", "additional_kwargs"})


def _poured_text_response(text: str, delta: str, thought: str, kwargs: dict[str, Any]) -> ChatResponse:
    # The three of `_poured_block`, `_poured_message` and `_poured_response` in one: this is what a stream is made of.
    block = _new(TextBlock)
    _set(block, "__dict__", {**_TEXT, "text": text})
    _set(block, "__pydantic_fields_set__", {"text"})
    _set(block, "__pydantic_extra__", None)
    _set(block, "__pydantic_private__", None)
    told = _new(ChatMessage)
    blocks = [ThinkingBlock(content=thought), block] if thought else [block]
    _set(told, "__dict__", {**_MESSAGE, "blocks": blocks, "additional_kwargs": {}})
    _set(told, "__pydantic_fields_set__", {"role", "blocks"})
    _set(told, "__pydantic_extra__", None)
    _set(told, "__pydantic_private__", None)
    made = _new(ChatResponse)
    _set(made, "__dict__", {**_RESPONSE, "message": told, "delta": delta, "additional_kwargs": kwargs})
    _set(made, "__pydantic_fields_set__", {"message", "delta", "additional_kwargs"})
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def _valid_block(text: str) -> TextBlock:
    return TextBlock(text=text)


def _valid_message(role: MessageRole, blocks: list[ContentBlock], kwargs: dict[str, Any]) -> ChatMessage:
    return ChatMessage(role=role, blocks=blocks, additional_kwargs=kwargs)


def _valid_response(
    message: ChatMessage, delta: str | None, raw: Any, logprobs: Any, kwargs: dict[str, Any]
) -> ChatResponse:
    return ChatResponse(message=message, delta=delta, raw=raw, logprobs=logprobs, additional_kwargs=kwargs)


def _valid_completion(
    text: str, delta: str | None, raw: Any, logprobs: Any, kwargs: dict[str, Any]
) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=raw, logprobs=logprobs, additional_kwargs=kwargs)


def _valid_text_response(text: str, delta: str, thought: str, kwargs: dict[str, Any]) -> ChatResponse:
    block = TextBlock(text=text)
    blocks = [ThinkingBlock(content=thought), block] if thought else [block]
    return ChatResponse(message=ChatMessage(role=_ROLE, blocks=blocks), delta=delta, additional_kwargs=kwargs)


def _works() -> bool:
    """Whether what is poured cannot be told from what was validated: by value, as JSON, and as a copy."""
    try:
        pairs: list[tuple[BaseModel, BaseModel]] = [
            (_poured_block("a"), _valid_block("a")),
            (_poured_message(_ROLE, [_poured_block("a")], {}), _valid_message(_ROLE, [_valid_block("a")], {})),
            (_poured_text_response("ab", "b", "hm", {}), _valid_text_response("ab", "b", "hm", {})),
            (_poured_completion("a", None, {}, None, {}), _valid_completion("a", None, {}, None, {})),
        ]
        told = pairs[1]
        pairs.append(
            (
                _poured_response(told[0], "", {"x": 1}, None, {}),  # type: ignore[arg-type]  # the message above
                _valid_response(told[1], "", {"x": 1}, None, {}),  # type: ignore[arg-type]  # the same
            )
        )
        return all(
            mine == theirs
            and mine.model_dump_json() == theirs.model_dump_json() == copy.deepcopy(mine).model_dump_json()
            for mine, theirs in pairs
        )
    except (AttributeError, TypeError, ValueError):
        return False


if _works():
    text_block, message, response, completion, text_response = (
        _poured_block, _poured_message, _poured_response, _poured_completion, _poured_text_response,
    )  # fmt: skip
else:
    text_block, message, response, completion, text_response = (
        _valid_block, _valid_message, _valid_response, _valid_completion, _valid_text_response,
    )  # fmt: skip
