"""Draws docs/evidence/simulation.json: one SVG per trouble, and one over time. The same figures, the same bytes.

python -m tools.simulation.charts            write docs/charts
python -m tools.simulation.charts --check    exit with 1 if a chart is not what the figures say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tools.evidence import record

__all__ = ["FOLDER", "charts", "main", "stale"]

FOLDER = record.ROOT / "docs" / "charts"
_OURS, _PEER, _INK, _FAINT, _TROUBLE = "#1565c0", "#8d6e63", "#212121", "#e0e0e0", "#f5f5f5"
_LINES = ("#1565c0", "#ef6c00", "#6a1b9a")
_FONT = "font-family='Helvetica,Arial,sans-serif'"
_LABEL_W, _PANEL_W, _GAP, _ROW_H, _TOP = 250, 140, 22, 22, 62


class _Panel:
    """One column of bars: what it shows, and how a row's value is told."""

    def __init__(self, title: str, value: Callable[[Mapping[str, Any]], float], told: Callable[[Any], str]) -> None:
        self.title = title
        self.value = value
        self.told = told


_PANELS = (
    _Panel("not answered", lambda row: 1.0 - row["availability"], lambda row: f"{1.0 - row['availability']:.2%}"),
    _Panel(
        "packets to it, per call",
        lambda row: row["packets_per_call"],
        lambda row: f"{row['packets_per_call']:.3g}",
    ),
    _Panel("answered after, p95", lambda row: row["p95_s"] or 0.0, lambda row: f"{row['p95_s'] or 0:.1f} s"),
    _Panel("dollars per 1,000 answers", lambda row: row["usd_per_1000"], lambda row: f"{row['usd_per_1000']:.2f}"),
)


def charts(facts: Mapping[str, Any]) -> Mapping[str, str]:
    """Every chart by its file's name."""
    drawn = {
        f"simulation-{trouble['scenario'].replace(' ', '-')}.svg": _bars(trouble["scenario"], trouble["rows"])
        for trouble in facts["troubles"]
    }
    return {**drawn, "simulation-over-time.svg": _over_time(facts)}


def _bars(scenario: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows are who asked; columns are what it came to, each on a scale of its own from zero."""
    width = _LABEL_W + len(_PANELS) * (_PANEL_W + _GAP) + 40
    height = _TOP + len(rows) * _ROW_H + 34
    out = _head(width, height, f"Ten minutes of {scenario}: who answered, and what it took")
    for index, panel in enumerate(_PANELS):
        left = _LABEL_W + index * (_PANEL_W + _GAP)
        most = max((panel.value(row) for row in rows), default=0.0) or 1.0
        out.append(_text(left, _TOP - 10, panel.title, size=10, weight="bold"))
        for number, row in enumerate(rows):
            top = _TOP + number * _ROW_H
            length = (_PANEL_W - 46) * panel.value(row) / most
            colour = _OURS if row["ours"] else _PEER
            out.append(f"<rect x='{left}' y='{top}' width='{max(length, 1):.1f}' height='14' fill='{colour}'/>")
            out.append(_text(left + max(length, 1) + 4, top + 11, panel.told(row), size=10))
    for number, row in enumerate(rows):
        label = f"{row['who']} (ours)" if row["ours"] else row["who"]
        out.append(_text(_LABEL_W - 10, _TOP + number * _ROW_H + 11, label, size=11, anchor="end"))
    note = (
        "Simulated; requests that came in while it lasted, all seeds together. Peers are modelled: docs/simulation.md."
    )
    out.append(_text(10, height - 10, note, size=9))
    return "\n".join([*out, "</svg>\n"])


def _over_time(facts: Mapping[str, Any]) -> str:
    """Columns are the troubles; above, packets per second to the troubled target; below, the median latency."""
    wide, high, left = 205, 120, 60
    troubles = facts["troubles"]
    width, height = left + len(troubles) * (wide + 30), 2 * (high + 50) + 70
    out = _head(width, height, "Over time: packets to the troubled target, and how long answers took")
    start, stop = (at / facts["seconds"] for at in facts["trouble_s"])
    for row, (key, title) in enumerate((("packets_per_s", "packets per second"), ("p50_s", "median seconds"))):
        most = max((v or 0.0 for t in troubles for line in t["over_time"] for v in line[key]), default=1.0) or 1.0
        top = 60 + row * (high + 50)
        out.append(_text(left - 6, top + 8, f"{most:.0f}", size=9, anchor="end"))
        out.append(_text(left - 6, top + high, "0", size=9, anchor="end"))
        out.append(_text(6, top - 8, title, size=10, weight="bold"))
        for column, trouble in enumerate(troubles):
            x = left + column * (wide + 30)
            out.append(f"<rect x='{x}' y='{top}' width='{wide}' height='{high}' fill='white' stroke='{_FAINT}'/>")
            out.append(
                f"<rect x='{x + start * wide:.1f}' y='{top}' width='{(stop - start) * wide:.1f}' height='{high}' "
                f"fill='{_TROUBLE}'/>"
            )
            if row == 0:
                out.append(_text(x + wide / 2, top - 8, trouble["scenario"], size=11, anchor="middle", weight="bold"))
            for colour, line in zip(_LINES, trouble["over_time"], strict=False):
                out.append(_line(line[key], x, top, wide, high, most, colour))
    for number, line in enumerate(troubles[0]["over_time"] if troubles else ()):
        x = left + number * 260
        out.append(f"<rect x='{x}' y='{height - 30}' width='14' height='4' fill='{_LINES[number % len(_LINES)]}'/>")
        out.append(_text(x + 20, height - 24, line["who"], size=11))
    return "\n".join([*out, "</svg>\n"])


def _line(
    values: Sequence[float | None], x: float, top: float, wide: float, high: float, most: float, colour: str
) -> str:
    step = wide / max(1, len(values) - 1)
    points = [
        f"{x + number * step:.1f},{top + high - high * value / most:.1f}"
        for number, value in enumerate(values)
        if value is not None
    ]
    return f"<polyline points='{' '.join(points)}' fill='none' stroke='{colour}' stroke-width='1.5'/>"


def _head(width: float, height: float, title: str) -> list[str]:
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    return [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(10, 24, title, size=15, weight="bold"),
    ]


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {_FONT} font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='{_INK}'>{escape(text)}</text>"
    )


def stale(folder: Path = FOLDER) -> list[str]:
    """Charts that are not what the figures say, or that nobody draws any more."""
    facts = record.load("simulation")
    wanted = {} if facts is None else charts(facts)
    wrong = [
        name
        for name, text in wanted.items()
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != text
    ]
    return wrong + sorted(path.name for path in folder.glob("simulation-*.svg") if path.name not in wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the charts, or check them."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulation.charts", description="Draw the simulation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    parser.add_argument("--facts", type=Path, default=record.FOLDER, help="the folder with simulation.json")
    parser.add_argument("--out", type=Path, default=FOLDER, help="write into this folder instead")
    options = parser.parse_args(arguments)
    if options.check:
        wrong = stale(options.out)
        print("\n".join([*wrong, "hint: python -m tools.simulation.charts"]) if wrong else "charts are up to date")
        return 1 if wrong else 0
    facts = record.load("simulation", options.facts)
    if facts is None:
        print("there are no figures; hint: make evidence ARGS=simulation", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in charts(facts).items():
        (options.out / name).write_text(text, encoding="utf-8")
        print(f"written: {options.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
