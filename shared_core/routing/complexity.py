"""How hard a request is, and who should therefore be asked first: `estimate` and `tiered`. Pure; nobody is left out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeVar, get_args

from shared_core.chat.quick import quickly
from shared_core.chat.request import (
    CHARS_PER_TOKEN,
    COMPLEXITIES,
    Audio,
    ChatRequest,
    Complexity,
    File,
    Image,
    Message,
    ToolResult,
)
from shared_core.errors import ConfigurationError, nearest

__all__ = ["Complexity", "Features", "Judgement", "checked", "estimate", "features_of", "judged", "tiered"]

Level = Literal["simple", "medium", "complex"]

_FIRST: Final = 3_000
"""Characters at the beginning of the last question that are searched for words, so that the cost does not grow with
what is pasted in."""
_LAST: Final = 1_000
"""Characters at its end that are searched, too."""
MEDIUM: Final = 1
"""Points from which a request is of medium complexity."""
COMPLEX: Final = 4
"""Points from which it is complex."""


_APART: Final = bytes(byte if byte in range(ord("a"), ord("z") + 1) else ord(" ") for byte in range(256))
"""Everything but small letters becomes a space: then a text falls into its words in half of a regex's time."""
_HARD: Final = frozenset(
    """
    prove proof derive derivation theorem analyze analyse analyses analysis architect architecture tradeoff tradeoffs
    refactor refactoring debug optimize optimise optimization algorithm algorithms complexity strategy design implement
    compare contrast evaluate critique simulate forecast diagnose negotiate legal migrate migration concurrency
    concurrent distributed security vulnerability vulnerabilities comprehensive
    """.split()  # noqa: SIM905  # a list of words is read more easily
)
_HARD_PHRASES: Final = (
    "step by step", "step-by-step", "trade-off", "root cause", "in depth", "think hard", "think carefully",
    "reason about", "reason through",
)  # fmt: skip
_MIDDLING: Final = frozenset(
    {"explain", "why", "write", "draft", "rewrite", "improve", "outline", "describe", "review", "plan"}
)
_MIDDLING_PHRASES: Final = ("how do ", "how does ", "how to ", "how can ", "how would ")
_EASY: Final = frozenset(
    {
        "translate",
        "classify",
        "spell",
        "spelling",
        "define",
        "convert",
        "extract",
        "hello",
        "hi",
        "thanks",
        "synonym",
        "synonyms",
        "label",
    }
)
_EASY_PHRASES: Final = (
    "yes or no", "true or false", "one word", "one sentence", "capital of", "thank you", "who is", "who was",
    "when is", "when was", "when did", "what is the", "what's the",
)  # fmt: skip
_CODE_SIGNS: Final = ("```", "=>", "Traceback (most recent call last)", ";\n", "{\n", "();", "):\n", "#include")
# A line begins with "\n" here, which the text is given in front: a regex looks for that far quicker than for "^".
_CODE_LINE = re.compile(
    r"\n[ \t]*(?:def |class |import |from |function |const |let |public |private |SELECT |func |fn ).*[({;:]"
)
_ITEM = re.compile(r"\n[ \t]*(?:\d+[.)]|[-*•]) +\S")
_MATHS_SIGNS: Final = "∑∫√≤≥∂∞"
_MATHS: Final = tuple(
    (sign, re.compile(formula))
    for sign, formula in (
        ("\\", r"\\(?:frac|sum|int|sqrt)"),
        ("*", r"\d ?\* ?\d"),
        ("/", r"\d ?/ ?\d"),
        ("^", r"(?:\d|\b[a-z]) ?\^ ?\d"),
        (" = ", r"\b[a-z] = [-\d(a-z]"),
    )
)
"""What is in every formula of a kind, and is found in no time; and what makes it one."""


