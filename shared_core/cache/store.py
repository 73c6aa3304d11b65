"""Where entries are kept: the protocol of a store, and the one in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple, Protocol, runtime_checkable

from shared_core._forks import after_fork

__all__ = ["OVERHEAD", "CacheStore", "Entry", "MemoryStore"]

OVERHEAD = 250
"""Bytes that an entry takes beside its content: key, figures and the row or node that holds them."""


class Entry(NamedTuple):
    """One entry as a store has it. `stored` and `expires` are seconds on the store's clock; past `expires` it is kept
    only to be served, marked, when nobody can answer."""

    body: bytes
    stored: float
    expires: float


@runtime_checkable
class CacheStore(Protocol):
    """Keeps entries by key, and lets go of those used least recently. Thread-safe; never raises into a request but for
    a bug."""

    persistent: bool
    """Its times are seconds since the epoch, which other processes share; else seconds that never go back."""
    instant: bool
    """It answers within microseconds, so that an event loop may call it."""

    def get(self, key: bytes, now: float) -> Entry | None:
        """The entry, which counts as used; however old it is."""
        ...

    def put(self, key: bytes, entry: Entry, until: float, now: float) -> int:
        """Keep it until `until`; returns how many entries had to go for it."""
        ...

    def discard(self, key: bytes, body: bytes | None = None) -> None:
        """Remove one entry; with `body`, only if that is what it still holds."""
        ...

    def clear(self) -> int:
        """Remove all; returns how many there were."""
        ...

    def size(self) -> tuple[int, int]:
        """How many entries there are, and how many bytes they take."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class MemoryStore:
    """Entries of this process: lost when it ends.

    Args:
        max_items: entries at most.
        max_bytes: bytes at most, entries' content and 250 bytes for each.
    """

    persistent = False
    instant = True

    def __init__(self, max_items: int = 1_000, max_bytes: int = 64 * 2**20) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0
        after_fork(self._in_child)

    def _in_child(self) -> None:
        # Another thread of the parent may have held the lock, in the middle of a change.
        self._lock = threading.Lock()
        self._bytes = sum(len(entry.body) + OVERHEAD for entry, _ in self._entries.values())

    def get(self, key: bytes, now: float) -> Entry | None:
        """The entry, which counts as used; however old it is."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if now >= found[1]:
                self._remove(key)
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: bytes, entry: Entry, until: float, now: float) -> int:
        """Keep it until `until`; returns how many entries had to go for it."""
        takes = len(entry.body) + OVERHEAD
        gone = 0
        with self._lock:
            if key in self._entries:
                self._remove(key)
            if takes > self._max_bytes:
                return 0
            while self._entries and (len(self._entries) >= self._max_items or self._bytes + takes > self._max_bytes):
                self._remove(next(iter(self._entries)))
                gone += 1
            self._entries[key] = (entry, until)
            self._bytes += takes
        return gone

    def _remove(self, key: bytes) -> None:
        entry, _ = self._entries.pop(key)
        self._bytes -= len(entry.body) + OVERHEAD

    def discard(self, key: bytes, body: bytes | None = None) -> None:
        """Remove one entry; with `body`, only if that is what it still holds."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None and (body is None or found[0].body == body):
                self._remove(key)

    def clear(self) -> int:
        """Remove all; returns how many there were."""
        with self._lock:
            count = len(self._entries)
            self._entries.clear()
            self._bytes = 0
            return count

    def size(self) -> tuple[int, int]:
        """How many entries there are, and how many bytes they take."""
        with self._lock:
            return len(self._entries), self._bytes

    def close(self) -> None:
        """Nothing to let go of."""

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._entries)} entries)"
