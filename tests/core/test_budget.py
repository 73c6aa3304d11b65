"""Budgets as values: what is refused when they are built, windows with their edges, and whether an attempt fits."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import Audio, Budget, ChatRequest, ConfigurationError, File, Image, OutputSchema, ToolSpec, user
from shared_core.chat.request import Message, Text
from shared_core.resilience.bound import input_bound
from shared_core.resilience.budget import (
    EXHAUSTED,
    Ask,
    Budgets,
    Claim,
    Denial,
    Grant,
    MeterKey,
    Reading,
    decide,
    due,
    window_at,
)

ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Apia", "Africa/Cairo", "America/Havana", "Asia/Beirut", "Pacific/Chatham", "America/St_Johns",
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit_usd": -1}, "limit_usd"),
        ({"limit_usd": "ten"}, "limit_usd"),
        ({"limit_usd": math.nan}, "limit_usd"),
        ({"limit_usd": True}, "limit_usd"),
        ({"limit_usd": 1e30}, "limit_usd"),
        ({"limit_usd": 1, "window": "fortnight"}, "window"),
        ({"limit_usd": 1, "scope": "galaxy"}, "scope"),
        ({"limit_usd": 1, "of": "ann"}, "of"),
        ({"limit_usd": 1, "scope": "user", "of": ""}, "of"),
        ({"limit_usd": 1, "hard": "yes"}, "hard"),
        ({"limit_usd": 1, "warn_at": (0.5, 1.5)}, "warn_at"),
        ({"limit_usd": 1, "warn_at": (0,)}, "warn_at"),
        ({"limit_usd": 1, "warn_at": 0.5}, r"warn_at must be shares in \(0, 1\], such as"),
        ({"limit_usd": 1, "warn_at": "0.5"}, "warn_at"),
        ({"limit_usd": 1, "warn_at": (None,)}, "warn_at"),
        ({"limit_usd": 1, "timezone": "Mars/Olympus"}, "time zone"),
        ({"limit_usd": 1, "timezone": 3}, "timezone"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_where_it_is_built(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Budget(**wrong)


def test_a_limit_is_exact_to_the_nano_dollar_and_named_in_words() -> None:
    assert Budget("0.000000001").limit_nano == 1
    assert Budget(0.1).limit_nano == 100_000_000  # a float counts as it is written
    assert Budget(10, "day").title == "$10 a day"
    assert Budget("2.5", "total", "user").title == "$2.5 in all for each user"
    assert Budget(1, "request", "tag", "batch").title == "$1 a request for tag 'batch'"
    assert Budget(1, name="the team's").title == "the team's"


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────

moments = st.integers(min_value=0, max_value=4_000_000_000)


@given(moments, st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]))
def test_a_window_holds_its_moment_begins_a_local_day_and_is_followed_by_the_next(
    at: int, zone: str, kind: Any
) -> None:
    tz = ZoneInfo(zone)
    window = window_at(kind, at, tz)
    assert window.end is not None
    assert window.start <= at < window.end
    first = datetime.fromtimestamp(window.start, tz)
    before = datetime.fromtimestamp(window.start - 1, tz)
    assert before.date() < first.date(), "it begins with the first moment of a day"
    if kind == "month":
        # A country may skip a whole day (Samoa left out 30 December 2011), but none has left out a first yet.
        assert first.day == 1
    if kind == "week" and first.date() != date(2011, 12, 31):
        assert first.weekday() == 0
    assert window_at(kind, window.end, tz).start == window.end, "no gap, no overlap"
    assert window_at(kind, window.end - 1, tz) == window


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # midnight itself was skipped
        ("America/Havana", date(2026, 11, 1), 25),  # midnight came twice
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("America/Toronto", date(1919, 3, 31), 23.5),  # half past eleven was followed by half past midnight
        ("UTC", date(2026, 3, 29), 24),
    ],
)
def test_a_day_has_as_many_hours_as_the_clocks_of_its_place_give_it(zone: str, day: date, hours: float) -> None:
    tz = ZoneInfo(zone)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=tz)
    window = window_at("day", noon.timestamp(), tz)
    assert window.end is not None
    assert window.end - window.start == hours * 3600


def test_months_of_every_length_and_the_turn_of_the_year() -> None:
    for year, month, days in ((2024, 2, 29), (2026, 2, 28), (2026, 12, 31), (2026, 4, 30)):
        window = window_at("month", datetime(year, month, 15, tzinfo=UTC).timestamp(), UTC)
        assert window.end is not None
        assert window.end - window.start == days * 86400
    last = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert window_at("month", last, UTC).end == int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())


def test_a_window_that_was_worked_out_is_not_used_for_another_moment() -> None:
    budgets = Budgets([Budget(1, "day", timezone="Europe/Berlin")])
    midnight = int(datetime(2026, 11, 2, tzinfo=ZoneInfo("Europe/Berlin")).timestamp())
    late = budgets.claims(midnight - 0.5, "t")[0].key.start
    early = budgets.claims(midnight, "t")[0].key.start
    assert (late, early) == (midnight - 86400, midnight)
    assert budgets.claims(midnight - 0.5, "t")[0].key.start == late, "a clock that steps back reads the earlier window"


# ── which budgets apply ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_user_target_and_tag_has_a_meter_of_its_own_unless_one_is_named() -> None:
    budgets = Budgets(
        [
            Budget(1),
            Budget(1, scope="target"),
            Budget(1, scope="target", of="other"),
            Budget(1, scope="user"),
            Budget(1, scope="user", of="bob"),
            Budget(1, scope="tag"),
            Budget(1, scope="tag", of="batch"),
        ]
    )

    def meters(**who: Any) -> list[tuple[str, str | None]]:
        return [(c.key.scope, c.key.of) for c in budgets.claims(0.0, "t", **who)]

    assert meters() == [("global", None), ("target", "t")]
    assert meters(user="ann", tags=("batch", "x", "x")) == [
        ("global", None),
        ("target", "t"),
        ("user", "ann"),
        ("tag", "batch"),
        ("tag", "x"),
        ("tag", "batch"),
    ]
    assert ("user", "bob") in meters(user="bob")
    assert len([m for m in meters(user="bob") if m[0] == "user"]) == 2


# ── whether it fits ──────────────────────────────────────────────────────────────────────────────────────────────────

KEY = MeterKey("global", None, "day", "UTC", 0)


def claim(limit_nano: int, *, hard: bool = True, key: MeterKey = KEY) -> Claim:
    from decimal import Decimal

    return Claim(Budget(Decimal(limit_nano) / 10**9, "day", hard=hard), key, 86400.0)


@given(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 500),
    st.integers(0, 500),
)
def test_what_is_granted_always_fits_and_what_fits_is_always_granted(
    limit: int, posted: int, pending: int, unknown: int, least: int, more: int
) -> None:
    reading = Reading(posted, pending, unknown)
    verdict = decide(Ask(least, least + more), [claim(limit)], {KEY: reading})
    left = limit - reading.held
    if isinstance(verdict, Grant):
        assert least <= verdict.nano <= least + more or verdict.nano == 0
        assert verdict.nano == 0 or reading.held + verdict.nano <= limit
    else:
        assert left < least
        assert (verdict.spent, verdict.pending, verdict.needed) == (posted + unknown, pending, least)


def test_the_narrowest_of_several_hard_budgets_decides_and_soft_ones_never_refuse() -> None:
    other = KEY._replace(scope="user", of="ann")
    read = {KEY: Reading(posted=90), other: Reading(posted=10)}
    assert decide(Ask(5, 50), [claim(100), claim(40, key=other)], read) == Grant(10)
    assert decide(Ask(5, 50), [claim(100, hard=False), claim(40, key=other)], read) == Grant(30)
    assert decide(Ask(500, 500), [claim(100, hard=False)], read) == Grant(500)


def test_an_unknown_price_fits_no_hard_budget_and_nothing_is_free_of_charge_but_nothing() -> None:
    denied = decide(None, [claim(100)], {})
    assert isinstance(denied, Denial)
    assert denied.needed is None
    assert "unknown" in denied.reason
    assert decide(None, [claim(100, hard=False)], {}) == Grant(0)
    assert decide(Ask(0, 0), [claim(0)], {KEY: Reading(posted=50)}) == Grant(0)
    assert isinstance(decide(Ask(1, 1), [claim(0)], {}), Denial)


def test_thresholds_are_due_when_reached_and_the_end_when_all_is_spent() -> None:
    of = claim(1000)
    assert due(of, 499) == ()
    assert due(of, 500) == (0.5,)
    assert due(of, 950) == (0.5, 0.8, 0.95)
    assert due(of, 1000) == (0.5, 0.8, 0.95, EXHAUSTED)


# ── the most a request can be counted as ─────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5))
def test_a_text_is_never_more_tokens_than_its_bytes_and_a_little_around_it(said: list[str]) -> None:
    bound = input_bound(ChatRequest(tuple(user(Text(text)) for text in said)))
    assert bound is not None
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in said)
    assert size + 8 * len(said) <= bound <= size + 64 + 64 * len(said)


def test_everything_that_is_sent_counts() -> None:
    plain = input_bound(ChatRequest((user("hi"),)))
    assert plain is not None
    schema = {"type": "object", "properties": {"x" * 500: {"type": "string"}}}
    for richer in (
        ChatRequest((user("hi"),), tools=(ToolSpec("t", "d" * 500),)),
        ChatRequest((user("hi"),), output=OutputSchema(schema)),
        ChatRequest((user([Text("hi"), Image(url="https://x/y.png")]),)),
        ChatRequest((user([Text("hi"), File(data=b"%PDF" * 200)]),)),
        ChatRequest((user([Text("hi"), Audio(data=b"x" * 600)]),)),
        ChatRequest((user("hi"),), extra={"openai": {"note": "x" * 500}}),
        ChatRequest((Message("user", (Text("hi"),), name="n" * 500),)),
    ):
        found = input_bound(richer)
        assert found is not None
        assert found >= plain + 500, richer
    assert input_bound(ChatRequest((user("hi"),)), extra=100) == plain + 100


def test_a_window_bounds_what_has_no_size_and_without_one_nothing_does() -> None:
    request = ChatRequest((user(File(url="https://x/y.pdf")),))
    assert input_bound(request) is None
    assert input_bound(request, window=1000) == 1000
    assert input_bound(ChatRequest((user("x" * 5000),)), window=1000) == 1000
    loud = ChatRequest((user(Audio(data=b"x" * 5000)),))
    found = input_bound(loud, window=1000)
    assert found is not None
    assert found >= 5000, "recordings are dearer than text: their bytes are counted beside the window"


def test_a_budget_status_says_what_is_left_in_percent_and_prints_as_a_table() -> None:
    from shared_core.resilience.budget import BudgetReport, BudgetStatus

    at = datetime(2026, 11, 1, tzinfo=UTC)
    status = BudgetStatus(
        Budget(10), None, Reading(4_000_000_000, 1_000_000_000, 1_000_000_000), at, at + timedelta(30)
    )
    assert (status.spent_usd, status.pending_usd, status.remaining_usd, status.percent) == (5.0, 1.0, 4.0, 50.0)
    assert not status.exhausted
    report = BudgetReport([status])
    assert "$10 a month" in str(report)
    assert "2026-12-01" in str(report)
    assert "<table>" in report._repr_html_()
    assert report.rows()[0]["resets_at"] == "2026-12-01T00:00:00+00:00"
