"""One row per attempt. Money is integer nano-dollars; unknown is None, never 0."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, Unpack

from shared_core.chat.events import Usage

if TYPE_CHECKING:
    from shared_core.ledger.analytics import CostFilters, CostReport

__all__ = ["FOLLOWS", "EntryStatus", "Ledger", "LedgerEntry", "Purpose"]


class EntryStatus(enum.StrEnum):
    """How far an attempt has come, and what is known of its cost. It only ever moves forward (`FOLLOWS`)."""

    RESERVED = "reserved"
    """Admitted; its bound is set aside. Nothing has been sent."""
    DISPATCHED = "dispatched"
    """Written before the first byte left: from here on it may be billed."""
    POSTED = "posted"
    """Answered; the cost is the reported usage at the known price."""
    ESTIMATED = "estimated"
    """Posted without usage from the provider: our own count of tokens at the known price."""
    VOIDED = "voided"
    """Refused before any work, or never sent; it cost nothing."""
    UNKNOWN = "unknown"
    """Timed out, cut, cancelled or lost after it was sent: it may have been billed, up to `bound_nano`."""

    VOID = VOIDED

    @property
    def open(self) -> bool:
        """Whether it is still to be settled."""
        return self is EntryStatus.RESERVED or self is EntryStatus.DISPATCHED


_SETTLED = frozenset({EntryStatus.POSTED, EntryStatus.ESTIMATED, EntryStatus.VOIDED, EntryStatus.UNKNOWN})
FOLLOWS: Mapping[EntryStatus, frozenset[EntryStatus]] = MappingProxyType(
    {
        EntryStatus.RESERVED: _SETTLED | {EntryStatus.DISPATCHED},
        EntryStatus.DISPATCHED: _SETTLED,
        EntryStatus.POSTED: frozenset(),
        EntryStatus.ESTIMATED: frozenset(),
        EntryStatus.VOIDED: frozenset(),
        EntryStatus.UNKNOWN: frozenset(),
    }
)
"""What may come after each status. A settled row never changes: what is learned later is a correction, another row."""


class Purpose(enum.StrEnum):
    """What an attempt was made for."""

    CALL = "call"
    HEDGE = "hedge"
    """A second try at another target while the first was silent."""
    PROBE = "probe"
    """A health check."""
    CACHE = "cache"
    """Answered from the cache: nothing was sent, it cost nothing."""
    CORRECTION = "correction"
    """What a provider's bill says beyond, or short of, an earlier row (`corrects`)."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One attempt, or one correction of one. `at` is seconds since the epoch; tokens are as reported, or our own count
    when `usage.estimated`; money is nano-dollars.
    """

    execution: str
    attempt: int
    target: str
    provider: str
    model: str
    at: float
    outcome: str
    status: EntryStatus
    usage: Usage
    cost_nano: int | None
    """What it cost; None is unknown. Of a correction: the difference, which may be negative."""
    bound_nano: int | None = None
    """What it can have cost at most. Of a correction of an unknown row: minus that row's bound. Of an answer from the
    cache: what it would have cost."""
    latency_s: float = 0.0
    error_kind: str | None = None
    price_version: str | None = None
    """Whose price: 'genai-prices 1.2.3', 'own' for a price of the target's own, 'free', None when unknown."""
    user: str | None = None
    tags: tuple[str, ...] = ()
    chain: str | None = None
    local: bool = False
    first_token_s: float | None = None
    purpose: Purpose = Purpose.CALL
    response_id: str | None = None
    """The vendor's id of the answer."""
    request_id: str | None = None
    """The vendor's id of the request, for their support desk; known of failures."""
    id: int | None = None
    """The row's number in its ledger, once it has one."""
    corrects: int | None = None
    """The row that this one corrects."""
    reason: str | None = None
    """Why a correction was posted."""

    @property
    def estimated(self) -> bool:
        """Whether the tokens are our own count."""
        return self.usage.estimated

    @property
    def cost_usd(self) -> float | None:
        """What it cost in dollars; None is unknown."""
        return None if self.cost_nano is None else self.cost_nano / 1e9


class Ledger(Protocol):
    """Keeps entries. Recording never blocks an event loop and never raises into a request."""

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        ...

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first."""
        ...

    def costs(self, **filters: Unpack[CostFilters]) -> CostReport:
        """What they add up to; `filters` as in `Router.costs`."""
        ...

    def close(self) -> None:
        """Write what is pending and let go."""
        ...
