"""The script: for every model a queue of steps, one for each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shared_core.testing.fault_server._answers import Answer
from shared_core.testing.fault_server._faults import ALIASES, FAULTS, AnswerLike, Fault, Place, nearest

if TYPE_CHECKING:
    from shared_core.testing.fault_server._log import SeenRequest

StepFunction = Callable[["SeenRequest"], AnswerLike | Fault]

Step = int | str | Answer | Fault | StepFunction
"""One request's fate: an HTTP status, `"ok"`, a fault's name, a `Fault`, an `Answer`, or a function that decides."""

Ready = Fault | Answer | StepFunction


def read_step(step: Step, place: Place = "request") -> Ready:
    """A step, checked and made ready. Raises `ValueError` or `TypeError` with what to write instead."""
    if isinstance(step, Answer):
        return step
    if isinstance(step, bool):
        raise TypeError("A step cannot be a bool. hint: say 'ok', a status such as 503, or a fault's name.")
    if isinstance(step, int):
        step = Fault("status", status=step)
    if isinstance(step, str):
        name = ALIASES.get(step, step)
        if name == "ok":
            return Answer()
        if name.isdecimal():
            step = Fault("status", status=int(name))
        elif name in FAULTS:
            step = Fault(name)
        else:
            raise ValueError(
                f"Step {step!r} is unknown. hint: {nearest(step)}; to answer this text write Answer({step!r})."
            )
    if isinstance(step, Fault):
        return read_fault(step, place)
    if callable(step):
        return step
    raise TypeError(
        f"A step cannot be a {type(step).__name__}. hint: say 'ok', a status such as 503, or a fault's name."
    )


def read_fault(fault: Fault, place: Place = "request") -> Fault:
    """`fault`, if it can be put there. Raises `ValueError` with where it belongs."""
    if fault.row.place != place:
        raise ValueError(f"Fault {fault.kind!r} cannot be scripted here. hint: {_WHERE[fault.row.place]}.")
    return fault


_WHERE: dict[Place, str] = {
    "request": "put it into `script(model, [...])`",
    "accept": "it comes before any request; put it into `script_accept([...])`",
    "address": "it is a place, not an answer; use the method of its name, such as `refused_url(wire)`",
}


def label(step: Ready) -> str:
    """The step's name in the log."""
    if isinstance(step, Fault):
        return str(step)
    if isinstance(step, Answer):
        return "ok" if step == Answer() else "answer"
    return getattr(step, "__name__", "function")


def as_steps(steps: Step | Sequence[Step]) -> list[Step]:
    """One step or several, as a list."""
    if isinstance(steps, str | int | Answer | Fault) or callable(steps):
        return [steps]
    return list(steps)


class Queue:
    """Steps in their order. When they are used up, the last one repeats (`loop_last`) or the queue is empty."""

    def __init__(self, steps: Step | Sequence[Step], *, loop_last: bool, place: Place = "request") -> None:
        self.steps = tuple(read_step(step, place) for step in as_steps(steps))
        self._next = 0
        self._loop_last = loop_last
        if not self.steps:
            raise ValueError("A script needs at least one step, for example ['ok'].")

    def take(self) -> Ready | None:
        at = self._next
        if at >= len(self.steps):
            return self.steps[-1] if self._loop_last else None
        self._next += 1
        return self.steps[at]

    @property
    def left(self) -> int:
        """Steps not served yet."""
        return len(self.steps) - self._next


def decided(value: object, who: str) -> Answer | Fault:
    """What a function of the request chose: a `Fault` that may befall a request, or an answer."""
    return read_fault(value) if isinstance(value, Fault) else answered(value, who)


def answered(value: object, who: str) -> Answer:
    """What an answer function returned, as an `Answer`."""
    if isinstance(value, Answer):
        return value
    if isinstance(value, str):
        return Answer(value)
    raise TypeError(f"{who} returned {type(value).__name__}; it must return an Answer or a str.")
