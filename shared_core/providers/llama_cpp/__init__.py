"""A GGUF model on this machine through llama.cpp, in a supervised process of its own (docs/local-model.md).

The names are resolved on first use: the worker process imports this package too, and must not pay for the parent's
half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.providers.llama_cpp.model_file import check_model_file
    from shared_core.providers.llama_cpp.options import OPTIONS
    from shared_core.providers.llama_cpp.provider import LlamaCppProvider, UnusableModel, check_target

__all__ = ["OPTIONS", "LlamaCppProvider", "UnusableModel", "check_model_file", "check_target"]

_HOMES = {
    name: f"{__name__}.{home}"
    for name, home in {
        "OPTIONS": "options",
        "LlamaCppProvider": "provider",
        "UnusableModel": "provider",
        "check_model_file": "model_file",
        "check_target": "provider",
    }.items()
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
