"""Who paid what: the ledger of attempts, prices, and the costs people read."""

from shared_core.ledger.analytics import CostLine, CostReport, Projection, TargetCost
from shared_core.ledger.entry import EntryStatus, Ledger, LedgerEntry
from shared_core.ledger.memory import MemoryLedger
from shared_core.ledger.pricing import find_price

__all__ = [
    "CostLine",
    "CostReport",
    "EntryStatus",
    "Ledger",
    "LedgerEntry",
    "MemoryLedger",
    "Projection",
    "TargetCost",
    "find_price",
]
