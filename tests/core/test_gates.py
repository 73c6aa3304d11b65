"""What a gate answers and tells, to the figure: circuits of target and account, locks, parks, lines, by hand."""

from __future__ import annotations

import pytest

from shared_core import ChatRequest, user
from shared_core.errors import ConfigurationError, ProviderError
from shared_core.errors import ErrorKind as K
from shared_core.resilience.admission import Account, Admission, Gate, Gates, Outcome, Refusal, Transition
from shared_core.resilience.breaker import BreakerConfig, CircuitState
from shared_core.resilience.health import HealthStatus
from shared_core.resilience.rate_limit import NO_LIMITS, Limiter, Limits, Ticket, Want

TWO = BreakerConfig(consecutive_failures=2)


def admitted(gate: Gate, now: float = 0.0, lease_s: float = 30.0, chance: float = 0.5) -> Admission:
    admission = gate.admit(now, lease_s, chance)
    assert isinstance(admission, Admission), admission
    return admission


def fail(gate: Gate, now: float, kind: K = K.TRANSIENT, *, chance: float = 0.0, wait=None, status=None, code=None):
    error = ProviderError.of(kind, "no", retry_after_s=wait, status=status, code=code)
    return list(gate.settle(admitted(gate, now), Outcome(error), now, chance))


def succeed(gate: Gate, now: float, **outcome):
    return list(gate.settle(admitted(gate, now), Outcome(**outcome), now))


def pair(config: BreakerConfig | None = TWO) -> tuple[Account, Gate, Gate]:
    account = Account("acme")
    return account, Gate("one", config, account), Gate("two", config, account)


def told(gate: Gate, now: float = 100.0) -> list[tuple[float, str, float | None, str | None]]:
    """Its history: when, what, for how long, why."""
    return [(now - c.ago_s, c.state, c.for_s, c.reason) for c in gate.read(now, full=True).history]


# ── one target ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_gate_holds_nothing_and_has_its_targets_name():
    gate = Gate("t")
    held = (gate.parked_since, gate.parked_until, gate.park_reason, gate.park_passes, gate.prefill_rejected)
    assert repr(held) == repr((0.0, 0.0, "", False, False))
    assert (gate.account.name, gate.limiter.name, gate.news, gate.state) == ("t", "t", False, CircuitState.CLOSED)
    assert gate.take_news() == []
    admission = admitted(gate, 3.0)
    assert (admission.settled, admission.started, admission.lease, admission.claim) == (False, 3.0, None, None)
    gate.settle(admission, Outcome(), 3.0)
    assert admission.settled is True


def test_every_change_of_a_circuit_is_told_once_with_its_end_and_its_reason_and_remembered():
    gate = Gate("t", TWO)
    assert fail(gate, 1.0, status=500) == []
    assert fail(gate, 2.0, status=500) == [Transition("t", "circuit open", 7.0, "transient (HTTP 500)")]
    assert gate.take_news() == [Transition("t", "unhealthy", None, "transient (HTTP 500)")]
    assert gate.admit(6.9, 30.0) == Refusal("circuit open", 7.0)
    probe = admitted(gate, 7.0)
    assert gate.news
    assert gate.take_news() == [Transition("t", "circuit half-open")]
    assert not gate.news
    assert gate.admit(8.0, 30.0) == Refusal("circuit half-open, a probe is under way", 42.0)
    assert list(gate.settle(probe, Outcome(), 8.0)) == []
    assert succeed(gate, 9.0) == [Transition("t", "circuit closed")]
    assert gate.take_news() == [Transition("t", "recovered")], "not a second time that it is half-open"
    assert told(gate) == [
        (2.0, "circuit open", 5.0, "transient (HTTP 500)"),
        (2.0, "unhealthy", None, "transient (HTTP 500)"),
        (7.0, "circuit half-open", None, None),
        (9.0, "circuit closed", None, None),
        (9.0, "recovered", None, None),
    ]
    windows = gate.read(11.0, full=True).windows
    assert windows[0].availability == pytest.approx(0.3), "of ten seconds it was open or half-open for seven"


def test_a_lost_probe_opens_the_circuit_again_and_is_told_once():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    admitted(gate, 5.0, lease_s=10.0)  # never comes back
    gate.take_news()
    assert gate.admit(19.9, 1.0) == Refusal("circuit half-open, a probe is under way", 20.0)
    until = 20.0 + 10.0 + 0.25 * 10.0
    assert gate.admit(20.0, 1.0, 0.25) == Refusal("circuit open", until)
    assert gate.take_news() == [Transition("t", "circuit open", until)]
    assert gate.admit(20.0, 1.0) == Refusal("circuit open", until)
    assert gate.take_news() == []
    assert told(gate)[-1] == (20.0, "circuit open", 12.5, None)
    admitted(gate, until)
    assert [n.state for n in gate.take_news()] == ["circuit half-open"], "each probe's beginning"


def test_without_a_chance_given_a_lost_probe_costs_the_middle_of_an_open_time():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    admitted(gate, 5.0, lease_s=10.0)
    assert gate.admit(20.0, 1.0) == Refusal("circuit open", 35.0)


def test_a_failed_probe_is_told_as_open_and_the_next_one_as_half_open_again():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    gate.take_news()
    assert fail(gate, 5.0) == [Transition("t", "circuit open", 15.0, "transient")]
    assert [n.state for n in gate.take_news()] == ["circuit half-open"]
    succeed(gate, 15.0)
    assert [n.state for n in gate.take_news()] == ["circuit half-open"]
    succeed(gate, 16.0)
    assert [n.state for n in gate.take_news()] == ["recovered"]


