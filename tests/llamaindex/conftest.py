"""One fault server for each test, and no network beyond it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from shared_core.testing import FaultServer
from tests.llamaindex import world


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while world.OPEN:
        await world.OPEN.pop().aclose()
