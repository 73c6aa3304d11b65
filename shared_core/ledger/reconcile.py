"""What a vendor billed against what the ledger has: differences are posted as corrections, and unknown rows resolved.

The bill is compared for each UTC day and model. What it says beyond the reported and estimated rows goes to
the rows whose outcome is unknown, each up to its bound; what is still left is posted on other rows of that day and
model. Nothing is ever changed or deleted, and importing the same bill again finds no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from html import escape
from typing import Any, Protocol

from shared_core.chat.events import Usage
from shared_core.errors import ConfigurationError
from shared_core.ledger.analytics import day_of
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.ledger.exports import Billed, ExportLike, model_key, read_export
from shared_core.routing.price import Price

__all__ = ["Reconcilable", "Reconciliation", "ReconciliationLine", "reconcile"]

PriceOf = Callable[[str, date], Price | None]
"""The price of a model on a day, for exports that tell tokens and no money."""


class Reconcilable(Protocol):
    """A ledger that corrections can be posted to."""

    def entries(self) -> Sequence[LedgerEntry]:
        """The rows kept, oldest first, corrections among them."""
        ...

    def record(self, entry: LedgerEntry) -> None:
        """Add one row."""
        ...

    def correct(
        self, number: int, cost_nano: int, *, reason: str, usage: Usage | None = None, at: float | None = None
    ) -> LedgerEntry | None:
        """Post the difference between a settled row and what it cost in truth."""
        ...

    def flush(self) -> object:
        """Wait until everything is written."""
        ...


@dataclass(frozen=True, slots=True)
class ReconciliationLine:
    """One day and model. Money is nano-dollars, as it was before anything was posted."""

    day: date
    model: str
    """As the ledger has it, else as the vendor names it; empty where the export is not told by model."""
    billed_nano: int | None
    """None: the export tells tokens only, and their price is not known."""
    reported_nano: int
    estimated_nano: int
    unknown_nano: int
    """The bounds of the rows whose outcome was unknown."""
    unknown: int
    """How many they are."""
    difference_nano: int
    """What the bill says beyond reported and estimated cost; negative: it is less."""
    posted: int
    """Corrections posted, or that would be."""
    note: str = ""

    @property
    def resolved(self) -> int:
        """How many unknown rows were resolved."""
        return self.unknown if self.posted else 0


@dataclass(frozen=True)
class Reconciliation:
    """What a bill and the ledger said of each day and model, and what was posted. `print` it."""

    vendor: str
    lines: tuple[ReconciliationLine, ...]
    dry_run: bool = False

    @property
    def posted(self) -> int:
        """How many corrections were posted, or would be."""
        return sum(line.posted for line in self.lines)

    @property
    def resolved(self) -> int:
        """How many rows whose outcome was unknown have a cost now."""
        return sum(line.resolved for line in self.lines)

    @property
    def billed_usd(self) -> float:
        """The bill, as far as it was compared, in dollars."""
        return sum(line.billed_nano or 0 for line in self.lines) / 1e9

    @property
    def difference_usd(self) -> float:
        """The sum of the differences, in dollars."""
        return sum(line.difference_nano for line in self.lines) / 1e9

    def rows(self) -> list[dict[str, Any]]:
        """As plain data."""
        return [
            {
                "day": line.day.isoformat(),
                "model": line.model,
                "billed_usd": None if line.billed_nano is None else line.billed_nano / 1e9,
                "reported_usd": line.reported_nano / 1e9,
                "estimated_usd": line.estimated_nano / 1e9,
                "unknown_usd": line.unknown_nano / 1e9,
                "unknown": line.unknown,
                "difference_usd": line.difference_nano / 1e9,
                "posted": line.posted,
                "note": line.note,
            }
            for line in self.lines
        ]

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("day", "model", "billed $", "reported $", "estimated $", "unknown $", "difference $", "posted", "note")
        return [
            head,
            *(
                (
                    line.day.isoformat(),
                    line.model or "(all)",
                    "unknown" if line.billed_nano is None else f"{line.billed_nano / 1e9:.6f}",
                    f"{line.reported_nano / 1e9:.6f}",
                    f"{line.estimated_nano / 1e9:.6f}" if line.estimated_nano else "",
                    f"{line.unknown_nano / 1e9:.6f}" if line.unknown else "",
                    f"{line.difference_nano / 1e9:+.6f}",
                    str(line.posted),
                    line.note,
                )
                for line in self.lines
            ),
        ]

    def _said(self) -> str:
        would = "would be " if self.dry_run else ""
        return (
            f"{self.vendor}: ${self.billed_usd:.6f} billed, {self.difference_usd:+.6f} beyond the ledger; "
            f"{self.posted} corrections {would}posted, {self.resolved} unknown outcomes {would}resolved"
        )

    def __str__(self) -> str:
        cells = self._cells()
        wide = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for row in cells:
            told = [
                cell.ljust(wide[i]) if i in (0, 1, len(row) - 1) else cell.rjust(wide[i]) for i, cell in enumerate(row)
            ]
            lines.append("  ".join(told).rstrip())
        return "\n".join([*lines, self._said()])

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        return f"<table><tr>{top}</tr>{body}</table><p>{escape(self._said())}</p>"


def reconcile(
    ledger: Reconcilable,
    source: ExportLike,
    vendor: str,
    *,
    now: float,
    provider: str | None = None,
    prices: Mapping[str, Price] | None = None,
    dry_run: bool = False,
    adopt: bool = False,
) -> Reconciliation:
    """Compare a vendor's usage export with the ledger, and post the differences.

    Args:
        ledger: where the rows are.
        source: the export: a path, a page, or rows; see `read_export`.
        vendor: whose it is: 'openai', 'anthropic', or the name of any provider.
        now: seconds since the epoch. A day that is not over is told and left alone: its bill is not whole.
        provider: whose rows are compared, if not `vendor`'s: 'azure-openai', say.
        prices: of models by their names, for an export that tells tokens and no money; what is not among them is looked
            up in the price table.
        dry_run: tell what would be posted, and post nothing.
        adopt: post what was billed for models that the ledger has no rows of on that day too: set this where the
            account serves nobody else.

    Raises:
        InvalidExport: it cannot be read; names file, line and column.
        ConfigurationError: the ledger takes no corrections.
    """
    if not callable(getattr(ledger, "correct", None)):
        raise ConfigurationError(
            f"{type(ledger).__name__} takes no corrections. hint: MemoryLedger, or ledger='costs.db'"
        )
    whose = provider or vendor
    bills = read_export(source)
    ledger.flush()
    groups = _groups(ledger.entries(), whose, {bill.day for bill in bills})
    today = day_of(now)
    lines = []
    for bill in bills:
        rows = groups.get((bill.day, model_key(bill.model)), [])
        if not bill.model:
            rows = [row for (day, _), found in groups.items() if day == bill.day for row in found]
        lines.append(_line(ledger, bill, rows, whose, vendor, today, _listed(whose, prices or {}), dry_run, adopt))
    for (day, key), rows in sorted(groups.items(), key=lambda item: item[0]):
        told = {model_key(bill.model) for bill in bills if bill.day == day}
        if key not in told and "" not in told:
            # It may be another name for one that is; to set its cost to nothing would open budgets.
            lines.append(replace(_compared(day, rows[0].entry.model, None, rows), note="not in the export: left alone"))
    ledger.flush()
    if not any(rows for rows in groups.values()) and (
        others := {entry.provider for entry in ledger.entries()} - {whose}
    ):
        other = f"no rows of {whose!r} on that day (the ledger has {', '.join(map(repr, sorted(others)))}): left alone"
        lines = [replace(line, note=other) if line.note == _NO_ROWS else line for line in lines]
    lines.sort(key=lambda line: (line.day, line.model))
    return Reconciliation(vendor, tuple(lines), dry_run)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Row:
    """A settled row with what corrections have made of it."""

    entry: LedgerEntry
    corrected_nano: int = 0
    resolved: bool = False

    @property
    def unknown(self) -> bool:
        """Whether nobody knows yet what it cost."""
        return self.entry.status is EntryStatus.UNKNOWN and self.entry.cost_nano is None and not self.resolved

    @property
    def cost_nano(self) -> int:
        """As the ledger has it now."""
        return (self.entry.cost_nano or 0) + self.corrected_nano

    @property
    def bound_nano(self) -> int:
        return self.entry.bound_nano or 0


_Groups = dict[tuple[date, str], list[_Row]]


def _groups(entries: Iterable[LedgerEntry], provider: str, days: set[date]) -> _Groups:
    """The provider's settled rows of those days, by day and model."""
    rows: dict[int, _Row] = {}
    groups: _Groups = {}
    corrections = []
    for entry in entries:
        if entry.provider != provider or entry.status.open or entry.purpose is Purpose.CACHE:
            continue
        if entry.corrects is not None:
            corrections.append(entry)
        elif (day := day_of(entry.at)) in days:
            row = _Row(entry)
            if entry.id is not None:
                rows[entry.id] = row
            groups.setdefault((day, model_key(entry.model)), []).append(row)
    for entry in corrections:
        corrected = rows.get(entry.corrects or 0)
        if corrected is not None:
            corrected.corrected_nano += entry.cost_nano or 0
            corrected.resolved = corrected.resolved or (corrected.entry.status is EntryStatus.UNKNOWN)
    return groups


