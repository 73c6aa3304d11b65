"""Who paid what: the ledger of attempts, prices, and the costs people read."""

from shared_core.ledger.entry import CostReport, EntryStatus, Ledger, LedgerEntry, TargetCost
from shared_core.ledger.memory import MemoryLedger
from shared_core.ledger.pricing import find_price

__all__ = ["CostReport", "EntryStatus", "Ledger", "LedgerEntry", "MemoryLedger", "TargetCost", "find_price"]
