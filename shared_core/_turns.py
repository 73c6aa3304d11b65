"""Waiting for a turn at a target whose rates or slots are used up: `take_turn` in a thread, `atake_turn` in a task.

Who goes when is the limiter's affair, and its line is one for both. Here is only how to wait for its word: no polling,
and whoever is cancelled leaves no trace.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

from shared_core._clock import Clock, SystemClock
from shared_core.chat.request import ChatRequest
from shared_core.resilience.admission import Admission, Gate, Refusal

__all__ = ["atake_turn", "take_turn"]


def take_turn(
    gate: Gate, request: ChatRequest, wait_s: float, lease_s: float, clock: Clock, chance: Callable[[], float]
) -> Admission | Refusal:
    """Wait in line for leave to call, for `wait_s` seconds at most, in this thread."""
    now = clock.monotonic()
    until = now + wait_s
    woken = threading.Event()
    ticket = gate.line_up(now, request, woken.set)
    if isinstance(ticket, Refusal):
        return ticket
    real = isinstance(clock, SystemClock)
    try:
        while ticket.waiting and now < until:
            at = min(ticket.wake_at, until)
            if real or ticket.wake_at == math.inf:
                woken.wait(min(at - now, threading.TIMEOUT_MAX))
            elif not woken.is_set():
                clock.sleep(at - now)
            woken.clear()
            now = clock.monotonic()
            if now >= ticket.wake_at:
                gate.limiter.due(now)
        return gate.enter(ticket, now, lease_s, chance())
    finally:
        gate.limiter.leave(ticket, clock.monotonic())


async def atake_turn(
    gate: Gate, request: ChatRequest, wait_s: float, lease_s: float, clock: Clock, chance: Callable[[], float]
) -> Admission | Refusal:
    """The same in this task. The twin of `take_turn`."""
    now = clock.monotonic()
    until = now + wait_s
    woken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(woken.set)
        except RuntimeError:  # its loop was closed while it waited: nobody is left to take the turn
            gate.limiter.leave(ticket, clock.monotonic())  # type: ignore[arg-type]  # only tickets are woken

    ticket = gate.line_up(now, request, wake)
    if isinstance(ticket, Refusal):
        return ticket
    try:
        while ticket.waiting and now < until:
            at = min(ticket.wake_at, until)
            await _woken_by(clock, woken, at - now if ticket.wake_at < math.inf or not _jumps(clock) else None)
            woken.clear()
            now = clock.monotonic()
            if now >= ticket.wake_at:
                gate.limiter.due(now)
        return gate.enter(ticket, now, lease_s, chance())
    finally:
        gate.limiter.leave(ticket, clock.monotonic())


def _jumps(clock: Clock) -> bool:
    """A test's clock that is at the end of every sleep at once: it would be past the turn before it came."""
    return bool(getattr(clock, "jumps", False))


async def _woken_by(clock: Clock, woken: asyncio.Event, seconds: float | None) -> None:
    """Until `woken` is set, or so many seconds have passed on the clock."""
    if seconds is None or woken.is_set():
        await woken.wait()
        return
    if isinstance(clock, SystemClock):
        timer = asyncio.get_running_loop().call_later(seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()
        return
    either = {asyncio.ensure_future(clock.asleep(seconds)), asyncio.ensure_future(woken.wait())}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in either:
            one.cancel()
