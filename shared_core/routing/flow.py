"""The fallback algorithm, once: a generator that yields what to do next and is sent what came of it.

It never sleeps, awaits, locks, opens a socket or reads a clock that was not handed in. The router's two drivers (sync
and async) perform the steps:

    Admit   may this attempt start?         is sent an Admission or a Refusal
    Call    make the attempt                is sent None for a whole answer, the ProviderError it ended with, or Late
    Race    who of two brings content first is sent Won, or Lost when one of them failed before
    Resume  go on with a call that is late  is sent what a Call is
    Wait    so many seconds                 is sent None
    Settle  the attempt is over             is sent None

The generator returns None when the request was answered, or else the error to raise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared_core.chat.request import ChatRequest
from shared_core.errors import (
    AllTargetsFailed,
    DeadlineExceeded,
    Disposition,
    ErrorKind,
    FallbackError,
    InvalidOutput,
    ProviderError,
    StreamBroken,
    quieted,
)
from shared_core.resilience.admission import Admission, Outcome, Refusal
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.execution import Attempt, Execution
from shared_core.routing.hedge import Hedged, Hedger
from shared_core.routing.planner import Plan, Route
from shared_core.routing.policy import FlowPolicy, OnStreamBreak
from shared_core.routing.reask import reask
from shared_core.routing.relay import Relay
from shared_core.routing.seam import Mode, resume

__all__ = [
    "Admit",
    "Call",
    "FlowPolicy",
    "Late",
    "Lost",
    "OnStreamBreak",
    "Race",
    "Report",
    "Resume",
    "Settle",
    "Step",
    "Wait",
    "Won",
    "first_token_s",
    "flow",
]

# Steps and reports are made several times per request: named tuples cost a third of what frozen dataclasses do.


class Admit(NamedTuple):
    """May an attempt at `route` start that ends within `lease_s` seconds? `request` says what it would take."""

    route: Route
    lease_s: float
    request: ChatRequest
    wait_s: float = 0.0
    """For so long it may wait in the target's line."""


class Call(NamedTuple):
    """Make one attempt. `first_s` limits the first token (streamed) or the whole answer; `deadline` is absolute."""

    route: Route
    request: ChatRequest
    attempt: Attempt
    admission: Admission
    first_s: float
    idle_s: float
    connect_s: float
    deadline: float
    standby: Route | None = None
    """A target behind this one that is to read the prompt meanwhile."""
    late_s: float = math.inf
    """Report `Late`, and keep the call running, when it has brought no content after so many seconds."""


class Race(NamedTuple):
    """Make the attempt `second` while the late one, `first`, goes on, until either has brought content or ended."""

    first: Call
    second: Call


class Resume(NamedTuple):
    """Go on with a call that is running: to its end, as `Call` does."""

    call: Call


class Wait(NamedTuple):
    """Let `seconds` pass."""

    seconds: float
    route: Route


class Settle(NamedTuple):
    """The attempt under `admission` is over. If it is still running, it is to be cut off."""

    route: Route
    admission: Admission
    outcome: Outcome
    attempt: Attempt
    will_retry: bool


class Late(NamedTuple):
    """The call has brought no content yet, and goes on."""


class Won(NamedTuple):
    """This call of a race has brought content. Both go on."""

    call: Call


class Lost(NamedTuple):
    """This call of a race has ended without content. The other goes on."""

    call: Call
    error: ProviderError


Step = Admit | Call | Race | Resume | Wait | Settle
Report = Admission | Refusal | ProviderError | Late | Won | Lost | None


@dataclass(slots=True)
class _Turn:
    """A target's place in the queue of one request."""

    route: Route
    tries: int = 0
    not_before: float = 0.0
    queues: bool = False
    """It waits in the target's line, which knows better than `not_before` when its turn has come."""
    rejected: InvalidOutput | None = None
    """Its answer that did not pass: from now on it is asked with that and what is wrong with it."""
    reasks: int = 0
    paid: bool = False
    """Its next try has been taken from the retries that are left."""
    free: int = 0
    """Tries that count for nothing, because no byte of the request had left."""
    failed: bool = False
    """It has failed before. One that was not asked yet has not, nor one that lost a race."""


