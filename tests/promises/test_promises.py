"""What is promised, each with the test that would find it broken. The large runs of the same are `make evidence`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.faults import matrix
from tests.promises import answers, circuits, clocks, leaving, outages

WIRE = pytest.mark.provider


@pytest.fixture(scope="module")
def bench() -> Iterator[matrix.Bench]:
    with matrix.Bench() as bench:
        yield bench.warm()


# ── circuits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@WIRE
def test_an_open_circuit_lets_no_packet_through():
    """Threads and tasks call for the whole open time, twice; the server accepts no connection and reads no request."""
    found = circuits.open_circuit(callers=8, calls=3, rounds=2)
    assert found["calls"] == 144
    assert (found["connections"], found["packets"]) == (0, 0)


@WIRE
def test_a_half_open_circuit_has_one_probe_in_flight():
    """Twenty callers at once, in threads and in tasks: one packet each time, and two in a row to close it."""
    found = circuits.half_open(callers=20, rounds=4)
    assert (found["least_per_round"], found["most_per_round"], found["most_at_once"]) == (1, 1, 1)
    assert found["probes_that_closed_it"] == 2


@WIRE
def test_money_errors_are_never_tried_again(bench):
    """One packet to the account, whatever is asked of it afterwards, at any of its models; other accounts serve."""
    found = circuits.money(bench, again=3)
    assert found["wrong"] == []
    assert found["cases"] >= 36


@WIRE
@pytest.mark.parametrize("seed", [1, 2])
def test_the_journal_tells_what_was_sent(bench, seed):
    """Random faults at one to three vendors: attempts are requests on the wire, at most two more than targets."""
    found = circuits.journal_and_wire(bench, calls=40, seed=seed)
    assert found["wrong"] == []
    assert found["attempts"] == found["requests"] > 60


# ── outages and herds ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alone", [False, True], ids=["beside a healthy one", "alone"])
@pytest.mark.parametrize("kind", outages.KINDS, ids=str)
def test_a_dead_target_gets_at_most_1_1_packets_per_call(kind, alone):
    """Ten simulated minutes, at traffic from a call in ten seconds to two in one."""
    for rps in (0.1, 2.0):
        found = outages.dead_target(kind, rps=rps, alone=alone)
        assert found["packets"] <= 1.1 * found["calls"] + outages.START_UP, found
        assert found["answered"] == (0 if alone else found["calls"])
    assert found["packets_per_call"] < 0.1, "and hardly any where calls are frequent"


@pytest.mark.parametrize("asked_s", [0.5, 10.0, 300.0])
def test_processes_that_were_told_to_wait_do_not_come_back_as_one(asked_s):
    """None comes early, and no twentieth of the time sees more than a sixth of them."""
    found = outages.waits(150, asked_s)
    assert found["early"] == 0
    assert found["most_in_a_twentieth"] <= 1 / 6, found
    assert found["last_s"] <= 1.1 * asked_s + 0.1


def test_circuits_that_opened_together_do_not_probe_together():
    """Equal jitter: between half and all of the open time, spread."""
    found = outages.open_times(150)
    assert (found["early"], found["last_s"] <= 10) == (0, True)
    assert found["most_in_a_twentieth"] <= 1 / 6


def test_callers_of_one_router_do_not_come_back_as_one():
    """The first one is told to wait, and the others with it; afterwards they go one by one."""
    found = outages.herd(100)
    assert (found["packets_before"], found["early"], found["callers"]) == (1, 0, 100)
    assert found["most_in_a_twentieth"] <= 1 / 6


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("scenario", leaving.SCENARIOS, ids=str)
def test_cancelling_at_any_await_leaves_nothing_behind(scenario, streamed):
    """No attempt, probe, slot, place in a line, reservation, stream, task or thread; and the next call is answered."""
    points, wrong = leaving.cancel_everywhere(scenario, streamed=streamed)
    assert wrong == []
    assert points or scenario.name == "served from the cache"


@pytest.mark.parametrize("scenario", [s for s in leaving.SCENARIOS if s.sync], ids=str)
def test_leaving_a_stream_after_any_event_leaves_nothing_behind(scenario):
    """The same in a thread."""
    points, wrong = leaving.abandon_everywhere(scenario)
    assert wrong == []
    assert points > 3


@pytest.mark.parametrize("scenario", [s for s in leaving.SCENARIOS if s.sync], ids=str)
def test_ctrl_c_at_any_point_leaves_nothing_behind(scenario):
    """At every event read and every wait of the caller's thread."""
    points, wrong = leaving.interrupt_everywhere(scenario)
    assert wrong == []
    assert points or scenario.name == "served from the cache"


@WIRE
@pytest.mark.parametrize("vendor", matrix.MAIN)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_cancelling_a_vendors_sdk_at_any_await_leaves_nothing_behind(vendor, streamed):
    """Real sockets: nothing is in flight at the server, no connection and no task is left. Every fifth await."""
    points, wrong = leaving.cancel_over_the_wire(vendor, streamed=streamed, every=5)
    assert wrong == []
    assert points >= 2


# ── one answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


@WIRE
def test_identical_calls_at_once_are_one_request_and_nobody_is_hurt_by_who_leaves():
    """Tasks and threads together; the first caller is among those who leave; every answer says whose it is."""
    found = answers.shared()
    assert found["wrong"] == []
    assert found["most_requests_per_round"] == 1


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@WIRE
@pytest.mark.skipif(sys.platform == "win32", reason="its process has one time zone")
@pytest.mark.parametrize(
    "clocks_of",
    [clocks.stepped, clocks.skewed, lambda: clocks.zoned(clocks.ZONES[1:5])],
    ids=["the machine's clock jumps", "the server's is wrong", "time zones"],
)
def test_no_clock_moves_a_decision(clocks_of):
    """Eighty calls through throttles with dates, an outage and a lock: each packet leaves at the same second."""
    found = clocks_of()
    assert max(found.values()) <= 1.0, found


def test_the_tale_of_the_clocks_has_dates_and_doors_in_it():
    """It could show a difference: calls fail in it, wait, and are refused; and it takes its time."""
    clock = clocks.Wall()
    told = clocks.decisions(clock, clock.time)
    assert {what for what, _ in told} >= {"answered", "a answered", "b answered", "a failed", "b failed"}
    behind = clocks.Wall()
    other = clocks.decisions(behind, lambda: behind.time() + 0.0, jump=0.0)
    assert clocks._apart(told, other) == 0.0
    assert clocks._apart(told, other[:-1]) == float("inf")
