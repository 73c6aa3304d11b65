"""Vendors that speak OpenAI's chat completions: one row each.

Sources: each vendor's API reference as commonly known in 2026; not tried against live accounts. Where in doubt, the
careful value stands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from shared_core.errors import ConfigurationError

__all__ = ["ROWS", "Row", "base_url", "is_loopback"]

_ANY_CHOICE = frozenset({"auto", "any", "none", "tool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One vendor. Capabilities are the endpoint's; a model's own facts narrow them further."""

    name: str
    base_url: str | None
    """May hold `{VARIABLES}` of the environment. None: the target must give one."""
    key_env: tuple[str, ...] = ()
    """Environment variables of the key, the first that is set wins."""
    needs_key: bool = True
    url_env: tuple[str, ...] = ()
    """Environment variables that replace `base_url`."""
    local: bool = False
    """An engine on this machine, as long as its address is a loopback one."""
    stream_usage: bool = True
    """Takes `stream_options: {include_usage: true}`. Usage is read whether asked for or not."""
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: str | None = "seed"
    user: bool = True
    parallel_tool_calls: bool = True
    tools: bool = True
    tool_choice: frozenset[str] = _ANY_CHOICE
    json_schema: bool = True
    json_mode: bool = True
    images: bool = True
    image_urls: bool = True
    pdfs: bool = False
    audio: bool = False
    prefill_message: Mapping[str, Any] | None = None
    """Keys of the last assistant message that make the vendor go on with it; empty where it does so unasked."""
    prefill_body: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the request's body for the same."""
    think_tags: bool = False
    """Its models may put `<think>…</think>` into the text; it is split out."""
    history: str = "COMPATIBLE"
    """Name of the `HistoryRules` in `shared_core.history`."""
    thoughts: Literal["reasoning_content", "reasoning_details"] | None = None
    """The field of an assistant message in which the vendor wants its model's thinking back."""
    stand_in: str | None = None
    """What goes there in a tool loop that another model began: the vendor refuses a thinking model's turn without."""
    thinks: str = ""
    """Models that think unless told not to, as a pattern; of others the stand-in is not wanted."""


_LOCAL: dict[str, Any] = {"needs_key": False, "local": True, "think_tags": True}

