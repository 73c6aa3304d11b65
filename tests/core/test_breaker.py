"""The circuit breaker: its table of transitions, and a random walk beside a model small enough to read."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared_core.errors import ConfigurationError
from shared_core.resilience.breaker import BreakerConfig, CircuitBreaker, CircuitState, Permit, Rejection, Result

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
OK, BAD, NEUTRAL = Result.SUCCESS, Result.FAILURE, Result.NEUTRAL


def run(breaker: CircuitBreaker, result: Result, now: float, **how: object) -> CircuitState | None:
    permit = breaker.acquire(now, 30.0)
    assert isinstance(permit, Permit), permit
    return breaker.report(permit, result, now, **how)  # type: ignore[arg-type]


def opened(now: float = 0.0, config: BreakerConfig | None = None, **how: object) -> CircuitBreaker:
    breaker = CircuitBreaker(config)
    for _ in range(5):
        run(breaker, BAD, now, **how)
    assert breaker.state is OPEN
    return breaker


def test_five_failures_in_a_row_open_it_and_four_do_not():
    breaker = CircuitBreaker()
    assert [run(breaker, BAD, 0.0) for _ in range(4)] == [None] * 4
    assert breaker.state is CLOSED
    assert run(breaker, BAD, 0.0) is OPEN
    assert breaker.state is OPEN


def test_a_success_ends_the_row():
    breaker = CircuitBreaker(BreakerConfig(failure_rate=1.0, minimum_calls=100))
    for _ in range(4):
        run(breaker, BAD, 0.0)
    run(breaker, OK, 0.0)
    assert [run(breaker, BAD, 0.0) for _ in range(4)] == [None] * 4
    assert run(breaker, BAD, 0.0) is OPEN


@pytest.mark.parametrize(
    ("results", "opens"),
    [
        ("ok bad ok bad", False),  # half of four: too few calls
        ("ok bad ok bad bad", True),  # three of five
        ("ok ok bad ok bad", False),  # two of five
        ("ok ok ok bad bad bad", True),  # exactly half of six
        ("ok ok ok ok bad bad bad", False),
    ],
)
def test_half_of_at_least_five_calls_within_the_window_open_it(results, opens):
    breaker = CircuitBreaker()
    for word in results.split():
        run(breaker, OK if word == "ok" else BAD, 1.0)
    assert (breaker.state is OPEN) is opens


def test_failures_older_than_the_window_are_forgotten():
    breaker = CircuitBreaker(BreakerConfig(consecutive_failures=100))
    for second in range(4):
        run(breaker, BAD, float(second))
    run(breaker, OK, 5.0)  # four of five: would have opened on a failure, a success never opens
    for at in (62.5, 62.6, 62.7, 62.8):
        run(breaker, OK, at)
    # The failures of seconds 0 and 1 are gone; those of 2 and 3 remain: 2 of 7, then 3 of 8, 4 of 9.
    assert run(breaker, BAD, 62.9) is None
    assert run(breaker, BAD, 62.95) is None
    assert run(breaker, BAD, 62.96) is OPEN  # five of ten


def test_the_window_forgets_whole_seconds_with_all_that_happened_in_them():
    breaker = CircuitBreaker(BreakerConfig(window_s=10.0, consecutive_failures=99, minimum_calls=99))
    seen = []
    for at, results in (
        (0.2, "ok ok ok bad bad"),
        (1.0, "ok bad bad ok"),
        (2.9, "ok"),
        (2.9, "bad ok"),
        (10.9, "bad"),  # the window begins at 0.9: the first second is not wholly behind it
        (11.0, "ok"),  # now it is
        (12.0, "ok"),
        (13.0, "ok"),
        (99.0, "bad"),
    ):
        for word in results.split():
            run(breaker, OK if word == "ok" else BAD, at)
        seen.append(repr(breaker).partition("generation 0, ")[2].rstrip(")"))
    assert seen == [
        *("2 failed of 5", "4 failed of 9", "4 failed of 10", "5 failed of 12", "6 failed of 13"),
        *("4 failed of 9", "2 failed of 6", "1 failed of 4", "1 failed of 1"),
    ]


def test_a_lost_probe_adds_nothing_to_the_open_time():
    breaker = opened(0.0, BreakerConfig(open_s=0.1), chance=1.0)
    assert breaker.open_until == 0.1
    breaker.acquire(0.1, 1.0)
    assert breaker.acquire(6.1, 1.0, chance=1.0) == Rejection("circuit open", 6.1 + 0.2)


def test_an_open_circuit_refuses_until_its_time_and_then_admits_exactly_one_probe():
    breaker = opened(0.0, chance=0.0)  # equal jitter: 5 s to 10 s, here 5
    assert breaker.open_until == 5.0
    assert breaker.acquire(4.999, 30.0) == Rejection("circuit open", 5.0)
    probe = breaker.acquire(5.0, 30.0)
    assert probe == Permit(breaker.generation, probe=True)
    assert breaker.state is HALF_OPEN
    assert breaker.open_until is None
    assert [breaker.acquire(5.0, 30.0) for _ in range(20)] == [
        Rejection("circuit half-open, a probe is under way", 40.0)
    ] * 20


def test_two_successful_probes_close_it_and_one_does_not():
    breaker = opened(0.0, chance=1.0)
    assert breaker.open_until == 10.0
    assert run(breaker, OK, 10.0) is None
    assert breaker.state is HALF_OPEN
    assert run(breaker, OK, 10.0) is CLOSED


def test_a_closed_circuit_starts_from_a_clean_sheet():
    breaker = opened(0.0, chance=0.0)
    run(breaker, OK, 5.0)
    run(breaker, OK, 5.0)
    assert [run(breaker, BAD, 6.0) for _ in range(4)] == [None] * 4


def test_probe_successes_must_follow_one_another():
    breaker = opened(0.0, chance=0.0)
    run(breaker, OK, 5.0)
    assert run(breaker, BAD, 5.0, chance=0.0) is OPEN
    run(breaker, OK, 15.0)
    assert breaker.state is HALF_OPEN, "a success before the failure does not count"


def test_open_times_double_up_to_the_cap_and_the_silent_cap_is_longer():
    for silent, cap in ((False, 30.0), (True, 120.0)):
        breaker, now, lasted = opened(0.0, chance=1.0, silent=silent), 0.0, []
        for _ in range(6):
            until = breaker.open_until
            assert until is not None
            lasted.append(until - now)
            now = until
            assert run(breaker, BAD, now, chance=1.0, silent=silent) is OPEN
        assert lasted == [min(cap, 10.0 * 2**k) for k in range(6)]


def test_jitter_takes_at_most_half():
    assert opened(0.0, chance=0.0).open_until == 5.0
    assert opened(0.0, chance=0.5).open_until == 7.5


def test_it_stays_open_at_least_as_long_as_the_server_asked():
    assert opened(0.0, chance=1.0, server_wait_s=77.0).open_until == 77.0
    assert opened(0.0, chance=1.0, server_wait_s=3.0).open_until == 10.0


def test_open_times_start_anew_only_after_twice_the_last_open_time_in_health():
    for pause, expected in ((19.9, 20.0), (20.0, 10.0)):
        breaker = opened(0.0, chance=1.0)
        run(breaker, OK, 10.0)
        run(breaker, OK, 10.0)
        at = 10.0 + pause
        for _ in range(5):
            run(breaker, BAD, at, chance=1.0)
        assert breaker.open_until == at + expected


def test_a_neutral_result_changes_nothing_and_frees_the_probe():
    breaker = CircuitBreaker()
    for _ in range(50):
        assert run(breaker, NEUTRAL, 0.0) is None
    assert breaker.state is CLOSED
    breaker = opened(0.0, chance=0.0)
    assert run(breaker, NEUTRAL, 5.0) is None
    assert breaker.state is HALF_OPEN
    assert isinstance(breaker.acquire(5.0, 30.0), Permit), "the probe's place is free again"


def test_neutral_results_do_not_end_a_row_of_failures():
    breaker = CircuitBreaker()
    for _ in range(4):
        run(breaker, BAD, 0.0)
    run(breaker, NEUTRAL, 0.0)
    assert run(breaker, BAD, 0.0) is OPEN


def test_a_late_result_changes_nothing():
    breaker = CircuitBreaker()
    late = breaker.acquire(0.0, 30.0)
    assert isinstance(late, Permit)
    for _ in range(5):
        run(breaker, BAD, 0.0, chance=0.0)
    until = breaker.open_until
    for result in Result:
        assert breaker.report(late, result, 1.0) is None
    assert (breaker.state, breaker.open_until, breaker.late_results) == (OPEN, until, 3)
    probe = breaker.acquire(5.0, 30.0)
    assert breaker.report(late, OK, 5.0) is None
    assert breaker.state is HALF_OPEN
    assert isinstance(probe, Permit)
    assert breaker.report(probe, OK, 5.0) is None


def test_a_probe_that_never_reports_counts_as_silence_after_its_lease_and_grace():
    breaker = opened(0.0, chance=0.0)
    probe = breaker.acquire(5.0, 30.0)
    assert isinstance(breaker.acquire(39.9, 30.0), Rejection)
    assert breaker.state is HALF_OPEN
    assert breaker.peek(40.0) is None, "peek says the next acquire decides"
    again = breaker.acquire(40.0, 30.0, chance=1.0)
    assert again == Rejection("circuit open", 60.0)
    assert breaker.state is OPEN
    assert isinstance(probe, Permit)
    assert breaker.report(probe, OK, 41.0) is None
    assert breaker.late_results == 1


def test_silence_is_capped_later_than_noise_whether_it_was_reported_or_the_report_never_came():
    config = BreakerConfig(open_s=100.0)
    assert opened(0.0, config, chance=1.0).open_until == 30.0
    assert opened(0.0, config, chance=1.0, silent=True).open_until == 100.0
    breaker = opened(0.0, config, chance=1.0)
    breaker.acquire(30.0, 10.0)
    assert breaker.acquire(45.0, 10.0, chance=1.0) == Rejection("circuit open", 165.0)


def test_a_failed_probe_keeps_away_as_long_as_the_server_asked():
    breaker = opened(0.0, chance=1.0)
    run(breaker, BAD, 10.0, chance=1.0, server_wait_s=77.0)
    assert breaker.open_until == 87.0


def test_without_chance_the_jitter_is_in_its_middle():
    breaker = opened(0.0)
    assert breaker.open_until == 7.5
    breaker.acquire(7.5, 1.0)
    assert breaker.acquire(13.5, 1.0) == Rejection("circuit open", 13.5 + 15.0)


def test_a_hastened_probe_is_due_at_once_and_never_later_than_it_was():
    breaker = opened(0.0, chance=1.0)
    breaker.hasten(3.0)
    assert breaker.open_until == 3.0
    breaker.hasten(8.0)
    assert breaker.open_until == 3.0
    assert breaker.acquire(3.0, 30.0) == Permit(breaker.generation, probe=True)
    breaker.hasten(4.0)
    assert breaker.state is HALF_OPEN


def test_another_configuration_counts_from_now_on():
    breaker = CircuitBreaker()
    assert run(breaker, BAD, 0.0) is None
    breaker.configure(BreakerConfig(consecutive_failures=2, open_s=7.0))
    assert run(breaker, BAD, 0.0, chance=1.0) is OPEN
    assert breaker.open_until == 7.0


def test_an_operator_can_force_it_open_switch_it_off_and_reset_it():
    breaker = CircuitBreaker()
    breaker.force_open()
    assert breaker.acquire(1e9, 1.0) == Rejection("circuit forced open", None)
    breaker.disable()
    permit = breaker.acquire(0.0, 1.0)
    assert isinstance(permit, Permit)
    for _ in range(20):
        assert run(breaker, BAD, 0.0) is None
    assert breaker.state is CircuitState.DISABLED
    breaker.reset()
    assert breaker.state is CLOSED
    assert [run(breaker, BAD, 0.0, chance=1.0) for _ in range(5)][-1] is OPEN
    assert breaker.open_until == 10.0, "reset forgets earlier open times"


def test_results_under_a_forced_state_are_only_late():
    breaker = CircuitBreaker()
    breaker.disable()
    permit = breaker.acquire(0.0, 1.0)
    assert isinstance(permit, Permit)
    breaker.report(permit, BAD, 0.0)
    assert breaker.late_results == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive_failures": 0},
        {"consecutive_failures": 2.5},
        {"failure_rate": 1.5},
        {"failure_rate": 0},
        {"minimum_calls": -1},
        {"window_s": math.inf},
        {"open_s": math.nan},
        {"open_cap_s": True},
        {"successes_to_close": "2"},
        {"probe_grace_s": 0},
    ],
)
def test_impossible_settings_are_refused_where_they_are_built(wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigurationError, match=f"BreakerConfig.{name}"):
        BreakerConfig(**wrong)


def test_defaults_are_those_of_the_requirements():
    c = BreakerConfig()
    assert (c.consecutive_failures, c.failure_rate, c.minimum_calls, c.window_s) == (5, 0.5, 5, 60.0)
    assert (c.open_s, c.open_cap_s, c.silent_open_cap_s, c.successes_to_close) == (10.0, 30.0, 120.0, 2)


def test_repr_says_where_it_is():
    assert repr(opened()) == "CircuitBreaker(open, generation 1, 5 failed of 5)"


class Walk(RuleBasedStateMachine):
    """Random calls, results, waits and lost probes, beside a model that keeps every result in a list."""

    @initialize()
    def begin(self) -> None:
        self.breaker = CircuitBreaker(BreakerConfig(window_s=20.0, consecutive_failures=4, minimum_calls=6))
        self.now = 0.0
        self.out: list[Permit] = []
        self.model_state = CLOSED
        self.history: list[tuple[int, bool]] = []
        self.row = 0
        self.probe_until: float | None = None
        self.probes_ok = 0
        self.era = 0

    def _enter(self, state: CircuitState) -> None:
        self.model_state = state
        self.era += 1
        self.row = 0
        self.probe_until = None
        if state is CLOSED:
            self.history = []

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def acquire(self) -> None:
        until = self.breaker.open_until
        got = self.breaker.acquire(self.now, 10.0, chance=0.5)
        if self.model_state is OPEN:
            assert until is not None
            if self.now >= until:
                self._enter(HALF_OPEN)
                self.probes_ok = 0
        if self.model_state is HALF_OPEN:
            if self.probe_until is None:
                assert isinstance(got, Permit)
                assert got.probe
                self.probe_until = self.now + 15.0
            elif self.now >= self.probe_until:
                assert isinstance(got, Rejection)
                self._enter(OPEN)
            else:
                assert isinstance(got, Rejection)
        elif self.model_state is OPEN:
            assert isinstance(got, Rejection)
        else:
            assert isinstance(got, Permit)
            assert not got.probe
        if isinstance(got, Permit):
            assert got.generation == self.era
            self.out.append(got)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), result=st.sampled_from(list(Result)))
    def report(self, data: st.DataObject, result: Result) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        changed = self.breaker.report(permit, result, self.now, chance=0.5)
        before = self.model_state
        if permit.generation != self.era:
            assert changed is None
            return
        if self.model_state is HALF_OPEN:
            self.probe_until = None
            if result is BAD:
                self._enter(OPEN)
            elif result is OK:
                self.probes_ok += 1
                if self.probes_ok == 2:
                    self._enter(CLOSED)
        elif result is not NEUTRAL:
            self.history = [h for h in self.history if h[0] + 1 > self.now - 20.0 or int(self.now) == h[0]]
            self.history.append((int(self.now), result is BAD))
            self.row = self.row + 1 if result is BAD else 0
            failed = sum(bad for _, bad in self.history)
            if result is BAD and (self.row >= 4 or (len(self.history) >= 6 and failed * 2 >= len(self.history))):
                self._enter(OPEN)
        assert changed == (self.model_state if self.model_state is not before else None)

    @invariant()
    def same_state(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state is self.model_state
            assert self.breaker.generation == self.era
            peeked, open_until = self.breaker.peek(self.now), self.breaker.open_until
            if self.model_state is CLOSED:
                assert peeked is None
            if self.model_state is OPEN:
                assert open_until is not None
                assert (peeked is None) is (self.now >= open_until)


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBreakerWalk = Walk.TestCase


def test_reset_is_as_good_as_new():
    breaker = opened(0.0, chance=1.0)
    run(breaker, OK, 10.0)  # half-open, one success
    breaker.reset()
    for _ in range(5):
        run(breaker, BAD, 10.5, chance=1.0)
    assert breaker.open_until == 20.5, "the open time starts anew at once"
    assert run(breaker, OK, 20.5) is None, "and so do the probes' successes"
    assert breaker.state is HALF_OPEN
    assert run(breaker, OK, 20.5) is CLOSED
    breaker.reset()
    for _ in range(5):
        run(breaker, BAD, 20.6, chance=1.0)
    assert breaker.open_until == 30.6


def test_repr_counts_both_kinds_of_call():
    breaker = CircuitBreaker()
    run(breaker, OK, 0.0)
    run(breaker, BAD, 0.0)
    assert repr(breaker) == "CircuitBreaker(closed, generation 0, 1 failed of 2)"