def flow(
    execution: Execution,
    plan: Plan,
    policy: FlowPolicy,
    relay: Relay,
    *,
    clock: Callable[[], float],
    chance: Callable[[], float],
) -> Generator[Step, Report, FallbackError | None]:
    """Ask the targets of `plan` until one has answered `execution.request` whole, or none is left.

    Args:
        execution: the journal; attempts and refusals are written to it here.
        plan: whom to ask, in order.
        policy: retries, and what to do when a committed stream breaks.
        relay: knows what has reached the caller.
        clock: monotonic seconds.
        chance: uniform numbers in [0, 1), for jitter.

    Returns:
        None when answered; otherwise the error for the caller.
    """
    request, deadline = execution.request, execution.deadline
    queue = deque(map(_Turn, plan.routes))
    parked: list[_Turn] = []  # tried or refused, and worth another try later
    retries_left = ((plan.terms.retry if plan.terms is not None else None) or policy.retry).total
    too_small = 0  # a context window of this many tokens has overflowed
    fatal: ProviderError | None = None
    hedger = policy.hedger
    if hedger is not None:
        hedger.request()

    while True:
        now = clock()
        if queue:
            turn = queue.popleft()
        elif (turn_or_none := _soonest(parked, deadline)) is not None:
            turn = turn_or_none
            parked.remove(turn)
            if turn.tries and not turn.paid:
                if retries_left <= 0:
                    continue
                retries_left -= 1
                turn.paid = True
            if turn.not_before > now and not turn.queues:
                execution.waited_s += turn.not_before - now
                yield Wait(turn.not_before - now, turn.route)
                now = clock()
        else:
            break
        if now >= deadline:
            execution.skip(turn.route.name, "no time left")
            break
        route = turn.route
        if too_small:
            window = route.capabilities.context_window
            if window is not None and window <= too_small:
                execution.skip(
                    route.name, f"its context window of {window} tokens is no larger than the one that overflowed"
                )
                continue

        left = deadline - now
        lease_s = left if request.streaming else min(left, route.timeouts.attempt)
        granted = yield Admit(route, lease_s, request, left if turn.queues else 0.0)
        if turn.queues:
            turn.queues = False
            execution.waited_s += (waited := clock() - now)
            now, left = now + waited, left - waited
        if isinstance(granted, Refusal):
            execution.skip(route.name, granted.reason, granted.retry_at)
            if granted.waits and (granted.line or granted.retry_at is not None):
                turn.not_before = now if granted.retry_at is None else granted.retry_at
                turn.queues = granted.line
                parked.append(turn)
            else:
                retries_left += turn.paid
            continue
        assert isinstance(granted, Admission)

        first_s, idle_s = _limits(route, request, left, queue)
        mode = _mode(route, relay, policy)
        sent = request
        if mode is not None:
            sent = resume(request, relay.delivered, mode, policy.continue_prompt)
            execution.seams.append(len(relay.delivered))
        elif relay.committed:
            execution.restarts += 1
        elif turn.rejected is not None:
            sent = reask(request, turn.rejected)
        attempt = execution.begin(
            route.name,
            route.provider.name,
            sent.model or route.provider.model,
            now,
            retry=turn.tries + turn.free > 0,
            seam=mode,
        )
        attempt.reask = turn.rejected is not None
        attempt.origin = route.provider.origin
        relay.begin(attempt, seam=mode, restart=relay.committed and mode is None)
        turn.tries += 1
        turn.paid = False
        standby = _standby(route, queue) if policy.prefill else None
        late_s = math.inf
        if hedger is not None and mode is None and queue:
            late_s = _late_s(turn, first_s, execution, relay, hedger)
        call = Call(route, sent, attempt, granted, first_s, idle_s, route.timeouts.connect, deadline, standby, late_s)
        error = yield call
        if hedger is not None:
            if type(error) is Late:
                heat = yield from _hedged(execution, relay, policy, hedger, turn, call, queue, parked, clock)
                turn, call, error = heat.turn, heat.call, heat.error
                route, granted, attempt = call.route, call.admission, call.attempt
                if heat.failed is not None:
                    loser, why = heat.failed
                    if why.kind is ErrorKind.CONTEXT_OVERFLOW:
                        too_small = max(too_small, loser.route.capabilities.context_window or 0)
                    again = why.disposition is Disposition.RETRY and loser.route.gate.allows_retry
                    if again and loser.tries <= loser.route.retry.same_target:
                        loser.not_before = clock() + loser.route.retry.wait_s(why, loser.tries - 1, chance())
                        loser.failed = True
                        parked.append(loser)
            if attempt.first_token_s is not None:
                hedger.began(route.name, route.gate, streaming=request.streaming, seconds=attempt.first_token_s)
        assert error is None or isinstance(error, ProviderError)
        now = clock()
        if error is None:
            attempt.outcome = "answered"
            yield Settle(route, granted, _outcome(attempt, None, now), attempt, False)
            return None

        attempt.outcome = "failed"
        attempt.error = error
        error.target = route.name
        error.after_output = attempt.delivered > 0
        verdict = _verdict(error, relay, policy)
        wait_s: float | None = None
        otherwise = True  # the target is well, and is asked once more in another way: no retry of a fault, and no wait
        if error.code == "prefill_rejected" and mode == "prefill":
            # It cannot continue an assistant's turn: ask it in words, at once and for ever.
            route.gate.prefill_rejected = True
            execution.seams.pop()
        elif isinstance(error, InvalidOutput) and _may_reask(error, turn):
            # The model is shown its mistake.
            turn.rejected = error
            turn.reasks += 1
        elif error.unsent and verdict is Disposition.RETRY and turn.free < route.retry.transparent:
            # It was not asked at all: once more, as if nothing had been.
            turn.free += 1
            if mode is not None:
                execution.seams.pop()
        else:
            otherwise = False
        if otherwise:
            turn.tries -= 1
            yield Settle(route, granted, _outcome(attempt, error, now), attempt, True)
            queue.appendleft(turn)
            continue
        again = verdict is Disposition.RETRY and not (error.unsent and turn.free)
        if again and turn.tries <= route.retry.same_target and retries_left > 0:
            wait_s = route.retry.wait_s(error, turn.tries - 1, chance())
        at_once = (
            wait_s is not None
            # Who breaks off in the middle of an answer comes before those that failed to begin one.
            and not any(
                other.not_before < now + wait_s and not (other.failed and attempt.delivered) for other in parked
            )
            and not _should_yield(error, relay, wait_s, now, deadline, queue, route.retry)
        )
        yield Settle(route, granted, _outcome(attempt, error, now), attempt, at_once)
        if mode is not None and attempt.delivered == 0:
            execution.seams.pop()  # the seam was never visible
        if error.kind is ErrorKind.CONTEXT_OVERFLOW:
            too_small = max(too_small, route.capabilities.context_window or 0)
        if verdict is Disposition.FAIL:
            fatal = error
            break
        if relay.committed and policy.on_stream_break == "raise":
            break
        if wait_s is None or not route.gate.allows_retry:
            continue
        turn.not_before = now + wait_s
        turn.failed = True
        if not at_once:
            parked.append(turn)
            continue
        retries_left -= 1
        turn.paid = True
        if wait_s > 0:
            execution.waited_s += wait_s
            yield Wait(wait_s, route)
        queue.appendleft(turn)

    return _failure(execution, relay, plan, parked, fatal, clock(), policy.on_stream_break)


