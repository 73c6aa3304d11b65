"""Gates: circuit, parking, account lock and health of one target, granted or refused together."""

from __future__ import annotations

import threading

import pytest

from shared_core.errors import ErrorKind, ProviderError
from shared_core.resilience.admission import Account, Admission, Gate, Outcome, Refusal
from shared_core.resilience.breaker import CircuitState, Rejection
from shared_core.resilience.health import HealthRecord, HealthStatus, percentile
from shared_core.resilience.locks import Lock
from shared_core.resilience.rate_limit import Limiter, Limits


def fail(gate: Gate, kind: ErrorKind, now: float = 0.0, *, wait: float | None = None, code: str | None = None, **kw):
    admission = gate.admit(now, 30.0)
    assert isinstance(admission, Admission), admission
    return gate.settle(admission, Outcome(ProviderError.of(kind, "no", retry_after_s=wait, code=code), **kw), now, 0.0)


def succeed(gate: Gate, now: float = 0.0, **kw):
    admission = gate.admit(now, 30.0)
    assert isinstance(admission, Admission), admission
    return gate.settle(admission, Outcome(**kw), now, 0.0)


TRIPS = {
    ErrorKind.TRANSIENT,
    ErrorKind.OVERLOADED,
    ErrorKind.CONNECT,
    ErrorKind.MALFORMED,
    ErrorKind.STREAM_CUT,
    ErrorKind.TIMEOUT,
    ErrorKind.UNKNOWN,
}


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_only_failures_of_the_target_itself_open_its_circuit(kind):
    gate = Gate("t")
    for i in range(5):
        gate.parked_until = gate.account.until = gate.lock.until = 0.0  # locks are another matter
        fail(gate, kind, float(i))
    assert (gate.state is CircuitState.OPEN) is (kind in TRIPS)


@pytest.mark.parametrize(
    ("kind", "seconds", "scope"),
    [
        (ErrorKind.AUTH, 900.0, "account locked"),
        (ErrorKind.BILLING, 900.0, "account locked"),
        (ErrorKind.FORBIDDEN, 600.0, "locked"),
        (ErrorKind.NOT_FOUND, 600.0, "locked"),
        (ErrorKind.NO_ENTITLEMENT, 900.0, "locked"),
        (ErrorKind.QUOTA_DAY, 3600.0, "parked"),
    ],
)
def test_some_errors_lock_at_once_without_counting_to_five(kind, seconds, scope):
    gate = Gate("t")
    (change,) = fail(gate, kind)
    assert scope in change.state
    assert change.until == seconds
    refused = gate.admit(seconds - 0.1, 1.0)
    assert isinstance(refused, Refusal)
    assert refused.retry_at == seconds
    assert not refused.waits, "no caller sits out what time does not mend"
    assert isinstance(gate.admit(seconds, 1.0), Admission)


@pytest.mark.parametrize("kind", [ErrorKind.THROTTLED, ErrorKind.RAMP])
def test_a_throttle_parks_exactly_as_long_as_the_server_asked(kind):
    gate = Gate("t")
    fail(gate, kind, 0.0, wait=7.0)
    refused = gate.admit(6.9, 1.0)
    assert isinstance(refused, Refusal)
    assert (refused.retry_at, refused.waits) == (7.0, True)
    assert isinstance(gate.admit(7.0, 1.0), Admission)
    assert gate.state is CircuitState.CLOSED


def test_a_throttle_that_names_no_wait_parks_nobody():
    gate = Gate("t")
    assert fail(gate, ErrorKind.THROTTLED) == []
    assert isinstance(gate.admit(0.0, 1.0), Admission)


def test_a_longer_wait_wins_over_the_default_lock():
    gate = Gate("t")
    fail(gate, ErrorKind.QUOTA_DAY, 0.0, wait=36_000.0)
    assert gate.parked_until == 36_000.0


