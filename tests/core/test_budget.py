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
from shared_core.chat.request import Message, Reasoning, Text, ToolCall, ToolResult
from shared_core.resilience.bound import input_bound
from shared_core.resilience.budget import (
    _KEPT,
    EXHAUSTED,
    Ask,
    BudgetReport,
    Budgets,
    BudgetStatus,
    Claim,
    Denial,
    Grant,
    MeterKey,
    Reading,
    decide,
    due,
    hard_limit,
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


def test_a_week_begins_on_monday_and_lasts_seven_days() -> None:
    monday = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp())
    for day in range(7):
        assert window_at("week", monday + day * 86400, UTC) == (monday, monday + 7 * 86400)
    assert window_at("week", monday - 1, UTC) == (monday - 7 * 86400, monday)
    berlin = ZoneInfo("Europe/Berlin")
    changes = window_at("week", datetime(2026, 10, 21, tzinfo=UTC).timestamp(), berlin)
    assert changes == (
        int(datetime(2026, 10, 19, tzinfo=berlin).timestamp()),
        int(datetime(2026, 10, 26, tzinfo=berlin).timestamp()),
    )
    assert changes.end is not None
    assert changes.end - changes.start == (7 * 24 + 1) * 3600


def test_a_day_that_begins_twice_begins_with_the_first_of_them_and_one_that_was_left_out_with_the_next() -> None:
    johns = ZoneInfo("America/St_Johns")  # until 2011, at one past midnight the clocks went back to the day before
    first = int(datetime(2010, 11, 7, tzinfo=johns).timestamp())
    assert window_at("day", first + 86400 / 2, johns).start == first
    assert datetime.fromtimestamp(first + 60, johns).day == 6
    apia = ZoneInfo("Pacific/Apia")  # 30 December 2011 was left out
    after = int(datetime(2011, 12, 31, tzinfo=apia).timestamp())
    assert window_at("day", after - 1, apia).end == after


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


@given(
    st.lists(
        st.tuples(
            moments, st.sampled_from("ab"), st.sampled_from([None, "ann", "bob"]), st.lists(st.sampled_from("xyz"))
        ),
        min_size=2,
        max_size=6,
    )
)
def test_claims_that_are_remembered_are_those_that_would_be_worked_out(asked: list[Any]) -> None:
    budgets = [
        Budget(1, "day", timezone="Europe/Berlin"),
        Budget(1, "week", scope="target"),
        Budget(1, "month", scope="user", hard=False),
        Budget(1, "total", scope="tag", of="x"),
    ]
    for chosen in (budgets, budgets[:1], budgets[1:3]):
        remembering = Budgets(chosen)
        for at, target, of, tags in [*asked, *asked]:
            assert remembering.claims(at, target, of, tags) == Budgets(chosen).claims(at, target, of, tags)


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


def test_meters_are_worked_out_once_for_everybody_whom_no_budget_tells_apart() -> None:
    midnight = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp())
    together = Budgets([Budget(1, "day"), Budget(2, "total")])
    first = together.claims(midnight, "t")
    for at in (midnight, midnight + 1, midnight + 86399.9):
        assert together.claims(at, "other", "ann", ["batch"]) is first
    assert together.claims(midnight + 86400, "t") is not first
    assert together.claims(midnight - 1, "t")[0].key.start == midnight - 86400
    for scope, one, other in (
        ("target", ("t",), ("u",)),
        ("user", ("t", "ann"), ("t", "bob")),
        ("tag", ("t", None, ["x"]), ("t", None, ["y"])),
    ):
        apart = Budgets([Budget(1, "day", scope)])  # type: ignore[arg-type]  # the scopes, by name
        known = apart.claims(midnight, *one)  # type: ignore[arg-type]  # as above: target, user, tags
        assert apart.claims(midnight, *one) is known  # type: ignore[arg-type]  # as above
        assert apart.claims(midnight, *other) != known, scope  # type: ignore[arg-type]  # as above


def test_users_without_end_are_not_all_remembered() -> None:
    budgets = Budgets([Budget(1, "total", "user")])
    for n in range(_KEPT + 10):
        assert budgets.claims(0.0, "t", f"u{n}")[0].key.of == f"u{n}"
        assert len(budgets._claims) <= _KEPT


