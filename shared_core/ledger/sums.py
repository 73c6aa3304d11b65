"""Costs of a ledger in SQLite: from its sums per UTC day where they say enough, else from its rows.

Whole days are read from `daily_*`. The ends of a range are added up from their rows once, in a table of the
connection's own, and read from there by every dimension. Days of another zone than UTC, and combinations that no table
holds (three of target, user and tag), are added up from the rows each time: some seconds for each million. So is what a
file lacks that no newer version has written to since.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Self, Unpack
from urllib.parse import quote

from shared_core._sqlite import refusal
from shared_core.errors import LedgerError
from shared_core.ledger.analytics import (
    QUARTER_S,
    CostFilters,
    CostQuery,
    CostReport,
    Sums,
    cost_query,
    cost_report,
)
from shared_core.ledger.schema import APPLICATION, MIGRATIONS, SUMS, Kind
from shared_core.ledger.tally import add_sums

__all__ = ["LedgerFile", "cost_sums"]

_DAY_S = 86400
_MICROS = 1_000_000
_EPOCH = date(1970, 1, 1)

_COLUMNS = tuple(SUMS)
_KINDS = {
    "target": Kind.TARGET, "model": Kind.MODEL, "provider": Kind.PROVIDER, "user": Kind.USER, "tag": Kind.TAG,
    "chain": Kind.CHAIN,
}  # fmt: skip
_TABLES = {
    "daily_target": frozenset({"target", "provider", "model", "chain", "day"}),
    "daily_user": frozenset({"user", "day"}),
    "daily_target_user": frozenset({"target", "provider", "model", "chain", "user", "day"}),
    "daily_target_tags": frozenset({"target", "provider", "model", "chain", "tag", "day"}),
    "daily_user_tags": frozenset({"user", "tag", "day"}),
}
"""What each is of; the first that has everything asked for is read."""

_Key = tuple[int, ...]
_Found = dict[_Key, list[int]]


_PART_KEYS = {
    "day": "NEW.day", "target": "NEW.target", "provider": "NEW.provider", "model": "NEW.model",
    "user": "ifnull(NEW.user, 0)", "tags": "NEW.tags", "chain": "ifnull(NEW.chain, 0)",
}  # fmt: skip
_Parts = dict[tuple[object, ...], str]
"""The tables of parts of days that a connection has, by what they are of."""


def cost_sums(
    connection: sqlite3.Connection, query: CostQuery, by: tuple[str, ...], parts: _Parts | None = None
) -> Iterable[tuple[tuple[str, ...], Sums]]:
    """As `CostSource.cost_sums`. Reads in several statements: begin a transaction for one moment's view.

    `parts` is kept by whoever asks more than once in one transaction: parts of days are then added up once.
    """
    filters = {name: value for name in _KINDS if (value := getattr(query, name)) is not None}
    numbers: dict[str, int] = {}
    for name, value in filters.items():
        found = connection.execute("SELECT id FROM names WHERE kind = ? AND name = ?", (_KINDS[name], value)).fetchone()
        if found is None:
            return []
        numbers[name] = found[0]
    asked = frozenset(by) | frozenset(filters)
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'daily%'")}
    table = next((name for name, keys in _TABLES.items() if asked <= keys and name in there), None)
    sums: _Found = {}
    if table is None or ("day" in by and query.zone is not UTC):
        _add(sums, _rows(connection, query, by, numbers, query.since, query.until))
        return _named(connection, by, sums)
    first, last = _whole_days(query)
    parts = {} if parts is None else parts
    if first is not None and last is not None and first >= last:  # within one day
        _add(sums, _part(connection, parts, by, numbers, query.since, query.until))
        return _named(connection, by, sums)
    if first is not None and query.since is not None and query.since < first * _DAY_S:
        begun = (first - 1) * _DAY_S
        if query.since - begun < _DAY_S / 2 and not _corrected(connection, begun):  # the day without its shorter part
            _add(sums, _days(connection, table, by, numbers, first - 1, last))
            _subtract(sums, _part(connection, parts, by, numbers, begun, query.since))
        else:
            _add(sums, _days(connection, table, by, numbers, first, last))
            _add(sums, _part(connection, parts, by, numbers, query.since, first * _DAY_S))
    else:
        _add(sums, _days(connection, table, by, numbers, first, last))
    if last is not None and query.until is not None and query.until > last * _DAY_S:
        _add(sums, _part(connection, parts, by, numbers, last * _DAY_S, query.until))
    return _named(connection, by, sums)


def _whole_days(query: CostQuery) -> tuple[int | None, int | None]:
    """The first day that lies whole within the range, and the day after the last; None without a limit."""
    first = None if query.since is None else -int(-query.since // _DAY_S)
    last = None if query.until is None else int(query.until // _DAY_S)
    return first, last


def _days(
    connection: sqlite3.Connection,
    table: str,
    by: tuple[str, ...],
    numbers: dict[str, int],
    first: int | None,
    last: int | None,
) -> Iterator[tuple[_Key, tuple[int, ...]]]:
    where, values = _conditions(numbers, f"{table}.")
    if "user" not in numbers and "_user" in table and (numbers.keys() & {"tag", "target"}):
        # Users come first in the key: name them all, so that the rest of it is looked up and not read through.
        where.append("user IN (SELECT id FROM names WHERE kind = ?)")
        values.append(Kind.USER)
    if first is not None:
        where.append("day >= ?")
        values.append(first)
    if last is not None:
        where.append("day < ?")
        values.append(last)
    keys = ", ".join(f"tag_of.{name}" if name == "tag" else name for name in by)
    joined = f" JOIN tag_of ON tag_of.tags = {table}.tags" if "tag" in by else ""
    statement = (
        f"SELECT {keys}{', ' if keys else ''}{', '.join(f'sum({name})' for name in _COLUMNS)} FROM {table}{joined}"
        f"{' WHERE ' + ' AND '.join(where) if where else ''}{' GROUP BY ' + keys if keys else ''}"
    )
    for row in connection.execute(statement, values):
        if row[-1] is not None:
            yield row[: len(by)], row[len(by) :]


def _part(
    connection: sqlite3.Connection,
    parts: _Parts,
    by: tuple[str, ...],
    numbers: dict[str, int],
    since: float | None,
    until: float | None,
) -> Iterator[tuple[_Key, tuple[int, ...]]]:
    """The same of less than a day, read from its rows when it is first asked for."""
    key = (since, until, *sorted(numbers.items()))
    table = parts.get(key)
    if table is None:
        table = parts[key] = f"part_{len(parts)}"
        where, values = _conditions(numbers, "NEW.")
        limits, times = _between(since, until)
        keys = ", ".join(f"{value} AS {name}" for name, value in _PART_KEYS.items())
        figures = ", ".join(f"sum({value}) AS {name}" for name, value in SUMS.items())
        connection.execute(
            f"CREATE TEMP TABLE {table} AS SELECT {keys}, {figures} FROM entries NEW"
            f" WHERE {' AND '.join([*where, 'NEW.state >= 2', *limits])} GROUP BY {', '.join(_PART_KEYS.values())}",
            [*values, *times],
        )
    return _days(connection, table, by, numbers, None, None)


def _between(since: float | None, until: float | None) -> tuple[list[str], list[int]]:
    limits = [(f"NEW.at {sign} ?", round(at * _MICROS)) for at, sign in ((since, ">="), (until, "<")) if at is not None]
    return [limit for limit, _ in limits], [at for _, at in limits]


def _rows(
    connection: sqlite3.Connection,
    query: CostQuery,
    by: tuple[str, ...],
    numbers: dict[str, int],
    since: float | None,
    until: float | None,
) -> Iterator[tuple[_Key, tuple[int, ...]]]:
    """The same from the rows themselves. A day is one of the query's zone."""
    joined = " JOIN tag_of ON tag_of.tags = NEW.tags" if "tag" in by else ""
    where, values = _conditions(numbers, "NEW.")
    limits, times = _between(since, until)
    where += ["NEW.state >= 2", *limits]
    values += times
    of = {
        "tag": "tag_of.tag",
        "user": "ifnull(NEW.user, 0)",
        "chain": "ifnull(NEW.chain, 0)",
        # Time zones are whole quarters of an hour from UTC.
        "day": "NEW.day" if query.zone is UTC else f"NEW.at / {QUARTER_S * _MICROS}",
    }
    keys = ", ".join(of.get(name, f"NEW.{name}") for name in by)
    statement = (
        f"SELECT {keys}{', ' if keys else ''}{', '.join(f'sum({value})' for value in SUMS.values())}"
        f" FROM entries NEW{joined} WHERE {' AND '.join(where)}{' GROUP BY ' + keys if keys else ''}"
    )
    place = by.index("day") if "day" in by and query.zone is not UTC else None
    for row in connection.execute(statement, values):
        if row[-1] is None:
            continue
        key = list(row[: len(by)])
        if place is not None:
            key[place] = (datetime.fromtimestamp(key[place] * QUARTER_S, query.zone).date() - _EPOCH).days
        yield tuple(key), row[len(by) :]


