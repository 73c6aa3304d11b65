"""The line in real time: threads, tasks and sockets before a target that has no room."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from shared_core import (
    AllTargetsFailed,
    ChatRequest,
    Finished,
    Limits,
    RetryPolicy,
    Router,
    Target,
    TextDelta,
    Timeouts,
    Usage,
)
from shared_core.resilience.admission import Outcome
from shared_core.testing import Fault, FaultServer, ScriptedProvider
from tests.timing import LONG_S, timed

# ── threads and tasks ────────────────────────────────────────────────────────────────────────────────────────────────


class Busy:
    """A provider whose calls last until they are let go, and that knows how many ran at once, and in which order."""

    local = False
    interruptible = True
    name = model = "busy"

    def __init__(self) -> None:
        self._inner = ScriptedProvider("ok", name="busy")
        self.capabilities, self.origin = self._inner.capabilities, self._inner.origin
        self._lock = threading.Lock()
        self.running = self.most = 0
        self.order: list[str] = []

    def _enter(self, request: ChatRequest) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.order.append(request.messages[-1].text)

    def _exit(self) -> None:
        with self._lock:
            self.running -= 1

    def stream(self, request, guard):
        self._enter(request)
        try:
            threading.Event().wait(0.001)
            yield TextDelta("ok")
            yield Finished(usage=Usage(1, 1))
        finally:
            self._exit()

    async def astream(self, request, guard):
        self._enter(request)
        try:
            await asyncio.sleep(0.001)
            yield TextDelta("ok")
            yield Finished(usage=Usage(1, 1))
        finally:
            self._exit()

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


def test_a_hundred_threads_and_a_hundred_tasks_go_through_four_slots_and_some_are_cancelled():
    """One line for both; never more than four at once; whoever is cancelled leaves nothing behind."""
    provider = Busy()
    router = Router(Target(provider=provider, name="busy", limits=Limits(concurrency=4)))
    limiter = router._fleet.routes[0].gate.limiter
    done: list[str] = []
    failed: list[BaseException] = []

    def sync(i: int) -> None:
        try:
            done.append(router.invoke(f"thread {i}").text)
        except BaseException as error:
            failed.append(error)

    async def tasks() -> None:
        chance = random.Random(3)
        running = [asyncio.create_task(router.ainvoke(f"task {i}")) for i in range(100)]
        await asyncio.sleep(0.005)
        cancelled = chance.sample(running, 30)
        for task in cancelled:
            task.cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        for result in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, asyncio.CancelledError)
            else:
                done.append(result.text)

    threads = [threading.Thread(target=sync, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert 170 <= len(done) <= 200
    assert provider.most <= 4
    assert (limiter.in_flight, limiter.waiting, provider.running) == (0, 0, 0)
    assert router.health()["busy"].in_flight == 0
    assert router.invoke("and again").text == "ok"


def test_threads_and_tasks_are_served_in_the_order_they_lined_up():
    provider = Busy()
    router = Router(Target(provider=provider, name="busy", limits=Limits(concurrency=1)))
    gate = router._fleet.routes[0].gate
    held = gate.admit(router._now(), 60.0)
    expected: list[str] = []

    async def main() -> None:
        waiting: list[threading.Thread | asyncio.Task] = []
        for i in range(12):
            name = f"{'thread' if i % 3 else 'task'} {i}"
            expected.append(name)
            if i % 3:
                thread = threading.Thread(target=router.invoke, args=(name,))
                thread.start()
                waiting.append(thread)
            else:
                waiting.append(asyncio.create_task(router.ainvoke(name)))
            while gate.limiter.waiting <= i:  # noqa: ASYNC110  # threads, too, are waited for
                await asyncio.sleep(0)
        gate.settle(held, Outcome(), router._now())
        for one in waiting:
            await (asyncio.to_thread(one.join) if isinstance(one, threading.Thread) else one)

    asyncio.run(main())
    assert provider.order == expected


def test_a_waiting_tasks_loop_that_is_closed_does_not_keep_the_turn():
    """Its task is gone without a word; the turn goes to the next in line."""
    provider = Busy()
    router = Router(Target(provider=provider, name="busy", limits=Limits(concurrency=1)))
    gate = router._fleet.routes[0].gate
    held = gate.admit(router._now(), 60.0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(router.ainvoke("lost"))
    while not gate.limiter.waiting:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=router.invoke, args=("next",))
    thread.start()
    while gate.limiter.waiting < 2:
        threading.Event().wait(0.001)
    gate.settle(held, Outcome(), router._now())
    thread.join(LONG_S)
    assert provider.order == ["next"]
    assert gate.limiter.in_flight == 0
    task._log_destroy_pending = False  # asyncio would say what this test is about


@timed
def test_a_caller_waits_for_a_slot_no_longer_than_its_deadline():
    router = Router(Target(provider=Busy(), name="busy", limits=Limits(concurrency=1)), timeouts=Timeouts(total=0.05))
    gate = router._fleet.routes[0].gate
    gate.admit(router._now(), 60.0)
    for call in (router.invoke, lambda text: asyncio.run(router.ainvoke(text))):
        with pytest.raises(AllTargetsFailed, match="its one slot is taken"):
            call("Hello")
    assert gate.limiter.waiting == 0


# ── at the wire ──────────────────────────────────────────────────────────────────────────────────────────────────────


BODIES = {
    "openai": {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    },
    "anthropic": {
        "id": "x",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "yes"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    },
}


def headers_of(wire: str, remaining: int, seconds: int) -> dict[str, str]:
    if wire == "openai":
        return {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-reset-requests": f"{seconds}s",
        }
    return {
        "date": "Thu, 01 Jan 2026 00:00:00 GMT",
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": str(remaining),
        "anthropic-ratelimit-requests-reset": f"2026-01-01T00:00:{seconds:02}Z",
    }


@pytest.mark.parametrize("face", ["invoke", "ainvoke"])
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("wire", list(BODIES))
def test_a_window_that_headers_say_is_empty_gets_no_packet(wire, status, face):
    """Learned from a good answer and from a failed one; over real sockets, with the vendors' own SDKs."""
    body = BODIES[wire] if status == 200 else {"error": {"type": "api_error", "message": "oops"}}
    with FaultServer() as server:
        step = Fault("status", status=status, headers=headers_of(wire, 0, 40), body=body)
        server.script("first", [step])
        server.script("second", ["ok"])
        base = {"openai": server.openai_url, "anthropic": server.anthropic_url, "google": server.google_url}
        targets = [
            Target(f"{wire}:first", base_url=base[wire], api_key="k-123456"),
            Target("google:second", base_url=base["google"], api_key="k-123456"),
        ]
        router = Router(targets, retry=RetryPolicy(same_target=0))

        async def main() -> None:
            async with router:
                for i in range(4):
                    answer = await router.ainvoke("Hi") if face == "ainvoke" else router.invoke("Hi")
                    assert (answer.target == "google:second") is (i > 0 or status == 500)
                    assert server.count("first") == 1, "not a packet while the window is empty"

        asyncio.run(main())
        assert router.last is not None
        skip = router.last.skips[0]
        assert skip.reason == "rate limit: the vendor has no requests left"
        assert 5 < skip.retry_at - router._now() <= 41


def test_a_storm_of_429_lowers_slots_until_it_is_over_and_then_they_come_back():
    with FaultServer() as server:
        server.script("m", [*[Fault("status", status=429)] * 12, "ok"])
        target = Target(
            "openai:m", base_url=server.openai_url, api_key="k-123456", limits=Limits(concurrency=8), name="t"
        )
        with Router(target, retry=RetryPolicy(base_s=0.001, overloaded_base_s=0.001)) as router:
            limiter = router._fleet.routes[0].gate.limiter
            lowest = 8

            def ask() -> None:
                nonlocal lowest
                for _ in range(6):
                    try:
                        router.invoke("Hi")
                    except AllTargetsFailed:
                        pass
                    lowest = min(lowest, limiter.slots or 0)

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert lowest < 8
            assert limiter.slots > lowest
            assert (limiter.in_flight, limiter.waiting) == (0, 0)
