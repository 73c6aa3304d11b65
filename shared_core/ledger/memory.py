"""A ledger in memory: exact totals for ever, the last rows in full."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from shared_core._forks import guard_fork
from shared_core.chat.events import Usage
from shared_core.ledger.analytics import CostFilters, CostQuery, CostReport, Sums, cost_query, cost_report
from shared_core.ledger.corrections import correction
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.meters import Meters
from shared_core.ledger.store import Draft, Notice, Overcharged, Ticket
from shared_core.ledger.tally import Tally
from shared_core.resilience.budget import Denial, MeterKey, Reading

if TYPE_CHECKING:
    from shared_core.ledger.exports import ExportLike
    from shared_core.ledger.reconcile import Reconciliation

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Keeps the last `keep` entries and the totals of all. Thread-safe; lost when the process ends."""

    def __init__(self, keep: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LedgerEntry] = deque(maxlen=keep)
        self._tally = Tally()
        self._number = 0
        self._open: dict[int, Ticket] = {}
        self._meters = Meters()
        guard_fork(self)

    def before_fork(self) -> None:
        """Finish what is being added: sums and rows say the same on both sides."""
        self._quiet = self._lock.acquire(timeout=1.0)  # never, if it is a signal's handler that forks in the middle

    def after_fork(self, *, child: bool) -> None:
        """Go on."""
        if child:
            self._lock = threading.Lock()  # other threads of the parent may have been waiting for it
        elif self._quiet:
            self._lock.release()

    durable = False

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        with self._lock:
            self._add(entry)

    def _add(self, entry: LedgerEntry) -> None:
        if entry.id is None:
            self._number += 1
            object.__setattr__(entry, "id", self._number)  # rows are numbered by who keeps them
        self._entries.append(entry)
        self._tally.add(entry)

    def reserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """Set the worst case aside for every claim of `draft` at once. A `Denial` when a hard budget refuses."""
        status = EntryStatus.DISPATCHED if dispatch else EntryStatus.RESERVED
        with self._lock:
            bound = None if draft.ask is None else draft.ask.most
            if draft.claims:
                verdict, notices = self._meters.reserve(draft, self._entries)
                if isinstance(verdict, Denial):
                    granted: Ticket | Denial = verdict
                else:
                    bound = verdict.nano if bound is not None else None
                    granted = self._ticket(draft, bound, status)
            else:
                notices = ()
                granted = self._ticket(draft, bound, status)
        _tell(draft, notices)
        return granted

    def _ticket(self, draft: Draft, bound: int | None, status: EntryStatus) -> Ticket:
        self._number += 1
        ticket = self._open[self._number] = Ticket(draft, bound, status, self._number)
        return ticket

    async def areserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """The same; memory never makes anybody wait."""
        return self.reserve(draft, dispatch=dispatch)

    def dispatch(self, ticket: Ticket) -> bool:
        """Note that the attempt begins: True."""
        if ticket.status is EntryStatus.RESERVED:
            ticket.status = EntryStatus.DISPATCHED
        return True

    async def adispatch(self, ticket: Ticket) -> bool:
        """The same."""
        return self.dispatch(ticket)

    def settle(self, ticket: Ticket, entry: LedgerEntry) -> None:
        """Close the row with what became of it.

        Raises:
            RuntimeError: the ticket was settled before, which is a bug in the caller.
        """
        with self._lock:
            number = ticket.id or 0
            if self._open.pop(number, None) is None:
                raise RuntimeError(f"row {number} settled twice")
            ticket.status = entry.status
            object.__setattr__(entry, "id", number)
            if ticket.bound_nano is not None and entry.bound_nano is None:
                object.__setattr__(entry, "bound_nano", ticket.bound_nano)
            self._add(entry)
            notices = self._meters.settle(ticket, entry, self._entries.maxlen) if ticket.draft.claims else ()
        if ticket.draft.tell is not None:
            _tell(ticket.draft, notices)
            if ticket.bound_nano is not None and (entry.cost_nano or 0) > ticket.bound_nano:
                ticket.draft.tell(Overcharged(entry, (entry.cost_nano or 0) - ticket.bound_nano))

    def correct(
        self, number: int, cost_nano: int, *, reason: str, usage: Usage | None = None, at: float | None = None
    ) -> LedgerEntry | None:
        """Post the difference between a row that is still kept and what it cost in truth, as a row of its own.

        Raises:
            ConfigurationError: the cost is no whole number of nano-dollars, or below 0.
            LookupError: there is no such row any more, or it is not settled, or is a correction itself.
        """
        with self._lock:
            row = next((entry for entry in self._entries if entry.id == number), None)
            if row is None:
                raise LookupError(f"there is no row {number}")
            earlier = [entry for entry in self._entries if entry.corrects == number]
            found = correction(row, earlier, cost_nano, reason, usage, time.time() if at is None else at)
            if found is not None:
                self._add(found)
                self._meters.correct(number, found)
            return found

    def reconcile(self, source: ExportLike, vendor: str, *, now: float | None = None, **options: Any) -> Reconciliation:
        """Compare a vendor's usage export with these rows, and post the differences; `options` as in
        `shared_core.ledger.reconcile.reconcile`.
        """
        from shared_core.ledger.reconcile import reconcile

        return reconcile(self, source, vendor, now=time.time() if now is None else now, **options)

    def meters(self, keys: Sequence[MeterKey] | None = None) -> Mapping[MeterKey, Reading]:
        """What meters show, those that are new too; of all that have been used when `keys` is left out."""
        with self._lock:
            return self._meters.read(keys, self._entries)

    def flush(self) -> bool:
        """Nothing waits."""
        return True

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first; those of attempts under way last."""
        with self._lock:
            under_way = [t.draft.opened(t.status, t.bound_nano, t.id) for t in self._open.values()]
            return (*self._entries, *under_way)

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


def _tell(draft: Draft, notices: Sequence[Notice]) -> None:
    if draft.tell is not None:
        for notice in notices:
            draft.tell(notice)
