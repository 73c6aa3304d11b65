"""Who may answer a request, in which order, and who may not and why: `plan` and the `Plan` it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from shared_core.chat.request import ANYONE, ChatRequest, Constraints
from shared_core.errors import ConfigurationError
from shared_core.resilience.admission import Gate
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.health import TargetHealth
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.capabilities import FLAGS, Capabilities, is_plain, missing
from shared_core.routing.chains import Chain
from shared_core.routing.price import Price
from shared_core.routing.provider import Provider
from shared_core.routing.strategies import RoutingStrategy, TargetView
from shared_core.routing.target import Target

__all__ = ["Plan", "Route", "plan"]

CHARS_PER_TOKEN = 6
"""Deliberately generous: a target is only excluded for its window when the request cannot possibly fit."""


@dataclass(slots=True, eq=False, repr=False)
class Route:
    """A target bound to what serves it: its provider, its gate, and the settings that apply to it."""

    target: Target
    provider: Provider
    gate: Gate
    timeouts: Timeouts
    retry: RetryPolicy
    price: Callable[[], Price | None]

    def __post_init__(self) -> None:
        self.name = self.target.name
        self.wait_s = getattr(self.provider, "wait_s", None)
        self.standby = getattr(self.provider, "standby", None)

    name: str = field(init=False)
    wait_s: Callable[[ChatRequest], float | None] | None = field(init=False)
    """Seconds until a request would have its turn, where requests wait for one another."""
    standby: Literal["warm", "prefill"] | None = field(init=False)

    def __repr__(self) -> str:
        return f"Route({self.name})"

    @property
    def capabilities(self) -> Capabilities:
        """What the target says it can take, or what is known about its model."""
        return self.target.capabilities or self.provider.capabilities

    @property
    def local(self) -> bool:
        """Runs on this machine."""
        return self.provider.local


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The ordered targets, and every excluded one with its reason."""

    routes: tuple[Route, ...]
    excluded: tuple[tuple[str, str], ...] = ()
    strategy: str = "priority"
    notes: Mapping[str, str] = field(default_factory=dict)
    """Per target name, what would stop it right now (an open circuit, a parked target). Filled by `explain`."""
    too_small: frozenset[str] = frozenset()
    """Names of those that were excluded because the conversation is longer than their context window."""
    chain: str | None = None
    """The chain that was asked for."""
    terms: Chain | None = None
    """The retries and timeouts of that chain."""

    @property
    def title(self) -> str:
        """The chain, if one was asked for, and the strategy."""
        return self.strategy if self.chain is None else f"{self.chain}: {self.strategy}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names, in the order they would be asked."""
        return tuple(route.name for route in self.routes)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "strategy": self.strategy,
            "chain": self.chain,
            "targets": [{"target": n, "note": self.notes.get(n)} for n in self.targets],
            "excluded": [{"target": t, "reason": r} for t, r in self.excluded],
        }

    def __repr__(self) -> str:
        left = f"; left out: {', '.join(name for name, _ in self.excluded)}" if self.excluded else ""
        return f"Plan({self.title}: {', '.join(self.targets) or 'nobody'}{left})"

    def __str__(self) -> str:
        lines = [f"plan ({self.title}):"]
        lines += [
            f"  {i}. {name}" + (f"  ({self.notes[name]})" if name in self.notes else "")
            for i, name in enumerate(self.targets, 1)
        ]
        lines += [f"  -  {name}: {reason}" for name, reason in self.excluded]
        return "\n".join(lines if len(lines) > 1 else [*lines, "  nobody"])

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{i}</td><td>{escape(n)}</td><td>{escape(self.notes.get(n, ''))}</td></tr>"
            for i, n in enumerate(self.targets, 1)
        )
        rows += "".join(f"<tr><td>–</td><td>{escape(n)}</td><td>{escape(r)}</td></tr>" for n, r in self.excluded)
        head = "<tr><th></th><th>target</th><th>why</th></tr>"
        return f"<table><caption>plan ({escape(self.title)})</caption>{head}{rows}</table>"


