"""SQLite files that several processes write: opened in one way, with typed errors, and never carried across a fork.

SQLite keeps the locks of a file in the process, not in the connection. After a fork a child would believe that it holds
the locks of its parent, so everything open is closed just before, and opened anew on both sides.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_core.errors import LedgerError

__all__ = ["Process", "connect", "filesystem_of", "migrate", "reason_of", "this_process"]

NETWORK = frozenset(
    {
        *(
            "afpfs",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "davfs",
            "glusterfs",
            "gpfs",
            "lustre",
            "ncpfs",
            "nfs",
            "nfs4",
        ),
        *("ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "webdav"),
        *("fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)
"""File systems that several machines may share: SQLite's shared memory and locks do not reach from one to another."""


def filesystem_of(path: Path) -> str | None:
    """The type of the file system that holds `path`, such as 'ext4'; None where the system does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    place = os.path.realpath(path)
    best, found = -1, None
    for line in mounts.splitlines():
        fields, _, tail = line.partition(" - ")
        point = fields.split(" ")[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount covers an earlier one
            best, found = len(point), tail.split(" ")[0]
    return found


def reason_of(error: BaseException) -> str:
    """Which kind of trouble an error of SQLite is: 'locked', 'full', 'read-only', 'corrupt', 'i/o', ..."""
    name = getattr(error, "sqlite_errorname", "") or ""
    for start, reason in (
        ("SQLITE_BUSY", "locked"),
        ("SQLITE_LOCKED", "locked"),
        ("SQLITE_PROTOCOL", "locked"),
        ("SQLITE_FULL", "full"),
        ("SQLITE_READONLY", "read-only"),
        ("SQLITE_PERM", "read-only"),
        ("SQLITE_CORRUPT", "corrupt"),
        ("SQLITE_NOTADB", "not a database"),
        ("SQLITE_CANTOPEN", "cannot be opened"),
        ("SQLITE_IOERR", "i/o"),
    ):
        if name.startswith(start):
            return reason
    return "i/o"


_HINTS = {
    "locked": "another program holds it; close that, or raise busy_timeout_s",
    "full": "the disk is full; make room",
    "read-only": "the file or its folder cannot be written; change its permissions or choose another place",
    "corrupt": "restore it from a copy, or move it away and begin a new one",
    "not a database": "the file holds something else; choose another name",
    "cannot be opened": "does its folder exist, and may it be written?",
    "i/o": "the disk reports errors",
}


def refusal(path: Path, error: BaseException, what: str = "ledger") -> LedgerError:
    """`error` as the error that says what to do about it."""
    reason = reason_of(error)
    return LedgerError(f"{what} {str(path)!r}: {error} ({reason}). hint: {_HINTS[reason]}", reason=reason)


def connect(path: Path, *, busy_timeout_s: float = 5.0) -> sqlite3.Connection:
    """A connection in WAL mode that loses nothing it has committed, also when the power fails.

    Its statements are in no transaction unless one is begun. It may be used by one thread at a time, any.

    Raises:
        LedgerError: the file is on a network file system, or cannot be opened or written.
    """
    kind = filesystem_of(path.parent)
    if kind in NETWORK:
        raise LedgerError(
            f"{str(path)!r} is on a network file system ({kind}), where SQLite's locks do not hold. "
            "hint: put it on a disk of this machine",
            reason="network",
        )
    try:
        connection = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except sqlite3.Error as error:
        raise refusal(path, error) from error
    try:
        patience = time.monotonic() + busy_timeout_s
        mode = ""
        while not mode:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:  # changing the mode does not wait by itself
                if reason_of(error) != "locked" or time.monotonic() > patience:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise LedgerError(
                f"{str(path)!r} cannot be used by several processes here (journal mode {mode!r}). "
                "hint: put it on a disk of this machine",
                reason="network",
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
    except sqlite3.Error as error:
        connection.close()
        raise refusal(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def begin(connection: sqlite3.Connection, patience_s: float) -> None:
    """Begin a transaction that writes, as soon as the others let us, within `patience_s` seconds.

    SQLite's own waiting looks ever more rarely, every tenth of a second in the end: beside processes that write without
    a pause, who has waited long would never meet the file free. On a connection with a busy timeout of some
    milliseconds this looks as often as those who have just come.

    Raises:
        sqlite3.OperationalError: it is still locked, or cannot be written.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if reason_of(error) != "locked" or time.monotonic() >= until:
                raise
            time.sleep(random.uniform(0.0005, 0.004))
        else:
            return


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[tuple[str, str]],
    *,
    application: int,
    patience_s: float,
) -> None:
    """Bring the file to where we are, in one transaction: an interrupted one leaves nothing behind.

    Raises:
        LedgerError: it is a newer version's, some other program's, or cannot be written.
    """
    try:
        begin(connection, patience_s)
        _migrate(connection, path, migrations, application)
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise refusal(path, error) from error


def _migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[tuple[str, str]], application: int
) -> None:
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        if tables and owner != application:
            raise LedgerError(
                f"{str(path)!r} is a database of another program. hint: choose another name", reason="not a ledger"
            )
        done = []
        if not tables:
            connection.execute(f"PRAGMA application_id = {application}")
            connection.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, at REAL NOT NULL)")
        else:
            done = [name for (name,) in connection.execute("SELECT name FROM migrations")]
        known = {name for name, _ in migrations}
        if ahead := [name for name in done if name not in known]:
            raise LedgerError(
                f"{str(path)!r} was written by a newer version of llm-fallback (it has {ahead[0]!r}). "
                "hint: update the package",
                reason="newer",
            )
        for name, script in migrations:
            if name not in done:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute("INSERT INTO migrations VALUES (?, ?)", (name, time.time()))
    except LedgerError:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _statements(script: str) -> list[str]:
    """A script's statements: `executescript` would commit on its own."""
    found: list[str] = []
    begun = ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from any other that ever had its number."""

    boot: str
    """The system's run; a process of an earlier one is gone."""
    space: str
    """The number space (container): in another one the same number means another process."""
    pid: int
    started: str
    """When it began, in the kernel's ticks; empty where the system does not tell."""

    def gone(self, seen_by: Process) -> bool:
        """Whether it is certain that the process has ended."""
        if self.boot != seen_by.boot:
            return bool(self.boot and seen_by.boot)
        if self.space != seen_by.space:
            return False  # it cannot be seen from here
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it is there, and another user's
        return _started(self.pid) != self.started if self.started else False


def this_process() -> Process:
    """The process this runs in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = sys.platform
    return Process(boot, space, os.getpid(), _started(os.getpid()))


def _started(pid: int) -> str:
    try:
        facts = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    fields = facts.rpartition(")")[2].split()  # the name before may hold anything
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended
