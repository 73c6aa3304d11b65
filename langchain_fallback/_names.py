"""The names that users of `init_chat_model` write, as targets of ours."""

from __future__ import annotations

import importlib.util
from typing import Any

from langchain_fallback._convert import provider_of
from shared_core.errors import ConfigurationError, UnknownProvider

__all__ = ["target_named"]

_OURS = {"azure_openai": "azure-openai", "mistralai": "mistral"}
"""Where LangChain's name of a vendor is not ours, beside what `provider_of` knows."""
_FAMILIES = (
    ("gpt-", "openai"), ("o1", "openai"), ("o3", "openai"), ("o4", "openai"), ("chatgpt", "openai"),
    ("claude", "anthropic"),
    ("gemini", "google"),
    ("mistral", "mistral"), ("mixtral", "mistral"),
    ("deepseek", "deepseek"),
    ("grok", "xai"),
    ("sonar", "perplexity"),
)  # fmt: skip
"""Beginnings of models' names, and whose they are: as `init_chat_model` infers, with Gemini at Google's own API."""


def target_named(name: str) -> Any:
    """The target for `name`: 'provider:model' in our words or LangChain's, or a model whose vendor its name tells.

    A vendor only LangChain knows is built by `init_chat_model`, and is a ready chat model.

    Raises:
        ConfigurationError: nobody knows whose model that is.
    """
    from shared_core.providers.registry import provider_names

    vendor, colon, model = name.partition(":")
    if not colon:
        for beginning, whose in _FAMILIES:
            if name.lower().startswith(beginning):
                return f"{whose}:{name}"
        raise ConfigurationError(f"whose model is {name!r}?\nhint: write 'provider:model', such as 'openai:{name}'")
    ours = _OURS.get(vendor, provider_of(vendor))
    if ours in provider_names():
        return f"{ours}:{model}"
    if importlib.util.find_spec("langchain") is None:
        raise UnknownProvider(
            f"no provider {vendor!r} of ours; LangChain may have one.\n"
            "hint: pip install langchain, or pass a ready chat model"
        )
    from langchain.chat_models import init_chat_model

    return init_chat_model(name)
