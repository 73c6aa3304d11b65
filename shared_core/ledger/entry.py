"""One row per attempt, and what the rows add up to. Money is integer nano-dollars; unknown is None, never 0."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any, Protocol

from shared_core.chat.events import Usage

__all__ = ["FOLLOWS", "CostReport", "EntryStatus", "Ledger", "LedgerEntry", "Purpose", "TargetCost"]


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
    VOIDED = "void"
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


@dataclass(frozen=True, slots=True)
class TargetCost:
    """What one target has cost. Dollars; `at_most_usd` adds the bounds of attempts whose cost is unknown."""

    target: str
    attempts: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unknown_nano: int = 0
    unpriced: int = 0
    """Attempts at an unknown price."""

    @property
    def cost_usd(self) -> float:
        """Known cost."""
        return self.cost_nano / 1e9

    @property
    def at_most_usd(self) -> float:
        """Known cost plus the bound of what may have been billed without an answer."""
        return (self.cost_nano + self.unknown_nano) / 1e9


@dataclass(frozen=True, slots=True)
class CostReport:
    """What everything has cost so far, by target."""

    targets: Sequence[TargetCost] = ()
    by_tag: Mapping[str, int] = field(default_factory=dict)
    by_user: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_usd(self) -> float:
        """Known cost of all targets, in dollars."""
        return sum(t.cost_nano for t in self.targets) / 1e9

    @property
    def at_most_usd(self) -> float:
        """The same plus the bound of every attempt whose cost is unknown."""
        return sum(t.cost_nano + t.unknown_nano for t in self.targets) / 1e9

    @property
    def total_tokens(self) -> int:
        """Input and output of all targets."""
        return sum(t.input_tokens + t.output_tokens for t in self.targets)

    def rows(self) -> list[dict[str, Any]]:
        """As plain data, one row per target."""
        return [
            {
                "target": t.target,
                "attempts": t.attempts,
                "answers": t.answers,
                "input_tokens": t.input_tokens,
                "output_tokens": t.output_tokens,
                "cost_usd": None if t.unpriced and not t.cost_nano else t.cost_usd,
                "at_most_usd": t.at_most_usd,
            }
            for t in self.targets
        ]

    def __str__(self) -> str:
        lines = [f"{'target':40} {'tries':>5} {'answers':>7} {'in':>8} {'out':>8} {'cost $':>11} {'at most $':>11}"]
        lines += [
            f"{r['target'][:40]:40} {r['attempts']:5} {r['answers']:7} {r['input_tokens']:8} {r['output_tokens']:8} "
            f"{_dollars(r['cost_usd']):>11} {_dollars(r['at_most_usd']):>11}"
            for r in self.rows()
        ]
        lines.append(
            f"{'total':40} {'':5} {'':7} {'':8} {'':8} {_dollars(self.total_usd):>11} {_dollars(self.at_most_usd):>11}"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(r['target'])}</td><td>{r['attempts']}</td><td>{r['answers']}</td><td>{r['input_tokens']}</td>"
            f"<td>{r['output_tokens']}</td><td>{_dollars(r['cost_usd'])}</td><td>{_dollars(r['at_most_usd'])}</td></tr>"
            for r in self.rows()
        )
        return (
            "<table><tr><th>target</th><th>attempts</th><th>answers</th><th>input tokens</th><th>output tokens</th>"
            f"<th>cost $</th><th>at most $</th></tr>{rows}<tr><th>total</th><td></td><td></td><td></td><td></td>"
            f"<th>{_dollars(self.total_usd)}</th><th>{_dollars(self.at_most_usd)}</th></tr></table>"
        )


def _dollars(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"


class Ledger(Protocol):
    """Keeps entries. Recording never blocks an event loop and never raises into a request."""

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        ...

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first."""
        ...

    def costs(self) -> CostReport:
        """What they add up to."""
        ...

    def close(self) -> None:
        """Write what is pending and let go."""
        ...
