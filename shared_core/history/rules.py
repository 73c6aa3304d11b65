"""What each wire format accepts of a conversation: `HistoryRules`, a whitelist per target, and one value per vendor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "ANTHROPIC",
    "COMPATIBLE",
    "DEEPSEEK",
    "GOOGLE",
    "LLAMA_CPP",
    "MISTRAL",
    "OPENAI",
    "OPENAI_RESPONSES",
    "OPENROUTER",
    "HistoryRules",
    "MediaKind",
]

MediaKind = Literal["image", "file", "audio", "video"]

_NOTHING: frozenset[MediaKind] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRules:
    """A whitelist: what is not named here does not reach the wire. Patterns must match the whole string.

    `dataclasses.replace` makes variants, for one model that takes more or less than its vendor's others:
    ``replace(GOOGLE, result_media=frozenset({"image"}))``, ``replace(LLAMA_CPP, system="none", tool_turns="text")``.
    """

    system: Literal["any", "leading", "none"]
    """Where system messages may stand: anywhere; one, first; or nowhere (folded into the first user turn)."""
    late_system: Literal["top", "note"] = "top"
    """A late system message where it may not stay: joined to the first one, or a `<system-note>` in a user turn."""
    starts_with_user: bool
    alternates: bool
    """No two user and no two assistant messages in a row: neighbours are merged."""
    trailing_assistant: bool
    """May end with an assistant turn that is *not* to be continued; otherwise a user turn 'Continue.' is added."""
    trailing_whitespace: bool = True
    """Whether the text of a last assistant turn may end in blanks."""
    empty_text: bool
    """Whether texts may be empty or blank."""

    tool_turns: Literal["native", "text"] = "native"
    """'text' tells calls and results in words, for a target without tools."""
    results: Literal["each", "turn", "user"]
    """One tool message per result; one for all results of a turn; or at the head of the next user message."""
    user_after_tool: bool = True
    """Whether a user turn may follow results directly; otherwise a short assistant turn is put between."""
    id_pattern: str
    """Ids of tool calls."""
    id_prefix: str = "call_"
    id_digits: int = 24
    """Hexadecimal digits of a minted id, after the prefix."""
    tool_name_pattern: str
    tool_name_length: int
    error_flag: Literal["native", "prefix"]
    """How a failed result is told: `is_error` stays, or the text begins with 'Error:'."""
    needs_declared_tools: bool = False
    """A history with tool turns needs the tools declared, even when the request offers none: `with_stubs`."""

    user_name_pattern: str | None = None
    """Names of speakers; where None or not matching, a user's name becomes part of the text, another's is left out."""

    media: frozenset[MediaKind] = _NOTHING
    """What the wire can carry at all. Text files are told as text where files are not among it."""
    media_types: str = ".+"
    """The media types of bytes. A text file of another type is told as text; anything else is refused."""
    urls: frozenset[MediaKind] = _NOTHING
    """What the vendor fetches from a public http(s) URL by itself."""
    file_id_pattern: str | None = None
    """The vendor's own file handles; anybody else's make the target incapable."""
    result_media: frozenset[MediaKind] = _NOTHING
    """What a tool result may contain; the rest moves to a user turn behind the results, with a pointer."""
    assistant_media: frozenset[MediaKind] = _NOTHING
    """What an assistant turn may contain; the rest moves to a user turn."""

    reasoning: bool = False
    """Replays opaque reasoning blocks and signatures, to the origin that issued them and nobody else."""
    reasoning_in: Literal["any turn", "tool loops"] = "any turn"
    """Which turns' thoughts are replayed: all, or those that call a tool or follow upon one that did."""
    server_blocks: bool = False
    """Also replays what the vendor's server-side tools left (searches, code runs), to the same origin."""
    citations: bool = False
    """What is replayed holds the sources of an answer. Elsewhere they are told as links."""
    cache_hints: int = 0
    """How many `cache_hint`s are kept, the last ones."""


_WORD = "[a-zA-Z0-9_-]"
_IMAGES = "image/(png|jpeg|gif|webp)"
_SPEECH = "audio/(wav|x-wav|wave|vnd[.]wave|mp3|mpeg)"

