"""`simulate`: the whole router on a virtual clock, against scripted targets, with everything going wrong that was asked
for. Nothing of the router is modelled: planner, strategy, flow, driver, gates, ledger and events are the real ones.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar

from shared_core._inputs import as_request, option
from shared_core.chat.events import Finished, Restarted, TextDelta
from shared_core.chat.request import CHARS_PER_TOKEN
from shared_core.errors import (
    ConfigurationError,
    ErrorKind,
    FallbackError,
    ProviderError,
    UnknownOption,
    is_number,
    nearest,
)
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.retry import RetryPolicy
from shared_core.router import Router, router_options
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan
from shared_core.routing.target import Target
from shared_core.telemetry.dispatch import Dispatcher
from shared_core.telemetry.events import CircuitChanged, Event
from shared_core.testing.simulation._loop import SimulatedClock, VirtualLoop
from shared_core.testing.simulation._provider import SimProvider
from shared_core.testing.simulation._report import Circuit, SimulationReport, reported
from shared_core.testing.simulation._values import Chaos, ClockStep, Happening, Load, SimTarget
from shared_core.testing.simulation._vendor import ASKING, TEXT, Asked, Packet, SimVendor

__all__ = ["Policy", "simulate"]

T = TypeVar("T")
Policy = Callable[[Sequence[SimVendor], Callable[[], float]], Callable[[], Awaitable[str]]]
"""Another way to ask the same targets. It is given the vendors and a source of chance, and returns what each caller
awaits: that returns the name of the vendor that answered, or raises."""

_LATE_S = 0.001
"""How much later than its deadline a request may end."""
_PATIENCE_S = 3600.0
"""How long after the last request began a policy without a deadline may take to end."""
_TOLD_FIRST = (("abandoned", "cancelled"), ("failed", "cancelled"))
"""How a request had ended when its caller cancelled what was left to be done."""
_AWAITS, _FEW_AWAITS = 12, 4
"""A caller that cancels does so at one of the first awaits of its request, before this one; whole answers have few."""
_MONEY = frozenset({ErrorKind.BILLING, ErrorKind.AUTH, ErrorKind.NO_ENTITLEMENT})
_SHUT = ("circuit open", "circuit forced open", "parked", "locked", "account locked", "account's circuit open")


def simulate(
    targets: Sequence[SimTarget],
    scenario: Sequence[Happening | ClockStep] = (),
    *,
    seconds: float = 600.0,
    load: Load | Mapping[str, Any] | None = None,
    chaos: Chaos | Mapping[str, Any] | None = None,
    seed: int = 1,
    on_event: Callable[[Event], object] | None = None,
    policy: Policy | None = None,
    name: str | None = None,
    **router: Any,
) -> SimulationReport:
    """Let requests come in for `seconds` of virtual time and see what becomes of them. The same seed, the same report.

    Args:
        targets: whom to ask, in order of preference.
        scenario: what happens to them: `Outage`, `Flap`, `BrownOut`, `RateLimitStorm`, `ClockStep`.
        seconds: how long requests come in. Those under way then are awaited.
        load: who asks, a `Load` or a mapping of its options; two requests per second when left out.
        chaos: what else goes wrong, by chance; a `Chaos` or a mapping of its options.
        seed: of everything that is by chance.
        on_event: called with each event of the router, at its virtual moment; not async.
        policy: ask in another way than the router's, to compare with it.
        name: what the report calls this run; the strategy's name when left out.
        **router: keywords of `Router`: `strategy`, `retry`, `breaker`, `timeouts`, `chains`, ….

    Raises:
        ConfigurationError: no targets, two of one name, what is no `SimTarget` or nothing that can happen, a happening
            to a target that is not there, an unknown keyword.
        SimulationStuck: the program under test waits for what can never come.
    """
    return _Simulation(
        _listed("targets", targets, (SimTarget,), "SimTarget('openai:gpt-5-mini')"),
        _listed("scenario", scenario, (Happening, ClockStep), "Outage(60, 120)"),
        seconds,
        option("load", Load, load),
        option("chaos", Chaos, chaos),
        seed,
        on_event,
        policy,
        name,
        router,
    ).run()


class _Inline(Dispatcher):
    """Tells its observers at once, in the task that the event happened in: virtual time has no other thread."""

    def __init__(self, tell: Callable[[Event], object]) -> None:
        super().__init__()
        self._tell_now = tell

    @property
    def active(self) -> bool:
        """Always."""
        return True

    @property
    def alert(self) -> bool:
        """Always."""
        return True

    def emit(self, event: Event) -> None:
        """Pass it on."""
        self._tell_now(event)


class _Simulation:
    """One run."""

    def __init__(
        self,
        targets: Sequence[SimTarget],
        scenario: Sequence[Happening | ClockStep],
        seconds: float,
        load: Load,
        chaos: Chaos,
        seed: int,
        on_event: Callable[[Event], object] | None,
        policy: Policy | None,
        name: str | None,
        options: Mapping[str, Any],
    ) -> None:
        if not is_number(seconds, above=0):
            raise ConfigurationError(f"seconds must be a number > 0, not {seconds!r}")
        if on_event is not None and inspect.iscoroutinefunction(on_event):
            raise ConfigurationError("on_event must not be async here: it is called in the middle of the simulation")
        for what, given in (("on_event", on_event), ("policy", policy)):
            if given is not None and not callable(given):
                raise ConfigurationError(f"{what} must be a function, not {given!r:.80}")
        if not is_number(seed, whole=True):
            raise ConfigurationError(f"seed must be a whole number, not {seed!r}")
        _refuse(options, policy)
        self.seconds, self.load, self.chaos, self.seed = seconds, load, chaos, seed
        self.loop = VirtualLoop(seed)  # type: ignore[abstract]  # what is missing needs threads and sockets
        self.clock = _SteppedClock(self.loop, scenario, chaos, seconds, seed)
        self.happenings = [one for one in scenario if isinstance(one, Happening)]
        request = as_request(load.request, streaming=False)
        self.request = request if load.timeout_s is None else request.replace(timeout_s=load.timeout_s)
        self.streamed = self.request.replace(streaming=True)
        self.asked: list[Asked] = []
        self.packets: list[Packet] = []
        self.circuits: list[Circuit] = []
        self.broken: list[str] = []
        self.bug: BaseException | None = None
        tokens = -(-len(request.prompt_text) // CHARS_PER_TOKEN)
        by_target = _placed(targets, self.happenings)
        self.vendors = [
            SimVendor(
                one,
                by_target[one.name],
                chaos,
                seed=seed,
                clock=self.loop.time,
                packets=self.packets,
                prompt_tokens=tokens,
            )
            for one in targets
        ]
        self.on_event = on_event
        self.policy = policy
        self.router: Router | None = None
        self.executions: dict[int, Execution] = {}
        self.ends: dict[str, int] = {}
        self.states: dict[str, str] = {}
        if policy is None:
            self.router = self._router(targets, options)
            self.name = name or _called(options.get("strategy", "priority"))
        else:
            self.name = name or _called(policy)

    # ── the router, watched ──────────────────────────────────────────────────────────────────────────────────────────

    def _router(self, targets: Sequence[SimTarget], options: Mapping[str, Any]) -> Router:
        router = Router(
            [
                Target(provider=SimProvider(vendor), name=one.name, price=one.priced, **one.options)
                for one, vendor in zip(targets, self.vendors, strict=True)
            ],
            clock=self.clock,
            seed=self.seed,
            **options,
        )
        policies = [option("retry", RetryPolicy, options.get("retry"))]
        if self.request.chain is not None and (terms := router.chains.get(self.request.chain)) is not None:
            policies.append(terms.retry or policies[0])
        self.retries: int = max(policy.total for policy in policies)
        # Its own dispatcher tells observers on a thread; here they are told at the virtual moment.
        books = router._books
        router._events = books.events = _Inline(self._heard)
        opened = books.opened

        def noted(execution: Execution, chosen: Plan) -> None:
            asked = ASKING.get()
            self.executions[asked.number] = execution
            asked.deadline = execution.deadline
            opened(execution, chosen)

        books.opened = noted  # type: ignore[method-assign]  # a journal is opened there, whichever face was called
        self.gates = {route.name: route.gate for route in router._fleet.routes}
        self.states = dict.fromkeys(self.gates, str(CircuitState.CLOSED))
        self.together: list[tuple[Packet, Packet]] = []
        self.probes: dict[str, tuple[int, Packet] | None] = dict.fromkeys(self.gates)
        for vendor in self.vendors:
            vendor.before = self._about_to_send
        return router

    def _heard(self, event: Event) -> None:
        if type(event) is CircuitChanged:
            self._changed(event.scope, event.state.removeprefix("circuit "), event.for_s)
        elif event.name in ("request_succeeded", "request_failed"):
            self.ends[event.execution] = self.ends.get(event.execution, 0) + 1
        if self.on_event is not None:
            self.on_event(event)

    def _changed(self, scope: str, state: str, for_s: float | None = None) -> None:
        last = self.circuits[-1] if self.circuits else None
        if last is None or (last.target, last.state, last.at) != (scope, state, self.loop.now):
            self.circuits.append(Circuit(self.loop.now, scope, state, for_s))
        if scope in self.states and state in set(CircuitState):
            self.states[scope] = state

    def _about_to_send(self, packet: Packet) -> None:
        """The promises that a packet can break are looked at when it leaves."""
        gate, now = self.gates[packet.target], self.loop.now
        state = gate.state
        packet.circuit = str(state)
        if packet.circuit != self.states[packet.target]:
            self._changed(packet.target, packet.circuit)
        if state is CircuitState.HALF_OPEN:
            probe = self.probes[packet.target]
            generation = gate.breaker.generation
            if probe is not None and probe[0] == generation and probe[1].ended is None:
                self.together.append((probe[1], packet))
            self.probes[packet.target] = (generation, packet)
        refusal = gate.peek(now)
        if refusal is not None and refusal.reason.startswith(_SHUT):
            self._broken(packet.request, f"a packet to {packet.target} ({refusal.reason})")

    def _broken(self, request: int, what: str) -> None:
        self.broken.append(f"{self.loop.now:.3f} s, request {request}: {what}")

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> SimulationReport:
        with _gc_by_count():
            self.loop.run(self._main(), until=math.inf)
        self._audit()
        if self.router is not None:
            self.router.close()
        return reported(
            name=self.name,
            seed=self.seed,
            seconds=self.seconds,
            targets=tuple(vendor.name for vendor in self.vendors),
            scenario=tuple(self.happenings),
            asked=self.asked,
            packets=self.packets,
            circuits=self.circuits,
            broken=self.broken,
            ledger_nano=None if self.router is None else sum(one.cost_nano for one in self.router.costs().targets),
        )

    async def _main(self) -> None:
        """Requests come in; then the last of them are awaited."""
        when = Random(f"{self.seed} arrivals")  # a test's chance, not a secret
        how = Random(f"{self.seed} requests")  # as above
        ask = self._asker()
        load, chaos, loop = self.load, self.chaos, self.loop
        every = load.burst / load.rps
        running: set[asyncio.Task[None]] = set()
        at = 0.0
        while True:
            at += when.expovariate(1 / every) if load.poisson else every
            if at >= self.seconds:
                break
            await asyncio.sleep(at - loop.now)
            for _ in range(load.burst):
                asked = Asked(len(self.asked), loop.now, how.random() < load.streaming)
                self.asked.append(asked)
                awaits = _AWAITS if asked.streaming else _FEW_AWAITS
                cancel_at = how.randrange(1, awaits) if how.random() < chaos.cancel else 0
                leave_at = how.randrange(0, 7) if asked.streaming and how.random() < chaos.abandon else None
                coro = ask(asked, leave_at)
                task = loop.create_task(_cancelling(coro, cancel_at) if cancel_at else coro)
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(self._surfaces)
            if self.bug is not None:
                break
            if len(self.asked) % 2000 < load.burst:
                gc.collect(1)
        for _ in range(2):
            await asyncio.sleep(0)  # then the last ones have begun, whatever the order, and have a deadline
        patience_s = _PATIENCE_S if self.router is None else self._patience_s()
        if running:
            await asyncio.wait(list(running), timeout=patience_s)
        if self.bug is not None:
            raise self.bug
        for asked in self.asked:
            if asked.ended is None:
                asked.outcome = "never ended"
                self._broken(asked.number, f"had not ended {patience_s:.0f} s after the last one began")

    def _surfaces(self, task: asyncio.Task[None]) -> None:
        """A bug is nobody's failed request: it ends the simulation."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bug = self.bug or error

    def _patience_s(self) -> float:
        """When the last request must have ended."""
        latest = max((asked.deadline for asked in self.asked if math.isfinite(asked.deadline)), default=self.loop.now)
        return latest - self.loop.now + 1.0

    def _asker(self) -> Callable[[Asked, int | None], Coroutine[Any, Any, None]]:
        if self.policy is not None:
            chance = Random(f"{self.seed} policy").random  # a test's chance, not a secret
            served = self.policy(self.vendors, chance)
            return lambda asked, leave_at: self._one(asked, self._other(asked, served))
        return lambda asked, leave_at: self._one(asked, self._ours(asked, leave_at))

    async def _one(self, asked: Asked, how: Coroutine[Any, Any, str]) -> None:
        """One caller: note how it went."""
        ASKING.set(asked)
        try:
            asked.outcome = await how
        except asyncio.CancelledError:
            asked.outcome = "cancelled"
            raise
        except (FallbackError, ExceptionGroup) as error:
            asked.outcome = "failed"
            asked.error = _told(error)
        finally:
            asked.ended = self.loop.now

    async def _other(self, asked: Asked, served: Callable[[], Awaitable[str]]) -> str:
        asked.served_by = await served()
        return "answered"

    async def _ours(self, asked: Asked, leave_at: int | None) -> str:
        assert self.router is not None
        if not asked.streaming:
            answer = await self.router.ainvoke(self.request)
            asked.served_by, asked.text = answer.target, answer.text
            return "answered"
        stream = self.router.astream(self.streamed)
        seen = 0
        async for event in stream:
            if type(event) is TextDelta:
                if asked.first_token is None:
                    asked.first_token = self.loop.now
                asked.text += event.text
                seen += 1
            elif type(event) is Restarted:
                asked.text = ""
            elif type(event) is Finished:
                asked.served_by = event.target
            if leave_at is not None and seen >= leave_at:
                await stream.aclose()
                return "abandoned"
        return "answered"

    # ── the promises that can be looked at when all is over ──────────────────────────────────────────────────────────

    def _audit(self) -> None:
        self.broken += [f"at the end: {problem}" for problem in self.loop.problems]
        if self.router is None:
            return
        for first, second in self.together:
            # One that was given up at the very moment that the next one began was not in flight beside it.
            if first.ended is None or first.ended > second.at:
                self._broken(second.request, f"a second probe of {second.target} while one is in flight")
        attempts = 0
        for asked in self.asked:
            execution = self.executions.get(asked.number)
            if execution is None:
                self._broken(asked.number, f"ended {asked.outcome} without a journal") if asked.packets else None
                continue
            attempts += len(execution.attempts)
            self._audit_one(asked, execution)
        for vendor in self.vendors:
            if vendor.in_flight:
                self.broken.append(f"at the end: {vendor.in_flight} packets to {vendor.name} are still in flight")
        for health in self.router.health():
            if health.in_flight:
                self.broken.append(f"at the end: {health.target} has {health.in_flight} admissions out")
        rows = sum(cost.attempts for cost in self.router.costs().targets)
        if rows != attempts:
            self.broken.append(f"at the end: {rows} rows in the ledger for {attempts} attempts")

    def _audit_one(self, asked: Asked, execution: Execution) -> None:
        number, tries = asked.number, execution.attempts
        ends = self.ends.get(execution.id, 0)
        if ends != 1:
            self._broken(number, f"told to have ended {ends} times")
        if asked.ended is not None and asked.ended > execution.deadline + _LATE_S:
            self._broken(number, f"ended {asked.ended - execution.deadline:.4f} s after its deadline")
        if execution.outcome != asked.outcome and (execution.outcome, asked.outcome) not in _TOLD_FIRST:
            self._broken(number, f"the journal says {execution.outcome}, its caller saw {asked.outcome}")
        sent = [packet.target for packet in asked.packets]
        # Whoever is cancelled between leave to send and sending has an attempt in the journal and nothing on the wire.
        unsent = Counter(attempt.target for attempt in tries)
        unsent.subtract(sent)
        left = Counter(attempt.target for attempt in tries if attempt.outcome in ("cancelled", "abandoned"))
        if any(not 0 <= count <= left[target] for target, count in unsent.items()):
            self._broken(number, f"{len(tries)} attempts in the journal, packets to {sent}")
        # A connection that never came about carried no request: such a try may be made again, once at each target,
        # without counting.
        refusing = [packet.target for packet in asked.packets if packet.outcome == ErrorKind.CONNECT]
        refused, most = len(refusing), len(self.vendors) + self.retries
        if len(sent) - refused > most or len(sent) > most + len(set(refusing)):
            self._broken(number, f"{len(sent)} packets ({refused} refused) for {len(self.vendors)} targets")
        if any(attempt.ended is None or attempt.outcome == "running" for attempt in tries):
            self._broken(number, "an attempt was never settled")
        unpaid: set[str] = set()
        for attempt in tries:
            if attempt.target in unpaid:
                self._broken(number, f"{attempt.target} was asked again after a money error")
            if isinstance(attempt.error, ProviderError) and attempt.error.kind in _MONEY:
                unpaid.add(attempt.target)
        if asked.outcome == "answered" and asked.text != TEXT:
            self._broken(number, f"answered with {asked.text!r}")
        if asked.outcome != "answered" and not TEXT.startswith(asked.text):
            self._broken(number, f"its caller was left with {asked.text!r}")