def test_a_daily_quota_ends_when_the_server_says_and_a_locked_account_no_sooner_than_the_table():
    gate = Gate("t")
    fail(gate, ErrorKind.QUOTA_DAY, 0.0, wait=432.0)
    assert gate.parked_until == 432.0
    gate = Gate("t")
    fail(gate, ErrorKind.BILLING, 0.0, wait=1.0)
    assert gate.account.until == 900.0


def test_a_lock_is_never_shortened_by_a_later_shorter_one():
    gate = Gate("t")
    first, second = gate.admit(0.0, 1.0), gate.admit(0.0, 1.0)
    assert isinstance(first, Admission)
    assert isinstance(second, Admission)
    gate.settle(first, Outcome(ProviderError.of(ErrorKind.THROTTLED, "", retry_after_s=50.0)), 0.0)
    gate.settle(second, Outcome(ProviderError.of(ErrorKind.THROTTLED, "", retry_after_s=5.0)), 0.0)
    assert gate.parked_until == 50.0


def test_a_bad_key_closes_every_target_of_the_account_and_no_other():
    account = Account("acme")
    one, two, other = Gate("one", account=account), Gate("two", account=account), Gate("other")
    fail(one, ErrorKind.AUTH)
    refused = two.admit(1.0, 1.0)
    assert isinstance(refused, Refusal)
    assert "account locked: auth" in refused.reason
    assert not refused.waits
    assert isinstance(other.admit(1.0, 1.0), Admission)


def test_our_own_deadline_and_a_shortened_limit_do_not_count_against_the_target():
    gate = Gate("t")
    for code in ("deadline", "shortened") * 5:
        fail(gate, ErrorKind.TIMEOUT, code=code)
    assert gate.state is CircuitState.CLOSED
    assert gate.health.success_rate is None


def test_silence_keeps_the_circuit_open_for_longer():
    gate = Gate("t")
    now = 0.0
    for _ in range(5 + 4):  # five open it, four probes fail: 10, 20, 40, 80 and then 120 rather than 160 seconds
        admission = gate.admit(now, 1.0)
        assert isinstance(admission, Admission)
        gate.settle(admission, Outcome(ProviderError.of(ErrorKind.TIMEOUT, "")), now, 1.0)
        opened_at, now = now, gate.breaker.open_until or now
    assert now - opened_at == 120.0


def test_cancelling_counts_neither_as_failure_nor_as_success():
    gate = Gate("t")
    for _ in range(20):
        succeed(gate, cancelled=True)
    assert gate.state is CircuitState.CLOSED
    assert gate.health.success_rate is None
    assert gate.health.in_flight == 0
    assert gate.budget.tokens == 10.0


def test_settling_twice_is_a_bug_and_says_so():
    gate = Gate("t")
    admission = gate.admit(0.0, 1.0)
    assert isinstance(admission, Admission)
    gate.settle(admission, Outcome(), 0.0)
    with pytest.raises(RuntimeError, match="settled twice"):
        gate.settle(admission, Outcome(), 0.0)


def test_in_flight_counts_admissions_not_yet_settled():
    gate = Gate("t")
    admissions = [gate.admit(0.0, 1.0) for _ in range(3)]
    assert gate.health.in_flight == 3
    assert gate.read(0.0).in_flight == 3
    for admission in admissions:
        assert isinstance(admission, Admission)
        gate.settle(admission, Outcome(latency_s=1.0), 1.0)
    assert gate.health.in_flight == 0
    assert gate.health.calls == 3


@pytest.mark.parametrize(
    ("first_token", "others_closed", "opens"),
    [(21.0, True, True), (21.0, False, False), (20.0, True, False), (None, True, False)],
)
def test_slowness_counts_only_beyond_twenty_seconds_and_while_another_target_is_well(first_token, others_closed, opens):
    gate = Gate("t")
    for _ in range(5):
        succeed(gate, latency_s=30.0, first_token_s=first_token, others_closed=others_closed)
        gate.health = HealthRecord()  # as if it were its first
    assert (gate.state is CircuitState.OPEN) is opens


