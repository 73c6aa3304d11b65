"""`llm-fallback models`: what models are on this machine, what one is, and fetching one from a hub."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from shared_core.cli.table import print_table
from shared_core.models.card import ModelCard, model_card, model_cards
from shared_core.models.hub import pull, shown
from shared_core.models.names import bytes_in_words, count_in_words
from shared_core.models.places import folders, hub_cache

__all__ = ["configure", "run"]

_HEAD = ("llamacpp:", "size", "architecture", "parameters", "context", "quantisation", "template", "file")
_RIGHT = frozenset({"size", "parameters", "context"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(dest="verb", metavar="list | show | pull")
    listing = verbs.add_parser("list", help="what is on this machine (the default)")
    show = verbs.add_parser("show", help="what one model is")
    show.add_argument("model", help="tiny, a path, a name from the list, or hf:<owner>/<repo>/<file>")
    fetch = verbs.add_parser("pull", help="fetch a model from a hub, or go on with it")
    fetch.add_argument("model", metavar="hf:OWNER/REPO/FILE", help="the file may be a glob; quote it")
    for verb in (listing, show, fetch):
        # Left out here, the flag in front of the verb counts.
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    match options.verb:
        case "show":
            _print(model_card(options.model), options)
        case "pull":
            spec = options.model.removeprefix("llamacpp:")
            with shown(always=True) as told:
                path = pull(spec, told=told)
            print(path, file=sys.stderr)
            _print(model_card(spec if spec.startswith("hf:") else f"hf:{spec}"), options)
        case _:
            _list(options)
    return 0


def _print(card: ModelCard, options: argparse.Namespace) -> None:
    print(json.dumps(card.as_dict(), indent=2, ensure_ascii=False) if options.json else card)


def _list(options: argparse.Namespace) -> None:
    cards: list[ModelCard] = []
    broken: list[dict[str, Any]] = []
    for item in model_cards():
        if isinstance(item, ModelCard):
            cards.append(item)
        else:
            found, error = item
            broken.append({"spec": found.spec, "path": str(found.path), "error": str(error)})
    if options.json:
        print(json.dumps([*(card.as_dict() for card in cards), *broken], indent=2, ensure_ascii=False))
        return
    rows = [
        (
            card.spec, bytes_in_words(card.size), card.architecture, count_in_words(card.parameters),
            f"{card.context:,}" if card.context else "?", card.quantization or "?",
            "no" if card.template is None else "with tools" if card.tools else "yes", str(card.path),
        )
        for card in cards
    ]  # fmt: skip
    print_table(_HEAD, rows, right=_RIGHT)
    for bad in broken:
        print(f"\nnot usable: {bad['error']}")
    places = ", ".join(str(folder) for folder in (*folders(), hub_cache()))
    print(f"\nLooked in {places}. LLM_FALLBACK_MODELS names other folders; `llm-fallback models show NAME` says more.",
          file=sys.stderr)  # fmt: skip
