"""Power cuts and failing disks: what the ledger had said is on the disk, is; and what it cannot write, it says.

python -m tools.money_trials power --seed 1
python -m tools.money_trials disk --seed 1
"""

from __future__ import annotations

import errno
import json
import logging
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_core.errors import LedgerError
from shared_core.ledger.schema import SUMS
from shared_core.ledger.sqlite import SQLiteLedger
from tools.money_trials.disk import cuts, preloaded, read_log
from tools.money_trials.place import folder as scratch

__all__ = ["check_books", "failing", "power"]

DAILY = {
    "daily_target": "",
    "daily_user": " AND NEW.user IS NOT NULL",
    "daily_target_user": " AND NEW.user IS NOT NULL",
    "daily_target_tags": " AND NEW.tags IS NOT NULL",
    "daily_user_tags": " AND NEW.user IS NOT NULL AND NEW.tags IS NOT NULL",
}
"""Tables of sums, and which rows are in each."""


def check_books(connection: sqlite3.Connection) -> list[str]:
    """What is wrong in a ledger's file: pages, half rows, sums that are not those of the rows, budgets passed."""
    wrong = [f"integrity: {told}" for (told,) in connection.execute("PRAGMA integrity_check") if told != "ok"]
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone():
        return wrong
    half = (
        "SELECT id, state, cost, bound, purpose, execution FROM entries "
        "WHERE (state >= 2 AND outcome IS NULL) OR (state < 2 AND (cost IS NOT NULL OR outcome IS NOT NULL))"
    )
    wrong += [f"half a row: {row}" for row in connection.execute(half)]
    for table, where in DAILY.items():
        rows = connection.execute(
            f"SELECT {', '.join(f'sum({value})' for value in SUMS.values())} FROM entries NEW "
            f"WHERE NEW.state >= 2{where}"
        ).fetchone()
        kept = connection.execute(f"SELECT {', '.join(f'sum({name})' for name in SUMS)} FROM {table}").fetchone()
        if [value or 0 for value in rows] != [value or 0 for value in kept]:
            wrong.append(f"{table} is not the sum of its rows: {kept}, rows {rows}")
    meters = connection.execute(
        "SELECT m.id, m.posted, m.pending, m.unknown, m.lim, m.over, "
        "ifnull(sum((e.state >= 2) * ifnull(e.cost, 0)), 0), ifnull(sum((e.state < 2) * ifnull(e.bound, 0)), 0), "
        "ifnull(sum((e.state = 4 AND e.cost IS NULL) * ifnull(e.bound, 0)), 0) FROM meters m "
        "LEFT JOIN claims c ON c.meter = m.id LEFT JOIN entries e ON e.id = c.entry GROUP BY m.id"
    )
    for number, posted, pending, unknown, limit, over, *rows in meters:
        if [posted, pending, unknown] != rows:
            wrong.append(f"meter {number} shows {posted}, {pending}, {unknown}, its rows {rows}")
        if limit is not None and posted + pending + unknown > limit + over:
            wrong.append(f"meter {number} is over its limit by {posted + pending + unknown - limit}")
    return wrong


def _acknowledged(acks: bytes) -> dict[int, tuple[int, int | None, int | None]]:
    """What the program was told is on the disk: state at least, bound and cost of each row."""
    rows: dict[int, tuple[int, int | None, int | None]] = {}
    for line in acks.decode().splitlines():
        match line.split():
            case ["R", number, bound]:
                rows[int(number)] = (0, int(bound), None)
            case ["D", number, bound]:
                rows[int(number)] = (1, int(bound), None)
            case ["S", number, state, cost]:
                rows[int(number)] = (int(state), None, None if cost == "None" else int(cost))
            case _:
                continue
    return rows


def _lost(connection: sqlite3.Connection, acknowledged: Mapping[int, tuple[int, int | None, int | None]]) -> list[str]:
    if not acknowledged:
        return []
    found = {number: rest for number, *rest in connection.execute("SELECT id, state, bound, cost FROM entries")}
    lost = []
    for number, (state, bound, cost) in acknowledged.items():
        row = found.get(number)
        if row is None:
            lost.append(f"row {number} is lost")
        elif row[0] < state or (bound is not None and row[1] != bound) or (state >= 2 and row[0::2] != [state, cost]):
            lost.append(f"row {number} is {row}, was acknowledged as {state}, {bound}, {cost}")
    return lost


