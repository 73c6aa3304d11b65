"""How a wrapped LLM is told about tools, and made to answer in a schema: in its integration's own words, or in ours."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.tools.types import BaseTool, ToolMetadata, ToolOutput

from llamaindex_fallback._convert import peek
from shared_core.chat.answer_tool import ANSWER_TOOL
from shared_core.chat.answer_tool import asked as in_so_many_words
from shared_core.chat.request import ChatRequest, OutputSchema, ToolSpec
from shared_core.errors import ErrorKind, ProviderError
from shared_core.history import HistoryRules, wire_name

__all__ = [
    "Way",
    "answer_tool",
    "instructed",
    "response_format",
    "takes_tools",
    "tool_options",
    "way_of",
    "with_tools",
]

Way = Literal["schema", "tool", "words"]
"""How an LLM is made to answer in a schema: by its vendor's own means, by a forced tool call, or by being asked to."""


def takes_tools(llm: LLM) -> bool:
    """Whether the LLM calls tools, by its own word."""
    return isinstance(llm, FunctionCallingLLM) and llm.metadata.is_function_calling_model


def way_of(llm: LLM) -> Way:
    """The surest way this LLM has."""
    native = peek(llm, "_should_use_structure_outputs")  # LlamaIndex's OpenAI, and what is built upon it
    if callable(native) and native():
        return "schema"
    if takes_tools(llm) and not tool_options(type(llm)).isdisjoint({"tool_required", "tool_choice"}):
        return "tool"
    return "words"


@lru_cache(maxsize=256)
def tool_options(cls: type[LLM]) -> frozenset[str]:
    """What an integration can be told about tools; older ones know neither `tool_required` nor `tool_choice`."""
    prepare = getattr(cls, "_prepare_chat_with_tools", None)
    return frozenset() if prepare is None else frozenset(inspect.signature(prepare).parameters)


def response_format(output: OutputSchema) -> dict[str, Any]:
    """A schema in OpenAI's form."""
    if not output.schema:
        return {"type": "json_object"}
    told: dict[str, Any] = {"name": output.name, "schema": copy.deepcopy(dict(output.schema))}
    if output.strict is not None:
        told["strict"] = output.strict
    return {"type": "json_schema", "json_schema": told}


def answer_tool(output: OutputSchema, rules: HistoryRules) -> ToolSpec:
    """The tool whose arguments are the answer, under its name on the wire."""
    name = wire_name(output.name if output.schema else ANSWER_TOOL, rules)
    told = str(output.schema.get("description") or "") if output.schema else ""
    return ToolSpec(name, told or "Give your answer.", output.schema or {"type": "object", "properties": {}})


def instructed(messages: Sequence[ChatMessage], schema: Mapping[str, Any]) -> list[ChatMessage]:
    """`messages` with the last turn asking for JSON in `schema`. What was passed in is not changed."""
    asked = TextBlock(text=in_so_many_words(schema))
    if not messages or messages[-1].role != MessageRole.USER:
        return [*messages, ChatMessage(role=MessageRole.USER, blocks=[asked])]
    last = messages[-1]
    return [*messages[:-1], last.model_copy(update={"blocks": [*last.blocks, asked]})]


def with_tools(
    llm: LLM, specs: Sequence[ToolSpec], messages: list[ChatMessage], choice: str | None, request: ChatRequest
) -> dict[str, Any]:
    """The arguments as the integration prepares them for its vendor, at the moment of the call.

    Args:
        llm: whom to ask.
        specs: the tools, under their names on the wire.
        messages: the conversation.
        choice: 'auto', 'any', a tool's name on the wire, or None.
        request: says whether several calls at once are welcome.

    Raises:
        ProviderError: kind INCAPABLE; the LLM calls no tools.
    """
    if not isinstance(llm, FunctionCallingLLM):
        raise ProviderError.of(ErrorKind.INCAPABLE, f"{type(llm).__name__} cannot call tools")
    accepted = tool_options(type(llm))
    named = choice if choice not in (None, "auto", "any", "none") else None
    options: dict[str, Any] = {}
    if "tool_required" in accepted:
        options["tool_required"] = choice == "any" or (named is not None and "tool_choice" not in accepted)
    if named is not None and "tool_choice" in accepted:
        options["tool_choice"] = named
    prepared = llm._prepare_chat_with_tools(
        [_Declared(spec) for spec in specs],
        chat_history=messages,
        # LlamaIndex's own default is one call at a time; ours is the vendor's, which is several.
        allow_parallel_tool_calls=request.parallel_tool_calls is not False,
        **options,
    )
    return dict(prepared)


class _Declared(BaseTool):
    """A tool that is only declared: integrations read its metadata, nobody calls it."""

    def __init__(self, spec: ToolSpec) -> None:
        self._metadata = _Metadata(spec.description, spec.name, _schema(spec))

    @property
    def metadata(self) -> ToolMetadata:
        return self._metadata

    def __call__(self, input: Any) -> ToolOutput:  # noqa: A002  # LlamaIndex's name for it
        raise NotImplementedError("the caller runs its own tools")


class _Metadata(ToolMetadata):
    def _sanitize_name(self, name: str | None) -> str | None:
        return name  # already in the vendor's alphabet


def _schema(spec: ToolSpec) -> type[BaseModel]:
    """A model class whose JSON schema is the tool's: some integrations ask the class, others the metadata."""
    parameters = copy.deepcopy(dict(spec.parameters))
    return type(
        spec.name,
        (BaseModel,),
        {
            "__doc__": spec.description,
            "__module__": __name__,
            "model_json_schema": classmethod(lambda cls, *args, **kwargs: copy.deepcopy(parameters)),
        },
    )
