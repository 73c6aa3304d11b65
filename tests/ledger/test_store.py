"""What both ledgers promise, whichever keeps the rows: a state machine against a plain model, and what follows."""

from __future__ import annotations

import itertools
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from shared_core import Budget, MemoryLedger, SQLiteLedger, Usage
from shared_core.ledger.entry import FOLLOWS, EntryStatus, LedgerEntry, Purpose
from shared_core.ledger.store import Crossed, Draft, Exhausted, LedgerStore, Overcharged, Ticket
from shared_core.resilience.budget import Ask, Budgets, Denial, MeterKey, Reading

DAY = 86400
NOON = 20_000 * DAY + DAY / 2


def usd(nano: int) -> Decimal:
    return Decimal(nano) / 10**9


def draft(budgets: Budgets, most: int | None, at: float = NOON, **more: Any) -> Draft:
    user, tags, target = more.pop("user", None), more.pop("tags", ()), more.pop("target", "a:b")
    least = more.pop("least", most)
    ask = None if most is None or least is None else Ask(least, most)
    claims = budgets.claims(at, target, user, tags)
    return Draft("x-1", target, "a", "b", at, ask, claims, user, tags, **more)


def entry(
    of: Draft, status: EntryStatus = EntryStatus.POSTED, cost: int | None = 0, bound: int | None = None, **more: Any
) -> LedgerEntry:
    usage = more.pop("usage", Usage(10, 5, 2, 1, 3, estimated=status is EntryStatus.ESTIMATED))
    outcome = "answered" if status in (EntryStatus.POSTED, EntryStatus.ESTIMATED) else "failed"
    return LedgerEntry(
        of.execution, 1, of.target, of.provider, of.model, of.at, outcome, status, usage, cost, bound, 0.5,
        None, "own", of.user, of.tags, of.chain, of.local, 0.25, of.purpose, "resp-1", "req-1", **more,
    )  # fmt: skip


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kept: LedgerStore = MemoryLedger() if request.param == "memory" else SQLiteLedger(tmp_path / "costs.db")
    yield kept
    kept.close()


def test_a_row_says_everything_that_was_handed_in(ledger: LedgerStore) -> None:
    of = draft(Budgets([]), 1000, user="ann", tags=("x", "y"), chain="low-cost", local=True, purpose=Purpose.HEDGE)
    ticket = ledger.reserve(of)
    assert isinstance(ticket, Ticket)
    ledger.flush()
    (row,) = ledger.entries()
    assert (row.status, row.bound_nano, row.cost_nano, row.outcome) == (EntryStatus.RESERVED, 1000, None, "running")
    assert ledger.dispatch(ticket) is True
    assert (ledger.entries()[0].status, ticket.status) == (EntryStatus.DISPATCHED,) * 2
    handed = entry(of, cost=700, bound=1000)
    ledger.settle(ticket, handed)
    (row,) = ledger.entries()
    for name in LedgerEntry.__slots__:
        if name != "id":
            assert getattr(row, name) == getattr(handed, name), name
    assert row.id == ticket.id


def test_a_row_is_settled_once_and_says_so(ledger: LedgerStore) -> None:
    of = draft(Budgets([]), 1000)
    ticket = ledger.reserve(of, dispatch=True)
    assert isinstance(ticket, Ticket)
    ledger.settle(ticket, entry(of))
    with pytest.raises(RuntimeError, match="twice"):
        ledger.settle(ticket, entry(of))


def test_states_only_go_forward() -> None:
    assert FOLLOWS[EntryStatus.RESERVED] >= {EntryStatus.DISPATCHED, EntryStatus.VOIDED}
    for settled in (EntryStatus.POSTED, EntryStatus.ESTIMATED, EntryStatus.VOIDED, EntryStatus.UNKNOWN):
        assert not FOLLOWS[settled]
        assert not settled.open


