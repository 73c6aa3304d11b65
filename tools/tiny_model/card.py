"""The model card and its machine-readable twin: every figure in them comes from the run that made the file."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .train import Trained, TrainingPlan

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PACKAGES = ("torch", "tokenizers", "numpy", "gguf", "llama-cpp-python")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def training_facts(plan: TrainingPlan, trained: Trained, command: str, load_average: float) -> dict[str, Any]:
    """What the training was and what it took."""
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "training_tokens": trained.tokens,
        "wall_s": round(trained.wall_s),
        "cpu_s": round(trained.cpu_s),
        "load_average_at_the_end": round(load_average, 1),
        "held_out_loss": {str(step): round(loss, 4) for step, loss in trained.validation[4::5]},
        "final_held_out_loss": round(trained.validation[-1][1], 4),
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "versions": {package: version(package) for package in PACKAGES},
    }


def evaluation_facts(counts: dict[str, tuple[int, int]], continuations: tuple[int, int], seed: int) -> dict[str, Any]:
    """What the file in llama.cpp answers, by skill: [right, asked]."""
    return {
        "seed": seed,
        "exact": {skill: list(count) for skill, count in counts.items()},
        "continuations": list(continuations),
    }


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """The facts as JSON."""
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def figures(facts: dict[str, Any]) -> str:
    """The block of the card between the two markers."""
    training, evaluation, exact = facts["training"], facts["evaluation"], facts["evaluation"]["exact"]
    drawn = {skill: count for skill, count in exact.items() if skill != "demo prompts"}
    right, asked = (sum(count[i] for count in drawn.values()) for i in (0, 1))
    versions = ", ".join(f"{package} {number}" for package, number in training["versions"].items())
    machine = training["machine"]
    rows = "\n".join(f"| {skill} | {count[0]} / {count[1]} |" for skill, count in exact.items())
    identical, tried = evaluation["continuations"]
    seconds = f"{training['wall_s']} s on the clock, {training['cpu_s']} s of processor time"
    load = f"{training['plan']['threads']} threads, load average at the end {training['load_average_at_the_end']}"
    return f"""\
| | |
|---|---|
| SHA-256 | `{facts["sha256"]}` |
| size | {facts["bytes"]:,} bytes (16-bit floats), {training["parameters"]:,} parameters |
| command | `{training["command"]}` |
| date | {training["date"]} |
| seed, steps, tokens | {training["plan"]["seed"]}, {training["plan"]["steps"]:,}, {training["training_tokens"]:,} |
| training time | {seconds} ({load}) |
| loss per assistant token, held out | {training["final_held_out_loss"]} |
| machine | {machine["cores"]} cores, {machine["processor"]}, Python {machine["python"]} |
| versions | {versions} |

Exact answers (the whole text equal), greedy, through llama.cpp, on questions drawn from seed {evaluation["seed"]},
which training never used. They come from the same templates as the corpus, so this measures the skills and not general
ability.

| skill | exact |
|---|---|
{rows}
| **all drawn questions** | **{right} / {asked}** ({right / asked:.1%}) |
| a canonical answer cut at any character and continued | {identical} / {tried} |"""


def fill_card(path: Path, facts: dict[str, Any]) -> None:
    """Replace what stands between the markers of the card."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{figures(facts)}\n{END}{after}", encoding="utf-8")
