"""Reads a wrapped LLM's responses, whole or streamed, as events: what is new in each, and how it all ended."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Final

from llama_index.core.base.llms.types import ChatResponse, TextBlock, ThinkingBlock, ToolCallBlock
from pydantic import BaseModel

from llamaindex_fallback._convert import arguments_text, legacy_calls, peek
from shared_core.chat.events import (
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from shared_core.errors import ErrorKind, ProviderError

_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "recitation": "content_filter",
    "refusal": "refusal",
}
_REASON_KEYS: Final = ("finish_reason", "stop_reason", "done_reason")


class Reader:
    """Turns the responses of one call into events. LlamaIndex's `message` is cumulative, its `delta` is what is new.

    An integration reports a stream that was cut as one that ended. So where the vendor's chunks have a place for a
    finish reason, a stream without one is broken.
    """

    __slots__ = (
        "_answer_tool", "_calls", "_id", "_last", "_may_be_empty", "_model", "_names", "_reason", "_tells", "_text",
        "_thought", "_usage",
    )  # fmt: skip

    def __init__(
        self,
        tool_names: Mapping[str, str],
        answer_tool: str | None = None,
        *,
        tells_end: bool = False,
        may_be_empty: bool = True,
    ) -> None:
        """`tool_names` gives the request's names for the names on the wire.

        A call of `answer_tool` is no call: its arguments are the text of the answer, which was asked for in a schema.
        `tells_end` says beforehand that these streams always have a finish reason; `may_be_empty`, that an answer
        without anything in it is one.
        """
        self._names = tool_names
        self._answer_tool = answer_tool
        self._may_be_empty = may_be_empty
        self._last: ChatResponse | None = None
        self._text = ""
        self._thought = ""
        self._calls: list[tuple[str, str, str]] = []
        self._tells = tells_end  # whether its chunks have a place for a finish reason
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._id: str | None = None
        self._model: str | None = None

    def whole(self, response: ChatResponse) -> list[ChatEvent]:
        """A whole answer."""
        self._last = response
        self._facts(response)
        self._tells = False  # it arrived whole, whatever its raw answer says
        events: list[ChatEvent] = [Started(self._id, self._model)]
        for block in response.message.blocks:
            if isinstance(block, TextBlock):
                if block.text:
                    events.append(TextDelta(block.text))
            elif isinstance(block, ThinkingBlock):
                events.append(ReasoningDelta(block.content or "", _opaque(block)))
        return events + self._ended()

    def feed(self, response: ChatResponse) -> Collection[ChatEvent]:
        """The next response of a stream."""
        first, self._last = self._last is None, response
        message = response.message
        blocks = message.blocks
        plain = not blocks or (len(blocks) == 1 and type(blocks[0]) is TextBlock)
        if response.raw is not None or response.additional_kwargs:
            self._facts(response)
        elif plain and not first and not message.additional_kwargs and (piece := response.delta):
            self._text += piece
            return (TextDelta(piece),)  # what most of a stream is, where an integration hands over no more
        events: list[ChatEvent] = [Started(self._id, self._model)] if first else []
        if response.additional_kwargs or message.additional_kwargs or not plain:
            thought = self._new_thought(response)
            if thought:
                self._thought += thought
                events.append(ReasoningDelta(thought))
        text = response.delta
        if text is None:
            content = message.content or ""
            text = content.removeprefix(self._text) if content.startswith(self._text) else ""
        if text:
            self._text += text
            events.append(TextDelta(text))
        if message.additional_kwargs or not plain:
            calls = list(_calls_of(response))
            if calls != self._calls:
                self._calls = calls
                events.append(self._sign_of_life(len(calls) - 1))
        return events

    def _sign_of_life(self, index: int) -> ChatEvent:
        """A call grows; its arguments follow whole."""
        return ToolCallDelta(index) if self._answer_tool is None else ReasoningDelta()

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return self._last is not None

    @property
    def ended(self) -> bool:
        """Whether the vendor has said why it ended: what goes wrong from then on takes nothing from the answer."""
        return self._reason is not None

    def note(self, raw: Any) -> None:
        """What the SDK has read last, where the integration may have kept it for itself."""
        if raw is not None:
            self._told(raw)

    def finish(self) -> list[ChatEvent]:
        """The stream has ended.

        Raises:
            ProviderError: kind STREAM_CUT; it was not the end.
        """
        if self._last is None:
            raise ProviderError.of(ErrorKind.STREAM_CUT, "the stream ended before it began")
        thoughts = [_opaque(block) for block in self._last.message.blocks if isinstance(block, ThinkingBlock)]
        return [ReasoningDelta("", data) for data in thoughts if data] + self._ended()

    def _ended(self) -> list[ChatEvent]:
        assert self._last is not None  # both callers have fed at least one response
        if self._tells and self._reason is None:
            raise ProviderError.of(ErrorKind.STREAM_CUT, "the stream ended without a finish reason")
        index = 0
        events: list[ChatEvent] = []
        signed = _signatures(self._last)
        for at, (id_, name, arguments) in enumerate(_calls_of(self._last)):
            if name == self._answer_tool:
                events.append(TextDelta(arguments))  # checked like any text in a schema, if somebody wants it checked
                continue
            _check(name, arguments)
            data = {"thought_signature": signed[at]} if at in signed else {}
            # LlamaIndex's Gemini class takes the name where there is no id: two calls of one tool would share it.
            unique = id_ if id_ and id_ != name else None
            events.append(ToolCallDelta(index, unique, self._names.get(name, name), arguments, data))
            index += 1
        if not (self._may_be_empty or events or self._last.message.blocks or self._text):
            raise ProviderError.of(ErrorKind.MALFORMED, "the answer is empty")
        reason = _REASONS.get((self._reason or "stop").lower(), "other")
        if index and reason == "stop":
            reason = "tool_calls"
        elif not index and reason == "tool_calls":
            reason = "stop"
        events.append(Finished(reason, self._reason, self._usage, self._id, self._model, native=self._last))
        return events

    def _new_thought(self, response: ChatResponse) -> str:
        for told in (response.additional_kwargs, response.message.additional_kwargs):
            if isinstance(thought := told.get("thinking_delta"), str):
                return thought
        so_far = "".join(block.content or "" for block in response.message.blocks if isinstance(block, ThinkingBlock))
        return so_far.removeprefix(self._thought) if so_far.startswith(self._thought) else ""

    def _facts(self, response: ChatResponse) -> None:
        raw = response.raw
        if raw is not None:
            self._told(raw, response.additional_kwargs)
        elif response.additional_kwargs and (usage := _usage(response.additional_kwargs)) is not None:
            self._used(usage)

    def _told(self, raw: Any, besides: Mapping[str, Any] = MappingProxyType({})) -> None:
        reason, told = _finish_reason(raw)
        self._reason = reason or self._reason
        self._tells = self._tells or told
        if self._id is None and isinstance(value := _get(raw, "id") or _get(raw, "response_id"), str):
            self._id = value
        if self._model is None and isinstance(value := _get(raw, "model") or _get(raw, "model_version"), str):
            self._model = value
        if (usage := _usage(_usage_in(raw) or besides)) is not None:
            self._used(usage)

    def _used(self, usage: Usage) -> None:
        self._usage = usage if self._usage is None else _larger(self._usage, usage)


def _calls_of(response: ChatResponse) -> Iterator[tuple[str, str, str]]:
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    for block in blocks:
        # Not repaired: what a cut stream left unfinished must not pass for a call.
        arguments = block.tool_kwargs if isinstance(block.tool_kwargs, str) else arguments_text(block.tool_kwargs)
        yield block.tool_call_id or "", block.tool_name, arguments
    if not blocks:
        yield from legacy_calls(response.message)


def _opaque(block: ThinkingBlock) -> dict[str, Any]:
    """What its vendor wants back with a thought, as JSON: Google's is bytes, among much that is not said."""
    told = block.additional_information
    known = {key: told[key] for key in told if key != "thought" and told[key] not in (None, "")}
    return {key: _text_of(value) if isinstance(value, bytes) else value for key, value in known.items()}


