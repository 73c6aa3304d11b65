"""A second target beside a slow one, by hand: when, how often, who wins, and what becomes of the loser."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared_core import (
    AllTargetsFailed,
    Capabilities,
    ChatRequest,
    ConfigurationError,
    ErrorKind,
    Finished,
    ProviderError,
    RetryPolicy,
    TextDelta,
    Timeouts,
    user,
)
from shared_core.resilience.admission import Admission, Refusal
from shared_core.resilience.breaker import Permit
from shared_core.routing import flow as decisions
from shared_core.routing.execution import Execution
from shared_core.routing.flow import Admit, Call, Late, Lost, Race, Resume, Settle, Wait, Won, flow
from shared_core.routing.hedge import Hedge, Hedged, Hedger, hedger_of
from shared_core.routing.planner import Plan
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.relay import Relay

K = ErrorKind
STREAM = ChatRequest((user("Hello"),), streaming=True)
WHOLE = ChatRequest((user("Hello"),))
AT_ONCE = Hedge(after=0.02, min_s=0.0, budget=1.0)


# ── when, and how often ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": "p0"}, {"after": "p100"}, {"after": "soon"}, {"after": 0}, {"after": -1.0}, {"after": float("inf")},
        {"after": float("nan")}, {"after": True}, {"min_s": -1}, {"min_s": "1"}, {"budget": 0}, {"budget": 1.1},
        {"budget": -0.1}, {"burst": 0.5}, {"samples": 0}, {"samples": 101}, {"samples": 2.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_figure_out_of_range_is_refused_when_it_is_given(wrong):
    with pytest.raises(ConfigurationError, match=f"Hedge.{next(iter(wrong))}"):
        Hedge(**wrong)


def test_the_keyword_takes_settings_a_mapping_and_a_truth_value():
    assert hedger_of(None) is hedger_of(False) is None
    assert hedger_of(True).hedge == Hedge()
    assert hedger_of({"after": 2, "budget": 0.1}).hedge == Hedge(after=2, budget=0.1)
    with pytest.raises(ConfigurationError, match="Did you mean 'budget'"):
        hedger_of({"budgett": 0.1})
    with pytest.raises(ConfigurationError, match="hedge must be a Hedge"):
        hedger_of("p95")


def measured(hedge: Hedge, seconds: list[float], gate: object = "gate", *, streaming: bool = True) -> Hedger:
    hedger = Hedger(hedge)
    for one in seconds:
        hedger.began("a", gate, streaming=streaming, seconds=one)
    return hedger


def test_nobody_is_asked_beside_a_target_that_is_not_measured_yet():
    times = [float(n) for n in range(1, 20)]
    assert measured(Hedge(), times).after_s("a", "gate", streaming=True) is None
    hedger = measured(Hedge(), [*times, 20.0])
    assert hedger.after_s("a", "gate", streaming=True) == 19.0, "the 19th of 20"
    assert hedger.after_s("a", "gate", streaming=False) is None, "whole answers are measured apart"
    assert hedger.after_s("b", "gate", streaming=True) is None
    assert hedger.after_s("a", "another gate", streaming=True) is None, "put in the place of one that was measured"
    hedger.began("a", "another gate", streaming=True, seconds=1.0)
    assert hedger.after_s("a", "gate", streaming=True) is None


@example([1.0, 2.0, 3.0], 67)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=250), st.integers(1, 99))
def test_the_percentile_is_that_of_the_last_hundred(times, percent):
    got = measured(Hedge(after=f"p{percent}", min_s=0, samples=1), times).after_s("a", "gate", streaming=True)
    last = sorted(times[-100:])
    assert got in last
    assert 100 * sum(t <= got for t in last) >= percent * len(last), "as long as that share of answers took, or longer"
    assert 100 * sum(t < got for t in last) < percent * len(last), "and no longer than that"


def test_it_is_never_sooner_than_the_least_wait():
    assert measured(Hedge(), [0.01] * 20).after_s("a", "gate", streaming=True) == 1.0
    assert measured(Hedge(min_s=0.25), [0.01] * 20).after_s("a", "gate", streaming=True) == 0.25
    assert measured(Hedge(after=3.0), []).after_s("a", "gate", streaming=True) == 3.0
    assert measured(Hedge(after=0.5), []).after_s("a", "gate", streaming=True) == 1.0


@given(st.floats(0.01, 1.0), st.floats(1, 20), st.lists(st.booleans(), max_size=400))
def test_second_requests_are_at_no_moment_a_larger_share_than_the_budget(budget, burst, wants):
    hedger = Hedger(Hedge(budget=budget, burst=burst))
    asked = 0
    for requests, wanted in enumerate(wants, 1):
        hedger.request()
        if wanted and hedger.spend():
            asked += 1
        assert asked <= budget * requests + 1e-6
    idle = Hedger(Hedge(budget=budget, burst=burst))
    for _ in range(10_000 if budget < 0.05 else 2_000):
        idle.request()
    saved = sum(idle.spend() for _ in range(100))
    assert saved <= burst, "what is saved up is bounded"


def test_a_budget_that_found_nobody_is_given_back():
    hedger = Hedger(Hedge(budget=1.0))
    assert not hedger.spend()
    hedger.request()
    assert hedger.spend()
    assert not hedger.spend()
    hedger.refund()
    assert hedger.spend()


def test_other_settings_keep_what_was_measured_and_saved():
    before = measured(Hedge(), [2.0] * 20)
    for _ in range(40):
        before.request()
    after = hedger_of(Hedge(min_s=3.0, burst=1), before)
    assert after.after_s("a", "gate", streaming=True) == 3.0
    assert (after.spend(), after.spend()) == (True, False)


# ── the flow, by hand ────────────────────────────────────────────────────────────────────────────────────────────────


def route(name: str, *, allows_retry: bool = True, **timeouts: float) -> Any:
    return SimpleNamespace(
        name=name,
        local=False,
        standby=None,
        provider=SimpleNamespace(name=f"vendor-{name}", model="m", origin=None),
        timeouts=Timeouts(**timeouts),
        capabilities=Capabilities(),
        retry=RetryPolicy(),
        gate=SimpleNamespace(prefill_rejected=False, allows_retry=allows_retry),
    )


def failing(kind: ErrorKind) -> ProviderError:
    return ProviderError.of(kind, f"scripted {kind}")


class World:
    """Performs the steps. `late` says which calls bring nothing in time, `race` who of two wins, `ends` the rest."""

    def __init__(
        self,
        names: str,
        *,
        late: Any = lambda call: True,
        race: Any = lambda step: Won(step.second),
        ends: Any = lambda call: None,
        admits: Any = lambda step: True,
        request: ChatRequest = STREAM,
        routes: list[Any] | None = None,
        hedge: Hedge = AT_ONCE,
        earned: int = 0,
        says: str = "text",
        total: float = 600.0,
        **policy: Any,
    ) -> None:
        self.routes = routes or [route(name) for name in names]
        self.now = 1000.0
        self.steps: list[str] = []
        self.raw: list[Any] = []
        self.open: dict[int, Call] = {}
        self.settled: list[Settle] = []
        self.granted: list[Admission] = []
        self.execution = Execution("x", request, self.now, self.now + total)
        self.relay = Relay(streaming=request.streaming)
        self.hedger = Hedger(hedge)
        for _ in range(earned):
            self.hedger.request()
        self._late, self._race, self._ends, self._admits, self._says = late, race, ends, admits, says
        steps = flow(
            self.execution,
            Plan(tuple(self.routes)),
            FlowPolicy(hedger=self.hedger, **policy),
            self.relay,
            clock=lambda: self.now,
            chance=lambda: 0.5,
        )
        report: Any = None
        try:
            while True:
                report = self._perform(steps.send(report))
        except StopIteration as stop:
            self.result = stop.value

    def _perform(self, step: Any) -> Any:
        self.now += 0.001
        self.raw.append(step)
        match step:
            case Admit():
                self.steps.append(f"admit {step.route.name}")
                assert step.wait_s == 0 or not self.open, "nobody waits in line beside a call"
                allowed = self._admits(step)
                if allowed is True:
                    self.granted.append(Admission(Permit(0), self.now))
                    return self.granted[-1]
                return Refusal("full", None) if allowed is False else allowed
            case Call():
                self.steps.append(f"call {step.route.name}")
                self._begin(step)
                if step.late_s < float("inf") and self._late(step):
                    self.now += step.late_s
                    return Late()
                return self._finish(step)
            case Race():
                self.steps.append(f"race {step.first.route.name} {step.second.route.name}")
                assert self.open[id(step.first.admission)] is step.first
                assert not self.relay.committed, "never after the first word"
                self._begin(step.second)
                return self._race(step)
            case Resume():
                self.steps.append(f"resume {step.call.route.name}")
                assert self.open[id(step.call.admission)] is step.call
                assert self.relay.attempt is step.call.attempt, "what it brings goes under its own name"
                return self._finish(step.call)
            case Settle():
                self.steps.append(f"settle {step.route.name}: {step.attempt.outcome}")
                self.open.pop(id(step.admission))
                self.settled.append(step)
            case Wait():
                self.now += step.seconds
        return None

    def _begin(self, call: Call) -> None:
        assert id(call.admission) not in self.open
        self.open[id(call.admission)] = call

    def _finish(self, call: Call) -> ProviderError | None:
        ended = self._ends(call)
        if ended is None or isinstance(ended, tuple):
            call.attempt.first_token = self.now
            self.relay.feed(TextDelta(self._says))
        if isinstance(ended, tuple):
            return ended[0]
        if ended is None:
            self.relay.feed(Finished())
        return ended


def test_the_second_wins_and_the_first_is_cut_off_and_counts_for_nothing():
    w = World("abc")
    assert w.result is None
    assert w.steps == [
        "admit a", "call a", "admit b", "race a b", "settle a: cancelled", "resume b", "settle b: answered",
    ]  # fmt: skip
    lost, won = w.settled
    assert (lost.outcome.cancelled, lost.outcome.error, lost.will_retry) == (True, None, False)
    assert (won.outcome.cancelled, won.outcome.error) == (False, None)
    assert w.execution.hedged.as_dict() == {
        "beside": "a", "target": "b", "after_s": pytest.approx(0.02, abs=0.01), "winner": "b",
    }  # fmt: skip
    facts = w.execution.metadata()
    assert facts["hedged"]["winner"] == facts["target"] == "b"
    assert [a.get("hedge") for a in facts["attempts"]] == [None, True]
    assert w.execution.served_by.target == "b"


def test_the_first_wins_and_is_told_as_if_nobody_had_been_asked():
    w = World("ab", race=lambda step: Won(step.first))
    assert w.steps == [
        "admit a", "call a", "admit b", "race a b", "settle b: cancelled", "resume a", "settle a: answered",
    ]  # fmt: skip
    w.execution.primary = "a"
    facts = w.execution.metadata()
    assert (facts["target"], facts["used_fallback"], facts["hedged"]["winner"]) == ("a", False, "a")


def test_a_call_that_brings_content_in_time_is_not_raced():
    w = World("ab", late=lambda call: False)
    assert w.steps == ["admit a", "call a", "settle a: answered"]
    assert w.execution.hedged is None
    assert "hedged" not in w.execution.metadata()


def test_one_that_may_not_be_asked_is_passed_by_and_stays_in_line():
    w = World("abc", admits=lambda step: step.route.name != "b")
    assert w.steps[:4] == ["admit a", "call a", "admit b", "admit c"]
    assert w.execution.hedged.target == "c"
    assert not w.execution.skips
    alone = World("ab", admits=lambda step: step.route.name == "a")
    assert alone.steps == ["admit a", "call a", "admit b", "resume a", "settle a: answered"]
    assert alone.execution.hedged is None
    assert alone.hedger.spend(), "the budget was given back"


def test_one_that_lost_may_go_on_when_the_winner_breaks():
    ends = {"b": (failing(K.STREAM_CUT),)}
    w = World("ab", ends=lambda call: ends.get(call.route.name))
    assert w.steps[5:] == ["resume b", "settle b: failed", "admit a", "call a", "settle a: answered"]
    assert [a.retry for a in w.execution.attempts] == [False, False, True], "it has been sent the request before"
    assert w.execution.seams == [4]
    assert "race" not in " ".join(w.steps[5:]), "a continuation is never raced"


@pytest.mark.parametrize("kind", [K.TRANSIENT, K.AUTH, K.BAD_REQUEST, K.TIMEOUT, K.POLICY])
def test_a_second_that_fails_costs_the_first_nothing(kind):
    """Not even when it says that the request itself is at fault: the first may think otherwise."""
    w = World("ab", race=lambda step: Lost(step.second, failing(kind)))
    assert w.result is None
    assert w.steps[3:] == ["race a b", "settle b: failed", "resume a", "settle a: answered"]
    assert w.execution.served_by.target == "a"
    assert w.execution.hedged.winner == "a"


def windowed(*sizes: int | None) -> list[Any]:
    routes = [route(name) for name, _ in zip("abcd", sizes, strict=False)]
    for one, size in zip(routes, sizes, strict=True):
        one.capabilities = Capabilities(context_window=size)
    return routes


def test_a_window_that_overflowed_in_a_race_is_known_whoever_it_belonged_to():
    over, gone = failing(K.CONTEXT_OVERFLOW), failing(K.NOT_FOUND)
    w = World("", routes=windowed(4000, 8000, 8000, 9000), ends=lambda call: {"b": over}.get(call.route.name))
    assert [a.target for a in w.execution.attempts] == ["a", "b", "d"], "the winner's window, not the first one's"
    w = World(
        "",
        routes=windowed(4000, 8000, 8000, 9000),
        race=lambda step: Lost(step.second, over),
        ends=lambda call: {"a": gone}.get(call.route.name),
    )
    assert [a.target for a in w.execution.attempts] == ["a", "b", "d"]
    w = World(
        "",
        routes=windowed(1, None, 1),
        race=lambda step: Lost(step.second, over),
        ends=lambda call: {"a": gone}.get(call.route.name),
    )
    assert [a.target for a in w.execution.attempts] == ["a", "b", "c"], "of an unknown window nothing is known"


def test_one_that_failed_in_a_race_comes_back_after_its_wait_and_the_others():
    failed, gone = failing(K.TRANSIENT), failing(K.NOT_FOUND)
    tries = {"b": [gone]}
    w = World(
        "ab",
        race=lambda step: Lost(step.first, failed),
        ends=lambda call: tries.get(call.route.name, [None]).pop(0),
        retry=RetryPolicy(total=1),
    )
    assert [a.target for a in w.execution.attempts] == ["a", "b", "a"]
    (wait,) = [step for step in w.raw if isinstance(step, Wait)]
    assert wait.route.name == "a"
    assert 0.24 < wait.seconds < 0.25, "a quarter of a second from its failure, less what the other one took"


def test_who_breaks_off_in_the_middle_of_an_answer_comes_before_one_that_failed_in_a_race():
    ends = {"b": [(failing(K.STREAM_CUT),), None]}
    sooner = route("a")
    sooner.retry = RetryPolicy(base_s=0.1)
    w = World(
        "",
        routes=[sooner, route("b")],
        race=lambda step: Lost(step.first, failing(K.TRANSIENT)),
        ends=lambda call: ends[call.route.name].pop(0),
    )
    assert [a.target for a in w.execution.attempts] == ["a", "b", "b"]
    assert w.result is None


def test_a_refusal_that_is_routed_around_leaves_the_second_to_answer():
    w = World("ab", race=lambda step: Lost(step.first, failing(K.POLICY)), route_around_policy=True)
    assert w.result is None
    assert w.execution.served_by.target == "b"


@pytest.mark.parametrize("total", [0, 1, 2])
def test_a_race_makes_no_more_requests_than_targets_and_retries(total):
    w = World("ab", ends=lambda call: failing(K.STREAM_CUT), retry=RetryPolicy(total=total))
    assert len(w.execution.attempts) == 2 + total


def test_a_first_that_fails_leaves_the_second_to_answer():
    w = World("ab", race=lambda step: Lost(step.first, failing(K.TRANSIENT)))
    assert w.result is None
    assert w.steps[3:] == ["race a b", "settle a: failed", "resume b", "settle b: answered"]
    assert w.execution.served_by.target == "b"


def test_a_request_that_the_first_rejects_ends_and_the_second_is_cut_off():
    w = World("abc", race=lambda step: Lost(step.first, failing(K.BAD_REQUEST)))
    assert w.steps[3:] == ["race a b", "settle b: cancelled", "settle a: failed"]
    assert isinstance(w.result, AllTargetsFailed)
    assert "rejected the request itself" in str(w.result)


def test_both_fail_and_the_first_has_its_retry():
    ends = {"b": [failing(K.AUTH)], "a": [None]}
    w = World("ab", race=lambda step: Lost(step.first, failing(K.TRANSIENT)), ends=lambda c: ends[c.route.name].pop(0))
    assert w.steps[3:] == [
        "race a b", "settle a: failed", "resume b", "settle b: failed", "admit a", "call a", "settle a: answered",
    ]  # fmt: skip
    assert w.execution.attempts[-1].retry


def test_overflow_in_a_race_is_remembered():
    w = World(
        "",
        routes=[route("a"), route("b"), route("c")],
        race=lambda step: Lost(step.first, failing(K.CONTEXT_OVERFLOW)),
        ends=lambda call: failing(K.AUTH),
    )
    assert "admit c" in w.steps
    small = [route("a"), route("b"), route("c")]
    for one, tokens in zip(small, (1000, 9000, 1000), strict=True):
        one.capabilities = Capabilities(context_window=tokens)
    w = World(
        "",
        routes=small,
        race=lambda step: Lost(step.first, failing(K.CONTEXT_OVERFLOW)),
        ends=lambda call: failing(K.AUTH),
    )
    assert "admit c" not in w.steps
    assert "no larger than the one that overflowed" in w.execution.skips[0].reason


def test_there_is_no_race_without_budget_without_measures_with_a_target_in_trouble_or_with_the_only_one():
    assert World("ab", hedge=Hedge(after=0.02, min_s=0, budget=0.5)).execution.hedged is None
    assert World("ab", hedge=Hedge(after=0.02, min_s=0, budget=0.5), earned=1).execution.hedged is not None
    assert World("ab", hedge=Hedge(budget=1.0)).execution.hedged is None, "nothing is measured"
    assert World("", routes=[route("a", allows_retry=False), route("b")]).execution.hedged is None
    assert World("", routes=[route("a"), route("b", allows_retry=False)]).execution.hedged is None
    assert World("a").execution.hedged is None
    late = World("ab", hedge=Hedge(after=31.0, min_s=0, budget=1.0))
    assert late.execution.hedged is None, "the first token's own limit runs out before"


def test_the_two_routes_of_one_target_are_one_target():
    a, b = route("a"), route("a again")
    b.gate = a.gate
    assert World("", routes=[a, b]).execution.hedged is None


def test_who_needs_longer_than_is_left_is_not_asked():
    w = World("abc", total=5.0, hedge=Hedge(after=0.02, min_s=0, budget=1.0, samples=1), late=lambda call: False)
    assert w.execution.hedged is None
    hedged = []
    for usual in (9.0, 0.1):
        world = World.__new__(World)
        original = Hedger.usual_s
        try:
            Hedger.usual_s = lambda self, name, *a, usual=usual, **k: usual if name == "b" else None  # type: ignore[method-assign]
            World.__init__(world, "abc", total=5.0)
        finally:
            Hedger.usual_s = original  # type: ignore[method-assign]
        hedged.append(world.execution.hedged.target)
    assert hedged == ["c", "b"]


def test_a_percentile_does_not_sink_with_the_races_that_are_lost():
    w = World("ab", hedge=Hedge(after=0.5, min_s=0, budget=1.0, samples=1))
    a, b = (w.hedger.usual_s(one.name, one.gate, 50, streaming=True) for one in w.routes)
    assert a == pytest.approx(0.5, abs=0.01), "it would have taken at least as long"
    assert b is not None
    assert b < 0.1


@st.composite
def worlds(draw):
    kinds = [K.TRANSIENT, K.AUTH, K.TIMEOUT, K.BAD_REQUEST, K.OVERLOADED, K.CONTEXT_OVERFLOW, K.STREAM_CUT, K.POLICY]
    outcome = st.one_of(st.none(), st.sampled_from(kinds), st.tuples(st.sampled_from([K.STREAM_CUT, K.TIMEOUT])))
    return {
        "names": "abcd"[: draw(st.integers(1, 4))],
        "late": draw(st.lists(st.booleans(), min_size=1, max_size=6)),
        "race": draw(st.tuples(st.booleans(), st.one_of(st.none(), st.sampled_from(kinds)))),
        "ends": draw(st.lists(outcome, min_size=1, max_size=8)),
        "admits": draw(st.lists(st.integers(0, 5).map(bool), min_size=1, max_size=8)),
        "streaming": draw(st.booleans()),
    }


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_whatever_happens_everything_is_settled_once_and_at_most_one_is_asked_beside(world):
    counts: Counter[str] = Counter()

    def take(what: str) -> Any:
        counts[what] += 1
        values = world[what]
        return values[(counts[what] - 1) % len(values)]

    def race(step: Race) -> Any:
        first, kind = world["race"]
        call = step.first if first else step.second
        return Won(call) if kind is None else Lost(call, failing(kind))

    def ends(call: Call) -> Any:
        ended = take("ends")
        if isinstance(ended, tuple):
            return (failing(ended[0]),)
        return None if ended is None else failing(ended)

    w = World(
        world["names"],
        late=lambda call: take("late"),
        race=race,
        ends=ends,
        admits=lambda step: bool(take("admits")),
        request=STREAM if world["streaming"] else WHOLE,
    )
    assert not w.open, "every admission is settled"
    assert len(w.settled) == len({id(s.admission) for s in w.settled}) == len(w.granted) == len(w.execution.attempts)
    assert sum(step.startswith("race") for step in w.steps) <= 1
    assert sum(a.hedge for a in w.execution.attempts) <= 1
    assert len(w.execution.attempts) <= len(world["names"]) + 2 + 1
    assert all(a.outcome != "running" and a.ended is not None for a in w.execution.attempts)
    assert (w.result is None) == (w.execution.served_by is not None)
    for s in w.settled:
        assert s.outcome.cancelled == (s.attempt.outcome == "cancelled")


@pytest.mark.parametrize("request_", [STREAM, WHOLE, WHOLE.replace(model="other")], ids=["stream", "whole", "model"])
def test_the_second_call_is_made_like_any_first_try(request_):
    routes = [route(name, first_token=9.0, attempt=20.0, idle=7.0, connect=3.0) for name in "abc"]
    routes[1].provider.origin = "origin"
    w = World("", routes=routes, request=request_, total=100.0)
    admit = next(step for step in w.raw if isinstance(step, Admit) and step.route is routes[1])
    race = next(step for step in w.raw if isinstance(step, Race))
    lost, call = w.settled[0], race.second
    left = w.execution.deadline - call.attempt.started
    assert admit.request is call.request is request_
    assert admit.lease_s == pytest.approx(left if request_.streaming else 20.0, abs=0.01)
    assert call.admission is w.granted[1]
    assert (call.first_s, call.idle_s) == ((9.0, 7.0) if request_.streaming else (20.0, float("inf")))
    assert (call.connect_s, call.deadline, call.late_s) == (3.0, w.execution.deadline, float("inf"))
    attempt = call.attempt
    assert (attempt.target, attempt.provider, attempt.model) == ("b", "vendor-b", request_.model or "m")
    assert (attempt.hedge, attempt.retry, attempt.origin) == (True, False, "origin")
    assert lost.outcome.latency_s == lost.attempt.duration_s == pytest.approx(0.02, abs=0.01)
    assert race.first.attempt is lost.attempt


def test_a_call_that_failed_in_a_race_is_settled_with_its_error_and_no_retry_of_it_is_promised():
    error = failing(K.TRANSIENT)
    w = World("ab", race=lambda step: Lost(step.second, error))
    settled = w.settled[0]
    assert (settled.outcome.error, settled.outcome.cancelled, settled.will_retry) == (error, False, False)
    assert (settled.attempt.error, error.target) == (error, "b")


def test_only_a_first_try_from_the_start_is_raced_and_only_once():
    ends = {"a": [failing(K.TRANSIENT), None], "b": [failing(K.OVERLOADED)]}
    again = World("ab", late=lambda call: call.attempt.retry, ends=lambda call: ends[call.route.name].pop(0))
    assert again.execution.attempts[1].retry
    assert again.execution.hedged is None, "a retry is not"
    broken = {"a": (failing(K.STREAM_CUT),)}
    seam = World("abc", late=lambda call: call.route.name != "a", ends=lambda call: broken.get(call.route.name))
    assert seam.execution.seams == [4]
    assert seam.execution.hedged is None, "a continuation is not"
    twice = World("abcd", race=lambda step: Lost(step.first, failing(K.AUTH)), ends=lambda call: failing(K.AUTH))
    assert sum(step.startswith("race") for step in twice.steps) == 1


def test_each_targets_own_times_decide_when_and_for_whom():
    routes = [route("a"), route("b"), route("c")]
    world = World.__new__(World)
    began = Hedger.__init__

    def measured_before(self: Hedger, hedge: Hedge) -> None:
        began(self, hedge)
        for name, times in (("a", [0.03, 0.05]), ("b", [1.0, 9.0, 9.0]), ("c", [0.1, 9.0])):
            gate = next(one.gate for one in routes if one.name == name)
            for seconds in times:
                self.began(name, gate, streaming=True, seconds=seconds)
                self.began(name, gate, streaming=False, seconds=0.001)

    try:
        Hedger.__init__ = measured_before  # type: ignore[method-assign]
        World.__init__(world, "", routes=routes, hedge=Hedge(after="p95", min_s=0, budget=1.0, samples=2), total=5.0)
    finally:
        Hedger.__init__ = began  # type: ignore[method-assign]
    hedged = world.execution.hedged
    assert (hedged.after_s, hedged.target) == (pytest.approx(0.05, abs=0.01), "c"), (
        "b usually needs longer than is left"
    )


def test_a_second_request_costs_one_and_no_more():
    hedger = Hedger(Hedge(budget=1.0))
    for _ in range(3):
        hedger.request()
    assert [hedger.spend() for _ in range(4)] == [True, True, True, False]
    hedger.refund()
    assert [hedger.spend(), hedger.spend()] == [True, False]
    with pytest.raises(ConfigurationError, match=r"^Hedge\.budget must be above 0; leave hedge= out to have none$"):
        Hedge(budget=0)


def test_old_times_are_forgotten_one_by_one():
    hedger = measured(Hedge(after="p99", min_s=0, samples=100), [float(n) for n in range(1, 101)])
    assert hedger.after_s("a", "gate", streaming=True) == 99.0
    for _ in range(100):
        hedger.began("a", "gate", streaming=True, seconds=0.5)
    assert hedger.after_s("a", "gate", streaming=True) == 0.5
    hedger.began("a", "gate", streaming=True, seconds=7.0)
    assert hedger.after_s("a", "gate", streaming=True) == 0.5
    hedger.began("a", "gate", streaming=True, seconds=8.0)
    assert hedger.after_s("a", "gate", streaming=True) == 7.0


# ── at their edges ───────────────────────────────────────────────────────────────────────────────────────────────────


def first_call(*, limit: float = 30.0, deadline: float = 5.0) -> tuple[Call, Execution]:
    """A call of a target `a`, made at 0 seconds."""
    execution = Execution("x", STREAM, 0.0, deadline)
    attempt = execution.begin("a", "vendor-a", "m", 0.0, retry=False, seam=None)
    admission = Admission(Permit(0), 0.0)
    return Call(route("a"), STREAM, attempt, admission, limit, 20.0, 5.0, deadline), execution


def saved(hedge: Hedge = AT_ONCE) -> Hedger:
    hedger = Hedger(hedge)
    hedger.request()
    return hedger


def test_a_correction_is_not_raced_and_neither_is_a_call_that_is_cut_off_at_that_moment():
    call, execution = first_call()
    fresh, corrected = decisions._Turn(call.route), decisions._Turn(call.route)
    corrected.rejected = failing(K.INVALID_OUTPUT)
    relay, hedger = Relay(streaming=True), saved()
    assert decisions._late_s(fresh, 30.0, execution, relay, hedger) == 0.02
    assert decisions._late_s(corrected, 30.0, execution, relay, hedger) == float("inf")
    assert decisions._late_s(fresh, 0.02, execution, relay, hedger) == float("inf")


def test_who_usually_needs_all_that_is_left_is_not_asked():
    call, execution = first_call(deadline=5.0)
    behind = deque(decisions._Turn(route(name)) for name in "bc")
    hedger = saved(Hedge(after=0.02, min_s=0, budget=1.0, samples=1))
    hedger.began("b", behind[0].route.gate, streaming=True, seconds=5.0)
    step = next(decisions._rival(execution, hedger, call, behind, lambda: 0.0))
    assert step.route.name == "c"


def test_the_second_call_leaves_time_to_those_behind_it():
    w = World("abc", total=10.0)
    call = next(step.second for step in w.raw if isinstance(step, Race))
    left = w.execution.deadline - call.attempt.started
    assert call.first_s == pytest.approx(left / 2), "half of it is for c"


def test_a_second_that_is_left_alone_and_fails_has_its_retries_like_any_other():
    w = World("ab", race=lambda step: Lost(step.first, failing(K.AUTH)), ends=lambda call: failing(K.TRANSIENT))
    assert [(a.target, a.retry) for a in w.execution.attempts] == [("a", False), ("b", False), ("b", True)]


def test_a_late_call_that_finds_nobody_beside_it_has_its_retry():
    ends = [failing(K.TRANSIENT), None]
    w = World("ab", admits=lambda step: step.route.name == "a", ends=lambda call: ends.pop(0))
    assert w.steps[2:] == ["admit b", "resume a", "settle a: failed", "admit a", "call a", "settle a: answered"]
    assert w.execution.attempts[-1].retry


def test_the_journal_tells_when_the_second_was_asked_to_the_microsecond():
    assert Hedged("a", "b", 0.12345678).as_dict()["after_s"] == 0.123457


def test_who_takes_over_shares_the_lock_that_a_fork_must_see_to() -> None:
    """One lock guards what both have measured."""
    hedger = Hedger(Hedge())
    assert hedger.mutex is hedger._lock
    assert hedger.under(Hedge(budget=0.1)).mutex is hedger.mutex
