"""How we measure: medians over repeated rounds, ours and the peer's in turn, so that noise meets both alike."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Peer", "Row", "per_call_us", "python_ms", "ratio", "row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is ours over the peer's, or the peer's over ours where more is better: below 1 is good."""

    name: str
    unit: str
    value: float
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    limit: str | None = None
    """What the requirement allows, in words; None where nothing is promised."""
    holds: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def row(
    name: str,
    unit: str,
    value: float,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    ratio_at_most: float | None = None,
    ratio_at_least: float | None = None,
) -> Row:
    """A row, judged against its limit."""
    limit, holds = None, None
    if at_most is not None:
        limit, holds = f"<= {at_most:g} {unit}", value <= at_most
    elif at_least is not None:
        limit, holds = f">= {at_least:g} {unit}", value >= at_least
    elif ratio_at_most is not None and ratio is not None:
        limit, holds = f"ratio <= {ratio_at_most:g}", ratio <= ratio_at_most
    elif ratio_at_least is not None and ratio is not None:
        limit, holds = f"ratio >= {ratio_at_least:g}", ratio >= ratio_at_least
    return Row(name, unit, value, peer, peer_value, ratio, limit, holds)


def per_call_us(*calls: Callable[[], object], rounds: int, number: int) -> list[list[float]]:
    """Microseconds per call of each of `calls`, one list of `rounds` samples each; the calls take turns."""
    for call in calls:
        for _ in range(max(10, number // 10)):
            call()
    samples: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, kept in zip(calls, samples, strict=True):
                begun = time.perf_counter()
                for _ in range(number):
                    call()
                kept.append((time.perf_counter() - begun) / number * 1e6)
            gc.collect()
    finally:
        gc.enable()
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' own ratios: each round saw the same machine."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def python_ms(code: str, *, python: str = sys.executable, cwd: Path | None = None) -> tuple[float, float]:
    """Milliseconds and peak megabytes of a fresh interpreter that runs `code`."""
    probe = (
        "import time as _t, sys as _s\n_b = _t.perf_counter()\n"
        f"{code}\n"
        "_took = (_t.perf_counter() - _b) * 1e3\n"
        "_peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "_s.stdout.write(f'{_took} {float(_peak[0]) / 1024 if _peak else 0}')"
    )
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, env=env, cwd=cwd)
    took, peak = done.stdout.split()[-2:]
    return float(took), float(peak)


class Peer:
    """A peer measured in its own environment: a child process that runs one round whenever it is told to."""

    def __init__(self, python: str, script: Path, *arguments: str) -> None:
        env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self._child = subprocess.Popen(
            [python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.facts = self._read()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the peer's process ended before it answered")

    def round(self, what: str, number: int) -> float:
        """Microseconds per call of `number` calls of `what`."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{what} {number}\n")
        self._child.stdin.flush()
        return float(self._read()["us"])

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)
