"""The targets of one router: built, found by name, put into chains, and changed while requests are in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared_core._inputs import TargetLike, as_target, price_of
from shared_core.errors import ConfigurationError, InvalidRequest, nearest
from shared_core.resilience.admission import Gate, Gates
from shared_core.routing.chains import Chain, chains_of
from shared_core.routing.planner import Route
from shared_core.routing.policy import Rules
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target

__all__ = ["Fleet", "Line", "Way"]

Way = tuple[Chain, tuple[Route, ...]]
"""A chain and the routes of its targets."""

_LINGER_S = 60.0
"""Seconds after which a target that was taken out, and has no call in flight, is closed: a plan may still name it."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a request sees of a router: one value, put in place of the last one whole."""

    routes: tuple[Route, ...]
    """Every target, in configured order."""
    ways: Mapping[str, Way]
    pinned: str | None
    """The target that is asked first, whatever the strategy."""
    rules: Rules
    default: Way | None
    """A chain of the user's own for requests that name none."""

    def way(self, chain: str | None) -> tuple[Chain | None, tuple[Route, ...]]:
        """The chain of a request, None where it is the router's own settings, and the targets that it may ask.

        Raises:
            InvalidRequest: no chain has that name.
        """
        if chain is None:
            return self.default or (None, self.routes)
        found = self.ways.get(chain)
        if found is None:
            raise InvalidRequest(f"no chain is named {chain!r}. {nearest(chain, self.ways)}")
        return found


