"""One call of LlamaIndex, with every keyword passed to it, as one neutral `ChatRequest`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel

from llamaindex_fallback._cache import native_form
from llamaindex_fallback._convert import FRAMEWORK, peek, to_messages
from shared_core.chat.per_call import several
from shared_core.chat.quick import quickly
from shared_core.chat.request import LIMITS, AnswerCheck, ChatRequest, Native, OutputSchema, ToolSpec, constraints_of
from shared_core.chat.schema_check import SchemaCheck
from shared_core.errors import InvalidRequest, UnknownOption, nearest

_request = quickly(ChatRequest)

_ALIASES: Final[Mapping[str, str]] = {"timeout": "timeout_s", "allow_parallel_tool_calls": "parallel_tool_calls"}
_OURS: Final = frozenset({"messages", "streaming", "native", "continues"})
_HERE: Final = frozenset({"tool_required", "response_format", "validate", "strict", "extra_headers", *LIMITS})
CALL_OPTIONS: Final = frozenset(f.name for f in fields(ChatRequest)) - _OURS | {*_ALIASES, *_HERE}
"""Keywords of one call: the fields of `ChatRequest`, LlamaIndex's own words for some of them, and OpenAI's for a shape:

response_format: a schema in OpenAI's form, or a pydantic class; answers are checked against it.
validate: False lets answers through unchecked, and streams as they come.
local_only, allow, deny, max_price, require: what `constraints` may say, one by one; where both are given, both hold.
extra_headers: sent by the SDKs that know the word, OpenAI's and Anthropic's. One of LlamaIndex's extractors says it.
strict: OpenAI's word for 'exactly this schema'; the schema must then be one that OpenAI takes so.
"""


class Checked(dict[str, Any]):
    """A `response_format` that knows how its answers are checked. To everybody else it is a plain dict."""

    __slots__ = ("check",)

    def __init__(self, wanted: Mapping[str, Any], check: AnswerCheck | None) -> None:
        super().__init__(wanted)
        self.check = check


class CheckedTools(list[dict[str, Any]]):
    """Tools that know how a call of them is checked. To everybody else they are a plain list of dicts."""

    __slots__ = ("check",)

    def __init__(self, tools: Iterable[dict[str, Any]], check: AnswerCheck | None) -> None:
        super().__init__(tools)
        self.check = check


def to_request(messages: Sequence[ChatMessage], *, streaming: bool, **options: Any) -> ChatRequest:
    """One call of LlamaIndex as one request in nobody's dialect. Options that are None are as if left out.

    Raises:
        UnknownOption: an option that no request has; the message names the nearest.
        InvalidRequest: no messages, a block that cannot be told, a limit out of range.
    """
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key not in CALL_OPTIONS:
            raise UnknownOption(
                f"no option {key!r} for a call. {nearest(key, CALL_OPTIONS)}\n"
                f"hint: options of one vendor go through untouched as extra={{'openai': {{{key!r}: …}}}}"
            )
        if value is not None:
            given[_ALIASES.get(key, key)] = value
    if not _PLAIN.issuperset(given):
        _spell_out(given)
    theirs = tuple(messages)
    return _request(
        messages=to_messages(theirs),
        streaming=streaming,
        native=Native(FRAMEWORK, theirs, form=native_form) if theirs else None,  # an empty request is refused
        **given,
    )


_PLAIN: Final = frozenset(
    {"temperature", "max_tokens", "timeout_s", "top_p", "seed", "model", "extra", "chain", "complexity", "strategy"}
)
"""Options that are as a request has them."""


def _spell_out(given: dict[str, Any]) -> None:
    """What is said about tools and the answer's shape, and lists, as a request has them. Changes `given`."""
    if headers := given.pop("extra_headers", None):
        extra = given.get("extra") or {}
        told = {vendor: {"extra_headers": headers, **(extra.get(vendor) or {})} for vendor in ("openai", "anthropic")}
        given["extra"] = {**extra, **told}
    single = {name: given.pop(name) for name in LIMITS if name in given}
    if single or "constraints" in given:
        given["constraints"] = constraints_of(given.get("constraints"), single)
    for key in ("stop", "tags"):
        if key in given:
            given[key] = several(key, given[key])
    validate, strict = given.pop("validate", True), given.pop("strict", None)
    required, tools = given.pop("tool_required", False), given.pop("tools", ())
    specs = tool_specs(tools, strict)
    choice = tool_choice(given.pop("tool_choice", None), specs) or ("any" if required and specs else None)
    if specs:
        given |= {"tools": specs, "tool_choice": choice}
    else:
        given.pop("parallel_tool_calls", None)
    wanted = given.pop("response_format", None)
    if wanted is not None:
        given["output"] = output_schema(wanted, strict)
    check = given.pop("check", None) or getattr(wanted, "check", None) or getattr(tools, "check", None)
    output = given.get("output")
    if check is None and output is not None:
        check = SchemaCheck(output.schema)
    if check is not None and validate:
        given["check"] = check