class _SteppedClock(SimulatedClock):
    """Its wall clock is stepped when the scenario and chaos say so; no task takes part in it."""

    def __init__(self, loop: VirtualLoop, scenario: Sequence[Any], chaos: Chaos, seconds: float, seed: int) -> None:
        super().__init__(loop)
        chance = Random(f"{seed} clock")  # a test's chance, not a secret
        steps = [one for one in scenario if isinstance(one, ClockStep)]
        steps += [
            ClockStep(chance.uniform(0, seconds), chance.choice((-86400.0, -3600.0, 3600.0, 86400.0)))
            for _ in range(round(chaos.clock_steps * seconds / 60))
        ]
        self._steps = sorted(steps, key=lambda step: -step.at)

    def time(self) -> float:
        """Seconds since the epoch, after all steps so far."""
        while self._steps and self._steps[-1].at <= self._loop.now:
            self.stepped_s += self._steps.pop().seconds
        return super().time()


def _refuse(options: Mapping[str, Any], policy: Policy | None) -> None:
    valid = [name for name in router_options() if name not in ("clock", "seed", "on_event", "health_check")]
    for given in options:
        if policy is not None:
            raise ConfigurationError(f"{given!r} is for the router, and a policy asks in its place")
        if given not in valid:
            raise UnknownOption(f"simulate has no option {given!r}. {nearest(given, valid)}")