class _Heat(NamedTuple):
    """What came of a call that was late: whose it is that counts, and how that ended."""

    turn: _Turn
    call: Call
    error: Report
    failed: tuple[_Turn, ProviderError] | None = None
    """The other one, where it failed."""


def _late_s(turn: _Turn, first_s: float, execution: Execution, relay: Relay, hedger: Hedger) -> float:
    """After how many seconds without content somebody is to be asked beside a call that has `first_s` for its first;
    infinite for nobody.

    At most one in a request, beside a first try, from the start: a continuation or a correction is never raced.
    """
    if execution.hedged is not None or turn.tries > 1 or turn.rejected is not None or relay.committed:
        return math.inf
    if not hedger.allows:
        return math.inf
    after = hedger.after_s(turn.route.name, turn.route.gate, streaming=execution.request.streaming)
    return after if after is not None and after < first_s else math.inf


def _hedged(
    execution: Execution,
    relay: Relay,
    policy: FlowPolicy,
    hedger: Hedger,
    turn: _Turn,
    call: Call,
    queue: deque[_Turn],
    parked: list[_Turn],
    clock: Callable[[], float],
) -> Generator[Step, Report, _Heat]:
    """`call` is late: ask somebody beside it, and go on with who brings content first. The other one is cut off.

    What comes of the second request cannot make the first one fail.
    """
    second_turn = yield from _rival(execution, hedger, call, queue, clock)
    if second_turn is None:
        return _Heat(turn, call, (yield Resume(call)))
    rival, second = second_turn
    hedged = execution.hedged = Hedged(call.route.name, second.route.name, clock() - call.attempt.started)
    report = yield Race(call, second)
    assert isinstance(report, Won | Lost)
    now = clock()
    first_has_it = (report.call is call) is isinstance(report, Won)  # it won, or the second one lost
    going, other, goes, waits = (call, second, turn, rival) if first_has_it else (second, call, rival, turn)
    left = other.attempt
    if isinstance(report, Won):
        if other is call:
            # It would have taken at least as long: without this its percentile would sink with every race that it lost.
            hedger.began(call.route.name, call.route.gate, streaming=call.request.streaming, seconds=now - left.started)
        yield _cut_off(other, now)
        waits.not_before = now
        parked.append(waits)  # nothing is wrong with it: if the winner breaks it may go on, and that is a retry
        failed = None
    else:
        error = report.error
        left.outcome, left.error, error.target = "failed", error, other.route.name
        if other is call and _verdict(error, relay, policy) is Disposition.FAIL:
            yield _cut_off(second, now)  # the request itself is at fault
            return _Heat(turn, call, error)
        yield Settle(other.route, other.admission, _outcome(left, error, now), left, False)
        failed = (waits, error)
    if going is second:
        relay.begin(second.attempt)
    ended = yield Resume(going)
    if going.attempt.first_token is not None:
        hedged.winner = going.route.name
    return _Heat(goes, going, ended, failed)


