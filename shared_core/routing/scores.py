"""What speaks for and against a target, for people who ask why: `TargetScore`, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

__all__ = ["TargetScore", "scores_html"]


@dataclass(frozen=True, slots=True)
class TargetScore:
    """What speaks for and against one target. None is unknown or unmeasured."""

    target: str
    place: int | None
    """In the order, from 1; None of one that is left out."""
    score: float | None
    """What the strategy went by, in `unit`: less is better, but for weights."""
    unit: str
    excluded: str | None = None
    """Why it is left out."""
    tier: str | None = None
    weight: float = 1.0
    local: bool = False
    price_usd_per_mtok: tuple[float, float] | None = None
    """US dollars per million tokens of input and of output."""
    expected_cost_usd: float | None = None
    """Of this request."""
    expected_s: float | None = None
    """Until the answer, or in a stream its first token, failures and its queue included."""
    latency_p50_s: float | None = None
    first_token_p50_s: float | None = None
    success_rate: float | None = None
    calls: int = 0
    drift: float | None = None
    """Its first tokens of late over its usual ones."""
    circuit: str = "closed"
    wait_s: float | None = None
    unavailable: str | None = None
    """Why it would be passed over at this moment: circuit, lock, rate limit."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _cell(value: Any) -> str:
    """A figure as a table shows it."""
    match value:
        case None | False:
            return ""
        case True:
            return "yes"
        case float():
            return f"{value:.4g}"
        case tuple():
            return " / ".join(_cell(one) for one in value)
        case _:
            return str(value)


def scores_html(scores: Sequence[TargetScore]) -> str:
    """The scores as a table; columns that nobody has are left out."""
    if not scores:
        return ""
    shown = [{column: _cell(value) for column, value in score.as_dict().items()} for score in scores]
    columns = [column for column in shown[0] if any(row[column] for row in shown)]
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(row[column])}</td>" for column in columns) + "</tr>" for row in shown)
    return f"<table><caption>why this order</caption><tr>{head}</tr>{rows}</table>"
