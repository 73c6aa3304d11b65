"""An answer in a schema by way of a tool, for models that take a schema or tools, but not both in one request."""

from __future__ import annotations

from shared_core.chat.request import ChatRequest, OutputSchema, ToolSpec

__all__ = ["ANSWER_TOOL", "answer_tool", "with_answer_tool"]

ANSWER_TOOL = "answer_in_schema"
"""The tool whose arguments are the answer's text."""


def answer_tool(output: OutputSchema) -> ToolSpec:
    """The tool to be called with an answer in the shape of `output`; any object at all where that has no schema."""
    schema = dict(output.schema) or {"type": "object", "additionalProperties": True}
    return ToolSpec(ANSWER_TOOL, "Give the final answer in this shape.", schema)


def with_answer_tool(request: ChatRequest) -> ChatRequest:
    """`request` with its schema as one more tool, of which, or of the others, the model must call one."""
    assert request.output is not None
    named = request.tool_choice if request.tool_choice in {tool.name for tool in request.tools} else "any"
    return request.replace(tools=(*request.tools, answer_tool(request.output)), tool_choice=named, output=None)
