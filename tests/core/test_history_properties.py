"""Any history, any target: what `prepare` gives obeys the wire rules, written here by hand from the vendors' pages."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_core.chat.request import Image, Message, Origin, Reasoning, Text, ToolCall, ToolResult
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    DEEPSEEK,
    GOOGLE,
    LLAMA_CPP,
    MISTRAL,
    OPENAI,
    OPENAI_RESPONSES,
    OPENROUTER,
    Change,
    prepare,
)

ME, OTHER = Origin("me", "m"), Origin("me", "n")

# ── histories ────────────────────────────────────────────────────────────────────────────────────────────────────────

ids = st.sampled_from(
    ["", "a", "call_0", "abcdef123", "x" * 70, "functions.f:0", "ü", "with space", "c__thought__c2ln"]
)
names = st.sampled_from(["f", "g", "files.read", "with space", "", "n" * 90])
arguments = st.sampled_from(["", "{}", '{"x": 1}', '{"x": 1', "[1]", '"{}"', "null", "NaN", '{"x": Infinity}'])
words = st.sampled_from(["", " ", "\n", "hi", "w1 ", "  w2", "Error: x", "Continue.", "Noted.", "<system-note>"])
texts = st.builds(Text, words)
pictures = st.sampled_from([Image(data=b"\x89PNG"), Image(data=b"?", media_type="image/webp")])
thoughts = st.builds(Reasoning, words, st.sampled_from([{}, {"signature": "s"}]))
call_parts = st.builds(ToolCall, ids, names, arguments, st.sampled_from([{}, {"thought_signature": "t"}]))
result_parts = st.builds(
    ToolResult,
    ids,
    st.lists(texts | pictures | thoughts, max_size=2).map(tuple),
    st.none() | names,
    st.booleans(),
)


def turn(role: str, parts: st.SearchStrategy) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        st.just(role),
        st.lists(parts, max_size=4).map(tuple),
        st.sampled_from([None, "bob", "Bob B."]),
        st.sampled_from([None, ME, OTHER]),
        st.booleans(),
    )


turns = (
    turn("system", texts | pictures)
    | turn("user", texts | pictures | result_parts)
    | turn("assistant", texts | call_parts | thoughts | pictures)
    | turn("assistant", call_parts)
    | turn("tool", result_parts)
)


def marked(history: list[Message]) -> list[Message]:
    """Each text gets a number of its own, blank ones stay blank, so that a lost one is missed."""
    number = 0

    def mark(text: str) -> str:
        nonlocal number
        number += 1
        return f"{text}«{number}»" if text.strip() else text

    def inside(parts):
        for part in parts:
            if isinstance(part, Text):
                yield Text(mark(part.text))
            elif isinstance(part, ToolResult):
                yield replace(part, content=tuple(inside(part.content)))
            else:
                yield part

    return [replace(m, parts=tuple(inside(m.parts))) for m in history]


histories = st.lists(turns, min_size=1, max_size=8).map(marked)

# ── the wire rules ───────────────────────────────────────────────────────────────────────────────────────────────────


def all_texts(message: Message) -> list[str]:
    return [p.text for p in message.parts if isinstance(p, Text)]


def pairing(messages: tuple[Message, ...], together: bool) -> None:
    """Each call turn is followed at once by exactly its results, in order; no result stands anywhere else."""
    allowed: set[int] = set()
    for i, message in enumerate(messages):
        wanted = [c.id for c in message.tool_calls]
        if not wanted:
            continue
        got: list[str] = []
        for j in range(i + 1, i + 2 if together else i + 1 + len(wanted)):
            allowed.add(j)
            got += [p.call_id for p in messages[j].parts if isinstance(p, ToolResult)]
        assert got == wanted
    for i, message in enumerate(messages):
        if any(isinstance(p, ToolResult) for p in message.parts):
            assert i in allowed


def common(messages: tuple[Message, ...], id_rule: str, name_rule: str) -> None:
    calls = [c for m in messages for c in m.tool_calls]
    assert len({c.id for c in calls}) == len(calls)
    for call in calls:
        assert re.fullmatch(id_rule, call.id)
        assert re.fullmatch(name_rule, call.name)
        assert isinstance(json.loads(call.arguments, parse_constant=lambda c: pytest.fail(c)), dict)
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCall):
                assert message.role == "assistant"
                assert message.origin == ME or not part.data
            if isinstance(part, Reasoning):
                assert message.role == "assistant"
                assert message.origin == ME
                assert part.data
            if isinstance(part, ToolResult):
                assert part.name
                assert not any(isinstance(p, (Reasoning, ToolCall, ToolResult)) for p in part.content)
        if message.role == "assistant":
            assert message.parts
            kinds = [isinstance(p, ToolCall) for p in message.parts]
            assert kinds == sorted(kinds)


def no_blank(messages: tuple[Message, ...]) -> None:
    for message in messages:
        assert all(text.strip() for text in all_texts(message))
        assert message.parts


def strict_turns(messages: tuple[Message, ...]) -> None:
    """One system message at most, first; then user, and never two of a kind in a row (results aside)."""
    roles = [m.role for m in messages]
    if roles[0] == "system":
        roles = roles[1:]
    assert "system" not in roles
    assert roles[0] == "user"
    assert all(a != b or a == "tool" for a, b in itertools.pairwise(roles))


def text_only_outside_user(messages: tuple[Message, ...]) -> None:
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolResult):
                assert all(isinstance(p, Text) for p in part.content)
                assert not part.is_error
            if message.role != "user":
                assert not isinstance(part, Image)


def openai(messages: tuple[Message, ...]) -> None:
    common(messages, "[a-zA-Z0-9_-]{1,40}", "[a-zA-Z0-9_-]{1,64}")
    pairing(messages, together=False)
    text_only_outside_user(messages)
    for message in messages:
        assert message.name is None or re.fullmatch("[a-zA-Z0-9_-]{1,64}", message.name)
        assert not any(isinstance(p, Reasoning) for p in message.parts)
        assert message.role != "tool" or len(message.parts) == 1


def responses(messages: tuple[Message, ...]) -> None:
    common(messages, "[a-zA-Z0-9_-]{1,64}", "[a-zA-Z0-9_-]{1,64}")
    pairing(messages, together=False)
    text_only_outside_user(messages)
    assert not any(m.name for m in messages)


def anthropic(messages: tuple[Message, ...]) -> None:
    common(messages, "[a-zA-Z0-9_-]+", "[a-zA-Z0-9_-]{1,64}")
    pairing(messages, together=True)
    no_blank(messages)
    strict_turns(messages)
    assert not any(m.role == "tool" or m.name for m in messages)
    assert sum(m.cache_hint for m in messages) <= 4
    for message in messages:
        kinds = [not isinstance(p, ToolResult) for p in message.parts]
        assert kinds == sorted(kinds)
        assert not (message.role == "assistant" and any(isinstance(p, Image) for p in message.parts))
    if messages[-1].role == "assistant":
        assert messages[-1].text == messages[-1].text.rstrip()


def google(messages: tuple[Message, ...]) -> None:
    common(messages, "[!-~]+", "[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")
    pairing(messages, together=True)
    no_blank(messages)
    strict_turns(messages)
    assert all(isinstance(p, ToolResult) for m in messages if m.role == "tool" for p in m.parts)


def thinking(messages: tuple[Message, ...]) -> None:
    """The same dialect, of a vendor that takes its thoughts back."""
    common(messages, "[a-zA-Z0-9_.:-]{1,64}", "[a-zA-Z0-9_-]{1,64}")
    pairing(messages, together=False)
    no_blank(messages)
    strict_turns(messages)
    text_only_outside_user(messages)


def in_loops(messages: tuple[Message, ...]) -> None:
    """Thoughts of turns that call a tool, or follow upon one that did."""
    thinking(messages)
    called = False
    for message in messages:
        if message.role == "assistant":
            calls = bool(message.tool_calls)
            assert calls or called or not any(isinstance(p, Reasoning) for p in message.parts)
            called = calls


def compatible(messages: tuple[Message, ...]) -> None:
    common(messages, "[a-zA-Z0-9_.:-]{1,64}", "[a-zA-Z0-9_-]{1,64}")
    pairing(messages, together=False)
    no_blank(messages)
    strict_turns(messages)
    text_only_outside_user(messages)
    assert not any(m.name or m.cache_hint for m in messages)
    assert not any(isinstance(p, Reasoning) for m in messages for p in m.parts)


def template(messages: tuple[Message, ...]) -> None:
    """What Mistral's template checks: user and assistant alternate when calls and results are not counted."""
    compatible(messages)
    counted = [m.role for m in messages if m.role in ("user", "assistant") and not m.tool_calls]
    assert all(role == ("user", "assistant")[i % 2] for i, role in enumerate(counted))
    assert all((a.role, b.role) != ("tool", "user") for a, b in itertools.pairwise(messages))


