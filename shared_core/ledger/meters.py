"""Meters in memory: what budgets count, as `SQLiteLedger` keeps it in its file. Its ledger has the lock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.store import Crossed, Draft, Exhausted, Notice, Ticket
from shared_core.resilience.budget import EXHAUSTED, Claim, Denial, Grant, MeterKey, Reading, decide, due

__all__ = ["Meters"]

_NONE: tuple[Notice, ...] = ()
_KEEP_CLAIMS = 10_000


class Meters:
    """Counts for every claim of every attempt."""

    def __init__(self) -> None:
        self._cells: dict[MeterKey, Reading] = {}
        self._since: dict[tuple[str, str | None, str, str], float] = {}
        self._told: set[tuple[MeterKey, int, float]] = set()
        self._claims: dict[int, tuple[Claim, ...]] = {}

    def reserve(self, draft: Draft, rows: Iterable[LedgerEntry]) -> tuple[Grant | Denial, Sequence[Notice]]:
        """Set the worst case of `draft` aside, or refuse. A new meter takes in what `rows` hold of its window."""
        cells, claims = self._cells, draft.claims
        for claim in claims:
            if claim.key not in cells:
                self._begin(claim, draft.at, rows)
        verdict = decide(draft.ask, claims, cells)
        if isinstance(verdict, Denial):
            return verdict, self._due(claims, verdict.claim)
        nano = verdict.nano
        if nano:
            for key in _keys(claims):
                posted, pending, unknown, over = cells[key]
                cells[key] = Reading(posted, pending + nano, unknown, over)
        return verdict, _NONE

    def settle(self, ticket: Ticket, entry: LedgerEntry, keep: int | None) -> Sequence[Notice]:
        """Count what became of an attempt in place of what was set aside for it."""
        cells, claims = self._cells, ticket.draft.claims
        bound, cost = ticket.bound_nano or 0, entry.cost_nano
        for key in _keys(claims):
            posted, pending, unknown, over = cells[key]
            pending -= bound
            if cost is not None:
                posted += cost
                over += max(0, cost - bound)
            elif entry.status is EntryStatus.UNKNOWN:
                unknown += bound
            cells[key] = Reading(posted, pending, unknown, over)
        if entry.id is not None:
            self._claims[entry.id] = claims
            if len(self._claims) > (keep or _KEEP_CLAIMS):
                del self._claims[next(iter(self._claims))]
        return self._due(claims)

    def correct(self, number: int, entry: LedgerEntry) -> None:
        """Count a correction wherever the row it corrects was counted."""
        cost, bound = entry.cost_nano or 0, entry.bound_nano or 0
        for key in _keys(self._claims.get(number, ())):
            posted, pending, unknown, over = self._cells[key]
            self._cells[key] = Reading(posted + cost, pending, unknown + bound, over + max(0, cost + bound))

    def read(self, keys: Sequence[MeterKey] | None, rows: Iterable[LedgerEntry] = ()) -> Mapping[MeterKey, Reading]:
        """What they show; one that nothing has counted towards yet, what it will take in of `rows`."""
        if keys is None:
            return dict(self._cells)
        return {key: self._cells.get(key) or self._so_far(key, self._kept_since(key), rows) for key in keys}

    def _kept_since(self, key: MeterKey) -> float:
        kinds = ((key.scope, of, key.window, key.timezone) for of in {None, key.of})
        return min((self._since[kind] for kind in kinds if kind in self._since), default=math.inf)

    def _begin(self, claim: Claim, at: float, rows: Iterable[LedgerEntry]) -> None:
        key = claim.key
        since = self._since.setdefault((key.scope, claim.budget.of, key.window, key.timezone), at)
        end = since if claim.resets_at is None else min(since, claim.resets_at)
        self._cells[key] = self._so_far(key, end, rows)

    @staticmethod
    def _so_far(key: MeterKey, end: float, rows: Iterable[LedgerEntry]) -> Reading:
        posted = unknown = 0
        if key.start < end:  # rows from before meters of this kind were kept
            when = {row.id: row.at for row in rows}
            for row in rows:
                began = when.get(row.corrects, row.at) if row.corrects is not None else row.at
                if key.start <= began < end and _counts(key, row):
                    posted += row.cost_nano or 0
                    if row.corrects is not None or (row.status is EntryStatus.UNKNOWN and row.cost_nano is None):
                        unknown += row.bound_nano or 0
        return Reading(posted, 0, unknown)

    def _due(self, claims: Sequence[Claim], denied: Claim | None = None) -> Sequence[Notice]:
        """Thresholds that spending has reached and that nobody was told of in this window."""
        notices: list[Notice] | None = None
        for claim in claims:
            reading = self._cells[claim.key]
            shares = due(claim, reading.posted + reading.unknown)
            if not shares and denied is None:
                continue
            if claim is denied and EXHAUSTED not in shares:
                shares = (*shares, EXHAUSTED)
            for share in shares:
                mark = (claim.key, claim.budget.limit_nano, share)
                if mark not in self._told:
                    self._told.add(mark)
                    notices = notices or []
                    notices.append(Exhausted(claim, reading) if share == EXHAUSTED else Crossed(claim, share, reading))
        return notices or _NONE


def _keys(claims: Sequence[Claim]) -> Iterable[MeterKey]:
    """Each meter once, also where two budgets read it."""
    return (claims[0].key,) if len(claims) == 1 else dict.fromkeys(claim.key for claim in claims)


def _counts(key: MeterKey, row: LedgerEntry) -> bool:
    """Whether a meter counts a row."""
    if row.purpose == "cache" or row.status.open:
        return False
    if key.scope == "global":
        return True
    if key.scope == "tag":
        return key.of in row.tags
    return key.of == (row.target if key.scope == "target" else row.user)
