"""A GGUF model on this machine through llama.cpp, in a supervised process of its own (docs/local-model.md).

The names are resolved on first use: the worker process imports this package too, and must not pay for the parent's
half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_core.providers.llama_cpp.model_file import check_model_file
    from shared_core.providers.llama_cpp.options import OPTIONS
    from shared_core.providers.llama_cpp.provider import LlamaCppProvider, UnusableModel, check_target

__all__ = ["OPTIONS", "LlamaCppProvider", "UnusableModel", "check_model_file", "check_target"]

_HOME = {
    "OPTIONS": "options",
    "LlamaCppProvider": "provider",
    "UnusableModel": "provider",
    "check_model_file": "model_file",
    "check_target": "provider",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
