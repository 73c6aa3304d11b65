"""LangChain: a chat model that keeps answering while its vendors fail."""

from __future__ import annotations

from langchain_fallback.chat_model import FallbackChatModel
from langchain_fallback.provider import LangChainProvider

__all__ = ["FallbackChatModel", "LangChainProvider"]
