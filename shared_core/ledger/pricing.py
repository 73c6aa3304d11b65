"""What models cost, from genai-prices' offline table: dated, tiered, never fetched. Unknown is None, never 0."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from shared_core.chat.events import Usage
from shared_core.routing.price import NANO, Price

__all__ = ["find_price", "price_version"]

_log = logging.getLogger("llm_fallback.prices")

_TABLE_NAMES = {
    "google": "google",
    "google-legacy": "google",
    "gemini": "google",
    "xai": "x-ai",
    "azure-openai": "azure",
    "cloudflare": "cloudflare",
    "moonshot": "moonshotai",
}
"""Our provider names where they differ from the table's."""


@dataclass(frozen=True, slots=True)
class TieredPrice(Price):
    """A price that depends on how much is asked at once: the whole request is repriced above a threshold."""

    provider: str = ""
    model: str = ""

    def cost_nano(self, usage: Usage, seconds: float = 0.0) -> int:
        """What `usage` costs in nano-dollars, rounded up."""
        import genai_prices

        cost = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=min(usage.cached_tokens, usage.input_tokens) or None,
                cache_write_tokens=min(usage.cache_write_tokens, usage.input_tokens - usage.cached_tokens) or None,
            ),
            self.model,
            provider_id=self.provider,
        )
        return int((cost.total_price * NANO).to_integral_value(rounding=ROUND_CEILING))


def find_price(provider: str, model: str, *, now: datetime | None = None) -> Price | None:
    """The price of `model` today, or None when the table does not know it.

    The table is bundled with genai-prices and read from memory; the first look-up in a process imports it (about 0.2
    s).
    """
    day = (now or datetime.now(UTC)).date()
    return _find(provider, model, day.toordinal())


@functools.lru_cache(maxsize=1024)
def _find(provider: str, model: str, ordinal: int) -> Price | None:
    from genai_prices import data_snapshot

    table = _TABLE_NAMES.get(provider, provider)
    when = datetime.fromordinal(ordinal).replace(tzinfo=UTC)
    try:
        _, info = data_snapshot.get_snapshot().find_provider_model(model, None, table, None)
        row = info.get_prices(when)
    except LookupError:
        return None
    except Exception as error:  # noqa: BLE001  # a surprise in a price table must not break a call
        _log.warning("no price for %s:%s: %s", provider, model, error)
        return None
    base = {
        "input": _base(row.input_mtok),
        "output": _base(row.output_mtok),
        "cached": _base(row.cache_read_mtok),
        "cache_write": _base(row.cache_write_mtok),
        "request": _base(getattr(row, "requests_kcount", None)),
    }
    if base["input"] is None and base["output"] is None:
        return None
    prices: dict[str, Any] = {name: value for name, value in base.items() if value is not None}
    if "request" in prices:
        prices["request"] = Decimal(prices["request"]) / 1000
    tiered = any(
        not isinstance(value, (Decimal, type(None)))
        for value in (row.input_mtok, row.output_mtok, row.cache_read_mtok, row.cache_write_mtok)
    )
    return TieredPrice(**prices, provider=table, model=model) if tiered else Price(**prices)


def _base(value: Any) -> Decimal | None:
    return value if isinstance(value, Decimal) else getattr(value, "base", None)


@functools.lru_cache(maxsize=1)
def price_version() -> str:
    """Which price table is in use."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"genai-prices {version('genai-prices')}"
    except PackageNotFoundError:
        return "none"
