"""The state machines of the suite, walked by a plain seeded driver: a hundred times as many steps as by Hypothesis.

Hypothesis draws cleverly and shrinks what it finds, at some hundreds of steps a second with these machines. Here the
same rules, models and invariants are driven by `random.Random`, at tens of thousands: what is found is not shrunk, but
it is one seed. `make soak` does both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from shared_core import ErrorKind
from shared_core.resilience.breaker import Result
from tests.core.test_breaker import Walk
from tests.core.test_machines import FATAL, LOCKED, PASSED, RETRIED, Budget, Flowing, Joining, Planning
from tests.core.test_rate_limit import LimiterMachine

__all__ = ["WALKS", "Found", "Walked", "steps_in", "walk"]

Arguments = Mapping[str, Any]
Draw = Callable[[Any, Random], Arguments | None]
"""Keywords of a rule, drawn by chance; None where it cannot be applied now."""


def _none(machine: Any, chance: Random) -> Arguments:
    return {}


class _Data:
    """What a rule that asks for `st.data()` is handed: it draws one of the permits that are out."""

    def __init__(self, machine: Any, chance: Random) -> None:
        self._machine, self._chance = machine, chance

    def draw(self, strategy: object) -> int:
        return self._chance.randrange(len(self._machine.out))


class Found(AssertionError):
    """A walk that broke a promise."""

    def __init__(self, machine: str, seed: int, step: int, why: AssertionError) -> None:
        super().__init__(f"{machine}, seed {seed}, step {step}: {why!r}")


@dataclass(frozen=True)
class Walked:
    """One machine and how its rules are drawn."""

    name: str
    machine: type[RuleBasedStateMachine]
    begin: Draw
    moves: Sequence[tuple[str, Draw]]
    """Rules with what is drawn for them; one that stands twice is taken twice as often."""
    invariants: Sequence[str] = ()
    steps: int = 1000
    """Of one walk."""


def _one(name: str, values: Sequence[Any]) -> Draw:
    return lambda machine, chance: {name: chance.choice(values)}


def _planning_add(machine: Any, chance: Random) -> Arguments | None:
    if len(machine.targets) >= 6:
        return None
    flags = {name: chance.random() < 0.5 for name in ("tools", "images", "json_schema", "local", "enabled")}
    return {**flags, "window": chance.choice([None, 10, 1000])}


def _planning_plan(machine: Any, chance: Random) -> Arguments | None:
    if not machine.targets:
        return None
    flags = {name: chance.random() < 0.5 for name in ("tools", "image", "schema", "long", "local_only")}
    return {**flags, "deny": chance.choice([None, "a", "b"])}


_OF_FLOW = [None, *[ErrorKind.OVERLOADED] * 8, *sorted(RETRIED), *sorted(LOCKED), *sorted(PASSED), *sorted(FATAL)]

WALKS = (
    Walked(
        "breaker",
        Walk,
        _none,
        (
            ("wait", lambda machine, chance: {"seconds": chance.choice((0.0, chance.random(), 40 * chance.random()))}),
            *(("acquire", _none),) * 3,
            *(
                (
                    "report",
                    lambda machine, chance: (
                        {"data": _Data(machine, chance), "result": chance.choice(list(Result))} if machine.out else None
                    ),
                ),
            )
            * 3,
        ),
        ("same_state",),
        steps=300,
    ),
    Walked(
        "limiter",
        LimiterMachine,
        lambda machine, chance: {
            "slots": chance.randint(1, 4),
            "per_minute": chance.randint(1, 40),
            "burst": chance.choice([1.0, 7.0, 60.0]),
        },
        (
            *(("newcomer", _none), ("line_up", _none)) * 2,
            *(
                (
                    "release",
                    lambda machine, chance: (
                        {"which": chance, "answered": chance.random() < 0.5} if machine.out else None
                    ),
                ),
            )
            * 3,
            ("leave", lambda machine, chance: {"which": chance} if machine.line else None),
            ("wait", _one("seconds", [0.0, 0.1, 1.0, 7.0, 61.0])),
            ("head_waits_as_told", lambda machine, chance: {} if machine.line else None),
            ("throttled", _one("ramp", [False, True])),
            (
                "headers",
                lambda machine, chance: {"remaining": chance.randint(0, 50), "reset": chance.choice([0.5, 5.0, 30.0])},
            ),
            (
                "hold",
                lambda machine, chance: {"seconds": chance.choice([1.0, 20.0]), "chance": 0.99 * chance.random()},
            ),
        ),
        ("promises",),
        steps=120,
    ),
    Walked("retry budget", Budget, _none, (("success", _none), ("failure", _none)), ("agrees",)),
    Walked(
        "planner",
        Planning,
        _none,
        (
            ("add", _planning_add),
            ("choose", _one("strategy", ["priority", "round_robin"])),
            *(("plan", _planning_plan),) * 6,
        ),
        steps=60,
    ),
    Walked(
        "seam",
        Joining,
        lambda machine, chance: {
            "cut": chance.randint(1, 19),
            "manner": chance.choice(["whole", "rest", "overlap"]),
            "back": chance.randint(1, 19),
        },
        (("piece", lambda machine, chance: {"size": chance.randint(1, 30)}),),
        ("complete_when_over",),
        steps=20,
    ),
    Walked(
        "flow",
        Flowing,
        _none,
        (
            *(
                (
                    "change",
                    lambda machine, chance: {"name": chance.choice("abc"), "kind": chance.choice(_OF_FLOW)},
                ),
            )
            * 2,
            ("wait", _one("seconds", [1.0, 599.0, 601.0, 901.0])),
            *(("call", _one("face", ["invoke", "stream"])),) * 3,
        ),
        steps=60,
    ),
)
"""Every machine that decides something. The two async faces of `flow` are left to Hypothesis: a loop for each call."""


def walk(walked: Walked, seed: int) -> int:
    """One walk from a seed. Returns how many steps it had.

    Raises:
        Found: an invariant does not hold, or a rule saw what its model does not.
    """
    chance = Random(f"{walked.name} {seed}")
    machine: Any = walked.machine()
    number = 0
    try:
        machine.begin(**(walked.begin(machine, chance) or {}))
        while number < walked.steps:
            name, draw = chance.choice(walked.moves)
            arguments = draw(machine, chance)
            if arguments is None:
                continue
            number += 1
            getattr(machine, name)(**arguments)
            for invariant in walked.invariants:
                getattr(machine, invariant)()
        machine.teardown()
    except AssertionError as error:
        raise Found(walked.name, seed, number, error) from error
    return number


def steps_in(walked: Walked, seed: int, seconds: float, at_least: int = 0) -> tuple[int, int]:
    """Walk from `seed` on until time is up and enough steps are made. Returns steps, and the next seed."""
    done, until = 0, time.monotonic() + seconds
    while done < at_least or time.monotonic() < until:
        done += walk(walked, seed)
        seed += 1
    return done, seed
