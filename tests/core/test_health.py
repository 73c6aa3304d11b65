"""What is remembered of a target: windows of time, outages, changes, percentiles, drift, and its status in one word."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import ChatRequest, HealthStatus, ProviderError, Router, Target, user
from shared_core.errors import ErrorKind as K
from shared_core.resilience.admission import Account, Admission, Gate, Outcome
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.drift import MEASURED, Drift
from shared_core.resilience.health import HealthRecord, HealthReport
from shared_core.resilience.windows import Outages, Ranked, Tally
from shared_core.routing.strategies import DRIFT_COSTS, EXPLORE_EVERY, STRATEGIES, TargetView
from shared_core.telemetry.events import CircuitChanged, TargetRecovered, TargetUnhealthy
from shared_core.testing import ScriptedProvider, VirtualClock

# ── the last figures ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=80))
def test_the_last_figures_are_in_order_whenever_somebody_asks(keep, steps):
    window, figures = Ranked(keep), []
    for step in steps:
        if step is None:
            assert list(window.ranked()) == sorted(figures[-keep:])
        else:
            window.add(float(step))
            figures.append(float(step))
    assert list(window.ranked()) == sorted(figures[-keep:])
    assert list(window.values) == figures[-keep:]


# ── windows of time ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 4_000), st.booleans()), max_size=60),
    st.sampled_from([60.0, 300.0, 3600.0, 86_400.0]),
)
def test_a_tally_counts_what_ended_in_a_window_to_within_one_bucket(ends, seconds):
    tally, now, all_ends = Tally(), 0.0, []
    for pause, ok in ends:
        now += pause
        tally.count(now, ok=ok)
        all_ends.append((now, ok))
    bucket = 10.0 if seconds <= 300 else 300.0
    good, bad = tally.within(now, seconds)
    for want, got in ((True, good), (False, bad)):
        least = sum(ok is want for at, ok in all_ends if at > now - seconds)
        most = sum(ok is want for at, ok in all_ends if at > now - seconds - bucket - 10)
        assert least <= got <= most


def test_a_tally_forgets_what_is_older_than_a_day():
    tally = Tally()
    for minute in range(3 * 24 * 60):
        tally.count(minute * 60.0, ok=True)
    good, _ = tally.within(3 * 86_400.0, 86_400.0)
    assert 1440 <= good <= 1445
    assert len(tally._fine) <= 31
    assert len(tally._coarse) <= 289


def tallied(*ends: tuple[float, bool]) -> Tally:
    tally = Tally()
    for at, ok in ends:
        tally.count(at, ok=ok)
    return tally


def test_a_window_of_minutes_is_counted_in_tens_of_seconds_and_a_longer_one_in_fives_of_minutes():
    assert Tally().within(10.0, 60.0) == (0, 0)
    for later in ([], [(69.0, True)]):  # in the bucket that is being filled, and in one that is full
        tally = tallied((5.0, True), (5.0, False), (9.9, False), *later)
        here = len(later)
        assert tally.within(69.9, 60.0) == (1 + here, 2)
        assert tally.within(70.0, 60.0) == (here, 0), "its ten seconds have gone by"
    tally = tallied((5.0, True), (310.0, False))
    assert tally.within(310.0, 300.0) == (0, 1)
    assert tally.within(311.9, 301.0) == (1, 1), "to within five minutes"
    assert tally.within(600.9, 301.0) == (1, 1)
    assert tally.within(601.0, 301.0) == (0, 1)
    assert tallied((5.0, True), (299.0, True), (302.0, True), (599.0, True), (3000.0, False)).within(
        3599.9, 3300.0
    ) == (
        4,
        1,
    )


def test_ends_in_the_same_ten_seconds_add_up():
    tally = tallied((5.0, True), (5.0, True), (6.0, False), (6.0, False), (7.0, True))
    assert tally.within(8.0, 60.0) == (3, 2)


@pytest.mark.parametrize("seconds", [60.0, 3600.0])
def test_each_span_of_a_tally_counts_its_own(seconds):
    tally = tallied(*((10.0 * n, n % 3 == 0) for n in range(6)))
    assert tally.within(50.0, seconds) == (2, 4)


def test_an_outage_begins_with_the_first_word_of_it_and_ends_with_the_first_of_its_end():
    outages = Outages()
    outages.mended(5.0)
    outages.broken(10.0), outages.broken(20.0)
    assert outages.down_s(30.0, 100.0) == 20.0
    outages.mended(40.0), outages.mended(50.0)
    assert outages.down_s(60.0, 100.0) == 30.0
    assert outages.down_s(60.0, 25.0) == 5.0
    outages.broken(60.0)
    assert outages.down_s(61.0, 100.0) == 31.0


def test_the_last_five_hundred_and_twelve_outages_are_kept():
    outages = Outages()
    for n in range(600):
        outages.broken(10.0 * n), outages.mended(10.0 * n + 1.0)
    assert outages.down_s(6000.0, 6000.0) == 512.0


def test_a_hold_is_made_longer_and_never_shorter_and_one_that_was_over_is_another():
    outages = Outages()
    outages.hold("park", 10.0, 20.0)
    outages.hold("park", 12.0, 15.0)
    assert outages.down_s(100.0, 100.0) == 10.0
    outages.hold("park", 20.0, 25.0)
    assert outages.down_s(100.0, 100.0) == 15.0
    outages.hold("park", 40.0, 45.0)
    assert outages.down_s(100.0, 100.0) == 20.0
    outages.hold("lock", 43.0, 50.0)
    assert outages.down_s(100.0, 100.0) == 25.0, "time that two hold is counted once"


def test_a_hold_that_is_lifted_ends_then_but_neither_before_it_began_nor_after_it_was_over():
    for at, down in ((14.0, 4.0), (25.0, 10.0), (5.0, 0.0)):
        outages = Outages()
        outages.lift("park", 1.0)
        outages.hold("park", 10.0, 20.0)
        outages.lift("park", at)
        assert outages.down_s(100.0, 100.0) == down
        outages.hold("park", 60.0, 70.0)
        assert outages.down_s(65.0, 100.0) == down + 5.0, "of one that stands, what has gone by"


def brute(spans: list[tuple[float, float]], now: float, window: float) -> float:
    """The length of the union of whole-second spans, by counting seconds."""
    seconds = {s for a, b in spans for s in range(int(a), int(min(b, now)))}
    return float(sum(1 for s in seconds if s >= now - window))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["broken", "mended", "park", "lift"]), st.integers(0, 20)), max_size=30))
def test_outages_are_the_union_of_what_kept_calls_away(steps):
    outages, now = Outages(), 100
    spans: list[tuple[float, float]] = []
    broken: int | None = None
    park: list[int] | None = None
    for what, pause in steps:
        now += pause
        match what:
            case "broken":
                outages.broken(now)
                broken = now if broken is None else broken
            case "mended":
                outages.mended(now)
                if broken is not None:
                    spans.append((broken, now))
                    broken = None
            case "park":
                outages.hold("park", now, now + 10)
                if park is not None:
                    spans.append((park[0], park[1]))
                park = [now, now + 10]
            case "lift":
                outages.lift("park", now)
                if park is not None:
                    spans.append((park[0], min(park[1], now)))
                    park = None
    now += 7
    every = [*spans, *([(broken, now)] if broken is not None else []), *([tuple(park)] if park else [])]
    for window in (5, 30, 1000):
        assert outages.down_s(now, window) == brute(every, now, window)


# ── what a gate remembers ────────────────────────────────────────────────────────────────────────────────────────────


def fail(gate: Gate, kind: K, now: float, **fields: object) -> None:
    admission = gate.admit(now, 10.0)
    assert isinstance(admission, Admission)
    gate.settle(admission, Outcome(ProviderError.of(kind, "no", **fields)), now)


def succeed(gate: Gate, now: float, *, latency_s: float = 0.2, first_token_s: float | None = None) -> None:
    admission = gate.admit(now, 10.0)
    assert isinstance(admission, Admission), admission
    gate.settle(admission, Outcome(latency_s=latency_s, first_token_s=first_token_s), now)


def test_a_reading_has_the_median_the_95th_and_the_99th_percentile_of_the_last_hundred():
    gate = Gate("a")
    for i in range(250):
        succeed(gate, float(i), latency_s=float(i), first_token_s=i / 10)
    health = gate.read(250.0)
    assert (health.latency_p50_s, health.latency_p95_s, health.latency_p99_s) == (200.0, 245.0, 249.0)
    assert (health.first_token_p50_s, health.first_token_p95_s, health.first_token_p99_s) == (20.0, 24.5, 24.9)
    assert health.pace == gate.pace


def test_availability_is_the_share_of_time_in_which_a_circuit_was_closed():
    gate = Gate("a")
    succeed(gate, 0.0)
    for _ in range(4):
        fail(gate, K.TRANSIENT, 40.0)  # four of five
    opened = gate.breaker.open_until
    assert opened is not None
    succeed(gate, opened)
    succeed(gate, 60.0)  # closed again after 20 s
    windows = {w.seconds: w for w in gate.read(80.0, full=True).windows}
    assert windows[60.0].availability == pytest.approx(1 - 20 / 60)
    assert windows[3600.0].availability == pytest.approx(1 - 20 / 80)
    assert windows[3600.0].observed_s == 80.0
    assert (windows[300.0].calls, windows[300.0].success_rate) == (7, pytest.approx(3 / 7))
    assert gate.read(200.0, full=True).windows[0].availability == 1.0


def test_availability_of_a_target_that_was_never_asked_is_unknown():
    assert {w.availability for w in Gate("a").read(5.0, full=True).windows} == {None}
    assert {w.observed_s for w in Gate("a").read(5.0, full=True).windows} == {0.0}


def test_a_lock_and_a_park_are_told_apart_from_the_circuit():
    account = Account("key")
    locked, parked = Gate("locked", account=account), Gate("parked")
    fail(locked, K.AUTH, 10.0)
    fail(parked, K.THROTTLED, 10.0, retry_after_s=30.0)
    a, b = locked.read(15.0, full=True), parked.read(15.0, full=True)
    assert (a.locked_for_s, a.parked_for_s, a.circuit) == (895.0, None, CircuitState.CLOSED)
    assert a.lock_reason is not None
    assert a.lock_reason.startswith("auth")
    assert (b.locked_for_s, b.parked_for_s, b.circuit) == (None, 25.0, CircuitState.CLOSED)
    assert a.status is HealthStatus.UNHEALTHY
    assert b.status is HealthStatus.UNKNOWN, "that it is asked too much says nothing about its health"
    assert not a.available
    assert not b.available
    assert "locked 895 s" in str(HealthReport((a,)))
    assert "parked 25 s" in str(HealthReport((b,)))
    assert a.windows[0].availability == 0.0


def test_a_target_that_is_well_stays_healthy_while_it_is_parked():
    gate = Gate("a")
    succeed(gate, 1.0)
    fail(gate, K.THROTTLED, 2.0, retry_after_s=30.0)
    assert gate.read(3.0).status is HealthStatus.HEALTHY
    assert not gate.read(3.0).available


def test_a_lock_that_a_check_lifts_early_is_an_outage_no_longer():
    gate = Gate("a")
    succeed(gate, 0.0)
    fail(gate, K.AUTH, 40.0)  # locked for a quarter of an hour
    gate.hasten(50.0)
    succeed(gate, 50.0)  # the re-check
    assert gate.read(100.0, full=True).windows[1].availability == pytest.approx(0.9)
    assert gate.read(100.0).locked_for_s is None


def test_the_circuit_of_an_account_is_an_outage_of_its_targets():
    account = Account("key")
    gates = [Gate(name, account=account) for name in "ab"]
    succeed(gates[0], 0.0)
    for _ in range(4):
        fail(gates[0], K.CONNECT, 10.0)
    assert account.breaker is not None
    until = account.breaker.open_until
    assert until is not None
    window = gates[0].read(until, full=True).windows[1]
    assert window.availability == pytest.approx(10.0 / until)
    assert gates[0].read(until, full=True).windows[1].availability == window.availability, "looking changes nothing"


def test_another_targets_lock_of_the_account_counts_as_this_ones_outage():
    account = Account("key")
    one, other = Gate("one", account=account), Gate("other", account=account)
    succeed(other, 0.0)
    fail(one, K.BILLING, 10.0)
    assert other.read(20.0, full=True).windows[0].availability == pytest.approx(0.5)


def test_history_keeps_the_last_two_hundred_changes_in_order():
    gate, now = Gate("a"), 0.0
    for _ in range(300):
        now += 1
        gate.force_open(now)
        now += 1
        gate.reset(now)
    history = gate.read(now, full=True).history
    assert len(history) == 200
    assert [c.ago_s for c in history] == sorted((c.ago_s for c in history), reverse=True)
    assert {c.state for c in history} == {"circuit forced open", "circuit closed", "unhealthy", "recovered"}
    assert {c.reason for c in history if c.state.startswith("circuit")} == {"by hand"}


def test_a_report_lists_changes_of_all_targets_by_time():
    clock = VirtualClock()
    with Router([ScriptedProvider(name="a"), ScriptedProvider(name="b")], clock=clock) as router:
        router.force_open("b:script")
        clock.advance(5)
        router.force_open("a:script")
        clock.advance(1)
        rows = router.health().changes()
    opened = [(row["target"], row["at"] - clock.time()) for row in rows if row["state"] == "circuit forced open"]
    assert opened == [("b:script", -6.0), ("a:script", -1.0)]


def test_one_failure_makes_nobody_ill_and_five_do_once():
    gate, told = Gate("a"), []
    for i in range(7):
        admission = gate.admit(float(i), 1.0)
        if isinstance(admission, Admission):
            gate.settle(admission, Outcome(ProviderError.of(K.TRANSIENT, "no")), float(i))
        told.append([change.state for change in gate.take_news()])
    assert told[:4] == [[], [], [], []]
    assert [t for t in told if t] == [["unhealthy"]]


def test_observers_hear_once_of_illness_and_once_of_recovery():
    clock, seen = VirtualClock(), []
    sick = ScriptedProvider(*[K.TRANSIENT] * 5, "ok", name="a")
    with Router(
        [sick, ScriptedProvider(name="b")],
        clock=clock,
        retry={"same_target": 0},
        on_event={"target_unhealthy": seen.append, TargetRecovered: seen.append, CircuitChanged: seen.append},
    ) as router:
        for _ in range(6):
            router.invoke("Hi")
        clock.advance(60)
        for _ in range(3):
            router.invoke("Hi")
        assert router.flush_events()
        assert router.health()["a:script"].status is HealthStatus.HEALTHY
    told = [e.state if isinstance(e, CircuitChanged) else type(e) for e in seen]
    assert told == ["circuit open", TargetUnhealthy, "circuit half-open", "circuit closed", TargetRecovered]


def test_a_half_open_circuit_is_checking():
    gate = Gate("a")
    for _ in range(5):
        fail(gate, K.TRANSIENT, 0.0)
    assert gate.read(1.0).status is HealthStatus.UNHEALTHY
    assert isinstance(gate.admit(60.0, 1.0), Admission)
    assert gate.read(60.0).status is HealthStatus.CHECKING


def test_a_check_counts_for_the_status_and_for_nothing_else():
    record = HealthRecord()
    assert record.status(CircuitState.CLOSED) is HealthStatus.UNKNOWN
    record.checking = 1
    assert record.status(CircuitState.CLOSED) is HealthStatus.CHECKING
    record.checking = 0
    record.probed(5.0, ok=True)
    assert record.status(CircuitState.CLOSED) is HealthStatus.HEALTHY
    record.probed(6.0, ok=False)
    assert record.status(CircuitState.CLOSED) is HealthStatus.UNHEALTHY
    record.success(0.1, None, 7.0)
    assert record.status(CircuitState.CLOSED) is HealthStatus.HEALTHY, "what callers meet is newer"
    assert (record.calls, record.success_rate) == (0, 1.0)


# ── drift ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Trace = Callable[[random.Random, int], float]
STATIONARY: dict[str, tuple[Trace, float]] = {
    # Times to a first token of a target that is as ever, and how many false alarms in 10,000 may be raised.
    "10 % noise": (lambda r, _: 0.4 * math.exp(r.gauss(0, 0.1)), 0.5),
    "50 % noise": (lambda r, _: 0.4 * math.exp(r.gauss(0, 0.5)), 3),
    "a factor of e": (lambda r, _: 0.4 * math.exp(r.gauss(0, 1.0)), 3),
    "half of the prompts eight times as long": (
        lambda r, _: (0.3 if r.random() < 0.5 else 2.4) * math.exp(r.gauss(0, 0.2)),
        1,
    ),
    "every fifth prompt eight times as long": (
        lambda r, _: (0.3 if r.random() < 0.8 else 2.4) * math.exp(r.gauss(0, 0.2)),
        10,
    ),
    "runs of ten long prompts": (lambda r, i: (0.3 if i // 10 % 2 else 1.2) * math.exp(r.gauss(0, 0.2)), 1),
    "one in fifty takes twenty times as long": (
        lambda r, _: 0.3 * math.exp(r.gauss(0, 0.3)) * (20 if r.random() < 0.02 else 1),
        1,
    ),
    "always the same": (lambda r, _: 0.5, 0),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_noise_is_no_drift(name):
    trace, most = STATIONARY[name]
    alarms, steps = 0, 0
    for seed in range(4):
        chance, drift, before = random.Random(seed), Drift(), False
        for i in range(5_000):
            drift.add(trace(chance, i))
            alarms += drift.drifting and not before
            before = drift.drifting
            steps += 1
    assert alarms * 10_000 / steps <= most


def until(drift: Drift, drifting: bool, trace: Callable[[int], float]) -> int:
    """How many more times it takes until the verdict is `drifting`; at most 200."""
    for n in range(1, 200):
        drift.add(trace(n))
        if drift.drifting is drifting:
            return n
    return 200


@pytest.mark.parametrize(
    ("noise", "slower", "within"), [(0.2, 2.0, 20), (0.2, 3.0, 14), (0.5, 3.0, 16), (0.5, 5.0, 10), (0.0, 2.0, 20)]
)
def test_a_target_that_becomes_slower_is_found_within_a_few_calls(noise, slower, within):
    took = []
    for seed in range(100):
        chance, drift = random.Random(seed), Drift()
        for _ in range(100):
            drift.add(0.4 * math.exp(chance.gauss(0, noise)))
        took.append(until(drift, True, lambda _: slower * 0.4 * math.exp(chance.gauss(0, noise))))  # noqa: B023  # at once
    assert sorted(took)[94] <= within, "in 95 of 100 cases"


def test_a_slow_ramp_is_found_too():
    chance, drift = random.Random(1), Drift()
    for _ in range(100):
        drift.add(0.4 * math.exp(chance.gauss(0, 0.2)))
    assert until(drift, True, lambda n: 0.4 * 1.04**n * math.exp(chance.gauss(0, 0.2))) < 40


def test_a_drift_is_over_when_it_is_over_and_a_new_pace_becomes_the_usual_one():
    chance, drift = random.Random(3), Drift()
    for _ in range(100):
        drift.add(0.4 * math.exp(chance.gauss(0, 0.2)))
    for _ in range(20):
        drift.add(1.6 * math.exp(chance.gauss(0, 0.2)))
    assert drift.drifting
    assert until(drift, False, lambda _: 0.4 * math.exp(chance.gauss(0, 0.2))) < 15
    for _ in range(400):
        drift.add(1.6 * math.exp(chance.gauss(0, 0.2)))
    assert not drift.drifting, "what stays is no drift for ever"


def test_nothing_is_said_of_few_times_or_of_times_that_make_no_sense():
    drift = Drift()
    for seconds in (0.0, 1e-9, 5.0, 1e6):
        drift.add(seconds)
    assert drift.ratio is None
    for _ in range(MEASURED):
        drift.add(0.0)
    assert drift.ratio is not None
    assert math.isfinite(drift.ratio)


def expected(times: Sequence[float]) -> tuple[float, float, float]:
    """From the description, another way round: the usual logarithm, that of late, and the noise."""
    usual, late, spread = [math.log(times[0])], math.log(times[0]), 0.0
    for n, seconds in enumerate(times[1:], 2):
        weight = 1 / n if n < 100 else 0.01
        sigma = max(0.25, spread * math.sqrt(math.pi / 2))
        far = math.log(seconds) - usual[-1]
        if n > 10:
            far = math.copysign(min(abs(far), 2.5 * sigma), far)
        late = 0.85 * late + 0.15 * (usual[-1] + far)
        spread = (1 - weight) * spread + weight * abs(far)
        usual.append(usual[-1] + weight * far)
    return usual[-1], late, max(0.25, spread * math.sqrt(math.pi / 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.2, 5.0), st.floats(1.0, 3.0)), min_size=1, max_size=6))
def test_drift_is_told_by_two_averages_of_logarithms_that_outliers_move_little(stretches):
    times = [pace * (noise if n % 2 else 1 / noise) for count, pace, noise in stretches for n in range(count)]
    drift, drifts = Drift(), False
    for n, seconds in enumerate(times, 1):
        drift.add(seconds)
        usual, late, sigma = expected(times[:n])
        if n < 20:
            assert (drift.ratio, drift.drifting) == (None, False)
            continue
        assert drift.ratio == pytest.approx(math.exp(late - usual))
        stands_clear = late - usual > max(math.log(1.5), 3.5 * sigma * math.sqrt(0.15 / 1.85))
        drifts = late - usual > math.log(1.2) if drifts else stands_clear
        assert drift.drifting is drifts


@pytest.mark.parametrize("outlier", range(1, 20))
def test_an_outlier_among_the_first_ten_weighs_in_full_and_later_ones_are_cut(outlier):
    times = [0.4 if n % 2 else 0.5 for n in range(30)]
    times[outlier] = 90.0
    drift = Drift()
    for seconds in times:
        drift.add(seconds)
    usual, late, _ = expected(times)
    assert drift.ratio == pytest.approx(math.exp(late - usual))


def test_drift_shows_how_many_times_slower_a_target_is_and_whether_that_is_drift():
    drift = Drift()
    for _ in range(19):
        drift.add(0.5)
    assert repr(drift) == "Drift(19 of 20 measured)"
    drift.add(0.5)
    assert repr(drift) == "Drift(×1.00)"
    for _ in range(20):
        drift.add(50.0)
    assert repr(drift).endswith(", drifting)")
    least = Drift()
    for _ in range(20):
        least.add(0.0)
    for _ in range(20):
        least.add(1e-4)
    assert least.ratio == 1.0, "a tenth of a millisecond is the least that is told apart"


def test_a_target_that_becomes_slower_is_demoted_before_it_fails_and_comes_back():
    clock = VirtualClock()
    pace = {"quick": 0.2, "steady": 0.9}

    def answer(name: str) -> Callable[[object], str]:
        def step(_: object) -> str:
            clock.advance(pace[name])
            return "one two"

        return step

    chance = random.Random(5)
    targets = [Target(provider=ScriptedProvider(answer(name), name=name), name=name) for name in pace]

    def ask() -> str:
        pace["steady"] = 0.9 * math.exp(chance.gauss(0, 0.1))
        clock.advance(1.0)
        stream = router.stream("Hi")
        list(stream)
        return str(stream.execution.attempts[-1].target)

    with Router(targets, strategy="performance", clock=clock, seed=1) as router:
        before = [ask() for _ in range(120)][-50:]
        assert before.count("quick") >= 45
        pace["quick"] = 0.7  # still the quicker of the two, and getting worse
        served = [ask() for _ in range(40)]
        assert served[-10:].count("steady") >= 8
        health = router.health()["quick"]
        assert health.drifting
        assert health.drift is not None
        assert health.drift > 1.5
        assert health.success_rate == 1.0, "it has not failed once"
        assert "drifts" in str(router.health())
        note = router.explain("Hi", strategy="performance").notes["quick"]
        assert "becomes slower" in note
        pace["quick"] = 0.2
        later = [ask() for _ in range(12 * EXPLORE_EVERY)]
        assert later[-20:].count("quick") >= 15, "it is looked at again, and comes back"


def test_whole_answers_have_no_first_token():
    clock = VirtualClock()
    provider = ScriptedProvider("one two", clock=clock, latency_s=3.0)
    with Router([Target(provider=provider, name="a")], clock=clock) as router:
        router.invoke("Hi")
        assert router.health()["a"].first_token_p50_s is None
        assert router.health()["a"].latency_p50_s == 3.0
        list(router.stream("Hi"))
        assert router.health()["a"].first_token_p50_s == 3.0


def view(name: str, first_token_s: float, *, drift: float = 1.0, turn: int = 0) -> TargetView:
    health = replace(
        HealthRecord().read(name, 0.0, CircuitState.CLOSED),
        calls=50,
        success_rate=1.0,
        first_token_p50_s=first_token_s,
        drift=drift,
        drifting=drift > 1.0,
    )
    return TargetView(Target(provider=ScriptedProvider(name=name), name=name), turn, health=lambda: health)


@pytest.mark.parametrize(
    ("other_s", "drift", "first"),
    [(0.9, 3.0, "other"), (2.0, 3.0, "other"), (2.5, 3.0, "drifts"), (0.9, 1.0, "drifts"), (9.0, 3.0, "drifts")],
)
def test_a_drifting_target_gives_way_to_one_that_is_not_out_of_all_proportion(other_s, drift, first):
    assert DRIFT_COSTS == 4.0  # 0.2 s, three times slower by now, and four times that: 2.4 s
    request = ChatRequest((user("Hi"),), streaming=True)
    order = STRATEGIES["performance"](request, [view("drifts", 0.2, drift=drift), view("other", other_s)])
    assert order[0].name == first


def test_a_drifting_target_is_looked_at_as_often_as_one_that_nobody_knows():
    request = ChatRequest((user("Hi"),), streaming=True)
    ahead = [
        turn
        for turn in range(100)
        if STRATEGIES["performance"](
            request, [view("drifts", 0.2, drift=3.0, turn=turn), view("other", 0.5, turn=turn)]
        )[0].name
        == "drifts"
    ]
    assert ahead == list(range(EXPLORE_EVERY - 1, 100, EXPLORE_EVERY))
