"""Configuration files: TOML, JSON and mappings, with the environment's values where the text asks for them."""

from __future__ import annotations

import json

import pytest

from shared_core import ConfigurationError, MissingKey
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