def test_days_of_several_places_are_told_apart() -> None:
    budgets = Budgets([Budget(1, "day"), Budget(1, "day", timezone="Asia/Kathmandu"), Budget(1, "month")])
    at = datetime(2026, 11, 10, 12, tzinfo=UTC).timestamp()
    nepal = datetime(2026, 11, 10, tzinfo=ZoneInfo("Asia/Kathmandu")).timestamp()
    starts = [claim.key.start for claim in budgets.claims(at, "t")]
    assert starts == [at - 12 * 3600, nepal, datetime(2026, 11, 1, tzinfo=UTC).timestamp()]
    day = budgets.window(budgets.all[0], at - 12 * 3600)
    assert budgets.window(budgets.all[0], at - 12 * 3600) is day, "from its first moment on"


def test_budgets_of_one_request_are_of_its_target_its_user_and_its_tags() -> None:
    budgets = Budgets([Budget(1, "request", "target"), Budget(1, "request", "user"), Budget(1, "request", "tag")])
    of = [claim.key.of for claim in budgets.requests("t", "ann", ("x", "y"))]
    assert of == ["t", "ann", "x", "y"]


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


@pytest.mark.parametrize(
    ("parts", "tokens"),
    [
        ([Text("häuser")], 16 + 7),
        ([Text("\ud800")], 16 + 3),
        ([Image(url="https://x/y.png")], 16 + 65_536),
        ([Image(data=b"x"), Image(data=b"y")], 2 * (16 + 65_536)),
        ([File(data=b"x" * 3072)], 16 + 4 * 4096),
        ([File(data=b"x" * 512)], 16 + 4096 + 2048),
        ([Image(data=b"x"), File(data=b"x" * 1024), File(data=b"y" * 1024)], 3 * 16 + 65_536 + 4 * 4096),
        ([Audio(data=b"x" * 700)], 16 + 700),
        ([Audio(data=b"x" * 700), Audio(data=b"y" * 7)], 32 + 707),
        ([ToolCall("call-1", "find", '{"a": 1}', {"sig": "é"})], 16 + 6 + 4 + 8 + len('{"sig": "\\u00e9"}')),
        ([Reasoning("hmm", {"k": "v"})], 16 + 3 + 10),
        ([ToolResult("call-1", (Text("ok"),), "find")], 16 + (16 + 16 + 2) + 6 + 4),
        ([ToolResult("call-1", (Text("ok"), Image(data=b"x")))], 16 + (16 + 32 + 2) + 6 + 65_536),
        ([Image(data=b"y"), ToolResult("1", (Image(data=b"x"),))], 32 + (16 + 16) + 1 + 2 * 65_536),
        ([ToolResult("call-1", (Audio(data=b"x" * 700),))], 16 + (16 + 16) + 6 + 700),
        ([Audio(data=b"y" * 7), ToolResult("1", (Audio(data=b"x" * 700),))], 32 + (16 + 16) + 1 + 707),
    ],
)
def test_every_part_counts_with_its_bytes_or_the_allowance_of_its_kind(parts: list[Any], tokens: int) -> None:
    assert input_bound(ChatRequest((Message("assistant", tuple(parts)),))) == 64 + 16 + tokens


def test_messages_tools_schemas_and_vendor_options_count_with_their_bytes_and_an_allowance() -> None:
    said = (user("hi"), Message("user", (Text("you"),), name="änn"))
    plain = 64 + (16 + 16 + 2) + (16 + 4 + 16 + 3)
    assert input_bound(ChatRequest(said)) == plain
    schema = {"type": "object", "properties": {}}
    size = len('{"type": "object", "properties": {}}')
    tools = (ToolSpec("find", "looks", schema), ToolSpec("tell", "", schema))
    assert input_bound(ChatRequest(said, tools=tools)) == plain + 1024 + 2 * 64 + (4 + 5 + size) + (4 + size)
    assert input_bound(ChatRequest(said, output=OutputSchema(schema))) == plain + 512 + 2 * size
    assert input_bound(ChatRequest(said, output=OutputSchema())) == plain + 512
    assert input_bound(ChatRequest(said, extra={"openai": {"a": 1}})) == plain + len('{"openai": {"a": 1}}')
    assert input_bound(ChatRequest(said), extra=7) == plain + 7

    class Odd:
        def __str__(self) -> str:
            return "odd!"

    assert input_bound(ChatRequest(said, extra={"x": Odd()})) == plain + len('{"x": "odd!"}')


def test_a_recording_a_tool_has_answered_without_its_size_has_no_bound_and_no_window_gives_it_one() -> None:
    heard = Message("tool", (ToolResult("call-1", (Audio(url="https://x/y.wav"),)),))
    assert input_bound(ChatRequest((heard,)), window=1000) is None
    document = Message("tool", (ToolResult("call-1", (File(url="https://x/y.pdf"),)),))
    assert input_bound(ChatRequest((document,)), window=1000) == 1000
    assert input_bound(ChatRequest((document,))) is None


