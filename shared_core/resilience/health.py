"""How targets have been doing lately, as their own calls have shown: `HealthRecord`, and what people read of it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from shared_core.resilience.breaker import CircuitState

__all__ = ["HealthRecord", "HealthReport", "HealthStatus", "SelfReport", "TargetHealth", "percentile"]


class HealthStatus(enum.StrEnum):
    """In one word."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    UNKNOWN = "UNKNOWN"
    """Never asked, or only ever asked for things that say nothing about it."""
    CHECKING = "CHECKING"
    """Its circuit is half-open: a probe decides."""


@dataclass(frozen=True, slots=True)
class SelfReport:
    """What a provider knows of itself: one that runs the model here sees more than its calls show."""

    facts: Mapping[str, Any]
    """Engine, threads, layers on the GPU, memory, rates, queue, …"""
    unhealthy: str | None = None
    """Why it cannot serve now."""
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """A frozen reading of one target. Times are seconds; percentiles span its last 100 calls; None is unmeasured."""

    target: str
    status: HealthStatus
    circuit: CircuitState
    calls: int
    success_rate: float | None
    consecutive_failures: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    in_flight: int
    last_error: str | None
    last_error_ago_s: float | None
    available: bool
    """May be tried now: enabled, circuit and account not closed, not parked."""
    unavailable_reason: str | None = None
    retry_in_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the target reports of itself; local models do (docs/local-model.md)."""

    def told(self, report: SelfReport) -> TargetHealth:
        """The same with what the target says of itself. It knows first when it cannot serve."""
        if report.unhealthy is None:
            return replace(self, facts=report.facts)
        return replace(
            self,
            facts=report.facts,
            status=HealthStatus.UNHEALTHY,
            available=False,
            unavailable_reason=report.unhealthy,
            retry_in_s=report.retry_in_s,
        )

    @property
    def error_rate(self) -> float | None:
        """One minus the success rate."""
        return None if self.success_rate is None else 1.0 - self.success_rate


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How every target is doing. Prints as a table, in a terminal and in a notebook."""

    targets: tuple[TargetHealth, ...]

    def __getitem__(self, name: str) -> TargetHealth:
        for target in self.targets:
            if target.target == name:
                return target
        raise KeyError(name)

    def __iter__(self) -> Iterator[TargetHealth]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self) -> list[dict[str, Any]]:
        """As plain data, one row per target."""
        return [
            {
                "target": t.target,
                "status": str(t.status),
                "circuit": str(t.circuit),
                "calls": t.calls,
                "success": "–" if t.success_rate is None else f"{t.success_rate:.0%}",
                "p50": _seconds(t.latency_p50_s),
                "p95": _seconds(t.latency_p95_s),
                "first token p50": _seconds(t.first_token_p50_s),
                "last error": t.last_error or "",
                "available": "yes" if t.available else f"no: {t.unavailable_reason}",
            }
            for t in self.targets
        ]

    def __str__(self) -> str:
        rows = self.rows()
        if not rows:
            return "no targets"
        columns = list(rows[0])
        cells = [[str(row[c])[:48] for c in columns] for row in rows]
        widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
        lines = [columns, *cells]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def _repr_html_(self) -> str:
        colours = {"HEALTHY": "#2e7d32", "UNHEALTHY": "#c62828", "CHECKING": "#ef6c00", "UNKNOWN": "#757575"}
        rows = self.rows()
        head = "".join(f"<th>{escape(c)}</th>" for c in (rows[0] if rows else {"target": ""}))
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="color:{colours[str(v)]};font-weight:bold">{escape(str(v))}</td>'
                if c == "status"
                else f"<td>{escape(str(v))}</td>"
                for c, v in row.items()
            )
            + "</tr>"
            for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


class HealthRecord:
    """Remembers the last calls of one target. Its owner holds the lock."""

    __slots__ = (
        "_first_tokens",
        "_latencies",
        "_results",
        "calls",
        "consecutive_failures",
        "in_flight",
        "last_error",
        "last_error_at",
    )

    def __init__(self, keep: int = 100) -> None:
        self._results: deque[bool] = deque(maxlen=keep)
        self._latencies: deque[float] = deque(maxlen=keep)
        self._first_tokens: deque[float] = deque(maxlen=keep)
        self.calls = 0
        self.consecutive_failures = 0
        self.in_flight = 0
        self.last_error: str | None = None
        self.last_error_at: float | None = None

    def success(self, latency_s: float, first_token_s: float | None) -> None:
        """It answered, whole, after `latency_s`."""
        self._results.append(True)
        self._latencies.append(latency_s)
        if first_token_s is not None:
            self._first_tokens.append(first_token_s)
        self.consecutive_failures = 0

    def failure(self, error: str, now: float) -> None:
        """It failed, in a way that says something about it."""
        self._results.append(False)
        self.consecutive_failures += 1
        self.note(error, now)

    def note(self, error: str, now: float) -> None:
        """It refused, in a way that says nothing about its health (a throttle, a bad request)."""
        self.last_error = error
        self.last_error_at = now

    @property
    def success_rate(self) -> float | None:
        """Share of successes among the last calls that counted."""
        return sum(self._results) / len(self._results) if self._results else None

    @property
    def median_first_token_s(self) -> float | None:
        """Median time to first token."""
        return percentile(self._first_tokens, 0.5)

    def read(
        self,
        target: str,
        now: float,
        circuit: CircuitState,
        *,
        reason: str | None = None,
        retry_at: float | None = None,
    ) -> TargetHealth:
        """A frozen reading. `reason` says why the target may not be tried now, None that it may."""
        if circuit is CircuitState.HALF_OPEN:
            status = HealthStatus.CHECKING
        elif circuit in (CircuitState.OPEN, CircuitState.FORCED_OPEN):
            status = HealthStatus.UNHEALTHY
        elif not self._results:
            status = HealthStatus.UNHEALTHY if reason and self.last_error else HealthStatus.UNKNOWN
        elif reason or (not self._results[-1] and (self.success_rate or 0.0) < 0.5):
            status = HealthStatus.UNHEALTHY
        else:
            status = HealthStatus.HEALTHY
        return TargetHealth(
            target=target,
            status=status,
            circuit=circuit,
            calls=self.calls,
            success_rate=self.success_rate,
            consecutive_failures=self.consecutive_failures,
            latency_p50_s=percentile(self._latencies, 0.5),
            latency_p95_s=percentile(self._latencies, 0.95),
            first_token_p50_s=percentile(self._first_tokens, 0.5),
            first_token_p95_s=percentile(self._first_tokens, 0.95),
            in_flight=self.in_flight,
            last_error=self.last_error,
            last_error_ago_s=None if self.last_error_at is None else max(0.0, now - self.last_error_at),
            available=reason is None,
            unavailable_reason=reason,
            retry_in_s=None if retry_at is None else max(0.0, retry_at - now),
        )


def percentile(values: Sequence[float] | deque[float], share: float) -> float | None:
    """The nearest-rank percentile, `share` from 0 to 1; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
