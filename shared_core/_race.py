"""Attempts that run beside their reader, for calls that may be late: `Heat` in a thread, `AsyncHeat` in a task.

Where nobody may be asked beside a call, its events are read in the caller's own thread or task. Where somebody may, the
call must go on while the caller waits for either. Whoever reads a heat later gets every event it brought, in order.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue

from shared_core._lane import in_thread
from shared_core.chat.events import ChatEvent, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from shared_core.chat.request import ToolCall
from shared_core.errors import ErrorKind, ProviderError
from shared_core.resilience.deadline import Guard
from shared_core.routing.flow import Call

__all__ = ["CONTENT", "AsyncHeat", "Heat", "rung"]

CONTENT = frozenset({TextDelta, ReasoningDelta, ToolCallDelta, ToolCall})
"""Events that prove a target alive: they stop the first-token clock and start the idle one anew."""
_DECIDES = CONTENT | {Finished}
_GOODBYE_S = 1.0
"""How long a caller may be kept until what was cut off has closed its connection. It is closed anyway."""


class _Running:
    """What both kinds have: how far the attempt has come. `guard` is moved by who makes the attempt."""

    def __init__(self, call: Call, guard: Guard, now: Callable[[], float], ring: Callable[[], None]) -> None:
        self.call = call
        self.guard = guard
        self.has_content = False
        self.over = False
        """It has ended, well or not."""
        self.error: BaseException | None = None
        self._dropped = False
        self._said_all = False
        self._now = now
        self._ring = ring

    @property
    def ready(self) -> bool:
        """Whether there is anything to decide on: content, or the end."""
        return self.has_content or self.over

    @property
    def said_all(self) -> bool:
        """Whether whoever reads it need not wait for anything any more."""
        return self._said_all or self.over

    def saw(self, event: ChatEvent) -> None:
        """The attempt has brought an event."""
        kind = type(event)
        if kind in CONTENT:
            attempt = self.call.attempt
            if attempt.first_token is None:
                attempt.first_token = self._now()
            self.guard.touch()
        elif kind is Finished:
            self._said_all = True
        if not self.has_content and kind in _DECIDES:
            self.has_content = True
            self._ring()

    def ended(self, error: BaseException | None) -> None:
        """The attempt has ended."""
        self.error = error
        self.over = True
        self._ring()


class Heat(_Running):
    """An attempt in a thread of its own, begun at once. `bell` rings when there is something to decide on, or to read.

    `guard.cuts` is a dict. The bell is one for all attempts of a request: whoever waits looks what it was for.
    """

    def __init__(
        self,
        call: Call,
        guard: Guard,
        open_: Callable[[], Iterator[ChatEvent]],
        now: Callable[[], float],
        bell: SimpleQueue[None],
    ) -> None:
        super().__init__(call, guard, now, partial(bell.put, None))
        self.bell = bell
        self._open = open_
        self._items: deque[ChatEvent] = deque()
        in_thread(partial(copy_context().run, self._run))

    def _run(self) -> None:
        """The other thread's half."""
        error: BaseException | None = None
        piecemeal = self.guard.streaming
        try:
            # If the race was decided before this thread got its turn, nothing is sent: nobody would read the answer.
            source: Iterator[ChatEvent] = iter(()) if self._dropped else self._open()
            try:
                for event in source:
                    self.saw(event)  # before it can be read: whoever has read the last one must not cut off its closing
                    self._items.append(event)
                    if self._dropped:
                        break
                    if piecemeal:
                        self._ring()
            finally:
                close = getattr(source, "close", None)
                if close is not None:
                    close()
        except BaseException as raised:  # noqa: BLE001  # carried to the reader's thread, where it is raised
            error = raised
        self.ended(error)

    def events(self) -> Iterator[ChatEvent]:
        """What it has brought and will bring. Leaving it cuts the attempt off.

        Raises:
            ProviderError: kind TIMEOUT when the guard runs out; what it ended with, else.
        """
        items, guard = self._items, self.guard
        try:
            while True:
                over = self.over  # first: what is there then is all there is
                while items:
                    yield items.popleft()
                if over:
                    break
                if not rung(self.bell, guard.remaining()) and guard.expired and not self.over:
                    raise ProviderError.of(ErrorKind.TIMEOUT, guard.ran_out())
        finally:
            self.drop()
        if self.error is not None:
            raise self.error

    def drop(self) -> None:
        """Cut it off, if it has not ended: its connection closes. Never blocks."""
        self._dropped = True
        if not (self.over or self._said_all):
            self.guard.cut()


def rung(bell: SimpleQueue[None], seconds: float) -> bool:
    """Wait for the bell, so many seconds at most; whether it rang."""
    try:
        bell.get(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))
    except Empty:
        return False
    return True


class AsyncHeat(_Running):
    """An attempt in a task of its own, begun at once. The twin of `Heat`."""

    def __init__(
        self,
        call: Call,
        guard: Guard,
        source: AsyncIterator[ChatEvent],
        now: Callable[[], float],
        bell: asyncio.Event,
    ) -> None:
        super().__init__(call, guard, now, bell.set)
        self.bell = bell
        self._items: deque[ChatEvent] = deque()
        self._more = asyncio.Event()
        self._begun = False
        self.task = asyncio.get_running_loop().create_task(self._run(source))

    async def _run(self, source: AsyncIterator[ChatEvent]) -> None:
        self._begun = True
        error: BaseException | None = None
        try:
            async for event in source:
                self._items.append(event)
                self.saw(event)
                self._more.set()
        except asyncio.CancelledError as cut:
            error = cut
            raise
        except Exception as raised:  # noqa: BLE001  # told to who reads
            error = raised
        finally:
            self.ended(error)
            self._more.set()
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    async def begun(self) -> None:
        """Until it has been sent: a task that is cancelled before its first step sends nothing, and is in the journal.

        What the other one brings at this very moment would do that.
        """
        while not (self._begun or self.task.done()):  # noqa: ASYNC110  # its first step is due in this loop's next turn
            await asyncio.sleep(0)

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """What it has brought and will bring. Leaving it cuts the attempt off."""
        try:
            while True:
                while self._items:
                    yield self._items.popleft()
                if self.over:
                    break
                self._more.clear()
                await self._more.wait()
        finally:
            self.drop()
        if self.error is not None:
            raise self.error

    def drop(self) -> None:
        """Cut it off, if it has not ended: its connection closes. Never blocks.

        It is cancelled once, and not when it has said all: that would hit the closing, and leave the connection open.
        """
        if not (self.over or self._said_all or self._dropped):
            self._dropped = True
            self.task.cancel()

    @staticmethod
    async def gone(heats: list[AsyncHeat]) -> None:
        """Until those that were dropped have closed their connections, for a second at most."""
        if tasks := [heat.task for heat in heats if not heat.task.done()]:
            _, late = await asyncio.wait(tasks, timeout=_GOODBYE_S)
            for heat in heats:
                if heat.task in late and not heat._dropped:  # it has said all, and does not end
                    heat.task.cancel()
