"""Many callers at one local model, some of whom walk away or are in a hurry, while its process is killed twice.

    python -m tools.local_soak --seconds 60 --seed 1

Every answer must be whole and right or a typed error; nothing may hang, and nothing may be left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_core.chat.events import Answer, ChatEvent, collect
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import FallbackError, ProviderError
from shared_core.ledger import MemoryLedger
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.router import Router
from shared_core.routing.target import Target

__all__ = ["soak"]

QUESTIONS = (
    "What is the capital of France?",
    "capital of kenya?",
    "What is 17 + 8?",
    "My name is Grace.",
    "Summarise in one line: Hugo bought a tablet on Monday. The tablet stopped charging. Hugo wants a refund.",
    "Return JSON for: Uma is 44 years old and lives in Hanoi.",
    "Explain how transformers work.",
    "Please summarise in one line: The provider was down for two hours. The team restarted the server.",
)
SLACK_S = 5.0
"""An operation that takes this much longer than its own limit hangs."""
LEAK_MIB = 20.0
"""More than this, held after thousands of answers, is no working space."""
PATIENT_S = 30.0
LATEST_START_S = 0.5
"""Callers come within half a second: sixteen threads that begin in one moment keep Python busy for long."""


@dataclass
class _Seen:
    """What the callers met. Each list is appended to by many threads, which Python allows."""

    right: list[float] = field(default_factory=list)
    """Seconds that each right answer took."""
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """The kind of each typed error."""
    cancelled: list[float] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)


class _Caller:
    """One caller's chances and checks; how it calls is up to the two kinds below."""

    def __init__(self, number: int, seed: int, router: Router, expected: dict[str, str], seen: _Seen) -> None:
        self.chance = random.Random(f"{seed}/{number}")
        self.router, self.expected, self.seen = router, expected, seen

    def request(self) -> tuple[str, ChatRequest, float, float | None]:
        """A question, its request, its limit in seconds, and after how many seconds to walk away (None: never)."""
        chance = self.chance
        question = chance.choice(QUESTIONS)
        mood = chance.random()
        limit = chance.uniform(0.01, 0.5) if mood < 0.15 else PATIENT_S
        leaves = chance.uniform(0.0, 0.2) if 0.15 <= mood < 0.3 else None
        request = ChatRequest(
            (user(question),), timeout_s=limit, extra={"llamacpp": {"priority": chance.randint(-2, 2)}}
        )
        return question, request, limit, leaves

    def judge(self, question: str, answer: Answer, took: float) -> None:
        """Right, or wrong."""
        if answer.text == self.expected[question] and answer.finish_reason == "stop":
            self.seen.right.append(took)
        else:
            self.seen.wrong.append(f"{question} -> {answer.text!r} ({answer.finish_reason})")

    def failed(self, error: BaseException) -> None:
        """A typed error, or none."""
        if isinstance(error, FallbackError):
            cause = error.__cause__
            while not isinstance(cause, ProviderError) and cause is not None:
                cause = cause.__cause__
            kind = cause.kind if isinstance(cause, ProviderError) else type(error).__name__
            self.seen.refused.append(f"{type(error).__name__}: {kind}")
        else:
            self.seen.untyped.append(repr(error))

    def timed(self, question: str, limit: float, took: float) -> None:
        """Whether it hung."""
        if took > limit + SLACK_S:
            self.seen.slow.append(f"{question}: {took:.1f} s with a limit of {limit:.2f} s")


