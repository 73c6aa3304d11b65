"""`prepare`: a conversation begun anywhere, as messages that one target accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shared_core.chat.request import (
    Audio,
    File,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from shared_core.history.media import Media, kind_of, media_for
from shared_core.history.rules import HistoryRules
from shared_core.history.tools import PairedCall, pair, wire_name

__all__ = ["prepare", "with_stubs"]

# What we say where a vendor's rules want a turn and nobody said one.
CONTINUE = "Continue."
OPENING = "(The conversation starts with your message.)"
NOTED = "Noted."
EMPTY = "(empty message)"

_FAILURE = re.compile(r"Model call failed after \d+ attempts? with \w+: .*", re.DOTALL)
"""What LangChain's retry middleware writes into the history as if the model had said it."""


def prepare(
    messages: Sequence[Message], *, origin: Origin, rules: HistoryRules, keep_trailing_assistant: bool = False
) -> tuple[Message, ...]:
    """`messages` as the target described by `rules` accepts them.

    Deterministic, idempotent, and the input is never touched. Nothing a user sent is dropped silently: it is moved,
    told in words, or the target is incapable. Left out on purpose: reasoning and signatures of another origin, results
    that answer no call, all but the last of several results to one call, empty assistant turns.

    What a converter may rely on, besides the rules themselves:

    * roles: 'system', 'user', 'assistant', 'tool'; with ``rules.results == "user"`` no message has role 'tool', and
      user messages may begin with `ToolResult`s; with "turn" a tool message holds all results of the turn before it;
      with "each" every tool message holds exactly one.
    * an assistant message is `Reasoning`, `Text` (and `assistant_media`) in their order, then its `ToolCall`s, whose
      `arguments` are always a JSON object, whose ids are unique, and each of which is answered, in order, right after.
    * every `ToolResult` has the wire name of its call, and holds `Text` and `result_media` only.
    * `Reasoning`, and `data` of tool calls, are there only when the message comes from `origin`.
    * media have a media type where they have bytes; no data: URLs; only URLs and file ids the vendor can resolve.

    Args:
        messages: the conversation.
        origin: who is about to read it: opaque blocks go back to where they came from.
        rules: what the target accepts.
        keep_trailing_assistant: the last assistant turn is to be continued (`ChatRequest.continues`): it stays last.

    Raises:
        ProviderError: kind INCAPABLE; a part can neither be sent nor told (a foreign file id, a URL nobody fetches).
        InvalidRequest: a part is broken for everybody.
    """
    cleaned = [_cleaned(m, origin, rules) for m in messages]
    turns = _system_placed(list(_told(cleaned, rules, keep_trailing_assistant)), rules)
    turns = [m for m in (_nonempty(m, rules) for m in turns) if m is not None]
    if rules.results == "user":
        turns = list(_results_joined(turns))
    if rules.alternates:
        turns = _merged(turns)
    turns = list(_answered(turns, rules))
    turns = _opened(turns, rules)
    turns = _closed(turns, rules, keep_trailing_assistant)
    return tuple(_hinted(turns, rules))


def with_stubs(tools: Sequence[ToolSpec], messages: Sequence[Message], rules: HistoryRules) -> tuple[ToolSpec, ...]:
    """`tools` under their wire names, and a stub for each tool that a *prepared* history calls and nobody declares.

    Stubs only where ``rules.needs_declared_tools``: Anthropic and Bedrock refuse tool turns without declared tools.
    """
    declared = {}
    for tool in tools:
        name = wire_name(tool.name, rules)
        declared[name] = tool if name == tool.name else replace(tool, name=name)
    if rules.needs_declared_tools:
        for message in messages:
            for call in message.tool_calls:
                if call.name not in declared:
                    declared[call.name] = ToolSpec(call.name, "No longer available: do not call it.")
    return tuple(declared.values())


# ── each message by itself ───────────────────────────────────────────────────────────────────────────────────────────


def _cleaned(message: Message, origin: Origin, rules: HistoryRules) -> Message:
    """Foreign opaque state left out, media in the target's form, the speaker's name where it may be."""
    ours = rules.reasoning and message.role == "assistant" and message.origin == origin
    parts: list[Part] = []
    for part in message.parts:
        match part:
            case Reasoning():
                # Without its opaque block a thought cannot be proved to be the model's own, so it is not replayed.
                if ours and part.data:
                    parts.append(part)
            case ToolCall():
                if message.role != "assistant":
                    parts.append(Text(_call_in_words(part)))
                else:
                    parts.append(part if ours or not part.data else replace(part, data={}))
            case ToolResult():
                parts.append(replace(part, content=tuple(_result_content(part.content, rules))))
            case Image() | File() | Audio():
                parts.append(media_for(part, rules))
            case Text():
                parts.append(part)
    name = message.name
    if name is not None and not (rules.user_name_pattern and re.fullmatch(rules.user_name_pattern, name)):
        if message.role == "user" and name.strip():
            parts = _prefixed(parts, f"{name}: ")
        name = None
    return replace(message, parts=tuple(parts), name=name)


