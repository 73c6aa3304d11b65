"""A conversation as one wrapped chat model takes it: its own messages as they are, everybody else's translated.

LangChain's integrations keep much of what another vendor left in a history, and send it: foreign thoughts, ids that
are too long, files that mean nothing elsewhere. Each target has its dialect: the rules of its wire, and the forms of
content that its integration passes on unharmed. What obeys both travels as the caller's own message object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_fallback._convert.messages import (
    CALL_DATA,
    CITING,
    ORIGIN,
    SPOKEN,
    THOUGHTFUL,
    THOUGHTS,
    Family,
    to_langchain,
)
from langchain_fallback._quiet import families
from shared_core.chat.request import ChatRequest, Message, Origin, Text, ToolCall, ToolResult
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    GOOGLE,
    MISTRAL,
    OPENAI,
    OPENAI_RESPONSES,
    UNDECLARED,
    Change,
    HistoryRules,
    MediaKind,
    is_own,
    prepare,
)

__all__ = ["Dialect", "dialect_of", "spoken", "stubs", "thoughtless"]

_VISIBLE: frozenset[MediaKind] = frozenset({"image", "file"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one integration takes: the rules of its wire, and which family's forms of content it passes on."""

    rules: HistoryRules
    family: Family | None = None
    """None is an integration we know nothing about."""


# The integrations join results to the turns they belong to themselves: one message each keeps the caller's objects.
_OPENAI = Dialect(OPENAI, "openai")
_RESPONSES = Dialect(
    replace(OPENAI_RESPONSES, media=_VISIBLE, result_media=_VISIBLE, server_blocks=True, citations=True), "responses"
)
_ANTHROPIC = Dialect(replace(ANTHROPIC, results="each", server_blocks=True, citations=True), "anthropic")
_GOOGLE = Dialect(
    # It fetches what is given by URL, and says who was asked in the way of its vendor.
    replace(GOOGLE, results="each", server_blocks=True, urls=frozenset({"image", "file", "audio", "video"})),
    "google",
)
_MISTRAL = Dialect(MISTRAL)
_OTHER = Dialect(replace(COMPATIBLE, urls=frozenset({"image", "file", "audio"})))


def dialect_of(model: object, *, responses: bool = False) -> Dialect:
    """The dialect of a chat model's class. `responses`: a ChatOpenAI that uses the Responses API."""
    packages = families(model)
    if "langchain_openai" in packages:
        return _RESPONSES if responses else _OPENAI
    if "langchain_anthropic" in packages:
        return _ANTHROPIC
    if "langchain_google_genai" in packages:
        return _GOOGLE
    return _MISTRAL if "langchain_mistralai" in packages else _OTHER


def spoken(
    request: ChatRequest,
    given: Sequence[BaseMessage],
    *,
    origin: Origin,
    dialect: Dialect,
    changes: list[Change] | None = None,
) -> list[BaseMessage]:
    """The request's conversation for the model of `origin`. Nothing the caller handed in is changed.

    Args:
        request: its messages are the neutral form of `given`, one for one, and of whatever was put behind them.
        given: LangChain's own messages, as the caller made them; none when the request comes from elsewhere.
        origin: the model that is about to read. What its integration wrote without naming an address counts as its own.
        dialect: what it takes.
        changes: what could not be carried over as it was is appended here.

    Raises:
        ProviderError: kind INCAPABLE; a part can neither be sent nor told.
    """
    neutral = request.messages
    if origin.endpoint is not None:
        neutral = (*map(_placed, neutral, given, repeat(origin)), *neutral[len(given) :])
    if dialect.family is None and not _foreign(neutral, origin):
        return [*map(_unmarked, given), *to_langchain(neutral[len(given) :], origin)]
    if any(map(_unreadable, given, neutral)):
        # Blocks that only one integration knows: whoever does not speak LangChain has been left out of the plan.
        return [
            *(_untouched(*both, origin, dialect.family) for both in zip(given, neutral, strict=False)),
            *to_langchain(neutral[len(given) :], origin, dialect.family),
        ]
    prepared = prepare(
        neutral, origin=origin, rules=dialect.rules, keep_trailing_assistant=request.continues, changes=changes
    )
    home = _Home(neutral, given, origin, dialect.family)
    out: list[BaseMessage] = []
    for message in prepared:
        native = home.find(message)
        if native is not None:
            out.append(native)
        else:
            out += to_langchain((message,), origin, dialect.family)
    return out