_TABLE: tuple[Row, ...] = (
    Row(
        name="openai", base_url="https://api.openai.com/v1", key_env=("OPENAI_API_KEY",), url_env=("OPENAI_BASE_URL",),
        max_tokens="max_completion_tokens", pdfs=True, audio=True, history="OPENAI",
    ),
    Row(
        name="azure-openai", base_url="{AZURE_OPENAI_ENDPOINT}/openai/v1", key_env=("AZURE_OPENAI_API_KEY",),
        max_tokens="max_completion_tokens", pdfs=True, audio=True, history="OPENAI",
    ),
    Row(
        name="openai-compatible", base_url=None, key_env=("OPENAI_COMPATIBLE_API_KEY",), needs_key=False,
        url_env=("OPENAI_COMPATIBLE_BASE_URL",), think_tags=True,
    ),
    # ── hosted ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row(
        name="openrouter", base_url="https://openrouter.ai/api/v1", key_env=("OPENROUTER_API_KEY",), pdfs=True,
        audio=True, history="OPENROUTER", thoughts="reasoning_details",
    ),
    Row(
        name="groq", base_url="https://api.groq.com/openai/v1", key_env=("GROQ_API_KEY",),
        max_tokens="max_completion_tokens", prefill_message={}, think_tags=True,
    ),
    Row(
        name="together", base_url="https://api.together.xyz/v1", key_env=("TOGETHER_API_KEY",),
        url_env=("TOGETHER_BASE_URL",), think_tags=True,
    ),
    # Prefix completion is only on the vendor's beta address; see `OpenAIProvider`.
    Row(
        name="deepseek", base_url="https://api.deepseek.com/v1", key_env=("DEEPSEEK_API_KEY",), json_schema=False,
        images=False, parallel_tool_calls=False, user=False, history="DEEPSEEK", thoughts="reasoning_content",
        stand_in="", thinks=r"deepseek-(reasoner|r\d|v[4-9])",
    ),
    # Sends usage unasked; refuses parameters it does not know.
    Row(
        name="mistral", base_url="https://api.mistral.ai/v1", key_env=("MISTRAL_API_KEY",), stream_usage=False,
        seed="random_seed", user=False, prefill_message={"prefix": True}, history="MISTRAL",
    ),
    Row(name="xai", base_url="https://api.x.ai/v1", key_env=("XAI_API_KEY",)),
    Row(
        name="cloudflare", base_url="https://api.cloudflare.com/client/v4/accounts/{CLOUDFLARE_ACCOUNT_ID}/ai/v1",
        key_env=("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"), stream_usage=False, parallel_tool_calls=False,
        user=False, think_tags=True,
    ),
    Row(
        name="fireworks", base_url="https://api.fireworks.ai/inference/v1", key_env=("FIREWORKS_API_KEY",),
        think_tags=True,
    ),
    Row(
        name="perplexity", base_url="https://api.perplexity.ai", key_env=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        tools=False, stream_usage=False, seed=None, user=False, json_mode=False, think_tags=True,
    ),
    Row(
        name="cerebras", base_url="https://api.cerebras.ai/v1", key_env=("CEREBRAS_API_KEY",),
        max_tokens="max_completion_tokens", images=False, think_tags=True,
    ),
    Row(
        name="nvidia", base_url="https://integrate.api.nvidia.com/v1", key_env=("NVIDIA_API_KEY",), user=False,
        parallel_tool_calls=False, think_tags=True,
    ),
    Row(
        name="moonshot", base_url="https://api.moonshot.ai/v1", key_env=("MOONSHOT_API_KEY",),
        tool_choice=frozenset({"auto", "none"}), json_schema=False, parallel_tool_calls=False, user=False,
        prefill_message={"partial": True}, history="DEEPSEEK", thoughts="reasoning_content",
        stand_in=" ", thinks=r"kimi-(k2-thinking|k2\.[5-9]|k[3-9]|thinking)",  # an empty one counts as missing here
    ),
    # ── on this machine ──────────────────────────────────────────────────────────────────────────────────────────
    Row(
        name="ollama", base_url="http://127.0.0.1:11434/v1", key_env=("OLLAMA_API_KEY",), url_env=("OLLAMA_HOST",),
        tool_choice=frozenset({"auto"}), parallel_tool_calls=False, image_urls=False, prefill_message={}, **_LOCAL,
    ),
    Row(
        name="lmstudio", base_url="http://127.0.0.1:1234/v1", key_env=("LMSTUDIO_API_KEY",),
        url_env=("LMSTUDIO_BASE_URL",), image_urls=False, parallel_tool_calls=False, **_LOCAL,
    ),
    Row(
        name="vllm", base_url="http://127.0.0.1:8000/v1", key_env=("VLLM_API_KEY",), url_env=("VLLM_BASE_URL",),
        prefill_message={}, prefill_body={"continue_final_message": True, "add_generation_prompt": False}, **_LOCAL,
    ),
    Row(
        name="llama-server", base_url="http://127.0.0.1:8080/v1", key_env=("LLAMA_API_KEY",),
        url_env=("LLAMA_SERVER_BASE_URL",), prefill_message={}, **_LOCAL,
    ),
)  # fmt: skip

ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _TABLE})
"""Every vendor that speaks chat completions, by provider name."""


def base_url(row: Row, given: str | None) -> str:
    """Where `row` is reached: what the target gives, else the environment, else the vendor's address.

    Raises:
        ConfigurationError: the address needs a variable that is not set, or there is none; the message names it.
    """
    if given is None:
        given = next((value for name in row.url_env if (value := os.environ.get(name))), None)
    if given is not None:
        return _normal(given, row)
    if row.base_url is None:
        raise ConfigurationError(f"provider {row.name!r} needs an address.\nhint: pass base_url=")
    url = row.base_url
    while "{" in url:
        before, _, rest = url.partition("{")
        name, _, after = rest.partition("}")
        value = os.environ.get(name, "").strip().rstrip("/")
        if not value:
            raise ConfigurationError(f"provider {row.name!r} needs an address.\nhint: set `{name}` or pass base_url=")
        url = before + value + after
    return url


def _normal(url: str, row: Row) -> str:
    """`OLLAMA_HOST` may be 'host', 'host:port' or a URL without a path. 0.0.0.0 is to listen on, not to connect to."""
    url = url.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    if row.name != "ollama":
        return url
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::", None) else parts.hostname
    host = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 11434)
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/') or '/v1'}"


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine."""
    host = (urlsplit(url).hostname or "").lower()
    return host in ("localhost", "::1") or host.startswith("127.") or host.endswith(".localhost")
