"""When to ask a second target beside one that is slow to begin: `Hedge` (settings) and `Hedger` (what was measured).

The second request goes to another target, after as long as nineteen of twenty answers took to begin, before anything
has reached the caller, and for at most one request in twenty: then it cuts the longest waits and costs little. Source:
Dean and Barroso, The Tail at Scale.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Any

from shared_core.errors import ConfigurationError, is_number
from shared_core.routing.target import built

__all__ = ["Hedge", "Hedged", "Hedger", "hedger_of"]

_KEEP = 100
"""First tokens remembered of each target, streamed and whole apart."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second request to another target when the first is slow to begin. Off unless a router is given one.

    Attributes:
        after: 'p95' (as long as 95 of 100 answers of that target took to begin: to the first token in streams, to the
            end where answers are whole), any other 'p1' to 'p99', or a number of seconds.
        min_s: never sooner than this, in seconds, 0 or more.
        budget: second requests as a share of all requests, above 0, at most 1. It is kept at every moment: each
            request earns its share of a second one.
        burst: second requests that may be saved up while nobody is slow, 1 or more.
        samples: answers of a target after which its percentile is taken as measured, 1 to 100; until then nobody is
            asked beside it. Not needed where `after` is a number.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    after: str | float = "p95"
    min_s: float = 1.0
    budget: float = 0.05
    burst: float = 10.0
    samples: int = 20

    def __post_init__(self) -> None:
        _percent(self.after)
        _ranged("min_s", self.min_s, 0.0, math.inf)
        _ranged("budget", self.budget, 0.0, 1.0)
        _ranged("burst", self.burst, 1.0, math.inf)
        if self.budget == 0:
            raise ConfigurationError("Hedge.budget must be above 0; leave hedge= out to have none")
        _ranged("samples", self.samples, 1, _KEEP)
        if not isinstance(self.samples, int):
            raise ConfigurationError(f"Hedge.samples must be a whole number, not {self.samples!r}")

    @property
    def percent(self) -> int | None:
        """The percentile, from 1 to 99; None where `after` is in seconds."""
        return _percent(self.after)


def _percent(after: Any) -> int | None:
    """What 'p95' means, None for a number of seconds."""
    if isinstance(after, str) and after[:1] == "p" and after[1:].isdigit() and 1 <= int(after[1:]) <= 99:
        return int(after[1:])
    if not is_number(after, above=0):
        raise ConfigurationError(f"Hedge.after must be 'p1' to 'p99' or a number of seconds > 0, not {after!r}")
    return None


def _ranged(name: str, value: Any, low: float, high: float) -> None:
    if not is_number(value, least=low, most=high):
        raise ConfigurationError(f"Hedge.{name} must be a number from {low:g} to {high:g}, not {value!r}")


@dataclass(slots=True)
class Hedged:
    """A second request that was made beside a first, for the journal."""

    beside: str
    """The target that was slow to begin."""
    target: str
    """Who was asked beside it."""
    after_s: float
    """How long the first had been waited for."""
    winner: str | None = None
    """Who brought content first; None while nobody has, and where neither did."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for metadata."""
        return {"beside": self.beside, "target": self.target, "after_s": round(self.after_s, 6), "winner": self.winner}


class _Firsts:
    """How long the last answers of one target took to begin."""

    __slots__ = ("_recent", "_sorted", "gate")

    def __init__(self, gate: object) -> None:
        self.gate = gate
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self._recent) == _KEEP:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def at(self, percent: int, samples: int) -> float | None:
        """The nearest-rank percentile, None before there are `samples`."""
        count = len(self._sorted)
        return None if count < samples else self._sorted[-(-percent * count // 100) - 1]


class Hedger:
    """Counts requests against second requests, and remembers how long targets take to begin. Thread-safe.

    A target is known by its name and its gate: one that was put in the place of another begins unmeasured.
    """

    __slots__ = ("_firsts", "_lock", "_percent", "_tokens", "hedge")

    def __init__(self, hedge: Hedge) -> None:
        self.hedge = hedge
        self._percent = hedge.percent
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._firsts: dict[tuple[str, bool], _Firsts] = {}

    def under(self, hedge: Hedge) -> Hedger:
        """The same measurements and savings under other settings."""
        heir = Hedger(hedge)
        with self._lock:
            heir._firsts, heir._lock = self._firsts, self._lock
            heir._tokens = min(self._tokens, hedge.burst)
        return heir

    @property
    def mutex(self) -> threading.Lock:
        """What guards it, for whoever sees to a forked child."""
        return self._lock

    def request(self) -> None:
        """A request has begun: it earns its share of a second one."""
        with self._lock:
            self._tokens = min(self.hedge.burst, self._tokens + self.hedge.budget)

    def began(self, name: str, gate: object, *, streaming: bool, seconds: float) -> None:
        """An attempt brought its first content after so many seconds, or was left after as many without."""
        with self._lock:
            firsts = self._firsts.get((name, streaming))
            if firsts is None or firsts.gate is not gate:
                firsts = self._firsts[name, streaming] = _Firsts(gate)
            firsts.add(seconds)

    def usual_s(self, name: str, gate: object, percent: int, *, streaming: bool) -> float | None:
        """Within how long so many of a hundred of its answers began, None unmeasured."""
        with self._lock:
            firsts = self._firsts.get((name, streaming))
            return None if firsts is None or firsts.gate is not gate else firsts.at(percent, self.hedge.samples)

    def after_s(self, name: str, gate: object, *, streaming: bool) -> float | None:
        """After how many seconds without content somebody is to be asked beside this target; None never."""
        percent = self._percent
        if percent is None:
            return max(self.hedge.min_s, float(self.hedge.after))
        usual = self.usual_s(name, gate, percent, streaming=streaming)
        return None if usual is None else max(self.hedge.min_s, usual)

    @property
    def allows(self) -> bool:
        """Whether the budget has a second request left."""
        return self._tokens >= 1.0 - 1e-9

    def spend(self) -> bool:
        """Take a second request out of the budget; False when there is none left."""
        with self._lock:
            if not self.allows:
                return False
            self._tokens = max(0.0, self._tokens - 1.0)
            return True

    def refund(self) -> None:
        """Put one back: nobody could be asked."""
        with self._lock:
            self._tokens = min(self.hedge.burst, self._tokens + 1.0)


def hedger_of(hedge: Any, before: Hedger | None = None) -> Hedger | None:
    """What `hedge=` means: None and False none, True the defaults. With what another one has measured `before`.

    Raises:
        ConfigurationError: it is no `Hedge`, mapping of its options, or truth value.
    """
    if hedge is None or hedge is False:
        return None
    settings: Hedge = Hedge() if hedge is True else built("hedge", Hedge, hedge)
    return Hedger(settings) if before is None else before.under(settings)
