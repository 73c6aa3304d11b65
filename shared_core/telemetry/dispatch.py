"""Takes events to their observers on a thread of its own, so that a slow or raising one cannot hurt a request.

Each event is a line in the log, too. The level says whose attention it wants: an answer that another target had to step
in for is one warning, a request nobody answered is one error, and the steps on the way to either are information.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

from shared_core._forks import after_fork
from shared_core.errors import ConfigurationError, nearest
from shared_core.telemetry import events as _events
from shared_core.telemetry.events import Event, event_name

__all__ = ["Dispatcher", "EventKind", "Observer", "Observers", "kinds_of"]

Observer = Callable[[Event], object | Awaitable[object]]
"""Called with each event, on the dispatcher's thread; may be async. What it returns or raises changes nothing."""
EventKind = type[Event] | str
"""A kind of event: its class, or its name in snake case."""
_Told = Observer | Sequence[Observer]
Observers = _Told | Mapping[EventKind, _Told] | Mapping[str, _Told] | Mapping[type[Event], _Told]
"""What `on_event` takes: an observer, several, or a mapping of kinds of event to who hears of them."""

_BREATH_S = 0.001
"""How long the thread rests when it has told everything: what comes meanwhile need not wake it, which would cost the
request that brings it more than all the rest of an event."""

_log = logging.getLogger("llm_fallback")
_log.addHandler(logging.NullHandler())  # a library says nothing in a program that has not asked for its log

_KINDS: Mapping[str, type[Event]] = {
    event_name(kind): kind for name in _events.__all__ if isinstance(kind := getattr(_events, name), type)
}


_RARE = frozenset(
    {
        _events.BudgetExhausted, _events.BudgetOvercharged, _events.BudgetWarning, _events.CircuitChanged,
        _events.LedgerTrouble, _events.RouterReconfigured, _events.TargetChanged, _events.TargetProbed,
        _events.TargetRecovered, _events.TargetUnhealthy,
    }
)  # fmt: skip
"""Told unasked, because they are rare. All others, steps of requests, are made only if somebody would hear of them."""
_STEPS: tuple[type[Event], ...] = tuple(kind for kind in _KINDS.values() if kind not in _RARE and kind is not Event)


def kinds_of(kinds: Iterable[EventKind]) -> tuple[type[Event], ...]:
    """The classes of kinds that may be named. `Event` itself stands for all.

    Raises:
        ConfigurationError: no kind of event has that name; names the nearest.
    """
    found: list[type[Event]] = []
    for kind in kinds:
        if isinstance(kind, str):
            named = _KINDS.get(kind)
        else:
            named = kind if _is_kind(kind) else None
        if named is not None:
            found.append(named)
        else:
            raise ConfigurationError(f"no event is named {kind!r}. {nearest(str(kind), _KINDS)}")
    return tuple(found)


def _is_kind(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Event)


def _pairs(observers: Observers | None) -> list[tuple[Observer, tuple[type[Event], ...]]]:
    """Observers and what they hear of, as `on_event` may say it."""
    if observers is None:
        return []
    if isinstance(observers, Mapping):
        return [(one, kinds_of([kind])) for kind, given in observers.items() for one in _several(given)]
    return [(one, _wanted(one)) for one in _several(observers)]


def _several(observers: Any) -> list[Observer]:
    if callable(observers) or not isinstance(observers, Iterable):
        observers = [observers]
    return [_callable(one) for one in observers]


def _wanted(observer: Observer) -> tuple[type[Event], ...]:
    """What an observer says of itself that it wants to hear: its `events`. All, where it says nothing."""
    return kinds_of(getattr(observer, "events", None) or (Event,))


def _callable(observer: Any) -> Observer:
    if not callable(observer):
        raise ConfigurationError(f"on_event takes functions of an event, not {type(observer).__name__}")
    found: Observer = observer
    return found


