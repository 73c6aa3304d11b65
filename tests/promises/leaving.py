"""Leaving at every point: each scenario is cancelled at its n-th await, for every n, and looked at afterwards.

The same of threads: a stream is left after its n-th event, and Ctrl-C comes at the n-th thing that the caller's thread
does (an event read, a wait), for every n. Afterwards nothing may be left over: no attempt in flight, no probe out, no
place in a line, no slot, no money set aside, no stream open, no task, no thread. What was left counts as nothing, and
the next call is served.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_core import (
    ChatRequest,
    ErrorKind,
    FallbackError,
    OutputSchema,
    ProviderError,
    RetryPolicy,
    Router,
    StreamBroken,
    Target,
    user,
)
from shared_core.chat.events import ChatEvent
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.deadline import Guard
from shared_core.testing import CANONICAL, Answer, Broken, FaultServer, ScriptedProvider, VirtualClock
from tests.faults import matrix

__all__ = [
    "SCENARIOS",
    "Scenario",
    "abandon_everywhere",
    "cancel_everywhere",
    "cancel_over_the_wire",
    "interrupt_everywhere",
]

K = ErrorKind
ASK = ChatRequest((user("Hello"),))
ANSWER = "one two three four"


class Awaited(ScriptedProvider):
    """Awaits before each event and while it closes, as a socket does; in a thread `interrupt` is called before each."""

    interrupt: Callable[[], None] = staticmethod(lambda: None)

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        for event in super().stream(request, guard):
            self.interrupt()
            yield event

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        self.open += 1
        try:
            await asyncio.sleep(0)
            for event in self._play(self._next(request), request, guard):
                await asyncio.sleep(0)
                yield event
        finally:
            self.open -= 1
            await asyncio.sleep(0)


class Ticking(VirtualClock):
    """Every wait is over at once, but is awaited; and can be interrupted in a thread."""

    interrupt: Callable[[], None] = staticmethod(lambda: None)

    def sleep(self, seconds: float) -> None:
        self.interrupt()
        super().sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        super().sleep(seconds)
        await asyncio.sleep(0)


@dataclass
class World:
    """One router in the state in which the caller comes."""

    router: Router
    clock: VirtualClock
    providers: Sequence[Awaited]
    request: ChatRequest = ASK
    good: int = 0
    """Which provider serves the next call."""
    others: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)
    """Callers who are there at the same time, and stay."""
    interrupted: list[Callable[[], None]] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def gates(self) -> list[Any]:
        return [route.gate for route in self.router._fleet.routes]

    def close(self) -> None:
        self.router.close()
        if self.folder is not None:
            self.folder.cleanup()


@dataclass(frozen=True)
class Scenario:
    """A situation worth leaving."""

    name: str
    build: Callable[[], World]
    sync: bool = True
    """Whether a thread can be in it too, by itself."""
    call: Callable[[World, bool], Awaitable[Any]] | None = None
    """How the caller calls, if not at the router: handed whether to stream."""

    def __str__(self) -> str:
        return self.name


# ── the situations ───────────────────────────────────────────────────────────────────────────────────────────────────


def _world(
    *scripts: Any, request: ChatRequest = ASK, keywords: Mapping[str, Any] | None = None, **options: Any
) -> World:
    clock = Ticking()
    providers = [
        Awaited(*(script if isinstance(script, tuple) else (script,)), name=name, model="m", clock=clock)
        for name, script in zip("abc", scripts, strict=False)
    ]
    targets = [Target(provider=p, name=p.name, price={"input": 1, "output": 2}, **(keywords or {})) for p in providers]
    options = {"retry": RetryPolicy(base_s=0.5, overloaded_base_s=0.5), "seed": 3, "metadata": True, **options}
    return World(Router(targets, clock=clock, **options), clock, providers, request)


def _answered() -> World:
    return _world(ANSWER)


def _retried() -> World:
    return _world((K.TRANSIENT, ANSWER))


def _unsent() -> World:
    return _world((K.CONNECT, K.CONNECT, ANSWER), ANSWER)


def _asked_to_wait() -> World:
    wait = ProviderError.of(K.THROTTLED, "busy", status=429, retry_after_s=3.0)
    return _world((wait, ANSWER))


def _fallen_over() -> World:
    return _world((K.BILLING, ANSWER), (K.TRANSIENT, K.TRANSIENT, ANSWER), ANSWER)


def _continued() -> World:
    return _world((Broken("one two"), ANSWER), (ANSWER,))


def _refused_everywhere() -> World:
    return _world((K.TRANSIENT, K.TRANSIENT, ANSWER), (K.OVERLOADED, ANSWER))


def _reasked() -> World:
    schema = OutputSchema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    request = ASK.replace(output=schema, check=_is_number)
    return _world(("not a number", '{"n": 1}'), request=request)


def _is_number(answer: Any) -> str | None:
    return None if answer.text.startswith("{") else "it is no object"


def _probing() -> World:
    """The circuit is open, and its time is over: the caller is the probe."""
    world = _world((*[K.TRANSIENT] * 5, ANSWER), ANSWER, retry=RetryPolicy(same_target=0, total=0))
    for _ in range(5):
        world.router.invoke("Hello")
    gate = world.gates[0]
    assert gate.breaker.state is CircuitState.OPEN
    world.clock.advance(gate.breaker.open_until - world.clock.monotonic())
    return world


def _rechecking() -> World:
    """The account is locked, and it is time to look again: the caller is the re-check."""
    world = _world((K.AUTH, ANSWER), ANSWER)
    world.router.invoke("Hello")
    refusal = world.gates[0].peek(world.clock.monotonic())
    world.clock.advance(refusal.retry_at - world.clock.monotonic())
    return world


def _parked() -> World:
    """A throttle has parked the only target: the caller waits for its end."""
    wait = ProviderError.of(K.THROTTLED, "busy", status=429, retry_after_s=30.0)
    world = _world((wait, ANSWER), retry=RetryPolicy(same_target=0, total=0))
    try:
        world.router.invoke("Hello")
    except FallbackError:
        pass
    return world


def _in_line() -> World:
    """The only slot is taken by somebody who gives it back."""
    world = _world(ANSWER, keywords={"limits": {"concurrency": 1}})
    world.others = [lambda: world.router.ainvoke(ASK), lambda: world.router.ainvoke(ASK)]
    return world


def _rated() -> World:
    """The rate has room again in a second."""
    world = _world(ANSWER, keywords={"limits": {"requests_per_minute": 60, "burst_s": 1.0}})
    for _ in range(1):
        world.router.invoke("Hello")
    return world


def _raced() -> World:
    """The first is late at once, and the second is asked beside it."""
    return _world(ANSWER, ANSWER, hedge={"after": 1e-6, "min_s": 0.0, "budget": 1.0}, metadata=False)


def _raced_and_failing() -> World:
    return _world((K.TRANSIENT, ANSWER), ANSWER, hedge={"after": 1e-6, "min_s": 0.0, "budget": 1.0})


def _budgeted() -> World:
    return _world((K.TRANSIENT, ANSWER), ANSWER, budgets={"limit_usd": 1.0, "window": "day"}, request=_LIMITED)


def _booked() -> World:
    """Every attempt has its row on disk before it starts."""
    folder = tempfile.TemporaryDirectory(prefix="leaving-")
    world = _world(
        (K.TRANSIENT, ANSWER), ANSWER, ledger=str(Path(folder.name) / "costs.db"), request=_LIMITED,
        budgets={"limit_usd": 1.0, "window": "day"},
    )  # fmt: skip
    world.folder = folder
    return world


_LIMITED = ASK.replace(max_tokens=100)


def _cached() -> World:
    """Nobody has asked before."""
    return _world((K.TRANSIENT, ANSWER), cache=True)


def _leading() -> World:
    """Others read the answer that this caller asked for."""
    world = _world(ANSWER, cache=True)
    world.others = [lambda: world.router.ainvoke(ASK), lambda: _read(world.router.astream(ASK))]
    return world


def _following() -> World:
    """Somebody asks for the same a moment before."""
    world = _leading()
    world.others.append(lambda: world.router.ainvoke(ASK))
    return world


def _kept() -> World:
    world = _world(ANSWER, cache=True)
    world.router.invoke(ASK)
    return world


async def _read(stream: Any) -> str:
    return "".join([event.text async for event in stream if hasattr(event, "text")])


async def _by_langchain(world: World, streamed: bool) -> Any:
    from langchain_fallback import FallbackChatModel

    model = FallbackChatModel(router=world.router)
    if streamed:
        return [chunk async for chunk in model.astream("Hello")]
    return await model.ainvoke("Hello")


async def _by_llamaindex(world: World, streamed: bool) -> Any:
    from llama_index.core.llms import ChatMessage

    from llamaindex_fallback import FallbackLLM

    llm = FallbackLLM(router=world.router)
    if streamed:
        return [part async for part in await llm.astream_chat([ChatMessage("Hello")])]
    return await llm.achat([ChatMessage("Hello")])


async def _by_test(world: World, streamed: bool) -> Any:
    return await world.router.atest_target("a")


SCENARIOS = (
    Scenario("answered at once", _answered),
    Scenario("tried again", _retried),
    Scenario("tried again, because nothing was sent", _unsent),
    Scenario("asked to wait", _asked_to_wait),
    Scenario("fallen over, twice", _fallen_over),
    Scenario("broken off and continued", _continued),
    Scenario("refused by all, and answered at the second try", _refused_everywhere),
    Scenario("shown its mistake", _reasked),
    Scenario("the probe of a half-open circuit", _probing),
    Scenario("the re-check of a locked account", _rechecking),
    Scenario("waiting for the end of a park", _parked),
    Scenario("waiting in line for a slot", _in_line, sync=False),
    Scenario("waiting for a rate", _rated),
    Scenario("raced against a second target", _raced, sync=False),
    Scenario("raced, and the first fails", _raced_and_failing, sync=False),
    Scenario("under a budget", _budgeted),
    Scenario("booked in SQLite before it is sent", _booked),
    Scenario("not in the cache yet", _cached),
    Scenario("leading others who asked for the same", _leading, sync=False),
    Scenario("behind others who asked for the same", _following, sync=False),
    Scenario("served from the cache", _kept),
    Scenario("tried again, through LangChain", _retried, sync=False, call=_by_langchain),
    Scenario("fallen over, through LangChain", _fallen_over, sync=False, call=_by_langchain),
    Scenario("tried again, through LlamaIndex", _retried, sync=False, call=_by_llamaindex),
    Scenario("fallen over, through LlamaIndex", _fallen_over, sync=False, call=_by_llamaindex),
    Scenario("a target tested by hand", _answered, sync=False, call=_by_test),
)


# ── looking afterwards ───────────────────────────────────────────────────────────────────────────────────────────────


def _left_over(world: World) -> list[str]:
    """What is still there."""
    now = world.clock.monotonic()
    found = [f"{p.open} stream(s) of {p.name} open" for p in world.providers if p.open]
    for route, gate in zip(world.router._fleet.routes, world.gates, strict=True):
        name = route.name
        if gate.health.in_flight:
            found.append(f"{gate.health.in_flight} attempt(s) at {name} in flight")
        if gate.limiter.in_flight or gate.limiter.waiting:
            found.append(f"{gate.limiter.in_flight} slot(s) of {name} taken, {gate.limiter.waiting} in line")
        breaker = gate.breaker
        if breaker.state is CircuitState.HALF_OPEN and breaker.peek(now) is not None:
            found.append(f"a probe of {name} is out")
        if gate.lock.checking_until > now or gate.account.checking_until > now:
            found.append(f"a re-check of {name} is out")
    open_rows = [entry for entry in world.router.ledger.entries() if getattr(entry.status, "open", False)]
    if open_rows:
        found.append(f"{len(open_rows)} row(s) of the ledger not settled")
    pending = [status.reading.pending for status in _budgets(world.router)]
    found += [f"{nano} nano-dollars still set aside" for nano in pending if nano]
    flights = getattr(getattr(world.router, "_cached", None), "_flights", None)
    if flights is not None and len(flights):
        found.append(f"{len(flights)} shared request(s) under way")
    return found


def _budgets(router: Router) -> Sequence[Any]:
    return tuple(router.budget_status()) if router._books.money is not None else ()


def _counted(world: World) -> list[str]:
    """A caller who leaves is no failure of the target's: only what its script has failed may be counted."""
    scripted = [sum(isinstance(step, (ErrorKind, ProviderError, Broken)) for step in p.script) for p in world.providers]
    found = []
    for route, gate, most in zip(world.router._fleet.routes, world.gates, scripted, strict=True):
        if gate.health.consecutive_failures > most:
            found.append(f"{gate.health.consecutive_failures} failures of {route.name} counted, its script has {most}")
    return found


