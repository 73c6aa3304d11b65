"""A ledger in one SQLite file, for any number of processes of one machine: what is acknowledged survives a power cut.

One thread writes. Whatever callers hand in while it is busy goes into its next transaction together (group commit), so
that many attempts share one `fsync`. Callers of `reserve` wait for it; `settle` returns at once.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from shared_core._sqlite import Process, connect, guard_fork, migrate, reason_of, refusal, this_process
from shared_core.chat.events import Usage
from shared_core.errors import LedgerError
from shared_core.ledger.analytics import CostFilters, CostQuery, CostReport, Sums
from shared_core.ledger.corrections import correction
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.ledger.schema import DISPATCHED, MIGRATIONS, PURPOSES, RESERVED, STATES, UNKNOWN, VOIDED, Kind
from shared_core.ledger.store import Crossed, Draft, Exhausted, Notice, Overcharged, Ticket, Trouble
from shared_core.resilience.budget import EXHAUSTED, Claim, Denial, MeterKey, Reading, decide, due, hard_limit

if TYPE_CHECKING:
    from shared_core.ledger.exports import ExportLike
    from shared_core.ledger.reconcile import Reconciliation

__all__ = ["SQLiteLedger"]

_log = logging.getLogger("llm_fallback.ledger")

APPLICATION = 0x4C464C47
"""Stands in the file's header: 'LFLG'."""
_BATCH = 512
"""Operations in one transaction at most."""
_RETRY_S = 1.0
"""How often rows that could not be written are tried again."""
_REST_S = 30.0
"""The thread ends when nothing was handed in for so long."""
_KEEP = 200_000
"""Operations kept in memory at most while the file cannot be written. Beyond that the oldest are lost, and logged."""
_SHARE = 1_000_000

RESERVE: Final = 0
DISPATCH: Final = 1
SETTLE: Final = 2
RECORD: Final = 3
ABANDON: Final = 4
CALL: Final = 5


