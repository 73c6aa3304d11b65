"""A ledger in one SQLite file, for any number of processes of one machine: what is acknowledged survives a power cut.

One thread writes (`_writer`), what one transaction writes is in `_writing`, and reading has connections of its own.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from shared_core._sqlite import refusal
from shared_core.chat.events import Usage
from shared_core.errors import LedgerError
from shared_core.ledger._rows import COLUMNS, METER, entry_of, meter_row, micros
from shared_core.ledger._writer import CALL, DISPATCH, RECORD, RESERVE, SETTLE, Op, Writer
from shared_core.ledger._writing import so_far
from shared_core.ledger.analytics import CostFilters, CostQuery, CostReport, Sums
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.store import Draft, Ticket
from shared_core.resilience.budget import Denial, MeterKey, Reading

if TYPE_CHECKING:
    from shared_core.ledger.exports import ExportLike
    from shared_core.ledger.reconcile import Reconciliation

__all__ = ["SQLiteLedger"]


class SQLiteLedger:
    """Keeps every row in the file at `path`.

    Args:
        path: made if it is not there; its folder must be. On a disk of this machine, as SQLite's locks do not hold on
            network file systems.
        busy_timeout_s: how long to wait for another process that is writing.
        linger_s: how long rows that nobody waits for may wait for company, in seconds.

    Raises:
        LedgerError: the file cannot be used; `reason` says why.

    Thread-safe, usable from any number of event loops, and in the children of a fork. After `close` it opens again when
    it is used again.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_s: float = 5.0, linger_s: float = 0.005) -> None:
        self.path = Path(path).absolute()
        self._busy_timeout_s = busy_timeout_s
        self._linger_s = linger_s
        self._writer = Writer(self.path, busy_timeout_s, linger_s)
        _opened.add(self)

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Write what is pending and let go of the file. Opens again when it is used again."""
        self._writer.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process opens the same file.
        return partial(SQLiteLedger, busy_timeout_s=self._busy_timeout_s, linger_s=self._linger_s), (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        waiting = f", {self.waiting} rows wait: {self.trouble}" if self.trouble else ""
        return f"SQLiteLedger({str(self.path)!r}{waiting})"

    @property
    def trouble(self) -> str | None:
        """Why the file cannot be written just now; None when all is well."""
        return self._writer.trouble

    @property
    def waiting(self) -> int:
        """Rows, and changes of rows, that wait in memory because the file cannot be written."""
        return self._writer.waiting

    @property
    def lost(self) -> int:
        """Of those, how many had to be given up because there were too many."""
        return self._writer.lost

    # ── handing in ───────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """Write a row, and set its worst case aside for every claim, in one transaction. Returns when it is on disk:
        the ticket has its number then. Without a hard budget, an attempt whose row cannot be written begins all the
        same; its ticket has no number until its row, which waits in memory, is on disk.

        Raises:
            LedgerError: a hard budget applies, and the file cannot be written.
        """
        op = Op(RESERVE, draft, dispatch=dispatch)
        if self._writer.trouble is not None and not draft.strict:
            return self._writer.begin(op)
        found: Ticket | Denial = self._writer.wait(op)
        return found

    async def areserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """The same, without blocking the event loop."""
        op = Op(RESERVE, draft, dispatch=dispatch)
        if self._writer.trouble is not None and not draft.strict:
            return self._writer.begin(op)
        found: Ticket | Denial = await self._writer.await_(op)
        return found

    def dispatch(self, ticket: Ticket) -> bool:
        """Write down that the attempt begins. True: that is on disk. False: no hard budget applies and the file cannot
        be written, so that it waits in memory; the attempt may begin, and the ticket stays reserved.

        Raises:
            LedgerError: a hard budget applies, and the file cannot be written.
        """
        return _dispatched(ticket, self._writer.wait(Op(DISPATCH, ticket)))

    async def adispatch(self, ticket: Ticket) -> bool:
        """The same, without blocking the event loop."""
        return _dispatched(ticket, await self._writer.await_(Op(DISPATCH, ticket)))

    def settle(self, ticket: Ticket, entry: LedgerEntry) -> None:
        """Close the row with what became of it. Returns at once: until it is on disk, the row counts at its bound.

        Raises:
            RuntimeError: the ticket was settled before, which is a bug in the caller.
        """
        if not ticket.status.open:
            raise RuntimeError(f"row {ticket.id} settled twice")
        ticket.status = entry.status
        self._writer.submit(Op(SETTLE, ticket, entry))

    def record(self, entry: LedgerEntry) -> None:
        """Add one row that is settled already. Returns at once."""
        self._writer.submit(Op(RECORD, None, entry))

    def flush(self) -> bool:
        """Wait until everything handed in so far is on disk. False when the file cannot be written."""
        try:
            self._writer.wait(Op(CALL, lambda *_: None))
        except LedgerError:
            return False
        return not self._writer.waiting

    def correct(
        self, number: int, cost_nano: int, *, reason: str, usage: Usage | None = None, at: float | None = None
    ) -> LedgerEntry | None:
        """Post the difference between a settled row and what it cost in truth, as a row of its own.

        Args:
            number: the row's `id`.
            cost_nano: what it cost according to the bill.
            reason: where that is from.
            usage: the tokens according to the bill.
            at: seconds since the epoch; now when left out.

        Returns:
            The new row, or None when there is no difference.

        Raises:
            ConfigurationError: the cost is no whole number of nano-dollars, or below 0.
            LookupError: there is no such row, or it is not settled, or is a correction itself.
            LedgerError: the file cannot be written.
        """
        moment = time.time() if at is None else at
        found: LedgerEntry | None = self._writer.wait(
            Op(CALL, lambda c, writing: writing.correct(c, number, cost_nano, reason, usage, moment))
        )
        return found

    def reconcile(self, source: ExportLike, vendor: str, *, now: float | None = None, **options: Any) -> Reconciliation:
        """Compare a vendor's usage export with these rows, and post the differences; `options` as in
        `shared_core.ledger.reconcile.reconcile`.
        """
        from shared_core.ledger.reconcile import reconcile

        return reconcile(self, source, vendor, now=time.time() if now is None else now, **options)

    def meters(self, keys: Sequence[MeterKey] | None = None) -> Mapping[MeterKey, Reading]:
        """What meters show, those that are new too; of all there are when `keys` is left out."""
        sql = "SELECT scope, of, window, timezone, start, posted, pending, unknown, over FROM meters"
        try:
            self.flush()
            rows = self.query(sql) if keys is None else [
                row
                for key in keys
                for row in self.query(
                    f"{sql} WHERE {METER}", meter_row(key)
                )
            ]  # fmt: skip
        except sqlite3.Error as error:
            raise refusal(self.path, error) from error
        shown = {
            MeterKey(scope, of if scope != "global" else None, window, zone, start): Reading(*figures)
            for scope, of, window, zone, start, *figures in rows
        }
        return shown | {key: self._to_be(key) for key in keys or () if key not in shown}

    def _to_be(self, key: MeterKey) -> Reading:
        """What a meter that nothing has counted towards yet will begin with."""
        kind = (key.scope, key.window, key.timezone, key.of or "")
        with self._reading() as connection:
            (since,) = connection.execute(
                "SELECT min(since) FROM metered WHERE scope = ? AND window = ? AND timezone = ? AND of IN ('', ?)", kind
            ).fetchone()
            start, end = micros(key.start), 2**63 - 1 if since is None else since
            posted, unknown = so_far(connection, key, start, end) if start < end else (0, 0)
        return Reading(posted, 0, unknown)

    def entries(self, limit: int | None = None) -> Sequence[LedgerEntry]:
        """The rows, oldest first; the last `limit` of them when given."""
        self.flush()
        last = "" if limit is None else f"ORDER BY id DESC LIMIT {int(limit)}"
        rows = self.query(f"SELECT {', '.join(COLUMNS)} FROM entries {last}")
        # After the rows, whose names are all there then: names are only ever added.
        names = dict(self.query("SELECT id, name FROM names"))
        return tuple(sorted((entry_of(row, names) for row in rows), key=lambda entry: entry.id or 0))

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What all rows add up to; `filters` as in `Router.costs`. Read over a connection of its own."""
        from shared_core.ledger.sums import LedgerFile

        self.flush()
        with LedgerFile(self.path, busy_timeout_s=self._busy_timeout_s) as file:
            return file.costs(**filters)

    def cost_sums(self, query: CostQuery, by: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """As `CostSource`."""
        from shared_core.ledger.sums import LedgerFile

        self.flush()
        with LedgerFile(self.path, busy_timeout_s=self._busy_timeout_s) as file:
            return file.cost_sums(query, by)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement that only reads, over a connection of its own. Tables: `shared_core.ledger.schema`."""
        with self._reading() as connection:
            return connection.execute(sql, parameters).fetchall()

    def _reading(self) -> _Reader:
        return _Reader(self.path, self._busy_timeout_s)


class _Reader:
    """A connection for one reading."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path, self._timeout = path, busy_timeout_s

    def __enter__(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
        self._connection.execute("PRAGMA query_only = 1")
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _dispatched(ticket: Ticket, written: Any) -> bool:
    if written and ticket.status is EntryStatus.RESERVED:
        ticket.status = EntryStatus.DISPATCHED
    return bool(written)


_opened: weakref.WeakSet[SQLiteLedger] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for ledger in list(_opened):
        ledger.close()