def _next_call(world: World) -> list[str]:
    """The next call is answered. Locks and parks that the script has put on may stand: time passes first."""
    world.clock.advance(3600)
    for provider in world.providers:
        provider.script = ('{"n": 1}' if world.request.output is not None else ANSWER,)
        provider.interrupt = _nothing
    if isinstance(world.clock, Ticking):
        world.clock.interrupt = _nothing
    try:
        world.router.invoke(world.request)
    except FallbackError as error:
        return [f"the next call failed: {error}"]
    return []


def _nothing() -> None:
    """Nobody interrupts."""


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


@types.coroutine
def _cancelled_at(work: Any, at: int, reached: list[int]) -> Generator[Any, Any, Any]:
    """Await `work`; its `at`-th await, from 1, is cancelled as if somebody had cancelled the task from outside."""
    task = asyncio.current_task()
    assert task is not None
    raised: BaseException | None = None
    while True:
        try:
            waited_for = work.send(None) if raised is None else work.throw(raised)
        except StopIteration as stop:
            return stop.value
        raised = None
        reached[0] += 1
        if reached[0] == at:
            task.cancel()
        try:
            yield waited_for
        except BaseException as error:
            raised = error


async def _call(world: World, streamed: bool) -> Any:
    if streamed:
        return await _read(world.router.astream(world.request))
    return await world.router.ainvoke(world.request)


