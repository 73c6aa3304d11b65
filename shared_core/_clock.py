"""The one place that reads the time and sleeps: `SystemClock`. Everything else is handed a clock."""

from __future__ import annotations

import asyncio
from time import monotonic as _monotonic
from time import sleep as _sleep
from time import time as _time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the router needs of time. `shared_core.testing.VirtualClock` is another one."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass in a thread."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Let time pass in a task."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(_monotonic)
    time = staticmethod(_time)
    sleep = staticmethod(_sleep)

    async def asleep(self, seconds: float) -> None:
        """Let time pass in a task."""
        await asyncio.sleep(seconds)
