"""`llm-fallback costs` and `reconcile`: tables, CSV, JSON, and errors that say what to do; other programs may write."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared_core import Budget, ChatRequest, Price, Router, Target, Usage, user
from shared_core.cli import main
from shared_core.errors import LedgerError
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.ledger.sums import LedgerFile
from shared_core.testing import ScriptedProvider
from tools.money_trials.place import folder


def entry(cost, at, **more) -> LedgerEntry:
    return LedgerEntry(
        **{
            "execution": "x", "attempt": 1, "target": "openai:gpt", "provider": "openai", "model": "gpt",
            "at": at, "outcome": "answered", "status": EntryStatus.POSTED, "usage": Usage(10, 5), "cost_nano": cost,
            **more,
        }
    )  # fmt: skip


@pytest.fixture
def tmp_path():
    """In memory, where there is such a folder: what is tested waits for no disk."""
    with folder("test") as place:
        yield Path(place)


@pytest.fixture
def path(tmp_path):
    """A ledger's file with three attempts, of now and of ten days ago."""
    now = datetime.now(UTC).timestamp()
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        ledger.record(entry(2_000_000_000, now, user="ann", tags=("x",)))
        ledger.record(entry(500_000_000, now, user="bob", model="other", target="openai:other"))
        ledger.record(entry(1_000_000_000, now - 10 * 86400))
    return tmp_path / "costs.db"


