"""What is promised of routing, health and resilience: each promise, how it was tried, the figure, and its bound."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults import matrix, walls
from tests.promises import answers, circuits, clocks, leaving, outages

__all__ = ["PROMISES", "Promise", "figures"]

_TEST = "tests/promises/test_promises.py"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of trying one promise."""

    figure: str
    """In words, for the page."""
    value: float
    bound: float
    """What `value` may be at most."""
    details: Any


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what would show it broken."""

    number: str
    text: str
    small_print: str
    try_it: Callable[[bool], Tried]
    test: str
    """The part of the suite that tries it on every change."""


def _open_circuit(quick: bool) -> Tried:
    found = (
        circuits.open_circuit(callers=10, calls=3) if quick else circuits.open_circuit(callers=100, calls=5, rounds=5)
    )
    value = found["connections"] + found["packets"]
    text = f"{found['connections']} connections accepted in {found['calls']:,} calls from threads and tasks"
    return Tried(text, value, 0, found)


def _half_open(quick: bool) -> Tried:
    found = circuits.half_open(rounds=2) if quick else circuits.half_open(callers=100, rounds=50)
    value = max(found["most_at_once"], found["most_per_round"])
    text = f"at most {value} in flight, {found['callers']} callers at once, {found['rounds']} times"
    return Tried(text, value, 1, found)


def _wire(quick: bool) -> Tried:
    with matrix.Bench() as bench:
        found = circuits.journal_and_wire(bench.warm(), calls=20 if quick else 1_000, seed=11)
    text = (
        f"{found['attempts']:,} attempts, {found['requests']:,} requests, in {found['calls']:,} calls through random "
        f"faults; at most {found['most_beyond_one_per_target']} more than targets"
    )
    return Tried(text, len(found["wrong"]), 0, found)


def _deadline(colour: matrix.Colour) -> Callable[[bool], Tried]:
    def try_it(quick: bool) -> Tried:
        with matrix.Bench() as bench:
            bench.warm()
            cells = [wall for wall in walls.walls() if wall.colour == colour][:: 7 if quick else 1]
            late = sorted((max(0.0, walls.overshoot(wall, bench)), wall.id) for wall in cells)
        worst_s, worst = late[-1]
        text = f"at most {worst_s * 1000:.0f} ms late in {len(late)} ways to be kept waiting"
        details = {"worst": worst, "p50_ms": round(late[len(late) // 2][0] * 1000, 1)}
        return Tried(text, round(worst_s * 1000, 1), walls.PROMISE_S[colour] * 1000, details)

    return try_it


def _money(quick: bool) -> Tried:
    with matrix.Bench() as bench:
        found = circuits.money(bench.warm(), again=2 if quick else 10)
    text = f"1 packet to each unpaid account in {found['calls']:,} calls, {found['cases']} ways to be out of money"
    return Tried(text, len(found["wrong"]), 0, found)


def _dead_target(quick: bool) -> Tried:
    rates = (0.1, 1.0) if quick else (0.1, 1.0, 10.0, 50.0)
    runs = [
        outages.dead_target(kind, rps=rps, alone=alone)
        for kind in outages.KINDS
        for rps in rates
        for alone in (False, True)
        if not (alone and rps > 10)
    ]
    # What a circuit needs to open is not counted per call, and told apart.
    value = max((run["packets"] - outages.START_UP) / run["calls"] for run in runs)
    most = max(run["packets_per_call"] for run in runs)
    busy = max(run["packets_per_call"] for run in runs if run["rps"] >= 1)
    text = f"at most {most:.2f} packets per call at a call in ten seconds, {busy:.3f} at one or more in a second"
    return Tried(text, round(value, 4), 1.1, runs)


def _leaving(quick: bool) -> Tried:
    rows, wrong = [], list[str]()
    for scenario in leaving.SCENARIOS[:: 5 if quick else 1]:
        row: dict[str, Any] = {"scenario": scenario.name}
        for streamed in (False, True):
            points, found = leaving.cancel_everywhere(scenario, streamed=streamed)
            row["awaits, streamed" if streamed else "awaits, whole"] = points
            wrong += [f"{scenario.name}: {text}" for text in found]
        if scenario.sync:
            for name, sweep in (("events", leaving.abandon_everywhere), ("interrupts", leaving.interrupt_everywhere)):
                points, found = sweep(scenario)
                row[name] = points
                wrong += [f"{scenario.name}: {text}" for text in found]
        rows.append(row)
    for vendor in matrix.MAIN:
        row = {"scenario": f"a failed try, a wait and an answer, over the SDK of {vendor}"}
        for streamed in (False, True):
            points, found = leaving.cancel_over_the_wire(vendor, streamed=streamed, every=9 if quick else 1)
            row["awaits, streamed" if streamed else "awaits, whole"] = points
            wrong += [f"{vendor}: {text}" for text in found]
        rows.append(row)
    total = sum(value for row in rows for value in row.values() if isinstance(value, int))
    text = f"nothing left over at {total:,} points in {len(rows)} situations"
    if wrong:
        text = f"{len(wrong)} things left over at {total:,} points"
    return Tried(text, len(wrong), 0, {"scenarios": rows, "wrong": wrong})


def _clocks(quick: bool) -> Tried:
    zones = clocks.ZONES[:3] if quick else clocks.ZONES
    found = {
        "the machine's clock jumps": clocks.stepped(),
        "the server's clock is wrong": clocks.skewed(),
        "time zones": clocks.zoned(zones),
    }
    worst = max(seconds for kind in found.values() for seconds in kind.values())
    tried = sum(len(kind) for kind in found.values())
    return Tried(f"moved by {worst:g} s at most, {tried} clocks", worst, 1.0, found)


def _answers(quick: bool) -> Tried:
    found = answers.shared() if quick else answers.shared(tasks=80, threads=20, leave=30, rounds=20)
    most = found["most_requests_per_round"]
    wrong = list(found["wrong"])
    with matrix.Bench() as bench:
        bench.warm()
        legs = matrix.legs()[:: 9 if quick else 1]
        for case in legs:
            wrong += [f"{case.id}: {text}" for text in matrix.run_legs(case, bench)]
    text = (
        f"{most} request for {found['callers'] // found['rounds']} identical callers, {found['rounds']} times, "
        f"{found['cancelled']} of them cancelled; {len(legs)} streams that broke twice, each one answer"
    )
    return Tried(text, len(wrong) + most - 1, 0, {"shared": found, "broken_twice": len(legs), "wrong": wrong})


def _herd(quick: bool) -> Tried:
    callers = 150 if quick else 1_000
    runs = {
        "processes told to wait 10 s": outages.waits(callers, 10.0),
        "processes told to wait 0.5 s": outages.waits(callers, 0.5),
        "circuits that opened together": outages.open_times(callers),
        "callers of one router, told to wait 10 s": outages.herd(100 if quick else 500),
    }
    early = sum(run["early"] for run in runs.values())
    value = max(run["most_in_a_twentieth"] for run in runs.values())
    text = f"{early} early; at most {value:.0%} in any twentieth of the time in which they return"
    return Tried(text, value + early, 1 / 6, runs)


PROMISES: Sequence[Promise] = (
    Promise(
        "4", "**An open circuit lets no packet through**, and accepts no connection.",
        "In one process; until its time is over.", _open_circuit, "open_circuit",
    ),
    Promise(
        "5", "**A half-open circuit has at most one probe in flight**, however many call at that moment.",
        "A cancelled probe decides nothing, and the next caller is the probe.", _half_open, "half_open",
    ),
    Promise(
        "6", "**There is one retry loop**: attempts in the journal are requests on the wire, at most two more than "
        "targets.",
        "An attempt of which nothing was sent (a refused connection) is in the journal and not on the wire.",
        _wire, "journal",
    ),
    Promise(
        "7 async", "**The deadline is a wall (async)**: a call returns within 50 ms of it, whatever the server does.",
        "Hangs, drips of headers and pings, stalls, slow names, a stalled handshake, `Retry-After: 86400`. Not if your "
        "own code blocks the event loop.", _deadline("async"), "wall",
    ),
    Promise(
        "7 threads", "**The deadline is a wall (threads)**: a call returns within 250 ms of it, whatever the server "
        "does.",
        "The same; not if an extension keeps the interpreter's lock.", _deadline("sync"), "wall",
    ),
    Promise(
        "8", "**Money errors are never tried again**, and lock the account they are about and no other.",
        "By the vendors' documented codes and words. After 15 minutes one call is let through to look again.",
        _money, "money",
    ),
    Promise(
        "9", "**A dead target gets at most 1.1 packets per call** over ten minutes of outage.",
        "Beside the five that it takes to open its circuit; in simulated time.", _dead_target, "dead_target",
    ),
    Promise(
        "10", "**Leaving is free**: a caller who cancels, closes a stream or presses Ctrl-C is neither success nor "
        "failure, and leaves nothing behind.",
        "No attempt in flight, probe, slot, place in a line, reservation, stream, task or thread; the next call is "
        "answered.", _leaving, "leav or cancel or ctrl_c",
    ),
    Promise(
        "11", "**Clocks cannot hurt**: jumps of an hour or a day, a server whose clock is wrong, and time zones move "
        "no decision by more than a second.",
        "Where a server sends no `Date` with a date to come back at, its date is read by our clock.", _clocks, "clock",
    ),
    Promise(
        "12", "**What you get is one answer, labelled**: identical calls at once are one request, who leaves hurts "
        "nobody, and what is continued or kept says so.",
        "Sharing is on with a cache, or with `single_flight=True`.", _answers, "identical",
    ),
    Promise(
        "herds", "**Those who were told to wait do not come back as one.**",
        "Nobody comes early; a wait is spread over a tenth of itself, an open time over its second half.",
        _herd, "come_back or probe_together",
    ),
)  # fmt: skip
"""In the order in which they are told."""


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Every promise with its figure and bound. Takes about five minutes; `quick` tries less of the same."""
    rows = []
    logging.disable(logging.CRITICAL)  # each failure would be told about
    try:
        for promise in PROMISES:
            print(f"promises: {promise.text.replace('**', '')}", file=sys.stderr, flush=True)
            tried = promise.try_it(quick)
            rows.append(
                {
                    "number": promise.number,
                    "promise": promise.text,
                    "small_print": promise.small_print,
                    "figure": tried.figure,
                    "value": tried.value,
                    "bound": tried.bound,
                    "holds": tried.value <= tried.bound,
                    "test": f"make test ARGS=\"{_file(promise)} -k '{promise.test}'\"",
                    "details": tried.details,
                }
            )
    finally:
        logging.disable(logging.NOTSET)
    return {"promises": rows, "kept": sum(row["holds"] for row in rows), "of": len(rows)}


def _file(promise: Promise) -> str:
    return "tests/faults/test_conduct.py" if promise.test == "wall" else _TEST
