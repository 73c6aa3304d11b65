"""The whole router on a virtual clock: `simulate`, and the values that say what is to happen."""

from __future__ import annotations

from shared_core.testing.simulation._loop import SimulationStuck
from shared_core.testing.simulation._report import SimCall, SimPacket, SimulationReport
from shared_core.testing.simulation._run import simulate
from shared_core.testing.simulation._values import (
    BrownOut,
    Chaos,
    ClockStep,
    Flap,
    Happening,
    Load,
    Outage,
    RateLimitStorm,
    SimTarget,
)
from shared_core.testing.simulation._vendor import SimVendor

__all__ = [
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
]
