"""What suspended generators hold: how to hang up where a framework leaves its stream to Python's garbage collector."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from types import CellType
from typing import Any

__all__ = ["ahang_up", "hang_up", "held_by", "unfinished"]

_LAYERS = 10


def unfinished(answer: Any) -> list[Any]:
    """The HTTP responses that a stream has not read to their end: a reader who walks away would go on paying for them.

    They are found where the suspended generators hold them: generators on generators, and at their end the `Stream` of
    OpenAI's and Anthropic's SDK, or what Google's SDK reads from.
    """
    found = ((one, _RESPONSE_IN.get(type(one).__name__)) for one in held_by(answer))
    return [response for one, name in found if name and (response := getattr(one, name, None)) is not None]


_RESPONSE_IN = {"Stream": "response", "AsyncStream": "response", "HttpResponse": "response_stream"}


def hang_up(answer: Any) -> None:
    """Close them; it does no harm to one that has been read."""
    for response in unfinished(answer):
        if hasattr(response, "close"):
            response.close()


async def ahang_up(answer: Any) -> None:
    """The same, async."""
    for response in unfinished(answer):
        close = getattr(response, "aclose", None) or getattr(response, "close", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing


def held_by(answer: Any) -> Iterator[Any]:
    """What a suspended generator holds, in its variables and those around it, and the generators among that hold."""
    layer = [answer]
    for _ in range(_LAYERS):
        held = [one for each in layer for one in gc.get_referents(each)]
        held += [one for cell in held if type(cell) is CellType for one in gc.get_referents(cell)]
        yield from held
        layer = [one for one in held if inspect.isgenerator(one) or inspect.isasyncgen(one)]
