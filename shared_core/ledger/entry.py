"""One row per attempt, and what the rows add up to. Money is integer nano-dollars; unknown is None, never 0."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Protocol

from shared_core.chat.events import Usage

__all__ = ["CostReport", "EntryStatus", "Ledger", "LedgerEntry", "TargetCost"]


class EntryStatus(enum.StrEnum):
    """What is known of an attempt's cost."""

    POSTED = "posted"
    """Answered; the cost is the reported usage at the known price."""
    ESTIMATED = "estimated"
    """Answered without usage; our own count of tokens at the known price."""
    VOID = "void"
    """Refused before any work; it cost nothing."""
    UNKNOWN = "unknown"
    """Timed out, cut or cancelled after it was sent: it may have been billed, up to `bound_nano`."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One attempt. `at` is seconds since the epoch; tokens are as reported, or counted when `status` is estimated."""

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
    bound_nano: int | None = None
    latency_s: float = 0.0
    error_kind: str | None = None
    price_version: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    chain: str | None = None
    local: bool = False


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
