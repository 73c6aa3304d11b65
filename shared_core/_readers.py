"""Those who read a flight, its leader and who has joined: what each may have now, how it ends for it, who wakes it."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from shared_core.cache.flight import Flight
from shared_core.chat.events import ChatEvent, Finished, TextDelta, collect
from shared_core.errors import AllTargetsFailed, DeadlineExceeded, FallbackError, StreamBroken
from shared_core.routing.execution import Execution

if TYPE_CHECKING:
    from shared_core._kept_books import KeptBooks

__all__ = ["LOST", "AsyncWaker", "Reading", "Unfit", "running_loop"]


class _Lost(Exception):
    """The flight cannot go on, for no reason of the request's."""


LOST = _Lost()
"""Its reader asks for itself."""


class Unfit(Exception):
    """The leader's answer does not pass the follower's own check."""


class Reading:
    """One caller's reading of a flight, which it `leads` or has joined. No I/O; both faces drive it."""

    __slots__ = ("_books", "_check", "_execution", "at", "ended", "flight", "leads", "report", "whole")

    def __init__(self, books: KeptBooks, execution: Execution, flight: Flight, *, leads: bool) -> None:
        self._books, self._execution = books, execution
        self.flight, self.leads = flight, leads
        request = execution.request
        self._check = None if leads else request.check  # a leader's answer has passed its own on the way
        self.whole = not request.streaming or self._check is not None
        """It is handed over at the end, once it has passed."""
        self.at = 0
        """Events that have been handed over."""
        self.ended = False
        self.report: BaseException | None = None

    def news(self) -> Sequence[ChatEvent]:
        """What may be handed over now; nothing while there is no more, and once it has `ended`."""
        flight, at = self.flight, self.at
        over = flight.over  # before the events are counted: what comes after it is nothing
        if self.ended or (self.whole and not over):
            return ()
        events = flight.events
        till = len(events)
        if self.whole and (flight.lost or flight.error is not None):
            till = at
        elif self._check is not None and at == 0 and (fault := self._check(collect(events))) is not None:
            self._end(Unfit(fault))
            return ()
        if till > at and not self.leads and type(last := events[till - 1]) is Finished:
            till -= 1
            if till == at:  # all else has been handed over
                self.at += 1
                return (self._books.joined(self._execution, last, flight.leader),)
        if till > at:
            self.at = till
            return events[at:till]
        if over:
            self._end(self._outcome())
        return ()

    def _outcome(self) -> BaseException | None:
        """What it comes to. `LOST` lets the reader ask for itself: what failed was the leader's time, or a stream of
        which this one has seen nothing."""
        flight = self.flight
        error = flight.error
        if not flight.lost:
            if self.leads or error is None:
                return error
            if not isinstance(error, (DeadlineExceeded, StreamBroken)):
                return _again(error)
        said = self._said()
        if not said:
            return LOST
        return self._books.late(self._execution, said) if error is None else _again(error)

    def _said(self) -> str:
        return "".join(event.text for event in self.flight.events[: self.at] if type(event) is TextDelta)

    @property
    def patience_s(self) -> float | None:
        """Seconds to wait for news at most; None for a leader, whose deadline holds for the request itself."""
        if self.leads:
            return None
        return max(0.0, min(self._execution.deadline - self._books.now(), threading.TIMEOUT_MAX))

    def check_deadline(self) -> None:
        """End when a follower's own time is up, whoever else goes on."""
        if not self.leads and not self.flight.over and self._books.now() >= self._execution.deadline:
            self._end(self._books.late(self._execution, self._said()))

    def leave(self, how: str) -> None:
        """The reader has gone: abandoned or cancelled. What becomes of a leader's request is told where that ends."""
        if not self.leads:
            self._books.left(self._execution, how)

    def _end(self, report: BaseException | None) -> None:
        self.ended = True
        self.report = report


class AsyncWaker:
    """Wakes a task of one event loop, from anywhere."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake it."""
        if running_loop() is self._loop:
            self._event.set()
            return
        with suppress(RuntimeError):  # its loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float | None) -> None:
        """Until it is woken, or `timeout_s` seconds have passed."""
        if timeout_s is None:
            await self._event.wait()
        elif not self._event.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        self._event.clear()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _again(error: BaseException) -> BaseException:
    """The same failure for another caller: an exception that two threads raise would collect both their frames."""
    if isinstance(error, AllTargetsFailed):
        twin: BaseException = error.derive(error.exceptions)
    elif isinstance(error, FallbackError):
        twin = copy.copy(error)
    else:
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    return twin
