"""What one target accepts of a conversation: `prepare` rewrites a history so that a given vendor takes it.

Pure: no clock, no I/O, no vendor SDK. The rules per vendor are data (`HistoryRules`), the algorithm has one text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.history.changes import Change, ChangeKind, summary
    from shared_core.history.opaque import CITATIONS, OpaqueKind, citations, opaque_kind, told
    from shared_core.history.rewrite import UNDECLARED, is_own, prepare, with_stubs
    from shared_core.history.rules import (
        ANTHROPIC,
        COMPATIBLE,
        DEEPSEEK,
        GOOGLE,
        LLAMA_CPP,
        MISTRAL,
        OPENAI,
        OPENAI_RESPONSES,
        OPENROUTER,
        HistoryRules,
        MediaKind,
    )
    from shared_core.history.tools import wire_name

_HOMES = {
    name: f"shared_core.history.{home}"
    for home, names in {
        "changes": "Change ChangeKind summary",
        "opaque": "CITATIONS OpaqueKind citations opaque_kind told",
        "rewrite": "UNDECLARED is_own prepare with_stubs",
        "rules": (
            "ANTHROPIC COMPATIBLE DEEPSEEK GOOGLE LLAMA_CPP MISTRAL OPENAI OPENAI_RESPONSES OPENROUTER HistoryRules "
            "MediaKind"
        ),
        "tools": "wire_name",
    }.items()
    for name in names.split()
}
"""Where each name lives: who needs one does not wait for the others. No module is called like a name that it holds:
importing the module would put it in the name's place."""

__all__ = [
    "ANTHROPIC",
    "CITATIONS",
    "COMPATIBLE",
    "DEEPSEEK",
    "GOOGLE",
    "LLAMA_CPP",
    "MISTRAL",
    "OPENAI",
    "OPENAI_RESPONSES",
    "OPENROUTER",
    "UNDECLARED",
    "Change",
    "ChangeKind",
    "HistoryRules",
    "MediaKind",
    "OpaqueKind",
    "citations",
    "is_own",
    "opaque_kind",
    "prepare",
    "summary",
    "told",
    "wire_name",
    "with_stubs",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
