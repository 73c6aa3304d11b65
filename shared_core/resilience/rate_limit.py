"""How much may be asked of a target: `Limits` (settings) and `Limiter`, which decides for all targets that share them.

Rates are GCRA: one time per limit, "spoken for until", and no counters to reset. Slots are leases. Whoever may not
start yet can wait in one bounded line, first come, first served, whether it waits in a thread or in a task: the limiter
only calls the waiter's `wake`. It has no clock and no chance of its own, and calls nobody while it holds its lock.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

from shared_core.chat.request import CHARS_PER_TOKEN, ChatRequest
from shared_core.errors import ConfigurationError, is_number

__all__ = ["NO_LIMITS", "Lease", "Limiter", "Limits", "Ticket", "Verdict", "Want", "Window", "gcra"]

_FIRST_GUESS = 1_000.0
"""Output tokens expected of an answer without a limit of its own, until answers have been seen."""
_LEARNING = 0.2
"""Share of the newest answer in the running means of output tokens and service time."""
_CUT, _RAMP_CUT, _FLOOR = 0.7, 0.5, 0.1
_MEMORY_S = 600.0
"""A throttle longer ago than this is forgotten."""
_LONG_WINDOW_S = 3600.0
"""A window that takes longer to fill is taken to fill evenly: a day's quota has room for one long before it is full."""
_AMPLE = 0.5
"""With this share of a window left there is nothing to keep in mind."""
_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be asked of a target, or of all that share them. None is no limit of ours.

    Attributes:
        requests_per_minute: requests, more than 0.
        input_tokens_per_minute: tokens of prompts: estimated before a call, corrected after it.
        output_tokens_per_minute: tokens of answers: `max_tokens` or what the target has lately put out, then corrected.
        tokens_per_minute: both together.
        concurrency: calls in flight at once, 1 or more.
        burst_s: how much of a minute's figures may be used at once, in seconds' worth: 60 is all, 1 keeps an even pace.
        queue: callers that may wait at once, 0 or more. Whoever finds the line full falls over at once, or fails.
        adaptive: whether a throttle or an overload lowers rates and slots, and successes raise them again.
        learn: whether the vendor's own figures are heeded (rate-limit headers of successes and failures).
        pool: targets that name the same pool share these limits. Without, those of one account and model do.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    requests_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None
    burst_s: float = 60.0
    queue: int = 1000
    adaptive: bool = True
    learn: bool = True
    pool: str | None = None

    def __post_init__(self) -> None:
        for name in (*_RATES, "concurrency", "burst_s"):
            value = getattr(self, name)
            if value is not None and not is_number(value, above=0):
                raise ConfigurationError(f"Limits.{name} must be a number > 0, not {value!r}")
        for name, least in (("concurrency", 1), ("queue", 0)):
            value = getattr(self, name)
            if value is not None and not is_number(value, least=least, whole=True):
                raise ConfigurationError(f"Limits.{name} must be a whole number >= {least}, not {value!r}")
        for name in ("adaptive", "learn"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"Limits.{name} must be True or False, not {getattr(self, name)!r}")
        pool: object = self.pool
        if pool is not None and (not isinstance(pool, str) or not pool):
            raise ConfigurationError(f"Limits.pool must be a name, not {pool!r}")

    @property
    def any(self) -> bool:
        """Whether there is a figure to keep to."""
        return self.concurrency is not None or any(getattr(self, name) is not None for name in _RATES)

    def __repr__(self) -> str:
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}
        return f"Limits({', '.join(f'{name}={value!r}' for name, value in given.items())})"


_RATES = {
    "requests_per_minute": "requests",
    "input_tokens_per_minute": "input-tokens",
    "output_tokens_per_minute": "output-tokens",
    "tokens_per_minute": "tokens",
}
"""The attributes of `Limits` that are rates, and the dimension each limits: the vendors' own names."""

NO_LIMITS = Limits()


class Want(NamedTuple):
    """What a call will take, as far as one can tell beforehand. One request, and so many tokens."""

    input: int = 0
    output: int = 0

    def of(self, dimension: str) -> float:
        """Its part of one dimension."""
        if dimension == "requests":
            return 1.0
        if dimension == "input-tokens":
            return self.input
        if dimension == "output-tokens":
            return self.output
        return self.input + self.output if dimension == "tokens" else 0.0