def _result_content(content: Sequence[Part], rules: HistoryRules) -> Iterator[Part]:
    for part in content:
        match part:
            case Image() | File() | Audio():
                yield media_for(part, rules)
            case Text():
                yield part
            case ToolCall():
                yield Text(_call_in_words(part))
            case ToolResult():
                yield from _result_content(part.content, rules)
            case Reasoning():
                continue


def _call_in_words(call: ToolCall) -> str:
    return f"[tool call {call.name}({call.arguments})]"


def _prefixed(parts: Sequence[Part], prefix: str) -> list[Part]:
    """`parts` with `prefix` before the first text, or as a text of its own in front."""
    for i, part in enumerate(parts):
        if isinstance(part, Text):
            return [*parts[:i], Text(prefix + part.text), *parts[i + 1 :]]
    return [Text(prefix.rstrip()), *parts]


# ── tool turns ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _told(messages: Sequence[Message], rules: HistoryRules, keeps_last: bool) -> Iterator[Message]:
    """The conversation with every call answered right where it was made, and media where they may be."""
    paired = pair(messages, rules)
    for index, message in enumerate(messages):
        said = [p for p in message.parts if not isinstance(p, (ToolCall, ToolResult))]
        if message.role == "assistant":
            told = list(_assistant_told(message, said, paired.get(index, []), rules))
            if keeps_last and index == len(messages) - 1 and not message.tool_calls:
                told.reverse()  # what it set aside comes before the turn that is to be continued
            yield from told
        elif message.role == "system":
            texts = tuple(p for p in said if isinstance(p, Text))
            yield replace(message, parts=texts)
            if len(texts) < len(said):
                yield Message("user", tuple(p for p in said if not isinstance(p, Text)))
        elif said or not message.parts:  # what remains of a message of results is nothing, and is no empty message
            yield replace(message, role="user", parts=tuple(said))


def _assistant_told(
    message: Message, said: Sequence[Part], calls: Sequence[PairedCall], rules: HistoryRules
) -> Iterator[Message]:
    if not calls and _FAILURE.fullmatch(message.text.strip()):
        return
    aside: list[Part] = []
    stays: list[Part] = []
    for part in said:
        if isinstance(part, Media) and kind_of(part) not in rules.assistant_media:
            aside.append(part)
        else:
            stays.append(part)
    if aside:
        aside = [Text(f"({_count(aside)} from your previous message)"), *aside]
    if rules.tool_turns == "text":
        stays += [Text(_call_in_words(p.call)) for p in calls]
        yield replace(message, parts=tuple(_spaced(stays)))
        told = [part for p in calls for part in _result_in_words(p.result)]
        if told:
            yield Message("user", tuple(_spaced(told)))
    else:
        yield replace(message, parts=(*stays, *(p.call for p in calls)))
        results: list[Message] = []
        for p in calls:
            result, moved = _result_for(p.result, rules)
            results.append(Message("tool", (result,), cache_hint=p.result_hint))
            if moved:
                aside += [Text(f"({_count(moved)} from tool {result.name}, call {result.call_id})"), *moved]
        if rules.results == "each" or not results:
            yield from results
        else:
            hint = any(m.cache_hint for m in results)
            yield Message("tool", tuple(part for m in results for part in m.parts), cache_hint=hint)
    if aside:
        yield Message("user", tuple(aside))


def _count(media: Sequence[Part]) -> str:
    kinds = [kind_of(part) for part in media if isinstance(part, Media)]
    return ", ".join(f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}" for kind in sorted(set(kinds)))


def _result_for(result: ToolResult, rules: HistoryRules) -> tuple[ToolResult, list[Part]]:
    """The result as the target takes it, and the media it has to hand over to a user turn."""
    content: list[Part] = []
    moved: list[Part] = []
    for part in result.content:
        if isinstance(part, Media) and kind_of(part) not in rules.result_media:
            moved.append(part)
        elif not isinstance(part, Text) or rules.empty_text or part.text.strip():
            content.append(part)
    if moved:
        content.append(Text(f"(see {_count(moved)} in the next user message)"))
    is_error = result.is_error
    if is_error and rules.error_flag == "prefix":
        is_error = False
        if not "".join(p.text for p in content if isinstance(p, Text)).startswith("Error"):
            content = _prefixed(content, "Error: ")
    return replace(result, content=tuple(content), is_error=is_error), moved


def _result_in_words(result: ToolResult) -> Iterator[Part]:
    texts = "".join(p.text for p in result.content if isinstance(p, Text))
    error = "Error: " if result.is_error else ""
    yield Text(f"[tool {result.name} answered] {error}{texts}".rstrip())
    yield from (p for p in result.content if not isinstance(p, Text))


