"""What rows add up to: the same from memory and from SQLite, by every dimension, reported and unreported apart."""

from __future__ import annotations

import csv
import io
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import ChatRequest, ConfigurationError, MemoryLedger, Price, Router, Target, Usage, user
from shared_core.errors import ErrorKind, MissingDependency, UnknownOption
from shared_core.ledger import _opening
from shared_core.ledger.analytics import DIMENSIONS, SUMS, CostReport, cost_query, project_month
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.ledger.schema import MIGRATIONS
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.ledger.sums import LedgerFile
from shared_core.ledger.tally import Tally
from shared_core.testing import ScriptedProvider, VirtualClock
from tools.money_trials.place import folder
from tools.money_trials.power import check_books

COST = SUMS.index("cost_nano")
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def entry(at=NOW, cost=1_000, status=EntryStatus.POSTED, usage=None, **more) -> LedgerEntry:
    """One attempt that was answered, unless told otherwise."""
    given_ = {
        "execution": "x", "attempt": 1, "target": "openai:gpt", "provider": "openai", "model": "gpt", "at": at,
        "outcome": "answered", "status": status, "usage": usage or Usage(10, 5), "cost_nano": cost,
    }  # fmt: skip
    return LedgerEntry(**{**given_, **more})


# ── memory and SQLite ────────────────────────────────────────────────────────────────────────────────────────────────

names = st.sampled_from(["a", "b", "c"])
moments = st.one_of(
    st.integers(-40 * 96, 0).map(lambda quarter: NOW + quarter * 900.0),
    st.floats(NOW - 40 * DAY, NOW).map(lambda at: round(at, 3)),
)


@st.composite
def entries(draw):
    """Attempts of every status, and cache hits."""
    status = draw(st.sampled_from([s for s in EntryStatus if not s.open]))
    purpose = draw(st.sampled_from([Purpose.CALL, Purpose.CALL, Purpose.HEDGE, Purpose.PROBE, Purpose.CACHE]))
    if purpose is Purpose.CACHE:
        status = EntryStatus.POSTED
    tokens = st.integers(0, 1000)
    estimated = status in (EntryStatus.ESTIMATED, EntryStatus.UNKNOWN)
    cost = draw(st.one_of(st.none(), st.integers(0, 10**12)))
    if status is EntryStatus.VOIDED or purpose is Purpose.CACHE:
        cost = 0
    return entry(
        at=draw(moments),
        cost=cost,
        status=status,
        usage=Usage(draw(tokens), draw(tokens), draw(tokens), draw(tokens), draw(tokens), estimated),
        outcome="answered" if status in (EntryStatus.POSTED, EntryStatus.ESTIMATED) else "failed",
        bound_nano=draw(st.one_of(st.none(), st.integers(0, 10**12))),
        target=draw(names),
        provider=draw(names),
        model=draw(names),
        user=draw(st.one_of(st.none(), names)),
        tags=tuple(draw(st.sets(names))),
        chain=draw(st.one_of(st.none(), names)),
        purpose=purpose,
    )


filters = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("target", "model", "provider", "user", "tag", "chain"), names),
        "since": moments,
        "until": moments,
        "timezone": st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "Pacific/Auckland"]),
    },
)


def same(a: CostReport, b: CostReport) -> None:
    assert a.total == b.total
    for dimension in DIMENSIONS:
        assert a.by(dimension) == b.by(dimension), dimension
    assert a.parts == b.parts
    assert a.month == b.month


