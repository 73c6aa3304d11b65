"""May this attempt start? `Gate` answers for one target: circuit, parking and account lock together.

Each `Admission` is settled exactly once; settling twice is a bug and says so. One short lock per gate, never held
across a call, an await or anybody else's code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from shared_core.errors import Disposition, ErrorKind, ProviderError, Scope
from shared_core.resilience.breaker import BreakerConfig, CircuitBreaker, CircuitState, Permit, Rejection, Result
from shared_core.resilience.health import HealthRecord, Hold, Pace, TargetHealth
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
    probe: Literal["models", "call"] | None = None
    """It was a health check: of the vendor's list of models, or by a call. It counts for circuit and status only."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A change worth telling: of a circuit's state, or a lock put on a target or account."""

    scope: str
    state: str
    until: float | None = None
    reason: str | None = None


class Account:
    """The lock on everything behind one key and endpoint: set by a bad key or an unpaid bill, never by slowness."""

    __slots__ = ("name", "reason", "since", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.since = 0.0
        self.until = 0.0
        self.reason = ""


class Gate:
    """Decides for one target, and learns from what became of its attempts. Thread-safe."""

    __slots__ = (
        "_lock",
        "_name",
        "_news",
        "account",
        "breaker",
        "budget",
        "health",
        "park_passes",
        "park_reason",
        "parked_since",
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
        self._news: list[Transition] = []
        self.parked_since = 0.0
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
                if self.health.checking_circuit and self.breaker.state is CircuitState.OPEN:
                    self._news.append(self._moved(CircuitState.OPEN, now))  # its probe was lost
                return Refusal(permit.reason, permit.retry_at)
            health = self.health
            if permit.probe and not health.checking_circuit:
                self._news.append(self._moved(CircuitState.HALF_OPEN, now))
            if not health.calls:
                health.begin(now)
            health.in_flight += 1
            health.calls += 1
            return Admission(permit, now)

    def _moved(self, state: CircuitState, now: float, reason: str | None = None) -> Transition:
        """The circuit has changed: remember it."""
        health = self.health
        health.checking_circuit = state is CircuitState.HALF_OPEN
        if state in (CircuitState.CLOSED, CircuitState.DISABLED):
            health.outages.mended(now)
        else:
            health.outages.broken(now)
        return self._note(Transition(self._name, f"circuit {state}", self.breaker.open_until, reason), now)

    def _note(self, change: Transition, now: float) -> Transition:
        self.health.changed(now, change.state, change.until, change.reason)
        return change

    @property
    def news(self) -> bool:
        """Whether something changed, beside what `settle` has returned, that nobody was told of yet."""
        return bool(self._news)

    def take_news(self) -> Sequence[Transition]:
        """What changed beside that, since the last time somebody asked."""
        with self._lock:
            news, self._news = self._news, []
            return news

    def _turn(self, now: float) -> None:
        """Say so if the target has become unhealthy or has recovered."""
        refusal = self._refusal(now)
        reason, passes = (None, False) if refusal is None else (refusal.reason, refusal.waits)
        health = self.health
        if health.turned(self.breaker.state, reason, passes=passes):
            word, why = ("unhealthy", reason or health.last_error) if health.sick else ("recovered", None)
            self._news.append(self._note(Transition(self._name, word, None, why), now))

    def peek(self, now: float) -> Refusal | None:
        """What `admit` would refuse with now, changing nothing."""
        with self._lock:
            refusal = self._refusal(now)
            if refusal is None and (rejection := self.breaker.peek(now)) is not None:
                refusal = Refusal(rejection.reason, rejection.retry_at)
            return refusal

    def settle(self, admission: Admission, outcome: Outcome, now: float, chance: float = 0.5) -> Sequence[Transition]:
        """Learn from one attempt. Returns what it changed; whether the target is well again is `news`.

        Raises:
            RuntimeError: the admission was settled before, which is a bug in the caller.
        """
        with self._lock:
            if admission.settled:
                raise RuntimeError(f"admission to {self._name!r} settled twice")
            admission.settled = True
            self.health.in_flight -= 1
            error = outcome.error
            if error is not None:
                return self._failed(admission, outcome, error, now, chance)
            if outcome.cancelled:
                return self._circuit(admission, Result.NEUTRAL, now, chance)
            return self._well(admission, outcome, now, chance)

    def _well(self, admission: Admission, outcome: Outcome, now: float, chance: float) -> Sequence[Transition]:
        health = self.health
        result = Result.SUCCESS
        if outcome.probe is None:
            if outcome.others_closed and self._slow(outcome.first_token_s):
                result = Result.FAILURE
            health.success(outcome.latency_s, outcome.first_token_s, now)
            self.budget.success()
        else:
            health.probed(now, ok=True)
            if outcome.probe == "models" and not admission.permit.probe:
                result = Result.NEUTRAL  # that its list of models can be read says little about its answers
        changes = self._circuit(admission, result, now, chance)
        if health.sick or changes:
            self._turn(now)
        return changes

    def _failed(
        self, admission: Admission, outcome: Outcome, error: ProviderError, now: float, chance: float
    ) -> Sequence[Transition]:
        health, rule = self.health, error.rule
        text = str(error.kind) if error.status is None else f"{error.kind} (HTTP {error.status})"
        trips = rule.trips_breaker and error.code not in ("deadline", "shortened", "no_turn")
        if outcome.probe is not None:
            health.probed(now, ok=not (trips or rule.locks is not None))
            health.note(text, now)
        elif trips:
            health.failure(text, now)
            self.budget.failure()
        else:
            health.note(text, now)
        asked = error.retry_after_s or 0.0
        wait = asked if asked > 0 and rule.trusts_wait else max(asked, rule.lock_s)
        changes: list[Transition] = []
        if rule.locks is not None and wait > 0:
            changes.append(self._lock_out(rule.locks, now, now + wait, error))
        changes += self._circuit(
            admission,
            Result.FAILURE if trips else Result.NEUTRAL,
            now,
            chance,
            silent=error.kind is ErrorKind.TIMEOUT,
            server_wait_s=error.retry_after_s or 0.0,
            reason=text,
        )
        self._turn(now)
        return changes

    def _lock_out(self, scope: Scope, now: float, until: float, error: ProviderError) -> Transition:
        reason = f"{error.kind}: {error.message[:200]}"
        health = self.health
        if scope is Scope.ACCOUNT:
            account = self.account
            if account.until <= now:
                account.since = now
            account.until, account.reason = max(until, account.until), reason
            health.outages.hold("account", account.since, account.until)
            return self._note(Transition(account.name, "account locked", until, reason), now)
        if until > self.parked_until:
            if self.parked_until <= now:
                self.parked_since = now
            self.parked_until, self.park_reason = until, reason
            self.park_passes = error.rule.disposition is Disposition.RETRY
            health.outages.hold("park", self.parked_since, until)
        return self._note(Transition(self._name, "parked", until, reason), now)

    def _circuit(
        self,
        admission: Admission,
        result: Result,
        now: float,
        chance: float,
        *,
        silent: bool = False,
        server_wait_s: float = 0.0,
        reason: str | None = None,
    ) -> Sequence[Transition]:
        state = self.breaker.report(
            admission.permit, result, now, chance=chance, silent=silent, server_wait_s=server_wait_s
        )
        return () if state is None else (self._moved(state, now, reason),)

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

    @property
    def pace(self) -> Pace:
        """What strategies compare: a cheaper reading than `read`."""
        with self._lock:
            return self.health.pace

    def read(self, now: float, *, full: bool = False) -> TargetHealth:
        """A frozen reading of health, circuit and availability; with windows of time and history if `full`."""
        refusal = self.peek(now)
        with self._lock:
            health, account = self.health, self.account
            locked = Hold(account.since, account.until, account.reason) if now < account.until else None
            parked = Hold(self.parked_since, self.parked_until, self.park_reason) if now < self.parked_until else None
            reading = health.read(
                self._name,
                now,
                self.breaker.state,
                reason=refusal.reason if refusal else None,
                retry_at=refusal.retry_at if refusal else None,
                passes=refusal.waits if refusal else False,
                parked=parked,
                locked=locked,
            )
            if not full:
                return reading
            if locked is not None:
                health.outages.hold("account", locked.since, locked.until)  # another target's call may have locked it
            else:
                health.outages.lift("account", now)
            return replace(reading, windows=health.windows(now), history=health.history(now))

    def reset(self, now: float | None = None) -> None:
        """Close the circuit, lift parking and the account's lock."""
        with self._lock:
            self.breaker.reset()
            self.parked_until = 0.0
            self.account.until = 0.0
            self.budget.tokens = self.budget.capacity
            if now is not None:
                self.health.outages.lift("park", now)
                self.health.outages.lift("account", now)
                self._by_hand(now)

    def force_open(self, now: float | None = None) -> None:
        """Send nothing to this target until `reset`."""
        with self._lock:
            self.breaker.force_open()
            self._by_hand(now)

    def force_close(self, now: float | None = None) -> None:
        """Close the circuit now and let it learn anew; parking and locks stay."""
        with self._lock:
            self.breaker.reset()
            self._by_hand(now)

    def disable_breaker(self, now: float | None = None) -> None:
        """Let everything through and learn nothing, until `reset`."""
        with self._lock:
            self.breaker.disable()
            self._by_hand(now)

    def _by_hand(self, now: float | None) -> None:
        if now is not None:
            self._news.append(self._moved(self.breaker.state, now, "by hand"))
            self._turn(now)
