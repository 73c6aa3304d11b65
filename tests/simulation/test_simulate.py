"""`simulate` repeats itself to the byte, refuses what makes no sense, and reports what happened."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from shared_core import ConfigurationError, ErrorKind, UnknownOption
from shared_core.testing import (
    BrownOut,
    Chaos,
    ClockStep,
    Flap,
    Load,
    Outage,
    RateLimitStorm,
    SimTarget,
    SimulationStuck,
    simulate,
)
from shared_core.testing.simulation import Happening
from tests.simulation.worlds import run

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "openai:gpt-5-mini", "anthropic:claude-sonnet-4-5"
TARGETS = [SimTarget(FIRST, latency=2.0, spread=0.0), SimTarget(SECOND, latency=3.0, spread=0.0, price=(3, 15))]


# ── the same seed, the same report ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(6))
def test_the_same_seed_gives_the_same_report(seed):
    """Every packet, every moment, every letter; another seed gives another."""
    once, again = run(seed), run(seed)
    assert once == again
    assert str(once) == str(again)
    assert once._repr_html_() == again._repr_html_()
    assert once.digest != run(seed + 1000).digest


def test_another_process_with_another_hash_seed_gives_the_same_report():
    """Nothing hangs on the order of a set, on addresses, or on what ran before."""
    code = "from tests.simulation.worlds import run; print(*[run(seed).digest for seed in range(3)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "12345")
    }
    assert told == {" ".join(run(seed).digest for seed in range(3)) + "\n"}


def test_a_crowd_of_concurrent_requests_repeats_too():
    """A hundred at one instant, again and again: the order of those who are ready is drawn from the seed."""
    crowd = {"seconds": 60, "load": Load(rps=50, burst=100, poisson=False, streaming=0.5)}
    chaos = Chaos(delay=0.2, drop=0.05, cancel=0.1)
    one, two = (simulate(TARGETS, [Outage(10, 40)], chaos=chaos, seed=7, **crowd) for _ in range(2))
    assert one == two
    assert one.requests == 2900


async def test_it_runs_where_an_event_loop_is_running_already():
    """In a notebook, say; and the outer loop goes on as before."""
    report = simulate(TARGETS, seconds=30)
    assert report == await asyncio.to_thread(simulate, TARGETS, seconds=30)
    await asyncio.sleep(0)


# ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fair_weather():
    """Everybody is answered by the first, after exactly its latency, at its price."""
    report = simulate(TARGETS, seconds=100, load=Load(rps=1, poisson=False))
    assert (report.requests, report.answered, report.failed, report.cancelled) == (99, 99, 0, 0)
    assert report.availability == 1.0
    assert report.sent == {FIRST: 99, SECOND: 0}
    assert report.latency_s(0.0) == pytest.approx(2.0)
    assert report.latency_s(1.0) == pytest.approx(2.0)
    assert report.cost_usd == pytest.approx(99 * (400 * 0.25 + 200 * 2) / 1e6)
    assert report.circuits == ()


@pytest.mark.parametrize("streaming", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strategy", ["priority", "cost", "performance", "round_robin", "weighted"])
def test_the_ledger_is_the_vendors_bill_to_the_nano_dollar(strategy, streaming):
    """Where every packet ends in an answer or a refusal, both sides count the same."""
    happenings = [Outage(20, 60), RateLimitStorm(30, 90, SECOND, limit=20)]
    report = simulate(TARGETS, happenings, seconds=120, load=Load(streaming=streaming), strategy=strategy)
    assert report.ledger_nano == sum(packet.bill_nano for packet in report.packets)
    assert report.broken == ()


def test_an_outage_opens_the_circuit_and_the_second_serves():
    """Five failures, then probes; the reports of calls, packets and circuits agree."""
    report = simulate(TARGETS, [Outage(30, 90)], seconds=120)
    states = [change.state for change in report.circuits if change.target == FIRST]
    assert states[0] == "open"
    assert states[-1] == "closed"
    assert {"half-open"} == {p.circuit for p in report.packets if p.target == FIRST and 40 < p.at < 90}
    assert report.served[SECOND] == sum(call.served_by == SECOND for call in report.calls)
    assert sum(call.packets for call in report.calls) == len(report.packets)


def test_a_flap_a_brown_out_and_a_storm_do_what_they_say():
    """Looked at from the wire."""
    flap = simulate(
        TARGETS[:1], [Flap(0, 100, down=10, up=10)], seconds=100, load=Load(rps=5), breaker={"open_s": 0.01}
    )
    assert not [p for p in flap.packets if p.outcome == "answered" and p.at % 20 < 10]
    assert [p for p in flap.packets if p.outcome == "answered" and p.at % 20 > 10]
    brown = simulate(TARGETS[:1], [BrownOut(0, 100, failures=0.0, slower=4)], seconds=100)
    assert brown.latency_s(0.5) == pytest.approx(8.0)
    storm = simulate(TARGETS, [RateLimitStorm(0, 600, limit=30)], seconds=600, load=Load(rps=5))
    accepted = sum(p.target == FIRST and p.outcome == "answered" for p in storm.packets)
    assert 280 <= accepted <= 310, "thirty a minute for ten minutes, and a burst"


def test_a_router_of_ones_own_can_be_tried_as_a_policy():
    """Whatever returns the name of who answered."""

    def first_only(vendors, chance):
        async def ask():
            await vendors[0].call()
            return vendors[0].name

        return ask

    report = simulate(TARGETS, [Outage(30, 60)], seconds=120, policy=first_only)
    assert report.name == "first_only"
    assert report.failed == len(report.calls_from(30, 60))
    assert report.ledger_nano is None


def test_events_come_at_their_virtual_moment():
    """In the order in which things happen, from inside the simulation."""
    seen = []
    report = simulate(TARGETS, [Outage(30, 60)], seconds=90, on_event=seen.append)
    assert sum(event.name == "request_started" for event in seen) == report.requests
    assert [event.at for event in seen] == sorted(event.at for event in seen)


def test_a_bug_surfaces():
    """It is not a failed request."""

    def buggy(request, views):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        simulate(TARGETS, strategy=buggy)


def test_who_waits_for_ever_is_stuck():
    """A policy that awaits what nobody will do ends with an error, not with a hang."""

    def stuck(vendors, chance):
        async def ask():
            await asyncio.Event().wait()
            return ""

        return ask

    report = simulate(TARGETS, seconds=10, policy=stuck)
    assert any("had not ended" in text for text in report.broken)
    assert report.availability is None


def test_who_waits_in_circles_is_stuck(monkeypatch):
    """Time does not pass for somebody who yields and yields."""
    monkeypatch.setattr("shared_core.testing.simulation._loop._LIVELOCK", 20_000)

    def circling(vendors, chance):
        async def ask():
            while True:  # noqa: ASYNC110  # waiting in circles is what this is about
                await asyncio.sleep(0)

        return ask

    with pytest.raises(SimulationStuck, match="in circles"):
        simulate(TARGETS, seconds=1, load=Load(rps=5), policy=circling)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "made",
    [
        lambda: SimTarget("a:b", latency=0),
        lambda: SimTarget("a:b", failures=1.5),
        lambda: SimTarget("a:b", failure="a bad day"),
        lambda: SimTarget("a:b", rate_limit=-1),
        lambda: SimTarget("a:b", spread=-0.1),
        lambda: SimTarget("a:b", tokens=0),
        lambda: Outage(5, 5),
        lambda: Outage(-1, 5),
        lambda: Outage(0, 5, kind="rain"),
        lambda: Flap(0, 5, down=0),
        lambda: BrownOut(0, 5, failures=2),
        lambda: BrownOut(0, 5, slower=0),
        lambda: RateLimitStorm(0, 5, limit=0),
        lambda: Load(rps=0),
        lambda: Load(streaming=1.1),
        lambda: Load(timeout_s=0),
        lambda: Chaos(drop=-0.1),
        lambda: Chaos(delay_s=-1),
        lambda: simulate([]),
        lambda: simulate([SimTarget("a:b"), SimTarget("a:b")]),
        lambda: simulate(TARGETS, seconds=0),
        lambda: simulate(TARGETS, [Outage(0, 5, target=2)]),
        lambda: simulate(TARGETS, [Outage(0, 5, target="nobody")]),
        lambda: simulate(TARGETS, strateggy="cost"),
        lambda: simulate(TARGETS, strategy="cost", policy=lambda vendors, chance: None),
        lambda: simulate(TARGETS, clock=None),
        lambda: simulate("a:b"),
        lambda: simulate(["a"]),
        lambda: simulate(None),
        lambda: simulate(SimTarget("a:b")),
        lambda: simulate([*TARGETS, Outage(0, 5)]),
        lambda: simulate(TARGETS, Outage(0, 5)),
        lambda: simulate(TARGETS, ["outage"]),
        lambda: simulate(TARGETS, [Happening(0, 5)]),
        lambda: simulate(TARGETS, seconds="60"),
        lambda: simulate(TARGETS, load=5),
        lambda: simulate(TARGETS, load={"rpss": 5}),
        lambda: simulate(TARGETS, chaos={"drop": "often"}),
        lambda: simulate(TARGETS, chaos=True),
        lambda: simulate(TARGETS, seed="x"),
        lambda: simulate(TARGETS, on_event="print"),
        lambda: simulate(TARGETS, policy="cost"),
        lambda: SimTarget(5),
        lambda: SimTarget(""),
        lambda: SimTarget("a:b", latency="slow"),
        lambda: SimTarget("a:b", failures="many"),
        lambda: SimTarget("a:b", failures=True),
        lambda: SimTarget("a:b", failure=5),
        lambda: SimTarget("a:b", tokens=1.5),
        lambda: SimTarget("a:b", price=5),
        lambda: SimTarget("a:b", price=(1, 2, 3)),
        lambda: SimTarget("a:b", price=(1, "much")),
        lambda: SimTarget("a:b", local="no"),
        lambda: SimTarget("a:b", options=["weight"]),
        lambda: SimTarget("a:b", options={"name": "c"}),
        lambda: simulate([SimTarget("a:b", options={"wieght": 2})]),
        lambda: Outage("now", 5),
        lambda: Outage(0, "later"),
        lambda: Outage(0, 5, target=None),
        lambda: Outage(0, 5, target=True),
        lambda: Flap(0, 5, kind=None),
        lambda: BrownOut(0, 5, failures="half"),
        lambda: RateLimitStorm(0, 5, tells="yes"),
        lambda: ClockStep("now", 5),
        lambda: ClockStep(5, "an hour"),
        lambda: Load(burst=1.5),
        lambda: Load(poisson="yes"),
        lambda: Load(request=5),
        lambda: Load(streaming="half"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_given(made):
    """With a word on what would."""
    with pytest.raises(ConfigurationError):
        made()


def test_what_simulate_takes_is_shown_to_whoever_gives_it_something_else():
    """The hint can be typed in as it stands."""
    with pytest.raises(ConfigurationError, match=r"targets holds 'a'\nhint: give it as \[SimTarget\('openai:gpt-5"):
        simulate(["a"])
    with pytest.raises(ConfigurationError, match=r"scenario must be a list, not Outage.*\nhint: give it as \[Outage\("):
        simulate(TARGETS, Outage(0, 5))
    report = simulate(iter(TARGETS), iter([Outage(5, 10)]), seconds=20, load={"rps": 1}, chaos={"drop": 0.1})
    again = simulate(TARGETS, [Outage(5, 10)], seconds=20, load=Load(rps=1), chaos=Chaos(drop=0.1))
    assert report.digest == again.digest


def test_the_nearest_option_is_named():
    """As everywhere."""
    with pytest.raises(UnknownOption, match="strategy"):
        simulate(TARGETS, strateggy="cost")


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_prints_tabulates_and_plots():
    """And none of it needs more than was asked for."""
    report = simulate(TARGETS, [Outage(30, 60), ClockStep(10, 3600)], seconds=120, load=Load(streaming=0.5))
    assert "seed 1" in str(report)
    assert "first token after" in str(report)
    assert "<table>" in report._repr_html_()
    frame = report.to_pandas()
    assert len(frame) == report.requests
    assert set(frame["outcome"]) == {"answered"}
    figure = report.plot()
    assert len(figure.axes) == 3
    pieces = report.slices(10)
    assert len(pieces) == 12
    assert sum(piece.requests for piece in pieces) == report.requests
    assert sum(piece.packets[FIRST] for piece in pieces) == report.sent[FIRST]
    assert report.as_dict()["digest"] == report.digest
    with pytest.raises(FrozenInstanceError):
        report.seed = 2


def test_plain_figures_need_neither_matplotlib_nor_pandas():
    """They are imported by `plot` and `to_pandas`."""
    code = (
        "import sys; from shared_core.testing import SimTarget, simulate\n"
        "print(simulate([SimTarget('a:b')], seconds=10))\n"
        "assert not {'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_silence_ends_with_the_callers_deadline():
    """To the millisecond, whole and streamed."""
    for streaming in (0.0, 1.0):
        load = Load(rps=1, streaming=streaming, timeout_s=7.5)
        report = simulate(TARGETS[:1], [Outage(0, 60, kind=ErrorKind.TIMEOUT)], seconds=20, load=load)
        assert report.failed == report.requests
        assert max(call.ended - call.at for call in report.calls) <= 7.501
        assert report.broken == ()