def test_a_probe_whose_caller_walks_away_is_the_next_ones_and_counts_for_nothing():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    assert succeed(gate, 5.0, cancelled=True) == []
    succeed(gate, 5.0)
    assert gate.state is CircuitState.HALF_OPEN
    account, one, two = pair()
    fail(one, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    assert succeed(one, 5.0, cancelled=True) == []
    succeed(two, 5.0)
    assert account.breaker is not None
    assert account.breaker.state is CircuitState.HALF_OPEN


def test_what_the_server_asks_to_wait_holds_the_circuit_for_as_long_and_chance_spreads_its_end():
    gate = Gate("t", BreakerConfig(consecutive_failures=1))
    assert fail(gate, 0.0, K.OVERLOADED, wait=70.0)[-1].until == 70.0
    gate = Gate("t", BreakerConfig(consecutive_failures=1))
    assert fail(gate, 0.0, chance=0.5)[-1].until == 7.5
    gate = Gate("t", BreakerConfig(consecutive_failures=1, open_s=100.0))
    assert fail(gate, 0.0, chance=1.0)[-1].until == 30.0
    gate = Gate("t", BreakerConfig(consecutive_failures=1, open_s=100.0))
    assert fail(gate, 0.0, K.TIMEOUT, chance=1.0)[-1].until == 100.0, "after silence a probe is dear"
    gate = Gate("t", BreakerConfig(consecutive_failures=1))
    last = gate.settle(admitted(gate), Outcome(ProviderError.of(K.TRANSIENT, "no")), 0.0)
    assert last[-1].until == 7.5, "in the middle, where no chance is given"


@pytest.mark.parametrize("code", ["deadline", "shortened", "no_turn"])
def test_an_end_that_is_our_own_doing_is_noted_and_counts_against_nobody(code):
    gate = Gate("t", BreakerConfig(consecutive_failures=1))
    assert fail(gate, 4.0, K.TIMEOUT, code=code) == []
    assert gate.budget.tokens == gate.budget.capacity
    health = gate.read(5.0)
    assert (health.circuit, health.success_rate) == (CircuitState.CLOSED, None)
    assert (health.last_error, health.last_error_ago_s, health.consecutive_failures) == ("timeout", 1.0, 0)


def test_failures_and_successes_move_the_retry_budget_and_the_record():
    gate = Gate("t")
    fail(gate, 4.0, status=503)
    assert gate.budget.tokens == gate.budget.capacity - 1
    health = gate.read(6.0)
    assert (health.last_error, health.last_error_ago_s) == ("transient (HTTP 503)", 2.0)
    assert (health.success_rate, health.consecutive_failures, health.calls) == (0.0, 1, 1)
    before = gate.budget.tokens
    succeed(gate, 7.0, latency_s=0.5, first_token_s=0.25)
    assert gate.budget.tokens > before
    health = gate.read(7.0)
    assert (health.success_rate, health.consecutive_failures, health.calls) == (0.5, 0, 2)
    assert (health.latency_p50_s, health.first_token_p50_s) == (0.5, 0.25)


def test_a_first_token_is_slow_beyond_twenty_seconds_and_beyond_four_times_the_median():
    for first, slow in ((20.0, False), (20.1, True), (None, False)):
        gate = Gate("t", BreakerConfig(consecutive_failures=1))
        changes = succeed(gate, 0.0, first_token_s=first, others_closed=True)
        assert bool(changes) is slow
    gate = Gate("t", BreakerConfig(consecutive_failures=1))
    for _ in range(3):
        succeed(gate, 0.0, first_token_s=10.0)
    assert succeed(gate, 1.0, first_token_s=40.0, others_closed=True) == []
    assert succeed(gate, 1.0, first_token_s=40.1, others_closed=False) == []
    assert [c.state for c in succeed(gate, 1.0, first_token_s=40.1, others_closed=True)] == ["circuit open"]
    assert [n.state for n in gate.take_news()] == ["unhealthy"]


def test_slowness_opens_a_circuit_for_as_long_as_any_failure_and_not_as_silence_does():
    for config, until in ((BreakerConfig(1, open_s=100.0), 30.0), (BreakerConfig(1, open_s=0.5), 0.5)):
        gate = Gate("t", config)
        slow = Outcome(first_token_s=30.0, others_closed=True)
        (change,) = gate.settle(admitted(gate), slow, 0.0, 1.0)
        assert change == Transition("t", "circuit open", until)


def test_a_reading_has_windows_and_history_when_they_are_asked_for():
    gate = Gate("t")
    fail(gate, 0.0, K.NOT_FOUND)
    assert (gate.read(1.0).windows, gate.read(1.0).history) == ((), ())
    assert len(gate.read(1.0, full=True).windows) == 4


def test_a_probe_that_is_slow_opens_the_circuit_again():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    assert [c.state for c in succeed(gate, 5.0, first_token_s=30.0, others_closed=True)] == ["circuit open"]


# ── locks and parks ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_is_told_with_its_end_shown_and_refused_with_its_reason():
    gate = Gate("t")
    assert fail(gate, 10.0, K.NOT_FOUND, status=404) == [Transition("t", "locked", 610.0, "not_found: no")]
    assert gate.take_news() == [Transition("t", "unhealthy", None, "locked: not_found: no")]
    assert gate.admit(609.0, 1.0) == Refusal("locked: not_found: no", 610.0)
    health = gate.read(20.0)
    assert (health.locked_for_s, health.lock_reason, health.parked_for_s) == (590.0, "not_found: no", None)
    assert (health.unavailable_reason, health.retry_in_s) == ("locked: not_found: no", 590.0)
    assert succeed(gate, 610.0) == [Transition("t", "unlocked")]
    assert gate.take_news() == [Transition("t", "recovered")]
    assert gate.read(611.0).locked_for_s is None


def test_a_lock_whose_time_is_over_is_shown_no_more_and_another_that_stands_is():
    gate = Gate("t")
    gate.account.put(0.0, 10.0, "bad key")
    assert gate.read(9.0).lock_reason == "bad key"
    assert gate.read(10.0).locked_for_s is None
    gate.lock.put(0.0, 20.0, "no such model")
    health = gate.read(10.0)
    assert (health.lock_reason, health.locked_for_s) == ("no such model", 10.0)
    assert gate.read(20.0).locked_for_s is None


def test_an_account_is_locked_under_its_own_name_for_all_its_targets():
    account, one, two = pair()
    assert fail(one, 10.0, K.AUTH) == [Transition("acme", "account locked", 910.0, "auth: no")]
    refused = Refusal("account locked: auth: no", 910.0)
    assert (one.admit(20.0, 1.0), two.admit(20.0, 1.0), two.peek(20.0)) == (refused,) * 3
    health = two.read(20.0, full=True)
    assert (health.locked_for_s, health.lock_reason) == (890.0, "auth: no")
    assert one.read(30.0, full=True).windows[0].availability == 0.0, "from 10 on"
    assert succeed(two, 910.0) == [Transition("acme", "account unlocked")]
    assert account.until == 0.0
    assert one.read(920.0).locked_for_s is None


def test_a_lock_that_its_own_re_check_puts_on_anew_stays_and_one_that_says_nothing_leaves_it_due():
    gate = Gate("t")
    fail(gate, 0.0, K.NOT_FOUND)
    check = admitted(gate, 600.0)
    assert gate.admit(600.0, 30.0) == Refusal("locked: not_found: no (being checked again)", 630.0)
    again = gate.settle(check, Outcome(ProviderError.of(K.NOT_FOUND, "still")), 601.0)
    assert list(again) == [Transition("t", "locked", 1201.0, "not_found: still")]
    check = admitted(gate, 1201.0)
    gate.settle(check, Outcome(cancelled=True), 1201.0)
    check = admitted(gate, 1201.0)  # at the very moment: it is the next one's
    gate.settle(check, Outcome(ProviderError.of(K.BAD_REQUEST, "what?")), 1202.0)
    assert succeed(gate, 1202.0) == [Transition("t", "unlocked")]


def test_both_locks_are_checked_by_one_attempt_and_both_lifted_by_its_success():
    gate = Gate("t")
    first, second = admitted(gate), admitted(gate)
    gate.settle(first, Outcome(ProviderError.of(K.AUTH, "no")), 0.0)
    gate.settle(second, Outcome(ProviderError.of(K.NO_ENTITLEMENT, "no")), 0.0)
    assert succeed(gate, 900.0) == [Transition("t", "account unlocked"), Transition("t", "unlocked")]
    assert gate.read(1000.0, full=True).windows[2].availability == pytest.approx(0.1)


def test_a_park_is_told_with_its_end_and_made_longer_but_not_shorter():
    gate = Gate("t")
    out = [admitted(gate) for _ in range(3)]

    def throttled(wait: float, now: float) -> list[Transition]:
        error = ProviderError.of(K.THROTTLED, "slowly", retry_after_s=wait)
        return list(gate.settle(out.pop(), Outcome(error), now))

    assert throttled(10.0, 1.0) == [Transition("t", "parked", 11.0, "throttled: slowly")]
    assert gate.admit(2.0, 1.0) == Refusal("parked: throttled: slowly", 11.0, True, True)
    assert throttled(20.0, 2.0) == [Transition("t", "parked", 22.0, "throttled: slowly")]
    assert (gate.parked_since, gate.parked_until) == (1.0, 22.0)
    throttled(5.0, 3.0)
    assert gate.parked_until == 22.0
    assert gate.take_news() == [], "nobody is ill who only has enough to do"
    health = gate.read(12.0)
    assert (health.parked_for_s, health.park_reason, health.locked_for_s) == (10.0, "throttled: slowly", None)
    assert gate.read(32.0, full=True).windows[0].availability == pytest.approx(11 / 32)
    assert gate.read(22.0).parked_for_s is None
    assert fail(gate, 22.0, K.THROTTLED, wait=1.0)[0].until == 23.0
    assert gate.parked_since == 22.0, "another park"


def test_a_park_that_ends_at_the_same_moment_is_the_same_park():
    gate = Gate("t")
    out = [admitted(gate) for _ in range(2)]
    for admission, kind in zip(out, (K.THROTTLED, K.QUOTA_DAY), strict=True):
        gate.settle(admission, Outcome(ProviderError.of(kind, str(kind), retry_after_s=10.0)), 0.0)
    assert gate.admit(1.0, 1.0) == Refusal("parked: throttled: throttled", 10.0, True, True)


def test_a_days_quota_parks_for_as_long_as_told_or_an_hour_and_nobody_waits_for_it():
    gate = Gate("t")
    assert fail(gate, 0.0, K.QUOTA_DAY) == [Transition("t", "parked", 3600.0, "quota_day: no")]
    assert gate.admit(1.0, 1.0) == Refusal("parked: quota_day: no", 3600.0, False, False)
    assert gate.read(1.0).status is HealthStatus.UNHEALTHY
    gate = Gate("t")
    assert fail(gate, 0.0, K.QUOTA_DAY, wait=60.0)[0].until == 60.0
    gate = Gate("t")
    assert fail(gate, 0.0, K.QUOTA_DAY, wait=0.5)[0].until == 0.5


def test_a_park_has_no_line_where_the_settings_allow_none():
    gate = Gate("t", limiter=Limiter("t", Limits(queue=0)))
    fail(gate, 0.0, K.THROTTLED, wait=5.0)
    assert gate.admit(1.0, 1.0) == Refusal("parked: throttled: no", 5.0, True, False)


def test_the_text_of_an_error_is_kept_to_two_hundred_characters():
    gate = Gate("t")
    error = ProviderError.of(K.NOT_FOUND, "x" * 300)
    (change,) = gate.settle(admitted(gate), Outcome(error), 0.0)
    assert change.reason == "not_found: " + "x" * 200


# ── the circuit of an account ────────────────────────────────────────────────────────────────────────────────────────


def test_an_account_has_a_circuit_once_two_targets_stand_behind_it_and_keeps_it_when_more_join():
    account = Account("acme")
    one = Gate("one", TWO, account)
    assert account.breaker is None
    Gate("two", TWO, account)
    shared = account.breaker
    assert shared is not None
    assert fail(one, 1.0, K.CONNECT) == []
    Gate("three", TWO, account)
    assert account.breaker is shared
    assert fail(one, 2.0, K.CONNECT) == [Transition("acme", "circuit open", 7.0, "connect")]
    assert one.breaker.state is CircuitState.CLOSED
    assert one.read(100.0, full=True).windows[2].availability == pytest.approx(1 - 5 / 99)


def test_nobody_can_be_reached_for_as_long_as_the_server_asks():
    _, one, two = pair()
    fail(one, 0.0, K.CONNECT)
    assert fail(two, 0.0, K.CONNECT, wait=40.0, chance=1.0)[-1].until == 40.0
    _, one, two = pair()
    fail(one, 0.0, K.CONNECT)
    assert fail(two, 0.0, K.CONNECT, chance=1.0)[-1].until == 10.0


def test_a_probe_of_the_account_that_is_lost_opens_it_again():
    account, one, two = pair()
    fail(one, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    admitted(one, 5.0, lease_s=10.0)
    assert two.admit(19.9, 1.0) == Refusal("account's circuit half-open, a probe is under way", 20.0)
    until = 20.0 + 10.0 + 0.25 * 10.0
    assert two.admit(20.0, 1.0, 0.25) == Refusal("account's circuit open", until)
    assert account.breaker is not None
    assert account.breaker.open_until == until
    assert two.peek(20.0) == Refusal("account's circuit open", until)


def test_a_lease_goes_to_the_next_in_line_when_the_accounts_probe_was_lost():
    account = Account("acme")
    one, two = Gate("one", TWO, account, Limiter("one", Limits(concurrency=1))), Gate("two", TWO, account)
    holder, first, second = admitted(one), lined_up(one), lined_up(one)
    fail(two, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    admitted(two, 5.0, lease_s=10.0)  # never comes back
    one.settle(holder, Outcome(cancelled=True), 18.0)
    assert one.enter(first, 20.0, 30.0, 0.25) == Refusal("account's circuit open", 32.5)
    assert second.lease is not None
    assert one.limiter.in_flight == 1


def test_one_whose_own_circuit_is_open_leaves_the_re_check_of_its_lock_to_the_next():
    gate = Gate("t", TWO)
    fail(gate, 0.0, chance=1.0), fail(gate, 0.0, chance=1.0)
    gate.lock.put(0.0, 5.0, "no such model")
    assert [gate.admit(6.0, 30.0) for _ in range(2)] == [Refusal("circuit open", 10.0)] * 2


def test_what_is_withdrawn_is_the_next_ones_lock_probe_and_place_in_line():
    gate = Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=1, requests_per_minute=600)))
    gate.lock.put(0.0, 5.0, "no such model")
    gate.withdraw(admitted(gate, 5.0), 5.0)
    check = admitted(gate, 5.0)
    assert check.claim is not None
    assert check.claim.target
    gate = one_slot(requests_per_minute=600)
    holder = admitted(gate)
    ticket = lined_up(gate)
    gate.withdraw(holder, 0.0)
    assert ticket.lease is not None
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    gate.withdraw(admitted(gate, 5.0), 5.0)
    succeed(gate, 5.0)
    assert gate.state is CircuitState.HALF_OPEN, "what was withdrawn was no success"


