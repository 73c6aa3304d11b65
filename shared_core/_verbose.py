"""Shows the log of a program that has not set up any: for `preset="development"`, and nothing else."""

from __future__ import annotations

import logging

__all__ = ["show_log"]


def show_log() -> None:
    """Let every step of every request be heard; on stderr, if the program has no handler of its own. Idempotent."""
    log = logging.getLogger("llm_fallback")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    handlers = (*log.handlers, *logging.getLogger().handlers)
    if all(isinstance(handler, logging.NullHandler) for handler in handlers):
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(shown)