def mistral(messages: tuple[Message, ...]) -> None:
    template(messages)
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", c.id) for m in messages for c in m.tool_calls)


def in_words(messages: tuple[Message, ...]) -> None:
    no_blank(messages)
    roles = [m.role for m in messages]
    assert all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))
    assert all(isinstance(p, (Text, Image)) for m in messages for p in m.parts)


TARGETS = {
    "openai": (OPENAI, openai),
    "responses": (OPENAI_RESPONSES, responses),
    "anthropic": (ANTHROPIC, anthropic),
    "anthropic-notes": (replace(ANTHROPIC, late_system="note"), anthropic),
    "google": (GOOGLE, google),
    "compatible": (COMPATIBLE, compatible),
    "llamacpp": (LLAMA_CPP, template),
    "llamacpp-bare": (replace(LLAMA_CPP, system="none", tool_turns="text"), in_words),
    "mistral": (MISTRAL, mistral),
    "deepseek": (DEEPSEEK, in_loops),
    "openrouter": (OPENROUTER, thinking),
}


def marks_of(message: Message) -> set[str]:
    """The numbers of all that is said in a message."""
    inside = [p.content for p in message.parts if isinstance(p, ToolResult)]
    texts = all_texts(message) + [t for content in inside for t in all_texts(Message("tool", content))]
    return set(re.findall("«[0-9]+»", "".join(texts)))


