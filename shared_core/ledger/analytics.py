"""What the ledger's rows add up to: the costs people read, by target, model, user, tag and day, and where they lead.

Reported, estimated, unknown and unpriced stand apart and are never added to one another unasked: `cost_usd` is what
vendors reported at known prices, `at_most_usd` adds estimates and the bounds of what may have been billed unheard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta, tzinfo
from html import escape
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict, TypeVar, cast

from shared_core.errors import ConfigurationError, UnknownOption, nearest

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "DIMENSIONS",
    "CostFilters",
    "CostLine",
    "CostQuery",
    "CostReport",
    "CostSource",
    "Projection",
    "TargetCost",
    "cost_query",
    "cost_report",
    "day_of",
    "project_month",
    "quarter_of",
    "zone_of",
]

DIMENSIONS = ("target", "model", "provider", "user", "tag", "chain", "day")
"""What costs can be told by. A request with two tags counts under both, so tags do not add up to the total."""

QUARTER_S = 900
"""Seconds in a quarter of an hour: every time zone of today is a whole number of them from UTC, so that sums kept for
each quarter can be told as days of any zone."""


class CostFilters(TypedDict, total=False):
    """The keywords of `Router.costs` and `Ledger.costs`."""

    since: datetime | date | timedelta | float | str | None
    """From when on: a moment, a day, how long ago (`timedelta(days=7)`, "7d", "24h"), "today", "week" or "month" (from
    the start of this one), or seconds since the epoch. A moment or day without a zone is one of `timezone`."""
    until: datetime | date | timedelta | float | str | None
    """Up to this moment, itself excluded; the same forms. A day means its beginning."""
    user: str | None
    tag: str | None
    target: str | None
    model: str | None
    provider: str | None
    chain: str | None
    timezone: str | tzinfo
    """Whose days are meant: "UTC" (default), "Europe/Berlin", or a `tzinfo`."""
    now: float
    """What counts as now, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class CostQuery:
    """Which rows count, and whose days. Times are seconds since the epoch; None is no limit."""

    now: float
    zone: tzinfo = UTC
    since: float | None = None
    until: float | None = None
    target: str | None = None
    model: str | None = None
    provider: str | None = None
    user: str | None = None
    tag: str | None = None
    chain: str | None = None

    @property
    def whole(self) -> bool:
        """Nothing is left out."""
        return all(getattr(self, f.name) is None for f in fields(self) if f.name not in {"now", "zone"})

    def within(self, since: float | None, until: float | None) -> CostQuery:
        """The same rows of another time."""
        keep = {f.name: getattr(self, f.name) for f in fields(self)}
        return CostQuery(**{**keep, "since": since, "until": until})


def cost_query(clock: Callable[[], float], **filters: Any) -> CostQuery:
    """What the keywords of `costs()` mean. `clock` tells the seconds since the epoch, where `now` does not.

    Raises:
        UnknownOption: there is no such keyword.
        ConfigurationError: a time or a time zone makes no sense.
    """
    for name in filters:
        if name not in CostFilters.__annotations__:
            raise UnknownOption(f"costs() has no option {name!r}. {nearest(name, CostFilters.__annotations__)}")
    now = filters.pop("now") if "now" in filters else clock()
    zone = zone_of(filters.pop("timezone", UTC))
    since = _moment("since", filters.pop("since", None), now, zone)
    until = _moment("until", filters.pop("until", None), now, zone)
    if since is not None and until is not None and since > until:
        raise ConfigurationError(f"since={_told(since)} is after until={_told(until)}. hint: exchange them")
    return CostQuery(now, zone, since, until, **filters)


