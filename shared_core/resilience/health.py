"""How targets have been doing lately, as their own calls have shown: `HealthRecord`, and what people read of it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, NamedTuple

from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.drift import Drift
from shared_core.resilience.windows import Outages, Ranked, Tally

__all__ = [
    "WINDOWS_S",
    "HealthChange",
    "HealthRecord",
    "HealthReport",
    "HealthStatus",
    "HealthWindow",
    "Hold",
    "Pace",
    "SelfReport",
    "TargetHealth",
    "percentile",
]

WINDOWS_S = (60.0, 300.0, 3600.0, 86_400.0)
"""The windows of time that `Router.health()` tells of, in seconds."""
_ENOUGH = 5
"""Calls of which most must have failed before that alone makes a target ill."""
_KEPT_CHANGES = 200
"""Changes of state that are remembered of each target."""


class HealthStatus(enum.StrEnum):
    """In one word."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    UNKNOWN = "UNKNOWN"
    """Never asked, or only ever asked for things that say nothing about it."""
    CHECKING = "CHECKING"
    """Its circuit is half-open and a probe decides, or it is being checked and nothing good is known of it."""


@dataclass(frozen=True, slots=True)
class SelfReport:
    """What a provider knows of itself: one that runs the model here sees more than its calls show."""

    facts: Mapping[str, Any]
    """Engine, threads, layers on the GPU, memory, rates, queue, …"""
    unhealthy: str | None = None
    """Why it cannot serve now."""
    retry_in_s: float | None = None


class Hold(NamedTuple):
    """A pause with an end: a parked target, or a locked account. Monotonic seconds."""

    since: float
    until: float
    reason: str


class Pace(NamedTuple):
    """What a strategy asks of a target's record with every request: cheap, and the same until another call ends."""

    calls: int
    success_rate: float | None
    latency_p50_s: float | None
    first_token_p50_s: float | None
    drift: float | None
    drifting: bool


