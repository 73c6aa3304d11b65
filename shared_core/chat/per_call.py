"""What may be said with one call beside its messages, and the request that comes of it: `CallOptions`, `saying`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final, TypedDict

from shared_core.chat.request import (
    LIMITS,
    AnswerCheck,
    CacheUse,
    ChatRequest,
    Complexity,
    Constraints,
    OutputSchema,
    ToolSpec,
    constraints_of,
)
from shared_core.errors import InvalidRequest, UnknownOption, nearest

__all__ = ["CALL_OPTIONS", "CallOptions", "ExplainOptions", "saying", "several"]


class CallOptions(TypedDict, total=False):
    """The keywords of `Router.invoke`, `ainvoke`, `stream`, `astream` and `explain`: what a `ChatRequest` would say.

    What is None is as if left out.
    """

    chain: str | None
    complexity: Complexity | None
    constraints: Constraints | Mapping[str, Any] | None
    """Of all that is said of limits, here, one by one and in the request itself, everything holds."""
    local_only: bool | None
    allow: Iterable[str] | None
    deny: Iterable[str] | None
    max_price: float | None
    """US dollars per million tokens, dearest of input and output."""
    require: Iterable[str] | None
    user: str | None
    tags: str | Iterable[str] | None
    timeout: float | None
    """Seconds for the whole logical call."""
    timeout_s: float | None
    """The same."""
    model: str | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: str | Iterable[str] | None
    seed: int | None
    tools: Iterable[ToolSpec] | None
    tool_choice: str | None
    parallel_tool_calls: bool | None
    output: OutputSchema | None
    check: AnswerCheck | None
    extra: Mapping[str, Any] | None


class ExplainOptions(CallOptions, total=False):
    """The keywords of `Router.explain`."""

    cache: CacheUse
    """Taken so that a call's keywords can be handed on; a plan is the same with it."""


_NOT_SAID: Final = frozenset({"messages", "streaming", "native", "continues"})
_BESIDE: Final = frozenset({"timeout", *LIMITS})
CALL_OPTIONS: Final = frozenset(f.name for f in fields(ChatRequest)) - _NOT_SAID | _BESIDE
"""The names of `CallOptions`, with `strategy` and `cache`."""


def saying(request: ChatRequest, options: Mapping[str, Any]) -> ChatRequest:
    """`request` with these call options, which go before its own; limits on who may answer hold beside its own.

    Raises:
        UnknownOption: there is no such option; names the nearest.
        InvalidRequest: an option is out of range, or of another kind.
    """
    said: dict[str, Any] = {}
    single: dict[str, Any] = {}
    for name, value in options.items():
        if name not in CALL_OPTIONS:
            raise UnknownOption(
                f"a call has no option {name!r}. {nearest(name, CALL_OPTIONS)}\n"
                f"hint: options of one vendor go through untouched as extra={{'openai': {{{name!r}: …}}}}"
            )
        if value is None:
            continue
        if name in LIMITS:
            single[name] = value
        else:
            said["timeout_s" if name == "timeout" else name] = value
    if single or "constraints" in said:
        said["constraints"] = request.constraints.narrowed(constraints_of(said.get("constraints"), single))
    for name in ("stop", "tags"):
        if name in said:
            said[name] = several(name, said[name])
    if "tools" in said:
        tools = said["tools"]
        said["tools"] = specs = tuple(tools) if isinstance(tools, Iterable) else (None,)
        if not all(isinstance(spec, ToolSpec) for spec in specs):
            raise InvalidRequest(f"tools takes ToolSpecs, not {tools!r}")
    return request.replace(**said) if said else request


def several(name: str, given: Any) -> tuple[str, ...]:
    """One text or several, as several.

    Raises:
        InvalidRequest: neither.
    """
    if isinstance(given, str):
        return (given,)
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"{name} takes a text or several, not {given!r}")
    return found
