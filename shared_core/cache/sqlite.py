"""Entries in one SQLite file, shared by the threads and processes of one machine: `SQLiteStore`.

A cache must never be the reason why a request fails: whatever the file or the disk does (locked, full, read-only, cut
short), reads find nothing and writes keep nothing; it is counted and told to the log once.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from shared_core._forks import guard_fork
from shared_core._sqlite import connect, migrate
from shared_core.cache.store import OVERHEAD, Entry
from shared_core.errors import ConfigurationError, LedgerError

__all__ = ["MIGRATIONS", "SQLiteStore"]

T = TypeVar("T")
_log = logging.getLogger("llm_fallback.cache")
_BUSY_S = 0.5
"""How long a process waits for another one's writing. A cache that has to be waited for longer is worth nothing."""
_TOUCHES = 64
"""Reads whose order is remembered before it is written down; what is lost is only who was used a moment ago."""

APPLICATION: Final = 0x4C464331
"""SQLite's application id of our files: a database of somebody else's is left alone."""
MIGRATIONS: Final[Sequence[tuple[str, str]]] = (
    (
        "0001_entries",
        """
        CREATE TABLE entries (
            key BLOB PRIMARY KEY, body BLOB NOT NULL, stored REAL NOT NULL, expires REAL NOT NULL, until REAL NOT NULL,
            used REAL NOT NULL, takes INTEGER NOT NULL
        );
        CREATE INDEX entries_by_use ON entries (used);
        CREATE INDEX entries_by_end ON entries (until);
        CREATE TABLE total (items INTEGER NOT NULL, bytes INTEGER NOT NULL);
        INSERT INTO total VALUES (0, 0);
        CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
            UPDATE total SET items = items + 1, bytes = bytes + NEW.takes;
        END;
        CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
            UPDATE total SET items = items - 1, bytes = bytes - OLD.takes;
        END;
        """,
    ),
)
"""What made the file what it is, in order, each once; the file itself says which it has seen."""


class SQLiteStore:
    """A file that several processes may share, on a disk of this machine.

    Args:
        path: the file; made when first used. Its folder must be there.
        max_items, max_bytes: as of `MemoryStore`, for the file as a whole.

    Raises:
        ConfigurationError: the folder is not there, or the path is one.
    """

    persistent = True
    instant = False

    def __init__(self, path: str | os.PathLike[str], max_items: int = 1_000, max_bytes: int = 64 * 2**20) -> None:
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise ConfigurationError(f"cache path {os.fspath(path)!r} is a folder\nhint: name a file in it")
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"cache path {os.fspath(path)!r}: there is no such folder\nhint: create it first")
        self._max_items, self._max_bytes = max_items, max_bytes
        self._lock = threading.Lock()
        self._own: sqlite3.Connection | None = None
        self._used: dict[bytes, float] = {}
        self._told = False
        self.errors = 0
        """Times that the file could not be read or written."""
        guard_fork(self)

    def before_fork(self) -> None:
        """Let go of the file: SQLite would have the child believe that it holds the parent's locks."""
        self._lock.acquire()
        self._let_go()

    def after_fork(self, *, child: bool) -> None:
        """Go on; each side opens the file for itself."""
        if child:
            self._lock = threading.Lock()  # other threads of the parent may have been waiting for it
            self._used.clear()
        else:
            self._lock.release()

    def _let_go(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            with suppress(sqlite3.Error):
                if self._used:
                    self._touch(own)
            own.close()

    def _opened(self) -> sqlite3.Connection:
        if self._own is None:
            connection = connect(self.path, busy_timeout_s=_BUSY_S)
            try:
                # What a cache loses with the power is asked again; its file stays whole either way.
                connection.execute("PRAGMA synchronous = NORMAL")
                migrate(connection, self.path, MIGRATIONS, application=APPLICATION, patience_s=_BUSY_S)
            except BaseException:
                connection.close()
                raise
            self._own = connection
        return self._own

    def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        with self._lock:
            try:
                return work(self._opened())
            except (sqlite3.Error, OSError, LedgerError) as error:
                self.errors += 1
                if self._own is not None:
                    with suppress(sqlite3.Error):
                        if self._own.in_transaction:
                            self._own.execute("ROLLBACK")
                if not self._told:
                    self._told = True
                    _log.warning(
                        "the cache in %s cannot be used just now: %s. Requests go on without it; "
                        "if it does not mend itself, delete the file",
                        self.path,
                        error,
                    )
                return otherwise

    def get(self, key: bytes, now: float) -> Entry | None:
        """The entry, which counts as used; however old it is."""

        def work(connection: sqlite3.Connection) -> Entry | None:
            row = connection.execute(
                "SELECT body, stored, expires FROM entries WHERE key = ? AND until > ?", (key, now)
            ).fetchone()
            if row is None:
                return None
            self._used[key] = now
            if len(self._used) >= _TOUCHES:
                connection.execute("BEGIN IMMEDIATE")
                self._touch(connection)
                connection.execute("COMMIT")
            body, stored, expires = row
            if not (isinstance(stored, float) and isinstance(expires, float)):  # somebody else's hand was in it
                connection.execute("DELETE FROM entries WHERE key = ?", (key,))
                return None
            return Entry(body if isinstance(body, bytes) else str(body).encode(), stored, expires)

        return self._do(work, None)

    def _touch(self, connection: sqlite3.Connection) -> None:
        connection.executemany("UPDATE entries SET used = ?2 WHERE key = ?1 AND used < ?2", list(self._used.items()))
        self._used.clear()

    def put(self, key: bytes, entry: Entry, until: float, now: float) -> int:
        """Keep it until `until`; returns how many entries had to go for it."""
        takes = len(entry.body) + OVERHEAD

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            if self._used:
                self._touch(connection)
            connection.execute("DELETE FROM entries WHERE key = ? OR until <= ?", (key, now))
            if takes <= self._max_bytes:
                connection.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, entry.body, entry.stored, entry.expires, until, now, takes),
                )
            gone = self._evict(connection)
            connection.execute("COMMIT")
            return gone

        return self._do(work, 0)

    def _evict(self, connection: sqlite3.Connection) -> int:
        gone = 0
        while True:
            items, taken = connection.execute("SELECT items, bytes FROM total").fetchone()
            if items <= self._max_items and taken <= self._max_bytes:
                return gone
            done = connection.execute(
                "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used, rowid LIMIT ?)",
                (max(1, items - self._max_items),),
            )
            if done.rowcount <= 0:
                return gone
            gone += done.rowcount

    def discard(self, key: bytes, body: bytes | None = None) -> None:
        """Remove one entry; with `body`, only if that is what it still holds."""
        self._do(
            lambda connection: (
                connection.execute(
                    "DELETE FROM entries WHERE key = ?1 AND (?2 IS NULL OR CAST(body AS BLOB) = ?2)", (key, body)
                ).rowcount
            ),
            0,
        )

    def clear(self) -> int:
        """Remove all; returns how many there were."""
        return self._do(lambda connection: connection.execute("DELETE FROM entries").rowcount, 0)

    def size(self) -> tuple[int, int]:
        """How many entries there are, and how many bytes they take."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            items, taken = connection.execute("SELECT items, bytes FROM total").fetchone()
            return int(items), int(taken)

        return self._do(work, (0, 0))

    def close(self) -> None:
        """Write down who was used last, and let go of the file; it is opened again by the next use."""
        with self._lock:
            self._let_go()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "max_items": self._max_items, "max_bytes": self._max_bytes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the one way to make it whole again

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"
