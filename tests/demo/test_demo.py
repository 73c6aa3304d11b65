"""`make demo` keeps its promises, offline, and with (played) real vendors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import Settings

from shared_core.testing import Answer, FaultServer
from tests.house import snippets
from tests.timing import timed
from tools.demo import __main__ as demo
from tools.demo.live import MODELS, LiveWorld, NoKey, chosen
from tools.demo.world import SAYS, World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in [*MODELS, "GOOGLE_API_KEY", "OPENAI_BASE_URL"]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@timed  # the demonstration is impatient with a vendor that is silent
def test_the_demonstration_keeps_six_promises_of_six():
    """The program behind `make demo`, in a process of its own that can reach this machine only, without a terminal."""
    program = f"{snippets._PRELUDE}\nimport runpy; runpy.run_module('tools.demo', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "6 of 6 as promised" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert done.returncode == 0
    assert "NOT KEPT" not in done.stdout
    assert "\x1b[" not in done.stdout, "colour where there is no terminal"
    assert done.stderr == ""


@pytest.mark.slow
@timed
def test_a_broken_promise_is_counted_and_shown(monkeypatch, capsys):
    """A vendor that does not fail when it should: the second one serves nobody and costs nothing, in steps 2 and 6."""
    monkeypatch.setattr(World, "failing", lambda self: None)
    monkeypatch.setattr(World, "patience_s", 0.5)
    assert demo.main([]) == 1
    shown = capsys.readouterr().out
    assert "NOT KEPT: 503" in shown
    assert "4 of 6 as promised" in shown.splitlines()[-1]


@pytest.mark.slow
@timed
def test_live_plays_the_same_show_with_one_key(monkeypatch, capsys):
    """A server on loopback takes the real vendor's place; failures are played by another one, with another key."""
    monkeypatch.setenv("OPENAI_API_KEY", "the-users-key-1234")
    monkeypatch.setattr(LiveWorld, "patience_s", 1.0)
    with FaultServer(default=lambda request: Answer(SAYS[request.prompt], every_s=0.02)) as vendor:
        monkeypatch.setenv("OPENAI_BASE_URL", vendor.openai_url)
        code = demo.main(["--live"])
        vendor.wait_idle()
        seen = vendor.requests
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "openai:gpt-5-mini (again)" in shown
    assert len(seen) == 4, "steps 1, 2 (twice) and 4; whatever fails is never sent to the vendor"
    assert seen[-1].outcome == "client-closed", "a stream that is cut is closed"
    assert "the-users-key" not in shown


@pytest.mark.parametrize(
    ("keys", "pair"),
    [
        (["OPENAI_API_KEY"], ("openai:gpt-5-mini", "openai:gpt-5-mini")),
        (["ANTHROPIC_API_KEY", "GEMINI_API_KEY"], ("anthropic:claude-sonnet-4-5", "google:gemini-2.5-flash")),
        (list(MODELS), ("openai:gpt-5-mini", "anthropic:claude-sonnet-4-5")),
    ],
)
def test_live_uses_the_keys_that_are_set(monkeypatch, keys, pair):
    """Each world has two hosted targets of different names, real and played, in front of the local one."""
    for name in keys:
        monkeypatch.setenv(name, "a-key")
    assert chosen(environ=os.environ) == pair
    with LiveWorld() as world:
        names = [target.name for target in world.targets]
        assert names[0] == pair[0]
        assert re.sub(r" \(again\)$", "", names[1]) == pair[1]
        assert len(set(names)) == 3
        for target in (world.first, world.second):
            assert target.provider is not None
            assert target.provider.name == target.provider_name
            target.provider.close()


def test_live_without_a_key_says_which_it_looks_for(capsys):
    """And plays nothing."""
    with pytest.raises(NoKey):
        chosen(environ={})
    assert demo.main(["--live"]) == 2
    assert "OPENAI_API_KEY or ANTHROPIC_API_KEY or GEMINI_API_KEY" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def settings_as_they_were(monkeypatch):
    """The show sets LlamaIndex's global settings, as an application does."""
    monkeypatch.setattr(Settings, "_llm", Settings._llm)
    monkeypatch.setattr(Settings, "_embed_model", Settings._embed_model)