@settings(max_examples=20, deadline=None)
@given(st.lists(entries(), max_size=25), st.lists(filters, min_size=1, max_size=4))
def test_memory_and_sqlite_add_up_to_the_same(rows, asked):
    """Whatever the rows, the filters and the time zone; and both to what a loop over the rows says."""
    memory = MemoryLedger()
    with folder("costs") as place, SQLiteLedger(path := Path(place) / "costs.db") as sqlite:
        for row in rows:
            memory.record(row)
            sqlite.record(row)
        sqlite.flush()
        with LedgerFile(path) as file:
            for given_ in asked:
                if "since" in given_ and "until" in given_ and given_["since"] > given_["until"]:
                    given_ = {**given_, "since": given_["until"], "until": given_["since"]}
                report = memory.costs(now=NOW, **given_)
                same(report, file.costs(now=NOW, **given_))
                passed = [row for row in rows if passes(row, given_)]
                assert report.total.cost_nano == sum(reported(row) for row in passed)
                assert sum(line.cost_nano for line in report.by("day")) == report.total.cost_nano
                assert report.month == memory.costs(**{**given_, "now": NOW, "since": NOW + DAY, "until": None}).month
                assert report.total.attempts == sum(row.purpose is not Purpose.CACHE for row in passed)


def test_rows_of_one_tag_are_shown_under_all_of_theirs(tmp_path):
    memory = MemoryLedger()
    with SQLiteLedger(tmp_path / "costs.db") as sqlite:
        for ledger in (memory, sqlite):
            ledger.record(entry(tags=("b", "a")))
            ledger.record(entry())
            assert [(line.name, line.attempts) for line in ledger.costs(tag="a").by("tag")] == [("a", 1), ("b", 1)]
            assert ledger.costs(tag="a").total.attempts == 1


def passes(row: LedgerEntry, given_: dict) -> bool:
    return all(
        row.at >= value if name == "since"
        else row.at < value if name == "until"
        else value in row.tags if name == "tag"
        else True if name == "timezone"
        else getattr(row, name) == value
        for name, value in given_.items()
    )  # fmt: skip


def reported(row: LedgerEntry) -> int:
    return 0 if row.status is EntryStatus.ESTIMATED else row.cost_nano or 0


@pytest.fixture
def tmp_path():
    """In memory, where there is such a folder: what is tested waits for no disk."""
    with folder("test") as place:
        yield Path(place)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path):
    """Either ledger."""
    if request.param == "memory":
        yield MemoryLedger()
    else:
        with SQLiteLedger(tmp_path / "costs.db") as opened:
            yield opened


def costs(ledger, **filters) -> CostReport:
    getattr(ledger, "flush", lambda: None)()
    return ledger.costs(**{"now": NOW, **filters})


def test_reported_estimated_unknown_and_unpriced_stand_apart(ledger):
    """None of them is ever in another's figure."""
    ledger.record(entry(cost=1_000))
    ledger.record(entry(cost=200, status=EntryStatus.ESTIMATED, usage=Usage(7, 3, estimated=True)))
    ledger.record(
        entry(cost=None, bound_nano=30, status=EntryStatus.UNKNOWN, outcome="failed", usage=Usage(2, estimated=True))
    )
    ledger.record(entry(cost=None))
    ledger.record(entry(cost=0, status=EntryStatus.VOIDED, outcome="failed", usage=Usage()))
    report = costs(ledger)
    total = report.total
    assert (total.cost_nano, total.estimated_nano, total.unknown_nano, total.unpriced) == (1_000, 200, 30, 1)
    assert (total.attempts, total.answers, total.estimated, total.unknown) == (5, 3, 1, 1)
    assert (total.input_tokens, total.output_tokens, total.estimated_tokens) == (20, 10, 12)
    assert report.total_usd == 1e-6
    assert (report.at_most_usd, total.uncertain_nano) == (None, 230), "what one attempt cost at most is unknown"
    assert report.usd_per_1k_tokens == pytest.approx(1e-6 / 15 * 1000), "of the tokens whose price is known"
    told = str(report)
    for note in ("estimated: 1 attempt ", "unknown: 1 attempt ", "unpriced: 1 attempt "):
        assert note in told


