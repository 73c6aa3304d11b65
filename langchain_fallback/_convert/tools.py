"""Tools, `tool_choice` and `response_format` in any dialect, as the neutral request has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from shared_core.chat.request import (
    AnswerCheck,
    OutputSchema,
    ToolSpec,
)
from shared_core.errors import InvalidRequest

__all__ = [
    "BoundTools",
    "bound_tools",
    "finds_tools",
    "neutral_choice",
    "output_schema",
    "runs_on_servers",
    "specs_of",
]


class BoundTools(list[dict[str, Any]]):
    """Tools in OpenAI's form, as bound to a model. The list never changes, so what is compiled from it can be kept."""

    __slots__ = ("_full", "check", "compiled", "specs")

    _full: Mapping[int, Any]

    check: AnswerCheck | None
    """What an answer with one of these tools must pass."""
    specs: tuple[ToolSpec, ...] | None
    compiled: dict[Any, Any]

    def __init__(
        self,
        tools: Sequence[dict[str, Any]],
        check: AnswerCheck | None = None,
        full: Mapping[int, Any] | None = None,
    ) -> None:
        super().__init__(tools)
        self._full = full or {}
        self.check = check
        self.specs = None
        self.compiled = {}

    def full(self, index: int) -> Any | None:
        """The tool as the caller gave it, where it carries `extras` that its OpenAI form has no room for."""
        return self._full.get(index)

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundTools, (list(self), self.check)


def bound_tools(tools: Sequence[Any], *, strict: bool | None = None, check: AnswerCheck | None = None) -> BoundTools:
    """`tools` (functions, models, `BaseTool`s, schemas of any dialect) in the form every target is compiled from."""
    full = {index: one for index, one in enumerate(tools) if isinstance(one, BaseTool) and one.extras}
    return BoundTools([_openai_form(one, strict) for one in tools], check, full)


def _openai_form(tool: Any, strict: bool | None = None) -> dict[str, Any]:
    return cast("dict[str, Any]", tool) if runs_on_servers(tool) else convert_to_openai_tool(tool, strict=strict)


def finds_tools(tool: Any) -> bool:
    """Whether `tool` only helps a vendor find the others among many. Who has no such thing is told of all of them."""
    return isinstance(tool, Mapping) and str(tool.get("type") or "").startswith("tool_search")


def runs_on_servers(tool: Any) -> bool:
    """Whether `tool` is a vendor's own (web search, code execution): a dict that describes no function of ours."""
    if not isinstance(tool, Mapping) or not tool.keys().isdisjoint({"function", "parameters", "input_schema"}):
        return False
    if "properties" in tool or tool.get("type", "function") in ("function", "object"):
        return tool.keys().isdisjoint({"name", "title", "type"})  # Gemini's: {"google_search": {}}
    return True


def _spec(tool: Mapping[str, Any], strict: bool | None) -> ToolSpec | None:
    """A `ToolSpec`, or None for a tool that lives on one vendor's servers."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return None
    fields: dict[str, Any] = {}
    if parameters := function.get("parameters"):
        fields["parameters"] = parameters
    chosen = function.get("strict")
    return ToolSpec(
        function["name"], function.get("description") or "", strict=strict if chosen is None else chosen, **fields
    )


def specs_of(tools: Sequence[Any], strict: bool | None) -> tuple[tuple[ToolSpec, ...], bool]:
    """The tools everyone can be told about, and whether there are others."""
    if isinstance(tools, BoundTools) and tools.specs is not None and strict is None:
        return tools.specs, _others(tools, tools.specs)
    converted = tools if isinstance(tools, BoundTools) else [_openai_form(tool) for tool in tools]
    specs = tuple(spec for tool in converted if (spec := _spec(tool, strict)) is not None)
    if isinstance(tools, BoundTools) and strict is None:
        tools.specs = specs
    return specs, _others(converted, specs)


def _others(converted: Sequence[Any], specs: Sequence[ToolSpec]) -> bool:
    """Whether there are tools besides `specs` that only their vendor has."""
    return len(specs) != len(converted) and len(specs) != sum(not finds_tools(tool) for tool in converted)


def neutral_choice(choice: Any) -> str | None:
    """`tool_choice` in any dialect as 'auto', 'any', 'none', a tool's name, or None.

    Raises:
        InvalidRequest: a form that no other vendor could be told about.
    """
    match choice:
        case None | False | "":
            return None
        case True | "any" | "required":
            return "any"
        case str():
            return choice
        case {"type": "function", "function": {"name": str(name)}} | {"type": "tool" | "function", "name": str(name)}:
            return name
        case {"type": "any" | "required"}:
            return "any"
        case {"type": "auto" | "none" as kind}:
            return str(kind)
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise InvalidRequest(
                f"tool_choice {choice!r} is none of 'auto', 'any', 'none', a tool's name and their dict forms"
            )


def output_schema(response_format: Any, strict: bool | None = None) -> OutputSchema | None:
    """`response_format` in OpenAI's form, or a schema of any kind, as what the answer must look like.

    Raises:
        InvalidRequest: a form nobody knows, or a broken schema.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputSchema(strict=strict)
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema, **rest}}:
            return OutputSchema(schema, str(rest.get("name") or "answer"), _flag(rest.get("strict"), strict))
        case {"type": "json_schema", "schema": Mapping() as schema, **rest}:
            return OutputSchema(schema, str(rest.get("name") or "answer"), _flag(rest.get("strict"), strict))
        case _:
            try:
                schema = dict(convert_to_json_schema(response_format))
            except (TypeError, ValueError) as error:
                raise InvalidRequest(
                    f"response_format is neither a schema nor a form that OpenAI takes: {error}"
                ) from error
            name = str(schema.get("title") or "answer")
            return OutputSchema(schema, "".join(c if c.isalnum() or c in "_-" else "_" for c in name)[:64], strict)


def _flag(value: object, default: bool | None) -> bool | None:
    return value if isinstance(value, bool) else default
