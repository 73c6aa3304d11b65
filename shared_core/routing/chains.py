"""Named chains: who is asked for one kind of request, in which order, and how patiently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared_core.errors import ConfigurationError, nearest
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.complexity import Complexity, checked
from shared_core.routing.strategies import RoutingStrategy, strategy_named
from shared_core.routing.target import built

__all__ = ["BUILT_IN", "Chain", "chains_of"]


@dataclass(frozen=True, slots=True)
class Chain:
    """How the requests of one kind are routed. What is left out is the router's.

    Attributes:
        targets: names of the targets that may answer, in order; left out, all of the router's in its order.
        strategy: as of `Router`.
        retry: in place of the router's; a target's own still wins.
        timeouts: in place of the router's; a target's own still wins, and `timeout_s` of a request.
        complexity: as of `Router`; a request's own goes before it.

    Raises:
        ConfigurationError: no targets, one of them twice, an unknown strategy, or an option out of range.
    """

    targets: Sequence[str] | None = None
    strategy: str | RoutingStrategy | None = None
    retry: RetryPolicy | None = None
    timeouts: Timeouts | None = None
    complexity: Complexity | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            names = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
            if not names or len(set(names)) != len(names):
                raise ConfigurationError(f"Chain.targets must be the names of some targets, each once, not {names!r}")
            object.__setattr__(self, "targets", names)
        if self.strategy is not None:
            strategy_named(self.strategy)
        checked(self.complexity)
        object.__setattr__(self, "retry", built("Chain.retry", RetryPolicy, self.retry))
        object.__setattr__(self, "timeouts", built("Chain.timeouts", Timeouts, self.timeouts))


BUILT_IN: Final[Mapping[str, Chain]] = {
    "default": Chain(),
    "high-priority": Chain(strategy="priority", retry=RetryPolicy(same_target=2, total=4)),
    "low-cost": Chain(strategy="cost"),
    "local-first": Chain(strategy="local_first"),
}
"""Chains that every router has, over whatever targets it has. One of your own of the same name takes its place."""


def chains_of(given: Mapping[str, Chain | Mapping[str, Any]] | None, targets: Iterable[str]) -> dict[str, Chain]:
    """The built-in chains and those in `given`.

    Raises:
        ConfigurationError: a chain is no `Chain` or mapping of its options, or names a target that is not there.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"chains must map names to chains, not {type(given).__name__}")
    names = tuple(targets)
    chains = dict(BUILT_IN)
    for name, chain in (given or {}).items():
        chains[name] = made = built(f"chain {name!r}", Chain, chain) or Chain()
        for one in made.targets or ():
            if one not in names:
                raise ConfigurationError(f"chain {name!r} names {one!r}, which is no target. {nearest(one, names)}")
    return chains
