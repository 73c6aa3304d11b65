"""What the child processes of the ledger's tests begin with."""

from __future__ import annotations

import time
from decimal import Decimal

from shared_core import Budget, SQLiteLedger, Usage
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.store import Draft
from shared_core.resilience.budget import Ask, Budgets, Denial

__all__ = ["Budget", "Budgets", "Decimal", "Denial", "SQLiteLedger", "draft", "entry"]


def draft(budgets: Budgets | None, most: int, execution: str = "x-1") -> Draft:
    """An attempt that may cost `most` nano-dollars."""
    at = time.time()
    claims = () if budgets is None else budgets.claims(at, "a:b")
    return Draft(execution, "a:b", "a", "b", at, Ask(most, most), claims)


def entry(of: Draft, cost: int) -> LedgerEntry:
    """What became of it."""
    return LedgerEntry(
        of.execution, 1, of.target, of.provider, of.model, of.at, "answered", EntryStatus.POSTED, Usage(1, 1), cost
    )  # fmt: skip