def thoughtless(messages: Sequence[BaseMessage]) -> bool:
    """Whether the model is to go on with a turn that begins with no thought of its own: another model began it.

    Anthropic refuses that of a model that is told to think. `messages` are as `spoken` gave them.
    """
    last = messages[-1] if messages else None
    if not isinstance(last, (AIMessage, ToolMessage)):
        return False
    before = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    if before is None or isinstance(before.content, str):
        return True
    return not any(isinstance(block, dict) and block.get("type") in THOUGHTFUL for block in before.content)


def stubs(messages: Sequence[BaseMessage], declared: Iterable[str]) -> list[dict[str, Any]]:
    """Anthropic's declarations of the tools that the conversation calls and nobody declares any more: it wants them."""
    called = dict.fromkeys(call["name"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls)
    return [
        {"name": name, "description": UNDECLARED, "input_schema": {"type": "object", "properties": {}}}
        for name in called
        if name not in set(declared)
    ]


def _placed(message: Message, native: BaseMessage, origin: Origin) -> Message:
    """`message`, which its integration signed without an address, as the reader's own if vendor and model agree."""
    if message.origin is None or ORIGIN in native.response_metadata:
        return message
    return replace(message, origin=origin) if is_own(message.origin, replace(origin, endpoint=None)) else message


def _foreign(messages: Sequence[Message], origin: Origin) -> bool:
    """Whether another vendor wrote some of it."""
    return any(m.origin is not None and m.origin.provider != origin.provider for m in messages)


def _untouched(native: BaseMessage, neutral: Message, origin: Origin, family: Family | None) -> BaseMessage:
    """The caller's own message, unless another model wrote it: then what it said, and nothing of what it thought."""
    if neutral.origin is not None and not is_own(neutral.origin, origin):
        return to_langchain((neutral,), None, family)[0]
    return native if family == "anthropic" else _unmarked(native)


def _unmarked(message: BaseMessage) -> BaseMessage:
    """`message` without Anthropic's cache marks, which others take for an unknown field."""
    content, extra = message.content, message.additional_kwargs
    changes: dict[str, Any] = {}
    if "cache_control" in extra:
        changes["additional_kwargs"] = {k: v for k, v in extra.items() if k != "cache_control"}
    if isinstance(content, list) and any(isinstance(b, dict) and "cache_control" in b for b in content):
        changes["content"] = [
            {k: v for k, v in b.items() if k != "cache_control"} if isinstance(b, dict) else b for b in content
        ]
    return message.model_copy(update=changes) if changes else message


def _unreadable(native: BaseMessage, neutral: Message) -> bool:
    """Whether nothing but the text of a message could be read: the rest only one integration understands."""
    if isinstance(native, ToolMessage) and neutral.role != "tool":
        return True
    if not isinstance(native.content, list) or [type(p) for p in neutral.parts] != [Text]:
        return False
    more = any(isinstance(block, dict) and block.get("type") not in SPOKEN for block in native.content)
    return more and neutral.text == native.text


class _Home:
    """Which prepared message is one of the caller's, unchanged, in a form that the target's integration knows."""

    __slots__ = ("_by_parts", "_family", "_given", "_neutral", "_origin", "_results")

    def __init__(
        self, neutral: Sequence[Message], given: Sequence[BaseMessage], origin: Origin, family: Family | None
    ) -> None:
        self._neutral = neutral
        self._given = given
        self._origin = origin
        self._family = family
        self._by_parts: dict[int, int] = {}
        self._results: dict[tuple[str, int], int] = {}
        for at in range(len(given)):
            message = neutral[at]
            if message.role == "tool" and len(message.parts) == 1 and isinstance(message.parts[0], ToolResult):
                result = message.parts[0]
                self._results[result.call_id, id(result.content)] = at
            elif message.parts:  # the empty tuple is everybody's
                self._by_parts[id(message.parts)] = at

    def find(self, message: Message) -> BaseMessage | None:
        """The caller's own message, if it may travel as it is."""
        at = self._place(message)
        if at is None or self._neutral[at].cache_hint != message.cache_hint:
            return None
        if self._family == "openai" and self._neutral[at].name != message.name:
            return None  # the others do not send it
        native = self._given[at]
        return native if self._at_home(native, message) else None

    def _place(self, message: Message) -> int | None:
        if message.role != "tool":
            at = self._by_parts.get(id(message.parts))
            return at if at is not None and self._neutral[at].role == message.role else None
        result = message.parts[0]
        if self._family == "google" or not isinstance(result, ToolResult):
            return None
        at = self._results.get((result.call_id, id(result.content)))
        if at is None:
            return None
        before = self._neutral[at].parts[0]
        return at if isinstance(before, ToolResult) and before.is_error == result.is_error else None

    def _at_home(self, native: BaseMessage, message: Message) -> bool:
        if isinstance(native, AIMessage):
            if native.additional_kwargs.get("refusal") or native.response_metadata.keys() & CITING:
                return False  # the integration would leave it there
            # Ours, and nothing in it was refused: the integration knows what to send of it.
            if is_own(message.origin, self._origin):
                return _sends_back(native, self._family)
            return _is_bare(native, self._family) and _is_all(native, message)
        if type(native) not in (HumanMessage, SystemMessage, ToolMessage):
            return False
        if native.additional_kwargs.keys() & _READ:
            return False
        return _is_plain(native, self._family) and _is_all(native, message)


_READ = frozenset({"cache_control", "name"})
"""What in `additional_kwargs` of a user's message some integration sends, and not every vendor takes."""
_COMPLETED = frozenset({"text", "tool_call", "invalid_tool_call", "tool_use", "function_call"})
"""Blocks that ChatOpenAI sends over Chat Completions, or leaves out since they stand elsewhere too."""


def _sends_back(native: BaseMessage, family: Family | None) -> bool:
    """Whether the integration can send back what its model said: it made the message itself, and can read it."""
    if native.additional_kwargs.keys() & {CALL_DATA, THOUGHTS}:
        return False  # opaque state where we keep it
    if isinstance(native.content, str):
        return True
    kinds = {block.get("type") for block in _dicts(native)}
    if family == "openai":  # and not by the vendor's other API
        return kinds <= _COMPLETED
    if family == "anthropic":  # one that was redacted stands among our own blocks as it does not among its
        return not any(block.get("type") == "reasoning" and not _signed(block) for block in _dicts(native))
    return not (family == "google" and "server_tool_result" in kinds)


def _dicts(native: BaseMessage) -> list[dict[str, Any]]:
    return [block for block in native.content if isinstance(block, dict)]


def _signed(block: Mapping[str, Any]) -> bool:
    extras = block.get("extras")
    return isinstance(extras, Mapping) and bool(extras.get("signature"))


def _is_all(native: BaseMessage, message: Message) -> bool:
    """Whether no block was left out: a blank one has no neutral form, and not every vendor takes it."""
    if isinstance(native.content, str):
        return True
    first = message.parts[0] if message.parts else None
    read = first.content if isinstance(first, ToolResult) else message.parts
    return len(native.content) == sum(not isinstance(part, ToolCall) for part in read)


def _is_bare(native: BaseMessage, family: Family | None) -> bool:
    """Content and calls, and nothing that a vendor left."""
    return not native.additional_kwargs and not native.response_metadata and _is_plain(native, family)


def _is_plain(native: BaseMessage, family: Family | None) -> bool:
    """Whether all its content has a form that the integration passes on as it must be."""
    content = native.content
    if isinstance(content, str):
        return True
    own = _OWN.get(family or "")
    return own is not None and all(isinstance(block, str) or own(block) for block in content)


_BREAKPOINTS = frozenset({"type", "text", "prompt_cache_breakpoint"})


def _openai(block: Mapping[str, Any]) -> bool:
    kind = block.get("type")
    if kind == "text":
        return block.keys() <= _BREAKPOINTS
    if kind in ("image_url", "input_audio", "file"):
        return block.keys() == {"type", kind} and isinstance(block[kind], Mapping)
    return False


def _responses(block: Mapping[str, Any]) -> bool:
    kind = block.get("type")
    if kind in ("input_text", "input_image", "input_file"):
        return True
    return kind != "input_audio" and _openai(block)


def _anthropic(block: Mapping[str, Any]) -> bool:
    kind = block.get("type")
    if kind == "text":
        return block.keys() <= {"type", "text", "cache_control", "citations"}
    if kind in ("image", "document"):
        return isinstance(block.get("source"), Mapping)
    return kind == "search_result"


def _google(block: Mapping[str, Any]) -> bool:
    kind = block.get("type")
    if kind == "text":
        return block.keys() == {"type", "text"}
    return kind == "media" and "cache_control" not in block


_OWN = {"openai": _openai, "responses": _responses, "anthropic": _anthropic, "google": _google}
"""By family: the blocks of a user's content that its integration is at home with."""
