"""The trials of the ledger, a little of each: crowds that are killed, the bill, power cuts, disks that fail.

`make soak` and `make evidence` do the same for longer. Each trial is shown to notice what it is there for.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tools.money_trials import bill, crowd, disk, kills, power

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="the shim that watches the disk is preloaded by Linux's loader"
)


@pytest.mark.slow
def test_a_crowd_that_is_killed_never_overspends():
    """Processes that retry, fall over, leave early, cancel and die by kill -9; every request has a row."""
    found = crowd.run(seed=2, processes=6, kills=3, answers=150)
    assert found["faults"] == []
    assert found["killed"] == 3
    assert found["requests"] > 50
    assert found["served_nano"] <= found["limit_nano"]
    assert found["used_share"] >= 0.95


@pytest.mark.slow
def test_whoever_is_killed_has_left_a_row_for_all_that_was_sent():
    """LONG=1: five hundred times."""
    count = 500 if os.environ.get("LONG") else 12
    found = kills.kills(count=count, seed=1)
    assert found["faults"] == []
    assert found["kills"] == count
    assert found["requests"] > count


@pytest.mark.slow
def test_the_ledger_is_the_bill_to_the_nano_dollar():
    """Three wires, streams, tools, cached tokens, aborted and hedged calls; after an import there is no difference."""
    found = bill.bill(calls=60, seed=1)
    assert found["faults"] == []
    assert found["difference_nano"] == 0
    assert found["with_unknown_outcome"] > 5
    if found["reconciled"] is not None:
        assert found["reconciled"]["difference_nano"] == 0
        assert found["reconciled"]["unknown_left_nano"] == 0
        assert found["reconciled"]["posted_by_a_second_import"] == 0


@LINUX
@pytest.mark.slow
def test_a_power_cut_loses_nothing_that_was_acknowledged():
    """At cut points all over the file's life, with unsynced writes dropped, kept, torn and reordered."""
    found = power.power(seed=1, count=25, every=20)
    assert found["faults"] == []
    assert found["cut_points"] > 20
    assert found["rows_acknowledged"] == 25
    assert found["opened_again"] > 5


@LINUX
@pytest.mark.slow
def test_a_disk_that_fails_is_told_with_a_type_and_loses_nothing():
    """Full or broken, once or for good, under hard budgets and soft ones."""
    found = power.failing(seed=1, points=10)
    assert found["faults"] == []
    assert found["runs"] == 10
    assert found["runs_refused"] > 0, "a hard budget refuses"
    assert found["runs_went_on"] > 0, "a soft one does not stop an answer"


# ── that they notice ─────────────────────────────────────────────────────────────────────────────────────────────────


@LINUX
def test_the_disk_notices_a_database_that_does_not_sync(tmp_path):
    """With `synchronous = OFF` an acknowledged row is lost at some cut; with FULL at none."""
    code = """
import os, sqlite3, sys
folder, mode = sys.argv[1:]
c = sqlite3.connect(os.path.join(folder, "a.db"), isolation_level=None)
c.execute("PRAGMA journal_mode = WAL"); c.execute(f"PRAGMA synchronous = {mode}"); c.execute("CREATE TABLE t (x)")
acks = os.open(os.path.join(folder, "acks"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for number in range(5):
    c.execute("INSERT INTO t VALUES (?)", (number,)); os.write(acks, b"+")
"""
    lost = {}
    for mode in ("OFF", "FULL"):
        folder, log = tmp_path / mode, tmp_path / f"{mode}.log"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(folder), mode], env=disk.preloaded(folder, log), check=True, timeout=60
        )
        lost[mode] = 0
        for number, _, files, state in disk.cuts(disk.read_log(log), random.Random(1), torn=0):
            image = tmp_path / f"{mode}-{number}"
            image.mkdir(exist_ok=True)
            for name, content in files.items():
                (image / name).write_bytes(content)
            promised = len(state.synced("acks", written=True))
            lost[mode] += _count(image / "a.db") < promised
    assert lost["FULL"] == 0
    assert lost["OFF"] > 0


def _count(path: Path) -> int:
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT count(*) FROM t").fetchone()[0]
    except sqlite3.Error:
        return 0
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "DROP TRIGGER entries_forward; UPDATE entries SET cost = cost + 1 WHERE id = 1",
            "daily_target is not the sum",
        ),
        ("UPDATE meters SET posted = posted - 1", "meter 1 shows"),
        ("UPDATE entries SET cost = 5 WHERE state = 1", "half a row"),
        ("PRAGMA ignore_check_constraints = 1; UPDATE meters SET posted = 9999999999, lim = 1", "over its limit"),
    ],
)
def test_the_check_of_the_books_notices_wrong_ones(tmp_path, change, said):
    """A file that was tampered with, each in its own way."""
    from shared_core.ledger.sqlite import SQLiteLedger
    from shared_core.ledger.store import Draft
    from shared_core.resilience.budget import Ask, Budget, Budgets

    path, budgets = tmp_path / "costs.db", Budgets([Budget(1, window="total")])
    with SQLiteLedger(path) as ledger:
        for number in range(3):
            draft = Draft("x", "t", "p", "m", 1.0, Ask(9, 9), budgets.claims(1.0, "t"))
            ticket = ledger.reserve(draft, dispatch=True)
            if number < 2:
                ledger.settle(ticket, power_entry(draft))
        ledger.flush()
        connection = sqlite3.connect(path, isolation_level=None)
        assert power.check_books(connection) == []
        connection.executescript(change)
        assert any(said in what for what in power.check_books(connection)), power.check_books(connection)
        connection.close()


def power_entry(draft):
    from dataclasses import replace

    from shared_core.ledger.entry import EntryStatus

    return replace(draft.opened(EntryStatus.POSTED, 9), outcome="answered", cost_nano=4)


def test_the_crowd_notices_a_request_without_a_row(tmp_path):
    """And a server that has billed more than the budget had."""
    from shared_core.ledger.sqlite import SQLiteLedger

    path = tmp_path / "costs.db"
    SQLiteLedger(path).close()
    kept = crowd._Bill({}, random.Random(1))
    kept.seen["1-1", "first"] = 2
    assert crowd._books(path, kept) == ["2 requests of call 1-1 to first have no row"]


def test_without_a_compiler_it_is_said(monkeypatch):
    """Rather than passed."""
    disk.shim.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(disk.NoCompiler, match="set CC"):
        disk.shim()
    disk.shim.cache_clear()
