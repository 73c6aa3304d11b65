"""Leave to spend: what an attempt may cost at worst, whether the budgets have room for it, and the row in the ledger.

Nothing here runs for a router without budgets whose ledger is memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from shared_core._clock import Clock
from shared_core.chat.request import ChatRequest
from shared_core.errors import (
    AllTargetsFailed,
    BudgetExceeded,
    ConfigurationError,
    Disposition,
    FallbackError,
    InvalidOutput,
    LedgerError,
    ProviderError,
)
from shared_core.ledger.entry import Ledger, LedgerEntry, Purpose
from shared_core.ledger.memory import MemoryLedger
from shared_core.ledger.meters import Meters
from shared_core.ledger.store import (
    Crossed,
    Draft,
    Exhausted,
    LedgerStore,
    Notice,
    Overcharged,
    Ticket,
)
from shared_core.resilience.admission import Refusal
from shared_core.resilience.bound import input_bound
from shared_core.resilience.budget import (
    NANO,
    Ask,
    Budget,
    BudgetReport,
    Budgets,
    BudgetStatus,
    Claim,
    Denial,
    MeterKey,
    Reading,
    decide,
)
from shared_core.routing.execution import Execution
from shared_core.routing.flow import Admit
from shared_core.routing.planner import Route
from shared_core.routing.price import FREE, Price
from shared_core.routing.target import built
from shared_core.telemetry.dispatch import Dispatcher
from shared_core.telemetry.events import BudgetExhausted, BudgetOvercharged, BudgetWarning, LedgerTrouble

__all__ = ["Leave", "Money", "budgets_of"]

CAP = 8192
"""Output tokens that an attempt is limited to where a hard budget needs a limit and the request has none."""
REASONING_CAP = 32_768
"""The same for models that think before they speak: their thoughts are output."""
LEAST_CAP = 256
"""Where less than the cap is affordable, the limit is lowered, but not below this."""
LEAST_REASONING_CAP = 2048
_ASSUMED_OUTPUT = 4096
"""Output tokens assumed for the bound where nothing limits them and no budget is hard."""
_ASKING = 4096
"""Bytes of the words with which a target is asked to go on, or to do better."""

_UNSIZED = ("the size of what the request refers to is unknown", "send its bytes in place of its address")
_ENDLESS = (
    "it is paid by the second and has no deadline",
    "give the request a timeout_s, or the router a Timeouts.total",
)


class Leave(NamedTuple):
    """That an attempt may spend: its row, and the limit on its output that this depends on."""

    ticket: Ticket
    max_tokens: int | None = None
    """To be set on the wire; None where the request has a limit of its own, or needs none."""
    purse: Ticket | None = None
    """The same for the budgets of this one request."""
    hard: bool = False
    """Whether a hard budget counts it: then what nobody has reported is charged at the bound."""


class _Worst(NamedTuple):
    """What an attempt can cost at worst."""

    ask: Ask | None
    price: Price | None = None
    tokens_in: int = 0
    cap: int | None = None
    """Output tokens at `ask.most`, where they have to be limited."""
    seconds: float = 0.0
    why: tuple[str, str] | None = None
    """Why it is unknown and what helps, where the price is known."""


class Money:
    """Asks for leave to spend, for one router."""

    def __init__(self, clock: Clock, ledger: Ledger, budgets: Budgets, events: Dispatcher) -> None:
        self._clock = clock
        self._events = events
        self.budgets = budgets
        self._store: LedgerStore
        self._apart = not isinstance(ledger, LedgerStore)
        """The ledger keeps rows only: what budgets count is kept beside it."""
        self._store = ledger if isinstance(ledger, LedgerStore) else MemoryLedger(keep=0)
        self._ledger = ledger
        self._purses: dict[str, Meters] = {}
        self._denied: dict[str, tuple[str, Denial]] = {}
        self._troubles: dict[str, LedgerError] = {}

    # ── before ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, execution: Execution, step: Admit) -> Leave | Refusal:
        """Leave for an attempt, or why not. Its row is on disk when this returns."""
        drafted = self._draft(execution, step)
        if isinstance(drafted, Refusal):
            return drafted
        draft, worst = drafted
        try:
            answer = self._store.reserve(draft, dispatch=True)
        except LedgerError as error:
            return self._unwritable(execution, error)
        return self._granted(execution, draft, worst, answer)

    async def areserve(self, execution: Execution, step: Admit) -> Leave | Refusal:
        """The same, without blocking the event loop."""
        drafted = self._draft(execution, step)
        if isinstance(drafted, Refusal):
            return drafted
        draft, worst = drafted
        try:
            answer = await self._store.areserve(draft, dispatch=True)
        except LedgerError as error:
            return self._unwritable(execution, error)
        return self._granted(execution, draft, worst, answer)

    def _draft(self, execution: Execution, step: Admit) -> tuple[Draft, _Worst] | Refusal:
        route, request, at = step.route, step.request, self._clock.time()
        price = route.price()
        claims: tuple[Claim, ...] = ()
        own: tuple[Claim, ...] = ()
        free = price is FREE or (price is not None and price.free)
        if self.budgets.all and not free:
            claims = self.budgets.claims(at, route.name, request.user, request.tags)
            if self.budgets.per_request:
                own = self.budgets.requests(route.name, request.user, request.tags)
        if free:
            worst = _Worst(Ask(0, 0))
        else:
            hard = _hard(claims) or _hard(own)
            worst = _worst(route, request, price, _added(execution), step.lease_s, hard=hard)
        if own:
            purse = self._purses.setdefault(execution.id, Meters())
            verdict = decide(worst.ask, own, purse.read(None))
            if isinstance(verdict, Denial):
                return self._refuse(execution, route.name, verdict, worst)
            if worst.ask is not None and verdict.nano < worst.ask.most:
                worst = worst._replace(ask=Ask(worst.ask.least, verdict.nano))
        return (
            Draft(
                execution.id,
                route.name,
                route.provider.name,
                request.model or route.provider.model,
                at,
                worst.ask,
                claims,
                request.user,
                request.tags,
                request.chain,
                route.local,
                Purpose.PROBE if execution.probe else Purpose.CALL,
                self.tell,
            ),
            worst,
        )

    def _unwritable(self, execution: Execution, error: LedgerError) -> Refusal:
        self._troubles.setdefault(execution.id, error)
        return Refusal(f"a hard budget applies, and the ledger cannot be written ({error.reason}): {error}", None)

    def _granted(self, execution: Execution, draft: Draft, worst: _Worst, answer: Ticket | Denial) -> Leave | Refusal:
        if isinstance(answer, Denial):
            return self._refuse(execution, draft.target, answer, worst)
        purse = None
        if self.budgets.per_request and (meters := self._purses.get(execution.id)) is not None:
            request = execution.request
            own = self.budgets.requests(draft.target, request.user, request.tags)
            if own and answer.bound_nano is not None:
                asked = draft._replace(ask=Ask(answer.bound_nano, answer.bound_nano), claims=own)
                meters.reserve(asked, ())
                purse = Ticket(asked, answer.bound_nano, answer.status)
        cap = worst.cap
        lowered = worst.ask is not None and answer.bound_nano is not None and answer.bound_nano < worst.ask.most
        if cap is not None and lowered and answer.bound_nano is not None and worst.price is not None:
            within = worst.price.output_within(answer.bound_nano, worst.tokens_in, worst.seconds)
            cap = cap if within is None else min(cap, within)
        hard = _hard(draft.claims) or (purse is not None and _hard(purse.draft.claims))
        return Leave(answer, cap, purse, hard)

    def _refuse(self, execution: Execution, target: str, denial: Denial, worst: _Worst) -> Refusal:
        if worst.why is not None:
            denial = denial._replace(why=worst.why[0], cure=worst.why[1])
        self._denied.setdefault(execution.id, (target, denial))
        resets = denial.claim.resets_at
        again = None if resets is None else self._clock.monotonic() + max(0.0, resets - self._clock.time())
        return Refusal(denial.reason, again)

    def peek(self, route: Route, request: ChatRequest) -> str | None:
        """Why a budget would refuse `request` at this target now; None when none would. Sets nothing aside."""
        price, at = route.price(), self._clock.time()
        if not self.budgets.all or (price is not None and price.free):
            return None
        own = self.budgets.requests(route.name, request.user, request.tags)
        claims = self.budgets.claims(at, route.name, request.user, request.tags)
        total = route.timeouts.attempt if request.timeout_s is None else request.timeout_s
        hard = _hard(claims) or _hard(own)
        worst = _worst(route, request, price, 0, total, hard=hard)
        verdict = decide(worst.ask, (*own, *claims), self._store.meters([claim.key for claim in claims]))
        return verdict.reason if isinstance(verdict, Denial) else None

    # ── after ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, leave: Leave, entry: LedgerEntry) -> None:
        """Enter what became of an attempt."""
        if self._apart:
            self._ledger.record(entry)
        self._store.settle(leave.ticket, entry)
        if leave.purse is not None and (meters := self._purses.get(entry.execution)) is not None:
            for notice in meters.settle(leave.purse, replace(entry, id=None), None):
                self.tell(notice, entry.execution)

    def tell(self, notice: Notice, execution: str = "") -> None:
        """Tell observers what the ledger has noticed. Called on any thread."""
        at = self._clock.time()
        match notice:
            case Crossed(claim, share, reading):
                budget = claim.budget
                self._events.emit(
                    BudgetWarning(
                        execution,
                        at,
                        budget.title,
                        claim.key.of,
                        share,
                        reading.spent / NANO,
                        budget.limit_nano / NANO,
                        claim.resets_at,
                    )
                )
            case Exhausted(claim, reading):
                budget = claim.budget
                self._events.emit(
                    BudgetExhausted(
                        execution,
                        at,
                        budget.title,
                        claim.key.of,
                        reading.spent / NANO,
                        budget.limit_nano / NANO,
                        budget.hard,
                        claim.resets_at,
                    )
                )
            case Overcharged(entry, by_nano):
                self._events.emit(
                    BudgetOvercharged(entry.execution, at, entry.target, (entry.cost_nano or 0) / NANO, by_nano / NANO)
                )
            case _:
                self._events.emit(LedgerTrouble(execution, at, notice.reason, notice.waiting, notice.over))

    def forget(self, execution: str) -> None:
        """A request has ended: what was kept for it alone is let go of."""
        self._purses.pop(execution, None)
        self._denied.pop(execution, None)
        self._troubles.pop(execution, None)

    def failure(self, execution: Execution, failure: FallbackError) -> FallbackError:
        """The error for the caller: `BudgetExceeded` where a budget kept somebody out who might have answered."""
        trouble = self._troubles.get(execution.id)
        if trouble is not None and type(failure) is AllTargetsFailed and not execution.attempts:
            failure.__cause__ = trouble  # nobody was asked: this, and no target, is what to mend
        target, denial = self._denied.get(execution.id, ("", None))
        if denial is None or type(failure) is not AllTargetsFailed:
            return failure  # one that ran out of time keeps its own type
        cause = failure.__cause__
        if isinstance(cause, ProviderError) and cause.disposition is Disposition.FAIL:
            return failure  # the request is at fault: more money would not help
        claim = denial.claim
        resets = None if claim.resets_at is None else datetime.fromtimestamp(claim.resets_at, claim.budget.tz)
        helps = resets is not None and denial.needed is not None  # an unknown price is no better known tomorrow
        until = f"; it resets at {resets:%Y-%m-%d %H:%M %Z}" if helps else ""
        whom = f"{target}: " if denial.needed is None else ""
        tried = f"\n{failure.message}" if execution.attempts else ""
        exceeded = BudgetExceeded(
            f"{whom}{denial.reason}{until}. hint: {denial.fix}{tried}",
            failure.exceptions,
            fallback=failure.fallback,
            retry_after_s=failure.retry_after_s,
        )
        exceeded.budget, exceeded.of = claim.budget, claim.key.of
        exceeded.spent, exceeded.pending = denial.spent / NANO, denial.pending / NANO
        exceeded.needed = None if denial.needed is None else denial.needed / NANO
        exceeded.resets_at = resets
        exceeded.__cause__ = cause
        return exceeded

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> BudgetReport:
        """How every budget stands now."""
        at, used = self._clock.time(), self._store.meters()
        statuses: list[BudgetStatus] = []
        for budget in self.budgets.all:
            if budget.window == "request":
                statuses.append(BudgetStatus(budget, budget.of, Reading(), None, None))
                continue
            window = self.budgets.window(budget, at)
            whole = MeterKey(budget.scope, budget.of, budget.window, str(budget.tz), window.start)
            if budget.scope == "global" or budget.of is not None:
                readings: Mapping[str | None, Reading] = {
                    budget.of: used.get(whole) or self._store.meters([whole])[whole]
                }
            else:
                mine = {key: value for key, value in used.items() if key._replace(of=None) == whole}
                if not mine:  # nothing has counted towards it yet: those whose rows it will take in
                    since = self._store.costs(since=window.start if budget.window != "total" else None, now=at)
                    names = [line.name for line in since.by(budget.scope) if line.name]
                    mine = dict(self._store.meters([whole._replace(of=name) for name in names]))
                readings = {key.of: value for key, value in mine.items()}
            dated = budget.window != "total"
            starts = datetime.fromtimestamp(window.start, budget.tz) if dated else None
            ends = None if window.end is None else datetime.fromtimestamp(window.end, budget.tz)
            statuses += [
                BudgetStatus(budget, of, readings[of], starts, ends) for of in sorted(readings, key=lambda n: n or "")
            ]
        return BudgetReport(statuses)


def _worst(
    route: Route, request: ChatRequest, price: Price | None, extra: int, lease_s: float, *, hard: bool
) -> _Worst:
    """What an attempt at `route` can cost at worst. `extra` is bytes that the request will be longer by."""
    if price is None:
        return _Worst(None)
    able = route.capabilities
    tokens_in = input_bound(request, window=able.context_window, extra=extra)
    if tokens_in is None:
        return _Worst(None, why=_UNSIZED)
    seconds = lease_s if price.second and math.isfinite(lease_s) else 0.0
    if price.second and not math.isfinite(lease_s):
        return _Worst(None, why=_ENDLESS)
    if request.max_tokens is not None:
        most = request.max_tokens if able.max_output is None else min(request.max_tokens, able.max_output)
        bound = price.bound_nano(tokens_in, most, seconds)
        return _Worst(Ask(bound, bound), price, tokens_in, None, seconds)
    if not hard:
        bound = price.bound_nano(tokens_in, able.max_output or _ASSUMED_OUTPUT, seconds)
        return _Worst(Ask(bound, bound), price, tokens_in, None, seconds)
    most, least = (REASONING_CAP, LEAST_REASONING_CAP) if able.reasoning else (CAP, LEAST_CAP)
    if able.max_output is not None:
        most, least = min(most, able.max_output), min(least, able.max_output)
    ask = Ask(price.bound_nano(tokens_in, least, seconds), price.bound_nano(tokens_in, most, seconds))
    return _Worst(ask, price, tokens_in, most, seconds)


def _hard(claims: tuple[Claim, ...]) -> bool:
    for claim in claims:  # noqa: SIM110  # a generator costs as much as all of this, and there is one claim or two
        if claim.budget.hard:
            return True
    return False


def _added(execution: Execution) -> int:
    """Bytes that the flow may put behind the caller's messages: an answer to be continued or corrected, and the words
    that ask for it. A character has four bytes at most.
    """
    said = 0
    for attempt in execution.attempts:
        said += attempt.delivered
        error = attempt.error
        if isinstance(error, InvalidOutput) and error.answer is not None:
            said += len(error.answer.text) + len(error.message) + 64
            said += sum(len(call.name) + len(call.arguments) + 64 for call in error.answer.tool_calls)
    return 4 * said + _ASKING if said else 0


def budgets_of(given: Budget | Mapping[str, Any] | Iterable[Budget | Mapping[str, Any]] | None) -> Budgets:
    """The budgets of a router, however they were given.

    Raises:
        ConfigurationError: one cannot be built, or is given twice.
    """
    if given is None:
        return Budgets(())
    items = tuple(given) if isinstance(given, Iterable) and not isinstance(given, (Mapping, str)) else (given,)
    made = tuple(built("Router.budgets", Budget, item) for item in items)
    for number, budget in enumerate(made):
        if budget in made[:number]:
            raise ConfigurationError(f"the budget {budget.title!r} is given twice")
    return Budgets(made)