class Fleet:
    """Thread-safe. Requests that have begun keep the targets that they were planned with.

    Raises:
        ConfigurationError: no targets, two of one name, or a target or chain that cannot be built.
    """

    def __init__(
        self,
        targets: Iterable[TargetLike] | TargetLike,
        chains: Mapping[str, Chain | Mapping[str, Any]] | None,
        *,
        rules: Rules,
        now: Callable[[], float],
        changed: Callable[[tuple[Route, ...]], None],
    ) -> None:
        """`changed` is told the targets at first, and after every change before the next can begin."""
        self._changed = changed
        self._rules, self._now = rules, now
        self._gates = Gates()
        self._lock = threading.RLock()
        self._retired: list[tuple[Route, float]] = []
        self._has_default = chains is not None and "default" in chains
        items = [targets] if isinstance(targets, (str, Target, Mapping, Provider)) else list(targets)
        if not items:
            raise ConfigurationError("a router needs at least one target, such as 'openai:gpt-5-mini'")
        routes = tuple(self._built(as_target(item)) for item in items)
        _refuse_twins(routes)
        self.chains = chains_of(chains, [route.name for route in routes])
        """Every chain by its name, the built-in ones included."""
        self.line = self._lined_up(routes, None)
        """What requests see now."""
        changed(routes)
        self._stand_by(routes)

    # ── what requests see ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every target, in configured order."""
        return self.line.routes

    def named(self, name: str) -> Route:
        """The target of that name.

        Raises:
            ConfigurationError: there is none; names the nearest.
        """
        for route in self.line.routes:
            if route.name == name:
                return route
        raise ConfigurationError(f"no target is named {name!r}. {nearest(name, [r.name for r in self.line.routes])}")

    # ── changing it ──────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, target: TargetLike, position: int | None) -> Target:
        """Put a target at `position`, from 0; last when left out."""
        route = self._built(as_target(target))
        with self._lock:
            routes = list(self.line.routes)
            routes.insert(len(routes) if position is None else position, route)
            _refuse_twins(routes)
            self._settle(routes, ())
        self._stand_by((route,))
        return route.target

    def remove(self, name: str) -> Target:
        """Take a target out; chains that name others lose it."""
        with self._lock:
            gone = self.named(name)
            self._settle([route for route in self.line.routes if route is not gone], (gone,))
        return gone.target

    def replace(self, name: str, target: TargetLike) -> Target:
        """Put another target in the place of one. It begins with a circuit and a record of its own."""
        route = self._built(as_target(target))
        with self._lock:
            gone = self.named(name)
            routes = [route if one is gone else one for one in self.line.routes]
            _refuse_twins(routes)
            before = self.chains
            self.chains = self._renamed(name, route.name)
            try:
                self._settle(routes, (gone,))
            except ConfigurationError:
                self.chains = before
                raise
        self._stand_by((route,))
        return route.target

    def switch(self, name: str, *, enabled: bool) -> None:
        """Enable or disable a target; its circuit, record and connections stay as they are."""
        with self._lock:
            one = self.named(name)
            if one.target.enabled is not enabled:
                twin = self._route(one.target.switched(enabled=enabled), one.provider, one.gate)
                self._settle([twin if route is one else route for route in self.line.routes], ())

    def pin(self, name: str | None) -> None:
        """Ask this target first, whatever the strategy; None asks as the strategy says."""
        with self._lock:
            if name is not None:
                self.named(name)
            line = self.line
            self.line = replace(line, pinned=name)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def providers(self) -> list[Provider]:
        """All that is to be closed, retired ones included."""
        with self._lock:
            return [route.provider for route in (*self.line.routes, *(route for route, _ in self._retired))]

    # ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _built(self, target: Target) -> Route:
        from shared_core.providers import registry

        if target.provider is None:
            registry.check(target)
            provider = registry.build(target)
        else:
            provider = target.provider
        limits = target.limits or self._rules.limits
        gate = self._gates.gate(target.name, target.account, target.model, self._rules.breaker, limits)
        return self._route(target, provider, gate)

    def _route(self, target: Target, provider: Provider, gate: Gate, terms: Chain | None = None) -> Route:
        timeouts = terms.timeouts if terms is not None else None
        retry = terms.retry if terms is not None else None
        return Route(
            target,
            provider,
            gate,
            target.timeouts or timeouts or self._rules.timeouts,
            target.retry or retry or self._rules.flow.retry,
            price_of(target, provider),
        )

    def _lined_up(self, routes: Sequence[Route], pinned: str | None) -> Line:
        ways = {name: (chain, self._routes_of(name, chain, routes)) for name, chain in self.chains.items()}
        flow = replace(self._rules.flow, prefill=any(route.standby == "prefill" for route in routes))
        default = ways["default"] if self._has_default else None
        return Line(tuple(routes), ways, pinned, replace(self._rules, flow=flow), default)

    def _routes_of(self, name: str, chain: Chain, routes: Sequence[Route]) -> tuple[Route, ...]:
        """A chain's targets; those that it has settings for ride on routes of their own."""
        if chain.targets is not None:
            by_name = {route.name: route for route in routes}
            routes = [by_name[one] for one in chain.targets if one in by_name]
            if not routes:
                raise ConfigurationError(f"chain {name!r} would be left without a target")
        if chain.retry is None and chain.timeouts is None:
            return tuple(routes)
        return tuple(self._route(route.target, route.provider, route.gate, chain) for route in routes)

    def _renamed(self, old: str, new: str) -> dict[str, Chain]:
        """The chains, in which `new` stands for `old`."""
        chains = dict(self.chains)
        for name, chain in chains.items():
            if chain.targets is not None and old in chain.targets:
                targets = tuple(new if one == old else one for one in chain.targets)
                chains[name] = replace(chain, targets=targets)
        return chains

    def _settle(self, routes: Sequence[Route], gone: Sequence[Route]) -> None:
        """Make `routes` the fleet, if that can be; close those that were taken out a while ago."""
        if not routes:
            raise ConfigurationError("a router needs at least one target\nhint: add another one first, or disable this")
        pinned = self.line.pinned
        if any(route.name == pinned for route in gone) and not any(route.name == pinned for route in routes):
            pinned = None
        self.line = self._lined_up(routes, pinned)
        self._changed(self.line.routes)
        now = self._now()
        self._retired += [(route, now) for route in gone]
        quiet = [route for route, since in self._retired if now - since > _LINGER_S and not route.gate.health.in_flight]
        self._retired = [(route, since) for route, since in self._retired if route not in quiet]
        for route in quiet:
            route.provider.close()

    @staticmethod
    def _stand_by(routes: Sequence[Route]) -> None:
        for route in routes:
            if route.standby is not None and route.target.enabled:
                route.provider.stand_by()  # type: ignore[attr-defined]  # who has a standby has this too


def _refuse_twins(routes: Sequence[Route]) -> None:
    names = [route.name for route in routes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"two targets share the name {twice[0]!r}; give one of them another name=")