def _rival(
    execution: Execution, hedger: Hedger, call: Call, queue: deque[_Turn], clock: Callable[[], float]
) -> Generator[Step, Report, tuple[_Turn, Call] | None]:
    """The first target behind that may be asked now, and the call of it; None when there is none."""
    request, deadline = execution.request, execution.deadline
    if not call.route.gate.allows_retry:
        return None  # it is in trouble: then requests fall over, and nobody doubles them
    for turn in tuple(queue):
        route = turn.route
        left = deadline - clock()
        usual = hedger.usual_s(route.name, route.gate, 50, streaming=request.streaming)
        if route.gate is call.route.gate or not route.gate.allows_retry or (usual is not None and usual >= left):
            continue
        if not hedger.spend():
            return None
        granted = yield Admit(route, left if request.streaming else min(left, route.timeouts.attempt), request)
        if not isinstance(granted, Admission):
            hedger.refund()
            continue
        queue.remove(turn)
        now = clock()
        first_s, idle_s = _limits(route, request, deadline - now, queue)
        attempt = execution.begin(
            route.name, route.provider.name, request.model or route.provider.model, now, retry=False, seam=None
        )
        attempt.hedge = True
        attempt.origin = route.provider.origin
        turn.tries += 1
        return turn, Call(route, request, attempt, granted, first_s, idle_s, route.timeouts.connect, deadline)
    return None


