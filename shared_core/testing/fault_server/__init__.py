"""A public fault server: OpenAI, Anthropic and Gemini on loopback, failing the way a script says."""

from shared_core.testing.fault_server._answers import CANONICAL, Answer, ToolCall, Usage
from shared_core.testing.fault_server._faults import (
    FAULTS,
    Fault,
    FaultKind,
    cut,
    cut_tool,
    drip,
    hang,
    overload,
    reset,
    slow,
    stall,
    status,
)
from shared_core.testing.fault_server._log import SeenRequest
from shared_core.testing.fault_server._server import FaultServer

__all__ = [
    "CANONICAL",
    "FAULTS",
    "Answer",
    "Fault",
    "FaultKind",
    "FaultServer",
    "SeenRequest",
    "ToolCall",
    "Usage",
    "cut",
    "cut_tool",
    "drip",
    "hang",
    "overload",
    "reset",
    "slow",
    "stall",
    "status",
]