def _signatures(response: ChatResponse) -> dict[int, str]:
    """Google's signatures of calls, by the call's place among them: LlamaIndex keeps them by the place of the block."""
    told = response.message.additional_kwargs.get("thought_signatures")
    if not told:
        return {}
    places = [at for at, block in enumerate(response.message.blocks) if isinstance(block, ToolCallBlock)]
    signed = ((number, told[at]) for number, at in enumerate(places) if at < len(told) and told[at])
    return {number: _text_of(value) for number, value in signed}


def _text_of(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _check(name: str, arguments: str) -> None:
    try:
        value = json.loads(arguments.strip() or "{}")
    except json.JSONDecodeError as error:
        said = f"tool call {name!r} has arguments that are not JSON: {error}"
        raise ProviderError.of(ErrorKind.MALFORMED, said) from error
    if not isinstance(value, dict):
        raise ProviderError.of(ErrorKind.MALFORMED, f"tool call {name!r} has arguments that are not a JSON object")


# ── what a vendor's own chunk tells ──────────────────────────────────────────────────────────────────────────────────

_fields_of: dict[type, frozenset[str] | None] = {}


def _has(thing: Any, key: str) -> bool:
    if isinstance(thing, Mapping):
        return key in thing
    known = _known(type(thing))
    return hasattr(thing, key) if known is None else key in known


def _get(thing: Any, key: str) -> Any:
    """`thing[key]` of a mapping, `thing.key` of an object, None where there is neither.

    SDKs' objects are asked for their own fields alone: pydantic takes longer to say that it has not got something than
    all the rest of a chunk does.
    """
    kind = type(thing)
    if kind is dict:
        return thing.get(key)
    known = _fields_of[kind] if kind in _fields_of else _known(kind)
    if known is not None:
        return getattr(thing, key, None) if key in known else None
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)


