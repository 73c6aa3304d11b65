"""LangChain's objects as ours, and ours as LangChain's. Pure: nothing here is sent, kept or changed."""

from __future__ import annotations

from langchain_fallback._convert.answers import (
    RESTARTED,
    Chunks,
    attribution,
    mended,
    message_of,
    usage_metadata,
    usage_of,
)
from langchain_fallback._convert.messages import from_langchain, ls_provider, provider_of, to_langchain
from langchain_fallback._convert.options import LOOSE
from langchain_fallback._convert.request import CALL_OPTIONS, FRAMEWORK, to_request
from langchain_fallback._convert.tools import BoundTools, bound_tools, neutral_choice, output_schema

__all__ = [
    "CALL_OPTIONS",
    "FRAMEWORK",
    "LOOSE",
    "RESTARTED",
    "BoundTools",
    "Chunks",
    "attribution",
    "bound_tools",
    "from_langchain",
    "ls_provider",
    "mended",
    "message_of",
    "neutral_choice",
    "output_schema",
    "provider_of",
    "to_langchain",
    "to_request",
    "usage_metadata",
    "usage_of",
]
