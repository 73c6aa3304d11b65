"""The program that makes the environments: what it reads, what it says when something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.house import snippets
from tools.setup import llama, lockfile
from tools.setup.progress import SetupError, run

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["stable", "newest", "build", "peers"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_a_lock_has_a_hash(name):
    """Nothing is installed that is not checked."""
    pins = lockfile.read(ROOT / "requirements" / f"{name}.txt")
    assert pins
    assert [pin.name for pin in pins if not pin.hashes] == []


@pytest.mark.parametrize(
    ("name", "majors"),
    [
        ("stable", {"openai": "2", "google-genai": "2"}),
        ("newest", {"openai": "3", "google-genai": "3", "anthropic": "2"}),
    ],
)
def test_a_world_is_what_its_name_promises(name, majors):
    """Stable is what every integration accepts; newest is newer."""
    pins = {pin.name: pin.version.partition(".")[0] for pin in lockfile.read(ROOT / "requirements" / f"{name}.txt")}
    assert {package: pins[package] for package in majors} == majors


def test_a_compiled_wheel_is_for_one_version_one_source_and_one_way_of_building(monkeypatch):
    """A change of any of them compiles anew; nothing else does."""
    pin = lockfile.Pin("llama-cpp-python", "1.0", f"llama-cpp-python==1.0 \\\n    --hash=sha256:{'a' * 64}\n")
    other = lockfile.Pin("llama-cpp-python", "1.0", f"llama-cpp-python==1.0 \\\n    --hash=sha256:{'b' * 64}\n")
    key = llama.build_key(pin)
    assert key == llama.build_key(pin)
    assert key != llama.build_key(other)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert key != llama.build_key(pin)


def test_without_a_compiler_it_says_what_to_install(monkeypatch, tmp_path):
    """The hint names the package for the common systems."""
    pin = lockfile.Pin("llama-cpp-python", "1.0", "llama-cpp-python==1.0\n")
    for name, value in {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "CC": "", "CXX": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match="build-essential"):
        llama.wheel(pin, build_lock=tmp_path / "build.txt", work=tmp_path / "work")


def test_a_failing_step_shows_the_end_of_its_output(tmp_path, capsys):
    """And says where all of it is."""
    with pytest.raises(SetupError, match=r"(?s)exit status 3.*the reason.*step\.log"):
        run("a step", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], log=tmp_path / "step.log")
    assert "a step: FAILED" in capsys.readouterr().out


def test_a_page_is_executed_from_top_to_bottom(tmp_path):
    """Blocks share one session; hidden ones run, excused ones do not."""
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run\nhidden = 1\n-->\n```python\nshown = hidden + 1\n```\n"
        "<!-- not run: needs a key -->\n```python\nraise SystemExit(9)\n```\n"
        "- in a list\n  ```python\n  assert shown == 2\n  ```\n"
    )
    assert snippets.blocks(page)[1] == [(8, "needs a key")]
    assert snippets.execute(page, tmp_path) is None


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("1 / 0", "line 3"),
        ("import socket\nsocket.create_connection(('192.0.2.1', 80))", "examples run without a network"),
    ],
)
def test_a_page_that_fails_says_where(tmp_path, code, complaint):
    """Line numbers are the page's; reaching out is a failure."""
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n```python\n{code}\n```\n")
    assert complaint in (snippets.execute(page, tmp_path) or "")