async def _one(scenario: Scenario, at: int, *, streamed: bool) -> tuple[bool, list[str]]:
    """Cancel a scenario at one await. Returns whether there was such an await, and what was wrong afterwards."""
    world = scenario.build()
    reached = [0]
    found: list[str] = []
    try:
        others = [asyncio.ensure_future(other()) for other in world.others]
        if others:
            await asyncio.sleep(0)
        call = (scenario.call or _call)(world, streamed)
        victim = asyncio.ensure_future(_cancelled_at(call, at, reached))
        left = False
        try:
            await victim
        except asyncio.CancelledError:
            left = True
        except FallbackError as error:
            if not isinstance(error, StreamBroken):
                found.append(f"failed: {error}")
        if reached[0] >= at and not left:
            found.append("the cancel was swallowed")
        ended = await asyncio.gather(*others, return_exceptions=True)
        found += [f"another caller was hurt: {one!r}" for one in ended if isinstance(one, BaseException)]
        gc.collect(0)  # async generators that nobody closed are closed by the loop: that would be a task
        for _ in range(10_000):
            if not (_tasks() or _left_over(world)):
                break
            await asyncio.sleep(0.001)
        found += [f"a task is left: {task.get_coro()}" for task in _tasks()] + _left_over(world) + _counted(world)
        journal = world.router.last
        # What is shared goes on or has just been answered, and a framework may do something after that.
        shared = world.router.options.get("cache") is not None or scenario.call is not None
        if left and not shared and not others and journal and journal.outcome not in ("cancelled", "abandoned"):
            found.append(f"the journal says {journal.outcome!r}")
        found += await asyncio.to_thread(_next_call, world)
        return reached[0] >= at, found
    finally:
        world.close()


