"""Who is asked first: pure orderings of the eligible targets. A strategy is given frozen views and orders them.

What a strategy needs to know it reads from its views; what it does not read is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from shared_core.chat.events import Usage
from shared_core.chat.request import CHARS_PER_TOKEN, ChatRequest, user
from shared_core.errors import ConfigurationError, nearest
from shared_core.resilience.health import Pace, TargetHealth
from shared_core.routing.price import Price
from shared_core.routing.target import Target

__all__ = [
    "STRATEGIES",
    "RouteView",
    "RoutingStrategy",
    "Scene",
    "TargetView",
    "dearness",
    "expected_s",
    "priority",
    "strategy_named",
]

EXPECTED_OUTPUT: Final = 400
"""Tokens an answer is taken to have when costs are compared, unless `max_tokens` allows fewer."""
MEASURED: Final = 3
"""Calls after which a target counts as measured."""
EXPLORE_EVERY: Final = 10
"""One call in so many begins with a target that is not measured yet, while there is one."""
RECHECK_EVERY: Final = 50
"""One call in so many begins with a measured target that is not the best: it may have become so."""


DRIFT_COSTS: Final = 4.0
"""How many times slower yet a target is taken to be whose first tokens become slower."""


class Scene(NamedTuple):
    """What all views of one decision share."""

    request: ChatRequest
    turn: int = 0
    clock: Callable[[], float] | None = None
    """Monotonic seconds; None outside a router: then nobody's health is known."""


class TargetView:
    """What a strategy may know of one target; it cannot change anything. What is not asked for is not worked out.

    A router makes its own. To try a strategy of yours, make some by hand:

    Args:
        target: the target itself.
        turn: the number of the router's call, from 0.
        price, health, wait_s: functions that tell these; left out, they are unknown.
        local: whether it runs on this machine.
    """

    __slots__ = ("_scene", "route")

    def __init__(
        self,
        target: Target,
        turn: int = 0,
        price: Callable[[], Price | None] | None = None,
        health: Callable[[], TargetHealth | None] | None = None,
        wait_s: Callable[[], float | None] | None = None,
        local: bool = False,
    ) -> None:
        self.route: Any = _Given(target, price or _unknown, health or _unknown, wait_s or _unknown, local)
        """What is viewed: for the planner, not for strategies."""
        self._scene = _BY_HAND._replace(turn=turn)

    @property
    def target(self) -> Target:
        """The target itself: its weight, its tier, its model."""
        target: Target = self.route.target
        return target

    @property
    def name(self) -> str:
        """The target's name."""
        name: str = self.route.name
        return name

    @property
    def turn(self) -> int:
        """The number of the router's call, from 0."""
        return self._scene.turn

    @property
    def local(self) -> bool:
        """Runs on this machine."""
        local: bool = self.route.local
        return local

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None where that is unknown."""
        price: Price | None = self.route.price()
        return price

    @property
    def health(self) -> TargetHealth | None:
        """How it has been doing; None outside a router."""
        clock = self._scene.clock
        if clock is None:
            return None
        health: TargetHealth | None = self.route.read(clock())
        return health

    @property
    def pace(self) -> Pace | None:
        """How quick and reliable it has been, and whether it becomes slower: read in a fraction of `health`'s time."""
        health = self.health
        return None if health is None else health.pace

    @property
    def wait_s(self) -> float | None:
        """Seconds until this request would have its turn there; None where that is unmeasured, or nobody waits."""
        asked: Callable[[ChatRequest], float | None] | None = self.route.wait_s
        return None if asked is None else asked(self._scene.request)

    def __repr__(self) -> str:
        return f"TargetView({self.name!r})"


class RouteView(TargetView):
    """A view of a route of the router, or of what was recorded of one."""

    __slots__ = ()

    def __init__(self, route: Any, scene: Scene) -> None:
        self.route = route
        self._scene = scene

    @property
    def pace(self) -> Pace | None:
        """How quick and reliable it has been, and whether it becomes slower."""
        if self._scene.clock is None:
            return None
        pace: Pace | None = self.route.gate.pace
        return pace


def _unknown() -> None:
    return None


class _Given:
    """What was said of a target by hand, in the shape of a route."""

    __slots__ = ("_health", "_wait_s", "local", "name", "price", "target")

    def __init__(
        self,
        target: Target,
        price: Callable[[], Price | None],
        health: Callable[[], TargetHealth | None],
        wait_s: Callable[[], float | None],
        local: bool,
    ) -> None:
        self.target, self.name, self.price, self.local = target, target.name, price, local
        self._health, self._wait_s = health, wait_s

    def read(self, _now: float) -> TargetHealth | None:
        return self._health()

    def wait_s(self, _request: ChatRequest) -> float | None:
        return self._wait_s()


_BY_HAND: Final = Scene(ChatRequest((user(""),)), 0, lambda: 0.0)
"""What views made by hand share: what was said of a target holds for any request, at any time."""


