"""Ours beside LiteLLM's Router: calls a second, import time, memory. Left out, and said so, without its environment."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.core import REQUEST, Instant
from benchmarks.measure import Peer, Row, python_ms, ratio, row
from shared_core import Router

__all__ = ["imports", "litellm"]

OURS = "from shared_core import Router, Target\nRouter([Target('openai:gpt-5-mini', api_key='k')])"
THEIRS = (
    "import litellm\nlitellm.Router(model_list=[{'model_name': 'm',"
    " 'litellm_params': {'model': 'openai/gpt-5-mini', 'api_key': 'k'}}])"
)
BASE = "import langchain_core.language_models.chat_models"


def litellm(python: str, rounds: int, number: int) -> list[Row]:
    """Calls a second in one thread: an instant target through our Router, a mock response through LiteLLM's."""
    peer = Peer(python, Path(__file__).with_name("litellm_peer.py"))
    router = Router([Instant(), Instant(name="backup")])
    ours, theirs = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(number):
            router.invoke(REQUEST)
        ours.append((time.perf_counter() - begun) / number * 1e6)
        theirs.append(peer.round("sync", max(20, number // 40)))
    name = f"LiteLLM Router {peer.facts['version']} (mock)"
    peer.close()
    return [
        row(
            "a routed call, sync",
            "us",
            statistics.median(ours),
            peer=name,
            peer_value=statistics.median(theirs),
            ratio=ratio(ours, theirs),
            ratio_at_most=1 / 20,
        )
    ]


def imports(python: str | None, rounds: int) -> list[Row]:
    """What importing costs a fresh interpreter, and what a built router weighs."""
    core = [python_ms("import shared_core") for _ in range(rounds)]
    base = [python_ms(BASE) for _ in range(rounds)]
    wrapper = [python_ms(f"{BASE}\n_b = _t.perf_counter()\nimport langchain_fallback") for _ in range(rounds)]
    built = [python_ms(OURS) for _ in range(rounds)]
    theirs = [python_ms(THEIRS, python=python) for _ in range(rounds)] if python else []
    median = statistics.median
    rows = [
        row("import shared_core", "ms", median(ms for ms, _ in core), at_most=120),
        row(
            "import langchain_fallback, beyond LangChain's chat-model base",
            "ms",
            median(ms for ms, _ in wrapper),
            at_most=60,
        ),
        row("LangChain's chat-model base itself", "ms", median(ms for ms, _ in base)),
    ]
    for name, unit, pick in (("import and build a router", "ms", 0), ("memory with a router built", "MB", 1)):
        mine = [sample[pick] for sample in built]
        other = [sample[pick] for sample in theirs]
        rows.append(
            row(
                name,
                unit,
                median(mine),
                peer="LiteLLM Router" if other else None,
                peer_value=median(other) if other else None,
                ratio=ratio(mine, other) if other else None,
            )
        )
    return rows
