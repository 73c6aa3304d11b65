"""What the history tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared_core.testing import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running
