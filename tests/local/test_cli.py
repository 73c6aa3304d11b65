"""`llm-fallback models`: what is there, what one model is, and fetching one; for people and as JSON."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from shared_core import cli
from shared_core.models.places import TINY, hub_cache
from tests.local import loopback_hub
from tests.local.loopback_hub import Repo

pytestmark = pytest.mark.local

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty home; returns (status, what it printed, what it complained)."""
    for name in (
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "XDG_CACHE_HOME",
        "LLM_FALLBACK_MODELS",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


@pytest.fixture
def there(tmp_path) -> Path:
    """A model in ~/models, and a broken one."""
    (tmp_path / "models").mkdir()
    shutil.copyfile(TINY, tmp_path / "models" / "mine.gguf")
    (tmp_path / "models" / "torn.gguf").write_bytes(TINY.read_bytes()[:1000])
    return tmp_path / "models" / "mine.gguf"


@pytest.mark.parametrize("verb", [("models",), ("models", "list")])
def test_the_list_shows_each_model_in_a_row_and_what_is_wrong_with_broken_ones(run, there, verb):
    status, out, err = run(*verb)
    assert status == 0
    head, tiny, mine, *rest = out.splitlines()
    assert head.split() == [
        "llamacpp:", "size", "architecture", "parameters", "context", "quantisation", "template", "file"
    ]  # fmt: skip
    assert tiny.split()[:7] == ["tiny", "3.6", "MB", "llama", "1.77", "million", "1,024"]
    assert mine.startswith("~/models/mine.gguf")
    assert mine.endswith(str(there))
    assert any("torn.gguf" in line and "ends inside" in line for line in rest)
    assert "LLM_FALLBACK_MODELS" in err


@pytest.mark.parametrize(
    "arguments", [("models", "--json"), ("models", "list", "--json"), ("models", "--json", "list")]
)
def test_the_list_as_json(run, there, arguments):
    status, out, _ = run(*arguments)
    tiny, mine, torn = json.loads(out)
    assert status == 0
    assert (tiny["spec"], mine["path"], mine["parameters"]) == ("tiny", str(there), 1771200)
    assert "ends inside" in torn["error"]


@pytest.mark.parametrize("name", ["tiny", "llamacpp:tiny", str(TINY), "mine"])
def test_one_model_is_shown_by_any_of_its_names(run, there, name):
    status, out, _ = run("models", "show", name)
    assert status == 0
    assert "quantisation   F16" in out
    assert json.loads(run("models", "show", name, "--json")[1])["architecture"] == "llama"


def test_what_is_wrong_is_said_on_stderr_with_a_hint_and_without_a_traceback(run, there):
    status, out, err = run("models", "show", "torn")
    assert (status, out) == (1, "")
    assert err.startswith("llm-fallback: model file")
    assert "hint:" in err
    assert "Traceback" not in err


def test_a_model_is_pulled_and_shown(run):
    with loopback_hub.running() as hub:
        hub.repos["acme/x"] = Repo({"x-Q8_0.gguf": TINY.read_bytes()})
        os.environ["HF_ENDPOINT"] = hub.url
        try:
            status, out, err = run("models", "pull", "hf:acme/x/*Q8*", "--json")
        finally:
            del os.environ["HF_ENDPOINT"]
    assert status == 0
    assert Path(json.loads(out)["path"]).is_relative_to(hub_cache())
    assert "x-Q8_0.gguf: 100 % of 3.6 MB" in err
    listed = [card["spec"] for card in json.loads(run("models", "--json")[1])]
    assert listed == ["tiny", "hf:acme/x/x-Q8_0.gguf"]


def test_a_pull_without_a_network_says_why(run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, _, err = run("models", "pull", "acme/x/x.gguf")
    assert status == 1
    assert "cannot be reached" in err


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("models", "show")])
def test_wrong_usage_is_told_with_the_usage(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2
    assert "usage: llm-fallback" in err


def test_help_loads_no_more_than_it_needs(run):
    status, out, _ = run("--help")
    assert status == 0
    out = " ".join(out.split())  # argparse breaks lines where it likes
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.what in out


def test_the_command_is_installed_under_its_name_and_runs_as_a_module():
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["llm-fallback"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main
    done = subprocess.run(
        [sys.executable, "-m", "shared_core", "models", "show", "tiny"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "llm-fallback tiny (toy)" in done.stdout


def test_a_reader_who_has_read_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m shared_core models show tiny --json | true",
        cwd=ROOT, shell=True, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_on_a_terminal_a_table_is_drawn_with_rich(monkeypatch, capsys):
    from shared_core.cli import table

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table.print_table(("a", "b"), [("1", "[x]")], right=frozenset({"b"}))
    assert "[x]" in capsys.readouterr().out, "names are text, not markup"