def test_what_has_only_an_unknown_price_costs_none_wherever_it_is_shown(ledger, tmp_path):
    """And never 0: not as a figure, a mapping, a table, plain data, CSV or a day."""
    ledger.record(entry(cost=None, user="ann"))
    report = costs(ledger)
    line = report.targets[0]
    assert (report.total_usd, report.at_most_usd, line.cost_usd, line.at_most_usd) == (None,) * 4
    assert (list(report.by_model.values()), report.by_user, list(report.by_day.values())) == (
        [None],
        {"ann": None},
        [None],
    )
    assert (report.as_dict()["total"]["cost_usd"], report.as_dict()["total"]["at_most_usd"]) == (None, None)
    assert report.table().splitlines()[-1].split()[-2:] == ["unknown", "unknown"]
    report.to_csv(tmp_path / "costs.csv", by="model")
    (row,) = csv.DictReader((tmp_path / "costs.csv").open(encoding="utf-8"))
    assert (row["cost_usd"], row["at_most_usd"], row["unpriced"]) == ("", "", "1")
    ledger.record(entry(cost=2_000, target="b", model="b"))
    report = costs(ledger)
    assert (report.total_usd, report.at_most_usd) == (2e-6, None), "what is known is told, and no bound of what is not"
    assert report.by_model == {"b": 2_000, "gpt": None}
    report.plot(), report.plot("burn_down", limit_usd=1), report.plot("savings")


def test_costs_are_told_by_each_dimension(ledger):
    """Dearest first; days in their order; two tags count twice."""
    ledger.record(entry(cost=5, user="ann", tags=("x", "y"), chain="low-cost"))
    ledger.record(entry(cost=7, user="bob", tags=("x",), target="anthropic:c", provider="anthropic", model="c"))
    ledger.record(entry(cost=1, at=NOW - DAY))
    report = costs(ledger)
    assert report.by_target == {"anthropic:c": 7, "openai:gpt": 6}
    assert list(report.by_target) == ["anthropic:c", "openai:gpt"], "dearest first"
    assert report.by_model == {"c": 7, "gpt": 6}
    assert report.by_provider == {"anthropic": 7, "openai": 6}
    assert report.by_user == {"bob": 7, "ann": 5}
    assert report.by_tag == {"x": 12, "y": 5}
    assert report.by_chain == {"low-cost": 5}
    assert report.by_day == {"2026-11-19": 1, "2026-11-20": 12}
    assert [line.name for line in report.top_models(1)] == ["c"]
    assert [line.name for line in report.top_users()] == ["bob", "ann"]
    assert [(part.day, part.target, part.line.cost_nano) for part in report.parts] == [
        (date(2026, 11, 19), "openai:gpt", 1),
        (date(2026, 11, 20), "anthropic:c", 7),
        (date(2026, 11, 20), "openai:gpt", 5),
    ]  # fmt: skip
    daily = report.daily(3)
    assert [(line.name, line.cost_nano) for line in daily] == [("2026-11-18", 0), ("2026-11-19", 1), ("2026-11-20", 12)]
    assert [target.target for target in report.targets] == ["anthropic:c", "openai:gpt"]
    with pytest.raises(ConfigurationError, match="told by target, model"):
        report.by("colour")


def test_a_day_is_a_day_of_the_zone_that_is_asked_for(ledger):
    """23:30 in Lisbon is tomorrow in Kathmandu."""
    at = datetime(2026, 3, 1, 23, 30, tzinfo=UTC).timestamp()
    ledger.record(entry(at=at, cost=3))
    assert list(costs(ledger).by_day) == ["2026-03-01"]
    assert list(costs(ledger, timezone="Asia/Kathmandu").by_day) == ["2026-03-02"]
    assert list(costs(ledger, timezone=ZoneInfo("America/New_York")).by_day) == ["2026-03-01"]


def test_a_range_is_exact_to_the_second(ledger):
    """Also where it begins and ends within a quarter of an hour."""
    for second in range(10):
        ledger.record(entry(at=NOW + second, cost=10**second))
    assert costs(ledger, since=NOW + 3, until=NOW + 5).total.cost_nano == 11_000
    assert costs(ledger, since=NOW + 8).total.cost_nano == 1_100_000_000
    assert costs(ledger, until=NOW + 1).total.cost_nano == 1


