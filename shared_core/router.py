"""`Router`: performs what the flow decides, sync and async, whole and streamed, and keeps the books.

The fallback algorithm is `shared_core.routing.flow`; here are the two drivers that perform its steps, and the readers of the
journal: ledger, events, metadata. A driver decides nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, get_args

from shared_core._clock import Clock, SystemClock
from shared_core._lane import run_guarded
from shared_core._watch import Watchdog
from shared_core.chat.events import Answer, ChatEvent, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage, collect
from shared_core.chat.request import ChatRequest, Message, ToolCall, user
from shared_core.errors import (
    ConfigurationError,
    ErrorKind,
    FallbackError,
    InvalidRequest,
    ProviderError,
    Settlement,
    UnknownOption,
    nearest,
)
from shared_core.ledger import EntryStatus, Ledger, LedgerEntry, MemoryLedger, find_price
from shared_core.ledger.entry import CostReport
from shared_core.resilience.admission import Account, Admission, Gate, Outcome, Transition
from shared_core.resilience.breaker import BreakerConfig, CircuitState
from shared_core.resilience.deadline import Guard, Timeouts
from shared_core.resilience.health import TargetHealth
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.execution import Execution
from shared_core.routing.flow import Admit, Call, FlowPolicy, OnStreamBreak, Settle, Step, Wait, flow
from shared_core.routing.planner import Plan, Route, plan
from shared_core.routing.price import FREE, Price
from shared_core.routing.provider import Provider
from shared_core.routing.relay import Relay
from shared_core.routing.seam import CONTINUE_PROMPT
from shared_core.routing.strategies import RoutingStrategy, strategy_named
from shared_core.routing.target import Target
from shared_core.telemetry.dispatch import Dispatcher, Observer
from shared_core.telemetry.events import (
    AttemptFailed,
    CircuitChanged,
    FellOver,
    RequestFailed,
    RequestStarted,
    RequestSucceeded,
    StreamContinued,
)

if TYPE_CHECKING:
    from shared_core.routing.flow import Report

__all__ = ["AnswerStream", "AsyncAnswerStream", "HealthReport", "Router", "TargetLike"]

TargetLike = Target | str | Mapping[str, Any] | Provider
RequestLike = ChatRequest | str | Message | Sequence[Message]

_CONTENT = (TextDelta, ReasoningDelta, ToolCallDelta, ToolCall)
_CHARS_PER_TOKEN = 4
_ASSUMED_OUTPUT = 4096
"""Output tokens assumed for the bound of an attempt that set no limit and whose model's limit is unknown."""


