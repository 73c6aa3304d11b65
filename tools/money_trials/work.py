"""The program whose disk forgets or fails: reserves, dispatches, settles, and notes on that disk what it was told.

python -m tools.money_trials.work FOLDER SEED COUNT [strict]

Prints a line of JSON: what became of each attempt, and every error by its type.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from shared_core.chat.events import Usage
from shared_core.errors import LedgerError
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.ledger.store import Draft, Ticket
from shared_core.resilience.budget import Ask, Budget, Budgets

__all__ = ["ended", "main"]

AT = 1_795_000_000.0
"""Seconds since the epoch; every run is at the same time."""
LIMIT_USD = 1


def main(arguments: list[str]) -> int:
    """Returns 0, also when the disk fails: what is asked is whether that is told."""
    folder, seed, count = Path(arguments[0]), arguments[1], int(arguments[2])
    strict = "strict" in arguments[3:]
    chance = random.Random(seed)
    budgets = Budgets(
        [Budget(LIMIT_USD, window="total", hard=strict), Budget(LIMIT_USD, window="day", scope="user", hard=strict)]
    )
    seen: Counter[str] = Counter()
    acks = os.open(folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def said(*words: object) -> None:
        os.write(acks, (" ".join(map(str, words)) + "\n").encode())

    try:
        ledger = SQLiteLedger(folder / "costs.db", linger_s=0.0)
    except LedgerError as error:
        print(json.dumps({"opening": error.reason}))
        return 0
    settled: list[tuple[int, int, int | None]] = []
    for number in range(count):
        at = AT + number * 600.0
        user, tags = chance.choice([None, "ann", "bob"]), tuple(chance.sample(["x", "y", "z"], chance.randint(0, 2)))
        bound = chance.randint(1, 10**6)
        draft = Draft(
            f"run-{number}", "fake:model", "fake", "model", at, Ask(bound, bound),
            budgets.claims(at, "fake:model", user, tags), user, tags,
        )  # fmt: skip
        try:
            at_once = chance.random() < 0.7
            ticket = ledger.reserve(draft, dispatch=at_once)
            if not isinstance(ticket, Ticket):
                seen["denied"] += 1
                continue
            if ticket.id is not None:
                said("D" if at_once else "R", ticket.id, bound)
            else:
                seen["begun, and waits to be written"] += 1
            if not at_once and ledger.dispatch(ticket) and ticket.id is not None:
                said("D", ticket.id, bound)
        except LedgerError as error:
            seen[f"refused: {error.reason}"] += 1
            continue
        fate = chance.choice([EntryStatus.POSTED, EntryStatus.POSTED, EntryStatus.UNKNOWN, EntryStatus.VOIDED])
        cost = {EntryStatus.POSTED: chance.randint(0, bound), EntryStatus.UNKNOWN: None}.get(fate, 0)
        entry = draft.opened(fate, bound)
        usage = Usage(chance.randint(0, 99), chance.randint(0, 99), estimated=fate is EntryStatus.UNKNOWN)
        ledger.settle(ticket, ended(entry, cost, usage))
        seen[str(fate)] += 1
        if ticket.id is not None:
            settled.append((ticket.id, {EntryStatus.POSTED: 2, EntryStatus.VOIDED: 3}.get(fate, 4), cost))
        if chance.random() < 0.4 and ledger.flush() is not False:
            for row in settled:
                said("S", *row)
            settled.clear()
    if ledger.flush() is not False:
        for row in settled:
            said("S", *row)
    trouble = ledger.trouble
    try:
        ledger.close()
    except LedgerError as error:
        seen[f"closing: {error.reason}"] += 1
    said("E")
    print(json.dumps({"seen": dict(seen), "trouble": trouble, "waiting": ledger.waiting, "lost": ledger.lost}))
    return 0


def ended(entry: LedgerEntry, cost: int | None, usage: Usage) -> LedgerEntry:
    """The row with what became of its attempt."""
    outcome = "answered" if entry.status is EntryStatus.POSTED else "failed"
    return replace(entry, attempt=1, outcome=outcome, cost_nano=cost, usage=usage, latency_s=0.25)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
