"""Prices: the table's own arithmetic to the nano-dollar, its days, hours and tiers, and bounds that are not passed."""

from __future__ import annotations

import copy
import pickle
import random
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import Price, Usage
from shared_core.ledger.pricing import TablePrice, _table, find_price, price_version

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def theirs(provider: str, model: str, usage: Usage, now: datetime = NOW) -> int:
    """What genai-prices itself says, in nano-dollars."""
    import genai_prices

    asked = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens or None,
        cache_write_tokens=usage.cache_write_tokens or None,
        output_reasoning_tokens=usage.reasoning_tokens or None,
    )
    cost = _table().calc(asked, model, provider, None, now).total_price * 10**9
    return int(cost.to_integral_value(rounding=ROUND_CEILING))


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "deepseek", "x-ai", "mistral", "groq"])
def test_every_model_costs_what_the_table_says_to_the_nano_dollar_and_never_more_than_its_bound(provider: str) -> None:
    chance = random.Random(provider)
    models = next(p for p in _table().providers if p.id == provider).models
    seen = 0
    for model in models:
        price = find_price(provider, model.id, now=NOW)
        if price is None:
            continue
        for size in (chance.randint(0, 2000), chance.choice([128_000, 128_001, 200_000, 200_001, 272_001, 900_000])):
            cached = chance.randint(0, size)
            written = chance.choice([0, chance.randint(0, size - cached)])
            output = chance.randint(0, 9000)
            usage = Usage(size, output, cached, written, chance.choice([0, chance.randint(0, output)]))
            cost = price.cost_nano(usage)
            assert abs(cost - theirs(provider, model.id, usage)) <= (price_thinks(price)), (model.id, usage)
            assert cost <= price.bound_nano(size, output), (model.id, usage)
            seen += 1
    assert seen > 10


def price_thinks(price: Price) -> int:
    """Thinking that has a rate of its own is rounded up on its own."""
    return int(isinstance(price, TablePrice) and price.reasoning is not None)


def test_a_long_request_is_priced_by_its_tier_and_its_bound_knows() -> None:
    price = find_price("google", "gemini-2.5-pro", now=NOW)
    assert isinstance(price, TablePrice)
    assert price.cost_nano(Usage(199_999, 0)) == 249_998_750
    assert price.cost_nano(Usage(200_001, 0)) == 500_002_500
    assert price.bound_nano(200_001, 100) >= price.cost_nano(Usage(200_001, 100))


def test_a_price_that_changes_by_date_is_that_of_the_day() -> None:
    early = find_price("openai", "o3", now=datetime(2025, 5, 1, tzinfo=UTC))
    late = find_price("openai", "o3", now=NOW)
    assert early is not None
    assert late is not None
    assert (early.input, late.input) == (Decimal(10), Decimal(2))


def test_a_price_that_changes_by_the_hour_is_that_of_the_hour() -> None:
    hourly = [
        model
        for provider in _table().providers
        if provider.id == "deepseek"
        for model in provider.models
        if isinstance(model.prices, list) and any(hasattr(p.constraint, "start_time") for p in model.prices)
    ]
    assert hourly
    found = set()
    for hour in range(24):
        at = datetime(2025, 6, 1, hour, 45, tzinfo=UTC)
        price = find_price("deepseek", hourly[0].id, now=at)
        assert price is not None
        assert price.cost_nano(Usage(1000, 1000)) == theirs("deepseek", hourly[0].id, Usage(1000, 1000), at)
        found.add(price.input)
    assert len(found) == 2


def test_what_the_table_does_not_know_is_unknown_and_a_changed_global_table_changes_nothing() -> None:
    from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot

    assert find_price("openai", "no-such-model-of-theirs", now=NOW) is None
    assert find_price("nobody", "gpt-4o", now=NOW) is None
    set_custom_snapshot(DataSnapshot(providers=[], from_auto_update=False))
    try:
        assert find_price("openai", "gpt-4o-2024-08-06", now=NOW) is not None
    finally:
        set_custom_snapshot(None)
    assert price_version().startswith("genai-prices ")


amounts = st.integers(0, 10**7)
rates = st.decimals(0, 1000, places=6)


@given(amounts, amounts, amounts, rates, rates, rates, rates)
def test_no_mix_of_tokens_costs_more_than_the_bound_and_what_is_affordable_is(
    size: int, output: int, money: int, a: Any, b: Any, c: Any, d: Any
) -> None:
    price = Price(a, b, cached=c, cache_write=d)
    cached, written = size // 3, size // 4
    assert price.cost_nano(Usage(size, output, cached, written)) <= price.bound_nano(size, output)
    within = price.output_within(price.bound_nano(size, 0) + money, size)
    if within is None:
        assert not b
    else:
        assert price.bound_nano(size, within) <= price.bound_nano(size, 0) + money
        assert price.bound_nano(size, within + 2) >= price.bound_nano(size, 0) + money


rates = st.one_of(st.none(), st.decimals(0, 200, places=9), st.sampled_from([0, 3, 0.1, "0.075", "1e-7"]))
counts = st.integers(0, 2_000_000)


@given(st.tuples(*[rates] * 6), st.tuples(*[counts] * 4), st.floats(0, 1e5).map(lambda s: round(s, 6)))
def test_whole_numbers_say_what_decimals_do(dollars: Any, counted: Any, seconds: float) -> None:
    """Exact, and rounded up once; a bound is never below the cost, and what is within it never above."""
    price = Price(*dollars)
    given_, said, read, put = counted
    usage = Usage(given_ + read + put, said, read, put)
    with localcontext(prec=100):
        of = [Decimal(str(getattr(price, name))) for name in ("input", "output", "cached", "cache_write")]
        tokens = sum(count * rate for count, rate in zip((given_, said, read, put), of, strict=True))
        beside = Decimal(str(seconds)) * Decimal(price.second) + Decimal(price.request)
        exact = (tokens * 1000 + beside * 10**9).to_integral_value(rounding=ROUND_CEILING)
    assert price.cost_nano(usage, seconds) == exact
    bound = price.bound_nano(usage.input_tokens, said, seconds)
    assert bound >= exact
    within = price.output_within(bound + 10**9, usage.input_tokens, seconds)
    assert (within is None) == (not price.output)
    if within is not None:
        assert price.bound_nano(usage.input_tokens, within, seconds) <= bound + 10**9
        assert price.bound_nano(usage.input_tokens, within + 2, seconds) > bound + 10**9 - 1
    assert price.free == (not exact_rates(price))
    assert price.dearest_usd == float(price.dearest), "not a bit beside it: constraints compare it with a maximum"


def exact_rates(price: Price) -> list[Decimal]:
    names = ("input", "output", "cached", "cache_write", "second", "request")
    return [rate for name in names if (rate := Decimal(str(getattr(price, name))))]


def test_a_price_is_the_same_after_a_journey() -> None:
    price = Price("0.1", 2, cached="0.01", per_second="0.3")
    for other in (pickle.loads(pickle.dumps(price)), copy.deepcopy(price)):
        assert other == price
        assert hash(other) == hash(price)
        assert other.cost_nano(Usage(7, 9, 3), 0.5) == price.cost_nano(Usage(7, 9, 3), 0.5)
    assert "_exact" not in repr(price)
