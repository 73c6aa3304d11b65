"""Many processes at one hard budget, against a server that fails in every way, while some of them are killed.

python -m tools.money_trials crowd --runs 200 --processes 32 --kills 10

The server counts what it would bill, request by request. That may never pass the limit; every request that it has seen
has a row in the ledger; and what the budget allows is used.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from shared_core import Price
from shared_core import Usage as Tokens
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.testing import Answer, Fault, FaultServer, Usage
from tools.money_trials.caller import WORDS, Plan, call_until_refused
from tools.money_trials.place import folder
from tools.money_trials.power import check_books

__all__ = ["context", "crowd", "run"]

PATIENCE_S = 600.0
"""A run whose callers are not home by then hangs."""
REFUSING = (503, 429, 529)
"""Statuses that no vendor bills."""
VAGUE = (500, 502, 504)
"""Statuses after which nobody knows: the server has billed half of them."""


@dataclass
class _Bill:
    """What the server would bill. The server's thread writes it."""

    prices: dict[str, Price]
    chance: random.Random
    nano: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests by call and model."""
    kinds: Counter[str] = field(default_factory=Counter)

    def answer(self, ask: Any) -> Answer | Fault:
        """What one request gets, and what it costs."""
        chance = self.chance
        said = (str(message.get("content")) for message in ask.body["messages"])
        call = next((text[1 : text.index("]")] for text in said if text.startswith("[")), "?")
        self.seen[call, ask.model] += 1
        # A token is a byte at least; what comes out is limited by what the request says.
        given = chance.randint(1, max(1, len(ask.prompt.encode())))
        most = ask.body.get("max_completion_tokens") or ask.body.get("max_tokens")
        if most is None:
            self.kinds["WITHOUT A LIMIT"] += 1
        out = chance.randint(1, max(1, min(most or 10_000, 500)))
        price = self.prices[ask.model].cost_nano(Tokens(given, out))
        text = " ".join(chance.choices(WORDS, k=8))
        answer = Answer(
            text, usage=Usage(prompt_tokens=given, completion_tokens=out), every_s=chance.choice([0, 0, 0.002])
        )
        roll = chance.random()
        if roll < 0.62:
            kind: str = "answered"
        elif roll < 0.74:
            kind = "refused"
        elif roll < 0.80:
            kind = "vague"
        elif roll < 0.90:
            kind = "cut"
        elif roll < 0.96:
            kind = "reset"
        elif roll < 0.98:
            kind = "silent"
        else:
            kind = "uncounted"
        self.kinds[kind] += 1
        if kind == "refused":
            return Fault("status", status=chance.choice(REFUSING), retry_after=0)
        if kind == "vague":
            self.nano += price if chance.random() < 0.5 else 0
            return Fault("status", status=chance.choice(VAGUE))
        self.nano += price
        if kind == "cut":
            return Fault("cut", after_words=chance.randint(1, 6), answer=answer)
        if kind == "reset":
            return Fault("reset-before-headers")
        if kind == "silent":
            return Fault("no-response")
        if kind == "uncounted":
            return Fault("usage-missing", answer=Answer(text))
        return answer


def _plan(seed: str, url: str, path: Path, chance: random.Random, answers: int) -> tuple[Plan, dict[str, Price]]:
    models = ("first", "second", "third")
    prices = tuple(
        (name, f"{chance.uniform(0.05, 5):.3f}", f"{chance.uniform(0.2, 20):.3f}")
        for name in models[: chance.randint(2, 3)]
    )
    mean = sum(float(out) for _, _, out in prices) / len(prices) * 1e-6 * 150
    limit = f"{mean * chance.randint(answers, 3 * answers):.9f}"
    own = ((prices[0][0], f"{float(limit) * 0.4:.9f}"),) if chance.random() < 0.5 else ()
    plan = Plan(seed, url, str(path), limit, prices, chance.randint(0, 2), own_limits=own)
    return plan, {name: Price(input=Decimal(in_), output=Decimal(out)) for name, in_, out in prices}


_CONTEXT: Any = None


def context() -> Any:
    """Callers are forked from a process that has imported everything and has no threads."""
    global _CONTEXT  # noqa: PLW0603  # one server of forks for all runs
    if _CONTEXT is None:
        _CONTEXT = multiprocessing.get_context("forkserver")
        _CONTEXT.set_forkserver_preload(["tools.money_trials.warm"])
    return _CONTEXT


def run(*, seed: object = 1, processes: int = 32, kills: int = 5, answers: int = 500) -> dict[str, Any]:
    """One run, with a budget for so many usual answers or more; its figures, and under `faults` what may not be."""
    chance = random.Random(f"crowd/{seed}")
    forks = context()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each killed caller
    begun = time.monotonic()
    with folder("crowd") as place:
        path = Path(place) / "costs.db"
        with FaultServer() as server:
            plan, prices = _plan(str(seed), server.openai_url, path, chance, answers)
            bill = _Bill(prices, random.Random(f"server/{seed}"))
            server.script("*", bill.answer)
            SQLiteLedger(path).close()
            live: list[BaseProcess] = []
            number = 0

            def start() -> None:
                nonlocal number
                number += 1
                process = forks.Process(target=call_until_refused, args=(plan, number), daemon=True)
                process.start()
                live.append(process)

            for _ in range(processes):
                start()
            killed, odd = _kill(live, kills, chance, start)
            faults = [f"a caller ended with {code}" for code in odd]
            faults += [f"{len(hung)} callers hang" for hung in [_wait(live, begun)] if hung]
            time.sleep(0.05)
        faults += _books(path, bill)
        if bill.kinds["WITHOUT A LIMIT"]:
            faults.append(f"{bill.kinds['WITHOUT A LIMIT']} requests had no limit on their output")
        held, limit = _held(path), round(float(plan.limit_usd) * 1e9)
        if bill.nano > int(Decimal(plan.limit_usd) * 10**9):
            faults.append(f"OVERSPENT: {bill.nano} of {limit}")
        with sqlite3.connect(path) as connection:
            rows = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
        connection.close()
    return {
        "seed": str(seed),
        "requests": sum(bill.seen.values()),
        "rows": rows,
        "killed": killed,
        "limit_nano": limit,
        "served_nano": bill.nano,
        "served_share": round(bill.nano / limit, 4),
        "used_share": round(held / limit, 4),
        "kinds": dict(bill.kinds),
        "seconds": round(time.monotonic() - begun, 2),
        "faults": faults,
    }


def _kill(live: list[BaseProcess], kills: int, chance: random.Random, start: Any) -> tuple[int, list[int]]:
    """Kill callers at moments nobody chose, and send others in their place; returns how many, and odd exit codes."""
    killed, odd, ended = 0, [], time.monotonic() + PATIENCE_S
    while True:
        for process in list(live):
            if process.exitcode is not None:
                live.remove(process)
                if process.exitcode not in (0, -signal.SIGKILL):
                    odd.append(process.exitcode)
        if not live or time.monotonic() > ended:
            return killed, odd
        if killed < kills:
            time.sleep(chance.uniform(0.0, 0.1))
            victim = chance.choice(live)
            if victim.pid is not None and victim.exitcode is None:
                os.kill(victim.pid, signal.SIGKILL)
                killed += 1
                start()
        else:
            time.sleep(0.02)


def _wait(live: list[BaseProcess], begun: float) -> list[BaseProcess]:
    hung = [process for process in live if process.exitcode is None and time.monotonic() - begun > PATIENCE_S]
    for process in hung:
        process.kill()
    return hung


def _books(path: Path, bill: _Bill) -> list[str]:
    """What is wrong in the file, and which requests have no row."""
    with SQLiteLedger(path) as ledger:  # closes what the killed ones have left
        left = [row for row in ledger.entries() if row.status.open]
    found = [f"row {row.id} is still open" for row in left]
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        found += check_books(connection)
        rows: Counter[tuple[str, str]] = Counter()
        query = (
            "SELECT g.name, t.name, count(*) FROM entries e JOIN tag_of o ON o.tags = e.tags "
            "JOIN names g ON g.id = o.tag JOIN names t ON t.id = e.target WHERE e.state >= 1 GROUP BY 1, 2"
        )
        for call, target, count in connection.execute(query):
            rows[call, target.removeprefix("openai:")] = count
        for key, seen in bill.seen.items():
            if rows[key] < seen:
                found.append(f"{seen - rows[key]} requests of call {key[0]} to {key[1]} have no row")
    finally:
        connection.close()
    return found


def _held(path: Path) -> int:
    """What the budget counts in the end: posted, and unknown at its bound."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        (held,) = connection.execute(
            "SELECT posted + pending + unknown FROM meters WHERE scope = 'global'"
        ).fetchone() or (0,)
        return int(held)
    finally:
        connection.close()