class Window(NamedTuple):
    """What a vendor's headers say of one dimension: 'requests', 'tokens', 'input-tokens', 'output-tokens', or another.

    `limit` and `remaining` in its own unit; `reset_s` seconds until it is full again. None where it is not said.
    """

    dimension: str
    remaining: float
    limit: float | None = None
    reset_s: float | None = None


class Verdict(NamedTuple):
    """When a call may start, and why not sooner."""

    at: float
    """Monotonic seconds: now, later, or inf: when a slot comes free, or those in line have gone."""
    reason: str = ""
    guess: float | None = None
    """Where `at` is inf, when that will probably be; None when nobody can tell."""


class Lease(NamedTuple):
    """A slot and a share of the rates, for one call. Given back once, with `Limiter.release`."""

    want: Want
    started: float


def gcra(now: float, spoken_for: float, cost_s: float, burst_s: float) -> float:
    """When a call may start: at once if `now`, never sooner.

    Args:
        now: monotonic seconds.
        spoken_for: until when the rate is used up by calls before.
        cost_s: what this call takes, in seconds of the rate.
        burst_s: how far ahead of the rate calls may get. A call that takes more starts when all of it is free.
    """
    return max(now, max(spoken_for, now) + min(cost_s, burst_s) - burst_s)


class _Rate:
    """One dimension at one rate: ours, or one the vendor told."""

    __slots__ = ("burst_s", "closed_until", "dimension", "interval", "per_minute", "spoken_for")

    def __init__(self, dimension: str, interval: float, burst_s: float) -> None:
        self.dimension = dimension
        self.interval = interval
        """Seconds for one request or token."""
        self.burst_s = burst_s
        self.spoken_for = -math.inf
        self.closed_until = -math.inf
        """The vendor said that nothing is left until then."""

    def at(self, now: float, want: Want, pace: float) -> float:
        """When `want` may start at `pace`, a share of the full rate."""
        open_at = gcra(now, self.spoken_for, want.of(self.dimension) * self.interval / pace, self.burst_s)
        return max(open_at, self.closed_until)

    def take(self, now: float, want: Want, pace: float) -> None:
        cost_s = want.of(self.dimension) * self.interval / pace
        self.spoken_for = max(self.spoken_for, now) + cost_s

    def correct(self, want: Want, used: Want) -> None:
        """It took `used`, not `want`."""
        self.spoken_for += (used.of(self.dimension) - want.of(self.dimension)) * self.interval


class Ticket:
    """A place in the line. Read by its waiter, who holds no lock: `lease` appears, or `away`, then `wake` is called."""

    __slots__ = ("away", "holder", "lease", "wake", "wake_at", "want")

    def __init__(self, want: Want, wake: Callable[[], None], holder: object) -> None:
        self.want = want
        self.wake = wake
        self.holder = holder
        self.lease: Lease | None = None
        self.away = False
        """Sent away without a lease: the target became unavailable for another reason."""
        self.wake_at = math.inf
        """When its waiter is to call `Limiter.due`, monotonic seconds; inf: it will be woken."""

    @property
    def waiting(self) -> bool:
        """Still in line."""
        return self.lease is None and not self.away


_Wakes = list[Callable[[], None]]


