"""LlamaIndex over the fallback core: `FallbackLLM`, and `LlamaIndexProvider` for a ready LLM as a router's target."""

try:
    from llamaindex_fallback.errors import StructuredOutputFailed
    from llamaindex_fallback.llm import FallbackLLM
    from llamaindex_fallback.provider import LlamaIndexProvider
except ModuleNotFoundError as error:
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    from shared_core.errors import MissingDependency

    raise MissingDependency(
        'llamaindex_fallback needs LlamaIndex.\nhint: pip install "llm-fallback[llamaindex]"'
    ) from error

__all__ = ["FallbackLLM", "LlamaIndexProvider", "StructuredOutputFailed"]
