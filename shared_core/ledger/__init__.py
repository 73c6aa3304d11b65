"""Who paid what: the ledger of attempts, prices, and the costs people read. SQLite is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared_core.ledger.analytics import CostLine, CostReport, Projection, TargetCost
from shared_core.ledger.entry import EntryStatus, Ledger, LedgerEntry, Purpose
from shared_core.ledger.memory import MemoryLedger
from shared_core.ledger.pricing import find_price

if TYPE_CHECKING:
    from shared_core.ledger.sqlite import SQLiteLedger

__all__ = [
    "CostLine",
    "CostReport",
    "EntryStatus",
    "Ledger",
    "LedgerEntry",
    "MemoryLedger",
    "Projection",
    "Purpose",
    "SQLiteLedger",
    "TargetCost",
    "find_price",
]


def __getattr__(name: str) -> Any:
    if name == "SQLiteLedger":
        from shared_core.ledger.sqlite import SQLiteLedger

        return SQLiteLedger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