def test_cache_hits_cost_nothing_and_say_what_they_saved(ledger):
    """They are no attempts: nothing was sent."""
    ledger.record(entry(cost=400))
    for _ in range(3):
        ledger.record(entry(cost=0, bound_nano=400, purpose=Purpose.CACHE))
    total = costs(ledger).total
    assert (total.cost_nano, total.attempts, total.hits, total.saved_nano) == (400, 1, 3, 1200)
    assert "3 answers without a call, $0.000001 saved" in str(costs(ledger))


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "7", None])
def test_a_correction_is_whole_nano_dollars(ledger, wrong):
    """Half a nano-dollar in a column of whole ones would never go away."""
    ledger.record(entry(cost=1_000))
    (row,) = ledger.entries()
    with pytest.raises(ConfigurationError, match="cost_nano must be a whole number of nano-dollars, 0 or more"):
        ledger.correct(row.id, wrong, reason="a guess")
    assert costs(ledger).total.cost_nano == 1_000
    assert ledger.correct(row.id, 7, reason="the bill") is not None, "and the next one is entered"


def test_a_correction_counts_on_its_rows_day_and_resolves_it(ledger):
    """An unknown row's bound is taken back; what it cost in truth is reported cost."""
    ledger.record(
        entry(at=NOW - DAY, cost=None, bound_nano=900, status=EntryStatus.UNKNOWN, usage=Usage(estimated=True))
    )
    getattr(ledger, "flush", lambda: None)()
    (row,) = ledger.entries()
    ledger.correct(row.id, 250, reason="the bill", at=row.at)
    report = costs(ledger)
    assert (report.total.cost_nano, report.total.unknown_nano, report.total.unknown) == (250, 0, 0)
    assert report.total.corrected_nano == 250
    assert report.total.attempts == 1
    assert report.by_day == {"2026-11-19": 250}


def test_a_ledger_in_memory_forgets_when_and_never_how_much():
    """Sums of the past are folded together; totals, users and tags stay exact."""
    tally, rows = Tally(keep=50), []
    for number in range(500):
        row = entry(at=NOW - number * 3600, cost=number, user=f"u{number % 3}")
        tally.add(row)
        rows.append(row)
    query = cost_query(lambda: NOW)
    assert sum(sums[COST] for _, sums in tally.sums(query, ("target",), [])) == sum(range(500))
    by_user = {key[0]: sums[COST] for key, sums in tally.sums(query, ("user",), [])}
    assert by_user == {f"u{n}": sum(range(n, 500, 3)) for n in range(3)}
    assert len(tally._cells) <= 60


# ── filters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("since", "then"),
    [
        ("7d", NOW - 7 * DAY),
        ("24h", NOW - DAY),
        ("1.5h", NOW - 5400),
        ("2w", NOW - 14 * DAY),
        ("30m", NOW - 1800),
        (timedelta(days=2), NOW - 2 * DAY),
        ("today", NOW - 11 * 3600 - 3600),
        ("yesterday", NOW - DAY - 12 * 3600),
        ("week", datetime(2026, 11, 16, tzinfo=UTC).timestamp()),
        ("month", datetime(2026, 11, 1, tzinfo=UTC).timestamp()),
        ("2026-11-03", datetime(2026, 11, 3, tzinfo=UTC).timestamp()),
        ("2026-11-03T08:00+02:00", datetime(2026, 11, 3, 6, tzinfo=UTC).timestamp()),
        (date(2026, 11, 3), datetime(2026, 11, 3, tzinfo=UTC).timestamp()),
        (datetime(2026, 11, 3, 5), datetime(2026, 11, 3, 5, tzinfo=UTC).timestamp()),  # noqa: DTZ001  # read in the query's zone
        (123.5, 123.5),
        (None, None),
    ],
    ids=str,
)
def test_a_moment_is_said_in_many_ways(since, then):
    """And means one."""
    assert cost_query(lambda: NOW, since=since).since == then