def test_slowness_is_measured_against_the_targets_own_median():
    gate = Gate("t")
    for _ in range(9):
        succeed(gate, first_token_s=10.0)
    for _ in range(8):
        succeed(gate, first_token_s=30.0, others_closed=True)  # slow, but not four times its median
    assert gate.state is CircuitState.CLOSED


def test_one_probe_among_twenty_threads():
    gate = Gate("t")
    for _ in range(5):
        fail(gate, ErrorKind.TRANSIENT)
    barrier, admitted = threading.Barrier(20), []

    def knock() -> None:
        barrier.wait()
        if isinstance(gate.admit(5.0, 30.0), Admission):
            admitted.append(1)

    threads = [threading.Thread(target=knock) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(admitted) == 1


def test_reset_lifts_circuit_parking_account_and_budget():
    gate = Gate("t")
    for _ in range(5):
        fail(gate, ErrorKind.TRANSIENT)
    gate.parked_until = gate.account.until = 1e9
    gate.reset()
    assert isinstance(gate.admit(0.0, 1.0), Admission)
    assert gate.allows_retry


def test_an_operator_can_close_a_target_and_switch_its_breaker_off():
    gate = Gate("t")
    gate.force_open()
    assert isinstance(gate.admit(1e9, 1.0), Refusal)
    gate.reset()
    gate.disable_breaker()
    for _ in range(20):
        fail(gate, ErrorKind.TRANSIENT)
    assert isinstance(gate.admit(0.0, 1.0), Admission)


def test_peek_agrees_with_admit_and_changes_nothing():
    gate = Gate("t")
    for _ in range(5):
        fail(gate, ErrorKind.TRANSIENT)
    refusal = gate.peek(1.0)
    assert refusal == gate.admit(1.0, 1.0)
    assert gate.peek(5.0) is None
    assert gate.state is CircuitState.OPEN, "peeking took no probe"


def test_health_reads_unknown_then_healthy_then_unhealthy_then_checking():
    gate = Gate("t")
    assert gate.read(0.0).status is HealthStatus.UNKNOWN
    assert gate.read(0.0).available
    succeed(gate, latency_s=0.2, first_token_s=0.1)
    health = gate.read(0.0)
    assert (health.status, health.success_rate, health.error_rate) == (HealthStatus.HEALTHY, 1.0, 0.0)
    assert (health.latency_p50_s, health.first_token_p50_s) == (0.2, 0.1)
    for _ in range(5):
        if gate.state is CircuitState.CLOSED:
            fail(gate, ErrorKind.TRANSIENT, 1.0)
    health = gate.read(2.0)
    assert health.status is HealthStatus.UNHEALTHY
    assert not health.available
    assert health.unavailable_reason == "circuit open"
    assert health.retry_in_s == pytest.approx(4.0)
    assert (health.last_error, health.last_error_ago_s) == ("transient", 1.0)
    gate.admit(6.0, 30.0)
    assert gate.read(6.0).status is HealthStatus.CHECKING


def test_health_of_a_target_whose_account_is_locked_is_unhealthy_though_no_call_counted():
    gate = Gate("t")
    fail(gate, ErrorKind.AUTH)
    assert gate.read(1.0).status is HealthStatus.UNHEALTHY


def test_health_keeps_the_last_hundred():
    record = HealthRecord()
    for _ in range(100):
        record.failure("x", 0.0)
    assert record.consecutive_failures == 100
    for i in range(50):
        record.success(float(i), None, now=float(i))
    assert record.success_rate == 0.5
    assert record.consecutive_failures == 0


def test_percentiles_are_nearest_rank():
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile(list(map(float, range(100))), 0.95) == 95.0


def test_a_lock_by_itself():
    lock = Lock()
    assert repr(lock) == "Lock(open)"
    assert (lock.until, lock.since, lock.reason, lock.checking_until) == (0.0, 0.0, "", 0.0)
    assert lock.refusal(0.0) is None
    assert lock.check(0.0, 5.0) is False
    assert lock.lift() is False
    lock.put(10.0, 20.0, "bad key")
    assert repr(lock) == "Lock('bad key' until 20)"
    assert (lock.since, lock.until) == (10.0, 20.0)
    assert lock.refusal(19.9) == Rejection("bad key", 20.0)
    lock.put(15.0, 18.0, "bad key again")
    assert (lock.since, lock.until, lock.reason) == (10.0, 20.0, "bad key again"), "never shortened"
    assert lock.refusal(20.0) is None
    assert lock.check(20.0, 5.0) is True
    assert lock.refusal(24.9) == Rejection("bad key again (being checked again)", 25.0)
    assert lock.refusal(25.0) is None
    lock.undecided()
    assert lock.checking_until == 0.0
    assert lock.refusal(20.0) is None
    lock.check(20.0, 5.0)
    lock.put(20.0, 30.0, "still")
    assert (lock.since, lock.until, lock.checking_until) == (20.0, 30.0, 0.0)
    lock.due()
    assert lock.checking_until == 0.0
    assert lock.refusal(20.0) is None
    assert lock.check(20.0, 5.0) is True
    lock.due()
    assert lock.refusal(20.5) is None, "whoever has changed something wants to know now"
    assert lock.lift() is True
    assert (lock.reason, lock.refusal(0.0)) == ("", None)
    lock.put(0.25, 0.5, "early")
    assert lock.lift() is True
    assert repr(Account("acme")) == "Account(open)"


def test_a_lease_goes_back_when_a_lost_probe_opens_the_circuit_again():
    gate = Gate("t", limiter=Limiter("t", Limits(concurrency=1, adaptive=False)))
    for i in range(5):
        fail(gate, ErrorKind.TRANSIENT, float(i))
    gate.limiter.return_unused(gate.admit(10.0, 5.0).lease, 10.0)  # the probe is lost, its slot is not
    refused = gate.admit(21.0, 5.0)
    assert isinstance(refused, Refusal)
    assert refused.reason == "circuit open"
    assert gate.limiter.in_flight == 0


def test_a_claim_goes_back_too():
    account = Account("acme")
    gate, _ = Gate("t", account=account), Gate("other", account=account)
    for i in range(5):
        fail(gate, ErrorKind.TRANSIENT, float(i), wait=None)
    gate.admit(10.0, 5.0)  # a probe that is lost
    for _ in range(5):
        account.put(19.0, 20.0, "bad key")
    assert isinstance(gate.admit(20.5, 5.0), Refusal)
    assert account.refusal(20.5) is None, "the re-check was not made, so the next one is it"


def test_an_attempt_that_is_withdrawn_gives_everything_back():
    account = Account("acme")
    gate = Gate("t", account=account, limiter=Limiter("t", Limits(concurrency=1, requests_per_minute=1)))
    Gate("other", account=account)
    for _ in range(3):
        admission = gate.admit(0.0, 30.0)
        assert isinstance(admission, Admission)
        gate.withdraw(admission, 0.0)
    assert (gate.health.calls, gate.health.in_flight, gate.limiter.in_flight) == (0, 0, 0)
    with pytest.raises(RuntimeError, match="settled twice"):
        gate.withdraw(admission, 0.0)
    account.put(0.0, 10.0, "bad key")
    gate.withdraw(gate.admit(10.0, 30.0), 10.0)
    assert account.refusal(10.0) is None, "the next one is the re-check"
    assert account.until == 10.0, "which is still to be made"


def test_a_probe_that_is_withdrawn_leaves_the_probe_to_the_next():
    gate = Gate("t")
    for i in range(5):
        fail(gate, ErrorKind.TRANSIENT, float(i))
    gate.withdraw(gate.admit(10.0, 30.0), 10.0)
    assert gate.state is CircuitState.HALF_OPEN
    assert isinstance(gate.admit(10.0, 30.0), Admission)
