"""Configuration files: TOML, JSON and mappings, with the environment's values where the text asks for them."""

from __future__ import annotations

import json

import pytest

from shared_core import ConfigurationError, LedgerError, MissingKey, RetryPolicy, Router
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


# ── the line, whatever is wrong ──────────────────────────────────────────────────────────────────────────────────────

LISTED = 'models = ["llamacpp:tiny"]\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (LISTED + "[timeouts]\ntotal = 5\nfirst_token = -3\n", 4, "Timeouts.first_token"),
        (LISTED + "[timeouts]\ntotal = 5\n[chains.a.timeouts]\nidle = 5\ntotal = -5\n", 6, "not -5"),
        (LISTED + "timeouts.total = 5\ntimeouts.idle = 0\n", 3, "Timeouts.idle"),
        (LISTED + "[retry]\ntotal = 1\n[chains.a]\nretry = { total = -5 }\n", 5, "RetryPolicy.total"),
        (LISTED + "[chains.a]\nstrategy = 'cost'\n[chains.b]\n\ntargets = ['tiny']\n", 6, "which is no target"),
        (LISTED + "[[budgets]]\nlimit_usd = 5\n[[budgets]]\nname = 'b'\nlimit_usd = -5\n", 6, "Budget.limit_usd"),
        (LISTED + "[breaker]\nopen_s = 5\nfailure_rate = 50\n", 4, "failure_rate"),
        (LISTED + 'continue_prompt = """\nstrategy = "chepest"\n{tail}"""\nstrategy = "chepest"\n', 5, "chepest"),
        (LISTED + '# strategy = "chepest"\nmetadata = true\nstrategy = "chepest"\n', 4, "chepest"),
        (LISTED + "\ncache = 5\n", 3, "cache must be"),
        (LISTED + "\ntimeouts = 30\n", 3, "timeouts must be"),
        (LISTED + "\nmetadata = 'yes'\n", 3, "metadata must be True or False, not 'yes'"),
        ("models = [\n  'llamacpp:tiny',\n  3,\n]\n", 3, "not int"),
        ("models = [\n { spec = 'ollama:y', weight = 1 },\n { spec = 'ollama:z', weight = -3 },\n]\n", 3, "weight"),
        ("models = [\n { spec = 'ollama:y', weight = 1 },\n { spec = 'ollama:z', weigth = 1 },\n]\n", 3, "'weigth'"),
        ("[[models]]\nspec = 'llamacpp:tiny'\n[[models]]\nspec = 'llamacpp:x'\nprice.input = -1\n", 5, "Price.input"),
        ("models = [\n  'llamacpp:tiny',\n  { spec = 'openai:x', api_key = '${NOBODY_SET_THIS}' },\n]\n", 3,
         r"models\[1\].api_key wants"),
        ("models = [\n  'llamacpp:tiny',\n  { spec = 'openai:x', api_key = '${A_KEY' },\n]\n", 3,
         r"models\[1\].api_key has '\$\{A_KEY', which ends in no '\}'"),
        ("\nmodels = 3\n", 2, "models must be a list of targets, not int"),
        (LISTED + "continue_prompt = 4\n", 2, "continue_prompt must be a text, not int"),
        ("models = [\n 'llamacpp:tiny',\n { spec = 'llamacpp:x', enabled = 'false' },\n]\n", 3,
         "Target.enabled must be True or False, not 'false'"),
        ("models = [\n 'llamacpp:tiny',\n { spec = 'llamacpp:x', capabilities = { tools = 'no' } },\n]\n", 3,
         "Capabilities.tools must be True or False, not 'no'"),
        ("models = [\n 'llamacpp:tiny',\n { spec = 'openai:x', api_key = 12345 },\n]\n", 3,
         "Target.api_key must be a text, not int"),
        ("models = [\n 'llamacpp:tiny',\n { spec = 'llamacpp:x', name = 7 },\n]\n", 3, "Target.name must be a text"),
    ],
)  # fmt: skip
def test_every_mistake_in_a_file_has_its_line(tmp_path, text, line, says):
    """Whether the message quotes a word of the file or only names an option; of two alike the wrong one."""
    path = tmp_path / "fallback.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as caught:
        Router.from_config(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), caught.value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"models": ["llamacpp:tiny"],\n "timeouts": {"total": 5,\n  "idle": -1}}', 3),
        ('{"models": ["llamacpp:tiny"],\n "chains": {"a": {},\n "b": {"targets": [\n"tiny"]}}}', 4),
        ('{"models": [\n{"spec": "llamacpp:tiny"},\n{"spec": "llamacpp:x", "name": "\\"{\\u007d",\n"weight": -1}]}', 4),
        ('{"models": ["llamacpp:tiny"], "budgets": [{"limit_usd": 1}, [],\n{"limit_usd": -1}]}', 1),
    ],
)
def test_and_in_json(tmp_path, text, line):
    path = tmp_path / "fallback.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        Router.from_config(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), caught.value


@pytest.mark.parametrize("face", ["FallbackChatModel", "FallbackLLM"])
def test_a_wrappers_own_keyword_of_the_wrong_kind_is_told_with_its_line(tmp_path, face):
    path = tmp_path / "fallback.toml"
    path.write_text(LISTED + '\ntemperature = "hot"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"fallback.toml:3: (?s:.*)temperature"):
        makers()[face](path)


def test_a_mistake_on_reconfiguring_has_its_line(tmp_path):
    path = tmp_path / "fallback.toml"
    path.write_text(LISTED + "\n[limits]\nconcurrency = 0\n", encoding="utf-8")
    with Router(["llamacpp:tiny"]) as router, pytest.raises(ConfigurationError, match=r"toml:4: Limits.concurrency"):
        router.reconfigure(path)


def test_what_an_error_knows_is_kept_when_its_line_is_added(tmp_path):
    (tmp_path / "other.db").write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    path = tmp_path / "fallback.toml"
    path.write_text(LISTED + f"ledger = '{tmp_path / 'other.db'}'\n", encoding="utf-8")
    with pytest.raises(LedgerError) as caught:
        Router.from_config(path)
    assert caught.value.reason == "not a database"
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "fallback.toml"
    path.write_text("\ufeff" + LISTED, encoding="utf-8")
    with Router.from_config(path) as router:
        assert [target.name for target in router.targets] == ["llamacpp:tiny"]


@pytest.mark.parametrize("source", [None, 3, ["llamacpp:tiny"]])
def test_what_is_neither_a_path_nor_a_mapping_is_refused(source):
    with pytest.raises(ConfigurationError, match="a configuration is a path or a mapping, not"):
        Router.from_config(source)


def test_a_budget_in_a_file_says_what_it_lacks():
    """It has no line: what is wrong is what does not stand there."""
    with pytest.raises(ConfigurationError, match="a Budget needs limit_usd"):
        Router.from_config({"models": ["llamacpp:tiny"], "budgets": [{"window": "day"}]})


def test_a_clock_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match=r"clock= takes a Clock, such as shared_core.testing.VirtualClock\(\)"):
        Router(["llamacpp:tiny"], clock=3)
