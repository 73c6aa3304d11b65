"""What is done about threads, locks and files when a process forks.

Only the thread that forks lives on in the child. Whoever has a thread of its own starts it anew there, with a queue of
its own: what was waiting in the parent's is the parent's to deal with. A lock that another thread held at that moment
would be held for ever: `after_fork` has a method called in the child that sees to it. What must not be caught in the
middle of a change, and files that SQLite has open, are let go of before: `guard_fork`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Forkable", "after_fork", "free", "guard_fork"]


class Forkable(Protocol):
    """Something that cannot be carried across a fork as it is at any moment."""

    def before_fork(self) -> None:
        """Finish what is being written, close connections, and begin nothing until told how it went on."""
        ...

    def after_fork(self, *, child: bool) -> None:
        """Go on. A child has none of the parent's threads, and nothing of what was under way is its own."""
        ...


_waiting: weakref.WeakKeyDictionary[object, tuple[Callable[[Any], None], ...]] = weakref.WeakKeyDictionary()
_held: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []
_lock = threading.Lock()
"""Held from before a fork until after it, and while somebody is added who is to be told."""


def after_fork(method: Callable[[], None]) -> None:
    """Call this bound method in every child that this process is forked into, as long as its owner lives."""
    owner, function = method.__self__, method.__func__  # type: ignore[attr-defined]  # every bound method has them
    known = _waiting.get(owner, ())
    if function not in known:
        _waiting[owner] = (*known, function)


def guard_fork(holder: Forkable) -> None:
    """Have `holder` told before and after this process forks. It is not kept alive by this.

    To be called when it is made, without a lock of its own held: a fork waits for that with the list in hand.
    """
    with _lock:
        _held.add(holder)


def free(lock: threading.Lock) -> None:
    """In a forked child: what a thread of the parent held is held by nobody, however many share it.

    Where a thread was about to have it, `locked()` says no and `release()` refuses, and yet nobody can take it. This is
    how the standard library sees to its own locks.
    """
    lock._at_fork_reinit()  # type: ignore[attr-defined]  # there is no public name for it


def _before() -> None:
    _lock.acquire()
    _forking[:] = list(_held)
    for holder in _forking:
        holder.before_fork()


def _in_parent() -> None:
    for holder in _forking:
        holder.after_fork(child=False)
    _forking.clear()
    _lock.release()


def _in_child() -> None:
    global _lock  # noqa: PLW0603  # other threads of the parent may have been waiting for it
    for holder in _forking:
        holder.after_fork(child=True)
    _forking.clear()
    _lock = threading.Lock()
    for owner, functions in list(_waiting.items()):
        for function in functions:
            function(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