@dataclass(frozen=True, slots=True)
class HealthChange:
    """One change of a target's state. `ago_s` is seconds before the reading, `for_s` how long it was to last."""

    ago_s: float
    state: str
    """'circuit open', 'circuit half-open', 'circuit closed', 'parked', 'account locked', 'unhealthy', 'recovered', …"""
    for_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class HealthWindow:
    """The last `seconds` of one target. None is unmeasured."""

    seconds: float
    calls: int
    """Calls that ended in it and say something about the target."""
    success_rate: float | None
    availability: float | None
    """The share of this time in which its circuit was closed, and it neither parked nor locked."""
    observed_s: float
    """How much of the window is known: less than `seconds` for a young router."""


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
    latency_p99_s: float | None = None
    first_token_p99_s: float | None = None
    """First tokens are those of streamed answers; a whole answer has none."""
    parked_for_s: float | None = None
    """It asked to be left alone so much longer (a rate limit), or has no such model: no fault of its circuit."""
    park_reason: str | None = None
    locked_for_s: float | None = None
    """Everything behind its key and address is locked so much longer: the key, the bill or a permission."""
    lock_reason: str | None = None
    drift: float | None = None
    """Its first tokens of late over its usual ones: 1.0 is as ever. None until 20 streams were measured."""
    drifting: bool = False
    """Whether that is more than noise: strategy 'performance' then prefers others, before it fails."""
    windows: tuple[HealthWindow, ...] = ()
    """The last minute, five minutes, hour and day."""
    history: tuple[HealthChange, ...] = ()
    """Its last changes of state, oldest first."""
    last_probe_ok: bool | None = None
    """How its last health check ended (docs/health.md); None when there was none."""
    last_probe_ago_s: float | None = None

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
    def pace(self) -> Pace:
        """What strategies compare."""
        return Pace(
            self.calls, self.success_rate, self.latency_p50_s, self.first_token_p50_s, self.drift, self.drifting
        )

    @property
    def error_rate(self) -> float | None:
        """One minus the success rate."""
        return None if self.success_rate is None else 1.0 - self.success_rate


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How every target is doing. Prints as a table, in a terminal and in a notebook."""

    targets: tuple[TargetHealth, ...]
    at: float = 0.0
    """When it was read, in seconds since the epoch."""

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
                "p99": _seconds(t.latency_p99_s),
                "first token p50": _seconds(t.first_token_p50_s),
                "first token p95": _seconds(t.first_token_p95_s),
                "last hour": _share(next((w.availability for w in t.windows if w.seconds == 3600.0), None)),
                "held": _held(t),
                "last error": t.last_error or "",
                "available": "yes" if t.available else f"no: {t.unavailable_reason}",
            }
            for t in self.targets
        ]

    def changes(self) -> list[dict[str, Any]]:
        """Every remembered change of state of all targets as plain data, oldest first: what a notebook plots.

        `at` is in seconds since the epoch.
        """
        rows = [
            {"at": self.at - c.ago_s, "target": t.target, "state": c.state, "for_s": c.for_s, "reason": c.reason}
            for t in self.targets
            for c in t.history
        ]
        return sorted(rows, key=lambda row: float(row["at"] or 0.0))

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


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if value < 1 else "100%"


def _held(t: TargetHealth) -> str:
    parts = []
    if t.locked_for_s is not None:
        parts.append(f"locked {t.locked_for_s:.0f} s")
    if t.parked_for_s is not None:
        parts.append(f"parked {t.parked_for_s:.0f} s")
    if t.drifting:
        parts.append(f"drifts ×{t.drift:.1f}")
    return ", ".join(parts)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


class HealthRecord:
    """Remembers the last calls of one target. Its owner holds the lock."""

    __slots__ = (
        "_changes",
        "_drift",
        "_first_tokens",
        "_fresh",
        "_latencies",
        "_results",
        "_since",
        "_tally",
        "calls",
        "checking",
        "checking_circuit",
        "consecutive_failures",
        "in_flight",
        "last_error",
        "last_error_at",
        "last_pace",
        "last_probe",
        "last_result_at",
        "outages",
        "sick",
    )

    def __init__(self, keep: int = 100) -> None:
        self._results: deque[bool] = deque(maxlen=keep)
        self._latencies = Ranked(keep)
        self._first_tokens = Ranked(keep)
        self._tally = Tally()
        self._drift = Drift()
        self._fresh = 0  # first tokens that the drift has not been told of yet
        self.last_pace: Pace | None = None
        """What `pace` was when it was last worked out; None since a call has ended."""
        self._changes: deque[tuple[float, str, float | None, str | None]] = deque(maxlen=_KEPT_CHANGES)
        self._since: float | None = None
        self.outages = Outages()
        """When it could not be tried."""
        self.calls = 0
        self.consecutive_failures = 0
        self.in_flight = 0
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.last_result_at: float | None = None
        """When a call last told something about it."""
        self.last_probe: tuple[float, bool] | None = None
        """When it was last checked, and whether it was well."""
        self.checking = 0
        """Health checks under way."""
        self.checking_circuit = False
        """Whether its circuit was told to be half-open, and has not changed since."""
        self.sick = False
        """Whether it was told to be unhealthy, and has not recovered since."""

    def success(self, latency_s: float, first_token_s: float | None, now: float) -> None:
        """It answered, whole, after `latency_s`. A `first_token_s` is a stream's."""
        self._results.append(True)
        self._latencies.add(latency_s)
        if first_token_s is not None:
            self._first_tokens.add(first_token_s)
            self._fresh += 1
        self.last_pace = None
        self.consecutive_failures = 0
        self.last_result_at = now
        self._tally.count(now, ok=True)

    def failure(self, error: str, now: float) -> None:
        """It failed, in a way that says something about it."""
        self._results.append(False)
        self.last_pace = None
        self.consecutive_failures += 1
        self.last_result_at = now
        self._tally.count(now, ok=False)
        self.note(error, now)

    def note(self, error: str, now: float) -> None:
        """It refused, in a way that says nothing about its health (a throttle, a bad request)."""
        self.last_error = error
        self.last_error_at = now

    def probed(self, now: float, *, ok: bool) -> None:
        """A health check ended. It counts for the status, but neither as a call nor in percentiles."""
        self.last_probe = (now, ok)
        self._begin(now)

    def changed(self, now: float, state: str, until: float | None = None, reason: str | None = None) -> None:
        """Remember a change of state."""
        self._begin(now)
        self._changes.append((now, state, until, reason))

    def _begin(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def begin(self, now: float) -> None:
        """Its first call begins: what is said about spans of time begins here."""
        self._since = now

    @property
    def begun(self) -> bool:
        """Whether it was ever asked."""
        return self._since is not None

    @property
    def success_rate(self) -> float | None:
        """Share of successes among the last calls that counted."""
        return self._results.count(True) / len(self._results) if self._results else None

    @property
    def median_first_token_s(self) -> float | None:
        """Median time to first token."""
        return _ranked(self._first_tokens.ranked(), 0.5)

    @property
    def drift(self) -> Drift:
        """How its first tokens of late compare with its usual ones."""
        if self._fresh:
            fresh = list(self._first_tokens.values)[-self._fresh :]
            self._fresh = 0
            for first_token_s in fresh:
                self._drift.add(first_token_s)
        return self._drift

    @property
    def pace(self) -> Pace:
        """What strategies compare."""
        pace = self.last_pace
        if pace is None or pace.calls != self.calls:
            drift = self.drift
            pace = self.last_pace = Pace(
                self.calls,
                self.success_rate,
                _ranked(self._latencies.ranked(), 0.5),
                _ranked(self._first_tokens.ranked(), 0.5),
                drift.ratio,
                drift.drifting,
            )
        return pace

    def status(self, circuit: CircuitState, reason: str | None = None, *, passes: bool = False) -> HealthStatus:
        """In one word. `reason` says why it may not be tried now; `passes` that this is only a wait."""
        if circuit is CircuitState.HALF_OPEN:
            return HealthStatus.CHECKING
        if circuit in (CircuitState.OPEN, CircuitState.FORCED_OPEN):
            return HealthStatus.CHECKING if self.checking else HealthStatus.UNHEALTHY
        held = reason is not None and not passes
        probe = self.last_probe
        if probe is not None and (self.last_result_at is None or probe[0] >= self.last_result_at):
            well: bool | None = probe[1]
        elif not self._results:
            well = False if held and self.last_error else None
        else:
            well = self._results[-1] or (self.success_rate or 0.0) >= 0.5
        if held:
            well = False if well is not None else None
        if well:
            return HealthStatus.HEALTHY
        if self.checking:
            return HealthStatus.CHECKING
        return HealthStatus.UNKNOWN if well is None else HealthStatus.UNHEALTHY

    def turned(self, circuit: CircuitState, reason: str | None = None, *, passes: bool = False) -> bool:
        """Whether it has just become unhealthy, or recovered: `sick` says which. Once per change."""
        status = self.status(circuit, reason, passes=passes)
        if self.sick:
            if status in (HealthStatus.HEALTHY, HealthStatus.UNKNOWN):
                self.sick = False
                return True
        elif status is HealthStatus.UNHEALTHY:
            # One failed call among few is told as such; that the target is ill takes more.
            closed = circuit in (CircuitState.CLOSED, CircuitState.DISABLED)
            held = reason is not None and not passes
            probe = self.last_probe is not None and not self.last_probe[1]
            self.sick = not closed or held or probe or len(self._results) >= _ENOUGH
            return self.sick
        return False

    def windows(self, now: float) -> tuple[HealthWindow, ...]:
        """The last minute, five minutes, hour and day."""
        return tuple(self._window(now, seconds) for seconds in WINDOWS_S)

    def _window(self, now: float, seconds: float) -> HealthWindow:
        good, bad = self._tally.within(now, seconds)
        total = good + bad
        observed = 0.0 if self._since is None else min(seconds, max(0.0, now - self._since))
        down = self.outages.down_s(now, observed)
        return HealthWindow(
            seconds,
            total,
            good / total if total else None,
            None if self._since is None else 1.0 if observed <= 0 else max(0.0, 1.0 - down / observed),
            observed,
        )

    def history(self, now: float) -> tuple[HealthChange, ...]:
        """The last changes of state, oldest first."""
        return tuple(
            HealthChange(max(0.0, now - at), state, None if until is None else max(0.0, until - at), reason)
            for at, state, until, reason in self._changes
        )

    def read(
        self,
        target: str,
        now: float,
        circuit: CircuitState,
        *,
        reason: str | None = None,
        retry_at: float | None = None,
        passes: bool = False,
        parked: Hold | None = None,
        locked: Hold | None = None,
    ) -> TargetHealth:
        """A frozen reading.

        `reason` says why the target may not be tried now, None that it may; `passes` that this is only a wait. `parked`
        and `locked` are the holds that stand now.
        """
        latencies, first_tokens = self._latencies.ranked(), self._first_tokens.ranked()
        drift = self.drift
        return TargetHealth(
            target=target,
            status=self.status(circuit, reason, passes=passes),
            circuit=circuit,
            calls=self.calls,
            success_rate=self.success_rate,
            consecutive_failures=self.consecutive_failures,
            latency_p50_s=_ranked(latencies, 0.5),
            latency_p95_s=_ranked(latencies, 0.95),
            first_token_p50_s=_ranked(first_tokens, 0.5),
            first_token_p95_s=_ranked(first_tokens, 0.95),
            in_flight=self.in_flight,
            last_error=self.last_error,
            last_error_ago_s=None if self.last_error_at is None else max(0.0, now - self.last_error_at),
            available=reason is None,
            unavailable_reason=reason,
            retry_in_s=None if retry_at is None else max(0.0, retry_at - now),
            latency_p99_s=_ranked(latencies, 0.99),
            first_token_p99_s=_ranked(first_tokens, 0.99),
            parked_for_s=None if parked is None else max(0.0, parked.until - now),
            park_reason=None if parked is None else parked.reason,
            locked_for_s=None if locked is None else max(0.0, locked.until - now),
            lock_reason=None if locked is None else locked.reason,
            drift=drift.ratio,
            drifting=drift.drifting,
            last_probe_ok=None if self.last_probe is None else self.last_probe[1],
            last_probe_ago_s=None if self.last_probe is None else max(0.0, now - self.last_probe[0]),
        )


def percentile(values: Sequence[float] | deque[float], share: float) -> float | None:
    """The nearest-rank percentile, `share` from 0 to 1; None of nothing."""
    return _ranked(sorted(values), share)


def _ranked(ranked: Sequence[float], share: float) -> float | None:
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else None
