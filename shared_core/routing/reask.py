"""Putting an answer that is not what was asked for back to its target, once, with what is wrong. Pure."""

from __future__ import annotations

from shared_core.chat.request import ChatRequest, Part, Text, assistant, tool, user
from shared_core.errors import InvalidOutput

__all__ = ["REASK_PROMPT", "reask"]

REASK_PROMPT = "That answer cannot be used: {fault}\nAnswer again, complete and corrected, and with nothing else."
"""Told to the model about an answer in words. `{fault}` is what the check found."""
_TOOL_PROMPT = "{fault}\nThe call was not made. Call the tool again, corrected."
_NO_CALL_PROMPT = "That answer cannot be used: {fault}\nCall a tool."
_LONGEST = 20_000  # characters of the faulty answer that are shown again


def reask(request: ChatRequest, rejected: InvalidOutput) -> ChatRequest:
    """`request` with the rejected answer behind it, and what is wrong with it. The original is unchanged."""
    answer, fault = rejected.answer, rejected.message
    # Thoughts and signatures stay behind: they may be bound to a turn that ends otherwise.
    parts: list[Part] = [Text(answer.text[:_LONGEST])] if answer.text else []
    if not answer.tool_calls:
        prompt = _NO_CALL_PROMPT if request.tool_choice not in (None, "auto", "none") else REASK_PROMPT
        said = (assistant(parts),) if parts else ()
        return request.extended(*said, user(prompt.format(fault=fault)))
    results = [
        tool(call.id, _TOOL_PROMPT.format(fault=fault), name=call.name, is_error=True) for call in answer.tool_calls
    ]
    return request.extended(assistant([*parts, *answer.tool_calls]), *results)
