"""One answer, labelled: identical requests at the same time are one request, and every answer says what it is."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from shared_core import Router, Target
from shared_core.testing import CANONICAL, Answer, FaultServer
from tests.promises.circuits import ASK

__all__ = ["shared"]


def shared(*, tasks: int = 20, threads: int = 5, leave: int = 5, rounds: int = 1) -> dict[str, Any]:
    """Identical calls in tasks and threads at once, of whom some are cancelled, the one that asked first among them.

    Counts requests at the server; every caller who stays must have the whole answer, and every answer its label.
    """
    requests, wrong = [], list[str]()
    for number in range(rounds):
        sent, left, stayed = _round(tasks, threads, leave, number)
        requests.append(sent)
        wrong += [f"round {number}: a caller who left got {one!r}" for one in left if not _cancelled(one)]
        wrong += [f"round {number}: a caller got {one!r}" for one in stayed if _text(one) != CANONICAL]
        labels = [one.fallback.get("cache") for one in stayed if _text(one) == CANONICAL]
        wrong += [f"round {number}: labelled {label!r}" for label in labels if label not in _LABELS]
        if labels.count("miss") > 1:
            wrong.append(f"round {number}: {labels.count('miss')} answers say that they were asked for")
    return {
        "rounds": rounds,
        "callers": rounds * (tasks + threads),
        "cancelled": rounds * leave,
        "most_requests_per_round": max(requests),
        "wrong": wrong,
    }


_LABELS = ("miss", "joined", "hit")


def _round(tasks: int, threads: int, leave: int, seed: int) -> tuple[int, list[Any], list[Any]]:
    """Requests at the server, what those got who left, and what those got who stayed."""
    with FaultServer(default=Answer(delay_s=0.1)) as server:
        target = Target("openai:gpt-4o-mini", base_url=server.openai_url, api_key="sk-promises-000000", name="a")
        router = Router([target], cache=True, seed=seed)
        router.warm()
        got: list[Any] = []
        crowd = [threading.Thread(target=lambda: got.append(router.invoke(ASK))) for _ in range(threads)]

        async def main() -> tuple[list[Any], list[Any]]:
            await router.awarm()
            calls = [asyncio.ensure_future(router.ainvoke(ASK)) for _ in range(tasks)]
            await asyncio.sleep(0.01)
            for thread in crowd:
                thread.start()
            await asyncio.sleep(0.01)
            leaving = [call for call in calls[:leave] if call.cancel()]  # on a busy machine some have their answer
            ended = dict(zip(calls, await asyncio.gather(*calls, return_exceptions=True), strict=True))
            for thread in crowd:
                await asyncio.to_thread(thread.join)
            await router.aclose()
            return [ended.pop(call) for call in leaving], list(ended.values())

        left, stayed = asyncio.run(main())
        return server.count(), left, [*stayed, *got]


def _cancelled(one: Any) -> bool:
    return isinstance(one, asyncio.CancelledError)


def _text(one: Any) -> str | None:
    text: str | None = getattr(one, "text", None)
    return text
