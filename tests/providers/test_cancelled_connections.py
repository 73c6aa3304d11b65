"""A call that is cancelled, at whichever await, leaves its connection closed or free: real SDKs, real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from shared_core.providers import transport
from shared_core.providers.transport import _Uncut
from shared_core.testing import FaultServer


class CancelledAt:
    """Awaits a coroutine and cancels its own task when it has given up control for the `at`-th time."""

    def __init__(self, what: Any, at: int) -> None:
        self._what, self._at = what, at
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._what.__await__()
        passed: BaseException | None = None
        for count in range(1_000_000):
            try:
                step = steps.throw(passed) if passed else next(steps)
            except StopIteration as ended:
                return ended.value
            passed = None
            if count == self._at:  # as somebody else would: when it waits, and not while it runs
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield step
            except BaseException as error:
                passed = error
        raise AssertionError("it never ends")


def openai_call(server: FaultServer) -> tuple[Any, Any]:
    import openai

    http = transport.async_http_client(transport.http_module(openai))
    client = openai.AsyncOpenAI(api_key="k", base_url=server.openai_url, http_client=http, max_retries=0)
    hello: Any = [{"role": "user", "content": "Hello"}]
    return http, lambda **more: client.chat.completions.create(model="m", messages=hello, **more)


def anthropic_call(server: FaultServer) -> tuple[Any, Any]:
    import anthropic

    http = transport.async_http_client(transport.http_module(anthropic))
    client = anthropic.AsyncAnthropic(api_key="k", base_url=server.anthropic_url, http_client=http, max_retries=0)
    hello: Any = [{"role": "user", "content": "Hello"}]
    return http, lambda **more: client.messages.create(model="m", max_tokens=9, messages=hello, **more)


@pytest.mark.parametrize("calls", [openai_call, anthropic_call])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("warm", [False, True])
async def test_no_connection_is_lost_at_any_await(calls, stream, warm):
    """On a new connection, and on one that has served before. httpx alone loses one at several of these points."""
    with FaultServer() as server:
        http, call = calls(server)
        pool = http._transport._pool

        async def asked() -> None:
            if not stream:
                await call()
                return
            events = await call(stream=True)
            try:
                async for _ in events:
                    pass
            finally:
                await events.close()

        at, reached = 0, True
        while reached:
            if warm:
                await call()
            else:
                for connection in pool.connections:  # so that the next call has to connect
                    await connection.aclose()
            cut = CancelledAt(asked(), at)
            task = asyncio.ensure_future(_wrapped(cut))
            await asyncio.wait([task])
            reached = cut.reached
            assert task.cancelled() or not reached or task.exception() is None, task
            busy = [one for one in pool.connections if not one.is_idle() and not one.is_closed()]
            assert (len(pool._requests), busy) == (0, []), f"cancelled at await {at}: {busy}"
            at += 1
        assert at > 2  # sent, head, body: newer SDKs, and answers that are there at once, wait no more often
        await http.aclose()


async def _wrapped(what: Any) -> Any:
    return await what


# ── what is not cut short ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancellation_is_held_back_until_the_end_and_raised_there():
    done: list[str] = []

    async def closing() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append("closed")

    async def caller() -> None:
        await _Uncut(closing())
        done.append("went on")

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert done == ["closed"]


async def test_a_failure_while_a_cancellation_is_held_back_is_its_cause():
    async def closing() -> None:
        await asyncio.sleep(0)
        raise OSError("lost")

    async def caller() -> BaseException | None:
        with pytest.raises(asyncio.CancelledError) as caught:
            await _Uncut(closing())
        return caught.value.__cause__

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await task, OSError)


async def test_without_a_cancellation_it_ends_and_fails_as_it_is():
    async def fails() -> None:
        await asyncio.sleep(0)
        raise OSError("lost")

    async def ends() -> None:
        await asyncio.sleep(0)

    await _Uncut(ends())
    with pytest.raises(OSError, match="lost"):
        await _Uncut(fails())


async def test_what_waits_for_the_peer_is_not_held_up():
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def closing() -> None:
        await never

    async def caller() -> None:
        await _Uncut(closing())

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait_for(asyncio.wait([task]), 10)
    assert task.cancelled()
    assert never.cancelled()


async def test_a_task_that_is_thrown_away_closes_what_it_waited_for():
    ended: list[str] = []

    async def closing() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append("closed")

    async def caller() -> None:
        await _Uncut(closing())

    coroutine = caller()
    coroutine.send(None)
    coroutine.close()
    assert ended == ["closed"]
