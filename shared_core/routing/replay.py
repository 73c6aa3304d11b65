"""What a decision read, as plain data, and the same decision again from it: `Seen`, `recorded` and `replay`.

A record holds figures and names, never a key and never what was asked or answered. To replay one takes no target, no
vendor's SDK and no network: the planner is given what was recorded in place of the router's routes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final, cast

from shared_core.chat.request import (
    ANYONE,
    Audio,
    ChatRequest,
    Constraints,
    File,
    Image,
    Message,
    OutputSchema,
    Part,
    Text,
    ToolResult,
    ToolSpec,
)
from shared_core.errors import ConfigurationError
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.health import HealthStatus, Pace, TargetHealth
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.complexity import Features, Judgement, estimate, features_of
from shared_core.routing.planner import Plan, Route, plan
from shared_core.routing.price import Price
from shared_core.routing.scores import TargetScore
from shared_core.routing.strategies import (
    STRATEGIES,
    RouteView,
    RoutingStrategy,
    Scene,
    TargetView,
    dearness,
    expected_s,
    strategy_named,
)

__all__ = ["Seen", "recorded", "replay", "scored", "with_outside"]

VERSION: Final = 1
"""Of the record's form. Fields may be added without another one."""


class Seen:
    """A route, read once: what a decision asks of it twice is the same both times."""

    def __init__(self, route: Route, request: ChatRequest, now: float) -> None:
        self.route = route
        self.target = route.target
        self.name, self.names = route.name, route.names
        self.provider = route.provider
        self.local = route.local
        self.capabilities = route.capabilities
        self.gate = SimpleNamespace(pace=route.gate.pace)
        self._health = route.read(now)
        self._price = route.price()
        self._wait_s = None if route.wait_s is None else route.wait_s(request)
        self.wait_s = None if route.wait_s is None else lambda _request: self._wait_s

    def price(self) -> Price | None:
        """What its tokens cost."""
        return self._price

    def read(self, _now: float) -> TargetHealth:
        """How it was doing."""
        return self._health

    def row(self, request: ChatRequest) -> dict[str, Any]:
        """As plain data."""
        target, price = self.target, self._price
        able = asdict(self.capabilities)
        health = {
            f.name: value
            for f in fields(TargetHealth)
            if isinstance(value := getattr(self._health, f.name), (str, int, float, type(None)))
        }
        cost = dearness(request)(_view(self, request))
        return {
            "name": self.name,
            "spec": target.spec,
            "provider": target.provider_name,
            "engine": self.provider.name,
            "model": target.model,
            "enabled": target.enabled,
            "local": self.local,
            "tier": target.tier,
            "weight": target.weight,
            "capabilities": able | {"tool_choice": sorted(able["tool_choice"])},
            "price": None
            if price is None
            else {name: str(getattr(price, name)) for name in ("input", "output", "second", "request", "dearest")}
            | {"expected_nano": None if math.isinf(cost) else int(cost)},
            "pace": self.gate.pace._asdict(),
            "health": health,
            "wait_s": self._wait_s,
        }


def _view(route: Any, request: ChatRequest, turn: int = 0) -> TargetView:
    return RouteView(route, Scene(request, turn, lambda: 0.0))


# ── writing down ─────────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(
    request: ChatRequest,
    seen: Sequence[Seen],
    chosen: Plan,
    *,
    strategy: RoutingStrategy,
    turn: int,
    first: str | None,
    primary: str | None,
    at: float,
    notes: Mapping[str, str],
    ordered: Sequence[str],
    outside: Sequence[Seen] = (),
) -> dict[str, Any]:
    """What the decision `chosen` read, as JSON types. `ordered` is what a strategy of the user's own answered.

    `outside` are the router's targets that the chain does not name.
    """
    own = STRATEGIES.get(chosen.strategy) is not strategy
    return {
        "version": VERSION,
        "at": at,
        "request": _shape(request, chosen.complexity),
        "strategy": chosen.strategy,
        "ordered": list(ordered) if own else None,
        "turn": turn,
        "first": first,
        "primary": primary,
        "complexity": None if chosen.complexity is None else chosen.complexity.as_dict(),
        "targets": [one.row(request) for one in seen],
        "outside": [one.row(request) for one in outside],
        "notes": dict(notes),
        "answer": {
            "targets": list(chosen.targets),
            "excluded": [[name, reason] for name, reason in chosen.excluded],
        },
    }


