"""The targets of one router: built, found by name, put into chains, and changed while requests are in flight."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared_core._forks import after_fork, free
from shared_core._inputs import TargetLike, as_target, price_of
from shared_core.errors import ConfigurationError, InvalidRequest, nearest
from shared_core.resilience.admission import Gate, Gates
from shared_core.routing.chains import Chain, chains_of
from shared_core.routing.planner import Route
from shared_core.routing.policy import Rules
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target

__all__ = ["Fleet", "Heirs", "Line", "Way"]


@dataclass(frozen=True, slots=True)
class Heirs:
    """The targets of a router that takes over what another one has learnt: None are the other's own."""

    fleet: Fleet
    targets: Iterable[TargetLike] | TargetLike | None = None


Way = tuple[Chain, tuple[Route, ...]]
"""A chain and the routes of its targets."""

_LINGER_S = 60.0
"""Seconds after which a target that was taken out, and has no call in flight, is closed: a plan may still name it."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a request sees of a router: one value, put in place of the last one whole."""

    routes: tuple[Route, ...]
    """Every target, in configured order."""
    targets: tuple[Target, ...]
    """The same, without what serves them."""
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
        try:
            return self.ways[chain]
        except (KeyError, TypeError):  # what cannot be hashed is no name either
            raise InvalidRequest(f"no chain is named {chain!r}. {nearest(str(chain), self.ways)}") from None


class Fleet:
    """Thread-safe. Requests that have begun keep the targets that they were planned with.

    Raises:
        ConfigurationError: no targets, two of one name, or a target or chain that cannot be built.
    """

    def __init__(
        self,
        targets: Iterable[TargetLike] | TargetLike | Heirs,
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
        self._open = True
        self._kin: weakref.WeakSet[Fleet] = weakref.WeakSet()
        """Fleets that may hold the same connections; this one among them."""
        line: Line | None = None
        if isinstance(targets, Heirs):
            line, self._gates, self._kin = targets.fleet.line, targets.fleet._gates, targets.fleet._kin
            targets = [r.target for r in line.routes] if targets.targets is None else targets.targets
        self._kin.add(self)
        routes = self._listed(targets, () if line is None else line.routes)
        self.chains = chains_of(chains, [route.name for route in routes])
        """Every chain by its name, the built-in ones included."""
        self.line: Line = self._lined_up(routes, None)
        """What requests see now."""
        changed(routes)
        self._stand_by(routes)
        after_fork(self._in_child)

    def _in_child(self) -> None:
        """Threads of the parent may have held any lock, and whatever is in flight is theirs."""
        self._lock = threading.RLock()
        hedger = self.line.rules.flow.hedger
        if hedger is not None:
            free(hedger.mutex)
        for route in (*self.line.routes, *(gone for gone, _ in self._retired)):
            for mutex in route.gate.mutexes:
                free(mutex)
            route.gate.orphan()

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

    def change(
        self,
        rules: Rules,
        targets: Iterable[TargetLike] | TargetLike | None,
        chains: Mapping[str, Chain | Mapping[str, Any]] | None,
        *,
        rechained: bool,
    ) -> None:
        """Other rules, and other targets and chains where these are given: all of it, or nothing.

        A target that keeps its name keeps what is known of it: its circuit and record unless it is another model or
        another endpoint, its connections too unless its key or an option of its provider is another.

        Raises:
            ConfigurationError: something of it cannot be; then nothing has changed.
        """
        with self._lock:
            before = self._rules, self.chains, self._has_default
            old = self.line.routes
            self._rules = rules
            try:
                routes = self._listed([r.target for r in old] if targets is None else targets, old)
                if rechained:
                    self.chains = chains_of(chains, [route.name for route in routes])
                    self._has_default = chains is not None and "default" in chains
                kept = {id(route.provider) for route in routes}
                self._settle(routes, [route for route in old if id(route.provider) not in kept])
            except BaseException:
                self._rules, self.chains, self._has_default = before
                raise
            for route in routes:
                route.gate.configure(rules.breaker)
        self._stand_by([route for route in routes if all(route.provider is not other.provider for other in old)])

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def providers(self) -> list[Provider]:
        """All that is to be closed, retired ones included; not what another router that is open has, too."""
        with self._lock:
            self._open = False
            others = [fleet for fleet in tuple(self._kin) if fleet is not self and fleet._open]
            held = {id(route.provider) for fleet in others for route in fleet.line.routes}
            mine = (*self.line.routes, *(route for route, _ in self._retired))
            return [route.provider for route in mine if id(route.provider) not in held]

    @property
    def shared(self) -> bool:
        """Whether another router that is open has learnt from the same targets."""
        return any(fleet is not self and fleet._open for fleet in tuple(self._kin))

    # ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _listed(self, targets: Iterable[TargetLike] | TargetLike, old: Sequence[Route]) -> tuple[Route, ...]:
        """The routes of `targets`; those of `old` that go by the same name are taken over, as far as they may be.

        Raises:
            ConfigurationError: there are none, two share a name, or one cannot be built.
        """
        items = [targets] if isinstance(targets, (str, Target, Mapping, Provider)) else list(targets)
        if not items:
            raise ConfigurationError("a router needs at least one target, such as 'openai:gpt-5-mini'")
        known = {route.name: route for route in old}
        routes = []
        for target in map(as_target, items):
            before = known.get(target.name)
            routes.append(self._built(target) if before is None else self._heir(target, before))
        _refuse_twins(routes)
        return tuple(routes)

    def _heir(self, target: Target, before: Route) -> Route:
        """The route of a target that goes by the name of one that is there, with what is still true of that one."""
        was = before.target
        if (target.provider_name, target.model, target.base_url) != (was.provider_name, was.model, was.base_url):
            return self._built(target)
        if target.provider is not was.provider:
            return self._built(target)
        gate = before.gate
        limits = target.limits or self._rules.limits
        if target.account != was.account:
            fresh = self._gates.gate(target.name, target.account, target.model, self._rules.breaker, limits)
            gate = gate.under(fresh.account, fresh.limiter)
            gate.lift()
        elif (limiter := self._gates.limiter(target.name, target.account, target.model, limits)) is not gate.limiter:
            gate = gate.under(gate.account, limiter)
        same = (target.api_key, target.options, target.capabilities) == (was.api_key, was.options, was.capabilities)
        if same:
            return self._route(target, before.provider, gate)
        return self._route(target, self._built(target).provider, gate)

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
        targets = tuple([route.target for route in routes])
        return Line(tuple(routes), targets, ways, pinned, replace(self._rules, flow=flow), default)

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