def _tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def cancel_everywhere(scenario: Scenario, *, streamed: bool) -> tuple[int, list[str]]:
    """Cancel `scenario` at every await. Returns how many there were, and what was wrong, with the await's number."""
    threads = _threads()

    async def sweep() -> tuple[int, list[str]]:
        wrong, at = [], 1
        while True:
            was_there, found = await _one(scenario, at, streamed=streamed)
            wrong += [f"await {at}: {text}" for text in found]
            if not was_there:
                return at - 1, wrong
            at += 1

    points, wrong = asyncio.run(sweep())
    return points, wrong + _new_threads(threads)


_STOCK = ("asyncio_", "llm-fallback", "fallback-", "ThreadPoolExecutor")
"""Threads that are kept for the next call, of asyncio's and of ours."""


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _new_threads(before: set[threading.Thread]) -> list[str]:
    new = [thread for thread in _threads() - before if thread.is_alive() and not thread.name.startswith(_STOCK)]
    for thread in new:
        thread.join(10)
    return [f"a thread is left: {thread.name}" for thread in new if thread.is_alive()]


async def _over_the_wire(vendor: str, at: int, *, streamed: bool) -> tuple[bool, list[str]]:
    with FaultServer() as server:
        model = matrix.VENDORS[vendor].model
        server.script(model, ["server-error", Answer(every_s=0.0005), "ok"])
        wire = matrix.VENDORS[vendor].wire
        target = Target(f"{vendor}:{model}", base_url=server.url_for(wire), api_key="sk-leaving-000000", name="a")
        router = Router([target], retry=RetryPolicy(base_s=0.002), seed=1)
        await router.awarm()
        found: list[str] = []
        reached = [0]

        async def call() -> None:
            if streamed:
                await _read(router.astream(ASK))
            else:
                await router.ainvoke(ASK)

        left = False
        try:
            await asyncio.ensure_future(_cancelled_at(call(), at, reached))
        except asyncio.CancelledError:
            left = True
        if reached[0] >= at and not left:
            found.append("the cancel was swallowed")
        await asyncio.to_thread(server.wait_idle)
        gate = router._fleet.routes[0].gate
        if gate.health.in_flight:
            found.append("an attempt is in flight")
        sent, tried = server.count(model), len(router.last.attempts if router.last else ())
        # A request that was being written when its caller left may not have arrived; never two.
        if sent != tried and not (left and sent == tried - 1):
            found.append(f"{tried} attempts in the journal, {sent} requests on the wire")
        server.script(model, "ok")
        if (await router.ainvoke(ASK)).text != CANONICAL:
            found.append("the next call was not answered")
        await router.aclose()
        await asyncio.to_thread(server.wait_for, lambda s: s.open_connections == 0)
        found += [f"a task is left: {task.get_coro()}" for task in _tasks()]
        return reached[0] >= at, found