def test_a_probe_of_the_account_that_is_withdrawn_is_the_next_ones_and_counts_for_nothing():
    account, one, two = pair()
    fail(one, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    one.withdraw(admitted(one, 5.0), 5.0)
    succeed(two, 5.0)
    assert account.breaker is not None
    assert account.breaker.state is CircuitState.HALF_OPEN
    assert succeed(one, 5.0) == [Transition("acme", "circuit closed")]


def test_an_attempt_from_before_an_account_had_a_circuit_is_withdrawn_like_any_other():
    account = Account("acme")
    one = Gate("one", TWO, account)
    account.put(0.0, 5.0, "bad key")
    check = admitted(one, 5.0)
    Gate("two", TWO, account)
    one.withdraw(check, 5.0)
    assert account.refusal(5.0) is None
    assert account.until == 5.0


def test_a_re_check_from_before_an_account_had_a_circuit_is_settled_like_any_other():
    account = Account("acme")
    one = Gate("one", TWO, account)
    account.put(0.0, 5.0, "bad key")
    check = admitted(one, 5.0)
    Gate("two", TWO, account)
    assert list(one.settle(check, Outcome(), 5.0)) == [Transition("acme", "account unlocked")]


def test_answers_and_refusals_show_that_an_account_can_be_reached_and_silence_shows_nothing():
    kinds = {
        "answers": Outcome(),
        "refuses": Outcome(ProviderError.of(K.BAD_REQUEST, "no", status=400)),
        "is cancelled": Outcome(cancelled=True),
        "is silent": Outcome(ProviderError.of(K.TIMEOUT, "nothing")),
    }
    for what, outcome in kinds.items():
        _, one, two = pair()
        fail(one, 0.0, K.CONNECT)
        two.settle(admitted(two, 1.0), outcome, 1.0)
        opened = fail(one, 2.0, K.CONNECT)
        assert bool(opened) is (what in ("is cancelled", "is silent")), what


def test_one_whose_own_circuit_is_open_hands_the_accounts_probe_on():
    account, one, two = pair()
    fail(one, 0.0, chance=1.0), fail(one, 0.0, chance=1.0)  # its own, until 10
    fail(two, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)  # the account's, until 5
    assert one.admit(5.0, 30.0) == Refusal("circuit open", 10.0)
    admitted(two, 5.0)
    assert two.state is CircuitState.HALF_OPEN
    assert account.breaker is not None
    assert account.breaker.state is CircuitState.HALF_OPEN


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_slot(**limits) -> Gate:
    return Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=1, **limits)))


