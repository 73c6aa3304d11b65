"""What `Router.stream` and `Router.astream` return: one answer's events; leaving them frees the connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Self

from shared_core.chat.events import ChatEvent
from shared_core.routing.execution import Execution

__all__ = ["AnswerStream", "AsyncAnswerStream"]


class AnswerStream(Iterator[ChatEvent]):
    """Events of one answer as they come. Iterate it, or use it in `with`; `close` walks away."""

    def __init__(self, execution: Execution, events: Generator[ChatEvent, None, None]) -> None:
        self.execution = execution
        """The journal, growing while you read."""
        self._events = events
        self.close = events.close

    def __iter__(self) -> Iterator[ChatEvent]:  # noqa: PYI034  # the generator itself is faster than we are
        return self._events

    def __next__(self) -> ChatEvent:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()

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