def pictures_in(messages) -> int:
    return sum(isinstance(p, Image) for m in messages for p in m.parts)


@pytest.mark.parametrize(("rules", "obeys"), TARGETS.values(), ids=TARGETS)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories, keep=st.booleans())
def test_any_history_is_made_valid_whole_and_stable(rules, obeys: Callable, history: list[Message], keep: bool):
    """Valid for the target, the input untouched, the same when prepared again, and nothing said is lost unrecorded."""
    before = copy.deepcopy(history)
    changes: list[Change] = []
    out = prepare(history, origin=ME, rules=rules, keep_trailing_assistant=keep, changes=changes)
    assert history == before
    obeys(out)
    assert prepare(out, origin=ME, rules=rules, keep_trailing_assistant=keep) == out
    assert prepare(history, origin=ME, rules=rules, keep_trailing_assistant=keep) == out
    told = "".join(
        t
        for m in out
        for p in m.parts
        for t in (
            [p.text]
            if isinstance(p, Text)
            else all_texts(Message("tool", p.content))
            if isinstance(p, ToolResult)
            else []
        )
    )
    left_out = {c.message for c in changes if c.kind in ("orphan result", "older result")}
    missing = {mark for at, m in enumerate(history) if at not in left_out for mark in marks_of(m) if mark not in told}
    assert not missing
    inner = [q for m in history for p in m.parts for q in (p.content if isinstance(p, ToolResult) else (p,))]
    opaque = sum(isinstance(q, Reasoning) and bool(q.data) for q in inner)
    kept = sum(isinstance(p, Reasoning) for m in out for p in m.parts)
    recorded = sum(c.kind == "reasoning" for c in changes)
    assert recorded <= opaque - kept
    assert pictures_in(out) >= pictures_in(history)
    if rules.trailing_assistant is False and not keep:
        assert out[-1].role != "assistant"
    last = history[-1]
    if keep and last.role == "assistant" and last.text.strip() and not last.tool_calls:
        assert out[-1].role == "assistant"
        assert out[-1].text.rstrip().endswith(last.text.rstrip())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(history=histories, more=histories)
def test_ids_do_not_change_when_the_conversation_goes_on(history: list[Message], more: list[Message]):
    """Else every turn would miss the prompt cache."""
    first = [c.id for m in prepare(history, origin=ME, rules=MISTRAL) for c in m.tool_calls]
    later = [c.id for m in prepare([*history, *more], origin=ME, rules=MISTRAL) for c in m.tool_calls]
    assert later[: len(first)] == first
