"""The page of the configuration tells every option that there is, and its file is one that works."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from shared_core import (
    BreakerConfig,
    Budget,
    Chain,
    ConfigurationError,
    Hedge,
    Limits,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    router_options,
)
from shared_core.routing.target import KEYWORDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")
FILE = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]  # type: ignore[index]  # it is there, or the test fails


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    made = tmp_path / "fallback.toml"
    made.write_text(FILE, encoding="utf-8")
    return made


@pytest.mark.parametrize("face", ["Router", "FallbackChatModel", "FallbackLLM"])
def test_the_file_on_the_page_makes_a_router_as_it_says(path, face):
    from langchain_fallback import FallbackChatModel
    from llamaindex_fallback import FallbackLLM

    made = {"Router": Router, "FallbackChatModel": FallbackChatModel, "FallbackLLM": FallbackLLM}[face]
    built = made.from_config(path)
    router = built if isinstance(built, Router) else built.router
    line = router._fleet.line
    assert [t.name for t in router.targets] == ["openai:gpt-5-mini", "claude", "llamacpp:tiny"]
    assert (router.targets[0].api_key, router.targets[1].api_key) == ("k", "none")
    assert (line.rules.timeouts.first_token, line.rules.timeouts.total) == (10, 120)
    assert (line.rules.complexity, line.rules.limits.requests_per_minute, line.rules.breaker.consecutive_failures) == (
        "auto",
        600,
        3,
    )
    assert line.rules.flow.hedger.hedge == Hedge()
    assert router.chains["chat"].timeouts == Timeouts(total=60)
    router.close()


def test_every_keyword_is_on_the_page():
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert set(router_options()) <= told
    assert KEYWORDS - {"model"} <= told
    for group in (Chain, Budget):
        assert {f.name for f in fields(group) if f.init} <= told, group


@pytest.mark.parametrize(
    ("page", "group"),
    [
        ("hedging", Hedge),
        ("circuit-breaker", BreakerConfig),
        ("rate-limits", Limits),
        ("retries-and-deadlines", RetryPolicy),
        ("retries-and-deadlines", Timeouts),
    ],
)
def test_every_option_of_a_group_is_on_the_page_it_is_sent_to(page, group):
    assert f"({page}.md)" in PAGE
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert {f.name for f in fields(group)} <= set(re.findall(r"^\| `(?:\w+\.)?(\w+)` \|", text, re.MULTILINE))


LINES = [line for line in FILE.splitlines() if re.match(r"[a-z_]+ = ", line)]


@pytest.mark.parametrize("line", LINES)
def test_a_slip_in_any_line_of_the_file_is_told_with_that_line(path, line):
    """One letter too many in any option of any table."""
    word = line.partition(" ")[0]
    at = FILE.splitlines().index(line) + 1
    text = FILE.splitlines()
    text[at - 1] = text[at - 1].replace(word, f"{word}x", 1)
    path.write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        Router.from_config(path)
    told = str(caught.value)
    if word == "models":
        assert "lists no targets" in told
    else:
        assert told.startswith(f"{path}:{at}: "), told
        assert f"{word}x" in told


def test_changing_a_router_by_the_same_file_changes_nothing(path):
    router = Router.from_config(path)
    gates = [route.gate for route in router._fleet.routes]
    router.reconfigure(path)
    assert [route.gate for route in router._fleet.routes] == gates
    assert isinstance(router.targets[0], Target)
    router.close()