class Limiter:
    """Keeps to the limits of one target, or of several that share them. Thread-safe.

    `active` says whether there is anything to keep to just now; while it is False nobody need ask, and a call costs
    nothing.
    """

    __slots__ = (
        "_chance",
        "_cut_at",
        "_gap_s",
        "_held_until",
        "_learned",
        "_line",
        "_lock",
        "_mean_output",
        "_mean_s",
        "_next_at",
        "_pace",
        "_rates",
        "_slots",
        "_spread_s",
        "active",
        "in_flight",
        "limits",
        "name",
    )

    def __init__(self, name: str, limits: Limits = NO_LIMITS) -> None:
        self.name = name
        self.limits = limits
        self._lock = threading.Lock()
        self._rates = [
            _Rate(dimension, 60.0 / per_minute, limits.burst_s)
            for field_, dimension in _RATES.items()
            if (per_minute := getattr(limits, field_)) is not None
        ]
        self._slots: float = math.inf if limits.concurrency is None else float(limits.concurrency)
        self._pace = 1.0
        self._cut_at = -math.inf
        self._learned: dict[str, _Rate] = {}
        self._held_until = -math.inf
        self._spread_s: float  # set with the wait that it belongs to
        self._chance = 0.0
        self._gap_s: float | None = None
        self._next_at: float  # set with the gap
        self._line: OrderedDict[Ticket, None] = OrderedDict()
        self._mean_output = _FIRST_GUESS
        self._mean_s: float | None = None
        self.in_flight = 0
        """Leases that are out."""
        self.active = limits.any

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def want(self, request: ChatRequest | None) -> Want:
        """What a request will take: four characters a token, and the output it allows or that is usual here."""
        if request is None:
            return Want()
        most = request.max_tokens
        return Want(-(-request.characters // CHARS_PER_TOKEN), int(self._mean_output) if most is None else most)

    def peek(self, now: float, want: Want | None = None) -> Verdict | None:
        """Why a newcomer may not start now; None when it may. Changes nothing."""
        if not self.active:
            return None
        with self._lock:
            verdict = self._newcomer(now, want or Want())
            return None if verdict.at <= now else verdict

    def take(self, now: float, want: Want) -> Lease | Verdict:
        """A lease for a newcomer, or the reason why it may not start now. Nobody overtakes the line."""
        with self._lock:
            verdict = self._newcomer(now, want)
            return self._grant(now, want) if verdict.at <= now else verdict

    def queue(self, now: float, want: Want, wake: Callable[[], None], holder: object = None) -> Ticket | Verdict:
        """A place in the line, perhaps with the lease at once; or a verdict when the line is full.

        `wake` is called from any thread, without a lock held, when something about the ticket has changed.
        """
        ticket = Ticket(want, wake, holder)
        with self._lock:
            if len(self._line) >= self.limits.queue:
                return Verdict(math.inf, f"{len(self._line)} callers wait for a turn already")
            self._line[ticket] = None
            self.active = True
            wakes = self._pump(now)
        _call(wakes)
        return ticket

    def due(self, now: float) -> None:
        """Time has passed as far as a ticket's `wake_at`: see who may go."""
        with self._lock:
            wakes = self._pump(now)
        _call(wakes)

    def leave(self, ticket: Ticket, now: float) -> None:
        """Its waiter gives up. It leaves no trace: a lease that it was just given goes to the next one."""
        with self._lock:
            if ticket.lease is not None:
                self._give_back(ticket.lease)
                ticket.lease = None
            else:
                self._line.pop(ticket, None)
            wakes = self._pump(now)
            self._rest(now)
        _call(wakes)

    def send_away(self, holder: object) -> None:
        """Those who wait on behalf of `holder` need not wait any longer: it will not take them."""
        with self._lock:
            gone = [ticket for ticket in self._line if ticket.holder is holder]
            for ticket in gone:
                del self._line[ticket]
                ticket.away = True
        _call([ticket.wake for ticket in gone])

    def return_unused(self, lease: Lease, now: float) -> None:
        """Nothing was sent under this lease after all."""
        with self._lock:
            self._give_back(lease)
            wakes = self._pump(now)
            self._rest(now)
        _call(wakes)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def release(self, lease: Lease, now: float, used: Want | None = None, *, answered: bool = False) -> None:
        """The call is over: its slot is free, and what it was thought to take becomes what it took.

        Args:
            lease: what it ran under.
            now: monotonic seconds.
            used: tokens as reported; None where nobody knows, which keeps the estimate.
            answered: it succeeded, so lowered rates and slots recover.
        """
        with self._lock:
            self._free()
            if used is not None:
                for rate in self._rates:  # the vendor's own figures it will tell again itself
                    rate.correct(lease.want, used)
                if answered:
                    self._mean_output += _LEARNING * (used.output - self._mean_output)
            if answered:
                took = now - lease.started
                self._mean_s = took if self._mean_s is None else self._mean_s + _LEARNING * (took - self._mean_s)
                self._recover(now)
            wakes = self._pump(now)
            self._rest(now)
        _call(wakes)

    def throttled(self, now: float, started: float, *, ramp: bool = False) -> bool:
        """A call that started then was throttled, or found the target overloaded. Returns whether limits were lowered.

        All calls that were in flight together tell of one event: only the first of them lowers anything.
        """
        limits = self.limits
        if not limits.adaptive or not limits.any:
            return False
        with self._lock:
            if started < self._cut_at:
                return False
            self._cut_at = now
            factor = _RAMP_CUT if ramp else _CUT
            self._pace = max(_FLOOR, self._pace * factor)
            if self._slots < math.inf:
                self._slots = max(1.0, math.floor(self._slots * factor))
            return True

    def hold(self, now: float, until: float, chance: float | None) -> None:
        """The server asked to wait until then. Those in line go one by one afterwards, not as one herd.

        `chance`, uniform in [0, 1), keeps the lines of several processes apart; None keeps the last one.
        """
        with self._lock:
            if until > self._held_until:
                self._held_until = until
                self._spread_s = max(0.05, 0.1 * (until - now))
                self._chance = self._chance if chance is None else chance
                self._gap_s = None  # known when the line is: at the first turn after the wait
                self.active = True
            wakes = self._pump(now)
        _call(wakes)

    def learn(self, windows: Iterable[Window], now: float) -> None:
        """Heed what the vendor says of its own windows."""
        if not self.limits.learn:
            return
        with self._lock:
            for window in windows:
                self._learn(window, now)
            wakes = self._pump(now)
            self._rest(now)
        _call(wakes)

    def reset(self) -> None:
        """Forget what was learned, lowered and held; those in line go as far as the settings allow."""
        with self._lock:
            self._learned.clear()
            self._pace, self._cut_at = 1.0, -math.inf
            self._slots = math.inf if self.limits.concurrency is None else float(self.limits.concurrency)
            self._held_until = -math.inf
            wakes: _Wakes = []
            for ticket in self._line:
                ticket.wake_at = -math.inf  # its waiter, who knows the time, is to look again
                wakes.append(ticket.wake)
                break
        _call(wakes)

    def orphan(self) -> None:
        """In a forked child: leases that are out, and those in line, are the parent's. What was learned stays."""
        self.in_flight = 0
        self._line.clear()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def mutex(self) -> threading.Lock:
        """What guards it, for whoever sees to a forked child."""
        return self._lock

    @property
    def waiting(self) -> int:
        """Callers in line."""
        return len(self._line)

    @property
    def slots(self) -> int | None:
        """Calls that may be in flight at once just now; None for any number."""
        return None if self._slots == math.inf else int(self._slots)

    @property
    def pace(self) -> float:
        """The share of the configured rates that is used just now: 1 unless a throttle has lowered it."""
        return self._pace

    def facts(self, now: float) -> dict[str, object]:
        """Its state as plain data, empty when there is nothing to tell."""
        if not self.active:
            return {}
        with self._lock:
            told: dict[str, object] = {}
            if self._slots < math.inf:
                told["in_flight"] = self.in_flight
                told["slots"] = int(self._slots)
            if self._line:
                told["waiting"] = len(self._line)
            if self._pace < 1:
                told["pace"] = round(self._pace, 3)
            for rate in (*self._rates, *self._learned.values()):
                left = max(0.0, (rate.burst_s - max(0.0, rate.spoken_for - now)) / rate.interval)
                if rate.closed_until > now:
                    left = 0.0
                told[f"{rate.dimension}_left"] = math.floor(left + 1e-6)
            return told

    def __repr__(self) -> str:
        return f"Limiter({self.name}: {self.in_flight} in flight, {len(self._line)} waiting, {self.limits!r})"

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, now: float, want: Want) -> Verdict:
        """When a call may start, as if nobody were waiting. The one place where rates, slots and waits meet."""
        if self.in_flight + 1 > self._slots:
            return Verdict(math.inf, _taken(int(self._slots)))
        at, reason = now + _TOLERANCE_S, ""
        if self._held_until > at:
            at, reason = self._held_until, "the server asked to wait"
        for rate in self._rates:
            if (open_at := rate.at(now, want, self._pace)) > at:
                at, reason = open_at, f"rate limit: {60 / rate.interval * self._pace:g} {rate.dimension} a minute"
        for rate in self._learned.values():
            if (open_at := rate.at(now, want, 1.0)) > at:
                at, reason = open_at, f"rate limit: the vendor has no {rate.dimension} left"
        return Verdict(at if reason else now, reason)

    def _newcomer(self, now: float, want: Want) -> Verdict:
        """When a call that has just come may start. Nobody overtakes the line."""
        ahead = len(self._line)
        verdict = self._decide(now, next(iter(self._line)).want if ahead else want)
        if not ahead and verdict.at < math.inf:
            return verdict
        reason = verdict.reason or "others go first"
        if ahead:
            reason += f", {ahead} waiting"
        guess = verdict.at if now < verdict.at < math.inf else None
        if self._mean_s is not None and self._slots < math.inf:
            guess = max(guess or now, now + self._mean_s * (ahead + 1) / self._slots)
            reason += f": about {guess - now:.1f} s"
        return Verdict(math.inf, reason, guess)

    def _grant(self, now: float, want: Want) -> Lease:
        self.in_flight += 1
        for rate in self._rates:
            rate.take(now, want, self._pace)
        for rate in self._learned.values():
            rate.take(now, want, 1.0)
        return Lease(want, now)

    def _free(self) -> None:
        self.in_flight = max(0, self.in_flight - 1)  # none are left of before a fork

    def _give_back(self, lease: Lease) -> None:
        self._free()
        for rate in self._rates:
            rate.spoken_for -= lease.want.of(rate.dimension) * rate.interval

    def _pump(self, now: float) -> _Wakes:
        """Let those at the head of the line go who may. Returns whom to wake, once the lock is released."""
        wakes: _Wakes = []
        while self._line:
            ticket = next(iter(self._line))
            verdict = self._decide(now, ticket.want)
            if verdict.at <= now and self._held_until > -math.inf:
                verdict = Verdict(self._turn_after_hold(now))
            if verdict.at > now:
                if verdict.at != ticket.wake_at:
                    ticket.wake_at = verdict.at
                    wakes.append(ticket.wake)
                break
            del self._line[ticket]
            ticket.lease = self._grant(now, ticket.want)
            if self._gap_s is not None:
                self._next_at = now + self._gap_s
            wakes.append(ticket.wake)
        return wakes

    def _turn_after_hold(self, now: float) -> float:
        """When the head of the line may go after a wait that all of it sat out: each at a time of its own."""
        if now >= self._held_until + self._spread_s:
            self._held_until, self._gap_s = -math.inf, None
            return now
        if self._gap_s is None:
            self._gap_s = self._spread_s / len(self._line)
            self._next_at = self._held_until + self._chance * self._gap_s
        return self._next_at

    def _recover(self, now: float) -> None:
        if now - self._cut_at > _MEMORY_S:
            self._pace = 1.0
            if self.limits.concurrency is not None:
                self._slots = float(self.limits.concurrency)
            return
        if self._pace < 1:
            busiest = max((60 / rate.interval for rate in self._rates if rate.dimension == "requests"), default=10.0)
            self._pace = min(1.0, self._pace + (1 - _CUT) / max(1.0, busiest * self._pace))
        most = self.limits.concurrency
        if most is not None and self._slots < most and self.in_flight + 1 >= int(self._slots) / 2:
            self._slots = min(float(most), self._slots + 1 / self._slots)

    def _learn(self, window: Window, now: float) -> None:
        dimension, remaining, limit, reset_s = window
        known = self._learned.get(dimension)
        closed = known is not None and known.closed_until > now
        if limit and remaining >= _AMPLE * limit and (remaining >= 10 or remaining >= limit):
            if not closed:
                self._learned.pop(dimension, None)
            return
        if remaining <= 0 and reset_s is not None and (not limit or reset_s <= _LONG_WINDOW_S):
            if known is None:
                known = self._learned[dimension] = _Rate(dimension, reset_s / (limit or 1.0), reset_s)
            known.closed_until = max(known.closed_until, now + reset_s)
            self.active = True
            return
        if not limit or dimension not in _RATES.values():
            return  # something is left, and nobody knows how fast it comes back
        used = limit - remaining
        interval = reset_s / used if reset_s else 60.0 / limit
        if known is None:
            known = self._learned[dimension] = _Rate(dimension, interval, interval * limit)
        else:
            known.interval, known.burst_s = interval, interval * limit
        known.spoken_for = max(known.spoken_for, now + used * interval)  # readings may overtake one another
        self.active = True

    def _rest(self, now: float) -> None:
        """Nothing to keep to any more: nobody need ask."""
        for rate in [r for r in self._learned.values() if max(r.closed_until, r.spoken_for) <= now]:
            del self._learned[rate.dimension]
        if self.limits.any or self._learned or self.in_flight:
            return  # else nobody is in line, but for a wait that is not over
        if self._held_until > -math.inf:
            if now < self._held_until + self._spread_s:
                return
            self._held_until, self._gap_s = -math.inf, None
        self.active = False


def _taken(slots: int) -> str:
    return "its one slot is taken" if slots == 1 else f"all {slots} slots are taken"


def _call(wakes: _Wakes) -> None:
    for wake in wakes:
        wake()
