"""A vendor's bill against the ledger: shapes are read, differences posted once, unknown outcomes resolved."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import Budget, ChatRequest, ConfigurationError, MemoryLedger, Price, Router, Target, Usage, user
from shared_core.errors import ErrorKind, InvalidExport
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.ledger.exports import model_key, read_export
from shared_core.ledger.reconcile import reconcile
from shared_core.ledger.sqlite import SQLiteLedger
from shared_core.testing import ScriptedProvider
from tools.money_trials.place import folder

AT = datetime(2026, 11, 18, 9, tzinfo=UTC).timestamp()
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
DAY = date(2026, 11, 18)

# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

START = 1_763_424_000  # 2025-11-18
OPENAI_USAGE = {
    "object": "page",
    "data": [
        {
            "object": "bucket", "start_time": START, "end_time": START + 86400,
            "results": [
                {"object": "organization.usage.completions.result", "input_tokens": 1000, "output_tokens": 500,
                 "input_cached_tokens": 800, "num_model_requests": 5, "model": "gpt-5-mini-2025-08-07"},
                {"object": "organization.usage.completions.result", "input_tokens": 1, "output_tokens": 2,
                 "num_model_requests": 1, "model": "gpt-5-mini"},
            ],
        }
    ],
    "has_more": False, "next_page": None,
}  # fmt: skip
OPENAI_COSTS = {
    "object": "page",
    "data": [
        {
            "object": "bucket", "start_time": START,
            "results": [
                {"object": "organization.costs.result", "amount": {"value": "0.000004500000000", "currency": "usd"},
                 "line_item": "gpt-4o-mini-2024-07-18, input"},
                {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"},
                 "line_item": "evals | gpt-4o-mini, cached input"},
            ],
        },
        {"object": "bucket", "start_time": START + 86400, "results": []},
    ],
}  # fmt: skip
ANTHROPIC_USAGE = {
    "data": [
        {
            "starting_at": "2025-11-18T00:00:00Z", "ending_at": "2025-11-19T00:00:00Z",
            "results": [
                {"uncached_input_tokens": 1500, "cache_read_input_tokens": 200, "output_tokens": 500,
                 "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
                 "server_tool_use": {"web_search_requests": 10}, "model": "claude-sonnet-4-20250514"},
            ],
        }
    ],
    "has_more": False, "next_page": None,
}  # fmt: skip
ANTHROPIC_COSTS = {
    "data": [
        {
            "starting_at": "2025-11-18T00:00:00Z", "ending_at": "2025-11-19T00:00:00Z",
            "results": [{"amount": "123.45", "currency": "USD", "model": "claude-sonnet-4-5", "description": "…"}],
        }
    ]
}  # fmt: skip
OPENAI_COST_CSV = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,line_item,project_id\n"
    f"{START},{START + 86400},2025-11-18T00:00:00+00:00,2025-11-19T00:00:00+00:00,,,,,\n"
    f'{START},{START + 86400},2025-11-18T00:00:00,x,0.00383598000000000000,usd,10,"gpt-5-nano, input",p\n'
    f'{START},{START + 86400},2025-11-18T00:00:00,x,0.5,usd,10,"gpt-5-nano, output",p\n'
)
OPENAI_USAGE_CSV = (
    "start_time,end_time,start_time_iso,num_model_requests,model,batch,input_tokens,output_tokens,input_cached_tokens\n"
    f"{START},{START + 86400},2025-11-18T00:00:00+00:00,7,gpt-5-mini-2025-08-07,False,120,30,20\n"
)
ANTHROPIC_USAGE_CSV = (
    "\ufeffusage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count\n"
    '2025-11-18,claude-opus-4-5,"Key, the first",Default,standard,≤ 200k,100,1,2,3,50,0\n'
)
ANTHROPIC_COST_CSV = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type\n"
    "2025-11-18,Claude Haiku 4.5,Default,k,message,≤ 200k,input_no_cache,0.05,0.05,token\n"
    "2025-11-18,Claude Haiku 4.5,Default,k,message,≤ 200k,output,0.02,0.03,token\n"
)
REQUESTS_CSV = (
    "request_id,timestamp,model,prompt_tokens,completion_tokens,total_tokens,cost_usd\n"
    "chatcmpl-1,2025-11-18 10:30:45,gpt-4o,150,75,225,$0.0012\n"
    "chatcmpl-2,2025-11-18 23:59:59,gpt-4o,200,100,300,0.0450\n"
)


@pytest.fixture
def tmp_path():
    """In memory, where there is such a folder: what is tested waits for no disk."""
    with folder("test") as place:
        yield Path(place)


@pytest.mark.parametrize(
    ("export", "model", "cost", "tokens"),
    [
        (OPENAI_USAGE, "gpt-5-mini-2025-08-07", None, (1001, 502, 800, 0)),
        (OPENAI_COSTS, "gpt-4o-mini-2024-07-18", 60_004_500, (None, None, 0, 0)),
        (ANTHROPIC_USAGE, "claude-sonnet-4-20250514", None, (3200, 500, 200, 1500)),
        (ANTHROPIC_COSTS, "claude-sonnet-4-5", 1_234_500_000, (None, None, 0, 0)),
        (OPENAI_COST_CSV, "gpt-5-nano", 503_835_980, (None, None, 0, 0)),
        (OPENAI_USAGE_CSV, "gpt-5-mini-2025-08-07", None, (120, 30, 20, 0)),
        (OPENAI_USAGE_CSV.replace(",", "\t"), "gpt-5-mini-2025-08-07", None, (120, 30, 20, 0)),
        (ANTHROPIC_USAGE_CSV, "claude-opus-4-5", None, (106, 50, 3, 3)),
        (ANTHROPIC_COST_CSV, "Claude Haiku 4.5", 70_000_000, (None, None, 0, 0)),
        (REQUESTS_CSV, "gpt-4o", 46_200_000, (350, 175, 0, 0)),
    ],
    ids=["openai usage", "openai costs", "anthropic usage", "anthropic costs", "openai cost csv", "openai usage csv",
         "openai usage tsv", "anthropic usage csv", "anthropic cost csv", "a row per request"],
)  # fmt: skip
def test_every_shape_of_export_is_read(export, model, cost, tokens, tmp_path):
    """As a file, and where it is JSON, as a value, a list of pages and a line each."""
    path = tmp_path / "export"
    path.write_text(json.dumps(export, indent=1) if isinstance(export, dict) else export, encoding="utf-8")
    ways = [path, str(path)]
    if isinstance(export, dict):
        ways += [export, [export]]
        lines = tmp_path / "export.jsonl"
        lines.write_text("\n".join(json.dumps(bucket) for bucket in export["data"]), encoding="utf-8")
        ways.append(lines)
    for source in ways:
        (billed,) = read_export(source)
        assert (billed.day, billed.model, billed.cost_nano) == (date(2025, 11, 18), model, cost)
        assert (billed.input_tokens, billed.output_tokens, billed.cached_tokens, billed.cache_write_tokens) == tokens


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        (ANTHROPIC_COST_CSV + "2025-11-19,Claude,D,k,m,c,output,abc,0,token\n", 4, "cost_usd", "no amount of money"),
        (ANTHROPIC_COST_CSV + "2025-11-19,Claude,D,k,m,c,output,nan,0,token\n", 4, "cost_usd", "no amount of money"),
        (ANTHROPIC_COST_CSV + "soon,Claude,D,k,m,c,output,1,0,token\n", 4, "usage_date_utc", "no day"),
        (ANTHROPIC_COST_CSV + "2025-11-19,Claude\n", 4, "workspace", "2 cells"),
        (OPENAI_COST_CSV.replace('usd,10,"gpt-5-nano, o', 'eur,10,"gpt-5-nano, o'), 4, "amount_currency", "USD"),
        (OPENAI_USAGE_CSV.replace(",120,", ",-1,"), 2, "input_tokens", "no count of tokens"),
        (OPENAI_USAGE_CSV.replace(",120,", ",1.5,"), 2, "input_tokens", "no count of tokens"),
        ("colour,size\nred,1\n", 2, "date", "there is no day"),
        ("date,model\n2026-01-01,x\n", 2, "cost_usd", "no cost nor count of tokens; .* one of amount_value, cost_usd"),
        ("<html><body>Please log in</body></html>\n", 1, "date", "there is no day"),
        ("date,Cost (EUR)\n2026-01-01,1\n", 2, "cost_usd", "no cost nor count of tokens"),
        ("date,date,cost\n1,2,3\n", 1, "date", "twice"),
        ('date,cost\n2026-01-01,"1\n', 2, None, "unexpected end"),
        ("", None, None, "empty"),
        ('{"data": [\n  {"object": "bucket", "start_time": 1, "results": [}\n', 2, "53", "Expecting value"),
        (json.dumps({"data": [{"start_time": START, "results": [{"amount": {"value": "x"}}]}]}, indent=1),
         8, "data[0].results[0].amount.value", "no amount of money"),
        ('{"data": [{"starting_at": "2025-11-18",\n "results": [{"model": "c"}]}]}', 2,
         "data[0].results[0].uncached_input_tokens", "missing"),
        ('{"data": [{"object": "bucket", "start_time": true, "results": []}]}', 1, "data[0].start_time", "no day"),
        ('{"error": {"message": "no such key"}}', 1, "error", "refused the export"),
        ("[1, 2]", 1, "[0]", "no page, bucket or row"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_file_is_named_with_line_and_column(text, line, column, said, tmp_path):
    """Nothing is posted from a file that is not understood to its end."""
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    ledger = MemoryLedger()
    with pytest.raises(InvalidExport, match=said) as caught:
        ledger.reconcile(path, "openai")
    assert (caught.value.line, caught.value.column) == (line, column)
    assert not ledger.entries()
    if line is not None:
        assert f"bad.csv:{line}: " in str(caught.value)


def test_a_file_that_is_not_text_or_not_there_is_told(tmp_path):
    """With its name."""
    (tmp_path / "binary").write_bytes(b"date,cost\n\xff\xfa\n")
    with pytest.raises(InvalidExport, match="binary:2: it is not text"):
        read_export(tmp_path / "binary")
    with pytest.raises(InvalidExport, match="No such file"):
        read_export(tmp_path / "nothing.csv")
    with pytest.raises(ConfigurationError, match="a path, a page or rows"):
        read_export(7)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("Claude Haiku 4.5", "claude-haiku-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("Claude 3.5 Sonnet 2024-10-22", "claude-3-5-sonnet-latest"),
    ],
)
def test_a_bill_and_an_answer_may_name_a_model_differently(a, b):
    """Dates, dots, capitals and blanks are no difference; a size is one."""
    assert model_key(a) == model_key(b)
    assert model_key("gpt-4o-mini") != model_key("gpt-4o")


# ── posting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def entry(cost=1_000, status=EntryStatus.POSTED, usage=None, **more) -> LedgerEntry:
    given_ = {
        "execution": "x", "attempt": 1, "target": "openai:gpt", "provider": "openai", "model": "gpt-2026-01-01",
        "at": AT, "outcome": "answered", "status": status, "usage": usage or Usage(10, 5), "cost_nano": cost,
    }  # fmt: skip
    return LedgerEntry(**{**given_, **more})


def unknown(bound: int, **more) -> LedgerEntry:
    return entry(None, EntryStatus.UNKNOWN, Usage(3, estimated=True), outcome="failed", bound_nano=bound, **more)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path):
    """Either ledger."""
    if request.param == "memory":
        yield MemoryLedger()
    else:
        with SQLiteLedger(tmp_path / "costs.db") as opened:
            yield opened


def bill(nano: int, model="gpt", day=DAY) -> list[dict]:
    return [{"date": day.isoformat(), "model": model, "cost_usd": f"{nano / 1e9:.9f}"}]


def test_a_difference_is_posted_once_as_a_row_of_its_own(ledger):
    """Nothing is changed; importing the same bill again changes nothing."""
    ledger.record(entry(1_000))
    ledger.record(entry(3_000))
    before = ledger.reconcile(bill(4_500), "openai", now=NOW, dry_run=True)
    assert (before.posted, before.difference_usd) == (1, pytest.approx(5e-7))
    assert len(ledger.entries()) == 2, "a dry run posts nothing"
    found = ledger.reconcile(bill(4_500), "openai", now=NOW)
    assert [line.difference_nano for line in found.lines] == [500]
    *old, new = ledger.entries()
    assert [row.cost_nano for row in old] == [1_000, 3_000]
    assert (new.purpose, new.cost_nano, new.corrects, new.at) == (Purpose.CORRECTION, 500, old[1].id, AT)
    assert "openai billed $0.000004500 for 2026-11-18" in new.reason
    assert ledger.costs(now=NOW).by_day == {"2026-11-18": 4_500}
    again = ledger.reconcile(bill(4_500), "openai", now=NOW)
    assert (again.posted, again.difference_usd) == (0, 0.0)
    assert len(ledger.entries()) == 3


def test_a_lower_bill_is_taken_from_the_dearest_rows(ledger):
    """None of which comes to less than nothing."""
    for cost in (1_000, 5_000, 3_000):
        ledger.record(entry(cost))
    ledger.reconcile(bill(500), "openai", now=NOW)
    total = ledger.costs(now=NOW).total
    assert (total.cost_nano, total.corrected_nano) == (500, -8_500)
    nets = {row.id: row.cost_nano for row in ledger.entries() if row.corrects is None}
    for row in ledger.entries():
        if row.corrects is not None:
            nets[row.corrects] += row.cost_nano
    assert sorted(nets.values()) == [0, 0, 500]


def test_unknown_outcomes_are_resolved_up_to_their_bounds(ledger):
    """In proportion; what the bill has beyond all bounds is posted too."""
    ledger.record(entry(1_000))
    ledger.record(unknown(300))
    ledger.record(unknown(100))
    found = ledger.reconcile(bill(1_200), "openai", now=NOW)
    assert (found.resolved, found.lines[0].unknown_nano) == (2, 400)
    total = ledger.costs(now=NOW).total
    assert (total.cost_nano, total.unknown_nano, total.unknown) == (1_200, 0, 0)
    assert sorted(row.cost_nano for row in ledger.entries() if row.corrects) == [50, 150]
    more = ledger.reconcile(bill(1_250), "openai", now=NOW)
    assert (more.posted, more.resolved) == (1, 0), "a later bill is compared with what the first one made"
    assert ledger.costs(now=NOW).total.cost_nano == 1_250


def test_an_unknown_outcome_that_was_not_billed_cost_nothing(ledger):
    """Its bound is taken back."""
    ledger.record(entry(1_000))
    ledger.record(unknown(900))
    ledger.reconcile(bill(1_000), "openai", now=NOW)
    total = ledger.costs(now=NOW).total
    assert (total.cost_nano, total.unknown_nano) == (1_000, 0)
    assert ledger.reconcile(bill(1_000), "openai", now=NOW).posted == 0


def test_only_the_vendors_rows_of_the_day_and_model_are_compared(ledger):
    """Other providers, days, models, probes of today: as they were."""
    ledger.record(entry(1_000))
    ledger.record(entry(7_000, provider="anthropic"))
    ledger.record(entry(9_000, at=AT - 86400))
    ledger.record(entry(5_000, model="other"))
    ledger.record(entry(0, purpose=Purpose.CACHE, bound_nano=77))
    found = ledger.reconcile(bill(2_000), "openai", now=NOW)
    assert [(line.model, line.difference_nano, line.note) for line in found.lines] == [
        ("gpt-2026-01-01", 1_000, ""),
        ("other", 0, "not in the export: left alone"),
    ]
    assert ledger.costs(now=NOW).total.cost_nano == 23_000


def test_a_day_that_is_not_over_is_left_alone(ledger):
    """Its bill is not whole."""
    ledger.record(entry(1_000, at=NOW - 60))
    found = ledger.reconcile(bill(5, day=date(2026, 11, 20)), "openai", now=NOW)
    assert (found.posted, found.lines[0].note) == (0, "not over yet: left alone")


@pytest.mark.parametrize(
    "head", ["Date,Model,Cost (USD)", "day,model,amount usd", "DATE;MODEL;Total Cost", "date,model,cost_usd"]
)
def test_heads_are_read_however_they_are_spelled(ledger, head, tmp_path):
    ledger.record(entry(1_000))
    path, comma = tmp_path / "bill.csv", ";" if ";" in head else ","
    path.write_text(f"{head}\n{comma.join([DAY.isoformat(), 'gpt', '0.000003'])}\n", encoding="utf-8")
    assert ledger.reconcile(path, "openai").posted == 1
    assert ledger.costs().total.cost_nano == 3_000


def test_a_vendor_that_has_no_rows_is_told_who_has(ledger):
    ledger.record(entry(1_000))
    found = ledger.reconcile(bill(5_000), "opnai")
    assert (found.posted, found.lines[0].note) == (
        0,
        "no rows of 'opnai' on that day (the ledger has 'openai'): left alone",
    )


def test_what_was_billed_without_any_row_is_posted_only_if_asked(ledger):
    """An account may serve others, too."""
    found = ledger.reconcile(bill(5_000), "openai", now=NOW)
    assert (found.posted, found.lines[0].note) == (0, "no rows: left alone")
    assert ledger.reconcile(bill(5_000), "openai", now=NOW, adopt=True).posted == 1
    report = ledger.costs(now=NOW)
    assert (report.total.cost_nano, report.total.attempts) == (5_000, 0)
    assert ledger.reconcile(bill(5_000), "openai", now=NOW, adopt=True).posted == 0, "once"


def test_a_bill_that_is_not_told_by_model_is_compared_with_the_whole_day(ledger):
    """The daily extract of the dashboard."""
    ledger.record(entry(1_000))
    ledger.record(entry(2_000, model="other"))
    ledger.reconcile([{"date": "2026-11-18", "cost_usd": "0.000004"}], "openai", now=NOW)
    assert ledger.costs(now=NOW).total.cost_nano == 4_000


def test_a_bill_in_tokens_is_priced_where_it_differs(ledger):
    """Equal tokens are no difference, whatever rounding did to each row; more tokens are priced by class."""
    ledger.record(entry(1_001, usage=Usage(10, 5)))
    row = {"date": "2026-11-18", "model": "gpt", "input_tokens": 10, "output_tokens": 5}
    prices = {"gpt": Price(input=100, output=200, cached=10)}
    assert ledger.reconcile([row], "openai", now=NOW, prices=prices).posted == 0
    more = {**row, "input_tokens": 30, "cached_tokens": 5, "output_tokens": 6}
    found = ledger.reconcile([more], "openai", now=NOW, prices=prices)
    assert found.lines[0].difference_nano == 15 * 100_000 + 5 * 10_000 + 200_000
    assert ledger.reconcile([more], "openai", now=NOW, prices=prices).posted == 0
    other = ledger.reconcile([{**more, "model": "gpt", "output_tokens": 9}], "openai", now=NOW)
    assert (other.posted, other.lines[0].note) == (0, "tokens at an unknown price: left alone")


def test_an_import_of_many_hands_posts_once(tmp_path):
    """Two processes, or threads, that import the same bill at the same moment post one difference."""
    path = tmp_path / "costs.db"
    with SQLiteLedger(path) as one, SQLiteLedger(path) as two:
        for _ in range(20):
            one.record(entry(1_000))
            one.record(unknown(500))
        one.flush()
        with ThreadPoolExecutor(4) as hands:
            list(hands.map(lambda ledger: ledger.reconcile(bill(27_000), "openai", now=NOW), (one, two, one, two)))
        assert one.costs(now=NOW).total.cost_nano == 27_000


def test_a_budget_gets_back_what_was_not_billed(tmp_path):
    """An unknown outcome counts at its bound until the bill says otherwise."""
    target = Target(
        provider=ScriptedProvider(ErrorKind.TRANSIENT, "ok", name="openai", model="gpt"),
        name="a",
        price=Price(input=1, output=1),
    )
    budget = Budget(1, window="total")
    with Router([target], ledger=str(tmp_path / "costs.db"), budgets=[budget]) as router:
        router.invoke(ChatRequest((user("Hi"),), max_tokens=1000))
        (before,) = router.budget_status()
        assert before.unknown_usd > 0.001
        reported = router.costs().total.cost_nano
        day = datetime.fromtimestamp(router.ledger.entries()[0].at, UTC).date()
        later = router.ledger.entries()[0].at + 2 * 86400
        reconcile(router.ledger, bill(reported, model="gpt", day=day), "openai", now=later)
        (after,) = router.budget_status()
        assert (after.unknown_usd, after.spent_usd) == (0.0, pytest.approx(reported / 1e9))


def test_a_router_compares_with_its_own_prices(tmp_path):
    """From its public face: a file in, a table out."""
    provider = ScriptedProvider("three words here", name="openai", model="gpt")
    with Router([Target(provider=provider, name="a", price=Price(input=1, output=2))]) as router:
        router.invoke("Hi")
        path = tmp_path / "usage.csv"
        path.write_text("date,model,input_tokens,output_tokens\n2001-01-01,gpt,10,3\n")
        found = router.reconcile(path, vendor="openai", dry_run=True)
    assert "(all)" not in str(found)
    assert "no rows: left alone" in str(found)
    assert "<table>" in found._repr_html_()
    assert found.rows()[0]["billed_usd"] == pytest.approx(16e-6)


def test_a_ledger_that_takes_no_corrections_says_so():
    """A user's own, for example."""

    class Mine:
        def record(self, entry):
            pass

    with pytest.raises(ConfigurationError, match="takes no corrections"):
        reconcile(Mine(), [], "openai", now=NOW)


