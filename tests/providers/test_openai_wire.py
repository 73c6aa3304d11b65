"""The OpenAI provider against a server that fails in every known way: the right error, one packet, in time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared_core.errors import ErrorKind
from shared_core.routing.target import Target
from shared_core.testing import FaultServer
from tests.providers.wire import COLOURS, Colour, cases, suffer


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("fault", "streaming", "kind"), cases("openai"))
def test_each_fault_becomes_its_kind_of_error_and_costs_one_packet(
    server: FaultServer, colour: Colour, fault: str, streaming: bool, kind: ErrorKind | None
) -> None:
    """No retries of the SDK's own, no followed redirects, no limits stretched by dripping."""
    target = Target("openai:gpt-test", base_url=server.openai_url, api_key="sk-test-not-a-real-key-000")
    suffer(server, target, colour, fault, streaming=streaming, kind=kind)
