"""May this attempt start? `Gate` answers for one target: circuit, parking and account lock together.

Each `Admission` is settled exactly once; settling twice is a bug and says so. One short lock per gate, never held
across a call, an await or anybody else's code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared_core.errors import Disposition, ErrorKind, ProviderError, Scope
from shared_core.resilience.breaker import BreakerConfig, CircuitBreaker, CircuitState, Permit, Rejection, Result
from shared_core.resilience.health import HealthRecord, TargetHealth
from shared_core.resilience.retry import RetryBudget

__all__ = ["Account", "Admission", "Gate", "Outcome", "Refusal", "Transition"]

SLOW_S = 20.0
"""A first token later than this, and later than four times the median, is slow."""


class Refusal(NamedTuple):
    """The attempt may not start. `retry_at` is monotonic seconds, None when waiting will not help."""

    reason: str
    retry_at: float | None
    waits: bool = False
    """The end is known and named by the server: worth waiting for when nobody else is left."""


class Admission:
    """Leave for one attempt at one target. Settle it once, whatever happens."""

    __slots__ = ("permit", "settled", "started")

    def __init__(self, permit: Permit, started: float) -> None:
        self.permit = permit
        self.started = started
        self.settled = False


class Outcome(NamedTuple):
    """How an attempt ended: the error, or None for success; or that its caller walked away."""

    error: ProviderError | None = None
    cancelled: bool = False
    latency_s: float = 0.0
    first_token_s: float | None = None
    others_closed: bool = False
    """Another target's circuit is closed, so slowness may count (slow beats nothing)."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A change worth telling: of a circuit's state, or a lock put on a target or account."""

    scope: str
    state: str
    until: float | None = None
    reason: str | None = None


class Account:
    """The lock on everything behind one key and endpoint: set by a bad key or an unpaid bill, never by slowness."""

    __slots__ = ("name", "reason", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.until = 0.0
        self.reason = ""


class Gate:
    """Decides for one target, and learns from what became of its attempts. Thread-safe."""

    __slots__ = (
        "_lock",
        "_name",
        "account",
        "breaker",
        "budget",
        "health",
        "park_passes",
        "park_reason",
        "parked_until",
        "prefill_rejected",
    )

    def __init__(self, name: str, config: BreakerConfig | None = None, account: Account | None = None) -> None:
        self._lock = threading.Lock()
        self._name = name
        self.account = account or Account(name)
        self.breaker = CircuitBreaker(config)
        self.budget = RetryBudget()
        self.health = HealthRecord()
        self.parked_until = 0.0
        self.park_reason = ""
        self.park_passes = False
        """It is parked for a wait that passes; not because, say, it has no such model."""
        self.prefill_rejected = False
        """It has refused an assistant prefill once; it is asked in words from then on."""

    def _refusal(self, now: float) -> Refusal | None:
        account = self.account
        if now < account.until:
            return Refusal(f"account locked: {account.reason}", account.until)
        if now < self.parked_until:
            return Refusal(f"parked: {self.park_reason}", self.parked_until, self.park_passes)
        return None

    def admit(self, now: float, lease_s: float, chance: float = 0.5) -> Admission | Refusal:
        """Leave for an attempt that ends within `lease_s` seconds, or the reason why not."""
        with self._lock:
            refusal = self._refusal(now)
            if refusal is not None:
                return refusal
            permit = self.breaker.acquire(now, lease_s, chance)
            if isinstance(permit, Rejection):
                return Refusal(permit.reason, permit.retry_at)
            self.health.in_flight += 1
            self.health.calls += 1
            return Admission(permit, now)

    def peek(self, now: float) -> Refusal | None:
        """What `admit` would refuse with now, changing nothing."""
        with self._lock:
            refusal = self._refusal(now)
            if refusal is None and (rejection := self.breaker.peek(now)) is not None:
                refusal = Refusal(rejection.reason, rejection.retry_at)
            return refusal

    def settle(self, admission: Admission, outcome: Outcome, now: float, chance: float = 0.5) -> Sequence[Transition]:
        """Learn from one attempt. Returns what changed.

        Raises:
            RuntimeError: the admission was settled before, which is a bug in the caller.
        """
        with self._lock:
            if admission.settled:
                raise RuntimeError(f"admission to {self._name!r} settled twice")
            admission.settled = True
            health = self.health
            health.in_flight -= 1
            error = outcome.error
            if error is None:
                if outcome.cancelled:
                    return self._circuit(admission, Result.NEUTRAL, now, chance)
                slow = outcome.others_closed and self._slow(outcome.first_token_s)
                health.success(outcome.latency_s, outcome.first_token_s)
                self.budget.success()
                return self._circuit(admission, Result.FAILURE if slow else Result.SUCCESS, now, chance)
            changes: list[Transition] = []
            rule = error.rule
            text = str(error.kind) if error.status is None else f"{error.kind} (HTTP {error.status})"
            if rule.trips_breaker and error.code not in ("deadline", "shortened", "no_turn"):
                health.failure(text, now)
                self.budget.failure()
                result = Result.FAILURE
            else:
                health.note(text, now)
                result = Result.NEUTRAL
            asked = error.retry_after_s or 0.0
            wait = asked if asked > 0 and rule.trusts_wait else max(asked, rule.lock_s)
            if rule.locks is not None and wait > 0:
                changes.append(self._lock_out(rule.locks, now + wait, error))
            changes += self._circuit(
                admission,
                result,
                now,
                chance,
                silent=error.kind is ErrorKind.TIMEOUT,
                server_wait_s=error.retry_after_s or 0.0,
            )
            return changes

    def _lock_out(self, scope: Scope, until: float, error: ProviderError) -> Transition:
        reason = f"{error.kind}: {error.message[:200]}"
        if scope is Scope.ACCOUNT:
            self.account.until, self.account.reason = max(until, self.account.until), reason
            return Transition(self.account.name, "account locked", until, reason)
        if until > self.parked_until:
            self.parked_until, self.park_reason = until, reason
            self.park_passes = error.rule.disposition is Disposition.RETRY
        return Transition(self._name, "parked", until, reason)

    def _circuit(
        self,
        admission: Admission,
        result: Result,
        now: float,
        chance: float,
        *,
        silent: bool = False,
        server_wait_s: float = 0.0,
    ) -> list[Transition]:
        state = self.breaker.report(
            admission.permit, result, now, chance=chance, silent=silent, server_wait_s=server_wait_s
        )
        return [] if state is None else [Transition(self._name, f"circuit {state}", self.breaker.open_until)]

    def _slow(self, first_token_s: float | None) -> bool:
        if first_token_s is None or first_token_s <= SLOW_S:
            return False
        return first_token_s > 4 * (self.health.median_first_token_s or 0.0)

    @property
    def allows_retry(self) -> bool:
        """Whether the target's retry budget allows another try of it now."""
        with self._lock:
            return self.budget.allows_retry

    @property
    def state(self) -> CircuitState:
        """The circuit's state."""
        return self.breaker.state

    def read(self, now: float) -> TargetHealth:
        """A frozen reading of health, circuit and availability."""
        refusal = self.peek(now)
        with self._lock:
            return self.health.read(
                self._name,
                now,
                self.breaker.state,
                reason=refusal.reason if refusal else None,
                retry_at=refusal.retry_at if refusal else None,
            )

    def reset(self) -> None:
        """Close the circuit, lift parking and the account's lock."""
        with self._lock:
            self.breaker.reset()
            self.parked_until = 0.0
            self.account.until = 0.0
            self.budget.tokens = self.budget.capacity

    def force_open(self) -> None:
        """Send nothing to this target until `reset`."""
        with self._lock:
            self.breaker.force_open()

    def disable_breaker(self) -> None:
        """Let everything through and learn nothing, until `reset`."""
        with self._lock:
            self.breaker.disable()