def _reader(route: Route, clock: Callable[[], float] | None) -> Callable[[], TargetHealth] | None:
    return None if clock is None else lambda: route.gate.read(clock())


def _waiter(route: Route, request: ChatRequest) -> Callable[[], float | None] | None:
    return None if route.wait_s is None else partial(route.wait_s, request)


def plan(
    request: ChatRequest,
    routes: Sequence[Route],
    strategy: RoutingStrategy,
    *,
    strategy_name: str = "priority",
    turn: int = 0,
    clock: Callable[[], float] | None = None,
    terms: Chain | None = None,
    pinned: str | None = None,
) -> Plan:
    """Who may answer `request`, in order, on its chain's terms. The gates' health is read only if the strategy asks."""
    eligible: list[Route] = []
    excluded: list[tuple[str, str]] = []
    too_small: set[str] = set()
    bound = request.constraints is not ANYONE and request.constraints != ANYONE
    demanding = not is_plain(request)
    least = sum(len(m.text) for m in request.messages) // CHARS_PER_TOKEN
    for route in routes:
        reason = _exclusion(request, route, bound=bound, demanding=demanding)
        if reason is None and (window := route.capabilities.context_window) is not None and least > window:
            reason = f"the request needs at least {least} tokens, its context window is {window}"
            too_small.add(route.name)
        if reason is None:
            eligible.append(route)
        else:
            excluded.append((route.name, reason))
    if strategy_name != "priority" and len(eligible) > 1:
        by_name = {route.name: route for route in eligible}
        views = [TargetView(r.target, turn, r.price, _reader(r, clock), _waiter(r, request), r.local) for r in eligible]
        chosen = [by_name[view.name] for view in strategy(request, views)]
        if len({r.name for r in chosen}) != len(chosen):
            raise ConfigurationError(f"strategy {strategy_name!r} returned a target twice")
        excluded += [(r.name, f"left out by strategy {strategy_name!r}") for r in eligible if r not in chosen]
        eligible = chosen
    if pinned is not None:
        eligible.sort(key=lambda route: route.name != pinned)
    return Plan(
        tuple(eligible),
        tuple(excluded),
        strategy_name,
        too_small=frozenset(too_small),
        chain=request.chain,
        terms=terms,
    )


def _exclusion(request: ChatRequest, route: Route, *, bound: bool, demanding: bool) -> str | None:
    """Why the target cannot or must not serve the request, however long it is; None when it may.

    `bound` and `demanding` say whether it comes with constraints, and asks for more than text.
    """
    if not route.target.enabled:
        return "disabled"
    if bound and (reason := _forbidden(request.constraints, route)):
        return reason
    if demanding:
        for reason in missing(request, route.capabilities):
            return reason
    return None


def _forbidden(constraints: Constraints, route: Route) -> str | None:
    """Why hard constraints keep the target out. Unknown means no."""
    names = {route.name, route.target.spec, route.target.provider_name, route.provider.name}
    if constraints.local_only and not route.local:
        return "constraint: local only"
    if names & constraints.deny:
        return "constraint: denied"
    if constraints.allow is not None and not names & constraints.allow:
        return "constraint: not on the allow list"
    if constraints.max_price is not None:
        price = route.price()
        if price is None:
            return "constraint: its price is unknown and a maximum is set"
        if float(price.dearest) > constraints.max_price:
            return f"constraint: costs ${price.dearest} per million tokens, the maximum is ${constraints.max_price:g}"
    for need in constraints.require:
        if need not in FLAGS:
            raise ConfigurationError(f"unknown capability {need!r} in constraints. Valid: {', '.join(sorted(FLAGS))}.")
        if not getattr(route.capabilities, need):
            return f"constraint: needs {need}"
    return None
