"""Events on their way through something that looks at each: one pair of generators, sync and async, for all such."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator

from shared_core.chat.events import ChatEvent

__all__ = ["athrough", "through"]

Feed = Callable[[ChatEvent], Iterable[ChatEvent]]
"""Takes an event and returns what to pass on for it."""


def through(events: Iterator[ChatEvent], feed: Feed) -> Generator[ChatEvent, None, None]:
    """What `feed` makes of `events`; they are closed with this."""
    try:
        for event in events:
            yield from feed(event)
    finally:
        if (close := getattr(events, "close", None)) is not None:
            close()


async def athrough(events: AsyncIterator[ChatEvent], feed: Feed) -> AsyncGenerator[ChatEvent, None]:
    """`through`, async."""
    try:
        async for event in events:
            for one in feed(event):
                yield one
    finally:
        if (close := getattr(events, "aclose", None)) is not None:
            await close()
