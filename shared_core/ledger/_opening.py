"""Open a ledger's file: bring it up to date, close what dead processes have left, and sign in."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from shared_core._sqlite import Process, begin, connect, migrate, refusal, this_process
from shared_core.ledger._rows import micros
from shared_core.ledger.schema import APPLICATION, DISPATCHED, MIGRATIONS, RESERVED, UNKNOWN, VOIDED, Kind

__all__ = ["opened"]

_log = logging.getLogger("llm_fallback.ledger")

_LOOKS_MS = 5
"""How long SQLite itself waits for a file that somebody else is writing to, in milliseconds."""


def opened(path: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, int]:
    """A connection that may write, and this process's number in the file.

    Raises:
        LedgerError: the file cannot be used; `reason` says why.
    """
    connection = connect(path, busy_timeout_s=busy_timeout_s)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_LOOKS_MS}")  # from here on it is `begin` that waits
        migrate(connection, path, MIGRATIONS, application=APPLICATION, patience_s=busy_timeout_s)
        me = this_process()
        begin(connection, busy_timeout_s)
        _recover(connection, me)
        row = connection.execute(
            "INSERT INTO owners (boot, space, pid, started, opened) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (me.boot, me.space, me.pid, me.started, micros(time.time())),
        ).fetchone()
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise refusal(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection, int(row[0])


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
