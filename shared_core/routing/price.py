"""What tokens cost: `Price`, in US dollars per million tokens, and the arithmetic in integer nano-dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal

from shared_core.chat.events import Usage
from shared_core.errors import ConfigurationError

__all__ = ["FREE", "NANO", "SPELLINGS", "Dollars", "Price"]

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
_PER_TOKEN = 1000  # one dollar per million tokens is 1000 nano-dollars per token


_Exact = tuple[int, int, int, int, int, int, int]
"""How many parts a nano-dollar has, so that all of these are whole; in such parts a token of input, output, cached
input, input to be cached, and the dearest input; and a request.
"""

Dollars = Decimal | float | int | str
"""`Decimal`, `int` and text are exact; a float counts as it is written."""


@dataclass(frozen=True, slots=True, init=False)
class Price:
    """What a model costs, in US dollars per million tokens: ``Price(input_per_mtok=0.25, output_per_mtok=2)``.

    An unknown price is `None` in place of a `Price`, never 0.

    Args:
        input, output: dollars per million tokens; `input_per_mtok` and `output_per_mtok` are the same.
        cached: of input that the vendor had in its prompt cache; as `input` when left out.
        cache_write: of input that the vendor puts into it; as `input` when left out.
        second: dollars per second of work (`per_second`): a rented machine, electricity.
        request: dollars per request (`per_request`).

    Raises:
        ConfigurationError: a figure is negative or not a number, or given under both of its names.
    """

    input: Dollars
    output: Dollars
    cached: Dollars | None
    cache_write: Dollars | None
    second: Dollars
    request: Dollars
    _exact: _Exact = field(init=False, repr=False, compare=False)
    """The same in whole numbers: decimals take microseconds, and every attempt is priced several times."""

    def __init__(
        self,
        input: Dollars | None = None,  # noqa: A002  # the field's word
        output: Dollars | None = None,
        cached: Dollars | None = None,
        cache_write: Dollars | None = None,
        second: Dollars | None = None,
        request: Dollars | None = None,
        *,
        input_per_mtok: Dollars | None = None,
        output_per_mtok: Dollars | None = None,
        cached_per_mtok: Dollars | None = None,
        cache_write_per_mtok: Dollars | None = None,
        per_second: Dollars | None = None,
        per_request: Dollars | None = None,
    ) -> None:
        self._set("input", _one("input", input, "input_per_mtok", input_per_mtok), 0)
        self._set("output", _one("output", output, "output_per_mtok", output_per_mtok), 0)
        self._set("cached", _one("cached", cached, "cached_per_mtok", cached_per_mtok), self.input)
        written = _one("cache_write", cache_write, "cache_write_per_mtok", cache_write_per_mtok)
        self._set("cache_write", written, self.input)
        self._set("second", _one("second", second, "per_second", per_second), 0)
        self._set("request", _one("request", request, "per_request", per_request), 0)
        object.__setattr__(self, "_exact", self._in_whole_numbers())

    def _in_whole_numbers(self) -> _Exact:
        rates = (self.input, self.output, self.cached or 0, self.cache_write or 0, self.dearest_input)
        exact = [Decimal(rate).as_integer_ratio() for rate in rates]
        request, of = Decimal(self.request).as_integer_ratio()
        unit = math.lcm(of, *(below for _, below in exact))
        each = (_PER_TOKEN * above * (unit // below) for above, below in exact)
        return (unit, *each, NANO * request * (unit // of))  # type: ignore[return-value]  # five rates between

    def _set(self, name: str, value: Dollars | None, default: Dollars) -> None:
        if value is None:
            value = default
        try:
            number = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value))
        except ArithmeticError:
            number = Decimal("NaN")
        if not number.is_finite() or number < 0:
            raise ConfigurationError(f"Price.{name} must be a number of dollars >= 0, not {value!r}")
        object.__setattr__(self, name, number)

    def cost_nano(self, usage: Usage, seconds: float = 0.0) -> int:
        """What `usage` costs in nano-dollars, rounded up."""
        unit, fresh, output, cached, cache_write, _, request = self._exact
        read, written = usage.cached_tokens, usage.cache_write_tokens
        parts = usage.output_tokens * output + request
        if read or written:
            parts += read * cached + written * cache_write
            parts += max(0, usage.input_tokens - read - written) * fresh
        else:
            parts += usage.input_tokens * fresh
        return -(-parts // unit) if not self.second else self._timed(parts, seconds)

    def bound_nano(self, input_tokens: int, output_tokens: int, seconds: float = 0.0) -> int:
        """What an attempt can cost at most in nano-dollars: all of its input at the dearest rate that input has."""
        unit, _, output, _, _, dearest, request = self._exact
        parts = input_tokens * dearest + output_tokens * output + request
        return -(-parts // unit) if not self.second else self._timed(parts, seconds)

    def _timed(self, parts: int, seconds: float) -> int:
        """`parts` of a nano-dollar and so many seconds of work, rounded up."""
        unit = self._exact[0]
        dollars, of = Decimal(str(seconds)).as_integer_ratio()
        rate, below = Decimal(self.second).as_integer_ratio()
        return -(-(parts * of * below + NANO * dollars * rate * unit) // (unit * of * below))

    def output_within(self, nano: int, input_tokens: int, seconds: float = 0.0) -> int | None:
        """How many output tokens `bound_nano` lets an attempt have for `nano` nano-dollars; None when they are free."""
        unit, output = self._exact[0], self._exact[2]
        left = max(0, nano - self.bound_nano(input_tokens, 0, seconds))
        return left * unit // output if output else None

    @property
    def dearest_input(self) -> Decimal:
        """The dearest rate of input, in dollars per million tokens."""
        return max(Decimal(rate or 0) for rate in (self.input, self.cached, self.cache_write))

    @property
    def dearest(self) -> Decimal:
        """The dearest of input and output, in dollars per million tokens."""
        return max(self.dearest_input, Decimal(self.output))

    @property
    def dearest_usd(self) -> float:
        """The same as a float, without a decimal's time."""
        unit, _, output, _, _, dearest, _ = self._exact
        return max(dearest, output) / (_PER_TOKEN * unit)

    @property
    def free(self) -> bool:
        """Whether nothing ever costs anything."""
        _, _, output, _, _, dearest, request = self._exact
        return not (dearest or output or request or self.second)


SPELLINGS = {
    "input_per_mtok": "input",
    "output_per_mtok": "output",
    "cached_per_mtok": "cached",
    "cache_write_per_mtok": "cache_write",
    "per_second": "second",
    "per_request": "request",
}
"""Other names of the figures of a `Price`, and the fields they are."""


def _one(name: str, value: Dollars | None, other: str, same: Dollars | None) -> Dollars | None:
    """The one that was given."""
    if value is not None and same is not None:
        raise ConfigurationError(f"Price takes {name} or {other}, which are the same; not both")
    return value if same is None else same


FREE = Price()
"""Costs nothing: the default of local models."""