rows = st.lists(
    st.one_of(
        st.integers(0, 10**6).map(entry),
        st.integers(1, 10**6).map(unknown),
        st.integers(0, 10**6).map(lambda cost: entry(cost, EntryStatus.ESTIMATED, Usage(4, 4, estimated=True))),
        st.builds(lambda: entry(0, EntryStatus.VOIDED, Usage(), outcome="failed")),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(rows, st.lists(st.integers(0, 5 * 10**6), min_size=1, max_size=3))
def test_after_an_import_the_ledger_has_the_bills_cost(booked, bills):
    """Whatever the rows and the bill, to the nano-dollar; no row below nothing; a second import posts nothing."""
    ledger = MemoryLedger()
    for row in booked:
        ledger.record(row)
    for nano in bills:
        ledger.reconcile(bill(nano), "openai", now=NOW)
        total = ledger.costs(now=NOW).total
        assert total.cost_nano + total.estimated_nano == nano
        assert (total.unknown_nano, total.unknown) == (0, 0)
        assert ledger.reconcile(bill(nano), "openai", now=NOW).posted == 0
        nets: dict[int, int] = {}
        for row in ledger.entries():
            number = row.id if row.corrects is None else row.corrects
            nets[number] = nets.get(number, 0) + (row.cost_nano or 0)
        assert min(nets.values()) >= 0
