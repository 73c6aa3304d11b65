"""A ledger of a million attempts: how large its file is, and how soon it tells its costs.

Its rows are what calls leave: reserved, dispatched and settled, with users, tags and a budget that counts them.
"""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from shared_core.ledger.schema import Kind
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.ledger.sums import LedgerFile

__all__ = ["fill", "size"]

DAYS = 90
USERS = 50
_COLUMNS = (
    "state", "owner", "execution", "attempt", "at", "day", "target", "provider", "model", "user", "tags", "bound",
    "cost", "price", "input", "cached", "output", "latency", "first_token", "outcome", "response_id",
)  # fmt: skip


def fill(path: Path, rows: int, *, seed: int = 1, now: float | None = None) -> None:
    """Write `rows` attempts of the last 90 days, evenly spread, in one transaction; the file's own triggers add up."""
    chance = random.Random(seed)
    now = time.time() if now is None else now
    SQLiteLedger(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    names: dict[tuple[int, str], int] = {}

    def name(kind: int, text: str) -> int:
        key = (kind, text)
        if key not in names:
            row = connection.execute("SELECT id FROM names WHERE kind = ? AND name = ?", key).fetchone()
            if row is None:
                row = connection.execute("INSERT INTO names (kind, name) VALUES (?, ?) RETURNING id", key).fetchone()
            names[key] = row[0]
        return names[key]

    connection.execute("PRAGMA synchronous = OFF")  # it is thrown away
    connection.execute("BEGIN")
    targets = [
        (
            name(Kind.TARGET, f"vendor-{n % 3}:model-{n}"),
            name(Kind.PROVIDER, f"vendor-{n % 3}"),
            name(Kind.MODEL, f"model-{n}"),
        )
        for n in range(6)
    ]
    users = [name(Kind.USER, f"user-{n}") for n in range(USERS)]
    tags = []
    for n in range(8):
        both = sorted({f"team-{n}", f"feature-{n % 3}"})
        tags.append(number := name(Kind.TAGS, json.dumps(both)))
        for tag in both:
            connection.execute("INSERT OR IGNORE INTO tag_of VALUES (?, ?)", (number, name(Kind.TAG, tag)))
    answered, price = name(Kind.OUTCOME, "answered"), name(Kind.PRICE, "own")
    connection.execute(
        "INSERT INTO meters (scope, of, window, timezone, start, lim) VALUES ('global', '', 'total', 'UTC', 0, NULL)"
    )
    (meter,) = connection.execute("SELECT id FROM meters").fetchone()
    insert = f"INSERT INTO entries ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    for number in range(rows):
        at = now - DAYS * 86400 * (rows - number) / rows
        target, provider, model = chance.choice(targets)
        cost = chance.randint(1_000, 50_000_000)
        row = (
            2, 1, f"{number % 50:06x}-{number}", 1, int(at * 1e6), int(at // 86400), target, provider, model,
            chance.choice(users), chance.choice(tags), cost * 2, cost, price, chance.randint(20, 4000),
            chance.choice([0, 0, 500]), chance.randint(1, 900), chance.randint(200_000, 9_000_000), 300_000, answered,
            f"chatcmpl-{number:024x}",
        )  # fmt: skip
        connection.execute(insert, row)
        connection.execute("INSERT INTO claims VALUES (?, ?)", (number + 1, meter))
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def size(*, rows: int = 1_000_000) -> dict[str, Any]:
    """Bytes for each row, and milliseconds for what people ask: the least of five."""
    with tempfile.TemporaryDirectory(prefix="money-size-") as place:
        path = Path(place) / "costs.db"
        fill(path, rows)
        took = {}
        for what, filters in (
            ("everything", {}),
            ("the last seven days", {"since": "7d"}),
            ("one user", {"user": "user-7"}),
            ("one tag", {"tag": "team-3"}),
            ("one target", {"target": "vendor-1:model-4"}),
            ("one model", {"model": "model-4"}),
            ("one user in the last seven days", {"user": "user-7", "since": "7d"}),
        ):
            best = float("inf")
            for _ in range(5):
                begun = time.perf_counter()
                with LedgerFile(path) as file:
                    report = file.costs(**filters)  # type: ignore[arg-type]  # a table of keywords
                best = min(best, time.perf_counter() - begun)
                assert report.total.attempts
            took[what] = round(best * 1000, 1)
        return {"rows": rows, "bytes_per_row": round(path.stat().st_size / rows, 1), "costs_ms": took}
