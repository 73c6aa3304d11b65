"""What may still be spent: `Budget`, the window it counts, and whether one more attempt fits. Pure; in nano-dollars.

Budgets are limits; what has been spent is counted by *meters*. A meter counts one scope in one window ("user 'ann', the
month that began on 1 November in Berlin"), and any number of budgets may read the same one. A ledger keeps the meters.

    spent = posted + unknown        settled at the actual cost, or at the bound where the outcome is unknown
    held  = spent + pending         and what attempts under way have set aside

An attempt may start only if ``held + its worst case <= limit`` for every hard budget that applies to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from functools import cached_property
from html import escape
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from shared_core.errors import ConfigurationError

__all__ = [
    "EXHAUSTED",
    "Ask",
    "Budget",
    "BudgetReport",
    "BudgetStatus",
    "Budgets",
    "Claim",
    "Denial",
    "Grant",
    "MeterKey",
    "Reading",
    "Window",
    "decide",
    "due",
    "hard_limit",
    "window_at",
]

NANO = 1_000_000_000
_MOST_NANO = 2**63 - 1

WindowName = Literal["request", "day", "week", "month", "total"]
ScopeName = Literal["global", "target", "user", "tag"]


@dataclass(frozen=True)
class Budget:
    """A limit on what may be spent in a window of time.

    Args:
        limit_usd: the limit in US dollars, 0 or more. `Decimal`, `int` and text are exact.
        window: 'request' (one logical call with all its attempts), 'day', 'week' (from Monday), 'month' or 'total'.
        scope: what counts: everything ('global'), or what goes to one 'target', is asked for one 'user' or under one
            'tag'.
        of: which target, user or tag; left out, every one of them has a limit of its own.
        hard: refuse what might pass the limit. A soft budget only warns.
        warn_at: shares of the limit at which to warn, in (0, 1].
        timezone: whose midnight a window begins at: an IANA name such as 'Europe/Berlin', or a `tzinfo`.
        name: what messages call it.

    Raises:
        ConfigurationError: a figure is out of range, or there is no such window, scope or time zone.
    """

    limit_usd: Decimal | float | int | str
    window: WindowName = "month"
    scope: ScopeName = "global"
    of: str | None = None
    hard: bool = True
    warn_at: Sequence[float] = (0.5, 0.8, 0.95)
    timezone: str | tzinfo = "UTC"
    name: str | None = None

    def __post_init__(self) -> None:
        limit = self._limit
        if not limit.is_finite() or limit < 0 or limit * NANO > _MOST_NANO:
            raise ConfigurationError(
                f"Budget.limit_usd must be a number of dollars from 0 to 9 billion, not {self.limit_usd!r}"
            )
        for what, value, valid in (("window", self.window, WindowName), ("scope", self.scope, ScopeName)):
            if value not in get_args(valid):
                raise ConfigurationError(f"Budget.{what} must be one of {', '.join(get_args(valid))}, not {value!r}")
        of: Any = self.of
        if of is not None and (self.scope == "global" or not isinstance(of, str) or not of):
            raise ConfigurationError(
                "Budget.of names a target, user or tag: give scope='target', 'user' or 'tag' with it"
            )
        if not isinstance(self.hard, bool):
            raise ConfigurationError(f"Budget.hard must be True or False, not {self.hard!r}")
        shares = _shares(self.warn_at)
        object.__setattr__(self, "warn_at", shares)
        assert self.tz is not None  # looked up, so that a wrong name is refused here

    @property
    def _limit(self) -> Decimal:
        try:
            return Decimal("NaN") if isinstance(self.limit_usd, bool) else Decimal(str(self.limit_usd))
        except ArithmeticError:
            return Decimal("NaN")

    @cached_property
    def limit_nano(self) -> int:
        """The limit in nano-dollars."""
        return int(self._limit * NANO)

    @cached_property
    def first_mark(self) -> float:
        """The spending that is told first, in nano-dollars: a share to warn at, or the limit."""
        return min(1.0, *self.warn_at) * self.limit_nano if self.warn_at else self.limit_nano

    @cached_property
    def tz(self) -> tzinfo:
        """The time zone."""
        return _zone(self.timezone)

    @property
    def title(self) -> str:
        """Its name, or what it limits: ``$10 a month for user 'ann'``."""
        if self.name:
            return self.name
        span = {"total": "in all", "request": "a request"}.get(self.window, f"a {self.window}")
        whom = (
            "" if self.scope == "global" else f" for {self.scope} {self.of!r}" if self.of else f" for each {self.scope}"
        )
        return f"${_dollars(self.limit_nano)} {span}{whom}"

    def __str__(self) -> str:
        return self.title


def _shares(given: Any) -> tuple[float, ...]:
    """Shares to warn at, in their order, each once."""
    try:
        shares = tuple(sorted({float(share) for share in given}))
    except (TypeError, ValueError):
        shares = (math.nan,)
    if not all(0 < share <= 1 for share in shares):
        raise ConfigurationError(
            f"Budget.warn_at must be shares in (0, 1], such as (0.5, 0.9), or () for none; not {given!r}"
        )
    return shares


def _zone(name: str | tzinfo) -> tzinfo:
    if isinstance(name, tzinfo):
        return name
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, TypeError) as error:
        raise ConfigurationError(
            f"Budget.timezone must be an IANA name such as 'Europe/Berlin', not {name!r}. "
            "hint: on a machine without time zone data, install `tzdata`"
        ) from error
    except LookupError as error:  # ZoneInfoNotFoundError
        raise ConfigurationError(
            f"there is no time zone {name!r}; use an IANA name such as 'Europe/Berlin'. "
            "hint: on a machine without time zone data, install `tzdata`"
        ) from error


class Window(NamedTuple):
    """From `start` up to, and without, `end`: seconds since the epoch. A window without an end never resets."""

    start: int
    end: int | None


_ALWAYS = Window(0, None)


def window_at(kind: WindowName, at: float, tz: tzinfo) -> Window:
    """The window that holds the moment `at` (seconds since the epoch).

    Days, weeks and months begin at local midnight, so that a day may last 23 or 25 hours. Where a midnight does not
    exist, because clocks are put forward over it, the window begins with the day's first moment.
    """
    if kind in ("total", "request"):
        return _ALWAYS
    today = datetime.fromtimestamp(math.floor(at), tz).date()
    if kind == "day":
        first, after = today, today + timedelta(days=1)
    elif kind == "week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    return Window(_begins(first, tz), _begins(after, tz))


def _begins(day: date, tz: tzinfo) -> int:
    """The first second that has the date of a local day, or a later one.

    A midnight that clocks skip is read with the offset from before the gap (PEP 495, fold=0), which lands after it by
    as much as was skipped; one that comes twice is read as the first.
    """
    high = int(datetime.combine(day, time(0), tz).timestamp())
    low = high - 4 * 3600
    while low < high:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, tz).date() >= day:
            high = middle
        else:
            low = middle + 1
    return low


class MeterKey(NamedTuple):
    """What a meter counts. `of` is None for everything; `start` is where its window begins, seconds since the epoch."""

    scope: str
    of: str | None
    window: str
    timezone: str
    start: int


class Reading(NamedTuple):
    """What a meter shows, in nano-dollars. `over` is what providers charged beyond what had been reserved."""

    posted: int = 0
    pending: int = 0
    unknown: int = 0
    over: int = 0

    @property
    def spent(self) -> int:
        """Settled: at the actual cost, or at the bound where the outcome is unknown."""
        return self.posted + self.unknown

    @property
    def held(self) -> int:
        """Spent, and set aside for attempts under way."""
        return self.posted + self.pending + self.unknown


class Claim(NamedTuple):
    """That `budget` applies to an attempt, and which meter counts it."""

    budget: Budget
    key: MeterKey
    resets_at: float | None
    """Seconds since the epoch."""


class Ask(NamedTuple):
    """What an attempt wants set aside: at best `most`, and no less than `least`, in nano-dollars."""

    least: int
    most: int


class Grant(NamedTuple):
    """It may start, with so much set aside."""

    nano: int


class Denial(NamedTuple):
    """It may not start. All figures in nano-dollars."""

    claim: Claim
    spent: int
    pending: int
    needed: int | None
    """None: nobody knows what it may cost."""
    why: str = "its price is unknown"
    """Of that, the reason."""
    cure: str = "give the target its price=Price(input_per_mtok=…, output_per_mtok=…)"
    """Of that, what helps."""

    @property
    def reason(self) -> str:
        """In words, for plans and journals."""
        budget, key = self.claim.budget, self.claim.key
        whom = f" ({key.scope} {key.of!r})" if key.of is not None and budget.of is None else ""
        if self.needed is None:
            return f"{self.why}, and the budget {budget.title}{whom} is hard"
        held = f" and ${_dollars(self.pending)} set aside" if self.pending else ""
        return (
            f"over budget: {budget.title}{whom}: ${_dollars(self.spent)} spent{held}, "
            f"this attempt may cost ${_dollars(self.needed)}"
        )

    @property
    def fix(self) -> str:
        """What lets the attempt through, as advice."""
        limit = self.claim.budget.limit_nano
        if self.needed is None:
            return self.cure
        free = "add a target that costs nothing, such as a local model, to answer meanwhile"
        if self.needed > limit:
            return f"it would not fit an unspent budget either: lower max_tokens, raise the limit, or {free}"
        return f"a lower max_tokens needs less; raise the limit, or {free}"


def decide(ask: Ask | None, claims: Sequence[Claim], read: Mapping[MeterKey, Reading]) -> Grant | Denial:
    """Whether the attempt fits every hard budget, and with how much. Soft budgets never refuse.

    An attempt whose worst case is unknown (`ask` is None) fits none; one that costs nothing fits all.
    """
    granted = 0 if ask is None else ask.most
    for claim in claims:
        if not claim.budget.hard:
            continue
        reading = read.get(claim.key, _BLANK)
        if ask is None:
            return Denial(claim, reading.spent, reading.pending, None)
        left = claim.budget.limit_nano - reading.held
        if left < granted:
            if left < ask.least and ask.least > 0:
                return Denial(claim, reading.spent, reading.pending, ask.least)
            granted = max(left, 0)
    return Grant(granted)


def hard_limit(claims: Iterable[Claim], key: MeterKey) -> int | None:
    """The least that hard budgets allow a meter to show, in nano-dollars; None when none of them reads it."""
    return min((c.budget.limit_nano for c in claims if c.budget.hard and c.key == key), default=None)


def due(claim: Claim, spent: int) -> tuple[float, ...]:
    """The shares of the limit that spending has reached, `EXHAUSTED` among them when it has reached the limit."""
    if spent < claim.budget.first_mark:
        return ()
    limit = claim.budget.limit_nano
    reached = tuple(share for share in claim.budget.warn_at if spent >= share * limit)
    return (*reached, EXHAUSTED) if spent >= limit else reached


EXHAUSTED = math.inf
"""In place of a share: the budget is used up."""


_BLANK = Reading()
_KEPT = 4096
"""For how many targets, users and sets of tags the claims are kept at most."""


class Budgets:
    """A router's budgets, and which of them apply to an attempt."""

    def __init__(self, budgets: Iterable[Budget]) -> None:
        self.all = tuple(budgets)
        self.per_request = tuple(b for b in self.all if b.window == "request")
        """Kept by the request itself: it does not outlive it."""
        self._windowed = tuple(b for b in self.all if b.window != "request")
        self._windows: dict[tuple[str, str], Window] = {}
        self.hard = any(b.hard for b in self.all)
        self._scopes = {b.scope for b in self._windowed}
        self._claims: dict[tuple[str, str | None, Sequence[str]], tuple[float, float, tuple[Claim, ...]]] = {}

    def claims(self, at: float, target: str, user: str | None = None, tags: Sequence[str] = ()) -> tuple[Claim, ...]:
        """The meters that an attempt at the moment `at` counts towards. A window is fixed at this moment."""
        scopes = self._scopes
        whose = (
            target if "target" in scopes else "",
            user if "user" in scopes else None,
            tuple(tags) if "tag" in scopes else (),
        )
        known = self._claims.get(whose)
        if known is not None and known[0] <= at < known[1]:
            return known[2]
        begins, ends = -math.inf, math.inf
        found: list[Claim] = []
        for budget in self._windowed:
            names = _names(budget, target, user, tags)
            if names:
                window = self.window(budget, at)
                begins = max(begins, window.start)
                ends = ends if window.end is None else min(ends, window.end)
                zone = str(budget.tz)
                found += [
                    Claim(budget, MeterKey(budget.scope, name, budget.window, zone, window.start), window.end)
                    for name in names
                ]
        if len(self._claims) >= _KEPT:  # users without end
            self._claims.clear()
        claims = tuple(found)
        self._claims[whose] = (begins, ends, claims)
        return claims

    def requests(self, target: str, user: str | None, tags: Sequence[str]) -> tuple[Claim, ...]:
        """The budgets of one request that apply to an attempt of it."""
        return tuple(
            Claim(budget, MeterKey(budget.scope, name, "request", "", 0), None)
            for budget in self.per_request
            for name in _names(budget, target, user, tags)
        )

    def window(self, budget: Budget, at: float) -> Window:
        """The window of `budget` that holds the moment `at`."""
        key = (budget.window, str(budget.tz))
        window = self._windows.get(key)
        if window is None or at < window.start or (window.end is not None and at >= window.end):
            window = self._windows[key] = window_at(budget.window, at, budget.tz)
        return window