class Dispatcher:
    """A queue of `capacity` events and one daemon thread, started at the first event that somebody wants to hear of.

    Async observers run on an event loop of that thread, one event after another.

    Raises:
        ConfigurationError: an observer cannot be called, or no event has the name that it is to hear of.
    """

    def __init__(self, observers: Observers | None = (), capacity: int = 10_000) -> None:
        self._observers = tuple(_pairs(observers))
        self._told: dict[type[Event], tuple[Observer, ...]] = {}
        self._steps = self._wants_steps()
        self._capacity = capacity
        self._anew()
        self.dropped = 0
        """Events lost because observers could not keep up."""

    def _anew(self) -> None:
        self._queue: SimpleQueue[Event | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, observer: Observer, kinds: Iterable[EventKind] = ()) -> Callable[[], None]:
        """Have one more observer told, of these kinds of event or what it wants to hear; returns what ends that."""
        one = (_callable(observer), kinds_of(kinds) or _wanted(observer))
        with self._lock:
            self._observers = (*self._observers, one)
            self._told, self._steps = {}, self._wants_steps()

        def remove() -> None:
            with self._lock:
                self._observers = tuple(other for other in self._observers if other is not one)
                self._told, self._steps = {}, self._wants_steps()

        return remove

    def _wants_steps(self) -> bool:
        return any(issubclass(kind, wanted) for _, wanted in self._observers for kind in _STEPS)

    @property
    def active(self) -> bool:
        """Whether anybody would hear of a request's steps: an observer, or the log at information level."""
        return self._steps or _log.isEnabledFor(logging.INFO)

    @property
    def alert(self) -> bool:
        """Whether anybody would hear of what deserves attention: a fallback that was needed, a failure."""
        return self._steps or _log.isEnabledFor(logging.WARNING)

    def _whom(self, kind: type[Event]) -> tuple[Observer, ...]:
        told = tuple(one for one, wanted in self._observers if issubclass(kind, wanted))
        self._told[kind] = told
        return told

    def emit(self, event: Event) -> None:
        """Log it and pass it on. Never blocks, never raises."""
        level = event.level
        if _log.isEnabledFor(level):
            _log.log(level, "%s", _Line(event))
        kind = type(event)
        told = self._told.get(kind)
        if not (self._whom(kind) if told is None else told):
            return
        if self._thread is None:
            if sys.is_finalizing():
                return  # the program is over: a thread that is started now never runs
            self._start()
        if self._queue.qsize() < self._capacity:
            self._queue.put(event)
        else:
            self.dropped += 1

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                after_fork(self._anew)
                self._thread = threading.Thread(target=self._run, name="llm-fallback-events", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (item := self._queue.get()) is not None:
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                kind = type(item)
                for observer in self._told.get(kind) or self._whom(kind):
                    self._tell(runner, observer, item)
                if self._queue.empty():
                    sleep(_BREATH_S)

    @staticmethod
    def _tell(runner: asyncio.Runner, observer: Observer, event: Event) -> None:
        try:
            result = observer(event)
            if inspect.isawaitable(result):
                runner.run(_awaited(result))
        except BaseException:  # noqa: BLE001  # its own affair, `sys.exit` too: the others are told all the same
            _log.exception("an observer failed on %s; the request is not affected", event.name)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until every event emitted so far has been told, and webhooks sent. False when that took too long."""
        until = monotonic() + timeout_s
        if self._thread is not None and not self._quiet(timeout_s):
            return False
        return all(flush(max(0.0, until - monotonic())) for flush in self._flushes())

    def _flushes(self) -> list[Callable[[float], bool]]:
        found = [getattr(one, "flush", None) for one, _ in self._observers]
        return [flush for flush in found if callable(flush)]

    def close(self) -> None:
        """Tell what is left (for at most a second; webhooks for as long as they say) and stop the thread."""
        if self._thread is not None:
            if not self._quiet(1.0) and (waiting := self._queue.qsize()) > self._capacity:
                _log.warning("observers are stuck; %d events wait to be told", waiting - 1)  # without our own mark
            self._queue.put(None)
            self._thread = None
        for observer, _ in self._observers:
            drain = getattr(observer, "drain", None)
            if callable(drain):
                drain()

    def _quiet(self, timeout_s: float) -> bool:
        """Wait until observers were told what is in the queue."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)


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
        return f"{event.name} [{event.execution}] {facts}" if event.execution else f"{event.name} {facts}"