def _known(kind: type) -> frozenset[str] | None:
    """The fields of an SDK's class; None where an instance may have any."""
    if kind not in _fields_of:
        _fields_of[kind] = frozenset(kind.model_fields) if issubclass(kind, BaseModel) else None
    return _fields_of[kind]


def _finish_reason(raw: Any) -> tuple[str | None, bool]:
    """The vendor's word for the end, and whether `raw` has a place for one, over OpenAI's, Anthropic's and Google's."""
    places = [raw]
    for key in ("choices", "candidates"):
        choices = _get(raw, key)
        if isinstance(choices, (list, tuple)):
            if not choices and key == "choices":
                return None, True  # OpenAI's last chunk, with the usage
            places += choices[:1]
    for key in ("delta", "message"):
        if (inner := _get(raw, key)) is not None:
            places.append(inner)
    told = False
    for place in places:
        for key in _REASON_KEYS:
            if _has(place, key):
                told = True
                if (value := _get(place, key)) is not None:
                    return str(getattr(value, "value", value)), True
    return None, told


def _larger(a: Usage, b: Usage) -> Usage:
    """Anthropic tells the input first and the output last; everybody's figures only grow."""
    return Usage(*(max(getattr(a, f.name), getattr(b, f.name)) for f in fields(Usage)))


def usage_of(response: ChatResponse) -> Usage | None:
    """The tokens an integration reports, wherever it keeps them; None when it reports none."""
    return _usage(_usage_in(response.raw) or response.additional_kwargs)


def _usage_in(raw: Any) -> Any:
    return _get(raw, "usage") or _get(raw, "usage_metadata") or _get(_get(raw, "message"), "usage")


def _usage(told: Any) -> Usage | None:
    if not told:
        return None

    def number(*keys: str) -> int:
        return next((value for key in keys if isinstance(value := peek(told, key), int)), 0)

    taken = number("prompt_tokens", "input_tokens", "prompt_token_count", "prompt_eval_count")
    given = number("completion_tokens", "output_tokens", "candidates_token_count", "eval_count")
    if not taken and not given:
        return None
    thoughts = number("thoughts_token_count")
    read, written = number("cache_read_input_tokens"), number("cache_creation_input_tokens")
    details = peek(told, "prompt_tokens_details")
    cached = peek(details, "cached_tokens") or number("cached_content_token_count")
    reasoning = peek(peek(told, "completion_tokens_details"), "reasoning_tokens") or thoughts
    return Usage(
        input_tokens=taken + read + written,  # Anthropic counts its cache apart
        output_tokens=given + thoughts,  # Google counts its thoughts apart
        cached_tokens=cached or read,
        cache_write_tokens=written,
        reasoning_tokens=reasoning or 0,
    )