def lined_up(gate: Gate, now: float = 0.0) -> Ticket:
    ticket = gate.line_up(now, None, lambda: None)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def test_a_refusal_for_want_of_room_passes_and_has_a_line_unless_there_is_none():
    gate = one_slot()
    succeed(gate, 0.0, latency_s=2.0)
    gate.settle(admitted(gate, 10.0), Outcome(), 14.0)
    admitted(gate, 20.0)
    refused = gate.admit(20.0, 1.0)
    assert isinstance(refused, Refusal)
    assert (refused.waits, refused.line) == (True, True)
    assert refused == gate.peek(20.0)
    short = one_slot(queue=1)
    admitted(short)
    refused = short.admit(0.0, 1.0)
    assert isinstance(refused, Refusal)
    assert (refused.waits, refused.line) == (True, True)
    without = one_slot(queue=0)
    admitted(without)
    refused = without.admit(0.0, 1.0)
    assert isinstance(refused, Refusal)
    assert (refused.waits, refused.line) == (False, False)


def test_limits_that_were_lowered_rise_with_answers_and_with_nothing_else():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=10)))
    fail(gate, 0.0, K.THROTTLED)
    assert (gate.limiter.pace, gate.limiter.slots) == (0.7, 7)
    ramp = Gate("t", limiter=Limiter("t", Limits(concurrency=10)))
    assert fail(ramp, 0.0, K.RAMP) == [Transition("t", "slowed", None, "ramp: 50% of its rates, 5 slots")]
    rates = Gate("t", limiter=Limiter("t", Limits(requests_per_minute=60)))
    assert fail(rates, 0.0, K.OVERLOADED) == [Transition("t", "slowed", None, "overloaded: 70% of its rates")]
    for n in range(20):
        fail(gate, 1.0 + n, K.BAD_REQUEST)
        succeed(gate, 1.0 + n, cancelled=True)
    assert gate.limiter.pace == 0.7
    succeed(gate, 30.0)
    assert gate.limiter.pace > 0.7


