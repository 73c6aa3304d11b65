"""Checks that any `Provider` keeps the contract the router relies on: `check_provider`, for providers of your own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from copy import deepcopy

from shared_core.chat.events import (
    ChatEvent,
    Continued,
    Finished,
    ReasoningDelta,
    Restarted,
    Started,
    TextDelta,
    ToolCallDelta,
    collect,
)
from shared_core.chat.request import ChatRequest, Origin, ToolCall, user
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.provider import Provider

__all__ = ["ContractBroken", "check_provider"]

_EVENTS = (Started, TextDelta, ReasoningDelta, ToolCallDelta, ToolCall, Finished)
_OURS = (Continued, Restarted)


class ContractBroken(AssertionError):
    """A provider breaks its contract. `violations` says how, one sentence each."""

    def __init__(self, violations: Sequence[str]) -> None:
        super().__init__("the provider breaks its contract:\n" + "\n".join(f"  - {v}" for v in violations))
        self.violations = tuple(violations)


def check_provider(
    provider: Provider, request: ChatRequest | None = None, *, limit_s: float = 30.0, is_async: bool = True
) -> None:
    """Call `provider` whole and streamed, sync and async, walk away from it once each, and judge what it did.

    It makes six calls (three without `is_async`), so point it at something that costs nothing. Call it outside of a
    running event loop. The provider is closed at the end, twice.

    Args:
        provider: what to check; it must be healthy and able to answer `request`.
        request: what to ask; 'Hello' when left out.
        limit_s: seconds each call may take.
        is_async: whether to check the async face too.

    Raises:
        ContractBroken: naming every rule that was broken.
    """
    asked = request or ChatRequest((user("Hello"),))
    broken = list(_attributes(provider))
    if not broken:
        for streaming in (False, True):
            once = asked.replace(streaming=streaming)
            kept = deepcopy(once.messages)
            what = "streamed" if streaming else "whole"
            broken += _judge(f"sync, {what}", lambda r=once: _drain(provider, r, limit_s))  # type: ignore[misc]
            if is_async:
                broken += _judge(f"async, {what}", lambda r=once: asyncio.run(_adrain(provider, r, limit_s)))  # type: ignore[misc]
            if once.messages != kept:
                broken.append(f"{what}: the request's messages were changed")
        leaving = asked.replace(streaming=True)
        broken += _leave("sync", lambda: _leave_early(provider, leaving, limit_s))
        if is_async:
            broken += _leave("async", lambda: asyncio.run(_aleave_early(provider, leaving, limit_s)))
    for turn in ("close", "a second close"):
        try:
            provider.close()
        except Exception as error:  # noqa: BLE001  # whatever it raises is the finding
            broken.append(f"{turn} raised {error!r}")
    if broken:
        raise ContractBroken(broken)


def _attributes(provider: Provider) -> Iterator[str]:
    for name, kind in (("name", str), ("model", str), ("local", bool), ("interruptible", bool)):
        if not isinstance(getattr(provider, name, None), kind):
            yield f"{name} must be a {kind.__name__}"
    if not isinstance(getattr(provider, "capabilities", None), Capabilities):
        yield "capabilities must be a Capabilities"
    if not isinstance(getattr(provider, "origin", None), Origin):
        yield "origin must be an Origin"
    for name in ("stream", "astream", "close", "aclose"):
        if not callable(getattr(provider, name, None)):
            yield f"{name} must be a method"


def _guard(request: ChatRequest, limit_s: float) -> Guard:
    return Guard(time.monotonic, streaming=request.streaming, first_s=limit_s, idle_s=limit_s)


def _drain(provider: Provider, request: ChatRequest, limit_s: float) -> list[ChatEvent]:
    return list(provider.stream(request, _guard(request, limit_s)))


async def _adrain(provider: Provider, request: ChatRequest, limit_s: float) -> list[ChatEvent]:
    async with asyncio.timeout(limit_s):
        return [event async for event in provider.astream(request, _guard(request, limit_s))]


def _judge(how: str, call: Callable[[], list[ChatEvent]]) -> Iterator[str]:
    try:
        events = call()
    except Exception as error:  # noqa: BLE001  # a healthy provider was asked for; whatever it raises is the finding
        yield f"{how}: it raised {error!r}"
        return
    for event in events:
        if isinstance(event, _OURS):
            yield f"{how}: {type(event).__name__} is the router's to say"
        elif not isinstance(event, _EVENTS):
            yield f"{how}: {event!r} is not a ChatEvent"  # type: ignore[unreachable]  # scripts and duck types can
        elif isinstance(event, TextDelta) and not event.text:
            yield f"{how}: an empty TextDelta"
    ends = [i for i, event in enumerate(events) if isinstance(event, Finished)]
    if not ends:
        yield f"{how}: it ended without Finished, so the router takes it for broken"
    elif ends != [len(events) - 1]:
        yield f"{how}: Finished must come once, and last"
    else:
        answer = collect(events)
        if not answer.text and not answer.tool_calls:
            yield f"{how}: the answer is empty"


def _leave_early(provider: Provider, request: ChatRequest, limit_s: float) -> str | None:
    events = provider.stream(request, _guard(request, limit_s))
    next(events, None)
    close = getattr(events, "close", None)
    if close is None:
        return "its iterator cannot be closed"
    close()
    return None


async def _aleave_early(provider: Provider, request: ChatRequest, limit_s: float) -> str | None:
    events: AsyncIterator[ChatEvent] = provider.astream(request, _guard(request, limit_s))
    await anext(events, None)
    close = getattr(events, "aclose", None)
    if close is None:
        return "its iterator cannot be closed"
    await close()
    return None


def _leave(how: str, walk: Callable[[], str | None]) -> Iterator[str]:
    try:
        fault = walk()
    except Exception as error:  # noqa: BLE001  # whatever it raises is the finding
        fault = f"walking away raised {error!r}"
    if fault:
        yield f"{how}: {fault}"
