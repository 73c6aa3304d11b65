"""A provider that speaks when it is told to, from any thread: for tests of who waits for whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from shared_core import Capabilities, ChatEvent, ChatRequest, Finished, Guard, Origin, Started, TextDelta, Usage

__all__ = ["Gated"]


class Gated:
    """Says 'Hello', waits until `go` is called, says ' world', and ends; or raises what it was told to `fail` with."""

    model = "m"
    local = False
    interruptible = True
    capabilities = Capabilities()

    def __init__(self, name: str = "gated", fail: BaseException | None = None) -> None:
        self.name = name
        self.origin = Origin(name, "m")
        self.fail = fail
        self.calls = 0
        self.open = 0
        self.begun = threading.Event()
        self._gone = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()

    def go(self) -> None:
        """Let everybody go on, now and later."""
        with self._lock:
            self._gone.set()
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def _begin(self) -> None:
        with self._lock:
            self.calls += 1
            self.open += 1
        self.begun.set()

    def _end(self) -> None:
        with self._lock:
            self.open -= 1

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer."""
        self._begin()
        try:
            yield Started()
            yield TextDelta("Hello")
            assert self._gone.wait(30)
            if self.fail is not None:
                raise self.fail
            yield TextDelta(" world")
            yield Finished(usage=Usage(10, 2))
        finally:
            self._end()

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer."""
        self._begin()
        try:
            yield Started()
            yield TextDelta("Hello")
            event = asyncio.Event()
            with self._lock:
                if not self._gone.is_set():
                    self._waiting.append((asyncio.get_running_loop(), event))
                else:
                    event.set()
            await event.wait()
            if self.fail is not None:
                raise self.fail
            yield TextDelta(" world")
            yield Finished(usage=Usage(10, 2))
        finally:
            self._end()

    def close(self) -> None:
        """Nothing to free."""

    async def aclose(self) -> None:
        """Nothing to free."""


def until(true: Any, what: str = "") -> None:
    """Wait until `true()` is, for at most thirty seconds."""
    pause = threading.Event()
    for _ in range(15_000):
        if true():
            return
        pause.wait(0.002)
    raise AssertionError(f"it never came to be: {what}")


async def auntil(true: Any, what: str = "") -> None:
    """The same in a task."""
    for _ in range(15_000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"it never came to be: {what}")
