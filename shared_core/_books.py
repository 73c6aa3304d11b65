"""The readers of the journal: what each attempt and each request costs, and who is told. None of them steers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shared_core._clock import Clock
from shared_core.chat.events import Finished, Usage
from shared_core.chat.quick import quickly
from shared_core.chat.request import CHARS_PER_TOKEN, ChatRequest
from shared_core.errors import FallbackError, InvalidOutput, ProviderError, Settlement
from shared_core.ledger.entry import EntryStatus, Ledger, LedgerEntry, Purpose
from shared_core.ledger.pricing import price_version
from shared_core.resilience.admission import SLOW_S, Gate, Outcome, Transition
from shared_core.resilience.breaker import CircuitState
from shared_core.routing.execution import Attempt, Execution
from shared_core.routing.flow import Call, Settle
from shared_core.routing.planner import Plan, Route
from shared_core.routing.price import FREE
from shared_core.routing.relay import Relay
from shared_core.telemetry.dispatch import Dispatcher
from shared_core.telemetry.events import (
    AttemptFailed,
    CircuitChanged,
    FellOver,
    RequestFailed,
    RequestHedged,
    RequestStarted,
    RequestSucceeded,
    RequestWaits,
    StreamContinued,
    TargetRecovered,
    TargetUnhealthy,
)

if TYPE_CHECKING:
    from shared_core._money import Leave, Money

__all__ = ["Books"]

_ASSUMED_OUTPUT = 4096
"""Output tokens assumed for the bound of an attempt that set no limit and whose model's limit is unknown."""
_NOTHING_USED = Usage()
_entry, _finished = quickly(LedgerEntry), quickly(Finished)  # one of each with every request
_HEALTH = frozenset({"unhealthy", "recovered"})