def cancel_over_the_wire(vendor: str, *, streamed: bool, every: int = 1) -> tuple[int, list[str]]:
    """The same with a vendor's SDK and real sockets: a failed try, a wait, and an answer. Every n-th await of it."""

    async def sweep() -> tuple[int, list[str]]:
        points, wrong, at = 0, list[str](), 1
        while True:
            was_there, found = await _over_the_wire(vendor, at, streamed=streamed)
            wrong += [f"await {at}: {text}" for text in found]
            if not was_there:
                return points, wrong
            points, at = points + 1, at + every

    return asyncio.run(sweep())


# ── leaving in a thread ──────────────────────────────────────────────────────────────────────────────────────────────


def abandon_everywhere(scenario: Scenario) -> tuple[int, list[str]]:
    """Leave a stream after every event. Returns how many there were, and what was wrong."""
    threads, wrong, after = _threads(), list[str](), 0
    while True:
        world = scenario.build()
        try:
            stream = iter(world.router.stream(world.request))
            read = 0
            try:
                for _ in stream:
                    read += 1
                    if read > after:
                        break
            except FallbackError as error:
                wrong.append(f"after {after}: failed: {error}")
            whole = read <= after
            stream.close()  # type: ignore[attr-defined]  # streams can be closed; the iterator's type does not say so
            found = _left_over(world) + _counted(world) + _next_call(world)
            wrong += [f"after {after}: {text}" for text in found]
        finally:
            world.close()
        if whole:
            return after, wrong + _new_threads(threads)
        after += 1


class _Stop(KeyboardInterrupt):
    """Ours, so that a Ctrl-C of the person in front of the screen still ends the run."""


def interrupt_everywhere(scenario: Scenario) -> tuple[int, list[str]]:
    """Ctrl-C at everything that the caller's thread does. Returns how many points there were, and what was wrong."""
    threads, wrong, at = _threads(), list[str](), 1
    while True:
        world = scenario.build()
        count = [0]

        def interrupt(count: list[int] = count, at: int = at) -> None:
            count[0] += 1
            if count[0] == at:
                raise _Stop

        try:
            for provider in world.providers:
                provider.interrupt = interrupt
            if isinstance(world.clock, Ticking):
                world.clock.interrupt = interrupt
            left = False
            try:
                world.router.invoke(world.request)
            except _Stop:
                left = True
            if count[0] >= at and not left:
                wrong.append(f"point {at}: Ctrl-C was swallowed")
            gc.collect(0)
            wrong += [f"point {at}: {text}" for text in _left_over(world) + _counted(world) + _next_call(world)]
        finally:
            world.close()
        if count[0] < at:
            return at - 1, wrong + _new_threads(threads)
        at += 1