def tool_specs(tools: Iterable[Any], strict: bool | None = None) -> tuple[ToolSpec, ...]:
    """Tools as LlamaIndex hands them over: OpenAI-style dicts, `BaseTool`s, or `ToolSpec`s."""
    specs: list[ToolSpec] = []
    for tool in tools:
        if isinstance(tool, ToolSpec):
            specs.append(tool)
            continue
        spec = openai_tool(tool) if hasattr(tool, "metadata") else tool
        function = spec.get("function", spec) if isinstance(spec, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"a tool must be a BaseTool or an OpenAI-style function dict, not {tool!r}")
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        exactly = function.get("strict") if strict is None else strict
        specs.append(ToolSpec(function["name"], function.get("description") or "", schema, exactly))
    return tuple(specs)


def openai_tool(tool: Any) -> dict[str, Any]:
    """A `BaseTool` in OpenAI's form, which events can show."""
    told: dict[str, Any] = tool.metadata.to_openai_tool(skip_length_check=True)
    return told


def tool_choice(value: Any, specs: Sequence[ToolSpec]) -> str | None:
    """OpenAI's and LlamaIndex's words for a forced choice, in ours: 'auto', 'any', 'none' or a tool's name."""
    if isinstance(value, Mapping):
        function = value.get("function")
        value = peek(function, "name") or value.get("name") or value.get("type")
    if value is None or (isinstance(value, str) and value in {spec.name for spec in specs}):
        return value
    if not isinstance(value, str):
        raise InvalidRequest(f"tool_choice must be 'auto', 'any', 'none' or the name of a tool, not {value!r}")
    return "any" if value == "required" else value


def output_schema(wanted: Any, strict: bool | None = None) -> OutputSchema | None:
    """`response_format` as what the answer must look like: OpenAI's forms, a pydantic class, or a bare schema.

    Raises:
        InvalidRequest: none of these.
    """
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        schema = wanted.model_json_schema()
        return OutputSchema(schema, schema_name(schema, wanted.__name__), strict, anyhow=True)
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputSchema(strict=strict, anyhow=True)
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as inner, **rest}}:
            exactly = rest.get("strict") if strict is None else strict
            exactly = exactly if isinstance(exactly, bool) else None
            return OutputSchema(inner, str(rest.get("name") or "answer"), exactly, anyhow=True)
        case {"type": "object", **_schema}:
            return OutputSchema(wanted, schema_name(wanted, "answer"), strict, anyhow=True)
        case _:
            raise InvalidRequest(
                f"response_format must be a pydantic class or a schema in OpenAI's form, not {wanted!r}"
            )


def schema_name(schema: Mapping[str, Any], default: str) -> str:
    """What a schema is called, in letters that every vendor takes."""
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in str(schema.get("title") or default)
    )
    return name.strip("_")[:64] or "answer"
