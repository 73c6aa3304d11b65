"""One process of a crowd: calls until the budget is used up, in every way there is, and may be killed at any moment."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from shared_core import Budget, ChatRequest, Price, RetryPolicy, Router, Target, Timeouts, user
from shared_core.errors import AllTargetsFailed, BudgetExceeded, FallbackError, StreamBroken
from shared_core.resilience.breaker import BreakerConfig

__all__ = ["Plan", "call_until_refused", "preload"]

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "asks",
    "for",
    "a",
    "second",
    "opinion",
)
PATIENCE_S = 120.0
"""For so long a caller waits for what others have set aside, and may not need."""
REFUSALS = 3
"""A caller goes home when it was refused this often in a row."""


@dataclass(frozen=True)
class Plan:
    """What the callers of one run do. Prices are dollars per million tokens, in and out."""

    seed: str
    url: str
    path: str
    limit_usd: str
    prices: tuple[tuple[str, str, str], ...]
    """Model, input, output."""
    retries: int
    limits: tuple[int | None, ...] = (*(16, 64, 200, 200) * 10, None)
    """Output limits of requests; None leaves it to the budget."""
    own_limits: tuple[tuple[str, str], ...] = field(default=())
    """Targets with a budget of their own, and its dollars."""


def preload() -> None:
    """Import what callers need, and read tables and certificates, before they are forked: by calls of nobody."""
    nobody = Target("openai:m", base_url="http://127.0.0.1:9", api_key="any", price=Price(input=1, output=1))
    with tempfile.TemporaryDirectory(prefix="money-warm-") as place:
        for way in ("invoke", "stream", "ainvoke"):
            router = Router([nobody], retry=RetryPolicy(total=0), ledger=f"{place}/costs.db", budgets=[Budget(1)])
            try:
                if way == "ainvoke":
                    asyncio.run(_nowhere(router))
                else:
                    list(getattr(router, way)("Hi"))
            except FallbackError:
                router.close()


async def _nowhere(router: Router) -> None:
    try:
        await router.ainvoke("Hi")
    finally:
        await router.aclose()


def _router(plan: Plan) -> Router:
    budgets = [Budget(plan.limit_usd, window="total")]
    budgets += [Budget(limit, window="day", scope="target", of=f"openai:{name}") for name, limit in plan.own_limits]
    return Router(
        [
            Target(
                f"openai:{model}",
                base_url=plan.url,
                api_key="any",
                price=Price(input=Decimal(in_), output=Decimal(out)),
            )
            for model, in_, out in plan.prices
        ],
        ledger=plan.path,
        budgets=budgets,
        retry=RetryPolicy(total=plan.retries, base_s=0.001, overloaded_base_s=0.001, cap_s=0.005),
        # Circuits stay closed: whoever is turned away by one meets no budget.
        breaker=BreakerConfig(consecutive_failures=10**6, failure_rate=1.0, minimum_calls=10**6),
        timeouts=Timeouts(first_token=0.4, attempt=0.4, idle=0.4, total=20),
    )


def call_until_refused(plan: Plan, number: int) -> None:
    """Call whole and streamed, sync and async, leave early, cancel; go home when the budget has nothing left."""
    chance = random.Random(f"{plan.seed}/{number}")
    router = _router(plan)
    refused = turn = 0
    until = time.monotonic() + PATIENCE_S
    loop = asyncio.new_event_loop()
    try:
        while refused < REFUSALS:
            turn += 1
            words = " ".join(chance.choices(WORDS, k=chance.randint(1, 30)))
            strategy = chance.choice(["priority", "cost", "round_robin"])
            request = ChatRequest(
                (user(f"[{number}-{turn}] {words}"),),
                max_tokens=chance.choice(plan.limits),
                tags=(f"{number}-{turn}",),
                user=chance.choice([None, "ann", "bob"]),
            )
            try:
                _call(router, loop, request, strategy, chance)
                refused = 0
            except BudgetExceeded as error:
                if error.pending and time.monotonic() < until:
                    time.sleep(0.01)  # what others have set aside is not spent yet: some of it comes back
                else:
                    refused += 1
            except (AllTargetsFailed, StreamBroken):
                continue
            except FallbackError as error:
                raise SystemExit(f"unexpected: {type(error).__name__}: {error}") from error
    finally:
        loop.run_until_complete(router.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _call(
    router: Router, loop: asyncio.AbstractEventLoop, request: ChatRequest, strategy: str, chance: random.Random
) -> None:
    way = chance.random()
    if way < 0.25:
        router.invoke(request, strategy=strategy)
    elif way < 0.45:
        for _ in router.stream(request, strategy=strategy):
            pass
    elif way < 0.55:
        leave = chance.randint(1, 4)
        with router.stream(request, strategy=strategy) as stream:
            for count, _ in enumerate(stream):
                if count >= leave:
                    break
    elif way < 0.75:
        loop.run_until_complete(_several(router, request, strategy, chance))
    else:
        loop.run_until_complete(_cancelled(router, request, strategy, chance.uniform(0.0, 0.02)))


async def _several(router: Router, request: ChatRequest, strategy: str, chance: random.Random) -> None:
    async def streamed() -> None:
        async for _ in router.astream(request, strategy=strategy):
            pass

    calls: list[Any] = [router.ainvoke(request, strategy=strategy), streamed()]
    found = await asyncio.gather(*calls[: chance.randint(1, 2)], return_exceptions=True)
    for unused in calls[len(found) :]:
        unused.close()
    for one in found:
        if isinstance(one, BaseException):
            raise one


async def _cancelled(router: Router, request: ChatRequest, strategy: str, after_s: float) -> None:
    task = asyncio.ensure_future(router.ainvoke(request, strategy=strategy))
    asyncio.get_running_loop().call_later(after_s, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