class Router:
    """Keeps an application answering: asks one target after another until a request is answered whole.

    Args:
        targets: whom to ask: 'provider:model' strings, `Target`s, mappings of `Target`'s keywords, `Provider`s. In order
            of preference. Names must be unique.
        strategy: 'priority' (default), 'round_robin', or a callable that orders `TargetView`s.
        retry: attempts beyond each target's first.
        timeouts: limits in seconds; every target may have its own.
        breaker: when circuits open; None for the defaults.
        on_stream_break: 'continue' (another target goes on with the text), 'restart' (a marked reset, then the whole
            answer) or 'raise' (`StreamBroken` with the partial text).
        continue_prompt: asked of targets that can only be told to continue; `{tail}` is the end of the delivered text.
        route_around_policy: whether a refusal on grounds of content policy is tried elsewhere.
        on_event: called with each `Event`, or a list of such; may be async; cannot hurt a request.
        ledger: where attempts are written; memory when left out.
        metadata: whether answers carry `fallback` metadata.
        clock: another clock, for tests.
        seed: makes jitter repeatable.

    Raises:
        ConfigurationError: no targets, duplicate names, an unknown provider or strategy, a missing key, SDK or model file.
            Nothing is sent, imported or started.

    Thread-safe, and usable from any number of event loops. Close it when done: `with Router(...)`, `router.close()` or
    `await router.aclose()`.
    """

    def __init__(
        self,
        targets: Iterable[TargetLike] | TargetLike,
        *,
        strategy: str | RoutingStrategy = "priority",
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        timeouts: Timeouts | Mapping[str, float] | None = None,
        breaker: BreakerConfig | Mapping[str, Any] | None = None,
        on_stream_break: OnStreamBreak = "continue",
        continue_prompt: str = CONTINUE_PROMPT,
        route_around_policy: bool = False,
        on_event: Observer | Sequence[Observer] | None = None,
        ledger: Ledger | None = None,
        metadata: bool = True,
        clock: Clock | None = None,
        seed: int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            name = next(iter(unknown))
            raise UnknownOption(f"Router has no option {name!r}. {nearest(name, router_options())}")
        if on_stream_break not in get_args(OnStreamBreak):
            raise ConfigurationError(
                f"on_stream_break must be one of {', '.join(get_args(OnStreamBreak))}, not {on_stream_break!r}"
            )
        self._clock: Clock = clock or SystemClock()
        self._now = self._clock.monotonic
        self._chance = random.Random(seed).random
        self._retry: RetryPolicy = _option("retry", RetryPolicy, retry)
        self._timeouts: Timeouts = _option("timeouts", Timeouts, timeouts)
        self._breaker: BreakerConfig = _option("breaker", BreakerConfig, breaker)
        self._strategy_name, self._strategy = strategy_named(strategy)
        self._policy = FlowPolicy(self._retry, on_stream_break, continue_prompt, route_around_policy)
        self._ledger: Ledger = MemoryLedger() if ledger is None else ledger
        self._metadata = metadata
        observers = () if on_event is None else (on_event,) if callable(on_event) else tuple(on_event)
        self._events = Dispatcher(observers)
        self._prefix = os.urandom(3).hex()
        self._turns = itertools.count()
        self._turn = 0
        self._accounts: dict[str, Account] = {}
        self._lock = threading.Lock()
        self._loaded: weakref.WeakSet[Provider] = weakref.WeakSet()
        self._closed = False
        self._recent: list[Execution] = []
        self._routes: tuple[Route, ...] = ()
        items = [targets] if isinstance(targets, (str, Target, Mapping, Provider)) else list(targets)
        if not items:
            raise ConfigurationError("a router needs at least one target, such as 'openai:gpt-5-mini'")
        self._routes = tuple(self._route(_target(item), position) for position, item in enumerate(items))
        names = [route.name for route in self._routes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"two targets share the name {twice[0]!r}; give one of them another name=")

    def _route(self, target: Target, position: int) -> Route:
        from shared_core.providers import registry

        if target.provider is None:
            registry.check(target)
            provider = registry.build(target)
        else:
            provider = target.provider
        account = self._accounts.setdefault(target.account, Account(target.account))
        gate = Gate(target.name, self._breaker, account)
        return Route(
            target,
            provider,
            gate,
            target.timeouts or self._timeouts,
            target.retry or self._retry,
            _price_of(target, provider),
            position,
        )

    # ── faces ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def invoke(self, request: RequestLike, *, strategy: str | RoutingStrategy | None = None) -> Answer:
        """The whole answer, sync.

        Raises:
            InvalidRequest: the request is impossible; nothing was sent.
            AllTargetsFailed: nobody answered; holds every attempt's error. `DeadlineExceeded` is one of these.
        """
        return collect(self._drive(*self._open(_request(request, streaming=False), strategy)))

    async def ainvoke(self, request: RequestLike, *, strategy: str | RoutingStrategy | None = None) -> Answer:
        """The whole answer, async. Raises as `invoke` does."""
        events = self._adrive(*self._open(_request(request, streaming=False), strategy))
        return collect([event async for event in events])

    def stream(self, request: RequestLike, *, strategy: str | RoutingStrategy | None = None) -> AnswerStream:
        """The answer as it comes, sync. Nothing is sent before the first `next()`.

        Raises, while iterating, what `invoke` raises, and `StreamBroken` when text was delivered and nobody could go on.
        """
        execution, plan_, relay = self._open(_request(request, streaming=True), strategy)
        return AnswerStream(execution, self._drive(execution, plan_, relay))

    def astream(self, request: RequestLike, *, strategy: str | RoutingStrategy | None = None) -> AsyncAnswerStream:
        """The answer as it comes, async. Raises as `stream` does."""
        execution, plan_, relay = self._open(_request(request, streaming=True), strategy)
        return AsyncAnswerStream(execution, self._adrive(execution, plan_, relay))

    def explain(self, request: RequestLike = "", *, strategy: str | RoutingStrategy | None = None) -> Plan:
        """Who would be asked for `request`, in which order, and who not and why. No call is made, no turn is taken."""
        asked = _request(request or "Hello", streaming=False)
        now = self._now()
        chosen = self._plan(asked, strategy, self._turn)
        notes = {}
        for route in chosen.routes:
            refusal = route.gate.peek(now)
            if refusal is not None:
                again = "" if refusal.retry_at is None else f", for {refusal.retry_at - now:.1f} s more"
                notes[route.name] = refusal.reason + again
        return replace(chosen, notes=notes)

    def health(self) -> HealthReport:
        """How every target has been doing lately."""
        now = self._now()
        return HealthReport(
            tuple(
                route.gate.read(now)
                if route.target.enabled
                else replace(route.gate.read(now), available=False, unavailable_reason="disabled")
                for route in self._routes
            )
        )

    def costs(self) -> CostReport:
        """What every target has cost so far."""
        return self._ledger.costs()

    @property
    def ledger(self) -> Ledger:
        """Where attempts are written."""
        return self._ledger

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, in configured order."""
        return tuple(route.target for route in self._routes)

    @property
    def providers(self) -> tuple[Provider, ...]:
        """What serves each target, in configured order."""
        return tuple(route.provider for route in self._routes)

    @property
    def last(self) -> Execution | None:
        """The journal of the request that ended last in this router, whoever made it; for notebooks and demos."""
        return self._recent[-1] if self._recent else None

    def capabilities(self) -> Capabilities:
        """What every enabled target can take: the honest intersection."""
        each = [route.capabilities for route in self._routes if route.target.enabled]
        windows = [c.context_window for c in each if c.context_window is not None]
        outputs = [c.max_output for c in each if c.max_output is not None]
        return Capabilities(
            tools=all(c.tools for c in each),
            tool_choice=frozenset.intersection(*(c.tool_choice for c in each)) if each else frozenset(),
            json_schema=all(c.json_schema for c in each),
            json_mode=all(c.json_mode for c in each),
            images=all(c.images for c in each),
            image_urls=all(c.image_urls for c in each),
            pdfs=all(c.pdfs for c in each),
            audio=all(c.audio for c in each),
            system=all(c.system for c in each),
            continuation="instructed",
            streaming=all(c.streaming for c in each),
            reasoning=any(c.reasoning for c in each),
            context_window=min(windows, default=None),
            max_output=min(outputs, default=None),
        )

    # ── operating ────────────────────────────────────────────────────────────────────────────────────────────────────

    def reset(self, name: str | None = None) -> None:
        """Close the circuit and lift every lock of one target, or of all: after the key, the bill or the host was mended.

        Raises:
            ConfigurationError: no target of that name.
        """
        for route in self._routes if name is None else (self._named(name),):
            route.gate.reset()

    def force_open(self, name: str) -> None:
        """Send nothing to this target until `reset`."""
        self._named(name).gate.force_open()

    def _named(self, name: str) -> Route:
        for route in self._routes:
            if route.name == name:
                return route
        raise ConfigurationError(f"no target is named {name!r}. {nearest(name, [r.name for r in self._routes])}")

    def flush_events(self, timeout_s: float = 5.0) -> bool:
        """Wait until observers have been told everything so far."""
        return self._events.flush(timeout_s)

    def close(self) -> None:
        """Close providers' sockets and processes, the ledger and the observers' thread. Idempotent."""
        if not self._closed:
            self._closed = True
            for route in self._routes:
                route.provider.close()
            self._events.close()
            self._ledger.close()

    async def aclose(self) -> None:
        """The same, closing async clients on their own event loop."""
        if not self._closed:
            for route in self._routes:
                await route.provider.aclose()
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        names = ", ".join(repr(route.name) for route in self._routes)
        return f"Router([{names}], strategy={self._strategy_name!r})"

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, request: ChatRequest, strategy: str | RoutingStrategy | None, turn: int) -> Plan:
        name, order = (self._strategy_name, self._strategy) if strategy is None else strategy_named(strategy)
        routes: Sequence[Route] = self._routes
        if request.model is not None:
            # A model named per call is asked first where it is one of ours; otherwise it replaces the primary's.
            routes = sorted(routes, key=lambda r: request.model not in (r.name, r.target.model))
        return plan(request, routes, order, strategy_name=name, turn=turn, clock=self._now)

    def _open(
        self, request: ChatRequest, strategy: str | RoutingStrategy | None
    ) -> tuple[Execution, Plan, Relay]:
        if self._closed:
            raise ConfigurationError("this router is closed")
        turn = next(self._turns)
        self._turn = turn + 1
        chosen = self._plan(request, strategy, turn)
        now = self._now()
        execution = Execution(
            f"{self._prefix}-{turn}",
            request,
            now,
            now + (self._timeouts.total if request.timeout_s is None else request.timeout_s),
            chosen.strategy,
            chosen.routes[0].name if chosen.routes else None,
            chosen.excluded,
        )
        if self._events.active:
            self._events.emit(
                RequestStarted(execution.id, self._clock.time(), chosen.targets, chosen.strategy, request.streaming)
            )
        return execution, chosen, Relay(streaming=request.streaming)

    def _steps(self, execution: Execution, chosen: Plan, relay: Relay) -> Generator[Step, Report, FallbackError | None]:
        return flow(execution, chosen, self._policy, relay, clock=self._now, chance=self._chance)

    def _guard(self, call: Call) -> Guard:
        return Guard(
            self._now,
            streaming=call.request.streaming,
            first_s=call.first_s,
            idle_s=call.idle_s,
            connect_s=call.connect_s,
            deadline=call.deadline,
        )

    def _prepared(self, call: Call) -> ChatRequest:
        """The request as this target gets it. Loads the SDK and the price table before the attempt's limit starts."""
        provider = call.route.provider
        if provider not in self._loaded:
            self._loaded.add(provider)
            load = getattr(provider, "load", None)
            if load is not None:
                load()
            call.route.price()
        request = call.request
        if request.model is not None and not self._overrides(request.model, call.route):
            request = request.replace(model=None)
        return request

    def _overrides(self, model: str, route: Route) -> bool:
        if any(model in (r.name, r.target.model) for r in self._routes):
            return False  # it names a target of ours, which the plan has put first
        return route.provider.name == self._routes[0].provider.name

    # ── the two drivers ──────────────────────────────────────────────────────────────────────────────────────────────

    def _drive(self, execution: Execution, chosen: Plan, relay: Relay) -> Generator[ChatEvent, None, None]:
        """Perform the flow's steps in this thread; yields what the caller gets."""
        steps = self._steps(execution, chosen, relay)
        pending: Call | None = None
        report: Report = None
        try:
            while True:
                try:
                    step = steps.send(report)
                except StopIteration as stop:
                    failure: FallbackError | None = stop.value
                    break
                report = None
                match step:
                    case Admit():
                        report = step.route.gate.admit(self._now(), step.lease_s, self._chance())
                    case Call():
                        pending = step
                        report = yield from self._call(step, relay)
                    case Settle():
                        pending = None
                        self._settle(execution, step)
                    case Wait():
                        self._clock.sleep(step.seconds)
        except BaseException as error:
            self._interrupted(execution, pending, error)
            raise
        if failure is not None:
            self._failed(execution, failure)
            raise failure
        yield self._answered(execution, relay)

    async def _adrive(self, execution: Execution, chosen: Plan, relay: Relay) -> AsyncGenerator[ChatEvent, None]:
        """Perform the flow's steps in this task; yields what the caller gets. The twin of `_drive`."""
        steps = self._steps(execution, chosen, relay)
        pending: Call | None = None
        report: Report = None
        try:
            while True:
                try:
                    step = steps.send(report)
                except StopIteration as stop:
                    failure: FallbackError | None = stop.value
                    break
                report = None
                match step:
                    case Admit():
                        report = step.route.gate.admit(self._now(), step.lease_s, self._chance())
                    case Call():
                        pending = step
                        ended = _Ended()
                        events = self._acall(step, relay, ended)
                        try:
                            async for event in events:
                                yield event
                        finally:
                            if not ended.done:
                                self._interrupted_before_close(execution, pending)
                                pending = None
                            await events.aclose()
                        report = ended.error
                    case Settle():
                        pending = None
                        self._settle(execution, step)
                    case Wait():
                        await self._clock.asleep(step.seconds)
        except BaseException as error:
            self._interrupted(execution, pending, error)
            raise
        if failure is not None:
            self._failed(execution, failure)
            raise failure
        yield self._answered(execution, relay)

    def _call(self, call: Call, relay: Relay) -> Generator[ChatEvent, None, ProviderError | None]:
        """Make one attempt; yields what reaches the caller, returns the error it ended with."""
        provider, attempt = call.route.provider, call.attempt
        request = self._prepared(call)
        guard = self._guard(call)
        feed, touch = relay.feed, guard.touch
        events: Iterator[ChatEvent] | None = None
        try:
            if provider.interruptible:
                events = provider.stream(request, guard)
            else:
                events = run_guarded(lambda: provider.stream(request, guard), guard)
            for event in events:
                if isinstance(event, _CONTENT):
                    if attempt.first_token is None:
                        attempt.first_token = self._now()
                    for out in feed(event):
                        yield out
                    touch()
                else:
                    for out in feed(event):
                        yield out
                    if type(event) is Finished:
                        self._finished(call, event)
                        return None
            return _unfinished(attempt.delivered)
        except Exception as error:
            return self._classified(error, call, guard)
        finally:
            if events is not None and (close := getattr(events, "close", None)) is not None:
                close()

    async def _acall(self, call: Call, relay: Relay, ended: _Ended) -> AsyncGenerator[ChatEvent, None]:
        """Make one attempt; yields what reaches the caller, leaves the error it ended with in `ended`."""
        provider, attempt = call.route.provider, call.attempt
        request = self._prepared(call)
        guard = self._guard(call)
        feed, touch = relay.feed, guard.touch
        watch = Watchdog(guard)
        events: AsyncIterator[ChatEvent] = provider.astream(request, guard)
        try:
            step = events.__anext__
            while True:
                watch.arm()
                try:
                    event = await step()
                except StopAsyncIteration:
                    ended.set(_unfinished(attempt.delivered))
                    return
                except asyncio.CancelledError:
                    if not watch.bit():
                        raise
                    ended.set(self._classified(_timed_out(guard), call, guard))
                    return
                finally:
                    watch.disarm()
                if isinstance(event, _CONTENT):
                    if attempt.first_token is None:
                        attempt.first_token = self._now()
                    for out in feed(event):
                        yield out
                    touch()
                else:
                    for out in feed(event):
                        yield out
                    if type(event) is Finished:
                        self._finished(call, event)
                        ended.set(None)
                        return
        except Exception as error:
            ended.set(self._classified(error, call, guard))
        finally:
            watch.stop()
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    # ── what the drivers share ───────────────────────────────────────────────────────────────────────────────────────

    def _classified(self, error: Exception, call: Call, guard: Guard) -> ProviderError:
        """`error` as a provider's failure. A bug is raised as it is.

        A provider built by somebody else may leak its SDK's exceptions; they are classified like our own.
        """
        if isinstance(error, ProviderError):
            found: ProviderError | None = error
        else:
            from shared_core.providers import classify_error

            found = classify_error(error, provider=call.route.provider.name)
        if found is None:
            raise error
        if found is not error and found.__cause__ is None:
            found.__cause__ = error
        if found.kind is ErrorKind.TIMEOUT and guard.expired:
            if guard.which == "deadline":
                found.code = "deadline"  # ours, not the target's fault: its circuit does not count it
            elif guard.which != "idle" and call.first_s < _own_limit(call):
                found.code = "shortened"  # cut short for the sake of the targets behind it
        return found

    def _finished(self, call: Call, event: Finished) -> None:
        attempt = call.attempt
        attempt.response_id = event.response_id
        attempt.model = event.model or attempt.model
        attempt.usage = event.usage or self._estimate(call.request, attempt.delivered)

    @staticmethod
    def _estimate(request: ChatRequest, characters: int) -> Usage:
        said = sum(len(m.text) for m in request.messages)
        return Usage(-(-said // _CHARS_PER_TOKEN), -(-characters // _CHARS_PER_TOKEN), estimated=True)

    def _settle(self, execution: Execution, step: Settle) -> None:
        """Close one attempt in the gate and the ledger, and tell observers. Synchronous: a cancel cannot split it."""
        now = self._now()
        route, attempt, outcome = step.route, step.attempt, step.outcome
        if attempt.ended is None:
            attempt.ended = now
        if outcome.first_token_s is not None and outcome.first_token_s > 20.0:
            closed = any(r is not route and r.gate.state is CircuitState.CLOSED for r in self._routes)
            outcome = replace(outcome, others_closed=closed)
        changes = route.gate.settle(step.admission, outcome, now, self._chance())
        self._book(execution, step)
        for change in changes:
            self._tell_change(execution, change, now)
        error = outcome.error
        if self._events.active:
            at = self._clock.time()
            if error is not None:
                self._events.emit(
                    AttemptFailed(execution.id, at, route.name, attempt.number, str(error.kind), error.message, step.will_retry)
                )
            previous = execution.attempts[attempt.number - 2] if attempt.number > 1 else None
            if previous is not None and previous.target != attempt.target:
                why = previous.error.kind if isinstance(previous.error, ProviderError) else "error"
                self._events.emit(FellOver(execution.id, at, previous.target, attempt.target, str(why)))
            if attempt.seam is not None and attempt.delivered:
                begun = execution.seams[-1] if execution.seams else 0
                self._events.emit(StreamContinued(execution.id, at, route.name, begun, attempt.seam))

    def _tell_change(self, execution: Execution, change: Transition, now: float) -> None:
        lasts = None if change.until is None else max(0.0, change.until - now)
        self._events.emit(
            CircuitChanged(execution.id, self._clock.time(), change.scope, change.state, lasts, change.reason)
        )

    def _book(self, execution: Execution, step: Settle) -> None:
        """Write the attempt to the ledger and its cost to the journal."""
        route, attempt, outcome = step.route, step.attempt, step.outcome
        request = execution.request
        price = route.price()
        usage = attempt.usage
        cost: int | None = None
        bound: int | None = None
        error = outcome.error
        latency = outcome.latency_s
        if error is None and not outcome.cancelled:
            usage = usage or Usage()
            status = EntryStatus.ESTIMATED if usage.estimated else EntryStatus.POSTED
            cost = None if price is None else price.cost_nano(usage, latency)
        elif error is not None and error.rule.settlement is Settlement.VOID and not attempt.delivered:
            status, cost, usage = EntryStatus.VOID, 0, usage or Usage()
        else:
            status = EntryStatus.UNKNOWN
            usage = usage or self._estimate(request, attempt.delivered)
            attempt.usage = usage
            if price is FREE:
                cost = 0
            elif price is not None:
                most = request.max_tokens or route.capabilities.max_output or _ASSUMED_OUTPUT
                bound = price.cost_nano(Usage(usage.input_tokens, max(most, usage.output_tokens)), latency)
        attempt.cost_nano = cost
        attempt.bound_nano = bound
        self._ledger.record(
            LedgerEntry(
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
                None,
                request.user,
                request.tags,
                request.chain,
                route.local,
            )
        )

    def _interrupted_before_close(self, execution: Execution, pending: Call) -> None:
        """Settle an attempt whose caller walks away, before any `await` that a second cancel could skip."""
        pending.attempt.outcome = "cancelled"
        self._neutral(execution, pending)

    def _interrupted(self, execution: Execution, pending: Call | None, error: BaseException) -> None:
        """The caller cancelled or walked away, or there is a bug: settle without blaming the target."""
        abandoned = isinstance(error, GeneratorExit)
        execution.outcome = "abandoned" if abandoned else "failed" if isinstance(error, Exception) else "cancelled"
        execution.ended = self._now()
        if pending is not None:
            pending.attempt.outcome = execution.outcome
            if isinstance(error, Exception):
                pending.attempt.error = error
            self._neutral(execution, pending)
        self._remember(execution)
        if self._events.active:
            self._events.emit(
                RequestFailed(
                    execution.id,
                    self._clock.time(),
                    execution.outcome,
                    type(error).__name__,
                    len(execution.attempts),
                    execution.ended - execution.started,
                )
            )

    def _neutral(self, execution: Execution, call: Call) -> None:
        if call.admission.settled:
            return
        now = self._now()
        attempt = call.attempt
        attempt.ended = now
        outcome = Outcome(None, cancelled=True, latency_s=now - attempt.started, first_token_s=attempt.first_token_s)
        self._settle(execution, Settle(call.route, call.admission, outcome, attempt, False))

    def _failed(self, execution: Execution, failure: FallbackError) -> None:
        execution.outcome = "failed"
        self._remember(execution)
        if self._events.active:
            ended = execution.ended or self._now()
            self._events.emit(
                RequestFailed(
                    execution.id,
                    self._clock.time(),
                    "failed",
                    str(failure),
                    len(execution.attempts),
                    ended - execution.started,
                )
            )

    def _answered(self, execution: Execution, relay: Relay) -> Finished:
        """The caller's last event: why the answer ended, what it used, who served it."""
        execution.outcome = "answered"
        execution.ended = self._now()
        self._remember(execution)
        finished, served = relay.finished, execution.attempts[-1]
        assert finished is not None
        usage = served.usage or Usage()
        if execution.seams:
            for earlier in execution.attempts[:-1]:
                if earlier.delivered and earlier.usage is not None:
                    usage = usage + earlier.usage
        if self._events.active:
            metadata = execution.metadata()
            self._events.emit(
                RequestSucceeded(
                    execution.id,
                    self._clock.time(),
                    served.target,
                    len(execution.attempts),
                    execution.ended - execution.started,
                    metadata["used_fallback"],
                    metadata["cost_usd"],
                )
            )
        return Finished(
            finished.reason,
            finished.raw_reason,
            usage,
            finished.response_id,
            finished.model or served.model,
            finished.extra,
            finished.native,
            served.provider,
            served.target,
            execution.metadata() if self._metadata else {},
        )

    def _remember(self, execution: Execution) -> None:
        self._recent = [execution]


@dataclass(slots=True)
class _Ended:
    """How an async attempt ended: an async generator cannot return a value."""

    done: bool = False
    error: ProviderError | None = None

    def set(self, error: ProviderError | None) -> None:
        self.done = True
        self.error = error


class AnswerStream(Iterator[ChatEvent]):
    """Events of one answer as they come. Iterate it, or use it in `with`; `close` walks away and frees the connection."""

    def __init__(self, execution: Execution, events: Generator[ChatEvent, None, None]) -> None:
        self.execution = execution
        """The journal, growing while you read."""
        self._events = events
        self.close = events.close

    def __iter__(self) -> Generator[ChatEvent, None, None]:  # type: ignore[override]  # the generator itself is faster than we are
        return self._events

    def __next__(self) -> ChatEvent:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._events.close()

    def __repr__(self) -> str:
        return f"AnswerStream({self.execution!r})"


class AsyncAnswerStream(AsyncIterator[ChatEvent]):
    """Events of one answer as they come. `async for` it, or use it in `async with`; `aclose` walks away."""

    def __init__(self, execution: Execution, events: AsyncGenerator[ChatEvent, None]) -> None:
        self.execution = execution
        """The journal, growing while you read."""
        self._events = events
        self.aclose = events.aclose

    def __aiter__(self) -> AsyncGenerator[ChatEvent, None]:  # type: ignore[override]  # the generator itself is faster than we are
        return self._events

    async def __anext__(self) -> ChatEvent:
        return await self._events.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._events.aclose()

    def __repr__(self) -> str:
        return f"AsyncAnswerStream({self.execution!r})"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How every target is doing. Prints as a table, in a terminal and in a notebook."""

    targets: tuple[TargetHealth, ...]

    def __getitem__(self, name: str) -> TargetHealth:
        for target in self.targets:
            if target.target == name:
                return target
        raise KeyError(name)

    def __iter__(self) -> Iterator[TargetHealth]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self) -> list[dict[str, Any]]:
        """As plain data, one row per target."""
        return [
            {
                "target": t.target,
                "status": str(t.status),
                "circuit": str(t.circuit),
                "calls": t.calls,
                "success": "–" if t.success_rate is None else f"{t.success_rate:.0%}",
                "p50": _seconds(t.latency_p50_s),
                "p95": _seconds(t.latency_p95_s),
                "first token p50": _seconds(t.first_token_p50_s),
                "last error": t.last_error or "",
                "available": "yes" if t.available else f"no: {t.unavailable_reason}",
            }
            for t in self.targets
        ]

    def __str__(self) -> str:
        rows = self.rows()
        if not rows:
            return "no targets"
        columns = list(rows[0])
        cells = [[str(row[c])[:48] for c in columns] for row in rows]
        widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
        lines = [columns, *cells]
        return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        colours = {"HEALTHY": "#2e7d32", "UNHEALTHY": "#c62828", "CHECKING": "#ef6c00", "UNKNOWN": "#757575"}
        rows = self.rows()
        head = "".join(f"<th>{escape(c)}</th>" for c in (rows[0] if rows else {"target": ""}))
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="color:{colours[str(v)]};font-weight:bold">{escape(str(v))}</td>' if c == "status" else f"<td>{escape(str(v))}</td>"
                for c, v in row.items()
            )
            + "</tr>"
            for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def router_options() -> tuple[str, ...]:
    """The keywords `Router` takes besides its targets, for wrappers that pass them on."""
    return tuple(
        name
        for name, parameter in inspect.signature(Router.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def _option(what: str, cls: type[Any], value: Any) -> Any:
    if value is None:
        return cls()
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what} must be a {cls.__name__} or a mapping, not {type(value).__name__}")
    valid = cls.__dataclass_fields__
    for key in value:
        if key not in valid:
            raise UnknownOption(f"{cls.__name__} has no option {key!r}. {nearest(key, valid)}")
    return cls(**value)


def _target(item: TargetLike) -> Target:
    match item:
        case Target():
            return item
        case str():
            return Target(item)
        case Mapping():
            fields = dict(item)
            spec = fields.pop("spec", None) or fields.pop("target", None)
            return Target(spec, **fields)
        case Provider():
            return Target(provider=item)
        case _:
            raise ConfigurationError(
                f"a target is a 'provider:model' string, a Target, a mapping or a Provider, not {type(item).__name__}"
            )


def _request(request: RequestLike, *, streaming: bool) -> ChatRequest:
    match request:
        case ChatRequest():
            return request if request.streaming is streaming else request.replace(streaming=streaming)
        case str():
            return ChatRequest((user(request),), streaming=streaming)
        case Message():
            return ChatRequest((request,), streaming=streaming)
        case _ if isinstance(request, Sequence) and all(isinstance(m, Message) for m in request):
            return ChatRequest(tuple(request), streaming=streaming)
        case _:
            raise InvalidRequest(f"a request is a string, Messages or a ChatRequest, not {type(request).__name__}")


def _price_of(target: Target, provider: Provider) -> Callable[[], Price | None]:
    if target.price is not None:
        price = target.price
        return lambda: price
    if provider.local:
        return lambda: FREE
    return lambda: find_price(target.provider_name, provider.model)


def _own_limit(call: Call) -> float:
    route = call.route
    if not call.request.streaming:
        return route.timeouts.attempt
    return route.timeouts.reasoning_first_token if route.capabilities.reasoning else route.timeouts.first_token


def _unfinished(delivered: int) -> ProviderError:
    where = "after it had begun" if delivered else "before any content"
    return ProviderError.of(ErrorKind.STREAM_CUT, f"the answer ended without its terminal event, {where}")


def _timed_out(guard: Guard) -> ProviderError:
    return ProviderError.of(ErrorKind.TIMEOUT, f"no {guard.which} in time" if guard.which != "idle" else "the stream fell silent")
