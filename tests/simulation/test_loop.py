"""The virtual event loop: time jumps, order is seeded, and there is nothing in it that would not repeat."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from shared_core.testing import SimulationStuck
from shared_core.testing.simulation._loop import SimulatedClock, VirtualLoop


def test_time_jumps_to_the_next_timer():
    """A day takes no time, and sleepers wake in the order of their times."""
    loop, woken = VirtualLoop(), []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        woken.append((loop.time(), seconds))

    async def main():
        async with asyncio.TaskGroup() as group:
            for seconds in (86400.0, 0.5, 3.0):
                group.create_task(sleeper(seconds))

    loop.run(main(), until=math.inf)
    assert woken == [(0.5, 0.5), (3.0, 3.0), (86400.0, 86400.0)]


def orders(seed):
    loop, order = VirtualLoop(seed), []

    async def one(n):
        await asyncio.sleep(1)
        order.append(n)

    async def main():
        await asyncio.gather(*(one(n) for n in range(20)))

    loop.run(main(), until=10)
    return order


def test_those_who_are_ready_at_once_run_in_an_order_of_the_seed():
    """The same each time, another with another seed, and not simply the order in which they came."""
    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert sorted(orders(1)) == list(range(20)) != orders(1)


def test_timeouts_locks_and_queues_work():
    """What asyncio is made of, in virtual time."""
    loop = VirtualLoop()

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        assert loop.time() == 5.0
        queue, lock = asyncio.Queue(1), asyncio.Lock()

        async def put():
            async with lock:
                for n in range(3):
                    await queue.put(n)

        putting = asyncio.create_task(put())
        assert [await queue.get() for _ in range(3)] == [0, 1, 2]
        await putting
        return "done"

    assert loop.run(main(), until=10) == "done"


def test_a_cancelled_timer_does_not_hold_up_time():
    """Nor do thousands of them fill the memory."""
    loop = VirtualLoop()

    async def main():
        for _ in range(5000):
            loop.call_later(1000, print).cancel()
        assert len(loop._timers) < 1000
        await asyncio.sleep(1)

    loop.run(main(), until=10)
    assert loop.time() == 1.0


def test_nobody_left_to_wake_a_sleeper_is_an_error():
    """Not a hang."""

    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(SimulationStuck, match="everybody waits"):
        VirtualLoop().run(main(), until=10)


def test_an_end_is_kept():
    """Virtual time may not pass what was agreed."""
    with pytest.raises(SimulationStuck, match="the next thing"):
        VirtualLoop().run(asyncio.sleep(11), until=10)


def test_nothing_reaches_out_of_it_or_into_it():
    """Neither another thread nor a socket would repeat. Work meant for a thread is done at once."""
    loop, refused = VirtualLoop(), []

    def reach_in():
        try:
            loop.call_soon_threadsafe(print)
        except RuntimeError as error:
            refused.append(str(error))

    async def main():
        thread = threading.Thread(target=reach_in)
        thread.start()
        thread.join()
        assert await asyncio.to_thread(threading.get_ident) == threading.get_ident(), "it ran here, at once"
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        with pytest.raises(NotImplementedError):
            await asyncio.open_connection("127.0.0.1", 9)

    loop.run(main(), until=10)
    assert len(refused) == 1


def test_an_abandoned_generator_is_closed_in_virtual_time():
    """Its `finally` runs, awaits included, as on asyncio's own loop."""
    loop, closed = VirtualLoop(), []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(3)
            closed.append(loop.time())

    async def main():
        async for _ in numbers():
            break
        await asyncio.sleep(10)

    loop.run(main(), until=20)
    assert closed == [3.0]


def test_the_clock_tells_wall_time_apart_from_monotonic_time():
    """And refuses to block."""
    loop = VirtualLoop()
    clock = SimulatedClock(loop)
    begun = clock.time()
    clock.stepped_s = -86400.0
    assert clock.time() == begun - 86400
    assert clock.monotonic() == 0.0
    with pytest.raises(RuntimeError, match="must await"):
        clock.sleep(1)
    loop.run(clock.asleep(2), until=10)
    assert clock.monotonic() == 2.0
