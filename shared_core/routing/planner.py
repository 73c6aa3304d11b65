"""Who may answer a request, in which order, and who may not and why: `plan` and the `Plan` it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from shared_core.chat.quick import quickly
from shared_core.chat.request import ANYONE, ChatRequest, Constraints
from shared_core.errors import ConfigurationError
from shared_core.resilience.admission import Gate
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.health import TargetHealth
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.capabilities import FLAGS, Capabilities, is_plain, missing
from shared_core.routing.chains import Chain
from shared_core.routing.complexity import Judgement, tiered
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.price import Price
from shared_core.routing.provider import Provider
from shared_core.routing.scores import TargetScore, scores_html
from shared_core.routing.strategies import RouteView, RoutingStrategy, Scene, dearness, priority
from shared_core.routing.target import Target

__all__ = ["Plan", "Route", "plan"]

_AT_MOST_PER_TOKEN = 6
"""Characters. Deliberately generous: a target is only excluded for its window when the request cannot possibly fit."""


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
        self.read = self.gate.read
        self.wait_s = getattr(self.provider, "wait_s", None)
        self.standby = getattr(self.provider, "standby", None)
        self.names = frozenset({self.name, self.target.spec, self.target.provider_name, self.provider.name})

    name: str = field(init=False)
    names: frozenset[str] = field(init=False)
    """What constraints may call it."""
    read: Callable[[float], TargetHealth] = field(init=False)
    """How it is doing at a time, in monotonic seconds."""
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
    complexity: Judgement | None = None
    """How complex the request was taken to be, and why; None where nobody asked."""
    policy: FlowPolicy | None = None
    """What the flow may do: the router's, as it was when the request began."""
    scores: tuple[TargetScore, ...] = ()
    """What speaks for and against each target. Filled by `explain`."""
    snapshot: Mapping[str, Any] | None = None
    """All that the decision read, as plain data. Filled by `explain`."""

    @property
    def title(self) -> str:
        """The chain, if one was asked for, the strategy, and how complex the request is."""
        title = self.strategy if self.chain is None else f"{self.chain}: {self.strategy}"
        return title if self.complexity is None else f"{title}; {self.complexity.level}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names, in the order they would be asked."""
        return tuple(route.name for route in self.routes)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        judged = {} if self.complexity is None else {"complexity": self.complexity.as_dict()}
        return judged | {
            "strategy": self.strategy,
            "chain": self.chain,
            "targets": [{"target": n, "note": self.notes.get(n)} for n in self.targets],
            "excluded": [{"target": t, "reason": r} for t, r in self.excluded],
        }

    def explained(
        self, *, notes: Mapping[str, str], scores: tuple[TargetScore, ...], record: Mapping[str, Any]
    ) -> Plan:
        """The same plan, with why it is as it is."""
        return replace(self, notes=notes, scores=scores, snapshot=MappingProxyType(dict(record)))

    def record(self) -> dict[str, Any]:
        """The snapshot as data of its own, for `json.dump`: figures and names, no key and nothing of what was asked.

        Raises:
            ConfigurationError: this plan was not made by `explain`.
        """
        if self.snapshot is None:
            raise ConfigurationError("only a plan of router.explain(request) has a record")
        return deepcopy(dict(self.snapshot))

    @staticmethod
    def replay(record: Mapping[str, Any]) -> Plan:
        """The decision again from what it read, without targets, SDKs and network.

        Raises:
            ConfigurationError: it is no record, or of a form that this version does not know.
        """
        from shared_core.routing.replay import replay

        return replay(record)

    def table(self) -> list[dict[str, Any]]:
        """The scores as plain data, one row per target: the order first, then who is left out."""
        return [score.as_dict() for score in self.scores]

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
        if len(lines) == 1:
            lines.append("  nobody")
        if self.complexity is not None:
            lines.append(f"complexity: {self.complexity}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{i}</td><td>{escape(n)}</td><td>{escape(self.notes.get(n, ''))}</td></tr>"
            for i, n in enumerate(self.targets, 1)
        )
        rows += "".join(f"<tr><td>–</td><td>{escape(n)}</td><td>{escape(r)}</td></tr>" for n, r in self.excluded)
        head = "<tr><th></th><th>target</th><th>why</th></tr>"
        return f"<table><caption>plan ({escape(self.title)})</caption>{head}{rows}</table>{scores_html(self.scores)}"