def _listed(what: str, given: Any, kinds: tuple[type[Any], ...], example: str) -> list[Any]:
    """What was given, as a list of these kinds."""
    if isinstance(given, Iterable) and not isinstance(given, str):
        found = list(given)
        wrong = [one for one in found if not isinstance(one, kinds) or type(one) is Happening]
        if not wrong:
            return found
        raise ConfigurationError(f"{what} holds {wrong[0]!r:.80}\nhint: give it as [{example}]")
    raise ConfigurationError(f"{what} must be a list, not {given!r:.80}\nhint: give it as [{example}]")


def _placed(targets: Sequence[SimTarget], happenings: Sequence[Happening]) -> Mapping[str, list[Happening]]:
    """What happens to which target.

    Raises:
        ConfigurationError: no targets, two of one name, or something happens to one that is not there.
    """
    names = [one.name for one in targets]
    if not names:
        raise ConfigurationError("a simulation needs at least one SimTarget")
    if len(set(names)) != len(names):
        raise ConfigurationError(f"two targets share a name: {', '.join(names)}")
    found: dict[str, list[Happening]] = {name: [] for name in names}
    for one in happenings:
        where = one.target
        if isinstance(where, int):
            if not 0 <= where < len(names):
                raise ConfigurationError(f"{one!r} happens to target {where}, and there are {len(names)}")
            where = names[where]
        if where not in found:
            raise ConfigurationError(f"{type(one).__name__} happens to {where!r}. {nearest(where, names)}")
        found[where].append(one)
    return found


