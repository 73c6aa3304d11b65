"""A row of a ledger's file: its columns, the statements that add and close one, and how it becomes an entry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_core.chat.events import Usage
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.resilience.budget import MeterKey

__all__ = ["ADD", "CLOSE", "COLUMNS", "METER", "entry_of", "meter_row", "micros"]

COLUMNS = (
    "id", "state", "purpose", "execution", "attempt", "at", "target", "provider", "model", "local", "chain", "user",
    "tags", "bound", "cost", "price", "input", "cached", "cache_write", "output", "reasoning", "estimated", "latency",
    "first_token", "outcome", "error", "response_id", "request_id", "corrects", "reason",
)  # fmt: skip
_OUTCOME = (
    "state", "purpose", "attempt", "model", "cost", "price", "input", "cached", "cache_write", "output", "reasoning",
    "estimated", "latency", "first_token", "outcome", "error", "response_id", "request_id",
)  # fmt: skip
_BEGUN = (
    "execution", "at", "target", "provider", "local", "chain", "user", "tags", "bound", "corrects", "reason", "owner",
    "day",
)  # fmt: skip
CLOSE = f"UPDATE entries SET {', '.join(f'{name} = ?' for name in _OUTCOME)} WHERE id = ? AND state < 2"
ADD = (
    f"INSERT INTO entries ({', '.join((*_OUTCOME, *_BEGUN))}) "
    f"VALUES ({', '.join('?' * (len(_OUTCOME) + len(_BEGUN)))}) RETURNING id"
)
_STATUS = (EntryStatus.RESERVED, EntryStatus.DISPATCHED, EntryStatus.POSTED, EntryStatus.VOIDED, EntryStatus.UNKNOWN)
_PURPOSE = tuple(Purpose)

METER = "scope = ? AND of = ? AND window = ? AND timezone = ? AND start = ?"
"""Which meter."""


def entry_of(row: Sequence[Any], names: Mapping[int, str]) -> LedgerEntry:
    """A row of `COLUMNS` as an entry; `names` are the texts by number."""
    (
        number, state, purpose, execution, attempt, at, target, provider, model, local, chain, user,
        tags, bound, cost, price, given, cached, written, output, reasoning, estimated, latency,
        first_token, outcome, error, response_id, request_id, corrects, reason,
    ) = row  # fmt: skip
    status = _STATUS[state]
    if status is EntryStatus.POSTED and estimated:
        status = EntryStatus.ESTIMATED
    return LedgerEntry(
        execution,
        attempt,
        names[target],
        names[provider],
        names[model],
        at / 1e6,
        "running" if outcome is None else names[outcome],
        status,
        Usage(given, output, cached, written, reasoning, bool(estimated)),
        cost,
        bound,
        latency / 1e6,
        None if error is None else names[error],
        None if price is None else names[price],
        None if user is None else names[user],
        () if tags is None else tuple(json.loads(names[tags])),
        None if chain is None else names[chain],
        bool(local),
        None if first_token is None else first_token / 1e6,
        _PURPOSE[purpose],
        response_id,
        request_id,
        number,
        corrects,
        None if reason is None else names[reason],
    )


def meter_row(key: MeterKey) -> tuple[str, str, str, str, int]:
    """What `METER` looks for."""
    return (key.scope, key.of or "", key.window, key.timezone, key.start)


def micros(seconds: float) -> int:
    """Time as the file keeps it."""
    return round(seconds * 1e6)
