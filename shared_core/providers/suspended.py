"""What suspended generators hold: how to hang up where a framework leaves its stream to Python's garbage collector."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from types import CellType
from typing import Any

__all__ = ["held_by", "unfinished"]

_LAYERS = 4


def unfinished(answer: Any) -> list[Any]:
    """The HTTP responses that a stream has not read to their end: a reader who walks away would go on paying for them.

    They are found where the suspended generators hold them: generators on generators, and at their end the SDK's
    `Stream`. Closing them is the caller's; it does no harm to one that has been read.
    """
    return [one.response for one in held_by(answer) if type(one).__name__ in ("Stream", "AsyncStream")]


def held_by(answer: Any) -> Iterator[Any]:
    """What a suspended generator holds, in its variables and those around it, and the generators among that hold."""
    layer = [answer]
    for _ in range(_LAYERS):
        held = [one for each in layer for one in gc.get_referents(each)]
        held += [one for cell in held if type(cell) is CellType for one in gc.get_referents(cell)]
        yield from held
        layer = [one for one in held if inspect.isgenerator(one) or inspect.isasyncgen(one)]