def _conditions(numbers: dict[str, int], prefix: str) -> tuple[list[str], list[int]]:
    tagged = f"{prefix}tags IN (SELECT tags FROM tag_of WHERE tag = ?)"  # a row may have several
    where = [tagged if name == "tag" else f"{prefix}{name} = ?" for name in numbers]
    return where, list(numbers.values())


def _add(into: _Found, found: Iterable[tuple[_Key, tuple[int, ...]]]) -> None:
    for key, sums in found:
        add_sums(into, key, sums)


def _subtract(of: _Found, found: Iterable[tuple[_Key, tuple[int, ...]]]) -> None:
    """Take sums of rows out of sums that hold them. Rows that stand in no daily sum, of no user say, are in none."""
    for key, sums in found:
        if key in of:
            add_sums(of, key, [-value for value in sums])
            if not any(of[key]):
                del of[key]


def _corrected(connection: sqlite3.Connection, begun: int) -> bool:
    """Whether a correction counts on the day that has `begun` then, or was posted on it: the two days may differ."""
    statement = (
        "SELECT 1 FROM entries WHERE corrects IS NOT NULL AND (day = ?1 / 86400 OR at >= ?1 * 1000000 "
        "AND at < (?1 + 86400) * 1000000) LIMIT 1"
    )
    return connection.execute(statement, (begun,)).fetchone() is not None


