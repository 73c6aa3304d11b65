"""`Router`: the four faces over the fallback algorithm, and what an operator does with them.

The algorithm is `shared_core.routing.flow`; `_driver` performs its steps, `_books` keeps ledger, events and metadata.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, Unpack, cast, get_args

from shared_core._books import Books
from shared_core._clock import Clock, SystemClock
from shared_core._driver import Driver
from shared_core._fleet import Fleet, Heirs, Line
from shared_core._forks import after_fork
from shared_core._inputs import RequestLike, TargetLike, as_request, ledger_of, option
from shared_core._streams import AnswerStream, AsyncAnswerStream, Stop
from shared_core.chat.answer_tool import in_words, with_answer_tool
from shared_core.chat.events import Answer, collect
from shared_core.chat.per_call import CallOptions, ExplainOptions, saying
from shared_core.chat.request import ChatRequest, cache_use
from shared_core.errors import ConfigurationError, UnknownOption, nearest
from shared_core.ledger import Ledger, MemoryLedger
from shared_core.ledger.analytics import CostFilters, CostReport
from shared_core.resilience.breaker import BreakerConfig
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.health import HealthReport, SelfReport, TargetHealth
from shared_core.resilience.health_check import HealthCheck, How
from shared_core.resilience.rate_limit import Limits
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.capabilities import Capabilities, best, shared, unusual
from shared_core.routing.chains import Chain
from shared_core.routing.complexity import Complexity, Judgement, checked, judged
from shared_core.routing.execution import Execution
from shared_core.routing.flow import Call
from shared_core.routing.hedge import Hedge, Hedger, hedger_of
from shared_core.routing.planner import Plan, Route, plan
from shared_core.routing.policy import FlowPolicy, OnStreamBreak, Rules
from shared_core.routing.presets import preset_named
from shared_core.routing.provider import Provider
from shared_core.routing.relay import Relay
from shared_core.routing.seam import CONTINUE_PROMPT
from shared_core.routing.strategies import STRATEGIES, RouteView, RoutingStrategy, TargetView, strategy_named
from shared_core.routing.target import Target
from shared_core.telemetry.dispatch import Dispatcher, EventKind, Observer, Observers
from shared_core.telemetry.events import RouterReconfigured, TargetChange, TargetChanged

if TYPE_CHECKING:
    from shared_core._cached import Cached
    from shared_core._last_resort import DefaultAnswer
    from shared_core._probes import Probes, TargetTest, TargetTests
    from shared_core.cache.response_cache import CacheLike, ResponseCache
    from shared_core.chat.request import CacheUse
    from shared_core.config import ConfigLike
    from shared_core.ledger.exports import ExportLike
    from shared_core.ledger.reconcile import Reconcilable, Reconciliation
    from shared_core.resilience.budget import Budget, BudgetReport
    from shared_core.routing.replay import Seen

__all__ = ["AnswerStream", "AsyncAnswerStream", "HealthReport", "Router", "TargetLike", "router_options"]


class Router:
    """Keeps an application answering: asks one target after another until a request is answered whole.

    Args:
        targets: whom to ask: 'provider:model' strings, `Target`s, mappings of `Target`'s keywords, `Provider`s. In
            order of preference. Names must be unique.
        preset: 'development' or 'production': `retry`, `timeouts` and `breaker` where they are not given.
        strategy: 'priority' (default), 'cost', 'performance', 'round_robin', 'weighted' (by `Target.weight`), or a
            callable that orders `TargetView`s.
        chains: named ways to route, `Chain`s or mappings of their options, chosen per request by `chain`. Built in are
            'default', 'high-priority' (more retries), 'low-cost' and 'local-first'.
        complexity: 'simple' (fast and cheap targets first), 'complex' (the best first), 'medium' (as the strategy
            says), 'auto' (estimated from the request); by `Target.tier`, for calls and chains that do not say.
        hedge: `Hedge` (or a mapping of its options, or True): a second target beside one that is slow to begin.
        retry: attempts beyond each target's first.
        timeouts: limits in seconds; every target may have its own.
        breaker: when circuits open; None for the defaults.
        limits: rates and slots of each target (docs/rate-limits.md); every target may have its own.
        on_stream_break: 'continue' (another target goes on with the text), 'restart' (a marked reset, then the whole
            answer) or 'raise' (`StreamBroken` with the partial text).
        continue_prompt: asked of targets that can only be told to continue; `{tail}` is the end of the delivered text.
        route_around_policy: whether a refusal on grounds of content policy is tried elsewhere.
        on_event: called with each `Event`, or a list of such, or a mapping of kinds of event (classes, or names such as
            'circuit_changed') to who hears of them; may be async; cannot hurt a request (docs/events.md).
        health_check: True, a `HealthCheck` or a mapping of its options: targets that nobody asks are checked in the
            background, so that no user need find out; off when left out (docs/health.md).
        ledger: where attempts are written: the path of a SQLite file (docs/ledger.md), or a `Ledger`; memory when left
            out.
        budgets: `Budget`s or mappings of their options, all of which hold at once (docs/budgets.md).
        cache: True, a `ResponseCache`, a mapping of its options or the path of a SQLite file: whole answers are kept
            and served to identical requests (docs/cache.md).
        single_flight: whether identical requests at the same time share one answer; left out, if there is a cache.
        default_answer: called with the request and the error when everything has failed, and nothing kept may stand in:
            returns a text or an `Answer`, or None to have the error raised; may be async.
        metadata: whether answers carry `fallback` metadata.
        clock: another clock, for tests.
        seed: makes jitter repeatable.

    Raises:
        ConfigurationError: no targets, duplicate names, an unknown provider or strategy, a missing key, SDK or model
            file. Nothing is sent, imported or started, but a local model with `standby=` begins to load.

    Thread-safe, and usable from any number of event loops. Close it when done: `with Router(...)`, `router.close()` or
    `await router.aclose()`.
    """

    def __init__(
        self,
        targets: Iterable[TargetLike] | TargetLike | Heirs,
        *,
        preset: str | None = None,
        strategy: str | RoutingStrategy = "priority",
        chains: Mapping[str, Chain | Mapping[str, Any]] | None = None,
        complexity: Complexity | None = None,
        hedge: Hedge | Mapping[str, Any] | bool | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        timeouts: Timeouts | Mapping[str, float] | None = None,
        breaker: BreakerConfig | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        on_stream_break: OnStreamBreak = "continue",
        continue_prompt: str = CONTINUE_PROMPT,
        route_around_policy: bool = False,
        on_event: Observers | None = None,
        health_check: HealthCheck | Mapping[str, Any] | bool | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        budgets: Budget | Mapping[str, Any] | Iterable[Budget | Mapping[str, Any]] | None = None,
        cache: CacheLike = None,
        single_flight: bool | None = None,
        default_answer: DefaultAnswer | None = None,
        metadata: bool = True,
        clock: Clock | None = None,
        seed: int | None = None,
        **unknown: Any,
    ) -> None:
        given = dict(locals())  # first of all: the keywords as they came
        if unknown:
            name = next(iter(unknown))
            raise UnknownOption(f"Router has no option {name!r}. {nearest(name, router_options())}")
        self._options = MappingProxyType({k: given[k] for k, v in _DEFAULTS.items() if given[k] != v})
        self._clock: Clock = _clock_of(clock)
        self._now = self._clock.monotonic
        before = targets.fleet.line.rules.flow.hedger if isinstance(targets, Heirs) else None
        rules = _rules(given, before)
        self._events = Dispatcher(on_event)
        kept: Ledger = MemoryLedger() if ledger is None else ledger_of(ledger)
        self._books = Books(self._clock, kept, self._events, metadata=metadata)
        if budgets is not None or getattr(kept, "durable", False):
            from shared_core._money import Money, budgets_of

            self._books.money = Money(self._clock, kept, budgets_of(budgets), self._events)
        self._random = random.Random(seed)
        self._prefix = os.urandom(3).hex()
        self._turns = itertools.count()
        self._turn = 0
        self._closed = False
        self._changing = threading.Lock()
        self._driver = Driver(self._clock, self._random.random, self._books, self._prepare, _load, _aload)
        self._fleet = Fleet(
            targets,
            chains,
            rules=rules,
            now=self._now,
            changed=self._driver.line_up,
        )
        after_fork(self._in_child)

        self._probes: Probes | None = None
        if (check := _check_of(health_check)) is not None:
            self._checks(check)
        self._cached: Cached | None = None
        if single_flight or default_answer is not None or not (cache is None or cache is False):
            from shared_core._cached import Cached

            self._cached = Cached.of(cache, single_flight, default_answer, self._driver, self._books, self._clock)

    def _in_child(self) -> None:
        """In a forked child: no request has an id of the parent's, nor waits by the same dice."""
        self._changing = threading.Lock()
        self._prefix = os.urandom(3).hex()
        if self._options.get("seed") is None:
            self._random.seed()

    @classmethod
    def from_config(cls, source: ConfigLike, **options: Any) -> Self:
        """A router from a `.toml` or `.json` file, or from a mapping of what would stand in one.

        Its top level holds the keywords of `Router`; `targets` lists names and tables of `Target`'s keywords. `${NAME}`
        and `${NAME:-default}` in any text are read from the environment, so that no key need stand in a file.

        Args:
            source: the path, or the mapping.
            **options: go before what the file says.

        Raises:
            ConfigurationError: the file cannot be read, or an option is wrong; says in which line, where it can.
            MissingKey: a variable that is not set.
        """
        from shared_core.config import configured

        return configured(source, options, lambda targets, settings: cls(targets, **settings))

    # ── faces ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def invoke(
        self,
        request: RequestLike,
        *,
        strategy: str | RoutingStrategy | None = None,
        cache: CacheUse = None,
        **options: Unpack[CallOptions],
    ) -> Answer:
        """The whole answer, sync.

        Args:
            request: what is asked.
            strategy: of this call, in place of the router's; as of all faces.
            cache: False neither reads nor keeps, 'refresh' asks anew and keeps; as of all faces.
            **options: what a `ChatRequest` would say: `chain`, `complexity`, `constraints` or `local_only`, `allow`,
                `deny`, `max_price` and `require` one by one, `user`, `tags`, `timeout` (seconds), `model`,
                `temperature`, `max_tokens`, `tools`, …; as of all faces. They go before what `request` says; of limits
                both hold.

        Raises:
            UnknownOption: there is no such option; names the nearest.
            InvalidRequest: the request is impossible; nothing was sent.
            AllTargetsFailed: nobody answered; holds every attempt's error. `DeadlineExceeded` is one of these.
        """
        asked = as_request(request, streaming=False)
        if options:
            asked = saying(asked, options)
        kept, use = self._way(asked, cache)
        opened = self._open(asked, strategy)
        return collect(self._driver.run(*opened)) if kept is None else kept.invoke(*opened, use)

    async def ainvoke(
        self,
        request: RequestLike,
        *,
        strategy: str | RoutingStrategy | None = None,
        cache: CacheUse = None,
        **options: Unpack[CallOptions],
    ) -> Answer:
        """The whole answer, async. Raises as `invoke` does."""
        asked = as_request(request, streaming=False)
        if options:
            asked = saying(asked, options)
        kept, use = self._way(asked, cache)
        opened = self._open(asked, strategy)
        if kept is not None:
            return await kept.ainvoke(*opened, use)
        return collect([event async for event in self._driver.arun(*opened)])

    def stream(
        self,
        request: RequestLike,
        *,
        strategy: str | RoutingStrategy | None = None,
        cache: CacheUse = None,
        **options: Unpack[CallOptions],
    ) -> AnswerStream:
        """The answer as it comes, sync. Nothing is sent before the first `next()`.

        Raises, while iterating, what `invoke` raises, and `StreamBroken` when text was delivered and nobody could go
        on.
        """
        asked = as_request(request, streaming=True)
        if options:
            asked = saying(asked, options)
        kept, use = self._way(asked, cache)
        opened = self._open(asked, strategy)
        stop = Stop(quiet=kept is None)
        events = self._driver.run(*opened, stop) if kept is None else kept.run(*opened, use, stop)
        return AnswerStream(opened[0], events, stop)

    def astream(
        self,
        request: RequestLike,
        *,
        strategy: str | RoutingStrategy | None = None,
        cache: CacheUse = None,
        **options: Unpack[CallOptions],
    ) -> AsyncAnswerStream:
        """The answer as it comes, async. Raises as `stream` does."""
        asked = as_request(request, streaming=True)
        if options:
            asked = saying(asked, options)
        kept, use = self._way(asked, cache)
        opened = self._open(asked, strategy)
        return AsyncAnswerStream(opened[0], self._driver.arun(*opened) if kept is None else kept.arun(*opened, use))

    def explain(
        self,
        request: RequestLike = "",
        *,
        strategy: str | RoutingStrategy | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Plan:
        """Who would be asked for `request`, in which order, and who not and why. No call is made, no turn is taken.

        Args:
            request: what would be asked.
            strategy: of this call, in place of the router's.
            **options: as of `invoke`.
        """
        from shared_core.routing.replay import Seen, recorded, scored, with_outside  # only people ask

        asked = as_request(request or "Hello", streaming=isinstance(request, ChatRequest) and request.streaming)
        if options:
            asked = saying(asked, options)
        now = self._now()
        line = self._fleet.line
        decision = self._decision(line, asked, strategy, self._turn)
        seen = [Seen(route, asked, now) for route in decision.routes]
        outside = [Seen(route, asked, now) for route in line.routes if route not in decision.routes]
        answered: list[str] = []

        def watched(about: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
            given: Any = decision.strategy(about, views)
            if not isinstance(given, Iterable):
                return cast("Sequence[TargetView]", given)  # the planner refuses it
            ordered = list(given)  # a generator can be read only once
            answered.extend(view.name for view in ordered if isinstance(view, RouteView))
            return ordered

        watch = decision._replace(routes=cast("Sequence[Route]", seen))
        own = STRATEGIES.get(decision.name) is not decision.strategy
        chosen = with_outside((watch._replace(strategy=watched) if own else watch).plan(asked), outside)
        notes = self._notes(chosen.routes, asked, now)
        record = recorded(
            asked,
            seen,
            chosen,
            strategy=decision.strategy,
            turn=decision.turn,
            first=decision.first,
            primary=decision.primary,
            at=self._clock.time(),
            notes=notes,
            ordered=answered,
            outside=outside,
        )
        routes = tuple(cast("Seen", one).route for one in chosen.routes)
        explained = chosen.explained(
            notes=notes, scores=scored(asked, [*seen, *outside], chosen, decision.turn), record=record
        )
        return replace(explained, routes=routes)

    def _notes(self, routes: Sequence[Route], asked: ChatRequest, now: float) -> dict[str, str]:
        """What would stop a target right now, or speaks against it."""
        notes = {}
        for route in (cast("Seen", one).route for one in routes):
            refusal = route.gate.peek(now)
            if refusal is not None:
                again = "" if refusal.retry_at is None else f", for {refusal.retry_at - now:.1f} s more"
                notes[route.name] = refusal.reason + again
            elif self._books.money is not None and (over := self._books.money.peek(route, asked)) is not None:
                notes[route.name] = over
            elif (told := _told(route)) is not None and told.unhealthy is not None:
                notes[route.name] = told.unhealthy
            elif route.wait_s is not None and (wait := route.wait_s(asked)):
                notes[route.name] = f"busy: a turn is expected in {wait:.1f} s"
            elif (pace := route.gate.pace).drifting:
                notes[route.name] = f"becomes slower: its first tokens take {pace.drift:.1f} times as long as usual"
        return notes

    def health(self) -> HealthReport:
        """How every target has been doing lately."""
        now = self._now()
        return HealthReport(tuple(_health(route, now) for route in self._fleet.routes), self._clock.time())

    def test_target(self, name: str, *, how: How = "auto", timeout_s: float | None = None) -> TargetTest:
        """Check one target now, sync. Goes through its circuit: an open one has its probe now, a lock its re-check.

        Args:
            name: the target's.
            how: 'models' reads the vendor's list of models, which is free; 'call' makes a small call; 'auto' takes the
                list where there is one and calls have not failed, and a local model's own report.
            timeout_s: in seconds; that of `health_check`, or 5.

        Raises:
            ConfigurationError: no target of that name, it has no list of models, or the limit makes no sense.
        """
        return self._checks().test(name, how=how, timeout_s=timeout_s)

    async def atest_target(self, name: str, *, how: How = "auto", timeout_s: float | None = None) -> TargetTest:
        """The same, async."""
        return await self._checks().atest(name, how=how, timeout_s=timeout_s)

    def test_targets(self, *, how: How = "auto", timeout_s: float | None = None) -> TargetTests:
        """Check every target now, at the same time; disabled ones too. As `test_target`."""
        return self._checks().test_all(how=how, timeout_s=timeout_s)

    async def atest_targets(self, *, how: How = "auto", timeout_s: float | None = None) -> TargetTests:
        """The same, async."""
        return await self._checks().atest_all(how=how, timeout_s=timeout_s)

    def _checks(self, check: HealthCheck | None = None) -> Probes:
        if self._closed:
            raise ConfigurationError("this router is closed")
        if self._probes is None:
            from shared_core._probes import Probes

            self._probes = Probes(self._clock, self._fleet, self._driver, self._books, self._prefix, check)
        return self._probes

    def start(self) -> None:
        """Begin health checks in the background now, rather than with the first request; where there are any."""
        if self._probes is not None and not self._closed:
            self._probes.start()

    def on(self, observer: Observer, *kinds: EventKind) -> Callable[[], None]:
        """Have `observer` told too, from now on, of these kinds of event or of all; returns what ends that.

        Raises:
            ConfigurationError: no event has that name, or the observer cannot be called.
        """
        return self._events.add(observer, kinds)

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What everything has cost: by target, model, provider, user, tag, chain and day, with the month's projection.

        Args:
            **filters: `since`, `until` ("7d", "today", "2026-11-20", a `datetime`, ...), `user`, `tag`, `target`,
                `model`, `provider`, `chain`; `timezone` says whose days are meant (UTC).

        Raises:
            ConfigurationError: there is no such filter, or a time or a zone makes no sense.
        """
        if "now" not in filters:
            filters["now"] = self._clock.time()
        return self._books.ledger.costs(**filters)

    def reconcile(
        self,
        source: ExportLike,
        vendor: str,
        *,
        provider: str | None = None,
        dry_run: bool = False,
        adopt: bool = False,
    ) -> Reconciliation:
        """Compare a vendor's usage export with the ledger, and post the differences as corrections.

        Args:
            source: the export: a path to a .json, .jsonl, .csv or .tsv file, a parsed page, or rows.
            vendor: whose it is: 'openai', 'anthropic', or the name of any provider.
            provider: whose rows are compared, if not `vendor`'s.
            dry_run: tell what would be posted, and post nothing.
            adopt: post what was billed for models that the ledger has no rows of, too.

        Raises:
            InvalidExport: it cannot be read; names file, line and column.
            ConfigurationError: the ledger takes no corrections.
        """
        from shared_core.ledger.reconcile import reconcile

        own = {
            route.provider.model: route.target.price
            for route in self._fleet.routes
            if route.provider.name == (provider or vendor) and route.target.price is not None
        }
        return reconcile(
            cast("Reconcilable", self._books.ledger),
            source,
            vendor,
            now=self._clock.time(),
            provider=provider,
            prices=own,
            dry_run=dry_run,
            adopt=adopt,
        )

    def budget_status(self) -> BudgetReport:
        """How every budget stands: spent, set aside, left, in percent, and when it resets. Prints as a table."""
        from shared_core.resilience.budget import BudgetReport

        return BudgetReport() if self._books.money is None else self._books.money.status()

    @property
    def ledger(self) -> Ledger:
        """Where attempts are written."""
        return self._books.ledger

    @property
    def cache(self) -> ResponseCache | None:
        """The cache, if there is one: `router.cache.stats()`, `router.cache.clear()`."""
        return None if self._cached is None else self._cached.cache

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, in configured order."""
        return self._fleet.line.targets

    @property
    def providers(self) -> tuple[Provider, ...]:
        """What serves each target, in configured order."""
        return tuple(route.provider for route in self._fleet.routes)

    @property
    def last(self) -> Execution | None:
        """The journal of the request that ended last in this router, whoever made it; for notebooks and demos."""
        return self._books.last

    def capabilities(self, of: Literal["all", "best"] = "all") -> Capabilities:
        """What every enabled target can take (the honest intersection), or what the most capable one can."""
        each = [route.capabilities for route in self._fleet.routes if route.target.enabled]
        return best(each) if of == "best" else shared(each)

    @property
    def chains(self) -> Mapping[str, Chain]:
        """Every chain by its name, the built-in ones included."""
        return MappingProxyType(self._fleet.chains)

    @property
    def options(self) -> Mapping[str, Any]:
        """The keywords this router was given beside its targets, where they differ from the defaults."""
        return self._options

    # ── operating ────────────────────────────────────────────────────────────────────────────────────────────────────

    def reset(self, name: str | None = None) -> None:
        """Close the circuit and lift every lock of one target, or of all: the key, the bill or the host was mended.

        Raises:
            ConfigurationError: no target of that name.
        """
        for route in self._fleet.routes if name is None else (self._fleet.named(name),):
            route.gate.reset(self._now())
            self._books.tell_changes("", route.gate)

    def force_open(self, name: str) -> None:
        """Send nothing to this target until `force_close` or `reset`."""
        gate = self._fleet.named(name).gate
        gate.force_open(self._now())
        self._books.tell_changes("", gate)

    def force_close(self, name: str) -> None:
        """Close this target's circuit now; it learns anew. Pauses and locks stay, unlike with `reset`."""
        gate = self._fleet.named(name).gate
        gate.force_close(self._now())
        self._books.tell_changes("", gate)

    def disable_breaker(self, name: str) -> None:
        """Let every call through to this target, and learn nothing from it, until `force_close` or `reset`."""
        gate = self._fleet.named(name).gate
        gate.disable_breaker(self._now())
        self._books.tell_changes("", gate)

    def _tell(self, target: str, change: TargetChange, other: str | None = None) -> None:
        self._events.emit(TargetChanged("", self._clock.time(), target, change, other))
        if self._books.on_change is not None:
            self._books.on_change()

    def add(self, target: TargetLike, *, position: int | None = None) -> Target:
        """Put another target at `position`, from 0, or last. Requests that have begun do not see it.

        Raises:
            ConfigurationError: it cannot be built, or its name is taken.
        """
        added = self._fleet.add(target, position)
        self._tell(added.name, "added")
        return added

    def remove(self, name: str) -> Target:
        """Take a target out. Calls in flight end as they would have; it is closed some time after.

        Raises:
            ConfigurationError: no target of that name, or a router or a chain would be left without one.
        """
        removed = self._fleet.remove(name)
        self._tell(name, "removed")
        return removed

    def replace(self, name: str, target: TargetLike) -> Target:
        """Put another target in the place of one, in chains too. It begins with a circuit and a record of its own.

        Raises:
            ConfigurationError: no target of that name, the new one cannot be built, or its name is taken.
        """
        put = self._fleet.replace(name, target)
        self._tell(put.name, "replaced", name)
        return put

    def enable(self, name: str) -> None:
        """Ask this target again."""
        self._fleet.switch(name, enabled=True)
        self._tell(name, "enabled")

    def disable(self, name: str) -> None:
        """Keep a target, its record and its connections, but do not ask it until `enable`."""
        self._fleet.switch(name, enabled=False)
        self._tell(name, "disabled")

    def pin(self, name: str) -> None:
        """Ask this target first, whatever strategy and chain say; the others stay behind it. Until `unpin`.

        Raises:
            ConfigurationError: no target of that name.
        """
        self._fleet.pin(name)
        self._tell(name, "pinned")

    def unpin(self) -> None:
        """Ask in the order of the strategy again."""
        pinned = self._fleet.line.pinned
        self._fleet.pin(None)
        if pinned is not None:
            self._tell(pinned, "unpinned")

    def reconfigure(self, source: ConfigLike | None = None, /, **changes: Any) -> tuple[str, ...]:
        """Change options while requests are in flight; what is not named stays as it is.

        Takes effect with the next request; those that have begun end as they began. All of it, or, where something is
        wrong, nothing. A target that keeps its name keeps its circuit, its health and its costs, and its connections
        unless its key or an option of its provider is another; another key lifts the account's lock.

        Args:
            source: a `.toml` or `.json` file, or a mapping of what would stand in one.
            **changes: keywords of `Router`, and `targets`; go before what the file says.

        Returns:
            The names of the options that are other than before.

        Raises:
            ConfigurationError: an option is wrong, or cannot be changed while the router runs; nothing has changed.
            MissingKey: a variable that is not set.
        """
        from shared_core.config import changed_by

        return changed_by(source, changes, self._change)

    update_config = reconfigure

    def _change(self, changes: Mapping[str, Any]) -> tuple[str, ...]:
        if self._closed:
            raise ConfigurationError("this router is closed")
        for name, value in changes.items():
            if name not in ("targets", *_DEFAULTS):
                raise UnknownOption(f"Router has no option {name!r}. {nearest(name, ('targets', *router_options()))}")
            if name not in _CHANGEABLE and value != self._options.get(name, _DEFAULTS[name]):
                raise ConfigurationError(
                    f"{name} cannot be changed while the router runs\nhint: router.updated({name}=…) makes another one"
                )
        with self._changing:
            options = {**_DEFAULTS, **self._options, **changes}
            told = tuple(
                name
                for name, value in changes.items()
                if name == "targets" or value != self._options.get(name, _DEFAULTS[name])
            )
            check = _check_of(options["health_check"])
            line = self._fleet.line
            hedged = "hedge" in told
            rules = _rules(options, line.rules.flow.hedger if hedged else None)
            if not hedged:
                rules = replace(rules, flow=replace(rules.flow, hedger=line.rules.flow.hedger))
            self._fleet.change(rules, changes.get("targets"), options["chains"], rechained="chains" in changes)
            kept = {name: options[name] for name, value in _DEFAULTS.items() if options[name] != value}
            self._options = MappingProxyType(kept)
            self._books.metadata = options["metadata"]
            if "health_check" in told:
                probes = self._checks()
                probes.change(check)
                probes.start()  # nobody may ask for long, and whoever switches them on means now
        if told:
            self._events.emit(RouterReconfigured("", self._clock.time(), told))
        return told

    def updated(self, **changes: Any) -> Self:
        """Another router with some options changed, and this one as it was.

        Both go on with what is known of their common targets: circuits, health, limits, locks, connections, and the
        ledger. What they share is closed with the last of them: close both.

        Args:
            **changes: keywords of `Router`, and `targets`.

        Raises:
            ConfigurationError: an option is wrong.
        """
        options = {**self._options, **changes}
        heirs = Heirs(self._fleet, options.pop("targets", None))
        return type(self)(heirs, **{"ledger": self.ledger, **options})

    def warm(self) -> None:
        """Do now what first calls would do: load vendor SDKs and prices, start local models. Sends nothing to a vendor.

        Raises:
            ConfigurationError: a local model cannot be loaded; carries the reason.
        """
        for route in self._fleet.routes:
            if route.target.enabled:
                _load(route)
                self._driver.loaded(route)
                warm = getattr(route.provider, "warm", None)
                if warm is not None:
                    warm()

    async def awarm(self) -> None:
        """The same for this event loop too, without blocking it."""
        await asyncio.to_thread(self.warm)
        for route in self._fleet.routes:
            if route.target.enabled and hasattr(route.provider, "aload"):
                await _aload(route)

    def flush_events(self, timeout_s: float = 5.0) -> bool:
        """Wait until observers have been told everything so far."""
        return self._events.flush(timeout_s)

    def close(self) -> None:
        """Close providers' sockets and processes, the ledger and the observers' thread. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._probes is not None:
                self._probes.close()
            for provider in self._fleet.providers():
                provider.close()
            if self._cached is not None:
                self._cached.close()
            self._events.close()
            if not self._fleet.shared:
                self._books.ledger.close()

    async def aclose(self) -> None:
        """The same, closing async clients on their own event loop."""
        if not self._closed:
            if self._probes is not None:
                self._probes.close()
            for provider in self._fleet.providers():
                await provider.aclose()
            if getattr(self._books.ledger, "durable", False):
                await asyncio.to_thread(self._books.ledger.close)  # it waits for the disk
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        names = ", ".join(repr(route.name) for route in self._fleet.routes)
        return f"Router([{names}], strategy={self._fleet.line.rules.strategy_name!r})"

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decision(
        self, line: Line, request: ChatRequest, strategy: str | RoutingStrategy | None, turn: int
    ) -> _Decision:
        terms, routes = line.way(request.chain)
        rules = line.rules
        asked = strategy or request.strategy or (None if terms is None else terms.strategy)
        name, by = (rules.strategy_name, rules.strategy) if asked is None else strategy_named(asked)
        level = request.complexity or (None if terms is None else terms.complexity) or rules.complexity
        # A model named per call is asked first where it is one of ours; otherwise it replaces the primary's.
        first = line.pinned if request.model is None else request.model
        judgement = None if level is None else judged(level, request)
        primary = line.routes[0].provider.name
        return _Decision(routes, by, name, turn, self._now, terms, first, primary, judgement, rules.flow)

    def _plan(self, line: Line, request: ChatRequest, strategy: str | RoutingStrategy | None, turn: int) -> Plan:
        return self._decision(line, request, strategy, turn).plan(request)

    def _way(self, request: ChatRequest, cache: CacheUse) -> tuple[Cached | None, CacheUse]:
        """Where the answer comes from, and how it uses the cache: by way of that, or from the targets alone."""
        use = request.cache if cache is None else cache_use(cache)
        kept = self._cached
        if kept is not None and use is False and not kept.indispensable:
            kept = None
        return kept, use

    def _open(self, request: ChatRequest, strategy: str | RoutingStrategy | None) -> tuple[Execution, Plan, Relay]:
        if self._closed:
            raise ConfigurationError("this router is closed")
        if self._probes is not None:
            self._probes.start()
        turn = next(self._turns)
        self._turn = turn + 1
        line = self._fleet.line
        chosen = self._plan(line, request, strategy, turn)
        patience = (chosen.terms.timeouts if chosen.terms is not None else None) or line.rules.timeouts
        now = self._now()
        execution = Execution(
            f"{self._prefix}-{turn}",
            request,
            now,
            now + (patience.total if request.timeout_s is None else request.timeout_s),
            chosen.strategy,
            chosen.routes[0].name if chosen.routes else None,
            chosen.excluded,
            complexity=chosen.complexity,
        )
        self._books.opened(execution, chosen)
        return (
            execution,
            chosen,
            Relay(
                streaming=request.streaming,
                request=execution.id.replace("-", "_"),
                check=request.check,
                one_call=request.parallel_tool_calls is False,
            ),
        )

    def _prepare(self, call: Call) -> ChatRequest:
        """The request as this target gets it."""
        request = call.request
        most = call.route.capabilities.max_output
        if most is not None and request.max_tokens is not None and request.max_tokens > most:
            # A limit meant for a larger model: an upper bound may be lowered, a refusal would answer nobody.
            request = request.replace(max_tokens=most)
        if request.model is not None and not self._overrides(request.model, call.route):
            request = request.replace(model=None)
        if request.output is not None:
            request = self._in_schema(request, call)
        return request

    @staticmethod
    def _in_schema(request: ChatRequest, call: Call) -> ChatRequest:
        """The request for a model that may have no means of its own to answer in a schema."""
        able = call.route.capabilities
        call.attempt.output_by = way = unusual(request, able)
        if way == "tool":
            return with_answer_tool(request, by_name="any" not in able.tool_choice)
        return in_words(request, json_mode=able.json_mode) if way == "words" else request

    def _overrides(self, model: str, route: Route) -> bool:
        if any(model in (r.name, r.target.model) for r in self._fleet.routes):
            return False  # it names a target of ours, which the plan has put first
        return route.provider.name == self._fleet.routes[0].provider.name


class _Decision(NamedTuple):
    """What the planner is asked beside the request."""

    routes: Sequence[Route]
    strategy: RoutingStrategy
    name: str
    turn: int
    clock: Callable[[], float]
    terms: Chain | None
    first: str | None
    primary: str
    complexity: Judgement | None
    policy: FlowPolicy

    def plan(self, request: ChatRequest) -> Plan:
        """The decision."""
        routes, strategy, name, turn, clock, terms, first, primary, complexity, policy = self
        return plan(
            request,
            routes,
            strategy,
            strategy_name=name,
            turn=turn,
            clock=clock,
            terms=terms,
            first=first,
            primary=primary,
            complexity=complexity,
            policy=policy,
        )


def _rules(options: Mapping[str, Any], before: Hedger | None = None) -> Rules:
    """What steers the requests of a router with these options; with what another one's hedger has measured `before`."""
    preset = preset_named(options["preset"])
    if preset is not None:
        options = preset.under(options)
        if preset.verbose:
            from shared_core._verbose import show_log

            show_log()
    on_break = options["on_stream_break"]
    if on_break not in get_args(OnStreamBreak):
        raise ConfigurationError(
            f"on_stream_break must be one of {', '.join(get_args(OnStreamBreak))}, not {on_break!r}"
        )
    for switch in ("route_around_policy", "metadata"):
        if type(options[switch]) is not bool:
            raise ConfigurationError(f"{switch} must be True or False, not {options[switch]!r}")
    if not isinstance(options["continue_prompt"], str):
        raise ConfigurationError(f"continue_prompt must be a text, not {type(options['continue_prompt']).__name__}")
    name, order = strategy_named(options["strategy"])
    return Rules(
        order,
        name,
        checked(options["complexity"]),
        option("timeouts", Timeouts, options["timeouts"]),
        option("breaker", BreakerConfig, options["breaker"]),
        FlowPolicy(
            option("retry", RetryPolicy, options["retry"]),
            on_break,
            options["continue_prompt"],
            options["route_around_policy"],
            hedger=hedger_of(options["hedge"], before),
        ),
        option("limits", Limits, options["limits"]),
    )


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Router.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


_CHANGEABLE = frozenset(
    """
    targets preset strategy chains complexity hedge retry timeouts breaker limits on_stream_break continue_prompt
    route_around_policy metadata health_check
    """.split()  # noqa: SIM905  # a list of words
)
"""What `reconfigure` takes. The rest is built once: stores, caches, clocks, observers."""


def _clock_of(given: Clock | None) -> Clock:
    if given is None:
        return SystemClock()
    if not all(callable(getattr(given, name, None)) for name in ("monotonic", "time", "sleep", "asleep")):
        raise ConfigurationError(f"clock= takes a Clock, such as shared_core.testing.VirtualClock(), not {given!r}")
    return given


def _check_of(given: HealthCheck | Mapping[str, Any] | bool | None) -> HealthCheck | None:
    """What `health_check=` means: None is off."""
    if given is None or given is False:
        return None
    check: HealthCheck = option("health_check", HealthCheck, None if given is True else given)
    return check


def router_options() -> tuple[str, ...]:
    """The keywords `Router` takes besides its targets, for wrappers that pass them on."""
    return tuple(_DEFAULTS)


def _health(route: Route, now: float) -> TargetHealth:
    health = route.gate.read(now, full=True)
    told = _told(route)
    if told is not None:
        health = health.told(replace(told, facts={**health.facts, **told.facts}))
    return health if route.target.enabled else replace(health, available=False, unavailable_reason="disabled")


def _told(route: Route) -> SelfReport | None:
    """What its provider knows of itself; None of one that knows nothing."""
    report: Callable[[], SelfReport] | None = getattr(route.provider, "report", None)
    return None if report is None else report()


def _load(route: Route) -> None:
    """Import the vendor's SDK and the price table: hundreds of milliseconds that must not count as a silence."""
    load = getattr(route.provider, "load", None)
    if load is not None:
        load()
        route.price()


async def _aload(route: Route) -> None:
    """The same in a thread; what belongs to the running event loop is built too, where the provider knows how."""
    aload = getattr(route.provider, "aload", None)
    if aload is not None:
        await aload()
        await asyncio.to_thread(route.price)
    elif hasattr(route.provider, "load"):
        await asyncio.to_thread(_load, route)
