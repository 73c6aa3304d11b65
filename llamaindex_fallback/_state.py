"""Settings as plain data without secrets, and a LlamaIndex LLM as such data and back again."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from llama_index.core.llms.llm import LLM

from shared_core.errors import ConfigurationError, is_secret, redact

MISSING: Final = object()


def plain(value: Any) -> Any:
    """`value` as JSON types, without secrets; `MISSING` where that cannot be."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case enum.Enum():
            return plain(value.value)
        case Decimal():
            return float(value)
        case Mapping():
            return {str(k): kept for k, v in value.items() if not is_secret(k) and (kept := plain(v)) is not MISSING}
        case list() | tuple():
            items = [plain(item) for item in value]
            return MISSING if any(item is MISSING for item in items) else items
        case frozenset() | set():
            return sorted(str(item) for item in value)
        case _ if hasattr(value, "as_options"):  # a ResponseCache: another process has one of its own
            return plain(value.as_options())
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init})
        case _:
            return MISSING


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that can be told: no secrets, and no callables, stores or ready objects."""
    told: dict[str, Any] = plain(options)
    return told


def dump_llm(llm: LLM) -> dict[str, Any]:
    """A LlamaIndex LLM as its class and its settings, secrets left out."""
    cls = type(llm)
    shown = [name for name, info in cls.model_fields.items() if not info.exclude and not is_secret(name)]
    settings = {name: told for name in shown if (told := plain(getattr(llm, name, None))) not in (None, MISSING)}
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "settings": settings | _built_with(llm)}


def _built_with(llm: LLM) -> dict[str, Any]:
    """Figures and words that `llm` was built with and keeps in private, and its address. Without them LlamaIndex's
    Gemini class, when it is built again, asks Google's own address how long its answers may be.
    """
    cls, kept = type(llm), llm.__pydantic_private__ or {}
    names = [name for name in inspect.signature(cls).parameters if name not in cls.model_fields and not is_secret(name)]
    held = {name: plain(kept.get(f"_{name}")) for name in names}
    told: dict[str, Any] = {name: value for name, value in held.items() if isinstance(value, (str, int, float))}
    options = getattr(getattr(kept.get("_client"), "_api_client", None), "_http_options", None)
    if "http_options" in names and options is not None:
        told["http_options"] = {"base_url": plain(options.base_url)}
        if getattr(llm, "context_window", None) is None:
            told["context_window"] = llm.metadata.context_window
    return told


def load_llm(told: Mapping[str, Any]) -> LLM:
    """The LLM that `dump_llm` told. Only classes of LlamaIndex, or of modules that are already imported, are built.

    Raises:
        ConfigurationError: the class is not there, or is no LLM.
    """
    module, _, name = str(told.get("class", "")).partition(":")
    if module not in sys.modules and not module.startswith("llama_index."):
        raise ConfigurationError(f"LLM class {module}:{name} is not loaded\nhint: import {module} before from_dict")
    try:
        cls: Any = importlib.import_module(module)
        for step in name.split("."):
            cls = getattr(cls, step)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"there is no LLM class {module}:{name}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, LLM)):
        raise ConfigurationError(f"{module}:{name} is not a LlamaIndex LLM")
    llm: LLM = cls(**told.get("settings", {}))
    return llm
