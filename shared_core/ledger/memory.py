"""A ledger in memory: exact totals for ever, the last rows in full."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence

from shared_core.ledger.entry import CostReport, LedgerEntry, TargetCost

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Keeps the last `keep` entries and the totals of all. Thread-safe; lost when the process ends."""

    def __init__(self, keep: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LedgerEntry] = deque(maxlen=keep)
        self._totals: dict[str, list[int]] = {}
        self._by_tag: dict[str, int] = defaultdict(int)
        self._by_user: dict[str, int] = defaultdict(int)

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        usage = entry.usage
        with self._lock:
            self._entries.append(entry)
            total = self._totals.get(entry.target)
            if total is None:
                total = self._totals[entry.target] = [0] * 7
            total[0] += 1
            total[1] += entry.outcome == "answered"
            total[2] += usage.input_tokens
            total[3] += usage.output_tokens
            if entry.cost_nano is not None:
                total[4] += entry.cost_nano
                for tag in entry.tags:
                    self._by_tag[tag] += entry.cost_nano
                if entry.user is not None:
                    self._by_user[entry.user] += entry.cost_nano
            elif entry.bound_nano is not None:
                total[5] += entry.bound_nano
            else:
                total[6] += 1

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def costs(self) -> CostReport:
        """What all rows ever recorded add up to."""
        with self._lock:
            targets = tuple(TargetCost(name, *total) for name, total in self._totals.items())
            return CostReport(targets, dict(self._by_tag), dict(self._by_user))

    def close(self) -> None:
        """Nothing to let go of."""

    def __repr__(self) -> str:
        return f"MemoryLedger({len(self._entries)} entries)"
