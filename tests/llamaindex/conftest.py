"""One fault server for all tests, as good as new for each, and no network beyond it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared_core.testing import FaultServer
from tests.llamaindex import world


@pytest.fixture(scope="session")
async def _running() -> AsyncIterator[FaultServer]:
    with FaultServer() as running:
        yield running
        for llm in world.OPEN.values():
            await llm.aclose()


@pytest.fixture
def server(_running: FaultServer) -> FaultServer:
    world.script_all(_running, "ok")
    _running.wait_idle()
    _running.clear()
    return _running