def crowd(
    *,
    runs: int = 5,
    seed: int = 1,
    processes: int = 32,
    kills: int = 5,
    tell: bool = False,
    together: int = 1,
    minutes: float = math.inf,
) -> dict[str, Any]:
    """`runs` runs, each from a seed of its own, `together` of them at a time, each on a file and with a server of its
    own; the figures of all. After `minutes` none is begun.
    """
    seeds, until = [f"{seed}-{index}" for index in range(runs)], time.monotonic() + 60 * minutes
    found = []
    for one in _runs(seeds, until, together, processes=processes, kills=kills):
        found.append(one)
        if tell:
            print(
                f"  {one['seed']}: {one['requests']} requests, {one['killed']} killed, "
                f"served {one['served_share']:.1%}, used {one['used_share']:.1%} in {one['seconds']} s",
                *one["faults"],
                flush=True,
            )
    return {
        "runs": len(found),
        "processes": processes,
        "seed": seed,
        "requests": sum(one["requests"] for one in found),
        "rows": sum(one["rows"] for one in found),
        "killed": sum(one["killed"] for one in found),
        "overspent": sum(one["served_nano"] > one["limit_nano"] for one in found),
        "most_served_share": max(one["served_share"] for one in found),
        "least_used_share": min(one["used_share"] for one in found),
        "mean_used_share": round(sum(one["used_share"] for one in found) / len(found), 4),
        "requests_without_a_row": sum("have no row" in fault for one in found for fault in one["faults"]),
        "faults": [f"{one['seed']}: {fault}" for one in found for fault in one["faults"]][:50],
    }


def _runs(seeds: Sequence[str], until: float, together: int, **options: int) -> Iterator[dict[str, Any]]:
    """What came of each; the first is always run."""
    if together <= 1:
        for number, seed in enumerate(seeds):
            if number and time.monotonic() > until:
                return
            yield run(seed=seed, **options)
        return
    with ProcessPoolExecutor(together, mp_context=multiprocessing.get_context("spawn")) as pool:
        left = iter(seeds)
        asked = {pool.submit(run, seed=seed, **options) for seed in islice(left, together)}
        while asked:
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            if time.monotonic() <= until:
                asked |= {pool.submit(run, seed=seed, **options) for seed in islice(left, len(done))}
            for one in done:
                yield one.result()
