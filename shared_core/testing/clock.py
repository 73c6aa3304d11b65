"""A clock that moves only when told to, or when somebody sleeps on it: `VirtualClock`. Tests of hours take no time."""

from __future__ import annotations

import threading

__all__ = ["VirtualClock"]


class VirtualClock:
    """Hand it to `Router(clock=...)`. `sleep` and `asleep` advance it at once and are remembered in `sleeps`."""

    jumps = True
    """Sleeping on it lets nobody else act meanwhile: whoever waits for another caller waits in real time."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.sleeps: list[float] = []
        """Every wait that was asked of it, in seconds."""

    def monotonic(self) -> float:
        """The time."""
        return self._now

    def time(self) -> float:
        """The time since an epoch of its own."""
        return 1_700_000_000.0 + self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: `seconds` is negative; time does not go back.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        """Remember the wait and advance by it."""
        self.sleeps.append(seconds)
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        """The same, in a task."""
        self.sleep(seconds)

    def __repr__(self) -> str:
        return f"VirtualClock({self._now:g} s)"
