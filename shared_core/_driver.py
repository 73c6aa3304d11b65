"""Performs the flow's steps: `Driver.run` in a thread, `Driver.arun` in a task. A driver decides nothing.

The two are twins, kept equal by a parity test over random scripts: no portal threads, no `asyncio.run` in sync methods.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from shared_core._books import Books
from shared_core._clock import Clock, SystemClock
from shared_core._lane import Calm, in_thread, run_guarded
from shared_core._race import CONTENT, AsyncHeat, Heat, rung
from shared_core._streams import Left, Stop
from shared_core._turns import atake_turn, take_turn
from shared_core._watch import Watchdog
from shared_core.chat.answer_tool import adelivered, delivered
from shared_core.chat.events import ChatEvent, Finished
from shared_core.chat.request import ChatRequest
from shared_core.errors import ErrorKind, FallbackError, ProviderError
from shared_core.resilience.admission import Admission, Refusal
from shared_core.resilience.deadline import Guard
from shared_core.routing.execution import Execution
from shared_core.routing.flow import (
    Admit,
    Call,
    Late,
    Lost,
    Race,
    Report,
    Resume,
    Settle,
    Step,
    Wait,
    Won,
    first_token_s,
    flow,
)
from shared_core.routing.planner import Plan, Route
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.provider import Prefill
from shared_core.routing.relay import Relay

if TYPE_CHECKING:
    from shared_core._money import Leave

__all__ = ["Driver"]

_POLICY = FlowPolicy()

_IMPORTS_S = 30.0
"""No import takes longer, in seconds: with more left there is no need of a thread for it."""

_BREATH = 64
"""Events of a stream after which the event loop has a turn, though more of them are there already."""


class Driver:
    """Runs requests of one router.

    `prepare` turns a call into the request its target gets; `load` is called once per provider, before its first limit
    starts: importing an SDK takes up to seconds. `aload` is its async twin, called also on every further event loop
    where the provider says it is not `ready()`.
    """

    def __init__(
        self,
        clock: Clock,
        chance: Callable[[], float],
        books: Books,
        prepare: Callable[[Call], ChatRequest],
        load: Callable[[Route], None],
        aload: Callable[[Route], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._now = clock.monotonic
        self._chance = chance
        self._books = books
        self._prepare = prepare
        self._load = load
        self._aload = aload
        self._loaded: set[Route] = set()
        self._calm = Calm()
        self.routes: tuple[Route, ...] = ()

    def line_up(self, routes: tuple[Route, ...]) -> None:
        """These are the router's targets from now on."""
        self.routes = routes

    def loaded(self, route: Route) -> None:
        """The provider has been loaded ahead of its first call."""
        self._loaded.add(route)

    def _steps(self, execution: Execution, chosen: Plan, relay: Relay) -> Generator[Step, Report, FallbackError | None]:
        return flow(execution, chosen, chosen.policy or _POLICY, relay, clock=self._now, chance=self._chance)

    def run(
        self, execution: Execution, chosen: Plan, relay: Relay, stop: Stop | None = None
    ) -> Generator[ChatEvent, None, None]:
        """Perform the steps in this thread; yields what the caller gets. `stop` lets another thread end it."""
        steps = self._steps(execution, chosen, relay)
        pending: list[Call] = []  # begun and not settled
        report: Report = None
        failure: FallbackError | None = None
        ahead: Prefill | None = None
        heats: list[Heat] = []
        try:
            while True:
                if stop is not None and stop.asked:
                    raise Left
                try:
                    step = steps.send(report)
                except StopIteration as end:
                    failure = end.value
                    break
                report = None
                match step:
                    case Admit():
                        if step.wait_s > 0:
                            self._books.waits(execution, step.route, step.wait_s, in_line=True)
                        report = self._admit(step)
                        if self._books.money is not None and type(report) is Admission:
                            report = self._spend(execution, step, report)
                        if step.route.gate.news:
                            self._books.tell_changes(execution.id, step.route.gate)
                    case Call():
                        pending.append(step)
                        if step.standby is not None and ahead is None:
                            ahead = self._read_ahead(execution, step)
                        if step.late_s < math.inf:
                            report = self._late(step, heats, stop)
                        if report is None:
                            report = yield from self._call(
                                step, relay, ahead, _of(step, heats) if heats else None, stop
                            )
                    case Race():
                        pending.append(step.second)
                        self._books.hedged(execution)
                        report = self._race(step, heats, stop)
                    case Resume():
                        report = yield from self._call(step.call, relay, ahead, _of(step.call, heats), stop)
                    case Settle():
                        _settled(pending, step)
                        for other in heats:
                            if other.call.admission is step.admission:
                                other.drop()
                        self._books.settle(execution, step, self._chance(), self.routes)
                    case Wait():
                        self._books.waits(execution, step.route, step.seconds, in_line=False)
                        if stop is None or type(self._clock) is not SystemClock:
                            self._clock.sleep(step.seconds)
                        else:
                            stop.pause(step.seconds)
        except BaseException as error:
            self._leave(execution, pending, error)
            if type(error) is Left and stop is not None and stop.quiet:
                return
            raise
        finally:
            if ahead is not None:
                ahead.drop()
            for other in heats:
                other.drop()
        if failure is not None:
            raise self._books.failed(execution, failure)
        yield self._books.answered(execution, relay)

    async def arun(self, execution: Execution, chosen: Plan, relay: Relay) -> AsyncGenerator[ChatEvent, None]:
        """Perform the steps in this task; yields what the caller gets. The twin of `run`."""
        steps = self._steps(execution, chosen, relay)
        pending: list[Call] = []  # begun and not settled
        report: Report = None
        failure: FallbackError | None = None
        ahead: Prefill | None = None
        heats: list[AsyncHeat] = []
        try:
            while True:
                try:
                    step = steps.send(report)
                except StopIteration as stop:
                    failure = stop.value
                    if failure is not None:  # told before anything else is awaited: a cancel would leave it untold
                        failure = self._books.failed(execution, failure)
                    break
                report = None
                match step:
                    case Admit():
                        if step.wait_s > 0:
                            self._books.waits(execution, step.route, step.wait_s, in_line=True)
                        report = await self._aadmit(step)
                        if self._books.money is not None and type(report) is Admission:
                            report = await self._aspend(execution, step, report)
                        if step.route.gate.news:
                            self._books.tell_changes(execution.id, step.route.gate)
                    case Call() | Resume():
                        call = step.call if isinstance(step, Resume) else step
                        if call is step:
                            pending.append(call)
                            if call.standby is not None and ahead is None:
                                ahead = self._read_ahead(execution, call)
                            if call.late_s < math.inf:
                                report = await self._alate(call, heats)
                        if report is None:
                            ended = _Ended()
                            events = self._acall(
                                execution, call, relay, ended, ahead, _of(call, heats) if heats else None
                            )
                            try:
                                async for event in events:
                                    yield event
                            finally:
                                await events.aclose()
                            report = ended.error
                    case Race():
                        pending.append(step.second)
                        self._books.hedged(execution)
                        report = await self._arace(step, heats)
                    case Settle():
                        _settled(pending, step)
                        for other in heats:
                            if other.call.admission is step.admission:
                                other.drop()
                        self._books.settle(execution, step, self._chance(), self.routes)
                    case Wait():
                        self._books.waits(execution, step.route, step.seconds, in_line=False)
                        await self._clock.asleep(step.seconds)
        except BaseException as error:
            self._leave(execution, pending, error)
            raise
        finally:
            if ahead is not None:
                ahead.drop()
            for other in heats:
                other.drop()
            if heats:
                try:
                    await AsyncHeat.gone(heats)
                except BaseException as error:  # a caller who leaves now has had no end told yet
                    self._leave(execution, pending, error)
                    raise
        if failure is not None:
            raise failure
        yield self._books.answered(execution, relay)

    def _admit(self, step: Admit) -> Admission | Refusal:
        """Ask everything that has a say in whether the attempt may start."""
        gate = step.route.gate
        if step.wait_s > 0:
            return take_turn(gate, step.request, step.wait_s, step.lease_s, self._clock, self._chance)
        return gate.admit(self._now(), step.lease_s, self._chance(), step.request)

    async def _aadmit(self, step: Admit) -> Admission | Refusal:
        """The same, without blocking the loop."""
        gate = step.route.gate
        if step.wait_s > 0:
            return await atake_turn(gate, step.request, step.wait_s, step.lease_s, self._clock, self._chance)
        return gate.admit(self._now(), step.lease_s, self._chance(), step.request)

    def _spend(self, execution: Execution, step: Admit, admission: Admission) -> Admission | Refusal:
        """Ask for leave to spend, once everything else has let the attempt start. Its row is written when this returns.

        Last of all, so that nothing stands between the row and the first byte.
        """
        assert self._books.money is not None
        try:
            leave = self._books.money.reserve(execution, step)
        except BaseException:
            self._withdraw(step.route, admission)
            raise
        return self._spent(step, admission, leave)

    async def _aspend(self, execution: Execution, step: Admit, admission: Admission) -> Admission | Refusal:
        """The twin of `_spend`."""
        assert self._books.money is not None
        try:
            leave = await self._books.money.areserve(execution, step)
        except BaseException:
            self._withdraw(step.route, admission)
            raise
        return self._spent(step, admission, leave)

    def _spent(self, step: Admit, admission: Admission, leave: Leave | Refusal) -> Admission | Refusal:
        if isinstance(leave, Refusal):
            self._withdraw(step.route, admission)
            return leave
        admission.leave = leave
        return admission

    def _withdraw(self, route: Route, admission: Admission) -> None:
        """The attempt does not start after all."""
        route.gate.withdraw(admission, self._now())

    def _leave(self, execution: Execution, pending: Sequence[Call], error: BaseException) -> None:
        if execution.ended is None:  # an attempt that was interrupted has said so by itself
            self._books.interrupted(execution, pending[-1] if pending else None, error)
        for call in pending:
            self._books.neutral(execution, call, self._chance(), self.routes)

    # ── calls that may be late ───────────────────────────────────────────────────────────────────────────────────────

    def _late(self, call: Call, heats: list[Heat], stop: Stop | None) -> Report:
        """Begin a call beside this thread. `Late` when it brings no content in time; None as soon as it does."""
        heat = self._heat(call, SimpleQueue(), stop)
        heats.append(heat)
        rung(heat.bell, min(call.late_s, heat.guard.remaining()))
        return None if heat.ready else Late()

    def _race(self, step: Race, heats: list[Heat], stop: Stop | None) -> Report:
        """Begin the second call, and wait until one of the two brings content or ends."""
        bell = heats[0].bell
        heats.append(self._heat(step.second, bell, stop))
        while (report := _decided(heats)) is None:
            rung(bell, min(heat.guard.remaining() for heat in heats))
        return report

    def _heat(self, call: Call, bell: SimpleQueue[None], stop: Stop | None) -> Heat:
        request, guard = self._opened(call)
        guard.cuts = {}
        if stop is not None:
            guard.cuts[stop] = lambda: bell.put(None)  # who waits for it looks again how much time is left
            stop.watch(guard)
        provider = call.route.provider
        return Heat(call, guard, lambda: provider.stream(request, guard), self._now, bell)

    async def _alate(self, call: Call, heats: list[AsyncHeat]) -> Report:
        """The twin of `_late`."""
        heat = await self._aheat(call, asyncio.Event())
        heats.append(heat)
        await _arung(heat.bell, min(call.late_s, heat.guard.remaining()))
        return None if heat.ready else Late()

    async def _arace(self, step: Race, heats: list[AsyncHeat]) -> Report:
        """The twin of `_race`."""
        bell = heats[0].bell
        second = await self._aheat(step.second, bell)
        heats.append(second)
        await second.begun()
        while (report := _decided(heats)) is None:
            await _arung(bell, min(heat.guard.remaining() for heat in heats))
        return report

    async def _aheat(self, call: Call, bell: asyncio.Event) -> AsyncHeat:
        request, guard = await self._aopened(call)
        return AsyncHeat(call, guard, call.route.provider.astream(request, guard), self._now, bell)

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _opened(self, call: Call) -> tuple[ChatRequest, Guard]:
        """The request as its target gets it, and its limits, which begin now."""
        if call.route not in self._loaded:
            self._load_by(call)
            self._loaded.add(call.route)
            call.attempt.started = self._now()  # importing an SDK is no slowness of the target's
        return self._request(call), self._guard(call)

    def _load_by(self, call: Call) -> None:
        """Load the provider, in another thread where the deadline of the call may come before the end of that.

        Raises:
            ProviderError: kind TIMEOUT, when it does; the loading goes on for those who call later.
        """
        left = call.deadline - self._now()
        if left > _IMPORTS_S:
            self._load(call.route)
            return
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def load() -> None:
            try:
                self._load(call.route)
            except BaseException as error:  # noqa: BLE001  # raised where the call is made
                ended.put(error)
            else:
                ended.put(None)

        in_thread(load)
        try:
            error = ended.get(timeout=max(0.0, left))
        except Empty:
            raise _too_late() from None
        if error is not None:
            raise error

    async def _aopened(self, call: Call) -> tuple[ChatRequest, Guard]:
        """The twin of `_opened`."""
        if call.route not in self._loaded or not getattr(call.route.provider, "ready", _always)():
            left = call.deadline - self._now()
            limit = asyncio.timeout(None if left == math.inf else max(0.0, left))
            try:
                async with limit:
                    await self._aload(call.route)
            except TimeoutError:
                if limit.expired():
                    raise _too_late() from None
                raise
            self._loaded.add(call.route)
            call.attempt.started = self._now()  # as above
        return self._request(call), self._guard(call)

    def _read_ahead(self, execution: Execution, call: Call) -> Prefill | None:
        """Let the target on standby read the prompt while this call is awaited."""
        assert call.standby is not None
        provider: Any = call.standby.provider  # `prefill` is an optional part of the protocol
        prefill: Callable[[ChatRequest], Prefill | None] = provider.prefill
        call = call._replace(route=call.standby, request=execution.request, attempt=replace(call.attempt))
        return prefill(self._prepare(call))

    def _request(self, call: Call) -> ChatRequest:
        """The request as its target gets it. Another model than the target's own is another origin."""
        request, attempt = self._prepare(call), call.attempt
        leave: Leave | None = call.admission.leave
        if leave is not None and leave.max_tokens is not None:
            request = request.replace(max_tokens=leave.max_tokens)
            attempt.capped_at = leave.max_tokens
        if request.model is not None and attempt.origin is not None:
            attempt.origin = replace(attempt.origin, model=request.model)
        return request

    def _guard(self, call: Call) -> Guard:
        guard = Guard(
            self._now,
            streaming=call.request.streaming,
            first_s=call.first_s,
            idle_s=call.idle_s,
            connect_s=call.connect_s,
            deadline=call.deadline,
        )
        guard.learn = call.route.gate.learn
        call.attempt.notes = guard.notes  # the provider writes, the journal shows
        return guard

    def _call(
        self, call: Call, relay: Relay, ahead: Prefill | None, heat: Heat | None, stop: Stop | None
    ) -> Generator[ChatEvent, None, ProviderError | None]:
        """Make one attempt; yields what reaches the caller, returns the error it ended with."""
        provider, attempt = call.route.provider, call.attempt
        try:
            request, guard = self._opened(call) if heat is None else (call.request, heat.guard)
        except ProviderError as error:
            return error
        if stop is not None and heat is None:
            stop.watch(guard)
        feed, touch = relay.feed, guard.touch
        alone = provider.interruptible or self._calm.of(call.route)
        begun = perf_counter()  # real time, whatever clock the router was handed: threads block in real time
        events: Iterator[ChatEvent] | None = None
        try:
            if heat is not None:
                events = heat.events()
            elif alone:
                events = provider.stream(request, guard)
            else:
                events = run_guarded(
                    lambda: provider.stream(request, guard), guard, lambda took: self._calm.took(call.route, took)
                )
            if attempt.output_by is not None:
                events = delivered(events, attempt.output_by)
            for event in events:
                kind = type(event)
                if kind in CONTENT:
                    if attempt.first_token is None:
                        attempt.first_token = self._now()
                    for out in feed(event):
                        yield out
                    touch()
                    if ahead is not None:
                        ahead.drop()  # somebody answers, and has been heard
                        ahead = None
                elif type(event) is Finished:
                    fault = relay.objection(event)
                    if fault is None:
                        for out in feed(event):
                            yield out
                    self._books.finished(call, event, fault)
                    return fault
                else:
                    for out in feed(event):
                        yield out
            return _unfinished(attempt.delivered)
        except Exception as error:  # noqa: BLE001  # classified; a bug is raised again as it is
            if stop is not None and stop.asked:
                return None  # it was cut off, and `run` leaves
            return _classified(error, call, guard)
        finally:
            if heat is None and alone and not provider.interruptible:
                self._calm.took(call.route, perf_counter() - begun)
            if events is not None and (close := getattr(events, "close", None)) is not None:
                close()

    async def _acall(
        self,
        execution: Execution,
        call: Call,
        relay: Relay,
        ended: _Ended,
        ahead: Prefill | None,
        heat: AsyncHeat | None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """Make one attempt; yields what reaches the caller, leaves the error it ended with in `ended`."""
        provider, attempt = call.route.provider, call.attempt
        try:
            request, guard = await self._aopened(call) if heat is None else (call.request, heat.guard)
        except ProviderError as error:
            ended.error = error
            return
        feed, touch = relay.feed, guard.touch
        watch = Watchdog(guard)
        events: AsyncIterator[ChatEvent] | None = None
        try:
            events = provider.astream(request, guard) if heat is None else heat.events()
            if attempt.output_by is not None:
                events = adelivered(events, attempt.output_by)
            step = events.__anext__
            count = 0
            while True:
                if heat is None or not heat.said_all:
                    watch.arm()
                count += 1
                try:
                    if not count % _BREATH:
                        await asyncio.sleep(0)  # from a vendor that floods: limits and other tasks have their turn
                    event = await step()
                except StopAsyncIteration:
                    ended.error = _unfinished(attempt.delivered)
                    return
                except asyncio.CancelledError:
                    if not watch.bit():
                        raise
                    ended.error = _classified(_timed_out(guard), call, guard)
                    return
                finally:
                    watch.disarm()
                kind = type(event)
                if kind in CONTENT:
                    if attempt.first_token is None:
                        attempt.first_token = self._now()
                    for out in feed(event):
                        yield out
                    touch()
                    if ahead is not None:
                        ahead.drop()  # somebody answers, and has been heard
                        ahead = None
                elif type(event) is Finished:
                    ended.error = relay.objection(event)
                    if ended.error is None:
                        for out in feed(event):
                            yield out
                    self._books.finished(call, event, ended.error)
                    return
                else:
                    for out in feed(event):
                        yield out
        except Exception as error:  # noqa: BLE001  # classified; a bug is raised again as it is
            ended.error = _classified(error, call, guard)
        except BaseException as error:
            # Settle now: closing the connection below awaits, and a second cancel can skip what comes after an await.
            self._leave(execution, (call,), error)
            raise
        finally:
            watch.stop()
            if events is not None and (close := getattr(events, "aclose", None)) is not None:
                await close()


@dataclass(slots=True)
class _Ended:
    """How an async attempt ended: an async generator cannot return a value."""

    error: ProviderError | None = None


def _always() -> bool:
    return True


_Run = TypeVar("_Run", Heat, AsyncHeat)


def _settled(pending: list[Call], step: Settle) -> None:
    """It is not pending any longer."""
    for index, call in enumerate(pending):
        if call.admission is step.admission:
            del pending[index]
            return


def _of(call: Call, heats: Sequence[_Run]) -> _Run | None:
    """What runs this call already, if it is one that may be late."""
    return next((heat for heat in heats if heat.call.attempt is call.attempt), None)


async def _arung(bell: asyncio.Event, seconds: float) -> None:
    """Wait for the bell, so many seconds at most; the twin of `rung`."""
    timer = None if seconds == math.inf else asyncio.get_running_loop().call_later(max(0.0, seconds), bell.set)
    try:
        await bell.wait()
    finally:
        if timer is not None:
            timer.cancel()
    bell.clear()


def _decided(heats: Sequence[Heat] | Sequence[AsyncHeat]) -> Won | Lost | None:
    """Who of two has ended without content, or else who has brought some; the first before the second.

    A failure goes first, so that it counts as one though the other has content by now.
    """
    for heat in heats:
        if heat.over and not heat.has_content:
            error = heat.error
            if error is None:
                return Lost(heat.call, _unfinished(0))
            if not isinstance(error, Exception):
                raise error  # a call was cancelled from inside: that is the caller's affair, not the target's
            return Lost(heat.call, _classified(error, heat.call, heat.guard))
    for heat in heats:
        if heat.has_content:
            return Won(heat.call)
    for heat in heats:
        if heat.guard.expired:
            heat.drop()
            return Lost(heat.call, _classified(_timed_out(heat.guard), heat.call, heat.guard))
    return None


def _classified(error: Exception, call: Call, guard: Guard) -> ProviderError:
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
    if found.retry_after_s is None and (headers := getattr(found.response, "headers", None)) is not None:
        from shared_core.providers.waits import windows

        guard.heard(windows(headers))
    if found.kind is ErrorKind.TIMEOUT and guard.expired:
        if guard.which == "deadline":
            found.code = "deadline"  # ours, not the target's fault: its circuit does not count it
        elif guard.which != "idle" and call.first_s < _own_limit(call):
            found.code = "shortened"  # cut short for the sake of the targets behind it
    return found


def _own_limit(call: Call) -> float:
    return first_token_s(call.route) if call.request.streaming else call.route.timeouts.attempt


def _unfinished(delivered: int) -> ProviderError:
    where = "after it had begun" if delivered else "before any content"
    return ProviderError.of(ErrorKind.STREAM_CUT, f"the answer ended without its terminal event, {where}")


def _timed_out(guard: Guard) -> ProviderError:
    return ProviderError.of(ErrorKind.TIMEOUT, guard.ran_out())


def _too_late() -> ProviderError:
    """The time was over before the provider was there."""
    late = ProviderError.of(ErrorKind.TIMEOUT, "the deadline of the call ran out while the provider was being loaded")
    late.code = "deadline"  # its circuit does not count it
    late.asked = False
    return late
