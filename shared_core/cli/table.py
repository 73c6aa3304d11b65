"""A table for people: with rich where it is installed and the output is a terminal, else in plain columns."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["print_table"]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Print it; the columns named in `right` are aligned there."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        for name in head:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console().print(table, markup=False)
        return
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = (
            cell.rjust(size) if name in right else cell.ljust(size)
            for name, cell, size in zip(head, row, wide, strict=True)
        )
        print("  ".join(cells).rstrip())
