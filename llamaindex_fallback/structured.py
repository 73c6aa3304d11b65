"""Answers in a shape: how `structured_predict` and its kin ask for one, check it, and let it grow in a stream.

The check runs inside the router, on the whole answer of one target: an answer that does not validate is put back to its
target once, with what is wrong, and then the next target is asked. So it works the same for every way of asking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ToolCallBlock
from llama_index.core.output_parsers.utils import extract_json_str
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from llamaindex_fallback._asking import Way, instructed
from llamaindex_fallback._convert import arguments_text
from llamaindex_fallback._request import Checked, CheckedTools, schema_name
from llamaindex_fallback.errors import StructuredOutputFailed
from shared_core.chat.events import Answer
from shared_core.chat.schema_check import CUT_OFF, complaint
from shared_core.errors import ErrorKind, InvalidOutput, ProviderError
from shared_core.routing.capabilities import Capabilities

__all__ = ["CalledCheck", "Grown", "Shape", "way_for"]

M = TypeVar("M", bound=BaseModel)

_LONGEST = 2_000  # characters of an answer that an error shows


def way_for(mode: PydanticProgramMode) -> Way:
    """How to ask for a shape: in each target's own way, unless LlamaIndex's setting insists on a call or on text."""
    match mode:
        case PydanticProgramMode.FUNCTION:
            return "tool"
        case PydanticProgramMode.LLM:
            return "words"
        case _:
            return "schema"


@lru_cache(maxsize=256)
def _schema_of(cls: type[BaseModel]) -> tuple[dict[str, Any], str]:
    schema = cls.model_json_schema()
    return schema, schema_name(schema, cls.__name__)


@lru_cache(maxsize=256)
def _flexible(cls: type[BaseModel]) -> type[BaseModel]:
    from llama_index.core.program.utils import create_flexible_model

    return create_flexible_model(cls)


class Shape(Generic[M]):
    """One structured prediction: what to ask, what its answer must pass (it is an `AnswerCheck`), what it amounts to.

    Args:
        cls: the pydantic class to fill.
        way: how it is asked for.
        able: what every enabled target can take.
    """

    def __init__(self, cls: type[M], way: Way, able: Capabilities) -> None:
        self._cls = cls
        self._way = way
        self._by_name = "tool" in able.tool_choice

    def asked(self, messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], dict[str, Any]]:
        """The conversation, and the keywords of the chat call. They are shown in events, so they are plain data."""
        schema, name = _schema_of(self._cls)
        if self._way == "schema":
            wanted = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
            return messages, {"response_format": Checked(wanted, self)}
        if self._way == "tool":
            function = {"name": name, "description": schema.get("description") or "", "parameters": schema}
            tools = CheckedTools([{"type": "function", "function": function}], self)
            choice = name if self._by_name else "any"
            return messages, {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        return instructed(messages, schema), {"check": self}

    def __call__(self, answer: Answer) -> str | None:
        """What is wrong with `answer`, in words for the model; None when it fills the class."""
        arguments = answer.tool_calls[0].arguments if answer.tool_calls else None
        if arguments is None and not answer.text.strip():
            return "the tool was not called" if self._way == "tool" else "it is empty"
        try:
            self._read(answer.text if arguments is None else arguments)
        except ValueError as error:
            return CUT_OFF if answer.finish_reason == "length" else complaint(error)
        return None

    def __repr__(self) -> str:
        return f"Shape({self._cls.__name__}, by {self._way})"

    def parsed(self, response: ChatResponse) -> M:
        """What `response` amounts to.

        Raises:
            StructuredOutputFailed: nothing. Refusals are let through by the router, and end here.
        """
        text = _written(response)
        try:
            return self._read(text)
        except ValueError as error:
            facts = response.additional_kwargs.get("fallback") or {}
            reason = response.raw.get("finish_reason") if isinstance(response.raw, Mapping) else None
            what = "refused" if reason in ("refusal", "content_filter") else "is not what was asked for"
            fault = ProviderError.of(
                ErrorKind.INVALID_OUTPUT, f"the answer {what}: {text[:_LONGEST]}", target=facts.get("target")
            )
            assert isinstance(fault, InvalidOutput)
            fault.answer = Answer(text, finish_reason=reason or "other")
            failed = StructuredOutputFailed(f"no {self._cls.__name__}: {fault}", [fault], fallback=facts)
            failed.__cause__ = fault
            raise failed from error

    def grown(self, *, checked: bool) -> Grown[M]:
        """The object as it grows in a stream; `checked` says that nothing of it comes before all of it has passed."""
        return Grown(self, checked=checked)

    def steps(self, response: ChatResponse) -> Iterator[M | BaseModel]:
        """What `response` amounts to, as it grows: member by member, and lists item by item; whole at the end."""
        whole = self.parsed(response)
        for part in _steps(_object_in(_written(response))):
            yield self.partial(part)
        yield whole

    def partial(self, part: dict[str, Any]) -> M | BaseModel:
        """An object of some members. Like LlamaIndex's own, one that is not yet valid is of a class that allows it."""
        try:
            return self._cls.model_validate(part)
        except ValidationError:
            return _flexible(self._cls).model_validate(part)

    def _read(self, text: str) -> M:
        try:
            return self._cls.model_validate_json(text)
        except ValidationError as error:
            # Models that were only asked put words, or a fence, around it.
            inner = extract_json_str(text) if "{" in text and "}" in text else text
            if inner == text:
                raise
            try:
                return self._cls.model_validate_json(inner)
            except ValidationError as closer:
                raise closer from error


