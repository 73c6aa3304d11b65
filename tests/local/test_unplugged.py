"""With every hosted endpoint out of reach, an agent and a query engine finish their work on the local model."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.local import unplugged

pytestmark = pytest.mark.local

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
HOSTED = ["anthropic:claude-sonnet-4-5", "openai:gpt-5-mini"]
TOLD = ["Customer data is stored in the data centre in Helsinki.", "All parcels are delivered by BlueKite."]

FACES = {"sync": {}, "async": {"of": asyncio.run}, "streamed": {"stream": True}}


def check_agent(got):
    """It called its one tool once, and said what the tool had returned; both of its turns were the local model's."""
    assert [list(call) for call in got["ran"]] == [["get_weather", "Lima"]]
    assert got["said"] == "It is 21 degrees and sunny in Lima."
    assert got["served"] == [unplugged.LOCAL, unplugged.LOCAL]
    assert got["failed"] == HOSTED, "they were asked, and could not be reached"


def check_engine(got):
    """It read the handbook's pages."""
    assert got == {"said": TOLD, "served": unplugged.LOCAL}


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_an_agent_of_langchain_works_on_while_nobody_can_be_reached(tiny, face):
    check_agent(unplugged.langchain_agent(unplugged.models(NOWHERE), **face))


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_an_engine_of_llamaindex_works_on_while_nobody_can_be_reached(tiny, face):
    check_engine(unplugged.llamaindex_engine(unplugged.models(NOWHERE), **face))


def _without_a_network() -> list[str] | None:
    """What to put before a command so that it runs where no interface is up, not even loopback."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    command = [unshare, "--map-root-user", "--net"]
    return command if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0 else None


@pytest.mark.slow
def test_both_work_where_there_is_no_network_at_all(tiny):
    """A network namespace of its own, with loopback down: the vendors' real addresses, and nothing behind them."""
    inside = _without_a_network()
    if inside is None:
        pytest.skip("this machine does not permit a network namespace (unshare --net)")
    check = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    refused = subprocess.run([*inside, sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in refused.stderr, "there is a network after all"
    done = subprocess.run(
        [*inside, sys.executable, "-m", "tests.local.unplugged"],
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    for name, got in told.items():
        (check_agent if name.startswith("langchain") else check_engine)(got)
    assert len(told) == 4