def plan(
    request: ChatRequest,
    routes: Sequence[Route],
    strategy: RoutingStrategy,
    *,
    strategy_name: str = "priority",
    turn: int = 0,
    clock: Callable[[], float] | None = None,
    terms: Chain | None = None,
    first: str | None = None,
    primary: str | None = None,
    complexity: Judgement | None = None,
    policy: FlowPolicy | None = None,
) -> Plan:
    """Who may answer `request`, in order, on its chain's terms.

    Args:
        request: what is asked.
        routes: the targets of its chain, as configured.
        strategy: their order. Gates' health, prices and queues are read only if it asks for them.
        strategy_name: what it is called.
        turn: the number of the router's call.
        clock: monotonic seconds.
        terms: the retries and timeouts of its chain.
        first: the name or model of who goes first whatever the strategy says: the operator's pin, the call's `model`.
        primary: the provider of the router's first target, whose model a call may replace; None of any.
        complexity: how hard the request is; orders the targets by their tiers.
        policy: what the flow may do.
    """
    eligible: list[Route] = []
    excluded: list[tuple[str, str]] = []
    too_small: set[str] = set()
    bound = request.constraints is not ANYONE and request.constraints != ANYONE
    demanding = not is_plain(request)
    model = request.model
    if model is not None and (not bound or any(model in (route.name, route.target.model) for route in routes)):
        model = None  # it names a target
    least = request.characters // _AT_MOST_PER_TOKEN
    for route in routes:
        if not route.target.enabled:
            excluded.append((route.name, "disabled"))
            continue
        if bound and (reason := _forbidden(request.constraints, route, _other(model, route, primary))):
            excluded.append((route.name, reason))
            continue
        if demanding and (lacks := next(missing(request, route.capabilities), None)):
            excluded.append((route.name, lacks))
            continue
        if least and (window := route.capabilities.context_window) is not None and least > window:
            excluded.append((route.name, f"the request needs at least {least} tokens, its context window is {window}"))
            too_small.add(route.name)
            continue
        eligible.append(route)
    if len(eligible) > 1:
        if strategy is not priority:
            eligible = _ordered(request, eligible, strategy, strategy_name, Scene(request, turn, clock), excluded)
        if complexity is not None and complexity.level != "medium":
            eligible = _by_tier(request, eligible, complexity, Scene(request, turn, clock))
        if first is not None:
            eligible.sort(key=lambda route: first not in (route.name, route.target.model))
    return _plan(
        tuple(eligible),
        tuple(excluded),
        strategy_name,
        too_small=frozenset(too_small) if too_small else _NOBODY,
        chain=request.chain,
        terms=terms,
        complexity=complexity,
        policy=policy,
    )


_NOBODY: frozenset[str] = frozenset()
_plan = quickly(Plan)


def _ordered(
    request: ChatRequest,
    eligible: list[Route],
    strategy: RoutingStrategy,
    name: str,
    scene: Scene,
    excluded: list[tuple[str, str]],
) -> list[Route]:
    """The eligible as the strategy orders them; those that it leaves out are added to the excluded."""
    answer = strategy(request, [RouteView(r, scene) for r in eligible])
    try:
        chosen: list[Route] = [view.route for view in answer]
    except (AttributeError, TypeError) as error:
        given = f"{answer!r:.80}"
        raise ConfigurationError(
            f"strategy {name!r} must return the views that it is given, in the order in which to ask, not {given}"
        ) from error
    ids = set(map(id, chosen))
    if len(ids) != len(chosen):
        raise ConfigurationError(f"strategy {name!r} returned a target twice")
    if not ids.issubset(map(id, eligible)):  # kept from another request: constraints hold for those of this one
        raise ConfigurationError(f"strategy {name!r} returned a view that it was not given for this request")
    if len(chosen) < len(eligible):
        excluded += [(r.name, f"left out by strategy {name!r}") for r in eligible if r not in chosen]
    return chosen


def _by_tier(request: ChatRequest, eligible: list[Route], complexity: Judgement, scene: Scene) -> list[Route]:
    """The eligible in the order of their tiers. A last resort on this machine stays last, unless it has a tier."""
    resorts = len(eligible)
    while resorts and eligible[resorts - 1].target.tier is None and eligible[resorts - 1].local:
        resorts -= 1
    ranked = eligible[: resorts or None]  # where all are, none is a last resort
    costs: list[float] = []  # only the simple have to be cheap
    if complexity.level == "simple":
        cost = dearness(request)
        costs = [cost(RouteView(route, scene)) for route in ranked]
    return [
        *tiered(complexity.level, ranked, [route.target.tier for route in ranked], costs),
        *eligible[len(ranked) :],
    ]


def _other(model: str | None, route: Route, primary: str | None) -> str | None:
    """The model that the target would be asked for in place of its own."""
    return model if primary is None or route.provider.name == primary else None


def _forbidden(constraints: Constraints, route: Route, model: str | None) -> str | None:
    """Why hard constraints keep the target out. Unknown means no."""
    names = route.names
    if model is not None:
        other = {model, f"{route.target.provider_name}:{model}", f"{route.provider.name}:{model}"}
        if other & constraints.deny:
            return "constraint: denied"
    if constraints.local_only and not route.local:
        return "constraint: local only"
    if names & constraints.deny:
        return "constraint: denied"
    if constraints.allow is not None and not names & constraints.allow:
        return "constraint: not on the allow list"
    if constraints.max_price is not None:
        price = route.price()
        if model is not None:
            return f"constraint: the price of {model!r} is unknown and a maximum is set"
        if price is None:
            return "constraint: its price is unknown and a maximum is set"
        if price.dearest_usd > constraints.max_price:
            return f"constraint: costs ${price.dearest} per million tokens, the maximum is ${constraints.max_price:g}"
        if price.second or price.request:
            return "constraint: it is not paid by the token alone, and a maximum per token is set"
    for need in constraints.require:
        if need not in FLAGS:
            raise ConfigurationError(f"unknown capability {need!r} in constraints. Valid: {', '.join(sorted(FLAGS))}.")
        if not getattr(route.capabilities, need):
            return f"constraint: needs {need}"
    return None