def _named(connection: sqlite3.Connection, by: tuple[str, ...], sums: _Found) -> list[tuple[tuple[str, ...], Sums]]:
    """Names instead of numbers; days as text."""
    numbers: set[int] = set()
    for key in sums:
        numbers.update(number for name, number in zip(by, key, strict=True) if name != "day" and number)
    names = _names(connection, sorted(numbers))
    told: list[tuple[tuple[str, ...], Sums]] = []
    for key, values in sums.items():
        name = tuple(
            (_EPOCH + timedelta(days=number)).isoformat() if dimension == "day" else names.get(number, "")
            for dimension, number in zip(by, key, strict=True)
        )
        told.append((name, tuple(values)))
    return told


def _names(connection: sqlite3.Connection, numbers: list[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        found.update(
            connection.execute(
                f"SELECT id, name FROM names WHERE id IN ({', '.join('?' * len(part))})", part
            ).fetchall()
        )
    return found


class LedgerFile:
    """A ledger's file, read without writing to it, whoever else has it open. Its costs, and what budgets count.

    Raises:
        LedgerError: there is no such file, it is no ledger, a newer version's, or cannot be read; `reason` says which.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_s: float = 5.0) -> None:
        self.path = Path(path)
        self._parts: _Parts = {}
        if not self.path.exists():
            raise LedgerError(
                f"there is no file {str(path)!r}. hint: a router with ledger='costs.db' writes one; which is yours?",
                reason="cannot be opened",
            )
        where = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        try:
            self._connection = sqlite3.connect(where, uri=True, timeout=busy_timeout_s, isolation_level=None)
        except sqlite3.Error as error:
            raise refusal(self.path, error) from error
        try:
            self._connection.execute("PRAGMA temp_store = MEMORY")  # parts of days need no disk
            self._connection.execute("BEGIN")  # one moment's view of everything
            (owner,) = self._connection.execute("PRAGMA application_id").fetchone()
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
            if owner != APPLICATION or "entries" not in tables:
                raise LedgerError(
                    f"{str(path)!r} is no ledger of llm-fallback's. hint: name the file that ledger= was given",
                    reason="not a ledger",
                )
            ahead = [
                name
                for (name,) in self._connection.execute("SELECT name FROM migrations")
                if name not in {known for known, _ in MIGRATIONS}
            ]
            if ahead:
                raise LedgerError(
                    f"{str(path)!r} was written by a newer version of llm-fallback (it has {ahead[0]!r}). "
                    "hint: update the package",
                    reason="newer",
                )
        except sqlite3.Error as error:
            self._connection.close()
            raise refusal(self.path, error) from error
        except BaseException:
            self._connection.close()
            raise

    def cost_sums(self, query: CostQuery, by: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """As `CostSource`."""
        return cost_sums(self._connection, query, by, self._parts)

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What the file's rows add up to; `filters` as in `Router.costs`.

        Raises:
            LedgerError: it cannot be read.
        """
        query = cost_query(time.time, **filters)
        try:
            return cost_report(self, query)
        except sqlite3.Error as error:
            raise refusal(self.path, error) from error

    def meters(self) -> list[dict[str, Any]]:
        """What budgets have counted, the windows that began last first: plain data, money in dollars."""
        try:
            rows = self._connection.execute(
                "SELECT scope, of, window, timezone, start, lim, posted, pending, unknown, over FROM meters "
                "ORDER BY start DESC, scope, of, window"
            ).fetchall()
        except sqlite3.Error as error:
            raise refusal(self.path, error) from error
        return [
            {
                "scope": scope, "of": of or None, "window": window, "timezone": zone, "starts_at": start,
                "limit_usd": None if limit is None else limit / 1e9, "spent_usd": (posted + unknown) / 1e9,
                "unknown_usd": unknown / 1e9, "pending_usd": pending / 1e9, "overcharged_usd": over / 1e9,
                "percent": None if not limit else 100.0 * (posted + unknown) / limit,
            }
            for scope, of, window, zone, start, limit, posted, pending, unknown, over in rows
        ]  # fmt: skip

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LedgerFile({str(self.path)!r})"
