"""What models cost, from genai-prices' offline table: dated, tiered, never fetched. Unknown is None, never 0."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from shared_core.chat.events import Usage
from shared_core.routing.price import Dollars, Price

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


@dataclass(frozen=True, slots=True, init=False)
class TablePrice(Price):
    """A price from the table. With `tiers`, all of a request is repriced when its input passes a threshold.

    Attributes:
        tiers: thresholds in input tokens, ascending, each with the rates of requests beyond it.
        reasoning: of output spent thinking, where that has a rate of its own.
        dear: the dearest rate of input of any kind (written to a cache for an hour, pictures, recordings).
    """

    tiers: tuple[tuple[int, Price], ...] = ()
    reasoning: Decimal | None = None
    dear: Decimal = Decimal(0)

    def __init__(
        self,
        base: Price,
        tiers: tuple[tuple[int, Price], ...] = (),
        reasoning: Decimal | None = None,
        dear: Decimal = Decimal(0),
    ) -> None:
        for name in Price.__slots__:
            object.__setattr__(self, name, getattr(base, name))
        object.__setattr__(self, "tiers", tiers)
        object.__setattr__(self, "reasoning", reasoning)
        object.__setattr__(self, "dear", dear)

    def _for(self, input_tokens: int) -> Price | None:
        """The rates of a request of that length, where they are not those of the base."""
        found = None
        for start, rates in self.tiers:
            if input_tokens > start:
                found = rates
        return found

    def cost_nano(self, usage: Usage, seconds: float = 0.0) -> int:
        """What `usage` costs in nano-dollars, rounded up."""
        if self.reasoning is not None and usage.reasoning_tokens:
            spoken = replace(usage, output_tokens=usage.output_tokens - usage.reasoning_tokens, reasoning_tokens=0)
            return Price.cost_nano(self, spoken, seconds) + _nano(usage.reasoning_tokens * self.reasoning)
        rates = self._for(usage.input_tokens)
        return Price.cost_nano(self, usage, seconds) if rates is None else rates.cost_nano(usage, seconds)

    def bound_nano(self, input_tokens: int, output_tokens: int, seconds: float = 0.0) -> int:
        """What an attempt can cost at most in nano-dollars."""
        output = max(Decimal(self.output), self.reasoning or Decimal(0))
        dearest = max(self.dearest_input, self.dear)
        for start, rates in self.tiers:
            if input_tokens > start:  # rates may fall beyond a threshold: what is sent may come to less than the bound
                output, dearest = max(output, Decimal(rates.output)), max(dearest, rates.dearest_input)
        rates = _bounding(dearest, output, self.second, self.request)
        # Thinking is rounded up on its own.
        return rates.bound_nano(input_tokens, output_tokens, seconds) + (self.reasoning is not None)

    def output_within(self, nano: int, input_tokens: int, seconds: float = 0.0) -> int | None:
        """How many output tokens `bound_nano` lets an attempt have for `nano` nano-dollars; None when they are free."""
        base, one = self.bound_nano(input_tokens, 0, seconds), self.bound_nano(input_tokens, 1_000_000, seconds)
        return (nano - base) * 1_000_000 // (one - base) if one > base else None


@functools.lru_cache(maxsize=1024)
def _bounding(dearest: Dollars, output: Dollars, second: Dollars, request: Dollars) -> Price:
    return Price(dearest, output, second=second, request=request)


def _nano(millionths: Decimal) -> int:
    """Dollars per million tokens, times tokens, as nano-dollars."""
    return int((millionths * 1000).to_integral_value(rounding=ROUND_CEILING))


def find_price(provider: str, model: str, *, now: datetime | None = None) -> Price | None:
    """The price of `model` at this moment, or None when the table does not know it.

    The table is bundled with genai-prices and read from memory; the first look-up in a process imports it (about 0.2
    s). It knows prices that begin on a day, and prices of hours of the day.
    """
    moment = now or datetime.now(UTC)
    hourly = _hourly(provider, model)
    return _find(provider, model, int(moment.timestamp()) // (60 if hourly else 86400), 60 if hourly else 86400)


@functools.lru_cache(maxsize=1)
def _table() -> Any:
    """The bundled table, as an object of our own: what a program does with the global one does not change our books."""
    from genai_prices import data_snapshot
    from genai_prices.data import providers

    price_version()  # reads a file the first time, which must not be on anybody's event loop
    return data_snapshot.DataSnapshot(providers=providers, from_auto_update=False)


def _model(provider: str, model: str) -> Any:
    """The table's row, or None."""
    try:
        _, info = _table().find_provider_model(model, None, _TABLE_NAMES.get(provider, provider), None)
    except LookupError:
        return None
    except Exception as error:  # noqa: BLE001  # a surprise in a price table must not break a call
        _log.warning("no price for %s:%s: %s", provider, model, error)
        return None
    return info


@functools.lru_cache(maxsize=1024)
def _hourly(provider: str, model: str) -> bool:
    """Whether its price depends on the time of day."""
    prices = getattr(_model(provider, model), "prices", None)
    return isinstance(prices, list) and any(hasattr(p.constraint, "start_time") for p in prices)


@functools.lru_cache(maxsize=1024)
def _find(provider: str, model: str, slot: int, seconds: int) -> Price | None:
    info = _model(provider, model)
    if info is None:
        return None
    try:
        row = info.get_prices(datetime.fromtimestamp(slot * seconds, UTC))
        return _priced(row)
    except Exception as error:  # noqa: BLE001  # as above
        _log.warning("no price for %s:%s: %s", provider, model, error)
        return None


_RATES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}


def _priced(row: Any) -> Price | None:
    """A row of the table as a price."""
    values = {name: getattr(row, column) for name, column in _RATES.items()}
    if values["input"] is None and values["output"] is None:
        return None
    request = _base(getattr(row, "requests_kcount", None))
    beside: dict[str, Any] = {} if request is None else {"request": request / 1000}
    base = Price(**{name: _base(value) for name, value in values.items() if value is not None}, **beside)
    starts = sorted({tier.start for value in values.values() for tier in getattr(value, "tiers", ())})
    tiers = tuple(
        (start, Price(**{n: _beyond(value, start) for n, value in values.items() if value is not None}, **beside))
        for start in starts
    )
    reasoning = _base(getattr(row, "output_reasoning_mtok", None))
    dear = max((_dearest(getattr(row, column)) for column in _DEAR), default=Decimal(0))
    if not tiers and reasoning is None and dear <= base.dearest_input:
        return base
    return TablePrice(base, tiers, reasoning, dear)


_DEAR = ("cache_write_1h_mtok", "input_audio_mtok", "input_image_mtok", "input_video_mtok")


def _dearest(value: Any) -> Decimal:
    if value is None:
        return Decimal(0)
    rates: list[Decimal] = [_base(value) or Decimal(0), *(tier.price for tier in getattr(value, "tiers", ()))]
    return max(rates)


def _beyond(value: Any, start: int) -> Decimal | None:
    """The rate of requests that passed the threshold `start`."""
    rate = _base(value)
    for tier in getattr(value, "tiers", ()):
        if tier.start <= start:
            rate = tier.price
    return rate


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