def with_outside(chosen: Plan, outside: Sequence[Any]) -> Plan:
    """The plan, with the targets that its chain does not name among those that are left out."""
    if not outside:
        return chosen
    reason = f"not in chain {chosen.chain or 'default'!r}"  # a default of the user's own holds for who names none
    return replace(chosen, excluded=(*chosen.excluded, *[(one.name, reason) for one in outside]))


def _shape(request: ChatRequest, complexity: Judgement | None) -> dict[str, Any]:
    """What of a request decisions look at: how long it is and what it needs, not what it says."""
    kinds: set[str] = set()
    for message in request.messages:
        for part in message.parts:
            kinds |= {_kind(inner) for inner in (part.content if type(part) is ToolResult else (part,))}
    output, choice, limits = request.output, request.tool_choice, request.constraints
    judged = complexity is not None and complexity.asked == "auto"
    return {
        "chars": request.characters,
        "kinds": sorted(kinds - {""}),
        "tools": len(request.tools),
        "tool_choice": choice if choice in (None, "auto", "any", "none") else "tool",
        "output": None if output is None else {"schema": bool(output.schema), "anyhow": output.anyhow},
        "max_tokens": request.max_tokens,
        "streaming": request.streaming,
        "model": request.model,
        "chain": request.chain,
        "constraints": None
        if limits == ANYONE
        else {
            "local_only": limits.local_only,
            "allow": None if limits.allow is None else sorted(limits.allow),
            "deny": sorted(limits.deny),
            "max_price": limits.max_price,
            "require": sorted(limits.require),
        },
        "features": features_of(request).as_dict() if judged else None,
    }


_MEDIA: Final[Mapping[str, Callable[[], Part]]] = {
    "image": lambda: Image(data=b"."),
    "image by url": lambda: Image(url="https://host/picture"),
    "document": lambda: File(data=b"."),
    "audio": lambda: Audio(data=b"."),
}


def _kind(part: Part) -> str:
    match part:
        case Image(url=url):
            return "image" if url is None or url.startswith("data:") else "image by url"
        case File():
            return "document"
        case Audio():
            return "audio"
        case _:
            return ""


