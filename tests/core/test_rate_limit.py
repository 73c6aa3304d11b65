"""Rates, slots and the line before them: what may be asked of a target, and who goes when."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared_core import (
    AllTargetsFailed,
    ChatRequest,
    CircuitChanged,
    CircuitState,
    ConfigurationError,
    ErrorKind,
    Limits,
    ProviderError,
    Target,
    Timeouts,
    Usage,
    user,
)
from shared_core.providers.waits import windows
from shared_core.resilience.admission import Account, Admission, Gate, Gates, Outcome, Refusal
from shared_core.resilience.rate_limit import Lease, Limiter, Ticket, Verdict, Want, Window, gcra
from shared_core.testing import ScriptedProvider

K = ErrorKind
ONE = Want()
WALK = settings(max_examples=60, stateful_step_count=50, deadline=None)


def throttle(wait: float | None = None, kind: ErrorKind = K.THROTTLED) -> ProviderError:
    return ProviderError.of(kind, "slow down", retry_after_s=wait)


def granted(limiter: Limiter, now: float = 0.0, want: Want = ONE) -> Lease:
    lease = limiter.take(now, want)
    assert isinstance(lease, Lease), lease
    return lease


def refused(limiter: Limiter, now: float = 0.0, want: Want = ONE) -> Verdict:
    verdict = limiter.take(now, want)
    assert isinstance(verdict, Verdict), verdict
    return verdict


def lined_up(limiter: Limiter, now: float = 0.0, want: Want = ONE, holder: object = None) -> Ticket:
    ticket = limiter.queue(now, want, lambda: None, holder)
    assert isinstance(ticket, Ticket), ticket
    return ticket


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_minute": 0},
        {"requests_per_minute": math.inf},
        {"input_tokens_per_minute": -1},
        {"output_tokens_per_minute": math.nan},
        {"tokens_per_minute": "many"},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"burst_s": 0},
        {"queue": -1},
        {"queue": 2.5},
        {"adaptive": 1},
        {"learn": "yes"},
        {"pool": ""},
        {"pool": 3},
    ],
)
def test_impossible_limits_are_refused_where_they_are_built(wrong):
    with pytest.raises(ConfigurationError, match=f"Limits.{next(iter(wrong))}"):
        Limits(**wrong)


def test_limits_show_what_was_given_and_know_whether_there_is_a_figure():
    assert repr(Limits(requests_per_minute=60, queue=5)) == "Limits(requests_per_minute=60, queue=5)"
    assert repr(Limits()) == "Limits()"
    assert not Limits(pool="x").any
    assert Limits(concurrency=1).any
    assert Limits(tokens_per_minute=1).any


def test_a_target_takes_limits_as_a_mapping_and_names_the_nearest_option():
    assert Target("openai:m", limits={"concurrency": 2}).limits == Limits(concurrency=2)
    with pytest.raises(ConfigurationError, match="requests_per_minute"):
        Target("openai:m", limits={"request_per_minute": 2})


# ── one rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spoken_for", "cost", "burst", "at"),
    [
        (-math.inf, 1.0, 1.0, 100.0),  # never used
        (100.0, 1.0, 1.0, 100.0),
        (101.0, 1.0, 1.0, 101.0),  # no burst left: after the one before
        (101.0, 1.0, 2.0, 100.0),  # one ahead of the rate
        (101.5, 1.0, 2.0, 100.5),
        (100.0, 9.0, 2.0, 100.0),  # larger than all there ever is: when all of it is free
        (100.5, 9.0, 2.0, 100.5),
        (90.0, 1.0, 1.0, 100.0),  # what was not used in time is gone
    ],
)
def test_gcra(spoken_for, cost, burst, at):
    assert gcra(100.0, spoken_for, cost, burst) == at


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=60),
    st.integers(1, 20),
)
def test_gcra_grants_what_a_leaking_bucket_of_its_size_would(calls, capacity):
    """Differential: one time per limit, and a bucket of tokens that fills by one a second, agree on every call."""
    now, spoken_for, level = 0, -math.inf, float(capacity)
    for pause, cost in calls:
        now += pause
        level = min(float(capacity), level + pause)
        may = gcra(now, spoken_for, float(cost), float(capacity)) <= now
        assert may is (level >= min(cost, capacity))
        if may:
            spoken_for = max(spoken_for, now) + cost
            level -= cost


@pytest.mark.parametrize("per_minute", [1, 3, 5, 7, 11, 60, 997])
@pytest.mark.parametrize("now", [0.0, 5.1, 123_456.789])
def test_a_minutes_worth_may_start_at_once_and_then_one_in_each_interval(per_minute, now):
    limiter = Limiter("t", Limits(requests_per_minute=per_minute))
    for _ in range(per_minute):
        granted(limiter, now)
    assert refused(limiter, now).at == pytest.approx(now + 60 / per_minute)
    granted(limiter, now + 60 / per_minute + 1e-4)
    refused(limiter, now + 60 / per_minute + 1e-4)


def test_a_short_burst_keeps_an_even_pace():
    limiter = Limiter("t", Limits(requests_per_minute=60, burst_s=1))
    granted(limiter, 10.0)
    verdict = refused(limiter, 10.0)
    assert verdict.at == 11.0
    assert verdict.reason == "rate limit: 60 requests a minute"


@pytest.mark.parametrize(
    ("field", "want"),
    [
        ("input_tokens_per_minute", Want(60, 0)),
        ("output_tokens_per_minute", Want(0, 60)),
        ("tokens_per_minute", Want(40, 20)),
    ],
)
def test_tokens_are_estimated_before_and_corrected_after(field, want):
    limiter = Limiter("t", Limits(**{field: 60}))
    lease = granted(limiter, 0.0, want)
    assert refused(limiter, 0.0, want).at == 60.0
    limiter.release(lease, 0.0, Want(want.input // 2, want.output // 2))
    assert refused(limiter, 0.0, want).at == 30.0, "half of it came back"
    again = granted(limiter, 30.0, want)
    limiter.release(again, 30.0, Want(want.input * 2, want.output * 2))
    assert refused(limiter, 30.0, want).at == pytest.approx(150.0), "it took twice what was thought"


def test_a_request_larger_than_a_whole_minute_starts_when_all_of_it_is_free():
    limiter = Limiter("t", Limits(input_tokens_per_minute=100))
    granted(limiter, 0.0, Want(10, 0))
    assert refused(limiter, 0.0, Want(5_000, 0)).at == pytest.approx(6.0)
    granted(limiter, 6.0, Want(5_000, 0))


def test_a_request_is_four_characters_a_token_and_the_output_it_allows_or_that_is_usual():
    limiter = Limiter("t", Limits(concurrency=1))
    assert limiter.want(ChatRequest((user("x" * 41),), max_tokens=7)) == Want(11, 7)
    assert limiter.want(ChatRequest((user("x"),))) == Want(1, 1_000)
    for _ in range(60):
        limiter.release(granted(limiter), 0.0, Want(1, 50), answered=True)
    assert limiter.want(ChatRequest((user("x"),))).output == pytest.approx(50, abs=2)
    assert limiter.want(None) == Want()


# ── slots and the line ───────────────────────────────────────────────────────────────────────────────────────────────


def test_slots_are_leases():
    limiter = Limiter("t", Limits(concurrency=2))
    one, _ = granted(limiter), granted(limiter)
    verdict = refused(limiter)
    assert (verdict.at, verdict.guess, verdict.reason) == (math.inf, None, "all 2 slots are taken")
    limiter.release(one, 1.0)
    granted(limiter, 1.0)
    assert limiter.in_flight == 2


def test_a_refusal_says_how_long_the_wait_would_be():
    limiter = Limiter("t", Limits(concurrency=1))
    limiter.release(granted(limiter, 0.0), 4.0, answered=True)
    granted(limiter, 10.0)
    verdict = refused(limiter, 10.0)
    assert (verdict.guess, verdict.reason) == (14.0, "its one slot is taken: about 4.0 s")
    lined_up(limiter, 10.0)
    assert refused(limiter, 10.0).guess == 18.0


def test_the_line_is_first_come_first_served_and_nobody_overtakes_it():
    limiter = Limiter("t", Limits(concurrency=1))
    lease = granted(limiter)
    tickets = [lined_up(limiter) for _ in range(4)]
    assert [t.waiting for t in tickets] == [True] * 4
    assert limiter.waiting == 4
    for ticket in tickets:
        limiter.release(lease, 1.0)
        refused(limiter, 1.0)  # a newcomer, at the very moment a slot is free
        assert ticket.lease is not None
        lease = ticket.lease
    assert limiter.waiting == 0


def test_whoever_leaves_the_line_leaves_no_trace():
    limiter = Limiter("t", Limits(concurrency=1, requests_per_minute=3))
    lease = granted(limiter)
    first, second, third = (lined_up(limiter) for _ in range(3))
    limiter.leave(second, 0.0)
    limiter.release(lease, 0.0)
    assert first.lease is not None
    limiter.leave(first, 0.0)  # it had been given its turn in the same instant
    assert third.lease is not None
    assert (limiter.in_flight, limiter.waiting) == (1, 0)
    limiter.release(third.lease, 0.0)
    last = granted(limiter)  # only two requests of three have been made
    limiter.release(last, 0.0)
    assert refused(limiter).at == pytest.approx(20.0), "and now all three"


def test_a_full_line_refuses_at_once():
    limiter = Limiter("t", Limits(concurrency=1, queue=2))
    granted(limiter)
    lined_up(limiter), lined_up(limiter)
    verdict = limiter.queue(0.0, ONE, lambda: None)
    assert isinstance(verdict, Verdict)
    assert verdict.reason == "2 callers wait for a turn already"


def test_the_head_of_the_line_knows_when_to_look_and_the_others_are_woken():
    limiter = Limiter("t", Limits(requests_per_minute=60, burst_s=1))
    granted(limiter, 0.0)
    woken: list[str] = []
    first = limiter.queue(0.0, ONE, lambda: woken.append("first"))
    second = limiter.queue(0.0, ONE, lambda: woken.append("second"))
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    assert (first.wake_at, second.wake_at, woken) == (1.0, math.inf, ["first"])
    limiter.due(0.5)
    assert first.waiting
    limiter.due(1.0)
    assert (first.lease is not None, second.wake_at) == (True, 2.0)
    assert woken == ["first", "first", "second"]


def test_those_who_wait_for_a_target_that_will_not_take_them_are_sent_away():
    limiter = Limiter("t", Limits(concurrency=1))
    granted(limiter)
    mine, other = lined_up(limiter, holder="mine"), lined_up(limiter, holder="other")
    limiter.send_away("mine")
    assert (mine.away, mine.waiting, mine.lease) == (True, False, None)
    assert other.waiting
    assert limiter.waiting == 1


def test_after_a_wait_the_server_asked_for_everybody_has_a_turn_of_its_own():
    limiter = Limiter("t")
    limiter.hold(0.0, 10.0, 0.5)
    tickets = [lined_up(limiter, 1.0) for _ in range(10)]
    at = []
    for ticket in tickets:
        assert ticket.waiting
        now = ticket.wake_at
        if now == 10.0:  # the wait is over; the head is told a time of its own then
            limiter.due(now)
            now = ticket.wake_at
        limiter.due(now)
        assert ticket.lease is not None
        at.append(now)
    assert at == pytest.approx([10.05 + i * 0.1 for i in range(10)]), "spread over a tenth of the wait"


def test_a_hold_is_never_shortened_and_does_not_slow_later_callers():
    limiter = Limiter("t", Limits(concurrency=5))
    limiter.hold(0.0, 10.0, 0.0)
    limiter.hold(0.0, 3.0, 0.0)
    assert refused(limiter, 9.0).at == 10.0
    granted(limiter, 10.0)
    granted(limiter, 10.0)


# ── adapting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_that_is_over_within_a_microsecond_is_over():
    limiter = Limiter("a", Limits(concurrency=4))
    limiter.hold(-1.0, 1e-6, 0.0)
    assert limiter.peek(0.0) is None
    assert limiter.peek(-1e-6) is not None


def test_when_the_time_of_a_line_after_a_wait_is_up_the_rest_of_it_goes_at_once():
    limiter = Limiter("a", Limits(concurrency=4))
    limiter.hold(0.0, 10.0, 0.0)  # those in line go within the second after it
    first, second = lined_up(limiter), lined_up(limiter)
    limiter.due(10.75)  # late: half a second apart, the next turn would be at 11.25
    assert (first.waiting, second.waiting) == (False, True)
    limiter.due(11.0)
    assert not second.waiting


def test_a_vendor_that_has_plenty_again_at_the_end_of_its_wait_limits_nothing():
    limiter = Limiter("a")
    limiter.learn([Window("requests", 10, 100, 60.0)], 0.0)
    limiter.learn([Window("requests", 0, 100, 5.0)], 0.0)
    limiter.learn([Window("requests", 100, 100)], 4.9)
    assert limiter.active, "it said to wait until 5"
    limiter.learn([Window("requests", 100, 100)], 5.0)
    assert not limiter.active


def test_a_throttle_lowers_slots_and_rates_once_for_all_that_were_in_flight():
    limiter = Limiter("t", Limits(concurrency=10, requests_per_minute=60))
    assert limiter.throttled(5.0, started=4.0)
    assert (limiter.slots, limiter.pace) == (7, 0.7)
    assert not limiter.throttled(5.0, started=4.5), "it tells of the same event"
    assert (limiter.slots, limiter.pace) == (7, 0.7)
    assert limiter.throttled(6.0, started=5.5)
    assert (limiter.slots, limiter.pace) == (4, pytest.approx(0.49))
    assert limiter.throttled(8.0, started=7.0, ramp=True)
    assert (limiter.slots, limiter.pace) == (2, pytest.approx(0.245))


def test_a_call_that_began_when_limits_were_lowered_tells_of_another_event():
    limiter = Limiter("t", Limits(requests_per_minute=60))
    for at in (5.0, 6.0, 7.0, 8.0):
        assert limiter.throttled(at + 1, started=at)
    assert limiter.facts(9.0)["pace"] == 0.24


def test_a_lowered_pace_lets_fewer_start_at_once_and_later():
    limiter = Limiter("t", Limits(requests_per_minute=60))
    limiter.throttled(0.0, started=0.0, ramp=True)
    for _ in range(30):
        granted(limiter)
    assert refused(limiter).at == pytest.approx(2.0)


def test_slots_never_fall_below_one_nor_the_pace_below_a_tenth():
    limiter = Limiter("t", Limits(concurrency=3, requests_per_minute=60))
    for i in range(30):
        limiter.throttled(float(i), started=float(i))
    assert (limiter.slots, limiter.pace) == (1, 0.1)
    granted(limiter, 100.0)


def test_successes_raise_them_again_while_slots_are_used():
    limiter = Limiter("t", Limits(concurrency=8, requests_per_minute=6_000))
    limiter.throttled(0.0, started=0.0)
    assert limiter.slots == 5
    for _ in range(50):  # one call at a time does not show that there is room for more
        limiter.release(granted(limiter, 1.0), 1.0, answered=True)
    assert limiter.slots == 5
    leases: deque[Lease] = deque()
    for _ in range(60):
        while len(leases) < (limiter.slots or 0):
            leases.append(granted(limiter, 1.0))
        limiter.release(leases.popleft(), 1.0, answered=True)
    assert limiter.slots == 8
    before = limiter.pace
    limiter.release(leases.popleft(), 2.0, answered=True)
    assert 0.7 < before < limiter.pace <= 1.0


def test_a_throttle_long_ago_is_forgotten():
    limiter = Limiter("t", Limits(concurrency=8, requests_per_minute=60))
    limiter.throttled(0.0, started=0.0)
    limiter.release(granted(limiter, 601.0), 601.0, answered=True)
    assert (limiter.slots, limiter.pace) == (8, 1.0)


def test_without_figures_of_ours_or_when_told_so_nothing_is_lowered():
    assert not Limiter("t").throttled(1.0, started=0.0)
    steady = Limiter("t", Limits(concurrency=8, adaptive=False))
    assert not steady.throttled(1.0, started=0.0)
    assert steady.slots == 8


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {
                "x-ratelimit-limit-requests": "60",
                "X-RateLimit-Remaining-Requests": "0",
                "x-ratelimit-reset-requests": "6m0s",
            },
            [Window("requests", 0, 60, 360)],
        ),
        (
            {"x-ratelimit-remaining-tokens": "3", "x-ratelimit-reset-tokens": "1ms"},
            [Window("tokens", 3, None, 0.001)],
        ),
        (
            {
                "date": DATE,
                "anthropic-ratelimit-input-tokens-limit": "1000",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-01-01T00:00:30Z",
            },
            [Window("input-tokens", 0, 1000, 30)],
        ),
        ({"x-ratelimit-remaining": "5", "x-ratelimit-limit": "50"}, [Window("requests", 5, 50)]),
        (
            {"x-ratelimit-remaining-tokens-minute": "5", "x-ratelimit-reset-tokens-minute": "12.5"},
            [Window("tokens", 5, None, 12.5)],
        ),
        ({"x-ratelimit-remaining-requests-day": "0"}, [Window("requests-day", 0)]),
        ({"ratelimit-remaining": "1", "ratelimit-limit": "0"}, [Window("requests", 1)]),
        ({"x-ratelimit-remaining-requests": "nan"}, []),
        ({"x-ratelimit-remaining-requests": "-1"}, []),
        ({"x-ratelimit-remaining-requests": "inf"}, []),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "-5s"}, [Window("requests", 0)]),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9d"}, [Window("requests", 0)]),
        ({"content-type": "text/html"}, []),
    ],
)
def test_windows_are_read_from_headers_in_every_vendors_form(headers, expected):
    assert list(windows(headers)) == expected


def test_an_empty_window_is_closed_until_it_is_full_again():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 0, 60, 30.0)], 100.0)
    verdict = refused(limiter, 129.9)
    assert (verdict.at, verdict.reason) == (130.0, "rate limit: the vendor has no requests left")
    granted(limiter, 130.0)


def test_a_window_without_a_limit_or_of_an_unknown_kind_counts_only_when_empty():
    limiter = Limiter("t")
    limiter.learn([Window("images", 3, None, 30.0), Window("images", 3, 10, 30.0)], 0.0)
    assert not limiter.active
    limiter.learn([Window("images", 0, None, 30.0)], 0.0)
    assert refused(limiter).at == 30.0
    limiter = Limiter("t")
    limiter.learn([Window("requests", 0)], 0.0)
    assert not limiter.active, "nobody knows when it ends"


def test_what_is_left_is_shared_out_among_calls_that_start_before_the_next_headers():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 2, 60, 58.0)], 0.0)
    granted(limiter), granted(limiter)
    assert refused(limiter).at == pytest.approx(1.0)
    limiter = Limiter("t")
    limiter.learn([Window("input-tokens", 100, 60_000)], 0.0)
    granted(limiter, 0.0, Want(80, 5_000))
    assert refused(limiter, 0.0, Want(80, 0)).at == pytest.approx(0.06)


def test_ample_windows_are_not_kept_in_mind():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 499, 500, 0.12), Window("tokens", 199_000, 200_000, 360.0)], 0.0)
    assert not limiter.active


def test_a_late_ample_reading_does_not_open_a_window_that_is_known_to_be_empty():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 0, 60, 30.0)], 0.0)
    limiter.learn([Window("requests", 40, 60, 20.0)], 0.1)
    assert refused(limiter, 1.0).at == 30.0


def test_a_days_window_has_room_for_one_long_before_it_is_full():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 0, 200, 86_400.0)], 0.0)
    assert refused(limiter).at == pytest.approx(432.0)


def test_learning_can_be_switched_off():
    limiter = Limiter("t", Limits(learn=False))
    limiter.learn([Window("requests", 0, 60, 30.0)], 0.0)
    assert not limiter.active


def test_a_limiter_rests_when_there_is_nothing_to_keep_to():
    limiter = Limiter("t")
    assert limiter.peek(0.0) is None
    limiter.learn([Window("requests", 0, 60, 30.0)], 0.0)
    assert limiter.active
    lease = granted(limiter, 31.0)
    limiter.release(lease, 31.2)
    assert limiter.active, "the one request it granted is still in the window"
    limiter.release(granted(limiter, 90.0), 95.0)
    assert not limiter.active


def test_reset_forgets_all_of_it_and_has_the_head_of_the_line_look_again():
    limiter = Limiter("t", Limits(concurrency=8))
    limiter.learn([Window("requests", 0, 60, 30.0)], 0.0)
    limiter.throttled(0.0, started=0.0)
    limiter.hold(0.0, 50.0, 0.0)
    woken: list[int] = []
    ticket = limiter.queue(0.0, ONE, lambda: woken.append(1))
    assert isinstance(ticket, Ticket)
    limiter.reset()
    assert ticket.wake_at == -math.inf
    assert len(woken) == 2
    limiter.due(0.0)
    assert ticket.lease is not None
    assert limiter.slots == 8


# ── the figures, exactly ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_state_of_a_limiter_is_told_as_plain_data():
    assert Limiter("t").facts(0.0) == {}
    limiter = Limiter("t", Limits(concurrency=2, requests_per_minute=60, tokens_per_minute=600))
    assert limiter.facts(5.0) == {"in_flight": 0, "slots": 2, "requests_left": 60, "tokens_left": 600}
    granted(limiter, 5.0, Want(100, 50)), granted(limiter, 5.0)
    lined_up(limiter, 5.0)
    limiter.learn([Window("input-tokens", 0, 60, 30.0), Window("requests", 3, 60, 57.0)], 5.0)
    limiter.throttled(5.0, started=5.0)
    assert limiter.facts(5.0) == {
        "in_flight": 2,
        "slots": 1,
        "waiting": 1,
        "pace": 0.7,
        "requests_left": 3,
        "tokens_left": 450,
        "input-tokens_left": 0,
    }
    assert limiter.facts(35.0)["input-tokens_left"] == 60
    assert limiter.facts(6.0)["tokens_left"] == 460
    assert repr(limiter) == (
        "Limiter(t: 2 in flight, 1 waiting, Limits(requests_per_minute=60, tokens_per_minute=600, concurrency=2))"
    )


def test_a_lease_that_was_not_used_goes_back_and_on_to_the_next_in_line():
    limiter = Limiter("t", Limits(concurrency=1, requests_per_minute=60))
    limiter.release(granted(limiter, 100.0), 100.0)
    lease = granted(limiter, 100.0)
    ticket = lined_up(limiter, 100.0)
    limiter.return_unused(lease, 100.0)
    assert ticket.lease is not None
    assert limiter.facts(100.0)["requests_left"] == 58, "two were made, the third went back"
    limiter.return_unused(ticket.lease, 100.0)
    assert limiter.facts(100.0)["requests_left"] == 59
    assert limiter.in_flight == 0
    unlimited = Limiter("u")
    waiter = lined_up(unlimited)
    unlimited.learn([Window("requests", 0, 60, 30.0)], 0.5)
    unlimited.return_unused(waiter.lease, 31.0)
    assert not unlimited.active, "it rests again"


def test_who_has_left_has_no_lease():
    limiter = Limiter("t", Limits(concurrency=1))
    ticket = lined_up(limiter)
    assert ticket.lease is not None
    assert ticket.away is False
    limiter.leave(ticket, 0.0)
    assert ticket.lease is None
    limiter.leave(ticket, 0.0)
    assert limiter.in_flight == 0


def test_a_full_lines_verdict_names_no_time():
    limiter = Limiter("t", Limits(concurrency=1, queue=0))
    assert limiter.queue(0.0, ONE, lambda: None) == Verdict(math.inf, "0 callers wait for a turn already")


def test_those_in_line_hear_of_a_new_wait_and_of_what_headers_say():
    limiter = Limiter("t", Limits(requests_per_minute=60, burst_s=1))
    granted(limiter)
    ticket = lined_up(limiter)
    assert ticket.wake_at == 1.0
    limiter.hold(0.0, 8.0, 0.0)
    assert ticket.wake_at == 8.0
    limiter.learn([Window("requests", 0, 60, 30.0)], 0.0)
    assert ticket.wake_at == 30.0
    limiter.due(30.0)
    assert ticket.lease is not None


def test_the_chance_of_a_wait_moves_the_first_turn_and_is_kept_when_it_is_only_heard_of_again():
    for again in (None, 0.25):
        limiter = Limiter("t")
        limiter.hold(0.0, 10.0, 0.75)
        limiter.hold(0.0, 20.0, again)
        ticket = lined_up(limiter)
        limiter.due(20.0)
        assert ticket.wake_at == pytest.approx(20.0 + 2.0 * (0.75 if again is None else 0.25))


def test_the_same_wait_told_again_changes_nothing():
    limiter = Limiter("t")
    limiter.hold(0.0, 20.0, 0.75)
    limiter.hold(5.0, 20.0, 0.25)
    ticket = lined_up(limiter)
    limiter.due(20.0)
    assert ticket.wake_at == pytest.approx(21.5)


def test_the_shortest_wait_is_spread_over_fifty_milliseconds_and_then_it_is_over():
    limiter = Limiter("t")
    limiter.hold(0.0, 0.1, 0.0)
    first, second = lined_up(limiter), lined_up(limiter)
    limiter.due(0.1)
    assert (first.lease is not None, second.wake_at) == (True, pytest.approx(0.125))
    limiter.due(0.16)
    third = lined_up(limiter, 0.16)
    assert second.lease is not None
    assert third.lease is not None


def test_reset_gives_back_the_full_pace_and_hears_of_the_next_throttle():
    limiter = Limiter("t", Limits(requests_per_minute=60))
    limiter.throttled(500.0, started=400.0)
    limiter.reset()
    assert limiter.pace == 1.0
    assert limiter.throttled(501.0, started=450.0), "what was forgotten does not excuse it"
    assert limiter.pace == 0.7


@pytest.mark.parametrize(
    ("limits", "after"),
    [
        (Limits(requests_per_minute=60), 0.7 + 0.3 / 42),
        (Limits(tokens_per_minute=60), 0.7 + 0.3 / 7),  # as if it were ten requests a minute
        (Limits(requests_per_minute=1), 1.0),
    ],
)
def test_the_pace_rises_by_what_was_cut_within_a_minutes_worth_of_successes(limits, after):
    limiter = Limiter("t", limits)
    limiter.throttled(0.0, started=0.0)
    limiter.release(granted(limiter, 1.0), 1.0)
    assert limiter.pace == 0.7, "a failure raises nothing"
    limiter.release(granted(limiter, 200.0), 200.0, answered=True)
    assert limiter.pace == pytest.approx(after)


def test_the_pace_rises_to_the_full_rate_and_no_further():
    limiter = Limiter("t", Limits(requests_per_minute=2))
    limiter.throttled(0.0, started=0.0)
    for i in range(1, 3):
        limiter.release(granted(limiter, 200.0 * i), 200.0 * i, answered=True)
    assert limiter.pace == 1.0


def test_of_three_slots_one_in_use_is_not_half():
    limiter = Limiter("t", Limits(concurrency=5))
    limiter.throttled(0.0, started=0.0)
    for _ in range(5):
        limiter.release(granted(limiter, 1.0), 1.0, answered=True)
    assert limiter.slots == 3


@pytest.mark.parametrize(("at", "pace"), [(600.0, 0.707), (600.1, 1.0)])
def test_a_throttle_is_remembered_for_ten_minutes(at, pace):
    limiter = Limiter("t", Limits(requests_per_minute=60))
    limiter.throttled(0.0, started=0.0)
    limiter.release(granted(limiter, at), at, answered=True)
    assert limiter.pace == pytest.approx(pace, abs=0.001)
    late = Limiter("t", Limits(requests_per_minute=60))
    late.throttled(400.0, started=300.0)
    late.release(granted(late, 401.0), 401.0, answered=True)
    assert late.pace < 0.71


@pytest.mark.parametrize(("others", "grows"), [(0, False), (1, True), (2, True)])
def test_slots_grow_when_half_of_them_were_in_use(others, grows):
    limiter = Limiter("t", Limits(concurrency=6))
    limiter.throttled(0.0, started=0.0)
    assert limiter.slots == 4
    leases = [granted(limiter, 1.0) for _ in range(others + 1)]
    for _ in range(4):  # one more for every four successes
        limiter.release(leases.pop(), 1.0, answered=True)
        leases.append(granted(limiter, 1.0))
    limiter.release(leases.pop(), 1.0, answered=True)
    assert limiter.slots == (5 if grows else 4)


@pytest.mark.parametrize(
    ("remaining", "limit", "kept"),
    [(10, 20, False), (9, 18, True), (9, 20, True), (3, 4, True), (4, 4, False), (11, 23, True), (12, 23, False)],
)
def test_half_a_window_and_ten_of_it_are_ample(remaining, limit, kept):
    limiter = Limiter("t")
    limiter.learn([Window("requests", remaining, limit, 10.0)], 0.0)
    assert limiter.active is kept
    if kept:
        limiter.learn([Window("requests", limit, limit, 10.0)], 1.0)
        assert "requests_left" not in limiter.facts(1.0)


def test_one_left_is_not_nothing_left():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 1, 60, 30.0)], 0.0)
    granted(limiter)
    assert refused(limiter).at == pytest.approx(30.0 / 59)


@pytest.mark.parametrize(("seconds", "at"), [(3600.0, 3600.0), (3601.0, 3601.0 / 100)])
def test_an_hour_is_the_longest_window_that_is_waited_for_whole(seconds, at):
    limiter = Limiter("t")
    limiter.learn([Window("requests", 0, 100, seconds)], 0.0)
    assert refused(limiter).at == pytest.approx(at)


def test_a_later_reading_says_anew_how_fast_a_window_fills():
    limiter = Limiter("t")
    limiter.learn([Window("requests", 1, 61, 60.0)], 0.0)
    limiter.learn([Window("requests", 0, 61, 4000.0)], 0.0)
    assert refused(limiter).at == pytest.approx(4000 / 61)
    limiter.learn([Window("requests", 1, 61)], 0.0)  # a minute, where nothing else is said
    assert limiter.facts(0.0)["requests_left"] == 0


def test_a_rate_that_is_used_up_is_named_with_the_pace_it_has_now():
    limiter = Limiter("t", Limits(requests_per_minute=60, output_tokens_per_minute=10))
    limiter.throttled(0.0, started=0.0)
    for _ in range(42):
        granted(limiter)
    assert refused(limiter).reason == "rate limit: 42 requests a minute"
    limiter = Limiter("t", Limits(requests_per_minute=60, output_tokens_per_minute=10))
    granted(limiter, 0.0, Want(0, 10))
    assert refused(limiter, 0.0, Want(0, 10)).reason == "rate limit: 10 output-tokens a minute"


def test_the_reason_that_holds_longest_is_the_one_that_is_told():
    limiter = Limiter("t", Limits(requests_per_minute=60, burst_s=1))
    granted(limiter)
    limiter.hold(0.0, 5.0, 0.0)
    assert refused(limiter) == Verdict(5.0, "the server asked to wait")
    limiter.learn([Window("tokens", 0, 10, 9.0)], 0.0)
    assert refused(limiter) == Verdict(9.0, "rate limit: the vendor has no tokens left")


def test_a_newcomer_behind_others_is_told_when_the_first_of_them_may_go():
    limiter = Limiter("t", Limits(requests_per_minute=60, burst_s=1))
    granted(limiter)
    lined_up(limiter)
    assert refused(limiter) == Verdict(math.inf, "rate limit: 60 requests a minute, 1 waiting", 1.0)
    assert refused(limiter, 1.5) == Verdict(math.inf, "others go first, 1 waiting")


def test_of_reasons_that_hold_as_long_the_first_is_told():
    limiter = Limiter("t", Limits(requests_per_minute=12, burst_s=1))
    granted(limiter)
    limiter.hold(0.0, 5.0, None)
    limiter.learn([Window("tokens", 0, 10, 5.0)], 0.0)
    assert refused(limiter) == Verdict(5.0, "the server asked to wait")
    ticket = lined_up(limiter)
    limiter.due(5.0)
    assert ticket.lease is not None, "without a chance the first goes when the wait is over"


def test_a_newcomer_is_told_when_the_first_in_line_may_go_and_not_when_it_might_itself():
    limiter = Limiter("t", Limits(input_tokens_per_minute=100))
    limiter.release(granted(limiter, 0.0, Want(100, 0)), 3.0, answered=True)
    lined_up(limiter, 0.0, Want(50, 0))
    verdict = refused(limiter, 0.0, Want(1, 0))
    assert verdict == Verdict(math.inf, "rate limit: 100 input-tokens a minute, 1 waiting", pytest.approx(30.0))


def test_a_guess_needs_slots_and_a_call_that_has_ended():
    limiter = Limiter("t", Limits(concurrency=2, requests_per_minute=2))
    limiter.release(granted(limiter, 0.0), 8.0, answered=True)
    limiter.release(granted(limiter, 8.0), 12.0, answered=True)
    two = limiter.queue(12.0, ONE, lambda: None)
    assert isinstance(two, Ticket)
    verdict = refused(limiter, 12.0)
    assert verdict.guess == two.wake_at == pytest.approx(30.0), "the rate holds longer than the slots would"
    mean = 8.0 + 0.2 * (4.0 - 8.0)
    limiter = Limiter("t", Limits(concurrency=2))
    limiter.release(granted(limiter, 0.0), 8.0, answered=True)
    limiter.release(granted(limiter, 8.0), 12.0, answered=True)
    granted(limiter, 12.0), granted(limiter, 12.0)
    assert refused(limiter, 12.0).guess == pytest.approx(12.0 + mean / 2)


def test_a_dimension_that_requests_take_nothing_of_only_closes():
    limiter = Limiter("t")
    limiter.learn([Window("images", 0, None, 30.0)], 0.0)
    assert refused(limiter, 29.0).at == 30.0
    granted(limiter, 30.0), granted(limiter, 30.0)
    assert limiter.facts(30.0) == {"images_left": 1}
    assert Want(3, 4).of("images") == 0


def test_it_does_not_rest_while_somebody_waits_or_is_in_flight_or_a_wait_is_not_over():
    limiter = Limiter("t")
    limiter.hold(0.0, 10.0, 0.0)
    ticket, other = lined_up(limiter), lined_up(limiter)
    limiter.leave(other, 1.0)
    assert limiter.active, "one waits, none in flight"
    limiter.due(10.0)
    assert ticket.lease is not None
    limiter.learn([], 10.1)
    assert limiter.active, "one in flight, none waits"
    limiter.release(ticket.lease, 10.2)
    assert limiter.active, "the wait was told of to be spread over a second"
    limiter.learn([], 11.0)
    assert limiter.active is False
    limiter.learn([Window("requests", 0, 60, 5.0)], 20.0)
    limiter.learn([], 25.0)
    assert limiter.active is False, "the window is full again"
    again = lined_up(limiter, 26.0)
    assert again.lease is not None, "nothing is left of the wait"


def test_what_is_not_said_to_be_an_answer_raises_nothing_and_teaches_nothing():
    limiter = Limiter("t", Limits(concurrency=1))
    limiter.release(granted(limiter, 0.0), 4.0, Want(1, 1))
    assert limiter.want(ChatRequest((user("x"),))).output == 1_000
    granted(limiter, 5.0)
    assert refused(limiter, 5.0).guess is None


def test_an_answers_time_is_measured_from_its_own_start():
    limiter = Limiter("t", Limits(concurrency=1))
    limiter.release(granted(limiter, 100.0), 103.0, answered=True)
    granted(limiter, 110.0)
    assert refused(limiter, 110.0) == Verdict(math.inf, "its one slot is taken: about 3.0 s", 113.0)


# ── walks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LimiterMachine(RuleBasedStateMachine):
    """Newcomers, a line, leavers, throttles and headers beside a model that keeps plain lists."""

    @initialize(slots=st.integers(1, 4), per_minute=st.integers(1, 40), burst=st.sampled_from([1.0, 7.0, 60.0]))
    def begin(self, slots: int, per_minute: int, burst: float) -> None:
        self.now = 50.0
        self.most, self.per_minute, self.burst = slots, per_minute, burst
        self.limiter = Limiter("t", Limits(concurrency=slots, requests_per_minute=per_minute, burst_s=burst, queue=5))
        self.out: list[Lease] = []
        self.line: list[Ticket] = []
        self.starts: list[float] = []

    def _settle_line(self) -> None:
        """Whoever has a turn has it in order: no one behind a waiting ticket has a lease."""
        while self.line and self.line[0].lease is not None:
            ticket = self.line.pop(0)
            assert ticket.lease is not None
            self.out.append(ticket.lease)
            self.starts.append(ticket.lease.started)
        assert all(ticket.waiting for ticket in self.line)

    @rule()
    def newcomer(self) -> None:
        got = self.limiter.take(self.now, ONE)
        if isinstance(got, Lease):
            assert not self.line, "nobody overtakes"
            self.out.append(got)
            self.starts.append(self.now)
        else:
            assert got.at > self.now
            assert self.limiter.peek(self.now) == got

    @rule()
    def line_up(self) -> None:
        got = self.limiter.queue(self.now, ONE, lambda: None)
        if isinstance(got, Verdict):
            assert len(self.line) == 5
        else:
            self.line.append(got)
        self._settle_line()

    @precondition(lambda self: self.out)
    @rule(which=st.randoms(use_true_random=False), answered=st.booleans())
    def release(self, which: random.Random, answered: bool) -> None:
        lease = self.out.pop(which.randrange(len(self.out)))
        self.limiter.release(lease, self.now, answered=answered)
        self._settle_line()

    @precondition(lambda self: self.line)
    @rule(which=st.randoms(use_true_random=False))
    def leave(self, which: random.Random) -> None:
        self.limiter.leave(self.line.pop(which.randrange(len(self.line))), self.now)
        self._settle_line()

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 7.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.limiter.due(self.now)
        self._settle_line()

    @precondition(lambda self: self.line)
    @rule()
    def head_waits_as_told(self) -> None:
        at = self.line[0].wake_at
        if at < math.inf:
            self.now = max(self.now, at)
            head = self.line[0]
            self.limiter.due(self.now)
            if head.waiting:
                assert head.wake_at > self.now, "it is told another time, or a slot is what it lacks"
            self._settle_line()

    @rule(ramp=st.booleans())
    def throttled(self, ramp: bool) -> None:
        self.limiter.throttled(self.now, self.now, ramp=ramp)

    @rule(remaining=st.integers(0, 50), reset=st.sampled_from([0.5, 5.0, 30.0]))
    def headers(self, remaining: int, reset: float) -> None:
        self.limiter.learn([Window("requests", remaining, 50, reset)], self.now)
        self._settle_line()

    @rule(seconds=st.sampled_from([1.0, 20.0]), chance=st.floats(0, 0.99))
    def hold(self, seconds: float, chance: float) -> None:
        self.limiter.hold(self.now, self.now + seconds, chance)

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "limiter"):
            return
        limiter = self.limiter
        assert limiter.in_flight == len(self.out)
        assert limiter.waiting == len(self.line) <= 5
        assert 1 <= (limiter.slots or 0) <= self.most
        assert 0.1 <= limiter.pace <= 1.0
        # In no span of time did more start than the burst and the rate allow.
        room = self.per_minute * self.burst / 60
        for i, since in enumerate(self.starts):
            started = len(self.starts) - i
            assert started <= max(1.0, room) + (self.starts[-1] - since) * self.per_minute / 60 + 1e-3

    def teardown(self) -> None:
        """Time and free slots let everybody go in the end: nobody is forgotten."""
        if not hasattr(self, "limiter"):
            return
        for _ in range(200):
            if not self.line:
                break
            for lease in self.out:
                self.limiter.release(lease, self.now)
            self.out.clear()
            self.now += 31.0
            self.limiter.due(self.now)
            self._settle_line()
        assert not self.line


LimiterMachine.TestCase.settings = WALK
TestLimiterWalk = LimiterMachine.TestCase


# ── at the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


def admitted(gate: Gate, now: float = 0.0) -> Admission:
    admission = gate.admit(now, 30.0)
    assert isinstance(admission, Admission), admission
    return admission


def refusal(gate: Gate, now: float = 0.0) -> Refusal:
    got = gate.admit(now, 30.0)
    assert isinstance(got, Refusal), got
    assert gate.peek(now) == got
    return got


def fail(gate: Gate, error: ProviderError, now: float = 0.0):
    return gate.settle(admitted(gate, now), Outcome(error), now, 0.0)


def test_a_gate_refuses_for_now_what_its_limits_have_no_room_for():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1)))
    admission = admitted(gate)
    assert refusal(gate) == Refusal("its one slot is taken", None, waits=True, line=True)
    gate.settle(admission, Outcome(), 1.0, usage=Usage(10, 20))
    admitted(gate, 1.0)


def test_without_a_line_nothing_is_worth_waiting_for_but_a_park():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1, queue=0)))
    admission = admitted(gate)
    assert refusal(gate) == Refusal("its one slot is taken", None)
    gate.settle(admission, Outcome(throttle(5.0)), 1.0)
    assert refusal(gate, 2.0) == Refusal("parked: throttled: slow down", 6.0, waits=True)


@pytest.mark.parametrize(
    ("outcome", "usage", "left"),
    [
        (Outcome(), Usage(10, 10), 80),
        (Outcome(), Usage(10, 10, estimated=True), 0),  # nobody reported it: the estimate stands
        (Outcome(throttle()), None, 100),  # refused before a token was read
        (Outcome(ProviderError.of(K.TIMEOUT, "")), None, 0),  # may have been used up all the same
        (Outcome(cancelled=True), None, 0),
    ],
)
def test_what_an_attempt_took_of_the_rates_is_known_when_it_ends(outcome, usage, left):
    gate = Gate("t", limiter=Limiter("t", Limits(tokens_per_minute=100, adaptive=False)))
    admission = gate.admit(0.0, 30.0, request=ChatRequest((user("x" * 200),), max_tokens=50))
    assert isinstance(admission, Admission)
    gate.settle(admission, outcome, 0.0, usage=usage)
    assert gate.limiter.facts(0.0)["tokens_left"] == left


def test_a_throttle_is_told_as_slowed_and_shows_in_health():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=10, requests_per_minute=60)))
    changes = fail(gate, throttle(5.0))
    assert [(c.state, c.until) for c in changes] == [("parked", 5.0), ("slowed", None)]
    assert changes[1].reason == "throttled: 70% of its rates, 7 slots"
    told = gate.read(6.0, full=True).facts["limits"]
    assert (told["slots"], told["in_flight"], told["pace"]) == (7, 0, 0.7)
    assert gate.read(6.0).available


def test_an_overload_lowers_limits_and_counts_for_the_circuit():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=10)))
    for i in range(5):
        fail(gate, ProviderError.of(K.OVERLOADED, "full", status=529), float(i))
    assert gate.limiter.slots == 1
    assert gate.state is CircuitState.OPEN


def test_a_target_that_is_only_busy_is_not_unhealthy():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1)))
    gate.settle(admitted(gate), Outcome(latency_s=1.0), 1.0)
    admitted(gate, 2.0)
    health = gate.read(2.0)
    assert (str(health.status), health.available) == ("HEALTHY", False)
    assert health.unavailable_reason == "its one slot is taken: about 1.0 s"
    assert health.retry_in_s == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [K.TRANSIENT, K.AUTH, K.NOT_FOUND])
def test_those_in_line_are_sent_away_when_a_circuit_opens_or_a_lock_falls(kind):
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=6)))
    out = [admitted(gate) for _ in range(6)]
    ticket = gate.line_up(0.0, None, lambda: None)
    assert isinstance(ticket, Ticket)
    for admission in out[:1] if kind is not K.TRANSIENT else out:
        # Its slot goes to the one in line, who finds the door shut and hands it on.
        gate.settle(admission, Outcome(ProviderError.of(kind, "no")), 1.0, 0.0)
    entered = gate.enter(ticket, 1.0, 30.0)
    assert isinstance(entered, Refusal)
    assert not entered.waits
    assert gate.limiter.in_flight == (5 if kind is not K.TRANSIENT else 0)


def test_a_place_in_line_is_refused_where_waiting_is_no_use():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1)))
    gate.force_open()
    assert gate.line_up(0.0, None, lambda: None) == Refusal("circuit forced open", None)
    gate.reset()
    fail(gate, ProviderError.of(K.NOT_FOUND, "no such model"))
    got = gate.line_up(0.0, None, lambda: None)
    assert isinstance(got, Refusal)
    assert got.reason.startswith("locked: not_found")


def test_whoever_waits_too_long_is_told_so_and_gives_nothing_back_twice():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1)))
    admitted(gate)
    ticket = gate.line_up(0.0, None, lambda: None)
    assert isinstance(ticket, Ticket)
    assert gate.enter(ticket, 9.0, 30.0) == Refusal("no turn came in time", None)
    gate.limiter.leave(ticket, 9.0)
    assert (gate.limiter.in_flight, gate.limiter.waiting) == (1, 0)


# ── locks and accounts ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "after", "what"), [(K.AUTH, 900.0, "account unlocked"), (K.NOT_FOUND, 600.0, "unlocked")]
)
def test_when_a_locks_time_is_over_one_attempt_checks_it_again(kind, after, what):
    gate = Gate("t")
    fail(gate, ProviderError.of(kind, "no"))
    check = admitted(gate, after)
    second = refusal(gate, after)
    assert second.reason.endswith("(being checked again)")
    assert second.retry_at == after + 30.0
    changes = gate.settle(check, Outcome(), after + 1)
    assert [c.state for c in changes] == [what]
    admitted(gate, after + 1), admitted(gate, after + 1)


def test_a_re_check_that_fails_locks_again_and_one_that_says_nothing_leaves_the_next_one_to_check():
    gate = Gate("t")
    fail(gate, ProviderError.of(K.BILLING, "unpaid"))
    check = admitted(gate, 900.0)
    gate.settle(check, Outcome(cancelled=True), 901.0)
    check = admitted(gate, 901.0)
    refusal(gate, 901.0)
    gate.settle(check, Outcome(ProviderError.of(K.TRANSIENT, "down")), 902.0)
    check = admitted(gate, 902.0)
    changes = gate.settle(check, Outcome(ProviderError.of(K.BILLING, "still unpaid")), 903.0)
    assert [(c.state, c.until) for c in changes] == [("account locked", 1803.0)]
    assert refusal(gate, 1802.0).reason == "account locked: billing: still unpaid"


def test_a_re_check_that_is_lost_frees_the_lock_when_its_lease_is_over():
    gate = Gate("t")
    fail(gate, ProviderError.of(K.AUTH, "no"))
    admitted(gate, 900.0)
    refusal(gate, 929.9)
    admitted(gate, 930.0)


def test_a_new_key_is_another_account_and_the_same_key_put_in_again_is_checked_at_once():
    gates = Gates()
    one = gates.gate("one", "openai#a", "m")
    two = gates.gate("two", "openai#a", "n")
    fail(one, ProviderError.of(K.AUTH, "bad key"), 0.5)
    assert refusal(two, 1.0).reason.startswith("account locked")
    other = gates.gate("one", "openai#b", "m")
    admitted(other, 1.0), admitted(other, 1.0)
    again = gates.gate("one", "openai#a", "m")
    check = admitted(again, 2.0)
    assert refusal(two, 2.0).reason.endswith("(being checked again)")
    again.settle(check, Outcome(), 3.0)
    admitted(two, 3.0)


def unreachable(gate: Gate, now: float):
    return fail(gate, ProviderError.of(K.CONNECT, "refused"), now)


def test_what_cannot_be_reached_is_the_accounts_failure_where_several_targets_stand_behind_it():
    account = Account("acme")
    one, two = Gate("one", account=account), Gate("two", account=account)
    for i in range(3):
        unreachable(one, float(i))
    for i in range(2):
        changes = unreachable(two, 3.0 + i)
    assert [(c.scope, c.state) for c in changes] == [("acme", "circuit open")]
    for gate in (one, two):
        got = refusal(gate, 5.0)
        assert got.reason == "account's circuit open"
        assert not got.waits
        assert gate.state is CircuitState.OPEN
        assert gate.read(5.0).circuit is CircuitState.OPEN
    assert one.breaker.state is CircuitState.CLOSED
    # One probe for the whole account; two successes close it for everybody.
    until = account.breaker.open_until
    probe = admitted(one, until)
    assert refusal(two, until).reason == "account's circuit half-open, a probe is under way"
    one.settle(probe, Outcome(), until)
    probe = admitted(two, until)
    assert [c.state for c in two.settle(probe, Outcome(), until)] == ["circuit closed"]
    admitted(one, until), admitted(two, until)


def test_one_model_that_fails_is_no_failure_of_its_account():
    account = Account("acme")
    one, two = Gate("one", account=account), Gate("two", account=account)
    for i in range(5):
        fail(one, ProviderError.of(K.TRANSIENT, "500", status=500), float(i))
    assert one.state is CircuitState.OPEN
    admitted(two, 5.0)


def test_an_answer_of_any_kind_shows_that_the_account_can_be_reached():
    account = Account("acme")
    one, two = Gate("one", account=account), Gate("two", account=account)
    for i in range(12):
        unreachable(one, float(i)) if i % 3 else fail(two, ProviderError.of(K.BAD_REQUEST, "", status=400), float(i))
        if account.breaker.state is not CircuitState.CLOSED:
            break
    # Never five in a row; but two of three in a minute are more than half of at least five.
    assert i == 4
    account.breaker.reset()
    for i in range(40):
        fail(two, ProviderError.of(K.BAD_REQUEST, "", status=400), 100.0 + i)
        if i % 2:
            unreachable(one, 100.0 + i)
    assert account.breaker.state is CircuitState.CLOSED


def test_a_target_alone_behind_its_account_has_one_circuit():
    gate = Gate("t")
    for i in range(5):
        unreachable(gate, float(i))
    assert gate.account.breaker is None
    assert gate.breaker.state is CircuitState.OPEN


def test_reset_opens_locks_and_circuits_of_the_account_too():
    account = Account("acme")
    one, two = Gate("one", account=account), Gate("two", account=account)
    for i in range(5):
        unreachable(one, float(i))
    fail_at = account.breaker.open_until
    assert fail_at is not None
    two.reset(6.0)
    fail(one, ProviderError.of(K.FORBIDDEN, "no"), 6.0)
    fail(two, ProviderError.of(K.AUTH, "no"), 6.0)
    one.reset(7.0)
    admitted(one, 7.0), admitted(two, 7.0)


def test_targets_of_one_pool_share_limits_and_must_agree_on_them():
    gates = Gates()
    pool = Limits(concurrency=1, pool="shared")
    one, two = gates.gate("one", "a", "m", limits=pool), gates.gate("two", "b", "n", limits=pool)
    admitted(one)
    refusal(two)
    with pytest.raises(ConfigurationError, match="pool 'shared'"):
        gates.gate("three", "c", "o", limits=Limits(concurrency=2, pool="shared"))


def test_one_model_of_one_account_is_one_bucket_and_another_model_is_not():
    gates = Gates()
    limits = Limits(requests_per_minute=1)
    one, twin = gates.gate("one", "a", "m", limits=limits), gates.gate("twin", "a", "m", limits=limits)
    other, stranger = gates.gate("other", "a", "n", limits=limits), gates.gate("stranger", "b", "m", limits=limits)
    admitted(one)
    refusal(twin)
    admitted(other), admitted(stranger)


# ── through the router ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_target_that_is_used_up_is_passed_over_without_a_packet(bench, face):
    b = bench("a", "b", targets=[{"limits": {"requests_per_minute": 3}}, {}])
    served = [face(b.router).finished.target for _ in range(5)]
    assert served == ["a", "a", "a", "b", "b"]
    assert b.calls == [3, 2]
    skips = b.router.last.skips
    assert [(s.target, s.reason) for s in skips] == [("a", "rate limit: 3 requests a minute")]
    assert b.router.explain("Hello").notes["a"].startswith("rate limit: 3 requests a minute, for 20.0 s more")
    b.clock.advance(20.1)
    assert face(b.router).finished.target == "a"


def test_when_nobody_else_is_free_the_caller_waits_its_turn(bench, face):
    b = bench("a", limits=Limits(requests_per_minute=2))
    for _ in range(2):
        face(b.router)
    begun = b.clock.monotonic()
    got = face(b.router)
    assert got.error is None
    assert b.clock.monotonic() - begun == pytest.approx(30.0)
    assert got.fallback["waited_s"] == pytest.approx(30.0)
    assert b.calls == [3]


def test_a_wait_that_the_deadline_does_not_allow_is_refused_at_once_and_says_how_long(bench, face):
    b = bench("a", limits=Limits(requests_per_minute=1), timeouts=Timeouts(total=10))
    face(b.router)
    begun = b.clock.monotonic()
    got = face(b.router)
    assert isinstance(got.error, AllTargetsFailed)
    assert got.error.retry_after_s == pytest.approx(60.0)
    assert "rate limit: 1 requests a minute" in str(got.error)
    assert (b.clock.monotonic(), b.calls) == (begun, [1])


def test_without_a_line_nobody_waits(bench, face):
    b = bench("a", limits=Limits(requests_per_minute=1, queue=0))
    face(b.router)
    assert isinstance(face(b.router).error, AllTargetsFailed)
    assert b.clock.sleeps == []


def test_of_two_used_up_targets_the_one_that_is_free_sooner_is_waited_for(bench, face):
    b = bench("a", "b", targets=[{"limits": {"requests_per_minute": 1}}, {"limits": {"requests_per_minute": 2}}])
    assert [face(b.router).finished.target for _ in range(4)] == ["a", "b", "b", "b"]
    assert b.clock.sleeps == [pytest.approx(30.0)]


def test_tokens_count_as_they_are_reported(bench, face):
    b = bench("word " * 9 + "word", "b", targets=[{"limits": {"output_tokens_per_minute": 1_000}}, {}])
    served = [face(b.router).finished.target for _ in range(5)]
    assert served == ["a"] * 5, "each was thought to take all of it, and took ten tokens"


def test_a_throttled_targets_callers_do_not_come_back_as_one_herd(bench):
    """Twenty callers wait for the end of the same 429; each of them has a moment of its own, in the order they came."""
    b = bench(throttle(20.0), "b")
    b.router.invoke("Hello")
    gate = b.router._fleet.routes[0].gate
    now = b.clock.monotonic()
    tickets = [gate.line_up(now, None, lambda: None) for _ in range(20)]
    at = []
    for ticket in tickets:
        while ticket.waiting:
            now = ticket.wake_at
            gate.limiter.due(now)
        at.append(now)
    assert at == sorted(at)
    assert len(set(at)) == 20
    assert at[0] >= b.clock.monotonic() + 20.0
    assert at[-1] <= b.clock.monotonic() + 22.0


def test_a_retry_is_not_lost_while_its_target_has_no_room(bench, face):
    """The first try took all there is in a minute: the retry comes after it, not never."""
    b = bench((throttle(), "answer"), limits=Limits(requests_per_minute=1))
    got = face(b.router)
    assert (got.error, b.calls) == (None, [2])
    assert got.fallback["waited_s"] == pytest.approx(60.0, rel=0.05)


def test_a_lock_is_told_shown_and_lifted_by_a_re_check(bench, face):
    """Everybody sees the same: metadata, `explain`, `health`, events; and the target is back by itself."""
    seen: list[CircuitChanged] = []
    b = bench(
        (K.NOT_FOUND, "here it is"), "b", on_event=lambda e: seen.append(e) if type(e) is CircuitChanged else None
    )
    assert face(b.router).finished.target == "b"
    got = face(b.router)
    assert got.fallback["skipped"] == [{"target": "a", "reason": "locked: not_found: scripted not_found"}]
    assert b.router.explain("Hello").notes["a"] == "locked: not_found: scripted not_found, for 600.0 s more"
    health = b.router.health()["a"]
    assert (health.available, health.retry_in_s, health.locked_for_s) == (False, 600.0, 600.0)
    b.clock.advance(600.0)
    assert face(b.router).text == "here it is"
    assert b.router.health()["a"].available
    b.router.flush_events()
    assert [(e.scope, e.state) for e in seen] == [("a", "locked"), ("a", "unlocked")]


def test_a_target_that_is_put_in_again_is_asked_at_once_though_its_account_was_locked(bench, face):
    b = bench(K.AUTH, "b")
    face(b.router)
    assert "account locked" in face(b.router).fallback["skipped"][0]["reason"]
    b.router.replace("a", Target(provider=ScriptedProvider("good key", name="a", clock=b.clock), name="a"))
    assert face(b.router).text == "good key"


def test_reset_opens_a_used_up_target(bench, face):
    b = bench("a", "b", targets=[{"limits": {"concurrency": 4}}, {}])
    gate = b.router._fleet.routes[0].gate
    gate.learn([Window("requests", 0, 60, 40.0)], b.clock.monotonic())
    assert face(b.router).finished.target == "b"
    assert b.router.health()["a"].status == "UNKNOWN", "busy is not sick"
    b.router.reset("a")
    assert face(b.router).finished.target == "a"