def test_a_day_without_a_zone_is_one_of_the_zone_that_is_asked_for():
    """Midnight in Berlin is not midnight in London."""
    query = cost_query(lambda: NOW, since="2026-07-01", timezone="Europe/Berlin")
    assert query.since == datetime(2026, 6, 30, 22, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"since": "soon"}, "'7d', '24h'"),
        ({"since": True}, "no time"),
        ({"since": object()}, "must be a datetime"),
        ({"since": "2d", "until": "3d"}, "exchange them"),
        ({"timezone": "Mars/Olympus"}, "Europe/Berlin"),
        ({"usr": "ann"}, "'user'"),
    ],
    ids=str,
)
def test_a_filter_that_makes_no_sense_is_refused_with_a_hint(wrong, said):
    """Nothing is left out in silence."""
    with pytest.raises(ConfigurationError, match=said):
        MemoryLedger().costs(**wrong)
    if "usr" in wrong:
        with pytest.raises(UnknownOption):
            Router(ScriptedProvider("ok")).costs(**wrong)


def test_a_router_tells_costs_at_its_own_clocks_time():
    """A virtual clock's today is today."""
    clock = VirtualClock()
    provider = ScriptedProvider("three words here", clock=clock)
    router = Router([Target(provider=provider, name="a", price=Price(input=1, output=2))], clock=clock)
    router.invoke(ChatRequest((user("Hi"),), user="ann"))
    clock.advance(3600)
    router.invoke(ChatRequest((user("Hi"),), user="bob"))
    assert router.costs(user="ann").total.attempts == 1
    assert router.costs(since="30m").by_user == {"bob": 16_000}
    assert router.costs(until="30m").by_user == {"ann": 16_000}


def test_what_was_cut_is_unknown_and_never_in_the_total():
    """Through the router: an attempt with no outcome has a bound, and no cost."""
    target = Target(provider=ScriptedProvider(ErrorKind.TRANSIENT, "ok"), name="a", price=Price(input=1, output=1))
    router = Router([target])
    router.invoke(ChatRequest((user("Hi"),), max_tokens=100))
    report = router.costs()
    assert report.total.unknown == 1
    assert report.total_usd == pytest.approx(11e-6)
    assert report.unknown_usd > 100e-6


# ── the month ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_month_is_projected_from_the_recent_mean():
    """Spent so far, and the mean of the last seven whole days for each day left, half of today included."""
    daily = {date(2026, 11, day): 100 for day in range(1, 20)} | {date(2026, 11, 20): 40}
    found = project_month(daily, datetime(2026, 11, 20, 12, tzinfo=UTC))
    assert (found.month, found.spent_nano, found.daily_mean_nano, found.recent_days) == ("2026-11", 1940, 100, 7)
    assert found.days_left == 10.5
    assert found.projected_nano == 1940 + 1050


def test_days_before_the_first_one_do_not_dilute_the_mean():
    """A ledger that is two days old has seen two days."""
    daily = {date(2026, 11, 18): 100, date(2026, 11, 19): 300}
    found = project_month(daily, datetime(2026, 11, 20, tzinfo=UTC))
    assert (found.daily_mean_nano, found.recent_days, found.days_left) == (200, 2, 11.0)


def test_days_without_spending_count_as_such():
    """From the first day of record on."""
    found = project_month({date(2026, 11, 10): 700}, datetime(2026, 11, 17, tzinfo=UTC))
    assert (found.daily_mean_nano, found.recent_days) == (100, 7)


def test_on_the_first_day_of_record_today_counts_as_a_day():
    """There is nothing else to go by."""
    found = project_month({date(2026, 11, 30): 50}, datetime(2026, 11, 30, 6, tzinfo=UTC))
    assert (found.daily_mean_nano, found.days_left) == (50, 0.75)
    assert found.projected_nano == 50 + round(37.5)


