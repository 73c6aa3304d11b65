"""The tables of README.md and of the page of the local model are the ones the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared_core import Timeouts
from tools.docs import defaults

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_pages_say_what_the_code_does(capsys):
    """`python -m tools.docs.defaults` would change nothing."""
    assert defaults.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", defaults.TABLES)
def test_every_table_is_on_a_page(name):
    """A table without its markers would silently not be checked."""
    pages = "".join(page.read_text(encoding="utf-8") for page in defaults.PAGES)
    assert re.search(rf"<!-- {name} -->.*\|.*<!-- /{name} -->", pages, re.DOTALL)


def test_a_default_typed_by_hand_is_noticed(tmp_path, monkeypatch, capsys):
    """The check can fail, and writing mends the page."""
    page = tmp_path / "README.md"
    true = f"| `Timeouts.connect` | {Timeouts().connect:g} |"
    page.write_text(README.read_text(encoding="utf-8").replace(true, "| `Timeouts.connect` | 7 |"), encoding="utf-8")
    monkeypatch.setattr(defaults, "PAGES", (page,))
    assert defaults.main(["--check"]) == 1
    assert "differs from the code" in capsys.readouterr().out
    assert defaults.main([]) == 0
    assert page.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
