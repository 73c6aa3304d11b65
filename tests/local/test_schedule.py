"""Who is served next, how long that takes and who is turned away: the line before a local model, without a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared_core.providers.llama_cpp.schedule import AHEAD_AFTER_S, Admitted, Crashes, Rates, Schedule, TurnedAway, Work

INF = math.inf
USUAL = Work(1000, 100)


@dataclass(eq=False)
class Asked:
    """A call, as the line sees it."""

    name: str = ""
    priority: int = 0
    work: Work = USUAL
    within_s: float = INF
    op: str = "generate"
    cancelled: bool = False
    rank: float = 0.0
    number: int = 0


def measured(bound: int = 4) -> Schedule[Asked]:
    """A line whose model reads 1000 characters a second, writes 100 tokens a second and says 100 tokens."""
    schedule: Schedule[Asked] = Schedule(bound)
    schedule.rates.read(1000, 250, 1.0)
    schedule.rates.wrote(100, 1.0)
    return schedule


def serve(schedule: Schedule[Asked], now: float = 0.0, **given: Any) -> Asked:
    """A call that is being served."""
    call = Asked(**given)
    assert isinstance(schedule.submit(call, now, left_s=INF), Admitted)
    assert schedule.next(now) is call
    return call


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_priorities_are_served_as_they_came_and_higher_ones_first():
    schedule: Schedule[Asked] = Schedule(9)
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
        schedule.submit(Asked(name, priority), 0.0, left_s=INF)
    served = []
    while (call := schedule.next(0.0)) is not None:
        served.append(call.name)
        schedule.ended(call)
    assert served == ["b", "d", "a", "c", "e"]


def test_a_full_line_gives_the_last_place_to_a_higher_priority_and_to_no_equal_one():
    schedule: Schedule[Asked] = Schedule(1)
    serve(schedule)
    low = Asked("low")
    assert schedule.submit(low, 0.0, left_s=INF) == Admitted(None)
    refused = schedule.submit(Asked("equal"), 0.0, left_s=INF)
    assert isinstance(refused, TurnedAway)
    assert "1 request is being served and 1 are waiting" in refused.reason
    assert schedule.submit(Asked("high", 1), 0.0, left_s=INF) == Admitted(low)
    assert [c.name for c in schedule.waiting] == ["high"]


def test_a_call_whose_process_died_before_it_was_begun_comes_first_again():
    schedule: Schedule[Asked] = Schedule(4)
    first = serve(schedule)
    schedule.submit(Asked("second", 9), 0.0, left_s=INF)
    schedule.back(first, 1.0)
    assert schedule.next(1.0) is first


def test_a_turn_that_does_not_come_in_time_is_no_turn():
    schedule: Schedule[Asked] = Schedule(4)
    serve(schedule)
    soon, patient = Asked("soon", within_s=2.0), Asked("patient", within_s=9.0)
    for call in (soon, patient):
        schedule.submit(call, 10.0, left_s=INF)
    assert schedule.next_expiry() == 12.0
    assert schedule.expired(11.9) == []
    assert schedule.expired(12.0) == [soon]
    assert schedule.waiting == (patient,)


def test_loading_is_no_waiting_for_a_turn():
    schedule: Schedule[Asked] = Schedule(4)
    schedule.submit(Asked(within_s=2.0), 0.0, left_s=INF)
    schedule.wait_anew(100.0)
    assert schedule.expired(101.9) == []


# ── estimates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_measured_is_nothing_estimated_and_nobody_is_turned_away_for_it():
    schedule: Schedule[Asked] = Schedule(4)
    serve(schedule)
    assert schedule.wait_s(0.0) is None
    assert isinstance(schedule.submit(Asked(within_s=0.1), 0.0, left_s=0.1), Admitted)


def test_the_wait_is_what_the_running_call_has_left_and_all_of_those_ahead():
    schedule = measured()
    assert schedule.wait_s(0.0) == 0.0
    serve(schedule)
    assert schedule.wait_s(0.0) == pytest.approx(2.0)
    assert schedule.wait_s(0.5) == pytest.approx(1.5)  # half of its prompt is read
    schedule.submit(Asked(work=Work(2000, 50)), 0.5, left_s=INF)
    assert schedule.wait_s(0.5) == pytest.approx(1.5 + 2.0 + 0.5)
    assert schedule.wait_s(0.5, priority=1) == pytest.approx(1.5), "a higher priority waits only for what is running"


def test_an_answer_is_expected_to_be_as_long_as_usual_and_longer_once_it_is():
    schedule = measured()
    running = serve(schedule, work=Work(1000, 1000))
    schedule.spoke(1.0, 250)
    assert running.work.max_tokens == 1000
    assert schedule.wait_s(1.5) == pytest.approx(0.5)
    assert schedule.wait_s(9.0) == pytest.approx(2.0), "a quarter of the 8 s that it has been speaking"
    assert schedule.wait_s(11.5) == pytest.approx(0.0, abs=0.6), "and never beyond its max_tokens"


def test_rates_follow_what_was_measured_lately():
    rates = Rates()
    assert rates.prompt_rate is rates.output_rate is rates.serving_s(Work(10, 10)) is None
    for _ in range(20):
        rates.read(400, 100, 1.0)
        rates.wrote(50, 1.0)
    assert rates.prompt_rate == pytest.approx(100)
    assert rates.output_rate == pytest.approx(50)
    for _ in range(20):
        rates.read(400, 100, 0.1)
        rates.wrote(50, 0.1)
    assert rates.prompt_rate > 900
    assert rates.output_rate > 450
    assert rates.reading_s(Work(400, 0)) == pytest.approx(0.1, rel=0.2)


TURNED_AWAY = [
    # what it brings, what is said; a turn is expected in 2 s and its answer takes 2 s
    ({"within_s": 1.5}, INF, "a turn is expected in 2.0 s, and it may wait 1.5 s", (0.5, False)),
    ({}, 3.5, "2.0 s and the answer would take 2.0 s more, but only 3.5 s are left to the deadline", (None, True)),
    ({"within_s": 2.5}, 4.5, None, None),
    ({"work": Work(10, 1)}, 2.1, None, None),
]


@pytest.mark.parametrize(("brings", "left_s", "said", "again"), TURNED_AWAY)
def test_who_cannot_be_served_in_time_is_turned_away_at_once_with_the_figures(brings, left_s, said, again):
    schedule = measured()
    serve(schedule)
    answer = schedule.submit(Asked(**brings), 0.0, left_s=left_s)
    if said is None:
        assert isinstance(answer, Admitted)
    else:
        assert said in answer.reason
        assert (answer.retry_after_s, answer.too_late) == again


def test_nobody_is_turned_away_on_an_estimate_while_nobody_is_ahead():
    schedule = measured()
    assert isinstance(schedule.submit(Asked(within_s=0.0), 0.0, left_s=0.001), Admitted)


def test_one_whose_caller_has_gone_keeps_nobody_out():
    schedule = measured(bound=0)
    running = serve(schedule)
    assert isinstance(schedule.submit(Asked(), 0.0, left_s=INF), TurnedAway)
    running.cancelled = True
    assert schedule.wait_s(0.0) == 0.0
    assert isinstance(schedule.submit(Asked(within_s=0.0), 0.0, left_s=0.0), Admitted)


# ── prompts read ahead ───────────────────────────────────────────────────────────────────────────────────────────────


def prompt(name: str) -> Asked:
    return Asked(name, op="prefill")


def test_a_prompt_is_read_ahead_only_while_nobody_waits_and_makes_way_for_whoever_comes():
    schedule: Schedule[Asked] = Schedule(4)
    ahead = prompt("a")
    schedule.read_ahead(ahead, -AHEAD_AFTER_S)
    assert schedule.next(0.0) is ahead
    assert schedule.makes_way() is None
    schedule.submit(Asked(), 0.0, left_s=INF)
    assert schedule.makes_way() is ahead


def test_a_prompt_is_not_read_before_the_hosted_call_has_had_its_moment():
    schedule: Schedule[Asked] = Schedule(4)
    schedule.read_ahead(prompt("a"), 10.0)
    assert schedule.next(10.0 + AHEAD_AFTER_S / 2) is None
    assert schedule.next_reading() == 10.0 + AHEAD_AFTER_S
    assert schedule.next(10.0 + AHEAD_AFTER_S).name == "a"


def test_a_prompt_is_read_once_and_again_after_another_conversation_was_served():
    schedule: Schedule[Asked] = Schedule(4)
    ahead = prompt("a")
    schedule.read_ahead(ahead, -AHEAD_AFTER_S)
    schedule.read_ahead(prompt("b"), -AHEAD_AFTER_S)
    assert schedule.next(0.0) is ahead
    schedule.ended(ahead, whole=True)
    assert schedule.next(0.0) is None, "it is read, and the next would push it out"
    schedule.ended(serve(schedule))
    assert schedule.next(0.0) is ahead


def test_a_prompt_whose_reading_was_stopped_is_gone_on_with_later():
    schedule: Schedule[Asked] = Schedule(4)
    ahead = prompt("a")
    schedule.read_ahead(ahead, -AHEAD_AFTER_S)
    schedule.next(0.0)
    schedule.ended(ahead, whole=False)
    assert schedule.next(0.0) is ahead


def test_a_forgotten_prompt_lets_the_next_be_read_and_tells_whether_it_is_to_be_stopped():
    schedule: Schedule[Asked] = Schedule(4)
    first, second = prompt("a"), prompt("b")
    schedule.read_ahead(first, -AHEAD_AFTER_S)
    schedule.read_ahead(second, -AHEAD_AFTER_S)
    schedule.next(0.0)
    assert not schedule.forget(second)
    assert schedule.forget(first)
    schedule.ended(first)
    assert schedule.next_reading() == INF


def test_a_prompt_that_is_read_ahead_is_no_request_for_those_who_come():
    schedule = measured(bound=0)
    schedule.read_ahead(prompt("a"), -AHEAD_AFTER_S)
    schedule.next(0.0)
    assert schedule.wait_s(0.0) == 0.0
    assert isinstance(schedule.submit(Asked(within_s=0.0), 0.0, left_s=0.0), Admitted)


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_started_again_at_once_and_then_with_a_growing_wait():
    crashes = Crashes(9)
    waits = []
    for n in range(8):
        crashes.died(float(n), "died")
        waits.append(crashes.not_before - n)
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])


def test_three_crashes_within_a_minute_make_it_unhealthy_until_the_first_is_a_minute_old():
    crashes = Crashes(2)
    for now in (0.0, 20.0):
        crashes.died(now, "died with signal 9")
        assert crashes.unhealthy(now) is None
    crashes.died(50.0, "died with signal 11")
    reason, seconds = crashes.unhealthy(50.0)
    assert reason == "its process died 3 times within a minute, last: died with signal 11"
    assert seconds == pytest.approx(10.0)
    assert crashes.not_before == pytest.approx(60.0), "nothing is started until then"
    assert crashes.unhealthy(60.5) is None


def test_crashes_that_are_far_apart_never_make_it_unhealthy():
    crashes = Crashes(2)
    for now in range(0, 1000, 31):
        crashes.died(float(now), "died")
        assert crashes.unhealthy(float(now)) is None


# ── all of it together ───────────────────────────────────────────────────────────────────────────────────────────────


class Line(RuleBasedStateMachine):
    """Callers come, go, wait and are served in any order; a plain list says who must be next."""

    @initialize(bound=st.integers(0, 3), known=st.booleans())
    def start(self, bound: int, known: bool) -> None:
        self.schedule: Schedule[Asked] = measured(bound) if known else Schedule(bound)
        self.now, self.count = 0.0, 0
        self.line: list[Asked] = []
        self.came: dict[Asked, float] = {}
        self.running: Asked | None = None
        self.ahead: list[Asked] = []

    def order(self) -> list[Asked]:
        return sorted(self.line, key=lambda c: (-c.rank, c.number))

    @rule(
        priority=st.integers(-2, 2),
        work=st.builds(Work, st.integers(0, 5000), st.integers(1, 400)),
        within=st.sampled_from([0.5, 3.0, 20.0, INF]),
        left=st.sampled_from([0.5, 5.0, 60.0, INF]),
    )
    def ask(self, priority, work, within, left) -> None:
        call = Asked(priority=priority, work=work, within_s=within)
        call.rank, call.number = priority, self.count
        self.count += 1
        serving = self.running is not None and self.running.op == "generate"
        room = self.schedule.bound + (not serving)
        full = len(self.line) >= room
        lower = [c for c in self.line if c.rank < priority]
        wait = self.schedule.wait_s(self.now, priority)
        answer = self.schedule.submit(call, self.now, left_s=left)
        if isinstance(answer, TurnedAway):
            alone = not serving and not any(c.rank >= priority for c in self.line)
            needs = self.schedule.rates.serving_s(work) or 0.0
            too_late = wait is not None and not alone and (wait > within or wait + needs > left)
            assert too_late or (full and not lower), "turned away without a reason"
            return
        assert answer.displaced is (self.order()[-1] if full else None)
        if answer.displaced is not None:
            assert answer.displaced.rank < priority
            self.line.remove(answer.displaced)
        self.line.append(call)
        self.came[call] = self.now

    @rule()
    def serve_next(self) -> None:
        given = self.schedule.next(self.now)
        if self.running is not None:
            assert given is None, "two at once"
        elif self.line:
            assert given is self.order()[0]
            self.line.remove(given)
            self.running = given
        elif given is not None:
            assert given is self.ahead[0], "only the first prompt is read ahead, and only while nobody waits"
            assert self.now >= self.came[given] + AHEAD_AFTER_S
            self.running = given

    @precondition(lambda self: self.running is not None)
    @rule(whole=st.booleans(), tokens=st.integers(1, 300))
    def end(self, whole: bool, tokens: int) -> None:
        self.schedule.spoke(self.now, 10)
        if whole and self.running.op == "generate":
            self.schedule.finished(self.now, tokens)
        self.schedule.ended(self.running, whole=whole)
        self.running = None

    @precondition(lambda self: self.running is not None and self.running.op == "generate")
    @rule()
    def die_before_it_began(self) -> None:
        self.schedule.forget_all()
        self.schedule.back(self.running, self.now)
        self.running.rank, self.running.number = INF, -self.count
        self.line.append(self.running)
        self.came[self.running] = self.now
        self.count += 1
        self.running = None

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def walk_away(self, data) -> None:
        gone = data.draw(st.sampled_from(self.line))
        assert self.schedule.remove(gone)
        assert not self.schedule.remove(gone)
        self.line.remove(gone)

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        due = {c for c in self.line if self.now - self.came[c] >= c.within_s}
        assert set(self.schedule.expired(self.now)) == due
        self.line = [c for c in self.line if c not in due]

    @precondition(lambda self: len(self.ahead) < 8)
    @rule()
    def read_ahead(self) -> None:
        call = prompt("ahead")
        self.schedule.read_ahead(call, self.now)
        self.ahead.append(call)
        self.came[call] = self.now

    @precondition(lambda self: self.ahead)
    @rule(data=st.data())
    def forget(self, data) -> None:
        gone = data.draw(st.sampled_from(self.ahead))
        assert self.schedule.forget(gone) is (gone is self.running)
        self.ahead.remove(gone)

    @invariant()
    def holds(self) -> None:
        assert self.schedule.running is self.running
        assert list(self.schedule.waiting) == self.order()
        wait = self.schedule.wait_s(self.now)
        assert wait is None or 0.0 <= wait < INF
        assert self.schedule.next_expiry() > self.now or not self.line
        making_way = self.schedule.makes_way()
        if making_way is not None:
            assert making_way is self.running
            assert making_way.op == "prefill"
            assert self.line
        else:
            assert self.running is None or self.running.op == "generate" or not self.line


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