def test_on_the_first_of_the_month_the_last_month_says_how_it_goes():
    """What was spent then is not spent now."""
    daily = {date(2026, 1, day): 70 for day in range(20, 32)}
    found = project_month(daily, datetime(2026, 2, 1, tzinfo=UTC))
    assert (found.spent_nano, found.daily_mean_nano, found.days_left) == (0, 70, 28.0)
    assert found.projected_nano == 28 * 70


def test_nothing_spent_leads_to_nothing():
    """And divides by nothing."""
    assert project_month({}, datetime(2026, 11, 20, tzinfo=UTC)).projected_nano == 0
    assert MemoryLedger().costs(now=NOW).month.projected_nano == 0


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        (datetime(2026, 12, 31, 0, tzinfo=UTC), 1.0),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), 1 / 86400),
        (datetime(2028, 2, 28, 12, tzinfo=UTC), 1.5),  # a leap year
        # Clocks go forward on the 29th of March 2026 in Berlin: at noon, 11 of its 23 hours are gone.
        (datetime(2026, 3, 29, 12, tzinfo=ZoneInfo("Europe/Berlin")), 2 + 12 / 23),
        (datetime(2026, 10, 25, 12, tzinfo=ZoneInfo("Europe/Berlin")), 6 + 12 / 25),
    ],
    ids=str,
)
def test_what_is_left_of_a_month(moment, left):
    """Leap years, the last second, and days of 23 and 25 hours."""
    assert project_month({}, moment).days_left == pytest.approx(left)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.dates(date(2026, 1, 1), date(2026, 3, 31)), st.integers(0, 10**9), max_size=60),
    st.datetimes(datetime(2026, 3, 1), datetime(2026, 3, 31)),  # noqa: DTZ001  # zones follow
    st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "Asia/Kathmandu"]),
)
def test_a_projection_is_never_less_than_what_is_spent(daily, moment, zone):
    """Whatever the days, the moment and the zone."""
    found = project_month(daily, moment.replace(tzinfo=ZoneInfo(zone)))
    assert found.projected_nano >= found.spent_nano
    assert 0 <= found.days_left <= 31
    assert 1 <= found.recent_days <= 7


def test_the_month_does_not_depend_on_the_range_asked_for(ledger):
    """Its other filters hold."""
    for back in range(10):
        ledger.record(entry(at=NOW - back * DAY, cost=100, user="ann" if back % 2 else "bob"))
    assert costs(ledger, since="1h").month == costs(ledger).month
    assert costs(ledger).month.daily_mean_nano == 100
    assert costs(ledger, user="ann").month.spent_nano == 500


# ── shown ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def report() -> CostReport:
    ledger = MemoryLedger()
    ledger.record(entry(cost=2_000_000, user="=1+1", tags=("x",)))
    ledger.record(entry(cost=1_000_000, at=NOW - DAY, target="<b>", model="other"))
    ledger.record(entry(cost=0, bound_nano=5, purpose=Purpose.CACHE))
    return ledger.costs(now=NOW)


def test_a_report_is_a_table_of_text_and_of_html():
    """Names are no markup."""
    told = str(report())
    assert told.splitlines()[0].split() == [
        "target",
        "attempts",
        "answers",
        "in",
        "out",
        "cost",
        "$",
        "estimated",
        "$",
        "at",
        "most",
        "$",
    ]
    assert "total" in told
    assert "0.003000" in told
    html = report()._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_a_report_goes_to_csv_and_comes_back(tmp_path):
    """And a name that a spreadsheet would run is harmless."""
    text = report().to_csv(tmp_path / "costs.csv")
    assert (tmp_path / "costs.csv").read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["target"], float(row["cost_usd"])) for row in rows] == [("openai:gpt", 0.002), ("<b>", 0.001)]
    assert "'=1+1" in report().to_csv(by="user")


