"""Budgets through the router: who is refused, what is set on the wire, what is told, what becomes of what was held."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from shared_core import (
    AllTargetsFailed,
    Answer,
    Budget,
    BudgetExceeded,
    BudgetExhausted,
    BudgetOvercharged,
    BudgetWarning,
    Capabilities,
    ChatRequest,
    ConfigurationError,
    DeadlineExceeded,
    File,
    Image,
    MemoryLedger,
    Price,
    RequestRejected,
    RetryPolicy,
    Router,
    SQLiteLedger,
    StreamBroken,
    Target,
    Text,
    Timeouts,
    UnknownOption,
    Usage,
    user,
)
from shared_core.chat.events import Finished, Started, TextDelta
from shared_core.errors import ErrorKind
from shared_core.testing import Broken, ScriptedProvider, Silence, VirtualClock

ASK = ChatRequest((user("hello"),), max_tokens=100)
DEAR = Price(input_per_mtok=1000, output_per_mtok=1000)
"""A tenth of a cent for each token."""

FACES: dict[str, Callable[[Router, ChatRequest], Any]] = {
    "invoke": lambda router, request: router.invoke(request).text,
    "ainvoke": lambda router, request: asyncio.run(_ainvoked(router, request)),
    "stream": lambda router, request: "".join(e.text for e in router.stream(request) if isinstance(e, TextDelta)),
    "astream": lambda router, request: asyncio.run(_astreamed(router, request)),
}


async def _ainvoked(router: Router, request: ChatRequest) -> str:
    return (await router.ainvoke(request)).text


async def _astreamed(router: Router, request: ChatRequest) -> str:
    return "".join([e.text async for e in router.astream(request) if isinstance(e, TextDelta)])


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    return None if request.param == "memory" else tmp_path / "costs.db"


@pytest.fixture(params=FACES)
def ask(request: pytest.FixtureRequest) -> Callable[[Router, ChatRequest], Any]:
    return FACES[request.param]


def paid(*script: Any, name: str = "paid", price: Price | None = DEAR, **able: Any) -> Target:
    provider = ScriptedProvider(*script or ("fine",), name=name, capabilities=Capabilities(**able))
    return Target(provider=provider, name=name, price=price)


def free(name: str = "free") -> Target:
    return Target(provider=ScriptedProvider("for nothing", name=name), name=name, price=Price())


def router_of(*targets: Target, budgets: Any, **options: Any) -> Router:
    return Router(targets, budgets=budgets, seed=1, retry=RetryPolicy(total=0), **options)


def held(router: Router) -> tuple[float, float]:
    (status,) = router.budget_status()
    return status.spent_usd, status.pending_usd


# ── who is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_over_budget_a_target_that_costs_nothing_answers_and_the_journal_says_why(ledger: Any, ask: Any) -> None:
    with router_of(paid(), free(), budgets=[Budget("0.25")], ledger=ledger) as router:
        assert ask(router, ASK) == "fine"
        spent, pending = held(router)
        assert 0 < spent < 0.02
        assert pending == 0
        big = ASK.replace(max_tokens=1000)
        assert ask(router, big) == "for nothing"
        assert router.last is not None
        (skip,) = router.last.skips
        assert skip.target == "paid"
        assert "over budget: $0.25 a month" in skip.reason
        assert held(router) == (spent, 0)


def test_without_one_the_refusal_says_which_budget_what_was_spent_needed_and_when_it_resets(
    ledger: Any, ask: Any
) -> None:
    budget = Budget("0.25", "month", timezone="Europe/Berlin", name="the team's")
    with router_of(paid(), budgets=[budget], ledger=ledger) as router:
        with pytest.raises(BudgetExceeded) as caught:
            ask(router, ASK.replace(max_tokens=1000))
        error = caught.value
        assert isinstance(error, AllTargetsFailed)
        assert error.budget is budget
        assert (error.spent, error.pending) == (0.0, 0.0)
        assert error.needed is not None
        assert 1.0 < error.needed < 1.3
        assert error.resets_at is not None
        assert (error.resets_at.day, error.resets_at.hour, str(error.resets_at.tzinfo)) == (1, 0, "Europe/Berlin")
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        assert "the team's" in str(error)
        assert "resets at" in str(error)
        assert "hint: it would not fit an unspent budget either: lower max_tokens" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (again.needed, again.resets_at, str(again)) == (error.needed, error.resets_at, str(error))
        assert router.targets[0].provider.calls == 0  # type: ignore[union-attr]  # scripted


def test_a_failure_of_those_within_budget_is_told_with_it() -> None:
    broken = Target(provider=ScriptedProvider(ErrorKind.OVERLOADED, name="free"), name="free", price=Price())
    with router_of(paid(), broken, budgets=[Budget("0.01")]) as router:
        with pytest.raises(BudgetExceeded) as caught:
            router.invoke(ASK)
        assert [getattr(e, "kind", None) for e in caught.value.errors] == [ErrorKind.OVERLOADED]
        assert caught.value.__cause__ is caught.value.errors[0]


def test_a_request_at_fault_stays_a_rejected_request_and_lost_time_stays_lost_time() -> None:
    wrong = Target(provider=ScriptedProvider(ErrorKind.BAD_REQUEST, name="free"), name="free", price=Price())
    with router_of(paid(), wrong, budgets=[Budget("0.01")]) as router, pytest.raises(AllTargetsFailed) as caught:
        router.invoke(ASK)
    assert not isinstance(caught.value, BudgetExceeded)
    assert isinstance(caught.value.__cause__, RequestRejected)
    clock = VirtualClock()
    late = Target(provider=ScriptedProvider(Silence(99), name="free", clock=clock), name="free", price=Price())
    with router_of(paid(), late, budgets=[Budget("0.01")], clock=clock, timeouts=Timeouts(total=5)) as router:
        with pytest.raises(DeadlineExceeded):
            router.invoke(ASK)


def test_an_unknown_price_is_refused_under_a_hard_budget_and_unknown_under_a_soft_one(ask: Any) -> None:
    unknown = Target(provider=ScriptedProvider("who knows", name="odd"), name="odd")
    with router_of(unknown, budgets=[Budget(1000)]) as router:
        with pytest.raises(BudgetExceeded, match=r"^odd: its price is unknown.* hint: .*price=Price\(") as caught:
            ask(router, ASK)
        assert caught.value.needed is None
        assert "resets" not in str(caught.value), "tomorrow it is no better known"
    with router_of(unknown, budgets=[Budget(1000, hard=False)]) as router:
        assert ask(router, ASK) == "who knows"
        (row,) = router.ledger.entries()
        assert (row.cost_nano, row.cost_usd, row.price_version) == (None, None, None)


def test_what_has_no_known_size_is_refused_under_a_hard_budget() -> None:
    request = ChatRequest((user([Text("look"), Image(url="https://x/y.png")]),), max_tokens=10)
    paper = ChatRequest((user([Text("read"), File(url="https://x/y.pdf")]),), max_tokens=10)
    with router_of(paid(pdfs=True), budgets=[Budget(1000)]) as router:
        with pytest.raises(
            BudgetExceeded, match=r"the size of what the request refers to is unknown.* hint: send its bytes"
        ):
            router.invoke(paper)
    with router_of(paid(images=True), budgets=[Budget(1000)]) as router:
        assert router.invoke(request).text == "fine", "a picture has a known most"


def test_scopes_count_for_whom_they_are_and_nobody_else() -> None:
    budgets = [Budget("0.23", scope="user"), Budget("0.23", scope="tag", of="batch")]
    with router_of(paid(), budgets=budgets) as router:
        for who in ("ann", "bob", None):
            assert router.invoke(ASK.replace(user=who)).text == "fine"
        with pytest.raises(BudgetExceeded, match="user 'ann'"):
            router.invoke(ASK.replace(user="ann", max_tokens=140))
        assert router.invoke(ASK.replace(tags=("batch",), user=None)).text == "fine"
        with pytest.raises(BudgetExceeded, match="tag 'batch'"):
            router.invoke(ASK.replace(tags=("batch",), max_tokens=140))
        statuses = {(s.budget.scope, s.of): s.spent_usd for s in router.budget_status()}
        assert set(statuses) == {("user", "ann"), ("user", "bob"), ("tag", "batch")}
        assert all(value > 0 for value in statuses.values())


# ── the limit on the wire ────────────────────────────────────────────────────────────────────────────────────────────


def sent(target: Target) -> list[int | None]:
    return [request.max_tokens for request in target.provider.requests]  # type: ignore[union-attr]  # scripted


def test_a_hard_budget_sets_a_limit_on_the_wire_where_the_request_has_none_and_says_so(ask: Any) -> None:
    target = paid()
    with router_of(target, budgets=[Budget(100)]) as router:
        ask(router, ASK.replace(max_tokens=None))
        ask(router, ASK)
        assert sent(target) == [8192, 100]
        assert router.last is not None
        assert "capped_at" not in router.last.metadata()["attempts"][0]
    with router_of(target := paid(reasoning=True, max_output=20_000), budgets=[Budget(100)]) as router:
        ask(router, ASK.replace(max_tokens=None))
        assert sent(target) == [20_000]
        assert router.last is not None
        assert router.last.metadata()["attempts"][0]["capped_at"] == 20_000


def test_the_limit_is_lowered_to_what_is_left_but_not_below_use(ask: Any) -> None:
    target = paid(of_tokens(5))
    with router_of(target, budgets=[Budget(2)]) as router:
        ask(router, ASK.replace(max_tokens=None))
        (limit,) = sent(target)
        assert limit is not None
        assert 1800 < limit < 2000
    with router_of(target := paid(), budgets=[Budget("0.3")]) as router, pytest.raises(BudgetExceeded):
        ask(router, ASK.replace(max_tokens=None))
    assert sent(target) == []


def of_tokens(tokens: int) -> Answer:
    return Answer("fine", usage=Usage(5, tokens))


def test_without_a_hard_budget_nothing_is_set() -> None:
    target = paid()
    with router_of(target, budgets=[Budget(1, hard=False)]) as router:
        router.invoke(ASK.replace(max_tokens=None))
    assert sent(target) == [None]


# ── the budget of one request ────────────────────────────────────────────────────────────────────────────────────────


def test_one_request_may_not_spend_more_than_its_own_budget_whatever_it_tries(ask: Any, ledger: Any) -> None:
    targets = [paid(ErrorKind.TRANSIENT, name=f"t{n}") for n in range(5)]
    with router_of(*targets, budgets=[Budget("0.5", "request")], ledger=ledger) as router:
        with pytest.raises(BudgetExceeded) as caught:
            ask(router, ASK)
        asked = [t.provider.calls for t in targets]  # type: ignore[union-attr]  # scripted
        assert sum(asked) == 2, "each may cost some $0.2, and nobody knows whether it did"
        assert caught.value.budget.window == "request"
        with pytest.raises(BudgetExceeded):
            ask(router, ASK)
        assert router._books.money is not None
        assert not router._books.money._purses, "nothing is kept of requests that have ended"


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_kept_of_a_request_that_has_ended_however_it_did() -> None:
    """Answered by another target, cancelled, abandoned or failed: a router that runs for a year keeps none of them."""
    paid, free = ScriptedProvider("paid"), ScriptedProvider("free at last", name="free")
    budgets = [Budget(limit_usd=1e-9, window="day"), Budget(limit_usd=1, window="request")]
    targets = [Target(provider=paid, price=Price(1, 1)), Target(provider=free, name="free", price=Price())]
    router = Router(targets, budgets=budgets)
    money = router._books.money

    async def cancelled() -> None:
        task = asyncio.create_task(router.ainvoke("x"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def abandoned() -> None:
        stream = router.astream("x")
        await anext(stream)
        await stream.aclose()

    assert router.invoke("x").text == "free at last"
    assert asyncio.run(router.ainvoke("x")).text == "free at last"
    begun = router.stream("x")
    next(begun)
    begun.close()
    asyncio.run(cancelled())
    asyncio.run(abandoned())
    router.remove("free")
    with pytest.raises(BudgetExceeded):
        router.invoke("x")
    assert (money._denied, money._purses, money._troubles) == ({}, {}, {})


def test_thresholds_and_the_end_are_told_once(ledger: Any) -> None:
    heard: list[Any] = []
    target = paid(*[Answer("x", usage=Usage(0, 100))] * 20)
    with router_of(target, budgets=[Budget("0.5", "total")], ledger=ledger, on_event=heard.append) as router:
        for _ in range(5):
            try:
                router.invoke(ASK.replace(max_tokens=150))
            except BudgetExceeded:
                break
        with pytest.raises(BudgetExceeded):
            router.invoke(ASK.replace(max_tokens=150))
        router.budget_status()
        router.flush_events()
        money = [e for e in heard if isinstance(e, (BudgetWarning, BudgetExhausted))]
        assert [getattr(e, "share", None) for e in money] == [0.5, None]
        assert money[0].as_dict()["event"] == "budget_warning"
        assert (money[1].hard, money[1].resets_at) == (True, None)


def test_an_overcharge_is_told_booked_and_closes_the_budget(ledger: Any) -> None:
    heard: list[Any] = []
    target = paid(Answer("x", usage=Usage(10_000, 100)))
    with router_of(target, budgets=[Budget(2)], ledger=ledger, on_event=heard.append) as router:
        router.invoke(ASK)
        (status,) = router.budget_status()
        assert status.spent_usd == pytest.approx(10.1)
        assert status.overcharged_usd > 9
        assert status.exhausted
        with pytest.raises(BudgetExceeded):
            router.invoke(ASK)
        router.flush_events()
        (over,) = [e for e in heard if isinstance(e, BudgetOvercharged)]
        assert (over.target, over.cost_usd) == ("paid", pytest.approx(10.1))


# ── what becomes of what was set aside ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "spent"),
    [
        ("fine", "actual"),
        (ErrorKind.AUTH, "nothing"),
        (ErrorKind.CONNECT, "nothing"),
        (ErrorKind.OVERLOADED, "nothing"),
        (ErrorKind.TRANSIENT, "bound"),
        (Broken("some words"), "bound"),
    ],
    ids=str,
)
def test_what_was_set_aside_is_settled_as_the_attempt_ended(ledger: Any, ask: Any, step: Any, spent: str) -> None:
    with router_of(paid(step), budgets=[Budget(10)], ledger=ledger, on_stream_break="raise") as router:
        if spent == "actual":
            ask(router, ASK)
        else:
            with pytest.raises((AllTargetsFailed, StreamBroken)):
                ask(router, ASK)
        (status,) = router.budget_status()
        assert status.pending_usd == 0
        if spent == "nothing":
            assert status.spent_usd == 0
        elif spent == "actual":
            assert 0 < status.spent_usd < 0.02
        else:
            assert status.unknown_usd == status.spent_usd > 0.1
            (row,) = router.ledger.entries()
            assert row.bound_nano == round(status.unknown_usd * 1e9)


def test_a_caller_who_walks_away_is_charged_the_bound(ledger: Any) -> None:
    with router_of(paid("many words to be read"), budgets=[Budget(10)], ledger=ledger) as router:
        stream = router.stream(ASK)
        for event in stream:
            if isinstance(event, TextDelta):
                break
        stream.close()
        (status,) = router.budget_status()
        assert (status.pending_usd, status.unknown_usd > 0.1) == (0, True)

        assert [h.in_flight for h in router.health().targets] == [0]


def test_a_caller_who_is_cancelled_before_the_row_is_written_leaves_nothing_behind(tmp_path: Any) -> None:
    ledger = SQLiteLedger(tmp_path / "costs.db")
    with router_of(target := paid(), budgets=[Budget(10)], ledger=ledger) as router:

        async def cancel() -> None:
            ledger._writer.gate.acquire()  # nothing is written just now
            try:
                task = asyncio.ensure_future(router.ainvoke(ASK))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            finally:
                ledger._writer.gate.release()

        asyncio.run(cancel())
        (status,) = router.budget_status()
        assert (status.pending_usd, status.spent_usd) == (0, 0)
        assert target.provider.calls == 0  # type: ignore[union-attr]  # scripted
        assert [h.in_flight for h in router.health().targets] == [0]
        assert router.invoke(ASK).text == "fine"


def test_a_continued_stream_and_a_corrected_answer_are_within_what_was_reserved(ledger: Any) -> None:
    """The second target is sent more than the caller asked: what the first had said, and the words to go on."""
    heard: list[Any] = []

    def counted(request: ChatRequest) -> Any:
        size = sum(len(m.text) for m in request.messages)
        return [Started(), TextDelta("and the end"), Finished("stop", usage=Usage(size, 3))]

    targets = [paid(Broken("word " * 400), name="a"), paid(counted, name="b")]
    with router_of(*targets, budgets=[Budget(100)], ledger=ledger, on_event=heard.append) as router:
        text = FACES["stream"](router, ASK)
        assert text.endswith("end")
        router.budget_status()
        router.flush_events()
        assert not [e for e in heard if isinstance(e, BudgetOvercharged)]


def test_an_answer_that_nobody_counted_is_charged_its_bound_by_a_hard_budget_and_estimated_otherwise(
    ledger: Any,
) -> None:
    silent = [Started(), TextDelta("some words"), Finished("stop")]
    with router_of(paid(silent), budgets=[Budget(10)], ledger=ledger) as router:
        assert router.invoke(ASK).text == "some words"
        (status,) = router.budget_status()
        assert status.spent_usd == status.unknown_usd > 0.1
        (row,) = router.ledger.entries()
        assert (row.status, row.cost_nano, row.estimated) == ("unknown", None, True)
    with router_of(paid(silent), budgets=[Budget(10, hard=False)]) as router:
        router.invoke(ASK)
        (row,) = router.ledger.entries()
        assert (row.status, row.estimated) == ("estimated", True)
        assert row.cost_nano


def test_a_new_budget_shows_and_heeds_what_was_spent_before_it_even_before_its_first_call(ledger: Any) -> None:
    """A program that begins by printing its budgets must not be told that nothing was spent."""
    clock = VirtualClock()
    shared = MemoryLedger() if ledger is None else SQLiteLedger(ledger)
    asked = ASK.replace(user="ann", tags=("batch",), max_tokens=100)
    with router_of(paid(), budgets=None, ledger=shared, clock=clock) as before:
        for _ in range(3):
            before.invoke(asked)
        spent = before.costs().total_usd
        assert spent
    clock.advance(1)
    new = [
        Budget("0.5", "month"),
        Budget(1, "day", scope="user", of="ann"),
        Budget(1, "week", scope="user"),
        Budget(1, "total", scope="tag"),
        Budget(1, "month", scope="target", timezone="Asia/Kathmandu"),
        Budget(1, "month", scope="user", of="bob"),
    ]
    with router_of(paid(), budgets=new, ledger=shared, clock=clock) as router:
        shown = [(s.of, s.spent_usd) for s in router.budget_status()]
        names = [None, "ann", "ann", "batch", "paid"]
        assert shown == [(name, pytest.approx(spent)) for name in names] + [("bob", 0.0)]
        assert "over budget" in str(router.explain(asked.replace(max_tokens=490)))
        assert "over budget" not in str(router.explain(asked))
        router.invoke(asked)
        assert router.budget_status()[0].spent_usd == pytest.approx(spent / 3 * 4), "and is counted once"
    if ledger is not None:
        shared.close()


def test_a_plan_says_who_is_over_budget_and_sets_nothing_aside(ledger: Any) -> None:
    with router_of(paid(), free(), budgets=[Budget("0.25")], ledger=ledger) as router:
        assert "paid" not in router.explain(ASK).notes
        plan = router.explain(ASK.replace(max_tokens=1000))
        assert plan.notes["paid"].startswith("over budget: $0.25 a month")
        assert held(router) == (0, 0)


def test_a_configuration_file_holds_budgets_and_a_ledger(tmp_path: Any) -> None:
    (tmp_path / "fallback.toml").write_text(
        f"""
        ledger = "{tmp_path}/costs.db"
        [[targets]]
        spec = "openai:gpt-5-mini"
        api_key = "k"
        price = {{ input_per_mtok = 1, output_per_mtok = 2 }}
        [[budgets]]
        limit_usd = 10
        window = "day"
        scope = "user"
        warn_at = [0.9]
        timezone = "Europe/Berlin"
        """
    )
    with Router.from_config(tmp_path / "fallback.toml") as router:
        assert isinstance(router.ledger, SQLiteLedger)
        (budget,) = router._books.money.budgets.all  # type: ignore[union-attr]  # it has budgets
        assert (budget.window, budget.scope, budget.warn_at) == ("day", "user", (0.9,))
        assert router.targets[0].price == Price(1, 2)
        again = pickle.loads(pickle.dumps(router.ledger))
        assert again.path == router.ledger.path
        again.close()


# ── around it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_budgets_are_taken_as_values_mappings_one_or_many_and_nonsense_is_refused() -> None:
    for given in (Budget(1), {"limit_usd": 1}, [Budget(1)], [{"limit_usd": "1", "window": "day", "scope": "user"}]):
        with router_of(paid(), budgets=given) as router:
            assert len(router._books.money.budgets.all) == 1  # type: ignore[union-attr]  # it has budgets
    with pytest.raises(UnknownOption, match="limit_usd"):
        router_of(paid(), budgets=[{"limit": 1}])
    with pytest.raises(ConfigurationError):
        router_of(paid(), budgets=[7])
    with Router(paid()) as plain:
        assert str(plain.budget_status()) == "no budgets"
        assert plain._books.money is None


def test_a_ledger_of_ones_own_keeps_the_rows_and_budgets_hold_all_the_same() -> None:
    class Own:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def record(self, entry: Any) -> None:
            self.rows.append(entry)

        def entries(self) -> Any:
            return self.rows

        def costs(self, **_: Any) -> Any:
            return None

        def close(self) -> None: ...

    own = Own()
    with router_of(paid(), budgets=[Budget("0.21")], ledger=own) as router:
        router.invoke(ASK)
        with pytest.raises(BudgetExceeded):
            router.invoke(ASK.replace(max_tokens=190))
    assert [row.cost_nano for row in own.rows] == [11_000_000]


def test_a_price_takes_both_spellings_and_not_both_at_once() -> None:
    price = Price(input_per_mtok=1, output_per_mtok="2.5", cached=0.1, per_second="0.001", per_request=0.01)
    assert price == Price(1, "2.5", 0.1, None, "0.001", 0.01)
    assert Target("openai:x", api_key="k", price={"input_per_mtok": 1, "output": 2}).price == Price(1, 2)
    with pytest.raises(ConfigurationError, match="not both"):
        Price(1, input_per_mtok=1)
    with pytest.raises(ConfigurationError, match=r"Price\.second"):
        Price(per_second=-1)
    with pytest.raises(UnknownOption, match="input_per_mtok"):
        Target("openai:x", api_key="k", price={"input_per_mtoks": 1})
    assert repr(pickle.loads(pickle.dumps(price))) == repr(price)


def test_a_file_and_memory_say_the_same_of_the_same_requests(tmp_path: Any) -> None:
    told = []
    for ledger in (None, SQLiteLedger(tmp_path / "c.db")):
        with router_of(paid("one", "two words", ErrorKind.AUTH), budgets=[Budget(1)], ledger=ledger) as router:
            for n in range(3):
                try:
                    router.invoke(ASK.replace(user=f"u{n}", tags=("t",)))
                except AllTargetsFailed:
                    pass
            told.append(
                [(e.status, e.cost_nano, e.bound_nano, e.user, e.tags, e.usage) for e in router.ledger.entries()]
            )
    assert told[0] == told[1]