def _called(what: Any) -> str:
    return what if isinstance(what, str) else str(getattr(what, "__name__", type(what).__name__))


def _told(error: BaseException) -> str:
    cause = error.__cause__
    kind = cause.kind if isinstance(cause, ProviderError) else error.kind if isinstance(error, ProviderError) else None
    return type(error).__name__ if kind is None else f"{type(error).__name__}: {kind}"


async def _cancelling(coro: Coroutine[Any, Any, T], step: int) -> T:
    return await _cancelled_at(coro, step)


@types.coroutine
def _cancelled_at(coro: Coroutine[Any, Any, T], step: int) -> Generator[Any, Any, T]:
    """`coro`, in a task that is cancelled when it awaits for the `step`-th time."""
    task = asyncio.current_task()
    assert task is not None
    awaited = 0
    thrown: BaseException | None = None
    while True:
        try:
            future = coro.send(None) if thrown is None else coro.throw(thrown)
        except StopIteration as stop:
            result: T = stop.value
            return result
        awaited += 1
        if awaited == step:
            task.cancel()
        try:
            yield future
            thrown = None
        except BaseException as raised:  # noqa: BLE001  # thrown on into the coroutine, as the task would have
            thrown = raised


@contextmanager
def _gc_by_count() -> Generator[None, None, None]:
    """Collect garbage when so many requests have been made, not when the machine finds it time: finalizers may run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
