"""The command `llm-fallback`. A subcommand is a row of `COMMANDS` and a module with `configure` and `run`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand."""

    what: str
    """A line for `llm-fallback --help`."""
    module: str
    """Has `configure(parser)`, which adds its arguments, and `run(options) -> int`, whose result is the exit status.
    Imported only when this subcommand, or its help, is asked for."""


COMMANDS: Mapping[str, Command] = {
    "costs": Command("what was spent, by target, model, user, tag or day", "shared_core.cli.costs"),
    "reconcile": Command(
        "compare a vendor's bill with the ledger, and post the differences", "shared_core.cli.reconcile"
    ),
    "models": Command("list, look at and fetch local models", "shared_core.cli.models"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for what is wrong (said on stderr), 2 for wrong usage."""
    from shared_core import __version__
    from shared_core.errors import FallbackError

    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="llm-fallback", description="Keeps LLM applications answering. What it has for the command line:"
    )
    parser.add_argument("--version", action="version", version=f"llm-fallback {__version__}")
    asked = next((word for word in given if not word.startswith("-")), None)
    rows = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        row = rows.add_parser(name, help=command.what, description=f"{command.what[0].upper()}{command.what[1:]}.")
        if name == asked:
            importlib.import_module(command.module).configure(row)
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        status: int = importlib.import_module(COMMANDS[options.command].module).run(options)
        sys.stdout.flush()
        return status
    except FallbackError as error:
        print(f"llm-fallback: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllm-fallback: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
