"""How long to wait before another try, and whether there may be one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.errors import ConfigurationError, ErrorKind, ProviderError
from shared_core.resilience.retry import RetryBudget, RetryPolicy


def error(kind: ErrorKind = ErrorKind.TRANSIENT, wait: float | None = None) -> ProviderError:
    return ProviderError.of(kind, "down", retry_after_s=wait)


@pytest.mark.parametrize(
    ("kind", "retry", "longest"),
    [
        (ErrorKind.TRANSIENT, 0, 0.5),
        (ErrorKind.TRANSIENT, 1, 1.0),
        (ErrorKind.TRANSIENT, 3, 4.0),
        (ErrorKind.TRANSIENT, 10, 8.0),
        (ErrorKind.OVERLOADED, 0, 1.0),
        (ErrorKind.OVERLOADED, 2, 4.0),
        (ErrorKind.THROTTLED, 0, 1.0),
        (ErrorKind.CONNECT, 0, 0.5),
    ],
)
def test_waits_are_full_jitter_over_a_doubling_base_with_a_cap(kind, retry, longest):
    policy = RetryPolicy()
    assert policy.wait_s(error(kind), retry, 0.0) == 0.0
    assert policy.wait_s(error(kind), retry, 0.5) == longest / 2
    assert policy.wait_s(error(kind), retry, 1.0) == longest


@given(asked=st.floats(0.001, 3600), chance=st.floats(0, 1, exclude_max=True))
def test_a_servers_wait_is_never_shortened_and_stretched_by_a_tenth_at_most(asked, chance):
    wait = RetryPolicy().wait_s(error(ErrorKind.THROTTLED, asked), 0, chance)
    assert asked <= wait <= asked + max(0.05, asked * 0.1)


def test_a_servers_wait_is_spread_so_that_callers_do_not_return_as_a_herd():
    policy = RetryPolicy()
    assert policy.wait_s(error(wait=20.0), 0, 0.5) == 21.0
    assert policy.wait_s(error(wait=0.1), 0, 0.5) == pytest.approx(0.125)


def test_a_wait_of_zero_asks_for_nothing():
    assert RetryPolicy().wait_s(error(wait=0.0), 0, 1.0) == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"same_target": -1},
        {"same_target": 1.5},
        {"total": True},
        {"total": 2.0},
        {"base_s": math.nan},
        {"cap_s": math.inf},
        {"max_wait_s": -0.1},
        {"overloaded_base_s": "1"},
    ],
)
def test_impossible_settings_are_refused_where_they_are_built(wrong):
    with pytest.raises(ConfigurationError, match=f"RetryPolicy.{next(iter(wrong))}"):
        RetryPolicy(**wrong)


def test_zero_switches_retries_off():
    assert RetryPolicy(same_target=0, total=0, base_s=0).total == 0


def test_defaults_are_those_of_the_requirements():
    p = RetryPolicy()
    assert (p.same_target, p.total, p.base_s, p.overloaded_base_s, p.cap_s, p.max_wait_s) == (1, 2, 0.5, 1.0, 8.0, 10.0)


def test_the_budget_forbids_retries_at_half_empty_and_refills_by_a_tenth_per_success():
    budget = RetryBudget()
    assert budget.tokens == 10.0
    for _ in range(4):
        budget.failure()
    assert budget.allows_retry
    budget.failure()
    assert budget.tokens == 5.0
    assert not budget.allows_retry
    budget.success()
    assert budget.tokens == pytest.approx(5.1)
    assert budget.allows_retry


def test_an_empty_budget_needs_fifty_one_successes_before_a_retry():
    budget = RetryBudget()
    for _ in range(11):
        budget.failure()
    assert budget.tokens == 0.0
    for _ in range(50):
        budget.success()
    assert not budget.allows_retry
    budget.success()
    assert budget.allows_retry


@given(st.lists(st.booleans(), max_size=300))
def test_the_budget_stays_between_empty_and_full(outcomes):
    budget = RetryBudget()
    for ok in outcomes:
        budget.success() if ok else budget.failure()
        assert 0.0 <= budget.tokens <= 10.0
