"""What a forked child does about the threads it has lost: `after_fork` has a method called in the child.

Only the thread that forks lives on in the child. Whoever has one of its own starts it anew there, with a queue of its
own: what was waiting in the parent's is the parent's to deal with.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

__all__ = ["after_fork"]

_waiting: list[weakref.WeakMethod[Callable[[], None]]] = []


def after_fork(method: Callable[[], None]) -> None:
    """Call this bound method in every child that this process is forked into, as long as its owner lives."""
    _waiting[:] = [one for one in _waiting if one() is not None]
    _waiting.append(weakref.WeakMethod(method))


def _in_child() -> None:
    for one in _waiting:
        method = one()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
