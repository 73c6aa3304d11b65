"""Does a target become slower? `Drift` compares its first tokens of late with its usual ones, before it fails.

Two moving averages of the logarithm of the time to the first token, a fast and a slow one. It drifts when the fast one
stands clear of the slow one both by a factor that matters and by more than its own noise explains. Logarithms, because
what counts is how many times slower. Noise is measured as the mean distance from the slow average, so that a target
whose prompts are now short, now long, is not taken to drift each time a few long ones come; and a single outlier is
cut to two and a half times the noise, so that it takes several in a row. No clock, no randomness: a few numbers.
"""

from __future__ import annotations

import math

__all__ = ["Drift"]

FAST = 0.15
"""Weight of the newest time in the fast average: it remembers about seven."""
SLOW = 0.01
"""The same of the slow one: it remembers about a hundred. A time that stays becomes the usual one after as many."""
MEASURED = 20
"""Times before which nothing is said."""
FACTOR = 1.5
"""So many times slower matters."""
BACK = 1.2
"""Below so many times slower it is over."""
SIGMAS = 3.5
"""By so many standard deviations of the fast average it must be out of the usual."""
_CUT = 2.5
"""A time counts as no further from the usual than so many standard deviations."""
_LEAST_SPREAD = 0.25
"""Noise is taken to be 25 % at least."""
_TO_SIGMA = math.sqrt(math.pi / 2)
"""A normal distribution's standard deviation over its mean distance from the middle."""
_FAST_NOISE = math.sqrt(FAST / (2 - FAST))
"""The fast average's standard deviation over that of single times."""


class Drift:
    """Fed with each time to a first token, in seconds. Not thread-safe by itself: the owner holds the lock."""

    __slots__ = ("_count", "_fast", "_slow", "_spread", "drifting")

    def __init__(self) -> None:
        self._count = 0
        self._fast: float  # set with the first time
        self._slow: float
        self._spread = 0.0
        self.drifting = False
        """Whether it has become slower than noise explains."""

    def add(self, first_token_s: float) -> None:
        """A stream's first token came after so many seconds."""
        value = math.log(max(first_token_s, 1e-4))
        self._count += 1
        if self._count == 1:
            self._fast = self._slow = value
            return
        # While there are few, every time weighs the same; cutting begins when the noise is known.
        slow = max(SLOW, 1.0 / self._count)
        if self._count > MEASURED // 2:
            cut = _CUT * self._sigma
            value = min(max(value, self._slow - cut), self._slow + cut)
        self._spread += slow * (abs(value - self._slow) - self._spread)
        self._fast += FAST * (value - self._fast)
        self._slow += slow * (value - self._slow)
        if self._count < MEASURED:
            return
        above = self._fast - self._slow
        if self.drifting:
            self.drifting = above > math.log(BACK)
        else:
            self.drifting = above > math.log(FACTOR) and above > SIGMAS * self._sigma * _FAST_NOISE

    @property
    def _sigma(self) -> float:
        return max(_LEAST_SPREAD, self._spread * _TO_SIGMA)

    @property
    def ratio(self) -> float | None:
        """First tokens of late over the usual ones; None until enough were measured."""
        return None if self._count < MEASURED else math.exp(self._fast - self._slow)

    def __repr__(self) -> str:
        ratio = self.ratio
        told = f"{self._count} of {MEASURED} measured" if ratio is None else f"×{ratio:.2f}"
        return f"Drift({told}{', drifting' if self.drifting else ''})"
