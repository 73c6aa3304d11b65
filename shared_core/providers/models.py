"""What is known offline about models: context window, longest output, and what they take. Rows, most specific first.

Sources: the vendors' model pages as commonly known in 2026, and the model profiles that langchain-openai and
-anthropic 1.7 ship (`data/_profiles.py`). A model that no row knows gets its context window from genai-prices, and
otherwise None: unknown excludes nothing. `Target(capabilities=…)` overrides any of it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

__all__ = ["ModelFacts", "facts", "gemini_generation", "since_gemini_3"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about one model; tokens. None is unknown."""

    context_window: int | None = None
    max_output: int | None = None
    reasoning: bool = False
    """Thinks before it speaks, whether asked to or not."""
    sampling: bool = True
    """Takes temperature, top_p and penalties."""
    stop: bool = True
    """Takes stop sequences."""
    tools: bool = True
    json_schema: bool = True
    images: bool = True
    audio: bool = False
    developer: bool = False
    """Wants the system prompt under the role 'developer'."""
    prefill: bool = False
    """Goes on with an assistant message that it is given."""


@dataclass(frozen=True, slots=True)
class _Row:
    provider: str
    pattern: re.Pattern[str]
    facts: ModelFacts


def _row(provider: str, pattern: str, **known: Any) -> _Row:
    return _Row(provider, re.compile(pattern), ModelFacts(**known))


def _thinks(context_window: int, max_output: int, **more: Any) -> dict[str, Any]:
    return {
        "context_window": context_window, "max_output": max_output, "reasoning": True, "sampling": False, "stop": False,
        **more,
    }  # fmt: skip