OPENAI = HistoryRules(
    system="any",
    starts_with_user=False,
    alternates=False,
    trailing_assistant=True,
    empty_text=True,
    results="each",
    id_pattern=_WORD + "{1,40}",
    tool_name_pattern=_WORD + "{1,64}",
    tool_name_length=64,
    error_flag="prefix",
    user_name_pattern=_WORD + "{1,64}",
    media=frozenset({"image", "file", "audio"}),
    media_types=f"{_IMAGES}|application/pdf|{_SPEECH}",
    urls=frozenset({"image"}),
    file_id_pattern="(file|assistant)-.+",
)
"""Chat Completions: ids of at most 40, text-only results, no reasoning replay."""

OPENAI_RESPONSES = replace(
    OPENAI, id_pattern=_WORD + "{1,64}", user_name_pattern=None, urls=frozenset({"image", "file"}), reasoning=True
)
"""Responses: call ids of at most 64, no speakers' names, reasoning items replayed to their origin."""

ANTHROPIC = HistoryRules(
    system="leading",
    starts_with_user=True,
    alternates=True,
    trailing_assistant=False,
    trailing_whitespace=False,
    empty_text=False,
    results="user",
    id_pattern=_WORD + "{1,64}",
    id_prefix="toolu_",
    tool_name_pattern=_WORD + "{1,64}",
    tool_name_length=64,
    error_flag="native",
    needs_declared_tools=True,
    media=frozenset({"image", "file"}),
    media_types=f"{_IMAGES}|application/pdf|text/.+",
    urls=frozenset({"image", "file"}),
    file_id_pattern="file_.+",
    result_media=frozenset({"image", "file"}),
    reasoning=True,
    cache_hints=4,
)
"""Messages: system apart, strict turns, results first in the user turn, no blank text."""

GOOGLE = HistoryRules(
    system="leading",
    starts_with_user=True,
    alternates=True,
    trailing_assistant=False,
    empty_text=False,
    results="turn",
    id_pattern="[!-~]{1,128}",
    tool_name_pattern="[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}",
    tool_name_length=64,
    error_flag="native",
    media=frozenset({"image", "file", "audio", "video"}),
    media_types="image/(png|jpeg|webp|heic|heif)|application/pdf|(text|audio|video)/.+",
    file_id_pattern="(files/|gs://|https://generativelanguage[.]googleapis[.]com/).+",
    assistant_media=frozenset({"image"}),
    reasoning=True,
)
"""generateContent: results of one turn together, straight after the calls; fetches no public URL."""

LLAMA_CPP = HistoryRules(
    system="leading",
    starts_with_user=True,
    alternates=True,
    trailing_assistant=False,
    empty_text=False,
    results="each",
    user_after_tool=False,
    id_pattern=_WORD + "{1,64}",
    tool_name_pattern=_WORD + "{1,64}",
    tool_name_length=64,
    error_flag="prefix",
    media=frozenset({"image"}),
    media_types=_IMAGES,
)
"""A chat template in a GGUF: the strictest common shape, since templates raise on anything else."""

MISTRAL = HistoryRules(
    system="leading",
    starts_with_user=True,
    alternates=True,
    trailing_assistant=False,
    empty_text=False,
    results="each",
    user_after_tool=False,
    id_pattern="[a-zA-Z0-9]{9}",
    id_prefix="",
    id_digits=9,
    tool_name_pattern=_WORD + "{1,64}",
    tool_name_length=64,
    error_flag="prefix",
    media=frozenset({"image", "file", "audio"}),
    media_types=f"{_IMAGES}|application/pdf|{_SPEECH}",
    urls=frozenset({"image", "file"}),
)
"""Mistral: ids of exactly nine letters and digits, no user turn right after a tool's."""

COMPATIBLE = HistoryRules(
    system="leading",
    starts_with_user=True,
    alternates=True,
    trailing_assistant=False,
    empty_text=False,
    results="each",
    id_pattern="[a-zA-Z0-9_.:-]{1,64}",
    tool_name_pattern=_WORD + "{1,64}",
    tool_name_length=64,
    error_flag="prefix",
    media=frozenset({"image", "file", "audio"}),
    media_types=f"{_IMAGES}|application/pdf|{_SPEECH}",
    urls=frozenset({"image"}),
)
"""Anything that speaks Chat Completions: what most servers and their templates take."""

DEEPSEEK = replace(COMPATIBLE, reasoning=True, reasoning_in="tool loops")
"""Vendors that want `reasoning_content` back in tool loops, and refuse the call without: DeepSeek, Moonshot."""

OPENROUTER = replace(COMPATIBLE, reasoning=True)
"""OpenRouter: takes back the `reasoning_details` of the model it relayed."""