class RoutingStrategy(Protocol):
    """Orders the eligible targets of one request. Pure: the same views give the same order."""

    def __call__(self, request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
        """The views in the order they are to be asked. Views left out are not asked at all."""
        ...


def _name_of(strategy: RoutingStrategy) -> str:
    return getattr(strategy, "__name__", type(strategy).__name__)


def priority(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """As configured."""
    return views


def local_first(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """Those that run on this machine first; otherwise as configured."""
    return sorted(views, key=lambda view: not view.local)


def round_robin(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """Each call begins one target further on; the others follow in their configured order."""
    if not views:
        return views
    first = views[0].turn % len(views)
    return [*views[first:], *views[:first]]


def weighted(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """Each is first as often as its `Target.weight` says; then the heavier before the lighter.

    Shares are met as evenly as can be (a golden-ratio sequence over the router's calls), not by chance. Weights may sum
    to anything positive; a target of weight 0 is asked when all others have failed. All of them 0 is as configured.
    """
    if not views:
        return views
    others = sorted(views, key=lambda view: -view.target.weight)  # stable: equals stay as configured
    left = (views[0].turn * _GOLDEN % 1.0) * sum(view.target.weight for view in views)
    for view in others:
        left -= view.target.weight
        if left < 0:
            return [view, *(other for other in others if other is not view)]
    return others  # all weights are 0, or the sum was rounded up


_GOLDEN: Final = 0.6180339887498949
"""The fractional parts of its multiples fill the unit interval more evenly than those of any other number."""


def cost(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """The cheapest for this request first: its own length at the input price, an expected answer at the output price.

    An unknown price is never cheapest: such targets come last, as configured. Equals stay as configured. Local models
    cost nothing unless they are given a price; one by the second is taken for its usual seconds.
    """
    return sorted(views, key=dearness(request))


def dearness(request: ChatRequest) -> Callable[[TargetView], float]:
    """What `request` may be expected to cost with the target of a view, in nano-dollars; infinite where unknown."""
    said = min(request.max_tokens or EXPECTED_OUTPUT, EXPECTED_OUTPUT)
    usage = Usage(request.characters // CHARS_PER_TOKEN, said)

    def of(view: TargetView) -> float:
        price = view.price
        if price is None:
            return math.inf
        if not price.second:
            return price.cost_nano(usage)
        health = view.health
        return price.cost_nano(usage, (health.latency_p50_s or 0.0) if health is not None else 0.0)

    return of


def performance(request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
    """The quickest first, by its own calls: its usual time, to the first token in streams, over its rate of success.

    So one that answers every second time is taken to need twice as long; a local model's queue counts as well. Who is
    not measured yet comes behind those who are, and before those who never answer. One whose first tokens have become
    slower of late, by more than its noise, is taken to go on so, and to need `DRIFT_COSTS` times what it does now:
    others go before it, before it fails. One call in `EXPLORE_EVERY` begins with a target that is not measured, or that
    was demoted so; one in `RECHECK_EVERY` with a measured one that is not the best.
    """
    if not views:
        return views
    scored: list[tuple[float, int, TargetView]] = []
    unknown: list[TargetView] = []
    uncertain: list[TargetView] = []
    for place, view in enumerate(views):
        pace = view.pace
        score = None if pace is None else _expected_s(request, view, pace)
        if score is None:
            unknown.append(view)
            uncertain.append(view)
        else:
            scored.append((score, place, view))  # equals stay as configured
            if pace is not None and pace.drifting:
                uncertain.append(view)
    scored.sort()
    hopeless = 0
    while hopeless < len(scored) and scored[-1 - hopeless][0] == math.inf:
        hopeless += 1
    measured = [view for _, _, view in scored]
    order = [*measured[: len(measured) - hopeless], *unknown, *measured[len(measured) - hopeless :]]
    turn = views[0].turn
    ahead: TargetView | None = None
    if uncertain and measured and turn % EXPLORE_EVERY == EXPLORE_EVERY - 1:
        ahead = uncertain[turn // EXPLORE_EVERY % len(uncertain)]
    elif len(measured) > 1 and turn % RECHECK_EVERY == RECHECK_EVERY - 1:
        ahead = measured[1 + turn // RECHECK_EVERY % (len(measured) - 1)]
    if ahead is not None:
        order.remove(ahead)
        order.insert(0, ahead)
    return order


def expected_s(request: ChatRequest, view: TargetView) -> float | None:
    """Seconds until `request` may expect an answer, or in a stream its first token; None while that is not measured."""
    pace = view.pace
    return None if pace is None else _expected_s(request, view, pace)


def _expected_s(request: ChatRequest, view: TargetView, pace: Pace) -> float | None:
    """Seconds until an answer (or its first token) may be expected of it; None while it is not measured."""
    if pace.calls < MEASURED or pace.success_rate is None:
        return None
    usual = pace.first_token_p50_s if request.streaming else pace.latency_p50_s
    if not pace.success_rate:
        return math.inf
    if usual is None:
        return None
    if pace.drifting and pace.drift is not None:
        usual *= pace.drift * DRIFT_COSTS
    return (view.wait_s or 0.0) + usual / pace.success_rate


_OWN: Final[Sequence[RoutingStrategy]] = (priority, cost, local_first, performance, round_robin, weighted)
_ALIASES: Final[Mapping[str, RoutingStrategy]] = {
    "cost_optimized": cost,
    "lowest_cost": cost,
    "performance_optimized": performance,
    "least_latency": performance,
    "lowest_latency": performance,
    "latency": performance,
    "weighted_round_robin": weighted,
}
STRATEGIES: Mapping[str, RoutingStrategy] = {**{_name_of(one): one for one in _OWN}, **_ALIASES}
"""Strategies by name. `-` may stand for `_`; the names that other routers use for the same thing are known too."""


def strategy_named(strategy: str | RoutingStrategy) -> tuple[str, RoutingStrategy]:
    """The strategy and what to call it.

    Raises:
        ConfigurationError: no strategy of that name; names the nearest.
    """
    if isinstance(strategy, str):
        found = STRATEGIES.get(strategy.replace("-", "_"))
        if found is None:
            raise ConfigurationError(f"unknown strategy {strategy!r}. {nearest(strategy, STRATEGIES)}")
        return _name_of(found), found
    if not callable(strategy):
        raise ConfigurationError(f"strategy must be a name or a callable, not {type(strategy).__name__}")
    return _name_of(strategy), strategy
