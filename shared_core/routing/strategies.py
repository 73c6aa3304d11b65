"""Who is asked first: pure orderings of the eligible targets. A strategy is given frozen views and orders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, nearest
from shared_core.resilience.health import TargetHealth
from shared_core.routing.price import Price
from shared_core.routing.target import Target

__all__ = ["STRATEGIES", "RoutingStrategy", "TargetView", "strategy_named"]


@dataclass(frozen=True, slots=True)
class TargetView:
    """What a strategy may know of one target: a frozen snapshot. `turn` numbers the router's calls from 0."""

    target: Target
    turn: int
    price: Price | None = None
    _health: Callable[[], TargetHealth] | None = None
    _wait: Callable[[], float | None] | None = None

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.name

    @property
    def health(self) -> TargetHealth | None:
        """How it has been doing; None outside a router."""
        return self._health() if self._health is not None else None

    @property
    def wait_s(self) -> float | None:
        """Seconds until this request would have its turn there; None where that is unmeasured, or nobody waits."""
        return self._wait() if self._wait is not None else None


class RoutingStrategy(Protocol):
    """Orders the eligible targets of one request. Pure: the same views give the same order."""

    def __call__(self, request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
        """The views in the order they are to be asked. Views left out are not asked at all."""
        ...


def priority(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """As configured."""
    return views


def round_robin(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """Each call begins one target further on; the others follow in their configured order."""
    if not views:
        return views
    first = views[0].turn % len(views)
    return [*views[first:], *views[:first]]


STRATEGIES: Mapping[str, RoutingStrategy] = {
    "priority": priority,
    "round_robin": round_robin,
    "round-robin": round_robin,
}
"""Strategies by name."""


def strategy_named(strategy: str | RoutingStrategy) -> tuple[str, RoutingStrategy]:
    """The strategy and what to call it.

    Raises:
        ConfigurationError: no strategy of that name; names the nearest.
    """
    if isinstance(strategy, str):
        found = STRATEGIES.get(strategy)
        if found is None:
            raise ConfigurationError(f"unknown strategy {strategy!r}. {nearest(strategy, STRATEGIES)}")
        return strategy.replace("-", "_"), found
    if not callable(strategy):
        raise ConfigurationError(f"strategy must be a name or a callable, not {type(strategy).__name__}")
    return getattr(strategy, "__name__", type(strategy).__name__), strategy
