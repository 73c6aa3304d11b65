"""The cache: keys that tell requests apart, flights that nobody's leaving ends, entries that cannot lie."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, run_state_machine_as_test

from benchmarks import cache as bench
from shared_core import ChatRequest, ResponseCache, Router, Target, user
from shared_core.cache.entry import Kept, Poisoned, read, write
from shared_core.testing import Answer, FaultServer, SeenRequest
from tests.cache import test_aliasing as aliasing
from tests.cache import test_keys as keys

__all__ = ["figures"]

ASK = ChatRequest((user("Hello"),))
MODEL = "gpt-4.1-mini"
KEY = b"k" * 32


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Takes some five minutes; `quick` takes a twentieth of it."""
    share = 20 if quick else 1
    return {
        "keys": _keys(20_000 // share),
        "flights": _flights(40 // share or 2),
        "entries": _entries(),
        "standing_in": _standing_in(2_000 // share),
        "processes": _processes(8, 20.0 / share, 60 // share),
        "speed": [row.as_dict() for row in bench.measure(3 if quick else 9, 400 if quick else 4_000)],
    }


def _keys(examples: int) -> dict[str, Any]:
    """Pairs of requests that differ in one field, or not at all by meaning, and whether their keys say so."""
    seen = {"compared": 0, "told_apart": 0, "alike": 0, "wrong": 0}
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )

    @quiet
    @given(keys.REQUEST, st.data())
    def compare(request: ChatRequest, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(keys.VALUES)))
        other = data.draw(keys.VALUES[name])
        before = getattr(request, name)
        same = (before is None) == (other is None) if name == "check" else keys.alike(before, other)
        equal = keys.key(request.replace(**{name: other})) == keys.key(request)
        seen["compared"] += 1
        seen["alike" if same else "told_apart"] += 1
        seen["wrong"] += equal is not same

    compare()
    return {**seen, "fields": len(keys.VALUES)}


def _flights(rounds: int) -> dict[str, Any]:
    """A thousand callers at once, over a real socket: threads and tasks, whole and streamed; many of them leave.

    The server begins to answer when the last of them has begun to ask: on a busy machine that takes longer than an
    answer, and who begins after one has, where nothing is kept, nobody to share it with.
    """
    rng = random.Random(7)
    requests, calls, left, failed = 0, 0, 0, 0
    for number in range(rounds):
        begun = _Begun(1_000)

        def answer(seen: SeenRequest, begun: _Begun = begun) -> Answer:
            begun.all.wait(60.0)
            return Answer("Hello there, all of you.", delay_s=1.0, every_s=0.01)

        with FaultServer() as server:
            server.script("*", answer)
            target = Target(f"openai:{MODEL}", base_url=server.openai_url, api_key="sk-any")
            with Router(target, cache=bool(number % 2), single_flight=True) as router:
                router.warm()
                told = _crowd(router, rng, begun, share=0.0 if number < 2 else 0.5)
            requests += len(server.requests)
            calls += 1_000
            left += told["left"]
            failed += told["failed"]
    return {"rounds": rounds, "calls": calls, "left": left, "requests": requests, "failed": failed}


class _Begun:
    """Counts callers who begin to ask, from any thread; `all` is set by the last of so many."""

    def __init__(self, callers: int) -> None:
        self.all = threading.Event()
        self._missing = [None] * callers

    def one(self) -> None:
        self._missing.pop()
        if not self._missing:
            self.all.set()


def _crowd(router: Router, rng: random.Random, begun: _Begun, *, share: float) -> dict[str, int]:
    async def whole() -> str:
        begun.one()
        return (await router.ainvoke(ASK)).text

    async def streamed() -> str:
        begun.one()
        return "".join([getattr(event, "text", "") async for event in router.astream(ASK)])

    def threaded() -> str:
        begun.one()
        return router.invoke(ASK).text

    async def main(threads: list[Any]) -> dict[str, int]:
        tasks = [asyncio.create_task(rng.choice((whole, streamed))()) for _ in range(960)]
        await asyncio.to_thread(begun.all.wait, 60.0)
        await asyncio.sleep(0.3)
        leaving = [task for task in tasks if rng.random() < share]
        for task in leaving:
            task.cancel()
        said = await asyncio.gather(*tasks, return_exceptions=True)
        stayed = [text for task, text in zip(tasks, said, strict=True) if task not in set(leaving)]
        stayed += [await asyncio.wrap_future(thread) for thread in threads]
        return {"left": len(leaving), "failed": sum(text != "Hello there, all of you." for text in stayed)}

    with ThreadPoolExecutor(40) as pool:
        return asyncio.run(main([pool.submit(threaded) for _ in range(40)]))


def _entries() -> dict[str, Any]:
    """Every bit of an entry changed, every end of it cut off, and every other key: what can still be read."""
    tried = served = 0
    for size in (1, 100):
        for compress_over in (0, 1_000_000):
            written = write(KEY, Kept("The capital of France is Paris. " * size, model="m"), compress_over)
            for key, spoiled in _spoiled(written):
                tried += 1
                try:
                    read(key, spoiled)
                except Poisoned:
                    continue
                served += 1
    return {"spoiled": tried, "served": served}


def _spoiled(written: bytes) -> Iterator[tuple[bytes, bytes]]:
    for bit in range(min(len(written), 2_000) * 8):
        yield KEY, _flipped(written, bit)
    for length in range(len(written)):
        yield KEY, written[:length]
    yield b"l" * 32, written


def _flipped(written: bytes, bit: int) -> bytes:
    spoiled = bytearray(written)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


def _standing_in(examples: int) -> dict[str, Any]:
    """Targets that open, close, go and come back at random: every answer beside that of a plain model."""
    counted = {"answers": 0}

    class Counting(aliasing.Aliasing):
        @invariant()
        def it_went_on(self) -> None:
            counted["answers"] += 1

    run_state_machine_as_test(
        Counting,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), derandomize=True,
        ),
    )  # fmt: skip
    return {"runs": examples, "steps": counted["answers"], "wrong": 0}


