"""Who is asked first: the orders that strategies make, from what they may know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import ConfigurationError, ErrorKind, Price, Router, Target
from shared_core.chat.events import Usage
from shared_core.chat.request import ChatRequest, user
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.health import HealthStatus, TargetHealth
from shared_core.routing.strategies import (
    EXPECTED_OUTPUT,
    EXPLORE_EVERY,
    RECHECK_EVERY,
    STRATEGIES,
    TargetView,
    dearness,
    expected_s,
    strategy_named,
)
from shared_core.testing import ScriptedProvider, VirtualClock

HI = ChatRequest((user("Hello"),))


def health(
    name: str,
    calls: int = 10,
    rate: float | None = 1.0,
    whole: float | None = 1.0,
    first: float | None = 0.5,
    drift: float | None = None,
    drifting: bool = False,
) -> TargetHealth:
    return TargetHealth(
        name, HealthStatus.HEALTHY, CircuitState.CLOSED, calls, rate, 0, whole, whole, first, first, 0, None, None,
        True, drift=drift, drifting=drifting,
    )  # fmt: skip


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


def nothing_known(name: str) -> TargetView:
    return TargetView(Target(provider=ScriptedProvider("x"), name=name))


def order(strategy: str, views: Sequence[TargetView], request: ChatRequest = HI) -> list[str]:
    return [one.name for one in strategy_named(strategy)[1](request, views)]


def test_of_a_view_made_by_hand_nothing_is_known_but_what_is_said():
    target = Target(provider=ScriptedProvider("x"), name="mine")
    bare = TargetView(target)
    assert (bare.target, bare.name, bare.turn, bare.local) == (target, "mine", 0, False)
    assert (bare.price, bare.health, bare.pace, bare.wait_s) == (None, None, None, None)
    price, reading = Price(1, 2), health("mine")
    said = TargetView(target, 7, lambda: price, lambda: reading, lambda: 1.5, local=True)
    assert (said.turn, said.price, said.health, said.pace) == (7, price, reading, reading.pace)
    assert (said.wait_s, said.local, repr(said)) == (1.5, True, "TargetView('mine')")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_nobody_and_one_alone_are_ordered_by_every_strategy(name: str):
    assert order(name, []) == []
    for turn in range(2 * RECHECK_EVERY):
        assert order(name, [view("alone", turn, weight=turn % 2, calls=turn)]) == ["alone"]


def test_those_on_this_machine_come_first_and_both_kinds_stay_as_configured():
    views = [TargetView(view(name).target, local=name in ("b", "d")) for name in "abcd"]
    assert order("local_first", views) == ["b", "d", "a", "c"]


def test_each_call_begins_one_target_further_on():
    begun = ["".join(order("round_robin", [view(name, turn) for name in "abc"])) for turn in range(5)]
    assert begun == ["abc", "bca", "cab", "abc", "bca"]


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
    views = [TargetView(view(name).target, 0, lambda: Price(1, 1), never) for name in ("a", "b")]
    assert order("cost", views) == ["a", "b"]


dollars = st.one_of(st.just(0), st.decimals(0, 1000, places=12), st.floats(0, 100).map(lambda f: round(f, 6)))


@given(dollars, dollars, dollars, st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 1000)))
def test_what_is_compared_is_to_the_nano_what_the_price_says(
    told: Decimal | float, said: Decimal | float, each: Decimal | float, characters: int, most: int | None
):
    price, asked = Price(told, said, request=each), ChatRequest((user("x" * characters),), max_tokens=most)
    usage = Usage(characters // 4, min(most or 400, 400))
    for _ in range(2):  # anew, and from what is kept of it
        assert dearness(asked)(view("a", price=price)) == price.cost_nano(usage)


@pytest.mark.parametrize("where", ["input", "output", "request"])
def test_a_price_however_small_is_dearer_than_nothing(where: str):
    price = Price(**{where: "0.0000000000000000000001"})
    assert dearness(ChatRequest((user("word"),)))(view("a", price=price)) == 1
    assert dearness(HI)(view("free", price=Price())) == 0
    assert dearness(HI)(view("unknown")) == math.inf


def never() -> TargetHealth:
    """Health takes longer to read than everything else a decision needs."""
    raise AssertionError("nobody needs it")


def test_seconds_are_counted_beside_tokens():
    price, usage = Price(1, 2, second="0.5", request=3), Usage(1, 400)
    assert dearness(HI)(view("a", price=price, whole=1.25)) == price.cost_nano(usage, 1.25)
    assert dearness(HI)(view("a", price=price, whole=None)) == price.cost_nano(usage)
    unread = TargetView(view("a").target, price=lambda: price)
    assert dearness(HI)(unread) == price.cost_nano(usage)


def test_a_price_of_ones_own_kind_counts_for_itself():
    class AtNight(Price):
        def cost_nano(self, usage: Usage, seconds: float = 0.0) -> int:
            return 7

    assert dearness(HI)(TargetView(view("a").target, 0, lambda: AtNight(1, 2), never)) == 7


def test_a_price_of_any_number_of_decimals_is_compared_exactly():
    """Half a nano-dollar in a request is half a one: it is rounded once, for all of the request, and not per token."""
    tiny = Price(Decimal("0.0000000000001"), Decimal("0.0000000000003"), request=Decimal("0.0000000005"))
    asked = ChatRequest((user("x" * 4 * 1000),), max_tokens=EXPECTED_OUTPUT)
    assert dearness(asked)(view("a", price=tiny)) == 1 == tiny.cost_nano(Usage(1000, EXPECTED_OUTPUT))
    assert dearness(asked.replace(max_tokens=1))(view("a", price=Price(1, 1000))) == 1000 * 1000 + 1_000_000


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


def test_everybody_who_never_answers_comes_last_as_configured():
    dead = [view(f"dead {at}", rate=0.0) for at in range(3)]
    views = [dead[0], nothing_known("unheard of"), dead[1], view("slow", whole=60.0), dead[2], view("new", calls=2)]
    assert order("performance", views) == ["slow", "unheard of", "new", "dead 0", "dead 1", "dead 2"]
    assert order("performance", dead) == ["dead 0", "dead 1", "dead 2"]


@pytest.mark.parametrize(
    ("told", "whole_s", "first_s"),
    [
        ({"whole": 2.0, "first": 0.25}, 2.0, 0.25),
        ({"whole": 2.0, "first": 0.25, "rate": 0.5}, 4.0, 0.5),
        ({"whole": 2.0, "first": 0.25, "rate": 0.5, "wait": 3.0}, 7.0, 3.5),
        ({"whole": 2.0, "first": 0.25, "drift": 1.5, "drifting": True}, 2.0 * 1.5 * 4, 0.25 * 1.5 * 4),
        ({"whole": 2.0, "first": 0.25, "drift": 1.5}, 2.0, 0.25),
        ({"whole": 2.0, "first": 0.25, "drifting": True}, 2.0, 0.25),
        ({"whole": None, "first": 0.25}, None, 0.25),
        ({"whole": 2.0, "first": None}, 2.0, None),
        ({"whole": None, "first": None, "rate": 0.0}, math.inf, math.inf),
        ({"rate": None}, None, None),
        ({"calls": 2}, None, None),
        ({"calls": 3}, 1.0, 0.5),
    ],
    ids=str,
)
def test_an_answer_is_expected_after_so_many_seconds(
    told: dict[str, Any], whole_s: float | None, first_s: float | None
):
    one = view("one", **told)
    assert expected_s(HI, one) == whole_s
    assert expected_s(HI.replace(streaming=True), one) == first_s
    assert expected_s(HI, nothing_known("other")) is None


def test_who_becomes_slower_comes_behind_those_it_would_fall_behind_and_is_tried_now_and_then():
    for turn in range(4 * EXPLORE_EVERY):
        slower = view("slower", turn, drift=1.5, drifting=True)
        views = [slower, view("five", turn, whole=5.0), view("seven", turn, whole=7.0), view("new", turn, calls=0)]
        ahead = ["slower", "new"][turn // EXPLORE_EVERY % 2] if turn % EXPLORE_EVERY == EXPLORE_EVERY - 1 else None
        usual = ["five", "slower", "seven", "new"]
        assert order("performance", views) == sorted(usual, key=lambda name: name != ahead)


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
    targets = [view(name, weight=weight).target for name, weight in zip(names, weights, strict=True)]
    firsts: Counter[str] = Counter()
    for turn in range(calls):
        ordered = order("weighted", [TargetView(target, turn) for target in targets])
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