def _cut_off(call: Call, now: float) -> Settle:
    """The end of a call that lost a race: it says nothing about its target."""
    attempt = call.attempt
    attempt.outcome, attempt.ended = "cancelled", now
    outcome = Outcome(None, cancelled=True, latency_s=now - attempt.started)
    return Settle(call.route, call.admission, outcome, attempt, False)


def _standby(route: Route, behind: Iterable[_Turn]) -> Route | None:
    """The first target behind that reads ahead. While a local one answers, this machine has enough to do."""
    if route.local:
        return None
    return next((turn.route for turn in behind if turn.route.standby == "prefill"), None)


def _soonest(parked: Sequence[_Turn], deadline: float) -> _Turn | None:
    """The parked target that may be tried first, if that is before the deadline."""
    ready = [turn for turn in parked if turn.not_before < deadline]
    return min(ready, key=lambda turn: turn.not_before) if ready else None


def _limits(route: Route, request: ChatRequest, left: float, behind: Sequence[_Turn]) -> tuple[float, float]:
    """First limit and idle limit of an attempt, in seconds, with `left` seconds to the deadline.

    An attempt never takes the time that the targets behind it need for a first token: each of them keeps its own
    first-token limit, or an equal share of what is left if that is less.
    """
    mine = _mine(left, behind)
    if request.streaming:
        return min(first_token_s(route), mine), route.timeouts.idle
    return min(route.timeouts.attempt, mine), math.inf


def _mine(left: float, behind: Sequence[_Turn]) -> float:
    """What an attempt may take of `left` seconds: all but what the targets behind it keep."""
    if not behind:
        return left
    share = left / (1 + len(behind))
    return left - sum([min(first_token_s(turn.route), share) for turn in behind])


def first_token_s(route: Route) -> float:
    """The target's own limit for a first token, in seconds: longer for models that think before they speak."""
    return route.timeouts.reasoning_first_token if route.capabilities.reasoning else route.timeouts.first_token


def _mode(route: Route, relay: Relay, policy: FlowPolicy) -> Mode | None:
    """How the target is to go on with what was delivered; None when it answers from the start."""
    if not relay.committed or policy.on_stream_break != "continue" or not relay.delivered:
        return None
    mode = route.capabilities.continuation
    return "instructed" if mode == "prefill" and route.gate.prefill_rejected else mode


def _may_reask(error: InvalidOutput, turn: _Turn) -> bool:
    """Whether to show the model its mistake. One that ran into its own limit would run into it again."""
    answer = error.answer
    if answer is None or answer.finish_reason == "length":
        return False
    return turn.reasks < turn.route.retry.reasks


def _verdict(error: ProviderError, relay: Relay, policy: FlowPolicy) -> Disposition:
    """What follows, in this request's situation."""
    if error.kind is ErrorKind.POLICY and policy.route_around_policy:
        return Disposition.FALL_OVER
    if relay.committed and error.disposition is Disposition.FAIL and not error.after_output:
        return Disposition.INCAPABLE  # it objected to the way it was asked to continue, not to the request
    return error.disposition


def _should_yield(
    error: ProviderError,
    relay: Relay,
    wait_s: float,
    now: float,
    deadline: float,
    behind: Sequence[_Turn],
    retry: RetryPolicy,
) -> bool:
    """Whether the targets behind go first, rather than a retry of this one after `wait_s`."""
    if now + wait_s >= deadline:
        return True
    if not behind:
        return False
    if relay.committed or error.rule.prefers_fall_over:
        return True
    if (error.retry_after_s or 0.0) > retry.max_wait_s:
        return True
    return wait_s > _mine(deadline - now, behind)


def _outcome(attempt: Attempt, error: ProviderError | None, now: float) -> Outcome:
    attempt.ended = now
    first_token_s = attempt.first_token_s if attempt.streamed else None  # a whole answer's first token is its last
    return Outcome(error, latency_s=now - attempt.started, first_token_s=first_token_s)


