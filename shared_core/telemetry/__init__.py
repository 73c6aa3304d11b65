"""What can be watched: events and logs. Nothing that watches a request can steer it."""

from shared_core.telemetry.events import (
    AttemptFailed,
    CacheHit,
    CircuitChanged,
    Event,
    FellOver,
    RequestFailed,
    RequestStarted,
    RequestSucceeded,
    StreamContinued,
)

__all__ = [
    "AttemptFailed",
    "CacheHit",
    "CircuitChanged",
    "Event",
    "FellOver",
    "RequestFailed",
    "RequestStarted",
    "RequestSucceeded",
    "StreamContinued",
]
