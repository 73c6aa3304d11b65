"""A provider that does what its script says: `ScriptedProvider`, for tests without a socket."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from shared_core._forks import after_fork
from shared_core.chat.events import Answer, ChatEvent, Finished, Started, TextDelta, Usage, events_of
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ErrorKind, ProviderError
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities
from shared_core.testing.clock import VirtualClock

__all__ = ["Broken", "ScriptedProvider", "Silence"]


@dataclass(frozen=True, slots=True)
class Broken:
    """A stream that says `text` and then fails with `kind`, or just ends (`kind=None`)."""

    text: str
    kind: ErrorKind | None = ErrorKind.STREAM_CUT


@dataclass(frozen=True, slots=True)
class Silence:
    """Says `text`, then nothing until the guard runs out. Needs the router's `VirtualClock`."""

    text: str = ""


Step = (
    str | Answer | Broken | Silence | ErrorKind | BaseException | Sequence[ChatEvent] | Callable[[ChatRequest], object]
)


class ScriptedProvider:
    """Plays one step of its script per call; the last step repeats.

    Steps: a text or `Answer` (answered whole; streamed word by word), an `ErrorKind` or exception (raised before any
    content), `Broken`, `Silence`, a list of events (yielded as they are), or a function of the request that returns
    one of these. `requests` keeps every request it was sent.
    """

    local = False
    interruptible = True

    def __init__(
        self,
        *script: Step,
        name: str = "scripted",
        model: str = "script",
        capabilities: Capabilities | None = None,
        clock: VirtualClock | None = None,
        latency_s: float = 0.0,
    ) -> None:
        self.name = name
        self.model = model
        self.script: tuple[Step, ...] = script or ("ok",)
        self.requests: list[ChatRequest] = []
        self.open = 0
        """Iterators begun and not yet closed."""
        self._capabilities = capabilities or Capabilities()
        self._clock = clock
        self._latency_s = latency_s
        self._lock = threading.Lock()
        after_fork(self._in_child)

    def _in_child(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it

    @property
    def capabilities(self) -> Capabilities:
        """What it says it can take."""
        return self._capabilities

    @property
    def origin(self) -> Origin:
        """Its own scope."""
        return Origin(self.name, self.model)

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.requests)

    def _next(self, request: ChatRequest) -> Step:
        with self._lock:
            self.requests.append(request)
            step = self.script[min(len(self.requests), len(self.script)) - 1]
        if callable(step) and not isinstance(step, type):
            step = step(request)  # type: ignore[assignment]  # documented: it returns one of the other steps
        return step

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Play the next step."""
        self.open += 1
        try:
            yield from self._play(self._next(request), request, guard)
        finally:
            self.open -= 1

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Play the next step."""
        self.open += 1
        try:
            for event in self._play(self._next(request), request, guard):
                yield event
        finally:
            self.open -= 1

    def _play(self, step: Step, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        if self._clock is not None and self._latency_s:
            self._clock.advance(self._latency_s)
        match step:
            case ErrorKind():
                raise ProviderError.of(step, f"scripted {step}")
            case BaseException():
                raise step
            case str():
                yield from self._say(step, request)
                yield Finished(
                    usage=Usage(10, len(step.split())), model=self.model, response_id=f"{self.name}-{self.calls}"
                )
            case Answer():
                yield from events_of(step)
            case Broken():
                yield from self._say(step.text, request)
                if step.kind is not None:
                    raise ProviderError.of(step.kind, f"scripted {step.kind} after {step.text!r}")
            case Silence():
                yield from self._say(step.text, request)
                if self._clock is not None:
                    self._clock.advance(max(0.0, guard.remaining()))
                raise ProviderError.of(ErrorKind.TIMEOUT, f"scripted silence: no {guard.which}")
            case Sequence():
                yield from cast("Sequence[ChatEvent]", step)
            case _:
                raise TypeError(f"not a step of a script: {step!r}")

    @staticmethod
    def _say(text: str, request: ChatRequest) -> Iterator[ChatEvent]:
        yield Started()
        if not request.streaming:
            if text:
                yield TextDelta(text)
            return
        pieces = text.split(" ")
        for index, piece in enumerate(pieces):
            if word := piece if index == 0 else f" {piece}":
                yield TextDelta(word)

    def close(self) -> None:
        """Nothing to free."""

    async def aclose(self) -> None:
        """Nothing to free."""

    def __repr__(self) -> str:
        return f"ScriptedProvider({self.name}:{self.model}, {self.calls} calls)"