@dataclass(frozen=True, slots=True)
class Features:
    """What is counted in a request. Figures alone, so that it can be kept without what was asked."""

    question_tokens: int = 0
    """Of the last user turn, at four characters each."""
    all_tokens: int = 0
    """Of all turns."""
    turns: int = 0
    """Turns by the user and by the assistant."""
    tools: int = 0
    tool_results: int = 0
    schema_fields: int = 0
    """Properties of the schema that the answer must have, nested ones included."""
    media: int = 0
    """Pictures, documents and sounds."""
    code: bool = False
    maths: bool = False
    parts: int = 0
    """Numbered or bulleted items, or questions, in the last user turn: the larger of the two."""
    hard_words: int = 0
    middling_words: int = 0
    easy_words: int = 0
    max_tokens: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """How complex a request is taken to be, and why."""

    level: Level
    asked: Complexity
    """What was asked for: one of the levels, or 'auto'."""
    points: int | None = None
    """What 'auto' counted; None where nobody had to."""
    why: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain data, as it stands in `fallback` metadata."""
        told: dict[str, Any] = {"level": self.level, "asked": self.asked}
        if self.points is not None:
            told |= {"points": self.points, "why": list(self.why)}
        return told

    def __str__(self) -> str:
        if self.points is None:
            return f"{self.level}, as asked"
        return f"{self.level}, {self.points} points: {', '.join(self.why) or 'nothing hard about it'}"


def checked(complexity: Any) -> Complexity | None:
    """`complexity` as it was given, if that is one.

    Raises:
        ConfigurationError: it is none; names the nearest.
    """
    if complexity is not None and complexity not in COMPLEXITIES:
        raise ConfigurationError(f"unknown complexity {complexity!r}. {nearest(str(complexity), COMPLEXITIES)}")
    found: Complexity | None = complexity
    return found


def features_of(request: ChatRequest) -> Features:
    """What counts in `request`. Takes the same time for any length of text, but for counting it."""
    question = _question(request.messages)
    looked_at = question[:_FIRST] + question[max(_FIRST, len(question) - _LAST) :]
    lowered = looked_at.lower()
    words = {*lowered.encode("ascii", "replace").translate(_APART).decode("ascii").split()}
    lines = "\n" + looked_at
    media = results = turns = 0
    for message in request.messages:
        turns += message.role in ("user", "assistant")
        for part in message.parts:
            kind = type(part)
            results += kind is ToolResult
            media += kind in (Image, File, Audio)
    return _features(
        question_tokens=len(question) // CHARS_PER_TOKEN,
        all_tokens=request.characters // CHARS_PER_TOKEN,
        turns=turns,
        tools=len(request.tools),
        tool_results=results,
        schema_fields=0 if request.output is None else max(1, _properties(request.output.schema)),
        media=media,
        code=_is_code(lines),
        maths=_is_maths(looked_at),
        parts=max(len(_ITEM.findall(lines)), looked_at.count("?")),
        hard_words=_count(lowered, words, _HARD, _HARD_PHRASES),
        middling_words=_count(lowered, words, _MIDDLING, _MIDDLING_PHRASES),
        easy_words=_count(lowered, words, _EASY, _EASY_PHRASES),
        max_tokens=request.max_tokens,
    )


_features = quickly(Features)


def _is_code(lines: str) -> bool:
    """Whether some of it is code."""
    for sign in _CODE_SIGNS:
        if sign[0] in lines and sign in lines:  # one letter is found in a tenth of the time
            return True
    return _CODE_LINE.search(lines) is not None


def _is_maths(text: str) -> bool:
    """Whether there is a formula in it."""
    for sign, formula in _MATHS:
        if sign in text and formula.search(text) is not None:
            return True
    return not text.isascii() and any(sign in text for sign in _MATHS_SIGNS)


def _count(lowered: str, words: set[str], known: frozenset[str], phrases: Sequence[str]) -> int:
    """How many different words and phrases of a kind there are."""
    return len(words & known) + sum([phrase in lowered for phrase in phrases])


def _question(messages: Sequence[Message]) -> str:
    """The last user turn."""
    return next((m.text for m in reversed(messages) if m.role == "user"), messages[-1].text if messages else "")


def _properties(schema: Any) -> int:
    """How many properties a schema has, at all depths."""
    if isinstance(schema, list):
        return sum(map(_properties, schema))
    if not isinstance(schema, dict):
        return 0
    own = schema.get("properties")
    return (len(own) if isinstance(own, dict) else 0) + sum(map(_properties, schema.values()))


def estimate(features: Features) -> Judgement:
    """How complex a request with these features is. More of anything but easy words never makes it simpler."""
    f = features
    rows: tuple[tuple[int, str, int | None], ...] = (
        (_steps(f.question_tokens, 60, 400, 2000), "a question of about {} tokens", f.question_tokens),
        (_steps(f.all_tokens, 4000, 16000), "a conversation of about {} tokens", f.all_tokens),
        (_steps(f.turns, 6, 20), "{} turns", f.turns),
        (_steps(f.tools, 1, 6), "tools: {}", f.tools),
        (_steps(f.tool_results, 3), "{} tool results", f.tool_results),
        (_steps(f.schema_fields, 4, 12), "a schema of {} fields", f.schema_fields),
        (_steps(f.media, 1, 4), "pictures, documents or sounds: {}", f.media),
        (2 if f.code else 0, "code", f.code),
        (1 if f.maths else 0, "formulas", f.maths),
        (_steps(f.parts, 3, 6), "{} parts", f.parts),
        (2 * min(3, f.hard_words), "words of hard tasks: {}", f.hard_words),
        (min(1, f.middling_words), "asks for an explanation or a text", f.middling_words),
        (_steps(f.max_tokens, 4000), "a long answer is allowed", f.max_tokens),
        # A word such as 'translate' says nothing about what comes with tools, code or proofs.
        (-min(2, f.easy_words) if not (f.hard_words or f.code or f.tools) else 0, "words of easy tasks", f.easy_words),
    )
    points = sum([worth for worth, _, _ in rows])
    level: Level = "complex" if points >= COMPLEX else "medium" if points >= MEDIUM else "simple"
    return _judgement(level, "auto", points, tuple([why.format(figure) for worth, why, figure in rows if worth]))


_judgement = quickly(Judgement)


def _steps(figure: int | None, *thresholds: int) -> int:
    """How many of the thresholds, smallest first, it has reached."""
    return bisect_right(thresholds, figure) if figure else 0


def judged(complexity: Complexity, request: ChatRequest) -> Judgement:
    """The level that was asked for; for 'auto', the one that is estimated."""
    return estimate(features_of(request)) if complexity == "auto" else _judgement(complexity, complexity)


R = TypeVar("R")
_QUICK: Final = {"fast": 0, None: 1, "standard": 1, "best": 2}


def tiered(level: Level, items: Sequence[R], tiers: Sequence[str | None], costs: Sequence[float]) -> Sequence[R]:
    """`items`, which stand in the strategy's order, as `level` wants them; nobody is left out.

    'simple': fast tiers before standard before best, in each the cheapest first. 'complex': best before standard before
    fast. 'medium': as they stand. Who declares no tier is standard; equals stay as they stand.
    """
    if level == "medium":
        return items
    places: Sequence[int] = range(len(items))
    if level == "simple":
        ranks = [_QUICK[tier] for tier in tiers]
        places = sorted(places, key=costs.__getitem__)
    else:
        ranks = [-_QUICK[tier] for tier in tiers]
    return [items[i] for i in sorted(places, key=ranks.__getitem__)]


assert get_args(Complexity) == COMPLEXITIES  # one list of words, told twice for types and for values
