"""What `Router.stream` and `Router.astream` return: one answer's events; leaving them frees the connection."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from types import TracebackType
from typing import Self

from shared_core.chat.events import ChatEvent
from shared_core.resilience.deadline import Guard
from shared_core.routing.execution import Execution

__all__ = ["AnswerStream", "AsyncAnswerStream", "Left", "Stop"]

_BUSY = "generator already executing"
"""What Python says to whoever touches a generator that another thread is in."""


class Left(GeneratorExit):
    """The stream was closed by another thread than the one that reads it."""


class Stop:
    """How another thread ends a stream while one reads it. One per stream; `quiet` if the driver is what is read."""

    __slots__ = ("_guards", "_pause", "alone", "asked", "left", "quiet", "wake")

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.left = False
        """The stream has been closed; whoever reads it shall end."""
        self.asked = False
        """The targets are not to be asked on."""
        self.alone: Callable[[], bool] | None = None
        """Whether nobody else reads what they answer; None is yes."""
        self.wake: Callable[[], object] | None = None
        """Wakes who waits for another's events."""
        self._guards: list[Guard] = []
        self._pause: threading.Event | None = None

    def watch(self, guard: Guard) -> None:
        """An attempt begins, to be cut off when it is time."""
        if guard.cuts is None:
            guard.cuts = {}
        self._guards.append(guard)
        if self.asked:  # a moment ago: whoever asked may not have seen this one
            guard.cut()

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until it is time."""
        self._pause = threading.Event()
        if not self.asked:
            self._pause.wait(seconds)

    def request(self) -> None:
        """It is time: wake whatever the reader waits for. Never blocks. Any thread."""
        self.left = True
        if self.alone is None or self.alone():
            self.asked = True
            for guard in tuple(self._guards):
                guard.cut()
            if self._pause is not None:
                self._pause.set()
        if self.wake is not None:
            self.wake()


class AnswerStream(Iterator[ChatEvent]):
    """Events of one answer as they come. Iterate it, or use it in `with`; `close` walks away.

    One thread reads it at a time. Any thread may close it: then whoever reads it finds its end.
    """

    def __init__(self, execution: Execution, events: Generator[ChatEvent, None, None], stop: Stop) -> None:
        self.execution = execution
        """The journal, growing while you read."""
        self._events = events
        self._stop = stop

    def __iter__(self) -> Iterator[ChatEvent]:  # noqa: PYI034  # a generator is faster than we are
        try:
            for event in self._events:  # noqa: UP028  # leaving a loop over this must not close the stream
                yield event
        except ValueError as error:
            if not (self._stop.left and str(error) == _BUSY):
                raise  # else somebody is closing it at this very moment

    def __next__(self) -> ChatEvent:
        try:
            return next(self._events)
        except ValueError as error:
            if self._stop.left and str(error) == _BUSY:
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Walk away: the connection is freed and the ledger settled. Idempotent, and for any thread.

        While another thread waits for the next event, that one is woken, does this, and finds the end of the stream;
        `execution.outcome` is then 'abandoned'.
        """
        self._stop.left = True
        try:
            self._events.close()
        except ValueError as error:
            if str(error) != _BUSY:
                raise
            self._stop.request()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AnswerStream({self.execution!r})"


class AsyncAnswerStream(AsyncIterator[ChatEvent]):
    """Events of one answer as they come. `async for` it, or use it in `async with`; `aclose` walks away."""

    def __init__(self, execution: Execution, events: AsyncGenerator[ChatEvent, None]) -> None:
        self.execution = execution
        """The journal, growing while you read."""
        self._events = events
        self.aclose = events.aclose

    def __aiter__(self) -> AsyncIterator[ChatEvent]:  # noqa: PYI034  # the generator itself is faster than we are
        return self._events

    async def __anext__(self) -> ChatEvent:
        return await self._events.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._events.aclose()

    def __repr__(self) -> str:
        return f"AsyncAnswerStream({self.execution!r})"
