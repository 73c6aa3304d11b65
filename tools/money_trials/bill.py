"""Thousands of mixed calls on three wires, and the bill that the server writes meanwhile: the same to the nano-dollar.

python -m tools.money_trials bill --calls 10000

The server counts in fractions, by itself. What it has reported must be the ledger's reported cost exactly; what nobody
was told is unknown, within its bound, or estimated, and in neither figure. Then the server's bill is imported as a
vendor's, and after that the ledger's cost is the bill's.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from shared_core import (
    Budget,
    ChatRequest,
    Price,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    ToolSpec,
    router_options,
    user,
)
from shared_core.errors import AllTargetsFailed, StreamBroken
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.reconcile import reconcile
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.resilience.breaker import BreakerConfig
from shared_core.testing import Answer, Fault, FaultServer, ToolCall, Usage
from tools.money_trials.caller import WORDS
from tools.money_trials.place import folder

__all__ = ["bill"]

TOOL = ToolSpec("look_up", "Look something up.", {"type": "object", "properties": {"what": {"type": "string"}}})
VENDORS = ("openai", "anthropic", "google")


@dataclass(frozen=True)
class _Rates:
    """Dollars per million tokens, as text: the ledger reads them as decimals, the server as fractions."""

    fresh: str
    out: str
    cached: str
    written: str
    request: str

    def price(self) -> Price:
        return Price(
            input=self.fresh, output=self.out, cached=self.cached, cache_write=self.written, request=self.request
        )

    def nano(self, usage: Usage) -> int:
        """What one answer costs, rounded up to whole nano-dollars."""
        given, out = usage.prompt_tokens or 0, usage.completion_tokens or 0
        fresh = given - usage.cached_tokens - usage.cache_write_tokens
        parts = ((fresh, self.fresh), (usage.cached_tokens, self.cached), (usage.cache_write_tokens, self.written),
                 (out, self.out))  # fmt: skip
        dollars = sum((Fraction(rate) * count / 10**6 for count, rate in parts), Fraction(self.request))
        return math.ceil(dollars * 10**9)


@dataclass
class _Request:
    """What the server made of one request."""

    call: str
    model: str
    nano: int
    kind: str


@dataclass
class _Server:
    """Answers, and keeps the bill. Runs in the server's thread."""

    rates: dict[str, _Rates]
    chance: random.Random
    seen: list[_Request] = field(default_factory=list)

    def answer(self, ask: Any) -> Answer | Fault:
        chance, model = self.chance, ask.model
        call = _call_of(ask.body)
        # A token is a byte at least.
        most = len(ask.prompt.encode())
        usage = Usage(
            prompt_tokens=(given := chance.randint(most // 3, most)),
            completion_tokens=(out := chance.randint(1, 400)),
            cached_tokens=(cached := chance.choice([0, 0, chance.randint(0, given // 2)])),
            cache_write_tokens=chance.choice([0, chance.randint(0, (given - cached) // 2)])
            if ask.wire == "anthropic"
            else 0,
            reasoning_tokens=chance.choice([0, chance.randint(0, out)]) if ask.wire != "anthropic" else 0,
        )
        tools = [ToolCall("look_up", {"what": chance.choice(WORDS)})] if ask.tools and chance.random() < 0.7 else []
        answer = Answer(" ".join(chance.choices(WORDS, k=chance.randint(1, 12))), usage=usage, tool_calls=tools)
        roll, kind, step = chance.random(), "told", None
        if roll < 0.05:
            kind, step = "refused", Fault("status", status=503)
        elif roll < 0.10:
            kind, step = "cut", Fault("cut", after_words=1, answer=answer)
        elif roll < 0.13:
            kind, step = "reset", Fault("reset-before-headers")
        elif roll < 0.16:
            kind, step = "uncounted", Fault("usage-missing", answer=Answer(answer.text))
        self.seen.append(_Request(call, model, 0 if kind == "refused" else self.rates[model].nano(usage), kind))
        return step or answer


def _call_of(body: Any) -> str:
    """The call's number, wherever it stands in the vendor's JSON."""
    text = str(body)
    start = text.index("[call ") + 6
    return text[start : text.index("]", start)]


def bill(*, calls: int = 10_000, seed: int = 1, together: int = 24) -> dict[str, Any]:
    """Make the calls, compare, reconcile, compare again."""
    return asyncio.run(_bill(calls, seed, together))


async def _bill(calls: int, seed: int, together: int) -> dict[str, Any]:
    chance = random.Random(f"bill/{seed}")
    models = [f"{vendor}-{size}" for vendor in VENDORS for size in ("small", "large")]
    rates = {}
    for model in models:
        fresh, out, cached, written = (f"{chance.uniform(0.01, most):.4f}" for most in (5, 25, 0.5, 6.25))
        rates[model] = _Rates(fresh, out, cached, written, f"{chance.choice([0, 0.0001])}")
    server = _Server(rates, random.Random(f"bill-server/{seed}"))
    begun = time.monotonic()
    with folder("bill") as place, FaultServer() as faults:
        faults.script("*", server.answer)
        urls = {"openai": faults.openai_url, "anthropic": faults.anthropic_url, "google": faults.google_url}
        options: dict[str, Any] = {}
        if "hedge" in router_options():
            options["hedge"] = {"after": 0.015, "min_s": 0.0, "budget": 0.2}
        router = Router(
            [
                Target(f"{model.partition('-')[0]}:{model}", base_url=urls[model.partition("-")[0]], api_key="any",
                       price=rates[model].price())
                for model in models
            ],
            strategy="round_robin",
            ledger=str(Path(place) / "costs.db"),
            # Under a hard budget an answer without usage is booked at its bound, under a soft one as an estimate.
            budgets=[Budget(10**6, window="total", hard=seed % 2 == 0)],
            retry=RetryPolicy(base_s=0.001, overloaded_base_s=0.001, cap_s=0.002),
            breaker=BreakerConfig(consecutive_failures=10**6, failure_rate=1.0, minimum_calls=10**6),
            timeouts=Timeouts(first_token=10, idle=10, attempt=10, total=60),
            **options,
        )  # fmt: skip
        ways: Counter[str] = Counter()
        queue = iter(range(calls))

        async def caller() -> None:
            for number in queue:
                await _one(router, number, random.Random(f"call/{seed}/{number}"), ways)

        await asyncio.gather(*(caller() for _ in range(together)))
        await router.aclose()
        with SQLiteLedger(Path(place) / "costs.db") as ledger:
            rows = ledger.entries()
            found = _compare(server, rows)
            report = ledger.costs()
            reported = report.total.cost_nano
            told = sum(request.nano for request in server.seen if request.kind == "told")
            unread = sum(entry.status is EntryStatus.UNKNOWN for entry in rows)
            after = _reconciled(ledger, server, rows)
    return {
        "calls": calls,
        "seed": seed,
        "wires": len(VENDORS),
        "requests": len(server.seen),
        "rows": len(rows),
        "ways": dict(ways),
        "kinds": dict(Counter(request.kind for request in server.seen)),
        "with_unknown_outcome": unread,
        "hedged": bool(options),
        "reported_nano": reported,
        "estimated_nano": report.total.estimated_nano,
        "unknown_bound_nano": report.total.unknown_nano,
        "billed_nano": sum(request.nano for request in server.seen),
        "told_nano": told,
        **after,
        "difference_nano": found.pop("difference_nano"),
        "seconds": round(time.monotonic() - begun, 1),
        "faults": found["faults"][:20],
    }


async def _one(router: Router, number: int, chance: random.Random, ways: Counter[str]) -> None:
    """One call, in one of the ways."""
    text = f"[call {number}] " + " ".join(chance.choices(WORDS, k=chance.randint(3, 40)))
    tools = (TOOL,) if chance.random() < 0.3 else ()
    request = ChatRequest(
        (user(text),), max_tokens=chance.choice([None, 400, 1000]), tools=tools, tags=(f"call {number}",)
    )
    way = chance.choice(["whole", "whole", "streamed", "streamed", "sync", "left", "cancelled"])
    ways[way] += 1
    try:
        if way == "whole":
            await router.ainvoke(request)
        elif way == "streamed":
            async for _ in router.astream(request):
                pass
        elif way == "sync":
            await asyncio.to_thread(router.invoke, request)
        elif way == "left":
            async for _ in router.astream(request):
                break
        else:
            task = asyncio.ensure_future(router.ainvoke(request))
            await asyncio.sleep(chance.uniform(0, 0.03))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    except (AllTargetsFailed, StreamBroken):
        ways["failed"] += 1


def _compare(server: _Server, rows: Any) -> dict[str, Any]:
    """Each call's requests at each model against its rows there."""
    requests: dict[tuple[str, str], list[_Request]] = defaultdict(list)
    for request in server.seen:
        requests[request.call, request.model].append(request)
    entries: dict[tuple[str, str], list[LedgerEntry]] = defaultdict(list)
    for entry in rows:
        entries[entry.tags[0].removeprefix("call "), entry.target.partition(":")[2]].append(entry)
    faults: list[str] = []
    difference = 0
    for key, billed in requests.items():
        booked = entries.get(key, [])
        if len(booked) < len(billed):
            faults.append(f"call {key}: {len(billed)} requests, {len(booked)} rows")
            continue
        told = [request.nano for request in billed if request.kind == "told"]
        # A call has few requests at one model; what was posted must be among what was told, each once.
        for entry in booked:
            if entry.status is EntryStatus.POSTED:
                if entry.cost_nano in told:
                    told.remove(entry.cost_nano)
                else:
                    nearest = min(told, key=lambda nano: abs(nano - (entry.cost_nano or 0)), default=0)
                    difference += (entry.cost_nano or 0) - nearest
                    faults.append(f"call {key}: posted {entry.cost_nano}, told {told}")
        # What was told to nobody who listened to the end is unknown, and within its bound.
        bounds = sum(entry.bound_nano or 0 for entry in booked if entry.status is EntryStatus.UNKNOWN)
        if sum(told) > bounds:
            faults.append(f"call {key}: {told} told and not booked, bounds {bounds}")
        wrong = [entry for entry in booked if entry.status is EntryStatus.ESTIMATED and not entry.usage.estimated]
        faults += [f"call {key}: row {entry.id} is not flagged as estimated" for entry in wrong]
    return {"difference_nano": difference, "faults": faults}


def _reconciled(ledger: SQLiteLedger, server: _Server, rows: Any) -> dict[str, Any]:
    """Import the server's bill as the vendors', and compare the totals: after that there is no difference left."""
    days = {datetime.fromtimestamp(entry.at, UTC).date() for entry in rows}
    posted = resolved = again = 0
    if len(days) != 1:
        return {"reconciled": None}  # midnight fell into the run: which request is whose day's, only a vendor could say
    (day,) = days
    later = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + 2 * 86400
    for vendor in VENDORS:
        sums: Counter[str] = Counter()
        for request in server.seen:
            if request.model.startswith(vendor):
                sums[request.model] += request.nano
        export = [
            {"date": day.isoformat(), "model": model, "cost_usd": f"{nano // 10**9}.{nano % 10**9:09}"}
            for model, nano in sums.items()
        ]
        found = reconcile(ledger, export, vendor, now=later)
        posted, resolved = posted + found.posted, resolved + found.resolved
        again += reconcile(ledger, export, vendor, now=later).posted
    total = ledger.costs().total
    billed = sum(request.nano for request in server.seen)
    return {
        "reconciled": {
            "corrections": posted,
            "unknown_resolved": resolved,
            "posted_by_a_second_import": again,
            "difference_nano": total.cost_nano + total.estimated_nano - billed,
            "unknown_left_nano": total.unknown_nano,
        }
    }
