"""Configuration files: TOML, JSON and mappings, with the environment's values where the text asks for them."""

from __future__ import annotations

import json

import pytest

from shared_core import ConfigurationError, MissingKey, RetryPolicy, Router
from shared_core.config import read_config

SETTINGS = {
    "temperature": 0.2,
    "models": ["openai:gpt-5-mini", {"spec": "anthropic:x", "api_key": "${A_KEY}", "base_url": "${URL:-http://h/v1}"}],
    "timeouts": {"total": 30},
}
TOML = """
temperature = 0.2
models = ["openai:gpt-5-mini", { spec = "anthropic:x", api_key = "${A_KEY}", base_url = "${URL:-http://h/v1}" }]
timeouts.total = 30
"""
READ = {
    "temperature": 0.2,
    "models": ["openai:gpt-5-mini", {"spec": "anthropic:x", "api_key": "secret", "base_url": "http://h/v1"}],
    "timeouts": {"total": 30},
}


@pytest.mark.parametrize("kind", ["mapping", "toml", "json", "str path"])
def test_every_kind_of_source_says_the_same(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.delenv("URL", raising=False)
    toml, plain = tmp_path / "fallback.toml", tmp_path / "fallback.json"
    toml.write_text(TOML, encoding="utf-8")
    plain.write_text(json.dumps(SETTINGS), encoding="utf-8")
    source = {"mapping": SETTINGS, "toml": toml, "json": plain, "str path": str(toml)}[kind]
    assert read_config(source) == READ
    assert SETTINGS["models"][1]["api_key"] == "${A_KEY}", "the caller's mapping stays as it was"


def test_a_variable_that_is_not_set_is_named_with_where_it_stands(monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(MissingKey, match=r"models\[1\].api_key wants \$\{A_KEY\}(?s:.*)hint: set A_KEY"):
        read_config(SETTINGS)


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("A_KEY", "")
    assert read_config({"x": "${A_KEY:-other}"}) == {"x": "other"}
    with pytest.raises(MissingKey):
        read_config({"x": "${A_KEY}"})


@pytest.mark.parametrize("text", ["$HOME", "{HOME}", "${}", "${1A}", "$(id)"])
def test_only_the_one_form_is_replaced(text):
    assert read_config({"x": text}) == {"x": text}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.toml", "a = = 1", "line 1"),
        ("broken.json", '{"a": }', "line 1"),
        ("list.json", "[1]", "table of settings, not list"),
        ("settings.yaml", "a: 1", "neither a .toml nor a .json"),
        ("latin.toml", b'a = "\xe9"', "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match=says):
        read_config(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_config(tmp_path / "missing.toml")


# ── a router from a file ─────────────────────────────────────────────────────────────────────────────────────────────

FILE = """
strategy = "cost"
targets = [
    "llamacpp:tiny",
    { spec = "openai:gpt-5-mini", api_key = "${A_KEY}", price = { input = 1, output = 2 } },
]

[timeouts]
first_token = 5

[chains.nightly]
targets = ["llamacpp:tiny"]
retry = { total = 5 }
"""


def makers():
    from langchain_fallback import FallbackChatModel
    from llamaindex_fallback import FallbackLLM

    return {
        "Router": Router.from_config,
        "FallbackChatModel": lambda *a, **k: FallbackChatModel.from_config(*a, **k).router,
        "FallbackLLM": lambda *a, **k: FallbackLLM.from_config(*a, **k).router,
    }


@pytest.mark.parametrize("listed", ["targets", "models"])
@pytest.mark.parametrize("face", ["Router", "FallbackChatModel", "FallbackLLM"])
def test_one_file_serves_the_router_and_both_wrappers(tmp_path, monkeypatch, face, listed):
    """Its keys come from the environment; keywords go before what the file says."""
    monkeypatch.setenv("A_KEY", "sk-from-the-environment")
    path = tmp_path / "fallback.toml"
    path.write_text(FILE.replace("\ntargets = [\n", f"\n{listed} = [\n"), encoding="utf-8")
    made = makers()[face]
    with made(path) as router:
        assert [target.name for target in router.targets] == ["llamacpp:tiny", "openai:gpt-5-mini"]
        assert router.targets[1].api_key == "sk-from-the-environment"
        assert router.options["strategy"] == "cost"
        assert router.chains["nightly"].retry == RetryPolicy(total=5)
    with made(str(path), strategy="weighted") as router:
        assert router.options["strategy"] == "weighted"


@pytest.mark.parametrize(
    ("wrong", "right", "line", "says"),
    [
        ("stratgy", "strategy", 2, "Did you mean 'strategy'"),
        ("chepest", '"cost"', 2, "unknown strategy 'chepest'"),
        ("first_tokn", "first_token", 9, "Did you mean 'first_token'"),
        ("opnai", "openai", 5, "Did you mean 'openai'"),
        ("totl", "total", 13, "Did you mean 'total'"),
        ("llamacpp:tinny", '["llamacpp:tiny"]', 12, "which is no target"),
    ],
)
@pytest.mark.parametrize("face", ["Router", "FallbackChatModel", "FallbackLLM"])
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path, monkeypatch, face, wrong, right, line, says):
    monkeypatch.setenv("A_KEY", "k")
    path = tmp_path / "fallback.toml"
    value = f'"{wrong}"' if right.startswith('"') else f'["{wrong}"]' if right.startswith("[") else wrong
    path.write_text(FILE.replace(right, value, 1), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as caught:
        makers()[face](path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("listed", [{}, {"targets": []}, {"targets": ["llamacpp:tiny"], "models": ["llamacpp:tiny"]}])
def test_a_configuration_lists_its_targets_once(listed):
    with pytest.raises(ConfigurationError, match=r"the configuration lists (no|both) targets"):
        Router.from_config(listed)


def test_a_mapping_is_read_like_a_file_and_has_no_lines():
    assert Router.from_config({"targets": ["llamacpp:tiny"]}).targets[0].name == "llamacpp:tiny"
    with pytest.raises(ConfigurationError, match=r"^unknown strategy"):
        Router.from_config({"targets": ["llamacpp:tiny"], "strategy": "chepest"})
