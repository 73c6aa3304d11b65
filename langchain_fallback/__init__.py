"""LangChain: a chat model that keeps answering while its vendors fail."""

from __future__ import annotations

try:
    from langchain_fallback.chat_model import FallbackChatModel
    from langchain_fallback.provider import LangChainProvider
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    from shared_core.errors import MissingDependency

    raise MissingDependency(
        'langchain_fallback needs LangChain.\nhint: pip install "llm-fallback[langchain]"'
    ) from error

__all__ = ["FallbackChatModel", "LangChainProvider"]
