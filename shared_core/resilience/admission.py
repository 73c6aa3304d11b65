"""May this attempt start? `Gate` answers for one target: locks, parking, circuits, rates and slots together.

Four things keep calls from a target, and each has an end of its own: a *lock* (the key, the bill, no such model) is
re-checked by one attempt after a while; a *park* (a throttle with its end, a day's quota) passes; an open *circuit* (it
failed) is probed; *limits* (rates and slots) have room again soon. What is wrong with the account, rather than with one
model behind it, closes all of its targets.

Each `Admission` is settled exactly once; settling twice is a bug and says so. One short lock per gate, never held
across a call, an await or anybody else's code.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from shared_core.chat.events import Usage
from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, Disposition, ErrorKind, ProviderError, Rule, Scope, Settlement
from shared_core.resilience.breaker import BreakerConfig, CircuitBreaker, CircuitState, Permit, Rejection, Result
from shared_core.resilience.health import HealthRecord, Hold, Pace, TargetHealth
from shared_core.resilience.locks import Lock
from shared_core.resilience.rate_limit import NO_LIMITS, Lease, Limiter, Limits, Ticket, Verdict, Want, Window
from shared_core.resilience.retry import RetryBudget

__all__ = ["Account", "Admission", "Gate", "Gates", "Outcome", "Refusal", "Transition"]

SLOW_S = 20.0
"""A first token later than this, and later than four times the median, is slow."""


class Refusal(NamedTuple):
    """The attempt may not start. `retry_at` is monotonic seconds, None when waiting will not help."""

    reason: str
    retry_at: float | None
    waits: bool = False
    """It passes: worth waiting for when nobody else is left."""
    line: bool = False
    """There is a line to wait in (`Gate.line_up`). `retry_at` may then be a guess."""


class Admission:
    """Leave for one attempt at one target. Settle it once, whatever happens."""

    __slots__ = ("claim", "lease", "leave", "permit", "settled", "started")

    def __init__(self, permit: Permit, started: float, lease: Lease | None = None, claim: Claim | None = None) -> None:
        self.permit = permit
        self.started = started
        self.settled = False
        self.lease = lease
        """A slot and a share of the rates; None where there are no limits to keep to."""
        self.claim = claim
        """What else hangs on this attempt; None on most days."""
        self.leave: Any = None
        """Leave to spend (`shared_core._money.Leave`), where the router's money is guarded."""


class Claim(NamedTuple):
    """What an attempt decides beside its target's circuit."""

    permit: Permit | None
    """Of the account's circuit, where several targets stand behind it."""
    account: bool
    """It is the re-check of the account's lock."""
    target: bool
    """It is the re-check of the target's lock."""


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