def test_a_rate_that_is_used_up_says_when_there_is_room_again():
    gate = Gate("t", limiter=Limiter("t", Limits(requests_per_minute=60, burst_s=1)))
    admitted(gate, 10.0)
    refused = gate.admit(10.0, 1.0)
    assert isinstance(refused, Refusal)
    assert refused.retry_at == pytest.approx(11.0)
    assert (refused.waits, refused.line) == (True, True)


def test_a_place_in_line_during_a_park_ends_with_it_and_a_full_line_is_refused():
    gate = Gate("t", limiter=Limiter("t", Limits(queue=1)))
    fail(gate, 0.0, K.THROTTLED, wait=7.0)
    ticket = lined_up(gate, 1.0)
    assert ticket.lease is None
    assert ticket.wake_at == pytest.approx(7.0, abs=0.1)
    full = gate.line_up(1.0, None, lambda: None)
    assert full == Refusal("1 callers wait for a turn already", None)
    assert not full.waits
    gate.limiter.due(8.0)
    assert ticket.lease is not None
    admission = gate.enter(ticket, 8.0, 30.0)
    assert isinstance(admission, Admission)
    assert (admission.lease is not None, ticket.lease, admission.started) == (True, None, 8.0)
    assert gate.limiter.in_flight == 1
    gate.settle(admission, Outcome(), 9.0)
    assert gate.limiter.in_flight == 0


def test_the_lines_of_several_processes_set_off_at_times_that_chance_keeps_apart():
    for chance in (0.0, 0.25, 0.75):
        gate = Gate("t")
        fail(gate, 50.0, K.THROTTLED, wait=100.0, chance=chance)
        tickets = [lined_up(gate, 51.0) for _ in range(2)]
        gate.limiter.due(150.0)
        assert tickets[0].wake_at == pytest.approx(150.0 + chance * 10.0 / 2, abs=0.01)


def test_nobody_lines_up_before_an_open_circuit_and_the_refusal_says_until_when():
    gate = one_slot()
    fail(gate, 0.0), fail(gate, 0.0)
    assert gate.line_up(1.0, None, lambda: None) == Refusal("circuit open", 5.0)
    assert gate.admit(1.0, 1.0) == Refusal("circuit open", 5.0)


def test_whose_turn_comes_before_a_closed_door_gives_its_lease_to_the_next():
    gate = one_slot()
    holder = admitted(gate)
    first, second = lined_up(gate), lined_up(gate)
    gate.settle(holder, Outcome(), 1.0)
    assert (first.lease is not None, second.lease) == (True, None)
    gate.account.put(1.0, 50.0, "bad key")
    assert gate.enter(first, 1.0, 30.0) == Refusal("account locked: bad key", 50.0)
    assert second.lease is not None


def test_who_finds_a_lost_probe_at_the_end_of_the_line_hands_its_lease_on():
    gate = Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=2, requests_per_minute=600)))
    fail(gate, 0.0), fail(gate, 0.0)
    admitted(gate, 5.0, lease_s=10.0)  # never comes back, nor does its slot
    first, second = lined_up(gate, 20.0), lined_up(gate, 20.0)
    assert (first.lease is not None, second.lease) == (True, None)
    assert gate.enter(first, 20.0, 30.0) == Refusal("circuit open", 35.0)
    assert second.lease is not None
    probe = gate.enter(second, 35.0, 10.0)
    assert isinstance(probe, Admission)
    assert gate.peek(35.0) == Refusal("circuit half-open, a probe is under way", 50.0)
    again = Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=2)))
    fail(again, 0.0), fail(again, 0.0)
    admitted(again, 5.0, lease_s=10.0)
    assert again.enter(lined_up(again, 20.0), 20.0, 30.0, 0.25) == Refusal("circuit open", 32.5)


