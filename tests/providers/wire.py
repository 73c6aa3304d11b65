"""What the provider tests at the wire share: guards, both colours of a call, one table of faults and their kinds."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from shared_core.chat.events import ChatEvent
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import ErrorKind as K
from shared_core.errors import ProviderError
from shared_core.providers import build
from shared_core.resilience.deadline import Guard
from shared_core.routing.target import Target
from shared_core.testing import FAULTS, FaultServer
from tests.timing import timed

Colour = Literal["sync", "async"]
COLOURS: tuple[Colour, ...] = ("sync", "async")
SHORT_S = 0.15


def guard(*, streaming: bool, first_s: float = 10.0, idle_s: float = 10.0, connect_s: float = 5.0) -> Guard:
    return Guard(time.monotonic, streaming=streaming, first_s=first_s, idle_s=idle_s, connect_s=connect_s)


def ask(text: str = "Hello", **fields: Any) -> ChatRequest:
    return ChatRequest((user(text),), **fields)


def call(provider: Any, request: ChatRequest, colour: Colour = "sync", limit: Guard | None = None) -> list[ChatEvent]:
    """All events of one call, in either colour. The async one runs under the guard as the router would run it."""
    if limit is None:
        getattr(provider, "load", lambda: None)()  # as the router does: importing an SDK is not part of the call
        limit = guard(streaming=request.streaming)
    if colour == "sync":
        return list(provider.stream(request, limit))

    async def go() -> list[ChatEvent]:
        try:
            events: list[ChatEvent] = []
            left = limit.remaining()
            async with asyncio.timeout(None if math.isinf(left) else left):
                async for event in provider.astream(request, limit):
                    events.append(event)  # noqa: PERF401 - an async comprehension hides the await from the timeout's scope
            return events
        finally:
            await provider.aclose()

    return asyncio.run(go())


def fail(provider: Any, request: ChatRequest, colour: Colour = "sync", limit: Guard | None = None) -> ProviderError:
    """The error of a call that must fail."""
    try:
        events = call(provider, request, colour, limit)
    except ProviderError as error:
        return error
    raise AssertionError(f"expected a ProviderError, got {events}")


@dataclass(frozen=True)
class Expected:
    """A fault kind and the error it must become, whole and streamed (None: the answer arrives in spite of it)."""

    fault: str
    whole: K | None
    streamed: K | None


def expected(wire: str) -> Sequence[Expected]:
    rows = [Expected(*row) for row in (*_COMMON, *_ONLY[wire])]
    missing = _applicable(wire) - {row.fault for row in rows}
    assert not missing, f"fault kinds without an expected error: {sorted(missing)}"
    return rows


EITHER = {
    # What a reset does to bytes that are still unread differs: the beginning of the call may or may not arrive.
    "cut-tool": {K.TRANSIENT, K.STREAM_CUT},
    # A stream that ends in the middle of an event: some SDKs read the half, others leave it.
    "truncated-json": {K.MALFORMED, K.STREAM_CUT},
}
"""Faults that look different from SDK to SDK, or from run to run."""


def shapes(row: Expected) -> list[tuple[bool, K | None]]:
    kind = FAULTS[row.fault]
    out: list[tuple[bool, K | None]] = []
    if kind.whole:
        out.append((False, row.whole))
    if kind.streamed:
        out.append((True, row.streamed))
    return out


TIMED = frozenset(
    {"no-response", "hang-after-headers", "header-drip", "ping-drip", "stall", "role-only-hang", "continue-only"}
)
"""Faults that end only when our own limit does."""


def _applicable(wire: str) -> set[str]:
    return {k.name for k in FAULTS.values() if k.place == "request" and wire in k.wires and not k.harmless} - {"status"}


_COMMON: tuple[tuple[str, K | None, K | None], ...] = (
    ("no-response", K.TIMEOUT, K.TIMEOUT),
    ("reset-before-headers", K.TRANSIENT, K.TRANSIENT),
    ("close-before-headers", K.TRANSIENT, K.TRANSIENT),
    ("reset-after-headers", K.TRANSIENT, K.TRANSIENT),
    ("hang-after-headers", K.TIMEOUT, K.TIMEOUT),
    ("header-drip", K.TIMEOUT, K.TIMEOUT),
    ("garbage-status-line", K.TRANSIENT, K.TRANSIENT),
    ("giant-headers", K.TRANSIENT, K.TRANSIENT),
    ("continue-only", K.TIMEOUT, K.TIMEOUT),
    ("redirect-loop", K.CONFIG, K.CONFIG),
    ("proxy-auth", K.CONFIG, K.CONFIG),
    ("stale-keep-alive", None, None),
    ("bad-request", K.BAD_REQUEST, K.BAD_REQUEST),
    ("context-overflow", K.CONTEXT_OVERFLOW, K.CONTEXT_OVERFLOW),
    ("content-policy", K.POLICY, K.POLICY),
    ("key-invalid", K.AUTH, K.AUTH),
    ("unauthorized", K.AUTH, K.AUTH),
    ("payment-required", K.BILLING, K.BILLING),
    ("billing", K.BILLING, K.BILLING),
    ("spend-limit", K.BILLING, K.BILLING),
    ("forbidden", K.FORBIDDEN, K.FORBIDDEN),
    ("region", K.FORBIDDEN, K.FORBIDDEN),
    ("model-not-found", K.NOT_FOUND, K.NOT_FOUND),
    ("request-timeout", K.TRANSIENT, K.TRANSIENT),
    ("conflict", K.CONFLICT, K.CONFLICT),
    ("too-large", K.TOO_LARGE, K.TOO_LARGE),
    ("unprocessable", K.BAD_REQUEST, K.BAD_REQUEST),
    ("server-error", K.TRANSIENT, K.TRANSIENT),
    ("bad-gateway", K.TRANSIENT, K.TRANSIENT),
    ("unavailable", K.OVERLOADED, K.OVERLOADED),
    ("gateway-timeout", K.TRANSIENT, K.TRANSIENT),
    ("edge-520", K.TRANSIENT, K.TRANSIENT),
    ("overloaded", K.OVERLOADED, K.OVERLOADED),
    ("no-retry", K.TRANSIENT, K.TRANSIENT),
    ("rate-limit", K.THROTTLED, K.THROTTLED),
    ("rate-limit-zero", K.THROTTLED, K.THROTTLED),
    ("rate-limit-negative", K.THROTTLED, K.THROTTLED),
    ("rate-limit-huge", K.THROTTLED, K.THROTTLED),
    ("rate-limit-malformed", K.THROTTLED, K.THROTTLED),
    ("rate-limit-bare", K.THROTTLED, K.THROTTLED),
    ("rate-limit-date", K.THROTTLED, K.THROTTLED),
    ("rate-limit-skewed", K.THROTTLED, K.THROTTLED),
    ("rate-limit-ms", K.THROTTLED, K.THROTTLED),
    ("ramp", K.RAMP, K.RAMP),
    ("html-200", K.MALFORMED, K.MALFORMED),
    ("wrong-content-length", K.TRANSIENT, None),  # every event has arrived: the answer is whole
    ("corrupt-gzip", K.MALFORMED, K.MALFORMED),
    ("usage-missing", None, None),
    ("content-filter", None, None),
    ("truncated-json", K.MALFORMED, K.MALFORMED),
    ("ping-drip", K.TIMEOUT, K.TIMEOUT),
    ("cut", K.TRANSIENT, K.STREAM_CUT),
    ("stall", K.TIMEOUT, K.TIMEOUT),
    ("bad-utf8", K.MALFORMED, K.MALFORMED),
    ("cut-eof", None, K.STREAM_CUT),
    ("cut-tool", None, K.STREAM_CUT),
    ("role-only-hang", None, K.TIMEOUT),
    ("malformed-chunk", None, K.MALFORMED),
    ("missing-terminal", None, K.STREAM_CUT),
    ("overload-first", None, K.OVERLOADED),
    ("overload-later", None, K.OVERLOADED),
    ("reject-prefill", None, None),
)

_ONLY: dict[str, tuple[tuple[str, K | None, K | None], ...]] = {
    "openai": (
        ("billing-inactive", K.BILLING, K.BILLING),
        ("quota-day", K.QUOTA_DAY, K.QUOTA_DAY),
        ("tpm-too-large", K.TOO_LARGE, K.TOO_LARGE),
        ("empty-choices", K.MALFORMED, K.STREAM_CUT),
        ("role-only-error", None, K.TRANSIENT),
        ("no-done", None, None),
    ),
    "anthropic": (
        ("billing-inactive", K.FORBIDDEN, K.FORBIDDEN),  # the organisation is on hold
        ("empty-choices", K.MALFORMED, K.MALFORMED),
        ("role-only-error", None, K.TRANSIENT),
    ),
}


def cases(wire: str) -> list[Any]:
    """Every fault in every shape it comes in, as pytest parameters: fault, streaming, expected kind."""
    return [
        pytest.param(row.fault, streaming, kind, id=f"{row.fault}-{'stream' if streaming else 'whole'}")
        for row in expected(wire)
        for streaming, kind in shapes(row)
    ]


_warm: set[tuple[str, Colour]] = set()


def warm(server: FaultServer, target: Target, colour: Colour) -> None:
    """One call that nobody times: the first of a process imports what no later one does (anyio's backend: 0.1 s)."""
    if (target.provider_name, colour) not in _warm:
        _warm.add((target.provider_name, colour))
        server.script(target.model, ["ok"])
        provider: Any = build(target)
        call(provider, ask(), colour)
        provider.close()


@timed  # what ends only with a short limit: the request is to arrive within it, and the call to end soon after
def suffer(server: FaultServer, target: Target, colour: Colour, fault: str, *, streaming: bool, kind: K | None) -> None:
    """One call that meets one fault: it becomes the right error, costs one packet, and ends in time."""
    warm(server, target, colour)
    server.clear()
    server.script(target.model, [fault])
    provider: Any = build(target)
    provider.load()  # importing the SDK is not part of the call
    begun = time.monotonic()
    limit = guard(streaming=streaming, first_s=SHORT_S if fault in TIMED else 10.0)
    try:
        if kind is None:
            assert call(provider, ask(streaming=streaming), colour, limit)
        elif kind is K.TIMEOUT and colour == "async":
            with pytest.raises(TimeoutError):  # the router's cancellation, played by `asyncio.timeout`
                call(provider, ask(streaming=streaming), colour, limit)
        else:
            error = fail(provider, ask(streaming=streaming), colour, limit)
            assert error.kind in EITHER.get(fault, {kind}), error
            assert str(target.api_key) not in str(error)
    finally:
        provider.close()
    took = time.monotonic() - begun
    assert server.count(target.model) == 1
    if fault in TIMED:
        assert SHORT_S <= took <= SHORT_S + 0.25 + 0.5, took  # half a second for a machine that is busy elsewhere