_USEFUL = (
    # Which error explains a failure best, most useful first: what the caller can change, then what time will.
    ErrorKind.BAD_REQUEST,
    ErrorKind.POLICY,
    ErrorKind.INVALID_OUTPUT,
    ErrorKind.CONTEXT_OVERFLOW,
    ErrorKind.AUTH,
    ErrorKind.BILLING,
    ErrorKind.NO_ENTITLEMENT,
    ErrorKind.FORBIDDEN,
    ErrorKind.NOT_FOUND,
    ErrorKind.TOO_LARGE,
    ErrorKind.INCAPABLE,
    ErrorKind.CONFIG,
    ErrorKind.QUOTA_DAY,
    ErrorKind.THROTTLED,
)


def _failure(
    execution: Execution,
    relay: Relay,
    plan: Plan,
    parked: Sequence[_Turn],
    fatal: ProviderError | None,
    now: float,
    on_stream_break: OnStreamBreak,
) -> FallbackError:
    """The error for a request nobody answered: all attempts, the most useful as its cause, and what to do."""
    execution.outcome = "failed"
    execution.ended = now
    errors = execution.errors
    metadata = execution.metadata()
    late = fatal is None and (now >= execution.deadline or any(_out_of_time(e) for e in errors[-1:]))
    waits = [s.retry_at - now for s in execution.skips if s.retry_at is not None]
    waits += [turn.not_before - now for turn in parked]
    retry_after_s = max(0.0, min(waits)) if waits and fatal is None else None
    message = _message(execution, plan, fatal, late, retry_after_s, now)
    for error in errors:
        quieted(error)
    causes: list[Exception] = list(errors)
    if not causes:
        why = "; ".join([f"{s.target}: {s.reason}" for s in execution.skips] + [f"{t}: {r}" for t, r in plan.excluded])
        causes = [
            ProviderError.of(ErrorKind.CONTEXT_OVERFLOW, reason, target=name)
            for name, reason in plan.excluded
            if name in plan.too_small
        ] or [FallbackError(why or "there is no target to ask")]
    cls = DeadlineExceeded if late else AllTargetsFailed
    failed = cls(message, causes, fallback=metadata, retry_after_s=retry_after_s)
    ranked = sorted(
        (e for e in causes if isinstance(e, ProviderError)),
        key=lambda e: _USEFUL.index(e.kind) if e.kind in _USEFUL else len(_USEFUL),
    )
    failed.__cause__ = fatal or (ranked[0] if ranked else causes[-1])
    if not relay.committed:
        return failed
    usage = next((a.usage for a in execution.attempts if a.delivered and a.usage is not None), None)
    left = on_stream_break == "raise"
    why = "nobody was asked to continue it (on_stream_break='raise')" if left else "nobody could continue it"
    broken = StreamBroken(
        f"the answer broke off after {len(relay.delivered)} characters and {why}\n{message}",
        partial=relay.delivered,
        usage=usage,
        fallback=metadata,
    )
    broken.__cause__ = failed
    return broken


def _out_of_time(error: BaseException) -> bool:
    return isinstance(error, ProviderError) and error.code == "deadline"


def _message(
    execution: Execution, plan: Plan, fatal: ProviderError | None, late: bool, retry_after_s: float | None, now: float
) -> str:
    if fatal is not None:
        head = f"{fatal.target} rejected the request itself; nobody else was asked"
    elif late:
        head = f"no answer within {execution.deadline - execution.started:g} s"
    elif not plan.routes:
        head = "no target can serve this request"
    else:
        head = f"all {len(plan.routes)} target(s) failed"
    lines = [f"{head} ({len(execution.attempts)} attempt(s) in {now - execution.started:.2f} s)"]
    for a in execution.attempts:
        why = str(a.error or a.outcome).removeprefix(f"{a.target}: ")
        lines.append(f"  {a.number}. {a.target}, {a.duration_s or 0.0:.2f} s: {why}")
    lines += [f"  -  {s.target}: {s.reason}" for s in execution.skips]
    lines += [f"  -  {name}: {reason}" for name, reason in plan.excluded]
    if retry_after_s is not None:
        lines.append(f"hint: the soonest target may be tried again in {retry_after_s:.1f} s")
    return "\n".join(lines)