class _Thread(_Caller):
    def run(self, until: float) -> None:
        """Call until then."""
        time.sleep(self.chance.uniform(0.0, LATEST_START_S))
        while (begun := time.monotonic()) < until:
            question, request, limit, leaves = self.request()
            try:
                if leaves is None and self.chance.random() < 0.5:
                    self.judge(question, self.router.invoke(request), time.monotonic() - begun)
                else:
                    self.stream(question, request, begun, leaves)
            except Exception as error:  # noqa: BLE001  # sorted into typed and untyped
                self.failed(error)
                time.sleep(self.chance.uniform(0.0, 0.02))
            self.timed(question, limit, time.monotonic() - begun)

    def stream(self, question: str, request: ChatRequest, begun: float, leaves: float | None) -> None:
        """Read a stream, perhaps not to its end."""
        events: list[ChatEvent] = []
        with self.router.stream(request) as stream:
            for event in stream:
                events.append(event)
                if leaves is not None and time.monotonic() - begun > leaves:
                    self.seen.cancelled.append(time.monotonic() - begun)
                    return
        self.judge(question, collect(events), time.monotonic() - begun)


class _Task(_Caller):
    async def run(self, until: float) -> None:
        """Call until then."""
        await asyncio.sleep(self.chance.uniform(0.0, LATEST_START_S))
        while (begun := time.monotonic()) < until:
            question, request, limit, leaves = self.request()
            calling = asyncio.create_task(self.call(question, request, begun))
            if leaves is not None:
                asyncio.get_running_loop().call_later(leaves, calling.cancel)
            try:
                await calling
            except asyncio.CancelledError:
                self.seen.cancelled.append(time.monotonic() - begun)
            except Exception as error:  # noqa: BLE001  # sorted into typed and untyped
                self.failed(error)
                await asyncio.sleep(self.chance.uniform(0.0, 0.02))
            self.timed(question, limit, time.monotonic() - begun)

    async def call(self, question: str, request: ChatRequest, begun: float) -> None:
        """One answer, whole or streamed."""
        if self.chance.random() < 0.5:
            answer = await self.router.ainvoke(request)
        else:
            answer = collect([event async for event in self.router.astream(request)])
        self.judge(question, answer, time.monotonic() - begun)


async def _tick(until: float, stalls: list[float]) -> None:
    """Note how late each tick of 2 ms is, in milliseconds."""
    while (now := time.monotonic()) < until:
        await asyncio.sleep(0.002)
        stalls.append((time.monotonic() - now - 0.002) * 1000)


_ELSEWHERE = """
import asyncio, sys, time
stalls = []
async def tick(until):
    while (now := time.monotonic()) < until:
        await asyncio.sleep(0.002)
        stalls.append((time.monotonic() - now - 0.002) * 1000)
asyncio.run(tick(time.monotonic() + float(sys.argv[1])))
stalls.sort()
print(stalls[int(0.99 * (len(stalls) - 1))], stalls[-1])
"""
"""The same ticks in a process that does nothing else: how late they are on this machine, whatever we do."""


