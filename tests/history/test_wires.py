"""The wire rules themselves: each refuses what its vendor refuses, or they would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.history import wires

U = {"role": "user", "content": "u"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "r"}
A = {"role": "assistant", "content": "a"}

A_USE: dict[str, Any] = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
A_RESULT = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "r"}]}
TOOLS = [{"name": "f"}]

G_U = {"role": "user", "parts": [{"text": "u"}]}
G_CALL = {"role": "model", "parts": [{"function_call": {"name": "f", "args": {}}}]}
G_RESULT = {"role": "user", "parts": [{"function_response": {"name": "f", "response": {"output": "r"}}}]}

GOOD: list[tuple[Callable[[Any], None], Any]] = [
    (wires.openai, {"messages": [U, CALLS, RESULT, A, U]}),
    (wires.compatible, {"messages": [U, CALLS, RESULT, U]}),
    (wires.deepseek, {"messages": [U, {**CALLS, "reasoning_content": "t"}, RESULT, U]}),
    (wires.responses, {"input": [{"type": "message", **U}]}),
    (wires.anthropic, {"tools": TOOLS, "messages": [U, A_USE, {"role": "user", "content": [A_RESULT]}]}),
    (wires.google, {"contents": [G_U, G_CALL, G_RESULT]}),
]


@pytest.mark.parametrize(("rule", "good"), GOOD)
def test_a_good_body_passes(rule: Callable[[Any], None], good: Any) -> None:
    rule(good)


BAD: list[tuple[Callable[[Any], None], Any]] = [
    (wires.openai, {"messages": [U, CALLS]}),
    (wires.openai, {"messages": [U, RESULT]}),
    (wires.openai, {"messages": [U, CALLS, U, RESULT]}),
    (wires.openai, {"messages": [U, {**CALLS, "tool_calls": [{**CALL, "id": "x" * 41}]},
                                 {**RESULT, "tool_call_id": "x" * 41}]}),
    (wires.openai, {"messages": [U, CALLS, RESULT, CALLS, RESULT]}),
    (wires.openai, {"messages": [{**U, "cache_control": {}}]}),
    (wires.openai, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]}),
    (wires.openai, {"messages": [{"role": "user", "content": [{"type": "media", "file_uri": "gs://x"}]}]}),
    (wires.openai, {"messages": [{"role": "user", "content": []}]}),
    (wires.openai, {"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}]}),
    (wires.openai, {"messages": [U, {"role": "assistant", "content": None}]}),
    (wires.openai, {"messages": [{**U, "name": "Bob B."}]}),
    (wires.openai, {"messages": [U, {**CALLS, "tool_calls": [
        {**CALL, "function": {"name": "f", "arguments": '{"x": 1'}}]}, RESULT]}),
    (wires.openai, {"messages": [U, {**CALLS, "tool_calls": [
        {**CALL, "function": {"name": "f g", "arguments": "{}"}}]}, RESULT]}),
    (wires.compatible, {"messages": [U, U]}),
    (wires.compatible, {"messages": [A, U]}),
    (wires.compatible, {"messages": [U, A]}),
    (wires.compatible, {"messages": [U, A, {"role": "system", "content": "s"}, U]}),
    (wires.compatible, {"messages": [{"role": "user", "content": " "}]}),
    (wires.mistral, {"messages": [U, CALLS, RESULT]}),
    (wires.deepseek, {"messages": [U, CALLS, RESULT]}),
    (wires.deepseek, {"messages": [U, {**A, "reasoning_content": "t"}, U]}),
    (wires.moonshot, {"messages": [U, {**CALLS, "reasoning_content": ""}, RESULT]}),
    (wires.responses, {"input": [{"type": "function_call_output", "call_id": "c", "output": "r"}]}),
    (wires.responses, {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}),
    (wires.responses, {"input": [{"type": "reasoning", "signature": "S", "summary": []}]}),
    (wires.responses, {"input": [{"type": "message", **U, "name": "Ann"}]}),
    (wires.responses, {"input": [{"type": "message", "role": "assistant", "id": "lc_1", "content": []}]}),
    (wires.anthropic, {"messages": [U, A_USE, {"role": "user", "content": [A_RESULT]}]}),
    (wires.anthropic, {"tools": TOOLS, "messages": [U, A_USE, U]}),
    (wires.anthropic, {"tools": TOOLS, "messages": [{"role": "user", "content": [A_RESULT]}]}),
    (wires.anthropic, {"messages": [U, A]}),
    (wires.anthropic, {"messages": [U, U]}),
    (wires.anthropic, {"messages": [A, U]}),
    (wires.anthropic, {"messages": [{"role": "user", "content": ""}]}),
    (wires.anthropic, {"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}, U]}),
    (wires.anthropic, {"messages": [U, {"role": "assistant", "content": [
        {"type": "reasoning", "summary": []}]}, U]}),
    (wires.anthropic, {"tools": TOOLS, "messages": [U, A_USE, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "c", "is_error": True}]}]}),
    (wires.anthropic, {"tools": TOOLS, "messages": [U, A_USE, {"role": "user", "content": [
        {"type": "text", "text": "first"}, A_RESULT]}]}),
    (wires.anthropic, {"messages": [{"role": "user", "content": [
        {"type": "text", "text": str(n), "cache_control": {}} for n in range(5)]}]}),
    (wires.google, {"contents": [G_U, G_CALL]}),
    (wires.google, {"contents": [G_U, G_CALL, G_U, G_RESULT]}),
    (wires.google, {"contents": [G_CALL, G_RESULT]}),
    (wires.google, {"contents": [G_U, G_CALL, {"role": "user", "parts": [
        {"function_response": {"name": "f", "response": {"output": 42}}}]}]}),
    (wires.google, {"contents": [{"role": "user", "parts": [{"text": " "}]}]}),
    (wires.google, {"contents": [{"role": "user", "parts": [
        {"inline_data": {"mime_type": "image/gif", "data": b"x"}}]}]}),
    (wires.llamacpp, {"messages": [U, {"role": "assistant", "content": None}, U]}),
    (wires.llamacpp, {"messages": [U, {**CALLS, "content": ""}, RESULT]}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_a_bad_body_is_refused(case: int) -> None:
    rule, bad = BAD[case]
    with pytest.raises((AssertionError, KeyError, ValueError, TypeError)):
        rule(bad)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("openai", {"messages": [{**U, "nonsense": 1}]}),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]}),
        ("responses", {"input": [{"type": "message", "role": "user", "content": [{"type": "media"}]}]}),
        ("anthropic", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("anthropic", {"messages": [{"role": "critic", "content": "x"}]}),
    ],
)
def test_the_vendors_own_types_are_looked_at_too(kind: str, bad: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        wires.typed(kind, bad)