class Books:
    """Keeps one router's books. All of it is synchronous, so that no cancellation can split an entry."""

    def __init__(self, clock: Clock, ledger: Ledger, events: Dispatcher, *, metadata: bool) -> None:
        self._clock = clock
        self._now = clock.monotonic
        self.ledger = ledger
        self.events = events
        self.metadata = metadata
        """Whether answers carry it."""
        self.last: Execution | None = None
        """The request that ended last."""
        self.money: Money | None = None
        """Where attempts ask for leave to spend; None when there is neither a budget nor a file to write."""
        self.on_change: Callable[[], None] | None = None
        """Told that a circuit, a lock or a target's health has changed; must not block."""

    def opened(self, execution: Execution, chosen: Plan) -> None:
        """A request begins."""
        if self.events.active:
            self.events.emit(
                RequestStarted(
                    execution.id, self._clock.time(), chosen.targets, chosen.strategy, execution.request.streaming
                )
            )

    def hedged(self, execution: Execution) -> None:
        """A second target is asked beside a slow one."""
        found = execution.hedged
        if found is not None and self.events.active:
            self.events.emit(RequestHedged(execution.id, self._clock.time(), found.beside, found.target, found.after_s))

    def finished(self, call: Call, event: Finished, fault: ProviderError | None = None) -> None:
        """An attempt reached its terminal event: note what it used and who answered, also when it was no use."""
        attempt = call.attempt
        attempt.response_id = event.response_id
        attempt.model = event.model or attempt.model
        said = len(fault.answer.text) if isinstance(fault, InvalidOutput) else attempt.delivered
        attempt.usage = event.usage or _estimate(call.request, said)

    def settle(self, execution: Execution, step: Settle, chance: float, routes: tuple[Route, ...]) -> None:
        """Close one attempt: its gate learns, the ledger gets its row, observers are told."""
        now = self._now()
        attempt, outcome = step.attempt, step.outcome
        if attempt.ended is None:
            attempt.ended = now
        if outcome.first_token_s is not None and outcome.first_token_s > SLOW_S:
            closed = any(r.gate is not step.route.gate and r.gate.state is CircuitState.CLOSED for r in routes)
            outcome = outcome._replace(others_closed=closed)
        if execution.probe:
            outcome = outcome._replace(probe="call")
        gate = step.route.gate
        changes = gate.settle(step.admission, outcome, now, chance, attempt.usage)
        self._enter(execution, step)
        if changes or gate.news:
            self.tell_changes(execution.id, gate, changes)
        if self.events.active and not execution.probe:
            self._tell_attempt(execution, step)

    def waits(self, execution: Execution, route: Route, seconds: float, *, in_line: bool) -> None:
        """A request waits before it asks `route`. A back-off is not told: the attempt that failed says `will_retry`."""
        if self.events.active and not execution.probe and (in_line or route.gate.parked_until > self._now()):
            self.events.emit(RequestWaits(execution.id, self._clock.time(), route.name, seconds, in_line))

    def tell_changes(self, execution: str, gate: Gate, changes: Sequence[Transition] = ()) -> None:
        """Tell of `changes` at a gate, and of what else has changed there since somebody last asked."""
        news = gate.take_news()
        now, at = self._now(), self._clock.time()
        # A circuit that opens for a probe is told before what came of that, health after all of it.
        first = [change for change in news if change.state not in _HEALTH]
        for change in (*first, *changes, *(change for change in news if change.state in _HEALTH)):
            if change.state == "unhealthy":
                self.events.emit(TargetUnhealthy(execution, at, change.scope, change.reason))
            elif change.state == "recovered":
                self.events.emit(TargetRecovered(execution, at, change.scope))
            else:
                lasts = None if change.until is None else max(0.0, change.until - now)
                self.events.emit(CircuitChanged(execution, at, change.scope, change.state, lasts, change.reason))
        if self.on_change is not None:
            self.on_change()

    def _tell_attempt(self, execution: Execution, step: Settle) -> None:
        attempt, error, at = step.attempt, step.outcome.error, self._clock.time()
        previous = execution.attempts[attempt.number - 2] if attempt.number > 1 else None
        if previous is not None and previous.target != attempt.target and not attempt.hedge:
            why = previous.error.kind if isinstance(previous.error, ProviderError) else "error"
            self.events.emit(FellOver(execution.id, at, previous.target, attempt.target, str(why)))
        if attempt.seam is not None and attempt.delivered:
            begun = execution.seams[-1] if execution.seams else 0
            self.events.emit(StreamContinued(execution.id, at, attempt.target, begun, attempt.seam))
        if error is not None:
            self.events.emit(
                AttemptFailed(
                    execution.id, at, attempt.target, attempt.number, str(error.kind), error.message, step.will_retry
                )
            )

    def _enter(self, execution: Execution, step: Settle) -> None:
        """Write the attempt to the ledger and its cost to the journal."""
        route, attempt, outcome = step.route, step.attempt, step.outcome
        request, error = execution.request, outcome.error
        price = route.price()
        usage, latency = attempt.usage, outcome.latency_s
        cost: int | None = None
        bound: int | None = None
        # An answer that did not pass its check was given and will be billed like any other.
        billed = isinstance(error, InvalidOutput) and usage is not None
        if (error is None or billed) and not outcome.cancelled:
            usage = usage or _NOTHING_USED
            status = EntryStatus.ESTIMATED if usage.estimated else EntryStatus.POSTED
            if price is not None:
                cost = 0 if price is FREE else price.cost_nano(usage, latency)
        elif error is not None and error.settlement is Settlement.VOID and not attempt.delivered:
            status, cost, usage = EntryStatus.VOIDED, 0, usage or _NOTHING_USED
        else:
            status = EntryStatus.UNKNOWN
            usage = usage or _estimate(request, attempt.delivered)
            attempt.usage = usage
            if price is FREE:
                cost = 0
            elif price is not None:
                most = request.max_tokens or route.capabilities.max_output or _ASSUMED_OUTPUT
                bound = price.cost_nano(Usage(usage.input_tokens, max(most, usage.output_tokens)), latency)
        leave: Leave | None = step.admission.leave
        if leave is not None and leave.hard and status is EntryStatus.ESTIMATED and cost:
            status, cost = EntryStatus.UNKNOWN, None  # our count may be too low, and a hard budget must hold
        if leave is not None and status is EntryStatus.UNKNOWN and cost is None:
            bound = leave.ticket.bound_nano
        attempt.cost_nano = cost
        attempt.bound_nano = bound
        if price is None:
            version = None
        elif route.target.price is not None:
            version = "own"
        else:
            version = "free" if price is FREE else price_version()
        if execution.probe:
            purpose = Purpose.PROBE
        else:
            purpose = Purpose.HEDGE if attempt.hedge else Purpose.CALL
        entry = _entry(
            execution.id,
            attempt.number,
            route.name,
            route.provider.name,
            attempt.model,
            self._clock.time(),
            attempt.outcome,
            status,
            usage,
            cost,
            bound,
            latency,
            None if error is None else str(error.kind),
            version,
            request.user,
            request.tags,
            request.chain,
            route.local,
            outcome.first_token_s,
            purpose,
            attempt.response_id,
            None if error is None else error.request_id,
        )
        if leave is not None and self.money is not None:
            self.money.settle(leave, entry)
        else:
            self.ledger.record(entry)

    def probed(self, id_: str, route: Route, outcome: Outcome) -> None:
        """Enter a health check that cost nothing: the vendor's list of models was read."""
        error = outcome.error
        self.ledger.record(
            LedgerEntry(
                id_,
                1,
                route.name,
                route.provider.name,
                route.provider.model,
                self._clock.time(),
                "answered" if error is None else "failed",
                EntryStatus.POSTED if error is None else EntryStatus.VOIDED,
                _NOTHING_USED,
                0,
                latency_s=outcome.latency_s,
                error_kind=None if error is None else str(error.kind),
                local=route.local,
                purpose=Purpose.PROBE,
            )
        )

    def neutral(self, execution: Execution, call: Call, chance: float, routes: tuple[Route, ...]) -> None:
        """Settle an attempt whose caller walked away, or that met a bug: it says nothing about the target."""
        if call.admission.settled:
            return
        now = self._now()
        attempt = call.attempt
        if attempt.outcome == "running":
            attempt.outcome = "cancelled"
        attempt.ended = now
        outcome = Outcome(None, cancelled=True, latency_s=now - attempt.started, first_token_s=attempt.first_token_s)
        self.settle(execution, Settle(call.route, call.admission, outcome, attempt, False), chance, routes)
        if self.money is not None and execution.outcome != "running":
            self.money.forget(execution.id)

    def interrupted(self, execution: Execution, call: Call | None, error: BaseException) -> None:
        """The caller cancelled or walked away, or there is a bug. Note how, before the attempt is settled."""
        if isinstance(error, GeneratorExit):
            execution.outcome = "abandoned"
        else:
            execution.outcome = "failed" if isinstance(error, Exception) else "cancelled"
        execution.ended = self._now()
        if call is not None:
            call.attempt.outcome = execution.outcome
            if isinstance(error, Exception):
                call.attempt.error = error
        if self.money is not None and (call is None or call.admission.settled):
            self.money.forget(execution.id)  # else when that is settled
        if not execution.probe:
            self.last = execution
            self._tell_failure(execution, type(error).__name__)

    def failed(self, execution: Execution, failure: FallbackError) -> FallbackError:
        """Nobody answered. Returns the error for the caller."""
        execution.outcome = "failed"
        if self.money is not None:
            failure = self.money.failure(execution, failure)
            self.money.forget(execution.id)
        if not (execution.probe or execution.held):  # who holds it tells, if it is a failure in the end
            self.last = execution
            self._tell_failure(execution, str(failure))
        return failure

    def _tell_failure(self, execution: Execution, error: str) -> None:
        if self.events.active or (execution.outcome == "failed" and self.events.alert):
            lasted = (execution.ended or self._now()) - execution.started
            self.events.emit(
                RequestFailed(
                    execution.id, self._clock.time(), execution.outcome, error, len(execution.attempts), lasted
                )
            )

    def answered(self, execution: Execution, relay: Relay) -> Finished:
        """The request is answered. Returns the caller's last event: why it ended, what it used, who served it."""
        execution.outcome = "answered"
        if self.money is not None:
            self.money.forget(execution.id)
        execution.ended = now = self._now()
        if not execution.probe:
            self.last = execution
        finished, served = relay.finished, execution.served_by
        assert finished is not None
        assert served is not None
        usage = served.usage or _NOTHING_USED
        if len(execution.attempts) > 1:
            # What the caller reads is what was spent on it: the pieces of a continued answer, and answers that were
            # given whole and did not pass their check.
            for earlier in execution.attempts:
                if earlier is served:
                    continue
                paid = bool(execution.seams and earlier.delivered) or isinstance(earlier.error, InvalidOutput)
                if paid and earlier.usage is not None:
                    usage = usage + earlier.usage
        told = not execution.probe and (self.events.active or (execution.recovered and self.events.alert))
        metadata = execution.metadata() if self.metadata or told else {}
        if told:
            self.events.emit(
                RequestSucceeded(
                    execution.id,
                    self._clock.time(),
                    served.target,
                    len(execution.attempts),
                    now - execution.started,
                    metadata["used_fallback"],
                    metadata["cost_usd"],
                    tuple(_failure(a) for a in execution.attempts if a.error is not None),
                )
            )
        return _finished(
            finished.reason,
            finished.raw_reason,
            usage,
            finished.response_id,
            finished.model or served.model,
            finished.extra,
            finished.native,
            served.provider,
            served.target,
            metadata if self.metadata else {},
            served.origin,
        )


def _failure(attempt: Attempt) -> str:
    error = attempt.error
    return f"{attempt.target}: {error.kind if isinstance(error, ProviderError) else type(error).__name__}"


def _estimate(request: ChatRequest, characters: int) -> Usage:
    """Tokens nobody reported: four characters each."""
    return Usage(-(-request.characters // CHARS_PER_TOKEN), -(-characters // CHARS_PER_TOKEN), estimated=True)
