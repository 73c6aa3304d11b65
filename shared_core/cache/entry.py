"""An answer as it is kept: `Kept`, how it is written, and what of a finished answer may be kept at all.

Written entries carry a checksum over their key and their content. One that was cut short, altered, or put under
another key cannot be read: `read` says so, and the cache takes it for a miss and removes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from shared_core.chat.events import (
    Answer,
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    Restarted,
    Started,
    TextDelta,
    Usage,
)
from shared_core.chat.quick import quickly
from shared_core.chat.request import Origin, Reasoning, ToolCall

__all__ = ["Kept", "Poisoned", "events_of_kept", "pieces_of", "read", "write"]

_MAGIC: Final = b"lfc1"
_SUM: Final = 16
_HEAD: Final = len(_MAGIC) + _SUM + 1


class Poisoned(Exception):  # a finding, not a failure: it never leaves this package
    """The entry is not what was written under this key."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole answer, with what is needed to show it again in the pieces it came in. `at` is seconds on the clock of
    its store; `cost_nano` what it cost when it was given, None when nobody knows.
    """

    text: str
    pieces: tuple[int, ...] = ()
    """Lengths of the pieces that the text came in; empty where it came in one."""
    reasoning: tuple[Reasoning, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reason: FinishReason = "stop"
    raw_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    response_id: str | None = None
    model: str | None = None
    provider: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    cost_nano: int | None = None

    @classmethod
    def of(cls, answer: Answer, pieces: tuple[int, ...] = (), cost_nano: int | None = None) -> Kept:
        """What is kept of `answer`."""
        return _kept(
            answer.text,
            pieces,
            answer.reasoning,
            answer.tool_calls,
            answer.finish_reason,
            answer.raw_finish_reason,
            answer.usage,
            answer.response_id,
            answer.model,
            answer.provider,
            answer.extra,
            answer.origin,
            cost_nano,
        )

    def answer(self, target: str, fallback: Mapping[str, Any]) -> Answer:
        """The whole answer, as `target` gave it."""
        return _answer(
            self.text,
            self.tool_calls,
            self.reasoning,
            self.reason,
            self.usage,
            self.model,
            self.provider,
            target,
            self.response_id,
            self.raw_reason,
            self.extra,
            None,
            fallback,
            self.origin,
        )

    def finished(self, target: str | None, fallback: Mapping[str, Any]) -> Finished:
        """Its last event."""
        return Finished(
            self.reason,
            self.raw_reason,
            self.usage,
            self.response_id,
            self.model,
            self.extra,
            None,
            self.provider,
            target,
            fallback,
            self.origin,
        )


_kept, _answer = quickly(Kept), quickly(Answer)
_encoded = json.JSONEncoder(separators=(",", ":")).encode


def events_of_kept(kept: Kept, last: Finished, *, chunk: int | None = None, whole: bool = False) -> Iterator[ChatEvent]:
    """What a caller receives of `kept`, up to `last`.

    Args:
        kept: the answer.
        last: its last event.
        chunk: characters per piece of text; None for the pieces it was given in, and for one that was given whole,
            word by word.
        whole: all of its text at once.
    """
    yield Started(kept.response_id, kept.model)
    for thought in kept.reasoning:
        yield ReasoningDelta(thought.text, thought.data)
    text = kept.text
    if text and (whole or (chunk is None and len(kept.pieces) == 1)):
        yield TextDelta(text)
    elif text:
        at = 0
        for length in kept.pieces if chunk is None and kept.pieces else _lengths(text, chunk):
            yield TextDelta(text[at : at + length])
            at += length
    yield from kept.tool_calls
    yield last


def _lengths(text: str, chunk: int | None) -> Iterator[int]:
    if chunk is not None:
        full, rest = divmod(len(text), chunk)
        yield from (chunk,) * full
        if rest:
            yield rest
        return
    starts = [i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()]
    yield from (b - a for a, b in pairwise([0, *starts, len(text)]))


def pieces_of(events: Iterable[ChatEvent]) -> tuple[int, ...]:
    """Lengths of the pieces that an answer's text came in; nothing where it came in one."""
    lengths: list[int] = []
    for event in events:
        if type(event) is TextDelta:
            lengths.append(len(event.text))
        elif type(event) is Restarted:
            lengths.clear()
    return tuple(lengths) if len(lengths) > 1 else ()


# ── as bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(key: bytes, kept: Kept, compress_over: int) -> bytes:
    """`kept` as bytes that can be read under `key` and no other; longer ones than `compress_over` bytes compressed.

    Raises:
        TypeError, ValueError: something in it is no plain data.
    """
    usage, origin = kept.usage, kept.origin
    told = [
        kept.text,
        kept.pieces,
        [[r.text, _plain(r.data)] for r in kept.reasoning] if kept.reasoning else (),
        [[c.id, c.name, c.arguments, _plain(c.data)] for c in kept.tool_calls] if kept.tool_calls else (),
        kept.reason,
        kept.raw_reason,
        [
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
            usage.estimated,
        ],
        kept.response_id,
        kept.model,
        kept.provider,
        _plain(kept.extra),
        None if origin is None else [origin.provider, origin.model, origin.endpoint],
        kept.cost_nano,
    ]
    body = _encoded(told).encode("ascii")
    if len(body) > compress_over:
        body = b"z" + zlib.compress(body, 1)
    else:
        body = b"-" + body
    return b"".join((_MAGIC, _sum(key, body), body))


def read(key: bytes, written: bytes) -> Kept:
    """What `write` wrote under this key.

    Raises:
        Poisoned: it is something else.
    """
    body = written[_HEAD - 1 :]
    if written[: len(_MAGIC)] != _MAGIC or _sum(key, body) != written[len(_MAGIC) : _HEAD - 1]:
        raise Poisoned("it is not what was written under this key")
    try:
        told = json.loads((zlib.decompress(body[1:]) if body[:1] == b"z" else body[1:]).decode("ascii"))
        text, pieces, reasoning, calls, reason, raw, usage, response, model, provider, extra, origin, cost = told
        if type(text) is not str or (pieces and sum(pieces) != len(text)):
            raise ValueError("its pieces are not those of its text")
        return _kept(
            text,
            tuple(pieces),
            tuple([Reasoning(t, _revived(d)) for t, d in reasoning]) if reasoning else (),
            tuple([ToolCall(i, n, a, _revived(d)) for i, n, a, d in calls]) if calls else (),
            reason,
            raw,
            Usage(*usage),
            response,
            model,
            provider,
            _revived(extra) if extra else {},
            None if origin is None else Origin(*origin),
            cost,
        )
    except (ValueError, TypeError, zlib.error) as error:
        # The sum is right, so another version of this package wrote it: what it says is not for us.
        raise Poisoned(f"it was written by another version: {error}") from error


def _sum(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM, key=key[:64]).digest()


_BYTES: Final = "\0bytes"


def _plain(value: Any) -> Any:
    """`value` as JSON that is read back as it was, bytes included (a vendor's signatures are)."""
    if type(value) is dict and not value:
        return None
    return _told(value)


def _told(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        if not all(type(name) is str and name != _BYTES for name in value):
            raise TypeError("a mapping whose names are not plain texts")
        return {name: _told(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_told(item) for item in value]
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _revived(value: Any) -> Any:
    if value is None:
        return {}
    return _read(value)


def _read(value: Any) -> Any:
    if type(value) is dict:
        if len(value) == 1 and _BYTES in value:
            return base64.b64decode(value[_BYTES])
        return {name: _read(item) for name, item in value.items()}
    return [_read(item) for item in value] if type(value) is list else value
