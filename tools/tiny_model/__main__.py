"""``python -m tools.tiny_model``: corpus, training, export, evaluation and the figures of the model card."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "shared_core" / "models"
COMMAND = "python -m tools.tiny_model"
EVALUATION_SEED, PER_SKILL = 7_000_001, 60


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--steps", type=int, help="fewer steps for a trial; the shipped file uses the default")
    parser.add_argument("--seed", type=int, help="another seed")
    parser.add_argument("--output", type=Path, default=FOLDER / "tiny.gguf", help="where the model goes")
    parser.add_argument("--evaluate-only", action="store_true", help="keep the model, measure it again")
    parser.add_argument("--show-wrong", action="store_true", help="print every answer that is not exact")
    options = parser.parse_args()
    facts_path = options.output.with_suffix(".json")
    if options.evaluate_only:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    else:
        facts = _train(options)
        _write(facts_path, facts)
    facts["evaluation"] = _evaluate(options.output, show_wrong=options.show_wrong)
    _write(facts_path, facts)
    from .card import fill_card

    card = options.output.with_name("README.md")
    if card.exists():
        fill_card(card, facts)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    """Train and export; give back the facts so far."""
    from .card import training_facts
    from .chat_format import check_template, system, tool_call, tool_result, user
    from .export import export
    from .tool_use import TOOLS
    from .train import TrainingPlan, train

    every_role = [system("A"), user("B"), tool_call("get_weather", '{"city": "C"}'), tool_result("D")]
    for tools in ([], list(TOOLS.values())):
        check_template(every_role, tools)
        check_template(every_role[1:], tools)
    chosen = {key: getattr(options, key) for key in ("steps", "seed") if getattr(options, key) is not None}
    plan = TrainingPlan(**chosen)
    trained = train(plan, lambda line: print(line, flush=True))
    load_average = os.getloadavg()[0]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    checksum = export(trained.model, trained.tokenizer, options.output)
    return {
        "file": options.output.name,
        "sha256": checksum,
        "bytes": options.output.stat().st_size,
        "training": training_facts(plan, trained, COMMAND, load_average),
    }


def _evaluate(path: Path, *, show_wrong: bool) -> dict[str, Any]:
    """Ask the file in llama.cpp."""
    from itertools import chain

    from .card import evaluation_facts
    from .evaluate import demo_questions, drawn_questions, exact_by_skill, exact_continuations, open_model

    model = open_model(path)
    counts, wrong = exact_by_skill(model, chain(drawn_questions(EVALUATION_SEED, PER_SKILL), demo_questions()))
    for skill, (right, asked) in counts.items():
        print(f"{skill:28} {right:4} / {asked}", flush=True)
    for question, said in wrong if show_wrong else ():
        print(f"--- {question.skill}\n{question.messages[-1]['content']}")
        print(f"  expected {question.expected!r}\n  said     {said!r}")
    continuations = exact_continuations(model)
    print(f"{'continuations':28} {continuations[0]:4} / {continuations[1]}", flush=True)
    return evaluation_facts(counts, continuations, EVALUATION_SEED)


def _write(path: Path, facts: dict[str, Any]) -> None:
    from .card import write_facts

    write_facts(path, facts)


if __name__ == "__main__":
    main()