# ── the shape of the whole ───────────────────────────────────────────────────────────────────────────────────────────


def _system_placed(messages: list[Message], rules: HistoryRules) -> list[Message]:
    messages = [m for m in messages if m.role != "system" or m.text.strip()]
    if rules.system == "any":
        return messages
    top: list[Message] = []
    rest: list[Message] = []
    for message in messages:
        if message.role != "system":
            rest.append(message)
        elif rest and rules.late_system == "note":
            rest.append(Message("user", (Text(f"<system-note>\n{message.text}\n</system-note>"),)))
        else:
            top.append(message)
    if not top:
        return rest
    first = top[0]
    for more in top[1:]:
        first = _joined(first, more)
    first = replace(first, parts=(Text("\n\n".join(m.text for m in top)),), name=None)
    if rules.system == "leading":
        return [first, *rest]
    if rest and rest[0].role == "user":
        return [_joined(replace(first, role="user"), rest[0]), *rest[1:]]
    return [replace(first, role="user"), *rest]


def _nonempty(message: Message, rules: HistoryRules) -> Message | None:
    """Without blank texts where the target refuses them; None for an assistant turn that says nothing at all."""
    parts = message.parts
    if not rules.empty_text:
        parts = tuple(p for p in parts if not isinstance(p, Text) or p.text.strip())
    if message.role == "assistant":
        if all(isinstance(p, Reasoning) or (isinstance(p, Text) and not p.text) for p in parts):
            return None
    elif message.role == "user" and not parts:
        parts = (Text("" if rules.empty_text else EMPTY),)
    return message if parts == message.parts else replace(message, parts=parts)


def _results_joined(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        yield replace(message, role="user") if message.role == "tool" else message


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role (user, assistant) as one message."""
    merged: list[Message] = []
    for message in messages:
        if merged and message.role in ("user", "assistant") and merged[-1].role == message.role:
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    return merged


def _joined(a: Message, b: Message) -> Message:
    if a.origin == b.origin:
        origin = a.origin
    else:  # of two hands: nobody's opaque blocks belong into such a turn
        origin, a, b = None, _without_opaque(a), _without_opaque(b)
    parts = list(a.parts)
    for part in b.parts:
        if parts and isinstance(part, Text) and isinstance(parts[-1], Text):
            parts[-1] = Text(f"{parts[-1].text}\n\n{part.text}")
        else:
            parts.append(part)
    name = a.name if a.name == b.name else None
    return Message(a.role, tuple(parts), name, origin, a.cache_hint or b.cache_hint)


def _without_opaque(message: Message) -> Message:
    parts = [p for p in message.parts if not isinstance(p, Reasoning)]
    parts = [replace(p, data={}) if isinstance(p, ToolCall) and p.data else p for p in parts]
    return replace(message, parts=tuple(parts))


def _spaced(parts: Sequence[Part]) -> list[Part]:
    return list(_joined(Message("user"), Message("user", tuple(parts))).parts)


def _answered(messages: Sequence[Message], rules: HistoryRules) -> Iterator[Message]:
    """A word of the assistant between results and a user turn, where the target needs one."""
    last: Message | None = None
    for message in messages:
        if not rules.user_after_tool and last is not None and (last.role, message.role) == ("tool", "user"):
            yield Message("assistant", (Text(NOTED),))
        yield message
        last = message


def _opened(messages: list[Message], rules: HistoryRules) -> list[Message]:
    leading = 0
    while leading < len(messages) and messages[leading].role == "system":
        leading += 1
    if leading == len(messages):
        needs = rules.starts_with_user or not messages
    else:
        needs = rules.starts_with_user and messages[leading].role != "user"
    if not needs:
        return messages
    return [*messages[:leading], Message("user", (Text(OPENING),)), *messages[leading:]]


def _closed(messages: list[Message], rules: HistoryRules, keep_trailing_assistant: bool) -> list[Message]:
    last = messages[-1]
    if last.role != "assistant":
        return messages
    if not (keep_trailing_assistant or rules.trailing_assistant):
        return [*messages, Message("user", (Text(CONTINUE),))]
    if rules.trailing_whitespace or not isinstance(last.parts[-1], Text):
        return messages
    return [*messages[:-1], replace(last, parts=(*last.parts[:-1], Text(last.parts[-1].text.rstrip())))]


def _hinted(messages: Sequence[Message], rules: HistoryRules) -> Iterator[Message]:
    hinted = [i for i, m in enumerate(messages) if m.cache_hint]
    kept = set(hinted[-rules.cache_hints :]) if rules.cache_hints else set()
    for i, message in enumerate(messages):
        yield message if i in kept or not message.cache_hint else replace(message, cache_hint=False)
