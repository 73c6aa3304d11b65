"""Answers in a schema from models that have no means of their own: by a tool of that shape, or because they are asked.

Some models take a schema or tools but not both in one request, others take no schema at all.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shared_core.chat.events import ChatEvent, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from shared_core.chat.request import ChatRequest, OutputSchema, Text, ToolCall, ToolSpec, user
from shared_core.chat.through import athrough, through

__all__ = ["ANSWER_TOOL", "Unusual", "adelivered", "answer_tool", "asked", "delivered", "in_words", "with_answer_tool"]

ANSWER_TOOL = "answer_in_schema"
"""The tool whose arguments are the answer's text."""

Unusual = Literal["tool", "words"]
"""How a model without a JSON schema of its own is made to answer in one."""


def answer_tool(output: OutputSchema) -> ToolSpec:
    """The tool to be called with an answer in the shape of `output`; any object at all where that has no schema."""
    schema = dict(output.schema) or {"type": "object", "additionalProperties": True}
    return ToolSpec(ANSWER_TOOL, "Give the final answer in this shape.", schema)


def with_answer_tool(request: ChatRequest, *, by_name: bool = False) -> ChatRequest:
    """`request` with its schema as one more tool, of which, or of the others, the model must call one.

    `by_name` is for models that can be made to call a certain tool, but not just any.
    """
    assert request.output is not None
    tools = request.tools if request.tool_choice != "none" else ()
    forced = ANSWER_TOOL if by_name and not tools else "any"
    named = request.tool_choice if request.tool_choice in {tool.name for tool in tools} else forced
    return request.replace(tools=(*tools, answer_tool(request.output)), tool_choice=named, output=None)


def asked(schema: Mapping[str, Any]) -> str:
    """What to say to a model that can only be asked: the word JSON is in it, which some JSON modes insist on."""
    what = f"fits this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}" if schema else "answers this"
    return f"Answer with one JSON object, and nothing else, that {what}"


def in_words(request: ChatRequest, *, json_mode: bool) -> ChatRequest:
    """`request` with its last turn asking for JSON. `json_mode`: the model can be held to some JSON or other."""
    assert request.output is not None
    messages, said = request.messages, Text(asked(request.output.schema))
    if messages and messages[-1].role == "user":
        last = messages[-1]
        parts = (*last.parts, Text("\n\n"), said) if last.parts else (said,)
        messages = (*messages[:-1], replace(last, parts=parts))
    else:
        messages = (*messages, user(said.text))
    # The framework's own messages do not say it, so they stay behind.
    return request.replace(messages=messages, native=None, output=OutputSchema() if json_mode else None)


class _Told:
    """The events of such an answer as those of a text in the schema: it is fed events, and returns what to pass on."""

    __slots__ = ("_calls", "_object", "_others", "_said", "_way")

    def __init__(self, way: Unusual) -> None:
        self._way = way
        self._calls: set[int] = set()
        self._others = False
        self._said = ""
        self._object = _FirstObject()

    def feed(self, event: ChatEvent) -> Sequence[ChatEvent]:
        match event:
            case TextDelta():
                self._said += event.text
                inner = self._object.feed(event.text) if self._way == "words" else ""
                return (TextDelta(inner),) if inner else (ReasoningDelta(),)  # at least it is a sign of life
            case ToolCallDelta():
                if event.name == ANSWER_TOOL:
                    self._calls.add(event.index)
                if event.index in self._calls:
                    return (TextDelta(event.arguments),) if event.arguments else (ReasoningDelta(),)
                self._others = True
            case ToolCall():
                if event.name == ANSWER_TOOL:
                    self._calls.add(-1)
                    return (TextDelta(event.arguments),)
                self._others = True
            case Finished():
                return self._end(event)
        return (event,)

    def _end(self, finished: Finished) -> Sequence[ChatEvent]:
        if self._calls and not self._others and finished.reason == "tool_calls":
            finished = replace(finished, reason="stop")
        # What is said beside the call is not the answer; where there is no call, or no object, it is all there is.
        left = "" if self._calls or self._object.found else self._said
        return (TextDelta(left), finished) if left else (finished,)


class _FirstObject:
    """The first JSON object in a growing text, without the words or the fence that models put around it."""

    __slots__ = ("_depth", "_escaped", "_quoted", "found")

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False
        self.found = False

    def feed(self, text: str) -> str:
        """The part of `text` that belongs to it."""
        if self.found and not self._depth:
            return ""
        begin = 0 if self.found else text.find("{")
        if begin < 0:
            return ""
        self.found = True
        for at in range(begin, len(text)):
            letter = text[at]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return text[begin : at + 1]
        return text[begin:]


def delivered(events: Iterator[ChatEvent], way: Unusual) -> Generator[ChatEvent, None, None]:
    """`events`, in which the schema was asked for in an unusual way, as if it had been the usual one."""
    return through(events, _Told(way).feed)


def adelivered(events: AsyncIterator[ChatEvent], way: Unusual) -> AsyncGenerator[ChatEvent, None]:
    """`delivered`, async."""
    return athrough(events, _Told(way).feed)
