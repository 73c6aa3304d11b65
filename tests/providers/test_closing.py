"""What is left of connections when a router is closed: nothing that Python warns of."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from shared_core import Router, Target
from shared_core.testing import FaultServer

WIRES = {"openai": "openai_url", "anthropic": "anthropic_url", "google": "google_url"}


def router_at(server, wire):
    return Router([Target(f"{wire}:m", base_url=getattr(server, WIRES[wire]), api_key="k")])


def in_a_block(server, wire):
    async def main():
        async with router_at(server, wire) as router:
            await router.ainvoke("Hi")
            async for _ in router.astream("Hi"):
                break

    asyncio.run(main())


def by_hand(server, wire):
    async def main():
        router = router_at(server, wire)
        await router.ainvoke("Hi")
        await router.aclose()

    asyncio.run(main())


def by_close_while_the_loop_runs(server, wire):
    async def main():
        router = router_at(server, wire)
        await router.ainvoke("Hi")
        router.close()
        while server.open_connections:  # noqa: ASYNC110  # the closing is a task of this loop
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 10))


def sync_in_a_block(server, wire):
    with router_at(server, wire) as router:
        router.invoke("Hi")
        for _ in router.stream("Hi"):
            break


@pytest.mark.parametrize(
    ("use", "wire"),
    [
        *((use, wire) for use in (in_a_block, sync_in_a_block) for wire in WIRES),
        *((use, "openai") for use in (by_hand, by_close_while_the_loop_runs)),
    ],
)
def test_nothing_is_left_open(use, wire):
    gc.collect()  # what other tests have left
    with FaultServer() as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        use(server, wire)
        gc.collect()
        server.wait_idle()
    assert [str(w.message) for w in warned if issubclass(w.category, ResourceWarning)] == []
