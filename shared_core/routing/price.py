"""What tokens cost: `Price`, in US dollars per million tokens, and the arithmetic in integer nano-dollars."""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Decimal

from shared_core.chat.events import Usage
from shared_core.errors import ConfigurationError

__all__ = ["FREE", "NANO", "Price"]

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
_PER_TOKEN = Decimal(1000)  # one dollar per million tokens is 1000 nano-dollars per token


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; `second` and `request` are dollars per second of work and per request.

    `cached` and `cache_write` default to the input price. An unknown price is `None` in place of a `Price`, never 0.

    Raises:
        ConfigurationError: a figure is negative or not a number.
    """

    input: Decimal | float | int | str = 0
    output: Decimal | float | int | str = 0
    cached: Decimal | float | int | str | None = None
    cache_write: Decimal | float | int | str | None = None
    second: Decimal | float | int | str = 0
    request: Decimal | float | int | str = 0

    def __post_init__(self) -> None:
        for f in fields(Price):  # not those that a subclass adds
            value = getattr(self, f.name)
            if value is None:
                value = self.input
            try:
                number = Decimal(str(value))
            except ArithmeticError:
                number = Decimal("NaN")
            if not number.is_finite() or number < 0:
                raise ConfigurationError(f"Price.{f.name} must be a number of dollars >= 0, not {value!r}")
            object.__setattr__(self, f.name, number)

    def cost_nano(self, usage: Usage, seconds: float = 0.0) -> int:
        """What `usage` costs in nano-dollars, rounded up."""
        fresh = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        tokens = (
            fresh * Decimal(self.input)
            + usage.cached_tokens * Decimal(self.cached or 0)
            + usage.cache_write_tokens * Decimal(self.cache_write or 0)
            + usage.output_tokens * Decimal(self.output)
        ) * _PER_TOKEN
        rest = (Decimal(str(seconds)) * Decimal(self.second) + Decimal(self.request)) * NANO
        return int((tokens + rest).to_integral_value(rounding=ROUND_CEILING))

    @property
    def dearest(self) -> Decimal:
        """The dearest of input and output, in dollars per million tokens."""
        return max(Decimal(self.input), Decimal(self.output), Decimal(self.cache_write or 0))


FREE = Price()
"""Costs nothing: the default of local models."""