def test_a_window_bounds_text_and_media_but_adds_what_is_heard() -> None:
    request = ChatRequest((user([Text("x" * 100), Image(data=b"x"), Audio(data=b"y" * 50)]),))
    assert input_bound(request) == 64 + 16 + 48 + 100 + 65_536 + 50
    assert input_bound(request, window=100) == 150
    pictures = ChatRequest((user(Image(data=b"x")), user(Image(data=b"y")), user("hi")))
    assert input_bound(pictures) == 64 + 2 * (16 + 16 + 65_536) + 34
    assert input_bound(request, window=70_000) == 64 + 16 + 48 + 100 + 65_536 + 50


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────

NO_ZONES = "hint: on a machine without time zone data, install `tzdata`"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit_usd": -1}, "Budget.limit_usd must be a number of dollars from 0 to 9 billion, not -1"),
        ({"limit_usd": math.inf}, "Budget.limit_usd must be a number of dollars from 0 to 9 billion, not inf"),
        (
            {"limit_usd": 1, "window": "fortnight"},
            "Budget.window must be one of request, day, week, month, total, not 'fortnight'",
        ),
        ({"limit_usd": 1, "scope": "galaxy"}, "Budget.scope must be one of global, target, user, tag, not 'galaxy'"),
        (
            {"limit_usd": 1, "of": "ann"},
            "Budget.of names a target, user or tag: give scope='target', 'user' or 'tag' with it",
        ),
        (
            {"limit_usd": 1, "scope": "user", "of": 3},
            "Budget.of names a target, user or tag: give scope='target', 'user' or 'tag' with it",
        ),
        ({"limit_usd": 1, "hard": 1}, "Budget.hard must be True or False, not 1"),
        (
            {"limit_usd": 1, "warn_at": (0.5, 1.1)},
            "Budget.warn_at must be shares in (0, 1], such as (0.5, 0.9), or () for none; not (0.5, 1.1)",
        ),
        (
            {"limit_usd": 1, "warn_at": "half"},
            "Budget.warn_at must be shares in (0, 1], such as (0.5, 0.9), or () for none; not 'half'",
        ),
        (
            {"limit_usd": 1, "warn_at": 0.5},
            "Budget.warn_at must be shares in (0, 1], such as (0.5, 0.9), or () for none; not 0.5",
        ),
        (
            {"limit_usd": 1, "timezone": "Mars/Olympus"},
            f"there is no time zone 'Mars/Olympus'; use an IANA name such as 'Europe/Berlin'. {NO_ZONES}",
        ),
        (
            {"limit_usd": 1, "timezone": 3},
            f"Budget.timezone must be an IANA name such as 'Europe/Berlin', not 3. {NO_ZONES}",
        ),
        (
            {"limit_usd": 1, "timezone": "../etc"},
            f"Budget.timezone must be an IANA name such as 'Europe/Berlin', not '../etc'. {NO_ZONES}",
        ),
    ],
)
def test_a_refused_budget_says_what_would_do(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Budget(**wrong)
    assert str(refused.value) == said


def test_limits_and_shares_reach_from_nothing_to_all_there_is() -> None:
    assert Budget(0).limit_nano == 0
    assert Budget("9223372036.854775807").limit_nano == 2**63 - 1
    with pytest.raises(ConfigurationError):
        Budget("9223372036.854775808")
    assert Budget(1, warn_at=[1, 0.25, 0.25]).warn_at == (0.25, 1.0)
    assert Budget(1, warn_at=()).warn_at == ()
    assert Budget(1, timezone=UTC).tz is UTC
    assert Budget(1).tz is UTC


def test_windows_that_never_reset_begin_with_the_epoch() -> None:
    assert window_at("total", 1e9, UTC) == window_at("request", 5.0, UTC) == (0, None)
    budgets = Budgets([Budget(1, "total"), Budget(2, "request", "user"), Budget(3, "day", timezone="Europe/Berlin")])
    assert budgets.hard
    assert [b.window for b in budgets.per_request] == ["request"]
    at = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
    start = int(datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")).timestamp())
    assert budgets.claims(at, "t", "ann") == (
        Claim(budgets.all[0], MeterKey("global", None, "total", "UTC", 0), None),
        Claim(budgets.all[2], MeterKey("global", None, "day", "Europe/Berlin", start), start + 86400),
    )
    assert budgets.requests("t", "ann", ()) == (Claim(budgets.all[1], MeterKey("user", "ann", "request", "", 0), None),)
    assert budgets.requests("t", None, ()) == ()
    assert not Budgets([Budget(1, hard=False)]).hard
    assert budgets.window(budgets.all[2], at) is budgets.window(budgets.all[2], at + 1), "worked out once"


def test_the_least_of_the_hard_limits_on_a_meter_is_its_limit() -> None:
    other = KEY._replace(scope="user", of="ann")
    claims = [claim(50), claim(40), claim(10, hard=False), claim(5, key=other)]
    assert hard_limit(claims, KEY) == 40
    assert hard_limit(claims, other) == 5
    assert hard_limit(claims[2:3], KEY) is None


def test_a_soft_budget_before_a_hard_one_stands_in_nobodys_way() -> None:
    assert isinstance(decide(Ask(5, 5), [claim(1, hard=False), claim(4)], {}), Denial)
    assert decide(Ask(5, 9), [claim(7), claim(6)], {}) == Grant(6)
    assert decide(Ask(5, 9), [claim(9)], {}) == Grant(9)
    assert decide(Ask(5, 9), [claim(5)], {}) == Grant(5), "just enough is enough"
    assert decide(Ask(5, 9), [claim(8)], {KEY: Reading(1, 2, 4)}) == Denial(claim(8), 5, 2, 5)
    assert decide(None, [claim(9)], {KEY: Reading(1, 2, 4)}) == Denial(claim(9), 5, 2, None)


def test_a_report_shows_every_meter_in_dollars_with_its_end() -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    monthly = BudgetStatus(
        Budget(10), None, Reading(4_000_000_000, 1_000_000_000, 1_500_000_000, 250_000_000), at, at + timedelta(30)
    )
    soft = BudgetStatus(
        Budget("0.5", "total", "user", hard=False, name="<" + "n" * 50), "u" * 20, Reading(600_000_000), None, None
    )
    report = BudgetReport([monthly, soft])
    blank = " " * 20
    assert str(report).splitlines() == [
        f"budget{blank}               of{blank}spent $    pending $      limit $       %  resets",
        f"$10 a month{blank * 2}           5.500000     1.000000    10.000000    55.0  2026-12-01 00:00 UTC",
        f"<{'n' * 39} {'u' * 16}     0.600000     0.000000     0.500000   120.0  never  (soft)",
    ]
    assert str(BudgetReport()) == "no budgets"
    assert report._repr_html_() == (
        "<table><tr><th>budget</th><th>of</th><th>spent $</th><th>pending $</th><th>limit $</th><th>spent</th>"
        "<th>resets</th></tr>"
        "<tr><td>$10 a month</td><td></td><td>5.500000</td><td>1.000000</td><td>10.000000</td>"
        "<td><progress max='100' value='55.0'></progress> 55.0 %</td><td>2026-12-01 00:00 UTC</td></tr>"
        f"<tr><td>&lt;{'n' * 50} (soft)</td><td>{'u' * 20}</td><td>0.600000</td><td>0.000000</td><td>0.500000</td>"
        "<td><progress max='100' value='100.0'></progress> 120.0 %</td><td>never</td></tr></table>"
    )
    assert report.rows() == [
        {
            "budget": "$10 a month", "scope": "global", "of": None, "window": "month", "hard": True, "limit_usd": 10.0,
            "spent_usd": 5.5, "unknown_usd": 1.5, "pending_usd": 1.0, "remaining_usd": 3.5, "overcharged_usd": 0.25,
            "percent": 55.0, "exhausted": False, "resets_at": "2026-12-01T00:00:00+00:00",
        },
        {
            "budget": "<" + "n" * 50, "scope": "user", "of": "u" * 20, "window": "total", "hard": False,
            "limit_usd": 0.5, "spent_usd": 0.6, "unknown_usd": 0.0, "pending_usd": 0.0, "remaining_usd": 0.0,
            "overcharged_usd": 0.0, "percent": 120.0, "exhausted": True, "resets_at": None,
        },
    ]  # fmt: skip
    third = BudgetStatus(Budget(3), None, Reading(1_000_000_000), None, None)
    assert third.as_dict()["percent"] == 33.333


def test_dollars_are_said_as_short_as_they_can_be() -> None:
    said = [str(Budget(limit, "total")) for limit in ("100", "0.5", "0.000012", "10.10", "0")]
    assert said == ["$100 in all", "$0.5 in all", "$0.000012 in all", "$10.1 in all", "$0 in all"]


def test_a_budget_status_says_what_is_left_in_percent_and_prints_as_a_table() -> None:
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
