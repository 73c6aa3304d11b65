"""Fakes and checks that are part of the product, for testing a chain of models without a vendor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.testing.clock import VirtualClock
    from shared_core.testing.conformance import ContractBroken, check_provider
    from shared_core.testing.fault_server import (
        CANONICAL,
        FAULTS,
        Answer,
        Fault,
        FaultKind,
        FaultServer,
        SeenRequest,
        ToolCall,
        Usage,
    )
    from shared_core.testing.random_gguf import write_random_gguf
    from shared_core.testing.scripted import Broken, ScriptedProvider, Silence
    from shared_core.testing.simulation import (
        BrownOut,
        Chaos,
        ClockStep,
        Flap,
        Happening,
        Load,
        Outage,
        RateLimitStorm,
        SimCall,
        SimPacket,
        SimTarget,
        SimulationReport,
        SimulationStuck,
        SimVendor,
        simulate,
    )

_HOMES = {
    **dict.fromkeys(
        ("CANONICAL", "FAULTS", "Answer", "Fault", "FaultKind", "FaultServer", "SeenRequest", "ToolCall", "Usage"),
        "shared_core.testing.fault_server",
    ),
    **dict.fromkeys(("Broken", "ScriptedProvider", "Silence"), "shared_core.testing.scripted"),
    **dict.fromkeys(
        (
            "BrownOut",
            "Chaos",
            "ClockStep",
            "Flap",
            "Happening",
            "Load",
            "Outage",
            "RateLimitStorm",
            "SimCall",
            "SimPacket",
            "SimTarget",
            "SimVendor",
            "SimulationReport",
            "SimulationStuck",
            "simulate",
        ),
        "shared_core.testing.simulation",
    ),
    "ContractBroken": "shared_core.testing.conformance",
    "VirtualClock": "shared_core.testing.clock",
    "check_provider": "shared_core.testing.conformance",
    "write_random_gguf": "shared_core.testing.random_gguf",
}
"""Where each public name lives; it is imported when first used, so that one fake does not cost all of them."""

__all__ = [
    "CANONICAL",
    "FAULTS",
    "Answer",
    "Broken",
    "BrownOut",
    "Chaos",
    "ClockStep",
    "ContractBroken",
    "Fault",
    "FaultKind",
    "FaultServer",
    "Flap",
    "Happening",
    "Load",
    "Outage",
    "RateLimitStorm",
    "ScriptedProvider",
    "SeenRequest",
    "Silence",
    "SimCall",
    "SimPacket",
    "SimTarget",
    "SimVendor",
    "SimulationReport",
    "SimulationStuck",
    "ToolCall",
    "Usage",
    "VirtualClock",
    "check_provider",
    "simulate",
    "write_random_gguf",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