def told(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_a_table_by_target_is_the_default(path, capsys):
    """Dearest first, with a total that adds up."""
    lines = told(capsys, "costs", "--ledger", path).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["target", "openai:gpt", "openai:other", "total"]
    assert "3.500000" in lines[3]
    assert any(line.startswith("month ") for line in lines)


@pytest.mark.parametrize(
    ("by", "names"),
    [("user", ["ann", "bob"]), ("model", ["gpt", "other"]), ("tag", ["x"]), ("provider", ["openai"])],
)
def test_costs_are_told_by_what_is_asked_for(path, capsys, by, names):
    """As CSV, which programs read."""
    rows = list(csv.DictReader(io.StringIO(told(capsys, "costs", "--ledger", path, "--by", by, "--csv"))))
    assert [row[by] for row in rows] == names


def test_filters_leave_out_what_was_not_asked_for(path, capsys):
    """By time, by name, and both."""
    found = json.loads(told(capsys, "costs", "--ledger", path, "--since", "7d", "--json"))
    assert found["total"]["cost_usd"] == 2.5
    found = json.loads(told(capsys, "costs", "--ledger", path, "--since", "7d", "--model", "gpt", "--json"))
    assert found["total"]["cost_usd"] == 2.0
    assert "Nothing was spent" in told(capsys, "costs", "--ledger", path, "--user", "nobody")
    assert "bob" not in told(capsys, "costs", "--ledger", path, "--by", "user", "--top", "1")


def test_budgets_are_told_with_what_they_have_counted(tmp_path, capsys):
    """From the file alone: no router is needed."""
    target = Target(provider=ScriptedProvider("three words here"), name="a", price=Price(input=1000, output=1000))
    path = tmp_path / "costs.db"
    with Router([target], ledger=str(path), budgets=[Budget(1, window="month", scope="user")]) as router:
        router.invoke(ChatRequest((user("Hi"),), max_tokens=10, user="ann"))
    out = told(capsys, "costs", "--ledger", path, "--budgets")
    (line,) = [line for line in out.splitlines() if line.startswith("user ann")]
    assert "0.013000" in line
    assert "month" in line
    found = json.loads(told(capsys, "costs", "--ledger", path, "--budgets", "--json"))["budgets"]
    assert [(meter["scope"], meter["of"], meter["spent_usd"]) for meter in found] == [("user", "ann", 0.013)]


def test_a_file_that_is_being_written_is_read(path, capsys):
    """By another process that is in the middle of a transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert "3.500000" in told(capsys, "costs", "--ledger", path)
    finally:
        other.close()


def test_the_file_is_not_changed_by_looking(path, capsys):
    """Not a byte, and no row of who looked."""
    before = sqlite3.connect(path).execute("SELECT count(*) FROM owners").fetchone()
    told(capsys, "costs", "--ledger", path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM owners").fetchone() == before


def wrong(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_a_file_that_is_not_there_is_told(tmp_path, capsys):
    """And is not made by asking for it."""
    for command in (["costs"], ["reconcile", tmp_path / "bill.csv", "--vendor", "openai"]):
        said = wrong(capsys, *command, "--ledger", tmp_path / "costs.db")
        assert "there is no file" in said
        assert "ledger='costs.db'" in said
    assert not (tmp_path / "costs.db").exists()


@pytest.mark.parametrize("kind", ["text", "empty", "another program's", "a newer version's", "corrupt", "a folder"])
def test_a_file_that_is_no_ledger_is_told(tmp_path, capsys, kind):
    """Each in its own words, with a hint, and without a traceback."""
    path = tmp_path / "costs.db"
    if kind == "text":
        path.write_text("date,cost\n" * 500)
    elif kind == "empty":
        path.touch()
    elif kind == "another program's":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE entries (x)")
        other.close()
    elif kind == "a folder":
        path.mkdir()
    else:
        with SQLiteLedger(path) as ledger:
            for number in range(200):
                ledger.record(entry(number, 1_795_000_000.0 + number))
        if kind == "corrupt":
            with open(path, "r+b") as file:
                for page in range(1, path.stat().st_size // 4096):
                    file.seek(page * 4096)
                    file.write(os.urandom(2048))
        else:
            with sqlite3.connect(path) as other:
                other.execute("INSERT INTO migrations VALUES ('9999_from_the_future', 0)")
            other.close()
    said = wrong(capsys, "costs", "--ledger", path)
    assert said.startswith("llm-fallback: ")
    assert "hint: " in said
    assert "costs.db" in said


def test_a_wrong_filter_is_told(path, capsys):
    """With what would be right."""
    assert "'7d', '24h'" in wrong(capsys, "costs", "--ledger", path, "--since", "soon")
    assert "Europe/Berlin" in wrong(capsys, "costs", "--ledger", path, "--timezone", "Nowhere")


def test_a_bill_is_compared_and_posted(path, tmp_path, capsys):
    """First a dry run, then for good, then again without effect."""
    day = (datetime.now(UTC) - timedelta(days=10)).date()
    bill = tmp_path / "bill.csv"
    bill.write_text(f"date,model,cost_usd\n{day},gpt,1.25\n")
    asked = ("reconcile", bill, "--vendor", "openai", "--ledger", path)
    assert "1 corrections would be posted" in told(capsys, *asked, "--dry-run")
    assert "1 corrections posted" in told(capsys, *asked)
    assert "0 corrections posted" in told(capsys, *asked)
    assert json.loads(told(capsys, *asked, "--json"))[0]["reported_usd"] == 1.25
    assert "reconciled: $+0.250000" in told(capsys, "costs", "--ledger", path)
    bill.write_text(f"date,model,cost_usd\n{day},gpt,a lot\n")
    assert f"{bill}:2: cost_usd: 'a lot' is no amount of money" in wrong(capsys, *asked)


def test_the_command_starts_without_vendors_or_frameworks(path):
    """In a process of its own: what it prints is the table, and nothing heavy was imported for it."""
    code = (
        "import sys; from shared_core.cli import main; "
        f"assert main(['costs', '--ledger', {str(path)!r}]) == 0; "
        "heavy = {'openai', 'anthropic', 'langchain_core', 'llama_index', 'pandas', 'matplotlib', 'genai_prices'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "openai:gpt" in run.stdout


def test_a_file_that_somebody_keeps_to_himself_is_told_as_locked(path):
    """After waiting as long as it was told to; not as corrupt, and not for ever."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("INSERT INTO owners (boot, space, pid, started, opened) VALUES ('', '', 0, '', 0)")
    try:
        with pytest.raises(LedgerError) as caught, LedgerFile(path, busy_timeout_s=0.02) as file:
            file.costs()
        assert caught.value.reason == "locked"
    finally:
        other.close()


def test_a_report_can_be_sent_to_another_process(path):
    """It is a value: it compares and pickles."""
    with LedgerFile(path) as file:
        report = file.costs(now=1_795_000_000.0)
        again = pickle.loads(pickle.dumps(report))
        assert again == report
        assert again.targets[0].target == "openai:gpt"
        assert str(again) == str(report)


# ── what is said of those without a name, and without a command ──────────────────────────────────────────────────────


@pytest.mark.parametrize(("by", "named"), [("user", {"ann", "bob"}), ("chain", set())])
def test_what_names_none_has_a_line_of_its_own(path, capsys, by, named):
    """The lines add up to the total; where everything has a name there is no such line."""
    lines = told(capsys, "costs", path, "--by", by).splitlines()
    figures = {line.split()[0]: line.split() for line in lines if line.split()}
    assert named | {"(none)", "total"} <= set(figures)
    for column in (1, 2, 3, 4, 5):
        parts = sum(float(figures[name][column]) for name in named | {"(none)"})
        assert parts == pytest.approx(float(figures["total"][column]))
    assert "(none)" not in told(capsys, "costs", path, "--by", "target")
    assert "(none)" not in told(capsys, "costs", path, "--by", by, "--user", "nobody")


def test_the_file_may_stand_by_itself(path, capsys):
    """As with other commands; naming two is refused."""
    assert told(capsys, "costs", path) == told(capsys, "costs", "--ledger", path)
    assert told(capsys, "costs", path, "--ledger", path) == told(capsys, "costs", path)
    assert main(["costs", str(path), "--ledger", "other.db"]) == 1
    assert "hint: name one" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys):
    """On stderr, as it is not what was asked for."""
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out
    for word in ("usage: llm-fallback", "costs", "reconcile", "models"):
        assert word in said.err
