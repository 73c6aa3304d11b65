"""Runs a blocking iterator in a thread that its reader can walk away from when the guard runs out.

For sync providers that cannot interrupt their own reads (wrapped framework models, the legacy Google SDK). The thread
is borrowed from a small stock and returned when the iterator ends; one that hangs is left behind and never waited for.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TypeVar

from shared_core._forks import after_fork
from shared_core.errors import ErrorKind, ProviderError
from shared_core.resilience.deadline import Guard
from shared_core.routing.planner import Route

__all__ = ["Calm", "in_thread", "run_guarded"]

T = TypeVar("T")
_IDLE_S = 10.0
"""How long a thread waits for more work before it ends."""


class _Worker:
    """One thread that runs jobs one after another, until it has been idle for a while."""

    __slots__ = ("jobs",)

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="llm-fallback-lane", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                if _stock.lets_go(self):
                    return
                continue  # taken from the stock a moment ago: its job is on the way
            job()
            _stock.take_back(self)


class _Stock:
    """Threads that wait for work. A forked child has none of its parent's, and begins with an empty one."""

    def __init__(self) -> None:
        self._anew()

    def _anew(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def worker(self) -> _Worker:
        """One that waits, or else a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        after_fork(self._anew)
        return _Worker()

    def take_back(self, worker: _Worker) -> None:
        """It has done its work."""
        with self._lock:
            self._idle.append(worker)

    def lets_go(self, worker: _Worker) -> bool:
        """Whether it may end: nobody has taken it."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True


_stock = _Stock()


def in_thread(job: Callable[[], None]) -> None:
    """Run `job` in a thread of the stock. It must not raise."""
    _stock.worker().jobs.put(job)


def run_guarded(
    open_: Callable[[], Iterator[T]], guard: Guard, done: Callable[[float], None] | None = None
) -> Iterator[T]:
    """Iterate over `open_()` in another thread, under the caller's context variables.

    A whole answer comes over in one piece, a streamed one item by item. `done` is told how many seconds the iterator
    took in its own thread.

    Raises:
        ProviderError: kind TIMEOUT when the guard runs out; the thread is left behind and stops at its next item.
    """
    out: queue.SimpleQueue[_Piece[T]] = queue.SimpleQueue()
    reader = _Reader()
    if guard.cuts is not None:
        guard.cuts[reader] = lambda: out.put(((), None, True))  # then it looks how much time is left
    context = contextvars.copy_context()
    in_thread(lambda: context.run(_produce, open_, guard.streaming, out.put, reader, done))
    try:
        while True:
            try:
                items, error, more = out.get(timeout=max(0.0, min(guard.remaining(), threading.TIMEOUT_MAX)))
            except queue.Empty:
                if not guard.expired:
                    continue
                raise ProviderError.of(ErrorKind.TIMEOUT, guard.ran_out()) from None
            yield from items
            if error is not None:
                raise error
            if not more:
                return
    finally:
        reader.gone = True


_Piece = tuple[Sequence[T], BaseException | None, bool]
"""Items, the error that ended the iterator, and whether more will follow."""


class _Reader:
    """Whether somebody is still reading."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


def _produce(
    open_: Callable[[], Iterator[T]],
    piecemeal: bool,
    put: Callable[[_Piece[T]], None],
    reader: _Reader,
    done: Callable[[float], None] | None,
) -> None:
    """The other thread's half: run the iterator, hand over what it yields, and how it ended."""
    items: list[T] = []
    error: BaseException | None = None
    begun = perf_counter()
    try:
        source = open_()
        try:
            for item in source:
                if piecemeal:
                    put(((item,), None, True))
                else:
                    items.append(item)
                if reader.gone:
                    break
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
    except BaseException as raised:  # noqa: BLE001  # carried to the reader's thread, where it is raised
        error = raised
    if done is not None:
        done(perf_counter() - begun)
    put((items, error, False))


_INSTANT_S = 0.0005
_ENOUGH = 100
_SLOW_COSTS = 50


class Calm:
    """Which blocking targets have shown that they do not block, and need no thread to walk away from.

    A target that has answered or failed a hundred times on end in less than half a millisecond each is in this process:
    a fake, a rule, a cache. The thread would cost more than the answer. A vendor's SDK takes longer than that even to
    be refused by its own machine, so nothing that reaches over a network is ever trusted. A slower call takes half of
    the trust away, a call that is ten times slower all of it.
    """

    __slots__ = ("_trust",)

    def __init__(self) -> None:
        self._trust: dict[Route, int] = {}

    def of(self, route: Route) -> bool:
        """Whether the target may be called in the caller's own thread."""
        return self._trust.get(route, 0) >= _ENOUGH

    def took(self, route: Route, seconds: float) -> None:
        """A call of it ended, well or not, after so many seconds."""
        trust = self._trust.get(route, 0)
        if seconds < _INSTANT_S:
            self._trust[route] = min(2 * _ENOUGH, trust + 1)
        else:
            self._trust[route] = max(0, trust - _SLOW_COSTS) if seconds < 10 * _INSTANT_S else 0