def soak(*, seconds: float = 60.0, callers: int = 32, kills: int = 2, seed: int = 1, queue: int = 16) -> dict[str, Any]:
    """`callers`, half of them threads and half of them tasks of one event loop, ask the toy model for `seconds`.

    About three of twenty requests walk away, another three are in a hurry, and the worker is killed `kills` times.
    Figures and everything that was not as it should be; see `faults`, which must be empty.
    """
    chance = random.Random(seed)
    gc.collect()
    before = _footprint()
    provider = LlamaCppProvider(Target("llamacpp:tiny", queue=queue, priority=0))
    # A ledger keeps its last 10,000 rows, which would pass for a leak.
    router = Router([Target(provider=provider, name="local")], ledger=MemoryLedger(keep=100))
    expected = {q: router.invoke(ChatRequest((user(q),))).text for q in QUESTIONS}
    seen, pids = _Seen(), {provider.pid}
    warm = _footprint()
    begun = time.monotonic()
    until = begun + seconds
    killed: list[float] = []

    def kill() -> None:
        for at in sorted(chance.uniform(0.15, 0.85) * seconds for _ in range(kills)):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            end = time.monotonic() + 5.0
            while (pid := provider.pid) is None and time.monotonic() < end:
                time.sleep(0.005)  # it is being started again
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(round(time.monotonic() - begun, 2))

    async def tasks() -> None:
        callers_ = [_Task(n, seed, router, expected, seen).run(until) for n in range(callers - callers // 2)]
        async with asyncio.timeout(seconds + PATIENT_S + SLACK_S):
            await asyncio.gather(_tick(until, seen.stalls), *callers_)

    threads = [
        threading.Thread(target=_Thread(1000 + n, seed, router, expected, seen).run, args=(until,), daemon=True)
        for n in range(callers // 2)
    ]
    killer = threading.Thread(target=kill, daemon=True)
    elsewhere = subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE, str(seconds)], stdout=subprocess.PIPE, text=True, encoding="ascii"
    )
    for thread in (*threads, killer):
        thread.start()
    hung = 0
    try:
        asyncio.run(tasks())
    except TimeoutError:
        hung += 1
    for thread in (*threads, killer):
        thread.join(max(0.1, until + PATIENT_S + SLACK_S - time.monotonic()))
        hung += thread.is_alive()
    machine = [round(float(ms), 2) for ms in elsewhere.communicate()[0].split()]
    pids.add(provider.pid)
    facts = dict(provider.report().facts)
    served = router.health()["local"]
    router.close()
    gc.collect()
    found = _figures(seen, seed, seconds, callers, killed, hung, before, warm, pids, facts, served.last_error)
    return {**found, "idle_process_stall_p99_ms": machine[0], "idle_process_stall_max_ms": machine[1]}


def _footprint() -> dict[str, int]:
    """What this process holds now."""
    fds = Path("/proc/self/fd")
    statm = Path("/proc/self/statm")
    return {
        "descriptors": len(os.listdir(fds)) if fds.exists() else 0,
        "threads": threading.active_count(),
        "memory": int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0,
    }


def _figures(
    seen: _Seen,
    seed: int,
    seconds: float,
    callers: int,
    killed: list[float],
    hung: int,
    before: dict[str, int],
    warm: dict[str, int],
    pids: set[int | None],
    facts: dict[str, Any],
    last_error: str | None,
) -> dict[str, Any]:
    end = time.monotonic() + 5.0
    while (after := _footprint())["threads"] > before["threads"] and time.monotonic() < end:
        time.sleep(0.02)  # threads that were left behind end by themselves
    alive = [pid for pid in pids if pid is not None and Path(f"/proc/{pid}").exists()]
    faults = [f"wrong: {text}" for text in seen.wrong] + [f"untyped: {text}" for text in seen.untyped]
    faults += [f"slow: {text}" for text in seen.slow]
    if hung:
        faults.append(f"{hung} callers hang")
    if alive:
        faults.append(f"processes left: {alive}")
    for name in ("descriptors", "threads"):
        if after[name] > before[name]:
            faults.append(f"{after[name] - before[name]} {name} left")
    grown = (after["memory"] - warm["memory"]) / 2**20
    if grown > LEAK_MIB:
        faults.append(f"{grown:.0f} MiB of memory left")
    took, stalls = sorted(seen.right), sorted(seen.stalls)
    return {
        "seconds": seconds,
        "callers": callers,
        "seed": seed,
        "right": len(seen.right),
        "typed_errors": dict(Counter(seen.refused).most_common()),
        "cancelled": len(seen.cancelled),
        "killed_at_s": killed,
        "answer_p50_ms": round(_at(took, 0.5) * 1000, 1),
        "answer_p99_ms": round(_at(took, 0.99) * 1000, 1),
        "loop_stall_p99_ms": round(_at(stalls, 0.99), 2),
        "loop_stall_max_ms": round(stalls[-1], 2) if stalls else None,
        "memory_growth_mib": round(grown, 1),
        "worker_memory_mib": round((facts.get("memory_bytes") or 0) / 2**20, 1),
        "last_error": last_error,
        "faults": faults,
    }


def _at(ranked: list[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def main() -> int:
    """Print the figures as JSON; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    given = parser.parse_args()
    found = soak(seconds=given.seconds, callers=given.callers, seed=given.seed)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
