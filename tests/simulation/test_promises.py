"""What the router promises, looked at in hundreds of random worlds and in some that are made for one promise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared_core import ChatRequest, CircuitState, ErrorKind, user
from shared_core._books import Books
from shared_core._watch import Watchdog
from shared_core.resilience.admission import Gate
from shared_core.resilience.breaker import CircuitBreaker, Permit
from shared_core.testing import BrownOut, Chaos, ClockStep, Flap, Load, Outage, RateLimitStorm, SimTarget, simulate
from tests.simulation.worlds import run, world

PRIMARY, SECOND, LOCAL = "openai:gpt-5-mini", "anthropic:claude-sonnet-4-5", "llamacpp:tiny"
TARGETS = [
    SimTarget(PRIMARY, latency=2.0),
    SimTarget(SECOND, latency=3.0, price=(3, 15)),
    SimTarget(LOCAL, latency=8.0, local=True, price=(0, 0)),
]
CHUNK = 25


@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_no_random_world_breaks_a_promise(first):
    """One end per request, by its deadline; nothing left over; the journal, the ledger and the wire count the same; no
    packet past a closed door, one probe at a time, no second bill after a money error; the exact text or an error."""
    for seed in range(first, first + CHUNK):
        report = run(seed)
        assert report.broken == (), f"python -m tests.simulation.worlds {seed}"
        assert report.requests == report.answered + report.failed + report.cancelled


@pytest.mark.parametrize("seed", range(12))
def test_steps_of_the_wall_clock_change_no_decision(seed):
    """An hour or a day, forward or back, again and again: every packet leaves at the same moment as without."""
    steps = [ClockStep(10.0 * n, amount) for n, amount in enumerate((3600, -86400, 86400, -3600) * 3)]
    happenings = [one for one in world(seed)["scenario"] if not isinstance(one, ClockStep)]
    still = run(seed, scenario=happenings, chaos=Chaos(delay=0.1, drop=0.05, cancel=0.1))
    stepped = run(seed, scenario=[*happenings, *steps], chaos=Chaos(delay=0.1, drop=0.05, cancel=0.1, clock_steps=5))
    assert stepped.digest == still.digest


@pytest.mark.parametrize(
    ("kind", "cap_s", "probe_s"),
    [
        ("overloaded", 30, 1),
        ("connect", 30, 1),
        ("transient", 30, 1),
        ("timeout", 120, 30),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_after_an_outage_the_primary_serves_again_within_its_cap(kind, cap_s, probe_s, seed):
    """The probe that was under way when it ended fails yet, then one open time passes, and the next probe is served."""
    outage = Outage(60, 360, kind=kind)
    report = simulate(TARGETS, [outage], seconds=600, load=Load(rps=2, streaming=1.0), seed=seed)
    back = report.serves_again(PRIMARY, 360)
    assert back is not None
    assert back <= probe_s + cap_s + 10, "ten seconds for callers to come by and for an answer to end"
    settled = report.calls_from(360 + probe_s + cap_s + 20)
    assert {call.served_by for call in settled} == {PRIMARY}
    assert report.availability == 1.0
    assert report.broken == ()


@pytest.mark.parametrize(
    ("kind", "most"), [("overloaded", 0.1), ("connect", 0.1), ("transient", 0.1), ("timeout", 1.1)]
)
@pytest.mark.parametrize("strategy", ["priority", "cost"])
def test_a_dead_target_costs_next_to_nothing(kind, most, strategy):
    """Through ten minutes of outage the dead target gets at most 1.1 packets per call, and far fewer if it says so."""
    report = simulate(TARGETS[:2], [Outage(0, 600, kind=kind)], seconds=600, strategy=strategy)
    assert report.packets_to(PRIMARY, 0, 600) <= most * report.requests
    assert report.broken == ()


@pytest.mark.parametrize("kind", ["billing", "auth", "no_entitlement"])
def test_a_money_error_is_seen_once_in_fifteen_minutes(kind):
    """Whoever is under way when the first one comes back may see it too, and nobody else."""
    report = simulate(TARGETS, [Outage(0, 800, kind=kind)], seconds=800, load=Load(rps=2))
    sent = [packet.at for packet in report.packets if packet.target == PRIMARY]
    assert sent
    assert max(sent) < 5.0
    assert report.availability == 1.0


@pytest.mark.parametrize("streaming", [0.0, 1.0])
def test_callers_who_leave_say_nothing_about_the_target(streaming):
    """Half of them cancel at a random await: the circuit stays closed, no failure is counted, nothing is left over."""
    chaos = Chaos(cancel=0.5, abandon=0.5 * streaming)
    report = simulate(TARGETS[:1], seconds=300, load=Load(rps=4, streaming=streaming), chaos=chaos)
    assert report.cancelled > 0.1 * report.requests
    assert report.failed == 0
    assert report.circuits == ()
    assert report.broken == ()


def test_a_cancelled_probe_leaves_the_circuit_half_open():
    """The next caller probes; while callers keep cancelling, the circuit neither closes nor opens for longer."""
    chaos = Chaos(cancel=0.6)
    report = simulate(TARGETS[:2], [Flap(10, 400, down=40, up=20)], seconds=400, load=Load(rps=3), chaos=chaos)
    left = [p for p in report.packets if p.circuit == CircuitState.HALF_OPEN and p.outcome == "left"]
    assert left
    assert report.broken == ()


def test_a_herd_sends_one_probe():
    """A hundred callers at one instant, at the very moment when the circuit may be probed."""
    report = simulate(TARGETS[:2], [Outage(0, 300)], seconds=300, load=Load(rps=20, burst=100, poisson=False))
    probes = [p.at for p in report.packets if p.circuit == CircuitState.HALF_OPEN]
    assert probes
    assert len(probes) == len(set(probes))
    assert report.broken == ()


@pytest.mark.parametrize("seed", range(8))
def test_a_hard_budget_holds_whatever_goes_wrong(seed):
    """The vendors' bill for everything, lost and cancelled answers included, stays within it."""
    limit_usd = 0.02 * (seed + 1)
    asked = ChatRequest((user("x" * 400),), max_tokens=200)
    report = run(
        seed,
        budgets={"limit_usd": limit_usd},
        load=Load(rps=4, burst=1 + 7 * (seed % 2), streaming=0.5, request=asked),
        targets=[replace(target, failures=0.1) for target in TARGETS[:2]],
        scenario=[Outage(30, 60), BrownOut(60, 100, SECOND)],
    )
    billed = sum(packet.bill_nano for packet in report.packets)
    assert 0 < billed <= limit_usd * 1e9
    assert report.failed > 0, "the budget was used up"
    assert report.broken == ()