def test_estimates_are_flagged_and_stay_out_of_reported_totals(ledger: LedgerStore) -> None:
    for status, cost in ((EntryStatus.POSTED, 100), (EntryStatus.ESTIMATED, 30), (EntryStatus.UNKNOWN, None)):
        ledger.record(entry(draft(Budgets([]), 50), status, cost, 50))
    total = ledger.costs(now=NOON + 1).total
    assert (total.cost_nano, total.estimated_nano, total.unknown_nano) == (100, 30, 50)
    assert (total.input_tokens, total.estimated) == (10, 1)
    assert [row.estimated for row in ledger.entries()] == [False, True, False]


def test_what_a_hard_budget_has_no_room_for_leaves_no_row(ledger: LedgerStore) -> None:
    budgets = Budgets([Budget(usd(100), "day"), Budget(usd(60), "day", "user")])
    ticket = ledger.reserve(draft(budgets, 50, user="ann"), dispatch=True)
    assert isinstance(ticket, Ticket)
    denied = ledger.reserve(draft(budgets, 20, user="ann"), dispatch=True)
    assert isinstance(denied, Denial)
    assert (denied.claim.key.scope, denied.pending, denied.needed) == ("user", 50, 20)
    assert isinstance(ledger.reserve(draft(budgets, 20, user="bob"), dispatch=True), Ticket)
    lowered = ledger.reserve(draft(budgets, 100, least=10, user="eve"), dispatch=True)
    assert isinstance(lowered, Ticket)
    assert lowered.bound_nano == 30, "all that is left, as it is more than the least that is asked"
    assert len(ledger.entries()) == 3


def test_an_unknown_outcome_stays_at_its_bound_until_the_bill_says_otherwise(ledger: LedgerStore) -> None:
    budgets = Budgets([Budget(usd(1000), "day")])
    of = draft(budgets, 400)
    (key,) = (c.key for c in of.claims)
    ticket = ledger.reserve(of, dispatch=True)
    assert isinstance(ticket, Ticket)
    ledger.settle(ticket, entry(of, EntryStatus.UNKNOWN, None, 400))
    assert ledger.meters([key]) == {key: Reading(0, 0, 400, 0)}
    ledger.flush()
    row = ledger.entries()[0]
    assert row.id is not None
    found = ledger.correct(row.id, 150, reason="the vendor's export", usage=Usage(7, 3))
    assert found is not None
    assert (found.cost_nano, found.bound_nano, found.corrects, found.purpose) == (150, -400, row.id, "correction")
    assert ledger.meters([key]) == {key: Reading(150, 0, 0, 0)}
    assert ledger.correct(row.id, 150, reason="the same bill again") is None
    again = ledger.correct(row.id, 180, reason="another bill")
    assert again is not None
    assert (again.cost_nano, again.bound_nano) == (30, None)
    assert ledger.meters([key])[key].spent == 180
    total = ledger.costs().total
    assert (total.cost_nano, total.unknown_nano, total.corrected_nano, total.attempts) == (180, 0, 180, 1)
    with pytest.raises(LookupError):
        ledger.correct(found.id or 0, 1, reason="a correction")
    with pytest.raises(LookupError):
        ledger.correct(4711, 1, reason="nothing")


def test_an_overcharge_is_booked_told_and_closes_the_budget(ledger: LedgerStore) -> None:
    told: list[Any] = []
    budgets = Budgets([Budget(usd(100), "day")])
    of = draft(budgets, 80, tell=told.append)
    ticket = ledger.reserve(of, dispatch=True)
    assert isinstance(ticket, Ticket)
    ledger.settle(ticket, entry(of, cost=130, bound=80))
    ledger.flush()
    ((key, reading),) = ledger.meters().items()
    assert (reading.spent, reading.over) == (130, 50)
    assert any(isinstance(n, Overcharged) and n.by_nano == 50 for n in told)
    assert any(isinstance(n, Exhausted) for n in told)
    assert isinstance(ledger.reserve(draft(budgets, 1)), Denial)
    assert isinstance(ledger.reserve(draft(budgets, 0)), Ticket), "what costs nothing goes on"
    assert key.window == "day"


