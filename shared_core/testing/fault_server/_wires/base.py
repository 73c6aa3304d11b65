"""What the server needs to know of a vendor's wire: reading a request, writing answers, events and errors. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared_core.testing.fault_server._answers import Spoken
from shared_core.testing.fault_server._faults import WireName

Json = dict[str, Any]
Operation = Literal["chat", "count", "models", "model", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request in words common to all wires. `body` is the vendor's JSON, untouched."""

    wire: WireName
    operation: Operation
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    body: Json = field(default_factory=dict)
    valid_json: bool = True
    streamed: bool = False
    prompt: str = ""
    """The text of the last user message."""
    said: str = ""
    """The text of the last assistant message."""
    prefilled: bool = False
    """Whether the conversation ends with an assistant message."""
    prompt_words: int = 0
    tools: tuple[str, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    include_usage: bool = True
    sse: bool = True
    """False where a stream is a JSON array (Gemini without `alt=sse`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorError:
    """An error as the vendor tells it. `html` replaces the JSON body (edges and proxies answer for the vendor)."""

    status: int
    type: str
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    details: tuple[Mapping[str, Any], ...] = ()
    html: str | None = None
    retry_after: float | str | None = None


FrameKind = Literal["open", "reasoning", "text", "close", "tool", "finish", "usage", "end"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream, and which part of the answer it carries."""

    kind: FrameKind
    data: bytes


class Wire(Protocol):
    """One vendor's wire format. Every method is pure: the same arguments give the same bytes."""

    name: WireName

    def read(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Ask:
        """Read a request that was routed to this wire."""

    def whole(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json:
        """The answer in one piece."""

    def stream(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        """The answer as events, from the opening to the terminal one."""

    def role_only(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        """The beginning of a stream that has said nothing yet."""

    def malformed(self) -> Frame:
        """An event that is not JSON."""

    def ping(self, ask: Ask) -> bytes:
        """A sign of life that carries nothing."""

    def empty(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame]:
        """An answer without any choice, candidate or content block; events if the request is streamed."""

    def blocked(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame] | None:
        """The 200 that says the prompt is refused; None where the vendor refuses with an error."""

    def error_for(self, kind: str, ask: Ask) -> VendorError | None:
        """How the vendor tells an error of this fault kind, or None if it has no such thing."""

    def error_for_status(self, status: int, ask: Ask) -> VendorError:
        """How the vendor tells an HTTP status."""

    def error_body(self, error: VendorError, ask: Ask, number: int) -> Json | list[Json]:
        """The JSON of an error response."""

    def error_frame(self, error: VendorError, ask: Ask, number: int, *, later: bool) -> Frame:
        """The same error inside a stream, as its first event or a later one."""

    def check(self, ask: Ask) -> VendorError | None:
        """The vendor's refusal of a request that breaks its rules, None for a good one."""

    def headers(self, number: int, now: float, *, throttled: bool) -> dict[str, str]:
        """The vendor's own response headers."""

    def retry_headers(self, retry_after: float | str) -> dict[str, str]:
        """How the vendor's headers say when to come back; empty where it says so in the body."""

    def count(self, ask: Ask) -> Json:
        """The answer to a token count."""

    def models(self, names: list[str]) -> Json:
        """The list of models."""

    def model(self, name: str) -> Json:
        """One model."""


def dump(value: Any) -> str:
    """Compact JSON in plain UTF-8, the way the vendors send it."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def sse(data: Json | str, *, event: str | None = None, newline: str = "\n") -> bytes:
    text = data if isinstance(data, str) else dump(data)
    head = f"event: {event}{newline}" if event else ""
    return f"{head}data: {text}{newline}{newline}".encode()


def load(body: bytes) -> tuple[Json, bool]:
    """The request's JSON object, and whether it was one."""
    if not body:
        return {}, False
    try:
        value = json.loads(body)
    except ValueError:
        return {}, False
    return (value, True) if isinstance(value, dict) else ({}, False)


def text_of(content: Any) -> str:
    """The text of a message's content, be it a string, a part, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text")
        return text if isinstance(text, str) else text_of(content.get("content", ""))
    if isinstance(content, Iterable):
        return "".join(text_of(part) for part in content)
    return ""


def last_text(messages: Iterable[tuple[str, str]], role: str) -> str:
    return next((text for who, text in reversed(list(messages)) if who == role), "")


def strings(value: Any) -> tuple[str, ...]:
    """A stop parameter: one string or several."""
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def plain(number: float | str) -> str:
    """A delay the way a header spells it: no exponent, no needless `.0`; a `str` verbatim."""
    if isinstance(number, str):
        return number
    return str(int(number)) if number == int(number) else f"{number:.6f}".rstrip("0")


def edge_page(status: int, title: str) -> str:
    """What a content delivery network answers in the vendor's place."""
    return (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{status} {title}</h1></center>\r\n"
        "<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
    )
