"""Call options that belong to one family of vendors, given without the vendor's name: who is told about each.

A chain written for one vendor binds that vendor's keywords (`reasoning_effort`, `thinking`, `cache_control`, …). They
go to the targets that understand them and to nobody else: another vendor would refuse the whole request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LOOSE", "families", "loose_options"]

_OPENAI, _ANTHROPIC, _GOOGLE, _LLAMA = "openai", "anthropic", "google", "llamacpp"
_FAMILY: Mapping[str, str] = {
    "anthropic": _ANTHROPIC,
    "google": _GOOGLE,
    "google-legacy": _GOOGLE,
    "google-vertexai": _GOOGLE,
    "llamacpp": _LLAMA,
}
"""Providers by the options they take. All others speak OpenAI's chat completions, or come near."""


def _rows() -> Mapping[str, frozenset[str]]:
    only = frozenset
    o, a, g, m = _OPENAI, _ANTHROPIC, _GOOGLE, _LLAMA
    return {
        **dict.fromkeys(("frequency_penalty", "presence_penalty"), only({o, g, m})),
        **dict.fromkeys(
            (
                "logit_bias", "logprobs", "top_logprobs", "reasoning_effort", "verbosity", "store", "prediction",
                "modalities", "audio", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
                "web_search_options",
            ),
            only({o}),
        ),
        **dict.fromkeys(("extra_body", "extra_headers", "extra_query", "service_tier", "metadata"), only({o, a})),
        **dict.fromkeys(
            ("thinking", "cache_control", "betas", "container", "context_management", "inference_geo", "mcp_servers",
             "output_config", "effort"),
            only({a}),
        ),
        "top_k": only({a, g, m}),
        **dict.fromkeys(("min_p", "repeat_penalty"), only({m})),
        **dict.fromkeys(
            ("safety_settings", "thinking_budget", "thinking_level", "thinking_config", "include_thoughts",
             "response_modalities", "cached_content", "media_resolution", "speech_config", "image_config", "labels"),
            only({g}),
        ),
    }  # fmt: skip


LOOSE: Mapping[str, frozenset[str]] = _rows()
"""Option: the families that understand it. Sources: the parameters of the vendors' SDKs and LangChain integrations."""


_THINKING = ("thinking_budget", "thinking_level", "include_thoughts")
"""What ChatGoogleGenerativeAI takes one by one, and the API in one `thinking_config`."""


def families(providers: Iterable[str]) -> Mapping[str, str]:
    """The family of each provider."""
    return {name: _FAMILY.get(name, _OPENAI) for name in providers}


def loose_options(given: Mapping[str, Any], providers: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`given` (all in `LOOSE`) by provider: each is told what its family understands."""
    told: dict[str, dict[str, Any]] = {}
    for provider, family in families(providers).items():
        own = {name: value for name, value in given.items() if family in LOOSE[name]}
        if family == _GOOGLE and (thinking := {name: own.pop(name) for name in _THINKING if name in own}):
            own["thinking_config"] = {**thinking, **own.get("thinking_config", {})}
        if own:
            told[provider] = own
    return told
