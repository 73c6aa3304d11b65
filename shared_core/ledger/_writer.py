"""The thread that writes a ledger's file: what is handed in while it is busy goes into its next transaction together.

Callers who wait are told when it is on disk. What cannot be written is refused where money would leave under a hard
budget, and kept in memory until it can be where not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from shared_core._forks import guard_fork
from shared_core._sqlite import begin, reason_of, refusal
from shared_core.errors import ConfigurationError, LedgerError
from shared_core.ledger._opening import opened
from shared_core.ledger._writing import Writing
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.store import Draft, Ticket, Trouble

__all__ = ["CALL", "DISPATCH", "RECORD", "RESERVE", "SETTLE", "Op", "Writer"]

_log = logging.getLogger("llm_fallback.ledger")

_BATCH = 512
"""Operations in one transaction at most."""
_RETRY_S = 1.0
"""How often rows that could not be written are tried again."""
_REST_S = 30.0
"""The thread ends when nothing was handed in for so long."""
_KEEP = 200_000
"""Operations kept in memory at most while the file cannot be written. Beyond that the oldest are lost, and logged."""

RESERVE: Final = 0
DISPATCH: Final = 1
SETTLE: Final = 2
RECORD: Final = 3
ABANDON: Final = 4
CALL: Final = 5


class Op:
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


class Writer:
    """Writes one file, for one process. After a fork, both sides have their own.

    Raises:
        LedgerError: the file cannot be used; `reason` says why.
    """

    def __init__(self, path: Path, busy_timeout_s: float, linger_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._linger_s = linger_s
        self._reset()
        guard_fork(self)
        with self.gate:
            self._open()

    def _reset(self) -> None:
        """As it is before anything is open: at first, and in the child of a fork."""
        self.gate = threading.Lock()
        """Held while the connection is used."""
        self._wake = threading.Condition(threading.Lock())
        self._queue: deque[Op] = deque()
        self._waiters = 0
        self._resting = False  # the thread waits for work
        self._lingering = False  # it waits for company
        self._stopping = False
        self.thread: threading.Thread | None = None
        self.connection: sqlite3.Connection | None = None
        self._writing = Writing(self._path)
        self._pid = os.getpid()
        self._backlog: list[Op] = []
        self.lost = 0
        """Operations that had to be given up because too many waited."""
        self.trouble: str | None = None
        """Why the file cannot be written just now."""

    @property
    def waiting(self) -> int:
        """Operations that wait in memory because the file cannot be written."""
        return len(self._backlog)

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> sqlite3.Connection:
        self.connection, self._writing.owner = opened(self._path, self._busy_timeout_s)
        return self.connection

    def close(self) -> None:
        """Write what is pending and let go of the file. Opens again when something is handed in."""
        if os.getpid() != self._pid:
            return
        with self._wake:
            thread, self._stopping = self.thread, True
            self._wake.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._busy_timeout_s + 5.0)
        with self.gate:
            if self._backlog:
                _log.error("ledger %s is closed with %d rows in memory: %s", self._path, self.waiting, self.trouble)
            if self.connection is not None:
                self.connection.close()
                self.connection = None

    def before_fork(self) -> None:
        """Let go of the file: SQLite's locks must not be carried across a fork."""
        self.gate.acquire()
        self._wake.acquire()
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def after_fork(self, *, child: bool) -> None:
        """Go on."""
        if child:
            self._reset()
        else:
            self._wake.release()
            self.gate.release()

    # ── handing in ───────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, op: Op) -> None:
        """Hand something in that nobody waits for."""
        if sys.is_finalizing():
            return  # the program is over and no thread runs any more: the row stays as a crash would have left it
        if os.getpid() != self._pid:
            self._reset()  # forked without Python's knowing
        with self._wake:
            self._queue.append(op)
            awaited = op.lock is not None or op.future is not None
            self._waiters += awaited
            if self.thread is None:
                self._stopping = False
                self.thread = threading.Thread(target=self._run, name="llm-fallback-ledger", daemon=True)
                self.thread.start()
            elif self._resting or (self._lingering and awaited):
                self._wake.notify()

    def wait(self, op: Op) -> Any:
        """Hand something in, and wait until it is on disk."""
        if sys.is_finalizing():
            raise LedgerError(f"ledger {self._path}: the program is over, nothing is written any more")
        told = op.lock = threading.Lock()  # held by name: the writer lets go of the operation's when it has answered
        told.acquire()
        self.submit(op)
        try:
            told.acquire()
        except BaseException:
            self.submit(Op(ABANDON, op))  # interrupted: nobody will settle it
            raise
        if op.error is not None:
            raise op.error
        return op.result

    async def await_(self, op: Op) -> Any:
        """The same, without blocking the event loop."""
        op.loop = asyncio.get_running_loop()
        op.future = op.loop.create_future()
        self.submit(op)
        try:
            return await op.future
        except asyncio.CancelledError:
            self.submit(Op(ABANDON, op))  # the caller left: nobody will settle it
            raise

    def begin(self, op: Op) -> Ticket:
        """Let an attempt begin although its row waits: an answer is not lost because it cannot be written down."""
        op.begun = ticket = _unwritten(op)
        self.submit(op)
        return ticket

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        wake, queue = self._wake, self._queue
        while True:
            with wake:
                if not queue:
                    if self._stopping:
                        self.thread = None
                        return
                    self._resting = True
                    wake.wait(_RETRY_S if self._backlog else _REST_S)
                    self._resting = False
                    if not queue and not self._backlog:
                        self.thread = None  # told to stop, or idle for long: another begins when there is work
                        return
                if queue and not self._waiters and not self._stopping:
                    self._lingering = True
                    wake.wait(self._linger_s)
                    self._lingering = False
                batch = [queue.popleft() for _ in range(min(len(queue), _BATCH))]
                self._waiters -= sum(op.lock is not None or op.future is not None for op in batch)
            self._commit(batch)

    def _commit(self, batch: list[Op]) -> None:
        with self.gate:
            ops, self._backlog = [*self._backlog, *batch], []
            try:
                self.write(ops)
            except (sqlite3.Error, LedgerError) as error:
                if _ours(error) and len(ops) > 1:
                    for op in ops:  # one of them is at fault: find it, and let the others pass
                        try:
                            self.write([op])
                        except (sqlite3.Error, LedgerError) as fault:
                            self._failed([op], fault)
                else:
                    self._failed(ops, error)
            except Exception as error:  # noqa: BLE001  # a bug must not take the writer down with it, nor leave anybody waiting
                _log.exception("the ledger failed on %d rows", len(ops))
                for op in ops:
                    op.error = error
            notices = self._writing.notices()
        for tell, notice in notices:
            tell(notice)
        self._answer(ops)

    def _answer(self, ops: list[Op]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Op]] = {}
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
                    self.submit(Op(ABANDON, op))

    def write(self, ops: Sequence[Op]) -> None:
        """All of `ops` in one transaction, or none."""
        connection = self.connection or self._open()
        writing = self._writing
        writing.begin()
        try:
            begin(connection, self._busy_timeout_s)
            for op in ops:
                self._perform(connection, op)
            connection.execute("COMMIT")
        except BaseException:
            for op in ops:
                op.result = None  # none of it is so
            writing.undone()
            self._roll_back(connection)
            raise
        writing.committed()
        if self.trouble is not None:
            reason, self.trouble = self.trouble, None
            _log.warning("ledger %s can be written again (%s)", self._path, reason)
            self._tell_trouble(ops, Trouble(reason, 0, over=True))

    def _perform(self, connection: sqlite3.Connection, op: Op) -> None:
        kind, entry, writing = op.kind, op.entry, self._writing
        if kind == RESERVE:
            status = EntryStatus.DISPATCHED if op.dispatch else EntryStatus.RESERVED
            op.result = writing.reserve(connection, op.subject, status, op.begun)
        elif kind == SETTLE and entry is not None:
            writing.settle(connection, op.subject, entry)
        elif kind == DISPATCH:
            op.result = writing.dispatch(connection, op.subject)
        elif kind == RECORD and entry is not None:
            writing.insert(connection, entry)
        elif kind == ABANDON:
            left = op.subject
            if left.kind == RESERVE and isinstance(left.result, Ticket):
                writing.abandon(connection, left.result)
        else:
            writing.begin()  # whatever it does
            try:
                op.result = op.subject(connection, writing)
            except (LookupError, ConfigurationError) as error:  # its caller's mistake, and nobody else's
                op.error = error

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # the file is in no state to be used: open it anew next time
            self.connection = None
            connection.close()

    def _failed(self, ops: list[Op], error: sqlite3.Error | LedgerError) -> None:
        """The file cannot be written. What spends money under a hard budget is refused, the rest waits in memory."""
        reason = error.reason if isinstance(error, LedgerError) else reason_of(error)
        refused = error if isinstance(error, LedgerError) else refusal(self._path, error)
        if reason in ("corrupt", "i/o", "not a database") and self.connection is not None:
            self.connection.close()  # it may be mended, or be another file, by the next time
            self.connection = None
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
            self.lost += len(self._backlog) - _KEEP
            del self._backlog[: len(self._backlog) - _KEEP]
            _log.error("ledger %s: %d rows are lost", self._path, self.lost)
        if self.trouble is None:
            self.trouble = reason
            _log.error("ledger %s cannot be written: %s; rows are kept in memory", self._path, error)
            self._tell_trouble(ops, Trouble(reason, len(self._backlog)))

    def _tell_trouble(self, ops: Sequence[Op], trouble: Trouble) -> None:
        drafts = (op.subject if op.kind == RESERVE else getattr(op.subject, "draft", None) for op in ops)
        told = {draft.tell for draft in drafts if draft is not None and draft.tell is not None}
        for tell in told:
            self._writing.notice(tell, trouble)


def _unwritten(op: Op) -> Ticket:
    draft: Draft = op.subject
    status = EntryStatus.DISPATCHED if op.dispatch else EntryStatus.RESERVED
    return Ticket(draft, None if draft.ask is None else draft.ask.most, status)


def _ours(error: Exception) -> bool:
    """Whether what was to be written is at fault, rather than the file."""
    return isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError))


def _resolve(ops: list[Op]) -> None:
    for op in ops:
        future = op.future
        if future is not None and not future.done():
            if op.error is not None:
                future.set_exception(op.error)
            else:
                future.set_result(op.result)
