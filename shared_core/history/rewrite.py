"""`prepare`: a conversation begun anywhere, as messages that one target accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import is_

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
from shared_core.history.changes import Change
from shared_core.history.media import Media, is_media, kind_of, media_for
from shared_core.history.opaque import opaque_kind, told
from shared_core.history.rules import HistoryRules
from shared_core.history.tools import PairedCall, pair, wire_name

__all__ = ["UNDECLARED", "is_own", "prepare", "with_stubs"]

# What we say where a vendor's rules want a turn and nobody said one.
CONTINUE = "Continue."
OPENING = "(The conversation starts with your message.)"
NOTED = "Noted."
EMPTY = "(empty message)"
FAILED = "Error"
UNDECLARED = "No longer available: do not call it."

_FAILURE = re.compile(r"Model call failed after \d+ attempts? with \w+: .*", re.DOTALL)
"""What LangChain's retry middleware writes into the history as if the model had said it."""
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
"""How open models' thinking looks where nobody took it out of the answer."""
_SNAPSHOT = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|\d{3,4})")
"""What vendors put behind a model's name for the release that answered."""


def prepare(
    messages: Sequence[Message],
    *,
    origin: Origin,
    rules: HistoryRules,
    keep_trailing_assistant: bool = False,
    changes: list[Change] | None = None,
) -> tuple[Message, ...]:
    """`messages` as the target described by `rules` accepts them.

    Deterministic, idempotent, and the input is never touched; a message that is right as it is comes out as the same
    object. Nothing a user sent is dropped silently: it is moved, told in words, or the target is incapable. Left out
    on purpose: reasoning and signatures of another origin, results that answer no call, all but the last of several
    results to one call, empty assistant turns.

    What a converter may rely on, besides the rules themselves:

    * roles: 'system', 'user', 'assistant', 'tool'; with ``rules.results == "user"`` no message has role 'tool', and
      user messages may begin with `ToolResult`s; with "turn" a tool message holds all results of the turn before it;
      with "each" every tool message holds exactly one.
    * an assistant message is `Reasoning`, `Text` (and `assistant_media`) in their order, then its `ToolCall`s, whose
      `arguments` are always a JSON object, whose ids are unique, and each of which is answered, in order, right after.
    * every `ToolResult` has the wire name of its call, and holds `Text` and `result_media` only; a failed one has text.
    * `Reasoning`, and `data` of tool calls, are there only when the message comes from `origin`.
    * media have a media type where they have bytes; no data: URLs; only URLs and file ids the vendor can resolve.

    Args:
        messages: the conversation.
        origin: who is about to read it: opaque blocks go back to where they came from.
        rules: what the target accepts.
        keep_trailing_assistant: the last assistant turn is to be continued (`ChatRequest.continues`): it stays last.
        changes: what could not be carried over as it was is appended here; `summary` tells it in words.

    Raises:
        ProviderError: kind INCAPABLE; a part can neither be sent nor told (a foreign file id, a URL nobody fetches).
        InvalidRequest: a part is broken for everybody.
    """
    noted: list[Change] = [] if changes is None else changes
    cleaned = list(_cleaned(messages, origin, rules, noted))
    turns = list(_told(cleaned, rules, keep_trailing_assistant, noted))
    turns = _system_placed(turns, rules, noted)
    turns = [m for m in (_nonempty(m, rules) for m in turns) if m is not None]
    if rules.results == "user":
        turns = [replace(m, role="user") if m.role == "tool" else m for m in turns]
    if rules.alternates:
        turns = _merged(turns, noted)
    if not rules.user_after_tool:
        turns = list(_answered(turns))
    turns = _opened(turns, rules)
    turns = _closed(turns, rules, keep_trailing_assistant)
    return _hinted(turns, rules)


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
                    declared[call.name] = ToolSpec(call.name, UNDECLARED)
    return tuple(declared.values())


# ── each message by itself ───────────────────────────────────────────────────────────────────────────────────────────


def _cleaned(
    messages: Sequence[Message], origin: Origin, rules: HistoryRules, noted: list[Change]
) -> Iterator[Message]:
    """Foreign opaque state left out, media in the target's form, the speaker's name where it may be."""
    called = False  # the assistant turn before this one called a tool
    for index, message in enumerate(messages):
        if message.role != "assistant":
            yield _plain(message) or _rewritten(index, message, rules, noted, ours=False, replayed=False)
            continue
        message = _without_tags(index, message, noted)
        calls = any(isinstance(p, ToolCall) for p in message.parts)
        if (plain := _plain(message)) is not None:
            yield plain
        else:
            ours = is_own(message.origin, origin)
            replayed = ours and rules.reasoning and (rules.reasoning_in == "any turn" or calls or called)
            yield _rewritten(index, message, rules, noted, ours=ours, replayed=replayed)
        called = calls


