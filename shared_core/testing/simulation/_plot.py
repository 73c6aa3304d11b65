"""Draws a `SimulationReport` with matplotlib: who served, how long it took, what the circuits did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared_core.testing.simulation._report import SimulationReport

__all__ = ["draw"]

_COLOURS = ("#1565c0", "#ef6c00", "#2e7d32", "#6a1b9a", "#00838f", "#ad1457")
_FAILED = "#c62828"
_SHADES = {"open": "#c62828", "half-open": "#f9a825", "parked": "#6a1b9a", "account locked": "#37474f"}


def draw(report: SimulationReport) -> Figure:
    """Three panels over time: answers per second by target, latency percentiles, packets and circuits."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, (served, took, sent) = plt.subplots(
        3, 1, figsize=(10, 6.4), sharex=True, layout="constrained", height_ratios=(3, 2, 2)
    )
    pieces = report.slices()
    width = pieces[1].at if len(pieces) > 1 else report.seconds
    at = [piece.at for piece in pieces]
    colours = dict(zip(report.targets, _COLOURS * (len(report.targets) // len(_COLOURS) + 1), strict=False))
    floor = [0.0] * len(pieces)
    for name in report.targets:
        heights = [piece.served[name] / width for piece in pieces]
        served.bar(at, heights, width, bottom=floor, align="edge", color=colours[name], label=name)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    if report.failed:
        failed = [piece.failed / width for piece in pieces]
        served.bar(at, failed, width, bottom=floor, align="edge", color=_FAILED, hatch="///", label="failed")
    served.set(ylabel="answers per second", title=f"{report.name}, seed {report.seed}")
    for share, values in ((50, [p.p50_s for p in pieces]), (95, [p.p95_s for p in pieces])):
        took.plot([a + width / 2 for a in at], [_or_nan(v) for v in values], label=f"p{share}")
    took.set(ylabel="answered after (s)")
    took.set_ylim(0, 1.25 * max((p.p95_s or 0.0 for p in pieces), default=1.0) or 1.0)
    took.legend(loc="upper left", fontsize=8, frameon=False, ncols=2)
    for name in report.targets:
        sent.step(at, [p.packets[name] / width for p in pieces], where="post", color=colours[name], label=name)
    sent.set(ylabel="packets per second", xlabel="seconds", xlim=(0, report.seconds))
    sent.set_ylim(bottom=0)
    _shade_circuits(sent, report)
    for happening in report.scenario:
        for panel in (served, took):
            panel.axvspan(happening.start, happening.end, color="#9e9e9e", alpha=0.15, lw=0, zorder=0)
    handles, labels = served.get_legend_handles_labels()
    seen = {change.state for change in report.circuits if change.target == report.targets[0]}
    for state, colour in _SHADES.items():
        if state in seen:
            handles.append(Rectangle((0, 0), 1, 1, color=colour, alpha=0.18, lw=0))
            labels.append(f"{report.targets[0]}: {state}")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    plt.close(figure)  # the caller shows it, once
    return figure


def _shade_circuits(panel: Any, report: SimulationReport) -> None:
    """Behind the packets: what the first target's circuit was doing."""
    mine = [change for change in report.circuits if change.target == report.targets[0]]
    ends = [change.at for change in mine[1:]] + [report.seconds]
    for change, end in zip(mine, ends, strict=True):
        until = min(end, change.at + change.for_s) if change.state == "parked" and change.for_s else end
        if change.state in _SHADES and until > change.at:
            panel.axvspan(change.at, until, color=_SHADES[change.state], alpha=0.18, lw=0)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
