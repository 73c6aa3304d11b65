"""What must hold of any conversation at any target, besides that its body obeys the wire."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from shared_core.chat.request import ChatRequest
from shared_core.errors import ErrorKind, ProviderError
from shared_core.history import Change, prepare
from tests.history import wires
from tests.history.histories import PDF
from tests.history.origins import PNG
from tests.history.random_histories import NOTES
from tests.history.targets import To, request_of

_TAGGED = re.compile("<think>.*?</think>", re.DOTALL)
MARK = re.compile("«[^»]*»")
_FILES = [base64.b64encode(data).decode().rstrip("=") for data in (PNG, PDF, NOTES)] + [NOTES.decode()]

_EXPLAINS = {"orphan result", "older result", "failure notice"}
"""The changes that leave something out which a user, a tool or the model said aloud."""


def said(body: Any) -> str:
    """All of a body as one text, bytes in base64."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        return str(value)

    text = json.dumps(body, ensure_ascii=False, default=plain)
    # LangChain writes some arguments in ASCII: JSON within JSON.
    return text.replace("\\\\u00ab", "«").replace("\\\\u00bb", "»")


def _given(message: BaseMessage) -> str:
    """What stands in a message for a reader: its text, the arguments of its calls, what a refusal said."""
    parts: list[Any] = [message.name, message.content if isinstance(message.content, str) else message.text]
    if isinstance(message, AIMessage):
        parts += [c["args"] for c in message.tool_calls] + [c["args"] for c in message.invalid_tool_calls]
        parts.append(message.additional_kwargs.get("refusal"))
    if isinstance(message.content, list):
        parts += [b.get("refusal") for b in message.content if isinstance(b, dict)]
        parts += [b.get("text") for b in message.content if isinstance(b, dict) and b.get("type") != "reasoning"]
    return json.dumps(parts, ensure_ascii=False, default=str)


def files_in(text: str) -> int:
    """How often one of the files of these tests stands in `text`, as bytes or as the words that it holds."""
    return sum(text.count(one) for one in _FILES)


def check(history: Sequence[BaseMessage], to: To) -> dict[str, Any] | None:
    """The body for `history` at `to`, with everything checked that must hold; None where the target is incapable."""
    before = copy.deepcopy(list(history))
    body = look(history, request_of(history), to, typed=True, twice=True)
    assert list(history) == before, "the caller's messages were changed"
    return body


def look(
    history: Sequence[BaseMessage], request: ChatRequest, to: To, *, typed: bool, twice: bool
) -> dict[str, Any] | None:
    """The body for one conversation at one target: valid, whole, and the same whenever it is made."""
    changes: list[Change] = []
    try:
        body = to.make(request, changes)
    except ProviderError as error:
        if error.kind is not ErrorKind.INCAPABLE:
            raise
        assert any(_has_files(m) for m in history), "only a file makes a target incapable"
        return None
    to.obeys(body)
    if typed and to.typed is not None:
        wires.typed(to.typed, body)
    _nothing_is_lost(history, body, changes, to)
    if twice:
        again: list[Change] = []
        assert said(to.make(request, again)) == said(body), "the same history gave another body"
        assert again == changes
    _idempotent(request, to)
    return body


def _idempotent(request: ChatRequest, to: To) -> None:
    """What has been translated for a target is not changed by translating it again."""
    once = prepare(request.messages, origin=to.origin, rules=to.rules)
    assert prepare(once, origin=to.origin, rules=to.rules) == once


def _has_files(message: BaseMessage) -> bool:
    return files_in(said(message.content)) > 0


def _nothing_is_lost(history: Sequence[BaseMessage], body: Any, changes: Sequence[Change], to: To) -> None:
    """What anybody said is in the body, or a change of that very message says that it was left out."""
    text = said(body)
    explained = {change.message for change in changes if change.kind in _EXPLAINS}
    named = {change.message for change in changes if change.kind == "name"}
    thought = {change.message for change in changes if change.kind == "reasoning"}
    files = 0
    for at, message in enumerate(history):
        if at in explained:
            continue
        for mark in MARK.findall(_given(message)):
            if "secret" in mark:  # a thought that stands in the text, between tags
                assert at in thought
            else:
                assert mark in text, f"{mark} of message {at} is lost at {to.name}; changes: {changes}"
        files += files_in(said(message.content))
        if message.name and at not in named and _TAGGED.sub("", message.text).strip():
            assert message.name in text or message.type == "tool", f"who spoke in message {at} is lost"
    # The Responses API knows a picture it has drawn by its id.
    found = files_in(text) + text.count('"image_generation_call"')
    assert found >= files, f"{files} files were given, {found} arrive"