def _without_tags(index: int, message: Message, noted: list[Change]) -> Message:
    """Without a thought that stands in the text, between `<think>` and `</think>` at its beginning."""
    first = message.parts[0] if message.parts else None
    if not isinstance(first, Text) or "<think>" not in first.text or not (found := _THOUGHT.match(first.text)):
        return message
    noted.append(Change("reasoning", index))
    rest = first.text[found.end() :]
    return replace(message, parts=(*((Text(rest),) if rest else ()), *message.parts[1:]))


def _plain(message: Message) -> Message | None:
    """`message` where there is nothing to look at: text by nobody in particular, calls without a vendor's state."""
    if message.name is not None:
        return None
    for part in message.parts:
        if not (
            isinstance(part, Text) or (isinstance(part, ToolCall) and message.role == "assistant" and not part.data)
        ):
            return None
    return message


def is_own(wrote: Origin | None, reads: Origin) -> bool:
    """Whether opaque blocks that `wrote` left may go to `reads`: same vendor, endpoint and model.

    An alias and the release that answered for it ('claude-sonnet-4-5', 'claude-sonnet-4-5-20250929') are one model.
    """
    if wrote is None or wrote.provider != reads.provider or wrote.endpoint != reads.endpoint:
        return False
    long, short = sorted((wrote.model, reads.model), key=len, reverse=True)
    return long == short or (long.startswith(short) and _SNAPSHOT.fullmatch(long, len(short)) is not None)


def _rewritten(
    index: int, message: Message, rules: HistoryRules, noted: list[Change], *, ours: bool, replayed: bool
) -> Message:
    parts: list[Part] = []
    tail: list[Part] = []
    for part in message.parts:
        match part:
            case Reasoning():
                # Without its opaque block a thought cannot be proved to be the model's own, so it is not replayed.
                kind = opaque_kind(part.data)
                kept = kind == "thought" or (rules.citations if kind == "citations" else rules.server_blocks)
                if replayed and part.data and kept:
                    parts.append(part)
                elif part.data and not (ours and kind == "thought"):
                    tail += _instead(index, part, rules, noted)
            case ToolCall():
                if message.role != "assistant":
                    parts.append(Text(_call_in_words(part)))
                elif part.data and not replayed:
                    parts.append(replace(part, data={}))
                else:
                    parts.append(part)
            case ToolResult():
                content = tuple(_result_content(index, part.content, rules, noted))
                parts.append(part if _same(content, part.content) else replace(part, content=content))
            case Image() | File() | Audio():
                parts.append(_media(index, part, rules, noted))
            case Text():
                parts.append(part)
    parts += tail
    whole = message.parts if _same(parts, message.parts) else tuple(parts)
    name = message.name
    if name is not None and not (rules.user_name_pattern and re.fullmatch(rules.user_name_pattern, name)):
        if message.role == "user" and name.strip():
            whole = tuple(_prefixed(parts, f"{name}: "))
        elif name.strip():
            noted.append(Change("name", index, name))
        name = None
    if name == message.name and whole is message.parts:
        return message
    return replace(message, parts=whole, name=name)


def _instead(index: int, block: Reasoning, rules: HistoryRules, noted: list[Change]) -> list[Part]:
    """What the target is told of a block that it must not see."""
    kind = opaque_kind(block.data)
    if kind == "thought":
        noted.append(Change("reasoning", index))
        return []
    if kind == "citations":
        unnamed = [c for c in block.data.get("citations") or () if not c.get("url")]
        noted.extend(Change("citation", index, str(c.get("title") or "")) for c in unnamed)
    elif kind == "server block":
        noted.append(Change("server block", index, str(block.data.get("type"))))
    return [_media(index, p, rules, noted) if is_media(p) else p for p in told(block.data)]


def _media(index: int, part: Media, rules: HistoryRules, noted: list[Change]) -> Part:
    fit = media_for(part, rules)
    if isinstance(fit, Text):
        noted.append(Change("file as text", index, part.name or part.media_type or ""))
    return fit


def _result_content(index: int, content: Sequence[Part], rules: HistoryRules, noted: list[Change]) -> Iterator[Part]:
    for part in content:
        match part:
            case Image() | File() | Audio():
                yield _media(index, part, rules, noted)
            case Text():
                yield part
            case ToolCall():
                yield Text(_call_in_words(part))
            case ToolResult():
                yield from _result_content(index, part.content, rules, noted)
            case Reasoning():
                if part.data:
                    yield from _instead(index, part, rules, noted)


def _call_in_words(call: ToolCall) -> str:
    return f"[tool call {call.name}({call.arguments})]"


