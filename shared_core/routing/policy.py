"""What steers the requests of a router beside its targets: `Rules`, frozen; replaced whole when they change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared_core.chat.request import Complexity
from shared_core.resilience.breaker import BreakerConfig
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.rate_limit import NO_LIMITS, Limits
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.hedge import Hedger
from shared_core.routing.seam import CONTINUE_PROMPT
from shared_core.routing.strategies import RoutingStrategy, priority

__all__ = ["FlowPolicy", "OnStreamBreak", "Rules"]

OnStreamBreak = Literal["continue", "restart", "raise"]


@dataclass(frozen=True, slots=True)
class FlowPolicy:
    """The settings that steer the flow."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_stream_break: OnStreamBreak = "continue"
    continue_prompt: str = CONTINUE_PROMPT
    route_around_policy: bool = False
    """Whether a refusal on grounds of content is tried elsewhere."""
    prefill: bool = False
    """Whether a target is on standby that reads the prompt while another is awaited."""
    hedger: Hedger | None = None
    """When a second target is asked beside a slow one; None never."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is asked first, how patiently, and what the flow may do. A request keeps those that it began under."""

    strategy: RoutingStrategy = priority
    strategy_name: str = "priority"
    complexity: Complexity | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    flow: FlowPolicy = field(default_factory=FlowPolicy)
    limits: Limits = NO_LIMITS
    """Of targets that have none of their own."""
