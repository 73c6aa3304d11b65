"""What was measured of one target lately: the last figures (`Ranked`), what ended well and badly in spans of time
(`Tally`), when it could not be tried (`Outages`). All are bounded, and are handed the time in monotonic seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

__all__ = ["Outages", "Ranked", "Tally"]

_FINE_S = 10
_FINE_KEPT = 31  # five minutes, and the bucket that a window of them begins in
_COARSE_S = 300
_COARSE_KEPT = 289  # a day, and the same
_KEPT_OUTAGES = 512


_FEW = 8


class Ranked:
    """The last so many figures, in order of size when somebody asks.

    Nobody asks most of the time, so that keeping them costs an append; who asks after every few calls has them sorted
    in, not sorted anew.
    """

    __slots__ = ("_added", "_dropped", "_ranked", "values")

    def __init__(self, keep: int) -> None:
        self.values: deque[float] = deque(maxlen=keep)
        """In order of time."""
        self._ranked: list[float] | None = None
        self._added: list[float] = []
        self._dropped: list[float] = []

    def add(self, value: float) -> None:
        """One more; the oldest goes."""
        values = self.values
        if self._ranked is not None:
            if len(self._added) == _FEW:
                self._ranked = None
                self._added.clear()
                self._dropped.clear()
            else:
                self._added.append(value)
                if len(values) == values.maxlen:
                    self._dropped.append(values[0])
        values.append(value)

    def ranked(self) -> Sequence[float]:
        """The smallest first. Changes with the next `add`."""
        ranked = self._ranked
        if ranked is None:
            ranked = self._ranked = sorted(self.values)
        elif self._added:
            for value in self._added:
                insort(ranked, value)
            for value in self._dropped:
                del ranked[bisect_left(ranked, value)]
            self._added.clear()
            self._dropped.clear()
        return ranked


class Tally:
    """Good and bad ends in buckets of 10 seconds for five minutes, and of five minutes for a day.

    A bucket counts for a window if any of it lies inside: a window of minutes is exact to 10 seconds, a longer one to
    five minutes.
    """

    __slots__ = ("_bad", "_coarse", "_fine", "_good", "_key")

    def __init__(self) -> None:
        self._key: int | None = None
        self._good: int  # set with the key
        self._bad: int
        self._fine: deque[tuple[int, int, int]] = deque(maxlen=_FINE_KEPT)
        self._coarse: deque[list[int]] = deque(maxlen=_COARSE_KEPT)

    def count(self, now: float, *, ok: bool) -> None:
        """Something ended."""
        key = int(now) // _FINE_S
        if key != self._key:
            self._roll(key)
        if ok:
            self._good += 1
        else:
            self._bad += 1

    def _roll(self, key: int) -> None:
        if self._key is not None:
            self._fine.append((self._key, self._good, self._bad))
            coarse = self._key * _FINE_S // _COARSE_S
            if not self._coarse or self._coarse[-1][0] != coarse:
                self._coarse.append([coarse, 0, 0])
            self._coarse[-1][1] += self._good
            self._coarse[-1][2] += self._bad
        self._key, self._good, self._bad = key, 0, 0

    def within(self, now: float, seconds: float) -> tuple[int, int]:
        """How many ended well and badly in the last `seconds`."""
        since = now - seconds
        good = bad = 0
        short = seconds <= (_FINE_KEPT - 1) * _FINE_S
        step, buckets = (_FINE_S, self._fine) if short else (_COARSE_S, self._coarse)
        for key, well, ill in buckets:
            if (key + 1) * step > since:
                good += well
                bad += ill
        if self._key is not None and (self._key + 1) * _FINE_S > since:
            good += self._good
            bad += self._bad
        return good, bad


class Outages:
    """The times in which a target could not be tried: its circuit not closed, or held (parked or locked) until an end.

    The last 512 are kept. Spans may overlap; time is counted once.
    """

    __slots__ = ("_broken_since", "_holds", "_spans")

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque(maxlen=_KEPT_OUTAGES)
        self._broken_since: float | None = None
        self._holds: dict[str, list[float]] = {}

    def broken(self, now: float) -> None:
        """Its circuit is not closed any more."""
        if self._broken_since is None:
            self._broken_since = now

    def mended(self, now: float) -> None:
        """Its circuit is closed again."""
        if self._broken_since is not None:
            self._spans.append((self._broken_since, now))
            self._broken_since = None

    def hold(self, what: str, since: float, until: float) -> None:
        """It is held `until` then; `what` tells holds apart that may stand at once. One that stands is made longer."""
        span = self._holds.get(what)
        if span is not None and since <= span[1]:
            span[1] = max(span[1], until)
            return
        if span is not None:
            self._spans.append((span[0], span[1]))
        self._holds[what] = [since, until]

    def lift(self, what: str, now: float) -> None:
        """A hold has ended before its time."""
        span = self._holds.pop(what, None)
        if span is not None:
            self._spans.append((span[0], min(span[1], max(now, span[0]))))

    def down_s(self, now: float, window_s: float) -> float:
        """For how many of the last `window_s` seconds it could not be tried."""
        since = now - window_s
        spans = [*self._spans, *((a, b) for a, b in self._holds.values())]
        if self._broken_since is not None:
            spans.append((self._broken_since, now))
        down, reached = 0.0, since
        for begin, end in sorted(spans):
            begin, end = max(begin, reached), min(end, now)
            if end > begin:
                down += end - begin
                reached = end
        return down