class _Op:
    """One thing to write, and who waits for it."""

    __slots__ = ("begun", "dispatch", "entry", "error", "future", "kind", "lock", "loop", "result", "subject")

    def __init__(self, kind: int, subject: Any = None, entry: LedgerEntry | None = None, *, dispatch: bool = False):
        self.kind = kind
        self.subject = subject
        self.entry = entry
        self.dispatch = dispatch
        self.begun: Ticket | None = None  # of a reservation: handed out before its row was written
        self.result: Any = None
        self.error: Exception | None = None
        self.lock: threading.Lock | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Any] | None = None


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
        self._reset()
        with self._gate:
            self._open()
        guard_fork(self)
        _opened.add(self)

    def _reset(self) -> None:
        """As it is before anything is open: at first, and in the child of a fork."""
        self._gate = threading.Lock()  # held while the connection is used
        self._wake = threading.Condition(threading.Lock())
        self._queue: deque[_Op] = deque()
        self._waiters = 0
        self._resting = False  # the thread waits for work
        self._lingering = False  # it waits for company
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._owner = 0
        self._names: dict[tuple[int, str], int] = {}
        self._meter_ids: dict[MeterKey, int] = {}
        self._live: dict[int, tuple[Reading, int | None]] = {}  # what meters show within one transaction
        self._told: set[tuple[int, int, float]] = set()
        self._fresh: list[Callable[[], object]] = []  # undoes what the caches learned in a transaction that failed
        self._born: dict[Ticket, int] = {}  # rows of tickets that are out already: told when they are on disk
        self._notices: list[tuple[Callable[[Notice], None], Notice]] = []
        self._backlog: list[_Op] = []
        self._lost = 0
        self._trouble: str | None = None

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> sqlite3.Connection:
        connection = connect(self.path, busy_timeout_s=self._busy_timeout_s)
        try:
            migrate(connection, self.path, MIGRATIONS, application=APPLICATION)
            me = this_process()
            connection.execute("BEGIN IMMEDIATE")
            self._recover(connection, me)
            row = connection.execute(
                "INSERT INTO owners (boot, space, pid, started, opened) VALUES (?, ?, ?, ?, ?) RETURNING id",
                (me.boot, me.space, me.pid, me.started, _micros(time.time())),
            ).fetchone()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            connection.close()
            raise refusal(self.path, error) from error
        except BaseException:
            connection.close()
            raise
        self._owner = int(row[0])
        self._connection = connection
        return connection

    @staticmethod
    def _recover(connection: sqlite3.Connection, me: Process) -> None:
        """Close what processes that are gone have left: nothing was sent of what was only reserved; what was sent may
        have been billed, up to its bound.
        """
        left = connection.execute(
            "SELECT id, boot, space, pid, started FROM owners "
            "WHERE id IN (SELECT DISTINCT owner FROM entries WHERE state < 2)"
        ).fetchall()
        for number, *facts in left:
            if Process(*facts).gone(me):
                connection.execute(
                    "INSERT OR IGNORE INTO names (kind, name) VALUES (?, 'never sent'), (?, 'lost')",
                    (Kind.OUTCOME, Kind.OUTCOME),
                )
                for before, after, cost, outcome in (
                    (RESERVED, VOIDED, 0, "never sent"),
                    (DISPATCHED, UNKNOWN, None, "lost"),
                ):
                    found = connection.execute(
                        "UPDATE entries SET state = ?, cost = CASE WHEN bound = 0 THEN 0 ELSE ? END, "
                        "outcome = (SELECT id FROM names WHERE kind = ? AND name = ?) WHERE owner = ? AND state = ?",
                        (after, cost, Kind.OUTCOME, outcome, number, before),
                    )
                    if found.rowcount:
                        _log.warning("process %d is gone: %d attempts %s", facts[2], found.rowcount, outcome)

    def close(self) -> None:
        """Write what is pending and let go of the file. Opens again when it is used again."""
        if os.getpid() != self._pid:
            return
        with self._wake:
            thread, self._stopping = self._thread, True
            self._wake.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._busy_timeout_s + 5.0)
        with self._gate:
            if self._backlog:
                _log.error("ledger %s is closed with %d rows in memory: %s", self.path, self.waiting, self._trouble)
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def before_fork(self) -> None:
        """Let go of the file: SQLite's locks must not be carried across a fork."""
        self._gate.acquire()
        self._wake.acquire()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def after_fork(self, *, child: bool) -> None:
        """Go on."""
        if child:
            self._reset()
        else:
            self._wake.release()
            self._gate.release()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process opens the same file.
        return partial(SQLiteLedger, busy_timeout_s=self._busy_timeout_s, linger_s=self._linger_s), (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        waiting = f", {self.waiting} rows wait: {self._trouble}" if self._trouble else ""
        return f"SQLiteLedger({str(self.path)!r}{waiting})"

    @property
    def trouble(self) -> str | None:
        """Why the file cannot be written just now; None when all is well."""
        return self._trouble

    @property
    def waiting(self) -> int:
        """Rows, and changes of rows, that wait in memory because the file cannot be written."""
        return len(self._backlog)

    @property
    def lost(self) -> int:
        """Of those, how many had to be given up because there were too many."""
        return self._lost

    # ── handing in ───────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """Write a row, and set its worst case aside for every claim, in one transaction. Returns when it is on disk:
        the ticket has its number then. Without a hard budget, an attempt whose row cannot be written begins all the
        same; its ticket has no number until its row, which waits in memory, is on disk.

        Raises:
            LedgerError: a hard budget applies, and the file cannot be written.
        """
        op = _Op(RESERVE, draft, dispatch=dispatch)
        if self._trouble is not None and not draft.strict:
            return self._unheard(op)
        found: Ticket | Denial = self._wait(op)
        return found

    async def areserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """The same, without blocking the event loop."""
        op = _Op(RESERVE, draft, dispatch=dispatch)
        if self._trouble is not None and not draft.strict:
            return self._unheard(op)
        found: Ticket | Denial = await self._await(op)
        return found

    def dispatch(self, ticket: Ticket) -> bool:
        """Write down that the attempt begins. True: that is on disk. False: no hard budget applies and the file cannot
        be written, so that it waits in memory; the attempt may begin, and the ticket stays reserved.

        Raises:
            LedgerError: a hard budget applies, and the file cannot be written.
        """
        return _dispatched(ticket, self._wait(_Op(DISPATCH, ticket)))

    async def adispatch(self, ticket: Ticket) -> bool:
        """The same, without blocking the event loop."""
        return _dispatched(ticket, await self._await(_Op(DISPATCH, ticket)))

    def settle(self, ticket: Ticket, entry: LedgerEntry) -> None:
        """Close the row with what became of it. Returns at once: until it is on disk, the row counts at its bound.

        Raises:
            RuntimeError: the ticket was settled before, which is a bug in the caller.
        """
        if not ticket.status.open:
            raise RuntimeError(f"row {ticket.id} settled twice")
        ticket.status = entry.status
        self._submit(_Op(SETTLE, ticket, entry))

    def record(self, entry: LedgerEntry) -> None:
        """Add one row that is settled already. Returns at once."""
        self._submit(_Op(RECORD, None, entry))

    def flush(self) -> bool:
        """Wait until everything handed in so far is on disk. False when the file cannot be written."""
        try:
            self._wait(_Op(CALL, lambda _: None))
        except LedgerError:
            return False
        return not self._backlog

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
            LookupError: there is no such row, or it is not settled, or is a correction itself.
            LedgerError: the file cannot be written.
        """
        moment = time.time() if at is None else at
        found: LedgerEntry | None = self._wait(
            _Op(CALL, lambda connection: self._correct(connection, number, cost_nano, reason, usage, moment))
        )
        return found

    def reconcile(self, source: ExportLike, vendor: str, *, now: float | None = None, **options: Any) -> Reconciliation:
        """Compare a vendor's usage export with these rows, and post the differences; `options` as in
        `shared_core.ledger.reconcile.reconcile`.
        """
        from shared_core.ledger.reconcile import reconcile

        return reconcile(self, source, vendor, now=time.time() if now is None else now, **options)

    def meters(self, keys: Sequence[MeterKey] | None = None) -> Mapping[MeterKey, Reading]:
        """What meters show; of all there are when `keys` is left out."""
        sql = "SELECT scope, of, window, timezone, start, posted, pending, unknown, over FROM meters"
        try:
            self.flush()
            rows = self.query(sql) if keys is None else [
                row
                for key in keys
                for row in self.query(
                    f"{sql} WHERE scope = ? AND of = ? AND window = ? AND timezone = ? AND start = ?", _told_key(key)
                )
            ]  # fmt: skip
        except sqlite3.Error as error:
            raise refusal(self.path, error) from error
        return {
            MeterKey(scope, of if scope != "global" else None, window, zone, start): Reading(*figures)
            for scope, of, window, zone, start, *figures in rows
        }

    def entries(self, limit: int | None = None) -> Sequence[LedgerEntry]:
        """The rows, oldest first; the last `limit` of them when given."""
        self.flush()
        last = "" if limit is None else f"ORDER BY id DESC LIMIT {int(limit)}"
        rows = self.query(f"SELECT {', '.join(_COLUMNS)} FROM entries {last}")
        # After the rows, whose names are all there then: names are only ever added.
        names = dict(self.query("SELECT id, name FROM names"))
        return tuple(sorted((_entry(row, names) for row in rows), key=lambda entry: entry.id or 0))

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What all rows add up to; `filters` as in `Router.costs`. Read over a connection of its own."""
        from shared_core.ledger.sums import LedgerFile

        self.flush()
        with LedgerFile(self.path, busy_timeout_s=self._busy_timeout_s) as file:
            return file.costs(**filters)

    def cost_sums(self, query: CostQuery, by: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """As `CostSource`."""
        from shared_core.ledger.sums import cost_sums

        self.flush()
        with self._reading() as connection:
            return cost_sums(connection, query, by)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement that only reads, over a connection of its own. Tables: `shared_core.ledger.schema`."""
        with self._reading() as connection:
            return connection.execute(sql, parameters).fetchall()

    def _reading(self) -> _Reader:
        return _Reader(self.path, self._busy_timeout_s)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, op: _Op) -> None:
        if os.getpid() != self._pid:
            self._reset()  # forked without Python's knowing
        with self._wake:
            self._queue.append(op)
            awaited = op.lock is not None or op.future is not None
            self._waiters += awaited
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name="llm-fallback-ledger", daemon=True)
                self._thread.start()
            elif self._resting or (self._lingering and awaited):
                self._wake.notify()

    def _wait(self, op: _Op) -> Any:
        told = op.lock = threading.Lock()  # held by name: the writer lets go of the operation's when it has answered
        told.acquire()
        self._submit(op)
        try:
            told.acquire()
        except BaseException:
            self._submit(_Op(ABANDON, op))  # interrupted: nobody will settle it
            raise
        if op.error is not None:
            raise op.error
        return op.result

    async def _await(self, op: _Op) -> Any:
        op.loop = asyncio.get_running_loop()
        op.future = op.loop.create_future()
        self._submit(op)
        try:
            return await op.future
        except asyncio.CancelledError:
            self._submit(_Op(ABANDON, op))  # the caller left: nobody will settle it
            raise

    def _unheard(self, op: _Op) -> Ticket:
        """Let the attempt begin although its row waits: an answer is not lost because it cannot be written down."""
        op.begun = ticket = _unwritten(op)
        self._submit(op)
        return ticket

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        wake, queue = self._wake, self._queue
        while True:
            with wake:
                if not queue:
                    if self._stopping:
                        self._thread = None
                        return
                    self._resting = True
                    wake.wait(_RETRY_S if self._backlog else _REST_S)
                    self._resting = False
                    if not queue and not self._backlog:
                        self._thread = None  # told to stop, or idle for long: another begins when there is work
                        return
                if queue and not self._waiters and not self._stopping:
                    self._lingering = True
                    wake.wait(self._linger_s)
                    self._lingering = False
                batch = [queue.popleft() for _ in range(min(len(queue), _BATCH))]
                self._waiters -= sum(op.lock is not None or op.future is not None for op in batch)
            self._commit(batch)

    def _commit(self, batch: list[_Op]) -> None:
        with self._gate:
            ops, self._backlog = [*self._backlog, *batch], []
            try:
                self._write(ops)
            except (sqlite3.Error, LedgerError) as error:
                if _ours(error) and len(ops) > 1:
                    for op in ops:  # one of them is at fault: find it, and let the others pass
                        try:
                            self._write([op])
                        except (sqlite3.Error, LedgerError) as fault:
                            self._failed([op], fault)
                else:
                    self._failed(ops, error)
            except Exception as error:  # noqa: BLE001  # a bug must not take the writer down with it, nor leave anybody waiting
                _log.exception("the ledger failed on %d rows", len(ops))
                for op in ops:
                    op.error = error
            notices, self._notices = self._notices, []
        for tell, notice in notices:
            tell(notice)
        self._answer(ops)

    def _answer(self, ops: list[_Op]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[_Op]] = {}
        for op in ops:
            if op.lock is not None:
                lock, op.lock = op.lock, None
                lock.release()
            elif op.loop is not None:
                loops.setdefault(op.loop, []).append(op)
                op.loop = None
        for loop, answered in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, answered)
            except RuntimeError:  # the loop is closed: nobody will settle these
                for op in answered:
                    self._submit(_Op(ABANDON, op))

    def _write(self, ops: Sequence[_Op]) -> None:
        """All of `ops` in one transaction, or none."""
        connection = self._connection or self._open()
        self._live.clear()  # others may have written since
        try:
            connection.execute("BEGIN IMMEDIATE")
            for op in ops:
                self._perform(connection, op)
            connection.execute("COMMIT")
        except BaseException:
            for op in ops:
                op.result = None  # none of it is so
            for undo in self._fresh:
                undo()
            self._notices = []
            self._roll_back(connection)
            raise
        else:
            for ticket, number in self._born.items():
                ticket.id = number
        finally:
            self._fresh = []
            self._born.clear()
        if self._trouble is not None:
            reason, self._trouble = self._trouble, None
            _log.warning("ledger %s can be written again (%s)", self.path, reason)
            self._tell_trouble(ops, Trouble(reason, 0, over=True))

    def _perform(self, connection: sqlite3.Connection, op: _Op) -> None:
        kind, entry = op.kind, op.entry
        if kind == RESERVE:
            op.result = self._reserve(connection, op)
        elif kind == SETTLE and entry is not None:
            self._settle(connection, op.subject, entry)
        elif kind == DISPATCH:
            op.result = self._dispatch(connection, op.subject)
        elif kind == RECORD and entry is not None:
            self._insert(connection, entry)
        elif kind == ABANDON:
            self._abandon(connection, op.subject)
        else:
            self._live.clear()  # whatever it does
            try:
                op.result = op.subject(connection)
            except LookupError as error:
                op.error = error

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # the file is in no state to be used: open it anew next time
            self._connection = None
            connection.close()

    def _failed(self, ops: list[_Op], error: sqlite3.Error | LedgerError) -> None:
        """The file cannot be written. What spends money under a hard budget is refused, the rest waits in memory."""
        reason = error.reason if isinstance(error, LedgerError) else reason_of(error)
        refused = error if isinstance(error, LedgerError) else refusal(self.path, error)
        if reason in ("corrupt", "i/o", "not a database") and self._connection is not None:
            self._connection.close()  # it may be mended, or be another file, by the next time
            self._connection = None
        for op in ops:
            if op.kind == CALL or (op.kind == RESERVE and op.subject.strict and op.begun is None):
                op.error = LedgerError(str(refused), reason=reason)
                continue
            if op.kind == DISPATCH and op.subject.draft.strict:
                op.error = LedgerError(str(refused), reason=reason)
                continue
            if op.kind == RESERVE:
                op.begun = op.result = op.begun or _unwritten(op)
            elif op.kind == DISPATCH:
                op.result = False  # it waits like the rest, and is not said to be on disk
            self._backlog.append(op)
        if len(self._backlog) > _KEEP:
            self._lost += len(self._backlog) - _KEEP
            del self._backlog[: len(self._backlog) - _KEEP]
            _log.error("ledger %s: %d rows are lost", self.path, self._lost)
        if self._trouble is None:
            self._trouble = reason
            _log.error("ledger %s cannot be written: %s; rows are kept in memory", self.path, error)
            self._tell_trouble(ops, Trouble(reason, len(self._backlog)))

    def _tell_trouble(self, ops: Sequence[_Op], trouble: Trouble) -> None:
        drafts = (op.subject if op.kind == RESERVE else getattr(op.subject, "draft", None) for op in ops)
        told = {draft.tell for draft in drafts if draft is not None and draft.tell is not None}
        self._notices += [(tell, trouble) for tell in told]

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserve(self, connection: sqlite3.Connection, op: _Op) -> Ticket | Denial:
        draft: Draft = op.subject
        status = EntryStatus.DISPATCHED if op.dispatch else EntryStatus.RESERVED
        bound = None if draft.ask is None else draft.ask.most
        numbers: dict[MeterKey, int] = {}
        if draft.claims:
            limits: dict[MeterKey, int | None] = {}
            readings: dict[MeterKey, Reading] = {}
            for claim in draft.claims:
                key = claim.key
                if key in numbers:
                    continue
                numbers[key] = number = self._meter(connection, claim, draft.at)
                readings[key], limits[key] = self._read(connection, number)
            if op.begun is None:  # one that waited in memory has begun already
                verdict = decide(draft.ask, draft.claims, readings)
                if isinstance(verdict, Denial):
                    self._warn(connection, draft, numbers, readings, denied=verdict)
                    return verdict
                if bound is not None:
                    bound = verdict.nano
            for key, number in numbers.items():
                if (limit := hard_limit(draft.claims, key)) != limits[key]:
                    connection.execute(
                        "UPDATE meters SET lim = CASE WHEN ?1 IS NULL THEN NULL "
                        "ELSE max(?1, posted + pending + unknown - over) END WHERE id = ?2 AND lim IS NOT "
                        "CASE WHEN ?1 IS NULL THEN NULL ELSE max(?1, posted + pending + unknown - over) END",
                        (limit, number),
                    )
                    self._live.pop(number, None)
        name = self._name
        row = connection.execute(
            "INSERT INTO entries (state, purpose, owner, execution, attempt, at, day, target, provider, model, local, "
            "chain, user, tags, bound) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                STATES[status],
                PURPOSES[draft.purpose],
                self._owner,
                draft.execution,
                _micros(draft.at),
                int(draft.at // 86400),
                name(connection, Kind.TARGET, draft.target),
                name(connection, Kind.PROVIDER, draft.provider),
                name(connection, Kind.MODEL, draft.model),
                draft.local,
                name(connection, Kind.CHAIN, draft.chain),
                name(connection, Kind.USER, draft.user),
                self._tags(connection, draft.tags),
                bound,
            ),
        ).lastrowid
        for meter in numbers.values():
            connection.execute("INSERT INTO claims VALUES (?, ?)", (row, meter))
            if bound and (live := self._live.get(meter)) is not None:
                (posted, pending, unknown, over), limit = live
                self._live[meter] = (Reading(posted, pending + bound, unknown, over), limit)
        if op.begun is not None and row is not None:
            self._born[op.begun] = row
            return op.begun
        return Ticket(draft, bound, status, row)

    def _row(self, ticket: Ticket) -> int | None:
        """The number of a ticket's row, also of one that this transaction has written."""
        return self._born.get(ticket) if ticket.id is None else ticket.id

    def _dispatch(self, connection: sqlite3.Connection, ticket: Ticket) -> bool:
        number = self._row(ticket)
        if number is None:
            return False  # its row was given up
        connection.execute("UPDATE entries SET state = 1 WHERE id = ? AND state = 0", (number,))
        return True

    def _abandon(self, connection: sqlite3.Connection, op: _Op) -> None:
        ticket = op.result
        self._live.clear()
        if op.kind == RESERVE and isinstance(ticket, Ticket) and (number := self._row(ticket)) is not None:
            ticket.status = EntryStatus.VOIDED
            connection.execute(
                "UPDATE entries SET state = 3, cost = 0, outcome = ? WHERE id = ? AND state < 2",
                (self._name(connection, Kind.OUTCOME, "never sent"), number),
            )

    def _settle(self, connection: sqlite3.Connection, ticket: Ticket, entry: LedgerEntry) -> None:
        number = self._row(ticket)
        if number is None:
            self._insert(connection, entry)
            return
        changed = connection.execute(_CLOSE, (*self._outcome(connection, entry), number)).rowcount
        if not changed:
            _log.error("row %d of %s was settled by somebody else", number, self.path)
            return
        draft = ticket.draft
        if draft.claims:
            numbers = {c.key: self._meter(connection, c, draft.at) for c in draft.claims}
            for number in numbers.values():
                self._settled(number, ticket.bound_nano or 0, entry)
            readings = {key: self._read(connection, number)[0] for key, number in numbers.items()}
            self._warn(connection, draft, numbers, readings)
        if draft.tell is not None and ticket.bound_nano is not None and (entry.cost_nano or 0) > ticket.bound_nano:
            self._notices.append((draft.tell, Overcharged(entry, (entry.cost_nano or 0) - ticket.bound_nano)))

    def _read(self, connection: sqlite3.Connection, number: int) -> tuple[Reading, int | None]:
        """What a meter shows, and the limit it has in the file: looked up once in a transaction, then kept in step with
        what the file's own triggers do.
        """
        live = self._live.get(number)
        if live is None:
            *figures, limit = connection.execute(
                "SELECT posted, pending, unknown, over, lim FROM meters WHERE id = ?", (number,)
            ).fetchone()
            live = self._live[number] = (Reading(*figures), limit)
        return live

    def _settled(self, number: int, bound: int, entry: LedgerEntry) -> None:
        live = self._live.get(number)
        if live is None:
            return
        (posted, pending, unknown, over), limit = live
        cost = entry.cost_nano
        if cost is not None:
            posted, over = posted + cost, over + max(0, cost - bound)
        elif entry.status is EntryStatus.UNKNOWN:
            unknown += bound
        self._live[number] = (Reading(posted, pending - bound, unknown, over), limit)

    def _warn(
        self,
        connection: sqlite3.Connection,
        draft: Draft,
        numbers: Mapping[MeterKey, int],
        readings: Mapping[MeterKey, Reading],
        denied: Denial | None = None,
    ) -> None:
        """Tell each threshold that spending has reached, once in its window, whichever process sees it."""
        for claim in draft.claims:
            reading, number, limit = readings[claim.key], numbers[claim.key], claim.budget.limit_nano
            shares = due(claim, reading.spent)
            if denied is not None and denied.claim is claim and EXHAUSTED not in shares:
                shares = (*shares, EXHAUSTED)
            for share in shares:
                mark = (number, limit, share)
                if mark in self._told:
                    continue
                self._told.add(mark)
                self._fresh.append(partial(self._told.discard, mark))
                told = 2 * _SHARE if share == EXHAUSTED else round(share * _SHARE)
                first = connection.execute(
                    "INSERT OR IGNORE INTO told VALUES (?, ?, ?)", (number, limit, told)
                ).rowcount
                if first and draft.tell is not None:
                    notice = Exhausted(claim, reading) if share == EXHAUSTED else Crossed(claim, share, reading)
                    self._notices.append((draft.tell, notice))

    def _outcome(self, connection: sqlite3.Connection, entry: LedgerEntry) -> tuple[Any, ...]:
        """What is known of a row when its attempt is over, in the order of `_OUTCOME`."""
        usage, name = entry.usage, self._name
        return (
            STATES[entry.status],
            PURPOSES[entry.purpose],
            entry.attempt,
            name(connection, Kind.MODEL, entry.model),
            entry.cost_nano,
            name(connection, Kind.PRICE, entry.price_version),
            usage.input_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            usage.estimated,
            int(entry.latency_s * 1e6),
            None if entry.first_token_s is None else int(entry.first_token_s * 1e6),
            name(connection, Kind.OUTCOME, entry.outcome),
            name(connection, Kind.ERROR, entry.error_kind),
            entry.response_id,
            entry.request_id,
        )

    def _insert(self, connection: sqlite3.Connection, entry: LedgerEntry, day: int | None = None) -> int:
        name = self._name
        row = connection.execute(
            _ADD,
            (
                *self._outcome(connection, entry),
                entry.execution,
                _micros(entry.at),
                name(connection, Kind.TARGET, entry.target),
                name(connection, Kind.PROVIDER, entry.provider),
                entry.local,
                name(connection, Kind.CHAIN, entry.chain),
                name(connection, Kind.USER, entry.user),
                self._tags(connection, entry.tags),
                entry.bound_nano,
                entry.corrects,
                name(connection, Kind.REASON, entry.reason),
                self._owner,
                int(entry.at // 86400) if day is None else day,
            ),
        ).fetchone()
        return int(row[0])

    def _correct(
        self,
        connection: sqlite3.Connection,
        number: int,
        cost_nano: int,
        reason: str,
        usage: Usage | None,
        at: float,
    ) -> LedgerEntry | None:
        row = connection.execute(f"SELECT {', '.join(_COLUMNS)}, day FROM entries WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LookupError(f"there is no row {number}")
        names = dict(connection.execute("SELECT id, name FROM names"))
        entry, day = _entry(row[:-1], names), row[-1]
        earlier = [
            _entry(one, names)
            for one in connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE corrects = ?", (number,))
        ]
        found = correction(entry, earlier, cost_nano, reason, usage, at)
        if found is None:
            return None
        return replace(found, id=self._insert(connection, found, day))

    def _name(self, connection: sqlite3.Connection, kind: int, text: str | None) -> int | None:
        """The number of a text; None of none."""
        if text is None:
            return None
        key = (kind, text)
        number = self._names.get(key)
        if number is None:
            row = connection.execute("SELECT id FROM names WHERE kind = ? AND name = ?", key).fetchone()
            if row is None:
                row = connection.execute("INSERT INTO names (kind, name) VALUES (?, ?) RETURNING id", key).fetchone()
            if len(self._names) > 50_000:  # users without end
                self._names.clear()
            self._names[key] = number = int(row[0])
            self._fresh.append(lambda: self._names.pop(key, None))
        return number

    def _tags(self, connection: sqlite3.Connection, tags: Sequence[str]) -> int | None:
        """The number of a set of tags."""
        if not tags:
            return None
        text = json.dumps(sorted(set(tags)), ensure_ascii=False)
        known = (Kind.TAGS, text) in self._names
        number = self._name(connection, Kind.TAGS, text)
        if not known:
            for tag in set(tags):
                one = self._name(connection, Kind.TAG, tag)
                connection.execute("INSERT OR IGNORE INTO tag_of VALUES (?, ?)", (number, one))
        return number

    def _meter(self, connection: sqlite3.Connection, claim: Claim, at: float) -> int:
        """The number of a claim's meter. A new one takes in what the ledger already holds of its window, from before
        meters of its kind were kept.
        """
        key = claim.key
        number = self._meter_ids.get(key)
        if number is not None:
            return number
        told = _told_key(key)
        row = connection.execute(
            "SELECT id FROM meters WHERE scope = ? AND of = ? AND window = ? AND timezone = ? AND start = ?", told
        ).fetchone()
        if row is None:
            kind = (key.scope, claim.budget.of or "", key.window, key.timezone)
            connection.execute("INSERT OR IGNORE INTO metered VALUES (?, ?, ?, ?, ?)", (*kind, _micros(at)))
            (since,) = connection.execute(
                "SELECT since FROM metered WHERE scope = ? AND of = ? AND window = ? AND timezone = ?", kind
            ).fetchone()
            start, end = _micros(key.start), since if claim.resets_at is None else min(since, _micros(claim.resets_at))
            posted, unknown = self._so_far(connection, key, start, end) if start < end else (0, 0)
            row = connection.execute(
                "INSERT INTO meters (scope, of, window, timezone, start, posted, unknown) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (*told, posted, unknown),
            ).fetchone()
        if len(self._meter_ids) > 50_000:
            self._meter_ids.clear()
        self._meter_ids[key] = number = int(row[0])
        self._fresh.append(lambda: self._meter_ids.pop(key, None))
        return number

    @staticmethod
    def _so_far(connection: sqlite3.Connection, key: MeterKey, start: int, end: int) -> tuple[int, int]:
        """What settled rows from `start` to `end` (microseconds) add up to: posted, and unknown."""
        where, parameters = "", []
        if key.scope in ("target", "user"):
            where = f" AND e.{key.scope} = (SELECT id FROM names WHERE kind = ? AND name = ?)"
            parameters = [Kind.TARGET if key.scope == "target" else Kind.USER, key.of]
        elif key.scope == "tag":
            tag = "(SELECT id FROM names WHERE kind = ? AND name = ?)"
            where = f" AND e.tags IN (SELECT tags FROM tag_of WHERE tag = {tag})"
            parameters = [Kind.TAG, key.of]
        posted, unknown = connection.execute(
            # A correction counts in the window of the row that it corrects.
            "SELECT ifnull(sum(e.cost), 0), ifnull(sum(CASE WHEN e.corrects IS NOT NULL OR (e.state = 4 AND e.cost IS "
            "NULL) THEN ifnull(e.bound, 0) ELSE 0 END), 0) FROM entries e JOIN entries o ON o.id = ifnull(e.corrects, "
            f"e.id) WHERE e.state >= 2 AND e.purpose <> 3 AND o.at >= ? AND o.at < ?{where}",
            (start, end, *parameters),
        ).fetchone()
        return int(posted), int(unknown)


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


_COLUMNS = (
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
_CLOSE = f"UPDATE entries SET {', '.join(f'{name} = ?' for name in _OUTCOME)} WHERE id = ? AND state < 2"
_ADD = (
    f"INSERT INTO entries ({', '.join((*_OUTCOME, *_BEGUN))}) "
    f"VALUES ({', '.join('?' * (len(_OUTCOME) + len(_BEGUN)))}) RETURNING id"
)
_STATUS = (EntryStatus.RESERVED, EntryStatus.DISPATCHED, EntryStatus.POSTED, EntryStatus.VOIDED, EntryStatus.UNKNOWN)
_PURPOSE = tuple(Purpose)


def _entry(row: Sequence[Any], names: Mapping[int, str]) -> LedgerEntry:
    """A row as an entry."""
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


def _told_key(key: MeterKey) -> tuple[str, str, str, str, int]:
    return (key.scope, key.of or "", key.window, key.timezone, key.start)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _unwritten(op: _Op) -> Ticket:
    draft: Draft = op.subject
    status = EntryStatus.DISPATCHED if op.dispatch else EntryStatus.RESERVED
    return Ticket(draft, None if draft.ask is None else draft.ask.most, status)


def _dispatched(ticket: Ticket, written: Any) -> bool:
    if written and ticket.status is EntryStatus.RESERVED:
        ticket.status = EntryStatus.DISPATCHED
    return bool(written)


def _ours(error: Exception) -> bool:
    """Whether what was to be written is at fault, rather than the file."""
    return isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError))


def _resolve(ops: list[_Op]) -> None:
    for op in ops:
        future = op.future
        if future is not None and not future.done():
            if op.error is not None:
                future.set_exception(op.error)
            else:
                future.set_result(op.result)


_opened: weakref.WeakSet[SQLiteLedger] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for ledger in list(_opened):
        ledger.close()
