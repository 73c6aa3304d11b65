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
from shared_core.history import Change
from tests.history import wires
from tests.history.histories import PDF
from tests.history.origins import PNG
from tests.history.targets import To, request_of

MARK = re.compile("«[^»]*»")
_PNG64, _PDF64 = base64.b64encode(PNG).decode().rstrip("="), base64.b64encode(PDF).decode().rstrip("=")

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
    """What stands in a message for a reader: its text, the arguments of its calls, what a refusal or a voice said."""
    parts: list[Any] = [message.name, message.content if isinstance(message.content, str) else message.text]
    if isinstance(message, AIMessage):
        parts += [c["args"] for c in message.tool_calls] + [c["args"] for c in message.invalid_tool_calls]
        parts.append(message.additional_kwargs.get("refusal"))
    if isinstance(message.content, list):
        parts += [b.get("refusal") for b in message.content if isinstance(b, dict)]
        parts += [b.get("text") for b in message.content if isinstance(b, dict) and b.get("type") != "reasoning"]
    return json.dumps(parts, ensure_ascii=False, default=str)


def _files(message: BaseMessage) -> int:
    text = said(message.content)
    return text.count(_PNG64) + text.count(_PDF64)


def check(history: Sequence[BaseMessage], to: To, *, typed: bool = True) -> dict[str, Any] | None:
    """The body for `history` at `to`, with everything checked that must hold; None where the target is incapable."""
    before = copy.deepcopy(list(history))
    request = request_of(history)
    changes: list[Change] = []
    body: dict[str, Any] | None
    try:
        body = to.make(request, changes)
    except ProviderError as error:
        if error.kind is not ErrorKind.INCAPABLE:
            raise
        body = None
    assert list(history) == before, "the caller's messages were changed"
    if body is None:
        assert _has_files(history), "only a file makes a target incapable"
        return None
    to.obeys(body)
    if typed and to.typed is not None:
        wires.typed(to.typed, body)
    _nothing_is_lost(history, body, changes, to)
    again: list[Change] = []
    assert said(to.make(request, again)) == said(body), "the same history gave another body"
    assert again == changes
    return body


def _has_files(history: Sequence[BaseMessage]) -> bool:
    return any(_files(m) or '"url"' in said(m.content) or "file_id" in said(m.content) for m in history)


def _nothing_is_lost(history: Sequence[BaseMessage], body: Any, changes: Sequence[Change], to: To) -> None:
    """What anybody said is in the body, or a change of that very message says that it was left out."""
    text = said(body)
    explained = {change.message for change in changes if change.kind in _EXPLAINS}
    unnamed = {change.message for change in changes if change.kind == "name"}
    files = 0
    for at, message in enumerate(history):
        given = _given(message)
        if at not in explained:
            for mark in MARK.findall(given):
                if "secret" in mark:  # a thought that a model of no vendor left in its text
                    assert at in {c.message for c in changes if c.kind == "reasoning"}
                    assert mark not in text, f"{mark} is a foreign thought"
                    continue
                assert mark in text, f"{mark} of message {at} is lost at {to.name}; changes: {changes}"
            files += _files(message)
        if message.name and at not in explained | unnamed and message.type in ("human", "ai"):
            assert message.name in text, f"the speaker {message.name!r} of message {at} is lost"
    found = text.count(_PNG64) + text.count(_PDF64)
    assert found >= files or to.name == "ChatOpenAI, Responses", f"{files} files were given, {found} arrive"


def thoughts_in(body: Any) -> bool:
    """Whether a thought of any vendor is shown."""
    return "«secret»" in said(body)


def whole(request: ChatRequest, to: To) -> tuple[dict[str, Any], list[Change]]:
    """The body and what was changed on the way."""
    changes: list[Change] = []
    return to.make(request, changes), changes
