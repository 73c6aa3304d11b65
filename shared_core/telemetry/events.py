"""What the router tells its observers: one frozen value per thing that happened. No event carries a key or a prompt."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "AttemptFailed",
    "CircuitChanged",
    "Event",
    "FellOver",
    "RequestFailed",
    "RequestStarted",
    "RequestSucceeded",
    "StreamContinued",
]


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events. `execution` is the request's id; `at` is seconds since the epoch."""

    execution: str
    at: float

    @property
    def name(self) -> str:
        """The event's name in snake case."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("_")

    def as_dict(self) -> dict[str, Any]:
        """As plain data, with the event's name."""
        return {"event": self.name, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RequestStarted(Event):
    """A logical call begins; `targets` in the order they will be asked."""

    targets: tuple[str, ...]
    strategy: str
    streaming: bool


@dataclass(frozen=True, slots=True)
class RequestSucceeded(Event):
    """It was answered, by `target`."""

    target: str
    attempts: int
    duration_s: float
    used_fallback: bool
    cost_usd: float | None
    recovered_from: tuple[str, ...] = ()
    """Every failure on the way, as 'target: kind of error', in order."""


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """Nobody answered, or its caller cancelled it (`outcome`)."""

    outcome: str
    error: str
    attempts: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class AttemptFailed(Event):
    """One attempt failed. `will_retry` says that the same target is asked again next."""

    target: str
    attempt: int
    kind: str
    error: str
    will_retry: bool


@dataclass(frozen=True, slots=True)
class FellOver(Event):
    """The next attempt goes to another target."""

    source: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class StreamContinued(Event):
    """A broken stream goes on with another target, after `at_character` characters."""

    target: str
    at_character: int
    how: str


@dataclass(frozen=True, slots=True)
class CircuitChanged(Event):
    """A circuit, account or parked target changed: 'circuit open', 'circuit closed', 'parked', 'account locked'."""

    scope: str
    state: str
    for_s: float | None
    reason: str | None
