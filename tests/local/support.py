"""Requests and limits for the local model's tests."""

from __future__ import annotations

import os
import time

from shared_core.chat.events import Answer, TextDelta, collect
from shared_core.chat.request import ChatRequest, Message, user
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.deadline import Guard


def guard(first_s: float = 20.0, *, idle_s: float = 20.0, total_s: float = 60.0, streaming: bool = True) -> Guard:
    """An attempt's limit on the real clock."""
    now = time.monotonic
    return Guard(now, streaming=streaming, first_s=first_s, idle_s=idle_s, deadline=now() + total_s)


def ask(*messages: str | Message, **fields) -> ChatRequest:
    """A streamed request; strings are the user's."""
    fields.setdefault("streaming", True)
    return ChatRequest(tuple(user(m) if isinstance(m, str) else m for m in messages), **fields)


def answer(provider: LlamaCppProvider, *messages: str | Message, **fields) -> Answer:
    """The whole answer, streamed in and collected."""
    return collect(provider.stream(ask(*messages, **fields), guard()))


async def aanswer(provider: LlamaCppProvider, *messages: str | Message, **fields) -> Answer:
    """The same on an event loop."""
    return collect([e async for e in provider.astream(ask(*messages, **fields), guard())])


def begin(provider: LlamaCppProvider, *messages: str | Message, **fields):
    """An answer that has begun: its iterator, after the first text."""
    events = provider.stream(ask(*(messages or ("go",)), **fields), guard())
    for event in events:
        if isinstance(event, TextDelta):
            return events
    raise AssertionError("no text came")


def alive(pid: int | None) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int | None, within_s: float = 30.0) -> bool:
    """Whether the process ends within so many seconds."""
    assert pid is not None
    until = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.005)
    return not alive(pid)


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