def zone_of(name: str | tzinfo) -> tzinfo:
    """The time zone of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if isinstance(name, tzinfo):
        return name
    if name.upper() == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"timezone={name!r} is no time zone. hint: a name such as 'Europe/Berlin'; where the system has no time "
            "zones, pip install tzdata"
        ) from error


_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def _moment(name: str, value: Any, now: float, zone: tzinfo) -> float | None:
    """Seconds since the epoch."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        return now - value.total_seconds()
    if isinstance(value, bool):
        value = str(value)
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
        starts = {
            "now": None, "today": today, "week": today - timedelta(days=today.weekday()), "month": today.replace(day=1),
            "yesterday": today - timedelta(days=1),
        }  # fmt: skip
        if text in starts:
            begin = starts[text]
            return now if begin is None else begin.timestamp()
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdigit():
            return now - float(text[:-1]) * _UNITS[text[-1]]
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigurationError(
                f"{name}={value!r} is no time. hint: '2026-11-20', '2026-11-20T08:00', '7d', '24h', 'today', 'month', "
                "a datetime, a timedelta, or seconds since the epoch"
            ) from None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=zone)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=zone).timestamp()
    raise ConfigurationError(f"{name} must be a datetime, date, timedelta, text or number, not {value!r}")


def _told(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def quarter_of(at: float) -> int:
    """The quarter of an hour, counted from the epoch, that `at` lies in."""
    return int(at // QUARTER_S)


def day_of(at: float, zone: tzinfo = UTC) -> date:
    """The day of that zone that `at` lies in."""
    return datetime.fromtimestamp(at, zone).date()


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CostLine:
    """What one target, model, user, tag, chain or day has cost, or all together. Money is integer nano-dollars."""

    name: str
    """Of whom or when; a day is told as "2026-11-20". Empty: of those without one."""
    attempts: int = 0
    answers: int = 0
    input_tokens: int = 0
    """As reported, like the next four; estimated ones are in `estimated_tokens`."""
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the input, read from the vendor's prompt cache."""
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the output."""
    estimated_tokens: int = 0
    """Input and output that nobody reported, by our own count."""
    cost_nano: int = 0
    """Reported usage at known prices, corrections included."""
    estimated_nano: int = 0
    """Estimated usage at known prices."""
    unknown_nano: int = 0
    """Bounds of attempts whose cost is unknown: timed out, cut, cancelled or killed."""
    unpriced: int = 0
    """Attempts at an unknown price."""
    estimated: int = 0
    """Attempts whose usage is estimated."""
    unknown: int = 0
    """Attempts whose cost is unknown."""
    hits: int = 0
    """Answers from our own cache, which cost nothing."""
    saved_nano: int = 0
    """What those would have cost."""
    corrected_nano: int = 0
    """Of `cost_nano`, differences posted by `reconcile`."""
    priced_tokens: int = 0
    """Reported input and output at known prices: what `usd_per_1k_tokens` divides by."""

    @property
    def cost_usd(self) -> float | None:
        """Reported cost, in dollars; None where there are only attempts at an unknown price."""
        return _dollars(self.known_nano)

    @property
    def known_nano(self) -> int | None:
        """`cost_nano`, but None where there are only attempts at an unknown price: nobody may take that for 0."""
        return None if self.unpriced and not self.cost_nano else self.cost_nano

    @property
    def estimated_usd(self) -> float:
        """Estimated cost, in dollars; not in `cost_usd`."""
        return self.estimated_nano / 1e9

    @property
    def unknown_usd(self) -> float:
        """The bound of what may have been billed unheard, in dollars; not in `cost_usd`."""
        return self.unknown_nano / 1e9

    @property
    def uncertain_nano(self) -> int:
        """Estimated, and the bound of what is unknown, in nano-dollars. Unpriced attempts have no bound."""
        return self.estimated_nano + self.unknown_nano

    @property
    def at_most_usd(self) -> float | None:
        """Reported, estimated and the bound of what is unknown, in dollars; None if an attempt has an unknown price."""
        return None if self.unpriced else (self.cost_nano + self.uncertain_nano) / 1e9

    @property
    def saved_usd(self) -> float:
        """What answers from our own cache would have cost, in dollars."""
        return self.saved_nano / 1e9

    @property
    def usd_per_1k_tokens(self) -> float | None:
        """Reported dollars for each 1,000 reported tokens, input and output alike; None without any."""
        if not self.priced_tokens:
            return None
        return (self.cost_nano - self.corrected_nano) / 1e6 / self.priced_tokens

    @property
    def tokens(self) -> int:
        """Reported input and output."""
        return self.input_tokens + self.output_tokens

    def row(self, head: str = "name") -> dict[str, Any]:
        """As plain data."""
        return {
            head: self.name,
            "attempts": self.attempts,
            "answers": self.answers,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "estimated_tokens": self.estimated_tokens,
            "cost_usd": self.cost_usd,
            "estimated_usd": self.estimated_usd,
            "unknown_usd": self.unknown_usd,
            "at_most_usd": self.at_most_usd,
            "unpriced": self.unpriced,
            "hits": self.hits,
            "saved_usd": self.saved_usd,
            "corrected_usd": self.corrected_nano / 1e9,
            "usd_per_1k_tokens": self.usd_per_1k_tokens,
        }


class TargetCost(CostLine):
    """What one target has cost."""

    __slots__ = ()

    @property
    def target(self) -> str:
        """Its name."""
        return self.name


SUMS = tuple(f.name for f in fields(CostLine))[1:]
"""The figures of a line, in order: what a `CostSource` yields."""
Sums = Sequence[int]
_Name = TypeVar("_Name")


class CostSource(Protocol):
    """A ledger that can add up its rows."""

    def cost_sums(self, query: CostQuery, by: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Sums]]:
        """The sums (in the order of `SUMS`) of the rows that `query` lets through, for each combination of `by`.

        `by` names members of `DIMENSIONS`; days are told as "2026-11-20", absent users, chains and tags as "". No
        combination twice.
        """
        ...


# ── the month ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Projection:
    """Where this month's spending leads. Reported money in nano-dollars, and days."""

    month: str
    """"2026-11"."""
    spent_nano: int
    """Reported so far this month."""
    daily_mean_nano: int
    """Of the recent days."""
    recent_days: int
    """How many days that mean is of."""
    days_left: float
    """Until the month ends, the rest of today included."""
    projected_nano: int
    """Spent, and the mean for each day left."""

    @property
    def spent_usd(self) -> float:
        """In dollars."""
        return self.spent_nano / 1e9

    @property
    def daily_mean_usd(self) -> float:
        """In dollars."""
        return self.daily_mean_nano / 1e9

    @property
    def projected_usd(self) -> float:
        """In dollars."""
        return self.projected_nano / 1e9

    def __str__(self) -> str:
        return (
            f"{self.month}: ${self.spent_usd:.4f} so far, ${self.daily_mean_usd:.4f} a day lately, "
            f"${self.projected_usd:.4f} projected"
        )


def project_month(daily: Mapping[date, int], now: datetime, *, recent_days: int = 7) -> Projection:
    """What the month of `now` will have cost: spent so far, and the mean of recent days for each day left.

    Recent are the last `recent_days` whole days before today, days without spending included, but none before the
    first day of record, so that a young ledger is not diluted by days it did not see. With no whole day of record,
    today so far counts as a day. What is left of today counts as the part of a day that it is; a day of 23 or 25 hours
    is a day.

    Args:
        daily: nano-dollars for each day of record, in the zone of `now`.
        now: aware, in the zone whose month is meant.
        recent_days: at least 1.
    """
    today = now.date()
    spent = sum(nano for day, nano in daily.items() if (day.year, day.month) == (today.year, today.month))
    begun = min((day for day in daily if day <= today), default=today)
    whole = [day for back in range(1, max(1, recent_days) + 1) if (day := today - timedelta(days=back)) >= begun]
    if whole:
        mean = sum(daily.get(day, 0) for day in whole) / len(whole)
    else:
        mean = float(daily.get(today, 0))
    midnight = datetime(today.year, today.month, today.day, tzinfo=now.tzinfo)
    tomorrow = datetime.combine(today + timedelta(days=1), midnight.timetz())
    # Subtracting within one zone would count the wall clock's hours, which an hour is missing from in spring.
    rest = (tomorrow.timestamp() - now.timestamp()) / (tomorrow.timestamp() - midnight.timestamp())
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    left = (next_month - today).days - 1 + rest
    return Projection(f"{today:%Y-%m}", spent, round(mean), max(1, len(whole)), left, spent + round(mean * left))


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────────


class DayCost(NamedTuple):
    """One target's part of a day."""

    day: date
    target: str
    line: CostLine


@dataclass(frozen=True)
class CostReport:
    """What everything has cost, as it was when the report was made. `print` it, show it in a notebook, plot it.

    `total_usd` and everything called cost is reported usage at known prices; what is estimated, unknown or unpriced
    has figures of its own.
    """

    query: CostQuery = field(default_factory=lambda: CostQuery(0.0), repr=False)
    total: CostLine = CostLine("total")
    groups: Mapping[str, tuple[CostLine, ...]] = field(default_factory=dict, repr=False)
    """The lines by each of `DIMENSIONS`; days in their order, the rest dearest first."""
    parts: tuple[DayCost, ...] = field(default=(), repr=False)
    """Each target's part of each day, oldest first."""
    month: Projection | None = None
    """Where this month leads, whatever `since` and `until` say; the other filters hold."""

    # ── totals ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def total_usd(self) -> float | None:
        """Reported cost of all targets, in dollars; None where there are only attempts at an unknown price."""
        return self.total.cost_usd

    @property
    def estimated_usd(self) -> float:
        """Cost of answers whose usage we had to count ourselves, in dollars; not in `total_usd`."""
        return self.total.estimated_usd

    @property
    def unknown_usd(self) -> float:
        """The bound of what may have been billed unheard, in dollars; not in `total_usd`."""
        return self.total.unknown_usd

    @property
    def at_most_usd(self) -> float | None:
        """All three together; None if an attempt has an unknown price."""
        return self.total.at_most_usd

    @property
    def saved_usd(self) -> float:
        """What answers from our own cache would have cost, in dollars."""
        return self.total.saved_usd

    @property
    def total_tokens(self) -> int:
        """Reported input and output of all targets."""
        return self.total.tokens

    @property
    def usd_per_1k_tokens(self) -> float | None:
        """Reported dollars for each 1,000 reported tokens; None without any."""
        return self.total.usd_per_1k_tokens

    # ── by ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def by(self, dimension: str) -> tuple[CostLine, ...]:
        """The lines by one of `DIMENSIONS`: days in their order, the rest dearest first.

        Raises:
            ConfigurationError: there is no such dimension.
        """
        if dimension not in DIMENSIONS:
            raise ConfigurationError(
                f"costs are told by {', '.join(DIMENSIONS)}, not by {dimension!r}. {nearest(dimension, DIMENSIONS)}"
            )
        return self.groups.get(dimension, ())

    def _costs(self, dimension: str) -> dict[str, int | None]:
        return {line.name: line.known_nano for line in self.by(dimension) if line.name}

    @property
    def targets(self) -> tuple[TargetCost, ...]:
        """What each target has cost, dearest first."""
        return cast("tuple[TargetCost, ...]", self.groups.get("target", ()))

    @property
    def by_target(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each target."""
        return self._costs("target")

    @property
    def by_model(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each model."""
        return self._costs("model")

    @property
    def by_provider(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each provider."""
        return self._costs("provider")

    @property
    def by_user(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each user."""
        return self._costs("user")

    @property
    def by_tag(self) -> Mapping[str, int | None]:
        """Reported nano-dollars under each tag; a request with two tags counts under both."""
        return self._costs("tag")

    @property
    def by_chain(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each chain."""
        return self._costs("chain")

    @property
    def by_day(self) -> Mapping[str, int | None]:
        """Reported nano-dollars of each day with entries, oldest first."""
        return self._costs("day")

    def top_models(self, count: int = 5) -> tuple[CostLine, ...]:
        """The dearest models."""
        return self.by("model")[:count]

    def top_users(self, count: int = 5) -> tuple[CostLine, ...]:
        """The dearest users."""
        return tuple(line for line in self.by("user") if line.name)[:count]

    def daily(self, days: int = 30) -> tuple[CostLine, ...]:
        """The last `days` days up to now, oldest first, those without entries included."""
        known = {line.name: line for line in self.by("day")}
        today = day_of(self.query.now, self.query.zone)
        names = [(today - timedelta(days=back)).isoformat() for back in range(days - 1, -1, -1)]
        return tuple(known.get(name) or CostLine(name) for name in names)

    def project(self) -> Projection | None:
        """Where this month leads; the same as `month`."""
        return self.month

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def rows(self, by: str = "target") -> list[dict[str, Any]]:
        """As plain data, a row for each line."""
        return [line.row(by) for line in self.by(by)]

    def to_pandas(self, by: str = "target") -> Any:
        """A `pandas.DataFrame` with a row for each line; days as an index of dates.

        Raises:
            MissingDependency: pandas is not installed.
        """
        pandas = _needs("pandas", "to_pandas()")
        frame = pandas.DataFrame(self.rows(by), columns=list(CostLine("").row(by)))
        if by == "day":
            frame["day"] = pandas.to_datetime(frame["day"])
        return frame.set_index(by)

    def to_csv(self, path: str | PathLike[str] | None = None, by: str = "target") -> str:
        """The rows as CSV; written to `path` too, where one is given."""
        import csv
        import io

        out = io.StringIO()
        writer = csv.DictWriter(out, list(CostLine("").row(by)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, by: _harmless(row[by])} for row in self.rows(by))
        if path is not None:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(out.getvalue())
        return out.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        total = self.total.row()
        del total["name"]
        query = self.query
        return {
            "since": None if query.since is None else _told(query.since),
            "until": None if query.until is None else _told(query.until),
            "timezone": str(query.zone),
            "total": total,
            **{f"by_{name}": self.rows(name) for name in DIMENSIONS},
            "month": None
            if self.month is None
            else {
                "month": self.month.month,
                "spent_usd": self.month.spent_usd,
                "daily_mean_usd": self.month.daily_mean_usd,
                "days_left": round(self.month.days_left, 3),
                "projected_usd": self.month.projected_usd,
            },
        }

    def plot(self, kind: str = "days", *, limit_usd: float | None = None, days: int = 30, ax: Any = None) -> Any:
        """A plot; returns matplotlib's axes.

        Args:
            kind: "days" (spend per day, stacked by target), "burn_down" (what is left of `limit_usd` this month, and
                where it leads) or "savings" (what was paid and what our own cache saved, per day).
            limit_usd: the month's budget, for "burn_down".
            days: how many days back "days" and "savings" go.
            ax: draw into these axes.

        Raises:
            MissingDependency: matplotlib is not installed.
            ConfigurationError: there is no such kind, or "burn_down" has no `limit_usd`.
        """
        from shared_core.ledger.pictures import draw

        return draw(self, kind, limit_usd=limit_usd, days=days, ax=ax)

    def cells(self, by: str = "target", top: int | None = None) -> list[tuple[str, ...]]:
        """The table, cell by cell: a head, the first `top` lines, those of requests that name none, and the total where
        all of them add up to it."""
        lines = self.by(by)
        found = [_HEAD(by), *(_cells(line) for line in lines[:top])]
        if by != "tag":  # a request with two tags stands in two lines
            if any(_sums(rest := _difference(self.total, lines))):
                found.append(_cells(rest))
            found.append(_cells(self.total))
        return found

    def table(self, by: str = "target") -> str:
        """The lines as a table of text."""
        cells = self.cells(by)
        wide = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        wide[0] = min(max(wide[0], 12), 48)
        told = []
        for row in cells:
            figures = (cell.rjust(size) for cell, size in zip(row[1:], wide[1:], strict=True))
            told.append("  ".join([f"{row[0][: wide[0]]:{wide[0]}}", *figures]))
        return "\n".join(told)

    def notes(self) -> list[str]:
        """What the table does not say."""
        total, notes = self.total, []
        if total.estimated:
            notes.append(
                f"estimated: {_count(total.estimated, 'attempt')} without reported usage, ${total.estimated_usd:.6f}"
            )
        if total.unknown:
            notes.append(
                f"unknown: {_count(total.unknown, 'attempt')} with no known outcome, at most ${total.unknown_usd:.6f}"
            )
        if total.unpriced:
            notes.append(f"unpriced: {_count(total.unpriced, 'attempt')} at an unknown price, not in any figure")
        if total.hits:
            notes.append(f"cache: {_count(total.hits, 'answer')} without a call, ${total.saved_usd:.6f} saved")
        if total.corrected_nano:
            notes.append(f"reconciled: ${total.corrected_nano / 1e9:+.6f}, in the cost above")
        if self.month is not None and self.month.spent_nano:
            notes.append(f"month {self.month}")
        return notes

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in _HEAD("target"))
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(line)) + "</tr>" for line in self.targets
        )
        total = "".join(f"<th>{escape(cell)}</th>" for cell in _cells(self.total))
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes())
        return f"<table><tr>{head}</tr>{rows}<tr>{total}</tr></table>" + (f"<ul>{notes}</ul>" if notes else "")


def _HEAD(by: str) -> tuple[str, ...]:  # noqa: N802  # the head of the table that _cells fills
    return (by, "attempts", "answers", "in", "out", "cost $", "estimated $", "at most $")


def _cells(line: CostLine) -> tuple[str, ...]:
    return (
        line.name or "(none)",
        str(line.attempts),
        str(line.answers),
        str(line.input_tokens),
        str(line.output_tokens),
        _figure(line.cost_usd),
        f"{line.estimated_usd:.6f}" if line.estimated else "",
        _figure(line.at_most_usd),
    )


def _dollars(nano: int | None) -> float | None:
    return None if nano is None else nano / 1e9


def _figure(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:.6f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _harmless(name: str) -> str:
    """A name that a spreadsheet does not run as a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name


def _needs(module: str, what: str) -> Any:
    import importlib

    from shared_core.errors import MissingDependency

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{what} needs {module}. hint: pip install 'llm-fallback[notebooks]'") from error


def cost_report(source: CostSource, query: CostQuery) -> CostReport:
    """Everything `source` knows of the rows that `query` lets through."""
    # Of a row there is one target, model, provider and chain: they are told together, which takes one reading.
    single = ("day", "target", "model", "provider", "chain")
    found: dict[str, dict[str, Sums]] = {name: {} for name in single}
    of_days: dict[tuple[str, str], Sums] = {}
    for key, sums in source.cost_sums(query, single):
        for name, value in zip(single, key, strict=True):
            _put(found[name], value, sums)
        if key[0]:
            _put(of_days, (key[0], key[1]), sums)
    for name in ("user", "tag"):
        found[name] = {key[0]: sums for key, sums in source.cost_sums(query, (name,))}
    parts = [
        DayCost(date.fromisoformat(day), target, CostLine(target, *sums)) for (day, target), sums in of_days.items()
    ]
    parts.sort(key=lambda part: (part.day, part.target))
    groups: dict[str, tuple[CostLine, ...]] = {}
    for dimension in DIMENSIONS:
        kind = TargetCost if dimension == "target" else CostLine
        # Of requests without a user, tag or chain there is nothing to tell.
        lines = [kind(name, *sums) for name, sums in found[dimension].items() if name]
        if dimension == "day":
            lines.sort(key=lambda line: line.name)
        else:
            lines.sort(key=lambda line: (-line.cost_nano, -line.estimated_nano - line.unknown_nano, line.name))
        groups[dimension] = tuple(lines)
    total = _together("total", groups["target"])
    return CostReport(query, total, groups, tuple(parts), _month(source, query, groups["day"]))


def _put(found: dict[_Name, Sums], name: _Name, sums: Sums) -> None:
    known = found.get(name)
    found[name] = sums if known is None else tuple(map(add, known, sums))


def _together(name: str, lines: Iterable[CostLine]) -> CostLine:
    """The sum of some lines."""
    sums = [0] * len(SUMS)
    for line in lines:
        for index, figure in enumerate(_sums(line)):
            sums[index] += figure
    return CostLine(name, *sums)


def _difference(total: CostLine, lines: Iterable[CostLine]) -> CostLine:
    """What of the total stands in none of the lines."""
    named = _together("", lines)
    return CostLine("", *(whole - part for whole, part in zip(_sums(total), _sums(named), strict=True)))


def _sums(line: CostLine) -> Sums:
    return tuple(getattr(line, figure) for figure in SUMS)


def _month(source: CostSource, query: CostQuery, days: Sequence[CostLine]) -> Projection:
    now = datetime.fromtimestamp(query.now, query.zone)
    start = min(now.replace(day=1), now - timedelta(days=8)).replace(hour=0, minute=0, second=0, microsecond=0)
    if query.since is None and query.until is None:
        known = {date.fromisoformat(line.name): line.cost_nano for line in days}
        return project_month({day: nano for day, nano in known.items() if day >= start.date()}, now)
    asked = query.within(start.timestamp(), None)
    cost = SUMS.index("cost_nano")
    daily = {date.fromisoformat(day): sums[cost] for (day,), sums in source.cost_sums(asked, ("day",)) if day}
    return project_month(daily, now)
