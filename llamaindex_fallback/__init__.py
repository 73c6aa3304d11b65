"""LlamaIndex over the fallback core: `FallbackLLM`, and `LlamaIndexProvider` for a ready LLM as a router's target."""

from llamaindex_fallback.errors import StructuredOutputFailed
from llamaindex_fallback.llm import FallbackLLM
from llamaindex_fallback.provider import LlamaIndexProvider

__all__ = ["FallbackLLM", "LlamaIndexProvider", "StructuredOutputFailed"]
