"""Plots of a `CostReport`, drawn with matplotlib, which is imported when the first one is."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared_core.errors import ConfigurationError, MissingDependency, nearest

if TYPE_CHECKING:
    from shared_core.ledger.analytics import CostReport

__all__ = ["KINDS", "draw"]

KINDS = ("days", "burn_down", "savings")


def draw(report: CostReport, kind: str, *, limit_usd: float | None, days: int, ax: Any) -> Any:
    """Draw one of `KINDS`; see `CostReport.plot`."""
    if kind not in KINDS:
        raise ConfigurationError(f"plot() draws {', '.join(KINDS)}, not {kind!r}. {nearest(kind, KINDS)}")
    if kind == "burn_down" and limit_usd is None:
        raise ConfigurationError("plot('burn_down') needs limit_usd=, the month's budget in dollars")
    if ax is None:
        ax = _axes()
    if kind == "days":
        _days(report, days, ax)
    elif kind == "savings":
        _savings(report, days, ax)
    else:
        assert limit_usd is not None
        _burn_down(report, limit_usd, ax)
    return ax


def _axes() -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingDependency("plot() needs matplotlib. hint: pip install 'llm-fallback[notebooks]'") from error
    return plt.subplots(figsize=(8, 3.2), layout="constrained")[1]


def _finish(ax: Any, title: str) -> None:
    ax.set_title(title)
    ax.set_ylabel("US dollars")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for label in ax.get_xticklabels():
        label.set_rotation(45)
        label.set_horizontalalignment("right")


def _legend(ax: Any) -> None:
    """Beside the bars, none of which it may cover."""
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _last(report: CostReport, days: int) -> list[date]:
    today = datetime.fromtimestamp(report.query.now, report.query.zone).date()
    return [today - timedelta(days=back) for back in range(days - 1, -1, -1)]


def _days(report: CostReport, days: int, ax: Any) -> None:
    """A bar for each day, a part of it for each target, dearest at the bottom."""
    shown = _last(report, days)
    names = [day.strftime("%d %b") for day in shown]
    below = [0.0] * len(shown)
    spent = {(part.day, part.target): part.line for part in report.parts}
    for line in report.targets:
        heights = [spent[day, line.name].cost_nano / 1e9 if (day, line.name) in spent else 0.0 for day in shown]
        if any(heights):
            ax.bar(names, heights, bottom=below, label=line.name, width=0.8)
            below = [a + b for a, b in zip(below, heights, strict=True)]
    unsure = [sum(part.line.uncertain_nano for part in report.parts if part.day == day) / 1e9 for day in shown]
    if any(unsure):
        ax.bar(names, unsure, bottom=below, label="estimated or unknown, at most", width=0.8, color="none",
               edgecolor="grey", hatch="///")  # fmt: skip
    if not any(below) and not any(unsure):
        ax.bar(names, below)  # the days, though nothing was spent on them
    else:
        _legend(ax)
    _finish(ax, "Spend per day and target")


def _savings(report: CostReport, days: int, ax: Any) -> None:
    shown = _last(report, days)
    names = [day.strftime("%d %b") for day in shown]
    lines = dict(zip(shown, report.daily(days), strict=True))
    paid = [lines[day].cost_nano / 1e9 for day in shown]
    ax.bar(names, paid, label="paid", width=0.8)
    ax.bar(
        names, [lines[day].saved_usd for day in shown], bottom=paid, label="saved by the cache", width=0.8, alpha=0.5
    )
    _legend(ax)
    _finish(ax, "Paid, and saved by the cache")


def _burn_down(report: CostReport, limit: float, ax: Any) -> None:
    """What is left of the month's budget at the end of each day, and where it leads."""
    now = datetime.fromtimestamp(report.query.now, report.query.zone)
    today, first = now.date(), now.date().replace(day=1)
    end = (first + timedelta(days=32)).replace(day=1) - timedelta(days=1)
    costs = {line.name: line for line in report.by("day")}
    left, at_least, drawn = limit, limit, [first + timedelta(days=n) for n in range((today - first).days + 1)]
    known, sure = [], []
    for day in drawn:
        line = costs.get(day.isoformat())
        left -= line.cost_nano / 1e9 if line else 0.0
        at_least -= (line.cost_nano + line.uncertain_nano) / 1e9 if line else 0.0
        known.append(left)
        sure.append(at_least)
    ax.axhline(0.0, color="crimson", linewidth=1)
    ax.plot(drawn, known, marker="o", markersize=3, label="left, as reported")
    if sure[-1] < known[-1]:
        ax.fill_between(drawn, sure, known, alpha=0.25, label="… if all that is unknown was billed")
    month = report.month
    if month is not None and end > today:
        ax.plot([today, end], [left, left - month.daily_mean_usd * month.days_left], linestyle="--", color="grey",
                label="projected")  # fmt: skip
    ax.legend(frameon=False, fontsize="small")
    _finish(ax, f"What is left of ${limit:g} in {first:%B}")
    ax.set_xlim(first, end)
