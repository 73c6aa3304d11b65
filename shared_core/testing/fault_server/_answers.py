"""What a scripted model says: the words, the tool calls, the usage, and how they are cut into pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CANONICAL = (
    "The café on the corner opens at seven — bring a friend and try the crème brûlée 🍮. "
    "It closes at nine, naïve as that sounds, and the cat 🐈 stays until ten."
)
"""What an ``"ok"`` step answers. Several sentences, with characters of two, three and four UTF-8 bytes."""

_PIECE = re.compile(r"\s*\S+|\s+$")


def words(text: str) -> list[str]:
    """`text` as pieces of one word each, with its leading white space; joined they give `text` again."""
    return _PIECE.findall(text)


def count_words(text: str) -> int:
    return len(text.split())


def first_words(text: str, count: int) -> str:
    """The beginning of `text` up to and including its word number `count`."""
    return "".join(words(text)[:count])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a scripted model makes. `args` given as `str` goes out verbatim, even if it is not JSON."""

    name: str
    args: Mapping[str, Any] | str = field(default_factory=dict)
    id: str | None = None
    """The vendor's call id; made from the request's number when not given."""

    @property
    def arguments(self) -> str:
        return self.args if isinstance(self.args, str) else json.dumps(dict(self.args), ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts in one vocabulary; each wire writes them the vendor's way. `None` means: count the words.

    `prompt_tokens` includes the cached and cache-written ones, `completion_tokens` includes the reasoning ones.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int | None = None


Finish = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer, the same on every wire.

    * `finish`: `"stop"`, `"length"`, `"tool_calls"` or `"content_filter"` in the vendor's word for it; any other string
      goes out verbatim. `None` derives it from the answer and the request's limits.
    * `chunk`: what one streamed event carries: `"word"`, `"char"`, or a number of characters.
    * `delay_s`: seconds before the first content (streamed: after the headers; whole: before them). `every_s`: seconds
      between streamed pieces.
    * `continue_from`: if the text of the conversation's last assistant message is a beginning of `text`, only the rest
      is answered. `overlap_words` then repeats that many of the words already said, `repeat_whole` all of them.
    """

    text: str = CANONICAL
    tool_calls: tuple[ToolCall, ...] | list[ToolCall] = field(default=(), kw_only=True)
    reasoning: str = field(default="", kw_only=True)
    usage: Usage | None = field(default=None, kw_only=True)
    finish: Finish | str | None = field(default=None, kw_only=True)
    chunk: Literal["word", "char"] | int = field(default="word", kw_only=True)
    delay_s: float = field(default=0.0, kw_only=True)
    every_s: float = field(default=0.0, kw_only=True)
    continue_from: bool = field(default=False, kw_only=True)
    overlap_words: int = field(default=0, kw_only=True)
    repeat_whole: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if isinstance(self.chunk, int):
            if self.chunk < 1:
                raise ValueError("Answer(chunk=...) takes 'word', 'char' or a number of characters from 1 up.")
        elif self.chunk not in {"word", "char"}:
            raise ValueError(
                f"Answer(chunk={self.chunk!r}) is unknown. hint: 'word', 'char' or a number of characters."
            )
        if self.delay_s < 0 or self.every_s < 0 or self.overlap_words < 0:
            raise ValueError("Answer: delay_s, every_s and overlap_words cannot be negative.")

    def pieces(self, text: str) -> list[str]:
        """`text` cut into what one streamed event carries."""
        if self.chunk == "word":
            return words(text)
        size = 1 if self.chunk == "char" else int(self.chunk)
        return [text[i : i + size] for i in range(0, len(text), size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """An answer after the request's limits: exactly what the wire has to say."""

    answer: Answer
    text: str
    finish: str
    stop_sequence: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    counted: bool = True
    """Whether the vendor tells the usage at all."""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(self.answer.tool_calls)

    @property
    def reasoning(self) -> str:
        return self.answer.reasoning

    @property
    def text_pieces(self) -> list[str]:
        return self.answer.pieces(self.text)

    @property
    def reasoning_pieces(self) -> list[str]:
        return self.answer.pieces(self.answer.reasoning)


def speak(
    answer: Answer, *, said: str, prefilled: bool, max_tokens: int | None, stop: tuple[str, ...], prompt_tokens: int
) -> Spoken:
    """Apply a request to an answer: continuation, then stop sequences, then the token limit (one word, one token).

    `said` is the conversation's last assistant text, `prefilled` whether the conversation ends with it.
    """
    text = answer.text
    if said and (answer.continue_from or prefilled):
        text = _rest(answer, said)
    finish, stop_sequence = None, None
    cuts = [(at, sequence) for sequence in stop if sequence and (at := text.find(sequence)) >= 0]
    if cuts:
        at, stop_sequence = min(cuts)
        text, finish = text[:at], "stop"
    if max_tokens is not None and count_words(text) > max_tokens:
        text, finish, stop_sequence = first_words(text, max_tokens), "length", None
    if finish is None:
        finish = "tool_calls" if answer.tool_calls else "stop"
    usage = answer.usage or Usage()
    reasoning = count_words(answer.reasoning) if usage.reasoning_tokens is None else usage.reasoning_tokens
    completion = usage.completion_tokens
    if completion is None:
        called = sum(1 + count_words(call.arguments) for call in answer.tool_calls)
        completion = count_words(text) + called + reasoning
    return Spoken(
        answer=answer,
        text=text,
        finish=answer.finish or finish,
        stop_sequence=stop_sequence,
        prompt_tokens=prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
        completion_tokens=completion,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=reasoning,
    )


def _rest(answer: Answer, said: str) -> str:
    """What is left of the answer's text after `said`, or all of it when `said` is not its beginning."""
    if answer.repeat_whole:
        return answer.text
    for start in (said, said.rstrip()):
        if start and answer.text.startswith(start):
            repeated = "".join(words(start)[-answer.overlap_words :]) if answer.overlap_words else ""
            return repeated + answer.text[len(start) :]
    return answer.text
