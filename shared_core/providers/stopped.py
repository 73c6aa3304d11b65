"""Ends an answer where a stop sequence begins that its model was not told. What it says after one is not read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from shared_core.chat.events import ChatEvent, Finished, TextDelta
from shared_core.chat.through import athrough, through
from shared_core.providers.llama_cpp.stops import StopMatcher

__all__ = ["Stops", "astopped", "stopped"]


class Stops:
    """Looks for stop sequences in one answer.

    Args:
        stops: the sequences.
        cut: makes the end of an answer that was stopped, of the end that came and of the text before the stop; left
            out, the end that came as 'stop', without the framework's own message.
    """

    __slots__ = ("_cut", "_matcher", "_said")

    def __init__(self, stops: Sequence[str], cut: Callable[[Finished, str], Finished] | None = None) -> None:
        self._matcher = StopMatcher(stops)
        self._cut = cut
        self._said: list[str] = []

    def feed(self, events: Iterable[ChatEvent]) -> Iterator[ChatEvent]:
        """`events`, as far as they go; the last one with the usage of all of it."""
        for event in events:
            if isinstance(event, TextDelta):
                if text := self._matcher.feed(event.text):
                    self._said.append(text)
                    yield TextDelta(text)
            elif isinstance(event, Finished):
                if rest := self._matcher.close():
                    yield TextDelta(rest)
                yield event if self._matcher.matched is None else self._ended(event)
            elif self._matcher.matched is None:
                yield event

    def _ended(self, event: Finished) -> Finished:
        if self._cut is not None:
            event = self._cut(event, "".join(self._said))
        else:
            event = replace(event, native=None)
        return replace(event, reason="stop", raw_reason="stop")


def stopped(events: Iterator[ChatEvent], stops: Sequence[str]) -> Generator[ChatEvent, None, None]:
    """`events` up to the first of `stops`; they are closed with this."""
    feed = Stops(stops).feed
    return through(events, lambda event: feed((event,)))


def astopped(events: AsyncIterator[ChatEvent], stops: Sequence[str]) -> AsyncGenerator[ChatEvent, None]:
    """`stopped`, async."""
    feed = Stops(stops).feed
    return athrough(events, lambda event: feed((event,)))