def _work(path: str, number: int, seen: Any) -> None:
    """One process: looks and keeps until it is killed; `seen` is shared memory that no lock guards."""
    rng = random.Random(number)
    cache = ResponseCache(path=path, max_items=300)
    while True:
        which = rng.randrange(500)
        key = which.to_bytes(32, "big")
        found = cache.find([key], time.time())
        seen[3 * number] += 1
        seen[3 * number + 1] += found is not None and not found.kept.text.startswith(f"answer {which} ")
        seen[3 * number + 2] = cache.stats().poisoned
        if found is None or rng.random() < 0.2:
            cache.keep(key, Kept(f"answer {which} " * rng.randrange(1, 200)), time.time())


def _processes(count: int, seconds: float, kills: int) -> dict[str, Any]:
    """Processes at one file, one of them killed with -9 every now and then, and another put in its place."""
    context = multiprocessing.get_context("spawn")
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        path = os.fspath(Path(folder) / "cache.db")
        ResponseCache(path=path).keep(b"0" * 32, Kept("x"), time.time())
        seen = context.RawArray("q", 3 * (count + kills + 1_000))
        crew = [context.Process(target=_work, args=(path, n, seen), daemon=True) for n in range(count)]
        for process in crew:
            process.start()
        killed, numbers = 0, list(range(count))
        until = time.monotonic() + seconds
        while (time.monotonic() < until or killed < kills) and killed < kills + 1_000:
            time.sleep(seconds / kills)
            victim = rng.randrange(count)
            if not seen[3 * numbers[victim]]:
                continue  # it has not begun yet
            os.kill(crew[victim].pid or 0, signal.SIGKILL)
            crew[victim].join()
            numbers[victim] = count + killed
            crew[victim] = context.Process(target=_work, args=(path, numbers[victim], seen), daemon=True)
            killed += 1
            crew[victim].start()
        for process in crew:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        with closing(sqlite3.connect(path)) as file:
            whole = file.execute("PRAGMA integrity_check").fetchone()[0]
            items, taken = file.execute("SELECT items, bytes FROM total").fetchone()
            counted = file.execute("SELECT count(*), coalesce(sum(takes), 0) FROM entries").fetchone()
            bad = 0
            for key, body in file.execute("SELECT key, body FROM entries"):
                try:
                    read(key, body)
                except Poisoned:
                    bad += 1
    return {
        "processes": count, "killed": killed + count, "looks": sum(seen[0::3]), "wrong": sum(seen[1::3]),
        "poisoned": sum(seen[2::3]) + bad,
        "integrity": whole, "entries": items, "totals_agree": (items, taken) == tuple(counted),
    }  # fmt: skip
