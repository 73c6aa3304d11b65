"""Takes events to their observers on a thread of its own, so that a slow or raising one cannot hurt a request.

Each event is a line in the log, too. The level says whose attention it wants: an answer that another target had to step
in for is one warning, a request nobody answered is one error, and the steps on the way to either are information.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence

from shared_core.telemetry.events import (
    AttemptFailed,
    CircuitChanged,
    Event,
    FellOver,
    RequestFailed,
    RequestSucceeded,
    StreamContinued,
)

__all__ = ["Dispatcher", "Observer"]

Observer = Callable[[Event], object | Awaitable[object]]
"""Called with each event, on the dispatcher's thread; may be async. What it returns or raises changes nothing."""

_log = logging.getLogger("llm_fallback")
_log.addHandler(logging.NullHandler())  # a library says nothing in a program that has not asked for its log
_INFO = (AttemptFailed, CircuitChanged, FellOver, RequestFailed, StreamContinued)


def _level(event: Event) -> int:
    if isinstance(event, RequestSucceeded) and event.used_fallback:
        # That a target is passed over while its circuit is open has been told when it opened, not with every request.
        return logging.WARNING if event.recovered_from else logging.INFO
    if isinstance(event, RequestFailed) and event.outcome == "failed":
        return logging.ERROR
    return logging.INFO if isinstance(event, _INFO) else logging.DEBUG  # a caller who left is nobody's failure


class Dispatcher:
    """A bounded queue of events and one daemon thread, started at the first event when there are observers."""

    def __init__(self, observers: Sequence[Observer] = (), capacity: int = 10_000) -> None:
        self._observers = tuple(observers)
        self._queue: queue.Queue[Event | threading.Event | None] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.dropped = 0
        """Events lost because observers could not keep up."""

    @property
    def active(self) -> bool:
        """Whether anybody would hear of every step: an observer, or the log at information level."""
        return bool(self._observers) or _log.isEnabledFor(logging.INFO)

    @property
    def alert(self) -> bool:
        """Whether anybody would hear of what deserves attention: a fallback that was needed, a failure."""
        return bool(self._observers) or _log.isEnabledFor(logging.WARNING)

    def emit(self, event: Event) -> None:
        """Log it and pass it on. Never blocks, never raises."""
        level = _level(event)
        if _log.isEnabledFor(level):
            _log.log(level, "%s", _Line(event))
        if not self._observers:
            return
        if self._thread is None:
            self._start()
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llm-fallback-events", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (item := self._queue.get()) is not None:
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                for observer in self._observers:
                    self._tell(runner, observer, item)

    @staticmethod
    def _tell(runner: asyncio.Runner, observer: Observer, event: Event) -> None:
        try:
            result = observer(event)
            if inspect.isawaitable(result):
                runner.run(_awaited(result))
        except Exception:  # noqa: BLE001  # whatever an observer raises is its own affair
            _log.exception("an observer failed on %s; the request is not affected", event.name)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until every event emitted so far has been told. False when that took too long."""
        if self._thread is None:
            return True
        done = threading.Event()
        try:
            self._queue.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self) -> None:
        """Tell what is left (for at most a second) and stop the thread."""
        if self._thread is not None:
            self.flush(1.0)
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                _log.warning("observers are stuck; %d events were not told", self._queue.qsize())
            self._thread = None


async def _awaited(result: Awaitable[object]) -> object:
    return await result


class _Line:
    """One event as the log shows it. Written out only if a handler does: most programs have none for us."""

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        self._event = event

    def __str__(self) -> str:
        event = self._event
        facts = ", ".join(
            f"{k}={v!r}" for k, v in event.as_dict().items() if k not in ("event", "execution", "at") and v is not None
        )
        return f"{event.name} [{event.execution}] {facts}"
