"""What has to be added to a settled row, so that the books say what it cost in truth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared_core.chat.events import Usage
from shared_core.errors import ConfigurationError, is_number
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose

__all__ = ["correction"]

_NOTHING = Usage()


def correction(
    row: LedgerEntry,
    earlier: Sequence[LedgerEntry],
    cost_nano: int,
    reason: str,
    usage: Usage | None,
    at: float,
) -> LedgerEntry | None:
    """The row that brings `row`, with the corrections it has had, to `cost_nano`; None when it is there already.

    Of an unknown outcome it also takes back the bound, which counted until now. An estimate is taken back like a
    reported cost, so that the two stay apart: what was estimated keeps its flag, what is added is reported.

    Raises:
        ConfigurationError: the cost is no whole number of nano-dollars, or below 0.
        LookupError: the row is not settled, or is a correction itself.
    """
    if not is_number(cost_nano, least=0, whole=True):
        raise ConfigurationError(f"cost_nano must be a whole number of nano-dollars, 0 or more, not {cost_nano!r}")
    if row.status.open or row.corrects is not None:
        raise LookupError(f"row {row.id} is {'a correction itself' if row.corrects is not None else 'not settled yet'}")
    rows = (row, *earlier)
    known = sum(r.cost_nano or 0 for r in rows)
    uncertain = row.bound_nano or 0 if row.status is EntryStatus.UNKNOWN and row.cost_nano is None else 0
    uncertain += sum(r.bound_nano or 0 for r in earlier)
    priced = row.cost_nano is not None or bool(earlier)
    if cost_nano == known and not uncertain and priced:
        return None
    return replace(
        row,
        at=at,
        outcome="corrected",
        status=EntryStatus.POSTED,
        usage=_difference(usage, rows),
        cost_nano=cost_nano - known,
        bound_nano=-uncertain if uncertain else None,
        latency_s=0.0,
        first_token_s=None,
        error_kind=None,
        price_version=None,
        purpose=Purpose.CORRECTION,
        id=None,
        corrects=row.id,
        reason=reason,
    )


def _difference(usage: Usage | None, rows: Sequence[LedgerEntry]) -> Usage:
    """What is missing of the reported tokens. Tokens of our own count are in no reported sum."""
    if usage is None:
        return _NOTHING
    reported = [r.usage for r in rows if r.status is EntryStatus.POSTED]
    return Usage(
        usage.input_tokens - sum(u.input_tokens for u in reported),
        usage.output_tokens - sum(u.output_tokens for u in reported),
        usage.cached_tokens - sum(u.cached_tokens for u in reported),
        usage.cache_write_tokens - sum(u.cache_write_tokens for u in reported),
        usage.reasoning_tokens - sum(u.reasoning_tokens for u in reported),
    )
