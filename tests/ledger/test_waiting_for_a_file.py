"""Waiting to write to a file that other processes write to."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from shared_core import _sqlite
from shared_core.ledger.sqlite import SQLiteLedger


class Time:
    """A clock that stands still but for what is slept. `at` says what happens when so many naps have been taken."""

    def __init__(self, at: dict[int, object]) -> None:
        self.now, self.naps, self._at = 0.0, 0, at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds < 0.005, "it looks as often as somebody who has just come"
        self.now += seconds
        self.naps += 1
        if (then := self._at.get(self.naps)) is not None:
            then()


def connection(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=0.0, isolation_level=None)


@pytest.fixture
def held(tmp_path: Path):
    """A file that somebody else is writing to, and their connection."""
    other = connection(tmp_path / "costs.db")
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    yield tmp_path / "costs.db", other
    other.close()


def test_who_has_waited_long_looks_as_often_as_before(held, monkeypatch):
    path, other = held
    time = Time({300: lambda: other.execute("ROLLBACK")})
    monkeypatch.setattr(_sqlite, "time", time)
    mine = connection(path)
    _sqlite.begin(mine, 60.0)
    assert mine.in_transaction
    assert time.naps == 300
    mine.close()


def test_patience_ends_with_what_sqlite_says(held, monkeypatch):
    path, _ = held
    time = Time({})
    monkeypatch.setattr(_sqlite, "time", time)
    mine = connection(path)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        _sqlite.begin(mine, 0.5)
    assert 0.5 <= time.now < 0.505
    mine.close()


def test_what_is_no_matter_of_waiting_is_raised_at_once(tmp_path, monkeypatch):
    path = tmp_path / "costs.db"
    connection(path).execute("CREATE TABLE t (x)").connection.close()
    monkeypatch.setattr(_sqlite, "time", Time({1: lambda: pytest.fail("it waited")}))
    mine = connection(path)
    mine.execute("BEGIN")
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        _sqlite.begin(mine, 60.0)
    mine.close()


def test_a_ledger_is_opened_through_it(tmp_path, monkeypatch):
    waited = []
    real = _sqlite.begin
    for module in ("shared_core._sqlite", "shared_core.ledger._opening", "shared_core.ledger._writer"):
        monkeypatch.setattr(f"{module}.begin", lambda c, patience_s: waited.append(patience_s) or real(c, patience_s))
    ledger = SQLiteLedger(tmp_path / "costs.db", busy_timeout_s=7.0)
    assert waited == [7.0, 7.0], "its tables, and its name among the writers"
    ledger.close()