def test_each_threshold_is_told_once_in_a_window_and_again_in_the_next(ledger: LedgerStore) -> None:
    told: list[Any] = []
    budgets = Budgets([Budget(usd(100), "day", warn_at=(0.5, 0.9))])

    def spend(cost: int, at: float = NOON) -> list[Any]:
        told.clear()
        of = draft(budgets, cost, at, tell=told.append)
        ticket = ledger.reserve(of, dispatch=True)
        if isinstance(ticket, Ticket):
            ledger.settle(ticket, entry(of, cost=cost, bound=cost))
        ledger.flush()
        return [n.share if isinstance(n, Crossed) else type(n).__name__ for n in told]

    assert spend(40) == []
    assert spend(40) == [0.5]
    assert spend(5) == []
    assert spend(50) == ["Exhausted"], "refused: told although not all is spent"
    assert spend(10) == [0.9]
    assert spend(5) == []
    assert spend(100, NOON + DAY) == [0.5, 0.9, "Exhausted"]


def test_soft_budgets_warn_and_never_refuse(ledger: LedgerStore) -> None:
    told: list[Any] = []
    budgets = Budgets([Budget(usd(100), "day", hard=False)])
    for _ in range(3):
        of = draft(budgets, 90, tell=told.append)
        ticket = ledger.reserve(of, dispatch=True)
        assert isinstance(ticket, Ticket)
        ledger.settle(ticket, entry(of, cost=90, bound=90))
    ledger.flush()
    assert [type(n).__name__ for n in told] == ["Crossed", "Crossed", "Crossed", "Exhausted"]
    (reading,) = ledger.meters().values()
    assert reading.spent == 270


def test_a_budget_that_is_new_takes_in_what_the_ledger_holds_of_its_window(ledger: LedgerStore) -> None:
    plain = Budgets([])
    rows = (
        (NOON - DAY, "ann", ("x",), 1), (NOON - 60, "ann", ("x",), 10), (NOON - 50, "bob", ("y",), 100),
        (NOON - 40, "ann", (), 1000),
    )  # fmt: skip
    for at, who, tags, cost in rows:
        ledger.record(entry(draft(plain, cost, at, user=who, tags=tags), cost=cost, bound=cost))
    ledger.record(entry(draft(plain, 7, NOON - 30, user="ann"), EntryStatus.UNKNOWN, None, 7))
    budgets = Budgets(
        [
            Budget(1, "day"),
            Budget(1, "total"),
            Budget(1, "day", "user"),
            Budget(1, "day", "tag"),
            Budget(1, "day", "target"),
        ]
    )
    of = draft(budgets, 5, user="ann", tags=("x",))
    assert isinstance(ledger.reserve(of), Ticket)
    read = ledger.meters([c.key for c in of.claims])
    spent = {(k.scope, k.window): r.spent for k, r in read.items()}
    assert spent == {
        ("global", "day"): 1117,
        ("global", "total"): 1118,
        ("user", "day"): 1017,
        ("tag", "day"): 10,
        ("target", "day"): 1117,
    }