def _listed(provider: str, own: Mapping[str, Price]) -> PriceOf:
    known = {model_key(name): found for name, found in own.items()}

    def price(model: str, day: date) -> Price | None:
        found = known.get(model_key(model))
        if found is not None:
            return found
        from shared_core.ledger.pricing import find_price

        return find_price(provider, model, now=datetime(day.year, day.month, day.day, tzinfo=UTC))

    return price


def _compared(day: date, model: str, billed: int | None, rows: Sequence[_Row]) -> ReconciliationLine:
    estimated = sum(row.cost_nano for row in rows if row.entry.status is EntryStatus.ESTIMATED)
    reported = sum(row.cost_nano for row in rows) - estimated
    unknown = [row for row in rows if row.unknown]
    return ReconciliationLine(
        day,
        model,
        billed,
        reported,
        estimated,
        sum(row.bound_nano for row in unknown),
        len(unknown),
        0 if billed is None else billed - reported - estimated,
        0,
    )


def _line(
    ledger: Reconcilable,
    bill: Billed,
    rows: list[_Row],
    provider: str,
    vendor: str,
    today: date,
    price: PriceOf,
    dry_run: bool,
    adopt: bool,
) -> ReconciliationLine:
    model = rows[0].entry.model if rows and bill.model else bill.model
    billed = bill.cost_nano if bill.cost_nano is not None else _priced(bill, rows, price)
    line = _compared(bill.day, model, billed, rows)
    if bill.day >= today:
        return replace(line, note="not over yet: left alone")
    if billed is None:
        return replace(line, note="tokens at an unknown price: left alone")
    reason = f"{vendor} billed ${billed / 1e9:.9f} for {bill.day}" + (f", {bill.model}" if bill.model else "")
    if not rows:
        if not adopt or not billed:
            return replace(line, note=_NO_ROWS if billed else "")
        if not dry_run:
            ledger.record(_adopted(bill, billed, provider, reason))
        return replace(line, posted=1, note="no rows: adopted")
    truths = settle_bill(line.difference_nano, rows)
    if not dry_run:
        for row, cost in truths:
            assert row.entry.id is not None
            ledger.correct(row.entry.id, cost, reason=reason, at=row.entry.at)
    return replace(line, posted=len(truths))


