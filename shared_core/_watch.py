"""Cancels an awaiting task when its attempt's guard runs out: `Watchdog`. One timer per attempt, none per chunk."""

from __future__ import annotations

import asyncio
import math

from shared_core.resilience.deadline import Guard

__all__ = ["Watchdog"]


class Watchdog:
    """Bites the task that awaits the provider, and only while it does: never the caller's code between two events.

    `arm` before each await, `disarm` after it. After a `CancelledError`, `bit` says whether it was ours.
    """

    __slots__ = ("_before", "_bit", "_guard", "_loop", "_task", "_timer", "_when")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._when = math.inf
        self._bit = False
        self._before = 0

    def arm(self) -> None:
        """The task that calls is about to await the provider."""
        self._task = asyncio.current_task()
        if self._guard.at < self._when:
            self._schedule()

    def disarm(self) -> None:
        """The await is over."""
        self._task = None

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = self._guard.at
        if math.isinf(self._when):
            return
        self._timer = self._loop.call_later(max(0.0, self._guard.remaining()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._when = math.inf
        if not self._guard.expired:
            self._schedule()  # the limit has moved on since
        elif self._task is not None:
            self._bit = True
            self._before = self._task.cancelling()
            self._task.cancel()
        # Otherwise the caller holds the turn; `arm` looks at the limit again.

    def bit(self) -> bool:
        """Whether the `CancelledError` just caught is this watchdog's alone; takes the cancellation back if so."""
        task = asyncio.current_task()
        if not self._bit or task is None:
            return False
        self._bit = False
        return task.uncancel() <= self._before

    def stop(self) -> None:
        """The attempt is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
