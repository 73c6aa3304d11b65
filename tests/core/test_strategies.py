"""Who is asked first: the orders that strategies make, from what they may know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import ConfigurationError, ErrorKind, Price, Router, Target
from shared_core.chat.request import ChatRequest, user
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.health import HealthStatus, TargetHealth
from shared_core.routing.strategies import EXPLORE_EVERY, RECHECK_EVERY, STRATEGIES, TargetView, strategy_named
from shared_core.testing import ScriptedProvider, VirtualClock

HI = ChatRequest((user("Hello"),))


def health(
    name: str, calls: int = 10, rate: float | None = 1.0, whole: float | None = 1.0, first: float | None = 0.5
) -> TargetHealth:
    return TargetHealth(
        name, HealthStatus.HEALTHY, CircuitState.CLOSED, calls, rate, 0, whole, whole, first, first, 0, None, None, True
    )


def view(
    name: str,
    turn: int = 0,
    *,
    price: Price | None = None,
    weight: float = 1.0,
    wait: float | None = None,
    **told: object,
) -> TargetView:
    target = Target(provider=ScriptedProvider("x"), name=name, weight=weight)
    reading = health(name, **told)  # type: ignore[arg-type]  # the keywords of the function above
    return TargetView(target, turn, lambda: price, lambda: reading, lambda: wait)


def order(strategy: str, views: Sequence[TargetView], request: ChatRequest = HI) -> list[str]:
    return [one.name for one in strategy_named(strategy)[1](request, views)]


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cheapest_for_this_request_is_first_and_an_unknown_price_is_last():
    views = [
        view("unknown"),
        view("dear answers", price=Price(input=1, output=50)),
        view("dear questions", price=Price(input=20, output=1)),
        view("free", price=Price()),
    ]
    assert order("cost", views) == ["free", "dear questions", "dear answers", "unknown"]
    long = ChatRequest((user("word " * 2000),), max_tokens=10)
    assert order("cost", views, long) == ["free", "dear answers", "dear questions", "unknown"]


def test_a_price_by_the_second_is_taken_for_the_usual_seconds():
    views = [view("slow", price=Price(second=0.01), whole=9.0), view("quick", price=Price(second=0.01), whole=0.1)]
    assert order("cost", views) == ["quick", "slow"]


def test_seconds_that_nobody_has_measured_are_not_counted():
    by_second = TargetView(Target(provider=ScriptedProvider("x"), name="new"), 0, lambda: Price(second=1))
    assert order("cost", [view("dear", price=Price(1, 1)), by_second]) == ["new", "dear"]
    unmeasured = view("unmeasured", price=Price(second=1), whole=None)
    assert order("cost", [view("dear", price=Price(1, 1)), unmeasured]) == ["unmeasured", "dear"]


def test_health_is_read_only_for_prices_by_the_second():
    """It takes longer to read than everything else a decision needs."""

    def never() -> TargetHealth:
        raise AssertionError("nobody needs it")

    views = [TargetView(view(name).target, 0, lambda: Price(1, 1), never) for name in ("a", "b")]
    assert order("cost", views) == ["a", "b"]


# ── performance ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_quickest_is_first_by_whole_answers_or_by_first_tokens():
    views = [view("whole", whole=1.0, first=0.9), view("first", whole=5.0, first=0.1)]
    assert order("performance", views) == ["whole", "first"]
    assert order("performance", views, HI.replace(streaming=True)) == ["first", "whole"]


def test_failing_half_the_time_counts_as_twice_the_time_and_waiting_counts_as_time():
    views = [view("shaky", whole=1.0, rate=0.5), view("steady", whole=1.5), view("queued", whole=0.2, wait=5.0)]
    assert order("performance", views) == ["steady", "shaky", "queued"]


def test_who_is_not_measured_is_behind_those_who_answer_and_before_those_who_never_do():
    views = [view("new", calls=1), view("dead", rate=0.0, whole=None), view("known", whole=60.0)]
    assert order("performance", views) == ["known", "new", "dead"]


def test_the_unmeasured_are_tried_now_and_then_in_turn():
    firsts = Counter(
        order("performance", [view("known", turn), view("b", turn, calls=0), view("c", turn, calls=2)])[0]
        for turn in range(20 * EXPLORE_EVERY)
    )
    assert firsts == {"known": 20 * (EXPLORE_EVERY - 1), "b": 10, "c": 10}


def test_those_who_are_not_the_best_are_tried_again_now_and_then():
    """What was slow, or down, may have recovered: nobody would notice otherwise."""
    firsts = Counter(
        order("performance", [view("best", turn), view("slow", turn, whole=9.0), view("dead", turn, rate=0.0)])[0]
        for turn in range(4 * RECHECK_EVERY)
    )
    assert firsts == {"best": 4 * (RECHECK_EVERY - 1), "slow": 2, "dead": 2}


def test_the_turns_on_which_others_are_tried_are_fixed():
    two = [("best", 1.0), ("slow", 9.0)]
    for turn in range(3 * RECHECK_EVERY):
        ordered = order("performance", [view(name, turn, whole=whole) for name, whole in two])
        assert (ordered[0] == "slow") == (turn % RECHECK_EVERY == RECHECK_EVERY - 1)
        assert order("performance", [view("alone", turn)]) == ["alone"]
    assert order("performance", []) == []


def test_three_calls_are_a_measure_and_a_queue_that_nobody_stands_in_costs_nothing():
    assert order("performance", [view("two", calls=2), view("three", calls=3)]) == ["three", "two"]
    assert order("performance", [view("free", whole=1.0), view("busy", whole=0.1, wait=1.2)]) == ["free", "busy"]


def test_a_router_learns_who_is_quick():
    clock = VirtualClock()
    slow = ScriptedProvider("slow", name="slow", clock=clock, latency_s=2.0)
    quick = ScriptedProvider("quick", name="quick", clock=clock, latency_s=0.1)
    with Router([slow, quick], strategy="performance", clock=clock) as router:
        served = [router.invoke("Hello").text for _ in range(8 * EXPLORE_EVERY)]
    assert set(served[: EXPLORE_EVERY - 1]) == {"slow"}, "nothing else is measured yet"
    assert Counter(served[4 * EXPLORE_EVERY :])["quick"] >= 4 * EXPLORE_EVERY - 1


# ── weighted ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 7.0, 40.0]), min_size=1, max_size=6).filter(any))
def test_each_is_first_as_often_as_its_weight_says(weights: list[float]):
    """Within a few calls of the exact share, over any number of calls."""
    calls, whole = 500, sum(weights)
    names = [f"t{at}" for at in range(len(weights))]
    firsts: Counter[str] = Counter()
    for turn in range(calls):
        ordered = order(
            "weighted", [view(name, turn, weight=weight) for name, weight in zip(names, weights, strict=True)]
        )
        assert sorted(ordered) == names
        firsts[ordered[0]] += 1
    for name, weight in zip(names, weights, strict=True):
        assert firsts[name] == pytest.approx(calls * weight / whole, abs=6)
        assert weight or not firsts[name]


def test_behind_the_first_the_heavier_comes_before_the_lighter():
    ordered = order("weighted", [view("none", weight=0), view("light", weight=1), view("heavy", weight=1000)])
    assert ordered == ["heavy", "light", "none"]
    assert order("weighted", [view("a", weight=0), view("b", weight=0)]) == ["a", "b"]
    assert order("weighted", []) == []


def test_whoever_is_down_is_passed_over_whatever_its_weight():
    down = ScriptedProvider(ErrorKind.OVERLOADED, name="down")
    with Router([Target(provider=down, weight=99), ScriptedProvider("up", name="up")], strategy="weighted") as router:
        assert [router.invoke("Hello").text for _ in range(20)] == ["up"] * 20


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("cost-optimized", "cost"), ("cost_optimized", "cost"), ("performance-optimized", "performance"),
        ("least-latency", "performance"), ("round-robin", "round_robin"), ("weighted-round-robin", "weighted"),
        ("priority", "priority"),
    ],
)  # fmt: skip
def test_the_names_that_users_know_are_known(said: str, meant: str):
    assert strategy_named(said) == (meant, STRATEGIES[meant])


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'weighted'"):
        Router([ScriptedProvider("x")], strategy="wieghted")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_orders_all_targets_and_the_same_way_twice(name: str):
    """Pure: the same views, the same order; nobody is lost, nobody comes twice."""
    for turn in range(60):
        views = [
            view(f"t{at}", turn, calls=at, whole=float(9 - at), price=Price(at) if at % 2 else None) for at in range(5)
        ]
        ordered = order(name, views)
        assert sorted(ordered) == [one.name for one in views]
        assert ordered == order(name, views)


def test_a_strategy_of_ones_own_is_called_by_its_name_or_its_class():
    class Mine:
        def __call__(self, request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
            return views

    mine = Mine()
    assert strategy_named(mine) == ("Mine", mine)
    with pytest.raises(ConfigurationError, match="a name or a callable, not int"):
        strategy_named(3)  # type: ignore[arg-type]  # it is refused