_NO_ROWS = "no rows: left alone"


def _adopted(bill: Billed, billed: int, provider: str, reason: str) -> LedgerEntry:
    noon = datetime(bill.day.year, bill.day.month, bill.day.day, 12, tzinfo=UTC).timestamp()
    name = bill.model or "unknown"
    usage = Usage(bill.input_tokens or 0, bill.output_tokens or 0, bill.cached_tokens, bill.cache_write_tokens)
    return LedgerEntry(
        "reconcile", 0, f"{provider}:{name}", provider, name, noon, "adopted", EntryStatus.POSTED, usage, billed,
        purpose=Purpose.CORRECTION, reason=reason,
    )  # fmt: skip


def _priced(bill: Billed, rows: Sequence[_Row], price: PriceOf) -> int | None:
    """What a bill in tokens comes to: what the rows cost, and the tokens beyond theirs at the day's price."""
    known = [row.entry for row in rows if row.entry.status in (EntryStatus.POSTED, EntryStatus.ESTIMATED)]
    ours = Usage()
    for entry in known:
        ours += entry.usage
    cost = sum(entry.cost_nano or 0 for entry in known)
    more = Usage(
        (bill.input_tokens or 0) - ours.input_tokens,
        (bill.output_tokens or 0) - ours.output_tokens,
        bill.cached_tokens - ours.cached_tokens,
        bill.cache_write_tokens - ours.cache_write_tokens,
    )
    if not (more.input_tokens or more.output_tokens or more.cached_tokens or more.cache_write_tokens):
        return cost
    found = price(rows[0].entry.model if rows else bill.model, bill.day)
    if found is None:
        return None
    fresh = more.input_tokens - more.cached_tokens - more.cache_write_tokens
    # Prices are linear in tokens, and take no negative ones: each class by itself.
    parts = (
        (fresh, Usage(abs(fresh))),
        (more.cached_tokens, Usage(abs(more.cached_tokens), 0, abs(more.cached_tokens))),
        (more.cache_write_tokens, Usage(abs(more.cache_write_tokens), 0, 0, abs(more.cache_write_tokens))),
        (more.output_tokens, Usage(0, abs(more.output_tokens))),
    )
    return max(0, cost + sum((1 if count > 0 else -1) * found.cost_nano(usage) for count, usage in parts if count))


def settle_bill(difference_nano: int, rows: Sequence[_Row]) -> list[tuple[_Row, int]]:
    """Which rows cost what in truth, if together they cost `difference_nano` more than the ledger has.

    Unknown rows first, in proportion to their bounds and up to them; what is left is added to the last row, or taken
    from the dearest ones, none of which comes to less than nothing.
    """
    unknown = [row for row in rows if row.unknown]
    known = [row for row in rows if not row.unknown]
    bounds = sum(row.bound_nano for row in unknown)
    share = min(max(0, difference_nano), bounds)
    truths: dict[int, tuple[_Row, int]] = {}
    given, seen = 0, 0
    for row in unknown:
        seen += row.bound_nano
        upto = share * seen // bounds if bounds else 0
        truths[id(row)] = (row, upto - given)
        given = upto
    left = difference_nano - share
    if left > 0:
        # The last row that was paid for, else the last at all: a refusal would look odd with a cost.
        paid = [row for row in known if row.cost_nano > 0] or unknown or known
        row = paid[-1]
        truths[id(row)] = (row, truths.get(id(row), (row, row.cost_nano))[1] + left)
    elif left < 0:
        for row in sorted(known, key=lambda row: -row.cost_nano):
            take = min(row.cost_nano, -left)
            if take <= 0:
                break
            truths[id(row)] = (row, row.cost_nano - take)
            left += take
    return list(truths.values())