def _prefixed(parts: Sequence[Part], prefix: str) -> list[Part]:
    """`parts` with `prefix` before the first text, or as a text of its own in front."""
    for i, part in enumerate(parts):
        if isinstance(part, Text):
            return [*parts[:i], Text(prefix + part.text), *parts[i + 1 :]]
    return [Text(prefix.rstrip()), *parts]


def _same(a: Sequence[Part], b: Sequence[Part]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


# ── tool turns ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _told(messages: Sequence[Message], rules: HistoryRules, keeps_last: bool, noted: list[Change]) -> Iterator[Message]:
    """The conversation with every call answered right where it was made, and media where they may be."""
    paired = pair(messages, rules, noted)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            told = list(_assistant_told(index, message, paired.get(index, []), rules, noted))
            if keeps_last and index == len(messages) - 1 and not message.tool_calls:
                told.reverse()  # what it set aside comes before the turn that is to be continued
            yield from told
            continue
        said = [p for p in message.parts if not isinstance(p, (ToolCall, ToolResult))]
        if message.role == "system":
            texts = tuple(p for p in said if isinstance(p, Text))
            yield message if len(texts) == len(message.parts) else replace(message, parts=texts)
            if len(texts) < len(said):
                aside = tuple(p for p in said if not isinstance(p, Text))
                noted.append(Change("moved media", index, _count(aside)))
                yield Message("user", aside)
        elif message.role == "user" and len(said) == len(message.parts):
            yield message
        elif said or not message.parts:  # what remains of a message of results is nothing, and is no empty message
            yield replace(message, role="user", parts=tuple(said))


def _assistant_told(
    index: int, message: Message, calls: Sequence[PairedCall], rules: HistoryRules, noted: list[Change]
) -> Iterator[Message]:
    if not calls:
        if _FAILURE.fullmatch(message.text.strip()):
            noted.append(Change("failure notice", index))
            return
        if all(type(p) is Text for p in message.parts):
            yield message
            return
    aside: list[Part] = []
    stays: list[Part] = []
    for part in message.parts:
        if is_media(part) and kind_of(part) not in rules.assistant_media:
            aside.append(part)
        elif not isinstance(part, (ToolCall, ToolResult)):
            stays.append(part)
    if aside:
        noted.append(Change("moved media", index, _count(aside)))
        aside = [Text(f"({_count(aside)} from your previous message)"), *aside]
    if rules.tool_turns == "text":
        stays += [Text(_call_in_words(p.call)) for p in calls]
        yield _with_parts(message, _spaced(stays))
        told = [part for p in calls for part in _result_in_words(p.result)]
        if told:
            yield Message("user", tuple(_spaced(told)))
    else:
        yield _with_parts(message, [*stays, *(p.call for p in calls)])
        results: list[Message] = []
        for p in calls:
            result, moved = _result_for(p.result, rules)
            came_alone = p.source is not None and p.source.role == "tool" and len(p.source.parts) == 1
            if p.source is not None and came_alone and p.source.parts[0] is result:
                results.append(p.source)
            else:
                results.append(Message("tool", (result,), cache_hint=p.source is not None and p.source.cache_hint))
            if moved:
                noted.append(Change("moved media", p.source_index, _count(moved)))
                aside += [Text(f"({_count(moved)} from tool {result.name}, call {result.call_id})"), *moved]
        if rules.results == "each" or len(results) < 2:
            yield from results
        else:
            hint = any(m.cache_hint for m in results)
            yield Message("tool", tuple(part for m in results for part in m.parts), cache_hint=hint)
    if aside:
        yield Message("user", tuple(aside))


def _with_parts(message: Message, parts: Sequence[Part]) -> Message:
    return message if _same(parts, message.parts) else replace(message, parts=tuple(parts))


def _count(media: Sequence[Part]) -> str:
    kinds = [kind_of(part) for part in media if is_media(part)]
    return ", ".join(f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}" for kind in sorted(set(kinds)))


def _result_for(result: ToolResult, rules: HistoryRules) -> tuple[ToolResult, list[Part]]:
    """The result as the target takes it, and the media it has to hand over to a user turn."""
    content: list[Part] = []
    moved: list[Part] = []
    allowed = rules.result_media if not result.is_error else ()  # Anthropic: a failed result is text and nothing else
    for part in result.content:
        if is_media(part) and kind_of(part) not in allowed:
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
    elif is_error and not content:
        content = [Text(FAILED)]  # Anthropic refuses a failure that says nothing
    if is_error == result.is_error and _same(content, result.content):
        return result, moved
    return replace(result, content=tuple(content), is_error=is_error), moved


def _result_in_words(result: ToolResult) -> Iterator[Part]:
    texts = "".join(p.text for p in result.content if isinstance(p, Text))
    error = "Error: " if result.is_error else ""
    yield Text(f"[tool {result.name} answered] {error}{texts}".rstrip())
    yield from (p for p in result.content if not isinstance(p, Text))


# ── the shape of the whole ───────────────────────────────────────────────────────────────────────────────────────────


def _system_placed(messages: list[Message], rules: HistoryRules, noted: list[Change]) -> list[Message]:
    if all(m.role != "system" for m in messages):
        return messages
    messages = [m for m in messages if m.role != "system" or m.text.strip()]
    if rules.system == "any":
        return messages
    top: list[Message] = []
    rest: list[Message] = []
    for message in messages:
        if message.role != "system":
            rest.append(message)
            continue
        if rest:
            noted.append(Change("late system"))
        if rest and rules.late_system == "note":
            rest.append(Message("user", (Text(f"<system-note>\n{message.text}\n</system-note>"),)))
        else:
            top.append(message)
    if not top:
        return rest
    first = top[0]
    if len(top) > 1 or len(first.parts) > 1:
        hint = any(m.cache_hint for m in top)
        first = Message("system", (Text("\n\n".join(m.text for m in top)),), cache_hint=hint)
    if rules.system == "leading":
        return [first, *rest]
    if rest and rest[0].role == "user":
        return [_joined(replace(first, role="user"), rest[0], noted), *rest[1:]]
    return [replace(first, role="user"), *rest]


def _says(part: Part) -> bool:
    """Whether a part is something said, not just thought."""
    if isinstance(part, Reasoning):
        return opaque_kind(part.data) == "picture"
    return not isinstance(part, Text) or part.text != ""


def _nonempty(message: Message, rules: HistoryRules) -> Message | None:
    """Without blank texts where the target refuses them; None for an assistant turn that says nothing at all."""
    parts = message.parts
    if not rules.empty_text and any(type(p) is Text and not p.text.strip() for p in parts):
        parts = tuple(p for p in parts if not isinstance(p, Text) or p.text.strip())
    if message.role == "assistant":
        if not any(_says(p) for p in parts):
            return None
    elif message.role == "user" and not parts:
        parts = (Text("" if rules.empty_text else EMPTY),)
    return message if parts is message.parts else replace(message, parts=parts)


def _merged(messages: Sequence[Message], noted: list[Change]) -> list[Message]:
    """Neighbours of one role (user, assistant) as one message."""
    merged: list[Message] = []
    for message in messages:
        if merged and message.role in ("user", "assistant") and merged[-1].role == message.role:
            merged[-1] = _joined(merged[-1], message, noted)
        else:
            merged.append(message)
    return merged


def _joined(a: Message, b: Message, noted: list[Change]) -> Message:
    if a.origin == b.origin:
        origin = a.origin
    else:  # of two hands: nobody's opaque blocks belong into such a turn
        origin, a, b = None, _without_opaque(a, noted), _without_opaque(b, noted)
    parts = list(a.parts)
    for part in b.parts:
        if parts and isinstance(part, Text) and isinstance(parts[-1], Text):
            parts[-1] = Text(f"{parts[-1].text}\n\n{part.text}")
        else:
            parts.append(part)
    name = a.name if a.name == b.name else None
    if name is None:
        noted.extend(Change("name", detail=m.name) for m in (a, b) if m.name is not None)
    return Message(a.role, tuple(parts), name, origin, a.cache_hint or b.cache_hint)


def _without_opaque(message: Message, noted: list[Change]) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, Reasoning):
            said = told(part.data)
            parts += said
            if not said:
                noted.append(Change("reasoning"))
        else:
            parts.append(replace(part, data={}) if isinstance(part, ToolCall) and part.data else part)
    return _with_parts(message, parts)


def _spaced(parts: Sequence[Part]) -> list[Part]:
    """`parts` with neighbouring texts as one, a blank line between them."""
    spaced: list[Part] = []
    for part in parts:
        if spaced and isinstance(part, Text) and isinstance(spaced[-1], Text):
            spaced[-1] = Text(f"{spaced[-1].text}\n\n{part.text}")
        else:
            spaced.append(part)
    return spaced


def _answered(messages: Sequence[Message]) -> Iterator[Message]:
    """A word of the assistant between results and a user turn, for a target that needs one."""
    last: Message | None = None
    for message in messages:
        if last is not None and (last.role, message.role) == ("tool", "user"):
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
    text = last.parts[-1].text
    if text == text.rstrip():
        return messages
    return [*messages[:-1], replace(last, parts=(*last.parts[:-1], Text(text.rstrip())))]


def _hinted(messages: Sequence[Message], rules: HistoryRules) -> tuple[Message, ...]:
    hinted = [i for i, m in enumerate(messages) if m.cache_hint]
    if len(hinted) <= rules.cache_hints:
        return tuple(messages)
    dropped = set(hinted[: len(hinted) - rules.cache_hints])
    return tuple(replace(m, cache_hint=False) if i in dropped else m for i, m in enumerate(messages))
