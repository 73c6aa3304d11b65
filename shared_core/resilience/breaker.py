"""A circuit breaker as a small machine: CLOSED, OPEN, HALF_OPEN, with generation-stamped permits and one probe lease.

It has no clock, lock or randomness of its own: `now` (monotonic seconds) and `chance` (uniform in [0, 1)) are handed
in, and its owner holds a lock around each method, never across a call. Every change of state starts a new generation;
a result that comes back with an older generation's permit changes nothing.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, fields
from typing import NamedTuple

from shared_core.errors import ConfigurationError, is_number

__all__ = ["BreakerConfig", "CircuitBreaker", "CircuitState", "Permit", "Rejection", "Result"]


class CircuitState(enum.StrEnum):
    """Where a circuit is."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    FORCED_OPEN = "forced open"
    DISABLED = "disabled"


class Result(enum.Enum):
    """What one permitted call says about the target."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """Says nothing: the caller cancelled, or the request itself was at fault."""


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When a circuit opens and for how long. Times are seconds.

    Attributes:
        consecutive_failures: this many in a row open it.
        failure_rate: so does this share of failures (0 to 1] among at least `minimum_calls` in `window_s`.
        minimum_calls: fewer calls than this never trip the rate.
        window_s: how far back the rate looks.
        open_s: first open time; doubled each time it re-opens, with equal jitter.
        open_cap_s: longest open time, so that users are back on a healed primary soon.
        silent_open_cap_s: the same when what failed was silence: a probe then costs someone a first-token timeout.
        successes_to_close: consecutive successful probes that close it.
        probe_grace_s: a probe that has not reported this long after its own limit counts as failed.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    consecutive_failures: int = 5
    failure_rate: float = 0.5
    minimum_calls: int = 5
    window_s: float = 60.0
    open_s: float = 10.0
    open_cap_s: float = 30.0
    silent_open_cap_s: float = 120.0
    successes_to_close: int = 2
    probe_grace_s: float = 5.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not is_number(value, above=0):
                raise ConfigurationError(f"BreakerConfig.{f.name} must be a number > 0, not {value!r}")
        for name in ("consecutive_failures", "minimum_calls", "successes_to_close"):
            if not isinstance(getattr(self, name), int):
                raise ConfigurationError(f"BreakerConfig.{name} must be a whole number, not {getattr(self, name)!r}")
        if self.failure_rate > 1:
            raise ConfigurationError(f"BreakerConfig.failure_rate must be at most 1, not {self.failure_rate!r}")


class Permit(NamedTuple):
    """Leave to make one call, valid for one generation. A probe is the one call a half-open circuit lets through."""

    generation: int
    probe: bool = False


class Rejection(NamedTuple):
    """No leave now. `retry_at` is monotonic seconds; None when only an operator can change it."""

    reason: str
    retry_at: float | None


_FORCED = Rejection("circuit forced open", None)


class CircuitBreaker:
    """One target's circuit. Not thread-safe by itself: the owner holds the lock."""

    __slots__ = (
        "_buckets",
        "_closed_at",
        "_config",
        "_consecutive",
        "_failures",
        "_generation",
        "_last_open_s",
        "_open_until",
        "_opened_times",
        "_probe_expires",
        "_probe_successes",
        "_state",
        "_successes",
        "late_results",
    )

    def __init__(self, config: BreakerConfig | None = None) -> None:
        self._config = config or BreakerConfig()
        self._state = CircuitState.CLOSED
        self._generation = 0
        self._buckets: deque[list[int]] = deque()  # [second, successes, failures]
        self._successes = 0
        self._failures = 0
        self._consecutive = 0
        self._open_until = 0.0
        self._opened_times = 0
        self._last_open_s = 0.0
        self._closed_at = -math.inf
        self._probe_expires: float | None = None
        self._probe_successes = 0
        self.late_results = 0
        """Results that came back after the state had changed, and were ignored."""

    def configure(self, config: BreakerConfig) -> None:
        """When it opens, and for how long, from now on."""
        self._config = config

    @property
    def state(self) -> CircuitState:
        """Where the circuit is. OPEN is left lazily, by the next `acquire` after `open_until`."""
        return self._state

    @property
    def generation(self) -> int:
        """Counts changes of state."""
        return self._generation

    @property
    def open_until(self) -> float | None:
        """When an open circuit admits its next probe, in monotonic seconds."""
        return self._open_until if self._state is CircuitState.OPEN else None

    def peek(self, now: float) -> Rejection | None:
        """What `acquire` would refuse with now, changing nothing; None when it would permit."""
        state = self._state
        if state is CircuitState.FORCED_OPEN:
            return _FORCED
        if state is CircuitState.OPEN and now < self._open_until:
            return Rejection("circuit open", self._open_until)
        if state is CircuitState.HALF_OPEN and self._probe_expires is not None and now < self._probe_expires:
            return Rejection("circuit half-open, a probe is under way", self._probe_expires)
        return None  # of a lost probe, `acquire` says so and re-opens

    def acquire(self, now: float, lease_s: float, chance: float = 0.5) -> Permit | Rejection:
        """Leave to make one call that reports within `lease_s` seconds, or the reason why not."""
        rejection = self.peek(now)
        if rejection is not None:
            return rejection
        if self._state is CircuitState.CLOSED or self._state is CircuitState.DISABLED:
            return Permit(self._generation)
        if self._state is CircuitState.OPEN:
            self._enter(CircuitState.HALF_OPEN)
            self._probe_successes = 0
        elif self._probe_expires is not None:
            self._open(now, chance, silent=True)  # the probe was lost: as bad as silence
            return Rejection("circuit open", self._open_until)
        self._probe_expires = now + lease_s + self._config.probe_grace_s
        return Permit(self._generation, probe=True)

    def report(
        self,
        permit: Permit,
        result: Result,
        now: float,
        *,
        chance: float = 0.5,
        silent: bool = False,
        server_wait_s: float = 0.0,
    ) -> CircuitState | None:
        """Take one permit's result, at most once each. Returns the new state if it changed.

        Args:
            permit: from `acquire`. If the state has changed since, the result is only counted as late.
            result: what the call says about the target.
            now: monotonic seconds.
            chance: uniform in [0, 1), for the jitter of the open time.
            silent: the failure was silence (a timeout), so probes are dear.
            server_wait_s: what the server asked to wait: the circuit stays open at least that long.
        """
        if permit.generation != self._generation or self._state in (CircuitState.DISABLED, CircuitState.FORCED_OPEN):
            self.late_results += 1
            return None
        if self._state is CircuitState.HALF_OPEN:
            self._probe_expires = None
            if result is Result.NEUTRAL:
                return None
            if result is Result.FAILURE:
                return self._open(now, chance, silent=silent, at_least_s=server_wait_s)
            self._probe_successes += 1
            if self._probe_successes >= self._config.successes_to_close:
                self._closed_at = now
                return self._enter(CircuitState.CLOSED)
            return None
        if result is Result.NEUTRAL:
            return None
        self._count(now, result is Result.FAILURE)
        if result is Result.SUCCESS:
            self._consecutive = 0
            return None
        self._consecutive += 1
        total = self._successes + self._failures
        tripped = self._consecutive >= self._config.consecutive_failures or (
            total >= self._config.minimum_calls and self._failures >= self._config.failure_rate * total
        )
        return self._open(now, chance, silent=silent, at_least_s=server_wait_s) if tripped else None

    def _count(self, now: float, failed: bool) -> None:
        second = int(now)
        buckets = self._buckets
        if not buckets or buckets[-1][0] != second:
            oldest = now - self._config.window_s
            while buckets and buckets[0][0] + 1 <= oldest:
                _, successes, failures = buckets.popleft()
                self._successes -= successes
                self._failures -= failures
            buckets.append([second, 0, 0])
        if failed:
            buckets[-1][2] += 1
            self._failures += 1
        else:
            buckets[-1][1] += 1
            self._successes += 1

    def _open(self, now: float, chance: float, *, silent: bool, at_least_s: float = 0.0) -> CircuitState:
        if self._state is CircuitState.CLOSED and now - self._closed_at >= 2 * self._last_open_s:
            self._opened_times = 0  # it had been well for long enough: back to the shortest open time
        cap = self._config.silent_open_cap_s if silent else self._config.open_cap_s
        full = min(cap, self._config.open_s * 2.0**self._opened_times)
        self._last_open_s = max(at_least_s, full / 2 + chance * full / 2)
        self._open_until = now + self._last_open_s
        self._opened_times = min(self._opened_times + 1, 32)
        return self._enter(CircuitState.OPEN)

    def _enter(self, state: CircuitState) -> CircuitState:
        self._state = state
        self._generation += 1
        self._consecutive = 0
        if state is CircuitState.CLOSED:
            self._buckets.clear()
            self._successes = self._failures = 0
        return state

    def hasten(self, now: float) -> None:
        """If it is open, the next probe is due now."""
        if self._state is CircuitState.OPEN:
            self._open_until = min(self._open_until, now)

    def force_open(self) -> None:
        """Keep it open until `reset`."""
        self._enter(CircuitState.FORCED_OPEN)

    def reset(self) -> None:
        """Close it now and forget its history."""
        self._closed_at = -math.inf  # as if it had always been well: the next open time is the shortest
        self._enter(CircuitState.CLOSED)

    def disable(self) -> None:
        """Permit everything and learn nothing, until `reset`."""
        self._enter(CircuitState.DISABLED)

    def __repr__(self) -> str:
        calls = self._failures + self._successes
        return f"CircuitBreaker({self._state}, generation {self._generation}, {self._failures} failed of {calls})"
