"""How many input tokens a request can come to at worst. Pure, and quick: it runs before every attempt that is budgeted.

A token of text is at least one byte: tokenizers that work on bytes never make more tokens than there are bytes, those
that work on words fall back to bytes for what they do not know. What vendors put around it is bounded from above by
allowances per message, tool and medium.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from shared_core.chat.request import (
    Audio,
    ChatRequest,
    File,
    Image,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)

__all__ = ["input_bound"]

_REQUEST = 64
_PER_MESSAGE = 16
_PER_PART = 16
_PER_TOOL = 64
_TOOLS = 1024
"""What vendors tell a model about tools in general; the longest known is some 700 tokens."""
_SCHEMA = 512
"""The words with which a model without a schema mode is asked for one."""
_IMAGE = 65_536
"""Tokens of one picture; the most known is some 48,000 (small models that count a tile as thousands)."""
_PER_KIB_OF_FILE = 4096
"""A document's pages are read as text and as pictures: several tokens for each of its bytes."""


def input_bound(request: ChatRequest, *, window: int | None = None, extra: int = 0) -> int | None:
    """The most input tokens that `request` can be counted as.

    Args:
        request: what is asked.
        window: the model's context window in tokens: no request is ever counted as more.
        extra: bytes of text that will be added to it, such as the part of an answer that is to be continued.

    Returns:
        Tokens, or None when there is no bound: it refers to a medium of unknown size, and the window is unknown too.
    """
    total, media = float(_REQUEST + extra), 0.0
    for message in request.messages:
        text, heavy = _size(message.parts, message.name)
        total += text
        media += heavy
    for tool in request.tools:
        total += _PER_TOOL + _bytes(tool.name) + _bytes(tool.description) + _json(tool.parameters)
    if request.tools:
        total += _TOOLS
    if request.output is not None:
        total += _SCHEMA + 2 * _json(request.output.schema)
    if request.extra:
        total += _json(request.extra)
    # Audio has a price of its own, several times that of text; it takes far fewer tokens than bytes, which covers it.
    # So the window, which counts tokens, must not cut that off.
    audible = sum(_audible(message.parts) for message in request.messages)
    total += media
    if window is not None:
        total = min(total, float(window))
    total += audible
    return None if math.isinf(total) else int(total)


def _size(parts: Iterable[Part], name: str | None) -> tuple[float, float]:
    """Bytes of text, and tokens of media; recordings are counted apart (`_audible`)."""
    text, media = float(_PER_MESSAGE + (_bytes(name) if name else 0)), 0.0
    for part in parts:
        text += _PER_PART
        match part:
            case Text(said):
                text += _bytes(said)
            case Image():
                media += _IMAGE
            case File():
                media += math.inf if part.data is None else _PER_KIB_OF_FILE * (1 + len(part.data) / 1024)
            case ToolCall():
                text += _bytes(part.id) + _bytes(part.name) + _bytes(part.arguments) + _json(part.data)
            case Reasoning():
                text += _bytes(part.text) + _json(part.data)
            case ToolResult():
                inner, heavy = _size(part.content, None)
                text += inner + _bytes(part.call_id) + _bytes(part.name or "")
                media += heavy
    return text, media


def _audible(parts: Iterable[Part]) -> float:
    """Bytes of recordings, those included that a tool has answered; infinite for one that is only referred to."""
    total = 0.0
    for part in parts:
        if isinstance(part, Audio):
            total += math.inf if part.data is None else len(part.data)
        elif isinstance(part, ToolResult):
            total += _audible(part.content)
    return total


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _json(value: Mapping[str, Any]) -> int:
    """Bytes of its JSON; of what is no JSON (a framework's own object) those of its text."""
    return len(json.dumps(value, default=str)) if value else 0
