"""Sets of options under one name: `PRESETS`. What a caller says goes before what a preset says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from shared_core.errors import ConfigurationError, nearest
from shared_core.resilience.breaker import BreakerConfig
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.retry import RetryPolicy

__all__ = ["PRESETS", "Preset", "preset_named"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What a router is given where its caller says nothing."""

    timeouts: Timeouts
    retry: RetryPolicy
    breaker: BreakerConfig
    verbose: bool = False
    """Whether every step of every request is written to the log, and the log to the screen if nobody reads it."""

    def under(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` with what they leave out; where they give a mapping, with what that leaves out."""
        out = dict(options)
        for name in ("timeouts", "retry", "breaker"):
            mine, theirs = getattr(self, name), options.get(name)
            if theirs is None:
                out[name] = mine
            elif isinstance(theirs, Mapping) and {f.name for f in fields(mine)}.issuperset(theirs):
                out[name] = replace(mine, **theirs)
        return out


PRESETS: Final[Mapping[str, Preset]] = {
    # At the desk: what is wrong is to be seen at once, and what was mended is to be asked again at once.
    "development": Preset(
        Timeouts(connect=3, first_token=15, reasoning_first_token=30, idle=10, attempt=60, total=90),
        RetryPolicy(same_target=0, total=1, cap_s=2, max_wait_s=2),
        BreakerConfig(open_s=1, open_cap_s=5, silent_open_cap_s=5, successes_to_close=1),
        verbose=True,
    ),
    # Where somebody waits for every answer: a caller is never kept longer than two minutes, and a target that is ill
    # is left alone after three failures.
    "production": Preset(
        Timeouts(connect=5, first_token=30, reasoning_first_token=60, idle=20, attempt=90, total=120),
        RetryPolicy(same_target=1, total=2, cap_s=4, max_wait_s=5),
        BreakerConfig(consecutive_failures=3),
    ),
}
"""Every preset by its name."""


def preset_named(name: Any) -> Preset | None:
    """The preset of that name; None for None.

    Raises:
        ConfigurationError: there is none; names the nearest.
    """
    if name is None:
        return None
    found = PRESETS.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigurationError(f"unknown preset {name!r}. {nearest(str(name), PRESETS)}")
    return found
