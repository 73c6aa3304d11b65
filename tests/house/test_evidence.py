"""The figures in README.md and docs are the measured ones, and the tool that writes them there does what it says."""

from __future__ import annotations

import json
import re

import pytest

from tools.evidence import __main__ as cli
from tools.evidence import record, sections, tables

FACTS = {"rows": [], "cells": 1234, "nested": [{"p100_ms": 7.5}]}


def load(name: str):
    return FACTS if name == "faults" else None


def test_every_table_and_figure_in_the_pages_is_what_was_measured():
    """`python -m tools.evidence.tables` would change nothing."""
    assert tables.stale() == []


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_on_the_evidence_page(name):
    """A table that stands nowhere is checked nowhere."""
    page = (record.ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert f"<!-- evidence:{name} -->" in page


@pytest.mark.parametrize("name", sections.SECTIONS)
def test_what_is_measured_says_how_when_and_where(name):
    """Each file can be measured again by whoever doubts it."""
    facts = record.load(name)
    if facts is None:
        pytest.skip(f"{name} is not measured yet")
    assert facts["command"].startswith("make ")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", facts["date"])
    assert facts["versions"]["python"]
    assert facts["machine"]["cores"] >= 1


def test_a_figure_is_written_where_its_path_stands():
    """In the middle of a sentence; twice is once."""
    end = "<!-- /evidence -->"
    text = f"<!-- evidence:faults.cells -->9{end} cells, <!-- evidence:faults.nested.0.p100_ms -->{end} ms"
    once = tables.render(text, load)
    assert re.sub("<!--.*?-->", "", once) == "1,234 cells, 7.5 ms"
    assert tables.render(once, load) == once


def test_each_time_that_a_large_ledger_took_has_a_line_however_many_were_measured():
    """A file of before they were measured is shown without."""
    facts = record.load("money")
    if facts is None:
        pytest.skip("money is not measured yet")
    page = "<!-- evidence:money -->\n<!-- /evidence -->"
    for times in ({"everything": 1.5, "one user": 2.0}, {}, None):
        size = {key: value for key, value in facts["size"].items() if key != "costs_ms"}
        if times is not None:
            size["costs_ms"] = times
        told = tables.render(page, lambda name, size=size: {**facts, "size": size})
        assert re.findall(r"`costs\(\)` of (.*), by every dimension \| (\S+) ms", told) == [
            (what, f"{ms:g}") for what, ms in (times or {}).items()
        ]


@pytest.mark.parametrize("name", ["faults.cell", "nothing.cells", "fault", "faults.nested.3"])
def test_what_does_not_exist_is_refused(name):
    """A misspelt name would otherwise keep whatever a hand wrote there."""
    with pytest.raises(tables.UnknownTable):
        tables.render(f"<!-- evidence:{name} -->7<!-- /evidence -->", load)


def test_a_figure_typed_by_hand_is_noticed(tmp_path):
    """The check can fail, and writing mends the page."""
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("<!-- evidence:bench -->\n99 % faster\n<!-- /evidence:bench -->\n", encoding="utf-8")
    assert tables.stale(tmp_path) == ["docs/page.md: its tables are not what docs/evidence says"]
    page.write_text(tables.render(page.read_text(encoding="utf-8")), encoding="utf-8")
    assert tables.stale(tmp_path) == []


def test_what_cannot_be_measured_is_said_and_leaves_the_rest(tmp_path, monkeypatch, capsys):
    """A missing part neither stops the others nor passes for measured."""
    rows = {
        "gone": sections.Section("gone", "nothing", "tools.no_such_module:figures"),
        "here": sections.Section("here", "something", "patched below"),
    }
    monkeypatch.setattr(cli, "SECTIONS", rows)
    monkeypatch.setattr(sections.Section, "measure", _measure)
    assert cli.main(["--out", str(tmp_path)]) == 1
    assert "gone was NOT measured: gone: there is no tools.no_such_module" in capsys.readouterr().err
    assert json.loads((tmp_path / "here.json").read_text())["answer"] == 42
    assert not (tmp_path / "gone.json").exists()


_real_measure = sections.Section.measure


def _measure(self: sections.Section, *, quick: bool):
    return {"answer": 42} if self.name == "here" else _real_measure(self, quick=quick)
