"""What the demonstration looks like: headings, answers, promises and tables, in colour where colour is wanted."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, JustifyMethod
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shared_core import AttemptFailed, CostReport, Event, Execution, FellOver, HealthReport, RequestStarted

__all__ = ["Screen"]

WIDTH = 110
INDENT = "   "
READING_PACE_S = 0.03
"""Seconds that an audience gets for a piece of a stream."""


class Screen:
    """Prints the show, and keeps count of what was promised and what was kept."""

    def __init__(self, console: Console | None = None) -> None:
        # rich leaves colour out by itself where the output is no terminal or NO_COLOR is set.
        fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
        self.console = console or Console(highlight=False, width=fixed, soft_wrap=False)
        self.kept = True
        self._began = 0.0
        self._held: list[Event] | None = None
        """Events that wait until a stream has ended, so as not to break into its text."""

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def heading(self, number: int, of: int, title: str, sentence: str) -> None:
        """Begin a step. What it promises is kept until a promise is broken."""
        self.kept = True
        self.console.print()
        self.console.print(Rule(Text(f"{number} of {of}  {title}", "bold"), align="left", style="cyan"))
        self._wrapped(sentence)

    def question(self, text: str) -> None:
        """What is asked."""
        self.console.print()
        self._wrapped(text, "bold", "Q  ")

    def answer(self, text: str, journal: Execution | None) -> None:
        """What was answered, by whom, in how long."""
        self._wrapped(text, "green", "A  ")
        self.served(journal)

    def served(self, journal: Execution | None) -> None:
        """Who answered, in how long, after how many tries."""
        if journal is None or journal.served_by is None:
            return
        took = (journal.ended or journal.started) - journal.started
        waited = f", {journal.waited_s:.2f} s of it waiting before it asked again" if journal.waited_s else ""
        self.note(f"from {journal.served_by.target} in {took:.2f} s, {_tries(len(journal.attempts))}{waited}")

    def note(self, text: str, style: str = "dim") -> None:
        """A line in small voice."""
        self._wrapped(text, style)

    def promise(self, words: str, kept: bool) -> None:
        """One thing this step shows; a broken one is counted."""
        self.kept = self.kept and kept
        mark, style = ("✓", "green") if kept else ("✗ NOT KEPT:", "bold red")
        self.console.print(Text(f"{INDENT}{mark} {words}", style))

    def event(self, event: Event) -> None:
        """An observer for `on_event=`: says what goes wrong at the moment it does, or after a stream that runs."""
        if self._held is not None:
            self._held.append(event)
            return
        match event:
            case RequestStarted():
                self._began = event.at
            case AttemptFailed():
                said = textwrap.shorten(event.error.splitlines()[0], 100, placeholder=" …")
                then = "will be asked again" if event.will_retry else "left"
                self._wrapped(f"✗ {event.target} {then}: {event.kind}, {said!r}", "yellow", f"{self._at(event)}  ")
            case FellOver():
                self._wrapped(f"→ {event.target} was asked", "cyan", f"{self._at(event)}  ")

    def _at(self, event: Event) -> str:
        return f"{max(0.0, event.at - self._began):.2f} s"

    def _wrapped(self, text: str, style: str = "", lead: str = "") -> None:
        width = max(40, self.console.width - len(INDENT))
        lines = textwrap.wrap(text, width - len(lead)) or [""]
        for index, line in enumerate(lines):
            self.console.print(Text(INDENT + (lead if not index else " " * len(lead)) + line, style))

    # ── a stream, as it comes ────────────────────────────────────────────────────────────────────────────────────────

    def streamed(self, pieces: Iterable[str], flush: Callable[[], object]) -> tuple[str, int]:
        """Print `pieces` as they come, in another colour once the first target has failed.

        `flush` waits until observers have been told everything. Returns the whole text and where the colour changed.
        """
        held: list[Event] = []
        self._held = held
        whole, seam, column = "", -1, 0
        self.console.print(Text(f"{INDENT}A  ", "green"), end="")
        for piece in pieces:
            flush()
            if seam < 0 and any(isinstance(event, AttemptFailed) for event in held):
                seam = len(whole)
            whole += piece
            if self.console.is_terminal:
                time.sleep(READING_PACE_S)
            for word in re.findall(r"\s*\S+|\s+$", piece):
                if word[0].isspace() and column + len(word) > self.console.width - 5 * len(INDENT):
                    self.console.print(f"\n{INDENT * 2}", end="")
                    word, column = word.lstrip(), 0
                self.console.print(Text(word, "green" if seam < 0 else "bold magenta"), end="", soft_wrap=True)
                column += len(word)
        self.console.print()
        if self.console.is_terminal:
            self.note("slowed down, for reading")
        self._held = None
        for event in held:
            self.event(event)
        return whole, seam

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def health(self, report: HealthReport) -> None:
        """How each target has been doing."""
        colours = {"HEALTHY": "green", "UNHEALTHY": "red", "CHECKING": "yellow", "UNKNOWN": "dim"}
        shown = ("target", "status", "circuit", "success", "p50", "last error")
        rows = [{column: row[column] for column in shown} for row in report.rows()]
        self._table("Health", rows, right=("success", "p50"), colours=colours)

    def costs(self, report: CostReport) -> None:
        """What each target has cost, in dollars."""
        rows: list[dict[str, object]] = [
            {
                "target": cost["target"],
                "tries": cost["attempts"],
                "answers": cost["answers"],
                "in": cost["input_tokens"],
                "out": cost["output_tokens"],
                "cost $": _dollars(cost["cost_usd"]),
                "at most $": _dollars(cost["at_most_usd"]),
            }
            for cost in report.rows()
        ]
        total = {"cost $": _dollars(report.total_usd), "at most $": _dollars(report.at_most_usd)}
        rows.append({"target": "total", **total})
        self._table("Attempts, and what they cost", rows, right=list(rows[0])[1:])

    def journal(self, execution: Execution) -> None:
        """Who was tried for one request, and why each was left."""
        tried = [
            {
                "target": a.target,
                "outcome": a.outcome,
                "seconds": f"{a.duration_s or 0.0:.3f}",
                "why it was left": str(a.error).removeprefix(f"{a.target}: ") if a.error else "",
            }
            for a in execution.attempts
        ]
        passed = [
            {"target": s.target, "outcome": "passed over", "seconds": "", "why it was left": s.reason}
            for s in execution.skips
        ]
        colours = {"answered": "green", "failed": "red", "passed over": "yellow"}
        self._table("The last request", [*passed, *tried], right=("seconds",), colours=colours)

    def _table(
        self,
        title: str,
        rows: Sequence[Mapping[str, object]],
        *,
        right: Sequence[str] = (),
        colours: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = Table(title=title, title_justify="left", title_style="bold", header_style="cyan", box=None)
        table.padding = (0, 2, 0, 0)
        for column in columns:
            side: JustifyMethod = "right" if column in right else "left"
            table.add_column(column, justify=side, overflow="fold", no_wrap=column != columns[-1])
        for row in rows:
            cells = ["" if row.get(column) is None else str(row[column]) for column in columns]
            table.add_row(*(Text(cell, colours.get(cell, "")) for cell in cells))
        self.console.print()
        self.console.print(table)

    def closing(self, kept: int, of: int, seconds: float) -> None:
        """The one line that matters."""
        style = "bold green" if kept == of else "bold red"
        self.console.print()
        self.console.print(Text(f"{kept} of {of} as promised, in {seconds:.1f} s", style))


def _tries(count: int) -> str:
    return "at the first try" if count == 1 else f"with {count} tries"


def _dollars(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:.6f}"