def test_a_report_goes_to_pandas():
    """A row for each line; days are dates."""
    frame = report().to_pandas()
    assert frame.loc["openai:gpt", "cost_usd"] == 0.002
    days = report().to_pandas("day")
    assert list(days.index.strftime("%Y-%m-%d")) == ["2026-11-19", "2026-11-20"]
    assert list(MemoryLedger().costs().to_pandas().columns) == list(frame.columns), "an empty one too"


@pytest.mark.parametrize("module", ["pandas", "matplotlib"])
def test_what_is_not_installed_is_named_with_the_extra(module, monkeypatch):
    """Costs are told without it."""
    import sys

    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match="notebooks"):
        report().to_pandas() if module == "pandas" else report().plot()


def test_a_report_is_drawn(monkeypatch):
    """Spend per day and target, what is left of a budget, and what the cache saved."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = report()
    days = shown.plot(days=5)
    heights = sorted(round(bar.get_height(), 6) for bar in days.patches if bar.get_height())
    assert heights == [0.001, 0.002]
    left = shown.plot("burn_down", limit_usd=1.0)
    assert left.lines[1].get_ydata()[-1] == pytest.approx(1 - 0.003)
    assert "saved" in shown.plot("savings").get_legend_handles_labels()[1][1]
    MemoryLedger().costs().plot()
    MemoryLedger().costs().plot("savings")
    MemoryLedger().costs().plot("burn_down", limit_usd=1)
    with pytest.raises(ConfigurationError, match="limit_usd"):
        shown.plot("burn_down")
    with pytest.raises(ConfigurationError, match="'days'"):
        shown.plot("day")
    plt.close("all")


def test_a_report_is_plain_data_for_json():
    """Everything, by every dimension."""
    import json

    told = json.loads(json.dumps(report().as_dict()))
    assert {f"by_{name}" for name in DIMENSIONS} <= set(told)
    assert told["total"]["cost_usd"] == 0.003


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "given_",
    [{}, {"user": "u1"}, {"tag": "x"}, {"target": "openai:gpt"}, {"model": "gpt"}, {"chain": "c"}, {"provider": "p"}],
    ids=str,
)
def test_whole_days_are_read_from_the_daily_sums(tmp_path, given_):
    """A report over all time reads no row, whatever one thing it is asked of."""
    path = tmp_path / "costs.db"
    with SQLiteLedger(path) as ledger:
        for number in range(50):
            ledger.record(
                entry(
                    at=NOW - number * 7200, cost=number, user=f"u{number % 3}", tags=("x",), chain="c", provider="p"
                )
            )  # fmt: skip
        ledger.flush()
    with LedgerFile(path) as file:
        statements: list[str] = []
        file._connection.set_trace_callback(statements.append)
        whole = file.costs(now=NOW, **given_)
        assert statements
        assert not any("FROM entries" in statement for statement in statements)
    assert whole.total.cost_nano == sum(range(1, 50, 3) if "user" in given_ else range(50))


@pytest.mark.parametrize("given_", [{"since": "7d"}, {"since": "5h", "until": "1h"}, {"since": "3d", "user": "u1"}])
def test_a_part_of_a_day_is_read_from_its_rows_once(tmp_path, given_):
    """However many dimensions are asked for; whoever asks for one of them alone is told the same."""
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        for number in range(50):
            at = NOW - number * 5 * 3600 - 60
            ledger.record(entry(at=at, cost=number, user=f"u{number % 3}", tags=("a", "b")[: number % 3]))
        ledger.flush()
    with LedgerFile(tmp_path / "costs.db") as file:
        seen: list[str] = []
        file._connection.set_trace_callback(seen.append)
        report = file.costs(now=NOW, **given_)
        assert sum("FROM entries" in statement for statement in seen) <= 2
    query = cost_query(lambda: NOW, **given_)
    for dimension in DIMENSIONS:
        alone = {name[0]: figures for name, figures in ledger.cost_sums(query, (dimension,)) if name[0]}
        assert alone == {line.name: tuple(getattr(line, figure) for figure in SUMS) for line in report.by(dimension)}


@pytest.mark.parametrize("hours", [1, 11, 13, 23])
@pytest.mark.parametrize("corrected", [None, 3, 30])
def test_a_day_that_is_cut_is_exact_wherever_it_is_cut(tmp_path, hours, corrected):
    """From its rows or as the day without them; also where a correction is posted on another day than it counts on."""
    rows = [(NOW - 12 * 3600 + number * 3600 - DAY, number + 1) for number in range(-24, 24)]  # two whole days
    since = NOW - 12 * 3600 - DAY + hours * 3600 - 1
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        for at, cost in rows:
            ledger.record(entry(at=at, cost=10 ** (cost % 7) * (cost + 30), user=f"u{cost % 2}" if cost % 3 else None))
        ledger.flush()
        changed = 0
        if corrected is not None:
            found = ledger.correct(corrected, 5, reason="bill", at=since + 60)
            counts = rows[corrected - 1][0] >= since
            changed = found.cost_nano if counts else 0
        report = ledger.costs(now=NOW, since=since)
        expected = [(c, 10 ** (c % 7) * (c + 30)) for at, c in rows if at >= since]
        if corrected is None:
            assert report.total.cost_nano == sum(cost for _, cost in expected) + changed
        assert report.total.attempts == len(expected)
        by_user = {name: sum(cost for c, cost in expected if c % 3 and f"u{c % 2}" == name) for name in ("u0", "u1")}
        if corrected is None:
            assert dict(report.by_user) == {name: cost for name, cost in by_user.items() if cost}
        direct = ledger.query(
            "SELECT sum(cost) FROM entries WHERE corrects IS NULL AND at >= ?", (round(since * 1e6),)
        )[0][0]
        assert report.total.cost_nano - report.total.corrected_nano == direct


@settings(max_examples=10, deadline=None)
@given(st.lists(entries(), max_size=25), st.lists(entries(), max_size=5), st.lists(filters, min_size=1, max_size=3))
def test_a_file_of_an_earlier_version_says_the_same_before_and_after_it_is_brought_up(rows, later, asked):
    """Of the first version: it is read as it is, and told no differently when it has been migrated and written to."""
    memory = MemoryLedger()
    with folder("costs") as place:
        path = Path(place) / "costs.db"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_opening, "MIGRATIONS", MIGRATIONS[:1])
            with SQLiteLedger(path) as old:
                for row in rows:
                    memory.record(row)
                    old.record(row)
                old.flush()
        asked = [
            {name: value for name, value in given_.items() if name not in ("since", "until")} for given_ in asked
        ]  # fmt: skip
        with LedgerFile(path) as file:
            for given_ in asked:
                same(memory.costs(now=NOW, **given_), file.costs(now=NOW, **given_))
        with SQLiteLedger(path) as new:
            assert new.query("SELECT count(*) FROM migrations") == [(len(MIGRATIONS),)]
            for given_ in asked:
                same(memory.costs(now=NOW, **given_), new.costs(now=NOW, **given_))
            for row in later:
                memory.record(row)
                new.record(row)
            for given_ in asked:
                same(memory.costs(now=NOW, **given_), new.costs(now=NOW, **given_))
        with sqlite3.connect(path) as connection:
            assert check_books(connection) == []
        connection.close()


def test_a_file_is_read_while_another_writes(tmp_path):
    """A reader sees one moment, blocks nobody, and needs no right to write."""
    path = tmp_path / "costs.db"
    with SQLiteLedger(path) as ledger:
        ledger.record(entry(cost=5))
        ledger.flush()
        with LedgerFile(path) as file:
            assert file.costs(now=NOW).total.cost_nano == 5
            ledger.record(entry(cost=7))
            assert ledger.flush() is not False
            assert file.costs(now=NOW).total.cost_nano == 5, "its own moment"
            with pytest.raises(sqlite3.OperationalError):
                file._connection.execute("DELETE FROM entries")
        with LedgerFile(path) as file:
            assert file.costs(now=NOW).total.cost_nano == 12
