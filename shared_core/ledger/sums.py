"""Costs of a ledger in SQLite: from its sums per UTC day where they say enough, else from its rows.

Whole days are read from `daily_*`, the ends of a range from the rows. Days of another zone than UTC, and
combinations that no table holds (a user's models, say), are added up from the rows: a second or so for each million.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta

from shared_core.ledger.analytics import QUARTER_S, CostQuery, Sums
from shared_core.ledger.schema import SUMS, Kind

__all__ = ["cost_sums"]

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
    "daily_tag": frozenset({"tag", "day"}),
}

_Key = tuple[int, ...]
_Found = dict[_Key, list[int]]


def cost_sums(
    connection: sqlite3.Connection, query: CostQuery, by: tuple[str, ...]
) -> Iterable[tuple[tuple[str, ...], Sums]]:
    """As `CostSource.cost_sums`. Reads in several statements: begin a transaction for one moment's view."""
    filters = {name: value for name in _KINDS if (value := getattr(query, name)) is not None}
    numbers: dict[str, int] = {}
    for name, value in filters.items():
        found = connection.execute("SELECT id FROM names WHERE kind = ? AND name = ?", (_KINDS[name], value)).fetchone()
        if found is None:
            return []
        numbers[name] = found[0]
    asked = frozenset(by) | frozenset(filters)
    table = next((name for name, keys in _TABLES.items() if asked <= keys), None)
    sums: _Found = {}
    if table is None or ("day" in by and query.zone is not UTC):
        _add(sums, _rows(connection, query, by, numbers, query.since, query.until))
        return _named(connection, by, sums)
    first, last = _whole_days(query)
    if first is not None and last is not None and first >= last:  # within one day
        _add(sums, _rows(connection, query, by, numbers, query.since, query.until))
        return _named(connection, by, sums)
    _add(sums, _days(connection, table, by, numbers, first, last))
    if first is not None and query.since is not None and query.since < first * _DAY_S:
        _add(sums, _rows(connection, query, by, numbers, query.since, first * _DAY_S))
    if last is not None and query.until is not None and query.until > last * _DAY_S:
        _add(sums, _rows(connection, query, by, numbers, last * _DAY_S, query.until))
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
    where, values = _conditions(numbers)
    if first is not None:
        where.append("day >= ?")
        values.append(first)
    if last is not None:
        where.append("day < ?")
        values.append(last)
    keys = ", ".join(by)
    statement = (
        f"SELECT {keys}{', ' if keys else ''}{', '.join(f'sum({name})' for name in _COLUMNS)} FROM {table}"
        f"{' WHERE ' + ' AND '.join(where) if where else ''}{' GROUP BY ' + keys if keys else ''}"
    )
    for row in connection.execute(statement, values):
        if row[-1] is not None:
            yield row[: len(by)], row[len(by) :]


def _rows(
    connection: sqlite3.Connection,
    query: CostQuery,
    by: tuple[str, ...],
    numbers: dict[str, int],
    since: float | None,
    until: float | None,
) -> Iterator[tuple[_Key, tuple[int, ...]]]:
    """The same from the rows themselves. A day is one of the query's zone."""
    joined = " JOIN tag_of ON tag_of.tags = NEW.tags" if "tag" in by or "tag" in numbers else ""
    where, values = _conditions(numbers, "NEW.")
    where.append("NEW.state >= 2")
    for limit, sign in ((since, ">="), (until, "<")):
        if limit is not None:
            where.append(f"NEW.at {sign} ?")
            values.append(round(limit * _MICROS))
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


def _conditions(numbers: dict[str, int], prefix: str = "") -> tuple[list[str], list[int]]:
    columns = {name: "tag_of.tag" if prefix and name == "tag" else f"{prefix}{name}" for name in numbers}
    return [f"{columns[name]} = ?" for name in numbers], list(numbers.values())


def _add(into: _Found, found: Iterable[tuple[_Key, tuple[int, ...]]]) -> None:
    for key, sums in found:
        known = into.get(key)
        if known is None:
            into[key] = list(sums)
        else:
            for index, value in enumerate(sums):
                known[index] += value


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
