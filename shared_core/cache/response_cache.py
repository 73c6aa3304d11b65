"""`ResponseCache`: what a user sets, sees and clears of a router's cache."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from shared_core._forks import after_fork
from shared_core.cache.entry import Kept, Poisoned, read, write
from shared_core.cache.store import CacheStore, Entry, MemoryStore
from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, UnknownOption, nearest

__all__ = ["CacheDay", "CacheLike", "CacheStats", "Found", "ResponseCache"]

_log = logging.getLogger("llm_fallback.cache")

Counted = Literal[
    "hits", "misses", "joined", "stale", "defaults", "refreshed", "uncacheable", "kept", "unkept", "evicted", "poisoned"
]


_SMALL = 2_048
_FEW = 256
"""How many small answers are at hand as they were read last, beside the store: the very bytes, checked once."""


class Found(NamedTuple):
    """A kept answer, how old it is in seconds, and whether that is past its time."""

    kept: Kept
    age_s: float
    stale: bool


@dataclass(frozen=True, slots=True)
class CacheDay:
    """One day (UTC): answers that were not asked for again, and what they would have cost in nano-dollars."""

    hits: int = 0
    saved_nano: int = 0

    @property
    def saved_usd(self) -> float:
        """The same in dollars."""
        return self.saved_nano / 1e9


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done in this process since it was made. `items` and `bytes` are of the whole store."""

    hits: int = 0
    """Answers from the cache, within their time."""
    misses: int = 0
    """Requests that were looked for and not found."""
    joined: int = 0
    """Requests that shared the answer to an identical one in flight."""
    stale: int = 0
    """Answers past their time, because nobody could answer."""
    defaults: int = 0
    """Answers of `default_answer`."""
    refreshed: int = 0
    """Requests that asked anew on purpose."""
    uncacheable: int = 0
    """Requests that could not be told from others by value."""
    kept: int = 0
    """Answers that were kept."""
    unkept: int = 0
    """Answers that were not: cut short, made of two, with tool calls, or of what cannot be written down."""
    evicted: int = 0
    poisoned: int = 0
    """Entries that were not what had been written, and were removed."""
    errors: int = 0
    """Times that the store's file could not be read or written."""
    saved_nano: int = 0
    """What hits, joined and stale answers would have cost at the prices of the first time, in nano-dollars."""
    unpriced: int = 0
    """Of those answers, the ones whose price nobody knows: `saved_nano` does not count them."""
    items: int = 0
    bytes: int = 0
    days: Mapping[str, CacheDay] = field(default_factory=dict)
    """By day, as 'YYYY-MM-DD' in UTC."""

    @property
    def saved_usd(self) -> float:
        """What was saved, in dollars."""
        return self.saved_nano / 1e9

    @property
    def hit_rate(self) -> float:
        """Hits of all that were looked for, 0 to 1; 0 when nothing was."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "days"}
        days = {day: {"hits": one.hits, "saved_usd": one.saved_usd} for day, one in self.days.items()}
        return {**told, "saved_usd": self.saved_usd, "hit_rate": self.hit_rate, "days": days}

    def __str__(self) -> str:
        return (
            f"{self.hits} hits, {self.misses} misses ({self.hit_rate:.0%}), {self.joined} joined, {self.stale} stale; "
            f"{self.items} entries, {self.bytes / 1024:,.0f} KiB; ${self.saved_usd:.6f} saved"
        )

    def _repr_html_(self) -> str:
        told = {k: v for k, v in self.as_dict().items() if k not in ("days", "saved_nano")}
        told["hit_rate"], told["saved_usd"] = f"{self.hit_rate:.1%}", f"{self.saved_usd:.6f}"
        rows = "".join(f"<tr><td>{name.replace('_', ' ')}</td><td>{value}</td></tr>" for name, value in told.items())
        return f"<table><caption>cache</caption>{rows}</table>"


class ResponseCache:
    """Keeps whole, clean answers and serves them to identical requests; may be shared by routers.

    Args:
        ttl_s: seconds that an answer is served for.
        max_items: answers at most; those used least recently go first.
        max_bytes: bytes at most, of what is written and 250 for each entry.
        path: a SQLite file, for several processes and for the next start; memory when left out.
        store: a `CacheStore` of your own, in place of `path`, `max_items` and `max_bytes`.
        compress_over: bytes from which an answer is compressed.
        tenant: whose answers these are: a name, or a function of the request; nobody sees another tenant's. A function
            that returns None leaves the request uncached.
        tool_calls: whether answers that call tools are kept, too.
        stale_if_error_s: seconds past `ttl_s` for which an answer is served, marked as stale, when nobody can answer. 0
            serves none.
        pace: seconds between the pieces of a replayed stream; 0 hands them over at once.
        chunk: characters per piece; left out, the pieces that the answer came in.
        single_flight: whether identical requests at the same time share one answer.
        stale_if_error: `stale_if_error_s`, as HTTP calls it.

    Raises:
        ConfigurationError: a figure out of range, a word that is none, or two options that say the same.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 3600.0,
        max_items: int = 1_000,
        max_bytes: int = 64 * 2**20,
        path: str | os.PathLike[str] | None = None,
        store: CacheStore | None = None,
        compress_over: int = 1_024,
        tenant: str | Callable[[ChatRequest], str | None] | None = None,
        tool_calls: bool = False,
        stale_if_error_s: float = 0.0,
        pace: float = 0.0,
        chunk: int | None = None,
        single_flight: bool = True,
        stale_if_error: float | None = None,
    ) -> None:
        if stale_if_error is not None:
            if stale_if_error_s:
                raise ConfigurationError("cache: stale_if_error is stale_if_error_s by another name; not both")
            stale_if_error_s, stale_if_error = stale_if_error, None
        given = {name: value for name, value in locals().items() if name in _DEFAULTS}
        _number("ttl_s", ttl_s, above=0)
        _number("stale_if_error_s", stale_if_error_s)
        _number("pace", pace)
        _number("compress_over", compress_over, whole=True)
        _number("max_items", max_items, above=0, whole=True)
        _number("max_bytes", max_bytes, above=0, whole=True)
        if chunk is not None:
            _number("chunk", chunk, above=0, whole=True)
        if tenant is not None and not isinstance(tenant, str) and not callable(tenant):
            raise ConfigurationError(f"cache tenant must be a name or a function of the request, not {tenant!r}")
        for name, value in (("tool_calls", tool_calls), ("single_flight", single_flight)):
            if not isinstance(value, bool):
                raise ConfigurationError(f"cache {name} must be True or False, not {value!r}")
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ConfigurationError(f"cache path must be the path of a file, not {path!r}")
        if store is not None and path is not None:
            raise ConfigurationError("give either path= or store= to the cache, not both")
        if store is not None and not isinstance(store, CacheStore):
            raise ConfigurationError(
                f"cache store must have the methods of CacheStore, not be a {type(store).__name__}"
            )
        self.options: Mapping[str, Any] = MappingProxyType({k: v for k, v in given.items() if v != _DEFAULTS[k]})
        """What was given, where it differs from the defaults."""
        self.ttl_s, self.stale_if_error_s = float(ttl_s), float(stale_if_error_s)
        self.compress_over, self.tenant, self.tool_calls = compress_over, tenant, tool_calls
        self.pace, self.chunk, self.single_flight = float(pace), chunk, single_flight
        if store is None and path is not None:
            from shared_core.cache.sqlite import SQLiteStore

            store = SQLiteStore(path, max_items, max_bytes)
        self.store: CacheStore = MemoryStore(max_items, max_bytes) if store is None else store
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._days: dict[str, list[int]] = {}
        self._saved = [0, 0]
        self._known: dict[bytes, tuple[bytes, Kept]] = {}
        self._failures = 0
        after_fork(self._in_child)

    def _in_child(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it

    @classmethod
    def of(cls, given: Any) -> Self | None:
        """The cache that `Router(cache=given)` means: True, a mapping of options, the path of a file, or one ready.

        Raises:
            UnknownOption: an option that a cache does not have; names the nearest.
            ConfigurationError: none of these, or an option out of range.
        """
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, (str, os.PathLike)):
            return cls(path=given)
        if isinstance(given, CacheStore):
            return cls(store=given)
        if not isinstance(given, Mapping):
            raise ConfigurationError(
                f"cache must be True, a ResponseCache, a mapping of its options or a path, not {type(given).__name__}"
            )
        for name in given:
            if name not in _DEFAULTS:
                raise UnknownOption(f"ResponseCache has no option {name!r}. {nearest(str(name), _DEFAULTS)}")
        return cls(**given)

    # ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> CacheStats:
        """What it has done, and how full it is."""
        items, taken = self.store.size()
        with self._lock:
            days = {day: CacheDay(*one) for day, one in sorted(self._days.items())}
            return CacheStats(
                **self._counts,
                errors=getattr(self.store, "errors", 0) + self._failures,
                saved_nano=self._saved[0],
                unpriced=self._saved[1],
                items=items,
                bytes=taken,
                days=MappingProxyType(days),
            )

    def clear(self) -> int:
        """Forget every answer; returns how many there were. What is in flight is kept when it ends."""
        self._known.clear()
        return self.store.clear()

    def as_options(self) -> dict[str, Any]:
        """The options it was given, as plain data: what a file would hold. A store of yours and a function are left
        out."""
        told = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in self.options.items()}
        return {k: v for k, v in told.items() if isinstance(v, (str, int, float))}

    def close(self) -> None:
        """Let go of the file; it is opened again when used again."""
        self.store.close()

    # ── for the router ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def kept(self) -> int:
        """How many answers have been kept in this process: while that stays, nothing is there that was not before."""
        return self._counts.get("kept", 0)

    def find(self, keys: Iterable[bytes], now: float, *, stale: bool = False) -> Found | None:
        """The first answer that is kept under one of `keys`, within its time or, with `stale`, a while past it. No
        further key is asked for than the one it was found under."""
        for key in keys:
            try:
                entry = self.store.get(key, now)
            except Exception as error:  # noqa: BLE001  # somebody else's store is no reason why a request fails either
                self._failed("read", error)
                continue
            if entry is None:
                continue
            age = now - entry.stored
            if age < 0:  # the clock went back: how old it is, nobody knows
                continue
            old = now >= entry.expires or age >= self.ttl_s
            if old and not (stale and age < self.ttl_s + self.stale_if_error_s):
                continue
            known = self._known.get(key)
            if known is not None and known[0] is entry.body:
                return Found(known[1], age, old)
            try:
                kept = read(key, entry.body)
            except Poisoned:
                self.count("poisoned")
                try:
                    self.store.discard(key, entry.body)
                except Exception as error:  # noqa: BLE001  # as above
                    self._failed("written", error)
                continue
            if len(entry.body) <= _SMALL and not (kept.extra or kept.reasoning or kept.tool_calls):
                # Nothing in it can be changed by who gets it, and the next one need not read it again.
                if len(self._known) >= _FEW:
                    self._known.clear()
                self._known[key] = entry.body, kept
            return Found(kept, age, old)
        return None

    def keep(self, key: bytes, kept: Kept, now: float) -> bool:
        """Keep an answer under `key`; False when it holds what cannot be written down, or the store cannot take it."""
        try:
            body = write(key, kept, self.compress_over)
        except (TypeError, ValueError, RecursionError):
            self.count("unkept")
            return False
        expires = now + self.ttl_s
        try:
            gone = self.store.put(key, Entry(body, now, expires), expires + self.stale_if_error_s, now)
        except Exception as error:  # noqa: BLE001  # as above
            self._failed("written", error)
            return False
        self.count("kept")
        if gone:
            self.count("evicted", gone)
        return True

    def _failed(self, how: str, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            first = self._failures == 1
        if first:
            _log.warning(
                "the cache's %s cannot be %s: %s: %s. Requests go on without it",
                type(self.store).__name__, how, type(error).__name__, error,
            )  # fmt: skip

    def count(self, what: Counted, by: int = 1) -> None:
        """One more of them."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + by

    def saved(self, what: Counted, cost_nano: int | None, at: float) -> None:
        """One more answer that was not asked for; `at` is seconds since the epoch."""
        day = _day(at)
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1
            one = self._days.get(day)
            if one is None:
                one = self._days[day] = [0, 0]
            one[0] += 1
            if cost_nano is None:
                self._saved[1] += 1
            else:
                one[1] += cost_nano
                self._saved[0] += cost_nano

    def __reduce__(self) -> tuple[Any, ...]:
        # The other side has its own store: the same file, or its own memory.
        return type(self).of, (dict(self.options),)

    def __repr__(self) -> str:
        return f"ResponseCache({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def _repr_html_(self) -> str:
        return self.stats()._repr_html_()


CacheLike = ResponseCache | CacheStore | Mapping[str, Any] | str | os.PathLike[str] | bool | None
"""What `Router(cache=…)` takes."""

_DEFAULTS: Mapping[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(ResponseCache.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


def _number(name: str, value: Any, *, above: float | None = None, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or math.isnan(value):
        raise ConfigurationError(f"cache {name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if value < 0 or (above is not None and value <= above):
        raise ConfigurationError(
            f"cache {name} must be {'above' if above is not None else 'at least'} 0, not {value!r}"
        )


_kept_day: tuple[int, str] = (-1, "")


def _day(at: float) -> str:
    global _kept_day  # noqa: PLW0603  # most hits are of the same day as the last one
    number = int(at // 86_400)
    if _kept_day[0] != number:
        _kept_day = number, datetime.fromtimestamp(at, UTC).date().isoformat()
    return _kept_day[1]