_EVERYTHING: tuple[str | None, ...] = (None,)


def _names(budget: Budget, target: str, user: str | None, tags: Sequence[str]) -> Sequence[str | None]:
    """Whose meters of `budget` count the attempt; empty when the budget does not apply to it."""
    if budget.scope == "global":
        return _EVERYTHING
    own: Sequence[str | None]
    if budget.scope == "target":
        own = (target,)
    elif budget.scope == "user":
        own = (user,) if user is not None else ()
    else:
        own = tuple(dict.fromkeys(tags))
    return own if budget.of is None else [name for name in own if name == budget.of]


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """How one budget stands, for one target, user or tag where it has a limit for each. Dollars."""

    budget: Budget
    of: str | None
    reading: Reading
    starts_at: datetime | None
    """When its window began, in the budget's time zone."""
    resets_at: datetime | None
    """When it ends; None for one that never resets."""

    @property
    def limit_usd(self) -> float:
        """What may be spent."""
        return self.budget.limit_nano / NANO

    @property
    def spent_usd(self) -> float:
        """Settled cost, unknown outcomes at their bound."""
        return self.reading.spent / NANO

    @property
    def unknown_usd(self) -> float:
        """Of that, what may turn out not to have been billed."""
        return self.reading.unknown / NANO

    @property
    def pending_usd(self) -> float:
        """Set aside for attempts under way."""
        return self.reading.pending / NANO

    @property
    def overcharged_usd(self) -> float:
        """Charged by providers beyond what had been reserved."""
        return self.reading.over / NANO

    @property
    def remaining_usd(self) -> float:
        """What another attempt may set aside, 0 at least."""
        return max(0, self.budget.limit_nano - self.reading.held) / NANO

    @property
    def percent(self) -> float:
        """Spent, in percent of the limit."""
        limit = self.budget.limit_nano
        return 100.0 * self.reading.spent / limit if limit else 100.0

    @property
    def exhausted(self) -> bool:
        """Whether everything is spent."""
        return self.reading.spent >= self.budget.limit_nano

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "budget": self.budget.title,
            "scope": self.budget.scope,
            "of": self.of,
            "window": self.budget.window,
            "hard": self.budget.hard,
            "limit_usd": self.limit_usd,
            "spent_usd": self.spent_usd,
            "unknown_usd": self.unknown_usd,
            "pending_usd": self.pending_usd,
            "remaining_usd": self.remaining_usd,
            "overcharged_usd": self.overcharged_usd,
            "percent": round(self.percent, 3),
            "exhausted": self.exhausted,
            "resets_at": None if self.resets_at is None else self.resets_at.isoformat(),
        }


