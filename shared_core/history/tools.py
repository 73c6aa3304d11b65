"""Tool turns made whole: ids that the target takes, each call with exactly one result, names that fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared_core.chat.request import Message, Text, ToolCall, ToolResult
from shared_core.history.changes import Change
from shared_core.history.rules import HistoryRules

__all__ = ["CANCELLED", "INVALID", "PairedCall", "pair", "wire_arguments", "wire_name"]

CANCELLED = "tool call was cancelled"
"""The result of a call that never got one."""
INVALID = "the arguments were not a JSON object, so the tool was not called"
"""The result of a call that never got one because its arguments made no sense."""

_SMUGGLED = "__thought__"  # LiteLLM hides Gemini's thought signature in the id: vendor state is no identity


def wire_name(name: str, rules: HistoryRules) -> str:
    """`name` as the target takes tool names: itself where it fits, else cleaned and told apart by a hash.

    A function of the name alone, so specs, history and the answer's calls can be matched without a table.
    """
    if re.fullmatch(rules.tool_name_pattern, name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem = re.sub("[^a-zA-Z0-9_-]", "_", name).lstrip("-0123456789") or "tool"
    return f"{stem[: rules.tool_name_length - 9]}_{digest}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def wire_arguments(arguments: str) -> tuple[str, bool]:
    """Arguments as the text of a JSON object, and whether they were one.

    An object that was encoded twice is decoded once. What cannot be read is kept, as the value of 'invalid_arguments'.
    """
    value = _read(arguments or "{}")
    if isinstance(value, dict):
        return arguments.strip() or "{}", True
    inner = _read(value) if isinstance(value, str) else None
    if isinstance(inner, dict):
        return str(value), True
    return json.dumps({"invalid_arguments": arguments}), False


def _read(text: str) -> Any:
    """The JSON value in `text`; an empty object for blanks; None where it is no JSON."""
    try:
        return _DECODER.decode(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return None


@dataclass(slots=True)
class PairedCall:
    """A call as it goes out, and its one result."""

    call: ToolCall
    result: ToolResult
    source: Message | None = None
    """The message that the result came in; None for a result that nobody gave."""
    source_index: int | None = None


_Found = tuple[ToolResult, Message, int]
"""A result, the message it stands in, and where that is."""


@dataclass(slots=True)
class _Group:
    """The calls of one turn that share an id (one, unless the model was careless), and the results that name it."""

    calls: list[tuple[int, ToolCall]] = field(default_factory=list)
    results: list[_Found] = field(default_factory=list)


def _identity(call_id: str) -> str:
    return call_id.split(_SMUGGLED, 1)[0]


def pair(messages: Sequence[Message], rules: HistoryRules, noted: list[Change]) -> Mapping[int, list[PairedCall]]:
    """For each assistant message with calls, by its index: the calls, re-minted where need be, each with its result.

    A result belongs to the latest call before it with the same id; the last of several wins; one that belongs to none
    is an orphan and is left out. A call without a result is told as cancelled.
    """
    by_turn: dict[int, list[ToolCall]] = {}
    groups: list[tuple[int, _Group]] = []
    latest: dict[str, _Group] = {}
    for index, message in enumerate(messages):
        fresh: dict[str, _Group] = {}
        for part in message.parts:
            if isinstance(part, ToolResult):
                group = latest.get(_identity(part.call_id))
                if group is not None:
                    group.results.append((part, message, index))
                else:
                    noted.append(Change("orphan result", index, part.call_id))
            elif isinstance(part, ToolCall) and message.role == "assistant":
                calls = by_turn.setdefault(index, [])
                fresh.setdefault(_identity(part.id), _Group()).calls.append((len(calls), part))
                calls.append(part)
        if fresh:
            latest |= fresh
            groups += [(index, group) for group in fresh.values()]
    if not by_turn:
        return {}

    results: dict[tuple[int, int], _Found] = {}
    for index, group in groups:
        shared = _share_out(group)
        for place, found in shared:
            results[index, place] = found
        if len(shared) < len(group.results):
            kept = [id(found) for _, found in shared]
            noted += [Change("older result", f[2], f[0].call_id) for f in group.results if id(f) not in kept]

    called = [(index, place, call) for index, calls in by_turn.items() for place, call in enumerate(calls)]
    minted = _mint(called, rules)
    paired: dict[int, list[PairedCall]] = {}
    for index, place, call in called:
        name = wire_name(call.name, rules)
        arguments, valid = wire_arguments(call.arguments)
        call_id = minted[index, place]
        sent = call
        if (call_id, name, arguments) != (call.id, call.name, call.arguments):
            sent = replace(call, id=call_id, name=name, arguments=arguments)
        if not valid:
            noted.append(Change("broken arguments", index, call.name))
        answer = results.get((index, place))
        if answer is None:
            if valid:
                noted.append(Change("unanswered call", index, call.name))
            told = ToolResult(call_id, (Text(CANCELLED if valid else INVALID),), name, is_error=True)
            one = PairedCall(sent, told)
        else:
            result, source, at = answer
            if (result.call_id, result.name) != (call_id, name):
                result = replace(result, call_id=call_id, name=name)
            one = PairedCall(sent, result, source, at)
        paired.setdefault(index, []).append(one)
    return paired


def _share_out(group: _Group) -> list[tuple[int, _Found]]:
    """Which call of the group gets which result: by name where results tell it, in order where they do not."""
    names = {call.name for _, call in group.calls}
    if len(group.calls) == 1:
        return [(group.calls[0][0], group.results[-1])] if group.results else []
    shared: list[tuple[int, _Found]] = []
    left = list(group.calls)
    for name in sorted(names):
        wanting = [(place, call) for place, call in left if call.name == name]
        queue = deque((r for r in group.results if r[0].name == name), maxlen=len(wanting))
        served = [place for place, _ in wanting[: len(queue)]]
        shared += zip(served, queue, strict=True)
        left = [(place, call) for place, call in left if place not in served]
    unnamed = deque((r for r in group.results if r[0].name not in names), maxlen=len(left))
    shared += [(place, result) for (place, _), result in zip(left, unnamed, strict=False)]
    return shared


def _mint(calls: Sequence[tuple[int, int, ToolCall]], rules: HistoryRules) -> Mapping[tuple[int, int], str]:
    """An id for each call: its own where the target takes it and nobody had it before, else a hash.

    The hash is of the id and, where that does not tell calls apart, of what is called: the same history gives the same
    ids on every turn, so prompt caches keep hitting.
    """
    ids: dict[tuple[int, int], str] = {}
    taken: set[str] = set()
    seen: dict[str, int] = {}
    wanting: list[tuple[tuple[int, int], str]] = []
    for index, place, call in calls:
        own = _identity(call.id)
        nth = seen.get(own, 0)
        seen[own] = nth + 1
        if nth == 0 and re.fullmatch(rules.id_pattern, own):
            ids[index, place] = own
            taken.add(own)
        else:
            again = "" if own and nth == 0 else f"\0{call.name}\0{call.arguments}\0{nth}"
            wanting.append(((index, place), own + again))
    for key, seed in wanting:
        salt = 0
        while True:
            text = f"{seed}\0{salt}" if salt else seed
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            candidate = rules.id_prefix + digest[: rules.id_digits]
            if candidate not in taken:
                break
            salt += 1
        ids[key] = candidate
        taken.add(candidate)
    return ids