# ── reading again ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Price:
    """A price as it was recorded."""

    input: Decimal
    output: Decimal
    second: Decimal
    request: Decimal
    dearest: Decimal
    expected_nano: int

    def cost_nano(self, _usage: object, _seconds: float = 0.0) -> int:
        return self.expected_nano

    @property
    def dearest_usd(self) -> float:
        return float(self.dearest)


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """A target as it was recorded, in the shape of a route."""

    row: Mapping[str, Any]
    name: str = field(init=False)
    names: frozenset[str] = field(init=False)
    target: Any = field(init=False)
    provider: Any = field(init=False)
    local: bool = field(init=False)
    capabilities: Capabilities = field(init=False)
    gate: Any = field(init=False)
    wait_s: Any = field(init=False)

    def __post_init__(self) -> None:
        row = self.row
        able = dict(row["capabilities"])
        able["tool_choice"] = frozenset(able["tool_choice"])
        wait_s = row["wait_s"]
        values = {
            "name": row["name"],
            "names": frozenset({row["name"], row["spec"], row["provider"], row["engine"]}),
            "target": SimpleNamespace(
                name=row["name"],
                spec=row["spec"],
                provider_name=row["provider"],
                model=row["model"],
                enabled=row["enabled"],
                tier=row["tier"],
                weight=row["weight"],
            ),
            "provider": SimpleNamespace(name=row["engine"], local=row["local"]),
            "local": row["local"],
            "capabilities": Capabilities(**_known(Capabilities, able)),
            "gate": SimpleNamespace(pace=Pace(**{name: row["pace"].get(name) for name in Pace._fields})),
            "wait_s": None if wait_s is None else lambda _request: wait_s,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def price(self) -> _Price | None:
        told = self.row["price"]
        if told is None:
            return None
        figures = {name: Decimal(told[name]) for name in ("input", "output", "second", "request", "dearest")}
        return _Price(**figures, expected_nano=told["expected_nano"])

    def read(self, _now: float) -> TargetHealth:
        told = _known(TargetHealth, self.row["health"])
        return TargetHealth(
            **{**told, "status": HealthStatus(told["status"]), "circuit": CircuitState(told["circuit"])}
        )


def _known(cls: type[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What of `told` this version knows: a record may have been written by a newer one."""
    names = {f.name for f in fields(cls)}
    return {name: value for name, value in told.items() if name in names}


def _request(shape: Mapping[str, Any]) -> ChatRequest:
    """A request of that shape. It says nothing."""
    parts = [Text("x" * shape["chars"]), *(_MEDIA[kind]() for kind in shape["kinds"])]
    output = shape["output"]
    schema = {"type": "object", "properties": {}} if output and output["schema"] else {}
    choice = shape["tool_choice"]
    limits = shape["constraints"]
    return ChatRequest(
        (Message("user", tuple(parts)),),
        tools=tuple(ToolSpec(f"t{at}") for at in range(shape["tools"])),
        tool_choice="t0" if choice == "tool" else choice,
        output=None if output is None else OutputSchema(schema, anyhow=output["anyhow"]),
        max_tokens=shape["max_tokens"],
        streaming=shape["streaming"],
        model=shape["model"],
        chain=shape["chain"],
        constraints=ANYONE if limits is None else Constraints(**limits),
    )


def replay(record: Mapping[str, Any]) -> Plan:
    """The decision again, from what it read: the same targets in the same order, left out for the same reasons.

    Args:
        record: what `Plan.record` gave, or the same read from JSON.

    Raises:
        ConfigurationError: it is no record, of a form that this version does not know, or lacks something.
    """
    given: Any = record
    form = given.get("version") if isinstance(given, Mapping) else type(given).__name__
    if form != VERSION:
        raise ConfigurationError(f"this is no record of a decision that can be replayed (version {form!r})")
    try:
        return _again(record)
    except KeyError as error:
        raise ConfigurationError(f"this record cannot be replayed: it has no {error}, or does not know it") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigurationError(f"this record cannot be replayed: {error}") from error


def _again(record: Mapping[str, Any]) -> Plan:
    request = _request(record["request"])
    routes = [_Recorded(row) for row in record["targets"]]
    name, ordered = record["strategy"], record["ordered"]
    if ordered is None:
        name, strategy = strategy_named(name)
    else:
        # A strategy of somebody's own is not here: what it answered is.
        def strategy(_request: ChatRequest, views: Sequence[TargetView], /) -> Sequence[TargetView]:
            by_name = {view.name: view for view in views}
            return [by_name[one] for one in ordered]

    outside = [_Recorded(row) for row in record.get("outside", ())]  # older records have none
    again = plan(
        request,
        cast("Sequence[Route]", routes),
        strategy,
        strategy_name=name,
        turn=record["turn"],
        clock=lambda: 0.0,
        first=record["first"],
        primary=record.get("primary"),
        complexity=_judged_again(record),
    )
    again = with_outside(again, outside)
    scores = scored(request, [*routes, *outside], again, record["turn"])
    return again.explained(notes=record["notes"], scores=scores, record=record)


def _judged_again(record: Mapping[str, Any]) -> Judgement | None:
    told, features = record["complexity"], record["request"]["features"]
    if told is None:
        return None
    if features is not None:
        return estimate(Features(**_known(Features, features)))
    return Judgement(told["level"], told["asked"])


# ── why this order ───────────────────────────────────────────────────────────────────────────────────────────────────


def scored(request: ChatRequest, routes: Sequence[Any], chosen: Plan, turn: int) -> tuple[TargetScore, ...]:
    """What speaks for and against each target, in the order of the plan, those that are left out last."""
    by_name = {route.name: route for route in routes}
    places = {name: place for place, name in enumerate(chosen.targets, 1)}
    reasons = dict(chosen.excluded)
    cost = dearness(request)
    rows = []
    for name in (*chosen.targets, *reasons):
        route = by_name[name]
        view = _view(route, request, turn)
        price, health = route.price(), route.read(0.0)
        nano = cost(view)
        expected = expected_s(request, view)
        score, unit = {
            "cost": (nano / 1e9, "US dollars expected"),
            "performance": (expected, "seconds expected"),
            "weighted": (route.target.weight, "weight"),
            "local_first": (float(not route.local), "0 is this machine"),
        }.get(chosen.strategy, (None if name not in places else float(places[name]), "place"))
        rows.append(
            TargetScore(
                target=name,
                place=places.get(name),
                score=score,
                unit=unit,
                excluded=reasons.get(name),
                tier=route.target.tier,
                weight=route.target.weight,
                local=route.local,
                price_usd_per_mtok=None if price is None else (float(price.input), float(price.output)),
                expected_cost_usd=None if math.isinf(nano) else nano / 1e9,
                expected_s=expected,
                latency_p50_s=health.latency_p50_s,
                first_token_p50_s=health.first_token_p50_s,
                success_rate=health.success_rate,
                calls=health.calls,
                drift=health.drift,
                circuit=str(health.circuit),
                wait_s=view.wait_s,
                unavailable=health.unavailable_reason,
            )
        )
    return tuple(rows)
