"""Answers we already have: keys, entries, stores, what may be served and kept, and requests that share one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.cache.response_cache import CacheDay, CacheStats, ResponseCache
    from shared_core.cache.sqlite import SQLiteStore
    from shared_core.cache.store import CacheStore, Entry, MemoryStore

_HOMES = {
    "CacheDay": "shared_core.cache.response_cache",
    "CacheStats": "shared_core.cache.response_cache",
    "CacheStore": "shared_core.cache.store",
    "Entry": "shared_core.cache.store",
    "MemoryStore": "shared_core.cache.store",
    "ResponseCache": "shared_core.cache.response_cache",
    "SQLiteStore": "shared_core.cache.sqlite",
}

__all__ = ["CacheDay", "CacheStats", "CacheStore", "Entry", "MemoryStore", "ResponseCache", "SQLiteStore"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