def test_identical_requests_with_a_cache_are_one_packet():
    """Single-flight and cache run in virtual time, too; later callers are answered through the outage."""
    report = simulate(TARGETS, [Outage(1, 60)], seconds=60, load=Load(rps=20, burst=10), cache=True)
    assert len(report.packets) == 1
    assert report.availability == 1.0
    assert report.broken == ()


def test_two_hundred_identical_waits_do_not_thunder():
    """All are refused at one instant and told the same second; afterwards no two of them come at the same moment."""
    storm = RateLimitStorm(0, 60, PRIMARY, limit=60)
    report = simulate(TARGETS[:1], [storm], seconds=31, load=Load(rps=200 / 30, burst=200, poisson=False))
    later = [packet.at for packet in report.packets if packet.at > 30.5]
    assert report.packets[199].at == report.packets[0].at
    assert len(later) > 150
    assert len(set(later)) == len(later)


# ── the watch can see ────────────────────────────────────────────────────────────────────────────────────────────────


def outage(**options):
    return simulate(TARGETS, [Outage(10, 60, kind=options.pop("kind", "overloaded"))], seconds=90, **options).broken


def test_a_breaker_that_lets_packets_through_is_noticed(monkeypatch):
    """Whoever is let through an open circuit is seen at the wire."""
    monkeypatch.setattr(CircuitBreaker, "acquire", lambda self, now, lease_s, chance=0.5: Permit(self.generation))
    assert any("circuit open" in text for text in outage())


def test_a_second_probe_is_noticed(monkeypatch):
    """A breaker that forgets its lease lets the herd through."""
    real = CircuitBreaker.acquire

    def forgetful(self, now, lease_s, chance=0.5):
        self._probe_expires = None if self.state is CircuitState.HALF_OPEN else self._probe_expires
        return real(self, now, lease_s, chance)

    monkeypatch.setattr(CircuitBreaker, "acquire", forgetful)
    assert any("a second probe" in text for text in outage(load=Load(rps=20, burst=20)))


def test_an_admission_that_is_never_returned_is_noticed(monkeypatch):
    """A gate that forgets to count down."""
    real = Gate.settle

    def leaky(self, *given):
        self.health.in_flight += 1
        return real(self, *given)

    monkeypatch.setattr(Gate, "settle", leaky)
    assert any("admissions out" in text for text in outage())


def test_a_retry_after_a_money_error_is_noticed(monkeypatch):
    """If the bill were a passing failure, the same target would be asked again."""
    from shared_core import errors

    rules = dict(errors.RULES) | {ErrorKind.BILLING: errors.RULES[ErrorKind.TRANSIENT]}
    monkeypatch.setattr(errors, "RULES", rules)
    assert any("after a money error" in text for text in outage(kind="billing"))


def test_a_request_that_outlives_its_deadline_is_noticed(monkeypatch):
    """A watchdog that sleeps."""
    monkeypatch.setattr(Watchdog, "arm", lambda self: None)
    assert any("had not ended" in text for text in outage(kind="timeout", load=Load(rps=1, timeout_s=5)))


def test_an_end_that_is_told_twice_is_noticed(monkeypatch):
    """Books that repeat themselves."""
    real = Books._tell_failure

    def twice(self, *given):
        real(self, *given)
        real(self, *given)

    monkeypatch.setattr(Books, "_tell_failure", twice)
    assert any("told to have ended 2 times" in text for text in outage(kind="bad_request"))


def test_an_attempt_without_a_row_is_noticed(monkeypatch):
    """Books that forget to write down what failed."""
    real = Books._enter

    def forgetful(self, execution, step):
        if step.outcome.error is None:
            real(self, execution, step)

    monkeypatch.setattr(Books, "_enter", forgetful)
    assert any("rows in the ledger" in text for text in outage())
