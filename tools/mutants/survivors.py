"""What a run left alive, what has been written about it, and the table and facts that come of both."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["WANTED", "Explanation", "Mutant", "Report", "Status", "change", "explanations", "function", "status"]

WANTED = 98.0
"""Per cent of all mutants that the tests must kill."""

EXPLANATIONS = Path(__file__).with_name("survivors.toml")

Status = Literal["killed", "timeout", "survived", "unknown"]

# How pytest, or the limit on its time, ended a mutant's run: mutmut keeps the exit status.
_KILLED = {1, 3}  # a test failed; pytest itself failed
_TIMEOUT = {24, -24, 36, 152, 255}  # it never ends, and the tests take notice by not ending either
_SURVIVED = {0, 5, 33}  # the tests passed; there is no test for it


def status(exit_code: int | None) -> Status:
    """What an exit status kept by mutmut means; anything unheard of (None is "never run") is nobody's success."""
    if exit_code in _KILLED:
        return "killed"
    if exit_code in _TIMEOUT:
        return "timeout"
    return "survived" if exit_code in _SURVIVED else "unknown"


def function(name: str) -> str:
    """`Seam.feed` for `shared_core.routing.seam.xǁSeamǁfeed__mutmut_3`, `flow` for `….flow.x_flow__mutmut_31`."""
    mangled = name.rpartition(".")[2].partition("__mutmut_")[0]
    return mangled.removeprefix("x_") if mangled.startswith("x_") else mangled.removeprefix("xǁ").replace("ǁ", ".")


def change(diff: str) -> tuple[str, str]:
    """The lines a unified diff takes away and the lines it puts in their place, without their indentation."""
    body = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    return tuple("\n".join(line[1:].strip() for line in body if line.startswith(sign)) for sign in "-+")  # type: ignore[return-value]  # two signs, two strings


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small change. Its number is left out: it shifts with every edit above it."""

    file: str
    function: str
    status: Status
    was: str = ""
    now: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What an explanation is found by, and stays valid by while other lines move."""
        return self.file, self.function, self.was, self.now


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why no test can, or need, tell a changed line from the original."""

    file: str
    function: str
    was: str
    now: str
    why: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """As `Mutant.key`."""
        return self.file, self.function, self.was, self.now


def explanations(path: Path = EXPLANATIONS) -> list[Explanation]:
    """Read the explanations at `path`. `now` may be a list: several changes of one line with one reason.

    Raises:
        ValueError: an entry lacks a field, has one too many, or gives no reason.
    """
    found = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
        if set(entry) != {"file", "function", "was", "now", "why"} or not entry["why"].strip():
            raise ValueError(f"{path.name}: an entry is file, function, was, now and why, not {entry}")
        changes = [entry["now"]] if isinstance(entry["now"], str) else entry["now"]
        where = entry["file"], entry["function"], _stripped(entry["was"])
        found += [Explanation(*where, _stripped(now), entry["why"].strip()) for now in changes]
    return found


def _stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@dataclass(frozen=True, slots=True)
class Report:
    """Mutants beside explanations."""

    mutants: Sequence[Mutant]
    explained: Sequence[Explanation]
    _reasons: Mapping[tuple[str, str, str, str], str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_reasons", {e.key: e.why for e in self.explained})

    @property
    def killed(self) -> int:
        """How many the tests noticed, those included that never ended."""
        return sum(m.status in ("killed", "timeout") for m in self.mutants)

    @property
    def per_cent(self) -> float:
        """Share of all mutants that were killed, explained ones in the denominator too."""
        return 100.0 * self.killed / len(self.mutants) if self.mutants else 0.0

    @property
    def alive(self) -> list[Mutant]:
        """Those no test noticed, and those of which nothing is known."""
        return [m for m in self.mutants if m.status in ("survived", "unknown")]

    @property
    def unexplained(self) -> list[Mutant]:
        """Those alive that nothing is written about. What never ran cannot be explained away."""
        return [m for m in self.alive if m.status == "unknown" or m.key not in self._reasons]

    @property
    def stale(self) -> list[Explanation]:
        """Explanations of what is dead or gone, in files that were looked at."""
        alive, files = {m.key for m in self.alive}, {m.file for m in self.mutants}
        return [e for e in self.explained if e.file in files and e.key not in alive]

    @property
    def good(self) -> bool:
        """Whether enough were killed and the rest is explained."""
        return bool(self.mutants) and self.per_cent >= WANTED and not self.unexplained

    def table(self) -> str:
        """One row per file, for people."""
        head = ("file", "mutants", "killed", "survived", "explained", "unexplained", "killed %")
        rows = [head, *(tuple(map(str, row.values())) for row in self.rows())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def rows(self) -> list[dict[str, Any]]:
        """Per file, and last for all of them."""
        files = sorted({m.file for m in self.mutants})
        parts = [(file, [m for m in self.mutants if m.file == file]) for file in files]
        return [self._row(name, part) for name, part in [*parts, ("all", list(self.mutants))]]

    def _row(self, name: str, mutants: Iterable[Mutant]) -> dict[str, Any]:
        part = Report(list(mutants), self.explained)
        return {
            "file": name,
            "mutants": len(part.mutants),
            "killed": part.killed,
            "survived": len(part.alive),
            "explained": len(part.alive) - len(part.unexplained),
            "unexplained": len(part.unexplained),
            "killed_percent": f"{part.per_cent:.1f}",
        }

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        rows = [{**row, "killed_percent": float(row["killed_percent"])} for row in self.rows()]
        return {
            "total": len(self.mutants),
            "killed": self.killed,
            "killed_by_time_limit": sum(m.status == "timeout" for m in self.mutants),
            "killed_percent": round(self.per_cent, 2),
            "survived": len(self.alive),
            "unexplained": len(self.unexplained),
            "files": rows[:-1],
            "survivors": [
                {
                    "file": m.file,
                    "function": m.function,
                    "was": m.was,
                    "now": m.now,
                    "why": self._reasons.get(m.key, "unexplained"),
                }
                for m in self.alive
            ],
        }