class Account(Lock):
    """Everything behind one key and endpoint: its lock, and a circuit of its own once several targets stand behind it.

    The lock is put on by a bad key or an unpaid bill. The circuit counts only what says that nobody can be reached
    there; what one model does is that target's own affair.
    """

    __slots__ = ("breaker", "gates", "mutex", "name")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.mutex = threading.Lock()
        self.breaker: CircuitBreaker | None = None
        self.gates = 0

    def join(self, config: BreakerConfig | None) -> None:
        """One more target stands behind it."""
        with self.mutex:
            self.gates += 1
            if self.gates > 1 and self.breaker is None:
                self.breaker = CircuitBreaker(config)

    def blocked(self, now: float) -> Refusal | None:
        """Why nothing behind it may be asked now."""
        if (locked := self.refusal(now)) is not None:
            return Refusal(f"account locked: {locked.reason}", locked.retry_at)
        if self.breaker is not None and (broken := self.breaker.peek(now)) is not None:
            return Refusal(f"account's {broken.reason}", broken.retry_at)
        return None

    def claim(self, now: float, lease_s: float, chance: float, lock: Lock) -> Claim | Refusal:
        """Leave for one attempt behind it, the target's own lock included."""
        with self.mutex:
            if (refusal := self.blocked(now)) is not None:
                return refusal
            permit = None if self.breaker is None else self.breaker.acquire(now, lease_s, chance)
            if isinstance(permit, Rejection):  # its probe was lost
                return Refusal(f"account's {permit.reason}", permit.retry_at)
            return Claim(permit, self.check(now, lease_s), lock.check(now, lease_s))

    def unclaim(self, claim: Claim, lock: Lock, now: float) -> None:
        """Nothing was sent under it after all."""
        with self.mutex:
            if claim.permit is not None and self.breaker is not None:
                self.breaker.report(claim.permit, Result.NEUTRAL, now)
            if claim.account:
                self.undecided()
            if claim.target:
                lock.undecided()


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
        "limiter",
        "lock",
        "park_passes",
        "park_reason",
        "parked_since",
        "parked_until",
        "prefill_rejected",
    )

    def __init__(
        self,
        name: str,
        config: BreakerConfig | None = None,
        account: Account | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._name = name
        self.account = account or Account(name)
        self.account.join(config)
        self.limiter = limiter or Limiter(name)
        """Rates and slots, shared with the other targets of a pool."""
        self.lock = Lock()
        """What this model is locked for: a permission, an entitlement, that there is no such model."""
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

    def under(self, account: Account, limiter: Limiter) -> Gate:
        """The same circuit, record and retry budget under another account or other limits.

        What is in flight is settled with this one, so that an old key's errors lock the old account.
        """
        heir = copy.copy(self)
        heir.account, heir.limiter = account, limiter
        return heir

    @property
    def mutexes(self) -> tuple[threading.Lock, ...]:
        """Its own, its account's and its limiter's."""
        return self._lock, self.account.mutex, self.limiter.mutex

    def orphan(self) -> None:
        """In a forked child: what is in flight, and who waits in line, are the parent's. What was learned stays."""
        self.health.in_flight = 0
        self.limiter.orphan()

    def configure(self, config: BreakerConfig) -> None:
        """When its circuit opens from now on; its state stays as it is."""
        with self._lock:
            self.breaker.configure(config)
        with self.account.mutex:
            if self.account.breaker is not None:
                self.account.breaker.configure(config)

    def lift(self) -> None:
        """Forget what another key was refused: parking, and locks on the model. The circuit stays."""
        with self._lock:
            self.lock = Lock()
            self.parked_until = 0.0

    def _refusal(self, now: float) -> Refusal | None:
        account = self.account
        if account.until or account.breaker is not None:  # on most days there is nothing to ask it
            blocked = account.blocked(now)
            if blocked is not None:
                return blocked
        if self.lock.until and (locked := self.lock.refusal(now)) is not None:
            return Refusal(f"locked: {locked.reason}", locked.retry_at)
        if now < self.parked_until:
            passes = self.park_passes
            return Refusal(
                f"parked: {self.park_reason}", self.parked_until, passes, passes and self.limiter.limits.queue > 0
            )
        return None

    def admit(
        self, now: float, lease_s: float, chance: float = 0.5, request: ChatRequest | None = None
    ) -> Admission | Refusal:
        """Leave for an attempt that ends within `lease_s` seconds, or the reason why not.

        `request` says what it would take of the rates; left out, it takes one request and no tokens.
        """
        with self._lock:
            refusal = self._refusal(now)
            if refusal is not None:
                return refusal
            if not self.limiter.active:
                return self._start(now, lease_s, chance, None)
            if (rejection := self.breaker.peek(now)) is not None:
                return Refusal(rejection.reason, rejection.retry_at)
            lease = self.limiter.take(now, self.limiter.want(request))
            if isinstance(lease, Verdict):
                return _later(lease, self.limiter.limits)
            return self._start(now, lease_s, chance, lease)

    def _start(self, now: float, lease_s: float, chance: float, lease: Lease | None) -> Admission | Refusal:
        """Start an attempt under `lease`, which goes back if circuits or locks are against it."""
        claim: Claim | None = None
        if self.account.until or self.lock.until or self.account.breaker is not None:
            answer = self.account.claim(now, lease_s, chance, self.lock)
            if isinstance(answer, Refusal):
                return self._turned_down(answer, lease, now)
            claim = answer
        permit = self.breaker.acquire(now, lease_s, chance)
        if isinstance(permit, Rejection):
            if self.health.checking_circuit and self.breaker.state is CircuitState.OPEN:
                self._news.append(self._moved(CircuitState.OPEN, now))  # its probe was lost
            if claim is not None:
                self.account.unclaim(claim, self.lock, now)
            return self._turned_down(Refusal(permit.reason, permit.retry_at), lease, now)
        health = self.health
        if permit.probe and not health.checking_circuit:
            self._news.append(self._moved(CircuitState.HALF_OPEN, now))
        if not health.calls:
            health.begin(now)
        health.in_flight += 1
        health.calls += 1
        return Admission(permit, now, lease, claim)

    def _turned_down(self, refusal: Refusal, lease: Lease | None, now: float) -> Refusal:
        if lease is not None:
            self.limiter.return_unused(lease, now)
        return refusal

    def _close(self, admission: Admission) -> None:
        if admission.settled:
            raise RuntimeError(f"admission to {self._name!r} settled twice")
        admission.settled = True
        self.health.in_flight = max(0, self.health.in_flight - 1)  # none are left of before a fork

    def withdraw(self, admission: Admission, now: float) -> None:
        """Nothing was sent under it after all: everything it took goes back, and nobody learns anything.

        Raises:
            RuntimeError: the admission was settled before, which is a bug in the caller.
        """
        with self._lock:
            self._close(admission)
            self.health.calls -= 1
            self.breaker.report(admission.permit, Result.NEUTRAL, now)
            if admission.claim is not None:
                self.account.unclaim(admission.claim, self.lock, now)
            if admission.lease is not None:
                self.limiter.return_unused(admission.lease, now)

    # ── waiting in line ──────────────────────────────────────────────────────────────────────────────────────────────

    def line_up(self, now: float, request: ChatRequest | None, wake: Callable[[], None]) -> Ticket | Refusal:
        """A place in the line for rates, slots and the end of a park; or why waiting is no use.

        The ticket has its lease already, or `wake` is called, from any thread, when something about it has changed:
        then look at it, tell the limiter when its `wake_at` has come (`Limiter.due`), and `enter` with it. Whoever
        gives up tells `Limiter.leave`.
        """
        with self._lock:
            refusal = self._refusal(now)
            if refusal is None and (rejection := self.breaker.peek(now)) is not None:
                refusal = Refusal(rejection.reason, rejection.retry_at)
            if refusal is not None and not refusal.line:
                return refusal
            if refusal is not None and refusal.retry_at is not None:
                self.limiter.hold(now, refusal.retry_at, None)
            ticket = self.limiter.queue(now, self.limiter.want(request), wake, self)
            return Refusal(ticket.reason, None) if isinstance(ticket, Verdict) else ticket  # the line is full

    def enter(self, ticket: Ticket, now: float, lease_s: float, chance: float = 0.5) -> Admission | Refusal:
        """Start the attempt whose turn has come; or why it may not start after all."""
        with self._lock:
            lease, ticket.lease = ticket.lease, None
            refusal = self._refusal(now)
            if refusal is not None:
                return self._turned_down(refusal, lease, now)
            if lease is not None:
                return self._start(now, lease_s, chance, lease)
            if (rejection := self.breaker.peek(now)) is not None:
                return Refusal(rejection.reason, rejection.retry_at)
            return Refusal("no turn came in time", None)

    def learn(self, windows: Iterable[Window], now: float) -> None:
        """Heed what the vendor's headers say of its rate limits."""
        self.limiter.learn(windows, now)

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
        reason = None if refusal is None else refusal.reason
        health = self.health
        if health.turned(self.state, reason, passes=refusal is not None and refusal.waits):
            word, why = ("unhealthy", reason or health.last_error) if health.sick else ("recovered", None)
            self._news.append(self._note(Transition(self._name, word, None, why), now))

    def peek(self, now: float) -> Refusal | None:
        """What `admit` would refuse with now, changing nothing."""
        with self._lock:
            refusal = self._refusal(now)
            if refusal is None and (rejection := self.breaker.peek(now)) is not None:
                refusal = Refusal(rejection.reason, rejection.retry_at)
        if refusal is None and (verdict := self.limiter.peek(now)) is not None:
            refusal = _later(verdict, self.limiter.limits)
        return refusal

    def settle(
        self, admission: Admission, outcome: Outcome, now: float, chance: float = 0.5, usage: Usage | None = None
    ) -> Sequence[Transition]:
        """Learn from one attempt. Returns what it changed; whether the target is well again is `news`.

        `usage` corrects what the attempt was thought to take of the rates.

        Raises:
            RuntimeError: the admission was settled before, which is a bug in the caller.
        """
        with self._lock:
            self._close(admission)
            if outcome.probe is not None:
                self.health.calls -= 1  # a health check is no call
            if admission.lease is not None:
                self._give_back(admission.lease, outcome, now, usage)
            error = outcome.error
            if error is not None:
                changes = self._failed(admission, outcome, error, now, chance)
            elif outcome.cancelled:
                changes = self._circuit(admission, Result.NEUTRAL, now, chance)
            else:
                changes = self._well(admission, outcome, now, chance)
            if admission.claim is not None and (more := self._decide(admission.claim, outcome, now, chance)):
                changes = (*changes, *more)
                self._turn(now)
            return changes

    def _give_back(self, lease: Lease, outcome: Outcome, now: float, usage: Usage | None) -> None:
        used: Want | None = None
        if usage is not None and not usage.estimated:
            used = Want(usage.input_tokens, usage.output_tokens)
        elif outcome.error is not None and outcome.error.settlement is Settlement.VOID:
            used = Want()  # it was refused before any token was read
        self.limiter.release(lease, now, used, answered=outcome.error is None and not outcome.cancelled)

    def _decide(self, claim: Claim, outcome: Outcome, now: float, chance: float) -> Sequence[Transition]:
        """What the attempt says of the account's circuit, and of locks that it was the re-check of."""
        account, error = self.account, outcome.error
        well = error is None and not outcome.cancelled
        changes: list[Transition] = []
        with account.mutex:
            for checked, lock, name, word in (
                (claim.account, account, account.name, "account unlocked"),
                (claim.target, self.lock, self._name, "unlocked"),
            ):
                if not checked:
                    continue
                if well and lock.lift():
                    self.health.outages.lift("account" if lock is account else "lock", now)
                    changes.append(self._note(Transition(name, word), now))
                elif now >= lock.until:  # it was not locked again
                    lock.undecided()
            if claim.permit is not None and account.breaker is not None:
                state = account.breaker.report(
                    claim.permit, _reached(outcome), now, chance=chance, server_wait_s=_asked(error)
                )
                if state is not None:
                    until = account.breaker.open_until
                    reason = None if error is None else str(error.kind)
                    changes.append(self._note(Transition(account.name, f"circuit {state}", until, reason), now))
                    self.health.outages.lift("account's circuit", now)
                    if until is not None:
                        self.health.outages.hold("account's circuit", now, until)
                        self.limiter.send_away(self)
        return changes

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
        asked = _asked(error)
        wait = asked if asked > 0 and rule.trusts_wait else max(asked, rule.lock_s)
        changes: list[Transition] = []
        if rule.locks is not None and wait > 0:
            changes.append(self._lock_out(rule.locks, now, now + wait, error, chance))
        ramp = error.kind is ErrorKind.RAMP
        if error.kind in _CROWDED and self.limiter.throttled(now, admission.started, ramp=ramp):
            changes.append(self._slowed(text, now))
        # That nobody can be reached is the account's failure where other targets stand behind it.
        own = error.kind is not ErrorKind.CONNECT or admission.claim is None or admission.claim.permit is None
        changes += self._circuit(
            admission,
            Result.FAILURE if trips and own else Result.NEUTRAL,
            now,
            chance,
            silent=error.kind is ErrorKind.TIMEOUT,
            server_wait_s=asked,
            reason=text,
        )
        self._turn(now)
        return changes

    def _slowed(self, text: str, now: float) -> Transition:
        slots = "" if self.limiter.slots is None else f", {self.limiter.slots} slots"
        told = f"{text}: {self.limiter.pace:.0%} of its rates{slots}"
        return self._note(Transition(self._name, "slowed", None, told), now)

    def _lock_out(self, scope: Scope, now: float, until: float, error: ProviderError, chance: float) -> Transition:
        reason = f"{error.kind}: {error.message[:200]}"
        health = self.health
        if scope is Scope.ACCOUNT:
            account = self.account
            with account.mutex:
                account.put(now, until, reason)
            health.outages.hold("account", account.since, account.until)
            self.limiter.send_away(self)
            return self._note(Transition(account.name, "account locked", until, reason), now)
        if _locks(error.rule):
            self.lock.put(now, until, reason)
            health.outages.hold("lock", self.lock.since, self.lock.until)
            self.limiter.send_away(self)
            return self._note(Transition(self._name, "locked", until, reason), now)
        if until > self.parked_until:
            if self.parked_until <= now:
                self.parked_since = now
            self.parked_until, self.park_reason = until, reason
            self.park_passes = error.rule.disposition is Disposition.RETRY
            health.outages.hold("park", self.parked_since, until)
            if self.park_passes:
                self.limiter.hold(now, until, chance)
            else:
                self.limiter.send_away(self)
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
        if state is None:
            return ()
        if state is CircuitState.OPEN:
            self.limiter.send_away(self)
        return (self._moved(state, now, reason),)

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
        """The circuit's state: its account's while that is not closed, else its own."""
        shared = self.account.breaker
        if shared is not None and shared.state is not CircuitState.CLOSED:
            return shared.state
        return self.breaker.state

    @property
    def pace(self) -> Pace:
        """What strategies compare: a cheaper reading than `read`."""
        health = self.health
        pace = health.last_pace  # one frozen value, read whole without the lock
        if pace is not None and pace.calls == health.calls:
            return pace
        with self._lock:
            return health.pace

    def read(self, now: float, *, full: bool = False) -> TargetHealth:
        """A frozen reading of health, circuit and availability; with windows of time and history if `full`."""
        refusal = self.peek(now)
        with self._lock:
            health, account = self.health, self.account
            lock = account if now < account.until else self.lock
            locked = Hold(lock.since, lock.until, lock.reason) if now < lock.until else None
            parked = Hold(self.parked_since, self.parked_until, self.park_reason) if now < self.parked_until else None
            reading = health.read(
                self._name,
                now,
                self.state,
                reason=refusal.reason if refusal else None,
                retry_at=refusal.retry_at if refusal else None,
                passes=refusal is not None and refusal.waits,
                parked=parked,
                locked=locked,
            )
            if not full:
                return reading
            if facts := self.limiter.facts(now):
                reading = replace(reading, facts={**reading.facts, "limits": facts})
            if locked is not None and lock is account:
                health.outages.hold("account", locked.since, locked.until)  # another target's call may have locked it
            else:
                health.outages.lift("account", now)
            return replace(reading, windows=health.windows(now), history=health.history(now))

    # ── health checks ────────────────────────────────────────────────────────────────────────────────────────────────

    def hasten(self, now: float) -> None:
        """An operator asks: the probe of an open circuit and the re-check of a lock are due now.

        What is forced open stays so, and so does a pause whose end the server has named.
        """
        with self._lock, self.account.mutex:
            self.breaker.hasten(now)
            if self.account.breaker is not None:
                self.account.breaker.hasten(now)
            self.account.due()
            self.lock.due()

    def checking(self, more: int) -> None:
        """So many more health checks are under way (-1 when one has ended)."""
        with self._lock:
            self.health.checking += more

    def checked(self, now: float, *, ok: bool) -> None:
        """A health check that asked nobody has ended: the target's own report."""
        with self._lock:
            self.health.probed(now, ok=ok)
            self._turn(now)

    # ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def reset(self, now: float | None = None) -> None:
        """Close its circuits, lift parking and locks, forget what limits have learned."""
        with self._lock:
            self.breaker.reset()
            with self.account.mutex:
                if self.account.breaker is not None:
                    self.account.breaker.reset()
                self.account.lift()
                self.lock.lift()
            self.parked_until = 0.0
            self.budget.tokens = self.budget.capacity
            self.limiter.reset()
            if now is not None:
                for what in ("park", "account", "lock", "account's circuit"):
                    self.health.outages.lift(what, now)
                self._by_hand(now)

    def force_open(self, now: float | None = None) -> None:
        """Send nothing to this target until `reset`."""
        with self._lock:
            self.breaker.force_open()
            self.limiter.send_away(self)
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


class Gates:
    """Makes the gates of one router, and keeps what several of them share: accounts, and pools of limits."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._limiters: dict[tuple[object, ...], Limiter] = {}

    def gate(
        self,
        name: str,
        account: str,
        model: str,
        breaker: BreakerConfig | None = None,
        limits: Limits | None = None,
    ) -> Gate:
        """A gate with a circuit and a record of its own. A lock on its account is due for a re-check now.

        Targets that name the same pool share one set of limits, and so do those of one account and model whose limits
        are the same.

        Raises:
            ConfigurationError: it has other limits than the rest of its pool.
        """
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = Account(account)
        else:
            with known.mutex:
                known.due()
        return Gate(name, breaker, known, self.limiter(name, account, model, limits))

    def limiter(self, name: str, account: str, model: str, limits: Limits | None) -> Limiter:
        """Who keeps to the limits of a target.

        Raises:
            ConfigurationError: it has other limits than the rest of its pool.
        """
        limits = limits or NO_LIMITS
        key = (account, model, limits) if limits.pool is None else (limits.pool,)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = Limiter(limits.pool or name, limits)
        elif limiter.limits != limits:
            raise ConfigurationError(
                f"target {name!r} is in the pool {limits.pool!r}, whose limits are {limiter.limits!r}, not {limits!r}\n"
                "hint: give all targets of a pool the same limits, or this one another pool"
            )
        return limiter


_CROWDED = frozenset({ErrorKind.THROTTLED, ErrorKind.RAMP, ErrorKind.OVERLOADED})
"""Too many calls: what lowers rates and slots."""


def _locks(rule: Rule) -> bool:
    """Whether the error says what waiting does not mend, rather than naming an end."""
    return rule.lock_s > 0 and not rule.trusts_wait


def _asked(error: ProviderError | None) -> float:
    return 0.0 if error is None else error.retry_after_s or 0.0


def _later(verdict: Verdict, limits: Limits) -> Refusal:
    """Rates or slots are used up: a refusal that passes, if there is a line at all."""
    line = limits.queue > 0
    return Refusal(verdict.reason, verdict.guess if verdict.at == math.inf else verdict.at, line, line)


def _reached(outcome: Outcome) -> Result:
    """What an attempt says about whether anybody can be reached at its account's endpoint."""
    error = outcome.error
    if error is None:
        return Result.NEUTRAL if outcome.cancelled else Result.SUCCESS
    if error.kind is ErrorKind.CONNECT:
        return Result.FAILURE
    return Result.NEUTRAL if error.status is None else Result.SUCCESS
