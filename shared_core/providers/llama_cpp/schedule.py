"""Who is served next, how long that will take, and who is turned away: decisions only, no I/O, no clock, no lock.

    submit ──> waiting ──next──> running ──> ended
       │          ├─ displaced by a higher priority, or expired: no turn in time
       │          └─ cancelled
       └─ turned away: the line is full, or the time left is too short

One request runs, `bound` more may wait. Prompts to be read ahead (`ahead`) are no requests: one of them runs only while
nobody waits, and makes way as soon as somebody does. What was read until then is kept by the model.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

__all__ = ["AHEAD_AFTER_S", "Admitted", "Crashes", "Rates", "Schedule", "TurnedAway", "Work"]

CRASH_WINDOW_S = 60.0
_KEEP = 0.8
"""What an older measurement weighs beside the next one: the last five or so count."""
AHEAD_AFTER_S = 0.05
"""Seconds after which a prompt is begun to be read ahead."""
_AHEAD_BOUND = 8
"""Prompts that may wait to be read ahead; more are not read."""


class Work(NamedTuple):
    """What a request will take, as far as it can be told before its tokens are counted."""

    characters: int = 0
    max_tokens: int = 0


class Rates:
    """How fast the model reads and writes, and how much it usually says: moving averages over the last answers."""

    __slots__ = ("_answers", "_characters", "_evaluated", "_read_s", "_write_s", "_written")

    def __init__(self) -> None:
        self._characters = self._evaluated = self._read_s = 0.0
        self._answers = self._written = self._write_s = 0.0

    def read(self, characters: int, evaluated: int, seconds: float) -> None:
        """A prompt was read; `evaluated` are its tokens that were not cached."""
        self._characters = self._characters * _KEEP + characters
        self._evaluated = self._evaluated * _KEEP + evaluated
        self._read_s = self._read_s * _KEEP + seconds

    def wrote(self, tokens: int, seconds: float) -> None:
        """An answer was written whole."""
        self._answers = self._answers * _KEEP + 1.0
        self._written = self._written * _KEEP + tokens
        self._write_s = self._write_s * _KEEP + seconds

    @property
    def prompt_rate(self) -> float | None:
        """Prompt tokens evaluated per second; None unmeasured."""
        return self._evaluated / self._read_s if self._read_s > 0 and self._evaluated > 0 else None

    @property
    def output_rate(self) -> float | None:
        """Tokens written per second; None unmeasured."""
        return self._written / self._write_s if self._write_s > 0 and self._written > 0 else None

    def reading_s(self, work: Work) -> float | None:
        """Seconds until the first token, once it is served; None unmeasured. What is usually cached is not counted."""
        return work.characters * self._read_s / self._characters if self._characters > 0 else None

    def writing_s(self, work: Work) -> float | None:
        """Seconds for an answer of the usual length, at most `max_tokens`; None unmeasured."""
        rate = self.output_rate
        return min(work.max_tokens, self._written / self._answers) / rate if rate is not None else None

    def serving_s(self, work: Work) -> float | None:
        """Seconds for the whole of it; None unmeasured."""
        reading, writing = self.reading_s(work), self.writing_s(work)
        return None if reading is None or writing is None else reading + writing


class Asking(Protocol):
    """What is known of a call in the line."""

    op: str
    priority: int
    work: Work
    within_s: float
    """Seconds it may wait for its turn."""
    cancelled: bool
    """Its caller has gone: it will be over in a moment."""


C = TypeVar("C", bound=Asking)


@dataclass(slots=True)
class _Place(Generic[C]):
    """A place in the line: by priority, then by arrival."""

    call: C
    priority: float
    number: int
    since: float

    def __lt__(self, other: _Place[C]) -> bool:
        return (-self.priority, self.number) < (-other.priority, other.number)


class Admitted(NamedTuple):
    """It has a place; `displaced` has lost its own."""

    displaced: Any = None


class TurnedAway(NamedTuple):
    """It has none. `retry_after_s` is when there may be one, if that is known; `too_late` that this would not help."""

    reason: str
    retry_after_s: float | None = None
    too_late: bool = False


class Schedule(Generic[C]):
    """The line before one model. Times are monotonic seconds, handed in."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.rates = Rates()
        self.running: C | None = None
        self._given_at = self._speaking_at = 0.0
        self._speaking = False
        self._line: list[_Place[C]] = []
        self._numbers = 0
        self._ahead: list[tuple[float, C]] = []
        """Prompts to be read ahead, each with the moment from which on."""
        self._read: C | None = None
        """The prompt in `_ahead` that has been read, and is still in the model's memory as far as we know."""

    # ── who comes in ─────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, call: C, now: float, *, left_s: float) -> Admitted | TurnedAway:
        """Ask for a place. `left_s` is what remains to its deadline.

        Nobody is turned away on an estimate while nobody is ahead: trying costs nobody else anything, and is how a
        stale estimate gets better.
        """
        wait = self.wait_s(now, call.priority)
        others = self._ahead_of(call.priority) + self._serving
        if others and wait is not None:
            if wait > call.within_s:
                return TurnedAway(
                    f"a turn is expected in {wait:.1f} s, and it may wait {call.within_s:.1f} s", wait - call.within_s
                )
            needs = self.rates.serving_s(call.work) or 0.0
            if wait + needs > left_s:
                return TurnedAway(
                    f"a turn is expected in {wait:.1f} s and the answer would take {needs:.1f} s more, "
                    f"but only {max(0.0, left_s):.1f} s are left to the deadline",
                    too_late=True,
                )
        displaced = None
        if len(self._line) >= self.bound + (not self._serving):
            if not self._line or self._line[-1].priority >= call.priority:
                expected = "" if wait is None else f"; a turn would be expected in {wait:.1f} s"
                free = self._remaining_s(now)
                return TurnedAway(
                    f"{self._serving} request is being served and {len(self._line)} are waiting{expected}", free
                )
            displaced = self._line.pop().call
        self._numbers += 1
        insort(self._line, _Place(call, call.priority, self._numbers, now))
        return Admitted(displaced)

    def back(self, call: C, now: float) -> None:
        """It was running when the process died, and had not been begun: it is the first to be served again."""
        self.ended(call)
        self._line.insert(0, _Place(call, inf, -self._numbers, now))

    def remove(self, call: C) -> bool:
        """Its caller has gone. Whether it was in the line."""
        for index, place in enumerate(self._line):
            if place.call is call:
                del self._line[index]
                return True
        return False

    def clear(self) -> list[C]:
        """Everybody who waits, and nobody does any more."""
        left, self._line = [place.call for place in self._line], []
        return left

    # ── who is served ────────────────────────────────────────────────────────────────────────────────────────────────

    def next(self, now: float) -> C | None:
        """The call that is to be served now; it is running from here on."""
        if self.running is not None:
            return None
        if self._line:
            self.running = self._line.pop(0).call
        elif now >= self.next_reading():
            self.running = self._ahead[0][1]
        self._given_at, self._speaking = now, False
        return self.running

    def makes_way(self) -> C | None:
        """The prompt that is being read ahead although somebody waits."""
        running = self.running
        return running if running is not None and running.op == "prefill" and self._line else None

    def spoke(self, now: float, evaluated: int) -> None:
        """The running call's prompt has been read."""
        if self.running is not None and not self._speaking:
            self._speaking, self._speaking_at = True, now
            self.rates.read(self.running.work.characters, evaluated, now - self._given_at)

    def finished(self, now: float, written: int) -> None:
        """The running call has its whole answer. `ended` follows."""
        if self._speaking and written > 0:
            self.rates.wrote(written, now - self._speaking_at)

    def ended(self, call: C, *, whole: bool = False) -> None:
        """It runs no more, however it came to that."""
        if self.running is not call:
            return
        self.running = None
        if call.op == "prefill":
            if whole and any(other is call for _, other in self._ahead):
                self._read = call
        elif call.op == "generate":
            self._read = None  # another conversation may have taken its place in the model's memory

    def expired(self, now: float) -> list[C]:
        """Those whose turn did not come in time; they are in the line no more."""
        late = [place for place in self._line if now - place.since >= place.call.within_s]
        if late:
            self._line = [place for place in self._line if place not in late]
        return [place.call for place in late]

    def next_expiry(self) -> float:
        """When `expired` is to be asked again."""
        return min((place.since + place.call.within_s for place in self._line), default=inf)

    def wait_anew(self, now: float) -> None:
        """What has been waited until now was no waiting for a turn: the model was being loaded."""
        for place in self._line:
            place.since = now

    # ── prompts to be read ahead ─────────────────────────────────────────────────────────────────────────────────────

    def read_ahead(self, call: C, now: float) -> None:
        """Read this prompt while nobody needs the model, until `forget`. The first to come is read first, and stays.

        Not at once: a hosted call that is answered within a moment needs no help, and one that is just being sent is
        not to be disturbed.
        """
        if len(self._ahead) < _AHEAD_BOUND:
            self._ahead.append((now + AHEAD_AFTER_S, call))

    def forget(self, call: C) -> bool:
        """It is not needed any more. Whether it is being read right now, and has to be stopped."""
        self._ahead = [(at, other) for at, other in self._ahead if other is not call]
        if self._read is call:
            self._read = None
        return self.running is call

    def forget_all(self) -> None:
        """The process is gone, and what it had read with it: prompts are to be read anew."""
        self._read = None

    def next_reading(self) -> float:
        """When a prompt is to be read ahead; infinity if there is none that is not."""
        return self._ahead[0][0] if self._ahead and self._read is not self._ahead[0][1] else inf

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> tuple[C, ...]:
        """Those in the line, first served first."""
        return tuple(place.call for place in self._line)

    @property
    def _serving(self) -> int:
        running = self.running
        return int(running is not None and running.op != "prefill" and not running.cancelled)

    def _ahead_of(self, priority: int) -> int:
        return sum(place.priority >= priority for place in self._line)

    def _remaining_s(self, now: float) -> float | None:
        """Seconds the running request is expected to take still; 0 with nobody running, None unmeasured."""
        if not self._serving or self.running is None:
            return 0.0
        work = self.running.work
        writing = self.rates.writing_s(work)
        if writing is None:
            return None
        if not self._speaking:
            reading = self.rates.reading_s(work) or 0.0
            return max(0.0, reading - (now - self._given_at)) + writing
        spoken, rate = now - self._speaking_at, self.rates.output_rate or 1.0
        # An answer that is already longer than usual is expected to go on for a quarter of what it has taken.
        longest = max(0.0, work.max_tokens / rate - spoken)
        return max(writing - spoken, min(longest, spoken / 4))

    def wait_s(self, now: float, priority: int = 0) -> float | None:
        """Seconds until a call of this priority is expected to have its turn; None unmeasured."""
        wait = self._remaining_s(now)
        for place in self._line:
            if wait is None or place.priority < priority:
                break
            serving = self.rates.serving_s(place.call.work)
            wait = None if serving is None else wait + serving
        return wait


class Crashes:
    """When to start again after a crash, and when to stop trying for a while."""

    __slots__ = ("_at", "_restarts", "last", "not_before")

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._at: list[float] = []
        self.last = ""
        """How it died last."""
        self.not_before = 0.0
        """When the next process may be started: at once after a first crash, later after each further one, and not
        while it is unhealthy."""

    def died(self, now: float, how: str) -> None:
        """It has crashed."""
        self.last = how
        self._forget_old(now)
        self._at.append(now)
        again = len(self._at) - 2
        self.not_before = now + (0.0 if again < 0 else min(5.0, 0.1 * 2.0**again))
        if (found := self.unhealthy(now)) is not None:
            self.not_before = now + found[1]

    def _forget_old(self, now: float) -> None:
        self._at = [at for at in self._at if now - at <= CRASH_WINDOW_S]

    def unhealthy(self, now: float) -> tuple[str, float] | None:
        """Why it is not started again, and for how many seconds; None while it may be."""
        self._forget_old(now)
        if len(self._at) <= self._restarts:
            return None
        first = self._at[-1 - self._restarts]
        return (
            f"its process died {len(self._at)} times within a minute, last: {self.last}",
            first + CRASH_WINDOW_S - now,
        )