def test_raising_a_limit_keeps_what_was_spent_and_lowering_it_refuses_at_once(ledger: LedgerStore) -> None:
    def spend(limit: int, cost: int) -> bool:
        of = draft(Budgets([Budget(usd(limit), "day")]), cost)
        ticket = ledger.reserve(of, dispatch=True)
        if isinstance(ticket, Denial):
            return False
        ledger.settle(ticket, entry(of, cost=cost, bound=cost))
        return True

    assert [spend(100, 90), spend(100, 20), spend(200, 20), spend(100, 1), spend(1000, 50)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert [r.spent for r in ledger.meters().values()] == [160]


class Twins(RuleBasedStateMachine):
    """Both ledgers, handed the same, beside a model of a few lines. Money only ever moves between three places."""

    tickets = Bundle("tickets")
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.memory = MemoryLedger()
        self.sqlite = SQLiteLedger(Path(self.folder.name) / "costs.db", linger_s=0.0)
        self.budgets = Budgets(
            [
                Budget(usd(1000), "day"),
                Budget(usd(400), "day", "user"),
                Budget(usd(5000), "total"),
                Budget(usd(300), "month", "tag", "b", hard=False),
            ]
        )
        self.model: dict[MeterKey, list[int]] = {}
        self.settled: list[tuple[int, int]] = []

    def teardown(self) -> None:
        self.sqlite.close()
        self.folder.cleanup()

    @rule(
        target=tickets,
        most=st.integers(0, 500),
        less=st.integers(0, 300),
        user=st.sampled_from([None, "ann", "bob"]),
        tags=st.sampled_from([(), ("a",), ("a", "b")]),
        day=st.integers(0, 2),
        dispatch=st.booleans(),
    )
    def reserve(self, most: int, less: int, user: str | None, tags: Any, day: int, dispatch: bool) -> Any:
        of = draft(self.budgets, most, NOON + day * DAY, least=max(0, most - less), user=user, tags=tags)
        one = self.memory.reserve(of, dispatch=dispatch)
        two = self.sqlite.reserve(of, dispatch=dispatch)
        keys = {claim.key: claim for claim in of.claims}
        room = min(c.budget.limit_nano - sum(self.model.get(k, [0, 0, 0])) for k, c in keys.items() if c.budget.hard)
        if isinstance(one, Denial) or isinstance(two, Denial):
            assert one == two
            assert room < max(0, most - less)
            return None
        assert one.bound_nano == two.bound_nano == max(min(most, room), 0)
        for key in keys:
            self.model.setdefault(key, [0, 0, 0])[1] += one.bound_nano or 0
        return (of, one, two)

    @rule(
        pair=consumes(tickets),
        how=st.sampled_from([EntryStatus.POSTED, EntryStatus.ESTIMATED, EntryStatus.VOIDED, EntryStatus.UNKNOWN]),
        share=st.integers(0, 100),
    )
    def settle(self, pair: Any, how: EntryStatus, share: int) -> None:
        if pair is None:
            return
        of, one, two = pair
        bound = one.bound_nano or 0
        cost = None if how is EntryStatus.UNKNOWN else 0 if how is EntryStatus.VOIDED else bound * share // 100
        self.memory.settle(one, entry(of, how, cost, bound))
        self.sqlite.settle(two, entry(of, how, cost, bound))
        for key in {claim.key for claim in of.claims}:
            cell = self.model[key]
            cell[1] -= bound
            cell[0] += cost or 0
            cell[2] += bound if cost is None else 0
        self.settled.append((one.id or 0, two.id or 0))

    @rule(which=st.integers(0, 1000), cost=st.integers(0, 600))
    def correct(self, which: int, cost: int) -> None:
        if not self.settled:
            return
        first, second = self.settled[which % len(self.settled)]
        one = self.memory.correct(first, cost, reason="bill", at=NOON)
        two = self.sqlite.correct(second, cost, reason="bill", at=NOON)
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert (one.cost_nano, one.bound_nano) == (two.cost_nano, two.bound_nano)
            row = next(e for e in self.memory.entries() if e.id == first)
            for claim in self.budgets.claims(row.at, row.target, row.user, row.tags):
                self.model[claim.key][0] += one.cost_nano or 0
                self.model[claim.key][2] += one.bound_nano or 0

    @rule()
    def reopen(self) -> None:
        path = self.sqlite.path
        self.sqlite.close()
        self.sqlite = SQLiteLedger(path, linger_s=0.0)

    @invariant()
    def they_agree_with_the_model(self) -> None:
        one, two = self.memory.meters(), self.sqlite.meters()
        assert one == two
        assert {k: [r.posted, r.pending, r.unknown] for k, r in one.items() if any(r)} == {
            k: v for k, v in self.model.items() if any(v)
        }
        a, b = self.memory.costs(now=NOON + 9 * DAY), self.sqlite.costs(now=NOON + 9 * DAY)
        assert a.total == b.total


TestTwins = Twins.TestCase
TestTwins.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
