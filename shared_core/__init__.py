"""llm-fallback's core: ask one model after another until a request is answered whole, within its deadline and budget.

The ten names most people need are `Router`, `Target`, `ChatRequest`, `Answer`, `RetryPolicy`, `Timeouts`,
`BreakerConfig`, `Price`, `AllTargetsFailed` and `StreamBroken`. Importing this package does no work: names are loaded
when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core._probes import TargetTest, TargetTests
    from shared_core.cache import CacheStats, ResponseCache
    from shared_core.chat.events import (
        Answer,
        ChatEvent,
        Continued,
        Finished,
        ReasoningDelta,
        Restarted,
        Started,
        TextDelta,
        ToolCallDelta,
        Usage,
        collect,
    )
    from shared_core.chat.request import (
        AnswerCheck,
        Audio,
        ChatRequest,
        Constraints,
        File,
        Image,
        Message,
        Native,
        Origin,
        OutputSchema,
        Part,
        Reasoning,
        Text,
        ToolCall,
        ToolResult,
        ToolSpec,
        assistant,
        system,
        tool,
        user,
    )
    from shared_core.errors import (
        AccountError,
        AllTargetsFailed,
        BudgetExceeded,
        ConfigurationError,
        DeadlineExceeded,
        Disposition,
        ErrorKind,
        FallbackError,
        InvalidExport,
        InvalidModelFile,
        InvalidOutput,
        InvalidRequest,
        LedgerError,
        MissingDependency,
        MissingKey,
        ProviderError,
        ProviderTimeout,
        ProviderUnavailable,
        RateLimited,
        RequestRejected,
        StreamBroken,
        UnknownOption,
        UnknownProvider,
    )
    from shared_core.ledger import CostReport, Ledger, LedgerEntry, MemoryLedger
    from shared_core.ledger.analytics import CostLine, Projection
    from shared_core.ledger.reconcile import Reconciliation
    from shared_core.ledger.sqlite import SQLiteLedger
    from shared_core.resilience.breaker import BreakerConfig, CircuitState
    from shared_core.resilience.budget import Budget, BudgetReport, BudgetStatus
    from shared_core.resilience.deadline import Guard, Timeouts
    from shared_core.resilience.health import HealthChange, HealthStatus, HealthWindow, TargetHealth
    from shared_core.resilience.health_check import HealthCheck
    from shared_core.resilience.rate_limit import Limits
    from shared_core.resilience.retry import RetryPolicy
    from shared_core.router import AnswerStream, AsyncAnswerStream, HealthReport, Router, router_options
    from shared_core.routing.capabilities import Capabilities
    from shared_core.routing.chains import Chain
    from shared_core.routing.execution import Attempt, Execution
    from shared_core.routing.hedge import Hedge
    from shared_core.routing.planner import Plan
    from shared_core.routing.price import Price
    from shared_core.routing.provider import Provider
    from shared_core.routing.scores import TargetScore
    from shared_core.routing.strategies import RoutingStrategy, TargetView
    from shared_core.routing.target import Target
    from shared_core.telemetry.events import (
        AttemptFailed,
        BudgetExhausted,
        BudgetOvercharged,
        BudgetWarning,
        CacheHit,
        CircuitChanged,
        Event,
        FellOver,
        LedgerTrouble,
        RequestFailed,
        RequestHedged,
        RequestStarted,
        RequestSucceeded,
        RequestWaits,
        RouterReconfigured,
        StreamContinued,
        TargetChanged,
        TargetProbed,
        TargetRecovered,
        TargetUnhealthy,
    )
    from shared_core.telemetry.webhook import WebhookHook, verify_signature

_HOMES: dict[str, str] = {
    name: home
    for home, names in {
        "shared_core.cache": "CacheStats ResponseCache",
        "shared_core.chat.events": (
            "Answer ChatEvent Continued Finished ReasoningDelta Restarted Started TextDelta ToolCallDelta Usage collect"
        ),
        "shared_core.chat.request": (
            "AnswerCheck Audio ChatRequest Constraints File Image Message Native Origin OutputSchema Part Reasoning "
            "Text ToolCall ToolResult ToolSpec assistant system tool user"
        ),
        "shared_core.errors": (
            "AccountError AllTargetsFailed BudgetExceeded ConfigurationError DeadlineExceeded Disposition "
            "ErrorKind FallbackError InvalidExport InvalidModelFile InvalidOutput InvalidRequest LedgerError "
            "MissingDependency MissingKey ProviderError ProviderTimeout ProviderUnavailable RateLimited "
            "RequestRejected StreamBroken UnknownOption UnknownProvider"
        ),
        "shared_core.ledger": "CostReport Ledger LedgerEntry MemoryLedger",
        "shared_core.resilience.budget": "Budget BudgetReport BudgetStatus",
        "shared_core.ledger.analytics": "CostLine Projection",
        "shared_core.ledger.reconcile": "Reconciliation",
        "shared_core.ledger.sqlite": "SQLiteLedger",
        "shared_core.resilience.breaker": "BreakerConfig CircuitState",
        "shared_core.resilience.deadline": "Guard Timeouts",
        "shared_core.resilience.health": "HealthChange HealthStatus HealthWindow TargetHealth",
        "shared_core.resilience.health_check": "HealthCheck",
        "shared_core._probes": "TargetTest TargetTests",
        "shared_core.resilience.rate_limit": "Limits",
        "shared_core.resilience.retry": "RetryPolicy",
        "shared_core.router": "AnswerStream AsyncAnswerStream HealthReport Router router_options",
        "shared_core.routing.capabilities": "Capabilities",
        "shared_core.routing.chains": "Chain",
        "shared_core.routing.execution": "Attempt Execution",
        "shared_core.routing.hedge": "Hedge",
        "shared_core.routing.planner": "Plan",
        "shared_core.routing.price": "Price",
        "shared_core.routing.provider": "Provider",
        "shared_core.routing.scores": "TargetScore",
        "shared_core.routing.strategies": "RoutingStrategy TargetView",
        "shared_core.routing.target": "Target",
        "shared_core.telemetry.events": (
            "AttemptFailed BudgetExhausted BudgetOvercharged BudgetWarning CacheHit CircuitChanged Event "
            "FellOver LedgerTrouble RequestFailed RequestHedged RequestStarted RequestSucceeded RequestWaits "
            "RouterReconfigured StreamContinued TargetChanged TargetProbed TargetRecovered TargetUnhealthy"
        ),
        "shared_core.telemetry.webhook": "WebhookHook verify_signature",
    }.items()
    for name in names.split()
}
"""Where each public name lives."""

__version__ = "0.1.0"

__all__ = [
    "AccountError",
    "AllTargetsFailed",
    "Answer",
    "AnswerCheck",
    "AnswerStream",
    "AsyncAnswerStream",
    "Attempt",
    "AttemptFailed",
    "Audio",
    "BreakerConfig",
    "Budget",
    "BudgetExceeded",
    "BudgetExhausted",
    "BudgetOvercharged",
    "BudgetReport",
    "BudgetStatus",
    "BudgetWarning",
    "CacheHit",
    "CacheStats",
    "Capabilities",
    "Chain",
    "ChatEvent",
    "ChatRequest",
    "CircuitChanged",
    "CircuitState",
    "ConfigurationError",
    "Constraints",
    "Continued",
    "CostLine",
    "CostReport",
    "DeadlineExceeded",
    "Disposition",
    "ErrorKind",
    "Event",
    "Execution",
    "FallbackError",
    "FellOver",
    "File",
    "Finished",
    "Guard",
    "HealthChange",
    "HealthCheck",
    "HealthReport",
    "HealthStatus",
    "HealthWindow",
    "Hedge",
    "Image",
    "InvalidExport",
    "InvalidModelFile",
    "InvalidOutput",
    "InvalidRequest",
    "Ledger",
    "LedgerEntry",
    "LedgerError",
    "LedgerTrouble",
    "Limits",
    "MemoryLedger",
    "Message",
    "MissingDependency",
    "MissingKey",
    "Native",
    "Origin",
    "OutputSchema",
    "Part",
    "Plan",
    "Price",
    "Projection",
    "Provider",
    "ProviderError",
    "ProviderTimeout",
    "ProviderUnavailable",
    "RateLimited",
    "Reasoning",
    "ReasoningDelta",
    "Reconciliation",
    "RequestFailed",
    "RequestHedged",
    "RequestRejected",
    "RequestStarted",
    "RequestSucceeded",
    "RequestWaits",
    "ResponseCache",
    "Restarted",
    "RetryPolicy",
    "Router",
    "RouterReconfigured",
    "RoutingStrategy",
    "SQLiteLedger",
    "Started",
    "StreamBroken",
    "StreamContinued",
    "Target",
    "TargetChanged",
    "TargetHealth",
    "TargetProbed",
    "TargetRecovered",
    "TargetScore",
    "TargetTest",
    "TargetTests",
    "TargetUnhealthy",
    "TargetView",
    "Text",
    "TextDelta",
    "Timeouts",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "ToolSpec",
    "UnknownOption",
    "UnknownProvider",
    "Usage",
    "WebhookHook",
    "assistant",
    "collect",
    "router_options",
    "system",
    "tool",
    "user",
    "verify_signature",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
