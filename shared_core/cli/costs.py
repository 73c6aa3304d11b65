"""`llm-fallback costs`: what a ledger's file says was spent, by target, model, user, tag or day."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, tzinfo

from shared_core.cli.table import print_table
from shared_core.errors import ConfigurationError, FallbackError
from shared_core.ledger.analytics import DIMENSIONS, CostFilters, CostReport, zone_of
from shared_core.ledger.sums import LedgerFile

__all__ = ["configure", "run"]

_FILTERS = ("target", "model", "provider", "user", "tag", "chain")


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="the ledger's file (costs.db)")
    parser.add_argument("--ledger", metavar="FILE", help="the same")
    parser.add_argument("--by", choices=DIMENSIONS, default="target", help="what to tell costs by (target)")
    parser.add_argument("--since", metavar="WHEN", help="7d, 24h, today, week, month, 2026-11-20, 2026-11-20T08:00")
    parser.add_argument("--until", metavar="WHEN", help="the same; itself excluded")
    for name in _FILTERS:
        parser.add_argument(f"--{name}", metavar=name.upper(), help=f"only of this {name}")
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="whose days are meant (UTC)")
    parser.add_argument("--top", type=int, metavar="N", help="the first N lines only")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print CSV")
    shape.add_argument("--json", action="store_true", help="print JSON: everything, by every dimension")
    parser.add_argument("--budgets", action="store_true", help="what budgets have counted, too")


def run(options: argparse.Namespace) -> int:
    """Do it. The file is only read, whoever else has it open."""
    filters: CostFilters = {"since": options.since, "until": options.until, "timezone": options.timezone}
    for name in _FILTERS:
        value = getattr(options, name)
        if value is not None:
            filters[name] = value  # type: ignore[literal-required]  # _FILTERS names keys of CostFilters
    if None not in (options.file, options.ledger) and options.file != options.ledger:
        raise ConfigurationError(f"which ledger is meant, {options.file!r} or {options.ledger!r}?\nhint: name one")
    with LedgerFile(options.file or options.ledger or "costs.db") as file:
        report = file.costs(**filters)
        meters = file.meters() if options.budgets else []
    if options.json:
        told = report.as_dict()
        if options.budgets:
            told["budgets"] = meters
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return 0
    if options.csv:
        print(report.to_csv(by=options.by), end="")
        return 0
    _table(report, options.by, options.top)
    if options.budgets:
        _budgets(meters, options.timezone)
    return 0


def _table(report: CostReport, by: str, top: int | None) -> None:
    lines = report.by(by)
    if not report.total.attempts and not report.total.hits:
        print("Nothing was spent: no rows match.")
        return
    head, *rows = report.cells(by, top)
    print_table(head, rows, right=frozenset(head[1:]))
    if top is not None and len(lines) > top:
        print(f"\n{len(lines) - top} more", file=sys.stderr)
    notes = report.notes()
    if notes:
        print()
    for note in notes:
        print(note)


def _budgets(meters: list[dict[str, object]], timezone: str) -> None:
    print()
    if not meters:
        print("No budget has counted anything.")
        return
    zone = zone_of(timezone)
    head = ("budget", "window", "since", "spent $", "unknown $", "pending $", "limit $", "%")
    rows = []
    for meter in meters:
        limit, percent, start = meter["limit_usd"], meter["percent"], meter["starts_at"]
        assert isinstance(start, int)
        since = (
            ""
            if not start
            else datetime.fromtimestamp(start, _own(str(meter["timezone"]), zone)).isoformat(" ", "minutes")
        )
        rows.append(
            (
                f"{meter['scope']} {meter['of']}" if meter["of"] else str(meter["scope"]),
                str(meter["window"]),
                since,
                f"{meter['spent_usd']:.6f}",
                f"{meter['unknown_usd']:.6f}",
                f"{meter['pending_usd']:.6f}",
                "none" if limit is None else f"{limit:.6f}",
                "" if percent is None else f"{percent:.1f}",
            )
        )
    print_table(head, rows, right=frozenset(head[3:]))


def _own(name: str, otherwise: tzinfo) -> tzinfo:
    """A budget's own zone; one that is not known by a name is shown in the reader's."""
    try:
        return zone_of(name)
    except FallbackError:
        return otherwise
