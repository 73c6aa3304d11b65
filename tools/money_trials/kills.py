"""Kill -9, again and again: whoever was sent a request has its row, and the budget holds.

python -m tools.money_trials kills --kills 500

Several processes reserve, send and settle as fast as they can on one file, each until it is killed, and another takes
its place. What they send is a datagram with the row's number, its bound, and the cost that is then billed; the receiver
is the vendor's server.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

from shared_core.chat.events import Usage
from shared_core.errors import LedgerError
from shared_core.ledger.entry import EntryStatus
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.ledger.store import Draft, Ticket
from shared_core.resilience.budget import Ask, Budget, Budgets
from tools.money_trials.crowd import context
from tools.money_trials.place import folder
from tools.money_trials.power import check_books
from tools.money_trials.work import ended

__all__ = ["kills", "spend_until_killed"]

LIMIT_USD = 1000
TOGETHER = 4
"""Processes at a time."""
PATIENCE_S = 1.0
"""Nobody is waited for longer before the next one is killed."""


def spend_until_killed(path: str, address: str, seed: str) -> None:
    """Reserve, send, settle; settle some late, some never, give some up."""
    chance = random.Random(seed)
    budgets = Budgets([Budget(LIMIT_USD, window="total"), Budget(LIMIT_USD, window="day", scope="user")])
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ledger = SQLiteLedger(path)
    late: list[tuple[Ticket, Any]] = []
    while True:
        bound = chance.randint(1_000, 10_000_000)
        user = chance.choice([None, "ann", "bob"])
        at = time.time()
        draft = Draft(
            f"{os.getpid()}", "fake:model", "fake", "model", at, Ask(bound, bound),
            budgets.claims(at, "fake:model", user, ()), user,
        )  # fmt: skip
        try:
            at_once = chance.random() < 0.6
            ticket = ledger.reserve(draft, dispatch=at_once)
            if not isinstance(ticket, Ticket):
                continue
            if not at_once:
                if chance.random() < 0.1:
                    ledger.settle(ticket, ended(draft.opened(EntryStatus.VOIDED, bound), 0, Usage()))
                    continue
                ledger.dispatch(ticket)
        except LedgerError:
            continue
        cost = chance.randint(0, bound)
        wire.sendto(f"{ticket.id} {bound} {cost}".encode(), address)
        fate = chance.choice([EntryStatus.POSTED, EntryStatus.POSTED, EntryStatus.UNKNOWN])
        entry = ended(draft.opened(fate, bound), cost if fate is EntryStatus.POSTED else None, Usage(1, 1))
        if chance.random() < 0.8:
            ledger.settle(ticket, entry)
        else:
            late.append((ticket, entry))
        if late and chance.random() < 0.2:
            ledger.settle(*late.pop())


def kills(*, count: int = 500, seed: int = 1) -> dict[str, Any]:
    """Kill `count` processes; then compare what the server was sent with the rows."""
    chance = random.Random(f"kills/{seed}")
    logging.getLogger("llm_fallback.ledger").setLevel(logging.ERROR)  # it tells what each dead process has left
    begun = time.monotonic()
    sent: dict[int, tuple[int, int]] = {}
    unwritten: list[bytes] = []
    with folder("kills") as place:
        path, address = Path(place) / "costs.db", f"{place}/wire"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(address)
        server.setblocking(False)
        SQLiteLedger(path).close()

        def receive() -> None:
            while True:
                try:
                    words = server.recv(200).split()
                except BlockingIOError:
                    return
                if words[0] == b"None":
                    unwritten.append(words[0])
                    continue
                number, bound, cost = map(int, words)
                if number in sent:
                    raise RuntimeError(f"row {number} was used twice")
                sent[number] = (bound, cost)

        def start(number: int) -> Any:
            process = context().Process(
                target=spend_until_killed, args=(str(path), address, f"{seed}/{number}"), daemon=True
            )
            process.start()
            return process

        live, killed = [start(number) for number in range(TOGETHER)], 0
        while killed < count:
            # Some are killed before they have sent anything, the rest in the middle of everything.
            enough, until = len(sent) + chance.choice([0, *range(1, 40)]), time.monotonic() + PATIENCE_S
            while len(sent) < enough and time.monotonic() < until:
                time.sleep(0.001)
                receive()
            victim = live.pop(chance.randrange(len(live)))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            killed += 1
            if killed <= count - TOGETHER:
                live.append(start(TOGETHER + killed))
        receive()
        server.close()
        with SQLiteLedger(path) as ledger:
            ledger.flush()
        faults = _compare(path, sent)
        if unwritten:
            faults.append(f"{len(unwritten)} requests have no row, and were sent")
        connection = sqlite3.connect(path)
        states = Counter(state for (state,) in connection.execute("SELECT state FROM entries"))
        connection.close()
    return {
        "kills": killed,
        "seed": seed,
        "requests": len(sent),
        "rows": sum(states.values()),
        "rows_lost_with_their_process": states[4],
        "missing_rows": sum("no row" in fault for fault in faults) + len(unwritten),
        "seconds": round(time.monotonic() - begun, 1),
        "faults": faults[:20],
    }


def _compare(path: Path, sent: dict[int, tuple[int, int]]) -> list[str]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        faults = check_books(connection)
        rows = {number: rest for number, *rest in connection.execute("SELECT id, state, bound, cost FROM entries")}
        (spent,) = connection.execute(
            "SELECT ifnull(sum(posted + unknown), 0) FROM meters WHERE scope = 'global'"
        ).fetchone()
    finally:
        connection.close()
    for number, (bound, cost) in sent.items():
        row = rows.get(number)
        if row is None:
            faults.append(f"request {number} has no row")
        elif row[0] < 2:
            faults.append(f"row {number} is still open, its process dead")
        elif row[0] == 3:
            faults.append(f"row {number} was sent, and is voided")
        elif row[1] != bound or (row[0] == 2 and row[2] != cost):
            faults.append(f"row {number} is {row}, was sent as {bound}, {cost}")
    billed = sum(cost for _, cost in sent.values())
    if billed > spent:
        faults.append(f"the server has billed {billed}, the budget counts {spent}")
    return faults
