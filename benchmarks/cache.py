"""The cache: what a hit, a key and a miss cost, and how long an event loop stands still for a file."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.core import Instant
from benchmarks.measure import Row, per_call_us, row
from shared_core import ChatRequest, ResponseCache, Router, assistant, user
from shared_core.cache.keys import digest, request_form

__all__ = ["conversation", "loop_stall_ms", "measure"]

ASK = ChatRequest((user("Hello"),))


def conversation(messages: int = 50) -> ChatRequest:
    """A talk of so many messages, of forty words each."""
    text = "Let us say a few words that are neither very short nor very long. " * 3
    said = (f"{number}. {text}" for number in range(messages))
    return ChatRequest(
        tuple((user if number % 2 == 0 else assistant)(text) for number, text in enumerate(said)), temperature=0.5
    )


def measure(rounds: int, number: int) -> list[Row]:
    """All rows of the cache."""
    plain, cached, shared = Router(Instant()), Router(Instant(), cache=True), Router(Instant(), single_flight=True)
    cached.invoke(ASK)
    long = conversation()
    with _file() as path:
        filed = Router(Instant(), cache=ResponseCache(path=path))
        filed.invoke(ASK)
        bare, hit, key, miss, flight, off, from_file = per_call_us(
            lambda: plain.invoke(ASK),
            lambda: cached.invoke(ASK),
            lambda: digest(request_form(long)),
            lambda: cached.invoke(ASK, cache="refresh"),
            lambda: shared.invoke(ASK),
            lambda: cached.invoke(ASK, cache=False),
            lambda: filed.invoke(ASK),
            rounds=rounds,
            number=number,
        )
        filed.close()
    median = statistics.median

    def added(ours: list[float]) -> float:
        return median(a - b for a, b in zip(ours, bare, strict=True))

    return [
        row("an answer from the cache, in memory, all in all", "us", median(hit), at_most=30),
        row("the key of a conversation of 50 messages", "us", median(key), at_most=100),
        row("an answer from the cache, in a file, sync", "us", median(from_file)),
        row("asking and keeping adds to a request", "us", added(miss)),
        row("single-flight adds to a request that nobody joins", "us", added(flight)),
        row("a cache that the call goes without adds", "us", added(off)),
        row("an event loop stands still for a file in use, longest", "ms", loop_stall_ms(0.5), at_most=5),
    ]


@contextmanager
def _file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "cache.db"


_WRITER = """
import sys, time
from shared_core import ResponseCache
from shared_core.cache.entry import Kept
cache, count = ResponseCache(path=sys.argv[1], max_items=500), 0
print("writing", flush=True)
while True:
    count += 1
    cache.keep(count.to_bytes(32, "big"), Kept("an answer of another process " * 20), time.time())
"""


def loop_stall_ms(seconds: float, callers: int = 8, repeats: int = 5) -> float:
    """How late an event loop was at most, in milliseconds, while its tasks read and wrote a cache's file that another
    process kept on writing. The same loop without a file is as late as the machine makes it: that is taken off. Of
    several runs the best counts, for the others met more of the machine's own hiccups.
    """
    with _file() as path:
        other = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        try:
            assert other.stdout is not None
            other.stdout.readline()
            found = []
            for _ in range(repeats):
                usual = max(_lateness(Router(Instant(), single_flight=True), seconds, callers))
                cache = ResponseCache(path=path, max_items=500)
                found.append(max(0.0, max(_lateness(Router(Instant(), cache=cache), seconds, callers)) - usual))
                cache.close()
            return min(found)
        finally:
            other.kill()
            other.wait()


def _lateness(router: Router, seconds: float, callers: int) -> list[float]:
    late: list[float] = []

    async def watch(until: float) -> None:
        while (begun := time.perf_counter()) < until:
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - begun - 0.001) * 1e3)

    async def call(number: int, until: float) -> None:
        count = 0
        while time.perf_counter() < until:
            count += 1
            await router.ainvoke(ASK.replace(seed=count % 300), cache="refresh" if (count + number) % 4 == 0 else None)
            await asyncio.sleep(0.002)

    async def main() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(watch(until), *(call(number, until) for number in range(callers)))

    asyncio.run(main())
    return late