def test_who_was_sent_away_without_a_turn_hears_why():
    gate = Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=3)))
    holders = [admitted(gate) for _ in range(3)]
    *_, last = [lined_up(gate) for _ in range(3)]
    for holder in holders[:2]:
        gate.settle(holder, Outcome(ProviderError.of(K.TRANSIENT, "no")), 1.0, 0.0)
    assert (last.lease, last.away) == (None, True)
    assert gate.enter(last, 2.0, 30.0) == Refusal("circuit open", 6.0)


def test_a_place_in_line_says_what_its_request_will_take():
    gate = Gate("t", limiter=Limiter("t", Limits(tokens_per_minute=100)))
    ticket = gate.line_up(0.0, ChatRequest((user("x" * 200),), max_tokens=30), lambda: None)
    assert isinstance(ticket, Ticket)
    assert ticket.want == Want(50, 30)


def test_an_heir_with_limits_of_its_own_knows_of_the_park_in_its_line():
    old = Gate("t")
    fail(old, 0.0, K.THROTTLED, wait=7.0)
    heir = old.under(Account("new"), Limiter("new"))
    ticket = lined_up(heir, 1.0)
    assert ticket.lease is None
    assert ticket.wake_at == pytest.approx(7.0, abs=0.1)


def test_whoever_is_sent_away_from_the_line_hears_why():
    gate = one_slot()
    holders = [admitted(gate)]
    ticket = lined_up(gate)
    gate.settle(holders.pop(), Outcome(ProviderError.of(K.TRANSIENT, "no")), 0.0, 0.0)
    holder = gate.enter(ticket, 0.0, 30.0)
    assert isinstance(holder, Admission)
    waiting = lined_up(gate, 1.0)
    gate.settle(holder, Outcome(ProviderError.of(K.TRANSIENT, "no")), 1.0, 0.0)
    assert gate.enter(waiting, 1.0, 30.0) == Refusal("circuit open", 6.0)


@pytest.mark.parametrize(
    ("kind", "wait"), [(K.AUTH, None), (K.NOT_FOUND, None), (K.QUOTA_DAY, 60.0), (K.THROTTLED, 60.0)]
)
def test_a_lock_or_a_park_that_does_not_pass_empties_the_line_of_its_target_alone(kind, wait):
    pool = Limiter("pool", Limits(concurrency=2))
    gate, other = Gate("t", limiter=pool), Gate("other", limiter=pool)
    holders = [admitted(gate), admitted(other)]
    first, mine, others = lined_up(gate), lined_up(gate), lined_up(other)
    gate.settle(holders[0], Outcome(ProviderError.of(kind, "no", retry_after_s=wait)), 0.0)
    assert first.lease is not None, "the slot that has become free is the first one's"
    assert (mine.away, others.away) == (kind is not K.THROTTLED, False)


def test_an_account_nobody_can_reach_empties_the_line_too():
    account = Account("acme")
    gate = Gate("t", TWO, account, Limiter("t", Limits(concurrency=2)))
    Gate("other", TWO, account)
    holders = [admitted(gate), admitted(gate)]
    tickets = [lined_up(gate), lined_up(gate), lined_up(gate)]
    for holder in holders:
        gate.settle(holder, Outcome(ProviderError.of(K.CONNECT, "no")), 0.0)
    assert tickets[2].away


def test_forcing_a_circuit_open_empties_the_line():
    gate = one_slot()
    admitted(gate)
    ticket = lined_up(gate)
    gate.force_open()
    assert ticket.away


# ── health checks ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_by_its_list_of_models_closes_an_open_circuit_and_says_nothing_of_a_closed_one():
    gate = Gate("t", TWO)
    fail(gate, 0.0)
    succeed(gate, 1.0, probe="models")
    health = gate.read(3.0)
    assert (health.calls, health.last_probe_ok, health.last_probe_ago_s) == (1, True, 2.0)
    assert [c.state for c in fail(gate, 2.0)] == ["circuit open"], "two failures in a row: the check was no success"
    succeed(gate, 7.0, probe="models")
    assert [c.state for c in succeed(gate, 7.0, probe="models")] == ["circuit closed"]
    by_call = Gate("t", TWO)
    fail(by_call, 0.0)
    succeed(by_call, 1.0, probe="call")
    assert fail(by_call, 2.0) == [], "a call that was answered is a success"
    assert by_call.read(2.0).success_rate == 0.0, "but no figure of the callers'"


def test_a_check_that_fails_is_no_call_and_one_refused_for_other_reasons_finds_the_target_well():
    for kind, ok in ((K.TRANSIENT, False), (K.AUTH, False), (K.THROTTLED, False), (K.BAD_REQUEST, True)):
        gate = Gate("t", TWO)
        error = ProviderError.of(kind, "no", status=500)
        gate.settle(admitted(gate, 3.0), Outcome(error, probe="call"), 3.0)
        health = gate.read(4.0)
        assert (health.last_probe_ok, health.last_probe_ago_s) == (ok, 1.0), kind
        assert (health.calls, health.success_rate, health.last_error) == (0, None, f"{kind} (HTTP 500)")
        assert (health.in_flight, gate.budget.tokens) == (0, gate.budget.capacity)
        assert health.last_error_ago_s == 1.0


