"""What a model's text says: visible text, thoughts in `<think>`, calls in `<tool_call>`; parsed as it comes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from shared_core.providers.llama_cpp.stops import held_back

__all__ = ["CALL", "CALL_END", "THINK", "THINK_END", "VISIBLE", "Spoken", "SpokenParser", "parse_call"]

CALL, CALL_END = "<tool_call>", "</tool_call>"
THINK, THINK_END = "<think>", "</think>"
VISIBLE = frozenset({CALL, CALL_END, THINK, THINK_END})
"""Markers that must show in the text even where a file declares them control tokens, which render as nothing."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One piece: `text` and `thought` carry text, `call` a tool's name and its arguments as JSON text."""

    kind: Literal["text", "thought", "call"]
    text: str = ""
    name: str = ""
    arguments: str = "{}"


def parse_call(body: str) -> tuple[str, str] | None:
    """The name and the JSON arguments of a `{"name": …, "arguments": {…}}`, or None if it is no such thing."""
    try:
        call: Any = json.loads(body)
    except ValueError:
        return None
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return call["name"], json.dumps(arguments, ensure_ascii=False)


class SpokenParser:
    """Text in, `Spoken` pieces out. A call comes out whole or not at all; blank space around a call is dropped.

    `<think>` is understood only before any other text, where reasoning models put it; `<tool_call>` only when there are
    tools to call. A call that is not JSON comes out as the text it is.
    """

    def __init__(
        self,
        *,
        tools: bool,
        inside: Literal["text", "thought", "call"] = "text",
        begun: bool = False,
        delivered: str = "",
    ) -> None:
        """`inside` says what the prompt has already opened, `begun` whether visible text has come before.

        `delivered` is text that the caller has: a call may begin at its end, but it does not come out again.
        """
        self._tools = tools
        self._state: Literal["text", "thought", "call"] = inside
        size = held_back(delivered, (CALL,)) if tools and inside == "text" else 0
        self._buffer = delivered[len(delivered) - size :]
        self._old = size
        """How many characters of the buffer the caller has already."""
        self._fresh = inside == "text" and not begun  # nothing visible yet: a <think> may still come
        self._trim = False  # blank space that follows a call or a thought is not part of the answer
        self.calls = 0
        self.unfinished: str | None = None
        """The body of a call that a limit cut off."""

    @property
    def inside(self) -> Literal["text", "thought", "call"]:
        """What is being said now."""
        return self._state

    @property
    def body(self) -> str:
        """What of a call has been written so far."""
        return self._buffer if self._state == "call" else ""

    @property
    def transparent(self) -> bool:
        """Whether all further text is just text, and comes out as it goes in."""
        return not (self._tools or self._fresh or self._trim or self._buffer or self._state != "text")

    def resume(self, body: str) -> None:
        """Be inside a call of which this much is written."""
        self._state, self._buffer, self._old = "call", body, 0

    def deafen(self) -> None:
        """Understand no more calls: what is being said is the text of an answer that may well contain the marker."""
        self._tools = False

    def feed(self, text: str) -> list[Spoken]:
        """The pieces that are certain now."""
        self._buffer += text
        out: list[Spoken] = []
        while self._step(out):
            pass
        return out

    def close(self) -> list[Spoken]:
        """The answer ended: what was held back is what it looks like. Half a call is kept in `unfinished`."""
        out: list[Spoken] = []
        rest, self._buffer = self._buffer, ""
        if self._state == "call":
            if (call := parse_call(rest)) is not None:
                self._call(call, out)
            elif rest.strip():
                self.unfinished = rest
        elif self._state == "thought":
            self._say("thought", rest, out)
        elif not (self._trim and not rest.strip()):
            self._say("text", rest, out)
        return out

    def _step(self, out: list[Spoken]) -> bool:
        buffer = self._buffer
        if self._state == "call":
            body, end, rest = buffer.partition(CALL_END)
            if not end:
                return False
            self._buffer, self._state, self._trim = rest, "text", True
            call = parse_call(body)
            if call is None:
                self._say("text", f"{CALL}{body}{CALL_END}", out)
            else:
                self._call(call, out)
            return bool(rest)
        if self._state == "thought":
            body, end, rest = buffer.partition(THINK_END)
            if end:
                self._say("thought", body, out)
                self._buffer, self._state, self._trim = rest, "text", True
                return bool(self._buffer)
            keep = held_back(buffer, (THINK_END,))
            self._say("thought", buffer[: len(buffer) - keep], out)
            self._buffer = buffer[len(buffer) - keep :]
            return False
        markers = [m for m, on in ((CALL, self._tools), (THINK, self._fresh)) if on]
        hits = [(at, m) for m in markers if (at := buffer.find(m)) >= 0]
        if self._fresh and hits:  # only blank space may precede a thought
            hits = [(at, m) for at, m in hits if m != THINK or not buffer[:at].strip()]
        if hits:
            at, marker = min(hits)
            before = buffer[:at].rstrip()
            if before:
                self._say("text", before if marker == CALL else buffer[:at], out)
            self._state, self._old = "call" if marker == CALL else "thought", 0
            self._fresh = False
            self._buffer = buffer[at + len(marker) :]
            return bool(self._buffer)
        keep = held_back(buffer, markers)
        if self._tools or self._fresh:  # blank space may turn out to stand before a marker
            head = buffer[: len(buffer) - keep]
            keep += len(head) - len(head.rstrip())
        sure = buffer[: len(buffer) - keep]
        if sure.strip():
            self._fresh = False
        if self._trim:
            sure = sure.lstrip()
        if sure:
            self._trim = False
            self._say("text", sure, out)
            self._buffer = buffer[len(buffer) - keep :]
        return False

    def _say(self, kind: Literal["text", "thought"], text: str, out: list[Spoken]) -> None:
        old, self._old = self._old, max(0, self._old - len(text))
        if text := text[old:]:
            out.append(Spoken(kind, text))

    def _call(self, call: tuple[str, str], out: list[Spoken]) -> None:
        self.calls += 1
        out.append(Spoken("call", name=call[0], arguments=call[1]))