_ROWS: tuple[_Row, ...] = (
    # ── OpenAI: developers' model pages ──────────────────────────────────────────────────────────────────────────
    _row("openai", r"o1-mini|o1-preview", **_thinks(128_000, 65_536, tools=False, json_schema=False, images=False)),
    _row("openai", r"o3-mini", **_thinks(200_000, 100_000, images=False, developer=True)),
    _row("openai", r"o[134](?:-|$)", **_thinks(200_000, 100_000, developer=True)),
    _row("openai", r"gpt-5(?:\.\d)?-chat", context_window=128_000, max_output=16_384),
    _row("openai", r"gpt-5\.3-codex-spark", **_thinks(128_000, 32_000, developer=True)),
    # With reasoning effort 'none', their default, these take sampling parameters.
    _row("openai", r"gpt-5\.4(?!-(?:mini|nano|pro))", **_thinks(1_050_000, 128_000, sampling=True, developer=True)),
    _row("openai", r"gpt-5\.[1-4](?!.*-pro)", **_thinks(400_000, 128_000, sampling=True, developer=True)),
    _row("openai", r"gpt-5\.2-pro", **_thinks(400_000, 128_000, json_schema=False, developer=True)),
    _row("openai", r"gpt-5\.4-pro", **_thinks(1_050_000, 128_000, json_schema=False, developer=True)),
    _row("openai", r"gpt-daybreak-red", **_thinks(400_000, 128_000, developer=True)),
    _row("openai", r"gpt-daybreak", **_thinks(1_050_000, 128_000, developer=True)),
    _row("openai", r"gpt-5\.[4-9]|gpt-[6-9]", **_thinks(1_050_000, 128_000, developer=True)),
    _row("openai", r"gpt-5-pro", **_thinks(400_000, 272_000, developer=True)),
    _row("openai", r"gpt-5", **_thinks(400_000, 128_000, developer=True)),
    _row("openai", r"gpt-4\.1", context_window=1_047_576, max_output=32_768),
    _row("openai", r"gpt-4o.*audio", context_window=128_000, max_output=16_384, images=False, audio=True),
    _row("openai", r"gpt-audio", context_window=128_000, max_output=16_384, images=False, audio=True),
    _row("openai", r"gpt-4o-2024-05-13", context_window=128_000, max_output=4_096, json_schema=False),
    _row("openai", r"gpt-4o|chatgpt-4o", context_window=128_000, max_output=16_384),
    _row("openai", r"gpt-4-turbo|gpt-4-(?:0125|1106)", context_window=128_000, max_output=4_096, json_schema=False),
    _row("openai", r"gpt-4(?:-|$)", context_window=8_192, max_output=8_192, json_schema=False, images=False),
    _row("openai", r"gpt-3\.5-turbo", context_window=16_385, max_output=4_096, json_schema=False, images=False),
    _row("openai", r"gpt-oss", context_window=131_072, max_output=131_072, reasoning=True, images=False),
    # ── Anthropic: platform docs, models overview; prefill ends with the 4.6 generation ───────────────────────────
    _row("anthropic", r"claude-3-5", context_window=200_000, max_output=8_192, json_schema=False, prefill=True),
    _row("anthropic", r"claude-3-7", context_window=200_000, max_output=64_000, json_schema=False, prefill=True),
    _row("anthropic", r"claude-3", context_window=200_000, max_output=4_096, json_schema=False, prefill=True),
    _row("anthropic", r"claude-opus-4(?:-0|-1)?(?:-\d{8})?$", context_window=200_000, max_output=32_000,
         json_schema=False, prefill=True),
    _row("anthropic", r"claude-sonnet-4(?:-0)?(?:-\d{8})?$", context_window=200_000, max_output=64_000,
         json_schema=False, prefill=True),
    _row("anthropic", r"claude-(?:opus|sonnet|haiku)-4-5", context_window=200_000, max_output=64_000, prefill=True),
    _row("anthropic", r"claude-(?:opus|sonnet|haiku)-4-6", context_window=1_000_000, max_output=128_000),
    # From Opus 4.7 on a temperature is refused.
    _row("anthropic", r"claude-(?:opus|sonnet|haiku)-4-[7-9]|claude-mythos|claude-(?:fable|opus|sonnet|haiku)-[5-9]",
         context_window=1_000_000, max_output=128_000, sampling=False),
    # ── others, where the vendor's page is unambiguous ────────────────────────────────────────────────────────────
    _row("deepseek", r"deepseek-reasoner", context_window=131_072, max_output=65_536, reasoning=True, sampling=False,
         images=False),
    _row("deepseek", r"deepseek-chat", context_window=131_072, max_output=8_192, images=False),
    _row("xai", r"grok-4", context_window=256_000, reasoning=True, stop=False),
    _row("xai", r"grok-3-mini", context_window=131_072, reasoning=True, stop=False, images=False),
    _row("xai", r"grok-3", context_window=131_072, images=False),
)  # fmt: skip
_PRICES_ID = {"azure-openai": "azure", "xai": "x-ai", "moonshot": "moonshotai", "google-legacy": "google"}
_FAMILY = {"azure-openai": "openai"}


@functools.lru_cache(maxsize=512)
def facts(provider: str, model: str) -> ModelFacts:
    """What is known about `model` at `provider`; a `ModelFacts` full of unknowns when nothing is.

    The first call for a model that no row knows reads genai-prices' bundled table (about 0.2 s, no network).
    """
    family = _FAMILY.get(provider, provider)
    name = model.lower().rpartition("/")[2]
    for row in _ROWS:
        if row.provider == family and row.pattern.match(name):
            return row.facts
    return ModelFacts(context_window=_window(_PRICES_ID.get(provider, provider), model))


def gemini_generation(model: str) -> float | None:
    """2.5 of 'gemini-2.5-flash'; None for aliases such as 'gemini-flash-latest' and for other families."""
    found = re.search(r"gemini-(\d+(?:\.\d+)?)", model.lower())
    return float(found[1]) if found else None


def since_gemini_3(model: str) -> bool:
    """Whether it is a Gemini of the third generation or later, by its name."""
    return (gemini_generation(model) or 0.0) >= 3.0


def _window(provider: str, model: str) -> int | None:
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return None
    try:
        found = get_snapshot().find_provider_model(model, None, provider, None)[1].context_window
    except LookupError:
        return None
    return found if isinstance(found, int) and found > 0 else None
