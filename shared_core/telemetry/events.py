"""What the router tells its observers: one frozen value per thing that happened. No event carries a key or a prompt.

Another event is a frozen dataclass over `Event` here, in `__all__`, and a row in docs/events.md (a test compares them).
It says in `level` how loud its line in the log is, and in `quoted` which of its texts are a vendor's own words. Whoever
has one to tell hands it to `Dispatcher.emit`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

__all__ = [
    "AttemptFailed",
    "BudgetExhausted",
    "BudgetOvercharged",
    "BudgetWarning",
    "CacheHit",
    "CircuitChanged",
    "Event",
    "FellOver",
    "LedgerTrouble",
    "RequestFailed",
    "RequestHedged",
    "RequestStarted",
    "RequestSucceeded",
    "RequestWaits",
    "RouterReconfigured",
    "StreamContinued",
    "TargetChanged",
    "TargetProbed",
    "TargetRecovered",
    "TargetUnhealthy",
]


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events. `at` is seconds since the epoch.

    `execution` is the id of the request that brought it about: empty where an operator or a health check did.
    """

    execution: str
    at: float

    quoted: ClassVar[frozenset[str]] = frozenset()
    """Fields that may hold a vendor's own words. They stay in this process unless somebody asks for them."""

    @property
    def name(self) -> str:
        """The event's name in snake case."""
        return event_name(type(self))

    @property
    def level(self) -> int:
        """How loud its line in the log is, as a level of `logging`: whose attention it wants."""
        return logging.DEBUG

    def as_dict(self) -> dict[str, Any]:
        """As plain data, with the event's name."""
        return {"event": self.name, **asdict(self)}


def event_name(kind: type[Event]) -> str:
    """The name of a kind of event, in snake case: 'circuit_changed'."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")


class _Informative(Event):
    """An event that a log at information level shows."""

    __slots__ = ()

    @property
    def level(self) -> int:
        """Information."""
        return logging.INFO


class _Notable(Event):
    """An event that deserves somebody's attention."""

    __slots__ = ()

    @property
    def level(self) -> int:
        """Warning."""
        return logging.WARNING


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

    @property
    def level(self) -> int:
        """A warning when another target had to step in; that one is passed over anyway has been told before."""
        if not self.used_fallback:
            return logging.DEBUG
        return logging.WARNING if self.recovered_from else logging.INFO


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """Nobody answered, or its caller cancelled it (`outcome`)."""

    outcome: str
    error: str
    attempts: int
    duration_s: float

    quoted: ClassVar[frozenset[str]] = frozenset({"error"})

    @property
    def level(self) -> int:
        """An error, unless the caller left: that is nobody's failure."""
        return logging.ERROR if self.outcome == "failed" else logging.INFO


@dataclass(frozen=True, slots=True)
class AttemptFailed(_Informative):
    """One attempt failed. `will_retry` says that the same target is asked again next."""

    target: str
    attempt: int
    kind: str
    error: str
    will_retry: bool

    quoted: ClassVar[frozenset[str]] = frozenset({"error"})


@dataclass(frozen=True, slots=True)
class FellOver(_Informative):
    """The next attempt goes to another target."""

    source: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class StreamContinued(_Informative):
    """A broken stream goes on with another target, after `at_character` characters."""

    target: str
    at_character: int
    how: str


@dataclass(frozen=True, slots=True)
class CircuitChanged(_Informative):
    """A circuit changed, a target was parked, locked or slowed, or an account locked.

    `state` is 'circuit open', 'circuit half-open', 'circuit closed', 'circuit forced open', 'circuit disabled',
    'parked', 'locked', 'unlocked', 'account locked', 'account unlocked' or 'slowed' (a throttle lowered its rates and
    slots); `for_s` how long it lasts at least, if that is known.
    """

    scope: str
    state: str
    for_s: float | None
    reason: str | None

    quoted: ClassVar[frozenset[str]] = frozenset({"reason"})


@dataclass(frozen=True, slots=True)
class TargetUnhealthy(_Informative):
    """A target that was well, or unknown, is not: its circuit opened, it is locked, or most of its calls fail.

    Told once, until it recovers, however many requests pass it over meanwhile.
    """

    target: str
    reason: str | None

    quoted: ClassVar[frozenset[str]] = frozenset({"reason"})


@dataclass(frozen=True, slots=True)
class TargetRecovered(_Informative):
    """A target that was told to be unhealthy is well again; requests go to it as before."""

    target: str


@dataclass(frozen=True, slots=True)
class TargetProbed(Event):
    """A health check of a target ended. `kind` is the kind of error if it was not well."""

    target: str
    ok: bool
    how: str
    """'models', 'call' or 'report' (docs/health.md); empty when nothing could be asked."""
    latency_s: float
    kind: str | None
    background: bool
    """Made by itself, not on demand."""


TargetChange = Literal["added", "removed", "replaced", "enabled", "disabled", "pinned", "unpinned"]
"""What an operator may do with a target."""


@dataclass(frozen=True, slots=True)
class TargetChanged(_Informative):
    """An operator changed the targets while the router runs."""

    target: str
    change: TargetChange
    other: str | None = None
    """Of 'replaced', the target that stood in its place before."""


@dataclass(frozen=True, slots=True)
class RouterReconfigured(_Informative):
    """Options were changed while the router runs; names them."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestHedged(_Informative):
    """`target` is asked beside `beside`, which has been slow to begin for `after_s` seconds."""

    beside: str
    target: str
    after_s: float


@dataclass(frozen=True, slots=True)
class RequestWaits(_Informative):
    """A request waits for the end of a pause that `target` has named, or `in_line` for its rates and slots."""

    target: str
    for_s: float
    """Seconds; in line at most so many."""
    in_line: bool


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    """An answer that nobody was asked for. `status` is 'hit', 'joined' (another caller's, in flight), 'stale' (past its
    time, because nobody could answer) or 'default' (the user's own, by `default_answer`).
    """

    target: str | None
    """Who gave the answer once; None for a default one."""
    status: Literal["hit", "joined", "stale", "default"]
    age_s: float | None
    """How long it has been kept."""
    saved_usd: float | None
    """What it cost then; None where nobody knows."""

    @property
    def level(self) -> int:
        """A stand-in is worth a warning: everything was down."""
        return logging.WARNING if self.status in ("stale", "default") else logging.DEBUG


@dataclass(frozen=True, slots=True)
class BudgetWarning(_Notable):
    """Spending has reached a share of a budget's limit: told once for each share and window."""

    budget: str
    of: str | None
    """Which target, user or tag, where each has a limit of its own."""
    share: float
    """The threshold, such as 0.8."""
    spent_usd: float
    limit_usd: float
    resets_at: float | None
    """Seconds since the epoch; None for a budget that never resets."""


@dataclass(frozen=True, slots=True)
class BudgetExhausted(_Notable):
    """A budget is used up, or has refused an attempt: told once for each window."""

    budget: str
    of: str | None
    spent_usd: float
    limit_usd: float
    hard: bool
    resets_at: float | None


@dataclass(frozen=True, slots=True)
class BudgetOvercharged(_Notable):
    """A provider charged `by_usd` more than could be foreseen. It is booked, and counts towards every budget."""

    target: str
    cost_usd: float
    by_usd: float


@dataclass(frozen=True, slots=True)
class LedgerTrouble(_Notable):
    """The ledger's file cannot be written: rows wait in memory. With `over`, it can again, and they are written."""

    reason: str
    """'locked', 'full', 'read-only', 'corrupt' or 'i/o'."""
    waiting: int
    over: bool
