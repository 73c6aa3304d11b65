"""What a target can take: `Capabilities`, and what a request needs of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from shared_core.chat.answer_tool import Unusual
from shared_core.chat.request import Audio, ChatRequest, File, Image, Text, ToolResult
from shared_core.errors import ConfigurationError, is_number

__all__ = ["Capabilities", "best", "is_plain", "missing", "shared", "unusual"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model at an endpoint can take. Figures are tokens; None is unknown and excludes nothing."""

    tools: bool = True
    tool_choice: frozenset[str] = frozenset({"auto", "any", "none", "tool"})
    """Which kinds of forced choice it obeys; 'tool' is one tool by name."""
    json_schema: bool = True
    """Answers in a given JSON schema, natively."""
    json_mode: bool = True
    images: bool = True
    image_urls: bool = True
    """Fetches images by URL itself."""
    pdfs: bool = False
    audio: bool = False
    system: bool = True
    """Has a system role; otherwise the system prompt is folded into the first user turn."""
    continuation: Literal["exact", "prefill", "instructed"] = "instructed"
    """How it goes on with an answer that another target began: raw prompt, assistant prefill, or by being asked to."""
    streaming: bool = True
    reasoning: bool = False
    """Thinks before it speaks, so its first token may take longer."""
    context_window: int | None = None
    max_output: int | None = None

    def __post_init__(self) -> None:
        for name in ("context_window", "max_output"):
            value = getattr(self, name)
            if value is not None and not is_number(value, least=1, whole=True):
                raise ConfigurationError(f"Capabilities.{name} must be a positive number of tokens, not {value!r}")
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"Capabilities.{name} must be True or False, not {getattr(self, name)!r}")
        if self.continuation not in ("exact", "prefill", "instructed"):
            raise ConfigurationError(
                f"Capabilities.continuation must be exact, prefill or instructed, not {self.continuation!r}"
            )


_MEDIA = (
    ("images", "images"),
    ("image_urls", "images by URL: it fetches nothing"),
    ("pdfs", "documents"),
    ("audio", "audio"),
)
FLAGS = frozenset(f.name for f in fields(Capabilities)) - {
    "tool_choice",
    "continuation",
    "context_window",
    "max_output",
}
"""Names that `Constraints.require` accepts."""


def shared(each: Sequence[Capabilities]) -> Capabilities:
    """What every one of them can take: a promise that holds whoever answers."""
    windows = [c.context_window for c in each if c.context_window is not None]
    outputs = [c.max_output for c in each if c.max_output is not None]
    return Capabilities(
        tools=all(c.tools for c in each),
        tool_choice=frozenset.intersection(*(c.tool_choice for c in each)) if each else frozenset(),
        json_schema=all(c.json_schema for c in each),
        json_mode=all(c.json_mode for c in each),
        images=all(c.images for c in each),
        image_urls=all(c.image_urls for c in each),
        pdfs=all(c.pdfs for c in each),
        audio=all(c.audio for c in each),
        system=all(c.system for c in each),
        continuation="instructed",
        streaming=all(c.streaming for c in each),
        reasoning=all(c.reasoning for c in each),
        context_window=min(windows, default=None),
        max_output=min([*outputs, *windows], default=None),  # nobody says more than it can hold
    )


def best(each: Sequence[Capabilities]) -> Capabilities:
    """The one that can take most: most kinds of things, then the most tokens, then the first."""
    if not each:
        return shared(each)

    def worth(c: Capabilities) -> tuple[int, int, int]:
        kinds = sum(bool(getattr(c, name)) for name in FLAGS) + len(c.tool_choice)
        return kinds, c.context_window or 0, c.max_output or 0

    return max(each, key=worth)


def is_plain(request: ChatRequest) -> bool:
    """Whether the request asks for nothing but text from text, which every model can give."""
    if request.tools or request.output is not None:
        return False
    for message in request.messages:
        for part in message.parts:
            if type(part) is not Text:
                return False
    return True


def unusual(request: ChatRequest, capabilities: Capabilities) -> Unusual | None:
    """How a model must be made to answer in the request's schema; None where it has its own means, or none is asked."""
    output = request.output
    if output is None or not output.anyhow:
        return None
    if capabilities.json_schema if output.schema else capabilities.json_mode:
        return None
    forced = capabilities.tool_choice & ({"any"} if request.tools else {"any", "tool"})
    return "tool" if capabilities.tools and forced else "words"


def missing(request: ChatRequest, capabilities: Capabilities) -> Iterator[str]:
    """Why a model with these capabilities cannot serve this request, one phrase each; nothing when it can."""
    if request.tools and not capabilities.tools:
        yield "cannot call tools"
    elif request.tool_choice is not None and request.tools:
        kind = request.tool_choice if request.tool_choice in ("auto", "any", "none") else "tool"
        if kind not in capabilities.tool_choice:
            yield f"cannot be made to choose tools by {kind!r}"
    if request.output is not None and not request.output.anyhow:
        if request.output.schema and not capabilities.json_schema:
            yield "cannot answer in a JSON schema"
        elif not request.output.schema and not capabilities.json_mode:
            yield "has no JSON mode"
    kinds: set[str] = set()
    for message in request.messages:
        for part in message.parts:
            for inner in part.content if isinstance(part, ToolResult) else (part,):
                match inner:
                    case Image(url=url):
                        kinds.add("images")
                        if url is not None and not url.startswith("data:"):
                            kinds.add("image_urls")
                    case File():
                        kinds.add("pdfs")
                    case Audio():
                        kinds.add("audio")
                    case _:
                        pass
    for kind, phrase in _MEDIA:
        if kind in kinds and not getattr(capabilities, kind):
            yield f"cannot take {phrase}"
