"""When a target is checked that nobody asks: `HealthCheck` (settings) and `next_check`, the whole schedule. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from shared_core.errors import ConfigurationError, is_number

__all__ = ["HealthCheck", "How", "Standing", "next_check"]

How = Literal["auto", "models", "call"]

_SOON = 0.2
"""After a check that failed, and between the checks that decide on a half-open circuit, this share of the interval
passes, but no more than `_SOON_CAP_S` for the latter."""
_SOON_CAP_S = 1.0
_SPREAD_S = 1.0
"""The end of a pause that a server named is the same for all processes; each adds up to this much, or a tenth of it."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Checks of targets in the background, so that no user need find out. Times are seconds.

    Attributes:
        interval_s: how long a target may go unheard of before it is checked. A call that told something counts: what
            is in use is not checked.
        timeout_s: for one check.
        query: what a call asks.
        max_tokens: what a call's answer may have, at least 1. Models that think get 16: some refuse fewer.
        how: 'models' reads the vendor's list of models, which is free; 'call' makes a small call. 'auto': the list,
            where the vendor has one, and a call where it has none, or where calls have failed and only a call can
            show that they work again.
        jitter: share of the interval, from 0 to 1, by which each is longer or shorter, by chance, so that many
            processes do not check at once.
        targets: names of those to check; all when left out.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    interval_s: float = 30.0
    timeout_s: float = 5.0
    query: str = "Reply with OK."
    max_tokens: int = 1
    how: How = "auto"
    jitter: float = 0.2
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        figures: dict[str, Any] = {"interval_s": self.interval_s, "timeout_s": self.timeout_s}
        for name, value in figures.items():
            if not is_number(value, above=0):
                raise ConfigurationError(f"HealthCheck.{name} must be a positive number of seconds, not {value!r}")
        if not is_number(self.jitter, least=0, most=1):
            raise ConfigurationError(f"HealthCheck.jitter must be from 0 to 1, not {self.jitter!r}")
        most = self.max_tokens
        if not is_number(most, least=1, whole=True):
            raise ConfigurationError(f"HealthCheck.max_tokens must be a whole number of at least 1, not {most!r}")
        if self.how not in get_args(How):
            raise ConfigurationError(f"HealthCheck.how must be one of {', '.join(get_args(How))}, not {self.how!r}")
        query: Any = self.query
        if not isinstance(query, str) or not query.strip():
            raise ConfigurationError("HealthCheck.query must be a text")
        targets: Any = self.targets
        if targets is not None:
            if isinstance(targets, str) or not all(isinstance(name, str) for name in targets):
                raise ConfigurationError("HealthCheck.targets must be a list of names")
            object.__setattr__(self, "targets", tuple(targets))


class Standing(NamedTuple):
    """How a target stands, as far as its next check goes. Monotonic seconds."""

    clear: bool
    """Its circuits are closed and nothing is locked."""
    refused: bool
    """Nothing may be sent to it now."""
    retry_at: float | None
    """Until when, if that is known."""
    heard: float | None
    """When a call or a check last told something."""
    failed: bool
    """The last check did not find it well."""


def next_check(check: HealthCheck, standing: Standing, begun: float, chance: float) -> float:
    """When to check a target next, in monotonic seconds; `inf` while that depends on somebody else.

    Args:
        check: the settings.
        standing: how it stands now.
        begun: when checking began: a target that was never heard of has its first turn within an interval.
        chance: uniform in [0, 1); the same until the target is checked, then another.
    """
    interval = check.interval_s
    heard = standing.heard
    if standing.refused:
        if standing.retry_at is None:
            return math.inf  # forced open: an operator will say
        if not standing.clear:
            return standing.retry_at  # each process has its own: an open time is jittered already
        wait = max(0.0, standing.retry_at - begun if heard is None else standing.retry_at - heard)
        return standing.retry_at + chance * min(_SPREAD_S, 0.1 * wait)
    if not standing.clear:
        # It may be tried now, and whoever asks first is the one who finds out.
        return -math.inf if heard is None else heard + min(_SOON_CAP_S, _SOON * interval) * (0.5 + 0.5 * chance)
    if heard is None:
        return begun + chance * interval
    if standing.failed:
        interval *= _SOON
    return heard + interval * (1.0 + check.jitter * (2.0 * chance - 1.0))
