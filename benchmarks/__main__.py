"""Measure, print a table, write JSON; exit 1 when a promise does not hold: `python -m benchmarks [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import cache, core, langchain, llamaindex, local, money, peers
from benchmarks.measure import Row

__all__ = ["collect", "main"]


def collect(*, quick: bool = False) -> list[Row]:
    """Every row. Some four minutes; `quick` takes a quarter of it and is noisier."""
    rounds, number = (5, 1000) if quick else (9, 4000)
    python = os.environ.get("PEERS_PYTHON")
    if python and not Path(python).exists():
        python = None
    print("benchmarks: the core", file=sys.stderr)
    rows = core.measure(rounds, number)
    print("benchmarks: FallbackChatModel beside with_fallbacks", file=sys.stderr)
    rows += langchain.measure(rounds, number)
    print("benchmarks: FallbackLLM beside the LLM it wraps", file=sys.stderr)
    rows += llamaindex.measure(rounds, number)
    print("benchmarks: the cache", file=sys.stderr)
    rows += cache.measure(rounds, number)
    print("benchmarks: ledger and budgets", file=sys.stderr)
    rows += money.measure(rounds, number)
    if python:
        print("benchmarks: beside LiteLLM's Router", file=sys.stderr)
        rows += peers.litellm(python, rounds, number)
    else:
        print("benchmarks: LiteLLM is NOT measured; `make bench` sets up its environment", file=sys.stderr)
    print("benchmarks: the local model beside llama.cpp", file=sys.stderr)
    rows += local.measure(3 if quick else 9)
    print("benchmarks: imports and memory", file=sys.stderr)
    rows += peers.imports(python, 3 if quick else 7)
    return rows


def report(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """The rows with what is needed to read them later."""
    names = ("langchain-core", "llama-index-core", "genai-prices", "llama-cpp-python", "xllamacpp")
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "load_average": round(os.getloadavg()[0], 2),
        "rows": [r.as_dict() for r in rows],
    }


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [f"{'':62} {'ours':>12} {'':8} {'peer':>12} {'ratio':>8}  promise"]
    for r in rows:
        peer = "" if r.peer_value is None else f"{r.peer_value:,.1f}"
        share = "" if r.ratio is None else f"{r.ratio:.3f}"
        mark = "" if r.holds is None else ("ok  " if r.holds else "NOT ") + (r.limit or "")
        lines.append(f"{r.name[:62]:62} {r.value:>12,.1f} {r.unit:8} {peer:>12} {share:>8}  {mark}")
        if r.peer:
            lines.append(f"{'':62} {'beside ' + r.peer}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args(arguments)
    rows = collect(quick=options.quick)
    print(table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report(rows, "make bench"), indent=2) + "\n")
        print(f"written: {options.out}")
    broken = [r.name for r in rows if r.holds is False]
    if broken:
        print(f"{len(broken)} promise(s) not kept: {'; '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