def _work(folder: Path, seed: object, count: int, *more: str, **environment: Any) -> tuple[int, str, str]:
    run = subprocess.run(
        [sys.executable, "-m", "tools.money_trials.work", str(folder), str(seed), str(count), *more],
        env=preloaded(folder, **environment), capture_output=True, text=True, check=False, timeout=300,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


def power(*, seed: int = 1, count: int = 60, every: int = 1, torn: int = 2) -> dict[str, Any]:
    """Cut the power at every `every`-th write, sync or cut of `count` attempts, and look at what is left.

    After each cut the file is checked as it lies there; every fifth is then opened by a ledger, and checked again.
    """
    chance = random.Random(seed)
    logging.getLogger("llm_fallback.ledger").setLevel(logging.ERROR)  # it tells what a dead process has left
    with scratch("power") as place:
        folder, log = Path(place) / "disk", Path(place) / "log"
        folder.mkdir()
        status, _, errors = _work(folder, seed, count, "strict", log=log)
        if status:
            raise RuntimeError(f"the program under test failed: {errors[-2000:]}")
        operations = read_log(log)
        images = points = acknowledged = opened = 0
        wrong: list[str] = []
        last = -1
        for number, kind, files, disk in cuts(operations, chance, every=every, torn=torn):
            points += number != last
            last = number
            images += 1
            # What the program was told before the cut, whatever became of the file it noted that in.
            told = _acknowledged(disk.synced("acks", written=True))
            acknowledged = max(acknowledged, len(told))
            found, ok = _look(Path(place) / "image", files, told, reopen=images % 5 == 0)
            opened += ok
            wrong += [f"cut {number} ({kind}): {what}" for what in found]
        return {
            "seed": seed,
            "operations": len(operations),
            "cut_points": points,
            "images": images,
            "rows_acknowledged": acknowledged,
            "opened_again": opened,
            "lost_or_half": len(wrong),
            "faults": wrong[:20],
        }


def _look(
    folder: Path, files: Mapping[str, bytes], told: Mapping[int, tuple[int, int | None, int | None]], *, reopen: bool
) -> tuple[list[str], bool]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / "costs.db"
    if not files.get("costs.db"):
        return ([f"no file, and {len(told)} rows acknowledged"] if told else []), False
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            found = check_books(connection) + _lost(connection, told)
        finally:
            connection.close()
    except sqlite3.Error as error:
        return [f"{type(error).__name__}: {error}"], False
    if not reopen:
        return found, False
    try:
        with SQLiteLedger(path) as ledger:
            rows = ledger.entries()
            found += [f"row {row.id} is still open" for row in rows if row.status.open]
            ledger.costs()
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            found += [f"after opening: {what}" for what in check_books(connection)]
        finally:
            connection.close()
    except LedgerError as error:
        return [*found, f"a ledger refuses it: {error}"], False
    return found, True


def failing(*, seed: int = 1, count: int = 12, points: int = 12) -> dict[str, Any]:
    """Let the n-th write or sync fail, for `points` of every n: once, and from then on; full, and broken.

    Under a hard budget nothing may start that is not written down: a refusal with a type. Without one, rows wait in
    memory and the attempt goes on. Either way nothing acknowledged is lost, and no error comes without a type.
    """
    chance = random.Random(seed)
    with scratch("disk") as place:
        folder, log = Path(place) / "disk", Path(place) / "log"
        folder.mkdir()
        status, _, errors = _work(folder, seed, count, log=log)
        if status:
            raise RuntimeError(f"the program under test failed: {errors[-2000:]}")
        most = sum(operation.kind in "WS" and operation.name != "acks" for operation in read_log(log))
        runs, wrong = 0, []
        told: Counter[str] = Counter()
        for index in range(points):
            at = 1 + (index * most // points if points < most else index % most)
            code, name = chance.choice([(errno.ENOSPC, "full"), (errno.EIO, "broken")])
            times = chance.choice([1, 10**9])
            mode: Sequence[str] = ("strict",) if index % 2 else ()
            shutil.rmtree(folder)
            folder.mkdir()
            status, out, errors = _work(folder, seed, count, *mode, fail=(at, code, times))
            runs += 1
            where = f"{name} at {at}, {'once' if times == 1 else 'for good'}, {'hard' if mode else 'soft'}"
            if status or "Traceback" in errors:
                wrong.append(f"{where}: an error without a type: {errors.strip()[-300:]}")
                continue
            facts = json.loads(out)
            refused = {word for word in facts.get("seen", {}) if word.startswith("refused")}
            told["could not be opened" if "opening" in facts else "refused" if refused else "went on"] += 1
            if mode and "begun, and waits to be written" in facts.get("seen", {}):
                wrong.append(f"{where}: begun under a hard budget, and not written down")
            if refused and not mode:
                wrong.append(f"{where}: refused without a hard budget: {refused}")
            if facts.get("lost"):
                wrong.append(f"{where}: {facts['lost']} rows were given up")
            acks = folder / "acks"
            acknowledged = _acknowledged(acks.read_bytes() if acks.exists() else b"")
            wrong += [f"{where}: {what}" for what in _after(folder / "costs.db", acknowledged)]
        return {
            "seed": seed,
            "writes_and_syncs": most,
            "runs": runs,
            **{f"runs_{key.replace(' ', '_')}": told[key] for key in ("went on", "refused", "could not be opened")},
            "lost_or_untyped": len(wrong),
            "faults": wrong[:20],
        }


def _after(path: Path, acknowledged: Mapping[int, tuple[int, int | None, int | None]]) -> list[str]:
    """The disk is well again: the file is whole and has what was acknowledged."""
    if not path.exists() or not path.stat().st_size:
        return [f"no file, and {len(acknowledged)} rows acknowledged"] if acknowledged else []
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            twice = "SELECT execution, count(*) FROM entries GROUP BY execution HAVING count(*) > 1"
            found = check_books(connection)
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone():
                found += [f"{name} has {count} rows" for name, count in connection.execute(twice)]
            return found + _lost(connection, acknowledged)
        finally:
            connection.close()
    except sqlite3.Error as error:
        return [f"{type(error).__name__}: {error}"]