class BudgetReport(tuple[BudgetStatus, ...]):
    """How every budget stands: a tuple of `BudgetStatus` that prints as a table."""

    __slots__ = ()

    def rows(self) -> list[dict[str, Any]]:
        """As plain data, one row per budget and meter."""
        return [status.as_dict() for status in self]

    def __str__(self) -> str:
        head = f"{'budget':40} {'of':16} {'spent $':>12} {'pending $':>12} {'limit $':>12} {'%':>7}  resets"
        lines = [head]
        for s in self:
            resets = "never" if s.resets_at is None else f"{s.resets_at:%Y-%m-%d %H:%M %Z}"
            lines.append(
                f"{s.budget.title[:40]:40} {(s.of or '')[:16]:16} {s.spent_usd:12.6f} {s.pending_usd:12.6f} "
                f"{s.limit_usd:12.6f} {s.percent:7.1f}  {resets}{'' if s.budget.hard else '  (soft)'}"
            )
        return "\n".join(lines if len(lines) > 1 else ["no budgets"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(s.budget.title)}{'' if s.budget.hard else ' (soft)'}</td><td>{escape(s.of or '')}</td>"
            f"<td>{s.spent_usd:.6f}</td><td>{s.pending_usd:.6f}</td><td>{s.limit_usd:.6f}</td>"
            f"<td><progress max='100' value='{min(100.0, s.percent):.1f}'></progress> {s.percent:.1f} %</td>"
            f"<td>{'never' if s.resets_at is None else f'{s.resets_at:%Y-%m-%d %H:%M %Z}'}</td></tr>"
            for s in self
        )
        return (
            "<table><tr><th>budget</th><th>of</th><th>spent $</th><th>pending $</th><th>limit $</th><th>spent</th>"
            f"<th>resets</th></tr>{rows}</table>"
        )


def _dollars(nano: int) -> str:
    """Nano-dollars as dollars, as short as they can be said: '10', '0.5', '0.000012'."""
    return f"{Decimal(nano) / NANO:f}"
