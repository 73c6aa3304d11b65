"""A short share of the long walks (`make soak`), from fixed seeds; and that a walk can fail."""

from __future__ import annotations

import pytest

from shared_core.resilience import breaker, rate_limit, retry
from tests.core.walks import WALKS, Found, walk

SEEDS = {"planner": 2, "flow": 8, "seam": 60}


@pytest.mark.parametrize("walked", WALKS, ids=lambda walked: walked.name)
def test_no_walk_breaks_a_promise(walked):
    """Every rule sees what its model says, and every invariant holds after every step."""
    assert sum(walk(walked, seed) for seed in range(SEEDS.get(walked.name, 15))) >= 100


def _named(name):
    return next(walked for walked in WALKS if walked.name == name)


def _walk_until_found(walked):
    for seed in range(40):
        walk(walked, seed)


def test_a_breaker_that_forgets_generations_is_found(monkeypatch):
    """A late result would count."""
    monkeypatch.setattr(breaker.CircuitBreaker, "_enter", lambda self, state: setattr(self, "_state", state) or state)
    with pytest.raises(Found, match="breaker, seed"):
        _walk_until_found(_named("breaker"))


def test_a_budget_without_a_floor_is_found(monkeypatch):
    """It would deny retries for as long after an outage as that had lasted."""
    monkeypatch.setattr(retry.RetryBudget, "failure", lambda self: setattr(self, "tokens", self.tokens - 1))
    with pytest.raises(Found, match="retry budget, seed"):
        _walk_until_found(_named("retry budget"))


def test_a_line_that_may_be_overtaken_is_found(monkeypatch):
    """Newcomers are judged as if nobody waited."""
    monkeypatch.setattr(rate_limit.Limiter, "_newcomer", rate_limit.Limiter._decide)
    with pytest.raises(Found, match="limiter, seed"):
        _walk_until_found(_named("limiter"))
