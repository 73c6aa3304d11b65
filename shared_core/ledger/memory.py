"""A ledger in memory: exact totals for ever, the last rows in full."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Unpack

from shared_core.ledger.analytics import CostFilters, CostQuery, CostReport, Sums, cost_query, cost_report
from shared_core.ledger.entry import LedgerEntry
from shared_core.ledger.tally import Tally

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Keeps the last `keep` entries and the totals of all. Thread-safe; lost when the process ends."""

    def __init__(self, keep: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LedgerEntry] = deque(maxlen=keep)
        self._tally = Tally()

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        with self._lock:
            self._entries.append(entry)
            self._tally.add(entry)

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What all rows ever recorded add up to; `filters` as in `Router.costs`."""
        query = cost_query(time.time, **filters)
        with self._lock:
            return cost_report(self, query)

    def cost_sums(self, query: CostQuery, by: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """As `CostSource`; the lock is held."""
        return self._tally.sums(query, by, self._entries)

    def close(self) -> None:
        """Nothing to let go of."""

    def __repr__(self) -> str:
        return f"MemoryLedger({len(self._entries)} entries)"
