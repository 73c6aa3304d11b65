"""What money costs in time: a reservation and its settlement, durable calls, and a loop that must not stall."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from decimal import Decimal
from itertools import count
from pathlib import Path

from benchmarks.core import REQUEST, Instant
from benchmarks.measure import Row, per_call_us, row
from shared_core import Budget, MemoryLedger, Price, Router, SQLiteLedger, Target, Usage
from shared_core.ledger._writer import RESERVE, SETTLE, Op
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.store import Draft, LedgerStore, Ticket
from shared_core.resilience.budget import Ask, Budgets

__all__ = ["measure"]

_CALLERS = 16
_PIECES = 5
_COMPANY = 64
_BUDGETS = Budgets([Budget(Decimal(9_000_000_000), "day")])
_ASK = Ask(1_000_000, 1_000_000)
_USAGE = Usage(1000, 100)
_NUMBERS = count()


def _draft(budgets: Budgets = _BUDGETS) -> Draft:
    at = time.time()
    claims = budgets.claims(at, "openai:gpt")
    return Draft(f"bench-{next(_NUMBERS)}", "openai:gpt", "openai", "gpt", at, _ASK, claims, "ann")


def _entry(of: Draft) -> LedgerEntry:
    return LedgerEntry(
        of.execution, 1, of.target, of.provider, of.model, of.at, "answered", EntryStatus.POSTED, _USAGE, 700_000,
        1_000_000, 0.5, user=of.user,
    )  # fmt: skip


def _pairs_us(ledger: LedgerStore, number: int, budgets: Budgets = _BUDGETS) -> float:
    """The median time of a reservation and its settlement, as its caller sees it, in microseconds."""
    took = []
    for _ in range(number):
        of = _draft(budgets)
        entry = _entry(of)
        begun = time.perf_counter()
        ticket = ledger.reserve(of, dispatch=True)
        assert isinstance(ticket, Ticket)
        ledger.settle(ticket, entry)
        took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1e6


def _crowd(ledger: SQLiteLedger, callers: int, seconds: float) -> tuple[float, float]:
    """Durable calls in a second of so many callers on one event loop, and the longest the loop did not turn, in ms."""

    async def run() -> tuple[float, float]:
        done, worst = 0, 0.0
        until = time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < until:
                of = _draft()
                ticket = await ledger.areserve(of, dispatch=True)
                assert isinstance(ticket, Ticket)
                ledger.settle(ticket, _entry(of))
                done += 1

        async def watch() -> None:
            nonlocal worst
            while time.perf_counter() < until:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                worst = max(worst, time.perf_counter() - before - 0.001)

        begun = time.perf_counter()
        await asyncio.gather(watch(), *(caller() for _ in range(callers)))
        return done / (time.perf_counter() - begun), worst * 1000

    return asyncio.run(run())


def _company_us(ledger: SQLiteLedger, number: int) -> float:
    """The median of what one reservation and its settlement take of the writer when so many share its commits, both
    commits and their `fsync`s included, in microseconds.
    """
    took = []
    for _ in range(number):
        drafts = [Op(RESERVE, _draft(), dispatch=True) for _ in range(_COMPANY)]
        begun = time.perf_counter()
        ledger._writer.write(drafts)
        middle = time.perf_counter()
        settled = [Op(SETTLE, op.result, _entry(op.subject)) for op in drafts]
        again = time.perf_counter()
        ledger._writer.write(settled)
        took.append((middle - begun + time.perf_counter() - again) / _COMPANY)
    return statistics.median(took) * 1e6


def _sync_us(folder: Path) -> float:
    """The time of one `fsync` of a small append: what no durable row can be faster than, alone."""
    took = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            begun = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1e6


def measure(rounds: int, number: int) -> list[Row]:
    """All rows of money. Files are made in the system's folder for such."""
    rows: list[Row] = []
    plain = Router(Target(provider=Instant(), price=Price(1, 2)))
    held = Router(Target(provider=Instant(), price=Price(1, 2)), budgets=[Budget(Decimal(9_000_000_000), "day")])
    without, with_one = per_call_us(
        lambda: plain.invoke(REQUEST), lambda: held.invoke(REQUEST), rounds=rounds, number=number
    )
    added = statistics.median(b - a for a, b in zip(without, with_one, strict=True))
    rows.append(row("a budget in memory adds to a routed call", "us", added))
    best = min(_pairs_us(MemoryLedger(), number) for _ in range(rounds))
    rows.append(row("reserve and settle, in memory", "us", best, at_most=8))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows.append(row("one fsync on this machine's disk", "us", _sync_us(folder)))
        with SQLiteLedger(folder / "alone.db") as ledger:
            rows.append(row("reserve and settle, on disk, one caller", "us", _pairs_us(ledger, max(200, number // 4))))
        seconds = 0.4 * rounds
        with SQLiteLedger(folder / "crowd.db") as ledger:
            crowds = [_crowd(ledger, _CALLERS, seconds / _PIECES) for _ in range(_PIECES)]
            rate = statistics.median(rate for rate, _ in crowds)
            rows.append(row(f"durable calls of {_CALLERS} callers", "/s", rate, at_least=5000))
            # A loop that has nothing to do is late, too, where others take the processor from it: that is taken off.
            # The quietest piece counts.
            stall = min(max(0.0, late - _crowd(ledger, 0, seconds / _PIECES)[1]) for _, late in crowds)
            rows.append(row("event loop stall meanwhile", "ms", stall, at_most=5))
        with SQLiteLedger(folder / "many.db") as ledger:
            rate, _ = _crowd(ledger, 128, seconds)
            rows.append(row("durable calls of 128 callers", "/s", rate))
        with SQLiteLedger(folder / "company.db") as ledger:
            us = _company_us(ledger, max(20, number // 20))
            rows.append(row(f"reserve and settle, on disk, {_COMPANY} to a commit", "us", us, at_most=60))
    return rows
