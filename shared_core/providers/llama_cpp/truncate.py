"""What may be left out of a conversation that is longer than the context window: whole turns, the oldest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["fitted", "oldest"]

Json = dict[str, Any]


def oldest(messages: Sequence[Json]) -> list[list[int]]:
    """The positions of what may go, in the order in which it goes.

    First the turns: a user's message and all that answers it. Then, within the last turn, each assistant message with
    the results of its calls, but not the last one, which is being answered. Never a system message, never the last
    user message, never a call without its result.
    """
    turns: list[list[int]] = [[]]
    for index, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "user" and turns[-1]:
            turns.append([])
        turns[-1].append(index)
    exchanges: list[list[int]] = []
    for index in turns[-1]:
        if messages[index]["role"] == "assistant":
            exchanges.append([])
        if exchanges:
            exchanges[-1].append(index)
    return [*turns[:-1], *exchanges[:-1]]


def fitted(job: Json, count: Callable[[Json], int], window: int) -> tuple[Json, str | None]:
    """`job` without as many of its oldest turns as it takes to fit, and what to say about it; None if it fits.

    An answer keeps the room that it asks for, or a quarter of the window where its `max_tokens` may be shortened.
    """
    limit: int = job["max_tokens"]
    room = min(limit, window // 4) if job.get("fit") else limit

    def without(left_out: int) -> Json:
        gone = {index for unit in units[:left_out] for index in unit}
        return {**job, "messages": [m for index, m in enumerate(messages) if index not in gone]}

    messages = job["messages"]
    whole = count(job)
    if whole + room <= window:
        return job, None
    units = oldest(messages)
    low, high = 0, len(units)  # leaving out `low` is too little; `high` is enough, or all there is
    while high - low > 1:
        middle = (low + high) // 2
        if count(without(middle)) + room <= window:
            high = middle
        else:
            low = middle
    if not units:
        return job, None
    left = sum(map(len, units[:high]))
    return without(high), (
        f"left out the {left} oldest of {len(messages)} messages: with them the prompt takes {whole} tokens, "
        f"the context window is {window}"
    )