def test_a_check_that_asks_nobody_tells_when_the_target_falls_ill_and_recovers():
    gate = Gate("t")
    gate.checked(1.0, ok=False)
    assert gate.take_news() == [Transition("t", "unhealthy")]
    assert gate.read(3.0).last_probe_ago_s == 2.0
    gate.checked(4.0, ok=True)
    assert gate.take_news() == [Transition("t", "recovered")]


def test_an_answer_is_news_where_a_check_had_found_the_target_ill():
    gate = Gate("t")
    gate.checked(1.0, ok=False)
    gate.take_news()
    assert succeed(gate, 2.0) == []
    assert gate.take_news() == [Transition("t", "recovered")]


def test_while_it_is_checked_an_open_target_reads_checking():
    gate = Gate("t", TWO)
    fail(gate, 0.0), fail(gate, 0.0)
    gate.checking(2)
    gate.checking(-1)
    assert gate.health.checking == 1
    assert gate.read(1.0).status is HealthStatus.CHECKING
    gate.checking(-1)
    assert gate.read(1.0).status is HealthStatus.UNHEALTHY


def test_hastened_probes_and_re_checks_are_due_at_once():
    account, one, two = pair()
    fail(one, 0.0), fail(one, 0.0)
    fail(two, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    one.lock.put(0.5, 600.0, "no such model")
    account.put(0.5, 900.0, "bad key")
    one.hasten(1.0)
    check = admitted(one, 1.0)
    assert check.claim is not None
    assert (check.permit.probe, check.claim.account, check.claim.target) == (True, True, True)
    assert check.claim.permit is not None
    assert check.claim.permit.probe
    Gate("alone").hasten(0.0)


def availability(gate: Gate, now: float) -> float | None:
    return gate.read(now, full=True).windows[2].availability


@pytest.mark.parametrize("kind", [K.NOT_FOUND, K.AUTH])
def test_a_lock_that_a_hastened_check_lifts_was_an_outage_until_then(kind):
    gate = Gate("t")
    succeed(gate, 0.5)
    fail(gate, 1.0, kind)
    gate.hasten(11.0)
    succeed(gate, 11.0)
    assert availability(gate, 100.5) == pytest.approx(0.9)


def test_a_lock_that_was_looked_at_is_no_outage_of_the_account():
    gate = Gate("t")
    succeed(gate, 0.5)
    fail(gate, 1.0, K.NOT_FOUND)
    assert availability(gate, 2.0) == pytest.approx(1 / 3)
    gate.hasten(11.0)
    succeed(gate, 11.0)
    assert availability(gate, 100.5) == pytest.approx(0.9)


def test_anothers_lock_of_the_account_is_an_outage_until_a_reading_finds_it_open():
    _, one, two = pair()
    succeed(two, 0.0)
    fail(one, 0.0, K.AUTH)
    assert availability(two, 10.0) == 0.0
    one.reset()
    assert availability(two, 20.0) == 0.0
    assert availability(two, 40.0) == pytest.approx(0.5)


def test_an_accounts_circuit_that_hastened_probes_close_was_an_outage_until_then():
    _, one, two = pair()
    succeed(one, 0.0)
    fail(one, 0.0, K.CONNECT), fail(one, 0.0, K.CONNECT, chance=1.0)  # until 10
    one.hasten(1.0)
    succeed(two, 1.0)
    assert [c.state for c in succeed(one, 1.0)] == ["circuit closed"]
    assert availability(one, 100.0) == pytest.approx(0.99)


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_heir_shares_circuit_and_record_but_not_account_and_limits():
    old, account, limiter = Gate("t", TWO), Account("new"), Limiter("new")
    heir = old.under(account, limiter)
    assert (heir.account, heir.limiter) == (account, limiter)
    assert (old.account is account, old.limiter is limiter) == (False, False)
    fail(old, 0.0), fail(old, 0.0)
    assert heir.admit(1.0, 1.0) == Refusal("circuit open", 5.0)


def test_new_settings_of_the_circuit_hold_for_the_target_and_its_account():
    _, one, two = pair(None)
    one.configure(TWO)
    fail(one, 0.0)
    assert [c.state for c in fail(one, 0.0)] == ["circuit open"]
    fail(two, 0.0, K.CONNECT)
    assert [c.scope for c in fail(two, 0.0, K.CONNECT)] == ["acme"]
    alone = Gate("t")
    alone.configure(TWO)
    fail(alone, 0.0)
    assert fail(alone, 0.0)


def test_a_new_key_forgets_locks_and_parks_and_keeps_the_circuit():
    gate = Gate("t", TWO)
    out = [admitted(gate) for _ in range(2)]
    gate.settle(out[0], Outcome(ProviderError.of(K.NOT_FOUND, "no")), 0.0)
    gate.settle(out[1], Outcome(ProviderError.of(K.QUOTA_DAY, "no")), 0.0)
    gate.lift()
    assert repr((gate.lock, gate.parked_until)) == "(Lock(open), 0.0)"
    gate.force_open()
    gate.lift()
    assert gate.admit(0.0, 1.0) == Refusal("circuit forced open", None)


def test_reset_opens_everything_and_says_so():
    account, one, two = pair()
    fail(one, 0.0), fail(one, 0.0)
    fail(two, 0.0, K.CONNECT), fail(two, 0.0, K.CONNECT)
    one.lock.put(0.0, 600.0, "no such model")
    account.put(0.0, 900.0, "bad key")
    one.parked_until = 500.0
    one.take_news()
    one.reset(10.0)
    assert one.take_news() == [Transition("one", "circuit closed", None, "by hand")], (
        "that it is well it has yet to show"
    )
    assert repr((one.parked_until, one.lock, account)) == "(0.0, Lock(open), Account(open))"
    assert account.breaker is not None
    assert account.breaker.state is CircuitState.CLOSED
    assert one.budget.tokens == one.budget.capacity
    assert one.read(20.0, full=True).windows[0].availability == pytest.approx(0.5), "ten of twenty seconds"


def test_what_was_held_until_a_reset_was_held_until_then():
    for kind in (K.AUTH, K.NOT_FOUND, K.QUOTA_DAY):
        gate = Gate("t")
        fail(gate, 0.0, kind)
        gate.reset(10.0)
        assert gate.read(20.0, full=True).windows[0].availability == pytest.approx(0.5), kind
    _, one, two = pair()
    fail(one, 0.0, K.CONNECT), fail(one, 0.0, K.CONNECT, chance=1.0)
    one.reset(5.0)
    assert one.read(20.0, full=True).windows[0].availability == pytest.approx(0.75)
    assert two.read(20.0).circuit is CircuitState.CLOSED


def test_what_an_operator_does_is_told_with_its_hand_and_only_when_the_time_is_known():
    gate = Gate("t")
    gate.force_open(1.0)
    assert gate.take_news() == [
        Transition("t", "circuit forced open", None, "by hand"),
        Transition("t", "unhealthy"),
    ]
    gate.force_close(2.0)
    assert gate.take_news()[0] == Transition("t", "circuit closed", None, "by hand")
    assert isinstance(gate.admit(2.0, 1.0), Admission)
    gate.disable_breaker(3.0)
    assert gate.take_news() == [Transition("t", "circuit disabled", None, "by hand")]
    gate.force_open(), gate.force_close(), gate.disable_breaker(), gate.reset()
    assert gate.take_news() == []


def test_closing_by_hand_leaves_parks_and_locks_and_forgets_the_failures():
    gate = Gate("t", TWO)
    gate.parked_until, gate.park_reason = 50.0, "throttled"
    gate.force_close(1.0)
    assert gate.admit(1.0, 1.0) == Refusal("parked: throttled", 50.0)
    gate.disable_breaker()
    gate.parked_until = 0.0
    assert [fail(gate, 2.0) for _ in range(9)] == [[]] * 9


# ── what targets share ───────────────────────────────────────────────────────────────────────────────────────────────


def test_targets_of_one_account_share_it_and_its_re_check_is_due_when_another_joins():
    gates = Gates()
    one = gates.gate("one", "acme", "m", TWO)
    assert one.account.name == "acme"
    fail(one, 1.0, K.AUTH)
    two = gates.gate("two", "acme", "n")
    assert two.account is one.account
    assert one.account.until == 1.0, "the key may be a new one: the next attempt finds out"
    assert gates.gate("three", "other", "m").account is not one.account
    fail(again := gates.gate("four", "fourth", "m", TWO), 0.0)
    assert [c.state for c in fail(again, 0.0)] == ["circuit open"]


def test_limits_are_shared_by_a_pool_or_else_by_one_model_of_one_account_with_the_same_figures():
    gates = Gates()
    plain = gates.gate("one", "acme", "m")
    assert (plain.limiter.limits, plain.limiter.name) == (NO_LIMITS, "one")
    assert gates.gate("two", "acme", "m").limiter is plain.limiter
    assert gates.limiter("two", "acme", "n", None) is not plain.limiter
    pool = Limits(concurrency=3, pool="shared")
    pooled = gates.limiter("three", "acme", "m", pool)
    assert pooled.name == "shared"
    assert gates.limiter("four", "other", "x", pool) is pooled
    with pytest.raises(ConfigurationError) as refused:
        gates.limiter("five", "other", "x", Limits(concurrency=4, pool="shared"))
    assert str(refused.value) == (
        "target 'five' is in the pool 'shared', whose limits are Limits(concurrency=3, pool='shared'), "
        "not Limits(concurrency=4, pool='shared')\n"
        "hint: give all targets of a pool the same limits, or this one another pool"
    )


# ── a fork ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_orphan_has_nothing_in_flight_nobody_in_line_and_what_was_learned():
    """What its parent has under way ends there; told of it here all the same, it counts nothing below none."""
    gate = Gate("t", TWO, limiter=Limiter("t", Limits(concurrency=2, queue=5)))
    fail(gate, 0.0)
    before = [admitted(gate), admitted(gate)]
    line = gate.line_up(0.0, None, lambda: None)
    assert isinstance(line, Ticket)
    assert (gate.health.in_flight, gate.limiter.in_flight, gate.limiter.waiting) == (2, 2, 1)
    gate.orphan()
    assert (gate.health.in_flight, gate.limiter.in_flight, gate.limiter.waiting) == (0, 0, 0)
    assert isinstance(fail(gate, 1.0), list)
    assert gate.state is CircuitState.OPEN, "the failure before the fork still counts"
    gate.breaker.reset()
    mine = admitted(gate, 2.0)
    assert (gate.health.in_flight, gate.limiter.in_flight) == (1, 1)
    for admission, left in ((mine, 0), (before[0], 0), (before[1], 0)):
        gate.settle(admission, Outcome(), 3.0)
        assert (gate.health.in_flight, gate.limiter.in_flight) == (left, left)
    ours = [admitted(gate, 4.0), admitted(gate, 4.0)]
    assert isinstance(gate.admit(4.0, 30.0), Refusal), "no more slots than were allowed"
    for admission, left in zip(ours, (1, 0), strict=True):
        gate.withdraw(admission, 5.0)
        assert (gate.health.in_flight, gate.limiter.in_flight) == (left, left)


def test_what_a_fork_must_see_to_is_every_lock_on_the_way():
    gate = Gate("t")
    assert gate.mutexes == (gate._lock, gate.account.mutex, gate.limiter._lock)
    assert gate.limiter.mutex is gate.limiter._lock
    assert gate.under(Account("other"), Limiter("other")).mutexes[0] is gate._lock
