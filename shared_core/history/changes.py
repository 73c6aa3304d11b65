"""What a translation could not carry over as it was: one `Change` each, and `summary` to tell them in a few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Change", "ChangeKind", "summary"]

ChangeKind = Literal[
    "reasoning",
    "server block",
    "citation",
    "orphan result",
    "older result",
    "failure notice",
    "name",
    "late system",
    "moved media",
    "unanswered call",
    "broken arguments",
    "file as text",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was left out, moved, told in other words or made up."""

    kind: ChangeKind
    message: int | None = None
    """Its position in the conversation that was handed in, from 0; None when it belongs to none alone."""
    detail: str = ""
    """A tool call's id, a block's type, a name."""

    def __str__(self) -> str:
        return summary((self,))[0]


_WORDS: Mapping[ChangeKind, tuple[str, str, str]] = {
    "reasoning": ("thought", "thoughts", "of another model left out"),
    "server block": ("block", "blocks", "of another vendor's server-side tools left out"),
    "citation": ("citation", "citations", "without an address left out"),
    "orphan result": ("tool result", "tool results", "left out: no such call"),
    "older result": ("tool result", "tool results", "left out: the call has a later one"),
    "failure notice": ("notice", "notices", "of a failed call left out"),
    "name": ("name", "names", "of a speaker left out"),
    "late system": ("late system message", "late system messages", "moved"),
    "moved media": ("picture or file", "pictures or files", "moved to a user turn"),
    "unanswered call": ("tool call", "tool calls", "without a result told as cancelled"),
    "broken arguments": ("tool call", "tool calls", "with broken arguments told as not made"),
    "file as text": ("file", "files", "told as text"),
}
_MOST = 5


def summary(changes: Iterable[Change]) -> tuple[str, ...]:
    """One sentence per kind of change, with how often and where: what the journal and the metadata show.

    ``("2 tool results left out: no such call (messages 3, 5: call_a, call_b)",)``
    """
    groups: dict[ChangeKind, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.kind, []).append(change)
    return tuple(_sentence(kind, found) for kind, found in groups.items())


def _sentence(kind: ChangeKind, found: list[Change]) -> str:
    one, many, what = _WORDS[kind]
    places = sorted({c.message for c in found if c.message is not None})
    details = dict.fromkeys(c.detail for c in found if c.detail)
    where = f"message{'s' if len(places) > 1 else ''} {_listed(map(str, places))}" if places else ""
    inside = ": ".join(x for x in (where, _listed(details)) if x)
    return f"{len(found)} {one if len(found) == 1 else many} {what}" + (f" ({inside})" if inside else "")


def _listed(items: Iterable[str]) -> str:
    shown = [item if len(item) <= 40 else item[:39] + "…" for item in items]
    return ", ".join(shown[:_MOST]) + (", …" if len(shown) > _MOST else "")