class Grown(Generic[M]):
    """The objects of one stream: never a blank one, and the last is the whole."""

    def __init__(self, shape: Shape[M], *, checked: bool) -> None:
        self._shape = shape
        self._checked = checked
        self._last: ChatResponse | None = None
        self._shown: dict[str, Any] = {}

    def feed(self, response: ChatResponse) -> Iterator[M | BaseModel]:
        """What to show after the next response: nothing yet, where answers are checked."""
        self._last = response
        if not self._checked and (part := _begun(_written(response))) and part != self._shown:
            self._shown = part
            yield self._shape.partial(part)

    def finish(self) -> Iterator[M | BaseModel]:
        """What to show at the end.

        Raises:
            StructuredOutputFailed: the stream came to nothing.
        """
        assert self._last is not None  # every stream ends with a response
        if self._checked:
            yield from self._shape.steps(self._last)
            return
        try:
            whole = self._shape.parsed(self._last)
        except StructuredOutputFailed:
            if not self._shown:
                raise
            return  # who wants no checks takes what came
        if _object_in(_written(self._last)) != self._shown:
            yield whole


class CalledCheck:
    """An `AnswerCheck` for a forced choice: some tool was called, with arguments that its own model of them takes.

    `models` are the tools' pydantic classes by name; a tool without one takes any object.
    """

    def __init__(self, models: Mapping[str, type[BaseModel] | None]) -> None:
        self._models = models

    def __call__(self, answer: Answer) -> str | None:
        """What is wrong with `answer`, in words for the model; None when it calls a tool rightly."""
        if not answer.tool_calls:
            return CUT_OFF if answer.finish_reason == "length" else "no tool was called"
        for call in answer.tool_calls:
            try:
                arguments = call.parsed()
                model = self._models.get(call.name)
                if model is not None:
                    model.model_validate(arguments)
            except ValueError as error:
                return f"{call.name}: {complaint(error)}"
        return None

    def __repr__(self) -> str:
        return f"CalledCheck({', '.join(self._models)})"


def _calls(response: ChatResponse) -> list[str]:
    blocks = response.message.blocks
    return [arguments_text(block.tool_kwargs) for block in blocks if isinstance(block, ToolCallBlock)]


def _written(response: ChatResponse) -> str:
    """What a response says in JSON: the arguments of its first call, else its text."""
    calls = _calls(response)
    return calls[0] if calls else "".join(b.text for b in response.message.blocks if isinstance(b, TextBlock))


def _object_in(text: str) -> dict[str, Any]:
    """The object in `text`, in the order in which it was written; empty where there is none."""
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = json.loads(extract_json_str(text))
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _begun(text: str) -> dict[str, Any]:
    """As much of the object as has been written; empty where there is none yet."""
    try:
        value = from_json(text[max(0, text.find("{")) :], allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _steps(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects on the way to `whole`: one more member each, or one more item of a list. Not nothing, and not all."""
    told: dict[str, Any] = {}
    for name, value in whole.items():
        if isinstance(value, list):
            for count in range(1, len(value)):
                yield {**told, name: value[:count]}
        told[name] = value
        if len(told) < len(whole):
            yield dict(told)
