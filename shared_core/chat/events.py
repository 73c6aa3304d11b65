"""What a provider emits while it answers, and what the caller receives: one small union of events.

A provider yields, in this order and each optional unless marked:

    Started                       the response envelope (an empty first chunk, `message_start`): never visible output
    ReasoningDelta | TextDelta | ToolCallDelta …      content; each of them proves that the target is alive
    Finished                      required: the terminal event. A stream that ends without it is broken.

The router yields to its caller `Started`, `ReasoningDelta`, `TextDelta`, whole `ToolCall`s (never fragments), possibly
one `Restarted` or `Continued`, and one last `Finished` that carries usage and the `fallback` metadata.
A whole (not streamed) answer arrives as the same events, all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shared_core.chat.quick import quickly
from shared_core.chat.request import Message, Origin, Part, Reasoning, Text, ToolCall

__all__ = [
    "Answer",
    "ChatEvent",
    "Continued",
    "FinishReason",
    "Finished",
    "ReasoningDelta",
    "Restarted",
    "Started",
    "TextDelta",
    "ToolCallDelta",
    "Usage",
    "collect",
    "events_of",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "other"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt or one answer. Sub-counts are parts of their totals, as in OpenAI's own usage."""

    input_tokens: int = 0
    """All input tokens, cached ones included."""
    output_tokens: int = 0
    """All output tokens, reasoning included."""
    cached_tokens: int = 0
    """Of the input, read from the provider's prompt cache."""
    cache_write_tokens: int = 0
    """Of the input, written to the provider's prompt cache."""
    reasoning_tokens: int = 0
    """Of the output, spent thinking."""
    estimated: bool = False
    """True when the provider reported nothing and these are our own count."""

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Started:
    """The provider began to answer. Role-only and empty frames end here; it commits to nothing."""

    response_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More visible text. Providers never yield an empty one."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More thinking. `data` holds the vendor's opaque block (signature, id) when it is complete."""

    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A fragment of a tool call. Fragments with the same `index` belong together; `arguments` is appended.

    The router keeps fragments to itself and delivers `ToolCall`s once the stream has finished properly.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Continued:
    """From here on another target goes on with the answer (`on_stream_break='continue'`). `at` is in characters."""

    target: str
    at: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """Forget the text so far: another target answers from the start (`on_stream_break='restart'`)."""

    target: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal event: why the answer ended and what it used."""

    reason: FinishReason = "stop"
    raw_reason: str | None = None
    """The vendor's own word."""
    usage: Usage | None = None
    response_id: str | None = None
    model: str | None = None
    """The model that answered, in the vendor's own words (may be a dated snapshot)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further vendor facts worth keeping: system fingerprint, service tier, safety ratings, citations."""
    native: Any = field(default=None, repr=False, compare=False)
    """The framework's own whole message, from a wrapped framework model."""
    provider: str | None = None
    target: str | None = None
    fallback: Mapping[str, Any] = field(default_factory=dict)
    """Set by the router: who served, attempts, errors, cost."""
    origin: Origin | None = None
    """Set by the router: the scope within which this answer's opaque blocks may be replayed."""


ChatEvent = Started | TextDelta | ReasoningDelta | ToolCallDelta | ToolCall | Continued | Restarted | Finished


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: tuple[Reasoning, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    model: str | None = None
    provider: str | None = None
    target: str | None = None
    response_id: str | None = None
    raw_finish_reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    native: Any = field(default=None, repr=False, compare=False)
    fallback: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    def message(self) -> Message:
        """This answer as the assistant turn of a conversation to go on with."""
        parts: list[Part] = [*self.reasoning]
        if self.text:
            parts.append(Text(self.text))
        parts += self.tool_calls
        return Message("assistant", tuple(parts), origin=self.origin)

    def __str__(self) -> str:
        return self.text


_answer = quickly(Answer)  # one with every request


class ToolCallAssembler:
    """Joins `ToolCallDelta`s into `ToolCall`s, in index order. Missing ids are minted from `prefix` and the index."""

    def __init__(self, prefix: str = "call") -> None:
        self._prefix = prefix
        self._calls: dict[int, ToolCall] = {}

    def feed(self, delta: ToolCallDelta) -> None:
        """Append one fragment."""
        old = self._calls.get(delta.index)
        if old is None:
            self._calls[delta.index] = ToolCall(delta.id or "", delta.name or "", delta.arguments, delta.data)
            return
        data = {**old.data, **delta.data} if delta.data else old.data
        self._calls[delta.index] = ToolCall(
            delta.id or old.id, delta.name or old.name, old.arguments + delta.arguments, data
        )

    def add(self, call: ToolCall) -> None:
        """Take a whole call, after all others."""
        self._calls[max(self._calls, default=-1) + 1] = call

    def calls(self) -> tuple[ToolCall, ...]:
        """What has been assembled. Empty arguments read as an empty object."""
        return tuple(
            ToolCall(c.id or f"{self._prefix}_{index}", c.name, c.arguments.strip() or "{}", c.data)
            for index, c in sorted(self._calls.items())
        )

    def __bool__(self) -> bool:
        return bool(self._calls)


def collect(events: Iterable[ChatEvent]) -> Answer:
    """Fold events into the whole answer.

    Raises:
        ValueError: the events end without `Finished`, so the answer is not whole.
    """
    text: list[str] = []
    thoughts: list[str] = []
    blocks: list[Reasoning] = []
    calls: list[ToolCall] = []
    fragments: ToolCallAssembler | None = None
    started: Started | None = None
    finished: Finished | None = None
    for event in events:
        match event:
            case TextDelta():
                text.append(event.text)
            case ReasoningDelta():
                thoughts.append(event.text)
                if event.data:
                    blocks.append(Reasoning("".join(thoughts), event.data))
                    thoughts.clear()
            case Started():
                started = started or event
            case ToolCallDelta():
                if fragments is None:
                    fragments = ToolCallAssembler()
                fragments.feed(event)
            case ToolCall():
                calls.append(event)
            case Restarted():
                text.clear()
                thoughts.clear()
                blocks.clear()
                calls.clear()
                fragments = None
            case Finished():
                finished = event
            case Continued():
                continue
    if finished is None:
        raise ValueError("the events end without Finished: the answer is not whole")
    if thoughts and "".join(thoughts):
        blocks.append(Reasoning("".join(thoughts)))
    return _answer(
        text="".join(text),
        tool_calls=tuple(calls) if fragments is None else (*calls, *fragments.calls()),
        reasoning=tuple(blocks),
        finish_reason=finished.reason,
        usage=finished.usage or Usage(),
        model=finished.model or (started.model if started else None),
        provider=finished.provider,
        target=finished.target,
        response_id=finished.response_id or (started.response_id if started else None),
        raw_finish_reason=finished.raw_reason,
        extra=finished.extra,
        native=finished.native,
        fallback=finished.fallback,
        origin=finished.origin,
    )


def events_of(answer: Answer) -> Sequence[ChatEvent]:
    """The events that `collect` would fold into `answer`: a whole answer, replayed."""
    events: list[ChatEvent] = [Started(answer.response_id, answer.model)]
    events += [ReasoningDelta(r.text, r.data) for r in answer.reasoning]
    if answer.text:
        events.append(TextDelta(answer.text))
    events += answer.tool_calls
    events.append(
        Finished(
            answer.finish_reason,
            answer.raw_finish_reason,
            answer.usage,
            answer.response_id,
            answer.model,
            answer.extra,
            answer.native,
            answer.provider,
            answer.target,
            answer.fallback,
            answer.origin,
        )
    )
    return events
