"""Plays the demonstration: `python -m tools.demo [--live] [--gguf FILE] [--model SPEC]... [--step N]...`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Sequence

from tools.demo.screen import Screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Play every step; 0 if all did what they promise, 1 if not, 2 if there was nothing to play."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description="Watch requests survive an outage.")
    parser.add_argument("--live", action="store_true", help="real vendors, with the keys in the environment")
    parser.add_argument("--model", action="append", default=[], metavar="SPEC", help="a live model, 'provider:model'")
    parser.add_argument("--gguf", metavar="FILE", help="another local model than the toy that is shipped")
    options = parser.parse_args(arguments)
    if options.model and not options.live:
        parser.error("--model names a live model: it needs --live (make demo LIVE=1)")

    # The router also logs what goes wrong; here the screen tells it.
    logging.getLogger("llm_fallback").addHandler(logging.NullHandler())
    began = time.monotonic()
    screen = Screen()
    screen.note("loading LangChain, LlamaIndex and the vendors' SDKs ...")
    # Only now: they take seconds to import, and the line above should be there by then.
    from shared_core import ConfigurationError
    from tools.demo.live import LiveWorld, NoKey
    from tools.demo.steps import STEPS, Show
    from tools.demo.world import World

    kept = 0
    try:
        with LiveWorld(options.model, options.gguf) if options.live else World(options.gguf) as world:
            show = Show(world, screen)
            with show.router:
                for number, step in enumerate(STEPS, 1):
                    screen.heading(number, len(STEPS), step.title, step.sentence)
                    try:
                        step.play(show)
                    except Exception as error:  # noqa: BLE001  # a demonstration goes on, and says what went wrong
                        traceback.print_exc()
                        screen.promise(f"the step ends without an error: {type(error).__name__}", False)
                    kept += screen.kept
    except (NoKey, ConfigurationError) as error:
        screen.note(str(error), "bold red")
        return 2
    screen.closing(kept, len(STEPS), time.monotonic() - began)
    return 0 if kept == len(STEPS) else 1


if __name__ == "__main__":
    sys.exit(main())
