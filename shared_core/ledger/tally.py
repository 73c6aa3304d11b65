"""Sums of a ledger in memory: exact totals for ever, in quarters of an hour for the recent past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import TypeVar

from shared_core.ledger.analytics import QUARTER_S, SUMS, CostQuery, Sums, quarter_of
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose

__all__ = ["Tally", "add_sums", "sums_of"]

_Name = TypeVar("_Name")

_KEEP = 50_000
"""Sums kept apart by time; some 15 MB. With more, the older half of the past is kept as one."""

_Key = tuple[int | None, str, str, str, str | None, tuple[str, ...], str | None]
_ATTEMPTS, _ANSWERS, _IN, _OUT, _CACHED, _WRITTEN, _REASONING, _GUESSED = (
    SUMS.index(name)
    for name in (
        "attempts", "answers", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens",
        "reasoning_tokens", "estimated_tokens",
    )
)  # fmt: skip
_COST, _ESTIMATE, _BOUND, _UNPRICED, _ESTIMATED, _UNKNOWN, _PRICED = (
    SUMS.index(name)
    for name in ("cost_nano", "estimated_nano", "unknown_nano", "unpriced", "estimated", "unknown", "priced_tokens")
)
_HITS, _SAVED, _CORRECTED = (SUMS.index(name) for name in ("hits", "saved_nano", "corrected_nano"))
_SIZE = len(SUMS)


def add_entry(into: list[int], entry: LedgerEntry) -> None:
    """Add one row to sums in the order of `SUMS`: what is reported, estimated, unknown and unpriced, each apart.

    The same as the expressions of `schema.SUMS`.
    """
    usage, cost, status = entry.usage, entry.cost_nano, entry.status
    purpose = entry.purpose
    if purpose is Purpose.CORRECTION:
        if entry.bound_nano:
            into[_BOUND] += entry.bound_nano
            into[_UNKNOWN] -= entry.bound_nano < 0
        into[_CORRECTED] += cost or 0
    elif purpose is Purpose.CACHE:
        into[_HITS] += 1
        into[_SAVED] += entry.bound_nano or 0
    else:
        into[_ATTEMPTS] += 1
        if entry.outcome == "answered":
            into[_ANSWERS] += 1
    if status is EntryStatus.POSTED and not usage.estimated:
        into[_IN] += usage.input_tokens
        into[_OUT] += usage.output_tokens
        if usage.cached_tokens:
            into[_CACHED] += usage.cached_tokens
        if usage.cache_write_tokens:
            into[_WRITTEN] += usage.cache_write_tokens
        if usage.reasoning_tokens:
            into[_REASONING] += usage.reasoning_tokens
        if cost is None:
            into[_UNPRICED] += 1
        else:
            into[_COST] += cost
            into[_PRICED] += usage.input_tokens + usage.output_tokens
    elif status is EntryStatus.VOIDED:
        into[_COST] += cost or 0
    elif status is EntryStatus.UNKNOWN:
        into[_GUESSED] += usage.input_tokens + usage.output_tokens
        into[_UNKNOWN] += 1
        if cost is not None:
            into[_COST] += cost
        elif entry.bound_nano is not None:
            into[_BOUND] += entry.bound_nano
        else:
            into[_UNPRICED] += 1
    else:
        into[_GUESSED] += usage.input_tokens + usage.output_tokens
        into[_ESTIMATED] += 1
        if cost is None:
            into[_UNPRICED] += 1
        else:
            into[_ESTIMATE] += cost


def sums_of(entry: LedgerEntry) -> tuple[int, ...]:
    """What one row adds, in the order of `SUMS`."""
    sums = [0] * _SIZE
    add_entry(sums, entry)
    return tuple(sums)


_NAMED: Mapping[str, Callable[[_Key], str | None]] = {
    "target": lambda key: key[1],
    "model": lambda key: key[2],
    "provider": lambda key: key[3],
    "user": lambda key: key[4],
    "chain": lambda key: key[6],
}


class Tally:
    """Adds up entries as they come. Not thread-safe: its ledger has a lock.

    A moment in a filter is exact as long as the rows themselves are kept, and counts from its quarter of an hour on
    before that.
    """

    def __init__(self, keep: int = _KEEP) -> None:
        self._cells: dict[_Key, list[int]] = {}
        self._keep = keep

    def add(self, entry: LedgerEntry) -> None:
        """Count one row."""
        key: _Key = (
            int(entry.at // QUARTER_S), entry.target, entry.model, entry.provider, entry.user, entry.tags, entry.chain,
        )  # fmt: skip
        sums = self._cells.get(key)
        if sums is None:
            if len(self._cells) >= self._keep:
                self._forget()
            sums = self._cells[key] = [0] * _SIZE
        add_entry(sums, entry)

    def _forget(self) -> None:
        """Keep the totals of the older half, but no longer when they were."""
        dated = sorted((key for key in self._cells if key[0] is not None), key=lambda key: key[0] or 0)
        for key in dated[: max(1, len(dated) // 2)]:
            add_sums(self._cells, (None, *key[1:]), self._cells.pop(key))
        # Users and tags without end are a caller's to bound; sums of the past that cannot be made fewer stay.
        self._keep = max(self._keep, 2 * (len(self._cells) - (len(dated) - len(dated) // 2)))

    def sums(
        self, query: CostQuery, by: tuple[str, ...], rows: Iterable[LedgerEntry]
    ) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """As `CostSource.cost_sums`. `rows` are the entries still kept, oldest first."""
        found: dict[tuple[str, ...], list[int]] = {}
        keys = _keys(query, by)
        low = None if query.since is None else quarter_of(query.since)
        high = None if query.until is None else quarter_of(query.until)
        # A quarter that a limit cuts is counted row by row, if all of its rows are still there.
        oldest = next((entry.at for entry in rows), float("inf"))
        cut = {q for q in (low, high) if q is not None and (q * QUARTER_S >= oldest or oldest == float("inf"))}
        if low is not None and query.since == low * QUARTER_S:
            cut.discard(low)
        for key, sums in self._cells.items():
            quarter = key[0]
            if quarter in cut or not _within(quarter, low, high) or not _passes(query, key):
                continue
            for name in keys(key, quarter):
                add_sums(found, name, sums)
        if cut:
            for entry in rows:
                at = entry.at
                quarter = quarter_of(at)
                if quarter not in cut or (query.since is not None and at < query.since):
                    continue
                if query.until is not None and at >= query.until:
                    continue
                key = (quarter, entry.target, entry.model, entry.provider, entry.user, entry.tags, entry.chain)
                if _passes(query, key):
                    added = sums_of(entry)
                    for name in keys(key, quarter):
                        add_sums(found, name, added)
        return [(name, tuple(sums)) for name, sums in found.items()]


def add_sums(found: dict[_Name, list[int]], name: _Name, sums: Sequence[int]) -> None:
    """Add `sums` to those of that name."""
    into = found.get(name)
    if into is None:
        found[name] = list(sums)
    else:
        for index, value in enumerate(sums):
            into[index] += value


def _within(quarter: int | None, low: int | None, high: int | None) -> bool:
    if quarter is None:  # the past that is kept as one
        return low is None
    return (low is None or quarter >= low) and (high is None or quarter < high)


def _passes(query: CostQuery, key: _Key) -> bool:
    _, target, model, provider, user, tags, chain = key
    return (
        (query.target is None or query.target == target)
        and (query.model is None or query.model == model)
        and (query.provider is None or query.provider == provider)
        and (query.user is None or query.user == user)
        and (query.chain is None or query.chain == chain)
        and (query.tag is None or query.tag in tags)
    )


def _keys(query: CostQuery, by: tuple[str, ...]) -> Callable[[_Key, int | None], Iterable[tuple[str, ...]]]:
    """Under which names a cell counts: several for a request with several tags."""
    days: dict[int, str] = {}

    def day(quarter: int | None) -> str:
        if quarter is None:
            return ""
        told = days.get(quarter)
        if told is None:
            told = days[quarter] = datetime.fromtimestamp(quarter * QUARTER_S, query.zone).date().isoformat()
        return told

    def names(key: _Key, quarter: int | None) -> Iterable[tuple[str, ...]]:
        each: list[Sequence[str]] = []
        for dimension in by:
            if dimension == "day":
                each.append((day(quarter),))
            elif dimension == "tag":
                each.append(key[5] or ("",))
            else:
                each.append((_NAMED[dimension](key) or "",))
        return product(*each)

    return names
