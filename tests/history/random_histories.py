"""Conversations by chance: several vendors in one, parallel and dangling calls, odd ids, broken JSON, blanks, files."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from shared_core.chat.request import Origin
from tests.history.histories import LONG_ID, PDF
from tests.history.origins import FORMS, PNG, Call, Said, Turn, ours

NOTES = b"a file of notes"
_IDS = ["call_1", "call_2", "toolu_01AbC", "", LONG_ID, "functions.f:0", "abcdefghi", "ü", "a b", "c__thought__c2"]
_NAMES = ["weather", "weather", "plot", "files.read", "with space", "n" * 70]
_ARGS: list[dict[str, Any]] = [{}, {"city": "Oslo"}, {"nested": {"list": [1, None, "é"]}}, {"n": 1e300}]
_RAW = ['{"city": "Os', "nonsense", '{"city": "Oslo",}']
"""What LangChain calls invalid. Other JSON than objects its own parsers do not survive."""
_BLANK = ["", " ", "\n\t"]
_SPEAKERS = ["Ann", "Bob B.", "Åsa"]

_ELSEWHERE = {
    "another model": ours("anthropic", Origin("anthropic", "claude-opus-4-1")),
    "another endpoint": ours("anthropic", Origin("anthropic", "claude-sonnet-4-5", "https://proxy.example")),
    "another release": ours("google", Origin("google", "gemini-2.5-pro")),
    "another proxy": ours("deepseek", Origin("deepseek", "deepseek-reasoner", "https://proxy.example")),
}
_WRITERS: dict[str, Turn] = {**FORMS, **_ELSEWHERE}


@dataclass
class History:
    """A conversation, and whose thoughts are in it: by mark, the vendor (and scope) that thought it."""

    messages: list[BaseMessage] = field(default_factory=list)
    thoughts: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    """Addresses that answers cite."""


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 0
        self.made = History()
        self._open: list[str] = []

    def _mark(self, word: str = "") -> str:
        self._number += 1
        return f"«{word}{self._number}»"

    def _words(self) -> str:
        if self._chance.random() < 0.12:
            return self._chance.choice(_BLANK)
        lead = self._chance.choice(["", "", "Error: ", "  ", "Continue. ", "<system-note> "])
        return f"{lead}w {self._mark()}{self._chance.choice(['', '', ' ', chr(10)])}"

    def _file(self) -> dict[str, Any]:
        data, mime, name = self._chance.choice(
            [(PNG, "image/png", None), (PNG, "image/png", None), (PDF, "application/pdf", "a.pdf"),
             (NOTES, "text/plain", "n.txt")]
        )  # fmt: skip
        b64 = base64.b64encode(data).decode()
        forms: list[dict[str, Any]] = [
            {"type": "file" if mime[0] != "i" else "image", "base64": b64, "mime_type": mime, "filename": name or "x"}
        ]
        if mime == "image/png":
            forms += [
                {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{b64}"}},
                {"type": "image", "source": {"type": "base64", "media_type": mime, "data": b64}},
                {"type": "media", "mime_type": mime, "data": b64},
            ]
        elif mime == "application/pdf":
            forms += [
                {"type": "file", "file": {"filename": name, "file_data": f"data:{mime};base64,{b64}"}},
                {"type": "document", "source": {"type": "base64", "media_type": mime, "data": b64}, "title": name},
            ]
        return self._chance.choice(forms)

    def _content(self) -> str | list[str | dict[str, Any]]:
        if self._chance.random() < 0.7:
            return self._words()
        blocks: list[str | dict[str, Any]] = []
        for _ in range(self._chance.randint(0, 3)):
            if self._chance.random() < 0.12:
                blocks.append(self._file())
            else:
                block: dict[str, Any] = {"type": "text", "text": self._words()}
                if self._chance.random() < 0.2:
                    block["cache_control"] = {"type": "ephemeral"}
                blocks.append(block)
        return blocks

    def _calls(self) -> tuple[Call, ...]:
        calls = []
        for _ in range(self._chance.choice([1, 1, 1, 2, 3])):
            raw = self._chance.choice(_RAW) if self._chance.random() < 0.1 else None
            args = dict(self._chance.choice(_ARGS))
            if self._chance.random() < 0.3:
                args["q"] = self._mark()
            calls.append(Call(self._chance.choice(_IDS), self._chance.choice(_NAMES), args, raw))
        return tuple(calls)

    def assistant(self) -> None:
        vendor = self._chance.choice(list(_WRITERS))
        thought = None
        if self._chance.random() < 0.4:
            mark = self._mark("secret")
            thought = f"hm {mark}"
            self.made.thoughts[mark] = vendor
        calls = self._calls() if self._chance.random() < 0.45 else ()
        words = self._words()
        source = None
        if words.strip() and self._chance.random() < 0.1:
            source = (f"https://example.org/{len(self.made.messages)}", "A page")
        picture = self._chance.random() < 0.04
        refusal = not calls and self._chance.random() < 0.06
        said = Said(words if not refusal else f"no {self._mark()}", thought, calls, source, picture, refusal)
        message = _WRITERS[vendor](said)
        if source and _cites(message):
            self.made.sources.append(source[0])
        if self._chance.random() < 0.08:
            message = message.model_copy(update={"name": self._chance.choice(_SPEAKERS)})
        self.made.messages.append(message)
        self._open += [call.id for call in calls]
        if calls and self._chance.random() < 0.85:
            self.results()

    def results(self) -> None:
        """Results of what was called: most of them, in any order, some twice, some that nobody asked for."""
        ids = list(self._open)
        if self._chance.random() < 0.3:
            self._chance.shuffle(ids)
        for call_id in ids:
            if self._chance.random() < 0.12:
                continue
            for _ in range(2 if self._chance.random() < 0.08 else 1):
                status = "error" if self._chance.random() < 0.15 else "success"
                self.made.messages.append(ToolMessage(self._content(), tool_call_id=call_id, status=status))
        if self._chance.random() < 0.06:
            self.made.messages.append(ToolMessage(self._words(), tool_call_id="call_nobody_made"))
        self._open.clear()

    def user(self) -> None:
        name = self._chance.choice(_SPEAKERS) if self._chance.random() < 0.1 else None
        self.made.messages.append(HumanMessage(self._content(), name=name))

    def system(self) -> None:
        self.made.messages.append(SystemMessage(self._words()))

    def other(self) -> None:
        if self._chance.random() < 0.5:
            self.made.messages.append(ChatMessage(content=self._words(), role=self._chance.choice(["critic", "human"])))
        else:
            said = f"Model call failed after 3 attempts with APIError: {self._mark()}"
            self.made.messages.append(AIMessage(said))


def _cites(message: AIMessage) -> bool:
    """Whether the vendor has a way to cite: a refusal cites nothing, and neither does llama.cpp."""
    return "https://example.org/" in f"{message.content} {message.response_metadata}"


def history(chance: random.Random) -> History:
    """One conversation of one to fourteen turns."""
    maker = _Maker(chance)
    if chance.random() < 0.5:
        maker.system()
    for _ in range(chance.choice([1, 2, 3, 4, 5, 6, 8, 10, 14])):
        turn = chance.choices([maker.user, maker.assistant, maker.system, maker.other], [10, 11, 1, 1])[0]
        turn()
    return maker.made
